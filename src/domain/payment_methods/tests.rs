use time::Duration;
use uuid::Uuid;

use super::*;

const BOTH: [MethodKind; 2] = [MethodKind::Card, MethodKind::SepaDebit];

fn method(name: &str, kind: &str, attached: Option<i64>, chosen: Option<i64>) -> PaymentMethod {
    let at = |second| OffsetDateTime::UNIX_EPOCH + Duration::seconds(second);
    PaymentMethod {
        id: Uuid::nil().into(),
        organization_id: Uuid::nil().into(),
        customer_id: Uuid::nil().into(),
        integration_id: Uuid::nil().into(),
        provider_payment_method_id: name.to_owned(),
        kind: kind.to_owned(),
        details: MethodDetails::default(),
        mandates: Mandates::default(),
        attach_time: attached.map(at),
        choose_time: chosen.map(at),
        unset_time: None,
        is_unset_read: false,
        detach_time: None,
        is_detach_read: false,
        create_time: at(0),
    }
}

fn chosen(methods: &[PaymentMethod], allowed: &[MethodKind]) -> Option<String> {
    default_method(methods, allowed).map(|method| method.provider_payment_method_id.clone())
}

/// Detached at second 99.
fn detached(method: PaymentMethod) -> PaymentMethod {
    PaymentMethod { detach_time: Some(OffsetDateTime::UNIX_EPOCH + Duration::seconds(99)), ..method }
}

const ACTIVE: bool = true;
const ENDED: bool = false;

fn mandated(mut method: PaymentMethod) -> PaymentMethod {
    method.mandates.record("mandate_1", ACTIVE);
    method
}

#[test]
fn kinds_have_stripes_names() {
    let names: Vec<_> = MethodKind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(names, ["card", "sepa_debit"]);
    assert!(MethodKind::ALL.iter().all(|kind| kind.as_str().parse() == Ok(*kind)));
    assert!("link".parse::<MethodKind>().is_err());
}

#[test]
fn a_debit_takes_euros_only_needs_a_mandate_and_takes_days() {
    let dollars = Currency::parse("USD").unwrap();
    for (kind, takes_dollars, needs_mandate, settles_slowly) in
        [(MethodKind::Card, true, false, false), (MethodKind::SepaDebit, false, true, true)]
    {
        assert!(kind.takes(Currency::EUR), "{kind:?}");
        assert_eq!(
            (kind.takes(dollars), kind.needs_mandate(), kind.settles_slowly()),
            (takes_dollars, needs_mandate, settles_slowly),
            "{kind:?}"
        );
    }
}

#[test]
fn only_a_bank_account_of_the_sources_api_is_a_legacy_one() {
    for (id, kind, expected) in [("src_1", "sepa_debit", true), ("pm_1", "sepa_debit", false), ("src_1", "card", false)]
    {
        assert_eq!(method(id, kind, Some(1), None).is_legacy_sepa(), expected, "{id} {kind}");
    }
}

#[test]
fn a_mandate_that_has_ended_stays_so_and_a_new_one_counts() {
    let mut mandates = Mandates::default();
    assert_eq!(mandates.state(), Mandate::Unknown);
    mandates.record("mandate_1", ENDED);
    mandates.record("mandate_1", ACTIVE);
    assert_eq!(mandates.state(), Mandate::Inactive, "whatever is recorded later");
    mandates.record("mandate_2", ACTIVE);
    assert_eq!(mandates.state(), Mandate::Active("mandate_2"));
    mandates.record("mandate_2", ENDED);
    mandates.record("mandate_1", ACTIVE);
    assert_eq!(mandates.state(), Mandate::Inactive);
}

#[test]
fn a_newly_attached_method_that_may_not_be_chargeable_displaces_none_that_is() {
    let card = method("pm_card", "card", Some(1), None);
    let unknown = method("pm_sepa", "sepa_debit", Some(2), None);
    let mut inactive = unknown.clone();
    inactive.mandates.record("mandate_1", ENDED);
    let legacy = mandated(PaymentMethod { provider_payment_method_id: "src_1".to_owned(), ..unknown.clone() });
    for newer in [&unknown, &inactive, &legacy] {
        assert_eq!(chosen(&[card.clone(), newer.clone()], &BOTH).as_deref(), Some("pm_card"), "{newer:?}");
        let alone = chosen(std::slice::from_ref(newer), &BOTH);
        assert_eq!(alone.as_deref(), Some(newer.provider_payment_method_id.as_str()), "there is nothing to displace");
    }
    let known = mandated(unknown.clone());
    assert_eq!(chosen(&[card.clone(), known], &BOTH).as_deref(), Some("pm_sepa"));
    let chosen_later = PaymentMethod { choose_time: unknown.attach_time, ..unknown.clone() };
    assert_eq!(
        chosen(&[card.clone(), chosen_later], &BOTH).as_deref(),
        Some("pm_sepa"),
        "an explicit choice is followed"
    );
    // After the default was unset, the card is no default that could be displaced.
    let unset = PaymentMethod { unset_time: card.attach_time, ..card };
    assert_eq!(chosen(&[unset, unknown], &BOTH).as_deref(), Some("pm_sepa"));
}

#[test]
fn a_default_whose_mandate_has_ended_is_not_replaced_by_an_older_card_in_any_order_of_events() {
    let card = method("pm_card", "card", Some(1), None);
    for facts in [[ACTIVE, ENDED], [ENDED, ACTIVE]] {
        let mut sepa = method("pm_sepa", "sepa_debit", Some(2), None);
        for is_active in facts {
            sepa.mandates.record("mandate_1", is_active);
        }
        assert_eq!(sepa.mandates.state(), Mandate::Inactive);
        assert_eq!(chosen(&[card.clone(), sepa], &BOTH).as_deref(), Some("pm_sepa"));
    }
}

