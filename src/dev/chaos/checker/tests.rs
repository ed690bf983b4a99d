//! The judge has teeth: an honest book passes, and a book in which one thing was doctored fails in the row that it
//! belongs to.

mod methods;

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::*;
use crate::dev::chaos::book::{Outside, Reader, Seen, Told};
use crate::dev::chaos::evidence::{
    AttemptRow, DeliveryRow, EventRow, Intent, JobRow, OverpaymentRow, RefundRow, StripeEvent, StripeRefund, Tenant,
    found,
};
use crate::dev::chaos::watcher::Way;
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

fn payment(id: &str, invoice: &str, intent: &str, state: &str, received: i64, failure: &str) -> PaymentRow {
    PaymentRow {
        organization: ORG.to_owned(),
        id: id.to_owned(),
        invoice: invoice.to_owned(),
        state: state.to_owned(),
        pending_reason: String::new(),
        failure: failure.to_owned(),
        amount: 500,
        received,
        refunded: if id == "p1" { 500 } else { 0 },
        intent: intent.to_owned(),
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

fn told(payment: &str, must_be_paid: bool) -> Told {
    Told {
        payments: BTreeSet::from([payment.to_owned()]),
        amounts: BTreeSet::from([500]),
        must_be_paid,
        ..Told::default()
    }
}

/// The refund of what the clerk has paid.
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
        mark: "r1".into(),
    }
}

/// Two invoices, one paid and overpaid by a clerk who got it back, the other refused; all of it known to everybody.
fn honest() -> Evidence {
    let events = vec![
        event(1, "payment.succeeded", "p1", "pi_1"),
        event(2, "payment.overpaid", "p1", "pi_hand"),
        event(3, "invoice.payment_failure", "p2", ""),
        EventRow { refund: "r1".into(), status: "succeeded".into(), ..event(4, "payment.refund_updated", "", "") },
    ];
    let seen = |event: &EventRow| {
        let seen = Seen { id: event.id.parse().unwrap(), webhook_type: event.webhook_type.clone() };
        (event.position, seen)
    };
    let reader =
        Reader { organization: 0, name: "slow".into(), seen: events.iter().map(seen).collect(), faults: vec![] };
    let stripe = |id: &str| StripeEvent {
        account: "acct".into(),
        id: id.into(),
        kind: "k".into(),
        object: "o".into(),
        acknowledged: (id != "evt_lost").then_some(5_000_000),
    };
    let delivery = |id: &str, state: &str, reason: &str| {
        let row = DeliveryRow { state: state.to_owned(), reason: reason.to_owned(), received: 4_000_000 };
        ((ORG.to_owned(), id.to_owned()), row)
    };
    Evidence {
        tenants: vec![Tenant { id: ORG.into(), account: "acct".into() }],
        payments: vec![
            payment("p1", "inv-1", "pi_1", "succeeded", 1_000, ""),
            payment("p2", "inv-2", "pi_2", "failed", 0, "card_declined"),
        ],
        overpayments: vec![OverpaymentRow { intent: "pi_hand".into(), payment: "p1".into() }],
        deliveries: BTreeMap::from([
            delivery("evt_1", "applied", ""),
            delivery("evt_2", "ignored", "not ours"),
            delivery("evt_lost", "applied", ""),
        ]),
        heads: BTreeMap::from([(ORG.to_owned(), 4)]),
        jobs: vec![JobRow { kind: "reconcile_payment".into(), overdue: -60.0, ..JobRow::default() }],
        charges: vec![
            charge("ch_1", "pi_1", "p1", "inv-1", "succeeded"),
            charge("ch_2", "pi_hand", "p1", "inv-1", "succeeded"),
            charge("ch_3", "pi_2", "p2", "inv-2", "failed"),
        ],
        intents: BTreeMap::from([
            ("pi_1".to_owned(), intent("succeeded", "p1")),
            ("pi_hand".to_owned(), intent("succeeded", "p1")),
            ("pi_2".to_owned(), intent("requires_payment_method", "p2")),
        ]),
        stripe_events: vec![stripe("evt_1"), stripe("evt_2"), stripe("evt_lost")],
        lost: BTreeSet::from(["evt_lost".to_owned()]),
        invoices: BTreeMap::from([
            ((0, "inv-1".to_owned()), told("p1", true)),
            ((0, "inv-2".to_owned()), told("p2", false)),
        ]),
        readers: vec![reader],
        refunds: vec![refund_row()],
        stripe_refunds: vec![stripe_refund()],
        disputes: BTreeMap::from([("du_1".to_owned(), "needs_response".to_owned())]),
        stripe_disputes: BTreeMap::from([("du_1".to_owned(), ("ch_1".to_owned(), "needs_response".to_owned()))]),
        attempts: vec![AttemptRow { payment: "p2".into(), number: 1, session: "cs_1".into(), ..AttemptRow::default() }],
        outside: Outside {
            beside: BTreeSet::from(["pi_hand".to_owned()]),
            links: BTreeSet::from(["cs_1".to_owned()]),
            refunds: BTreeSet::from(["r1".to_owned()]),
            ..Outside::default()
        },
        events,
        ..Evidence::default()
    }
}

