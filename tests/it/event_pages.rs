//! ListEvents: its pages, the position from which a poller continues, and the log that a position is of.

use paybridge::dev::scenarios::BillingClient;
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::stream_events_request::Start;
use paybridge::grpc::proto::stream_events_response::Message;
use paybridge::grpc::proto::{ListEventsRequest, ListEventsResponse, StreamEventsRequest, StreamEventsResponse};
use tonic::{Code, Response, Status, Streaming};

use crate::support::context;
use crate::support::customers::local_customer;
use crate::support::errors::{expect_error, violations};
use crate::support::payments::{invoice, pay};
use crate::support::sql::superuser;
use crate::support::wait::PATIENCE;

async fn list(billing: &BillingClient, request: &ListEventsRequest) -> Result<Response<ListEventsResponse>, Status> {
    billing.api.events.clone().list_events(request.clone()).await
}

/// Reads all pages from the first one on. Returns the positions of their events, and the last page.
async fn read_pages(billing: &BillingClient, first: &ListEventsRequest) -> (Vec<i64>, ListEventsResponse) {
    let (mut positions, mut request) = (Vec::new(), first.clone());
    loop {
        let page = list(billing, &request).await.expect("a page").into_inner();
        assert!(page.events.len() <= usize::try_from(first.page_size).expect("a size"));
        positions.extend(page.events.iter().map(|event| event.position));
        if page.next_page_token.is_empty() {
            return (positions, page);
        }
        request.page_token = page.next_page_token;
    }
}

/// Collects an invoice of 0, which needs no Stripe.
async fn collect(billing: &mut BillingClient, invoice_id: &str) {
    pay(billing, invoice("hooli", invoice_id, 0, "EUR")).await.expect("it is accepted");
    billing.wait_for_event("invoice.payment_status_updated", invoice_id).await.expect("it is paid");
}

