//! Outages of the database and of Stripe: what callers get meanwhile, and recovery without intervention.

use std::sync::Arc;

use paybridge::clock::Clock;
use paybridge::dev::postgres::{self, Postgres};
use paybridge::dev::sandbox::{self, Action, Effect, Fault};
use paybridge::dev::scenarios::{BillingClient, Reporter, ScenarioContext};
use paybridge::dev::test_environment::{Options, TestEnvironment, prepare_database};
use paybridge::grpc::proto::stream_events_request::Start;
use paybridge::grpc::proto::{
    CreateCheckoutUrlRequest, CreateIntegrationRequest, GetPaymentRequest, PaymentState, StreamEventsRequest,
    create_checkout_url_request, get_payment_request,
};
use paybridge::stripe::signature;
use secrecy::SecretString;
use serde_json::json;
use time::OffsetDateTime;
use tonic::Code;

use crate::support::customers::{customer_with_method, local_customer, synced_customer};
use crate::support::errors::expect_error;
use crate::support::payments::{invoice, pay};
use crate::support::wait::{Pace, until};
use crate::support::webhooks::webhook_secret;
use crate::support::{context, http, program};

async fn start_postgres(folder: Arc<tempfile::TempDir>) -> Postgres {
    let options = postgres::Options { durable: false, ..postgres::Options::default() };
    let start = move || Postgres::start(&folder.path().join("postgres"), &options);
    tokio::task::spawn_blocking(start).await.expect("no panic").expect("Postgres starts")
}

async fn status_of(url: &str) -> u16 {
    http().get(url).send().await.expect("a response").status().as_u16()
}

