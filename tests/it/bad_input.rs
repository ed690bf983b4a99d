//! Invalid requests: each fails with an error that says what is wrong, and writes nothing.

use paybridge::dev::scenarios::{BillingClient, ScenarioContext};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::create_payment_request::Customer as Payer;
use paybridge::grpc::proto::{
    Address, CancelPaymentRequest, CreateCheckoutUrlRequest, CreateCustomerRequest, CreateIntegrationRequest,
    CreatePaymentRequest, Customer, DeleteCustomerRequest, GetCustomerRequest, GetPaymentRequest, Integration,
    ListPaymentsRequest, Money, PaymentMethodKind, PaymentState, RetryPaymentRequest, RotateIntegrationKeyRequest,
    StreamEventsRequest, UpdateCustomerRequest, UpdateIntegrationRequest, cancel_payment_request,
    create_checkout_url_request, delete_customer_request, list_payments_request, retry_payment_request,
};
use tonic::Code;

use crate::support::context;
use crate::support::customers::{customer_with_method, local_customer, synced_customer};
use crate::support::errors::{expect_error, violations};
use crate::support::payments::{invoice, pay};
use crate::support::sql::row_counts;

/// The calls to Stripe since the recorded requests were cleared, without those of the integration's own checks, which
/// begin when it is connected.
fn calls_of_payments(context: &ScenarioContext) -> Vec<String> {
    let own = ["/v1/account", "/v1/events", "/v1/webhook_endpoints"];
    let mut requests = context.environment.sandbox.requests();
    requests.retain(|request| !own.iter().any(|path| request.path.starts_with(path)));
    requests.into_iter().map(|request| format!("{} {}", request.method, request.path)).collect()
}

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
async fn malformed_requests_fail_with_all_violations_and_write_nothing() {
    let context = context(Options::default()).await;
    let mut billing = BillingClient::create(&context, "malformed").await.unwrap();
    let before = row_counts(&context.environment).await;
    let api = &mut billing.api;

    let connect = CreateIntegrationRequest { code: "a b".to_owned(), ..CreateIntegrationRequest::default() };
    assert_eq!(
        violations(api.integrations.create_integration(connect).await),
        ["request_id", "code", "name", "secret_key"]
    );
    let changed = Integration { success_redirect_url: "/done".to_owned(), ..Integration::default() };
    let update = UpdateIntegrationRequest { integration: Some(changed), update_mask: None };
    let found = violations(api.integrations.update_integration(update).await);
    assert_eq!(found, ["integration.id", "integration.success_redirect_url"]);
    let rotate = RotateIntegrationKeyRequest { id: "x".to_owned(), secret_key: "with space".to_owned() };
    assert_eq!(violations(api.integrations.rotate_integration_key(rotate).await), ["id", "secret_key"]);

    let found = violations(api.customers.create_customer(bad_customer()).await);
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
    assert_eq!(found, every);
    assert_eq!(violations(api.customers.get_customer(GetCustomerRequest { customer: None }).await), ["customer"]);
    let changed = Customer { etag: "x".to_owned(), email: "nobody".to_owned(), ..Customer::default() };
    let update = UpdateCustomerRequest { customer: Some(changed), update_mask: None };
    let found = violations(api.customers.update_customer(update).await);
    assert_eq!(found, ["customer.id", "customer.etag", "customer.email"]);
    let delete = DeleteCustomerRequest { customer: Some(delete_customer_request::Customer::Id("x".to_owned())) };
    assert_eq!(violations(api.customers.delete_customer(delete).await), ["id"]);
    let link = CreateCheckoutUrlRequest { success_url: "ftp://x".to_owned(), ..CreateCheckoutUrlRequest::default() };
    assert_eq!(violations(api.customers.create_checkout_url(link).await), ["request_id", "customer", "success_url"]);

    let found = violations(api.payments.create_payment(CreatePaymentRequest::default()).await);
    assert_eq!(found, ["request_id", "invoice_id", "customer", "amount"]);
    let negative = invoice("", "", -1, "eur");
    let found = violations(api.payments.create_payment(negative).await);
    let every = ["invoice_id", "external_customer_id", "amount.currency_code", "amount.minor_units"];
    assert_eq!(found, every);
    assert_eq!(violations(api.payments.get_payment(GetPaymentRequest { payment: None }).await), ["payment"]);
    let customer = Some(list_payments_request::Customer::CustomerId("x".to_owned()));
    let list = ListPaymentsRequest { customer, states: vec![99], ..ListPaymentsRequest::default() };
    assert_eq!(violations(api.payments.list_payments(list).await), ["customer_id", "states[0]"]);
    let retry = RetryPaymentRequest { payment_method_id: "x".to_owned(), ..RetryPaymentRequest::default() };
    assert_eq!(violations(api.payments.retry_payment(retry).await), ["payment", "request_id", "payment_method_id"]);
    assert_eq!(violations(api.payments.cancel_payment(CancelPaymentRequest { payment: None }).await), ["payment"]);
    let follow = StreamEventsRequest { webhook_types: vec![String::new()], ..StreamEventsRequest::default() };
    assert_eq!(violations(api.events.stream_events(follow).await), ["webhook_types[0]", "start"]);

    assert_eq!(row_counts(&context.environment).await, before, "nothing was written");
    context.environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_names_one_body_and_one_resource() {
    let context = context(Options::default()).await;
    let (mut billing, integration) = BillingClient::connected(&context, "again").await.unwrap();
    let customer = customer_with_method(&context, &mut billing, "hooli", "4000000000000341").await;
    pay(&mut billing, invoice("hooli", "declined", 4900, "EUR")).await.unwrap();
    billing.wait_for_event("invoice.payment_failure", "declined").await.unwrap();
    let payment = billing.payment("declined").await.unwrap();
    let (code, reason) = (Code::InvalidArgument, "REQUEST_ID_REUSED");

    let again = billing.connect_stripe().await.unwrap();
    assert_eq!(again.id, integration.id, "the same request names the same integration");
    let api = &mut billing.api;
    let other = CreateIntegrationRequest {
        request_id: "connect".to_owned(),
        code: "other".to_owned(),
        name: "Stripe".to_owned(),
        secret_key: billing.key.clone(),
        ..CreateIntegrationRequest::default()
    };
    expect_error(api.integrations.create_integration(other).await, code, reason);

    let made =
        api.customers.create_customer(synced_customer("hooli", &[])).await.unwrap().into_inner().customer.unwrap();
    assert_eq!(made, customer, "the resource in its present state");
    let other = CreateCustomerRequest { request_id: "customer-hooli".to_owned(), ..synced_customer("gavin", &[]) };
    let (_, details) = expect_error(api.customers.create_customer(other).await, code, reason);
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "request_id");

    let link = CreateCheckoutUrlRequest {
        request_id: "link".to_owned(),
        customer: Some(create_checkout_url_request::Customer::CustomerId(customer.id.clone())),
        success_url: String::new(),
    };
    let first = api.customers.create_checkout_url(link.clone()).await.unwrap().into_inner();
    assert_eq!(api.customers.create_checkout_url(link.clone()).await.unwrap().into_inner(), first);
    let by_external_id = Some(create_checkout_url_request::Customer::ExternalCustomerId("hooli".to_owned()));
    let same = CreateCheckoutUrlRequest { customer: by_external_id, ..link.clone() };
    assert_eq!(api.customers.create_checkout_url(same).await.unwrap().into_inner(), first, "the same customer");
    let other = CreateCheckoutUrlRequest { success_url: "https://billing.test/done".to_owned(), ..link };
    expect_error(api.customers.create_checkout_url(other).await, code, reason);

    for payer in [Payer::ExternalCustomerId("hooli".to_owned()), Payer::CustomerId(customer.id.clone())] {
        let same = CreatePaymentRequest { customer: Some(payer), ..invoice("", "declined", 4900, "EUR") };
        let known = api.payments.create_payment(same).await.unwrap().into_inner().payment.unwrap();
        assert_eq!((known.id.as_str(), known.state()), (payment.id.as_str(), PaymentState::Failed));
    }
    for other in [
        CreatePaymentRequest { request_id: "pay-declined".to_owned(), ..invoice("hooli", "other", 4900, "EUR") },
        CreatePaymentRequest { request_id: "pay-declined".to_owned(), ..invoice("hooli", "declined", 5000, "EUR") },
    ] {
        expect_error(api.payments.create_payment(other).await, code, reason);
    }

    let retry = RetryPaymentRequest {
        payment: Some(retry_payment_request::Payment::Id(payment.id.clone())),
        request_id: "pay-declined".to_owned(),
        ..RetryPaymentRequest::default()
    };
    expect_error(api.payments.retry_payment(retry.clone()).await, code, reason);
    let retry = RetryPaymentRequest { request_id: "retry".to_owned(), force: true, ..retry };
    api.payments.retry_payment(retry.clone()).await.unwrap();
    let other = RetryPaymentRequest { force: false, ..retry.clone() };
    expect_error(api.payments.retry_payment(other).await, code, reason);
    let by_invoice = Some(retry_payment_request::Payment::InvoiceId("declined".to_owned()));
    for same in [RetryPaymentRequest { payment: by_invoice, ..retry.clone() }, retry] {
        let same = billing.api.payments.retry_payment(same).await.unwrap().into_inner().payment.unwrap();
        assert_eq!((same.id.as_str(), same.external_customer_id.as_str()), (payment.id.as_str(), "hooli"));
    }
    context.environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_payment_of_an_invoice_is_refused_and_names_the_first() {
    let context = context(Options::default()).await;
    let (mut billing, _) = BillingClient::connected(&context, "second").await.unwrap();
    customer_with_method(&context, &mut billing, "hooli", "4242424242424242").await;
    local_customer(&mut billing, "gavin").await;
    pay(&mut billing, invoice("hooli", "inv", 4900, "EUR")).await.unwrap();
    billing.wait_for_event("payment.succeeded", "inv").await.unwrap();
    let first = billing.payment("inv").await.unwrap();
    let before = row_counts(&context.environment).await;
    for (number, other) in [
        invoice("hooli", "inv", 5000, "EUR"),
        invoice("hooli", "inv", 4900, "USD"),
        invoice("gavin", "inv", 4900, "EUR"),
    ]
    .into_iter()
    .enumerate()
    {
        let other = CreatePaymentRequest { request_id: format!("other-{number}"), ..other };
        let answer = billing.api.payments.create_payment(other).await;
        let (message, details) = expect_error(answer, Code::AlreadyExists, "PAYMENT_EXISTS");
        let named = details.resource_info().unwrap();
        assert_eq!((named.resource_type.as_str(), named.resource_name.as_str()), ("payment", first.id.as_str()));
        assert!(message.contains(&first.id) && message.contains("SUCCEEDED"), "{message}");
    }
    assert_eq!(billing.payment("inv").await.unwrap(), first, "the first payment is unchanged");
    assert_eq!(row_counts(&context.environment).await, before);
    context.environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_currency_that_no_kind_of_the_customer_supports_is_refused() {
    let context = context(Options::default()).await;
    let (mut billing, _) = BillingClient::connected(&context, "dollars").await.unwrap();
    let request =
        CreateCustomerRequest { sync_with_provider: false, ..synced_customer("sepa", &[PaymentMethodKind::SepaDebit]) };
    billing.api.customers.create_customer(request).await.unwrap();
    let before = row_counts(&context.environment).await;
    context.environment.sandbox.clear_requests();
    let answer = billing.api.payments.create_payment(invoice("sepa", "inv", 4900, "USD")).await;
    let (message, details) = expect_error(answer, Code::FailedPrecondition, "CURRENCY_NOT_SUPPORTED");
    assert!(message.contains("sepa_debit") && message.contains("USD"), "{message}");
    assert!(details.precondition_failure().is_some());
    assert_eq!(row_counts(&context.environment).await, before, "nothing was stored");
    assert_eq!(calls_of_payments(&context), [""; 0], "nothing was sent to Stripe");
    context.environment.shutdown().await;
}

/// Amounts are in Stripe's unit: ISK has two decimals, which must be 0; KWD has three, of which the last must be 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_amount_that_is_not_valid_in_its_currency_is_refused_with_the_nearest_valid_amounts() {
    let context = context(Options::default()).await;
    let (mut billing, _) = BillingClient::connected(&context, "units").await.unwrap();
    local_customer(&mut billing, "hooli").await;
    let before = row_counts(&context.environment).await;
    context.environment.sandbox.clear_requests();
    for (units, currency, field, words) in [
        (1, "ISK", "amount.minor_units", &["multiple of 100", "0 or 100"][..]),
        (150_050, "UGX", "amount.minor_units", &["multiple of 100", "150000 or 150100"]),
        (5001, "KWD", "amount.minor_units", &["multiple of 10 ", "5000 or 5010"]),
        (0, "XXQ", "amount.currency_code", &["XXQ", "Stripe"]),
        (4900, "XXQ", "amount.currency_code", &["XXQ", "Stripe"]),
        (4900, "EURO", "amount.currency_code", &["three"]),
    ] {
        let answer = billing.api.payments.create_payment(invoice("hooli", "inv", units, currency)).await;
        let (_, details) = expect_error(answer, Code::InvalidArgument, "INVALID_FIELDS");
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations.len(), 1, "{units} {currency}: {violations:?}");
        assert_eq!(violations[0].field, field, "{units} {currency}");
        for word in words {
            assert!(violations[0].description.contains(word), "{word} in {}", violations[0].description);
        }
    }
    assert_eq!(row_counts(&context.environment).await, before, "nothing was stored");
    assert_eq!(calls_of_payments(&context), [""; 0], "nothing was sent to Stripe");
    context.environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_in_the_wrong_state_fails_with_the_allowed_states() {
    let context = context(Options::default()).await;
    let (mut billing, _) = BillingClient::connected(&context, "states").await.unwrap();
    customer_with_method(&context, &mut billing, "hooli", "4242424242424242").await;
    let paid = pay(&mut billing, invoice("hooli", "paid", 4900, "EUR")).await.unwrap();
    billing.wait_for_event("payment.succeeded", "paid").await.unwrap();
    local_customer(&mut billing, "nobody").await;
    let failed = pay(&mut billing, invoice("nobody", "failed", 4900, "EUR")).await.unwrap();
    billing.wait_for_event("invoice.payment_failure", "failed").await.unwrap();

    let retry = |id: &str, request_id: &str| RetryPaymentRequest {
        payment: Some(retry_payment_request::Payment::Id(id.to_owned())),
        request_id: request_id.to_owned(),
        ..RetryPaymentRequest::default()
    };
    let cancel = |id: &str| CancelPaymentRequest { payment: Some(cancel_payment_request::Payment::Id(id.to_owned())) };
    let api = &mut billing.api;
    let (message, details) = expect_error(
        api.payments.retry_payment(retry(&paid.id, "r1")).await,
        Code::FailedPrecondition,
        "PAYMENT_NOT_RETRYABLE",
    );
    assert!(message.contains("SUCCEEDED") && message.contains("FAILED"), "{message}");
    let precondition = &details.precondition_failure().unwrap().violations[0];
    assert_eq!(precondition.subject, format!("payment/{}", paid.id));
    let (message, _) = expect_error(
        api.payments.cancel_payment(cancel(&paid.id)).await,
        Code::FailedPrecondition,
        "PAYMENT_NOT_CANCELABLE",
    );
    assert!(message.contains("SUCCEEDED") && message.contains("refund"), "{message}");

    let canceled = api.payments.cancel_payment(cancel(&failed.id)).await.unwrap().into_inner().payment.unwrap();
    assert_eq!(canceled.state(), PaymentState::Canceled);
    let again = api.payments.cancel_payment(cancel(&failed.id)).await.unwrap().into_inner().payment.unwrap();
    assert_eq!(again.state(), PaymentState::Canceled, "a repeated cancellation is accepted");
    let (message, _) = expect_error(
        api.payments.retry_payment(retry(&failed.id, "r2")).await,
        Code::FailedPrecondition,
        "PAYMENT_NOT_RETRYABLE",
    );
    assert!(message.contains("CANCELED"), "{message}");
    // A refused retry is not stored: its request_id is free.
    let other = CreatePaymentRequest { request_id: "r1".to_owned(), ..invoice("hooli", "next", 0, "EUR") };
    let amount = Some(Money { minor_units: 0, currency_code: "EUR".to_owned() });
    api.payments.create_payment(CreatePaymentRequest { amount, ..other }).await.expect("errors are not stored");
    context.environment.shutdown().await;
}
