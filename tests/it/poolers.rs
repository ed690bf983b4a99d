//! Connection poolers, with the real PgBouncer: one that shares prepared statements between clients is refused, and a
//! session pooler works. Without PgBouncer installed, nothing is tested.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use paybridge::clock::Clock;
use paybridge::dev::scenarios::{Reporter, STEPS, ScenarioContext};
use paybridge::dev::test_environment::{Options, TestEnvironment};
use rustix::process::geteuid;
use tempfile::TempDir;

use crate::support::sql::superuser;
use crate::support::wait::until;
use crate::support::{KillOnDrop, database, postgres, program};

/// A PgBouncer in front of the Postgres of all tests, on a Unix socket.
struct Pooler {
    _process: KillOnDrop,
    folder: TempDir,
    database: String,
}

/// The name of the database in a connection string.
fn database_of(url: &str) -> &str {
    let start = url.find("dbname=").expect("the address names a database") + "dbname=".len();
    url[start..].split(' ').next().expect("a name").trim_matches('\'')
}

impl Pooler {
    /// `None` where PgBouncer is not installed.
    async fn start(pool_mode: &str, url: &str) -> Option<Self> {
        let found = Command::new("pgbouncer").arg("--version").output();
        if found.is_err() {
            eprintln!("PgBouncer is not installed: nothing is checked.");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("paybridge-pooler-").tempdir().expect("a temporary folder");
        let socket = postgres().socket_file();
        let server = socket.parent().expect("a folder").display();
        let port = socket.extension().and_then(|port| port.to_str()).expect("a socket is named by its port");
        let socket_folder = folder.path().display();
        let settings = format!(
            "[databases]\n* = user=paybridge host={server} port={port}\n[pgbouncer]\nlisten_addr =\n\
             listen_port = 6432\nunix_socket_dir = {socket_folder}\n\
             auth_type = any\npool_mode = {pool_mode}\ndefault_pool_size = 40\n\
             ignore_startup_parameters = extra_float_digits\n"
        );
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, settings).expect("a file");
        // PgBouncer refuses to run as root, so it runs as the user of Postgres.
        let owner = std::fs::metadata(postgres().folder().join("data")).expect("a data folder");
        for path in [folder.path(), &file] {
            chown(path, Some(owner.uid()), Some(owner.gid())).expect("the owner is changed");
        }
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("the mode is set");
        let mut command = Command::new("pgbouncer");
        command.arg("--quiet").arg(&file).current_dir("/").stdin(Stdio::null());
        if geteuid().is_root() {
            command.uid(owner.uid()).gid(owner.gid());
        }
        let process = KillOnDrop(command.spawn().expect("PgBouncer starts"));
        let pooler = Self { _process: process, folder, database: database_of(url).to_owned() };
        let socket = pooler.folder.path().join(".s.PGSQL.6432");
        until("the pooler listens", async || socket.exists().then_some(())).await;
        Some(pooler)
    }

    fn url(&self) -> String {
        format!("host={} port=6432 user=paybridge dbname={}", self.folder.path().display(), self.database)
    }
}

fn paybridge(arguments: &[&str], url: &str, direct_url: &str) -> Output {
    Command::new(program())
        .args(arguments)
        .env("DATABASE_URL", url)
        .env("PAYBRIDGE_DIRECT_DATABASE_URL", direct_url)
        .env("PAYBRIDGE_ENCRYPTION_KEYS", "k1:cGF5YnJpZGdlLWRldi1zZWFscy10ZXN0LXNlY3JldHM=")
        .env("PAYBRIDGE_DEFAULT_SUCCESS_URL", "https://shop.example/thanks")
        .env("PAYBRIDGE_GRPC_LISTEN", "127.0.0.1:0")
        .env("PAYBRIDGE_HTTP_LISTEN", "127.0.0.1:0")
        .output()
        .expect("the program runs")
}

/// Checks that a command is refused, with the setting and the remedy.
fn assert_refused(arguments: &[&str], url: &str, direct_url: &str, setting: &str) {
    let output = paybridge(arguments, url, direct_url);
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    let sentence = format!("{setting} leads to a connection pooler");
    assert!(text.contains(&sentence) && text.contains("pool_mode=session"), "{arguments:?}: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_shares_prepared_statements_is_refused_before_anything_is_changed() {
    let url = database().await;
    for mode in ["transaction", "statement"] {
        let Some(pooler) = Pooler::start(mode, &url).await else { return };
        let before = added_rows(&url).await;
        for arguments in [&["migrate"][..], &["organization", "create", "Hooli"], &["serve"]] {
            assert_refused(arguments, &pooler.url(), "", "DATABASE_URL");
        }
        assert_refused(&["serve"], &url, &pooler.url(), "PAYBRIDGE_DIRECT_DATABASE_URL");
        assert_refused(&["worker"], &url, &pooler.url(), "PAYBRIDGE_DIRECT_DATABASE_URL");
        assert_eq!(added_rows(&url).await, before);
    }
}

/// The number of rows that the commands above would have added.
async fn added_rows(url: &str) -> (i64, i64) {
    let client = superuser(&postgres().connection_string(database_of(url))).await;
    let row = client.query_one("SELECT (SELECT count(*) FROM organizations), (SELECT count(*) FROM timers)", &[]).await;
    let row = row.expect("a result");
    (row.get(0), row.get(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_pooler_is_refused_too() {
    let url = database().await;
    let Some(pooler) = Pooler::start("transaction", &url).await else { return };
    // Clients that keep the server connections busy.
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = superuser(&pooler.url()).await;
        clients.spawn(async move { while client.simple_query("SELECT pg_sleep(0.001)").await.is_ok() {} });
    }
    for _ in 0..5 {
        assert_refused(&["organization", "list"], &pooler.url(), "", "DATABASE_URL");
    }
    clients.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_pooler_works() {
    let url = database().await;
    let Some(pooler) = Pooler::start("session", &url).await else { return };
    let migrated = paybridge(&["migrate"], &pooler.url(), "");
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let options = Options { servers: 2, program: Some(program()), ..Options::default() };
    let environment =
        TestEnvironment::start(pooler.url(), Clock::system(), options).await.expect("the processes become ready");
    let mut context = ScenarioContext { environment, program: program(), reporter: Reporter { is_enabled: false } };
    for step in [7, 17] {
        let step = &STEPS[step - 1];
        (step.run)(&mut context).await.unwrap_or_else(|error| panic!("{}: {error:#}", step.title));
    }
    context.environment.shutdown().await;
}
