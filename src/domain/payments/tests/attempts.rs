//! P2: what an intent shows of an attempt.

use super::payment_paths::link;
use super::*;
use crate::domain::stripe_requests::Observed;

#[test]
fn p2_a_confirmation_remembers_what_the_intent_showed_before() {
    let seen = declined("ch_1");
    let request = fixtures::request(Purpose::Confirmation, 1, "payment_method=pm_1", NOW);
    let attempt =
        Attempt::new_confirmation(&payment(PaymentState::Pending), Uuid::nil().into(), request, Some(&seen)).unwrap();
    assert_eq!(attempt.observed(&seen), Observed::Absent, "an earlier attempt left these traces");
    assert_eq!(attempt.observed(&declined("ch_2")), Observed::Present);
    let with_error = |code: &str| IntentSnapshot {
        last_payment_error: Some(Failure::ours(code, "")),
        ..IntentSnapshot { latest_charge: seen.latest_charge.clone(), ..intent(IntentStatus::RequiresPaymentMethod) }
    };
    assert_eq!(attempt.observed(&with_error("expired_card")), Observed::Present, "another error without a charge");
}

#[test]
fn p2_whatever_does_not_wait_for_a_confirmation_has_received_one() {
    use {IntentStatus as I, Observed as O};
    for (status, expected) in [
        (I::RequiresPaymentMethod, O::Absent),
        (I::RequiresConfirmation, O::Absent),
        (I::RequiresAction, O::Present),
        (I::Processing, O::Present),
        (I::RequiresCapture, O::Present),
        (I::Succeeded, O::Present),
        (I::Canceled, O::Present),
    ] {
        assert_eq!(attempt().observed(&intent(status)), expected, "{status:?}");
    }
}

#[test]
fn p2_under_a_new_key_the_same_intent_is_confirmed_and_seen_anew() {
    let (first, seen) = (attempt(), declined("ch_1"));
    let request = fixtures::request(Purpose::Confirmation, 2, &first.request.body, NOW);
    let second = first.under_new_key(request.clone(), Some(&seen));
    let expected = Attempt {
        number: 2,
        request,
        prior_charge: seen.latest_charge.clone(),
        prior_error: seen.last_payment_error.clone(),
        ..first
    };
    assert_eq!(second, expected);
}

#[test]
fn only_a_confirmation_of_the_intent_confirms_it() {
    assert!(attempt().confirms("pi_1"));
    assert!(!attempt().confirms("pi_other"));
    let paid_link = Attempt { provider_payment_intent_id: Some("pi_1".to_owned()), ..link(Some("cs_1")) };
    assert!(!paid_link.confirms("pi_1"), "the payer of a link confirms its intent");
}

#[test]
fn p2_a_charge_of_an_earlier_attempt_is_not_recorded_as_that_of_this_one() {
    let charge = |id: &str| Some(id.to_owned());
    let mut attempt = Attempt { prior_charge: charge("ch_1"), ..attempt() };
    attempt.note_charge(charge("ch_1"));
    assert_eq!(attempt.provider_charge_id, None);
    attempt.note_charge(charge("ch_2"));
    attempt.note_charge(None);
    assert_eq!(attempt.provider_charge_id, charge("ch_2"), "once known, it stays");
}
