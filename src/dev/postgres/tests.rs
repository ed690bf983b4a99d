//! All tests here run a real Postgres: an installed or a fetched one.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio_postgres::NoTls;

use super::*;

/// A temporary folder, removed when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let nth = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("paybridge-test-{}-{nth}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn without_fsync() -> Options {
    Options { durable: false, ..Options::default() }
}

/// Runs one statement and returns its first value.
fn query(postgres: &Postgres, sql: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, connection) =
            tokio_postgres::connect(&postgres.connection_string("postgres"), NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut rows = client.simple_query(sql).await.unwrap().into_iter();
        let value = rows.find_map(|row| match row {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        drop(client);
        connection.await.unwrap().unwrap();
        value.unwrap_or_default()
    })
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not true within 30 s: {what}");
        thread::park_timeout(Duration::from_millis(10));
    }
}

#[test]
fn a_first_start_is_durable_private_and_not_root() {
    let scratch = Scratch::new();
    let postgres = Postgres::start(&scratch.0, &Options::default()).unwrap();
    let data = std::fs::metadata(postgres.folder().join("data")).unwrap();
    assert_ne!(data.uid(), 0, "Postgres refuses to run as root, so its files belong to another account");
    assert_eq!(data.uid() == geteuid().as_raw(), !geteuid().is_root());
    assert_eq!(data.mode() & 0o777, 0o700);
    let settings = ["fsync", "listen_addresses", "max_connections", "server_encoding", "data_checksums", "TimeZone"];
    let values = settings.map(|name| query(&postgres, &format!("SHOW {name}")));
    assert_eq!(values, ["on", "", "200", "UTF8", "on", "UTC"]);
    assert_eq!(query(&postgres, "SELECT current_user"), "postgres");
    postgres.stop().unwrap();
}

#[test]
fn a_restart_keeps_the_data_and_fresh_does_not() {
    let scratch = Scratch::new();
    let first = Postgres::start(&scratch.0, &without_fsync()).unwrap();
    query(&first, "CREATE TABLE kept AS SELECT 7 AS value");
    first.stop().unwrap();
    let second = Postgres::start(&scratch.0, &without_fsync()).unwrap();
    assert_eq!(query(&second, "SELECT value FROM kept"), "7");
    drop(second);
    let third = Postgres::start(&scratch.0, &Options { fresh: true, ..without_fsync() }).unwrap();
    assert_eq!(query(&third, "SELECT count(*) FROM pg_tables WHERE tablename = 'kept'"), "0");
}

#[test]
fn a_second_instance_is_refused_with_the_owners_process_id() {
    let scratch = Scratch::new();
    let first = Postgres::start(&scratch.0, &without_fsync()).unwrap();
    let error = Postgres::start(&scratch.0, &without_fsync()).unwrap_err().to_string();
    assert!(error.contains(&format!("process {} already runs", std::process::id())), "{error}");
    assert_eq!(query(&first, "SELECT 1"), "1", "the first one still works");
}

