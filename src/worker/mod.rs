//! Door 3: durable work. A lease on a job comes in from the database, the job is handed to `app`, which ends it or gives
//! it back by itself.
//!
//! Two loops share what this process holds. The *taker* leases as many jobs as there are free places and runs each in a
//! task of its own; it looks again when a job has ended, when jobs were asked for, when the next one is due, and at the
//! latest after a second. The *renewer* prolongs all leases that are held, in one call, three times in the length of a
//! lease, however long a call to Stripe takes. A lease that was lost all the same harms nobody: the job may go on, but
//! whatever it writes shows the lease's epoch and is refused (P8). Beside them run the *timers*.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::app::{App, LEASE_PERIOD};
use crate::clock::pause;
use crate::domain::OrganizationId;
use crate::domain::jobs::{Lane, Lease, Room};

#[cfg(test)]
#[cfg(feature = "dev")]
mod tests;
mod timers;

/// How long no look is taken at most, real time: the net under lost hints and under a database that was away.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

/// How long no look is taken at least where a job has become due since the last one, real time: there may be more of them
/// than one look moves.
const LOOK_AFTER: Duration = Duration::from_millis(10);

/// How many looks in a row may end before they have gone round, and without a job, before the next one waits.
const BARREN_MAX: usize = 20;

/// How often leases that have run out are looked for, real time.
const LAPSED_AFTER: Duration = Duration::from_secs(1);

/// The least pause between renewals, real time, however fast the clock runs.
const RENEW_AFTER: Duration = Duration::from_millis(10);

/// Runs the timers, and leases jobs and runs them, 1 to `concurrency` at once, until `stopping` is cancelled. Then takes
/// no more, waits for those in hand, in real time at most `within`, and gives back what is left. Dropping it drops all:
/// the leases run out, and the jobs are begun again elsewhere.
pub async fn run(app: App, concurrency: usize, stopping: CancellationToken, within: Duration) {
    let held = Held::default();
    let taker = Taker {
        app: app.clone(),
        concurrency,
        held: held.clone(),
        running: JoinSet::new(),
        after: Lane::start(),
        barren: 0,
    };
    let timers = async {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = timers::run(&app) => {}
        }
        pending::<()>().await;
    };
    let overdue = async {
        stopping.cancelled().await;
        pause(within).await;
    };
    tokio::select! {
        () = taker.run(&stopping) => return,
        () = renew(&app, &held) => {}
        () = free_lapsed(&app) => {}
        () = timers => {}
        () = overdue => {}
    }
    let left = held.all();
    tracing::warn!(jobs = left.len(), "jobs were not finished in time: giving them back");
    if let Err(error) = app.give_up_leases(&left).await {
        tracing::warn!(%error, "jobs could not be given back; their leases will run out");
    }
}

/// The leases of this process, by the task that works on each.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<HashMap<Id, Lease>>>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Job and epoch of each.
    fn all(&self) -> Vec<(Uuid, i64)> {
        self.lock().values().map(|lease| (lease.id.0, lease.epoch)).collect()
    }

    /// How many places each organization's jobs have.
    fn places(&self) -> HashMap<OrganizationId, usize> {
        let mut places = HashMap::new();
        for lease in self.lock().values() {
            *places.entry(lease.organization_id).or_default() += 1;
        }
        places
    }

    /// Forgets what was lost among `asked`: all that is not in `ours`. Returns how many that were; those that ended
    /// meanwhile don't count.
    fn keep(&self, asked: &[(Uuid, i64)], ours: &[Uuid]) -> usize {
        let mut held = self.lock();
        let before = held.len();
        held.retain(|_, lease| !asked.contains(&(lease.id.0, lease.epoch)) || ours.contains(&lease.id.0));
        before - held.len()
    }
}

/// Prolongs what is held, for ever.
async fn renew(app: &App, held: &Held) {
    let period = (app.clock().real(LEASE_PERIOD) / 3).max(RENEW_AFTER);
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = held.all();
        if asked.is_empty() {
            continue;
        }
        match app.renew_leases(&asked).await {
            Ok(ours) => {
                let lost = held.keep(&asked, &ours);
                if lost > 0 {
                    // A job that ended in this very moment looks like this, too; the job itself tells if it was stopped.
                    tracing::debug!(lost, "leases are no longer ours");
                }
            }
            Err(error) if error.is_database_away() => {}
            Err(error) => tracing::warn!(%error, held = asked.len(), "leases could not be renewed; trying again"),
        }
    }
}

/// Frees leases that have run out, for ever.
async fn free_lapsed(app: &App) {
    loop {
        match app.free_lapsed_leases().await {
            Ok(true) => {}
            Ok(false) => pause(LAPSED_AFTER).await,
            Err(error) => {
                tracing::debug!(%error, "leases that have run out could not be freed; trying again");
                pause(LAPSED_AFTER).await;
            }
        }
    }
}

