//! From the command line's text to settings: every function notes the mistakes it finds and goes on, so that one run
//! tells them all.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::EnvFilter;

use super::arguments::{
    Cli, Command, DatabaseArgs, JobsCommand, MigrateArgs, OrganizationCommand, ServeArgs, TelemetryArgs, TokenCommand,
    WorkArgs,
};
use super::check::{self, Mistakes, given};
#[cfg(feature = "dev")]
use super::settings::{Chaos, Demo, Dev, Sandbox};
use super::settings::{
    Connection, EncryptionKey, Grpc, LogFormat, Retention, Serve, Settings, Stripe, Task, Telemetry, Tls,
};

/// Parses every setting, and gives all mistakes if there is one.
pub(super) fn settings(cli: Cli) -> Result<Settings, Mistakes> {
    let mut mistakes = Mistakes::default();
    let telemetry = telemetry(&mut mistakes, cli.telemetry);
    let task = task(&mut mistakes, cli.command);
    match (telemetry, task) {
        #[cfg(feature = "dev")]
        (Some(telemetry), Some(Task::Demo(demo))) => {
            let telemetry = Telemetry { file: demo.log_file.clone(), ..telemetry };
            Ok(Settings { telemetry, task: Task::Demo(demo) })
        }
        (Some(telemetry), Some(task)) => Ok(Settings { telemetry, task }),
        _ => Err(mistakes),
    }
}

fn telemetry(mistakes: &mut Mistakes, args: TelemetryArgs) -> Option<Telemetry> {
    let format = match args.log_format.trim() {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("`{other}` is neither `text` nor `json`")),
    };
    let format = mistakes.note("log-format", format);
    let filter = EnvFilter::try_new(&args.log_filter).map_err(|error| format!("`{}`: {error}", args.log_filter));
    let filter = mistakes.note("log-filter", filter);
    let otlp_endpoint = given(args.otlp_endpoint).map(|text| check::collector_url(&text)).transpose();
    let otlp_endpoint = mistakes.note("otlp-endpoint", otlp_endpoint);
    Some(Telemetry { format: format?, filter: filter?, otlp_endpoint: otlp_endpoint?, file: None })
}

fn task(mistakes: &mut Mistakes, command: Command) -> Option<Task> {
    match command {
        Command::Serve(args) => serve(mistakes, *args).map(|serve| Task::Serve(Box::new(serve))),
        Command::Worker(args) => work(mistakes, *args, 1).map(|work| Task::Serve(Box::new(work))),
        Command::Migrate(MigrateArgs { grantee: Some(user), .. }) => {
            Some(Task::PrintRoles { grantee: mistakes.note_argument("--for", check::database_user(&user))? })
        }
        Command::Migrate(args) => Some(Task::Migrate { database: database(mistakes, args.database)? }),
        Command::Organization(OrganizationCommand::Create { name, database: args }) => {
            let name = mistakes.note_argument("the organization's name", check::name(&name));
            Some(Task::CreateOrganization { database: database(mistakes, args)?, name: name? })
        }
        Command::Organization(OrganizationCommand::List(args)) => {
            Some(Task::ListOrganizations { database: database(mistakes, args)? })
        }
        Command::Token(command) => token_task(mistakes, command),
        Command::Jobs(command) => jobs_task(mistakes, command),
        #[cfg(feature = "dev")]
        Command::Dev(args) => dev(mistakes, args).map(Task::Dev),
        #[cfg(feature = "dev")]
        Command::Demo(args) => Some(Task::Demo(demo(args))),
        #[cfg(feature = "dev")]
        Command::Sandbox(args) => {
            let listen = mistakes.note("listen", check::address(&args.listen))?;
            Some(Task::Sandbox(Sandbox { listen }))
        }
        #[cfg(feature = "dev")]
        Command::Chaos(args) => chaos(mistakes, args).map(Task::Chaos),
    }
}

fn token_task(mistakes: &mut Mistakes, command: TokenCommand) -> Option<Task> {
    let organization_id =
        |mistakes: &mut Mistakes, text: &str| mistakes.note_argument("--organization", check::id(text));
    match command {
        TokenCommand::Create { organization, name, database: args } => {
            let organization = organization_id(mistakes, &organization);
            let name = mistakes.note_argument("--name", check::name(&name));
            let database = database(mistakes, args);
            Some(Task::CreateToken { database: database?, organization: organization?, name: name? })
        }
        TokenCommand::List { organization, database: args } => {
            let organization = organization_id(mistakes, &organization);
            let database = database(mistakes, args);
            Some(Task::ListTokens { database: database?, organization: organization? })
        }
        TokenCommand::Revoke { token, database: args } => {
            let token = mistakes.note_argument("the token's id", check::id(&token));
            let database = database(mistakes, args);
            Some(Task::RevokeToken { database: database?, token: token? })
        }
    }
}

