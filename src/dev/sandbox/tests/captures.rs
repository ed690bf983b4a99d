//! Manual capture: authorizations that are captured, captured in part, or released.

use serde_json::{Value, json};
use time::Duration;

use super::{Caller, Response, event_types, id, sandbox};

const HOLD: [(&str, &str); 5] = [
    ("amount", "4900"),
    ("currency", "eur"),
    ("payment_method_types[]", "card"),
    ("capture_method", "manual"),
    ("confirm", "true"),
];

async fn authorized(caller: &Caller, method: &str) -> Value {
    let form = [HOLD.as_slice(), &[("payment_method", method)]].concat();
    caller.post("/v1/payment_intents", &form).await.ok()
}

async fn capture(caller: &Caller, intent: &str, form: &[(&str, &str)]) -> Response {
    caller.post(&format!("/v1/payment_intents/{intent}/capture"), form).await
}

#[tokio::test]
async fn a_capture_takes_the_authorized_amount() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let intent = authorized(&caller, "pm_card_visa").await;
    assert_eq!((&intent["status"], &intent["capture_method"]), (&json!("requires_capture"), &json!("manual")));
    assert_eq!((&intent["amount_capturable"], &intent["amount_received"]), (&json!(4900), &json!(0)));
    let charge = sandbox.object(intent["latest_charge"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&charge["status"], &charge["paid"], &charge["captured"]),
        (&json!("succeeded"), &json!(true), &json!(false))
    );
    assert_eq!((&charge["amount_captured"], &charge["balance_transaction"]), (&json!(0), &Value::Null));
    let last = event_types(&sandbox);
    assert_eq!(last[last.len() - 2..], ["charge.succeeded", "payment_intent.amount_capturable_updated"]);
    assert_eq!(sandbox.ledger()[0].status, "authorized", "no money has moved");

    let intent = id(&intent);
    let confirm = caller.post(&format!("/v1/payment_intents/{intent}/confirm"), &[]).await;
    confirm.error(400, "payment_intent_unexpected_state");
    let amount = caller.post(&format!("/v1/payment_intents/{intent}"), &[("amount", "100")]).await;
    amount.error(400, "payment_intent_unexpected_state");

    let paid = capture(&caller, &intent, &[("metadata[a]", "b")]).await.ok();
    assert_eq!((&paid["status"], &paid["amount_received"]), (&json!("succeeded"), &json!(4900)));
    assert_eq!((&paid["amount_capturable"], &paid["metadata"]), (&json!(0), &json!({ "a": "b" })));
    let charge = sandbox.object(paid["latest_charge"].as_str().unwrap()).unwrap();
    assert_eq!((&charge["captured"], &charge["amount_captured"]), (&json!(true), &json!(4900)));
    assert_ne!(charge["balance_transaction"], Value::Null);
    let last = event_types(&sandbox);
    assert_eq!(last[last.len() - 2..], ["charge.captured", "payment_intent.succeeded"]);
    let entry = &sandbox.ledger()[0];
    assert_eq!((&*entry.status, entry.amount), ("succeeded", 4900));
}

#[tokio::test]
async fn a_partial_capture_releases_the_rest() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let intent = id(&authorized(&caller, "pm_card_visa").await);
    let paid = capture(&caller, &intent, &[("amount_to_capture", "4400")]).await.ok();
    assert_eq!((&paid["status"], &paid["amount"]), (&json!("succeeded"), &json!(4900)));
    assert_eq!((&paid["amount_received"], &paid["amount_capturable"]), (&json!(4400), &json!(0)));
    let charge = sandbox.object(paid["latest_charge"].as_str().unwrap()).unwrap();
    assert_eq!((&charge["amount_refunded"], &charge["refunded"]), (&json!(500), &json!(false)));
    let entry = &sandbox.ledger()[0];
    assert_eq!((entry.amount, entry.amount_refunded), (4400, 0), "the released part is not a refund");
    let too_much = caller.post("/v1/refunds", &[("payment_intent", &intent), ("amount", "4401")]).await;
    assert_eq!(too_much.error(400, "")["param"], "amount", "the released part cannot be refunded");
    let refund = caller.post("/v1/refunds", &[("payment_intent", &intent)]).await.ok();
    assert_eq!(refund["amount"], 4400);
    let charge = sandbox.object(refund["charge"].as_str().unwrap()).unwrap();
    assert_eq!(charge["refunded"], true);
    caller.post("/v1/refunds", &[("payment_intent", &intent)]).await.error(400, "charge_already_refunded");
}

