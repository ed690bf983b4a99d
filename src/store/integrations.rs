//! Rows of integrations, with their sealed secrets (P9).

use diesel::dsl::{AsSelect, sql};
use diesel::expression::SqlLiteral;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use secrecy::SecretString;
use time::OffsetDateTime;
use uuid::Uuid;

use super::rows::variant;
use super::schema::integrations::dsl;
use super::seal::{Place, Sealer};
use crate::domain::catch_up::Stage;
use crate::domain::integrations::Integration;
use crate::domain::{Error, IntegrationId, OrganizationId, Page, Result};

#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = super::schema::integrations, treat_none_as_null = true)]
struct Row {
    organization_id: Uuid,
    id: Uuid,
    code: String,
    name: String,
    state: String,
    pause_reason: Option<String>,
    livemode: bool,
    provider_account_id: Option<String>,
    key_hint: String,
    provider_endpoint_id: Option<String>,
    polls_events: bool,
    success_redirect_url: Option<String>,
    supports_3ds: bool,
    relay_provider_events: bool,
    version: i64,
    create_time: OffsetDateTime,
    update_time: OffsetDateTime,
}

impl From<&Integration> for Row {
    fn from(integration: &Integration) -> Self {
        Self {
            organization_id: integration.organization_id.0,
            id: integration.id.0,
            code: integration.code.clone(),
            name: integration.name.clone(),
            state: integration.state.as_str().to_owned(),
            pause_reason: integration.pause_reason.clone(),
            livemode: integration.livemode,
            provider_account_id: integration.provider_account_id.clone(),
            key_hint: integration.key_hint.clone(),
            provider_endpoint_id: integration.provider_endpoint_id.clone(),
            polls_events: integration.polls_events,
            success_redirect_url: integration.success_redirect_url.clone(),
            supports_3ds: integration.supports_3ds,
            relay_provider_events: integration.relay_provider_events,
            version: integration.version,
            create_time: integration.create_time,
            update_time: integration.update_time,
        }
    }
}

/// The stage of an integration that catches up; NULL for any other.
const CATCH_UP_STAGE: &str = "(SELECT c.stage FROM stripe_contacts AS c \
    WHERE c.organization_id = integrations.organization_id AND c.integration_id = integrations.id \
        AND c.catch_up_reason IS NOT NULL)";

/// What is read of an integration.
fn columns() -> (AsSelect<Row, Pg>, SqlLiteral<Nullable<Text>>) {
    (Row::as_select(), sql(CATCH_UP_STAGE))
}

impl Row {
    fn parse((row, stage): (Self, Option<String>)) -> Result<Integration> {
        row.parse_with(stage.map(|stage| variant("stripe_contacts", "stage", &stage)).transpose()?)
    }

    fn parse_with(self, catch_up: Option<Stage>) -> Result<Integration> {
        Ok(Integration {
            id: self.id.into(),
            organization_id: self.organization_id.into(),
            code: self.code,
            name: self.name,
            state: variant("integrations", "state", &self.state)?,
            pause_reason: self.pause_reason,
            catch_up,
            livemode: self.livemode,
            provider_account_id: self.provider_account_id,
            key_hint: self.key_hint,
            provider_endpoint_id: self.provider_endpoint_id,
            polls_events: self.polls_events,
            success_redirect_url: self.success_redirect_url,
            supports_3ds: self.supports_3ds,
            relay_provider_events: self.relay_provider_events,
            version: self.version,
            create_time: self.create_time,
            update_time: self.update_time,
        })
    }
}

/// One of an integration's secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secret {
    /// The API key.
    Key,
    /// The secret that signs webhooks.
    Webhook,
    /// The secret of the endpoint that is being replaced: its webhooks may still be in flight.
    OldWebhook,
}

fn place(org: OrganizationId, id: IntegrationId, secret: Secret) -> Place<'static> {
    let column = match secret {
        Secret::Key => "integrations.sealed_secret_key",
        Secret::Webhook => "integrations.sealed_webhook_secret",
        Secret::OldWebhook => "integrations.sealed_old_webhook_secret",
    };
    Place { organization_id: org, integration_id: id, column }
}

/// The error for a Stripe account that is connected already, as `known`.
pub fn account_in_use(known: &Integration) -> Error {
    let message = format!(
        "this Stripe account is connected already, as the integration {} ({}); rotate that integration's key, or \
         disconnect it first",
        known.code, known.id
    );
    Error::AlreadyExists { kind: "integration", id: known.id.to_string(), message }
}

/// Refuses an integration whose code or account is in use, with an error that names the other integration. Concurrent
/// calls for the same organization wait until the transaction ends, so that the second finds the first.
pub async fn check_unique(conn: &mut AsyncPgConnection, new: &Integration) -> Result<()> {
    diesel::sql_query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind::<Text, _>(format!("integrations of {}", new.organization_id))
        .execute(conn)
        .await?;
    for known in live(conn, new.organization_id).await?.iter().filter(|known| known.id != new.id) {
        if known.code == new.code {
            let (code, id) = (&known.code, known.id.to_string());
            let message =
                format!("an integration with the code {code} exists ({id}); choose another code, or use that one");
            return Err(Error::AlreadyExists { kind: "integration", id, message });
        }
        let is_same_account = new.provider_account_id.is_some() && known.provider_account_id == new.provider_account_id;
        if is_same_account && known.livemode == new.livemode {
            return Err(account_in_use(known));
        }
    }
    Ok(())
}

