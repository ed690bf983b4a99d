use axum::body::Body;
use axum::http::{HeaderValue, Method};
use tokio::sync::mpsc;
use tonic::codegen::Service as _;

use super::*;
use crate::clock::Clock;
use crate::store::{Pool, SealKey, Sealer};
use crate::{app, stripe, telemetry};

const PATH: &str = "/webhooks/stripe/0190163d-8694-739b-aea5-966c26f8ad91/0190163d-8694-739b-aea5-966c26f8ad92";

/// A receiver whose database does not exist.
fn receiver() -> WebhookReceiver {
    let clock = Clock::system();
    let sealer = Sealer::new(&[SealKey { id: "k".to_owned(), key: [1; 32] }]).unwrap();
    let stripe = stripe::Client::new("http://127.0.0.1:1", clock.clone(), stripe::Timeouts::default()).unwrap();
    let settings = app::Settings {
        installation: "test".to_owned(),
        default_success_url: "https://shop.example/".to_owned(),
        webhook_base_url: None,
        relay_provider_events: false,
        event_retention: time::Duration::DAY,
        delivery_retention: time::Duration::DAY,
        action_period: time::Duration::DAY,
        periods: app::Periods::default(),
    };
    let pool = Pool::new("host=/nonexistent user=nobody", 1).unwrap();
    let app = App::new(app::Adapters { pool, sealer, stripe, clock }, settings, mpsc::channel(1).0);
    WebhookReceiver { app, capacity: Arc::new(Semaphore::new(PERMITS_MAX)) }
}

fn request(path: &str, body: impl Into<Body>) -> Request {
    let mut request = Request::new(body.into());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().unwrap();
    request.headers_mut().insert("stripe-signature", HeaderValue::from_static("t=1,v1=00"));
    request
}

async fn send(receiver: WebhookReceiver, request: Request) -> Response {
    webhook_routes(receiver).call(request).await.unwrap()
}

#[tokio::test]
async fn p6_a_webhook_that_cannot_be_stored_is_not_answered_200() {
    let response = send(receiver(), request(PATH, "{}")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key(RETRY_AFTER));
}

#[tokio::test]
async fn a_webhook_without_integration_or_signature_is_refused_unread() {
    assert_eq!(send(receiver(), request("/webhooks/stripe/acct/1", "{}")).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(send(receiver(), request("/webhooks/stripe", "{}")).await.status(), StatusCode::NOT_FOUND);
    let mut unsigned = request(PATH, "{}");
    unsigned.headers_mut().remove("stripe-signature");
    assert_eq!(send(receiver(), unsigned).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn p11_long_bodies_and_headers_are_refused() {
    // Once as a chunked body without a length, once with a declared length.
    let long = Body::from_stream(tokio_stream::iter([Ok::<_, std::io::Error>(vec![0; BODY_BYTES_MAX + 1])]));
    assert_eq!(send(receiver(), request(PATH, long)).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let mut declared = request(PATH, Body::empty());
    declared.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(BODY_BYTES_MAX + 1));
    assert_eq!(send(receiver(), declared).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let mut long_header = request(PATH, "{}");
    long_header.headers_mut().insert("x", HeaderValue::from_str(&"x".repeat(HEADER_BYTES_MAX)).unwrap());
    assert_eq!(send(receiver(), long_header).await.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test]
async fn p11_webhooks_beyond_the_capacity_get_503_and_permits_are_returned() {
    let receiver = receiver();
    let all_permits =
        Arc::clone(&receiver.capacity).try_acquire_many_owned(u32::try_from(PERMITS_MAX).unwrap()).unwrap();
    let full = send(receiver.clone(), request(PATH, "{}")).await;
    assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(full.headers().contains_key(RETRY_AFTER));
    drop(all_permits);
    send(receiver.clone(), request(PATH, "{}")).await;
    assert_eq!(receiver.capacity.available_permits(), PERMITS_MAX, "a response returns the permits");
}

#[test]
fn a_request_takes_permits_by_its_length_or_as_the_longest_if_it_declares_none() {
    let permits = |length: Option<usize>| {
        let mut headers = HeaderMap::new();
        headers.extend(length.map(|length| (CONTENT_LENGTH, HeaderValue::from(length))));
        permits_for(&headers)
    };
    assert_eq!(permits(Some(0)), Some(1));
    assert_eq!(permits(Some(PERMIT_BYTES + 1)), Some(2));
    assert_eq!(permits(Some(BODY_BYTES_MAX)), Some(16));
    assert_eq!(permits(Some(BODY_BYTES_MAX + 1)), None);
    assert_eq!(permits(None), Some(16));
}

#[tokio::test]
async fn readiness_and_liveness_differ() {
    let get = async |is_ready: bool, path: &str| {
        let mut request = request(path, Body::empty());
        *request.method_mut() = Method::GET;
        let ready = watch::Sender::new(is_ready).subscribe();
        operations_routes(telemetry::metrics(), ready).call(request).await.unwrap().status()
    };
    assert_eq!(get(false, "/healthz").await, StatusCode::OK);
    assert_eq!(get(false, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(true, "/readyz").await, StatusCode::OK);
    assert_eq!(get(true, PATH).await, StatusCode::NOT_FOUND, "a worker has no webhook route");
}
