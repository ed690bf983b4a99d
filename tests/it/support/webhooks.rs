//! Stripe's events and webhooks.

use std::path::Path;

use paybridge::dev::sandbox::WebhookFault;
use paybridge::stripe::signature;
use secrecy::SecretString;
use serde_json::Value;

use crate::support::harness::Harness;
use crate::support::http;
use crate::support::wait::until;

/// Loses every webhook of a type from now on; `*` stands for any characters.
pub fn lose_webhooks(harness: &Harness, event_type: &str) {
    harness.sandbox().add_webhook_fault(WebhookFault { event: event_type.to_owned(), ..WebhookFault::default() });
}

/// Posts a body to the integration's webhook URL, signed as by Stripe, and returns the status of the response.
pub async fn post_webhook(harness: &Harness, body: &str) -> u16 {
    let endpoint = &harness.integration.provider_webhook_endpoint_id;
    let secret = harness.sandbox().webhook_secret(endpoint).expect("the endpoint's secret");
    let environment = &harness.context.environment;
    let url = format!(
        "{}/webhooks/stripe/{}/{}",
        environment.servers[0].http, harness.billing.organization, harness.integration.id
    );
    let header = signature::header(body.as_bytes(), &[SecretString::from(secret)], environment.clock.now());
    let response = http().post(url).header("stripe-signature", header).body(body.to_owned()).send().await;
    response.expect("a response").status().as_u16()
}

/// The newest event of a type at Stripe.
pub fn newest_event(harness: &Harness, event_type: &str) -> Value {
    let events = harness.sandbox().events(&harness.billing.account);
    let event = events.into_iter().rev().find(|event| event["type"] == event_type);
    event.unwrap_or_else(|| panic!("no event of type {event_type}"))
}

/// Waits until an event was processed, and returns its state and the reason for it.
pub async fn processed_delivery(harness: &Harness, event: &str) -> (String, String) {
    let database = harness.database().await;
    until(&format!("{event} is processed"), async || {
        let query = "SELECT state, reason FROM deliveries WHERE provider_event_id = $1 AND state <> 'received'";
        let row = database.query_opt(query, &[&event]).await.expect("a delivery")?;
        Some((row.get(0), row.get::<_, Option<String>>(1).unwrap_or_default()))
    })
    .await
}

/// The signing secret of a webhook endpoint. Stripe shows it once, so it is read from the sandbox's `state_file`.
pub async fn webhook_secret(state_file: &Path, endpoint: &str) -> String {
    until("the sandbox has saved the endpoint's secret", async || {
        let state: Value = serde_json::from_slice(&std::fs::read(state_file).ok()?).ok()?;
        let mut accounts = state["accounts"].as_object()?.values();
        accounts.find_map(|account| Some(account["internals"][endpoint]["secret"].as_str()?.to_owned()))
    })
    .await
}
