//! The one way out to Stripe.
//!
//! Every call of every resource goes through [`Client::send`]: its turn by [`super::pace`], bearer key, pinned version,
//! idempotency key, time limit, at most two quick repetitions by Stripe's own rules, one line in the log. What still
//! has no answer then goes back to the caller, who keeps the frozen body and sends it again later under the same key
//! (P2). No key, body or link is ever logged (P9).

use std::sync::Arc;
use std::time::{Duration as RealDuration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Url};
use secrecy::ExposeSecret as _;
use serde::de::DeserializeOwned;
use time::Duration;
use tracing::{Instrument as _, Span, field};

use super::answer::Answer;
use super::error::{Detail, Doubt, Error, Verdict};
use super::pace::{ApiKey, Heard, Paces, chance};
use super::{API_VERSION, form};
use crate::clock::Clock;
use crate::crash::{self, Point};
use crate::domain::limits::Limits;

/// Where Stripe lives.
pub const STRIPE_URL: &str = "https://api.stripe.com";

/// Tries within one call: the first and two repetitions, as Stripe's own libraries do.
const MOST_TRIES: u32 = 3;

/// The longest answer that is read, in bytes (P11). A page of 100 large events stays well below.
const LONGEST_ANSWER: usize = 16 << 20;

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To open a connection.
    pub connect: RealDuration,
    /// For the whole call, repetitions and the pauses between them included, but not the wait for its turn.
    pub call: RealDuration,
}

impl Default for Timeouts {
    /// 10 s to connect and Stripe's own 80 s for the call.
    fn default() -> Self {
        Self { connect: RealDuration::from_secs(10), call: RealDuration::from_secs(80) }
    }
}

/// The base URL cannot be used, or TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Neither https nor http, or without a host.
    #[error("the Stripe base URL must be like {STRIPE_URL}: {0}")]
    BaseUrl(String),
    /// The TLS stack or the system's certificates are not usable.
    #[error("the HTTPS client cannot be built")]
    Http(#[from] reqwest::Error),
}

/// A handle to Stripe; clones share one connection pool. Holds no key: keys belong to integrations and come with
/// every call.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base_url: String,
    pub(super) clock: Clock,
    timeouts: Timeouts,
    pub(super) paces: Arc<Paces>,
}

/// One call, as its resource describes it.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub method: Method,
    /// The path with `{id}` in place of the id: what logs and metrics may show.
    pub route: &'static str,
    /// What takes the place of `{id}`.
    pub id: Option<&'a str>,
    /// An encoded form: the query of a GET, the frozen body of a POST.
    pub form: &'a str,
    /// On every POST and on nothing else.
    pub idempotency_key: Option<&'a str>,
}

impl<'a> Call<'a> {
    /// Reads; `query` is an encoded form, or empty.
    pub fn get(route: &'static str, id: Option<&'a str>, query: &'a str) -> Self {
        Self { method: Method::GET, route, id, form: query, idempotency_key: None }
    }

    /// Deletes, which is safe to repeat without a key.
    pub fn delete(route: &'static str, id: &'a str) -> Self {
        Self { method: Method::DELETE, route, id: Some(id), form: "", idempotency_key: None }
    }

    /// Sends a frozen body under its key.
    pub fn post(route: &'static str, id: Option<&'a str>, idempotency_key: &'a str, body: &'a str) -> Self {
        Self { method: Method::POST, route, id, form: body, idempotency_key: Some(idempotency_key) }
    }
}

impl Client {
    /// A client for Stripe at `base_url`: [`STRIPE_URL`], or a sandbox, which may speak plain http. It keeps within
    /// Stripe's own limits, as long as somebody supplies it with slots.
    pub fn new(base_url: &str, clock: Clock, timeouts: Timeouts) -> Result<Self, BuildError> {
        let bad_url = |why: &str| BuildError::BaseUrl(why.to_owned());
        let url = Url::parse(base_url).map_err(|error| bad_url(&error.to_string()))?;
        if !matches!(url.scheme(), "https" | "http") || !url.has_host() {
            return Err(bad_url("not an http or https URL"));
        }
        // Ring is the process's only TLS provider; that somebody else has already said so is fine.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("Paybridge/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            // Repetitions are ours alone: they must follow Stripe's rules and show in the log.
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
        let paces = Arc::new(Paces::new(clock.clone(), Limits::default()));
        Ok(Self { http: http.build()?, base_url, clock, timeouts, paces })
    }

