//! The events that Paybridge reports to the billing system. The names are Lago's (`webhook_type`, `object_type`, and
//! every field of objects that Lago has), because that is the contract that billing systems know. The serialisation
//! defined here is the format of the event log; `grpc` converts it to proto.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::OrganizationId;

mod log;
mod types;

pub use log::EventLog;
pub use types::{EventType, ObjectType};

/// An event in an organization's log.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Our id.
    pub id: Uuid,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// Its position in the organization's log: 1, 2, 3, … without a gap (P5).
    pub position: i64,
    /// When it was written to the log.
    pub create_time: OffsetDateTime,
    /// The name of its [`EventType`]. A name, because during an update a later release may write a type that this one
    /// does not know; such an event is passed on.
    pub webhook_type: String,
    /// The object that the event is about.
    pub payload: Payload,
}

/// An event to be written; the log assigns its position.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    webhook_type: EventType,
    payload: Payload,
}

impl NewEvent {
    /// An event of this type. `payload` is of the type's [`ObjectType`].
    pub fn new(webhook_type: EventType, payload: Payload) -> Self {
        debug_assert_eq!(webhook_type.object_type(), payload.object_type(), "{webhook_type:?}");
        Self { webhook_type, payload }
    }

    /// The type of the event.
    pub fn webhook_type(&self) -> EventType {
        self.webhook_type
    }

    /// The object that the event is about.
    pub fn payload(&self) -> &Payload {
        &self.payload
    }
}

/// The object that an event is about. The variants are named after Lago's `object_type`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the variants are named after their objects")]
#[expect(clippy::large_enum_variant, reason = "an event is written or read once; boxing would only add noise")]
pub enum Payload {
    PaymentProviderCustomerCheckoutUrl(CheckoutUrlObject),
    Customer(CustomerObject),
    PaymentProviderCustomerError(CustomerErrorObject),
    PaymentProviderError(ProviderErrorObject),
    PaymentProviderInvoicePaymentError(InvoicePaymentErrorObject),
    Invoice(InvoiceObject),
    PaymentDisputeLost(PaymentDisputeLostObject),
    Payment(PaymentObject),
    PaymentMethod(PaymentMethodObject),
    Refund(RefundObject),
    Dispute(DisputeObject),
    PaymentProvider(PaymentProviderObject),
    ProviderEvent(ProviderEventObject),
}

impl Payload {
    /// The type of the object.
    pub fn object_type(&self) -> ObjectType {
        match self {
            Self::PaymentProviderCustomerCheckoutUrl(_) => ObjectType::PaymentProviderCustomerCheckoutUrl,
            Self::Customer(_) => ObjectType::Customer,
            Self::PaymentProviderCustomerError(_) => ObjectType::PaymentProviderCustomerError,
            Self::PaymentProviderError(_) => ObjectType::PaymentProviderError,
            Self::PaymentProviderInvoicePaymentError(_) => ObjectType::PaymentProviderInvoicePaymentError,
            Self::Invoice(_) => ObjectType::Invoice,
            Self::PaymentDisputeLost(_) => ObjectType::PaymentDisputeLost,
            Self::Payment(_) => ObjectType::Payment,
            Self::PaymentMethod(_) => ObjectType::PaymentMethod,
            Self::Refund(_) => ObjectType::Refund,
            Self::Dispute(_) => ObjectType::Dispute,
            Self::PaymentProvider(_) => ObjectType::PaymentProvider,
            Self::ProviderEvent(_) => ObjectType::ProviderEvent,
        }
    }
}

/// `customer.checkout_url_generated`, `customer.checkout_url_expired`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct CheckoutUrlObject {
    pub lago_customer_id: Uuid,
    pub external_customer_id: String,
    pub payment_provider: String,
    pub payment_provider_code: String,
    pub checkout_url: String,
}

/// `customer.payment_provider_created`, `customer.payment_provider_deleted`: the part of Lago's customer that Paybridge
/// knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct CustomerObject {
    pub lago_id: Uuid,
    pub external_id: String,
    pub name: String,
    pub email: String,
    pub phone: String,
    pub created_at: String,
    pub billing_configuration: BillingConfiguration,
}

/// The billing configuration of a customer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct BillingConfiguration {
    pub payment_provider: String,
    pub payment_provider_code: String,
    pub provider_customer_id: Option<String>,
    pub provider_payment_methods: Vec<String>,
    pub sync_with_provider: bool,
    pub payment_method_id: Option<String>,
}

/// A provider error, as Lago writes it in all objects except `payment_provider_error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct ProviderError {
    pub message: String,
    pub error_code: String,
}

/// `customer.payment_provider_error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct CustomerErrorObject {
    pub lago_customer_id: Uuid,
    pub external_customer_id: String,
    pub payment_provider: String,
    pub payment_provider_code: String,
    pub provider_error: ProviderError,
}

/// A provider error, as Lago writes it in `payment_provider_error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct ProviderErrorWithCode {
    pub message: String,
    pub code: String,
}

/// `payment_provider.error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct ProviderErrorObject {
    pub lago_payment_provider_id: Uuid,
    pub payment_provider_code: String,
    pub payment_provider_name: String,
    pub source: String,
    pub action: String,
    pub provider_error: ProviderErrorWithCode,
}

/// Details of Stripe's response to a failed request. Lago's `http_body` is left out: it can contain data that must not
/// be passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct ErrorDetails {
    pub code: String,
    pub message: String,
    pub request_id: Option<String>,
    pub http_status: Option<u16>,
}

