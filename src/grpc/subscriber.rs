//! One event stream of one client: a task with a cursor. It reads the events after its cursor from the log tail, sends
//! those that pass the filter, and waits for new events, the next heartbeat, a disconnect of the client, or shutdown.
//!
//! The channel to the client is short, so a slow client blocks only its own task and costs a cursor, not memory (P11).
//! Positions have no gaps and are read in order (P5). A client that resumes after the last position received, on any
//! replica, misses no event.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::Instrument as _;

use super::convert::events as convert;
use super::event_filter::EventFilter;
use super::log_tail::LogTail;
use super::proto::stream_events_response::Message;
use super::proto::{self, Heartbeat, StreamEventsResponse};
use crate::app::App;
use crate::domain::{Error, LogId, OrganizationId, Result};
use crate::failpoints::{self, Failpoint};

/// The number of messages queued for a slow client.
const QUEUED_MAX: usize = 4;
/// The number of events per read.
const READ_SIZE: usize = 50;
/// The retry delay sent at shutdown. Clients can resume on another replica at once.
const RESUME_AFTER: Duration = Duration::from_millis(100);

type StreamItem = Result<StreamEventsResponse, Status>;

/// One event stream.
pub(super) struct Subscriber {
    pub(super) app: App,
    pub(super) organization: OrganizationId,
    pub(super) log_id: LogId,
    /// The position up to which every event was sent or did not pass the filter.
    pub(super) cursor: i64,
    pub(super) filter: EventFilter,
    pub(super) log_tail: Arc<LogTail>,
    pub(super) _permit: StreamPermit,
}

impl Subscriber {
    /// Starts the task. The stream ends with a status when `shutdown` is canceled, or when the log cannot be read or was
    /// replaced.
    pub(super) fn start(self, heartbeat: Duration, shutdown: CancellationToken) -> ReceiverStream<StreamItem> {
        // One slot is reserved for the final status, so it can be sent even if the client has stopped reading.
        let (to_client, messages) = mpsc::channel(QUEUED_MAX + 1);
        let reserved = to_client.clone().try_reserve_owned().ok();
        let task = async move {
            let end = tokio::select! {
                biased;
                () = to_client.closed() => return,
                () = shutdown.cancelled() => shutting_down(),
                Err(end) = self.run(&to_client, heartbeat) => end,
            };
            if let Some(slot) = reserved {
                slot.send(Err(end.into()));
            }
        };
        tokio::spawn(task.in_current_span());
        ReceiverStream::new(messages)
    }

    /// Sends events and heartbeats until an error ends the stream.
    async fn run(mut self, to_client: &mpsc::Sender<StreamItem>, heartbeat: Duration) -> Result<Infallible> {
        // The first heartbeat is due at once, so that the client has a position to resume after from the start.
        let mut next_heartbeat = Instant::now();
        let mut last_position = self.log_tail.last_position();
        loop {
            let events = self.next_events().await?;
            let is_caught_up = events.is_empty();
            for event in events {
                advance(&mut self.cursor, event.position)?;
                if self.filter.passes(&event) {
                    failpoints::hit(Failpoint::BeforeEvent);
                    send(to_client, Message::Event(Arc::unwrap_or_clone(event))).await?;
                    next_heartbeat = Instant::now() + heartbeat;
                }
            }
            if is_caught_up {
                // Both a timeout and a change are fine, and the channel cannot close while we hold the log tail.
                let _ = timeout_at(next_heartbeat, last_position.changed()).await;
            }
            if Instant::now() >= next_heartbeat {
                let position = Heartbeat { position: self.cursor, log_id: self.log_id.to_string() };
                send(to_client, Message::Heartbeat(position)).await?;
                next_heartbeat = Instant::now() + heartbeat;
            }
        }
    }

