//! Several processes on one database: a killed worker is replaced, a stalled one writes nothing (P8), a signaled one
//! shuts down gracefully, and a timer runs once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration as RealDuration, Instant};

use parking_lot::Mutex;
use paybridge::dev::sandbox::{Action, WebhookFault};
use paybridge::dev::test_environment::Options;
use paybridge::domain::jobs::{Capacity, Lane};
use paybridge::grpc::proto::stream_events_request::Start;
use paybridge::grpc::proto::{PaymentState, StreamEventsRequest};
use paybridge::server::administration;
use rustix::process::{Pid, Signal, kill_process};
use time::Duration;
use tokio_postgres::Client;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::support::harness::{CONFIRM, Harness};
use crate::support::sql::superuser;
use crate::support::wait::until;
use crate::support::{database, http, program};

/// The time that a process has for its shutdown.
const GRACE: RealDuration = RealDuration::from_secs(6);

/// A worker process.
struct Worker {
    /// Its process id.
    process: u32,
    http: String,
}

impl Worker {
    async fn start(harness: &Harness) -> Self {
        let http = harness.context.environment.add_worker(&program()).await.expect("a worker");
        Self { process: harness.context.environment.newest_process_id().expect("a process"), http }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let response = http().get(format!("{}{path}", self.http)).send().await.expect("a response");
        (response.status().as_u16(), response.text().await.expect("a body"))
    }
}

fn send(process: u32, signal: Signal) {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("the signal is sent");
}

/// A harness whose server runs no jobs, and a worker process.
async fn with_worker(name: &str) -> (Harness, Worker) {
    let mut harness = Harness::new(name, Options { worker_concurrency: 0, ..Options::default() }).await;
    let worker = Worker::start(&harness).await;
    harness.customer("hooli", "pm_card_visa").await;
    harness.all_delivered().await;
    (harness, worker)
}

fn slow(milliseconds: u64) -> Action {
    Action::Delay { milliseconds, after_work: true }
}

/// Waits until `count` confirms are in flight.
async fn until_confirms_in_flight(harness: &Harness, count: usize) {
    until("the confirm is in flight", async || {
        (harness.posts("/confirm").iter().filter(|confirm| confirm.status.is_none()).count() == count).then_some(())
    })
    .await;
}

