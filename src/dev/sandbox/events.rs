//! Events: retrieval, and the list of the last 30 days.

use serde_json::Value;

use super::api_error::{ApiError, ApiResult};
use super::lists;
use super::state::{Event, text};
use super::transaction::{Call, Transaction};
use super::versions;

/// The types to which an endpoint can subscribe: those that the sandbox emits, and related ones of Stripe's.
pub(super) const TYPES: &[&str] = &[
    "account.application.authorized",
    "account.application.deauthorized",
    "account.updated",
    "balance.available",
    "capability.updated",
    "charge.captured",
    "charge.dispute.closed",
    "charge.dispute.created",
    "charge.dispute.funds_reinstated",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.updated",
    "charge.expired",
    "charge.failed",
    "charge.pending",
    "charge.refund.updated",
    "charge.refunded",
    "charge.succeeded",
    "charge.updated",
    "checkout.session.async_payment_failed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.completed",
    "checkout.session.expired",
    "customer.created",
    "customer.deleted",
    "customer.source.created",
    "customer.source.deleted",
    "customer.source.updated",
    "customer.updated",
    "mandate.updated",
    "payment_intent.amount_capturable_updated",
    "payment_intent.canceled",
    "payment_intent.created",
    "payment_intent.partially_funded",
    "payment_intent.payment_failed",
    "payment_intent.processing",
    "payment_intent.requires_action",
    "payment_intent.succeeded",
    "payment_method.attached",
    "payment_method.automatically_updated",
    "payment_method.detached",
    "payment_method.updated",
    "payout.canceled",
    "payout.created",
    "payout.failed",
    "payout.paid",
    "payout.updated",
    "price.created",
    "price.updated",
    "product.created",
    "product.updated",
    "radar.early_fraud_warning.created",
    "radar.early_fraud_warning.updated",
    "refund.created",
    "refund.failed",
    "refund.updated",
    "review.closed",
    "review.opened",
    "setup_intent.canceled",
    "setup_intent.created",
    "setup_intent.requires_action",
    "setup_intent.setup_failed",
    "setup_intent.succeeded",
];

/// `GET /v1/events/{id}`
pub(super) fn retrieve(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.account.prune_events(tx.now);
    let event = tx.account.events.iter().find(|event| event.id == call.id());
    let rendered = event.map(|event| versions::render(tx.account, to_object(event)));
    rendered.ok_or_else(|| ApiError::missing("event", call.id(), "id"))
}

/// `GET /v1/events`
pub(super) fn list(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.account.prune_events(tx.now);
    let params = &call.params;
    let one = text(params, "/type");
    let several: Option<Vec<&str>> =
        params.get("types").and_then(Value::as_array).map(|types| types.iter().filter_map(Value::as_str).collect());
    if !one.is_empty() && several.is_some() {
        let message = "You may only specify one of these parameters: type, types.";
        return Err(ApiError::invalid(message).at("types").before_execution());
    }
    if several.as_ref().is_some_and(|types| types.len() > 20) {
        return Err(ApiError::invalid("types can hold at most 20 event types.").at("types").before_execution());
    }
    let delivered = params.get("delivery_success").and_then(Value::as_bool);
    let named = |kind: &str| one.is_empty() || one == kind || wildcard(one, kind);
    let matches = |event: &&Event| {
        named(&event.kind)
            && several.as_ref().is_none_or(|types| types.contains(&event.kind.as_str()))
            && delivered.is_none_or(|delivered| delivered == (event.pending == 0))
            && lists::within(params, event.created)
    };
    let matching: Vec<&Event> = tx.account.events.iter().rev().filter(matches).collect();
    // Selects the page by ids first: parsing every body for a page of ten would be slow.
    let ids: Vec<Value> = matching.iter().map(|event| serde_json::json!({ "id": event.id })).collect();
    let mut page = lists::page(&ids, call, "event")?;
    for place in page["data"].as_array_mut().into_iter().flatten() {
        if let Some(event) = matching.iter().find(|event| event.id == text(place, "/id")) {
            *place = versions::render(tx.account, to_object(event));
        }
    }
    Ok(page)
}

/// Whether the pattern, such as `charge.*`, matches the type.
fn wildcard(pattern: &str, kind: &str) -> bool {
    pattern.strip_suffix('*').is_some_and(|start| kind.starts_with(start))
}

/// The event as the API returns it. Only `pending_webhooks` changes after the event was emitted.
fn to_object(event: &Event) -> Value {
    let mut value: Value = serde_json::from_str(&event.body).unwrap_or_default();
    value["pending_webhooks"] = event.pending.into();
    value
}
