//! TLS to Postgres, as libpq defines it, with a server that accepts only TLS: what each `sslmode` accepts, what an
//! error says, and that every connection of a service is encrypted.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use paybridge::clock::Clock;
use paybridge::dev::postgres::{self, Postgres};
use paybridge::dev::test_environment::{Options, TestEnvironment};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio_postgres::Client;

use crate::support::sql::superuser;
use crate::support::wait::until;
use crate::support::{program, reserved_port};

const PASSWORD: &str = "choose-one";
const ONLY_TLS: &str = "hostssl all all 127.0.0.1/32 scram-sha-256";

/// A CA.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, both PEM.
struct Certificate {
    chain: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("a CA has no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate whose subject is `name`, and for a host of that name.
    fn sign(&self, name: &str) -> Certificate {
        self.sign_until(name, 2099)
    }

    fn sign_until(&self, name: &str, year: i32) -> Certificate {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(year, 1, 1));
        let chain = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Certificate { chain, key: key.serialize_pem() }
    }
}

/// A server on a loopback port, with the login and the empty database of docs/operations.md, and a folder for the files
/// of its clients.
struct Server {
    postgres: Postgres,
    port: u16,
    superuser: Client,
    folder: tempfile::TempDir,
    ca: Authority,
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("paybridge-tls-").tempdir().expect("a temporary folder");
        let (_reserved, address) = reserved_port();
        let port = address.port();
        let options = postgres::Options { durable: false, tcp_port: Some(port), ..postgres::Options::default() };
        let place = folder.path().join("postgres");
        let start = move || Postgres::start(&place, &options).expect("Postgres starts");
        let postgres = tokio::task::spawn_blocking(start).await.expect("Postgres starts");
        let superuser = superuser(&postgres.connection_string("postgres")).await;
        let login = format!("CREATE ROLE paybridge LOGIN CREATEROLE PASSWORD '{PASSWORD}'");
        superuser.batch_execute(&login).await.expect("a role");
        superuser.batch_execute("CREATE DATABASE paybridge OWNER paybridge").await.expect("a database");
        let ca = Authority::new("The CA of the database");
        let server = Self { postgres, port, superuser, folder, ca };
        server.file("ca.pem", &server.ca.pem);
        server.file("other-ca.pem", &Authority::new("Another CA").pem);
        server.configure(Some(&server.ca.sign("localhost")), ONLY_TLS).await;
        server
    }

    /// Configures the server to present `certificate`, or to speak no TLS, and to admit TCP connections by `rule`.
    async fn configure(&self, certificate: Option<&Certificate>, rule: &str) {
        static MARKS: AtomicUsize = AtomicUsize::new(0);
        if let Some(certificate) = certificate {
            self.server_file("server.crt", &certificate.chain);
            self.server_file("server.key", &certificate.key);
            self.server_file("clients.pem", &self.ca.pem);
        }
        self.server_file("pg_hba.conf", &format!("local all postgres trust\n{rule}\n"));
        let ssl = if certificate.is_some() { "on" } else { "off" };
        // A new session shows the mark once the server has reloaded its settings.
        let mark = format!("settings {} ", MARKS.fetch_add(1, Ordering::Relaxed));
        for setting in
            [format!("ssl = {ssl}"), "ssl_ca_file = 'clients.pem'".to_owned(), format!("log_line_prefix = '{mark}'")]
        {
            self.superuser.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await.expect("a setting");
        }
        self.superuser.batch_execute("SELECT pg_reload_conf()").await.expect("a signal");
        until("the server has reloaded its settings", async || {
            let session = superuser(&self.postgres.connection_string("postgres")).await;
            let row = session.query_one("SHOW log_line_prefix", &[]).await.expect("a setting");
            (row.get::<_, &str>(0) == mark).then_some(())
        })
        .await;
    }

    /// Writes a file that only the server may read.
    fn server_file(&self, name: &str, text: &str) {
        let data = self.postgres.folder().join("data");
        let owner = std::fs::metadata(&data).expect("a data folder");
        write_private(&data.join(name), text);
        chown(data.join(name), Some(owner.uid()), Some(owner.gid())).expect("the owner is changed");
    }

    /// Writes a file for clients.
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        write_private(&path, text);
        path
    }

    /// The connection string with these parameters, in which `{}` stands for the folder with the clients' files.
    fn url(&self, host: &str, parameters: &str) -> String {
        let parameters = parameters.replace("{}", &self.folder.path().display().to_string());
        format!("postgresql://paybridge:{PASSWORD}@{host}:{}/paybridge?{parameters}", self.port)
    }
}

