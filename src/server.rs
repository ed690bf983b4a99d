//! The composition root: settings, listeners and a clock in, a running service out.
//!
//! Everybody who runs Paybridge comes through [`start`]: `paybridge serve`, `worker`, `dev`, `demo`, and tests, several
//! times in one process if they like. The parts (two doors, the worker, readiness, and small helpers) run under a
//! [`Lifecycle`]. A worker process has no gRPC door, and of the HTTP door only what the platform asks for.
//! The flow of a stop: readiness turns NOT_SERVING first; then event streams end with UNAVAILABLE, the doors take
//! nothing new and the worker leases nothing new; what is in hand is finished; last the helpers end, which until then
//! tell other replicas of what is committed.

mod connections;
mod doors;
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
use tokio::net::TcpListener;
use tokio::sync::{SetOnce, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;
use tracing::field;

use self::doors::Closing;
use self::readiness::{Readiness, Startup};
use crate::app::{self, App};
use crate::clock::{Clock, pause};
use crate::config::{EncryptionKey, Serve};
use crate::domain::jobs::JobKind;
use crate::domain::limits::Limits;
use crate::lifecycle::Lifecycle;
use crate::store::{self, Hint, Pool, SealKey, Sealer};
use crate::{grpc, stripe, telemetry, webhook, worker};

/// Hints that wait for the direct connection; more are dropped, and the others' polls find what they meant (P11).
const HINTS_MAX: usize = 1024;
/// The net under lost hints, real time: no subscriber waits longer than this for what is committed.
const NOTICE_EVERY: Duration = Duration::from_millis(200);
/// How often parked jobs are counted, real time.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// The most that opening a connection to Stripe may take, real time.
const STRIPE_CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// What the key of page tokens is derived under, so that it serves for nothing else.
const PAGE_TOKEN_LABEL: &[u8] = b"paybridge page tokens v1";

/// What a server is given besides its settings.
#[derive(Debug)]
pub struct Parts {
    /// Where the gRPC API is served; absent in a worker.
    pub grpc: Option<TcpListener>,
    /// Where the HTTP door is served.
    pub http: TcpListener,
    /// The time that all of it goes by.
    pub clock: Clock,
    /// Whether new integrations relay Stripe's own events, unless the call says otherwise.
    pub relay_provider_events: bool,
    /// How long an event stream may be silent, real time.
    pub heartbeat: Duration,
    /// How many calls Stripe allows.
    pub limits: Limits,
    /// How far apart reconcilers look, in the clock's time.
    pub periods: app::Periods,
}

impl Parts {
    /// What `paybridge serve` runs with, or, without a gRPC door, `paybridge worker`.
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

/// A running server.
#[derive(Clone)]
pub struct Running {
    /// Its use cases.
    pub app: App,
    /// Where the gRPC API really listens; absent in a worker.
    pub grpc: Option<SocketAddr>,
    /// Where the HTTP door really listens.
    pub http: SocketAddr,
    /// Whether it can do its work; `false` at first, and while the database is away or the server stops.
    pub ready: watch::Receiver<bool>,
}

/// Starts all parts under `lifecycle` and returns at once. It needs a migrated database to become ready, but not to
/// start: it waits for one, and until then the doors answer that the database is away, and no job is leased. A database that
/// can't pass the check, such as one whose secrets don't open with our keys, ends the lifecycle as a failure. An error means
/// that something given can't be used; then nothing runs.
pub async fn start(settings: &Serve, parts: Parts, lifecycle: &Lifecycle) -> Result<Running> {
    let metrics = telemetry::metrics();
    let grpc_address = parts.grpc.as_ref().map(TcpListener::local_addr).transpose()?;
    let http_address = parts.http.local_addr()?;
    let (hints, outgoing) = mpsc::channel(HINTS_MAX);
    let checked = Arc::new(SetOnce::new());
    let sealer = sealer(settings)?;
    let app = use_cases(settings, &parts, sealer.clone(), &checked, hints)?;

    // Cancelled once readiness says that we stop; and once the doors and the worker are through.
    let (closing, quiet) = (CancellationToken::new(), CancellationToken::new());
    let readiness = Readiness::new().await;
    let ready = readiness.ready.subscribe();
    let has_grpc = settings.grpc.is_some() && parts.grpc.is_some();
    let http = if has_grpc {
        webhook::routes(app.clone(), metrics.clone(), ready.clone())
    } else {
        webhook::platform_routes(metrics.clone(), ready.clone())
    };

    let through = Arc::new(quiet.clone().drop_guard());
    // A tenth of the grace is left for what comes after the doors.
    let close = Closing { soon: closing.clone(), within: lifecycle.grace() / 10 * 9 };
    if let (Some(grpc), Some(listener)) = (&settings.grpc, parts.grpc) {
        let door = doors::grpc(grpc.tls.as_ref())?;
        let options = grpc::Options {
            page_token_key: page_token_key(&settings.encryption_keys)?,
            heartbeat: parts.heartbeat,
            streams_per_organization_max: grpc.max_streams_per_organization,
        };
        let health = HealthServer::new(HealthService::from_health_reporter(readiness.health.clone()));
        let routes = grpc::routes(app.clone(), options, closing.clone(), health).context("cannot serve reflection")?;
        lifecycle.spawn("grpc", before(&through, doors::serve_grpc(door, routes, listener, close.clone())));
    }
    let startup = Startup { database: settings.database.clone(), sealer, checked: Arc::clone(&checked) };
    let soft = lifecycle.soft().clone();
    lifecycle.spawn("readiness", readiness.follow(startup, app.clone(), soft, closing.drop_guard()));
    lifecycle.spawn("http", before(&through, doors::serve_http(http, parts.http, close.clone())));
    if settings.worker_concurrency > 0 {
        let soft = lifecycle.soft().clone();
        let work = worker::run(app.clone(), settings.worker_concurrency, soft.clone(), close.within);
        let checked = Arc::clone(&checked);
        lifecycle.spawn(
            "worker",
            before(&through, async move {
                if soft.run_until_cancelled(checked.wait()).await.is_some() {
                    work.await;
                }
                Ok(())
            }),
        );
    }
    let url = settings.database.direct_url.expose_secret().to_owned();
    let is_separate = url != settings.database.url.expose_secret();
    let helpers = helpers(app.clone(), metrics, (url, is_separate), outgoing, quiet.clone());
    lifecycle.spawn("helpers", async move {
        if quiet.run_until_cancelled(checked.wait()).await.is_some() {
            helpers.await;
        }
        Ok(())
    });

    tracing::info!(grpc = grpc_address.map(field::display), http = %http_address, "serving");
    Ok(Running { app, grpc: grpc_address, http: http_address, ready })
}

/// The use cases for a person at a terminal, who manages organizations and tokens: no door, no worker, no key to seal
/// with, because nothing that they do needs one. Within a tokio runtime.
pub fn administration(database_url: &str) -> Result<App> {
    let clock = Clock::system();
    let mut unused = [0; 32];
    getrandom::fill(&mut unused).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    let sealer = Sealer::new(&[SealKey { id: "unused".to_owned(), key: unused }]).context("no key")?;
    let stripe = stripe::Client::new(stripe::STRIPE_URL, clock.clone(), stripe::Timeouts::default())?;
    let settings = app::Settings {
        default_success_url: String::new(),
        webhook_base_url: None,
        relay_provider_events: false,
        event_retention: time::Duration::MAX,
        delivery_retention: time::Duration::MAX,
        action_period: time::Duration::MAX,
        periods: app::Periods::default(),
    };
    // Nobody waits for hints of a process that changes no log.
    let (hints, _) = mpsc::channel(1);
    Ok(App::new(Pool::new(database_url, 1)?, sealer, stripe, clock, settings, hints))
}

fn sealer(settings: &Serve) -> Result<Sealer> {
    let key = |key: &EncryptionKey| SealKey { id: key.id.clone(), key: *key.key.expose_secret() };
    let keys: Vec<SealKey> = settings.encryption_keys.iter().map(key).collect();
    Sealer::new(&keys).context("there is no key to seal secrets with")
}

/// The use cases of a server, which reach the database once `checked` is set.
fn use_cases(
    settings: &Serve,
    parts: &Parts,
    sealer: Sealer,
    checked: &Arc<SetOnce<()>>,
    hints: mpsc::Sender<Hint>,
) -> Result<App> {
    let pool = Pool::new(settings.database.url.expose_secret(), settings.database.pool_size)?.after(checked.clone());
    let call = settings.stripe.timeout;
    let timeouts = stripe::Timeouts { connect: call.min(STRIPE_CONNECT_WITHIN), call };
    let stripe =
        stripe::Client::new(settings.stripe.base_url.as_str(), parts.clock.clone(), timeouts)?.within(parts.limits);
    let settings = app::Settings {
        default_success_url: settings.default_success_url.clone(),
        webhook_base_url: settings.public_webhook_url.as_ref().map(|url| url.as_str().to_owned()),
        relay_provider_events: parts.relay_provider_events,
        event_retention: settings.retention.events,
        delivery_retention: settings.retention.deliveries,
        action_period: settings.action_expiry,
        periods: parts.periods,
    };
    Ok(App::new(pool, sealer, stripe, parts.clock.clone(), settings, hints))
}

/// The same on all replicas, because they have the same keys, and of no use for anything else.
fn page_token_key(keys: &[EncryptionKey]) -> Result<grpc::PageTokenKey> {
    let first = keys.first().context("there is no key to derive the page tokens' from")?;
    let mut mac = Hmac::<Sha256>::new_from_slice(first.key.expose_secret()).context("a key of no length")?;
    mac.update(PAGE_TOKEN_LABEL);
    Ok(grpc::PageTokenKey(mac.finalize().into_bytes().into()))
}

/// A part that must be through before the helpers end. It counts from now on, not from when it first runs.
fn before<F>(through: &Arc<DropGuard>, part: F) -> impl Future<Output = Result<()>> + Send + use<F>
where
    F: Future<Output = Result<()>> + Send,
{
    let through = Arc::clone(through);
    async move {
        let _through = through;
        part.await
    }
}

/// What works beside the doors and the worker: hints between replicas, the net under them, slots for calls to Stripe, and
/// metrics that are true and stay small. All for ever, until `quiet` is cancelled.
async fn helpers(
    app: App,
    metrics: telemetry::Metrics,
    (direct_url, is_separate): (String, bool),
    outgoing: mpsc::Receiver<Hint>,
    quiet: CancellationToken,
) {
    let listener = app.clone();
    tokio::select! {
        () = quiet.cancelled() => {}
        () = store::relay(direct_url, is_separate, outgoing, move |hint| listener.hear(hint)) => {}
        () = notice(&app) => {}
        () = count_parked(&app) => {}
        () = pace(&app) => {}
        () = metrics.fold() => {}
    }
}

/// Wakes streams whose log has grown without a hint.
async fn notice(app: &App) {
    let mut ticks = interval(NOTICE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = HashMap::new();
    loop {
        ticks.tick().await;
        // A database that is away is told of by readiness.
        if let Err(error) = app.notice_logs(&mut seen).await {
            tracing::debug!(%error, "the logs could not be looked at");
        }
    }
}

/// Takes slots for calls to Stripe, whenever some wait for them.
async fn pace(app: &App) {
    loop {
        app.slots_wanted().await;
        if let Err(error) = app.take_slots().await
            && !error.is_database_away()
        {
            tracing::warn!(%error, "no slots could be taken for calls to Stripe; they wait");
        }
        pause(app::SLOTS_EVERY).await;
    }
}

/// Shows how many jobs are parked: every process shows the same, of the whole database.
async fn count_parked(app: &App) {
    let mut ticks = interval(COUNT_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kinds: HashMap<String, i32> = JobKind::ALL.iter().map(|(_, name)| ((*name).to_owned(), 0)).collect();
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
