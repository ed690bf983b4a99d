//! SetupAttempts.

use serde_json::{Value, json};

use super::{Caller, id, sandbox};

async fn attempts(caller: &Caller, intent: &str) -> Vec<Value> {
    let list = caller.get("/v1/setup_attempts", &[("setup_intent", intent)]).await.ok();
    assert_eq!((&list["object"], &list["url"]), (&json!("list"), &json!("/v1/setup_attempts")));
    list["data"].as_array().unwrap().clone()
}

#[tokio::test]
async fn each_confirmation_is_an_attempt() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let created = caller.post("/v1/setup_intents", &[("customer", &customer)]).await.ok();
    assert_eq!(created["latest_attempt"], Value::Null);
    let intent = id(&created);
    assert_eq!(attempts(&caller, &intent).await, Vec::<Value>::new());

    let confirm = format!("/v1/setup_intents/{intent}/confirm");
    let declined = caller.post(&confirm, &[("payment_method", "pm_card_chargeDeclined")]).await;
    let open = declined.error(402, "card_declined")["setup_intent"].clone();
    caller.post(&confirm, &[("payment_method", "pm_card_visa")]).await.ok();
    let path = format!("/v1/setup_intents/{intent}");
    let done = caller.get(&path, &[("expand[]", "latest_attempt")]).await.ok();

    let found = attempts(&caller, &intent).await;
    assert_eq!(found.iter().map(|attempt| &attempt["status"]).collect::<Vec<_>>(), ["succeeded", "failed"]);
    assert_eq!(done["latest_attempt"], found[0]);
    assert_eq!(open["latest_attempt"], found[1]["id"]);
    assert_eq!(found[1]["setup_error"]["decline_code"], "generic_decline");
    let good = &found[0];
    assert!(id(good).starts_with("setatt_"), "{good:#}");
    assert_eq!((&good["object"], &good["setup_intent"]), (&json!("setup_attempt"), &json!(intent)));
    assert_eq!((&good["customer"], &good["usage"]), (&json!(customer), &json!("off_session")));
    assert_eq!((&good["payment_method"], &good["setup_error"]), (&done["payment_method"], &Value::Null));
    let details = &good["payment_method_details"];
    assert_eq!((&details["type"], &details["card"]["last4"]), (&json!("card"), &json!("4242")));
    assert_eq!(details["card"]["three_d_secure"], Value::Null);
}

#[tokio::test]
async fn an_attempt_waits_for_its_payer() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let form = [("payment_method", "pm_card_authenticationRequired"), ("confirm", "true")];
    let intent = id(&caller.post("/v1/setup_intents", &form).await.ok());
    let waiting = attempts(&caller, &intent).await;
    assert_eq!((waiting.len(), &waiting[0]["status"]), (1, &json!("requires_action")));
    sandbox.authenticate(&intent, false).unwrap_err();
    let failed = attempts(&caller, &intent).await;
    assert_eq!((failed.len(), &failed[0]["status"]), (1, &json!("failed")), "it is the same attempt");
    assert_eq!(failed[0]["setup_error"]["code"], "setup_intent_authentication_failure");

    let confirm = format!("/v1/setup_intents/{intent}/confirm");
    let again = [("payment_method", "pm_card_authenticationRequired")];
    caller.post(&confirm, &again).await.ok();
    caller.post(&confirm, &again).await.ok();
    sandbox.authenticate(&intent, true).unwrap();
    let found = attempts(&caller, &intent).await;
    let statuses: Vec<&str> = found.iter().map(|attempt| attempt["status"].as_str().unwrap()).collect();
    assert_eq!(
        statuses,
        ["succeeded", "abandoned", "failed"],
        "the second attempt was replaced before the payer saw it"
    );
    assert_eq!(found[0]["payment_method_details"]["card"]["three_d_secure"]["result"], "authenticated");

    let types = [("payment_method_types[]", "card"), ("payment_method_types[]", "sepa_debit")];
    let either = id(&caller.post("/v1/setup_intents", &[&form[..], &types].concat()).await.ok());
    let account = [
        ("type", "sepa_debit"),
        ("sepa_debit[iban]", "DE89370400440532013000"),
        ("billing_details[name]", "Jenny"),
        ("billing_details[email]", "jenny@example.com"),
    ];
    let account = caller.post("/v1/payment_methods", &account).await.ok();
    let rejected =
        caller.post(&format!("/v1/setup_intents/{either}/confirm"), &[("payment_method", &*id(&account))]).await;
    rejected.error(400, "setup_intent_mandate_invalid");
    let found = attempts(&caller, &either).await;
    let statuses: Vec<&str> = found.iter().map(|attempt| attempt["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["failed", "abandoned"], "the payer of the first attempt did not authenticate");

    let other = id(&caller.post("/v1/setup_intents", &form).await.ok());
    caller.post(&format!("/v1/setup_intents/{other}/cancel"), &[]).await.ok();
    assert_eq!(attempts(&caller, &other).await[0]["status"], "abandoned");
}

#[tokio::test]
async fn attempts_are_listed_by_setup_intent() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let missing = caller.get("/v1/setup_attempts", &[]).await;
    assert_eq!(missing.error(400, "parameter_missing")["param"], "setup_intent");
    let unknown = caller.get("/v1/setup_attempts", &[("setup_intent", "seti_none")]).await;
    assert_eq!(unknown.error(400, "resource_missing")["param"], "setup_intent");
    let intent = id(&caller.post("/v1/setup_intents", &[("description", "two attempts")]).await.ok());
    let confirm = format!("/v1/setup_intents/{intent}/confirm");
    for method in ["pm_card_chargeDeclined", "pm_card_visa"] {
        caller.post(&confirm, &[("payment_method", method)]).await;
    }
    let form = [("setup_intent", &*intent), ("limit", "1")];
    let first = caller.get("/v1/setup_attempts", &form).await.ok();
    assert_eq!((&first["data"][0]["status"], &first["has_more"]), (&json!("succeeded"), &json!(true)));
    let early = [("setup_intent", &*intent), ("created[lt]", "1")];
    assert_eq!(caller.get("/v1/setup_attempts", &early).await.ok()["data"], json!([]));
    sandbox.add_key("rk_test_reader", super::super::ACCOUNT, Some(&["rak_setup_intent_read"]));
    Caller::with_key(&sandbox, "rk_test_reader").get("/v1/setup_attempts", &form).await.ok();
}