/// The rows that report a breach.
fn broken(evidence: &Evidence) -> Vec<&'static str> {
    judge(evidence).into_iter().filter(|row| !row.breaches.is_empty()).map(|row| row.what).collect()
}

#[test]
fn an_honest_book_has_no_breach() {
    assert_eq!(broken(&honest()), [""; 0]);
}

/// Doctors an honest book, and expects a breach in a row, whatever else it breaks.
#[track_caller]
fn expect(row: &str, doctor: impl FnOnce(&mut Evidence)) {
    let mut evidence = honest();
    doctor(&mut evidence);
    let found = broken(&evidence);
    assert!(found.contains(&row), "a breach was expected in {row:?}, and found in {found:?}");
}

#[test]
fn p1_a_second_charge_is_found() {
    let row = "no invoice is charged twice";
    expect(row, |it| it.charges.push(charge("ch_4", "pi_1", "p1", "inv-1", "succeeded")));
    // One that is still under way counts, and so does one on another intent that nobody made by hand.
    expect(row, |it| it.charges.push(charge("ch_4", "pi_9", "p1", "inv-1", "pending")));
    expect(row, |it| it.outside.beside.clear());
}

#[test]
fn money_that_is_not_recorded_is_found() {
    let row = "the sum charged is the sum recorded";
    expect(row, |it| it.payments[PAID].received = 500);
    expect(row, |it| it.charges.push(charge("ch_4", "pi_9", "p9", "inv-9", "succeeded")));
}

#[test]
fn p12_a_silent_overpayment_is_found() {
    let row = "overpayments are people's, recorded and told";
    expect(row, |it| it.overpayments.clear());
    expect(row, |it| it.events[1].webhook_type = "payment.processing".to_owned());
    expect(row, |it| it.outside.beside.clear());
}

/// Paid elsewhere and, as a person saw too late, by the payment's own intent.
#[test]
fn p12_what_was_paid_elsewhere_and_at_stripe_has_to_be_told() {
    let row = "overpayments are people's, recorded and told";
    let by_both = |it: &mut Evidence| {
        it.payments[PAID].is_manual = true;
        it.invoices.get_mut(&(0, "inv-1".to_owned())).unwrap().manual_asked = true;
        let told = event(5, "payment.overpaid", "p1", "pi_1");
        let seen = Seen { id: told.id.parse().unwrap(), webhook_type: told.webhook_type.clone() };
        it.readers[0].seen.insert(5, seen);
        it.heads.insert(ORG.to_owned(), 5);
        it.events.push(told);
    };
    let mut evidence = honest();
    by_both(&mut evidence);
    assert_eq!(broken(&evidence), [""; 0]);
    expect(row, |it| {
        by_both(it);
        it.events.pop();
    });
    expect(row, |it| {
        by_both(it);
        it.payments[PAID].is_manual = false;
    });
}

#[test]
fn p1_two_open_ways_at_once_are_found() {
    let row = "one open way to pay at any moment";
    let intent = |id: &str| Way::Intent(id.to_owned(), "processing".to_owned());
    let sighting = |ways: [Way; 2]| ("p2".to_owned(), BTreeSet::from(ways));
    expect(row, |it| _ = it.sightings.insert(sighting([intent("pi_2"), intent("pi_3")])));
    expect(row, |it| _ = it.sightings.insert(sighting([Way::Page("cs_1".to_owned()), intent("pi_2")])));
    // A page that never left Paybridge is no way, and what people do by hand is theirs.
    let mut evidence = honest();
    evidence.sightings.insert(sighting([Way::Page("cs_2".to_owned()), intent("pi_2")]));
    evidence.sightings.insert(sighting([intent("pi_hand"), intent("pi_2")]));
    assert_eq!(broken(&evidence), [""; 0]);
    expect("no attempt is left open", |it| it.attempts[0].is_open = true);
}

#[test]
fn a_refund_that_is_not_stripes_is_found() {
    let row = "refunds are made once, and are Stripe's";
    expect(row, |it| it.refunds.clear());
    expect(row, |it| it.refunds[0].status = "pending".to_owned());
    expect(row, |it| it.refunds[0].amount = 499);
    expect(row, |it| it.refunds[0].refund.clear());
    expect(row, |it| it.payments[PAID].refunded = 0);
    expect(row, |it| it.events[3].status = "pending".to_owned());
    expect(row, |it| _ = it.outside.refunds.insert("r2".to_owned()));
    expect(row, |it| it.stripe_refunds.push(StripeRefund { id: "re_2".to_owned(), ..it.stripe_refunds[0].clone() }));
    let row = "disputes are Stripe's";
    expect(row, |it| it.disputes.clear());
    expect(row, |it| drop(it.disputes.insert("du_1".to_owned(), "lost".to_owned())));
}

