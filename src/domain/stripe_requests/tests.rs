use proptest::prelude::*;
use strum::VariantArray as _;

use super::*;
use crate::domain::fixtures::{self, KEY_SCOPE as SCOPE, START};

fn request(purpose: Purpose, key_state: KeyState) -> StripeRequest {
    StripeRequest { key_state, ..fixtures::request(purpose, 1, "body", START) }
}

/// What follows at each of these times, in minutes after the request was prepared, if a read shows nothing.
fn after_reads(request: &StripeRequest, minutes: &[i64]) -> Vec<Next> {
    minutes.iter().map(|minute| request.next(Observed::Absent, START + Duration::minutes(*minute))).collect()
}

fn wait(minutes: i64) -> Next {
    Next::Wait(START + Duration::minutes(minutes))
}

#[test]
fn p2_a_key_is_sent_for_20_hours_and_not_a_moment_longer() {
    for purpose in Purpose::VARIANTS.iter().copied().filter(|purpose| *purpose != Purpose::Confirmation) {
        let request = request(purpose, KeyState::Usable);
        for observed in [Observed::Unsent, Observed::Unread, Observed::Absent] {
            assert_eq!(request.next(observed, START + Duration::hours(20)), Next::Send, "{purpose:?} {observed:?}");
            let late = request.next(observed, START + Duration::hours(20) + Duration::SECOND);
            assert_ne!(late, Next::Send, "{purpose:?} {observed:?}");
        }
    }
}

#[test]
fn p2_a_confirmation_is_sent_unread_only_if_nobody_can_have_sent_it() {
    let request = request(Purpose::Confirmation, KeyState::Usable);
    assert_eq!(request.next(Observed::Unsent, START + Duration::MINUTE), Next::Send);
    assert_eq!(request.next(Observed::Unsent, START + Duration::MINUTE + Duration::SECOND), Next::Read);
    assert_eq!(request.next(Observed::Unread, START), Next::Read);
    assert_eq!(request.next(Observed::Absent, START + Duration::hours(20)), Next::Send);
    assert_eq!(request.next(Observed::Present, START), Next::Done);
}

#[test]
fn p2_a_confirmation_and_a_full_refund_get_another_key_after_three_reads() {
    for purpose in [Purpose::Confirmation, Purpose::Refund] {
        let replaying = request(purpose, KeyState::ReplaysError(START + Duration::minutes(10)));
        assert_eq!(replaying.next(Observed::Unsent, START + Duration::minutes(10)), Next::Read);
        let found = after_reads(&replaying, &[10, 11, 14, 15, 39, 40]);
        assert_eq!(found, [wait(11), wait(15), wait(15), wait(40), wait(40), Next::NewKey]);
        let old = request(purpose, KeyState::Usable);
        let hours = 20 * 60;
        assert_eq!(after_reads(&old, &[hours + 1, hours + 30]), [wait(hours + 5), Next::NewKey]);
    }
}

#[test]
fn p2_a_part_of_a_charge_is_refunded_under_another_key_only_once_stripe_has_forgotten_the_first() {
    let (hours, day) = (20 * 60, 24 * 60);
    let replaying = request(Purpose::PartialRefund, KeyState::ReplaysError(START));
    assert_eq!(after_reads(&replaying, &[30, day - 1, day]), [wait(day), wait(day), Next::NewKey]);
    let old = request(Purpose::PartialRefund, KeyState::Usable);
    assert_eq!(after_reads(&old, &[hours + 30, hours + day]), [wait(hours + day), Next::NewKey]);
    // First found to replay an error long after its last send.
    let late = request(Purpose::PartialRefund, KeyState::ReplaysError(START + Duration::hours(30)));
    assert_eq!(after_reads(&late, &[hours + day - 1, hours + day]), [wait(hours + day), Next::NewKey]);
}

#[test]
fn p2_a_customer_and_an_intent_are_looked_up_before_another_key_is_used() {
    for purpose in [Purpose::Customer, Purpose::PaymentIntent] {
        let replaying = request(purpose, KeyState::ReplaysError(START));
        assert_eq!(replaying.next(Observed::Unread, START), Next::Read);
        assert_eq!(replaying.next(Observed::Absent, START), Next::NewKey);
        assert_eq!(replaying.next(Observed::Present, START), Next::Done);
        assert_eq!(request(purpose, KeyState::Usable).next(Observed::Spent, START), Next::NewKey);
    }
}

