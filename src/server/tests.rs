//! Whole servers on a real Postgres, over real sockets.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use secrecy::{SecretBox, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_postgres::NoTls;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::config::{BaseUrl, Connection, Grpc, Retention, Stripe};
use crate::dev::postgres::{Options, Postgres};
use crate::lifecycle::Outcome;

const GRACE: Duration = Duration::from_secs(20);

/// A migrated database in its own folder, and a user with the rights of `serve`.
pub(crate) struct Database {
    folder: PathBuf,
    postgres: Option<Postgres>,
    pub(crate) url: String,
}

impl Database {
    pub(crate) async fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let nth = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("paybridge-server-{}-{nth}", std::process::id()));
        let mut database = Self { folder, postgres: None, url: String::new() };
        database.start_postgres().await;
        store::migrate::run(&database.admin(), "test").await.unwrap();
        database.run("CREATE ROLE serve LOGIN; GRANT paybridge_app, paybridge_system TO serve").await;
        database.url = database.postgres.as_ref().unwrap().connection_string_as("serve", "postgres");
        database
    }

    async fn start_postgres(&mut self) {
        let folder = self.folder.clone();
        let options = Options { durable: false, ..Options::default() };
        let started = tokio::task::spawn_blocking(move || Postgres::start(&folder, &options));
        self.postgres = Some(started.await.unwrap().unwrap());
    }

    async fn stop_postgres(&mut self) {
        let postgres = self.postgres.take();
        tokio::task::spawn_blocking(move || drop(postgres)).await.unwrap();
    }

    pub(crate) fn admin(&self) -> String {
        self.postgres.as_ref().unwrap().connection_string("postgres")
    }

    /// Runs statements as the administrator; the first value of the last one, or nothing.
    pub(crate) async fn run(&self, sql: &str) -> String {
        let (client, connection) = tokio_postgres::connect(&self.admin(), NoTls).await.unwrap();
        tokio::spawn(connection);
        let rows = client.simple_query(sql).await.unwrap();
        let first = rows.into_iter().rev().find_map(|row| match row {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        first.unwrap_or_default()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        drop(self.postgres.take());
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn settings(url: &str) -> Serve {
    let url = SecretString::from(url);
    Serve {
        database: Connection { direct_url: url.clone(), url, pool_size: 4 },
        grpc: Some(Grpc { listen: "127.0.0.1:0".parse().unwrap(), tls: None, max_streams_per_organization: 10 }),
        http_listen: "127.0.0.1:0".parse().unwrap(),
        public_webhook_url: None,
        // Nothing listens there, and no test calls it.
        stripe: Stripe { base_url: BaseUrl::parse("http://127.0.0.1:1").unwrap(), timeout: Duration::from_secs(5) },
        encryption_keys: vec![key(7)],
        installation: "test".to_owned(),
        default_success_url: "https://shop.example/done".to_owned(),
        retention: Retention { events: time::Duration::days(90), deliveries: time::Duration::days(35) },
        action_expiry: time::Duration::DAY,
        worker_concurrency: 4,
        shutdown_grace: GRACE,
        clock: None,
    }
}

fn key(byte: u8) -> EncryptionKey {
    EncryptionKey { id: "k".to_owned(), key: SecretBox::new(Box::new([byte; 32])) }
}

async fn serve(url: &str, lifecycle: &Lifecycle) -> RunningServer {
    let settings = settings(url);
    let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = TcpListener::bind(settings.http_listen).await.unwrap();
    start(&settings, ServerOptions::new(Some(grpc), http), lifecycle).await.unwrap()
}

/// Waits until readiness is as expected.
async fn until(running: &RunningServer, expected: bool) {
    let mut ready = running.ready.clone();
    let waited = timeout(Duration::from_secs(30), ready.wait_for(|ready| *ready == expected)).await;
    waited.expect("readiness changes in time").unwrap();
}

/// Sends one request; returns the status and the whole response.
async fn http(running: &RunningServer, request: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(running.http).await.unwrap();
    let head = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    let signature = "Stripe-Signature: t=1,v1=00\r\n\r\n";
    let written = async {
        stream.write_all((head + signature).as_bytes()).await?;
        stream.write_all(body).await
    };
    // A body that is too long is refused before all of it is written.
    let _ = written.await;
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response).await;
    let response = String::from_utf8(response).unwrap();
    let status = response.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{request}: {response:?}")), response)
}

async fn channel(running: &RunningServer) -> Channel {
    Endpoint::from_shared(format!("http://{}", running.grpc.unwrap())).unwrap().connect().await.unwrap()
}

async fn health(running: &RunningServer) -> HealthClient<Channel> {
    HealthClient::new(channel(running).await)
}

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

const WEBHOOK: &str = "POST /webhooks/stripe/0190163d-8694-739b-aea5-966c26f8ad91/0190163d-8694-739b-aea5-966c26f8ad92";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_becomes_ready_responds_and_shuts_down_in_order() {
    let database = Database::start().await;
    let lifecycle = Lifecycle::new(GRACE);
    let running = serve(&database.url, &lifecycle).await;
    until(&running, true).await;
    for (request, expected) in [
        ("GET /healthz", 200),
        ("GET /readyz", 200),
        ("GET /metrics", 200),
        ("GET /", 404),
        (WEBHOOK, 404),
        ("POST /webhooks/stripe/x/y", 404),
        ("GET /webhooks/stripe/x/y", 405),
    ] {
        assert_eq!(http(&running, request, b"{}").await.0, expected, "{request}");
    }
    assert!(http(&running, "GET /metrics", b"").await.1.contains("paybridge_webhooks_total"));
    // P11.
    assert_eq!(http(&running, WEBHOOK, &vec![b' '; 2 << 20]).await.0, 413);

    let mut client = health(&running).await;
    for service in ["", "liveness"] {
        let status = client.check(about(service)).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
    }
    // A watcher must not keep the listener open, and is notified of the shutdown first.
    let mut watched = client.watch(about("")).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    assert_eq!(lifecycle.stop().await, Outcome::Graceful);
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(watched.message().await.is_ok_and(|end| end.is_none()));
    assert!(
        TcpStream::connect(running.grpc.unwrap()).await.is_err() && TcpStream::connect(running.http).await.is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_database_a_server_is_alive_but_not_ready_and_recovers() {
    let mut database = Database::start().await;
    let lifecycle = Lifecycle::new(GRACE);
    let running = serve(&database.url, &lifecycle).await;
    until(&running, true).await;
    database.stop_postgres().await;
    until(&running, false).await;
    assert_eq!(http(&running, "GET /readyz", b"").await.0, 503);
    assert_eq!(http(&running, "GET /healthz", b"").await.0, 200);
    let (status, response) = http(&running, WEBHOOK, b"{}").await;
    assert!(status == 503 && response.to_lowercase().contains("retry-after:"), "{response}");
    let mut client = health(&running).await;
    assert_eq!(client.check(about("")).await.unwrap().into_inner().status(), ServingStatus::NotServing);
    assert_eq!(client.check(about("liveness")).await.unwrap().into_inner().status(), ServingStatus::Serving);
    database.start_postgres().await;
    until(&running, true).await;
    assert_eq!(http(&running, WEBHOOK, b"{}").await.0, 404);
    assert_eq!(lifecycle.stop().await, Outcome::Graceful);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_in_one_process_share_the_work_of_one_database() {
    let database = Database::start().await;
    let organization = administration(&database.url).unwrap().create_organization("Hooli").await.unwrap();
    let (one, two) = (Lifecycle::new(GRACE), Lifecycle::new(GRACE));
    let running = serve(&database.url, &one).await;
    serve(&database.url, &two).await;
    until(&running, true).await;
    // Jobs about customers that do not exist end at once.
    database
        .run(&format!(
            "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, generation, failures, \
                 lease_epoch) \
             SELECT gen_random_uuid(), '{}', 'import_payment_methods', gen_random_uuid(), '', now(), 1, 0, 0 \
             FROM generate_series(1, 200)",
            organization.id
        ))
        .await;
    let done = async { while database.run("SELECT count(*) FROM jobs").await != "0" {} };
    timeout(Duration::from_secs(30), done).await.expect("all jobs are done in time");
    assert_eq!(one.stop().await, Outcome::Graceful);
    assert_eq!(two.stop().await, Outcome::Graceful);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_event_streams_with_unavailable() {
    let database = Database::start().await;
    let admin = administration(&database.url).unwrap();
    let organization = admin.create_organization("Hooli").await.unwrap();
    let (_, token) = admin.create_token(organization.id, "billing").await.unwrap();
    let lifecycle = Lifecycle::new(GRACE);
    let running = serve(&database.url, &lifecycle).await;
    until(&running, true).await;
    let start = Some(grpc::proto::stream_events_request::Start::FromStart(()));
    let request = grpc::proto::StreamEventsRequest { start, ..Default::default() };
    let mut request = tonic::Request::new(request);
    let bearer = format!("Bearer {}", token.expose_secret()).parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let mut client = grpc::proto::event_service_client::EventServiceClient::new(channel(&running).await);
    let mut stream = client.stream_events(request).await.unwrap().into_inner();
    assert_eq!(lifecycle.stop().await, Outcome::Graceful);
    let end = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert_eq!(end.unwrap_err().code(), tonic::Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_keeps_its_connection_does_not_delay_a_shutdown() {
    // Connections are closed when a tenth of the grace period is left: one second, for everything else to end.
    let lifecycle = Lifecycle::new(Duration::from_secs(10));
    // A shutdown needs no database.
    let running = serve("host=/nonexistent user=serve", &lifecycle).await;
    let mut stream = TcpStream::connect(running.http).await.unwrap();
    let head = format!("{WEBHOOK} HTTP/1.1\r\nHost: x\r\nStripe-Signature: t=1\r\nContent-Length: 9\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server has accepted the connection once it responds on another one.
    http(&running, "GET /healthz", b"").await;
    assert_eq!(lifecycle.stop().await, Outcome::Graceful);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
}

#[test]
fn all_replicas_derive_the_same_key_for_page_tokens_from_the_first_key() {
    let derived = |keys: &[EncryptionKey]| page_token_key(keys).unwrap().0;
    assert_eq!(derived(&[key(1)]), derived(&[key(1), key(2)]));
    assert_ne!(derived(&[key(1)]), derived(&[key(2), key(1)]));
    assert_ne!(derived(&[key(1)]), [1; 32]);
    assert!(page_token_key(&[]).is_err());
}
