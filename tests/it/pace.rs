//! Stripe's limits and outages: what is sent, how fast, for whom first, and what happens to what is not sent.

use std::collections::HashMap;

use paybridge::dev::sandbox::{Action, Fault, Limits, Options as SandboxOptions, Recorded};
use paybridge::dev::stage::{Options, Stage};
use paybridge::dev::story::Player;
use paybridge::domain::OrganizationId;
use paybridge::domain::jobs::{JobKind, Lane, Lease, Room};
use paybridge::grpc::proto::{CreateCustomerRequest, PaymentState};
use paybridge::store::{self, Pool, Scope};
use time::Duration;
use tokio_postgres::Client;

use crate::cashier::{CONFIRM, CREATE, Cashier, until};
use crate::support::stage;

/// Calls a second to an endpoint: so few that any machine could make more.
const ENDPOINT_LIMIT: u32 = 6;

/// A till before a Stripe that counts as it does for live keys, where an endpoint's limit is met before the account's. The
/// key is a test key all the same: in live mode Stripe posts webhooks to https addresses only.
async fn limited_till(name: &str, servers: usize) -> Cashier {
    let limits = Some(Limits { endpoint: ENDPOINT_LIMIT, test: 4 * ENDPOINT_LIMIT, live: 4 * ENDPOINT_LIMIT });
    let sandbox = SandboxOptions { limits, ..SandboxOptions::default() };
    Cashier::new(name, Options { servers, sandbox, ..Options::default() }).await
}

fn turned_away(cashier: &Cashier) -> Vec<Recorded> {
    let mut requests = cashier.sandbox().requests();
    requests.retain(|request| request.status == Some(429));
    requests
}

