//! The `paybridge` binary: reads the settings, starts logs, and does what the command line asks for.

use std::process::ExitCode;

use anyhow::{Context, Result};
use paybridge::app::App;
#[cfg(feature = "dev")]
use paybridge::clock::Clock;
use paybridge::config::{self, Serve, Task};
use paybridge::domain::{Error, JobId, OrganizationId, TokenId};
use paybridge::lifecycle::Lifecycle;
use paybridge::server::{self, Parts};
use paybridge::store::startup::Obstacle;
use paybridge::{store, telemetry};
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::net::TcpListener;

fn main() -> ExitCode {
    // The HTTP client takes the process's TLS provider, and panics where there is none. This is the first one, so it
    // can't be refused.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = match config::load() {
        Ok(settings) => settings,
        Err(refusal) => {
            refusal.print();
            return ExitCode::from(refusal.exit_code);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("paybridge: the runtime can't be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        let telemetry = telemetry::start(settings.telemetry)?;
        let ended = run(settings.task).await;
        telemetry.stop().await;
        ended
    });
    // Whatever still runs was told to end, and had its time.
    runtime.shutdown_background();
    ended.unwrap_or_else(|error| {
        eprintln!("paybridge: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Serve(settings) => return serve(*settings).await,
        Task::PrintRoles { grantee } => print!("{}", store::migrate::roles_sql(&grantee)),
        Task::Migrate { database } => migrate(&database).await?,
        Task::CreateOrganization { database, name } => create_organization(&database, &name).await?,
        Task::ListOrganizations { database } => list_organizations(&database).await?,
        Task::CreateToken { database, organization, name } => {
            create_token(&database, organization.into(), &name).await?;
        }
        Task::ListTokens { database, organization } => list_tokens(&database, organization.into()).await?,
        Task::RevokeToken { database, token } => revoke_token(&database, token.into()).await?,
        Task::ListJobs { database, organization, only_parked } => {
            list_jobs(&database, organization.map(Into::into), only_parked).await?;
        }
        Task::RetryJobs { database, job } => retry_jobs(&database, job.map(Into::into)).await?,
        #[cfg(feature = "dev")]
        Task::Dev(settings) => return paybridge::dev::run_dev(settings).await,
        #[cfg(feature = "dev")]
        Task::Demo(settings) => return paybridge::dev::run_demo(settings).await,
        #[cfg(feature = "dev")]
        Task::Sandbox(settings) => return paybridge::dev::run_sandbox(settings).await,
        #[cfg(feature = "dev")]
        Task::Chaos(settings) => return paybridge::dev::run_chaos(settings).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(settings: Serve) -> Result<ExitCode> {
    let variables = std::env::vars_os().map(|(name, _)| name);
    #[cfg(feature = "dev")]
    let variables = variables.filter(|name| name != paybridge::crash::VARIABLE);
    for variable in config::misspelt(variables) {
        tracing::warn!(%variable, "an environment variable names no setting and is passed over; is it misspelt?");
    }
    for warning in settings.warnings() {
        tracing::warn!("{warning}");
    }
    let listen = async |address, flag| {
        let listener = TcpListener::bind(address).await;
        listener.with_context(|| format!("can't listen on {address} (--{flag})"))
    };
    let grpc = match &settings.grpc {
        Some(grpc) => Some(listen(grpc.listen, "grpc-listen").await?),
        None => None,
    };
    let http = listen(settings.http_listen, "http-listen").await?;
    let lifecycle = Lifecycle::new(settings.shutdown_grace);
    server::start(&settings, parts(&settings, grpc, http), &lifecycle).await?;
    let end = lifecycle.run().await?;
    tracing::info!(?end, "stopped");
    Ok(end.into())
}

#[cfg(not(feature = "dev"))]
fn parts(_: &Serve, grpc: Option<TcpListener>, http: TcpListener) -> Parts {
    Parts::new(grpc, http)
}

/// In development the clock may run fast, together with that of other processes.
#[cfg(feature = "dev")]
fn parts(settings: &Serve, grpc: Option<TcpListener>, http: TcpListener) -> Parts {
    let mut parts = Parts::new(grpc, http);
    if let Some(fast) = settings.clock {
        parts.clock = Clock::scaled(fast.anchor, fast.speed);
        parts.clock.advance(fast.ahead);
    }
    parts
}

async fn migrate(database: &SecretString) -> Result<()> {
    let versions = store::migrate::run(database.expose_secret()).await?;
    for version in &versions {
        println!("migrated: {version}");
    }
    println!("The schema is up to date; {} migrations were run.", versions.len());
    Ok(())
}

/// The use cases, once it is sure that the database can be worked with.
async fn administration(database: &SecretString) -> Result<App> {
    let url = database.expose_secret();
    store::startup::check_schema(url).await.map_err(Obstacle::into_error)?;
    server::administration(url)
}

/// The id goes to standard output alone, for scripts; the rest is for people.
async fn create_organization(database: &SecretString, name: &str) -> Result<()> {
    let app = administration(database).await?;
    let organization = app.create_organization(name).await.map_err(explained)?;
    println!("{}", organization.id);
    eprintln!(
        "Created organization {name:?}. Next: paybridge token create --organization {} --name …",
        organization.id
    );
    Ok(())
}

async fn list_organizations(database: &SecretString) -> Result<()> {
    let app = administration(database).await?;
    let organizations = app.list_organizations().await.map_err(explained)?;
    println!("{:36}  {:20}  NAME", "ID", "CREATED");
    for organization in organizations {
        println!("{:36}  {:20}  {}", organization.id.to_string(), shown(organization.create_time), organization.name);
    }
    Ok(())
}

/// The token goes to standard output alone, for scripts; the rest is for people.
async fn create_token(database: &SecretString, organization: OrganizationId, name: &str) -> Result<()> {
    let app = administration(database).await?;
    let (token, secret) = app.create_token(organization, name).await.map_err(explained)?;
    println!("{}", secret.expose_secret());
    eprintln!("Created token {} ({name:?}). It is shown this once: only its hash is stored.", token.id);
    Ok(())
}

async fn list_tokens(database: &SecretString, organization: OrganizationId) -> Result<()> {
    let app = administration(database).await?;
    let tokens = app.list_tokens(organization).await.map_err(explained)?;
    println!("{:36}  {:20}  {:20}  NAME", "ID", "CREATED", "REVOKED");
    for token in tokens {
        let revoked = token.revoke_time.map(shown).unwrap_or_default();
        println!("{:36}  {:20}  {revoked:20}  {}", token.id.to_string(), shown(token.create_time), token.name);
    }
    Ok(())
}

async fn revoke_token(database: &SecretString, token: TokenId) -> Result<()> {
    let app = administration(database).await?;
    app.revoke_token(token).await.map_err(explained)?;
    println!("Revoked token {token}; replicas that used it just now notice within 10 s.");
    Ok(())
}

async fn list_jobs(database: &SecretString, organization: Option<OrganizationId>, only_parked: bool) -> Result<()> {
    let app = administration(database).await?;
    let jobs = app.list_jobs(organization, only_parked).await.map_err(explained)?;
    println!(
        "{:36}  {:36}  {:23}  {:36}  {:>8}  {:20}  {:20}  REASON",
        "ID", "ORGANIZATION", "KIND", "OBJECT", "FAILURES", "CREATED", "PARKED"
    );
    for job in jobs {
        let (id, organization, object) = (job.id.to_string(), job.organization_id.to_string(), job.object_id);
        let created = job.create_time().map(shown).unwrap_or_default();
        let parked = job.park_time.map(shown).unwrap_or_default();
        // A job a line: a reason may hold a line break of the database's.
        let reason = job.reason.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        let object = format!("{object} {}", job.object_key);
        println!(
            "{id:36}  {organization:36}  {:23}  {:36}  {:>8}  {created:20}  {parked:20}  {reason}",
            job.kind,
            object.trim_end(),
            job.failures
        );
    }
    Ok(())
}

async fn retry_jobs(database: &SecretString, job: Option<JobId>) -> Result<()> {
    let app = administration(database).await?;
    let retried = app.retry_jobs(job).await.map_err(explained)?;
    println!(
        "{retried} {} due now; a worker takes what is due within a second.",
        if retried == 1 { "job is" } else { "jobs are" }
    );
    Ok(())
}

/// Callers of the API are told little of an internal error; whoever runs the binary is told all.
fn explained(error: Error) -> anyhow::Error {
    match error {
        Error::Internal(source) => source,
        other => other.into(),
    }
}

/// `2026-11-23T01:15:00Z`
fn shown(time: OffsetDateTime) -> String {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    time.format(form).unwrap_or_default()
}
