//! Client-side rate limiting.
//!
//! Every call for a known account acquires a [`Permit`] from the account's fair queue, for at most two seconds. A call
//! that gets none, that would be sent into an outage, or that a read-only key does not permit, returns unsent.
//!
//! [`ApiKey`] names the account and the organization of a call. [`RateLimiters`] holds each account's [`FairQueue`] and
//! circuit breaker, and the breaker for Stripe as a whole. Slots come from `app` through [`RateLimiters::demand`] and
//! [`RateLimiters::supply`]: they are shared by all replicas through the database, which this module does not know.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration as RealDuration;

use parking_lot::Mutex;
use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use time::{Duration, OffsetDateTime};
use tokio::sync::Notify;
use uuid::Uuid;

use super::call::Call;
use super::error::{Error, RateLimit, UnsentCause};
use super::random::random_fraction;
use crate::clock::Clock;
use crate::domain::OrganizationId;
use crate::domain::limits::{
    Admission, Breaker, BucketId, Demand, EndedCall, FairQueue, Limits, Priority, QueuedCall, SharedBreaker, Slots,
    WHOLE_ACCOUNT,
};

/// When a call that an integration's catching up holds back is retried, in the clock's time.
const CATCH_UP_DELAY: Duration = Duration::seconds(10);

/// The longest wait for a permit, real time.
pub const ACQUIRE_TIMEOUT: RealDuration = RealDuration::from_secs(2);

/// The time after which an account without calls is forgotten, real time.
const IDLE_TIMEOUT: RealDuration = RealDuration::from_mins(5);

/// A secret API key and the account whose rate limits its calls obey.
#[derive(Clone, Debug)]
pub struct ApiKey {
    secret: SecretString,
    caller: Option<AccountCaller>,
    is_read_only: bool,
}

#[derive(Clone, Debug)]
struct AccountCaller {
    account: Arc<Account>,
    organization: Uuid,
}

impl ApiKey {
    /// A key whose account is unknown. Its calls are not limited, so it is only for the few calls that find the
    /// account.
    pub fn unlimited(secret: SecretString) -> Self {
        Self { secret, caller: None, is_read_only: false }
    }

    /// The key of an integration that catches up with Stripe: every call with it but a GET returns unsent.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { is_read_only: true, ..self }
    }
}

impl ExposeSecret<str> for ApiKey {
    fn expose_secret(&self) -> &str {
        self.secret.expose_secret()
    }
}

/// The rate limiters of all accounts that this process calls.
#[derive(Debug)]
pub struct RateLimiters {
    clock: Clock,
    limits: Limits,
    accounts: Mutex<HashMap<(String, bool), Arc<Account>>>,
    outage: Mutex<SharedBreaker>,
    /// Notified when calls wait for slots.
    wanted: Notify,
}

#[derive(Debug)]
struct Account {
    id: String,
    livemode: bool,
    queue: Mutex<FairQueue>,
    breaker: Mutex<Breaker>,
    /// Notified when a call has left the queue or slots have arrived.
    changed: Notify,
    last_used: Mutex<OffsetDateTime>,
}

