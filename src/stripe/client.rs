//! The HTTP client for Stripe.
//!
//! Every call of every resource goes through [`Client::send`]: a permit from [`super::rate_limit`], bearer key, pinned
//! version, idempotency key, time limit, at most two quick retries by Stripe's rules, one log line. A call without a
//! response is returned to the caller, who keeps the stored body and sends it again later with the same key (P2). No
//! key, body or link is ever logged (P9).

use std::sync::Arc;
use std::time::{Duration as RealDuration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Url};
use secrecy::ExposeSecret as _;
use serde::de::DeserializeOwned;
use time::Duration;
use tracing::{Instrument as _, Span, field};

use super::call::Call;
use super::error::{Detail, Disposition, Error, UnknownCause};
use super::random::random_fraction;
use super::rate_limit::{ApiKey, Feedback, RateLimiters};
use super::response::Response;
use super::{API_VERSION, form};
use crate::clock::Clock;
use crate::domain::limits::Limits;
use crate::domain::stripe_requests::{IdempotencyKey, StripeRequest};
use crate::failpoints::{self, Failpoint};

/// The URL of Stripe's API.
pub const STRIPE_URL: &str = "https://api.stripe.com";

/// Attempts within one call: the first and two retries, as in Stripe's own libraries.
const ATTEMPTS_MAX: u32 = 3;

/// The longest response, in bytes (P11). A page of 100 large events is well below.
const RESPONSE_BYTES_MAX: usize = 16 << 20;

/// The time limits of a call, real time.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For opening a connection.
    pub connect: RealDuration,
    /// For the whole call with its retries and the pauses between them, but without the wait for permits.
    pub call: RealDuration,
}

impl Default for Timeouts {
    /// 10 s to connect, and the 80 s of Stripe's own libraries for the call.
    fn default() -> Self {
        Self { connect: RealDuration::from_secs(10), call: RealDuration::from_secs(80) }
    }
}

/// The result of a stored request.
#[derive(Clone, Debug)]
pub struct Executed<T> {
    /// What the request created or changed, as it was when Stripe executed the request.
    pub object: T,
    /// Stripe replayed the response (`Idempotent-Replayed`): the object may have changed since, so it is read.
    pub is_replayed: bool,
}

/// Why a client cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The base URL is neither https nor http, or has no host.
    #[error("the Stripe base URL must be like {STRIPE_URL}: {0}")]
    BaseUrl(String),
    /// The TLS stack or the system's certificates are unusable.
    #[error("cannot build the HTTPS client")]
    Http(#[from] reqwest::Error),
}

/// A client for Stripe; clones share one connection pool. It holds no key: keys belong to integrations and are passed
/// with every call.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base_url: String,
    pub(super) clock: Clock,
    timeouts: Timeouts,
    rate_limiters: Arc<RateLimiters>,
}

impl Client {
    /// A client for Stripe at `base_url`: [`STRIPE_URL`], or a sandbox, which may use plain http. It obeys Stripe's
    /// rate limits as long as it is supplied with slots ([`RateLimiters::supply`]).
    pub fn new(base_url: &str, clock: Clock, timeouts: Timeouts) -> Result<Self, BuildError> {
        let bad_url = |why: &str| BuildError::BaseUrl(why.to_owned());
        let url = Url::parse(base_url).map_err(|error| bad_url(&error.to_string()))?;
        if !matches!(url.scheme(), "https" | "http") || !url.has_host() {
            return Err(bad_url("not an http or https URL"));
        }
        // Ring is the process's only TLS provider. It may already be installed.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("Paybridge/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            // We retry ourselves: retries must follow Stripe's rules and appear in the log.
            .retry(reqwest::retry::never())
            .connect_timeout(timeouts.connect)
            .tcp_keepalive(RealDuration::from_secs(30))
            .http2_keep_alive_interval(RealDuration::from_secs(30))
            .http2_keep_alive_timeout(RealDuration::from_secs(10))
            .pool_idle_timeout(RealDuration::from_mins(1));
        if url.scheme() == "http" {
            http = http.no_proxy();
        }
        let base_url = url.as_str().trim_end_matches('/').to_owned();
        let rate_limiters = Arc::new(RateLimiters::new(clock.clone(), Limits::default()));
        Ok(Self { http: http.build()?, base_url, clock, timeouts, rate_limiters })
    }

