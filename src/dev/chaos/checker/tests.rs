//! The checker finds what it should: consistent evidence passes, and evidence with one thing changed violates the
//! property concerned.

mod methods;
mod restorations;

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::*;
use crate::dev::chaos::evidence::{
    AttemptRow, DeliveryRow, EventRow, Intent, JobRow, OverpaymentRow, RefundRow, StripeEvent, StripeRefund, Tenant,
    find_secrets,
};
use crate::dev::chaos::history::{ExternalRecord, InvoiceRecord, SeenEvent, SubscriberRecord};
use crate::dev::chaos::monitor::PaymentPath;
use crate::dev::sandbox::LedgerEntry;

const ORG: &str = "org";
const PAID: usize = 0;
const FAILED: usize = 1;

fn charge(id: &str, intent: &str, payment: &str, invoice: &str, status: &str) -> LedgerEntry {
    let metadata = [("payment_id", payment), ("invoice_id", invoice)];
    LedgerEntry {
        account: "acct".to_owned(),
        livemode: false,
        charge: id.to_owned(),
        payment_intent: intent.to_owned(),
        customer: None,
        amount: 500,
        currency: "eur".to_owned(),
        status: status.to_owned(),
        failure_code: None,
        amount_refunded: 0,
        disputed: false,
        metadata: metadata.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        created: 0,
    }
}

/// The payment `p1` of the invoice `inv-1`, which the intent `pi_1` collects, and so on.
fn payment(number: u8, state: &str, received: i64, failure: &str) -> PaymentRow {
    PaymentRow {
        organization: ORG.to_owned(),
        id: format!("p{number}"),
        invoice: format!("inv-{number}"),
        state: state.to_owned(),
        pending_reason: String::new(),
        failure: failure.to_owned(),
        amount: 500,
        received,
        refunded: if number == 1 { 500 } else { 0 },
        intent: format!("pi_{number}"),
        is_manual: false,
    }
}

fn intent(status: &str, payment: &str) -> Intent {
    Intent { status: status.to_owned(), payment: payment.to_owned() }
}

fn event(position: i64, webhook_type: &str, payment: &str, intent: &str) -> EventRow {
    EventRow {
        organization: ORG.to_owned(),
        position,
        id: Uuid::from_u128(position.unsigned_abs().into()).to_string(),
        webhook_type: webhook_type.to_owned(),
        payment: payment.to_owned(),
        intent: intent.to_owned(),
        ..EventRow::default()
    }
}

fn record(payment: &str, must_be_paid: bool) -> InvoiceRecord {
    InvoiceRecord {
        payments: BTreeSet::from([payment.to_owned()]),
        amounts: BTreeSet::from([500]),
        must_be_paid,
        ..InvoiceRecord::default()
    }
}

/// The refund of the payment made in the Dashboard.
fn refund_row() -> RefundRow {
    RefundRow {
        id: "r1".into(),
        payment: "p1".into(),
        refund: "re_1".into(),
        amount: 500,
        status: "succeeded".into(),
        failure: String::new(),
    }
}

fn stripe_refund() -> StripeRefund {
    StripeRefund {
        id: "re_1".into(),
        charge: "ch_2".into(),
        amount: 500,
        status: "succeeded".into(),
        refund_id: "r1".into(),
        request: "goodwill of org".into(),
    }
}

/// A subscriber that has received all events.
fn subscriber(events: &[EventRow]) -> SubscriberRecord {
    let seen = |event: &EventRow| {
        let seen = SeenEvent { id: event.id.parse().unwrap(), webhook_type: event.webhook_type.clone() };
        (event.position, seen)
    };
    let events = events.iter().map(seen).collect();
    SubscriberRecord { organization: 0, name: "slow".into(), events, ..SubscriberRecord::default() }
}

