//! The evidence at the end of a run: the database as its superuser reads it, the sandbox's ledger, objects and events,
//! the history, and the logs. It is collected here without `app` and `store`, and checked by the `checker`.

mod database;
mod stripe;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::Result;

use super::history::{ExternalRecord, Invoices, SubscriberRecord};
use super::monitor::Overlap;
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
    /// Whether a manual payment was recorded.
    pub is_manual: bool,
}

/// A row of `payment_attempts`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AttemptRow {
    pub payment: String,
    pub number: i32,
    pub is_open: bool,
    /// The Checkout session of a payment link.
    pub session: String,
}

/// A row of `refunds`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RefundRow {
    pub id: String,
    pub payment: String,
    /// Stripe's id; empty if it has none.
    pub refund: String,
    /// Minor units; 0 if unknown.
    pub amount: i64,
    pub status: String,
    pub failure: String,
}

/// A refund in Stripe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StripeRefund {
    pub id: String,
    pub charge: String,
    pub amount: i64,
    pub status: String,
    /// Our refund's id in its metadata.
    pub refund_id: String,
    /// The organization and the caller's request id in its metadata; empty if nobody requested it from Paybridge.
    pub request: String,
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

/// A customer in Stripe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StripeCustomer {
    /// `invoice_settings.default_payment_method`; empty if there is none.
    pub chosen: String,
    /// The legacy `default_source`, which counts if the other is empty.
    pub source: String,
}

impl StripeCustomer {
    /// The effective default; empty if there is none.
    pub fn effective_default(&self) -> &str {
        if self.chosen.is_empty() { &self.source } else { &self.chosen }
    }
}

/// A row of `events`, with what its payload says of a payment, refund, customer or method.
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
    /// The payment's amount, in minor units.
    pub amount: i64,
    /// The requested amount, in minor units; 0 if there is none.
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
    /// Seconds since it was due; negative if it is scheduled for later.
    pub overdue: f64,
    pub is_leased: bool,
    pub is_parked: bool,
}

/// A row of `deliveries`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DeliveryRow {
    pub state: String,
    pub reason: String,
    /// When it was received, in microseconds since 1970.
    pub received: i64,
}

/// A row of `overpayments`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OverpaymentRow {
    pub intent: String,
    pub payment: String,
}

/// A PaymentIntent in Stripe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Intent {
    pub status: String,
    /// Our payment's id in its metadata; the present one of its invoice if that one is lost.
    pub payment: String,
}

/// A Stripe event that our webhook endpoints subscribe to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StripeEvent {
    pub account: String,
    pub id: String,
    pub kind: String,
    /// The id of its object.
    pub object: String,
    /// When Stripe created it, in microseconds since 1970.
    pub created: i64,
    /// When its webhook was first acknowledged, in microseconds since 1970.
    pub acknowledged: Option<i64>,
}

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
    /// The position counter of each organization's log.
    pub heads: BTreeMap<String, i64>,
    pub jobs: Vec<JobRow>,
    pub charges: Vec<LedgerEntry>,
    /// The payment method of each charge.
    pub charged_methods: BTreeMap<String, String>,
    pub stripe_customers: BTreeMap<String, StripeCustomer>,
    /// The mandates of each bank account, with their status.
    pub mandates: BTreeMap<String, BTreeMap<String, String>>,
    /// Customers and the methods that became their default, according to Stripe's events.
    pub became_default: BTreeSet<(String, String)>,
    pub intents: BTreeMap<String, Intent>,
    pub stripe_refunds: Vec<StripeRefund>,
    /// The charge and the status of each dispute in Stripe, by its id.
    pub stripe_disputes: BTreeMap<String, (String, String)>,
    pub stripe_events: Vec<StripeEvent>,
    /// Stripe events whose webhooks a fault dropped.
    pub lost: BTreeSet<String>,
    /// Webhooks that were never acknowledged.
    pub undelivered: Vec<String>,
    pub invoices: Invoices,
    pub subscribers: Vec<SubscriberRecord>,
    pub external: ExternalRecord,
    /// Moments at which a payment had several open payment paths, and the number of samples taken.
    pub overlaps: BTreeSet<Overlap>,
    pub samples: u64,
    /// Secrets found in logs, with file and line.
    pub secrets: Vec<String>,
    /// How often a process was killed at each failpoint.
    pub failpoint_crashes: BTreeMap<String, usize>,
    /// What did not finish in time.
    pub incomplete: Vec<String>,
    /// What was committed in these periods may be lost: from each snapshot of the database to the end of its
    /// restoration, in microseconds since 1970.
    pub lost_periods: Vec<(i64, i64)>,
    /// Open Checkout sessions that Paybridge did not know once it had caught up.
    pub unknown_sessions: Vec<String>,
}

impl Evidence {
    /// Searches a log for secrets: those given, by name and value, and whatever looks like one of Stripe's; and counts
    /// the processes killed at failpoints.
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
            self.secrets.extend(find_secrets(&text, secrets).map(|what| format!("{name}:{number} contains {what}")));
            if let Some((_, point)) = text.split_once("failpoint ").filter(|_| text.contains(": killing the process")) {
                let point = point.split(':').next().unwrap_or_default().to_owned();
                *self.failpoint_crashes.entry(point).or_default() += 1;
            }
        }
        Ok(())
    }
}

/// What every secret of a kind contains.
const SECRET_PATTERNS: [&str; 5] = ["sk_test_", "rk_test_", "whsec_", "_secret_", "Bearer pbt_"];

/// The names of the secrets in a line.
pub(super) fn find_secrets<'a>(line: &'a str, secrets: &'a [(String, String)]) -> impl Iterator<Item = &'a str> {
    let known = secrets.iter().filter(move |(_, value)| line.contains(value.as_str())).map(|(name, _)| name.as_str());
    known.chain(SECRET_PATTERNS.into_iter().filter(move |pattern| line.contains(pattern)))
}
