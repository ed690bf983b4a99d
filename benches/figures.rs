//! Benchmarks: webhooks and CreatePayment calls per second, the latency of an event to a thousand subscribers, idle
//! memory and start-up time. Rates are compared with `pgbench` on the same server in the same run: disks and neighbours
//! vary, so only the ratios of one run are meaningful. Run on a quiet machine:
//!
//! - `cargo bench --bench figures`
//! - `cargo bench --bench figures -- drain [PAYMENTS]`: drains a large backlog, which takes minutes.
//! - `cargo bench --bench figures -- burst`: a burst of webhooks on a database that was never analyzed.

#[path = "figures/burst.rs"]
mod burst;
#[path = "figures/drain.rs"]
mod drain;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use paybridge::clock::Clock;
use paybridge::dev::postgres::{self, Postgres};
use paybridge::dev::scenarios::{Api, BillingClient, Reporter, ScenarioContext};
use paybridge::dev::test_environment::{Options, TestEnvironment, prepare_database};
use paybridge::grpc::proto::create_payment_request::Customer;
use paybridge::grpc::proto::stream_events_request::Start;
use paybridge::grpc::proto::stream_events_response::Message;
use paybridge::grpc::proto::{CreateCustomerRequest, CreatePaymentRequest, Integration, Money, StreamEventsRequest};
use secrecy::SecretString;
use tokio::task::JoinSet;

/// The connections of the webhook load and of its baseline.
const WEBHOOK_CONNECTIONS: usize = 64;
/// The calls in flight of the CreatePayment load, and the connections of its baseline.
const PAYMENT_CALLS: usize = 32;
/// The duration of each load.
const LOAD: Duration = Duration::from_secs(8);
const SUBSCRIBERS: usize = 1_000;
const EVENTS_PER_SECOND: u32 = 20;

fn main() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run())
}

async fn run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let postgres_folder = folder.path().join("postgres");
    let postgres =
        tokio::task::spawn_blocking(move || Postgres::start(&postgres_folder, &postgres::Options::default())).await??;
    if std::env::args().any(|argument| argument == "burst") {
        return burst::run(&postgres).await;
    }
    let url = prepare_database(&postgres, "paybridge", None).await?;
    let mut arguments = std::env::args().skip_while(|argument| argument != "drain").skip(1);
    if std::env::args().any(|argument| argument == "drain") {
        let payments = arguments.find_map(|argument| argument.parse().ok()).unwrap_or(drain::PAYMENTS);
        return drain::run(&postgres, url, payments).await;
    }
    let program = PathBuf::from(env!("CARGO_BIN_EXE_paybridge"));
    let began = Instant::now();
    // The client has a stream of its own.
    let max_streams_per_organization = SUBSCRIBERS + 1;
    let options = Options { program: Some(program.clone()), max_streams_per_organization, ..Options::default() };
    let environment = TestEnvironment::start(url.clone(), Clock::system(), options).await?;
    println!("start-up, spawn to ready    {:>10.0} ms", began.elapsed().as_secs_f64() * 1e3);
    println!("idle memory of serve        {:>10.1} MB", resident(&program)?);

    let context = ScenarioContext { environment, program, reporter: Reporter { is_enabled: false } };
    let (mut billing, integration) = BillingClient::connected(&context, "figures").await?;
    let baseline = Baseline::prepare(&postgres)?;

    let insert = baseline.insert(WEBHOOK_CONNECTIONS)?;
    let webhooks = webhooks(&context, &billing, &integration).await?;
    report("webhooks accepted", webhooks, "one-row inserts", insert);

    let accept = baseline.accept(PAYMENT_CALLS)?;
    let payments = payments(&context, &mut billing).await?;
    report("CreatePayment", payments, "its rows inserted", accept);

    latency(&context).await?;
    context.environment.shutdown().await;
    Ok(())
}

fn report(what: &str, measured: f64, baseline_name: &str, baseline: f64) {
    println!(
        "{what:<27} {measured:>10.0} per second; pgbench, {baseline_name}: {baseline:.0}; ratio {:.2}",
        measured / baseline
    );
}

/// The resident memory of the newest process of `program`, in MB.
fn resident(program: &Path) -> Result<f64> {
    let name = program.canonicalize()?;
    let mut newest = None;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let is_ours = std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == name);
        if is_ours && let Ok(status) = std::fs::read_to_string(entry.path().join("status")) {
            newest = Some(status);
        }
    }
    let status = newest.context("the server process is not running")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS")).context("no VmRSS")?;
    let kilobytes: f64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
    Ok(kilobytes / 1024.0)
}

/// The rates of plain Postgres with the same number of connections.
struct Baseline {
    programs: PathBuf,
    socket: String,
    port: String,
    folder: tempfile::TempDir,
}

