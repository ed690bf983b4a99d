//! Reconciliation: webhooks are lost, and objects that have been in progress for too long are read from Stripe and
//! applied like a webhook, so that a repeat changes nothing (P6).

use paybridge::app::Periods;
use paybridge::dev::sandbox::{Action, Fault};
use paybridge::grpc::proto::PaymentState;
use paybridge::grpc::proto::event::Object;
use time::Duration;

use crate::support::customers::{GOOD_IBAN, checkout_request, checkout_session, has_default};
use crate::support::harness::{Harness, post_to_stripe};
use crate::support::reconciliation::{NEVER, refund_statuses, repaired, until_repaired};
use crate::support::wait::{advance_until, until};
use crate::support::webhooks::lose_webhooks;

/// Only stale objects are read.
fn sweep_only() -> Periods {
    Periods { list_test: NEVER, endpoint_test: NEVER, contact_max: NEVER, ..Periods::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_debit_a_session_and_a_refund_without_webhooks_are_reconciled() {
    let mut harness = Harness::with_periods("stale", sweep_only()).await;
    let provider_id = harness.customer_without_method("hooli").await;
    // One page is completed, another one is not.
    lose_webhooks(&harness, "*");
    let used = checkout_session(&mut harness).await;
    let unused = checkout_session(&mut harness).await;
    let before = (repaired(&harness, "checkout_session").await, repaired(&harness, "payment").await);
    harness.sandbox().complete_session(&used, GOOD_IBAN, true).expect("the page is completed");
    harness.advance(Duration::hours(24) + Duration::minutes(3));
    advance_until(&mut harness, Duration::minutes(1), "the method is found", has_default).await;
    let ended = format!("/{unused}");
    harness
        .billing
        .wait_for("the unused page's end", |event| match &event.object {
            Some(Object::PaymentProviderCustomerCheckoutUrl(link)) if link.checkout_url.ends_with(&ended) => {
                (event.webhook_type == "customer.checkout_url_expired").then_some(())
            }
            _ => None,
        })
        .await
        .expect("the event is emitted");
    until_repaired(&harness, "checkout_session", before.0 + 2).await;

    harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Processing).await;
    until("the bank has the debit", async || (harness.live_charges("inv") == 1).then_some(())).await;
    advance_until(&mut harness, Duration::hours(24), "the outcome of the debit is found", async |harness| {
        (harness.payment("inv").await.state() == PaymentState::Succeeded).then_some(())
    })
    .await;
    until_repaired(&harness, "payment", before.1 + 1).await;
    assert_eq!(harness.event_count("payment.succeeded", "inv").await, 1, "emitted once");

    // The creation of a refund is reported by webhook, and its end is not.
    harness.sandbox().clear_faults();
    harness.add_method("hooli", &provider_id, "pm_card_pendingRefund").await;
    harness.pay("hooli", "inv-2").await;
    let paid = harness.payment_in("inv-2", PaymentState::Succeeded).await;
    let body = format!("payment_intent={}", paid.provider_payment_intent_id);
    post_to_stripe(&harness, "/v1/refunds", &body).await;
    until("the event is emitted", async || (refund_statuses(&harness) == ["pending"]).then_some(())).await;
    lose_webhooks(&harness, "*");
    let before = repaired(&harness, "refund").await;
    advance_until(&mut harness, Duration::hours(6), "the outcome of the refund is found", async |harness| {
        (refund_statuses(harness) == ["pending", "succeeded"]).then_some(())
    })
    .await;
    until_repaired(&harness, "refund", before + 1).await;
    harness.shutdown().await;
}

/// Waits until a sweep at or after the present time has run, and its jobs are done.
async fn until_swept(harness: &Harness) {
    let now = harness.context.environment.clock.now().unix_timestamp();
    let database = harness.database().await;
    until("the sweep has run", async || {
        let query = "SELECT extract(epoch FROM sweep_time)::bigint FROM integrations";
        let swept = database.query_one(query, &[]).await.expect("a result").get::<_, Option<i64>>(0)?;
        (swept >= now).then_some(())
    })
    .await;
    harness.drain_jobs(&["reconcile_payment", "reconcile_session", "refund_payment"]).await;
}

/// Reads are rationed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_processing_debit_is_read_daily_and_a_settled_payment_never() {
    let mut harness = Harness::with_periods("rationed", sweep_only()).await;
    let provider_id = harness.customer("hooli", "pm_card_visa").await;
    harness.pay("hooli", "inv-card").await;
    harness.payment_in("inv-card", PaymentState::Succeeded).await;
    harness.add_method("hooli", &provider_id, GOOD_IBAN).await;
    harness.pay("hooli", "inv-debit").await;
    until("the bank has the debit", async || (harness.live_charges("inv-debit") == 1).then_some(())).await;
    harness.payment_in("inv-debit", PaymentState::Processing).await;
    harness.all_delivered().await;
    harness.drain_jobs(&["submit_payment"]).await;
    harness.sandbox().clear_requests();
    for _ in 0..9 {
        harness.advance(Duration::hours(6));
        until_swept(&harness).await;
    }
    let intent = harness.payment("inv-debit").await.provider_payment_intent_id;
    let read: Vec<String> = harness.sandbox().requests().into_iter().map(|request| request.path).collect();
    assert_eq!(read, vec![format!("/v1/payment_intents/{intent}"); 2], "twice in 54 hours, and nothing else");
    harness.shutdown().await;
}

