//! TLS to Postgres, with libpq's meanings, held against a real server that accepts nothing else: who is let in by which
//! `sslmode`, what a refusal says, and that every connection of a service is encrypted.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use paybridge::clock::Clock;
use paybridge::dev::postgres::{self, Postgres};
use paybridge::dev::stage::{Options, Stage};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio_postgres::Client;

use crate::hands::{superuser, until};
use crate::support::{program, reserved_port};

const PASSWORD: &str = "choose-one";
const ONLY_TLS: &str = "hostssl all all 127.0.0.1/32 scram-sha-256";

/// A CA, which signs certificates that are valid for years.
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

/// A server on a port of the loopback, with the login and the empty database of the README, and the files of its clients.
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
        server.serve(Some(&server.ca.sign("localhost")), ONLY_TLS).await;
        server
    }

    /// Has the server present `certificate`, or speak no TLS, and let those in over TCP whom `rule` admits.
    async fn serve(&self, certificate: Option<&Certificate>, rule: &str) {
        static MARKS: AtomicUsize = AtomicUsize::new(0);
        if let Some(certificate) = certificate {
            self.server_file("server.crt", &certificate.chain);
            self.server_file("server.key", &certificate.key);
            self.server_file("clients.pem", &self.ca.pem);
        }
        self.server_file("pg_hba.conf", &format!("local all postgres trust\n{rule}\n"));
        let ssl = if certificate.is_some() { "on" } else { "off" };
        // A new session shows the mark once the server has read all of it.
        let mark = format!("settings {} ", MARKS.fetch_add(1, Ordering::Relaxed));
        for setting in
            [format!("ssl = {ssl}"), "ssl_ca_file = 'clients.pem'".to_owned(), format!("log_line_prefix = '{mark}'")]
        {
            self.superuser.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await.expect("a setting");
        }
        self.superuser.batch_execute("SELECT pg_reload_conf()").await.expect("a signal");
        until("the server has read its settings", || async {
            let newcomer = superuser(&self.postgres.connection_string("postgres")).await;
            let row = newcomer.query_one("SHOW log_line_prefix", &[]).await.expect("a setting");
            (row.get::<_, &str>(0) == mark).then_some(())
        })
        .await;
    }

    /// Writes a file that the server alone may read.
    fn server_file(&self, name: &str, text: &str) {
        let data = self.postgres.folder().join("data");
        let owner = std::fs::metadata(&data).expect("a data folder");
        write_private(&data.join(name), text);
        chown(data.join(name), Some(owner.uid()), Some(owner.gid())).expect("the owner may give it away");
    }

    /// Writes a file for clients.
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        write_private(&path, text);
        path
    }

    /// The address with these parameters; `{}` in them stands for the folder of the clients' files.
    fn url(&self, host: &str, parameters: &str) -> String {
        let parameters = parameters.replace("{}", &self.folder.path().display().to_string());
        format!("postgresql://paybridge:{PASSWORD}@{host}:{}/paybridge?{parameters}", self.port)
    }
}

/// Checks that a command gets in.
fn admits(url: &str) {
    let (succeeded, _, said) = run(&["organization", "list"], url);
    assert!(succeeded, "{url}: {said}");
}

/// Checks that a command is refused, with a reason that holds all of `words`.
fn refuses(url: &str, words: &[&str]) {
    let (succeeded, _, said) = run(&["organization", "list"], url);
    assert!(!succeeded, "{url} was to be refused");
    for word in words {
        assert!(said.contains(word), "`{word}` is not in the reason for {url}: {said}");
    }
    assert!(!said.contains(PASSWORD), "no secrets: {said}");
}

fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("a file of ours");
}

