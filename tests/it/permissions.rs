//! Keys without a permission. If collecting does not need it, only the work that does waits, and the lack is reported
//! once. A key that may not collect, or may not read the only source of events, pauses the integration.

use paybridge::dev::sandbox::{Action, Fault};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::{
    CheckIntegrationRequest, CreateCustomerRequest, IntegrationState, PaymentState, RefundState,
    RotateIntegrationKeyRequest,
};
use paybridge::stripe::scopes::SCOPES;
use time::Duration;

use crate::support::harness::Harness;
use crate::support::reconciliation::NEVER;
use crate::support::refunds::{
    REFUNDS, get_refund, list_refunds, paid_harness, refund, refund_in, refund_in_dashboard, refund_request,
};
use crate::support::wait::{advance_until, until};

fn forbid(harness: &Harness, method: &str, path: &str) {
    harness.sandbox().add_fault(Fault { times: None, ..Fault::once(method, path, Action::Forbidden) });
}

/// The number of logged errors about a forbidden action.
async fn error_count(harness: &Harness, action: &str) -> usize {
    let database = harness.database().await;
    let query = "SELECT payload::text FROM events WHERE webhook_type = 'payment_provider.error'";
    let rows = database.query(query, &[]).await.expect("the log");
    rows.iter().filter(|row| row.get::<_, String>(0).contains(action)).count()
}

/// Checks that a payment is collected.
async fn assert_collects(harness: &mut Harness, invoice: &str) {
    assert_eq!(harness.read_integration().await.state(), IntegrationState::Active);
    harness.pay("hooli", invoice).await;
    harness.payment_in(invoice, PaymentState::Succeeded).await;
}

