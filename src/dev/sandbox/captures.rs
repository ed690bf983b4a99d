//! Manual capture: a confirmation only holds the money on the card; it is taken by a capture, in whole or in part, or
//! released when the PaymentIntent is canceled or nobody captures it in time.

use serde_json::Value;

use super::act::{Act, Call, take_over, take_over_metadata};
use super::charges;
use super::confirmation;
use super::disputes;
use super::payment_intents::{close, unexpected};
use super::payment_methods;
use super::refusal::{Answer, Refusal};
use super::state::{new_id, number, text};
use super::timers::Due;

/// How long a card's bank holds the money, in seconds: 7 days (Stripe's "Place a hold on a payment method").
const HELD: i64 = 7 * 24 * 60 * 60;

/// Whether a confirmation of the intent only holds the money.
pub(super) fn is_manual(intent: &Value) -> bool {
    text(intent, "/capture_method") == "manual"
}

/// Holds the money on a card that its bank has accepted.
pub(super) fn hold(act: &mut Act, mut intent: Value, method: &Value) -> Value {
    let mut charge = charges::make(act, &intent, method, "succeeded");
    charge["captured"] = false.into();
    charge["amount_captured"] = 0.into();
    charge["balance_transaction"] = Value::Null;
    charge["payment_method_details"]["card"]["capture_before"] = (act.now + HELD).into();
    act.put(&charge);
    act.emit("charge.succeeded", &charge);
    confirmation::keep_method(act, &intent, method);
    intent["status"] = "requires_capture".into();
    intent["amount_capturable"] = intent["amount"].clone();
    intent["latest_charge"] = charge["id"].clone();
    intent["last_payment_error"] = Value::Null;
    intent["next_action"] = Value::Null;
    act.put(&intent);
    act.emit("payment_intent.amount_capturable_updated", &intent);
    act.later(HELD, Due::ExpireHold { intent: text(&intent, "/id").to_owned() });
    intent
}

/// `POST /v1/payment_intents/{id}/capture`
pub(super) fn capture(act: &mut Act, call: &Call) -> Answer {
    let mut intent = act.find("payment_intent", call.id())?;
    let amount = amount_to_capture(&intent, &call.params)?;
    take_over(&mut intent, &call.params, &["statement_descriptor", "statement_descriptor_suffix"]);
    take_over_metadata(&mut intent, &call.params)?;
    let mut charge = act.find("charge", text(&intent, "/latest_charge"))?;
    let method = act.find("payment_method", text(&intent, "/payment_method"))?;
    charge["captured"] = true.into();
    charge["amount_captured"] = amount.into();
    // Stripe counts what is not captured as refunded.
    charge["amount_refunded"] = (number(&charge, "/amount") - amount).into();
    charge["balance_transaction"] = new_id("txn").into();
    act.put(&charge);
    act.emit("charge.captured", &charge);
    intent["amount_capturable"] = 0.into();
    let intent = confirmation::succeed(act, intent, &method, &charge);
    if let Some(card) = payment_methods::test_card(act, text(&method, "/id")) {
        disputes::after_charge(act, &charge, card.aftermath);
    }
    Ok(intent)
}

fn amount_to_capture(intent: &Value, params: &Value) -> Result<i64, Refusal> {
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
    let refusal = match params.get("amount_to_capture").and_then(Value::as_i64) {
        None => return Ok(most),
        Some(amount) if amount < 0 => Refusal::invalid("Invalid non-negative integer").at("amount_to_capture"),
        // Stripe names this parameter, and not the one that was given.
        Some(0) => Refusal::invalid("This value must be greater than or equal to 1.")
            .code("parameter_invalid_integer")
            .at("amount"),
        Some(amount) if amount > most => {
            let message = "The payment could not be captured because the requested capture amount is greater than the \
                           amount you can capture for this charge.";
            Refusal::invalid(message).code("amount_too_large")
        }
        Some(amount) => return Ok(amount),
    };
    Err(refusal.with("payment_intent", intent.clone()))
}

/// Gives back what an intent holds, if it holds any: Stripe counts it as refunded.
pub(super) fn release(act: &mut Act, intent: &Value) -> Option<Value> {
    let mut charge = act.get("charge", text(intent, "/latest_charge"))?;
    if text(intent, "/status") != "requires_capture" {
        return None;
    }
    charge["amount_refunded"] = charge["amount"].clone();
    charge["refunded"] = true.into();
    act.put(&charge);
    Some(charge)
}

/// The bank gives back what nobody has captured in time.
pub(super) fn expire(act: &mut Act, intent: &str) {
    let Some(intent) = act.get("payment_intent", intent) else { return };
    let Some(charge) = release(act, &intent) else { return };
    act.emit("charge.expired", &charge);
    close(act, &intent, "automatic".into());
}

/// Refuses to refund a charge that has not been captured: 400, without `code` and `param`.
pub(super) fn check_refundable(act: &Act, charge: &Value) -> Result<(), Refusal> {
    if text(charge, "/status") != "succeeded" || charge["captured"] == true {
        return Ok(());
    }
    let intent = text(charge, "/payment_intent");
    let held = act.get("payment_intent", intent).is_some_and(|intent| text(&intent, "/status") == "requires_capture");
    let message = if held {
        format!("The charge of this PaymentIntent ({intent}) has not been captured. Cancel the PaymentIntent instead.")
    } else {
        format!("This PaymentIntent ({intent}) does not have a successful charge to refund.")
    };
    Err(Refusal::invalid(message))
}
