//! Refunds. Those of some test cards stay pending for a while, or fail after they have succeeded.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::captures;
use super::lists;
use super::payment_methods;
use super::state::{flag, new_id, number, text};
use super::test_methods::FollowUp;
use super::timers::TimerAction;
use super::transaction::{Call, Transaction, merge_metadata};

/// `POST /v1/refunds`
pub(super) fn create(tx: &mut Transaction, call: &Call) -> ApiResult {
    let params = &call.params;
    let mut charge = charge_of(tx, params)?;
    let id = text(&charge, "/id").to_owned();
    let left = number(&charge, "/amount") - number(&charge, "/amount_refunded");
    if text(&charge, "/status") != "succeeded" {
        let message = format!("Charge {id} cannot be refunded: its status is {}.", text(&charge, "/status"));
        return Err(ApiError::invalid(message).at("charge"));
    }
    captures::check_refundable(tx, &charge)?;
    if flag(&charge, "/disputed") {
        let message = format!("Charge {id} has been charged back; cannot issue a refund.");
        return Err(ApiError::invalid(message).code("charge_disputed"));
    }
    if left == 0 {
        return Err(
            ApiError::invalid(format!("Charge {id} has already been refunded.")).code("charge_already_refunded")
        );
    }
    let amount = params.get("amount").and_then(Value::as_i64).unwrap_or(left);
    if amount < 1 {
        let message = "This value must be greater than or equal to 1.";
        return Err(ApiError::invalid(message).code("parameter_invalid_integer").at("amount").before_execution());
    }
    if amount > left {
        let message = format!("Refund amount ({amount}) is greater than unrefunded amount on charge ({left})");
        return Err(ApiError::invalid(message).at("amount"));
    }
    let method = text(&charge, "/payment_method");
    let follow_up = payment_methods::test_card(tx, method).map_or(FollowUp::None, |card| card.follow_up);
    let pending = follow_up == FollowUp::RefundPending;
    let kind = text(&charge, "/payment_method_details/type").to_owned();
    let mut details = json!({ "type": kind });
    details[&kind] = if kind == "card" { json!({ "type": "refund" }) } else { json!({}) };
    let mut refund = json!({
        "id": new_id("re"),
        "object": "refund",
        "amount": amount,
        "balance_transaction": new_id("txn"),
        "charge": id,
        "created": tx.now,
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
    merge_metadata(&mut refund, params)?;
    charge["amount_refunded"] = (number(&charge, "/amount_refunded") + amount).into();
    charge["refunded"] = (left == amount).into();
    tx.put(&charge);
    tx.insert(refund.clone());
    tx.emit("refund.created", &refund);
    tx.emit("charge.refunded", &charge);
    if matches!(follow_up, FollowUp::RefundPending | FollowUp::RefundFails) {
        let refund = text(&refund, "/id").to_owned();
        tx.schedule(
            tx.settings.refund_after,
            TimerAction::Refund { refund, fails: follow_up == FollowUp::RefundFails },
        );
    }
    Ok(refund)
}

fn charge_of(tx: &Transaction, params: &Value) -> ApiResult {
    let (intent, charge) = (text(params, "/payment_intent"), text(params, "/charge"));
    match (intent, charge) {
        ("", "") => {
            let message = "One of the following params should be provided for this request: payment_intent or charge.";
            Err(ApiError::invalid(message).before_execution())
        }
        ("", charge) => tx.referenced("charge", charge, "charge"),
        (intent, given) => {
            let found = tx.referenced("payment_intent", intent, "payment_intent")?;
            let charge = text(&found, "/latest_charge");
            match tx.get("charge", charge).filter(|charge| text(charge, "/status") == "succeeded") {
                Some(charge) if given.is_empty() || text(&charge, "/id") == given => Ok(charge),
                Some(_) => Err(ApiError::invalid("The charge is not of this PaymentIntent.").at("charge")),
                None => {
                    let message = format!("This PaymentIntent ({intent}) does not have a successful charge to refund.");
                    Err(ApiError::invalid(message).at("payment_intent"))
                }
            }
        }
    }
}

/// `GET /v1/refunds/{id}`
pub(super) fn retrieve(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.find("refund", call.id())
}

/// `GET /v1/refunds`
pub(super) fn list(tx: &mut Transaction, call: &Call) -> ApiResult {
    let (charge, intent) = (text(&call.params, "/charge"), text(&call.params, "/payment_intent"));
    lists::list(tx, call, "refund", |refund| {
        (charge.is_empty() || text(refund, "/charge") == charge)
            && (intent.is_empty() || text(refund, "/payment_intent") == intent)
    })
}

/// `POST /v1/refunds/{id}`
pub(super) fn update(tx: &mut Transaction, call: &Call) -> ApiResult {
    let old = tx.find("refund", call.id())?;
    let mut new = old.clone();
    merge_metadata(&mut new, &call.params)?;
    tx.change("refund.updated", &old, &new);
    Ok(new)
}

/// `POST /v1/refunds/{id}/cancel`. Always fails: only refunds that wait for the customer can be canceled, and refunds
/// to the sandbox's payment methods never do.
pub(super) fn cancel(tx: &mut Transaction, call: &Call) -> ApiResult {
    let refund = tx.find("refund", call.id())?;
    let message = format!(
        "You cannot cancel this refund because it has a status of {}. Only a refund with a status of requires_action may be \
         canceled.",
        text(&refund, "/status")
    );
    Err(ApiError::invalid(message))
}

/// Completes a slow refund: it succeeds, or fails after it has succeeded.
pub(super) fn complete(tx: &mut Transaction, id: &str, fails: bool) {
    let Some(old) = tx.get("refund", id) else { return };
    let mut new = old.clone();
    if !fails {
        new["status"] = "succeeded".into();
        tx.change("refund.updated", &old, &new);
        return;
    }
    new["status"] = "failed".into();
    new["failure_reason"] = "unknown".into();
    new["failure_balance_transaction"] = new_id("txn").into();
    tx.change("refund.updated", &old, &new);
    tx.emit("refund.failed", &new);
    if let Some(old) = tx.get("charge", text(&new, "/charge")) {
        let mut charge = old.clone();
        charge["amount_refunded"] = (number(&old, "/amount_refunded") - number(&new, "/amount")).into();
        charge["refunded"] = false.into();
        tx.change("charge.updated", &old, &charge);
    }
}
