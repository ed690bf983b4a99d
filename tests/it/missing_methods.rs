//! Payments of customers without a payment method, and which actions on a payment count as a payment failure.

use paybridge::dev::sandbox::{Action, Fault, RecordedRequest};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::{DeleteCustomerRequest, Payment, PaymentState, delete_customer_request};
use time::Duration;

use crate::support::customers::{BAD_IBAN, DECLINING_CARD, GOOD_CARD, GOOD_IBAN, checkout_session};
use crate::support::harness::Harness;
use crate::support::wait::{advance_until, until};
use crate::support::webhooks::lose_webhooks;

/// A harness with the customer `hooli`, who has no payment method, and a payment that failed for that reason.
async fn payment_without_method(name: &str) -> (Harness, String, Payment) {
    let mut harness = Harness::new(name, Options::default()).await;
    let provider_id = harness.customer_without_method("hooli").await;
    harness.pay("hooli", "inv").await;
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(code(&failed), "no_payment_method");
    (harness, provider_id, failed)
}

fn code(payment: &Payment) -> String {
    payment.failure.as_ref().map(|failure| failure.code.clone()).unwrap_or_default()
}

/// Waits until an event of a type was emitted `times` times about an invoice, and checks that it was not more often.
async fn assert_emitted(harness: &Harness, webhook_type: &str, invoice: &str, times: usize) {
    until(&format!("{webhook_type} was emitted {times} times about {invoice}"), async || {
        (harness.event_count(webhook_type, invoice).await >= times).then_some(())
    })
    .await;
    assert_eq!(harness.event_count(webhook_type, invoice).await, times, "{webhook_type} about {invoice}");
}

