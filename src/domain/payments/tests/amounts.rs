//! P12: receipts are compared with the amount due, whatever amount is requested meanwhile and whoever pays first.

use super::payment_paths::{link, link_intent, other_intent, session};
use super::*;
use crate::domain::signals::SessionStatus;

/// A failed payment with a pending change of its amount; its intent could still be confirmed in the Stripe Dashboard.
fn with_amount_change(requested: i64) -> Payment {
    let mut payment = payment(PaymentState::Failed);
    payment.apply(None, PaymentInput::Requested(payment.amount_change(requested)), CONTEXT);
    payment
}

fn overpaid(intent: &IntentSnapshot, minor_units: i64) -> Notice {
    Notice::Overpaid(ReceivedMoney { amount: Money { minor_units, ..EUROS }, ..ReceivedMoney::of(intent) })
}

#[test]
fn p12_another_intent_paid_while_a_change_is_pending_is_compared_with_the_requested_amount() {
    for (received, surplus) in [(3000, 0), (4000, 1000)] {
        let mut payment = with_amount_change(3000);
        let made = other_intent(received);
        let transition = payment.apply(None, PaymentInput::OtherIntentPaid(&made), CONTEXT);
        assert_eq!(transition.notices, [Notice::AmountChangeRefused { minor_units: 3000 }], "{received}");
        let transition = payment.apply(None, PaymentInput::Intent(&intent(IntentStatus::Canceled)), CONTEXT);
        assert_eq!(payment.state(), PaymentState::Succeeded, "it paid what is due, {received}");
        let expected = if surplus == 0 { Vec::new() } else { vec![overpaid(&made, surplus)] };
        assert_eq!(transition.notices, expected, "{received}");
    }
}

#[test]
fn p12_a_part_paid_while_a_change_is_pending_counts_towards_the_new_amount() {
    let mut payment = with_amount_change(3000);
    let transition = payment.apply(None, PaymentInput::OtherIntentPaid(&other_intent(2000)), CONTEXT);
    assert_eq!(
        transition.notices,
        [Notice::Underpaid { receipt: ReceivedMoney::of(&other_intent(2000)), remaining: 1000 }]
    );
    assert_eq!(payment.rejection(None, &payment.amount_change(3000)), None, "the same change is accepted again");
    payment.apply(None, PaymentInput::Intent(&intent(IntentStatus::Canceled)), CONTEXT);
    assert_eq!(
        (payment.amount.minor_units, payment.part_received, payment.state()),
        (3000, 2000, PaymentState::Failed)
    );
    let transition = payment.apply(None, PaymentInput::OtherIntentPaid(&other_intent(1500)), CONTEXT);
    assert_eq!(
        (payment.state(), transition.notices),
        (PaymentState::Succeeded, vec![overpaid(&other_intent(1500), 500)])
    );
}

#[test]
fn p12_a_refused_change_of_the_amount_includes_the_part_known_at_the_request() {
    let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::RequiresAction) };
    let mut open = link(Some("cs_1"));
    payment.apply(Some(&mut open), PaymentInput::OtherIntentPaid(&other_intent(2000)), CONTEXT);
    // The caller follows `payment.underpaid`, but the payer is faster.
    payment.apply(Some(&mut open), PaymentInput::Requested(payment.amount_change(2900)), CONTEXT);
    let paid = link_intent(IntentStatus::Succeeded);
    let page = session(SessionStatus::Complete, Some("pi_link"));
    let transition = payment.apply(Some(&mut open), PaymentInput::Link(&page, Some(&paid)), CONTEXT);
    assert_eq!(transition.notices, [Notice::AmountChangeRefused { minor_units: 2900 }, overpaid(&paid, 2000)]);
}

#[test]
fn p12_another_intent_that_paid_the_requested_amount_settles_although_a_debit_fails() {
    let mut payment = payment(PaymentState::Processing);
    let mut open = Attempt { prior_charge: None, ..attempt() };
    payment.apply(Some(&mut open), PaymentInput::Requested(payment.amount_change(3000)), CONTEXT);
    payment.apply(Some(&mut open), PaymentInput::CannotClose, CONTEXT);
    let transition = payment.apply(Some(&mut open), PaymentInput::OtherIntentPaid(&other_intent(3000)), CONTEXT);
    assert_eq!(transition.notices, [], "it paid what is due");
    payment.apply(Some(&mut open), PaymentInput::Intent(&declined("ch_1")), CONTEXT);
    let transition = payment.apply(Some(&mut open), PaymentInput::Intent(&intent(IntentStatus::Canceled)), CONTEXT);
    assert_eq!((payment.state(), transition.notices), (PaymentState::Succeeded, Vec::new()));
}

#[test]
fn p12_a_link_paid_in_addition_to_another_intent_is_reported_once_and_exactly() {
    let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::RequiresAction) };
    let mut open = link(Some("cs_1"));
    payment.apply(Some(&mut open), PaymentInput::Requested(payment.amount_change(6000)), CONTEXT);
    payment.apply(Some(&mut open), PaymentInput::OtherIntentPaid(&other_intent(6000)), CONTEXT);
    let page = session(SessionStatus::Complete, Some("pi_link"));
    let transition =
        payment.apply(Some(&mut open), PaymentInput::Link(&page, Some(&link_intent(IntentStatus::Succeeded))), CONTEXT);
    // 109.00 were received, and 60.00 were due.
    assert_eq!((payment.amount_received, transition.notices), (10_900, vec![overpaid(&other_intent(6000), 4900)]));
}

#[test]
fn p12_what_a_requested_amount_leaves_unpaid_includes_the_part_that_its_caller_knew() {
    let mut payment = payment(PaymentState::Failed);
    payment.apply(None, PaymentInput::OtherIntentPaid(&other_intent(1000)), CONTEXT);
    payment.apply(None, PaymentInput::Requested(payment.amount_change(2000)), CONTEXT);
    let transition = payment.apply(None, PaymentInput::OtherIntentPaid(&other_intent(500)), CONTEXT);
    // 20.00 were requested in addition to the 10.00.
    let receipt = ReceivedMoney::of(&other_intent(500));
    assert_eq!(transition.notices, [Notice::Underpaid { receipt, remaining: 1500 }]);
}

#[test]
fn p12_what_settles_with_less_or_in_another_currency_is_a_mismatch() {
    let paid = intent(IntentStatus::Succeeded);
    let partly = IntentSnapshot { amount_received: 3000, ..paid.clone() };
    let dollars = Money { currency: Currency::parse("USD").unwrap(), ..EUROS };
    for paid in [partly, IntentSnapshot { amount: dollars, ..paid }] {
        let mut payment = payment(PaymentState::Processing);
        let transition = payment.apply(Some(&mut attempt()), PaymentInput::Intent(&paid), CONTEXT);
        assert_eq!(payment.state(), PaymentState::Succeeded, "settled all the same");
        assert_eq!(transition.notices, [Notice::AmountMismatch(ReceivedMoney::of(&paid))]);
    }
}
