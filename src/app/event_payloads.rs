//! Builds the payloads of events. Which events a change emits is decided here only, whatever caused the change.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::domain::checkout_sessions::CheckoutSession;
use crate::domain::customers::Customer;
use crate::domain::deliveries::Delivery;
use crate::domain::events::{
    BillingConfiguration, CheckoutUrlObject, CustomerErrorObject, CustomerObject, DisputeObject, ErrorDetails,
    EventType, InvoiceObject, InvoicePaymentErrorObject, NewEvent, NextAction, Payload, PaymentDisputeLostObject,
    PaymentMethodObject, PaymentObject, PaymentProviderObject, ProviderError, ProviderErrorObject,
    ProviderErrorWithCode, ProviderEventObject, RedirectToUrl, RefundObject,
};
use crate::domain::integrations::Integration;
use crate::domain::payment_methods::PaymentMethod;
use crate::domain::payments::{Failure, Notice, Payment, PaymentState, ReceivedMoney, Transition};
use crate::domain::refunds::Refund;
use crate::domain::signals::DisputeSnapshot;
use crate::stripe::Operation;

/// The provider's name in Lago's payloads.
const STRIPE: &str = "stripe";

/// The `payment_provider_type` of Lago's payments: a class name of Lago's.
const STRIPE_CLASS: &str = "PaymentProviders::StripeProvider";

fn at(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

/// A payment and the related objects that its events contain.
pub(super) struct PaymentView<'a> {
    pub payment: &'a Payment,
    pub customer: &'a Customer,
    pub integration: &'a Integration,
    /// The method that was charged, if any.
    pub method: Option<&'a PaymentMethod>,
}

/// The events of a payment's transition: the payment's own, the invoice's if Lago's `payment_status` changes, and one
/// per notice.
pub(super) fn payment_changed(view: &PaymentView<'_>, transition: &Transition) -> Vec<NewEvent> {
    let mut events = if transition.is_reportable() { state_changed(view, transition) } else { Vec::new() };
    events.extend(transition.notices.iter().map(|notice| notice_event(view, notice)));
    events
}

/// The event of a notice, which reports more than the payment's state.
pub(super) fn notice_event(view: &PaymentView<'_>, notice: &Notice) -> NewEvent {
    let (webhook_type, object) = match notice {
        Notice::CancellationRefused => (EventType::PaymentCancellationRefused, payment_object(view)),
        Notice::AmountChangeRefused { minor_units } => (
            EventType::PaymentAmountChangeRefused,
            PaymentObject { requested_amount_cents: Some(*minor_units), ..payment_object(view) },
        ),
        Notice::Overpaid(receipt) => (EventType::PaymentOverpaid, received(view, receipt)),
        Notice::Underpaid { receipt, remaining } => (
            EventType::PaymentUnderpaid,
            PaymentObject { remaining_amount_cents: Some(*remaining), ..received(view, receipt) },
        ),
        Notice::AmountMismatch(receipt) => (EventType::PaymentAmountMismatch, received(view, receipt)),
    };
    NewEvent::new(webhook_type, Payload::Payment(object))
}

/// An event with the payment's present state.
pub(super) fn payment(webhook_type: EventType, view: &PaymentView<'_>) -> NewEvent {
    NewEvent::new(webhook_type, Payload::Payment(payment_object(view)))
}

fn state_changed(view: &PaymentView<'_>, transition: &Transition) -> Vec<NewEvent> {
    let webhook_type = match transition.to {
        PaymentState::Pending => EventType::PaymentPending,
        PaymentState::Processing => EventType::PaymentProcessing,
        PaymentState::RequiresAction => EventType::PaymentRequiresAction,
        PaymentState::Succeeded => EventType::PaymentSucceeded,
        PaymentState::Canceled => EventType::PaymentCanceled,
        PaymentState::Failed => EventType::InvoicePaymentFailure,
    };
    let payload = match view.payment.failure() {
        Some(failure) => Payload::PaymentProviderInvoicePaymentError(invoice_payment_error(view, failure)),
        None => Payload::Payment(payment_object(view)),
    };
    let mut events = Vec::new();
    if !transition.skips_failure_event {
        events.push(NewEvent::new(webhook_type, payload));
    }
    if transition.from.payment_status() != transition.to.payment_status() {
        events.push(NewEvent::new(EventType::InvoicePaymentStatusUpdated, Payload::Invoice(invoice_object(view))));
    }
    events
}

