//! Restricted keys. A key with the permissions that Lago documents connects and collects. All missing permissions are
//! named at once, in the words of the Stripe Dashboard. If Stripe does not reveal a key's account, a key rotation needs
//! another proof that both keys belong to one account.

use paybridge::dev::scenarios::BillingClient;
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::{
    CheckIntegrationRequest, CreateIntegrationRequest, Integration, IntegrationFinding, IntegrationFindingState,
    IntegrationState, PaymentState, RefundState, RotateIntegrationKeyRequest,
};
use serde_json::json;
use tonic::{Code, Response, Status};

use crate::support::errors::expect_error;
use crate::support::harness::Harness;
use crate::support::refunds::{refund, refund_in, refund_request};
use crate::support::sql::row_counts;
use crate::support::wait::until;
use crate::support::webhooks::post_webhook;
use crate::support::{context, next_request_id};

/// The permissions that Lago's documentation recommends: Charges, Customers, Funding Instructions, PaymentIntents,
/// PaymentMethods, Checkout Sessions and Webhook Endpoints to write, Events to read.
const LAGO_SCOPES: [&str; 8] = [
    "rak_charge_write",
    "rak_customer_write",
    "rak_event_read",
    "rak_funding_instruction_write",
    "rak_payment_intent_write",
    "rak_payment_method_write",
    "rak_checkout_session_write",
    "rak_webhook_write",
];
/// Those of them that collecting needs with webhooks, in the words of the Stripe Dashboard.
const NEEDED: [&str; 5] = [
    "Customers: Write",
    "PaymentMethods: Write",
    "Checkout Sessions: Write",
    "PaymentIntents: Write",
    "Webhook Endpoints: Write",
];
const KEY: &str = "rk_test_lagoLikeSandboxKey";
const OTHER_KEY: &str = "rk_test_otherLagoLikeSandboxKey";

fn connect(code: &str, key: &str) -> CreateIntegrationRequest {
    CreateIntegrationRequest {
        request_id: next_request_id(),
        code: code.to_owned(),
        name: "Stripe".to_owned(),
        secret_key: key.to_owned(),
        ..CreateIntegrationRequest::default()
    }
}

/// A harness whose account is connected by a key with Lago's permissions. `names_account` says whether Stripe names the
/// account in its errors.
async fn with_lago_key(name: &str, names_account: bool, options: Options) -> Harness {
    let context = context(options).await;
    let mut billing = BillingClient::create(&context, name).await.expect("an organization");
    context.environment.sandbox.add_key(KEY, &billing.account, Some(&LAGO_SCOPES));
    if !names_account {
        context.environment.sandbox.hide_account(KEY);
    }
    let response = billing.api.integrations.create_integration(connect("stripe", KEY)).await.expect("it is connected");
    let integration = response.into_inner().integration.expect("an integration");
    Harness::over(context, billing, integration)
}

fn found<'a>(findings: &'a [IntegrationFinding], name: &str) -> &'a IntegrationFinding {
    findings.iter().find(|finding| finding.name == name).expect("a finding")
}

async fn rotate(harness: &Harness, key: &str) -> Result<Response<Integration>, Status> {
    let request = RotateIntegrationKeyRequest { id: harness.integration.id.clone(), secret_key: key.to_owned() };
    let response = harness.billing.api.integrations.clone().rotate_integration_key(request).await?;
    Ok(response.map(|response| response.integration.expect("an integration")))
}

/// Adds a key of another account with the same permissions.
fn add_foreign_key(harness: &Harness, names_account: bool) {
    harness.sandbox().add_account("acct_foreign", "DE", "eur");
    harness.sandbox().add_key(OTHER_KEY, "acct_foreign", Some(&LAGO_SCOPES));
    if !names_account {
        harness.sandbox().hide_account(OTHER_KEY);
    }
}