impl RateLimiters {
    pub(super) fn new(clock: Clock, limits: Limits) -> Self {
        Self { clock, limits, accounts: Mutex::default(), outage: Mutex::default(), wanted: Notify::new() }
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// A key whose calls obey the account's limits; `org` is the organization that they are for.
    pub fn key(&self, secret: SecretString, account: &str, livemode: bool, org: OrganizationId) -> ApiKey {
        let account = self.account(account, livemode);
        ApiKey { secret, caller: Some(AccountCaller { account, organization: org.0 }), is_read_only: false }
    }

    fn account(&self, id: &str, livemode: bool) -> Arc<Account> {
        let mut accounts = self.accounts.lock();
        let account = accounts.entry((id.to_owned(), livemode)).or_insert_with(|| {
            Arc::new(Account {
                id: id.to_owned(),
                livemode,
                queue: Mutex::new(FairQueue::new(self.limits.counts_endpoints(livemode))),
                breaker: Mutex::default(),
                changed: Notify::new(),
                last_used: Mutex::new(self.clock.now()),
            })
        });
        *account.last_used.lock() = self.clock.now();
        account.clone()
    }

    /// Returns once calls wait for slots.
    pub async fn slots_wanted(&self) {
        self.wanted.notified().await;
    }

    /// The buckets for whose slots calls wait, in the order of their ids. Each 429 is reported once.
    pub fn demand(&self) -> Vec<Demand> {
        let idle_since = self.clock.now() - self.clock.shown(IDLE_TIMEOUT);
        let mut accounts = self.accounts.lock();
        accounts.retain(|_, account| Arc::strong_count(account) > 1 || *account.last_used.lock() > idle_since);
        let mut all = Vec::new();
        for account in accounts.values() {
            for (endpoint, wanted, was_rate_limited) in account.queue.lock().demand() {
                let bucket = BucketId { account: account.id.clone(), livemode: account.livemode, endpoint };
                all.push(Demand { bucket, wanted, was_rate_limited });
            }
        }
        drop(accounts);
        all.sort_by(|a, b| a.bucket.cmp(&b.bucket));
        all
    }

    /// Hands out slots that were taken for `bucket`.
    pub fn supply(&self, bucket: &BucketId, slots: Slots) {
        let account = self.account(&bucket.account, bucket.livemode);
        account.queue.lock().supply(&bucket.endpoint, slots);
        account.changed.notify_waiters();
    }

    /// Waits for a permit. An error means that the call must not be sent now.
    pub(super) async fn acquire(self: &Arc<Self>, key: &ApiKey, call: &Call<'_>) -> Result<Permit, Error> {
        if key.is_read_only && call.method != Method::GET {
            return Err(unsent(UnsentCause::CatchingUp, CATCH_UP_DELAY));
        }
        let endpoint = format!("{} {}", call.method, call.route);
        let mut permit = Permit {
            rate_limiters: self.clone(),
            account: None,
            endpoint,
            is_probe: false,
            is_outage_probe: false,
            is_finished: false,
        };
        let open_until = self.outage.lock().open_until(self.clock.now());
        if let Some(caller) = &key.caller {
            let account = &caller.account;
            let open_until = open_until.max(account.breaker.lock().open_until(self.clock.now()));
            if let Some(until) = open_until {
                return Err(self.not_sent(caller, UnsentCause::Outage, until));
            }
            let queued_call = QueuedCall {
                priority: priority(call),
                organization: caller.organization,
                endpoint: permit.endpoint.clone(),
            };
            let entry = QueueEntry::enqueue(account, queued_call);
            if tokio::time::timeout(ACQUIRE_TIMEOUT, self.wait_for_admission(account, entry.number)).await.is_err() {
                drop(entry);
                return Err(self.not_sent(caller, UnsentCause::Limit, self.clock.now() + Duration::SECOND));
            }
            permit.account = Some(account.clone());
            let admitted = account.breaker.lock().admit(self.clock.now());
            permit.is_probe = admitted.map_err(|until| self.not_sent(caller, UnsentCause::Outage, until))?;
        }
        let admitted = self.outage.lock().admit(self.clock.now());
        permit.is_outage_probe = match (admitted, &key.caller) {
            (Ok(is_probe), _) => is_probe,
            (Err(until), Some(caller)) => return Err(self.not_sent(caller, UnsentCause::Outage, until)),
            (Err(until), None) => return Err(Error::not_sent(UnsentCause::Outage, until - self.clock.now())),
        };
        Ok(permit)
    }

    async fn wait_for_admission(&self, account: &Account, number: u64) {
        loop {
            let changed = account.changed.notified();
            tokio::pin!(changed);
            // Notifications from here on are not missed.
            changed.as_mut().enable();
            let admission = account.queue.lock().acquire(number, self.clock.now());
            if admission == Admission::Now {
                return;
            }
            self.wanted.notify_one();
            match admission {
                Admission::At(at) => {
                    tokio::select! {
                        () = changed => {}
                        () = self.clock.sleep_until(at) => {}
                    }
                }
                _ => changed.await,
            }
        }
    }

    /// The error of an unsent call. It staggers the retries of one organization's calls at the account's rate.
    fn not_sent(&self, caller: &AccountCaller, cause: UnsentCause, from: OffsetDateTime) -> Error {
        let rate = self.limits.rate(caller.account.livemode, WHOLE_ACCOUNT).min(self.limits.endpoint);
        let at = caller.account.queue.lock().retry_time(caller.organization, from, Duration::seconds_f64(1.0 / rate));
        unsent(cause, at - self.clock.now())
    }
}

/// Counts an unsent call, and returns its error.
fn unsent(cause: UnsentCause, retry_after: Duration) -> Error {
    metrics::counter!("paybridge_stripe_unsent_total", "reason" => cause.as_str()).increment(1);
    Error::not_sent(cause, retry_after)
}

/// Finishing started work has priority over starting new work, and interactive calls over reads.
fn priority(call: &Call<'_>) -> Priority {
    match (call.method == Method::GET, call.route) {
        // The check that the database is the one in use: without it, nothing may be collected.
        (true, "/v1/webhook_endpoints/{id}") => Priority::Interactive,
        (true, _) => Priority::Read,
        (false, route) if route.ends_with("/confirm") => Priority::Confirm,
        (false, "/v1/payment_intents" | "/v1/refunds") => Priority::Create,
        (false, _) => Priority::Interactive,
    }
}

/// An entry in an account's queue. Dropping it leaves the queue, so that a cancelled caller delays nobody.
struct QueueEntry {
    account: Arc<Account>,
    number: u64,
}

impl QueueEntry {
    fn enqueue(account: &Arc<Account>, queued_call: QueuedCall) -> Self {
        let number = account.queue.lock().enqueue(queued_call);
        Self { account: account.clone(), number }
    }
}

impl Drop for QueueEntry {
    fn drop(&mut self) {
        self.account.queue.lock().remove(self.number);
        self.account.changed.notify_waiters();
    }
}

/// What a response, or its absence, says about Stripe and its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feedback {
    /// Stripe responds.
    Response,
    /// Stripe does not respond, or responds with a server error.
    Failure,
    /// A 429.
    Limit(RateLimit),
}

