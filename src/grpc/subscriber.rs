//! What follows an organization's log for one client: a task with a cursor. It takes what comes after its cursor from the
//! feed, hands on what passes the filter, and waits: for the log to grow, for the time of a heartbeat, for the client to hang up, or for this
//! process to stop.
//!
//! The channel to the client is short, so a slow client holds up its own task and nothing else: it costs a cursor, not
//! memory (P11). Positions have no holes and are read in order (P5); whoever resumes after the last position seen, on any
//! replica, misses nothing and sees nothing twice.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::Instrument as _;

use super::convert::{Fields, events as convert};
use super::feed::Feed;
use super::proto::stream_events_response::Message;
use super::proto::{self, Heartbeat, StreamEventsResponse};
use crate::app::App;
use crate::crash::{self, Point};
use crate::domain::events::WEBHOOK_TYPES;
use crate::domain::{Error, OrganizationId, Result};

/// How many messages may wait for a slow client.
const WAITING_MAX: usize = 4;
/// How many events a subscriber reads at once.
const READ_SIZE: usize = 50;
/// How many types a filter may name.
const TYPES_MAX: usize = 64;
/// The wait advised to a client whose stream ends with this process; other replicas are there at once.
const RESUME_AFTER: Duration = Duration::from_millis(100);

type Answer = Result<StreamEventsResponse, Status>;

/// One client that follows the log.
pub(super) struct Subscriber {
    pub(super) app: App,
    pub(super) organization: OrganizationId,
    /// The position up to which all is told, or did not pass the filter.
    pub(super) cursor: i64,
    pub(super) filter: Filter,
    pub(super) feed: Arc<Feed>,
    pub(super) _seat: Seat,
}

impl Subscriber {
    /// Sets out. The stream ends with a status when `stopping` is cancelled, and when the log can't be read.
    pub(super) fn start(self, heartbeat: Duration, stopping: CancellationToken) -> ReceiverStream<Answer> {
        // One place more, so that the last word can always be said, even to a client that has stopped reading.
        let (to_client, messages) = mpsc::channel(WAITING_MAX + 1);
        let last_word = to_client.clone().try_reserve_owned().ok();
        let following = async move {
            let end = tokio::select! {
                biased;
                () = to_client.closed() => return,
                () = stopping.cancelled() => stopped(),
                Err(end) = self.follow(&to_client, heartbeat) => end,
            };
            if let Some(place) = last_word {
                place.send(Err(end.into()));
            }
        };
        tokio::spawn(following.in_current_span());
        ReceiverStream::new(messages)
    }

    /// Tells until something ends it.
    async fn follow(mut self, to_client: &mpsc::Sender<Answer>, heartbeat: Duration) -> Result<Infallible> {
        // Something is told at once, if only a heartbeat: so the client has a position to resume after from the start.
        let mut silent_until = Instant::now();
        let mut tip = self.feed.tip();
        loop {
            let events = self.next().await?;
            let is_all = events.is_empty();
            for event in events {
                self.advance(&event)?;
                if self.filter.passes(&event) {
                    crash::point(Point::BeforeEvent);
                    tell(to_client, Message::Event(Arc::unwrap_or_clone(event))).await?;
                    silent_until = Instant::now() + heartbeat;
                }
            }
            if is_all {
                // Running out of time is no news, and the feed that we hold can't go away.
                let _ = timeout_at(silent_until, tip.changed()).await;
            }
            if Instant::now() >= silent_until {
                tell(to_client, Message::Heartbeat(Heartbeat { position: self.cursor })).await?;
                silent_until = Instant::now() + heartbeat;
            }
        }
    }

    /// What comes after the cursor: from the feed, or from the log itself if the feed does not remember as far back.
    async fn next(&self) -> Result<Vec<Arc<proto::Event>>> {
        if let Some(events) = self.feed.after(self.cursor, READ_SIZE) {
            return Ok(events);
        }
        let limit = i64::try_from(READ_SIZE).map_err(Error::internal)?;
        let events = self.app.events_after(self.organization, self.cursor, limit).await?;
        Ok(events.into_iter().map(|event| Arc::new(convert::event(event))).collect())
    }

