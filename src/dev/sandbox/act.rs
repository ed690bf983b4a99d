//! One thing that happens at one account: a call of the API, a payer's click, a person in the dashboard, a timer. It
//! reads and writes objects and emits events; all of it under the sandbox's lock, so that nobody sees half of it.

use serde_json::{Map, Value, json};

use super::events;
use super::refusal::{Answer, Refusal};
use super::state::{Account, Delivery, Event, Hidden, new_id, text};
use super::timers::{Due, Timer};

/// The API version that the sandbox keeps its objects in, and the default of its accounts.
pub(super) const API_VERSION: &str = "2026-08-26.dahlia";

/// How long things take, and where the sandbox is.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// `http://127.0.0.1:…`, for the hosted pages.
    pub url: String,
    /// From a SEPA debit's submission to the bank's answer, in seconds.
    pub settle_after: i64,
    /// From a slow refund's creation to its outcome, in seconds.
    pub refund_after: i64,
}

/// The API call that caused something; a payer, a person or a timer is no such cause.
#[derive(Debug, Clone)]
pub(super) struct Cause {
    pub request_id: String,
    pub idempotency_key: Option<String>,
}

/// A call of an endpoint, its parameters already checked against the table.
#[derive(Debug)]
pub(super) struct Call {
    /// The ids in the path.
    pub ids: Vec<String>,
    /// The path without the query.
    pub path: String,
    /// Typed parameters.
    pub params: Value,
}

impl Call {
    /// The id in the path; empty where there is none.
    pub fn id(&self) -> &str {
        self.ids.first().map_or("", String::as_str)
    }
}

/// See the module's text.
pub(super) struct Act<'a> {
    pub account: &'a mut Account,
    /// Unix seconds of the clock.
    pub now: i64,
    /// The same moment in microseconds.
    pub now_micros: i64,
    pub cause: Option<Cause>,
    pub settings: &'a Settings,
}

impl Act<'_> {
    /// Stores a new object under its `id`, in the order of its `object` kind.
    pub fn insert(&mut self, object: Value) {
        let (id, kind) = (text(&object, "/id").to_owned(), text(&object, "/object").to_owned());
        self.account.order.entry(kind).or_default().push(id.clone());
        self.account.objects.insert(id, object);
    }

    /// Stores the new state of an object.
    pub fn put(&mut self, object: &Value) {
        self.account.objects.insert(text(object, "/id").to_owned(), object.clone());
    }

    /// An object of the given kind, if it is there.
    pub fn get(&self, kind: &str, id: &str) -> Option<Value> {
        self.account.objects.get(id).filter(|object| text(object, "/object") == kind).cloned()
    }

    /// The object that a path names.
    pub fn find(&self, kind: &str, id: &str) -> Answer {
        let param = if kind.ends_with("_intent") { "intent" } else { "id" };
        self.get(kind, id).ok_or_else(|| Refusal::missing(kind, id, param))
    }

    /// The object that a parameter names: missing is the parameter's fault, 400.
    pub fn referenced(&self, kind: &str, id: &str, param: &str) -> Answer {
        let live = self.get(kind, id).filter(|object| object.get("deleted").is_none());
        live.ok_or_else(|| Refusal { status: 400, ..Refusal::missing(kind, id, param) })
    }

    /// All objects of a kind that `keep` keeps, newest first.
    pub fn all(&self, kind: &str, keep: impl Fn(&Value) -> bool) -> Vec<Value> {
        let ids = self.account.order.get(kind).map_or(&[][..], Vec::as_slice);
        ids.iter().rev().filter_map(|id| self.account.objects.get(id)).filter(|object| keep(object)).cloned().collect()
    }

    /// The hidden side of an object.
    pub fn hidden(&mut self, id: &str) -> &mut Hidden {
        self.account.hidden.entry(id.to_owned()).or_default()
    }

    /// A copy of the hidden side of an object.
    pub fn hidden_of(&self, id: &str) -> Hidden {
        self.account.hidden.get(id).cloned().unwrap_or_default()
    }

    /// Lets something happen by itself in `seconds` of the clock.
    pub fn later(&mut self, seconds: i64, due: Due) {
        self.account.timers.put(Timer { at: self.now + seconds, due });
    }

    /// Tells of the object as it is now.
    pub fn emit(&mut self, kind: &str, object: &Value) {
        self.emit_event(kind, &json!({ "object": object }));
    }

    /// Stores `new` and, if anything changed, tells of it with `previous_attributes`.
    pub fn change(&mut self, kind: &str, old: &Value, new: &Value) {
        self.put(new);
        let previous = previous_attributes(old, new);
        if !previous.is_empty() {
            self.emit_event(kind, &json!({ "object": new, "previous_attributes": previous }));
        }
    }

    fn emit_event(&mut self, kind: &str, data: &Value) {
        let endpoints = self.listeners(kind);
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
        events::prune(self.account, self.now);
        let (kind, body, pending) = (kind.to_owned(), body.to_string(), endpoints.len());
        self.account.events.push_back(Event { id, number, kind, created: self.now, body, pending, acknowledged: None });
    }

    /// Sends an event to every endpoint that wants its type.
    pub fn send(&mut self, event: &str, event_number: u64, kind: &str) {
        for endpoint in self.listeners(kind) {
            self.account.fresh.push(Delivery {
                event: event.to_owned(),
                event_number,
                kind: kind.to_owned(),
                endpoint,
                at: self.now_micros,
                ..Delivery::default()
            });
        }
    }

    /// The enabled endpoints that asked for this type.
    fn listeners(&self, kind: &str) -> Vec<String> {
        let ids = self.account.order.get("webhook_endpoint").map_or(&[][..], Vec::as_slice);
        let wants = |id: &String| {
            let enabled = self.account.objects.get(id).is_some_and(|object| text(object, "/status") == "enabled");
            let hidden = self.account.hidden.get(id);
            enabled && hidden.is_some_and(|hidden| hidden.enabled.iter().any(|event| event == "*" || event == kind))
        };
        ids.iter().filter(|id| wants(id)).cloned().collect()
    }
}

/// The old values of what changed; within objects only of the fields that did.
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

/// Takes over the given fields as they are; `null` unsets.
pub(super) fn take_over(object: &mut Value, params: &Value, fields: &[&str]) {
    for field in fields {
        if let Some(value) = params.get(field) {
            object[field] = value.clone();
        }
    }
}

/// Merges metadata: an empty value removes its key, an empty `metadata` removes all.
pub(super) fn take_over_metadata(object: &mut Value, params: &Value) -> Result<(), Refusal> {
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
                return Err(Refusal::invalid("Metadata can have at most 50 keys.").at("metadata"));
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
        let old = json!({ "a": 1, "b": { "c": null, "d": 2 }, "m": { "gone": "x" } });
        let new = json!({ "a": 1, "b": { "c": "pm", "d": 2 }, "m": { "new": "y" } });
        let previous = Value::Object(previous_attributes(&old, &new));
        assert_eq!(previous, json!({ "b": { "c": null }, "m": { "gone": "x", "new": null } }));
    }
}
