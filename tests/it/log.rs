//! P5: the event log has no holes: positions are 1, 2, 3, … in the order of commits, whoever writes and whoever reads.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests, too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use paybridge::clock::Clock;
use paybridge::dev::stage::Options;
use paybridge::dev::story::{Api, Player};
use paybridge::domain::OrganizationId;
use paybridge::domain::events::{NewEvent, Payload, PaymentProviderObject};
use paybridge::grpc::proto::stream_events_request::Start;
use paybridge::grpc::proto::stream_events_response::Message;
use paybridge::grpc::proto::{ListEventsRequest, StreamEventsRequest};
use paybridge::store::{self, Pool, Scope};
use tonic::Code;

use crate::hands::{PATIENCE, invoice, pay, plain_customer, refused, superuser, until};
use crate::support::{database, scenery};

/// Four types, to tell events apart by.
const A: &str = "payment.pending";
const B: &str = "payment.processing";
const C: &str = "payment.succeeded";
const D: &str = "payment.canceled";

fn event(webhook_type: &'static str) -> NewEvent {
    NewEvent {
        webhook_type,
        payload: Payload::PaymentProvider(PaymentProviderObject {
            lago_payment_provider_id: uuid::Uuid::from_u128(1),
            payment_provider: "stripe".to_owned(),
            payment_provider_code: "stripe".to_owned(),
            payment_provider_name: "Stripe".to_owned(),
            provider_account_id: None,
            provider_webhook_endpoint_id: None,
        }),
    }
}

