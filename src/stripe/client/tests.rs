use std::io;
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;

use super::super::scripted::{Reply, Script, answer, key};
use super::*;

const INTENT: &str = r#"{"id":"pi_1","object":"payment_intent","amount":4900,"currency":"eur","status":"succeeded",
    "created":1700000000,"client_secret":"pi_1_secret_abc","latest_charge":"ch_1"}"#;
const API_ERROR: &str = r#"{"error":{"type":"api_error","message":"sorry"}}"#;
const INVALID: &str = r#"{"error":{"type":"invalid_request_error","message":"no"}}"#;
const LOCKED: &str = r#"{"error":{"type":"invalid_request_error","code":"lock_timeout"}}"#;
const BODY: &str = "payment_method=pm_1&payment_method_types[0]=card&off_session=true";

fn with(status: u16, header: (&'static str, &'static str), body: &str) -> Reply {
    Reply::Answer(status, vec![header], body.to_owned())
}

async fn confirm(script: &Script) -> Result<(), Error> {
    script.client().confirm_payment_intent(&key(), "pi_1", "attempt-1", BODY).await.map(|_| ())
}

#[tokio::test]
async fn a_post_carries_key_version_and_frozen_body_as_they_are() {
    let script = Script::sequence(vec![answer(200, INTENT)]).await;
    confirm(&script).await.unwrap();
    let request = &script.requests()[0];
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/v1/payment_intents/pi_1/confirm"));
    assert_eq!(request.header("authorization"), Some("Bearer sk_test_sandbox"));
    assert_eq!(request.header("stripe-version"), Some("2026-08-26.dahlia"));
    assert_eq!(request.header("idempotency-key"), Some("attempt-1"));
    assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert!(request.header("user-agent").unwrap().starts_with("Paybridge/"));
    assert_eq!(request.body, BODY.as_bytes());
}

#[tokio::test]
async fn p2_every_repetition_is_the_same_bytes_under_the_same_key() {
    let script = Script::sequence(vec![Reply::Cut, answer(503, ""), answer(200, INTENT)]).await;
    confirm(&script).await.unwrap();
    let requests = script.requests();
    assert_eq!(requests.len(), 3);
    for request in requests {
        assert_eq!(request.body, BODY.as_bytes());
        assert_eq!(request.header("idempotency-key"), Some("attempt-1"));
    }
}

/// How often each answer is asked for, when it is all that Stripe ever says.
#[tokio::test]
async fn quick_repetitions_follow_stripes_own_rules() {
    let table = [
        (answer(200, INTENT), 1),
        (answer(400, INVALID), 1),
        (answer(401, INVALID), 1),
        (answer(402, INVALID), 1),
        (answer(403, INVALID), 1),
        (answer(404, INVALID), 1),
        (answer(409, INVALID), 3),
        (answer(429, INVALID), 1),
        (answer(429, LOCKED), 3),
        (answer(500, API_ERROR), 3),
        (answer(502, "<html>"), 3),
        (answer(302, ""), 1),
        (Reply::Cut, 3),
        (Reply::CutInBody, 3),
        (with(500, ("Idempotent-Replayed", "true"), API_ERROR), 1),
        (with(500, ("Stripe-Should-Retry", "false"), API_ERROR), 1),
        (with(409, ("Stripe-Should-Retry", "false"), INVALID), 1),
        (with(400, ("Stripe-Should-Retry", "true"), INVALID), 3),
        (with(200, ("Stripe-Should-Retry", "true"), INTENT), 1),
    ];
    for (reply, expected) in table {
        let script = Script::sequence(vec![reply.clone()]).await;
        drop(confirm(&script).await);
        assert_eq!(script.requests().len(), expected, "{reply:?}");
    }
}

#[tokio::test]
async fn p2_no_answer_is_unknown_and_never_a_refusal() {
    for reply in [Reply::Cut, Reply::CutInBody, answer(500, API_ERROR), answer(200, "<html>"), answer(302, "")] {
        let script = Script::sequence(vec![reply.clone()]).await;
        assert_eq!(confirm(&script).await.unwrap_err().verdict(), Verdict::Unknown, "{reply:?}");
    }
    let script = Script::sequence(vec![answer(200, INTENT)]).await;
    let client = script.client();
    drop(script);
    let unreachable = client.payment_intent(&key(), "pi_1").await.unwrap_err();
    assert!(matches!(unreachable, Error::Unknown { reason: Doubt::Connection, .. }), "{unreachable:?}");
}

