//! Payment methods: SEPA mandates from all sources, legacy sources, and cards that are renewed or expire.

use paybridge::dev::sandbox::{Action, Fault};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::PaymentState;
use time::Duration;

use crate::support::customers::{
    BAD_IBAN, GOOD_IBAN, attach_method, charged_methods, default_method, failed_payment, import_customer,
    method_event_count, object_id, stripe_customer, until_default_is,
};
use crate::support::harness::{Harness, post_to_stripe};
use crate::support::wait::until;

const MANDATE_DATA: &str = "mandate_data[customer_acceptance][type]=offline";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bank_account_stored_by_a_link_is_charged_for_the_next_invoice() {
    let mut harness = Harness::new("sepa link", Options::default()).await;
    harness.customer_without_method("hooli").await;
    harness.pay("hooli", "inv").await;
    let (unpaid, code) = failed_payment(&mut harness, "inv").await;
    assert_eq!(code, "no_payment_method");
    let (session, _) = harness.link("link", &unpaid).await.expect("a link");
    harness.sandbox().complete_session(&session, GOOD_IBAN, true).expect("the payer gives an IBAN");
    harness.payment_in("inv", PaymentState::Processing).await;
    harness.advance(Duration::days(6));
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.all_delivered().await;
    let method = default_method(&mut harness, "hooli").await;
    assert!(method.starts_with("pm_"), "the account that paid is the default");
    harness.pay("hooli", "inv-2").await;
    let next = harness.payment_when("inv-2", "is decided", |it| it.state() != PaymentState::Pending).await;
    assert_eq!(next.state(), PaymentState::Processing, "{:?}", next.failure);
    until("the bank has the debit", async || (charged_methods(&harness, "inv-2") == [method.clone()]).then_some(()))
        .await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_imported_bank_account_stored_by_a_payment_intent_is_charged() {
    let mut harness = Harness::new("sepa import", Options::default()).await;
    let provider_id = stripe_customer(&harness, "name=Hooli").await;
    let method = "type=sepa_debit&sepa_debit[iban]=DE89370400440532013000&billing_details[name]=Hooli\
        &billing_details[email]=a%40hooli.test";
    let method = object_id(&post_to_stripe(&harness, "/v1/payment_methods", method).await);
    let intent = format!(
        "amount=100&currency=eur&customer={provider_id}&payment_method={method}&payment_method_types[]=sepa_debit\
         &setup_future_usage=off_session&confirm=true&{MANDATE_DATA}"
    );
    assert_eq!(post_to_stripe(&harness, "/v1/payment_intents", &intent).await["status"], "processing");
    // A key with the usual scopes may not read SetupIntents.
    let forbidden = Fault { times: None, ..Fault::once("GET", "/v1/setup_intents*", Action::Forbidden) };
    harness.sandbox().add_fault(forbidden);
    import_customer(&mut harness, "hooli", &provider_id).await;
    let known = harness.methods("hooli").await;
    assert!(format!("{known:?}").contains("mandate_"), "the charge names the mandate: {known:?}");
    harness.pay("hooli", "inv").await;
    let next = harness.payment_when("inv", "is decided", |it| it.state() != PaymentState::Pending).await;
    assert_eq!(next.state(), PaymentState::Processing, "{:?}", next.failure);
    let state = harness.read_integration().await;
    assert_eq!(state.pause_reason, "", "a missing permission to read pauses nothing");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bank_account_without_a_known_mandate_is_tried_and_replaces_no_default_card() {
    let mut harness = Harness::new("unknown mandate", Options::default()).await;
    let provider_id = harness.customer_without_method("hooli").await;
    let account = attach_method(&harness, &provider_id, "pm_success_de").await;
    until_default_is(&mut harness, "hooli", &account).await;
    harness.pay("hooli", "inv").await;
    let (payment, code) = failed_payment(&mut harness, "inv").await;
    assert_eq!(code, "mandate_missing", "{payment:?}");
    assert_eq!(harness.posts("/confirm").len(), 1, "Stripe decides");
    let card = attach_method(&harness, &provider_id, "pm_card_visa").await;
    until_default_is(&mut harness, "hooli", &card).await;
    let other = attach_method(&harness, &provider_id, "pm_success_at").await;
    until("the event is emitted", async || {
        (method_event_count(&harness, "payment_method.created", &other).await == 1).then_some(())
    })
    .await;
    harness.all_delivered().await;
    assert_eq!(default_method(&mut harness, "hooli").await, card, "the card stays the default");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inactive_mandate_is_not_charged_and_a_new_one_is() {
    let mut harness = Harness::new("ended mandate", Options::default()).await;
    let provider_id = harness.customer("hooli", BAD_IBAN).await;
    let method = default_method(&mut harness, "hooli").await;
    harness.pay("hooli", "inv").await;
    until("the bank has the debit", async || (harness.charges("inv").len() == 1).then_some(())).await;
    harness.payment_in("inv", PaymentState::Processing).await;
    harness.advance(Duration::days(6));
    harness.payment_in("inv", PaymentState::Failed).await;
    harness.all_delivered().await;
    let confirms = harness.posts("/confirm").len();
    harness.pay("hooli", "inv-2").await;
    let (_, code) = failed_payment(&mut harness, "inv-2").await;
    assert_eq!((code.as_str(), harness.posts("/confirm").len()), ("mandate_missing", confirms), "nothing is sent");
    let body = format!(
        "customer={provider_id}&payment_method={method}&payment_method_types[]=sepa_debit&confirm=true&{MANDATE_DATA}"
    );
    assert_eq!(post_to_stripe(&harness, "/v1/setup_intents", &body).await["status"], "succeeded");
    harness.all_delivered().await;
    harness.pay("hooli", "inv-3").await;
    let next = harness.payment_when("inv-3", "is decided", |it| it.state() != PaymentState::Pending).await;
    assert_eq!(next.state(), PaymentState::Processing, "{:?}", next.failure);
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sepa_source_is_not_charged_and_the_failure_recommends_a_migration() {
    let mut harness = Harness::new("sepa source", Options::default()).await;
    let body = "type=sepa_debit&currency=eur&sepa_debit[iban]=DE89370400440532013000&owner[name]=Hooli";
    let source = object_id(&post_to_stripe(&harness, "/v1/sources", body).await);
    let provider_id = stripe_customer(&harness, "name=Hooli").await;
    let bound =
        post_to_stripe(&harness, &format!("/v1/customers/{provider_id}/sources"), &format!("source={source}")).await;
    assert_eq!(bound["object"], "source");
    import_customer(&mut harness, "hooli", &provider_id).await;
    assert_eq!(default_method(&mut harness, "hooli").await, source);
    harness.pay("hooli", "inv").await;
    let (payment, code) = failed_payment(&mut harness, "inv").await;
    let text = payment.failure.expect("a failure").message;
    assert_eq!(code, "payment_method_not_usable");
    assert!(text.contains(&source) && text.contains("migrate"), "{text}");
    assert!(harness.posts("/confirm").is_empty(), "nothing is sent");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_or_expiring_card_is_reported_once() {
    let mut harness = Harness::new("expiring", Options::default()).await;
    let provider_id = harness.customer_without_method("hooli").await;
    // The middle of a month, so that the month does not change during the test.
    let day = i64::from(harness.context.environment.clock.now().day());
    harness.advance(Duration::days(45 - day));
    let now = harness.context.environment.clock.now();
    let (year, month) = (now.year(), u8::from(now.month()));
    let card = attach_method(&harness, &provider_id, "pm_card_visa").await;
    let (path, expires) =
        (format!("/v1/payment_methods/{card}"), format!("card[exp_month]={month}&card[exp_year]={year}"));
    post_to_stripe(&harness, &path, &expires).await;
    let later = attach_method(&harness, &provider_id, "pm_card_visa").await;
    until_default_is(&mut harness, "hooli", &later).await;
    harness.all_delivered().await;
    for _ in 0..3 {
        harness.advance(Duration::minutes(2));
        until("it is reported", async || {
            (method_event_count(&harness, "payment_method.expiring", &card).await > 0).then_some(())
        })
        .await;
        harness.drain_jobs(&["apply_delivery"]).await;
    }
    assert_eq!(method_event_count(&harness, "payment_method.expiring", &card).await, 1, "once for its month");
    assert_eq!(method_event_count(&harness, "payment_method.expiring", &later).await, 0);

    // Whether the first change was reported depends on when the new card was read.
    let reported = method_event_count(&harness, "payment_method.updated", &card).await;
    harness.sandbox().renew_card(&card, 12, i64::from(year) + 4).expect("the network renews it");
    until("the event is emitted", async || {
        (method_event_count(&harness, "payment_method.updated", &card).await == reported + 1).then_some(())
    })
    .await;
    post_to_stripe(&harness, &path, &expires).await;
    until("the event is emitted", async || {
        (method_event_count(&harness, "payment_method.updated", &card).await == reported + 2).then_some(())
    })
    .await;
    post_to_stripe(&harness, &path, "billing_details[name]=Hooli").await;
    harness.all_delivered().await;
    assert_eq!(
        method_event_count(&harness, "payment_method.updated", &card).await,
        reported + 2,
        "a change that the API does not show is not reported"
    );
    harness.shutdown().await;
}
