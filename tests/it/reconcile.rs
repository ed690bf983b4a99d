//! What nobody told: webhooks are lost, endpoints are disabled, deleted or changed at Stripe, and all of it is found by
//! itself, through the same way as a webhook (P6), so that a repeat changes nothing.

use paybridge::app::Periods;
use paybridge::dev::sandbox::{Action, Effect, Fault, WebhookFault};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{
    CreateCheckoutUrlRequest, GetIntegrationRequest, Integration, IntegrationState, PaymentState,
};
use serde_json::Value;
use time::Duration;

use crate::cashier::{Cashier, at_stripe, until};

const GOOD_IBAN: &str = "DE89370400440532013000";
/// Longer than any test looks.
const NEVER: Duration = Duration::days(365);

/// Only the events list is read.
fn list_alone() -> Periods {
    Periods { sweep: NEVER, endpoint: NEVER, ..Periods::default() }
}

/// Only stale objects are asked about.
fn sweep_alone() -> Periods {
    Periods { list_test: NEVER, endpoint: NEVER, ..Periods::default() }
}

/// Only endpoints are looked at.
fn endpoints_alone() -> Periods {
    Periods { list_test: NEVER, sweep: NEVER, ..Periods::default() }
}

async fn till(name: &str, periods: Periods) -> Cashier {
    Cashier::new(name, Options { periods, ..Options::default() }).await
}

fn lose(cashier: &Cashier, event: &str) {
    cashier.sandbox().add_webhook_fault(WebhookFault { event: event.to_owned(), ..WebhookFault::default() });
}

