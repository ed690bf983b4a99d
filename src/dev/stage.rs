//! A stage: a database, a Stripe sandbox, and servers, on private sockets and free ports. `paybridge demo` plays its
//! story on one, the tests play on many, `paybridge dev` leaves one standing.
//!
//! Servers run in this process, on the stage's clock, or, where processes are asked for, as real `paybridge serve`
//! processes on the machine's clock; so do workers.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration as RealDuration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretBox, SecretString};
use tokio::net::{TcpListener, TcpSocket};
use tokio_postgres::NoTls;

use super::postgres::Postgres;
use super::sandbox::{self, Options as SandboxOptions, Sandbox};
use crate::app::{App, Periods};
use crate::clock::{Clock, pause};
use crate::config::{BaseUrl, Connection, EncryptionKey, Grpc, Retention, Serve, Stripe};
use crate::domain::OrganizationId;
use crate::domain::limits::Limits;
use crate::lifecycle::Lifecycle;
use crate::server::{self, Parts};
use crate::store;

/// The login that servers use: no superuser, a member of the three roles.
const LOGIN: &str = "paybridge";
/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;
/// How long anything on a stage may take to come up.
const START_TIMEOUT: RealDuration = RealDuration::from_secs(20);
/// A key that seals what is of no worth.
const SEAL_KEY: [u8; 32] = *b"paybridge-stage-seals-no-secrets";

/// Makes the database `name` with all migrations run, and returns how servers connect to it. One that exists is kept,
/// and migrated.
pub async fn prepare_database(postgres: &Postgres, name: &str, template: Option<&str>) -> Result<String> {
    let (client, connection) = tokio_postgres::connect(&postgres.connection_string("postgres"), NoTls).await?;
    let driver = tokio::spawn(connection);
    let has_login = client.query("SELECT FROM pg_roles WHERE rolname = $1", &[&LOGIN]).await?;
    if has_login.is_empty() {
        client.batch_execute(&format!("CREATE ROLE {LOGIN} LOGIN CREATEROLE")).await?;
    }
    let known = client.query("SELECT FROM pg_database WHERE datname = $1", &[&name]).await?;
    if known.is_empty() {
        let template = template.map(|template| format!(" TEMPLATE {template}")).unwrap_or_default();
        client.batch_execute(&format!("CREATE DATABASE {name} OWNER {LOGIN}{template}")).await?;
    }
    drop(client);
    driver.await??;
    let url = postgres.connection_string_as(LOGIN, name);
    if template.is_none() {
        store::migrate::run(&url).await?;
    }
    Ok(url)
}

/// What servers in this process keep to: what the sandbox lets through.
fn limits(sandbox: Option<sandbox::Limits>) -> Limits {
    let boundless = sandbox::Limits { endpoint: 10_000, test: 10_000, live: 10_000 };
    let sandbox::Limits { endpoint, test, live } = sandbox.unwrap_or(boundless);
    Limits { endpoint: endpoint.into(), live: live.into(), test: test.into() }
}

/// How a stage is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many servers; the first one hears the webhooks.
    pub servers: usize,
    /// With it servers are processes of this program, else they run in this process.
    pub program: Option<PathBuf>,
    /// How the sandbox behaves.
    pub sandbox: SandboxOptions,
    /// The sandbox's listener's address; port 0 for any.
    pub sandbox_listen: SocketAddr,
    /// The first server's gRPC address; port 0 for any.
    pub grpc_listen: SocketAddr,
    /// The first server's HTTP address; port 0 for any.
    pub http_listen: SocketAddr,
    /// Whether integrations poll Stripe's events list instead of being posted to.
    pub polls_events: bool,
    /// Whether Stripe's own events are relayed.
    pub relay_provider_events: bool,
    /// How many event streams an organization may have open on each server.
    pub max_streams_per_organization: usize,
    /// How many jobs a server works on at once; 0 leaves the work to others.
    pub worker_concurrency: usize,
    /// How long servers in this process wait for an answer of Stripe's, real time.
    pub stripe_timeout: RealDuration,
    /// How far apart the reconcilers of servers in this process look.
    pub periods: Periods,
    /// How long a server that stops waits for work in hand, real time; whole seconds.
    pub shutdown_grace: RealDuration,
    /// How long an event stream of a server in this process may be silent, real time.
    pub heartbeat: RealDuration,
    /// Where server processes write their logs; absent: where this one does.
    pub log_file: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let sandbox = SandboxOptions { limits: None, ..SandboxOptions::default() };
        Self {
            servers: 1,
            program: None,
            sandbox,
            sandbox_listen: any,
            grpc_listen: any,
            http_listen: any,
            polls_events: false,
            relay_provider_events: false,
            max_streams_per_organization: 1_000,
            worker_concurrency: 8,
            stripe_timeout: RealDuration::from_secs(20),
            periods: seldom(),
            shutdown_grace: RealDuration::from_secs(5),
            heartbeat: RealDuration::from_secs(1),
            log_file: None,
        }
    }
}

