//! The sandbox's whole state, in one value behind one lock. It is serializable and survives a restart.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::timers::Timers;
use super::webhook_queue::{Delivery, WebhookQueue};

/// How long events are kept, in seconds.
const EVENT_RETENTION: i64 = 30 * 24 * 60 * 60;

/// Every account and key of the sandbox.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    /// By [`slot`]: the test mode and the live mode of an account are two entries.
    pub accounts: BTreeMap<String, Account>,
    /// By the secret itself.
    pub keys: BTreeMap<String, Key>,
    /// The sandbox's URL when this was written.
    #[serde(default)]
    pub url: String,
}

/// A secret or restricted API key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Key {
    /// The account's id, without the mode.
    pub account: String,
    /// The permissions of a restricted key, such as `rak_customer_write`. `None` for a secret key.
    pub scopes: Option<BTreeSet<String>>,
    /// Requests with this key get a 401.
    pub revoked: bool,
    /// Error messages for missing permissions do not name the account. Not all of Stripe's do.
    #[serde(default)]
    pub hides_account: bool,
}

/// One mode of one account.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Account {
    /// `acct_…`
    pub id: String,
    /// Decided by the prefix of the key.
    pub livemode: bool,
    /// ISO 3166-1 alpha-2.
    pub country: String,
    /// ISO 4217, in lower case.
    pub default_currency: String,
    /// The default API version, in which the events list is rendered. `None`: the sandbox's own.
    #[serde(default)]
    pub api_version: Option<String>,
    /// Unix seconds.
    pub created: i64,
    /// All objects by id, as the API returns them.
    pub objects: BTreeMap<String, Value>,
    /// The ids of each type of object, oldest first.
    pub order: BTreeMap<String, Vec<String>>,
    /// By object id.
    pub internals: BTreeMap<String, Internals>,
    /// Events of the last 30 days, oldest first.
    pub events: VecDeque<Event>,
    /// The number of events emitted so far, pruned ones included.
    pub events_made: u64,
    /// Deliveries that no endpoint has acknowledged yet.
    pub webhooks: WebhookQueue,
    /// What happens later without a request.
    pub timers: Timers,
    /// The requests of the last 24 hours by idempotency key.
    pub idempotency: BTreeMap<String, IdempotentRequest>,
    /// The same keys by time, for pruning.
    pub idempotency_order: VecDeque<(i64, String)>,
    /// Deliveries to which the webhook faults have not been applied yet.
    #[serde(skip)]
    pub new_deliveries: Vec<Delivery>,
}

/// What Stripe stores about an object and does not return.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Internals {
    /// The test card number or IBAN of a payment method. It decides how the method behaves.
    pub number: String,
    /// The card was set up with authentication.
    pub set_up: bool,
    /// The payment method was detached, or used without a customer, and cannot be used again.
    pub used_up: bool,
    /// The mandate of a payment method.
    pub mandate: Option<String>,
    /// The `customer_acceptance` of the mandate of a payment method.
    pub acceptance: Value,
    /// The signing secret of a webhook endpoint.
    pub secret: String,
    /// The enabled events of a webhook endpoint, parsed once.
    pub enabled: Vec<String>,
    /// The payment method that the payer of a PaymentIntent has authenticated, until the server confirms again
    /// (`confirmation_method=manual`).
    pub authenticated: Option<String>,
    /// The number of times that a PaymentIntent was confirmed.
    pub confirms: u32,
    /// The Checkout Session of an intent.
    pub session: Option<String>,
    /// The `return_url` of the last confirmation.
    pub return_url: Option<String>,
    /// The parameters of a payment session that apply once its payer confirms.
    pub requested: Value,
}

/// An emitted event. Its body never changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Event {
    pub id: String,
    /// Its sequence number within the account.
    pub number: u64,
    pub kind: String,
    pub created: i64,
    /// The JSON that is delivered to endpoints.
    pub body: String,
    /// The number of deliveries that are not acknowledged yet.
    pub pending: usize,
    /// When the first delivery was acknowledged, in microseconds since 1970.
    #[serde(default)]
    pub acknowledged: Option<i64>,
}

/// The first request under a key, and its stored response.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct IdempotentRequest {
    /// Method and path, `POST /v1/…`.
    pub path: String,
    pub form: Vec<(String, String)>,
    pub request_id: String,
    /// Unix seconds.
    pub created: i64,
    /// Status and body. `None` while the request is in progress.
    pub response: Option<(u16, String)>,
}

/// Whether the key is for live mode: its prefix says so, as at Stripe.
pub(super) fn is_live(key: &str) -> bool {
    key.starts_with("sk_live_") || key.starts_with("rk_live_")
}

/// The key of one mode of an account in [`State::accounts`].
pub(super) fn slot(account: &str, livemode: bool) -> String {
    if livemode { format!("{account}/live") } else { account.to_owned() }
}

impl State {
    /// Returns the account, and creates it if it does not exist.
    pub fn account(&mut self, id: &str, livemode: bool, country: &str, currency: &str, now: i64) -> &mut Account {
        self.accounts.entry(slot(id, livemode)).or_insert_with(|| Account {
            id: id.to_owned(),
            livemode,
            country: country.to_owned(),
            default_currency: currency.to_owned(),
            created: now,
            ..Account::default()
        })
    }

    /// Rewrites the URLs in stored objects if the sandbox's own URL has changed since the last run.
    pub fn rewrite_links(&mut self, url: &str) {
        let old = std::mem::replace(&mut self.url, url.to_owned());
        if old.is_empty() || old == url {
            return;
        }
        let rewritten = |link: &str| link.strip_prefix(&old).map(|rest| format!("{url}{rest}"));
        for account in self.accounts.values_mut() {
            for object in account.objects.values_mut() {
                for pointer in ["/url", "/next_action/redirect_to_url/url", "/next_action/redirect_to_url/return_url"] {
                    if let Some(link) = object.pointer_mut(pointer)
                        && let Some(moved) = link.as_str().and_then(rewritten)
                    {
                        *link = moved.into();
                    }
                }
            }
            for internals in account.internals.values_mut() {
                internals.return_url =
                    internals.return_url.as_deref().and_then(rewritten).or(internals.return_url.take());
            }
        }
    }

    /// The [`slot`] of the account that has the object.
    pub fn holder(&self, object: &str) -> Option<String> {
        self.accounts.iter().find(|(_, account)| account.objects.contains_key(object)).map(|(slot, _)| slot.clone())
    }
}

impl Account {
    /// The event with this number, if it has not been pruned.
    pub fn event(&mut self, number: u64) -> Option<&mut Event> {
        let index = self.events.binary_search_by_key(&number, |event| event.number).ok()?;
        self.events.get_mut(index)
    }

    /// Removes events older than 30 days.
    pub fn prune_events(&mut self, now: i64) {
        while self.events.front().is_some_and(|event| event.created + EVENT_RETENTION < now) {
            self.events.pop_front();
        }
    }
}

/// The string at a JSON pointer; empty if there is none.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The integer at a JSON pointer; 0 if there is none.
pub(super) fn number(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// The boolean at a JSON pointer; false if there is none.
pub(super) fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
}

/// A new id in Stripe's format: a prefix and random letters and digits.
pub(super) fn new_id(prefix: &str) -> String {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut bytes = [0_u8; 24];
    getrandom::fill(&mut bytes).expect("the operating system provides random numbers");
    let letters: String = bytes.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect();
    format!("{prefix}_{letters}")
}
