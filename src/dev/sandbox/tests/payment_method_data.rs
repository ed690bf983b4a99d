//! `payment_method_data` and `mandate_data`: a bank account and its mandate in the request that uses them.

use serde_json::{Value, json};
use time::Duration;

use super::{Caller, id, sandbox};

/// Parameter names and values.
type Form<'a> = &'a [(&'a str, &'a str)];

/// What a payer enters for a bank account.
const ACCOUNT: [(&str, &str); 4] = [
    ("payment_method_data[type]", "sepa_debit"),
    ("payment_method_data[sepa_debit][iban]", "DE89370400440532013000"),
    ("payment_method_data[billing_details][name]", "Jenny Rosen"),
    ("payment_method_data[billing_details][email]", "jenny@example.com"),
];

/// The payer's acceptance of the mandate.
const ACCEPTED: [(&str, &str); 3] = [
    ("mandate_data[customer_acceptance][type]", "online"),
    ("mandate_data[customer_acceptance][online][ip_address]", "203.0.113.7"),
    ("mandate_data[customer_acceptance][online][user_agent]", "Browser/1"),
];

const PAYMENT: [(&str, &str); 3] = [("amount", "4900"), ("currency", "eur"), ("payment_method_types[]", "sepa_debit")];

#[tokio::test]
async fn a_debit_with_its_account_and_mandate_is_one_request() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let more = [("customer", &*customer), ("setup_future_usage", "off_session"), ("confirm", "true")];
    let form = [PAYMENT.as_slice(), &more, &ACCOUNT, &ACCEPTED].concat();
    let intent = caller.post("/v1/payment_intents", &form).await.ok();
    assert_eq!(intent["status"], "processing");
    sandbox.advance(Duration::days(6));
    let paid = caller.get(&format!("/v1/payment_intents/{}", id(&intent)), &[("expand[]", "latest_charge")]).await.ok();
    assert_eq!(paid["status"], "succeeded");
    let details = &paid["latest_charge"]["payment_method_details"]["sepa_debit"];
    let mandate = caller.get(&format!("/v1/mandates/{}", details["mandate"].as_str().unwrap()), &[]).await.ok();
    assert_eq!((&mandate["status"], &mandate["payment_method"]), (&json!("active"), &paid["payment_method"]));
    let accepted = &mandate["customer_acceptance"];
    assert_eq!(accepted["online"], json!({ "ip_address": "203.0.113.7", "user_agent": "Browser/1" }));
    let method =
        caller.get(&format!("/v1/payment_methods/{}", paid["payment_method"].as_str().unwrap()), &[]).await.ok();
    assert_eq!((&method["customer"], &method["sepa_debit"]["last4"]), (&json!(customer), &json!("3000")));
    assert_eq!(method["billing_details"]["email"], "jenny@example.com");
}

#[tokio::test]
async fn a_setup_with_its_account_and_mandate_is_one_request() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let more = [("customer", &*customer), ("payment_method_types[]", "sepa_debit"), ("confirm", "true")];
    let offline = [
        ("mandate_data[customer_acceptance][type]", "offline"),
        ("mandate_data[customer_acceptance][accepted_at]", "1590590577"),
    ];
    let done = caller.post("/v1/setup_intents", &[more.as_slice(), &ACCOUNT, &offline].concat()).await.ok();
    assert_eq!(done["status"], "succeeded");
    let mandate = caller.get(&format!("/v1/mandates/{}", done["mandate"].as_str().unwrap()), &[]).await.ok();
    let accepted = json!({ "type": "offline", "accepted_at": 1_590_590_577, "offline": {} });
    assert_eq!(mandate["customer_acceptance"], accepted);
    let methods = caller.get("/v1/payment_methods", &[("customer", &customer)]).await.ok();
    assert_eq!(methods["data"][0]["id"], done["payment_method"]);
}

#[tokio::test]
async fn an_error_for_a_missing_mandate_leaves_an_intent() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let confirm = [("confirm", "true")];
    let response = caller.post("/v1/payment_intents", &[PAYMENT.as_slice(), &ACCOUNT, &confirm].concat()).await;
    let left = id(&response.error(400, "payment_intent_mandate_invalid")["payment_intent"]);
    assert_eq!(id(&caller.get("/v1/payment_intents", &[]).await.ok()["data"][0]), left);
    let form = [ACCOUNT.as_slice(), &ACCEPTED].concat();
    let path = format!("/v1/payment_intents/{left}/confirm");
    assert_eq!(caller.post(&path, &form).await.ok()["status"], "processing", "the same intent can still be paid");

    let response = caller.post("/v1/setup_intents", &[&PAYMENT[2..], &ACCOUNT, &confirm].concat()).await;
    let left = id(&response.error(400, "setup_intent_mandate_invalid")["setup_intent"]);
    let path = format!("/v1/setup_intents/{left}/confirm");
    assert_eq!(caller.post(&path, &form).await.ok()["status"], "succeeded");
}

#[tokio::test]
async fn an_update_can_contain_the_account() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    for (path, form) in [("/v1/payment_intents", &PAYMENT[..]), ("/v1/setup_intents", &PAYMENT[2..])] {
        let intent = id(&caller.post(path, form).await.ok());
        let updated = caller.post(&format!("{path}/{intent}"), &ACCOUNT).await.ok();
        assert_eq!(updated["status"], "requires_confirmation");
        let method =
            caller.get(&format!("/v1/payment_methods/{}", updated["payment_method"].as_str().unwrap()), &[]).await;
        assert_eq!(method.ok()["type"], "sepa_debit");
    }
}

#[tokio::test]
async fn invalid_method_data_is_rejected_and_creates_nothing() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let both = [ACCOUNT.as_slice(), &[("payment_method", "pm_success_de")]].concat();
    let without_name = [&ACCOUNT[..2], &ACCOUNT[3..]].concat();
    let wrong =
        [&ACCOUNT[..1], &[("payment_method_data[sepa_debit][iban]", "DE00370400440532013000")], &ACCOUNT[2..]].concat();
    let cases: [(Form, &str, &str); 4] = [
        (&both, "", "payment_method_data"),
        (&without_name, "parameter_missing", "payment_method_data[billing_details][name]"),
        (&wrong, "invalid_bank_account_iban", "payment_method_data[sepa_debit][iban]"),
        (&[("payment_method_data[type]", "klarna")], "", "payment_method_data[type]"),
    ];
    for (data, code, param) in cases {
        for (path, own) in [("/v1/payment_intents", &PAYMENT[..]), ("/v1/setup_intents", &PAYMENT[2..])] {
            let response = caller.post(path, &[own, data].concat()).await;
            assert_eq!(response.error(400, code)["param"], param, "{path}");
        }
    }
    let klarna = [&PAYMENT[..], &[("payment_method_data[type]", "klarna")]].concat();
    let response = caller.post("/v1/payment_intents", &klarna).await;
    assert!(response.error(400, "")["message"].as_str().unwrap().starts_with("This sandbox does not take"));
    let left: Vec<Value> =
        ["payment_intent", "setup_intent", "payment_method"].map(|kind| sandbox.objects(kind)).concat();
    assert_eq!(left, Vec::<Value>::new());
}
