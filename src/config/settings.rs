//! Checked settings.

use std::net::SocketAddr;
use std::time::Duration;

use secrecy::{SecretBox, SecretString};
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

use super::base_url::BaseUrl;

/// The settings of this process.
#[derive(Debug)]
pub struct Settings {
    /// Logs and traces.
    pub telemetry: Telemetry,
    /// The command.
    pub task: Task,
}

/// The command to run. Every `database` is the address of Postgres.
#[derive(Debug)]
#[expect(missing_docs, reason = "`arguments` describes each command and its fields for --help")]
pub enum Task {
    Serve(Box<Serve>),
    PrintRoles {
        grantee: String,
    },
    Migrate {
        database: SecretString,
        installation: String,
    },
    Adopt {
        database: SecretString,
        installation: String,
    },
    CreateOrganization {
        database: SecretString,
        name: String,
    },
    ListOrganizations {
        database: SecretString,
    },
    CreateToken {
        database: SecretString,
        organization: Uuid,
        name: String,
    },
    ListTokens {
        database: SecretString,
        organization: Uuid,
    },
    RevokeToken {
        database: SecretString,
        token: Uuid,
    },
    ListJobs {
        database: SecretString,
        organization: Option<Uuid>,
        only_parked: bool,
    },
    /// Without an id: all parked jobs.
    RetryJobs {
        database: SecretString,
        job: Option<Uuid>,
    },
    #[cfg(feature = "dev")]
    Dev(Dev),
    #[cfg(feature = "dev")]
    Demo(Demo),
    #[cfg(feature = "dev")]
    Sandbox(Sandbox),
    #[cfg(feature = "dev")]
    Chaos(Chaos),
}

/// Settings of `paybridge serve`, and of `paybridge worker`, which has no gRPC API.
#[derive(Debug)]
pub struct Serve {
    /// The connection to Postgres.
    pub database: Connection,
    /// The gRPC API; absent in a worker.
    pub grpc: Option<Grpc>,
    /// The address of the HTTP listener.
    pub http_listen: SocketAddr,
    /// The URL at which Stripe reaches the HTTP listener. Absent: integrations poll.
    pub public_webhook_url: Option<BaseUrl>,
    /// The connection to Stripe's API.
    pub stripe: Stripe,
    /// At least one. The first seals, all open.
    pub encryption_keys: Vec<EncryptionKey>,
    /// The name of this installation, part of every idempotency key. The database must belong to it.
    pub installation: String,
    /// The page to which Checkout sends a customer if nothing else is set.
    pub default_success_url: String,
    /// How long rows are kept.
    pub retention: Retention,
    /// How long a customer has to authenticate, in the clock's time.
    pub action_expiry: time::Duration,
    /// The most jobs at the same time; 0: this process only serves requests.
    pub worker_concurrency: usize,
    /// How long a shutdown waits for work in progress.
    pub shutdown_grace: Duration,
    /// A clock other than the machine's.
    #[cfg(feature = "dev")]
    pub clock: Option<FastClock>,
}

/// Settings of the gRPC API.
#[derive(Debug)]
pub struct Grpc {
    /// The address on which it listens.
    pub listen: SocketAddr,
    /// Absent: plain text.
    pub tls: Option<Tls>,
    /// The most event streams of one organization on this process.
    pub max_streams_per_organization: usize,
}

/// How to connect to Postgres.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The address for the pool.
    pub url: SecretString,
    /// The address for LISTEN, past any pooler. The same as `url` if none is set.
    pub direct_url: SecretString,
    /// The most connections of the pool.
    pub pool_size: usize,
}

/// A certificate chain and its key, both PEM.
#[derive(Debug)]
pub struct Tls {
    /// The chain, leaf first.
    pub certificate: String,
    /// Its private key.
    pub key: SecretString,
}

/// How to connect to Stripe.
#[derive(Debug)]
pub struct Stripe {
    /// Stripe's API, or a sandbox.
    pub base_url: BaseUrl,
    /// The time limit of one call, in real time.
    pub timeout: Duration,
}

/// A key that seals secrets in the database, and the id that sealed text names it by.
#[derive(Debug)]
pub struct EncryptionKey {
    /// 1 to 32 letters, digits, `_` or `-`.
    pub id: String,
    /// The key itself.
    pub key: SecretBox<[u8; 32]>,
}