#[tokio::test]
async fn cancelation_and_expiry_release_an_authorization() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let intent = authorized(&caller, "pm_card_visa").await;
    let charge = intent["latest_charge"].as_str().unwrap();
    let intent = id(&intent);
    for form in [[("payment_intent", &*intent)], [("charge", charge)]] {
        let response = caller.post("/v1/refunds", &form).await;
        let error = response.error(400, "");
        assert_eq!(error.get("param"), None, "{error:#}");
        assert!(error["message"].as_str().unwrap().contains("ancel the PaymentIntent"), "{error:#}");
    }
    let path = format!("/v1/payment_intents/{intent}/cancel");
    let canceled = caller.post(&path, &[("cancellation_reason", "requested_by_customer")]).await.ok();
    assert_eq!((&canceled["status"], &canceled["amount_capturable"]), (&json!("canceled"), &json!(0)));
    assert_eq!(canceled["cancellation_reason"], "requested_by_customer");
    let released = sandbox.object(charge).unwrap();
    assert_eq!((&released["captured"], &released["refunded"]), (&json!(false), &json!(true)));
    assert_eq!(released["amount_refunded"], 4900);
    let last = event_types(&sandbox);
    assert_eq!(last[last.len() - 2..], ["charge.refunded", "payment_intent.canceled"]);
    capture(&caller, &intent, &[]).await.error(400, "payment_intent_unexpected_state");
    let response = caller.post("/v1/refunds", &[("charge", charge)]).await;
    assert!(
        response.error(400, "")["message"].as_str().unwrap().contains("does not have a successful charge to refund")
    );

    let uncaptured = id(&authorized(&caller, "pm_card_visa").await);
    let captured = id(&authorized(&caller, "pm_card_visa").await);
    sandbox.advance(Duration::days(6));
    capture(&caller, &captured, &[]).await.ok();
    assert_eq!(sandbox.object(&uncaptured).unwrap()["status"], "requires_capture");
    sandbox.advance(Duration::days(2));
    let expired = sandbox.object(&uncaptured).unwrap();
    assert_eq!((&expired["status"], &expired["cancellation_reason"]), (&json!("canceled"), &json!("automatic")));
    assert_eq!(sandbox.object(&captured).unwrap()["status"], "succeeded");
    let last = event_types(&sandbox);
    assert_eq!(last[last.len() - 2..], ["charge.expired", "payment_intent.canceled"]);
    assert_eq!(sandbox.ledger().iter().filter(|entry| entry.status == "succeeded").count(), 1);
}

#[tokio::test]
async fn invalid_captures_are_rejected() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    capture(&caller, "pi_none", &[]).await.error(404, "resource_missing");
    let open = [("amount", "4900"), ("currency", "eur"), ("payment_method_types[]", "card")];
    let open = id(&caller.post("/v1/payment_intents", &open).await.ok());
    let requested = id(&authorized(&caller, "pm_card_authenticationRequired").await);
    for (intent, status) in [(&open, "requires_payment_method"), (&requested, "requires_action")] {
        let response = capture(&caller, intent, &[]).await;
        let error = response.error(400, "payment_intent_unexpected_state");
        assert_eq!(
            (&error["payment_intent"]["id"], &error["payment_intent"]["status"]),
            (&json!(intent), &json!(status))
        );
    }
    assert_eq!(sandbox.authenticate(&requested, true).unwrap()["status"], "requires_capture");
    let amounts = [
        ("4901", "amount_too_large", ""),
        ("0", "parameter_invalid_integer", "amount"),
        ("-1", "", "amount_to_capture"),
    ];
    for (amount, code, param) in amounts {
        let response = capture(&caller, &requested, &[("amount_to_capture", amount)]).await;
        let error = response.error(400, code);
        assert_eq!(error["param"].as_str().unwrap_or_default(), param, "{amount}");
        assert_eq!(error["payment_intent"]["status"], "requires_capture");
    }
    capture(&caller, &requested, &[]).await.ok();
    let response = capture(&caller, &requested, &[]).await;
    let error = response.error(400, "payment_intent_unexpected_state");
    assert!(error["message"].as_str().unwrap().contains("remaining amount"), "{error:#}");

    let automatic = [("amount", "4900"), ("currency", "eur"), ("capture_method", "manual")];
    let automatic = caller.post("/v1/payment_intents", &automatic).await.ok();
    assert_eq!(automatic["payment_method_types"], json!(["card"]), "bank debits do not support manual capture");
    let debit = [&HOLD[..2], &[("payment_method_types[]", "sepa_debit"), ("capture_method", "manual")]].concat();
    caller.post("/v1/payment_intents", &debit).await.error(400, "payment_intent_invalid_parameter");
    let later = [&HOLD[..2], &[("payment_method_types[]", "sepa_debit")]].concat();
    let later = id(&caller.post("/v1/payment_intents", &later).await.ok());
    let update = caller.post(&format!("/v1/payment_intents/{later}"), &[("capture_method", "manual")]).await;
    update.error(400, "payment_intent_invalid_parameter");
}

#[tokio::test]
async fn a_dispute_covers_the_captured_amount() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let intent = id(&authorized(&caller, "pm_card_createDispute").await);
    let disputes = async || caller.get("/v1/disputes", &[("payment_intent", &intent)]).await.ok()["data"].clone();
    assert_eq!(disputes().await, json!([]), "nothing is captured yet");
    capture(&caller, &intent, &[("amount_to_capture", "4400")]).await.ok();
    let disputed = disputes().await;
    assert_eq!((disputed.as_array().unwrap().len(), &disputed[0]["amount"]), (1, &json!(4400)));
}

#[tokio::test]
async fn refunds_to_cards_cannot_be_canceled() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    for (method, status) in [("pm_card_visa", "succeeded"), ("pm_card_pendingRefund", "pending")] {
        let intent = id(&authorized(&caller, method).await);
        capture(&caller, &intent, &[]).await.ok();
        let refund = caller.post("/v1/refunds", &[("payment_intent", &intent)]).await.ok();
        assert_eq!(refund["status"], status);
        let response = caller.post(&format!("/v1/refunds/{}/cancel", id(&refund)), &[]).await;
        let error = response.error(400, "");
        assert_eq!((&error["type"], error.get("param")), (&json!("invalid_request_error"), None), "{error:#}");
        assert_eq!(sandbox.object(&id(&refund)).unwrap()["status"], status);
    }
    caller.post("/v1/refunds/re_none/cancel", &[]).await.error(404, "resource_missing");
}
