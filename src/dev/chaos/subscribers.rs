//! Subscribers: each follows an organization's log on any process, owns its cursor, and records every event that it
//! receives.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::callers::Organization;
use super::history::{History, SeenEvent, SubscriberRecord};
use crate::clock::pause;
use crate::dev::rng::Rng;
use crate::grpc::proto::stream_events_request::Start;
use crate::grpc::proto::stream_events_response::Message;
use crate::grpc::proto::{Event, StreamEventsRequest};

/// How long a stream may be silent before it is closed: its process may have been paused.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before a reconnect.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// How a subscriber behaves.
#[derive(strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(super) enum SubscriberKind {
    /// The billing system: reads continuously and reacts to events.
    Billing(mpsc::UnboundedSender<(usize, Event)>),
    /// Reads slowly.
    Slow,
    /// Reconnects all the time, a few positions back or at the start.
    Reconnecting,
}

/// A subscriber of a log.
pub(super) struct Subscriber {
    organization: Arc<Organization>,
    number: usize,
    kind: SubscriberKind,
    history: Arc<History>,
    record: usize,
    cursor: i64,
    /// The log that the cursor is a position of; empty before the first message.
    log_id: String,
    /// The events that the billing system has handled. A log that was restored has some of them again.
    handled: HashSet<String>,
    rng: Rng,
}

impl Subscriber {
    /// Adds a subscriber of an organization to the history.
    pub fn new(
        organization: &Arc<Organization>,
        number: usize,
        kind: SubscriberKind,
        history: &Arc<History>,
        seed: u64,
    ) -> Self {
        let record = history.add_subscriber(number, (&kind).into());
        let rng = Rng::named(seed, &format!("subscriber {record}"));
        let (organization, history) = (Arc::clone(organization), Arc::clone(history));
        let (log_id, handled) = (String::new(), HashSet::new());
        Self { organization, number, kind, history, record, cursor: 0, log_id, handled, rng }
    }

    /// Follows the log until `stop` is cancelled.
    pub async fn follow(mut self, stop: CancellationToken) {
        let following = async {
            loop {
                if let Err(status) = self.follow_once().await
                    && !self.is_replaced(&status)
                    && matches!(status.code(), Code::OutOfRange | Code::InvalidArgument | Code::Unauthenticated)
                {
                    // Its cursor is a position that it received: these errors are not transient.
                    let error = format!("after {}: {:?} {}", self.cursor, status.code(), status.message());
                    self.history.subscriber(self.record, |subscriber| subscriber.add_error(error));
                }
                pause(RETRY_DELAY).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = following => {}
        }
    }

    /// Reads one stream from the cursor until it breaks or the subscriber closes it.
    async fn follow_once(&mut self) -> Result<(), Status> {
        if matches!(self.kind, SubscriberKind::Reconnecting) {
            let back = if self.rng.chance(5) { self.cursor } else { i64::try_from(self.rng.below(40)).unwrap_or(0) };
            self.cursor -= back.min(self.cursor);
        }
        let reconnect_after = self.rng.between(20, 400);
        let request = StreamEventsRequest {
            start: Some(Start::AfterPosition(self.cursor)),
            log_id: self.log_id.clone(),
            ..StreamEventsRequest::default()
        };
        let mut events = self.organization.any_api(&mut self.rng).events;
        let silent = |_| Status::deadline_exceeded("no message in time");
        let mut stream = timeout(IDLE_TIMEOUT, events.stream_events(request)).await.map_err(silent)??.into_inner();
        for count in 0_u64.. {
            let response = timeout(IDLE_TIMEOUT, stream.message()).await.map_err(silent)??;
            let Some(message) = response.and_then(|response| response.message) else { return Ok(()) };
            let log_id = match &message {
                Message::Event(event) => &event.log_id,
                Message::Heartbeat(heartbeat) => &heartbeat.log_id,
            };
            if self.log_id.is_empty() {
                self.log_id.clone_from(log_id);
            } else if self.log_id != *log_id {
                self.replace_log(log_id.clone());
                return Ok(());
            }
            match message {
                Message::Heartbeat(heartbeat) if heartbeat.position != self.cursor => {
                    let error = format!(
                        "position {} was followed by a heartbeat with position {}",
                        self.cursor, heartbeat.position
                    );
                    self.history.subscriber(self.record, |subscriber| subscriber.add_error(error));
                    return Ok(());
                }
                Message::Heartbeat(_) => {}
                Message::Event(event) => self.handle(event),
            }
            match self.kind {
                SubscriberKind::Slow => pause(Duration::from_millis(self.rng.below(20))).await,
                SubscriberKind::Reconnecting if count > reconnect_after => return Ok(()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a call was refused because another log has replaced the one before. If so, begins with that log.
    fn is_replaced(&mut self, status: &Status) -> bool {
        let info = status.get_details_error_info().filter(|info| info.reason == "LOG_REPLACED");
        let Some(log_id) = info.and_then(|info| info.metadata.get("log_id").cloned()) else { return false };
        self.replace_log(log_id);
        true
    }

    /// Begins with another log, at its start.
    fn replace_log(&mut self, log_id: String) {
        self.cursor = 0;
        self.log_id = log_id;
        self.history.subscriber(self.record, SubscriberRecord::replace_log);
    }

    fn handle(&mut self, event: Event) {
        let seen = SeenEvent { id: event.id.parse().unwrap_or_default(), webhook_type: event.webhook_type.clone() };
        self.history.subscriber(self.record, |subscriber| subscriber.record_event(self.cursor, event.position, seen));
        self.cursor = event.position;
        if let SubscriberKind::Billing(events) = &self.kind
            && self.handled.insert(event.id.clone())
        {
            let _ = events.send((self.number, event));
        }
    }
}
