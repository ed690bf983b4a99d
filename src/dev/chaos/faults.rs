//! The fault injector, what Jepsen calls the nemesis. Each kind of fault runs in a task of its own with its own seeded
//! random numbers. After a stop nothing stays broken: processes run, Postgres is up, Stripe responds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::callers::Organization;
use super::database::Database;
use super::proxy::Proxy;
use super::replicas::Replicas;
use super::workload::Workload;
use crate::clock::pause;
use crate::dev::rng::Rng;
use crate::dev::sandbox::{Action, Effect, Fault, Sandbox, WebhookAction, WebhookFault};
use crate::grpc::proto::RotateIntegrationKeyRequest;

/// How long a set of Stripe faults lasts before the next one.
const FAULT_PERIOD: Duration = Duration::from_secs(2);
/// The number of kinds of Stripe faults at the same time.
const KINDS_AT_ONCE: usize = 4;

/// The reasons of a 429. The last one is an error code and not a rate limit.
const REASONS: [&str; 6] =
    ["global-rate", "endpoint-rate", "global-concurrency", "endpoint-concurrency", "resource-specific", "lock_timeout"];
/// The timeout of a key rotation, which is then repeated.
const ROTATION_TIMEOUT: Duration = Duration::from_secs(5);

/// The number of faults injected so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub kills: AtomicU64,
    pub stops: AtomicU64,
    pub postgres: AtomicU64,
    pub cuts: AtomicU64,
    pub outages: AtomicU64,
    pub keys: AtomicU64,
    pub restorations: AtomicU64,
}

/// Injects faults into a running system.
pub(super) struct FaultInjector {
    pub seed: u64,
    /// The percentage of requests to Stripe that fail.
    pub faults: u8,
    /// The mean interval of kills, in real time. Zero kills nothing, nor does it crash Postgres.
    pub kill_every: Duration,
    /// The mean interval of restorations of the database, in real time. Zero restores nothing.
    pub restore_every: Duration,
    pub clock_speed: u32,
    pub replicas: Replicas,
    pub database: Arc<Database>,
    pub sandbox: Sandbox,
    /// The proxies to Stripe, and from Stripe to the webhook endpoint.
    pub stripe: Proxy,
    pub webhooks: Proxy,
    pub organizations: Vec<Arc<Organization>>,
    /// The callers, who repeat what a restoration loses.
    pub workload: Arc<Workload>,
    pub counts: Arc<Counts>,
}

