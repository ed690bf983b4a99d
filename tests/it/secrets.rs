//! P9: secrets stay sealed. A story is played against a real process that logs everything, and then every place where a
//! secret could have ended up is searched.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests, too")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use paybridge::dev::sandbox;
use paybridge::dev::stage::Options;
use paybridge::dev::story::{Player, Scenery};
use paybridge::domain::integrations::NewIntegration;
use paybridge::grpc::proto::{
    CheckIntegrationRequest, CreateIntegrationRequest, GetIntegrationRequest, ListCustomersRequest,
    ListIntegrationsRequest, ListPaymentsRequest, RotateIntegrationKeyRequest,
};
use tokio_postgres::Client;

use crate::hands::{invoice, pay, ready_customer, refusal, superuser, until, webhook_secret};
use crate::support::{program, scenery};

const FIRST_KEY: &str = "sk_test_firstDistinctiveSandboxKey0001";
const SECOND_KEY: &str = "sk_test_secondDistinctiveSandboxKey0002";
const WRONG_KEY: &str = "sk_test_wrongDistinctiveSandboxKey0003";

/// A stand-in for the program that logs all it can into a file.
fn talkative(folder: &Path, log: &Path) -> std::path::PathBuf {
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
        .expect("the catalogue can be read");
    let mut dumped = Vec::new();
    for table in tables {
        let table: String = table.get(0);
        let rows = client.query(&format!("SELECT t::text FROM {table} AS t"), &[]).await.expect("a table");
        let text: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        dumped.push((format!("the table {table}"), text.join("\n")));
    }
    dumped
}

/// Words that are client secrets of Stripe's.
fn client_secrets(text: &str) -> Vec<&str> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    let is_secret = |word: &&str| word.contains("_secret_") && (word.starts_with("pi_") || word.starts_with("seti_"));
    words.filter(is_secret).collect()
}

fn connecting(key: &str, code: &str) -> CreateIntegrationRequest {
    let request = CreateIntegrationRequest {
        request_id: format!("connect-{code}"),
        code: code.to_owned(),
        name: "Stripe".to_owned(),
        secret_key: key.to_owned(),
        relay_provider_events: Some(true),
        ..CreateIntegrationRequest::default()
    };
    assert!(!format!("{request:?}").contains(key), "Debug of the request shows the key");
    request
}

