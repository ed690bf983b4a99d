//! PaymentIntents: the endpoints. Confirmations are in `confirmation`.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::captures;
use super::confirmation::{self, usable};
use super::intent_status::{close, is_open, unexpected};
use super::lists;
use super::method_types;
use super::money;
use super::payment_methods;
use super::state::{new_id, number, text};
use super::transaction::{Call, Transaction, copy_fields, merge_metadata};

/// `POST /v1/payment_intents`
pub(super) fn create(tx: &mut Transaction, call: &Call) -> ApiResult {
    let params = &call.params;
    let confirm = params["confirm"] == true;
    for param in ["off_session", "error_on_requires_action", "return_url", "mandate", "mandate_data"] {
        if params.get(param).is_some() && !confirm {
            let message = format!("`{param}` can only be given when `confirm` is true.");
            return Err(ApiError::invalid(message).at(param).before_execution());
        }
    }
    let mut intent = blank(tx, params)?;
    let params = &payment_methods::with_data(tx, params)?;
    let given = text(params, "/payment_method");
    if !given.is_empty() {
        let method = usable(tx, &intent, given)?;
        intent["payment_method"] = method["id"].clone();
        intent["status"] = "requires_confirmation".into();
    }
    let method = if confirm { Some(confirmation::check(tx, &intent, &without_method(params))?) } else { None };
    tx.insert(intent.clone());
    tx.emit("payment_intent.created", &intent);
    match method {
        Some(method) => confirmation::confirm(tx, &intent, params, &method),
        None => Ok(intent),
    }
}

/// The parameters without `payment_method`, which the intent has already. A shared test id must be copied only once.
fn without_method(params: &Value) -> Value {
    let mut params = params.clone();
    params["payment_method"] = Value::Null;
    params
}

/// A new intent, not stored yet.
pub(super) fn blank(tx: &Transaction, params: &Value) -> ApiResult {
    let currency = money::currency(text(params, "/currency"))?;
    money::check_amount(number(params, "/amount"), &currency, "amount")?;
    let customer = text(params, "/customer");
    if !customer.is_empty() {
        tx.referenced("customer", customer, "customer")?;
    }
    let id = new_id("pi");
    let mut intent = json!({
        "id": id,
        "object": "payment_intent",
        "allowed_payment_method_types": null,
        "amount": params["amount"],
        "amount_capturable": 0,
        "amount_details": { "tip": {} },
        "amount_received": 0,
        "application": null,
        "application_fee_amount": null,
        "automatic_payment_methods": null,
        "canceled_at": null,
        "cancellation_reason": null,
        "capture_method": "automatic_async",
        "client_secret": format!("{id}_{}", new_id("secret")),
        "confirmation_method": "automatic",
        "created": tx.now,
        "currency": currency,
        "customer": null,
        "description": null,
        "last_payment_error": null,
        "latest_charge": null,
        "livemode": tx.account.livemode,
        "metadata": {},
        "next_action": null,
        "on_behalf_of": null,
        "payment_method": null,
        "payment_method_configuration_details": null,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "processing": null,
        "receipt_email": null,
        "review": null,
        "setup_future_usage": null,
        "shipping": null,
        "statement_descriptor": null,
        "statement_descriptor_suffix": null,
        "status": "requires_payment_method",
        "transfer_data": null,
        "transfer_group": null,
    });
    copy_fields(&mut intent, params, &["capture_method", "confirmation_method"]);
    method_types::choose(&mut intent, params)?;
    copy_fields(&mut intent, params, &["customer", "description", "receipt_email", "setup_future_usage", "shipping"]);
    copy_fields(&mut intent, params, &["statement_descriptor", "statement_descriptor_suffix"]);
    merge_metadata(&mut intent, params)?;
    Ok(intent)
}

/// `GET /v1/payment_intents/{id}`
pub(super) fn retrieve(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.find("payment_intent", call.id())
}

