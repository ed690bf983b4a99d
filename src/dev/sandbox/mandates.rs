//! Mandates: what allows a debit of a bank account.

use serde_json::{Value, json};

use super::act::{Act, Call};
use super::refusal::Answer;
use super::state::{new_id, text};

/// `GET /v1/mandates/{id}`
pub(super) fn retrieve(act: &mut Act, call: &Call) -> Answer {
    act.find("mandate", call.id())
}

/// Keeps how the payer agreed to a mandate, until one is made. Whether the request's `mandate_data` say that they did.
pub(super) fn accept(act: &mut Act, method: &Value, params: &Value) -> bool {
    let Some(given) = params.pointer("/mandate_data/customer_acceptance") else { return false };
    let mut acceptance = given.clone();
    if given.get("accepted_at").is_none() {
        acceptance["accepted_at"] = act.now.into();
    }
    if text(given, "/type") == "offline" {
        acceptance["offline"] = json!({});
    }
    act.hidden(text(method, "/id")).acceptance = acceptance;
    true
}

/// Makes a mandate for the method and keeps it with it. A payer who was not asked through the API agreed on a page.
pub(super) fn make(act: &mut Act, method: &str) -> String {
    let id = new_id("mandate");
    let on_page = json!({
        "accepted_at": act.now,
        "online": { "ip_address": "127.0.0.1", "user_agent": "Paybridge sandbox" },
        "type": "online",
    });
    let acceptance = Some(act.hidden_of(method).acceptance).filter(Value::is_object).unwrap_or(on_page);
    let mandate = json!({
        "id": id,
        "object": "mandate",
        "customer_acceptance": acceptance,
        "livemode": act.account.livemode,
        "multi_use": {},
        "payment_method": method,
        "payment_method_details": {
            "sepa_debit": {
                "reference": id[id.len() - 16..].to_uppercase(),
                "url": format!("{}/mandates/{id}", act.settings.url),
            },
            "type": "sepa_debit",
        },
        "status": "active",
        "type": "multi_use",
    });
    act.insert(mandate);
    act.hidden(method).mandate = Some(id.clone());
    id
}

/// The mandate that permits to debit the method, if there is one.
pub(super) fn of(act: &Act, method: &str) -> Option<String> {
    let mandate = act.hidden_of(method).mandate?;
    act.get("mandate", &mandate).is_some_and(|mandate| text(&mandate, "/status") == "active").then_some(mandate)
}

/// Ends a mandate, because its method is gone or its bank refused a debit.
pub(super) fn end(act: &mut Act, mandate: &str) {
    if let Some(old) = act.get("mandate", mandate).filter(|mandate| text(mandate, "/status") == "active") {
        let mut new: Value = old.clone();
        new["status"] = "inactive".into();
        act.change("mandate.updated", &old, &new);
    }
}
