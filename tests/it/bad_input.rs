//! What callers may send wrong, and the answer to it, row by row: each says what is wrong, and writes nothing.

use paybridge::dev::stage::Options;
use paybridge::dev::story::Player;
use paybridge::grpc::proto::create_payment_request::Customer as Payer;
use paybridge::grpc::proto::{
    Address, CancelPaymentRequest, CreateCheckoutUrlRequest, CreateCustomerRequest, CreateIntegrationRequest,
    CreatePaymentRequest, Customer, DeleteCustomerRequest, GetCustomerRequest, GetPaymentRequest, Integration,
    ListPaymentsRequest, Money, PaymentMethodKind, PaymentState, RetryPaymentRequest, RotateIntegrationKeyRequest,
    StreamEventsRequest, UpdateCustomerRequest, UpdateIntegrationRequest,
};
use tonic::Code;

use crate::hands::{census, invoice, pay, plain_customer, ready_customer, refused, synced, violations};
use crate::support::scenery;

fn bad_customer() -> CreateCustomerRequest {
    CreateCustomerRequest {
        request_id: "a b".to_owned(),
        email: "nobody".to_owned(),
        phone: "1".repeat(21),
        address: Some(Address { country: "Germany".to_owned(), ..Address::default() }),
        provider_customer_id: "pm_1".to_owned(),
        provider_payment_methods: vec![99],
        sync_with_provider: true,
        ..CreateCustomerRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_are_told_every_violation_and_write_nothing() {
    let scenery = scenery(Options::default()).await;
    let mut player = Player::enter(&scenery, "malformed").await.unwrap();
    let before = census(&scenery.stage).await;
    let api = &mut player.api;

    let connect = CreateIntegrationRequest { code: "a b".to_owned(), ..CreateIntegrationRequest::default() };
    assert_eq!(violations(api.integrations.create_integration(connect).await), ["code", "name", "secret_key"]);
    let changed = Integration { success_redirect_url: "/done".to_owned(), ..Integration::default() };
    let update = UpdateIntegrationRequest { integration: Some(changed), update_mask: None };
    let objected = violations(api.integrations.update_integration(update).await);
    assert_eq!(objected, ["integration.id", "integration.success_redirect_url"]);
    let rotate = RotateIntegrationKeyRequest { id: "x".to_owned(), secret_key: "with space".to_owned() };
    assert_eq!(violations(api.integrations.rotate_integration_key(rotate).await), ["id", "secret_key"]);

    let objected = violations(api.customers.create_customer(bad_customer()).await);
    let every = [
        "request_id",
        "external_id",
        "email",
        "phone",
        "address.country",
        "provider_customer_id",
        "provider_payment_methods[0]",
        "sync_with_provider",
    ];
    assert_eq!(objected, every);
    assert_eq!(violations(api.customers.get_customer(GetCustomerRequest { customer: None }).await), ["customer"]);
    let changed = Customer { etag: "x".to_owned(), email: "nobody".to_owned(), ..Customer::default() };
    let update = UpdateCustomerRequest { customer: Some(changed), update_mask: None };
    let objected = violations(api.customers.update_customer(update).await);
    assert_eq!(objected, ["customer.id", "customer.etag", "customer.email"]);
    assert_eq!(violations(api.customers.delete_customer(DeleteCustomerRequest { id: "x".to_owned() }).await), ["id"]);
    let link = CreateCheckoutUrlRequest { success_url: "ftp://x".to_owned(), ..CreateCheckoutUrlRequest::default() };
    assert_eq!(violations(api.customers.create_checkout_url(link).await), ["customer_id", "success_url"]);

    let objected = violations(api.payments.create_payment(CreatePaymentRequest::default()).await);
    assert_eq!(objected, ["request_id", "invoice_id", "customer", "amount"]);
    let negative = invoice("", "", -1, "eur");
    let objected = violations(api.payments.create_payment(negative).await);
    let every = ["invoice_id", "external_customer_id", "amount.currency_code", "amount.minor_units"];
    assert_eq!(objected, every);
    assert_eq!(violations(api.payments.get_payment(GetPaymentRequest { payment: None }).await), ["payment"]);
    let list = ListPaymentsRequest { customer_id: "x".to_owned(), states: vec![99], ..ListPaymentsRequest::default() };
    assert_eq!(violations(api.payments.list_payments(list).await), ["customer_id", "states[0]"]);
    let retry = RetryPaymentRequest { payment_method_id: "x".to_owned(), ..RetryPaymentRequest::default() };
    assert_eq!(violations(api.payments.retry_payment(retry).await), ["id", "request_id", "payment_method_id"]);
    assert_eq!(violations(api.payments.cancel_payment(CancelPaymentRequest { id: String::new() }).await), ["id"]);
    let follow = StreamEventsRequest { start: None, webhook_types: vec![String::new()] };
    assert_eq!(violations(api.events.stream_events(follow).await), ["webhook_types[0]", "start"]);

    assert_eq!(census(&scenery.stage).await, before, "nothing was written");
    scenery.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_names_one_body_and_one_resource() {
    let scenery = scenery(Options::default()).await;
    let (mut player, integration) = Player::connected(&scenery, "again").await.unwrap();
    let customer = ready_customer(&scenery, &mut player, "hooli", "4000000000000341").await;
    pay(&mut player, invoice("hooli", "declined", 4900, "EUR")).await.unwrap();
    player.told("invoice.payment_failure", "declined").await.unwrap();
    let payment = player.payment("declined").await.unwrap();
    let (code, reason) = (Code::InvalidArgument, "REQUEST_ID_REUSED");

    let again = player.connect_stripe().await.unwrap();
    assert_eq!(again.id, integration.id, "the same request names the same integration");
    let api = &mut player.api;
    let other = CreateIntegrationRequest {
        request_id: "connect".to_owned(),
        code: "other".to_owned(),
        name: "Stripe".to_owned(),
        secret_key: player.key.clone(),
        ..CreateIntegrationRequest::default()
    };
    refused(api.integrations.create_integration(other).await, code, reason);

    let made = api.customers.create_customer(synced("hooli", &[])).await.unwrap().into_inner().customer.unwrap();
    assert_eq!(made, customer, "in its present state");
    let other = CreateCustomerRequest { request_id: "customer-hooli".to_owned(), ..synced("gavin", &[]) };
    let (_, details) = refused(api.customers.create_customer(other).await, code, reason);
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "request_id");

    let link = CreateCheckoutUrlRequest {
        request_id: "link".to_owned(),
        customer_id: customer.id.clone(),
        success_url: String::new(),
    };
    let first = api.customers.create_checkout_url(link.clone()).await.unwrap().into_inner();
    assert_eq!(api.customers.create_checkout_url(link.clone()).await.unwrap().into_inner(), first);
    let other = CreateCheckoutUrlRequest { success_url: "https://billing.test/done".to_owned(), ..link };
    refused(api.customers.create_checkout_url(other).await, code, reason);

    let known = api.payments.create_payment(invoice("hooli", "declined", 4900, "EUR")).await.unwrap();
    let known = known.into_inner().payment.unwrap();
    assert_eq!((known.id.as_str(), known.state()), (payment.id.as_str(), PaymentState::Failed));
    for other in [
        CreatePaymentRequest { request_id: "pay-declined".to_owned(), ..invoice("hooli", "other", 4900, "EUR") },
        CreatePaymentRequest { request_id: "pay-declined".to_owned(), ..invoice("hooli", "declined", 5000, "EUR") },
        CreatePaymentRequest {
            customer: Some(Payer::CustomerId(customer.id.clone())),
            ..invoice("", "declined", 4900, "EUR")
        },
    ] {
        refused(api.payments.create_payment(other).await, code, reason);
    }

    let retry = RetryPaymentRequest {
        id: payment.id.clone(),
        request_id: "pay-declined".to_owned(),
        ..RetryPaymentRequest::default()
    };
    refused(api.payments.retry_payment(retry.clone()).await, code, reason);
    let retry = RetryPaymentRequest { request_id: "retry".to_owned(), force: true, ..retry };
    api.payments.retry_payment(retry.clone()).await.unwrap();
    let other = RetryPaymentRequest { force: false, ..retry.clone() };
    refused(api.payments.retry_payment(other).await, code, reason);
    let same = player.api.payments.retry_payment(retry).await.unwrap().into_inner().payment.unwrap();
    assert_eq!(same.id, payment.id);
    scenery.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_payment_of_an_invoice_is_refused_and_names_the_first() {
    let scenery = scenery(Options::default()).await;
    let (mut player, _) = Player::connected(&scenery, "second").await.unwrap();
    ready_customer(&scenery, &mut player, "hooli", "4242424242424242").await;
    plain_customer(&mut player, "gavin").await;
    pay(&mut player, invoice("hooli", "inv", 4900, "EUR")).await.unwrap();
    player.told("payment.succeeded", "inv").await.unwrap();
    let first = player.payment("inv").await.unwrap();
    let before = census(&scenery.stage).await;
    for (number, other) in [
        invoice("hooli", "inv", 5000, "EUR"),
        invoice("hooli", "inv", 4900, "USD"),
        invoice("gavin", "inv", 4900, "EUR"),
    ]
    .into_iter()
    .enumerate()
    {
        let other = CreatePaymentRequest { request_id: format!("other-{number}"), ..other };
        let answer = player.api.payments.create_payment(other).await;
        let (message, details) = refused(answer, Code::AlreadyExists, "PAYMENT_EXISTS");
        let named = details.resource_info().unwrap();
        assert_eq!((named.resource_type.as_str(), named.resource_name.as_str()), ("payment", first.id.as_str()));
        assert!(message.contains(&first.id) && message.contains("SUCCEEDED"), "{message}");
    }
    assert_eq!(player.payment("inv").await.unwrap(), first, "the first is untouched");
    assert_eq!(census(&scenery.stage).await, before);
    scenery.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invoice_that_nothing_of_the_customers_can_pay_is_refused() {
    let scenery = scenery(Options::default()).await;
    let (mut player, _) = Player::connected(&scenery, "dollars").await.unwrap();
    let request =
        CreateCustomerRequest { sync_with_provider: false, ..synced("sepa", &[PaymentMethodKind::SepaDebit]) };
    player.api.customers.create_customer(request).await.unwrap();
    let before = census(&scenery.stage).await;
    scenery.stage.sandbox.forget_requests();
    let answer = player.api.payments.create_payment(invoice("sepa", "inv", 4900, "USD")).await;
    let (message, details) = refused(answer, Code::FailedPrecondition, "CURRENCY_NOT_SUPPORTED");
    assert!(message.contains("sepa_debit") && message.contains("USD"), "{message}");
    assert!(details.precondition_failure().is_some());
    assert_eq!(census(&scenery.stage).await, before, "nothing is stored");
    assert!(scenery.stage.sandbox.requests().is_empty(), "nothing reaches Stripe");
    scenery.stage.strike().await;
}

/// The unit of an amount is Stripe's: two decimals for ISK, in which only whole krónur are taken; three for KWD, of which
/// the last is 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_amount_that_its_currency_does_not_have_is_refused_with_the_amounts_that_are_possible() {
    let scenery = scenery(Options::default()).await;
    let (mut player, _) = Player::connected(&scenery, "units").await.unwrap();
    plain_customer(&mut player, "hooli").await;
    let before = census(&scenery.stage).await;
    scenery.stage.sandbox.forget_requests();
    for (units, currency, field, words) in [
        (1, "ISK", "amount.minor_units", &["multiple of 100", "0 or 100"][..]),
        (150_050, "UGX", "amount.minor_units", &["multiple of 100", "150000 or 150100"]),
        (5001, "KWD", "amount.minor_units", &["multiple of 10 ", "5000 or 5010"]),
        (0, "XXQ", "amount.currency_code", &["XXQ", "Stripe"]),
        (4900, "XXQ", "amount.currency_code", &["XXQ", "Stripe"]),
        (4900, "EURO", "amount.currency_code", &["three"]),
    ] {
        let answer = player.api.payments.create_payment(invoice("hooli", "inv", units, currency)).await;
        let (_, details) = refused(answer, Code::InvalidArgument, "INVALID_FIELDS");
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations.len(), 1, "{units} {currency}: {violations:?}");
        assert_eq!(violations[0].field, field, "{units} {currency}");
        for word in words {
            assert!(violations[0].description.contains(word), "{word} in {}", violations[0].description);
        }
    }
    assert_eq!(census(&scenery.stage).await, before, "nothing is stored");
    assert!(scenery.stage.sandbox.requests().is_empty(), "nothing reaches Stripe");
    scenery.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_in_the_wrong_state_says_what_would_be_allowed() {
    let scenery = scenery(Options::default()).await;
    let (mut player, _) = Player::connected(&scenery, "states").await.unwrap();
    ready_customer(&scenery, &mut player, "hooli", "4242424242424242").await;
    let paid = pay(&mut player, invoice("hooli", "paid", 4900, "EUR")).await.unwrap();
    player.told("payment.succeeded", "paid").await.unwrap();
    plain_customer(&mut player, "nobody").await;
    let failed = pay(&mut player, invoice("nobody", "failed", 4900, "EUR")).await.unwrap();
    player.told("invoice.payment_failure", "failed").await.unwrap();

    let retry = |id: &str, request_id: &str| RetryPaymentRequest {
        id: id.to_owned(),
        request_id: request_id.to_owned(),
        ..RetryPaymentRequest::default()
    };
    let cancel = |id: &str| CancelPaymentRequest { id: id.to_owned() };
    let api = &mut player.api;
    let (message, details) = refused(
        api.payments.retry_payment(retry(&paid.id, "r1")).await,
        Code::FailedPrecondition,
        "PAYMENT_NOT_RETRYABLE",
    );
    assert!(message.contains("SUCCEEDED") && message.contains("FAILED"), "{message}");
    let precondition = &details.precondition_failure().unwrap().violations[0];
    assert_eq!(precondition.subject, format!("payment/{}", paid.id));
    let (message, _) = refused(
        api.payments.cancel_payment(cancel(&paid.id)).await,
        Code::FailedPrecondition,
        "PAYMENT_NOT_CANCELABLE",
    );
    assert!(message.contains("SUCCEEDED") && message.contains("refund"), "{message}");

    let canceled = api.payments.cancel_payment(cancel(&failed.id)).await.unwrap().into_inner().payment.unwrap();
    assert_eq!(canceled.state(), PaymentState::Canceled);
    let again = api.payments.cancel_payment(cancel(&failed.id)).await.unwrap().into_inner().payment.unwrap();
    assert_eq!(again.state(), PaymentState::Canceled, "asking again is harmless");
    let (message, _) = refused(
        api.payments.retry_payment(retry(&failed.id, "r2")).await,
        Code::FailedPrecondition,
        "PAYMENT_NOT_RETRYABLE",
    );
    assert!(message.contains("CANCELED"), "{message}");
    // A refused retry is not remembered: its request_id is free.
    let other = CreatePaymentRequest { request_id: "r1".to_owned(), ..invoice("hooli", "next", 0, "EUR") };
    let amount = Some(Money { minor_units: 0, currency_code: "EUR".to_owned() });
    api.payments.create_payment(CreatePaymentRequest { amount, ..other }).await.expect("errors are not remembered");
    scenery.stage.strike().await;
}
