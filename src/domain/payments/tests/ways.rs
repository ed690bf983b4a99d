//! P1: one open way to pay, whatever is asked for meanwhile.

use super::*;
use crate::domain::signals::{SessionSnapshot, SessionStatus};

fn link(session: Option<&str>) -> Attempt {
    let link = Link { provider_session_id: session.map(str::to_owned), ..Link::default() };
    Attempt { number: 2, way: Way::Link(link), provider_payment_intent_id: None, ..attempt() }
}

fn session(status: SessionStatus, intent: Option<&str>) -> SessionSnapshot {
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

fn of_link(status: IntentStatus) -> IntentSnapshot {
    IntentSnapshot { id: "pi_link".to_owned(), latest_charge: Some("ch_link".to_owned()), ..intent(status) }
}

fn errands() -> [Errand; 5] {
    [
        Errand::Cancel,
        Errand::ChangeAmount { minor_units: 5000 },
        Errand::Retry { method: None },
        Errand::RecordManual(Manual { reference: "bank".to_owned(), time: NOW }),
        Errand::EndAction,
    ]
}

#[test]
fn p1_an_errand_waits_for_stripes_word_that_the_intent_is_closed() {
    for errand in errands() {
        let mut payment = payment(PaymentState::Failed);
        let mut failed = Attempt { state: AttemptState::Failed(Failure::default()), ..attempt() };
        payment.apply(Some(&mut failed), News::Asked(errand.clone()), HERE);
        assert_eq!((payment.state, payment.amount), (PaymentState::Failed, EUROS), "{errand:?} is only asked for");
        payment.apply(Some(&mut failed), News::Intent(&intent(IntentStatus::RequiresPaymentMethod)), HERE);
        assert_eq!(payment.errand.as_ref(), Some(&errand), "an intent that waits may still be confirmed by a person");
        payment.apply(Some(&mut failed), News::Intent(&intent(IntentStatus::Canceled)), HERE);
        assert!(payment.errand.is_none(), "{errand:?} is carried out");
        let expected = match errand {
            Errand::Cancel => PaymentState::Canceled,
            Errand::ChangeAmount { .. } | Errand::EndAction => PaymentState::Failed,
            Errand::Retry { .. } => PaymentState::Pending,
            Errand::RecordManual(_) => PaymentState::Succeeded,
        };
        assert_eq!(payment.state, expected, "{errand:?}");
    }
}

#[test]
fn p1_where_the_intent_has_taken_the_money_the_errand_is_over() {
    for errand in errands() {
        let mut payment = payment(PaymentState::Failed);
        payment.apply(None, News::Asked(errand.clone()), HERE);
        let change = payment.apply(None, News::Intent(&intent(IntentStatus::Succeeded)), HERE);
        assert_eq!((payment.state, payment.amount), (PaymentState::Succeeded, EUROS), "{errand:?}");
        assert!(payment.errand.is_none());
        let is_manual = matches!(errand, Errand::RecordManual(_));
        assert_eq!(change.paid_twice, is_manual, "P12: what was paid here and elsewhere is told");
    }
}

#[test]
fn p1_with_nothing_at_stripe_an_errand_is_carried_out_at_once() {
    let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::Pending) };
    let number = payment.intent_number;
    let change = payment.apply(None, News::Asked(Errand::ChangeAmount { minor_units: 5000 }), HERE);
    assert_eq!((payment.amount.minor_units, payment.state), (5000, PaymentState::Pending));
    assert!(payment.intent_number > number, "an intent in the making for the old amount is not adopted");
    assert!(payment.needs_work(&Payment { amount: EUROS, ..payment.clone() }, change));
}

#[test]
fn p1_a_link_opens_only_after_the_intent_is_closed_and_holds_the_slot() {
    let mut payment = payment(PaymentState::Failed);
    let mut open = link(None);
    payment.apply(Some(&mut open), News::Intent(&intent(IntentStatus::Canceled)), HERE);
    assert_eq!(payment.state, PaymentState::Failed, "only its way is closed");
    assert!(payment.provider_payment_intent_id.is_none());
    let change = payment.apply(Some(&mut open), News::LinkMade(&session(SessionStatus::Open, None)), HERE);
    assert_eq!(change.to, PaymentState::RequiresAction);
    assert_eq!(payment.next_action_url.as_deref(), Some("https://pay.test/cs_1"));
    assert!(link_objection(&payment, Some(&open)).is_some(), "one at a time");
    assert!(!payment.is_closed(Some(&open)));
}

#[test]
fn p1_a_link_that_had_not_left_us_stands_in_nobodys_way() {
    let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::Failed) };
    let mut open = link(None);
    payment.apply(Some(&mut open), News::Asked(Errand::Cancel), HERE);
    assert_eq!((payment.state, &open.state), (PaymentState::Canceled, &AttemptState::Canceled));
    payment.apply(Some(&mut open), News::LinkMade(&session(SessionStatus::Open, None)), HERE);
    assert_eq!(payment.state, PaymentState::Canceled, "what is made late is not handed out");
}

