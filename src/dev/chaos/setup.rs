//! Setup of a run: Postgres, the sandbox, proxies between all of them, processes, and connected organizations.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use secrecy::ExposeSecret as _;
use tokio::net::TcpListener;

use super::callers::Organization;
use super::database::Database;
use super::history::History;
use super::plan::{Plan, polls, supports_3ds};
use super::proxy::{Proxy, Target};
use super::replicas::{Launch, Replicas};
use super::run::Run;
use super::time::Time;
use super::workload::Workload;
use crate::config;
use crate::dev::rng::Rng;
use crate::dev::sandbox::{self, Sandbox};
use crate::grpc::proto::CreateIntegrationRequest;
use crate::server;

/// Seals test secrets only. Even so it must not appear in any log.
pub(super) const SEAL_KEY: [u8; 32] = *b"paybridge-chaos-seals-no-secrets";
/// The setting for the public webhook URL.
const WEBHOOK_URL: &str = "PAYBRIDGE_PUBLIC_WEBHOOK_URL";
/// The timeout of a request to Stripe, in seconds of real time.
const STRIPE_TIMEOUT: &str = "2";

impl Run {
    pub(super) async fn set_up(settings: config::Chaos, seed: u64, folder: &Path) -> Result<Self> {
        let began = Instant::now();
        let logs = folder.join("logs");
        std::fs::create_dir(&logs)?;
        let programs = settings.postgres_programs.clone();
        let rng = |name: &str| Rng::named(seed, name);
        let database = Database::start(folder.join("postgres"), programs, rng("to postgres")).await?;
        let time = Time::new(settings.clock_speed);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let options = sandbox::Options { requests_kept: 0, seed, ..sandbox::Options::default() };
        let to_sandbox = Target::Tcp(vec![listener.local_addr()?]);
        let sandbox = Sandbox::start(listener, time.clock.clone(), options)?;
        let stripe = Proxy::start(to_sandbox, rng("to stripe")).await?;
        let webhooks = Proxy::start(Target::Tcp(Vec::new()), rng("to webhooks")).await?;
        let program = std::env::current_exe().context("the path of the running program is unknown")?;
        let launch = |name, environment: Vec<(&'static str, String)>| Launch {
            name,
            program: program.clone(),
            environment,
            logs: logs.clone(),
            clock: Mutex::new(time.setting()),
        };
        let environment = environment(&database, &stripe, &webhooks, &sandbox);
        let poller = environment.iter().filter(|(name, _)| *name != WEBHOOK_URL).cloned().collect();
        let replicas = Replicas::start(settings.replicas, launch("replica", environment), &mut rng("ports"))?;
        webhooks.set_target(Target::Tcp(replicas.serving().map(|replica| replica.http).collect()));
        replicas.wait_until_ready().await?;
        // An integration that is connected by a process without a webhook URL polls the events list from then on.
        let poller = Replicas::start(1, launch("poller", poller), &mut rng("another port"))?;
        poller.wait_until_ready().await?;

        let plan = Plan::new(seed, settings.payments);
        let mut organizations = Vec::new();
        for number in 0..plan.organizations.len() {
            let connecting = if polls(number) { &poller } else { &replicas };
            organizations.push(Arc::new(connect(&database, &sandbox, (&replicas, connecting), number).await?));
        }
        poller.stop().await;
        let history = Arc::<History>::default();
        let workload = Workload::new(plan, organizations.clone(), Arc::clone(&history), sandbox.clone(), seed);
        Ok(Self {
            settings,
            seed,
            time,
            began,
            folder: folder.to_owned(),
            database: Arc::new(database),
            sandbox,
            stripe,
            webhooks,
            replicas,
            organizations,
            history,
            backlog: Arc::clone(&workload.backlog),
            workload: Arc::new(workload),
            monitor: Arc::default(),
            counts: Arc::default(),
            phase: Mutex::new("faults"),
            incomplete: Mutex::default(),
            unknown_sessions: Mutex::default(),
        })
    }
}

/// The environment of every process under test.
fn environment(
    database: &Database,
    stripe: &Proxy,
    webhooks: &Proxy,
    sandbox: &Sandbox,
) -> Vec<(&'static str, String)> {
    vec![
        ("DATABASE_URL", database.url()),
        ("PAYBRIDGE_STRIPE_BASE_URL", format!("http://{}", stripe.address())),
        ("PAYBRIDGE_STRIPE_TIMEOUT_SECONDS", STRIPE_TIMEOUT.to_owned()),
        (WEBHOOK_URL, format!("http://{}", webhooks.address())),
        ("PAYBRIDGE_ENCRYPTION_KEYS", format!("chaos:{}", STANDARD.encode(SEAL_KEY))),
        ("PAYBRIDGE_DEFAULT_SUCCESS_URL", format!("{}/thanks", sandbox.url())),
        ("PAYBRIDGE_DATABASE_POOL_SIZE", "12".to_owned()),
        ("PAYBRIDGE_SHUTDOWN_GRACE_SECONDS", "10".to_owned()),
        ("PAYBRIDGE_LOG_FILTER", "info,paybridge=debug".to_owned()),
        ("RUST_BACKTRACE", "1".to_owned()),
    ]
}

/// Creates an organization with a token and a Stripe account. Of `replicas`, it calls the first ones and is connected
/// by the second ones.
async fn connect(
    database: &Database,
    sandbox: &Sandbox,
    replicas: (&Replicas, &Replicas),
    number: usize,
) -> Result<Organization> {
    let administration = server::administration(&database.url())?;
    let organization = administration.create_organization(&format!("chaos {number}")).await?;
    let (_, token) = administration.create_token(organization.id, "chaos").await?;
    let account = format!("acct_chaos{number}");
    let key = sandbox.add_account(&account, "DE", "eur");
    let servers = |of: &Replicas| of.serving().map(|replica| format!("http://{}", replica.grpc)).collect::<Vec<_>>();
    let token = token.expose_secret().to_owned();
    let with_servers =
        |servers: &[String]| Organization::new(organization.id, token.clone(), account.clone(), key.clone(), servers);
    let (mut created, connecting) = (with_servers(&servers(replicas.0))?, with_servers(&servers(replicas.1))?);
    let request = CreateIntegrationRequest {
        request_id: "connect".to_owned(),
        code: "stripe".to_owned(),
        name: "Stripe".to_owned(),
        secret_key: key,
        supports_3ds: supports_3ds(number),
        ..CreateIntegrationRequest::default()
    };
    let mut api = connecting.any_api(&mut Rng::new(0));
    let connected = api.integrations.create_integration(request).await.context("connecting a Stripe account failed")?;
    created.integration = connected.into_inner().integration.unwrap_or_default().id;
    Ok(created)
}
