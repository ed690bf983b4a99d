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
                parcels.extend(pick(slot, account, now));
                next = account.mail.next().into_iter().chain(next).min();
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

/// Takes out what is due, and drops what has no event any more.
fn pick(slot: &str, account: &mut Account, now: i64) -> Vec<Parcel> {
    let mut parcels = Vec::new();
    for (number, delivery) in account.mail.take_due(now) {
        let Some(body) = account.event(delivery.event_number).map(|event| event.body.clone()) else {
            account.mail.end(number);
            continue;
        };
        let endpoint = account.objects.get(&delivery.endpoint);
        parcels.push(Parcel {
            slot: slot.to_owned(),
            number,
            url: endpoint.map_or("", |endpoint| text(endpoint, "/url")).to_owned(),
            secret: account.hidden.get(&delivery.endpoint).map_or_else(String::new, |hidden| hidden.secret.clone()),
            body,
        });
    }
    parcels
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
    let Some(mut delivery) = account.mail.end(number) else { return };
    let Some(event) = account.event(delivery.event_number) else { return };
    let Some(refused) = refused else {
        event.pending = event.pending.saturating_sub(1);
        event.acknowledged.get_or_insert(now);
        return;
    };
    if event.created + GIVE_UP_AFTER < now / 1_000_000 {
        return;
    }
    delivery.last_answer = refused;
    delivery.at = now.saturating_add(pause(&delivery) * 1_000_000);
    delivery.attempt += 1;
    account.mail.again(number, delivery);
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