/// How many of an organization's payments have been told as paid, by their own events, until a moment.
async fn paid(database: &Client, organization: &str, until: Option<time::OffsetDateTime>) -> i64 {
    let until = until.map_or("infinity".to_owned(), |until| until.to_string());
    let sql = format!(
        "SELECT count(*) FROM events WHERE organization_id = '{organization}' AND webhook_type = 'payment.succeeded' \
         AND create_time <= '{until}'"
    );
    database.query_one(&sql, &[]).await.expect("a count").get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_the_limit_and_next_to_nothing_is_turned_away() {
    const INVOICES: usize = 50;
    let mut cashier = limited_till("drain", 3).await;
    cashier.customer("hooli", "pm_card_visa").await;
    for number in 0..INVOICES {
        cashier.pay("hooli", &format!("inv-{number}")).await;
    }
    let database = cashier.database().await;
    let organization = cashier.player.organization.clone();
    until("all are paid", || async {
        (paid(&database, &organization, None).await == i64::try_from(INVOICES).unwrap()).then_some(())
    })
    .await;
    let refused = turned_away(&cashier);
    // Three servers that knew nothing of each other would be turned away again and again. One is chance: a machine that
    // stood still while calls were on their way.
    assert!(refused.len() <= 1, "{refused:#?}");
    for path in ["/v1/payment_intents", "/confirm"] {
        let sent = cashier.posts(path).len();
        assert!(sent <= INVOICES + refused.len(), "{path} was called {sent} times");
    }
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_organizations_backlog_does_not_delay_anothers_single_payment() {
    const BACKLOG: i64 = 80;
    let mut cashier = limited_till("backlog", 1).await;
    cashier.customer("hooli", "pm_card_visa").await;
    let (player, integration) = Player::connected(&cashier.scenery, "single").await.expect("another organization");
    // The same till serves the other organization for as long as it takes to give in one invoice.
    let first = std::mem::replace(&mut cashier.player, player);
    let first_integration = std::mem::replace(&mut cashier.integration, integration);
    cashier.customer("bream", "pm_card_visa").await;
    let second = std::mem::replace(&mut cashier.player, first);
    cashier.integration = first_integration;
    for number in 0..BACKLOG {
        cashier.pay("hooli", &format!("inv-{number}")).await;
    }
    let first = std::mem::replace(&mut cashier.player, second);
    let accepted = cashier.pay("bream", "single").await;
    cashier.payment_in("single", PaymentState::Succeeded).await;
    let database = cashier.database().await;
    let told = "SELECT create_time::text FROM events WHERE organization_id = $1::text::uuid AND webhook_type = $2";
    let told = database.query_one(told, &[&cashier.player.organization, &"payment.succeeded"]).await.expect("told");
    let between = format!(
        "SELECT count(*) FROM events WHERE organization_id = '{}' AND webhook_type = 'payment.succeeded' \
         AND create_time BETWEEN to_timestamp({}) AND '{}'",
        first.organization,
        accepted.create_time.expect("a time").seconds,
        told.get::<_, String>(0),
    );
    let between: i64 = database.query_one(&between, &[]).await.expect("a count").get(0);
    // A second's worth, with the second that is lost to rounding, and another for a machine that is busy.
    assert!(between <= 3 * i64::from(ENDPOINT_LIMIT), "{between} of the backlog were paid before the single one");
    assert!(paid(&database, &first.organization, None).await < BACKLOG, "the backlog was still there");
    drop(first);
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_calls_of_one_organization_leave_places_to_others() {
    let mut cashier = Cashier::new("slow", Options::default()).await;
    cashier.customer("hooli", "pm_card_visa").await;
    let account = cashier.player.account.clone();
    let delay = Action::Delay { milliseconds: 15_000, after_work: false };
    cashier.sandbox().add_fault(Fault { account, times: None, ..Fault::once("POST", CREATE, delay) });
    // More than the server has places.
    for number in 0..20 {
        cashier.pay("hooli", &format!("inv-{number}")).await;
    }
    let (player, integration) = Player::connected(&cashier.scenery, "quick").await.expect("another organization");
    let first = std::mem::replace(&mut cashier.player, player);
    cashier.integration = integration;
    cashier.customer("bream", "pm_card_visa").await;
    cashier.pay("bream", "single").await;
    cashier.payment_in("single", PaymentState::Succeeded).await;
    let database = cashier.database().await;
    assert_eq!(paid(&database, &first.organization, None).await, 0, "it was paid while the others' calls hung");
    drop(first);
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_an_outage_means_few_calls_and_later_never_failed() {
    const INVOICES: i64 = 40;
    let mut cashier = Cashier::new("outage", Options::default()).await;
    cashier.customer("hooli", "pm_card_visa").await;
    cashier.all_delivered().await;
    cashier.sandbox().forget_requests();
    let down = Fault { times: None, ..Fault::once("", "*", Action::Unavailable) };
    cashier.sandbox().add_fault(down);
    for number in 0..INVOICES {
        cashier.pay("hooli", &format!("inv-{number}")).await;
    }
    let newcomer = CreateCustomerRequest {
        external_id: "newcomer".to_owned(),
        sync_with_provider: true,
        ..CreateCustomerRequest::default()
    };
    cashier.player.api.customers.create_customer(newcomer).await.expect("it is taken");
    let calls = || cashier.sandbox().requests().len();
    let database = cashier.database().await;
    until("it is noticed", || async { (calls() >= 10).then_some(()) }).await;
    let before = calls();
    // A minute of the outage, in which forty payments would try two hundred times.
    for _ in 0..30 {
        cashier.advance(Duration::seconds(2));
        let due = cashier.scenery.stage.clock.now();
        let due = format!("SELECT FROM jobs WHERE kind IN ('submit_payment', 'sync_customer') AND run_at <= '{due}'");
        until("whatever was due has been looked at", || async {
            database.query(&due, &[]).await.expect("jobs").is_empty().then_some(())
        })
        .await;
    }
    let during = calls() - before;
    for (kind, path) in [("submit_payment", "/v1/payment_intents"), ("sync_customer", "/v1/customers")] {
        let failures = "SELECT COALESCE(sum(failures), 0) FROM jobs WHERE kind = $1";
        let failures: i64 = database.query_one(failures, &[&kind]).await.expect("a sum").get(0);
        let sent = cashier.posts(path).len();
        assert!(failures <= i64::try_from(sent).unwrap(), "{failures} failures of {kind} with {sent} calls: held back");
    }
    assert!(during <= 60, "{during} calls were sent into the outage");
    for number in 0..INVOICES {
        let payment = cashier.payment(&format!("inv-{number}")).await;
        assert!(
            matches!(payment.state(), PaymentState::Pending | PaymentState::Processing),
            "unknown is not failed: {payment:#?}"
        );
    }
    cashier.sandbox().clear_faults();
    until("all are paid", || async {
        cashier.advance(Duration::seconds(5));
        (paid(&database, &cashier.player.organization, None).await == INVOICES).then_some(())
    })
    .await;
    for number in 0..INVOICES {
        let invoice = format!("inv-{number}");
        assert_eq!(cashier.live_charges(&invoice), 1);
        assert_eq!(cashier.count("invoice.payment_failure", &invoice).await, 0, "it never failed");
    }
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_429_halves_what_all_replicas_may_send_and_one_objects_limit_does_not() {
    let mut cashier = limited_till("halved", 2).await;
    cashier.customer("hooli", "pm_card_visa").await;
    let database = cashier.database().await;
    let account = cashier.player.account.clone();
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
        cashier.fault(CONFIRM, 1, limit(reason));
        cashier.pay("hooli", reason).await;
        cashier.payment_in(reason, PaymentState::Succeeded).await;
    }
    let full = rate(confirms).await.expect("the bucket is kept");
    let limit_now = f64::from(ENDPOINT_LIMIT);
    assert!((limit_now * 0.98..limit_now).contains(&full), "{full}");
    cashier.fault(CONFIRM, 1, limit("endpoint-rate"));
    cashier.pay("hooli", "endpoint").await;
    cashier.payment_in("endpoint", PaymentState::Succeeded).await;
    let halved = rate(confirms).await.expect("the bucket is kept");
    assert!((halved - full / 2.0).abs() < 0.1, "{halved}");
    assert_eq!(rate("POST /v1/payment_intents").await, Some(full), "others go on");
    // Turned away is not failed: no failure is counted, and nothing is told.
    assert_eq!(cashier.count("invoice.payment_failure", "endpoint").await, 0);
    cashier.fault(CREATE, 1, limit("global-rate"));
    cashier.pay("hooli", "global").await;
    cashier.payment_in("global", PaymentState::Succeeded).await;
    let whole = rate("").await.expect("the bucket is kept");
    assert!((whole - 2.0 * full).abs() < 0.1, "half of four times as much: {whole}");
    cashier.end().await;
}

/// Jobs for lanes of organizations, on a stage without servers that would take them.
struct Queue {
    stage: Stage,
    database: Client,
    pool: Pool,
}

impl Queue {
    async fn new() -> Self {
        let stage = stage(Options { servers: 0, ..Options::default() }).await;
        let mut config: tokio_postgres::Config = stage.database_url.parse().expect("an address");
        let (database, connection) = config.user("postgres").connect(tokio_postgres::NoTls).await.expect("a database");
        tokio::spawn(connection);
        let pool = Pool::new(&stage.database_url, 2).expect("a pool");
        Self { stage, database, pool }
    }

    async fn organization(&self) -> OrganizationId {
        self.stage.organization("queue").await.expect("an organization").0
    }

    /// So many jobs that have been due for so many seconds.
    async fn add(&self, organization: OrganizationId, kind: &str, count: u32, age: u32) {
        let sql = format!(
            "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, due, asked, failures, \
                 lease_epoch) \
             SELECT gen_random_uuid(), '{organization}', '{kind}', gen_random_uuid(), '', \
                 now() - make_interval(secs => {age}) + make_interval(secs => n / 1000000.0), true, 1, 0, 0 \
                 FROM generate_series(1, {count}) AS n"
        );
        self.database.execute(&sql, &[]).await.expect("jobs");
    }

    async fn lease(&self, room: &mut Room) -> Vec<Lease> {
        let mut tx = self.pool.begin(Scope::System).await.expect("a transaction");
        store::leases::make_due(&mut tx, self.stage.clock.now()).await.expect("jobs become due");
        let period = std::time::Duration::from_mins(1);
        let leases = store::leases::lease(&mut tx, room, period).await.expect("leases");
        tx.commit().await.expect("a commit");
        leases
    }
}

/// Of a worker that holds nothing yet.
fn room(free: usize, organization_max: usize) -> Room {
    Room { free, organization_max, held: HashMap::new(), after: Lane::start(), is_cut_short: false }
}

fn count(leases: &[Lease], organization: OrganizationId) -> usize {
    leases.iter().filter(|lease| lease.organization_id == organization).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn organizations_and_kinds_take_turns_however_long_their_queues_are() {
    let queue = Queue::new().await;
    let (long, short, late) = (queue.organization().await, queue.organization().await, queue.organization().await);
    for backlog in [20, 10_000] {
        queue.database.execute("DELETE FROM jobs", &[]).await.expect("an empty table");
        queue.add(long, "submit_payment", backlog, 1_000).await;
        queue.add(long, "apply_delivery", 1, 2).await;
        queue.add(short, "submit_payment", 2, 2).await;
        queue.add(late, "sync_customer", 1, 1).await;
        let mut room = room(6, 6);
        let first = queue.lease(&mut room).await;
        assert_eq!(first.len(), 6);
        assert_eq!((count(&first, short), count(&first, late)), (2, 1), "{first:#?}");
        let of_long = |kind| first.iter().filter(|lease| lease.organization_id == long && lease.kind == kind).count();
        assert_eq!(of_long(JobKind::ApplyDelivery), 1, "an organization's webhooks do not wait behind its payments");
        assert_eq!(of_long(JobKind::SubmitPayment), 2);

        room.free = 6;
        let second = queue.lease(&mut room).await;
        assert_eq!(count(&second, long), 3, "what it holds counts: six places at most");
        assert_eq!(second.len(), 3, "no job is leased twice, and the others have none left");
        queue.add(short, "submit_payment", 1, 0).await;
        room = Room { free: 1, organization_max: 7, ..room };
        let third = queue.lease(&mut room).await;
        assert_eq!(count(&third, short), 1, "the lane after the last one goes first");
    }
    queue.stage.strike().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_of_a_newer_release_are_left_to_it() {
    let queue = Queue::new().await;
    let organization = queue.organization().await;
    queue.add(organization, "of_tomorrow", 300, 10).await;
    queue.add(organization, "submit_payment", 1, 1).await;
    let leases = queue.lease(&mut room(5, 5)).await;
    assert_eq!(leases.iter().map(|lease| lease.kind).collect::<Vec<_>>(), [JobKind::SubmitPayment]);
    let mut tx = queue.pool.begin(Scope::System).await.expect("a transaction");
    assert_eq!(store::leases::next_due(&mut tx).await.expect("an answer"), None, "nobody wakes for them");
    tx.close().await.expect("an end");
    queue.stage.strike().await;
}

/// Every lane that has nothing for us costs a statement, and a look that takes long keeps what it has leased waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_a_look_passes_few_lanes_that_have_nothing_for_it_and_the_next_one_goes_on_from_there() {
    let queue = Queue::new().await;
    let organization = queue.organization().await;
    for number in 0..120 {
        queue.add(organization, &format!("a_of_tomorrow_{number}"), 1, 10).await;
    }
    queue.add(organization, "submit_payment", 1, 1).await;
    let mut room = room(5, 5);
    let (mut looks, mut found) = (0, Vec::new());
    while found.is_empty() {
        room.is_cut_short = false;
        found = queue.lease(&mut room).await;
        looks += 1;
        assert!(!found.is_empty() || room.is_cut_short, "a job is left");
        assert!(looks <= 3, "120 lanes are passed in three looks");
    }
    assert_eq!(found[0].kind, JobKind::SubmitPayment);
    queue.stage.strike().await;
}
