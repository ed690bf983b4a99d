//! Leases on jobs. A job is scheduled (`run_at` is in the future), due, leased or parked, and each of these states has
//! an index that holds nothing else. Leases use the database's own time, everything else uses Paybridge's clock.
//!
//! Due jobs are queued in *lanes*, one per organization and kind. Workers take a few jobs from each lane in turn, in
//! the index's order. So the next job is one index lookup away, however long any lane is, and a job enqueued into an
//! empty lane is reached within one round. Everything here is for the system role.

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::collections::HashSet;
use std::time::Duration as RealDuration;
use strum::VariantArray as _;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::jobs::{Capacity, JobKind, Lane, Lease};
use crate::domain::{Error, Result};

/// The condition of a job that can be leased, and of `jobs_due_idx`.
const DUE: &str = "due AND lease_until IS NULL AND park_time IS NULL";

/// The condition of a job that [`make_due`] has not made due yet, and of `jobs_scheduled_idx`.
const SCHEDULED: &str = "NOT due AND lease_until IS NULL AND park_time IS NULL";

/// The most jobs that one [`make_due`] or [`release_expired`] changes.
const BATCH_MAX: i64 = 200;

/// The most lanes without a job for this process that one [`lease`] visits: lanes of an organization at its limit, of
/// kinds that only a newer release knows, or whose jobs other transactions have locked. Each costs a statement, and the
/// jobs leased so far wait for the commit.
const SKIPPED_MAX: usize = 50;

/// Makes due the scheduled jobs whose `run_at` is not after `now`: the oldest first, at most 200.
pub async fn make_due(conn: &mut AsyncPgConnection, now: OffsetDateTime) -> Result<()> {
    diesel::sql_query(format!(
        "UPDATE jobs SET due = true WHERE id = ANY (ARRAY( \
             SELECT id FROM jobs WHERE {SCHEDULED} AND run_at <= $1 ORDER BY run_at LIMIT $2 FOR UPDATE SKIP LOCKED))"
    ))
    .bind::<Timestamptz, _>(now)
    .bind::<BigInt, _>(BATCH_MAX)
    .execute(conn)
    .await?;
    Ok(())
}

/// Makes the jobs leasable whose lease has expired because its process died: the oldest first, at most 200. Returns how
/// many there were.
///
/// Do not run it on every poll: while an old snapshot is held (by a backup, for example), the index keeps an entry for
/// every lease since, and this reads all of them.
pub async fn release_expired(conn: &mut AsyncPgConnection) -> Result<usize> {
    let freed = diesel::sql_query(
        "UPDATE jobs SET lease_until = NULL WHERE id = ANY (ARRAY( \
             SELECT id FROM jobs WHERE lease_until < statement_timestamp() \
             ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED))",
    );
    Ok(freed.bind::<BigInt, _>(BATCH_MAX).execute(conn).await?)
}

/// The earliest `run_at` of a scheduled job.
pub async fn next_due(conn: &mut AsyncPgConnection) -> Result<Option<OffsetDateTime>> {
    #[derive(QueryableByName)]
    struct Due {
        #[diesel(sql_type = Timestamptz)]
        run_at: OffsetDateTime,
    }
    let row: Option<Due> =
        diesel::sql_query(format!("SELECT run_at FROM jobs WHERE {SCHEDULED} ORDER BY run_at LIMIT 1"))
            .get_result(conn)
            .await
            .optional()?;
    Ok(row.map(|row| row.run_at))
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    lane_organization_id: Uuid,
    #[diesel(sql_type = Text)]
    lane_kind: String,
    /// NULL if no job was leased, like all columns below.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    id: Option<Uuid>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    object_id: Option<Uuid>,
    #[diesel(sql_type = Nullable<Text>)]
    object_key: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    object_time: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<BigInt>)]
    lease_epoch: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    generation: Option<i64>,
    #[diesel(sql_type = Nullable<Integer>)]
    failures: Option<i32>,
}

impl Row {
    fn lease(self) -> Option<Lease> {
        Some(Lease {
            id: self.id?.into(),
            organization_id: self.lane_organization_id.into(),
            kind: self.lane_kind.parse().ok()?,
            object_id: self.object_id?,
            object_key: self.object_key?,
            object_time: self.object_time,
            epoch: self.lease_epoch?,
            generation: self.generation?,
            failures: self.failures?,
        })
    }
}

/// Leases due jobs for `period` of real time, as many as `capacity` allows. It visits the lanes in turn, starting after
/// the last one visited, and records in `capacity` what it leased and the last lane. Kinds that only a newer release
/// knows are skipped. The scan ends after 50 lanes without a job for this process; the next one continues from there.
pub async fn lease(conn: &mut AsyncPgConnection, capacity: &mut Capacity, period: RealDuration) -> Result<Vec<Lease>> {
    // A limit per lane, so that the jobs of one round come from several lanes.
    let lane_max = capacity.free.div_ceil(4);
    let mut leases = Vec::new();
    // The lanes without a job since the last lease: reaching one of them again completes a round.
    let mut skipped = HashSet::new();
    let mut skips = 0;
    while capacity.free > 0 {
        let Some((lane, leased)) = next_lane(conn, capacity, capacity.share(lane_max), period).await? else { break };
        let is_only_lane = capacity.after == lane;
        capacity.after = lane.clone();
        if leased.is_empty() {
            if is_only_lane || !skipped.insert(lane) {
                break;
            }
            skips += 1;
            if skips == SKIPPED_MAX {
                capacity.is_scan_incomplete = true;
                break;
            }
            continue;
        }
        skipped.clear();
        capacity.free = capacity.free.saturating_sub(leased.len());
        *capacity.held.entry(lane.organization_id).or_default() += leased.len();
        leases.extend(leased);
    }
    Ok(leases)
}

