//! An amount changed while a page is open, and the payer is faster: the caller learns that the change was refused, and
//! what came in against the amount that was requested (P1, P12).

use paybridge::dev::sandbox::Action;
use paybridge::grpc::proto::{Payment, PaymentState, RefundPaymentRequest, RefundState};
use serde_json::Value;
use time::Duration;

use crate::cashier::{Cashier, until};
use crate::links::{BAD_IBAN, GOOD_CARD, GOOD_IBAN, at_rest, declined};
use crate::refunding::{ask, refund, refund_in};

/// The payments that events of a type in the log carry about an invoice, oldest first.
pub async fn logged(cashier: &Cashier, webhook_type: &str, invoice: &str) -> Vec<Value> {
    let database = cashier.database().await;
    let query = "SELECT payload::text FROM events WHERE webhook_type = $1 \
        AND payload #>> '{payment,lago_payable_id}' = $2 ORDER BY position";
    let rows = database.query(query, &[&webhook_type, &invoice]).await.expect("the log");
    rows.iter().map(|row| serde_json::from_str::<Value>(row.get(0)).expect("JSON")["payment"].clone()).collect()
}

/// A till with an open page for 49.00, which the payer pays with `method` while the change to `cents` waits for Stripe.
async fn paid_meanwhile(name: &str, method: &str, cents: i64) -> (Cashier, Payment) {
    let (cashier, failed) = declined(name).await;
    let (session, open) = cashier.link("link", &failed).await.expect("a link");
    cashier.fault("/v1/checkout/sessions/*/expire", 1, Action::Delay { milliseconds: 8_000, after_work: false });
    let changing = cashier.change_amount(&open, cents).await.expect("it is accepted");
    assert_eq!(changing.requested_amount.as_ref().map(|amount| amount.minor_units), Some(cents));
    until("the page is to be ended", || async { (!cashier.posts("/expire").is_empty()).then_some(()) }).await;
    cashier.sandbox().complete_session(&session, method, true).expect("the payer is faster");
    cashier.advance(Duration::seconds(9));
    (cashier, open)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_page_paid_before_its_amount_was_changed_refuses_the_change_and_is_compared_with_it() {
    for (cents, webhook_type, difference) in
        [(3000, "payment.overpaid", 1900), (0, "payment.overpaid", 4900), (6000, "payment.underpaid", 4900)]
    {
        let (mut cashier, open) = paid_meanwhile("page amount", GOOD_CARD, cents).await;
        let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
        at_rest(&cashier).await;
        assert_eq!(paid.amount.as_ref().map(|amount| amount.minor_units), Some(4900), "the change was refused");
        assert_eq!(paid.requested_amount, None, "and waits no more");
        let refused = logged(&cashier, "payment.amount_change_refused", "inv").await;
        assert_eq!(refused.len(), 1, "{cents}");
        assert_eq!((&refused[0]["amount_cents"], &refused[0]["requested_amount_cents"]), (&4900.into(), &cents.into()));
        let told = logged(&cashier, webhook_type, "inv").await;
        assert_eq!(told.len(), 1, "{cents}: {webhook_type}");
        assert_eq!(told[0]["amount_cents"], difference, "{cents}");
        let remaining = if cents == 6000 { Value::from(1100) } else { Value::Null };
        assert_eq!(told[0]["remaining_amount_cents"], remaining, "{cents}");
        let charge = told[0]["provider_charge_id"].as_str().expect("a charge").to_owned();
        assert_eq!(charge, paid.provider_charge_id);
        assert_eq!(logged(&cashier, "payment.succeeded", "inv").await.len(), 1);
        assert!(logged(&cashier, "payment.amount_mismatch", "inv").await.is_empty());
        assert_eq!(cashier.live_charges("inv"), 1);
        if cents == 3000 {
            let back = RefundPaymentRequest { provider_charge_id: charge, ..ask("back", &open, Some(1900)) };
            let back = refund(&cashier, back).await.expect("the surplus can be refunded");
            refund_in(&cashier, &back.id, RefundState::Succeeded).await;
        }
        cashier.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_debit_given_on_the_page_refuses_the_change_at_once_and_is_compared_when_the_bank_has_paid() {
    let (mut cashier, _) = paid_meanwhile("debit amount", GOOD_IBAN, 3000).await;
    cashier.payment_in("inv", PaymentState::Processing).await;
    until("the caller learns that it was refused", || async {
        (logged(&cashier, "payment.amount_change_refused", "inv").await.len() == 1).then_some(())
    })
    .await;
    assert!(logged(&cashier, "payment.overpaid", "inv").await.is_empty(), "no money has come in");
    cashier.advance(Duration::days(6));
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    let over = logged(&cashier, "payment.overpaid", "inv").await;
    assert_eq!(over.iter().map(|it| &it["amount_cents"]).collect::<Vec<_>>(), [&Value::from(1900)]);
    assert_eq!(logged(&cashier, "payment.amount_change_refused", "inv").await.len(), 1);
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_refused_for_a_debit_that_failed_is_forgotten() {
    let (mut cashier, _) = paid_meanwhile("failed debit amount", BAD_IBAN, 3000).await;
    cashier.payment_in("inv", PaymentState::Processing).await;
    at_rest(&cashier).await;
    cashier.advance(Duration::days(6));
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(failed.amount.as_ref().map(|amount| amount.minor_units), Some(4900));
    let (session, _) = cashier.link("again", &failed).await.expect("a link");
    cashier.sandbox().complete_session(&session, GOOD_CARD, true).expect("the payer pays");
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    assert_eq!(logged(&cashier, "payment.amount_change_refused", "inv").await.len(), 1);
    assert!(logged(&cashier, "payment.overpaid", "inv").await.is_empty(), "it was paid as it stood");
    cashier.end().await;
}

/// The same kind: a cancellation that came too late, for the money was there when Stripe was asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_that_the_payer_was_faster_than_is_refused() {
    let (mut cashier, failed) = declined("late cancel").await;
    let (session, open) = cashier.link("link", &failed).await.expect("a link");
    cashier.fault("/v1/checkout/sessions/*/expire", 1, Action::Delay { milliseconds: 8_000, after_work: false });
    cashier.cancel(&open).await.expect("it is accepted");
    until("the page is to be ended", || async { (!cashier.posts("/expire").is_empty()).then_some(()) }).await;
    cashier.sandbox().complete_session(&session, GOOD_CARD, true).expect("the payer is faster");
    cashier.advance(Duration::seconds(9));
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    assert_eq!(logged(&cashier, "payment.cancellation_refused", "inv").await.len(), 1);
    cashier.end().await;
}
