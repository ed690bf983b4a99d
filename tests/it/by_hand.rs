//! A charge made by hand at Stripe that names an invoice under `invoice_id`: it pays the invoice once our own way to
//! collect is closed (P1); one of less than what is due is an event; what comes in twice is never silent (P12).

use paybridge::dev::sandbox::HandPayment;
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::{Payment, PaymentState, RefundState};
use serde_json::Value;
use time::Duration;

use crate::cashier::{Cashier, reason, until};
use crate::links::{BAD_IBAN, GOOD_IBAN, at_rest, declined};
use crate::page_amounts::logged;
use crate::refunding::{ask, refund, refund_in};

/// A clerk charges so much for the invoice in Stripe's dashboard; the intent.
async fn pay_by_hand(cashier: &mut Cashier, invoice: &str, cents: i64) -> Value {
    let customer = cashier.player.customer("hooli").await.expect("a customer").provider_customer_id;
    let payment = HandPayment {
        customer,
        payment_method: "pm_card_visa".to_owned(),
        amount: cents,
        currency: "eur".to_owned(),
        metadata: [("invoice_id".to_owned(), invoice.to_owned())].into(),
    };
    cashier.sandbox().pay_by_hand(&payment).expect("it is paid")
}

fn received(payment: &Payment) -> i64 {
    payment.amount_received.as_ref().map_or(0, |amount| amount.minor_units)
}

fn status_of(cashier: &Cashier, id: &str) -> String {
    cashier.sandbox().object(id).expect("it is at Stripe")["status"].as_str().unwrap_or_default().to_owned()
}

/// The intents and amounts that events of a type name.
async fn amounts(cashier: &Cashier, webhook_type: &str) -> Vec<(String, i64)> {
    let told = logged(cashier, webhook_type, "inv").await;
    let part = |it: &Value| (it["provider_payment_id"].as_str().map(str::to_owned), it["amount_cents"].as_i64());
    told.iter().map(part).map(|(intent, amount)| (intent.expect("an intent"), amount.expect("an amount"))).collect()
}

