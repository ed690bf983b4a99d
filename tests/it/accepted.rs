//! What was accepted comes to its end, whatever comes in between: a customer who is to be asked is asked, an amount that
//! is being changed to is not overtaken silently, and the bank's advice is not forgotten.

use paybridge::dev::sandbox::{Action, Fault, WebhookAction, WebhookFault};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::{Payment, PaymentState, UpdateCustomerRequest};
use time::Duration;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::cashier::{CONFIRM, Cashier, at_stripe, until};
use crate::links::{WANTS_HOLDER, at_rest, declined, supports_3ds};

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// Lets the next request to a path be answered late, after its work was done.
fn answer_late(cashier: &Cashier, path: &str) {
    let action = Action::Delay { milliseconds: 4_000, after_work: true };
    cashier.sandbox().add_fault(Fault::once("POST", path, action));
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
    assert_eq!(cashier.player.count("invoice.payment_failure", "inv"), 0, "nothing has failed");
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
