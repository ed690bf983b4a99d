//! Rows of refunds. They are written under the lock of their payment's row, except for what is unknown about a call.

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::rows::currency;
use super::schema::refunds::dsl;
use crate::domain::refunds::Refund;
use crate::domain::signals::RefundSnapshot;
use crate::domain::{Currency, Error, IntegrationId, OrganizationId, Page, PaymentId, RefundId, Result};

#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = super::schema::refunds, treat_none_as_null = true)]
struct Row {
    organization_id: Uuid,
    id: Uuid,
    payment_id: Uuid,
    integration_id: Uuid,
    provider_refund_id: Option<String>,
    provider_charge_id: Option<String>,
    amount: Option<i64>,
    currency: String,
    status: String,
    failure_reason: Option<String>,
    unknown_since: Option<OffsetDateTime>,
    request_id: Option<String>,
    create_time: OffsetDateTime,
    update_time: OffsetDateTime,
}

impl From<&Refund> for Row {
    fn from(refund: &Refund) -> Self {
        Self {
            organization_id: refund.organization_id.0,
            id: refund.id.0,
            payment_id: refund.payment_id.0,
            integration_id: refund.integration_id.0,
            provider_refund_id: refund.provider_refund_id.clone(),
            provider_charge_id: refund.provider_charge_id.clone(),
            amount: refund.amount,
            currency: refund.currency.to_string(),
            status: refund.status.clone(),
            failure_reason: refund.failure_reason.clone(),
            unknown_since: refund.unknown_since,
            request_id: refund.request_id.clone(),
            create_time: refund.create_time,
            update_time: refund.update_time,
        }
    }
}

impl Row {
    fn parse(self) -> Result<Refund> {
        Ok(Refund {
            id: self.id.into(),
            organization_id: self.organization_id.into(),
            integration_id: self.integration_id.into(),
            payment_id: self.payment_id.into(),
            provider_refund_id: self.provider_refund_id,
            provider_charge_id: self.provider_charge_id,
            amount: self.amount,
            currency: currency("refunds", &self.currency)?,
            status: self.status,
            failure_reason: self.failure_reason,
            unknown_since: self.unknown_since,
            request_id: self.request_id,
            create_time: self.create_time,
            update_time: self.update_time,
        })
    }
}

/// Inserts a refund that was requested here, or reported by Stripe.
pub async fn insert(conn: &mut AsyncPgConnection, refund: &Refund) -> Result<()> {
    diesel::insert_into(dsl::refunds).values(Row::from(refund)).execute(conn).await?;
    Ok(())
}

/// Reads a refund.
pub async fn get(conn: &mut AsyncPgConnection, org: OrganizationId, id: RefundId) -> Result<Refund> {
    let row: Option<Row> = dsl::refunds.find((org.0, id.0)).select(Row::as_select()).first(conn).await.optional()?;
    row.ok_or_else(|| Error::not_found("refund", id))?.parse()
}

/// Finds the row of a refund that Stripe reports: by Stripe's id, or else by our id in its metadata, or by the caller's
/// request there, if that row has no Stripe id yet and belongs to the same payment. A row that was lost and made anew has
/// another id, and the same request.
pub async fn find_reported(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    payment: PaymentId,
    reported: &RefundSnapshot,
) -> Result<Option<Refund>> {
    // Two queries with one index each: a single query with OR would read all of an organization's refunds.
    let query = dsl::refunds
        .filter(dsl::organization_id.eq(org.0).and(dsl::provider_refund_id.eq(&reported.id)))
        .select(Row::as_select());
    let mut row: Option<Row> = query.first(conn).await.optional()?;
    if let (None, Some(id)) = (&row, reported.refund_id) {
        let query = dsl::refunds
            .find((org.0, id))
            .filter(dsl::provider_refund_id.is_null().and(dsl::payment_id.eq(payment.0)))
            .select(Row::as_select());
        row = query.first(conn).await.optional()?;
    }
    if let (None, Some(request)) = (&row, &reported.request_id) {
        // Not if it is the refund of another row with the same request: callers may use an id again after 30 days.
        if let Some(id) = reported.refund_id
            && get(conn, org, id.into()).await.is_ok()
        {
            return Ok(None);
        }
        let query = dsl::refunds
            .filter(dsl::organization_id.eq(org.0).and(dsl::payment_id.eq(payment.0)))
            .filter(dsl::provider_refund_id.is_null().and(dsl::request_id.eq(request)))
            .select(Row::as_select());
        row = query.first(conn).await.optional()?;
    }
    row.map(Row::parse).transpose()
}

