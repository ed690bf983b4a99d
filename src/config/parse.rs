//! Turns the command line's text into settings. Every function records the errors that it finds and continues, so that
//! one run reports them all.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::EnvFilter;

use super::arguments::{
    AdoptArgs, Cli, Command, DatabaseArgs, InstallationArgs, JobsCommand, MigrateArgs, OrganizationCommand, ServeArgs,
    TelemetryArgs, TokenCommand, WorkArgs,
};
use super::base_url::BaseUrl;
use super::check::{self, SettingErrors, non_blank};
#[cfg(feature = "dev")]
use super::settings::{Chaos, Demo, Dev, Sandbox};
use super::settings::{Connection, EncryptionKey, Grpc, Retention, Serve, Settings, Stripe, Task, Telemetry, Tls};

/// Parses every setting. Returns all errors if there are any.
pub(super) fn settings(cli: Cli) -> Result<Settings, SettingErrors> {
    let mut errors = SettingErrors::default();
    let telemetry = telemetry(&mut errors, cli.telemetry);
    let task = task(&mut errors, cli.command);
    match (telemetry, task) {
        #[cfg(feature = "dev")]
        (Some(telemetry), Some(Task::Demo(demo))) => {
            let telemetry = Telemetry { file: demo.log_file.clone(), ..telemetry };
            Ok(Settings { telemetry, task: Task::Demo(demo) })
        }
        (Some(telemetry), Some(task)) => Ok(Settings { telemetry, task }),
        _ => Err(errors),
    }
}

fn telemetry(errors: &mut SettingErrors, args: TelemetryArgs) -> Option<Telemetry> {
    let format = args.log_format.trim();
    let format = format.parse().map_err(|_| format!("`{format}` is neither `text` nor `json`"));
    let format = errors.record("log-format", format);
    let filter = EnvFilter::try_new(&args.log_filter).map_err(|error| format!("`{}`: {error}", args.log_filter));
    let filter = errors.record("log-filter", filter);
    let otlp_endpoint = non_blank(args.otlp_endpoint).map(|text| BaseUrl::parse_collector(&text)).transpose();
    let otlp_endpoint = errors.record("otlp-endpoint", otlp_endpoint);
    Some(Telemetry { format: format?, filter: filter?, otlp_endpoint: otlp_endpoint?, file: None })
}

fn task(errors: &mut SettingErrors, command: Command) -> Option<Task> {
    match command {
        Command::Serve(args) => serve(errors, *args).map(|serve| Task::Serve(Box::new(serve))),
        Command::Worker(args) => work(errors, *args, 1).map(|work| Task::Serve(Box::new(work))),
        Command::Migrate(MigrateArgs { grantee: Some(user), .. }) => {
            Some(Task::PrintRoles { grantee: errors.record_argument("--for", check::database_user(&user))? })
        }
        Command::Migrate(args) => {
            let database = database(errors, args.database);
            let installation = installation(errors, &args.installation);
            Some(Task::Migrate { database: database?, installation: installation? })
        }
        Command::Adopt(args) => adopt(errors, args),
        Command::Organization(OrganizationCommand::Create { name, database: args }) => {
            let name = errors.record_argument("the organization's name", check::name(&name));
            Some(Task::CreateOrganization { database: database(errors, args)?, name: name? })
        }
        Command::Organization(OrganizationCommand::List(args)) => {
            Some(Task::ListOrganizations { database: database(errors, args)? })
        }
        Command::Token(command) => token_task(errors, command),
        Command::Jobs(command) => jobs_task(errors, command),
        #[cfg(feature = "dev")]
        Command::Dev(args) => dev(errors, args).map(Task::Dev),
        #[cfg(feature = "dev")]
        Command::Demo(args) => Some(Task::Demo(demo(args))),
        #[cfg(feature = "dev")]
        Command::Sandbox(args) => {
            let listen = errors.record("listen", check::address(&args.listen))?;
            Some(Task::Sandbox(Sandbox { listen }))
        }
        #[cfg(feature = "dev")]
        Command::Chaos(args) => chaos(errors, args).map(Task::Chaos),
    }
}

fn token_task(errors: &mut SettingErrors, command: TokenCommand) -> Option<Task> {
    let organization_id =
        |errors: &mut SettingErrors, text: &str| errors.record_argument("--organization", check::id(text));
    match command {
        TokenCommand::Create { organization, name, database: args } => {
            let organization = organization_id(errors, &organization);
            let name = errors.record_argument("--name", check::name(&name));
            let database = database(errors, args);
            Some(Task::CreateToken { database: database?, organization: organization?, name: name? })
        }
        TokenCommand::List { organization, database: args } => {
            let organization = organization_id(errors, &organization);
            let database = database(errors, args);
            Some(Task::ListTokens { database: database?, organization: organization? })
        }
        TokenCommand::Revoke { token, database: args } => {
            let token = errors.record_argument("the token's id", check::id(&token));
            let database = database(errors, args);
            Some(Task::RevokeToken { database: database?, token: token? })
        }
    }
}

