//! Rows of jobs: one per kind and object, in the time of Paybridge's clock. Every write of a job's work checks its
//! lease's epoch (P8). [`super::leases`] leases jobs.

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::jobs::{JobKind, Lease};
use crate::domain::{Error, IntegrationId, OrganizationId, Result};

/// A job to be enqueued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    pub organization_id: OrganizationId,
    pub kind: JobKind,
    pub object_id: Uuid,
    /// For a delivery, Stripe's event id; for a refund, Stripe's refund id; otherwise empty.
    pub object_key: String,
    /// For a delivery, Stripe's `created`.
    pub object_time: Option<OffsetDateTime>,
    /// The job does not run before this time.
    pub run_at: OffsetDateTime,
}

/// Who requested a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestedBy {
    /// A caller, whose request was accepted: a parked job runs again, with its failure count reset.
    Caller,
    /// A Stripe event, a timer or another job: a parked job stays parked. These repeat, whatever is wrong with the job.
    Paybridge,
}

/// Enqueues jobs; those with `run_at` up to `now` are due at once. A job that exists already is brought forward, and
/// runs again if it is running now. Duplicates within `jobs` count once: two repeats of a webhook may arrive in one
/// batch.
pub async fn enqueue(
    conn: &mut AsyncPgConnection,
    jobs: &[NewJob],
    by: RequestedBy,
    now: OffsetDateTime,
    mut new_id: impl FnMut() -> Uuid,
) -> Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    diesel::sql_query(
        "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, object_time, run_at, due, generation, \
             failures, lease_epoch) \
         SELECT DISTINCT ON (organization_id, kind, object_id, object_key) \
             id, organization_id, kind, object_id, object_key, object_time, run_at, run_at <= $9, 1, 0, 0 \
         FROM unnest($1, $2, $3, $4, $5, $6, $7) \
             AS new (id, organization_id, kind, object_id, object_key, object_time, run_at) \
         ORDER BY organization_id, kind, object_id, object_key, run_at \
         ON CONFLICT ON CONSTRAINT jobs_object_key DO UPDATE \
         SET generation = jobs.generation + 1, run_at = LEAST(jobs.run_at, excluded.run_at), \
             due = jobs.due OR excluded.due, \
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
    .bind::<Bool, _>(by == RequestedBy::Caller)
    .bind::<Timestamptz, _>(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Locks the job's row and checks that the lease is still held. A worker that gets [`Error::LeaseLost`] must write
/// nothing (P8). Locked after all other rows, before events.
pub async fn verify_lease(conn: &mut AsyncPgConnection, lease: &Lease) -> Result<()> {
    let held = diesel::sql_query("SELECT FROM jobs WHERE id = $1 AND lease_epoch = $2 FOR NO KEY UPDATE")
        .bind::<SqlUuid, _>(lease.id.0)
        .bind::<BigInt, _>(lease.epoch)
        .execute(conn)
        .await?;
    if held == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

/// Deletes a job that succeeded. If it was enqueued again meanwhile, it is rescheduled at once instead.
pub async fn finish(conn: &mut AsyncPgConnection, lease: &Lease, now: OffsetDateTime) -> Result<()> {
    let deleted = diesel::sql_query("DELETE FROM jobs WHERE id = $1 AND lease_epoch = $2 AND generation = $3")
        .bind::<SqlUuid, _>(lease.id.0)
        .bind::<BigInt, _>(lease.epoch)
        .bind::<BigInt, _>(lease.generation)
        .execute(conn)
        .await?;
    if deleted == 1 { Ok(()) } else { release(conn, lease, now, None).await }
}

/// Releases a job, to run again at `run_at`, or at once if it was enqueued meanwhile. With an `error` the attempt
/// counts as failed, but not as the job's own failure.
pub async fn release(
    conn: &mut AsyncPgConnection,
    lease: &Lease,
    run_at: OffsetDateTime,
    error: Option<&str>,
) -> Result<()> {
    let released = diesel::sql_query(
        "UPDATE jobs SET run_at = CASE WHEN generation > $3 THEN LEAST(run_at, $4) ELSE $4 END, due = false, \
             lease_until = NULL, failures = CASE WHEN $5 IS NULL THEN 0 ELSE failures + 1 END, last_error = $5, \
             own_failures = CASE WHEN $5 IS NULL THEN 0 ELSE own_failures END \
         WHERE id = $1 AND lease_epoch = $2",
    )
    .bind::<SqlUuid, _>(lease.id.0)
    .bind::<BigInt, _>(lease.epoch)
    .bind::<BigInt, _>(lease.generation)
    .bind::<Timestamptz, _>(run_at)
    .bind::<Nullable<Text>, _>(error)
    .execute(conn)
    .await?;
    if released == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

/// Releases a job without an attempt, to run at `run_at`, or at once if it was enqueued meanwhile. Earlier failures
/// still count.
pub async fn postpone(conn: &mut AsyncPgConnection, lease: &Lease, run_at: OffsetDateTime) -> Result<()> {
    let postponed = diesel::sql_query(
        "UPDATE jobs SET run_at = CASE WHEN generation > $3 THEN LEAST(run_at, $4) ELSE $4 END, due = false, \
             lease_until = NULL \
         WHERE id = $1 AND lease_epoch = $2",
    )
    .bind::<SqlUuid, _>(lease.id.0)
    .bind::<BigInt, _>(lease.epoch)
    .bind::<BigInt, _>(lease.generation)
    .bind::<Timestamptz, _>(run_at)
    .execute(conn)
    .await?;
    if postponed == 1 { Ok(()) } else { Err(Error::LeaseLost) }
}

/// A failure of a job, for a reason of its own.
#[derive(Clone, Debug)]
pub struct JobFailure {
    pub error: String,
    /// When to run the job again.
    pub run_at: OffsetDateTime,
    /// After so many such failures the job is parked instead.
    pub failures_max: i32,
}

/// Releases a job that failed, or parks it at `now`. Returns whether it was parked.
pub async fn fail(
    conn: &mut AsyncPgConnection,
    lease: &Lease,
    failure: &JobFailure,
    now: OffsetDateTime,
) -> Result<bool> {
    let row: Option<Parked> = diesel::sql_query(
        "UPDATE jobs SET run_at = CASE WHEN generation > $3 THEN LEAST(run_at, $4) ELSE $4 END, due = false, \
             lease_until = NULL, failures = failures + 1, own_failures = own_failures + 1, last_error = $5, \
             park_time = CASE WHEN own_failures + 1 >= $6 THEN $7 END \
         WHERE id = $1 AND lease_epoch = $2 RETURNING park_time IS NOT NULL AS is_parked",
    )
    .bind::<SqlUuid, _>(lease.id.0)
    .bind::<BigInt, _>(lease.epoch)
    .bind::<BigInt, _>(lease.generation)
    .bind::<Timestamptz, _>(failure.run_at)
    .bind::<Text, _>(&failure.error)
    .bind::<Integer, _>(failure.failures_max)
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

/// Makes an organization's failed jobs due now, including parked ones: the cause has been repaired.
pub async fn run_now(conn: &mut AsyncPgConnection, org: OrganizationId, now: OffsetDateTime) -> Result<()> {
    diesel::sql_query(
        "UPDATE jobs SET run_at = LEAST(run_at, $2), due = true, park_time = NULL, own_failures = 0 \
         WHERE id = ANY (ARRAY( \
             SELECT id FROM jobs WHERE organization_id = $1 AND failures > 0 ORDER BY id FOR UPDATE))",
    )
    .bind::<SqlUuid, _>(org.0)
    .bind::<Timestamptz, _>(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether a job of this kind exists for an object, parked or not.
pub async fn is_enqueued(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    kind: JobKind,
    object: Uuid,
) -> Result<bool> {
    let is_enqueued = sql::<Bool>("EXISTS (SELECT FROM jobs WHERE organization_id = ")
        .bind::<SqlUuid, _>(org.0)
        .sql(" AND kind = ")
        .bind::<Text, _>(kind.as_str())
        .sql(" AND object_id = ")
        .bind::<SqlUuid, _>(object)
        .sql(")");
    Ok(diesel::select(is_enqueued).get_result(conn).await?)
}

/// Whether deliveries of an integration are to be applied by jobs that were enqueued before `newest`, a UUID v7. Those
/// that have failed for some minutes do not count: the key may lack a permission.
pub async fn has_deliveries_before(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
    newest: Uuid,
) -> Result<bool> {
    let has_deliveries = sql::<Bool>("EXISTS (SELECT FROM jobs WHERE organization_id = ")
        .bind::<SqlUuid, _>(org.0)
        .sql(" AND kind = ")
        .bind::<Text, _>(JobKind::ApplyDelivery.as_str())
        .sql(" AND object_id = ")
        .bind::<SqlUuid, _>(integration.0)
        .sql(" AND park_time IS NULL AND failures < 8 AND id < ")
        .bind::<SqlUuid, _>(newest)
        .sql(")");
    Ok(diesel::select(has_deliveries).get_result(conn).await?)
}
