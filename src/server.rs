//! The composition root: takes settings, listeners and a clock, and starts the service.
//!
//! [`start`] is the only way to run Paybridge: `paybridge serve`, `worker`, `dev`, `demo` and tests use it, several
//! times in one process if needed. The tasks (two listeners, the worker, readiness and the background tasks) run under
//! a [`Lifecycle`]. A worker process has no gRPC listener, and its HTTP listener serves health and metrics only.
//!
//! Shutdown has a fixed order. Health reports NOT_SERVING. Then event streams end with UNAVAILABLE, the listeners
//! accept no connections, and the worker leases no jobs. The work in progress is finished. The background tasks end
//! last, because they notify other replicas of what that work commits.

mod connections;
mod listeners;
mod readiness;
#[cfg(test)]
#[cfg(feature = "dev")]
pub(crate) mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::ExposeSecret;
use sha2::Sha256;
use strum::VariantArray as _;
use tokio::net::TcpListener;
use tokio::sync::{SetOnce, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;
use tracing::field;

use self::listeners::Shutdown;
use self::readiness::{Readiness, Startup};
use crate::app::{self, App};
use crate::clock::{Clock, pause};
use crate::config::{EncryptionKey, Serve};
use crate::domain::jobs::JobKind;
use crate::domain::limits::Limits;
use crate::lifecycle::Lifecycle;
use crate::store::{self, Notification, Pool, SealKey, Sealer};
use crate::{grpc, http, stripe, telemetry, worker};

/// Notifications that wait for the direct connection. More are dropped; the subscribers' polls find what they announced
/// (P11).
const NOTIFICATIONS_MAX: usize = 1024;
/// How often the event logs are polled in case a notification is lost, real time. The longest that a subscriber waits
/// for a committed event.
const LOG_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often parked jobs are counted, real time.
const PARKED_JOBS_INTERVAL: Duration = Duration::from_secs(5);
/// The limit for opening a connection to Stripe, real time.
const STRIPE_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The label under which the key of page tokens is derived. It separates that key from every other use of the same
/// secret.
const PAGE_TOKEN_LABEL: &[u8] = b"paybridge page tokens v1";

/// What [`start`] needs in addition to the settings.
#[derive(Debug)]
pub struct ServerOptions {
    /// The listener of the gRPC API; absent in a worker.
    pub grpc: Option<TcpListener>,
    /// The listener of webhooks, health and metrics.
    pub http: TcpListener,
    /// The clock of every period in the service.
    pub clock: Clock,
    /// Whether new integrations relay Stripe's own events, unless the call says otherwise.
    pub relay_provider_events: bool,
    /// The longest silence of an event stream before a heartbeat, real time.
    pub heartbeat: Duration,
    /// Stripe's rate limits.
    pub limits: Limits,
    /// The periods of the reconcilers, in the clock's time.
    pub periods: app::Periods,
}

impl ServerOptions {
    /// The options of `paybridge serve`; without a gRPC listener, those of `paybridge worker`.
    pub fn new(grpc: Option<TcpListener>, http: TcpListener) -> Self {
        Self {
            grpc,
            http,
            clock: Clock::system(),
            relay_provider_events: false,
            heartbeat: Duration::from_secs(15),
            limits: Limits::default(),
            periods: app::Periods::default(),
        }
    }
}

/// A server that [`start`] has started.
#[derive(Clone)]
pub struct RunningServer {
    /// The application layer.
    pub app: App,
    /// The bound address of the gRPC API; absent in a worker.
    pub grpc: Option<SocketAddr>,
    /// The bound address of the HTTP listener.
    pub http: SocketAddr,
    /// Whether it can do its work: `false` until the database has passed its check, while the database is unavailable,
    /// and during a shutdown.
    pub ready: watch::Receiver<bool>,
}

/// Starts all tasks under `lifecycle` and returns at once.
///
/// The server needs a migrated database to become ready, but not to start: it waits for one. Until then calls fail with
/// UNAVAILABLE, webhooks with 503, and no job is leased. A database that can never pass the check, for example because
/// its secrets cannot be opened with our keys, ends the lifecycle as a failure. An error means that an argument is
/// unusable and nothing was started.
pub async fn start(settings: &Serve, options: ServerOptions, lifecycle: &Lifecycle) -> Result<RunningServer> {
    let metrics = telemetry::metrics();
    let grpc_address = options.grpc.as_ref().map(TcpListener::local_addr).transpose()?;
    let http_address = options.http.local_addr()?;
    let (notifications, outgoing) = mpsc::channel(NOTIFICATIONS_MAX);
    let checked = Arc::new(SetOnce::new());
    let sealer = sealer(settings)?;
    let app = new_app(settings, &options, sealer.clone(), &checked, notifications)?;

    // `draining` is cancelled when health has reported the shutdown, `drained` when the listeners and the worker have
    // ended.
    let (draining, drained) = (CancellationToken::new(), CancellationToken::new());
    let readiness = Readiness::new().await;
    let ready = readiness.ready.subscribe();
    let has_grpc = settings.grpc.is_some() && options.grpc.is_some();
    let http = if has_grpc {
        http::routes(app.clone(), metrics.clone(), ready.clone())
    } else {
        http::operations_routes(metrics.clone(), ready.clone())
    };

    let serving = Arc::new(drained.clone().drop_guard());
    // A tenth of the grace period is left for the background tasks.
    let shutdown = Shutdown { token: draining.clone(), grace: lifecycle.grace() / 10 * 9 };
    if let (Some(grpc), Some(listener)) = (&settings.grpc, options.grpc) {
        let server = listeners::grpc_server(grpc.tls.as_ref())?;
        let grpc_options = grpc::Options {
            page_token_key: page_token_key(&settings.encryption_keys)?,
            heartbeat: options.heartbeat,
            streams_per_organization_max: grpc.max_streams_per_organization,
        };
        let health = HealthServer::new(HealthService::from_health_reporter(readiness.health.clone()));
        let routes =
            grpc::routes(app.clone(), grpc_options, draining.clone(), health).context("cannot serve reflection")?;
        lifecycle.spawn("grpc", holding(&serving, listeners::serve_grpc(server, routes, listener, shutdown.clone())));
    }
    let startup = Startup {
        database: settings.database.clone(),
        installation: settings.installation.clone(),
        sealer,
        checked: Arc::clone(&checked),
    };
    let stop = lifecycle.shutdown().clone();
    lifecycle.spawn("readiness", readiness.run(startup, app.clone(), stop, draining.drop_guard()));
    lifecycle.spawn("http", holding(&serving, listeners::serve_http(http, options.http, shutdown.clone())));
    if settings.worker_concurrency > 0 {
        let stop = lifecycle.shutdown().clone();
        let work = worker::run(app.clone(), settings.worker_concurrency, stop.clone(), shutdown.grace);
        let checked = Arc::clone(&checked);
        lifecycle.spawn(
            "worker",
            holding(&serving, async move {
                if stop.run_until_cancelled(checked.wait()).await.is_some() {
                    work.await;
                }
                Ok(())
            }),
        );
    }
    let url = settings.database.direct_url.expose_secret().to_owned();
    let is_separate = url != settings.database.url.expose_secret();
    let background_tasks = run_background_tasks(app.clone(), metrics, (url, is_separate), outgoing, drained.clone());
    lifecycle.spawn("background tasks", async move {
        if drained.run_until_cancelled(checked.wait()).await.is_some() {
            background_tasks.await;
        }
        Ok(())
    });

    tracing::info!(grpc = grpc_address.map(field::display), http = %http_address, "listening");
    Ok(RunningServer { app, grpc: grpc_address, http: http_address, ready })
}

/// The application layer for commands that manage organizations, tokens and jobs: no listener, no worker and no
/// encryption key, because these commands need none. Call it within a tokio runtime.
pub fn administration(database_url: &str) -> Result<App> {
    let clock = Clock::system();
    let mut unused = [0; 32];
    getrandom::fill(&mut unused)
        .map_err(|error| anyhow::anyhow!("the system's random number generator failed: {error}"))?;
    let sealer =
        Sealer::new(&[SealKey { id: "unused".to_owned(), key: unused }]).context("the placeholder key is unusable")?;
    let stripe = stripe::Client::new(stripe::STRIPE_URL, clock.clone(), stripe::Timeouts::default())?;
    let settings = app::Settings {
        installation: String::new(),
        default_success_url: String::new(),
        webhook_base_url: None,
        relay_provider_events: false,
        event_retention: time::Duration::MAX,
        delivery_retention: time::Duration::MAX,
        action_period: time::Duration::MAX,
        periods: app::Periods::default(),
    };
    // These commands write no events, so the notifications have no receiver.
    let (notifications, _) = mpsc::channel(1);
    let adapters = app::Adapters { pool: Pool::new(database_url, 1)?, sealer, stripe, clock };
    Ok(App::new(adapters, settings, notifications))
}

fn sealer(settings: &Serve) -> Result<Sealer> {
    let key = |key: &EncryptionKey| SealKey { id: key.id.clone(), key: *key.key.expose_secret() };
    let keys: Vec<SealKey> = settings.encryption_keys.iter().map(key).collect();
    Sealer::new(&keys).context("there is no encryption key")
}

/// The application layer of a server. It reaches the database only after `checked` is set.
fn new_app(
    settings: &Serve,
    options: &ServerOptions,
    sealer: Sealer,
    checked: &Arc<SetOnce<()>>,
    notifications: mpsc::Sender<Notification>,
) -> Result<App> {
    let pool = Pool::new(settings.database.url.expose_secret(), settings.database.pool_size)?.after(checked.clone());
    let call = settings.stripe.timeout;
    let timeouts = stripe::Timeouts { connect: call.min(STRIPE_CONNECT_TIMEOUT), call };
    let stripe = stripe::Client::new(settings.stripe.base_url.as_str(), options.clock.clone(), timeouts)?
        .with_limits(options.limits);
    let settings = app::Settings {
        installation: settings.installation.clone(),
        default_success_url: settings.default_success_url.clone(),
        webhook_base_url: settings.public_webhook_url.as_ref().map(|url| url.as_str().to_owned()),
        relay_provider_events: options.relay_provider_events,
        event_retention: settings.retention.events,
        delivery_retention: settings.retention.deliveries,
        action_period: settings.action_expiry,
        periods: options.periods,
    };
    let adapters = app::Adapters { pool, sealer, stripe, clock: options.clock.clone() };
    Ok(App::new(adapters, settings, notifications))
}

/// The same on all replicas, because they share the encryption keys.
fn page_token_key(keys: &[EncryptionKey]) -> Result<grpc::PageTokenKey> {
    let first = keys.first().context("there is no encryption key to derive the key of page tokens from")?;
    let mut mac =
        Hmac::<Sha256>::new_from_slice(first.key.expose_secret()).context("the encryption key is unusable")?;
    mac.update(PAGE_TOKEN_LABEL);
    Ok(grpc::PageTokenKey(mac.finalize().into_bytes().into()))
}

/// A task that the background tasks outlive. The guard counts from this call, not from the first poll.
fn holding<F>(guard: &Arc<DropGuard>, task: F) -> impl Future<Output = Result<()>> + Send + use<F>
where
    F: Future<Output = Result<()>> + Send,
{
    let guard = Arc::clone(guard);
    async move {
        let _guard = guard;
        task.await
    }
}

/// Runs what supports the listeners and the worker, until `drained` is cancelled: notifications between replicas and
/// the poll behind them, slots for calls to Stripe, the count of parked jobs, and the metrics' housekeeping.
async fn run_background_tasks(
    app: App,
    metrics: telemetry::Metrics,
    (direct_url, is_separate): (String, bool),
    outgoing: mpsc::Receiver<Notification>,
    drained: CancellationToken,
) {
    let receiver = app.clone();
    let on_notification = move |notification| receiver.on_notification(notification);
    tokio::select! {
        () = drained.cancelled() => {}
        () = store::relay(direct_url, is_separate, outgoing, on_notification) => {}
        () = poll_event_logs(&app) => {}
        () = count_parked(&app) => {}
        () = supply_slots(&app) => {}
        () = metrics.aggregate() => {}
    }
}

/// Wakes streams whose log has grown without a notification.
async fn poll_event_logs(app: &App) {
    let mut ticks = interval(LOG_POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = HashMap::new();
    loop {
        ticks.tick().await;
        // Readiness reports an unavailable database.
        if let Err(error) = app.poll_watched_logs(&mut seen).await {
            tracing::debug!(%error, "the event logs could not be polled");
        }
    }
}

/// Takes rate limit slots for calls to Stripe whenever calls wait for them.
async fn supply_slots(app: &App) {
    loop {
        app.slots_wanted().await;
        if let Err(error) = app.take_slots().await
            && !error.is_database_unavailable()
        {
            tracing::warn!(%error, "rate limit slots could not be taken; calls to Stripe wait");
        }
        pause(app::SLOTS_EVERY).await;
    }
}

/// Measures how many jobs are parked, in the whole database: every process reports the same numbers.
async fn count_parked(app: &App) {
    let mut ticks = interval(PARKED_JOBS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kinds: HashMap<String, i32> = JobKind::VARIANTS.iter().map(|kind| (kind.as_str().to_owned(), 0)).collect();
    loop {
        ticks.tick().await;
        let Ok(parked) = app.parked_jobs().await else { continue };
        for count in kinds.values_mut() {
            *count = 0;
        }
        kinds.extend(parked);
        for (kind, count) in &kinds {
            metrics::gauge!("paybridge_jobs_parked", "kind" => kind.clone()).set(f64::from(*count));
        }
    }
}
