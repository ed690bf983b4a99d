//! Signals: normalised input from Stripe. `stripe` converts webhooks, entries of the events list and API responses to
//! these types, so that all of them are handled by the same rules.

use time::OffsetDateTime;
use uuid::Uuid;

use super::customers::Address;
use super::payment_methods::{MethodDetails, MethodKind};
use super::payments::Failure;
use super::{Money, OrganizationId};

/// A parsed Stripe event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Stripe's `created`, in whole seconds.
    pub event_time: OffsetDateTime,
    /// The account that the event names, if any. The claim is not verified here.
    pub account: Option<String>,
    /// Whether it concerns real money.
    pub livemode: bool,
    /// `request.idempotency_key`: the call that caused it. `None` if Stripe itself or a person in the Stripe Dashboard
    /// did.
    pub request_key: Option<String>,
    /// It is rendered in an API version before 2017-05-25, which names the call but not its key, so the call may be
    /// ours.
    pub hides_request_key: bool,
    /// The content of the event.
    pub signal: Signal,
}

/// The content of an event, by type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// `payment_intent.*`.
    Intent(Box<IntentSnapshot>),
    /// `charge.refunded`: a refund of this charge was created.
    ChargeRefunded(ChargeSnapshot),
    /// `refund.*`.
    Refund(RefundSnapshot),
    /// `charge.dispute.*`.
    Dispute(DisputeSnapshot),
    /// `payment_method.attached`.
    MethodAttached(MethodSnapshot),
    /// `payment_method.updated` and `payment_method.automatically_updated`.
    MethodUpdated(MethodSnapshot),
    /// `payment_method.detached`.
    MethodDetached {
        /// Stripe's `pm_…`.
        provider_payment_method_id: String,
    },
    /// `setup_intent.succeeded`: the method is stored and attached to the customer.
    SetupSucceeded(SetupSnapshot),
    /// `checkout.session.completed`, `…expired` and `…async_payment_*`.
    Session(SessionSnapshot),
    /// `customer.updated`.
    CustomerUpdated {
        /// Stripe's `cus_…`.
        provider_customer_id: String,
        /// The change of the default, if `previous_attributes` show that another one is in effect.
        default_change: Option<DefaultChange>,
    },
    /// `customer.deleted`.
    CustomerDeleted {
        /// Stripe's `cus_…`.
        provider_customer_id: String,
    },
    /// `mandate.updated`, and `charge.pending` of a debit, which names its mandate.
    Mandate(MandateSnapshot),
    /// An event that Paybridge does not use.
    Ignored {
        /// The reason, for the operator.
        reason: String,
    },
}

/// A PaymentIntent's status, as Stripe names it. Until API version 2019-02-11 payment methods were called sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
#[expect(missing_docs, reason = "the names are Stripe's")]
pub enum IntentStatus {
    #[strum(serialize = "requires_payment_method", serialize = "requires_source")]
    RequiresPaymentMethod,
    RequiresConfirmation,
    #[strum(serialize = "requires_action", serialize = "requires_source_action")]
    RequiresAction,
    Processing,
    RequiresCapture,
    Succeeded,
    Canceled,
}

/// The state of a PaymentIntent at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntentSnapshot {
    /// Stripe's `pi_…`.
    pub id: String,
    /// Stripe's status.
    pub status: IntentStatus,
    /// The amount to collect.
    pub amount: Money,
    /// The amount received, minor units.
    pub amount_received: i64,
    /// Stripe's `cus_…`.
    pub provider_customer_id: Option<String>,
    /// Stripe's `ch_…` of the latest charge attempt.
    pub latest_charge: Option<String>,
    /// Why the latest attempt was refused.
    pub last_payment_error: Option<Failure>,
    /// Where the customer completes the required action.
    pub next_action_url: Option<String>,
    /// Our payment id, from the metadata.
    pub payment_id: Option<Uuid>,
    /// Our organization id, from the metadata.
    pub organization_id: Option<Uuid>,
    /// The name of the installation that created it, from the metadata.
    pub installation: Option<String>,
    /// Our customer id, from the metadata.
    pub customer_id: Option<Uuid>,
    /// The billing system's customer id, from the metadata.
    pub external_customer_id: Option<String>,
    /// A payment link created it, says the metadata.
    pub is_of_link: bool,
    /// The invoice id, from the metadata.
    pub invoice_id: Option<String>,
    /// The invoice number, from the metadata.
    pub invoice_number: Option<String>,
}

