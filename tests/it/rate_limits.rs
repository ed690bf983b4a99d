//! Stripe's rate limits and outages: how fast requests are sent, how organizations share, and what happens to held back
//! work.

use std::collections::HashMap;

use paybridge::dev::sandbox::{Action, Fault, Limits, Options as SandboxOptions, RecordedRequest};
use paybridge::dev::scenarios::BillingClient;
use paybridge::dev::test_environment::{Options, TestEnvironment};
use paybridge::domain::OrganizationId;
use paybridge::domain::jobs::{Capacity, JobKind, Lane, Lease};
use paybridge::grpc::proto::{CreateCustomerRequest, PaymentState};
use paybridge::store::{self, Pool, Scope};
use time::Duration;
use tokio_postgres::Client;

use crate::support::environment;
use crate::support::harness::{CONFIRM, CREATE, Harness};
use crate::support::sql::superuser;
use crate::support::wait::until;

/// Calls a second to an endpoint, fewer than any machine can make.
const ENDPOINT_LIMIT: u32 = 6;

/// A harness with Stripe's ratio of limits for live keys: an endpoint's limit is reached before the account's. The key
/// is a test key, since in live mode Stripe posts webhooks only to https URLs.
async fn limited_harness(name: &str, servers: usize) -> Harness {
    let limits = Some(Limits { endpoint: ENDPOINT_LIMIT, test: 4 * ENDPOINT_LIMIT, live: 4 * ENDPOINT_LIMIT });
    let sandbox = SandboxOptions { limits, ..SandboxOptions::default() };
    Harness::new(name, Options { servers, sandbox, ..Options::default() }).await
}

/// The requests that Stripe rejected with 429.
fn rate_limited_requests(harness: &Harness) -> Vec<RecordedRequest> {
    let mut requests = harness.sandbox().requests();
    requests.retain(|request| request.status == Some(429));
    requests
}

