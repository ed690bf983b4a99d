//! SQL as the superuser, for what no call shows.

use std::collections::BTreeMap;

use paybridge::dev::test_environment::TestEnvironment;
use serde_json::Value;
use tokio_postgres::NoTls;

use crate::support::harness::Harness;

/// A connection as the superuser, who bypasses row level security.
pub async fn superuser(database_url: &str) -> tokio_postgres::Client {
    let mut config: tokio_postgres::Config = database_url.parse().expect("a connection string");
    let (client, connection) = config.user("postgres").connect(NoTls).await.expect("a connection");
    tokio::spawn(connection);
    client
}

/// Inserts an organization with an active and a disconnected integration, a leased job, and two requests to Stripe: one
/// whose outcome is unknown, and one with a final answer.
pub async fn insert_integrations(database: &tokio_postgres::Client) {
    let sql = "\
        INSERT INTO organizations (id, name, create_time) VALUES (gen_random_uuid(), 'Copied', now()); \
        INSERT INTO event_heads (organization_id, log_id, last_position, first_position) \
            SELECT id, gen_random_uuid(), 0, 1 FROM organizations WHERE name = 'Copied'; \
        INSERT INTO integrations (organization_id, id, code, name, state, livemode, key_hint, forbidden_actions, \
            polls_events, supports_3ds, relay_provider_events, force_disconnect, version, create_time, update_time) \
            SELECT o.id, gen_random_uuid(), 'stripe', 'Stripe', state, true, '1234', '{}', false, true, false, false, \
                1, now(), now() \
            FROM organizations AS o, unnest(ARRAY['active', 'disconnected']) AS state WHERE o.name = 'Copied'; \
        UPDATE integrations SET sealed_secret_key = '\\x00', sealed_webhook_secret = '\\x00', \
            sealed_old_webhook_secret = '\\x00', provider_endpoint_id = 'we_1', provider_old_endpoint_id = 'we_0', \
            endpoint_fault = 'missing', forbidden_actions = '{refund.create}' WHERE state = 'active'; \
        INSERT INTO stripe_contacts (organization_id, integration_id, contact_time, number, objects_read) \
            SELECT organization_id, id, now(), 5, 0 FROM integrations; \
        INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, generation, failures, lease_epoch, \
            lease_until) \
            SELECT gen_random_uuid(), organization_id, 'poll_events', id, '', now(), 1, 0, 7, now() + interval '1 h' \
            FROM integrations WHERE state = 'active'; \
        INSERT INTO stripe_requests (organization_id, purpose, name, generation, idempotency_key, body, create_time, \
            finish_time) \
            SELECT id, 'customer', 'hooli', generation, 'key-' || generation, '', now(), \
                CASE generation WHEN 1 THEN now() END \
            FROM organizations, generate_series(1, 2) AS generation WHERE name = 'Copied'";
    database.batch_execute(sql).await.expect("rows are inserted");
}

/// The number of rows in each table that calls write to, without jobs and events.
pub async fn row_counts(environment: &TestEnvironment) -> BTreeMap<&'static str, i64> {
    let client = superuser(&environment.database_url).await;
    let mut counts = BTreeMap::new();
    for table in
        ["integrations", "customers", "payments", "payment_attempts", "checkout_sessions", "request_ids", "deliveries"]
    {
        let row = client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.expect("a count");
        counts.insert(table, row.get(0));
    }
    counts
}

/// The payments in logged events of a type about an invoice, oldest first.
pub async fn logged_payments(harness: &Harness, webhook_type: &str, invoice: &str) -> Vec<Value> {
    let database = harness.database().await;
    let query = "SELECT payload::text FROM events WHERE webhook_type = $1 \
        AND payload #>> '{payment,lago_payable_id}' = $2 ORDER BY position";
    let rows = database.query(query, &[&webhook_type, &invoice]).await.expect("the log");
    rows.iter().map(|row| serde_json::from_str::<Value>(row.get(0)).expect("JSON")["payment"].clone()).collect()
}

/// Deletes rows as a restored backup lacks them. Their foreign keys don't count.
pub async fn forget(harness: &Harness, tables: &[&str]) {
    let deletes = tables.join("; DELETE FROM ");
    let statements = format!("BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM {deletes}; COMMIT");
    harness.database().await.batch_execute(&statements).await.expect("the rows are deleted");
}