impl IntentSnapshot {
    /// The amount received, in the intent's currency.
    pub fn received(&self) -> Money {
        Money { minor_units: self.amount_received, currency: self.amount.currency }
    }

    /// The same intent with the metadata that `created`, an earlier snapshot, has.
    #[must_use]
    pub fn with_metadata_of(self, created: Self) -> Self {
        Self {
            id: self.id,
            status: self.status,
            amount: self.amount,
            amount_received: self.amount_received,
            provider_customer_id: self.provider_customer_id,
            latest_charge: self.latest_charge,
            last_payment_error: self.last_payment_error,
            next_action_url: self.next_action_url,
            ..created
        }
    }

    /// Whether it bears only a part of the metadata that this installation writes for this organization.
    pub fn has_changed_metadata(&self, organization: OrganizationId, installation: &str) -> bool {
        let is_marked =
            self.organization_id == Some(organization.0) || self.installation.as_deref() == Some(installation);
        is_marked && (self.organization_id.is_none() || self.invoice_id.is_none())
    }

    /// Whether it waits for a confirmation: no attempt is in progress.
    pub fn awaits_confirmation(&self) -> bool {
        matches!(self.status, IntentStatus::RequiresPaymentMethod | IntentStatus::RequiresConfirmation)
    }
}

/// The identity of a charge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChargeSnapshot {
    /// Stripe's `ch_…`.
    pub id: String,
    /// Stripe's `pi_…`.
    pub provider_payment_intent_id: Option<String>,
}

/// The state of a refund at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefundSnapshot {
    /// Stripe's `re_…`.
    pub id: String,
    /// Stripe's `pi_…`.
    pub provider_payment_intent_id: Option<String>,
    /// Stripe's `ch_…`.
    pub provider_charge_id: Option<String>,
    /// The refunded amount.
    pub amount: Money,
    /// Stripe's status: `pending`, `requires_action`, `succeeded`, `failed`, `canceled`.
    pub status: String,
    /// Stripe's reason for a failure.
    pub failure_reason: Option<String>,
    /// Our refund id, from the metadata.
    pub refund_id: Option<Uuid>,
    /// Our organization id, from the metadata.
    pub organization_id: Option<Uuid>,
    /// The name of the installation that created it, from the metadata.
    pub installation: Option<String>,
    /// The caller's request for it, from the metadata.
    pub request_id: Option<String>,
}

/// The state of a dispute at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisputeSnapshot {
    /// Stripe's `dp_…` or `du_…`.
    pub id: String,
    /// Stripe's `pi_…`.
    pub provider_payment_intent_id: Option<String>,
    /// Stripe's `ch_…`.
    pub provider_charge_id: Option<String>,
    /// The disputed amount.
    pub amount: Money,
    /// Stripe's status, such as `needs_response`, `won`, `lost`.
    pub status: String,
    /// Stripe's reason, such as `fraudulent`.
    pub reason: Option<String>,
}

/// The state of a customer at one moment. Texts that Stripe does not have are empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomerSnapshot {
    /// Stripe's `cus_…`.
    pub id: String,
    /// The full name.
    pub name: String,
    /// One address.
    pub email: String,
    /// The telephone number.
    pub phone: String,
    /// The postal address.
    pub address: Option<Address>,
    /// Our organization id, from the metadata.
    pub organization_id: Option<Uuid>,
    /// The name of the installation that created it, from the metadata.
    pub installation: Option<String>,
    /// Our customer id, from the metadata.
    pub customer_id: Option<Uuid>,
    /// The billing system's customer id, from the metadata.
    pub external_id: Option<String>,
    /// The kinds of payment method that were allowed when it was created, from the metadata.
    pub kinds: Vec<MethodKind>,
}

/// The state of a payment method at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodSnapshot {
    /// Stripe's `pm_…`.
    pub id: String,
    /// Stripe's type: `card`, `sepa_debit`, or one that Paybridge does not collect with.
    pub kind: String,
    /// What a person recognises it by, such as the last four digits.
    pub details: MethodDetails,
    /// Stripe's `cus_…`; `None` once detached.
    pub provider_customer_id: Option<String>,
    /// Stripe's `created`.
    pub created: OffsetDateTime,
}

