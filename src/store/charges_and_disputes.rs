//! Rows of charges, overpayments and disputes: facts that never change a settled payment's state (P7, P12). They are
//! keyed by Stripe's id, so they may arrive in any order. Refunds have their own file.

use diesel::prelude::*;
use diesel::upsert::excluded;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::rows::currency;
use super::schema::{charges::dsl as charges, disputes::dsl as disputes, overpayments::dsl as overpayments};
use crate::domain::payments::{Payment, ReceivedMoney};
use crate::domain::refunds::Charge;
use crate::domain::signals::DisputeSnapshot;
use crate::domain::{Money, OrganizationId, PaymentId, Result};

/// Writes a dispute. Returns its previous status, empty for a new dispute; `None` if nothing has changed.
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

/// Records money received by another intent than the payment's own. Returns `false` if it is recorded already.
pub async fn insert_overpayment(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    payment: PaymentId,
    receipt: &ReceivedMoney,
    now: OffsetDateTime,
) -> Result<bool> {
    let inserted = diesel::insert_into(overpayments::overpayments)
        .values((
            overpayments::organization_id.eq(org.0),
            overpayments::provider_payment_intent_id.eq(&receipt.provider_payment_intent_id),
            overpayments::payment_id.eq(payment.0),
            overpayments::amount_received.eq(receipt.amount.minor_units),
            overpayments::create_time.eq(now),
        ))
        .on_conflict_do_nothing()
        .execute(conn)
        .await?;
    Ok(inserted == 1)
}

/// The amount recorded as an overpayment by this intent, in minor units; 0 if there is none.
pub async fn overpaid_by(conn: &mut AsyncPgConnection, org: OrganizationId, intent_id: &str) -> Result<i64> {
    let amount: Option<i64> = overpayments::overpayments
        .find((org.0, intent_id))
        .select(overpayments::amount_received)
        .first(conn)
        .await
        .optional()?;
    Ok(amount.unwrap_or_default())
}

/// Records a charge that took money for a payment, once. A charge recorded as an overpayment may later turn out to
/// settle the payment.
pub async fn insert_charge(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    payment: PaymentId,
    charge: &Charge,
    now: OffsetDateTime,
) -> Result<()> {
    diesel::insert_into(charges::charges)
        .values((
            charges::organization_id.eq(org.0),
            charges::provider_charge_id.eq(&charge.provider_charge_id),
            charges::payment_id.eq(payment.0),
            charges::integration_id.eq(charge.integration_id.0),
            charges::amount.eq(charge.amount.minor_units),
            charges::currency.eq(charge.amount.currency.to_string()),
            charges::settles.eq(charge.settles),
            charges::create_time.eq(now),
        ))
        .on_conflict((charges::organization_id, charges::provider_charge_id))
        .do_update()
        .set(charges::settles.eq(charges::settles.or(excluded(charges::settles))))
        .execute(conn)
        .await?;
    Ok(())
}

/// Lists the charges that took money for a payment, oldest first.
pub async fn charges(conn: &mut AsyncPgConnection, payment: &Payment) -> Result<Vec<Charge>> {
    let (org, id) = (payment.organization_id.0, payment.id.0);
    let rows: Vec<(String, Uuid, i64, String, bool)> = charges::charges
        .filter(charges::organization_id.eq(org).and(charges::payment_id.eq(id)))
        .order(charges::create_time)
        .select((
            charges::provider_charge_id,
            charges::integration_id,
            charges::amount,
            charges::currency,
            charges::settles,
        ))
        .load(conn)
        .await?;
    rows.into_iter()
        .map(|(provider_charge_id, integration, minor_units, code, settles)| {
            let amount = Money { minor_units, currency: currency("charges", &code)? };
            Ok(Charge { provider_charge_id, integration_id: integration.into(), amount, settles })
        })
        .collect()
}