#[test]
fn what_became_of_a_link_decides_and_a_declined_card_on_an_open_page_does_not() {
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
    for (status, of_intent, expected) in table {
        let mut payment = Payment { provider_payment_intent_id: None, ..payment(P::RequiresAction) };
        let mut open = link(Some("cs_1"));
        let of_intent = of_intent.map(of_link);
        let told = session(status, of_intent.as_ref().map(|intent| intent.id.as_str()));
        payment.apply(Some(&mut open), News::Link(&told, of_intent.as_ref()), HERE);
        assert_eq!(payment.state, expected, "{status:?} {of_intent:?}");
        let again = payment.apply(Some(&mut open), News::Link(&told, of_intent.as_ref()), HERE);
        assert!(!again.is_news(), "told once: {status:?}");
    }
}

#[test]
fn p1_an_errand_of_a_payment_with_a_link_waits_until_its_page_has_ended() {
    let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::RequiresAction) };
    let mut open = link(Some("cs_1"));
    payment.apply(Some(&mut open), News::Asked(Errand::Retry { method: None }), HERE);
    assert_eq!(payment.state, PaymentState::RequiresAction);
    payment.apply(Some(&mut open), News::Link(&session(SessionStatus::Expired, None), None), HERE);
    assert_eq!((payment.state, &open.state), (PaymentState::Pending, &AttemptState::Canceled));
}

#[test]
fn a_bank_that_wants_the_customer_is_asked_again_on_session_and_only_once() {
    let wants = Failure {
        decline_code: Some("authentication_required".to_owned()),
        ..Failure::ours("authentication_required", "")
    };
    let there = Circumstances { supports_3ds: true, ..HERE };
    let mut payment = payment(PaymentState::Processing);
    let mut first = attempt();
    let change = payment.apply(Some(&mut first), News::ConfirmRefused(wants.clone()), there);
    assert!(!change.is_news() && payment.on_session, "nothing has failed yet");
    assert!(matches!(first.state, AttemptState::Failed(_)));
    let mut second = Attempt { number: 2, ..attempt() };
    payment.apply(Some(&mut second), News::Sent(2), there);
    payment.apply(Some(&mut second), News::Intent(&intent(IntentStatus::RequiresAction)), there);
    assert_eq!((payment.state, payment.action_time), (PaymentState::RequiresAction, Some(NOW)));
    payment.apply(Some(&mut second), News::ConfirmRefused(wants.clone()), there);
    assert_eq!(payment.state, PaymentState::Failed, "not asked for ever");
    assert!(!payment.on_session);

    let mut plain = super::payment(PaymentState::Processing);
    plain.apply(Some(&mut attempt()), News::ConfirmRefused(wants), HERE);
    assert_eq!(plain.state, PaymentState::Failed, "without support it is a refusal");
}

#[test]
fn an_action_that_nobody_finishes_fails_once_the_intent_is_closed() {
    let mut payment = payment(PaymentState::Processing);
    let mut open = attempt();
    payment.apply(Some(&mut open), News::Intent(&intent(IntentStatus::RequiresAction)), HERE);
    payment.apply(Some(&mut open), News::Asked(Errand::EndAction), HERE);
    assert_eq!(payment.state, PaymentState::RequiresAction, "Stripe decides");
    payment.apply(Some(&mut open), News::Intent(&intent(IntentStatus::Canceled)), HERE);
    assert_eq!(payment.failure.as_ref().map(|failure| failure.code.as_str()), Some("action_expired"));
    assert!(payment.provider_payment_intent_id.is_none(), "free to be paid another way");
}

#[test]
fn what_cannot_be_closed_goes_on_and_a_payment_recorded_elsewhere_waits_for_it() {
    for errand in errands() {
        let mut payment = payment(PaymentState::Processing);
        payment.apply(Some(&mut attempt()), News::Asked(errand.clone()), HERE);
        let change = payment.apply(Some(&mut attempt()), News::CannotClose, HERE);
        assert_eq!(payment.state, PaymentState::Processing);
        assert_eq!(change.goes_on, errand == Errand::Cancel, "whoever wanted it canceled is told");
        assert_eq!(payment.errand.is_some(), matches!(errand, Errand::RecordManual(_)));
    }
}

#[test]
fn p8_without_stripe_an_errand_ends_and_only_what_is_on_its_way_goes_on() {
    // The bank wanted to see the customer, who was not asked: nothing is on its way.
    let (mut payment, mut attempt) = (payment(PaymentState::Processing), attempt());
    payment.on_session = true;
    attempt.state = AttemptState::Failed(Failure::ours("authentication_required", ""));
    let mut unasked = payment.clone();
    unasked.apply(Some(&mut attempt), News::Withdrawn, HERE);
    let change = unasked.apply(Some(&mut attempt), News::OutOfReach, HERE);
    assert_eq!((unasked.state, change.goes_on, &unasked.errand), (PaymentState::Canceled, false, &None));
    assert_eq!(unasked.unknown_since, Some(NOW), "an intent may be left at Stripe");

    attempt.state = AttemptState::Open;
    payment.apply(Some(&mut attempt), News::Withdrawn, HERE);
    let change = payment.apply(Some(&mut attempt), News::OutOfReach, HERE);
    assert_eq!((payment.state, change.goes_on, payment.errand), (PaymentState::Processing, true, None));
}
