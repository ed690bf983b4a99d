//! Legacy cards and sources.

use super::{Caller, event_types, id, sandbox};

#[tokio::test]
async fn a_legacy_card_is_a_payment_method_and_the_first_is_the_default() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let sources = format!("/v1/customers/{customer}/sources");
    let first = caller.post(&sources, &[("source", "tok_visa")]).await.ok();
    assert_eq!((first["object"].as_str(), first["brand"].as_str()), (Some("card"), Some("visa")));
    let first = id(&first);
    assert!(first.starts_with("card_"));
    let second = id(&caller.post(&sources, &[("source", "tok_mastercard")]).await.ok());
    let newer = caller.attached(&customer, "pm_card_amex").await;
    let path = format!("/v1/customers/{customer}");
    assert_eq!(caller.get(&path, &[]).await.ok()["default_source"], first.as_str());

    let method = caller.get(&format!("/v1/payment_methods/{first}"), &[]).await.ok();
    assert_eq!((method["object"].as_str(), method["type"].as_str()), (Some("payment_method"), Some("card")));
    let listed = caller.get(&format!("{path}/payment_methods"), &[("type", "card")]).await.ok();
    let listed: Vec<_> = listed["data"].as_array().unwrap().iter().map(id).collect();
    assert_eq!(listed, [newer.as_str(), second.as_str(), first.as_str()]);
    let legacy = caller.get(&sources, &[]).await.ok();
    assert_eq!(legacy["data"].as_array().unwrap().len(), 2, "a PaymentMethod is not listed");

    let intent = [
        ("amount", "4900"),
        ("currency", "eur"),
        ("customer", customer.as_str()),
        ("payment_method", first.as_str()),
        ("confirm", "true"),
        ("off_session", "true"),
    ];
    assert_eq!(caller.post("/v1/payment_intents", &intent).await.ok()["status"], "succeeded");

    let rejected = caller.post(&path, &[("default_source", newer.as_str())]).await;
    assert_eq!(rejected.error(400, "missing")["param"], "default_source");
    caller.post(&path, &[("default_source", second.as_str())]).await.ok();
    let events = sandbox.events(super::super::ACCOUNT);
    let last = events.last().unwrap();
    assert_eq!(
        (&last["type"], &last["data"]["previous_attributes"]["default_source"]),
        (&"customer.updated".into(), &first.as_str().into())
    );
    caller.post(&sources, &[("source", "tok_chargeDeclined")]).await.error(402, "card_declined");
    caller.post(&sources, &[("source", "tok_nothing")]).await.error(400, "resource_missing");
}

#[tokio::test]
async fn the_newest_remaining_card_replaces_a_deleted_default() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    caller.post("/v1/customers", &[("source", "tok_chargeDeclined")]).await.error(402, "card_declined");
    assert!(event_types(&sandbox).is_empty(), "a rejected customer creates nothing");
    let form = [("name", "Jenny Rosen"), ("source", "tok_visa")];
    let customer = caller.post("/v1/customers", &form).await.ok();
    let (customer, first) = (id(&customer), customer["default_source"].as_str().unwrap().to_owned());
    let path = format!("/v1/customers/{customer}");
    let second = id(&caller.post(&format!("{path}/sources"), &[("source", "tok_amex")]).await.ok());
    let deleted = caller.call("DELETE", &format!("{path}/sources/{first}"), &[]).await.ok();
    assert_eq!((&deleted["id"], &deleted["deleted"]), (&first.as_str().into(), &true.into()));
    assert_eq!(caller.get(&path, &[]).await.ok()["default_source"], second.as_str());
    let event_types = event_types(&sandbox);
    let expected = ["payment_method.detached", "customer.source.deleted", "customer.updated"];
    assert_eq!(event_types[event_types.len() - 3..], expected);
    caller.post(&format!("/v1/payment_methods/{second}/detach"), &[]).await.ok();
    assert!(caller.get(&path, &[]).await.ok()["default_source"].is_null());
}

#[tokio::test]
async fn a_sepa_source_can_no_longer_be_debited() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let form = [("type", "sepa_debit"), ("currency", "eur"), ("sepa_debit[iban]", "DE89370400440532013000")];
    let source = id(&caller.post("/v1/sources", &form).await.ok());
    assert!(source.starts_with("src_"));
    let bound = caller.post(&format!("/v1/customers/{customer}/sources"), &[("source", &source)]).await.ok();
    assert_eq!((bound["object"].as_str(), bound["type"].as_str()), (Some("source"), Some("sepa_debit")));
    let intent = [
        ("amount", "4900"),
        ("currency", "eur"),
        ("payment_method_types[]", "sepa_debit"),
        ("customer", customer.as_str()),
        ("payment_method", source.as_str()),
        ("confirm", "true"),
    ];
    let rejected = caller.post("/v1/payment_intents", &intent).await;
    let error = rejected.error(400, "");
    assert!(error["message"].as_str().unwrap().contains("deprecated"), "{error}");
    assert!(sandbox.ledger().is_empty());
}

#[tokio::test]
async fn a_debit_needs_a_new_mandate_after_the_old_one_ended() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let method = id(&sandbox.attach_in_dashboard(&customer, "DE62370400440532013001").unwrap());
    let form = [
        ("amount", "4900"),
        ("currency", "eur"),
        ("payment_method_types[]", "sepa_debit"),
        ("customer", customer.as_str()),
        ("payment_method", method.as_str()),
        ("confirm", "true"),
        ("off_session", "true"),
    ];
    caller.post("/v1/payment_intents", &form).await.ok();
    sandbox.advance(time::Duration::days(6));
    caller.post("/v1/payment_intents", &form).await.error(400, "payment_intent_mandate_invalid");
    let setup = [
        ("customer", customer.as_str()),
        ("payment_method", method.as_str()),
        ("payment_method_types[]", "sepa_debit"),
        ("confirm", "true"),
        ("mandate_data[customer_acceptance][type]", "offline"),
    ];
    caller.post("/v1/setup_intents", &setup).await.ok();
    assert_eq!(caller.post("/v1/payment_intents", &form).await.ok()["status"], "processing");
}
