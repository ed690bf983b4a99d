//! Which operations are accepted, and how they end.

use super::payment_paths::{link, other_intent};
use super::*;

fn manual() -> PendingOperation {
    PendingOperation::RecordManual(Manual { reference: "bank".to_owned(), time: NOW })
}

fn change(minor_units: i64) -> PendingOperation {
    PendingOperation::ChangeAmount { minor_units, part_known: 0 }
}

const RETRY: PendingOperation = PendingOperation::Retry { method: None };

#[test]
fn the_state_and_an_open_link_decide_which_operations_are_accepted() {
    use PaymentState as P;
    let page = Some(link(Some("cs_1")));
    let waiting = State::Pending { reason: Some(PendingReason::AmountTooSmall) };
    let authenticate =
        State::RequiresAction { url: None, action: RequiredAction::Authenticate { since: NOW, on_session: false } };
    // Whether a change of the amount, a retry, an expired action, and a cancellation or manual payment are accepted.
    let table = [
        ("accepted", payment(P::Pending).state, None, [true, false, false, true]),
        ("waiting", waiting, None, [true, true, false, true]),
        ("failed", payment(P::Failed).state, None, [true, true, false, true]),
        ("link being created", payment(P::Failed).state, Some(link(None)), [true, true, false, true]),
        ("link open", payment(P::RequiresAction).state, page.clone(), [true, true, false, true]),
        ("link paid, not settled", payment(P::Processing).state, page, [false, false, false, true]),
        ("being confirmed", payment(P::Processing).state, Some(attempt()), [false, false, false, true]),
        ("being authenticated", authenticate, Some(attempt()), [false, false, true, true]),
        ("paid", payment(P::Succeeded).state, None, [false; 4]),
        ("canceled", payment(P::Canceled).state, None, [false; 4]),
    ];
    for (name, state, attempt, accepted) in table {
        let payment = Payment { state, ..payment(P::Pending) };
        for (operations, is_accepted) in [
            vec![change(3000)],
            vec![RETRY],
            vec![PendingOperation::ExpireAction],
            vec![PendingOperation::Cancel, manual()],
        ]
        .into_iter()
        .zip(accepted)
        {
            for operation in operations {
                let expected = (!is_accepted).then_some(Rejection::State);
                assert_eq!(payment.rejection(attempt.as_ref(), &operation), expected, "{name}: {operation:?}");
            }
        }
    }
}

#[test]
fn one_operation_at_a_time_except_that_a_cancellation_replaces_what_nobody_has_paid() {
    let busy = Some(Rejection::Busy);
    let table = [
        (change(3000), change(3000), None),
        (change(3000), change(4000), busy),
        (change(3000), RETRY, busy),
        (change(3000), manual(), busy),
        (change(3000), PendingOperation::Cancel, None),
        (RETRY, PendingOperation::Cancel, None),
        (PendingOperation::Cancel, PendingOperation::Cancel, None),
        (PendingOperation::Cancel, RETRY, busy),
        (manual(), manual(), None),
        (manual(), PendingOperation::Cancel, busy),
    ];
    for (pending, requested, expected) in table {
        let payment = Payment { pending_operation: Some(pending.clone()), ..payment(PaymentState::Failed) };
        assert_eq!(payment.rejection(None, &requested), expected, "{pending:?}, then {requested:?}");
    }
}

#[test]
fn a_repeated_change_of_the_amount_is_the_pending_one_and_another_is_not() {
    let mut payment = payment(PaymentState::Failed);
    payment.apply(None, PaymentInput::Requested(payment.amount_change(3000)), CONTEXT);
    payment.apply(None, PaymentInput::OtherIntentPaid(&other_intent(1000)), CONTEXT);
    assert_eq!(payment.amount_change(3000), change(3000));
    assert_eq!(
        payment.amount_change(2000),
        PendingOperation::ChangeAmount { minor_units: 2000, part_known: 1000 },
        "its caller knows the part"
    );
}

#[test]
fn a_new_amount_is_collected_at_once_only_if_nothing_has_failed_or_nothing_is_due() {
    let waiting = State::Pending { reason: Some(PendingReason::AmountTooSmall) };
    let failed = payment(PaymentState::Failed).state;
    for (state, minor_units, expected) in [
        (waiting.clone(), 5000, State::Pending { reason: None }),
        (waiting, 0, State::Pending { reason: None }),
        (failed.clone(), 5000, failed.clone()),
        (failed, 0, State::Pending { reason: None }),
    ] {
        let mut payment = Payment { state, provider_payment_intent_id: None, ..payment(PaymentState::Pending) };
        payment.apply(None, PaymentInput::Requested(change(minor_units)), CONTEXT);
        assert_eq!((payment.state, payment.amount.minor_units), (expected, minor_units));
    }
}

#[test]
fn p8_without_stripe_what_is_not_in_flight_is_closed_for_good() {
    let (mut payment, mut open) = (payment(PaymentState::Failed), link(Some("cs_1")));
    let number = payment.intent_number;
    payment.apply(Some(&mut open), PaymentInput::Requested(RETRY), CONTEXT);
    payment.apply(Some(&mut open), PaymentInput::IntegrationDisconnected, CONTEXT);
    assert_eq!((payment.state(), open.state), (PaymentState::Pending, AttemptState::Canceled));
    assert_eq!((payment.provider_payment_intent_id, payment.intent_number), (None, number + 1));
    assert_eq!(payment.unknown_since, Some(NOW), "an unconfirmed intent may be left at Stripe");
}

#[test]
fn p8_without_stripe_a_payment_made_elsewhere_is_recorded_beside_an_attempt_that_may_still_be_paid() {
    let (mut payment, mut open) = (payment(PaymentState::Processing), attempt());
    payment.apply(Some(&mut open), PaymentInput::Requested(manual()), CONTEXT);
    payment.apply(Some(&mut open), PaymentInput::IntegrationDisconnected, CONTEXT);
    assert_eq!((payment.state(), payment.unknown_since), (PaymentState::Succeeded, Some(NOW)));
    assert!(payment.manual().is_some() && open.is_open(), "its outcome is unknown");
    assert_eq!(payment.provider_payment_intent_id.as_deref(), Some("pi_1"));
}
