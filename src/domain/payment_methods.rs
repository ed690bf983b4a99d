//! Payment methods, and the rule that selects a customer's default. The rule is a pure function of dated facts, so the
//! order in which Stripe reports them does not matter (P6).

use std::collections::BTreeSet;

use time::OffsetDateTime;

use super::{Currency, CustomerId, IntegrationId, OrganizationId, PaymentMethodId};

/// The kinds of payment method that Paybridge collects with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MethodKind {
    /// Cards, and the wallets based on them.
    Card,
    /// SEPA Direct Debit.
    SepaDebit,
}

impl MethodKind {
    /// Stripe's name of the kind.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Card => "card",
            Self::SepaDebit => "sepa_debit",
        }
    }

    /// The kind with this name at Stripe, if Paybridge collects with it.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Card, Self::SepaDebit].into_iter().find(|kind| kind.as_str() == name)
    }

    /// Whether it can pay in `currency`. SEPA Direct Debit accepts euros only.
    pub fn takes(self, currency: Currency) -> bool {
        self == Self::Card || currency == Currency::EUR
    }
}

/// What a person recognises a method by; never a full number.
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
    /// The country of the card or bank, ISO 3166-1 alpha-2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    /// The bank of a SEPA method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bank_code: Option<String>,
}

/// Whether a SEPA method may be debited, as far as known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mandate<'a> {
    /// An active mandate, by Stripe's `mandate_…`.
    Active(&'a str),
    /// All known mandates have ended, so a debit would be refused.
    Inactive,
    /// No mandate is known. There may be one, so a debit is attempted and Stripe's response decides.
    Unknown,
}

/// The mandates of a SEPA method, by Stripe's ids. Facts are only added, and an ended mandate stays ended, so their
/// order does not matter (P6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mandates {
    /// Mandates that have been active at some time.
    pub granted: BTreeSet<String>,
    /// Mandates that no longer permit debits.
    pub ended: BTreeSet<String>,
}

impl Mandates {
    /// Records the state of a mandate.
    pub fn record(&mut self, id: &str, is_active: bool) {
        let facts = if is_active { &mut self.granted } else { &mut self.ended };
        facts.insert(id.to_owned());
    }

    /// Whether they permit a debit.
    pub fn state(&self) -> Mandate<'_> {
        match self.granted.difference(&self.ended).next() {
            Some(id) => Mandate::Active(id),
            None if self.ended.is_empty() => Mandate::Unknown,
            None => Mandate::Inactive,
        }
    }
}

/// A Stripe PaymentMethod attached to a customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaymentMethod {
    /// Our id.
    pub id: PaymentMethodId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The customer that it is, or was, attached to.
    pub customer_id: CustomerId,
    /// The integration whose Stripe account it belongs to.
    pub integration_id: IntegrationId,
    /// Stripe's `pm_…`.
    pub provider_payment_method_id: String,
    /// Stripe's type, possibly one that Paybridge does not collect with.
    pub kind: String,
    /// What a person recognises it by, such as the last four digits.
    pub details: MethodDetails,
    /// The mandates that permit debits, for SEPA.
    pub mandates: Mandates,
    /// The earliest time at which it is known to have been attached; `None` if only its choice as the default is known.
    pub attach_time: Option<OffsetDateTime>,
    /// The latest time at which somebody chose it as the default.
    pub choose_time: Option<OffsetDateTime>,
    /// The latest time at which somebody unset it as Stripe's default without choosing another.
    pub unset_time: Option<OffsetDateTime>,
    /// Whether `unset_time` is the time of the read that found it unset. Stripe's own time is earlier and not known
    /// yet.
    pub is_unset_read: bool,
    /// When it was detached, which cannot be undone.
    pub detach_time: Option<OffsetDateTime>,
    /// Whether `detach_time` is the time of the read that found it detached. Stripe's own time is not known yet.
    pub is_detach_read: bool,
    /// When Paybridge first stored it.
    pub create_time: OffsetDateTime,
}