/// The payment, with the amount, intent and charge of a receipt.
fn received(view: &PaymentView<'_>, receipt: &ReceivedMoney) -> PaymentObject {
    PaymentObject {
        provider_payment_id: Some(receipt.provider_payment_intent_id.clone()),
        external_payment_id: Some(receipt.provider_payment_intent_id.clone()),
        provider_charge_id: receipt.provider_charge_id.clone(),
        amount_cents: receipt.amount.minor_units,
        amount_currency: receipt.amount.currency.to_string(),
        ..payment_object(view)
    }
}

/// A refund was created, was refused, or has changed.
pub(super) fn refund_updated(view: &PaymentView<'_>, refund: &Refund) -> NewEvent {
    let object = RefundObject {
        lago_payment_id: view.payment.id.0,
        lago_invoice_id: view.payment.invoice_id.clone(),
        lago_customer_id: view.customer.id.0,
        external_customer_id: view.customer.external_id.clone(),
        payment_provider_code: view.integration.code.clone(),
        lago_refund_id: Some(refund.id.0),
        provider_refund_id: refund.provider_refund_id.clone(),
        provider_charge_id: refund.provider_charge_id.clone(),
        amount_cents: refund.amount,
        amount_currency: refund.currency.to_string(),
        status: refund.status.clone(),
        failure_reason: refund.failure_reason.clone(),
        outcome_unknown_at: refund.unknown_since.map(at),
        amount_refunded_cents: view.payment.amount_refunded,
    };
    NewEvent::new(EventType::PaymentRefundUpdated, Payload::Refund(object))
}

/// A dispute was opened or has changed. The first time that it is lost, also the event that reports the loss.
pub(super) fn dispute_updated(view: &PaymentView<'_>, dispute: &DisputeSnapshot, status_before: &str) -> Vec<NewEvent> {
    let object = DisputeObject {
        lago_payment_id: view.payment.id.0,
        lago_invoice_id: view.payment.invoice_id.clone(),
        lago_customer_id: view.customer.id.0,
        external_customer_id: view.customer.external_id.clone(),
        payment_provider_code: view.integration.code.clone(),
        provider_dispute_id: dispute.id.clone(),
        provider_charge_id: dispute.provider_charge_id.clone(),
        amount_cents: dispute.amount.minor_units,
        amount_currency: dispute.amount.currency.to_string(),
        status: dispute.status.clone(),
        reason: dispute.reason.clone(),
    };
    let mut events = vec![NewEvent::new(EventType::PaymentDisputeUpdated, Payload::Dispute(object))];
    if dispute.status == "lost" && status_before != "lost" {
        let object = PaymentDisputeLostObject {
            invoice: invoice_object(view),
            provider_error: dispute.reason.clone(),
            amount_cents: Some(dispute.amount.minor_units),
            amount_currency: Some(dispute.amount.currency.to_string()),
        };
        events.push(NewEvent::new(EventType::InvoicePaymentDisputeLost, Payload::PaymentDisputeLost(object)));
    }
    events
}

/// The customer was linked to a Stripe customer: a created one (`customer.payment_provider_created`) or an existing one
/// (`customer.payment_provider_linked`).
pub(super) fn customer_created(webhook_type: EventType, customer: &Customer, integration: &Integration) -> NewEvent {
    NewEvent::new(webhook_type, Payload::Customer(customer_object(customer, integration, None)))
}

/// The Stripe customer was deleted.
pub(super) fn customer_deleted(customer: &Customer, integration: &Integration) -> NewEvent {
    let payload = Payload::Customer(customer_object(customer, integration, None));
    NewEvent::new(EventType::CustomerPaymentProviderDeleted, payload)
}

/// Stripe refused to create or link the customer, or to create a link for it.
pub(super) fn customer_error(customer: &Customer, integration: &Integration, message: &str, code: &str) -> NewEvent {
    let object = CustomerErrorObject {
        lago_customer_id: customer.id.0,
        external_customer_id: customer.external_id.clone(),
        payment_provider: STRIPE.to_owned(),
        payment_provider_code: integration.code.clone(),
        provider_error: ProviderError { message: message.to_owned(), error_code: code.to_owned() },
    };
    NewEvent::new(EventType::CustomerPaymentProviderError, Payload::PaymentProviderCustomerError(object))
}

