//! Request faults, and the control plane.

use serde_json::json;
use time::Duration;

use super::super::{Action, Effect, Fault};
use super::{Caller, sandbox};

const FORM: [(&str, &str); 4] =
    [("amount", "4900"), ("currency", "eur"), ("payment_method_types[]", "card"), ("payment_method", "pm_card_visa")];

async fn intents(caller: &Caller) -> usize {
    caller.get("/v1/payment_intents", &[]).await.ok()["data"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_connection_is_cut_before_or_after_execution() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let send = || caller.send(caller.request("POST", "/v1/payment_intents", &FORM).header("idempotency-key", "key-1"));
    sandbox.add_fault(Fault::once("POST", "/v1/payment_intents", Action::Cut { work: Effect::NotDone }));
    assert!(send().await.unwrap_err().status().is_none(), "there is no response");
    assert_eq!(intents(&caller).await, 0);
    sandbox.add_fault(Fault::once("POST", "/v1/payment_intents", Action::Cut { work: Effect::Done }));
    send().await.unwrap_err();
    assert_eq!(intents(&caller).await, 1);
    let again = send().await.unwrap();
    assert_eq!(again.header("idempotent-replayed"), "true");
    again.ok();
    assert_eq!(intents(&caller).await, 1);
    let statuses: Vec<Option<u16>> = sandbox.requests().iter().map(|request| request.status).collect();
    assert_eq!(statuses, [Some(0), Some(200), Some(0), Some(200), Some(200), Some(200)]);
}

#[tokio::test]
async fn a_request_can_be_executed_after_its_500() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let work = Effect::DoneLater { seconds: 120 };
    sandbox.add_fault(Fault::once("POST", "/v1/payment_intents", Action::ServerError { work }));
    let mut form = FORM.to_vec();
    form.push(("confirm", "true"));
    assert_eq!(caller.keyed("key-1", "/v1/payment_intents", &form).await.status, 500);
    assert!(sandbox.ledger().is_empty());
    sandbox.advance(Duration::minutes(3));
    assert_eq!(sandbox.ledger().len(), 1);
    assert_eq!(caller.keyed("key-1", "/v1/payment_intents", &form).await.status, 500, "the stored response stays");
    let event = sandbox.events(super::super::ACCOUNT).pop().unwrap();
    assert_eq!(event["request"]["idempotency_key"], "key-1");
}

#[tokio::test]
async fn after_a_cut_connection_the_key_is_in_use_until_the_request_is_executed() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let work = Effect::DoneLater { seconds: 120 };
    sandbox.add_fault(Fault::once("POST", "/v1/payment_intents", Action::Cut { work }));
    let request = caller.request("POST", "/v1/payment_intents", &FORM).header("idempotency-key", "key-1");
    caller.send(request).await.unwrap_err();
    assert_eq!(intents(&caller).await, 0);
    caller.keyed("key-1", "/v1/payment_intents", &FORM).await.error(409, "idempotency_key_in_use");
    sandbox.advance(Duration::minutes(3));
    let late = caller.keyed("key-1", "/v1/payment_intents", &FORM).await;
    assert_eq!(late.header("idempotent-replayed"), "true");
    late.ok();
    assert_eq!(intents(&caller).await, 1);
}

#[tokio::test]
async fn an_intent_is_locked_while_a_request_writes_it() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let intent = super::id(&caller.post("/v1/payment_intents", &FORM).await.ok());
    let path = format!("/v1/payment_intents/{intent}/confirm");
    sandbox.add_fault(Fault::once("POST", &path, Action::Delay { milliseconds: 3_600_000, after_work: false }));
    let slow = tokio::spawn({
        let (caller, path) = (caller.clone(), path.clone());
        async move { caller.post(&path, &[]).await }
    });
    while sandbox.requests().len() < 2 {
        tokio::task::yield_now().await;
    }
    let meanwhile = caller.post(&format!("/v1/payment_intents/{intent}/cancel"), &[]).await;
    meanwhile.error(429, "lock_timeout");
    assert_eq!(meanwhile.header("stripe-rate-limited-reason"), "");
    assert_eq!(meanwhile.header("stripe-should-retry"), "true");
    sandbox.advance(Duration::HOUR);
    assert_eq!(slow.await.unwrap().ok()["status"], "succeeded");
}

