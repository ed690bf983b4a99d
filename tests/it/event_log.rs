//! P5: the event log has no gaps: positions are 1, 2, 3, … in commit order, for all writers and readers.

#![expect(clippy::unwrap_used, reason = "test helpers may panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use paybridge::clock::Clock;
use paybridge::dev::scenarios::{Api, BillingClient};
use paybridge::dev::test_environment::Options;
use paybridge::domain::OrganizationId;
use paybridge::domain::events::{EventType, NewEvent, Payload, PaymentProviderObject};
use paybridge::grpc::proto::stream_events_request::Start;
use paybridge::grpc::proto::stream_events_response::Message;
use paybridge::grpc::proto::{ListEventsRequest, StreamEventsRequest};
use paybridge::store::{self, Pool, Scope};
use tonic::Code;

use crate::support::customers::local_customer;
use crate::support::errors::expect_error;
use crate::support::payments::{invoice, pay};
use crate::support::sql::superuser;
use crate::support::wait::{PATIENCE, until};
use crate::support::{context, database};

/// Three types, to distinguish events.
const A: EventType = EventType::PaymentProviderConnected;
const B: EventType = EventType::PaymentProviderRecovered;
const C: EventType = EventType::PaymentProviderDisconnected;

fn new_event(webhook_type: EventType) -> NewEvent {
    let object = PaymentProviderObject {
        lago_payment_provider_id: uuid::Uuid::from_u128(1),
        payment_provider: "stripe".to_owned(),
        payment_provider_code: "stripe".to_owned(),
        payment_provider_name: "Stripe".to_owned(),
        provider_account_id: None,
        provider_webhook_endpoint_id: None,
    };
    NewEvent::new(webhook_type, Payload::PaymentProvider(object))
}

async fn append(tx: &mut store::Transaction, org: OrganizationId, types: &[EventType]) {
    let clock = Clock::system();
    let events: Vec<NewEvent> = types.iter().map(|kind| new_event(*kind)).collect();
    store::events::append(tx, org, &events, clock.now(), || clock.new_id()).await.unwrap();
}

/// The positions and types of the log.
async fn read(pool: &Pool, org: OrganizationId) -> Vec<(i64, String)> {
    let mut tx = pool.begin(Scope::Tenant(org)).await.unwrap();
    let events = store::events::after(&mut tx, org, 0, 1_000).await.unwrap();
    events.into_iter().map(|event| (event.position, event.webhook_type)).collect()
}

fn numbered(types: &[EventType]) -> Vec<(i64, String)> {
    (1..).zip(types).map(|(position, kind)| (position, kind.as_str().to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_a_slow_transaction_delays_later_positions_and_a_failed_one_leaves_no_gap() {
    let url = database().await;
    let administration = paybridge::server::administration(&url).unwrap();
    let org = administration.create_organization("log").await.unwrap().id;
    let pool = Pool::new(&url, 4).unwrap();

    let mut slow = pool.begin(Scope::Tenant(org)).await.unwrap();
    append(&mut slow, org, &[A, B]).await;
    let quick = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut quick = pool.begin(Scope::Tenant(org)).await.unwrap();
            append(&mut quick, org, &[C]).await;
            quick.commit().await.unwrap();
        }
    });
    let observer = superuser(&url).await;
    until("the quick transaction waits for the slow one", async || {
        let waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        (!observer.query(waiting, &[]).await.unwrap().is_empty()).then_some(())
    })
    .await;
    assert_eq!(read(&pool, org).await, [], "no later position is visible before the earlier ones");
    slow.commit().await.unwrap();
    quick.await.unwrap();
    assert_eq!(read(&pool, org).await, numbered(&[A, B, C]));

    let mut failed = pool.begin(Scope::Tenant(org)).await.unwrap();
    append(&mut failed, org, &[B, B]).await;
    drop(failed);
    let mut next = pool.begin(Scope::Tenant(org)).await.unwrap();
    append(&mut next, org, &[A]).await;
    next.commit().await.unwrap();
    assert_eq!(read(&pool, org).await, numbered(&[A, B, C, A]));
}

