//! The start of a process whose database is away, is of another release, is not what it should be, or holds secrets that
//! were sealed with other keys.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use paybridge::dev::postgres::{self, Postgres};
use paybridge::dev::stage::Options;
use paybridge::dev::story::Player;
use tempfile::TempDir;
use tokio::net::TcpSocket;

use crate::hands::{superuser, until};
use crate::support::{Running, database, http, program, reserved_port, scenery};

/// Two encryption keys; they seal nothing of worth.
const KEY: &str = "cGF5YnJpZGdlLXN0YWdlLXNlYWxzLW5vLXNlY3JldHM=";
const OTHER_KEY: &str = "YW5vdGhlci1rZXktd2hpY2gtc2VhbHMtbm8tc2VjcmU=";

/// `paybridge serve`, with a log of its own.
struct Server {
    process: Running,
    http: String,
    folder: TempDir,
    /// Holds the port until the process listens.
    _reserved: TcpSocket,
}

fn serve_command(url: &str, keys: &str) -> Command {
    let mut command = Command::new(program());
    // What is set for the tests is no setting of the service's, and would be warned of.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PAYBRIDGE_")) {
        command.env_remove(name);
    }
    command
        .arg("serve")
        .env("DATABASE_URL", url)
        .env("PAYBRIDGE_ENCRYPTION_KEYS", keys)
        .env("PAYBRIDGE_DEFAULT_SUCCESS_URL", "https://shop.example/thanks")
        .env("PAYBRIDGE_PUBLIC_WEBHOOK_URL", "https://pay.example")
        .env("PAYBRIDGE_GRPC_LISTEN", "127.0.0.1:0")
        .stdin(Stdio::null());
    command
}

impl Server {
    fn start(url: &str, keys: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("paybridge-startup-").tempdir().expect("a temporary folder");
        let (reserved, http) = reserved_port();
        let log = std::fs::File::create(folder.path().join("log")).expect("a file");
        let process = serve_command(url, keys)
            .env("PAYBRIDGE_HTTP_LISTEN", http.to_string())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("it starts");
        Self { process: Running(process), http: format!("http://{http}"), folder, _reserved: reserved }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).expect("a log")
    }

    async fn status(&self, path: &str) -> Option<u16> {
        let answer = http().get(format!("{}{path}", self.http)).send().await;
        answer.ok().map(|answer| answer.status().as_u16())
    }

    async fn until_ready(&mut self) {
        until("it is ready", || async { (self.status("/readyz").await == Some(200)).then_some(()) }).await;
        assert!(self.process.0.try_wait().expect("a process").is_none(), "{}", self.log());
    }

    /// Waits until the log says what it waits for; until then it lives and is not ready.
    async fn until_waiting(&mut self, reason: &str) {
        until("it says why it waits", || async {
            self.log()
                .lines()
                .any(|line| line.contains("not ready, and waiting") && line.contains(reason))
                .then_some(())
        })
        .await;
        assert_eq!(self.status("/healthz").await, Some(200), "{}", self.log());
        assert_eq!(self.status("/readyz").await, Some(503), "{}", self.log());
    }

    /// How many lines of the log are warnings or worse.
    fn warnings(&self) -> Vec<String> {
        let is_bad = |line: &&str| line.contains("WARN") || line.contains("ERROR");
        self.log().lines().filter(is_bad).map(str::to_owned).collect()
    }
}

fn postgres_in(folder: &TempDir) -> Postgres {
    let options = postgres::Options { durable: false, ..postgres::Options::default() };
    Postgres::start(&folder.path().join("postgres"), &options).expect("Postgres starts")
}

