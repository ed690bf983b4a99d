//! How far the reconcilers are with an integration: columns of its row that are no part of the noun. Each is written by
//! one job alone, so none is locked for long.

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::error::unreadable;
use super::schema::integrations::dsl;
use crate::domain::jobs::JobKind;
use crate::domain::{IntegrationId, OrganizationId, Result};

/// How far the events list has been read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Queryable, AsChangeset)]
#[diesel(table_name = super::schema::integrations, treat_none_as_null = true)]
pub struct ListProgress {
    /// The `created` of the newest event seen by a read that came to its end; the next read overlaps.
    pub poll_time: Option<OffsetDateTime>,
    /// When the list was last read to its end.
    pub list_read_time: Option<OffsetDateTime>,
    /// Until when it is read fast.
    pub list_fast_until: Option<OffsetDateTime>,
    /// The last event that a read passed, of which the end is not reached: the read goes on after it.
    pub list_walk_after: Option<String>,
    /// How far back that read goes.
    pub list_walk_since: Option<OffsetDateTime>,
    /// The `created` of the newest event that it has seen.
    pub list_walk_newest: Option<OffsetDateTime>,
}

/// How far the events list has been read.
pub async fn list_progress(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
) -> Result<ListProgress> {
    let row: Option<ListProgress> = dsl::integrations
        .find((org.0, id.0))
        .select((
            dsl::poll_time,
            dsl::list_read_time,
            dsl::list_fast_until,
            dsl::list_walk_after,
            dsl::list_walk_since,
            dsl::list_walk_newest,
        ))
        .first(conn)
        .await
        .optional()?;
    Ok(row.unwrap_or_default())
}

/// Notes how far the events list has been read.
pub async fn set_list_progress(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
    progress: &ListProgress,
) -> Result<()> {
    diesel::update(dsl::integrations.find((org.0, id.0))).set(progress).execute(conn).await?;
    Ok(())
}

/// Up to when stale objects have been asked about.
pub async fn sweep_time(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
) -> Result<Option<OffsetDateTime>> {
    Ok(dsl::integrations.find((org.0, id.0)).select(dsl::sweep_time).first(conn).await.optional()?.flatten())
}

/// Notes up to when stale objects have been asked about.
pub async fn set_sweep_time(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
    time: OffsetDateTime,
) -> Result<()> {
    diesel::update(dsl::integrations.find((org.0, id.0))).set(dsl::sweep_time.eq(time)).execute(conn).await?;
    Ok(())
}

/// The endpoint that was replaced and is still to be deleted at Stripe.
pub async fn old_endpoint(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
) -> Result<Option<String>> {
    let row = dsl::integrations.find((org.0, id.0)).select(dsl::provider_old_endpoint_id);
    Ok(row.first(conn).await.optional()?.flatten())
}

/// Notes which endpoint is to be deleted at Stripe.
pub async fn set_old_endpoint(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
    endpoint: Option<&str>,
) -> Result<()> {
    let target = dsl::integrations.find((org.0, id.0));
    diesel::update(target).set(dsl::provider_old_endpoint_id.eq(endpoint)).execute(conn).await?;
    Ok(())
}

/// What is wrong with the endpoint, and was told because it could not be mended.
pub async fn endpoint_fault(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
) -> Result<Option<String>> {
    Ok(dsl::integrations.find((org.0, id.0)).select(dsl::endpoint_fault).first(conn).await.optional()?.flatten())
}

/// Notes what is wrong with the endpoint, or that nothing is.
pub async fn set_endpoint_fault(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
    fault: Option<&str>,
) -> Result<()> {
    diesel::update(dsl::integrations.find((org.0, id.0))).set(dsl::endpoint_fault.eq(fault)).execute(conn).await?;
    Ok(())
}

/// Notes that the present key may not make a call; whether that is new.
pub async fn note_forbidden(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
    action: &str,
) -> Result<bool> {
    let noted = diesel::sql_query(
        "UPDATE integrations SET forbidden_actions = array_append(forbidden_actions, $3) \
         WHERE organization_id = $1 AND id = $2 AND NOT $3 = ANY (forbidden_actions)",
    )
    .bind::<SqlUuid, _>(org.0)
    .bind::<SqlUuid, _>(id.0)
    .bind::<Text, _>(action)
    .execute(conn)
    .await?;
    Ok(noted == 1)
}

/// Another key has come: what it may not do, at the endpoint too, is still to be seen.
pub async fn forget_forbidden(conn: &mut AsyncPgConnection, org: OrganizationId, id: IntegrationId) -> Result<()> {
    let none = (dsl::forbidden_actions.eq(Vec::<String>::new()), dsl::endpoint_fault.eq(None::<String>));
    diesel::update(dsl::integrations.find((org.0, id.0))).set(none).execute(conn).await?;
    Ok(())
}

/// At most `limit` reconcilers that live integrations lack. For the system role.
pub async fn missing_reconcilers(
    conn: &mut AsyncPgConnection,
    limit: i64,
) -> Result<Vec<(OrganizationId, IntegrationId, JobKind)>> {
    #[derive(QueryableByName)]
    struct Missing {
        #[diesel(sql_type = SqlUuid)]
        organization_id: Uuid,
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
        #[diesel(sql_type = Text)]
        kind: String,
    }
    let rows: Vec<Missing> = diesel::sql_query(
        // One look at an index for each that is wanted: NOT EXISTS becomes a join over all of a tenant's jobs once their
        // statistics are known.
        "SELECT i.organization_id, i.id, wanted.kind FROM integrations AS i CROSS JOIN unnest($1) AS wanted (kind) \
         WHERE i.state <> 'disconnected' AND (SELECT j.id FROM jobs AS j \
             WHERE j.organization_id = i.organization_id AND j.kind = wanted.kind AND j.object_id = i.id \
             LIMIT 1) IS NULL \
         ORDER BY i.organization_id, i.id LIMIT $2",
    )
    .bind::<Array<Text>, _>(JobKind::RECONCILERS.map(JobKind::as_str).to_vec())
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let kind = JobKind::parse(&row.kind).ok_or_else(|| unreadable("jobs", "kind", &row.kind))?;
            Ok((row.organization_id.into(), row.id.into(), kind))
        })
        .collect()
}
