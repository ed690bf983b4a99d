//! P6: a webhook is answered only after it is durable, and any order and any number of repeats of the same deliveries
//! ends in the same state.

use std::collections::BTreeSet;

use paybridge::dev::sandbox::{Action, HandPayment, WebhookAction, WebhookFault};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{Payment, PaymentState};
use serde_json::Value;
use time::Duration;
use tokio_postgres::Client;

use crate::cashier::{Cashier, at_stripe, until};

/// What is stored of an event: state and reason.
async fn delivery(database: &Client, event: &str) -> Option<(String, Option<String>)> {
    let query = "SELECT state, reason FROM deliveries WHERE provider_event_id = $1";
    let row = database.query_opt(query, &[&event]).await.expect("a look");
    row.map(|row| (row.get(0), row.get(1)))
}

/// Waits until an event has been dealt with.
async fn dealt_with(database: &Client, event: &str) -> (String, Option<String>) {
    until(&format!("{event} is dealt with"), || async {
        delivery(database, event).await.filter(|(state, _)| state != "received")
    })
    .await
}

/// The newest event of a type at Stripe.
fn newest(cashier: &Cashier, kind: &str) -> String {
    let events = cashier.sandbox().events(&cashier.player.account);
    let event = events.iter().rev().find(|event| event["type"] == kind);
    event.and_then(|event| event["id"].as_str()).unwrap_or_else(|| panic!("no event {kind}")).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_no_webhook_is_acknowledged_before_it_is_durable() {
    let mut cashier = Cashier::new("durable", Options::default()).await;
    let provider_id = cashier.bare_customer("hooli").await;
    cashier.all_delivered().await;
    let database = cashier.database().await;

    // Nobody can write the delivery: the webhook waits for its answer.
    database.batch_execute("BEGIN; LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE").await.expect("the table is locked");
    cashier.sandbox().attach_by_hand(&provider_id, "pm_card_visa").expect("the method is attached");
    let watcher = cashier.database().await;
    until("the insert waits for the lock", || async {
        let query = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'deliveries'::regclass";
        (!watcher.query(query, &[]).await.expect("a look").is_empty()).then_some(())
    })
    .await;
    assert!(!cashier.sandbox().deliveries().is_empty(), "it is not acknowledged");
    database.batch_execute("COMMIT").await.expect("the table is free");
    cashier.all_delivered().await;
    assert_eq!(cashier.methods("hooli").await.len(), 1, "it was applied");

    // The write fails: 503, and Stripe comes again.
    database.batch_execute("ALTER TABLE deliveries RENAME TO gone").await.expect("the table is away");
    cashier.sandbox().attach_by_hand(&provider_id, "pm_card_mastercard").expect("the method is attached");
    until("it is refused", || async {
        let waiting = cashier.sandbox().deliveries();
        waiting.iter().any(|webhook| webhook.last_answer == "503").then_some(())
    })
    .await;
    database.batch_execute("ALTER TABLE gone RENAME TO deliveries").await.expect("the table is back");
    cashier.advance(Duration::minutes(1));
    cashier.all_delivered().await;
    assert_eq!(cashier.methods("hooli").await.len(), 2, "the second time it was taken");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_what_is_not_ours_and_what_is_not_handled_is_kept_and_ignored_with_the_reason() {
    let mut cashier = Cashier::new("foreign", Options::default()).await;
    let provider_id = cashier.customer("hooli", "pm_card_visa").await;
    let database = cashier.database().await;
    // Of a type that the endpoint never asked for.
    let path = format!("/v1/webhook_endpoints/{}", cashier.integration.provider_webhook_endpoint_id);
    at_stripe(&cashier, &path, "enabled_events[]=*").await;
    let stranger = at_stripe(&cashier, "/v1/customers", "name=Stranger").await;
    let (state, reason) = dealt_with(&database, &newest(&cashier, "customer.created")).await;
    assert_eq!(state, "ignored");
    assert!(reason.expect("a reason").contains("customer.created"), "it names the type");
    // A payment made by hand.
    let method = cashier.methods("hooli").await[0].provider_payment_method_id.clone();
    let by_hand = HandPayment {
        customer: provider_id,
        payment_method: method,
        amount: 700,
        currency: "eur".to_owned(),
        ..HandPayment::default()
    };
    cashier.sandbox().pay_by_hand(&by_hand).expect("it is paid");
    let (state, reason) = dealt_with(&database, &newest(&cashier, "payment_intent.succeeded")).await;
    assert_eq!((state.as_str(), reason.as_deref()), ("ignored", Some("the PaymentIntent was not made by us")));
    // A stranger's method: it might become known, so it waits; then it counts as not ours.
    let stranger = stranger["id"].as_str().expect("an id");
    cashier.sandbox().attach_by_hand(stranger, "pm_card_visa").expect("the method is attached");
    let event = newest(&cashier, "payment_method.attached");
    until("it waits", || async { delivery(&database, &event).await }).await;
    let (state, reason) = until("it is given up", || async {
        cashier.advance(Duration::seconds(20));
        delivery(&database, &event).await.filter(|(state, _)| state != "received")
    })
    .await;
    assert_eq!(state, "ignored");
    assert!(reason.expect("a reason").contains("no customer of ours"), "with the reason");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_delivery_for_something_not_yet_known_waits_for_it() {
    let mut cashier = Cashier::new("early", Options::default()).await;
    let database = cashier.database().await;
    // Stripe makes the customer, and its answer takes a minute of the clock.
    cashier.fault("/v1/customers", 1, Action::Delay { milliseconds: 15_000, after_work: true });
    let early = {
        let ask = paybridge::grpc::proto::CreateCustomerRequest {
            external_id: "hooli".to_owned(),
            sync_with_provider: true,
            ..Default::default()
        };
        cashier.player.api.customers.create_customer(ask).await.expect("the customer is taken");
        let id = until("the customer is made at Stripe", || async {
            let events = cashier.sandbox().events(&cashier.player.account);
            let made = events.iter().find(|event| event["type"] == "customer.created");
            made.and_then(|event| event["data"]["object"]["id"].as_str().map(str::to_owned))
        })
        .await;
        cashier.sandbox().attach_by_hand(&id, "pm_card_visa").expect("the method is attached");
        newest(&cashier, "payment_method.attached")
    };
    until("it was looked at, and waits", || async {
        let query = "SELECT FROM jobs WHERE kind = 'apply_delivery' AND object_key = $1 AND failures > 0";
        (!database.query(query, &[&early]).await.expect("a look").is_empty()).then_some(())
    })
    .await;
    assert_eq!(delivery(&database, &early).await.expect("it is stored").0, "received");
    cashier.advance(Duration::seconds(16));
    let (state, _) = dealt_with(&database, &early).await;
    assert_eq!(state, "applied", "it is applied once the customer is known");
    let known = |customer: &paybridge::grpc::proto::Customer| !customer.default_payment_method_id.is_empty();
    cashier.player.customer_when("hooli", "has its default", known).await.expect("the default");
    cashier.end().await;
}

/// One copy of the story: four customers, each with its part of it.
struct Copy {
    methods: (String, String),
    paid: String,
    failed: String,
    card: String,
}

/// How a copy stands in the end, without ids.
#[derive(Debug, PartialEq, Eq)]
struct Ending {
    default: Option<usize>,
    attached: BTreeSet<usize>,
    states: [PaymentState; 3],
    refunded: i64,
    told: Vec<(&'static str, usize)>,
    disputes_lost: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_any_order_and_any_repeats_of_the_same_deliveries_end_in_the_same_state() {
    const COPIES: usize = 4;
    let mut cashier = Cashier::new("orders", Options::default()).await;
    let mut copies = Vec::new();
    for number in 0..COPIES {
        let name = |part: &str| format!("{part}-{number}");
        copies.push(Copy {
            methods: (name("methods"), cashier.bare_customer(&name("methods")).await),
            paid: name("paid"),
            failed: name("failed"),
            card: name("card"),
        });
        cashier.customer(&name("paid"), "DE89370400440532013000").await;
        cashier.customer(&name("failed"), "DE62370400440532013001").await;
        cashier.customer(&name("card"), "pm_card_createDispute").await;
    }
    cashier.all_delivered().await;
    let before = cashier.sandbox().events(&cashier.player.account).len();
    // The story happens at Stripe, and nobody hears of it.
    cashier.sandbox().add_webhook_fault(WebhookFault::default());
    let mut made = Vec::new();
    for copy in &copies {
        made.push(play(&mut cashier, copy).await);
    }
    let events = cashier.sandbox().events(&cashier.player.account).split_off(before);
    cashier.sandbox().clear_faults();

    // Those of the first copy come in their true order, one by one; then all others at random, some twice.
    let own = |event: &Value, number: usize| belongs_to(&cashier, &copies[number], event);
    let (first, rest): (Vec<_>, Vec<_>) = events.iter().partition(|event| own(event, 0));
    assert!(first.len() >= 12, "the story has many events: {}", first.len());
    for event in first {
        cashier.sandbox().resend(event["id"].as_str().expect("an id")).expect("it is sent");
        cashier.all_delivered().await;
    }
    let mut shuffled: Vec<&str> = rest.iter().filter_map(|event| event["id"].as_str()).collect();
    shuffled.extend(shuffled.clone());
    shuffle(&mut shuffled);
    for event in shuffled {
        cashier.sandbox().resend(event).expect("it is sent");
    }
    cashier.all_delivered().await;

    let expected = ending(&mut cashier, &copies[0], &made[0]).await;
    assert_eq!(expected.states, [PaymentState::Succeeded, PaymentState::Failed, PaymentState::Succeeded]);
    assert_eq!((expected.default, expected.refunded), (Some(0), 300));
    for number in 1..COPIES {
        let ended = ending(&mut cashier, &copies[number], &made[number]).await;
        assert_eq!(ended, expected, "copy {number}");
    }
    cashier.end().await;
}

/// Another order every time.
fn shuffle<T>(list: &mut [T]) {
    for place in (1..list.len()).rev() {
        let random = getrandom::u32().expect("the operating system gives random numbers");
        list.swap(place, usize::try_from(random).expect("32 bits") % (place + 1));
    }
}

/// Plays the story at Stripe; returns the Stripe ids of the methods that it made, in order.
async fn play(cashier: &mut Cashier, copy: &Copy) -> Vec<String> {
    let sandbox = cashier.sandbox().clone();
    let mut made = Vec::new();
    for method in ["pm_card_visa", "pm_card_mastercard", "pm_card_amex"] {
        cashier.advance(Duration::seconds(2));
        let attached = sandbox.attach_by_hand(&copy.methods.1, method).expect("the method is attached");
        made.push(attached["id"].as_str().expect("an id").to_owned());
        if method == "pm_card_mastercard" {
            cashier.advance(Duration::seconds(2));
            sandbox.set_default_by_hand(&copy.methods.1, Some(&made[1])).expect("chosen");
        }
    }
    cashier.advance(Duration::seconds(2));
    sandbox.set_default_by_hand(&copy.methods.1, Some(&made[0])).expect("chosen");
    sandbox.detach_by_hand(&made[2]).expect("detached");

    for name in [&copy.paid, &copy.failed] {
        let invoice = format!("inv-{name}");
        cashier.pay(name, &invoice).await;
        let is_sent = |payment: &Payment| {
            payment.state() == PaymentState::Processing && !payment.attempts[0].provider_charge_id.is_empty()
        };
        let intent = cashier.payment_when(&invoice, "is at the bank", is_sent).await.provider_payment_intent_id;
        assert_eq!(sandbox.settle(Some(&intent)), 1, "the bank answers");
    }
    let invoice = format!("inv-{}", copy.card);
    cashier.pay(&copy.card, &invoice).await;
    cashier.payment_in(&invoice, PaymentState::Succeeded).await;
    let disputes = sandbox.events(&cashier.player.account);
    let intent = cashier.payment(&invoice).await.provider_payment_intent_id;
    let dispute = disputes.iter().rev().find(|event| {
        event["type"] == "charge.dispute.created" && event["data"]["object"]["payment_intent"] == intent.as_str()
    });
    let dispute = dispute.and_then(|event| event["data"]["object"]["id"].as_str()).expect("a dispute");
    at_stripe(cashier, &format!("/v1/disputes/{dispute}"), "evidence[uncategorized_text]=losing_evidence").await;
    let paid = sandbox
        .ledger()
        .into_iter()
        .find(|entry| entry.metadata.get("invoice_id").is_some_and(|id| *id == format!("inv-{}", copy.paid)));
    let charge = paid.expect("a charge").charge;
    for amount in [100, 200] {
        at_stripe(cashier, "/v1/refunds", &format!("charge={charge}&amount={amount}")).await;
    }
    made
}

/// Whether an event is about one of a copy's customers or payments.
fn belongs_to(cashier: &Cashier, copy: &Copy, event: &Value) -> bool {
    let object = &event["data"]["object"];
    let invoices = [&copy.paid, &copy.failed, &copy.card].map(|name| format!("inv-{name}"));
    let intent = match object["object"].as_str() {
        Some("payment_intent") => Some(object.clone()),
        _ => object["payment_intent"].as_str().and_then(|id| cashier.sandbox().object(id)),
    };
    if let Some(intent) = intent {
        return invoices.iter().any(|invoice| intent["metadata"]["invoice_id"] == invoice.as_str());
    }
    let customer = copy.methods.1.as_str();
    object["customer"] == customer
        || object["id"] == customer
        // What is detached names its customer no more.
        || event["data"]["previous_attributes"]["customer"] == customer
}

async fn ending(cashier: &mut Cashier, copy: &Copy, made: &[String]) -> Ending {
    let methods = cashier.methods(&copy.methods.0).await;
    let place = |id: &str| made.iter().position(|known| known == id);
    let attached = methods.iter().filter_map(|method| place(&method.provider_payment_method_id)).collect();
    let default = methods.iter().find(|method| method.is_default);
    let default = default.and_then(|method| place(&method.provider_payment_method_id));
    let invoices = [&copy.paid, &copy.failed, &copy.card].map(|name| format!("inv-{name}"));
    let mut states = [PaymentState::Unspecified; 3];
    for (state, invoice) in states.iter_mut().zip(&invoices) {
        *state = cashier.payment(invoice).await.state();
    }
    let refunded = cashier.payment(&invoices[0]).await.amount_refunded.map_or(0, |money| money.minor_units);
    let mut told = Vec::new();
    for invoice in &invoices {
        for kind in ["payment.processing", "payment.succeeded", "invoice.payment_failure"] {
            told.push((kind, cashier.count(kind, invoice).await));
        }
    }
    let events = cashier.events().await;
    let disputes_lost = events.iter().filter(|event| match &event.object {
        Some(Object::PaymentDisputeLost(lost)) => {
            lost.invoice.as_ref().is_some_and(|invoice| invoice.lago_id == invoices[2])
        }
        _ => false,
    });
    Ending { default, attached, states, refunded, told, disputes_lost: disputes_lost.count() }
}

/// The order in which Stripe's own faults bring them: shuffled and doubled while the story goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_shuffled_and_doubled_webhooks_end_in_the_default_that_stripe_shows() {
    let mut cashier = Cashier::new("shuffle", Options::default()).await;
    let provider_id = cashier.bare_customer("hooli").await;
    let shuffle = WebhookAction::Shuffle { within_milliseconds: 5_000 };
    for action in [shuffle, WebhookAction::Double] {
        cashier.sandbox().add_webhook_fault(WebhookFault { action, ..WebhookFault::default() });
    }
    let mut made = Vec::new();
    for method in ["pm_card_visa", "pm_card_mastercard", "pm_card_amex"] {
        let attached = cashier.sandbox().attach_by_hand(&provider_id, method).expect("the method is attached");
        made.push(attached["id"].as_str().expect("an id").to_owned());
        cashier.advance(Duration::seconds(1));
    }
    cashier.sandbox().set_default_by_hand(&provider_id, Some(&made[1])).expect("chosen");
    cashier.advance(Duration::seconds(1));
    cashier.sandbox().detach_by_hand(&made[2]).expect("detached");
    cashier.advance(Duration::seconds(6));
    cashier.all_delivered().await;
    let methods = cashier.methods("hooli").await;
    let default = methods.iter().find(|method| method.is_default).expect("a default");
    assert_eq!(default.provider_payment_method_id, made[1], "the one that was chosen");
    assert_eq!(methods.len(), 2, "the detached one is gone");
    until("Stripe shows the same default", || async {
        let there = cashier.sandbox().object(&provider_id).expect("a customer");
        (there["invoice_settings"]["default_payment_method"] == made[1].as_str()).then_some(())
    })
    .await;
    // What is read while nobody can be told stays told: each of the three was told as it came and went.
    let events = cashier.events().await;
    let count = |kind: &str, id: &str| {
        let about = |object: &Option<Object>| matches!(object, Some(Object::PaymentMethod(told)) if told.provider_method_id == id);
        events.iter().filter(|event| event.webhook_type == kind && about(&event.object)).count()
    };
    let (created, detached) = (count("payment_method.created", &made[2]), count("payment_method.detached", &made[2]));
    assert_eq!(created, detached, "what was told as added is told as gone");
    cashier.end().await;
}

/// A method that was told as added is told as gone, also where a read finds out before the event comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_method_found_detached_by_a_read_is_told_as_detached_once() {
    let mut cashier = Cashier::new("found gone", Options::default()).await;
    let provider_id = cashier.bare_customer("hooli").await;
    let method = cashier.add_method("hooli", &provider_id, "pm_card_visa").await;
    cashier.all_delivered().await;
    let attached = newest(&cashier, "payment_method.attached");
    cashier.sandbox().add_webhook_fault(WebhookFault::default());
    cashier.sandbox().detach_by_hand(&method).expect("detached");
    cashier.sandbox().clear_faults();
    // The attachment comes once more under another id, as an update would: it is read, and is gone.
    let database = cashier.database().await;
    let twin = "INSERT INTO deliveries SELECT organization_id, integration_id, 'evt_twin', created, event_type, body, \
        polled, 'received', NULL, receive_time FROM deliveries WHERE provider_event_id = $1";
    database.execute(twin, &[&attached]).await.expect("the twin is stored");
    let job = "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, object_time, run_at, asked, failures, \
            lease_epoch) \
        SELECT gen_random_uuid(), organization_id, 'apply_delivery', integration_id, 'evt_twin', created, created, 1, 0, 0 \
        FROM deliveries WHERE provider_event_id = 'evt_twin'";
    database.execute(job, &[]).await.expect("its job is asked for");
    dealt_with(&database, "evt_twin").await;
    cashier.sandbox().resend(&newest(&cashier, "payment_method.detached")).expect("it is sent");
    cashier.all_delivered().await;
    assert!(cashier.methods("hooli").await.is_empty(), "it is gone");
    let told = cashier.events().await;
    let told = told.iter().filter(|event| event.webhook_type == "payment_method.detached").count();
    assert_eq!(told, 1, "and told so, once");
    cashier.end().await;
}