/// A method that is found late keeps its own time: one that was stored later stays the default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_method_that_is_found_late_does_not_replace_a_newer_default() {
    let mut harness = Harness::with_periods("late", sweep_only()).await;
    let provider_id = harness.customer_without_method("hooli").await;
    harness.all_delivered().await;
    let page = checkout_session(&mut harness).await;
    lose_webhooks(&harness, "*");
    harness.sandbox().complete_session(&page, GOOD_IBAN, true).expect("the page is completed");
    harness.sandbox().clear_faults();
    harness.advance(Duration::hours(1));
    let newer = harness.add_method("hooli", &provider_id, "pm_card_visa").await;
    harness.all_delivered().await;
    harness.advance(Duration::hours(24));
    advance_until(&mut harness, Duration::minutes(1), "the page's method is found", async |harness| {
        (harness.methods("hooli").await.len() == 2).then_some(())
    })
    .await;
    let default = harness.methods("hooli").await.into_iter().find(|method| method.is_default).expect("a default");
    assert_eq!(default.provider_payment_method_id, newer);
    harness.shutdown().await;
}

/// The creation was not requested again, and its idempotency key is too old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_creation_of_a_session_does_not_stay_creating() {
    let mut harness = Harness::with_periods("never created", sweep_only()).await;
    harness.customer_without_method("hooli").await;
    harness.all_delivered().await;
    harness.drain_jobs(&["create_checkout_session"]).await;
    harness.fault("/v1/checkout/sessions", 3, Action::Unavailable);
    harness
        .billing
        .api
        .customers
        .create_checkout_url(checkout_request("hooli"))
        .await
        .expect_err("Stripe is unavailable");
    let database = harness.database().await;
    advance_until(&mut harness, Duration::hours(7), "it is abandoned", async |_| {
        let query = "SELECT FROM checkout_sessions WHERE state = 'creating'";
        database.query(query, &[]).await.expect("a result").is_empty().then_some(())
    })
    .await;
    let requests = harness.posts("/v1/checkout/sessions").len();
    assert_eq!(requests, 4, "one for the customer's link and three for the other: an old key is not sent");
    harness.shutdown().await;
}

/// Integrations of an earlier release have no reconcilers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_active_integration_gets_its_reconcilers() {
    let mut harness = Harness::with_periods("earlier release", Periods::default()).await;
    let database = harness.database().await;
    let kinds = "kind IN ('poll_events', 'sweep_integration', 'check_endpoint')";
    let deleted = database.execute(&format!("DELETE FROM jobs WHERE {kinds}"), &[]).await.expect("they are deleted");
    assert_eq!(deleted, 3, "a new integration has them");
    advance_until(&mut harness, Duration::minutes(5), "they are enqueued again", async |_| {
        let query = format!("SELECT count(*) FROM jobs WHERE {kinds}");
        (database.query_one(&query, &[]).await.expect("a count").get::<_, i64>(0) == 3).then_some(())
    })
    .await;
    harness.shutdown().await;
}

/// Stripe shows that the session is complete, and then the read of its method fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_completed_session_whose_method_could_not_be_read_is_read_again() {
    let mut harness = Harness::with_periods("incomplete read", sweep_only()).await;
    harness.customer_without_method("hooli").await;
    harness.all_delivered().await;
    let page = checkout_session(&mut harness).await;
    lose_webhooks(&harness, "*");
    harness.sandbox().complete_session(&page, "4242424242424242", true).expect("the page is completed");
    // The first read, of the method's creation time, succeeds.
    let setup = harness.sandbox().object(&page).expect("a page")["setup_intent"].clone();
    let path = format!("/v1/setup_intents/{}", setup.as_str().expect("a SetupIntent"));
    harness.sandbox().add_fault(Fault { skip: 1, times: None, ..Fault::once("GET", &path, Action::Unavailable) });
    harness.advance(Duration::hours(24) + Duration::minutes(3));
    advance_until(&mut harness, Duration::minutes(1), "the read has failed", async |harness| {
        let requests = harness.sandbox().requests();
        (requests.iter().filter(|request| request.status == Some(503)).count() >= 3).then_some(())
    })
    .await;
    let database = harness.database().await;
    until("the job is released", async || {
        let query = "SELECT FROM jobs WHERE kind = 'reconcile_session' AND failures > 0 AND lease_until IS NULL";
        (!database.query(query, &[]).await.expect("the jobs").is_empty()).then_some(())
    })
    .await;
    harness.sandbox().clear_faults();
    lose_webhooks(&harness, "*");
    advance_until(&mut harness, Duration::minutes(1), "the method is found", has_default).await;
    harness.shutdown().await;
}
