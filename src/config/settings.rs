//! Settings with nothing left to be checked.

use std::net::SocketAddr;
use std::time::Duration;

use secrecy::{SecretBox, SecretString};
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

/// What this process is to do, and how it logs.
#[derive(Debug)]
pub struct Settings {
    /// Logs and traces.
    pub telemetry: Telemetry,
    /// The command.
    pub task: Task,
}

/// A command of the command line. Every `database` is the address of Postgres.
#[derive(Debug)]
#[expect(missing_docs, reason = "each command and its fields are described in `arguments`, where --help reads them")]
pub enum Task {
    Serve(Box<Serve>),
    PrintRoles {
        grantee: String,
    },
    Migrate {
        database: SecretString,
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
    /// Without an id all that are parked.
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
    /// Postgres.
    pub database: Connection,
    /// The gRPC API; absent in a worker.
    pub grpc: Option<Grpc>,
    /// Where the HTTP door listens.
    pub http_listen: SocketAddr,
    /// Under which address Stripe reaches the HTTP door; absent: integrations poll.
    pub public_webhook_url: Option<BaseUrl>,
    /// Stripe's API.
    pub stripe: Stripe,
    /// At least one. The first seals, all open.
    pub encryption_keys: Vec<EncryptionKey>,
    /// Where Checkout sends a customer if nothing else says so.
    pub default_success_url: String,
    /// What is kept for how long.
    pub retention: Retention,
    /// How long a customer has to prove who they are, in the clock's time.
    pub action_expiry: time::Duration,
    /// The most jobs at the same time; 0: this process only has doors.
    pub worker_concurrency: usize,
    /// How long a shutdown waits for work in hand.
    pub shutdown_grace: Duration,
    /// The clock to go by, where it is not the machine's.
    #[cfg(feature = "dev")]
    pub clock: Option<FastClock>,
}

/// How the gRPC API is served.
#[derive(Debug)]
pub struct Grpc {
    /// Where it listens.
    pub listen: SocketAddr,
    /// With it the API speaks TLS.
    pub tls: Option<Tls>,
    /// The most event streams of one organization on this process.
    pub max_streams_per_organization: usize,
}

/// How Postgres is reached.
#[derive(Clone, Debug)]
pub struct Connection {
    /// For the pool.
    pub url: SecretString,
    /// For LISTEN, past any pooler. Same as `url` where none was given.
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

/// How Stripe is reached.
#[derive(Debug)]
pub struct Stripe {
    /// Stripe's API, or a sandbox.
    pub base_url: BaseUrl,
    /// The most that one request may take, in real time.
    pub timeout: Duration,
}

/// A key that seals secrets in the database, and the id by which sealed text names it.
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

/// The address of a server, with scheme and host and without a slash, query or fragment at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    text: String,
    loopback: bool,
}

impl BaseUrl {
    pub(super) fn new(text: &str, loopback: bool) -> Self {
        Self { text: text.to_owned(), loopback }
    }

    /// Reads an address that is https, or plain http to this machine. An error is a sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        super::check::safe_base_url(text)
    }

    /// `https://host[:port][/path]`
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it leads to this machine.
    pub fn is_loopback(&self) -> bool {
        self.loopback
    }
}

/// Logs and traces.
#[derive(Debug)]
pub struct Telemetry {
    /// How log lines look.
    pub format: LogFormat,
    /// Which are written.
    pub filter: EnvFilter,
    /// Where traces go, if anywhere.
    pub otlp_endpoint: Option<BaseUrl>,
    /// The file that log lines are added to; absent: they go to standard error.
    pub file: Option<std::path::PathBuf>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Settings of `paybridge dev`.
#[cfg(feature = "dev")]
#[derive(Debug)]
pub struct Dev {
    /// The folder of the database and the keys.
    pub data_folder: std::path::PathBuf,
    /// Whether to start over.
    pub fresh: bool,
    /// Where the gRPC API listens.
    pub grpc_listen: SocketAddr,
    /// Where the HTTP door listens.
    pub http_listen: SocketAddr,
    /// Where the Stripe sandbox listens.
    pub sandbox_listen: SocketAddr,
    /// How many times faster than real time the clock runs.
    pub clock_speed: u32,
    /// The folder of Postgres' programs; absent: the newest installed, else fetched ones.
    pub postgres_programs: Option<std::path::PathBuf>,
}

/// Settings of `paybridge demo`.
#[cfg(feature = "dev")]
#[derive(Debug)]
pub struct Demo {
    /// Where the log goes; absent: to standard error.
    pub log_file: Option<std::path::PathBuf>,
    /// The folder of Postgres' programs; absent: the newest installed, else fetched ones.
    pub postgres_programs: Option<std::path::PathBuf>,
}

/// Settings of `paybridge sandbox`.
#[cfg(feature = "dev")]
#[derive(Debug)]
pub struct Sandbox {
    /// Where it listens.
    pub listen: SocketAddr,
}

/// Settings of `paybridge chaos`.
#[cfg(feature = "dev")]
#[derive(Clone, Debug)]
pub struct Chaos {
    /// How many invoices are collected.
    pub payments: usize,
    /// How many processes serve.
    pub replicas: usize,
    /// How many of a hundred requests to Stripe go wrong.
    pub faults: u8,
    /// How far apart the kills are, real time; zero for none.
    pub kill_every: Duration,
    /// What decides the plan; absent: one is drawn.
    pub seed: Option<u64>,
    /// How many times faster than real time the clock runs.
    pub clock_speed: u32,
    /// How long the whole run may take, real time.
    pub within: Duration,
    /// The folder of Postgres' programs; absent: the newest installed, else fetched ones.
    pub postgres_programs: Option<std::path::PathBuf>,
}

/// A clock that processes share by these three values.
#[cfg(feature = "dev")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastClock {
    /// The time that it showed at this very time.
    pub anchor: time::OffsetDateTime,
    /// How many times as fast as the machine's it has run since.
    pub speed: u32,
    /// How far it was moved forward.
    pub ahead: time::Duration,
}

impl Serve {
    /// What is allowed and likely to hurt; for the log at the start. Holds no secrets.
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
            "no public webhook URL is set: integrations poll Stripe's events, so outcomes arrive seconds to minutes late",
        );
        warn(
            self.stripe.base_url.is_loopback(),
            "the Stripe base URL leads to this machine: a sandbox answers, and no real money moves",
        );
        warn(
            self.shutdown_grace < self.stripe.timeout,
            "the shutdown grace is shorter than the Stripe timeout: a shutdown can cut requests off, whose outcome stays \
             unknown until they are sent again",
        );
        warn(
            self.worker_concurrency > self.database.pool_size * 4,
            "worker concurrency is more than four times the database pool: jobs will wait for connections",
        );
        warnings
    }
}
