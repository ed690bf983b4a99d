//! The two requests with which Stripe's CLI completes a Checkout Session as its payer. Stripe does not document them;
//! the fixtures of its CLI show their parameters.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::checkout_sessions;
use super::payment_methods;
use super::state::text;
use super::transaction::{Call, Transaction};

/// `GET /v1/payment_pages/{id}`. The id is the session's.
pub(super) fn retrieve(tx: &mut Transaction, call: &Call) -> ApiResult {
    Ok(page(&tx.find("checkout.session", call.id())?))
}

/// `POST /v1/payment_pages/{id}/confirm`
pub(super) fn confirm(tx: &mut Transaction, call: &Call) -> ApiResult {
    let session = tx.find("checkout.session", call.id())?;
    let method = payment_methods::own_or_shared(tx, text(&call.params, "/payment_method"), "payment_method")?;
    let expected = call.params.get("expected_amount").filter(|expected| **expected != session["amount_total"]);
    if let Some(expected) = expected {
        let message = format!("This Checkout Session is for {}, not for {expected}.", session["amount_total"]);
        return Err(ApiError::invalid(message).code("checkout_amount_mismatch").at("expected_amount"));
    }
    checkout_sessions::confirm(tx, call.id(), &method)?;
    Ok(page(&tx.find("checkout.session", call.id())?))
}

fn page(session: &Value) -> Value {
    let mut page = json!({
        "id": text(session, "/id").replace("cs_", "ppage_"),
        "object": "checkout.session",
        "session_id": session["id"],
    });
    let copied = [
        "amount_total",
        "cancel_url",
        "created",
        "currency",
        "customer",
        "livemode",
        "mode",
        "payment_intent",
        "payment_method_types",
        "payment_status",
        "setup_intent",
        "status",
        "success_url",
        "url",
    ];
    for field in copied {
        page[field] = session[field].clone();
    }
    page
}
