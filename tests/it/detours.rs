//! A payment without a payment method, whatever happens before one arrives; and what a merchant does about a payment,
//! which is no payment failure.

use paybridge::dev::sandbox::{Action, Fault, Recorded};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::{DeleteCustomerRequest, Payment, PaymentState};
use time::Duration;

use crate::cashier::{Cashier, until};
use crate::links::{BAD_IBAN, DECLINING, GOOD_CARD, GOOD_IBAN, at_rest};
use crate::reconcile::{lose, passing, session};

/// A till with the customer `hooli`, who has no payment method, and the payment that failed for it.
async fn lacking(name: &str) -> (Cashier, String, Payment) {
    let mut cashier = Cashier::new(name, Options::default()).await;
    let provider_id = cashier.bare_customer("hooli").await;
    cashier.pay("hooli", "inv").await;
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(code(&failed), "no_payment_method");
    (cashier, provider_id, failed)
}

fn code(payment: &Payment) -> String {
    payment.failure.as_ref().map(|failure| failure.code.clone()).unwrap_or_default()
}

/// Waits until an event of a type was emitted so often about an invoice; more often fails.
async fn emitted(cashier: &Cashier, webhook_type: &str, invoice: &str, times: usize) {
    until(&format!("{webhook_type} was emitted {times} times about {invoice}"), || async {
        (cashier.count(webhook_type, invoice).await >= times).then_some(())
    })
    .await;
    assert_eq!(cashier.count(webhook_type, invoice).await, times, "{webhook_type} about {invoice}");
}

