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
