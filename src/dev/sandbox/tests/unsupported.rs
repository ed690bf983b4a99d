//! Errors for what Stripe supports and the sandbox does not.

use super::{Caller, id, sandbox};

/// Parameter names and values.
type Form<'a> = &'a [(&'a str, &'a str)];

/// The error names the sandbox and has no code of Stripe's.
#[tokio::test]
async fn errors_for_unsupported_requests_name_the_sandbox() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    for (method, path) in [
        ("GET", "/v1/subscriptions"),
        ("POST", "/v1/subscriptions/sub_1"),
        ("POST", "/v1/payment_intents/pi_1/increment_authorization"),
        ("GET", "/v1/customers/search"),
        ("GET", "/v1/payment_intents/search"),
        ("POST", "/v1/charges/ch_1/capture"),
        ("GET", "/v1/balance_transactions/txn_1"),
    ] {
        let response = caller.call(method, path, &[]).await;
        let message = response.error(404, "")["message"].as_str().unwrap();
        assert!(message.starts_with("This sandbox does not have the endpoint"), "{method} {path}: {message}");
    }
    let intent = [("amount", "4900"), ("currency", "eur")];
    let cases: [(&str, Form, (&str, &str)); 6] = [
        ("/v1/payment_intents", &intent, ("transfer_group", "a")),
        ("/v1/payment_intents", &intent, ("payment_method_options[card][moto]", "true")),
        ("/v1/customers", &[], ("invoice_settings[custom_fields][0][name]", "a")),
        ("/v1/payment_methods", &[], ("type", "klarna")),
        ("/v1/webhook_endpoints", &[("url", "https://example.com")], ("enabled_events[]", "invoice.created")),
        ("/v1/refunds", &[("charge", "ch_1")], ("refund_application_fee", "true")),
    ];
    for (path, form, extra) in cases {
        let response = caller.post(path, &[form, &[extra]].concat()).await;
        let error = response.error(400, "");
        let (message, param) = (error["message"].as_str().unwrap(), error["param"].as_str().unwrap());
        assert!(message.starts_with("This sandbox does not take"), "{path} {extra:?}: {message}");
        assert!(extra.0.starts_with(param.trim_end_matches("[0]")), "{path} {extra:?}: {param}");
    }
    let paid = [
        intent.as_slice(),
        &[("payment_method", "pm_card_visa"), ("payment_method_types[]", "card"), ("confirm", "true")],
    ];
    let paid = caller.post("/v1/payment_intents", &paid.concat()).await.ok();
    let charge = format!("/v1/charges/{}", paid["latest_charge"].as_str().unwrap());
    let response = caller.get(&charge, &[("expand[]", "balance_transaction")]).await;
    let message = response.error(400, "")["message"].as_str().unwrap();
    assert!(message.starts_with("This sandbox does not keep"), "{message}");
}

/// What Stripe does not support either gets Stripe's error.
#[tokio::test]
async fn requests_unknown_to_stripe_get_stripes_error() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    for (method, path) in [("GET", "/v1/nonsense"), ("DELETE", "/v1/payment_intents/pi_1"), ("POST", "/v1/events")] {
        let response = caller.call(method, path, &[]).await;
        let message = response.error(404, "")["message"].as_str().unwrap();
        assert!(message.starts_with("Unrecognized request URL"), "{method} {path}: {message}");
    }
    caller.post("/v1/customers", &[("nonsense", "1")]).await.error(400, "parameter_unknown");
    let response = caller.post("/v1/payment_methods", &[("type", "nonsense")]).await;
    assert!(response.error(400, "")["message"].as_str().unwrap().starts_with("Invalid type"));
    let customer = id(&caller.post("/v1/customers", &[]).await.ok());
    caller.get(&format!("/v1/customers/{customer}"), &[("test_clock", "a")]).await.error(400, "parameter_unknown");
}

#[tokio::test]
async fn the_home_page_lists_what_is_unsupported() {
    let sandbox = sandbox().await;
    let page = Caller::new(&sandbox).get("/", &[]).await;
    let html = page.body.as_str().unwrap();
    for listed in ["GET /v1/customers/search", "POST /v1/refunds", "refund_application_fee", "type=us_bank_account"] {
        assert!(html.contains(&format!("<code>{listed}</code>")), "the home page does not list {listed}");
    }
    assert!(!html.contains("{{"), "no placeholder is left");
}
