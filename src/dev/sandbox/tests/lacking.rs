//! A gap of the sandbox's is never taken for a rule of Stripe's.

use super::{Caller, id, sandbox};

/// Names and values.
type Form<'a> = &'a [(&'a str, &'a str)];

/// What Stripe takes and the sandbox does not: the error names the sandbox, and no code of Stripe's.
#[tokio::test]
async fn what_the_sandbox_lacks_is_said_to_be_lacking() {
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
        let reply = caller.call(method, path, &[]).await;
        let message = reply.error(404, "")["message"].as_str().unwrap();
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
        let reply = caller.post(path, &[form, &[extra]].concat()).await;
        let error = reply.error(400, "");
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
    let reply = caller.get(&charge, &[("expand[]", "balance_transaction")]).await;
    let message = reply.error(400, "")["message"].as_str().unwrap();
    assert!(message.starts_with("This sandbox does not keep"), "{message}");
}

/// What Stripe has not either is refused as Stripe refuses it.
#[tokio::test]
async fn nonsense_is_still_nonsense() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    for (method, path) in [("GET", "/v1/nonsense"), ("DELETE", "/v1/payment_intents/pi_1"), ("POST", "/v1/events")] {
        let reply = caller.call(method, path, &[]).await;
        let message = reply.error(404, "")["message"].as_str().unwrap();
        assert!(message.starts_with("Unrecognized request URL"), "{method} {path}: {message}");
    }
    caller.post("/v1/customers", &[("nonsense", "1")]).await.error(400, "parameter_unknown");
    let reply = caller.post("/v1/payment_methods", &[("type", "nonsense")]).await;
    assert!(reply.error(400, "")["message"].as_str().unwrap().starts_with("Invalid type"));
    let customer = id(&caller.post("/v1/customers", &[]).await.ok());
    caller.get(&format!("/v1/customers/{customer}"), &[("test_clock", "a")]).await.error(400, "parameter_unknown");
}

#[tokio::test]
async fn the_home_page_lists_what_is_lacking() {
    let sandbox = sandbox().await;
    let page = Caller::new(&sandbox).get("/", &[]).await;
    let html = page.body.as_str().unwrap();
    for shown in ["GET /v1/customers/search", "POST /v1/refunds", "refund_application_fee", "type=us_bank_account"] {
        assert!(html.contains(&format!("<code>{shown}</code>")), "the home page does not list {shown}");
    }
    assert!(!html.contains("{{"), "no place is left open");
}