impl FaultInjector {
    /// Injects faults until `stop` is cancelled. Returns when everything is repaired, except a failpoint that may
    /// still be set.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        if !self.kill_every.is_zero() {
            // The first replica also crashes at failpoints, again and again.
            self.replicas.all[0].set_failpoints(Some(Rng::named(self.seed, "traps")));
            tasks.spawn(Arc::clone(&self).kill_replicas(stop.clone()));
            tasks.spawn(Arc::clone(&self).crash_postgres(stop.clone()));
        }
        if self.faults > 0 {
            tasks.spawn(Arc::clone(&self).cut_connections(stop.clone()));
            tasks.spawn(Arc::clone(&self).inject_stripe_faults(stop.clone()));
            tasks.spawn(Arc::clone(&self).revoke_keys(stop.clone()));
        }
        if !self.restore_every.is_zero() {
            tasks.spawn(Arc::clone(&self).restore_database(stop.clone()));
        }
        tasks.close();
        stop.cancelled().await;
        for replica in self.replicas.all.iter() {
            replica.signal(Signal::CONT);
        }
        // A pending key rotation needs a response from Stripe to finish.
        while !tasks.is_empty() {
            self.sandbox.clear_faults();
            pause(Duration::from_millis(100)).await;
        }
        self.sandbox.clear_faults();
        for proxy in [&self.database.proxy, &self.stripe, &self.webhooks] {
            proxy.release();
        }
        for replica in self.replicas.all.iter() {
            replica.set_failpoints(None);
            replica.signal(Signal::CONT);
        }
    }

    /// Kills and pauses processes.
    async fn kill_replicas(self: Arc<Self>, stop: CancellationToken) {
        let mut rng = Rng::named(self.seed, "kills");
        let every = u64::try_from(self.kill_every.as_millis()).unwrap_or(u64::MAX);
        loop {
            let wait = Duration::from_millis(rng.between(every / 2, every + every / 2));
            if stopped_within(&stop, wait).await {
                return;
            }
            let replica = Arc::clone(rng.pick(&self.replicas.all));
            if rng.chance(20) {
                let period = Duration::from_millis(rng.between(1_000, 15_000));
                increment(&self.counts.stops);
                replica.signal(Signal::STOP);
                let stop = stop.clone();
                tokio::spawn(async move {
                    stopped_within(&stop, period).await;
                    replica.signal(Signal::CONT);
                });
                continue;
            }
            increment(&self.counts.kills);
            if rng.chance(12) {
                // As a deployment does: work in progress is finished or released.
                replica.signal(Signal::TERM);
                continue;
            }
            replica.signal(Signal::KILL);
        }
    }

    /// Crashes Postgres.
    async fn crash_postgres(self: Arc<Self>, stop: CancellationToken) {
        let mut rng = Rng::named(self.seed, "postgres");
        let mut wait = Duration::from_millis(rng.between(6_000, 12_000));
        while !stopped_within(&stop, wait).await {
            let signal = if rng.chance(50) { Signal::QUIT } else { Signal::KILL };
            let downtime = Duration::from_millis(rng.between(0, 1_500));
            increment(&self.counts.postgres);
            if let Err(error) = self.database.crash(signal, downtime).await {
                tracing::error!("Postgres could not be restarted: {error:#}");
            }
            wait = Duration::from_millis(rng.between(30_000, 60_000));
        }
    }

    /// Cuts connections, or stalls them.
    async fn cut_connections(self: Arc<Self>, stop: CancellationToken) {
        let mut rng = Rng::named(self.seed, "connections");
        let proxies = [&self.database.proxy, &self.stripe, &self.webhooks];
        while !stopped_within(&stop, Duration::from_millis(rng.between(2_000, 6_000))).await {
            let proxy = rng.pick(&proxies);
            increment(&self.counts.cuts);
            if rng.chance(60) {
                proxy.cut();
            } else {
                proxy.stall(Duration::from_millis(rng.between(300, 2_500))).await;
            }
        }
    }

    /// Revokes an account's key, as after a leak. Some seconds later Paybridge gets a new one and has to resume on its
    /// own.
    async fn revoke_keys(self: Arc<Self>, stop: CancellationToken) {
        let mut rng = Rng::named(self.seed, "keys");
        while !stopped_within(&stop, Duration::from_millis(rng.between(10_000, 40_000))).await {
            let organization = rng.pick(&self.organizations);
            increment(&self.counts.keys);
            let old = organization.keys().pop().unwrap_or_default();
            self.sandbox.revoke_key(&old);
            stopped_within(&stop, Duration::from_millis(rng.between(1_000, 5_000))).await;
            let key = format!("sk_test_chaos{:016x}", rng.next());
            self.sandbox.add_key(&key, &organization.account, None);
            organization.add_key(&key);
            let request = RotateIntegrationKeyRequest { id: organization.integration.clone(), secret_key: key };
            let rotate = async |rng: &mut Rng| {
                let mut api = organization.any_api(rng).integrations;
                let requested = api.rotate_integration_key(request.clone());
                matches!(tokio::time::timeout(ROTATION_TIMEOUT, requested).await, Ok(Ok(_)))
            };
            // While Stripe fails, the new key cannot be verified, so the rotation is repeated.
            while !rotate(&mut rng).await {
                pause(Duration::from_millis(300)).await;
            }
        }
    }

    /// Makes Stripe fail: a few kinds of faults at a time, and now and then an outage of some seconds.
    async fn inject_stripe_faults(self: Arc<Self>, stop: CancellationToken) {
        let mut rng = Rng::named(self.seed, "stripe");
        let mut fault_periods_to_outage = rng.between(4, 8);
        loop {
            self.sandbox.clear_faults();
            for fault in webhook_faults(self.faults) {
                self.sandbox.add_webhook_fault(fault);
            }
            let mut fault_period = FAULT_PERIOD;
            if fault_periods_to_outage == 0 {
                fault_periods_to_outage = rng.between(15, 30);
                increment(&self.counts.outages);
                fault_period = Duration::from_millis(rng.between(3_000, 8_000));
                let action = if rng.chance(50) { Action::Unavailable } else { Action::Cut { work: Effect::NotDone } };
                self.sandbox.add_fault(Fault { times: None, action, ..Fault::default() });
            } else {
                fault_periods_to_outage -= 1;
                for fault in stripe_faults(&mut rng, self.faults, self.clock_speed) {
                    self.sandbox.add_fault(fault);
                }
            }
            if stopped_within(&stop, fault_period).await {
                return;
            }
        }
    }
}

