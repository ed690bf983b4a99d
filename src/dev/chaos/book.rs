//! The book: what Paybridge has told those outside of it. Callers write down what was acknowledged to them, subscribers
//! every event that they saw. It is a witness that the database can't influence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use uuid::Uuid;

use super::lock;

/// What callers know of an invoice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The ids of payments that CreatePayment has answered with: one, or something is wrong.
    pub payments: BTreeSet<String>,
    /// What is to be paid, minor units: any of these, where somebody wanted to change it.
    pub amounts: BTreeSet<i64>,
    /// The changes of the amount that were acknowledged, in their order.
    pub changes: Vec<i64>,
    /// The amount was changed while a page was open.
    pub had_page: bool,
    /// When it was given in first, unix seconds.
    pub given_in: i64,
    /// Somebody has asked for it to be canceled, or given in again afterwards.
    pub is_withdrawn: bool,
    /// Somebody has asked for it to be taken as paid elsewhere.
    pub manual_asked: bool,
    /// That was acknowledged.
    pub manual: bool,
    /// It has to be paid in the end.
    pub must_be_paid: bool,
    /// Answers that no caller should get, with their texts.
    pub refusals: Vec<String>,
}

/// An event as a subscriber sees it, as far as the checks need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub id: Uuid,
    pub webhook_type: String,
}

/// What one subscriber has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reader {
    pub organization: usize,
    pub name: String,
    /// By position.
    pub seen: BTreeMap<i64, Seen>,
    /// What was not as it has to be: a position skipped, or seen with two ids.
    pub faults: Vec<String>,
}

/// How many faults of one subscriber are kept; one that can't go on meets the same over and over.
const FAULTS_MAX: usize = 50;

impl Reader {
    /// Writes down what was not as it has to be, once.
    pub fn blame(&mut self, fault: String) {
        if self.faults.len() < FAULTS_MAX && !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    /// Writes down an event that came after `cursor`.
    pub fn note(&mut self, cursor: i64, position: i64, event: Seen) {
        if position != cursor + 1 {
            self.blame(format!("after {cursor} came {position}"));
        }
        if let Some(before) = self.seen.get(&position).filter(|before| **before != event) {
            let fault = format!("{position} was {} first, and is {} now", before.id, event.id);
            self.blame(fault);
        }
        self.seen.insert(position, event);
    }
}

/// By organization and invoice.
pub(super) type Invoices = BTreeMap<(usize, String), Told>;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Book {
    invoices: Mutex<Invoices>,
    readers: Mutex<Vec<Reader>>,
    outside: Mutex<Outside>,
}

/// What people have had in their hands, besides invoices and events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outside {
    /// The intents that they have made by hand at Stripe.
    pub beside: BTreeSet<String>,
    /// The Checkout pages that they were told of, on which an invoice can be paid.
    pub links: BTreeSet<String>,
    /// The refunds that were acknowledged, by their ids here.
    pub refunds: BTreeSet<String>,
    /// Methods of imported customers with another default that nobody has ever chosen, with their customers at Stripe.
    pub unchosen: BTreeMap<String, String>,
    /// The defaults that were unset at Stripe, by organization and customer.
    pub unset: BTreeMap<(usize, String), Unset>,
}

/// A default that somebody has unset at Stripe. Times are unix seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unset {
    /// The customer at Stripe.
    pub customer: String,
    /// The method, which stays attached.
    pub method: String,
    /// When the billing system had heard of it.
    pub heard: Option<i64>,
    /// When it was about to be chosen again.
    pub until: Option<i64>,
}

impl Book {
    /// Changes what is known of an invoice.
    pub fn invoice(&self, organization: usize, invoice: &str, change: impl FnOnce(&mut Told)) {
        change(lock(&self.invoices).entry((organization, invoice.to_owned())).or_default());
    }

    /// How many invoices were acknowledged.
    pub fn accepted(&self) -> usize {
        lock(&self.invoices).values().filter(|told| !told.payments.is_empty()).count()
    }

    /// Opens a page for a subscriber; the number leads to it.
    pub fn add_reader(&self, organization: usize, name: &str) -> usize {
        let mut readers = lock(&self.readers);
        readers.push(Reader { organization, name: name.to_owned(), ..Reader::default() });
        readers.len() - 1
    }

    /// Changes a subscriber's page.
    pub fn reader<T>(&self, number: usize, change: impl FnOnce(&mut Reader) -> T) -> T {
        change(&mut lock(&self.readers)[number])
    }

    /// How many events were seen by all subscribers together.
    pub fn seen(&self) -> usize {
        lock(&self.readers).iter().map(|reader| reader.seen.len()).sum()
    }

    /// Where each subscriber stands: its organization, and the last position that it saw.
    pub fn positions(&self) -> Vec<(usize, i64)> {
        let last = |reader: &Reader| reader.seen.last_key_value().map_or(0, |(position, _)| *position);
        lock(&self.readers).iter().map(|reader| (reader.organization, last(reader))).collect()
    }

    /// Changes what people have in their hands.
    pub fn outside(&self, change: impl FnOnce(&mut Outside)) {
        change(&mut lock(&self.outside));
    }

    /// Whether the billing system has heard that a customer's default was unset.
    pub fn is_unset_heard(&self, whose: &(usize, String)) -> bool {
        lock(&self.outside).unset.get(whose).is_some_and(|unset| unset.heard.is_some())
    }

    /// All that is written in it.
    pub fn read(&self) -> (Invoices, Vec<Reader>, Outside) {
        (lock(&self.invoices).clone(), lock(&self.readers).clone(), lock(&self.outside).clone())
    }
}
