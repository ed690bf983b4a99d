//! In which states an input counts, and what it changes.

use super::payment_paths::{link, other_intent, session};
use super::*;
use crate::domain::signals::SessionStatus;

const LATER: ApplyContext = ApplyContext { now: NOW.saturating_add(Duration::HOUR), ..CONTEXT };

fn settle(minor_units: i64) -> PendingOperation {
    PendingOperation::Settle {
        provider_payment_intent_id: "pi_other".to_owned(),
        provider_charge_id: Some("ch_other".to_owned()),
        minor_units,
    }
}

#[test]
fn p2_an_unknown_outcome_is_dated_from_the_first_doubt_until_stripe_reports_one() {
    for state in [PaymentState::Pending, PaymentState::Processing, PaymentState::RequiresAction] {
        let mut payment = payment(state);
        payment.apply(None, PaymentInput::Unknown, CONTEXT);
        payment.apply(None, PaymentInput::Unknown, LATER);
        assert_eq!(payment.unknown_since, Some(NOW), "{state:?}");
    }
    let mut declined_meanwhile = payment(PaymentState::Failed);
    declined_meanwhile.apply(None, PaymentInput::Unknown, CONTEXT);
    assert_eq!(declined_meanwhile.unknown_since, None, "whatever happened to the response");
}

#[test]
fn an_input_that_comes_too_late_changes_nothing() {
    let late = [
        (PaymentState::Failed, PaymentInput::AttemptPrepared(2)),
        (PaymentState::RequiresAction, PaymentInput::AttemptPrepared(2)),
        (PaymentState::Failed, PaymentInput::ConfirmRefused(Failure::ours("expired_card", ""))),
        (PaymentState::Pending, PaymentInput::ConfirmRefused(Failure::ours("expired_card", ""))),
        (PaymentState::Pending, PaymentInput::MethodAttached),
        (PaymentState::Processing, PaymentInput::MethodAttached),
        (PaymentState::RequiresAction, PaymentInput::MethodAttached),
    ];
    for (state, input) in late {
        let mut payment = Payment { requested_method_id: Some(Uuid::nil().into()), ..payment(state) };
        let before = payment.clone();
        let transition = payment.apply(None, input.clone(), CONTEXT);
        assert_eq!((&payment, transition.is_reportable()), (&before, false), "{state:?}, {input:?}");
    }
}

#[test]
fn an_amount_that_is_too_small_is_reported_once_and_another_reason_to_wait_is_not() {
    let mut payment = payment(PaymentState::Pending);
    for (reason, is_reported) in [
        (PendingReason::IntegrationPaused, false),
        (PendingReason::AmountTooSmall, true),
        (PendingReason::AmountTooSmall, false),
        (PendingReason::WaitingForCustomer, false),
    ] {
        let transition = payment.apply(None, PaymentInput::Wait(reason), CONTEXT);
        assert_eq!(payment.pending_reason(), Some(reason));
        assert_eq!(transition.is_reportable(), is_reported, "{reason:?}");
    }
}

#[test]
fn nothing_due_is_paid_and_what_may_be_left_at_stripe_stays_unknown() {
    let mut payment = Payment { unknown_since: Some(NOW), ..payment(PaymentState::Pending) };
    let transition = payment.apply(None, PaymentInput::ZeroAmount, LATER);
    assert_eq!((transition.to, payment.unknown_since), (PaymentState::Succeeded, Some(NOW)));
}

#[test]
fn only_a_cancellation_records_when_it_was_requested() {
    let mut payment = payment(PaymentState::Failed);
    payment.apply(None, PaymentInput::Requested(PendingOperation::Retry { method: None }), CONTEXT);
    assert_eq!(payment.cancel_request_time, None);
    payment.apply(None, PaymentInput::Requested(PendingOperation::Cancel), CONTEXT);
    payment.apply(None, PaymentInput::Requested(PendingOperation::Cancel), LATER);
    assert_eq!(payment.cancel_request_time, Some(NOW), "the first request counts");
}

#[test]
fn a_cancellation_that_stripe_has_executed_is_not_reported_as_refused() {
    let mut payment = payment(PaymentState::Failed);
    payment.apply(None, PaymentInput::Requested(PendingOperation::Cancel), CONTEXT);
    let transition = payment.apply(None, PaymentInput::Intent(&intent(IntentStatus::Canceled)), CONTEXT);
    assert_eq!((transition.to, transition.notices), (PaymentState::Canceled, Vec::new()));
}