/// `invoice.payment_failure`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct InvoicePaymentErrorObject {
    pub lago_invoice_id: String,
    pub lago_customer_id: Uuid,
    pub external_customer_id: String,
    pub provider_customer_id: Option<String>,
    pub payment_provider: String,
    pub payment_provider_code: String,
    pub provider_error: ProviderError,
    pub error_details: ErrorDetails,
    pub decline_code: Option<String>,
    pub advice_code: Option<String>,
    pub lago_payment_id: Uuid,
}

/// `invoice.payment_status_updated`: the part of Lago's invoice that Paybridge knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct InvoiceObject {
    pub lago_id: String,
    pub number: String,
    pub payment_status: String,
    pub currency: String,
    pub total_due_amount_cents: i64,
    pub total_paid_amount_cents: i64,
    pub customer: CustomerObject,
}

/// `invoice.payment_dispute_lost`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct PaymentDisputeLostObject {
    pub invoice: InvoiceObject,
    /// Stripe's reason.
    pub provider_error: Option<String>,
    /// The disputed amount, minor units.
    pub amount_cents: Option<i64>,
    /// ISO 4217, upper case.
    pub amount_currency: Option<String>,
}

/// `payment.succeeded`, `payment.processing`, `payment.requires_action`, `payment.pending`, `payment.canceled`,
/// `payment.overpaid`, `payment.underpaid`, `payment.amount_mismatch`, `payment.amount_change_refused`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct PaymentObject {
    pub lago_id: Uuid,
    pub lago_customer_id: Uuid,
    pub external_customer_id: String,
    pub invoice_ids: Vec<String>,
    pub invoice_numbers: Vec<String>,
    pub lago_payable_id: String,
    pub payable_type: String,
    pub amount_cents: i64,
    pub amount_currency: String,
    pub status: String,
    pub payment_status: String,
    pub r#type: String,
    pub reference: Option<String>,
    pub payment_provider_code: String,
    pub payment_provider_type: String,
    pub external_payment_id: Option<String>,
    pub provider_payment_id: Option<String>,
    pub provider_customer_id: Option<String>,
    pub next_action: Option<NextAction>,
    pub created_at: String,
    pub payment_method: Option<PaymentMethodObject>,
    /// Not in Lago: why it waits, while `status` is `pending`.
    pub pending_reason: Option<String>,
    /// Not in Lago: the charge that paid it, or in events about money that was not requested, the charge of that money.
    pub provider_charge_id: Option<String>,
    /// Not in Lago: the amount that was requested and refused, minor units.
    pub requested_amount_cents: Option<i64>,
    /// Not in Lago: the amount that remains to be paid, minor units.
    pub remaining_amount_cents: Option<i64>,
}

/// Stripe's next action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct NextAction {
    pub r#type: String,
    pub redirect_to_url: RedirectToUrl,
}

/// The page on which the customer continues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct RedirectToUrl {
    pub url: String,
}

/// `payment_method.created`, `payment_method.detached`, `payment_method.set_as_default`,
/// `payment_method.unset_as_default`, `payment_method.updated`, `payment_method.expiring`; also inside `payment`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are Lago's")]
pub struct PaymentMethodObject {
    pub lago_id: Uuid,
    pub lago_customer_id: Uuid,
    pub external_customer_id: String,
    pub is_default: bool,
    pub payment_provider_code: String,
    pub payment_provider_name: String,
    pub payment_provider_type: String,
    pub provider_method_id: String,
    pub provider_method_type: String,
    pub details: super::payment_methods::MethodDetails,
    pub created_at: String,
}

/// `payment.refund_updated`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "in the style of Lago's")]
pub struct RefundObject {
    pub lago_payment_id: Uuid,
    pub lago_invoice_id: String,
    pub lago_customer_id: Uuid,
    pub external_customer_id: String,
    pub payment_provider_code: String,
    /// Our refund id.
    pub lago_refund_id: Option<Uuid>,
    /// Absent until Stripe has created the refund.
    pub provider_refund_id: Option<String>,
    pub provider_charge_id: Option<String>,
    /// Absent while all that remains is being refunded and Stripe has not reported how much that is.
    pub amount_cents: Option<i64>,
    pub amount_currency: String,
    pub status: String,
    pub failure_reason: Option<String>,
    /// RFC 3339.
    pub outcome_unknown_at: Option<String>,
    pub amount_refunded_cents: i64,
}

/// `payment.dispute_updated`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "in the style of Lago's")]
pub struct DisputeObject {
    pub lago_payment_id: Uuid,
    pub lago_invoice_id: String,
    pub lago_customer_id: Uuid,
    pub external_customer_id: String,
    pub payment_provider_code: String,
    pub provider_dispute_id: String,
    pub provider_charge_id: Option<String>,
    pub amount_cents: i64,
    pub amount_currency: String,
    pub status: String,
    pub reason: Option<String>,
}

/// `payment_provider.connected`, `….recovered`, `….disconnected`, `….catch_up_started` and `….catch_up_finished`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "in the style of Lago's")]
pub struct PaymentProviderObject {
    pub lago_payment_provider_id: Uuid,
    pub payment_provider: String,
    pub payment_provider_code: String,
    pub payment_provider_name: String,
    pub provider_account_id: Option<String>,
    /// The webhook endpoint that is left at Stripe because the key no longer works.
    pub provider_webhook_endpoint_id: Option<String>,
}

/// A Stripe event that is relayed unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderEventObject {
    /// The code of the integration that received it.
    pub payment_provider_code: String,
    /// Always `stripe`.
    pub payment_provider: String,
    /// Stripe's `evt_…`.
    pub provider_event_id: String,
    /// Stripe's type.
    pub event_type: String,
    /// Stripe's `created`, RFC 3339.
    pub created_at: String,
    /// Stripe's JSON, as received.
    pub json: String,
}
