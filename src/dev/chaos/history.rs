//! The history: what Paybridge reported to the outside. Callers record what was acknowledged to them, subscribers
//! record every event. The database cannot influence it.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use uuid::Uuid;

/// What callers know of an invoice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct InvoiceRecord {
    /// The payment ids that CreatePayment returned, without those that a restoration has lost. More than one is a
    /// violation.
    pub payments: BTreeSet<String>,
    /// The amounts, in minor units, that may be due: the first one, and any that somebody requested.
    pub amounts: BTreeSet<i64>,
    /// The acknowledged amount changes, in order.
    pub acknowledged_changes: Vec<i64>,
    /// Whether the amount was changed while a Checkout session was open.
    pub had_open_session: bool,
    /// When it was first submitted, in Unix seconds.
    pub submitted_at: i64,
    /// Whether somebody requested its cancellation, or submitted it again afterwards.
    pub is_cancel_requested: bool,
    /// Whether somebody requested to record a manual payment.
    pub is_manual_requested: bool,
    /// Whether that was acknowledged.
    pub is_manual_acknowledged: bool,
    /// Whether it has to be paid in the end.
    pub must_be_paid: bool,
    /// Responses that no caller should get, as text.
    pub unexpected_errors: Vec<String>,
}

/// An event as a subscriber received it, as far as the checks need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenEvent {
    pub id: Uuid,
    pub webhook_type: String,
}

/// What one subscriber received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SubscriberRecord {
    pub organization: usize,
    pub name: String,
    /// The events of the present log, by position.
    pub events: BTreeMap<i64, SeenEvent>,
    /// How often the log was replaced by another one.
    pub replaced_logs: usize,
    /// Anomalies: a skipped position, or one received with two ids.
    pub errors: Vec<String>,
}

/// How many anomalies of one subscriber are kept. A subscriber that is stuck repeats the same one.
const ERRORS_MAX: usize = 50;

impl SubscriberRecord {
    /// Records an anomaly, once.
    pub fn add_error(&mut self, error: String) {
        if self.errors.len() < ERRORS_MAX && !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    /// Begins with another log, which has replaced the one before.
    pub fn replace_log(&mut self) {
        self.events.clear();
        self.replaced_logs += 1;
    }

    /// Records an event that followed `cursor`.
    pub fn record_event(&mut self, cursor: i64, position: i64, event: SeenEvent) {
        if position != cursor + 1 {
            self.add_error(format!("position {cursor} was followed by {position}"));
        }
        if let Some(before) = self.events.get(&position).filter(|before| **before != event) {
            let error = format!("position {position} was event {}, and is event {} now", before.id, event.id);
            self.add_error(error);
        }
        self.events.insert(position, event);
    }
}

/// The invoices, by organization and invoice id.
pub(super) type Invoices = BTreeMap<(usize, String), InvoiceRecord>;

#[derive(Debug, Default)]
pub(super) struct History {
    invoices: Mutex<Invoices>,
    subscribers: Mutex<Vec<SubscriberRecord>>,
    external: Mutex<ExternalRecord>,
}

/// What actors did and received, besides invoices and events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ExternalRecord {
    /// The PaymentIntents that they created in the Stripe Dashboard.
    pub dashboard_intents: BTreeSet<String>,
    /// The Checkout sessions in payment mode whose URLs they received.
    pub links: BTreeSet<String>,
    /// The acknowledged refunds, by Paybridge's ids, without those that a restoration has lost.
    pub refunds: BTreeSet<String>,
    /// Payment methods of imported customers that nobody ever chose as the default, with their Stripe customer.
    pub unchosen_methods: BTreeMap<String, String>,
    /// Defaults that were unset in Stripe, by organization and external customer id.
    pub unset_defaults: BTreeMap<(usize, String), UnsetDefault>,
}

/// A default that somebody unset in Stripe. Times are Unix seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct UnsetDefault {
    /// The Stripe customer.
    pub customer: String,
    /// The payment method, which stays attached.
    pub method: String,
    /// When the billing system received the event about it.
    pub reported_at: Option<i64>,
    /// When it was about to be chosen again.
    pub chosen_again_at: Option<i64>,
}

impl History {
    /// Updates the record of an invoice.
    pub fn invoice(&self, organization: usize, invoice: &str, change: impl FnOnce(&mut InvoiceRecord)) {
        change(self.invoices.lock().entry((organization, invoice.to_owned())).or_default());
    }

    /// The number of acknowledged invoices.
    pub fn accepted(&self) -> usize {
        self.invoices.lock().values().filter(|record| !record.payments.is_empty()).count()
    }

    /// Adds a subscriber. Returns its index.
    pub fn add_subscriber(&self, organization: usize, name: &str) -> usize {
        let mut subscribers = self.subscribers.lock();
        subscribers.push(SubscriberRecord { organization, name: name.to_owned(), ..SubscriberRecord::default() });
        subscribers.len() - 1
    }

    /// Updates the record of a subscriber.
    pub fn subscriber<T>(&self, number: usize, change: impl FnOnce(&mut SubscriberRecord) -> T) -> T {
        change(&mut self.subscribers.lock()[number])
    }

    /// The number of distinct events received, summed over all subscribers.
    pub fn seen_events(&self) -> usize {
        self.subscribers.lock().iter().map(|subscriber| subscriber.events.len()).sum()
    }

    /// Each subscriber's organization and last position.
    pub fn positions(&self) -> Vec<(usize, i64)> {
        let last =
            |subscriber: &SubscriberRecord| subscriber.events.last_key_value().map_or(0, |(position, _)| *position);
        self.subscribers.lock().iter().map(|subscriber| (subscriber.organization, last(subscriber))).collect()
    }

    /// Updates what actors did and received.
    pub fn external(&self, change: impl FnOnce(&mut ExternalRecord)) {
        change(&mut self.external.lock());
    }

    /// Whether the billing system received the event about an unset default.
    pub fn is_unset_reported(&self, whose: &(usize, String)) -> bool {
        self.external.lock().unset_defaults.get(whose).is_some_and(|unset| unset.reported_at.is_some())
    }

    /// Copies the history.
    pub fn read(&self) -> (Invoices, Vec<SubscriberRecord>, ExternalRecord) {
        (self.invoices.lock().clone(), self.subscribers.lock().clone(), self.external.lock().clone())
    }
}