/// A few kinds of Stripe faults, which together affect `percent` of a hundred requests.
fn stripe_faults(rng: &mut Rng, percent: u8, clock_speed: u32) -> Vec<Fault> {
    let beyond_timeout = u64::from(clock_speed) * rng.between(2_500, 4_000);
    let done_later = Effect::DoneLater { seconds: i64::try_from(rng.between(30, 1_200)).unwrap_or(30) };
    let mut limited = || Action::RateLimit { reason: (*rng.pick(&REASONS)).to_owned() };
    let kinds = [
        limited(),
        limited(),
        Action::ServerError { work: Effect::NotDone },
        Action::ServerError { work: Effect::Done },
        Action::ServerError { work: done_later },
        Action::Unavailable,
        Action::Cut { work: Effect::NotDone },
        Action::Cut { work: Effect::Done },
        Action::Cut { work: done_later },
        Action::Delay { milliseconds: beyond_timeout, after_work: false },
        Action::Delay { milliseconds: beyond_timeout, after_work: true },
    ];
    let share = |nth: usize| {
        let (all, nth) = (usize::from(percent), nth);
        u8::try_from(all / KINDS_AT_ONCE + usize::from(nth < all % KINDS_AT_ONCE)).unwrap_or(percent)
    };
    let fault = |nth| Fault { times: None, percent: share(nth), action: rng.pick(&kinds).clone(), ..Fault::default() };
    (0..KINDS_AT_ONCE).map(fault).filter(|fault| fault.percent > 0).collect()
}

/// Webhooks duplicated, reordered within minutes, delayed, and lost.
fn webhook_faults(lost_percent: u8) -> Vec<WebhookFault> {
    let every = |percent, action| WebhookFault { times: None, percent, action, ..WebhookFault::default() };
    vec![
        every(8, WebhookAction::Double),
        every(30, WebhookAction::Shuffle { within_milliseconds: 2 * 60_000 }),
        every(4, WebhookAction::Delay { milliseconds: 10 * 60_000 }),
        every(1, WebhookAction::Delay { milliseconds: 45 * 60_000 }),
        every(lost_percent, WebhookAction::Lose),
    ]
}

pub(super) fn increment(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// Waits. Returns `true` if it was stopped meanwhile.
pub(super) async fn stopped_within(stop: &CancellationToken, period: Duration) -> bool {
    tokio::select! {
        () = stop.cancelled() => true,
        () = pause(period) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripe_faults_add_up_to_the_percentage() {
        for percent in [0, 1, 2, 10, 50] {
            let faults = stripe_faults(&mut Rng::new(9), percent, 60);
            assert_eq!(faults.iter().map(|fault| fault.percent).sum::<u8>(), percent);
        }
    }
}
