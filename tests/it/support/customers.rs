//! Customers and their payment methods.

use paybridge::dev::scenarios::{BillingClient, ScenarioContext};
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{
    CreateCheckoutUrlRequest, CreateCustomerRequest, Customer, Payment, PaymentMethodKind, PaymentState,
    create_checkout_url_request,
};
use serde_json::Value;
use time::Duration;

use crate::support::harness::{Harness, post_to_stripe};
use crate::support::next_request_id;
use crate::support::wait::{until, until_ok};

/// A card that can be stored, and whose every charge is declined.
pub const DECLINING_CARD: &str = "4000000000000341";
/// A card whose every charge needs 3-D Secure.
pub const CHALLENGE_CARD: &str = "4000002760003184";
pub const GOOD_CARD: &str = "4242424242424242";
pub const GOOD_IBAN: &str = "DE89370400440532013000";
/// An IBAN whose debits the bank returns.
pub const BAD_IBAN: &str = "DE62370400440532013001";

/// A request to create a customer, at Stripe too.
pub fn synced_customer(external_id: &str, kinds: &[PaymentMethodKind]) -> CreateCustomerRequest {
    CreateCustomerRequest {
        request_id: format!("customer-{external_id}"),
        external_id: external_id.to_owned(),
        name: "Hooli".to_owned(),
        email: "billing@hooli.test".to_owned(),
        sync_with_provider: true,
        provider_payment_methods: kinds.iter().map(|kind| i32::from(*kind)).collect(),
        ..CreateCustomerRequest::default()
    }
}

/// A customer without a Stripe customer.
pub async fn local_customer(billing: &mut BillingClient, external_id: &str) -> Customer {
    let request = CreateCustomerRequest {
        request_id: format!("local-{external_id}"),
        external_id: external_id.to_owned(),
        ..CreateCustomerRequest::default()
    };
    billing.api.customers.create_customer(request).await.expect("a customer").into_inner().customer.expect("a customer")
}

/// A customer who has stored a method on its Checkout page.
pub async fn customer_with_method(
    context: &ScenarioContext,
    billing: &mut BillingClient,
    external_id: &str,
    method: &str,
) -> Customer {
    let request = synced_customer(external_id, &[]);
    billing.api.customers.create_customer(request).await.expect("a customer");
    let link = billing
        .wait_for("a Checkout link", |event| match &event.object {
            Some(Object::PaymentProviderCustomerCheckoutUrl(link)) if link.external_customer_id == external_id => {
                Some(link.checkout_url.clone())
            }
            _ => None,
        })
        .await
        .expect("an event with the link");
    let session = link.rsplit('/').next().expect("a session id");
    context.environment.sandbox.complete_session(session, method, true).expect("the page is completed");
    billing
        .wait_for_customer(external_id, "has a default method", |customer| {
            !customer.default_payment_method_id.is_empty()
        })
        .await
        .expect("the method becomes the default")
}

/// Links an existing Stripe customer, and waits until its methods are imported.
pub async fn import_customer(harness: &mut Harness, external_id: &str, provider_customer_id: &str) {
    let request = CreateCustomerRequest {
        request_id: format!("customer-{external_id}"),
        external_id: external_id.to_owned(),
        provider_customer_id: provider_customer_id.to_owned(),
        provider_payment_methods: vec![PaymentMethodKind::Card.into(), PaymentMethodKind::SepaDebit.into()],
        ..CreateCustomerRequest::default()
    };
    // Earlier events about the customer are ignored before it is linked: only the import counts.
    until("all webhooks are received", async || harness.sandbox().deliveries().is_empty().then_some(())).await;
    harness.advance(Duration::minutes(3));
    harness.all_delivered().await;
    harness.billing.api.customers.create_customer(request).await.expect("the customer is accepted");
    harness.drain_jobs(&["sync_customer", "import_payment_methods", "push_default_method"]).await;
}

