//! What a failure means, and what outlives a canceled payment.

use super::*;

fn refusal(code: &str, decline_code: Option<&str>, charge: Option<&str>) -> Failure {
    Failure {
        decline_code: decline_code.map(str::to_owned),
        provider_charge_id: charge.map(str::to_owned),
        ..Failure::ours(code, "")
    }
}

#[test]
fn p2_one_refusal_is_recognized_by_its_charge_and_otherwise_by_its_codes() {
    let declined = refusal("card_declined", Some("lost_card"), Some("ch_1"));
    for (other, expected) in [
        (refusal("expired_card", None, Some("ch_1")), true),
        (refusal("card_declined", Some("lost_card"), Some("ch_2")), false),
        (refusal("card_declined", Some("lost_card"), None), true),
        (refusal("card_declined", Some("stolen_card"), None), false),
        (refusal("expired_card", Some("lost_card"), None), false),
    ] {
        assert_eq!(declined.is_same_as(&other), expected, "{other:?}");
        assert_eq!(other.is_same_as(&declined), expected, "{other:?}");
    }
}

#[test]
fn the_bank_requires_authentication_by_either_code() {
    assert!(refusal("authentication_required", None, None).requires_authentication());
    assert!(refusal("card_declined", Some("authentication_required"), None).requires_authentication());
    assert!(!refusal("card_declined", Some("insufficient_funds"), None).requires_authentication());
}

#[test]
fn the_issuers_advice_forbids_a_retry() {
    for (advice, expected) in [(None, false), (Some("try_again_later"), false), (Some("do_not_try_again"), true)] {
        let failure = Failure { advice_code: advice.map(str::to_owned), ..refusal("card_declined", None, None) };
        assert_eq!(failure.forbids_retry(), expected, "{advice:?}");
    }
}

#[test]
fn a_mandate_that_is_not_accepted_has_one_code_and_other_codes_are_stripes() {
    assert_eq!(Failure::code_of("payment_intent_mandate_invalid"), Failure::MANDATE_MISSING);
    assert_eq!(Failure::code_of("card_declined"), "card_declined");
}

#[test]
fn what_paybridge_refuses_says_why() {
    let failure = Failure::no_payment_method();
    assert!(failure.lacks_method() && failure.message.contains("payment method"), "{failure:?}");
    assert!(!refusal("card_declined", None, None).lacks_method());
}

#[test]
fn the_charge_that_paid_is_known_once_the_payment_has_succeeded() {
    let paid = IntentSnapshot { latest_charge: Some("ch_1".to_owned()), ..intent(IntentStatus::Succeeded) };
    let (mut payment, mut attempt) = (payment(PaymentState::Processing), attempt());
    assert_eq!(payment.provider_charge_id(), None);
    payment.apply(Some(&mut attempt), PaymentInput::Intent(&paid), CONTEXT);
    assert_eq!((payment.provider_charge_id(), attempt.provider_charge_id.as_deref()), (Some("ch_1"), Some("ch_1")));
}

#[test]
fn the_names_of_the_states_are_the_callers_and_lagos() {
    use PaymentState as P;
    for (state, name, payment_status) in [
        (P::Pending, "pending", "pending"),
        (P::Processing, "processing", "pending"),
        (P::RequiresAction, "requires_action", "pending"),
        (P::Succeeded, "succeeded", "succeeded"),
        (P::Failed, "failed", "failed"),
        (P::Canceled, "canceled", "failed"),
    ] {
        assert_eq!((state.as_str(), state.payment_status()), (name, payment_status));
    }
    assert_eq!(PendingReason::WaitingForCustomer.as_str(), "waiting_for_customer");
}

#[test]
fn p2_a_payment_that_is_submitted_again_continues_the_numbers_of_the_canceled_one() {
    let canceled = Payment {
        id: Uuid::from_u128(7).into(),
        intent_number: 3,
        attempt_number: 5,
        amount_received: 100,
        amount_refunded: 100,
        version: 9,
        cancel_request_time: Some(NOW),
        ..payment(PaymentState::Canceled)
    };
    let new = Payment { create_time: NOW + Duration::DAY, ..fixtures::payment(3000) };
    let reopened = new.clone().reopening(&canceled);
    assert_eq!((reopened.intent_number, reopened.next_attempt_number()), (4, 6), "no key is used for another body");
    let expected = Payment {
        id: canceled.id,
        intent_number: 4,
        attempt_number: 5,
        amount_received: 100,
        amount_refunded: 100,
        version: 9,
        create_time: canceled.create_time,
        ..new
    };
    assert_eq!(reopened, expected, "money that was received for the invoice still counts");
}
