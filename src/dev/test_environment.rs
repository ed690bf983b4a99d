//! A test environment: a database, the Stripe sandbox and servers, on private sockets and free ports. `paybridge demo`
//! runs its scenarios in one, every test starts its own, and `paybridge dev` leaves one running.
//!
//! Servers run in this process on the environment's clock, or, with [`Options::program`], as `paybridge serve`
//! processes on the machine's clock, unless [`Options::process_clock`] is set. Workers are always processes.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration as RealDuration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretBox, SecretString};
use tokio::net::{TcpListener, TcpSocket};
use tokio_postgres::NoTls;

use super::postgres::Postgres;
use super::sandbox::{self, Options as SandboxOptions, Sandbox};
use crate::app::{App, Periods};
use crate::clock::{Clock, pause};
use crate::config::{BaseUrl, Connection, EncryptionKey, Grpc, Retention, Serve, Stripe};
use crate::domain::OrganizationId;
use crate::lifecycle::Lifecycle;
use crate::server::{self, ServerOptions};
use crate::store::{self, Pool};

/// The database role that servers log in as: not a superuser, member of the three roles.
pub(super) const LOGIN: &str = "paybridge";
/// The installation that databases and servers belong to: the default of `--installation`.
const INSTALLATION: &str = "paybridge";
/// The listen backlog of servers in this process.
const BACKLOG: u32 = 1024;
/// How long a server may take to become ready.
const START_TIMEOUT: RealDuration = RealDuration::from_secs(20);
/// Seals test secrets only. `paybridge dev` keeps databases that are sealed with it: a new value needs a new id.
const SEAL_KEY: [u8; 32] = *b"paybridge-dev-seals-test-secrets";

/// Creates the database `name`, runs all migrations, and returns the connection string for servers. An existing
/// database is kept and migrated; a copy of `template` is not migrated.
pub async fn prepare_database(postgres: &Postgres, name: &str, template: Option<&str>) -> Result<String> {
    let (client, connection) = tokio_postgres::connect(&postgres.connection_string("postgres"), NoTls).await?;
    let driver = tokio::spawn(connection);
    let has_login = client.query("SELECT FROM pg_roles WHERE rolname = $1", &[&LOGIN]).await?;
    if has_login.is_empty() {
        client.batch_execute(&format!("CREATE ROLE {LOGIN} LOGIN CREATEROLE")).await?;
    }
    let existing = client.query("SELECT FROM pg_database WHERE datname = $1", &[&name]).await?;
    if existing.is_empty() {
        let template = template.map(|template| format!(" TEMPLATE {template}")).unwrap_or_default();
        client.batch_execute(&format!("CREATE DATABASE {name} OWNER {LOGIN}{template}")).await?;
    }
    drop(client);
    driver.await??;
    let url = postgres.connection_string_as(LOGIN, name);
    match template {
        None => drop(store::migrate::run(&url, INSTALLATION).await?),
        // A copy knows that it is one from its first connection on, before there is anything to catch up with.
        Some(_) => Pool::new(&url, 1)?.ping().await.map_err(anyhow::Error::msg)?,
    }
    Ok(url)
}

/// How a test environment is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The number of servers. The first one receives the webhooks.
    pub servers: usize,
    /// The program to run servers as processes of; `None` runs them in this process.
    pub program: Option<PathBuf>,
    /// The sandbox's settings.
    pub sandbox: SandboxOptions,
    /// The sandbox's address; port 0 picks a free one.
    pub sandbox_listen: SocketAddr,
    /// The first server's gRPC address; port 0 picks a free one.
    pub grpc_listen: SocketAddr,
    /// The first server's HTTP address; port 0 picks a free one.
    pub http_listen: SocketAddr,
    /// Whether integrations poll Stripe's events list instead of receiving webhooks.
    pub polls_events: bool,
    /// Whether Stripe's own events are relayed (`relay_provider_events`).
    pub relay_provider_events: bool,
    /// The limit of open event streams for each organization and server.
    pub max_streams_per_organization: usize,
    /// The number of jobs that a server runs concurrently; 0 runs none.
    pub worker_concurrency: usize,
    /// The timeout for requests to Stripe of servers in this process. Real time.
    pub stripe_timeout: RealDuration,
    /// The intervals of the reconcilers of servers in this process.
    pub periods: Periods,
    /// How long a stopping server waits for work in progress. Real time, whole seconds.
    pub shutdown_grace: RealDuration,
    /// The heartbeat interval of event streams of servers in this process. Real time.
    pub heartbeat: RealDuration,
    /// The log file of server processes; `None` is this process's standard error.
    pub log_file: Option<PathBuf>,
    /// The clock of processes, as `PAYBRIDGE_CLOCK` has it; `None` is the machine's clock.
    pub process_clock: Option<String>,
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
            periods: infrequent_periods(),
            shutdown_grace: RealDuration::from_secs(5),
            heartbeat: RealDuration::from_secs(1),
            log_file: None,
            process_clock: None,
        }
    }
}