    /// The events after the cursor: from the log tail, or from the database if they are no longer in memory, or the log
    /// tail has ended.
    async fn next_events(&self) -> Result<Vec<Arc<proto::Event>>> {
        if let Some(events) = self.log_tail.events_after(self.cursor, READ_SIZE) {
            return Ok(events);
        }
        let limit = i64::try_from(READ_SIZE).map_err(Error::internal)?;
        let events = self.app.events_after(self.organization, self.log_id, self.cursor, limit).await?;
        Ok(events.into_iter().map(|event| Arc::new(convert::event(event, self.log_id))).collect())
    }
}

/// Moves a cursor to the position of the event that was read after it. A gap means that retention has trimmed the log.
pub(super) fn advance(cursor: &mut i64, position: i64) -> Result<()> {
    let requested = std::mem::replace(cursor, position);
    if position == requested + 1 { Ok(()) } else { Err(Error::PositionTrimmed { requested, oldest: position - 1 }) }
}

/// Sends a message as soon as the channel has room for it.
async fn send(to_client: &mpsc::Sender<StreamItem>, message: Message) -> Result<()> {
    let message = StreamEventsResponse { message: Some(message) };
    // The client has disconnected, so this error is not sent.
    to_client.send(Ok(message)).await.map_err(|_| shutting_down())
}

fn shutting_down() -> Error {
    Error::Unavailable {
        reason: "SHUTTING_DOWN",
        message: "the server is shutting down; resume after the last position received".to_owned(),
        retry_after: RESUME_AFTER,
    }
}

/// Limits the open streams per organization on this replica (P11).
#[derive(Default)]
pub(super) struct StreamLimiter(Mutex<HashMap<OrganizationId, usize>>);

/// Permits one open stream. Released when dropped.
pub(super) struct StreamPermit {
    stream_limiter: Arc<StreamLimiter>,
    organization: OrganizationId,
}

impl StreamLimiter {
    /// Acquires a permit. Fails if the organization already has `max` streams open.
    pub(super) fn acquire(
        stream_limiter: &Arc<Self>,
        organization: OrganizationId,
        max: usize,
    ) -> Result<StreamPermit> {
        let mut counts = stream_limiter.0.lock();
        let count = counts.entry(organization).or_default();
        if *count >= max {
            let message = format!(
                "the organization already has {max} event streams open on this replica; close one or share one"
            );
            return Err(Error::Exhausted { reason: "TOO_MANY_STREAMS", message });
        }
        *count += 1;
        Ok(StreamPermit { stream_limiter: Arc::clone(stream_limiter), organization })
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut counts = self.stream_limiter.0.lock();
        if let Some(count) = counts.get_mut(&self.organization) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.organization);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;
    use tonic::Code;
    use tonic_types::StatusExt as _;
    use uuid::Uuid;

    use super::*;
    use crate::domain::events::EventType;
    use crate::grpc::tests::app_without_database;

    const HEARTBEAT: Duration = Duration::from_millis(1);

    /// Three types, to distinguish events.
    const A: EventType = EventType::PaymentPending;
    const B: EventType = EventType::PaymentProcessing;
    const C: EventType = EventType::PaymentSucceeded;

    /// A subscriber to a log with events of these types at positions 1, 2, 3, …, all in memory.
    fn subscriber(types: &[EventType], filter: &[EventType], stream_limiter: &Arc<StreamLimiter>) -> Subscriber {
        let organization = Uuid::from_u128(1).into();
        let events = (1..).zip(types).map(|(position, name)| proto::Event {
            position,
            webhook_type: name.as_str().to_owned(),
            ..Default::default()
        });
        Subscriber {
            app: app_without_database(),
            organization,
            log_id: Uuid::nil().into(),
            cursor: 0,
            filter: EventFilter::of(filter),
            log_tail: Arc::new(LogTail::with_events(events)),
            _permit: StreamLimiter::acquire(stream_limiter, organization, 1).unwrap(),
        }
    }