impl Baseline {
    fn prepare(postgres: &Postgres) -> Result<Self> {
        let connection = postgres.connection_string("postgres");
        let part = |name: &str| {
            let value = connection.split_whitespace().find_map(|part| part.strip_prefix(&format!("{name}=")));
            value.map(|value| value.trim_matches('\'').to_owned()).context("the connection string is key=value")
        };
        let this = Self {
            programs: postgres.programs().to_owned(),
            socket: part("host")?,
            port: part("port")?,
            folder: tempfile::tempdir()?,
        };
        this.psql(
            "CREATE TABLE base_delivery (a uuid, b uuid, c text, d timestamptz, e text, f text, g bool, h text, \
             i text, j timestamptz, PRIMARY KEY (a, b, c, d)); \
             CREATE TABLE base_payment (a uuid, b uuid, c uuid, d uuid, e text, f text, g bigint, h char(3), i text, \
             j timestamptz, PRIMARY KEY (a, b), UNIQUE (a, e)); \
             CREATE TABLE base_request (a uuid, b text, c bytea, d uuid, e timestamptz, PRIMARY KEY (a, b)); \
             CREATE TABLE base_job (a uuid PRIMARY KEY, b uuid, c text, d uuid, e text, f timestamptz, \
             UNIQUE (b, c, d, e)); CREATE INDEX ON base_job (f);",
        )?;
        Ok(this)
    }

    fn psql(&self, sql: &str) -> Result<()> {
        let done = Command::new(self.programs.join("psql"))
            .args(["-h", &self.socket, "-p", &self.port, "-U", "postgres", "-q", "-c", sql])
            .status()
            .with_context(|| format!("{} has no psql and pgbench; install Postgres", self.programs.display()))?;
        ensure!(done.success(), "psql failed");
        Ok(())
    }

    fn insert(&self, connections: usize) -> Result<f64> {
        let body = "x".repeat(1_500);
        self.pgbench(
            connections,
            &format!(
                "INSERT INTO base_delivery VALUES (gen_random_uuid(), gen_random_uuid(), 'evt_' || random(), now(), \
                 'payment_intent.succeeded', '{body}', false, 'received', NULL, now());"
            ),
        )
    }

    /// The statements of CreatePayment, on tables of the same shape.
    fn accept(&self, connections: usize) -> Result<f64> {
        self.pgbench(
            connections,
            "BEGIN;\nSELECT d FROM base_request WHERE a = '018f0000-0000-7000-8000-000000000000' AND b = 'x';\n\
             SELECT i FROM base_payment WHERE a = '018f0000-0000-7000-8000-000000000000' AND e = 'x';\n\
             SELECT i FROM base_payment WHERE a = '018f0000-0000-7000-8000-000000000000' AND e = 'y';\n\
             INSERT INTO base_payment VALUES (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), \
             gen_random_uuid(), 'inv_' || random(), '', 4900, 'EUR', 'pending', now());\n\
             INSERT INTO base_request VALUES (gen_random_uuid(), 'r' || random(), '\\x00', gen_random_uuid(), now());\n\
             INSERT INTO base_job VALUES (gen_random_uuid(), gen_random_uuid(), 'submit_payment', gen_random_uuid(), \
             '', now());\nCOMMIT;",
        )
    }

