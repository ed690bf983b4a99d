//! Rows of customers.

use diesel::dsl::sql;
use diesel::expression::SqlLiteral;
use diesel::prelude::*;
use diesel::sql_types::Bool;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::error::violates;
use super::rows::{from_json, to_json, variant};
use super::schema::customers::dsl;
use crate::domain::customers::{Customer, LinkState};
use crate::domain::{CustomerId, Error, IntegrationId, OrganizationId, Page, Result};

#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = super::schema::customers, treat_none_as_null = true)]
struct Row {
    organization_id: Uuid,
    id: Uuid,
    external_id: String,
    name: String,
    email: String,
    phone: String,
    address: Option<serde_json::Value>,
    integration_id: Option<Uuid>,
    link_state: String,
    link_error: Option<String>,
    provider_customer_id: Option<String>,
    provider_payment_methods: Vec<String>,
    sync_with_provider: bool,
    default_payment_method_id: Option<Uuid>,
    unpushed_fields: Vec<String>,
    version: i64,
    create_time: OffsetDateTime,
    update_time: OffsetDateTime,
}

impl Row {
    fn new(customer: &Customer) -> Result<Self> {
        Ok(Self {
            organization_id: customer.organization_id.0,
            id: customer.id.0,
            external_id: customer.external_id.clone(),
            name: customer.name.clone(),
            email: customer.email.clone(),
            phone: customer.phone.clone(),
            address: customer.address.as_ref().map(to_json).transpose()?,
            integration_id: customer.integration_id.map(|id| id.0),
            link_state: customer.link_state.as_str().to_owned(),
            link_error: customer.link_error.clone(),
            provider_customer_id: customer.provider_customer_id.clone(),
            provider_payment_methods: customer
                .provider_payment_methods
                .iter()
                .map(|kind| kind.as_str().to_owned())
                .collect(),
            sync_with_provider: customer.sync_with_provider,
            default_payment_method_id: customer.default_payment_method_id.map(|id| id.0),
            unpushed_fields: customer.unpushed_fields.clone(),
            version: customer.version,
            create_time: customer.create_time,
            update_time: customer.update_time,
        })
    }

    fn parse(self) -> Result<Customer> {
        let table = "customers";
        let provider_payment_methods = self
            .provider_payment_methods
            .iter()
            .map(|name| variant(table, "provider_payment_methods", name))
            .collect::<Result<_>>()?;
        Ok(Customer {
            id: self.id.into(),
            organization_id: self.organization_id.into(),
            external_id: self.external_id,
            name: self.name,
            email: self.email,
            phone: self.phone,
            address: self.address.map(|value| from_json(table, "address", value)).transpose()?,
            integration_id: self.integration_id.map(Into::into),
            link_state: variant(table, "link_state", &self.link_state)?,
            link_error: self.link_error,
            provider_customer_id: self.provider_customer_id,
            provider_payment_methods,
            sync_with_provider: self.sync_with_provider,
            default_payment_method_id: self.default_payment_method_id.map(Into::into),
            unpushed_fields: self.unpushed_fields,
            version: self.version,
            create_time: self.create_time,
            update_time: self.update_time,
        })
    }
}

fn named_conflict(error: diesel::result::Error, customer: &Customer) -> Error {
    if violates(&error, "customers_provider_customer_key") {
        return Error::AlreadyExists {
            kind: "customer",
            id: customer.provider_customer_id.clone().unwrap_or_default(),
            message: "another customer of yours is linked to this Stripe customer; unlink or delete that one first"
                .to_owned(),
        };
    }
    error.into()
}

/// Inserts a customer. Returns `false` if its external id is taken, and writes nothing.
pub async fn insert(conn: &mut AsyncPgConnection, customer: &Customer) -> Result<bool> {
    let inserted = diesel::insert_into(dsl::customers)
        .values(Row::new(customer)?)
        .on_conflict((dsl::organization_id, dsl::external_id))
        .filter_target(dsl::delete_time.is_null())
        .do_nothing()
        .execute(conn)
        .await
        .map_err(|error| named_conflict(error, customer))?;
    Ok(inserted == 1)
}

/// The condition of a customer that is not deleted, for lookups by id. It is written so that no partial index matches
/// it: before the table is analyzed, the planner takes `delete_time IS NULL` to be rare, and would read all of an
/// organization's external ids.
fn is_live() -> SqlLiteral<Bool> {
    sql("COALESCE(customers.delete_time, 'infinity') = 'infinity'")
}

/// Reads a customer that is not deleted.
pub async fn get(conn: &mut AsyncPgConnection, org: OrganizationId, id: CustomerId) -> Result<Customer> {
    let query = dsl::customers.find((org.0, id.0)).filter(is_live()).select(Row::as_select());
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.ok_or_else(|| Error::not_found("customer", id))?.parse()
}

/// Reads a customer, even a deleted one: payments outlive their customer.
pub async fn get_including_deleted(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: CustomerId,
) -> Result<Customer> {
    let query = dsl::customers.find((org.0, id.0)).select(Row::as_select());
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.ok_or_else(|| Error::not_found("customer", id))?.parse()
}

/// Reads a customer, even a deleted one, under a lock that keeps it from changing until the transaction ends.
pub async fn lock_shared(conn: &mut AsyncPgConnection, org: OrganizationId, id: CustomerId) -> Result<Customer> {
    let query = dsl::customers.find((org.0, id.0)).select(Row::as_select()).for_share();
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.ok_or_else(|| Error::not_found("customer", id))?.parse()
}

/// Reads and locks a customer that is not deleted. Locked after payments, before jobs.
pub async fn lock(conn: &mut AsyncPgConnection, org: OrganizationId, id: CustomerId) -> Result<Customer> {
    let query = dsl::customers.find((org.0, id.0)).filter(is_live()).select(Row::as_select()).for_update();
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.ok_or_else(|| Error::not_found("customer", id))?.parse()
}