/// Reads a stream until it ends.
async fn end_of(stream: &mut Streaming<StreamEventsResponse>) -> Result<Response<()>, Status> {
    let reading = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(Response::new(())),
                Err(status) => return Err(status),
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the stream ends in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_pages_cover_the_log_once_and_a_poller_continues_after_the_last_one() {
    let context = context(Options::default()).await;
    let (mut billing, _) = BillingClient::connected(&context, "pages").await.expect("an integration");
    local_customer(&mut billing, "hooli").await;
    for number in 0..3 {
        collect(&mut billing, &format!("inv-{number}")).await;
    }
    let all = billing.all_events().await.expect("the log");
    let last = all.last().expect("an event").position;
    let first = ListEventsRequest { page_size: 2, ..ListEventsRequest::default() };
    let (positions, page) = read_pages(&billing, &first).await;
    assert_eq!((positions, page.last_position), ((1..=last).collect::<Vec<_>>(), last));
    let later = ListEventsRequest { after_position: 3, ..first.clone() };
    assert_eq!(read_pages(&billing, &later).await.0, (4..=last).collect::<Vec<_>>());

    let types = vec!["payment.succeeded".to_owned()];
    let filtered = ListEventsRequest { webhook_types: types.clone(), page_size: 1, ..first.clone() };
    let (positions, page) = read_pages(&billing, &filtered).await;
    let succeeded = all.iter().filter(|event| event.webhook_type == "payment.succeeded");
    assert_eq!(positions, succeeded.map(|event| event.position).collect::<Vec<_>>());
    assert_eq!(page.last_position, last, "the filter hides events, but they were read");

    collect(&mut billing, "new").await;
    let now = billing.all_events().await.expect("the log").last().expect("an event").position;
    let poll = ListEventsRequest { after_position: last, log_id: page.log_id, ..first.clone() };
    assert_eq!(read_pages(&billing, &poll).await.0, ((last + 1)..=now).collect::<Vec<_>>());
    let nothing =
        list(&billing, &ListEventsRequest { after_position: now, ..poll }).await.expect("a page").into_inner();
    assert_eq!((nothing.events.len(), nothing.next_page_token.as_str(), nothing.last_position), (0, "", now));

    let token = list(&billing, &first).await.expect("a page").into_inner().next_page_token;
    let other_filter = ListEventsRequest { webhook_types: types, page_token: token.clone(), ..first.clone() };
    let other_start = ListEventsRequest { after_position: 1, page_token: token, ..first };
    for other in [other_filter, other_start] {
        assert_eq!(violations(list(&billing, &other).await), ["page_token"]);
    }
    context.environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_a_position_of_a_log_that_was_replaced_is_refused_with_where_to_resume() {
    let context = context(Options::default()).await;
    let (mut billing, _) = BillingClient::connected(&context, "restored").await.expect("an integration");
    local_customer(&mut billing, "hooli").await;
    collect(&mut billing, "inv").await;
    let last = billing.all_events().await.expect("the log").last().expect("an event").position;
    let first = ListEventsRequest { page_size: 1, ..ListEventsRequest::default() };
    let page = list(&billing, &first).await.expect("a page").into_inner();
    let (log_id, page_token) = (page.log_id, page.next_page_token);
    assert_eq!(page.events[0].log_id, log_id);
    let mut events = billing.api.events.clone();
    let stream = |after: i64, log_id: &str| StreamEventsRequest {
        start: Some(Start::AfterPosition(after)),
        log_id: log_id.to_owned(),
        ..StreamEventsRequest::default()
    };
    let mut idle = events.stream_events(stream(last, &log_id)).await.expect("its own log").into_inner();
    let heartbeat = tokio::time::timeout(PATIENCE, idle.message()).await.expect("in time").expect("a message");
    let Some(Message::Heartbeat(heartbeat)) = heartbeat.and_then(|it| it.message) else { panic!("no heartbeat") };
    assert_eq!((heartbeat.position, &heartbeat.log_id), (last, &log_id));

    let database = superuser(&context.environment.database_url).await;
    let replace = "UPDATE event_heads SET log_id = gen_random_uuid() WHERE organization_id::text = $1 \
        RETURNING log_id::text";
    let new: String = database.query_one(replace, &[&billing.organization]).await.expect("another log").get(0);
    let mut errors = vec![expect_error(end_of(&mut idle).await, Code::OutOfRange, "LOG_REPLACED")];
    for position in [0, 1, last, last + 1] {
        let request = ListEventsRequest { after_position: position, log_id: log_id.clone(), ..first.clone() };
        errors.push(expect_error(list(&billing, &request).await, Code::OutOfRange, "LOG_REPLACED"));
        let refused = events.stream_events(stream(position, &log_id)).await;
        errors.push(expect_error(refused, Code::OutOfRange, "LOG_REPLACED"));
    }
    let next = ListEventsRequest { page_token, ..first.clone() };
    errors.push(expect_error(list(&billing, &next).await, Code::OutOfRange, "LOG_REPLACED"));
    for (message, details) in errors {
        let metadata = &details.error_info().expect("an ErrorInfo").metadata;
        assert_eq!((&metadata["log_id"], metadata["oldest_position"].as_str()), (&new, "0"), "{message}");
    }

    assert!(list(&billing, &first).await.is_ok(), "without a log_id, positions are of the present log");
    let mut resumed = events.stream_events(stream(0, &new)).await.expect("the new log").into_inner();
    let event = tokio::time::timeout(PATIENCE, resumed.message()).await.expect("in time").expect("a message");
    let Some(Message::Event(event)) = event.and_then(|it| it.message) else { panic!("no event") };
    assert_eq!((event.position, event.log_id), (1, new));
    context.environment.shutdown().await;
}

/// As after the loss of the last commits: the next events would have positions that the reader has passed already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_an_open_stream_ends_if_its_log_has_lost_the_position() {
    let context = context(Options::default()).await;
    let (mut billing, _) = BillingClient::connected(&context, "lost-end").await.expect("an integration");
    local_customer(&mut billing, "hooli").await;
    collect(&mut billing, "inv").await;
    let last = billing.all_events().await.expect("the log").last().expect("an event").position;
    let after = |position| StreamEventsRequest {
        start: Some(Start::AfterPosition(position)),
        ..StreamEventsRequest::default()
    };
    let mut events = billing.api.events.clone();
    let mut open = events.stream_events(after(last)).await.expect("a stream").into_inner();
    open.message().await.expect("a heartbeat");

    let database = superuser(&context.environment.database_url).await;
    let lose = "WITH lost AS (DELETE FROM events WHERE organization_id::text = $1 AND position >= $2) \
        UPDATE event_heads SET last_position = $2 - 1 WHERE organization_id::text = $1";
    database.execute(lose, &[&billing.organization, &last]).await.expect("the end is lost");
    let resumed = events.stream_events(after(last)).await;
    for refused in [violations(end_of(&mut open).await), violations(resumed)] {
        assert_eq!(refused, ["after_position"]);
    }
    context.environment.shutdown().await;
}