/// What the server's metrics say that was mended of a kind. Other tests of this process mend, too: it only rises.
async fn mended(cashier: &Cashier, kind: &str) -> u64 {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let url = format!("{}/metrics", cashier.scenery.stage.servers[0].http);
    let text = client.get(url).send().await.expect("metrics").text().await.expect("text");
    let name = format!("paybridge_mended_total{{kind=\"{kind}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
}

/// How many events there are, once all of them were seen.
async fn all_told(cashier: &Cashier) -> usize {
    let database = cashier.database().await;
    until("all events were seen", || async {
        let head = database.query_one("SELECT last_position FROM event_heads", &[]).await.expect("a head");
        let seen = cashier.player.events().len();
        (i64::try_from(seen).ok() == Some(head.get(0))).then_some(seen)
    })
    .await
}

/// Asks again and again, and lets time pass by `step` between.
async fn passing<T>(
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
async fn session(cashier: &mut Cashier) -> String {
    let customer_id = cashier.player.customer("hooli").await.expect("a customer").id;
    let ask = CreateCheckoutUrlRequest { customer_id, ..CreateCheckoutUrlRequest::default() };
    let answer = cashier.player.api.customers.create_checkout_url(ask).await.expect("a link").into_inner();
    answer.checkout_url.rsplit('/').next().expect("a session").to_owned()
}

async fn has_default(cashier: &mut Cashier) -> Option<()> {
    let customer = cashier.player.customer("hooli").await.expect("a customer");
    (!customer.default_payment_method_id.is_empty()).then_some(())
}

/// The statuses of the refunds that were told.
fn refunds(cashier: &Cashier) -> Vec<String> {
    let events = cashier.player.events();
    let refund = |object: Option<Object>| match object {
        Some(Object::Refund(refund)) => Some(refund.status),
        _ => None,
    };
    events.into_iter().filter_map(|event| refund(event.object)).collect()
}

/// Every webhook is lost; a page is completed, an invoice collected, money sent back, a method detached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_what_every_webhook_missed_is_found_in_the_events_list_and_a_repeat_changes_nothing() {
    let mut cashier = till("all lost", list_alone()).await;
    lose(&cashier, "*");
    let before = mended(&cashier, "event").await;
    cashier.bare_customer("hooli").await;
    let page = session(&mut cashier).await;
    cashier.sandbox().complete_session(&page, GOOD_IBAN, true).expect("the page is completed");
    passing(&mut cashier, Duration::minutes(1), "the method is found", has_default).await;
    cashier.pay("hooli", "inv").await;
    cashier.payment_in("inv", PaymentState::Processing).await;
    until("it is at the bank", || async { (cashier.live_charges("inv") == 1).then_some(()) }).await;
    cashier.advance(Duration::days(6));
    let paid = passing(&mut cashier, Duration::minutes(1), "the debit's end is found", async |cashier| {
        let payment = cashier.payment("inv").await;
        (payment.state() == PaymentState::Succeeded).then_some(payment)
    })
    .await;
    let body = format!("payment_intent={}&amount=900", paid.provider_payment_intent_id);
    at_stripe(&cashier, "/v1/refunds", &body).await;
    passing(&mut cashier, Duration::minutes(1), "the refund is found", async |cashier| {
        (refunds(cashier) == ["succeeded"]).then_some(())
    })
    .await;
    let method = cashier.methods("hooli").await[0].provider_payment_method_id.clone();
    cashier.sandbox().detach_by_hand(&method).expect("it is detached");
    passing(&mut cashier, Duration::minutes(1), "the detached method is found", async |cashier| {
        cashier.methods("hooli").await.is_empty().then_some(())
    })
    .await;
    assert!(mended(&cashier, "event").await >= before + 4, "what only the list brought is counted");

    // Now all of it comes by webhook after all.
    cashier.at_rest(&["apply_delivery", "push_default_method"]).await;
    cashier.sandbox().clear_faults();
    let told = all_told(&cashier).await;
    let events = cashier.sandbox().events(&cashier.player.account);
    let taken = "SELECT count(*) FROM deliveries";
    let database = cashier.database().await;
    let stored: i64 = database.query_one(taken, &[]).await.expect("a count").get(0);
    for event in &events {
        cashier.sandbox().resend(event["id"].as_str().expect("an id")).expect("it is sent");
    }
    cashier.all_delivered().await;
    assert_eq!(all_told(&cashier).await, told, "nothing is told twice");
    assert_eq!(database.query_one(taken, &[]).await.expect("a count").get::<_, i64>(0), stored, "nothing was new");
    let after = cashier.payment("inv").await;
    assert_eq!(
        (after.state(), after.amount_refunded.map(|money| money.minor_units)),
        (PaymentState::Succeeded, Some(900))
    );
    cashier.end().await;
}

/// What webhooks brought costs nothing more: the list is read, and no object is read for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_events_that_webhooks_brought_are_known_to_the_list_by_their_id() {
    let mut cashier = till("all told", list_alone()).await;
    cashier.customer("hooli", "pm_card_visa").await;
    cashier.pay("hooli", "inv").await;
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    cashier.all_delivered().await;
    let told = all_told(&cashier).await;
    cashier.sandbox().forget_requests();
    cashier.advance(Duration::minutes(3));
    until("the list is read", || async {
        let is_read = |path: &str| path == "/v1/events";
        cashier.sandbox().requests().iter().any(|request| is_read(&request.path)).then_some(())
    })
    .await;
    cashier.at_rest(&["apply_delivery"]).await;
    let others: Vec<String> = cashier.sandbox().requests().into_iter().map(|request| request.path).collect();
    assert!(others.iter().all(|path| path == "/v1/events"), "nothing else is read: {others:?}");
    assert_eq!(all_told(&cashier).await, told, "nothing is told twice");
    cashier.end().await;
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
    assert!(mended(&cashier, "checkout_session").await >= before.0 + 2);

    cashier.pay("hooli", "inv").await;
    cashier.payment_in("inv", PaymentState::Processing).await;
    until("it is at the bank", || async { (cashier.live_charges("inv") == 1).then_some(()) }).await;
    passing(&mut cashier, Duration::hours(24), "the debit's end is found", async |cashier| {
        (cashier.payment("inv").await.state() == PaymentState::Succeeded).then_some(())
    })
    .await;
    assert!(mended(&cashier, "payment").await > before.1);
    assert_eq!(cashier.player.count("payment.succeeded", "inv"), 1, "told once");

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
    until("it is counted", || async { (mended(&cashier, "refund").await > before).then_some(()) }).await;
    cashier.end().await;
}

/// A page that was never made, because nobody asked for it again, is given up with its key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_whose_making_was_given_up_does_not_stay_in_the_making() {
    let mut cashier = till("never made", sweep_alone()).await;
    cashier.bare_customer("hooli").await;
    cashier.all_delivered().await;
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

/// The endpoint that the integration knows of, as it is at Stripe.
async fn endpoint(cashier: &mut Cashier) -> (String, Option<Value>) {
    let id = integration(cashier).await.provider_webhook_endpoint_id;
    let there = cashier.sandbox().object(&id);
    (id, there)
}

async fn integration(cashier: &mut Cashier) -> Integration {
    let get = GetIntegrationRequest { id: cashier.integration.id.clone() };
    let answer = cashier.player.api.integrations.get_integration(get).await.expect("an answer").into_inner();
    answer.integration.expect("an integration")
}

