//! Disputes change no payment state, and every change of one is reported, in any order of the events (P6, P7).

use paybridge::dev::sandbox::WebhookFault;
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::{PaymentState, RefundState};

use crate::support::harness::{Harness, post_to_stripe};
use crate::support::refunds::{finish, pay_and_settle, refund, refund_in, refund_request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_disputes_end_in_the_same_state_in_reverse_order_and_with_repeats() {
    let mut harness = Harness::new("dispute orders", Options::default()).await;
    harness.customer("hooli", "pm_card_createDispute").await;
    for (invoice, evidence, lost) in [("lost", "losing_evidence", 1), ("won", "winning_evidence", 0)] {
        // The webhooks are lost at first.
        let event = "charge.dispute.*".to_owned();
        harness.sandbox().add_webhook_fault(WebhookFault { event, ..WebhookFault::default() });
        let payment = pay_and_settle(&mut harness, invoice).await;
        let is_its = |event: &&serde_json::Value| {
            event["type"].as_str().is_some_and(|kind| kind.starts_with("charge.dispute."))
                && event["data"]["object"]["payment_intent"] == payment.provider_payment_intent_id.as_str()
        };
        let events = harness.sandbox().events(&harness.billing.account);
        let dispute = events.iter().find(is_its).expect("a dispute")["data"]["object"]["id"].clone();
        let dispute = dispute.as_str().expect("an id");
        let path = format!("/v1/disputes/{dispute}");
        // Stripe does not refund a disputed charge.
        let blocked = refund(&harness, refund_request(invoice, &payment, None)).await.expect("it is accepted");
        let blocked = refund_in(&harness, &blocked.id, RefundState::Failed).await;
        assert_eq!(blocked.failure_reason, "charge_disputed");
        post_to_stripe(&harness, &path, &format!("evidence[uncategorized_text]={evidence}")).await;
        let events = harness.sandbox().events(&harness.billing.account);
        let ids: Vec<_> = events.iter().filter(is_its).map(|event| event["id"].as_str().expect("an id")).collect();
        assert!(ids.len() >= 4, "created, withdrawn, updated, closed: {}", ids.len());
        harness.sandbox().clear_faults();
        // In reverse order, one by one, then in order.
        for id in ids.iter().rev().chain(&ids) {
            harness.sandbox().resend(id).expect("it is sent");
            harness.all_delivered().await;
        }
        assert_eq!(harness.payment(invoice).await.state(), PaymentState::Succeeded, "a dispute changes no state");
        // From the log: the stream may lag behind it.
        let database = harness.database().await;
        for (kind, path, times) in [
            ("payment.dispute_updated", "{dispute,lago_invoice_id}", 1),
            ("invoice.payment_dispute_lost", "{payment_dispute_lost,invoice,lago_id}", lost),
        ] {
            let query = "SELECT FROM events WHERE webhook_type = $1 AND payload #>> $2::text::text[] = $3";
            let logged = database.query(query, &[&kind, &path, &invoice]).await.expect("the log");
            assert_eq!(logged.len(), times, "{kind}");
        }
        let query = "SELECT payload #>> '{payment_dispute_lost,amount_cents}', \
                payload #>> '{payment_dispute_lost,amount_currency}' \
            FROM events WHERE webhook_type = 'invoice.payment_dispute_lost' \
                AND payload #>> '{payment_dispute_lost,invoice,lago_id}' = $1";
        for event in database.query(query, &[&invoice]).await.expect("the log") {
            let disputed: (Option<String>, Option<String>) = (event.get(0), event.get(1));
            assert_eq!(disputed, (Some("4900".to_owned()), Some("EUR".to_owned())), "the disputed amount");
        }
    }
    finish(harness).await;
}
