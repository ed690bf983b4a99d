//! The setup and adoption of a database with the command line, by a user who is no superuser, on the Postgres version
//! of these tests.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use paybridge::dev::postgres::{self, Postgres};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use crate::support::program;
use crate::support::sql::insert_integrations;

/// A server of its own, since roles belong to a whole server.
async fn start_server() -> (TempDir, Postgres) {
    let folder = tempfile::Builder::new().prefix("paybridge-operator-").tempdir().expect("a temporary folder");
    let place = folder.path().join("postgres");
    let options = postgres::Options { durable: false, ..postgres::Options::default() };
    let start = move || Postgres::start(&place, &options);
    let server = tokio::task::spawn_blocking(start).await.expect("no panic").expect("Postgres starts");
    (folder, server)
}

async fn client(address: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(address, NoTls).await.expect("a connection");
    tokio::spawn(connection);
    client
}

/// Creates a login that owns a database, as docs/operations.md says, and returns the connection string.
async fn create_user(server: &Postgres, name: &str, attributes: &str) -> String {
    let admin = client(&server.connection_string("postgres")).await;
    let quoted = format!("\"{}\"", name.replace('"', "\"\""));
    admin.batch_execute(&format!("CREATE ROLE {quoted} LOGIN {attributes}")).await.expect("a role");
    admin.batch_execute(&format!("CREATE DATABASE paybridge OWNER {quoted}")).await.expect("a database");
    server.connection_string_as(name, "paybridge")
}

/// Runs the program.
async fn paybridge(arguments: &[&str], database_url: Option<&str>) -> Output {
    let mut command = Command::new(program());
    command.args(arguments).env_remove("DATABASE_URL").envs(database_url.map(|url| ("DATABASE_URL", url)));
    tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("the program runs")
}