fn jobs_task(errors: &mut SettingErrors, command: JobsCommand) -> Option<Task> {
    match command {
        JobsCommand::List { parked, organization, database: args } => {
            let organization = non_blank(organization).map(|text| check::id(&text)).transpose();
            let organization = errors.record_argument("--organization", organization);
            let database = database(errors, args);
            Some(Task::ListJobs { database: database?, organization: organization?, only_parked: parked })
        }
        JobsCommand::Retry { job, all_parked: _, database: args } => {
            let job = errors.record_argument("the job's id", job.map(|text| check::id(&text)).transpose());
            let database = database(errors, args);
            Some(Task::RetryJobs { database: database?, job: job? })
        }
    }
}

fn database(errors: &mut SettingErrors, args: DatabaseArgs) -> Option<SecretString> {
    errors.record("database-url", check::database(args.database_url))
}

fn installation(errors: &mut SettingErrors, args: &InstallationArgs) -> Option<String> {
    errors.record("installation", check::installation(&args.installation))
}

fn adopt(errors: &mut SettingErrors, args: AdoptArgs) -> Option<Task> {
    let database = database(errors, args.database);
    let name =
        non_blank(args.installation).ok_or_else(|| "is missing; choose a name for the new installation".to_owned());
    let installation = errors.record("installation", name.and_then(|name| check::installation(&name)));
    Some(Task::Adopt { database: database?, installation: installation? })
}

fn serve(errors: &mut SettingErrors, args: ServeArgs) -> Option<Serve> {
    let listen = errors.record("grpc-listen", check::address(&args.grpc_listen));
    let tls = tls(errors, non_blank(args.grpc_tls_cert_file), non_blank(args.grpc_tls_key_file));
    let streams = check::number(&args.max_streams_per_organization, 1..=100_000);
    let streams = errors.record("max-streams-per-organization", streams);
    let work = work(errors, args.work, 0);
    Some(Serve { grpc: Some(Grpc { listen: listen?, tls: tls?, max_streams_per_organization: streams? }), ..work? })
}

/// The settings that `worker` and `serve` share.
fn work(errors: &mut SettingErrors, args: WorkArgs, least_concurrency: usize) -> Option<Serve> {
    let database = connection(errors, args.database, args.direct_database_url, &args.database_pool_size);
    let http_listen = errors.record("http-listen", check::address(&args.http_listen));
    let public_webhook_url = non_blank(args.public_webhook_url).map(|text| BaseUrl::parse(&text)).transpose();
    let public_webhook_url = errors.record("public-webhook-url", public_webhook_url);
    let base_url = errors.record("stripe-base-url", BaseUrl::parse(&args.stripe_base_url));
    let timeout = errors.record("stripe-timeout-seconds", check::number(&args.stripe_timeout_seconds, 1..=120));
    let encryption_keys = keys(errors, args.encryption_keys, non_blank(args.encryption_keys_file));
    let installation = installation(errors, &args.installation);
    let success_url = errors.record("default-success-url", check::page_url(args.default_success_url));
    let events = errors.record("event-retention-days", check::number(&args.event_retention_days, 1..=3650));
    let deliveries = errors.record("delivery-retention-days", check::number(&args.delivery_retention_days, 35..=3650));
    let action_expiry = errors.record("action-expiry-hours", check::number(&args.action_expiry_hours, 1..=720));
    let concurrency = check::number(&args.worker_concurrency, least_concurrency..=1000);
    let worker_concurrency = errors.record("worker-concurrency", concurrency);
    let grace = errors.record("shutdown-grace-seconds", check::number(&args.shutdown_grace_seconds, 1..=600));
    #[cfg(feature = "dev")]
    let clock = errors.record("clock", non_blank(args.clock).map(|text| check::clock(&text)).transpose());
    Some(Serve {
        database: database?,
        grpc: None,
        http_listen: http_listen?,
        public_webhook_url: public_webhook_url?,
        stripe: Stripe { base_url: base_url?, timeout: Duration::from_secs(timeout?) },
        encryption_keys: encryption_keys?,
        installation: installation?,
        default_success_url: success_url?,
        retention: Retention { events: time::Duration::days(events?), deliveries: time::Duration::days(deliveries?) },
        action_expiry: time::Duration::hours(action_expiry?),
        worker_concurrency: worker_concurrency?,
        shutdown_grace: Duration::from_secs(grace?),
        #[cfg(feature = "dev")]
        clock: clock?,
    })
}

