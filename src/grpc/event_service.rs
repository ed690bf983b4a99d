//! `EventService`: streams the event log of an organization, or returns it in pages. See `subscriber` for the stream.

use prost::Message as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Api;
use super::convert::{Fields, events as convert};
use super::limits::PAGE_BYTES_MAX;
use super::proto::event_service_server::EventService;
use super::proto::stream_events_request::Start;
use super::proto::{ListEventsRequest, ListEventsResponse, StreamEventsRequest, StreamEventsResponse};
use super::subscriber::{Filter, StreamLimiter, Subscriber};
use crate::domain::events::EventLog;
use crate::domain::{Error, Result};

/// The number of events per read of ListEvents.
const READ_SIZE: i64 = 200;
/// The maximum number of reads per ListEvents call, if its filter passes few events (P11).
const READS_MAX: usize = 25;

#[tonic::async_trait]
impl EventService for Api {
    type StreamEventsStream = ReceiverStream<Result<StreamEventsResponse, Status>>;

    async fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let (organization, request) = self.authenticate(request).await?;
        let (start, filter) = parse(request)?;
        let permit =
            StreamLimiter::acquire(&self.stream_limiter, organization, self.options.streams_per_organization_max)?;
        let log = self.app.event_log(organization).await?;
        let cursor = start_position(&log, start)?;
        let log_tail = self.log_tails.subscribe(organization, log.last_position);
        let subscriber = Subscriber { app: self.app.clone(), organization, cursor, filter, log_tail, _permit: permit };
        Ok(Response::new(subscriber.start(self.options.heartbeat, self.shutdown.clone())))
    }

    async fn list_events(&self, request: Request<ListEventsRequest>) -> Result<Response<ListEventsResponse>, Status> {
        let (organization, request) = self.authenticate(request).await?;
        let mut fields = Fields::default();
        let size = fields.page_size(request.page_size);
        let filter = Filter::parse(&mut fields, request.webhook_types);
        let start = start_after(&mut fields, request.after_position);
        fields.check()?;
        let log = self.app.event_log(organization).await?;
        let mut next_position = start_position(&log, start)?;
        let (mut events, mut bytes) = (Vec::new(), 0);
        'page: for _ in 0..READS_MAX {
            let read = self.app.events_after(organization, next_position, READ_SIZE).await?;
            let is_end = read.len() < usize::try_from(READ_SIZE).unwrap_or(usize::MAX);
            for event in read {
                if events.len() == size || bytes > PAGE_BYTES_MAX {
                    break 'page;
                }
                next_position = event.position;
                let event = convert::event(event);
                if filter.passes(&event) {
                    bytes += event.encoded_len();
                    events.push(event);
                }
            }
            if is_end {
                break;
            }
        }
        let last_position = log.last_position.max(next_position);
        Ok(Response::new(ListEventsResponse { events, next_position, last_position }))
    }
}

fn parse(request: StreamEventsRequest) -> Result<(Start, Filter)> {
    let mut fields = Fields::default();
    let filter = Filter::parse(&mut fields, request.webhook_types);
    let start = match request.start {
        Some(Start::AfterPosition(position)) => start_after(&mut fields, position),
        Some(start @ (Start::FromNow(true) | Start::FromStart(true))) => start,
        Some(Start::FromNow(false) | Start::FromStart(false)) | None => {
            let text = "is required: set after_position, from_now = true or from_start = true";
            fields.add_violation("start", text);
            Start::FromNow(true)
        }
    };
    fields.check()?;
    Ok((start, filter))
}

fn start_after(fields: &mut Fields, position: i64) -> Start {
    if position < 0 {
        fields.add_violation("after_position", "must not be negative; 0 means before the first event");
    }
    Start::AfterPosition(position)
}

/// The position after which to start.
fn start_position(log: &EventLog, start: Start) -> Result<i64> {
    let oldest = log.first_position - 1;
    match start {
        Start::FromNow(_) => Ok(log.last_position),
        Start::FromStart(_) => Ok(oldest),
        Start::AfterPosition(requested) if requested < oldest => Err(Error::PositionTrimmed { requested, oldest }),
        Start::AfterPosition(requested) if requested > log.last_position => {
            let (first, last) = (log.first_position, log.last_position);
            let text = match last {
                0 => "is in the future: the log is empty; start after 0".to_owned(),
                last => format!("is in the future: the log holds positions {first} to {last}; start after one of them"),
            };
            Err(Error::invalid("after_position", text))
        }
        Start::AfterPosition(requested) => Ok(requested),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_starts_at_the_requested_position_if_it_is_retained() {
        let log = EventLog { first_position: 11, last_position: 20 };
        let at = |start| start_position(&log, start).ok();
        assert_eq!(at(Start::FromNow(true)), Some(20));
        assert_eq!(at(Start::FromStart(true)), Some(10));
        assert_eq!(at(Start::AfterPosition(10)), Some(10));
        assert_eq!(at(Start::AfterPosition(20)), Some(20));
        let trimmed = start_position(&log, Start::AfterPosition(9));
        assert!(matches!(trimmed, Err(Error::PositionTrimmed { requested: 9, oldest: 10 })), "{trimmed:?}");
        let future = start_position(&log, Start::AfterPosition(21));
        assert!(matches!(future, Err(Error::Invalid(_))), "{future:?}");
    }

    #[test]
    fn an_empty_log_has_a_start_position() {
        let log = EventLog { first_position: 1, last_position: 0 };
        for start in [Start::FromNow(true), Start::FromStart(true), Start::AfterPosition(0)] {
            assert_eq!(start_position(&log, start).ok(), Some(0));
        }
    }

    #[test]
    fn a_start_is_required() {
        let request = |start| StreamEventsRequest { start, webhook_types: Vec::new() };
        for bad in [None, Some(Start::FromNow(false)), Some(Start::AfterPosition(-1))] {
            assert!(parse(request(bad)).is_err(), "{bad:?}");
        }
        assert!(parse(request(Some(Start::AfterPosition(0)))).is_ok());
    }
}