    fn pgbench(&self, connections: usize, script: &str) -> Result<f64> {
        let file = self.folder.path().join("script.sql");
        std::fs::write(&file, script)?;
        let seconds = LOAD.as_secs().to_string();
        let output = Command::new(self.programs.join("pgbench"))
            .args(["-h", &self.socket, "-p", &self.port, "-U", "postgres", "-n", "-M", "prepared", "-j", "2"])
            .args(["-c", &connections.to_string(), "-T", &seconds, "-f"])
            .args([file.as_os_str(), "postgres".as_ref()])
            .output()
            .context("pgbench could not be started")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text
            .lines()
            .find(|line| line.starts_with("tps"))
            .with_context(|| format!("pgbench printed no tps: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
        Ok(line.split_whitespace().nth(2).context("no figure")?.parse()?)
    }
}

/// Posts webhooks to an integration. Clones share the connections.
#[derive(Clone)]
struct WebhookSender {
    client: reqwest::Client,
    url: String,
    secret: SecretString,
    clock: Clock,
}

impl WebhookSender {
    fn new(context: &ScenarioContext, billing: &BillingClient, integration: &Integration) -> Result<Self> {
        let environment = &context.environment;
        let secret = environment.sandbox.webhook_secret(&integration.provider_webhook_endpoint_id);
        let secret = secret.context("the endpoint's secret")?.into();
        let url =
            format!("{}/webhooks/stripe/{}/{}", environment.servers[0].http, billing.organization, integration.id);
        let client = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { client, url, secret, clock: environment.clock.clone() })
    }

    /// Posts a signed webhook that belongs to no object of Paybridge.
    async fn post(&self, id: &str) -> Result<()> {
        let now = self.clock.now();
        let body = format!(
            r#"{{"id":"{id}","object":"event","type":"invoice.created","created":{},"livemode":false,"api_version":"2026-08-26.dahlia","request":null,"data":{{"object":{{"id":"in_1","description":"{}"}}}}}}"#,
            now.unix_timestamp(),
            "x".repeat(1_200)
        );
        let secrets = [self.secret.clone()];
        let signature = paybridge::stripe::signature::header(body.as_bytes(), &secrets, now);
        let response = self.client.post(&self.url).header("stripe-signature", signature).body(body).send().await?;
        ensure!(response.status().is_success(), "a webhook was answered with {}", response.status());
        Ok(())
    }
}

/// Webhooks per second: signed ones of an unrelated customer, over as many connections as the baseline has.
async fn webhooks(context: &ScenarioContext, billing: &BillingClient, integration: &Integration) -> Result<f64> {
    let sender = WebhookSender::new(context, billing, integration)?;
    let count = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut load = JoinSet::new();
    for connection in 0..WEBHOOK_CONNECTIONS {
        let (sender, count) = (sender.clone(), Arc::clone(&count));
        load.spawn(async move {
            let mut number = 0_u64;
            while began.elapsed() < LOAD {
                number += 1;
                sender.post(&format!("evt_{connection}_{number}")).await?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = load.join_next().await {
        ended??;
    }
    #[expect(clippy::cast_precision_loss, reason = "only printed")]
    Ok(count.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

/// CreatePayment calls per second, for a customer without a link to Stripe, so that nothing is sent there.
async fn payments(context: &ScenarioContext, billing: &mut BillingClient) -> Result<f64> {
    let customer = CreateCustomerRequest {
        request_id: "plain".to_owned(),
        external_id: "plain".to_owned(),
        ..CreateCustomerRequest::default()
    };
    billing.api.customers.create_customer(customer).await?;
    let count = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut load = JoinSet::new();
    for channel in 0..4 {
        let api = Api::connect(&context.environment.servers[0].grpc, &billing.token).await?;
        for call in 0..PAYMENT_CALLS / 4 {
            let (mut api, count) = (api.clone(), Arc::clone(&count));
            load.spawn(async move {
                let mut number = 0_u64;
                while began.elapsed() < LOAD {
                    number += 1;
                    let id = format!("load-{channel}-{call}-{number}");
                    let request = CreatePaymentRequest {
                        request_id: id.clone(),
                        invoice_id: id,
                        customer: Some(Customer::ExternalCustomerId("plain".to_owned())),
                        amount: Some(Money { minor_units: 4900, currency_code: "EUR".to_owned() }),
                        ..CreatePaymentRequest::default()
                    };
                    api.payments.create_payment(request).await?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            });
        }
    }
    while let Some(ended) = load.join_next().await {
        ended??;
    }
    #[expect(clippy::cast_precision_loss, reason = "only printed")]
    Ok(count.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

/// The time from the writing of an event to its arrival, over a thousand streams on twenty connections.
async fn latency(context: &ScenarioContext) -> Result<()> {
    let mut other = BillingClient::create(context, "latency").await?;
    let customer = CreateCustomerRequest {
        request_id: "plain".to_owned(),
        external_id: "plain".to_owned(),
        ..CreateCustomerRequest::default()
    };
    other.connect_stripe().await?;
    other.api.customers.create_customer(customer).await?;
    let mut streams = JoinSet::new();
    let total = EVENTS_PER_SECOND * 10;
    for _ in 0..20 {
        let api = Api::connect(&context.environment.servers[0].grpc, &other.token).await?;
        for _ in 0..SUBSCRIBERS / 20 {
            let mut api = api.clone();
            let request = StreamEventsRequest { start: Some(Start::FromNow(())), ..StreamEventsRequest::default() };
            let mut stream = api.events.stream_events(request).await?.into_inner();
            streams.spawn(async move {
                let mut latencies = Vec::new();
                while latencies.len() < total as usize {
                    let Some(response) = stream.message().await? else { break };
                    if let Some(Message::Event(event)) = response.message {
                        let written = event.create_time.context("a time")?;
                        let written = Duration::new(u64::try_from(written.seconds)?, u32::try_from(written.nanos)?);
                        #[expect(clippy::disallowed_methods, reason = "both ends read the clock of the same machine")]
                        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
                        latencies.push(now.saturating_sub(written));
                    }
                }
                anyhow::Ok(latencies)
            });
        }
    }
    // A payment with amount 0 emits two events.
    let mut ticks = tokio::time::interval(Duration::from_secs(2) / EVENTS_PER_SECOND);
    for number in 0..total / 2 {
        ticks.tick().await;
        let id = format!("zero-{number}");
        let request = CreatePaymentRequest {
            request_id: id.clone(),
            invoice_id: id,
            customer: Some(Customer::ExternalCustomerId("plain".to_owned())),
            amount: Some(Money { minor_units: 0, currency_code: "EUR".to_owned() }),
            ..CreatePaymentRequest::default()
        };
        other.api.payments.create_payment(request).await?;
    }
    let mut latencies = Vec::new();
    while let Some(ended) = streams.join_next().await {
        latencies.extend(ended??);
    }
    latencies.sort();
    let at = |share: usize| latencies[(latencies.len() - 1) * share / 1000].as_secs_f64() * 1e3;
    println!(
        "event to {SUBSCRIBERS} subscribers   p50 {:.1} ms, p99 {:.1} ms, maximum {:.1} ms ({} events, with the commit)",
        at(500),
        at(990),
        at(1000),
        latencies.len()
    );
    Ok(())
}
