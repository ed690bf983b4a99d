//! SEPA debits: mandates, delayed settlement and failures.

use time::Duration;

use super::{Caller, Response, event_types, id, sandbox};

async fn charge(caller: &Caller, customer: &str, method: &str) -> Response {
    let form = [
        ("amount", "4900"),
        ("currency", "eur"),
        ("payment_method_types[]", "sepa_debit"),
        ("customer", customer),
        ("payment_method", method),
        ("confirm", "true"),
        ("off_session", "true"),
    ];
    caller.post("/v1/payment_intents", &form).await
}

#[tokio::test]
async fn a_debit_is_processing_for_days_and_then_succeeds() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let method = id(&sandbox.attach_in_dashboard(&customer, "DE89 3704 0044 0532 0130 00").unwrap());
    let intent = charge(&caller, &customer, &method).await.ok();
    assert_eq!((&intent["status"], &intent["amount_received"]), (&"processing".into(), &0.into()));
    assert_eq!(sandbox.ledger()[0].status, "pending");
    let path = format!("/v1/payment_intents/{}", id(&intent));
    caller.post(&format!("{path}/cancel"), &[]).await.error(400, "payment_intent_unexpected_state");
    caller.post(&format!("{path}/confirm"), &[]).await.error(400, "payment_intent_unexpected_state");
    sandbox.advance(Duration::days(4));
    assert_eq!(caller.get(&path, &[]).await.ok()["status"], "processing");
    sandbox.advance(Duration::days(2));
    let paid = caller.get(&path, &[("expand[]", "latest_charge")]).await.ok();
    assert_eq!((&paid["status"], &paid["amount_received"]), (&"succeeded".into(), &4900.into()));
    assert_eq!(paid["latest_charge"]["status"], "succeeded");
    let mandate = paid["latest_charge"]["payment_method_details"]["sepa_debit"]["mandate"].as_str().unwrap().to_owned();
    assert_eq!(caller.get(&format!("/v1/mandates/{mandate}"), &[]).await.ok()["status"], "active");
    let events = sandbox.events(super::super::ACCOUNT);
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["request"]["id"]), (&"payment_intent.succeeded".into(), &serde_json::Value::Null));
}

#[tokio::test]
async fn a_debit_fails_days_later_and_its_mandate_ends() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let method = id(&sandbox.attach_in_dashboard(&customer, "DE62370400440532013001").unwrap());
    let intent = id(&charge(&caller, &customer, &method).await.ok());
    sandbox.advance(Duration::days(5));
    let failed = caller.get(&format!("/v1/payment_intents/{intent}"), &[]).await.ok();
    assert_eq!(failed["status"], "requires_payment_method");
    assert_eq!(failed["last_payment_error"]["code"], "payment_intent_payment_attempt_failed");
    let entry = &sandbox.ledger()[0];
    assert_eq!((&*entry.status, entry.failure_code.as_deref()), ("failed", Some("incorrect_account_holder_name")));
    let event_types = event_types(&sandbox);
    assert_eq!(
        event_types[event_types.len() - 3..],
        ["charge.failed", "payment_intent.payment_failed", "mandate.updated"]
    );
}

#[tokio::test]
async fn other_test_accounts_have_their_documented_outcomes() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let run = async |iban: &str| {
        let method = id(&sandbox.attach_in_dashboard(&customer, iban).unwrap());
        charge(&caller, &customer, &method).await
    };
    let slow = id(&run("DE08370400440532013003").await.ok());
    let poor = id(&run("DE65370400440002222227").await.ok());
    let disputed = id(&run("DE35370400440532013002").await.ok());
    run("DE65370400440000343434").await.error(400, "charge_exceeds_source_limit");
    let over = run("DE27370400440000121212").await;
    let error = over.error(400, "charge_exceeds_weekly_limit");
    assert_eq!(error["payment_intent"]["status"], "requires_payment_method");
    sandbox.advance(Duration::days(6));
    let status = |intent: &str| sandbox.object(intent).unwrap()["status"].as_str().unwrap().to_owned();
    assert_eq!(
        [status(&slow), status(&poor), status(&disputed)],
        ["processing", "requires_payment_method", "succeeded"]
    );
    sandbox.advance(Duration::days(6));
    assert_eq!(status(&slow), "succeeded");
    let disputes = caller.get("/v1/disputes", &[("payment_intent", &disputed)]).await.ok();
    assert_eq!(disputes["data"][0]["status"], "lost");
}

#[tokio::test]
async fn a_debit_needs_a_mandate_and_at_most_ten_thousand_euros() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let bare = caller.attached(&customer, "pm_success_de").await;
    let rejected = charge(&caller, &customer, &bare).await;
    let error = rejected.error(400, "payment_intent_mandate_invalid");
    assert_eq!(error["payment_intent"]["status"], "requires_payment_method", "the intent exists");

    let mandated = [("payment_method", &*bare), ("mandate_data[customer_acceptance][type]", "offline")];
    let confirm = format!("/v1/payment_intents/{}/confirm", id(&error["payment_intent"]));
    assert_eq!(caller.post(&confirm, &mandated).await.ok()["status"], "processing");

    let form = [
        ("amount", "1000001"),
        ("currency", "eur"),
        ("payment_method_types[]", "sepa_debit"),
        ("customer", &*customer),
        ("payment_method", &*bare),
        ("confirm", "true"),
    ];
    caller.post("/v1/payment_intents", &form).await.error(400, "amount_too_large");
    sandbox.attach_in_dashboard(&customer, "DE00370400440532013000").unwrap_err();
}
