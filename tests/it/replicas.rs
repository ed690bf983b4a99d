//! Any number of processes on one database: who dies is replaced, who sleeps writes nothing when it wakes (P8), who is told
//! to go goes in order, and what is done by the clock is done once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration as RealDuration, Instant};

use paybridge::dev::sandbox::{Action, WebhookFault};
use paybridge::dev::stage::Options;
use paybridge::domain::jobs::{Lane, Room};
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

use crate::cashier::{CONFIRM, Cashier, until};
use crate::hands::superuser;
use crate::support::{database, http, program};

/// How long a process that is told to go has.
const GRACE: RealDuration = RealDuration::from_secs(6);

/// A process and its HTTP door.
struct Worker {
    process: u32,
    http: String,
}

impl Worker {
    async fn start(cashier: &Cashier) -> Self {
        let http = cashier.scenery.stage.add_worker(&program()).await.expect("a worker");
        Self { process: cashier.scenery.stage.newest_process().expect("a process"), http }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = http().get(format!("{}{path}", self.http)).send().await.expect("the worker answers");
        (answer.status().as_u16(), answer.text().await.expect("a body"))
    }
}

fn send(process: u32, signal: Signal) {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("the signal is sent");
}

/// A till whose own server only has doors, with one worker process beside it.
async fn till(name: &str) -> (Cashier, Worker) {
    let mut cashier = Cashier::new(name, Options { worker_concurrency: 0, ..Options::default() }).await;
    let worker = Worker::start(&cashier).await;
    cashier.customer("hooli", "pm_card_visa").await;
    cashier.all_delivered().await;
    (cashier, worker)
}

fn slow(milliseconds: u64) -> Action {
    Action::Delay { milliseconds, after_work: true }
}

async fn confirms_in_flight(cashier: &Cashier, count: usize) {
    until("the confirm is in flight", || async {
        (cashier.posts("/confirm").iter().filter(|confirm| confirm.status.is_none()).count() == count).then_some(())
    })
    .await;
}

