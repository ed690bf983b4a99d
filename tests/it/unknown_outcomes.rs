//! P2, unknown is not failed: the sandbox loses Stripe's responses in every possible way.

use paybridge::dev::sandbox::{Action, Effect, RecordedRequest};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::{IntegrationState, PaymentState, RotateIntegrationKeyRequest};
use time::Duration;

use crate::support::harness::{CONFIRM, CREATE, Harness};
use crate::support::wait::until;

/// Checks that all confirms have the same key, body and intent.
fn assert_one_request(confirms: &[RecordedRequest]) {
    for confirm in confirms {
        assert!(confirm.idempotency_key.is_some(), "a confirm has a key");
        assert_eq!(confirm.idempotency_key, confirms[0].idempotency_key, "the same key goes again");
        assert_eq!(confirm.form, confirms[0].form, "the same body goes again, byte for byte");
        assert_eq!(confirm.path, confirms[0].path, "to the same intent");
    }
}

/// Waits until a payment has succeeded, and checks that it has one charge, was reported once, and never as failed.
async fn assert_paid_once(harness: &mut Harness, invoice: &str) {
    let paid = harness.payment_in(invoice, PaymentState::Succeeded).await;
    assert!(paid.outcome_unknown_time.is_none(), "the outcome is known");
    harness.billing.wait_for_event("payment.succeeded", invoice).await.expect("the event is emitted");
    harness.all_delivered().await;
    harness.drain_jobs(&["submit_payment"]).await;
    assert_eq!(harness.live_charges(invoice), 1, "one charge: {:#?}", harness.charges(invoice));
    assert_eq!(harness.event_count("payment.succeeded", invoice).await, 1, "emitted once");
    assert_eq!(harness.event_count("invoice.payment_failure", invoice).await, 0, "it never failed");
    let after = harness.payment(invoice).await;
    assert_eq!(after.state(), PaymentState::Succeeded);
    assert!(after.outcome_unknown_time.is_none(), "the outcome stays known");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_confirm_whose_response_is_lost_is_sent_again_under_the_same_key() {
    let mut harness = Harness::with_customer("cut after", "pm_card_visa").await;
    harness.cut(CONFIRM, 1, Effect::Done);
    harness.pay("hooli", "inv").await;
    assert_paid_once(&mut harness, "inv").await;
    let confirms = harness.posts("/confirm");
    assert!(confirms.len() >= 2, "it was sent again");
    assert_one_request(&confirms);
    assert_eq!(harness.payment("inv").await.attempts.len(), 1, "that was one attempt");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_lost_confirm_is_sent_again_under_the_same_key_in_a_later_run_of_the_job() {
    let mut harness = Harness::with_customer("cut before", "pm_card_visa").await;
    // One call makes three attempts: the fourth is made by another run of the job.
    harness.cut(CONFIRM, 3, Effect::NotDone);
    harness.pay("hooli", "inv").await;
    let moving = harness.payment_when("inv", "is unknown", |payment| payment.outcome_unknown_time.is_some()).await;
    assert_eq!(moving.state(), PaymentState::Processing, "unknown is not failed");
    assert_paid_once(&mut harness, "inv").await;
    let confirms = harness.posts("/confirm");
    assert_eq!(confirms.len(), 4, "three lost, and one received");
    assert_one_request(&confirms);
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_stored_500_whose_work_is_done_later_is_settled_by_reading_the_intent() {
    let mut harness = Harness::with_customer("500 done later", "pm_card_visa").await;
    harness.fault(CONFIRM, 1, Action::ServerError { work: Effect::DoneLater { seconds: 200 } });
    // Without webhooks, only reads can find it.
    harness.sandbox().add_webhook_fault(paybridge::dev::sandbox::WebhookFault {
        event: "payment_intent.*".to_owned(),
        ..Default::default()
    });
    harness.pay("hooli", "inv").await;
    until_key_is_dead(&harness).await;
    assert_eq!(harness.payment("inv").await.state(), PaymentState::Processing, "unknown is not failed");
    // The read after one minute finds nothing, the one after five does.
    harness.advance(Duration::seconds(70));
    harness.advance(Duration::seconds(300));
    assert_paid_once(&mut harness, "inv").await;
    assert_one_request(&harness.posts("/confirm"));
    assert_eq!(harness.payment("inv").await.attempts.len(), 1, "no other key was needed");
    harness.shutdown().await;
}

/// Waits until the job has got the stored 500 again.
async fn until_key_is_dead(harness: &Harness) {
    let database = harness.database().await;
    until("the stored 500 was replayed", async || {
        let query = "SELECT FROM payment_attempts WHERE dead_key_time IS NOT NULL";
        (!database.query(query, &[]).await.expect("a result").is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_stored_500_whose_work_is_never_done_leads_to_a_new_key_on_the_same_intent() {
    let mut harness = Harness::with_customer("500 never", "pm_card_visa").await;
    harness.fault(CONFIRM, 1, Action::ServerError { work: Effect::NotDone });
    harness.pay("hooli", "inv").await;
    until_key_is_dead(&harness).await;
    let reads = || harness.sandbox().requests().iter().filter(|request| request.method == "GET").count();
    for minutes in [1, 5, 30] {
        assert_eq!(harness.posts("/confirm").iter().filter(|confirm| confirm.status == Some(200)).count(), 0);
        let before = reads();
        harness.advance(Duration::minutes(minutes) + Duration::seconds(1));
        until("the intent is read", async || (reads() > before).then_some(())).await;
    }
    assert_paid_once(&mut harness, "inv").await;
    let confirms = harness.posts("/confirm");
    let last = confirms.last().expect("a confirm");
    let (old, new): (Vec<_>, Vec<_>) =
        confirms.iter().cloned().partition(|confirm| confirm.idempotency_key != last.idempotency_key);
    assert_one_request(&old);
    assert_one_request(&new);
    assert_eq!(new.len(), 1, "the new key was sent once");
    assert_eq!(old[0].path, new[0].path, "the same intent, which can succeed only once");
    assert_eq!(old[0].form, new[0].form, "with the same body");
    assert!(new[0].time - old[0].time >= 30 * 60, "only after the reads");
    assert_eq!(harness.intents("inv").len(), 1, "one intent");
    assert_eq!(harness.payment("inv").await.attempts.len(), 2, "the first attempt is superseded");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_outages_and_rate_limits_delay_a_payment_and_do_not_fail_it() {
    let mut harness = Harness::with_customer("later", "pm_card_visa").await;
    for (invoice, action) in [
        ("inv-503", Action::Unavailable),
        ("inv-429", Action::RateLimit { reason: "endpoint-rate".to_owned() }),
        ("inv-lock", Action::RateLimit { reason: "lock_timeout".to_owned() }),
    ] {
        harness.fault(CONFIRM, 4, action);
        harness.pay("hooli", invoice).await;
        until("it was rejected", async || {
            let is_rejected =
                |confirm: &RecordedRequest| confirm.status.is_some_and(|status| status == 429 || status == 503);
            harness.posts("/confirm").iter().any(is_rejected).then_some(())
        })
        .await;
        assert_ne!(harness.payment(invoice).await.state(), PaymentState::Failed, "delayed is not failed");
        assert_paid_once(&mut harness, invoice).await;
        assert_one_request(&harness.posts("/confirm"));
        harness.sandbox().clear_requests();
    }
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_timeout_and_a_key_in_use_after_it_are_unknown() {
    let options = Options { stripe_timeout: std::time::Duration::from_millis(700), ..Options::default() };
    let mut harness = Harness::new("timeout", options).await;
    harness.customer("hooli", "pm_card_visa").await;
    // Further attempts find the key in use (409) until the work is done, 20 s later.
    harness.fault(CONFIRM, 1, Action::Delay { milliseconds: 20_000, after_work: false });
    harness.pay("hooli", "inv").await;
    until("a further attempt finds the key in use", async || {
        harness.posts("/confirm").iter().any(|confirm| confirm.status == Some(409)).then_some(())
    })
    .await;
    let moving = harness.payment_when("inv", "is unknown", |payment| payment.outcome_unknown_time.is_some()).await;
    assert_eq!(moving.state(), PaymentState::Processing, "unknown is not failed");
    harness.advance(Duration::seconds(30));
    assert_paid_once(&mut harness, "inv").await;
    assert_one_request(&harness.posts("/confirm"));
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_revoked_key_pauses_is_reported_once_and_a_new_key_resumes() {
    let mut harness = Harness::with_customer("revoked", "pm_card_visa").await;
    harness.fault(CONFIRM, 50, Action::Unauthorized);
    harness.pay("hooli", "inv-1").await;
    harness.pay("hooli", "inv-2").await;
    harness
        .billing
        .wait_for("payment_provider.error", |event| (event.webhook_type == "payment_provider.error").then_some(()))
        .await
        .expect("the event is emitted");
    harness.drain_jobs(&["submit_payment"]).await;
    for invoice in ["inv-1", "inv-2"] {
        let waiting = harness.payment(invoice).await;
        assert!(matches!(waiting.state(), PaymentState::Processing | PaymentState::Pending), "{:?}", waiting.state());
    }
    assert_eq!(harness.read_integration().await.state(), IntegrationState::Paused);

    harness.sandbox().clear_faults();
    let new_key = "sk_test_rotated";
    harness.sandbox().add_key(new_key, &harness.billing.account, None);
    harness.sandbox().revoke_key(&harness.billing.key);
    let rotate = RotateIntegrationKeyRequest { id: harness.integration.id.clone(), secret_key: new_key.to_owned() };
    harness.billing.api.integrations.rotate_integration_key(rotate).await.expect("the new key is accepted");
    assert_paid_once(&mut harness, "inv-1").await;
    assert_paid_once(&mut harness, "inv-2").await;
    let reported = harness.events().await.iter().filter(|event| event.webhook_type == "payment_provider.error").count();
    assert_eq!(reported, 1, "reported once");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_an_intent_whose_creation_is_unknown_is_found_or_created_again() {
    let mut harness = Harness::with_customer("creation", "pm_card_visa").await;
    let cases = [
        ("inv-cut", Action::Cut { work: Effect::Done }, 4),
        ("inv-500-done", Action::ServerError { work: Effect::Done }, 1),
        ("inv-500-never", Action::ServerError { work: Effect::NotDone }, 1),
    ];
    for (invoice, action, times) in cases {
        harness.fault(CREATE, times, action);
        harness.pay("hooli", invoice).await;
        assert_paid_once(&mut harness, invoice).await;
        let intents = harness.intents(invoice);
        let charged = intents.iter().filter(|intent| !intent["latest_charge"].is_null()).count();
        assert_eq!(charged, 1, "one intent has a charge: {intents:#?}");
        assert_eq!(intents.len(), 1, "an existing intent is found: {intents:#?}");
    }
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_an_intent_that_is_created_late_is_not_charged_besides_its_replacement() {
    let mut harness = Harness::with_customer("late creation", "pm_card_visa").await;
    harness.fault(CREATE, 1, Action::ServerError { work: Effect::DoneLater { seconds: 600 } });
    harness.pay("hooli", "inv").await;
    assert_paid_once(&mut harness, "inv").await;
    harness.advance(Duration::minutes(20));
    until("the late intent is created", async || (harness.intents("inv").len() == 2).then_some(())).await;
    harness.all_delivered().await;
    let charged = harness.intents("inv").iter().filter(|intent| !intent["latest_charge"].is_null()).count();
    assert_eq!(charged, 1, "one intent has a charge");
    assert_paid_once(&mut harness, "inv").await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_decline_fails_the_payment_at_once_with_its_codes() {
    let mut harness = Harness::new("decline", Options::default()).await;
    harness.customer("hooli", "4000000000000341").await;
    harness.pay("hooli", "inv").await;
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    let failure = failed.failure.expect("a failure");
    assert_eq!(failure.code, "card_declined");
    assert_eq!(failure.decline_code, "generic_decline");
    assert_eq!(failure.advice_code, "try_again_later");
    assert!(failure.provider_request_id.starts_with("req_"), "{failure:?}");
    harness.billing.wait_for_event("invoice.payment_failure", "inv").await.expect("the event is emitted");
    harness.all_delivered().await;
    assert_eq!(harness.event_count("invoice.payment_failure", "inv").await, 1, "one decline is reported once");
    assert_eq!(harness.posts("/confirm").len(), 1, "a decline is not retried");
    harness.shutdown().await;
}

/// The webhook and the replayed response both show the decline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_decline_whose_response_was_lost_is_reported_once() {
    let mut harness = Harness::new("lost decline", Options::default()).await;
    harness.customer("hooli", "4000000000000341").await;
    harness.cut(CONFIRM, 2, Effect::Done);
    harness.pay("hooli", "inv").await;
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(failed.failure.expect("a failure").code, "card_declined");
    harness.all_delivered().await;
    harness.drain_jobs(&["submit_payment"]).await;
    let failed = harness.payment("inv").await;
    assert!(failed.outcome_unknown_time.is_none(), "the outcome of a decline is known");
    assert_eq!(harness.event_count("invoice.payment_failure", "inv").await, 1, "one decline is reported once");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_debit_stays_processing_until_stripe_reports_its_outcome() {
    let mut harness = Harness::new("long debit", Options::default()).await;
    harness.customer("hooli", "DE89370400440532013000").await;
    harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Processing).await;
    until("the bank has the debit", async || (harness.live_charges("inv") == 1).then_some(())).await;
    harness.drain_jobs(&["submit_payment"]).await;
    // Reads fail for four days, and the attempt's key becomes too old: that does not fail the payment.
    harness.sandbox().add_fault(paybridge::dev::sandbox::Fault {
        times: None,
        ..paybridge::dev::sandbox::Fault::once("GET", "/v1/payment_intents/*", Action::Unavailable)
    });
    for _ in 0..4 {
        let before = harness.sandbox().requests().len();
        // A processing debit is read daily.
        harness.advance(Duration::hours(24) + Duration::minutes(2));
        until("it is read", async || (harness.sandbox().requests().len() > before).then_some(())).await;
        assert_eq!(harness.payment("inv").await.state(), PaymentState::Processing);
    }
    harness.sandbox().clear_faults();
    harness.advance(Duration::days(4));
    assert_paid_once(&mut harness, "inv").await;
    harness.shutdown().await;
}