    /// The same client, which keeps within other limits.
    #[must_use]
    pub fn within(self, limits: Limits) -> Self {
        Self { paces: Arc::new(Paces::new(self.clock.clone(), limits)), ..self }
    }

    /// The one send path.
    pub(super) async fn send<T: DeserializeOwned>(&self, key: &ApiKey, call: Call<'_>) -> Result<T, Error> {
        let span = tracing::info_span!(
            "stripe call",
            method = %call.method,
            route = call.route,
            status = field::Empty,
            request_id = field::Empty,
            tries = field::Empty,
        );
        self.run(key, &call).instrument(span).await.and_then(|answer| answer.read())
    }

    async fn run(&self, key: &ApiKey, call: &Call<'_>) -> Result<Answer, Error> {
        let began = Instant::now();
        let url = self.url(call)?;
        let bearer = bearer(key)?;
        let mut in_doubt = false;
        let mut tries = 0;
        // Without the wait for turns.
        let mut spent = RealDuration::ZERO;
        let outcome = loop {
            let permit = match self.paces.turn(key, call).await {
                Ok(permit) => permit,
                // Not sent this time; but if it was before, that may have been done.
                Err(error) => break Err(error),
            };
            let started = Instant::now();
            let outcome = self.once(&url, &bearer, call, self.timeouts.call.saturating_sub(spent)).await;
            permit.tell(heard(&outcome));
            tries += 1;
            let pause = backoff(tries);
            spent += started.elapsed() + self.clock.real(pause);
            let time_is_up = spent >= self.timeouts.call;
            if tries == MOST_TRIES || time_is_up || !worth_repeating(&outcome) {
                break outcome;
            }
            in_doubt |= verdict(&outcome) == Some(Verdict::Unknown);
            self.clock.sleep(pause).await;
        };
        let outcome = if in_doubt && call.method == Method::POST { keep_doubt(outcome) } else { outcome };
        record(call, &outcome, tries, began.elapsed());
        outcome
    }

