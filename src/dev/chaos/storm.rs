//! The storm: everything that goes wrong on purpose, each kind in a task of its own, each by its own seeded chance, until
//! it is told to stop. Then nothing is left broken: processes go on, Postgres is up, Stripe answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::callers::Organization;
use super::database::Database;
use super::pause;
use super::proxy::Proxy;
use super::replicas::Replicas;
use crate::dev::rng::Rng;
use crate::dev::sandbox::{Action, Effect, Fault, Sandbox, WebhookAction, WebhookFault};
use crate::grpc::proto::RotateIntegrationKeyRequest;

/// How long a kind of trouble at Stripe lasts before another takes its place.
const SPELL: Duration = Duration::from_secs(2);
/// The kinds of trouble at Stripe at the same time.
const KINDS_AT_ONCE: usize = 4;

/// Why Stripe says 429; the last one is a code and no limit.
const REASONS: [&str; 6] =
    ["global-rate", "endpoint-rate", "global-concurrency", "endpoint-concurrency", "resource-specific", "lock_timeout"];
/// How long a new key may take to be accepted, before it is given in again.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What it has done so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub kills: AtomicU64,
    pub stops: AtomicU64,
    pub postgres: AtomicU64,
    pub cuts: AtomicU64,
    pub outages: AtomicU64,
    pub keys: AtomicU64,
}

/// What it rages over.
pub(super) struct Storm {
    pub seed: u64,
    /// How many of a hundred requests to Stripe go wrong.
    pub faults: u8,
    /// How far apart kills are; zero for none, of Postgres neither.
    pub kill_every: Duration,
    pub clock_speed: u32,
    pub replicas: Replicas,
    pub database: Arc<Database>,
    pub sandbox: Sandbox,
    /// To Stripe, and from Stripe's webhooks.
    pub stripe: Proxy,
    pub webhooks: Proxy,
    pub organizations: Vec<Arc<Organization>>,
    pub counts: Arc<Counts>,
}

impl Storm {
    /// Rages until `stop` is cancelled, and returns once everything is whole again, but for a trap that may still be set.
    pub async fn rage(self: Arc<Self>, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        if !self.kill_every.is_zero() {
            // One of them dies at points of the code, again and again, besides the kills that strike all alike.
            self.replicas.all[0].set_traps(Some(Rng::named(self.seed, "traps")));
            tasks.spawn(Arc::clone(&self).kill(stop.clone()));
            tasks.spawn(Arc::clone(&self).crash_postgres(stop.clone()));
        }
        if self.faults > 0 {
            tasks.spawn(Arc::clone(&self).cut(stop.clone()));
            tasks.spawn(Arc::clone(&self).trouble_stripe(stop.clone()));
            tasks.spawn(Arc::clone(&self).revoke_keys(stop.clone()));
        }
        tasks.close();
        stop.cancelled().await;
        for replica in self.replicas.all.iter() {
            replica.signal(Signal::CONT);
        }
        // Whoever gives a new key in needs Stripe's answer to be through.
        while !tasks.is_empty() {
            self.sandbox.clear_faults();
            pause(Duration::from_millis(100)).await;
        }
        self.sandbox.clear_faults();
        for proxy in [&self.database.proxy, &self.stripe, &self.webhooks] {
            proxy.release();
        }
        for replica in self.replicas.all.iter() {
            replica.set_traps(None);
            replica.signal(Signal::CONT);
        }
    }

    /// Kills and stops processes.
    async fn kill(self: Arc<Self>, stop: CancellationToken) {
        let mut rng = Rng::named(self.seed, "kills");
        let every = u64::try_from(self.kill_every.as_millis()).unwrap_or(u64::MAX);
        loop {
            let wait = Duration::from_millis(rng.between(every / 2, every + every / 2));
            if waited(&stop, wait).await {
                return;
            }
            let replica = Arc::clone(rng.pick(&self.replicas.all));
            if rng.chance(20) {
                let period = Duration::from_millis(rng.between(1_000, 15_000));
                add(&self.counts.stops);
                replica.signal(Signal::STOP);
                let stop = stop.clone();
                tokio::spawn(async move {
                    waited(&stop, period).await;
                    replica.signal(Signal::CONT);
                });
                continue;
            }
            add(&self.counts.kills);
            if rng.chance(12) {
                // As a deployment does it: work in hand is finished or given back.
                replica.signal(Signal::TERM);
                continue;
            }
            replica.signal(Signal::KILL);
        }
    }

    /// Ends Postgres the hard way.
    async fn crash_postgres(self: Arc<Self>, stop: CancellationToken) {
        let mut rng = Rng::named(self.seed, "postgres");
        let mut wait = Duration::from_millis(rng.between(6_000, 12_000));
        while !waited(&stop, wait).await {
            let signal = if rng.chance(50) { Signal::QUIT } else { Signal::KILL };
            let down = Duration::from_millis(rng.between(0, 1_500));
            add(&self.counts.postgres);
            if let Err(error) = self.database.crash(signal, down).await {
                tracing::error!("Postgres could not be started again: {error:#}");
            }
            wait = Duration::from_millis(rng.between(30_000, 60_000));
        }
    }

