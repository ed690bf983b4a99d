//! A restored database (P8) whose key, endpoint or objects have changed at Stripe since the backup, and a process that
//! is killed while it catches up. Each has a visible outcome, and nothing is collected twice.

use std::collections::BTreeMap;

use paybridge::clock::Clock;
use paybridge::dev::sandbox::{Action, Fault};
use paybridge::dev::scenarios::{BillingClient, Reporter, ScenarioContext};
use paybridge::dev::test_environment::{Options, TestEnvironment};
use paybridge::grpc::proto::{
    DeleteCustomerRequest, IntegrationState, ListCustomersRequest, PaymentState, delete_customer_request,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use time::Duration;

use crate::support::customers::object_id;
use crate::support::harness::{CREATE, Harness, post_to_stripe};
use crate::support::refunds::pay_and_settle;
use crate::support::restores::{
    assert_matches_stripe, changes_at_stripe, contact, count, log, options, pass, restore, restore_environment, rotate,
    settle, snapshot, snapshot_environment, until_active, until_caught_up, until_serving,
};
use crate::support::wait::{advance_until, until, until_ok};
use crate::support::{context, database, http, program};

/// The snapshot holds a key that was revoked since: as after any revocation, the integration is paused until it gets
/// another one, and then catches up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_restored_key_that_was_revoked_pauses_the_integration_until_it_is_replaced() {
    let mut harness = Harness::new("restored key", options()).await;
    harness.customer("hooli", "pm_card_visa").await;
    settle(&harness).await;
    snapshot(&harness).await;
    let (old, new) = (harness.billing.key.clone(), "sk_test_afterthesnapshot");
    harness.sandbox().add_key(new, &harness.billing.account, None);
    rotate(&harness, new).await;
    harness.sandbox().revoke_key(&old);
    pay_and_settle(&mut harness, "inv").await;

    restore(&harness).await;
    harness.pay("hooli", "inv").await;
    advance_until(&mut harness, Duration::seconds(10), "it is paused", async |harness| {
        (until_serving(harness).await == IntegrationState::Paused).then_some(())
    })
    .await;
    let (_, events) = log(&harness).await;
    assert!(count(&events, "payment_provider.error") >= 1, "it is reported");
    assert_eq!(changes_at_stripe(&harness), [""; 0]);
    rotate(&harness, new).await;
    // Its permissions were probed by requests that change nothing.
    harness.sandbox().clear_requests();
    until_caught_up(&harness).await;
    harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    settle(&harness).await;
    assert_matches_stripe(&harness).await;
    harness.shutdown().await;
}

/// A customer that is deleted here keeps its Stripe customer, which is listed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_customer_that_was_deleted_here_is_not_created_again() {
    let mut harness = Harness::new("deleted customer", options()).await;
    harness.customer_without_method("hooli").await;
    settle(&harness).await;
    let hooli = Some(delete_customer_request::Customer::ExternalId("hooli".to_owned()));
    let delete = DeleteCustomerRequest { customer: hooli };
    harness.billing.api.customers.delete_customer(delete).await.expect("it is deleted");
    snapshot(&harness).await;
    restore(&harness).await;
    until_caught_up(&harness).await;
    let customers = harness.billing.api.customers.list_customers(ListCustomersRequest::default()).await;
    assert_eq!(customers.expect("a page").into_inner().customers, []);
    harness.shutdown().await;
}

/// Nothing can be read any more, and nothing is needed: as before a catching up, the integration is disconnected, and its
/// endpoint is left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_an_integration_whose_key_was_revoked_is_disconnected_while_it_catches_up() {
    let mut harness = Harness::new("revoked while catching up", options()).await;
    harness.customer("hooli", "pm_card_visa").await;
    settle(&harness).await;
    snapshot(&harness).await;
    harness.sandbox().revoke_key(&harness.billing.key);
    restore(&harness).await;
    advance_until(&mut harness, Duration::seconds(10), "it is paused", async |harness| {
        (until_serving(harness).await == IntegrationState::Paused).then_some(())
    })
    .await;
    harness.disconnect(false).await;
    advance_until(&mut harness, Duration::seconds(30), "it is disconnected", async |harness| {
        (until_serving(harness).await == IntegrationState::Disconnected).then_some(())
    })
    .await;
    harness.shutdown().await;
}

