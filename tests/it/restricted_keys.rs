//! Restricted keys: one with the scopes that Lago documents connects and collects; what is missing is named at once, in
//! the words of Stripe's dashboard. Where Stripe does not name the account of a key, another proof has to show that two
//! keys are of one account, or the answer is no.

use paybridge::dev::stage::Options;
use paybridge::dev::story::Player;
use paybridge::grpc::proto::{
    CheckIntegrationRequest, CreateIntegrationRequest, Integration, IntegrationFinding, IntegrationFindingState,
    IntegrationState, PaymentState, RefundState, RotateIntegrationKeyRequest,
};
use paybridge::stripe::signature;
use secrecy::SecretString;
use serde_json::json;
use tonic::{Code, Response, Status};

use crate::cashier::{Cashier, until};
use crate::hands::{census, refused};
use crate::refunding::{ask, refund, refund_in};
use crate::support::{http, scenery};

/// What Lago's documentation tells its users to allow: Charges, Customers, Funding Instructions, PaymentIntents,
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
/// Those of them that collecting needs where Stripe posts webhooks, in the words of Stripe's dashboard.
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
        code: code.to_owned(),
        name: "Stripe".to_owned(),
        secret_key: key.to_owned(),
        ..CreateIntegrationRequest::default()
    }
}

/// A till whose account is connected by a key with Lago's scopes; Stripe `names_account` in its refusals, or not.
async fn till(name: &str, names_account: bool, options: Options) -> Cashier {
    let scenery = scenery(options).await;
    let mut player = Player::enter(&scenery, name).await.expect("an organization");
    scenery.stage.sandbox.add_key(KEY, &player.account, Some(&LAGO_SCOPES));
    if !names_account {
        scenery.stage.sandbox.hide_account(KEY);
    }
    let answer = player.api.integrations.create_integration(connect("stripe", KEY)).await.expect("it is connected");
    let integration = answer.into_inner().integration.expect("an integration");
    Cashier { scenery, player, integration }
}

fn found<'a>(findings: &'a [IntegrationFinding], name: &str) -> &'a IntegrationFinding {
    findings.iter().find(|finding| finding.name == name).expect("it was looked at")
}

async fn rotate(cashier: &Cashier, key: &str) -> Result<Response<Integration>, Status> {
    let request = RotateIntegrationKeyRequest { id: cashier.integration.id.clone(), secret_key: key.to_owned() };
    let answer = cashier.player.api.integrations.clone().rotate_integration_key(request).await?;
    Ok(answer.map(|answer| answer.integration.expect("an integration")))
}

/// A key of another account, with the same scopes.
fn foreign_key(cashier: &Cashier, names_account: bool) {
    cashier.sandbox().add_account("acct_foreign", "DE", "eur");
    cashier.sandbox().add_key(OTHER_KEY, "acct_foreign", Some(&LAGO_SCOPES));
    if !names_account {
        cashier.sandbox().hide_account(OTHER_KEY);
    }
}

