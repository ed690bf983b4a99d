//! Statements keep their plans whatever the statistics say. Each growing table has 100,000 rows of one organization and
//! was never analyzed. The service runs normally, and `auto_explain` reports every plan: no statement reads a growing
//! table completely, and each reads few pages.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration as RealDuration;

use paybridge::app::Timer;
use paybridge::clock::Clock;
use paybridge::dev::test_environment::Options;
use paybridge::domain::OrganizationId;
use paybridge::domain::jobs::{Capacity, JobFilter, Lane};
use paybridge::grpc::proto::{
    CreateRefundRequest, ListCustomersRequest, ListEventsRequest, ListPaymentsRequest, PaymentState,
    RotateIntegrationKeyRequest, create_refund_request,
};
use paybridge::server::administration;
use paybridge::store::{self, Pool, Scope};
use serde_json::Value;
use time::Duration;
use tokio_postgres::Client;

use crate::support::database;
use crate::support::harness::Harness;
use crate::support::query_plans::{Plans, describe, nodes, number, pages};
use crate::support::sql::superuser;
use crate::support::wait::until;

/// Rows in each growing table.
const ROWS: i64 = 100_000;

/// Tables that grow without bound.
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
    "stripe_requests",
    "overpayments",
];

/// The most pages that a statement may read, plus [`PAGES_PER_ROW`]. An index of 100,000 rows has some 500 pages, a
/// table some 2,000.
const PAGES: u64 = 150;
/// The additional pages for each row that a statement returns or changes.
const PAGES_PER_ROW: u64 = 25;

/// Copies a row of the table [`ROWS`] times, with these columns changed.
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
    assert_eq!(copied, 100_000, "{table} has a row to copy");
}

/// Fills the tables of an organization that has a row in each. The jobs are scheduled.
async fn fill(database: &Client) {
    const ID: &str = "gen_random_uuid()";
    for table in GROWING.iter().filter(|table| **table != "deliveries") {
        let disable = format!("ALTER TABLE {table} SET (autovacuum_enabled = false)");
        database.batch_execute(&disable).await.expect("a setting");
    }
    let days = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'deliveries'::regclass";
    for day in database.query(days, &[]).await.expect("partitions") {
        let disable = format!("ALTER TABLE {} SET (autovacuum_enabled = false)", day.get::<_, String>(0));
        database.batch_execute(&disable).await.expect("a setting");
    }
    // Foreign keys are not checked: most rows refer to nothing.
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
    multiply(database, "stripe_requests", &[("name", "'many-' || n")]).await;
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

/// The fault of a plan, if it has one.
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
        Some(node) => Some(format!("reads {} completely: {}", node["Relation Name"], describe(plan))),
        // Statements that read no growing table create and drop partitions.
        None if read > PAGES + PAGES_PER_ROW * useful && all.iter().any(|node| grows(node)) => {
            Some(format!("reads {read} pages for {useful} rows: {}", describe(plan)))
        }
        None => None,
    }
}