/// Finds a customer that is not deleted by the billing system's id.
pub async fn get_by_external_id(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    external_id: &str,
) -> Result<Option<Customer>> {
    let query = dsl::customers
        .filter(dsl::organization_id.eq(org.0).and(dsl::external_id.eq(external_id)).and(dsl::delete_time.is_null()))
        .select(Row::as_select());
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.map(Row::parse).transpose()
}

/// Finds the id of the customer that is linked to this Stripe customer.
pub async fn id_by_provider_id(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
    provider_customer_id: &str,
) -> Result<Option<CustomerId>> {
    let id: Option<Uuid> = dsl::customers
        .filter(dsl::organization_id.eq(org.0).and(dsl::integration_id.eq(integration.0)))
        .filter(dsl::provider_customer_id.eq(provider_customer_id).and(dsl::delete_time.is_null()))
        .select(dsl::id)
        .first(conn)
        .await
        .optional()?;
    Ok(id.map(Into::into))
}

/// Lists an integration's linked customers, by id, after `after`.
pub async fn linked(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
    after: Option<CustomerId>,
    limit: i64,
) -> Result<Vec<CustomerId>> {
    let ids: Vec<Uuid> = dsl::customers
        .filter(dsl::organization_id.eq(org.0).and(dsl::integration_id.eq(integration.0)))
        .filter(dsl::link_state.eq(LinkState::Linked.as_str()).and(dsl::delete_time.is_null()))
        .filter(dsl::id.gt(after.map_or(Uuid::nil(), |after| after.0)))
        .order(dsl::id)
        .select(dsl::id)
        .limit(limit)
        .load(conn)
        .await?;
    Ok(ids.into_iter().map(Into::into).collect())
}

/// Updates a locked customer and increments its version.
pub async fn save(conn: &mut AsyncPgConnection, customer: &mut Customer, now: OffsetDateTime) -> Result<()> {
    customer.version += 1;
    customer.update_time = now;
    diesel::update(dsl::customers.find((customer.organization_id.0, customer.id.0)))
        .set(Row::new(customer)?)
        .execute(conn)
        .await
        .map_err(|error| named_conflict(error, customer))?;
    Ok(())
}

/// Marks a customer as deleted. Its payments stay.
pub async fn delete(conn: &mut AsyncPgConnection, customer: &Customer, now: OffsetDateTime) -> Result<()> {
    diesel::update(dsl::customers.find((customer.organization_id.0, customer.id.0)))
        .set((dsl::delete_time.eq(now), dsl::update_time.eq(now), dsl::version.eq(customer.version + 1)))
        .execute(conn)
        .await?;
    Ok(())
}

/// Lists a page of customers that are not deleted, newest first.
pub async fn list(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: Option<IntegrationId>,
    page: Page,
) -> Result<Vec<Customer>> {
    let mut query = dsl::customers
        .filter(dsl::organization_id.eq(org.0).and(is_live()))
        .order(dsl::id.desc())
        .limit(page.size)
        .select(Row::as_select())
        .into_boxed();
    if let Some(integration) = integration {
        query = query.filter(dsl::integration_id.eq(integration.0));
    }
    if let Some(after) = page.after {
        query = query.filter(dsl::id.lt(after));
    }
    query.load(conn).await?.into_iter().map(Row::parse).collect()
}

/// The Stripe id of any customer that is linked through an integration.
pub async fn any_linked(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
) -> Result<Option<String>> {
    let found: Option<Option<String>> = dsl::customers
        .filter(dsl::organization_id.eq(org.0).and(dsl::integration_id.eq(integration.0)))
        .filter(dsl::provider_customer_id.is_not_null().and(dsl::delete_time.is_null()))
        .filter(dsl::link_state.eq("linked"))
        .order(dsl::provider_customer_id)
        .select(dsl::provider_customer_id)
        .first(conn)
        .await
        .optional()?;
    Ok(found.flatten())
}

/// Lists the customers whose link through an integration is pending.
pub async fn pending_links(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
) -> Result<Vec<Uuid>> {
    Ok(dsl::customers
        .filter(dsl::organization_id.eq(org.0).and(dsl::integration_id.eq(integration.0)))
        // A literal, so that even a generic plan can use the partial index of pending links.
        .filter(sql::<Bool>("link_state = 'pending'").and(is_live()))
        .order(dsl::id)
        .select(dsl::id)
        .load(conn)
        .await?)
}

/// Stripe's own default of a customer, as last reported or written. These columns are not part of `Customer`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Queryable, AsChangeset)]
#[diesel(table_name = super::schema::customers, treat_none_as_null = true)]
pub struct ProviderDefault {
    /// Stripe's id of a PaymentMethod, or of an old card or source. `None`: no default.
    #[diesel(column_name = provider_default_id)]
    pub method: Option<String>,
    /// When it became the default. `None`: nothing is known.
    #[diesel(column_name = provider_default_time)]
    pub time: Option<OffsetDateTime>,
}

/// Reads what is known of Stripe's own default of a customer.
pub async fn provider_default(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: CustomerId,
) -> Result<ProviderDefault> {
    let query = dsl::customers.find((org.0, id.0)).select((dsl::provider_default_id, dsl::provider_default_time));
    let row: Option<ProviderDefault> = query.first(conn).await.optional()?;
    row.ok_or_else(|| Error::not_found("customer", id))
}

/// Records Stripe's own default of a locked customer.
pub async fn set_provider_default(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    id: CustomerId,
    default: &ProviderDefault,
) -> Result<()> {
    diesel::update(dsl::customers.find((org.0, id.0))).set(default).execute(conn).await?;
    Ok(())
}