fn jobs_task(mistakes: &mut Mistakes, command: JobsCommand) -> Option<Task> {
    match command {
        JobsCommand::List { parked, organization, database: args } => {
            let organization = given(organization).map(|text| check::id(&text)).transpose();
            let organization = mistakes.note_argument("--organization", organization);
            let database = database(mistakes, args);
            Some(Task::ListJobs { database: database?, organization: organization?, only_parked: parked })
        }
        JobsCommand::Retry { job, all_parked: _, database: args } => {
            let job = mistakes.note_argument("the job's id", job.map(|text| check::id(&text)).transpose());
            let database = database(mistakes, args);
            Some(Task::RetryJobs { database: database?, job: job? })
        }
    }
}

fn database(mistakes: &mut Mistakes, args: DatabaseArgs) -> Option<SecretString> {
    mistakes.note("database-url", check::database(args.database_url))
}

fn serve(mistakes: &mut Mistakes, args: ServeArgs) -> Option<Serve> {
    let listen = mistakes.note("grpc-listen", check::address(&args.grpc_listen));
    let tls = tls(mistakes, given(args.grpc_tls_cert_file), given(args.grpc_tls_key_file));
    let streams = check::number(&args.max_streams_per_organization, 1..=100_000);
    let streams = mistakes.note("max-streams-per-organization", streams);
    let work = work(mistakes, args.work, 0);
    Some(Serve { grpc: Some(Grpc { listen: listen?, tls: tls?, max_streams_per_organization: streams? }), ..work? })
}

/// What a worker has, and `serve` too.
fn work(mistakes: &mut Mistakes, args: WorkArgs, least_concurrency: usize) -> Option<Serve> {
    let database = connection(mistakes, args.database, args.direct_database_url, &args.database_pool_size);
    let http_listen = mistakes.note("http-listen", check::address(&args.http_listen));
    let public_webhook_url = given(args.public_webhook_url).map(|text| check::safe_base_url(&text)).transpose();
    let public_webhook_url = mistakes.note("public-webhook-url", public_webhook_url);
    let base_url = mistakes.note("stripe-base-url", check::safe_base_url(&args.stripe_base_url));
    let timeout = mistakes.note("stripe-timeout-seconds", check::number(&args.stripe_timeout_seconds, 1..=120));
    let encryption_keys = keys(mistakes, args.encryption_keys, given(args.encryption_keys_file));
    let success_url = mistakes.note("default-success-url", check::page_url(args.default_success_url));
    let events = mistakes.note("event-retention-days", check::number(&args.event_retention_days, 1..=3650));
    let deliveries = mistakes.note("delivery-retention-days", check::number(&args.delivery_retention_days, 35..=3650));
    let action_expiry = mistakes.note("action-expiry-hours", check::number(&args.action_expiry_hours, 1..=720));
    let concurrency = check::number(&args.worker_concurrency, least_concurrency..=1000);
    let worker_concurrency = mistakes.note("worker-concurrency", concurrency);
    let grace = mistakes.note("shutdown-grace-seconds", check::number(&args.shutdown_grace_seconds, 1..=600));
    #[cfg(feature = "dev")]
    let clock = mistakes.note("clock", given(args.clock).map(|text| check::clock(&text)).transpose());
    Some(Serve {
        database: database?,
        grpc: None,
        http_listen: http_listen?,
        public_webhook_url: public_webhook_url?,
        stripe: Stripe { base_url: base_url?, timeout: Duration::from_secs(timeout?) },
        encryption_keys: encryption_keys?,
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
    mistakes: &mut Mistakes,
    args: DatabaseArgs,
    direct: Option<SecretString>,
    pool_size: &str,
) -> Option<Connection> {
    let url = database(mistakes, args);
    let direct = direct.filter(|url| !url.expose_secret().trim().is_empty());
    let direct = direct.map(|url| check::database(Some(url))).transpose();
    let direct = mistakes.note("direct-database-url", direct);
    let pool_size = mistakes.note("database-pool-size", check::number(pool_size, 2..=500));
    let url = url?;
    Some(Connection { direct_url: direct?.unwrap_or_else(|| url.clone()), url, pool_size: pool_size? })
}

/// `None` is a mistake, `Some(None)` no TLS.
#[expect(
    clippy::option_option,
    reason = "the outer one says whether it could be read, the inner one whether it is there"
)]
fn tls(mistakes: &mut Mistakes, certificate: Option<String>, key: Option<String>) -> Option<Option<Tls>> {
    let (cert_flag, key_flag) = ("grpc-tls-cert-file", "grpc-tls-key-file");
    match (certificate, key) {
        (None, None) => Some(None),
        (None, Some(_)) => mistakes.note(cert_flag, Err(format!("is missing, while --{key_flag} is given"))),
        (Some(_), None) => mistakes.note(key_flag, Err(format!("is missing, while --{cert_flag} is given"))),
        (Some(certificate), Some(key)) => {
            let certificate = mistakes.note(cert_flag, check::pem_file(&certificate, "CERTIFICATE-----"));
            let key = mistakes.note(key_flag, check::pem_file(&key, "PRIVATE KEY-----"));
            Some(Some(Tls { certificate: certificate?, key: SecretString::from(key?) }))
        }
    }
}

