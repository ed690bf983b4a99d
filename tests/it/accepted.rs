//! What was accepted comes to its end, whatever comes in between: a customer who is to be asked is asked, an amount that
//! is being changed to is not overtaken silently, the bank's advice is not forgotten, and a request about a payment whose
//! integration has gone ends without Stripe.

use paybridge::dev::sandbox::{Action, Fault, WebhookAction, WebhookFault};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::{IntegrationState, Payment, PaymentState, UpdateCustomerRequest};
use time::Duration;
use tonic::Code;

use crate::cashier::{CONFIRM, Cashier, at_stripe, reason, until};
use crate::links::{GOOD_IBAN, WANTS_HOLDER, at_rest, declined, supports_3ds};

const SESSIONS: &str = "/v1/checkout/sessions";

/// Lets the next request to a path be answered late, after its work was done.
fn answer_late(cashier: &Cashier, path: &str) {
    let action = Action::Delay { milliseconds: 4_000, after_work: true };
    cashier.sandbox().add_fault(Fault::once("POST", path, action));
}

async fn disconnect(cashier: &Cashier, force: bool) {
    cashier.disconnect(force).await;
    until("it is disconnected", || async {
        (cashier.integration_now().await.state() == IntegrationState::Disconnected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_overtakes_the_refusal_leaves_the_customer_to_be_asked() {
    let mut cashier = Cashier::new("overtaken", Options::default()).await;
    supports_3ds(&mut cashier).await;
    cashier.customer("hooli", WANTS_HOLDER).await;
    answer_late(&cashier, CONFIRM);
    cashier.pay("hooli", "inv").await;
    let asked = cashier
        .payment_when("inv", "is decided", |payment| {
            !matches!(payment.state(), PaymentState::Pending | PaymentState::Processing)
        })
        .await;
    assert_eq!(asked.state(), PaymentState::RequiresAction, "{:?}", asked.failure);
    cashier.sandbox().authenticate(&asked.provider_payment_intent_id, true).expect("the customer proves who they are");
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    assert_eq!(cashier.count("invoice.payment_failure", "inv").await, 0, "nothing has failed");
    assert_eq!(cashier.live_charges("inv"), 1);
    cashier.end().await;
}

/// The amount that is being changed to, as well as its own.
fn cents(payment: &Payment) -> (i64, Option<i64>) {
    let own = payment.amount.as_ref().map_or(0, |amount| amount.minor_units);
    (own, payment.requested_amount.as_ref().map(|amount| amount.minor_units))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_banks_advice_outlasts_a_link() {
    let (mut cashier, failed) = declined("advice").await;
    cashier.all_delivered().await;
    // No test card that can be stored draws this advice, so it is put in the bank's mouth.
    let database = cashier.database().await;
    let advise = "UPDATE payment_attempts SET failure = jsonb_set(failure, '{advice_code}', '\"do_not_try_again\"')";
    database.execute(advise, &[]).await.expect("the advice is written");
    cashier.link("link", &failed).await.expect("a link");
    cashier.advance(Duration::hours(25));
    let ended = cashier
        .payment_when("inv", "has failed for its link", |payment| {
            payment.failure.as_ref().is_some_and(|failure| failure.code == "payment_url_expired")
        })
        .await;
    let refused = cashier.retry("retry", &ended, false).await.expect_err("the bank said never again");
    assert_eq!(reason(&refused), "DO_NOT_TRY_AGAIN");
    let (_, open) = cashier.link("next", &ended).await.expect("another link");
    let refused = cashier.retry("retry", &open, false).await.expect_err("nor beside a link");
    assert_eq!(reason(&refused), "DO_NOT_TRY_AGAIN");
    cashier.retry("forced", &open, true).await.expect("force tries all the same");
    cashier.payment_when("inv", "was tried again", |payment| payment.attempts.len() == 4).await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_present_amount_is_a_change_while_another_one_waits() {
    let (mut cashier, failed) = declined("and back").await;
    let away = Fault { times: None, ..Fault::once("POST", "/v1/payment_intents/*/cancel", Action::Unavailable) };
    cashier.sandbox().add_fault(away);
    cashier.change_amount(&failed, 3000).await.expect("it is taken on");
    let refused = cashier.change_amount(&failed, 4900).await.expect_err("the other amount would win");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "PAYMENT_BUSY"));
    let again = cashier.change_amount(&failed, 3000).await.expect("the same change is that change");
    assert_eq!(cents(&again), (4900, Some(3000)));
    cashier.sandbox().clear_faults();
    cashier.advance(Duration::MINUTE);
    let changed = cashier.payment_when("inv", "has the amount", |payment| cents(payment) == (3000, None)).await;
    cashier.change_amount(&changed, 4900).await.expect("now it can be changed back");
    cashier.payment_when("inv", "has its first amount", |payment| cents(payment) == (4900, None)).await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_that_was_to_ask_its_customer_goes_on_when_the_customer_is_linked_anew() {
    let mut cashier = Cashier::new("relinked", Options::default()).await;
    supports_3ds(&mut cashier).await;
    cashier.customer("hooli", WANTS_HOLDER).await;
    let lost = WebhookFault {
        event: "payment_intent.payment_failed".to_owned(),
        action: WebhookAction::Lose,
        ..WebhookFault::default()
    };
    cashier.sandbox().add_webhook_fault(lost);
    let other = at_stripe(&cashier, "/v1/customers", "name=Hooli").await;
    answer_late(&cashier, CONFIRM);
    cashier.pay("hooli", "inv").await;
    until("it is confirmed", || async { (cashier.posts("/confirm").len() == 1).then_some(()) }).await;
    let away = Fault { times: None, ..Fault::once("GET", "/v1/customers/*", Action::Unavailable) };
    cashier.sandbox().add_fault(away);
    let mut customer = cashier.player.customer("hooli").await.expect("a customer");
    customer.provider_customer_id = other["id"].as_str().expect("an id").to_owned();
    customer.etag.clear();
    let mask = Some(prost_types::FieldMask { paths: vec!["provider_customer_id".to_owned()] });
    let request = UpdateCustomerRequest { customer: Some(customer), update_mask: mask };
    cashier.player.api.customers.update_customer(request).await.expect("it is linked anew");
    until("Stripe wants to see the customer", || async {
        cashier.posts("/confirm").iter().any(|post| post.status == Some(402)).then_some(())
    })
    .await;
    cashier.at_rest(&["submit_payment"]).await;
    assert_eq!(cashier.payment("inv").await.state(), PaymentState::Processing, "nobody can be asked yet");
    cashier.sandbox().clear_faults();
    cashier.advance(Duration::MINUTE);
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    let code = failed.failure.map(|failure| failure.code).unwrap_or_default();
    assert_eq!(code, "payment_method_not_usable", "the method belonged to the customer it was");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_request_accepted_after_a_disconnect_comes_to_its_end() {
    let (mut cashier, canceled) = declined("gone").await;
    let mut others = Vec::new();
    for invoice in ["inv-elsewhere", "inv-less", "inv-nothing"] {
        cashier.pay("hooli", invoice).await;
        others.push(cashier.payment_in(invoice, PaymentState::Failed).await);
    }
    at_rest(&cashier).await;
    disconnect(&cashier, false).await;

    cashier.cancel(&canceled).await.expect("it is taken on");
    let left = cashier.payment_in("inv", PaymentState::Canceled).await;
    assert!(left.outcome_unknown_time.is_some(), "Stripe could not be asked, and that is visible");
    assert_eq!(left.provider_payment_intent_id, "", "it collects no more");
    assert_eq!(left.attempts[0].provider_payment_intent_id, canceled.provider_payment_intent_id, "what is left behind");
    cashier.player.told("payment.canceled", "inv").await.expect("it is told");

    cashier.record_manual("manual", &others[0]).await.expect("it is taken on");
    let elsewhere = cashier.payment_in("inv-elsewhere", PaymentState::Succeeded).await;
    assert!(elsewhere.outcome_unknown_time.is_some() && elsewhere.manual_payment.is_some(), "{elsewhere:?}");
    cashier.change_amount(&others[1], 3000).await.expect("it is taken on");
    cashier.payment_when("inv-less", "has the new amount", |payment| cents(payment) == (3000, None)).await;
    cashier.change_amount(&others[2], 0).await.expect("it is taken on");
    let nothing = cashier.payment_in("inv-nothing", PaymentState::Succeeded).await;
    assert!(nothing.outcome_unknown_time.is_some(), "an intent is left behind here, too");
    cashier.at_rest(&["submit_payment"]).await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_what_moved_at_a_forced_disconnect_is_not_canceled_and_can_be_recorded_as_paid() {
    let mut cashier = Cashier::new("forced", Options::default()).await;
    cashier.customer("hooli", GOOD_IBAN).await;
    cashier.pay("hooli", "inv").await;
    let moving = cashier.payment_in("inv", PaymentState::Processing).await;
    at_rest(&cashier).await;
    disconnect(&cashier, true).await;
    cashier.cancel(&moving).await.expect("it is taken on");
    cashier.player.told("payment.cancellation_refused", "inv").await.expect("the bank may have it still");
    let on = cashier.payment("inv").await;
    assert_eq!((on.state(), on.cancel_request_time), (PaymentState::Processing, None));
    cashier.record_manual("manual", &on).await.expect("it is taken on");
    let settled = cashier.payment_in("inv", PaymentState::Succeeded).await;
    assert!(settled.outcome_unknown_time.is_some(), "what the bank did stays unknown");
    cashier.at_rest(&["submit_payment"]).await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_no_link_outlives_a_disconnect() {
    let (mut cashier, failed) = declined("late link").await;
    at_rest(&cashier).await;
    answer_late(&cashier, SESSIONS);
    let before = cashier.posts(SESSIONS).len();
    let making = async {
        let refused = cashier.link("link", &failed).await.expect_err("nobody gets it");
        assert_eq!(reason(&refused), "PAYMENT_URL_REFUSED");
    };
    let leaving = async {
        until("Stripe has made the page", || async { (cashier.posts(SESSIONS).len() > before).then_some(()) }).await;
        disconnect(&cashier, false).await;
    };
    tokio::join!(making, leaving);
    cashier.payment_in("inv", PaymentState::Canceled).await;
    until("nobody can pay there", || async {
        cashier.posts("/expire").iter().any(|post| post.status == Some(200)).then_some(())
    })
    .await;
    cashier.end().await;
}
