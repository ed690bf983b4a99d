//! Whether this process can do its work, asked once for both doors: gRPC health, for kubelet and load balancers, and
//! `/readyz`. At the start the database is checked until it passes; from then on it is asked once a second whether it
//! answers, however many ask us.

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
use crate::store::startup::{self, Obstacle};

/// How often the database is asked whether it answers, real time.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long that may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long the check at the start may take, real time; then it is made again.
const CHECKED_WITHIN: Duration = Duration::from_secs(30);
/// How long, in real time, the word that nobody is to come here any more is out before anything ends: whoever watches goes
/// elsewhere first.
const TOLD_BEFORE: Duration = Duration::from_millis(100);
/// The service name under which gRPC health says whether the process can do its work, as for every gRPC server.
const READINESS: &str = "";
/// The name under which it says that the process lives. Without the database it does: a restart would not help.
const LIVENESS: &str = "liveness";

/// What is checked before the first work is done.
pub(super) struct Startup {
    pub database: Connection,
    pub sealer: Sealer,
    /// Set once the database has passed.
    pub checked: Arc<SetOnce<()>>,
}

impl Startup {
    /// Returns when the database has passed, however long that takes. An obstacle is logged once, and again when another
    /// one has taken its place. An error means that it can't pass with these settings.
    async fn run(self) -> Result<()> {
        let (url, direct_url) = (self.database.url.expose_secret(), self.database.direct_url.expose_secret());
        let mut ticks = interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut logged = String::new();
        loop {
            ticks.tick().await;
            let checked = timeout(CHECKED_WITHIN, startup::check(url, direct_url, &self.sealer)).await;
            let obstacle = match checked {
                Ok(Ok(())) => break,
                Ok(Err(Obstacle::Permanent(error))) => return Err(error),
                Ok(Err(Obstacle::Temporary(error))) => error,
                Err(_) => anyhow!("the database has not answered within {CHECKED_WITHIN:?}"),
            };
            let obstacle = format!("{obstacle:#}");
            if obstacle != logged {
                tracing::warn!("not ready, and waiting: {obstacle}");
                logged = obstacle;
            }
        }
        // Nobody else sets it.
        let _ = self.checked.set(());
        Ok(())
    }
}

pub(super) struct Readiness {
    /// What gRPC health says.
    pub health: HealthReporter,
    /// What `/readyz` says.
    pub ready: watch::Sender<bool>,
}

impl Readiness {
    /// Alive, and not ready before the database has answered.
    pub(super) async fn new() -> Self {
        let health = HealthReporter::new();
        health.set_service_status(READINESS, NotServing).await;
        health.set_service_status(LIVENESS, Serving).await;
        Self { health, ready: watch::Sender::new(false) }
    }

    /// Checks the database, and follows it until `soft` is cancelled. Then nobody is told to come here any more, and only
    /// after that `closing` is dropped, which closes the doors.
    pub(super) async fn follow(
        mut self,
        startup: Startup,
        app: App,
        soft: CancellationToken,
        closing: DropGuard,
    ) -> Result<()> {
        soft.run_until_cancelled(startup.run()).await.transpose()?;
        let mut ticks = interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut answered = None;
        loop {
            let asked = async {
                ticks.tick().await;
                let late = |_| Err(format!("no answer within {ANSWER_WITHIN:?}"));
                timeout(ANSWER_WITHIN, app.check_database()).await.unwrap_or_else(late)
            };
            tokio::select! {
                biased;
                () = soft.cancelled() => break,
                answers = asked => {
                    // An outage is logged once, and its end.
                    if answered != Some(answers.is_ok()) {
                        answered = Some(answers.is_ok());
                        self.tell(answers).await;
                    }
                }
            }
        }
        self.set(false).await;
        pause(TOLD_BEFORE).await;
        // Whoever watches has now heard it; their streams would keep the door open for ever, so they end. Whoever asks
        // on an open connection still gets an answer.
        self.renew(READINESS, NotServing).await;
        self.renew(LIVENESS, Serving).await;
        drop(closing);
        Ok(())
    }

    async fn tell(&self, answers: Result<(), String>) {
        match &answers {
            Ok(()) => tracing::info!("ready: the database answers"),
            Err(error) => tracing::warn!(error, "not ready: the database is away; waiting for it"),
        }
        self.set(answers.is_ok()).await;
    }

    async fn set(&self, is_ready: bool) {
        self.health.set_service_status(READINESS, if is_ready { Serving } else { NotServing }).await;
        self.ready.send_replace(is_ready);
    }

    /// Ends the streams that watch `service`.
    async fn renew(&mut self, service: &str, status: ServingStatus) {
        self.health.clear_service_status(service).await;
        self.health.set_service_status(service, status).await;
    }
}
