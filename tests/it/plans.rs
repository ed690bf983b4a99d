//! Statements keep their plans whatever the statistics say. Here every table that grows has 100,000 rows and was never
//! analyzed, all of them one organization's; the service works as ever, and Postgres reports by `auto_explain` how it ran
//! each statement: none reads a table that grows from end to end, and each reads few pages.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::Duration as RealDuration;

use paybridge::app::Timer;
use paybridge::clock::Clock;
use paybridge::dev::stage::Options;
use paybridge::domain::OrganizationId;
use paybridge::domain::jobs::{Lane, Room};
use paybridge::grpc::proto::{
    ListCustomersRequest, ListEventsRequest, ListPaymentsRequest, PaymentState, RefundPaymentRequest,
    RotateIntegrationKeyRequest,
};
use paybridge::server::administration;
use paybridge::store::{self, Pool, Scope};
use serde_json::Value;
use time::Duration;
use tokio_postgres::Client;

use crate::cashier::{Cashier, until};
use crate::hands::superuser;
use crate::support::{database, postgres};

/// Rows of each table.
const ROWS: i64 = 100_000;

/// The tables that grow.
const GROWING: [&str; 14] = [
    "disputes",
    "jobs",
    "deliveries",
    "events",
    "payments",
    "payment_attempts",
    "payment_methods",
    "charges",
    "customers",
    "checkout_sessions",
    "refunds",
    "request_ids",
    "frozen_requests",
    "overpayments",
];

/// Pages that a statement may read, whatever it is for, and for each row that it returns or changes. An index of 100,000
/// rows has some 500 pages, a table some 2,000.
const PAGES: u64 = 150;
const PAGES_A_ROW: u64 = 25;

/// Copies the only row that matters of a table so many times, with these columns changed.
async fn multiply(database: &Client, table: &str, changes: &[(&str, &str)]) {
    let columns = "SELECT column_name::text FROM information_schema.columns \
        WHERE table_name = $1 AND is_generated = 'NEVER' ORDER BY 1";
    let columns = database.query(columns, &[&table]).await.expect("columns");
    let columns: Vec<String> = columns.iter().map(|row| row.get(0)).collect();
    let values: Vec<&str> = columns
        .iter()
        .map(|column| changes.iter().find(|(name, _)| name == column).map_or(column.as_str(), |(_, value)| *value))
        .collect();
    let copy = format!(
        "INSERT INTO {table} ({}) SELECT {} FROM (SELECT * FROM {table} LIMIT 1) AS one, generate_series(1, {ROWS}) AS n",
        columns.join(", "),
        values.join(", ")
    );
    let copied = database.execute(&copy, &[]).await.unwrap_or_else(|error| panic!("{table}: {error:?}"));
    assert_eq!(copied, 100_000, "{table} has a row to be copied");
}

/// Fills the tables of an organization that has one of everything. Its jobs are scheduled.
async fn fill(database: &Client) {
    const ID: &str = "gen_random_uuid()";
    for table in GROWING.iter().filter(|table| **table != "deliveries") {
        let never = format!("ALTER TABLE {table} SET (autovacuum_enabled = false)");
        database.batch_execute(&never).await.expect("a setting");
    }
    let days = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'deliveries'::regclass";
    for day in database.query(days, &[]).await.expect("partitions") {
        let never = format!("ALTER TABLE {} SET (autovacuum_enabled = false)", day.get::<_, String>(0));
        database.batch_execute(&never).await.expect("a setting");
    }
    // Rows that concern nobody: foreign keys are not checked.
    database.batch_execute("SET session_replication_role = replica").await.expect("a setting");
    multiply(
        database,
        "customers",
        &[("id", ID), ("external_id", "'many-' || n"), ("provider_customer_id", "'cus_' || n")],
    )
    .await;
    let method = [("id", ID), ("customer_id", ID), ("provider_payment_method_id", "'pm_many_' || n")];
    multiply(database, "payment_methods", &method).await;
    let session =
        [("id", ID), ("customer_id", ID), ("provider_session_id", "'cs_many_' || n"), ("state", "'complete'")];
    multiply(database, "checkout_sessions", &session).await;
    let payment = [
        ("id", ID),
        ("customer_id", ID),
        ("invoice_id", "'many-' || n"),
        ("provider_payment_intent_id", "'pi_many_' || n"),
        ("state", "'succeeded'"),
    ];
    multiply(database, "payments", &payment).await;
    let attempt =
        [("payment_id", ID), ("idempotency_key", "'many-' || n"), ("provider_payment_intent_id", "'pi_many_' || n")];
    multiply(database, "payment_attempts", &attempt).await;
    multiply(database, "charges", &[("payment_id", ID), ("provider_charge_id", "'ch_many_' || n")]).await;
    let refund = [("id", ID), ("payment_id", ID), ("provider_refund_id", "'re_many_' || n"), ("status", "'succeeded'")];
    multiply(database, "refunds", &refund).await;
    multiply(database, "deliveries", &[("provider_event_id", "'evt_many_' || n"), ("state", "'applied'")]).await;
    multiply(database, "request_ids", &[("request_id", "'many-' || n")]).await;
    multiply(database, "frozen_requests", &[("object_id", ID)]).await;
    let job =
        [("id", ID), ("object_id", ID), ("run_at", "now() + interval '1 year'"), ("due", "false"), ("failures", "0")];
    multiply(database, "jobs", &job).await;
    database.batch_execute("BEGIN; SELECT FROM event_heads FOR UPDATE").await.expect("the heads");
    let position = "(SELECT max(last_position) FROM event_heads) + n";
    multiply(database, "events", &[("id", ID), ("position", position)]).await;
    let heads = format!("UPDATE event_heads SET last_position = last_position + {ROWS}; COMMIT");
    database.batch_execute(&heads).await.expect("the heads");
    database.batch_execute("SET session_replication_role = origin").await.expect("a setting");
}

