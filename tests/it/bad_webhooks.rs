//! Unexpected webhooks: each has an outcome that an operator can see, none blocks the next one, and none loses money
//! (P6, P12).

use paybridge::dev::sandbox::{DashboardPayment, Effect};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{CreateRefundRequest, EventPayment, PaymentState, create_refund_request};
use serde_json::{Value, json};
use time::Duration;

use crate::support::customers::{DECLINING_CARD, object_id};
use crate::support::harness::{CREATE, Harness, post_to_stripe};
use crate::support::wait::until;
use crate::support::webhooks::{newest_event, post_webhook, processed_delivery};

/// An event in Stripe's format.
fn stripe_event(id: &str, kind: &str, object: &Value) -> Value {
    json!({
        "id": id, "object": "event", "type": kind, "created": 1_700_000_000, "livemode": false,
        "api_version": "2026-08-26.dahlia", "request": { "id": null, "idempotency_key": null },
        "data": { "object": object },
    })
}

/// The payment in the emitted event of a type.
async fn emitted_payment(harness: &mut Harness, webhook_type: &str, invoice: &str) -> EventPayment {
    match harness.billing.wait_for_event(webhook_type, invoice).await.expect("the event is emitted").object {
        Some(Object::Payment(payment)) => payment,
        other => panic!("not a payment: {other:?}"),
    }
}

