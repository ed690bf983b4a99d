//! The `paybridge` binary: loads the settings, starts logging and runs the command.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use paybridge::app::App;
#[cfg(feature = "dev")]
use paybridge::clock::Clock;
use paybridge::config::{self, Serve, Task};
use paybridge::domain::jobs::JobFilter;
use paybridge::domain::{Error, JobId, OrganizationId, TokenId};
use paybridge::lifecycle::Lifecycle;
use paybridge::server::{self, ServerOptions};
use paybridge::store::adopt::Adoptable;
use paybridge::store::startup::StartupError;
use paybridge::{store, telemetry};
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::net::TcpListener;

fn main() -> ExitCode {
    // The HTTP client uses the process's TLS provider and panics without one. This is the first installation, so it
    // cannot fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = match config::load() {
        Ok(settings) => settings,
        Err(error) => {
            error.print();
            return ExitCode::from(error.exit_code);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("paybridge: cannot start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        let telemetry = telemetry::start(settings.telemetry)?;
        let result = run(settings.task).await;
        telemetry.stop().await;
        result
    });
    // The remaining tasks were cancelled and had time to end.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| {
        eprintln!("paybridge: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Serve(settings) => return serve(*settings).await,
        Task::PrintRoles { grantee } => print!("{}", store::migrate::roles_sql(&grantee)),
        Task::Migrate { database, installation } => migrate(&database, &installation).await?,
        Task::Adopt { database, installation } => adopt(&database, &installation).await?,
        Task::CreateOrganization { database, name } => create_organization(&database, &name).await?,
        Task::ListOrganizations { database } => list_organizations(&database).await?,
        Task::CreateToken { database, organization, name } => {
            create_token(&database, organization.into(), &name).await?;
        }
        Task::ListTokens { database, organization } => list_tokens(&database, organization.into()).await?,
        Task::RevokeToken { database, token } => revoke_token(&database, token.into()).await?,
        Task::ListJobs { database, organization, only_parked } => {
            let filter = if only_parked { JobFilter::Parked } else { JobFilter::All };
            list_jobs(&database, organization.map(Into::into), filter).await?;
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
    let variables = variables.filter(|name| name != paybridge::failpoints::VARIABLE);
    for variable in config::unknown_variables(variables) {
        tracing::warn!(%variable, "ignoring an environment variable that names no setting; check its spelling");
    }
    for warning in settings.warnings() {
        tracing::warn!("{warning}");
    }
    let listen = async |address, flag| {
        let listener = TcpListener::bind(address).await;
        listener.with_context(|| format!("cannot listen on {address} (--{flag})"))
    };
    let grpc = match &settings.grpc {
        Some(grpc) => Some(listen(grpc.listen, "grpc-listen").await?),
        None => None,
    };
    let http = listen(settings.http_listen, "http-listen").await?;
    let lifecycle = Lifecycle::new(settings.shutdown_grace);
    server::start(&settings, options(&settings, grpc, http), &lifecycle).await?;
    let outcome = lifecycle.run().await?;
    tracing::info!(?outcome, "stopped");
    Ok(outcome.into())
}

#[cfg(not(feature = "dev"))]
fn options(_: &Serve, grpc: Option<TcpListener>, http: TcpListener) -> ServerOptions {
    ServerOptions::new(grpc, http)
}

/// In development the clock may run fast, together with those of other processes.
#[cfg(feature = "dev")]
fn options(settings: &Serve, grpc: Option<TcpListener>, http: TcpListener) -> ServerOptions {
    let mut options = ServerOptions::new(grpc, http);
    if let Some(fast) = settings.clock {
        options.clock = Clock::scaled(fast.anchor, fast.speed);
        options.clock.advance(fast.ahead);
    }
    options
}

async fn migrate(database: &SecretString, installation: &str) -> Result<()> {
    let versions = store::migrate::run(database.expose_secret(), installation).await?;
    for version in &versions {
        println!("migrated: {version}");
    }
    println!("The schema is up to date; {} migrations ran.", versions.len());
    Ok(())
}

/// Makes a copy an installation of its own, once its new name was typed.
async fn adopt(database: &SecretString, to: &str) -> Result<()> {
    let url = database.expose_secret();
    store::startup::check_schema(url).await.map_err(StartupError::into_error)?;
    let Adoptable { name: from, integrations } = store::adopt::adoptable(url, to).await?;
    println!(
        "This database belongs to the installation `{from}`. It becomes the installation `{to}`:\n\
         - Its integrations ({integrations}) are disconnected here, and their keys erased. Nothing is changed at \
         Stripe: the objects and webhook endpoints there belong to `{from}`.\n\
         - Its jobs are deleted. Payments in progress stay as they are.\n\
         - Its event logs get other ids.\n\
         If it is the database of `{from}` itself and no copy, `{from}` collects nothing more.\n\
         Stop all processes that use this database. Then type the new name to continue:"
    );
    let mut typed = String::new();
    std::io::stdin().read_line(&mut typed)?;
    ensure!(typed.trim() == to, "the new name was not typed; nothing was changed");
    let integrations = store::adopt::adopt(url, &from, to).await?;
    let os_user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    tracing::info!(
        target: "audit", action = "installation.adopt", from, to, integrations, os_user,
        "a copy of an installation was made an installation of its own"
    );
    println!("The database belongs to the installation `{to}`. Start its processes with --installation {to}.");
    Ok(())
}

/// The application layer, after a check of the database's schema.
async fn administration(database: &SecretString) -> Result<App> {
    let url = database.expose_secret();
    store::startup::check_schema(url).await.map_err(StartupError::into_error)?;
    server::administration(url)
}

/// Only the id goes to standard output, for scripts.
async fn create_organization(database: &SecretString, name: &str) -> Result<()> {
    let app = administration(database).await?;
    let organization = app.create_organization(name).await.map_err(with_source)?;
    println!("{}", organization.id);
    eprintln!(
        "Created organization {name:?}. Next: paybridge token create --organization {} --name …",
        organization.id
    );
    Ok(())
}

async fn list_organizations(database: &SecretString) -> Result<()> {
    let app = administration(database).await?;
    let organizations = app.list_organizations().await.map_err(with_source)?;
    println!("{:36}  {:20}  NAME", "ID", "CREATED");
    for organization in organizations {
        println!("{:36}  {:20}  {}", organization.id.to_string(), rfc3339(organization.create_time), organization.name);
    }
    Ok(())
}

/// Only the token goes to standard output, for scripts.
async fn create_token(database: &SecretString, organization: OrganizationId, name: &str) -> Result<()> {
    let app = administration(database).await?;
    let (token, secret) = app.create_token(organization, name).await.map_err(with_source)?;
    println!("{}", secret.expose_secret());
    eprintln!("Created token {} ({name:?}). It is shown only once: the database stores its hash.", token.id);
    Ok(())
}

async fn list_tokens(database: &SecretString, organization: OrganizationId) -> Result<()> {
    let app = administration(database).await?;
    let tokens = app.list_tokens(organization).await.map_err(with_source)?;
    println!("{:36}  {:20}  {:20}  NAME", "ID", "CREATED", "REVOKED");
    for token in tokens {
        let revoked = token.revoke_time.map(rfc3339).unwrap_or_default();
        println!("{:36}  {:20}  {revoked:20}  {}", token.id.to_string(), rfc3339(token.create_time), token.name);
    }
    Ok(())
}

async fn revoke_token(database: &SecretString, token: TokenId) -> Result<()> {
    let app = administration(database).await?;
    app.revoke_token(token).await.map_err(with_source)?;
    println!("Revoked token {token}; replicas that have cached it stop accepting it within 10 s.");
    Ok(())
}

async fn list_jobs(database: &SecretString, organization: Option<OrganizationId>, filter: JobFilter) -> Result<()> {
    let app = administration(database).await?;
    let jobs = app.list_jobs(organization, filter).await.map_err(with_source)?;
    println!(
        "{:36}  {:36}  {:23}  {:36}  {:>8}  {:20}  {:20}  REASON",
        "ID", "ORGANIZATION", "KIND", "OBJECT", "FAILURES", "CREATED", "PARKED"
    );
    for job in jobs {
        let (id, organization, object) = (job.id.to_string(), job.organization_id.to_string(), job.object_id);
        let created = job.create_time().map(rfc3339).unwrap_or_default();
        let parked = job.park_time.map(rfc3339).unwrap_or_default();
        // One line per job: a reason may contain line breaks from the database.
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
    let retried = app.retry_jobs(job).await.map_err(with_source)?;
    println!(
        "{retried} {} due now; a worker leases due jobs within a second.",
        if retried == 1 { "job is" } else { "jobs are" }
    );
    Ok(())
}

/// Callers of the API do not see the source of an internal error; users of the binary do.
fn with_source(error: Error) -> anyhow::Error {
    match error {
        Error::Internal(source) => source,
        other => other.into(),
    }
}

/// `2026-11-23T01:15:00Z`
fn rfc3339(time: OffsetDateTime) -> String {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    time.format(form).unwrap_or_default()
}