/// How Postgres ran statements.
struct Plans {
    log: File,
}

impl Plans {
    /// Every session of the database reports from now on; those that are open are ended.
    async fn report(database: &Client, mode: &str) -> Self {
        let settings = [
            "session_preload_libraries = 'auto_explain'",
            "auto_explain.log_min_duration = 0",
            "auto_explain.log_analyze = on",
            "auto_explain.log_buffers = on",
            "auto_explain.log_timing = off",
            "auto_explain.log_nested_statements = on",
            "auto_explain.log_format = json",
            &format!("plan_cache_mode = {mode}"),
        ];
        let name: String = database.query_one("SELECT current_database()::text", &[]).await.expect("a name").get(0);
        for setting in settings {
            // Of the service's sessions, not of the tests' own.
            let alter = format!("ALTER ROLE paybridge IN DATABASE {name} SET {setting}");
            database.batch_execute(&alter).await.expect("a setting");
        }
        let end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
            WHERE datname = current_database() AND pid <> pg_backend_pid()";
        database.query(end, &[]).await.expect("they end");
        let mut log = File::open(postgres().log_file()).expect("the server's log");
        log.seek(SeekFrom::End(0)).expect("its end");
        Self { log }
    }

    /// What was reported since the last look.
    fn read(&mut self) -> Vec<Value> {
        let mut text = Vec::new();
        self.log.read_to_end(&mut text).expect("the server's log");
        let text = String::from_utf8_lossy(&text);
        let mut plans = Vec::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            if !(line.contains("LOG:  duration:") && line.ends_with("plan:")) {
                continue;
            }
            let mut plan = String::new();
            while let Some(line) = lines.next_if(|line| line.starts_with('\t')) {
                plan.push_str(line);
            }
            // The last one may still be written.
            if let Ok(plan) = serde_json::from_str(&plan) {
                plans.push(plan);
            }
        }
        plans
    }
}

/// A count of a plan's node, rounded down: newer releases of Postgres report the average of several loops.
fn number(node: &Value, name: &str) -> u64 {
    let text = node[name].to_string();
    text.split('.').next().and_then(|whole| whole.parse().ok()).unwrap_or_default()
}

fn nodes<'a>(node: &'a Value, all: &mut Vec<&'a Value>) {
    all.push(node);
    for child in node["Plans"].as_array().into_iter().flatten() {
        nodes(child, all);
    }
}

fn pages(node: &Value) -> u64 {
    number(node, "Shared Hit Blocks") + number(node, "Shared Read Blocks")
}

/// The nodes of a plan and their pages, in a few lines.
fn shape(plan: &Value) -> String {
    let mut all = Vec::new();
    nodes(&plan["Plan"], &mut all);
    let line = |node: &&Value| {
        let name = if node["Index Name"].is_null() { &node["Relation Name"] } else { &node["Index Name"] };
        format!("\n    {} {name}: {} pages", node["Node Type"], pages(node))
    };
    format!("{}{}", plan["Query Text"], all.iter().map(line).collect::<String>())
}

