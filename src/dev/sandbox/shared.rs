//! What all parts of a running sandbox share: the state behind its lock, the clock, and the wakeups of its tasks.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api_request::ApiRequest;
use super::auth::Caller;
use super::dispatch;
use super::faults::{self, Fault, WebhookFault};
use super::limits::{Limiter, Limits};
use super::state::{Account, State};
use super::transaction::{Settings, Transaction};
use super::webhook_queue::Delivery;
use crate::clock::Clock;
use crate::dev::rng::Rng;

/// The number of recent requests among which [`Inner::record_status`] looks for one that is in flight.
const IN_FLIGHT_MAX: usize = 5_000;

/// The configuration of a sandbox.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the state is stored. Without it, a restart loses the state.
    pub state_file: Option<PathBuf>,
    /// The rate limits. `None` turns the limiter off.
    pub limits: Option<Limits>,
    /// From a SEPA debit's submission to the bank's response, in the clock's time. Whole seconds.
    pub settle_after: Duration,
    /// From a slow refund's creation to its outcome, in the clock's time. Whole seconds.
    pub refund_after: Duration,
    /// The number of requests that are kept for [`Sandbox::requests`].
    pub requests_kept: usize,
    /// Seeds the random choice of the requests and webhooks that a fault with a `percent` hits.
    pub seed: u64,
}

impl Default for Options {
    /// As at Stripe: rate limits are on, debits take five days and slow refunds one. The state is not stored.
    fn default() -> Self {
        Self {
            state_file: None,
            limits: Some(Limits::default()),
            settle_after: Duration::days(5),
            refund_after: Duration::DAY,
            requests_kept: 50_000,
            seed: Rng::fresh_seed(),
        }
    }
}

/// A received request, for tests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedRequest {
    /// Unix seconds of the clock.
    pub time: i64,
    /// `POST`, `GET` or `DELETE`.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The decoded parameters of the query and the body, in their order.
    pub form: Vec<(String, String)>,
    /// `Idempotency-Key`.
    pub idempotency_key: Option<String>,
    /// `Stripe-Version`.
    pub version: Option<String>,
    /// `acct_…`; `None` if the request was rejected before its execution.
    pub account: Option<String>,
    /// `req_…`
    pub request_id: String,
    /// The HTTP status of the response; `None` while the request is in progress, 0 if the connection was cut.
    pub status: Option<u16>,
}

impl RecordedRequest {
    pub(super) fn new(
        shared: &Shared,
        request: &ApiRequest,
        version: Option<&String>,
        caller: Option<&Caller>,
    ) -> Self {
        Self {
            time: shared.seconds(),
            method: request.method.clone(),
            path: request.path.clone(),
            form: request.form.clone(),
            idempotency_key: request.idempotency_key.clone(),
            version: version.cloned(),
            account: caller.map(|caller| caller.account.clone()),
            request_id: request.request_id.clone(),
            status: None,
        }
    }
}

/// What the lock protects.
#[derive(Debug)]
pub(super) struct Inner {
    pub state: State,
    pub faults: Vec<Fault>,
    pub webhook_faults: Vec<WebhookFault>,
    /// The events that a fault kept from being sent.
    pub lost: Vec<String>,
    /// The number of requests that a fault has hit.
    pub fault_hits: u64,
    /// Decides which requests and webhooks are hit.
    pub rng: Rng,
    pub requests: VecDeque<RecordedRequest>,
    requests_kept: usize,
    pub limiter: Limiter,
    /// The PaymentIntents that a request is writing.
    pub locks: BTreeSet<String>,
}

impl Inner {
    /// The caller's account, in the mode of its key.
    pub fn account(&mut self, caller: &Caller) -> &mut Account {
        self.state.accounts.entry(caller.slot.clone()).or_insert_with(|| Account {
            id: caller.account.clone(),
            livemode: caller.livemode,
            ..Account::default()
        })
    }

    pub fn record(&mut self, request: RecordedRequest) {
        self.requests.push_back(request);
        if self.requests.len() > self.requests_kept {
            self.requests.pop_front();
        }
    }

    /// Records the status of a response. Searches only recent requests, to bound the cost.
    pub fn record_status(&mut self, request_id: &str, status: u16) {
        let last = self.requests.iter_mut().rev().take(IN_FLIGHT_MAX);
        if let Some(request) = last.into_iter().find(|request| request.request_id == request_id) {
            request.status = Some(status);
        }
    }

