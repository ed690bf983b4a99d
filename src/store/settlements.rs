//! Rows of charges, overpayments and disputes: facts beside a payment's state (P7, P12), written by Stripe's id, so that
//! their order does not matter to which of them exist. Refunds have their own file.

use diesel::prelude::*;
use diesel::upsert::excluded;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::rows::currency;
use super::schema::{
    charges::dsl as charges, disputes::dsl as disputes, overpayments::dsl as overpayments,
    payment_attempts::dsl as attempts,
};
use crate::domain::payments::Payment;
use crate::domain::refunds::Charge;
use crate::domain::signals::DisputeSnapshot;
use crate::domain::{Money, OrganizationId, PaymentId, Result};

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

/// How much an intent has overpaid, minor units; 0 if it has not.
pub async fn overpaid_by(conn: &mut AsyncPgConnection, org: OrganizationId, intent_id: &str) -> Result<i64> {
    let amount: Option<i64> = overpayments::overpayments
        .find((org.0, intent_id))
        .select(overpayments::amount_received)
        .first(conn)
        .await
        .optional()?;
    Ok(amount.unwrap_or_default())
}

/// Notes a charge that took money for a payment, once; one that was taken for an overpayment may turn out to settle it.
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

/// The charges that took money for a payment. One that settled it before charges were noted is its attempt's.
pub async fn charges(conn: &mut AsyncPgConnection, payment: &Payment) -> Result<Vec<Charge>> {
    let (org, id) = (payment.organization_id.0, payment.id.0);
    let noted: Vec<(String, Uuid, i64, String, bool)> = charges::charges
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
    let mut found = Vec::with_capacity(noted.len());
    for (provider_charge_id, integration, minor_units, code, settles) in noted {
        let amount = Money { minor_units, currency: currency("charges", &code)? };
        found.push(Charge { provider_charge_id, integration_id: integration.into(), amount, settles });
    }
    if !found.iter().any(|charge| charge.settles) {
        let settled: Option<(Option<String>, i64)> = attempts::payment_attempts
            .filter(attempts::organization_id.eq(org).and(attempts::payment_id.eq(id)))
            .filter(attempts::state.eq("succeeded"))
            .select((attempts::provider_charge_id, attempts::amount))
            .first(conn)
            .await
            .optional()?;
        if let Some((Some(provider_charge_id), minor_units)) = settled {
            let amount = Money { minor_units, currency: payment.amount.currency };
            found.push(Charge { provider_charge_id, integration_id: payment.integration_id, amount, settles: true });
        }
    }
    Ok(found)
}
