//! P1: one open way to pay, whatever is asked for meanwhile.

use super::*;
use crate::domain::payment_methods::{Mandates, MethodDetails, PaymentMethod};
use crate::domain::signals::{SessionSnapshot, SessionStatus};

pub(super) fn link(session: Option<&str>) -> Attempt {
    let link = Link { provider_session_id: session.map(str::to_owned), ..Link::default() };
    Attempt { number: 2, way: Way::Link(link), provider_payment_intent_id: None, ..attempt() }
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

pub(super) fn of_link(status: IntentStatus) -> IntentSnapshot {
    IntentSnapshot { id: "pi_link".to_owned(), latest_charge: Some("ch_link".to_owned()), ..intent(status) }
}

fn errands() -> [Errand; 6] {
    [
        Errand::Cancel,
        Errand::ChangeAmount { minor_units: 5000, part_known: 0 },
        Errand::Retry { method: None },
        Errand::RecordManual(Manual { reference: "bank".to_owned(), time: NOW }),
        by_hand(),
        Errand::EndAction,
    ]
}

/// An intent that a person has made and had paid.
pub(super) fn beside(amount: i64) -> IntentSnapshot {
    let latest_charge = Some("ch_hand".to_owned());
    IntentSnapshot {
        id: "pi_hand".to_owned(),
        amount_received: amount,
        latest_charge,
        ..intent(IntentStatus::Succeeded)
    }
}

fn by_hand() -> Errand {
    Errand::Settle {
        provider_payment_intent_id: "pi_hand".to_owned(),
        provider_charge_id: Some("ch_hand".to_owned()),
        minor_units: 4900,
    }
}

#[test]
fn p1_p12_a_charge_by_hand_settles_after_our_own_way_is_closed() {
    let mut payment = payment(PaymentState::Failed);
    let change = payment.apply(None, News::PaidBeside(&beside(5900)), HERE);
    assert_eq!((payment.state, payment.amount_received), (PaymentState::Failed, 5900), "its own intent is open");
    assert!(payment.needs_work(&super::payment(PaymentState::Failed), &change));
    assert_eq!(payment.objection(None, &Errand::Cancel), Some(Objection::Busy), "it is paid");
    let change = payment.apply(None, News::Intent(&intent(IntentStatus::Canceled)), HERE);
    assert_eq!((payment.state, payment.amount_received), (PaymentState::Succeeded, 5900), "counted once");
    assert_eq!(payment.provider_payment_intent_id.as_deref(), Some("pi_hand"));
    let surplus = Receipt { amount: Money { minor_units: 1000, ..EUROS }, ..Receipt::of(&beside(5900)) };
    assert_eq!(change.notices, [Notice::Overpaid(surplus)]);
    assert_eq!(change.settled_by, Some(Receipt::of(&beside(5900))));
}

#[test]
fn p12_parts_by_hand_are_reported_and_add_up_until_the_amount_is_changed() {
    let mut failed = payment(PaymentState::Failed);
    let change = failed.apply(None, News::PaidBeside(&beside(2000)), HERE);
    let receipt = Receipt::of(&beside(2000));
    assert_eq!(change.notices, [Notice::Underpaid { receipt, remaining: 2900 }]);
    assert_eq!((failed.state, &failed.errand, failed.part_received), (PaymentState::Failed, &None, 2000));
    // In full beside the part.
    let mut whole = failed.clone();
    let change = whole.apply(None, News::Intent(&intent(IntentStatus::Succeeded)), HERE);
    let surplus =
        Receipt { amount: Money { minor_units: 2000, ..EUROS }, ..Receipt::of(&intent(IntentStatus::Succeeded)) };
    assert_eq!((whole.amount_received, change.notices), (6900, vec![Notice::Overpaid(surplus)]));
    // The rest, by hand.
    let mut rest = Payment { provider_payment_intent_id: None, ..failed.clone() };
    let change = rest.apply(None, News::PaidBeside(&beside(2900)), HERE);
    assert_eq!((rest.state, rest.amount_received, change.notices), (PaymentState::Succeeded, 4900, Vec::new()));
    // A caller who changes the amount to the rest has reckoned with the part.
    let mut less = Payment { provider_payment_intent_id: None, ..failed };
    less.apply(None, News::Asked(less.amount_change(2900)), HERE);
    assert_eq!((less.amount.minor_units, less.part_received), (2900, 0));
}

#[test]
fn p12_a_charge_by_hand_ends_what_was_requested_and_beside_another_payment_is_too_much() {
    for errand in errands() {
        let mut payment = payment(PaymentState::Failed);
        payment.apply(None, News::Asked(errand.clone()), HERE);
        let change = payment.apply(None, News::PaidBeside(&beside(4900)), HERE);
        let expected = match errand {
            Errand::Cancel => vec![Notice::CancellationRefused],
            // 50.00 were requested, and would be due.
            Errand::ChangeAmount { .. } => {
                vec![Notice::Underpaid { receipt: Receipt::of(&beside(4900)), remaining: 100 }]
            }
            Errand::RecordManual(_) | Errand::Settle { .. } => vec![Notice::Overpaid(Receipt::of(&beside(4900)))],
            Errand::Retry { .. } | Errand::EndAction => Vec::new(),
        };
        assert_eq!(change.notices, expected, "{errand:?}");
    }
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
            Errand::RecordManual(_) | Errand::Settle { .. } => PaymentState::Succeeded,
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
        let expected = match errand {
            Errand::Cancel => vec![Notice::CancellationRefused],
            Errand::ChangeAmount { minor_units, .. } => {
                // 49.00 came in, and 50.00 were requested.
                let receipt = Receipt::of(&intent(IntentStatus::Succeeded));
                vec![Notice::AmountChangeRefused { minor_units }, Notice::Underpaid { receipt, remaining: 100 }]
            }
            // P12: what was paid here and elsewhere.
            Errand::RecordManual(_) => vec![Notice::Overpaid(Receipt::of(&intent(IntentStatus::Succeeded)))],
            Errand::Settle { .. } => vec![Notice::Overpaid(Receipt::of(&beside(4900)))],
            Errand::Retry { .. } | Errand::EndAction => Vec::new(),
        };
        assert_eq!(change.notices, expected, "{errand:?}");
    }
}

