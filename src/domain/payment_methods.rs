//! Payment methods, and the rule that selects a customer's default. The rule is a pure function of dated facts, so the
//! order in which Stripe reports them does not matter (P6).

use std::collections::BTreeSet;

use time::OffsetDateTime;

use super::{Currency, CustomerId, IntegrationId, OrganizationId, PaymentMethodId};

/// The kinds of payment method that Paybridge collects with, and what differs between them. The names are Stripe's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::EnumString, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum MethodKind {
    /// Cards, and the wallets based on them.
    Card,
    /// SEPA Direct Debit.
    SepaDebit,
}

impl MethodKind {
    /// All kinds.
    pub const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    /// Stripe's name of the kind.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether it can pay in `currency`. SEPA Direct Debit accepts euros only.
    pub fn takes(self, currency: Currency) -> bool {
        match self {
            Self::Card => true,
            Self::SepaDebit => currency == Currency::EUR,
        }
    }

    /// Whether Stripe charges it only under a mandate of the payer's.
    pub fn needs_mandate(self) -> bool {
        match self {
            Self::Card => false,
            Self::SepaDebit => true,
        }
    }

    /// Whether the bank takes days to settle a charge that it has accepted for processing.
    pub fn settles_slowly(self) -> bool {
        match self {
            Self::Card => false,
            Self::SepaDebit => true,
        }
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

/// Whether a method that needs a mandate may be debited, as far as known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mandate<'a> {
    /// An active mandate, by Stripe's `mandate_…`.
    Active(&'a str),
    /// All known mandates have ended, so a debit would be refused.
    Inactive,
    /// No mandate is known. There may be one, so a debit is attempted and Stripe's response decides.
    Unknown,
}

/// The mandates of a method, by Stripe's ids. Facts are only added, and an ended mandate stays ended, so their
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
    /// The mandates that permit debits, if its kind needs one.
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
        self.known_kind() == Some(MethodKind::SepaDebit) && self.provider_payment_method_id.starts_with("src_")
    }

    /// Its kind, if Paybridge collects with it.
    pub fn known_kind(&self) -> Option<MethodKind> {
        self.kind.parse().ok()
    }

    /// Whether its mandate is known to have ended, so that Stripe would refuse to charge it. An unknown mandate is
    /// attempted: Stripe's response decides.
    pub fn mandate_has_ended(&self) -> bool {
        self.needs_mandate() && self.mandates.state() == Mandate::Inactive
    }

    fn needs_mandate(&self) -> bool {
        self.known_kind().is_some_and(MethodKind::needs_mandate)
    }

    /// Whether it has been chargeable at any time. A method without any known active mandate that needs one may never
    /// have been. A default whose mandate has ended stays the default and is refused when charged, because the customer
    /// has not chosen another one.
    fn was_chargeable(&self) -> bool {
        !(self.is_legacy_sepa() || self.needs_mandate() && self.mandates.granted.is_empty())
    }

    /// Whether it may be charged or be the default: attached, and of an allowed kind.
    pub fn is_eligible(&self, allowed: &[MethodKind]) -> bool {
        self.detach_time.is_none() && self.known_kind().is_some_and(|kind| allowed.contains(&kind))
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
mod tests;
