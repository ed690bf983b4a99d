//! Customers, payment methods, SetupIntents, lists, metadata and expansion.

use serde_json::{Value, json};

use super::{Caller, event_types, id, sandbox};

#[tokio::test]
async fn customers_are_created_updated_listed_and_deleted() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let form = [("name", "Jenny"), ("email", "jenny@example.com"), ("metadata[a]", "1"), ("metadata[b]", "2")];
    let customer = id(&caller.post("/v1/customers", &form).await.ok());
    let path = format!("/v1/customers/{customer}");
    let form = [("metadata[a]", ""), ("metadata[c]", "3"), ("name", ""), ("address[city]", "Berlin")];
    let changed = caller.post(&path, &form).await.ok();
    assert_eq!((&changed["metadata"], &changed["name"]), (&json!({ "b": "2", "c": "3" }), &Value::Null));
    assert_eq!(changed["address"]["city"], "Berlin");
    assert_eq!(caller.post(&path, &[("metadata", "")]).await.ok()["metadata"], json!({}));
    let found = caller.get("/v1/customers", &[("email", "jenny@example.com")]).await.ok();
    assert_eq!(found["data"].as_array().unwrap().len(), 1);
    let none = caller.get("/v1/customers", &[("email", "JENNY@example.com")]).await.ok();
    assert_eq!(none["data"].as_array().unwrap().len(), 0, "the filter is exact and case-sensitive");

    let method = caller.attached(&customer, "pm_card_visa").await;
    caller.call("DELETE", &path, &[]).await.ok();
    let stub = json!({ "id": customer, "object": "customer", "deleted": true });
    assert_eq!(caller.get(&path, &[]).await.ok(), stub);
    caller.call("DELETE", &path, &[]).await.error(404, "resource_missing");
    caller.post(&path, &[("name", "x")]).await.error(404, "resource_missing");
    assert_eq!(sandbox.object(&method).unwrap()["customer"], Value::Null);
    assert!(event_types(&sandbox).ends_with(&["payment_method.detached".into(), "customer.deleted".into()]));
}

#[tokio::test]
async fn the_default_method_must_be_attached_and_detaching_clears_it() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let (customer, other) = (caller.customer().await, caller.customer().await);
    let (own, foreign) =
        (caller.attached(&customer, "pm_card_visa").await, caller.attached(&other, "pm_card_visa").await);
    let path = format!("/v1/customers/{customer}");
    let default = "invoice_settings[default_payment_method]";
    caller.post(&path, &[(default, &foreign)]).await.error(400, "resource_missing");
    caller.post(&path, &[(default, &own)]).await.ok();
    let read = caller.get(&path, &[("expand[]", "invoice_settings.default_payment_method")]).await.ok();
    assert_eq!(read["invoice_settings"]["default_payment_method"]["card"]["last4"], "4242");
    sandbox.detach_in_dashboard(&own).unwrap();
    let read = caller.get(&path, &[]).await.ok();
    assert_eq!(read["invoice_settings"]["default_payment_method"], Value::Null);
    let event = sandbox.events(super::super::ACCOUNT).pop().unwrap();
    let previous = json!({ "invoice_settings": { "default_payment_method": own } });
    assert_eq!(event["data"]["previous_attributes"], previous);
    let listed = caller.get(&format!("{path}/payment_methods"), &[]).await.ok();
    assert_eq!(listed["data"].as_array().unwrap().len(), 0);
    let unowned = caller.get("/v1/payment_methods", &[("type", "card")]).await.ok();
    assert_eq!(unowned["data"].as_array().unwrap().len(), 0, "the list is empty without a customer");
}

#[tokio::test]
async fn lists_are_newest_first_and_paged() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let mut created = Vec::new();
    for _ in 0..12 {
        created.push(caller.customer().await);
    }
    let ids = |list: &Value| list["data"].as_array().unwrap().iter().map(id).collect::<Vec<_>>();
    let first = caller.get("/v1/customers", &[]).await.ok();
    created.reverse();
    assert_eq!((ids(&first), &first["has_more"]), (created[..10].to_vec(), &true.into()));
    let rest = caller.get("/v1/customers", &[("starting_after", &created[9])]).await.ok();
    assert_eq!((ids(&rest), &rest["has_more"]), (created[10..].to_vec(), &false.into()));
    let before = caller.get("/v1/customers", &[("ending_before", &created[9]), ("limit", "3")]).await.ok();
    assert_eq!((ids(&before), &before["has_more"]), (created[6..9].to_vec(), &true.into()));
}

