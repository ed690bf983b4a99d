//! P2, unknown is not failed: each way in which an answer of Stripe's can get lost, made to happen by the sandbox.

use paybridge::dev::sandbox::{Action, Effect, Recorded};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::{IntegrationState, PaymentState, RotateIntegrationKeyRequest};
use time::Duration;

use crate::cashier::{CONFIRM, CREATE, Cashier, until};

/// A till with the customer `hooli`, who pays with a good card.
async fn till(name: &str) -> Cashier {
    let mut cashier = Cashier::new(name, Options::default()).await;
    cashier.customer("hooli", "pm_card_visa").await;
    cashier
}

/// The confirms that were sent: all with one key and one body.
fn one_frozen_body(confirms: &[Recorded]) {
    for confirm in confirms {
        assert!(confirm.idempotency_key.is_some(), "a confirm has a key");
        assert_eq!(confirm.idempotency_key, confirms[0].idempotency_key, "the same key goes again");
        assert_eq!(confirm.form, confirms[0].form, "the same body goes again, byte for byte");
        assert_eq!(confirm.path, confirms[0].path, "to the same intent");
    }
}

/// The payment has succeeded with one charge, was never told as failed, and is told once.
async fn paid_once(cashier: &mut Cashier, invoice: &str) {
    let paid = cashier.payment_in(invoice, PaymentState::Succeeded).await;
    assert!(paid.outcome_unknown_time.is_none(), "nothing is unknown any more");
    cashier.player.told("payment.succeeded", invoice).await.expect("it is told");
    cashier.all_delivered().await;
    cashier.at_rest(&["submit_payment"]).await;
    assert_eq!(cashier.live_charges(invoice), 1, "one charge: {:#?}", cashier.charges(invoice));
    assert_eq!(cashier.count("payment.succeeded", invoice).await, 1, "told once");
    assert_eq!(cashier.count("invoice.payment_failure", invoice).await, 0, "it never failed");
    let after = cashier.payment(invoice).await;
    assert_eq!(after.state(), PaymentState::Succeeded);
    assert!(after.outcome_unknown_time.is_none(), "nothing is unknown about what is settled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_an_answer_lost_after_the_work_is_asked_for_again_under_the_same_key() {
    let mut cashier = till("cut after").await;
    cashier.cut(CONFIRM, 1, Effect::Done);
    cashier.pay("hooli", "inv").await;
    paid_once(&mut cashier, "inv").await;
    let confirms = cashier.posts("/confirm");
    assert!(confirms.len() >= 2, "it was sent again");
    one_frozen_body(&confirms);
    assert_eq!(cashier.payment("inv").await.attempts.len(), 1, "that was one attempt");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_request_lost_on_its_way_goes_again_under_the_same_key_also_in_a_later_job() {
    let mut cashier = till("cut before").await;
    // The quick retries of one call are three: the fourth try belongs to another run of the job.
    cashier.cut(CONFIRM, 3, Effect::NotDone);
    cashier.pay("hooli", "inv").await;
    let moving = cashier.payment_when("inv", "is unknown", |payment| payment.outcome_unknown_time.is_some()).await;
    assert_eq!(moving.state(), PaymentState::Processing, "unknown is not failed");
    paid_once(&mut cashier, "inv").await;
    let confirms = cashier.posts("/confirm");
    assert_eq!(confirms.len(), 4, "three were lost, the fourth arrived");
    one_frozen_body(&confirms);
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_stored_500_whose_work_is_done_later_is_settled_by_reading_the_intent() {
    let mut cashier = till("500 done later").await;
    cashier.fault(CONFIRM, 1, Action::ServerError { work: Effect::DoneLater { seconds: 200 } });
    // Nobody tells: only reads can find it.
    cashier.sandbox().add_webhook_fault(paybridge::dev::sandbox::WebhookFault {
        event: "payment_intent.*".to_owned(),
        ..Default::default()
    });
    cashier.pay("hooli", "inv").await;
    dead_key_seen(&cashier).await;
    assert_eq!(cashier.payment("inv").await.state(), PaymentState::Processing, "unknown is not failed");
    // The read after one minute sees nothing, the one after five does.
    cashier.advance(Duration::seconds(70));
    cashier.advance(Duration::seconds(300));
    paid_once(&mut cashier, "inv").await;
    one_frozen_body(&cashier.posts("/confirm"));
    assert_eq!(cashier.payment("inv").await.attempts.len(), 1, "no other key was needed");
    cashier.end().await;
}

/// Waits until the job has seen the stored 500 replayed.
async fn dead_key_seen(cashier: &Cashier) {
    let database = cashier.database().await;
    until("the stored 500 was replayed", || async {
        let query = "SELECT FROM payment_attempts WHERE dead_key_time IS NOT NULL";
        (!database.query(query, &[]).await.expect("a look").is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_stored_500_whose_work_is_never_done_leads_to_a_new_key_on_the_same_intent() {
    let mut cashier = till("500 never").await;
    cashier.fault(CONFIRM, 1, Action::ServerError { work: Effect::NotDone });
    cashier.pay("hooli", "inv").await;
    dead_key_seen(&cashier).await;
    let reads = || cashier.sandbox().requests().iter().filter(|request| request.method == "GET").count();
    for minutes in [1, 5, 30] {
        assert_eq!(cashier.posts("/confirm").iter().filter(|confirm| confirm.status == Some(200)).count(), 0);
        let before = reads();
        cashier.advance(Duration::minutes(minutes) + Duration::seconds(1));
        until("the intent is read", || async { (reads() > before).then_some(()) }).await;
    }
    paid_once(&mut cashier, "inv").await;
    let confirms = cashier.posts("/confirm");
    let last = confirms.last().expect("a confirm");
    let (old, new): (Vec<_>, Vec<_>) =
        confirms.iter().cloned().partition(|confirm| confirm.idempotency_key != last.idempotency_key);
    one_frozen_body(&old);
    one_frozen_body(&new);
    assert_eq!(new.len(), 1, "the new key was sent once");
    assert_eq!(old[0].path, new[0].path, "on the same intent, which can succeed only once");
    assert_eq!(old[0].form, new[0].form, "with the same body");
    assert!(new[0].time - old[0].time >= 30 * 60, "only after the reads");
    assert_eq!(cashier.intents("inv").len(), 1, "one intent");
    assert_eq!(cashier.payment("inv").await.attempts.len(), 2, "the first attempt is superseded");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_an_outage_and_a_limit_mean_later_not_failed() {
    let mut cashier = till("later").await;
    for (invoice, action) in [
        ("inv-503", Action::Unavailable),
        ("inv-429", Action::RateLimit { reason: "endpoint-rate".to_owned() }),
        ("inv-lock", Action::RateLimit { reason: "lock_timeout".to_owned() }),
    ] {
        cashier.fault(CONFIRM, 4, action);
        cashier.pay("hooli", invoice).await;
        until("it was turned away", || async {
            let turned_away = |confirm: &Recorded| confirm.status.is_some_and(|status| status == 429 || status == 503);
            cashier.posts("/confirm").iter().any(turned_away).then_some(())
        })
        .await;
        assert_ne!(cashier.payment(invoice).await.state(), PaymentState::Failed, "later is not failed");
        paid_once(&mut cashier, invoice).await;
        one_frozen_body(&cashier.posts("/confirm"));
        cashier.sandbox().forget_requests();
    }
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_timeout_and_the_key_in_use_after_it_are_unknown() {
    let options = Options { stripe_timeout: std::time::Duration::from_millis(700), ..Options::default() };
    let mut cashier = Cashier::new("timeout", options).await;
    cashier.customer("hooli", "pm_card_visa").await;
    // The next try finds the key in use (409) until the work is done, 20 s after the first.
    cashier.fault(CONFIRM, 1, Action::Delay { milliseconds: 20_000, after_work: false });
    cashier.pay("hooli", "inv").await;
    until("a repetition finds the key in use", || async {
        cashier.posts("/confirm").iter().any(|confirm| confirm.status == Some(409)).then_some(())
    })
    .await;
    let moving = cashier.payment_when("inv", "is unknown", |payment| payment.outcome_unknown_time.is_some()).await;
    assert_eq!(moving.state(), PaymentState::Processing, "unknown is not failed");
    cashier.advance(Duration::seconds(30));
    paid_once(&mut cashier, "inv").await;
    one_frozen_body(&cashier.posts("/confirm"));
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_revoked_key_pauses_is_told_once_and_a_new_key_resumes() {
    let mut cashier = till("revoked").await;
    cashier.fault(CONFIRM, 50, Action::Unauthorized);
    cashier.pay("hooli", "inv-1").await;
    cashier.pay("hooli", "inv-2").await;
    cashier
        .player
        .event("payment_provider.error", |event| (event.webhook_type == "payment_provider.error").then_some(()))
        .await
        .expect("it is told");
    cashier.at_rest(&["submit_payment"]).await;
    for invoice in ["inv-1", "inv-2"] {
        let waiting = cashier.payment(invoice).await;
        assert!(matches!(waiting.state(), PaymentState::Processing | PaymentState::Pending), "{:?}", waiting.state());
    }
    assert_eq!(cashier.integration_now().await.state(), IntegrationState::Paused);

    cashier.sandbox().clear_faults();
    let new_key = "sk_test_rotated";
    cashier.sandbox().add_key(new_key, &cashier.player.account, None);
    cashier.sandbox().revoke_key(&cashier.player.key);
    let rotate = RotateIntegrationKeyRequest { id: cashier.integration.id.clone(), secret_key: new_key.to_owned() };
    cashier.player.api.integrations.rotate_integration_key(rotate).await.expect("the new key is taken");
    paid_once(&mut cashier, "inv-1").await;
    paid_once(&mut cashier, "inv-2").await;
    let told = cashier.events().await.iter().filter(|event| event.webhook_type == "payment_provider.error").count();
    assert_eq!(told, 1, "told once");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_an_intent_whose_creation_is_unknown_is_found_again_or_made_anew() {
    let mut cashier = till("creation").await;
    let stories = [
        ("inv-cut", Action::Cut { work: Effect::Done }, 4),
        ("inv-500-done", Action::ServerError { work: Effect::Done }, 1),
        ("inv-500-never", Action::ServerError { work: Effect::NotDone }, 1),
    ];
    for (invoice, action, times) in stories {
        cashier.fault(CREATE, times, action);
        cashier.pay("hooli", invoice).await;
        paid_once(&mut cashier, invoice).await;
        let intents = cashier.intents(invoice);
        let charged = intents.iter().filter(|intent| !intent["latest_charge"].is_null()).count();
        assert_eq!(charged, 1, "one intent has a charge: {intents:#?}");
        assert_eq!(intents.len(), 1, "what was made is found again: {intents:#?}");
    }
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_an_intent_made_late_never_takes_money_beside_the_one_that_took_its_place() {
    let mut cashier = till("late creation").await;
    cashier.fault(CREATE, 1, Action::ServerError { work: Effect::DoneLater { seconds: 600 } });
    cashier.pay("hooli", "inv").await;
    paid_once(&mut cashier, "inv").await;
    cashier.advance(Duration::minutes(20));
    until("the late intent is there", || async { (cashier.intents("inv").len() == 2).then_some(()) }).await;
    cashier.all_delivered().await;
    let charged = cashier.intents("inv").iter().filter(|intent| !intent["latest_charge"].is_null()).count();
    assert_eq!(charged, 1, "one intent has a charge");
    paid_once(&mut cashier, "inv").await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_refusal_is_failed_at_once_with_its_codes() {
    let mut cashier = Cashier::new("refusal", Options::default()).await;
    cashier.customer("hooli", "4000000000000341").await;
    cashier.pay("hooli", "inv").await;
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    let failure = failed.failure.expect("a failure");
    assert_eq!(failure.code, "card_declined");
    assert_eq!(failure.decline_code, "generic_decline");
    assert_eq!(failure.advice_code, "try_again_later");
    assert!(failure.provider_request_id.starts_with("req_"), "{failure:?}");
    cashier.player.told("invoice.payment_failure", "inv").await.expect("it is told");
    cashier.all_delivered().await;
    assert_eq!(cashier.count("invoice.payment_failure", "inv").await, 1, "one refusal is told once");
    assert_eq!(cashier.posts("/confirm").len(), 1, "a decline is not tried again by us");
    cashier.end().await;
}

/// A refusal whose answer was lost is told by the webhook or by the replay; both together tell it once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_refusal_whose_answer_was_lost_is_told_once() {
    let mut cashier = Cashier::new("lost refusal", Options::default()).await;
    cashier.customer("hooli", "4000000000000341").await;
    cashier.cut(CONFIRM, 2, Effect::Done);
    cashier.pay("hooli", "inv").await;
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(failed.failure.expect("a failure").code, "card_declined");
    cashier.all_delivered().await;
    cashier.at_rest(&["submit_payment"]).await;
    let failed = cashier.payment("inv").await;
    assert!(failed.outcome_unknown_time.is_none(), "nothing is unknown about a refusal");
    assert_eq!(cashier.count("invoice.payment_failure", "inv").await, 1, "one refusal is told once");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_debit_at_the_bank_stays_processing_until_stripe_speaks() {
    let mut cashier = Cashier::new("patience", Options::default()).await;
    cashier.customer("hooli", "DE89370400440532013000").await;
    cashier.pay("hooli", "inv").await;
    cashier.payment_in("inv", PaymentState::Processing).await;
    until("it is at the bank", || async { (cashier.live_charges("inv") == 1).then_some(()) }).await;
    cashier.at_rest(&["submit_payment"]).await;
    // Reads fail for four days, and the key of the attempt grows too old: no reason to call it failed.
    cashier.sandbox().add_fault(paybridge::dev::sandbox::Fault {
        times: None,
        ..paybridge::dev::sandbox::Fault::once("GET", "/v1/payment_intents/*", Action::Unavailable)
    });
    for _ in 0..4 {
        let before = cashier.sandbox().requests().len();
        // What is at the bank is read daily.
        cashier.advance(Duration::hours(24) + Duration::minutes(2));
        until("it is asked about", || async { (cashier.sandbox().requests().len() > before).then_some(()) }).await;
        assert_eq!(cashier.payment("inv").await.state(), PaymentState::Processing);
    }
    cashier.sandbox().clear_faults();
    cashier.advance(Duration::days(4));
    paid_once(&mut cashier, "inv").await;
    cashier.end().await;
}
