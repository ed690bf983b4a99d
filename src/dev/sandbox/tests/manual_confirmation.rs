//! `confirmation_method=manual`: the server confirms again after the payer's authentication.

use serde_json::json;

use super::{Caller, event_types, id, sandbox};

const INTENT: [(&str, &str); 4] =
    [("amount", "4900"), ("currency", "eur"), ("payment_method_types[]", "card"), ("confirmation_method", "manual")];

#[tokio::test]
async fn the_server_confirms_again_after_authentication() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let form =
        [INTENT.as_slice(), &[("payment_method", "pm_card_authenticationRequired"), ("confirm", "true")]].concat();
    let requested = caller.post("/v1/payment_intents", &form).await.ok();
    assert_eq!(
        (&requested["status"], &requested["confirmation_method"]),
        (&json!("requires_action"), &json!("manual"))
    );
    let intent = id(&requested);
    let authenticated = sandbox.authenticate(&intent, true).unwrap();
    assert_eq!(
        (&authenticated["status"], &authenticated["next_action"]),
        (&json!("requires_confirmation"), &json!(null))
    );
    assert_eq!(authenticated["payment_method"], requested["payment_method"]);
    assert_eq!(sandbox.ledger().len(), 0, "there is no charge before the server confirms");
    let confirm = format!("/v1/payment_intents/{intent}/confirm");
    assert_eq!(caller.post(&confirm, &[]).await.ok()["status"], "succeeded");
    assert_eq!(sandbox.ledger().len(), 1);
}

#[tokio::test]
async fn an_authentication_holds_for_one_method() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let intent = id(&caller.post("/v1/payment_intents", &INTENT).await.ok());
    let confirm = format!("/v1/payment_intents/{intent}/confirm");
    let card = [("payment_method", "pm_card_authenticationRequired")];
    caller.post(&confirm, &card).await.ok();
    sandbox.authenticate(&intent, true).unwrap();
    assert_eq!(
        caller.post(&confirm, &card).await.ok()["status"],
        "requires_action",
        "another card requires its own authentication"
    );
    sandbox.authenticate(&intent, false).unwrap_err();
    assert_eq!(sandbox.object(&intent).unwrap()["status"], "requires_payment_method");
}

/// What `stripe trigger payment_intent.amount_capturable_updated` sends.
#[tokio::test]
async fn the_clis_trigger_of_a_capturable_amount_is_accepted() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let form = [
        ("amount", "2000"),
        ("capture_method", "manual"),
        ("confirm", "true"),
        ("confirmation_method", "manual"),
        ("currency", "usd"),
        ("description", "(created by Stripe CLI)"),
        ("payment_method_types[0]", "card"),
        ("payment_method", "pm_card_visa"),
        ("return_url", "https://stripe.com"),
    ];
    assert_eq!(caller.post("/v1/payment_intents", &form).await.ok()["status"], "requires_capture");
    assert_eq!(event_types(&sandbox).last().unwrap(), "payment_intent.amount_capturable_updated");
}
