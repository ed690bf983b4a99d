mod amounts;
mod ways;

use proptest::prelude::*;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::*;
use crate::domain::Currency;
use crate::domain::signals::{IntentSnapshot, IntentStatus};

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
const HERE: Circumstances = Circumstances { now: NOW, supports_3ds: false };
const EUROS: Money = Money { minor_units: 4900, currency: Currency::EUR };

fn payment(state: PaymentState) -> Payment {
    Payment {
        id: Uuid::nil().into(),
        organization_id: Uuid::nil().into(),
        integration_id: Uuid::nil().into(),
        customer_id: Uuid::nil().into(),
        invoice_id: "inv".to_owned(),
        invoice_number: String::new(),
        amount: EUROS,
        state,
        pending_reason: None,
        failure: None,
        awaits_method: false,
        provider_payment_intent_id: Some("pi_1".to_owned()),
        intent_number: 1,
        attempt_number: 1,
        requested_method_id: None,
        on_session: false,
        next_action_url: None,
        action_time: None,
        provider_charge_id: None,
        amount_received: 0,
        part_received: 0,
        amount_refunded: 0,
        cancel_request_time: None,
        errand: None,
        refused_amount: None,
        manual: None,
        unknown_since: None,
        version: 1,
        create_time: NOW,
        update_time: NOW,
    }
}

fn attempt() -> Attempt {
    Attempt {
        payment_id: Uuid::nil().into(),
        number: 1,
        amount: EUROS,
        way: Way::Confirm { method: Uuid::nil().into() },
        provider_payment_intent_id: Some("pi_1".to_owned()),
        idempotency_key: "key".to_owned(),
        body: "payment_method=pm_1".to_owned(),
        prior_charge: None,
        prior_error: None,
        state: AttemptState::Open,
        provider_charge_id: None,
        dead_key_time: None,
        create_time: NOW,
        finish_time: None,
    }
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
        invoice_id: None,
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
    let change = payment.apply(Some(&mut attempt), News::Intent(&intent(IntentStatus::RequiresPaymentMethod)), HERE);
    assert!(!change.is_news());
    assert_eq!((payment.state, attempt.state), (PaymentState::Processing, AttemptState::Open));
}

#[test]
fn p2_the_trace_of_an_earlier_attempt_proves_nothing_about_this_one() {
    let (mut payment, mut attempt) = (payment(PaymentState::Processing), attempt());
    let before = declined("ch_1");
    attempt.prior_charge.clone_from(&before.latest_charge);
    attempt.prior_error.clone_from(&before.last_payment_error);
    payment.apply(Some(&mut attempt), News::Intent(&before), HERE);
    assert_eq!(payment.state, PaymentState::Processing, "that refusal is the earlier attempt's");
    payment.apply(Some(&mut attempt), News::Intent(&declined("ch_2")), HERE);
    assert_eq!(payment.state, PaymentState::Failed, "this one is its own");
    assert_eq!(attempt.provider_charge_id.as_deref(), Some("ch_2"));
}

#[test]
fn p2_once_sent_a_rule_of_ours_fails_nothing() {
    for state in [PaymentState::Processing, PaymentState::RequiresAction] {
        for news in [
            News::Refused(Failure::ours("no_payment_method", "")),
            News::Waits(PendingReason::IntegrationPaused),
            News::NothingDue,
            News::Withdrawn,
            News::Retried(None),
            News::Unknown,
        ] {
            let mut payment = payment(state);
            payment.apply(Some(&mut attempt()), news.clone(), HERE);
            assert_eq!(payment.state, state, "{news:?}");
        }
    }
}