/// A link was created, or (`customer.checkout_url_expired`) has expired unused.
pub(super) fn checkout_url(
    webhook_type: EventType,
    customer: &Customer,
    integration: &Integration,
    session: &CheckoutSession,
) -> NewEvent {
    let object = CheckoutUrlObject {
        lago_customer_id: customer.id.0,
        external_customer_id: customer.external_id.clone(),
        payment_provider: STRIPE.to_owned(),
        payment_provider_code: integration.code.clone(),
        checkout_url: session.url.clone().unwrap_or_default(),
    };
    NewEvent::new(webhook_type, Payload::PaymentProviderCustomerCheckoutUrl(object))
}

/// A method changed: `payment_method.created`, `….detached`, `….set_as_default` and others.
pub(super) fn method(
    webhook_type: EventType,
    method: &PaymentMethod,
    customer: &Customer,
    integration: &Integration,
) -> NewEvent {
    NewEvent::new(webhook_type, Payload::PaymentMethod(method_object(method, customer, integration)))
}

/// Stripe rejects the key, the key lacks a permission, or a webhook endpoint cannot be repaired.
pub(super) fn provider_error(integration: &Integration, operation: Operation, message: &str, code: &str) -> NewEvent {
    let object = ProviderErrorObject {
        lago_payment_provider_id: integration.id.0,
        payment_provider_code: integration.code.clone(),
        payment_provider_name: integration.name.clone(),
        source: STRIPE.to_owned(),
        action: operation.as_str().to_owned(),
        provider_error: ProviderErrorWithCode { message: message.to_owned(), code: code.to_owned() },
    };
    NewEvent::new(EventType::PaymentProviderError, Payload::PaymentProviderError(object))
}

/// `payment_provider.connected`, `….recovered`, `….disconnected`, `….catch_up_started` and `….catch_up_finished`.
pub(super) fn provider(webhook_type: EventType, integration: &Integration) -> NewEvent {
    let object = PaymentProviderObject {
        lago_payment_provider_id: integration.id.0,
        payment_provider: STRIPE.to_owned(),
        payment_provider_code: integration.code.clone(),
        payment_provider_name: integration.name.clone(),
        provider_account_id: integration.provider_account_id.clone(),
        provider_webhook_endpoint_id: integration.provider_endpoint_id.clone(),
    };
    NewEvent::new(webhook_type, Payload::PaymentProvider(object))
}

/// One of Stripe's own events, relayed.
pub(super) fn relayed(delivery: &Delivery, integration: &Integration) -> NewEvent {
    let object = ProviderEventObject {
        payment_provider_code: integration.code.clone(),
        payment_provider: STRIPE.to_owned(),
        provider_event_id: delivery.provider_event_id.clone(),
        event_type: delivery.event_type.clone(),
        created_at: at(delivery.created),
        json: delivery.body.clone(),
    };
    NewEvent::new(EventType::ProviderEvent, Payload::ProviderEvent(object))
}

fn customer_object(customer: &Customer, integration: &Integration, method: Option<&PaymentMethod>) -> CustomerObject {
    CustomerObject {
        lago_id: customer.id.0,
        external_id: customer.external_id.clone(),
        name: customer.name.clone(),
        email: customer.email.clone(),
        phone: customer.phone.clone(),
        created_at: at(customer.create_time),
        billing_configuration: BillingConfiguration {
            payment_provider: STRIPE.to_owned(),
            payment_provider_code: integration.code.clone(),
            provider_customer_id: customer.provider_customer_id.clone(),
            provider_payment_methods: customer
                .provider_payment_methods
                .iter()
                .map(|kind| kind.as_str().to_owned())
                .collect(),
            sync_with_provider: customer.sync_with_provider,
            payment_method_id: method.map(|method| method.provider_payment_method_id.clone()),
        },
    }
}