/// Posts an event of an unhandled type, signed as by Stripe.
async fn post_event(url: &str, secret: &SecretString, now: OffsetDateTime) -> reqwest::Response {
    let event = json!({
        "id": "evt_outage", "object": "event", "type": "some.future_type", "created": 1_700_000_000,
        "data": { "object": {} },
    });
    let body = event.to_string();
    let header = signature::header(body.as_bytes(), std::slice::from_ref(secret), now);
    http().post(url).header("stripe-signature", header).body(body).send().await.expect("a response")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn during_an_outage_of_the_database_calls_are_refused_with_a_delay_and_the_process_recovers() {
    let folder = Arc::new(tempfile::Builder::new().prefix("paybridge-outage-").tempdir().unwrap());
    let server = start_postgres(folder.clone()).await;
    let url = prepare_database(&server, "outage", None).await.unwrap();
    let state_file = folder.path().join("sandbox.json");
    let sandbox =
        sandbox::Options { state_file: Some(state_file.clone()), limits: None, ..sandbox::Options::default() };
    let options = Options { sandbox, ..Options::default() };
    let environment = TestEnvironment::start(url, Clock::system(), options).await.unwrap();
    let context = ScenarioContext { environment, program: program(), reporter: Reporter { is_enabled: false } };
    let (mut billing, integration) = BillingClient::connected(&context, "outage").await.unwrap();
    local_customer(&mut billing, "hooli").await;
    pay(&mut billing, invoice("hooli", "before", 0, "EUR")).await.unwrap();
    billing.wait_for_event("invoice.payment_status_updated", "before").await.unwrap();
    let secret = SecretString::from(webhook_secret(&state_file, &integration.provider_webhook_endpoint_id).await);
    let http = context.environment.servers[0].http.clone();
    let webhooks = format!("{http}/webhooks/stripe/{}/{}", billing.organization, integration.id);

    tokio::task::spawn_blocking(move || server.stop()).await.unwrap().unwrap();
    let (code, reason) = (Code::Unavailable, "DATABASE_UNAVAILABLE");
    let mut api = billing.api.clone();
    let get = Some(get_payment_request::Payment::InvoiceId("before".to_owned()));
    let follow = StreamEventsRequest { start: Some(Start::FromNow(())), ..StreamEventsRequest::default() };
    for (_, details) in [
        expect_error(api.payments.create_payment(invoice("hooli", "meanwhile", 0, "EUR")).await, code, reason),
        expect_error(api.payments.get_payment(GetPaymentRequest { payment: get }).await, code, reason),
        expect_error(api.customers.create_customer(synced_customer("gavin", &[])).await, code, reason),
        expect_error(api.events.stream_events(follow).await, code, reason),
    ] {
        assert!(details.retry_info().is_some_and(|info| info.retry_delay.is_some()), "with a retry delay");
    }
    let response = post_event(&webhooks, &secret, context.environment.clock.now()).await;
    assert_eq!(response.status().as_u16(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(status_of(&format!("{http}/healthz")).await, 200, "it is alive");
    until("it is not ready", async || (status_of(&format!("{http}/readyz")).await == 503).then_some(())).await;

    let server = start_postgres(folder.clone()).await;
    until("it is ready again", async || (status_of(&format!("{http}/readyz")).await == 200).then_some(())).await;
    pay(&mut billing, invoice("hooli", "meanwhile", 0, "EUR")).await.expect("the same request again");
    // The stream was open all the time.
    billing.wait_for_event("payment.succeeded", "meanwhile").await.unwrap();
    assert_eq!(billing.payment("before").await.unwrap().state(), PaymentState::Succeeded);
    let retry = post_event(&webhooks, &secret, context.environment.clock.now()).await;
    assert_eq!(retry.status().as_u16(), 200, "the retry is acknowledged");
    context.environment.shutdown().await;
    tokio::task::spawn_blocking(move || server.stop()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn during_an_outage_of_stripe_payments_are_accepted_and_are_collected_afterwards() {
    let context = context(Options::default()).await;
    let sandbox = context.environment.sandbox.clone();
    let (mut billing, _) = BillingClient::connected(&context, "stripe outage").await.unwrap();
    let customer = customer_with_method(&context, &mut billing, "hooli", "4242424242424242").await;
    let second_account = format!("{}b", billing.account);
    let second = CreateIntegrationRequest {
        request_id: "second".to_owned(),
        code: "second".to_owned(),
        name: "Second".to_owned(),
        secret_key: sandbox.add_account(&second_account, "DE", "eur"),
        ..CreateIntegrationRequest::default()
    };
    let actions = [Action::Cut { work: Effect::NotDone }, Action::Unavailable];
    for (round, action) in actions.into_iter().enumerate() {
        sandbox.add_fault(Fault { times: None, action, ..Fault::default() });
        sandbox.clear_requests();
        let name = format!("inv-{round}");
        let link = CreateCheckoutUrlRequest {
            request_id: format!("link-{round}"),
            customer: Some(create_checkout_url_request::Customer::CustomerId(customer.id.clone())),
            success_url: String::new(),
        };
        let accepted = pay(&mut billing, invoice("hooli", &name, 4900, "EUR")).await.expect("it is accepted");
        assert_eq!(accepted.state(), PaymentState::Pending);
        let newcomer = format!("newcomer-{round}");
        billing.api.customers.create_customer(synced_customer(&newcomer, &[])).await.expect("the customer is accepted");
        let (code, reason) = (Code::Unavailable, "STRIPE_UNAVAILABLE");
        for (_, details) in [
            expect_error(billing.api.integrations.create_integration(second.clone()).await, code, reason),
            expect_error(billing.api.customers.create_checkout_url(link.clone()).await, code, reason),
        ] {
            assert!(details.retry_info().is_some_and(|info| info.retry_delay.is_some()), "with a retry delay");
        }
        until("the payment was tried", async || {
            sandbox.requests().iter().any(|it| it.path == "/v1/payment_intents" && it.status.is_some()).then_some(())
        })
        .await;
        let waiting = billing.payment(&name).await.unwrap();
        assert!(matches!(waiting.state(), PaymentState::Pending | PaymentState::Processing), "{waiting:?}");

        sandbox.clear_faults();
        let pace = Pace::default();
        until("the payment is paid", async || {
            // A minute for each step: no backoff outlasts the wait.
            if pace.allows_step() {
                context.environment.clock.advance(time::Duration::MINUTE);
            }
            (billing.payment(&name).await.unwrap().state() == PaymentState::Succeeded).then_some(())
        })
        .await;
        let charges = sandbox.ledger().into_iter().filter(|entry| entry.metadata.get("invoice_id") == Some(&name));
        assert_eq!(charges.count(), 1, "one charge, for any number of attempts");
        billing
            .wait_for_customer(&newcomer, "is at Stripe", |customer| !customer.provider_customer_id.is_empty())
            .await
            .unwrap();
        let linked = billing.api.customers.create_checkout_url(link.clone()).await.expect("the same request again");
        assert!(!linked.into_inner().checkout_url.is_empty());
    }
    billing.api.integrations.create_integration(second).await.expect("the same request again");
    context.environment.shutdown().await;
}
