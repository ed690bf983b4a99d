//! Readiness: whether this process can do its work, for gRPC health (kubelet, load balancers) and `/readyz`.
//!
//! At startup the database is checked until it passes. Then it is pinged once a second, whatever the number of health
//! requests.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use secrecy::ExposeSecret;
use tokio::sync::{SetOnce, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic_health::ServingStatus::{self, NotServing, Serving};
use tonic_health::server::HealthReporter;

use crate::app::App;
use crate::clock::pause;
use crate::config::Connection;
use crate::store::Sealer;
use crate::store::startup::{self, StartupError};

/// The interval between pings of the database, and between startup checks, real time.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The time limit of a ping.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// The time limit of a startup check, real time. After that it is repeated.
const STARTUP_CHECK_TIMEOUT: Duration = Duration::from_secs(30);
/// The time between reporting NOT_SERVING and closing the listeners, real time, so that load balancers stop sending
/// calls first.
const DRAIN_DELAY: Duration = Duration::from_millis(100);
/// The gRPC health service name for readiness, as for every gRPC server.
const READINESS: &str = "";
/// The gRPC health service name for liveness. It is SERVING without the database: a restart would not help.
const LIVENESS: &str = "liveness";

/// The startup check.
pub(super) struct Startup {
    pub database: Connection,
    /// The name of the process's installation.
    pub installation: String,
    pub sealer: Sealer,
    /// Set once the database has passed.
    pub checked: Arc<SetOnce<()>>,
}

impl Startup {
    /// Returns when the database has passed, however long that takes. A temporary error is logged once, and again when
    /// another one takes its place. An error means that the database can never pass with these settings.
    async fn wait_until_checked(self) -> Result<()> {
        let (url, direct_url) = (self.database.url.expose_secret(), self.database.direct_url.expose_secret());
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut logged = String::new();
        loop {
            ticks.tick().await;
            let check = startup::check(url, direct_url, &self.installation, &self.sealer);
            let error = match timeout(STARTUP_CHECK_TIMEOUT, check).await {
                Ok(Ok(())) => break,
                Ok(Err(StartupError::Permanent(error))) => return Err(error),
                Ok(Err(StartupError::Temporary(error))) => error,
                Err(_) => anyhow!("the database did not respond within {STARTUP_CHECK_TIMEOUT:?}"),
            };
            let error = format!("{error:#}");
            if error != logged {
                tracing::warn!(%error, "not ready: waiting for the database");
                logged = error;
            }
        }
        // Only this function sets it, so it cannot be set already.
        let _ = self.checked.set(());
        Ok(())
    }
}

pub(super) struct Readiness {
    /// The gRPC health service.
    pub health: HealthReporter,
    /// The state behind `/readyz`.
    pub ready: watch::Sender<bool>,
}

impl Readiness {
    /// Alive, and not ready until the database has passed its check.
    pub(super) async fn new() -> Self {
        let health = HealthReporter::new();
        health.set_service_status(READINESS, NotServing).await;
        health.set_service_status(LIVENESS, Serving).await;
        Self { health, ready: watch::Sender::new(false) }
    }

    /// Checks the database, then follows its availability until `shutdown` is cancelled. Then it reports NOT_SERVING,
    /// and only after that drops `draining`, which closes the listeners.
    pub(super) async fn run(
        mut self,
        startup: Startup,
        app: App,
        shutdown: CancellationToken,
        draining: DropGuard,
    ) -> Result<()> {
        shutdown.run_until_cancelled(startup.wait_until_checked()).await.transpose()?;
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = None;
        loop {
            let pinged = async {
                ticks.tick().await;
                let timed_out = |_| Err(format!("no response within {CHECK_TIMEOUT:?}"));
                timeout(CHECK_TIMEOUT, app.check_database()).await.unwrap_or_else(timed_out)
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                ping = pinged => {
                    // An outage is logged once, and so is its end.
                    if last != Some(ping.is_ok()) {
                        last = Some(ping.is_ok());
                        self.report(ping).await;
                    }
                }
            }
        }
        self.set(false).await;
        pause(DRAIN_DELAY).await;
        // Watchers have received the change. Their streams would keep the listener open, so they end. New health checks
        // on an open connection are still answered.
        self.end_watches(READINESS, NotServing).await;
        self.end_watches(LIVENESS, Serving).await;
        drop(draining);
        Ok(())
    }

    async fn report(&self, ping: Result<(), String>) {
        match &ping {
            Ok(()) => tracing::info!("ready: the database is available"),
            Err(error) => tracing::warn!(error, "not ready: the database is unavailable"),
        }
        self.set(ping.is_ok()).await;
    }

    async fn set(&self, is_ready: bool) {
        self.health.set_service_status(READINESS, if is_ready { Serving } else { NotServing }).await;
        self.ready.send_replace(is_ready);
    }

    /// Ends the streams that watch `service`.
    async fn end_watches(&mut self, service: &str, status: ServingStatus) {
        self.health.clear_service_status(service).await;
        self.health.set_service_status(service, status).await;
    }
}
