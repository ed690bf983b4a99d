//! The courier: takes webhooks to their endpoints, signed, at least once, in no particular order, and again later
//! where an endpoint doesn't answer with a 2xx.

use std::sync::Arc;
use std::time::Duration as RealDuration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use time::OffsetDateTime;

use super::shared::Shared;
use super::state::{Account, Delivery, text};

/// How long an endpoint may take to answer, in real time.
const PATIENCE: RealDuration = RealDuration::from_secs(10);
/// How many webhooks one endpoint is sent at once.
const AT_ONCE: usize = 10;
/// The pauses before the second and later tries, in seconds of the clock; the last one repeats.
const PAUSES: [i64; 10] = [1, 2, 5, 10, 30, 60, 300, 900, 1800, 3600];
/// Stripe gives up after three days.
const GIVE_UP_AFTER: i64 = 3 * 24 * 60 * 60;

/// One webhook, ready to be sent.
struct Parcel {
    slot: String,
    number: u64,
    url: String,
    secret: String,
    body: String,
}

/// Runs until the sandbox stops.
pub(super) async fn run(shared: Arc<Shared>, client: reqwest::Client) {
    loop {
        let (parcels, next) = shared.look(|inner| {
            let now = shared.micros();
            let mut parcels = Vec::new();
            let mut next: Option<i64> = None;
            for (slot, account) in &mut inner.state.accounts {
                pick(slot, account, now, &mut parcels);
                let waiting =
                    account.deliveries.iter().filter(|delivery| delivery.at > now).map(|delivery| delivery.at);
                next = waiting.chain(next).min();
            }
            (parcels, next)
        });
        for parcel in parcels {
            shared.tasks.spawn(take(shared.clone(), client.clone(), parcel));
        }
        let wait = async {
            match next.and_then(|at| OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1000).ok()) {
                Some(at) => shared.clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.courier.notified() => {}
            () = wait => {}
        }
    }
}

/// Picks what is due, and drops what has no endpoint any more.
fn pick(slot: &str, account: &mut Account, now: i64, parcels: &mut Vec<Parcel>) {
    let mut deliveries = std::mem::take(&mut account.deliveries);
    deliveries.retain(|delivery| {
        account.objects.get(&delivery.endpoint).is_some_and(|endpoint| text(endpoint, "/status") == "enabled")
    });
    let mut busy = std::collections::HashMap::<String, usize>::new();
    for delivery in deliveries.iter().filter(|delivery| delivery.in_flight) {
        *busy.entry(delivery.endpoint.clone()).or_default() += 1;
    }
    for delivery in deliveries.iter_mut().filter(|delivery| !delivery.in_flight && delivery.at <= now) {
        let busy = busy.entry(delivery.endpoint.clone()).or_default();
        if *busy < AT_ONCE
            && let Some(event) = account.events.iter().rev().find(|event| event.id == delivery.event)
        {
            *busy += 1;
            delivery.in_flight = true;
            parcels.push(Parcel {
                slot: slot.to_owned(),
                number: delivery.number,
                url: text(&account.objects[&delivery.endpoint], "/url").to_owned(),
                secret: account.hidden.get(&delivery.endpoint).map_or_else(String::new, |hidden| hidden.secret.clone()),
                body: event.body.clone(),
            });
        }
    }
    account.deliveries = deliveries;
}

/// Sends one webhook and notes the answer.
async fn take(shared: Arc<Shared>, client: reqwest::Client, parcel: Parcel) {
    let request = client
        .post(&parcel.url)
        .header("content-type", "application/json; charset=utf-8")
        .header("user-agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
        .header("stripe-signature", signature(&parcel.secret, shared.seconds(), parcel.body.as_bytes()))
        .body(parcel.body);
    let sent = tokio::select! {
        () = shared.stop.cancelled() => return,
        sent = tokio::time::timeout(PATIENCE, request.send()) => sent,
    };
    let answer = match sent {
        Ok(Ok(response)) if response.status().is_success() => None,
        Ok(Ok(response)) => Some(response.status().as_u16().to_string()),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    shared.with(|inner| {
        let now = shared.micros();
        if let Some(account) = inner.state.accounts.get_mut(&parcel.slot) {
            note(account, parcel.number, answer, now);
        }
    });
    shared.courier.notify_one();
}

/// Ends a delivery, or puts it off.
fn note(account: &mut Account, number: u64, refused: Option<String>, now: i64) {
    let Some(index) = account.deliveries.iter().position(|delivery| delivery.number == number) else { return };
    let delivery = &mut account.deliveries[index];
    let id = delivery.event.clone();
    let event = account.events.iter_mut().rev().find(|event| event.id == id);
    let Some(refused) = refused else {
        if let Some(event) = event {
            event.pending = event.pending.saturating_sub(1);
        }
        account.deliveries.swap_remove(index);
        return;
    };
    delivery.in_flight = false;
    delivery.last_answer = refused;
    delivery.at = now.saturating_add(pause(delivery) * 1_000_000);
    delivery.attempt += 1;
    if event.is_none_or(|event| event.created + GIVE_UP_AFTER < now / 1_000_000) {
        account.deliveries.swap_remove(index);
    }
}

fn pause(delivery: &Delivery) -> i64 {
    let index = usize::try_from(delivery.attempt).unwrap_or(PAUSES.len()).min(PAUSES.len() - 1);
    PAUSES[index]
}

/// `t=…,v1=…`: HMAC-SHA256, keyed with the whole secret, over the time, a dot and the raw body.
pub(super) fn signature(secret: &str, now: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(format!("{now}.").as_bytes());
    mac.update(body);
    format!("t={now},v1={}", hex::encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_stripes() {
        let signature = signature("whsec_test_secret", 1_700_000_000, br#"{"id":"evt_1","object":"event"}"#);
        let expected = "0c8670ed117751cc551a20e35839447075c42800ea3cf3e8a2fbda99cd1e6edd";
        assert_eq!(signature, format!("t=1700000000,v1={expected}"));
    }
}
