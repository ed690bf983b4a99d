//! Rows of jobs: one for a kind and an object. Leases live in the database's own time, everything else in Paybridge's
//! clock; every write that a job leads to shows the lease's epoch (P8).

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::time::Duration as RealDuration;
use time::OffsetDateTime;
use uuid::Uuid;

use super::error::unreadable;
use crate::domain::jobs::{JobKind, Lease, Room};
use crate::domain::{Error, OrganizationId, Result};

/// Of a job that is not parked, and that nobody holds.
const FREE: &str = "park_time IS NULL AND (lease_until IS NULL OR lease_until < clock_timestamp())";

fn known_kinds() -> Vec<&'static str> {
    JobKind::ALL.iter().map(|(_, name)| *name).collect()
}

/// A job to be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    /// The tenant.
    pub organization_id: OrganizationId,
    /// What is to be looked at.
    pub kind: JobKind,
    /// The object.
    pub object_id: Uuid,
    /// For a delivery Stripe's event id, for a refund Stripe's id of it; else empty.
    pub object_key: String,
    /// For a delivery Stripe's `created`.
    pub object_time: Option<OffsetDateTime>,
    /// Not before this time.
    pub run_at: OffsetDateTime,
}

/// Who asks for jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A caller, who is told that it is accepted: a job that is parked is tried again, and what it failed for forgiven.
    Caller,
    /// News from Stripe, a timer or another job: what is parked stays so. These come again and again, whatever stands in
    /// the job's way.
    Ourselves,
}