#[test]
fn p1_with_nothing_at_stripe_an_errand_is_carried_out_at_once() {
    let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::Pending) };
    let number = payment.intent_number;
    let change = payment.apply(None, News::Asked(Errand::ChangeAmount { minor_units: 5000, part_known: 0 }), HERE);
    assert_eq!((payment.amount.minor_units, payment.state), (5000, PaymentState::Pending));
    assert!(payment.intent_number > number, "an intent in the making for the old amount is not adopted");
    assert!(payment.needs_work(&Payment { amount: EUROS, ..payment.clone() }, &change));
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
        let expected = match errand {
            Errand::Cancel => vec![Notice::CancellationRefused],
            Errand::ChangeAmount { minor_units, .. } => vec![Notice::AmountChangeRefused { minor_units }],
            _ => Vec::new(),
        };
        assert_eq!(change.notices, expected, "whoever requested it learns so");
        assert_eq!(payment.errand.is_some(), matches!(errand, Errand::RecordManual(_) | Errand::Settle { .. }));
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
    assert_eq!((unasked.state, change.notices, &unasked.errand), (PaymentState::Canceled, Vec::new(), &None));
    assert_eq!(unasked.unknown_since, Some(NOW), "an intent may be left at Stripe");

    attempt.state = AttemptState::Open;
    payment.apply(Some(&mut attempt), News::Withdrawn, HERE);
    let change = payment.apply(Some(&mut attempt), News::OutOfReach, HERE);
    assert_eq!((payment.state, payment.errand), (PaymentState::Processing, None));
    assert_eq!(change.notices, [Notice::CancellationRefused]);
}

#[test]
fn a_link_that_ends_unused_leaves_the_lack_of_a_method_as_it_was() {
    let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::Pending) };
    assert!(!payment.apply(None, News::Refused(Failure::no_payment_method()), HERE).is_no_failure, "reported once");
    let mut open = link(None);
    payment.apply(Some(&mut open), News::LinkMade(&session(SessionStatus::Open, None)), HERE);
    assert_eq!(payment.state, PaymentState::RequiresAction);
    let change = payment.apply(Some(&mut open), News::Link(&session(SessionStatus::Expired, None), None), HERE);
    assert!(change.is_no_failure && payment.lacked_method() && payment.awaits_method, "{payment:?}");
    assert!(payment.needs_work(&payment.clone(), &change), "a method may have arrived meanwhile");

    // An amount that a caller changes ends the link, too.
    let mut again = Attempt { number: 3, ..link(None) };
    payment.apply(Some(&mut again), News::LinkMade(&session(SessionStatus::Open, None)), HERE);
    payment.apply(Some(&mut again), News::Asked(Errand::ChangeAmount { minor_units: 5000, part_known: 0 }), HERE);
    let change = payment.apply(Some(&mut again), News::Link(&session(SessionStatus::Expired, None), None), HERE);
    assert!(change.is_no_failure && payment.lacked_method(), "{payment:?}");
    assert_eq!(payment.amount.minor_units, 5000);
}

