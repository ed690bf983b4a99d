//! Texts that Stripe limits more than billing systems do: e-mail addresses and product names.

use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::create_payment_request::Customer as Payer;
use paybridge::grpc::proto::{CreateCustomerRequest, CreatePaymentRequest, Customer, Money, UpdateCustomerRequest};

use crate::support::errors::violations;
use crate::support::harness::Harness;
use crate::support::wait::until;

/// Stripe's limit for the name of a product, in characters.
const NAME_LENGTH_MAX: usize = 250;

fn email_at_stripe(harness: &Harness, provider_id: &str) -> String {
    let customer = harness.sandbox().object(provider_id).expect("a customer at Stripe");
    customer["email"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stripe_gets_the_first_of_a_list_of_email_addresses() {
    let mut harness = Harness::new("addresses", Options::default()).await;
    let request = |external_id: &str, email: &str| CreateCustomerRequest {
        request_id: format!("customer-{external_id}"),
        external_id: external_id.to_owned(),
        email: email.to_owned(),
        sync_with_provider: true,
        ..CreateCustomerRequest::default()
    };
    for (number, list) in ["a@x.test, b@y.test", " a@x.test ,b@y.test", "a@x.test,"].into_iter().enumerate() {
        let external_id = format!("hooli-{number}");
        let response = harness.billing.api.customers.create_customer(request(&external_id, list)).await;
        let customer = response.unwrap_or_else(|status| panic!("{list:?}: {status}")).into_inner().customer;
        assert_eq!(customer.expect("a customer").email, list.trim(), "the list is kept");
        let created = harness
            .billing
            .wait_for_customer(&external_id, "is created", |it| !it.provider_customer_id.is_empty())
            .await;
        assert_eq!(
            email_at_stripe(&harness, &created.expect("it is created").provider_customer_id),
            "a@x.test",
            "{list:?}"
        );
    }
    let customer = harness.billing.customer("hooli-0").await.expect("a customer");
    let changed = Customer { id: customer.id, email: "c@z.test, a@x.test".to_owned(), ..Customer::default() };
    let update = UpdateCustomerRequest { customer: Some(changed), update_mask: None };
    harness.billing.api.customers.update_customer(update).await.expect("it is changed");
    until("the change is at Stripe", async || {
        (email_at_stripe(&harness, &customer.provider_customer_id) == "c@z.test").then_some(())
    })
    .await;
    for bad in [", a@x.test", "a@x.test, nobody", "a b@x.test", "a@x.test b@y.test"] {
        let response = harness.billing.api.customers.create_customer(request("bad", bad)).await;
        assert_eq!(violations(response), ["email"], "{bad:?}");
    }
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_for_an_invoice_with_a_long_number_shows_as_much_of_it_as_fits() {
    let mut harness = Harness::new("long numbers", Options::default()).await;
    harness.customer_without_method("hooli").await;
    for (invoice, number) in
        [("short", "2026-0001".to_owned()), ("long", "Ä".repeat(245)), ("longest", "Ä".repeat(255))]
    {
        let request = CreatePaymentRequest {
            request_id: format!("pay-{invoice}"),
            invoice_id: invoice.to_owned(),
            invoice_number: number.clone(),
            customer: Some(Payer::ExternalCustomerId("hooli".to_owned())),
            amount: Some(Money { minor_units: 4900, currency_code: "EUR".to_owned() }),
        };
        harness.billing.api.payments.create_payment(request).await.expect("the payment is accepted");
        harness.billing.wait_for_event("invoice.payment_failure", invoice).await.expect("the event is emitted");
        let payment = harness.payment(invoice).await;
        let (session, _) = harness.link(&format!("link-{invoice}"), &payment).await.expect("a link");
        let posted = harness.posts("/v1/checkout/sessions").into_iter().rfind(|post| post.status == Some(200));
        let name = "line_items[0][price_data][product_data][name]";
        let form = posted.expect("a session was created").form;
        let (_, shown) = form.into_iter().find(|(field, _)| field == name).expect("a name");
        assert!(shown.chars().count() <= NAME_LENGTH_MAX, "{session}: {shown}");
        match invoice {
            "short" => assert_eq!(shown, "Invoice 2026-0001"),
            "long" => assert_eq!(shown, number, "the number alone fits"),
            _ => assert_eq!(shown, format!("{}…", "Ä".repeat(NAME_LENGTH_MAX - 1)), "as much as fits"),
        }
    }
    harness.shutdown().await;
}
