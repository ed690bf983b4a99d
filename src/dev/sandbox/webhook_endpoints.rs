//! Webhook endpoints: registration and subscriptions. `delivery` sends the events.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::api_request::API_VERSION;
use super::events;
use super::lists;
use super::state::{new_id, text};
use super::transaction::{Call, Transaction, copy_fields, merge_metadata};
use super::versions;

/// The maximum number of endpoints of an account, in each mode.
const ENDPOINTS_MAX: usize = 16;

/// `POST /v1/webhook_endpoints`. Only this response contains the secret.
pub(super) fn create(tx: &mut Transaction, call: &Call) -> ApiResult {
    let enabled = enabled(&call.params)?.unwrap_or_default();
    check_url(&call.params, tx.account.livemode)?;
    if call.params["connect"] == true {
        let message = "This account is not a platform: connect endpoints are not available.";
        return Err(ApiError::invalid(message).at("connect"));
    }
    match text(&call.params, "/api_version") {
        "" | API_VERSION => {}
        other => {
            versions::check_published(other).map_err(|api_error| api_error.at("api_version"))?;
            let message =
                format!("This sandbox does not send webhooks in the API version {other}, only in {API_VERSION}.");
            return Err(ApiError::invalid(message).at("api_version").before_execution());
        }
    }
    if tx.account.order.get("webhook_endpoint").is_some_and(|known| known.len() >= ENDPOINTS_MAX) {
        let message = format!("You have reached the maximum of {ENDPOINTS_MAX} webhook endpoints.");
        return Err(ApiError::invalid(message));
    }
    let id = new_id("we");
    let mut endpoint = json!({
        "id": id,
        "object": "webhook_endpoint",
        "api_version": call.params.get("api_version").cloned().unwrap_or_default(),
        "application": null,
        "created": tx.now,
        "description": null,
        "enabled_events": enabled,
        "livemode": tx.account.livemode,
        "metadata": {},
        "status": "enabled",
        "url": call.params["url"],
    });
    copy_fields(&mut endpoint, &call.params, &["description"]);
    merge_metadata(&mut endpoint, &call.params)?;
    let secret = new_id("whsec");
    let internals = tx.internals_mut(&id);
    internals.secret.clone_from(&secret);
    internals.enabled = enabled;
    tx.insert(endpoint.clone());
    endpoint["secret"] = secret.into();
    Ok(endpoint)
}

/// `GET /v1/webhook_endpoints/{id}`
pub(super) fn retrieve(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.get("webhook_endpoint", call.id())
        .ok_or_else(|| ApiError::missing("webhook_endpoint", call.id(), "webhook_endpoint"))
}

/// `GET /v1/webhook_endpoints`
pub(super) fn list(tx: &mut Transaction, call: &Call) -> ApiResult {
    lists::list(tx, call, "webhook_endpoint", |_| true)
}

/// `POST /v1/webhook_endpoints/{id}`
pub(super) fn update(tx: &mut Transaction, call: &Call) -> ApiResult {
    let mut endpoint = retrieve(tx, call)?;
    check_url(&call.params, tx.account.livemode)?;
    if let Some(enabled) = enabled(&call.params)? {
        endpoint["enabled_events"] = json!(enabled);
        tx.internals_mut(call.id()).enabled = enabled;
    }
    if let Some(disabled) = call.params.get("disabled") {
        if disabled == true {
            tx.account.webhooks.drop_endpoint(call.id());
        }
        endpoint["status"] = if disabled == true { "disabled".into() } else { "enabled".into() };
    }
    copy_fields(&mut endpoint, &call.params, &["url", "description"]);
    merge_metadata(&mut endpoint, &call.params)?;
    tx.put(&endpoint);
    Ok(endpoint)
}

/// `DELETE /v1/webhook_endpoints/{id}`. Drops the endpoint's pending deliveries.
pub(super) fn delete(tx: &mut Transaction, call: &Call) -> ApiResult {
    retrieve(tx, call)?;
    let id = call.id();
    tx.account.objects.remove(id);
    tx.account.internals.remove(id);
    if let Some(order) = tx.account.order.get_mut("webhook_endpoint") {
        order.retain(|known| known != id);
    }
    tx.account.webhooks.drop_endpoint(id);
    Ok(json!({ "id": id, "object": "webhook_endpoint", "deleted": true }))
}

fn check_url(params: &Value, livemode: bool) -> Result<(), ApiError> {
    let Some(url) = params.get("url").and_then(Value::as_str) else { return Ok(()) };
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
    if host.is_empty() || host.starts_with('/') || host.contains(' ') {
        return Err(ApiError::invalid("Invalid URL: An explicit scheme (such as https) must be provided.")
            .code("url_invalid")
            .at("url")
            .before_execution());
    }
    if livemode && url.starts_with("http://") {
        let message = "Invalid URL: URL must be HTTPS in live mode.";
        return Err(ApiError::invalid(message).code("url_invalid").at("url").before_execution());
    }
    Ok(())
}

fn enabled(params: &Value) -> Result<Option<Vec<String>>, ApiError> {
    let Some(given) = params.get("enabled_events").and_then(Value::as_array) else { return Ok(None) };
    let mut enabled = Vec::new();
    for (at, kind) in given.iter().filter_map(Value::as_str).enumerate() {
        if kind != "*" && !events::TYPES.contains(&kind) {
            let param = format!("enabled_events[{at}]");
            let message = format!("Invalid {param}: {kind} is not an event type.");
            return Err(ApiError::invalid(message).at(&param).before_execution());
        }
        enabled.push(kind.to_owned());
    }
    if enabled.is_empty() {
        let message = "You must enable at least one event.";
        return Err(ApiError::invalid(message).at("enabled_events").before_execution());
    }
    if enabled.len() > 1 && enabled.iter().any(|kind| kind == "*") {
        let message = "`*` already enables every event: give it alone.";
        return Err(ApiError::invalid(message).at("enabled_events").before_execution());
    }
    Ok(Some(enabled))
}
