//! What Stripe tells us, normalised: `stripe` turns webhooks, list entries and API answers into these before any rule
//! sees them, so that all of them feed the same functions.

use time::OffsetDateTime;
use uuid::Uuid;

use super::Money;
use super::payment_methods::MethodDetails;
use super::payments::Failure;

/// One of Stripe's events, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Stripe's `created`; whole seconds.
    pub event_time: OffsetDateTime,
    /// The account that it claims to be of, where it names one.
    pub account: Option<String>,
    /// Whether it is about real money.
    pub livemode: bool,
    /// `request.idempotency_key`: which call caused it; `None` where Stripe or a person in the dashboard did.
    pub request_key: Option<String>,
    /// It is rendered in an API version of before 2017-05-25, which names the call and hides its key: it may be ours.
    pub hides_request_key: bool,
    /// What it says.
    pub signal: Signal,
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// `payment_intent.*`.
    Intent(IntentSnapshot),
    /// `charge.refunded`: a refund of this charge was made.
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
    /// `setup_intent.succeeded`: the method is stored, and attached to the customer.
    SetupSucceeded(SetupSnapshot),
    /// `checkout.session.completed`, `…expired` and `…async_payment_*`.
    Session(SessionSnapshot),
    /// `customer.updated`.
    CustomerUpdated {
        /// Stripe's `cus_…`.
        provider_customer_id: String,
        /// What became of the default, if `previous_attributes` say that another one counts now.
        default_change: Option<DefaultChange>,
    },
    /// `customer.deleted`.
    CustomerDeleted {
        /// Stripe's `cus_…`.
        provider_customer_id: String,
    },
    /// `mandate.updated`, and `charge.pending` of a debit, which names its mandate.
    Mandate(MandateSnapshot),
    /// Of no concern to us.
    Ignored {
        /// Why, for an operator.
        reason: String,
    },
}

/// A PaymentIntent's status, in Stripe's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "these are Stripe's words")]
pub enum IntentStatus {
    RequiresPaymentMethod,
    RequiresConfirmation,
    RequiresAction,
    Processing,
    RequiresCapture,
    Succeeded,
    Canceled,
}

impl IntentStatus {
    /// The status of this name. Until API version 2019-02-11 methods were called sources.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "requires_payment_method" | "requires_source" => Self::RequiresPaymentMethod,
            "requires_confirmation" => Self::RequiresConfirmation,
            "requires_action" | "requires_source_action" => Self::RequiresAction,
            "processing" => Self::Processing,
            "requires_capture" => Self::RequiresCapture,
            "succeeded" => Self::Succeeded,
            "canceled" => Self::Canceled,
            _ => return None,
        })
    }
}

/// A PaymentIntent at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntentSnapshot {
    /// Stripe's `pi_…`.
    pub id: String,
    /// Its status.
    pub status: IntentStatus,
    /// What it asks for.
    pub amount: Money,
    /// What it has received, minor units.
    pub amount_received: i64,
    /// Stripe's `cus_…`.
    pub provider_customer_id: Option<String>,
    /// Stripe's `ch_…` of the newest try.
    pub latest_charge: Option<String>,
    /// Why the newest try was refused.
    pub last_payment_error: Option<Failure>,
    /// Where the customer can finish an action.
    pub next_action_url: Option<String>,
    /// Our payment, from the metadata that we set.
    pub payment_id: Option<Uuid>,
    /// Our organization, from the metadata that we set.
    pub organization_id: Option<Uuid>,
    /// The invoice, from the metadata that we set.
    pub invoice_id: Option<String>,
}

impl IntentSnapshot {
    /// What Stripe has received by it, in its own currency.
    pub fn received(&self) -> Money {
        Money { minor_units: self.amount_received, currency: self.amount.currency }
    }

    /// Whether it waits for somebody to try it: nothing is on its way.
    pub fn waits(&self) -> bool {
        matches!(self.status, IntentStatus::RequiresPaymentMethod | IntentStatus::RequiresConfirmation)
    }
}

/// A charge at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChargeSnapshot {
    /// Stripe's `ch_…`.
    pub id: String,
    /// Stripe's `pi_…`.
    pub provider_payment_intent_id: Option<String>,
}

/// A refund at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefundSnapshot {
    /// Stripe's `re_…`.
    pub id: String,
    /// Stripe's `pi_…`.
    pub provider_payment_intent_id: Option<String>,
    /// Stripe's `ch_…`.
    pub provider_charge_id: Option<String>,
    /// How much goes back.
    pub amount: Money,
    /// Stripe's status: `pending`, `requires_action`, `succeeded`, `failed`, `canceled`.
    pub status: String,
    /// Stripe's reason of a failure.
    pub failure_reason: Option<String>,
    /// Our refund, from the metadata that we set.
    pub refund_id: Option<Uuid>,
}

/// A dispute at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisputeSnapshot {
    /// Stripe's `dp_…` or `du_…`.
    pub id: String,
    /// Stripe's `pi_…`.
    pub provider_payment_intent_id: Option<String>,
    /// Stripe's `ch_…`.
    pub provider_charge_id: Option<String>,
    /// How much is disputed.
    pub amount: Money,
    /// Stripe's status, such as `needs_response`, `won`, `lost`.
    pub status: String,
    /// Stripe's reason, such as `fraudulent`.
    pub reason: Option<String>,
}

/// A payment method at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodSnapshot {
    /// Stripe's `pm_…`.
    pub id: String,
    /// Stripe's kind: `card`, `sepa_debit`, or one that we don't collect with.
    pub kind: String,
    /// What a person recognises it by.
    pub details: MethodDetails,
    /// Stripe's `cus_…`; `None` once it is detached.
    pub provider_customer_id: Option<String>,
    /// Stripe's `created`.
    pub created: OffsetDateTime,
}

/// Another default of a customer at Stripe: `invoice_settings.default_payment_method`, else the old `default_source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultChange {
    /// Stripe's id of the method before; `None`: there was none.
    pub from: Option<String>,
    /// Stripe's id of the method from now on; `None`: there is none.
    pub to: Option<String>,
}

/// A mandate at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MandateSnapshot {
    /// Stripe's `mandate_…`.
    pub id: String,
    /// The method that it belongs to.
    pub provider_payment_method_id: String,
    /// Whether it permits debits.
    pub is_active: bool,
}

/// A SetupIntent that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupSnapshot {
    /// Stripe's `seti_…`.
    pub id: String,
    /// Stripe's `cus_…`.
    pub provider_customer_id: Option<String>,
    /// Stripe's `pm_…` of what was stored. Behind iDEAL, Bancontact and Sofort that is the SEPA method made of it.
    pub provider_payment_method_id: Option<String>,
    /// Stripe's `mandate_…`, for SEPA.
    pub provider_mandate_id: Option<String>,
}

/// A Checkout session at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSnapshot {
    /// Stripe's `cs_…`.
    pub id: String,
    /// The link, while it is open.
    pub url: Option<String>,
    /// Whether it was completed, has expired, or is open.
    pub status: SessionStatus,
    /// When the link ends.
    pub expire_time: OffsetDateTime,
    /// Stripe's `seti_…` in setup mode.
    pub provider_setup_intent_id: Option<String>,
    /// Stripe's `pi_…` in payment mode, from when the payer first confirms.
    pub provider_payment_intent_id: Option<String>,
    /// Stripe's `cus_…`.
    pub provider_customer_id: Option<String>,
}

/// A Checkout session's status, in Stripe's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "these are Stripe's words")]
pub enum SessionStatus {
    Open,
    Complete,
    Expired,
}
