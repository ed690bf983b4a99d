//! The database goes, and Stripe goes: what callers are told meanwhile, and that everything goes on by itself.

use std::sync::Arc;

use paybridge::clock::Clock;
use paybridge::dev::postgres::{self, Postgres};
use paybridge::dev::sandbox::{self, Action, Effect, Fault};
use paybridge::dev::stage::{Options, Stage, prepare_database};
use paybridge::dev::story::{Narrator, Player, Scenery};
use paybridge::grpc::proto::stream_events_request::Start;
use paybridge::grpc::proto::{
    CreateCheckoutUrlRequest, CreateIntegrationRequest, GetPaymentRequest, PaymentState, StreamEventsRequest,
    get_payment_request,
};
use paybridge::stripe::signature;
use secrecy::SecretString;
use serde_json::json;
use time::OffsetDateTime;
use tonic::Code;

use crate::hands::{invoice, pay, plain_customer, ready_customer, refused, synced, until, webhook_secret};
use crate::support::{http, program, scenery};

async fn start_postgres(folder: Arc<tempfile::TempDir>) -> Postgres {
    let options = postgres::Options { durable: false, ..postgres::Options::default() };
    let start = move || Postgres::start(&folder.path().join("postgres"), &options);
    tokio::task::spawn_blocking(start).await.expect("no panic").expect("Postgres starts")
}

async fn status_of(url: &str) -> u16 {
    http().get(url).send().await.expect("the process lives").status().as_u16()
}

