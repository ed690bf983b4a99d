//! A key that lacks a permission with which nothing is collected: what needs it stands still and is told of once, and
//! nothing else does. One that may not collect, or hear of what it collects, pauses the integration.

use paybridge::dev::sandbox::{Action, Fault};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::{
    CheckIntegrationRequest, CreateCustomerRequest, IntegrationState, PaymentState, RefundState,
    RotateIntegrationKeyRequest,
};
use paybridge::stripe::scopes::SCOPES;
use time::Duration;

use crate::cashier::{Cashier, until};
use crate::reconcile::{NEVER, passing};
use crate::refunding::{REFUNDS, ask, listed, paid_till, read, refund, refund_by_hand, refund_in};

fn forbid(cashier: &Cashier, method: &str, path: &str) {
    cashier.sandbox().add_fault(Fault { times: None, ..Fault::once(method, path, Action::Forbidden) });
}

/// How often it was told that a call is not allowed.
async fn told(cashier: &Cashier, action: &str) -> usize {
    let database = cashier.database().await;
    let query = "SELECT payload::text FROM events WHERE webhook_type = 'payment_provider.error'";
    let rows = database.query(query, &[]).await.expect("the log");
    rows.iter().filter(|row| row.get::<_, String>(0).contains(action)).count()
}

/// Collecting goes on.
async fn collects(cashier: &mut Cashier, invoice: &str) {
    assert_eq!(cashier.integration_now().await.state(), IntegrationState::Active);
    cashier.pay("hooli", invoice).await;
    cashier.payment_in(invoice, PaymentState::Succeeded).await;
}