/// Finds the refund of a payment that a caller's request has created.
pub async fn by_request(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    payment: PaymentId,
    request_id: &str,
) -> Result<Option<Refund>> {
    let query = dsl::refunds
        .filter(dsl::organization_id.eq(org.0).and(dsl::payment_id.eq(payment.0)))
        .filter(dsl::request_id.eq(request_id))
        .order(dsl::id.desc())
        .select(Row::as_select());
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.map(Row::parse).transpose()
}

/// Updates a refund.
pub async fn save(conn: &mut AsyncPgConnection, refund: &mut Refund, now: OffsetDateTime) -> Result<()> {
    refund.update_time = now;
    let target = dsl::refunds.find((refund.organization_id.0, refund.id.0));
    diesel::update(target).set(Row::from(&*refund)).execute(conn).await?;
    Ok(())
}

/// Records since when the call for a refund has an unknown outcome. Does nothing once Stripe has reported the refund.
pub async fn save_unknown(conn: &mut AsyncPgConnection, refund: &Refund) -> Result<()> {
    diesel::update(dsl::refunds.find((refund.organization_id.0, refund.id.0)))
        .filter(dsl::provider_refund_id.is_null())
        .set(dsl::unknown_since.eq(refund.unknown_since))
        .execute(conn)
        .await?;
    Ok(())
}

/// Lists a page of a payment's refunds, newest first.
pub async fn list(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    payment: PaymentId,
    page: Page,
) -> Result<Vec<Refund>> {
    let mut query = dsl::refunds
        .filter(dsl::organization_id.eq(org.0).and(dsl::payment_id.eq(payment.0)))
        .order(dsl::id.desc())
        .limit(page.size)
        .select(Row::as_select())
        .into_boxed();
    if let Some(after) = page.after {
        query = query.filter(dsl::id.lt(after));
    }
    query.load(conn).await?.into_iter().map(Row::parse).collect()
}

/// The amount of a payment that was refunded in this currency, or is being refunded, in minor units: what Stripe has
/// created and has neither failed nor canceled.
pub async fn total(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    payment: PaymentId,
    currency: Currency,
) -> Result<i64> {
    Ok(dsl::refunds
        .filter(dsl::organization_id.eq(org.0).and(dsl::payment_id.eq(payment.0)))
        .filter(dsl::provider_refund_id.is_not_null().and(dsl::currency.eq(currency.to_string())))
        .filter(dsl::status.ne_all(["failed", "canceled"]))
        .select(sql::<BigInt>("coalesce(sum(amount), 0)::bigint"))
        .first(conn)
        .await?)
}

/// Lists the refunds through an integration that are not settled, including those that Stripe does not know yet.
pub async fn unsettled(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
) -> Result<Vec<RefundId>> {
    let ids: Vec<Uuid> = dsl::refunds
        .filter(dsl::organization_id.eq(org.0).and(dsl::integration_id.eq(integration.0)))
        // Literals, so that even a generic plan can use the partial index of unsettled refunds.
        .filter(sql::<Bool>("status IN ('pending', 'requires_action')"))
        .select(dsl::id)
        .load(conn)
        .await?;
    Ok(ids.into_iter().map(Into::into).collect())
}
