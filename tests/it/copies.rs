//! Copies of a database (P8): one that is started under the same name while the original lives never collects, another
//! installation's is refused, and `paybridge adopt` makes a copy an installation of its own.

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use paybridge::dev::scenarios::Api;
use paybridge::grpc::proto::create_payment_request::Customer;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{
    CreatePaymentRequest, GetIntegrationRequest, GetPaymentRequest, IntegrationState, ListEventsRequest, Money,
    PaymentState, get_payment_request,
};
use time::Duration;

use crate::support::harness::Harness;
use crate::support::refunds::pay_and_settle;
use crate::support::restores::{assert_matches_stripe, close_database, contact_in, copy, options, pass, settle};
use crate::support::sql::superuser;
use crate::support::wait::until;
use crate::support::{KillOnDrop, http, program, reserved_port};

/// The state of the integration as another server shows it.
async fn state_at(api: &Api, integration: &str) -> IntegrationState {
    let get = GetIntegrationRequest { id: integration.to_owned() };
    let response = api.integrations.clone().get_integration(get).await.expect("a response").into_inner();
    response.integration.expect("an integration").state()
}

/// The copy has the same name, the same keys, and jobs that are due. Every minute the original raises the counter at
/// Stripe, so the copy waits, however long that takes. Then the original stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_copy_that_runs_next_to_the_original_never_collects_and_says_so() {
    let mut harness = Harness::new("copied", options()).await;
    harness.customer("hooli", "pm_card_visa").await;
    settle(&harness).await;

    let copied = copy(&harness).await;
    let environment = &mut harness.context.environment;
    let original = std::mem::replace(&mut environment.database_url, copied.clone());
    let server = environment.add_server().await.expect("the copy is served");
    environment.database_url = original;
    let api = Api::connect(&server.grpc, &harness.billing.token).await.expect("it accepts the same token");
    assert_eq!(state_at(&api, &harness.integration.id).await, IntegrationState::CatchingUp);
    let request = CreatePaymentRequest {
        request_id: "pay-on-the-copy".to_owned(),
        invoice_id: "on-the-copy".to_owned(),
        invoice_number: String::new(),
        customer: Some(Customer::ExternalCustomerId("hooli".to_owned())),
        amount: Some(Money { minor_units: 4900, currency_code: "EUR".to_owned() }),
    };
    api.payments.clone().create_payment(request).await.expect("it is accepted");
    until("the copy has seen the counter", async || {
        let contact = contact_in(&copied).await;
        (contact["stage"] == "other_copies" && !contact["seen_number"].is_null()).then_some(())
    })
    .await;

    for minute in 0..25 {
        pass(&harness, Duration::seconds(61)).await;
        assert_eq!(state_at(&api, &harness.integration.id).await, IntegrationState::CatchingUp, "minute {minute}");
    }
    pay_and_settle(&mut harness, "inv").await;
    let which = Some(get_payment_request::Payment::InvoiceId("on-the-copy".to_owned()));
    let payment = api.payments.clone().get_payment(GetPaymentRequest { payment: which }).await.expect("a response");
    assert_eq!(payment.into_inner().payment.expect("a payment").state(), PaymentState::Pending, "it waits");
    assert_eq!(harness.charges("on-the-copy").len(), 0, "nothing is charged");
    let request = ListEventsRequest { page_size: 1_000, ..ListEventsRequest::default() };
    let events = api.events.clone().list_events(request).await.expect("a page").into_inner().events;
    let alerts = events.iter().filter(|event| match &event.object {
        Some(Object::PaymentProviderError(error)) => {
            error.provider_error.as_ref().is_some_and(|error| error.code == "database_copy_in_use")
        }
        _ => false,
    });
    assert_eq!(alerts.count(), 1, "it is reported once");
    assert_matches_stripe(&harness).await;

    // The original stops, and with it the counter: the copy takes over, with all that the original did meanwhile.
    close_database(&harness).await;
    until("the copy takes over", async || {
        harness.advance_slowly(Duration::MINUTE);
        (state_at(&api, &harness.integration.id).await == IntegrationState::Active).then_some(())
    })
    .await;
    for invoice in ["inv", "on-the-copy"] {
        until("it is paid", async || {
            let which = Some(get_payment_request::Payment::InvoiceId(invoice.to_owned()));
            let response = api.payments.clone().get_payment(GetPaymentRequest { payment: which }).await.ok()?;
            (response.into_inner().payment?.state() == PaymentState::Succeeded).then_some(())
        })
        .await;
        assert_eq!(harness.live_charges(invoice), 1, "{invoice}");
    }
    harness.shutdown().await;
}

/// A command on a database, without the suite's own settings.
fn paybridge(database_url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PAYBRIDGE_")) {
        command.env_remove(name);
    }
    command.args(arguments).env("DATABASE_URL", database_url).stdin(Stdio::null());
    command
}

