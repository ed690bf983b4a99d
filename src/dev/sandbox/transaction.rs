//! A transaction on one account: an API request, a payer's action, a person's action in the Dashboard, or a timer. It
//! reads and writes objects and emits events under the sandbox's lock, so its effects become visible at once.

use serde_json::{Map, Value, json};

use super::api_error::{ApiError, ApiResult};
use super::api_request::{API_VERSION, Cause};
use super::state::{Account, Event, Internals, new_id, text};
use super::timers::{Timer, TimerAction};
use super::webhook_queue::Delivery;

/// What transactions need to know of the sandbox's configuration.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// The base URL of the hosted pages: `http://127.0.0.1:…`.
    pub url: String,
    /// From a SEPA debit's submission to the bank's response, in seconds.
    pub settle_after: i64,
    /// From a slow refund's creation to its outcome, in seconds.
    pub refund_after: i64,
}

/// A call of an endpoint, with parameters that were checked against the table.
#[derive(Debug)]
pub(super) struct Call {
    /// The ids in the path.
    pub ids: Vec<String>,
    /// Without the query.
    pub path: String,
    /// As typed JSON: see [`super::parameters::typed_form`].
    pub params: Value,
}

impl Call {
    /// The first id in the path; empty if there is none.
    pub fn id(&self) -> &str {
        self.ids.first().map_or("", String::as_str)
    }
}

/// Access to one account at one time, under the sandbox's lock.
pub(super) struct Transaction<'a> {
    pub account: &'a mut Account,
    /// Unix seconds of the clock.
    pub now: i64,
    /// The clock in microseconds since 1970, for deliveries. Later than `now` in a timer that runs late.
    pub now_micros: i64,
    pub cause: Option<Cause>,
    pub settings: &'a Settings,
}

impl Transaction<'_> {
    /// Stores a new object and appends its `id` to the list of its `object` type.
    pub fn insert(&mut self, object: Value) {
        let (id, kind) = (text(&object, "/id").to_owned(), text(&object, "/object").to_owned());
        self.account.order.entry(kind).or_default().push(id.clone());
        self.account.objects.insert(id, object);
    }

    /// Replaces a stored object.
    pub fn put(&mut self, object: &Value) {
        self.account.objects.insert(text(object, "/id").to_owned(), object.clone());
    }

    /// The object with this type and id.
    pub fn get(&self, kind: &str, id: &str) -> Option<Value> {
        self.account.objects.get(id).filter(|object| text(object, "/object") == kind).cloned()
    }

    /// The object that the path names, or a 404.
    pub fn find(&self, kind: &str, id: &str) -> ApiResult {
        let param = if kind.ends_with("_intent") { "intent" } else { "id" };
        self.get(kind, id).ok_or_else(|| ApiError::missing(kind, id, param))
    }

    /// Like [`Self::find`], but deleted objects count as missing.
    pub fn existing(&self, kind: &str, id: &str) -> ApiResult {
        self.referenced(kind, id, "id").map_err(|api_error| ApiError { status: 404, ..api_error })
    }

    /// The object that a parameter names, or a 400 for that parameter. Deleted objects count as missing.
    pub fn referenced(&self, kind: &str, id: &str, param: &str) -> ApiResult {
        let found = self.get(kind, id).filter(|object| object.get("deleted").is_none());
        found.ok_or_else(|| ApiError { status: 400, ..ApiError::missing(kind, id, param) })
    }

    /// The objects of a type that match, newest first.
    pub fn all(&self, kind: &str, matches: impl Fn(&Value) -> bool) -> Vec<Value> {
        let ids = self.account.order.get(kind).map_or(&[][..], Vec::as_slice);
        ids.iter()
            .rev()
            .filter_map(|id| self.account.objects.get(id))
            .filter(|object| matches(object))
            .cloned()
            .collect()
    }

    /// What is stored about an object and not returned.
    pub fn internals_mut(&mut self, id: &str) -> &mut Internals {
        self.account.internals.entry(id.to_owned()).or_default()
    }

    /// A copy of what is stored about an object and not returned.
    pub fn internals(&self, id: &str) -> Internals {
        self.account.internals.get(id).cloned().unwrap_or_default()
    }

    /// Runs an action in `seconds` of the clock.
    pub fn schedule(&mut self, seconds: i64, action: TimerAction) {
        self.account.timers.put(Timer { at: self.now + seconds, action });
    }

    /// Emits an event with the object as it is now.
    pub fn emit(&mut self, kind: &str, object: &Value) {
        self.emit_event(kind, &json!({ "object": object }));
    }

    /// Stores `new` and, if it differs from `old`, emits an event with `previous_attributes`.
    pub fn change(&mut self, kind: &str, old: &Value, new: &Value) {
        self.put(new);
        let previous = previous_attributes(old, new);
        if !previous.is_empty() {
            self.emit_event(kind, &json!({ "object": new, "previous_attributes": previous }));
        }
    }

    fn emit_event(&mut self, kind: &str, data: &Value) {
        let endpoints = self.subscribed_endpoints(kind);
        let cause = self.cause.clone();
        let id = new_id("evt");
        let body = json!({
            "id": id,
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now,
            "data": data,
            "livemode": self.account.livemode,
            "pending_webhooks": endpoints.len(),
            "request": {
                "id": cause.as_ref().map(|cause| cause.request_id.clone()),
                "idempotency_key": cause.and_then(|cause| cause.idempotency_key),
            },
            "type": kind,
        });
        self.account.events_made += 1;
        let number = self.account.events_made;
        self.send(&id, number, kind);
        self.account.prune_events(self.now);
        let (kind, body, pending) = (kind.to_owned(), body.to_string(), endpoints.len());
        self.account.events.push_back(Event { id, number, kind, created: self.now, body, pending, acknowledged: None });
    }

    /// Enqueues an event for every endpoint that is subscribed to its type.
    pub fn send(&mut self, event: &str, event_number: u64, kind: &str) {
        for endpoint in self.subscribed_endpoints(kind) {
            self.account.new_deliveries.push(Delivery {
                event: event.to_owned(),
                event_number,
                kind: kind.to_owned(),
                endpoint,
                at: self.now_micros,
                ..Delivery::default()
            });
        }
    }

    /// The enabled endpoints that are subscribed to this type.
    fn subscribed_endpoints(&self, kind: &str) -> Vec<String> {
        let ids = self.account.order.get("webhook_endpoint").map_or(&[][..], Vec::as_slice);
        let is_subscribed = |id: &String| {
            let enabled = self.account.objects.get(id).is_some_and(|object| text(object, "/status") == "enabled");
            let internals = self.account.internals.get(id);
            enabled
                && internals
                    .is_some_and(|internals| internals.enabled.iter().any(|event| event == "*" || event == kind))
        };
        ids.iter().filter(|id| is_subscribed(id)).cloned().collect()
    }
}

