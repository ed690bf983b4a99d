//! SetupAttempts: one for each confirmation of a SetupIntent, with its outcome.

use serde_json::{Value, json};

use super::act::{Act, Call};
use super::lists;
use super::refusal::Answer;
use super::state::{new_id, text};

/// `GET /v1/setup_attempts`
pub(super) fn list(act: &mut Act, call: &Call) -> Answer {
    let intent = text(&call.params, "/setup_intent");
    act.referenced("setup_intent", intent, "setup_intent")?;
    lists::list(act, call, "setup_attempt", |attempt| text(attempt, "/setup_intent") == intent)
}

/// Begins an attempt and makes it the intent's latest; one that still waits for its payer is abandoned.
pub(super) fn begin(act: &mut Act, intent: &mut Value, method: &Value) {
    abandon(act, intent);
    let (id, kind) = (new_id("setatt"), text(method, "/type"));
    let mut details = json!({ "type": kind });
    details[kind] = if kind == "card" { card_details(&method["card"]) } else { json!({}) };
    let attempt = json!({
        "id": id,
        "object": "setup_attempt",
        "application": null,
        "created": act.now,
        "customer": intent["customer"],
        "flow_directions": null,
        "livemode": act.account.livemode,
        "on_behalf_of": null,
        "payment_method": method["id"],
        "payment_method_details": details,
        "setup_error": null,
        "setup_intent": intent["id"],
        "status": "processing",
        "usage": intent["usage"],
    });
    intent["latest_attempt"] = id.into();
    act.insert(attempt);
}

fn card_details(card: &Value) -> Value {
    json!({
        "brand": card["brand"],
        "checks": card["checks"],
        "country": card["country"],
        "exp_month": card["exp_month"],
        "exp_year": card["exp_year"],
        "fingerprint": card["fingerprint"],
        "funding": card["funding"],
        "last4": card["last4"],
        "network": card["brand"],
        "three_d_secure": null,
        "wallet": null,
    })
}

fn latest(act: &Act, intent: &Value) -> Option<Value> {
    act.get("setup_attempt", text(intent, "/latest_attempt"))
}

/// The intent's latest attempt waits for its payer.
pub(super) fn wait(act: &mut Act, intent: &Value) {
    end(act, intent, "requires_action", Value::Null);
}

/// The intent's latest attempt has succeeded.
pub(super) fn succeed(act: &mut Act, intent: &Value) {
    end(act, intent, "succeeded", Value::Null);
}

/// The intent's latest attempt has failed with this error.
pub(super) fn fail(act: &mut Act, intent: &Value, error: Value) {
    end(act, intent, "failed", error);
}

/// Nobody will go on with an attempt that waits for its payer.
pub(super) fn abandon(act: &mut Act, intent: &Value) {
    if latest(act, intent).is_some_and(|attempt| text(&attempt, "/status") == "requires_action") {
        end(act, intent, "abandoned", Value::Null);
    }
}

fn end(act: &mut Act, intent: &Value, status: &str, error: Value) {
    let open = |attempt: &Value| matches!(text(attempt, "/status"), "processing" | "requires_action");
    let Some(mut attempt) = latest(act, intent).filter(open) else { return };
    let asked = text(&attempt, "/status") == "requires_action";
    attempt["status"] = status.into();
    attempt["setup_error"] = error;
    if asked && status != "abandoned" {
        let result = if status == "succeeded" { "authenticated" } else { "failed" };
        attempt["payment_method_details"]["card"]["three_d_secure"] = json!({
            "authentication_flow": "challenge",
            "electronic_commerce_indicator": if status == "succeeded" { json!("05") } else { Value::Null },
            "result": result,
            "result_reason": if status == "succeeded" { Value::Null } else { json!("rejected") },
            "transaction_id": null,
            "version": "2.2.0",
        });
    }
    act.put(&attempt);
}