/// The same key again: somebody has given it the permission.
async fn mend(cashier: &Cashier) {
    cashier.sandbox().clear_faults();
    let (id, secret_key) = (cashier.integration.id.clone(), cashier.player.key.clone());
    let rotate = RotateIntegrationKeyRequest { id, secret_key };
    let mut integrations = cashier.player.api.integrations.clone();
    integrations.rotate_integration_key(rotate).await.expect("the key is taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_key_that_may_not_refund_leaves_refunds_pending_and_goes_on_collecting() {
    let (mut cashier, payment) = paid_till("no refunds", "pm_card_visa", Options::default()).await;
    forbid(&cashier, "POST", REFUNDS);
    let mut asked = Vec::new();
    for (request, cents) in [("first", 100), ("second", 200)] {
        asked.push(refund(&cashier, ask(request, &payment, Some(cents))).await.expect("it is accepted").id);
    }
    passing(&mut cashier, Duration::MINUTE, "both were tried again", async |cashier| {
        (cashier.posts(REFUNDS).iter().filter(|post| post.status == Some(403)).count() >= 6).then_some(())
    })
    .await;
    assert_eq!(told(&cashier, "refund.create").await, 1, "told once");
    collects(&mut cashier, "inv-2").await;
    for id in &asked {
        assert_eq!(read(&cashier, id).await.state(), RefundState::Pending, "not done is not failed");
    }
    mend(&cashier).await;
    for id in &asked {
        refund_in(&cashier, id, RefundState::Succeeded).await;
    }
    forbid(&cashier, "POST", REFUNDS);
    refund(&cashier, ask("third", &payment, Some(300))).await.expect("it is accepted");
    until("what another key lacks is told anew", || async {
        (told(&cashier, "refund.create").await == 2).then_some(())
    })
    .await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_key_that_may_not_read_events_or_refunds_goes_on_collecting() {
    let periods = paybridge::app::Periods { sweep: NEVER, endpoint: NEVER, ..paybridge::app::Periods::default() };
    let options = Options { periods, ..Options::default() };
    let (mut cashier, payment) = paid_till("no reads", "pm_card_visa", options).await;
    forbid(&cashier, "GET", "/v1/events*");
    forbid(&cashier, "GET", "/v1/refunds*");
    let made = refund_by_hand(&cashier, &payment.provider_payment_intent_id).await;
    passing(&mut cashier, Duration::MINUTE, "both were tried again", async |cashier| {
        let asked = cashier.sandbox().requests();
        let refused =
            |path: &str| asked.iter().filter(|it| it.path.starts_with(path) && it.status == Some(403)).count() >= 3;
        (refused("/v1/events") && refused("/v1/refunds")).then_some(())
    })
    .await;
    for action in ["event.list", "refund.read"] {
        assert_eq!(told(&cashier, action).await, 1, "{action} is told once");
    }
    collects(&mut cashier, "inv-2").await;
    mend(&cashier).await;
    until("the refund is known", || async {
        listed(&cashier, &payment).await.iter().any(|it| it.provider_refund_id == made).then_some(())
    })
    .await;
    cashier.end().await;
}

/// Where nobody posts webhooks, the list is all that tells of what was collected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_key_that_may_not_read_the_only_list_of_events_pauses_the_integration() {
    let options = Options { polls_events: true, ..Options::default() };
    let mut cashier = Cashier::new("deaf", options).await;
    forbid(&cashier, "GET", "/v1/events*");
    until("it is paused", || async {
        (cashier.integration_now().await.state() == IntegrationState::Paused).then_some(())
    })
    .await;
    assert_eq!(told(&cashier, "event.list").await, 1, "told once");
    // Stripe is not asked again before the key is mended.
    cashier.sandbox().forget_requests();
    let newcomer = CreateCustomerRequest {
        external_id: "gavin".to_owned(),
        sync_with_provider: true,
        ..CreateCustomerRequest::default()
    };
    cashier.player.api.customers.create_customer(newcomer).await.expect("it is accepted");
    let database = cashier.database().await;
    until("its job has come by", || async {
        cashier.advance(Duration::minutes(5));
        let query = "SELECT FROM jobs WHERE kind = 'sync_customer' AND failures > 2 AND own_failures = 0";
        database.query_opt(query, &[]).await.expect("a look")
    })
    .await;
    assert_eq!(cashier.sandbox().requests().len(), 0, "no call");
    mend(&cashier).await;
    cashier.at_rest(&["sync_customer"]).await;
    let customer = cashier.player.customer("gavin").await.expect("a customer");
    assert!(customer.provider_customer_id.starts_with("cus_"), "{customer:?}");
    cashier.end().await;
}

/// What a check of a paused integration looks for is what collecting needs; the rest is told, and stays as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_resumes_an_integration_whose_key_may_collect_again_whatever_else_it_lacks() {
    let mut cashier = Cashier::new("check", Options::default()).await;
    cashier.customer("hooli", "pm_card_visa").await;
    let key = "rk_test_restricted";
    let all = SCOPES.iter().map(|scope| scope.permission);
    let without = |lacking: &[&str]| all.clone().filter(|scope| !lacking.contains(scope)).collect::<Vec<_>>();
    let give = |cashier: &Cashier, scopes: &[&str]| {
        cashier.sandbox().add_key(key, &cashier.player.account, Some(scopes));
    };
    give(&cashier, &without(&[]));
    let (id, secret_key) = (cashier.integration.id.clone(), key.to_owned());
    let rotate = RotateIntegrationKeyRequest { id, secret_key };
    cashier.player.api.integrations.rotate_integration_key(rotate).await.expect("the key is taken");

    give(&cashier, &without(&["rak_payment_intent_write", "rak_refund_write"]));
    cashier.pay("hooli", "inv").await;
    until("it is paused", || async {
        (cashier.integration_now().await.state() == IntegrationState::Paused).then_some(())
    })
    .await;
    let check = CheckIntegrationRequest { id: cashier.integration.id.clone() };
    cashier.player.api.integrations.check_integration(check.clone()).await.expect("a look");
    assert_eq!(cashier.integration_now().await.state(), IntegrationState::Paused, "it still may not collect");
    give(&cashier, &without(&["rak_refund_write"]));
    let found = cashier.player.api.integrations.check_integration(check).await.expect("a look").into_inner();
    assert!(format!("{found:?}").contains("rak_refund_write"), "what is missing is told");
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    let recovered = cashier.events().await.iter().filter(|it| it.webhook_type == "payment_provider.recovered").count();
    assert_eq!(recovered, 1, "the end of a pause is reported, a new key for one that works is not");
    cashier.end().await;
}
