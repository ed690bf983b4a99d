//! The HTTP API: Stripe's webhooks, and health and metrics for the platform.
//!
//! The path of a webhook names organization and integration. The body is read as raw bytes, within limits of size and
//! time; `app` verifies the signature over exactly those bytes, stores the delivery and returns after the commit. Only
//! then does Stripe receive 200 (P6); after any other status it retries, for days. Nothing here parses the body.

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

use crate::app::{App, Ingested, Rejection};
use crate::domain::{IntegrationId, OrganizationId};
use crate::telemetry::Metrics;

#[cfg(test)]
mod tests;

/// The longest body, in bytes; Stripe's have a few thousand (P11).
const BODY_BYTES_MAX: usize = 1 << 20;

/// The time limit for receiving a body; Stripe itself gives up after about 20 s.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest headers, names and values together, in bytes (P11).
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// How many bytes of a body one permit covers. Every request takes at least one permit.
const PERMIT_BYTES: usize = 64 * 1024;

/// The permits for webhooks in progress: 64 MiB, a thousand requests of the usual size or 64 of the longest (P11).
const PERMITS_MAX: usize = 1024;

/// The `Retry-After` of a 503, in seconds.
const RETRY_AFTER_SECONDS: &str = "2";

/// The state of the webhook handler.
#[derive(Clone)]
struct WebhookReceiver {
    app: App,
    capacity: Arc<Semaphore>,
}

/// All routes of the HTTP listener. `ready` is what `/readyz` reports.
pub fn routes(app: App, metrics: Metrics, ready: watch::Receiver<bool>) -> Router {
    let receiver = WebhookReceiver { app, capacity: Arc::new(Semaphore::new(PERMITS_MAX)) };
    webhook_routes(receiver).merge(operations_routes(metrics, ready))
}

fn webhook_routes(receiver: WebhookReceiver) -> Router {
    Router::new()
        .route("/webhooks/stripe/{organization_id}/{integration_id}", post(webhook))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(receiver)
}

/// Health, readiness and metrics: all that a worker serves.
pub fn operations_routes(metrics: Metrics, ready: watch::Receiver<bool>) -> Router {
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
            "not ready: the database is unavailable or unchecked, or this process is shutting down; see the log\n",
        )
    }
}

fn metrics_text(metrics: &Metrics) -> impl IntoResponse + use<> {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

/// Handles a webhook and records its metrics.
async fn webhook(
    State(receiver): State<WebhookReceiver>,
    Path(path): Path<(String, String)>,
    request: Request,
) -> Response {
    let started = Instant::now();
    let response = receiver.receive(path, request).await;
    metrics::counter!("paybridge_webhooks_total", "result" => response.as_str()).increment(1);
    metrics::histogram!("paybridge_webhook_seconds").record(started.elapsed());
    response.into_response()
}

/// The response to a webhook. The texts are for people who read failed deliveries in the Stripe Dashboard.
#[derive(Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
enum WebhookResponse {
    /// Stored by this request or an earlier one.
    Stored,
    /// No such integration in this organization.
    Unknown,
    /// The signature is missing or wrong, or the body is incomplete.
    Refused(&'static str),
    /// Signed with the endpoint's secret, but not an event: without an id it cannot be stored once. Stripe shows it as
    /// failed; the metric and the log report it here.
    NotAnEvent,
    /// The body is too long.
    TooLarge,
    /// The headers are too long.
    #[strum(serialize = "too_large")]
    HeadersTooLarge,
    /// The body did not arrive in time.
    TooSlow,
    /// No permits are left.
    Full,
    /// The database is unavailable.
    Unavailable,
}

impl WebhookReceiver {
    async fn receive(&self, (organization, integration): (String, String), request: Request) -> WebhookResponse {
        // A path without valid ids names no integration.
        let (Ok(organization), Ok(integration)) =
            (organization.parse::<OrganizationId>(), integration.parse::<IntegrationId>())
        else {
            return WebhookResponse::Unknown;
        };
        if header_bytes(request.headers()) > HEADER_BYTES_MAX {
            return WebhookResponse::HeadersTooLarge;
        }
        let signature = request.headers().get("stripe-signature").and_then(|value| value.to_str().ok());
        let Some(signature) = signature.map(str::to_owned) else {
            return WebhookResponse::Refused("the Stripe-Signature header is missing");
        };
        let Some(permits) = permits_for(request.headers()) else { return WebhookResponse::TooLarge };
        let Ok(_permits) = self.capacity.try_acquire_many(permits) else { return WebhookResponse::Full };
        let body = match tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await {
            Ok(Ok(body)) => body,
            Ok(Err(error)) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => return WebhookResponse::TooLarge,
            Ok(Err(_)) => return WebhookResponse::Refused("the body is incomplete"),
            Err(_) => return WebhookResponse::TooSlow,
        };
        match self.app.ingest_webhook(organization, integration, &signature, body.into()).await {
            Ok(Ingested::New | Ingested::Duplicate) => WebhookResponse::Stored,
            Err(Rejection::UnknownIntegration) => WebhookResponse::Unknown,
            Err(Rejection::BadSignature(reason)) => {
                tracing::info!(%organization, %integration, reason, "webhook refused: invalid signature");
                WebhookResponse::Refused("invalid signature: wrong endpoint secret, changed body, or a wrong clock")
            }
            Err(Rejection::NotAnEvent(reason)) => {
                tracing::warn!(%organization, %integration, reason, "signed webhook refused: not an event");
                WebhookResponse::NotAnEvent
            }
            Err(Rejection::Unavailable) => WebhookResponse::Unavailable,
        }
    }
}

/// The total size of the headers, in bytes.
fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// The permits that a request takes. A request without a length counts as the longest; `None` means that it is too
/// long.
fn permits_for(headers: &HeaderMap) -> Option<u32> {
    let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let bytes = declared.unwrap_or(BODY_BYTES_MAX);
    let permits = bytes.div_ceil(PERMIT_BYTES).max(1);
    (bytes <= BODY_BYTES_MAX).then(|| u32::try_from(permits).ok()).flatten()
}

impl WebhookResponse {
    /// The metric's label.
    fn as_str(&self) -> &'static str {
        self.into()
    }
}

impl IntoResponse for WebhookResponse {
    fn into_response(self) -> Response {
        let retry_after = [(RETRY_AFTER, RETRY_AFTER_SECONDS)];
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
            Self::Full => (StatusCode::SERVICE_UNAVAILABLE, retry_after, "too many webhooks at once; retry later\n")
                .into_response(),
            Self::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, retry_after, "the webhook could not be stored; retry later\n")
                    .into_response()
            }
        }
    }
}