/// The account was connected after the snapshot. Whoever connects it again does not know what was done before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_an_account_that_was_connected_after_the_snapshot_catches_up_when_it_is_connected_again() {
    let context = context(options()).await;
    let mut billing = BillingClient::create(&context, "lost integration").await.expect("an organization");
    snapshot_environment(&context.environment).await;
    let connected = async |billing: &mut BillingClient| {
        until_ok("Stripe is connected", async || billing.connect_stripe().await.map_err(|error| format!("{error:#}")))
            .await
    };
    let integration = connected(&mut billing).await;
    let mut harness = Harness::over(context, billing, integration);
    harness.customer("hooli", "pm_card_visa").await;
    let paid = pay_and_settle(&mut harness, "inv").await;
    settle(&harness).await;
    // Stripe forgets the keys of the requests.
    harness.advance(Duration::days(2));

    restore_environment(&harness.context.environment).await;
    harness.integration = connected(&mut harness.billing).await;
    assert_eq!(harness.read_integration().await.state(), IntegrationState::CatchingUp);
    until_active(&harness).await;
    harness.customer_without_method("hooli").await;
    harness.pay("hooli", "inv").await;
    let again = harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!((&again.id, again.provider_payment_intent_id), (&paid.id, paid.provider_payment_intent_id));
    settle(&harness).await;
    assert_matches_stripe(&harness).await;
    harness.shutdown().await;
}

/// A process verifies webhooks with secrets that it has cached, also those of an integration that the restored database
/// never had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_an_event_for_an_integration_that_the_snapshot_does_not_know_is_ignored() {
    let context = context(options()).await;
    let mut billing = BillingClient::create(&context, "unknown integration").await.expect("an organization");
    snapshot_environment(&context.environment).await;
    let integration =
        until_ok("Stripe is connected", async || billing.connect_stripe().await.map_err(|error| format!("{error:#}")))
            .await;
    let mut harness = Harness::over(context, billing, integration);
    let customer = format!("/v1/customers/{}", harness.customer_without_method("hooli").await);
    settle(&harness).await;
    post_to_stripe(&harness, &customer, "name=before").await;
    settle(&harness).await;

    restore_environment(&harness.context.environment).await;
    until_ok("the server serves", async || {
        let list = ListCustomersRequest::default();
        let response = harness.billing.api.customers.clone().list_customers(list).await;
        response.map(|_| ()).map_err(|status| status.to_string())
    })
    .await;
    post_to_stripe(&harness, &customer, "name=after").await;
    let database = harness.database().await;
    let states =
        "SELECT d.state FROM deliveries d LEFT JOIN integrations i ON i.id = d.integration_id WHERE i.id IS NULL";
    // Its job ends. On a slow machine the secret may not be cached any more: then the webhook is refused.
    settle(&harness).await;
    let rows = database.query(states, &[]).await.expect("the deliveries");
    let states: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert!(states.iter().all(|state| state == "ignored"), "{states:?}");
    harness.shutdown().await;
}

/// The endpoints of the account at Stripe that are enabled.
fn enabled_endpoints(harness: &Harness) -> Vec<Value> {
    let mut endpoints = harness.sandbox().objects("webhook_endpoint");
    endpoints.retain(|endpoint| endpoint["status"] == "enabled");
    endpoints
}

/// Deletes an endpoint at Stripe, as somebody in the Stripe Dashboard.
async fn delete_endpoint(harness: &Harness, id: &str) {
    let url = format!("{}/v1/webhook_endpoints/{id}", harness.sandbox().url());
    let response = http().delete(url).bearer_auth(&harness.billing.key).send().await.expect("a response");
    assert!(response.status().is_success(), "{}", response.status());
}