/// A server of this installation, with the key that test environments seal with.
fn serve(database_url: &str, installation: &str) -> (Command, String) {
    const KEY: &str = "dev:cGF5YnJpZGdlLWRldi1zZWFscy10ZXN0LXNlY3JldHM=";
    let (_reserved, http) = reserved_port();
    let mut command = paybridge(database_url, &["serve", "--installation", installation]);
    command
        .env("PAYBRIDGE_ENCRYPTION_KEYS", KEY)
        .env("PAYBRIDGE_DEFAULT_SUCCESS_URL", "https://shop.example/thanks")
        .env("PAYBRIDGE_GRPC_LISTEN", "127.0.0.1:0")
        .env("PAYBRIDGE_HTTP_LISTEN", http.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    (command, format!("http://{http}"))
}

/// Waits until a server has ended by itself. Returns whether it succeeded, and what it has written.
async fn end_of(mut command: Command) -> (bool, String) {
    let mut process = KillOnDrop(command.spawn().expect("it starts"));
    let status = until("it has ended", async || process.0.try_wait().expect("a process")).await;
    let mut text = String::new();
    process.0.stdout.take().expect("a pipe").read_to_string(&mut text).expect("text");
    process.0.stderr.take().expect("a pipe").read_to_string(&mut text).expect("text");
    (status.success(), text)
}

/// Runs `paybridge adopt`, and types this line.
async fn adopt(database_url: &str, installation: &str, typed: &str) -> Output {
    let mut command = paybridge(database_url, &["adopt", "--installation", installation]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let line = format!("{typed}\n");
    let run = move || {
        let mut child = command.spawn()?;
        // It may end without reading.
        let _ = child.stdin.take().expect("a pipe").write_all(line.as_bytes());
        child.wait_with_output()
    };
    tokio::task::spawn_blocking(run).await.expect("no panic").expect("the program runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The name of the installation, the integration's state, and whether it has secrets.
async fn owner(database_url: &str) -> (String, String, bool) {
    let query = "SELECT installation.name, state, sealed_secret_key IS NOT NULL OR sealed_webhook_secret IS NOT NULL \
        FROM installation, integrations";
    let row = superuser(database_url).await.query_one(query, &[]).await.expect("a row");
    (row.get(0), row.get(1), row.get(2))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_copy_becomes_an_installation_of_its_own_only_by_a_typed_confirmation() {
    let mut harness = Harness::new("adopted", options()).await;
    harness.customer("hooli", "pm_card_visa").await;
    settle(&harness).await;
    let copied = copy(&harness).await;

    let (has_succeeded, refusal) = end_of(serve(&copied, "staging").0).await;
    assert!(!has_succeeded);
    for part in ["paybridge", "staging", "--installation", "paybridge adopt"] {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }
    let same = adopt(&copied, "paybridge", "paybridge").await;
    assert!(!same.status.success(), "it has that name already: {}", text(&same));
    for typed in ["", "yes", "paybridge", "Staging"] {
        let declined = adopt(&copied, "staging", typed).await;
        assert_eq!(declined.status.code(), Some(1), "{typed:?}: {}", text(&declined));
    }
    assert_eq!(owner(&copied).await, ("paybridge".to_owned(), "active".to_owned(), true), "nothing has changed");

    let adopted = adopt(&copied, "staging", "staging").await;
    assert!(adopted.status.success(), "{}", text(&adopted));
    let asked = String::from_utf8_lossy(&adopted.stdout).into_owned();
    assert!(asked.contains("`paybridge`") && asked.contains("`staging`") && asked.contains("(1)"), "{asked}");
    assert!(text(&adopted).contains("audit"), "an audit line: {}", text(&adopted));
    assert_eq!(owner(&copied).await, ("staging".to_owned(), "disconnected".to_owned(), false));
    let (mut command, http_url) = serve(&copied, "staging");
    let mut server = KillOnDrop(command.spawn().expect("it starts"));
    until("it is ready", async || {
        let response = http().get(format!("{http_url}/readyz")).send().await.ok()?;
        response.status().is_success().then_some(())
    })
    .await;
    assert!(server.0.try_wait().expect("a process").is_none(), "it runs");
    drop(server);

    // The original is as before, and so is its endpoint.
    pay_and_settle(&mut harness, "inv").await;
    let endpoint = harness.integration.provider_webhook_endpoint_id.clone();
    assert_eq!(harness.sandbox().object(&endpoint).expect("an endpoint")["status"], "enabled");
    assert_eq!(owner(&harness.context.environment.database_url).await.1, "active");
    settle(&harness).await;
    assert_matches_stripe(&harness).await;
    harness.shutdown().await;
}
