//! The hosted page as Stripe's own clients see it: the two calls with which Stripe's CLI plays a payer. Stripe does not
//! document them; the fixtures of its CLI show what they take.

use serde_json::{Value, json};

use super::act::{Act, Call};
use super::checkout_sessions;
use super::payment_methods;
use super::refusal::{Answer, Refusal};
use super::state::text;

/// `GET /v1/payment_pages/{id}`; the id is the session's.
pub(super) fn retrieve(act: &mut Act, call: &Call) -> Answer {
    Ok(shown(&act.find("checkout.session", call.id())?))
}

/// `POST /v1/payment_pages/{id}/confirm`: the payer presses the button.
pub(super) fn confirm(act: &mut Act, call: &Call) -> Answer {
    let session = act.find("checkout.session", call.id())?;
    let method = payment_methods::own_or_shared(act, text(&call.params, "/payment_method"), "payment_method")?;
    let expected = call.params.get("expected_amount").filter(|expected| **expected != session["amount_total"]);
    if let Some(expected) = expected {
        let message = format!("This Checkout Session is for {}, not for {expected}.", session["amount_total"]);
        return Err(Refusal::invalid(message).code("checkout_amount_mismatch").at("expected_amount"));
    }
    checkout_sessions::confirm(act, call.id(), &method)?;
    Ok(shown(&act.find("checkout.session", call.id())?))
}

fn shown(session: &Value) -> Value {
    let mut page = json!({
        "id": text(session, "/id").replace("cs_", "ppage_"),
        "object": "checkout.session",
        "session_id": session["id"],
    });
    let same = [
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
    for field in same {
        page[field] = session[field].clone();
    }
    page
}
