//! The control plane: the methods of [`Sandbox`] as JSON over HTTP under `/_sandbox`, for other processes.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State as Extract;
use axum::http::{HeaderValue, Method, Response, StatusCode, Uri};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::Duration;

use super::faults::{Fault, WebhookFault};
use super::handle::DashboardPayment;
use super::shared::{Sandbox, Shared};
use super::state::{new_id, text};

/// The requests of the control plane; the response to `GET /_sandbox`.
const HELP: &[&str] = &[
    "GET    /_sandbox/ledger                              every charge",
    "GET    /_sandbox/requests                            recorded requests; DELETE discards them",
    "GET    /_sandbox/faults                              active faults; DELETE removes them",
    "POST   /_sandbox/faults                              {method, path, account, skip, times, percent, action}",
    "POST   /_sandbox/webhook_faults                      {event, account, times, percent, action}",
    "GET    /_sandbox/clock                               {now}",
    "POST   /_sandbox/advance                             {seconds}",
    "POST   /_sandbox/accounts                            {id, country, default_currency} returns {key}",
    "POST   /_sandbox/keys                                {account, key, scopes, hides_account} returns {key}",
    "POST   /_sandbox/keys/revoke                         {key}",
    "GET    /_sandbox/objects/ID                          an object as it is now",
    "GET    /_sandbox/deliveries                          webhooks that are not acknowledged yet",
    "POST   /_sandbox/events/ID/resend",
    "POST   /_sandbox/customers/ID/attach                 {method: a test id, card number or IBAN}",
    "POST   /_sandbox/customers/ID/default                {payment_method}",
    "POST   /_sandbox/customers/ID/delete",
    "POST   /_sandbox/payment_methods/ID/detach",
    "POST   /_sandbox/payment_methods/ID/renew            {exp_month, exp_year}, as a card network does",
    "POST   /_sandbox/payments                            {customer, payment_method, amount, currency, metadata}",
    "POST   /_sandbox/payment_intents/ID/pay              {payment_method}",
    "POST   /_sandbox/payment_intents/ID/authenticate     {succeeds}",
    "POST   /_sandbox/setup_intents/ID/authenticate       {succeeds}",
    "POST   /_sandbox/checkout/ID/complete                {method: a card number or IBAN, prove}",
    "POST   /_sandbox/checkout/ID/expire",
    "POST   /_sandbox/checkout/ID/abandon",
    "POST   /_sandbox/settle                              {payment_intent}; empty for all",
];

