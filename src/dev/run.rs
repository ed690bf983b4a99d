//! `paybridge dev`: the same three parts as in the demo, left running for a person; and `paybridge sandbox`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::postgres::{self, Postgres};
use super::sandbox::{self, Sandbox};
use super::stage::{self, Stage, prepare_database};
use crate::app::Periods;
use crate::clock::Clock;
use crate::config;
use crate::lifecycle::Lifecycle;

/// How long an event stream may be silent, as under `serve`.
const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(15);
/// How often `dev` writes down a time that is ahead of the machine's, real time.
const TIME_KEPT_EVERY: time::Duration = time::Duration::milliseconds(250);

/// `paybridge dev`: a database that survives, the sandbox, and a server, until it is stopped.
pub async fn run_dev(settings: config::Dev) -> Result<ExitCode> {
    let folder = std::path::absolute(&settings.data_folder)?;
    std::fs::create_dir_all(&folder).with_context(|| format!("{} can't be made", folder.display()))?;
    println!("Starting Postgres in {} …", folder.join("postgres").display());
    let postgres_folder = folder.join("postgres");
    let options = postgres::Options {
        fresh: settings.fresh,
        programs: settings.postgres_programs,
        ..postgres::Options::default()
    };
    let postgres = tokio::task::spawn_blocking(move || Postgres::start(&postgres_folder, &options)).await??;
    if settings.fresh {
        for file in ["sandbox.json", "token", "clock"] {
            let _ = std::fs::remove_file(folder.join(file));
        }
    }
    let database_url = prepare_database(&postgres, "paybridge", None).await?;
    let clock = Clock::scaled(Clock::system().now(), settings.clock_speed);
    let kept_time = keep_time(&clock, folder.join("clock"));
    println!("Starting the Stripe sandbox and Paybridge …");
    let stage = Stage::set_up(
        database_url,
        clock,
        stage::Options {
            sandbox: sandbox::Options { state_file: Some(folder.join("sandbox.json")), ..sandbox::Options::default() },
            sandbox_listen: settings.sandbox_listen,
            grpc_listen: settings.grpc_listen,
            http_listen: settings.http_listen,
            periods: Periods::default(),
            heartbeat: HEARTBEAT,
            ..stage::Options::default()
        },
    )
    .await?;
    let token_file = keep_token(&stage, &folder).await?;
    greet(&stage, &token_file);
    if stage.clock.now() - Clock::system().now() > time::Duration::SECOND {
        println!(
            "The clock of this folder stands at {}, ahead of this machine's, until --fresh.",
            stage.clock.now().date()
        );
    }

    let lifecycle = Lifecycle::new(std::time::Duration::from_secs(5));
    let end = lifecycle.run().await?;
    println!("Stopping …");
    stage.strike().await;
    kept_time.abort();
    tokio::task::spawn_blocking(move || postgres.stop()).await??;
    println!("Stopped.");
    Ok(end.into())
}

/// Where the clock of an earlier run was ahead of the machine's, it goes on from there: what was to happen at a time that
/// has passed once must not lie in the future again. The file is written only while the clock is ahead.
fn keep_time(clock: &Clock, file: PathBuf) -> JoinHandle<()> {
    let system = Clock::system();
    let kept = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
    let kept = kept.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    if let Some(ahead) = kept.map(|kept| kept - clock.now()).filter(|ahead| ahead.is_positive()) {
        clock.advance(ahead);
    }
    let clock = clock.clone();
    tokio::spawn(async move {
        loop {
            system.sleep(TIME_KEPT_EVERY).await;
            let now = clock.now();
            if now - system.now() > time::Duration::SECOND
                && let Err(error) = tokio::fs::write(&file, now.unix_timestamp().to_string()).await
            {
                tracing::warn!(%error, "the clock can't be kept");
            }
        }
    })
}

