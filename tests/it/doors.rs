//! What may be posted to the webhook door, row by row of the table of bad input: who is told what, and what is stored.

use paybridge::dev::sandbox;
use paybridge::dev::stage::Options;
use paybridge::dev::story::Player;
use paybridge::stripe::signature;
use secrecy::SecretString;
use serde_json::json;
use time::Duration;

use crate::hands::{census, superuser, until, webhook_secret};
use crate::support::{http, scenery};

async fn post(url: &str, header: Option<String>, body: impl Into<reqwest::Body>) -> u16 {
    let mut request = http().post(url).body(body);
    if let Some(header) = header {
        request = request.header("stripe-signature", header);
    }
    request.send().await.expect("the door answers").status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_only_what_stripe_has_signed_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let state_file = folder.path().join("sandbox.json");
    let sandbox =
        sandbox::Options { state_file: Some(state_file.clone()), limits: None, ..sandbox::Options::default() };
    let scenery = scenery(Options { sandbox, ..Options::default() }).await;
    let (mut player, integration) = Player::connected(&scenery, "door").await.unwrap();
    let connected = "payment_provider.connected";
    player.event(connected, |event| (event.webhook_type == connected).then_some(())).await.unwrap();
    let secret = SecretString::from(webhook_secret(&state_file, &integration.provider_webhook_endpoint_id).await);
    let (door, now) = (&scenery.stage.servers[0].http, scenery.stage.clock.now());
    let base = format!("{door}/webhooks/stripe");
    let url = format!("{base}/{}/{}", player.organization, integration.id);
    let event = json!({
        "id": "evt_of_the_future", "object": "event", "type": "some.future_type", "created": now.unix_timestamp(),
        "data": { "object": { "id": "thing_1", "object": "thing" } },
    })
    .to_string();
    let sign = |body: &[u8], at| Some(signature::header(body, std::slice::from_ref(&secret), at));
    let by_another = || {
        let other = SecretString::from("whsec_of_somebody_else");
        Some(signature::header(event.as_bytes(), &[other], now))
    };
    let before = census(&scenery.stage).await;

    let huge = vec![b' '; 2 * 1024 * 1024];
    assert_eq!(post(&url, None, event.clone()).await, 400, "no signature");
    assert_eq!(post(&url, Some("t=now,v1=xyz".to_owned()), event.clone()).await, 400, "a malformed one");
    assert_eq!(post(&url, by_another(), event.clone()).await, 400, "signed by somebody else");
    assert_eq!(post(&url, sign(b"{}", now), event.clone()).await, 400, "another body");
    assert_eq!(post(&url, sign(event.as_bytes(), now - Duration::seconds(310)), event.clone()).await, 400, "stale");
    assert_eq!(post(&url, sign(event.as_bytes(), now + Duration::seconds(330)), event.clone()).await, 400, "too new");
    assert_eq!(post(&url, sign(&huge, now), huge.clone()).await, 413, "P11: 2 MiB");
    for no_event in ["not json", "[]", "{}", r#"{"id":"evt_1"}"#, r#"{"id":"","type":"x","created":1}"#] {
        assert_eq!(post(&url, sign(no_event.as_bytes(), now), no_event).await, 400, "{no_event}");
    }
    let stranger = uuid::Uuid::from_u128(7);
    for path in [
        format!("{}/{stranger}", player.organization),
        format!("{stranger}/{}", integration.id),
        format!("x/{}", integration.id),
    ] {
        assert_eq!(post(&format!("{base}/{path}"), sign(event.as_bytes(), now), event.clone()).await, 404, "{path}");
    }
    assert_eq!(census(&scenery.stage).await, before, "nothing is stored");

    // Two signatures, as while a secret is being replaced: one good one is enough.
    let good = sign(event.as_bytes(), now).unwrap();
    let rolled = good.replace(",v1=", &format!(",v1={},v1=", "00".repeat(32)));
    for header in [rolled, good] {
        assert_eq!(post(&url, Some(header), event.clone()).await, 200, "stored, now or since before");
    }
    let database = superuser(&scenery.stage.database_url).await;
    let reason = until("the delivery is looked at", || async {
        let sql = "SELECT reason FROM deliveries WHERE provider_event_id = 'evt_of_the_future' AND state = 'ignored'";
        let rows = database.query(sql, &[]).await.unwrap();
        rows.first().map(|row| row.get::<_, String>(0))
    })
    .await;
    assert!(!reason.is_empty(), "with the reason");
    assert_eq!(census(&scenery.stage).await["deliveries"], before["deliveries"] + 1, "once");
    scenery.stage.strike().await;
}