/// Checks that another payment succeeds, and that all its webhooks are applied.
async fn assert_nothing_is_blocked(harness: &mut Harness, invoice: &str) {
    harness.customer(&format!("next-{invoice}"), "pm_card_visa").await;
    harness.pay(&format!("next-{invoice}"), invoice).await;
    harness.payment_in(invoice, PaymentState::Succeeded).await;
    harness.all_delivered().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_signed_body_that_is_no_event_is_refused_and_an_unreadable_object_is_parked() {
    let mut harness = Harness::new("unreadable", Options::default()).await;
    for body in ["", "not JSON", "[]", r#"{"id":"evt_1"}"#, "{\"id\":\"evt_\u{0}\",\"type\":\"x\",\"created\":1}"] {
        assert_eq!(post_webhook(&harness, body).await, 400, "{body}");
    }
    let counted = harness.metrics().await;
    assert!(counted.contains(r#"paybridge_webhooks_total{result="not_an_event"}"#), "{counted}");
    let database = harness.database().await;
    let stored = database.query_one("SELECT count(*) FROM deliveries WHERE created < '2024-01-01'", &[]).await;
    assert_eq!(stored.expect("a count").get::<_, i64>(0), 0, "without an event id nothing can be stored once");

    // The type is handled, so it may be about money: it is kept for an operator.
    let unreadable = json!({ "id": "pi_1", "status": "a new word", "amount": 1, "currency": "eur" });
    for (id, object) in [("evt_word", unreadable), ("evt_empty", json!({}))] {
        assert_eq!(
            post_webhook(&harness, &stripe_event(id, "payment_intent.succeeded", &object).to_string()).await,
            200
        );
        let (state, reason) = processed_delivery(&harness, id).await;
        assert_eq!(state, "parked", "{reason}");
        assert!(reason.contains("payment_intent.succeeded"), "the reason names the type: {reason}");
    }
    // A delivery is counted after its state is committed.
    until("the delivery is counted", async || {
        harness.metrics().await.contains(r#"paybridge_deliveries_total{state="parked"}"#).then_some(())
    })
    .await;
    assert_nothing_is_blocked(&mut harness, "inv").await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_an_event_that_claims_another_account_or_mode_is_ignored_with_the_reason() {
    let mut harness = Harness::new("claims", Options::default()).await;
    harness.customer("hooli", "DE89370400440532013000").await;
    harness.pay("hooli", "inv").await;
    let payment = harness.payment_in("inv", PaymentState::Processing).await;
    until("the bank has the debit", async || (harness.live_charges("inv") == 1).then_some(())).await;
    harness.all_delivered().await;
    let mut paid = harness.sandbox().object(&payment.provider_payment_intent_id).expect("the intent");
    paid["status"] = "succeeded".into();
    paid["amount_received"] = 4900.into();
    let mut other_account = stripe_event("evt_account", "payment_intent.succeeded", &paid);
    other_account["account"] = "acct_other".into();
    let mut live = stripe_event("evt_live", "payment_intent.succeeded", &paid);
    live["livemode"] = true.into();
    for (event, word) in [(other_account, "acct_other"), (live, "live mode")] {
        assert_eq!(post_webhook(&harness, &event.to_string()).await, 200);
        let (state, reason) = processed_delivery(&harness, &object_id(&event)).await;
        assert_eq!(state, "ignored");
        assert!(reason.contains(word), "{reason}");
    }
    assert_eq!(harness.payment("inv").await.state(), PaymentState::Processing, "it is not paid");
    // The integration's own account is accepted.
    let mut own = stripe_event("evt_own", "payment_intent.processing", &paid);
    own["account"] = harness.billing.account.clone().into();
    assert_eq!(post_webhook(&harness, &own.to_string()).await, 200);
    assert_eq!(processed_delivery(&harness, "evt_own").await.0, "applied");
    assert_nothing_is_blocked(&mut harness, "next").await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_an_event_older_than_the_known_state_changes_nothing() {
    let mut harness = Harness::new("old events", Options::default()).await;
    let provider_id = harness.customer("hooli", DECLINING_CARD).await;
    harness.pay("hooli", "inv").await;
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    harness.all_delivered().await;
    let old = harness.sandbox().object(&failed.provider_payment_intent_id).expect("the intent");
    harness.add_method("hooli", &provider_id, "DE89370400440532013000").await;
    harness.retry("retry", &failed, false).await.expect("the retry is accepted");
    harness.payment_in("inv", PaymentState::Processing).await;
    until("the bank has the debit", async || (harness.live_charges("inv") == 1).then_some(())).await;
    harness.all_delivered().await;
    // The decline of the first attempt again, under other event ids: while the bank has the second attempt, and after.
    let mut challenged = old.clone();
    challenged["status"] = "requires_action".into();
    let mut number = 0;
    let mut post_old_events = async |harness: &mut Harness, state: PaymentState| {
        let before = harness.payment_in("inv", state).await;
        for (kind, object) in [("payment_failed", &old), ("requires_action", &challenged), ("processing", &old)] {
            number += 1;
            let event = stripe_event(&format!("evt_old_{number}"), &format!("payment_intent.{kind}"), object);
            assert_eq!(post_webhook(harness, &event.to_string()).await, 200);
            assert_eq!(
                processed_delivery(harness, &object_id(&event)).await.0,
                "applied",
                "{kind}: the intent itself is read"
            );
        }
        assert_eq!(harness.payment("inv").await.etag, before.etag, "nothing has changed");
    };
    post_old_events(&mut harness, PaymentState::Processing).await;
    harness.sandbox().settle(None);
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.all_delivered().await;
    post_old_events(&mut harness, PaymentState::Succeeded).await;
    assert_eq!(
        harness.event_count("invoice.payment_failure", "inv").await,
        1,
        "the decline was reported when it happened"
    );
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_an_own_intent_that_captures_another_amount_or_currency_is_settled_as_stripe_reports() {
    let mut harness = Harness::new("other amounts", Options::default()).await;
    let provider_id = harness.customer("hooli", DECLINING_CARD).await;
    for invoice in ["more", "less", "dollars"] {
        harness.pay("hooli", invoice).await;
        harness.payment_in(invoice, PaymentState::Failed).await;
    }
    let method = harness.add_method("hooli", &provider_id, "pm_card_visa").await;
    for (invoice, change, webhook_type, cents, currency) in [
        ("more", "amount=5900", "payment.overpaid", 1000, "EUR"),
        ("less", "amount=4000", "payment.amount_mismatch", 4000, "EUR"),
        ("dollars", "currency=usd&payment_method_types[]=card", "payment.amount_mismatch", 4900, "USD"),
    ] {
        // The intent is changed and paid in the Stripe Dashboard.
        let intent = harness.payment(invoice).await.provider_payment_intent_id;
        post_to_stripe(&harness, &format!("/v1/payment_intents/{intent}"), change).await;
        let paid = harness.sandbox().pay_intent_in_dashboard(&intent, &method).expect("it is paid");
        let payment = harness.payment_in(invoice, PaymentState::Succeeded).await;
        assert_eq!(Some(payment.amount_received.expect("an amount").minor_units), paid["amount_received"].as_i64());
        let emitted = emitted_payment(&mut harness, webhook_type, invoice).await;
        assert_eq!((emitted.amount_cents, emitted.amount_currency.as_str()), (Some(cents), currency), "{invoice}");
        assert_eq!(emitted.provider_payment_id, Some(intent), "with the intent");
        assert_eq!(
            emitted.provider_charge_id.as_deref(),
            paid["latest_charge"].as_str(),
            "and the charge, for a refund"
        );
        harness.all_delivered().await;
        harness.billing.wait_for_event("payment.succeeded", invoice).await.expect("the event is emitted");
        assert_eq!(harness.event_count("payment.succeeded", invoice).await, 1);
        assert_eq!(harness.event_count(webhook_type, invoice).await, 1, "emitted once");
    }
    assert_nothing_is_blocked(&mut harness, "inv").await;
    assert_eq!(harness.event_count("payment.overpaid", "inv").await, 0);
    assert_eq!(harness.event_count("payment.amount_mismatch", "inv").await, 0);
    harness.shutdown().await;
}

/// Makes a payment in the Stripe Dashboard with this metadata, and returns its event.
fn pay_in_dashboard(harness: &Harness, payer: (&str, &str), metadata: &[(&str, &str)]) -> Value {
    let payment = DashboardPayment {
        customer: payer.0.to_owned(),
        payment_method: payer.1.to_owned(),
        amount: 700,
        currency: "eur".to_owned(),
        metadata: metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    };
    harness.sandbox().pay_in_dashboard(&payment).expect("it is paid");
    newest_event(harness, "payment_intent.succeeded")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_foreign_intent_that_names_an_invoice_and_does_not_pay_it_changes_no_state() {
    let mut harness = Harness::new("foreign intents", Options::default()).await;
    let paying = harness.customer("hooli", "pm_card_visa").await;
    let declining = harness.customer("declining", DECLINING_CARD).await;
    let lacking = harness.customer_without_method("lacking").await;
    // A paid invoice, a declined one, and one that failed before anything was sent.
    for (payer, provider_id, invoice, state, webhook_type) in [
        ("hooli", paying, "paid", PaymentState::Succeeded, "payment.overpaid"),
        ("declining", declining, "declined", PaymentState::Failed, "payment.underpaid"),
        ("lacking", lacking, "unsent", PaymentState::Failed, "payment.underpaid"),
    ] {
        let payer_and_method = (provider_id.as_str(), "pm_card_visa");
        harness.pay(payer, invoice).await;
        let before = harness.payment_in(invoice, state).await;
        harness.all_delivered().await;
        let by_invoice = pay_in_dashboard(&harness, payer_and_method, &[("invoice_id", invoice)]);
        assert_eq!(processed_delivery(&harness, &object_id(&by_invoice)).await.0, "applied");
        let by_payment = pay_in_dashboard(&harness, payer_and_method, &[("payment_id", &before.id)]);
        assert_eq!(processed_delivery(&harness, &object_id(&by_payment)).await.0, "applied");
        for event in [&by_invoice, &by_payment] {
            harness.sandbox().resend(&object_id(event)).expect("it is sent again");
        }
        harness.all_delivered().await;
        let after = harness.payment(invoice).await;
        assert_eq!(after.state(), state, "a part settles nothing, and a paid invoice stays paid");
        let received =
            |it: &paybridge::grpc::proto::Payment| it.amount_received.as_ref().map_or(0, |it| it.minor_units);
        assert_eq!(received(&after) - received(&before), 1400, "recorded once each");
        until("both are reported", async || (harness.event_count(webhook_type, invoice).await >= 2).then_some(()))
            .await;
        assert_eq!(harness.event_count(webhook_type, invoice).await, 2, "once each");
    }
    harness.shutdown().await;
}

/// The response to its creation is lost for so long that the intent counts as foreign, and pays the invoice as such.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_an_own_intent_that_is_paid_before_it_is_known_is_counted_once() {
    let mut harness = Harness::new("early money", Options::default()).await;
    harness.customer("hooli", "pm_card_visa").await;
    let method = harness.methods("hooli").await[0].provider_payment_method_id.clone();
    harness.cut(CREATE, 1_000, Effect::Done);
    harness.pay("hooli", "inv").await;
    until("the intent is created", async || (!harness.intents("inv").is_empty()).then_some(())).await;
    let intent = harness.intents("inv")[0]["id"].as_str().expect("an id").to_owned();
    let paid = harness.sandbox().pay_intent_in_dashboard(&intent, &method).expect("it is paid");
    until("its event waits, then pays the invoice", async || {
        harness.advance_slowly(Duration::seconds(30));
        (harness.event_count("payment.succeeded", "inv").await == 1).then_some(())
    })
    .await;
    harness.sandbox().clear_faults();
    harness.advance(Duration::minutes(30));
    let payment = harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(harness.event_count("payment.overpaid", "inv").await, 0, "it was paid once");
    assert_eq!(payment.amount_received.expect("an amount").minor_units, 4900, "counted once");
    assert_eq!(harness.live_charges("inv"), 1);
    let request = CreateRefundRequest {
        payment: Some(create_refund_request::Payment::PaymentId(payment.id)),
        request_id: "back".to_owned(),
        ..CreateRefundRequest::default()
    };
    let response = harness.billing.api.payments.create_refund(request).await.expect("it is accepted").into_inner();
    let charge = response.refund.expect("a refund").provider_charge_id;
    assert_eq!(paid["latest_charge"], charge.as_str(), "the charge that settled it");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_foreign_intent_that_names_nothing_of_this_integration_is_ignored_with_the_reason() {
    let mut harness = Harness::new("unrelated", Options::default()).await;
    let payer = harness.customer("hooli", "pm_card_visa").await;
    let method = harness.methods("hooli").await[0].provider_payment_method_id.clone();
    let payer_and_method = (payer.as_str(), method.as_str());
    harness.pay("hooli", "inv").await;
    let before = harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.all_delivered().await;
    let unknown_id = "01890a5d-ac96-774b-bcce-b302099a8057";
    for (metadata, reason) in [
        (vec![], "not made by us"),
        (vec![("organization_id", unknown_id), ("invoice_id", "inv")], "another organization"),
        (vec![("organization_id", unknown_id), ("payment_id", before.id.as_str())], "another organization"),
        (vec![("invoice_id", "unknown")], "not known"),
        (vec![("payment_id", unknown_id)], "not known"),
    ] {
        let event = pay_in_dashboard(&harness, payer_and_method, &metadata);
        if reason == "not known" {
            // It may become known soon: it is retried for a while.
            let database = harness.database().await;
            until("it was tried, and waits", async || {
                let query = "SELECT FROM jobs WHERE object_key = $1 AND failures > 0";
                (!database.query(query, &[&object_id(&event)]).await.expect("a result").is_empty()).then_some(())
            })
            .await;
            harness.advance(Duration::minutes(5));
        }
        let (state, stored_reason) = processed_delivery(&harness, &object_id(&event)).await;
        assert_eq!(state, "ignored", "{metadata:?}");
        assert!(stored_reason.contains(reason), "{metadata:?}: {stored_reason}");
    }
    // An intent that captured nothing is no overpayment.
    let open = format!("amount=700&currency=eur&customer={payer}&metadata[invoice_id]=inv");
    let open = post_to_stripe(&harness, "/v1/payment_intents", &open).await;
    post_to_stripe(&harness, &format!("/v1/payment_intents/{}/cancel", open["id"].as_str().expect("an id")), "").await;
    let (state, reason) =
        processed_delivery(&harness, &object_id(&newest_event(&harness, "payment_intent.canceled"))).await;
    assert_eq!(state, "ignored", "{reason}");
    // An invoice of another integration of the same organization.
    let database = harness.database().await;
    let other = "INSERT INTO integrations (organization_id, id, code, name, state, livemode, provider_account_id, \
            key_hint, forbidden_actions, polls_events, supports_3ds, relay_provider_events, force_disconnect, version, \
            create_time, update_time) \
        SELECT organization_id, gen_random_uuid(), 'other', name, 'disconnected', livemode, provider_account_id, \
            key_hint, forbidden_actions, polls_events, supports_3ds, relay_provider_events, force_disconnect, version, \
            create_time, update_time FROM integrations";
    database.execute(other, &[]).await.expect("another integration");
    let moved = "UPDATE payments SET integration_id = (SELECT id FROM integrations WHERE code = 'other'), \
        provider_payment_intent_id = NULL";
    database.execute(moved, &[]).await.expect("the payment is moved to it");
    let event = pay_in_dashboard(&harness, payer_and_method, &[("invoice_id", "inv")]);
    harness.advance(Duration::minutes(5));
    until("it is ignored", async || {
        harness.advance_slowly(Duration::seconds(30));
        let database = harness.database().await;
        let query = "SELECT FROM deliveries WHERE provider_event_id = $1 AND state = 'ignored'";
        database.query_opt(query, &[&object_id(&event)]).await.expect("a result").map(|_| ())
    })
    .await;
    assert_eq!(harness.event_count("payment.overpaid", "inv").await, 0, "nothing is reported");
    let after = harness.payment("inv").await;
    assert_eq!(after.amount_received, before.amount_received);
    harness.shutdown().await;
}