/// The token of the organization that is made with the database; kept in a file, because Paybridge keeps only its hash.
async fn keep_token(stage: &Stage, folder: &Path) -> Result<PathBuf> {
    let file = folder.join("token");
    if let Ok(token) = std::fs::read_to_string(&file)
        && stage.administration().authenticate(token.trim()).await.is_ok()
    {
        return Ok(file);
    }
    let (_, token) = stage.organization("dev").await?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    // Nobody else's to read.
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
        .open(&file)
        .and_then(|mut opened| opened.write_all(token.as_bytes()))
        .with_context(|| format!("{} can't be written", file.display()))?;
    Ok(file)
}

/// Says how to begin. The calls are the README's, under the same request ids, so that whoever pastes both repeats them.
fn greet(stage: &Stage, token_file: &Path) {
    println!(
        r#"
Paybridge is up.
  gRPC API        {grpc}
  HTTP            {http}   (/healthz, /readyz, /metrics, webhooks)
  Stripe sandbox  {sandbox}   (key {key})
  token           in {token}

Paste these into another terminal (bash), in this order:

  # who calls
  AUTH="authorization: Bearer $(cat {token})"

  # connect the sandbox's Stripe account
  grpcurl -plaintext -H "$AUTH" -d '{{
    "request_id": "connect-1", "code": "stripe", "name": "Stripe",
    "secret_key": "{key}"
  }}' {grpc} paybridge.v1.IntegrationService/CreateIntegration

  # make a customer, at Stripe too
  grpcurl -plaintext -H "$AUTH" -d '{{
    "request_id": "customer-1", "external_id": "hooli_1234", "name": "Hooli",
    "email": "billing@hooli.test", "sync_with_provider": true,
    "provider_payment_methods": ["PAYMENT_METHOD_KIND_CARD", "PAYMENT_METHOD_KIND_SEPA_DEBIT"]
  }}' {grpc} paybridge.v1.CustomerService/CreateCustomer

  # charge an invoice of 49.00 EUR; it fails, as nothing is stored to charge it to
  grpcurl -plaintext -H "$AUTH" -d '{{
    "request_id": "invoice-1", "invoice_id": "inv-1", "invoice_number": "2026-0001",
    "external_customer_id": "hooli_1234",
    "amount": {{"minor_units": 4900, "currency_code": "EUR"}}
  }}' {grpc} paybridge.v1.PaymentService/CreatePayment

  # follow what happens; one event brings a checkout_url: open it in a browser,
  # store the card 4242 4242 4242 4242, and the invoice is paid
  grpcurl -plaintext -H "$AUTH" -d '{{"from_start": true}}' \
    {grpc} paybridge.v1.EventService/StreamEvents

  # read the payment, with its attempts
  grpcurl -plaintext -H "$AUTH" -d '{{"invoice_id": "inv-1"}}' \
    {grpc} paybridge.v1.PaymentService/GetPayment

  # what the worker has to do, and jobs that it gave up
  paybridge jobs list --database-url \
    "{database}"

Everything is kept until `paybridge dev --fresh`. Ctrl-C stops it.
"#,
        grpc = stage.servers[0].grpc.trim_start_matches("http://"),
        http = stage.servers[0].http,
        sandbox = stage.sandbox.url(),
        token = token_file.display(),
        database = stage.database_url,
        key = sandbox::SECRET_KEY,
    );
}

/// `paybridge sandbox`: the sandbox alone, for other programs to call, until it is stopped.
pub async fn run_sandbox(settings: config::Sandbox) -> Result<ExitCode> {
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("the sandbox can't listen on {}", settings.listen))?;
    let sandbox = Sandbox::start(listener, Clock::system(), sandbox::Options::default())?;
    println!("The Stripe sandbox is at {}; its key is {}. Ctrl-C stops it.", sandbox.url(), sandbox::SECRET_KEY);
    let end = Lifecycle::new(std::time::Duration::from_secs(5)).run().await?;
    sandbox.stop().await;
    Ok(end.into())
}
