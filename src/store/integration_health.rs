//! The reconcilers' progress and the faults that they found, in columns that are not part of `Integration`. Each column
//! is written by one job only, so no lock is held for long.

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::rows::variant;
use super::schema::integrations::dsl;
use crate::domain::jobs::JobKind;
use crate::domain::{IntegrationId, OrganizationId, Result};

/// The progress of reading the events list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Queryable, AsChangeset)]
#[diesel(table_name = super::schema::integrations, treat_none_as_null = true)]
pub struct ListProgress {
    /// The `created` of the newest event seen by a complete read. The next read overlaps it.
    pub poll_time: Option<OffsetDateTime>,
    /// When the list was last read completely.
    pub list_read_time: Option<OffsetDateTime>,
    /// Until when the list is polled at the short interval.
    pub list_fast_until: Option<OffsetDateTime>,
    /// The last event that an incomplete read has seen: the read continues after it.
    pub list_walk_after: Option<String>,
    /// The time at which that read ends.
    pub list_walk_since: Option<OffsetDateTime>,
    /// The `created` of the newest event that it has seen.
    pub list_walk_newest: Option<OffsetDateTime>,
}

impl ListProgress {
    /// Clears the position of an interrupted read.
    pub fn reset_walk(&mut self) {
        (self.list_walk_after, self.list_walk_since, self.list_walk_newest) = (None, None, None);
    }

    /// Begins a read that reaches back to `since`, or further if less was read before.
    pub fn restart(&mut self, since: OffsetDateTime) {
        self.reset_walk();
        self.list_walk_since = Some(self.poll_time.map_or(since, |time| time.min(since)));
    }
}

/// Reads the progress of reading the events list.
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

/// Records the progress of reading the events list.
pub async fn set_list_progress(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
    progress: &ListProgress,
) -> Result<()> {
    diesel::update(dsl::integrations.find((org.0, id.0))).set(progress).execute(conn).await?;
    Ok(())
}

/// Reads up to when stale objects have been reconciled.
pub async fn sweep_time(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
) -> Result<Option<OffsetDateTime>> {
    Ok(dsl::integrations.find((org.0, id.0)).select(dsl::sweep_time).first(conn).await.optional()?.flatten())
}

/// Records up to when stale objects have been reconciled.
pub async fn set_sweep_time(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
    time: OffsetDateTime,
) -> Result<()> {
    diesel::update(dsl::integrations.find((org.0, id.0))).set(dsl::sweep_time.eq(time)).execute(conn).await?;
    Ok(())
}

/// Reads the id of the endpoint that was replaced and is still to be deleted at Stripe.
pub async fn old_endpoint(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
) -> Result<Option<String>> {
    let row = dsl::integrations.find((org.0, id.0)).select(dsl::provider_old_endpoint_id);
    Ok(row.first(conn).await.optional()?.flatten())
}

/// Records which endpoint is to be deleted at Stripe.
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

/// Reads the endpoint's fault that was reported because it could not be repaired.
pub async fn endpoint_fault(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
) -> Result<Option<String>> {
    Ok(dsl::integrations.find((org.0, id.0)).select(dsl::endpoint_fault).first(conn).await.optional()?.flatten())
}

/// Records the endpoint's fault; `None` clears it.
pub async fn set_endpoint_fault(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
    fault: Option<&str>,
) -> Result<()> {
    diesel::update(dsl::integrations.find((org.0, id.0))).set(dsl::endpoint_fault.eq(fault)).execute(conn).await?;
    Ok(())
}

/// Records a call that the present key lacks the permission for. Returns `false` if it is recorded already.
pub async fn record_forbidden_action(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: IntegrationId,
    action: &str,
) -> Result<bool> {
    let recorded = diesel::sql_query(
        "UPDATE integrations SET forbidden_actions = array_append(forbidden_actions, $3) \
         WHERE organization_id = $1 AND id = $2 AND NOT $3 = ANY (forbidden_actions)",
    )
    .bind::<SqlUuid, _>(org.0)
    .bind::<SqlUuid, _>(id.0)
    .bind::<Text, _>(action)
    .execute(conn)
    .await?;
    Ok(recorded == 1)
}

/// Clears what was found about the previous key: the calls that it lacks permissions for, and the endpoint's fault.
pub async fn clear_key_faults(conn: &mut AsyncPgConnection, org: OrganizationId, id: IntegrationId) -> Result<()> {
    let none = (dsl::forbidden_actions.eq(Vec::<String>::new()), dsl::endpoint_fault.eq(None::<String>));
    diesel::update(dsl::integrations.find((org.0, id.0))).set(none).execute(conn).await?;
    Ok(())
}

/// Finds at most `limit` reconciler jobs missing from integrations that are not disconnected. For the system role.
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
        // One index lookup per reconciler: with statistics, NOT EXISTS becomes a join over all of a tenant's jobs.
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
        .map(|row| Ok((row.organization_id.into(), row.id.into(), variant("jobs", "kind", &row.kind)?)))
        .collect()
}
