//! The status of a PaymentIntent: the checks and changes that confirmation, capture and cancelation share.

use serde_json::Value;

use super::api_error::ApiError;
use super::payment_methods;
use super::session_status;
use super::state::text;
use super::transaction::Transaction;

/// Whether a confirmation of the intent only authorizes the amount.
pub(super) fn is_manual(intent: &Value) -> bool {
    text(intent, "/capture_method") == "manual"
}

/// Cancels an intent that is open or only authorized.
pub(super) fn close(tx: &mut Transaction, intent: &Value, reason: Value) -> Value {
    let mut intent = intent.clone();
    intent["status"] = "canceled".into();
    intent["amount_capturable"] = 0.into();
    intent["canceled_at"] = tx.now.into();
    intent["cancellation_reason"] = reason;
    intent["next_action"] = Value::Null;
    tx.put(&intent);
    tx.emit("payment_intent.canceled", &intent);
    intent
}

/// Whether the intent can still be confirmed and changed.
pub(super) fn is_open(intent: &Value) -> bool {
    matches!(text(intent, "/status"), "requires_payment_method" | "requires_confirmation" | "requires_action")
}

/// 400 with the intent: Stripe's error for a request that the intent's status forbids.
pub(super) fn unexpected(intent: &Value, message: String) -> ApiError {
    ApiError::invalid(message).code("payment_intent_unexpected_state").with("payment_intent", intent.clone())
}

/// Completes an intent whose charge has succeeded.
pub(super) fn succeed(tx: &mut Transaction, mut intent: Value, method: &Value, charge: &Value) -> Value {
    save_method(tx, &intent, method);
    intent["status"] = "succeeded".into();
    intent["amount_received"] = charge["amount_captured"].clone();
    intent["latest_charge"] = charge["id"].clone();
    intent["last_payment_error"] = Value::Null;
    intent["next_action"] = Value::Null;
    intent["processing"] = Value::Null;
    tx.put(&intent);
    tx.emit("payment_intent.succeeded", &intent);
    if let Some(session) = tx.internals(text(&intent, "/id")).session {
        session_status::mark_paid(tx, &session, method);
    }
    intent
}

/// Attaches the method to the customer if `setup_future_usage` is set. Otherwise it cannot be used again.
pub(super) fn save_method(tx: &mut Transaction, intent: &Value, method: &Value) {
    let (id, customer) = (text(method, "/id"), text(intent, "/customer").to_owned());
    if !text(method, "/customer").is_empty() {
        return;
    }
    if text(intent, "/setup_future_usage").is_empty() || customer.is_empty() {
        tx.internals_mut(id).used_up = true;
    } else if tx.get("payment_method", id).is_some_and(|method| text(&method, "/customer").is_empty()) {
        payment_methods::bind(tx, method, &customer);
    }
}