#[test]
fn p1_p2_the_intent_after_a_closed_one_is_created_under_another_key() {
    let mut payment = payment(PaymentState::Failed);
    let number = payment.intent_number;
    payment.apply(Some(&mut link(None)), PaymentInput::Intent(&intent(IntentStatus::Canceled)), CONTEXT);
    assert_eq!((payment.provider_payment_intent_id, payment.intent_number), (None, number + 1));
}

#[test]
fn a_charge_is_known_as_soon_as_the_bank_processes_it() {
    for status in [IntentStatus::Processing, IntentStatus::RequiresAction, IntentStatus::RequiresCapture] {
        let (mut payment, mut attempt) = (payment(PaymentState::Processing), attempt());
        let in_progress = IntentSnapshot { latest_charge: Some("ch_1".to_owned()), ..intent(status) };
        payment.apply(Some(&mut attempt), PaymentInput::Intent(&in_progress), CONTEXT);
        assert_eq!(attempt.provider_charge_id.as_deref(), Some("ch_1"), "{status:?}");
        assert!(attempt.is_open() && payment.is_in_flight(), "{status:?}");
    }
}

#[test]
fn p1_a_link_gives_up_the_slot_if_a_person_confirms_the_intent_before_it_is_closed() {
    let mut payment = payment(PaymentState::Failed);
    let mut waiting = link(None);
    payment.apply(Some(&mut waiting), PaymentInput::Intent(&intent(IntentStatus::Processing)), CONTEXT);
    assert_eq!((payment.state(), waiting.state), (PaymentState::Processing, AttemptState::Canceled));
}

#[test]
fn p2_an_attempt_made_in_the_stripe_dashboard_fails_with_its_error() {
    let mut payment = payment(PaymentState::Processing);
    payment.apply(None, PaymentInput::Intent(&intent(IntentStatus::RequiresPaymentMethod)), CONTEXT);
    assert_eq!(payment.state(), PaymentState::Processing, "without an error, nothing has ended");
    payment.apply(None, PaymentInput::Intent(&declined("ch_1")), CONTEXT);
    assert_eq!(payment.failure().map(|failure| failure.code.as_str()), Some("card_declined"));
}

#[test]
fn p2_a_charge_without_an_error_is_a_refusal_without_a_reason() {
    let (mut payment, mut attempt) = (payment(PaymentState::Processing), attempt());
    let silent = IntentSnapshot { last_payment_error: None, ..declined("ch_1") };
    payment.apply(Some(&mut attempt), PaymentInput::Intent(&silent), CONTEXT);
    let failure = payment.failure().expect("the new charge is a trace of the attempt");
    assert!(!failure.code.is_empty() && !failure.message.is_empty(), "{failure:?}");
}

#[test]
fn p12_a_refused_amount_is_due_while_the_payment_is_in_flight_and_no_longer() {
    let mut refused = payment(PaymentState::Processing);
    let mut open = attempt();
    refused.apply(Some(&mut open), PaymentInput::Requested(refused.amount_change(3000)), CONTEXT);
    refused.apply(Some(&mut open), PaymentInput::CannotClose, CONTEXT);
    refused.apply(Some(&mut open), PaymentInput::Intent(&intent(IntentStatus::Processing)), CONTEXT);
    let (paid, mut failed, mut ended) = (intent(IntentStatus::Succeeded), refused.clone(), open.clone());
    let transition = refused.apply(Some(&mut open), PaymentInput::Intent(&paid), CONTEXT);
    let surplus = ReceivedMoney { amount: Money { minor_units: 1900, ..EUROS }, ..ReceivedMoney::of(&paid) };
    assert_eq!(transition.notices, [Notice::Overpaid(surplus)], "49.00 for the requested 30.00");

    failed.apply(Some(&mut ended), PaymentInput::Intent(&declined("ch_1")), CONTEXT);
    let transition = failed.apply(Some(&mut ended), PaymentInput::Intent(&paid), CONTEXT);
    assert_eq!(transition.notices, [], "the failure showed the caller that the amount is unchanged");
}

