//! Disputes, inquiries and early fraud warnings, which some test cards and one test bank account bring about.

use serde_json::{Value, json};

use super::act::{Act, Call, take_over, take_over_metadata};
use super::lists;
use super::refusal::{Answer, Refusal};
use super::state::{new_id, text};
use super::test_methods::Aftermath;

/// `GET /v1/disputes/{id}`
pub(super) fn retrieve(act: &mut Act, call: &Call) -> Answer {
    act.get("dispute", call.id()).ok_or_else(|| Refusal::missing("dispute", call.id(), "dispute"))
}

/// `GET /v1/disputes`
pub(super) fn list(act: &mut Act, call: &Call) -> Answer {
    let (charge, intent) = (text(&call.params, "/charge"), text(&call.params, "/payment_intent"));
    lists::list(act, call, "dispute", |dispute| {
        (charge.is_empty() || text(dispute, "/charge") == charge)
            && (intent.is_empty() || text(dispute, "/payment_intent") == intent)
    })
}

/// `POST /v1/disputes/{id}`: the test words in the evidence decide how it ends.
pub(super) fn update(act: &mut Act, call: &Call) -> Answer {
    let old = retrieve(act, call)?;
    let mut new = old.clone();
    take_over_metadata(&mut new, &call.params)?;
    let Some(evidence) = call.params.get("evidence").and_then(Value::as_object) else {
        act.change("charge.dispute.updated", &old, &new);
        return Ok(new);
    };
    if matches!(text(&old, "/status"), "won" | "lost" | "warning_closed") {
        return Err(Refusal::invalid("This dispute is already closed."));
    }
    let fields: Vec<&str> = evidence.keys().map(String::as_str).collect();
    take_over(&mut new["evidence"], &call.params["evidence"], &fields);
    new["evidence_details"]["has_evidence"] = true.into();
    if call.params.get("submit").is_some_and(|submit| submit == false) {
        act.change("charge.dispute.updated", &old, &new);
        return Ok(new);
    }
    new["evidence_details"]["submission_count"] = 1.into();
    let inquiry = text(&old, "/status").starts_with("warning_");
    let (status, closed) = match (text(&new, "/evidence/uncategorized_text"), inquiry) {
        ("winning_evidence", false) => ("won", true),
        ("losing_evidence", false) => ("lost", true),
        ("winning_evidence", true) => ("warning_closed", true),
        ("escalate_inquiry_evidence", true) => ("needs_response", false),
        (_, true) => ("warning_under_review", false),
        (_, false) => ("under_review", false),
    };
    new["status"] = status.into();
    act.change("charge.dispute.updated", &old, &new);
    if inquiry && status == "needs_response" {
        act.emit("charge.dispute.funds_withdrawn", &new);
    }
    if closed {
        act.emit("charge.dispute.closed", &new);
    }
    if status == "won" {
        act.emit("charge.dispute.funds_reinstated", &new);
    }
    Ok(new)
}

/// `POST /v1/disputes/{id}/close`: the loss is acknowledged, for good. An inquiry ends without a dispute.
pub(super) fn close(act: &mut Act, call: &Call) -> Answer {
    let mut dispute = retrieve(act, call)?;
    let closed = match text(&dispute, "/status") {
        "needs_response" => "lost",
        "warning_needs_response" => "warning_closed",
        status => {
            let message = format!("This dispute cannot be closed because it has a status of {status}.");
            return Err(Refusal::invalid(message));
        }
    };
    dispute["status"] = closed.into();
    act.put(&dispute);
    act.emit("charge.dispute.closed", &dispute);
    Ok(dispute)
}

/// What a test card brings about after a charge.
pub(super) fn after_charge(act: &mut Act, charge: &Value, aftermath: Aftermath) {
    match aftermath {
        Aftermath::Dispute(reason, count) => {
            for _ in 0..count {
                open(act, charge, reason, "needs_response");
            }
        }
        Aftermath::Inquiry => open(act, charge, "fraudulent", "warning_needs_response"),
        Aftermath::FraudWarning => {
            let warning = json!({
                "id": new_id("issfr"),
                "object": "radar.early_fraud_warning",
                "actionable": true,
                "charge": charge["id"],
                "created": act.now,
                "fraud_type": "made_with_stolen_card",
                "livemode": act.account.livemode,
                "payment_intent": charge["payment_intent"],
            });
            act.insert(warning.clone());
            act.emit("radar.early_fraud_warning.created", &warning);
        }
        Aftermath::Nothing | Aftermath::RefundPending | Aftermath::RefundFails => {}
    }
}

/// A debit taken back by the payer's bank: lost from the start, without appeal.
pub(super) fn by_bank(act: &mut Act, charge: &Value) {
    open(act, charge, "debit_not_authorized", "lost");
}

fn open(act: &mut Act, charge: &Value, reason: &str, status: &str) {
    let kind = text(charge, "/payment_method_details/type").to_owned();
    let mut details = json!({ "type": kind });
    details[&kind] = match kind.as_str() {
        "card" => json!({ "brand": "visa", "case_type": "chargeback", "network_reason_code": "10.4" }),
        _ => json!({}),
    };
    let dispute = json!({
        "id": new_id("du"),
        "object": "dispute",
        "amount": charge["amount_captured"],
        "balance_transactions": [],
        "charge": charge["id"],
        "created": act.now,
        "currency": charge["currency"],
        "evidence": { "uncategorized_text": null },
        "evidence_details": {
            "due_by": act.now + 7 * 24 * 60 * 60, "has_evidence": false, "past_due": false, "submission_count": 0,
        },
        "is_charge_refundable": status.starts_with("warning_"),
        "livemode": act.account.livemode,
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "payment_method_details": details,
        "reason": reason,
        "status": status,
    });
    act.insert(dispute.clone());
    act.emit("charge.dispute.created", &dispute);
    if status.starts_with("warning_") {
        return;
    }
    if let Some(old) = act.get("charge", text(charge, "/id")) {
        let mut new = old.clone();
        new["disputed"] = true.into();
        act.change("charge.updated", &old, &new);
    }
    act.emit("charge.dispute.funds_withdrawn", &dispute);
    if status == "lost" {
        act.emit("charge.dispute.closed", &dispute);
    }
}
