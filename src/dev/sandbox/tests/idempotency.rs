//! Idempotency keys, by Stripe's rules.

use time::Duration;

use super::super::{Action, Effect, Fault};
use super::{Caller, id, sandbox};

const INTENT: [(&str, &str); 3] = [("amount", "4900"), ("currency", "eur"), ("payment_method_types[]", "card")];

#[tokio::test]
async fn the_same_request_gets_the_stored_response_and_is_executed_once() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let first = caller.keyed("key-1", "/v1/payment_intents", &INTENT).await;
    let again = caller.keyed("key-1", "/v1/payment_intents", &INTENT).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.header("original-request"), first.header("request-id"));
    assert_ne!(again.header("request-id"), first.header("request-id"));
    assert_eq!(first.header("idempotent-replayed"), "");
    assert_eq!(
        first.header("original-request"),
        first.header("request-id"),
        "the first response names its own request"
    );
    assert_eq!(first.body, again.body);
    assert_eq!(caller.get("/v1/payment_intents", &[]).await.ok()["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_declined_charge_is_replayed() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let mut form = INTENT.to_vec();
    form.extend([("payment_method", "pm_card_chargeDeclined"), ("confirm", "true")]);
    let first = caller.keyed("key-1", "/v1/payment_intents", &form).await;
    first.error(402, "card_declined");
    assert_eq!(first.header("original-request"), first.header("request-id"));
    let again = caller.keyed("key-1", "/v1/payment_intents", &form).await;
    assert_eq!((again.status, &again.body), (402, &first.body));
    assert_eq!(sandbox.ledger().len(), 1);
}

#[tokio::test]
async fn another_request_under_the_key_is_an_error() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    caller.keyed("key-1", "/v1/payment_intents", &INTENT).await.ok();
    let other = caller.keyed("key-1", "/v1/payment_intents", &[("amount", "1"), ("currency", "eur")]).await;
    assert_eq!(other.error(400, "")["type"], "idempotency_error");
    let elsewhere = caller.keyed("key-1", "/v1/customers", &[]).await;
    assert_eq!(elsewhere.error(400, "")["type"], "idempotency_error");
}

#[tokio::test]
async fn a_request_that_was_not_executed_is_not_stored() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    caller.keyed("key-1", "/v1/payment_intents", &[("amount", "4900")]).await.error(400, "parameter_missing");
    caller.keyed("key-1", "/v1/payment_intents", &INTENT).await.ok();
    sandbox.add_fault(Fault::once("POST", "/v1/customers", Action::RateLimit { reason: "endpoint-rate".into() }));
    let limited = caller.keyed("key-2", "/v1/customers", &[]).await;
    limited.error(429, "rate_limit");
    assert_eq!(limited.header("stripe-rate-limited-reason"), "endpoint-rate");
    let wrong = Caller::with_key(&sandbox, "sk_test_wrong").keyed("key-2", "/v1/customers", &[]).await;
    assert_eq!(wrong.status, 401);
    let done = caller.keyed("key-2", "/v1/customers", &[]).await;
    assert_eq!(done.header("idempotent-replayed"), "");
    done.ok();
}

#[tokio::test]
async fn a_500_is_stored_whether_the_request_was_executed_or_not() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    for (key, work, done) in [("key-1", Effect::NotDone, 0), ("key-2", Effect::Done, 1)] {
        sandbox.add_fault(Fault::once("POST", "/v1/payment_intents", Action::ServerError { work }));
        assert_eq!(caller.keyed(key, "/v1/payment_intents", &INTENT).await.status, 500);
        let again = caller.keyed(key, "/v1/payment_intents", &INTENT).await;
        assert_eq!((again.status, again.header("idempotent-replayed")), (500, "true"));
        let created = caller.get("/v1/payment_intents", &[]).await.ok();
        assert_eq!(created["data"].as_array().unwrap().len(), done, "{work:?}");
    }
}

#[tokio::test]
async fn a_key_expires_after_24_hours() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let first = id(&caller.keyed("key-1", "/v1/customers", &[]).await.ok());
    sandbox.advance(Duration::hours(23));
    assert_eq!(id(&caller.keyed("key-1", "/v1/customers", &[]).await.ok()), first);
    sandbox.advance(Duration::hours(2));
    assert_ne!(id(&caller.keyed("key-1", "/v1/customers", &[]).await.ok()), first);
}

#[tokio::test]
async fn a_key_is_in_use_while_its_request_is_in_progress() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let hour = 60 * 60 * 1000;
    sandbox.add_fault(Fault::once("POST", "/v1/customers", Action::Delay { milliseconds: hour, after_work: false }));
    let slow = tokio::spawn({
        let caller = caller.clone();
        async move { caller.keyed("key-1", "/v1/customers", &[]).await }
    });
    while sandbox.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    let meanwhile = caller.keyed("key-1", "/v1/customers", &[]).await;
    meanwhile.error(409, "idempotency_key_in_use");
    sandbox.advance(Duration::HOUR);
    let first = id(&slow.await.unwrap().ok());
    assert_eq!(id(&caller.keyed("key-1", "/v1/customers", &[]).await.ok()), first);
}

#[tokio::test]
async fn keys_belong_to_an_account_and_gets_ignore_them() {
    let sandbox = sandbox().await;
    let other = sandbox.add_account("acct_other", "FR", "eur");
    let first = Caller::new(&sandbox).keyed("key-1", "/v1/customers", &[]).await.ok();
    let second = Caller::with_key(&sandbox, &other).keyed("key-1", "/v1/customers", &[]).await.ok();
    assert_ne!(first["id"], second["id"]);
    let caller = Caller::new(&sandbox);
    assert_eq!(caller.post("/v1/customers", &[]).await.header("original-request"), "", "there is no key");
    let listed =
        caller.send(caller.request("GET", "/v1/customers", &[]).header("idempotency-key", "key-1")).await.unwrap();
    assert_eq!(listed.header("original-request"), "");
    assert_eq!(listed.ok()["data"].as_array().unwrap().len(), 2);
}
