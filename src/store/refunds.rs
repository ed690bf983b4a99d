//! Rows of refunds. They are written under the lock of their payment's row; only the doubts about a call are noted
//! without it.

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::rows::currency;
use super::schema::{payments::dsl as payments, refunds::dsl};
use crate::domain::refunds::Refund;
use crate::domain::signals::RefundSnapshot;
use crate::domain::{Currency, Error, IntegrationId, OrganizationId, Page, PaymentId, RefundId, Result};

#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = super::schema::refunds, treat_none_as_null = true)]
struct Row {
    organization_id: Uuid,
    provider_refund_id: Option<String>,
    payment_id: Uuid,
    provider_charge_id: Option<String>,
    amount: Option<i64>,
    currency: String,
    status: String,
    failure_reason: Option<String>,
    update_time: OffsetDateTime,
    id: Uuid,
    integration_id: Option<Uuid>,
    unknown_since: Option<OffsetDateTime>,
    dead_key_time: Option<OffsetDateTime>,
    create_time: OffsetDateTime,
}

impl From<&Refund> for Row {
    fn from(refund: &Refund) -> Self {
        Self {
            organization_id: refund.organization_id.0,
            provider_refund_id: refund.provider_refund_id.clone(),
            payment_id: refund.payment_id.0,
            provider_charge_id: refund.provider_charge_id.clone(),
            amount: refund.amount,
            currency: refund.currency.to_string(),
            status: refund.status.clone(),
            failure_reason: refund.failure_reason.clone(),
            update_time: refund.update_time,
            id: refund.id.0,
            integration_id: Some(refund.integration_id.0),
            unknown_since: refund.unknown_since,
            dead_key_time: refund.dead_key_time,
            create_time: refund.create_time,
        }
    }
}

impl Row {
    /// `of_payment` is the payment's integration, for rows of the release before this one, which have none.
    fn parse(self, of_payment: Uuid) -> Result<Refund> {
        Ok(Refund {
            id: self.id.into(),
            organization_id: self.organization_id.into(),
            integration_id: self.integration_id.unwrap_or(of_payment).into(),
            payment_id: self.payment_id.into(),
            provider_refund_id: self.provider_refund_id,
            provider_charge_id: self.provider_charge_id,
            amount: self.amount,
            currency: currency("refunds", &self.currency)?,
            status: self.status,
            failure_reason: self.failure_reason,
            unknown_since: self.unknown_since,
            dead_key_time: self.dead_key_time,
            create_time: self.create_time,
            update_time: self.update_time,
        })
    }
}

/// Refunds of an organization, each with its payment's integration.
macro_rules! refunds_of {
    ($org:expr) => {
        dsl::refunds
            .inner_join(
                payments::payments
                    .on(payments::organization_id.eq(dsl::organization_id).and(payments::id.eq(dsl::payment_id))),
            )
            .filter(dsl::organization_id.eq($org.0))
            .select((Row::as_select(), payments::integration_id))
    };
}

/// Writes a refund that was just asked for, or just told.
pub async fn insert(conn: &mut AsyncPgConnection, refund: &Refund) -> Result<()> {
    diesel::insert_into(dsl::refunds).values(Row::from(refund)).execute(conn).await?;
    Ok(())
}

/// A refund by id.
pub async fn get(conn: &mut AsyncPgConnection, org: OrganizationId, id: RefundId) -> Result<Refund> {
    let row: Option<(Row, Uuid)> = refunds_of!(org).filter(dsl::id.eq(id.0)).first(conn).await.optional()?;
    let (row, integration) = row.ok_or_else(|| Error::not_found("refund", id))?;
    row.parse(integration)
}

/// The row that Stripe's refund belongs to: the one with its id, else the one that it bears as a mark, if that one still
/// waits for an id. Another payment's mark counts for nothing.
pub async fn find_told(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    payment: PaymentId,
    told: &RefundSnapshot,
) -> Result<Option<Refund>> {
    // Two looks, each by one index: an OR of both would have none, and read all of an organization's refunds.
    let mut row: Option<(Row, Uuid)> =
        refunds_of!(org).filter(dsl::provider_refund_id.eq(&told.id)).first(conn).await.optional()?;
    if let (None, Some(mark)) = (&row, told.refund_id) {
        let waits = dsl::provider_refund_id.is_null().and(dsl::payment_id.eq(payment.0));
        row = refunds_of!(org).filter(dsl::id.eq(mark).and(waits)).first(conn).await.optional()?;
    }
    row.map(|(row, integration)| row.parse(integration)).transpose()
}

/// Writes a refund back.
pub async fn save(conn: &mut AsyncPgConnection, refund: &mut Refund, now: OffsetDateTime) -> Result<()> {
    refund.update_time = now;
    let target = dsl::refunds.find((refund.organization_id.0, refund.id.0));
    diesel::update(target).set(Row::from(&*refund)).execute(conn).await?;
    Ok(())
}

/// Notes what is not known about the call for a refund that Stripe has not told of yet, and leaves all else alone.
pub async fn note_doubt(conn: &mut AsyncPgConnection, refund: &Refund) -> Result<()> {
    diesel::update(dsl::refunds.find((refund.organization_id.0, refund.id.0)))
        .filter(dsl::provider_refund_id.is_null())
        .set((dsl::unknown_since.eq(refund.unknown_since), dsl::dead_key_time.eq(refund.dead_key_time)))
        .execute(conn)
        .await?;
    Ok(())
}

/// A page of a payment's refunds, newest first.
pub async fn list(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    payment: PaymentId,
    page: Page,
) -> Result<Vec<Refund>> {
    let mut query =
        refunds_of!(org).filter(dsl::payment_id.eq(payment.0)).order(dsl::id.desc()).limit(page.size).into_boxed();
    if let Some(after) = page.after {
        query = query.filter(dsl::id.lt(after));
    }
    let rows: Vec<(Row, Uuid)> = query.load(conn).await?;
    rows.into_iter().map(|(row, integration)| row.parse(integration)).collect()
}

/// How much of a payment went back in this currency, or is on its way back, minor units: what Stripe has made and not
/// given up.
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

/// The refunds through an integration that are on their way, those that Stripe does not know yet included.
pub async fn moving(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
) -> Result<Vec<RefundId>> {
    let through = dsl::integration_id
        .eq(integration.0)
        .or(dsl::integration_id.is_null().and(payments::integration_id.eq(integration.0)))
        .assume_not_null();
    let ids: Vec<Uuid> = dsl::refunds
        .inner_join(
            payments::payments
                .on(payments::organization_id.eq(dsl::organization_id).and(payments::id.eq(dsl::payment_id))),
        )
        .filter(dsl::organization_id.eq(org.0).and(through))
        .filter(dsl::status.eq_any(["pending", "requires_action"]))
        .select(dsl::id)
        .load(conn)
        .await?;
    Ok(ids.into_iter().map(Into::into).collect())
}