fn id(object: &Value) -> String {
    object["id"].as_str().expect("an id").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_charge_by_hand_pays_the_invoice_after_our_own_intent_is_closed() {
    let (mut cashier, failed) = declined("by hand").await;
    let made = pay_by_hand(&mut cashier, "inv", 4900).await;
    let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    assert_eq!(status_of(&cashier, &failed.provider_payment_intent_id), "canceled", "Stripe has closed our own first");
    assert_eq!((received(&paid), paid.provider_payment_intent_id.clone()), (4900, id(&made)));
    assert_eq!(made["latest_charge"], paid.provider_charge_id.as_str());
    assert!(paid.manual_payment.is_none());
    let settled = logged(&cashier, "payment.succeeded", "inv").await;
    assert_eq!(settled.len(), 1);
    assert_eq!((&settled[0]["provider_payment_id"], &settled[0]["type"]), (&made["id"], &"provider".into()));
    assert!(amounts(&cashier, "payment.overpaid").await.is_empty(), "it was paid once");
    // Told again, it changes nothing.
    for event in cashier.sandbox().events(&cashier.player.account) {
        if event["type"] == "payment_intent.succeeded" {
            cashier.sandbox().resend(&id(&event)).expect("it is sent again");
        }
    }
    at_rest(&cashier).await;
    assert_eq!(cashier.payment("inv").await.etag, paid.etag);
    let back = refund(&cashier, ask("back", &paid, None)).await.expect("it can be refunded");
    refund_in(&cashier, &back.id, RefundState::Succeeded).await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_charge_by_hand_ends_an_open_link_first_and_more_than_due_is_overpaid() {
    let (mut cashier, failed) = declined("by hand link").await;
    let (session, _) = cashier.link("link", &failed).await.expect("a link");
    let made = pay_by_hand(&mut cashier, "inv", 5900).await;
    let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    assert_eq!(status_of(&cashier, &session), "expired", "nobody can pay there any more");
    assert_eq!(received(&paid), 5900, "as Stripe reports it");
    assert_eq!(amounts(&cashier, "payment.overpaid").await, [(id(&made), 1000)], "the surplus");
    assert_eq!(cashier.player.count("invoice.payment_failure", "inv"), 1, "only of the decline before");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_charge_by_hand_beside_a_debit_waits_for_the_bank() {
    for (iban, is_twice) in [(GOOD_IBAN, true), (BAD_IBAN, false)] {
        let mut cashier = Cashier::new("by hand debit", Options::default()).await;
        cashier.customer("hooli", iban).await;
        cashier.pay("hooli", "inv").await;
        let moving = cashier.payment_in("inv", PaymentState::Processing).await;
        until("it is at the bank", || async { (cashier.live_charges("inv") == 1).then_some(()) }).await;
        let made = pay_by_hand(&mut cashier, "inv", 4900).await;
        cashier.payment_when("inv", "has the money on record", |payment| received(payment) == 4900).await;
        at_rest(&cashier).await;
        assert_eq!(cashier.payment("inv").await.state(), PaymentState::Processing, "the debit can not be closed");
        let busy = cashier.cancel(&moving).await.expect_err("it is paid");
        assert_eq!(reason(&busy), "PAYMENT_BUSY");
        cashier.advance(Duration::days(6));
        let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
        at_rest(&cashier).await;
        let twice = if is_twice { vec![(id(&made), 4900)] } else { Vec::new() };
        assert_eq!(amounts(&cashier, "payment.overpaid").await, twice, "{iban}");
        assert_eq!(received(&paid), if is_twice { 9800 } else { 4900 }, "{iban}");
        let own = if is_twice { moving.provider_payment_intent_id.clone() } else { id(&made) };
        assert_eq!(paid.provider_payment_intent_id, own, "{iban}");
        assert_eq!(logged(&cashier, "payment.succeeded", "inv").await.len(), 1, "{iban}");
        cashier.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn less_than_due_is_an_event_that_names_what_remains_and_the_rest_pays() {
    let (mut cashier, failed) = declined("by hand parts").await;
    let part = pay_by_hand(&mut cashier, "inv", 2000).await;
    let after = cashier.payment_when("inv", "has the part on record", |payment| received(payment) == 2000).await;
    at_rest(&cashier).await;
    assert_eq!(after.state(), PaymentState::Failed, "a part changes no state");
    assert_eq!(status_of(&cashier, &failed.provider_payment_intent_id), "requires_payment_method", "nothing is closed");
    let under = logged(&cashier, "payment.underpaid", "inv").await;
    assert_eq!(under.len(), 1);
    assert_eq!(under[0]["provider_charge_id"], part["latest_charge"]);
    assert_eq!((&under[0]["amount_cents"], &under[0]["remaining_amount_cents"]), (&2000.into(), &2900.into()));
    assert!(amounts(&cashier, "payment.overpaid").await.is_empty());
    let rest = pay_by_hand(&mut cashier, "inv", 2900).await;
    let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    assert_eq!((received(&paid), paid.provider_payment_intent_id), (4900, id(&rest)));
    assert!(amounts(&cashier, "payment.overpaid").await.is_empty(), "it is paid in full, and no more");
    cashier.end().await;
}

/// Of a part nobody may lose sight: what we collect beside it is too much.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_what_is_collected_in_full_beside_a_part_is_overpaid_unless_the_amount_was_changed_to_the_rest() {
    for (cents, surplus) in [(4900, 2000), (2900, 0)] {
        let (mut cashier, failed) = declined("part and all").await;
        pay_by_hand(&mut cashier, "inv", 2000).await;
        cashier.payment_when("inv", "has the part on record", |payment| received(payment) == 2000).await;
        let provider_id = cashier.player.customer("hooli").await.expect("a customer").provider_customer_id;
        cashier.add_method("hooli", &provider_id, "pm_card_visa").await;
        if cents != 4900 {
            cashier.change_amount(&failed, cents).await.expect("it is accepted");
            let has_it = |it: &Payment| it.amount.as_ref().is_some_and(|amount| amount.minor_units == cents);
            cashier.payment_when("inv", "has the rest as its amount", has_it).await;
        }
        cashier.retry("retry", &failed, true).await.expect("it is retried");
        let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
        at_rest(&cashier).await;
        assert_eq!(received(&paid), cents + 2000);
        let over: Vec<_> = amounts(&cashier, "payment.overpaid").await.into_iter().map(|(_, cents)| cents).collect();
        assert_eq!(over, if surplus > 0 { vec![surplus] } else { Vec::new() }, "{cents}");
        cashier.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_charge_by_hand_of_another_customer_or_in_another_currency_is_ignored_with_the_reason() {
    let (mut cashier, failed) = declined("by hand strangers").await;
    let own = cashier.player.customer("hooli").await.expect("a customer").provider_customer_id;
    let other = cashier.bare_customer("initech").await;
    for (customer, currency, reason) in [(other, "eur", "another customer"), (own, "usd", "another currency")] {
        let payment = HandPayment {
            customer,
            payment_method: "pm_card_visa".to_owned(),
            amount: 4900,
            currency: currency.to_owned(),
            metadata: [("invoice_id".to_owned(), "inv".to_owned())].into(),
        };
        let made = cashier.sandbox().pay_by_hand(&payment).expect("it is paid");
        let database = cashier.database().await;
        let told = until("its delivery is dealt with", || async {
            let query = "SELECT state, reason FROM deliveries WHERE event_type = 'payment_intent.succeeded' \
                AND state <> 'received' AND body::json #>> '{data,object,id}' = $1";
            let row = database.query_opt(query, &[&id(&made)]).await.expect("a look")?;
            Some((row.get::<_, String>(0), row.get::<_, Option<String>>(1).unwrap_or_default()))
        })
        .await;
        assert_eq!(told.0, "ignored", "{currency}");
        assert!(told.1.contains(reason), "{}", told.1);
    }
    at_rest(&cashier).await;
    let after = cashier.payment("inv").await;
    assert_eq!((after.state(), after.etag), (PaymentState::Failed, failed.etag), "nothing has changed");
    for webhook_type in ["payment.overpaid", "payment.underpaid", "payment.succeeded"] {
        assert!(logged(&cashier, webhook_type, "inv").await.is_empty(), "{webhook_type}");
    }
    cashier.end().await;
}