    /// `>3` for the event at position 3, `~3` for a heartbeat at 3, otherwise the status code.
    fn summary(item: &StreamItem) -> String {
        match item {
            Ok(StreamEventsResponse { message: Some(Message::Event(event)) }) => format!(">{}", event.position),
            Ok(StreamEventsResponse { message: Some(Message::Heartbeat(it)) }) => format!("~{}", it.position),
            Ok(_) => String::new(),
            Err(status) => format!("{:?}", status.code()),
        }
    }

    async fn received(stream: &mut ReceiverStream<StreamItem>, count: usize) -> Vec<String> {
        stream.take(count).map(|item| summary(&item)).collect().await
    }

    #[tokio::test]
    async fn p5_a_stream_sends_all_events_in_order_and_then_heartbeats() {
        let subscriber = subscriber(&[A, B, A], &[], &Arc::default());
        let mut stream = subscriber.start(HEARTBEAT, CancellationToken::new());
        assert_eq!(received(&mut stream, 5).await, [">1", ">2", ">3", "~3", "~3"]);
    }

    #[tokio::test]
    async fn p5_with_a_filter_heartbeats_carry_the_position_scanned_up_to() {
        let subscriber = subscriber(&[A, B, A, C], &[A], &Arc::default());
        let mut stream = subscriber.start(HEARTBEAT, CancellationToken::new());
        assert_eq!(received(&mut stream, 3).await, [">1", ">3", "~4"]);
    }

    #[tokio::test]
    async fn a_new_stream_sends_a_position_at_once() {
        let subscriber = subscriber(&[], &[], &Arc::default());
        let mut stream = subscriber.start(Duration::from_hours(1), CancellationToken::new());
        assert_eq!(received(&mut stream, 1).await, ["~0"]);
    }

    #[tokio::test]
    async fn p11_a_client_that_does_not_read_queues_few_messages_and_gets_the_final_status() {
        let shutdown = CancellationToken::new();
        let mut stream = subscriber(&[A; 200], &[], &Arc::default()).start(HEARTBEAT, shutdown.clone());
        assert_eq!(received(&mut stream, 1).await, [">1"]);
        shutdown.cancel();
        let queued: Vec<_> = stream.collect().await;
        assert!(queued.len() <= QUEUED_MAX + 2, "{} were queued", queued.len());
        let Some(Err(end)) = queued.last() else { panic!("the stream ended without a status") };
        assert_eq!(end.code(), Code::Unavailable);
        assert_eq!(end.get_details_error_info().unwrap().reason, "SHUTTING_DOWN");
        assert_eq!(end.get_details_retry_info().unwrap().retry_delay, Some(RESUME_AFTER));
    }

    #[test]
    fn p5_a_gap_ends_the_stream_with_an_error() {
        let mut cursor = 4;
        assert!(advance(&mut cursor, 5).is_ok());
        let gap = advance(&mut cursor, 9);
        assert!(matches!(gap, Err(Error::PositionTrimmed { requested: 5, oldest: 8 })), "{gap:?}");
    }

    #[tokio::test]
    async fn p11_a_client_that_disconnects_releases_its_permit() {
        let stream_limiter = Arc::new(StreamLimiter::default());
        let mut stream = subscriber(&[A], &[], &stream_limiter).start(HEARTBEAT, CancellationToken::new());
        assert_eq!(received(&mut stream, 1).await, [">1"]);
        drop(stream);
        let released = async {
            while !stream_limiter.0.lock().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), released).await.unwrap();
    }

    #[test]
    fn p11_the_streams_of_an_organization_are_limited() {
        let stream_limiter = Arc::new(StreamLimiter::default());
        let acquire = |organization| StreamLimiter::acquire(&stream_limiter, Uuid::from_u128(organization).into(), 2);
        let (first, second) = (acquire(1).unwrap(), acquire(1).unwrap());
        assert!(matches!(acquire(1), Err(Error::Exhausted { reason: "TOO_MANY_STREAMS", .. })));
        assert!(acquire(2).is_ok(), "each organization has its own limit");
        drop(first);
        let third = acquire(1).unwrap();
        drop((second, third));
        assert!(stream_limiter.0.lock().is_empty(), "closed streams leave no entry");
    }
}
