//! The start of a process whose database is unavailable, has the schema of another release, is too old, belongs to
//! another installation, was copied, or holds secrets that were sealed with other keys.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use paybridge::clock::pause;
use paybridge::dev::postgres::{Options as PostgresOptions, Postgres};
use paybridge::dev::scenarios::BillingClient;
use paybridge::dev::test_environment::Options;
use paybridge::store::Pool;
use tempfile::TempDir;
use tokio::net::TcpSocket;

use crate::support::sql::{insert_integrations, superuser};
use crate::support::wait::{until, until_ok};
use crate::support::{KillOnDrop, context, database, http, postgres, program, reserved_port};

/// Two encryption keys. The first is that of the test environment.
const KEY: &str = "cGF5YnJpZGdlLWRldi1zZWFscy10ZXN0LXNlY3JldHM=";
const OTHER_KEY: &str = "YW5vdGhlci1rZXktd2hpY2gtc2VhbHMtbm8tc2VjcmU=";

/// A `paybridge serve` process with a log file.
struct Server {
    process: KillOnDrop,
    http: String,
    folder: TempDir,
    /// Holds the port until the process listens.
    _reserved: TcpSocket,
}

fn serve_command(url: &str, keys: &str) -> Command {
    let mut command = Command::new(program());
    // The suite's own PAYBRIDGE_ variables are no settings of the service, which would warn about them.
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
        Self { process: KillOnDrop(process), http: format!("http://{http}"), folder, _reserved: reserved }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).expect("a log")
    }

    async fn status(&self, path: &str) -> Option<u16> {
        let response = http().get(format!("{}{path}", self.http)).send().await;
        response.ok().map(|response| response.status().as_u16())
    }

    async fn until_ready(&mut self) {
        until("it is ready", async || (self.status("/readyz").await == Some(200)).then_some(())).await;
        assert!(self.process.0.try_wait().expect("a process").is_none(), "{}", self.log());
    }

    /// Waits until the log says why the process waits, and checks that it is alive and not ready.
    async fn until_waiting(&mut self, reason: &str) {
        until("the log says why it waits", async || {
            self.log()
                .lines()
                .any(|line| line.contains("not ready: waiting for the database") && line.contains(reason))
                .then_some(())
        })
        .await;
        assert_eq!(self.status("/healthz").await, Some(200), "{}", self.log());
        assert_eq!(self.status("/readyz").await, Some(503), "{}", self.log());
    }

    /// The warnings and errors in the log.
    fn warnings(&self) -> Vec<String> {
        let is_bad = |line: &&str| line.contains("WARN") || line.contains("ERROR");
        self.log().lines().filter(is_bad).map(str::to_owned).collect()
    }
}

fn postgres_in(folder: &TempDir) -> Postgres {
    let options = PostgresOptions { durable: false, ..PostgresOptions::default() };
    Postgres::start(&folder.path().join("postgres"), &options).expect("Postgres starts")
}