/// `GET /v1/payment_intents`
pub(super) fn list(tx: &mut Transaction, call: &Call) -> ApiResult {
    let customer = text(&call.params, "/customer");
    lists::list(tx, call, "payment_intent", |intent| customer.is_empty() || text(intent, "/customer") == customer)
}

/// `POST /v1/payment_intents/{id}`
pub(super) fn update(tx: &mut Transaction, call: &Call) -> ApiResult {
    let params = &call.params;
    let mut intent = tx.find("payment_intent", call.id())?;
    let moves = [
        "amount",
        "capture_method",
        "currency",
        "customer",
        "payment_method",
        "payment_method_types",
        "allowed_payment_method_types",
        "payment_method_data",
        "setup_future_usage",
    ];
    if !is_open(&intent) && moves.iter().any(|field| params.get(field).is_some()) {
        let message = format!(
            "This PaymentIntent's {} could not be updated because it has a status of {}. You may only update the {0} of a \
             PaymentIntent with one of the following statuses: requires_payment_method, requires_confirmation, requires_action.",
            moves.iter().find(|field| params.get(field).is_some()).unwrap_or(&"amount"),
            text(&intent, "/status")
        );
        return Err(unexpected(&intent, message));
    }
    copy_fields(&mut intent, params, &["amount", "capture_method", "customer", "description", "receipt_email"]);
    copy_fields(&mut intent, params, &["setup_future_usage", "shipping"]);
    copy_fields(&mut intent, params, &["statement_descriptor", "statement_descriptor_suffix"]);
    if let Some(given) = params.get("currency").and_then(Value::as_str) {
        intent["currency"] = money::currency(given)?.into();
    }
    money::check_amount(number(&intent, "/amount"), text(&intent, "/currency"), "amount")?;
    if let Some(customer) = params.get("customer").and_then(Value::as_str) {
        tx.referenced("customer", customer, "customer")?;
    }
    method_types::replace(&mut intent, params)?;
    merge_metadata(&mut intent, params)?;
    let params = payment_methods::with_data(tx, params)?;
    let given = text(&params, "/payment_method");
    if !given.is_empty() {
        intent["payment_method"] = usable(tx, &intent, given)?["id"].clone();
        intent["status"] = "requires_confirmation".into();
        intent["next_action"] = Value::Null;
    }
    tx.put(&intent);
    Ok(intent)
}

/// `POST /v1/payment_intents/{id}/confirm`
pub(super) fn confirm(tx: &mut Transaction, call: &Call) -> ApiResult {
    let mut intent = tx.find("payment_intent", call.id())?;
    if is_open(&intent) {
        method_types::replace(&mut intent, &call.params)?;
    }
    let params = payment_methods::with_data(tx, &call.params)?;
    let method = confirmation::check(tx, &intent, &params)?;
    confirmation::confirm(tx, &intent, &params, &method)
}

/// `POST /v1/payment_intents/{id}/cancel`
pub(super) fn cancel(tx: &mut Transaction, call: &Call) -> ApiResult {
    let intent = tx.find("payment_intent", call.id())?;
    if !is_open(&intent) && text(&intent, "/status") != "requires_capture" {
        let message = format!(
            "You cannot cancel this PaymentIntent because it has a status of {}. Only a PaymentIntent with one of the \
             following statuses may be canceled: requires_payment_method, requires_capture, requires_reauthorization, \
             requires_confirmation, requires_action, processing.",
            text(&intent, "/status")
        );
        return Err(unexpected(&intent, message));
    }
    if tx.internals(call.id()).session.is_some() {
        let message =
            "This PaymentIntent was created by a Checkout Session: expire the session instead of canceling it.";
        return Err(unexpected(&intent, message.to_owned()));
    }
    if let Some(charge) = captures::release(tx, &intent) {
        tx.emit("charge.refunded", &charge);
    }
    let reason = call.params.get("cancellation_reason").cloned().unwrap_or_default();
    Ok(close(tx, &intent, reason))
}
