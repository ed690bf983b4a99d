//! Charges in the Stripe Dashboard that name an invoice under `invoice_id`. A charge pays the invoice once Paybridge's
//! own payment path is closed (P1). A part of the amount, and money received twice, are reported as events (P12).

use paybridge::dev::sandbox::DashboardPayment;
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::{Payment, PaymentState, RefundState};
use serde_json::Value;
use time::Duration;

use crate::support::customers::{BAD_IBAN, GOOD_IBAN, object_id};
use crate::support::errors::reason;
use crate::support::harness::Harness;
use crate::support::payments::{declined_payment, stripe_status};
use crate::support::refunds::{refund, refund_in, refund_request};
use crate::support::sql::logged_payments;
use crate::support::wait::until;

/// Charges `cents` for an invoice in the Stripe Dashboard, and returns the intent.
async fn pay_in_dashboard(harness: &mut Harness, invoice: &str, cents: i64) -> Value {
    let customer = harness.billing.customer("hooli").await.expect("a customer").provider_customer_id;
    let payment = DashboardPayment {
        customer,
        payment_method: "pm_card_visa".to_owned(),
        amount: cents,
        currency: "eur".to_owned(),
        metadata: [("invoice_id".to_owned(), invoice.to_owned())].into(),
    };
    harness.sandbox().pay_in_dashboard(&payment).expect("it is paid")
}

fn received(payment: &Payment) -> i64 {
    payment.amount_received.as_ref().map_or(0, |amount| amount.minor_units)
}

