//! What nobody told: webhooks are lost, and what has been moving for too long is asked about, through the same way as a
//! webhook (P6), so that a repeat changes nothing.

use paybridge::app::Periods;
use paybridge::dev::sandbox::{Action, Fault, WebhookFault};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{CreateCheckoutUrlRequest, PaymentState};
use time::Duration;

use crate::cashier::{Cashier, at_stripe, until};
use crate::links::GOOD_IBAN;

/// Longer than any test looks.
pub const NEVER: Duration = Duration::days(365);

/// Only stale objects are asked about.
fn sweep_alone() -> Periods {
    Periods { list_test: NEVER, endpoint: NEVER, ..Periods::default() }
}

pub async fn till(name: &str, periods: Periods) -> Cashier {
    Cashier::new(name, Options { periods, ..Options::default() }).await
}

pub fn lose(cashier: &Cashier, event: &str) {
    cashier.sandbox().add_webhook_fault(WebhookFault { event: event.to_owned(), ..WebhookFault::default() });
}

/// What the server's metrics say that was mended of a kind. Other tests of this process mend, too: it only rises.
pub async fn mended(cashier: &Cashier, kind: &str) -> u64 {
    let text = cashier.metrics().await;
    let name = format!("paybridge_mended_total{{kind=\"{kind}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
}

/// Waits until at least so much was counted as mended: a change shows before it is counted.
pub async fn mended_reaches(cashier: &Cashier, kind: &str, least: u64) {
    until(&format!("{least} of {kind} are counted"), || async { (mended(cashier, kind).await >= least).then_some(()) })
        .await;
}

/// Asks again and again, and lets time pass by `step` between.
pub async fn passing<T>(
    cashier: &mut Cashier,
    step: Duration,
    what: &str,
    mut ask: impl AsyncFnMut(&mut Cashier) -> Option<T>,
) -> T {
    let began = std::time::Instant::now();
    while began.elapsed() < std::time::Duration::from_secs(45) {
        if let Some(found) = ask(cashier).await {
            return found;
        }
        cashier.advance(step);
        let _ = tokio::time::timeout(std::time::Duration::from_millis(100), std::future::pending::<()>()).await;
    }
    panic!("waited in vain until {what}");
}

/// A link to store a method for `hooli`; its session's id.
pub async fn session(cashier: &mut Cashier) -> String {
    let customer_id = cashier.player.customer("hooli").await.expect("a customer").id;
    let ask = CreateCheckoutUrlRequest { customer_id, ..CreateCheckoutUrlRequest::default() };
    let answer = cashier.player.api.customers.create_checkout_url(ask).await.expect("a link").into_inner();
    answer.checkout_url.rsplit('/').next().expect("a session").to_owned()
}

pub async fn has_default(cashier: &mut Cashier) -> Option<()> {
    let customer = cashier.player.customer("hooli").await.expect("a customer");
    (!customer.default_payment_method_id.is_empty()).then_some(())
}

/// The statuses of the refunds that were told.
pub fn refunds(cashier: &Cashier) -> Vec<String> {
    let events = cashier.player.events();
    let refund = |object: Option<Object>| match object {
        Some(Object::Refund(refund)) => Some(refund.status),
        _ => None,
    };
    events.into_iter().filter_map(|event| refund(event.object)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_debit_a_page_and_a_refund_of_which_nothing_is_heard_are_asked_about() {
    let mut cashier = till("stale", sweep_alone()).await;
    let provider_id = cashier.bare_customer("hooli").await;
    // One page is completed, another one is not.
    lose(&cashier, "*");
    let used = session(&mut cashier).await;
    let unused = session(&mut cashier).await;
    let before = (mended(&cashier, "checkout_session").await, mended(&cashier, "payment").await);
    cashier.sandbox().complete_session(&used, GOOD_IBAN, true).expect("the page is completed");
    cashier.advance(Duration::hours(24) + Duration::minutes(3));
    passing(&mut cashier, Duration::minutes(1), "the method is learnt", has_default).await;
    let ended = format!("/{unused}");
    cashier
        .player
        .event("the unused page's end", |event| match &event.object {
            Some(Object::PaymentProviderCustomerCheckoutUrl(link)) if link.checkout_url.ends_with(&ended) => {
                (event.webhook_type == "customer.checkout_url_expired").then_some(())
            }
            _ => None,
        })
        .await
        .expect("it is told");
    mended_reaches(&cashier, "checkout_session", before.0 + 2).await;

    cashier.pay("hooli", "inv").await;
    cashier.payment_in("inv", PaymentState::Processing).await;
    until("it is at the bank", || async { (cashier.live_charges("inv") == 1).then_some(()) }).await;
    passing(&mut cashier, Duration::hours(24), "the debit's end is found", async |cashier| {
        (cashier.payment("inv").await.state() == PaymentState::Succeeded).then_some(())
    })
    .await;
    mended_reaches(&cashier, "payment", before.1 + 1).await;
    assert_eq!(cashier.count("payment.succeeded", "inv").await, 1, "told once");

    // A refund is told while it is on its way, and then no more.
    cashier.sandbox().clear_faults();
    cashier.add_method("hooli", &provider_id, "pm_card_pendingRefund").await;
    cashier.pay("hooli", "inv-2").await;
    let paid = cashier.payment_in("inv-2", PaymentState::Succeeded).await;
    let body = format!("payment_intent={}", paid.provider_payment_intent_id);
    at_stripe(&cashier, "/v1/refunds", &body).await;
    until("it is told", || async { (refunds(&cashier) == ["pending"]).then_some(()) }).await;
    lose(&cashier, "*");
    let before = mended(&cashier, "refund").await;
    passing(&mut cashier, Duration::hours(6), "the refund's end is found", async |cashier| {
        (refunds(cashier) == ["pending", "succeeded"]).then_some(())
    })
    .await;
    mended_reaches(&cashier, "refund", before + 1).await;
    cashier.end().await;
}

/// Waits until stale objects have been asked about up to the present time.
async fn swept(cashier: &Cashier) {
    let now = cashier.scenery.stage.clock.now().unix_timestamp();
    let database = cashier.database().await;
    until("the sweep has come", || async {
        let query = "SELECT extract(epoch FROM sweep_time)::bigint FROM integrations";
        let swept = database.query_one(query, &[]).await.expect("a look").get::<_, Option<i64>>(0)?;
        (swept >= now).then_some(())
    })
    .await;
    cashier.at_rest(&["reconcile_payment", "reconcile_session", "refund_payment"]).await;
}

/// Reads are rationed: what the bank has is read daily, and what is settled never.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debit_that_the_bank_has_is_read_daily_and_what_is_settled_is_not_read() {
    let mut cashier = till("rationed", sweep_alone()).await;
    let provider_id = cashier.customer("hooli", "pm_card_visa").await;
    cashier.pay("hooli", "inv-card").await;
    cashier.payment_in("inv-card", PaymentState::Succeeded).await;
    cashier.add_method("hooli", &provider_id, GOOD_IBAN).await;
    cashier.pay("hooli", "inv-debit").await;
    until("it is at the bank", || async { (cashier.live_charges("inv-debit") == 1).then_some(()) }).await;
    cashier.payment_in("inv-debit", PaymentState::Processing).await;
    cashier.all_delivered().await;
    cashier.at_rest(&["submit_payment"]).await;
    cashier.sandbox().forget_requests();
    for _ in 0..9 {
        cashier.advance(Duration::hours(6));
        swept(&cashier).await;
    }
    let intent = cashier.payment("inv-debit").await.provider_payment_intent_id;
    let read: Vec<String> = cashier.sandbox().requests().into_iter().map(|request| request.path).collect();
    assert_eq!(read, vec![format!("/v1/payment_intents/{intent}"); 2], "twice in 54 hours, and nothing else");
    cashier.end().await;
}

/// A page's method that is found late is no newer than it is: one that was stored since stays the default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_method_that_is_found_late_does_not_take_the_place_of_a_newer_one() {
    let mut cashier = till("late", sweep_alone()).await;
    let provider_id = cashier.bare_customer("hooli").await;
    cashier.all_delivered().await;
    let page = session(&mut cashier).await;
    lose(&cashier, "*");
    cashier.sandbox().complete_session(&page, GOOD_IBAN, true).expect("the page is completed");
    cashier.sandbox().clear_faults();
    cashier.advance(Duration::hours(1));
    let newer = cashier.add_method("hooli", &provider_id, "pm_card_visa").await;
    cashier.all_delivered().await;
    cashier.advance(Duration::hours(24));
    passing(&mut cashier, Duration::minutes(1), "the page's method is found", async |cashier| {
        (cashier.methods("hooli").await.len() == 2).then_some(())
    })
    .await;
    let default = cashier.methods("hooli").await.into_iter().find(|method| method.is_default).expect("a default");
    assert_eq!(default.provider_payment_method_id, newer);
    cashier.end().await;
}

/// A page that was never made, because nobody asked for it again, is given up with its key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_whose_making_was_given_up_does_not_stay_in_the_making() {
    let mut cashier = till("never made", sweep_alone()).await;
    cashier.bare_customer("hooli").await;
    cashier.all_delivered().await;
    cashier.at_rest(&["create_checkout_session"]).await;
    cashier.fault("/v1/checkout/sessions", 3, Action::Unavailable);
    let customer_id = cashier.player.customer("hooli").await.expect("a customer").id;
    let ask = CreateCheckoutUrlRequest { customer_id, ..CreateCheckoutUrlRequest::default() };
    cashier.player.api.customers.create_checkout_url(ask).await.expect_err("Stripe is away");
    let database = cashier.database().await;
    passing(&mut cashier, Duration::hours(7), "it is given up", async |_| {
        let query = "SELECT FROM checkout_sessions WHERE state = 'creating'";
        database.query(query, &[]).await.expect("a look").is_empty().then_some(())
    })
    .await;
    let made = cashier.posts("/v1/checkout/sessions").len();
    assert_eq!(made, 4, "the link of the customer's creation and three tries of the other: a key too old is not sent");
    cashier.end().await;
}

