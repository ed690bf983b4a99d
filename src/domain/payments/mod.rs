//! A payment: the collection of one invoice, one row for an invoice whatever the number of tries.
//!
//! [`Payment::apply`] is the only function that changes a payment's state, whoever brings the news: the answer to our own
//! call, a webhook, an entry of the events list, a read of the reconciler. [`plan`] decides what to do next.
//!
//! What holds here: `SUCCEEDED` and `CANCELED` are final (P7). Once anything has been sent, only Stripe's word makes a
//! payment `FAILED` (P2): an intent that shows neither a new charge nor a new error proves nothing.

mod apply;
mod attempts;
mod changes;
mod errands;
mod plan;
#[cfg(test)]
mod tests;

use time::OffsetDateTime;

pub use self::apply::{Circumstances, News};
pub use self::attempts::{Attempt, AttemptState, Link, Way};
pub use self::changes::{Change, Notice, Receipt};
pub use self::errands::{Errand, Manual, Objection};
pub use self::plan::{DEAD_KEY_READS, KEY_AGE_MAX, Resume, Step, link_objection, plan, resume};
use super::customers::CustomerRef;
use super::{CustomerId, IntegrationId, Money, OrganizationId, PaymentId, PaymentMethodId};

/// Where a payment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentState {
    /// Accepted; nothing can take money yet.
    Pending,
    /// Sent; Stripe or the bank will say.
    Processing,
    /// The customer must do something.
    RequiresAction,
    /// Paid. Final.
    Succeeded,
    /// Refused; may be tried again, or turn out paid if Stripe says so.
    Failed,
    /// Closed at Stripe, or before anything reached it. Final, until the invoice is given in anew.
    Canceled,
}

impl PaymentState {
    /// Lago's `payment_status` of the invoice.
    pub fn payment_status(self) -> &'static str {
        match self {
            Self::Pending | Self::Processing | Self::RequiresAction => "pending",
            Self::Succeeded => "succeeded",
            Self::Failed | Self::Canceled => "failed",
        }
    }

    /// The state's name, lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::RequiresAction => "requires_action",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    /// The state of this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Pending, Self::Processing, Self::RequiresAction, Self::Succeeded, Self::Failed, Self::Canceled]
            .into_iter()
            .find(|state| state.as_str() == name)
    }

    /// Whether it can't change any more (P7).
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Canceled)
    }
}

/// Why a payment waits in `PENDING`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingReason {
    /// Its customer is being created or linked at Stripe.
    WaitingForCustomer,
    /// Stripe takes no amount as small as this. Holds no slot; RetryPayment tries again.
    AmountTooSmall,
    /// The integration's key or a permission must be mended first.
    IntegrationPaused,
}

impl PendingReason {
    /// Its name, lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WaitingForCustomer => "waiting_for_customer",
            Self::AmountTooSmall => "amount_too_small",
            Self::IntegrationPaused => "integration_paused",
        }
    }

    /// The reason of this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::WaitingForCustomer, Self::AmountTooSmall, Self::IntegrationPaused]
            .into_iter()
            .find(|reason| reason.as_str() == name)
    }
}

/// Why a try was refused: by Stripe, in its words, or by a rule of ours, with a code of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    /// Stripe's `code`, or one of ours: `no_payment_method`, `no_provider_customer`, `payment_method_not_usable`,
    /// `mandate_missing`, `payment_url_expired`, `payment_url_closed`, `action_expired`.
    pub code: String,
    /// For people.
    pub message: String,
    /// The issuer's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decline_code: Option<String>,
    /// Stripe's advice: `try_again_later`, `do_not_try_again`, `confirm_card_data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice_code: Option<String>,
    /// The card network's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_decline_code: Option<String>,
    /// Which parameter Stripe objected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// Stripe's `ch_…` of the refused try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_charge_id: Option<String>,
    /// Stripe's `req_…`, to ask its support about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_request_id: Option<String>,
    /// The HTTP status of Stripe's answer, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
}

impl Failure {
    /// The code of a customer without a usable method: retried once by Paybridge itself when one arrives.
    pub const NO_PAYMENT_METHOD: &'static str = "no_payment_method";
    /// The code of a link that a caller ended, by a change of the amount.
    pub(super) const PAYMENT_URL_CLOSED: &'static str = "payment_url_closed";
    /// The code of a SEPA method whose mandate has ended, or whose debit Stripe refuses for want of one.
    pub const MANDATE_MISSING: &'static str = "mandate_missing";
    /// Stripe's code for a bank that wants to see the customer first.
    const AUTHENTICATION_REQUIRED: &'static str = "authentication_required";

    /// The code under which a refusal of Stripe's is reported: its own, but for a mandate that it does not accept, which
    /// has one name, whoever finds it out.
    pub fn code_of(stripes: &str) -> &str {
        if stripes == "payment_intent_mandate_invalid" { Self::MANDATE_MISSING } else { stripes }
    }

