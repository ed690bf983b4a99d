//! Rows of jobs: one for a kind and an object, in the time of Paybridge's clock. Every write that a job leads to shows its
//! lease's epoch (P8); how jobs are leased is in [`super::leases`].

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::jobs::{JobKind, Lease};
use crate::domain::{Error, OrganizationId, Result};

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

/// Asks for jobs; those of `now` or earlier are due at once. One that is there already is brought forward, and, if it runs
/// just now, will run again. One that is asked for twice here counts once: of two repeats of a webhook that come together,
/// say.
pub async fn ask(
    conn: &mut AsyncPgConnection,
    jobs: &[NewJob],
    by: By,
    now: OffsetDateTime,
    mut new_id: impl FnMut() -> Uuid,
) -> Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    diesel::sql_query(
        "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, object_time, run_at, due, asked, \
             failures, lease_epoch) \
         SELECT DISTINCT ON (organization_id, kind, object_id, object_key) \
             id, organization_id, kind, object_id, object_key, object_time, run_at, run_at <= $9, 1, 0, 0 \
         FROM unnest($1, $2, $3, $4, $5, $6, $7) \
             AS new (id, organization_id, kind, object_id, object_key, object_time, run_at) \
         ORDER BY organization_id, kind, object_id, object_key, run_at \
         ON CONFLICT ON CONSTRAINT jobs_object_key DO UPDATE \
         SET asked = jobs.asked + 1, run_at = LEAST(jobs.run_at, excluded.run_at), due = jobs.due OR excluded.due, \
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
    .bind::<Timestamptz, _>(now)
    .execute(conn)
    .await?;
    Ok(())
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
        "UPDATE jobs SET run_at = CASE WHEN asked > $3 THEN LEAST(run_at, $4) ELSE $4 END, due = false, \
             lease_until = NULL, failures = CASE WHEN $5 IS NULL THEN 0 ELSE failures + 1 END, last_error = $5, \
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
        "UPDATE jobs SET run_at = CASE WHEN asked > $3 THEN LEAST(run_at, $4) ELSE $4 END, due = false, \
             lease_until = NULL \
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
        "UPDATE jobs SET run_at = CASE WHEN asked > $3 THEN LEAST(run_at, $4) ELSE $4 END, due = false, \
             lease_until = NULL, failures = failures + 1, own_failures = own_failures + 1, last_error = $5, \
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

/// Brings an organization's jobs that have failed before forward, parked ones too: what stood in their way is mended.
pub async fn hurry(conn: &mut AsyncPgConnection, org: OrganizationId, now: OffsetDateTime) -> Result<()> {
    diesel::sql_query(
        "UPDATE jobs SET run_at = LEAST(run_at, $2), due = true, park_time = NULL, own_failures = 0 WHERE id = ANY (ARRAY( \
             SELECT id FROM jobs WHERE organization_id = $1 AND failures > 0 ORDER BY id FOR UPDATE))",
    )
    .bind::<SqlUuid, _>(org.0)
    .bind::<Timestamptz, _>(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether a job of this kind is asked for about an object, be it parked.
pub async fn is_asked(conn: &mut AsyncPgConnection, org: OrganizationId, kind: JobKind, object: Uuid) -> Result<bool> {
    let is_asked = sql::<Bool>("EXISTS (SELECT FROM jobs WHERE organization_id = ")
        .bind::<SqlUuid, _>(org.0)
        .sql(" AND kind = ")
        .bind::<Text, _>(kind.as_str())
        .sql(" AND object_id = ")
        .bind::<SqlUuid, _>(object)
        .sql(")");
    Ok(diesel::select(is_asked).get_result(conn).await?)
}
