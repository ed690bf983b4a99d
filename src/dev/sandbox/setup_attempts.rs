//! SetupAttempts: one for each confirmation of a SetupIntent.

use serde_json::{Value, json};

use super::api_error::ApiResult;
use super::lists;
use super::state::{new_id, text};
use super::transaction::{Call, Transaction};

/// `GET /v1/setup_attempts`
pub(super) fn list(tx: &mut Transaction, call: &Call) -> ApiResult {
    let intent = text(&call.params, "/setup_intent");
    tx.referenced("setup_intent", intent, "setup_intent")?;
    lists::list(tx, call, "setup_attempt", |attempt| text(attempt, "/setup_intent") == intent)
}

/// Creates an attempt as the intent's latest, and abandons the previous one if it waits for its payer.
pub(super) fn begin(tx: &mut Transaction, intent: &mut Value, method: &Value) {
    abandon(tx, intent);
    let (id, kind) = (new_id("setatt"), text(method, "/type"));
    let mut details = json!({ "type": kind });
    details[kind] = if kind == "card" { card_details(&method["card"]) } else { json!({}) };
    let attempt = json!({
        "id": id,
        "object": "setup_attempt",
        "application": null,
        "created": tx.now,
        "customer": intent["customer"],
        "flow_directions": null,
        "livemode": tx.account.livemode,
        "on_behalf_of": null,
        "payment_method": method["id"],
        "payment_method_details": details,
        "setup_error": null,
        "setup_intent": intent["id"],
        "status": "processing",
        "usage": intent["usage"],
    });
    intent["latest_attempt"] = id.into();
    tx.insert(attempt);
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

fn latest(tx: &Transaction, intent: &Value) -> Option<Value> {
    tx.get("setup_attempt", text(intent, "/latest_attempt"))
}

/// Marks the intent's latest attempt as waiting for its payer.
pub(super) fn require_action(tx: &mut Transaction, intent: &Value) {
    end(tx, intent, "requires_action", Value::Null);
}

/// Marks the intent's latest attempt as succeeded.
pub(super) fn succeed(tx: &mut Transaction, intent: &Value) {
    end(tx, intent, "succeeded", Value::Null);
}

/// Marks the intent's latest attempt as failed.
pub(super) fn fail(tx: &mut Transaction, intent: &Value, error: Value) {
    end(tx, intent, "failed", error);
}

/// Abandons the intent's latest attempt if it waits for its payer.
pub(super) fn abandon(tx: &mut Transaction, intent: &Value) {
    if latest(tx, intent).is_some_and(|attempt| text(&attempt, "/status") == "requires_action") {
        end(tx, intent, "abandoned", Value::Null);
    }
}

fn end(tx: &mut Transaction, intent: &Value, status: &str, error: Value) {
    let open = |attempt: &Value| matches!(text(attempt, "/status"), "processing" | "requires_action");
    let Some(mut attempt) = latest(tx, intent).filter(open) else { return };
    let was_challenged = text(&attempt, "/status") == "requires_action";
    attempt["status"] = status.into();
    attempt["setup_error"] = error;
    if was_challenged && status != "abandoned" {
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
    tx.put(&attempt);
}
