//! `EventService`: streams the event log of an organization, or lists it in pages. See `subscriber` for the stream.

use prost::Message as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Api;
use super::convert::{Fields, events as convert};
use super::event_filter::EventFilter;
use super::limits::PAGE_BYTES_MAX;
use super::page_token::List;
use super::proto::event_service_server::EventService;
use super::proto::stream_events_request::Start;
use super::proto::{Event, ListEventsRequest, ListEventsResponse, StreamEventsRequest, StreamEventsResponse};
use super::subscriber::{StreamLimiter, Subscriber, advance};
use crate::domain::events::EventLog;
use crate::domain::{Error, LogId, OrganizationId, Result};

/// The number of events per read of ListEvents.
const READ_SIZE: i64 = 200;
/// The maximum number of reads per ListEvents call, if its filter passes few events (P11).
const READS_MAX: usize = 25;
/// The length of the position in a page token: a log's id, and a position in that log.
const TOKEN_LENGTH: usize = 24;

#[tonic::async_trait]
impl EventService for Api {
    type StreamEventsStream = ReceiverStream<Result<StreamEventsResponse, Status>>;

    async fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let (organization, request) = self.authenticate(request).await?;
        let (start, log_id, filter) = parse(&request)?;
        let permit =
            StreamLimiter::acquire(&self.stream_limiter, organization, self.options.streams_per_organization_max)?;
        let log = self.app.event_log(organization).await?;
        let subscriber = Subscriber {
            app: self.app.clone(),
            organization,
            log_id: log.log_id,
            cursor: start_position(&log, start, log_id)?,
            filter,
            log_tail: self.log_tails.subscribe(organization, &log),
            _permit: permit,
        };
        Ok(Response::new(subscriber.start(self.options.heartbeat, self.shutdown.clone())))
    }

    async fn list_events(&self, request: Request<ListEventsRequest>) -> Result<Response<ListEventsResponse>, Status> {
        let (organization, mut request) = self.authenticate(request).await?;
        let page_token = std::mem::take(&mut request.page_token);
        let page_size = std::mem::take(&mut request.page_size);
        let list = List::new(&self.options.page_token_key, "events", organization, &request);
        let mut fields = Fields::default();
        let size = fields.page_size(page_size);
        let filter = EventFilter::parse(&mut fields, &request.webhook_types);
        let start = start_after(&mut fields, request.after_position);
        let log_id = fields.optional_id("log_id", &request.log_id);
        fields.check()?;
        let next_page = list.start(&page_token)?.map(parse_position);
        let (start, log_id) = next_page.map_or((start, log_id), |(id, position)| (position, Some(id)));
        let log = self.app.event_log(organization).await?;
        let page = PageRequest { after: start_position(&log, start, log_id)?, size, filter };
        let (events, position) = self.read_page(organization, &log, &page).await?;
        let has_next = position < log.last_position;
        Ok(Response::new(ListEventsResponse {
            events,
            next_page_token: if has_next {
                list.token_after(encode_position(log.log_id, position))
            } else {
                String::new()
            },
            last_position: log.last_position.max(position),
            log_id: log.log_id.to_string(),
        }))
    }
}

/// One page of the log: at most `size` events after a position that pass the filter.
struct PageRequest {
    after: i64,
    size: usize,
    filter: EventFilter,
}

impl Api {
    /// Reads a page. Returns its events, and the position read up to.
    async fn read_page(
        &self,
        organization: OrganizationId,
        log: &EventLog,
        page: &PageRequest,
    ) -> Result<(Vec<Event>, i64)> {
        let (mut events, mut bytes, mut position) = (Vec::new(), 0, page.after);
        for _ in 0..READS_MAX {
            let read = self.app.events_after(organization, log.log_id, position, READ_SIZE).await?;
            if read.is_empty() {
                if position < log.last_position {
                    // Retention has trimmed what followed.
                    return Err(Error::PositionTrimmed { requested: position, oldest: log.last_position });
                }
                break;
            }
            for event in read {
                if events.len() == page.size || bytes > PAGE_BYTES_MAX {
                    return Ok((events, position));
                }
                advance(&mut position, event.position)?;
                let event = convert::event(event, log.log_id);
                if page.filter.passes(&event) {
                    bytes += event.encoded_len();
                    events.push(event);
                }
            }
            if position >= log.last_position {
                break;
            }
        }
        Ok((events, position))
    }
}