impl PaymentMethod {
    /// Whether it is a bank account of Stripe's legacy Sources API (`src_…`). Stripe refuses to debit those until they
    /// are migrated to PaymentMethods: "Using a SEPA Debit Source … is no longer a valid integration path".
    pub fn is_legacy_sepa(&self) -> bool {
        self.kind == MethodKind::SepaDebit.as_str() && self.provider_payment_method_id.starts_with("src_")
    }

    /// Whether it has been chargeable at any time. A SEPA method without any known active mandate may never have been.
    /// A default whose mandate has ended stays the default and is refused when charged, because the customer has not
    /// chosen another one.
    fn was_chargeable(&self) -> bool {
        let is_sepa = self.kind == MethodKind::SepaDebit.as_str();
        !is_sepa || (!self.is_legacy_sepa() && !self.mandates.granted.is_empty())
    }

    /// Whether it may be the default: attached, and of an allowed kind.
    pub fn is_eligible(&self, allowed: &[MethodKind]) -> bool {
        self.detach_time.is_none() && MethodKind::parse(&self.kind).is_some_and(|kind| allowed.contains(&kind))
    }

    /// The newest fact in favour of the method. Times are whole seconds, Stripe's resolution. Within a second a choice
    /// outranks an attachment, and Stripe's id breaks the last tie, so every order of events leads to the same default
    /// (P6).
    pub fn precedence(&self) -> Option<Precedence<'_>> {
        let attached = self.attach_time.map(|time| (time.unix_timestamp(), false));
        attached
            .max(self.choice())
            .map(|(second, is_choice)| (second, is_choice, self.provider_payment_method_id.as_str()))
    }

    /// The second at which unsetting this method left the customer without a default. Does not count if the method was
    /// detached before, within [`DETACH_SECONDS`] after, or at an unknown time: Stripe itself unsets a default that is
    /// detached.
    pub fn unset_second(&self) -> Option<i64> {
        let second = self.unset_time?.unix_timestamp();
        let end = second + DETACH_SECONDS;
        let was_attached = |detached: OffsetDateTime| !self.is_detach_read && detached.unix_timestamp() > end;
        self.detach_time.is_none_or(was_attached).then_some(second)
    }

    /// Clears `unset_time` if it came from a read and an event at `event_time` explains it; returns whether it did. An
    /// event older than the newest fact in favour of the method concerns an earlier default.
    pub fn clear_unset_read(&mut self, event_time: OffsetDateTime) -> bool {
        let is_earlier = self.precedence().is_some_and(|(second, ..)| event_time.unix_timestamp() < second);
        if !self.is_unset_read || is_earlier {
            return false;
        }
        (self.unset_time, self.is_unset_read) = (None, false);
        true
    }

    fn choice(&self) -> Option<(i64, bool)> {
        self.choose_time.map(|time| (time.unix_timestamp(), true))
    }

    /// The same, ignoring the attachment.
    fn precedence_by_choice(&self) -> Option<Precedence<'_>> {
        self.choice().map(|(second, is_choice)| (second, is_choice, self.provider_payment_method_id.as_str()))
    }
}

/// How far apart Stripe's events about one detachment may be dated. It is not documented that the event that unsets the
/// default has the same second as the one that detaches the method.
const DETACH_SECONDS: i64 = 5;

/// A fact in favour of a method: its second, whether it is a choice, and Stripe's id of the method.
type Precedence<'a> = (i64, bool, &'a str);

/// Selects the default: the eligible method with the newest fact in its favour, provided that it is newer than the last
/// unsetting. Within one second, a choice outranks an unsetting, which outranks an attachment. The attachment of a
/// method that has never been chargeable does not count while there is a chargeable one, so it cannot displace that.
pub fn default_method<'a>(methods: &'a [PaymentMethod], allowed: &[MethodKind]) -> Option<&'a PaymentMethod> {
    let eligible = || methods.iter().filter(move |method| method.is_eligible(allowed));
    let unset = methods.iter().filter_map(PaymentMethod::unset_second).max();
    let is_newer = |precedence: &Precedence<'_>| {
        unset.is_none_or(|unset| precedence.0 > unset || (precedence.0 == unset && precedence.1))
    };
    let has_chargeable =
        eligible().any(|method| method.was_chargeable() && method.precedence().is_some_and(|it| is_newer(&it)));
    let precedence = |method: &'a PaymentMethod| {
        let precedence = if has_chargeable && !method.was_chargeable() {
            method.precedence_by_choice()
        } else {
            method.precedence()
        };
        precedence.filter(is_newer)
    };
    eligible().filter(|method| precedence(method).is_some()).max_by_key(|method| precedence(method))
}

