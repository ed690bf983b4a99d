//! The setup of a database with the command line, by a user who is no superuser, on the Postgres version of these
//! tests.

use std::process::{Command, Output};

use paybridge::dev::postgres::{self, Postgres};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use crate::support::program;

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
