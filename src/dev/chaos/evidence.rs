//! What is known at the end, from all witnesses: the database as its superuser reads it, the sandbox's ledger, objects and
//! events, the book, and the logs. Collected here, judged by the `checker`. Nothing here goes through `app` or `store`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio_postgres::Client;

use super::book::{Invoices, Outside, Reader};
use super::callers::Organization;
use super::watcher::Sighting;
use crate::dev::sandbox::{LedgerEntry, Sandbox};

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
    /// Reads the database. `now` is the clock's, in unix seconds.
    pub async fn read_database(&mut self, client: &Client, now: f64) -> Result<()> {
        let payments = "SELECT organization_id::text, id::text, invoice_id, state, coalesce(pending_reason, ''), \
             coalesce(failure ->> 'code', ''), amount, amount_received, amount_refunded, \
             coalesce(provider_payment_intent_id, ''), manual IS NOT NULL FROM payments ORDER BY id";
        for row in client.query(payments, &[]).await.context("payments")? {
            self.payments.push(PaymentRow {
                organization: row.get(0),
                id: row.get(1),
                invoice: row.get(2),
                state: row.get(3),
                pending_reason: row.get(4),
                failure: row.get(5),
                amount: row.get(6),
                received: row.get(7),
                refunded: row.get(8),
                intent: row.get(9),
                is_manual: row.get(10),
            });
        }
        let attempts =
            "SELECT payment_id::text, number, state = 'open', coalesce(provider_session_id, '') FROM payment_attempts";
        for row in client.query(attempts, &[]).await.context("attempts")? {
            let (payment, number, is_open) = (row.get(0), row.get(1), row.get(2));
            self.attempts.push(AttemptRow { payment, number, is_open, session: row.get(3) });
        }
        let refunds = "SELECT id::text, payment_id::text, coalesce(provider_refund_id, ''), coalesce(amount, 0), status, \
             coalesce(failure_reason, '') FROM refunds";
        for row in client.query(refunds, &[]).await.context("refunds")? {
            self.refunds.push(RefundRow {
                id: row.get(0),
                payment: row.get(1),
                refund: row.get(2),
                amount: row.get(3),
                status: row.get(4),
                failure: row.get(5),
            });
        }
        let disputes = "SELECT provider_dispute_id, status FROM disputes";
        for row in client.query(disputes, &[]).await.context("disputes")? {
            self.disputes.insert(row.get(0), row.get(1));
        }
        let overpayments = "SELECT provider_payment_intent_id, payment_id::text FROM overpayments";
        for row in client.query(overpayments, &[]).await.context("overpayments")? {
            self.overpayments.push(OverpaymentRow { intent: row.get(0), payment: row.get(1) });
        }
        let deliveries = "SELECT organization_id::text, provider_event_id, state, coalesce(reason, ''), \
             (extract(epoch FROM receive_time) * 1000000)::bigint FROM deliveries";
        for row in client.query(deliveries, &[]).await.context("deliveries")? {
            let delivery = DeliveryRow { state: row.get(2), reason: row.get(3), received: row.get(4) };
            self.deliveries.insert((row.get(0), row.get(1)), delivery);
        }
        let jobs = "SELECT kind, object_id::text || ' ' || object_key, failures, coalesce(last_error, ''), \
             $1::float8 - extract(epoch FROM run_at)::float8, coalesce(lease_until > clock_timestamp(), false), \
             park_time IS NOT NULL FROM jobs";
        for row in client.query(jobs, &[&now]).await.context("jobs")? {
            self.jobs.push(JobRow {
                kind: row.get(0),
                object: row.get(1),
                failures: row.get(2),
                last_error: row.get(3),
                overdue: row.get(4),
                is_held: row.get(5),
                is_parked: row.get(6),
            });
        }
        self.read_events(client).await
    }

    async fn read_events(&mut self, client: &Client) -> Result<()> {
        let events = "SELECT organization_id::text, position, id::text, webhook_type, \
             coalesce(payload #>> '{payment,lago_id}', \
                 payload #>> '{payment_provider_invoice_payment_error,lago_payment_id}', ''), \
             coalesce(payload #>> '{payment,provider_payment_id}', ''), \
             coalesce(payload #>> '{refund,lago_refund_id}', ''), coalesce(payload #>> '{refund,status}', '') \
             FROM events ORDER BY organization_id, position";
        for row in client.query(events, &[]).await.context("events")? {
            self.events.push(EventRow {
                organization: row.get(0),
                position: row.get(1),
                id: row.get(2),
                webhook_type: row.get(3),
                payment: row.get(4),
                intent: row.get(5),
                refund: row.get(6),
                status: row.get(7),
            });
        }
        let heads = "SELECT organization_id::text, last_position FROM event_heads";
        for row in client.query(heads, &[]).await.context("event heads")? {
            self.heads.insert(row.get(0), row.get(1));
        }
        Ok(())
    }

    /// Reads the sandbox.
    pub fn read_sandbox(&mut self, sandbox: &Sandbox, organizations: &[std::sync::Arc<Organization>]) {
        let text = |value: &Value, pointer: &str| {
            value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        self.charges = sandbox.ledger();
        for intent in sandbox.objects("payment_intent") {
            let known = Intent { status: text(&intent, "/status"), payment: text(&intent, "/metadata/payment_id") };
            self.intents.insert(text(&intent, "/id"), known);
        }
        for refund in sandbox.objects("refund") {
            self.stripe_refunds.push(StripeRefund {
                id: text(&refund, "/id"),
                charge: text(&refund, "/charge"),
                amount: refund["amount"].as_i64().unwrap_or_default(),
                status: text(&refund, "/status"),
                mark: text(&refund, "/metadata/refund_id"),
            });
        }
        for dispute in sandbox.objects("dispute") {
            let about = (text(&dispute, "/charge"), text(&dispute, "/status"));
            self.stripe_disputes.insert(text(&dispute, "/id"), about);
        }
        self.lost = sandbox.lost_events().into_iter().collect();
        let waiting = sandbox.deliveries().into_iter();
        self.undelivered = waiting.map(|it| format!("{} {} ({})", it.event, it.kind, it.last_answer)).collect();
        // All endpoints of ours ask for the same types; who reads the list in place of webhooks takes in the same.
        let endpoints = sandbox.objects("webhook_endpoint");
        let enabled = endpoints.iter().find_map(|endpoint| endpoint["enabled_events"].as_array()).cloned();
        let enabled = enabled.unwrap_or_default();
        for organization in organizations {
            self.tenants.push(Tenant { id: organization.id.to_string(), account: organization.account.clone() });
            let acknowledged: BTreeMap<_, _> = sandbox.acknowledged(&organization.account).into_iter().collect();
            for event in sandbox.events(&organization.account) {
                if enabled.contains(&event["type"]) {
                    self.stripe_events.push(StripeEvent {
                        account: organization.account.clone(),
                        id: text(&event, "/id"),
                        kind: text(&event, "/type"),
                        object: text(&event, "/data/object/id"),
                        acknowledged: acknowledged.get(event["id"].as_str().unwrap_or_default()).copied(),
                    });
                }
            }
        }
    }

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