/// An event that is of no concern to us, signed as Stripe does.
async fn post_event(url: &str, secret: &SecretString, now: OffsetDateTime) -> reqwest::Response {
    let event = json!({
        "id": "evt_away", "object": "event", "type": "some.future_type", "created": 1_700_000_000,
        "data": { "object": {} },
    });
    let body = event.to_string();
    let header = signature::header(body.as_bytes(), std::slice::from_ref(secret), now);
    http().post(url).header("stripe-signature", header).body(body).send().await.expect("the process lives")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_callers_come_back_later_and_the_process_recovers_by_itself() {
    let folder = Arc::new(tempfile::Builder::new().prefix("paybridge-away-").tempdir().unwrap());
    let server = start_postgres(folder.clone()).await;
    let url = prepare_database(&server, "away", None).await.unwrap();
    let state_file = folder.path().join("sandbox.json");
    let sandbox =
        sandbox::Options { state_file: Some(state_file.clone()), limits: None, ..sandbox::Options::default() };
    let options = Options { sandbox, ..Options::default() };
    let stage = Stage::set_up(url, Clock::system(), options).await.unwrap();
    let scenery = Scenery { stage, program: program(), narrator: Narrator { is_loud: false } };
    let (mut player, integration) = Player::connected(&scenery, "away").await.unwrap();
    plain_customer(&mut player, "hooli").await;
    pay(&mut player, invoice("hooli", "before", 0, "EUR")).await.unwrap();
    player.told("invoice.payment_status_updated", "before").await.unwrap();
    let secret = SecretString::from(webhook_secret(&state_file, &integration.provider_webhook_endpoint_id).await);
    let http = scenery.stage.servers[0].http.clone();
    let webhooks = format!("{http}/webhooks/stripe/{}/{}", player.organization, integration.id);

    tokio::task::spawn_blocking(move || server.stop()).await.unwrap().unwrap();
    let (code, reason) = (Code::Unavailable, "DATABASE_UNAVAILABLE");
    let mut api = player.api.clone();
    let get = Some(get_payment_request::Payment::InvoiceId("before".to_owned()));
    let follow = StreamEventsRequest { start: Some(Start::FromNow(true)), webhook_types: Vec::new() };
    for (_, details) in [
        refused(api.payments.create_payment(invoice("hooli", "meanwhile", 0, "EUR")).await, code, reason),
        refused(api.payments.get_payment(GetPaymentRequest { payment: get }).await, code, reason),
        refused(api.customers.create_customer(synced("gavin", &[])).await, code, reason),
        refused(api.events.stream_events(follow).await, code, reason),
    ] {
        assert!(details.retry_info().is_some_and(|info| info.retry_delay.is_some()), "and when to come back");
    }
    let answer = post_event(&webhooks, &secret, scenery.stage.clock.now()).await;
    assert_eq!(answer.status().as_u16(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(status_of(&format!("{http}/healthz")).await, 200, "it lives");
    until("it says that it is not ready", || async {
        (status_of(&format!("{http}/readyz")).await == 503).then_some(())
    })
    .await;

    let server = start_postgres(folder.clone()).await;
    until("it is ready again", || async { (status_of(&format!("{http}/readyz")).await == 200).then_some(()) }).await;
    pay(&mut player, invoice("hooli", "meanwhile", 0, "EUR")).await.expect("the same request again");
    // The stream that was open all the time tells of it.
    player.told("payment.succeeded", "meanwhile").await.unwrap();
    assert_eq!(player.payment("before").await.unwrap().state(), PaymentState::Succeeded);
    let again = post_event(&webhooks, &secret, scenery.stage.clock.now()).await;
    assert_eq!(again.status().as_u16(), 200, "Stripe sends it again");
    scenery.stage.strike().await;
    tokio::task::spawn_blocking(move || server.stop()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_stripe_is_away_payments_are_accepted_and_go_on_when_it_is_back() {
    let scenery = scenery(Options::default()).await;
    let sandbox = scenery.stage.sandbox.clone();
    let (mut player, _) = Player::connected(&scenery, "stripe away").await.unwrap();
    let customer = ready_customer(&scenery, &mut player, "hooli", "4242424242424242").await;
    let second_account = format!("{}b", player.account);
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
        sandbox.forget_requests();
        let name = format!("inv-{round}");
        let link = CreateCheckoutUrlRequest {
            request_id: format!("link-{round}"),
            customer_id: customer.id.clone(),
            success_url: String::new(),
        };
        let accepted = pay(&mut player, invoice("hooli", &name, 4900, "EUR")).await.expect("it is accepted");
        assert_eq!(accepted.state(), PaymentState::Pending);
        let newcomer = format!("newcomer-{round}");
        player.api.customers.create_customer(synced(&newcomer, &[])).await.expect("this, too");
        let (code, reason) = (Code::Unavailable, "STRIPE_UNAVAILABLE");
        for (_, details) in [
            refused(player.api.integrations.create_integration(second.clone()).await, code, reason),
            refused(player.api.customers.create_checkout_url(link.clone()).await, code, reason),
        ] {
            assert!(details.retry_info().is_some_and(|info| info.retry_delay.is_some()), "and when to come back");
        }
        until("the payment was tried", || async {
            sandbox.requests().iter().any(|it| it.path == "/v1/payment_intents" && it.status.is_some()).then_some(())
        })
        .await;
        let waiting = player.payment(&name).await.unwrap();
        assert!(matches!(waiting.state(), PaymentState::Pending | PaymentState::Processing), "{waiting:?}");

        sandbox.clear_faults();
        until("the payment is paid", || {
            // Every look is a minute later, so that no backoff outlasts our patience.
            scenery.stage.clock.advance(time::Duration::MINUTE);
            let mut player = player.api.payments.clone();
            let payment = Some(get_payment_request::Payment::InvoiceId(name.clone()));
            async move {
                let paid = player.get_payment(GetPaymentRequest { payment }).await.unwrap().into_inner().payment?;
                (paid.state() == PaymentState::Succeeded).then_some(())
            }
        })
        .await;
        let charges = sandbox.ledger().into_iter().filter(|entry| entry.metadata.get("invoice_id") == Some(&name));
        assert_eq!(charges.count(), 1, "one charge, however often it was tried");
        player
            .customer_when(&newcomer, "is at Stripe", |customer| !customer.provider_customer_id.is_empty())
            .await
            .unwrap();
        let linked = player.api.customers.create_checkout_url(link.clone()).await.expect("the same request again");
        assert!(!linked.into_inner().checkout_url.is_empty());
    }
    player.api.integrations.create_integration(second).await.expect("the same request again");
    scenery.stage.strike().await;
}
