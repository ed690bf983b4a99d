//! Payment methods, and the rule that picks a customer's default: a pure function of dated facts, so that the order in
//! which Stripe tells them does not matter (P6).

use std::collections::BTreeSet;

use time::OffsetDateTime;

use super::{Currency, CustomerId, IntegrationId, OrganizationId, PaymentMethodId};

/// The kinds of payment method that Paybridge collects with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MethodKind {
    /// Cards, and the wallets that ride on them.
    Card,
    /// SEPA Direct Debit.
    SepaDebit,
}

impl MethodKind {
    /// Stripe's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Card => "card",
            Self::SepaDebit => "sepa_debit",
        }
    }

    /// The kind that Stripe calls so, if it is one of ours.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Card, Self::SepaDebit].into_iter().find(|kind| kind.as_str() == name)
    }

    /// Whether it can pay in `currency`. SEPA Direct Debit is for euros only.
    pub fn takes(self, currency: Currency) -> bool {
        self == Self::Card || currency == Currency::EUR
    }
}

/// What a person recognises a method by. Never a full number.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MethodDetails {
    /// A card's brand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brand: Option<String>,
    /// The last four digits of the card or the IBAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last4: Option<String>,
    /// A card's month of expiry, 1 to 12.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp_month: Option<i32>,
    /// A card's year of expiry, four digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp_year: Option<i32>,
    /// The country of the card or the bank, ISO 3166-1 alpha-2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    /// The bank of a SEPA method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bank_code: Option<String>,
}

/// Whether a SEPA method may be debited, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mandate<'a> {
    /// By Stripe's `mandate_…`.
    Active(&'a str),
    /// Every mandate that is known has ended: a debit would be refused.
    Inactive,
    /// None is known. There may be one all the same, so a debit is tried, and Stripe's answer decides.
    Unknown,
}

/// The mandates of a SEPA method, by Stripe's ids. Facts are only ever added, and an id that has ended stays so, so the
/// order in which they arrive does not matter (P6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mandates {
    /// Those that were active at some time.
    pub granted: BTreeSet<String>,
    /// Those that permit no debits any more.
    pub ended: BTreeSet<String>,
}

impl Mandates {
    /// Notes what was learned about a mandate.
    pub fn note(&mut self, id: &str, is_active: bool) {
        let facts = if is_active { &mut self.granted } else { &mut self.ended };
        facts.insert(id.to_owned());
    }

    /// What they permit.
    pub fn state(&self) -> Mandate<'_> {
        match self.granted.difference(&self.ended).next() {
            Some(id) => Mandate::Active(id),
            None if self.ended.is_empty() => Mandate::Unknown,
            None => Mandate::Inactive,
        }
    }
}

/// A Stripe PaymentMethod attached to a customer of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaymentMethod {
    /// Our id.
    pub id: PaymentMethodId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// Whose it is.
    pub customer_id: CustomerId,
    /// The integration at whose account it lives.
    pub integration_id: IntegrationId,
    /// Stripe's `pm_…`.
    pub provider_payment_method_id: String,
    /// Stripe's kind, which may be one that we don't collect with.
    pub kind: String,
    /// What a person recognises it by.
    pub details: MethodDetails,
    /// What permits debits, for SEPA.
    pub mandates: Mandates,
    /// The earliest time at which we know it to have been attached; `None` where only its choice is known yet.
    pub attach_time: Option<OffsetDateTime>,
    /// The latest time at which somebody chose it as the default.
    pub choose_time: Option<OffsetDateTime>,
    /// The latest time at which somebody unset it as Stripe's default, and chose none.
    pub unset_time: Option<OffsetDateTime>,
    /// Whether `unset_time` is when a read found that, and Stripe's own time, which is earlier, is not known yet.
    pub is_unset_read: bool,
    /// When it was detached. Detaching is for ever.
    pub detach_time: Option<OffsetDateTime>,
    /// Whether a read found it detached, so that `detach_time` is when that was read, and Stripe's own time is not known yet.
    pub is_detach_read: bool,
    /// When we first stored it.
    pub create_time: OffsetDateTime,
}