/// Evidence without violations: two invoices, one paid, and paid again in the Dashboard and refunded; the other
/// declined.
fn consistent() -> Evidence {
    let events = vec![
        event(1, "payment.succeeded", "p1", "pi_1"),
        event(2, "payment.overpaid", "p1", "pi_dashboard"),
        event(3, "invoice.payment_failure", "p2", ""),
        EventRow { refund: "r1".into(), status: "succeeded".into(), ..event(4, "payment.refund_updated", "", "") },
    ];
    let stripe = |id: &str| StripeEvent {
        account: "acct".into(),
        id: id.into(),
        kind: "k".into(),
        object: "o".into(),
        created: 4_000_000,
        acknowledged: (id != "evt_lost").then_some(5_000_000),
    };
    let delivery = |id: &str, state: &str, reason: &str| {
        let row = DeliveryRow { state: state.to_owned(), reason: reason.to_owned(), received: 4_000_000 };
        ((ORG.to_owned(), id.to_owned()), row)
    };
    Evidence {
        tenants: vec![Tenant { id: ORG.into(), account: "acct".into() }],
        payments: vec![payment(1, "succeeded", 1_000, ""), payment(2, "failed", 0, "card_declined")],
        overpayments: vec![OverpaymentRow { intent: "pi_dashboard".into(), payment: "p1".into() }],
        deliveries: BTreeMap::from([
            delivery("evt_1", "applied", ""),
            delivery("evt_2", "ignored", "not ours"),
            delivery("evt_lost", "applied", ""),
        ]),
        heads: BTreeMap::from([(ORG.to_owned(), 4)]),
        jobs: vec![JobRow { kind: "reconcile_payment".into(), overdue: -60.0, ..JobRow::default() }],
        charges: vec![
            charge("ch_1", "pi_1", "p1", "inv-1", "succeeded"),
            charge("ch_2", "pi_dashboard", "p1", "inv-1", "succeeded"),
            charge("ch_3", "pi_2", "p2", "inv-2", "failed"),
        ],
        intents: BTreeMap::from([
            ("pi_1".to_owned(), intent("succeeded", "p1")),
            ("pi_dashboard".to_owned(), intent("succeeded", "p1")),
            ("pi_2".to_owned(), intent("requires_payment_method", "p2")),
        ]),
        stripe_events: vec![stripe("evt_1"), stripe("evt_2"), stripe("evt_lost")],
        lost: BTreeSet::from(["evt_lost".to_owned()]),
        invoices: BTreeMap::from([
            ((0, "inv-1".to_owned()), record("p1", true)),
            ((0, "inv-2".to_owned()), record("p2", false)),
        ]),
        subscribers: vec![subscriber(&events)],
        refunds: vec![refund_row()],
        stripe_refunds: vec![stripe_refund()],
        disputes: BTreeMap::from([("du_1".to_owned(), "needs_response".to_owned())]),
        stripe_disputes: BTreeMap::from([("du_1".to_owned(), ("ch_1".to_owned(), "needs_response".to_owned()))]),
        attempts: vec![AttemptRow { payment: "p2".into(), number: 1, session: "cs_1".into(), ..AttemptRow::default() }],
        external: ExternalRecord {
            dashboard_intents: BTreeSet::from(["pi_dashboard".to_owned()]),
            links: BTreeSet::from(["cs_1".to_owned()]),
            refunds: BTreeSet::from(["r1".to_owned()]),
            ..ExternalRecord::default()
        },
        events,
        ..Evidence::default()
    }
}

/// The violated properties.
fn violated(evidence: &Evidence) -> Vec<&'static str> {
    check(evidence).into_iter().filter(|row| !row.violations.is_empty()).map(|row| row.property).collect()
}

#[test]
fn consistent_evidence_has_no_violation() {
    assert_eq!(violated(&consistent()), [""; 0]);
}

/// Changes consistent evidence, and expects a violation of a property, among others.
#[track_caller]
fn expect_violation(row: &str, tamper: impl FnOnce(&mut Evidence)) {
    let mut evidence = consistent();
    tamper(&mut evidence);
    let found = violated(&evidence);
    assert!(found.contains(&row), "a violation of {row:?} was expected; violated: {found:?}");
}

#[test]
fn p1_a_second_charge_is_found() {
    let row = "no invoice is charged twice";
    expect_violation(row, |it| it.charges.push(charge("ch_4", "pi_1", "p1", "inv-1", "succeeded")));
    // One that is still in progress counts, and so does one on another intent that was not created in the Dashboard.
    expect_violation(row, |it| it.charges.push(charge("ch_4", "pi_9", "p1", "inv-1", "pending")));
    expect_violation(row, |it| it.external.dashboard_intents.clear());
}

/// One of two intents of ours that a restore has made unknown.
#[test]
fn a_duplicate_that_was_paid_in_place_of_the_payments_own_intent_is_no_second_payment() {
    let row = "overpayments come from the Dashboard, are recorded and reported";
    let by_duplicate = |it: &mut Evidence| {
        it.overpayments = vec![OverpaymentRow { intent: "pi_1".into(), payment: "p1".into() }];
        it.external.dashboard_intents.clear();
        it.events.retain(|event| event.webhook_type != "payment.overpaid");
        it.intents.insert("pi_dashboard".to_owned(), intent("canceled", "p1"));
    };
    let mut evidence = consistent();
    by_duplicate(&mut evidence);
    assert!(!violated(&evidence).contains(&row));
    expect_violation(row, |it| {
        by_duplicate(it);
        it.intents.remove("pi_dashboard");
    });
}