/// The number of `payment.succeeded` events of an organization up to a time.
async fn paid(database: &Client, organization: &str, until: Option<time::OffsetDateTime>) -> i64 {
    let until = until.map_or("infinity".to_owned(), |until| until.to_string());
    let sql = format!(
        "SELECT count(*) FROM events WHERE organization_id = '{organization}' AND webhook_type = 'payment.succeeded' \
         AND create_time <= '{until}'"
    );
    database.query_one(&sql, &[]).await.expect("a count").get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_the_limit_and_almost_nothing_is_rejected() {
    const INVOICES: usize = 50;
    let mut harness = limited_harness("drain", 3).await;
    harness.customer("hooli", "pm_card_visa").await;
    for number in 0..INVOICES {
        harness.pay("hooli", &format!("inv-{number}")).await;
    }
    let database = harness.database().await;
    let organization = harness.billing.organization.clone();
    until("all are paid", async || {
        (paid(&database, &organization, None).await == i64::try_from(INVOICES).unwrap()).then_some(())
    })
    .await;
    let rejected = rate_limited_requests(&harness);
    // Three servers without a shared limit would be rejected many times. One rejection can be a stall of the machine
    // while calls are in flight.
    assert!(rejected.len() <= 1, "{rejected:#?}");
    for path in ["/v1/payment_intents", "/confirm"] {
        let sent = harness.posts(path).len();
        assert!(sent <= INVOICES + rejected.len(), "{path} was called {sent} times");
    }
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_organizations_backlog_does_not_delay_anothers_single_payment() {
    const BACKLOG: i64 = 80;
    let mut harness = limited_harness("backlog", 1).await;
    harness.customer("hooli", "pm_card_visa").await;
    let (billing, integration) =
        BillingClient::connected(&harness.context, "single").await.expect("another organization");
    // The harness switches to the other organization to create one payment.
    let first = std::mem::replace(&mut harness.billing, billing);
    let first_integration = std::mem::replace(&mut harness.integration, integration);
    harness.customer("bream", "pm_card_visa").await;
    let second = std::mem::replace(&mut harness.billing, first);
    harness.integration = first_integration;
    for number in 0..BACKLOG {
        harness.pay("hooli", &format!("inv-{number}")).await;
    }
    let first = std::mem::replace(&mut harness.billing, second);
    let accepted = harness.pay("bream", "single").await;
    harness.payment_in("single", PaymentState::Succeeded).await;
    let database = harness.database().await;
    let paid_time = "SELECT create_time::text FROM events WHERE organization_id = $1::text::uuid AND webhook_type = $2";
    let paid_time = database.query_one(paid_time, &[&harness.billing.organization, &"payment.succeeded"]).await;
    let paid_time = paid_time.expect("the event");
    let between = format!(
        "SELECT count(*) FROM events WHERE organization_id = '{}' AND webhook_type = 'payment.succeeded' \
         AND create_time BETWEEN to_timestamp({}) AND '{}'",
        first.organization,
        accepted.create_time.expect("a time").seconds,
        paid_time.get::<_, String>(0),
    );
    let between: i64 = database.query_one(&between, &[]).await.expect("a count").get(0);
    // One second's worth, one for rounding, and one for a busy machine.
    assert!(between <= 3 * i64::from(ENDPOINT_LIMIT), "{between} of the backlog were paid before the single one");
    assert!(paid(&database, &first.organization, None).await < BACKLOG, "the backlog is not finished");
    drop(first);
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_calls_of_one_organization_leave_capacity_to_others() {
    let mut harness = Harness::new("slow", Options::default()).await;
    harness.customer("hooli", "pm_card_visa").await;
    let account = harness.billing.account.clone();
    let delay = Action::Delay { milliseconds: 15_000, after_work: false };
    harness.sandbox().add_fault(Fault { account, times: None, ..Fault::once("POST", CREATE, delay) });
    // More than the server's capacity.
    for number in 0..20 {
        harness.pay("hooli", &format!("inv-{number}")).await;
    }
    let (billing, integration) =
        BillingClient::connected(&harness.context, "quick").await.expect("another organization");
    let first = std::mem::replace(&mut harness.billing, billing);
    harness.integration = integration;
    harness.customer("bream", "pm_card_visa").await;
    harness.pay("bream", "single").await;
    harness.payment_in("single", PaymentState::Succeeded).await;
    let database = harness.database().await;
    assert_eq!(paid(&database, &first.organization, None).await, 0, "it was paid while the others' calls hung");
    drop(first);
    harness.shutdown().await;
}

/// Advances the clock, and waits until the jobs that are due by then have run. The rate limiter's slots last 400 ms of
/// the clock's time: a clock that is advanced at every poll leaves a busy machine no time to use one.
async fn run_jobs_after(harness: &Harness, database: &Client, step: Duration) {
    harness.advance(step);
    let due = harness.context.environment.clock.now();
    let due = format!("SELECT FROM jobs WHERE kind IN ('submit_payment', 'sync_customer') AND run_at <= '{due}'");
    until("all due jobs have run", async || database.query(&due, &[]).await.expect("jobs").is_empty().then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_during_an_outage_few_calls_are_sent_and_no_payment_fails() {
    const INVOICES: i64 = 40;
    let mut harness = Harness::new("outage", Options::default()).await;
    harness.customer("hooli", "pm_card_visa").await;
    harness.all_delivered().await;
    harness.sandbox().clear_requests();
    let outage = Fault { times: None, ..Fault::once("", "*", Action::Unavailable) };
    harness.sandbox().add_fault(outage);
    for number in 0..INVOICES {
        harness.pay("hooli", &format!("inv-{number}")).await;
    }
    let newcomer = CreateCustomerRequest {
        request_id: "newcomer".to_owned(),
        external_id: "newcomer".to_owned(),
        sync_with_provider: true,
        ..CreateCustomerRequest::default()
    };
    harness.billing.api.customers.create_customer(newcomer).await.expect("it is accepted");
    let calls = || harness.sandbox().requests().len();
    let database = harness.database().await;
    until("the outage is detected", async || (calls() >= 10).then_some(())).await;
    let before = calls();
    // A minute of the outage. Without a circuit breaker, 40 payments would make 200 calls.
    for _ in 0..30 {
        run_jobs_after(&harness, &database, Duration::seconds(2)).await;
    }
    let during = calls() - before;
    for (kind, path) in [("submit_payment", "/v1/payment_intents"), ("sync_customer", "/v1/customers")] {
        let failures = "SELECT COALESCE(sum(failures), 0) FROM jobs WHERE kind = $1";
        let failures: i64 = database.query_one(failures, &[&kind]).await.expect("a sum").get(0);
        let sent = harness.posts(path).len();
        assert!(failures <= i64::try_from(sent).unwrap(), "{failures} failures of {kind} with {sent} calls");
    }
    assert!(during <= 60, "{during} calls were sent during the outage");
    for number in 0..INVOICES {
        let payment = harness.payment(&format!("inv-{number}")).await;
        assert!(
            matches!(payment.state(), PaymentState::Pending | PaymentState::Processing),
            "unknown is not failed: {payment:#?}"
        );
    }
    harness.sandbox().clear_faults();
    let mut steps = 0;
    while paid(&database, &harness.billing.organization, None).await < INVOICES {
        assert!(steps < 200, "not all are paid within 1,000 s after the outage");
        run_jobs_after(&harness, &database, Duration::seconds(5)).await;
        steps += 1;
    }
    for number in 0..INVOICES {
        let invoice = format!("inv-{number}");
        assert_eq!(harness.live_charges(&invoice), 1);
        assert_eq!(harness.event_count("invoice.payment_failure", &invoice).await, 0, "it never failed");
    }
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_429_halves_the_rate_of_all_replicas_and_an_objects_limit_does_not() {
    let mut harness = limited_harness("halved", 2).await;
    harness.customer("hooli", "pm_card_visa").await;
    let database = harness.database().await;
    let account = harness.billing.account.clone();
    let rate = |endpoint: &'static str| {
        let (database, account) = (&database, account.clone());
        async move {
            let sql = "SELECT rate FROM stripe_budgets WHERE provider_account_id = $1 AND endpoint = $2";
            database.query_opt(sql, &[&account, &endpoint]).await.expect("a rate").map(|row| row.get::<_, f64>(0))
        }
    };
    let confirms = "POST /v1/payment_intents/{id}/confirm";
    let limit = |reason: &str| Action::RateLimit { reason: reason.to_owned() };
    for reason in ["resource-specific", "lock_timeout"] {
        harness.fault(CONFIRM, 1, limit(reason));
        harness.pay("hooli", reason).await;
        harness.payment_in(reason, PaymentState::Succeeded).await;
    }
    let full = rate(confirms).await.expect("the bucket is kept");
    let limit_now = f64::from(ENDPOINT_LIMIT);
    assert!((limit_now * 0.98..limit_now).contains(&full), "{full}");
    harness.fault(CONFIRM, 1, limit("endpoint-rate"));
    harness.pay("hooli", "endpoint").await;
    harness.payment_in("endpoint", PaymentState::Succeeded).await;
    let halved = rate(confirms).await.expect("the bucket is kept");
    assert!((halved - full / 2.0).abs() < 0.1, "{halved}");
    assert_eq!(rate("POST /v1/payment_intents").await, Some(full), "other endpoints keep their rate");
    // A rejected call is no failure: no event is emitted.
    assert_eq!(harness.event_count("invoice.payment_failure", "endpoint").await, 0);
    harness.fault(CREATE, 1, limit("global-rate"));
    harness.pay("hooli", "global").await;
    harness.payment_in("global", PaymentState::Succeeded).await;
    let whole = rate("").await.expect("the bucket is kept");
    assert!((whole - 2.0 * full).abs() < 0.1, "half of four times as much: {whole}");
    harness.shutdown().await;
}

/// Jobs of organizations, in an environment without servers that would lease them.
struct Queue {
    environment: TestEnvironment,
    database: Client,
    pool: Pool,
}

impl Queue {
    async fn new() -> Self {
        let environment = environment(Options { servers: 0, ..Options::default() }).await;
        let database = superuser(&environment.database_url).await;
        let pool = Pool::new(&environment.database_url, 2).expect("a pool");
        Self { environment, database, pool }
    }

    async fn organization(&self) -> OrganizationId {
        self.environment.organization("queue").await.expect("an organization").0
    }

    /// Adds `count` jobs that have been due for `age` seconds.
    async fn add(&self, organization: OrganizationId, kind: &str, count: u32, age: u32) {
        let sql = format!(
            "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, due, generation, failures, \
                 lease_epoch) \
             SELECT gen_random_uuid(), '{organization}', '{kind}', gen_random_uuid(), '', \
                 now() - make_interval(secs => {age}) + make_interval(secs => n / 1000000.0), true, 1, 0, 0 \
                 FROM generate_series(1, {count}) AS n"
        );
        self.database.execute(&sql, &[]).await.expect("jobs");
    }

    async fn lease(&self, capacity: &mut Capacity) -> Vec<Lease> {
        let mut tx = self.pool.begin(Scope::System).await.expect("a transaction");
        store::leases::make_due(&mut tx, self.environment.clock.now()).await.expect("jobs become due");
        let period = std::time::Duration::from_mins(1);
        let leases = store::leases::lease(&mut tx, capacity, period).await.expect("leases");
        tx.commit().await.expect("a commit");
        leases
    }
}

/// The capacity of a worker that holds no job.
fn worker_capacity(free: usize, organization_max: usize) -> Capacity {
    Capacity { free, organization_max, held: HashMap::new(), after: Lane::start(), is_scan_incomplete: false }
}

fn count(leases: &[Lease], organization: OrganizationId) -> usize {
    leases.iter().filter(|lease| lease.organization_id == organization).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn organizations_and_kinds_take_turns_regardless_of_queue_length() {
    let queue = Queue::new().await;
    let (long, short, late) = (queue.organization().await, queue.organization().await, queue.organization().await);
    for backlog in [20, 10_000] {
        queue.database.execute("DELETE FROM jobs", &[]).await.expect("an empty table");
        queue.add(long, "submit_payment", backlog, 1_000).await;
        queue.add(long, "apply_delivery", 1, 2).await;
        queue.add(short, "submit_payment", 2, 2).await;
        queue.add(late, "sync_customer", 1, 1).await;
        let mut capacity = worker_capacity(6, 6);
        let first = queue.lease(&mut capacity).await;
        assert_eq!(first.len(), 6);
        assert_eq!((count(&first, short), count(&first, late)), (2, 1), "{first:#?}");
        let of_long = |kind| first.iter().filter(|lease| lease.organization_id == long && lease.kind == kind).count();
        assert_eq!(of_long(JobKind::ApplyDelivery), 1, "an organization's webhooks do not wait behind its payments");
        assert_eq!(of_long(JobKind::SubmitPayment), 2);

        capacity.free = 6;
        let second = queue.lease(&mut capacity).await;
        assert_eq!(count(&second, long), 3, "held jobs count: six at most");
        assert_eq!(second.len(), 3, "no job is leased twice, and the others have no jobs left");
        queue.add(short, "submit_payment", 1, 0).await;
        capacity = Capacity { free: 1, organization_max: 7, ..capacity };
        let third = queue.lease(&mut capacity).await;
        assert_eq!(count(&third, short), 1, "the lane after the last one is first");
    }
    queue.environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_job_kinds_are_left_to_the_newer_release() {
    let queue = Queue::new().await;
    let organization = queue.organization().await;
    queue.add(organization, "of_newer_release", 300, 10).await;
    queue.add(organization, "submit_payment", 1, 1).await;
    let leases = queue.lease(&mut worker_capacity(5, 5)).await;
    assert_eq!(leases.iter().map(|lease| lease.kind).collect::<Vec<_>>(), [JobKind::SubmitPayment]);
    let mut tx = queue.pool.begin(Scope::System).await.expect("a transaction");
    assert_eq!(store::leases::next_due(&mut tx).await.expect("a response"), None, "no wake-up for them");
    tx.close().await.expect("an end");
    queue.environment.shutdown().await;
}

/// A lane without a job for this worker costs a statement, and a long scan delays the jobs that it has leased.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_a_scan_skips_a_bounded_number_of_empty_lanes_and_the_next_one_resumes_there() {
    let queue = Queue::new().await;
    let organization = queue.organization().await;
    for number in 0..120 {
        queue.add(organization, &format!("a_of_newer_release_{number}"), 1, 10).await;
    }
    queue.add(organization, "submit_payment", 1, 1).await;
    let mut capacity = worker_capacity(5, 5);
    let (mut scans, mut found) = (0, Vec::new());
    while found.is_empty() {
        capacity.is_scan_incomplete = false;
        found = queue.lease(&mut capacity).await;
        scans += 1;
        assert!(!found.is_empty() || capacity.is_scan_incomplete, "a job is left");
        assert!(scans <= 3, "120 lanes are skipped in three scans");
    }
    assert_eq!(found[0].kind, JobKind::SubmitPayment);
    queue.environment.shutdown().await;
}
