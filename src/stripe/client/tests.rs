use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;

use super::super::scripted::{Reply, ScriptedServer, key, request, response};
use super::*;

const INTENT: &str = r#"{"id":"pi_1","object":"payment_intent","amount":4900,"currency":"eur","status":"succeeded",
    "created":1700000000,"client_secret":"pi_1_secret_abc","latest_charge":"ch_1"}"#;
const API_ERROR: &str = r#"{"error":{"type":"api_error","message":"sorry"}}"#;
const INVALID: &str = r#"{"error":{"type":"invalid_request_error","message":"no"}}"#;
const LOCKED: &str = r#"{"error":{"type":"invalid_request_error","code":"lock_timeout"}}"#;
const BODY: &str = "payment_method=pm_1&payment_method_types[0]=card&off_session=true";

fn with(status: u16, header: (&'static str, &'static str), body: &str) -> Reply {
    Reply::Response(status, vec![header], body.to_owned())
}

async fn confirm(server: &ScriptedServer) -> Result<(), Error> {
    server.client().confirm_payment_intent(&key(), "pi_1", &request(BODY)).await.map(|_| ())
}

#[tokio::test]
async fn a_post_sends_key_version_and_stored_body_unchanged() {
    let server = ScriptedServer::sequence(vec![response(200, INTENT)]).await;
    confirm(&server).await.unwrap();
    let request = &server.requests()[0];
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/v1/payment_intents/pi_1/confirm"));
    assert_eq!(request.header("authorization"), Some("Bearer sk_test_sandbox"));
    assert_eq!(request.header("stripe-version"), Some("2026-08-26.dahlia"));
    assert_eq!(request.header("idempotency-key"), Some(super::super::scripted::request(BODY).key.as_str()));
    assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert!(request.header("user-agent").unwrap().starts_with("Paybridge/"));
    assert_eq!(request.body, BODY.as_bytes());
}

#[tokio::test]
async fn p2_every_retry_sends_the_same_bytes_with_the_same_key() {
    let server = ScriptedServer::sequence(vec![Reply::Disconnect, response(503, ""), response(200, INTENT)]).await;
    confirm(&server).await.unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    for request in requests {
        assert_eq!(request.body, BODY.as_bytes());
        assert_eq!(request.header("idempotency-key"), Some(super::super::scripted::request(BODY).key.as_str()));
    }
}

/// How many requests each reply gets if it is Stripe's only one.
#[tokio::test]
async fn quick_retries_follow_stripes_rules() {
    let table = [
        (response(200, INTENT), 1),
        (response(400, INVALID), 1),
        (response(401, INVALID), 1),
        (response(402, INVALID), 1),
        (response(403, INVALID), 1),
        (response(404, INVALID), 1),
        (response(409, INVALID), 3),
        (response(429, INVALID), 1),
        (response(429, LOCKED), 3),
        (response(500, API_ERROR), 3),
        (response(502, "<html>"), 3),
        (response(302, ""), 1),
        (Reply::Disconnect, 3),
        (Reply::DisconnectInBody, 3),
        (with(500, ("Idempotent-Replayed", "true"), API_ERROR), 1),
        (with(500, ("Stripe-Should-Retry", "false"), API_ERROR), 1),
        (with(409, ("Stripe-Should-Retry", "false"), INVALID), 1),
        (with(400, ("Stripe-Should-Retry", "true"), INVALID), 3),
        (with(200, ("Stripe-Should-Retry", "true"), INTENT), 1),
    ];
    for (reply, expected) in table {
        let server = ScriptedServer::sequence(vec![reply.clone()]).await;
        drop(confirm(&server).await);
        assert_eq!(server.requests().len(), expected, "{reply:?}");
    }
}

#[tokio::test]
async fn p2_a_missing_response_is_unknown_and_never_a_refusal() {
    for reply in [
        Reply::Disconnect,
        Reply::DisconnectInBody,
        response(500, API_ERROR),
        response(200, "<html>"),
        response(302, ""),
    ] {
        let server = ScriptedServer::sequence(vec![reply.clone()]).await;
        assert_eq!(confirm(&server).await.unwrap_err().disposition(), Disposition::Unknown, "{reply:?}");
    }
    let server = ScriptedServer::sequence(vec![response(200, INTENT)]).await;
    let client = server.client();
    drop(server);
    let unreachable = client.payment_intent(&key(), "pi_1").await.unwrap_err();
    assert!(matches!(unreachable, Error::Unknown { reason: UnknownCause::Connection, .. }), "{unreachable:?}");
}

