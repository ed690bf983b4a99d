//! Payment methods, and the rule that picks a customer's default: a pure function of dated facts, so that the order in
//! which Stripe tells them does not matter (P6).

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
    /// Stripe's mandate, for SEPA.
    pub provider_mandate_id: Option<String>,
    /// A mandate of this method that ended; it permits no debits any more, whatever is told of it later.
    pub ended_mandate_id: Option<String>,
    /// The earliest time at which we know it to have been attached; `None` where only its choice is known yet.
    pub attach_time: Option<OffsetDateTime>,
    /// The latest time at which somebody chose it as the default.
    pub choose_time: Option<OffsetDateTime>,
    /// When it was detached. Detaching is for ever.
    pub detach_time: Option<OffsetDateTime>,
    /// When we first stored it.
    pub create_time: OffsetDateTime,
}

impl PaymentMethod {
    /// Whether a mandate permits to debit it.
    pub fn has_mandate(&self) -> bool {
        self.provider_mandate_id.is_some() && self.provider_mandate_id != self.ended_mandate_id
    }

    /// Whether it may be a default: attached, and of an allowed kind.
    pub fn is_eligible(&self, allowed: &[MethodKind]) -> bool {
        self.detach_time.is_none() && MethodKind::parse(&self.kind).is_some_and(|kind| allowed.contains(&kind))
    }

    /// The newest fact in favour of it, whole seconds (Stripe's resolution), a choice before an attachment of the same
    /// second; Stripe's id breaks the last tie, so that every order of events ends in the same default (P6).
    pub fn claim(&self) -> Option<(i64, bool, &str)> {
        let attached = self.attach_time.map(|time| (time.unix_timestamp(), false));
        let chosen = self.choose_time.map(|time| (time.unix_timestamp(), true));
        attached.max(chosen).map(|(second, is_choice)| (second, is_choice, self.provider_payment_method_id.as_str()))
    }
}

/// The default: the eligible method with the newest fact in its favour.
pub fn default_method<'a>(methods: &'a [PaymentMethod], allowed: &[MethodKind]) -> Option<&'a PaymentMethod> {
    methods
        .iter()
        .filter(|method| method.is_eligible(allowed) && method.claim().is_some())
        .max_by(|left, right| left.claim().cmp(&right.claim()))
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
            provider_mandate_id: None,
            ended_mandate_id: None,
            attach_time: attached.map(at),
            choose_time: chosen.map(at),
            detach_time: detached.then(|| at(99)),
            create_time: at(0),
        }
    }

    fn chosen(methods: &[PaymentMethod], allowed: &[MethodKind]) -> Option<String> {
        default_method(methods, allowed).map(|method| method.provider_payment_method_id.clone())
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
        let sepa = method("pm_sepa", "sepa_debit", Some(4), None, false);
        let other = method("pm_link", "link", Some(9), None, false);
        let card = method("pm_card", "card", Some(1), None, false);
        let all = [detached, sepa, other, card];
        assert_eq!(chosen(&all, &BOTH).as_deref(), Some("pm_sepa"));
        assert_eq!(chosen(&all, &[MethodKind::Card]).as_deref(), Some("pm_card"));
        assert_eq!(chosen(&all[..1], &BOTH), None);
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let a = method("pm_a", "card", Some(2), None, false);
        let b = method("pm_b", "card", Some(2), None, false);
        assert_eq!(chosen(&[a.clone(), b.clone()], &BOTH), chosen(&[b, a], &BOTH));
    }
}