#[test]
fn the_newest_fact_wins_whatever_its_kind() {
    let old = method("pm_old", "card", Some(1), None);
    let new = method("pm_new", "card", Some(2), None);
    assert_eq!(chosen(&[old.clone(), new.clone()], &BOTH).as_deref(), Some("pm_new"));
    let chosen_later = method("pm_old", "card", Some(1), Some(3));
    assert_eq!(chosen(&[new.clone(), chosen_later], &BOTH).as_deref(), Some("pm_old"));
    let chosen_same_second = method("pm_old", "card", Some(1), Some(2));
    assert_eq!(chosen(&[chosen_same_second, new], &BOTH).as_deref(), Some("pm_old"));
}

#[test]
fn detached_and_disallowed_methods_are_never_the_default() {
    let detached = detached(method("pm_detached", "card", Some(5), Some(6)));
    let sepa = mandated(method("pm_sepa", "sepa_debit", Some(4), None));
    let other = method("pm_link", "link", Some(9), None);
    let card = method("pm_card", "card", Some(1), None);
    let all = [detached, sepa, other, card];
    assert_eq!(chosen(&all, &BOTH).as_deref(), Some("pm_sepa"));
    assert_eq!(chosen(&all, &[MethodKind::Card]).as_deref(), Some("pm_card"));
    assert_eq!(chosen(&all[..1], &BOTH), None);
}

#[test]
fn a_default_that_was_unset_leaves_none_until_one_is_chosen_or_added() {
    let unset = |second: i64, mut method: PaymentMethod| {
        method.unset_time = Some(OffsetDateTime::UNIX_EPOCH + Duration::seconds(second));
        method
    };
    let other = method("pm_other", "card", Some(1), None);
    let was_default = unset(5, method("pm_was", "card", Some(2), Some(3)));
    assert_eq!(chosen(&[other.clone(), was_default.clone()], &BOTH), None);
    let added = |second| method("pm_new", "card", Some(second), None);
    assert_eq!(chosen(&[was_default.clone(), added(6)], &BOTH).as_deref(), Some("pm_new"));
    assert_eq!(
        chosen(&[was_default.clone(), added(5)], &BOTH),
        None,
        "an unsetting outranks an attachment of the same second"
    );
    let again = method("pm_other", "card", Some(1), Some(5));
    assert_eq!(chosen(&[was_default.clone(), again], &BOTH).as_deref(), Some("pm_other"));
    // Detached at second 99: after the unsetting, or before it.
    let detached_later = detached(was_default);
    assert_eq!(chosen(&[other.clone(), detached_later.clone()], &BOTH), None);
    let found_detached = PaymentMethod { is_detach_read: true, ..detached_later.clone() };
    let default = chosen(&[other.clone(), found_detached], &BOTH);
    assert_eq!(default.as_deref(), Some("pm_other"), "it may have been detached before");
    for second in [99, 98, 94, 100] {
        let by_stripe = unset(second, detached_later.clone());
        let default = chosen(&[other.clone(), by_stripe], &BOTH);
        assert_eq!(default.as_deref(), Some("pm_other"), "Stripe itself has unset it at {second}");
    }
    let by_somebody = unset(93, detached_later);
    assert_eq!(chosen(&[other, by_somebody], &BOTH), None, "the events of one detachment are not six seconds apart");
}

#[test]
fn only_an_event_since_it_was_added_or_chosen_explains_what_a_read_found_unset() {
    let at = |second| OffsetDateTime::UNIX_EPOCH + Duration::seconds(second);
    for (attached, chosen, event, is_explained) in
        [(2, None, 1, false), (2, None, 2, true), (2, None, 9, true), (2, Some(5), 4, false), (2, Some(5), 6, true)]
    {
        let mut found = method("pm_found", "card", Some(attached), chosen);
        (found.unset_time, found.is_unset_read) = (Some(at(20)), true);
        assert_eq!(found.clear_unset_read(at(event)), is_explained, "{chosen:?} {event}");
        assert_eq!(found.unset_time.is_none(), is_explained, "an earlier default was unset at {event}");
        assert_eq!(found.is_unset_read, !is_explained);
    }
    let mut reported = PaymentMethod { unset_time: Some(at(20)), ..method("pm_reported", "card", Some(2), None) };
    assert!(!reported.clear_unset_read(at(30)) && reported.unset_time.is_some(), "a time reported by an event stays");
}

#[test]
fn the_order_of_the_list_does_not_matter() {
    let a = method("pm_a", "card", Some(2), None);
    let b = method("pm_b", "card", Some(2), None);
    assert_eq!(chosen(&[a.clone(), b.clone()], &BOTH), chosen(&[b, a], &BOTH));
}

#[test]
fn p6_a_choice_made_now_outranks_every_known_fact_even_if_stripes_clock_is_ahead() {
    let at = |second| OffsetDateTime::UNIX_EPOCH + Duration::seconds(second);
    let unset = PaymentMethod { unset_time: Some(at(30)), ..method("pm_unset", "card", Some(1), None) };
    for (methods, now, expected) in [
        (vec![], 10, 10),
        (vec![method("pm_old", "card", Some(1), Some(2))], 10, 10),
        (vec![method("pm_old", "card", Some(20), None)], 10, 21),
        (vec![method("pm_old", "card", Some(1), Some(10))], 10, 11),
        (vec![unset, method("pm_old", "card", Some(20), None)], 10, 31),
    ] {
        assert_eq!(next_choice_time(&methods, at(now)), at(expected), "{methods:?}");
    }
}