    /// Enqueues new deliveries after applying the webhook faults. Returns whether there were any.
    fn enqueue_deliveries(&mut self) -> bool {
        let mut any = false;
        for account in self.state.accounts.values_mut() {
            for delivery in std::mem::take(&mut account.new_deliveries) {
                any = true;
                let delays =
                    faults::delivery_delays(&mut self.webhook_faults, &mut self.rng, &delivery.kind, &account.id);
                if delays.is_empty() {
                    self.lost.push(delivery.event.clone());
                }
                for delay in delays {
                    let at = delivery.at.saturating_add(delay);
                    account.webhooks.push(Delivery { at, ..delivery.clone() });
                }
            }
        }
        any
    }
}

/// A handle to a running sandbox. Clones refer to the same sandbox.
#[derive(Debug, Clone)]
pub struct Sandbox(pub(super) Arc<Shared>);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Shared {
    inner: Mutex<Inner>,
    pub clock: Clock,
    pub options: Options,
    pub settings: Settings,
    /// Wakes the task that sends webhooks.
    pub delivery_wakeup: Notify,
    /// Wakes the task that runs timers.
    pub timer_wakeup: Notify,
    /// Wakes the task that writes the state file.
    pub save_wakeup: Notify,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}

impl Shared {
    pub fn new(mut state: State, clock: Clock, options: Options, url: String) -> Self {
        for account in state.accounts.values_mut() {
            // Requests in progress ended with the last process.
            account.idempotency.retain(|_, known| known.response.is_some());
            account.webhooks.rebuild_queues();
        }
        let settings = Settings {
            url,
            settle_after: options.settle_after.whole_seconds(),
            refund_after: options.refund_after.whole_seconds(),
        };
        Self {
            inner: Mutex::new(Inner {
                state,
                faults: Vec::new(),
                webhook_faults: Vec::new(),
                lost: Vec::new(),
                fault_hits: 0,
                rng: Rng::named(options.seed, "sandbox"),
                requests: VecDeque::new(),
                requests_kept: options.requests_kept,
                limiter: Limiter::default(),
                locks: BTreeSet::new(),
            }),
            clock,
            options,
            settings,
            delivery_wakeup: Notify::new(),
            timer_wakeup: Notify::new(),
            save_wakeup: Notify::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// The clock in Unix seconds.
    pub fn seconds(&self) -> i64 {
        self.clock.now().unix_timestamp()
    }

    /// The clock in microseconds since 1970.
    pub fn micros(&self) -> i64 {
        i64::try_from(self.clock.now().unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
    }

    /// Runs `f` under the lock. Due timers run first, so `f` sees the effect of a clock that was advanced. Wakes the
    /// tasks that send webhooks, run timers and write the state file.
    pub fn update<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        self.save_wakeup.notify_one();
        self.read(f)
    }

    /// Like [`Self::update`], for an `f` that changes nothing in the state file.
    pub fn read<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        // A panic under the lock is a bug in the sandbox. Failing all later requests would only hide it.
        let mut inner = self.inner.lock();
        let (now, micros) = (self.seconds(), self.micros());
        let mut due = false;
        for account in inner.state.accounts.values_mut() {
            due |= dispatch::run_due(account, &self.settings, now, micros);
        }
        let result = f(&mut inner);
        if inner.enqueue_deliveries() {
            self.delivery_wakeup.notify_one();
        }
        self.timer_wakeup.notify_one();
        if due {
            self.save_wakeup.notify_one();
        }
        result
    }

    /// Runs `f` under the lock, without running timers or waking a task.
    pub fn with_lock<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock())
    }

    /// Runs a transaction without an API request, for a payer or a person in the Dashboard. `slot` names the account.
    pub fn transact<T>(&self, slot: &str, f: impl FnOnce(&mut Transaction) -> T) -> Option<T> {
        self.update(|inner| {
            let account = inner.state.accounts.get_mut(slot)?;
            let (now, now_micros) = (self.seconds(), self.micros());
            Some(f(&mut Transaction { account, now, now_micros, cause: None, settings: &self.settings }))
        })
    }

    /// Like [`Self::transact`], on the account that has the object.
    pub fn transact_on<T>(&self, object: &str, f: impl FnOnce(&mut Transaction) -> T) -> Option<T> {
        let slot = self.with_lock(|inner| inner.state.holder(object))?;
        self.transact(&slot, f)
    }
}