#[test]
fn a_method_is_due_once_and_a_refusal_since_is_not_repeated() {
    let attached = |second| PaymentMethod { attach_time: Some(NOW + Duration::seconds(second)), ..card() };
    let mut lacking = payment(PaymentState::Pending);
    lacking.apply(None, News::Refused(Failure::no_payment_method()), HERE);
    assert!(!lacking.is_due_for(None, None), "none has arrived");
    assert!(lacking.is_due_for(Some(&attached(0)), None));
    assert!(!lacking.is_due_for(Some(&attached(0)), Some(&link(None))), "not beside a link");

    let mut refused = lacking.clone();
    refused.fail(Failure::ours("card_declined", ""));
    let end = Some(NOW + Duration::seconds(10));
    let tried = Attempt { state: AttemptState::Failed(Failure::default()), finish_time: end, ..link(Some("cs_1")) };
    assert!(!refused.is_due_for(Some(&attached(9)), Some(&tried)), "it may be the one that was refused");
    assert!(refused.is_due_for(Some(&attached(10)), Some(&tried)), "whatever was tried in between");

    refused.apply(None, News::MethodArrived, HERE);
    assert_eq!(refused.state, PaymentState::Pending);
    refused.fail(Failure::ours("card_declined", ""));
    assert!(!refused.is_due_for(Some(&attached(20)), None), "once");
}

#[test]
fn the_automatic_retry_never_repeats_a_decline_of_the_method_that_has_arrived() {
    let mut lacking = payment(PaymentState::Pending);
    lacking.apply(None, News::Refused(Failure::no_payment_method()), HERE);
    // The caller's RetryPayment is faster than our own retry, and Stripe's clock is ahead of ours.
    lacking.apply(None, News::Retried(None), HERE);
    let mut tried = attempt();
    lacking.apply(Some(&mut tried), News::Sent(1), HERE);
    lacking.apply(Some(&mut tried), News::Intent(&declined("ch_1")), HERE);
    assert!(lacking.awaits_method && lacking.state == PaymentState::Failed);
    let arrived = PaymentMethod { attach_time: Some(NOW + Duration::seconds(2)), ..card() };
    assert_eq!(tried.method(), Some(arrived.id));
    assert!(!lacking.is_due_for(Some(&arrived), Some(&tried)), "the bank has refused this one");
    let another = PaymentMethod { id: Uuid::from_u128(2).into(), ..arrived };
    assert!(lacking.is_due_for(Some(&another), Some(&tried)), "another one has its try");
}

fn card() -> PaymentMethod {
    PaymentMethod {
        id: Uuid::nil().into(),
        organization_id: Uuid::nil().into(),
        customer_id: Uuid::nil().into(),
        integration_id: Uuid::nil().into(),
        provider_payment_method_id: "pm_1".to_owned(),
        kind: "card".to_owned(),
        details: MethodDetails::default(),
        mandates: Mandates::default(),
        attach_time: None,
        choose_time: None,
        unset_time: None,
        is_unset_read: false,
        detach_time: None,
        is_detach_read: false,
        create_time: NOW,
    }
}

#[test]
fn p12_what_a_page_took_is_compared_with_the_amount_that_was_refused() {
    for (requested, remaining) in [(3000, None), (6000, Some(1100))] {
        let mut payment = Payment { provider_payment_intent_id: None, ..payment(PaymentState::RequiresAction) };
        let mut open = link(Some("cs_1"));
        let errand = payment.amount_change(requested);
        payment.apply(Some(&mut open), News::Asked(errand), HERE);
        // A debit: it can't be closed, and the bank pays days later.
        let page = session(SessionStatus::Complete, Some("pi_link"));
        payment.apply(Some(&mut open), News::Link(&page, Some(&of_link(IntentStatus::Processing))), HERE);
        let refused = payment.apply(Some(&mut open), News::CannotClose, HERE);
        assert_eq!(refused.notices, [Notice::AmountChangeRefused { minor_units: requested }]);
        let paid = of_link(IntentStatus::Succeeded);
        let change = payment.apply(Some(&mut open), News::Link(&page, Some(&paid)), HERE);
        let receipt = Receipt::of(&paid);
        let expected = match remaining {
            Some(remaining) => Notice::Underpaid { receipt, remaining },
            None => Notice::Overpaid(Receipt { amount: Money { minor_units: 1900, ..EUROS }, ..receipt }),
        };
        assert_eq!((change.notices, payment.amount), (vec![expected], EUROS));
    }
}
