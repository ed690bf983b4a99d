//! The payer pays on an open page while its amount is being changed: the change is refused, and what was paid is
//! compared with the requested amount (P1, P12). After a restoration the payment may be known later than the change.

use paybridge::dev::sandbox::Action;
use paybridge::grpc::proto::{CreateRefundRequest, Payment, PaymentState, RefundState};
use serde_json::Value;
use time::Duration;

use crate::support::customers::{BAD_IBAN, GOOD_CARD, GOOD_IBAN};
use crate::support::harness::Harness;
use crate::support::payments::declined_payment;
use crate::support::refunds::{refund, refund_in, refund_request};
use crate::support::restores::{
    assert_matches_stripe, count, log, options, restore, settle, snapshot, until_caught_up,
};
use crate::support::sql::logged_payments;
use crate::support::wait::until;

/// A harness with a link for 49.00, which the payer pays with `method` while the change to `cents` waits for Stripe.
async fn paid_during_change(name: &str, method: &str, cents: i64) -> (Harness, Payment) {
    let (harness, failed) = declined_payment(name).await;
    let (session, open) = harness.link("link", &failed).await.expect("a link");
    harness.fault("/v1/checkout/sessions/*/expire", 1, Action::Delay { milliseconds: 8_000, after_work: false });
    let changing = harness.change_amount(&open, cents).await.expect("it is accepted");
    assert_eq!(changing.requested_amount.as_ref().map(|amount| amount.minor_units), Some(cents));
    until("the session is being expired", async || (!harness.posts("/expire").is_empty()).then_some(())).await;
    harness.sandbox().complete_session(&session, method, true).expect("the payer is faster");
    harness.advance(Duration::seconds(9));
    (harness, open)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_change_overtaken_by_the_payer_is_refused_and_the_payment_compared_with_it() {
    for (cents, webhook_type, difference) in
        [(3000, "payment.overpaid", 1900), (0, "payment.overpaid", 4900), (6000, "payment.underpaid", 4900)]
    {
        let (mut harness, open) = paid_during_change("page amount", GOOD_CARD, cents).await;
        let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
        harness.quiesce().await;
        assert_eq!(paid.amount.as_ref().map(|amount| amount.minor_units), Some(4900), "the change was refused");
        assert_eq!(paid.requested_amount, None, "and is not pending");
        let refused = logged_payments(&harness, "payment.amount_change_refused", "inv").await;
        assert_eq!(refused.len(), 1, "{cents}");
        assert_eq!((&refused[0]["amount_cents"], &refused[0]["requested_amount_cents"]), (&4900.into(), &cents.into()));
        let differences = logged_payments(&harness, webhook_type, "inv").await;
        assert_eq!(differences.len(), 1, "{cents}: {webhook_type}");
        assert_eq!(differences[0]["amount_cents"], difference, "{cents}");
        let remaining = if cents == 6000 { Value::from(1100) } else { Value::Null };
        assert_eq!(differences[0]["remaining_amount_cents"], remaining, "{cents}");
        let charge = differences[0]["provider_charge_id"].as_str().expect("a charge").to_owned();
        assert_eq!(charge, paid.provider_charge_id);
        assert_eq!(logged_payments(&harness, "payment.succeeded", "inv").await.len(), 1);
        assert!(logged_payments(&harness, "payment.amount_mismatch", "inv").await.is_empty());
        assert_eq!(harness.live_charges("inv"), 1);
        if cents == 3000 {
            let back = CreateRefundRequest { provider_charge_id: charge, ..refund_request("back", &open, Some(1900)) };
            let back = refund(&harness, back).await.expect("the surplus can be refunded");
            refund_in(&harness, &back.id, RefundState::Succeeded).await;
        }
        harness.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_change_overtaken_by_a_debit_is_refused_at_once_and_the_debit_compared_once_paid() {
    let (mut harness, _) = paid_during_change("debit amount", GOOD_IBAN, 3000).await;
    harness.payment_in("inv", PaymentState::Processing).await;
    until("the refusal is reported", async || {
        (logged_payments(&harness, "payment.amount_change_refused", "inv").await.len() == 1).then_some(())
    })
    .await;
    assert!(logged_payments(&harness, "payment.overpaid", "inv").await.is_empty(), "nothing was captured");
    harness.advance(Duration::days(6));
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    let overpaid = logged_payments(&harness, "payment.overpaid", "inv").await;
    assert_eq!(overpaid.iter().map(|it| &it["amount_cents"]).collect::<Vec<_>>(), [&Value::from(1900)]);
    assert_eq!(logged_payments(&harness, "payment.amount_change_refused", "inv").await.len(), 1);
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_refused_for_a_failed_debit_is_not_compared_with_a_later_payment() {
    let (mut harness, _) = paid_during_change("failed debit amount", BAD_IBAN, 3000).await;
    harness.payment_in("inv", PaymentState::Processing).await;
    harness.quiesce().await;
    harness.advance(Duration::days(6));
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(failed.amount.as_ref().map(|amount| amount.minor_units), Some(4900));
    let (session, _) = harness.link("again", &failed).await.expect("a link");
    harness.sandbox().complete_session(&session, GOOD_CARD, true).expect("the payer pays");
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    assert_eq!(logged_payments(&harness, "payment.amount_change_refused", "inv").await.len(), 1);
    assert!(logged_payments(&harness, "payment.overpaid", "inv").await.is_empty(), "the unchanged amount was paid");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_overtaken_by_the_payer_is_refused() {
    let (mut harness, failed) = declined_payment("late cancel").await;
    let (session, open) = harness.link("link", &failed).await.expect("a link");
    harness.fault("/v1/checkout/sessions/*/expire", 1, Action::Delay { milliseconds: 8_000, after_work: false });
    harness.cancel(&open).await.expect("it is accepted");
    until("the session is being expired", async || (!harness.posts("/expire").is_empty()).then_some(())).await;
    harness.sandbox().complete_session(&session, GOOD_CARD, true).expect("the payer is faster");
    harness.advance(Duration::seconds(9));
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    assert_eq!(logged_payments(&harness, "payment.cancellation_refused", "inv").await.len(), 1);
    harness.shutdown().await;
}

/// The change is accepted after a restoration, before the payment of the old amount is read back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_change_that_is_newer_than_the_payment_that_is_read_back_is_compared_with_it() {
    let mut harness = Harness::new("restored amounts", options()).await;
    let provider_id = harness.customer_without_method("hooli").await;
    harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Failed).await;
    settle(&harness).await;
    snapshot(&harness).await;
    harness.add_method("hooli", &provider_id, GOOD_CARD).await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    settle(&harness).await;

    restore(&harness).await;
    let known = harness.payment("inv").await;
    let changing = harness.change_amount(&known, 6000).await.expect("it is accepted meanwhile");
    assert_eq!(changing.requested_amount.map(|amount| amount.minor_units), Some(6000));
    until_caught_up(&harness).await;
    let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(paid.amount.map(|amount| amount.minor_units), Some(4900));
    settle(&harness).await;
    assert_matches_stripe(&harness).await;
    let (_, events) = log(&harness).await;
    let reported = ["payment.amount_change_refused", "payment.overpaid", "payment.underpaid"];
    assert_eq!(reported.map(|webhook_type| count(&events, webhook_type)), [1, 0, 1]);
    harness.shutdown().await;
}
