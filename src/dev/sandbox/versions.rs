//! Renderings of events in API versions older than ours. The events list renders in the account's default version,
//! whatever version a call names (Stripe's documentation of `GET /v1/events`).

use serde_json::{Value, json};

use super::act::API_VERSION;
use super::state::{Account, text};

/// The last version of a PaymentIntent with `charges`; from 2022-11-15 on it has `latest_charge`.
const WITH_CHARGES: &str = "2022-08-01";
/// The last version that calls methods sources; 2019-02-11 renamed them.
const WITH_SOURCES: &str = "2018-11-08";

/// The event as the account's default version shows it.
pub(super) fn render(account: &Account, mut event: Value) -> Value {
    let Some(version) = account.api_version.as_deref().filter(|version| *version != API_VERSION) else { return event };
    event["api_version"] = version.into();
    let object = &mut event["data"]["object"];
    match text(object, "/object") {
        "payment_intent" if version <= WITH_CHARGES => {
            list_charges(account, object);
            if version <= WITH_SOURCES {
                name_sources(object);
            }
        }
        "charge" if version <= WITH_CHARGES => {
            let id = text(object, "/id").to_owned();
            let refunds = newest_first(account, "refund", |refund| text(refund, "/charge") == id);
            object["refunds"] = list(&refunds, &format!("/v1/charges/{id}/refunds"));
        }
        _ => {}
    }
    event
}

fn list_charges(account: &Account, intent: &mut Value) {
    let id = text(intent, "/id").to_owned();
    let latest = text(intent, "/latest_charge").to_owned();
    let mut charges = newest_first(account, "charge", |charge| text(charge, "/payment_intent") == id);
    // An event is frozen: what was charged after it is not in it.
    let known = charges.iter().position(|charge| text(charge, "/id") == latest).unwrap_or(charges.len());
    charges.drain(..known);
    if let Some(fields) = intent.as_object_mut() {
        fields.remove("latest_charge");
    }
    intent["charges"] = list(&charges, &format!("/v1/charges?payment_intent={id}"));
}

fn name_sources(intent: &mut Value) {
    match text(intent, "/status") {
        "requires_payment_method" => intent["status"] = "requires_source".into(),
        "requires_action" => intent["status"] = "requires_source_action".into(),
        _ => {}
    }
    let moves = [("payment_method_types", "allowed_source_types"), ("next_action", "next_source_action")];
    let Some(fields) = intent.as_object_mut() else { return };
    for (new, old) in moves {
        if let Some(value) = fields.remove(new) {
            fields.insert(old.to_owned(), value);
        }
    }
    if let Some(action) = fields.get_mut("next_source_action").and_then(Value::as_object_mut)
        && let Some(link) = action.remove("redirect_to_url")
    {
        action.insert("type".to_owned(), "authorize_with_url".into());
        action.insert("authorize_with_url".to_owned(), link);
    }
}

fn newest_first(account: &Account, kind: &str, keep: impl Fn(&Value) -> bool) -> Vec<Value> {
    let ids = account.order.get(kind).map_or(&[][..], Vec::as_slice);
    ids.iter().rev().filter_map(|id| account.objects.get(id)).filter(|object| keep(object)).cloned().collect()
}

fn list(data: &[Value], url: &str) -> Value {
    json!({ "object": "list", "data": data, "has_more": false, "url": url })
}