/// What is wrong with a plan, if anything.
fn fault(plan: &Value) -> Option<String> {
    let mut all = Vec::new();
    nodes(&plan["Plan"], &mut all);
    let rows = |node: &Value| number(node, "Actual Rows") * number(node, "Actual Loops");
    let is_growing = |name: &str| GROWING.contains(&name) || name.starts_with("deliveries_");
    let changed = all.iter().filter(|node| node["Node Type"] == "ModifyTable").map(|node| rows(&node["Plans"][0]));
    let useful = rows(&plan["Plan"]) + changed.sum::<u64>();
    let read = all.iter().map(|node| pages(node)).max().unwrap_or_default();
    let grows = |node: &Value| node["Relation Name"].as_str().is_some_and(is_growing);
    let scanned =
        all.iter().find(|node| node["Node Type"] == "Seq Scan" && grows(node) && number(node, "Actual Loops") > 0);
    match scanned {
        Some(node) => Some(format!("reads {} from end to end: {}", node["Relation Name"], shape(plan))),
        // What reads catalogs alone makes and drops partitions.
        None if read > PAGES + PAGES_A_ROW * useful && all.iter().any(|node| grows(node)) => {
            Some(format!("reads {read} pages for {useful} rows: {}", shape(plan)))
        }
        None => None,
    }
}

/// Parts of statements that have to be among those that ran.
const HOT: [&str; 12] = [
    "lane AS MATERIALIZED",
    "SET lease_until = NULL",
    "jobs_object_key",
    "DELETE FROM jobs",
    "INSERT INTO \"deliveries\"",
    "UPDATE event_heads",
    "FROM \"events\"",
    "reconcile_session",
    "wanted (kind)",
    "failures > 0",
    "park_time IS NOT NULL",
    "DELETE FROM request_ids",
];

/// Everything that a billing system does, in short, under names that end so.
async fn work(cashier: &mut Cashier, round: &str) {
    let (payer, link) = (format!("payer-{round}"), format!("link-{round}"));
    let provider_id = cashier.customer(&payer, "pm_card_visa").await;
    let paid = format!("paid-{round}");
    cashier.pay(&payer, &paid).await;
    let payment = cashier.payment_in(&paid, PaymentState::Succeeded).await;
    let refund = RefundPaymentRequest {
        payment_id: payment.id.clone(),
        request_id: format!("refund-{round}"),
        ..RefundPaymentRequest::default()
    };
    cashier.player.api.payments.refund_payment(refund).await.expect("the refund is accepted");
    cashier
        .payment_when(&paid, "is refunded", |payment| {
            payment.amount_refunded.as_ref().is_some_and(|refunded| refunded.minor_units > 0)
        })
        .await;
    let declined = format!("declined-{round}");
    cashier.customer(&declined, "pm_card_chargeCustomerFail").await;
    cashier.pay(&declined, &declined).await;
    let payment = cashier.payment_in(&declined, PaymentState::Failed).await;
    let (session, _) = cashier.link(&link, &payment).await.expect("a link");
    cashier.sandbox().complete_session(&session, "4242424242424242", false).expect("it is paid");
    cashier.payment_in(&declined, PaymentState::Succeeded).await;
    cashier.sandbox().attach_by_hand(&provider_id, "pm_card_mastercard").expect("another card");
    cashier.all_delivered().await;
    let canceled = format!("canceled-{round}");
    let payment = cashier.pay(&payer, &canceled).await;
    let _ = cashier.cancel(&payment).await;
    let api = &mut cashier.player.api;
    let list = ListPaymentsRequest { page_size: 20, ..ListPaymentsRequest::default() };
    let page = api.payments.list_payments(list.clone()).await.expect("a page").into_inner();
    let next = ListPaymentsRequest { page_token: page.next_page_token, ..list };
    api.payments.list_payments(next).await.expect("the next page");
    // Of states that few have, all that there are.
    let states = vec![PaymentState::Failed.into(), PaymentState::Canceled.into()];
    let rare = ListPaymentsRequest { page_size: 20, states, ..ListPaymentsRequest::default() };
    api.payments.list_payments(rare).await.expect("a page");
    let list = ListCustomersRequest { page_size: 20, ..ListCustomersRequest::default() };
    api.customers.list_customers(list).await.expect("a page");
    let list = ListEventsRequest { after_position: 10, page_size: 20, ..ListEventsRequest::default() };
    api.events.list_events(list).await.expect("a page");
    let (id, secret_key) = (cashier.integration.id.clone(), cashier.player.key.clone());
    let rotate = RotateIntegrationKeyRequest { id, secret_key };
    cashier.player.api.integrations.rotate_integration_key(rotate).await.expect("the same key counts");
}

