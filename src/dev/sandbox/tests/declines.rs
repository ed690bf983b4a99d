//! The outcome of charges of each test card.

use serde_json::Value;

use super::{Caller, event_types, id, sandbox};

/// Method, status, code, decline code, advice, parameter.
const DECLINES: &[(&str, &str, &str, &str, &str)] = &[
    ("pm_card_chargeDeclined", "card_declined", "generic_decline", "try_again_later", ""),
    ("pm_card_visa_chargeDeclined", "card_declined", "generic_decline", "try_again_later", ""),
    ("pm_card_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds", "try_again_later", ""),
    ("pm_card_chargeDeclinedLostCard", "card_declined", "lost_card", "do_not_try_again", ""),
    ("pm_card_chargeDeclinedStolenCard", "card_declined", "stolen_card", "do_not_try_again", ""),
    ("pm_card_chargeDeclinedExpiredCard", "expired_card", "expired_card", "confirm_card_data", "exp_month"),
    ("pm_card_chargeDeclinedIncorrectCvc", "incorrect_cvc", "incorrect_cvc", "confirm_card_data", "cvc"),
    ("pm_card_chargeDeclinedProcessingError", "processing_error", "processing_error", "try_again_later", ""),
    (
        "pm_card_visa_chargeDeclinedVelocityLimitExceeded",
        "card_declined",
        "card_velocity_exceeded",
        "try_again_later",
        "",
    ),
    ("pm_card_chargeDeclinedFraudulent", "card_declined", "fraudulent", "", ""),
    ("pm_card_radarBlock", "card_declined", "fraudulent", "", ""),
];

const INTENT: [(&str, &str); 3] = [("amount", "4900"), ("currency", "eur"), ("payment_method_types[]", "card")];

#[tokio::test]
async fn each_declining_card_has_its_code_and_another_card_pays_the_same_intent() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    for (method, code, decline_code, advice, param) in DECLINES {
        let mut form = INTENT.to_vec();
        form.extend([("payment_method", *method), ("confirm", "true")]);
        let response = caller.post("/v1/payment_intents", &form).await;
        let error = response.error(402, code);
        assert_eq!(error["type"], "card_error");
        for (field, expected) in [("decline_code", decline_code), ("advice_code", advice), ("param", param)] {
            assert_eq!(error[field].as_str().unwrap_or_default(), *expected, "{method} {field}");
        }
        let intent = &error["payment_intent"];
        assert_eq!(intent["status"], "requires_payment_method", "{method}");
        assert_eq!(intent["last_payment_error"]["code"], *code);
        assert_eq!(intent["latest_charge"], error["charge"]);
        let charge = sandbox.object(error["charge"].as_str().unwrap()).unwrap();
        assert_eq!(charge["status"], "failed");
        assert_eq!(charge["outcome"]["type"] == "blocked", *method == "pm_card_radarBlock");

        let confirm = format!("/v1/payment_intents/{}/confirm", id(intent));
        let paid = caller.post(&confirm, &[("payment_method", "pm_card_visa")]).await.ok();
        assert_eq!(paid["status"], "succeeded", "{method}");
        let (attach, customer) = (format!("/v1/payment_methods/{method}/attach"), caller.customer().await);
        caller.post(&attach, &[("customer", &customer)]).await.error(402, code);
    }
    let succeeded = sandbox.ledger().iter().filter(|entry| entry.status == "succeeded").count();
    assert_eq!(succeeded, DECLINES.len(), "one charge for each intent");
}

