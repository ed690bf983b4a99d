//! Everything the sandbox knows, in one value behind one lock. Serializable, so that it survives a restart.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::idempotency::Remembered;
use super::mailbag::Mailbag;
use super::timers::Timers;

/// The state of the sandbox.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    /// By `Account::slot`: an account's test mode and live mode are two accounts here.
    pub accounts: BTreeMap<String, Account>,
    /// API keys, by the key itself.
    pub keys: BTreeMap<String, Key>,
    /// Where the sandbox was when it wrote this.
    #[serde(default)]
    pub url: String,
}

/// An API key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Key {
    /// The account's id, without the mode.
    pub account: String,
    /// `None` for a secret key; for a restricted one its permissions, `rak_customer_write` for instance.
    pub scopes: Option<BTreeSet<String>>,
    /// Answers 401 from now on.
    pub revoked: bool,
    /// Its 403s don't name the account: not all of Stripe's do.
    #[serde(default)]
    pub hides_account: bool,
}

/// One mode of one account.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Account {
    /// `acct_…`
    pub id: String,
    /// Live mode; decided by the key's prefix.
    pub livemode: bool,
    /// Two letters.
    pub country: String,
    /// Lower case.
    pub default_currency: String,
    /// The version in which the events list renders; `None`: the sandbox's own.
    #[serde(default)]
    pub api_version: Option<String>,
    /// Unix seconds.
    pub created: i64,
    /// All objects by id, in Stripe's own shape.
    pub objects: BTreeMap<String, Value>,
    /// The ids of each kind of object, oldest first.
    pub order: BTreeMap<String, Vec<String>>,
    /// What Stripe knows about an object and doesn't show.
    pub hidden: BTreeMap<String, Hidden>,
    /// Events of the last 30 days, oldest first.
    pub events: VecDeque<Event>,
    /// How many events there have ever been.
    pub events_made: u64,
    /// Webhooks that still have to be delivered.
    pub mail: Mailbag,
    /// What happens by itself later.
    pub timers: Timers,
    /// Idempotency keys of the last 24 hours, by key.
    pub idempotency: BTreeMap<String, Remembered>,
    /// The same keys by time, to prune them.
    pub idempotency_order: VecDeque<(i64, String)>,
    /// Deliveries that were just caused and haven't been through the webhook faults yet.
    #[serde(skip)]
    pub fresh: Vec<Delivery>,
}

/// What Stripe knows about an object and doesn't show.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Hidden {
    /// A payment method's test card number or IBAN, which decides how it behaves.
    pub number: String,
    /// A card that has been set up with authentication.
    pub set_up: bool,
    /// A payment method that was detached, or used without a customer: never usable again.
    pub used_up: bool,
    /// A payment method's mandate.
    pub mandate: Option<String>,
    /// How the payer agreed to debits of a payment method, as the mandate shows it.
    pub acceptance: Value,
    /// A webhook endpoint's secret.
    pub secret: String,
    /// A webhook endpoint's events, so that the list needn't be parsed for each event.
    pub enabled: Vec<String>,
    /// The method that a payment intent's payer has proved to be theirs, where the server is to confirm once more.
    pub proved: Option<String>,
    /// How often a payment intent was confirmed.
    pub confirms: u32,
    /// The Checkout session that an intent belongs to.
    pub session: Option<String>,
    /// The `return_url` of the last confirmation.
    pub return_url: Option<String>,
    /// A payment session's parameters that only matter once its payer confirms.
    pub asked: Value,
}

/// An event as it was made; frozen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Event {
    pub id: String,
    /// Counts up within the account.
    pub number: u64,
    pub kind: String,
    pub created: i64,
    /// The JSON that is delivered.
    pub body: String,
    /// How many deliveries are still to be acknowledged.
    pub pending: usize,
    /// When the first one was, in microseconds since 1970.
    #[serde(default)]
    pub acknowledged: Option<i64>,
}

/// One webhook on its way to one endpoint.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Delivery {
    /// The event's id.
    pub event: String,
    /// The event's number, by which it is found.
    pub event_number: u64,
    /// The event's type, for the webhook faults.
    pub kind: String,
    pub endpoint: String,
    /// Tries so far.
    pub attempt: u32,
    /// When it is sent (again), in microseconds since 1970.
    pub at: i64,
    /// The endpoint's answer to the last try: a status, or why there was none.
    pub last_answer: String,
}

/// The prefix tells the mode of a key, as at Stripe.
pub(super) fn is_live(key: &str) -> bool {
    key.starts_with("sk_live_") || key.starts_with("rk_live_")
}

/// Where an account's mode is kept in `State::accounts`.
pub(super) fn slot(account: &str, livemode: bool) -> String {
    if livemode { format!("{account}/live") } else { account.to_owned() }
}

impl State {
    /// Opens an account, or returns the one that is there.
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

    /// Lets the links that were given out before lead here, if the sandbox has another address than last time.
    pub fn moved_to(&mut self, url: &str) {
        let before = std::mem::replace(&mut self.url, url.to_owned());
        if before.is_empty() || before == url {
            return;
        }
        let here = |link: &str| link.strip_prefix(&before).map(|rest| format!("{url}{rest}"));
        for account in self.accounts.values_mut() {
            for object in account.objects.values_mut() {
                for pointer in ["/url", "/next_action/redirect_to_url/url", "/next_action/redirect_to_url/return_url"] {
                    if let Some(link) = object.pointer_mut(pointer)
                        && let Some(moved) = link.as_str().and_then(here)
                    {
                        *link = moved.into();
                    }
                }
            }
            for hidden in account.hidden.values_mut() {
                hidden.return_url = hidden.return_url.as_deref().and_then(here).or(hidden.return_url.take());
            }
        }
    }

    /// The slot of the account that holds the object, if any does.
    pub fn holder(&self, object: &str) -> Option<String> {
        self.accounts.iter().find(|(_, account)| account.objects.contains_key(object)).map(|(slot, _)| slot.clone())
    }
}

impl Account {
    /// An event by its number, if it is still there.
    pub fn event(&mut self, number: u64) -> Option<&mut Event> {
        let index = self.events.binary_search_by_key(&number, |event| event.number).ok()?;
        self.events.get_mut(index)
    }
}

/// A string out of an object, by JSON pointer; empty where there is none.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A number out of an object, by JSON pointer; 0 where there is none.
pub(super) fn number(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// A boolean out of an object, by JSON pointer; false where there is none.
pub(super) fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
}

/// An id of Stripe's kind: a prefix and random letters and digits.
pub(super) fn new_id(prefix: &str) -> String {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut bytes = [0_u8; 24];
    getrandom::fill(&mut bytes).expect("the operating system gives random numbers");
    let letters: String = bytes.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect();
    format!("{prefix}_{letters}")
}
