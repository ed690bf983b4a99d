//! The types of events, and of the objects that they contain.

use strum::{EnumString, IntoStaticStr, VariantArray};

/// The type of an event (`webhook_type`). `docs/events.md` says when each is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[expect(missing_docs, reason = "the variants are named after their types")]
pub enum EventType {
    #[strum(serialize = "customer.payment_provider_created")]
    CustomerPaymentProviderCreated,
    #[strum(serialize = "customer.payment_provider_linked")]
    CustomerPaymentProviderLinked,
    #[strum(serialize = "customer.payment_provider_deleted")]
    CustomerPaymentProviderDeleted,
    #[strum(serialize = "customer.payment_provider_error")]
    CustomerPaymentProviderError,
    #[strum(serialize = "customer.checkout_url_generated")]
    CustomerCheckoutUrlGenerated,
    #[strum(serialize = "customer.checkout_url_expired")]
    CustomerCheckoutUrlExpired,
    #[strum(serialize = "payment_method.created")]
    PaymentMethodCreated,
    #[strum(serialize = "payment_method.set_as_default")]
    PaymentMethodSetAsDefault,
    #[strum(serialize = "payment_method.unset_as_default")]
    PaymentMethodUnsetAsDefault,
    #[strum(serialize = "payment_method.updated")]
    PaymentMethodUpdated,
    #[strum(serialize = "payment_method.expiring")]
    PaymentMethodExpiring,
    #[strum(serialize = "payment_method.detached")]
    PaymentMethodDetached,
    #[strum(serialize = "payment.pending")]
    PaymentPending,
    #[strum(serialize = "payment.processing")]
    PaymentProcessing,
    #[strum(serialize = "payment.requires_action")]
    PaymentRequiresAction,
    #[strum(serialize = "payment.succeeded")]
    PaymentSucceeded,
    #[strum(serialize = "payment.canceled")]
    PaymentCanceled,
    #[strum(serialize = "payment.overpaid")]
    PaymentOverpaid,
    #[strum(serialize = "payment.underpaid")]
    PaymentUnderpaid,
    #[strum(serialize = "payment.outcome_unknown")]
    PaymentOutcomeUnknown,
    #[strum(serialize = "payment.cancellation_refused")]
    PaymentCancellationRefused,
    #[strum(serialize = "payment.amount_change_refused")]
    PaymentAmountChangeRefused,
    #[strum(serialize = "payment.amount_mismatch")]
    PaymentAmountMismatch,
    #[strum(serialize = "payment.refund_updated")]
    PaymentRefundUpdated,
    #[strum(serialize = "payment.dispute_updated")]
    PaymentDisputeUpdated,
    #[strum(serialize = "invoice.payment_status_updated")]
    InvoicePaymentStatusUpdated,
    #[strum(serialize = "invoice.payment_failure")]
    InvoicePaymentFailure,
    #[strum(serialize = "invoice.payment_dispute_lost")]
    InvoicePaymentDisputeLost,
    #[strum(serialize = "payment_provider.connected")]
    PaymentProviderConnected,
    #[strum(serialize = "payment_provider.disconnected")]
    PaymentProviderDisconnected,
    #[strum(serialize = "payment_provider.error")]
    PaymentProviderError,
    #[strum(serialize = "payment_provider.recovered")]
    PaymentProviderRecovered,
    #[strum(serialize = "payment_provider.catch_up_started")]
    PaymentProviderCatchUpStarted,
    #[strum(serialize = "payment_provider.catch_up_finished")]
    PaymentProviderCatchUpFinished,
    #[strum(serialize = "provider_event")]
    ProviderEvent,
}

/// The type of the object that an event contains, which follows from the type of the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[expect(missing_docs, reason = "the variants are named after their objects")]
pub enum ObjectType {
    PaymentProviderCustomerCheckoutUrl,
    Customer,
    PaymentProviderCustomerError,
    PaymentProviderError,
    PaymentProviderInvoicePaymentError,
    Invoice,
    PaymentDisputeLost,
    Payment,
    PaymentMethod,
    Refund,
    Dispute,
    PaymentProvider,
    ProviderEvent,
}

impl EventType {
    /// All types.
    pub const ALL: &'static [Self] = <Self as VariantArray>::VARIANTS;

    /// The name in the log and the API, such as `payment.succeeded`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The type with this name, if there is one.
    pub fn parse(name: &str) -> Option<Self> {
        name.parse().ok()
    }

    /// The type of the object that its events contain.
    pub fn object_type(self) -> ObjectType {
        match self {
            Self::CustomerCheckoutUrlGenerated | Self::CustomerCheckoutUrlExpired => {
                ObjectType::PaymentProviderCustomerCheckoutUrl
            }
            Self::CustomerPaymentProviderCreated
            | Self::CustomerPaymentProviderLinked
            | Self::CustomerPaymentProviderDeleted => ObjectType::Customer,
            Self::CustomerPaymentProviderError => ObjectType::PaymentProviderCustomerError,
            Self::PaymentProviderError => ObjectType::PaymentProviderError,
            Self::InvoicePaymentFailure => ObjectType::PaymentProviderInvoicePaymentError,
            Self::InvoicePaymentStatusUpdated => ObjectType::Invoice,
            Self::InvoicePaymentDisputeLost => ObjectType::PaymentDisputeLost,
            Self::PaymentPending
            | Self::PaymentProcessing
            | Self::PaymentRequiresAction
            | Self::PaymentSucceeded
            | Self::PaymentCanceled
            | Self::PaymentOverpaid
            | Self::PaymentUnderpaid
            | Self::PaymentOutcomeUnknown
            | Self::PaymentCancellationRefused
            | Self::PaymentAmountChangeRefused
            | Self::PaymentAmountMismatch => ObjectType::Payment,
            Self::PaymentMethodCreated
            | Self::PaymentMethodSetAsDefault
            | Self::PaymentMethodUnsetAsDefault
            | Self::PaymentMethodUpdated
            | Self::PaymentMethodExpiring
            | Self::PaymentMethodDetached => ObjectType::PaymentMethod,
            Self::PaymentRefundUpdated => ObjectType::Refund,
            Self::PaymentDisputeUpdated => ObjectType::Dispute,
            Self::PaymentProviderConnected
            | Self::PaymentProviderDisconnected
            | Self::PaymentProviderRecovered
            | Self::PaymentProviderCatchUpStarted
            | Self::PaymentProviderCatchUpFinished => ObjectType::PaymentProvider,
            Self::ProviderEvent => ObjectType::ProviderEvent,
        }
    }
}

impl ObjectType {
    /// The name in the API: Lago's `object_type`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
