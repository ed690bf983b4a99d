//! Events in an unexpected order: a capture on a failed payment path, and a refund of a capture that is not yet known.

use paybridge::dev::sandbox::DashboardPayment;
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::{CreateRefundRequest, Payment, PaymentState, RefundState};
use time::Duration;

use crate::support::customers::{BAD_IBAN, DECLINING_CARD, GOOD_CARD};
use crate::support::harness::Harness;
use crate::support::payments::declined_payment;
use crate::support::refunds::{list_refunds, refund, refund_in, refund_in_dashboard, refund_request};
use crate::support::wait::advance_until;
use crate::support::webhooks::lose_webhooks;

/// A harness with a debit through a link that the bank returned, and the link's intent, which can still be paid in the
/// Stripe Dashboard.
async fn refused_debit(name: &str) -> (Harness, Payment, String) {
    let (mut harness, payment) = declined_payment(name).await;
    let (session, _) = harness.link("link", &payment).await.expect("a link");
    harness.sandbox().complete_session(&session, BAD_IBAN, true).expect("the payer gives an IBAN");
    harness.payment_in("inv", PaymentState::Processing).await;
    harness.advance(Duration::days(6));
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    harness.quiesce().await;
    let intent = failed.attempts.last().expect("an attempt").provider_payment_intent_id.clone();
    (harness, failed, intent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_late_capture_on_a_failed_link_settles_the_payment() {
    let (mut harness, _, intent) = refused_debit("late capture").await;
    harness.sandbox().pay_intent_in_dashboard(&intent, "pm_card_visa").expect("it is paid");
    let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    assert_eq!(paid.amount_received.as_ref().map(|it| it.minor_units), Some(4900));
    assert_eq!(harness.live_charges("inv"), 1);
    assert_eq!(harness.event_count("payment.succeeded", "inv").await, 1);
    assert_eq!(harness.event_count("payment.overpaid", "inv").await, 0, "it was paid once");
    harness.retry("retry", &paid, true).await.expect_err("it is settled");
    let back = refund(&harness, refund_request("back", &paid, None)).await.expect("it can be refunded");
    refund_in(&harness, &back.id, RefundState::Succeeded).await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_late_capture_after_another_payment_is_reported_and_refundable() {
    let (mut harness, failed, intent) = refused_debit("late surplus").await;
    harness.record_manual("manual", &failed).await.expect("it is accepted");
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.sandbox().pay_intent_in_dashboard(&intent, "pm_card_visa").expect("it is paid");
    harness.billing.wait_for_event("payment.overpaid", "inv").await.expect("the double payment is reported");
    harness.quiesce().await;
    let overpaid = harness.payment("inv").await;
    assert_eq!(overpaid.amount_received.as_ref().map(|it| it.minor_units), Some(4900));
    assert_eq!(harness.event_count("payment.overpaid", "inv").await, 1);
    let charge = harness.charges("inv").into_iter().find(|it| it.status == "succeeded").expect("a charge").charge;
    let request = CreateRefundRequest { provider_charge_id: charge, ..refund_request("back", &overpaid, None) };
    let back = refund(&harness, request).await.expect("it can be refunded");
    refund_in(&harness, &back.id, RefundState::Succeeded).await;
    harness.shutdown().await;
}

/// Waits until a payment's refunds include this one.
async fn until_has_refund(harness: &mut Harness, payment: &Payment, refund: &str) {
    advance_until(harness, Duration::seconds(20), "the refund is known", async |harness| {
        let refunds = list_refunds(harness, payment).await;
        refunds.iter().any(|it| it.provider_refund_id == refund).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_p7_a_refund_that_is_reported_before_its_capture_is_known_is_not_lost() {
    let mut harness = Harness::new("early refund", Options::default()).await;
    let provider_id = harness.customer("hooli", DECLINING_CARD).await;
    harness.pay("hooli", "inv").await;
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    // The capture itself is found by no webhook and no reconciler.
    lose_webhooks(&harness, "payment_intent.*");
    lose_webhooks(&harness, "checkout.session.*");
    let database = harness.database().await;
    let delete_reconcilers = "DELETE FROM jobs WHERE kind IN ('sweep_integration', 'poll_events', 'reconcile_payment')";
    database.batch_execute(delete_reconcilers).await.expect("they are deleted");
    let (session, open) = harness.link("link", &failed).await.expect("a link");
    database.batch_execute(delete_reconcilers).await.expect("they are deleted");
    harness.sandbox().complete_session(&session, GOOD_CARD, true).expect("the payer pays");
    let page = harness.sandbox().object(&session).expect("a page");
    let link_refund = refund_in_dashboard(&harness, page["payment_intent"].as_str().expect("an intent")).await;
    until_has_refund(&mut harness, &open, &link_refund).await;
    let paid = harness.payment("inv").await;
    assert_eq!(paid.state(), PaymentState::Succeeded);
    assert_eq!(paid.amount_refunded.as_ref().map(|it| it.minor_units), Some(4900));

    let payment = DashboardPayment {
        customer: provider_id,
        payment_method: "pm_card_visa".to_owned(),
        amount: 700,
        currency: "eur".to_owned(),
        metadata: [("invoice_id".to_owned(), "inv".to_owned())].into(),
    };
    let foreign_intent = harness.sandbox().pay_in_dashboard(&payment).expect("it is paid");
    let surplus_refund = refund_in_dashboard(&harness, foreign_intent["id"].as_str().expect("an intent")).await;
    until_has_refund(&mut harness, &open, &surplus_refund).await;
    harness.billing.wait_for_event("payment.overpaid", "inv").await.expect("the surplus is reported");
    harness.shutdown().await;
}
