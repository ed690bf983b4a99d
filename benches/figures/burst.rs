//! A burst of unrelated webhooks on a database that was never analyzed, with the worker running. Measures how fast it
//! drains before and after `ANALYZE jobs` in the same run, and how long a single webhook of another organization takes
//! in the meantime. Each run has a backlog of other jobs, which the worker interleaves with the burst.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use paybridge::clock::{Clock, pause};
use paybridge::dev::postgres::Postgres;
use paybridge::dev::scenarios::{BillingClient, Reporter, ScenarioContext};
use paybridge::dev::test_environment::{Options, TestEnvironment, prepare_database};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use super::WebhookSender;

const WEBHOOKS: usize = 40_000;
const CONNECTIONS: usize = 32;
const BACKLOGS: [i64; 2] = [1_000, 1_000_000];
/// The concurrent jobs: the default of `paybridge serve`.
const WORKER_CONCURRENCY: usize = 16;
/// The duration of a measurement.
const MEASURE_PERIOD: Duration = Duration::from_secs(8);
/// The interval of the single webhooks, and the poll interval of their jobs.
const SINGLE_INTERVAL: Duration = Duration::from_millis(400);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

pub async fn run(postgres: &Postgres) -> Result<()> {
    for backlog in BACKLOGS {
        let name = format!("burst_{backlog}");
        let url = prepare_database(postgres, &name, None).await?;
        let options = Options { worker_concurrency: WORKER_CONCURRENCY, ..Options::default() };
        let environment = TestEnvironment::start(url, Clock::system(), options).await?;
        let context =
            ScenarioContext { environment, program: "unused".into(), reporter: Reporter { is_enabled: false } };
        burst(&context, &postgres.connection_string(&name), backlog).await?;
        context.environment.shutdown().await;
    }
    Ok(())
}

async fn connect(address: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(address, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn burst(context: &ScenarioContext, address: &str, backlog: i64) -> Result<()> {
    let database = connect(address).await?;
    // Autovacuum still vacuums, but does not analyze.
    database.batch_execute("ALTER TABLE jobs SET (autovacuum_analyze_threshold = 2000000000)").await?;
    let (many, many_integration) = BillingClient::connected(context, "many").await?;
    let (single, single_integration) = BillingClient::connected(context, "single").await?;
    let (other, _) = BillingClient::connected(context, "other").await?;
    // Jobs of customers that do not exist finish at once.
    let jobs = format!(
        "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, due, generation, failures, \
             lease_epoch) \
         SELECT gen_random_uuid(), '{}', 'import_payment_methods', gen_random_uuid(), '', now(), true, 1, 0, 0 \
         FROM generate_series(1, {backlog})",
        other.organization
    );
    database.execute(&jobs, &[]).await?;

    let sender = WebhookSender::new(context, &many, &many_integration)?;
    let began = Instant::now();
    let mut load = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let sender = sender.clone();
        load.spawn(async move {
            for number in (connection..WEBHOOKS).step_by(CONNECTIONS) {
                sender.post(&format!("evt_{number}")).await?;
            }
            anyhow::Ok(())
        });
    }
    let is_finished = Arc::new(AtomicBool::new(false));
    let sender = WebhookSender::new(context, &single, &single_integration)?;
    let delays =
        tokio::spawn(delays(sender, connect(address).await?, single.organization.clone(), Arc::clone(&is_finished)));
    while let Some(ended) = load.join_next().await {
        ended??;
    }
    let accepted = began.elapsed();
    let never = rate(&database, &many).await?;
    database.batch_execute("ANALYZE jobs").await?;
    let analyzed = rate(&database, &many).await?;
    is_finished.store(true, Ordering::Relaxed);
    let mut delays = delays.await??;
    delays.sort();
    let maximum = delays.last().copied().unwrap_or_default();
    println!(
        "drain, backlog {backlog:>9}    {never:>10.0} jobs per second, never analyzed; analyzed: {analyzed:.0}; \
         ratio {:.2} (after {WEBHOOKS} webhooks in {:.1} s)",
        never / analyzed,
        accepted.as_secs_f64()
    );
    println!(
        "single webhook of another   p50 {:.0} ms, maximum {:.0} ms, from accepted to applied ({} webhooks)",
        delays[delays.len() / 2].as_secs_f64() * 1e3,
        maximum.as_secs_f64() * 1e3,
        delays.len()
    );
    Ok(())
}

/// The jobs finished per second while the burst drains, including those of the backlog.
async fn rate(database: &Client, many: &BillingClient) -> Result<f64> {
    let left = async || anyhow::Ok(database.query_one("SELECT count(*) FROM jobs", &[]).await?.get::<_, i64>(0));
    let (before, began) = (left().await?, Instant::now());
    pause(MEASURE_PERIOD).await;
    let (after, took) = (left().await?, began.elapsed());
    let burst = format!(
        "SELECT count(*) FROM jobs WHERE organization_id = '{}' AND kind = 'apply_delivery'",
        many.organization
    );
    let burst: i64 = database.query_one(&burst, &[]).await?.get(0);
    ensure!(burst > 0, "the burst drained before its rate was measured");
    #[expect(clippy::cast_precision_loss, reason = "only printed")]
    Ok((before - after) as f64 / took.as_secs_f64())
}

/// Posts single webhooks, and measures the time from the response to the end of the job.
async fn delays(
    sender: WebhookSender,
    database: Client,
    organization: String,
    is_finished: Arc<AtomicBool>,
) -> Result<Vec<Duration>> {
    let waiting = format!("SELECT FROM jobs WHERE organization_id = '{organization}' AND kind = 'apply_delivery'");
    let waiting = database.prepare(&waiting).await?;
    let mut delays = Vec::new();
    while !is_finished.load(Ordering::Relaxed) {
        sender.post(&format!("evt_single_{}", delays.len())).await?;
        let accepted = Instant::now();
        while !database.query(&waiting, &[]).await?.is_empty() {
            pause(POLL_INTERVAL).await;
        }
        delays.push(accepted.elapsed());
        pause(SINGLE_INTERVAL).await;
    }
    Ok(delays)
}