/// The old values of the changed fields. Of nested objects, only the fields that changed.
fn previous_attributes(old: &Value, new: &Value) -> Map<String, Value> {
    let empty = Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let mut previous = Map::new();
    for (field, now) in new {
        let before = old.get(field).unwrap_or(&Value::Null);
        if before == now {
            continue;
        }
        let changed = if before.is_object() && now.is_object() {
            Value::Object(previous_attributes(before, now))
        } else {
            before.clone()
        };
        previous.insert(field.clone(), changed);
    }
    for (field, before) in old {
        if !new.contains_key(field) {
            previous.insert(field.clone(), before.clone());
        }
    }
    previous
}

/// Copies the given parameters to the object's fields. `null` unsets a field.
pub(super) fn copy_fields(object: &mut Value, params: &Value, fields: &[&str]) {
    for field in fields {
        if let Some(value) = params.get(field) {
            object[field] = value.clone();
        }
    }
}

/// Merges metadata: an empty value removes its key, and an empty `metadata` removes all keys.
pub(super) fn merge_metadata(object: &mut Value, params: &Value) -> Result<(), ApiError> {
    match params.get("metadata") {
        None => {}
        Some(Value::Object(given)) => {
            let mut merged = object["metadata"].as_object().cloned().unwrap_or_default();
            for (key, value) in given {
                if value == "" {
                    merged.remove(key);
                } else {
                    merged.insert(key.clone(), value.clone());
                }
            }
            if merged.len() > 50 {
                return Err(ApiError::invalid("Metadata can have at most 50 keys.").at("metadata"));
            }
            object["metadata"] = Value::Object(merged);
        }
        Some(_) => object["metadata"] = json!({}),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previous_attributes_hold_only_what_changed() {
        let old = json!({ "a": 1, "b": { "c": null, "d": 2 }, "m": { "removed": "x" } });
        let new = json!({ "a": 1, "b": { "c": "pm", "d": 2 }, "m": { "new": "y" } });
        let previous = Value::Object(previous_attributes(&old, &new));
        assert_eq!(previous, json!({ "b": { "c": null }, "m": { "removed": "x", "new": null } }));
    }
}
