//! Tests of the checks that concern restorations of the database.

use super::*;

/// For the same request, after the first refund was lost with the database.
#[test]
fn p8_a_second_refund_for_a_request_is_found() {
    let row = "refunds are made once and match Stripe";
    expect_violation(row, |it| {
        let (id, refund_id) = ("re_2".to_owned(), "r2".to_owned());
        it.stripe_refunds.push(StripeRefund { id: id.clone(), refund_id, amount: 0, ..stripe_refund() });
        it.refunds.push(RefundRow { id: "r2".into(), refund: id, amount: 0, ..refund_row() });
        let reported = EventRow { refund: "r2".into(), status: "succeeded".into(), ..it.events[3].clone() };
        it.events.push(reported);
    });
}

#[test]
fn p8_a_session_that_nobody_knows_is_found() {
    expect_violation("no open Checkout session is unknown", |it| it.unknown_sessions.push("cs_9".to_owned()));
}

#[test]
fn p8_a_log_that_no_restoration_has_replaced_is_found() {
    let replaced = |it: &mut Evidence| it.subscribers[0].replaced_logs = 1;
    expect_violation("no subscriber missed an event", replaced);
    let mut evidence = consistent();
    replaced(&mut evidence);
    evidence.lost_periods.push((4_500_000, 6_000_000));
    assert_eq!(violated(&evidence), [""; 0]);
}

/// A webhook that was acknowledged between the snapshot and its restoration is lost with the database, and read again.
#[test]
fn p8_only_what_a_restoration_has_lost_may_be_ingested_again() {
    let key = (ORG.to_owned(), "evt_1".to_owned());
    let late = |it: &mut Evidence| it.deliveries.get_mut(&key).unwrap().received = 65_000_000;
    let mut evidence = consistent();
    late(&mut evidence);
    evidence.lost_periods.push((4_500_000, 6_000_000));
    assert_eq!(violated(&evidence), [""; 0]);
    expect_violation("every Stripe event is accounted for", |it| {
        late(it);
        it.lost_periods.push((40_000_000, 60_000_000));
    });
}

/// The payment of the first invoice has the Dashboard's intent as its own, and our intent is the overpayment.
#[test]
fn p8_a_dashboard_intent_may_be_taken_for_the_own_one_only_after_a_restoration() {
    let row = "overpayments come from the Dashboard, are recorded and reported";
    let adopted = |it: &mut Evidence| {
        it.payments[0].intent = "pi_dashboard".to_owned();
        it.overpayments[0].intent = "pi_1".to_owned();
        it.events[1].intent = "pi_1".to_owned();
    };
    let mut evidence = consistent();
    adopted(&mut evidence);
    evidence.lost_periods.push((4_500_000, 6_000_000));
    assert!(!violated(&evidence).contains(&row));
    expect_violation(row, adopted);
}

#[test]
fn p8_a_cancellation_that_nobody_requested_needs_a_lost_request() {
    let row = "every acknowledged invoice is settled or has a reason";
    let canceled = |it: &mut Evidence, created| {
        it.payments[1] = PaymentRow { intent: "pi_2".to_owned(), ..payment(2, "canceled", 0, "") };
        it.stripe_events[0].kind = "payment_intent.canceled".to_owned();
        it.stripe_events[0].object = "pi_2".to_owned();
        it.stripe_events[0].created = created;
        it.lost_periods.push((40_000_000, 60_000_000));
    };
    let mut evidence = consistent();
    canceled(&mut evidence, 50_000_000);
    assert!(!violated(&evidence).contains(&row));
    expect_violation(row, |it| canceled(it, 4_000_000));
}