/// Parts of statements of which each must have run.
const REQUIRED: [&str; 12] = [
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

/// Everything that a billing system does. `round` makes the names unique.
async fn run_billing(harness: &mut Harness, round: &str) {
    let (payer, link) = (format!("payer-{round}"), format!("link-{round}"));
    let provider_id = harness.customer(&payer, "pm_card_visa").await;
    let paid = format!("paid-{round}");
    harness.pay(&payer, &paid).await;
    let payment = harness.payment_in(&paid, PaymentState::Succeeded).await;
    let refund = CreateRefundRequest {
        payment: Some(create_refund_request::Payment::PaymentId(payment.id.clone())),
        request_id: format!("refund-{round}"),
        ..CreateRefundRequest::default()
    };
    harness.billing.api.payments.create_refund(refund).await.expect("the refund is accepted");
    harness
        .payment_when(&paid, "is refunded", |payment| {
            payment.amount_refunded.as_ref().is_some_and(|refunded| refunded.minor_units > 0)
        })
        .await;
    let declined = format!("declined-{round}");
    harness.customer(&declined, "pm_card_chargeCustomerFail").await;
    harness.pay(&declined, &declined).await;
    let payment = harness.payment_in(&declined, PaymentState::Failed).await;
    let (session, _) = harness.link(&link, &payment).await.expect("a link");
    harness.sandbox().complete_session(&session, "4242424242424242", false).expect("it is paid");
    harness.payment_in(&declined, PaymentState::Succeeded).await;
    harness.sandbox().attach_in_dashboard(&provider_id, "pm_card_mastercard").expect("another card");
    harness.all_delivered().await;
    let canceled = format!("canceled-{round}");
    let payment = harness.pay(&payer, &canceled).await;
    let _ = harness.cancel(&payment).await;
    let api = &mut harness.billing.api;
    let list = ListPaymentsRequest { page_size: 20, ..ListPaymentsRequest::default() };
    let page = api.payments.list_payments(list.clone()).await.expect("a page").into_inner();
    let next = ListPaymentsRequest { page_token: page.next_page_token, ..list };
    api.payments.list_payments(next).await.expect("the next page");
    // States that few payments have.
    let states = vec![PaymentState::Failed.into(), PaymentState::Canceled.into()];
    let rare = ListPaymentsRequest { page_size: 20, states, ..ListPaymentsRequest::default() };
    api.payments.list_payments(rare).await.expect("a page");
    let list = ListCustomersRequest { page_size: 20, ..ListCustomersRequest::default() };
    api.customers.list_customers(list).await.expect("a page");
    let list = ListEventsRequest { after_position: 10, page_size: 20, ..ListEventsRequest::default() };
    api.events.list_events(list).await.expect("a page");
    let (id, secret_key) = (harness.integration.id.clone(), harness.billing.key.clone());
    let rotate = RotateIntegrationKeyRequest { id, secret_key };
    harness.billing.api.integrations.rotate_integration_key(rotate).await.expect("the same key counts");
}

/// What timers and operators do.
async fn run_maintenance(harness: &Harness) {
    harness.advance(Duration::hours(7));
    let app = administration(&harness.context.environment.database_url).expect("the use cases");
    app.list_jobs(None, JobFilter::All).await.expect("jobs");
    app.list_jobs(None, JobFilter::Parked).await.expect("jobs");
    app.retry_jobs(None).await.expect("an answer");
    app.parked_jobs().await.expect("counts");
    for timer in [Timer::Retire, Timer::Reconcilers] {
        app.run_timer(timer).await.expect("it runs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_statement_keeps_its_plan_on_tables_that_were_never_analyzed() {
    let mut harness = Harness::new("plans", Options::default()).await;
    run_billing(&mut harness, "first").await;
    harness.all_delivered().await;
    let database = harness.database().await;
    fill(&database).await;
    for mode in ["force_custom_plan", "force_generic_plan", "auto"] {
        if mode == "auto" {
            // With correct statistics.
            database.batch_execute("ANALYZE").await.expect("statistics");
        }
        let plans = Plans::enable(&database, mode).await;
        run_billing(&mut harness, mode).await;
        run_maintenance(&harness).await;
        let (plans, seen) = (RefCell::new(plans), RefCell::new(Vec::new()));
        for part in REQUIRED {
            until(&format!("{mode}: a statement with {part} has run"), async || {
                seen.borrow_mut().extend(plans.borrow_mut().read());
                let has_part = |plan: &Value| plan["Query Text"].as_str().is_some_and(|text| text.contains(part));
                seen.borrow().iter().any(has_part).then_some(())
            })
            .await;
        }
        let faults: HashMap<String, String> =
            seen.borrow().iter().filter_map(|plan| Some((plan["Query Text"].to_string(), fault(plan)?))).collect();
        let faults: Vec<String> = faults.into_values().collect();
        assert!(faults.is_empty(), "{mode}: {} statements\n{}", faults.len(), faults.join("\n"));
    }
    harness.shutdown().await;
}

/// The 100,000 other jobs that must not slow down the lease of one job, by state. The columns are kind, run_at, due,
/// lease_until and park_time.
const OTHER_JOBS: [(&str, &str); 6] = [
    ("scheduled", "'submit_payment', now() + interval '1 year', false, NULL, NULL"),
    ("leased", "'submit_payment', now(), true, clock_timestamp() + interval '1 day', NULL"),
    ("parked", "'submit_payment', now(), true, NULL::timestamptz, now()"),
    ("of a newer release", "'unknown_kind', now(), true, NULL::timestamptz, NULL::timestamptz"),
    ("of a full organization", "'apply_delivery', now(), true, NULL::timestamptz, NULL::timestamptz"),
    ("deleted", "'submit_payment', now(), true, NULL::timestamptz, NULL::timestamptz"),
];

async fn add(database: &Client, organization: OrganizationId, count: i64, columns: &str) {
    let add = format!(
        "INSERT INTO jobs (id, organization_id, object_id, object_key, generation, failures, lease_epoch, kind, run_at, \
             due, lease_until, park_time) \
         SELECT gen_random_uuid(), '{organization}', gen_random_uuid(), '', 1, 0, 0, {columns} \
         FROM generate_series(1, {count})"
    );
    database.execute(&add, &[]).await.expect("jobs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_due_job_is_found_at_once_whatever_other_jobs_exist() {
    for (what, columns) in OTHER_JOBS {
        let url = database().await;
        let app = administration(&url).expect("the use cases");
        let crowd = app.create_organization("Crowd").await.expect("an organization").id;
        let single = app.create_organization("Single").await.expect("an organization").id;
        let database = superuser(&url).await;
        database.batch_execute("ALTER TABLE jobs SET (autovacuum_enabled = false)").await.expect("a setting");
        add(&database, crowd, ROWS, columns).await;
        if what == "deleted" {
            // As autovacuum does within a minute. Until then a lookup reads the index's dead entries.
            database.batch_execute("DELETE FROM jobs").await.expect("they are deleted");
            database.batch_execute("VACUUM jobs").await.expect("a vacuum");
        }
        add(&database, single, 1, "'submit_payment', now(), true, NULL, NULL").await;
        let mut plans = Plans::enable(&database, "auto").await;
        let pool = Pool::new(&url, 1).expect("a pool");
        // A new connection compares the database's identity, which looks up no job.
        pool.ping().await.expect("a connection");
        plans.read();
        for poll in 1..=2 {
            let held = if what == "of a full organization" { HashMap::from([(crowd, 1)]) } else { HashMap::new() };
            let mut capacity =
                Capacity { free: 4, organization_max: 1, held, after: Lane::start(), is_scan_incomplete: false };
            let mut tx = pool.begin(Scope::System).await.expect("a transaction");
            store::leases::make_due(&mut tx, Clock::system().now()).await.expect("jobs become due");
            store::leases::release_expired(&mut tx).await.expect("an answer");
            let leases =
                store::leases::lease(&mut tx, &mut capacity, RealDuration::from_mins(1)).await.expect("leases");
            store::leases::next_due(&mut tx).await.expect("an answer");
            tx.close().await.expect("nothing is kept");
            let found: Vec<_> = leases.iter().map(|lease| lease.organization_id).collect();
            assert_eq!(found, [single], "jobs {what}, poll {poll}");
            let plans = plans.read();
            assert!(plans.len() >= 4, "jobs {what}: {} plans", plans.len());
            for plan in &plans {
                let mut all = Vec::new();
                nodes(&plan["Plan"], &mut all);
                let read = all.iter().map(|node| pages(node)).max().unwrap_or_default();
                assert!(read <= PAGES, "jobs {what}, poll {poll}: {}", describe(plan));
            }
        }
    }
}