#[test]
fn unrecorded_money_is_found() {
    let row = "the sum charged is the sum recorded";
    expect_violation(row, |it| it.payments[PAID].received = 500);
    expect_violation(row, |it| it.charges.push(charge("ch_4", "pi_9", "p9", "inv-9", "succeeded")));
}

#[test]
fn p12_an_unreported_overpayment_is_found() {
    let row = "overpayments come from the Dashboard, are recorded and reported";
    expect_violation(row, |it| it.overpayments.clear());
    expect_violation(row, |it| it.events[1].webhook_type = "payment.processing".to_owned());
    expect_violation(row, |it| it.external.dashboard_intents.clear());
}

/// Paid elsewhere and also by the payment's own intent.
#[test]
fn p12_an_unreported_second_payment_is_found() {
    let row = "overpayments come from the Dashboard, are recorded and reported";
    let by_both = |it: &mut Evidence| {
        it.payments[PAID].is_manual = true;
        it.invoices.get_mut(&(0, "inv-1".to_owned())).unwrap().is_manual_requested = true;
        let overpaid = event(5, "payment.overpaid", "p1", "pi_1");
        let seen = SeenEvent { id: overpaid.id.parse().unwrap(), webhook_type: overpaid.webhook_type.clone() };
        it.subscribers[0].events.insert(5, seen);
        it.heads.insert(ORG.to_owned(), 5);
        it.events.push(overpaid);
    };
    let mut evidence = consistent();
    by_both(&mut evidence);
    assert_eq!(violated(&evidence), [""; 0]);
    expect_violation(row, |it| {
        by_both(it);
        it.events.pop();
    });
    expect_violation(row, |it| {
        by_both(it);
        it.payments[PAID].is_manual = false;
    });
}

#[test]
fn p1_two_open_payment_paths_are_found() {
    let row = "at most one open payment path at any moment";
    let intent = |id: &str| PaymentPath::Intent(id.to_owned(), "processing".to_owned());
    let overlap = |paths: [PaymentPath; 2]| ("inv-2 of org".to_owned(), BTreeSet::from(paths));
    expect_violation(row, |it| _ = it.overlaps.insert(overlap([intent("pi_2"), intent("pi_3")])));
    expect_violation(row, |it| {
        _ = it.overlaps.insert(overlap([PaymentPath::Session("cs_1".to_owned()), intent("pi_2")]));
    });
    // A session whose URL never left Paybridge is no payment path, and neither is a payment in the Dashboard.
    let mut evidence = consistent();
    evidence.overlaps.insert(overlap([PaymentPath::Session("cs_2".to_owned()), intent("pi_2")]));
    evidence.overlaps.insert(overlap([intent("pi_dashboard"), intent("pi_2")]));
    assert_eq!(violated(&evidence), [""; 0]);
    expect_violation("no attempt is left open", |it| it.attempts[0].is_open = true);
}

#[test]
fn a_refund_that_differs_from_stripe_is_found() {
    let row = "refunds are made once and match Stripe";
    expect_violation(row, |it| it.refunds.clear());
    expect_violation(row, |it| it.refunds[0].status = "pending".to_owned());
    expect_violation(row, |it| it.refunds[0].amount = 499);
    expect_violation(row, |it| it.refunds[0].refund.clear());
    expect_violation(row, |it| it.payments[PAID].refunded = 0);
    expect_violation(row, |it| it.events[3].status = "pending".to_owned());
    expect_violation(row, |it| _ = it.external.refunds.insert("r2".to_owned()));
    expect_violation(row, |it| {
        it.stripe_refunds.push(StripeRefund { id: "re_2".to_owned(), ..it.stripe_refunds[0].clone() });
    });
    let row = "disputes match Stripe";
    expect_violation(row, |it| it.disputes.clear());
    expect_violation(row, |it| drop(it.disputes.insert("du_1".to_owned(), "lost".to_owned())));
}

#[test]
fn p2_a_state_that_differs_from_stripe_is_found() {
    let row = "every payment's state matches Stripe";
    expect_violation(row, |it| it.payments[FAILED].state = "succeeded".to_owned());
    expect_violation(row, |it| it.intents.get_mut("pi_2").unwrap().status = "succeeded".to_owned());
    expect_violation(row, |it| it.payments[FAILED].state = "canceled".to_owned());
    expect_violation(row, |it| it.payments[PAID].state = "processing".to_owned());
    expect_violation(row, |it| it.external.dashboard_intents.clear());
}