/// Checks that a command can connect.
fn assert_admitted(url: &str) {
    let (succeeded, _, output) = run(&["organization", "list"], url);
    assert!(succeeded, "{url}: {output}");
}

/// Checks that a command cannot connect, with an error that contains all of `words`.
fn assert_refused(url: &str, words: &[&str]) {
    let (succeeded, _, output) = run(&["organization", "list"], url);
    assert!(!succeeded, "{url} is not refused");
    for word in words {
        assert!(output.contains(word), "`{word}` is not in the error for {url}: {output}");
    }
    assert!(!output.contains(PASSWORD), "the error contains the password: {output}");
}

fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("the mode is set");
}

/// Whether a command succeeded, its output, and its errors.
fn run(arguments: &[&str], url: &str) -> (bool, String, String) {
    let output = Command::new(program()).args(arguments).env("DATABASE_URL", url).output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_connections_of_a_service_use_tls() {
    let server = Server::start().await;
    let url = server.url("localhost", "sslmode=verify-full&sslrootcert={}/ca.pem&channel_binding=require");
    let (migrated, output, error) = run(&["migrate"], &url);
    assert!(migrated && output.contains("The schema is up to date"), "{output} {error}");
    let (created, organization, error) = run(&["organization", "create", "Hooli"], &url);
    assert!(created, "{error}");
    let (created, token, error) = run(&["token", "create", "--name=me", "--organization", &organization], &url);
    assert!(created && !token.is_empty(), "{error}");

    let options = Options { program: Some(program()), ..Options::default() };
    let environment = TestEnvironment::start(url, Clock::system(), options).await.expect("the process becomes ready");
    let connections = "SELECT a.query LIKE 'LISTEN%' OR a.query LIKE '%pg_notify%', s.ssl \
        FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) WHERE a.usename = 'paybridge'";
    until("the connection for LISTEN is there", async || {
        let rows = server.superuser.query(connections, &[]).await.unwrap();
        assert!(rows.iter().all(|row| row.get(1)), "each is encrypted");
        (rows.len() > 1 && rows.iter().any(|row| row.get(0))).then_some(())
    })
    .await;
    environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_certificate_is_verified_as_sslmode_says() {
    let server = Server::start().await;
    let local = |parameters: &str| server.url("localhost", parameters);
    // The certificate is for `localhost`, not for the address.
    let by_address = |parameters: &str| server.url("127.0.0.1", parameters);
    let (migrated, _, error) = run(&["migrate"], &local("sslmode=require"));
    assert!(migrated, "{error}");

    assert_admitted(&local(""));
    assert_admitted(&local("sslmode=prefer"));
    assert_admitted(&local("sslmode=require&channel_binding=require"));
    assert_admitted(&local("sslmode=require&sslrootcert={}/ca.pem"));
    assert_admitted(&by_address("sslmode=require&sslrootcert={}/ca.pem"));
    assert_admitted(&by_address("sslmode=verify-ca&sslrootcert={}/ca.pem"));
    assert_admitted(&local("sslmode=verify-full&sslrootcert={}%2Fca.pem"));
    let folder = server.folder.path().display();
    let pairs = |host: &str| {
        format!(
            "host={host} hostaddr=127.0.0.1 port={} user=paybridge password={PASSWORD} dbname=paybridge \
             sslmode = 'verify-full' sslrootcert='{folder}/ca.pem'",
            server.port
        )
    };
    assert_admitted(&pairs("localhost"));

    let wrong_host = ["not for `db.example.com`", "localhost", "verify-ca"];
    assert_refused(&pairs("db.example.com"), &wrong_host);
    assert_refused(&by_address("sslmode=verify-full&sslrootcert={}/ca.pem"), &["not for `127.0.0.1`", "localhost"]);
    for mode in ["require", "verify-ca", "verify-full"] {
        let wrong_ca = local(&format!("sslmode={mode}&sslrootcert={{}}/other-ca.pem"));
        assert_refused(&wrong_ca, &["no CA in", "other-ca.pem", "sslrootcert", "UnknownIssuer"]);
    }
    assert_refused(&local("sslrootcert=system"), &["no CA", "system", "sslrootcert"]);
    assert_refused(&local("sslmode=disable"), &["no pg_hba.conf entry", "sslmode=disable", "accepts only TLS"]);

    let expired = server.ca.sign_until("localhost", 2021);
    server.configure(Some(&expired), ONLY_TLS).await;
    for mode in ["require", "verify-ca", "verify-full"] {
        let verified = local(&format!("sslmode={mode}&sslrootcert={{}}/ca.pem"));
        assert_refused(&verified, &["the server's certificate has expired", "2021-01-01", "clock"]);
    }
    assert_admitted(&local("sslmode=require"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_is_presented_to_a_server_that_requires_one() {
    let server = Server::start().await;
    let known = server.ca.sign("paybridge");
    let foreign = Authority::new("Another CA").sign("paybridge");
    for (name, certificate) in [("client", &known), ("foreign", &foreign)] {
        server.file(&format!("{name}.crt"), &certificate.chain);
        server.file(&format!("{name}.key"), &certificate.key);
    }
    let url = |more: &str| server.url("localhost", &format!("sslmode=verify-full&sslrootcert={{}}/ca.pem{more}"));
    let with_client = url("&sslcert={}/client.crt&sslkey={}/client.key");
    let localhost = server.ca.sign("localhost");
    server.configure(Some(&localhost), "hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-full").await;
    let (migrated, _, error) = run(&["migrate"], &with_client);
    assert!(migrated, "{error}");
    assert_admitted(&with_client);
    assert_refused(&url(""), &["client certificate", "sslcert and sslkey"]);
    assert_refused(&url("&sslcert={}/foreign.crt&sslkey={}/foreign.key"), &["client certificate", "ssl_ca_file"]);

    server.configure(Some(&localhost), "hostssl all all 127.0.0.1/32 cert").await;
    assert_admitted(&with_client);
    // Unusable files are detected before anything is sent.
    server.file("client.crt", &known.key);
    assert_refused(&with_client, &["client.crt", "sslcert", "no certificate"]);
    server.file("client.crt", &foreign.chain);
    assert_refused(&with_client, &["client.key", "sslkey", "does not belong"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_is_accepted_unless_tls_is_required() {
    let server = Server::start().await;
    server.configure(None, "host all all 127.0.0.1/32 scram-sha-256").await;
    let (migrated, _, error) = run(&["migrate"], &server.url("localhost", "sslmode=disable"));
    assert!(migrated, "{error}");
    assert_admitted(&server.url("localhost", "sslmode=prefer"));
    assert_admitted(&server.url("localhost", ""));
    for mode in ["require", "verify-ca&sslrootcert={}/ca.pem", "verify-full&sslrootcert={}/ca.pem"] {
        let url = server.url("localhost", &format!("sslmode={mode}"));
        assert_refused(&url, &["the server does not support TLS", "sslmode"]);
    }

    // A server with TLS that admits this login only without it: `prefer` falls back, as in libpq.
    server.configure(Some(&server.ca.sign("localhost")), "hostnossl all all 127.0.0.1/32 scram-sha-256").await;
    assert_admitted(&server.url("localhost", ""));
    assert_refused(&server.url("localhost", "sslmode=require"), &["no pg_hba.conf entry"]);

    // A Unix socket never uses TLS, with any `sslmode`.
    let socket = server.postgres.socket_file();
    let folder = socket.parent().unwrap().display();
    let files = server.folder.path().display();
    let address = format!(
        "host={folder} port={} user=postgres dbname=paybridge sslmode=verify-full sslrootcert={files}/ca.pem",
        server.port
    );
    assert_admitted(&address);
}