/// Creates a customer at Stripe only, and returns its id.
pub async fn stripe_customer(harness: &Harness, body: &str) -> String {
    object_id(&post_to_stripe(harness, "/v1/customers", body).await)
}

/// Attaches a method at Stripe as the merchant's own code does, later than any before, and returns its id.
pub async fn attach_method(harness: &Harness, provider_id: &str, method: &str) -> String {
    harness.advance(Duration::seconds(2));
    let body = format!("customer={provider_id}");
    object_id(&post_to_stripe(harness, &format!("/v1/payment_methods/{method}/attach"), &body).await)
}

/// The Stripe id of the customer's default method; empty if there is none.
pub async fn default_method(harness: &mut Harness, external_id: &str) -> String {
    let methods = harness.methods(external_id).await;
    let default = methods.into_iter().find(|method| method.is_default);
    default.map(|method| method.provider_payment_method_id).unwrap_or_default()
}

/// Waits until the customer's default is the method with this Stripe id; empty for none.
pub async fn until_default_is(harness: &mut Harness, external_id: &str, wanted: &str) {
    until_ok(&format!("the default is {wanted:?}"), async || {
        let default = default_method(harness, external_id).await;
        if default == wanted { Ok(()) } else { Err(format!("it is {default:?}")) }
    })
    .await;
}

/// The default method that Stripe shows, in Stripe's order; empty if there is none.
pub fn stripe_default(harness: &Harness, provider_id: &str) -> String {
    let customer = harness.sandbox().object(provider_id).expect("a customer");
    let method = customer["invoice_settings"]["default_payment_method"].as_str();
    method.or_else(|| customer["default_source"].as_str()).unwrap_or_default().to_owned()
}

/// The number of logged events of a type about a payment method.
pub async fn method_event_count(harness: &Harness, webhook_type: &str, method: &str) -> usize {
    let is_about =
        |object: &Option<Object>| matches!(object, Some(Object::PaymentMethod(it)) if it.provider_method_id == method);
    let events = harness.events().await;
    events.iter().filter(|event| event.webhook_type == webhook_type && is_about(&event.object)).count()
}

/// The methods that an invoice was charged to, a charge each.
pub fn charged_methods(harness: &Harness, invoice: &str) -> Vec<String> {
    let charges = harness.charges(invoice);
    let objects = charges.iter().filter_map(|charge| harness.sandbox().object(&charge.charge));
    objects.map(|charge| charge["payment_method"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Waits until an invoice's payment has failed, and returns it with the failure's code.
pub async fn failed_payment(harness: &mut Harness, invoice: &str) -> (Payment, String) {
    let payment = harness.payment_in(invoice, PaymentState::Failed).await;
    let code = payment.failure.as_ref().map(|failure| failure.code.clone()).unwrap_or_default();
    (payment, code)
}

/// The id of an object of Stripe's.
pub fn object_id(object: &Value) -> String {
    object["id"].as_str().expect("an id").to_owned()
}

/// A request for a link to store a method, another one each time.
pub fn checkout_request(external_id: &str) -> CreateCheckoutUrlRequest {
    CreateCheckoutUrlRequest {
        request_id: next_request_id(),
        customer: Some(create_checkout_url_request::Customer::ExternalCustomerId(external_id.to_owned())),
        ..CreateCheckoutUrlRequest::default()
    }
}

/// Creates a link for `hooli` to store a method, and returns the id of its session.
pub async fn checkout_session(harness: &mut Harness) -> String {
    let request = checkout_request("hooli");
    let response = harness.billing.api.customers.create_checkout_url(request).await.expect("a link").into_inner();
    response.checkout_url.rsplit('/').next().expect("a session").to_owned()
}

/// `Some` if `hooli` has a default method, to poll for.
pub async fn has_default(harness: &mut Harness) -> Option<()> {
    let customer = harness.billing.customer("hooli").await.expect("a customer");
    (!customer.default_payment_method_id.is_empty()).then_some(())
}
