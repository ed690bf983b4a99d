//! What comes late, or before what it belongs to: money on a way that had failed, a refund of money not yet known.

use paybridge::dev::sandbox::{HandPayment, WebhookFault};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::{Payment, PaymentState, RefundPaymentRequest, RefundState};
use time::Duration;

use crate::cashier::Cashier;
use crate::links::{BAD_IBAN, DECLINING, GOOD_CARD, at_rest, declined};
use crate::reconcile::passing;
use crate::refunding::{ask, listed, refund, refund_by_hand, refund_in};

/// A till whose customer's debit through a link was refused by the bank; with the link's intent, which a person can still
/// have paid at Stripe.
async fn refused_debit(name: &str) -> (Cashier, Payment, String) {
    let (mut cashier, payment) = declined(name).await;
    let (session, _) = cashier.link("link", &payment).await.expect("a link");
    cashier.sandbox().complete_session(&session, BAD_IBAN, true).expect("the payer gives an IBAN");
    cashier.payment_in("inv", PaymentState::Processing).await;
    cashier.advance(Duration::days(6));
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    at_rest(&cashier).await;
    let intent = failed.attempts.last().expect("an attempt").provider_payment_intent_id.clone();
    (cashier, failed, intent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_money_that_comes_late_by_a_link_that_failed_settles_the_payment() {
    let (mut cashier, _, intent) = refused_debit("late money").await;
    cashier.sandbox().pay_intent_by_hand(&intent, "pm_card_visa").expect("a person has it paid");
    let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    assert_eq!(paid.amount_received.as_ref().map(|it| it.minor_units), Some(4900));
    assert_eq!(cashier.live_charges("inv"), 1);
    assert_eq!(cashier.count("payment.succeeded", "inv").await, 1);
    assert_eq!(cashier.count("payment.overpaid", "inv").await, 0, "it was paid once");
    cashier.retry("retry", &paid, true).await.expect_err("and is not taken twice");
    let back = refund(&cashier, ask("back", &paid, None)).await.expect("it can be refunded");
    refund_in(&cashier, &back.id, RefundState::Succeeded).await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_money_that_comes_late_by_a_link_beside_another_payment_is_told_and_refundable() {
    let (mut cashier, failed, intent) = refused_debit("late beside").await;
    cashier.record_manual("manual", &failed).await.expect("it is taken on");
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    cashier.sandbox().pay_intent_by_hand(&intent, "pm_card_visa").expect("a person has it paid");
    cashier.player.told("payment.overpaid", "inv").await.expect("that it was paid twice is told");
    at_rest(&cashier).await;
    let twice = cashier.payment("inv").await;
    assert_eq!(twice.amount_received.as_ref().map(|it| it.minor_units), Some(4900));
    assert_eq!(cashier.count("payment.overpaid", "inv").await, 1);
    let charge = cashier.charges("inv").into_iter().find(|it| it.status == "succeeded").expect("a charge").charge;
    let request = RefundPaymentRequest { provider_charge_id: charge, ..ask("back", &twice, None) };
    let back = refund(&cashier, request).await.expect("it can be refunded");
    refund_in(&cashier, &back.id, RefundState::Succeeded).await;
    cashier.end().await;
}

/// Webhooks of these types are never sent.
fn silence(cashier: &Cashier, types: &[&str]) {
    for event in types {
        cashier.sandbox().add_webhook_fault(WebhookFault { event: (*event).to_owned(), ..WebhookFault::default() });
    }
}

/// Waits until the payment's refunds hold this one.
async fn has_refund(cashier: &mut Cashier, payment: &Payment, refund: &str) {
    passing(cashier, Duration::seconds(20), "the refund is known", async |cashier| {
        let found = listed(cashier, payment).await;
        found.iter().any(|it| it.provider_refund_id == refund).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_p7_a_refund_that_is_told_before_its_money_is_known_is_not_lost() {
    let mut cashier = Cashier::new("early refund", Options::default()).await;
    let provider_id = cashier.customer("hooli", DECLINING).await;
    cashier.pay("hooli", "inv").await;
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    // Of the money itself no webhook tells, and neither does the sweep, whose jobs are taken away.
    silence(&cashier, &["payment_intent.*", "checkout.session.*"]);
    let database = cashier.database().await;
    let deaf = "DELETE FROM jobs WHERE kind IN ('sweep_integration', 'poll_events', 'reconcile_payment')";
    database.batch_execute(deaf).await.expect("nobody asks");
    let (session, open) = cashier.link("link", &failed).await.expect("a link");
    database.batch_execute(deaf).await.expect("nobody asks");
    cashier.sandbox().complete_session(&session, GOOD_CARD, true).expect("the payer pays");
    let page = cashier.sandbox().object(&session).expect("a page");
    let by_link = refund_by_hand(&cashier, page["payment_intent"].as_str().expect("an intent")).await;
    has_refund(&mut cashier, &open, &by_link).await;
    let paid = cashier.payment("inv").await;
    assert_eq!(paid.state(), PaymentState::Succeeded);
    assert_eq!(paid.amount_refunded.as_ref().map(|it| it.minor_units), Some(4900));

    let by_hand = HandPayment {
        customer: provider_id,
        payment_method: "pm_card_visa".to_owned(),
        amount: 700,
        currency: "eur".to_owned(),
        metadata: [("invoice_id".to_owned(), "inv".to_owned())].into(),
    };
    let made = cashier.sandbox().pay_by_hand(&by_hand).expect("it is paid");
    let beside = refund_by_hand(&cashier, made["id"].as_str().expect("an intent")).await;
    has_refund(&mut cashier, &open, &beside).await;
    cashier.player.told("payment.overpaid", "inv").await.expect("and so is the money");
    cashier.end().await;
}