#[tokio::test]
async fn attachment_and_setup_decline_with_the_same_codes() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    for (method, code, decline_code, advice, param) in DECLINES {
        let attach = caller.post(&format!("/v1/payment_methods/{method}/attach"), &[("customer", &customer)]).await;
        let form = [("customer", &*customer), ("payment_method", *method), ("confirm", "true")];
        let set_up = caller.post("/v1/setup_intents", &form).await;
        for response in [attach, set_up] {
            let error = response.error(402, code);
            for (field, expected) in [("decline_code", decline_code), ("advice_code", advice), ("param", param)] {
                assert_eq!(error[field].as_str().unwrap_or_default(), *expected, "{method} {field}");
            }
        }
    }
    let listed = caller.get(&format!("/v1/customers/{customer}/payment_methods"), &[]).await.ok();
    assert_eq!(listed["data"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn a_card_that_declines_only_charges_can_be_attached() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let method = caller.attached(&customer, "pm_card_chargeCustomerFail").await;
    let mut form = INTENT.to_vec();
    form.extend([("customer", &*customer), ("payment_method", &*method), ("confirm", "true"), ("off_session", "true")]);
    caller.post("/v1/payment_intents", &form).await.error(402, "card_declined");
    let event_types = event_types(&sandbox);
    assert_eq!(
        event_types[event_types.len() - 3..],
        ["payment_intent.created", "charge.failed", "payment_intent.payment_failed"]
    );
}

async fn confirmed(caller: &Caller, customer: &str, method: &str, more: &[(&str, &str)]) -> super::Response {
    let mut form = INTENT.to_vec();
    form.extend([("customer", customer), ("payment_method", method), ("confirm", "true")]);
    form.extend(more);
    caller.post("/v1/payment_intents", &form).await
}

#[tokio::test]
async fn a_card_that_requires_authentication_is_declined_off_session() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let method = caller.attached(&customer, "pm_card_authenticationRequired").await;
    let response = confirmed(&caller, &customer, &method, &[("off_session", "true")]).await;
    let error = response.error(402, "authentication_required");
    assert_eq!(error["decline_code"], "authentication_required");
    let intent = id(&error["payment_intent"]);

    let on_session = [("payment_method", &*method), ("return_url", "https://example.com/back")];
    let requested = caller.post(&format!("/v1/payment_intents/{intent}/confirm"), &on_session).await.ok();
    assert_eq!(requested["status"], "requires_action");
    assert_eq!(requested["next_action"]["type"], "redirect_to_url");
    let page = requested["next_action"]["redirect_to_url"]["url"].as_str().unwrap();
    assert_eq!(page, format!("{}/3ds/{intent}", sandbox.url()));

    let failed = sandbox.authenticate(&intent, false).unwrap_err();
    assert!(failed.to_string().contains("failed authentication"), "{failed}");
    let known = sandbox.object(&intent).unwrap();
    assert_eq!(known["last_payment_error"]["code"], "payment_intent_authentication_failure");
    caller.post(&format!("/v1/payment_intents/{intent}/confirm"), &on_session).await.ok();
    assert_eq!(sandbox.authenticate(&intent, true).unwrap()["status"], "succeeded");

    let response = confirmed(&caller, &customer, &method, &[("error_on_requires_action", "true")]).await;
    assert_eq!(response.error(402, "authentication_required")["decline_code"], "authentication_not_handled");
}

#[tokio::test]
async fn other_cards_that_require_authentication() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let on_session_only = caller.attached(&customer, "pm_card_authenticationRequiredSetupForOffSession").await;
    let paid = confirmed(&caller, &customer, &on_session_only, &[("off_session", "true")]).await.ok();
    assert_eq!(paid["status"], "succeeded");
    assert_eq!(confirmed(&caller, &customer, &on_session_only, &[]).await.ok()["status"], "requires_action");

    for (method, code) in [
        ("pm_card_authenticationRequiredChargeDeclinedInsufficientFunds", "insufficient_funds"),
        ("pm_card_threeDSecureRequiredChargeDeclined", "generic_decline"),
    ] {
        let requested = confirmed(&caller, &customer, method, &[]).await.ok();
        assert_eq!(requested["status"], "requires_action", "{method}");
        sandbox.authenticate(&id(&requested), true).unwrap_err();
        let known = sandbox.object(&id(&requested)).unwrap();
        assert_eq!(known["last_payment_error"]["decline_code"], code);
    }
    confirmed(&caller, &customer, "pm_card_threeDSecureRequiredProcessingError", &[]).await.error(402, "card_declined");
}

#[tokio::test]
async fn a_card_that_was_set_up_succeeds_off_session() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let form =
        [("customer", &*customer), ("payment_method", "pm_card_authenticationRequiredOnSetup"), ("confirm", "true")];
    let setup = caller.post("/v1/setup_intents", &form).await.ok();
    assert_eq!(setup["status"], "requires_action");
    sandbox.authenticate(&id(&setup), true).unwrap();
    let setup: Value = caller.get(&format!("/v1/setup_intents/{}", id(&setup)), &[]).await.ok();
    assert_eq!(setup["status"], "succeeded");
    let method = setup["payment_method"].as_str().unwrap();
    let paid = confirmed(&caller, &customer, method, &[("off_session", "true")]).await.ok();
    assert_eq!(paid["status"], "succeeded");
    let not_set_up = caller.attached(&customer, "pm_card_authenticationRequiredOnSetup").await;
    confirmed(&caller, &customer, &not_set_up, &[("off_session", "true")]).await.error(402, "authentication_required");
}

#[tokio::test]
async fn successful_cards_succeed() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let cards = [
        "visa",
        "mastercard",
        "amex",
        "visa_debit",
        "us",
        "de",
        "fr",
        "gb",
        "bypassPending",
        "createIssuerFraudRecord",
    ];
    for card in cards {
        let method = caller.attached(&customer, &format!("pm_card_{card}")).await;
        assert!(
            method.starts_with("pm_") && !method.starts_with("pm_card"),
            "attachment copies a shared test id: {method}"
        );
        let paid = confirmed(&caller, &customer, &method, &[("off_session", "true")]).await.ok();
        assert_eq!((&paid["status"], &paid["amount_received"]), (&"succeeded".into(), &4900.into()), "{card}");
    }
    let ledger = sandbox.ledger();
    assert_eq!(ledger.iter().map(|entry| entry.amount).sum::<i64>(), 4900 * 10);
    assert!(ledger.iter().all(|entry| entry.customer.as_deref() == Some(&customer) && entry.currency == "eur"));
}
