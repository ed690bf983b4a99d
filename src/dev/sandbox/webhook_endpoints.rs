//! Webhook endpoints.

use serde_json::{Value, json};

use super::act::{API_VERSION, Act, Call, take_over, take_over_metadata};
use super::events;
use super::lists;
use super::refusal::{Answer, Refusal};
use super::state::{new_id, text};
use super::versions;

/// As many endpoints as an account can have, in each mode.
const MOST: usize = 16;

/// `POST /v1/webhook_endpoints`: the only answer that holds the secret.
pub(super) fn create(act: &mut Act, call: &Call) -> Answer {
    let enabled = enabled(&call.params)?.unwrap_or_default();
    check_url(&call.params, act.account.livemode)?;
    if call.params["connect"] == true {
        let message = "This account is not a platform: connect endpoints are not available.";
        return Err(Refusal::invalid(message).at("connect"));
    }
    match text(&call.params, "/api_version") {
        "" | API_VERSION => {}
        other => {
            versions::check_published(other).map_err(|refusal| refusal.at("api_version"))?;
            let message =
                format!("This sandbox does not send webhooks in the API version {other}, only in {API_VERSION}.");
            return Err(Refusal::invalid(message).at("api_version").early());
        }
    }
    if act.account.order.get("webhook_endpoint").is_some_and(|known| known.len() >= MOST) {
        let message = format!("You have reached the maximum of {MOST} webhook endpoints.");
        return Err(Refusal::invalid(message));
    }
    let id = new_id("we");
    let mut endpoint = json!({
        "id": id,
        "object": "webhook_endpoint",
        "api_version": call.params.get("api_version").cloned().unwrap_or_default(),
        "application": null,
        "created": act.now,
        "description": null,
        "enabled_events": enabled,
        "livemode": act.account.livemode,
        "metadata": {},
        "status": "enabled",
        "url": call.params["url"],
    });
    take_over(&mut endpoint, &call.params, &["description"]);
    take_over_metadata(&mut endpoint, &call.params)?;
    let secret = new_id("whsec");
    let hidden = act.hidden(&id);
    hidden.secret.clone_from(&secret);
    hidden.enabled = enabled;
    act.insert(endpoint.clone());
    endpoint["secret"] = secret.into();
    Ok(endpoint)
}

/// `GET /v1/webhook_endpoints/{id}`
pub(super) fn retrieve(act: &mut Act, call: &Call) -> Answer {
    act.get("webhook_endpoint", call.id())
        .ok_or_else(|| Refusal::missing("webhook_endpoint", call.id(), "webhook_endpoint"))
}

/// `GET /v1/webhook_endpoints`
pub(super) fn list(act: &mut Act, call: &Call) -> Answer {
    lists::list(act, call, "webhook_endpoint", |_| true)
}

/// `POST /v1/webhook_endpoints/{id}`
pub(super) fn update(act: &mut Act, call: &Call) -> Answer {
    let mut endpoint = retrieve(act, call)?;
    check_url(&call.params, act.account.livemode)?;
    if let Some(enabled) = enabled(&call.params)? {
        endpoint["enabled_events"] = json!(enabled);
        act.hidden(call.id()).enabled = enabled;
    }
    if let Some(disabled) = call.params.get("disabled") {
        if disabled == true {
            act.account.mail.drop_endpoint(call.id());
        }
        endpoint["status"] = if disabled == true { "disabled".into() } else { "enabled".into() };
    }
    take_over(&mut endpoint, &call.params, &["url", "description"]);
    take_over_metadata(&mut endpoint, &call.params)?;
    act.put(&endpoint);
    Ok(endpoint)
}

/// `DELETE /v1/webhook_endpoints/{id}`: what is still on its way to it is dropped.
pub(super) fn delete(act: &mut Act, call: &Call) -> Answer {
    retrieve(act, call)?;
    let id = call.id();
    act.account.objects.remove(id);
    act.account.hidden.remove(id);
    if let Some(order) = act.account.order.get_mut("webhook_endpoint") {
        order.retain(|known| known != id);
    }
    act.account.mail.drop_endpoint(id);
    Ok(json!({ "id": id, "object": "webhook_endpoint", "deleted": true }))
}

fn check_url(params: &Value, livemode: bool) -> Result<(), Refusal> {
    let Some(url) = params.get("url").and_then(Value::as_str) else { return Ok(()) };
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
    if host.is_empty() || host.starts_with('/') || host.contains(' ') {
        return Err(Refusal::invalid("Invalid URL: An explicit scheme (such as https) must be provided.")
            .code("url_invalid")
            .at("url")
            .early());
    }
    if livemode && url.starts_with("http://") {
        let message = "Invalid URL: URL must be HTTPS in live mode.";
        return Err(Refusal::invalid(message).code("url_invalid").at("url").early());
    }
    Ok(())
}

fn enabled(params: &Value) -> Result<Option<Vec<String>>, Refusal> {
    let Some(given) = params.get("enabled_events").and_then(Value::as_array) else { return Ok(None) };
    let mut enabled = Vec::new();
    for (at, kind) in given.iter().filter_map(Value::as_str).enumerate() {
        if kind != "*" && !events::TYPES.contains(&kind) {
            let param = format!("enabled_events[{at}]");
            let message = format!("Invalid {param}: {kind} is not an event type.");
            return Err(Refusal::invalid(message).at(&param).early());
        }
        enabled.push(kind.to_owned());
    }
    if enabled.is_empty() {
        let message = "You must enable at least one event.";
        return Err(Refusal::invalid(message).at("enabled_events").early());
    }
    if enabled.len() > 1 && enabled.iter().any(|kind| kind == "*") {
        let message = "`*` already enables every event: give it alone.";
        return Err(Refusal::invalid(message).at("enabled_events").early());
    }
    Ok(Some(enabled))
}