/// Adds another key of the same account with the same permissions.
fn add_second_key(harness: &Harness) {
    harness.sandbox().add_key(OTHER_KEY, &harness.billing.account, Some(&LAGO_SCOPES));
    harness.sandbox().hide_account(OTHER_KEY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_with_the_permissions_that_lago_documents_connects_and_collects() {
    let mut harness = with_lago_key("lago", true, Options::default()).await;
    assert_eq!(harness.integration.state(), IntegrationState::Active);
    assert_eq!(harness.integration.provider_account_id, harness.billing.account, "an error of Stripe's names it");
    harness.customer("hooli", "pm_card_visa").await;
    harness.pay("hooli", "inv").await;
    let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
    let back = refund(&harness, refund_request("back", &paid, Some(100))).await.expect("it is accepted");
    refund_in(&harness, &back.id, RefundState::Succeeded).await;

    let check = CheckIntegrationRequest { id: harness.integration.id.clone() };
    let findings = harness.billing.api.integrations.check_integration(check).await.expect("a result").into_inner();
    assert_eq!(findings.integration.expect("an integration").state(), IntegrationState::Active);
    for (name, state) in [
        ("", IntegrationFindingState::Ok),
        ("rak_customer_write", IntegrationFindingState::Ok),
        ("rak_refund_write", IntegrationFindingState::Ok),
        ("rak_setup_intent_read", IntegrationFindingState::Missing),
        ("rak_dispute_read", IntegrationFindingState::Missing),
    ] {
        let finding = found(&findings.findings, name);
        assert_eq!(finding.state(), state, "{finding:?}");
    }
    assert!(
        found(&findings.findings, "rak_dispute_read").message.contains("Disputes: Read"),
        "in the words of the Stripe Dashboard"
    );
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_missing_permissions_are_named_at_once_and_nothing_is_stored() {
    let context = context(Options::default()).await;
    let mut billing = BillingClient::create(&context, "lacking").await.expect("an organization");
    let before = row_counts(&context.environment).await;
    for (scopes, missing) in
        [(&[][..], &NEEDED[..]), (&["rak_event_read", "rak_customer_write", "rak_payment_intent_read"], &NEEDED[1..])]
    {
        context.environment.sandbox.add_key(KEY, &billing.account, Some(scopes));
        let response = billing.api.integrations.create_integration(connect("stripe", KEY)).await;
        let (message, _) = expect_error(response, Code::FailedPrecondition, "KEY_LACKS_PERMISSION");
        for scope in missing {
            assert!(message.contains(scope), "{scope} in {message}");
        }
        assert_eq!(message.contains("Customers: Write"), missing.contains(&"Customers: Write"), "{message}");
    }
    assert_eq!(row_counts(&context.environment).await, before, "nothing is stored");
    context.environment.shutdown().await;
}

/// Without webhooks, only the events list shows what was collected, and no endpoint is created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_required_permissions_depend_on_the_source_of_events() {
    let context = context(Options { polls_events: true, ..Options::default() }).await;
    let mut billing = BillingClient::create(&context, "polling").await.expect("an organization");
    let without = |lacking: &str| LAGO_SCOPES.into_iter().filter(|scope| *scope != lacking).collect::<Vec<_>>();
    context.environment.sandbox.add_key(KEY, &billing.account, Some(&without("rak_event_read")));
    let response = billing.api.integrations.create_integration(connect("stripe", KEY)).await;
    let (message, _) = expect_error(response, Code::FailedPrecondition, "KEY_LACKS_PERMISSION");
    assert!(message.contains("Events: Read"), "{message}");
    context.environment.sandbox.add_key(KEY, &billing.account, Some(&without("rak_webhook_write")));
    let response = billing.api.integrations.create_integration(connect("stripe", KEY)).await.expect("it is connected");
    let response = response.into_inner();
    assert_eq!(response.integration.expect("an integration").state(), IntegrationState::Active);
    assert_eq!(found(&response.findings, "rak_webhook_write").state(), IntegrationFindingState::Missing);
    assert_eq!(found(&response.findings, "rak_event_read").state(), IntegrationFindingState::Ok);
    context.environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_integration_without_a_known_account_collects_and_ignores_events_that_name_one() {
    let mut harness = with_lago_key("unknown account", false, Options::default()).await;
    assert_eq!(harness.integration.state(), IntegrationState::Active);
    assert_eq!(harness.integration.provider_account_id, "", "not known");
    harness.customer("hooli", "pm_card_visa").await;
    harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.all_delivered().await;

    let now = harness.context.environment.clock.now();
    let event = json!({
        "id": "evt_claim", "object": "event", "type": "payment_method.detached", "created": now.unix_timestamp(),
        "livemode": false, "account": "acct_claimed",
        "data": { "object": { "id": "pm_1", "object": "payment_method", "type": "card", "created": 1 } },
    })
    .to_string();
    assert_eq!(post_webhook(&harness, &event).await, 200);
    let database = harness.database().await;
    let reason = until("it is ignored", async || {
        let query = "SELECT reason FROM deliveries WHERE provider_event_id = 'evt_claim' AND state = 'ignored'";
        database.query_opt(query, &[]).await.expect("a result").map(|row| row.get::<_, String>(0))
    })
    .await;
    assert!(reason.contains("acct_claimed") && reason.contains("not known"), "{reason}");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_connected_once_and_the_error_names_the_existing_integration() {
    let mut harness = with_lago_key("twice", false, Options::default()).await;
    add_second_key(&harness);
    let full_key = harness.billing.key.clone();
    let before = row_counts(&harness.context.environment).await;
    // The same key, another one that does not reveal its account, and one that may read the account.
    for (code, key) in [("second", KEY), ("third", OTHER_KEY), ("fourth", &full_key), ("stripe", OTHER_KEY)] {
        let response = harness.billing.api.integrations.create_integration(connect(code, key)).await;
        let (message, details) = expect_error(response, Code::AlreadyExists, "INTEGRATION_EXISTS");
        let named = details.resource_info().expect("the resource");
        assert_eq!(named.resource_name, harness.integration.id, "{code}: {message}");
        assert!(message.contains(&harness.integration.id) && message.contains("stripe"), "{message}");
    }
    // Now the account is known, and compared by its id.
    rotate(&harness, &full_key).await.expect("the key is accepted");
    assert_eq!(harness.read_integration().await.provider_account_id, harness.billing.account, "it is known now");
    harness.sandbox().add_key("sk_test_another", &harness.billing.account, None);
    let response = harness.billing.api.integrations.create_integration(connect("fifth", "sk_test_another")).await;
    let (message, details) = expect_error(response, Code::AlreadyExists, "INTEGRATION_EXISTS");
    assert_eq!(details.resource_info().expect("the resource").resource_name, harness.integration.id, "{message}");
    assert_eq!(row_counts(&harness.context.environment).await, before, "nothing is stored");
    // Another account can be connected.
    add_foreign_key(&harness, false);
    let response = harness.billing.api.integrations.create_integration(connect("foreign", OTHER_KEY)).await;
    assert_eq!(response.expect("it is connected").into_inner().integration.expect("one").provider_account_id, "");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_rotation_is_refused_unless_the_new_key_provably_belongs_to_the_same_account() {
    let mut harness = with_lago_key("rotation", false, Options::default()).await;
    let hint = harness.integration.secret_key_hint.clone();
    add_foreign_key(&harness, false);
    let (message, _) = expect_error(rotate(&harness, OTHER_KEY).await, Code::FailedPrecondition, "ACCOUNT_NOT_PROVED");
    assert!(
        message.contains(&harness.integration.provider_webhook_endpoint_id),
        "the error names the endpoint: {message}"
    );
    add_foreign_key(&harness, true);
    expect_error(rotate(&harness, OTHER_KEY).await, Code::FailedPrecondition, "ACCOUNT_NOT_PROVED");
    assert_eq!(harness.read_integration().await.secret_key_hint, hint, "the key is unchanged");

    // The new key can read the endpoint: it belongs to the same account.
    add_second_key(&harness);
    rotate(&harness, OTHER_KEY).await.expect("the key is accepted");
    harness.customer("hooli", "pm_card_visa").await;
    harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    // If both keys reveal their account, the ids are compared.
    let full_key = harness.billing.key.clone();
    rotate(&harness, &full_key).await.expect("the key is accepted");
    let foreign = harness.sandbox().add_account("acct_third", "DE", "eur");
    expect_error(rotate(&harness, &foreign).await, Code::FailedPrecondition, "KEY_OF_OTHER_ACCOUNT");
    harness.shutdown().await;
}

/// Without an endpoint, a linked customer proves the account. Without either, only the same key is accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_rotation_without_an_endpoint_is_proved_by_a_linked_customer() {
    let mut harness = with_lago_key("no endpoint", false, Options { polls_events: true, ..Options::default() }).await;
    add_second_key(&harness);
    expect_error(rotate(&harness, OTHER_KEY).await, Code::FailedPrecondition, "ACCOUNT_NOT_PROVED");
    rotate(&harness, KEY).await.expect("the same key");
    harness.customer_without_method("hooli").await;
    rotate(&harness, OTHER_KEY).await.expect("the customer can be read");
    add_foreign_key(&harness, false);
    harness.sandbox().add_key("rk_test_third", "acct_foreign", Some(&LAGO_SCOPES));
    let response = rotate(&harness, "rk_test_third").await;
    expect_error(response, Code::FailedPrecondition, "ACCOUNT_NOT_PROVED");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_keys_of_one_unknown_account_that_connect_at_once_one_is_refused() {
    let context = context(Options::default()).await;
    let billing = BillingClient::create(&context, "at once").await.expect("an organization");
    for key in [KEY, OTHER_KEY] {
        context.environment.sandbox.add_key(key, &billing.account, Some(&LAGO_SCOPES));
        context.environment.sandbox.hide_account(key);
    }
    let create = async |code: &str, key: &str| {
        let mut integrations = billing.api.integrations.clone();
        integrations.create_integration(connect(code, key)).await
    };
    let (first, second) = tokio::join!(create("first", KEY), create("second", OTHER_KEY));
    let errors: Vec<Status> = [first, second].into_iter().filter_map(Result::err).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(matches!(errors[0].code(), Code::AlreadyExists | Code::Unavailable), "{errors:?}");
    for key in [KEY, OTHER_KEY] {
        expect_error(create("third", key).await, Code::AlreadyExists, "INTEGRATION_EXISTS");
    }
    context.environment.shutdown().await;
}