/// The most places of `concurrency` that one organization's jobs may take: a quarter is left to others, however slow
/// Stripe is for that one.
fn organization_max(concurrency: usize) -> usize {
    (concurrency - concurrency / 4).max(1)
}

/// What the last look found.
enum Look {
    /// As many as there were places: there may be more.
    Full,
    /// Not all lanes were come to yet.
    CutShort,
    /// All that were due, but for those of an organization that has all the places it may have. When the next scheduled
    /// one is due, if there is one.
    Drained(Option<OffsetDateTime>),
    /// The database did not answer.
    Failed,
}

struct Taker {
    app: App,
    concurrency: usize,
    held: Held,
    running: JoinSet<()>,
    /// The lane that had the last turn.
    after: Lane,
    /// How many looks in a row were cut short without a job.
    barren: usize,
}

impl Taker {
    async fn run(mut self, stopping: &CancellationToken) {
        while !stopping.is_cancelled() {
            let look = self.look().await;
            tokio::select! {
                () = stopping.cancelled() => {}
                () = self.wait(look) => {}
            }
        }
        if !self.running.is_empty() {
            tracing::info!(jobs = self.running.len(), "the worker takes no more jobs and finishes those in hand");
        }
        while let Some(ended) = self.running.join_next_with_id().await {
            self.end(ended);
        }
    }

    /// Takes as many jobs as there are free places.
    async fn look(&mut self) -> Look {
        while let Some(ended) = self.running.try_join_next_with_id() {
            self.end(ended);
        }
        let free = self.concurrency.saturating_sub(self.running.len());
        if free == 0 {
            return Look::Full;
        }
        let (organization_max, held) = (organization_max(self.concurrency), self.held.places());
        let mut room = Room { free, organization_max, held, after: self.after.clone(), is_cut_short: false };
        let Ok(leases) = self.app.lease_jobs(&mut room).await else {
            return Look::Failed;
        };
        self.after = room.after;
        self.barren = if room.is_cut_short && leases.is_empty() { self.barren + 1 } else { 0 };
        for lease in leases {
            self.start(lease);
        }
        if room.free == 0 {
            return Look::Full;
        }
        if room.is_cut_short && self.barren < BARREN_MAX {
            return Look::CutShort;
        }
        self.barren = 0;
        self.app.next_job_due().await.map_or(Look::Failed, Look::Drained)
    }

    /// Until the next look makes sense.
    async fn wait(&mut self, look: Look) {
        // When all places are taken, only the end of a job makes room.
        let (listen, due) = match look {
            Look::Full => (false, None),
            Look::CutShort => return,
            Look::Drained(due) => (true, due),
            // Hints would only make us ask a database that is away more often.
            Look::Failed => return pause(LOOK_WITHIN).await,
        };
        let app = self.app.clone();
        let is_busy = !self.running.is_empty();
        let ended = tokio::select! {
            Some(ended) = self.running.join_next_with_id(), if is_busy => Some(ended),
            () = app.jobs_asked(), if listen => None,
            () = until(&app, due), if listen => None,
            () = pause(LOOK_WITHIN), if listen => None,
        };
        if let Some(ended) = ended {
            self.end(ended);
        }
    }

    fn start(&mut self, lease: Lease) {
        let kept = lease.clone();
        let span = tracing::info_span!(
            "job", job.id = %lease.id, job.kind = lease.kind.as_str(), organization.id = %lease.organization_id
        );
        let app = self.app.clone();
        let work = async move {
            let started = Instant::now();
            app.perform(&lease).await;
            metrics::histogram!("paybridge_job_seconds", "kind" => lease.kind.as_str()).record(started.elapsed());
        };
        // The lock is held over the spawn, so that a job can't end before it is known to be held.
        let mut held = self.held.lock();
        let task = self.running.spawn(work.instrument(span));
        held.insert(task.id(), kept);
        metrics::gauge!("paybridge_jobs_running").increment(1);
    }

    fn end(&self, ended: Result<(Id, ()), JoinError>) {
        metrics::gauge!("paybridge_jobs_running").decrement(1);
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
        let lease = self.held.lock().remove(&id);
        if let Err(error) = ended {
            let job = lease.map(|lease| lease.id.to_string()).unwrap_or_default();
            tracing::error!(job.id = job, "a job panicked; its lease will run out, and it is begun again: {error}");
        }
    }
}

/// Until the clock shows `due`, if anything is due at all.
async fn until(app: &App, due: Option<OffsetDateTime>) {
    match due {
        Some(due) => {
            tokio::join!(app.clock().sleep_until(due), pause(LOOK_AFTER));
        }
        None => pending().await,
    }
}
