//! Three servers drain the backlog of one organization against Stripe's limit of 25 calls per second and endpoint,
//! while another organization creates single payments.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use paybridge::clock::Clock;
use paybridge::dev::postgres::Postgres;
use paybridge::dev::sandbox::{Limits, Options as SandboxOptions};
use paybridge::dev::scenarios::{BillingClient, Reporter, ScenarioContext};
use paybridge::dev::test_environment::{Options, TestEnvironment};
use paybridge::grpc::proto::create_payment_request::Customer;
use paybridge::grpc::proto::{CreateCustomerRequest, CreatePaymentRequest, Money};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::{Client, NoTls};

/// The default number of payments in the backlog.
pub const PAYMENTS: usize = 10_000;
/// The CreatePayment calls in flight.
const CALLS: usize = 16;
/// The interval of the other organization's payments.
const SINGLE_INTERVAL: Duration = Duration::from_secs(5);
const SERVERS: usize = 3;
/// The concurrent jobs per server: the default of `paybridge serve`.
const WORKER_CONCURRENCY: usize = 16;

pub async fn run(postgres: &Postgres, url: String, payments: usize) -> Result<()> {
    // A test key with the limits of a live one, because in live mode Stripe posts webhooks to https URLs only.
    let limits = Limits { test: Limits::default().live, ..Limits::default() };
    let sandbox = SandboxOptions { limits: Some(limits), ..SandboxOptions::default() };
    let options = Options { servers: SERVERS, sandbox, worker_concurrency: WORKER_CONCURRENCY, ..Options::default() };
    let environment = TestEnvironment::start(url, Clock::system(), options).await?;
    let context = ScenarioContext { environment, program: "unused".into(), reporter: Reporter { is_enabled: false } };
    let (mut many, _) = BillingClient::connected(&context, "many").await?;
    let (mut single, _) = BillingClient::connected(&context, "single").await?;
    for billing in [&mut many, &mut single] {
        create_customer(&context, billing).await?;
    }
    let (database, connection) = tokio_postgres::connect(&postgres.connection_string("paybridge"), NoTls).await?;
    tokio::spawn(connection);

    for number in 0..5 {
        pay(&single, &format!("idle-{number}")).await?;
        while succeeded(&database, &single).await? <= number {
            tokio::task::yield_now().await;
        }
    }
    let idle = latencies(&database, &single, "idle-").await?;
    context.environment.sandbox.clear_requests();

    let mut accepting = JoinSet::new();
    for call in 0..CALLS {
        let api = many.api.clone();
        accepting.spawn(async move {
            for number in (call..payments).step_by(CALLS) {
                api.payments.clone().create_payment(request(&format!("inv-{number}"))).await?;
            }
            anyhow::Ok(())
        });
    }
    let mut ticks = interval(SINGLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0;
    while succeeded(&database, &many).await? < payments {
        ticks.tick().await;
        pay(&single, &format!("during-{number}")).await?;
        number += 1;
    }
    while let Some(accepted) = accepting.join_next().await {
        accepted??;
    }
    let charges = context.environment.sandbox.ledger().iter().filter(|entry| entry.account == many.account).count();
    ensure!(charges == payments, "{charges} charges for {payments} payments");
    report(&context, &database, &many, &single, &idle).await?;
    context.environment.shutdown().await;
    Ok(())
}

async fn report(
    context: &ScenarioContext,
    database: &Client,
    many: &BillingClient,
    single: &BillingClient,
    idle: &[f64],
) -> Result<()> {
    let sql = format!(
        "SELECT extract(epoch FROM max(create_time) - min(create_time))::float8 FROM events \
         WHERE organization_id = '{}' AND webhook_type = 'payment.succeeded'",
        many.organization
    );
    let seconds: f64 = database.query_one(&sql, &[]).await?.get(0);
    let payments = context.environment.sandbox.ledger().iter().filter(|entry| entry.account == many.account).count();
    #[expect(clippy::cast_precision_loss, reason = "only printed")]
    let rate = (payments - 1) as f64 / seconds;
    let requests = context.environment.sandbox.requests();
    let refused = requests.iter().filter(|request| request.status == Some(429)).count();
    println!(
        "drain of {payments} payments     {rate:.2} per second by {SERVERS} servers; Stripe's limit 25; ratio {:.3}; \
         {refused} of {} calls were answered with 429",
        rate / 25.0,
        requests.len()
    );
    let during = latencies(database, single, "during-").await?;
    let maximum = |latencies: &[f64]| latencies.iter().copied().fold(0.0, f64::max) * 1e3;
    let median = |latencies: &[f64]| latencies.get(latencies.len() / 2).copied().unwrap_or_default() * 1e3;
    println!(
        "single payment of another   p50 {:.0} ms, maximum {:.0} ms, from accepted to paid ({} payments); \
         idle: p50 {:.0} ms, maximum {:.0} ms",
        median(&during),
        maximum(&during),
        during.len(),
        median(idle),
        maximum(idle)
    );
    Ok(())
}

/// Creates a customer with a valid card.
async fn create_customer(context: &ScenarioContext, billing: &mut BillingClient) -> Result<()> {
    let customer = CreateCustomerRequest {
        request_id: "payer".to_owned(),
        external_id: "payer".to_owned(),
        sync_with_provider: true,
        ..CreateCustomerRequest::default()
    };
    billing.api.customers.create_customer(customer).await?;
    let customer =
        billing.wait_for_customer("payer", "is created", |customer| !customer.provider_customer_id.is_empty()).await?;
    context.environment.sandbox.attach_in_dashboard(&customer.provider_customer_id, "pm_card_visa")?;
    billing.wait_for_customer("payer", "has a card", |customer| !customer.default_payment_method_id.is_empty()).await?;
    Ok(())
}

fn request(invoice: &str) -> CreatePaymentRequest {
    CreatePaymentRequest {
        request_id: invoice.to_owned(),
        invoice_id: invoice.to_owned(),
        customer: Some(Customer::ExternalCustomerId("payer".to_owned())),
        amount: Some(Money { minor_units: 4900, currency_code: "EUR".to_owned() }),
        ..CreatePaymentRequest::default()
    }
}

async fn pay(billing: &BillingClient, invoice: &str) -> Result<()> {
    billing.api.payments.clone().create_payment(request(invoice)).await.context(invoice.to_owned())?;
    Ok(())
}

/// The number of `payment.succeeded` events of an organization.
async fn succeeded(database: &Client, billing: &BillingClient) -> Result<usize> {
    let sql = format!(
        "SELECT count(*) FROM events WHERE organization_id = '{}' AND webhook_type = 'payment.succeeded'",
        billing.organization
    );
    Ok(usize::try_from(database.query_one(&sql, &[]).await?.get::<_, i64>(0))?)
}

/// The times from accepted to paid of an organization's payments, in seconds, ascending.
async fn latencies(database: &Client, billing: &BillingClient, prefix: &str) -> Result<Vec<f64>> {
    let sql = format!(
        "SELECT extract(epoch FROM events.create_time - payments.create_time)::float8 FROM events JOIN payments \
         ON payments.organization_id = events.organization_id \
             AND payments.invoice_id = events.payload -> 'payment' ->> 'lago_payable_id' \
         WHERE events.organization_id = '{}' AND webhook_type = 'payment.succeeded' \
             AND payments.invoice_id LIKE '{prefix}%' ORDER BY 1",
        billing.organization
    );
    Ok(database.query(&sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}
