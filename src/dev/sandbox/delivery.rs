//! Sends signed webhooks to endpoints: at least once, in no particular order, with retries until an endpoint responds
//! with a 2xx.

use std::sync::Arc;
use std::time::Duration as RealDuration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use time::OffsetDateTime;

use super::shared::Shared;
use super::state::{Account, text};
use super::webhook_queue::Delivery;

/// How long an endpoint may take to respond, in real time.
const RESPONSE_TIMEOUT: RealDuration = RealDuration::from_secs(10);
/// The delays before the second and later attempts, in seconds of the clock. The last one repeats.
const RETRY_DELAYS: [i64; 10] = [1, 2, 5, 10, 30, 60, 300, 900, 1800, 3600];
/// Stripe stops retrying after three days.
const ABANDON_AFTER: i64 = 3 * 24 * 60 * 60;

/// A delivery, ready to be sent.
struct WebhookRequest {
    /// The account's key in the state.
    slot: String,
    /// The delivery's number in the queue.
    number: u64,
    url: String,
    secret: String,
    body: String,
}

/// Sends due deliveries until the sandbox stops.
pub(super) async fn run(shared: Arc<Shared>, client: reqwest::Client) {
    loop {
        let (requests, next) = shared.with_lock(|inner| {
            let now = shared.micros();
            let mut requests = Vec::new();
            let mut next: Option<i64> = None;
            for (slot, account) in &mut inner.state.accounts {
                requests.extend(take_due(slot, account, now));
                next = account.webhooks.next_send_time().into_iter().chain(next).min();
            }
            (requests, next)
        });
        for webhook in requests {
            shared.tasks.spawn(send(shared.clone(), client.clone(), webhook));
        }
        let wait = async {
            match next.and_then(|at| OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1000).ok()) {
                Some(at) => shared.clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.delivery_wakeup.notified() => {}
            () = wait => {}
        }
    }
}

/// The due deliveries of an account. Drops those whose event has been pruned.
fn take_due(slot: &str, account: &mut Account, now: i64) -> Vec<WebhookRequest> {
    let mut requests = Vec::new();
    for (number, delivery) in account.webhooks.take_due(now) {
        let Some(body) = account.event(delivery.event_number).map(|event| event.body.clone()) else {
            account.webhooks.finish(number);
            continue;
        };
        let endpoint = account.objects.get(&delivery.endpoint);
        requests.push(WebhookRequest {
            slot: slot.to_owned(),
            number,
            url: endpoint.map_or("", |endpoint| text(endpoint, "/url")).to_owned(),
            secret: account
                .internals
                .get(&delivery.endpoint)
                .map_or_else(String::new, |internals| internals.secret.clone()),
            body,
        });
    }
    requests
}

/// Sends one webhook and records the result.
async fn send(shared: Arc<Shared>, client: reqwest::Client, webhook: WebhookRequest) {
    let request = client
        .post(&webhook.url)
        .header("content-type", "application/json; charset=utf-8")
        .header("user-agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
        .header("stripe-signature", signature(&webhook.secret, shared.seconds(), webhook.body.as_bytes()))
        .body(webhook.body);
    let sent = tokio::select! {
        () = shared.stop.cancelled() => return,
        sent = tokio::time::timeout(RESPONSE_TIMEOUT, request.send()) => sent,
    };
    let failure = match sent {
        Ok(Ok(response)) if response.status().is_success() => None,
        Ok(Ok(response)) => Some(response.status().as_u16().to_string()),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no response within {} s", RESPONSE_TIMEOUT.as_secs())),
    };
    shared.update(|inner| {
        let now = shared.micros();
        if let Some(account) = inner.state.accounts.get_mut(&webhook.slot) {
            record_result(account, webhook.number, failure, now);
        }
    });
    shared.delivery_wakeup.notify_one();
}

/// Removes a delivery that succeeded or is too old, and schedules a retry of any other.
fn record_result(account: &mut Account, number: u64, failure: Option<String>, now: i64) {
    let Some(mut delivery) = account.webhooks.finish(number) else { return };
    let Some(event) = account.event(delivery.event_number) else { return };
    let Some(failure) = failure else {
        event.pending = event.pending.saturating_sub(1);
        event.acknowledged.get_or_insert(now);
        return;
    };
    if event.created + ABANDON_AFTER < now / 1_000_000 {
        return;
    }
    delivery.last_response = failure;
    delivery.at = now.saturating_add(retry_delay(&delivery) * 1_000_000);
    delivery.attempt += 1;
    account.webhooks.retry(number, delivery);
}

fn retry_delay(delivery: &Delivery) -> i64 {
    let index = usize::try_from(delivery.attempt).unwrap_or(RETRY_DELAYS.len()).min(RETRY_DELAYS.len() - 1);
    RETRY_DELAYS[index]
}

/// The `Stripe-Signature` header, `t=…,v1=…`: HMAC-SHA256 over the time, a dot and the raw body. The key is the whole
/// secret, prefix included.
pub(super) fn signature(secret: &str, now: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC accepts keys of any length");
    mac.update(format!("{now}.").as_bytes());
    mac.update(body);
    format!("t={now},v1={}", hex::encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_matches_stripes_scheme() {
        let signature = signature("whsec_test_secret", 1_700_000_000, br#"{"id":"evt_1","object":"event"}"#);
        let expected = "0c8670ed117751cc551a20e35839447075c42800ea3cf3e8a2fbda99cd1e6edd";
        assert_eq!(signature, format!("t=1700000000,v1={expected}"));
    }
}