/// Reads a log from random servers, with a new stream after a random number of messages, until the position `goal` (0
/// while it is unknown).
async fn follow(urls: Vec<String>, token: String, goal: Arc<AtomicI64>) -> Vec<i64> {
    let (mut positions, mut cursor) = (Vec::new(), 0);
    while cursor == 0 || cursor != goal.load(Ordering::Relaxed) {
        let random = usize::from(u16::try_from(getrandom::u64().unwrap() % 65_536).unwrap());
        let mut api = Api::connect(&urls[random % urls.len()], &token).await.unwrap();
        let request =
            StreamEventsRequest { start: Some(Start::AfterPosition(cursor)), ..StreamEventsRequest::default() };
        let mut stream = api.events.stream_events(request).await.unwrap().into_inner();
        for _ in 0..=random % 17 {
            match stream.message().await.unwrap().and_then(|response| response.message) {
                Some(Message::Event(event)) => {
                    cursor = event.position;
                    positions.push(event.position);
                }
                Some(Message::Heartbeat(heartbeat)) => {
                    assert_eq!(heartbeat.position, cursor, "all events up to here were sent");
                }
                None => panic!("the stream has ended"),
            }
            if cursor == goal.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    positions
}

/// Both servers accept payments of 0, both workers settle them, and subscribers reconnect all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_subscribers_that_reconnect_under_load_get_every_event_once_from_two_replicas() {
    const INVOICES: usize = 60;
    let context = context(Options { servers: 2, ..Options::default() }).await;
    let (mut billing, _) = BillingClient::connected(&context, "load").await.unwrap();
    local_customer(&mut billing, "hooli").await;
    let urls: Vec<String> = context.environment.servers.iter().map(|server| server.grpc.clone()).collect();
    let goal = Arc::new(AtomicI64::new(0));
    let readers: Vec<_> =
        (0..4).map(|_| tokio::spawn(follow(urls.clone(), billing.token.clone(), goal.clone()))).collect();
    let mut writers = tokio::task::JoinSet::new();
    for (number, url) in (0..INVOICES).zip(urls.iter().cycle()) {
        let (url, token) = (url.clone(), billing.token.clone());
        writers.spawn(async move {
            let mut api = Api::connect(&url, &token).await.unwrap();
            api.payments.create_payment(invoice("hooli", &format!("inv-{number}"), 0, "EUR")).await.unwrap();
        });
    }
    writers.join_all().await;
    for number in 0..INVOICES {
        billing.wait_for_event("invoice.payment_status_updated", &format!("inv-{number}")).await.unwrap();
    }
    let request = ListEventsRequest { page_size: 1_000, ..ListEventsRequest::default() };
    let page = billing.api.events.list_events(request).await.unwrap().into_inner();
    let last = page.last_position;
    assert!(last > 2 * i64::try_from(INVOICES).unwrap(), "two events for each payment, and others");
    let expected: Vec<i64> = (1..=last).collect();
    assert_eq!(page.events.iter().map(|event| event.position).collect::<Vec<_>>(), expected);
    goal.store(last, Ordering::Relaxed);
    for reader in readers {
        let read = tokio::time::timeout(PATIENCE, reader).await.expect("readers reach the end").unwrap();
        assert_eq!(read, expected, "every position once, in order");
    }
    context.environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_with_a_filter_heartbeats_carry_the_position_scanned_up_to() {
    let context = context(Options::default()).await;
    let (mut billing, _) = BillingClient::connected(&context, "filter").await.unwrap();
    local_customer(&mut billing, "hooli").await;
    let request = StreamEventsRequest {
        start: Some(Start::FromStart(())),
        webhook_types: vec!["payment.succeeded".to_owned()],
        ..StreamEventsRequest::default()
    };
    let mut stream = billing.api.events.stream_events(request).await.unwrap().into_inner();
    for number in 0..5 {
        pay(&mut billing, invoice("hooli", &format!("inv-{number}"), 0, "EUR")).await.unwrap();
        billing.wait_for_event("invoice.payment_status_updated", &format!("inv-{number}")).await.unwrap();
    }
    let all = billing.all_events().await.unwrap();
    let last = all.last().unwrap().position;
    let scanning = async {
        let (mut received, mut scanned) = (Vec::new(), 0);
        while scanned < last {
            match stream.message().await.unwrap().unwrap().message.unwrap() {
                Message::Event(event) => {
                    assert!(event.position > scanned && event.webhook_type == "payment.succeeded");
                    received.push(event.position);
                }
                Message::Heartbeat(heartbeat) => {
                    assert!(heartbeat.position >= scanned && heartbeat.position <= last);
                    assert!(received.last().is_none_or(|position| *position <= heartbeat.position));
                    scanned = heartbeat.position;
                }
            }
        }
        received
    };
    let received = tokio::time::timeout(PATIENCE, scanning).await.expect("heartbeats reach the end of the log");
    let expected = all.iter().filter(|event| event.webhook_type == "payment.succeeded");
    assert_eq!(received, expected.map(|event| event.position).collect::<Vec<_>>());

    let only = |name: &str| ListEventsRequest { webhook_types: vec![name.to_owned()], ..ListEventsRequest::default() };
    let page = billing.api.events.list_events(only("payment.dispute_updated")).await.unwrap().into_inner();
    assert_eq!((page.events.len(), page.next_page_token.as_str(), page.last_position), (0, "", last));
    let unknown = billing.api.events.list_events(only("payment.failed")).await;
    let (message, _) = expect_error(unknown, Code::InvalidArgument, "INVALID_FIELDS");
    assert!(message.contains("did you mean invoice.payment_failure?"), "{message}");
    context.environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_trimming_removes_a_prefix_of_the_log_even_if_times_are_out_of_order() {
    let url = database().await;
    let administration = paybridge::server::administration(&url).unwrap();
    let org = administration.create_organization("trim").await.unwrap().id;
    let pool = Pool::new(&url, 1).unwrap();
    let (clock, day) = (Clock::system(), time::Duration::DAY);
    let mut tx = pool.begin(Scope::Tenant(org)).await.unwrap();
    for age in [100, 1, 100, 1] {
        let written = clock.now() - day * age;
        store::events::append(&mut tx, org, &[new_event(A)], written, || clock.new_id()).await.unwrap();
    }
    tx.commit().await.unwrap();
    // In batches of two. After each, the log begins where its head says, without a gap.
    let mut trimmed = 1;
    while trimmed > 0 {
        let mut tx = pool.begin(Scope::System).await.unwrap();
        trimmed = store::events::trim(&mut tx, org, clock.now() - day * 90, 2).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = pool.begin(Scope::Tenant(org)).await.unwrap();
        let head = store::events::head(&mut tx, org).await.unwrap();
        drop(tx);
        let kept: Vec<i64> = read(&pool, org).await.iter().map(|(position, _)| *position).collect();
        assert_eq!(kept, (head.first_position..=4).collect::<Vec<_>>());
        assert!(head.first_position > 1 && kept.contains(&4), "the oldest is trimmed, the newest is kept");
    }
}

/// Transactions that emit events wait for each other at the log's counter. Accepting a payment
/// and ingesting a webhook append nothing, so they never wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_accepting_a_payment_never_waits_for_the_log() {
    let context = context(Options::default()).await;
    let (mut billing, _) = BillingClient::connected(&context, "counter").await.unwrap();
    local_customer(&mut billing, "hooli").await;
    let holder = superuser(&context.environment.database_url).await;
    holder.batch_execute("BEGIN; LOCK TABLE events, event_heads IN EXCLUSIVE MODE").await.unwrap();
    for number in 0..3 {
        let acceptance = pay(&mut billing, invoice("hooli", &format!("inv-{number}"), 0, "EUR"));
        // Less than the 10 s after which Postgres cancels a statement.
        tokio::time::timeout(Duration::from_secs(4), acceptance).await.expect("it does not wait").unwrap();
    }
    holder.batch_execute("ROLLBACK").await.unwrap();
    for number in 0..3 {
        billing.wait_for_event("payment.succeeded", &format!("inv-{number}")).await.unwrap();
    }
    context.environment.shutdown().await;
}

fn after(position: i64) -> StreamEventsRequest {
    StreamEventsRequest { start: Some(Start::AfterPosition(position)), ..StreamEventsRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_a_trimmed_log_reports_its_oldest_position_and_continues() {
    let context = context(Options::default()).await;
    let (mut billing, _) = BillingClient::connected(&context, "trim").await.unwrap();
    local_customer(&mut billing, "hooli").await;
    pay(&mut billing, invoice("hooli", "old", 0, "EUR")).await.unwrap();
    billing.wait_for_event("invoice.payment_status_updated", "old").await.unwrap();
    let last = billing.all_events().await.unwrap().last().unwrap().position;

    context.environment.clock.advance(time::Duration::days(91));
    let database = superuser(&context.environment.database_url).await;
    until("the old events are trimmed", async || {
        let sql = "SELECT first_position FROM event_heads WHERE organization_id::text = $1";
        let first: i64 = database.query_one(sql, &[&billing.organization]).await.unwrap().get(0);
        (first == last + 1).then_some(())
    })
    .await;
    pay(&mut billing, invoice("hooli", "new", 0, "EUR")).await.unwrap();
    let new = billing.wait_for_event("payment.succeeded", "new").await.unwrap();
    assert!(new.position > last, "positions continue");

    for position in [0, last - 1] {
        let errors = [
            expect_error(billing.api.events.stream_events(after(position)).await, Code::OutOfRange, "POSITION_TRIMMED"),
            expect_error(
                billing
                    .api
                    .events
                    .list_events(ListEventsRequest { after_position: position, ..ListEventsRequest::default() })
                    .await,
                Code::OutOfRange,
                "POSITION_TRIMMED",
            ),
        ];
        for (message, details) in errors {
            assert_eq!(details.error_info().unwrap().metadata["oldest_position"], last.to_string());
            assert!(message.contains(&last.to_string()), "{message}");
        }
    }
    for start in [Start::AfterPosition(last), Start::FromStart(())] {
        let request = StreamEventsRequest { start: Some(start), ..StreamEventsRequest::default() };
        let mut stream = billing.api.events.stream_events(request).await.unwrap().into_inner();
        let first = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(Message::Event(event)) = stream.message().await.unwrap().unwrap().message {
                    return event.position;
                }
            }
        });
        assert_eq!(first.await.expect("the log is read from its beginning"), last + 1);
    }
    context.environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_a_position_outside_the_log_is_refused_with_the_valid_range() {
    let context = context(Options::default()).await;
    let (mut billing, _) = BillingClient::connected(&context, "long log").await.unwrap();
    local_customer(&mut billing, "hooli").await;
    for number in 0..3 {
        pay(&mut billing, invoice("hooli", &format!("inv-{number}"), 0, "EUR")).await.unwrap();
        billing.wait_for_event("invoice.payment_status_updated", &format!("inv-{number}")).await.unwrap();
    }
    let last = billing.all_events().await.unwrap().last().unwrap().position;
    let (mut other, _) = BillingClient::connected(&context, "short log").await.unwrap();
    let is_first = |event: &paybridge::grpc::proto::Event| (event.position == 1).then_some(());
    other.wait_for("its first event", is_first).await.unwrap();

    // A position of another organization's log means nothing: here it is in the future.
    for (api, position, range) in
        [(&mut billing.api, last + 1, format!("1 to {last}")), (&mut other.api, last, "1 to 1".to_owned())]
    {
        let list = ListEventsRequest { after_position: position, ..ListEventsRequest::default() };
        for (_, details) in [
            expect_error(api.events.stream_events(after(position)).await, Code::InvalidArgument, "INVALID_FIELDS"),
            expect_error(api.events.list_events(list).await, Code::InvalidArgument, "INVALID_FIELDS"),
        ] {
            let bad = &details.bad_request().unwrap().field_violations[0];
            assert_eq!(bad.field, "after_position");
            assert!(bad.description.contains(&range), "{} names {range}", bad.description);
        }
    }
    let mut stream = other.api.events.stream_events(after(1)).await.unwrap().into_inner();
    let response = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
    assert!(matches!(response.message, Some(Message::Heartbeat(it)) if it.position == 1), "its own log ends at 1");
    context.environment.shutdown().await;
}
