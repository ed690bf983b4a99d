//! Rows of deliveries: Stripe's webhooks, each stored once (P6).

use diesel::prelude::*;
use diesel::sql_types::{Date, Integer};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::error::unreadable;
use super::schema::deliveries::dsl;
use crate::domain::deliveries::{Delivery, DeliveryState};
use crate::domain::{IntegrationId, OrganizationId, Result};

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = super::schema::deliveries)]
struct Row {
    organization_id: Uuid,
    integration_id: Uuid,
    provider_event_id: String,
    created: OffsetDateTime,
    event_type: String,
    body: String,
    polled: bool,
    state: String,
    reason: Option<String>,
    receive_time: OffsetDateTime,
}

fn state_columns(state: &DeliveryState) -> (&'static str, Option<&str>) {
    let reason = match state {
        DeliveryState::Received | DeliveryState::Applied => None,
        DeliveryState::Ignored(reason) | DeliveryState::Parked(reason) => Some(reason.as_str()),
    };
    (state.as_str(), reason)
}

impl From<&Delivery> for Row {
    fn from(delivery: &Delivery) -> Self {
        let (state, reason) = state_columns(&delivery.state);
        Self {
            organization_id: delivery.organization_id.0,
            integration_id: delivery.integration_id.0,
            provider_event_id: delivery.provider_event_id.clone(),
            created: delivery.created,
            event_type: delivery.event_type.clone(),
            body: delivery.body.clone(),
            polled: delivery.polled,
            state: state.to_owned(),
            reason: reason.map(ToOwned::to_owned),
            receive_time: delivery.receive_time,
        }
    }
}

impl Row {
    fn parse(self) -> Result<Delivery> {
        let reason = self.reason.unwrap_or_default();
        let state = match self.state.as_str() {
            "received" => DeliveryState::Received,
            "applied" => DeliveryState::Applied,
            "ignored" => DeliveryState::Ignored(reason),
            "parked" => DeliveryState::Parked(reason),
            other => return Err(unreadable("deliveries", "state", other)),
        };
        Ok(Delivery {
            organization_id: self.organization_id.into(),
            integration_id: self.integration_id.into(),
            provider_event_id: self.provider_event_id,
            created: self.created,
            event_type: self.event_type,
            body: self.body,
            polled: self.polled,
            state,
            receive_time: self.receive_time,
        })
    }
}

/// Inserts deliveries that are not stored yet, of any organizations. Returns the new ones. Rows are sorted by key, so
/// that two batches with the same deliveries cannot deadlock. For the system role, or for a tenant with its own
/// deliveries.
pub async fn insert_new(conn: &mut AsyncPgConnection, deliveries: &[&Delivery]) -> Result<Vec<(Uuid, String)>> {
    let mut rows: Vec<Row> = deliveries.iter().map(|delivery| Row::from(*delivery)).collect();
    rows.sort_by(|left, right| {
        (left.organization_id, left.integration_id, &left.provider_event_id).cmp(&(
            right.organization_id,
            right.integration_id,
            &right.provider_event_id,
        ))
    });
    Ok(diesel::insert_into(dsl::deliveries)
        .values(rows)
        .on_conflict((dsl::organization_id, dsl::integration_id, dsl::provider_event_id, dsl::created))
        .do_nothing()
        .returning((dsl::integration_id, dsl::provider_event_id))
        .get_results(conn)
        .await?)
}

pub async fn get(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
    provider_event_id: &str,
    created: OffsetDateTime,
) -> Result<Option<Delivery>> {
    let query = dsl::deliveries.find((org.0, integration.0, provider_event_id, created)).select(Row::as_select());
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.map(Row::parse).transpose()
}

/// Updates a delivery's state and reason.
pub async fn save_state(conn: &mut AsyncPgConnection, delivery: &Delivery) -> Result<()> {
    let (state, reason) = state_columns(&delivery.state);
    diesel::update(dsl::deliveries.find((
        delivery.organization_id.0,
        delivery.integration_id.0,
        &delivery.provider_event_id,
        delivery.created,
    )))
    .set((dsl::state.eq(state), dsl::reason.eq(reason)))
    .execute(conn)
    .await?;
    Ok(())
}

/// Creates the partitions of the days from `first` to `last`. For the system role.
pub async fn ensure_partitions(conn: &mut AsyncPgConnection, first: time::Date, last: time::Date) -> Result<()> {
    diesel::sql_query("SELECT ensure_delivery_partitions($1, $2)")
        .bind::<Date, _>(first)
        .bind::<Date, _>(last)
        .execute(conn)
        .await?;
    Ok(())
}

/// Drops the partitions of the days before `first_kept`; returns how many. For the system role.
pub async fn drop_partitions(conn: &mut AsyncPgConnection, first_kept: time::Date) -> Result<i32> {
    #[derive(QueryableByName)]
    struct Dropped {
        #[diesel(sql_type = Integer)]
        dropped: i32,
    }
    let row: Dropped = diesel::sql_query("SELECT drop_delivery_partitions($1) AS dropped")
        .bind::<Date, _>(first_kept)
        .get_result(conn)
        .await?;
    Ok(row.dropped)
}