/// The reads of a customer's payment methods.
fn reads(harness: &Harness) -> Vec<RecordedRequest> {
    let mut requests = harness.sandbox().requests();
    requests.retain(|request| request.method == "GET" && request.path.ends_with("/payment_methods"));
    requests
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_failure_no_payment_method_outlasts_an_unused_link() {
    let (mut harness, provider_id, failed) = payment_without_method("unused link").await;
    harness.link("link", &failed).await.expect("a link");
    harness.advance(Duration::hours(25));
    let ended = harness.payment_in("inv", PaymentState::Failed).await;
    harness.quiesce().await;
    assert_eq!(code(&ended), "no_payment_method", "the code stays");
    // Pending, failed, pending with the link, and failed again.
    assert_emitted(&harness, "invoice.payment_status_updated", "inv", 3).await;
    assert_emitted(&harness, "invoice.payment_failure", "inv", 1).await;
    harness.sandbox().attach_in_dashboard(&provider_id, "pm_card_visa").expect("a method arrives");
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    assert_eq!(harness.live_charges("inv"), 1);
    assert_emitted(&harness, "payment.succeeded", "inv", 1).await;
    assert_emitted(&harness, "invoice.payment_failure", "inv", 1).await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_added_while_a_link_is_open_is_charged_after_its_expiry() {
    let (mut harness, provider_id, failed) = payment_without_method("method during link").await;
    harness.link("link", &failed).await.expect("a link");
    harness.add_method("hooli", &provider_id, "pm_card_visa").await;
    harness.quiesce().await;
    assert_eq!(
        harness.payment("inv").await.state(),
        PaymentState::RequiresAction,
        "nothing is charged while a link is open"
    );
    harness.advance(Duration::hours(25));
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    assert_eq!(harness.live_charges("inv"), 1);
    assert_emitted(&harness, "invoice.payment_failure", "inv", 1).await;
    harness.shutdown().await;
}

/// A decline is not retried, but a method that is added later is tried once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_returned_debit_through_a_link_is_not_retried_and_a_later_card_is_tried_once() {
    let (mut harness, provider_id, failed) = payment_without_method("returned debit").await;
    let (page, _) = harness.link("link", &failed).await.expect("a link");
    harness.sandbox().complete_session(&page, BAD_IBAN, true).expect("the payer gives an IBAN");
    harness.payment_in("inv", PaymentState::Processing).await;
    harness.quiesce().await;
    harness.advance(Duration::days(6));
    let refused = harness.payment_in("inv", PaymentState::Failed).await;
    harness.quiesce().await;
    assert_eq!(code(&refused), "payment_intent_payment_attempt_failed", "the bank's reason");
    assert_eq!(harness.charges("inv").len(), 1, "the returned debit is not retried");
    assert_emitted(&harness, "invoice.payment_failure", "inv", 2).await;
    harness.add_method("hooli", &provider_id, DECLINING_CARD).await;
    until("the card is tried", async || (harness.charges("inv").len() == 2).then_some(())).await;
    harness.payment_when("inv", "is declined", |payment| code(payment) == "card_declined").await;
    harness.add_method("hooli", &provider_id, "pm_card_visa").await;
    harness.quiesce().await;
    assert_eq!(harness.charges("inv").len(), 2, "once");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_that_was_detached_before_the_confirm_counts_as_missing() {
    let mut harness = Harness::new("detached", Options::default()).await;
    let provider_id = harness.customer("hooli", "pm_card_visa").await;
    let method = harness.methods("hooli").await[0].provider_payment_method_id.clone();
    lose_webhooks(&harness, "payment_method.detached");
    harness.sandbox().detach_in_dashboard(&method).expect("it is detached");
    harness.pay("hooli", "inv").await;
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(code(&failed), "no_payment_method");
    harness.quiesce().await;
    assert!(harness.methods("hooli").await.is_empty(), "the error shows that the method is detached");
    assert_emitted(&harness, "payment_method.detached", "inv", 0).await;
    harness.sandbox().clear_faults();
    harness.sandbox().attach_in_dashboard(&provider_id, "pm_card_visa").expect("a method arrives");
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    assert_eq!(harness.live_charges("inv"), 1);
    assert_emitted(&harness, "invoice.payment_failure", "inv", 1).await;
    harness.shutdown().await;
}

/// A customer can be deleted once its payments have failed. The payments remain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_with_a_detached_method_of_a_deleted_customer_fails_and_does_not_hang() {
    let mut harness = Harness::new("deleted", Options::default()).await;
    harness.customer("hooli", DECLINING_CARD).await;
    let method = harness.methods("hooli").await[0].provider_payment_method_id.clone();
    harness.pay("hooli", "inv").await;
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(code(&failed), "card_declined");
    let hooli = delete_customer_request::Customer::ExternalId("hooli".to_owned());
    let delete = DeleteCustomerRequest { customer: Some(hooli) };
    harness.billing.api.customers.clone().delete_customer(delete).await.expect("none of its payments is in progress");
    lose_webhooks(&harness, "payment_method.detached");
    harness.sandbox().detach_in_dashboard(&method).expect("it is detached");
    harness.retry("retry", &failed, true).await.expect("it is retried");
    let refused = harness.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(code(&refused), "payment_method_not_usable");
    // Deliveries about a deleted customer wait for two minutes, and are then ignored.
    harness.drain_jobs(&["submit_payment"]).await;
    assert_emitted(&harness, "invoice.payment_failure", "inv", 2).await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actions_of_the_merchant_are_no_payment_failures() {
    let mut harness = Harness::new("merchant", Options::default()).await;
    harness.customer("hooli", DECLINING_CARD).await;
    for invoice in ["update", "cancel", "manual", "disconnect", "cancel-intent", "update-intent", "manual-intent"] {
        harness.pay("hooli", invoice).await;
        let mut payment = harness.payment_in(invoice, PaymentState::Failed).await;
        if !invoice.ends_with("-intent") {
            payment = harness.link(&format!("link-{invoice}"), &payment).await.expect("a link").1;
        }
        match invoice.trim_end_matches("-intent") {
            "update" => _ = harness.change_amount(&payment, 3000).await.expect("it is accepted"),
            "cancel" => _ = harness.cancel(&payment).await.expect("it is accepted"),
            "manual" => _ = harness.record_manual(invoice, &payment).await.expect("it is accepted"),
            _ => {}
        }
    }
    let is_3000 = |payment: &Payment| payment.amount.as_ref().is_some_and(|amount| amount.minor_units == 3000);
    let updated = harness.payment_when("update", "has its amount", is_3000).await;
    assert_eq!((updated.state(), code(&updated).as_str()), (PaymentState::Failed, "payment_url_closed"));
    harness.payment_when("update-intent", "has its amount", is_3000).await;
    harness.payment_in("cancel", PaymentState::Canceled).await;
    harness.payment_in("manual", PaymentState::Succeeded).await;
    harness.disconnect(false).await;
    harness.payment_in("disconnect", PaymentState::Canceled).await;
    assert_emitted(&harness, "payment.canceled", "disconnect", 1).await;
    for invoice in ["update", "cancel", "manual", "disconnect", "cancel-intent", "update-intent", "manual-intent"] {
        assert_emitted(&harness, "invoice.payment_failure", invoice, 1).await;
    }
    // Pending, failed, pending with the link, and failed again: each status is reported.
    assert_emitted(&harness, "invoice.payment_status_updated", "update", 3).await;
    harness.shutdown().await;
}

/// Loses all webhooks that would report a stored method.
fn lose_methods(harness: &Harness) {
    for event in ["payment_method.*", "setup_intent.*", "checkout.session.*", "customer.updated"] {
        lose_webhooks(harness, event);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_charge_right_after_checkout_reads_the_methods_and_does_not_fail_first() {
    for (method, state) in [(GOOD_CARD, PaymentState::Succeeded), (GOOD_IBAN, PaymentState::Processing)] {
        let mut harness = Harness::new("right after", Options::default()).await;
        harness.customer_without_method("hooli").await;
        lose_methods(&harness);
        let page = checkout_session(&mut harness).await;
        harness.sandbox().complete_session(&page, method, true).expect("the page is completed");
        harness.pay("hooli", "inv").await;
        harness.payment_in("inv", state).await;
        assert_eq!(harness.event_count("invoice.payment_failure", "inv").await, 0);
        harness.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_methods_are_read_once_for_a_customer_who_has_none() {
    let (mut harness, _, failed) = payment_without_method("none").await;
    harness.quiesce().await;
    let of_each_kind = reads(&harness).len();
    assert_eq!(of_each_kind, 2, "{:#?}", reads(&harness));
    harness.link("link", &failed).await.expect("a link");
    harness.advance(Duration::hours(25));
    harness.payment_in("inv", PaymentState::Failed).await;
    harness.quiesce().await;
    assert_eq!(reads(&harness).len(), of_each_kind, "no further read without a request");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_while_the_methods_can_not_be_read_the_payment_waits_and_does_not_fail() {
    let mut harness = Harness::new("unread", Options::default()).await;
    harness.customer_without_method("hooli").await;
    lose_methods(&harness);
    let page = checkout_session(&mut harness).await;
    harness.sandbox().complete_session(&page, GOOD_CARD, true).expect("the page is completed");
    let outage = Fault { times: Some(3), ..Fault::once("GET", "/v1/customers/*/payment_methods", Action::Unavailable) };
    harness.sandbox().add_fault(outage);
    harness.pay("hooli", "inv").await;
    until("a read has failed", async || reads(&harness).iter().any(|read| read.status == Some(503)).then_some(()))
        .await;
    assert_eq!(harness.payment("inv").await.state(), PaymentState::Pending);
    advance_until(&mut harness, Duration::seconds(10), "it is collected", async |harness| {
        (harness.payment("inv").await.state() == PaymentState::Succeeded).then_some(())
    })
    .await;
    assert_eq!(harness.event_count("invoice.payment_failure", "inv").await, 0);
    harness.shutdown().await;
}