/// The reads of a customer's payment methods.
fn reads(cashier: &Cashier) -> Vec<Recorded> {
    let mut requests = cashier.sandbox().requests();
    requests.retain(|request| request.method == "GET" && request.path.ends_with("/payment_methods"));
    requests
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_payment_method_survives_a_link_that_ends_unused() {
    let (mut cashier, provider_id, failed) = lacking("unused detour").await;
    cashier.link("link", &failed).await.expect("a link");
    cashier.advance(Duration::hours(25));
    let ended = cashier.payment_in("inv", PaymentState::Failed).await;
    at_rest(&cashier).await;
    assert_eq!(code(&ended), "no_payment_method", "the reason stays");
    // Pending, failed, pending with the link, and failed again.
    emitted(&cashier, "invoice.payment_status_updated", "inv", 3).await;
    emitted(&cashier, "invoice.payment_failure", "inv", 1).await;
    cashier.sandbox().attach_by_hand(&provider_id, "pm_card_visa").expect("a method arrives");
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    assert_eq!(cashier.live_charges("inv"), 1);
    emitted(&cashier, "payment.succeeded", "inv", 1).await;
    emitted(&cashier, "invoice.payment_failure", "inv", 1).await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_that_arrives_while_a_link_is_open_is_tried_after_its_end() {
    let (mut cashier, provider_id, failed) = lacking("method meanwhile").await;
    cashier.link("link", &failed).await.expect("a link");
    cashier.add_method("hooli", &provider_id, "pm_card_visa").await;
    at_rest(&cashier).await;
    assert_eq!(cashier.payment("inv").await.state(), PaymentState::RequiresAction, "nothing is charged beside a link");
    cashier.advance(Duration::hours(25));
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    assert_eq!(cashier.live_charges("inv"), 1);
    emitted(&cashier, "invoice.payment_failure", "inv", 1).await;
    cashier.end().await;
}

/// Nothing retries a decline; but a method that arrives later gets its one try, whatever was tried before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debit_through_a_link_that_the_bank_refused_is_not_repeated_and_a_later_card_is_tried_once() {
    let (mut cashier, provider_id, failed) = lacking("refused detour").await;
    let (page, _) = cashier.link("link", &failed).await.expect("a link");
    cashier.sandbox().complete_session(&page, BAD_IBAN, true).expect("the payer gives an IBAN");
    cashier.payment_in("inv", PaymentState::Processing).await;
    at_rest(&cashier).await;
    cashier.advance(Duration::days(6));
    let refused = cashier.payment_in("inv", PaymentState::Failed).await;
    at_rest(&cashier).await;
    assert_eq!(code(&refused), "payment_intent_payment_attempt_failed", "the bank's reason");
    assert_eq!(cashier.charges("inv").len(), 1, "the refused debit is not repeated");
    emitted(&cashier, "invoice.payment_failure", "inv", 2).await;
    cashier.add_method("hooli", &provider_id, DECLINING).await;
    until("the card is tried", || async { (cashier.charges("inv").len() == 2).then_some(()) }).await;
    cashier.payment_when("inv", "is declined", |payment| code(payment) == "card_declined").await;
    cashier.add_method("hooli", &provider_id, "pm_card_visa").await;
    at_rest(&cashier).await;
    assert_eq!(cashier.charges("inv").len(), 2, "once");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_that_was_detached_before_the_confirm_is_no_payment_method() {
    let mut cashier = Cashier::new("detached", Options::default()).await;
    let provider_id = cashier.customer("hooli", "pm_card_visa").await;
    let method = cashier.methods("hooli").await[0].provider_payment_method_id.clone();
    lose(&cashier, "payment_method.detached");
    cashier.sandbox().detach_by_hand(&method).expect("somebody detaches it, unheard");
    cashier.pay("hooli", "inv").await;
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(code(&failed), "no_payment_method");
    at_rest(&cashier).await;
    assert!(cashier.methods("hooli").await.is_empty(), "what the refusal showed is known");
    emitted(&cashier, "payment_method.detached", "inv", 0).await;
    cashier.sandbox().clear_faults();
    cashier.sandbox().attach_by_hand(&provider_id, "pm_card_visa").expect("a method arrives");
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    assert_eq!(cashier.live_charges("inv"), 1);
    emitted(&cashier, "invoice.payment_failure", "inv", 1).await;
    cashier.end().await;
}

/// A customer may be deleted once its payments have failed, and a payment outlives it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_with_a_detached_method_of_a_deleted_customer_is_refused_and_does_not_hang() {
    let mut cashier = Cashier::new("deleted", Options::default()).await;
    cashier.customer("hooli", DECLINING).await;
    let method = cashier.methods("hooli").await[0].provider_payment_method_id.clone();
    cashier.pay("hooli", "inv").await;
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(code(&failed), "card_declined");
    let delete = DeleteCustomerRequest { id: failed.customer_id.clone() };
    cashier.player.api.customers.clone().delete_customer(delete).await.expect("nothing of it is on its way");
    lose(&cashier, "payment_method.detached");
    cashier.sandbox().detach_by_hand(&method).expect("somebody detaches it, unheard");
    cashier.retry("retry", &failed, true).await.expect("it is retried");
    let refused = cashier.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(code(&refused), "payment_method_not_usable");
    // Stripe's news of a customer who is deleted here wait two minutes, and count for nothing.
    cashier.at_rest(&["submit_payment"]).await;
    emitted(&cashier, "invoice.payment_failure", "inv", 2).await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_merchant_does_is_no_payment_failure() {
    let mut cashier = Cashier::new("merchant", Options::default()).await;
    cashier.customer("hooli", DECLINING).await;
    for invoice in ["update", "cancel", "manual", "disconnect", "cancel-intent", "update-intent", "manual-intent"] {
        cashier.pay("hooli", invoice).await;
        let mut payment = cashier.payment_in(invoice, PaymentState::Failed).await;
        if !invoice.ends_with("-intent") {
            payment = cashier.link(&format!("link-{invoice}"), &payment).await.expect("a link").1;
        }
        match invoice.trim_end_matches("-intent") {
            "update" => _ = cashier.change_amount(&payment, 3000).await.expect("it is accepted"),
            "cancel" => _ = cashier.cancel(&payment).await.expect("it is accepted"),
            "manual" => _ = cashier.record_manual(invoice, &payment).await.expect("it is accepted"),
            _ => {}
        }
    }
    let is_3000 = |payment: &Payment| payment.amount.as_ref().is_some_and(|amount| amount.minor_units == 3000);
    let updated = cashier.payment_when("update", "has its amount", is_3000).await;
    assert_eq!((updated.state(), code(&updated).as_str()), (PaymentState::Failed, "payment_url_closed"));
    cashier.payment_when("update-intent", "has its amount", is_3000).await;
    cashier.payment_in("cancel", PaymentState::Canceled).await;
    cashier.payment_in("manual", PaymentState::Succeeded).await;
    cashier.disconnect(false).await;
    cashier.payment_in("disconnect", PaymentState::Canceled).await;
    emitted(&cashier, "payment.canceled", "disconnect", 1).await;
    for invoice in ["update", "cancel", "manual", "disconnect", "cancel-intent", "update-intent", "manual-intent"] {
        emitted(&cashier, "invoice.payment_failure", invoice, 1).await;
    }
    // Pending, failed, pending with the link, and failed again: the invoice is told where it stands.
    emitted(&cashier, "invoice.payment_status_updated", "update", 3).await;
    cashier.end().await;
}

/// No webhook says that a method was stored.
fn lose_methods(cashier: &Cashier) {
    for event in ["payment_method.*", "setup_intent.*", "checkout.session.*", "customer.updated"] {
        lose(cashier, event);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_charge_right_after_checkout_reads_the_methods_and_does_not_fail_first() {
    for (method, state) in [(GOOD_CARD, PaymentState::Succeeded), (GOOD_IBAN, PaymentState::Processing)] {
        let mut cashier = Cashier::new("right after", Options::default()).await;
        cashier.bare_customer("hooli").await;
        lose_methods(&cashier);
        let page = session(&mut cashier).await;
        cashier.sandbox().complete_session(&page, method, true).expect("the page is completed");
        cashier.pay("hooli", "inv").await;
        cashier.payment_in("inv", state).await;
        assert_eq!(cashier.count("invoice.payment_failure", "inv").await, 0);
        cashier.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_methods_are_read_once_for_a_customer_who_has_none() {
    let (mut cashier, _, failed) = lacking("none").await;
    at_rest(&cashier).await;
    let of_each_kind = reads(&cashier).len();
    assert_eq!(of_each_kind, 2, "{:#?}", reads(&cashier));
    cashier.link("link", &failed).await.expect("a link");
    cashier.advance(Duration::hours(25));
    cashier.payment_in("inv", PaymentState::Failed).await;
    at_rest(&cashier).await;
    assert_eq!(reads(&cashier).len(), of_each_kind, "nothing more is read while nobody asks");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_while_the_methods_can_not_be_read_the_payment_waits_and_does_not_fail() {
    let mut cashier = Cashier::new("unread", Options::default()).await;
    cashier.bare_customer("hooli").await;
    lose_methods(&cashier);
    let page = session(&mut cashier).await;
    cashier.sandbox().complete_session(&page, GOOD_CARD, true).expect("the page is completed");
    let away = Fault { times: Some(3), ..Fault::once("GET", "/v1/customers/*/payment_methods", Action::Unavailable) };
    cashier.sandbox().add_fault(away);
    cashier.pay("hooli", "inv").await;
    until("a read has failed", || async { reads(&cashier).iter().any(|read| read.status == Some(503)).then_some(()) })
        .await;
    assert_eq!(cashier.payment("inv").await.state(), PaymentState::Pending);
    passing(&mut cashier, Duration::seconds(10), "it is collected", async |cashier| {
        (cashier.payment("inv").await.state() == PaymentState::Succeeded).then_some(())
    })
    .await;
    assert_eq!(cashier.count("invoice.payment_failure", "inv").await, 0);
    cashier.end().await;
}