/// Whether a command succeeded, and what it printed.
fn run(arguments: &[&str], url: &str) -> (bool, String, String) {
    let output = Command::new(program()).args(arguments).env("DATABASE_URL", url).output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_needs_nothing_but_tls_and_all_its_connections_have_it() {
    let server = Server::start().await;
    let url = server.url("localhost", "sslmode=verify-full&sslrootcert={}/ca.pem&channel_binding=require");
    let (migrated, said, error) = run(&["migrate"], &url);
    assert!(migrated && said.contains("The schema is up to date"), "{said} {error}");
    let (created, organization, error) = run(&["organization", "create", "Hooli"], &url);
    assert!(created, "{error}");
    let (created, token, error) = run(&["token", "create", "--name=me", "--organization", &organization], &url);
    assert!(created && !token.is_empty(), "{error}");

    let options = Options { program: Some(program()), ..Options::default() };
    let stage = Stage::set_up(url, Clock::system(), options).await.expect("the process becomes ready");
    let connections = "SELECT a.query LIKE 'LISTEN%' OR a.query LIKE '%pg_notify%', s.ssl FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) \
                       WHERE a.usename = 'paybridge'";
    until("the connection for LISTEN is there", || async {
        let rows = server.superuser.query(connections, &[]).await.unwrap();
        assert!(rows.iter().all(|row| row.get(1)), "each is encrypted");
        (rows.len() > 1 && rows.iter().any(|row| row.get(0))).then_some(())
    })
    .await;
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_the_server_is_counts_as_sslmode_says() {
    let server = Server::start().await;
    let local = |parameters: &str| server.url("localhost", parameters);
    // The certificate is for `localhost`, not for the address.
    let by_address = |parameters: &str| server.url("127.0.0.1", parameters);
    let (migrated, _, error) = run(&["migrate"], &local("sslmode=require"));
    assert!(migrated, "{error}");

    admits(&local(""));
    admits(&local("sslmode=prefer"));
    admits(&local("sslmode=require&channel_binding=require"));
    admits(&local("sslmode=require&sslrootcert={}/ca.pem"));
    admits(&by_address("sslmode=require&sslrootcert={}/ca.pem"));
    admits(&by_address("sslmode=verify-ca&sslrootcert={}/ca.pem"));
    admits(&local("sslmode=verify-full&sslrootcert={}%2Fca.pem"));
    let folder = server.folder.path().display();
    let pairs = |host: &str| {
        format!(
            "host={host} hostaddr=127.0.0.1 port={} user=paybridge password={PASSWORD} dbname=paybridge \
             sslmode = 'verify-full' sslrootcert='{folder}/ca.pem'",
            server.port
        )
    };
    admits(&pairs("localhost"));

    let wrong_host = ["not for `db.example.com`", "localhost", "verify-ca"];
    refuses(&pairs("db.example.com"), &wrong_host);
    refuses(&by_address("sslmode=verify-full&sslrootcert={}/ca.pem"), &["not for `127.0.0.1`", "localhost"]);
    for mode in ["require", "verify-ca", "verify-full"] {
        let wrong_ca = local(&format!("sslmode={mode}&sslrootcert={{}}/other-ca.pem"));
        refuses(&wrong_ca, &["no CA in", "other-ca.pem", "sslrootcert", "UnknownIssuer"]);
    }
    refuses(&local("sslrootcert=system"), &["no CA", "system", "sslrootcert"]);
    refuses(&local("sslmode=disable"), &["no pg_hba.conf entry", "sslmode=disable", "accepts only TLS"]);

    let expired = server.ca.sign_until("localhost", 2021);
    server.serve(Some(&expired), ONLY_TLS).await;
    for mode in ["require", "verify-ca", "verify-full"] {
        let verified = local(&format!("sslmode={mode}&sslrootcert={{}}/ca.pem"));
        refuses(&verified, &["the server's certificate has expired", "2021-01-01", "clock"]);
    }
    admits(&local("sslmode=require"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_wants_a_client_certificate_gets_it() {
    let server = Server::start().await;
    let known = server.ca.sign("paybridge");
    let stranger = Authority::new("Another CA").sign("paybridge");
    for (name, certificate) in [("client", &known), ("stranger", &stranger)] {
        server.file(&format!("{name}.crt"), &certificate.chain);
        server.file(&format!("{name}.key"), &certificate.key);
    }
    let url = |more: &str| server.url("localhost", &format!("sslmode=verify-full&sslrootcert={{}}/ca.pem{more}"));
    let with_client = url("&sslcert={}/client.crt&sslkey={}/client.key");
    let localhost = server.ca.sign("localhost");
    server.serve(Some(&localhost), "hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-full").await;
    let (migrated, _, error) = run(&["migrate"], &with_client);
    assert!(migrated, "{error}");
    admits(&with_client);
    refuses(&url(""), &["client certificate", "sslcert and sslkey"]);
    refuses(&url("&sslcert={}/stranger.crt&sslkey={}/stranger.key"), &["client certificate", "ssl_ca_file"]);

    server.serve(Some(&localhost), "hostssl all all 127.0.0.1/32 cert").await;
    admits(&with_client);
    // What can't be used is found before anything is sent.
    server.file("client.crt", &known.key);
    refuses(&with_client, &["client.crt", "sslcert", "no certificate"]);
    server.file("client.crt", &stranger.chain);
    refuses(&with_client, &["client.key", "sslkey", "does not belong"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_serves_those_who_do_not_insist() {
    let server = Server::start().await;
    server.serve(None, "host all all 127.0.0.1/32 scram-sha-256").await;
    let (migrated, _, error) = run(&["migrate"], &server.url("localhost", "sslmode=disable"));
    assert!(migrated, "{error}");
    admits(&server.url("localhost", "sslmode=prefer"));
    admits(&server.url("localhost", ""));
    for mode in ["require", "verify-ca&sslrootcert={}/ca.pem", "verify-full&sslrootcert={}/ca.pem"] {
        let url = server.url("localhost", &format!("sslmode={mode}"));
        refuses(&url, &["the server does not speak TLS", "sslmode"]);
    }

    // One that has TLS and lets this login in without it alone: `prefer` goes on without, as libpq does.
    server.serve(Some(&server.ca.sign("localhost")), "hostnossl all all 127.0.0.1/32 scram-sha-256").await;
    admits(&server.url("localhost", ""));
    refuses(&server.url("localhost", "sslmode=require"), &["no pg_hba.conf entry"]);

    // A Unix socket has no TLS, whatever is demanded.
    let socket = server.postgres.socket_file();
    let folder = socket.parent().unwrap().display();
    let files = server.folder.path().display();
    let address = format!(
        "host={folder} port={} user=postgres dbname=paybridge sslmode=verify-full sslrootcert={files}/ca.pem",
        server.port
    );
    admits(&address);
}
