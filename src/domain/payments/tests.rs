mod amounts;
mod attempts;
mod authentication;
mod failures;
mod inputs;
mod operations;
mod payment_paths;
mod plan;
mod recovery;
mod retries;

use proptest::prelude::*;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::*;
use crate::domain::signals::{IntentSnapshot, IntentStatus};
use crate::domain::stripe_requests::Purpose;
use crate::domain::{Currency, fixtures};

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
const CONTEXT: ApplyContext = ApplyContext { now: NOW, supports_3ds: false, is_catching_up: false };
const EUROS: Money = Money { minor_units: 4900, currency: Currency::EUR };

/// A payment in this state. What a customer has to do is to pay on the page of a link.
fn payment(state: PaymentState) -> Payment {
    let state = match state {
        PaymentState::Pending => State::Pending { reason: None },
        PaymentState::Processing => State::Processing { on_session: false },
        PaymentState::RequiresAction => {
            State::RequiresAction { url: None, action: RequiredAction::PayByLink { failure: None } }
        }
        PaymentState::Succeeded => State::Succeeded { provider_charge_id: None, manual: None },
        PaymentState::Failed => State::Failed(Failure::default()),
        PaymentState::Canceled => State::Canceled,
    };
    Payment {
        state,
        invoice_id: "inv".to_owned(),
        provider_payment_intent_id: Some("pi_1".to_owned()),
        attempt_number: 1,
        ..fixtures::payment(EUROS.minor_units)
    }
}

fn attempt() -> Attempt {
    let before = Payment { attempt_number: 0, ..payment(PaymentState::Pending) };
    let request = fixtures::request(Purpose::Confirmation, 1, "payment_method=pm_1", NOW);
    Attempt::new_confirmation(&before, Uuid::nil().into(), request, None).expect("the payment has an intent")
}

/// The attempt, once refused.
fn ended(attempt: Attempt) -> Attempt {
    Attempt { state: AttemptState::Failed(Failure::default()), finish_time: Some(NOW), ..attempt }
}

fn intent(status: IntentStatus) -> IntentSnapshot {
    IntentSnapshot {
        id: "pi_1".to_owned(),
        status,
        amount: EUROS,
        amount_received: if status == IntentStatus::Succeeded { 4900 } else { 0 },
        provider_customer_id: None,
        latest_charge: None,
        last_payment_error: None,
        next_action_url: None,
        payment_id: None,
        organization_id: None,
        installation: None,
        customer_id: None,
        external_customer_id: None,
        is_of_link: false,
        invoice_id: None,
        invoice_number: None,
    }
}

fn declined(charge: &str) -> IntentSnapshot {
    let failure = Failure {
        provider_charge_id: Some(charge.to_owned()),
        ..Failure::ours("card_declined", "Your card was declined.")
    };
    IntentSnapshot {
        latest_charge: Some(charge.to_owned()),
        last_payment_error: Some(failure),
        ..intent(IntentStatus::RequiresPaymentMethod)
    }
}

#[test]
fn p2_an_intent_without_a_trace_of_the_attempt_proves_nothing() {
    let (mut payment, mut attempt) = (payment(PaymentState::Processing), attempt());
    let transition =
        payment.apply(Some(&mut attempt), PaymentInput::Intent(&intent(IntentStatus::RequiresPaymentMethod)), CONTEXT);
    assert!(!transition.is_reportable());
    assert_eq!((payment.state(), attempt.state), (PaymentState::Processing, AttemptState::Open));
}

#[test]
fn p2_the_trace_of_an_earlier_attempt_proves_nothing_about_this_one() {
    let (mut payment, mut attempt) = (payment(PaymentState::Processing), attempt());
    let before = declined("ch_1");
    attempt.prior_charge.clone_from(&before.latest_charge);
    attempt.prior_error.clone_from(&before.last_payment_error);
    payment.apply(Some(&mut attempt), PaymentInput::Intent(&before), CONTEXT);
    assert_eq!(payment.state(), PaymentState::Processing, "that refusal belongs to the earlier attempt");
    payment.apply(Some(&mut attempt), PaymentInput::Intent(&declined("ch_2")), CONTEXT);
    assert_eq!(payment.state(), PaymentState::Failed, "this one belongs to this attempt");
    assert_eq!(attempt.provider_charge_id.as_deref(), Some("ch_2"));
}

#[test]
fn p2_once_sent_our_own_rules_fail_nothing() {
    for state in [PaymentState::Processing, PaymentState::RequiresAction] {
        for input in [
            PaymentInput::Refused(Failure::ours("no_payment_method", "")),
            PaymentInput::Wait(PendingReason::IntegrationPaused),
            PaymentInput::ZeroAmount,
            PaymentInput::Withdrawn,
            PaymentInput::RetryRequested(None),
            PaymentInput::Unknown,
        ] {
            let mut payment = payment(state);
            payment.apply(Some(&mut attempt()), input.clone(), CONTEXT);
            assert_eq!(payment.state(), state, "{input:?}");
        }
    }
}