/// Reconcilers that leave the stage to the webhooks: only what has been moving for long is asked about. Where the events
/// list stands in for webhooks it is read without pause.
fn seldom() -> Periods {
    let year = time::Duration::days(365);
    let poll_test = time::Duration::milliseconds(300);
    Periods { poll_test, list_test: year, list_live: year, endpoint: year, ..Periods::default() }
}

/// Binds an address without listening on it, so that a process of ours can listen there, and the kernel gives the port to
/// nobody else meanwhile.
fn reserve(address: SocketAddr) -> Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Where a server listens.
#[derive(Clone, Debug)]
pub struct Address {
    /// `http://127.0.0.1:…` of the gRPC API.
    pub grpc: String,
    /// `http://127.0.0.1:…` of the HTTP door.
    pub http: String,
}

/// Everything that a story needs.
pub struct Stage {
    /// The time that the sandbox, and servers in this process, go by.
    pub clock: Clock,
    /// Stripe.
    pub sandbox: Sandbox,
    /// How servers connect to the database.
    pub database_url: String,
    /// The servers, in the order in which they were started.
    pub servers: Vec<Address>,
    administration: App,
    options: Options,
    webhook_url: Option<String>,
    lives: Mutex<Vec<Lifecycle>>,
    processes: Mutex<Vec<Process>>,
}

