//! Stripe's events: the envelope of a delivery, and the list of the last 30 days.

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use time::OffsetDateTime;

use super::call::Call;
use super::client::Client;
use super::error::{Error, UnknownCause};
use super::form::Form;
use super::object::{Page, null_as_default, seconds};
use super::rate_limit::ApiKey;

/// The longest id or type, in bytes: Stripe's ids have at most 255.
const NAME_LENGTH_MAX: usize = 255;

/// The part of an event that is needed to store it once. Parsing takes one pass over the body and ignores the rest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct EventEnvelope {
    /// `evt_…`; the same in every repeat.
    pub id: String,
    /// Such as `payment_intent.succeeded`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// When it happened, in whole seconds; the same in every repeat. It must not be used to order events.
    #[serde(deserialize_with = "seconds")]
    pub created: OffsetDateTime,
    /// The version in which it is rendered; the events list uses the account's own.
    pub api_version: Option<String>,
    /// Whether it is in live mode.
    #[serde(default, deserialize_with = "null_as_default")]
    pub livemode: bool,
    /// The account, if the event names one; a connected account's events do.
    pub account: Option<String>,
    /// The API call that caused it.
    #[serde(default, deserialize_with = "request")]
    pub request: EventRequest,
}

/// The API call that caused an event; empty if Stripe itself did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct EventRequest {
    /// `req_…`.
    pub id: Option<String>,
    /// The call's idempotency key, ours if the call was ours.
    pub idempotency_key: Option<String>,
    /// The event's API version never contains the idempotency key.
    #[serde(skip)]
    pub hides_key: bool,
}

/// API versions before 2017-05-25, which the list may use, have only the request id here.
fn request<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EventRequest, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Request {
        Id(String),
        Whole(EventRequest),
    }
    Ok(match Option::<Request>::deserialize(deserializer)? {
        Some(Request::Whole(request)) => request,
        Some(Request::Id(id)) => EventRequest { id: Some(id), idempotency_key: None, hides_key: true },
        None => EventRequest::default(),
    })
}

impl EventEnvelope {
    /// Parses the envelope of a body. The error says what is missing and quotes nothing of the body.
    pub fn parse(body: &[u8]) -> Result<Self, &'static str> {
        let envelope: Self = serde_json::from_slice(body).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => "the body is not an event of Stripe's v1 API",
            _ => "the body is not JSON",
        })?;
        // One webhook must not break the transaction that stores it together with others. So ids and types must look
        // like Stripe's (short and printable), and the time must be plausible (P11).
        let is_name = |text: &str| {
            (1..=NAME_LENGTH_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if !is_name(&envelope.id) || !is_name(&envelope.event_type) {
            return Err("the event has no valid id or type");
        }
        if !(1970..=2200).contains(&envelope.created.year()) {
            return Err("the event's time is implausible");
        }
        Ok(envelope)
    }
}

/// An event of the list: its envelope, and its JSON for the deliveries table.
#[derive(Clone, Debug)]
pub struct ListedEvent {
    /// The envelope.
    pub envelope: EventEnvelope,
    /// The whole event as JSON.
    pub body: String,
}

/// One page of the events list, newest first.
#[derive(Clone, Debug)]
pub struct EventPage {
    /// The events. An unreadable one is logged and skipped: it must not block the others (P6).
    pub events: Vec<ListedEvent>,
    /// The id of the page's last event, readable or not: paging continues from it. It is set whenever `has_more` is.
    pub last_id: Option<String>,
    /// Whether there is another page in the requested direction.
    pub has_more: bool,
}

/// Selects a page of the events list.
#[derive(Clone, Debug, Default)]
pub struct EventQuery<'a> {
    /// At most 20 types; empty for all. We handle more than 20, so reading all of ours needs no filter.
    pub types: &'a [&'a str],
    /// The earliest time.
    pub created_gte: Option<OffsetDateTime>,
    /// Events newer than this one, the adjacent page first: pages forward in time.
    pub ending_before: Option<&'a str>,
    /// Events older than this one: pages backward in time.
    pub starting_after: Option<&'a str>,
}

impl Client {
    /// Reads one page of up to 100 events. They are in the account's own API version: take ids from them, and read the
    /// objects themselves.
    pub async fn events(&self, key: &ApiKey, query: &EventQuery<'_>) -> Result<EventPage, Error> {
        let form = Form::new()
            .push("limit", 100)
            .push_list("types", query.types)
            .push_some("created[gte]", query.created_gte.map(OffsetDateTime::unix_timestamp))
            .push_some("ending_before", query.ending_before)
            .push_some("starting_after", query.starting_after)
            .into_body();
        let page: Page<Value> = self.send(key, Call::get("/v1/events", None, &form)).await?;
        let id = |event: &Value| event.get("id").and_then(Value::as_str).map(str::to_owned);
        let read = |event: &Value| {
            let read = to_listed_event(event);
            if let Err(error) = &read {
                tracing::error!(event = id(event), %error, "skipping an unreadable event of Stripe's list");
            }
            read.ok()
        };
        let events = page.data.iter().filter_map(read).collect();
        let last_id = page.data.iter().rev().find_map(id);
        if page.has_more && last_id.is_none() {
            return Err(Error::unknown(
                UnknownCause::Unreadable,
                "the list continues after a page on which no event has an id",
            ));
        }
        Ok(EventPage { events, last_id, has_more: page.has_more })
    }