impl PaymentMethod {
    /// Whether it is a bank account of Stripe's old Sources API (`src_…`). Stripe refuses to debit those until they are
    /// migrated to PaymentMethods: "Using a SEPA Debit Source … is no longer a valid integration path".
    pub fn is_legacy_sepa(&self) -> bool {
        self.kind == MethodKind::SepaDebit.as_str() && self.provider_payment_method_id.starts_with("src_")
    }

    /// Whether it could be charged when it was attached, or since: a SEPA method of which no active mandate was ever seen
    /// perhaps could not. One whose mandate has ended stays the default that it was, and is refused: the customer has not
    /// chosen another one.
    fn was_chargeable(&self) -> bool {
        let is_sepa = self.kind == MethodKind::SepaDebit.as_str();
        !is_sepa || (!self.is_legacy_sepa() && !self.mandates.granted.is_empty())
    }

    /// Whether it may be a default: attached, and of an allowed kind.
    pub fn is_eligible(&self, allowed: &[MethodKind]) -> bool {
        self.detach_time.is_none() && MethodKind::parse(&self.kind).is_some_and(|kind| allowed.contains(&kind))
    }

    /// The newest fact in favour of it, whole seconds (Stripe's resolution), a choice before an attachment of the same
    /// second; Stripe's id breaks the last tie, so that every order of events ends in the same default (P6).
    pub fn claim(&self) -> Option<Claim<'_>> {
        let attached = self.attach_time.map(|time| (time.unix_timestamp(), false));
        attached
            .max(self.choice())
            .map(|(second, is_choice)| (second, is_choice, self.provider_payment_method_id.as_str()))
    }

    /// The second at which the customer was left without a default, because this one was unset. One that was detached by
    /// then, or within [`DETACH_SECONDS`], or nobody knows when, does not count: Stripe itself unsets a detached default.
    pub fn unset(&self) -> Option<i64> {
        let second = self.unset_time?.unix_timestamp();
        let end = second + DETACH_SECONDS;
        let was_attached = |detached: OffsetDateTime| !self.is_detach_read && detached.unix_timestamp() > end;
        self.detach_time.is_none_or(was_attached).then_some(second)
    }

    /// Forgets that a read found it unset, if an event that something was unset at `event_time` explains that; returns
    /// whether it did. An event from before the newest fact in favour of the method is about an earlier default.
    pub fn forget_unset_read(&mut self, event_time: OffsetDateTime) -> bool {
        let is_earlier = self.claim().is_some_and(|(second, ..)| event_time.unix_timestamp() < second);
        if !self.is_unset_read || is_earlier {
            return false;
        }
        (self.unset_time, self.is_unset_read) = (None, false);
        true
    }

    fn choice(&self) -> Option<(i64, bool)> {
        self.choose_time.map(|time| (time.unix_timestamp(), true))
    }

    /// The same without its attachment.
    fn claim_by_choice(&self) -> Option<Claim<'_>> {
        self.choice().map(|(second, is_choice)| (second, is_choice, self.provider_payment_method_id.as_str()))
    }
}

/// How far apart Stripe's events about one detachment may be dated. Nothing documents that the event that unsets the default
/// has the same second as the one that detaches the method.
const DETACH_SECONDS: i64 = 5;

/// A fact in favour of a method: its second, whether it is a choice, and Stripe's id of the method.
type Claim<'a> = (i64, bool, &'a str);

/// The default: the eligible method with the newest fact in its favour, newer than a choice of none; of one second the
/// choice of a method comes last, that of none next, an attachment first. To be attached is no such fact for a method that
/// could never be charged, or whose mandate is unknown, while there is one that could: it does not displace that one.
pub fn default_method<'a>(methods: &'a [PaymentMethod], allowed: &[MethodKind]) -> Option<&'a PaymentMethod> {
    let eligible = || methods.iter().filter(move |method| method.is_eligible(allowed));
    let unset = methods.iter().filter_map(PaymentMethod::unset).max();
    let is_newer = |claim: &Claim<'_>| unset.is_none_or(|unset| claim.0 > unset || (claim.0 == unset && claim.1));
    let is_any_good =
        eligible().any(|method| method.was_chargeable() && method.claim().is_some_and(|it| is_newer(&it)));
    let claim = |method: &'a PaymentMethod| {
        let claim = if is_any_good && !method.was_chargeable() { method.claim_by_choice() } else { method.claim() };
        claim.filter(is_newer)
    };
    eligible().filter(|method| claim(method).is_some()).max_by_key(|method| claim(method))
}