#[test]
fn p2_one_refusal_is_reported_once_whatever_reports_it_first() {
    let refusal = declined("ch_1");
    let input =
        [PaymentInput::ConfirmRefused(refusal.last_payment_error.clone().unwrap()), PaymentInput::Intent(&refusal)];
    for order in [[0, 1], [1, 0], [0, 0], [1, 1]] {
        let (mut payment, mut attempt) = (payment(PaymentState::Processing), attempt());
        let reported = order.map(|at| payment.apply(Some(&mut attempt), input[at].clone(), CONTEXT).is_reportable());
        assert_eq!(reported, [true, false], "{order:?}");
        assert_eq!(payment.state(), PaymentState::Failed);
    }
}

#[test]
fn p7_a_failed_payment_succeeds_if_stripe_says_so() {
    let mut payment = payment(PaymentState::Failed);
    assert!(
        payment
            .apply(Some(&mut attempt()), PaymentInput::Intent(&intent(IntentStatus::Succeeded)), CONTEXT)
            .is_reportable()
    );
    assert_eq!((payment.state(), payment.amount_received), (PaymentState::Succeeded, 4900));
}

#[test]
fn p1_an_intent_that_is_not_the_payments_own_changes_nothing() {
    let mut payment = payment(PaymentState::Processing);
    let before = payment.clone();
    let other = IntentSnapshot { id: "pi_other".to_owned(), ..intent(IntentStatus::Succeeded) };
    payment.apply(Some(&mut attempt()), PaymentInput::Intent(&other), CONTEXT);
    assert_eq!(payment, before);
}

#[test]
fn p12_money_received_before_the_payment_succeeded_still_counts() {
    let mut payment = payment(PaymentState::Processing);
    // An intent created in the Stripe Dashboard was paid in addition.
    payment.amount_received = 1000;
    payment.apply(Some(&mut attempt()), PaymentInput::Intent(&intent(IntentStatus::Succeeded)), CONTEXT);
    assert_eq!(payment.amount_received, 5900);
}

fn any_input() -> impl Strategy<Value = PaymentInput<'static>> {
    let intents: Vec<&'static IntentSnapshot> = [
        intent(IntentStatus::RequiresPaymentMethod),
        intent(IntentStatus::RequiresConfirmation),
        intent(IntentStatus::RequiresAction),
        intent(IntentStatus::Processing),
        intent(IntentStatus::RequiresCapture),
        intent(IntentStatus::Succeeded),
        intent(IntentStatus::Canceled),
        declined("ch_1"),
        declined("ch_2"),
    ]
    .into_iter()
    .map(|intent| &*Box::leak(Box::new(intent)))
    .collect();
    let paid: Vec<&'static IntentSnapshot> =
        intents.iter().copied().filter(|intent| intent.status == IntentStatus::Succeeded).collect();
    prop_oneof![
        3 => proptest::sample::select(intents).prop_map(PaymentInput::Intent),
        1 => proptest::sample::select(paid).prop_map(PaymentInput::OtherIntentPaid),
        1 => Just(PaymentInput::CannotClose),
        1 => Just(PaymentInput::IntegrationDisconnected),
        1 => Just(PaymentInput::AttemptPrepared(1)),
        1 => Just(PaymentInput::Unknown),
        1 => Just(PaymentInput::ZeroAmount),
        1 => Just(PaymentInput::Withdrawn),
        1 => Just(PaymentInput::RetryRequested(None)),
        1 => Just(PaymentInput::Wait(PendingReason::AmountTooSmall)),
        1 => Just(PaymentInput::Refused(Failure::ours("no_payment_method", ""))),
        1 => Just(PaymentInput::ConfirmRefused(Failure::ours("card_declined", ""))),
    ]
}

proptest! {
    /// Once settled, no input in any order changes anything about the payment.
    #[test]
    fn p7_settled_stays_settled(inputs in proptest::collection::vec(any_input(), 1..30)) {
        let (mut payment, mut attempt) = (payment(PaymentState::Pending), attempt());
        let mut settled: Option<Payment> = None;
        for (minute, input) in (0..).zip(inputs) {
            let context = ApplyContext { now: NOW + Duration::minutes(minute), ..CONTEXT };
            let transition = payment.apply(Some(&mut attempt), input.clone(), context);
            if let Some(settled) = &settled {
                prop_assert_eq!(settled, &payment, "{:?}", input);
                prop_assert!(!transition.is_reportable(), "{:?} is reported", input);
            } else if payment.state().is_final() {
                settled = Some(payment.clone());
            }
        }
    }

    /// Whatever the inputs, a payment in progress fails only if Stripe says so.
    #[test]
    fn p2_only_stripe_fails_what_was_sent(inputs in proptest::collection::vec(any_input(), 1..30)) {
        let (mut payment, mut attempt) = (payment(PaymentState::Processing), attempt());
        for input in inputs {
            let was_moving = payment.is_in_flight();
            payment.apply(Some(&mut attempt), input.clone(), CONTEXT);
            if was_moving && payment.state() == PaymentState::Failed {
                let is_from_stripe = match &input {
                    PaymentInput::ConfirmRefused(_) => true,
                    PaymentInput::Intent(intent) => intent.last_payment_error.is_some(),
                    _ => false,
                };
                prop_assert!(is_from_stripe, "{:?} failed it", input);
            }
        }
    }
}
