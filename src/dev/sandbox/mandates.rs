//! Mandates: what allows a debit of a bank account.

use serde_json::{Value, json};

use super::act::{Act, Call};
use super::refusal::Answer;
use super::state::{new_id, text};

/// `GET /v1/mandates/{id}`
pub(super) fn retrieve(act: &mut Act, call: &Call) -> Answer {
    act.find("mandate", call.id())
}

/// Makes a mandate for the method and keeps it with it.
pub(super) fn make(act: &mut Act, method: &str) -> String {
    let id = new_id("mandate");
    let mandate = json!({
        "id": id,
        "object": "mandate",
        "customer_acceptance": {
            "accepted_at": act.now,
            "online": { "ip_address": "127.0.0.1", "user_agent": "Paybridge sandbox" },
            "type": "online",
        },
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