#[test]
fn p2_a_taken_key_of_an_intent_means_that_it_exists_and_another_key_is_never_a_guess() {
    for purpose in [Purpose::PaymentIntent, Purpose::Refund, Purpose::PartialRefund] {
        let taken = request(purpose, KeyState::Taken(START));
        assert_eq!(taken.next(Observed::Unread, START), Next::Read);
        assert_eq!(taken.next(Observed::Spent, START), Next::NewKey, "what it made is known to be harmless");
    }
    let intent = request(Purpose::PaymentIntent, KeyState::Taken(START));
    assert!(matches!(intent.next(Observed::Absent, START + Duration::days(2)), Next::Stop(_)));
    // An intent can be confirmed, and all of a charge refunded, only once.
    for purpose in [Purpose::Confirmation, Purpose::Refund] {
        let taken = request(purpose, KeyState::Taken(START));
        assert_eq!(after_reads(&taken, &[0, 29, 30]), [wait(1), wait(30), Next::NewKey], "{purpose:?}");
    }
    // The request with the other body may have been answered with an error, and may be completed within a day.
    let (part, day) = (request(Purpose::PartialRefund, KeyState::Taken(START)), 24 * 60);
    assert_eq!(after_reads(&part, &[30, day - 1, day]), [wait(day), wait(day), Next::NewKey]);
    // A duplicate customer takes no money.
    let customer = request(Purpose::Customer, KeyState::Taken(START));
    assert_eq!(customer.next(Observed::Unread, START), Next::Read);
    assert_eq!(customer.next(Observed::Absent, START), Next::NewKey);
    // Nobody has the URL.
    assert_eq!(request(Purpose::CheckoutSession, KeyState::Taken(START)).next(Observed::Unread, START), Next::NewKey);
}

#[test]
fn p2_the_list_is_read_from_before_the_request_and_further_back_for_a_taken_key() {
    let from = |key_state| request(Purpose::PaymentIntent, key_state).list_from();
    assert_eq!(from(KeyState::Usable), START - Duration::minutes(5));
    assert_eq!(from(KeyState::ReplaysError(START)), START - Duration::minutes(5));
    assert_eq!(from(KeyState::Taken(START)), START - Duration::days(30));
}

#[test]
fn p1_a_payment_link_never_gets_another_key_and_fails_once_no_other_page_may_be_paid() {
    for observed in [Observed::Unsent, Observed::Unread, Observed::Absent] {
        let next = |key_state, now| request(Purpose::PaymentLink, key_state).next(observed, now);
        assert_eq!(next(KeyState::ReplaysError(START), START), Next::Abandon);
        assert_eq!(next(KeyState::Usable, START + Duration::hours(21)), Next::Abandon);
        let is_read = observed == Observed::Absent;
        assert_eq!(
            next(KeyState::Taken(START), START),
            if is_read { Next::Abandon } else { Next::Read },
            "{observed:?}"
        );
    }
    assert_eq!(request(Purpose::PaymentLink, KeyState::Usable).next(Observed::Spent, START), Next::Abandon);
}

#[test]
fn a_page_to_store_a_method_gets_another_key_while_somebody_waits_for_it() {
    let replaying = request(Purpose::CheckoutSession, KeyState::ReplaysError(START));
    assert_eq!(replaying.next(Observed::Unread, START), Next::NewKey);
    let old = request(Purpose::CheckoutSession, KeyState::Usable);
    assert_eq!(old.next(Observed::Unread, START + Duration::hours(21)), Next::Abandon);
    let endpoint = request(Purpose::WebhookEndpoint, KeyState::Usable);
    assert_eq!(endpoint.next(Observed::Unread, START + Duration::hours(21)), Next::NewKey);
}

#[test]
fn keys_depend_on_installation_organization_name_purpose_and_generation_alone() {
    let target = Purpose::PaymentIntent.of("inv_1");
    let key = |scope, target: &RequestTarget, generation| {
        target.request(scope, generation, String::new(), START).key.as_str().to_owned()
    };
    let first = key(SCOPE, &target, 1);
    assert_eq!(first, key(SCOPE, &Purpose::PaymentIntent.of("inv_1"), 1), "a row made anew sends the old key");
    let body_and_time = target.request(SCOPE, 1, "another".to_owned(), START + Duration::DAY).key;
    assert_eq!(first, body_and_time.as_str());
    assert!(first.starts_with("paybridge-payment_intent-") && first.ends_with("-1") && first.len() <= 255);
    let other_installation = KeyScope { installation: "other", ..SCOPE };
    let other_organization = KeyScope { organization: OrganizationId(Uuid::from_u128(2)), ..SCOPE };
    let others = [
        key(other_installation, &target, 1),
        key(other_organization, &target, 1),
        key(SCOPE, &target, 2),
        key(SCOPE, &Purpose::PaymentIntent.of("inv_2"), 1),
        key(SCOPE, &Purpose::PaymentLink.of("inv_1"), 1),
    ];
    assert!(!others.contains(&first));
    let next = target.request(SCOPE, 1, "body".to_owned(), START).under_new_key(&target, SCOPE, START);
    assert_eq!((next.key.as_str(), next.generation, next.body.as_str()), (others[2].as_str(), 2, "body"));
}

