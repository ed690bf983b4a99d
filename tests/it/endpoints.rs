//! A webhook endpoint that was disabled, changed or deleted at Stripe is repaired, and the events that it missed are
//! read from Stripe's events list.

use std::collections::BTreeSet;

use paybridge::app::Periods;
use paybridge::dev::sandbox::{Action, Effect, Fault, RecordedRequest};
use paybridge::grpc::proto::{Event, IntegrationState};
use serde_json::Value;
use time::Duration;

use crate::support::harness::{Harness, post_to_stripe};
use crate::support::http;
use crate::support::reconciliation::{NEVER, repaired, until_no_check_runs, until_repaired};
use crate::support::wait::{advance_until, until};

/// Only endpoints are checked.
fn endpoints_only() -> Periods {
    Periods { list_test: NEVER, sweep: NEVER, endpoint_test: Duration::HOUR, contact_max: NEVER, ..Periods::default() }
}

/// The id of the integration's endpoint, and its object at Stripe. No check is due or running: the next one finds what
/// is changed now.
async fn endpoint(harness: &mut Harness) -> (String, Option<Value>) {
    until_no_check_runs(harness).await;
    let id = harness.read_integration().await.provider_webhook_endpoint_id;
    let mut object = harness.sandbox().object(&id);
    if let Some(metadata) = object.as_mut().and_then(|object| object["metadata"].as_object_mut()) {
        metadata.remove("contact_counter");
    }
    (id, object)
}

/// All endpoints of the account at Stripe.
async fn endpoints(harness: &Harness) -> Vec<Value> {
    let response = call(harness, reqwest::Method::GET, "/v1/webhook_endpoints?limit=100").await;
    response["data"].as_array().expect("a list").clone()
}

/// Calls Stripe as the merchant, with the account's key.
async fn call(harness: &Harness, method: reqwest::Method, path: &str) -> Value {
    let request =
        http().request(method, format!("{}{path}", harness.sandbox().url())).bearer_auth(&harness.billing.key);
    let response = request.send().await.expect("a response");
    assert!(response.status().is_success(), "{path}: {}", response.status());
    serde_json::from_str(&response.text().await.expect("a body")).expect("JSON")
}