    /// Reads one event; Stripe keeps them for 30 days.
    pub async fn event(&self, key: &ApiKey, id: &str) -> Result<ListedEvent, Error> {
        let event: Value = self.send(key, Call::get("/v1/events/{id}", Some(id), "")).await?;
        to_listed_event(&event)
    }
}

fn to_listed_event(event: &Value) -> Result<ListedEvent, Error> {
    let envelope = EventEnvelope::deserialize(event)
        .map_err(|_| Error::unknown(UnknownCause::Unreadable, "the list contains an object that is not an event"))?;
    Ok(ListedEvent { envelope, body: event.to_string() })
}

#[cfg(test)]
mod tests {
    use super::super::scripted::{ScriptedServer, key, response};
    use super::*;

    #[test]
    fn an_envelope_needs_few_fields_and_ignores_the_rest() {
        let body = br#"{"id":"evt_1","object":"event","type":"payment_intent.succeeded","created":1700000000,
            "api_version":"2026-08-26.dahlia","livemode":false,"pending_webhooks":1,"data":{"object":{"id":"pi_1"}},
            "request":{"id":"req_1","idempotency_key":"key-1"}}"#;
        let envelope = EventEnvelope::parse(body).unwrap();
        assert_eq!((envelope.id.as_str(), envelope.event_type.as_str()), ("evt_1", "payment_intent.succeeded"));
        assert_eq!(envelope.request.idempotency_key.as_deref(), Some("key-1"));
        let bare = EventEnvelope::parse(br#"{"id":"evt_2","type":"x","created":1,"request":null}"#).unwrap();
        assert_eq!((bare.request, bare.account, bare.livemode), (EventRequest::default(), None, false));
    }

    #[test]
    fn an_invalid_event_is_refused_without_being_quoted() {
        for bad in [&b"whsec_abc"[..], b"{}", b"[]", b"", b"{\"id\":1}", br#"{"id":"","type":"x","created":1}"#] {
            let error = EventEnvelope::parse(bad).unwrap_err();
            assert!(!error.contains("whsec"));
        }
    }

    #[tokio::test]
    async fn a_page_of_the_list_is_read_in_any_api_version() {
        let page = r#"{"object":"list","has_more":true,"data":[
            {"id":"evt_2","type":"refund.created","created":1700000001,"api_version":"2015-10-16","request":"req_1"},
            {"id":"evt_1","type":"charge.refunded","created":1700000000,"data":{"object":{"id":"ch_1"}}}]}"#;
        let server = ScriptedServer::new(|_| response(200, page)).await;
        let since = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        let query = EventQuery {
            types: &["charge.refunded", "refund.created"],
            created_gte: Some(since),
            ending_before: Some("evt_0"),
            starting_after: None,
        };
        let key = key();
        let page = server.client().events(&key, &query).await.unwrap();
        assert_eq!((page.events.len(), page.has_more), (2, true));
        assert_eq!(page.events[0].envelope.request.id.as_deref(), Some("req_1"));
        assert_eq!(page.last_id.as_deref(), Some("evt_1"));
        let stored = EventEnvelope::parse(page.events[1].body.as_bytes()).unwrap();
        assert_eq!(stored, page.events[1].envelope);
        let target = "/v1/events?limit=100&types[0]=charge.refunded&types[1]=refund.created\
            &created[gte]=1700000000&ending_before=evt_0";
        assert_eq!(server.requests()[0].target, target);
    }

    #[tokio::test]
    async fn p6_an_unreadable_event_is_skipped_and_blocks_no_other() {
        let page = r#"{"object":"list","has_more":true,"data":[
            {"id":"evt_3","type":"x","created":"soon"}, 7,
            {"id":"evt_2","type":"x","created":1700000000}, {"id":"evt_1"}]}"#;
        let server = ScriptedServer::new(|_| response(200, page)).await;
        let page = server.client().events(&key(), &EventQuery::default()).await.unwrap();
        let read: Vec<_> = page.events.iter().map(|event| event.envelope.id.as_str()).collect();
        assert_eq!((read, page.last_id.as_deref(), page.has_more), (vec!["evt_2"], Some("evt_1"), true));
    }
}