/// Integrations that an earlier release has connected have no reconcilers: they are given some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_live_integration_is_given_its_reconcilers() {
    let mut cashier = till("earlier release", Periods::default()).await;
    let database = cashier.database().await;
    let kinds = "kind IN ('poll_events', 'sweep_integration', 'check_endpoint')";
    let gone = database.execute(&format!("DELETE FROM jobs WHERE {kinds}"), &[]).await.expect("they are gone");
    assert_eq!(gone, 3, "a new integration has them");
    passing(&mut cashier, Duration::minutes(5), "they are there again", async |_| {
        let query = format!("SELECT count(*) FROM jobs WHERE {kinds}");
        (database.query_one(&query, &[]).await.expect("a count").get::<_, i64>(0) == 3).then_some(())
    })
    .await;
    cashier.end().await;
}

/// A page was used, and the read of its method fails after Stripe has said so: the method is asked about again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_used_page_whose_method_could_not_be_read_is_asked_about_again() {
    let mut cashier = till("half read", sweep_alone()).await;
    cashier.bare_customer("hooli").await;
    cashier.all_delivered().await;
    let page = session(&mut cashier).await;
    lose(&cashier, "*");
    cashier.sandbox().complete_session(&page, "4242424242424242", true).expect("the page is completed");
    // When the method was made can be read, and then nothing more.
    let setup = cashier.sandbox().object(&page).expect("a page")["setup_intent"].clone();
    let path = format!("/v1/setup_intents/{}", setup.as_str().expect("a SetupIntent"));
    cashier.sandbox().add_fault(Fault { skip: 1, times: None, ..Fault::once("GET", &path, Action::Unavailable) });
    cashier.advance(Duration::hours(24) + Duration::minutes(3));
    passing(&mut cashier, Duration::minutes(1), "a look has failed", async |cashier| {
        let asked = cashier.sandbox().requests();
        (asked.iter().filter(|request| request.status == Some(503)).count() >= 3).then_some(())
    })
    .await;
    let database = cashier.database().await;
    until("the look is given back", || async {
        let query = "SELECT FROM jobs WHERE kind = 'reconcile_session' AND failures > 0 AND lease_until IS NULL";
        (!database.query(query, &[]).await.expect("the jobs").is_empty()).then_some(())
    })
    .await;
    cashier.sandbox().clear_faults();
    lose(&cashier, "*");
    passing(&mut cashier, Duration::minutes(1), "the method is learnt", has_default).await;
    cashier.end().await;
}
