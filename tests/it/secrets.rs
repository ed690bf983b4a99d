//! P9: secrets stay sealed. Calls with secrets are made to a process that logs everything. Then every place where a
//! secret could be is searched.

#![expect(clippy::unwrap_used, reason = "test helpers may panic")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use paybridge::dev::sandbox;
use paybridge::dev::scenarios::{BillingClient, ScenarioContext};
use paybridge::dev::test_environment::Options;
use paybridge::domain::integrations::NewIntegration;
use paybridge::grpc::proto::{
    CheckIntegrationRequest, CreateIntegrationRequest, GetIntegrationRequest, ListCustomersRequest,
    ListIntegrationsRequest, ListPaymentsRequest, RotateIntegrationKeyRequest,
};
use tokio_postgres::Client;

use crate::support::customers::customer_with_method;
use crate::support::errors::error_of;
use crate::support::payments::{invoice, pay};
use crate::support::sql::superuser;
use crate::support::wait::until;
use crate::support::webhooks::webhook_secret;
use crate::support::{context, program};

const FIRST_KEY: &str = "sk_test_firstDistinctiveSandboxKey0001";
const SECOND_KEY: &str = "sk_test_secondDistinctiveSandboxKey0002";
const WRONG_KEY: &str = "sk_test_wrongDistinctiveSandboxKey0003";

/// A script that runs the program with the most verbose log, into a file.
fn verbose_program(folder: &Path, log: &Path) -> std::path::PathBuf {
    let script = folder.join("serve");
    let lines = format!(
        "#!/bin/sh\nPAYBRIDGE_LOG_FILTER=debug exec '{}' \"$@\" >>'{}' 2>&1\n",
        program().display(),
        log.display()
    );
    std::fs::write(&script, lines).expect("a script");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("it can be run");
    script
}

/// Every row of every table as text; bytes are written in hex.
async fn dump(client: &Client) -> Vec<(String, String)> {
    let tables = client
        .query(
            "SELECT relname::text FROM pg_class \
             WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1",
            &[],
        )
        .await
        .expect("the tables");
    let mut dumped = Vec::new();
    for table in tables {
        let table: String = table.get(0);
        let rows = client.query(&format!("SELECT t::text FROM {table} AS t"), &[]).await.expect("a table");
        let text: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        dumped.push((format!("the table {table}"), text.join("\n")));
    }
    dumped
}

/// The client secrets of Stripe's in a text.
fn client_secrets(text: &str) -> Vec<&str> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    let is_secret = |word: &&str| word.contains("_secret_") && (word.starts_with("pi_") || word.starts_with("seti_"));
    words.filter(is_secret).collect()
}

/// A request to connect an account with this key.
fn connect_request(key: &str, code: &str) -> CreateIntegrationRequest {
    let request = CreateIntegrationRequest {
        request_id: format!("connect-{code}"),
        code: code.to_owned(),
        name: "Stripe".to_owned(),
        secret_key: key.to_owned(),
        relay_provider_events: Some(true),
        ..CreateIntegrationRequest::default()
    };
    assert!(!format!("{request:?}").contains(key), "Debug shows the key");
    request
}

