//! A 500 of Stripe's is stored under its key, and replayed for a day: whatever else than a payment meets one goes again
//! under another key, so that no link, no default and no detaching waits for a day (P2: that key says nothing any more).

use paybridge::dev::sandbox::{Action, Effect};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{DeletePaymentMethodRequest, SetDefaultPaymentMethodRequest};

use crate::cashier::{Cashier, until};

const NOT_DONE: Action = Action::ServerError { work: Effect::NotDone };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_stored_500_holds_no_link_up() {
    let mut cashier = Cashier::new("stored 500 of a link", Options::default()).await;
    cashier.fault("/v1/checkout/sessions", 1, NOT_DONE);
    cashier.bare_customer("hooli").await;
    let link = cashier.player.event("customer.checkout_url_generated", |event| match &event.object {
        Some(Object::PaymentProviderCustomerCheckoutUrl(link)) => Some(link.checkout_url.clone()),
        _ => None,
    });
    let link = link.await.expect("the link is told all the same");
    let session = link.rsplit('/').next().expect("a session").to_owned();
    cashier.sandbox().complete_session(&session, "4242424242424242", true).expect("it leads somewhere");
    let keys: Vec<_> = cashier.posts("/sessions").into_iter().map(|post| post.idempotency_key).collect();
    assert_ne!(keys.first(), keys.last(), "a key that only replays an error is left: {keys:?}");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_stored_500_holds_neither_a_default_nor_a_detaching_up() {
    let mut cashier = Cashier::new("stored 500 of a method", Options::default()).await;
    let customer = cashier.customer("hooli", "pm_card_visa").await;
    let first = cashier.methods("hooli").await.remove(0);
    cashier.add_method("hooli", &customer, "pm_card_mastercard").await;
    cashier.all_delivered().await;

    cashier.fault("/v1/customers/*", 1, NOT_DONE);
    let ask = SetDefaultPaymentMethodRequest { id: first.id.clone() };
    cashier.player.api.customers.set_default_payment_method(ask).await.expect("it is taken");
    until("the default is pushed all the same", || async {
        let there = cashier.sandbox().object(&customer).expect("a customer");
        let default = &there["invoice_settings"]["default_payment_method"];
        (*default == first.provider_payment_method_id.as_str()).then_some(())
    })
    .await;

    cashier.fault("/v1/payment_methods/*/detach", 1, NOT_DONE);
    let ask = DeletePaymentMethodRequest { id: first.id.clone() };
    cashier.player.api.customers.delete_payment_method(ask).await.expect("it is taken");
    until("the method is detached all the same", || async {
        let there = cashier.sandbox().object(&first.provider_payment_method_id).expect("a method");
        there["customer"].is_null().then_some(())
    })
    .await;
    cashier.end().await;
}
