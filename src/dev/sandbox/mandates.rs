//! Mandates: the payer's permission to debit a bank account.

use serde_json::{Value, json};

use super::api_error::ApiResult;
use super::state::{new_id, text};
use super::transaction::{Call, Transaction};

/// `GET /v1/mandates/{id}`
pub(super) fn retrieve(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.find("mandate", call.id())
}

/// Stores the `customer_acceptance` of the request's `mandate_data` until a mandate is created. Returns whether there
/// is one.
pub(super) fn accept(tx: &mut Transaction, method: &Value, params: &Value) -> bool {
    let Some(given) = params.pointer("/mandate_data/customer_acceptance") else { return false };
    let mut acceptance = given.clone();
    if given.get("accepted_at").is_none() {
        acceptance["accepted_at"] = tx.now.into();
    }
    if text(given, "/type") == "offline" {
        acceptance["offline"] = json!({});
    }
    tx.internals_mut(text(method, "/id")).acceptance = acceptance;
    true
}

/// Creates the mandate of a payment method. Without a stored `customer_acceptance`, the payer has accepted it online.
pub(super) fn create(tx: &mut Transaction, method: &str) -> String {
    let id = new_id("mandate");
    let on_page = json!({
        "accepted_at": tx.now,
        "online": { "ip_address": "127.0.0.1", "user_agent": "Paybridge sandbox" },
        "type": "online",
    });
    let acceptance = Some(tx.internals(method).acceptance).filter(Value::is_object).unwrap_or(on_page);
    let mandate = json!({
        "id": id,
        "object": "mandate",
        "customer_acceptance": acceptance,
        "livemode": tx.account.livemode,
        "multi_use": {},
        "payment_method": method,
        "payment_method_details": {
            "sepa_debit": {
                "reference": id[id.len() - 16..].to_uppercase(),
                "url": format!("{}/mandates/{id}", tx.settings.url),
            },
            "type": "sepa_debit",
        },
        "status": "active",
        "type": "multi_use",
    });
    tx.insert(mandate);
    tx.internals_mut(method).mandate = Some(id.clone());
    id
}

/// The active mandate of a payment method.
pub(super) fn active(tx: &Transaction, method: &str) -> Option<String> {
    let mandate = tx.internals(method).mandate?;
    tx.get("mandate", &mandate).is_some_and(|mandate| text(&mandate, "/status") == "active").then_some(mandate)
}

/// Ends a mandate, because its payment method was detached or the bank refused a debit.
pub(super) fn end(tx: &mut Transaction, mandate: &str) {
    if let Some(old) = tx.get("mandate", mandate).filter(|mandate| text(mandate, "/status") == "active") {
        let mut new: Value = old.clone();
        new["status"] = "inactive".into();
        tx.change("mandate.updated", &old, &new);
    }
}
