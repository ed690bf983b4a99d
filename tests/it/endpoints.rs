//! Webhook endpoints are disabled, changed or deleted at Stripe, and mended by themselves; what they missed is read from the
//! events list.

use std::collections::BTreeSet;
use std::time::{Duration as RealDuration, Instant};

use paybridge::app::Periods;
use paybridge::dev::sandbox::{Action, Effect, Fault, Recorded};
use paybridge::grpc::proto::{Event, IntegrationState};
use serde_json::Value;
use time::Duration;

use crate::cashier::{Cashier, at_stripe, until};
use crate::reconcile::{NEVER, mended, mended_reaches, passing, till};
use crate::support::http;

/// Only endpoints are looked at.
fn endpoints_alone() -> Periods {
    Periods { list_test: NEVER, sweep: NEVER, ..Periods::default() }
}

/// The endpoint that the integration knows of, as it is at Stripe, while no look at it is due or under way: what is changed
/// now is found by the next one.
async fn endpoint(cashier: &mut Cashier) -> (String, Option<Value>) {
    let database = cashier.database().await;
    until("no look is due or under way", || async {
        let query = "SELECT FROM jobs WHERE kind = 'check_endpoint' AND (due OR lease_until IS NOT NULL)";
        database.query(query, &[]).await.expect("a look").is_empty().then_some(())
    })
    .await;
    let id = cashier.integration_now().await.provider_webhook_endpoint_id;
    let there = cashier.sandbox().object(&id);
    (id, there)
}

/// All endpoints at Stripe of the player's account.
async fn endpoints(cashier: &Cashier) -> Vec<Value> {
    let answer = call(cashier, reqwest::Method::GET, "/v1/webhook_endpoints?limit=100").await;
    answer["data"].as_array().expect("a list").clone()
}

/// A call to Stripe of a person with the account's key.
async fn call(cashier: &Cashier, method: reqwest::Method, path: &str) -> Value {
    let request = http().request(method, format!("{}{path}", cashier.sandbox().url())).bearer_auth(&cashier.player.key);
    let answer = request.send().await.expect("the sandbox answers");
    assert!(answer.status().is_success(), "{path}: {}", answer.status());
    serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON")
}

