//! Closing disputes and inquiries.

use serde_json::Value;

use super::super::Sandbox;
use super::{Caller, event_types, id, sandbox};

/// The dispute of a payment with this card.
async fn disputed(caller: &Caller, method: &str) -> Value {
    let form = [
        ("amount", "4900"),
        ("currency", "eur"),
        ("payment_method_types[]", "card"),
        ("payment_method", method),
        ("confirm", "true"),
    ];
    let intent = id(&caller.post("/v1/payment_intents", &form).await.ok());
    caller.get("/v1/disputes", &[("payment_intent", &intent)]).await.ok()["data"][0].clone()
}

fn last_event(sandbox: &Sandbox) -> String {
    event_types(sandbox).pop().unwrap()
}

#[tokio::test]
async fn a_closed_dispute_is_lost_permanently() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let dispute = disputed(&caller, "pm_card_createDispute").await;
    let close = format!("/v1/disputes/{}/close", id(&dispute));
    let closed = caller.post(&close, &[]).await.ok();
    assert_eq!((&closed["status"], &closed["id"]), (&"lost".into(), &dispute["id"]));
    assert_eq!(last_event(&sandbox), "charge.dispute.closed");
    assert_eq!(event_types(&sandbox).iter().filter(|kind| *kind == "charge.dispute.funds_withdrawn").count(), 1);
    caller.post(&close, &[]).await.error(400, "");
    let evidence = [("evidence[uncategorized_text]", "winning_evidence")];
    caller.post(&format!("/v1/disputes/{}", id(&dispute)), &evidence).await.error(400, "");
    caller.post("/v1/disputes/du_none/close", &[]).await.error(404, "resource_missing");
}

#[tokio::test]
async fn a_closed_inquiry_withdraws_no_funds() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let inquiry = disputed(&caller, "pm_card_createDisputeInquiry").await;
    let closed = caller.post(&format!("/v1/disputes/{}/close", id(&inquiry)), &[]).await.ok();
    assert_eq!(closed["status"], "warning_closed");
    assert_eq!(last_event(&sandbox), "charge.dispute.closed");
    assert!(!event_types(&sandbox).iter().any(|kind| kind == "charge.dispute.funds_withdrawn"));
}

#[tokio::test]
async fn a_dispute_under_review_cannot_be_closed() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let dispute = disputed(&caller, "pm_card_createDispute").await;
    let path = format!("/v1/disputes/{}", id(&dispute));
    let evidence = [("evidence[uncategorized_text]", "See the contract.")];
    assert_eq!(caller.post(&path, &evidence).await.ok()["status"], "under_review");
    caller.post(&format!("{path}/close"), &[]).await.error(400, "");
}
