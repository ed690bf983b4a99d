//! Converts events, field by field. The field names are the contract: see `domain/events.rs`.

use super::timestamp;
use crate::domain::LogId;
use crate::domain::events::{
    BillingConfiguration, CheckoutUrlObject, CustomerErrorObject, CustomerObject, DisputeObject, ErrorDetails, Event,
    InvoiceObject, InvoicePaymentErrorObject, NextAction, Payload, PaymentDisputeLostObject, PaymentMethodObject,
    PaymentObject, PaymentProviderObject, ProviderError, ProviderErrorObject, ProviderEventObject, RefundObject,
};
use crate::grpc::proto::{self, event::Object};

pub(in crate::grpc) fn event(event: Event, log_id: LogId) -> proto::Event {
    proto::Event {
        id: event.id.to_string(),
        log_id: log_id.to_string(),
        position: event.position,
        organization_id: event.organization_id.to_string(),
        create_time: Some(timestamp(event.create_time)),
        webhook_type: event.webhook_type,
        object_type: event.payload.object_type().as_str().to_owned(),
        object: Some(object(event.payload)),
    }
}

fn object(payload: Payload) -> Object {
    match payload {
        Payload::PaymentProviderCustomerCheckoutUrl(it) => Object::PaymentProviderCustomerCheckoutUrl(it.into()),
        Payload::Customer(it) => Object::Customer(it.into()),
        Payload::PaymentProviderCustomerError(it) => Object::PaymentProviderCustomerError(it.into()),
        Payload::PaymentProviderError(it) => Object::PaymentProviderError(it.into()),
        Payload::PaymentProviderInvoicePaymentError(it) => Object::PaymentProviderInvoicePaymentError(it.into()),
        Payload::Invoice(it) => Object::Invoice(it.into()),
        Payload::PaymentDisputeLost(it) => Object::PaymentDisputeLost(it.into()),
        Payload::Payment(it) => Object::Payment(it.into()),
        Payload::PaymentMethod(it) => Object::PaymentMethod(it.into()),
        Payload::Refund(it) => Object::Refund(it.into()),
        Payload::Dispute(it) => Object::Dispute(it.into()),
        Payload::PaymentProvider(it) => Object::PaymentProvider(it.into()),
        Payload::ProviderEvent(it) => Object::ProviderEvent(it.into()),
    }
}

impl From<CheckoutUrlObject> for proto::PaymentProviderCustomerCheckoutUrl {
    fn from(it: CheckoutUrlObject) -> Self {
        Self {
            lago_customer_id: it.lago_customer_id.to_string(),
            external_customer_id: it.external_customer_id,
            payment_provider: it.payment_provider,
            payment_provider_code: it.payment_provider_code,
            checkout_url: it.checkout_url,
        }
    }
}

impl From<CustomerObject> for proto::EventCustomer {
    fn from(it: CustomerObject) -> Self {
        Self {
            lago_id: it.lago_id.to_string(),
            external_id: it.external_id,
            name: it.name,
            email: it.email,
            phone: it.phone,
            created_at: it.created_at,
            billing_configuration: Some(it.billing_configuration.into()),
        }
    }
}

impl From<BillingConfiguration> for proto::BillingConfiguration {
    fn from(it: BillingConfiguration) -> Self {
        Self {
            payment_provider: it.payment_provider,
            payment_provider_code: it.payment_provider_code,
            provider_customer_id: it.provider_customer_id,
            provider_payment_methods: it.provider_payment_methods,
            payment_method_id: it.payment_method_id,
            sync_with_provider: Some(it.sync_with_provider),
        }
    }
}

impl From<ProviderError> for proto::ProviderError {
    fn from(it: ProviderError) -> Self {
        Self { message: it.message, error_code: it.error_code }
    }
}

impl From<CustomerErrorObject> for proto::PaymentProviderCustomerError {
    fn from(it: CustomerErrorObject) -> Self {
        Self {
            lago_customer_id: it.lago_customer_id.to_string(),
            external_customer_id: it.external_customer_id,
            payment_provider: it.payment_provider,
            payment_provider_code: it.payment_provider_code,
            provider_error: Some(it.provider_error.into()),
        }
    }
}

impl From<ProviderErrorObject> for proto::PaymentProviderError {
    fn from(it: ProviderErrorObject) -> Self {
        let error = it.provider_error;
        Self {
            lago_payment_provider_id: it.lago_payment_provider_id.to_string(),
            payment_provider_code: it.payment_provider_code,
            payment_provider_name: it.payment_provider_name,
            source: it.source,
            action: it.action,
            provider_error: Some(proto::ConnectionError { message: error.message, code: error.code }),
        }
    }
}

impl From<ErrorDetails> for proto::ErrorDetails {
    fn from(it: ErrorDetails) -> Self {
        Self {
            code: it.code,
            message: it.message,
            request_id: it.request_id,
            http_status: it.http_status.map(i32::from),
        }
    }
}

impl From<InvoicePaymentErrorObject> for proto::PaymentProviderInvoicePaymentError {
    fn from(it: InvoicePaymentErrorObject) -> Self {
        Self {
            lago_invoice_id: it.lago_invoice_id,
            lago_customer_id: it.lago_customer_id.to_string(),
            external_customer_id: it.external_customer_id,
            provider_customer_id: it.provider_customer_id,
            payment_provider: it.payment_provider,
            payment_provider_code: it.payment_provider_code,
            provider_error: Some(it.provider_error.into()),
            error_details: Some(it.error_details.into()),
            decline_code: it.decline_code,
            advice_code: it.advice_code,
            lago_payment_id: it.lago_payment_id.to_string(),
        }
    }
}