/// The intents and amounts in logged events of a type.
async fn amounts(harness: &Harness, webhook_type: &str) -> Vec<(String, i64)> {
    let payments = logged_payments(harness, webhook_type, "inv").await;
    let part = |it: &Value| (it["provider_payment_id"].as_str().map(str::to_owned), it["amount_cents"].as_i64());
    payments.iter().map(part).map(|(intent, amount)| (intent.expect("an intent"), amount.expect("an amount"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_dashboard_charge_pays_the_invoice_after_paybridges_intent_is_canceled() {
    let (mut harness, failed) = declined_payment("dashboard").await;
    let intent = pay_in_dashboard(&mut harness, "inv", 4900).await;
    let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    assert_eq!(
        stripe_status(&harness, &failed.provider_payment_intent_id),
        "canceled",
        "Paybridge's own intent is canceled first"
    );
    assert_eq!((received(&paid), paid.provider_payment_intent_id.clone()), (4900, object_id(&intent)));
    assert_eq!(intent["latest_charge"], paid.provider_charge_id.as_str());
    assert!(paid.manual_payment.is_none());
    let settled = logged_payments(&harness, "payment.succeeded", "inv").await;
    assert_eq!(settled.len(), 1);
    assert_eq!(settled[0]["provider_charge_id"], intent["latest_charge"], "the charge that a refund names");
    assert_eq!((&settled[0]["provider_payment_id"], &settled[0]["type"]), (&intent["id"], &"provider".into()));
    assert!(amounts(&harness, "payment.overpaid").await.is_empty(), "it was paid once");
    // The same event again changes nothing.
    for event in harness.sandbox().events(&harness.billing.account) {
        if event["type"] == "payment_intent.succeeded" {
            harness.sandbox().resend(&object_id(&event)).expect("it is sent again");
        }
    }
    harness.quiesce().await;
    assert_eq!(harness.payment("inv").await.etag, paid.etag);
    let back = refund(&harness, refund_request("back", &paid, None)).await.expect("it can be refunded");
    refund_in(&harness, &back.id, RefundState::Succeeded).await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_dashboard_charge_expires_an_open_link_first_and_a_surplus_is_overpaid() {
    let (mut harness, failed) = declined_payment("dashboard and link").await;
    let (session, _) = harness.link("link", &failed).await.expect("a link");
    let intent = pay_in_dashboard(&mut harness, "inv", 5900).await;
    let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    assert_eq!(stripe_status(&harness, &session), "expired", "nobody can pay there");
    assert_eq!(received(&paid), 5900, "as Stripe reports it");
    assert_eq!(amounts(&harness, "payment.overpaid").await, [(object_id(&intent), 1000)], "the surplus");
    assert_eq!(harness.event_count("invoice.payment_failure", "inv").await, 1, "only for the earlier decline");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_dashboard_charge_during_a_debit_waits_for_the_bank() {
    for (iban, is_twice) in [(GOOD_IBAN, true), (BAD_IBAN, false)] {
        let mut harness = Harness::new("dashboard and debit", Options::default()).await;
        harness.customer("hooli", iban).await;
        harness.pay("hooli", "inv").await;
        let processing = harness.payment_in("inv", PaymentState::Processing).await;
        until("the bank has the debit", async || (harness.live_charges("inv") == 1).then_some(())).await;
        let intent = pay_in_dashboard(&mut harness, "inv", 4900).await;
        harness.payment_when("inv", "has recorded the charge", |payment| received(payment) == 4900).await;
        harness.quiesce().await;
        assert_eq!(harness.payment("inv").await.state(), PaymentState::Processing, "the debit cannot be canceled");
        let refused = harness.cancel(&processing).await.expect_err("it is paid");
        assert_eq!(reason(&refused), "PAYMENT_BUSY");
        harness.advance(Duration::days(6));
        let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
        harness.quiesce().await;
        let twice = if is_twice { vec![(object_id(&intent), 4900)] } else { Vec::new() };
        assert_eq!(amounts(&harness, "payment.overpaid").await, twice, "{iban}");
        assert_eq!(received(&paid), if is_twice { 9800 } else { 4900 }, "{iban}");
        let own = if is_twice { processing.provider_payment_intent_id.clone() } else { object_id(&intent) };
        assert_eq!(paid.provider_payment_intent_id, own, "{iban}");
        assert_eq!(logged_payments(&harness, "payment.succeeded", "inv").await.len(), 1, "{iban}");
        harness.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partial_charge_reports_what_remains_and_the_remainder_pays() {
    let (mut harness, failed) = declined_payment("partial charges").await;
    let part = pay_in_dashboard(&mut harness, "inv", 2000).await;
    let after = harness.payment_when("inv", "has recorded the part", |payment| received(payment) == 2000).await;
    harness.quiesce().await;
    assert_eq!(after.state(), PaymentState::Failed, "a part changes no state");
    assert_eq!(
        stripe_status(&harness, &failed.provider_payment_intent_id),
        "requires_payment_method",
        "no intent is canceled"
    );
    let underpaid = logged_payments(&harness, "payment.underpaid", "inv").await;
    assert_eq!(underpaid.len(), 1);
    assert_eq!(underpaid[0]["provider_charge_id"], part["latest_charge"]);
    assert_eq!((&underpaid[0]["amount_cents"], &underpaid[0]["remaining_amount_cents"]), (&2000.into(), &2900.into()));
    assert!(amounts(&harness, "payment.overpaid").await.is_empty());
    let remainder = pay_in_dashboard(&mut harness, "inv", 2900).await;
    let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    assert_eq!((received(&paid), paid.provider_payment_intent_id), (4900, object_id(&remainder)));
    assert!(amounts(&harness, "payment.overpaid").await.is_empty(), "paid in full, and not more");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_full_charge_after_a_partial_one_is_overpaid_unless_the_amount_was_reduced() {
    for (cents, surplus) in [(4900, 2000), (2900, 0)] {
        let (mut harness, failed) = declined_payment("part and whole").await;
        pay_in_dashboard(&mut harness, "inv", 2000).await;
        harness.payment_when("inv", "has recorded the part", |payment| received(payment) == 2000).await;
        let provider_id = harness.billing.customer("hooli").await.expect("a customer").provider_customer_id;
        harness.add_method("hooli", &provider_id, "pm_card_visa").await;
        if cents != 4900 {
            harness.change_amount(&failed, cents).await.expect("it is accepted");
            let has_it = |it: &Payment| it.amount.as_ref().is_some_and(|amount| amount.minor_units == cents);
            harness.payment_when("inv", "has the reduced amount", has_it).await;
        }
        harness.retry("retry", &failed, true).await.expect("it is retried");
        let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
        harness.quiesce().await;
        assert_eq!(received(&paid), cents + 2000);
        let over: Vec<_> = amounts(&harness, "payment.overpaid").await.into_iter().map(|(_, cents)| cents).collect();
        assert_eq!(over, if surplus > 0 { vec![surplus] } else { Vec::new() }, "{cents}");
        harness.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dashboard_charge_of_another_customer_or_in_another_currency_is_ignored_with_the_reason() {
    let (mut harness, failed) = declined_payment("unrelated charges").await;
    let own = harness.billing.customer("hooli").await.expect("a customer").provider_customer_id;
    let other = harness.customer_without_method("initech").await;
    for (customer, currency, reason) in [(other, "eur", "another customer"), (own, "usd", "another currency")] {
        let payment = DashboardPayment {
            customer,
            payment_method: "pm_card_visa".to_owned(),
            amount: 4900,
            currency: currency.to_owned(),
            metadata: [("invoice_id".to_owned(), "inv".to_owned())].into(),
        };
        let intent = harness.sandbox().pay_in_dashboard(&payment).expect("it is paid");
        let database = harness.database().await;
        let (state, reason_text) = until("its delivery is processed", async || {
            let query = "SELECT state, reason FROM deliveries WHERE event_type = 'payment_intent.succeeded' \
                AND state <> 'received' AND body::json #>> '{data,object,id}' = $1";
            let row = database.query_opt(query, &[&object_id(&intent)]).await.expect("a result")?;
            Some((row.get::<_, String>(0), row.get::<_, Option<String>>(1).unwrap_or_default()))
        })
        .await;
        assert_eq!(state, "ignored", "{currency}");
        assert!(reason_text.contains(reason), "{reason_text}");
    }
    harness.quiesce().await;
    let after = harness.payment("inv").await;
    assert_eq!((after.state(), after.etag), (PaymentState::Failed, failed.etag), "nothing has changed");
    for webhook_type in ["payment.overpaid", "payment.underpaid", "payment.succeeded"] {
        assert!(logged_payments(&harness, webhook_type, "inv").await.is_empty(), "{webhook_type}");
    }
    harness.shutdown().await;
}