fn method_object(method: &PaymentMethod, customer: &Customer, integration: &Integration) -> PaymentMethodObject {
    PaymentMethodObject {
        lago_id: method.id.0,
        lago_customer_id: customer.id.0,
        external_customer_id: customer.external_id.clone(),
        is_default: customer.default_payment_method_id == Some(method.id),
        payment_provider_code: integration.code.clone(),
        payment_provider_name: integration.name.clone(),
        payment_provider_type: STRIPE.to_owned(),
        provider_method_id: method.provider_payment_method_id.clone(),
        provider_method_type: method.kind.clone(),
        details: method.details.clone(),
        created_at: at(method.create_time),
    }
}

fn invoice_object(view: &PaymentView<'_>) -> InvoiceObject {
    let payment = view.payment;
    let is_paid = payment.state() == PaymentState::Succeeded;
    let paid = match payment.manual() {
        _ if !is_paid => 0,
        Some(_) => payment.amount_received.max(payment.amount.minor_units),
        None => payment.amount_received.max(0),
    };
    InvoiceObject {
        lago_id: payment.invoice_id.clone(),
        number: payment.invoice_number.clone(),
        payment_status: payment.state().payment_status().to_owned(),
        currency: payment.amount.currency.to_string(),
        total_due_amount_cents: if is_paid { 0 } else { payment.amount.minor_units },
        total_paid_amount_cents: paid,
        customer: customer_object(view.customer, view.integration, view.method),
    }
}

pub(super) fn payment_object(view: &PaymentView<'_>) -> PaymentObject {
    let payment = view.payment;
    let next_action = payment
        .next_action_url()
        .map(str::to_owned)
        .map(|url| NextAction { r#type: "redirect_to_url".to_owned(), redirect_to_url: RedirectToUrl { url } });
    PaymentObject {
        lago_id: payment.id.0,
        lago_customer_id: view.customer.id.0,
        external_customer_id: view.customer.external_id.clone(),
        invoice_ids: vec![payment.invoice_id.clone()],
        invoice_numbers: Some(&payment.invoice_number)
            .filter(|number| !number.is_empty())
            .cloned()
            .into_iter()
            .collect(),
        lago_payable_id: payment.invoice_id.clone(),
        payable_type: "Invoice".to_owned(),
        amount_cents: payment.amount.minor_units,
        amount_currency: payment.amount.currency.to_string(),
        status: payment.state().as_str().to_owned(),
        payment_status: payment.state().payment_status().to_owned(),
        r#type: if payment.manual().is_some() { "manual" } else { "provider" }.to_owned(),
        reference: payment.manual().map(|manual| manual.reference.clone()),
        payment_provider_code: view.integration.code.clone(),
        payment_provider_type: STRIPE_CLASS.to_owned(),
        external_payment_id: payment.provider_payment_intent_id.clone(),
        provider_payment_id: payment.provider_payment_intent_id.clone(),
        provider_customer_id: view.customer.provider_customer_id.clone(),
        next_action,
        created_at: at(payment.create_time),
        payment_method: view.method.map(|method| method_object(method, view.customer, view.integration)),
        pending_reason: payment.pending_reason().map(|reason| reason.as_str().to_owned()),
        provider_charge_id: payment.provider_charge_id().map(str::to_owned),
        requested_amount_cents: None,
        remaining_amount_cents: None,
    }
}

fn invoice_payment_error(view: &PaymentView<'_>, failure: &Failure) -> InvoicePaymentErrorObject {
    InvoicePaymentErrorObject {
        lago_invoice_id: view.payment.invoice_id.clone(),
        lago_customer_id: view.customer.id.0,
        external_customer_id: view.customer.external_id.clone(),
        provider_customer_id: view.customer.provider_customer_id.clone(),
        payment_provider: STRIPE.to_owned(),
        payment_provider_code: view.integration.code.clone(),
        provider_error: ProviderError { message: failure.message.clone(), error_code: failure.code.clone() },
        error_details: ErrorDetails {
            code: failure.code.clone(),
            message: failure.message.clone(),
            request_id: failure.provider_request_id.clone(),
            http_status: failure.http_status,
        },
        decline_code: failure.decline_code.clone(),
        advice_code: failure.advice_code.clone(),
        lago_payment_id: view.payment.id.0,
    }
}