/// A method that is attached at Stripe now is told by webhook.
async fn webhooks_flow(cashier: &mut Cashier, provider_id: &str) {
    let before = cashier.methods("hooli").await.len();
    cashier.sandbox().attach_by_hand(provider_id, "pm_card_visa").expect("the method is attached");
    let began = Instant::now();
    while cashier.methods("hooli").await.len() == before {
        assert!(began.elapsed() < RealDuration::from_secs(30), "webhooks don't flow");
        let _ = tokio::time::timeout(RealDuration::from_millis(25), std::future::pending::<()>()).await;
    }
    cashier.all_delivered().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_was_changed_at_stripe_is_put_right_and_what_it_missed_is_read() {
    let mut cashier = till("changed", endpoints_alone()).await;
    let provider_id = cashier.bare_customer("hooli").await;
    cashier.all_delivered().await;
    let (id, there) = endpoint(&mut cashier).await;
    let whole = there.expect("an endpoint");
    let before = mended(&cashier, "endpoint").await;
    let path = format!("/v1/webhook_endpoints/{id}");
    for change in ["disabled=true", "enabled_events[]=charge.failed", "url=http://127.0.0.1:1/elsewhere"] {
        at_stripe(&cashier, &path, change).await;
        let count = cashier.methods("hooli").await.len();
        cashier.sandbox().attach_by_hand(&provider_id, "pm_card_mastercard").expect("a method that no webhook tells");
        passing(&mut cashier, Duration::minutes(61), &format!("{change} is mended"), async |cashier| {
            (endpoint(cashier).await.1.as_ref() == Some(&whole)).then_some(())
        })
        .await;
        passing(&mut cashier, Duration::seconds(20), "what was missed is read", async |cashier| {
            (cashier.methods("hooli").await.len() == count + 1).then_some(())
        })
        .await;
        webhooks_flow(&mut cashier, &provider_id).await;
    }
    mended_reaches(&cashier, "endpoint", before + 3).await;
    assert_eq!(endpoints(&cashier).await.len(), 1, "it is the same one");
    let told = cashier.events().await.iter().any(|event| event.webhook_type == "payment_provider.error");
    assert!(!told, "what could be mended is not told");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_an_endpoint_that_was_deleted_is_made_anew_from_one_frozen_request() {
    let mut cashier = till("deleted", endpoints_alone()).await;
    let provider_id = cashier.bare_customer("hooli").await;
    cashier.all_delivered().await;
    let (old, _) = endpoint(&mut cashier).await;
    call(&cashier, reqwest::Method::DELETE, &format!("/v1/webhook_endpoints/{old}")).await;
    // The answer with the secret gets lost, as often as one call tries: the same key brings it again.
    cashier.cut("/v1/webhook_endpoints", 3, Effect::Done);
    cashier.sandbox().forget_requests();
    let new = passing(&mut cashier, Duration::minutes(61), "there is another endpoint", async |cashier| {
        let (id, there) = endpoint(cashier).await;
        there.filter(|_| id != old).map(|_| id)
    })
    .await;
    let made = endpoints(&cashier).await;
    assert_eq!(
        made.iter().map(|endpoint| &endpoint["id"]).collect::<Vec<_>>(),
        [&new],
        "one, however often it was asked"
    );
    let keys: BTreeSet<_> =
        cashier.posts("/v1/webhook_endpoints").into_iter().map(|request| request.idempotency_key).collect();
    assert_eq!(keys.len(), 1, "one frozen request");
    webhooks_flow(&mut cashier, &provider_id).await;
    cashier.end().await;
}

/// The integration's secrets and what is still to be deleted: the present one, the old one, and the old endpoint.
async fn secrets(cashier: &Cashier) -> (bool, bool, Option<String>) {
    let query = "SELECT sealed_webhook_secret IS NOT NULL, sealed_old_webhook_secret IS NOT NULL, \
        provider_old_endpoint_id FROM integrations";
    let row = cashier.database().await.query_one(query, &[]).await.expect("a look");
    (row.get(0), row.get(1), row.get(2))
}

/// The endpoint is of another version, and has been replaced by now, but the old one can't be deleted. Returns the old
/// one's id and the new one's.
async fn replaced(cashier: &mut Cashier) -> (String, String) {
    let (old, _) = endpoint(cashier).await;
    cashier.sandbox().set_endpoint_version(&old, None).expect("it is of the account's version");
    cashier
        .sandbox()
        .add_fault(Fault { times: None, ..Fault::once("DELETE", "/v1/webhook_endpoints/*", Action::Unavailable) });
    let new = passing(cashier, Duration::minutes(61), "there is another endpoint", async |cashier| {
        let (id, _) = endpoint(cashier).await;
        (id != old).then_some(id)
    })
    .await;
    (old, new)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_of_another_version_is_replaced_and_both_secrets_count_until_it_is_gone() {
    let mut cashier = till("version", endpoints_alone()).await;
    let provider_id = cashier.bare_customer("hooli").await;
    cashier.all_delivered().await;
    let (old, new) = replaced(&mut cashier).await;
    assert_eq!(secrets(&cashier).await, (true, true, Some(old.clone())), "both count");
    // Both post everything, and both are acknowledged.
    webhooks_flow(&mut cashier, &provider_id).await;
    cashier.sandbox().clear_faults();
    passing(&mut cashier, Duration::minutes(5), "the old one is gone", async |cashier| {
        cashier.sandbox().object(&old).is_none().then_some(())
    })
    .await;
    until("its secret is forgotten", || async { (secrets(&cashier).await == (true, false, None)).then_some(()) }).await;
    let left = endpoints(&cashier).await;
    assert_eq!(left.iter().map(|endpoint| &endpoint["id"]).collect::<Vec<_>>(), [&new]);
    webhooks_flow(&mut cashier, &provider_id).await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_removes_an_endpoint_that_was_being_replaced_too() {
    let mut cashier = till("disconnected", endpoints_alone()).await;
    replaced(&mut cashier).await;
    cashier.disconnect(false).await;
    cashier.sandbox().clear_faults();
    passing(&mut cashier, Duration::minutes(5), "it is disconnected", async |cashier| {
        (cashier.integration_now().await.state() == IntegrationState::Disconnected).then_some(())
    })
    .await;
    assert!(endpoints(&cashier).await.is_empty(), "nothing is left at Stripe");
    assert_eq!(secrets(&cashier).await, (false, false, None), "nor here");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_can_not_be_mended_is_told_once_and_pauses_nothing() {
    let mut cashier = till("not mended", endpoints_alone()).await;
    let (id, _) = endpoint(&mut cashier).await;
    at_stripe(&cashier, &format!("/v1/webhook_endpoints/{id}"), "disabled=true").await;
    cashier
        .sandbox()
        .add_fault(Fault { times: None, ..Fault::once("POST", "/v1/webhook_endpoints/*", Action::Forbidden) });
    let refused = |cashier: &Cashier| cashier.posts(&id).iter().filter(|request| request.status == Some(403)).count();
    passing(&mut cashier, Duration::minutes(61), "it was tried again and again", async |cashier| {
        (refused(cashier) >= 3).then_some(())
    })
    .await;
    let is_error = |event: &Event| event.webhook_type == "payment_provider.error";
    cashier.player.event("the error", |event| is_error(event).then_some(())).await.expect("it is told");
    assert_eq!(cashier.events().await.iter().filter(|event| is_error(event)).count(), 1, "once");
    assert_eq!(cashier.integration_now().await.state(), IntegrationState::Active, "payments go on");
    cashier.sandbox().clear_faults();
    passing(&mut cashier, Duration::minutes(61), "it is mended", async |cashier| {
        endpoint(cashier).await.1.filter(|endpoint| endpoint["status"] == "enabled")
    })
    .await;
    cashier.end().await;
}

/// Makes the next call to all endpoints take until time is moved, before its work is done or after, and lets a look come to
/// it.
async fn look_in_flight(cashier: &Cashier, method: &str, after_work: bool) {
    let path = "/v1/webhook_endpoints";
    let slow = Action::Delay { milliseconds: 8_000, after_work };
    cashier.sandbox().add_fault(Fault::once(method, path, slow));
    cashier.advance(Duration::minutes(61));
    until("the call is in flight", || async {
        let is_it = |request: &Recorded| request.method == method && request.path == path && request.status.is_none();
        cashier.sandbox().requests().iter().any(is_it).then_some(())
    })
    .await;
}

/// The look is told that its endpoint is made when nobody else is there any more who could delete it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_made_while_the_integration_goes_is_not_left_behind() {
    let mut cashier = till("made late", endpoints_alone()).await;
    let (old, _) = endpoint(&mut cashier).await;
    call(&cashier, reqwest::Method::DELETE, &format!("/v1/webhook_endpoints/{old}")).await;
    look_in_flight(&cashier, "POST", false).await;
    cashier.disconnect(true).await;
    let database = cashier.database().await;
    until("it is gone", || async {
        let gone = database.query_opt("SELECT FROM integrations WHERE state = 'disconnected'", &[]).await;
        gone.expect("a look")
    })
    .await;
    cashier.advance(Duration::seconds(9));
    passing(&mut cashier, Duration::minutes(61), "nobody looks any more", async |_| {
        let jobs = database.query("SELECT FROM jobs WHERE kind = 'check_endpoint'", &[]).await;
        jobs.expect("a look").is_empty().then_some(())
    })
    .await;
    assert_eq!(cashier.posts("/v1/webhook_endpoints").len(), 2, "another one was made");
    assert!(endpoints(&cashier).await.is_empty(), "nothing is left at Stripe");
    cashier.end().await;
}

/// A worker sleeps through its lease while it looks for endpoints that nobody knows of. Meanwhile another one has made the
/// endpoint that the integration now lives by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_worker_that_slept_through_its_lease_deletes_no_endpoint() {
    let mut cashier = till("slept", endpoints_alone()).await;
    let (old, whole) = endpoint(&mut cashier).await;
    let whole = whole.expect("an endpoint");
    call(&cashier, reqwest::Method::DELETE, &format!("/v1/webhook_endpoints/{old}")).await;
    look_in_flight(&cashier, "GET", false).await;
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let events = whole["enabled_events"].as_array().expect("events").iter();
    let mut body: Vec<String> = events.map(|event| format!("enabled_events[]={}", text(event))).collect();
    let marks = whole["metadata"].as_object().expect("marks").iter();
    body.extend(marks.map(|(key, value)| format!("metadata[{key}]={}", text(value))));
    body.extend(["url", "api_version"].map(|name| format!("{name}={}", text(&whole[name]))));
    let made = text(&at_stripe(&cashier, "/v1/webhook_endpoints", &body.join("&")).await["id"]);
    let database = cashier.database().await;
    database.execute("UPDATE integrations SET provider_endpoint_id = $1", &[&made]).await.expect("it is known");
    let taken = "UPDATE jobs SET lease_epoch = lease_epoch + 1, lease_until = NULL WHERE kind = 'check_endpoint'";
    database.execute(taken, &[]).await.expect("another worker has the job");
    let looks = |cashier: &Cashier| {
        cashier
            .sandbox()
            .requests()
            .iter()
            .filter(|request| request.method == "GET" && request.path.ends_with(&made))
            .count()
    };
    until("the other one has looked", || async { (looks(&cashier) > 0).then_some(()) }).await;
    cashier.advance(Duration::seconds(9));
    until("the sleeper is answered", || async {
        cashier.sandbox().requests().iter().all(|request| request.status.is_some()).then_some(())
    })
    .await;
    let before = looks(&cashier);
    passing(&mut cashier, Duration::minutes(61), "they have looked again", async |cashier| {
        (looks(cashier) >= before + 2).then_some(())
    })
    .await;
    assert!(cashier.sandbox().object(&made).is_some(), "it is there");
    assert!(
        !cashier.sandbox().requests().iter().any(|request| request.method == "DELETE" && request.path.ends_with(&made))
    );
    cashier.end().await;
}

/// The sleeper is told of the endpoint that it made when another worker has put it in place, and the integration is being
/// wound down: it is not the sleeper's to delete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_worker_that_slept_while_its_endpoint_was_made_does_not_delete_it() {
    let mut cashier = till("slept making", endpoints_alone()).await;
    let (old, _) = endpoint(&mut cashier).await;
    call(&cashier, reqwest::Method::DELETE, &format!("/v1/webhook_endpoints/{old}")).await;
    look_in_flight(&cashier, "POST", true).await;
    let database = cashier.database().await;
    let taken = "UPDATE jobs SET lease_epoch = lease_epoch + 1, lease_until = NULL WHERE kind = 'check_endpoint'";
    database.execute(taken, &[]).await.expect("another worker has the job");
    let made = until("it is in place", || async {
        let placed = "SELECT provider_endpoint_id FROM integrations WHERE provider_endpoint_id <> $1";
        Some(database.query_opt(placed, &[&old]).await.expect("a look")?.get::<_, String>(0))
    })
    .await;
    database.execute("UPDATE integrations SET state = 'disconnecting'", &[]).await.expect("it is to go");
    cashier.advance(Duration::seconds(9));
    until("the sleeper is answered", || async {
        cashier.sandbox().requests().iter().all(|request| request.status.is_some()).then_some(())
    })
    .await;
    // What the sleeper is about to do takes less than what comes now: it is looked at again an hour later.
    cashier.all_delivered().await;
    database.execute("UPDATE integrations SET state = 'active'", &[]).await.expect("it stays after all");
    let looks = |cashier: &Cashier| {
        let requests = cashier.sandbox().requests();
        requests.iter().filter(|request| request.method == "GET" && request.path.ends_with(&made)).count()
    };
    let before = looks(&cashier);
    passing(&mut cashier, Duration::minutes(61), "the other one has looked again", async |cashier| {
        (looks(cashier) > before).then_some(())
    })
    .await;
    assert!(cashier.sandbox().object(&made).is_some(), "it is there");
    cashier.end().await;
}