/// Long enough for what looks once a second to look twice.
async fn two_more_looks() {
    let began = Instant::now();
    until("two more looks", || async { (began.elapsed() > Duration::from_secs(2)).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_waited_for_with_one_line() {
    let folder = tempfile::Builder::new().prefix("paybridge-away-").tempdir().expect("a temporary folder");
    let postgres = tokio::task::block_in_place(|| postgres_in(&folder));
    let url = postgres.connection_string("postgres");
    paybridge::store::migrate::run(&url).await.expect("it is migrated");
    tokio::task::block_in_place(|| postgres.stop()).expect("it stops");

    let mut server = Server::start(&url, &format!("k1:{KEY}"));
    server.until_waiting("the database can't be reached; check DATABASE_URL").await;
    two_more_looks().await;
    assert_eq!(server.warnings().len(), 1, "{}", server.log());
    let postgres = tokio::task::block_in_place(|| postgres_in(&folder));
    server.until_ready().await;

    // An outage while it runs is one line, too, with the place and the system's reason; and its end is one.
    let place = postgres.socket_file().parent().expect("a folder").display().to_string();
    tokio::task::block_in_place(|| postgres.stop()).expect("it stops");
    until("it is not ready", || async { (server.status("/readyz").await == Some(503)).then_some(()) }).await;
    two_more_looks().await;
    let warnings = server.warnings();
    assert_eq!(warnings.len(), 2, "{}", server.log());
    assert!(warnings[1].contains(&place) && warnings[1].contains("No such file or directory"), "{}", warnings[1]);
    let postgres = tokio::task::block_in_place(|| postgres_in(&folder));
    server.until_ready().await;
    assert_eq!(server.log().matches("ready: the database answers").count(), 2, "{}", server.log());
    drop(server);
    tokio::task::block_in_place(|| drop(postgres));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_schema_is_behind_waits_for_its_migrations() {
    let url = database().await;
    let client = superuser(&url).await;
    // As if the newest migration had not been run.
    let newest = client.query_one("SELECT max(version) FROM __diesel_schema_migrations", &[]).await.expect("a look");
    let newest: String = newest.get(0);
    let forget = format!("DELETE FROM __diesel_schema_migrations WHERE version = '{newest}'");
    client.batch_execute(&forget).await.expect("it is forgotten");

    let mut server = Server::start(&url, &format!("k1:{KEY}"));
    server.until_waiting("run `paybridge migrate`").await;
    assert!(server.log().contains(&newest), "{}", server.log());
    let id = "0190163d-8694-739b-aea5-966c26f8ad91";
    let webhook =
        http().post(format!("{}/webhooks/stripe/{id}/{id}", server.http)).header("stripe-signature", "t=1,v1=00");
    let answer = webhook.send().await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 503, "Stripe sends it again");
    let command =
        Command::new(program()).args(["token", "list", "--organization", id]).env("DATABASE_URL", &url).output();
    assert!(said(&command.expect("it runs")).contains("run `paybridge migrate`"));
    let run = format!("INSERT INTO __diesel_schema_migrations (version) VALUES ('{newest}')");
    client.batch_execute(&run).await.expect("it is run");
    server.until_ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_works_with_a_newer_schema_unless_that_says_otherwise() {
    let url = database().await;
    let client = superuser(&url).await;
    let newer = "INSERT INTO __diesel_schema_migrations (version) VALUES ('99990101000001')";
    client.batch_execute(newer).await.expect("a newer release migrates");
    Server::start(&url, &format!("k1:{KEY}")).until_ready().await;

    let minimum = client.query_one("SELECT version FROM schema_minimum", &[]).await.expect("one row");
    let minimum: String = minimum.get(0);
    client.batch_execute("UPDATE schema_minimum SET version = '99990101000001'").await.expect("it contracts");
    let mut server = Server::start(&url, &format!("k1:{KEY}"));
    server.until_waiting("run a newer release").await;
    assert!(server.log().contains("99990101000001"), "{}", server.log());
    client.execute("UPDATE schema_minimum SET version = $1", &[&minimum]).await.expect("back again");
    server.until_ready().await;
}

/// What a process that ends by itself has said.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Checks that `serve` ends as a failure, and says all of `words` but nothing of a key.
fn refuses(url: &str, keys: &str, words: &[&str]) {
    let output = serve_command(url, keys).env("PAYBRIDGE_HTTP_LISTEN", "127.0.0.1:0").output().expect("it runs");
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    assert!(!text.contains(KEY) && !text.contains(OTHER_KEY), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_a_wrong_encryption_key_is_found_at_the_start() {
    let url = database().await;
    Server::start(&url, &format!("k1:{KEY}")).until_ready().await;
    // Before anything is sealed.
    refuses(&url, &format!("k1:{OTHER_KEY}"), &["the key `k1`", "an id of its own"]);
    // A ring that is refused leaves no trace.
    refuses(&url, &format!("k2:{KEY},k1:{OTHER_KEY}"), &["the key `k1`"]);
    let client = superuser(&url).await;
    let keys = client.query("SELECT key_id FROM encryption_keys", &[]).await.expect("a look");
    assert_eq!(keys.iter().map(|row| row.get::<_, &str>(0)).collect::<Vec<_>>(), ["k1"]);
    // One that sealed nothing may go, and comes back as it was.
    Server::start(&url, &format!("k2:{OTHER_KEY}")).until_ready().await;
    Server::start(&url, &format!("k2:{OTHER_KEY},k1:{KEY}")).until_ready().await;
    refuses(&url, &format!("k2:{KEY}"), &["the key `k2`"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_a_key_that_secrets_are_sealed_with_must_be_there() {
    let scenery = scenery(Options::default()).await;
    Player::connected(&scenery, "keys").await.expect("Stripe is connected");
    let url = &scenery.stage.database_url;
    refuses(url, &format!("k2:{OTHER_KEY}"), &["lacks the key `stage`", "put it back"]);
    // As after an upgrade from a release that noted no keys.
    superuser(url).await.batch_execute("DELETE FROM encryption_keys").await.expect("they are forgotten");
    refuses(url, &format!("stage:{OTHER_KEY}"), &["the key `stage`", "put that one back"]);
    Server::start(url, &format!("k2:{OTHER_KEY},stage:{KEY}")).until_ready().await;
    scenery.stage.strike().await;
}

/// A server that lets everybody in, says which version it is of, and then waits. It answers nothing else. Returns what it
/// was sent after the login.
fn old_postgres(version: &'static str) -> (SocketAddr, std::thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    let serving = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let mut length = [0; 4];
        client.read_exact(&mut length).expect("a startup message");
        let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
        client.read_exact(&mut startup).expect("a startup message");
        let mut answer = b"R\0\0\0\x08\0\0\0\0".to_vec();
        let parameter = format!("server_version\0{version}\0");
        answer.push(b'S');
        answer.extend(u32::try_from(parameter.len() + 4).expect("a short text").to_be_bytes());
        answer.extend(parameter.bytes());
        answer.extend(b"Z\0\0\0\x05I");
        client.write_all(&answer).expect("an answer");
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
        rest
    });
    (address, serving)
}

#[test]
fn a_server_that_is_too_old_is_refused_before_anything_is_sent_to_it() {
    for arguments in [&["migrate"][..], &["organization", "list"]] {
        let (address, serving) = old_postgres("14.9 (Debian 14.9-1.pgdg120+1)");
        let url = format!("postgresql://paybridge@{address}/paybridge?sslmode=disable");
        let output = Command::new(program()).args(arguments).env("DATABASE_URL", url).output().expect("it runs");
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("leads to Postgres 14.9") && text.contains("15 or newer"), "{text}");
        let sent = serving.join().expect("no panic");
        assert!(sent.is_empty() || sent == b"X\0\0\0\x04", "nothing but the end: {sent:?}");
    }
}

#[test]
fn a_server_that_accepts_and_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    let url = format!("postgresql://paybridge@{address}/paybridge?sslmode=disable&connect_timeout=1");
    let output = Command::new(program()).arg("migrate").env("DATABASE_URL", url).output().expect("it runs");
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("can't be reached") && text.contains("has not answered within 11s"), "{text}");
    drop(listener);
}