/// Checks that a webhook reports a method that is attached now.
async fn assert_webhooks_arrive(harness: &mut Harness, provider_id: &str) {
    let before = harness.methods("hooli").await.len();
    harness.sandbox().attach_in_dashboard(provider_id, "pm_card_visa").expect("the method is attached");
    until("the webhook is applied", async || (harness.methods("hooli").await.len() > before).then_some(())).await;
    harness.all_delivered().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_was_changed_at_stripe_is_repaired_and_missed_events_are_read() {
    let mut harness = Harness::with_periods("changed", endpoints_only()).await;
    let provider_id = harness.customer_without_method("hooli").await;
    harness.all_delivered().await;
    let (id, object) = endpoint(&mut harness).await;
    let original = object.expect("an endpoint");
    let before = repaired(&harness, "endpoint").await;
    let path = format!("/v1/webhook_endpoints/{id}");
    for change in ["disabled=true", "enabled_events[]=charge.failed", "url=http://127.0.0.1:1/elsewhere"] {
        post_to_stripe(&harness, &path, change).await;
        let count = harness.methods("hooli").await.len();
        harness
            .sandbox()
            .attach_in_dashboard(&provider_id, "pm_card_mastercard")
            .expect("a method that no webhook reports");
        advance_until(&mut harness, Duration::minutes(61), &format!("{change} is repaired"), async |harness| {
            (endpoint(harness).await.1.as_ref() == Some(&original)).then_some(())
        })
        .await;
        advance_until(&mut harness, Duration::seconds(20), "the missed event is read", async |harness| {
            (harness.methods("hooli").await.len() == count + 1).then_some(())
        })
        .await;
        assert_webhooks_arrive(&mut harness, &provider_id).await;
    }
    until_repaired(&harness, "endpoint", before + 3).await;
    assert_eq!(endpoints(&harness).await.len(), 1, "it is the same endpoint");
    let is_reported = harness.events().await.iter().any(|event| event.webhook_type == "payment_provider.error");
    assert!(!is_reported, "a successful repair is not reported");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_deleted_endpoint_is_created_again_by_one_prepared_request() {
    let mut harness = Harness::with_periods("deleted", endpoints_only()).await;
    let provider_id = harness.customer_without_method("hooli").await;
    harness.all_delivered().await;
    let (old, _) = endpoint(&mut harness).await;
    call(&harness, reqwest::Method::DELETE, &format!("/v1/webhook_endpoints/{old}")).await;
    // The response with the secret is lost in all attempts of one call: the same key returns it again.
    harness.cut("/v1/webhook_endpoints", 3, Effect::Done);
    harness.sandbox().clear_requests();
    let new = advance_until(&mut harness, Duration::minutes(61), "there is another endpoint", async |harness| {
        let (id, object) = endpoint(harness).await;
        object.filter(|_| id != old).map(|_| id)
    })
    .await;
    let existing = endpoints(&harness).await;
    assert_eq!(
        existing.iter().map(|endpoint| &endpoint["id"]).collect::<Vec<_>>(),
        [&new],
        "one, for any number of requests"
    );
    let keys: BTreeSet<_> =
        harness.posts("/v1/webhook_endpoints").into_iter().map(|request| request.idempotency_key).collect();
    assert_eq!(keys.len(), 1, "one prepared request");
    assert_webhooks_arrive(&mut harness, &provider_id).await;
    harness.shutdown().await;
}

/// Whether the current secret and the old one are stored, and the old endpoint, which is still to be deleted.
async fn secrets(harness: &Harness) -> (bool, bool, Option<String>) {
    let query = "SELECT sealed_webhook_secret IS NOT NULL, sealed_old_webhook_secret IS NOT NULL, \
        provider_old_endpoint_id FROM integrations";
    let row = harness.database().await.query_one(query, &[]).await.expect("a result");
    (row.get(0), row.get(1), row.get(2))
}

/// Waits until the endpoint is replaced because of its version. The old one cannot be deleted. Returns the ids of both.
async fn replaced(harness: &mut Harness) -> (String, String) {
    let (old, _) = endpoint(harness).await;
    harness.sandbox().set_endpoint_version(&old, None).expect("the version is set");
    harness
        .sandbox()
        .add_fault(Fault { times: None, ..Fault::once("DELETE", "/v1/webhook_endpoints/*", Action::Unavailable) });
    let new = advance_until(harness, Duration::minutes(61), "there is another endpoint", async |harness| {
        let (id, _) = endpoint(harness).await;
        (id != old).then_some(id)
    })
    .await;
    (old, new)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_of_another_version_is_replaced_and_both_secrets_are_valid_until_it_is_deleted() {
    let mut harness = Harness::with_periods("version", endpoints_only()).await;
    let provider_id = harness.customer_without_method("hooli").await;
    harness.all_delivered().await;
    let (old, new) = replaced(&mut harness).await;
    assert_eq!(secrets(&harness).await, (true, true, Some(old.clone())), "both are valid");
    // Both endpoints get every event, and both are acknowledged.
    assert_webhooks_arrive(&mut harness, &provider_id).await;
    harness.sandbox().clear_faults();
    advance_until(&mut harness, Duration::minutes(5), "the old one is deleted", async |harness| {
        harness.sandbox().object(&old).is_none().then_some(())
    })
    .await;
    until("its secret is deleted", async || (secrets(&harness).await == (true, false, None)).then_some(())).await;
    let remaining = endpoints(&harness).await;
    assert_eq!(remaining.iter().map(|endpoint| &endpoint["id"]).collect::<Vec<_>>(), [&new]);
    assert_webhooks_arrive(&mut harness, &provider_id).await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_also_deletes_an_endpoint_that_is_being_replaced() {
    let mut harness = Harness::with_periods("disconnected", endpoints_only()).await;
    replaced(&mut harness).await;
    harness.disconnect(false).await;
    harness.sandbox().clear_faults();
    advance_until(&mut harness, Duration::minutes(5), "it is disconnected", async |harness| {
        (harness.read_integration().await.state() == IntegrationState::Disconnected).then_some(())
    })
    .await;
    assert!(endpoints(&harness).await.is_empty(), "nothing is left at Stripe");
    assert_eq!(secrets(&harness).await, (false, false, None), "nor here");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_can_not_be_repaired_is_reported_once_and_pauses_nothing() {
    let mut harness = Harness::with_periods("not repaired", endpoints_only()).await;
    let (id, _) = endpoint(&mut harness).await;
    post_to_stripe(&harness, &format!("/v1/webhook_endpoints/{id}"), "disabled=true").await;
    harness
        .sandbox()
        .add_fault(Fault { times: None, ..Fault::once("POST", "/v1/webhook_endpoints/*", Action::Forbidden) });
    let refused = |harness: &Harness| harness.posts(&id).iter().filter(|request| request.status == Some(403)).count();
    advance_until(&mut harness, Duration::minutes(61), "the repair has failed three times", async |harness| {
        (refused(harness) >= 3).then_some(())
    })
    .await;
    let is_error = |event: &Event| event.webhook_type == "payment_provider.error";
    harness.billing.wait_for("the error", |event| is_error(event).then_some(())).await.expect("the event is emitted");
    assert_eq!(harness.events().await.iter().filter(|event| is_error(event)).count(), 1, "once");
    assert_eq!(harness.read_integration().await.state(), IntegrationState::Active, "payments continue");
    harness.sandbox().clear_faults();
    advance_until(&mut harness, Duration::minutes(61), "it is repaired", async |harness| {
        endpoint(harness).await.1.filter(|endpoint| endpoint["status"] == "enabled")
    })
    .await;
    harness.shutdown().await;
}

/// Delays the next call to the endpoints by 8 s of the clock, before or after its work, and waits until a check makes
/// it.
async fn check_in_flight(harness: &Harness, method: &str, after_work: bool) {
    let path = "/v1/webhook_endpoints";
    let slow = Action::Delay { milliseconds: 8_000, after_work };
    harness.sandbox().add_fault(Fault::once(method, path, slow));
    harness.advance(Duration::minutes(61));
    until("the call is in flight", async || {
        let is_it =
            |request: &RecordedRequest| request.method == method && request.path == path && request.status.is_none();
        harness.sandbox().requests().iter().any(is_it).then_some(())
    })
    .await;
}

/// The check gets the response about its new endpoint when nothing else is left to delete it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_created_during_a_disconnect_is_deleted() {
    let mut harness = Harness::with_periods("created late", endpoints_only()).await;
    let (old, _) = endpoint(&mut harness).await;
    call(&harness, reqwest::Method::DELETE, &format!("/v1/webhook_endpoints/{old}")).await;
    check_in_flight(&harness, "POST", false).await;
    harness.disconnect(true).await;
    let database = harness.database().await;
    until("it is disconnected", async || {
        let row = database.query_opt("SELECT FROM integrations WHERE state = 'disconnected'", &[]).await;
        row.expect("a result")
    })
    .await;
    harness.advance(Duration::seconds(9));
    advance_until(&mut harness, Duration::minutes(61), "no check is left", async |_| {
        let jobs = database.query("SELECT FROM jobs WHERE kind = 'check_endpoint'", &[]).await;
        jobs.expect("a result").is_empty().then_some(())
    })
    .await;
    assert_eq!(harness.posts("/v1/webhook_endpoints").len(), 2, "another one was created");
    assert!(endpoints(&harness).await.is_empty(), "nothing is left at Stripe");
    harness.shutdown().await;
}

/// A worker stalls past its lease while it lists endpoints. Meanwhile another worker has created the integration's
/// present endpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_worker_whose_lease_expired_deletes_no_endpoint() {
    let mut harness = Harness::with_periods("stalled", endpoints_only()).await;
    let (old, original) = endpoint(&mut harness).await;
    let original = original.expect("an endpoint");
    call(&harness, reqwest::Method::DELETE, &format!("/v1/webhook_endpoints/{old}")).await;
    check_in_flight(&harness, "GET", false).await;
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let events = original["enabled_events"].as_array().expect("events").iter();
    let mut body: Vec<String> = events.map(|event| format!("enabled_events[]={}", text(event))).collect();
    let metadata = original["metadata"].as_object().expect("metadata").iter();
    body.extend(metadata.map(|(key, value)| format!("metadata[{key}]={}", text(value))));
    body.extend(["url", "api_version"].map(|name| format!("{name}={}", text(&original[name]))));
    let created = text(&post_to_stripe(&harness, "/v1/webhook_endpoints", &body.join("&")).await["id"]);
    let database = harness.database().await;
    database
        .execute("UPDATE integrations SET provider_endpoint_id = $1", &[&created])
        .await
        .expect("the endpoint is stored");
    let take_over = "UPDATE jobs SET lease_epoch = lease_epoch + 1, lease_until = NULL WHERE kind = 'check_endpoint'";
    database.execute(take_over, &[]).await.expect("another worker has the job");
    let reads = |harness: &Harness| {
        harness
            .sandbox()
            .requests()
            .iter()
            .filter(|request| request.method == "GET" && request.path.ends_with(&created))
            .count()
    };
    until("the other worker has read it", async || (reads(&harness) > 0).then_some(())).await;
    harness.advance(Duration::seconds(9));
    until("the stalled worker has its response", async || {
        harness.sandbox().requests().iter().all(|request| request.status.is_some()).then_some(())
    })
    .await;
    let before = reads(&harness);
    advance_until(&mut harness, Duration::minutes(61), "both have checked again", async |harness| {
        (reads(harness) >= before + 2).then_some(())
    })
    .await;
    assert!(harness.sandbox().object(&created).is_some(), "it is not deleted");
    assert!(
        !harness
            .sandbox()
            .requests()
            .iter()
            .any(|request| request.method == "DELETE" && request.path.ends_with(&created))
    );
    harness.shutdown().await;
}

/// A stalled worker gets the response about its new endpoint after another worker has stored it and a disconnect has
/// begun: it must not delete it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_worker_whose_lease_expired_during_a_creation_does_not_delete_the_endpoint() {
    let mut harness = Harness::with_periods("stalled creation", endpoints_only()).await;
    let (old, _) = endpoint(&mut harness).await;
    call(&harness, reqwest::Method::DELETE, &format!("/v1/webhook_endpoints/{old}")).await;
    check_in_flight(&harness, "POST", true).await;
    let database = harness.database().await;
    let take_over = "UPDATE jobs SET lease_epoch = lease_epoch + 1, lease_until = NULL WHERE kind = 'check_endpoint'";
    database.execute(take_over, &[]).await.expect("another worker has the job");
    let created = until("it is stored", async || {
        let stored = "SELECT provider_endpoint_id FROM integrations WHERE provider_endpoint_id <> $1";
        Some(database.query_opt(stored, &[&old]).await.expect("a result")?.get::<_, String>(0))
    })
    .await;
    database.execute("UPDATE integrations SET state = 'disconnecting'", &[]).await.expect("it is disconnecting");
    harness.advance(Duration::seconds(9));
    until("the stalled worker has its response", async || {
        harness.sandbox().requests().iter().all(|request| request.status.is_some()).then_some(())
    })
    .await;
    // What follows takes longer than what the stalled worker does next; the next check is an hour later.
    harness.all_delivered().await;
    database.execute("UPDATE integrations SET state = 'active'", &[]).await.expect("it is active again");
    let reads = |harness: &Harness| {
        let requests = harness.sandbox().requests();
        requests.iter().filter(|request| request.method == "GET" && request.path.ends_with(&created)).count()
    };
    let before = reads(&harness);
    advance_until(&mut harness, Duration::minutes(61), "the other worker has checked again", async |harness| {
        (reads(harness) > before).then_some(())
    })
    .await;
    assert!(harness.sandbox().object(&created).is_some(), "it is not deleted");
    harness.shutdown().await;
}
