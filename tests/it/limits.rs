//! P11: everything has a limit, and says so when it is reached.

use paybridge::dev::stage::Options;
use paybridge::dev::story::{Api, Player};
use paybridge::grpc::proto::stream_events_request::Start;
use paybridge::grpc::proto::stream_events_response::Message;
use paybridge::grpc::proto::{
    CreateCustomerRequest, CreatePaymentRequest, ListCustomersRequest, ListEventsRequest, ListIntegrationsRequest,
    ListPaymentMethodsRequest, ListPaymentsRequest, StreamEventsRequest,
};
use tonic::Code;

use crate::hands::{PATIENCE, invoice, pay, plain_customer, refused, until, violations};
use crate::support::scenery;

fn from_start() -> StreamEventsRequest {
    StreamEventsRequest { start: Some(Start::FromStart(true)), webhook_types: Vec::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_pages_are_as_long_as_asked_up_to_a_limit() {
    let scenery = scenery(Options::default()).await;
    let mut player = Player::enter(&scenery, "pages").await.unwrap();
    let mut made = Vec::new();
    for number in 0..5 {
        made.push(plain_customer(&mut player, &format!("customer-{number}")).await.external_id);
    }
    made.reverse();
    let (mut read, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = ListCustomersRequest { page_size: 2, page_token: token };
        let page = player.api.customers.list_customers(request).await.unwrap().into_inner();
        assert!(page.customers.len() <= 2);
        read.extend(page.customers.into_iter().map(|customer| customer.external_id));
        pages += 1;
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((read, pages), (made, 3), "newest first, each once");
    let huge = ListCustomersRequest { page_size: i32::MAX, page_token: String::new() };
    assert_eq!(player.api.customers.list_customers(huge).await.unwrap().into_inner().customers.len(), 5);

    let api = &mut player.api;
    let (size, token) = (-1, String::new());
    let payments = ListPaymentsRequest { page_size: size, ..ListPaymentsRequest::default() };
    let methods = ListPaymentMethodsRequest {
        customer_id: uuid::Uuid::from_u128(1).to_string(),
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
    scenery.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_what_is_too_long_is_refused() {
    let scenery = scenery(Options::default()).await;
    let mut player = Player::enter(&scenery, "long").await.unwrap();
    let api = &mut player.api;
    let named = |length| CreateCustomerRequest {
        external_id: "hooli".to_owned(),
        name: "x".repeat(length),
        ..CreateCustomerRequest::default()
    };
    refused(api.customers.create_customer(named(300 * 1024)).await, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
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
    scenery.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_an_organization_has_so_many_streams_on_a_server_and_no_more() {
    let options = Options { max_streams_per_organization: 2, ..Options::default() };
    let scenery = scenery(options).await;
    // The player itself follows its log: one seat is taken.
    let mut player = Player::enter(&scenery, "streams").await.unwrap();
    let second = player.api.events.stream_events(from_start()).await.expect("there is a second seat");
    let third = player.api.events.stream_events(from_start()).await;
    let (message, details) = refused(third, Code::ResourceExhausted, "TOO_MANY_STREAMS");
    assert!(message.contains("2 event streams"), "{message}");
    assert!(details.quota_failure().is_some());
    Player::enter(&scenery, "others").await.expect("another organization has seats of its own");
    drop(second);
    until("the seat is free again", || {
        let mut events = player.api.events.clone();
        async move { events.stream_events(from_start()).await.ok() }
    })
    .await;
    scenery.stage.strike().await;
}

/// The channel to each client holds a few messages (a unit test counts them); here nobody else waits for the slow one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_a_subscriber_that_does_not_read_holds_up_nobody_and_misses_nothing() {
    const INVOICES: i64 = 150;
    let scenery = scenery(Options::default()).await;
    let (mut player, _) = Player::connected(&scenery, "slow").await.unwrap();
    plain_customer(&mut player, "hooli").await;
    let mut slow_api = Api::connect(&scenery.stage.servers[0].grpc, &player.token).await.unwrap();
    let mut slow = slow_api.events.stream_events(from_start()).await.unwrap().into_inner();
    // Long names fill what the connection itself may hold.
    let long = |number: i64| format!("{}-{number}", "x".repeat(240));
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..INVOICES {
        let mut payments = player.api.payments.clone();
        let request_id = format!("pay-{number}");
        let request = CreatePaymentRequest { request_id, ..invoice("hooli", &long(number), 0, "EUR") };
        writers.spawn(async move { payments.create_payment(request).await.expect("it is accepted") });
    }
    writers.join_all().await;
    for number in 0..INVOICES {
        player.told("payment.succeeded", &long(number)).await.expect("the quick one is told all the same");
    }
    let last = player.api.events.list_events(ListEventsRequest::default()).await.unwrap().into_inner().last_position;
    let mut read = Vec::new();
    while read.last() != Some(&last) {
        let answer = tokio::time::timeout(PATIENCE, slow.message()).await.expect("the slow one goes on").unwrap();
        if let Some(Message::Event(event)) = answer.unwrap().message {
            read.push(event.position);
        }
    }
    assert_eq!(read, (1..=last).collect::<Vec<_>>());
    pay(&mut player, invoice("hooli", "last", 0, "EUR")).await.unwrap();
    scenery.stage.strike().await;
}
