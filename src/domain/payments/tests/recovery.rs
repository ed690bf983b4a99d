//! A payment whose row was lost is stored again as its intent stands at Stripe (P8).

use super::*;

/// The payment as it was accepted, and then as the intent shows it.
fn recovered(intent: &IntentSnapshot) -> (Payment, Transition) {
    let accepted = Payment { provider_payment_intent_id: None, attempt_number: 0, ..payment(PaymentState::Pending) };
    let mut recovered = accepted.recovered(intent);
    assert_eq!(recovered.provider_payment_intent_id.as_deref(), Some("pi_1"));
    let transition = recovered.apply(None, PaymentInput::Intent(intent), CONTEXT);
    (recovered, transition)
}

#[test]
fn p8_a_recovered_payment_has_the_state_of_its_intent() {
    for (status, expected) in [
        (IntentStatus::RequiresConfirmation, PaymentState::Pending),
        (IntentStatus::RequiresPaymentMethod, PaymentState::Pending),
        (IntentStatus::RequiresAction, PaymentState::RequiresAction),
        (IntentStatus::Processing, PaymentState::Processing),
        (IntentStatus::RequiresCapture, PaymentState::Processing),
        (IntentStatus::Succeeded, PaymentState::Succeeded),
        (IntentStatus::Canceled, PaymentState::Canceled),
    ] {
        assert_eq!(recovered(&intent(status)).0.state(), expected, "{status:?}");
    }
}

#[test]
fn p8_a_recovered_payment_that_was_declined_has_failed_and_is_not_charged_again() {
    let (payment, _) = recovered(&declined("ch_1"));
    let failure = payment.failure().expect("it has failed");
    assert_eq!((failure.code.as_str(), failure.provider_charge_id.as_deref()), ("card_declined", Some("ch_1")));
}

#[test]
fn p8_the_money_of_a_recovered_payment_is_reported() {
    let paid = IntentSnapshot { latest_charge: Some("ch_1".to_owned()), ..intent(IntentStatus::Succeeded) };
    let (payment, transition) = recovered(&paid);
    let receipt = transition.settled_by.expect("it is settled by the intent");
    assert_eq!((receipt.provider_charge_id.as_deref(), receipt.amount), (Some("ch_1"), EUROS));
    assert_eq!((payment.amount_received, transition.to), (4900, PaymentState::Succeeded));
    assert_eq!(transition.notices, []);
}

#[test]
fn p8_a_payment_may_be_collected_by_an_intent_that_fits_or_was_confirmed() {
    let other = |status| IntentSnapshot { amount: Money { minor_units: 3000, ..EUROS }, ..intent(status) };
    let touched = IntentSnapshot { amount: Money { minor_units: 3000, ..EUROS }, ..declined("ch_1") };
    for (state, fits, confirmed, untouched_other) in [
        (PaymentState::Pending, true, true, false),
        (PaymentState::Failed, true, true, false),
        (PaymentState::Processing, true, true, false),
        // Only money reopens it.
        (PaymentState::Canceled, false, true, false),
        (PaymentState::Succeeded, false, false, false),
    ] {
        let payment = payment(state);
        assert_eq!(payment.may_be_collected_by(&intent(IntentStatus::RequiresConfirmation)), fits, "{state:?}");
        assert_eq!(payment.may_be_collected_by(&other(IntentStatus::Processing)), confirmed, "{state:?}");
        assert_eq!(payment.may_be_collected_by(&touched), confirmed, "{state:?}");
        assert_eq!(
            payment.may_be_collected_by(&other(IntentStatus::RequiresPaymentMethod)),
            untouched_other,
            "{state:?}"
        );
    }
}

#[test]
fn p8_a_change_of_the_amount_that_was_lost_is_taken_from_the_intent_that_was_confirmed() {
    let smaller = Money { minor_units: 3000, ..EUROS };
    let paid = IntentSnapshot { amount: smaller, amount_received: 3000, ..intent(IntentStatus::Succeeded) };
    let (payment, transition) = recovered(&paid);
    assert_eq!((payment.amount, payment.amount_received, transition.notices), (smaller, 3000, Vec::new()));
}

#[test]
fn p1_an_operation_waits_until_it_is_known_what_stripe_has() {
    const CATCHING_UP: ApplyContext = ApplyContext { is_catching_up: true, ..CONTEXT };
    let manual = Manual { reference: "transfer".to_owned(), time: NOW };
    for operation in [
        PendingOperation::Cancel,
        PendingOperation::RecordManual(manual),
        PendingOperation::ChangeAmount { minor_units: 3000, part_known: 0 },
    ] {
        let request = || PaymentInput::Requested(operation.clone());
        let accepted = || {
            let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::Pending) };
            payment.apply(None, request(), CATCHING_UP);
            assert_eq!(
                (payment.state(), payment.pending_operation.as_ref()),
                (PaymentState::Pending, Some(&operation))
            );
            payment
        };
        // Stripe has nothing.
        let mut payment = accepted();
        payment.apply(None, request(), CONTEXT);
        assert_eq!(payment.pending_operation, None);
        // Stripe has an intent that the customer still has to authenticate. It is closed first.
        let mut payment = accepted().recovered(&intent(IntentStatus::RequiresAction));
        payment.apply(None, PaymentInput::Intent(&intent(IntentStatus::RequiresAction)), CATCHING_UP);
        assert_eq!(payment.pending_operation.as_ref(), Some(&operation));
        payment.apply(None, request(), CONTEXT);
        assert_eq!(payment.pending_operation.as_ref(), Some(&operation), "the intent is open");
        payment.apply(None, PaymentInput::Intent(&intent(IntentStatus::Canceled)), CONTEXT);
        assert_eq!(payment.pending_operation, None);
        // Stripe has the money.
        let mut payment = accepted().recovered(&intent(IntentStatus::Succeeded));
        let transition = payment.apply(None, PaymentInput::Intent(&intent(IntentStatus::Succeeded)), CATCHING_UP);
        assert_eq!((payment.state(), payment.pending_operation), (PaymentState::Succeeded, None));
        assert!(!transition.notices.is_empty(), "it is reported: {operation:?}");
    }
}
