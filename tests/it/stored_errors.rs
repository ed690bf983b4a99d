//! Stripe stores a 500 under its idempotency key, and replays it for a day. A request that moves no money is sent again
//! under another key, so that no link, default or detachment waits for a day (P2: a replayed 500 says nothing about the
//! work).

use paybridge::dev::sandbox::{Action, Effect};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{DeletePaymentMethodRequest, SetDefaultPaymentMethodRequest};

use crate::support::harness::Harness;
use crate::support::wait::until;

const NOT_DONE: Action = Action::ServerError { work: Effect::NotDone };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_stored_500_does_not_delay_a_link() {
    let mut harness = Harness::new("stored 500 of a link", Options::default()).await;
    harness.fault("/v1/checkout/sessions", 1, NOT_DONE);
    harness.customer_without_method("hooli").await;
    let link = harness.billing.wait_for("customer.checkout_url_generated", |event| match &event.object {
        Some(Object::PaymentProviderCustomerCheckoutUrl(link)) => Some(link.checkout_url.clone()),
        _ => None,
    });
    let link = link.await.expect("the link is emitted");
    let session = link.rsplit('/').next().expect("a session").to_owned();
    harness.sandbox().complete_session(&session, "4242424242424242", true).expect("the session exists");
    let keys: Vec<_> = harness.posts("/sessions").into_iter().map(|post| post.idempotency_key).collect();
    assert_ne!(keys.first(), keys.last(), "the key that replays the error is abandoned: {keys:?}");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_stored_500_delays_neither_a_default_nor_a_detachment() {
    let mut harness = Harness::new("stored 500 of a method", Options::default()).await;
    let customer = harness.customer("hooli", "pm_card_visa").await;
    let first = harness.methods("hooli").await.remove(0);
    harness.add_method("hooli", &customer, "pm_card_mastercard").await;
    harness.all_delivered().await;

    harness.fault("/v1/customers/*", 1, NOT_DONE);
    let request = SetDefaultPaymentMethodRequest { id: first.id.clone() };
    harness.billing.api.customers.set_default_payment_method(request).await.expect("it is accepted");
    until("the default is set at Stripe", async || {
        let object = harness.sandbox().object(&customer).expect("a customer");
        let default = &object["invoice_settings"]["default_payment_method"];
        (*default == first.provider_payment_method_id.as_str()).then_some(())
    })
    .await;

    harness.fault("/v1/payment_methods/*/detach", 1, NOT_DONE);
    let request = DeletePaymentMethodRequest { id: first.id.clone() };
    harness.billing.api.customers.delete_payment_method(request).await.expect("it is accepted");
    until("the method is detached at Stripe", async || {
        let object = harness.sandbox().object(&first.provider_payment_method_id).expect("a method");
        object["customer"].is_null().then_some(())
    })
    .await;
    harness.shutdown().await;
}
