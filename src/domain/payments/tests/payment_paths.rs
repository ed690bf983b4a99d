//! P1: at most one open payment path, whatever is requested meanwhile.

use super::*;
use crate::domain::signals::{SessionSnapshot, SessionStatus};

pub(super) fn link(session: Option<&str>) -> Attempt {
    let link = Link { provider_session_id: session.map(str::to_owned), ..Link::default() };
    Attempt { number: 2, kind: AttemptKind::Link(link), provider_payment_intent_id: None, ..attempt() }
}

pub(super) fn session(status: SessionStatus, intent: Option<&str>) -> SessionSnapshot {
    SessionSnapshot {
        id: "cs_1".to_owned(),
        url: Some("https://pay.test/cs_1".to_owned()),
        status,
        expire_time: NOW + Duration::DAY,
        provider_setup_intent_id: None,
        provider_payment_intent_id: intent.map(str::to_owned),
        provider_customer_id: None,
    }
}

pub(super) fn link_intent(status: IntentStatus) -> IntentSnapshot {
    IntentSnapshot { id: "pi_link".to_owned(), latest_charge: Some("ch_link".to_owned()), ..intent(status) }
}

fn operations() -> [PendingOperation; 6] {
    [
        PendingOperation::Cancel,
        PendingOperation::ChangeAmount { minor_units: 5000, part_known: 0 },
        PendingOperation::Retry { method: None },
        PendingOperation::RecordManual(Manual { reference: "bank".to_owned(), time: NOW }),
        settle_operation(),
        PendingOperation::ExpireAction,
    ]
}

/// An intent created and paid in the Stripe Dashboard.
pub(super) fn other_intent(amount: i64) -> IntentSnapshot {
    let latest_charge = Some("ch_other".to_owned());
    IntentSnapshot {
        id: "pi_other".to_owned(),
        amount_received: amount,
        latest_charge,
        ..intent(IntentStatus::Succeeded)
    }
}

fn settle_operation() -> PendingOperation {
    PendingOperation::Settle {
        provider_payment_intent_id: "pi_other".to_owned(),
        provider_charge_id: Some("ch_other".to_owned()),
        minor_units: 4900,
    }
}

#[test]
fn p1_p12_another_intent_settles_after_our_own_payment_path_is_closed() {
    let mut payment = payment(PaymentState::Failed);
    let transition = payment.apply(None, PaymentInput::OtherIntentPaid(&other_intent(5900)), CONTEXT);
    assert_eq!((payment.state(), payment.amount_received), (PaymentState::Failed, 5900), "its own intent is open");
    assert!(payment.needs_work(&super::payment(PaymentState::Failed), &transition));
    assert_eq!(payment.rejection(None, &PendingOperation::Cancel), Some(Rejection::Busy), "it is already paid");
    let transition = payment.apply(None, PaymentInput::Intent(&intent(IntentStatus::Canceled)), CONTEXT);
    assert_eq!((payment.state(), payment.amount_received), (PaymentState::Succeeded, 5900), "counted once");
    assert_eq!(payment.provider_payment_intent_id.as_deref(), Some("pi_other"));
    let surplus =
        ReceivedMoney { amount: Money { minor_units: 1000, ..EUROS }, ..ReceivedMoney::of(&other_intent(5900)) };
    assert_eq!(transition.notices, [Notice::Overpaid(surplus)]);
    assert_eq!(transition.settled_by, Some(ReceivedMoney::of(&other_intent(5900))));
}