    /// Replaces the rate limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { rate_limiters: Arc::new(RateLimiters::new(self.clock.clone(), limits)), ..self }
    }

    /// The rate limiters that every call obeys.
    pub fn rate_limiters(&self) -> &RateLimiters {
        &self.rate_limiters
    }

    /// Sends a call and parses its response.
    pub(super) async fn send<T: DeserializeOwned>(&self, key: &ApiKey, call: Call<'_>) -> Result<T, Error> {
        self.send_traced(key, call).await?.parse()
    }

    /// Sends a stored request, and returns whether the response is a replay.
    pub(super) async fn execute<W: DeserializeOwned, T: From<W>>(
        &self,
        key: &ApiKey,
        route: &'static str,
        id: Option<&str>,
        request: &StripeRequest,
    ) -> Result<Executed<T>, Error> {
        let response = self.send_traced(key, Call::post(route, id, &request.key, &request.body)).await?;
        Ok(Executed { object: response.parse::<W>()?.into(), is_replayed: response.is_replayed() })
    }

    /// The key of a call that is never sent again by another process: under a key of its own, so that no earlier
    /// response is replayed. Only for calls that are harmless to repeat.
    pub(super) fn unique_key(&self, action: &str) -> IdempotencyKey {
        IdempotencyKey::unique(action, self.clock.new_id())
    }

    async fn send_traced(&self, key: &ApiKey, call: Call<'_>) -> Result<Response, Error> {
        let span = tracing::info_span!(
            "stripe call",
            method = %call.method,
            route = call.route,
            status = field::Empty,
            request_id = field::Empty,
            attempts = field::Empty,
        );
        self.send_with_retries(key, &call).instrument(span).await
    }

    async fn send_with_retries(&self, key: &ApiKey, call: &Call<'_>) -> Result<Response, Error> {
        let started = Instant::now();
        let url = self.url(call)?;
        let bearer = bearer(key)?;
        let mut may_be_done = false;
        let mut attempts = 0;
        // Without the wait for permits.
        let mut spent = RealDuration::ZERO;
        let outcome = loop {
            let permit = match self.rate_limiters.acquire(key, call).await {
                Ok(permit) => permit,
                // This attempt was not sent, but an earlier one may have been done.
                Err(error) => break Err(error),
            };
            let attempt_started = Instant::now();
            let outcome = self.send_once(&url, &bearer, call, self.timeouts.call.saturating_sub(spent)).await;
            permit.finish(feedback(&outcome));
            attempts += 1;
            let pause = backoff(attempts);
            spent += attempt_started.elapsed() + self.clock.real(pause);
            let is_timed_out = spent >= self.timeouts.call;
            if attempts == ATTEMPTS_MAX || is_timed_out || !should_retry(&outcome) {
                break outcome;
            }
            may_be_done |= disposition(&outcome) == Some(Disposition::Unknown);
            self.clock.sleep(pause).await;
        };
        let outcome = if may_be_done && call.method == Method::POST { keep_unknown(outcome) } else { outcome };
        record(call, &outcome, attempts, started.elapsed());
        outcome
    }

    async fn send_once(
        &self,
        url: &str,
        bearer: &HeaderValue,
        call: &Call<'_>,
        time_limit: RealDuration,
    ) -> Result<Response, Error> {
        let mut request = self
            .http
            .request(call.method.clone(), url)
            .timeout(time_limit)
            .header(AUTHORIZATION, bearer.clone())
            .header("Stripe-Version", API_VERSION);
        if let Some(idempotency_key) = call.idempotency_key {
            request = request
                .header("Idempotency-Key", idempotency_key.as_str())
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(call.form.to_owned());
        }
        failpoints::hit(Failpoint::BeforeRequest);
        let mut http_response = request.send().await.map_err(|error| transport_error(&error))?;
        let (status, headers) = (http_response.status(), http_response.headers().clone());
        let mut response = Response { status, headers, body: Vec::new() };
        while let Some(chunk) = http_response.chunk().await.map_err(|error| transport_error(&error))? {
            if response.body.len() + chunk.len() > RESPONSE_BYTES_MAX {
                return Err(Error::unknown(UnknownCause::TooLong, "the response is longer than 16 MiB"));
            }
            response.body.extend_from_slice(&chunk);
        }
        failpoints::hit(Failpoint::AfterResponse);
        Ok(response)
    }

    fn url(&self, call: &Call<'_>) -> Result<String, Error> {
        let mut url = self.base_url.clone();
        match call.id {
            Some(id) if is_valid_id(id) => url.push_str(&call.route.replace("{id}", &form::path_segment(id))),
            Some(_) => return Err(Error::invalid("id", "this is not a valid Stripe id")),
            None => url.push_str(call.route),
        }
        if call.method == Method::GET && !call.form.is_empty() {
            url.push('?');
            url.push_str(call.form);
        }
        Ok(url)
    }
}

/// Whether an id may be part of a path. An empty id would name the list, and dots would leave the route.
fn is_valid_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= 255 && id.chars().any(|c| c != '.') && !id.chars().any(char::is_control)
}