/// All endpoints at Stripe of the player's account.
async fn endpoints(cashier: &Cashier) -> Vec<Value> {
    let answer = call(cashier, reqwest::Method::GET, "/v1/webhook_endpoints?limit=100").await;
    answer["data"].as_array().expect("a list").clone()
}

/// A call to Stripe of a person with the account's key.
async fn call(cashier: &Cashier, method: reqwest::Method, path: &str) -> Value {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let request = client.request(method, format!("{}{path}", cashier.sandbox().url())).bearer_auth(&cashier.player.key);
    let answer = request.send().await.expect("the sandbox answers");
    assert!(answer.status().is_success(), "{path}: {}", answer.status());
    serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON")
}

/// A method that is attached at Stripe now is told by webhook.
async fn webhooks_flow(cashier: &mut Cashier, provider_id: &str) {
    let before = cashier.methods("hooli").await.len();
    cashier.sandbox().attach_by_hand(provider_id, "pm_card_visa").expect("the method is attached");
    let began = std::time::Instant::now();
    while cashier.methods("hooli").await.len() == before {
        assert!(began.elapsed() < std::time::Duration::from_secs(30), "webhooks don't flow");
        let _ = tokio::time::timeout(std::time::Duration::from_millis(25), std::future::pending::<()>()).await;
    }
    cashier.all_delivered().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_was_changed_at_stripe_is_put_right_and_what_it_missed_is_read() {
    let mut cashier = till("changed", endpoints_alone()).await;
    let provider_id = cashier.bare_customer("hooli").await;
    cashier.all_delivered().await;
    let (id, there) = endpoint(&mut cashier).await;
    let whole = there.expect("an endpoint");
    let before = mended(&cashier, "endpoint").await;
    let path = format!("/v1/webhook_endpoints/{id}");
    for change in ["disabled=true", "enabled_events[]=charge.failed", "url=http://127.0.0.1:1/elsewhere"] {
        at_stripe(&cashier, &path, change).await;
        let count = cashier.methods("hooli").await.len();
        cashier.sandbox().attach_by_hand(&provider_id, "pm_card_mastercard").expect("a method that no webhook tells");
        passing(&mut cashier, Duration::minutes(61), &format!("{change} is mended"), async |cashier| {
            (endpoint(cashier).await.1.as_ref() == Some(&whole)).then_some(())
        })
        .await;
        passing(&mut cashier, Duration::seconds(20), "what was missed is read", async |cashier| {
            (cashier.methods("hooli").await.len() == count + 1).then_some(())
        })
        .await;
        webhooks_flow(&mut cashier, &provider_id).await;
    }
    assert!(mended(&cashier, "endpoint").await >= before + 3, "what was mended is counted");
    assert_eq!(endpoints(&cashier).await.len(), 1, "it is the same one");
    let told = cashier.player.events().iter().any(|event| event.webhook_type == "payment_provider.error");
    assert!(!told, "what could be mended is not told");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_an_endpoint_that_was_deleted_is_made_anew_from_one_frozen_request() {
    let mut cashier = till("deleted", endpoints_alone()).await;
    let provider_id = cashier.bare_customer("hooli").await;
    cashier.all_delivered().await;
    let (old, _) = endpoint(&mut cashier).await;
    call(&cashier, reqwest::Method::DELETE, &format!("/v1/webhook_endpoints/{old}")).await;
    // The answer with the secret gets lost, as often as one call tries: the same key brings it again.
    cashier.cut("/v1/webhook_endpoints", 3, Effect::Done);
    cashier.sandbox().forget_requests();
    let new = passing(&mut cashier, Duration::minutes(61), "there is another endpoint", async |cashier| {
        let (id, there) = endpoint(cashier).await;
        there.filter(|_| id != old).map(|_| id)
    })
    .await;
    let made = endpoints(&cashier).await;
    assert_eq!(
        made.iter().map(|endpoint| &endpoint["id"]).collect::<Vec<_>>(),
        [&new],
        "one, however often it was asked"
    );
    let keys: std::collections::BTreeSet<_> =
        cashier.posts("/v1/webhook_endpoints").into_iter().map(|request| request.idempotency_key).collect();
    assert_eq!(keys.len(), 1, "one frozen request");
    webhooks_flow(&mut cashier, &provider_id).await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_of_another_version_is_replaced_and_both_secrets_count_until_it_is_gone() {
    let mut cashier = till("version", endpoints_alone()).await;
    let provider_id = cashier.bare_customer("hooli").await;
    cashier.all_delivered().await;
    // As if Stripe had kept the endpoint in the account's own version: it is another one in truth, with another secret.
    let (first, there) = endpoint(&mut cashier).await;
    let url = there.expect("an endpoint")["url"].as_str().expect("a URL").to_owned();
    let old = at_stripe(&cashier, "/v1/webhook_endpoints", &format!("url={url}&enabled_events[]=*")).await;
    let old = old["id"].as_str().expect("an id").to_owned();
    let database = cashier.database().await;
    let change = "UPDATE integrations SET provider_endpoint_id = $1";
    database.execute(change, &[&old]).await.expect("the integration is changed");
    call(&cashier, reqwest::Method::DELETE, &format!("/v1/webhook_endpoints/{first}")).await;
    // It can't be deleted for now.
    cashier
        .sandbox()
        .add_fault(Fault { times: None, ..Fault::once("DELETE", "/v1/webhook_endpoints/*", Action::Unavailable) });
    let new = passing(&mut cashier, Duration::minutes(61), "there is another endpoint", async |cashier| {
        let (id, _) = endpoint(cashier).await;
        (id != old).then_some(id)
    })
    .await;
    let secrets = "SELECT sealed_webhook_secret IS NOT NULL, sealed_old_webhook_secret IS NOT NULL, \
        provider_old_endpoint_id FROM integrations";
    let row = database.query_one(secrets, &[]).await.expect("a look");
    assert_eq!((row.get(0), row.get(1), row.get(2)), (true, true, Some(old.clone())), "both count");
    webhooks_flow_from(&mut cashier, &provider_id, &new).await;
    cashier.sandbox().clear_faults();
    passing(&mut cashier, Duration::minutes(5), "the old one is gone", async |cashier| {
        cashier.sandbox().object(&old).is_none().then_some(())
    })
    .await;
    let row = until("its secret is forgotten", || async {
        let row = database.query_one(secrets, &[]).await.expect("a look");
        (!row.get::<_, bool>(1)).then_some(row)
    })
    .await;
    assert_eq!((row.get(0), row.get::<_, Option<String>>(2)), (true, None));
    let left = endpoints(&cashier).await;
    assert_eq!(left.iter().map(|endpoint| &endpoint["id"]).collect::<Vec<_>>(), [&new]);
    webhooks_flow(&mut cashier, &provider_id).await;
    cashier.end().await;
}

/// A method that is attached at Stripe now is told by this endpoint, whatever another one's webhooks come to.
async fn webhooks_flow_from(cashier: &mut Cashier, provider_id: &str, endpoint: &str) {
    cashier.sandbox().attach_by_hand(provider_id, "pm_card_visa").expect("the method is attached");
    until("its webhooks are taken", || async {
        let waiting = cashier.sandbox().deliveries();
        waiting.iter().all(|webhook| webhook.endpoint != endpoint).then_some(())
    })
    .await;
    until("the method is known", || async {
        let database = cashier.database().await;
        let found = database.query("SELECT FROM payment_methods", &[]).await.expect("a look");
        (!found.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_can_not_be_mended_is_told_once_and_pauses_nothing() {
    let mut cashier = till("not mended", endpoints_alone()).await;
    let (id, _) = endpoint(&mut cashier).await;
    at_stripe(&cashier, &format!("/v1/webhook_endpoints/{id}"), "disabled=true").await;
    cashier
        .sandbox()
        .add_fault(Fault { times: None, ..Fault::once("POST", "/v1/webhook_endpoints/*", Action::Forbidden) });
    let refused = |cashier: &Cashier| cashier.posts(&id).iter().filter(|request| request.status == Some(403)).count();
    passing(&mut cashier, Duration::minutes(61), "it was tried again and again", async |cashier| {
        (refused(cashier) >= 3).then_some(())
    })
    .await;
    let told = |cashier: &Cashier| {
        cashier.player.events().iter().filter(|event| event.webhook_type == "payment_provider.error").count()
    };
    until("it is told", || async { (told(&cashier) > 0).then_some(()) }).await;
    assert_eq!(told(&cashier), 1, "once");
    assert_eq!(integration(&mut cashier).await.state(), IntegrationState::Active, "payments go on");
    cashier.sandbox().clear_faults();
    passing(&mut cashier, Duration::minutes(61), "it is mended", async |cashier| {
        endpoint(cashier).await.1.filter(|endpoint| endpoint["status"] == "enabled")
    })
    .await;
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
