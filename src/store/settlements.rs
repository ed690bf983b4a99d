//! Rows of refunds and disputes: facts beside a payment's state (P7), upserted by Stripe's id, so that their order does
//! not matter to which of them exist.

use diesel::prelude::*;
use diesel::upsert::excluded;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;

use super::schema::{
    disputes::dsl as disputes, overpayments::dsl as overpayments, payments::dsl as payments, refunds::dsl as refunds,
};
use crate::domain::signals::{DisputeSnapshot, RefundSnapshot};
use crate::domain::{Error, IntegrationId, OrganizationId, PaymentId, Result};

/// Writes a refund; `false` if nothing about it is new.
pub async fn upsert_refund(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    payment: PaymentId,
    refund: &RefundSnapshot,
    now: OffsetDateTime,
) -> Result<bool> {
    let known: Option<(String, Option<String>)> = refunds::refunds
        .find((org.0, &refund.id))
        .select((refunds::status, refunds::failure_reason))
        .first(conn)
        .await
        .optional()?;
    if known.is_some_and(|(status, reason)| status == refund.status && reason == refund.failure_reason) {
        return Ok(false);
    }
    diesel::insert_into(refunds::refunds)
        .values((
            refunds::organization_id.eq(org.0),
            refunds::provider_refund_id.eq(&refund.id),
            refunds::payment_id.eq(payment.0),
            refunds::provider_charge_id.eq(&refund.provider_charge_id),
            refunds::amount.eq(refund.amount.minor_units),
            refunds::currency.eq(refund.amount.currency.to_string()),
            refunds::status.eq(&refund.status),
            refunds::failure_reason.eq(&refund.failure_reason),
            refunds::update_time.eq(now),
        ))
        .on_conflict((refunds::organization_id, refunds::provider_refund_id))
        .do_update()
        .set((
            refunds::status.eq(excluded(refunds::status)),
            refunds::failure_reason.eq(excluded(refunds::failure_reason)),
            refunds::update_time.eq(excluded(refunds::update_time)),
        ))
        .execute(conn)
        .await?;
    Ok(true)
}

/// A refund's status, if it is known.
pub async fn refund_status(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    provider_refund_id: &str,
) -> Result<Option<String>> {
    let refund = refunds::refunds.find((org.0, provider_refund_id)).select(refunds::status);
    Ok(refund.first(conn).await.optional()?)
}

/// How many refunds of an integration's payments are on their way.
pub async fn moving_refunds(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
) -> Result<usize> {
    let own = payments::payments
        .filter(payments::organization_id.eq(org.0).and(payments::integration_id.eq(integration.0)))
        .select(payments::id);
    let count: i64 = refunds::refunds
        .filter(refunds::organization_id.eq(org.0).and(refunds::payment_id.eq_any(own)))
        .filter(refunds::status.eq_any(["pending", "requires_action"]))
        .count()
        .get_result(conn)
        .await?;
    usize::try_from(count).map_err(Error::internal)
}

/// Writes a dispute; `None` if nothing about it is new, else the status before (empty if it is a new one).
pub async fn upsert_dispute(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    payment: PaymentId,
    dispute: &DisputeSnapshot,
    now: OffsetDateTime,
) -> Result<Option<String>> {
    let known: Option<(String, i64)> = disputes::disputes
        .find((org.0, &dispute.id))
        .select((disputes::status, disputes::amount))
        .first(conn)
        .await
        .optional()?;
    if known.as_ref().is_some_and(|(status, amount)| *status == dispute.status && *amount == dispute.amount.minor_units)
    {
        return Ok(None);
    }
    diesel::insert_into(disputes::disputes)
        .values((
            disputes::organization_id.eq(org.0),
            disputes::provider_dispute_id.eq(&dispute.id),
            disputes::payment_id.eq(payment.0),
            disputes::provider_charge_id.eq(&dispute.provider_charge_id),
            disputes::amount.eq(dispute.amount.minor_units),
            disputes::currency.eq(dispute.amount.currency.to_string()),
            disputes::status.eq(&dispute.status),
            disputes::reason.eq(&dispute.reason),
            disputes::update_time.eq(now),
        ))
        .on_conflict((disputes::organization_id, disputes::provider_dispute_id))
        .do_update()
        .set((
            disputes::status.eq(excluded(disputes::status)),
            disputes::amount.eq(excluded(disputes::amount)),
            disputes::reason.eq(excluded(disputes::reason)),
            disputes::update_time.eq(excluded(disputes::update_time)),
        ))
        .execute(conn)
        .await?;
    Ok(Some(known.map(|(status, _)| status).unwrap_or_default()))
}

/// Notes money that came in beside the intent that collects a payment; `false` if it is noted already.
pub async fn insert_overpayment(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    payment: PaymentId,
    provider_payment_intent_id: &str,
    amount_received: i64,
    now: OffsetDateTime,
) -> Result<bool> {
    let inserted = diesel::insert_into(overpayments::overpayments)
        .values((
            overpayments::organization_id.eq(org.0),
            overpayments::provider_payment_intent_id.eq(provider_payment_intent_id),
            overpayments::payment_id.eq(payment.0),
            overpayments::amount_received.eq(amount_received),
            overpayments::create_time.eq(now),
        ))
        .on_conflict_do_nothing()
        .execute(conn)
        .await?;
    Ok(inserted == 1)
}