    /// Moves the cursor to `event`, which must be the next one: a hole means that the log was trimmed under our feet.
    fn advance(&mut self, event: &proto::Event) -> Result<()> {
        let asked = std::mem::replace(&mut self.cursor, event.position);
        if event.position == asked + 1 {
            Ok(())
        } else {
            Err(Error::PositionTrimmed { asked, oldest: event.position - 1 })
        }
    }
}

/// Hands a message on, when the client has room for it.
async fn tell(to_client: &mpsc::Sender<Answer>, message: Message) -> Result<()> {
    let message = StreamEventsResponse { message: Some(message) };
    // The client has hung up; nobody will read this error.
    to_client.send(Ok(message)).await.map_err(|_| stopped())
}

fn stopped() -> Error {
    Error::Unavailable {
        reason: "SHUTTING_DOWN",
        message: "this process is stopping; resume after the last position seen".to_owned(),
        retry_after: RESUME_AFTER,
    }
}

/// Which types of events are wanted; none named means all.
pub(super) struct Filter(Vec<String>);

impl Filter {
    pub(super) fn parse(fields: &mut Fields, webhook_types: Vec<String>) -> Self {
        if webhook_types.len() > TYPES_MAX {
            fields.object("webhook_types", format!("must name at most {TYPES_MAX} types"));
        }
        for (index, name) in webhook_types.iter().enumerate().take(TYPES_MAX) {
            // Whoever misspells a type would wait for it for ever.
            if !WEBHOOK_TYPES.contains(&name.as_str()) {
                let text = "names a type that does not exist; the comment of Event lists all of them";
                fields.object(&format!("webhook_types[{index}]"), text);
            }
        }
        Self(webhook_types)
    }

    pub(super) fn passes(&self, event: &proto::Event) -> bool {
        self.0.is_empty() || self.0.contains(&event.webhook_type)
    }
}

/// How many streams each organization has open here (P11).
#[derive(Default)]
pub(super) struct Seats(Mutex<HashMap<OrganizationId, usize>>);

/// One open stream; dropped, it makes room for another.
pub(super) struct Seat {
    seats: Arc<Seats>,
    organization: OrganizationId,
}

