//! P12: what comes in is compared with what is due, whatever amount is requested meanwhile and whoever pays first.

use super::ways::{beside, link, of_link, session};
use super::*;
use crate::domain::signals::SessionStatus;

/// A payment that has failed, whose intent a person could still confirm.
fn beside_open_intent(requested: i64) -> Payment {
    let mut payment = payment(PaymentState::Failed);
    payment.apply(None, News::Asked(payment.amount_change(requested)), HERE);
    payment
}

fn overpaid(intent: &IntentSnapshot, minor_units: i64) -> Notice {
    Notice::Overpaid(Receipt { amount: Money { minor_units, ..EUROS }, ..Receipt::of(intent) })
}

#[test]
fn p12_a_charge_by_hand_while_a_change_waits_is_compared_with_the_requested_amount() {
    for (came, surplus) in [(3000, 0), (4000, 1000)] {
        let mut payment = beside_open_intent(3000);
        let made = beside(came);
        let change = payment.apply(None, News::PaidBeside(&made), HERE);
        assert_eq!(change.notices, [Notice::AmountChangeRefused { minor_units: 3000 }], "{came}");
        let change = payment.apply(None, News::Intent(&intent(IntentStatus::Canceled)), HERE);
        assert_eq!(payment.state, PaymentState::Succeeded, "it has brought what is due, {came}");
        let expected = if surplus == 0 { Vec::new() } else { vec![overpaid(&made, surplus)] };
        assert_eq!(change.notices, expected, "{came}");
    }
}

#[test]
fn p12_a_part_by_hand_while_a_change_waits_counts_towards_the_new_amount() {
    let mut payment = beside_open_intent(3000);
    let change = payment.apply(None, News::PaidBeside(&beside(2000)), HERE);
    assert_eq!(change.notices, [Notice::Underpaid { receipt: Receipt::of(&beside(2000)), remaining: 1000 }]);
    assert_eq!(payment.objection(None, &payment.amount_change(3000)), None, "the same change again is no other one");
    payment.apply(None, News::Intent(&intent(IntentStatus::Canceled)), HERE);
    assert_eq!((payment.amount.minor_units, payment.part_received, payment.state), (3000, 2000, PaymentState::Failed));
    let change = payment.apply(None, News::PaidBeside(&beside(1500)), HERE);
    assert_eq!((payment.state, change.notices), (PaymentState::Succeeded, vec![overpaid(&beside(1500), 500)]));
}

#[test]
fn p12_a_refused_change_of_the_amount_reckons_with_the_part_that_was_known() {
    let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::RequiresAction) };
    let mut open = link(Some("cs_1"));
    payment.apply(Some(&mut open), News::PaidBeside(&beside(2000)), HERE);
    // The caller does as `payment.underpaid` says; the payer is faster.
    payment.apply(Some(&mut open), News::Asked(payment.amount_change(2900)), HERE);
    let paid = of_link(IntentStatus::Succeeded);
    let page = session(SessionStatus::Complete, Some("pi_link"));
    let change = payment.apply(Some(&mut open), News::Link(&page, Some(&paid)), HERE);
    assert_eq!(change.notices, [Notice::AmountChangeRefused { minor_units: 2900 }, overpaid(&paid, 2000)]);
}

#[test]
fn p12_a_charge_by_hand_that_has_paid_the_requested_amount_keeps_it_though_a_debit_fails() {
    let mut payment = payment(PaymentState::Processing);
    let mut open = Attempt { prior_charge: None, ..attempt() };
    payment.apply(Some(&mut open), News::Asked(payment.amount_change(3000)), HERE);
    payment.apply(Some(&mut open), News::CannotClose, HERE);
    let change = payment.apply(Some(&mut open), News::PaidBeside(&beside(3000)), HERE);
    assert_eq!(change.notices, [], "it has brought what is due");
    payment.apply(Some(&mut open), News::Intent(&declined("ch_1")), HERE);
    let change = payment.apply(Some(&mut open), News::Intent(&intent(IntentStatus::Canceled)), HERE);
    assert_eq!((payment.state, change.notices), (PaymentState::Succeeded, Vec::new()));
}

#[test]
fn p12_what_an_old_page_took_beside_a_charge_by_hand_is_reported_once_and_exactly() {
    let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::RequiresAction) };
    let mut open = link(Some("cs_1"));
    payment.apply(Some(&mut open), News::Asked(payment.amount_change(6000)), HERE);
    payment.apply(Some(&mut open), News::PaidBeside(&beside(6000)), HERE);
    let page = session(SessionStatus::Complete, Some("pi_link"));
    let change = payment.apply(Some(&mut open), News::Link(&page, Some(&of_link(IntentStatus::Succeeded))), HERE);
    // 109.00 came in, and 60.00 were due.
    assert_eq!((payment.amount_received, change.notices), (10_900, vec![overpaid(&beside(6000), 4900)]));
}
