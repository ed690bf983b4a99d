//! Prints what happens in a scenario.

use crate::grpc::proto::Event;
use crate::grpc::proto::event::Object;

/// Prints what happens. Disabled in tests.
#[derive(Clone, Copy, Debug)]
pub struct Reporter {
    /// Whether anything is printed.
    pub is_enabled: bool,
}

impl Reporter {
    /// Prints a line about the current step.
    pub fn print(self, text: impl std::fmt::Display) {
        if self.is_enabled {
            println!("   {text}");
        }
    }

    pub(super) fn event(self, event: &Event) {
        if self.is_enabled {
            println!("   ◂ {:>4}  {}  {}", event.position, event.webhook_type, summary(event));
        }
    }
}

/// Describes an event in a few words.
fn summary(event: &Event) -> String {
    match &event.object {
        Some(Object::Payment(payment)) => format!(
            "{} {} {} ({})",
            payment.lago_payable_id,
            payment.amount_cents.unwrap_or_default(),
            payment.amount_currency,
            payment.status
        ),
        Some(Object::Invoice(invoice)) => format!("{} {}", invoice.lago_id, invoice.payment_status),
        Some(Object::PaymentProviderInvoicePaymentError(failure)) => {
            let code = failure.provider_error.as_ref().map(|error| error.error_code.clone()).unwrap_or_default();
            format!("{} {code} {}", failure.lago_invoice_id, failure.decline_code.as_deref().unwrap_or_default())
        }
        Some(Object::Customer(customer)) => customer.external_id.clone(),
        Some(Object::PaymentProviderCustomerCheckoutUrl(link)) => {
            format!("{} {}", link.external_customer_id, link.checkout_url)
        }
        Some(Object::PaymentProviderCustomerError(failure)) => {
            failure.provider_error.as_ref().map(|error| error.message.clone()).unwrap_or_default()
        }
        Some(Object::PaymentMethod(method)) => {
            format!("{} {}", method.external_customer_id, method.provider_method_id)
        }
        Some(Object::Refund(refund)) => {
            let amount = refund.amount_cents.unwrap_or_default();
            format!("{} {amount} {} ({})", refund.lago_invoice_id, refund.amount_currency, refund.status)
        }
        Some(Object::Dispute(dispute)) => format!("{} ({})", dispute.lago_invoice_id, dispute.status),
        Some(Object::PaymentDisputeLost(lost)) => {
            lost.invoice.as_ref().map(|invoice| invoice.lago_id.clone()).unwrap_or_default()
        }
        Some(Object::PaymentProvider(provider)) => provider.payment_provider_code.clone(),
        Some(Object::ProviderEvent(event)) => event.event_type.clone(),
        _ => String::new(),
    }
}
