//! P6: a webhook is acknowledged only after it is durable, and the same deliveries end in the same state in any order
//! and with any repeats.

use std::collections::BTreeSet;

use paybridge::dev::sandbox::{Action, DashboardPayment, WebhookAction, WebhookFault};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{Payment, PaymentState};
use serde_json::Value;
use time::Duration;
use tokio_postgres::Client;

use crate::support::customers::object_id;
use crate::support::harness::{Harness, post_to_stripe};
use crate::support::wait::until;
use crate::support::webhooks::{newest_event, processed_delivery};

/// The stored state and reason of an event.
async fn delivery(database: &Client, event: &str) -> Option<(String, Option<String>)> {
    let query = "SELECT state, reason FROM deliveries WHERE provider_event_id = $1";
    let row = database.query_opt(query, &[&event]).await.expect("a result");
    row.map(|row| (row.get(0), row.get(1)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_no_webhook_is_acknowledged_before_it_is_durable() {
    let mut harness = Harness::new("durable", Options::default()).await;
    let provider_id = harness.customer_without_method("hooli").await;
    harness.all_delivered().await;
    let database = harness.database().await;

    // The delivery cannot be written: the webhook is not answered.
    database.batch_execute("BEGIN; LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE").await.expect("the table is locked");
    harness.sandbox().attach_in_dashboard(&provider_id, "pm_card_visa").expect("the method is attached");
    let second_connection = harness.database().await;
    until("the insert waits for the lock", async || {
        let query = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'deliveries'::regclass";
        (!second_connection.query(query, &[]).await.expect("a result").is_empty()).then_some(())
    })
    .await;
    assert!(!harness.sandbox().deliveries().is_empty(), "it is not acknowledged");
    database.batch_execute("COMMIT").await.expect("the table is unlocked");
    harness.all_delivered().await;
    assert_eq!(harness.methods("hooli").await.len(), 1, "it was applied");

    // The write fails: the response is a 503, and Stripe retries.
    database.batch_execute("ALTER TABLE deliveries RENAME TO renamed").await.expect("the table is renamed");
    harness.sandbox().attach_in_dashboard(&provider_id, "pm_card_mastercard").expect("the method is attached");
    until("it is refused", async || {
        let waiting = harness.sandbox().deliveries();
        waiting.iter().any(|webhook| webhook.last_response == "503").then_some(())
    })
    .await;
    database.batch_execute("ALTER TABLE renamed RENAME TO deliveries").await.expect("the table is back");
    harness.advance(Duration::minutes(1));
    harness.all_delivered().await;
    assert_eq!(harness.methods("hooli").await.len(), 2, "the retry was applied");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_foreign_and_unhandled_events_are_stored_and_ignored_with_the_reason() {
    let mut harness = Harness::new("foreign", Options::default()).await;
    let provider_id = harness.customer("hooli", "pm_card_visa").await;
    let database = harness.database().await;
    // A type that Paybridge does not subscribe to.
    let path = format!("/v1/webhook_endpoints/{}", harness.integration.provider_webhook_endpoint_id);
    post_to_stripe(&harness, &path, "enabled_events[]=*").await;
    let foreign = post_to_stripe(&harness, "/v1/customers", "name=Foreign").await;
    let (state, reason) = processed_delivery(&harness, &object_id(&newest_event(&harness, "customer.created"))).await;
    assert_eq!(state, "ignored");
    assert!(reason.contains("customer.created"), "it names the type");
    // A payment made in the Stripe Dashboard.
    let method = harness.methods("hooli").await[0].provider_payment_method_id.clone();
    let payment = DashboardPayment {
        customer: provider_id,
        payment_method: method,
        amount: 700,
        currency: "eur".to_owned(),
        ..DashboardPayment::default()
    };
    harness.sandbox().pay_in_dashboard(&payment).expect("it is paid");
    let (state, reason) =
        processed_delivery(&harness, &object_id(&newest_event(&harness, "payment_intent.succeeded"))).await;
    assert_eq!((state.as_str(), reason.as_str()), ("ignored", "the PaymentIntent was not made by us"));
    // A method of a foreign customer, which might become known: the delivery waits before it is ignored.
    let foreign = foreign["id"].as_str().expect("an id");
    harness.sandbox().attach_in_dashboard(foreign, "pm_card_visa").expect("the method is attached");
    let event = object_id(&newest_event(&harness, "payment_method.attached"));
    until("it waits", async || delivery(&database, &event).await).await;
    let (state, reason) = until("it is ignored", async || {
        harness.advance_slowly(Duration::seconds(20));
        delivery(&database, &event).await.filter(|(state, _)| state != "received")
    })
    .await;
    assert_eq!(state, "ignored");
    assert!(reason.expect("a reason").contains("no customer of ours"), "with the reason");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_delivery_about_an_unknown_customer_waits_for_it() {
    let mut harness = Harness::new("early", Options::default()).await;
    let database = harness.database().await;
    // Stripe creates the customer, and responds 15 seconds later.
    harness.fault("/v1/customers", 1, Action::Delay { milliseconds: 15_000, after_work: true });
    let early = {
        let request = paybridge::grpc::proto::CreateCustomerRequest {
            request_id: "early-hooli".to_owned(),
            external_id: "hooli".to_owned(),
            sync_with_provider: true,
            ..Default::default()
        };
        harness.billing.api.customers.create_customer(request).await.expect("the customer is accepted");
        let id = until("the customer is created at Stripe", async || {
            let events = harness.sandbox().events(&harness.billing.account);
            let created = events.iter().find(|event| event["type"] == "customer.created");
            created.and_then(|event| event["data"]["object"]["id"].as_str().map(str::to_owned))
        })
        .await;
        harness.sandbox().attach_in_dashboard(&id, "pm_card_visa").expect("the method is attached");
        object_id(&newest_event(&harness, "payment_method.attached"))
    };
    until("it was tried, and waits", async || {
        let query = "SELECT FROM jobs WHERE kind = 'apply_delivery' AND object_key = $1 AND failures > 0";
        (!database.query(query, &[&early]).await.expect("a result").is_empty()).then_some(())
    })
    .await;
    assert_eq!(delivery(&database, &early).await.expect("it is stored").0, "received");
    harness.advance(Duration::seconds(16));
    let (state, _) = processed_delivery(&harness, &early).await;
    assert_eq!(state, "applied", "it is applied once the customer is known");
    let known = |customer: &paybridge::grpc::proto::Customer| !customer.default_payment_method_id.is_empty();
    harness.billing.wait_for_customer("hooli", "has its default", known).await.expect("the default");
    harness.shutdown().await;
}

/// The customers of one copy of the workload.
struct Copy {
    /// Its external id, and its id at Stripe.
    methods: (String, String),
    paid: String,
    failed: String,
    card: String,
}

/// The final state of a copy, without ids.
#[derive(Debug, PartialEq, Eq)]
struct FinalState {
    default: Option<usize>,
    attached: BTreeSet<usize>,
    states: [PaymentState; 3],
    refunded: i64,
    event_counts: Vec<(&'static str, usize)>,
    disputes_lost: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_any_order_and_any_repeats_of_the_same_deliveries_end_in_the_same_state() {
    const COPIES: usize = 4;
    let mut harness = Harness::new("orders", Options::default()).await;
    let mut copies = Vec::new();
    for number in 0..COPIES {
        let name = |part: &str| format!("{part}-{number}");
        copies.push(Copy {
            methods: (name("methods"), harness.customer_without_method(&name("methods")).await),
            paid: name("paid"),
            failed: name("failed"),
            card: name("card"),
        });
        harness.customer(&name("paid"), "DE89370400440532013000").await;
        harness.customer(&name("failed"), "DE62370400440532013001").await;
        harness.customer(&name("card"), "pm_card_createDispute").await;
    }
    harness.all_delivered().await;
    let before = harness.sandbox().events(&harness.billing.account).len();
    // Everything happens at Stripe, and all webhooks are lost.
    harness.sandbox().add_webhook_fault(WebhookFault::default());
    let mut methods = Vec::new();
    for copy in &copies {
        methods.push(run_workload(&mut harness, copy).await);
    }
    let events = harness.sandbox().events(&harness.billing.account).split_off(before);
    harness.sandbox().clear_faults();

    // The events of the first copy arrive in order, one by one; then those of all others at random, each twice.
    let own = |event: &Value, number: usize| belongs_to(&harness, &copies[number], event);
    let (first, rest): (Vec<_>, Vec<_>) = events.iter().partition(|event| own(event, 0));
    assert!(first.len() >= 12, "the workload has many events: {}", first.len());
    for event in first {
        harness.sandbox().resend(event["id"].as_str().expect("an id")).expect("it is sent");
        harness.all_delivered().await;
    }
    let mut shuffled: Vec<&str> = rest.iter().filter_map(|event| event["id"].as_str()).collect();
    shuffled.extend(shuffled.clone());
    shuffle(&mut shuffled);
    for event in shuffled {
        harness.sandbox().resend(event).expect("it is sent");
    }
    harness.all_delivered().await;

    let expected = final_state(&mut harness, &copies[0], &methods[0]).await;
    assert_eq!(expected.states, [PaymentState::Succeeded, PaymentState::Failed, PaymentState::Succeeded]);
    assert_eq!((expected.default, expected.refunded), (Some(0), 300));
    for number in 1..COPIES {
        let actual = final_state(&mut harness, &copies[number], &methods[number]).await;
        assert_eq!(actual, expected, "copy {number}");
    }
    harness.shutdown().await;
}

fn shuffle<T>(list: &mut [T]) {
    for place in (1..list.len()).rev() {
        let random = getrandom::u32().expect("the operating system gives random numbers");
        list.swap(place, usize::try_from(random).expect("32 bits") % (place + 1));
    }
}

/// Attaches methods, pays, disputes and refunds at Stripe. Returns the Stripe ids of the methods, in order.
async fn run_workload(harness: &mut Harness, copy: &Copy) -> Vec<String> {
    let sandbox = harness.sandbox().clone();
    let mut attached_ids = Vec::new();
    for method in ["pm_card_visa", "pm_card_mastercard", "pm_card_amex"] {
        harness.advance(Duration::seconds(2));
        let attached = sandbox.attach_in_dashboard(&copy.methods.1, method).expect("the method is attached");
        attached_ids.push(attached["id"].as_str().expect("an id").to_owned());
        if method == "pm_card_mastercard" {
            harness.advance(Duration::seconds(2));
            sandbox.set_default_in_dashboard(&copy.methods.1, Some(&attached_ids[1])).expect("chosen");
        }
    }
    harness.advance(Duration::seconds(2));
    sandbox.set_default_in_dashboard(&copy.methods.1, Some(&attached_ids[0])).expect("chosen");
    sandbox.detach_in_dashboard(&attached_ids[2]).expect("detached");

    for name in [&copy.paid, &copy.failed] {
        let invoice = format!("inv-{name}");
        harness.pay(name, &invoice).await;
        let is_sent = |payment: &Payment| {
            payment.state() == PaymentState::Processing && !payment.attempts[0].provider_charge_id.is_empty()
        };
        let intent = harness.payment_when(&invoice, "is at the bank", is_sent).await.provider_payment_intent_id;
        assert_eq!(sandbox.settle(Some(&intent)), 1, "the bank answers");
    }
    let invoice = format!("inv-{}", copy.card);
    harness.pay(&copy.card, &invoice).await;
    harness.payment_in(&invoice, PaymentState::Succeeded).await;
    let disputes = sandbox.events(&harness.billing.account);
    let intent = harness.payment(&invoice).await.provider_payment_intent_id;
    let dispute = disputes.iter().rev().find(|event| {
        event["type"] == "charge.dispute.created" && event["data"]["object"]["payment_intent"] == intent.as_str()
    });
    let dispute = dispute.and_then(|event| event["data"]["object"]["id"].as_str()).expect("a dispute");
    post_to_stripe(harness, &format!("/v1/disputes/{dispute}"), "evidence[uncategorized_text]=losing_evidence").await;
    let paid = sandbox
        .ledger()
        .into_iter()
        .find(|entry| entry.metadata.get("invoice_id").is_some_and(|id| *id == format!("inv-{}", copy.paid)));
    let charge = paid.expect("a charge").charge;
    for amount in [100, 200] {
        post_to_stripe(harness, "/v1/refunds", &format!("charge={charge}&amount={amount}")).await;
    }
    attached_ids
}

/// Whether an event is about one of a copy's customers or payments.
fn belongs_to(harness: &Harness, copy: &Copy, event: &Value) -> bool {
    let object = &event["data"]["object"];
    let invoices = [&copy.paid, &copy.failed, &copy.card].map(|name| format!("inv-{name}"));
    let intent = match object["object"].as_str() {
        Some("payment_intent") => Some(object.clone()),
        _ => object["payment_intent"].as_str().and_then(|id| harness.sandbox().object(id)),
    };
    if let Some(intent) = intent {
        return invoices.iter().any(|invoice| intent["metadata"]["invoice_id"] == invoice.as_str());
    }
    let customer = copy.methods.1.as_str();
    object["customer"] == customer
        || object["id"] == customer
        // A detached method no longer names its customer.
        || event["data"]["previous_attributes"]["customer"] == customer
}

async fn final_state(harness: &mut Harness, copy: &Copy, known_methods: &[String]) -> FinalState {
    let methods = harness.methods(&copy.methods.0).await;
    let position = |id: &str| known_methods.iter().position(|known| known == id);
    let attached = methods.iter().filter_map(|method| position(&method.provider_payment_method_id)).collect();
    let default = methods.iter().find(|method| method.is_default);
    let default = default.and_then(|method| position(&method.provider_payment_method_id));
    let invoices = [&copy.paid, &copy.failed, &copy.card].map(|name| format!("inv-{name}"));
    let mut states = [PaymentState::Unspecified; 3];
    for (state, invoice) in states.iter_mut().zip(&invoices) {
        *state = harness.payment(invoice).await.state();
    }
    let refunded = harness.payment(&invoices[0]).await.amount_refunded.map_or(0, |money| money.minor_units);
    let mut event_counts = Vec::new();
    for invoice in &invoices {
        for kind in ["payment.processing", "payment.succeeded", "invoice.payment_failure"] {
            event_counts.push((kind, harness.event_count(kind, invoice).await));
        }
    }
    let events = harness.events().await;
    let disputes_lost = events.iter().filter(|event| match &event.object {
        Some(Object::PaymentDisputeLost(lost)) => {
            lost.invoice.as_ref().is_some_and(|invoice| invoice.lago_id == invoices[2])
        }
        _ => false,
    });
    FinalState { default, attached, states, refunded, event_counts, disputes_lost: disputes_lost.count() }
}

/// Webhooks are shuffled and doubled while the methods change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_shuffled_and_doubled_webhooks_end_in_the_default_that_stripe_shows() {
    let mut harness = Harness::new("shuffle", Options::default()).await;
    let provider_id = harness.customer_without_method("hooli").await;
    let shuffle = WebhookAction::Shuffle { within_milliseconds: 5_000 };
    for action in [shuffle, WebhookAction::Double] {
        harness.sandbox().add_webhook_fault(WebhookFault { action, ..WebhookFault::default() });
    }
    let mut attached_ids = Vec::new();
    for method in ["pm_card_visa", "pm_card_mastercard", "pm_card_amex"] {
        let attached = harness.sandbox().attach_in_dashboard(&provider_id, method).expect("the method is attached");
        attached_ids.push(attached["id"].as_str().expect("an id").to_owned());
        harness.advance(Duration::seconds(1));
    }
    harness.sandbox().set_default_in_dashboard(&provider_id, Some(&attached_ids[1])).expect("chosen");
    harness.advance(Duration::seconds(1));
    harness.sandbox().detach_in_dashboard(&attached_ids[2]).expect("detached");
    harness.advance(Duration::seconds(6));
    harness.all_delivered().await;
    let methods = harness.methods("hooli").await;
    let default = methods.iter().find(|method| method.is_default).expect("a default");
    assert_eq!(default.provider_payment_method_id, attached_ids[1], "the chosen method");
    assert_eq!(methods.len(), 2, "one is detached");
    until("Stripe shows the same default", async || {
        let customer = harness.sandbox().object(&provider_id).expect("a customer");
        (customer["invoice_settings"]["default_payment_method"] == attached_ids[1].as_str()).then_some(())
    })
    .await;
    // A method that was reported as created is reported as detached, whichever event came first.
    let events = harness.events().await;
    let count = |kind: &str, id: &str| {
        let about =
            |object: &Option<Object>| matches!(object, Some(Object::PaymentMethod(it)) if it.provider_method_id == id);
        events.iter().filter(|event| event.webhook_type == kind && about(&event.object)).count()
    };
    let (created, detached) =
        (count("payment_method.created", &attached_ids[2]), count("payment_method.detached", &attached_ids[2]));
    assert_eq!(created, detached, "each is reported as often");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_method_found_detached_by_a_read_is_reported_as_detached_once() {
    let mut harness = Harness::new("found detached", Options::default()).await;
    let provider_id = harness.customer_without_method("hooli").await;
    let method = harness.add_method("hooli", &provider_id, "pm_card_visa").await;
    harness.all_delivered().await;
    let attached = object_id(&newest_event(&harness, "payment_method.attached"));
    harness.sandbox().add_webhook_fault(WebhookFault::default());
    harness.sandbox().detach_in_dashboard(&method).expect("detached");
    harness.sandbox().clear_faults();
    // The attachment arrives again under another id: a read finds that the method is detached.
    let database = harness.database().await;
    let duplicate = "INSERT INTO deliveries SELECT organization_id, integration_id, 'evt_duplicate', created, \
        event_type, body, polled, 'received', NULL, receive_time FROM deliveries WHERE provider_event_id = $1";
    database.execute(duplicate, &[&attached]).await.expect("the duplicate is stored");
    let job = "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, object_time, run_at, generation, \
            failures, lease_epoch) \
        SELECT gen_random_uuid(), organization_id, 'apply_delivery', integration_id, 'evt_duplicate', created, \
            created, 1, 0, 0 \
        FROM deliveries WHERE provider_event_id = 'evt_duplicate'";
    database.execute(job, &[]).await.expect("its job is enqueued");
    processed_delivery(&harness, "evt_duplicate").await;
    harness.sandbox().resend(&object_id(&newest_event(&harness, "payment_method.detached"))).expect("it is sent");
    harness.all_delivered().await;
    assert!(harness.methods("hooli").await.is_empty(), "it is detached");
    let events = harness.events().await;
    let detached = events.iter().filter(|event| event.webhook_type == "payment_method.detached").count();
    assert_eq!(detached, 1, "reported once");
    harness.shutdown().await;
}
