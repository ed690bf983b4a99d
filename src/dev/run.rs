//! `paybridge dev`, which runs the parts of the demo until it is stopped, and `paybridge sandbox`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::postgres::{self, Postgres};
use super::sandbox::{self, Sandbox};
use super::test_environment::{self, TestEnvironment, prepare_database};
use crate::app::Periods;
use crate::clock::Clock;
use crate::config;
use crate::lifecycle::Lifecycle;

/// The longest silence of an event stream, as under `serve`.
const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(15);
/// How often `dev` saves a clock that is ahead of the machine's. Real time.
const CLOCK_SAVE_INTERVAL: time::Duration = time::Duration::milliseconds(250);

/// Runs a database that outlives the process, the sandbox and a server until a signal arrives.
pub async fn run_dev(settings: config::Dev) -> Result<ExitCode> {
    let folder = std::path::absolute(&settings.data_folder)?;
    std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be created", folder.display()))?;
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
    let clock_task = persist_clock(&clock, folder.join("clock"));
    println!("Starting the Stripe sandbox and Paybridge …");
    let environment = TestEnvironment::start(
        database_url,
        clock,
        test_environment::Options {
            sandbox: sandbox::Options { state_file: Some(folder.join("sandbox.json")), ..sandbox::Options::default() },
            sandbox_listen: settings.sandbox_listen,
            grpc_listen: settings.grpc_listen,
            http_listen: settings.http_listen,
            periods: Periods::default(),
            heartbeat: HEARTBEAT,
            ..test_environment::Options::default()
        },
    )
    .await?;
    let token_file = ensure_token(&environment, &folder).await?;
    print_instructions(&environment, &token_file);
    if environment.clock.now() - Clock::system().now() > time::Duration::SECOND {
        println!(
            "The clock of this data folder is ahead of this machine's, at {}. --fresh resets it.",
            environment.clock.now().date()
        );
    }

    let lifecycle = Lifecycle::new(std::time::Duration::from_secs(5));
    let end = lifecycle.run().await?;
    println!("Stopping …");
    environment.shutdown().await;
    clock_task.abort();
    tokio::task::spawn_blocking(move || postgres.stop()).await??;
    println!("Stopped.");
    Ok(end.into())
}

/// Continues a clock that an earlier run left ahead of the machine's: what was due at a time that has passed must not
/// be in the future again. The file is written only while the clock is ahead.
fn persist_clock(clock: &Clock, file: PathBuf) -> JoinHandle<()> {
    let system = Clock::system();
    let saved = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
    let saved = saved.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    if let Some(ahead) = saved.map(|saved| saved - clock.now()).filter(|ahead| ahead.is_positive()) {
        clock.advance(ahead);
    }
    let clock = clock.clone();
    tokio::spawn(async move {
        loop {
            system.sleep(CLOCK_SAVE_INTERVAL).await;
            let now = clock.now();
            if now - system.now() > time::Duration::SECOND
                && let Err(error) = tokio::fs::write(&file, now.unix_timestamp().to_string()).await
            {
                tracing::warn!(%error, "the clock could not be saved");
            }
        }
    })
}

/// Creates the organization `dev` and a token, unless the file holds a valid one. The file is the only copy: Paybridge
/// stores a hash.
async fn ensure_token(environment: &TestEnvironment, folder: &Path) -> Result<PathBuf> {
    let file = folder.join("token");
    if let Ok(token) = std::fs::read_to_string(&file)
        && environment.administration().authenticate(token.trim()).await.is_ok()
    {
        return Ok(file);
    }
    let (_, token) = environment.organization("dev").await?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
        .open(&file)
        .and_then(|mut opened| opened.write_all(token.as_bytes()))
        .with_context(|| format!("{} cannot be written", file.display()))?;
    Ok(file)
}

/// Prints the first calls. They use the request ids of the README and of `docs/api.md`, so that a reader who runs both
/// repeats the same calls.
fn print_instructions(environment: &TestEnvironment, token_file: &Path) {
    println!(
        r#"
Paybridge is up.
  gRPC API        {grpc}
  HTTP            {http}   (/healthz, /readyz, /metrics, webhooks)
  Stripe sandbox  {sandbox}   (key {key})
  token           in {token}

Paste these into another terminal (bash), in this order:

  # the token of the caller
  AUTH="authorization: Bearer $(cat {token})"

  # connect the sandbox's Stripe account
  grpcurl -plaintext -H "$AUTH" -d '{{
    "request_id": "connect-1", "code": "stripe", "name": "Stripe",
    "secret_key": "{key}"
  }}' {grpc} paybridge.v1.IntegrationService/CreateIntegration

  # create a customer, in Stripe too
  grpcurl -plaintext -H "$AUTH" -d '{{
    "request_id": "customer-1", "external_id": "hooli_1234", "name": "Hooli",
    "email": "billing@hooli.test", "sync_with_provider": true,
    "provider_payment_methods": ["PAYMENT_METHOD_KIND_CARD", "PAYMENT_METHOD_KIND_SEPA_DEBIT"]
  }}' {grpc} paybridge.v1.CustomerService/CreateCustomer

  # charge an invoice of 49.00 EUR; it fails because no payment method is stored
  grpcurl -plaintext -H "$AUTH" -d '{{
    "request_id": "invoice-1", "invoice_id": "inv-1", "invoice_number": "2026-0001",
    "external_customer_id": "hooli_1234",
    "amount": {{"minor_units": 4900, "currency_code": "EUR"}}
  }}' {grpc} paybridge.v1.PaymentService/CreatePayment

  # follow the events; one of them has a checkout_url: open it in a browser,
  # store the card 4242 4242 4242 4242, and the invoice is paid
  grpcurl -plaintext -H "$AUTH" -d '{{"from_start": {{}}}}' \
    {grpc} paybridge.v1.EventService/StreamEvents

  # read the payment, with its attempts
  grpcurl -plaintext -H "$AUTH" -d '{{"invoice_id": "inv-1"}}' \
    {grpc} paybridge.v1.PaymentService/GetPayment

  # list pending and parked jobs
  paybridge jobs list --database-url \
    "{database}"

Ctrl-C stops it. The data is kept until `paybridge dev --fresh`.
"#,
        grpc = environment.servers[0].grpc.trim_start_matches("http://"),
        http = environment.servers[0].http,
        sandbox = environment.sandbox.url(),
        token = token_file.display(),
        database = environment.database_url,
        key = sandbox::SECRET_KEY,
    );
}

/// `paybridge sandbox`: runs the sandbox alone until a signal arrives.
pub async fn run_sandbox(settings: config::Sandbox) -> Result<ExitCode> {
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("the sandbox cannot listen on {}", settings.listen))?;
    let sandbox = Sandbox::start(listener, Clock::system(), sandbox::Options::default())?;
    println!("The Stripe sandbox is at {}; its key is {}. Ctrl-C stops it.", sandbox.url(), sandbox::SECRET_KEY);
    let end = Lifecycle::new(std::time::Duration::from_secs(5)).run().await?;
    sandbox.stop().await;
    Ok(end.into())
}