/// The output of a command that must succeed.
async fn output_of(arguments: &[&str], database_url: Option<&str>) -> String {
    let output = paybridge(arguments, database_url).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Migrates twice, and creates an organization with a token, which needs all three roles.
async fn set_up(url: &str) {
    output_of(&["migrate"], Some(url)).await;
    output_of(&["migrate"], Some(url)).await;
    let organization = output_of(&["organization", "create", "My company"], Some(url)).await;
    let arguments = ["token", "create", "--name", "me", "--organization", organization.trim()];
    assert!(!output_of(&arguments, Some(url)).await.trim().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_create_roles_can_migrate_and_create_an_organization() {
    let (_folder, server) = start_server().await;
    let url = create_user(&server, "paybridge", "CREATEROLE").await;
    set_up(&url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_not_create_roles_can_migrate_after_an_administrator_has_run_the_printed_sql() {
    let (_folder, server) = start_server().await;
    let name = "o'hara \"pay\"";
    let url = create_user(&server, name, "NOCREATEROLE").await;
    let failed = paybridge(&["migrate"], Some(&url)).await;
    let text = String::from_utf8_lossy(&failed.stderr);
    assert!(!failed.status.success());
    assert!(text.contains("paybridge migrate --print-roles --for USER"), "{text}");

    let sql = output_of(&["migrate", "--print-roles", "--for", name], None).await;
    let admin = client(&server.connection_string("paybridge")).await;
    admin.batch_execute(&sql).await.expect("an administrator runs it");
    admin.batch_execute(&sql).await.expect("a second run changes nothing");
    set_up(&url).await;
    let members = "SELECT count(*) FROM pg_auth_members JOIN pg_roles ON pg_roles.oid = member \
         WHERE rolname = $1 AND pg_get_userbyid(roleid) LIKE 'paybridge\\_%'";
    assert_eq!(
        admin.query_one(members, &[&name]).await.unwrap().get::<_, i64>(0),
        3,
        "the user, not the administrator"
    );
    assert_eq!(admin.query_one(members, &[&"postgres"]).await.unwrap().get::<_, i64>(0), 0);
}

/// Runs `paybridge adopt` for this name, and types an answer.
async fn adopt(url: &str, name: &str, typed: &str) -> Output {
    let mut command = Command::new(program());
    command.args(["adopt", "--installation", name]).env("DATABASE_URL", url).env("USER", "ohara");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let typed = typed.to_owned();
    let run = move || {
        let mut process = command.spawn().expect("it starts");
        // A process that was refused at once reads nothing.
        let _ = process.stdin.take().expect("a pipe").write_all(typed.as_bytes());
        process.wait_with_output().expect("it ends")
    };
    tokio::task::spawn_blocking(run).await.expect("no panic")
}

/// The name and incarnation of the installation, and the id of the organization's log.
async fn identity(database: &Client) -> (String, String, String) {
    let sql = "SELECT name, incarnation::text, log_id::text FROM installation, event_heads ORDER BY log_id LIMIT 1";
    let row = database.query_one(sql, &[]).await.expect("one row");
    (row.get(0), row.get(1), row.get(2))
}

async fn count(database: &Client, rows: &str) -> i64 {
    database.query_one(&format!("SELECT count(*) FROM {rows}"), &[]).await.expect("a count").get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_becomes_an_installation_of_its_own_once_its_name_is_typed() {
    let (_folder, server) = start_server().await;
    let url = create_user(&server, "paybridge", "CREATEROLE").await;
    output_of(&["migrate"], Some(&url)).await;
    let database = client(&server.connection_string("paybridge")).await;
    insert_integrations(&database).await;
    let before = identity(&database).await;
    assert_eq!(before.0, "paybridge");
    for (name, typed, reason) in [
        ("staging", "", "the new name was not typed"),
        ("staging", "yes\n", "the new name was not typed"),
        ("staging", "paybridge\n", "the new name was not typed"),
        ("paybridge", "paybridge\n", "belongs to the installation `paybridge` already"),
    ] {
        let refused = adopt(&url, name, typed).await;
        let text = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{text}");
        assert!(text.contains(reason) && text.contains("nothing was changed"), "{text}");
        assert!(!text.contains("audit"), "{text}");
        assert_eq!(identity(&database).await, before);
        assert_eq!(count(&database, "integrations WHERE state = 'active' AND sealed_secret_key IS NOT NULL").await, 1);
        assert_eq!((count(&database, "jobs").await, count(&database, "stripe_requests").await), (1, 2));
    }

    let adopted = adopt(&url, "staging", "staging\n").await;
    let (shown, log) = (String::from_utf8_lossy(&adopted.stdout), String::from_utf8_lossy(&adopted.stderr));
    assert!(adopted.status.success(), "{log}");
    for word in ["installation `paybridge`", "installation `staging`", "integrations (1)"] {
        assert!(shown.contains(word), "`{word}` is not in: {shown}");
    }
    let audit: Vec<&str> = log.lines().filter(|line| line.contains("audit")).collect();
    let [audit] = audit[..] else { panic!("one audit line: {log}") };
    for word in ["installation.adopt", "paybridge", "staging", "integrations=1", "ohara"] {
        assert!(audit.contains(word), "`{word}` is not in: {audit}");
    }
    let after = identity(&database).await;
    assert!(after.0 == "staging" && after.1 != before.1 && after.2 != before.2, "{after:?}");
    let connected = "integrations WHERE state <> 'disconnected' OR num_nonnulls(sealed_secret_key, \
        sealed_webhook_secret, sealed_old_webhook_secret, provider_endpoint_id, provider_old_endpoint_id, \
        endpoint_fault, pause_reason) > 0 OR forbidden_actions <> '{}'";
    assert_eq!(count(&database, connected).await, 0);
    assert_eq!(count(&database, "integrations").await, 2);
    assert_eq!(count(&database, "jobs").await, 0);
    assert_eq!(count(&database, "stripe_requests WHERE finish_time IS NULL").await, 0, "they hold the old name's keys");
    assert_eq!(count(&database, "stripe_requests").await, 1);
    assert_eq!(count(&database, "stripe_contacts WHERE catch_up_reason IS NOT NULL").await, 0);
    assert!(!paybridge(&["migrate"], Some(&url)).await.status.success(), "it has another name now");
    output_of(&["migrate", "--installation", "staging"], Some(&url)).await;
}
