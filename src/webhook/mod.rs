//! Door 2: HTTP. Stripe posts its webhooks here, and the platform asks here for health and metrics.
//!
//! A webhook's flow: the path names tenant and integration, the body is read as raw bytes within limits of size and time,
//! and `app` checks the signature over exactly those bytes, stores the delivery and answers after the commit. Only then
//! does Stripe get its 200 (P6); whatever else it gets makes it come again, for days. Nothing here parses the body.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::{Semaphore, watch};

use crate::app::{App, Rejection, Taken};
use crate::domain::{IntegrationId, OrganizationId};
use crate::telemetry::Metrics;

#[cfg(test)]
mod tests;

/// The longest body, in bytes; Stripe's are a few thousand (P11).
const BODY_BYTES_MAX: usize = 1 << 20;

/// How long a body may take to arrive; Stripe itself gives up after some 20 s.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// The longest headers, names and values together, in bytes (P11).
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// What bodies in hand are counted in, in bytes: the least that one request counts for.
const UNIT_BYTES: usize = 64 * 1024;

/// How many units may be in hand at once: 64 MiB, a thousand usual requests, or 64 of the longest (P11).
const UNITS_MAX: usize = 1024;

/// When a sender should come back after a 503, in seconds.
const RETRY_AFTER_SECONDS: &str = "2";

/// What the handlers share.
#[derive(Clone)]
struct Door {
    app: App,
    room: Arc<Semaphore>,
}

/// All paths of this door. `ready` says whether this process can do its work: what `/readyz` answers.
pub fn routes(app: App, metrics: Metrics, ready: watch::Receiver<bool>) -> Router {
    let door = Door { app, room: Arc::new(Semaphore::new(UNITS_MAX)) };
    webhook_routes(door).merge(platform_routes(metrics, ready))
}

fn webhook_routes(door: Door) -> Router {
    Router::new()
        .route("/webhooks/stripe/{organization_id}/{integration_id}", post(webhook))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(door)
}

/// The paths that the platform asks at: all that a worker has.
pub fn platform_routes(metrics: Metrics, ready: watch::Receiver<bool>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(move || std::future::ready(readiness(*ready.borrow()))))
        .route("/metrics", get(move || std::future::ready(metrics_text(&metrics))))
}

fn readiness(is_ready: bool) -> (StatusCode, &'static str) {
    if is_ready {
        (StatusCode::OK, "ready\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: the database is away or has not passed its check, or this process is stopping; the log says which\n",
        )
    }
}

fn metrics_text(metrics: &Metrics) -> impl IntoResponse + use<> {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

/// One webhook, measured.
async fn webhook(State(door): State<Door>, Path(path): Path<(String, String)>, request: Request) -> Response {
    let started = Instant::now();
    let answer = door.take_in(path, request).await;
    metrics::counter!("paybridge_webhooks_total", "answer" => answer.name()).increment(1);
    metrics::histogram!("paybridge_webhook_seconds").record(started.elapsed());
    answer.into_response()
}

/// What a sender is told. The texts are for whoever looks at failed deliveries in Stripe's dashboard.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// It is stored, now or since before.
    Stored,
    /// No such integration, or not in this organization.
    Unknown,
    /// Not from Stripe.
    Refused(&'static str),
    /// Signed by Stripe's secret, and not an event: without an id it can't be stored once. It stays at Stripe, which shows
    /// it as failed; the metric and the log say so here.
    NotAnEvent,
    /// Larger than we read.
    TooLarge,
    /// Headers larger than we look at.
    HeadersTooLarge,
    /// The body did not arrive in time.
    TooSlow,
    /// Too many at once.
    Full,
    /// The database can't be reached.
    Unavailable,
}

impl Door {
    async fn take_in(&self, (organization, integration): (String, String), request: Request) -> Answer {
        // A path that names no id names no integration either.
        let (Ok(organization), Ok(integration)) =
            (organization.parse::<OrganizationId>(), integration.parse::<IntegrationId>())
        else {
            return Answer::Unknown;
        };
        if bytes_of(request.headers()) > HEADER_BYTES_MAX {
            return Answer::HeadersTooLarge;
        }
        let signature = request.headers().get("stripe-signature").and_then(|value| value.to_str().ok());
        let Some(signature) = signature.map(str::to_owned) else {
            return Answer::Refused("the Stripe-Signature header is missing");
        };
        let Some(units) = units_of(request.headers()) else { return Answer::TooLarge };
        let Ok(_place) = self.room.try_acquire_many(units) else { return Answer::Full };
        let body = match tokio::time::timeout(BODY_WITHIN, Bytes::from_request(request, &())).await {
            Ok(Ok(body)) => body,
            Ok(Err(error)) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => return Answer::TooLarge,
            Ok(Err(_)) => return Answer::Refused("the body did not arrive whole"),
            Err(_) => return Answer::TooSlow,
        };
        match self.app.take_in(organization, integration, &signature, body.into()).await {
            Ok(Taken::New | Taken::Known) => Answer::Stored,
            Err(Rejection::UnknownIntegration) => Answer::Unknown,
            Err(Rejection::BadSignature(reason)) => {
                tracing::info!(%organization, %integration, reason, "a webhook was refused: its signature is not good");
                Answer::Refused("the signature is not good: wrong endpoint secret, changed body, or a wrong clock")
            }
            Err(Rejection::NotAnEvent(reason)) => {
                tracing::warn!(%organization, %integration, reason, "a signed webhook was refused: it is no event");
                Answer::NotAnEvent
            }
            Err(Rejection::Unavailable) => Answer::Unavailable,
        }
    }
}

/// What the headers add up to, in bytes.
fn bytes_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// What a request counts for while it is in hand. One that doesn't say how long it is counts as the longest; `None` is
/// longer than that.
fn units_of(headers: &HeaderMap) -> Option<u32> {
    let said = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let bytes = said.unwrap_or(BODY_BYTES_MAX);
    let units = bytes.div_ceil(UNIT_BYTES).max(1);
    (bytes <= BODY_BYTES_MAX).then(|| u32::try_from(units).ok()).flatten()
}

impl Answer {
    /// The name in the metrics.
    fn name(&self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Unknown => "unknown",
            Self::Refused(_) => "refused",
            Self::NotAnEvent => "not_an_event",
            Self::TooLarge | Self::HeadersTooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::Full => "full",
            Self::Unavailable => "unavailable",
        }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let again = [(RETRY_AFTER, RETRY_AFTER_SECONDS)];
        match self {
            Self::Stored => (StatusCode::OK, "stored\n").into_response(),
            Self::Unknown => (StatusCode::NOT_FOUND, "no such integration\n").into_response(),
            Self::Refused(reason) => (StatusCode::BAD_REQUEST, format!("{reason}\n")).into_response(),
            Self::NotAnEvent => (StatusCode::BAD_REQUEST, "the body is not a Stripe event\n").into_response(),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 1 MiB\n").into_response(),
            Self::HeadersTooLarge => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are longer than 16 KiB\n").into_response()
            }
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "the body took longer than 10 s\n").into_response(),
            Self::Full => {
                (StatusCode::SERVICE_UNAVAILABLE, again, "too many webhooks at once; come again\n").into_response()
            }
            Self::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, again, "it could not be stored now; come again\n").into_response()
            }
        }
    }
}