/// When a choice is made that comes after every fact so far, even where Stripe's clock is ahead of ours: `now`, or the second
/// after the newest fact.
pub fn time_of_choice(methods: &[PaymentMethod], now: OffsetDateTime) -> OffsetDateTime {
    let claims = methods.iter().filter_map(|known| known.claim().map(|(second, ..)| second));
    let newest = claims.chain(methods.iter().filter_map(PaymentMethod::unset)).max();
    newest.and_then(|second| OffsetDateTime::from_unix_timestamp(second + 1).ok()).map_or(now, |next| next.max(now))
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use uuid::Uuid;

    use super::*;

    const BOTH: [MethodKind; 2] = [MethodKind::Card, MethodKind::SepaDebit];

    fn method(name: &str, kind: &str, attached: Option<i64>, chosen: Option<i64>, detached: bool) -> PaymentMethod {
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
            detach_time: detached.then(|| at(99)),
            is_detach_read: false,
            create_time: at(0),
        }
    }

    fn chosen(methods: &[PaymentMethod], allowed: &[MethodKind]) -> Option<String> {
        default_method(methods, allowed).map(|method| method.provider_payment_method_id.clone())
    }

    fn mandated(mut method: PaymentMethod) -> PaymentMethod {
        method.mandates.note("mandate_1", true);
        method
    }

    #[test]
    fn a_mandate_that_has_ended_stays_so_and_a_new_one_counts() {
        let mut mandates = Mandates::default();
        assert_eq!(mandates.state(), Mandate::Unknown);
        mandates.note("mandate_1", false);
        mandates.note("mandate_1", true);
        assert_eq!(mandates.state(), Mandate::Inactive, "whatever is told of it later");
        mandates.note("mandate_2", true);
        assert_eq!(mandates.state(), Mandate::Active("mandate_2"));
        mandates.note("mandate_2", false);
        mandates.note("mandate_1", true);
        assert_eq!(mandates.state(), Mandate::Inactive);
    }

    #[test]
    fn a_newly_attached_method_that_may_not_be_chargeable_displaces_none_that_is() {
        let card = method("pm_card", "card", Some(1), None, false);
        let unknown = method("pm_sepa", "sepa_debit", Some(2), None, false);
        let mut inactive = unknown.clone();
        inactive.mandates.note("mandate_1", false);
        let legacy = mandated(PaymentMethod { provider_payment_method_id: "src_1".to_owned(), ..unknown.clone() });
        for newer in [&unknown, &inactive, &legacy] {
            assert_eq!(chosen(&[card.clone(), newer.clone()], &BOTH).as_deref(), Some("pm_card"), "{newer:?}");
            let alone = chosen(std::slice::from_ref(newer), &BOTH);
            assert_eq!(alone.as_deref(), Some(newer.provider_payment_method_id.as_str()), "it displaces none");
        }
        let known = mandated(unknown.clone());
        assert_eq!(chosen(&[card.clone(), known], &BOTH).as_deref(), Some("pm_sepa"));
        let by_hand = PaymentMethod { choose_time: unknown.attach_time, ..unknown.clone() };
        assert_eq!(chosen(&[card.clone(), by_hand], &BOTH).as_deref(), Some("pm_sepa"), "a choice is followed");
        // After a choice of none the card is no default that could be displaced.
        let unset = PaymentMethod { unset_time: card.attach_time, ..card };
        assert_eq!(chosen(&[unset, unknown], &BOTH).as_deref(), Some("pm_sepa"));
    }

    #[test]
    fn a_default_whose_mandate_has_ended_is_not_replaced_by_an_older_card_whatever_is_heard_first() {
        let card = method("pm_card", "card", Some(1), None, false);
        for facts in [[true, false], [false, true]] {
            let mut sepa = method("pm_sepa", "sepa_debit", Some(2), None, false);
            for is_active in facts {
                sepa.mandates.note("mandate_1", is_active);
            }
            assert_eq!(sepa.mandates.state(), Mandate::Inactive);
            assert_eq!(chosen(&[card.clone(), sepa], &BOTH).as_deref(), Some("pm_sepa"));
        }
    }

    #[test]
    fn the_newest_fact_wins_whatever_its_kind() {
        let old = method("pm_old", "card", Some(1), None, false);
        let new = method("pm_new", "card", Some(2), None, false);
        assert_eq!(chosen(&[old.clone(), new.clone()], &BOTH).as_deref(), Some("pm_new"));
        let chosen_later = method("pm_old", "card", Some(1), Some(3), false);
        assert_eq!(chosen(&[new.clone(), chosen_later], &BOTH).as_deref(), Some("pm_old"));
        let chosen_same_second = method("pm_old", "card", Some(1), Some(2), false);
        assert_eq!(chosen(&[chosen_same_second, new], &BOTH).as_deref(), Some("pm_old"));
    }

    #[test]
    fn detached_and_disallowed_methods_are_never_the_default() {
        let detached = method("pm_gone", "card", Some(5), Some(6), true);
        let sepa = mandated(method("pm_sepa", "sepa_debit", Some(4), None, false));
        let other = method("pm_link", "link", Some(9), None, false);
        let card = method("pm_card", "card", Some(1), None, false);
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
        let other = method("pm_other", "card", Some(1), None, false);
        let was_default = unset(5, method("pm_was", "card", Some(2), Some(3), false));
        assert_eq!(chosen(&[other.clone(), was_default.clone()], &BOTH), None);
        let added = |second| method("pm_new", "card", Some(second), None, false);
        assert_eq!(chosen(&[was_default.clone(), added(6)], &BOTH).as_deref(), Some("pm_new"));
        assert_eq!(chosen(&[was_default.clone(), added(5)], &BOTH), None, "a choice counts more than an attachment");
        let again = method("pm_other", "card", Some(1), Some(5), false);
        assert_eq!(chosen(&[was_default.clone(), again], &BOTH).as_deref(), Some("pm_other"));
        // Detached at 99: later, or by then.
        let detached_later =
            PaymentMethod { detach_time: method("", "card", None, None, true).detach_time, ..was_default };
        assert_eq!(chosen(&[other.clone(), detached_later.clone()], &BOTH), None);
        let found_detached = PaymentMethod { is_detach_read: true, ..detached_later.clone() };
        let default = chosen(&[other.clone(), found_detached], &BOTH);
        assert_eq!(default.as_deref(), Some("pm_other"), "it may have been detached before");
        for second in [99, 98, 100] {
            let by_stripe = unset(second, detached_later.clone());
            let default = chosen(&[other.clone(), by_stripe], &BOTH);
            assert_eq!(default.as_deref(), Some("pm_other"), "Stripe itself has unset it at {second}");
        }
    }

    #[test]
    fn only_an_event_since_it_was_added_or_chosen_explains_what_a_read_found_unset() {
        let at = |second| OffsetDateTime::UNIX_EPOCH + Duration::seconds(second);
        for (attached, chosen, event, is_explained) in
            [(2, None, 1, false), (2, None, 2, true), (2, None, 9, true), (2, Some(5), 4, false), (2, Some(5), 6, true)]
        {
            let mut found = method("pm_found", "card", Some(attached), chosen, false);
            (found.unset_time, found.is_unset_read) = (Some(at(20)), true);
            assert_eq!(found.forget_unset_read(at(event)), is_explained, "{chosen:?} {event}");
            assert_eq!(found.unset_time.is_none(), is_explained, "an earlier default was unset at {event}");
            assert_eq!(found.is_unset_read, !is_explained);
        }
        let mut reported =
            PaymentMethod { unset_time: Some(at(20)), ..method("pm_reported", "card", Some(2), None, false) };
        assert!(!reported.forget_unset_read(at(30)) && reported.unset_time.is_some(), "what an event has said stays");
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let a = method("pm_a", "card", Some(2), None, false);
        let b = method("pm_b", "card", Some(2), None, false);
        assert_eq!(chosen(&[a.clone(), b.clone()], &BOTH), chosen(&[b, a], &BOTH));
    }
}