/// The permission to send one request.
pub(super) struct Permit {
    rate_limiters: Arc<RateLimiters>,
    /// The account that granted it; absent for an unlimited key.
    account: Option<Arc<Account>>,
    endpoint: String,
    is_probe: bool,
    is_outage_probe: bool,
    is_finished: bool,
}

impl Permit {
    /// Reports how the call ended.
    pub fn finish(mut self, feedback: Feedback) {
        self.is_finished = true;
        let now = self.rate_limiters.clock.now();
        let failed = feedback == Feedback::Failure;
        let name = self.account.as_ref().map_or("", |account| account.id.as_str());
        let call = EndedCall { failed, is_probe: self.is_outage_probe };
        self.rate_limiters.outage.lock().record(now, name, call, random_fraction());
        let Some(account) = &self.account else { return };
        account.breaker.lock().record(now, EndedCall { failed, is_probe: self.is_probe }, random_fraction());
        let Feedback::Limit(limit) = feedback else { return };
        let mut queue = account.queue.lock();
        match limit {
            RateLimit::GlobalRate => queue.rate_limited(WHOLE_ACCOUNT),
            RateLimit::EndpointRate | RateLimit::Unnamed => queue.rate_limited(&self.endpoint),
            RateLimit::GlobalConcurrency | RateLimit::EndpointConcurrency => queue.too_many_in_flight(now),
            // A limit of one object says nothing about others.
            RateLimit::ResourceSpecific => return,
        }
        drop(queue);
        self.rate_limiters.wanted.notify_one();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = self.rate_limiters.clock.now();
        if self.is_outage_probe && !self.is_finished {
            self.rate_limiters.outage.lock().abort_probe(now);
        }
        let Some(account) = &self.account else { return };
        if self.is_probe && !self.is_finished {
            account.breaker.lock().abort_probe(now);
        }
        account.queue.lock().release();
        account.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
