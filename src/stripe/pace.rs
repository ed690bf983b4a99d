//! When a call may go. Every call of a known account waits here for its turn, for at most two seconds; a call that gets
//! none, or that would go into an outage, comes back unsent.
//!
//! The actors: [`ApiKey`] names the account and the organization that a call is for. [`Paces`] keeps an account's
//! [`Line`] and breaker, and the breaker for Stripe as a whole. Slots come from outside, through [`Client::lacking`] and
//! [`Client::supply`]: `app` takes them from where all replicas share them, because this room knows no database.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration as RealDuration;

use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use time::{Duration, OffsetDateTime};
use tokio::sync::Notify;
use uuid::Uuid;

use super::client::{Call, Client};
use super::error::{Error, Hold, RateLimit};
use crate::clock::Clock;
use crate::domain::OrganizationId;
use crate::domain::limits::{
    Breaker, BucketId, Lacking, Limits, Line, Outage, Priority, Slots, Turn, WHOLE_ACCOUNT, Waiting,
};

/// How long a call waits for its turn at most, real time.
pub const TURN_WITHIN: RealDuration = RealDuration::from_secs(2);

/// An account that nobody has called for so long is forgotten, real time.
const IDLE_AFTER: RealDuration = RealDuration::from_mins(5);

/// A secret API key, and how fast calls with it may follow each other.
#[derive(Clone, Debug)]
pub struct ApiKey {
    secret: SecretString,
    pace: Option<Pace>,
}

#[derive(Clone, Debug)]
struct Pace {
    account: Arc<Account>,
    owner: Uuid,
}

impl ApiKey {
    /// A key whose account is not known yet. Its calls wait for nobody, so it is for the few calls that find that out.
    pub fn unpaced(secret: SecretString) -> Self {
        Self { secret, pace: None }
    }
}

impl ExposeSecret<str> for ApiKey {
    fn expose_secret(&self) -> &str {
        self.secret.expose_secret()
    }
}

/// All accounts that this process calls.
#[derive(Debug)]
pub(super) struct Paces {
    clock: Clock,
    limits: Limits,
    accounts: Mutex<HashMap<(String, bool), Arc<Account>>>,
    outage: Mutex<Outage>,
    /// Somebody waits for slots.
    wanted: Notify,
}

#[derive(Debug)]
struct Account {
    id: String,
    livemode: bool,
    line: Mutex<Line>,
    breaker: Mutex<Breaker>,
    /// Somebody has left the line, or slots have come.
    changed: Notify,
    used: Mutex<OffsetDateTime>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Random, from 0 to 1.
pub(super) fn chance() -> f64 {
    getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX))
}

impl Client {
    /// A key whose calls keep within the account's limits; `org` is who they are for.
    pub fn key(&self, secret: SecretString, account: &str, livemode: bool, org: OrganizationId) -> ApiKey {
        ApiKey { secret, pace: Some(Pace { account: self.paces.account(account, livemode), owner: org.0 }) }
    }

    /// The limits that are kept.
    pub fn limits(&self) -> Limits {
        self.paces.limits
    }

    /// Returns once calls wait for slots.
    pub async fn slots_wanted(&self) {
        self.paces.wanted.notified().await;
    }

    /// The buckets whose slots calls wait for, in the order of their ids. What is told of refusals is told once.
    pub fn lacking(&self) -> Vec<Lacking> {
        self.paces.lacking()
    }

    /// Hands out slots that were taken for `bucket`.
    pub fn supply(&self, bucket: &BucketId, slots: Slots) {
        let account = self.paces.account(&bucket.account, bucket.livemode);
        lock(&account.line).supply(&bucket.endpoint, slots);
        account.changed.notify_waiters();
    }
}

impl Paces {
    pub fn new(clock: Clock, limits: Limits) -> Self {
        Self { clock, limits, accounts: Mutex::default(), outage: Mutex::default(), wanted: Notify::new() }
    }

    fn account(&self, id: &str, livemode: bool) -> Arc<Account> {
        let mut accounts = lock(&self.accounts);
        let account = accounts.entry((id.to_owned(), livemode)).or_insert_with(|| {
            Arc::new(Account {
                id: id.to_owned(),
                livemode,
                line: Mutex::new(Line::new(self.limits.counts_endpoints(livemode))),
                breaker: Mutex::default(),
                changed: Notify::new(),
                used: Mutex::new(self.clock.now()),
            })
        });
        *lock(&account.used) = self.clock.now();
        account.clone()
    }

    fn lacking(&self) -> Vec<Lacking> {
        let idle_since = self.clock.now() - self.clock.shown(IDLE_AFTER);
        let mut accounts = lock(&self.accounts);
        accounts.retain(|_, account| Arc::strong_count(account) > 1 || *lock(&account.used) > idle_since);
        let mut all = Vec::new();
        for account in accounts.values() {
            for (endpoint, wanted, was_refused) in lock(&account.line).lacks() {
                let bucket = BucketId { account: account.id.clone(), livemode: account.livemode, endpoint };
                all.push(Lacking { bucket, wanted, was_refused });
            }
        }
        drop(accounts);
        all.sort_by(|a, b| a.bucket.cmp(&b.bucket));
        all
    }