/// Intervals that leave the work to webhooks: reconcilers read only payments that have been in progress for long. Where
/// the events list replaces webhooks, it is polled continuously.
fn infrequent_periods() -> Periods {
    let year = time::Duration::days(365);
    let poll_test = time::Duration::milliseconds(300);
    // Tests move the clock by days at once, which would look like a restored database.
    let contact_max = 100 * year;
    Periods {
        poll_test,
        list_test: year,
        list_live: year,
        endpoint_test: year,
        endpoint_live: year,
        contact_max,
        ..Periods::default()
    }
}

/// Binds an address without listening on it. A process of ours can listen there, and the kernel does not assign the
/// port to anybody else meanwhile.
fn bind_without_listening(address: SocketAddr) -> Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// The addresses of a server.
#[derive(Clone, Debug)]
pub struct Address {
    /// The URL of the gRPC API, `http://127.0.0.1:…`.
    pub grpc: String,
    /// The URL of the HTTP listener, `http://127.0.0.1:…`.
    pub http: String,
}

/// A running test environment.
pub struct TestEnvironment {
    /// The clock of the sandbox and of servers in this process.
    pub clock: Clock,
    /// The stand-in for Stripe.
    pub sandbox: Sandbox,
    /// The connection string that servers use.
    pub database_url: String,
    /// The servers, oldest first.
    pub servers: Vec<Address>,
    administration: App,
    options: Options,
    webhook_url: Option<String>,
    lifecycles: Mutex<Vec<Lifecycle>>,
    processes: Mutex<Vec<Process>>,
}

