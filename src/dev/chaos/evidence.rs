//! What is known at the end, from all witnesses: the database as its superuser reads it, the sandbox's ledger, objects and
//! events, the book, and the logs. Collected here, judged by the `checker`. Nothing here goes through `app` or `store`.

mod database;
mod stripe;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::Result;

use super::book::{Invoices, Outside, Reader};
use super::watcher::Sighting;
use crate::dev::sandbox::LedgerEntry;

/// An organization and its Stripe account, by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tenant {
    pub id: String,
    pub account: String,
}

/// A row of `payments`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PaymentRow {
    pub organization: String,
    pub id: String,
    pub invoice: String,
    pub state: String,
    pub pending_reason: String,
    /// The failure's code.
    pub failure: String,
    pub amount: i64,
    pub received: i64,
    pub refunded: i64,
    pub intent: String,
    /// Somebody has recorded that it was paid elsewhere.
    pub is_manual: bool,
}

/// A row of `payment_attempts`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AttemptRow {
    pub payment: String,
    pub number: i32,
    pub is_open: bool,
    /// The Checkout page, of a link.
    pub session: String,
}

/// A row of `refunds`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RefundRow {
    pub id: String,
    pub payment: String,
    /// Stripe's id; empty if it has none.
    pub refund: String,
    /// Minor units; 0 if it is not known.
    pub amount: i64,
    pub status: String,
    pub failure: String,
}

/// A refund at Stripe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StripeRefund {
    pub id: String,
    pub charge: String,
    pub amount: i64,
    pub status: String,
    /// The id of our refund that it bears.
    pub mark: String,
}

/// A row of `customers`, with its default method.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CustomerRow {
    pub organization: String,
    /// The billing system's id.
    pub external_id: String,
    /// Stripe's id; empty if it is not linked.
    pub customer: String,
    /// Stripe's id of the default method; empty if there is none.
    pub default: String,
}

/// A customer at Stripe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StripeCustomer {
    /// Its default for invoices; empty if there is none.
    pub chosen: String,
    /// The legacy default, which counts where the other is empty.
    pub source: String,
}

impl StripeCustomer {
    /// What counts as its default; empty if there is none.
    pub fn effective_default(&self) -> &str {
        if self.chosen.is_empty() { &self.source } else { &self.chosen }
    }
}

/// A row of `events`, with the payment and the intent, or the refund and its status, that it is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EventRow {
    pub organization: String,
    pub position: i64,
    pub id: String,
    pub webhook_type: String,
    pub payment: String,
    pub intent: String,
    pub refund: String,
    pub status: String,
    /// Of a payment, minor units.
    pub amount: i64,
    /// What somebody wanted to change it to, minor units; 0 if nobody does.
    pub requested: i64,
    /// The billing system's id of the customer.
    pub customer: String,
    /// Stripe's id of the payment method.
    pub method: String,
    /// The failure's code.
    pub code: String,
}

/// A row of `jobs`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct JobRow {
    pub kind: String,
    pub object: String,
    pub failures: i32,
    pub last_error: String,
    /// Seconds of the clock since it was to run; negative: it is for later.
    pub overdue: f64,
    pub is_held: bool,
    pub is_parked: bool,
}

/// A row of `deliveries`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DeliveryRow {
    pub state: String,
    pub reason: String,
    /// When it was taken in, in microseconds since 1970.
    pub received: i64,
}

/// A row of `overpayments`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OverpaymentRow {
    pub intent: String,
    pub payment: String,
}

/// A PaymentIntent at Stripe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Intent {
    pub status: String,
    /// Our payment, by the intent's metadata.
    pub payment: String,
}

/// An event of Stripe's that an endpoint of ours has asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StripeEvent {
    pub account: String,
    pub id: String,
    pub kind: String,
    /// What it is about.
    pub object: String,
    /// When a webhook of it was acknowledged first, in microseconds since 1970.
    pub acknowledged: Option<i64>,
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    pub tenants: Vec<Tenant>,
    pub customers: Vec<CustomerRow>,
    pub payments: Vec<PaymentRow>,
    pub attempts: Vec<AttemptRow>,
    pub refunds: Vec<RefundRow>,
    /// The status of each dispute, by Stripe's id.
    pub disputes: BTreeMap<String, String>,
    pub overpayments: Vec<OverpaymentRow>,
    /// By organization and Stripe's event id.
    pub deliveries: BTreeMap<(String, String), DeliveryRow>,
    pub events: Vec<EventRow>,
    /// The counter of each organization's log.
    pub heads: BTreeMap<String, i64>,
    pub jobs: Vec<JobRow>,
    pub charges: Vec<LedgerEntry>,
    /// The method of each charge.
    pub charged_methods: BTreeMap<String, String>,
    pub stripe_customers: BTreeMap<String, StripeCustomer>,
    /// The mandates of each bank account, as id and status.
    pub mandates: BTreeMap<String, BTreeMap<String, String>>,
    /// Customers whose default became a method, as Stripe's events say, with that method.
    pub became_default: BTreeSet<(String, String)>,
    pub intents: BTreeMap<String, Intent>,
    pub stripe_refunds: Vec<StripeRefund>,
    /// The charge and the status of each dispute at Stripe, by its id.
    pub stripe_disputes: BTreeMap<String, (String, String)>,
    pub stripe_events: Vec<StripeEvent>,
    /// Stripe's events that a fault kept from being sent.
    pub lost: BTreeSet<String>,
    /// Webhooks that were never acknowledged.
    pub undelivered: Vec<String>,
    pub invoices: Invoices,
    pub readers: Vec<Reader>,
    pub outside: Outside,
    /// Payments with several ways to pay at once, and how often somebody looked.
    pub sightings: BTreeSet<Sighting>,
    pub looks: u64,
    /// Where a secret stands in a log.
    pub secrets: Vec<String>,
    /// How often a process died at each of the named points of the code.
    pub crash_points: BTreeMap<String, usize>,
    /// What did not come to its end in time.
    pub unrest: Vec<String>,
}

impl Evidence {
    /// Looks for secrets in a log: those given, by name and value, and whatever looks like one of Stripe's; and for the
    /// last words of processes that died at a point of the code.
    pub fn read_log(&mut self, path: &Path, secrets: &[(String, String)]) -> Result<()> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&line);
            self.secrets.extend(found(&text, secrets).map(|what| format!("{name}:{number} holds {what}")));
            if let Some((_, point)) = text.split_once("crash point ").filter(|_| text.contains(": dying")) {
                let point = point.split(':').next().unwrap_or_default().to_owned();
                *self.crash_points.entry(point).or_default() += 1;
            }
        }
        Ok(())
    }
}

/// What stands in every secret of a kind.
const MARKS: [&str; 5] = ["sk_test_", "rk_test_", "whsec_", "_secret_", "Bearer pbt_"];

/// The secrets in a line, by name.
pub(super) fn found<'a>(line: &'a str, secrets: &'a [(String, String)]) -> impl Iterator<Item = &'a str> {
    let known = secrets.iter().filter(move |(_, value)| line.contains(value.as_str())).map(|(name, _)| name.as_str());
    known.chain(MARKS.into_iter().filter(move |mark| line.contains(mark)))
}
