//! Texts that Stripe takes in another form than billing systems keep them: lists of e-mail addresses, and names of
//! products.

use paybridge::dev::stage::Options;
use paybridge::grpc::proto::create_payment_request::Customer as Payer;
use paybridge::grpc::proto::{CreateCustomerRequest, CreatePaymentRequest, Customer, Money, UpdateCustomerRequest};

use crate::cashier::{Cashier, until};
use crate::hands::violations;

/// Stripe's limit for the name of a product, in characters.
const NAME_LENGTH_MAX: usize = 250;

fn email_at_stripe(cashier: &Cashier, provider_id: &str) -> String {
    let customer = cashier.sandbox().object(provider_id).expect("a customer at Stripe");
    customer["email"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_list_of_email_addresses_stripe_gets_the_first() {
    let mut cashier = Cashier::new("addresses", Options::default()).await;
    let request = |external_id: &str, email: &str| CreateCustomerRequest {
        external_id: external_id.to_owned(),
        email: email.to_owned(),
        sync_with_provider: true,
        ..CreateCustomerRequest::default()
    };
    for (number, list) in ["a@x.test, b@y.test", " a@x.test ,b@y.test", "a@x.test,"].into_iter().enumerate() {
        let external_id = format!("hooli-{number}");
        let answer = cashier.player.api.customers.create_customer(request(&external_id, list)).await;
        let customer = answer.unwrap_or_else(|status| panic!("{list:?}: {status}")).into_inner().customer;
        assert_eq!(customer.expect("a customer").email, list.trim(), "it is kept as it was given");
        let made =
            cashier.player.customer_when(&external_id, "is made", |it| !it.provider_customer_id.is_empty()).await;
        assert_eq!(email_at_stripe(&cashier, &made.expect("it is made").provider_customer_id), "a@x.test", "{list:?}");
    }
    let customer = cashier.player.customer("hooli-0").await.expect("a customer");
    let changed = Customer { id: customer.id, email: "c@z.test, a@x.test".to_owned(), ..Customer::default() };
    let update = UpdateCustomerRequest { customer: Some(changed), update_mask: None };
    cashier.player.api.customers.update_customer(update).await.expect("it is changed");
    until("the change is at Stripe", || async {
        (email_at_stripe(&cashier, &customer.provider_customer_id) == "c@z.test").then_some(())
    })
    .await;
    for bad in [", a@x.test", "a@x.test, nobody", "a b@x.test", "a@x.test b@y.test"] {
        let answer = cashier.player.api.customers.create_customer(request("bad", bad)).await;
        assert_eq!(violations(answer), ["email"], "{bad:?}");
    }
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_for_an_invoice_with_a_long_number_is_made_and_shows_the_number() {
    let mut cashier = Cashier::new("long numbers", Options::default()).await;
    cashier.bare_customer("hooli").await;
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
        cashier.player.api.payments.create_payment(request).await.expect("the payment is taken");
        cashier.player.told("invoice.payment_failure", invoice).await.expect("there is no method");
        let payment = cashier.payment(invoice).await;
        let (session, _) = cashier.link(&format!("link-{invoice}"), &payment).await.expect("a page is made");
        let posted = cashier.posts("/v1/checkout/sessions").into_iter().rfind(|post| post.status == Some(200));
        let name = "line_items[0][price_data][product_data][name]";
        let form = posted.expect("the page was made").form;
        let (_, shown) = form.into_iter().find(|(field, _)| field == name).expect("a name");
        assert!(shown.chars().count() <= NAME_LENGTH_MAX, "{session}: {shown}");
        match invoice {
            "short" => assert_eq!(shown, "Invoice 2026-0001"),
            "long" => assert_eq!(shown, number, "the number alone fits"),
            _ => assert_eq!(shown, format!("{}…", "Ä".repeat(NAME_LENGTH_MAX - 1)), "as much as fits"),
        }
    }
    cashier.end().await;
}