#[test]
fn p12_of_another_payment_only_what_was_not_needed_is_an_overpayment() {
    // Due are 49.00. A charge made in the Stripe Dashboard brought 10.00 of it, and another one the remaining 39.00.
    let mut payment = Payment {
        amount_received: 4900,
        part_received: 1000,
        pending_operation: Some(settle(3900)),
        ..payment(PaymentState::Processing)
    };
    let captured = IntentSnapshot { amount_received: 3000, ..intent(IntentStatus::Succeeded) };
    let transition = payment.apply(Some(&mut attempt()), PaymentInput::Intent(&captured), CONTEXT);
    let surplus =
        ReceivedMoney { amount: Money { minor_units: 3000, ..EUROS }, ..ReceivedMoney::of(&other_intent(3900)) };
    assert_eq!((payment.amount_received, transition.notices), (7900, vec![Notice::Overpaid(surplus)]));
}

/// Applies `input`, and returns whether the payment's job has work to do then.
fn needs_work(payment: &mut Payment, attempt: Option<&mut Attempt>, input: PaymentInput<'_>) -> bool {
    let before = payment.clone();
    let transition = payment.apply(attempt, input, ApplyContext { supports_3ds: true, ..CONTEXT });
    payment.needs_work(&before, &transition)
}

#[test]
fn a_pending_operation_needs_work_when_it_is_requested_and_when_the_payment_moves() {
    let mut processing = payment(PaymentState::Processing);
    let mut open = attempt();
    let manual = PendingOperation::RecordManual(Manual { reference: "bank".to_owned(), time: NOW });
    assert!(needs_work(&mut processing, Some(&mut open), PaymentInput::Requested(manual)));
    assert!(!needs_work(&mut processing, Some(&mut open), PaymentInput::CannotClose), "it waits for the outcome");
    let refused = declined("ch_1");
    assert!(needs_work(&mut processing, Some(&mut open), PaymentInput::Intent(&refused)), "the intent can be closed");
}

#[test]
fn a_payment_needs_work_once_it_can_be_collected_or_authenticated() {
    let mut failed = payment(PaymentState::Failed);
    assert!(needs_work(&mut failed, None, PaymentInput::RetryRequested(None)));
    assert!(!needs_work(&mut failed, None, PaymentInput::Wait(PendingReason::IntegrationPaused)), "it waits");
    assert!(!needs_work(&mut failed, None, PaymentInput::Refused(Failure::no_payment_method())), "nothing can be done");

    let mut processing = payment(PaymentState::Processing);
    let mut first = attempt();
    let refusal = Failure::ours("authentication_required", "");
    assert!(
        needs_work(&mut processing, Some(&mut first), PaymentInput::ConfirmRefused(refusal)),
        "the customer is asked"
    );
    let mut second = Attempt { number: 2, ..attempt() };
    assert!(!needs_work(&mut processing, Some(&mut second), PaymentInput::AttemptPrepared(2)), "once");
    assert!(!needs_work(&mut processing, Some(&mut second), PaymentInput::Intent(&declined("ch_1"))), "it has failed");
}

#[test]
fn a_link_that_its_caller_has_ended_leaves_no_work_unless_a_method_is_awaited() {
    for (awaits_method, expected) in [(false, false), (true, true)] {
        let mut payment = Payment {
            provider_payment_intent_id: None,
            awaits_method,
            pending_operation: Some(PendingOperation::ChangeAmount { minor_units: 3000, part_known: 0 }),
            ..payment(PaymentState::RequiresAction)
        };
        let (mut open, page) = (link(Some("cs_1")), session(SessionStatus::Expired, None));
        assert_eq!(needs_work(&mut payment, Some(&mut open), PaymentInput::Link(&page, None)), expected);
        assert_eq!(payment.state(), PaymentState::Failed);
    }
    let mut expired = ended(link(Some("cs_1")));
    let mut payment = payment(PaymentState::Failed);
    let page = session(SessionStatus::Expired, None);
    assert!(
        !needs_work(&mut payment, Some(&mut expired), PaymentInput::Link(&page, None)),
        "a repetition changes nothing"
    );
}

#[test]
fn p1_a_link_that_stripe_refused_frees_the_slot_and_one_that_was_handed_out_does_not() {
    let refusal = Failure::ours("parameter_invalid", "");
    let mut failed = payment(PaymentState::Failed);
    let mut refused = link(None);
    failed.apply(Some(&mut refused), PaymentInput::LinkRefused(refusal.clone()), CONTEXT);
    assert_eq!((refused.state, refused.finish_time), (AttemptState::Failed(refusal.clone()), Some(NOW)));
    let mut created = link(Some("cs_1"));
    failed.apply(Some(&mut created), PaymentInput::LinkRefused(refusal), CONTEXT);
    assert!(created.is_open(), "whatever a slower request was answered");
}