/// A server process, ended when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Stage {
    /// Sets up a stage over a prepared database.
    pub async fn set_up(database_url: String, clock: Clock, options: Options) -> Result<Self> {
        let listener = TcpListener::bind(options.sandbox_listen)
            .await
            .with_context(|| format!("the sandbox can't listen on {}", options.sandbox_listen))?;
        let sandbox = Sandbox::start(listener, clock.clone(), options.sandbox.clone())?;
        let administration = server::administration(&database_url)?;
        let mut stage = Self {
            clock,
            sandbox,
            database_url,
            servers: Vec::new(),
            administration,
            options,
            webhook_url: None,
            lives: Mutex::default(),
            processes: Mutex::default(),
        };
        for _ in 0..stage.options.servers {
            stage.add_server().await?;
        }
        Ok(stage)
    }

    /// Starts one more server, as a process of `program`, and waits until it is ready.
    pub async fn add_process(&mut self, program: PathBuf) -> Result<Address> {
        let before = self.options.program.replace(program);
        let added = self.add_server().await;
        self.options.program = before;
        added
    }

    /// Starts a worker, as a process of `program`, and waits until it is ready. Returns where its HTTP door is.
    pub async fn add_worker(&self, program: &Path) -> Result<String> {
        let http = reserve(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = format!("http://{}", http.local_addr()?);
        self.spawn(program, "worker", None, http.local_addr()?)?;
        self.wait_until_ready(&address).await?;
        Ok(address)
    }

    /// The newest process.
    pub fn newest_process(&self) -> Option<u32> {
        self.processes.lock().expect("no holder panics").last().map(|process| process.0.id())
    }

    /// How a process has ended, if it has.
    pub fn ended(&self, process: u32) -> Option<ExitStatus> {
        let mut processes = self.processes.lock().expect("no holder panics");
        let found = processes.iter_mut().find(|known| known.0.id() == process)?;
        found.0.try_wait().ok().flatten()
    }

    /// Starts one more server, and waits until it is ready.
    pub async fn add_server(&mut self) -> Result<Address> {
        let is_first = self.servers.is_empty();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (grpc, http) = if is_first { (self.options.grpc_listen, self.options.http_listen) } else { (any, any) };
        let grpc = reserve(grpc).with_context(|| format!("the gRPC API can't listen on {grpc}"))?;
        let http = reserve(http).with_context(|| format!("the HTTP door can't listen on {http}"))?;
        let (grpc_address, http_address) = (grpc.local_addr()?, http.local_addr()?);
        let address = Address { grpc: format!("http://{grpc_address}"), http: format!("http://{http_address}") };
        if is_first && !self.options.polls_events {
            self.webhook_url = Some(address.http.clone());
        }
        if let Some(program) = self.options.program.clone() {
            self.spawn(&program, "serve", Some(grpc_address), http_address)?;
            // The sockets hold the ports until the process listens on them.
            self.wait_until_ready(&address.http).await?;
        } else {
            self.start_here(grpc.listen(BACKLOG)?, http.listen(BACKLOG)?).await?;
            self.wait_until_ready(&address.http).await?;
        }
        self.servers.push(address.clone());
        Ok(address)
    }

    async fn start_here(&self, grpc: TcpListener, http: TcpListener) -> Result<()> {
        let settings = self.settings(grpc.local_addr()?, http.local_addr()?)?;
        let lifecycle = Lifecycle::new(self.options.shutdown_grace);
        let parts = Parts {
            clock: self.clock.clone(),
            relay_provider_events: self.options.relay_provider_events,
            heartbeat: self.options.heartbeat,
            limits: limits(self.options.sandbox.limits),
            periods: self.options.periods,
            ..Parts::new(Some(grpc), http)
        };
        server::start(&settings, parts, &lifecycle).await?;
        self.lives.lock().expect("no holder panics").push(lifecycle);
        Ok(())
    }

    fn settings(&self, grpc_listen: SocketAddr, http_listen: SocketAddr) -> Result<Serve> {
        let url = SecretString::from(self.database_url.clone());
        let base_url = |text: &str| BaseUrl::parse(text).map_err(|error| anyhow::anyhow!(error));
        let public_webhook_url = self.webhook_url.as_deref().map(base_url).transpose()?;
        Ok(Serve {
            database: Connection {
                url: url.clone(),
                direct_url: url,
                pool_size: self.options.worker_concurrency.max(8),
            },
            grpc: Some(Grpc {
                listen: grpc_listen,
                tls: None,
                max_streams_per_organization: self.options.max_streams_per_organization,
            }),
            http_listen,
            public_webhook_url,
            stripe: Stripe { base_url: base_url(&self.sandbox.url())?, timeout: self.options.stripe_timeout },
            encryption_keys: vec![EncryptionKey { id: "stage".to_owned(), key: SecretBox::new(Box::new(SEAL_KEY)) }],
            default_success_url: format!("{}/thanks", self.sandbox.url()),
            retention: Retention { events: time::Duration::days(90), deliveries: time::Duration::days(35) },
            action_expiry: time::Duration::DAY,
            worker_concurrency: self.options.worker_concurrency,
            shutdown_grace: self.options.shutdown_grace,
            clock: None,
        })
    }

    /// Starts a process that listens on these addresses, which the caller holds reserved until it is ready.
    fn spawn(&self, program: &Path, task: &str, grpc: Option<SocketAddr>, http: SocketAddr) -> Result<()> {
        let mut command = Command::new(program);
        if let Some(grpc) = grpc {
            command
                .env("PAYBRIDGE_GRPC_LISTEN", grpc.to_string())
                .env("PAYBRIDGE_MAX_STREAMS_PER_ORGANIZATION", self.options.max_streams_per_organization.to_string())
                .env("PAYBRIDGE_WORKER_CONCURRENCY", self.options.worker_concurrency.to_string());
        }
        command
            .arg(task)
            .env("DATABASE_URL", &self.database_url)
            .env("PAYBRIDGE_HTTP_LISTEN", http.to_string())
            .env("PAYBRIDGE_STRIPE_BASE_URL", self.sandbox.url())
            .env("PAYBRIDGE_ENCRYPTION_KEYS", format!("stage:{}", STANDARD.encode(SEAL_KEY)))
            .env("PAYBRIDGE_DEFAULT_SUCCESS_URL", format!("{}/thanks", self.sandbox.url()))
            .env("PAYBRIDGE_DATABASE_POOL_SIZE", "8")
            .env("PAYBRIDGE_SHUTDOWN_GRACE_SECONDS", self.options.shutdown_grace.as_secs().to_string())
            .env("PAYBRIDGE_LOG_FILTER", "warn")
            .stdin(Stdio::null());
        if let Some(url) = &self.webhook_url {
            command.env("PAYBRIDGE_PUBLIC_WEBHOOK_URL", url);
        }
        if let Some(file) = &self.options.log_file {
            let log = OpenOptions::new().create(true).append(true).open(file);
            command.stderr(log.with_context(|| format!("{} can't be written", file.display()))?);
        }
        let child = command.spawn().context("the server process can't be started")?;
        self.processes.lock().expect("no holder panics").push(Process(child));
        Ok(())
    }

    async fn wait_until_ready(&self, http: &str) -> Result<()> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let began = Instant::now();
        while began.elapsed() < START_TIMEOUT {
            let answer = client.get(format!("{http}/readyz")).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            pause(RealDuration::from_millis(20)).await;
        }
        bail!("the server at {http} was not ready within {START_TIMEOUT:?}")
    }

    /// A new organization and a token of it.
    pub async fn organization(&self, name: &str) -> Result<(OrganizationId, String)> {
        let organization = self.administration.create_organization(name).await?;
        let (_, token) = self.administration.create_token(organization.id, name).await?;
        Ok((organization.id, token.expose_secret().to_owned()))
    }

    /// The use cases without doors, for what only a person at a terminal does.
    pub fn administration(&self) -> &App {
        &self.administration
    }

    /// Ends the newest server: in this process in order, a process by kill -9.
    pub async fn end_newest_server(&mut self) {
        self.servers.pop();
        let process = self.processes.lock().expect("no holder panics").pop();
        if process.is_some() {
            return;
        }
        let life = self.lives.lock().expect("no holder panics").pop();
        if let Some(life) = life {
            life.stop().await;
        }
    }

    /// Ends everything, in order.
    pub async fn strike(self) {
        self.processes.lock().expect("no holder panics").clear();
        let lives = std::mem::take(&mut *self.lives.lock().expect("no holder panics"));
        for life in lives {
            life.stop().await;
        }
        self.sandbox.stop().await;
    }
}
