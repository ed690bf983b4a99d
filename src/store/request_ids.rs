//! Callers' request ids: each stands for the resource that its request created. A repeat returns that resource.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::schema::request_ids::dsl;
use crate::domain::{Error, OrganizationId, Result};

/// A caller's request: its `request_id`, and a hash of everything else in it.
#[derive(Clone, Debug)]
pub struct CallerRequest {
    pub id: String,
    pub body_hash: [u8; 32],
}

/// Records that a `request_id` stands for `resource`. If a concurrent call has recorded it already, the body and the
/// resource must be the same.
pub async fn insert(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    request: &CallerRequest,
    resource: Uuid,
    now: OffsetDateTime,
) -> Result<()> {
    let inserted = diesel::insert_into(dsl::request_ids)
        .values((
            dsl::organization_id.eq(org.0),
            dsl::request_id.eq(&request.id),
            dsl::body_hash.eq(&request.body_hash[..]),
            dsl::resource_id.eq(resource),
            dsl::create_time.eq(now),
        ))
        .on_conflict_do_nothing()
        .execute(conn)
        .await?;
    if inserted == 1 {
        return Ok(());
    }
    match resource_of(conn, org, request).await? {
        Some(known) if known == resource => Ok(()),
        _ => Err(Error::RequestIdReused(request.id.clone())),
    }
}

/// Locks a `request_id` until the transaction ends, so that of two concurrent calls the second finds what the first has
/// created. For requests that fail if their resource exists already.
pub async fn lock(conn: &mut AsyncPgConnection, org: OrganizationId, request_id: &str) -> Result<()> {
    diesel::sql_query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind::<Text, _>(format!("{org} {request_id}"))
        .execute(conn)
        .await?;
    Ok(())
}

/// Finds the resource that a `request_id` stands for, if it was used before. The same id with another body is an error.
pub async fn resource_of(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    request: &CallerRequest,
) -> Result<Option<Uuid>> {
    let row: Option<(Vec<u8>, Uuid)> = dsl::request_ids
        .find((org.0, &request.id))
        .select((dsl::body_hash, dsl::resource_id))
        .first(conn)
        .await
        .optional()?;
    match row {
        Some((known_hash, _)) if known_hash != request.body_hash => Err(Error::RequestIdReused(request.id.clone())),
        other => Ok(other.map(|(_, resource)| resource)),
    }
}

/// Records which of the payment's attempts a `request_id` stands for.
pub async fn set_attempt(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    request_id: &str,
    number: i32,
) -> Result<()> {
    let target = dsl::request_ids.find((org.0, request_id));
    diesel::update(target).set(dsl::attempt_number.eq(number)).execute(conn).await?;
    Ok(())
}

/// Reads the attempt that a known `request_id` stands for.
pub async fn attempt_of(conn: &mut AsyncPgConnection, org: OrganizationId, request_id: &str) -> Result<i32> {
    let number: Option<i32> =
        dsl::request_ids.find((org.0, request_id)).select(dsl::attempt_number).first(conn).await.optional()?.flatten();
    number.ok_or_else(|| Error::internal(anyhow::anyhow!("the request id {request_id} stands for no attempt")))
}

/// The `request_id` that marks a resource as recovered. Callers' ids are never this one: they do not know the resource's
/// id before they have created it.
fn recovered_mark(resource: Uuid) -> String {
    format!("recovered/{resource}")
}

/// Marks a resource as read back from Stripe after its row was lost, and with it the `request_id` that had created it.
pub async fn mark_recovered(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    resource: Uuid,
    now: OffsetDateTime,
) -> Result<()> {
    let mark = CallerRequest { id: recovered_mark(resource), body_hash: [0; 32] };
    insert(conn, org, &mark, resource, now).await
}

/// Whether the next request to create a resource that was recovered is a repeat of the one that had created it. True
/// once for each resource.
pub async fn claim_recovered(conn: &mut AsyncPgConnection, org: OrganizationId, resource: Uuid) -> Result<bool> {
    let mark = dsl::request_ids.find((org.0, recovered_mark(resource))).filter(dsl::attempt_number.is_null());
    let claimed = diesel::update(mark).set(dsl::attempt_number.eq(0)).execute(conn).await?;
    Ok(claimed == 1)
}

/// Deletes at most `limit` request ids that were recorded before `before`. For the system role.
pub async fn delete_old(conn: &mut AsyncPgConnection, before: OffsetDateTime, limit: i64) -> Result<usize> {
    Ok(diesel::sql_query(
        "DELETE FROM request_ids WHERE (organization_id, request_id) IN ( \
             SELECT organization_id, request_id FROM request_ids WHERE create_time < $1 LIMIT $2)",
    )
    .bind::<Timestamptz, _>(before)
    .bind::<BigInt, _>(limit)
    .execute(conn)
    .await?)
}
