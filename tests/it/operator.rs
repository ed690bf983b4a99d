//! What an operator does before the first start, by the program alone, as a user who is no superuser: on whatever version
//! of Postgres these tests run on.

use std::process::{Command, Output};

use paybridge::dev::postgres::{self, Postgres};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use crate::support::program;

/// A server of its own, since roles belong to the whole of it.
async fn server() -> (TempDir, Postgres) {
    let folder = tempfile::Builder::new().prefix("paybridge-operator-").tempdir().expect("a temporary folder");
    let place = folder.path().join("postgres");
    let options = postgres::Options { durable: false, ..postgres::Options::default() };
    let start = move || Postgres::start(&place, &options);
    let server = tokio::task::spawn_blocking(start).await.expect("no panic").expect("Postgres starts");
    (folder, server)
}

async fn client(address: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(address, NoTls).await.expect("the server answers");
    tokio::spawn(connection);
    client
}

/// Makes a login with a database of its own, as the README says, and returns its address.
async fn user(server: &Postgres, name: &str, attributes: &str) -> String {
    let admin = client(&server.connection_string("postgres")).await;
    let quoted = format!("\"{}\"", name.replace('"', "\"\""));
    admin.batch_execute(&format!("CREATE ROLE {quoted} LOGIN {attributes}")).await.expect("a role");
    admin.batch_execute(&format!("CREATE DATABASE paybridge OWNER {quoted}")).await.expect("a database");
    server.connection_string_as(name, "paybridge")
}

async fn paybridge(arguments: &[&str], database_url: Option<&str>) -> Output {
    let mut command = Command::new(program());
    command.args(arguments).env_remove("DATABASE_URL").envs(database_url.map(|url| ("DATABASE_URL", url)));
    tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("the program runs")
}

/// What a command that must succeed prints.
async fn printed(arguments: &[&str], database_url: Option<&str>) -> String {
    let output = paybridge(arguments, database_url).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Migrates twice, and makes an organization with a token, which needs all three roles.
async fn set_up(url: &str) {
    printed(&["migrate"], Some(url)).await;
    printed(&["migrate"], Some(url)).await;
    let organization = printed(&["organization", "create", "My company"], Some(url)).await;
    let arguments = ["token", "create", "--name", "me", "--organization", organization.trim()];
    assert!(!printed(&arguments, Some(url)).await.trim().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_create_roles_migrates_and_sets_up_an_organization() {
    let (_folder, server) = server().await;
    let url = user(&server, "paybridge", "CREATEROLE").await;
    set_up(&url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_user_may_not_create_roles_an_administrator_runs_what_is_printed_for_it() {
    let (_folder, server) = server().await;
    let name = "o'hara \"pay\"";
    let url = user(&server, name, "NOCREATEROLE").await;
    let refused = paybridge(&["migrate"], Some(&url)).await;
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success());
    assert!(text.contains("paybridge migrate --print-roles --for USER"), "{text}");

    let sql = printed(&["migrate", "--print-roles", "--for", name], None).await;
    let admin = client(&server.connection_string("paybridge")).await;
    admin.batch_execute(&sql).await.expect("an administrator may");
    admin.batch_execute(&sql).await.expect("twice changes nothing");
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