#[tokio::test]
async fn raw_card_numbers_are_rejected() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    sandbox.add_key("sk_live_sandbox", super::super::ACCOUNT, None);
    let live = Caller::with_key(&sandbox, "sk_live_sandbox");
    for number in ["4242424242424242", "4111111111111111"] {
        let expiry = [("type", "card"), ("card[exp_month]", "1"), ("card[exp_year]", "2031"), ("card[cvc]", "123")];
        let form = [expiry.as_slice(), &[("card[number]", number)]].concat();
        let response = caller.post("/v1/payment_methods", &form).await;
        let error = response.error(402, "");
        assert_eq!((&error["type"], error.get("param")), (&json!("invalid_request_error"), None), "{error:#}");
        let message = error["message"].as_str().unwrap();
        assert!(
            message
                .starts_with("Sending credit card numbers directly to the Stripe API is generally unsafe. We suggest")
        );
        assert!(message.contains("test tokens") && !message.contains(number), "{message}");
        let response = live.post("/v1/payment_methods", &form).await;
        let message = response.error(402, "")["message"].as_str().unwrap();
        assert!(message.contains("To continue processing use Stripe.js"), "{message}");
    }
    assert_eq!(sandbox.objects("payment_method").len(), 0);
}

#[tokio::test]
async fn cards_are_created_by_token_and_bank_accounts_by_iban() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let card = caller.post("/v1/payment_methods", &[("type", "card"), ("card[token]", "tok_de")]).await.ok();
    assert_eq!(card["card"]["country"], "DE");
    caller.post("/v1/payment_methods", &[("type", "card")]).await.error(400, "parameter_missing");
    let token = [("type", "card"), ("card[token]", "tok_visa")];
    let token = caller.post("/v1/payment_methods", &token).await.ok();
    assert_eq!(token["card"]["last4"], "4242");
    let account = [
        ("type", "sepa_debit"),
        ("sepa_debit[iban]", "DE89370400440532013000"),
        ("billing_details[name]", "Jenny"),
        ("billing_details[email]", "jenny@example.com"),
    ];
    let account = caller.post("/v1/payment_methods", &account).await.ok();
    assert_eq!((&account["sepa_debit"]["last4"], &account["customer"]), (&"3000".into(), &Value::Null));
    let customer = caller.customer().await;
    let method = caller.attached(&customer, &id(&card)).await;
    assert_eq!(method, id(&card), "an existing payment method keeps its id");
    let path = format!("/v1/payment_methods/{method}");
    let changed = caller.post(&path, &[("card[exp_year]", "2033"), ("billing_details[name]", "J")]).await.ok();
    assert_eq!((&changed["card"]["exp_year"], &changed["billing_details"]["name"]), (&2033.into(), &"J".into()));
    let one = caller.get(&format!("/v1/customers/{customer}/payment_methods/{method}"), &[]).await.ok();
    assert_eq!(one["customer"], customer.as_str());
    let kinds = caller.get("/v1/payment_methods", &[("customer", &customer), ("type", "sepa_debit")]).await.ok();
    assert_eq!(kinds["data"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn setup_intents_are_confirmed_listed_and_canceled() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let form = [("customer", &*customer), ("payment_method_types[]", "card")];
    let intent = id(&caller.post("/v1/setup_intents", &form).await.ok());
    let path = format!("/v1/setup_intents/{intent}");
    caller.post(&format!("{path}/confirm"), &[]).await.error(400, "setup_intent_unexpected_state");
    let declined = caller.post(&format!("{path}/confirm"), &[("payment_method", "pm_card_chargeDeclined")]).await;
    assert_eq!(declined.error(402, "card_declined")["setup_intent"]["status"], "requires_payment_method");
    let done = caller.post(&format!("{path}/confirm"), &[("payment_method", "pm_card_visa")]).await.ok();
    assert_eq!(done["status"], "succeeded");
    caller.post(&format!("{path}/cancel"), &[]).await.error(400, "setup_intent_unexpected_state");
    let other = id(&caller.post("/v1/setup_intents", &form).await.ok());
    let reason = [("cancellation_reason", "abandoned")];
    let canceled = caller.post(&format!("/v1/setup_intents/{other}/cancel"), &reason).await.ok();
    assert_eq!((&canceled["status"], &canceled["cancellation_reason"]), (&"canceled".into(), &"abandoned".into()));
    let listed = caller.get("/v1/setup_intents", &[("customer", &customer)]).await.ok();
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_payment_in_the_dashboard_emits_events_without_a_request() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let method = caller.attached(&customer, "pm_card_visa").await;
    let form = [("amount", "4900"), ("currency", "eur"), ("payment_method_types[]", "card"), ("customer", &*customer)];
    let intent = id(&caller.post("/v1/payment_intents", &form).await.ok());
    assert_eq!(sandbox.pay_intent_in_dashboard(&intent, &method).unwrap()["status"], "succeeded");
    let event = sandbox.events(super::super::ACCOUNT).pop().unwrap();
    assert_eq!((&event["type"], &event["request"]["id"]), (&"payment_intent.succeeded".into(), &Value::Null));
    let charges = caller.get("/v1/charges", &[("payment_intent", &intent)]).await.ok();
    assert_eq!(charges["data"][0]["paid"], true);
}
