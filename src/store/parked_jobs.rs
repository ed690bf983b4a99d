//! Jobs for operators: lists failing and parked jobs, and runs them again. For the system role, across organizations.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::jobs::{JobFilter, JobReport};
use crate::domain::{JobId, OrganizationId, Result};

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    organization_id: Uuid,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = SqlUuid)]
    object_id: Uuid,
    #[diesel(sql_type = Text)]
    object_key: String,
    #[diesel(sql_type = Integer)]
    failures: i32,
    #[diesel(sql_type = Nullable<Text>)]
    last_error: Option<String>,
    #[diesel(sql_type = Timestamptz)]
    run_at: OffsetDateTime,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    park_time: Option<OffsetDateTime>,
}

/// Lists at most `limit` jobs, oldest first, of one organization or of all.
pub async fn list(
    conn: &mut AsyncPgConnection,
    org: Option<OrganizationId>,
    filter: JobFilter,
    limit: i64,
) -> Result<Vec<JobReport>> {
    // Parked jobs are few and have an index of their own. MATERIALIZED collects them before they are sorted.
    let rows: Vec<Row> = diesel::sql_query(match filter {
        JobFilter::Parked => {
            "WITH parked AS MATERIALIZED (SELECT * FROM jobs WHERE park_time IS NOT NULL) \
             SELECT * FROM parked WHERE $1 IS NULL OR organization_id = $1 ORDER BY id LIMIT $2"
        }
        JobFilter::All => "SELECT * FROM jobs WHERE $1 IS NULL OR organization_id = $1 ORDER BY id LIMIT $2",
    })
    .bind::<Nullable<SqlUuid>, _>(org.map(|org| org.0))
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await?;
    let report = |row: Row| JobReport {
        id: row.id.into(),
        organization_id: row.organization_id.into(),
        kind: row.kind,
        object_id: row.object_id,
        object_key: row.object_key,
        failures: row.failures,
        reason: row.last_error,
        run_at: row.run_at,
        park_time: row.park_time,
    };
    Ok(rows.into_iter().map(report).collect())
}

/// Makes a job due at `now`, parked or not, and resets its own failures. Without an id: all parked jobs. Returns how
/// many.
pub async fn retry(conn: &mut AsyncPgConnection, id: Option<JobId>, now: OffsetDateTime) -> Result<usize> {
    // `failures` keeps counting: idempotency keys are derived from it and must not repeat.
    Ok(diesel::sql_query(
        "WITH parked AS MATERIALIZED (SELECT id FROM jobs WHERE park_time IS NOT NULL) \
         UPDATE jobs SET park_time = NULL, own_failures = 0, run_at = LEAST(run_at, $2), due = true \
         WHERE id = ANY (CASE WHEN $1 IS NOT NULL THEN ARRAY[$1] ELSE ARRAY( \
             SELECT id FROM jobs WHERE id = ANY (ARRAY(SELECT id FROM parked)) ORDER BY id FOR UPDATE) END)",
    )
    .bind::<Nullable<SqlUuid>, _>(id.map(|id| id.0))
    .bind::<Timestamptz, _>(now)
    .execute(conn)
    .await?)
}

/// Counts parked jobs by kind.
pub async fn count(conn: &mut AsyncPgConnection) -> Result<Vec<(String, i32)>> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = Text)]
        kind: String,
        #[diesel(sql_type = Integer)]
        parked: i32,
    }
    let rows: Vec<Count> =
        diesel::sql_query("SELECT kind, count(*)::int4 AS parked FROM jobs WHERE park_time IS NOT NULL GROUP BY kind")
            .load(conn)
            .await?;
    Ok(rows.into_iter().map(|row| (row.kind, row.parked)).collect())
}