#[test]
fn p2_a_state_that_is_not_stripes_is_found() {
    let row = "every payment's state is Stripe's";
    expect(row, |it| it.payments[FAILED].state = "succeeded".to_owned());
    expect(row, |it| it.intents.get_mut("pi_2").unwrap().status = "succeeded".to_owned());
    expect(row, |it| it.payments[FAILED].state = "canceled".to_owned());
    expect(row, |it| it.payments[PAID].state = "processing".to_owned());
    expect(row, |it| it.outside.beside.clear());
}

#[test]
fn p8_what_was_acknowledged_and_lost_is_found() {
    let row = "what was acknowledged is settled or explained";
    expect(row, |it| drop(it.payments.remove(FAILED)));
    expect(row, |it| it.payments[FAILED].failure.clear());
    expect(row, |it| it.payments[FAILED].state = "processing".to_owned());
    expect(row, |it| it.payments[PAID].state = "canceled".to_owned());
    expect(row, |it| it.payments[PAID].amount = 501);
    expect(row, |it| it.payments[PAID].is_manual = true);
    let invoice = (0, "inv-2".to_owned());
    expect(row, |it| it.invoices.get_mut(&invoice).unwrap().must_be_paid = true);
    expect(row, |it| it.invoices.get_mut(&invoice).unwrap().manual = true);
    expect(row, |it| it.invoices.get_mut(&invoice).unwrap().refusals.push("Internal".to_owned()));
    expect(row, |it| it.invoices.get_mut(&invoice).unwrap().payments.extend(["p3".to_owned()]));
    expect(row, |it| it.invoices.get_mut(&invoice).unwrap().payments.clear());
    expect(row, |it| drop(it.invoices.remove(&invoice)));
}

#[test]
fn p4_an_outcome_that_was_not_told_once_is_found() {
    let row = "every outcome was told";
    expect(row, |it| it.events[0].webhook_type = "payment.processing".to_owned());
    expect(row, |it| it.events.push(event(5, "payment.succeeded", "p1", "pi_1")));
    expect(row, |it| drop(it.events.remove(2)));
    expect(row, |it| it.payments[FAILED].state = "canceled".to_owned());
}

#[test]
fn p5_a_hole_in_the_log_is_found() {
    let row = "positions have no holes";
    expect(row, |it| it.events[2].position = 5);
    expect(row, |it| drop(it.events.remove(1)));
    expect(row, |it| *it.heads.get_mut(ORG).unwrap() = 5);
    expect(row, |it| it.events[2].id = it.events[1].id.clone());
}

#[test]
fn p5_an_event_that_a_subscriber_missed_is_found() {
    let row = "no subscriber missed an event";
    expect(row, |it| drop(it.readers[0].seen.remove(&2)));
    expect(row, |it| it.readers[0].seen.get_mut(&2).unwrap().id = Uuid::from_u128(9));
    let extra = Seen { id: Uuid::from_u128(4), webhook_type: "payment.succeeded".to_owned() };
    expect(row, |it| drop(it.readers[0].seen.insert(5, extra.clone())));
    // What a subscriber notices by itself: a position skipped, and one with two ids.
    expect(row, |it| it.readers[0].note(1, 3, extra.clone()));
    let mut reader = honest().readers.remove(0);
    reader.note(2, 3, reader.seen[&3].clone());
    assert!(reader.faults.is_empty(), "to see it again is no fault: {:?}", reader.faults);
}

#[test]
fn p6_a_lost_webhook_is_found() {
    let row = "every event of Stripe's is accounted for";
    let key = (ORG.to_owned(), "evt_1".to_owned());
    expect(row, |it| drop(it.deliveries.remove(&key)));
    expect(row, |it| it.deliveries.get_mut(&key).unwrap().state = "parked".to_owned());
    expect(row, |it| it.deliveries.get_mut(&key).unwrap().state = "received".to_owned());
    // It was acknowledged before it was durable, and the list brought it back.
    expect(row, |it| it.deliveries.get_mut(&key).unwrap().received = 65_000_000);
    let lost = (ORG.to_owned(), "evt_lost".to_owned());
    expect(row, |it| drop(it.deliveries.remove(&lost)));
}

#[test]
fn work_that_is_left_is_found() {
    let row = "no job is left, no lease held, no webhook waits";
    expect(row, |it| it.jobs[0].is_held = true);
    expect(row, |it| it.jobs[0].failures = 1);
    expect(row, |it| it.jobs[0].is_parked = true);
    expect(row, |it| it.jobs[0].overdue = 3_600.0);
    expect(row, |it| it.undelivered.push("evt_1".to_owned()));
    expect(row, |it| it.unrest.push("not at rest".to_owned()));
}

#[test]
fn p9_a_secret_in_a_log_is_found() {
    expect("nothing secret is in any log", |it| it.secrets.push("replica-1.log:7 holds whsec_".to_owned()));
    let secrets = [("the key".to_owned(), "c2VhbA==".to_owned())];
    let in_line = |line: &str| found(line, &secrets).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(in_line("seals with c2VhbA=="), ["the key"]);
    assert_eq!(in_line("client_secret pi_1_secret_abc"), ["_secret_"]);
    assert_eq!(in_line("POST /v1/payment_intents/{id}/confirm 200"), [""; 0]);
}