#[test]
fn p2_one_refusal_is_told_once_whoever_tells_it_first() {
    let refusal = declined("ch_1");
    let news = [News::ConfirmRefused(refusal.last_payment_error.clone().unwrap()), News::Intent(&refusal)];
    for order in [[0, 1], [1, 0], [0, 0], [1, 1]] {
        let (mut payment, mut attempt) = (payment(PaymentState::Processing), attempt());
        let told = order.map(|at| payment.apply(Some(&mut attempt), news[at].clone(), HERE).is_news());
        assert_eq!(told, [true, false], "{order:?}");
        assert_eq!(payment.state, PaymentState::Failed);
    }
}

#[test]
fn p7_a_failed_payment_turns_paid_when_stripe_says_so() {
    let mut payment = payment(PaymentState::Failed);
    assert!(payment.apply(Some(&mut attempt()), News::Intent(&intent(IntentStatus::Succeeded)), HERE).is_news());
    assert_eq!((payment.state, payment.amount_received), (PaymentState::Succeeded, 4900));
}

#[test]
fn p1_an_intent_that_is_not_the_payments_own_changes_nothing() {
    let mut payment = payment(PaymentState::Processing);
    let before = payment.clone();
    let other = IntentSnapshot { id: "pi_other".to_owned(), ..intent(IntentStatus::Succeeded) };
    payment.apply(Some(&mut attempt()), News::Intent(&other), HERE);
    assert_eq!(payment, before);
}

#[test]
fn p12_what_came_in_before_the_payment_was_paid_is_not_forgotten() {
    let mut payment = payment(PaymentState::Processing);
    // Somebody has paid by hand beside it.
    payment.amount_received = 1000;
    payment.apply(Some(&mut attempt()), News::Intent(&intent(IntentStatus::Succeeded)), HERE);
    assert_eq!(payment.amount_received, 5900);
}

fn any_news() -> impl Strategy<Value = News<'static>> {
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
        3 => proptest::sample::select(intents).prop_map(News::Intent),
        1 => proptest::sample::select(paid).prop_map(News::PaidBeside),
        1 => Just(News::CannotClose),
        1 => Just(News::OutOfReach),
        1 => Just(News::Sent(1)),
        1 => Just(News::Unknown),
        1 => Just(News::NothingDue),
        1 => Just(News::Withdrawn),
        1 => Just(News::Retried(None)),
        1 => Just(News::Waits(PendingReason::AmountTooSmall)),
        1 => Just(News::Refused(Failure::ours("no_payment_method", ""))),
        1 => Just(News::ConfirmRefused(Failure::ours("card_declined", ""))),
    ]
}

proptest! {
    /// Whatever is told, in whatever order: once settled, nothing about the payment changes any more.
    #[test]
    fn p7_settled_stays_settled(story in proptest::collection::vec(any_news(), 1..30)) {
        let (mut payment, mut attempt) = (payment(PaymentState::Pending), attempt());
        let mut settled: Option<Payment> = None;
        for (minute, news) in (0..).zip(story) {
            let here = Circumstances { now: NOW + Duration::minutes(minute), ..HERE };
            let change = payment.apply(Some(&mut attempt), news.clone(), here);
            if let Some(settled) = &settled {
                prop_assert_eq!(settled, &payment, "{:?}", news);
                prop_assert!(!change.is_news(), "{:?} is told", news);
            } else if payment.state.is_final() {
                settled = Some(payment.clone());
            }
        }
    }

    /// Whatever is told: a payment that moves fails only by Stripe's word.
    #[test]
    fn p2_only_stripes_word_fails_what_was_sent(story in proptest::collection::vec(any_news(), 1..30)) {
        let (mut payment, mut attempt) = (payment(PaymentState::Processing), attempt());
        for news in story {
            let was_moving = payment.is_moving();
            payment.apply(Some(&mut attempt), news.clone(), HERE);
            if was_moving && payment.state == PaymentState::Failed {
                let is_stripes = match &news {
                    News::ConfirmRefused(_) => true,
                    News::Intent(intent) => intent.last_payment_error.is_some(),
                    _ => false,
                };
                prop_assert!(is_stripes, "{:?} failed it", news);
            }
        }
    }
}
