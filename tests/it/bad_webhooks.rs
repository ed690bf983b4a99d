//! Webhooks that say what they should not: each kind has an outcome that an operator finds, none stands in the way of the
//! next one, and none loses money (P6, P12).

use paybridge::dev::sandbox::{Effect, HandPayment};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{EventPayment, PaymentState, RefundPaymentRequest};
use paybridge::stripe::signature;
use secrecy::SecretString;
use serde_json::{Value, json};
use time::Duration;

use crate::cashier::{CREATE, Cashier, at_stripe, until};
use crate::links::DECLINING;

/// Posts a body to the integration's own address, signed as Stripe does; the status of the answer.
async fn post(cashier: &Cashier, body: &str) -> u16 {
    let endpoint = &cashier.integration.provider_webhook_endpoint_id;
    let secret = cashier.sandbox().webhook_secret(endpoint).expect("the endpoint's secret");
    let stage = &cashier.scenery.stage;
    let url =
        format!("{}/webhooks/stripe/{}/{}", stage.servers[0].http, cashier.player.organization, cashier.integration.id);
    let header = signature::header(body.as_bytes(), &[SecretString::from(secret)], stage.clock.now());
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = client.post(url).header("stripe-signature", header).body(body.to_owned()).send().await;
    answer.expect("the door answers").status().as_u16()
}

/// An event as Stripe writes it.
fn event(id: &str, kind: &str, object: &Value) -> Value {
    json!({
        "id": id, "object": "event", "type": kind, "created": 1_700_000_000, "livemode": false,
        "api_version": "2026-08-26.dahlia", "request": { "id": null, "idempotency_key": null },
        "data": { "object": object },
    })
}

/// Waits until an event has been dealt with; its state and reason.
async fn dealt_with(cashier: &Cashier, event: &str) -> (String, String) {
    let database = cashier.database().await;
    until(&format!("{event} is dealt with"), || async {
        let query = "SELECT state, reason FROM deliveries WHERE provider_event_id = $1 AND state <> 'received'";
        let row = database.query_opt(query, &[&event]).await.expect("a look")?;
        Some((row.get(0), row.get::<_, Option<String>>(1).unwrap_or_default()))
    })
    .await
}

/// The last event of a type at Stripe.
fn newest(cashier: &Cashier, kind: &str) -> Value {
    let events = cashier.sandbox().events(&cashier.player.account);
    events.into_iter().rev().find(|event| event["type"] == kind).unwrap_or_else(|| panic!("no event {kind}"))
}

fn id_of(event: &Value) -> String {
    event["id"].as_str().expect("an id").to_owned()
}

/// A payment that was told by an event of a type, as it was told.
async fn told(cashier: &mut Cashier, webhook_type: &str, invoice: &str) -> EventPayment {
    match cashier.player.told(webhook_type, invoice).await.expect("it is told").object {
        Some(Object::Payment(payment)) => payment,
        other => panic!("not a payment: {other:?}"),
    }
}

