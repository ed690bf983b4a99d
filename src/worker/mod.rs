//! The worker: leases jobs and hands each to `app`, which completes, reschedules or parks it.
//!
//! Two loops share the leases of this process. The *poller* leases as many jobs as there is free capacity and runs each
//! in its own task. It polls again when a job ends, when jobs are enqueued, when the next job is due, and at the latest
//! after a second. The *renewer* renews all held leases in one call, three times per lease period, however long a call
//! to Stripe takes. A lost lease is harmless: the job may continue, but each of its writes checks the lease's epoch and
//! is refused (P8). The *timers* run alongside.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use time::OffsetDateTime;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::app::{App, LEASE_PERIOD};
use crate::clock::pause;
use crate::domain::OrganizationId;
use crate::domain::jobs::{Capacity, Lane, Lease};

#[cfg(test)]
#[cfg(feature = "dev")]
mod tests;
mod timers;

/// The longest interval between polls, real time. It covers lost notifications and outages of the database.
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// The shortest interval before polling for a job that has become due, real time: more may be due than one poll leases.
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// How many polls in a row may end incomplete and without a job before the next one waits.
const EMPTY_POLLS_MAX: usize = 20;

/// How often expired leases are released, real time.
const EXPIRED_LEASES_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest interval between renewals, real time, however fast the clock runs.
const RENEW_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Runs the timers, and leases and runs jobs, 1 to `concurrency` at once, until `shutdown` is cancelled. Then it leases
/// no more, waits at most `grace`, in real time, for the running jobs, and releases the remaining leases. Dropping the
/// future drops the jobs: their leases expire, and they are started again elsewhere.
pub async fn run(app: App, concurrency: usize, shutdown: CancellationToken, grace: Duration) {
    let held = HeldLeases::default();
    let poller = Poller {
        app: app.clone(),
        concurrency,
        held: held.clone(),
        running: JoinSet::new(),
        after: Lane::start(),
        empty_polls: 0,
    };
    let timers = async {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = timers::run(&app) => {}
        }
        pending::<()>().await;
    };
    let overdue = async {
        shutdown.cancelled().await;
        pause(grace).await;
    };
    tokio::select! {
        () = poller.run(&shutdown) => return,
        () = renew(&app, &held) => {}
        () = release_expired(&app) => {}
        () = timers => {}
        () = overdue => {}
    }
    let left = held.all();
    tracing::warn!(jobs = left.len(), "jobs did not finish within the grace period: releasing their leases");
    if let Err(error) = app.release_leases(&left).await {
        tracing::warn!(%error, "could not release leases; they will expire");
    }
}

/// The leases of this process, by the task that runs the job.
#[derive(Clone, Default)]
struct HeldLeases(Arc<Mutex<HashMap<Id, Lease>>>);

impl HeldLeases {
    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Lease>> {
        self.0.lock()
    }

    /// Job and epoch of each lease.
    fn all(&self) -> Vec<(Uuid, i64)> {
        self.lock().values().map(|lease| (lease.id.0, lease.epoch)).collect()
    }

    /// How many leases each organization has.
    fn counts_by_organization(&self) -> HashMap<OrganizationId, usize> {
        let mut counts = HashMap::new();
        for lease in self.lock().values() {
            *counts.entry(lease.organization_id).or_default() += 1;
        }
        counts
    }

    /// Removes the leases of `requested` that are not in `renewed`, and returns their number. Leases whose jobs ended
    /// meanwhile do not count.
    fn forget_lost(&self, requested: &[(Uuid, i64)], renewed: &[Uuid]) -> usize {
        let mut held = self.lock();
        let before = held.len();
        held.retain(|_, lease| !requested.contains(&(lease.id.0, lease.epoch)) || renewed.contains(&lease.id.0));
        before - held.len()
    }
}

/// Renews the held leases for ever.
async fn renew(app: &App, held: &HeldLeases) {
    let period = (app.clock().real(LEASE_PERIOD) / 3).max(RENEW_INTERVAL_MIN);
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let requested = held.all();
        if requested.is_empty() {
            continue;
        }
        match app.renew_leases(&requested).await {
            Ok(renewed) => {
                let lost = held.forget_lost(&requested, &renewed);
                if lost > 0 {
                    // A job that has just ended looks the same. A job that was stopped reports it itself.
                    tracing::debug!(lost, "leases were lost");
                }
            }
            Err(error) if error.is_database_unavailable() => {}
            Err(error) => tracing::warn!(%error, held = requested.len(), "could not renew leases; retrying"),
        }
    }
}

/// Releases expired leases for ever.
async fn release_expired(app: &App) {
    loop {
        match app.release_expired_leases().await {
            Ok(true) => {}
            Ok(false) => pause(EXPIRED_LEASES_INTERVAL).await,
            Err(error) => {
                tracing::debug!(%error, "could not release expired leases; retrying");
                pause(EXPIRED_LEASES_INTERVAL).await;
            }
        }
    }
}