    /// Cuts connections, or holds up what goes over them.
    async fn cut(self: Arc<Self>, stop: CancellationToken) {
        let mut rng = Rng::named(self.seed, "connections");
        let proxies = [&self.database.proxy, &self.stripe, &self.webhooks];
        while !waited(&stop, Duration::from_millis(rng.between(2_000, 6_000))).await {
            let proxy = rng.pick(&proxies);
            add(&self.counts.cuts);
            if rng.chance(60) {
                proxy.cut();
            } else {
                proxy.stall(Duration::from_millis(rng.between(300, 2_500))).await;
            }
        }
    }

    /// Revokes an account's key, as people do who fear that it is known; some seconds later Paybridge is given another
    /// one, and has to go on by itself.
    async fn revoke_keys(self: Arc<Self>, stop: CancellationToken) {
        let mut rng = Rng::named(self.seed, "keys");
        while !waited(&stop, Duration::from_millis(rng.between(10_000, 40_000))).await {
            let organization = rng.pick(&self.organizations);
            add(&self.counts.keys);
            let old = organization.keys().pop().unwrap_or_default();
            self.sandbox.revoke_key(&old);
            waited(&stop, Duration::from_millis(rng.between(1_000, 5_000))).await;
            let key = format!("sk_test_chaos{:016x}", rng.next());
            self.sandbox.add_key(&key, &organization.account, None);
            organization.add_key(&key);
            let request = RotateIntegrationKeyRequest { id: organization.integration.clone(), secret_key: key };
            let rotate = async |rng: &mut Rng| {
                let mut api = organization.any_api(rng).integrations;
                let asked = api.rotate_integration_key(request.clone());
                matches!(tokio::time::timeout(ANSWER_WITHIN, asked).await, Ok(Ok(_)))
            };
            // While Stripe fails the new key can't be checked; whoever gave it tries again.
            while !rotate(&mut rng).await {
                pause(Duration::from_millis(300)).await;
            }
        }
    }

    /// Lets Stripe fail: a few kinds of trouble at a time, and now and then all of it for some seconds.
    async fn trouble_stripe(self: Arc<Self>, stop: CancellationToken) {
        let mut rng = Rng::named(self.seed, "stripe");
        let mut until_outage = rng.between(4, 8);
        loop {
            self.sandbox.clear_faults();
            for fault in webhook_faults(self.faults) {
                self.sandbox.add_webhook_fault(fault);
            }
            let mut spell = SPELL;
            if until_outage == 0 {
                until_outage = rng.between(15, 30);
                add(&self.counts.outages);
                spell = Duration::from_millis(rng.between(3_000, 8_000));
                let action = if rng.chance(50) { Action::Unavailable } else { Action::Cut { work: Effect::NotDone } };
                self.sandbox.add_fault(Fault { times: None, action, ..Fault::default() });
            } else {
                until_outage -= 1;
                for fault in stripe_faults(&mut rng, self.faults, self.clock_speed) {
                    self.sandbox.add_fault(fault);
                }
            }
            if waited(&stop, spell).await {
                return;
            }
        }
    }
}

/// Some kinds of trouble, which together hit `percent` of a hundred requests.
fn stripe_faults(rng: &mut Rng, percent: u8, clock_speed: u32) -> Vec<Fault> {
    let too_long = u64::from(clock_speed) * rng.between(2_500, 4_000);
    let later = Effect::DoneLater { seconds: i64::try_from(rng.between(30, 1_200)).unwrap_or(30) };
    let mut limited = || Action::RateLimit { reason: (*rng.pick(&REASONS)).to_owned() };
    let kinds = [
        limited(),
        limited(),
        Action::ServerError { work: Effect::NotDone },
        Action::ServerError { work: Effect::Done },
        Action::ServerError { work: later },
        Action::Unavailable,
        Action::Cut { work: Effect::NotDone },
        Action::Cut { work: Effect::Done },
        Action::Cut { work: later },
        Action::Delay { milliseconds: too_long, after_work: false },
        Action::Delay { milliseconds: too_long, after_work: true },
    ];
    let share = |nth: usize| {
        let (all, nth) = (usize::from(percent), nth);
        u8::try_from(all / KINDS_AT_ONCE + usize::from(nth < all % KINDS_AT_ONCE)).unwrap_or(percent)
    };
    let fault = |nth| Fault { times: None, percent: share(nth), action: rng.pick(&kinds).clone(), ..Fault::default() };
    (0..KINDS_AT_ONCE).map(fault).filter(|fault| fault.percent > 0).collect()
}

/// Webhooks doubled, shuffled within minutes, delayed for many, and lost for good.
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

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// Waits; `true` if it was told to stop meanwhile.
async fn waited(stop: &CancellationToken, period: Duration) -> bool {
    tokio::select! {
        () = stop.cancelled() => true,
        () = pause(period) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_of_trouble_hit_as_many_as_they_should() {
        for percent in [0, 1, 2, 10, 50] {
            let faults = stripe_faults(&mut Rng::new(9), percent, 60);
            assert_eq!(faults.iter().map(|fault| fault.percent).sum::<u8>(), percent);
        }
    }
}
