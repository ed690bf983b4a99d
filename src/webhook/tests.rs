use axum::body::Body;
use axum::http::{HeaderValue, Method};
use tokio::sync::mpsc;
use tonic::codegen::Service as _;

use super::*;
use crate::clock::Clock;
use crate::store::{Pool, SealKey, Sealer};
use crate::{app, stripe, telemetry};

const PATH: &str = "/webhooks/stripe/0190163d-8694-739b-aea5-966c26f8ad91/0190163d-8694-739b-aea5-966c26f8ad92";

/// A door over a database that is not there.
fn door() -> Door {
    let clock = Clock::system();
    let sealer = Sealer::new(&[SealKey { id: "k".to_owned(), key: [1; 32] }]).unwrap();
    let stripe = stripe::Client::new("http://127.0.0.1:1", clock.clone(), stripe::Timeouts::default()).unwrap();
    let settings = app::Settings {
        default_success_url: "https://shop.example/".to_owned(),
        webhook_base_url: None,
        relay_provider_events: false,
        event_retention: time::Duration::DAY,
        delivery_retention: time::Duration::DAY,
        action_period: time::Duration::DAY,
        periods: app::Periods::default(),
    };
    let pool = Pool::new("host=/nonexistent user=nobody", 1).unwrap();
    let app = App::new(pool, sealer, stripe, clock, settings, mpsc::channel(1).0);
    Door { app, room: Arc::new(Semaphore::new(UNITS_MAX)) }
}

fn request(path: &str, body: impl Into<Body>) -> Request {
    let mut request = Request::new(body.into());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().unwrap();
    request.headers_mut().insert("stripe-signature", HeaderValue::from_static("t=1,v1=00"));
    request
}

async fn answer(door: Door, request: Request) -> Response {
    webhook_routes(door).call(request).await.unwrap()
}

#[tokio::test]
async fn p6_what_can_not_be_stored_now_is_not_answered_200() {
    let answer = answer(door(), request(PATH, "{}")).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key(RETRY_AFTER));
}

#[tokio::test]
async fn what_names_no_integration_or_carries_no_signature_is_refused_unread() {
    assert_eq!(answer(door(), request("/webhooks/stripe/acct/1", "{}")).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(answer(door(), request("/webhooks/stripe", "{}")).await.status(), StatusCode::NOT_FOUND);
    let mut unsigned = request(PATH, "{}");
    unsigned.headers_mut().remove("stripe-signature");
    assert_eq!(answer(door(), unsigned).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn p11_long_bodies_and_headers_are_refused() {
    // Without a length, as a chunked body, and with one that is told beforehand.
    let long = Body::from_stream(tokio_stream::iter([Ok::<_, std::io::Error>(vec![0; BODY_BYTES_MAX + 1])]));
    assert_eq!(answer(door(), request(PATH, long)).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let mut told = request(PATH, Body::empty());
    told.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(BODY_BYTES_MAX + 1));
    assert_eq!(answer(door(), told).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let mut wordy = request(PATH, "{}");
    wordy.headers_mut().insert("x", HeaderValue::from_str(&"x".repeat(HEADER_BYTES_MAX)).unwrap());
    assert_eq!(answer(door(), wordy).await.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test]
async fn p11_more_than_fits_is_sent_away_and_what_was_in_hand_makes_room_again() {
    let door = door();
    let taken = Arc::clone(&door.room).try_acquire_many_owned(u32::try_from(UNITS_MAX).unwrap()).unwrap();
    let full = answer(door.clone(), request(PATH, "{}")).await;
    assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(full.headers().contains_key(RETRY_AFTER));
    drop(taken);
    answer(door.clone(), request(PATH, "{}")).await;
    assert_eq!(door.room.available_permits(), UNITS_MAX, "an answer gives its place back");
}

#[test]
fn a_request_counts_for_its_length_and_for_the_longest_if_it_does_not_say() {
    let units = |length: Option<usize>| {
        let mut headers = HeaderMap::new();
        headers.extend(length.map(|length| (CONTENT_LENGTH, HeaderValue::from(length))));
        units_of(&headers)
    };
    assert_eq!(units(Some(0)), Some(1));
    assert_eq!(units(Some(UNIT_BYTES + 1)), Some(2));
    assert_eq!(units(Some(BODY_BYTES_MAX)), Some(16));
    assert_eq!(units(Some(BODY_BYTES_MAX + 1)), None);
    assert_eq!(units(None), Some(16));
}

#[tokio::test]
async fn ready_and_alive_are_two_things() {
    let get = async |is_ready: bool, path: &str| {
        let mut request = request(path, Body::empty());
        *request.method_mut() = Method::GET;
        let ready = watch::Sender::new(is_ready).subscribe();
        platform_routes(telemetry::metrics(), ready).call(request).await.unwrap().status()
    };
    assert_eq!(get(false, "/healthz").await, StatusCode::OK);
    assert_eq!(get(false, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(true, "/readyz").await, StatusCode::OK);
    assert_eq!(get(true, PATH).await, StatusCode::NOT_FOUND, "a worker has no webhook door");
}
