//! Stripe's rate limits, which all replicas share: one row per bucket. For the system role.

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Double, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;

use crate::domain::Result;
use crate::domain::limits::{BucketId, Budget};

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    provider_account_id: String,
    #[diesel(sql_type = Bool)]
    livemode: bool,
    #[diesel(sql_type = Text)]
    endpoint: String,
    #[diesel(sql_type = Timestamptz)]
    next_time: OffsetDateTime,
    #[diesel(sql_type = Double)]
    rate: f64,
    #[diesel(sql_type = Timestamptz)]
    rate_time: OffsetDateTime,
}

/// Reads and locks those of these buckets that have a row, in the order of their ids.
pub async fn lock(conn: &mut AsyncPgConnection, ids: &[BucketId]) -> Result<Vec<(BucketId, Budget)>> {
    let rows: Vec<Row> = diesel::sql_query(
        "SELECT budgets.* FROM stripe_budgets AS budgets \
         JOIN unnest($1, $2, $3) AS requested (provider_account_id, livemode, endpoint) \
         USING (provider_account_id, livemode, endpoint) \
         ORDER BY provider_account_id, livemode, endpoint FOR NO KEY UPDATE OF budgets",
    )
    .bind::<Array<Text>, _>(ids.iter().map(|id| id.account.as_str()).collect::<Vec<_>>())
    .bind::<Array<Bool>, _>(ids.iter().map(|id| id.livemode).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(ids.iter().map(|id| id.endpoint.as_str()).collect::<Vec<_>>())
    .load(conn)
    .await?;
    let found = rows.into_iter().map(|row| {
        let id = BucketId { account: row.provider_account_id, livemode: row.livemode, endpoint: row.endpoint };
        (id, Budget { next_time: row.next_time, rate: row.rate, rate_time: row.rate_time })
    });
    Ok(found.collect())
}

/// Inserts buckets, in the order of their ids. Those that another replica has just inserted stay as they are.
pub async fn insert_new(conn: &mut AsyncPgConnection, budgets: &[(BucketId, Budget)]) -> Result<()> {
    write(conn, budgets, "DO NOTHING").await
}

/// Updates locked buckets.
pub async fn save(conn: &mut AsyncPgConnection, budgets: &[(BucketId, Budget)]) -> Result<()> {
    let set = "DO UPDATE SET next_time = excluded.next_time, rate = excluded.rate, rate_time = excluded.rate_time";
    write(conn, budgets, set).await
}

async fn write(conn: &mut AsyncPgConnection, budgets: &[(BucketId, Budget)], on_conflict: &str) -> Result<()> {
    diesel::sql_query(format!(
        "INSERT INTO stripe_budgets (provider_account_id, livemode, endpoint, next_time, rate, rate_time) \
         SELECT * FROM unnest($1, $2, $3, $4, $5, $6) \
         ON CONFLICT ON CONSTRAINT stripe_budgets_pkey {on_conflict}"
    ))
    .bind::<Array<Text>, _>(budgets.iter().map(|(id, _)| id.account.as_str()).collect::<Vec<_>>())
    .bind::<Array<Bool>, _>(budgets.iter().map(|(id, _)| id.livemode).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(budgets.iter().map(|(id, _)| id.endpoint.as_str()).collect::<Vec<_>>())
    .bind::<Array<Timestamptz>, _>(budgets.iter().map(|(_, budget)| budget.next_time).collect::<Vec<_>>())
    .bind::<Array<Double>, _>(budgets.iter().map(|(_, budget)| budget.rate).collect::<Vec<_>>())
    .bind::<Array<Timestamptz>, _>(budgets.iter().map(|(_, budget)| budget.rate_time).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes at most `limit` buckets that were not used since `before`; returns how many.
pub async fn delete_unused(conn: &mut AsyncPgConnection, before: OffsetDateTime, limit: i64) -> Result<usize> {
    let deleted = diesel::sql_query(
        "DELETE FROM stripe_budgets WHERE (provider_account_id, livemode, endpoint) IN ( \
             SELECT provider_account_id, livemode, endpoint FROM stripe_budgets WHERE next_time < $1 \
             ORDER BY provider_account_id, livemode, endpoint LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind::<Timestamptz, _>(before)
    .bind::<BigInt, _>(limit)
    .execute(conn)
    .await?;
    Ok(deleted)
}
