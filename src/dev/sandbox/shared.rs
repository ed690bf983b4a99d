//! What all parts of a running sandbox share: the state behind its lock, the clock, and who is woken when.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::act::{Act, Settings};
use super::api::Work;
use super::auth::Caller;
use super::faults::{self, Fault, WebhookFault};
use super::limits::{Limiter, Limits};
use super::state::{Account, Delivery, State};
use super::timers;
use crate::clock::Clock;
use crate::dev::rng::Rng;

/// Of the requests that came in last, as many can still be unanswered.
const MOST_UNDER_WAY: usize = 5_000;

/// How a sandbox behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the state is kept over a restart; without it, it is lost.
    pub state_file: Option<PathBuf>,
    /// The rate limiter; `None` turns it off.
    pub limits: Option<Limits>,
    /// From a SEPA debit's submission to the bank's answer, in the clock's time. Whole seconds.
    pub settle_after: Duration,
    /// From a slow refund's creation to its outcome, in the clock's time. Whole seconds.
    pub refund_after: Duration,
    /// The most requests that are kept for tests to look at.
    pub requests_kept: usize,
    /// What decides which requests and webhooks are hit by faults that hit some in a hundred.
    pub seed: u64,
}

impl Default for Options {
    /// As Stripe: limited, debits take five days, slow refunds one; nothing is kept.
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

/// A request as it came in; tests read these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Unix seconds of the clock.
    pub time: i64,
    /// `POST`, `GET` or `DELETE`.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The decoded parameters of query and body, in the order in which they came.
    pub form: Vec<(String, String)>,
    /// `Idempotency-Key`.
    pub idempotency_key: Option<String>,
    /// `Stripe-Version`.
    pub version: Option<String>,
    /// `acct_…`; `None` if it was refused before its caller was known to be allowed.
    pub account: Option<String>,
    /// `req_…`
    pub request_id: String,
    /// The answer's HTTP status; `None` while it is being worked on, 0 if the connection was cut.
    pub status: Option<u16>,
}

impl Recorded {
    pub(super) fn new(shared: &Shared, work: &Work, version: Option<&String>, caller: Option<&Caller>) -> Self {
        Self {
            time: shared.seconds(),
            method: work.method.clone(),
            path: work.path.clone(),
            form: work.form.clone(),
            idempotency_key: work.idempotency_key.clone(),
            version: version.cloned(),
            account: caller.map(|caller| caller.account.clone()),
            request_id: work.request_id.clone(),
            status: None,
        }
    }
}

/// What the lock guards.
#[derive(Debug)]
pub(super) struct Inner {
    pub state: State,
    pub faults: Vec<Fault>,
    pub webhook_faults: Vec<WebhookFault>,
    /// The events that a fault has kept from being sent to anybody.
    pub lost: Vec<String>,
    /// How many requests faults have hit.
    pub fault_hits: u64,
    /// Decides what faults hit.
    pub rng: Rng,
    pub requests: VecDeque<Recorded>,
    requests_kept: usize,
    pub limiter: Limiter,
    /// Payment intents that a request is writing.
    pub locks: BTreeSet<String>,
}

impl Inner {
    /// The caller's account, in the key's mode.
    pub fn account(&mut self, caller: &Caller) -> &mut Account {
        self.state.accounts.entry(caller.slot.clone()).or_insert_with(|| Account {
            id: caller.account.clone(),
            livemode: caller.livemode,
            ..Account::default()
        })
    }

    pub fn record(&mut self, request: Recorded) {
        self.requests.push_back(request);
        if self.requests.len() > self.requests_kept {
            self.requests.pop_front();
        }
    }

    /// Notes the answer. Requests under way are among the last ones, so that the look stays a short one.
    pub fn record_answer(&mut self, request_id: &str, status: u16) {
        let last = self.requests.iter_mut().rev().take(MOST_UNDER_WAY);
        if let Some(request) = last.into_iter().find(|request| request.request_id == request_id) {
            request.status = Some(status);
        }
    }

    /// Sends what was just caused on its way, as the webhook faults will have it.
    fn dispatch(&mut self) -> bool {
        let mut any = false;
        for account in self.state.accounts.values_mut() {
            for fresh in std::mem::take(&mut account.fresh) {
                any = true;
                let sendings = faults::sendings(&mut self.webhook_faults, &mut self.rng, &fresh.kind, &account.id);
                if sendings.is_empty() {
                    self.lost.push(fresh.event.clone());
                }
                for later in sendings {
                    let at = fresh.at.saturating_add(later);
                    account.mail.put(Delivery { at, ..fresh.clone() });
                }
            }
        }
        any
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Shared {
    inner: Mutex<Inner>,
    pub clock: Clock,
    pub options: Options,
    pub settings: Settings,
    /// Wakes the courier.
    pub courier: Notify,
    /// Wakes the timekeeper.
    pub timekeeper: Notify,
    /// Wakes the saver.
    pub saver: Notify,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}

impl Shared {
    pub fn new(mut state: State, clock: Clock, options: Options, url: String) -> Self {
        for account in state.accounts.values_mut() {
            // Whoever was being answered when the last process ended is gone.
            account.idempotency.retain(|_, known| known.answer.is_some());
            account.mail.sort_in();
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
            courier: Notify::new(),
            timekeeper: Notify::new(),
            saver: Notify::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Unix seconds of the clock.
    pub fn seconds(&self) -> i64 {
        self.clock.now().unix_timestamp()
    }

    /// Unix microseconds of the clock.
    pub fn micros(&self) -> i64 {
        i64::try_from(self.clock.now().unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
    }

    /// Does something under the lock. Whatever is due by then has happened before, so that a clock that was moved is
    /// seen at once; whoever has to do with the consequences is woken.
    pub fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        self.saver.notify_one();
        self.read(act)
    }

    /// The same for what changes nothing that is kept over a restart.
    pub fn read<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        // A panic under the lock is a bug of the sandbox; refusing all further work would only hide it.
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, micros) = (self.seconds(), self.micros());
        let mut due = false;
        for account in inner.state.accounts.values_mut() {
            due |= timers::run(account, &self.settings, now, micros);
        }
        let result = act(&mut inner);
        if inner.dispatch() {
            self.courier.notify_one();
        }
        self.timekeeper.notify_one();
        if due {
            self.saver.notify_one();
        }
        result
    }

    /// Only looks, changes nothing, wakes nobody.
    pub fn look<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Something that happens at the account in `slot` without an API call: a payer, or a person in the dashboard.
    pub fn by_hand<T>(&self, slot: &str, act: impl FnOnce(&mut Act) -> T) -> Option<T> {
        self.with(|inner| {
            let account = inner.state.accounts.get_mut(slot)?;
            let (now, now_micros) = (self.seconds(), self.micros());
            Some(act(&mut Act { account, now, now_micros, cause: None, settings: &self.settings }))
        })
    }

    /// The same for the account that holds an object.
    pub fn by_hand_at<T>(&self, object: &str, act: impl FnOnce(&mut Act) -> T) -> Option<T> {
        let slot = self.look(|inner| inner.state.holder(object))?;
        self.by_hand(&slot, act)
    }
}