/// The most jobs of one organization at a time: a quarter of `concurrency` is left to others, however slow Stripe is
/// for this one.
fn organization_max(concurrency: usize) -> usize {
    (concurrency - concurrency / 4).max(1)
}

/// What a poll found.
enum PollOutcome {
    /// As many jobs as there was capacity for: there may be more.
    Full,
    /// Not all lanes were polled yet.
    Incomplete,
    /// All due jobs, except those of organizations at their limit. Holds the time of the next scheduled job.
    Drained(Option<OffsetDateTime>),
    /// The database is unavailable.
    Failed,
}

struct Poller {
    app: App,
    concurrency: usize,
    held: HeldLeases,
    running: JoinSet<()>,
    /// The lane that was polled last.
    after: Lane,
    /// How many polls in a row were incomplete and found no job.
    empty_polls: usize,
}

impl Poller {
    async fn run(mut self, shutdown: &CancellationToken) {
        while !shutdown.is_cancelled() {
            let poll = self.poll().await;
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.wait(poll) => {}
            }
        }
        if !self.running.is_empty() {
            tracing::info!(jobs = self.running.len(), "the worker leases no more jobs and finishes the running ones");
        }
        while let Some(ended) = self.running.join_next_with_id().await {
            self.finish_job(ended);
        }
    }

    /// Leases as many jobs as there is free capacity for.
    async fn poll(&mut self) -> PollOutcome {
        while let Some(ended) = self.running.try_join_next_with_id() {
            self.finish_job(ended);
        }
        let free = self.concurrency.saturating_sub(self.running.len());
        if free == 0 {
            return PollOutcome::Full;
        }
        let (organization_max, held) = (organization_max(self.concurrency), self.held.counts_by_organization());
        let mut capacity =
            Capacity { free, organization_max, held, after: self.after.clone(), is_scan_incomplete: false };
        let Ok(leases) = self.app.lease_jobs(&mut capacity).await else {
            return PollOutcome::Failed;
        };
        self.after = capacity.after;
        self.empty_polls = if capacity.is_scan_incomplete && leases.is_empty() { self.empty_polls + 1 } else { 0 };
        for lease in leases {
            self.start_job(lease);
        }
        if capacity.free == 0 {
            return PollOutcome::Full;
        }
        if capacity.is_scan_incomplete && self.empty_polls < EMPTY_POLLS_MAX {
            return PollOutcome::Incomplete;
        }
        self.empty_polls = 0;
        self.app.next_job_due().await.map_or(PollOutcome::Failed, PollOutcome::Drained)
    }

    /// Waits until the next poll is useful.
    async fn wait(&mut self, poll: PollOutcome) {
        // At full capacity only the end of a job frees any.
        let (listen, due) = match poll {
            PollOutcome::Full => (false, None),
            PollOutcome::Incomplete => return,
            PollOutcome::Drained(due) => (true, due),
            // Notifications would only make us poll an unavailable database more often.
            PollOutcome::Failed => return pause(POLL_INTERVAL_MAX).await,
        };
        let app = self.app.clone();
        let is_busy = !self.running.is_empty();
        let ended = tokio::select! {
            Some(ended) = self.running.join_next_with_id(), if is_busy => Some(ended),
            () = app.jobs_enqueued(), if listen => None,
            () = until(&app, due), if listen => None,
            () = pause(POLL_INTERVAL_MAX), if listen => None,
        };
        if let Some(ended) = ended {
            self.finish_job(ended);
        }
    }

    fn start_job(&mut self, lease: Lease) {
        let held_lease = lease.clone();
        let span = tracing::info_span!(
            "job", job.id = %lease.id, job.kind = lease.kind.as_str(), organization.id = %lease.organization_id
        );
        let app = self.app.clone();
        let work = async move {
            let started = Instant::now();
            app.perform(&lease).await;
            metrics::histogram!("paybridge_job_seconds", "kind" => lease.kind.as_str()).record(started.elapsed());
        };
        // The lock is held over the spawn, so that a job cannot end before its lease is recorded.
        let mut held = self.held.lock();
        let task = self.running.spawn(work.instrument(span));
        held.insert(task.id(), held_lease);
        metrics::gauge!("paybridge_jobs_running").increment(1);
    }

    fn finish_job(&self, ended: Result<(Id, ()), JoinError>) {
        metrics::gauge!("paybridge_jobs_running").decrement(1);
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
        let lease = self.held.lock().remove(&id);
        if let Err(error) = ended {
            let job = lease.map(|lease| lease.id.to_string()).unwrap_or_default();
            tracing::error!(
                job.id = job,
                "a job panicked; its lease will expire and it will be started again: {error}"
            );
        }
    }
}

/// Waits until `due`, or for ever if nothing is due.
async fn until(app: &App, due: Option<OffsetDateTime>) {
    match due {
        Some(due) => {
            tokio::join!(app.clock().sleep_until(due), pause(POLL_INTERVAL_MIN));
        }
        None => pending().await,
    }
}
