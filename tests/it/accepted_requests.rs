//! An accepted request is completed, whatever happens in between: a late response, another request, a changed customer,
//! or a disconnect.

use paybridge::dev::sandbox::{Action, Fault, WebhookAction, WebhookFault};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::{IntegrationState, Payment, PaymentState, UpdateCustomerRequest};
use time::Duration;
use tonic::Code;

use crate::support::customers::{CHALLENGE_CARD, GOOD_IBAN};
use crate::support::errors::reason;
use crate::support::harness::{CONFIRM, Harness, post_to_stripe};
use crate::support::payments::{declined_payment, enable_3ds};
use crate::support::wait::until;

const SESSIONS: &str = "/v1/checkout/sessions";

/// Delays the response to the next POST to a path, and not its work.
fn delay_response(harness: &Harness, path: &str) {
    let action = Action::Delay { milliseconds: 4_000, after_work: true };
    harness.sandbox().add_fault(Fault::once("POST", path, action));
}

/// Disconnects the integration, and waits until that is done.
async fn disconnect(harness: &Harness, force: bool) {
    harness.disconnect(force).await;
    until("it is disconnected", async || {
        (harness.read_integration().await.state() == IntegrationState::Disconnected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_before_the_response_to_a_declined_confirm_does_not_prevent_3d_secure() {
    let mut harness = Harness::new("overtaken", Options::default()).await;
    enable_3ds(&mut harness).await;
    harness.customer("hooli", CHALLENGE_CARD).await;
    delay_response(&harness, CONFIRM);
    harness.pay("hooli", "inv").await;
    let challenged = harness
        .payment_when("inv", "is decided", |payment| {
            !matches!(payment.state(), PaymentState::Pending | PaymentState::Processing)
        })
        .await;
    assert_eq!(challenged.state(), PaymentState::RequiresAction, "{:?}", challenged.failure);
    harness.sandbox().authenticate(&challenged.provider_payment_intent_id, true).expect("the customer authenticates");
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    assert_eq!(harness.event_count("invoice.payment_failure", "inv").await, 0, "nothing has failed");
    assert_eq!(harness.live_charges("inv"), 1);
    harness.shutdown().await;
}

/// The amount of a payment, and the one requested.
fn cents(payment: &Payment) -> (i64, Option<i64>) {
    let amount = payment.amount.as_ref().map_or(0, |amount| amount.minor_units);
    (amount, payment.requested_amount.as_ref().map(|amount| amount.minor_units))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_banks_advice_still_applies_after_a_link() {
    let (mut harness, failed) = declined_payment("advice").await;
    harness.all_delivered().await;
    // No test card that can be stored causes this advice.
    let database = harness.database().await;
    let advice = "UPDATE payment_attempts SET failure = jsonb_set(failure, '{advice_code}', '\"do_not_try_again\"')";
    database.execute(advice, &[]).await.expect("the advice is written");
    harness.link("link", &failed).await.expect("a link");
    harness.advance(Duration::hours(25));
    let ended = harness
        .payment_when("inv", "has failed for its link", |payment| {
            payment.failure.as_ref().is_some_and(|failure| failure.code == "payment_url_expired")
        })
        .await;
    let refused = harness.retry("retry", &ended, false).await.expect_err("the bank advised against it");
    assert_eq!(reason(&refused), "DO_NOT_TRY_AGAIN");
    let (_, open) = harness.link("next", &ended).await.expect("another link");
    let refused = harness.retry("retry", &open, false).await.expect_err("a link changes nothing");
    assert_eq!(reason(&refused), "DO_NOT_TRY_AGAIN");
    harness.retry("forced", &open, true).await.expect("force overrides the advice");
    harness.payment_when("inv", "has another attempt", |payment| payment.attempts.len() == 4).await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changing_back_to_the_current_amount_is_refused_while_a_change_is_pending() {
    let (mut harness, failed) = declined_payment("change back").await;
    let outage = Fault { times: None, ..Fault::once("POST", "/v1/payment_intents/*/cancel", Action::Unavailable) };
    harness.sandbox().add_fault(outage);
    harness.change_amount(&failed, 3000).await.expect("it is accepted");
    let refused = harness.change_amount(&failed, 4900).await.expect_err("another change is pending");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "PAYMENT_BUSY"));
    let again = harness.change_amount(&failed, 3000).await.expect("a repeat is accepted");
    assert_eq!(cents(&again), (4900, Some(3000)));
    harness.sandbox().clear_faults();
    harness.advance(Duration::MINUTE);
    let changed = harness.payment_when("inv", "has the amount", |payment| cents(payment) == (3000, None)).await;
    harness.change_amount(&changed, 4900).await.expect("no change is pending");
    harness.payment_when("inv", "has its first amount", |payment| cents(payment) == (4900, None)).await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_that_needs_3d_secure_fails_if_its_customer_was_relinked() {
    let mut harness = Harness::new("relinked", Options::default()).await;
    enable_3ds(&mut harness).await;
    harness.customer("hooli", CHALLENGE_CARD).await;
    let lost = WebhookFault {
        event: "payment_intent.payment_failed".to_owned(),
        action: WebhookAction::Lose,
        ..WebhookFault::default()
    };
    harness.sandbox().add_webhook_fault(lost);
    let other = post_to_stripe(&harness, "/v1/customers", "name=Hooli").await;
    delay_response(&harness, CONFIRM);
    harness.pay("hooli", "inv").await;
    until("it is confirmed", async || (harness.posts("/confirm").len() == 1).then_some(())).await;
    let outage = Fault { times: None, ..Fault::once("GET", "/v1/customers/*", Action::Unavailable) };
    harness.sandbox().add_fault(outage);
    let mut customer = harness.billing.customer("hooli").await.expect("a customer");
    customer.provider_customer_id = other["id"].as_str().expect("an id").to_owned();
    customer.etag.clear();
    let mask = Some(prost_types::FieldMask { paths: vec!["provider_customer_id".to_owned()] });
    let request = UpdateCustomerRequest { customer: Some(customer), update_mask: mask };
    harness.billing.api.customers.update_customer(request).await.expect("the customer is relinked");
    until("Stripe demands 3-D Secure", async || {
        harness.posts("/confirm").iter().any(|post| post.status == Some(402)).then_some(())
    })
    .await;
    harness.drain_jobs(&["submit_payment"]).await;
    assert_eq!(harness.payment("inv").await.state(), PaymentState::Processing, "the customer cannot be read yet");
    harness.sandbox().clear_faults();
    harness.advance(Duration::MINUTE);
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    let code = failed.failure.map(|failure| failure.code).unwrap_or_default();
    assert_eq!(code, "payment_method_not_usable", "the method belongs to the former Stripe customer");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_request_accepted_after_a_disconnect_is_completed_without_stripe() {
    let (mut harness, canceled) = declined_payment("disconnected").await;
    let mut others = Vec::new();
    for invoice in ["inv-elsewhere", "inv-less", "inv-nothing"] {
        harness.pay("hooli", invoice).await;
        others.push(harness.payment_in(invoice, PaymentState::Failed).await);
    }
    harness.quiesce().await;
    disconnect(&harness, false).await;

    harness.cancel(&canceled).await.expect("it is accepted");
    let canceled_here = harness.payment_in("inv", PaymentState::Canceled).await;
    assert!(canceled_here.outcome_unknown_time.is_some(), "what Stripe did is unknown, and that is visible");
    assert_eq!(canceled_here.provider_payment_intent_id, "", "no intent collects for it");
    assert_eq!(
        canceled_here.attempts[0].provider_payment_intent_id, canceled.provider_payment_intent_id,
        "the abandoned intent"
    );
    harness.billing.wait_for_event("payment.canceled", "inv").await.expect("the event is emitted");

    harness.record_manual("manual", &others[0]).await.expect("it is accepted");
    let elsewhere = harness.payment_in("inv-elsewhere", PaymentState::Succeeded).await;
    assert!(elsewhere.outcome_unknown_time.is_some() && elsewhere.manual_payment.is_some(), "{elsewhere:?}");
    harness.change_amount(&others[1], 3000).await.expect("it is accepted");
    harness.payment_when("inv-less", "has the new amount", |payment| cents(payment) == (3000, None)).await;
    harness.change_amount(&others[2], 0).await.expect("it is accepted");
    let nothing = harness.payment_in("inv-nothing", PaymentState::Succeeded).await;
    assert!(nothing.outcome_unknown_time.is_some(), "an intent is abandoned here, too");
    harness.drain_jobs(&["submit_payment"]).await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_debit_in_flight_at_a_forced_disconnect_is_not_canceled_and_can_be_recorded_as_paid() {
    let mut harness = Harness::new("forced", Options::default()).await;
    harness.customer("hooli", GOOD_IBAN).await;
    harness.pay("hooli", "inv").await;
    let processing = harness.payment_in("inv", PaymentState::Processing).await;
    harness.quiesce().await;
    disconnect(&harness, true).await;
    harness.cancel(&processing).await.expect("it is accepted");
    harness.billing.wait_for_event("payment.cancellation_refused", "inv").await.expect("the bank may still have it");
    let unchanged = harness.payment("inv").await;
    assert_eq!((unchanged.state(), unchanged.cancel_request_time), (PaymentState::Processing, None));
    harness.record_manual("manual", &unchanged).await.expect("it is accepted");
    let settled = harness.payment_in("inv", PaymentState::Succeeded).await;
    assert!(settled.outcome_unknown_time.is_some(), "what the bank did is unknown");
    harness.drain_jobs(&["submit_payment"]).await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_no_link_outlives_a_disconnect() {
    let (mut harness, failed) = declined_payment("late link").await;
    harness.quiesce().await;
    delay_response(&harness, SESSIONS);
    let before = harness.posts(SESSIONS).len();
    let creation = async {
        let refused = harness.link("link", &failed).await.expect_err("the link is refused");
        assert_eq!(reason(&refused), "PAYMENT_URL_REFUSED");
    };
    let disconnection = async {
        until("Stripe has created the session", async || (harness.posts(SESSIONS).len() > before).then_some(())).await;
        disconnect(&harness, false).await;
    };
    tokio::join!(creation, disconnection);
    harness.payment_in("inv", PaymentState::Canceled).await;
    until("the session is expired", async || {
        harness.posts("/expire").iter().any(|post| post.status == Some(200)).then_some(())
    })
    .await;
    harness.shutdown().await;
}