/// The next delivery goes its way: the customer pays, and it is told.
async fn nothing_is_blocked(cashier: &mut Cashier, invoice: &str) {
    cashier.customer(&format!("next-{invoice}"), "pm_card_visa").await;
    cashier.pay(&format!("next-{invoice}"), invoice).await;
    cashier.payment_in(invoice, PaymentState::Succeeded).await;
    cashier.all_delivered().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_what_is_signed_and_no_event_is_refused_and_counted_and_what_can_not_be_read_is_parked() {
    let mut cashier = Cashier::new("unreadable", Options::default()).await;
    for body in ["", "not JSON", "[]", r#"{"id":"evt_1"}"#, "{\"id\":\"evt_\u{0}\",\"type\":\"x\",\"created\":1}"] {
        assert_eq!(post(&cashier, body).await, 400, "{body}");
    }
    let counted = cashier.metrics().await;
    assert!(counted.contains(r#"paybridge_webhooks_total{answer="not_an_event"}"#), "{counted}");
    let database = cashier.database().await;
    let stored = database.query_one("SELECT count(*) FROM deliveries WHERE created < '2024-01-01'", &[]).await;
    assert_eq!(stored.expect("a count").get::<_, i64>(0), 0, "what has no id of an event can't be stored once");

    // Of a type that we handle: it may be about money, so it is kept for somebody to look at.
    let unreadable = json!({ "id": "pi_1", "status": "a new word", "amount": 1, "currency": "eur" });
    for (id, object) in [("evt_word", unreadable), ("evt_empty", json!({}))] {
        assert_eq!(post(&cashier, &event(id, "payment_intent.succeeded", &object).to_string()).await, 200);
        let (state, reason) = dealt_with(&cashier, id).await;
        assert_eq!(state, "parked", "{reason}");
        assert!(reason.contains("payment_intent.succeeded"), "it says what it is about: {reason}");
    }
    let counted = cashier.metrics().await;
    assert!(counted.contains(r#"paybridge_deliveries_total{state="parked"}"#), "{counted}");
    nothing_is_blocked(&mut cashier, "inv").await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_an_event_that_claims_another_account_or_mode_is_ignored_with_the_reason() {
    let mut cashier = Cashier::new("claims", Options::default()).await;
    cashier.customer("hooli", "DE89370400440532013000").await;
    cashier.pay("hooli", "inv").await;
    let payment = cashier.payment_in("inv", PaymentState::Processing).await;
    until("it is at the bank", || async { (cashier.live_charges("inv") == 1).then_some(()) }).await;
    cashier.all_delivered().await;
    let mut paid = cashier.sandbox().object(&payment.provider_payment_intent_id).expect("the intent");
    paid["status"] = "succeeded".into();
    paid["amount_received"] = 4900.into();
    let mut other_account = event("evt_account", "payment_intent.succeeded", &paid);
    other_account["account"] = "acct_other".into();
    let mut live = event("evt_live", "payment_intent.succeeded", &paid);
    live["livemode"] = true.into();
    for (event, word) in [(other_account, "acct_other"), (live, "live mode")] {
        assert_eq!(post(&cashier, &event.to_string()).await, 200);
        let (state, reason) = dealt_with(&cashier, &id_of(&event)).await;
        assert_eq!(state, "ignored");
        assert!(reason.contains(word), "{reason}");
    }
    assert_eq!(cashier.payment("inv").await.state(), PaymentState::Processing, "nobody has paid");
    // Its own account, named, is its own.
    let mut own = event("evt_own", "payment_intent.processing", &paid);
    own["account"] = cashier.player.account.clone().into();
    assert_eq!(post(&cashier, &own.to_string()).await, 200);
    assert_eq!(dealt_with(&cashier, "evt_own").await.0, "applied");
    nothing_is_blocked(&mut cashier, "next").await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_snapshot_older_than_what_is_known_changes_nothing() {
    let mut cashier = Cashier::new("old news", Options::default()).await;
    let provider_id = cashier.customer("hooli", DECLINING).await;
    cashier.pay("hooli", "inv").await;
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    cashier.all_delivered().await;
    let old = cashier.sandbox().object(&failed.provider_payment_intent_id).expect("the intent");
    cashier.add_method("hooli", &provider_id, "DE89370400440532013000").await;
    cashier.retry("retry", &failed, false).await.expect("it is tried again");
    cashier.payment_in("inv", PaymentState::Processing).await;
    until("it is at the bank", || async { (cashier.live_charges("inv") == 1).then_some(()) }).await;
    cashier.all_delivered().await;
    // The decline of the first try, told again under another event's id: while the second is at the bank, and after.
    let mut asks = old.clone();
    asks["status"] = "requires_action".into();
    let mut round = 0;
    let mut tell_old = async |cashier: &mut Cashier, state: PaymentState| {
        let before = cashier.payment_in("inv", state).await;
        for (kind, object) in [("payment_failed", &old), ("requires_action", &asks), ("processing", &old)] {
            round += 1;
            let told = event(&format!("evt_old_{round}"), &format!("payment_intent.{kind}"), object);
            assert_eq!(post(cashier, &told.to_string()).await, 200);
            assert_eq!(dealt_with(cashier, &id_of(&told)).await.0, "applied", "{kind}: what counts is read");
        }
        assert_eq!(cashier.payment("inv").await.etag, before.etag, "nothing has changed");
    };
    tell_old(&mut cashier, PaymentState::Processing).await;
    cashier.sandbox().settle(None);
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    cashier.all_delivered().await;
    tell_old(&mut cashier, PaymentState::Succeeded).await;
    assert_eq!(cashier.player.count("invoice.payment_failure", "inv"), 1, "the decline was told when it happened");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_an_own_intent_that_takes_another_amount_or_currency_is_settled_as_stripe_reports_and_told() {
    let mut cashier = Cashier::new("otherwise", Options::default()).await;
    let provider_id = cashier.customer("hooli", DECLINING).await;
    for invoice in ["more", "less", "dollars"] {
        cashier.pay("hooli", invoice).await;
        cashier.payment_in(invoice, PaymentState::Failed).await;
    }
    let method = cashier.add_method("hooli", &provider_id, "pm_card_visa").await;
    for (invoice, change, webhook_type, cents, currency) in [
        ("more", "amount=5900", "payment.overpaid", 1000, "EUR"),
        ("less", "amount=4000", "payment.amount_mismatch", 4000, "EUR"),
        ("dollars", "currency=usd&payment_method_types[]=card", "payment.amount_mismatch", 4900, "USD"),
    ] {
        // Somebody changes the intent in the dashboard, and pays it there.
        let intent = cashier.payment(invoice).await.provider_payment_intent_id;
        at_stripe(&cashier, &format!("/v1/payment_intents/{intent}"), change).await;
        let paid = cashier.sandbox().pay_intent_by_hand(&intent, &method).expect("it is paid");
        let payment = cashier.payment_in(invoice, PaymentState::Succeeded).await;
        assert_eq!(Some(payment.amount_received.expect("an amount").minor_units), paid["amount_received"].as_i64());
        let told = told(&mut cashier, webhook_type, invoice).await;
        assert_eq!((told.amount_cents, told.amount_currency.as_str()), (Some(cents), currency), "{invoice}");
        assert_eq!(told.provider_payment_id, Some(intent), "by its own intent");
        assert_eq!(told.provider_charge_id.as_deref(), paid["latest_charge"].as_str(), "and charge, to refund it with");
        cashier.all_delivered().await;
        cashier.player.told("payment.succeeded", invoice).await.expect("it is told");
        assert_eq!(cashier.player.count("payment.succeeded", invoice), 1);
        assert_eq!(cashier.player.count(webhook_type, invoice), 1, "told once");
    }
    nothing_is_blocked(&mut cashier, "inv").await;
    assert_eq!(cashier.player.count("payment.overpaid", "inv"), 0);
    assert_eq!(cashier.player.count("payment.amount_mismatch", "inv"), 0);
    cashier.end().await;
}

/// A payment by hand, with these marks; the event that tells of it.
fn pay_by_hand(cashier: &Cashier, payer: (&str, &str), marks: &[(&str, &str)]) -> Value {
    let by_hand = HandPayment {
        customer: payer.0.to_owned(),
        payment_method: payer.1.to_owned(),
        amount: 700,
        currency: "eur".to_owned(),
        metadata: marks.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    };
    cashier.sandbox().pay_by_hand(&by_hand).expect("it is paid");
    newest(cashier, "payment_intent.succeeded")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_an_intent_of_others_that_names_an_invoice_of_ours_and_does_not_pay_it_changes_no_state() {
    let mut cashier = Cashier::new("others", Options::default()).await;
    let paying = cashier.customer("hooli", "pm_card_visa").await;
    let declining = cashier.customer("declining", DECLINING).await;
    let lacking = cashier.bare_customer("lacking").await;
    // One that is paid, one that failed, one that failed before anything was sent.
    for (payer, provider_id, invoice, state, told) in [
        ("hooli", paying, "paid", PaymentState::Succeeded, "payment.overpaid"),
        ("declining", declining, "declined", PaymentState::Failed, "payment.underpaid"),
        ("lacking", lacking, "unsent", PaymentState::Failed, "payment.underpaid"),
    ] {
        let who = (provider_id.as_str(), "pm_card_visa");
        cashier.pay(payer, invoice).await;
        let before = cashier.payment_in(invoice, state).await;
        cashier.all_delivered().await;
        let by_invoice = pay_by_hand(&cashier, who, &[("invoice_id", invoice)]);
        assert_eq!(dealt_with(&cashier, &id_of(&by_invoice)).await.0, "applied");
        let by_payment = pay_by_hand(&cashier, who, &[("payment_id", &before.id)]);
        assert_eq!(dealt_with(&cashier, &id_of(&by_payment)).await.0, "applied");
        for event in [&by_invoice, &by_payment] {
            cashier.sandbox().resend(&id_of(event)).expect("it is sent again");
        }
        cashier.all_delivered().await;
        let after = cashier.payment(invoice).await;
        assert_eq!(after.state(), state, "a part pays nothing, and what is paid is paid");
        let received =
            |it: &paybridge::grpc::proto::Payment| it.amount_received.as_ref().map_or(0, |it| it.minor_units);
        assert_eq!(received(&after) - received(&before), 1400, "recorded once each");
        until("both are told", || async { (cashier.player.count(told, invoice) >= 2).then_some(()) }).await;
        assert_eq!(cashier.player.count(told, invoice), 2, "once each");
    }
    cashier.end().await;
}

/// Its creation's answer stays lost for so long that it is taken for somebody else's, and pays the invoice as such.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_an_own_intent_that_is_paid_before_it_is_known_is_counted_once() {
    let mut cashier = Cashier::new("early money", Options::default()).await;
    cashier.customer("hooli", "pm_card_visa").await;
    let method = cashier.methods("hooli").await[0].provider_payment_method_id.clone();
    cashier.cut(CREATE, 1_000, Effect::Done);
    cashier.pay("hooli", "inv").await;
    until("the intent is made", || async { (!cashier.intents("inv").is_empty()).then_some(()) }).await;
    let intent = cashier.intents("inv")[0]["id"].as_str().expect("an id").to_owned();
    let paid = cashier.sandbox().pay_intent_by_hand(&intent, &method).expect("it is paid");
    until("its news wait, then pay the invoice", || async {
        cashier.advance(Duration::seconds(30));
        (cashier.player.count("payment.succeeded", "inv") == 1).then_some(())
    })
    .await;
    cashier.sandbox().clear_faults();
    cashier.advance(Duration::minutes(30));
    let payment = cashier.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(cashier.player.count("payment.overpaid", "inv"), 0, "it was paid once");
    assert_eq!(payment.amount_received.expect("an amount").minor_units, 4900, "counted once");
    assert_eq!(cashier.live_charges("inv"), 1);
    let request = RefundPaymentRequest {
        payment_id: payment.id,
        request_id: "back".to_owned(),
        ..RefundPaymentRequest::default()
    };
    let back = cashier.player.api.payments.refund_payment(request).await.expect("it is accepted").into_inner();
    let charge = back.refund.expect("a refund").provider_charge_id;
    assert_eq!(paid["latest_charge"], charge.as_str(), "of the charge that settled it");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_an_intent_of_others_that_names_nothing_of_this_integration_is_ignored_with_the_reason() {
    let mut cashier = Cashier::new("unrelated", Options::default()).await;
    let payer = cashier.customer("hooli", "pm_card_visa").await;
    let method = cashier.methods("hooli").await[0].provider_payment_method_id.clone();
    let who = (payer.as_str(), method.as_str());
    cashier.pay("hooli", "inv").await;
    let before = cashier.payment_in("inv", PaymentState::Succeeded).await;
    cashier.all_delivered().await;
    let elsewhere = "01890a5d-ac96-774b-bcce-b302099a8057";
    for (marks, reason) in [
        (vec![], "not made by us"),
        (vec![("organization_id", elsewhere), ("invoice_id", "inv")], "another organization"),
        (vec![("organization_id", elsewhere), ("payment_id", before.id.as_str())], "another organization"),
        (vec![("invoice_id", "unknown")], "not known"),
        (vec![("payment_id", elsewhere)], "not known"),
    ] {
        let event = pay_by_hand(&cashier, who, &marks);
        if reason == "not known" {
            // It may become known soon: it is looked at again for a while.
            let database = cashier.database().await;
            until("it was looked at, and waits", || async {
                let query = "SELECT FROM jobs WHERE object_key = $1 AND failures > 0";
                (!database.query(query, &[&id_of(&event)]).await.expect("a look").is_empty()).then_some(())
            })
            .await;
            cashier.advance(Duration::minutes(5));
        }
        let (state, told) = dealt_with(&cashier, &id_of(&event)).await;
        assert_eq!(state, "ignored", "{marks:?}");
        assert!(told.contains(reason), "{marks:?}: {told}");
    }
    // One that has taken no money is no overpayment.
    let open = format!("amount=700&currency=eur&customer={payer}&metadata[invoice_id]=inv");
    let open = at_stripe(&cashier, "/v1/payment_intents", &open).await;
    at_stripe(&cashier, &format!("/v1/payment_intents/{}/cancel", open["id"].as_str().expect("an id")), "").await;
    let (state, reason) = dealt_with(&cashier, &id_of(&newest(&cashier, "payment_intent.canceled"))).await;
    assert_eq!(state, "ignored", "{reason}");
    // Another integration's invoice, of the same organization.
    let database = cashier.database().await;
    let other = "INSERT INTO integrations SELECT organization_id, gen_random_uuid(), 'other', name, 'disconnected', \
            pause_reason, livemode, provider_account_id, key_hint, NULL, NULL, NULL, polls_events, poll_time, \
            success_redirect_url, supports_3ds, relay_provider_events, force_disconnect, version, create_time, \
            update_time FROM integrations";
    database.execute(other, &[]).await.expect("another integration");
    let moved = "UPDATE payments SET integration_id = (SELECT id FROM integrations WHERE code = 'other'), \
        provider_payment_intent_id = NULL";
    database.execute(moved, &[]).await.expect("the payment is the other's");
    let event = pay_by_hand(&cashier, who, &[("invoice_id", "inv")]);
    cashier.advance(Duration::minutes(5));
    until("it is given up", || async {
        cashier.advance(Duration::seconds(30));
        let database = cashier.database().await;
        let query = "SELECT FROM deliveries WHERE provider_event_id = $1 AND state = 'ignored'";
        database.query_opt(query, &[&id_of(&event)]).await.expect("a look").map(|_| ())
    })
    .await;
    assert_eq!(cashier.player.count("payment.overpaid", "inv"), 0, "nothing of it was told");
    let after = cashier.payment("inv").await;
    assert_eq!(after.amount_received, before.amount_received);
    cashier.end().await;
}