impl Seats {
    /// Takes a seat, unless the organization has `max` already.
    pub(super) fn take(seats: &Arc<Self>, organization: OrganizationId, max: usize) -> Result<Seat> {
        let mut taken = seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(organization).or_default();
        if *count >= max {
            let message = format!("the organization has {max} event streams open here; close one, or share one");
            return Err(Error::Exhausted { reason: "TOO_MANY_STREAMS", message });
        }
        *count += 1;
        Ok(Seat { seats: Arc::clone(seats), organization })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.organization) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.organization);
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
    use crate::grpc::tests::app_without_database;

    const HEARTBEAT: Duration = Duration::from_millis(1);

    /// A subscriber to a log that holds these types at the positions 1, 2, 3, …, all of them in the feed.
    fn subscriber(types: &[&str], filter: &[&str], seats: &Arc<Seats>) -> Subscriber {
        let organization = Uuid::from_u128(1).into();
        let events = (1..).zip(types).map(|(position, name)| proto::Event {
            position,
            webhook_type: (*name).to_owned(),
            ..Default::default()
        });
        Subscriber {
            app: app_without_database(),
            organization,
            cursor: 0,
            filter: Filter(filter.iter().map(ToString::to_string).collect()),
            feed: Arc::new(Feed::remembering(events)),
            _seat: Seats::take(seats, organization, 1).unwrap(),
        }
    }

    /// `>3` for the event at 3, `~3` for a heartbeat at 3, else the code of the status.
    fn short(answer: &Answer) -> String {
        match answer {
            Ok(StreamEventsResponse { message: Some(Message::Event(event)) }) => format!(">{}", event.position),
            Ok(StreamEventsResponse { message: Some(Message::Heartbeat(it)) }) => format!("~{}", it.position),
            Ok(_) => String::new(),
            Err(status) => format!("{:?}", status.code()),
        }
    }

    async fn told(stream: &mut ReceiverStream<Answer>, count: usize) -> Vec<String> {
        stream.take(count).map(|answer| short(&answer)).collect().await
    }

    #[tokio::test]
    async fn p5_a_stream_tells_everything_in_order_and_then_gives_signs_of_life() {
        let subscriber = subscriber(&["a", "b", "a"], &[], &Arc::default());
        let mut stream = subscriber.start(HEARTBEAT, CancellationToken::new());
        assert_eq!(told(&mut stream, 5).await, [">1", ">2", ">3", "~3", "~3"]);
    }

    #[tokio::test]
    async fn p5_with_a_filter_heartbeats_carry_the_position_scanned_up_to() {
        let subscriber = subscriber(&["a", "b", "a", "c"], &["a"], &Arc::default());
        let mut stream = subscriber.start(HEARTBEAT, CancellationToken::new());
        assert_eq!(told(&mut stream, 3).await, [">1", ">3", "~4"]);
    }

    #[tokio::test]
    async fn a_new_stream_has_a_position_at_once_however_long_the_heartbeat() {
        let subscriber = subscriber(&[], &[], &Arc::default());
        let mut stream = subscriber.start(Duration::from_hours(1), CancellationToken::new());
        assert_eq!(told(&mut stream, 1).await, ["~0"]);
    }

    #[tokio::test]
    async fn p11_a_client_that_does_not_read_holds_up_a_few_messages_and_is_told_the_end_all_the_same() {
        let stopping = CancellationToken::new();
        let mut stream = subscriber(&["a"; 200], &[], &Arc::default()).start(HEARTBEAT, stopping.clone());
        assert_eq!(told(&mut stream, 1).await, [">1"]);
        stopping.cancel();
        let rest: Vec<_> = stream.collect().await;
        assert!(rest.len() <= WAITING_MAX + 2, "{} were waiting", rest.len());
        let Some(Err(end)) = rest.last() else { panic!("the stream ended without a word") };
        assert_eq!(end.code(), Code::Unavailable);
        assert_eq!(end.get_details_error_info().unwrap().reason, "SHUTTING_DOWN");
        assert_eq!(end.get_details_retry_info().unwrap().retry_delay, Some(RESUME_AFTER));
    }

    #[tokio::test]
    async fn p5_a_hole_ends_the_stream_instead_of_passing_unnoticed() {
        let mut subscriber = subscriber(&[], &[], &Arc::default());
        subscriber.cursor = 4;
        assert!(subscriber.advance(&proto::Event { position: 5, ..Default::default() }).is_ok());
        let hole = subscriber.advance(&proto::Event { position: 9, ..Default::default() });
        assert!(matches!(hole, Err(Error::PositionTrimmed { asked: 5, oldest: 8 })), "{hole:?}");
    }

    #[tokio::test]
    async fn p11_a_client_that_hangs_up_leaves_its_seat() {
        let seats = Arc::new(Seats::default());
        let mut stream = subscriber(&["a"], &[], &seats).start(HEARTBEAT, CancellationToken::new());
        assert_eq!(told(&mut stream, 1).await, [">1"]);
        drop(stream);
        let left = async {
            while !seats.0.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), left).await.unwrap();
    }

    #[test]
    fn p11_an_organization_has_so_many_streams_and_no_more() {
        let seats = Arc::new(Seats::default());
        let take = |organization| Seats::take(&seats, Uuid::from_u128(organization).into(), 2);
        let (first, second) = (take(1).unwrap(), take(1).unwrap());
        assert!(matches!(take(1), Err(Error::Exhausted { reason: "TOO_MANY_STREAMS", .. })));
        assert!(take(2).is_ok(), "another organization has seats of its own");
        drop(first);
        let third = take(1).unwrap();
        drop((second, third));
        assert!(seats.0.lock().unwrap().is_empty(), "nothing is kept of those who left");
    }

    #[test]
    fn p11_filters_have_a_limit_and_name_types_that_there_are() {
        let objections = |types: Vec<String>| {
            let mut fields = Fields::default();
            Filter::parse(&mut fields, types);
            fields.check().is_err()
        };
        assert!(!objections(vec!["payment.succeeded".into()]));
        assert!(!objections(vec!["payment.succeeded".into(); TYPES_MAX]));
        assert!(objections(vec!["payment.succeeded".into(); TYPES_MAX + 1]));
        assert!(objections(vec!["payment.succeded".into()]), "a misspelt type would never be told");
        assert!(objections(vec![String::new()]));
    }
}