    /// Waits for the turn of a call. An error means that it must not be sent now.
    pub async fn turn(self: &Arc<Self>, key: &ApiKey, call: &Call<'_>) -> Result<Permit, Error> {
        let endpoint = format!("{} {}", call.method, call.route);
        let mut permit = Permit {
            paces: self.clone(),
            account: None,
            endpoint,
            is_probe: false,
            is_outage_probe: false,
            was_told: false,
        };
        let held_until = lock(&self.outage).held_until(self.clock.now());
        if let Some(pace) = &key.pace {
            let account = &pace.account;
            let held_until = held_until.max(lock(&account.breaker).held_until(self.clock.now()));
            if let Some(until) = held_until {
                return Err(self.not_now(pace, Hold::Outage, until));
            }
            let waiting = Waiting { priority: priority(call), owner: pace.owner, endpoint: permit.endpoint.clone() };
            let place = InLine::join(account, waiting);
            if tokio::time::timeout(TURN_WITHIN, self.until_turn(account, place.number)).await.is_err() {
                drop(place);
                return Err(self.not_now(pace, Hold::Limit, self.clock.now() + Duration::SECOND));
            }
            permit.account = Some(account.clone());
            let admitted = lock(&account.breaker).admit(self.clock.now());
            permit.is_probe = admitted.map_err(|until| self.not_now(pace, Hold::Outage, until))?;
        }
        let admitted = lock(&self.outage).admit(self.clock.now());
        permit.is_outage_probe = match (admitted, &key.pace) {
            (Ok(is_probe), _) => is_probe,
            (Err(until), Some(pace)) => return Err(self.not_now(pace, Hold::Outage, until)),
            (Err(until), None) => return Err(Error::not_now(Hold::Outage, until - self.clock.now())),
        };
        Ok(permit)
    }

    async fn until_turn(&self, account: &Account, number: u64) {
        loop {
            let changed = account.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let turn = lock(&account.line).turn(number, self.clock.now());
            if turn == Turn::Now {
                return;
            }
            self.wanted.notify_one();
            match turn {
                Turn::At(at) => {
                    tokio::select! {
                        () = changed => {}
                        () = self.clock.sleep_until(at) => {}
                    }
                }
                _ => changed.await,
            }
        }
    }

    /// A call comes back unsent. Calls of one organization are told to come again one after the other, as fast as the
    /// account takes them.
    fn not_now(&self, pace: &Pace, hold: Hold, from: OffsetDateTime) -> Error {
        let rate = self.limits.rate(pace.account.livemode, WHOLE_ACCOUNT).min(self.limits.endpoint);
        let at = lock(&pace.account.line).place(pace.owner, from, Duration::seconds_f64(1.0 / rate));
        metrics::counter!("paybridge_stripe_unsent_total", "reason" => hold.as_str()).increment(1);
        Error::not_now(hold, at - self.clock.now())
    }
}

/// What is nearly done comes before what is begun, and what somebody may wait for before reads.
fn priority(call: &Call<'_>) -> Priority {
    match (call.method == Method::GET, call.route) {
        (true, _) => Priority::Read,
        (false, route) if route.ends_with("/confirm") => Priority::Confirm,
        (false, "/v1/payment_intents" | "/v1/refunds") => Priority::Create,
        (false, _) => Priority::Interactive,
    }
}

/// A place in an account's line, given up when it is dropped: a caller that goes away holds nobody up.
struct InLine {
    account: Arc<Account>,
    number: u64,
}

impl InLine {
    fn join(account: &Arc<Account>, waiting: Waiting) -> Self {
        let number = lock(&account.line).join(waiting);
        Self { account: account.clone(), number }
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        lock(&self.account.line).leave(self.number);
        self.account.changed.notify_waiters();
    }
}

/// What an answer, or its absence, says about Stripe and its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Stripe answers.
    Answer,
    /// It does not, or with an error of its own.
    Failure,
    /// It has turned the call away.
    Limit(RateLimit),
}

/// The right to send once.
pub(super) struct Permit {
    paces: Arc<Paces>,
    /// The account in whose line it stood, if it did.
    account: Option<Arc<Account>>,
    endpoint: String,
    is_probe: bool,
    is_outage_probe: bool,
    was_told: bool,
}

impl Permit {
    /// Tells how the call ended.
    pub fn tell(mut self, heard: Heard) {
        self.was_told = true;
        let now = self.paces.clock.now();
        let failed = heard == Heard::Failure;
        let name = self.account.as_ref().map_or("", |account| account.id.as_str());
        lock(&self.paces.outage).record(now, name, failed, self.is_outage_probe, chance());
        let Some(account) = &self.account else { return };
        lock(&account.breaker).record(now, failed, self.is_probe, chance(), true);
        let Heard::Limit(limit) = heard else { return };
        let mut line = lock(&account.line);
        match limit {
            RateLimit::GlobalRate => line.refused(WHOLE_ACCOUNT),
            RateLimit::EndpointRate | RateLimit::Unnamed => line.refused(&self.endpoint),
            RateLimit::GlobalConcurrency | RateLimit::EndpointConcurrency => line.crowded(now),
            // One object's limit says nothing about others.
            RateLimit::ResourceSpecific => return,
        }
        drop(line);
        self.paces.wanted.notify_one();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = self.paces.clock.now();
        if self.is_outage_probe && !self.was_told {
            lock(&self.paces.outage).forget_probe(now);
        }
        let Some(account) = &self.account else { return };
        if self.is_probe && !self.was_told {
            lock(&account.breaker).forget_probe(now);
        }
        lock(&account.line).end();
        account.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