#[tokio::test]
async fn p2_a_repetition_that_is_turned_away_does_not_undo_the_doubt_about_the_first_try() {
    for turned_away in [answer(429, INVALID), answer(401, INVALID), answer(403, INVALID)] {
        let script = Script::sequence(vec![Reply::Cut, turned_away.clone()]).await;
        let error = confirm(&script).await.unwrap_err();
        assert!(matches!(error, Error::Unknown { reason: Doubt::Unrepeated, .. }), "{turned_away:?}: {error:?}");
    }
    let script = Script::sequence(vec![Reply::Cut, answer(402, INVALID)]).await;
    assert_eq!(confirm(&script).await.unwrap_err().verdict(), Verdict::Refused);
    let script = Script::sequence(vec![answer(429, LOCKED), answer(429, INVALID)]).await;
    assert_eq!(confirm(&script).await.unwrap_err().verdict(), Verdict::NotDone);
}

#[tokio::test]
async fn p11_silence_ends_in_time_and_is_unknown() {
    let script = Script::sequence(vec![Reply::Silence]).await;
    let client =
        script.client_with(Timeouts { connect: RealDuration::from_secs(5), call: RealDuration::from_millis(50) });
    let error = client.payment_intent(&key(), "pi_1").await.unwrap_err();
    assert!(matches!(error, Error::Unknown { reason: Doubt::Timeout, .. }), "{error:?}");
    assert_eq!(script.requests().len(), 1);
}

#[tokio::test]
async fn p11_an_answer_without_end_is_not_read_to_its_end() {
    let script = Script::new(|_| answer(200, &" ".repeat(LONGEST_ANSWER + 1))).await;
    let error = script.client().payment_intent(&key(), "pi_1").await.unwrap_err();
    assert!(matches!(error, Error::Unknown { reason: Doubt::TooLong, .. }), "{error:?}");
}

#[tokio::test]
async fn an_id_cannot_name_anything_but_one_object() {
    let script = Script::sequence(vec![answer(404, INVALID)]).await;
    let client = script.client();
    for id in ["", ".", "..", "cus_\n1", &"x".repeat(256)] {
        let error = client.customer(&key(), id).await.unwrap_err();
        assert_eq!(error.verdict(), Verdict::Refused, "{id}");
    }
    assert_eq!(script.requests().len(), 0);
    for (id, target) in
        [("cus_1/../../account", "/v1/customers/cus_1%2F..%2F..%2Faccount"), ("a?b#c", "/v1/customers/a%3Fb%23c")]
    {
        client.customer(&key(), id).await.unwrap_err();
        assert_eq!(script.requests().last().unwrap().target, target);
    }
}

#[tokio::test]
async fn a_key_with_a_line_break_is_not_sent() {
    let script = Script::sequence(vec![answer(200, INTENT)]).await;
    let bad = ApiKey::unpaced("sk_test_sandbox\r\nX-Other: 1".into());
    let error = script.client().payment_intent(&bad, "pi_1").await.unwrap_err();
    assert!(error.is_key_trouble());
    assert!(!format!("{error} {error:?}").contains("sk_test"));
    assert_eq!(script.requests().len(), 0);
}

#[test]
fn only_http_and_https_urls_are_bases() {
    for bad in ["", "api.stripe.com", "ftp://x.test", "https://"] {
        assert!(Client::new(bad, Clock::system(), Timeouts::default()).is_err(), "{bad}");
    }
    for good in [STRIPE_URL, "http://127.0.0.1:12111/"] {
        assert!(Client::new(good, Clock::system(), Timeouts::default()).is_ok(), "{good}");
    }
}

#[test]
fn pauses_grow_and_are_never_the_whole() {
    for (tries, most) in [(1, 500), (2, 1_000)] {
        let pause = backoff(tries);
        assert!(pause >= Duration::milliseconds(most / 2) && pause <= Duration::milliseconds(most));
    }
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
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

/// Everything that anybody logs during calls of all sorts, at the finest level, ours and the HTTP stack's.
#[tokio::test]
async fn p9_no_log_line_holds_a_key_a_body_or_a_link() {
    let captured = Captured::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(captured.clone())
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .finish();
    // While there is only one, `tracing` asks the thread that first meets a log line whether anybody listens, and threads
    // of other tests say no for us all.
    let _second = tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish());
    let _guard = tracing::subscriber::set_default(subscriber);
    let refused = r#"{"error":{"type":"invalid_request_error","message":"Invalid API Key provided: sk_test_***box"}}"#;
    for reply in [
        with(200, ("request-id", "req_42"), INTENT),
        answer(401, refused),
        answer(500, refused),
        answer(200, "\"pi_1_secret_abc\""),
        Reply::Cut,
    ] {
        let script = Script::sequence(vec![reply]).await;
        let body = format!("{BODY}&name=Erlich");
        let outcome = script.client().confirm_payment_intent(&key(), "pi_1", "attempt-1", &body).await;
        tracing::info!(?outcome, "as careless as a caller can be");
    }
    let logged = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("req_42") && logged.contains("/v1/payment_intents/{id}/confirm"), "{logged}");
    for secret in ["sk_test", "_secret_", "Bearer", "Erlich", "off_session"] {
        assert!(!logged.contains(secret), "{secret} in {logged}");
    }
}