/// How often the payment's job was leased.
async fn epoch(database: &Client) -> i64 {
    let query = "SELECT max(lease_epoch) FROM jobs WHERE kind = 'submit_payment'";
    database.query_one(query, &[]).await.expect("a look").get::<_, Option<i64>>(0).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_worker_that_is_killed_is_replaced_within_fifteen_seconds() {
    let (mut cashier, first) = till("killed").await;
    let database = cashier.database().await;
    cashier.fault(CONFIRM, 1, slow(18_000));
    cashier.pay("hooli", "inv").await;
    confirms_in_flight(&cashier, 1).await;
    let _second = Worker::start(&cashier).await;
    assert_eq!(epoch(&database).await, 1, "the first worker holds the job, and renews its lease");
    send(first.process, Signal::KILL);
    let killed = Instant::now();
    // Perhaps it has done it already: then the job is gone.
    until("the other worker has the job", || async { (epoch(&database).await != 1).then_some(()) }).await;
    let took = killed.elapsed();
    println!("the work of a killed worker was taken up after {took:?}");
    assert!(took < RealDuration::from_secs(15), "{took:?}");
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(cashier.live_charges("inv"), 1, "one charge");
    cashier.end().await;
}

/// What the payment, its attempts, its events and its job look like.
async fn picture(database: &Client) -> Vec<String> {
    let query = "SELECT t::text FROM payments AS t UNION ALL SELECT t::text FROM payment_attempts AS t \
        UNION ALL SELECT last_position::text FROM event_heads \
        UNION ALL SELECT concat_ws(' ', id, lease_epoch, failures, run_at) FROM jobs WHERE kind = 'submit_payment'";
    database.query(query, &[]).await.expect("a look").iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_worker_that_slept_through_its_lease_writes_nothing() {
    let (mut cashier, sleeper) = till("sleeper").await;
    let database = cashier.database().await;
    // Nobody but the workers brings news of the payment.
    cashier.sandbox().add_webhook_fault(WebhookFault { event: "payment_intent.*".to_owned(), ..Default::default() });
    cashier.fault(CONFIRM, 1, slow(3_000));
    cashier.pay("hooli", "inv").await;
    confirms_in_flight(&cashier, 1).await;
    send(sleeper.process, Signal::STOP);
    // The second worker is kept waiting by Stripe, so that everything is as the sleeper left it when it wakes.
    cashier.fault(CONFIRM, 1, slow(12_000));
    let _second = Worker::start(&cashier).await;
    until("the second worker has the job", || async { (epoch(&database).await == 2).then_some(()) }).await;
    until("it has sent the confirm", || async { (cashier.posts("/confirm").len() == 2).then_some(()) }).await;
    assert_eq!(cashier.live_charges("inv"), 1, "Stripe's answer for the sleeper says that it is paid");
    let before = picture(&database).await;
    send(sleeper.process, Signal::CONT);
    until("the sleeper has let the job go", || async {
        sleeper.get("/metrics").await.1.contains("paybridge_jobs_running 0").then_some(())
    })
    .await;
    assert_eq!(picture(&database).await, before, "it wrote nothing");
    confirms_in_flight(&cashier, 1).await;
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(cashier.live_charges("inv"), 1, "one charge");
    assert_eq!(cashier.payment("inv").await.attempts.len(), 1, "one attempt");
    until("it is told", || async { (cashier.count("payment.succeeded", "inv").await == 1).then_some(()) }).await;
    cashier.end().await;
}

/// A till whose only server is a process.
async fn served_by_a_process(name: &str) -> (Cashier, u32) {
    let options = Options { program: Some(program()), shutdown_grace: GRACE, ..Options::default() };
    let mut cashier = Cashier::new(name, options).await;
    cashier.customer("hooli", "pm_card_visa").await;
    cashier.all_delivered().await;
    let process = cashier.scenery.stage.newest_process().expect("a process");
    (cashier, process)
}

/// Follows health and events of a server to their end, and notes what happened in which order.
async fn witness(cashier: &Cashier, notes: Arc<Mutex<Vec<String>>>) -> tokio::task::JoinHandle<()> {
    let channel = Channel::from_shared(cashier.scenery.stage.servers[0].grpc.clone()).expect("an address");
    let mut health = HealthClient::new(channel.connect().await.expect("the server is there"));
    let mut health =
        health.watch(HealthCheckRequest { service: String::new() }).await.expect("health is told").into_inner();
    let request = StreamEventsRequest { start: Some(Start::FromNow(true)), webhook_types: Vec::new() };
    let mut events = cashier.player.api.events.clone().stream_events(request).await.expect("a stream").into_inner();
    tokio::spawn(async move {
        let note = |text: String| notes.lock().expect("no holder panics").push(text);
        let mut is_serving = true;
        loop {
            // What has come at the same time came in this order.
            tokio::select! {
                biased;
                told = health.message(), if is_serving => {
                    let status = told.ok().flatten().map(|told| told.status());
                    if status != Some(ServingStatus::Serving) {
                        is_serving = false;
                        note(format!("{status:?}"));
                    }
                }
                told = events.message() => match told {
                    Ok(Some(_)) => {}
                    Ok(None) => return note("the stream ended without a word".to_owned()),
                    Err(end) => {
                        let has_time = end.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some());
                        return note(format!("{:?}, with RetryInfo: {has_time}", end.code()));
                    }
                },
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_told_to_go_says_so_first_and_finishes_what_it_has_in_hand() {
    let (cashier, process) = served_by_a_process("drained").await;
    let database = cashier.database().await;
    let notes = Arc::default();
    let witness = witness(&cashier, Arc::clone(&notes)).await;
    cashier.fault(CONFIRM, 1, slow(2_000));
    cashier.sandbox().add_webhook_fault(WebhookFault::default());
    cashier.pay_as("pay", "hooli", "inv", 4900).await.expect("the payment is taken");
    confirms_in_flight(&cashier, 1).await;
    send(process, Signal::TERM);
    let told = Instant::now();
    witness.await.expect("the witness lives");
    let expected = [r"Some(NotServing)", "Unavailable, with RetryInfo: true"];
    assert_eq!(*notes.lock().expect("no holder panics"), expected, "health first, then the streams");
    let status = until("the process has ended", || async { cashier.scenery.stage.ended(process) }).await;
    assert!(status.success(), "in order: {status}");
    assert!(told.elapsed() < GRACE, "within the grace: {:?}", told.elapsed());
    let row = database.query_one("SELECT state FROM payments", &[]).await.expect("the payment");
    assert_eq!(row.get::<_, String>(0), "succeeded", "the payment in hand was finished");
    let held = database.query_one("SELECT count(*) FROM jobs WHERE lease_until > clock_timestamp()", &[]).await;
    assert_eq!(held.expect("a count").get::<_, i64>(0), 0, "nothing is held");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_can_not_finish_in_time_gives_its_work_back() {
    let (mut cashier, process) = served_by_a_process("given back").await;
    let database = cashier.database().await;
    cashier.fault(CONFIRM, 1, slow(15_000));
    cashier.sandbox().add_webhook_fault(WebhookFault { event: "payment_intent.*".to_owned(), ..Default::default() });
    cashier.pay("hooli", "inv").await;
    confirms_in_flight(&cashier, 1).await;
    send(process, Signal::TERM);
    let told = Instant::now();
    let status = until("the process has ended", || async { cashier.scenery.stage.ended(process) }).await;
    assert!(status.success(), "in order: {status}");
    assert!(told.elapsed() < GRACE, "within the grace: {:?}", told.elapsed());
    let job = database.query_one("SELECT lease_until IS NULL, failures FROM jobs WHERE kind = 'submit_payment'", &[]);
    let job = job.await.expect("the job is there");
    assert_eq!((job.get(0), job.get(1)), (true, 0), "given back, for no fault of its own");
    let _other = Worker::start(&cashier).await;
    until("it is taken up and paid", || async {
        let row = database.query_one("SELECT state FROM payments", &[]).await.expect("the payment");
        (row.get::<_, String>(0) == "succeeded").then_some(())
    })
    .await;
    assert_eq!(cashier.live_charges("inv"), 1, "one charge");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_doors_only_leaves_the_work_to_workers_which_have_no_doors() {
    let mut cashier = Cashier::new("doors", Options { worker_concurrency: 0, ..Options::default() }).await;
    let created = paybridge::grpc::proto::CreateCustomerRequest {
        request_id: "hooli".to_owned(),
        external_id: "hooli".to_owned(),
        ..Default::default()
    };
    cashier.player.api.customers.create_customer(created).await.expect("it is accepted");
    let payment = cashier.pay_as("pay", "hooli", "inv", 0).await.expect("it is accepted");
    assert_eq!(payment.state(), PaymentState::Pending);
    let database = cashier.database().await;
    let leased = database.query_one("SELECT max(lease_epoch) FROM jobs", &[]).await.expect("a look");
    assert_eq!(leased.get::<_, Option<i64>>(0), Some(0), "nobody has taken any job");
    let worker = Worker::start(&cashier).await;
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    for (path, expected) in [("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/webhooks/stripe/x/y", 404)] {
        assert_eq!(worker.get(path).await.0, expected, "{path}");
    }
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timers_run_once_and_not_once_a_replica() {
    const ROUNDS: i64 = 4;
    let cashier = Cashier::new("timers", Options { servers: 3, ..Options::default() }).await;
    let database = cashier.database().await;
    let taken = async |count: i64| {
        until("the timer is taken", || async {
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
    until("the timer is there", || async {
        let row = database.query_opt("SELECT FROM timers WHERE name = 'retire'", &[]).await.expect("a look");
        row.map(|_| ())
    })
    .await;
    database.batch_execute(watch).await.expect("the watch is set");
    for round in 1..=ROUNDS {
        cashier.advance(Duration::minutes(61));
        taken(1 + round).await;
    }
    let query = "SELECT count(*), count(DISTINCT next_time) FROM timer_log WHERE name = 'retire'";
    let row = database.query_one(query, &[]).await.expect("a count");
    assert_eq!((row.get(0), row.get(1)), (1 + ROUNDS, 1 + ROUNDS), "once a round, by one of three");
    cashier.end().await;
}

/// Who renews has looked at what is held a moment ago. A job that was given back since is nobody's: to hold it for the length
/// of a lease would keep it from being looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_job_that_was_just_given_back_is_not_held_again_by_a_renewal() {
    let url = database().await;
    let app = administration(&url).expect("the use cases");
    let organization = app.create_organization("Hooli").await.expect("an organization");
    let job = format!(
        "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, asked, failures, lease_epoch) \
         VALUES (gen_random_uuid(), '{}', 'submit_payment', gen_random_uuid(), '', now() - interval '1 h', 1, 0, 0)",
        organization.id
    );
    superuser(&url).await.execute(&job, &[]).await.expect("a job");
    let mut room =
        Room { free: 10, organization_max: 10, held: HashMap::new(), after: Lane::start(), is_cut_short: false };
    let lease = app.lease_jobs(&mut room).await.expect("an answer").pop().expect("the job is due");
    let held = [(lease.id.0, lease.epoch)];
    app.give_up_leases(&held).await.expect("it is given back");
    app.renew_leases(&held).await.expect("an answer");
    let again = app.lease_jobs(&mut room).await.expect("an answer").pop().expect("nobody holds it");
    assert_eq!(again.epoch, lease.epoch + 1);
}
