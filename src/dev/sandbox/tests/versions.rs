//! API versions: the accepted ones, and what newer and older ones change.

use serde_json::{Value, json};

use super::super::{ACCOUNT, api_request::API_VERSION};
use super::{Caller, Response, id, sandbox};

const ENDIVE: &str = "2026-09-30.endive";

async fn with_version(caller: &Caller, version: &str, path: &str, form: &[(&str, &str)]) -> Response {
    caller.send(caller.request("POST", path, form).header("stripe-version", version)).await.unwrap()
}

async fn read(caller: &Caller, version: &str, path: &str) -> Response {
    caller.send(caller.request("GET", path, &[]).header("stripe-version", version)).await.unwrap()
}

#[tokio::test]
async fn published_versions_are_accepted_and_echoed() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    for version in ["2011-01-01", "2020-08-27", "2025-03-31.basil", API_VERSION, ENDIVE, "2026-10-28.endive"] {
        let response = read(&caller, version, "/v1/account").await;
        assert_eq!((response.status, response.header("stripe-version")), (200, version), "{:#}", response.body);
    }
    assert_eq!(caller.get("/v1/account", &[]).await.header("stripe-version"), API_VERSION);
    sandbox.set_account_version(ACCOUNT, "2020-08-27");
    assert_eq!(caller.get("/v1/account", &[]).await.header("stripe-version"), "2020-08-27", "the account's default");
    let rejected = read(&caller, "2024-06-20", "/v1/customers/cus_none").await;
    assert_eq!((rejected.status, rejected.header("stripe-version")), (404, "2024-06-20"));
}

#[tokio::test]
async fn unknown_versions_are_rejected() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    for version in ["2026-10-28.dahlia", "2020-08-28", "latest", "2027-01-01"] {
        let response = read(&caller, version, "/v1/account").await;
        let error = response.error(400, "");
        assert_eq!((&error["type"], error.get("param")), (&json!("invalid_request_error"), None), "{error:#}");
        assert!(error["message"].as_str().unwrap().contains(version), "{error:#}");
    }
    let preview = read(&caller, "2026-08-26.preview", "/v1/account").await;
    let message = preview.error(400, "")["message"].as_str().unwrap();
    assert!(message.contains("This sandbox does not"), "previews exist at Stripe: {message}");
}

#[tokio::test]
async fn payment_method_types_are_rejected_since_endive() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let dahlia = [("amount", "4900"), ("currency", "eur"), ("payment_method_types[]", "card")];
    let intent = id(&with_version(&caller, API_VERSION, "/v1/payment_intents", &dahlia).await.ok());
    let setup = id(&with_version(&caller, API_VERSION, "/v1/setup_intents", &dahlia[2..]).await.ok());
    let rejected: [(&str, &[(&str, &str)]); 5] = [
        ("/v1/payment_intents", &dahlia),
        (&format!("/v1/payment_intents/{intent}"), &dahlia[2..]),
        (&format!("/v1/payment_intents/{intent}/confirm"), &dahlia[2..]),
        ("/v1/setup_intents", &dahlia[2..]),
        (&format!("/v1/setup_intents/{setup}"), &dahlia[2..]),
    ];
    for version in [ENDIVE, "2026-10-28.endive"] {
        for (path, form) in rejected {
            let response = with_version(&caller, version, path, form).await;
            let error = response.error(400, "payment_method_types_no_longer_supported");
            assert_eq!(error["param"], "payment_method_types", "{path}");
        }
    }
    let session = [("mode", "setup"), ("success_url", "https://example.com"), ("payment_method_types[]", "card")];
    let response = with_version(&caller, ENDIVE, "/v1/checkout/sessions", &session).await;
    assert_eq!(response.error(400, "parameter_unknown")["param"], "payment_method_types");
    let session =
        [("mode", "setup"), ("success_url", "https://example.com"), ("allowed_payment_method_types[]", "card")];
    let created = with_version(&caller, ENDIVE, "/v1/checkout/sessions", &session).await.ok();
    assert_eq!(created["payment_method_types"], json!(["card"]));
    assert_eq!(created["allowed_payment_method_types"], json!(["card"]));
}

