//! Idempotency keys: the first request under a key is carried out and its answer kept for 24 hours of the clock, be it
//! 200, 402 or 500; the same request gets the same answer; another request under the key is an error.

use serde::{Deserialize, Serialize};

use super::refusal::Refusal;
use super::state::Account;

/// How long a key is remembered, in seconds.
const KEPT: i64 = 24 * 60 * 60;

/// What is known about a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// `POST /v1/…` and the form.
    pub path: String,
    pub form: Vec<(String, String)>,
    pub request_id: String,
    /// Unix seconds.
    pub created: i64,
    /// The stored answer; `None` while the first request is being carried out.
    pub answer: Option<(u16, String)>,
}

/// What a key means for a request.
pub(super) enum Verdict {
    /// Nobody has used it: carry the request out.
    New,
    /// Answer this, which was the answer to that request.
    Replay { status: u16, body: String, request_id: String },
}

/// Looks a key up, and if it is new, takes it for this request.
pub(super) fn claim(
    account: &mut Account,
    key: &str,
    path: &str,
    form: &[(String, String)],
    request_id: &str,
    now: i64,
) -> Result<Verdict, Refusal> {
    if key.chars().count() > 255 {
        return Err(Refusal::invalid("Idempotency keys can be at most 255 characters long.").early());
    }
    prune(account, now);
    let Some(known) = account.idempotency.get(key) else {
        let first = Remembered {
            path: path.to_owned(),
            form: form.to_vec(),
            request_id: request_id.to_owned(),
            created: now,
            answer: None,
        };
        account.idempotency.insert(key.to_owned(), first);
        account.idempotency_order.push_back((now, key.to_owned()));
        return Ok(Verdict::New);
    };
    if known.path != path || sorted(&known.form) != sorted(form) {
        let message = format!(
            "Keys for idempotent requests can only be used with the same parameters they were first used with, and on \
             the same endpoint ('{}'). Try using a key other than '{key}' if you meant to execute a different request.",
            known.path
        );
        return Err(Refusal::new(400, "idempotency_error", message).early());
    }
    if let Some((status, body)) = &known.answer {
        return Ok(Verdict::Replay { status: *status, body: body.clone(), request_id: known.request_id.clone() });
    }
    let message = format!(
        "There is currently another in-progress request using this Idempotent Key (that probably means you submitted \
         twice, and the other request is still going through): {key}. Please try again later."
    );
    let mut refusal = Refusal::new(409, "idempotency_error", message).code("idempotency_key_in_use").early();
    refusal.should_retry = Some(true);
    Err(refusal)
}

/// Keeps the answer for the key.
pub(super) fn remember(account: &mut Account, key: &str, status: u16, body: &str) {
    if let Some(known) = account.idempotency.get_mut(key) {
        known.answer = Some((status, body.to_owned()));
    }
}

/// Keeps the answer for the key if there is none yet.
pub(super) fn remember_once(account: &mut Account, key: &str, status: u16, body: &str) {
    if account.idempotency.get(key).is_some_and(|known| known.answer.is_none()) {
        remember(account, key, status, body);
    }
}

/// Gives the key back: the request was refused before its work began.
pub(super) fn forget(account: &mut Account, key: &str) {
    account.idempotency.remove(key);
}

/// Forgets keys older than 24 hours.
fn prune(account: &mut Account, now: i64) {
    while let Some((created, key)) = account.idempotency_order.front().cloned() {
        if created + KEPT > now {
            return;
        }
        account.idempotency_order.pop_front();
        if account.idempotency.get(&key).is_some_and(|known| known.created + KEPT <= now) {
            account.idempotency.remove(&key);
        }
    }
}

/// Stripe compares parameters, not their order.
fn sorted(form: &[(String, String)]) -> Vec<&(String, String)> {
    let mut form: Vec<_> = form.iter().collect();
    form.sort();
    form
}
