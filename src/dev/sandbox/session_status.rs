//! What the outcome of an intent changes in its Checkout Session.

use serde_json::{Value, json};

use super::state::text;
use super::transaction::Transaction;

/// Completes a session. `payment_status` says whether it is paid.
pub(super) fn complete(tx: &mut Transaction, session: &str, method: &Value, payment_status: &str) {
    let Some(mut session) = tx.get("checkout.session", session) else { return };
    session["status"] = "complete".into();
    session["payment_status"] = payment_status.into();
    session["url"] = Value::Null;
    session["customer_details"] = json!({
        "address": method["billing_details"]["address"],
        "email": method["billing_details"]["email"],
        "name": method["billing_details"]["name"],
        "phone": null,
        "tax_exempt": "none",
        "tax_ids": [],
    });
    tx.put(&session);
    tx.emit("checkout.session.completed", &session);
}

/// Marks a session as paid, and completes it if a debit has not done so days before.
pub(super) fn mark_paid(tx: &mut Transaction, session: &str, method: &Value) {
    let Some(mut found) = tx.get("checkout.session", session) else { return };
    if text(&found, "/status") != "complete" {
        complete(tx, session, method, "paid");
        return;
    }
    found["payment_status"] = "paid".into();
    tx.put(&found);
    tx.emit("checkout.session.async_payment_succeeded", &found);
}

/// Reports that a bank refused the debit of a completed session.
pub(super) fn fail_payment(tx: &mut Transaction, session: &str) {
    if let Some(found) = tx.get("checkout.session", session) {
        tx.emit("checkout.session.async_payment_failed", &found);
    }
}