/// Inserts an integration that passed [`check_unique`].
pub async fn insert(conn: &mut AsyncPgConnection, integration: &Integration) -> Result<()> {
    diesel::insert_into(dsl::integrations)
        .values((
            Row::from(integration),
            dsl::forbidden_actions.eq(Vec::<String>::new()),
            dsl::force_disconnect.eq(false),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Reads an integration.
pub async fn get(conn: &mut AsyncPgConnection, org: OrganizationId, id: IntegrationId) -> Result<Integration> {
    let row: Option<(Row, Option<String>)> =
        dsl::integrations.find((org.0, id.0)).select(columns()).first(conn).await.optional()?;
    Row::parse(row.ok_or_else(|| Error::not_found("integration", id))?)
}

/// Reads an integration under a lock that keeps it from changing until the transaction ends.
pub async fn lock_shared(conn: &mut AsyncPgConnection, org: OrganizationId, id: IntegrationId) -> Result<Integration> {
    let query = dsl::integrations.find((org.0, id.0)).select(columns()).for_share();
    let row: Option<(Row, Option<String>)> = query.first(conn).await.optional()?;
    Row::parse(row.ok_or_else(|| Error::not_found("integration", id))?)
}

/// Reads and locks an integration until the transaction ends.
pub async fn lock(conn: &mut AsyncPgConnection, org: OrganizationId, id: IntegrationId) -> Result<Integration> {
    let query = dsl::integrations.find((org.0, id.0)).select(columns()).for_update();
    let row: Option<(Row, Option<String>)> = query.first(conn).await.optional()?;
    Row::parse(row.ok_or_else(|| Error::not_found("integration", id))?)
}

/// Lists all integrations that are not disconnected, newest first.
pub async fn live(conn: &mut AsyncPgConnection, org: OrganizationId) -> Result<Vec<Integration>> {
    dsl::integrations
        .filter(dsl::organization_id.eq(org.0).and(dsl::state.ne("disconnected")))
        .order(dsl::id.desc())
        .select(columns())
        .load(conn)
        .await?
        .into_iter()
        .map(Row::parse)
        .collect()
}

/// Lists a page of integrations, newest first, including disconnected ones.
pub async fn list(conn: &mut AsyncPgConnection, org: OrganizationId, page: Page) -> Result<Vec<Integration>> {
    let mut query = dsl::integrations
        .filter(dsl::organization_id.eq(org.0))
        .order(dsl::id.desc())
        .limit(page.size)
        .select(columns())
        .into_boxed();
    if let Some(after) = page.after {
        query = query.filter(dsl::id.lt(after));
    }
    query.load(conn).await?.into_iter().map(Row::parse).collect()
}

/// Updates a locked integration and increments its version.
pub async fn save(conn: &mut AsyncPgConnection, integration: &mut Integration, now: OffsetDateTime) -> Result<()> {
    integration.version += 1;
    integration.update_time = now;
    diesel::update(dsl::integrations.find((integration.organization_id.0, integration.id.0)))
        .set(Row::from(&*integration))
        .execute(conn)
        .await?;
    Ok(())
}

/// Seals and stores a secret; `None` deletes it.
pub async fn set_secret(
    conn: &mut AsyncPgConnection,
    sealer: &Sealer,
    integration: &Integration,
    which: Secret,
    secret: Option<&SecretString>,
) -> Result<()> {
    let (org, id) = (integration.organization_id, integration.id);
    let sealed = secret.map(|secret| sealer.seal(secret, place(org, id, which))).transpose()?;
    let target = diesel::update(dsl::integrations.find((org.0, id.0)));
    match which {
        Secret::Key => target.set(dsl::sealed_secret_key.eq(sealed)).execute(conn).await?,
        Secret::Webhook => target.set(dsl::sealed_webhook_secret.eq(sealed)).execute(conn).await?,
        Secret::OldWebhook => target.set(dsl::sealed_old_webhook_secret.eq(sealed)).execute(conn).await?,
    };
    Ok(())
}

/// Reads and unseals a secret, if there is one.
pub async fn secret(
    conn: &mut AsyncPgConnection,
    sealer: &Sealer,
    org: OrganizationId,
    id: IntegrationId,
    which: Secret,
) -> Result<Option<SecretString>> {
    let row = dsl::integrations.find((org.0, id.0));
    let sealed: Option<Option<Vec<u8>>> = match which {
        Secret::Key => row.select(dsl::sealed_secret_key).first(conn).await.optional()?,
        Secret::Webhook => row.select(dsl::sealed_webhook_secret).first(conn).await.optional()?,
        Secret::OldWebhook => row.select(dsl::sealed_old_webhook_secret).first(conn).await.optional()?,
    };
    sealed.flatten().map(|sealed| sealer.open(&sealed, place(org, id, which))).transpose()
}

/// Whether a disconnect was requested that does not wait for payments, sessions and refunds in flight.
pub async fn is_forced(conn: &mut AsyncPgConnection, org: OrganizationId, id: IntegrationId) -> Result<bool> {
    Ok(dsl::integrations
        .find((org.0, id.0))
        .select(dsl::force_disconnect)
        .first(conn)
        .await
        .optional()?
        .unwrap_or(false))
}

/// Requests a disconnect that does not wait.
pub async fn set_forced(conn: &mut AsyncPgConnection, org: OrganizationId, id: IntegrationId) -> Result<()> {
    diesel::update(dsl::integrations.find((org.0, id.0))).set(dsl::force_disconnect.eq(true)).execute(conn).await?;
    Ok(())
}
