//! A burst of webhooks that concern nobody, on a database that was never analyzed, with the worker running: how fast it
//! drains, how fast after `ANALYZE jobs` in the same run, and how long another organization's single webhook takes
//! meanwhile. Each with a backlog of other jobs, which the worker takes in turns with the burst.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use paybridge::clock::{Clock, pause};
use paybridge::dev::postgres::Postgres;
use paybridge::dev::stage::{Options, Stage, prepare_database};
use paybridge::dev::story::{Narrator, Player, Scenery};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use super::Door;

const WEBHOOKS: usize = 40_000;
const CONNECTIONS: usize = 32;
const BACKLOGS: [i64; 2] = [1_000, 1_000_000];
/// Jobs at a time, as `paybridge serve` has unless configured otherwise.
const PLACES: usize = 16;
/// How long a rate is measured.
const MEASURE: Duration = Duration::from_secs(8);
/// How far apart the other organization's single webhooks are, and how often their jobs are looked at.
const SINGLE_EVERY: Duration = Duration::from_millis(400);
const LOOK_EVERY: Duration = Duration::from_millis(2);

pub async fn run(postgres: &Postgres) -> Result<()> {
    for backlog in BACKLOGS {
        let name = format!("burst_{backlog}");
        let url = prepare_database(postgres, &name, None).await?;
        let options = Options { worker_concurrency: PLACES, ..Options::default() };
        let stage = Stage::set_up(url, Clock::system(), options).await?;
        let scenery = Scenery { stage, program: "unused".into(), narrator: Narrator { is_loud: false } };
        burst(&scenery, &postgres.connection_string(&name), backlog).await?;
        scenery.stage.strike().await;
    }
    Ok(())
}

async fn connect(address: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(address, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn burst(scenery: &Scenery, address: &str, backlog: i64) -> Result<()> {
    let database = connect(address).await?;
    // Vacuumed as ever, but not analyzed.
    database.batch_execute("ALTER TABLE jobs SET (autovacuum_analyze_threshold = 2000000000)").await?;
    let (many, many_integration) = Player::connected(scenery, "many").await?;
    let (single, single_integration) = Player::connected(scenery, "single").await?;
    let (other, _) = Player::connected(scenery, "other").await?;
    // Jobs about customers that do not exist end at once.
    let jobs = format!(
        "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, due, asked, failures, \
             lease_epoch) \
         SELECT gen_random_uuid(), '{}', 'import_payment_methods', gen_random_uuid(), '', now(), true, 1, 0, 0 \
         FROM generate_series(1, {backlog})",
        other.organization
    );
    database.execute(&jobs, &[]).await?;

    let door = Door::new(scenery, &many, &many_integration)?;
    let began = Instant::now();
    let mut load = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let door = door.clone();
        load.spawn(async move {
            for number in (connection..WEBHOOKS).step_by(CONNECTIONS) {
                door.post(&format!("evt_{number}")).await?;
            }
            anyhow::Ok(())
        });
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let door = Door::new(scenery, &single, &single_integration)?;
    let delays = tokio::spawn(delays(door, connect(address).await?, single.organization.clone(), Arc::clone(&is_over)));
    while let Some(ended) = load.join_next().await {
        ended??;
    }
    let accepted = began.elapsed();
    let never = rate(&database, &many).await?;
    database.batch_execute("ANALYZE jobs").await?;
    let analyzed = rate(&database, &many).await?;
    is_over.store(true, Ordering::Relaxed);
    let mut delays = delays.await??;
    delays.sort();
    let longest = delays.last().copied().unwrap_or_default();
    println!(
        "drain, backlog {backlog:>9}    {never:>10.0} jobs a second, never analyzed; analyzed: {analyzed:.0}; ratio {:.2} \
         (after {WEBHOOKS} webhooks in {:.1} s)",
        never / analyzed,
        accepted.as_secs_f64()
    );
    println!(
        "another's single webhook    p50 {:.0} ms, longest {:.0} ms, from accepted to applied ({} of them)",
        delays[delays.len() / 2].as_secs_f64() * 1e3,
        longest.as_secs_f64() * 1e3,
        delays.len()
    );
    Ok(())
}

/// How many jobs end in a second while the burst drains: its own and those of the backlog.
async fn rate(database: &Client, many: &Player) -> Result<f64> {
    let left = async || anyhow::Ok(database.query_one("SELECT count(*) FROM jobs", &[]).await?.get::<_, i64>(0));
    let (before, began) = (left().await?, Instant::now());
    pause(MEASURE).await;
    let (after, took) = (left().await?, began.elapsed());
    let burst = format!(
        "SELECT count(*) FROM jobs WHERE organization_id = '{}' AND kind = 'apply_delivery'",
        many.organization
    );
    let burst: i64 = database.query_one(&burst, &[]).await?.get(0);
    ensure!(burst > 0, "the burst has drained before its rate was measured");
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    Ok((before - after) as f64 / took.as_secs_f64())
}

/// Posts single webhooks, and measures how long each takes from its answer until its job has ended.
async fn delays(door: Door, database: Client, organization: String, is_over: Arc<AtomicBool>) -> Result<Vec<Duration>> {
    let waiting = format!("SELECT FROM jobs WHERE organization_id = '{organization}' AND kind = 'apply_delivery'");
    let waiting = database.prepare(&waiting).await?;
    let mut delays = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        door.post(&format!("evt_single_{}", delays.len())).await?;
        let accepted = Instant::now();
        while !database.query(&waiting, &[]).await?.is_empty() {
            pause(LOOK_EVERY).await;
        }
        delays.push(accepted.elapsed());
        pause(SINGLE_EVERY).await;
    }
    Ok(delays)
}