/// A server process. Dropping it kills the process.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl TestEnvironment {
    /// Starts the sandbox and the servers on a prepared database.
    pub async fn start(database_url: String, clock: Clock, options: Options) -> Result<Self> {
        let listener = TcpListener::bind(options.sandbox_listen)
            .await
            .with_context(|| format!("the sandbox cannot listen on {}", options.sandbox_listen))?;
        let sandbox = Sandbox::start(listener, clock.clone(), options.sandbox.clone())?;
        let administration = server::administration(&database_url)?;
        let mut environment = Self {
            clock,
            sandbox,
            database_url,
            servers: Vec::new(),
            administration,
            options,
            webhook_url: None,
            lifecycles: Mutex::default(),
            processes: Mutex::default(),
        };
        for _ in 0..environment.options.servers {
            environment.add_server().await?;
        }
        Ok(environment)
    }

    /// Starts another server as a process of `program` and waits until it is ready.
    pub async fn add_process(&mut self, program: PathBuf) -> Result<Address> {
        let previous = self.options.program.replace(program);
        let added = self.add_server().await;
        self.options.program = previous;
        added
    }

    /// Starts a worker as a process of `program` and waits until it is ready. Returns the URL of its HTTP listener.
    pub async fn add_worker(&self, program: &Path) -> Result<String> {
        let http = bind_without_listening(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = format!("http://{}", http.local_addr()?);
        self.spawn(program, "worker", None, http.local_addr()?)?;
        self.wait_until_ready(&address).await?;
        Ok(address)
    }

    /// The id of the process that was started last.
    pub fn newest_process_id(&self) -> Option<u32> {
        self.processes.lock().last().map(|process| process.0.id())
    }

    /// The exit status of a process, or `None` while it runs.
    pub fn exit_status(&self, process: u32) -> Option<ExitStatus> {
        let mut processes = self.processes.lock();
        let found = processes.iter_mut().find(|known| known.0.id() == process)?;
        found.0.try_wait().ok().flatten()
    }

    /// Starts another server and waits until it is ready.
    pub async fn add_server(&mut self) -> Result<Address> {
        let is_first = self.servers.is_empty();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (grpc, http) = if is_first { (self.options.grpc_listen, self.options.http_listen) } else { (any, any) };
        let grpc = bind_without_listening(grpc).with_context(|| format!("the gRPC API cannot listen on {grpc}"))?;
        let http =
            bind_without_listening(http).with_context(|| format!("the HTTP endpoint cannot listen on {http}"))?;
        let (grpc_address, http_address) = (grpc.local_addr()?, http.local_addr()?);
        let address = Address { grpc: format!("http://{grpc_address}"), http: format!("http://{http_address}") };
        if is_first && !self.options.polls_events {
            self.webhook_url = Some(address.http.clone());
        }
        if let Some(program) = self.options.program.clone() {
            // The sockets reserve the ports until the process listens on them.
            self.spawn(&program, "serve", Some(grpc_address), http_address)?;
        } else {
            self.start_in_process(grpc.listen(BACKLOG)?, http.listen(BACKLOG)?).await?;
        }
        self.wait_until_ready(&address.http).await?;
        self.servers.push(address.clone());
        Ok(address)
    }

    async fn start_in_process(&self, grpc: TcpListener, http: TcpListener) -> Result<()> {
        let settings = self.settings(grpc.local_addr()?, http.local_addr()?)?;
        let lifecycle = Lifecycle::new(self.options.shutdown_grace);
        let options = ServerOptions {
            clock: self.clock.clone(),
            relay_provider_events: self.options.relay_provider_events,
            heartbeat: self.options.heartbeat,
            limits: self.options.sandbox.limits.unwrap_or(sandbox::Limits::UNLIMITED).into(),
            periods: self.options.periods,
            ..ServerOptions::new(Some(grpc), http)
        };
        server::start(&settings, options, &lifecycle).await?;
        self.lifecycles.lock().push(lifecycle);
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
            encryption_keys: vec![EncryptionKey { id: "dev".to_owned(), key: SecretBox::new(Box::new(SEAL_KEY)) }],
            installation: INSTALLATION.to_owned(),
            default_success_url: format!("{}/thanks", self.sandbox.url()),
            retention: Retention { events: time::Duration::days(90), deliveries: time::Duration::days(35) },
            action_expiry: time::Duration::DAY,
            worker_concurrency: self.options.worker_concurrency,
            shutdown_grace: self.options.shutdown_grace,
            clock: None,
        })
    }

    /// Starts a process that listens on these addresses. The caller keeps them bound until the process is ready.
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
            .env("PAYBRIDGE_ENCRYPTION_KEYS", format!("dev:{}", STANDARD.encode(SEAL_KEY)))
            .env("PAYBRIDGE_DEFAULT_SUCCESS_URL", format!("{}/thanks", self.sandbox.url()))
            .env("PAYBRIDGE_DATABASE_POOL_SIZE", "8")
            .env("PAYBRIDGE_SHUTDOWN_GRACE_SECONDS", self.options.shutdown_grace.as_secs().to_string())
            .env("PAYBRIDGE_LOG_FILTER", "warn")
            .stdin(Stdio::null());
        command.envs(self.options.process_clock.iter().map(|clock| ("PAYBRIDGE_CLOCK", clock)));
        if let Some(url) = &self.webhook_url {
            command.env("PAYBRIDGE_PUBLIC_WEBHOOK_URL", url);
        }
        if let Some(file) = &self.options.log_file {
            let log = OpenOptions::new().create(true).append(true).open(file);
            command.stderr(log.with_context(|| format!("{} cannot be written", file.display()))?);
        }
        let child = command.spawn().context("the server process cannot be started")?;
        self.processes.lock().push(Process(child));
        Ok(())
    }

    async fn wait_until_ready(&self, http: &str) -> Result<()> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let began = Instant::now();
        while began.elapsed() < START_TIMEOUT {
            let response = client.get(format!("{http}/readyz")).send().await;
            if response.is_ok_and(|response| response.status().is_success()) {
                return Ok(());
            }
            pause(RealDuration::from_millis(20)).await;
        }
        bail!("the server at {http} was not ready within {START_TIMEOUT:?}")
    }

    /// Creates an organization and a token for it.
    pub async fn organization(&self, name: &str) -> Result<(OrganizationId, String)> {
        let organization = self.administration.create_organization(name).await?;
        let (_, token) = self.administration.create_token(organization.id, name).await?;
        Ok((organization.id, token.expose_secret().to_owned()))
    }

    /// The application layer without listeners, for administration.
    pub fn administration(&self) -> &App {
        &self.administration
    }

    /// Stops the newest server: gracefully in this process, a process by kill -9.
    pub async fn stop_newest_server(&mut self) {
        self.servers.pop();
        let process = self.processes.lock().pop();
        if process.is_some() {
            return;
        }
        let lifecycle = self.lifecycles.lock().pop();
        if let Some(lifecycle) = lifecycle {
            lifecycle.stop().await;
        }
    }

    /// Stops the servers, then the sandbox. Processes are killed.
    pub async fn shutdown(self) {
        self.processes.lock().clear();
        let lifecycles = std::mem::take(&mut *self.lifecycles.lock());
        for lifecycle in lifecycles {
            lifecycle.stop().await;
        }
        self.sandbox.stop().await;
    }
}
