//! P11: everything has a limit, and an error names it.

use paybridge::dev::scenarios::{Api, BillingClient};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::stream_events_request::Start;
use paybridge::grpc::proto::stream_events_response::Message;
use paybridge::grpc::proto::{
    CreateCustomerRequest, CreatePaymentRequest, ListCustomersRequest, ListEventsRequest, ListIntegrationsRequest,
    ListPaymentMethodsRequest, ListPaymentsRequest, StreamEventsRequest, list_payment_methods_request,
};
use tonic::Code;

use crate::support::context;
use crate::support::customers::local_customer;
use crate::support::errors::{expect_error, violations};
use crate::support::payments::{invoice, pay};
use crate::support::wait::{PATIENCE, until};

fn from_start() -> StreamEventsRequest {
    StreamEventsRequest { start: Some(Start::FromStart(())), ..StreamEventsRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_page_size_is_respected_up_to_a_limit() {
    let context = context(Options::default()).await;
    let mut billing = BillingClient::create(&context, "pages").await.unwrap();
    let mut created = Vec::new();
    for number in 0..5 {
        created.push(local_customer(&mut billing, &format!("customer-{number}")).await.external_id);
    }
    created.reverse();
    let (mut read, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = ListCustomersRequest { page_size: 2, page_token: token };
        let page = billing.api.customers.list_customers(request).await.unwrap().into_inner();
        assert!(page.customers.len() <= 2);
        read.extend(page.customers.into_iter().map(|customer| customer.external_id));
        pages += 1;
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((read, pages), (created, 3), "newest first, each once");
    let huge = ListCustomersRequest { page_size: i32::MAX, page_token: String::new() };
    assert_eq!(billing.api.customers.list_customers(huge).await.unwrap().into_inner().customers.len(), 5);

    let api = &mut billing.api;
    let (size, token) = (-1, String::new());
    let payments = ListPaymentsRequest { page_size: size, ..ListPaymentsRequest::default() };
    let methods = ListPaymentMethodsRequest {
        customer: Some(list_payment_methods_request::Customer::CustomerId(uuid::Uuid::from_u128(1).to_string())),
        page_size: size,
        page_token: token.clone(),
    };
    let events = ListEventsRequest { page_size: size, ..ListEventsRequest::default() };
    let customers = ListCustomersRequest { page_size: size, page_token: token.clone() };
    let integrations = ListIntegrationsRequest { page_size: size, page_token: token };
    for objected in [
        violations(api.payments.list_payments(payments).await),
        violations(api.customers.list_payment_methods(methods).await),
        violations(api.events.list_events(events).await),
        violations(api.customers.list_customers(customers).await),
        violations(api.integrations.list_integrations(integrations).await),
    ] {
        assert_eq!(objected, ["page_size"]);
    }
    context.environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_values_and_lists_over_the_limit_are_refused() {
    let context = context(Options::default()).await;
    let mut billing = BillingClient::create(&context, "long").await.unwrap();
    let api = &mut billing.api;
    let named = |length| CreateCustomerRequest {
        request_id: "hooli".to_owned(),
        external_id: "hooli".to_owned(),
        name: "x".repeat(length),
        ..CreateCustomerRequest::default()
    };
    expect_error(api.customers.create_customer(named(300 * 1024)).await, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    assert_eq!(violations(api.customers.create_customer(named(256)).await), ["name"]);
    let long_id = CreateCustomerRequest { request_id: "x".repeat(65), ..named(1) };
    assert_eq!(violations(api.customers.create_customer(long_id).await), ["request_id"]);
    let many_kinds = CreateCustomerRequest { provider_payment_methods: vec![1; 10_000], ..named(1) };
    let objected = violations(api.customers.create_customer(many_kinds).await);
    assert!(!objected.is_empty() && objected.len() <= 50, "a bounded list of violations: {}", objected.len());
    let many_states = ListPaymentsRequest { states: vec![1; 17], ..ListPaymentsRequest::default() };
    assert_eq!(violations(api.payments.list_payments(many_states).await), ["states"]);
    let types = vec!["payment.succeeded".to_owned(); 65];
    let many_types = StreamEventsRequest { webhook_types: types.clone(), ..from_start() };
    assert_eq!(violations(api.events.stream_events(many_types).await), ["webhook_types"]);
    let many_types = ListEventsRequest { webhook_types: types, ..ListEventsRequest::default() };
    assert_eq!(violations(api.events.list_events(many_types).await), ["webhook_types"]);
    let customers = api.customers.list_customers(ListCustomersRequest::default()).await.unwrap().into_inner();
    assert!(customers.customers.is_empty(), "nothing was written");
    context.environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_the_streams_of_an_organization_on_a_server_are_limited() {
    let options = Options { max_streams_per_organization: 2, ..Options::default() };
    let context = context(options).await;
    // The client itself has one stream open.
    let mut billing = BillingClient::create(&context, "streams").await.unwrap();
    let second = billing.api.events.stream_events(from_start()).await.expect("a second stream is allowed");
    let third = billing.api.events.stream_events(from_start()).await;
    let (message, details) = expect_error(third, Code::ResourceExhausted, "TOO_MANY_STREAMS");
    assert!(message.contains("2 event streams"), "{message}");
    assert!(details.quota_failure().is_some());
    BillingClient::create(&context, "others").await.expect("the limit is per organization");
    drop(second);
    until("another stream is allowed", async || {
        let mut events = billing.api.events.clone();
        events.stream_events(from_start()).await.ok()
    })
    .await;
    context.environment.shutdown().await;
}

/// The channel to each client holds few messages (see the unit test): here nobody else waits for the slow client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_a_slow_subscriber_delays_nobody_and_misses_nothing() {
    const INVOICES: i64 = 150;
    let context = context(Options::default()).await;
    let (mut billing, _) = BillingClient::connected(&context, "slow").await.unwrap();
    local_customer(&mut billing, "hooli").await;
    let mut slow_api = Api::connect(&context.environment.servers[0].grpc, &billing.token).await.unwrap();
    let mut slow = slow_api.events.stream_events(from_start()).await.unwrap().into_inner();
    // Long names fill the buffers of the connection.
    let long = |number: i64| format!("{}-{number}", "x".repeat(240));
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..INVOICES {
        let mut payments = billing.api.payments.clone();
        let request_id = format!("pay-{number}");
        let request = CreatePaymentRequest { request_id, ..invoice("hooli", &long(number), 0, "EUR") };
        writers.spawn(async move { payments.create_payment(request).await.expect("it is accepted") });
    }
    writers.join_all().await;
    for number in 0..INVOICES {
        billing.wait_for_event("payment.succeeded", &long(number)).await.expect("the other subscriber gets it");
    }
    let last = billing.api.events.list_events(ListEventsRequest::default()).await.unwrap().into_inner().last_position;
    let mut read = Vec::new();
    while read.last() != Some(&last) {
        let response =
            tokio::time::timeout(PATIENCE, slow.message()).await.expect("the slow stream continues").unwrap();
        if let Some(Message::Event(event)) = response.unwrap().message {
            read.push(event.position);
        }
    }
    assert_eq!(read, (1..=last).collect::<Vec<_>>());
    pay(&mut billing, invoice("hooli", "last", 0, "EUR")).await.unwrap();
    context.environment.shutdown().await;
}
