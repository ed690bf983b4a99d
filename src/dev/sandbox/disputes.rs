//! Disputes, inquiries and early fraud warnings, which some test cards and one test bank account cause.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::lists;
use super::state::{new_id, text};
use super::test_methods::FollowUp;
use super::transaction::{Call, Transaction, copy_fields, merge_metadata};

/// `GET /v1/disputes/{id}`
pub(super) fn retrieve(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.get("dispute", call.id()).ok_or_else(|| ApiError::missing("dispute", call.id(), "dispute"))
}

/// `GET /v1/disputes`
pub(super) fn list(tx: &mut Transaction, call: &Call) -> ApiResult {
    let (charge, intent) = (text(&call.params, "/charge"), text(&call.params, "/payment_intent"));
    lists::list(tx, call, "dispute", |dispute| {
        (charge.is_empty() || text(dispute, "/charge") == charge)
            && (intent.is_empty() || text(dispute, "/payment_intent") == intent)
    })
}

/// `POST /v1/disputes/{id}`. Stripe's test values of the evidence decide the outcome.
pub(super) fn update(tx: &mut Transaction, call: &Call) -> ApiResult {
    let old = retrieve(tx, call)?;
    let mut new = old.clone();
    merge_metadata(&mut new, &call.params)?;
    let Some(evidence) = call.params.get("evidence").and_then(Value::as_object) else {
        tx.change("charge.dispute.updated", &old, &new);
        return Ok(new);
    };
    if matches!(text(&old, "/status"), "won" | "lost" | "warning_closed") {
        return Err(ApiError::invalid("This dispute is already closed."));
    }
    let fields: Vec<&str> = evidence.keys().map(String::as_str).collect();
    copy_fields(&mut new["evidence"], &call.params["evidence"], &fields);
    new["evidence_details"]["has_evidence"] = true.into();
    if call.params.get("submit").is_some_and(|submit| submit == false) {
        tx.change("charge.dispute.updated", &old, &new);
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
    tx.change("charge.dispute.updated", &old, &new);
    if inquiry && status == "needs_response" {
        tx.emit("charge.dispute.funds_withdrawn", &new);
    }
    if closed {
        tx.emit("charge.dispute.closed", &new);
    }
    if status == "won" {
        tx.emit("charge.dispute.funds_reinstated", &new);
    }
    Ok(new)
}

/// `POST /v1/disputes/{id}/close`. Closes a dispute as lost, permanently, or an inquiry without a dispute.
pub(super) fn close(tx: &mut Transaction, call: &Call) -> ApiResult {
    let mut dispute = retrieve(tx, call)?;
    let closed = match text(&dispute, "/status") {
        "needs_response" => "lost",
        "warning_needs_response" => "warning_closed",
        status => {
            let message = format!("This dispute cannot be closed because it has a status of {status}.");
            return Err(ApiError::invalid(message));
        }
    };
    dispute["status"] = closed.into();
    tx.put(&dispute);
    tx.emit("charge.dispute.closed", &dispute);
    Ok(dispute)
}

/// Opens the dispute, inquiry or warning that a test card causes.
pub(super) fn after_charge(tx: &mut Transaction, charge: &Value, follow_up: FollowUp) {
    match follow_up {
        FollowUp::Dispute(reason, count) => {
            for _ in 0..count {
                open(tx, charge, reason, "needs_response");
            }
        }
        FollowUp::Inquiry => open(tx, charge, "fraudulent", "warning_needs_response"),
        FollowUp::FraudWarning => {
            let warning = json!({
                "id": new_id("issfr"),
                "object": "radar.early_fraud_warning",
                "actionable": true,
                "charge": charge["id"],
                "created": tx.now,
                "fraud_type": "made_with_stolen_card",
                "livemode": tx.account.livemode,
                "payment_intent": charge["payment_intent"],
            });
            tx.insert(warning.clone());
            tx.emit("radar.early_fraud_warning.created", &warning);
        }
        FollowUp::None | FollowUp::RefundPending | FollowUp::RefundFails => {}
    }
}

/// Opens the dispute of a debit that the payer's bank reversed. It is lost from the start.
pub(super) fn reversed_by_bank(tx: &mut Transaction, charge: &Value) {
    open(tx, charge, "debit_not_authorized", "lost");
}

fn open(tx: &mut Transaction, charge: &Value, reason: &str, status: &str) {
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
        "created": tx.now,
        "currency": charge["currency"],
        "evidence": { "uncategorized_text": null },
        "evidence_details": {
            "due_by": tx.now + 7 * 24 * 60 * 60, "has_evidence": false, "past_due": false, "submission_count": 0,
        },
        "is_charge_refundable": status.starts_with("warning_"),
        "livemode": tx.account.livemode,
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "payment_method_details": details,
        "reason": reason,
        "status": status,
    });
    tx.insert(dispute.clone());
    tx.emit("charge.dispute.created", &dispute);
    if status.starts_with("warning_") {
        return;
    }
    if let Some(old) = tx.get("charge", text(charge, "/id")) {
        let mut new = old.clone();
        new["disputed"] = true.into();
        tx.change("charge.updated", &old, &new);
    }
    tx.emit("charge.dispute.funds_withdrawn", &dispute);
    if status == "lost" {
        tx.emit("charge.dispute.closed", &dispute);
    }
}
