//! Refunds and disputes.

use time::Duration;

use super::{Caller, event_types, id, sandbox};

async fn paid(caller: &Caller, method: &str) -> String {
    let form = [
        ("amount", "4900"),
        ("currency", "eur"),
        ("payment_method_types[]", "card"),
        ("payment_method", method),
        ("confirm", "true"),
    ];
    id(&caller.post("/v1/payment_intents", &form).await.ok())
}

#[tokio::test]
async fn partial_refunds_never_exceed_the_charge() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let intent = paid(&caller, "pm_card_visa").await;
    let part = [("payment_intent", &*intent), ("amount", "1000"), ("metadata[a]", "b"), ("reason", "duplicate")];
    let refund = caller.post("/v1/refunds", &part).await.ok();
    assert_eq!((&refund["status"], &refund["amount"]), (&"succeeded".into(), &1000.into()));
    let too_much = caller.post("/v1/refunds", &[("payment_intent", &intent), ("amount", "3901")]).await;
    assert_eq!(too_much.error(400, "")["param"], "amount");
    assert_eq!(caller.post("/v1/refunds", &[("payment_intent", &intent)]).await.ok()["amount"], 3900);
    caller.post("/v1/refunds", &[("payment_intent", &intent)]).await.error(400, "charge_already_refunded");
    assert_eq!(sandbox.ledger()[0].amount_refunded, 4900);
    let listed = caller.get("/v1/refunds", &[("payment_intent", &intent)]).await.ok();
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
    let read = caller.get(&format!("/v1/refunds/{}", id(&refund)), &[("expand[]", "charge")]).await.ok();
    assert_eq!(read["charge"]["refunded"], true);
    assert_eq!(event_types(&sandbox)[3..5], ["refund.created", "charge.refunded"]);
}

#[tokio::test]
async fn slow_refunds_succeed_or_fail_later() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let (slow, failing) = (paid(&caller, "pm_card_pendingRefund").await, paid(&caller, "pm_card_refundFail").await);
    let slow = caller.post("/v1/refunds", &[("payment_intent", &slow)]).await.ok();
    let failing = caller.post("/v1/refunds", &[("payment_intent", &failing)]).await.ok();
    assert_eq!((&slow["status"], &failing["status"]), (&"pending".into(), &"succeeded".into()));
    sandbox.advance(Duration::days(2));
    assert_eq!(sandbox.object(&id(&slow)).unwrap()["status"], "succeeded");
    assert_eq!(sandbox.object(&id(&failing)).unwrap()["status"], "failed");
    let refunded: Vec<i64> = sandbox.ledger().iter().map(|entry| entry.amount_refunded).collect();
    assert_eq!(refunded, [4900, 0]);
    assert!(event_types(&sandbox).contains(&"refund.failed".to_owned()));
}

#[tokio::test]
async fn a_test_card_opens_a_dispute_and_evidence_closes_it() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let disputed = paid(&caller, "pm_card_createDispute").await;
    caller.post("/v1/refunds", &[("payment_intent", &disputed)]).await.error(400, "charge_disputed");
    let close = async |intent: &str, evidence: &str| {
        let found = caller.get("/v1/disputes", &[("payment_intent", intent)]).await.ok();
        let path = format!("/v1/disputes/{}", id(&found["data"][0]));
        let form = [("evidence[uncategorized_text]", evidence)];
        caller.post(&path, &form).await.ok()["status"].as_str().unwrap().to_owned()
    };
    assert_eq!(close(&disputed, "winning_evidence").await, "won");
    let second = paid(&caller, "pm_card_createDisputeProductNotReceived").await;
    assert_eq!(close(&second, "losing_evidence").await, "lost");
    let inquiry = paid(&caller, "pm_card_createDisputeInquiry").await;
    assert_eq!(close(&inquiry, "escalate_inquiry_evidence").await, "needs_response");
    let many = paid(&caller, "pm_card_createMultipleDisputes").await;
    let found = caller.get("/v1/disputes", &[("payment_intent", &many)]).await.ok();
    assert_eq!(found["data"].as_array().unwrap().len(), 2);
    let event_types = event_types(&sandbox);
    for kind in ["created", "updated", "closed", "funds_withdrawn", "funds_reinstated"] {
        assert!(event_types.contains(&format!("charge.dispute.{kind}")), "{kind}");
    }
}