/// The time to record for a choice made now, later than every known fact even if Stripe's clock is ahead of ours:
/// `now`, or the second after the newest fact.
pub fn next_choice_time(methods: &[PaymentMethod], now: OffsetDateTime) -> OffsetDateTime {
    let seconds = methods.iter().filter_map(|known| known.precedence().map(|(second, ..)| second));
    let newest = seconds.chain(methods.iter().filter_map(PaymentMethod::unset_second)).max();
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
        method.mandates.record("mandate_1", true);
        method
    }

    #[test]
    fn a_mandate_that_has_ended_stays_so_and_a_new_one_counts() {
        let mut mandates = Mandates::default();
        assert_eq!(mandates.state(), Mandate::Unknown);
        mandates.record("mandate_1", false);
        mandates.record("mandate_1", true);
        assert_eq!(mandates.state(), Mandate::Inactive, "whatever is recorded later");
        mandates.record("mandate_2", true);
        assert_eq!(mandates.state(), Mandate::Active("mandate_2"));
        mandates.record("mandate_2", false);
        mandates.record("mandate_1", true);
        assert_eq!(mandates.state(), Mandate::Inactive);
    }

    #[test]
    fn a_newly_attached_method_that_may_not_be_chargeable_displaces_none_that_is() {
        let card = method("pm_card", "card", Some(1), None, false);
        let unknown = method("pm_sepa", "sepa_debit", Some(2), None, false);
        let mut inactive = unknown.clone();
        inactive.mandates.record("mandate_1", false);
        let legacy = mandated(PaymentMethod { provider_payment_method_id: "src_1".to_owned(), ..unknown.clone() });
        for newer in [&unknown, &inactive, &legacy] {
            assert_eq!(chosen(&[card.clone(), newer.clone()], &BOTH).as_deref(), Some("pm_card"), "{newer:?}");
            let alone = chosen(std::slice::from_ref(newer), &BOTH);
            assert_eq!(
                alone.as_deref(),
                Some(newer.provider_payment_method_id.as_str()),
                "there is nothing to displace"
            );
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
        let card = method("pm_card", "card", Some(1), None, false);
        for facts in [[true, false], [false, true]] {
            let mut sepa = method("pm_sepa", "sepa_debit", Some(2), None, false);
            for is_active in facts {
                sepa.mandates.record("mandate_1", is_active);
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
        let detached = method("pm_detached", "card", Some(5), Some(6), true);
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
        assert_eq!(
            chosen(&[was_default.clone(), added(5)], &BOTH),
            None,
            "an unsetting outranks an attachment of the same second"
        );
        let again = method("pm_other", "card", Some(1), Some(5), false);
        assert_eq!(chosen(&[was_default.clone(), again], &BOTH).as_deref(), Some("pm_other"));
        // Detached at second 99: after the unsetting, or before it.
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
            assert_eq!(found.clear_unset_read(at(event)), is_explained, "{chosen:?} {event}");
            assert_eq!(found.unset_time.is_none(), is_explained, "an earlier default was unset at {event}");
            assert_eq!(found.is_unset_read, !is_explained);
        }
        let mut reported =
            PaymentMethod { unset_time: Some(at(20)), ..method("pm_reported", "card", Some(2), None, false) };
        assert!(
            !reported.clear_unset_read(at(30)) && reported.unset_time.is_some(),
            "a time reported by an event stays"
        );
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let a = method("pm_a", "card", Some(2), None, false);
        let b = method("pm_b", "card", Some(2), None, false);
        assert_eq!(chosen(&[a.clone(), b.clone()], &BOTH), chosen(&[b, a], &BOTH));
    }
}
