//! A backlog of one organization, drained against Stripe's limit of 25 calls a second an endpoint by three servers, while
//! another organization gives in single payments.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use paybridge::clock::Clock;
use paybridge::dev::postgres::Postgres;
use paybridge::dev::sandbox::{Limits, Options as SandboxOptions};
use paybridge::dev::stage::{Options, Stage};
use paybridge::dev::story::{Narrator, Player, Scenery};
use paybridge::grpc::proto::create_payment_request::Customer;
use paybridge::grpc::proto::{CreateCustomerRequest, CreatePaymentRequest, Money};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::{Client, NoTls};

/// How many payments the backlog has, unless another number is given.
pub const PAYMENTS: usize = 10_000;
/// Calls in flight while it is given in.
const CALLS: usize = 16;
/// How far apart the other organization's payments are.
const SINGLE_EVERY: Duration = Duration::from_secs(5);
const SERVERS: usize = 3;
/// Jobs at a time on each, as `paybridge serve` has unless told otherwise.
const PLACES: usize = 16;

pub async fn run(postgres: &Postgres, url: String, payments: usize) -> Result<()> {
    // The account is limited as with a live key: its endpoints before itself. It is a test key's all the same, because in
    // live mode Stripe posts to https addresses only.
    let limits = Limits { test: Limits::default().live, ..Limits::default() };
    let sandbox = SandboxOptions { limits: Some(limits), ..SandboxOptions::default() };
    let options = Options { servers: SERVERS, sandbox, worker_concurrency: PLACES, ..Options::default() };
    let stage = Stage::set_up(url, Clock::system(), options).await?;
    let scenery = Scenery { stage, program: "unused".into(), narrator: Narrator { is_loud: false } };
    let (mut many, _) = Player::connected(&scenery, "many").await?;
    let (mut single, _) = Player::connected(&scenery, "single").await?;
    for player in [&mut many, &mut single] {
        payer(&scenery, player).await?;
    }
    let (database, connection) = tokio_postgres::connect(&postgres.connection_string("paybridge"), NoTls).await?;
    tokio::spawn(connection);

    for number in 0..5 {
        pay(&single, &format!("alone-{number}")).await?;
        while told(&database, &single).await? <= number {
            tokio::task::yield_now().await;
        }
    }
    let alone = waits(&database, &single, "alone-").await?;
    scenery.stage.sandbox.forget_requests();

    let mut accepting = JoinSet::new();
    for call in 0..CALLS {
        let many = many.api.clone();
        accepting.spawn(async move {
            for number in (call..payments).step_by(CALLS) {
                many.payments.clone().create_payment(request(&format!("inv-{number}"))).await?;
            }
            anyhow::Ok(())
        });
    }
    let mut ticks = interval(SINGLE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0;
    while told(&database, &many).await? < payments {
        ticks.tick().await;
        pay(&single, &format!("beside-{number}")).await?;
        number += 1;
    }
    while let Some(accepted) = accepting.join_next().await {
        accepted??;
    }
    report(&scenery, &database, &many, &single, payments, &alone).await?;
    scenery.stage.strike().await;
    Ok(())
}

async fn report(
    scenery: &Scenery,
    database: &Client,
    many: &Player,
    single: &Player,
    payments: usize,
    alone: &[f64],
) -> Result<()> {
    let sql = format!(
        "SELECT extract(epoch FROM max(create_time) - min(create_time))::float8 FROM events \
         WHERE organization_id = '{}' AND webhook_type = 'payment.succeeded'",
        many.organization
    );
    let seconds: f64 = database.query_one(&sql, &[]).await?.get(0);
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = (payments - 1) as f64 / seconds;
    let requests = scenery.stage.sandbox.requests();
    let refused = requests.iter().filter(|request| request.status == Some(429)).count();
    let charges = scenery.stage.sandbox.ledger().iter().filter(|entry| entry.account == many.account).count();
    ensure!(charges == payments, "{charges} charges for {payments} payments");
    println!(
        "drain of {payments} payments     {rate:.2} a second by {SERVERS} servers; Stripe's limit 25; ratio {:.3}; \
         {refused} of {} calls were turned away",
        rate / 25.0,
        requests.len()
    );
    let beside = waits(database, single, "beside-").await?;
    let longest = |waits: &[f64]| waits.iter().copied().fold(0.0, f64::max) * 1e3;
    let middle = |waits: &[f64]| waits.get(waits.len() / 2).copied().unwrap_or_default() * 1e3;
    println!(
        "another's single payment    p50 {:.0} ms, longest {:.0} ms, from accepted to paid ({} of them); alone: p50 {:.0} \
         ms, longest {:.0} ms",
        middle(&beside),
        longest(&beside),
        beside.len(),
        middle(alone),
        longest(alone)
    );
    Ok(())
}

/// A customer with a good card.
async fn payer(scenery: &Scenery, player: &mut Player) -> Result<()> {
    let customer = CreateCustomerRequest {
        external_id: "payer".to_owned(),
        sync_with_provider: true,
        ..CreateCustomerRequest::default()
    };
    player.api.customers.create_customer(customer).await?;
    let made = player.customer_when("payer", "is made", |customer| !customer.provider_customer_id.is_empty()).await?;
    scenery.stage.sandbox.attach_by_hand(&made.provider_customer_id, "pm_card_visa")?;
    player.customer_when("payer", "has a card", |customer| !customer.default_payment_method_id.is_empty()).await?;
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

async fn pay(player: &Player, invoice: &str) -> Result<()> {
    player.api.payments.clone().create_payment(request(invoice)).await.context(invoice.to_owned())?;
    Ok(())
}

/// How many payments of an organization have been told as paid.
async fn told(database: &Client, player: &Player) -> Result<usize> {
    let sql = format!(
        "SELECT count(*) FROM events WHERE organization_id = '{}' AND webhook_type = 'payment.succeeded'",
        player.organization
    );
    Ok(usize::try_from(database.query_one(&sql, &[]).await?.get::<_, i64>(0))?)
}

/// How long an organization's payments took from accepted to paid, in seconds, shortest first.
async fn waits(database: &Client, player: &Player, prefix: &str) -> Result<Vec<f64>> {
    let sql = format!(
        "SELECT extract(epoch FROM events.create_time - payments.create_time)::float8 FROM events JOIN payments \
         ON payments.organization_id = events.organization_id \
             AND payments.invoice_id = events.payload -> 'payment' ->> 'lago_payable_id' \
         WHERE events.organization_id = '{}' AND webhook_type = 'payment.succeeded' \
             AND payments.invoice_id LIKE '{prefix}%' ORDER BY 1",
        player.organization
    );
    Ok(database.query(&sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}