#[test]
fn only_our_keys_are_recognized() {
    let target = Purpose::Customer.of("hooli");
    assert!(IdempotencyKey::is_ours(target.request(SCOPE, 1, String::new(), START).key.as_str()));
    let unique = IdempotencyKey::unique("cancel", Uuid::from_u128(1));
    assert_eq!(unique.as_str(), "paybridge-cancel-00000000-0000-0000-0000-000000000001");
    assert!(IdempotencyKey::is_ours(unique.as_str()));
    assert!(!IdempotencyKey::is_ours("stripe-node-retry-1"));
}

fn any_purpose() -> impl Strategy<Value = Purpose> {
    proptest::sample::select(Purpose::VARIANTS)
}

fn any_state() -> impl Strategy<Value = KeyState> {
    prop_oneof![
        Just(KeyState::Usable),
        Just(KeyState::Taken(START)),
        (0..50i64).prop_map(|hours| KeyState::ReplaysError(START + Duration::hours(hours))),
    ]
}

fn any_observed() -> impl Strategy<Value = Observed> {
    prop_oneof![
        Just(Observed::Unsent),
        Just(Observed::Unread),
        Just(Observed::Absent),
        Just(Observed::Spent),
        Just(Observed::Present),
    ]
}

proptest! {
    #[test]
    fn p2_no_useless_key_is_sent_and_no_other_key_is_used_too_early(
        purpose in any_purpose(),
        key_state in any_state(),
        observed in any_observed(),
        minutes in 0..6_000i64,
    ) {
        let now = START + Duration::minutes(minutes);
        let request = request(purpose, key_state);
        let is_usable = key_state == KeyState::Usable && minutes <= 20 * 60;
        match request.next(observed, now) {
            Next::Send => prop_assert!(is_usable && observed != Observed::Present),
            Next::Read => prop_assert!(matches!(observed, Observed::Unsent | Observed::Unread)),
            Next::Wait(until) => prop_assert!(until > now && observed == Observed::Absent && !is_usable),
            Next::NewKey => {
                prop_assert!(!is_usable || observed == Observed::Spent);
                prop_assert!(purpose != Purpose::PaymentLink);
                // Where a second execution matters, a read has shown that there was no first one.
                let is_read = matches!(observed, Observed::Absent | Observed::Spent);
                prop_assert!(is_read || matches!(purpose.repeat(), Repeat::Harmless | Repeat::Page));
                if purpose == Purpose::PartialRefund && observed == Observed::Absent {
                    let last_send = match key_state {
                        KeyState::ReplaysError(since) | KeyState::Taken(since) => since.min(START + KEY_AGE_MAX),
                        KeyState::Usable => START + KEY_AGE_MAX,
                    };
                    prop_assert!(now >= last_send + Duration::DAY);
                }
            }
            Next::Done => prop_assert!(observed == Observed::Present),
            Next::Abandon => {
                prop_assert!(matches!(purpose, Purpose::PaymentLink | Purpose::CheckoutSession));
                let is_read = matches!(observed, Observed::Absent | Observed::Spent);
                prop_assert!(!matches!(key_state, KeyState::Taken(_)) || is_read);
            }
            Next::Stop(reason) => prop_assert!(!reason.is_empty() && (!is_usable || observed == Observed::Spent)),
        }
    }

    /// Whatever happens, waiting ends: after the last read comes another key, or a stop.
    #[test]
    fn p8_waiting_ends(purpose in any_purpose(), key_state in any_state()) {
        let request = request(purpose, key_state);
        let mut now = START + Duration::hours(21);
        for _ in 0..6 {
            match request.next(Observed::Absent, now) {
                Next::Wait(until) => now = until,
                Next::NewKey | Next::Abandon | Next::Stop(_) => return Ok(()),
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert!(false, "it waits for ever");
    }
}
