//! Refunds. Some test cards' refunds take their time, or fail after they had succeeded.

use serde_json::{Value, json};

use super::act::{Act, Call, take_over_metadata};
use super::captures;
use super::lists;
use super::payment_methods;
use super::refusal::{Answer, Refusal};
use super::state::{flag, new_id, number, text};
use super::test_methods::Aftermath;
use super::timers::Due;

/// `POST /v1/refunds`
pub(super) fn create(act: &mut Act, call: &Call) -> Answer {
    let params = &call.params;
    let mut charge = charge_of(act, params)?;
    let id = text(&charge, "/id").to_owned();
    let left = number(&charge, "/amount") - number(&charge, "/amount_refunded");
    if text(&charge, "/status") != "succeeded" {
        let message = format!("Charge {id} cannot be refunded: its status is {}.", text(&charge, "/status"));
        return Err(Refusal::invalid(message).at("charge"));
    }
    captures::check_refundable(act, &charge)?;
    if flag(&charge, "/disputed") {
        let message = format!("Charge {id} has been charged back; cannot issue a refund.");
        return Err(Refusal::invalid(message).code("charge_disputed"));
    }
    if left == 0 {
        return Err(Refusal::invalid(format!("Charge {id} has already been refunded.")).code("charge_already_refunded"));
    }
    let amount = params.get("amount").and_then(Value::as_i64).unwrap_or(left);
    if amount < 1 {
        let message = "This value must be greater than or equal to 1.";
        return Err(Refusal::invalid(message).code("parameter_invalid_integer").at("amount").early());
    }
    if amount > left {
        let message = format!("Refund amount ({amount}) is greater than unrefunded amount on charge ({left})");
        return Err(Refusal::invalid(message).at("amount"));
    }
    let method = text(&charge, "/payment_method");
    let aftermath = payment_methods::test_card(act, method).map_or(Aftermath::Nothing, |card| card.aftermath);
    let pending = aftermath == Aftermath::RefundPending;
    let kind = text(&charge, "/payment_method_details/type").to_owned();
    let mut details = json!({ "type": kind });
    details[&kind] = if kind == "card" { json!({ "type": "refund" }) } else { json!({}) };
    let mut refund = json!({
        "id": new_id("re"),
        "object": "refund",
        "amount": amount,
        "balance_transaction": new_id("txn"),
        "charge": id,
        "created": act.now,
        "currency": charge["currency"],
        "destination_details": details,
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "reason": params.get("reason").cloned().unwrap_or_default(),
        "receipt_number": null,
        "source_transfer_reversal": null,
        "status": if pending { "pending" } else { "succeeded" },
        "transfer_reversal": null,
    });
    take_over_metadata(&mut refund, params)?;
    charge["amount_refunded"] = (number(&charge, "/amount_refunded") + amount).into();
    charge["refunded"] = (left == amount).into();
    act.put(&charge);
    act.insert(refund.clone());
    act.emit("refund.created", &refund);
    act.emit("charge.refunded", &charge);
    if matches!(aftermath, Aftermath::RefundPending | Aftermath::RefundFails) {
        let refund = text(&refund, "/id").to_owned();
        act.later(act.settings.refund_after, Due::Refund { refund, fails: aftermath == Aftermath::RefundFails });
    }
    Ok(refund)
}

fn charge_of(act: &Act, params: &Value) -> Answer {
    let (intent, charge) = (text(params, "/payment_intent"), text(params, "/charge"));
    match (intent, charge) {
        ("", "") => {
            let message = "One of the following params should be provided for this request: payment_intent or charge.";
            Err(Refusal::invalid(message).early())
        }
        ("", charge) => act.referenced("charge", charge, "charge"),
        (intent, given) => {
            let found = act.referenced("payment_intent", intent, "payment_intent")?;
            let charge = text(&found, "/latest_charge");
            match act.get("charge", charge).filter(|charge| text(charge, "/status") == "succeeded") {
                Some(charge) if given.is_empty() || text(&charge, "/id") == given => Ok(charge),
                Some(_) => Err(Refusal::invalid("The charge is not of this PaymentIntent.").at("charge")),
                None => {
                    let message = format!("This PaymentIntent ({intent}) does not have a successful charge to refund.");
                    Err(Refusal::invalid(message).at("payment_intent"))
                }
            }
        }
    }
}

/// `GET /v1/refunds/{id}`
pub(super) fn retrieve(act: &mut Act, call: &Call) -> Answer {
    act.find("refund", call.id())
}

/// `GET /v1/refunds`
pub(super) fn list(act: &mut Act, call: &Call) -> Answer {
    let (charge, intent) = (text(&call.params, "/charge"), text(&call.params, "/payment_intent"));
    lists::list(act, call, "refund", |refund| {
        (charge.is_empty() || text(refund, "/charge") == charge)
            && (intent.is_empty() || text(refund, "/payment_intent") == intent)
    })
}

/// `POST /v1/refunds/{id}`
pub(super) fn update(act: &mut Act, call: &Call) -> Answer {
    let old = act.find("refund", call.id())?;
    let mut new = old.clone();
    take_over_metadata(&mut new, &call.params)?;
    act.change("refund.updated", &old, &new);
    Ok(new)
}

/// `POST /v1/refunds/{id}/cancel`: only refunds that wait for the customer can be canceled, and those of the sandbox's
/// methods never do.
pub(super) fn cancel(act: &mut Act, call: &Call) -> Answer {
    let refund = act.find("refund", call.id())?;
    let message = format!(
        "You cannot cancel this refund because it has a status of {}. Only a refund with a status of requires_action may be \
         canceled.",
        text(&refund, "/status")
    );
    Err(Refusal::invalid(message))
}

/// A slow refund's outcome: it succeeds, or fails although it had succeeded.
pub(super) fn outcome(act: &mut Act, id: &str, fails: bool) {
    let Some(old) = act.get("refund", id) else { return };
    let mut new = old.clone();
    if !fails {
        new["status"] = "succeeded".into();
        act.change("refund.updated", &old, &new);
        return;
    }
    new["status"] = "failed".into();
    new["failure_reason"] = "unknown".into();
    new["failure_balance_transaction"] = new_id("txn").into();
    act.change("refund.updated", &old, &new);
    act.emit("refund.failed", &new);
    if let Some(old) = act.get("charge", text(&new, "/charge")) {
        let mut charge = old.clone();
        charge["amount_refunded"] = (number(&old, "/amount_refunded") - number(&new, "/amount")).into();
        charge["refunded"] = false.into();
        act.change("charge.updated", &old, &charge);
    }
}