#[test]
fn p12_partial_payments_are_reported_and_add_up_until_the_amount_is_changed() {
    let mut failed = payment(PaymentState::Failed);
    let transition = failed.apply(None, PaymentInput::OtherIntentPaid(&other_intent(2000)), CONTEXT);
    let receipt = ReceivedMoney::of(&other_intent(2000));
    assert_eq!(transition.notices, [Notice::Underpaid { receipt, remaining: 2900 }]);
    assert_eq!((failed.state(), &failed.pending_operation, failed.part_received), (PaymentState::Failed, &None, 2000));
    // Paid in full in addition to the part.
    let mut whole = failed.clone();
    let transition = whole.apply(None, PaymentInput::Intent(&intent(IntentStatus::Succeeded)), CONTEXT);
    let surplus = ReceivedMoney {
        amount: Money { minor_units: 2000, ..EUROS },
        ..ReceivedMoney::of(&intent(IntentStatus::Succeeded))
    };
    assert_eq!((whole.amount_received, transition.notices), (6900, vec![Notice::Overpaid(surplus)]));
    // The remainder, by another intent.
    let mut rest = Payment { provider_payment_intent_id: None, ..failed.clone() };
    let transition = rest.apply(None, PaymentInput::OtherIntentPaid(&other_intent(2900)), CONTEXT);
    assert_eq!((rest.state(), rest.amount_received, transition.notices), (PaymentState::Succeeded, 4900, Vec::new()));
    // A caller who changes the amount to the remainder has taken the part into account.
    let mut less = Payment { provider_payment_intent_id: None, ..failed };
    less.apply(None, PaymentInput::Requested(less.amount_change(2900)), CONTEXT);
    assert_eq!((less.amount.minor_units, less.part_received), (2900, 0));
}

#[test]
fn p12_another_intent_ends_a_pending_operation_and_a_second_payment_is_an_overpayment() {
    for operation in operations() {
        let mut payment = payment(PaymentState::Failed);
        payment.apply(None, PaymentInput::Requested(operation.clone()), CONTEXT);
        let transition = payment.apply(None, PaymentInput::OtherIntentPaid(&other_intent(4900)), CONTEXT);
        let expected = match operation {
            PendingOperation::Cancel => vec![Notice::CancellationRefused],
            // The requested 50.00 would be due.
            PendingOperation::ChangeAmount { .. } => {
                vec![Notice::Underpaid { receipt: ReceivedMoney::of(&other_intent(4900)), remaining: 100 }]
            }
            PendingOperation::RecordManual(_) | PendingOperation::Settle { .. } => {
                vec![Notice::Overpaid(ReceivedMoney::of(&other_intent(4900)))]
            }
            PendingOperation::Retry { .. } | PendingOperation::ExpireAction => Vec::new(),
        };
        assert_eq!(transition.notices, expected, "{operation:?}");
    }
}

#[test]
fn p1_a_pending_operation_waits_until_stripe_confirms_that_the_intent_is_closed() {
    for operation in operations() {
        let mut payment = payment(PaymentState::Failed);
        let mut failed = Attempt { state: AttemptState::Failed(Failure::default()), ..attempt() };
        payment.apply(Some(&mut failed), PaymentInput::Requested(operation.clone()), CONTEXT);
        assert_eq!((payment.state(), payment.amount), (PaymentState::Failed, EUROS), "{operation:?} is only requested");
        payment.apply(Some(&mut failed), PaymentInput::Intent(&intent(IntentStatus::RequiresPaymentMethod)), CONTEXT);
        assert_eq!(payment.pending_operation.as_ref(), Some(&operation), "a person may still confirm an idle intent");
        payment.apply(Some(&mut failed), PaymentInput::Intent(&intent(IntentStatus::Canceled)), CONTEXT);
        assert!(payment.pending_operation.is_none(), "{operation:?} is executed");
        let expected = match operation {
            PendingOperation::Cancel => PaymentState::Canceled,
            PendingOperation::ChangeAmount { .. } | PendingOperation::ExpireAction => PaymentState::Failed,
            PendingOperation::Retry { .. } => PaymentState::Pending,
            PendingOperation::RecordManual(_) | PendingOperation::Settle { .. } => PaymentState::Succeeded,
        };
        assert_eq!(payment.state(), expected, "{operation:?}");
    }
}