fn parse(request: &StreamEventsRequest) -> Result<(Start, Option<LogId>, EventFilter)> {
    let mut fields = Fields::default();
    let filter = EventFilter::parse(&mut fields, &request.webhook_types);
    let log_id = fields.optional_id("log_id", &request.log_id);
    let start = match request.start {
        Some(Start::AfterPosition(position)) => start_after(&mut fields, position),
        Some(start) => start,
        None => {
            fields.add_violation("start", "is required: set after_position, from_now or from_start");
            Start::FromNow(())
        }
    };
    fields.check()?;
    Ok((start, log_id, filter))
}

fn start_after(fields: &mut Fields, position: i64) -> Start {
    if position < 0 {
        fields.add_violation("after_position", "must not be negative; 0 means before the first event");
    }
    Start::AfterPosition(position)
}

/// The position after which to start. `log_id` names the log that the caller knows.
fn start_position(log: &EventLog, start: Start, log_id: Option<LogId>) -> Result<i64> {
    let oldest = log.oldest();
    let requested = match start {
        Start::FromNow(()) => log.last_position,
        Start::FromStart(()) => oldest,
        Start::AfterPosition(requested) => requested,
    };
    log.check_reader(log_id, requested)?;
    if requested < oldest { Err(Error::PositionTrimmed { requested, oldest }) } else { Ok(requested) }
}

/// A position as a page token holds it.
fn encode_position(log_id: LogId, position: i64) -> [u8; TOKEN_LENGTH] {
    let mut bytes = [0; TOKEN_LENGTH];
    let (id, rest) = bytes.split_at_mut(16);
    id.copy_from_slice(log_id.0.as_bytes());
    rest.copy_from_slice(&position.to_be_bytes());
    bytes
}

fn parse_position(bytes: [u8; TOKEN_LENGTH]) -> (LogId, Start) {
    // The lengths are right, because the token was authenticated.
    let (id, position) = bytes.split_at(16);
    let position = i64::from_be_bytes(position.try_into().unwrap_or_default());
    (Uuid::from_slice(id).unwrap_or_default().into(), Start::AfterPosition(position))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_id(number: u128) -> LogId {
        Uuid::from_u128(number).into()
    }

    fn log(first_position: i64, last_position: i64) -> EventLog {
        EventLog { log_id: log_id(1), first_position, last_position }
    }

    #[test]
    fn a_stream_starts_at_the_requested_position_if_it_is_retained() {
        let log = log(11, 20);
        let at = |start| start_position(&log, start, None).ok();
        assert_eq!(at(Start::FromNow(())), Some(20));
        assert_eq!(at(Start::FromStart(())), Some(10));
        assert_eq!(at(Start::AfterPosition(10)), Some(10));
        assert_eq!(at(Start::AfterPosition(20)), Some(20));
        let trimmed = start_position(&log, Start::AfterPosition(9), None);
        assert!(matches!(trimmed, Err(Error::PositionTrimmed { requested: 9, oldest: 10 })), "{trimmed:?}");
        let future = start_position(&log, Start::AfterPosition(21), None);
        assert!(matches!(future, Err(Error::Invalid(_))), "{future:?}");
    }

    #[test]
    fn an_empty_log_has_a_start_position() {
        for start in [Start::FromNow(()), Start::FromStart(()), Start::AfterPosition(0)] {
            assert_eq!(start_position(&log(1, 0), start, None).ok(), Some(0));
        }
    }

    #[test]
    fn a_position_of_another_log_is_refused_wherever_it_is() {
        let log = log(11, 20);
        for position in [0, 10, 15, 20, 99] {
            let replaced = start_position(&log, Start::AfterPosition(position), Some(log_id(2)));
            assert!(matches!(replaced, Err(Error::LogReplaced { oldest: 10, .. })), "{position}: {replaced:?}");
        }
        assert_eq!(start_position(&log, Start::AfterPosition(15), Some(log_id(1))).ok(), Some(15));
    }

    #[test]
    fn a_start_is_required() {
        let request = |start| StreamEventsRequest { start, ..Default::default() };
        for bad in [None, Some(Start::AfterPosition(-1))] {
            assert!(parse(&request(bad)).is_err());
        }
        for good in [Start::AfterPosition(0), Start::FromNow(()), Start::FromStart(())] {
            assert!(parse(&request(Some(good))).is_ok());
        }
    }

    #[test]
    fn a_page_token_holds_the_log_and_the_position() {
        for position in [0, 1, 255, 256, i64::MAX] {
            let parsed = parse_position(encode_position(log_id(7), position));
            assert_eq!(parsed, (log_id(7), Start::AfterPosition(position)));
        }
    }
}