/// The key as a sensitive header: it is not printed and not kept in HTTP/2 header tables.
fn bearer(key: &ApiKey) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose_secret())).map_err(|_| {
        let message = Some("the API key contains characters that are invalid in a Stripe key".to_owned());
        Error::Unauthorized(Box::new(Detail { message, ..Detail::default() }))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Stripe's rules: retry without a response; otherwise follow `Stripe-Should-Retry`, then retry a 409 or 5xx. A rate
/// limiter's 429 is not retried, because it asks us to slow down; a lock's is.
fn should_retry(outcome: &Result<Response, Error>) -> bool {
    let response = match outcome {
        Ok(response) => response,
        Err(Error::Unknown { reason, .. }) => return *reason == UnknownCause::Connection,
        Err(_) => return false,
    };
    if response.status.is_success() {
        return false;
    }
    match response.header("stripe-should-retry") {
        Some("true") => return true,
        Some("false") => return false,
        _ => {}
    }
    match response.status.as_u16() {
        409 => true,
        // A stored error is the only response that this key will ever get.
        500.. => !response.is_replayed(),
        429 => matches!(response.parse::<serde_json::Value>(), Err(Error::Locked(_))),
        _ => false,
    }
}

/// What an outcome says about Stripe's health, independent of the call.
fn feedback(outcome: &Result<Response, Error>) -> Feedback {
    match outcome {
        Ok(response) if response.status.as_u16() == 429 => match response.parse::<serde::de::IgnoredAny>() {
            Err(Error::RateLimited { reason, .. }) => Feedback::Limit(reason),
            // A lock concerns one object.
            _ => Feedback::Response,
        },
        // A replayed error comes from a healthy Stripe.
        Ok(response) if response.status.is_server_error() && !response.is_replayed() => Feedback::Failure,
        Err(Error::Unknown { reason: UnknownCause::Timeout | UnknownCause::Connection, .. }) => Feedback::Failure,
        _ => Feedback::Response,
    }
}

fn disposition(outcome: &Result<Response, Error>) -> Option<Disposition> {
    match outcome {
        Ok(response) => response.parse::<serde::de::IgnoredAny>().err().map(|error| error.disposition()),
        Err(error) => Some(error.disposition()),
    }
}

/// Keeps the outcome unknown if an earlier attempt may have been done: the rejection of its retry says nothing about it
/// (P2).
fn keep_unknown(outcome: Result<Response, Error>) -> Result<Response, Error> {
    match disposition(&outcome) {
        Some(Disposition::NotDone) => {
            let error = match outcome {
                Ok(response) => response.parse::<serde::de::IgnoredAny>().err(),
                Err(error) => Some(error),
            };
            let detail = error.map(|error| error.detail().clone()).unwrap_or_default();
            Err(Error::Unknown { reason: UnknownCause::RetryRejected, replayed: false, detail: Box::new(detail) })
        }
        _ => outcome,
    }
}

/// 0.5 s, then 1 s, each with a random factor between 0.5 and 1, so that workers do not retry in step.
fn backoff(attempts: u32) -> Duration {
    Duration::milliseconds(500) * 2_i32.pow(attempts.saturating_sub(1)) * (0.5 + random_fraction() / 2.0)
}

fn transport_error(error: &reqwest::Error) -> Error {
    // Its text may contain the URL with its query.
    if error.is_timeout() && !error.is_connect() {
        Error::unknown(UnknownCause::Timeout, "no complete response within the time limit")
    } else if error.is_connect() {
        Error::unknown(UnknownCause::Connection, "Stripe cannot be reached")
    } else {
        Error::unknown(UnknownCause::Connection, "the connection broke before the response was complete")
    }
}

/// One log line and one measurement per call, without a tenant's data.
fn record(call: &Call<'_>, outcome: &Result<Response, Error>, attempts: u32, duration: RealDuration) {
    let (status, request_id) = match outcome {
        Ok(response) => (Some(response.status.as_u16()), response.request_id()),
        Err(error) => (error.detail().http_status, error.detail().request_id.clone()),
    };
    let span = Span::current();
    span.record("attempts", attempts);
    span.record("status", status);
    span.record("request_id", request_id.as_deref());
    let label = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
    metrics::histogram!("paybridge_stripe_call_seconds",
        "method" => call.method.to_string(), "route" => call.route, "status" => label)
    .record(duration.as_secs_f64());
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    match outcome {
        Ok(response) if response.status.is_success() => tracing::debug!(milliseconds, "stripe call succeeded"),
        Ok(response) if response.status.is_client_error() => tracing::info!(milliseconds, "stripe refused the call"),
        Ok(_) => tracing::warn!(milliseconds, "stripe failed"),
        Err(error @ Error::NotSent { .. }) => tracing::debug!(milliseconds, %error, "stripe call not sent"),
        Err(error) => tracing::warn!(milliseconds, %error, "stripe call without a response"),
    }
}

#[cfg(test)]
mod tests;
