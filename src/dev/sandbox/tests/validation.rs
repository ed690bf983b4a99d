//! Requests that Stripe rejects are rejected.

use super::{Caller, id, sandbox};

/// A path, a form, and the code and parameter that the error names.
type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str, &'static str);

#[tokio::test]
async fn invalid_parameters_are_rejected() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    #[rustfmt::skip]
    let cases: &[Case] = &[
        ("/v1/customers", &[("nonsense", "1")], "parameter_unknown", "nonsense"),
        ("/v1/customers", &[("address[planet]", "Mars")], "parameter_unknown", "address[planet]"),
        ("/v1/customers", &[("email", "nobody")], "email_invalid", "email"),
        ("/v1/customers", &[("address", "Mars")], "", "address"),
        ("/v1/customers", &[("name[first]", "x")], "parameter_invalid_string", "name"),
        ("/v1/customers", &[("invoice_settings[default_payment_method]", "pm_none")], "resource_missing", "invoice_settings[default_payment_method]"),
        ("/v1/customers", &[("expand[]", "nonsense")], "", "expand"),
        ("/v1/payment_intents", &[("amount", "4900")], "parameter_missing", "currency"),
        ("/v1/payment_intents", &[("amount", "49.00"), ("currency", "eur")], "parameter_invalid_integer", "amount"),
        ("/v1/payment_intents", &[("amount", ""), ("currency", "eur")], "parameter_invalid_empty", "amount"),
        ("/v1/payment_intents", &[("amount", "0"), ("currency", "eur")], "parameter_invalid_integer", "amount"),
        ("/v1/payment_intents", &[("amount", "49"), ("currency", "eur")], "amount_too_small", "amount"),
        ("/v1/payment_intents", &[("amount", "29"), ("currency", "gbp")], "amount_too_small", "amount"),
        ("/v1/payment_intents", &[("amount", "4900"), ("currency", "xxx")], "", "currency"),
        ("/v1/payment_intents", &[("amount", "4900"), ("currency", "eur"), ("customer", "cus_none")], "resource_missing", "customer"),
        ("/v1/payment_intents", &[("amount", "4900"), ("currency", "eur"), ("confirm", "maybe")], "parameter_invalid_boolean", "confirm"),
        ("/v1/payment_intents", &[("amount", "4900"), ("currency", "eur"), ("off_session", "true")], "", "off_session"),
        ("/v1/payment_intents", &[("amount", "4900"), ("currency", "eur"), ("payment_method_types[]", "cash")], "payment_method_unactivated", "payment_method_types"),
        ("/v1/payment_intents", &[("amount", "4900"), ("currency", "usd"), ("payment_method_types[]", "sepa_debit")], "payment_intent_invalid_parameter", "payment_method_types"),
        ("/v1/checkout/sessions", &[("mode", "setup"), ("payment_method_types[]", "card")], "parameter_missing", "success_url"),
        ("/v1/checkout/sessions", &[("mode", "setup"), ("success_url", "https://example.com")], "parameter_missing", "currency"),
        ("/v1/checkout/sessions", &[("mode", "holiday"), ("success_url", "https://example.com")], "", "mode"),
        ("/v1/checkout/sessions", &[("mode", "payment"), ("success_url", "https://example.com")], "parameter_missing", "line_items"),
        ("/v1/checkout/sessions", &[("mode", "setup"), ("currency", "eur"), ("success_url", "nowhere")], "url_invalid", "success_url"),
        ("/v1/checkout/sessions", &[("mode", "setup"), ("currency", "eur"), ("success_url", "https://example.com"), ("expires_at", "1")], "", "expires_at"),
        ("/v1/webhook_endpoints", &[("url", "https://example.com")], "parameter_missing", "enabled_events"),
        ("/v1/webhook_endpoints", &[("url", "https://example.com"), ("enabled_events[]", "sun.rise")], "", "enabled_events[0]"),
        ("/v1/webhook_endpoints", &[("url", "example"), ("enabled_events[]", "*")], "url_invalid", "url"),
        ("/v1/refunds", &[("charge", "ch_none")], "resource_missing", "charge"),
        ("/v1/setup_intents", &[("usage", "never")], "", "usage"),
    ];
    for (path, form, code, param) in cases {
        let response = caller.post(path, form).await;
        let error = response.error(400, code);
        assert_eq!(error["type"], "invalid_request_error", "{path} {form:?}");
        assert_eq!(error["param"].as_str().unwrap_or_default(), *param, "{path} {form:?}: {error:#}");
        assert!(response.header("request-id").starts_with("req_"));
    }
    let long = "x".repeat(501);
    let response = caller.post("/v1/customers", &[("metadata[a]", &long)]).await;
    assert_eq!(response.error(400, "")["param"], "metadata[a]");
    let event_types = super::event_types(&sandbox);
    assert!(event_types.is_empty(), "a rejected request emits no event: {event_types:?}");
}