fn keys(mistakes: &mut Mistakes, keys: Option<SecretString>, file: Option<String>) -> Option<Vec<EncryptionKey>> {
    let keys = keys.filter(|keys| !keys.expose_secret().trim().is_empty());
    match (keys, file) {
        (Some(_), Some(_)) => {
            let both = Err("is given together with --encryption-keys; give one of them".to_owned());
            mistakes.note("encryption-keys-file", both)
        }
        (Some(keys), None) => mistakes.note("encryption-keys", check::encryption_keys(&keys)),
        (None, Some(path)) => {
            let keys = check::file(&path).and_then(|text| check::encryption_keys(&SecretString::from(text)));
            mistakes.note("encryption-keys-file", keys)
        }
        (None, None) => {
            let help = "is missing; make one with: echo \"k1:$(openssl rand -base64 32)\"";
            mistakes.note("encryption-keys", Err(help.to_owned()))
        }
    }
}

/// The log has a file of its own, so that the story stands alone.
#[cfg(feature = "dev")]
fn demo(args: super::arguments::DemoArgs) -> Demo {
    let mut mark = [0; 8];
    let is_random = getrandom::fill(&mut mark).is_ok();
    let name = format!("paybridge-demo-{}.log", hex::encode(mark));
    let log_file = (is_random && !args.verbose).then(|| std::env::temp_dir().join(name));
    Demo { log_file, postgres_programs: args.postgres.postgres_programs }
}

#[cfg(feature = "dev")]
fn dev(mistakes: &mut Mistakes, args: super::arguments::DevArgs) -> Option<Dev> {
    let grpc_listen = mistakes.note("grpc-listen", check::address(&args.grpc_listen));
    let http_listen = mistakes.note("http-listen", check::address(&args.http_listen));
    let sandbox_listen = mistakes.note("sandbox-listen", check::address(&args.sandbox_listen));
    let clock_speed = mistakes.note("clock-speed", check::number(&args.clock_speed, 1..=100_000));
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
fn chaos(mistakes: &mut Mistakes, args: super::arguments::ChaosArgs) -> Option<Chaos> {
    let payments = mistakes.note("payments", check::number(&args.payments, 1..=100_000));
    let replicas = mistakes.note("replicas", check::number(&args.replicas, 1..=9));
    let faults = mistakes.note("faults", check::number(args.faults.trim().trim_end_matches('%'), 0..=50));
    let kill_every = mistakes.note("kill-every", check::period(&args.kill_every));
    let seed = given(args.seed).map(|text| check::number(&text, 0..=u64::MAX)).transpose();
    let seed = mistakes.note("seed", seed);
    let clock_speed = mistakes.note("clock-speed", check::number(&args.clock_speed, 1..=1_000));
    let minutes = mistakes.note("minutes", check::number(&args.minutes, 1..=600));
    Some(Chaos {
        payments: payments?,
        replicas: replicas?,
        faults: faults?,
        kill_every: kill_every?,
        seed: seed?,
        clock_speed: clock_speed?,
        within: Duration::from_mins(minutes?),
        postgres_programs: args.postgres.postgres_programs,
    })
}
