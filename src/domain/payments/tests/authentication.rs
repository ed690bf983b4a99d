//! 3-D Secure: the customer is asked to authenticate for an intent of ours, once, and not for a person's in the Stripe
//! Dashboard.

use super::*;
use crate::domain::payment_methods::MethodKind;

const WITH_3DS: ApplyContext = ApplyContext { supports_3ds: true, ..CONTEXT };

fn authentication_required() -> Failure {
    Failure::ours("authentication_required", "")
}

/// Our confirmation off session was refused for lack of authentication, and the customer is to confirm on session.
fn awaiting_confirmation() -> (Payment, Attempt) {
    let (mut payment, mut first) = (payment(PaymentState::Processing), attempt());
    payment.apply(Some(&mut first), PaymentInput::ConfirmRefused(authentication_required()), WITH_3DS);
    assert!(payment.is_on_session() && !first.is_open());
    (payment, first)
}

#[test]
fn the_customer_is_on_session_from_the_refusal_to_the_outcome_and_not_before() {
    let (mut payment, mut first) = (payment(PaymentState::Processing), attempt());
    payment.apply(Some(&mut first), PaymentInput::Intent(&intent(IntentStatus::RequiresAction)), WITH_3DS);
    assert!(!payment.is_on_session(), "confirmed off session");

    let (mut payment, _) = awaiting_confirmation();
    let mut second = Attempt { number: 2, ..attempt() };
    payment.apply(Some(&mut second), PaymentInput::AttemptPrepared(2), WITH_3DS);
    for status in [IntentStatus::Processing, IntentStatus::RequiresAction, IntentStatus::Processing] {
        payment.apply(Some(&mut second), PaymentInput::Intent(&intent(status)), WITH_3DS);
        assert!(payment.is_on_session(), "{status:?}");
    }
    payment.apply(Some(&mut second), PaymentInput::Intent(&declined("ch_2")), WITH_3DS);
    assert!(!payment.is_on_session() && payment.state() == PaymentState::Failed);
}

#[test]
fn the_time_to_authenticate_counts_from_the_first_request() {
    let (mut payment, mut open) = (payment(PaymentState::Processing), attempt());
    for minutes in [0, 5] {
        let context = ApplyContext { now: NOW + Duration::minutes(minutes), ..WITH_3DS };
        payment.apply(Some(&mut open), PaymentInput::Intent(&intent(IntentStatus::RequiresAction)), context);
    }
    assert_eq!(payment.action_time(), Some(NOW));
}

#[test]
fn a_customer_is_not_asked_for_what_a_person_confirms_in_the_stripe_dashboard() {
    for status in [IntentStatus::Processing, IntentStatus::RequiresAction] {
        let (mut payment, mut first) = awaiting_confirmation();
        payment.apply(Some(&mut first), PaymentInput::Intent(&intent(status)), WITH_3DS);
        assert!(payment.is_in_flight() && !payment.is_on_session(), "{status:?}");
    }
    // Nor if that confirmation lacks authentication.
    let (mut payment, mut first) = (payment(PaymentState::Processing), ended(attempt()));
    let refused = IntentSnapshot { last_payment_error: Some(authentication_required()), ..declined("ch_dashboard") };
    payment.apply(Some(&mut first), PaymentInput::Intent(&refused), WITH_3DS);
    assert_eq!(payment.state(), PaymentState::Failed);
}

#[test]
fn p2_the_refusal_that_asks_for_authentication_does_not_fail_the_payment_when_it_is_read_again() {
    let (mut payment, mut first) = awaiting_confirmation();
    let refused = IntentSnapshot { last_payment_error: Some(authentication_required()), ..declined("ch_1") };
    let transition = payment.apply(Some(&mut first), PaymentInput::Intent(&refused), WITH_3DS);
    assert!(!transition.is_reportable() && payment.is_on_session());
}

#[test]
fn a_refusal_for_lack_of_authentication_after_a_required_action_has_not_failed_the_payment() {
    let (mut payment, mut first) = (payment(PaymentState::Processing), attempt());
    payment.apply(Some(&mut first), PaymentInput::Intent(&intent(IntentStatus::RequiresAction)), WITH_3DS);
    payment.unknown_since = Some(NOW);
    let transition = payment.apply(Some(&mut first), PaymentInput::ConfirmRefused(authentication_required()), WITH_3DS);
    assert!(!matches!(transition.to, PaymentState::Failed) && payment.is_on_session());
    assert_eq!((first.is_open(), payment.unknown_since), (false, None), "the outcome of the attempt is known");
}

#[test]
fn after_a_required_action_too_a_refusal_for_lack_of_authentication_leads_to_a_confirmation_on_session() {
    let (mut payment, mut first) = (payment(PaymentState::Processing), attempt());
    let method = fixtures::method(1, MethodKind::Card);
    first.kind = AttemptKind::Confirm { method: method.id };
    payment.apply(Some(&mut first), PaymentInput::Intent(&intent(IntentStatus::RequiresAction)), WITH_3DS);
    payment.apply(Some(&mut first), PaymentInput::ConfirmRefused(authentication_required()), WITH_3DS);
    let context = PlanContext {
        payment: &payment,
        attempt: Some(&first),
        customer: &fixtures::customer(Some(method.id)),
        integration: &fixtures::integration(true),
        methods: std::slice::from_ref(&method),
    };
    assert!(matches!(context.plan(), Step::PrepareAttempt { .. }), "{:?}", context.plan());
}
