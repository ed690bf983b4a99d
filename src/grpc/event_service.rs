//! `EventService`: the organization's log, followed or read in pages. `subscriber` is what follows it.

use prost::Message as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert::{Fields, events as convert};
use super::proto::event_service_server::EventService;
use super::proto::stream_events_request::Start;
use super::proto::{ListEventsRequest, ListEventsResponse, StreamEventsRequest, StreamEventsResponse};
use super::subscriber::{Filter, Seats, Subscriber};
use super::{Door, PAGE_BYTES_MAX};
use crate::app::EventLog;
use crate::domain::{Error, Result};

/// How many events ListEvents reads at once.
const READ_SIZE: i64 = 200;
/// How many reads one ListEvents makes at most while its filter lets little pass (P11).
const READS_MAX: usize = 25;

#[tonic::async_trait]
impl EventService for Door {
    type StreamEventsStream = ReceiverStream<Result<StreamEventsResponse, Status>>;

    async fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let (organization, request) = self.admit(request).await?;
        let (start, filter) = parse(request)?;
        let seat = Seats::take(&self.seats, organization, self.options.streams_per_organization_max)?;
        let log = self.app.event_log(organization).await?;
        let cursor = position(&log, start)?;
        let feed = self.feeds.follow(organization, log.last_position);
        let subscriber = Subscriber { app: self.app.clone(), organization, cursor, filter, feed, _seat: seat };
        Ok(Response::new(subscriber.start(self.options.heartbeat, self.stopping.clone())))
    }

    async fn list_events(&self, request: Request<ListEventsRequest>) -> Result<Response<ListEventsResponse>, Status> {
        let (organization, request) = self.admit(request).await?;
        let mut fields = Fields::default();
        let size = fields.page_size(request.page_size);
        let filter = Filter::parse(&mut fields, request.webhook_types);
        let start = start_after(&mut fields, request.after_position);
        fields.check()?;
        let log = self.app.event_log(organization).await?;
        let mut next_position = position(&log, start)?;
        let (mut events, mut bytes) = (Vec::new(), 0);
        'page: for _ in 0..READS_MAX {
            let read = self.app.events_after(organization, next_position, READ_SIZE).await?;
            let is_all = read.len() < usize::try_from(READ_SIZE).unwrap_or(usize::MAX);
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
            if is_all {
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
            let text = "is required: one of after_position, from_now = true, from_start = true";
            fields.object("start", text);
            Start::FromNow(true)
        }
    };
    fields.check()?;
    Ok((start, filter))
}

fn start_after(fields: &mut Fields, position: i64) -> Start {
    if position < 0 {
        fields.object("after_position", "must not be negative; 0 is before the very first event");
    }
    Start::AfterPosition(position)
}

/// The position to begin after.
fn position(log: &EventLog, start: Start) -> Result<i64> {
    let oldest = log.first_position - 1;
    match start {
        Start::FromNow(_) => Ok(log.last_position),
        Start::FromStart(_) => Ok(oldest),
        Start::AfterPosition(asked) if asked < oldest => Err(Error::PositionTrimmed { asked, oldest }),
        Start::AfterPosition(asked) if asked > log.last_position => {
            let (first, last) = (log.first_position, log.last_position);
            let text = match last {
                0 => "is in the future: the log is empty so far, begin after 0".to_owned(),
                last => format!("is in the future: the log holds the positions {first} to {last}"),
            };
            Err(Error::invalid("after_position", text))
        }
        Start::AfterPosition(asked) => Ok(asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_begins_where_it_was_asked_to_if_that_part_is_kept() {
        let log = EventLog { first_position: 11, last_position: 20 };
        let at = |start| position(&log, start).ok();
        assert_eq!(at(Start::FromNow(true)), Some(20));
        assert_eq!(at(Start::FromStart(true)), Some(10));
        assert_eq!(at(Start::AfterPosition(10)), Some(10));
        assert_eq!(at(Start::AfterPosition(20)), Some(20));
        let trimmed = position(&log, Start::AfterPosition(9));
        assert!(matches!(trimmed, Err(Error::PositionTrimmed { asked: 9, oldest: 10 })), "{trimmed:?}");
        let future = position(&log, Start::AfterPosition(21));
        assert!(matches!(future, Err(Error::Invalid(_))), "{future:?}");
    }

    #[test]
    fn an_empty_log_has_a_beginning() {
        let log = EventLog { first_position: 1, last_position: 0 };
        for start in [Start::FromNow(true), Start::FromStart(true), Start::AfterPosition(0)] {
            assert_eq!(position(&log, start).ok(), Some(0));
        }
    }

    #[test]
    fn a_start_must_be_given() {
        let request = |start| StreamEventsRequest { start, webhook_types: Vec::new() };
        for bad in [None, Some(Start::FromNow(false)), Some(Start::AfterPosition(-1))] {
            assert!(parse(request(bad)).is_err(), "{bad:?}");
        }
        assert!(parse(request(Some(Start::AfterPosition(0)))).is_ok());
    }
}