    async fn once(
        &self,
        url: &str,
        bearer: &HeaderValue,
        call: &Call<'_>,
        left: RealDuration,
    ) -> Result<Answer, Error> {
        let mut request = self
            .http
            .request(call.method.clone(), url)
            .timeout(left)
            .header(AUTHORIZATION, bearer.clone())
            .header("Stripe-Version", API_VERSION);
        if let Some(idempotency_key) = call.idempotency_key {
            request = request
                .header("Idempotency-Key", idempotency_key)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(call.form.to_owned());
        }
        crash::point(Point::BeforeRequest);
        let mut response = request.send().await.map_err(|error| broken(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut answer = Answer { status, headers, body: Vec::new() };
        while let Some(chunk) = response.chunk().await.map_err(|error| broken(&error))? {
            if answer.body.len() + chunk.len() > LONGEST_ANSWER {
                return Err(Error::unknown(Doubt::TooLong, "the answer is longer than 16 MiB"));
            }
            answer.body.extend_from_slice(&chunk);
        }
        crash::point(Point::AfterAnswer);
        Ok(answer)
    }

    fn url(&self, call: &Call<'_>) -> Result<String, Error> {
        let mut url = self.base_url.clone();
        match call.id {
            Some(id) if usable(id) => url.push_str(&call.route.replace("{id}", &form::path_segment(id))),
            Some(_) => return Err(Error::invalid("id", "this cannot be the id of anything at Stripe")),
            None => url.push_str(call.route),
        }
        if call.method == Method::GET && !call.form.is_empty() {
            url.push('?');
            url.push_str(call.form);
        }
        Ok(url)
    }
}

/// Whether a text may stand in a path. An empty id would name the list, dots would climb out of it.
fn usable(id: &str) -> bool {
    !id.is_empty() && id.len() <= 255 && id.chars().any(|c| c != '.') && !id.chars().any(char::is_control)
}

/// The key as a header that nobody prints and no HTTP/2 table remembers.
fn bearer(key: &ApiKey) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose_secret())).map_err(|_| {
        let message = Some("the key holds characters that no key of Stripe's has".to_owned());
        Error::Unauthorized(Box::new(Detail { message, ..Detail::default() }))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Stripe's own rules: no answer is worth another try; otherwise Stripe's advice, then 409 and 5xx. A limiter's 429 is
/// not, for whoever is told to slow down should not come back at once; a lock's is.
fn worth_repeating(outcome: &Result<Answer, Error>) -> bool {
    let answer = match outcome {
        Ok(answer) => answer,
        Err(Error::Unknown { reason, .. }) => return *reason == Doubt::Connection,
        Err(_) => return false,
    };
    if answer.status.is_success() {
        return false;
    }
    match answer.header("stripe-should-retry") {
        Some("true") => return true,
        Some("false") => return false,
        _ => {}
    }
    match answer.status.as_u16() {
        409 => true,
        // A stored error is all that this key will ever bring.
        500.. => !answer.replayed(),
        429 => matches!(answer.read::<serde_json::Value>(), Err(Error::Locked(_))),
        _ => false,
    }
}

/// What an outcome says about Stripe, whatever it says about the call.
fn heard(outcome: &Result<Answer, Error>) -> Heard {
    match outcome {
        Ok(answer) if answer.status.as_u16() == 429 => match answer.read::<serde::de::IgnoredAny>() {
            Err(Error::RateLimited { reason, .. }) => Heard::Limit(reason),
            // A lock is about one object.
            _ => Heard::Answer,
        },
        // A stored error is replayed by a Stripe that is well.
        Ok(answer) if answer.status.is_server_error() && !answer.replayed() => Heard::Failure,
        Err(Error::Unknown { reason: Doubt::Timeout | Doubt::Connection, .. }) => Heard::Failure,
        _ => Heard::Answer,
    }
}

fn verdict(outcome: &Result<Answer, Error>) -> Option<Verdict> {
    match outcome {
        Ok(answer) => answer.read::<serde::de::IgnoredAny>().err().map(|error| error.verdict()),
        Err(error) => Some(error.verdict()),
    }
}

/// A first try that broke off may have been done; that its repetition was turned away says nothing about it (P2).
fn keep_doubt(outcome: Result<Answer, Error>) -> Result<Answer, Error> {
    match verdict(&outcome) {
        Some(Verdict::NotDone) => {
            let error = match outcome {
                Ok(answer) => answer.read::<serde::de::IgnoredAny>().err(),
                Err(error) => Some(error),
            };
            let detail = error.map(|error| error.detail().clone()).unwrap_or_default();
            Err(Error::Unknown { reason: Doubt::Unrepeated, replayed: false, detail: Box::new(detail) })
        }
        _ => outcome,
    }
}

/// 0.5 s, then 1 s, each times a random factor between a half and one, so that many workers do not come back together.
fn backoff(tries: u32) -> Duration {
    Duration::milliseconds(500) * 2_i32.pow(tries.saturating_sub(1)) * (0.5 + chance() / 2.0)
}

fn broken(error: &reqwest::Error) -> Error {
    // Its text is not kept: it may hold the URL with its query.
    if error.is_timeout() && !error.is_connect() {
        Error::unknown(Doubt::Timeout, "no whole answer within the time allowed")
    } else if error.is_connect() {
        Error::unknown(Doubt::Connection, "Stripe cannot be reached")
    } else {
        Error::unknown(Doubt::Connection, "the connection broke before the whole answer was read")
    }
}

/// One line and one measurement a call, with nothing in them that belongs to a tenant.
fn record(call: &Call<'_>, outcome: &Result<Answer, Error>, tries: u32, took: RealDuration) {
    let (status, request_id) = match outcome {
        Ok(answer) => (Some(answer.status.as_u16()), answer.request_id()),
        Err(error) => (error.detail().http_status, error.detail().request_id.clone()),
    };
    let span = Span::current();
    span.record("tries", tries);
    span.record("status", status);
    span.record("request_id", request_id.as_deref());
    let label = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
    metrics::histogram!("paybridge_stripe_call_seconds",
        "method" => call.method.to_string(), "route" => call.route, "status" => label)
    .record(took.as_secs_f64());
    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match outcome {
        Ok(answer) if answer.status.is_success() => tracing::debug!(milliseconds, "Stripe answered"),
        Ok(answer) if answer.status.is_client_error() => tracing::info!(milliseconds, "Stripe refused"),
        Ok(_) => tracing::warn!(milliseconds, "Stripe failed"),
        Err(error @ Error::NotNow { .. }) => tracing::debug!(milliseconds, %error, "Stripe was not called"),
        Err(error) => tracing::warn!(milliseconds, %error, "Stripe did not answer"),
    }
}

#[cfg(test)]
mod tests;