/// The lease epoch of the payment's job: how often it was leased.
async fn epoch(database: &Client) -> i64 {
    let query = "SELECT max(lease_epoch) FROM jobs WHERE kind = 'submit_payment'";
    database.query_one(query, &[]).await.expect("a result").get::<_, Option<i64>>(0).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_worker_that_is_killed_is_replaced_within_fifteen_seconds() {
    let (mut harness, first) = with_worker("killed").await;
    let database = harness.database().await;
    harness.fault(CONFIRM, 1, slow(18_000));
    harness.pay("hooli", "inv").await;
    until_confirms_in_flight(&harness, 1).await;
    let _second = Worker::start(&harness).await;
    assert_eq!(epoch(&database).await, 1, "the first worker holds the lease");
    send(first.process, Signal::KILL);
    let killed = Instant::now();
    // If the job is done already, its row is deleted.
    until("the other worker has the job", async || (epoch(&database).await != 1).then_some(())).await;
    let delay = killed.elapsed();
    println!("the job of a killed worker was leased again after {delay:?}");
    assert!(delay < RealDuration::from_secs(15), "{delay:?}");
    harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(harness.live_charges("inv"), 1, "one charge");
    harness.shutdown().await;
}

/// The payment, its attempts, the position of the log, and the job, as text.
async fn snapshot(database: &Client) -> Vec<String> {
    let query = "SELECT t::text FROM payments AS t UNION ALL SELECT t::text FROM payment_attempts AS t \
        UNION ALL SELECT last_position::text FROM event_heads \
        UNION ALL SELECT concat_ws(' ', id, lease_epoch, failures, run_at) FROM jobs WHERE kind = 'submit_payment'";
    database.query(query, &[]).await.expect("a result").iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_worker_whose_lease_expired_writes_nothing() {
    let (mut harness, stalled) = with_worker("stalled").await;
    let database = harness.database().await;
    // No webhook changes the payment.
    harness.sandbox().add_webhook_fault(WebhookFault { event: "payment_intent.*".to_owned(), ..Default::default() });
    harness.fault(CONFIRM, 1, slow(3_000));
    harness.pay("hooli", "inv").await;
    until_confirms_in_flight(&harness, 1).await;
    send(stalled.process, Signal::STOP);
    // Stripe delays its response to the second worker: nothing has changed when the first one continues.
    harness.fault(CONFIRM, 1, slow(12_000));
    let _second = Worker::start(&harness).await;
    until("the second worker has the job", async || (epoch(&database).await == 2).then_some(())).await;
    until("it has sent the confirm", async || (harness.posts("/confirm").len() == 2).then_some(())).await;
    assert_eq!(harness.live_charges("inv"), 1, "Stripe has charged for the stalled worker");
    let before = snapshot(&database).await;
    send(stalled.process, Signal::CONT);
    until("the stalled worker has dropped the job", async || {
        stalled.get("/metrics").await.1.contains("paybridge_jobs_running 0").then_some(())
    })
    .await;
    assert_eq!(snapshot(&database).await, before, "it wrote nothing");
    until_confirms_in_flight(&harness, 1).await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(harness.live_charges("inv"), 1, "one charge");
    assert_eq!(harness.payment("inv").await.attempts.len(), 1, "one attempt");
    until("the event is emitted", async || (harness.event_count("payment.succeeded", "inv").await == 1).then_some(()))
        .await;
    harness.shutdown().await;
}

/// A harness whose only server is a process, and its process id.
async fn with_server_process(name: &str) -> (Harness, u32) {
    let options = Options { program: Some(program()), shutdown_grace: GRACE, ..Options::default() };
    let mut harness = Harness::new(name, options).await;
    harness.customer("hooli", "pm_card_visa").await;
    harness.all_delivered().await;
    let process = harness.context.environment.newest_process_id().expect("a process");
    (harness, process)
}

/// Follows the health and the event stream of a server to their end, and records what happens.
async fn record_shutdown(harness: &Harness, records: Arc<Mutex<Vec<String>>>) -> tokio::task::JoinHandle<()> {
    let channel = Channel::from_shared(harness.context.environment.servers[0].grpc.clone()).expect("an address");
    let mut health = HealthClient::new(channel.connect().await.expect("a connection"));
    let mut health = health.watch(HealthCheckRequest { service: String::new() }).await.expect("a stream").into_inner();
    let request = StreamEventsRequest { start: Some(Start::FromNow(())), ..StreamEventsRequest::default() };
    let mut events = harness.billing.api.events.clone().stream_events(request).await.expect("a stream").into_inner();
    tokio::spawn(async move {
        let record = |text: String| records.lock().push(text);
        let mut is_serving = true;
        loop {
            // Of two messages that are there at once, this order is expected.
            tokio::select! {
                biased;
                message = health.message(), if is_serving => {
                    let status = message.ok().flatten().map(|message| message.status());
                    if status != Some(ServingStatus::Serving) {
                        is_serving = false;
                        record(format!("{status:?}"));
                    }
                }
                message = events.message() => match message {
                    Ok(Some(_)) => {}
                    Ok(None) => return record("the stream ended without a status".to_owned()),
                    Err(end) => {
                        let has_time = end.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some());
                        return record(format!("{:?}, with RetryInfo: {has_time}", end.code()));
                    }
                },
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_process_reports_not_serving_first_and_finishes_its_jobs() {
    let (harness, process) = with_server_process("drained").await;
    let database = harness.database().await;
    let records = Arc::default();
    let recorder = record_shutdown(&harness, Arc::clone(&records)).await;
    harness.fault(CONFIRM, 1, slow(2_000));
    harness.sandbox().add_webhook_fault(WebhookFault::default());
    harness.pay_as("pay", "hooli", "inv", 4900).await.expect("the payment is accepted");
    until_confirms_in_flight(&harness, 1).await;
    send(process, Signal::TERM);
    let signaled = Instant::now();
    recorder.await.expect("no panic");
    let expected = [r"Some(NotServing)", "Unavailable, with RetryInfo: true"];
    assert_eq!(*records.lock(), expected, "health first, then the streams");
    let status = until("the process has ended", async || harness.context.environment.exit_status(process)).await;
    assert!(status.success(), "a clean exit: {status}");
    assert!(signaled.elapsed() < GRACE, "within the grace period: {:?}", signaled.elapsed());
    let row = database.query_one("SELECT state FROM payments", &[]).await.expect("the payment");
    assert_eq!(row.get::<_, String>(0), "succeeded", "the payment in progress was finished");
    let held = database.query_one("SELECT count(*) FROM jobs WHERE lease_until > clock_timestamp()", &[]).await;
    assert_eq!(held.expect("a count").get::<_, i64>(0), 0, "no lease is held");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_can_not_finish_in_time_releases_its_jobs() {
    let (mut harness, process) = with_server_process("released").await;
    let database = harness.database().await;
    harness.fault(CONFIRM, 1, slow(15_000));
    harness.sandbox().add_webhook_fault(WebhookFault { event: "payment_intent.*".to_owned(), ..Default::default() });
    harness.pay("hooli", "inv").await;
    until_confirms_in_flight(&harness, 1).await;
    send(process, Signal::TERM);
    let signaled = Instant::now();
    let status = until("the process has ended", async || harness.context.environment.exit_status(process)).await;
    assert!(status.success(), "a clean exit: {status}");
    assert!(signaled.elapsed() < GRACE, "within the grace period: {:?}", signaled.elapsed());
    let job = database.query_one("SELECT lease_until IS NULL, failures FROM jobs WHERE kind = 'submit_payment'", &[]);
    let job = job.await.expect("the job is there");
    assert_eq!((job.get(0), job.get(1)), (true, 0), "released, without a failure");
    let _other = Worker::start(&harness).await;
    until("it is paid", async || {
        let row = database.query_one("SELECT state FROM payments", &[]).await.expect("the payment");
        (row.get::<_, String>(0) == "succeeded").then_some(())
    })
    .await;
    assert_eq!(harness.live_charges("inv"), 1, "one charge");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_job_concurrency_leaves_jobs_to_workers_and_workers_accept_no_webhooks() {
    let mut harness = Harness::new("api only", Options { worker_concurrency: 0, ..Options::default() }).await;
    let created = paybridge::grpc::proto::CreateCustomerRequest {
        request_id: "hooli".to_owned(),
        external_id: "hooli".to_owned(),
        ..Default::default()
    };
    harness.billing.api.customers.create_customer(created).await.expect("it is accepted");
    let payment = harness.pay_as("pay", "hooli", "inv", 0).await.expect("it is accepted");
    assert_eq!(payment.state(), PaymentState::Pending);
    let database = harness.database().await;
    let leased = database.query_one("SELECT max(lease_epoch) FROM jobs", &[]).await.expect("a result");
    assert_eq!(leased.get::<_, Option<i64>>(0), Some(0), "no job was leased");
    let worker = Worker::start(&harness).await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    for (path, expected) in [("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/webhooks/stripe/x/y", 404)] {
        assert_eq!(worker.get(path).await.0, expected, "{path}");
    }
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timer_runs_once_and_not_once_per_replica() {
    const ROUNDS: i64 = 4;
    let harness = Harness::new("timers", Options { servers: 3, ..Options::default() }).await;
    let database = harness.database().await;
    let until_run = async |count: i64| {
        until("the timer has run", async || {
            let query = "SELECT count(*) FROM timer_log WHERE name = 'retire'";
            let row = database.query_one(query, &[]).await.ok()?;
            (row.get::<_, i64>(0) >= count).then_some(())
        })
        .await;
    };
    let watch = "CREATE TABLE timer_log (name text, next_time timestamptz); \
        CREATE FUNCTION watch() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS $$ BEGIN \
            INSERT INTO timer_log VALUES (NEW.name, NEW.next_time); RETURN NULL; END $$; \
        CREATE TRIGGER watch AFTER INSERT OR UPDATE ON timers FOR EACH ROW EXECUTE FUNCTION watch(); \
        UPDATE timers SET next_time = next_time WHERE name = 'retire'";
    until("the timer is stored", async || {
        let row = database.query_opt("SELECT FROM timers WHERE name = 'retire'", &[]).await.expect("a result");
        row.map(|_| ())
    })
    .await;
    database.batch_execute(watch).await.expect("the trigger is set");
    for round in 1..=ROUNDS {
        harness.advance(Duration::minutes(61));
        until_run(1 + round).await;
    }
    let query = "SELECT count(*), count(DISTINCT next_time) FROM timer_log WHERE name = 'retire'";
    let row = database.query_one(query, &[]).await.expect("a count");
    assert_eq!((row.get(0), row.get(1)), (1 + ROUNDS, 1 + ROUNDS), "once a round");
    harness.shutdown().await;
}

/// A renewal works with a list of leases that may be out of date. To renew a released job would block it for the length
/// of a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_renewal_does_not_lease_a_released_job_again() {
    let url = database().await;
    let app = administration(&url).expect("the application");
    let organization = app.create_organization("Hooli").await.expect("an organization");
    let job = format!(
        "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, generation, failures, \
             lease_epoch) \
         VALUES (gen_random_uuid(), '{}', 'submit_payment', gen_random_uuid(), '', now() - interval '1 h', 1, 0, 0)",
        organization.id
    );
    superuser(&url).await.execute(&job, &[]).await.expect("a job");
    let mut capacity = Capacity {
        free: 10,
        organization_max: 10,
        held: HashMap::new(),
        after: Lane::start(),
        is_scan_incomplete: false,
    };
    let lease = app.lease_jobs(&mut capacity).await.expect("a response").pop().expect("the job is due");
    let held = [(lease.id.0, lease.epoch)];
    app.release_leases(&held).await.expect("it is released");
    app.renew_leases(&held).await.expect("a response");
    let again = app.lease_jobs(&mut capacity).await.expect("a response").pop().expect("it is free");
    assert_eq!(again.epoch, lease.epoch + 1);
}