#[test]
fn p1_a_pending_operation_ends_when_the_intent_has_taken_the_money() {
    for operation in operations() {
        let mut payment = payment(PaymentState::Failed);
        payment.apply(None, PaymentInput::Requested(operation.clone()), CONTEXT);
        let transition = payment.apply(None, PaymentInput::Intent(&intent(IntentStatus::Succeeded)), CONTEXT);
        assert_eq!((payment.state(), payment.amount), (PaymentState::Succeeded, EUROS), "{operation:?}");
        assert!(payment.pending_operation.is_none());
        let expected = match operation {
            PendingOperation::Cancel => vec![Notice::CancellationRefused],
            PendingOperation::ChangeAmount { minor_units, .. } => {
                // 49.00 were received, and 50.00 were requested.
                let receipt = ReceivedMoney::of(&intent(IntentStatus::Succeeded));
                vec![Notice::AmountChangeRefused { minor_units }, Notice::Underpaid { receipt, remaining: 100 }]
            }
            // P12: paid through Stripe and elsewhere.
            PendingOperation::RecordManual(_) => {
                vec![Notice::Overpaid(ReceivedMoney::of(&intent(IntentStatus::Succeeded)))]
            }
            PendingOperation::Settle { .. } => vec![Notice::Overpaid(ReceivedMoney::of(&other_intent(4900)))],
            PendingOperation::Retry { .. } | PendingOperation::ExpireAction => Vec::new(),
        };
        assert_eq!(transition.notices, expected, "{operation:?}");
    }
}

#[test]
fn p1_with_nothing_at_stripe_an_operation_is_executed_at_once() {
    let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::Pending) };
    let number = payment.intent_number;
    let transition = payment.apply(
        None,
        PaymentInput::Requested(PendingOperation::ChangeAmount { minor_units: 5000, part_known: 0 }),
        CONTEXT,
    );
    assert_eq!((payment.amount.minor_units, payment.state()), (5000, PaymentState::Pending));
    assert!(payment.intent_number > number, "an intent being created for the old amount is not adopted");
    assert!(payment.needs_work(&Payment { amount: EUROS, ..payment.clone() }, &transition));
}

#[test]
fn p1_a_link_opens_only_after_the_intent_is_closed_and_holds_the_slot() {
    let mut payment = payment(PaymentState::Failed);
    let mut open = link(None);
    payment.apply(Some(&mut open), PaymentInput::Intent(&intent(IntentStatus::Canceled)), CONTEXT);
    assert_eq!(payment.state(), PaymentState::Failed, "only its payment path is closed");
    assert!(payment.provider_payment_intent_id.is_none());
    let transition =
        payment.apply(Some(&mut open), PaymentInput::LinkCreated(&session(SessionStatus::Open, None)), CONTEXT);
    assert_eq!(transition.to, PaymentState::RequiresAction);
    assert_eq!(payment.next_action_url(), Some("https://pay.test/cs_1"));
    assert!(link_rejection(&payment, Some(&open)).is_some(), "one at a time");
    assert!(!payment.is_closed(Some(&open)));
}

#[test]
fn p1_a_link_that_was_not_handed_out_blocks_nothing() {
    let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::Failed) };
    let mut open = link(None);
    payment.apply(Some(&mut open), PaymentInput::Requested(PendingOperation::Cancel), CONTEXT);
    assert_eq!((payment.state(), &open.state), (PaymentState::Canceled, &AttemptState::Canceled));
    payment.apply(Some(&mut open), PaymentInput::LinkCreated(&session(SessionStatus::Open, None)), CONTEXT);
    assert_eq!(payment.state(), PaymentState::Canceled, "a session created late is not handed out");
}

