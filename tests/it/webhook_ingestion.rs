//! The webhook endpoint: the response to each kind of invalid request, and what is stored.

use paybridge::dev::sandbox;
use paybridge::dev::scenarios::BillingClient;
use paybridge::dev::test_environment::Options;
use paybridge::stripe::signature;
use secrecy::SecretString;
use serde_json::json;
use time::Duration;

use crate::support::sql::{row_counts, superuser};
use crate::support::wait::until;
use crate::support::webhooks::webhook_secret;
use crate::support::{context, http};

async fn post(url: &str, header: Option<String>, body: impl Into<reqwest::Body>) -> u16 {
    let mut request = http().post(url).body(body);
    if let Some(header) = header {
        request = request.header("stripe-signature", header);
    }
    request.send().await.expect("a response").status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_only_what_stripe_has_signed_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let state_file = folder.path().join("sandbox.json");
    let sandbox =
        sandbox::Options { state_file: Some(state_file.clone()), limits: None, ..sandbox::Options::default() };
    let context = context(Options { sandbox, ..Options::default() }).await;
    let (mut billing, integration) = BillingClient::connected(&context, "webhooks").await.unwrap();
    let connected = "payment_provider.connected";
    billing.wait_for(connected, |event| (event.webhook_type == connected).then_some(())).await.unwrap();
    let secret = SecretString::from(webhook_secret(&state_file, &integration.provider_webhook_endpoint_id).await);
    let (http, now) = (&context.environment.servers[0].http, context.environment.clock.now());
    let base = format!("{http}/webhooks/stripe");
    let url = format!("{base}/{}/{}", billing.organization, integration.id);
    let event = json!({
        "id": "evt_of_the_future", "object": "event", "type": "some.future_type", "created": now.unix_timestamp(),
        "data": { "object": { "id": "thing_1", "object": "thing" } },
    })
    .to_string();
    let sign = |body: &[u8], at| Some(signature::header(body, std::slice::from_ref(&secret), at));
    let signed_by_another = || {
        let other = SecretString::from("whsec_of_another_endpoint");
        Some(signature::header(event.as_bytes(), &[other], now))
    };
    let before = row_counts(&context.environment).await;

    let huge = vec![b' '; 2 * 1024 * 1024];
    assert_eq!(post(&url, None, event.clone()).await, 400, "no signature");
    assert_eq!(post(&url, Some("t=now,v1=xyz".to_owned()), event.clone()).await, 400, "a malformed signature");
    assert_eq!(post(&url, signed_by_another(), event.clone()).await, 400, "signed with another secret");
    assert_eq!(post(&url, sign(b"{}", now), event.clone()).await, 400, "another body");
    assert_eq!(post(&url, sign(event.as_bytes(), now - Duration::seconds(310)), event.clone()).await, 400, "stale");
    assert_eq!(post(&url, sign(event.as_bytes(), now + Duration::seconds(330)), event.clone()).await, 400, "too new");
    assert_eq!(post(&url, sign(&huge, now), huge.clone()).await, 413, "P11: 2 MiB");
    for no_event in ["not json", "[]", "{}", r#"{"id":"evt_1"}"#, r#"{"id":"","type":"x","created":1}"#] {
        assert_eq!(post(&url, sign(no_event.as_bytes(), now), no_event).await, 400, "{no_event}");
    }
    let unknown_id = uuid::Uuid::from_u128(7);
    for path in [
        format!("{}/{unknown_id}", billing.organization),
        format!("{unknown_id}/{}", integration.id),
        format!("x/{}", integration.id),
    ] {
        assert_eq!(post(&format!("{base}/{path}"), sign(event.as_bytes(), now), event.clone()).await, 404, "{path}");
    }
    assert_eq!(row_counts(&context.environment).await, before, "nothing is stored");

    // Two signatures, as during the replacement of a secret: one valid signature is enough.
    let valid = sign(event.as_bytes(), now).unwrap();
    let rotated = valid.replace(",v1=", &format!(",v1={},v1=", "00".repeat(32)));
    for header in [rotated, valid] {
        assert_eq!(post(&url, Some(header), event.clone()).await, 200, "stored, or known already");
    }
    let database = superuser(&context.environment.database_url).await;
    let reason = until("the delivery is ignored", async || {
        let sql = "SELECT reason FROM deliveries WHERE provider_event_id = 'evt_of_the_future' AND state = 'ignored'";
        let rows = database.query(sql, &[]).await.unwrap();
        rows.first().map(|row| row.get::<_, String>(0))
    })
    .await;
    assert!(!reason.is_empty(), "with the reason");
    assert_eq!(row_counts(&context.environment).await["deliveries"], before["deliveries"] + 1, "once");
    context.environment.shutdown().await;
}
