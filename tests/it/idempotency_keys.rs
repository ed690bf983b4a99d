//! Idempotency keys of creations: a row that is made anew sends the key that the old row has sent, so that Stripe shows
//! what exists already, and a replayed response is not taken for the present state (P2).

use paybridge::dev::sandbox::{Effect, WebhookFault};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::{Customer, PaymentState};

use time::Duration;

use crate::support::customers::synced_customer;
use crate::support::harness::{CREATE, Harness};
use crate::support::sql::forget;
use crate::support::wait::until;

const PAYMENT_TABLES: [&str; 6] = ["payments", "payment_attempts", "charges", "request_ids", "jobs", "stripe_requests"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_an_invoice_whose_payment_is_made_anew_adopts_the_intent_that_has_paid_it() {
    let mut harness = Harness::with_customer("payment anew", "pm_card_visa").await;
    let first = harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.all_delivered().await;
    let keys =
        |harness: &Harness| -> Vec<_> { harness.posts(CREATE).into_iter().map(|post| post.idempotency_key).collect() };
    let before = keys(&harness);
    forget(&harness, &PAYMENT_TABLES).await;

    let second = harness.pay("hooli", "inv").await;
    assert_ne!(first.id, second.id, "it is another row");
    let payment = harness.payment_in("inv", PaymentState::Succeeded).await;
    let intents = harness.intents("inv");
    assert_eq!(intents.len(), 1, "no second intent: {intents:#?}");
    assert_eq!(payment.provider_payment_intent_id, intents[0]["id"]);
    assert_eq!(harness.live_charges("inv"), 1);
    let after = keys(&harness);
    assert!(after.len() > before.len() && after.iter().all(|key| *key == before[0]), "the old key: {after:?}");
    harness.shutdown().await;
}

/// The invoice's amount has changed, so the intent cannot be adopted. It has taken money, so there is no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_an_invoice_that_was_paid_with_another_amount_is_not_charged_again() {
    let mut harness = Harness::with_customer("amount anew", "pm_card_visa").await;
    harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.all_delivered().await;
    forget(&harness, &PAYMENT_TABLES).await;

    harness.pay_as("again", "hooli", "inv", 5000).await.expect("it is accepted");
    let database = harness.database().await;
    let stopped = "SELECT failures FROM jobs WHERE kind = 'submit_payment' AND last_error LIKE '%is stopped%'";
    let failures = async || database.query_opt(stopped, &[]).await.expect("a result").map(|row| row.get::<_, i32>(0));
    let before = until("its job has failed", failures).await;
    harness.advance(Duration::hours(21));
    until("it is tried again", async || failures().await.filter(|failures| *failures > before)).await;
    assert_eq!(harness.intents("inv").len(), 1, "no second intent, whatever the age of the key");
    assert_eq!(harness.live_charges("inv"), 1);
    harness.shutdown().await;
}

/// The first page may still be paid. Its row is lost, so nobody would notice: it is closed first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_link_that_is_made_anew_closes_the_page_that_was_forgotten() {
    let mut harness = Harness::new("link anew", Options::default()).await;
    harness.customer_without_method("hooli").await;
    harness.pay("hooli", "inv").await;
    let payment = harness.payment_in("inv", PaymentState::Failed).await;
    let (first, _) = harness.link("l1", &payment).await.expect("a link");
    harness.all_delivered().await;
    forget(&harness, &PAYMENT_TABLES).await;

    harness.pay("hooli", "inv").await;
    let payment = harness.payment_in("inv", PaymentState::Failed).await;
    harness.sandbox().clear_requests();
    let (second, _) = harness.link("l1", &payment).await.expect("another page");
    assert_ne!(second, first);
    let statuses: Vec<_> = harness.posts("/v1/checkout/sessions").iter().map(|post| post.status).collect();
    assert_eq!(statuses, [Some(400), Some(200)], "Stripe knew the key, with the body of the first page");
    harness.sandbox().complete_session(&first, "4242424242424242", true).expect_err("the first page is closed");
    harness.sandbox().complete_session(&second, "4242424242424242", true).expect("the second one can be paid");
    harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(harness.live_charges("inv"), 1);
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_customer_who_is_made_anew_adopts_the_stripe_customer() {
    let mut harness = Harness::new("customer anew", Options::default()).await;
    let first = harness.customer_without_method("hooli").await;
    harness.all_delivered().await;
    harness.drain_jobs(&["sync_customer", "create_checkout_session"]).await;
    forget(&harness, &["customers", "checkout_sessions", "request_ids", "jobs", "stripe_requests"]).await;

    harness.billing.api.customers.create_customer(synced_customer("hooli", &[])).await.expect("it is accepted");
    let is_linked = |customer: &Customer| !customer.provider_customer_id.is_empty();
    let second = harness.billing.wait_for_customer("hooli", "is linked", is_linked).await.expect("it is linked");
    assert_eq!(second.provider_customer_id, first, "no second Stripe customer");
    harness.shutdown().await;
}

/// The intent is created and its response lost. Before the request is repeated, a person pays the intent in the Stripe
/// Dashboard. The replayed response shows it as it was created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_an_intent_is_read_after_its_creation_is_replayed() {
    let mut harness = Harness::with_customer("replayed creation", "pm_card_visa").await;
    let method = harness.methods("hooli").await[0].provider_payment_method_id.clone();
    harness.all_delivered().await;
    for event in ["payment_intent.succeeded", "charge.succeeded"] {
        harness.sandbox().add_webhook_fault(WebhookFault {
            event: event.to_owned(),
            times: None,
            ..WebhookFault::default()
        });
    }
    harness.cut(CREATE, 1_000, Effect::Done);
    harness.pay("hooli", "inv").await;
    until("the intent is created", async || (!harness.intents("inv").is_empty()).then_some(())).await;
    let intent = harness.intents("inv")[0]["id"].as_str().expect("an id").to_owned();
    harness.sandbox().pay_intent_in_dashboard(&intent, &method).expect("it is paid");
    harness.sandbox().clear_faults();
    harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(harness.posts("/confirm").len(), 0, "it is not confirmed once more");
    assert_eq!(harness.live_charges("inv"), 1);
    harness.shutdown().await;
}