/// Makes calls that handle secrets. Returns all responses, and the secret of the webhook endpoint.
async fn call_with_secrets(
    context: &ScenarioContext,
    billing: &mut BillingClient,
    state_file: &Path,
) -> (String, String) {
    let mut responses = Vec::new();
    let mut record = |response: &dyn std::fmt::Debug| responses.push(format!("{response:?}"));
    let wrong = connect_request(WRONG_KEY, "wrong");
    record(&error_of(billing.api.integrations.create_integration(wrong).await));
    let right = connect_request(FIRST_KEY, "stripe");
    let integration =
        billing.api.integrations.create_integration(right).await.unwrap().into_inner().integration.unwrap();
    record(&integration);
    let whsec = webhook_secret(state_file, &integration.provider_webhook_endpoint_id).await;
    let id = integration.id;
    record(&billing.api.integrations.check_integration(CheckIntegrationRequest { id: id.clone() }).await.unwrap());

    record(&customer_with_method(context, billing, "good", "4242424242424242").await);
    record(&customer_with_method(context, billing, "bad", "4000000000000341").await);
    record(&pay(billing, invoice("good", "paid", 4900, "EUR")).await.unwrap());
    record(&pay(billing, invoice("bad", "declined", 4900, "EUR")).await.unwrap());
    billing.wait_for_event("payment.succeeded", "paid").await.unwrap();
    billing.wait_for_event("invoice.payment_failure", "declined").await.unwrap();

    for (key, works) in [(WRONG_KEY, false), (SECOND_KEY, true)] {
        let rotate = RotateIntegrationKeyRequest { id: id.clone(), secret_key: key.to_owned() };
        assert!(!format!("{rotate:?}").contains(key));
        let response = billing.api.integrations.rotate_integration_key(rotate).await;
        assert_eq!(response.is_ok(), works, "{response:?}");
        record(&response);
    }
    context.environment.sandbox.revoke_key(SECOND_KEY);
    record(&pay(billing, invoice("good", "paused", 4900, "EUR")).await.unwrap());
    let paused = "payment_provider.error";
    billing.wait_for(paused, |event| (event.webhook_type == paused).then_some(())).await.unwrap();
    record(&billing.api.integrations.check_integration(CheckIntegrationRequest { id: id.clone() }).await);
    record(&billing.api.integrations.get_integration(GetIntegrationRequest { id }).await.unwrap());
    record(&billing.api.integrations.list_integrations(ListIntegrationsRequest::default()).await.unwrap());
    record(&billing.api.customers.list_customers(ListCustomersRequest::default()).await.unwrap());
    record(&billing.api.payments.list_payments(ListPaymentsRequest::default()).await.unwrap());
    record(&billing.payment("declined").await.unwrap());
    record(&billing.payment("paid").await.unwrap());
    (responses.join("\n"), whsec)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_no_secret_is_in_any_table_response_event_or_log() {
    let folder = tempfile::tempdir().unwrap();
    let (log, state_file) = (folder.path().join("log"), folder.path().join("sandbox.json"));
    let sandbox =
        sandbox::Options { state_file: Some(state_file.clone()), limits: None, ..sandbox::Options::default() };
    let program = Some(verbose_program(folder.path(), &log));
    let context = context(Options { program, sandbox, ..Options::default() }).await;
    let mut billing = BillingClient::create(&context, "secrets").await.unwrap();
    for key in [FIRST_KEY, SECOND_KEY] {
        context.environment.sandbox.add_key(key, &billing.account, None);
    }
    let (responses, whsec) = call_with_secrets(&context, &mut billing, &state_file).await;
    assert!(whsec.starts_with("whsec_"), "{whsec}");
    let relayed = "provider_event";
    billing.wait_for(relayed, |event| (event.webhook_type == relayed).then_some(())).await.unwrap();
    let database = superuser(&context.environment.database_url).await;
    until("webhooks of intents were stored", async || {
        let sql = "SELECT FROM deliveries WHERE event_type LIKE 'payment_intent.%' AND body LIKE '%client_secret%'";
        (!database.query(sql, &[]).await.unwrap().is_empty()).then_some(())
    })
    .await;

    // The secret is all that follows the organization, and can contain an underscore.
    let token_secret = billing.token.splitn(3, '_').nth(2).unwrap().to_owned();
    let mut secrets = vec![whsec.clone(), whsec.replace("whsec_", ""), billing.token.clone(), token_secret];
    for key in [FIRST_KEY, SECOND_KEY, WRONG_KEY] {
        secrets.extend([key.to_owned(), key.replace("sk_test_", "")]);
    }
    let mut places = dump(&database).await;
    places.push(("the responses".to_owned(), responses));
    places.push(("the events".to_owned(), format!("{:?}", billing.all_events().await.unwrap())));
    let logged = std::fs::read_to_string(&log).unwrap();
    assert!(logged.contains("DEBUG"), "the log is verbose: {logged}");
    places.push(("the log".to_owned(), logged));
    for (place, text) in &places {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{place} holds {secret}");
            assert!(!text.contains(&hex::encode(secret)), "{place} holds the bytes of {secret}");
        }
        assert!(client_secrets(text).is_empty(), "{place} holds {:?}", client_secrets(text));
    }
    let of = |name: &str| places.iter().find(|(place, _)| place.ends_with(name)).map_or("", |(_, text)| text);
    assert!(of("integrations").contains("\\x"), "the tables contain sealed secrets");
    context.environment.shutdown().await;
}

#[test]
fn p9_debug_does_not_show_secrets() {
    let new = NewIntegration {
        code: "stripe".to_owned(),
        name: "Stripe".to_owned(),
        secret_key: FIRST_KEY.into(),
        success_redirect_url: None,
        supports_3ds: false,
        relay_provider_events: None,
    };
    let key = paybridge::config::EncryptionKey {
        id: "first".to_owned(),
        key: secrecy::SecretBox::new(Box::new(*b"an-encryption-key-of-32-letters!")),
    };
    let connection = paybridge::config::Connection {
        url: "postgres://paybridge:hunter2@localhost/paybridge".into(),
        direct_url: "postgres://paybridge:hunter2@localhost/paybridge".into(),
        pool_size: 1,
    };
    let tls = paybridge::config::Tls { certificate: String::new(), key: "-----BEGIN PRIVATE KEY-----".into() };
    let shown = format!("{new:?} {key:?} {connection:?} {tls:?}");
    for secret in [FIRST_KEY, "an-encryption-key", "hunter2", "PRIVATE KEY", "97, 110, 45"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}