#[tokio::test]
async fn unusable_allowed_types_are_ignored() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let form = |currency: &'static str| {
        let types = ["card", "sepa_debit", "klarna"].map(|kind| ("allowed_payment_method_types[]", kind));
        [[("amount", "4900"), ("currency", currency)].as_slice(), &types].concat()
    };
    for (currency, usable) in [("usd", json!(["card"])), ("eur", json!(["card", "sepa_debit"]))] {
        let created = with_version(&caller, ENDIVE, "/v1/payment_intents", &form(currency)).await.ok();
        assert_eq!(created["payment_method_types"], usable, "{currency}");
        assert_eq!(created["allowed_payment_method_types"], json!(["card", "sepa_debit", "klarna"]));
    }
    let none = [("amount", "4900"), ("currency", "usd"), ("allowed_payment_method_types[]", "sepa_debit")];
    with_version(&caller, ENDIVE, "/v1/payment_intents", &none).await.error(400, "payment_intent_invalid_parameter");

    let setup = with_version(&caller, ENDIVE, "/v1/setup_intents", &form("eur")[2..]).await.ok();
    assert_eq!(setup["payment_method_types"], json!(["card", "sepa_debit"]));
    let confirm = format!("/v1/setup_intents/{}/confirm", id(&setup));
    let only_debits = [("allowed_payment_method_types[]", "sepa_debit"), ("payment_method", "pm_card_visa")];
    let rejected = with_version(&caller, ENDIVE, &confirm, &only_debits).await;
    assert_eq!(rejected.error(400, "")["param"], "payment_method");

    let both = [form("eur").as_slice(), &[("payment_method_types[]", "card")]].concat();
    with_version(&caller, API_VERSION, "/v1/payment_intents", &both).await.error(400, "");
    let too_early = with_version(&caller, "2026-06-24.dahlia", "/v1/payment_intents", &form("eur")).await;
    assert_eq!(too_early.error(400, "parameter_unknown")["param"], "allowed_payment_method_types");
}

#[tokio::test]
async fn responses_are_rendered_in_the_version_of_the_request() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let form = [
        ("amount", "4900"),
        ("currency", "eur"),
        ("payment_method_types[]", "card"),
        ("payment_method", "pm_card_visa"),
        ("confirm", "true"),
    ];
    let old = with_version(&caller, "2020-08-27", "/v1/payment_intents", &form).await.ok();
    assert_eq!((old.get("latest_charge"), &old["charges"]["data"][0]["paid"]), (None, &json!(true)));
    let listed = read(&caller, "2020-08-27", "/v1/payment_intents").await.ok();
    assert_eq!(listed["data"][0]["charges"]["data"][0]["status"], "succeeded");
    let expanded = read(&caller, "2020-08-27", "/v1/charges?expand[]=data.payment_intent").await.ok();
    let intent = &expanded["data"][0]["payment_intent"];
    assert_eq!((intent.get("latest_charge"), &intent["charges"]["data"][0]["paid"]), (None, &json!(true)));
    let new = read(&caller, API_VERSION, &format!("/v1/payment_intents/{}", id(&old))).await.ok();
    assert_eq!((&new["latest_charge"], new.get("charges")), (&old["charges"]["data"][0]["id"], None));
    let declined = [form.as_slice(), &[("payment_method", "pm_card_chargeDeclined")]].concat();
    let declined: Vec<(&str, &str)> = declined.into_iter().filter(|pair| *pair != form[3]).collect();
    let response = with_version(&caller, "2020-08-27", "/v1/payment_intents", &declined).await;
    let error: &Value = response.error(402, "card_declined");
    assert_eq!(error["payment_intent"]["charges"]["data"][0]["status"], "failed");
}
