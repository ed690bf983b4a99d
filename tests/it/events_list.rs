//! Stripe's events list: it brings the events that webhooks missed, repeats of delivered events change nothing, and an
//! interrupted read is resumed (P6).

use paybridge::app::Periods;
use paybridge::dev::sandbox::{Action, Fault};
use paybridge::grpc::proto::PaymentState;
use time::Duration;

use crate::support::customers::{GOOD_IBAN, checkout_session, has_default};
use crate::support::harness::{Harness, post_to_stripe};
use crate::support::reconciliation::{NEVER, refund_statuses, repaired, until_repaired};
use crate::support::wait::{advance_until, until};
use crate::support::webhooks::lose_webhooks;

/// Only the events list is read.
fn list_only() -> Periods {
    Periods { sweep: NEVER, endpoint_test: NEVER, contact_max: NEVER, ..Periods::default() }
}

/// The same, read hourly: no read is due before the test advances the clock.
fn list_only_hourly() -> Periods {
    Periods { list_test: Duration::HOUR, ..list_only() }
}

/// Waits until no read of the list is running: what happens from now on belongs to the next read.
async fn until_no_read_is_running(harness: &Harness) {
    let database = harness.database().await;
    until("no read of the list is running", async || {
        let query = "SELECT FROM jobs WHERE kind = 'poll_events' AND lease_until IS NULL";
        database.query_opt(query, &[]).await.expect("a result").map(|_| ())
    })
    .await;
}

/// The number of stored events of Stripe's.
async fn delivery_count(harness: &Harness) -> i64 {
    let database = harness.database().await;
    database.query_one("SELECT count(*) FROM deliveries", &[]).await.expect("a count").get(0)
}

/// Every webhook is lost while a page is completed, an invoice collected and refunded, and a method detached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_the_events_list_replaces_lost_webhooks_and_a_repeat_changes_nothing() {
    let mut harness = Harness::with_periods("all lost", list_only()).await;
    lose_webhooks(&harness, "*");
    let before = repaired(&harness, "event").await;
    harness.customer_without_method("hooli").await;
    let page = checkout_session(&mut harness).await;
    harness.sandbox().complete_session(&page, GOOD_IBAN, true).expect("the page is completed");
    advance_until(&mut harness, Duration::minutes(1), "the method is found", has_default).await;
    harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Processing).await;
    until("the bank has the debit", async || (harness.live_charges("inv") == 1).then_some(())).await;
    harness.advance(Duration::days(6));
    let paid =
        advance_until(&mut harness, Duration::minutes(1), "the outcome of the debit is found", async |harness| {
            let payment = harness.payment("inv").await;
            (payment.state() == PaymentState::Succeeded).then_some(payment)
        })
        .await;
    let body = format!("payment_intent={}&amount=900", paid.provider_payment_intent_id);
    post_to_stripe(&harness, "/v1/refunds", &body).await;
    advance_until(&mut harness, Duration::minutes(1), "the refund is found", async |harness| {
        (refund_statuses(harness) == ["succeeded"]).then_some(())
    })
    .await;
    let method = harness.methods("hooli").await[0].provider_payment_method_id.clone();
    harness.sandbox().detach_in_dashboard(&method).expect("it is detached");
    advance_until(&mut harness, Duration::minutes(1), "the detached method is found", async |harness| {
        harness.methods("hooli").await.is_empty().then_some(())
    })
    .await;
    until_repaired(&harness, "event", before + 4).await;

    // Now all webhooks arrive.
    harness.drain_jobs(&["apply_delivery", "push_default_method"]).await;
    harness.sandbox().clear_faults();
    let event_count = harness.events().await.len();
    let events = harness.sandbox().events(&harness.billing.account);
    let stored = delivery_count(&harness).await;
    for event in &events {
        harness.sandbox().resend(event["id"].as_str().expect("an id")).expect("it is sent");
    }
    harness.all_delivered().await;
    assert_eq!(harness.events().await.len(), event_count, "nothing is emitted twice");
    assert_eq!(delivery_count(&harness).await, stored, "no event was new");
    let after = harness.payment("inv").await;
    assert_eq!(
        (after.state(), after.amount_refunded.map(|money| money.minor_units)),
        (PaymentState::Succeeded, Some(900))
    );
    harness.shutdown().await;
}