/// How long rows are kept, in the clock's time.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Events, 1 day or more.
    pub events: time::Duration,
    /// Deliveries, 35 days or more.
    pub deliveries: time::Duration,
}

/// Logs and traces.
#[derive(Debug)]
pub struct Telemetry {
    /// The format of log lines.
    pub format: LogFormat,
    /// Which log lines are written.
    pub filter: EnvFilter,
    /// The collector of traces. Absent: none are sent.
    pub otlp_endpoint: Option<BaseUrl>,
    /// The file that log lines are appended to. Absent: standard error.
    pub file: Option<std::path::PathBuf>,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Settings of `paybridge dev`.
#[cfg(feature = "dev")]
#[derive(Debug)]
pub struct Dev {
    /// The folder of the database and the keys.
    pub data_folder: std::path::PathBuf,
    /// Whether to delete the folder's contents first.
    pub fresh: bool,
    /// The address on which the gRPC API listens.
    pub grpc_listen: SocketAddr,
    /// The address of the HTTP listener.
    pub http_listen: SocketAddr,
    /// The address on which the Stripe sandbox listens.
    pub sandbox_listen: SocketAddr,
    /// The speed of the clock, as a multiple of real time.
    pub clock_speed: u32,
    /// The folder with Postgres' programs. Absent: the newest installed, else fetched ones.
    pub postgres_programs: Option<std::path::PathBuf>,
}

/// Settings of `paybridge demo`.
#[cfg(feature = "dev")]
#[derive(Debug)]
pub struct Demo {
    /// The log file. Absent: standard error.
    pub log_file: Option<std::path::PathBuf>,
    /// The folder with Postgres' programs. Absent: the newest installed, else fetched ones.
    pub postgres_programs: Option<std::path::PathBuf>,
}

/// Settings of `paybridge sandbox`.
#[cfg(feature = "dev")]
#[derive(Debug)]
pub struct Sandbox {
    /// The address on which it listens.
    pub listen: SocketAddr,
}

/// Settings of `paybridge chaos`.
#[cfg(feature = "dev")]
#[derive(Clone, Debug)]
pub struct Chaos {
    /// The number of invoices to collect.
    pub payments: usize,
    /// The number of processes under test.
    pub replicas: usize,
    /// The percentage of requests to Stripe that fail.
    pub faults: u8,
    /// The interval between kills, real time; zero for none.
    pub kill_every: Duration,
    /// The interval between restorations of the database, real time; zero for none.
    pub restore_every: Duration,
    /// The seed of the plan. Absent: random.
    pub seed: Option<u64>,
    /// The speed of the clock, as a multiple of real time.
    pub clock_speed: u32,
    /// The time limit of the whole run, real time.
    pub time_limit: Duration,
    /// The folder with Postgres' programs. Absent: the newest installed, else fetched ones.
    pub postgres_programs: Option<std::path::PathBuf>,
}

/// A clock that processes share through these three values.
#[cfg(feature = "dev")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastClock {
    /// The time at which it was started: it showed the real time then.
    pub anchor: time::OffsetDateTime,
    /// Its speed since then, as a multiple of real time.
    pub speed: u32,
    /// How far it was moved forward.
    pub ahead: time::Duration,
}

impl Serve {
    /// Warnings about risky settings, for the log at startup. They hold no secrets.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut warn = |risky: bool, text: &str| {
            if risky {
                warnings.push(text.to_owned());
            }
        };
        warn(
            self.grpc.as_ref().is_some_and(|grpc| grpc.tls.is_none() && !grpc.listen.ip().is_loopback()),
            "the gRPC API listens without TLS: bearer tokens cross the network in plain text unless a mesh or proxy \
             encrypts them",
        );
        warn(
            self.public_webhook_url.is_none(),
            "no public webhook URL is set: integrations poll Stripe's events, which takes seconds to minutes longer",
        );
        warn(
            self.stripe.base_url.is_loopback(),
            "the Stripe base URL is this machine: calls go to a sandbox, and no real money moves",
        );
        warn(
            self.shutdown_grace < self.stripe.timeout,
            "the shutdown grace is shorter than the Stripe timeout: a shutdown can interrupt calls, whose outcome is \
             unknown until they are sent again",
        );
        warn(
            self.worker_concurrency > self.database.pool_size * 4,
            "worker concurrency is more than four times the database pool: jobs will wait for connections",
        );
        warnings
    }
}