fn connection(
    errors: &mut SettingErrors,
    args: DatabaseArgs,
    direct: Option<SecretString>,
    pool_size: &str,
) -> Option<Connection> {
    let url = database(errors, args);
    let direct = direct.filter(|url| !url.expose_secret().trim().is_empty());
    let direct = direct.map(|url| check::database(Some(url))).transpose();
    let direct = errors.record("direct-database-url", direct);
    let pool_size = errors.record("database-pool-size", check::number(pool_size, 2..=500));
    let url = url?;
    Some(Connection { direct_url: direct?.unwrap_or_else(|| url.clone()), url, pool_size: pool_size? })
}

/// `None` is an error, `Some(None)` no TLS.
#[expect(clippy::option_option, reason = "the outer Option is the validity, the inner one the presence")]
fn tls(errors: &mut SettingErrors, certificate: Option<String>, key: Option<String>) -> Option<Option<Tls>> {
    let (cert_flag, key_flag) = ("grpc-tls-cert-file", "grpc-tls-key-file");
    match (certificate, key) {
        (None, None) => Some(None),
        (None, Some(_)) => errors.record(cert_flag, Err(format!("is missing, although --{key_flag} is set"))),
        (Some(_), None) => errors.record(key_flag, Err(format!("is missing, although --{cert_flag} is set"))),
        (Some(certificate), Some(key)) => {
            let certificate = errors.record(cert_flag, check::pem_file(&certificate, "CERTIFICATE-----"));
            let key = errors.record(key_flag, check::pem_file(&key, "PRIVATE KEY-----"));
            Some(Some(Tls { certificate: certificate?, key: SecretString::from(key?) }))
        }
    }
}

fn keys(errors: &mut SettingErrors, keys: Option<SecretString>, file: Option<String>) -> Option<Vec<EncryptionKey>> {
    let keys = keys.filter(|keys| !keys.expose_secret().trim().is_empty());
    match (keys, file) {
        (Some(_), Some(_)) => {
            let both = Err("is set together with --encryption-keys; set only one of them".to_owned());
            errors.record("encryption-keys-file", both)
        }
        (Some(keys), None) => errors.record("encryption-keys", check::encryption_keys(&keys)),
        (None, Some(path)) => {
            let keys = check::file(&path).and_then(|text| check::encryption_keys(&SecretString::from(text)));
            errors.record("encryption-keys-file", keys)
        }
        (None, None) => {
            let help = "is missing; generate one with: echo \"k1:$(openssl rand -base64 32)\"";
            errors.record("encryption-keys", Err(help.to_owned()))
        }
    }
}

/// The log goes to its own file, so that the output shows only the steps.
#[cfg(feature = "dev")]
fn demo(args: super::arguments::DemoArgs) -> Demo {
    let mut suffix = [0; 8];
    let is_random = getrandom::fill(&mut suffix).is_ok();
    let name = format!("paybridge-demo-{}.log", hex::encode(suffix));
    let log_file = (is_random && !args.verbose).then(|| std::env::temp_dir().join(name));
    Demo { log_file, postgres_programs: args.postgres.postgres_programs }
}

#[cfg(feature = "dev")]
fn dev(errors: &mut SettingErrors, args: super::arguments::DevArgs) -> Option<Dev> {
    let grpc_listen = errors.record("grpc-listen", check::address(&args.grpc_listen));
    let http_listen = errors.record("http-listen", check::address(&args.http_listen));
    let sandbox_listen = errors.record("sandbox-listen", check::address(&args.sandbox_listen));
    let clock_speed = errors.record("clock-speed", check::number(&args.clock_speed, 1..=100_000));
    Some(Dev {
        data_folder: args.data_folder,
        fresh: args.fresh,
        grpc_listen: grpc_listen?,
        http_listen: http_listen?,
        sandbox_listen: sandbox_listen?,
        clock_speed: clock_speed?,
        postgres_programs: args.postgres.postgres_programs,
    })
}

#[cfg(feature = "dev")]
fn chaos(errors: &mut SettingErrors, args: super::arguments::ChaosArgs) -> Option<Chaos> {
    let payments = errors.record("payments", check::number(&args.payments, 1..=100_000));
    let replicas = errors.record("replicas", check::number(&args.replicas, 1..=9));
    let faults = errors.record("faults", check::number(args.faults.trim().trim_end_matches('%'), 0..=50));
    let kill_every = errors.record("kill-every", check::period(&args.kill_every));
    let restore_every = errors.record("restore-every", check::period(&args.restore_every));
    let seed = non_blank(args.seed).map(|text| check::number(&text, 0..=u64::MAX)).transpose();
    let seed = errors.record("seed", seed);
    let clock_speed = errors.record("clock-speed", check::number(&args.clock_speed, 1..=1_000));
    let minutes = errors.record("minutes", check::number(&args.minutes, 1..=600));
    Some(Chaos {
        payments: payments?,
        replicas: replicas?,
        faults: faults?,
        kill_every: kill_every?,
        restore_every: restore_every?,
        seed: seed?,
        clock_speed: clock_speed?,
        time_limit: Duration::from_mins(minutes?),
        postgres_programs: args.postgres.postgres_programs,
    })
}