impl From<InvoiceObject> for proto::EventInvoice {
    fn from(it: InvoiceObject) -> Self {
        Self {
            lago_id: it.lago_id,
            number: it.number,
            payment_status: it.payment_status,
            currency: it.currency,
            total_due_amount_cents: Some(it.total_due_amount_cents),
            total_paid_amount_cents: Some(it.total_paid_amount_cents),
            customer: Some(it.customer.into()),
        }
    }
}

impl From<PaymentDisputeLostObject> for proto::PaymentDisputeLost {
    fn from(it: PaymentDisputeLostObject) -> Self {
        Self {
            invoice: Some(it.invoice.into()),
            provider_error: it.provider_error,
            amount_cents: it.amount_cents,
            amount_currency: it.amount_currency,
        }
    }
}

impl From<PaymentObject> for proto::EventPayment {
    fn from(it: PaymentObject) -> Self {
        Self {
            lago_id: it.lago_id.to_string(),
            lago_customer_id: it.lago_customer_id.to_string(),
            external_customer_id: it.external_customer_id,
            invoice_ids: it.invoice_ids,
            invoice_numbers: it.invoice_numbers,
            lago_payable_id: it.lago_payable_id,
            payable_type: it.payable_type,
            amount_cents: Some(it.amount_cents),
            amount_currency: it.amount_currency,
            status: it.status,
            payment_status: it.payment_status,
            r#type: it.r#type,
            reference: it.reference,
            payment_provider_code: it.payment_provider_code,
            payment_provider_type: it.payment_provider_type,
            external_payment_id: it.external_payment_id,
            provider_payment_id: it.provider_payment_id,
            provider_customer_id: it.provider_customer_id,
            next_action: it.next_action.map(Into::into),
            created_at: it.created_at,
            payment_method: it.payment_method.map(Into::into),
            pending_reason: it.pending_reason,
            provider_charge_id: it.provider_charge_id,
            requested_amount_cents: it.requested_amount_cents,
            remaining_amount_cents: it.remaining_amount_cents,
        }
    }
}

impl From<NextAction> for proto::NextAction {
    fn from(it: NextAction) -> Self {
        Self { r#type: it.r#type, redirect_to_url: Some(proto::RedirectToUrl { url: it.redirect_to_url.url }) }
    }
}

impl From<PaymentMethodObject> for proto::EventPaymentMethod {
    fn from(it: PaymentMethodObject) -> Self {
        let details = it.details;
        Self {
            lago_id: it.lago_id.to_string(),
            lago_customer_id: it.lago_customer_id.to_string(),
            external_customer_id: it.external_customer_id,
            is_default: Some(it.is_default),
            payment_provider_code: it.payment_provider_code,
            payment_provider_name: it.payment_provider_name,
            payment_provider_type: it.payment_provider_type,
            provider_method_id: it.provider_method_id,
            provider_method_type: it.provider_method_type,
            details: Some(proto::EventPaymentMethodDetails {
                brand: details.brand,
                last4: details.last4,
                exp_month: details.exp_month,
                exp_year: details.exp_year,
                country: details.country,
                bank_code: details.bank_code,
            }),
            created_at: it.created_at,
        }
    }
}

impl From<RefundObject> for proto::EventRefund {
    fn from(it: RefundObject) -> Self {
        Self {
            lago_payment_id: it.lago_payment_id.to_string(),
            lago_invoice_id: it.lago_invoice_id,
            lago_customer_id: it.lago_customer_id.to_string(),
            external_customer_id: it.external_customer_id,
            payment_provider_code: it.payment_provider_code,
            provider_refund_id: it.provider_refund_id.unwrap_or_default(),
            provider_charge_id: it.provider_charge_id,
            amount_cents: it.amount_cents,
            amount_currency: it.amount_currency,
            status: it.status,
            failure_reason: it.failure_reason,
            amount_refunded_cents: Some(it.amount_refunded_cents),
            lago_refund_id: it.lago_refund_id.map(|id| id.to_string()),
            outcome_unknown_at: it.outcome_unknown_at,
        }
    }
}

impl From<DisputeObject> for proto::EventDispute {
    fn from(it: DisputeObject) -> Self {
        Self {
            lago_payment_id: it.lago_payment_id.to_string(),
            lago_invoice_id: it.lago_invoice_id,
            lago_customer_id: it.lago_customer_id.to_string(),
            external_customer_id: it.external_customer_id,
            payment_provider_code: it.payment_provider_code,
            provider_dispute_id: it.provider_dispute_id,
            provider_charge_id: it.provider_charge_id,
            amount_cents: Some(it.amount_cents),
            amount_currency: it.amount_currency,
            status: it.status,
            reason: it.reason,
        }
    }
}

impl From<PaymentProviderObject> for proto::EventPaymentProvider {
    fn from(it: PaymentProviderObject) -> Self {
        Self {
            lago_payment_provider_id: it.lago_payment_provider_id.to_string(),
            payment_provider: it.payment_provider,
            payment_provider_code: it.payment_provider_code,
            payment_provider_name: it.payment_provider_name,
            provider_account_id: it.provider_account_id,
            provider_webhook_endpoint_id: it.provider_webhook_endpoint_id,
        }
    }
}

impl From<ProviderEventObject> for proto::ProviderEvent {
    fn from(it: ProviderEventObject) -> Self {
        Self {
            payment_provider_code: it.payment_provider_code,
            payment_provider: it.payment_provider,
            provider_event_id: it.provider_event_id,
            event_type: it.event_type,
            created_at: it.created_at,
            json: it.json,
        }
    }
}

#[cfg(test)]
mod tests;