/// The next lane, wrapping around after the last, and at most `limit` leases on its jobs: none if its organization is
/// at its limit, or if this release does not know its kind. `None` if no job is due.
async fn next_lane(
    conn: &mut AsyncPgConnection,
    capacity: &Capacity,
    limit: usize,
    period: RealDuration,
) -> Result<Option<(Lane, Vec<Lease>)>> {
    const LANE: &str = "ORDER BY organization_id, kind, run_at LIMIT 1";
    // `run_at >=` skips the index's dead entries before the lane's first job: the first lookup has passed them already.
    let rows: Vec<Row> = diesel::sql_query(format!(
        "WITH lane AS MATERIALIZED ( \
             (SELECT organization_id, kind, run_at FROM jobs \
                 WHERE {DUE} AND (organization_id, kind) > ($1, $2) {LANE}) \
             UNION ALL (SELECT organization_id, kind, run_at FROM jobs WHERE {DUE} {LANE}) LIMIT 1 \
         ), taken AS ( \
             UPDATE jobs SET lease_epoch = lease_epoch + 1, \
                 lease_until = clock_timestamp() + make_interval(secs => $4) \
             WHERE id = ANY (ARRAY( \
                 SELECT id FROM jobs WHERE {DUE} \
                     AND organization_id = (SELECT organization_id FROM lane WHERE organization_id <> ALL ($5)) \
                     AND kind = (SELECT kind FROM lane WHERE kind = ANY ($6)) \
                     AND run_at >= (SELECT run_at FROM lane) \
                 ORDER BY organization_id, kind, run_at LIMIT $3 FOR UPDATE SKIP LOCKED)) \
             RETURNING id, object_id, object_key, object_time, lease_epoch, generation, failures \
         ) \
         SELECT lane.organization_id AS lane_organization_id, lane.kind AS lane_kind, taken.* \
         FROM lane LEFT JOIN taken ON true"
    ))
    .bind::<SqlUuid, _>(capacity.after.organization_id.0)
    .bind::<Text, _>(&capacity.after.kind)
    .bind::<BigInt, _>(i64::try_from(limit).map_err(Error::internal)?)
    .bind::<Double, _>(period.as_secs_f64())
    .bind::<Array<SqlUuid>, _>(capacity.full().map(|org| org.0).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(JobKind::VARIANTS.iter().map(|kind| kind.as_str()).collect::<Vec<_>>())
    .load(conn)
    .await?;
    let Some(first) = rows.as_slice().first() else { return Ok(None) };
    let lane = Lane { organization_id: first.lane_organization_id.into(), kind: first.lane_kind.clone() };
    Ok(Some((lane, rows.into_iter().filter_map(Row::lease).collect())))
}

/// Extends the leases that are held, and returns the jobs that no other worker has leased since: also those whose row is
/// locked, or whose lease was released a moment ago, which are not extended. It does not wait for a locked row: the
/// transaction that ends that job may be enqueueing jobs that are renewed here, and both would deadlock.
pub async fn renew(conn: &mut AsyncPgConnection, held: &[(Uuid, i64)], period: RealDuration) -> Result<Vec<Uuid>> {
    #[derive(QueryableByName)]
    struct Renewed {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let rows: Vec<Renewed> = diesel::sql_query(
        "WITH held AS (SELECT * FROM unnest($1, $2) AS held (id, epoch)), free AS ( \
             SELECT jobs.id FROM jobs JOIN held ON jobs.id = held.id AND jobs.lease_epoch = held.epoch \
             WHERE jobs.lease_until IS NOT NULL FOR NO KEY UPDATE OF jobs SKIP LOCKED \
         ), renewed AS ( \
             UPDATE jobs SET lease_until = clock_timestamp() + make_interval(secs => $3) \
             FROM free WHERE jobs.id = free.id \
         ) \
         SELECT jobs.id FROM jobs JOIN held ON jobs.id = held.id AND jobs.lease_epoch = held.epoch",
    )
    .bind::<Array<SqlUuid>, _>(held.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(held.iter().map(|(_, epoch)| *epoch).collect::<Vec<_>>())
    .bind::<Double, _>(period.as_secs_f64())
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// Releases leases, so that other processes can take the jobs at once. The epoch stays valid until one does. Locked
/// rows are skipped: their jobs are being ended, and if that fails their leases expire. For the system role.
pub async fn release(conn: &mut AsyncPgConnection, held: &[(Uuid, i64)]) -> Result<usize> {
    Ok(diesel::sql_query(
        "WITH free AS ( \
             SELECT jobs.id FROM jobs JOIN unnest($1, $2) AS held (id, epoch) \
                 ON jobs.id = held.id AND jobs.lease_epoch = held.epoch \
             FOR NO KEY UPDATE OF jobs SKIP LOCKED \
         ) \
         UPDATE jobs SET lease_until = NULL FROM free WHERE jobs.id = free.id",
    )
    .bind::<Array<SqlUuid>, _>(held.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(held.iter().map(|(_, epoch)| *epoch).collect::<Vec<_>>())
    .execute(conn)
    .await?)
}