/// Waits for two more checks of the database, one a second. That no line follows can only be waited for.
async fn two_more_checks() {
    pause(Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_waits_for_an_unavailable_database_and_logs_one_line() {
    let folder = tempfile::Builder::new().prefix("paybridge-outage-").tempdir().expect("a temporary folder");
    let postgres = tokio::task::block_in_place(|| postgres_in(&folder));
    let url = postgres.connection_string("postgres");
    paybridge::store::migrate::run(&url, "paybridge").await.expect("it is migrated");
    tokio::task::block_in_place(|| postgres.stop()).expect("it stops");

    let mut server = Server::start(&url, &format!("k1:{KEY}"));
    server.until_waiting("the database cannot be reached; check DATABASE_URL").await;
    two_more_checks().await;
    assert_eq!(server.warnings().len(), 1, "{}", server.log());
    let postgres = tokio::task::block_in_place(|| postgres_in(&folder));
    server.until_ready().await;
    // A check that met Postgres while it started has logged that reason as well.
    let logged = server.warnings().len();

    // A later outage is also one line, with the socket's folder and the reason of the system. Its end is one line.
    let socket_folder = postgres.socket_file().parent().expect("a folder").display().to_string();
    tokio::task::block_in_place(|| postgres.stop()).expect("it stops");
    until("it is not ready", async || (server.status("/readyz").await == Some(503)).then_some(())).await;
    two_more_checks().await;
    let warnings = server.warnings();
    assert_eq!(warnings.len(), logged + 1, "{}", server.log());
    let outage = &warnings[logged];
    assert!(outage.contains(&socket_folder) && outage.contains("No such file or directory"), "{outage}");
    let postgres = tokio::task::block_in_place(|| postgres_in(&folder));
    server.until_ready().await;
    assert_eq!(server.log().matches("ready: the database is available").count(), 2, "{}", server.log());
    drop(server);
    tokio::task::block_in_place(|| drop(postgres));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_schema_is_behind_waits_for_its_migrations() {
    let url = database().await;
    let client = superuser(&url).await;
    // As if the newest migration had not run.
    let newest = client.query_one("SELECT max(version) FROM __diesel_schema_migrations", &[]).await.expect("a result");
    let newest: String = newest.get(0);
    let forget = format!("DELETE FROM __diesel_schema_migrations WHERE version = '{newest}'");
    client.batch_execute(&forget).await.expect("it is deleted");

    let mut server = Server::start(&url, &format!("k1:{KEY}"));
    server.until_waiting("run `paybridge migrate`").await;
    assert!(server.log().contains(&newest), "{}", server.log());
    let id = "0190163d-8694-739b-aea5-966c26f8ad91";
    let webhook =
        http().post(format!("{}/webhooks/stripe/{id}/{id}", server.http)).header("stripe-signature", "t=1,v1=00");
    let response = webhook.send().await.expect("a response");
    assert_eq!(response.status().as_u16(), 503, "Stripe retries it");
    let command =
        Command::new(program()).args(["token", "list", "--organization", id]).env("DATABASE_URL", &url).output();
    assert!(text_of(&command.expect("it runs")).contains("run `paybridge migrate`"));
    let run = format!("INSERT INTO __diesel_schema_migrations (version) VALUES ('{newest}')");
    client.batch_execute(&run).await.expect("it is run");
    server.until_ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_works_with_a_newer_schema_unless_that_requires_a_newer_release() {
    let url = database().await;
    let client = superuser(&url).await;
    let newer = "INSERT INTO __diesel_schema_migrations (version) VALUES ('99990101000001')";
    client.batch_execute(newer).await.expect("a newer release migrates");
    Server::start(&url, &format!("k1:{KEY}")).until_ready().await;

    let minimum = client.query_one("SELECT version FROM schema_minimum", &[]).await.expect("one row");
    let minimum: String = minimum.get(0);
    client.batch_execute("UPDATE schema_minimum SET version = '99990101000001'").await.expect("the minimum is raised");
    let mut server = Server::start(&url, &format!("k1:{KEY}"));
    server.until_waiting("run a newer release").await;
    assert!(server.log().contains("99990101000001"), "{}", server.log());
    client.execute("UPDATE schema_minimum SET version = $1", &[&minimum]).await.expect("the minimum is restored");
    server.until_ready().await;
}

/// The output of a process.
fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Checks that `serve` fails, and that its output has all of `words` and no key.
fn assert_refused(url: &str, keys: &str, words: &[&str]) {
    let output = serve_command(url, keys).env("PAYBRIDGE_HTTP_LISTEN", "127.0.0.1:0").output().expect("it runs");
    let text = text_of(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    assert!(!text.contains(KEY) && !text.contains(OTHER_KEY), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_a_wrong_encryption_key_is_detected_at_startup() {
    let url = database().await;
    Server::start(&url, &format!("k1:{KEY}")).until_ready().await;
    // Before anything is sealed.
    assert_refused(&url, &format!("k1:{OTHER_KEY}"), &["the key `k1`", "an id of its own"]);
    // Refused keys are not stored.
    assert_refused(&url, &format!("k2:{KEY},k1:{OTHER_KEY}"), &["the key `k1`"]);
    let client = superuser(&url).await;
    let keys = client.query("SELECT key_id FROM encryption_keys", &[]).await.expect("a result");
    assert_eq!(keys.iter().map(|row| row.get::<_, &str>(0)).collect::<Vec<_>>(), ["k1"]);
    // A key that sealed nothing can be removed, and added again unchanged.
    Server::start(&url, &format!("k2:{OTHER_KEY}")).until_ready().await;
    Server::start(&url, &format!("k2:{OTHER_KEY},k1:{KEY}")).until_ready().await;
    assert_refused(&url, &format!("k2:{KEY}"), &["the key `k2`"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_a_key_that_seals_secrets_is_required_at_startup() {
    let context = context(Options::default()).await;
    BillingClient::connected(&context, "keys").await.expect("Stripe is connected");
    let url = &context.environment.database_url;
    assert_refused(url, &format!("k2:{OTHER_KEY}"), &["lacks the key `dev`", "put it back"]);
    // As after an upgrade from a release that stored no keys.
    superuser(url).await.batch_execute("DELETE FROM encryption_keys").await.expect("they are deleted");
    assert_refused(url, &format!("dev:{OTHER_KEY}"), &["the key `dev`", "put the old key back"]);
    Server::start(url, &format!("k2:{OTHER_KEY},dev:{KEY}")).until_ready().await;
    context.environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_of_another_installation_is_refused_before_anything_is_changed() {
    let url = database().await;
    let keys = format!("k1:{KEY}");
    let mut serve = serve_command(&url, &keys);
    let mut worker = Command::new(program());
    worker.arg("worker").envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut migrate = Command::new(program());
    migrate.arg("migrate").env("DATABASE_URL", &url);
    for command in [&mut serve, &mut worker, &mut migrate] {
        command.env("PAYBRIDGE_INSTALLATION", "staging").env("PAYBRIDGE_HTTP_LISTEN", "127.0.0.1:0");
        let output = command.output().expect("it runs");
        let text = text_of(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        for word in [
            "belongs to the installation `paybridge`, but this process was started for `staging`",
            "--installation",
            "paybridge adopt --installation staging",
        ] {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
    }
    let client = superuser(&url).await;
    assert!(client.query("SELECT FROM encryption_keys", &[]).await.expect("a result").is_empty());
    Server::start(&url, &keys).until_ready().await;
}

/// What changes with the place of a database that has one organization.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    incarnation: String,
    log_id: String,
    /// Why each integration catches up, and its stage; those of the disconnected ones are last.
    catching_up: Vec<Option<String>>,
    /// The kind of each job, the epoch of its lease, whether it is leased, and whether it is due.
    jobs: Vec<(String, i64, bool, bool)>,
}

async fn identity(url: &str) -> Identity {
    let client = superuser(url).await;
    let sql = "SELECT incarnation::text, log_id::text FROM installation, event_heads";
    let row = client.query_one(sql, &[]).await.expect("one installation with one organization");
    let sql = "SELECT catch_up_reason || ' ' || stage FROM stripe_contacts JOIN integrations ON id = integration_id \
        ORDER BY state";
    let contacts = client.query(sql, &[]).await.expect("contacts");
    let sql = "SELECT kind, lease_epoch, lease_until IS NOT NULL, due FROM jobs ORDER BY kind";
    let jobs = client.query(sql, &[]).await.expect("jobs");
    Identity {
        incarnation: row.get(0),
        log_id: row.get(1),
        catching_up: contacts.iter().map(|row| row.get(0)).collect(),
        jobs: jobs.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect(),
    }
}

/// P8: the database was copied, and the copy took its name, as after a restore into a new database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_copy_that_takes_the_place_of_a_database_is_noticed_on_a_new_connection() {
    let url = database().await;
    insert_integrations(&superuser(&url).await).await;
    let before = identity(&url).await;
    let connect = async || Pool::new(&url, 1).expect("a pool").ping().await.expect("a connection");
    connect().await;
    assert_eq!(identity(&url).await, before, "a new connection alone changes nothing");
    assert_eq!(before.catching_up, [None::<String>, None]);
    assert_eq!(before.jobs, [("poll_events".to_owned(), 7, true, false)]);

    let client = superuser(&url).await;
    let name: String = client.query_one("SELECT current_database()::text", &[]).await.expect("a name").get(0);
    drop(client);
    let admin = superuser(&postgres().connection_string("postgres")).await;
    // Neither statement is possible while a connection to the database is being closed.
    for sql in [
        format!("ALTER DATABASE {name} RENAME TO {name}_old"),
        format!("CREATE DATABASE {name} OWNER paybridge TEMPLATE {name}_old"),
    ] {
        until_ok("the database has no connection", async || {
            admin.batch_execute(&sql).await.map_err(|error| error.to_string())
        })
        .await;
    }
    assert_eq!(identity(&url).await, before, "it is a copy");
    connect().await;
    let after = identity(&url).await;
    assert!(after.incarnation != before.incarnation && after.log_id != before.log_id, "{after:?}");
    assert_eq!(after.catching_up, [Some("database_changed other_copies".to_owned()), None]);
    let [(kind, 0, false, true), (lost, epoch, false, false)] = &after.jobs[..] else { panic!("{after:?}") };
    assert_eq!((kind.as_str(), lost.as_str()), ("catch_up", "poll_events"));
    assert!(*epoch >= 1_000_007, "nobody who leased it before holds the lease: {epoch}");
    connect().await;
    assert_eq!(identity(&url).await, after, "it is noticed once");
}

/// P8: a restore into the same database creates the tables anew. Open connections survive that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_restore_in_place_is_noticed_on_open_connections() {
    let url = database().await;
    let client = superuser(&url).await;
    insert_integrations(&client).await;
    let pool = Pool::new(&url, 1).expect("a pool");
    pool.ping().await.expect("a connection");
    let before = identity(&url).await;
    let restore = "BEGIN; ALTER TABLE installation RENAME TO before; \
        CREATE TABLE installation (LIKE before INCLUDING DEFAULTS); INSERT INTO installation SELECT * FROM before; \
        DROP TABLE before; ALTER TABLE installation OWNER TO paybridge_owner; \
        GRANT SELECT ON installation TO paybridge_system; COMMIT";
    client.batch_execute(restore).await.expect("the table is created anew");
    pool.ping().await.expect("a connection");
    let after = identity(&url).await;
    assert!(after.incarnation != before.incarnation && after.log_id != before.log_id, "{after:?}");
    assert_eq!(after.catching_up, [Some("database_changed other_copies".to_owned()), None]);
    pool.ping().await.expect("a connection");
    assert_eq!(identity(&url).await, after, "it is noticed once");
}

/// A server that accepts every login and reports its version, and nothing else. Returns what it was sent after the
/// login.
fn old_postgres(version: &'static str) -> (SocketAddr, std::thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    let serving = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let mut length = [0; 4];
        client.read_exact(&mut length).expect("a startup message");
        let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
        client.read_exact(&mut startup).expect("a startup message");
        let mut response = b"R\0\0\0\x08\0\0\0\0".to_vec();
        let parameter = format!("server_version\0{version}\0");
        response.push(b'S');
        response.extend(u32::try_from(parameter.len() + 4).expect("a short text").to_be_bytes());
        response.extend(parameter.bytes());
        response.extend(b"Z\0\0\0\x05I");
        client.write_all(&response).expect("a response");
        let mut received = Vec::new();
        let _ = client.read_to_end(&mut received);
        received
    });
    (address, serving)
}

#[test]
fn a_server_that_is_too_old_is_refused_before_anything_is_sent_to_it() {
    for arguments in [&["migrate"][..], &["organization", "list"]] {
        let (address, serving) = old_postgres("14.9 (Debian 14.9-1.pgdg120+1)");
        let url = format!("postgresql://paybridge@{address}/paybridge?sslmode=disable");
        let output = Command::new(program()).args(arguments).env("DATABASE_URL", url).output().expect("it runs");
        let text = text_of(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("leads to Postgres 14.9") && text.contains("15 or newer"), "{text}");
        let sent = serving.join().expect("no panic");
        assert!(sent.is_empty() || sent == b"X\0\0\0\x04", "only a termination: {sent:?}");
    }
}

#[test]
fn a_silent_server_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    let url = format!("postgresql://paybridge@{address}/paybridge?sslmode=disable&connect_timeout=1");
    let output = Command::new(program()).arg("migrate").env("DATABASE_URL", url).output().expect("it runs");
    let text = text_of(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("cannot be reached") && text.contains("has not answered within 11s"), "{text}");
    drop(listener);
}