/// Plays what touches secrets, and returns all that was answered on the way.
async fn play(scenery: &Scenery, player: &mut Player, state_file: &Path) -> (String, String) {
    let mut answers = Vec::new();
    let mut note = |answer: &dyn std::fmt::Debug| answers.push(format!("{answer:?}"));
    let wrong = connecting(WRONG_KEY, "wrong");
    note(&refusal(player.api.integrations.create_integration(wrong).await));
    let right = connecting(FIRST_KEY, "stripe");
    let integration =
        player.api.integrations.create_integration(right).await.unwrap().into_inner().integration.unwrap();
    note(&integration);
    let whsec = webhook_secret(state_file, &integration.provider_webhook_endpoint_id).await;
    let id = integration.id;
    note(&player.api.integrations.check_integration(CheckIntegrationRequest { id: id.clone() }).await.unwrap());

    note(&ready_customer(scenery, player, "good", "4242424242424242").await);
    note(&ready_customer(scenery, player, "bad", "4000000000000341").await);
    note(&pay(player, invoice("good", "paid", 4900, "EUR")).await.unwrap());
    note(&pay(player, invoice("bad", "declined", 4900, "EUR")).await.unwrap());
    player.told("payment.succeeded", "paid").await.unwrap();
    player.told("invoice.payment_failure", "declined").await.unwrap();

    for (key, works) in [(WRONG_KEY, false), (SECOND_KEY, true)] {
        let rotate = RotateIntegrationKeyRequest { id: id.clone(), secret_key: key.to_owned() };
        assert!(!format!("{rotate:?}").contains(key));
        let answer = player.api.integrations.rotate_integration_key(rotate).await;
        assert_eq!(answer.is_ok(), works, "{answer:?}");
        note(&answer);
    }
    scenery.stage.sandbox.revoke_key(SECOND_KEY);
    note(&pay(player, invoice("good", "paused", 4900, "EUR")).await.unwrap());
    let paused = "payment_provider.error";
    player.event(paused, |event| (event.webhook_type == paused).then_some(())).await.unwrap();
    note(&player.api.integrations.check_integration(CheckIntegrationRequest { id: id.clone() }).await);
    note(&player.api.integrations.get_integration(GetIntegrationRequest { id }).await.unwrap());
    note(&player.api.integrations.list_integrations(ListIntegrationsRequest::default()).await.unwrap());
    note(&player.api.customers.list_customers(ListCustomersRequest::default()).await.unwrap());
    note(&player.api.payments.list_payments(ListPaymentsRequest::default()).await.unwrap());
    note(&player.payment("declined").await.unwrap());
    note(&player.payment("paid").await.unwrap());
    (answers.join("\n"), whsec)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_no_secret_is_in_any_table_reply_event_or_log() {
    let folder = tempfile::tempdir().unwrap();
    let (log, state_file) = (folder.path().join("log"), folder.path().join("sandbox.json"));
    let sandbox =
        sandbox::Options { state_file: Some(state_file.clone()), limits: None, ..sandbox::Options::default() };
    let program = Some(talkative(folder.path(), &log));
    let scenery = scenery(Options { program, sandbox, ..Options::default() }).await;
    let mut player = Player::enter(&scenery, "secrets").await.unwrap();
    for key in [FIRST_KEY, SECOND_KEY] {
        scenery.stage.sandbox.add_key(key, &player.account, None);
    }
    let (answers, whsec) = play(&scenery, &mut player, &state_file).await;
    assert!(whsec.starts_with("whsec_"), "{whsec}");
    let relayed = "provider_event";
    player.event(relayed, |event| (event.webhook_type == relayed).then_some(())).await.unwrap();
    let database = superuser(&scenery.stage.database_url).await;
    until("webhooks of intents were stored", || async {
        let sql = "SELECT FROM deliveries WHERE event_type LIKE 'payment_intent.%' AND body LIKE '%client_secret%'";
        (!database.query(sql, &[]).await.unwrap().is_empty()).then_some(())
    })
    .await;

    // The secret itself may hold an underscore: it is all that follows the organization.
    let token_secret = player.token.splitn(3, '_').nth(2).unwrap().to_owned();
    let mut secrets = vec![whsec.clone(), whsec.replace("whsec_", ""), player.token.clone(), token_secret];
    for key in [FIRST_KEY, SECOND_KEY, WRONG_KEY] {
        secrets.extend([key.to_owned(), key.replace("sk_test_", "")]);
    }
    let mut places = dump(&database).await;
    places.push(("the replies".to_owned(), answers));
    places.push(("the events".to_owned(), format!("{:?}", player.all_events().await.unwrap())));
    let logged = std::fs::read_to_string(&log).unwrap();
    assert!(logged.contains("DEBUG"), "the process logs all it can: {logged}");
    places.push(("the log".to_owned(), logged));
    for (place, text) in &places {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{place} holds {secret}");
            assert!(!text.contains(&hex::encode(secret)), "{place} holds the bytes of {secret}");
        }
        assert!(client_secrets(text).is_empty(), "{place} holds {:?}", client_secrets(text));
    }
    let of = |name: &str| places.iter().find(|(place, _)| place.ends_with(name)).map_or("", |(_, text)| text);
    assert!(of("integrations").contains("\\x"), "the sealed secrets are there to be searched");
    scenery.stage.strike().await;
}

#[test]
fn p9_debug_of_what_holds_a_secret_does_not_show_it() {
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