#[tokio::test]
async fn p2_a_rejected_retry_leaves_an_unknown_attempt_unknown() {
    for rejection in [response(429, INVALID), response(401, INVALID), response(403, INVALID)] {
        let server = ScriptedServer::sequence(vec![Reply::Disconnect, rejection.clone()]).await;
        let error = confirm(&server).await.unwrap_err();
        assert!(
            matches!(error, Error::Unknown { reason: UnknownCause::RetryRejected, .. }),
            "{rejection:?}: {error:?}"
        );
    }
    let server = ScriptedServer::sequence(vec![Reply::Disconnect, response(402, INVALID)]).await;
    assert_eq!(confirm(&server).await.unwrap_err().disposition(), Disposition::Refused);
    let server = ScriptedServer::sequence(vec![response(429, LOCKED), response(429, INVALID)]).await;
    assert_eq!(confirm(&server).await.unwrap_err().disposition(), Disposition::NotDone);
}

#[tokio::test]
async fn p11_a_call_without_response_times_out_as_unknown() {
    let server = ScriptedServer::sequence(vec![Reply::Silent]).await;
    let client =
        server.client_with(Timeouts { connect: RealDuration::from_secs(5), call: RealDuration::from_millis(50) });
    let error = client.payment_intent(&key(), "pi_1").await.unwrap_err();
    assert!(matches!(error, Error::Unknown { reason: UnknownCause::Timeout, .. }), "{error:?}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn p11_a_response_beyond_the_limit_is_not_read_further() {
    let server = ScriptedServer::new(|_| response(200, &" ".repeat(RESPONSE_BYTES_MAX + 1))).await;
    let error = server.client().payment_intent(&key(), "pi_1").await.unwrap_err();
    assert!(matches!(error, Error::Unknown { reason: UnknownCause::TooLong, .. }), "{error:?}");
}

#[tokio::test]
async fn an_id_cannot_change_the_route() {
    let server = ScriptedServer::sequence(vec![response(404, INVALID)]).await;
    let client = server.client();
    for id in ["", ".", "..", "cus_\n1", &"x".repeat(256)] {
        let error = client.customer(&key(), id).await.unwrap_err();
        assert_eq!(error.disposition(), Disposition::Refused, "{id}");
    }
    assert_eq!(server.requests().len(), 0);
    for (id, target) in
        [("cus_1/../../account", "/v1/customers/cus_1%2F..%2F..%2Faccount"), ("a?b#c", "/v1/customers/a%3Fb%23c")]
    {
        client.customer(&key(), id).await.unwrap_err();
        assert_eq!(server.requests().last().unwrap().target, target);
    }
}

#[tokio::test]
async fn a_key_with_a_line_break_is_not_sent() {
    let server = ScriptedServer::sequence(vec![response(200, INTENT)]).await;
    let bad = ApiKey::unlimited("sk_test_sandbox\r\nX-Other: 1".into());
    let error = server.client().payment_intent(&bad, "pi_1").await.unwrap_err();
    assert!(error.is_api_key_error());
    assert!(!format!("{error} {error:?}").contains("sk_test"));
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn a_base_url_is_http_or_https() {
    for bad in ["", "api.stripe.com", "ftp://x.test", "https://"] {
        assert!(Client::new(bad, Clock::system(), Timeouts::default()).is_err(), "{bad}");
    }
    for good in [STRIPE_URL, "http://127.0.0.1:12111/"] {
        assert!(Client::new(good, Clock::system(), Timeouts::default()).is_ok(), "{good}");
    }
}

#[test]
fn pauses_grow_and_have_jitter() {
    for (attempts, most) in [(1, 500), (2, 1_000)] {
        let pause = backoff(attempts);
        assert!(pause >= Duration::milliseconds(most / 2) && pause <= Duration::milliseconds(most));
    }
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// All log lines of all kinds of calls at the finest level, ours and the HTTP stack's.
#[tokio::test]
async fn p9_no_log_line_holds_a_key_a_body_or_a_link() {
    let captured = Captured::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(captured.clone())
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .finish();
    // With one subscriber, `tracing` asks the first thread to reach a log line whether it is enabled, and threads of
    // other tests disable it for all.
    let _second = tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish());
    let _guard = tracing::subscriber::set_default(subscriber);
    let refused = r#"{"error":{"type":"invalid_request_error","message":"Invalid API Key provided: sk_test_***box"}}"#;
    for reply in [
        with(200, ("request-id", "req_42"), INTENT),
        response(401, refused),
        response(500, refused),
        response(200, "\"pi_1_secret_abc\""),
        Reply::Disconnect,
    ] {
        let server = ScriptedServer::sequence(vec![reply]).await;
        let body = format!("{BODY}&name=Erlich");
        let outcome = server.client().confirm_payment_intent(&key(), "pi_1", &request(&body)).await;
        tracing::info!(?outcome, "a careless caller logs the outcome");
    }
    let logged = String::from_utf8(captured.0.lock().clone()).unwrap();
    assert!(logged.contains("req_42") && logged.contains("/v1/payment_intents/{id}/confirm"), "{logged}");
    for secret in ["sk_test", "_secret_", "Bearer", "Erlich", "off_session"] {
        assert!(!logged.contains(secret), "{secret} in {logged}");
    }
}
