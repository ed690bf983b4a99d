//! Payments, and what Stripe shows of them.

use paybridge::dev::scenarios::BillingClient;
use paybridge::grpc::proto::create_payment_request::Customer as Payer;
use paybridge::grpc::proto::{
    CreatePaymentRequest, Integration, Money, Payment, PaymentState, UpdateIntegrationRequest,
};
use tonic::Status;

use crate::support::customers::DECLINING_CARD;
use crate::support::harness::Harness;

/// A request to collect an invoice, under a request id of its own.
pub fn invoice(external_customer_id: &str, invoice_id: &str, minor_units: i64, currency: &str) -> CreatePaymentRequest {
    CreatePaymentRequest {
        request_id: format!("pay-{invoice_id}"),
        invoice_id: invoice_id.to_owned(),
        invoice_number: String::new(),
        customer: Some(Payer::ExternalCustomerId(external_customer_id.to_owned())),
        amount: Some(Money { minor_units, currency_code: currency.to_owned() }),
    }
}

/// Creates a payment.
pub async fn pay(billing: &mut BillingClient, request: CreatePaymentRequest) -> Result<Payment, Status> {
    let response = billing.api.payments.create_payment(request).await?.into_inner();
    Ok(response.payment.expect("a payment"))
}

/// A harness with the customer `hooli`, whose payment of `inv` was declined.
pub async fn declined_payment(name: &str) -> (Harness, Payment) {
    let mut harness = Harness::with_customer(name, DECLINING_CARD).await;
    harness.pay("hooli", "inv").await;
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    (harness, failed)
}

/// Sets `supports_3ds` on the integration: customers can be asked to authenticate.
pub async fn enable_3ds(harness: &mut Harness) {
    let integration = Integration { id: harness.integration.id.clone(), supports_3ds: true, ..Integration::default() };
    let request = UpdateIntegrationRequest { integration: Some(integration), update_mask: None };
    harness.billing.api.integrations.update_integration(request).await.expect("3-D Secure is supported");
}

/// The `status` of an object at Stripe.
pub fn stripe_status(harness: &Harness, id: &str) -> String {
    let object = harness.sandbox().object(id).expect("an object at Stripe");
    object["status"].as_str().unwrap_or_default().to_owned()
}