/// Serves every request under `/_sandbox`.
pub(super) async fn serve(
    Extract(shared): Extract<Arc<Shared>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response<Body> {
    let path = uri.path().trim_start_matches("/_sandbox").trim_matches('/').to_owned();
    let parts: Vec<&str> = path.split('/').collect();
    let result = parse::<Value>(if body.is_empty() { b"{}" } else { &body }).and_then(|body| {
        let sandbox = Sandbox(shared);
        if method == Method::POST { post(&sandbox, &parts, &body) } else { get_or_delete(&sandbox, &method, &parts) }
    });
    let (status, body) = match result {
        Ok(value) => (StatusCode::OK, value),
        Err(error) => (StatusCode::BAD_REQUEST, json!({ "error": format!("{error:#}") })),
    };
    let mut response = Response::new(Body::from(serde_json::to_string_pretty(&body).unwrap_or_default()));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> anyhow::Result<T> {
    Ok(serde_json::from_slice(bytes)?)
}

fn to_json(value: impl Serialize) -> anyhow::Result<Value> {
    Ok(serde_json::to_value(value)?)
}

fn get_or_delete(sandbox: &Sandbox, method: &Method, parts: &[&str]) -> anyhow::Result<Value> {
    let done = || Ok(json!({}));
    match (method.as_str(), parts) {
        ("GET", [""]) => to_json(HELP),
        ("GET", ["ledger"]) => to_json(sandbox.ledger()),
        ("GET", ["requests"]) => to_json(sandbox.requests()),
        ("GET", ["deliveries"]) => to_json(sandbox.deliveries()),
        ("GET", ["clock"]) => Ok(json!({ "now": sandbox.0.seconds() })),
        ("GET", ["objects", id]) => sandbox.object(id).ok_or_else(|| anyhow::anyhow!("no account has {id}")),
        ("GET", ["faults"]) => {
            let (faults, webhook_faults) = sandbox.faults();
            Ok(json!({ "faults": faults, "webhook_faults": webhook_faults }))
        }
        ("DELETE", ["faults"]) => {
            sandbox.clear_faults();
            done()
        }
        ("DELETE", ["requests"]) => {
            sandbox.clear_requests();
            done()
        }
        _ => Err(unknown_request()),
    }
}

fn unknown_request() -> anyhow::Error {
    anyhow::anyhow!("no such request: GET /_sandbox lists all requests")
}

/// The body of `POST /_sandbox/keys`.
#[derive(Debug, Deserialize)]
struct NewKey {
    account: String,
    key: Option<String>,
    scopes: Option<Vec<String>>,
    #[serde(default)]
    hides_account: bool,
}

fn post(sandbox: &Sandbox, parts: &[&str], body: &Value) -> anyhow::Result<Value> {
    let done = || Ok(json!({}));
    let named = |field: &str| text(body, &format!("/{field}")).to_owned();
    match parts {
        ["faults"] => {
            sandbox.add_fault(serde_json::from_value::<Fault>(body.clone())?);
            done()
        }
        ["webhook_faults"] => {
            sandbox.add_webhook_fault(serde_json::from_value::<WebhookFault>(body.clone())?);
            done()
        }
        ["advance"] => {
            let seconds =
                body["seconds"].as_i64().ok_or_else(|| anyhow::anyhow!("the body must have `seconds`, an integer"))?;
            sandbox.advance(Duration::seconds(seconds));
            Ok(json!({ "now": sandbox.0.seconds() }))
        }
        ["accounts"] => {
            let id = Some(named("id")).filter(|id| !id.is_empty()).unwrap_or_else(|| new_id("acct"));
            let country = Some(named("country")).filter(|country| !country.is_empty()).unwrap_or_else(|| "DE".into());
            let currency = Some(named("default_currency")).filter(|given| !given.is_empty());
            let key = sandbox.add_account(&id, &country, &currency.unwrap_or_else(|| "eur".into()));
            Ok(json!({ "id": id, "key": key }))
        }
        ["keys"] => {
            let new: NewKey = serde_json::from_value(body.clone())?;
            let prefix = if new.scopes.is_some() { "rk_test" } else { "sk_test" };
            let key = new.key.unwrap_or_else(|| new_id(prefix));
            let scopes: Option<Vec<&str>> =
                new.scopes.as_ref().map(|scopes| scopes.iter().map(String::as_str).collect());
            sandbox.add_key(&key, &new.account, scopes.as_deref());
            if new.hides_account {
                sandbox.hide_account(&key);
            }
            Ok(json!({ "key": key }))
        }
        ["keys", "revoke"] => {
            sandbox.revoke_key(&named("key"));
            done()
        }
        ["settle"] => {
            let intent = named("payment_intent");
            Ok(json!({ "settled": sandbox.settle(Some(intent.as_str()).filter(|intent| !intent.is_empty())) }))
        }
        ["payments"] => sandbox.pay_in_dashboard(&serde_json::from_value::<DashboardPayment>(body.clone())?),
        ["events", id, "resend"] => {
            sandbox.resend(id)?;
            done()
        }
        [_, _, _] => post_to_object(sandbox, parts, body),
        _ => Err(unknown_request()),
    }
}

fn post_to_object(sandbox: &Sandbox, parts: &[&str], body: &Value) -> anyhow::Result<Value> {
    let named = |field: &str| text(body, &format!("/{field}")).to_owned();
    match parts {
        ["customers", id, "attach"] => sandbox.attach_in_dashboard(id, &named("method")),
        ["customers", id, "default"] => {
            let method = named("payment_method");
            sandbox.set_default_in_dashboard(id, Some(method.as_str()).filter(|method| !method.is_empty()))
        }
        ["customers", id, "delete"] => sandbox.delete_customer_in_dashboard(id),
        ["payment_methods", id, "detach"] => sandbox.detach_in_dashboard(id),
        ["payment_methods", id, "renew"] => {
            let number = |field: &str| {
                body[field]
                    .as_i64()
                    .ok_or_else(|| anyhow::anyhow!("the body must have `exp_month` and `exp_year`, integers"))
            };
            sandbox.renew_card(id, number("exp_month")?, number("exp_year")?)
        }
        ["payment_intents", id, "pay"] => sandbox.pay_intent_in_dashboard(id, &named("payment_method")),
        ["payment_intents" | "setup_intents", id, "authenticate"] => {
            sandbox.authenticate(id, body["succeeds"] != false)
        }
        ["checkout", id, "complete"] => sandbox.complete_session(id, &named("method"), body["prove"] != false),
        ["checkout", id, "expire"] => sandbox.expire_session(id),
        ["checkout", id, "abandon"] => sandbox.abandon_session(id),
        _ => Err(unknown_request()),
    }
}
