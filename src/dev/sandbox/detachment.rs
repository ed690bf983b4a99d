//! Detaches payment methods from their customers, by the endpoint of each form.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::mandates;
use super::payment_methods;
use super::sources::{self, legacy_form};
use super::state::text;
use super::transaction::{Call, Transaction};

/// `POST /v1/payment_methods/{id}/detach`
pub(super) fn detach(tx: &mut Transaction, call: &Call) -> ApiResult {
    let method = payment_methods::existing(tx, call.id())?;
    if text(&method, "/customer").is_empty() {
        let message = "The payment method you provided is not attached to a customer so detachment is impossible.";
        return Err(ApiError::invalid(message));
    }
    Ok(detach_method(tx, &method))
}

/// Detaches a payment method permanently. Ends its mandate, and clears it as the customer's default.
pub(super) fn detach_method(tx: &mut Transaction, method: &Value) -> Value {
    let (id, customer) = (text(method, "/id").to_owned(), text(method, "/customer").to_owned());
    let mut new = method.clone();
    new["customer"] = Value::Null;
    tx.put(&new);
    tx.emit("payment_method.detached", &new);
    let internals = tx.internals_mut(&id);
    internals.used_up = true;
    if let Some(mandate) = internals.mandate.take() {
        mandates::end(tx, &mandate);
    }
    if let Ok(old) = tx.existing("customer", &customer)
        && text(&old, "/invoice_settings/default_payment_method") == id
    {
        let mut new = old.clone();
        new["invoice_settings"]["default_payment_method"] = Value::Null;
        tx.change("customer.updated", &old, &new);
    }
    sources::after_detach(tx, method, &customer);
    new
}

/// `DELETE /v1/customers/{id}/sources/{id}`
pub(super) fn delete_source(tx: &mut Transaction, call: &Call) -> ApiResult {
    let method = sources::own(tx, call)?;
    detach_method(tx, &method);
    if text(&method, "/id").starts_with("src_") {
        return Ok(legacy_form(&method));
    }
    Ok(json!({ "id": method["id"], "object": "card", "deleted": true }))
}