#[test]
fn a_killed_server_recovers_everything_committed() {
    let scratch = Scratch::new();
    let first = Postgres::start(&scratch.0, &Options::default()).unwrap();
    query(&first, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS value");
    kill_process(first.server.pid, Signal::KILL).unwrap();
    let exit = first.server.wait(Duration::from_secs(10)).unwrap();
    assert_eq!(exit, "killed by signal 9");
    drop(first);
    let second = Postgres::start(&scratch.0, &Options::default()).unwrap();
    assert_eq!(query(&second, "SELECT count(*) FROM kept"), "1000");
}

#[test]
fn a_lock_file_of_another_program_is_ignored() {
    let scratch = Scratch::new();
    Postgres::start(&scratch.0, &without_fsync()).unwrap().stop().unwrap();
    // The id of a live process that is not Postgres: this one.
    let lock = format!("{}\n/somewhere\n1\n5432\n/tmp\n\n0 0\nready   \n", std::process::id());
    std::fs::write(scratch.0.join("data/postmaster.pid"), lock).unwrap();
    let postgres = Postgres::start(&scratch.0, &without_fsync()).unwrap();
    assert_eq!(query(&postgres, "SELECT 1"), "1");
}

#[test]
fn an_interrupted_first_start_is_repeated() {
    let scratch = Scratch::new();
    std::fs::create_dir_all(scratch.0.join("data.unfinished/base")).unwrap();
    let postgres = Postgres::start(&scratch.0, &without_fsync()).unwrap();
    assert_eq!(query(&postgres, "SELECT 1"), "1");
}

#[test]
fn a_long_path_gets_a_short_socket_that_is_removed_afterwards() {
    let scratch = Scratch::new();
    let folder = scratch.0.join("long-".repeat(20)).join("with, comma");
    let postgres = Postgres::start(&folder, &without_fsync()).unwrap();
    let socket = postgres.folder.socket_folder().to_owned();
    assert!(!socket.starts_with(&folder));
    assert_eq!(query(&postgres, "SELECT 1"), "1");
    drop(postgres);
    assert!(!socket.exists());
}

#[test]
fn a_folder_that_the_servers_account_cannot_enter_is_replaced() {
    if !geteuid().is_root() {
        return; // Only root runs the server as another account.
    }
    let scratch = Scratch::new();
    let home = scratch.0.join("home");
    std::fs::create_dir_all(&home).unwrap();
    std::fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let first = Postgres::start(&home.join("data"), &without_fsync()).unwrap();
    let replaced = Scratch(first.folder().to_owned());
    assert!(!replaced.0.starts_with(&scratch.0));
    query(&first, "CREATE TABLE kept AS SELECT 7 AS value");
    first.stop().unwrap();
    let second = Postgres::start(&home.join("data"), &without_fsync()).unwrap();
    assert_eq!(second.folder(), replaced.0, "the same folder every time");
    assert_eq!(query(&second, "SELECT value FROM kept"), "7");
}

#[test]
fn a_failed_start_quotes_the_servers_log() {
    let scratch = Scratch::new();
    let postgres = Postgres::start(&scratch.0, &without_fsync()).unwrap();
    let configuration = scratch.0.join("data/postgresql.conf");
    postgres.stop().unwrap();
    std::fs::write(&configuration, "no_such_setting = 1\n").unwrap();
    let error = Postgres::start(&scratch.0, &without_fsync()).unwrap_err().to_string();
    assert!(error.contains("no_such_setting"), "{error}");
}

/// Not a test of its own: run by `the_environment_can_name_the_programs`.
#[test]
#[ignore = "started by another test"]
fn start_with_default_options() {
    Postgres::start(&Scratch::new().0, &without_fsync()).unwrap();
}

#[test]
fn the_environment_can_name_the_programs() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "dev::postgres::tests::start_with_default_options"])
        .env("PAYBRIDGE_POSTGRES_PROGRAMS", "/nonexistent/bin")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && printed.contains("/nonexistent/bin has no working `postgres`"), "{printed}");
}

const CHILD_FOLDER: &str = "PAYBRIDGE_TEST_POSTGRES_FOLDER";

/// Not a test of its own: the process that `a_server_stops_when_its_owner_is_killed` starts and kills.
#[test]
#[ignore = "started by another test"]
fn owner_that_is_killed() {
    let folder = std::env::var_os(CHILD_FOLDER).unwrap();
    let postgres = Postgres::start(Path::new(&folder), &without_fsync()).unwrap();
    std::fs::write(Path::new(&folder).join("owner-is-ready"), postgres.pid().to_string()).unwrap();
    loop {
        thread::park();
    }
}

#[test]
fn a_server_stops_when_its_owner_is_killed() {
    let scratch = Scratch::new();
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "dev::postgres::tests::owner_that_is_killed"])
        .env(CHILD_FOLDER, &scratch.0)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let note = scratch.0.join("owner-is-ready");
    let mut server = None;
    wait_until("the owner has a server", || {
        server = std::fs::read_to_string(&note).ok().and_then(|text| text.parse().ok()).and_then(Pid::from_raw);
        server.is_some()
    });
    owner.kill().unwrap();
    owner.wait().unwrap();
    // The next owner waits for the old server's shutdown and then gets the lock.
    let next = Postgres::start(&scratch.0, &without_fsync()).unwrap();
    assert_ne!(server, Some(next.server.pid));
    let log = std::fs::read_to_string(next.log_file()).unwrap();
    assert!(log.contains("fast shutdown request") && log.contains("database system is shut down"), "{log}");
}