#[test]
fn the_state_of_a_link_decides_and_a_declined_card_on_an_open_page_does_not() {
    use {IntentStatus as I, PaymentState as P, SessionStatus as S};
    let table = [
        (S::Open, None, P::RequiresAction),
        (S::Open, Some(I::RequiresPaymentMethod), P::RequiresAction),
        (S::Open, Some(I::RequiresAction), P::RequiresAction),
        (S::Complete, Some(I::Processing), P::Processing),
        (S::Complete, Some(I::Succeeded), P::Succeeded),
        (S::Complete, Some(I::RequiresPaymentMethod), P::Failed),
        (S::Expired, None, P::Failed),
        (S::Expired, Some(I::Canceled), P::Failed),
    ];
    for (status, link_intent_status, expected) in table {
        let mut payment = Payment { provider_payment_intent_id: None, ..payment(P::RequiresAction) };
        let mut open = link(Some("cs_1"));
        let link_intent_status = link_intent_status.map(link_intent);
        let reported = session(status, link_intent_status.as_ref().map(|intent| intent.id.as_str()));
        payment.apply(Some(&mut open), PaymentInput::Link(&reported, link_intent_status.as_ref()), CONTEXT);
        assert_eq!(payment.state(), expected, "{status:?} {link_intent_status:?}");
        let again = payment.apply(Some(&mut open), PaymentInput::Link(&reported, link_intent_status.as_ref()), CONTEXT);
        assert!(!again.is_reportable(), "reported once: {status:?}");
    }
}

#[test]
fn p1_an_operation_on_a_payment_with_a_link_waits_until_the_session_has_ended() {
    let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::RequiresAction) };
    let mut open = link(Some("cs_1"));
    payment.apply(Some(&mut open), PaymentInput::Requested(PendingOperation::Retry { method: None }), CONTEXT);
    assert_eq!(payment.state(), PaymentState::RequiresAction);
    payment.apply(Some(&mut open), PaymentInput::Link(&session(SessionStatus::Expired, None), None), CONTEXT);
    assert_eq!((payment.state(), &open.state), (PaymentState::Pending, &AttemptState::Canceled));
}

#[test]
fn a_required_authentication_is_confirmed_on_session_and_only_once() {
    let authentication_required = Failure {
        decline_code: Some("authentication_required".to_owned()),
        ..Failure::ours("authentication_required", "")
    };
    let with_3ds = ApplyContext { supports_3ds: true, ..CONTEXT };
    let mut payment = payment(PaymentState::Processing);
    let mut first = attempt();
    let transition =
        payment.apply(Some(&mut first), PaymentInput::ConfirmRefused(authentication_required.clone()), with_3ds);
    assert!(!transition.is_reportable() && payment.is_on_session(), "nothing has failed yet");
    assert!(matches!(first.state, AttemptState::Failed(_)));
    let mut second = Attempt { number: 2, ..attempt() };
    payment.apply(Some(&mut second), PaymentInput::AttemptPrepared(2), with_3ds);
    payment.apply(Some(&mut second), PaymentInput::Intent(&intent(IntentStatus::RequiresAction)), with_3ds);
    assert_eq!((payment.state(), payment.action_time()), (PaymentState::RequiresAction, Some(NOW)));
    payment.apply(Some(&mut second), PaymentInput::ConfirmRefused(authentication_required.clone()), with_3ds);
    assert_eq!(payment.state(), PaymentState::Failed, "not asked repeatedly");
    assert!(!payment.is_on_session());

    let mut plain = super::payment(PaymentState::Processing);
    plain.apply(Some(&mut attempt()), PaymentInput::ConfirmRefused(authentication_required), CONTEXT);
    assert_eq!(plain.state(), PaymentState::Failed, "without support for 3-D Secure it is a refusal");
}

#[test]
fn an_action_that_is_not_completed_fails_once_the_intent_is_closed() {
    let mut payment = payment(PaymentState::Processing);
    let mut open = attempt();
    payment.apply(Some(&mut open), PaymentInput::Intent(&intent(IntentStatus::RequiresAction)), CONTEXT);
    payment.apply(Some(&mut open), PaymentInput::Requested(PendingOperation::ExpireAction), CONTEXT);
    assert_eq!(payment.state(), PaymentState::RequiresAction, "Stripe decides");
    payment.apply(Some(&mut open), PaymentInput::Intent(&intent(IntentStatus::Canceled)), CONTEXT);
    assert_eq!(payment.failure().map(|failure| failure.code.as_str()), Some("action_expired"));
    assert!(payment.provider_payment_intent_id.is_none(), "another payment path can be opened");
}

