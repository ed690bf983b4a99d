//! Manual capture: a confirmation only authorizes the amount on the card. A capture takes all or part of it.
//! Cancelation of the PaymentIntent, or expiry of the authorization, releases it.

use serde_json::Value;

use super::api_error::{ApiError, ApiResult};
use super::charges;
use super::disputes;
use super::intent_status::{close, save_method, succeed, unexpected};
use super::payment_methods;
use super::state::{new_id, number, text};
use super::timers::TimerAction;
use super::transaction::{Call, Transaction, copy_fields, merge_metadata};

/// How long an authorization is valid, in seconds: 7 days (Stripe's "Place a hold on a payment method").
const HOLD_PERIOD: i64 = 7 * 24 * 60 * 60;

/// Authorizes the amount on a card.
pub(super) fn hold(tx: &mut Transaction, mut intent: Value, method: &Value) -> Value {
    let mut charge = charges::create(tx, &intent, method, "succeeded");
    charge["captured"] = false.into();
    charge["amount_captured"] = 0.into();
    charge["balance_transaction"] = Value::Null;
    charge["payment_method_details"]["card"]["capture_before"] = (tx.now + HOLD_PERIOD).into();
    tx.put(&charge);
    tx.emit("charge.succeeded", &charge);
    save_method(tx, &intent, method);
    intent["status"] = "requires_capture".into();
    intent["amount_capturable"] = intent["amount"].clone();
    intent["latest_charge"] = charge["id"].clone();
    intent["last_payment_error"] = Value::Null;
    intent["next_action"] = Value::Null;
    tx.put(&intent);
    tx.emit("payment_intent.amount_capturable_updated", &intent);
    tx.schedule(HOLD_PERIOD, TimerAction::ExpireHold { intent: text(&intent, "/id").to_owned() });
    intent
}

/// `POST /v1/payment_intents/{id}/capture`
pub(super) fn capture(tx: &mut Transaction, call: &Call) -> ApiResult {
    let mut intent = tx.find("payment_intent", call.id())?;
    let amount = amount_to_capture(&intent, &call.params)?;
    copy_fields(&mut intent, &call.params, &["statement_descriptor", "statement_descriptor_suffix"]);
    merge_metadata(&mut intent, &call.params)?;
    let mut charge = tx.find("charge", text(&intent, "/latest_charge"))?;
    let method = tx.find("payment_method", text(&intent, "/payment_method"))?;
    charge["captured"] = true.into();
    charge["amount_captured"] = amount.into();
    // Stripe counts the uncaptured part as refunded.
    charge["amount_refunded"] = (number(&charge, "/amount") - amount).into();
    charge["balance_transaction"] = new_id("txn").into();
    tx.put(&charge);
    tx.emit("charge.captured", &charge);
    intent["amount_capturable"] = 0.into();
    let intent = succeed(tx, intent, &method, &charge);
    if let Some(card) = payment_methods::test_card(tx, text(&method, "/id")) {
        disputes::after_charge(tx, &charge, card.follow_up);
    }
    Ok(intent)
}

fn amount_to_capture(intent: &Value, params: &Value) -> Result<i64, ApiError> {
    match text(intent, "/status") {
        "requires_capture" => {}
        "succeeded" => {
            let message = "The remaining amount on this PaymentIntent could not be captured because the remainder of the \
                           authorized amount has been released.";
            return Err(unexpected(intent, message.to_owned()));
        }
        status => {
            let message = format!(
                "This PaymentIntent could not be captured because it has a status of {status}. Only a PaymentIntent with \
                 one of the following statuses may be captured: requires_capture."
            );
            return Err(unexpected(intent, message));
        }
    }
    let most = number(intent, "/amount_capturable");
    let api_error = match params.get("amount_to_capture").and_then(Value::as_i64) {
        None => return Ok(most),
        Some(amount) if amount < 0 => ApiError::invalid("Invalid non-negative integer").at("amount_to_capture"),
        // Stripe names this parameter, not the one that was given.
        Some(0) => ApiError::invalid("This value must be greater than or equal to 1.")
            .code("parameter_invalid_integer")
            .at("amount"),
        Some(amount) if amount > most => {
            let message = "The payment could not be captured because the requested capture amount is greater than the \
                           amount you can capture for this charge.";
            ApiError::invalid(message).code("amount_too_large")
        }
        Some(amount) => return Ok(amount),
    };
    Err(api_error.with("payment_intent", intent.clone()))
}

/// Releases the authorized amount of an intent, if there is one. Stripe counts it as refunded.
pub(super) fn release(tx: &mut Transaction, intent: &Value) -> Option<Value> {
    let mut charge = tx.get("charge", text(intent, "/latest_charge"))?;
    if text(intent, "/status") != "requires_capture" {
        return None;
    }
    charge["amount_refunded"] = charge["amount"].clone();
    charge["refunded"] = true.into();
    tx.put(&charge);
    Some(charge)
}

/// Expires an authorization that was not captured.
pub(super) fn expire(tx: &mut Transaction, intent: &str) {
    let Some(intent) = tx.get("payment_intent", intent) else { return };
    let Some(charge) = release(tx, &intent) else { return };
    tx.emit("charge.expired", &charge);
    close(tx, &intent, "automatic".into());
}

/// Rejects the refund of a charge that has not been captured: 400, without `code` and `param`.
pub(super) fn check_refundable(tx: &Transaction, charge: &Value) -> Result<(), ApiError> {
    if text(charge, "/status") != "succeeded" || charge["captured"] == true {
        return Ok(());
    }
    let intent = text(charge, "/payment_intent");
    let is_authorized =
        tx.get("payment_intent", intent).is_some_and(|intent| text(&intent, "/status") == "requires_capture");
    let message = if is_authorized {
        format!("The charge of this PaymentIntent ({intent}) has not been captured. Cancel the PaymentIntent instead.")
    } else {
        format!("This PaymentIntent ({intent}) does not have a successful charge to refund.")
    };
    Err(ApiError::invalid(message))
}