    /// A refusal by a rule of ours.
    pub fn ours(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), ..Self::default() }
    }

    /// The customer has no payment method.
    pub fn no_payment_method() -> Self {
        let text = "the customer has no payment method; the payment is retried automatically when one arrives";
        Self::ours(Self::NO_PAYMENT_METHOD, text)
    }

    /// Whether the customer has no payment method.
    pub fn lacks_method(&self) -> bool {
        self.code == Self::NO_PAYMENT_METHOD
    }

    /// Whether the issuer advised never to try this method again.
    pub fn forbids_retry(&self) -> bool {
        self.advice_code.as_deref() == Some("do_not_try_again")
    }

    /// Whether the customer's bank wants to see them first (3-D Secure). Stripe says so by the code, or, for a card that
    /// was declined for it, by the bank's reason.
    pub fn wants_customer(&self) -> bool {
        self.code == Self::AUTHENTICATION_REQUIRED
            || self.decline_code.as_deref() == Some(Self::AUTHENTICATION_REQUIRED)
    }

    /// Whether both tell of the same refusal. Where both name a charge, the charge decides; else code and reason do.
    fn is_same_as(&self, other: &Self) -> bool {
        match (&self.provider_charge_id, &other.provider_charge_id) {
            (Some(left), Some(right)) => left == right,
            // What an earlier release has stored still has Stripe's code.
            _ => Self::code_of(&self.code) == Self::code_of(&other.code) && self.decline_code == other.decline_code,
        }
    }
}

/// The collection of one invoice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// Our id.
    pub id: PaymentId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The integration that collects it.
    pub integration_id: IntegrationId,
    /// Who pays.
    pub customer_id: CustomerId,
    /// The billing system's own id of the invoice, unique in the organization.
    pub invoice_id: String,
    /// The invoice's number, for people; may be empty.
    pub invoice_number: String,
    /// What is to be paid.
    pub amount: Money,
    /// Where it stands.
    pub state: PaymentState,
    /// Why it waits.
    pub pending_reason: Option<PendingReason>,
    /// Why it was refused, while `FAILED`; while a link is open, the lack of a payment method, which stands.
    pub failure: Option<Failure>,
    /// Whether it failed for lack of a payment method, and the one retry that this leads to is still to come.
    pub awaits_method: bool,
    /// Stripe's `pi_…`: the one intent that all tries confirm (P1). Gone once Stripe has answered that it is closed and
    /// another way is to be opened.
    pub provider_payment_intent_id: Option<String>,
    /// How often an intent was made anew; part of the creation's idempotency key.
    pub intent_number: i32,
    /// The number of the newest attempt; 0 before the first.
    pub attempt_number: i32,
    /// The method asked for by RetryPayment; absent: the customer's default.
    pub requested_method_id: Option<PaymentMethodId>,
    /// Whether the next confirm is made with the customer at hand: the bank wants to see them (3-D Secure).
    pub on_session: bool,
    /// Where the customer can finish an action.
    pub next_action_url: Option<String>,
    /// Since when the customer is asked to prove who they are.
    pub action_time: Option<OffsetDateTime>,
    /// Stripe's `ch_…` that has paid it.
    pub provider_charge_id: Option<String>,
    /// What Stripe has received, minor units.
    pub amount_received: i64,
    /// How much of that charges made by hand have brought of the present amount, without paying it in full; once it is
    /// paid, also what was needed of one that came at the same time.
    pub part_received: i64,
    /// What went back, minor units.
    pub amount_refunded: i64,
    /// When cancellation was asked for.
    pub cancel_request_time: Option<OffsetDateTime>,
    /// What is to be done once nothing at Stripe can take money for it any more.
    pub errand: Option<Errand>,
    /// What is due, minor units, to a caller who requested another amount while the payer was about to pay the present
    /// one: the parts that were known then, and what was requested besides. Refused, and what comes in is compared with it.
    pub refused_amount: Option<i64>,
    /// What somebody has recorded as paid elsewhere, once it counts.
    pub manual: Option<Manual>,
    /// Since when a call's outcome is unknown (P2).
    pub unknown_since: Option<OffsetDateTime>,
    /// Rises with every change.
    pub version: i64,
    /// When the invoice was first given in.
    pub create_time: OffsetDateTime,
    /// When it last changed.
    pub update_time: OffsetDateTime,
}

/// What a caller gives to have an invoice collected.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Payment")]
pub struct NewPayment {
    pub invoice_id: String,
    pub invoice_number: String,
    pub customer: CustomerRef,
    pub amount: Money,
}

/// How a caller names a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaymentRef {
    /// Our id.
    Id(PaymentId),
    /// The billing system's id of the invoice.
    InvoiceId(String),
}

/// Which payments to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PaymentFilter {
    /// Only this customer's.
    pub customer_id: Option<CustomerId>,
    /// Only in one of these states; empty: in any.
    pub states: Vec<PaymentState>,
    /// Only made at this time or later.
    pub created_from: Option<OffsetDateTime>,
    /// Only made before this time.
    pub created_before: Option<OffsetDateTime>,
}