#[tokio::test]
async fn a_request_is_executed_although_its_caller_disconnects() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    sandbox.add_fault(Fault::once("POST", "/v1/customers", Action::Delay { milliseconds: 1_000, after_work: false }));
    let request = caller.request("POST", "/v1/customers", &[]).header("idempotency-key", "key-1");
    let sending = tokio::spawn(request.send());
    while sandbox.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    // Dropping the request closes its connection.
    sending.abort();
    assert!(sending.await.unwrap_err().is_cancelled());
    sandbox.advance(Duration::seconds(2));
    let again = loop {
        let again = caller.keyed("key-1", "/v1/customers", &[]).await;
        if again.status != 409 {
            break again;
        }
    };
    assert_eq!(again.header("idempotent-replayed"), "true");
}

#[tokio::test]
async fn the_control_plane_controls_the_sandbox() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = async |path: &str, body: serde_json::Value| {
        let request = http.post(format!("{}/_sandbox/{path}", sandbox.url())).body(body.to_string());
        caller.send(request).await.unwrap().ok()
    };
    let get =
        async |path: &str| caller.send(http.get(format!("{}/_sandbox/{path}", sandbox.url()))).await.unwrap().ok();
    assert!(get("").await.as_array().unwrap().len() > 10);
    let fault =
        json!({ "method": "POST", "path": "/v1/customers", "action": { "kind": "server_error", "work": "done" } });
    post("faults", fault).await;
    assert_eq!(get("faults").await["faults"].as_array().unwrap().len(), 1);
    assert_eq!(caller.post("/v1/customers", &[]).await.status, 500);
    let created = post("accounts", json!({ "id": "acct_http", "country": "FR" })).await;
    let other = Caller::with_key(&sandbox, created["key"].as_str().unwrap());
    assert_eq!(other.get("/v1/account", &[]).await.ok()["country"], "FR");
    let key = post("keys", json!({ "account": "acct_http", "scopes": ["rak_event_read"] })).await;
    let restricted = Caller::with_key(&sandbox, key["key"].as_str().unwrap());
    assert_eq!(restricted.get("/v1/account", &[]).await.status, 403);
    post("keys/revoke", json!({ "key": key["key"] })).await;
    assert_eq!(restricted.get("/v1/events", &[]).await.status, 401);

    let customer = caller.customer().await;
    let method = post(&format!("customers/{customer}/attach"), json!({ "method": "DE89370400440532013000" })).await;
    post(&format!("customers/{customer}/default"), json!({ "payment_method": method["id"] })).await;
    let paid = json!({
        "customer": customer, "payment_method": method["id"], "amount": 700, "currency": "eur", "metadata": { "a": "b" },
    });
    let intent = post("payments", paid).await;
    assert_eq!(intent["status"], "processing");
    assert_eq!(post("settle", json!({})).await["settled"], 1);
    let ledger = get("ledger").await;
    assert_eq!((&ledger[0]["status"], &ledger[0]["metadata"]["a"]), (&"succeeded".into(), &"b".into()));
    let before = get("clock").await["now"].as_i64().unwrap();
    assert!(post("advance", json!({ "seconds": 86400 })).await["now"].as_i64().unwrap() >= before + 86400);
    assert_eq!(get("requests").await[0]["status"], 500);
    post(&format!("payment_methods/{}/detach", super::id(&method)), json!({})).await;
    post(&format!("customers/{customer}/delete"), json!({})).await;
    assert_eq!(get(&format!("objects/{customer}")).await["deleted"], true);
    let unknown = http.post(format!("{}/_sandbox/nonsense", sandbox.url()));
    assert_eq!(caller.send(unknown).await.unwrap().status, 400);
}