/// Another key of the same account, with the same scopes.
fn sister_key(cashier: &Cashier) {
    cashier.sandbox().add_key(OTHER_KEY, &cashier.player.account, Some(&LAGO_SCOPES));
    cashier.sandbox().hide_account(OTHER_KEY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_with_the_scopes_that_lago_documents_connects_and_collects() {
    let mut cashier = till("lago", true, Options::default()).await;
    assert_eq!(cashier.integration.state(), IntegrationState::Active);
    assert_eq!(cashier.integration.provider_account_id, cashier.player.account, "a refusal's text names it");
    cashier.customer("hooli", "pm_card_visa").await;
    cashier.pay("hooli", "inv").await;
    let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
    let back = refund(&cashier, ask("back", &paid, Some(100))).await.expect("it is accepted");
    refund_in(&cashier, &back.id, RefundState::Succeeded).await;

    let check = CheckIntegrationRequest { id: cashier.integration.id.clone() };
    let findings = cashier.player.api.integrations.check_integration(check).await.expect("a look").into_inner();
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
    assert!(found(&findings.findings, "rak_dispute_read").message.contains("Disputes: Read"), "the dashboard's words");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_a_key_lacks_is_named_at_once_and_nothing_is_stored() {
    let scenery = scenery(Options::default()).await;
    let mut player = Player::enter(&scenery, "lacking").await.expect("an organization");
    let before = census(&scenery.stage).await;
    for (scopes, missing) in
        [(&[][..], &NEEDED[..]), (&["rak_event_read", "rak_customer_write", "rak_payment_intent_read"], &NEEDED[1..])]
    {
        scenery.stage.sandbox.add_key(KEY, &player.account, Some(scopes));
        let answer = player.api.integrations.create_integration(connect("stripe", KEY)).await;
        let (message, _) = refused(answer, Code::FailedPrecondition, "KEY_LACKS_PERMISSION");
        for scope in missing {
            assert!(message.contains(scope), "{scope} in {message}");
        }
        assert_eq!(message.contains("Customers: Write"), missing.contains(&"Customers: Write"), "{message}");
    }
    assert_eq!(census(&scenery.stage).await, before, "nothing is stored");
    scenery.stage.strike().await;
}

/// Where nobody posts webhooks, the events list is all that reports what was collected, and no endpoint is made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_key_needs_depends_on_how_events_are_heard_of() {
    let scenery = scenery(Options { polls_events: true, ..Options::default() }).await;
    let mut player = Player::enter(&scenery, "polling").await.expect("an organization");
    let without = |lacking: &str| LAGO_SCOPES.into_iter().filter(|scope| *scope != lacking).collect::<Vec<_>>();
    scenery.stage.sandbox.add_key(KEY, &player.account, Some(&without("rak_event_read")));
    let answer = player.api.integrations.create_integration(connect("stripe", KEY)).await;
    let (message, _) = refused(answer, Code::FailedPrecondition, "KEY_LACKS_PERMISSION");
    assert!(message.contains("Events: Read"), "{message}");
    scenery.stage.sandbox.add_key(KEY, &player.account, Some(&without("rak_webhook_write")));
    let answer = player.api.integrations.create_integration(connect("stripe", KEY)).await.expect("it is connected");
    let answer = answer.into_inner();
    assert_eq!(answer.integration.expect("an integration").state(), IntegrationState::Active);
    assert_eq!(found(&answer.findings, "rak_webhook_write").state(), IntegrationFindingState::Missing);
    assert_eq!(found(&answer.findings, "rak_event_read").state(), IntegrationFindingState::Ok);
    scenery.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_integration_whose_account_is_not_known_collects_and_no_event_may_claim_an_account() {
    let mut cashier = till("nameless", false, Options::default()).await;
    assert_eq!(cashier.integration.state(), IntegrationState::Active);
    assert_eq!(cashier.integration.provider_account_id, "", "not known");
    cashier.customer("hooli", "pm_card_visa").await;
    cashier.pay("hooli", "inv").await;
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    cashier.all_delivered().await;

    let endpoint = &cashier.integration.provider_webhook_endpoint_id;
    let secret = SecretString::from(cashier.sandbox().webhook_secret(endpoint).expect("the endpoint's secret"));
    let stage = &cashier.scenery.stage;
    let now = stage.clock.now();
    let event = json!({
        "id": "evt_claim", "object": "event", "type": "payment_method.detached", "created": now.unix_timestamp(),
        "livemode": false, "account": "acct_claimed",
        "data": { "object": { "id": "pm_1", "object": "payment_method", "type": "card", "created": 1 } },
    })
    .to_string();
    let url =
        format!("{}/webhooks/stripe/{}/{}", stage.servers[0].http, cashier.player.organization, cashier.integration.id);
    let header = signature::header(event.as_bytes(), &[secret], now);
    let answer = http().post(url).header("stripe-signature", header).body(event).send().await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
    let database = cashier.database().await;
    let reason = until("it is dealt with", || async {
        let query = "SELECT reason FROM deliveries WHERE provider_event_id = 'evt_claim' AND state = 'ignored'";
        database.query_opt(query, &[]).await.expect("a look").map(|row| row.get::<_, String>(0))
    })
    .await;
    assert!(reason.contains("acct_claimed") && reason.contains("not known"), "{reason}");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_connected_once_and_the_refusal_names_the_integration_that_holds_it() {
    let mut cashier = till("twice", false, Options::default()).await;
    sister_key(&cashier);
    let full_key = cashier.player.key.clone();
    let before = census(&cashier.scenery.stage).await;
    // The same key, another one whose account is not named either, and one that may read the account.
    for (code, key) in [("second", KEY), ("third", OTHER_KEY), ("fourth", &full_key), ("stripe", OTHER_KEY)] {
        let answer = cashier.player.api.integrations.create_integration(connect(code, key)).await;
        let (message, details) = refused(answer, Code::AlreadyExists, "INTEGRATION_EXISTS");
        let named = details.resource_info().expect("the resource");
        assert_eq!(named.resource_name, cashier.integration.id, "{code}: {message}");
        assert!(message.contains(&cashier.integration.id) && message.contains("stripe"), "{message}");
    }
    // Once the account is known, by its id.
    rotate(&cashier, &full_key).await.expect("the key is taken");
    assert_eq!(cashier.integration_now().await.provider_account_id, cashier.player.account, "it is known now");
    cashier.sandbox().add_key("sk_test_another", &cashier.player.account, None);
    let answer = cashier.player.api.integrations.create_integration(connect("fifth", "sk_test_another")).await;
    let (message, details) = refused(answer, Code::AlreadyExists, "INTEGRATION_EXISTS");
    assert_eq!(details.resource_info().expect("the resource").resource_name, cashier.integration.id, "{message}");
    assert_eq!(census(&cashier.scenery.stage).await, before, "nothing is stored");
    // Another account is another matter.
    foreign_key(&cashier, false);
    let answer = cashier.player.api.integrations.create_integration(connect("foreign", OTHER_KEY)).await;
    assert_eq!(answer.expect("it is connected").into_inner().integration.expect("one").provider_account_id, "");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_rotation_is_refused_unless_the_new_key_is_proved_to_be_of_the_same_account() {
    let mut cashier = till("rotation", false, Options::default()).await;
    let hint = cashier.integration.secret_key_hint.clone();
    foreign_key(&cashier, false);
    let (message, _) = refused(rotate(&cashier, OTHER_KEY).await, Code::FailedPrecondition, "ACCOUNT_NOT_PROVED");
    assert!(message.contains(&cashier.integration.provider_webhook_endpoint_id), "how it was looked for: {message}");
    foreign_key(&cashier, true);
    refused(rotate(&cashier, OTHER_KEY).await, Code::FailedPrecondition, "ACCOUNT_NOT_PROVED");
    assert_eq!(cashier.integration_now().await.secret_key_hint, hint, "the key is the old one");

    // The old endpoint can be read with the new key: the same account.
    sister_key(&cashier);
    rotate(&cashier, OTHER_KEY).await.expect("the key is taken");
    cashier.customer("hooli", "pm_card_visa").await;
    cashier.pay("hooli", "inv").await;
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    // Known on both sides, the ids decide.
    let full_key = cashier.player.key.clone();
    rotate(&cashier, &full_key).await.expect("the key is taken");
    let foreign = cashier.sandbox().add_account("acct_third", "DE", "eur");
    refused(rotate(&cashier, &foreign).await, Code::FailedPrecondition, "KEY_OF_OTHER_ACCOUNT");
    cashier.end().await;
}

/// Without an endpoint a linked customer proves the account, and without either nothing does but the key itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_rotation_without_an_endpoint_is_proved_by_a_linked_customer() {
    let mut cashier = till("no endpoint", false, Options { polls_events: true, ..Options::default() }).await;
    sister_key(&cashier);
    refused(rotate(&cashier, OTHER_KEY).await, Code::FailedPrecondition, "ACCOUNT_NOT_PROVED");
    rotate(&cashier, KEY).await.expect("the same key is of the same account");
    cashier.bare_customer("hooli").await;
    rotate(&cashier, OTHER_KEY).await.expect("the customer can be read");
    foreign_key(&cashier, false);
    cashier.sandbox().add_key("rk_test_third", "acct_foreign", Some(&LAGO_SCOPES));
    let refusal = rotate(&cashier, "rk_test_third").await;
    refused(refusal, Code::FailedPrecondition, "ACCOUNT_NOT_PROVED");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_keys_of_one_nameless_account_that_connect_at_once_one_is_refused() {
    let scenery = scenery(Options::default()).await;
    let player = Player::enter(&scenery, "at once").await.expect("an organization");
    for key in [KEY, OTHER_KEY] {
        scenery.stage.sandbox.add_key(key, &player.account, Some(&LAGO_SCOPES));
        scenery.stage.sandbox.hide_account(key);
    }
    let create = async |code: &str, key: &str| {
        let mut integrations = player.api.integrations.clone();
        integrations.create_integration(connect(code, key)).await
    };
    let (first, second) = tokio::join!(create("first", KEY), create("second", OTHER_KEY));
    let refusals: Vec<Status> = [first, second].into_iter().filter_map(Result::err).collect();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert!(matches!(refusals[0].code(), Code::AlreadyExists | Code::Unavailable), "{refusals:?}");
    for key in [KEY, OTHER_KEY] {
        refused(create("third", key).await, Code::AlreadyExists, "INTEGRATION_EXISTS");
    }
    scenery.stage.strike().await;
}
