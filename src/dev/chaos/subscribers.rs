//! Subscribers: each follows an organization's log on whichever process takes it, owns its cursor, and writes down every
//! event that it sees. They differ in temper.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::book::{Book, Seen};
use super::callers::Organization;
use super::pause;
use crate::dev::rng::Rng;
use crate::grpc::proto::stream_events_request::Start;
use crate::grpc::proto::stream_events_response::Message;
use crate::grpc::proto::{Event, StreamEventsRequest};

/// How long a stream may be silent before it is given up: its process may have been stopped.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long a subscriber waits before it tries another process.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What a subscriber is like.
pub(super) enum Temper {
    /// The billing system itself: reads on, and acts on what it reads.
    Billing(mpsc::UnboundedSender<(usize, Event)>),
    /// Takes its time with each event.
    Slow,
    /// Hangs up all the time, and goes back a little, or to the start.
    Restless,
}

impl Temper {
    fn name(&self) -> &'static str {
        match self {
            Self::Billing(_) => "billing",
            Self::Slow => "slow",
            Self::Restless => "restless",
        }
    }
}

/// One that follows a log.
pub(super) struct Subscriber {
    organization: Arc<Organization>,
    number: usize,
    temper: Temper,
    book: Arc<Book>,
    page: usize,
    cursor: i64,
    rng: Rng,
}

impl Subscriber {
    /// Opens a page in the book for one more subscriber of an organization.
    pub fn new(organization: &Arc<Organization>, number: usize, temper: Temper, book: &Arc<Book>, seed: u64) -> Self {
        let page = book.add_reader(number, temper.name());
        let rng = Rng::named(seed, &format!("subscriber {page}"));
        let (organization, book) = (Arc::clone(organization), Arc::clone(book));
        Self { organization, number, temper, book, page, cursor: 0, rng }
    }

    /// Follows the log until `stop` is cancelled.
    pub async fn follow(mut self, stop: CancellationToken) {
        let following = async {
            loop {
                if let Err(status) = self.follow_once().await
                    && matches!(status.code(), Code::OutOfRange | Code::InvalidArgument | Code::Unauthenticated)
                {
                    // The log can't be where a subscriber has been already: that is no weather.
                    let fault = format!("after {}: {:?} {}", self.cursor, status.code(), status.message());
                    self.book.reader(self.page, |reader| reader.blame(fault));
                }
                pause(AGAIN_AFTER).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = following => {}
        }
    }

    /// One stream, from the cursor on, for as long as it or this subscriber's patience lasts.
    async fn follow_once(&mut self) -> Result<(), Status> {
        if matches!(self.temper, Temper::Restless) {
            let back = if self.rng.chance(5) { self.cursor } else { i64::try_from(self.rng.below(40)).unwrap_or(0) };
            self.cursor -= back.min(self.cursor);
        }
        let restless_after = self.rng.between(20, 400);
        let request = StreamEventsRequest { start: Some(Start::AfterPosition(self.cursor)), webhook_types: Vec::new() };
        let mut events = self.organization.any_api(&mut self.rng).events;
        let silent = |_| Status::deadline_exceeded("silence");
        let mut stream = timeout(SILENCE_MAX, events.stream_events(request)).await.map_err(silent)??.into_inner();
        for count in 0_u64.. {
            let answer = timeout(SILENCE_MAX, stream.message()).await.map_err(silent)??;
            match answer.and_then(|answer| answer.message) {
                None => return Ok(()),
                Some(Message::Heartbeat(heartbeat)) if heartbeat.position != self.cursor => {
                    let fault = format!("after {} a heartbeat says {}", self.cursor, heartbeat.position);
                    self.book.reader(self.page, |reader| reader.blame(fault));
                    return Ok(());
                }
                Some(Message::Heartbeat(_)) => {}
                Some(Message::Event(event)) => self.take(event),
            }
            match self.temper {
                Temper::Slow => pause(Duration::from_millis(self.rng.below(20))).await,
                Temper::Restless if count > restless_after => return Ok(()),
                _ => {}
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Event) {
        let seen = Seen { id: event.id.parse().unwrap_or_default(), webhook_type: event.webhook_type.clone() };
        self.book.reader(self.page, |reader| reader.note(self.cursor, event.position, seen));
        self.cursor = event.position;
        if let Temper::Billing(act) = &self.temper {
            let _ = act.send((self.number, event));
        }
    }
}