/// The snapshot names an endpoint that does not exist any more. The one that has replaced it holds the counter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_restored_endpoint_that_was_replaced_is_not_missed_and_one_is_left() {
    let mut harness = Harness::new("restored endpoint", options()).await;
    let hooli = harness.customer_without_method("hooli").await;
    settle(&harness).await;
    snapshot(&harness).await;
    let old = harness.read_integration().await.provider_webhook_endpoint_id;
    delete_endpoint(&harness, &old).await;
    advance_until(&mut harness, Duration::seconds(61), "there is another endpoint", async |harness| {
        let id = harness.read_integration().await.provider_webhook_endpoint_id;
        (id != old && harness.sandbox().object(&id).is_some()).then_some(())
    })
    .await;
    harness.add_method("hooli", &hooli, "pm_card_visa").await;
    pay_and_settle(&mut harness, "inv").await;
    pass(&harness, Duration::seconds(61)).await;

    restore(&harness).await;
    assert_eq!(harness.read_integration().await.provider_webhook_endpoint_id, old);
    until_active(&harness).await;
    harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    advance_until(&mut harness, Duration::seconds(61), "one endpoint is left, and it is used", async |harness| {
        let id = harness.read_integration().await.provider_webhook_endpoint_id;
        let endpoints = enabled_endpoints(harness);
        (endpoints.len() == 1 && endpoints[0]["id"] == id).then_some(())
    })
    .await;
    pay_and_settle(&mut harness, "another").await;
    settle(&harness).await;
    assert_matches_stripe(&harness).await;
    harness.shutdown().await;
}

/// The charges of a Stripe customer that have not failed.
fn charges_of(harness: &Harness, customer: &str) -> usize {
    let ledger = harness.sandbox().ledger().into_iter();
    ledger.filter(|charge| charge.customer.as_deref() == Some(customer) && charge.status != "failed").count()
}

/// Somebody has edited the metadata of intents since the snapshot. Paybridge cannot know what they collected by that,
/// but Stripe knows the keys of their creation, so they are not created again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_intents_whose_metadata_was_edited_are_not_charged_again() {
    let edits = [
        "metadata[invoice_id]=",
        "metadata[invoice_id]=another-invoice",
        "metadata[payment_id]=nonsense",
        "metadata[payment_id]=",
        "metadata[organization_id]=00000000-0000-7000-8000-000000000000",
        "metadata[installation]=another",
        "metadata[customer_id]=nonsense",
        "metadata=",
    ];
    let mut harness = Harness::new("edited metadata", options()).await;
    let mut customers = Vec::new();
    for number in 0..edits.len() {
        customers.push(harness.customer(&format!("customer-{number}"), "pm_card_visa").await);
    }
    settle(&harness).await;
    snapshot(&harness).await;
    let mut intents = BTreeMap::new();
    for (number, edit) in edits.iter().enumerate() {
        let invoice = format!("inv-{number}");
        harness.pay(&format!("customer-{number}"), &invoice).await;
        let paid = harness.payment_in(&invoice, PaymentState::Succeeded).await;
        harness.all_delivered().await;
        post_to_stripe(&harness, &format!("{CREATE}/{}", paid.provider_payment_intent_id), edit).await;
        intents.insert(invoice, paid.provider_payment_intent_id);
    }
    settle(&harness).await;

    restore(&harness).await;
    until_caught_up(&harness).await;
    for number in 0..edits.len() {
        harness.pay(&format!("customer-{number}"), &format!("inv-{number}")).await;
    }
    for (invoice, intent) in &intents {
        advance_until(&mut harness, Duration::seconds(10), "it is settled, or says why not", async |harness| {
            let payment = harness.payment(invoice).await;
            let adopted = payment.state() == PaymentState::Succeeded && payment.provider_payment_intent_id == *intent;
            let is_decided =
                adopted || payment.state() == PaymentState::Failed || is_stopped(harness, &payment.id).await;
            is_decided.then_some(())
        })
        .await;
    }
    for (customer, edit) in customers.iter().zip(edits) {
        assert_eq!(charges_of(&harness, customer), 1, "one charge, although somebody set {edit}");
    }
    harness.shutdown().await;
}

/// Whether the payment's job has failed, with a reason that an operator sees.
async fn is_stopped(harness: &Harness, payment: &str) -> bool {
    let query = "SELECT FROM jobs WHERE kind = 'submit_payment' AND object_id::text = $1 \
        AND failures > 0 AND last_error IS NOT NULL";
    !harness.database().await.query(query, &[&payment]).await.expect("a result").is_empty()
}

/// How fast the clock of the killed process runs, and everything with it.
const SPEED: u32 = 60;

