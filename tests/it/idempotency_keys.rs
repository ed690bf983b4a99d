//! Idempotency keys of creations: a row that is made anew sends the key that the old row has sent, so that Stripe shows
//! what exists already, and a replayed response is not taken for the present state (P2).

use paybridge::dev::sandbox::{Effect, WebhookFault};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::{Customer, PaymentState};

use crate::support::customers::synced_customer;
use crate::support::harness::{CREATE, Harness};
use crate::support::wait::until;

/// Deletes rows as a restored backup lacks them. Their foreign keys don't count.
async fn forget(harness: &Harness, tables: &[&str]) {
    let deletes: String = tables.iter().map(|table| format!("DELETE FROM {table};")).collect();
    let statements = format!("BEGIN; SET LOCAL session_replication_role = replica; {deletes} COMMIT");
    harness.database().await.batch_execute(&statements).await.expect("the rows are deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_an_invoice_whose_payment_is_made_anew_adopts_the_intent_that_has_paid_it() {
    let mut harness = Harness::with_customer("payment anew", "pm_card_visa").await;
    let first = harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.all_delivered().await;
    let keys =
        |harness: &Harness| -> Vec<_> { harness.posts(CREATE).into_iter().map(|post| post.idempotency_key).collect() };
    let before = keys(&harness);
    let tables = ["payments", "payment_attempts", "charges", "request_ids", "jobs", "stripe_requests"];
    forget(&harness, &tables).await;

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