/// Rotates to the same key, which now has the permission.
async fn grant_permission(harness: &Harness) {
    harness.sandbox().clear_faults();
    let (id, secret_key) = (harness.integration.id.clone(), harness.billing.key.clone());
    let rotate = RotateIntegrationKeyRequest { id, secret_key };
    let mut integrations = harness.billing.api.integrations.clone();
    integrations.rotate_integration_key(rotate).await.expect("the key is accepted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_key_that_may_not_refund_leaves_refunds_pending_and_collects() {
    let (mut harness, payment) = paid_harness("no refunds", "pm_card_visa", Options::default()).await;
    forbid(&harness, "POST", REFUNDS);
    let mut refund_ids = Vec::new();
    for (request, cents) in [("first", 100), ("second", 200)] {
        refund_ids
            .push(refund(&harness, refund_request(request, &payment, Some(cents))).await.expect("it is accepted").id);
    }
    advance_until(&mut harness, Duration::MINUTE, "both have failed again", async |harness| {
        (harness.posts(REFUNDS).iter().filter(|post| post.status == Some(403)).count() >= 6).then_some(())
    })
    .await;
    assert_eq!(error_count(&harness, "refund.create").await, 1, "emitted once");
    assert_collects(&mut harness, "inv-2").await;
    for id in &refund_ids {
        assert_eq!(get_refund(&harness, id).await.state(), RefundState::Pending, "pending is not failed");
    }
    grant_permission(&harness).await;
    for id in &refund_ids {
        refund_in(&harness, id, RefundState::Succeeded).await;
    }
    forbid(&harness, "POST", REFUNDS);
    refund(&harness, refund_request("third", &payment, Some(300))).await.expect("it is accepted");
    until("the lack of another key is reported again", async || {
        (error_count(&harness, "refund.create").await == 2).then_some(())
    })
    .await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_key_that_may_not_read_events_or_refunds_collects() {
    let periods = paybridge::app::Periods {
        sweep: NEVER,
        endpoint_test: NEVER,
        contact_max: NEVER,
        ..paybridge::app::Periods::default()
    };
    let options = Options { periods, ..Options::default() };
    let (mut harness, payment) = paid_harness("no reads", "pm_card_visa", options).await;
    forbid(&harness, "GET", "/v1/events*");
    forbid(&harness, "GET", "/v1/refunds*");
    let dashboard_refund = refund_in_dashboard(&harness, &payment.provider_payment_intent_id).await;
    advance_until(&mut harness, Duration::MINUTE, "both have failed again", async |harness| {
        let requests = harness.sandbox().requests();
        let refused =
            |path: &str| requests.iter().filter(|it| it.path.starts_with(path) && it.status == Some(403)).count() >= 3;
        (refused("/v1/events") && refused("/v1/refunds")).then_some(())
    })
    .await;
    for action in ["event.list", "refund.read"] {
        assert_eq!(error_count(&harness, action).await, 1, "{action} is reported once");
    }
    assert_collects(&mut harness, "inv-2").await;
    grant_permission(&harness).await;
    until("the refund is known", async || {
        list_refunds(&harness, &payment).await.iter().any(|it| it.provider_refund_id == dashboard_refund).then_some(())
    })
    .await;
    harness.shutdown().await;
}

/// Without webhooks, only the events list shows what was collected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_key_that_may_not_read_the_only_list_of_events_pauses_the_integration() {
    let options = Options { polls_events: true, ..Options::default() };
    let mut harness = Harness::new("no events", options).await;
    forbid(&harness, "GET", "/v1/events*");
    until("it is paused", async || {
        (harness.read_integration().await.state() == IntegrationState::Paused).then_some(())
    })
    .await;
    assert_eq!(error_count(&harness, "event.list").await, 1, "emitted once");
    // Stripe is not called before the key is rotated.
    harness.sandbox().clear_requests();
    let newcomer = CreateCustomerRequest {
        request_id: "gavin".to_owned(),
        external_id: "gavin".to_owned(),
        sync_with_provider: true,
        ..CreateCustomerRequest::default()
    };
    harness.billing.api.customers.create_customer(newcomer).await.expect("it is accepted");
    let database = harness.database().await;
    until("its job has been tried", async || {
        harness.advance_slowly(Duration::minutes(5));
        let query = "SELECT FROM jobs WHERE kind = 'sync_customer' AND failures > 2 AND own_failures = 0";
        database.query_opt(query, &[]).await.expect("a result")
    })
    .await;
    assert_eq!(harness.sandbox().requests().len(), 0, "no call");
    grant_permission(&harness).await;
    harness.drain_jobs(&["sync_customer"]).await;
    let customer = harness.billing.customer("gavin").await.expect("a customer");
    assert!(customer.provider_customer_id.starts_with("cus_"), "{customer:?}");
    harness.shutdown().await;
}

/// A check resumes a paused integration if the key may collect, and reports all other missing permissions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_resumes_an_integration_whose_key_may_collect_again_and_reports_the_rest() {
    let mut harness = Harness::new("check", Options::default()).await;
    harness.customer("hooli", "pm_card_visa").await;
    let key = "rk_test_restricted";
    let all = SCOPES.iter().map(|scope| scope.permission);
    let without = |lacking: &[&str]| all.clone().filter(|scope| !lacking.contains(scope)).collect::<Vec<_>>();
    let give = |harness: &Harness, scopes: &[&str]| {
        harness.sandbox().add_key(key, &harness.billing.account, Some(scopes));
    };
    give(&harness, &without(&[]));
    let (id, secret_key) = (harness.integration.id.clone(), key.to_owned());
    let rotate = RotateIntegrationKeyRequest { id, secret_key };
    harness.billing.api.integrations.rotate_integration_key(rotate).await.expect("the key is accepted");

    give(&harness, &without(&["rak_payment_intent_write", "rak_refund_write"]));
    harness.pay("hooli", "inv").await;
    until("it is paused", async || {
        (harness.read_integration().await.state() == IntegrationState::Paused).then_some(())
    })
    .await;
    let check = CheckIntegrationRequest { id: harness.integration.id.clone() };
    harness.billing.api.integrations.check_integration(check.clone()).await.expect("a result");
    assert_eq!(harness.read_integration().await.state(), IntegrationState::Paused, "it still may not collect");
    give(&harness, &without(&["rak_refund_write"]));
    let found = harness.billing.api.integrations.check_integration(check).await.expect("a result").into_inner();
    assert!(format!("{found:?}").contains("rak_refund_write"), "the missing permission is reported");
    harness.payment_in("inv", PaymentState::Succeeded).await;
    let recovered = harness.events().await.iter().filter(|it| it.webhook_type == "payment_provider.recovered").count();
    assert_eq!(recovered, 1, "the end of a pause is reported, and the rotation of a working key is not");
    harness.shutdown().await;
}
