//! Disputes: facts beside the payment's state, told at every change and in any order (P6, P7).

use paybridge::dev::sandbox::WebhookFault;
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::{PaymentState, RefundState};

use crate::cashier::{Cashier, at_stripe};
use crate::refunding::{ask, end, paid, refund, refund_in};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_disputes_end_the_same_whether_told_backwards_or_twice() {
    let mut cashier = Cashier::new("dispute orders", Options::default()).await;
    cashier.customer("hooli", "pm_card_createDispute").await;
    for (invoice, evidence, lost) in [("lost", "losing_evidence", 1), ("won", "winning_evidence", 0)] {
        // It happens at Stripe, and nobody hears of it.
        let event = "charge.dispute.*".to_owned();
        cashier.sandbox().add_webhook_fault(WebhookFault { event, ..WebhookFault::default() });
        let payment = paid(&mut cashier, invoice).await;
        let is_its = |event: &&serde_json::Value| {
            event["type"].as_str().is_some_and(|kind| kind.starts_with("charge.dispute."))
                && event["data"]["object"]["payment_intent"] == payment.provider_payment_intent_id.as_str()
        };
        let events = cashier.sandbox().events(&cashier.player.account);
        let dispute = events.iter().find(is_its).expect("a dispute")["data"]["object"]["id"].clone();
        let dispute = dispute.as_str().expect("an id");
        let path = format!("/v1/disputes/{dispute}");
        // A charge in dispute is not refunded: Stripe's word.
        let blocked = refund(&cashier, ask(invoice, &payment, None)).await.expect("it is accepted");
        let blocked = refund_in(&cashier, &blocked.id, RefundState::Failed).await;
        assert_eq!(blocked.failure_reason, "charge_disputed");
        at_stripe(&cashier, &path, &format!("evidence[uncategorized_text]={evidence}")).await;
        let events = cashier.sandbox().events(&cashier.player.account);
        let ids: Vec<_> = events.iter().filter(is_its).map(|event| event["id"].as_str().expect("an id")).collect();
        assert!(ids.len() >= 4, "created, withdrawn, updated, closed: {}", ids.len());
        cashier.sandbox().clear_faults();
        // The close first and the creation last, one by one; then all of them again.
        for id in ids.iter().rev().chain(&ids) {
            cashier.sandbox().resend(id).expect("it is sent");
            cashier.all_delivered().await;
        }
        assert_eq!(cashier.payment(invoice).await.state(), PaymentState::Succeeded, "a dispute changes no state");
        // In the log, for the stream may lag behind it.
        let database = cashier.database().await;
        for (kind, path, times) in [
            ("payment.dispute_updated", "{dispute,lago_invoice_id}", 1),
            ("invoice.payment_dispute_lost", "{payment_dispute_lost,invoice,lago_id}", lost),
        ] {
            let query = "SELECT FROM events WHERE webhook_type = $1 AND payload #>> $2::text::text[] = $3";
            let told = database.query(query, &[&kind, &path, &invoice]).await.expect("the log");
            assert_eq!(told.len(), times, "{kind}");
        }
        let query = "SELECT payload #>> '{payment_dispute_lost,amount_cents}', \
                payload #>> '{payment_dispute_lost,amount_currency}' \
            FROM events WHERE webhook_type = 'invoice.payment_dispute_lost' \
                AND payload #>> '{payment_dispute_lost,invoice,lago_id}' = $1";
        for told in database.query(query, &[&invoice]).await.expect("the log") {
            let disputed: (Option<String>, Option<String>) = (told.get(0), told.get(1));
            assert_eq!(disputed, (Some("4900".to_owned()), Some("EUR".to_owned())), "what is disputed");
        }
    }
    end(cashier).await;
}
