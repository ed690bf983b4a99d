//! The event log: one counter row per organization, and its events (P5).

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Jsonb, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::rows::{from_json, to_json};
use super::schema::event_heads::dsl as heads;
use super::schema::events::dsl;
use crate::domain::events::{Event, EventLog, NewEvent};
use crate::domain::{Error, LogId, OrganizationId, Result};

#[derive(Queryable, Selectable)]
#[diesel(table_name = super::schema::events)]
struct Row {
    organization_id: Uuid,
    position: i64,
    id: Uuid,
    webhook_type: String,
    payload: serde_json::Value,
    create_time: OffsetDateTime,
}

/// Appends `new` in order. The counter row stays locked until commit, so this is the last statement of its transaction,
/// and positions are assigned in commit order, without gaps (P5). `new_id` generates the events' ids.
pub async fn append(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    new: &[NewEvent],
    now: OffsetDateTime,
    mut new_id: impl FnMut() -> Uuid,
) -> Result<()> {
    if new.is_empty() {
        return Ok(());
    }
    let count = i64::try_from(new.len()).map_err(Error::internal)?;
    let ids: Vec<Uuid> = new.iter().map(|_| new_id()).collect();
    let types: Vec<&str> = new.iter().map(|event| event.webhook_type().as_str()).collect();
    let payloads = new.iter().map(|event| to_json(event.payload())).collect::<Result<Vec<_>>>()?;
    let inserted = diesel::sql_query(
        "WITH head AS ( \
             UPDATE event_heads SET last_position = last_position + $2 WHERE organization_id = $1 \
             RETURNING last_position \
         ) \
         INSERT INTO events (organization_id, position, id, webhook_type, payload, create_time) \
         SELECT $1, head.last_position - $2 + new.number, new.id, new.webhook_type, new.payload, $6 \
         FROM head, unnest($3, $4, $5) WITH ORDINALITY AS new (id, webhook_type, payload, number)",
    )
    .bind::<SqlUuid, _>(org.0)
    .bind::<BigInt, _>(count)
    .bind::<Array<SqlUuid>, _>(ids)
    .bind::<Array<Text>, _>(types)
    .bind::<Array<Jsonb>, _>(payloads)
    .bind::<Timestamptz, _>(now)
    .execute(conn)
    .await?;
    if inserted == new.len() {
        Ok(())
    } else {
        Err(Error::internal(anyhow::anyhow!("organization {org} has no event head")))
    }
}

/// Reads which log it is, and where it begins and ends.
pub async fn head(conn: &mut AsyncPgConnection, org: OrganizationId) -> Result<EventLog> {
    let head: Option<(Uuid, i64, i64)> = heads::event_heads
        .find(org.0)
        .select((heads::log_id, heads::last_position, heads::first_position))
        .first(conn)
        .await
        .optional()?;
    let (log_id, last_position, first_position) = head.ok_or_else(|| Error::not_found("organization", org))?;
    Ok(EventLog { log_id: log_id.into(), last_position, first_position })
}

/// Reads the newest positions of these organizations' logs. For the system role.
pub async fn last_positions(
    conn: &mut AsyncPgConnection,
    orgs: &[OrganizationId],
) -> Result<Vec<(OrganizationId, i64)>> {
    let rows: Vec<(Uuid, i64)> = heads::event_heads
        .filter(heads::organization_id.eq_any(orgs.iter().map(|org| org.0).collect::<Vec<_>>()))
        .select((heads::organization_id, heads::last_position))
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|(org, position)| (org.into(), position)).collect())
}

/// Reads at most `limit` events after `position`, in order.
pub async fn after(conn: &mut AsyncPgConnection, org: OrganizationId, position: i64, limit: i64) -> Result<Vec<Event>> {
    let rows: Vec<Row> = dsl::events
        .filter(dsl::organization_id.eq(org.0).and(dsl::position.gt(position)))
        .order(dsl::position)
        .limit(limit)
        .select(Row::as_select())
        .load(conn)
        .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Event {
                id: row.id,
                organization_id: row.organization_id.into(),
                position: row.position,
                create_time: row.create_time,
                webhook_type: row.webhook_type,
                payload: from_json("events", "payload", row.payload)?,
            })
        })
        .collect()
}

/// Creates an organization's empty log.
pub async fn insert_head(conn: &mut AsyncPgConnection, org: OrganizationId, log_id: LogId) -> Result<()> {
    diesel::insert_into(heads::event_heads)
        .values((
            heads::organization_id.eq(org.0),
            heads::log_id.eq(log_id.0),
            heads::last_position.eq(0),
            heads::first_position.eq(1),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Deletes at most `limit` of an organization's oldest events, those written before `before`, and moves the beginning
/// of the log. Returns how many were deleted. For the system role.
pub async fn trim(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    before: OffsetDateTime,
    limit: i64,
) -> Result<i64> {
    #[derive(QueryableByName)]
    struct Trimmed {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    // Positions follow the order of writing, so the oldest events are a contiguous range from the first position.
    let trimmed: Trimmed = diesel::sql_query(
        "WITH old AS ( \
             SELECT position FROM events \
             WHERE organization_id = $1 AND create_time < $2 \
                 AND position < (SELECT first_position + $3 FROM event_heads WHERE organization_id = $1) \
         ), deleted AS (DELETE FROM events \
             WHERE organization_id = $1 AND position <= (SELECT max(position) FROM old) RETURNING position \
         ), moved AS ( \
             UPDATE event_heads SET first_position = (SELECT max(position) + 1 FROM deleted) \
             WHERE organization_id = $1 AND EXISTS (SELECT FROM deleted) \
         ) SELECT count(*) AS count FROM deleted",
    )
    .bind::<SqlUuid, _>(org.0)
    .bind::<Timestamptz, _>(before)
    .bind::<BigInt, _>(limit)
    .get_result(conn)
    .await?;
    Ok(trimmed.count)
}
