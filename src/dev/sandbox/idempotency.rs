//! Idempotency keys: the response to the first request under a key is stored for 24 hours of the clock, whether it is a
//! 200, a 402 or a 500. The same request gets the stored response. Any other request under the key is an error.

use super::api_error::ApiError;
use super::state::{Account, IdempotentRequest};

/// How long a response is stored, in seconds.
const RETENTION: i64 = 24 * 60 * 60;

/// What to do with a request under a key.
pub(super) enum Claim {
    /// The key is new: execute the request.
    New,
    /// Respond with the stored response to the request with this id.
    Replay { status: u16, body: String, request_id: String },
}

/// Looks a key up and, if it is new, claims it for this request.
pub(super) fn claim(account: &mut Account, key: &str, request: IdempotentRequest) -> Result<Claim, ApiError> {
    if key.chars().count() > 255 {
        return Err(ApiError::invalid("Idempotency keys can be at most 255 characters long.").before_execution());
    }
    prune(account, request.created);
    let Some(known) = account.idempotency.get(key) else {
        account.idempotency_order.push_back((request.created, key.to_owned()));
        account.idempotency.insert(key.to_owned(), request);
        return Ok(Claim::New);
    };
    if known.path != request.path || sorted(&known.form) != sorted(&request.form) {
        let message = format!(
            "Keys for idempotent requests can only be used with the same parameters they were first used with, and on \
             the same endpoint ('{}'). Try using a key other than '{key}' if you meant to execute a different request.",
            known.path
        );
        return Err(ApiError::new(400, "idempotency_error", message).before_execution());
    }
    if let Some((status, body)) = &known.response {
        return Ok(Claim::Replay { status: *status, body: body.clone(), request_id: known.request_id.clone() });
    }
    let message = format!(
        "There is currently another in-progress request using this Idempotent Key (that probably means you submitted \
         twice, and the other request is still going through): {key}. Please try again later."
    );
    let mut api_error =
        ApiError::new(409, "idempotency_error", message).code("idempotency_key_in_use").before_execution();
    api_error.should_retry = Some(true);
    Err(api_error)
}

/// Stores the response under the key.
pub(super) fn store_response(account: &mut Account, key: &str, status: u16, body: &str) {
    if let Some(known) = account.idempotency.get_mut(key) {
        known.response = Some((status, body.to_owned()));
    }
}

/// Stores the response under the key, unless there is one.
pub(super) fn store_response_once(account: &mut Account, key: &str, status: u16, body: &str) {
    if account.idempotency.get(key).is_some_and(|known| known.response.is_none()) {
        store_response(account, key, status, body);
    }
}

/// Releases the key of a request that was not executed.
pub(super) fn release(account: &mut Account, key: &str) {
    account.idempotency.remove(key);
}

/// Removes keys older than 24 hours.
fn prune(account: &mut Account, now: i64) {
    while let Some((created, key)) = account.idempotency_order.front().cloned() {
        if created + RETENTION > now {
            return;
        }
        account.idempotency_order.pop_front();
        if account.idempotency.get(&key).is_some_and(|known| known.created + RETENTION <= now) {
            account.idempotency.remove(&key);
        }
    }
}

/// Sorts the parameters: Stripe ignores their order when it compares requests.
fn sorted(form: &[(String, String)]) -> Vec<&(String, String)> {
    let mut form: Vec<_> = form.iter().collect();
    form.sort();
    form
}