/// Asks for jobs. One that is there already is brought forward, and, if it runs just now, will run again. One that is
/// asked for twice here counts once: of two repeats of a webhook that come together, say.
pub async fn ask(
    conn: &mut AsyncPgConnection,
    jobs: &[NewJob],
    by: By,
    mut new_id: impl FnMut() -> Uuid,
) -> Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    diesel::sql_query(
        "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, object_time, run_at, asked, failures, \
             lease_epoch) \
         SELECT DISTINCT ON (organization_id, kind, object_id, object_key) \
             id, organization_id, kind, object_id, object_key, object_time, run_at, 1, 0, 0 \
         FROM unnest($1, $2, $3, $4, $5, $6, $7) \
             AS new (id, organization_id, kind, object_id, object_key, object_time, run_at) \
         ORDER BY organization_id, kind, object_id, object_key, run_at \
         ON CONFLICT ON CONSTRAINT jobs_object_key DO UPDATE \
         SET asked = jobs.asked + 1, run_at = LEAST(jobs.run_at, excluded.run_at), \
             park_time = CASE WHEN $8 THEN NULL ELSE jobs.park_time END, \
             own_failures = CASE WHEN $8 THEN 0 ELSE jobs.own_failures END",
    )
    .bind::<Array<SqlUuid>, _>(jobs.iter().map(|_| new_id()).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(jobs.iter().map(|job| job.organization_id.0).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(jobs.iter().map(|job| job.kind.as_str()).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(jobs.iter().map(|job| job.object_id).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(jobs.iter().map(|job| job.object_key.as_str()).collect::<Vec<_>>())
    .bind::<Array<Nullable<Timestamptz>>, _>(jobs.iter().map(|job| job.object_time).collect::<Vec<_>>())
    .bind::<Array<Timestamptz>, _>(jobs.iter().map(|job| job.run_at).collect::<Vec<_>>())
    .bind::<Bool, _>(by == By::Caller)
    .execute(conn)
    .await?;
    Ok(())
}

#[derive(QueryableByName)]
struct Leased {
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
    #[diesel(sql_type = Nullable<Timestamptz>)]
    object_time: Option<OffsetDateTime>,
    #[diesel(sql_type = BigInt)]
    lease_epoch: i64,
    #[diesel(sql_type = BigInt)]
    asked: i64,
    #[diesel(sql_type = Integer)]
    failures: i32,
}

/// Up to so many due jobs are looked at as they come; more are a backlog, which is walked lane by lane.
const BACKLOG: i64 = 200;

/// Leases jobs that are due at `now`, not parked and held by nobody, as many as there is `room` for, for `period` of
/// real time. Only kinds that this release knows: those of a newer one are left to it. For the system role.
///
/// Organizations take turns, and so do an organization's kinds of jobs; what the worker holds already counts. Under a
/// backlog the first jobs of each lane (an organization and a kind) are found by one probe of an index a lane, so that a
/// lane costs the same however long it is. (Rows are compared whole, so that no other index looks good to the planner.)
pub async fn lease(
    conn: &mut AsyncPgConnection,
    now: OffsetDateTime,
    room: &Room,
    period: RealDuration,
) -> Result<Vec<Lease>> {
    let limit = i64::try_from(room.free).unwrap_or(i64::MAX);
    let rows: Vec<Leased> = diesel::sql_query(format!(
        "WITH RECURSIVE held AS ( \
             SELECT organization_id, kind, count(*) AS places FROM unnest($6, $7) AS held (organization_id, kind) \
             GROUP BY organization_id, kind \
         ), early AS MATERIALIZED ( \
             SELECT id, organization_id, kind, run_at FROM jobs \
             WHERE run_at <= $1 AND kind = ANY ($4) AND {FREE} ORDER BY run_at LIMIT $8 \
         ), lane AS ( \
             (SELECT organization_id, kind FROM jobs WHERE (SELECT count(*) FROM early) >= $8 \
              ORDER BY organization_id, kind LIMIT 1) \
             UNION ALL \
             SELECT next.organization_id, next.kind FROM lane CROSS JOIN LATERAL ( \
                 SELECT organization_id, kind FROM jobs \
                 WHERE (organization_id, kind) > (lane.organization_id, lane.kind) \
                 ORDER BY organization_id, kind LIMIT 1) AS next \
         ), candidate AS ( \
             SELECT * FROM early WHERE (SELECT count(*) FROM early) < $8 \
             UNION ALL \
             SELECT head.* FROM lane CROSS JOIN LATERAL ( \
                 SELECT id, organization_id, kind, run_at FROM jobs \
                 WHERE (organization_id, kind, run_at) > (lane.organization_id, lane.kind, '-infinity'::timestamptz) \
                     AND (organization_id, kind, run_at) <= (lane.organization_id, lane.kind, $1) \
                     AND kind = ANY ($4) AND {FREE} \
                 ORDER BY organization_id, kind, run_at LIMIT LEAST($2, $5)) AS head \
         ), in_lane AS ( \
             SELECT id, organization_id, run_at, \
                 row_number() OVER (PARTITION BY organization_id, kind ORDER BY run_at) + COALESCE(places, 0) AS turn \
             FROM candidate LEFT JOIN held USING (organization_id, kind) \
         ), in_organization AS ( \
             SELECT id, run_at, row_number() OVER (PARTITION BY organization_id ORDER BY turn, run_at) \
                 + COALESCE((SELECT sum(places) FROM held WHERE held.organization_id = in_lane.organization_id), 0) AS turn \
             FROM in_lane \
         ), chosen AS ( \
             SELECT id FROM in_organization WHERE turn <= $5 ORDER BY turn, run_at LIMIT $2 \
         ) \
         UPDATE jobs SET lease_epoch = lease_epoch + 1, lease_until = clock_timestamp() + make_interval(secs => $3) \
         WHERE id IN (SELECT id FROM jobs WHERE id IN (SELECT id FROM chosen) AND {FREE} FOR UPDATE SKIP LOCKED) \
         RETURNING id, organization_id, kind, object_id, object_key, object_time, lease_epoch, asked, failures"
    ))
    .bind::<Timestamptz, _>(now)
    .bind::<BigInt, _>(limit)
    .bind::<Double, _>(period.as_secs_f64())
    .bind::<Array<Text>, _>(known_kinds())
    .bind::<BigInt, _>(i64::try_from(room.organization_max).unwrap_or(i64::MAX))
    .bind::<Array<SqlUuid>, _>(room.held.iter().map(|(org, _)| org.0).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(room.held.iter().map(|(_, kind)| kind.as_str()).collect::<Vec<_>>())
    .bind::<BigInt, _>(BACKLOG.max(limit.saturating_add(1)))
    .load(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Lease {
                id: row.id.into(),
                organization_id: row.organization_id.into(),
                kind: JobKind::parse(&row.kind).ok_or_else(|| unreadable("jobs", "kind", &row.kind))?,
                object_id: row.object_id,
                object_key: row.object_key,
                object_time: row.object_time,
                epoch: row.lease_epoch,
                asked: row.asked,
                failures: row.failures,
            })
        })
        .collect()
}

/// Prolongs leases that are still ours, and returns the ids of those. A row that somebody has locked is not waited for: its
/// job is being ended, and asks for others that are held here, too, so that each would wait for the other. It counts as
/// ours, and nobody else leases it while it is locked. One that was given back a moment ago is held by nobody, and stays
/// so. For the system role.
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

/// Locks the job's row and checks that the lease is still ours: whoever lost it gets [`Error::LeaseLost`] and must write
/// nothing (P8). After all other rows, before events.
pub async fn hold(conn: &mut AsyncPgConnection, lease: &Lease) -> Result<()> {
    let held = diesel::sql_query("SELECT FROM jobs WHERE id = $1 AND lease_epoch = $2 FOR NO KEY UPDATE")
        .bind::<SqlUuid, _>(lease.id.0)
        .bind::<BigInt, _>(lease.epoch)
        .execute(conn)
        .await?;
    if held == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

/// Ends a job that went well. If it was asked for again meanwhile, it is due at once instead.
pub async fn finish(conn: &mut AsyncPgConnection, lease: &Lease, now: OffsetDateTime) -> Result<()> {
    let gone = diesel::sql_query("DELETE FROM jobs WHERE id = $1 AND lease_epoch = $2 AND asked = $3")
        .bind::<SqlUuid, _>(lease.id.0)
        .bind::<BigInt, _>(lease.epoch)
        .bind::<BigInt, _>(lease.asked)
        .execute(conn)
        .await?;
    if gone == 1 { Ok(()) } else { release(conn, lease, now, None).await }
}

/// Gives a job back, to be looked at again at `run_at`, or at once if it was asked for meanwhile. With `error` it counts
/// as a failed try, for no reason of the job's own.
pub async fn release(
    conn: &mut AsyncPgConnection,
    lease: &Lease,
    run_at: OffsetDateTime,
    error: Option<&str>,
) -> Result<()> {
    let released = diesel::sql_query(
        "UPDATE jobs SET run_at = CASE WHEN asked > $3 THEN LEAST(run_at, $4) ELSE $4 END, lease_until = NULL, \
             failures = CASE WHEN $5 IS NULL THEN 0 ELSE failures + 1 END, last_error = $5, \
             own_failures = CASE WHEN $5 IS NULL THEN 0 ELSE own_failures END \
         WHERE id = $1 AND lease_epoch = $2",
    )
    .bind::<SqlUuid, _>(lease.id.0)
    .bind::<BigInt, _>(lease.epoch)
    .bind::<BigInt, _>(lease.asked)
    .bind::<Timestamptz, _>(run_at)
    .bind::<Nullable<Text>, _>(error)
    .execute(conn)
    .await?;
    if released == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

/// Gives a job back that nothing was tried for, to be looked at again at `run_at`, or at once if it was asked for
/// meanwhile. What failed before still counts.
pub async fn postpone(conn: &mut AsyncPgConnection, lease: &Lease, run_at: OffsetDateTime) -> Result<()> {
    let postponed = diesel::sql_query(
        "UPDATE jobs SET run_at = CASE WHEN asked > $3 THEN LEAST(run_at, $4) ELSE $4 END, lease_until = NULL \
         WHERE id = $1 AND lease_epoch = $2",
    )
    .bind::<SqlUuid, _>(lease.id.0)
    .bind::<BigInt, _>(lease.epoch)
    .bind::<BigInt, _>(lease.asked)
    .bind::<Timestamptz, _>(run_at)
    .execute(conn)
    .await?;
    if postponed == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

/// Gives a job back that has failed for a reason of its own, to be tried again at `run_at`; at the last of `most` such
/// failures it is parked at `now` instead. Returns whether it was.
pub async fn fail(
    conn: &mut AsyncPgConnection,
    lease: &Lease,
    run_at: OffsetDateTime,
    error: &str,
    most: i32,
    now: OffsetDateTime,
) -> Result<bool> {
    let row: Option<Parked> = diesel::sql_query(
        "UPDATE jobs SET run_at = CASE WHEN asked > $3 THEN LEAST(run_at, $4) ELSE $4 END, lease_until = NULL, \
             failures = failures + 1, own_failures = own_failures + 1, last_error = $5, \
             park_time = CASE WHEN own_failures + 1 >= $6 THEN $7 END \
         WHERE id = $1 AND lease_epoch = $2 RETURNING park_time IS NOT NULL AS is_parked",
    )
    .bind::<SqlUuid, _>(lease.id.0)
    .bind::<BigInt, _>(lease.epoch)
    .bind::<BigInt, _>(lease.asked)
    .bind::<Timestamptz, _>(run_at)
    .bind::<Text, _>(error)
    .bind::<Integer, _>(most)
    .bind::<Timestamptz, _>(now)
    .get_result(conn)
    .await
    .optional()?;
    row.map(|row| row.is_parked).ok_or(Error::LeaseLost)
}

#[derive(QueryableByName)]
struct Parked {
    #[diesel(sql_type = Bool)]
    is_parked: bool,
}

/// Gives leases back at once, so that others can take the jobs. They stay ours until somebody does. One whose row is locked
/// is being ended; should that not come to its end, it runs out. For the system role.
pub async fn give_up(conn: &mut AsyncPgConnection, held: &[(Uuid, i64)]) -> Result<usize> {
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

/// Brings an organization's jobs that have failed before forward, parked ones too: what stood in their way is mended.
pub async fn hurry(conn: &mut AsyncPgConnection, org: OrganizationId, now: OffsetDateTime) -> Result<()> {
    diesel::sql_query(
        "UPDATE jobs SET run_at = LEAST(run_at, $2), park_time = NULL, own_failures = 0 WHERE id IN ( \
             SELECT id FROM jobs WHERE organization_id = $1 AND failures > 0 ORDER BY id FOR UPDATE)",
    )
    .bind::<SqlUuid, _>(org.0)
    .bind::<Timestamptz, _>(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// When the next job is due that nobody holds. For the system role.
pub async fn next_due(conn: &mut AsyncPgConnection) -> Result<Option<OffsetDateTime>> {
    #[derive(QueryableByName)]
    struct Due {
        #[diesel(sql_type = Nullable<Timestamptz>)]
        due: Option<OffsetDateTime>,
    }
    let row: Due = diesel::sql_query(format!("SELECT min(run_at) AS due FROM jobs WHERE kind = ANY ($1) AND {FREE}"))
        .bind::<Array<Text>, _>(known_kinds())
        .get_result(conn)
        .await?;
    Ok(row.due)
}
