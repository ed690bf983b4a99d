//! Rows of setup-mode Checkout sessions. Payment-mode sessions are attempts.

use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::rows::variant;
use super::schema::checkout_sessions::dsl;
use crate::domain::checkout_sessions::CheckoutSession;
use crate::domain::{CheckoutSessionId, Error, IntegrationId, OrganizationId, Result};

#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = super::schema::checkout_sessions, treat_none_as_null = true)]
struct Row {
    organization_id: Uuid,
    id: Uuid,
    customer_id: Uuid,
    integration_id: Uuid,
    state: String,
    success_url: String,
    provider_session_id: Option<String>,
    url: Option<String>,
    expire_time: Option<OffsetDateTime>,
    reports_url: bool,
    create_time: OffsetDateTime,
}

impl From<&CheckoutSession> for Row {
    fn from(session: &CheckoutSession) -> Self {
        Self {
            organization_id: session.organization_id.0,
            id: session.id.0,
            customer_id: session.customer_id.0,
            integration_id: session.integration_id.0,
            state: session.state.as_str().to_owned(),
            success_url: session.success_url.clone(),
            provider_session_id: session.provider_session_id.clone(),
            url: session.url.clone(),
            expire_time: session.expire_time,
            reports_url: session.reports_url,
            create_time: session.create_time,
        }
    }
}

impl Row {
    fn parse(self) -> Result<CheckoutSession> {
        Ok(CheckoutSession {
            id: self.id.into(),
            organization_id: self.organization_id.into(),
            customer_id: self.customer_id.into(),
            integration_id: self.integration_id.into(),
            state: variant("checkout_sessions", "state", &self.state)?,
            success_url: self.success_url,
            provider_session_id: self.provider_session_id,
            url: self.url,
            expire_time: self.expire_time,
            reports_url: self.reports_url,
            create_time: self.create_time,
        })
    }
}

pub async fn insert(conn: &mut AsyncPgConnection, session: &CheckoutSession) -> Result<()> {
    diesel::insert_into(dsl::checkout_sessions).values(Row::from(session)).execute(conn).await?;
    Ok(())
}

/// Reads and locks a session until the transaction ends.
pub async fn lock(conn: &mut AsyncPgConnection, org: OrganizationId, id: CheckoutSessionId) -> Result<CheckoutSession> {
    let query = dsl::checkout_sessions.find((org.0, id.0)).select(Row::as_select()).for_update();
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.ok_or_else(|| Error::not_found("checkout session", id))?.parse()
}

/// Reads and locks the session with this Stripe id.
pub async fn lock_by_provider_id(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
    provider_session_id: &str,
) -> Result<Option<CheckoutSession>> {
    let query = dsl::checkout_sessions
        .filter(dsl::organization_id.eq(org.0).and(dsl::integration_id.eq(integration.0)))
        .filter(dsl::provider_session_id.eq(provider_session_id))
        .select(Row::as_select())
        .for_update();
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.map(Row::parse).transpose()
}

/// Updates a locked session.
pub async fn save(conn: &mut AsyncPgConnection, session: &CheckoutSession) -> Result<()> {
    diesel::update(dsl::checkout_sessions.find((session.organization_id.0, session.id.0)))
        .set(Row::from(session))
        .execute(conn)
        .await?;
    Ok(())
}

/// Lists an integration's sessions that are open or being created.
pub async fn list_open(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
) -> Result<Vec<CheckoutSession>> {
    dsl::checkout_sessions
        .filter(dsl::organization_id.eq(org.0).and(dsl::integration_id.eq(integration.0)))
        .filter(dsl::state.eq_any(["creating", "open"]))
        .order(dsl::id)
        .select(Row::as_select())
        .load(conn)
        .await?
        .into_iter()
        .map(Row::parse)
        .collect()
}