impl MethodSnapshot {
    /// Whether Stripe charges it only under a mandate.
    pub fn needs_mandate(&self) -> bool {
        self.kind.parse().is_ok_and(MethodKind::needs_mandate)
    }
}

/// A change of a customer's default at Stripe: `invoice_settings.default_payment_method`, else the legacy
/// `default_source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultChange {
    /// Stripe's id of the previous default; `None` if there was none.
    pub from: Option<String>,
    /// Stripe's id of the new default; `None` if there is none.
    pub to: Option<String>,
}

/// The state of a mandate at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MandateSnapshot {
    /// Stripe's `mandate_…`.
    pub id: String,
    /// Stripe's `pm_…` of the method that it belongs to.
    pub provider_payment_method_id: String,
    /// Whether it permits debits.
    pub is_active: bool,
}

/// A SetupIntent that has succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupSnapshot {
    /// Stripe's `seti_…`.
    pub id: String,
    /// Stripe's `cus_…`.
    pub provider_customer_id: Option<String>,
    /// Stripe's `pm_…` of the stored method. For iDEAL, Bancontact and Sofort it is the SEPA method created from it.
    pub provider_payment_method_id: Option<String>,
    /// Stripe's `mandate_…`, for SEPA.
    pub provider_mandate_id: Option<String>,
}

/// The state of a Checkout session at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSnapshot {
    /// Stripe's `cs_…`.
    pub id: String,
    /// The page's URL, while the session is open.
    pub url: Option<String>,
    /// Whether it is open, complete or expired.
    pub status: SessionStatus,
    /// When the session expires.
    pub expire_time: OffsetDateTime,
    /// Stripe's `seti_…` in setup mode.
    pub provider_setup_intent_id: Option<String>,
    /// Stripe's `pi_…` in payment mode, once the payer has first confirmed.
    pub provider_payment_intent_id: Option<String>,
    /// Stripe's `cus_…`.
    pub provider_customer_id: Option<String>,
}

/// A Checkout session's status, as Stripe names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
#[expect(missing_docs, reason = "the names are Stripe's")]
pub enum SessionStatus {
    Open,
    Complete,
    Expired,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Currency;

    fn intent(organization_id: Option<Uuid>, invoice_id: Option<&str>, installation: Option<&str>) -> IntentSnapshot {
        IntentSnapshot {
            id: "pi_1".to_owned(),
            status: IntentStatus::Processing,
            amount: Money { minor_units: 1, currency: Currency::EUR },
            amount_received: 0,
            provider_customer_id: None,
            latest_charge: None,
            last_payment_error: None,
            next_action_url: None,
            payment_id: None,
            organization_id,
            installation: installation.map(str::to_owned),
            customer_id: None,
            external_customer_id: None,
            is_of_link: false,
            invoice_id: invoice_id.map(str::to_owned),
            invoice_number: None,
        }
    }

    #[test]
    fn p8_an_intent_with_only_a_part_of_our_metadata_was_edited() {
        let org = Some(Uuid::nil());
        for (organization, invoice, installation, expected) in [
            (org, Some("inv"), Some("test"), false),
            (None, None, None, false),
            // Somebody else's, which names an invoice, or has keys of the same names.
            (None, Some("inv"), None, false),
            (Some(Uuid::from_u128(9)), None, Some("another"), false),
            (org, None, Some("test"), true),
            (None, Some("inv"), Some("test"), true),
            (org, None, None, true),
        ] {
            let is_edited =
                intent(organization, invoice, installation).has_changed_metadata(OrganizationId(Uuid::nil()), "test");
            assert_eq!(is_edited, expected, "{organization:?} {invoice:?} {installation:?}");
        }
    }

    #[test]
    fn p8_the_metadata_of_the_creation_replaces_what_was_edited_and_nothing_else() {
        let created = IntentSnapshot {
            status: IntentStatus::RequiresPaymentMethod,
            ..intent(Some(Uuid::nil()), Some("inv"), Some("test"))
        };
        let present = IntentSnapshot { latest_charge: Some("ch_1".to_owned()), ..intent(None, Some("other"), None) };
        let expected = IntentSnapshot {
            status: IntentStatus::Processing,
            latest_charge: Some("ch_1".to_owned()),
            ..created.clone()
        };
        assert_eq!(present.with_metadata_of(created), expected);
    }
}
