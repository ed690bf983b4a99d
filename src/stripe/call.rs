//! What one call sends to Stripe.

use reqwest::Method;

use crate::domain::stripe_requests::IdempotencyKey;

/// One call of a resource.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub method: Method,
    /// The path with `{id}` as a placeholder: what logs and metrics may show.
    pub route: &'static str,
    /// The value for `{id}`.
    pub id: Option<&'a str>,
    /// An encoded form: the query of a GET, the stored body of a POST.
    pub form: &'a str,
    /// Set for every POST and for nothing else.
    pub idempotency_key: Option<&'a IdempotencyKey>,
}

impl<'a> Call<'a> {
    /// A read; `query` is an encoded form or empty.
    pub fn get(route: &'static str, id: Option<&'a str>, query: &'a str) -> Self {
        Self { method: Method::GET, route, id, form: query, idempotency_key: None }
    }

    /// A deletion, which is safe to repeat without a key.
    pub fn delete(route: &'static str, id: &'a str) -> Self {
        Self { method: Method::DELETE, route, id: Some(id), form: "", idempotency_key: None }
    }

    /// A POST of a stored body with its idempotency key.
    pub fn post(route: &'static str, id: Option<&'a str>, idempotency_key: &'a IdempotencyKey, body: &'a str) -> Self {
        Self { method: Method::POST, route, id, form: body, idempotency_key: Some(idempotency_key) }
    }
}