/// For an event that a webhook has brought, the list costs no further read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_the_list_skips_events_that_webhooks_brought() {
    let mut harness = Harness::with_periods("all delivered", list_only_hourly()).await;
    harness.customer("hooli", "pm_card_visa").await;
    harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.all_delivered().await;
    let event_count = harness.events().await.len();
    let stored = delivery_count(&harness).await;
    harness.sandbox().clear_requests();
    harness.advance(Duration::minutes(61));
    until("the list is read", async || {
        let is_read = |path: &str| path == "/v1/events";
        harness.sandbox().requests().iter().any(|request| is_read(&request.path)).then_some(())
    })
    .await;
    until_no_read_is_running(&harness).await;
    harness.drain_jobs(&["apply_delivery"]).await;
    let others: Vec<String> = harness.sandbox().requests().into_iter().map(|request| request.path).collect();
    assert!(others.iter().all(|path| path == "/v1/events"), "nothing else is read: {others:?}");
    assert_eq!(harness.events().await.len(), event_count, "nothing is emitted twice");
    assert_eq!(delivery_count(&harness).await, stored, "no event was new");
    harness.shutdown().await;
}

/// The value of a request's parameter.
fn value(form: &[(String, String)], name: &str) -> Option<String> {
    form.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
}

/// Reads are rationed: foreign events are not read again every time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_events_advance_the_position_of_the_list() {
    let mut harness = Harness::with_periods("foreign events", list_only()).await;
    // Only foreign customers change, in events that Paybridge does not subscribe to.
    harness.advance(Duration::hours(1));
    post_to_stripe(&harness, "/v1/customers", "name=Foreign").await;
    let event_time = harness.context.environment.clock.now().unix_timestamp();
    advance_until(&mut harness, Duration::minutes(1), "the read begins after them", async |harness| {
        let requests = harness.sandbox().requests();
        let last = requests.iter().rev().find(|request| request.path == "/v1/events")?;
        let since = value(&last.form, "created[gte]")?.parse::<i64>().ok()?;
        // Reads overlap by two minutes.
        (since >= event_time - 125).then_some(())
    })
    .await;
    harness.shutdown().await;
}

/// Reads are rationed, and Stripe may be unavailable for hours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_an_interrupted_read_of_the_list_resumes_from_its_last_page() {
    let mut harness = Harness::with_periods("interrupted", list_only_hourly()).await;
    // Three pages of foreign events, without webhooks.
    for _ in 0..250 {
        post_to_stripe(&harness, "/v1/customers", "name=Foreign").await;
    }
    harness.sandbox().clear_requests();
    let outage = Fault { skip: 2, ..Fault::once("GET", "/v1/events", Action::Unavailable) };
    harness.sandbox().add_fault(outage);
    let cursors = |harness: &Harness| -> Vec<Option<String>> {
        let reads = harness.sandbox().requests().into_iter().filter(|request| request.path == "/v1/events");
        reads.map(|request| value(&request.form, "starting_after")).collect()
    };
    advance_until(&mut harness, Duration::minutes(10), "a second read begins", async |harness| {
        (cursors(harness).iter().filter(|after| after.is_none()).count() >= 2).then_some(())
    })
    .await;
    until_no_read_is_running(&harness).await;
    let read = cursors(&harness);
    assert!(read[0].is_none() && read[1].is_some() && read[2].is_some() && read[1] != read[2], "pages: {read:?}");
    assert_eq!(read[3], read[2], "the failed page is read again");
    assert!(read[4].is_none(), "it was the last page: {read:?}");
    let database = harness.database().await;
    let query = "SELECT extract(epoch FROM poll_time)::bigint FROM integrations";
    let newest: i64 = database.query_one(query, &[]).await.expect("a result").get(0);
    let all = harness.sandbox().events(&harness.billing.account);
    let newest_at_stripe = all.iter().filter_map(|event| event["created"].as_i64()).max();
    assert_eq!(Some(newest), newest_at_stripe, "the next read begins at the newest event that was read");

    // Stripe lists an event for 30 days. If it no longer knows the cursor, the read starts over.
    let unknown_cursor = "UPDATE integrations SET list_walk_after = 'evt_expired', list_walk_since = poll_time";
    database.execute(unknown_cursor, &[]).await.expect("the cursor is set");
    harness.sandbox().clear_requests();
    advance_until(&mut harness, Duration::minutes(10), "the list is read from its newest event on", async |harness| {
        let read = cursors(harness);
        (read.len() > 1 && read.last().is_some_and(Option::is_none)).then_some(())
    })
    .await;
    assert_eq!(cursors(&harness)[0].as_deref(), Some("evt_expired"));
    harness.shutdown().await;
}