#[test]
fn what_cannot_be_closed_continues_and_a_recorded_payment_waits_for_the_outcome() {
    for operation in operations() {
        let mut payment = payment(PaymentState::Processing);
        payment.apply(Some(&mut attempt()), PaymentInput::Requested(operation.clone()), CONTEXT);
        let transition = payment.apply(Some(&mut attempt()), PaymentInput::CannotClose, CONTEXT);
        assert_eq!(payment.state(), PaymentState::Processing);
        let expected = match operation {
            PendingOperation::Cancel => vec![Notice::CancellationRefused],
            PendingOperation::ChangeAmount { minor_units, .. } => vec![Notice::AmountChangeRefused { minor_units }],
            _ => Vec::new(),
        };
        assert_eq!(transition.notices, expected, "the requester is informed");
        assert_eq!(
            payment.pending_operation.is_some(),
            matches!(operation, PendingOperation::RecordManual(_) | PendingOperation::Settle { .. })
        );
    }
}

#[test]
fn p8_without_stripe_an_operation_ends_and_only_what_is_in_flight_continues() {
    // The bank required authentication, and the customer was not asked yet: nothing is in flight.
    let (mut payment, mut attempt) = (payment(PaymentState::Processing), attempt());
    payment.state = State::Processing { on_session: true };
    attempt.state = AttemptState::Failed(Failure::ours("authentication_required", ""));
    let mut not_sent = payment.clone();
    not_sent.apply(Some(&mut attempt), PaymentInput::Withdrawn, CONTEXT);
    let transition = not_sent.apply(Some(&mut attempt), PaymentInput::IntegrationDisconnected, CONTEXT);
    assert_eq!(
        (not_sent.state(), transition.notices, &not_sent.pending_operation),
        (PaymentState::Canceled, Vec::new(), &None)
    );
    assert_eq!(not_sent.unknown_since, Some(NOW), "an intent may be left at Stripe");

    attempt.state = AttemptState::Open;
    payment.apply(Some(&mut attempt), PaymentInput::Withdrawn, CONTEXT);
    let transition = payment.apply(Some(&mut attempt), PaymentInput::IntegrationDisconnected, CONTEXT);
    assert_eq!((payment.state(), payment.pending_operation), (PaymentState::Processing, None));
    assert_eq!(transition.notices, [Notice::CancellationRefused]);
}

#[test]
fn p12_a_paid_link_is_compared_with_the_amount_that_was_refused() {
    for (requested, remaining) in [(3000, None), (6000, Some(1100))] {
        let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::RequiresAction) };
        let mut open = link(Some("cs_1"));
        let operation = payment.amount_change(requested);
        payment.apply(Some(&mut open), PaymentInput::Requested(operation), CONTEXT);
        // A debit cannot be closed, and the bank pays days later.
        let page = session(SessionStatus::Complete, Some("pi_link"));
        payment.apply(
            Some(&mut open),
            PaymentInput::Link(&page, Some(&link_intent(IntentStatus::Processing))),
            CONTEXT,
        );
        let refused = payment.apply(Some(&mut open), PaymentInput::CannotClose, CONTEXT);
        assert_eq!(refused.notices, [Notice::AmountChangeRefused { minor_units: requested }]);
        let paid = link_intent(IntentStatus::Succeeded);
        let transition = payment.apply(Some(&mut open), PaymentInput::Link(&page, Some(&paid)), CONTEXT);
        let receipt = ReceivedMoney::of(&paid);
        let expected = match remaining {
            Some(remaining) => Notice::Underpaid { receipt, remaining },
            None => Notice::Overpaid(ReceivedMoney { amount: Money { minor_units: 1900, ..EUROS }, ..receipt }),
        };
        assert_eq!((transition.notices, payment.amount), (vec![expected], EUROS));
    }
}
