//! The one automatic retry, for a payment method that arrives.

use super::payment_paths::{link, session};
use super::*;
use crate::domain::payment_methods::{MethodKind, PaymentMethod};
use crate::domain::signals::SessionStatus;

#[test]
fn a_link_that_expires_unused_restores_the_lack_of_a_method() {
    let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::Pending) };
    assert!(
        !payment.apply(None, PaymentInput::Refused(Failure::no_payment_method()), CONTEXT).skips_failure_event,
        "reported once"
    );
    let mut open = link(None);
    payment.apply(Some(&mut open), PaymentInput::LinkCreated(&session(SessionStatus::Open, None)), CONTEXT);
    assert_eq!(payment.state(), PaymentState::RequiresAction);
    let transition =
        payment.apply(Some(&mut open), PaymentInput::Link(&session(SessionStatus::Expired, None), None), CONTEXT);
    assert!(transition.skips_failure_event && payment.lacked_method() && payment.awaits_method, "{payment:?}");
    assert!(payment.needs_work(&payment.clone(), &transition), "a method may have arrived meanwhile");

    // A change of the amount ends the link, too.
    let mut again = Attempt { number: 3, ..link(None) };
    payment.apply(Some(&mut again), PaymentInput::LinkCreated(&session(SessionStatus::Open, None)), CONTEXT);
    payment.apply(
        Some(&mut again),
        PaymentInput::Requested(PendingOperation::ChangeAmount { minor_units: 5000, part_known: 0 }),
        CONTEXT,
    );
    let transition =
        payment.apply(Some(&mut again), PaymentInput::Link(&session(SessionStatus::Expired, None), None), CONTEXT);
    assert!(transition.skips_failure_event && payment.lacked_method(), "{payment:?}");
    assert_eq!(payment.amount.minor_units, 5000);
}

#[test]
fn a_payment_is_retried_once_for_a_method_and_a_refusal_since_is_not_repeated() {
    let attached = |second| PaymentMethod { attach_time: Some(NOW + Duration::seconds(second)), ..card() };
    let mut lacking = payment(PaymentState::Pending);
    lacking.apply(None, PaymentInput::Refused(Failure::no_payment_method()), CONTEXT);
    assert!(!lacking.is_due_for(None, None), "none has arrived");
    assert!(lacking.is_due_for(Some(&attached(0)), None));
    assert!(!lacking.is_due_for(Some(&attached(0)), Some(&link(None))), "not while a link is open");

    let mut refused = lacking.clone();
    refused.fail(Failure::ours("card_declined", ""));
    let end = Some(NOW + Duration::seconds(10));
    let tried = Attempt { state: AttemptState::Failed(Failure::default()), finish_time: end, ..link(Some("cs_1")) };
    assert!(!refused.is_due_for(Some(&attached(9)), Some(&tried)), "it may be the method that was refused");
    assert!(refused.is_due_for(Some(&attached(10)), Some(&tried)), "whatever was attempted in between");

    refused.apply(None, PaymentInput::MethodAttached, CONTEXT);
    assert_eq!(refused.state(), PaymentState::Pending);
    refused.fail(Failure::ours("card_declined", ""));
    assert!(!refused.is_due_for(Some(&attached(20)), None), "once");
}

#[test]
fn the_automatic_retry_never_repeats_a_decline_of_the_method_that_has_arrived() {
    let mut lacking = payment(PaymentState::Pending);
    lacking.apply(None, PaymentInput::Refused(Failure::no_payment_method()), CONTEXT);
    // The caller's RetryPayment is faster than the automatic retry, and Stripe's clock is ahead of ours.
    lacking.apply(None, PaymentInput::RetryRequested(None), CONTEXT);
    let mut tried = attempt();
    lacking.apply(Some(&mut tried), PaymentInput::AttemptPrepared(1), CONTEXT);
    lacking.apply(Some(&mut tried), PaymentInput::Intent(&declined("ch_1")), CONTEXT);
    assert!(lacking.awaits_method && lacking.state() == PaymentState::Failed);
    let arrived = PaymentMethod { attach_time: Some(NOW + Duration::seconds(2)), ..card() };
    assert_eq!(tried.method(), Some(arrived.id));
    assert!(!lacking.is_due_for(Some(&arrived), Some(&tried)), "the bank has refused this method");
    let another = PaymentMethod { id: Uuid::from_u128(2).into(), ..arrived };
    assert!(lacking.is_due_for(Some(&another), Some(&tried)), "another method is attempted");
}

fn card() -> PaymentMethod {
    PaymentMethod { id: Uuid::nil().into(), attach_time: None, ..fixtures::method(1, MethodKind::Card) }
}
