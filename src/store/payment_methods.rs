//! Rows of payment methods: dated facts, from which a customer's default follows.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::rows::{from_json, to_json};
use super::schema::payment_methods::dsl;
use crate::domain::payment_methods::{Mandates, PaymentMethod};
use crate::domain::{CustomerId, Error, IntegrationId, OrganizationId, Page, PaymentMethodId, Result};

#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = super::schema::payment_methods, treat_none_as_null = true)]
struct Row {
    organization_id: Uuid,
    id: Uuid,
    customer_id: Uuid,
    integration_id: Uuid,
    provider_payment_method_id: String,
    kind: String,
    details: serde_json::Value,
    mandate_ids: Vec<String>,
    ended_mandate_ids: Vec<String>,
    attach_time: Option<OffsetDateTime>,
    choose_time: Option<OffsetDateTime>,
    unset_time: Option<OffsetDateTime>,
    is_unset_read: bool,
    detach_time: Option<OffsetDateTime>,
    is_detach_read: bool,
    create_time: OffsetDateTime,
}

impl Row {
    fn new(method: &PaymentMethod) -> Result<Self> {
        let Mandates { granted, ended } = &method.mandates;
        Ok(Self {
            organization_id: method.organization_id.0,
            id: method.id.0,
            customer_id: method.customer_id.0,
            integration_id: method.integration_id.0,
            provider_payment_method_id: method.provider_payment_method_id.clone(),
            kind: method.kind.clone(),
            details: to_json(&method.details)?,
            mandate_ids: granted.iter().cloned().collect(),
            ended_mandate_ids: ended.iter().cloned().collect(),
            attach_time: method.attach_time,
            choose_time: method.choose_time,
            unset_time: method.unset_time,
            is_unset_read: method.is_unset_read,
            detach_time: method.detach_time,
            is_detach_read: method.is_detach_read,
            create_time: method.create_time,
        })
    }

    fn parse(self) -> Result<PaymentMethod> {
        let mandates = Mandates {
            granted: self.mandate_ids.into_iter().collect(),
            ended: self.ended_mandate_ids.into_iter().collect(),
        };
        Ok(PaymentMethod {
            id: self.id.into(),
            organization_id: self.organization_id.into(),
            customer_id: self.customer_id.into(),
            integration_id: self.integration_id.into(),
            provider_payment_method_id: self.provider_payment_method_id,
            kind: self.kind,
            details: from_json("payment_methods", "details", self.details)?,
            mandates,
            attach_time: self.attach_time,
            choose_time: self.choose_time,
            unset_time: self.unset_time,
            detach_time: self.detach_time,
            is_detach_read: self.is_detach_read,
            is_unset_read: self.is_unset_read,
            create_time: self.create_time,
        })
    }
}

/// Inserts or updates a method. The customer is locked.
pub async fn upsert(conn: &mut AsyncPgConnection, method: &PaymentMethod) -> Result<()> {
    diesel::insert_into(dsl::payment_methods)
        .values(Row::new(method)?)
        .on_conflict((dsl::organization_id, dsl::id))
        .do_update()
        .set(Row::new(method)?)
        .execute(conn)
        .await?;
    Ok(())
}

/// Reads a method, even a detached one.
pub async fn get(conn: &mut AsyncPgConnection, org: OrganizationId, id: PaymentMethodId) -> Result<PaymentMethod> {
    let row: Option<Row> =
        dsl::payment_methods.find((org.0, id.0)).select(Row::as_select()).first(conn).await.optional()?;
    row.ok_or_else(|| Error::not_found("payment method", id))?.parse()
}

/// Finds the method with this Stripe id.
pub async fn get_by_provider_id(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
    provider_payment_method_id: &str,
) -> Result<Option<PaymentMethod>> {
    let query = dsl::payment_methods
        .filter(dsl::organization_id.eq(org.0).and(dsl::integration_id.eq(integration.0)))
        .filter(dsl::provider_payment_method_id.eq(provider_payment_method_id))
        .select(Row::as_select());
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.map(Row::parse).transpose()
}

/// Finds the customer of the method with this Stripe id.
pub async fn customer_of(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
    provider_payment_method_id: &str,
) -> Result<Option<CustomerId>> {
    let id: Option<Uuid> = dsl::payment_methods
        .filter(dsl::organization_id.eq(org.0).and(dsl::integration_id.eq(integration.0)))
        .filter(dsl::provider_payment_method_id.eq(provider_payment_method_id))
        .select(dsl::customer_id)
        .first(conn)
        .await
        .optional()?;
    Ok(id.map(Into::into))
}

/// Lists all of a customer's methods, newest first, including detached ones.
pub async fn list_all(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    customer: CustomerId,
) -> Result<Vec<PaymentMethod>> {
    dsl::payment_methods
        .filter(dsl::organization_id.eq(org.0).and(dsl::customer_id.eq(customer.0)))
        .order(dsl::id.desc())
        .select(Row::as_select())
        .load(conn)
        .await?
        .into_iter()
        .map(Row::parse)
        .collect()
}

/// Lists a page of a customer's attached methods, newest first.
pub async fn list(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    customer: CustomerId,
    page: Page,
) -> Result<Vec<PaymentMethod>> {
    let mut query = dsl::payment_methods
        .filter(dsl::organization_id.eq(org.0).and(dsl::customer_id.eq(customer.0)).and(dsl::detach_time.is_null()))
        .order(dsl::id.desc())
        .limit(page.size)
        .select(Row::as_select())
        .into_boxed();
    if let Some(after) = page.after {
        query = query.filter(dsl::id.lt(after));
    }
    query.load(conn).await?.into_iter().map(Row::parse).collect()
}

/// Marks at most `limit` cards that expire in `month` (year * 12 + month, month 1 to 12) as reported, and returns their
/// ids. Locked cards are left for the next call, to avoid a deadlock: their transaction may have locked several.
pub async fn take_expiring(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
    month: i32,
    limit: i64,
) -> Result<Vec<PaymentMethodId>> {
    #[derive(QueryableByName)]
    struct Marked {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let marked: Vec<Marked> = diesel::sql_query(
        "UPDATE payment_methods SET reported_expiry = $3 WHERE organization_id = $1 AND id = ANY (ARRAY( \
             SELECT id FROM payment_methods \
             WHERE organization_id = $1 AND integration_id = $2 AND kind = 'card' AND detach_time IS NULL \
                 AND expiry_month = $3 AND reported_expiry IS DISTINCT FROM expiry_month \
             LIMIT $4 FOR UPDATE SKIP LOCKED)) \
         RETURNING id",
    )
    .bind::<SqlUuid, _>(org.0)
    .bind::<SqlUuid, _>(integration.0)
    .bind::<Integer, _>(month)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await?;
    Ok(marked.into_iter().map(|row| row.id.into()).collect())
}