#[test]
fn p8_a_lost_acknowledged_payment_is_found() {
    let row = "every acknowledged invoice is settled or has a reason";
    expect_violation(row, |it| drop(it.payments.remove(FAILED)));
    expect_violation(row, |it| it.payments[FAILED].failure.clear());
    expect_violation(row, |it| it.payments[FAILED].state = "processing".to_owned());
    expect_violation(row, |it| it.payments[PAID].state = "canceled".to_owned());
    expect_violation(row, |it| it.payments[PAID].amount = 501);
    expect_violation(row, |it| it.payments[PAID].is_manual = true);
    let invoice = (0, "inv-2".to_owned());
    expect_violation(row, |it| it.invoices.get_mut(&invoice).unwrap().must_be_paid = true);
    expect_violation(row, |it| it.invoices.get_mut(&invoice).unwrap().is_manual_acknowledged = true);
    expect_violation(row, |it| it.invoices.get_mut(&invoice).unwrap().unexpected_errors.push("Internal".to_owned()));
    expect_violation(row, |it| it.invoices.get_mut(&invoice).unwrap().payments.extend(["p3".to_owned()]));
    expect_violation(row, |it| it.invoices.get_mut(&invoice).unwrap().payments.clear());
    expect_violation(row, |it| drop(it.invoices.remove(&invoice)));
}

#[test]
fn p4_an_outcome_that_is_not_reported_once_is_found() {
    let row = "every outcome is reported";
    expect_violation(row, |it| it.events[0].webhook_type = "payment.processing".to_owned());
    expect_violation(row, |it| it.events.push(event(5, "payment.succeeded", "p1", "pi_1")));
    expect_violation(row, |it| drop(it.events.remove(2)));
    expect_violation(row, |it| it.payments[FAILED].state = "canceled".to_owned());
}

#[test]
fn p5_a_gap_in_the_log_is_found() {
    let row = "event positions have no gaps";
    expect_violation(row, |it| it.events[2].position = 5);
    expect_violation(row, |it| drop(it.events.remove(1)));
    expect_violation(row, |it| *it.heads.get_mut(ORG).unwrap() = 5);
    expect_violation(row, |it| it.events[2].id = it.events[1].id.clone());
}

#[test]
fn p5_a_missed_event_is_found() {
    let row = "no subscriber missed an event";
    expect_violation(row, |it| drop(it.subscribers[0].events.remove(&2)));
    expect_violation(row, |it| it.subscribers[0].events.get_mut(&2).unwrap().id = Uuid::from_u128(9));
    let extra = SeenEvent { id: Uuid::from_u128(4), webhook_type: "payment.succeeded".to_owned() };
    expect_violation(row, |it| drop(it.subscribers[0].events.insert(5, extra.clone())));
    // What a subscriber notices itself: a skipped position, and one with two ids.
    expect_violation(row, |it| it.subscribers[0].record_event(1, 3, extra.clone()));
    let mut subscriber = consistent().subscribers.remove(0);
    subscriber.record_event(2, 3, subscriber.events[&3].clone());
    assert!(subscriber.errors.is_empty(), "receiving it again is no anomaly: {:?}", subscriber.errors);
}

#[test]
fn p6_a_lost_webhook_is_found() {
    let row = "every Stripe event is accounted for";
    let key = (ORG.to_owned(), "evt_1".to_owned());
    expect_violation(row, |it| drop(it.deliveries.remove(&key)));
    expect_violation(row, |it| it.deliveries.get_mut(&key).unwrap().state = "parked".to_owned());
    expect_violation(row, |it| it.deliveries.get_mut(&key).unwrap().state = "received".to_owned());
    // It was acknowledged before it was durable, and recovered from the events list.
    expect_violation(row, |it| it.deliveries.get_mut(&key).unwrap().received = 65_000_000);
    let lost = (ORG.to_owned(), "evt_lost".to_owned());
    expect_violation(row, |it| drop(it.deliveries.remove(&lost)));
}

#[test]
fn leftover_work_is_found() {
    let row = "no job, lease or webhook is left";
    expect_violation(row, |it| it.jobs[0].is_leased = true);
    expect_violation(row, |it| it.jobs[0].failures = 1);
    expect_violation(row, |it| it.jobs[0].is_parked = true);
    expect_violation(row, |it| it.jobs[0].overdue = 3_600.0);
    expect_violation(row, |it| it.undelivered.push("evt_1".to_owned()));
    expect_violation(row, |it| it.incomplete.push("not idle".to_owned()));
}

#[test]
fn p9_a_secret_in_a_log_is_found() {
    expect_violation("no log contains a secret", |it| it.secrets.push("replica-1.log:7 contains whsec_".to_owned()));
    let secrets = [("the key".to_owned(), "c2VhbA==".to_owned())];
    let in_line = |line: &str| find_secrets(line, &secrets).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(in_line("seals with c2VhbA=="), ["the key"]);
    assert_eq!(in_line("client_secret pi_1_secret_abc"), ["_secret_"]);
    assert_eq!(in_line("POST /v1/payment_intents/{id}/confirm 200"), [""; 0]);
}