async fn append(tx: &mut store::Transaction, org: OrganizationId, types: &[&'static str]) {
    let clock = Clock::system();
    let events: Vec<NewEvent> = types.iter().map(|name| event(name)).collect();
    store::events::append(tx, org, &events, clock.now(), || clock.new_id()).await.unwrap();
}

/// The log as a reader sees it now.
async fn read(pool: &Pool, org: OrganizationId) -> Vec<(i64, String)> {
    let mut tx = pool.begin(Scope::Tenant(org)).await.unwrap();
    let events = store::events::after(&mut tx, org, 0, 1_000).await.unwrap();
    events.into_iter().map(|event| (event.position, event.webhook_type)).collect()
}

fn numbered(types: &[&str]) -> Vec<(i64, String)> {
    (1..).zip(types).map(|(position, name)| (position, (*name).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_a_slow_transaction_holds_back_later_positions_and_a_failed_one_leaves_no_hole() {
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
    let watcher = superuser(&url).await;
    until("the quick transaction waits for the slow one", || async {
        let waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        (!watcher.query(waiting, &[]).await.unwrap().is_empty()).then_some(())
    })
    .await;
    assert_eq!(read(&pool, org).await, [], "no later position is seen before the earlier ones");
    slow.commit().await.unwrap();
    quick.await.unwrap();
    assert_eq!(read(&pool, org).await, numbered(&[A, B, C]));

    let mut failed = pool.begin(Scope::Tenant(org)).await.unwrap();
    append(&mut failed, org, &[D, D]).await;
    drop(failed);
    let mut next = pool.begin(Scope::Tenant(org)).await.unwrap();
    append(&mut next, org, &[D]).await;
    next.commit().await.unwrap();
    assert_eq!(read(&pool, org).await, numbered(&[A, B, C, D]));
}

/// Reads a log through changing servers, cut off after a random number of events, until `goal` is reached (a goal of 0
/// is not known yet).
async fn follow(urls: Vec<String>, token: String, goal: Arc<AtomicI64>) -> Vec<i64> {
    let (mut positions, mut cursor) = (Vec::new(), 0);
    while cursor == 0 || cursor != goal.load(Ordering::Relaxed) {
        let dice = usize::from(u16::try_from(getrandom::u64().unwrap() % 65_536).unwrap());
        let mut api = Api::connect(&urls[dice % urls.len()], &token).await.unwrap();
        let request = StreamEventsRequest { start: Some(Start::AfterPosition(cursor)), webhook_types: Vec::new() };
        let mut stream = api.events.stream_events(request).await.unwrap().into_inner();
        for _ in 0..=dice % 17 {
            match stream.message().await.unwrap().and_then(|answer| answer.message) {
                Some(Message::Event(event)) => {
                    cursor = event.position;
                    positions.push(event.position);
                }
                Some(Message::Heartbeat(heartbeat)) => {
                    assert_eq!(heartbeat.position, cursor, "all up to here was told");
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

/// Payments of nothing, taken in by both servers and settled by both workers, while subscribers come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_subscribers_that_are_cut_off_in_a_storm_miss_and_double_nothing_on_two_replicas() {
    const INVOICES: usize = 60;
    let scenery = scenery(Options { servers: 2, ..Options::default() }).await;
    let (mut player, _) = Player::connected(&scenery, "storm").await.unwrap();
    plain_customer(&mut player, "hooli").await;
    let urls: Vec<String> = scenery.stage.servers.iter().map(|server| server.grpc.clone()).collect();
    let goal = Arc::new(AtomicI64::new(0));
    let readers: Vec<_> =
        (0..4).map(|_| tokio::spawn(follow(urls.clone(), player.token.clone(), goal.clone()))).collect();
    let mut writers = tokio::task::JoinSet::new();
    for (number, url) in (0..INVOICES).zip(urls.iter().cycle()) {
        let (url, token) = (url.clone(), player.token.clone());
        writers.spawn(async move {
            let mut api = Api::connect(&url, &token).await.unwrap();
            api.payments.create_payment(invoice("hooli", &format!("inv-{number}"), 0, "EUR")).await.unwrap();
        });
    }
    writers.join_all().await;
    for number in 0..INVOICES {
        player.told("invoice.payment_status_updated", &format!("inv-{number}")).await.unwrap();
    }
    let request = ListEventsRequest { page_size: 1_000, ..ListEventsRequest::default() };
    let page = player.api.events.list_events(request).await.unwrap().into_inner();
    let last = page.last_position;
    assert!(last > 2 * i64::try_from(INVOICES).unwrap(), "each payment told of two things, and more was told");
    let expected: Vec<i64> = (1..=last).collect();
    assert_eq!(page.events.iter().map(|event| event.position).collect::<Vec<_>>(), expected);
    goal.store(last, Ordering::Relaxed);
    for reader in readers {
        let read = tokio::time::timeout(PATIENCE, reader).await.expect("readers come to the end").unwrap();
        assert_eq!(read, expected, "every position once, in order");
    }
    scenery.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_with_a_filter_heartbeats_carry_the_position_scanned_up_to() {
    let scenery = scenery(Options::default()).await;
    let (mut player, _) = Player::connected(&scenery, "filter").await.unwrap();
    plain_customer(&mut player, "hooli").await;
    let request = StreamEventsRequest {
        start: Some(Start::FromStart(true)),
        webhook_types: vec!["payment.succeeded".to_owned()],
    };
    let mut stream = player.api.events.stream_events(request).await.unwrap().into_inner();
    for number in 0..5 {
        pay(&mut player, invoice("hooli", &format!("inv-{number}"), 0, "EUR")).await.unwrap();
        player.told("invoice.payment_status_updated", &format!("inv-{number}")).await.unwrap();
    }
    let all = player.all_events().await.unwrap();
    let last = all.last().unwrap().position;
    let scanning = async {
        let (mut seen, mut scanned) = (Vec::new(), 0);
        while scanned < last {
            match stream.message().await.unwrap().unwrap().message.unwrap() {
                Message::Event(event) => {
                    assert!(event.position > scanned && event.webhook_type == "payment.succeeded");
                    seen.push(event.position);
                }
                Message::Heartbeat(heartbeat) => {
                    assert!(heartbeat.position >= scanned && heartbeat.position <= last);
                    assert!(seen.last().is_none_or(|told| *told <= heartbeat.position));
                    scanned = heartbeat.position;
                }
            }
        }
        seen
    };
    let seen = tokio::time::timeout(PATIENCE, scanning).await.expect("heartbeats reach the end of the log");
    let wanted = all.iter().filter(|event| event.webhook_type == "payment.succeeded");
    assert_eq!(seen, wanted.map(|event| event.position).collect::<Vec<_>>());

    let only = |name: &str| ListEventsRequest { webhook_types: vec![name.to_owned()], ..ListEventsRequest::default() };
    let page = player.api.events.list_events(only("payment.dispute_updated")).await.unwrap().into_inner();
    assert_eq!((page.events.len(), page.next_position, page.last_position), (0, last, last));
    let refused = player.api.events.list_events(only("payment.succeded")).await.expect_err("it is misspelt");
    assert_eq!(refused.code(), Code::InvalidArgument);
    scenery.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_trimming_takes_a_run_from_the_beginning_even_if_times_stand_in_another_order() {
    let url = database().await;
    let administration = paybridge::server::administration(&url).unwrap();
    let org = administration.create_organization("trim").await.unwrap().id;
    let pool = Pool::new(&url, 1).unwrap();
    let (clock, day) = (Clock::system(), time::Duration::DAY);
    let mut tx = pool.begin(Scope::Tenant(org)).await.unwrap();
    for age in [100, 1, 100, 1] {
        let written = clock.now() - day * age;
        store::events::append(&mut tx, org, &[event(A)], written, || clock.new_id()).await.unwrap();
    }
    tx.commit().await.unwrap();
    // In batches of two, until nothing goes any more: after each, what is kept is what the head says, without a hole.
    let mut gone = 1;
    while gone > 0 {
        let mut tx = pool.begin(Scope::System).await.unwrap();
        gone = store::events::trim(&mut tx, org, clock.now() - day * 90, 2).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = pool.begin(Scope::Tenant(org)).await.unwrap();
        let head = store::events::head(&mut tx, org).await.unwrap();
        drop(tx);
        let kept: Vec<i64> = read(&pool, org).await.iter().map(|(position, _)| *position).collect();
        assert_eq!(kept, (head.first_position..=4).collect::<Vec<_>>());
        assert!(head.first_position > 1 && kept.contains(&4), "the oldest goes, the youngest stays");
    }
}

/// The counter is a place where all that tells something waits for each other: callers and Stripe never stand there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_accepting_a_payment_never_waits_for_the_log() {
    let scenery = scenery(Options::default()).await;
    let (mut player, _) = Player::connected(&scenery, "counter").await.unwrap();
    plain_customer(&mut player, "hooli").await;
    let holder = superuser(&scenery.stage.database_url).await;
    holder.batch_execute("BEGIN; LOCK TABLE events, event_heads IN EXCLUSIVE MODE").await.unwrap();
    for number in 0..3 {
        let accepted = pay(&mut player, invoice("hooli", &format!("inv-{number}"), 0, "EUR"));
        tokio::time::timeout(Duration::from_secs(4), accepted).await.expect("it does not wait").unwrap();
    }
    holder.batch_execute("ROLLBACK").await.unwrap();
    for number in 0..3 {
        player.told("payment.succeeded", &format!("inv-{number}")).await.unwrap();
    }
    scenery.stage.strike().await;
}

fn after(position: i64) -> StreamEventsRequest {
    StreamEventsRequest { start: Some(Start::AfterPosition(position)), webhook_types: Vec::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_a_trimmed_log_says_where_it_begins_and_goes_on() {
    let scenery = scenery(Options::default()).await;
    let (mut player, _) = Player::connected(&scenery, "trim").await.unwrap();
    plain_customer(&mut player, "hooli").await;
    pay(&mut player, invoice("hooli", "old", 0, "EUR")).await.unwrap();
    player.told("invoice.payment_status_updated", "old").await.unwrap();
    let last = player.all_events().await.unwrap().last().unwrap().position;

    scenery.stage.clock.advance(time::Duration::days(91));
    let database = superuser(&scenery.stage.database_url).await;
    until("the old events are gone", || async {
        let sql = "SELECT first_position FROM event_heads WHERE organization_id::text = $1";
        let first: i64 = database.query_one(sql, &[&player.organization]).await.unwrap().get(0);
        (first == last + 1).then_some(())
    })
    .await;
    pay(&mut player, invoice("hooli", "new", 0, "EUR")).await.unwrap();
    let new = player.told("payment.succeeded", "new").await.unwrap();
    assert!(new.position > last, "positions go on");

    for position in [0, last - 1] {
        let refusals = [
            refused(player.api.events.stream_events(after(position)).await, Code::OutOfRange, "POSITION_TRIMMED"),
            refused(
                player
                    .api
                    .events
                    .list_events(ListEventsRequest { after_position: position, ..ListEventsRequest::default() })
                    .await,
                Code::OutOfRange,
                "POSITION_TRIMMED",
            ),
        ];
        for (message, details) in refusals {
            assert_eq!(details.error_info().unwrap().metadata["oldest_position"], last.to_string());
            assert!(message.contains(&last.to_string()), "{message}");
        }
    }
    for start in [Start::AfterPosition(last), Start::FromStart(true)] {
        let request = StreamEventsRequest { start: Some(start), webhook_types: Vec::new() };
        let mut stream = player.api.events.stream_events(request).await.unwrap().into_inner();
        let first = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(Message::Event(event)) = stream.message().await.unwrap().unwrap().message {
                    return event.position;
                }
            }
        });
        assert_eq!(first.await.expect("the log is read from its beginning"), last + 1);
    }
    scenery.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_a_position_that_is_not_there_is_answered_with_those_that_are() {
    let scenery = scenery(Options::default()).await;
    let (mut player, _) = Player::connected(&scenery, "long log").await.unwrap();
    plain_customer(&mut player, "hooli").await;
    for number in 0..3 {
        pay(&mut player, invoice("hooli", &format!("inv-{number}"), 0, "EUR")).await.unwrap();
        player.told("invoice.payment_status_updated", &format!("inv-{number}")).await.unwrap();
    }
    let last = player.all_events().await.unwrap().last().unwrap().position;
    let (mut other, _) = Player::connected(&scenery, "short log").await.unwrap();
    let told = |event: &paybridge::grpc::proto::Event| (event.position == 1).then_some(());
    other.event("its first event", told).await.unwrap();

    // The other organization's last position means nothing here: it is simply in the future.
    for (api, position, range) in
        [(&mut player.api, last + 1, format!("1 to {last}")), (&mut other.api, last, "1 to 1".to_owned())]
    {
        let list = ListEventsRequest { after_position: position, ..ListEventsRequest::default() };
        for (_, details) in [
            refused(api.events.stream_events(after(position)).await, Code::InvalidArgument, "INVALID_FIELDS"),
            refused(api.events.list_events(list).await, Code::InvalidArgument, "INVALID_FIELDS"),
        ] {
            let bad = &details.bad_request().unwrap().field_violations[0];
            assert_eq!(bad.field, "after_position");
            assert!(bad.description.contains(&range), "{} names {range}", bad.description);
        }
    }
    let mut stream = other.api.events.stream_events(after(1)).await.unwrap().into_inner();
    let nothing = tokio::time::timeout(Duration::from_secs(10), stream.message()).await.unwrap().unwrap().unwrap();
    assert!(matches!(nothing.message, Some(Message::Heartbeat(it)) if it.position == 1), "its own log ends at 1");
    scenery.stage.strike().await;
}