#[tokio::test]
async fn invalid_paths_and_bodies_are_rejected() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    assert_eq!(caller.get("/v1/nonsense", &[]).await.status, 404);
    assert_eq!(caller.call("DELETE", "/v1/payment_intents/pi_1", &[]).await.status, 404);
    caller.get("/v1/customers/cus_none", &[]).await.error(404, "resource_missing");
    caller.get("/v1/customers", &[("limit", "101")]).await.error(400, "parameter_invalid_integer");
    caller.get("/v1/customers", &[("color", "red")]).await.error(400, "parameter_unknown");
    let foreign = caller.request("GET", "/v1/account", &[]).header("stripe-account", "acct_foreign");
    caller.send(foreign).await.unwrap().error(403, "account_invalid");
    let json = caller.request("POST", "/v1/customers", &[]).header("content-type", "application/json").body("{}");
    assert_eq!(caller.send(json).await.unwrap().status, 400);
}

#[tokio::test]
async fn requests_against_an_intents_status_or_customer_are_rejected() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let (customer, other) = (caller.customer().await, caller.customer().await);
    let card = caller.attached(&customer, "pm_card_visa").await;
    let form = [("amount", "4900"), ("currency", "eur"), ("payment_method_types[]", "card"), ("customer", &*customer)];
    let intent = id(&caller.post("/v1/payment_intents", &form).await.ok());
    let confirm = format!("/v1/payment_intents/{intent}/confirm");

    let empty = caller.post(&confirm, &[]).await;
    assert_eq!(empty.error(400, "payment_intent_unexpected_state")["payment_intent"]["id"], intent.as_str());
    let sepa = caller.attached(&customer, "pm_success_de").await;
    caller.post(&confirm, &[("payment_method", &sepa)]).await.error(400, "payment_intent_incompatible_payment_method");
    let foreign = caller.attached(&other, "pm_card_visa").await;
    caller.post(&confirm, &[("payment_method", &foreign)]).await.error(400, "");
    let without_customer =
        [("amount", "4900"), ("currency", "eur"), ("payment_method_types[]", "card"), ("payment_method", &*card)];
    caller.post("/v1/payment_intents", &without_customer).await.error(400, "");

    caller.post(&confirm, &[("payment_method", &card), ("off_session", "true")]).await.ok();
    caller.post(&confirm, &[("payment_method", &card)]).await.error(400, "payment_intent_unexpected_state");
    caller
        .post(&format!("/v1/payment_intents/{intent}/cancel"), &[])
        .await
        .error(400, "payment_intent_unexpected_state");
    let update = format!("/v1/payment_intents/{intent}");
    caller.post(&update, &[("amount", "100")]).await.error(400, "payment_intent_unexpected_state");
    caller.post(&update, &[("metadata[a]", "b")]).await.ok();
}

#[tokio::test]
async fn a_detached_method_cannot_be_used_again() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let card = caller.attached(&customer, "pm_card_visa").await;
    let (own, under) =
        (format!("/v1/payment_methods/{card}"), format!("/v1/customers/{customer}/payment_methods/{card}"));
    caller.get(&under, &[]).await.ok();
    caller.post(&format!("{own}/detach"), &[]).await.ok();

    let again = caller.post(&format!("{own}/detach"), &[]).await;
    let attach = caller.post(&format!("{own}/attach"), &[("customer", &customer)]).await;
    for response in [&again, &attach] {
        let error = response.error(400, "");
        assert_eq!((&error["type"], error.get("param")), (&"invalid_request_error".into(), None), "{error:#}");
    }
    assert_eq!(caller.get(&own, &[]).await.ok()["customer"], serde_json::Value::Null, "it can still be read by its id");
    let response = caller.get(&under, &[]).await;
    assert_eq!(response.error(404, "")["param"], "customer", "the method exists, but not for this customer");
    let unknown = caller.get(&format!("/v1/customers/{customer}/payment_methods/pm_none"), &[]).await;
    assert_eq!(unknown.error(404, "resource_missing")["param"], "payment_method");

    let setup = [("customer", &*customer), ("payment_method", &*card), ("confirm", "true")];
    let response = caller.post("/v1/setup_intents", &setup).await;
    assert_eq!(response.error(400, "")["param"], "payment_method", "setup would attach it again");
    assert_eq!(sandbox.object(&card).unwrap()["customer"], serde_json::Value::Null);
}

#[tokio::test]
async fn too_many_confirmations_cancel_an_intent() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let form = [("amount", "4900"), ("currency", "eur"), ("payment_method_types[]", "card")];
    let intent = id(&caller.post("/v1/payment_intents", &form).await.ok());
    let confirm = format!("/v1/payment_intents/{intent}/confirm");
    for _ in 0..30 {
        caller.post(&confirm, &[("payment_method", "pm_card_chargeDeclined")]).await.error(402, "card_declined");
    }
    let last = caller.post(&confirm, &[("payment_method", "pm_card_visa")]).await;
    assert_eq!(last.error(400, "payment_intent_unexpected_state")["payment_intent"]["status"], "canceled");
}