/// A harness whose server runs no jobs, on a fast clock that its worker processes share.
async fn with_fast_clock(name: &str) -> Harness {
    let anchor = Clock::system().now().replace_nanosecond(0).expect("a time");
    let process_clock = Some(format!("{},{SPEED},0", anchor.unix_timestamp()));
    let options = Options { worker_concurrency: 0, process_clock, ..options() };
    let clock = Clock::scaled(anchor, SPEED);
    let environment = TestEnvironment::start(database().await, clock, options).await.expect("the environment starts");
    environment.add_worker(&program()).await.expect("a worker");
    let context = ScenarioContext { environment, program: program(), reporter: Reporter { is_enabled: false } };
    let (billing, integration) = BillingClient::connected(&context, name).await.expect("Stripe is connected");
    Harness::over(context, billing, integration)
}

/// Kills the newest process and starts another worker.
async fn replace_worker(harness: &Harness) {
    let environment = &harness.context.environment;
    let process = environment.newest_process_id().expect("a process");
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, Signal::KILL).expect("the signal is sent");
    until("the process has ended", async || environment.exit_status(process)).await;
    harness.sandbox().clear_requests();
    environment.add_worker(&program()).await.expect("another worker");
}

/// The starts of the pages of PaymentIntents that were read.
fn pages_read(harness: &Harness) -> Vec<Option<String>> {
    let requests = harness.sandbox().requests().into_iter();
    let lists = requests.filter(|request| request.method == "GET" && request.path == CREATE);
    // The list of one customer's intents is read for other reasons.
    let lists = lists.filter(|request| !request.form.iter().any(|(name, _)| name == "customer"));
    let start = |form: Vec<(String, String)>| form.into_iter().find(|(name, _)| name == "starting_after");
    lists.map(|request| start(request.form).map(|(_, after)| after)).collect()
}

/// The process is killed between two pages of a list, again and again. Each successor continues where the last one was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_process_that_is_killed_while_it_catches_up_is_continued_by_another() {
    let mut harness = with_fast_clock("killed catching up").await;
    harness.customer("hooli", "pm_card_visa").await;
    settle(&harness).await;
    snapshot(&harness).await;
    let mut paid = Vec::new();
    for number in 0..3 {
        paid.push(pay_and_settle(&mut harness, &format!("inv-{number}")).await);
    }
    // Stripe lists the newest first, 100 a page: ours are on the last of four.
    for _ in 0..320 {
        object_id(&post_to_stripe(&harness, CREATE, "amount=100&currency=eur&payment_method_types[]=card").await);
    }
    let slow = Action::Delay { milliseconds: u64::from(SPEED) * 1_500, after_work: false };
    harness.sandbox().add_fault(Fault { times: None, ..Fault::once("GET", CREATE, slow) });

    restore(&harness).await;
    let mut reached = String::new();
    for _ in 0..2 {
        let position = until("another page is read", async || {
            let contact = contact(&harness).await;
            let after = contact["after"].as_str().filter(|_| contact["stage"] == "payment_intents")?.to_owned();
            (after != reached).then_some(after)
        })
        .await;
        replace_worker(&harness).await;
        until("the next page is requested", async || (!pages_read(&harness).is_empty()).then_some(())).await;
        let first = pages_read(&harness)[0].clone();
        assert!(first.is_some(), "it did not begin anew; the last position was {position}");
        reached = position;
    }
    harness.sandbox().clear_faults();
    // The clock runs by itself.
    until("it is in use", async || (until_serving(&harness).await == IntegrationState::Active).then_some(())).await;
    for before in &paid {
        harness.pay("hooli", &before.invoice_id).await;
        let now = harness.payment_in(&before.invoice_id, PaymentState::Succeeded).await;
        assert_eq!(now.provider_payment_intent_id, before.provider_payment_intent_id);
    }
    settle(&harness).await;
    assert_matches_stripe(&harness).await;
    let (_, events) = log(&harness).await;
    assert_eq!(count(&events, "payment_provider.catch_up_started"), 1, "reported once");
    assert_eq!(count(&events, "payment_provider.catch_up_finished"), 1, "reported once");
    harness.shutdown().await;
}