/// What the clock and operators do.
async fn watch(cashier: &Cashier) {
    cashier.advance(Duration::hours(7));
    let app = administration(&cashier.scenery.stage.database_url).expect("the use cases");
    app.list_jobs(None, false).await.expect("jobs");
    app.list_jobs(None, true).await.expect("jobs");
    app.retry_jobs(None).await.expect("an answer");
    app.parked_jobs().await.expect("counts");
    for timer in [Timer::Retire, Timer::Reconcilers] {
        app.run_timer(timer).await.expect("it runs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_statement_keeps_its_plan_on_tables_that_were_never_analyzed() {
    let mut cashier = Cashier::new("plans", Options::default()).await;
    work(&mut cashier, "first").await;
    cashier.all_delivered().await;
    let database = cashier.database().await;
    fill(&database).await;
    for mode in ["force_custom_plan", "force_generic_plan", "auto"] {
        if mode == "auto" {
            // With statistics that are right at last.
            database.batch_execute("ANALYZE").await.expect("statistics");
        }
        let plans = Plans::report(&database, mode).await;
        work(&mut cashier, mode).await;
        watch(&cashier).await;
        let (plans, seen) = (RefCell::new(plans), RefCell::new(Vec::new()));
        for hot in HOT {
            until(&format!("{mode}: a statement with {hot} has run"), || async {
                seen.borrow_mut().extend(plans.borrow_mut().read());
                let is_hot = |plan: &Value| plan["Query Text"].as_str().is_some_and(|text| text.contains(hot));
                seen.borrow().iter().any(is_hot).then_some(())
            })
            .await;
        }
        let faults: HashMap<String, String> =
            seen.borrow().iter().filter_map(|plan| Some((plan["Query Text"].to_string(), fault(plan)?))).collect();
        let faults: Vec<String> = faults.into_values().collect();
        assert!(faults.is_empty(), "{mode}: {} statements\n{}", faults.len(), faults.join("\n"));
    }
    cashier.end().await;
}

/// What is in the way of the one job that can be leased: 100,000 others, by the columns that make them so.
const IN_THE_WAY: [(&str, &str); 6] = [
    ("scheduled", "'submit_payment', now() + interval '1 year', false, NULL, NULL"),
    ("leased", "'submit_payment', now(), true, clock_timestamp() + interval '1 day', NULL"),
    ("parked", "'submit_payment', now(), true, NULL::timestamptz, now()"),
    ("of a newer release", "'of_tomorrow', now(), true, NULL::timestamptz, NULL::timestamptz"),
    ("of a full organization", "'apply_delivery', now(), true, NULL::timestamptz, NULL::timestamptz"),
    ("gone", "'submit_payment', now(), true, NULL::timestamptz, NULL::timestamptz"),
];

async fn add(database: &Client, organization: OrganizationId, count: i64, columns: &str) {
    let add = format!(
        "INSERT INTO jobs (id, organization_id, object_id, object_key, asked, failures, lease_epoch, kind, run_at, due, \
             lease_until, park_time) \
         SELECT gen_random_uuid(), '{organization}', gen_random_uuid(), '', 1, 0, 0, {columns} \
         FROM generate_series(1, {count})"
    );
    database.execute(&add, &[]).await.expect("jobs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_found_at_once_whatever_else_there_is() {
    for (what, columns) in IN_THE_WAY {
        let url = database().await;
        let app = administration(&url).expect("the use cases");
        let crowd = app.create_organization("Crowd").await.expect("an organization").id;
        let single = app.create_organization("Single").await.expect("an organization").id;
        let database = superuser(&url).await;
        database.batch_execute("ALTER TABLE jobs SET (autovacuum_enabled = false)").await.expect("a setting");
        add(&database, crowd, ROWS, columns).await;
        if what == "gone" {
            // As autovacuum does within a minute; until then a look passes the index's dead entries by.
            database.batch_execute("DELETE FROM jobs").await.expect("they end");
            database.batch_execute("VACUUM jobs").await.expect("a vacuum");
        }
        add(&database, single, 1, "'submit_payment', now(), true, NULL, NULL").await;
        let mut plans = Plans::report(&database, "auto").await;
        let pool = Pool::new(&url, 1).expect("a pool");
        for look in 1..=2 {
            let held = if what == "of a full organization" { HashMap::from([(crowd, 1)]) } else { HashMap::new() };
            let mut room = Room { free: 4, organization_max: 1, held, after: Lane::start(), is_cut_short: false };
            let mut tx = pool.begin(Scope::System).await.expect("a transaction");
            store::leases::make_due(&mut tx, Clock::system().now()).await.expect("jobs become due");
            store::leases::free_lapsed(&mut tx).await.expect("an answer");
            let leases = store::leases::lease(&mut tx, &mut room, RealDuration::from_mins(1)).await.expect("leases");
            store::leases::next_due(&mut tx).await.expect("an answer");
            tx.close().await.expect("nothing is kept");
            let found: Vec<_> = leases.iter().map(|lease| lease.organization_id).collect();
            assert_eq!(found, [single], "jobs {what}, look {look}");
            let plans = plans.read();
            assert!(plans.len() >= 4, "jobs {what}: {} plans", plans.len());
            for plan in &plans {
                let mut all = Vec::new();
                nodes(&plan["Plan"], &mut all);
                let read = all.iter().map(|node| pages(node)).max().unwrap_or_default();
                assert!(read <= PAGES, "jobs {what}, look {look}: {}", shape(plan));
            }
        }
    }
}
