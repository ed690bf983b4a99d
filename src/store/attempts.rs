//! Rows of payment attempts. Only the outcome is ever updated: everything else is stored before the first send and
//! never changes (P2).

use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::error::unreadable;
use super::rows::{currency, from_json, to_json};
use super::schema::payment_attempts::dsl;
use super::stripe_requests::{key_state, key_times};
use crate::domain::payments::{Attempt, AttemptKind, AttemptState, Link};
use crate::domain::stripe_requests::{IdempotencyKey, Purpose, StripeRequest};
use crate::domain::{Money, OrganizationId, PaymentId, Result};

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = super::schema::payment_attempts)]
struct Row {
    organization_id: Uuid,
    payment_id: Uuid,
    number: i32,
    amount: i64,
    currency: String,
    kind: String,
    payment_method_id: Option<Uuid>,
    provider_payment_intent_id: Option<String>,
    provider_session_id: Option<String>,
    url: Option<String>,
    expire_time: Option<OffsetDateTime>,
    idempotency_key: String,
    body: String,
    prior_charge: Option<String>,
    prior_error: Option<serde_json::Value>,
    state: String,
    failure: Option<serde_json::Value>,
    provider_charge_id: Option<String>,
    dead_key_time: Option<OffsetDateTime>,
    taken_key_time: Option<OffsetDateTime>,
    create_time: OffsetDateTime,
    finish_time: Option<OffsetDateTime>,
}

fn state_columns(state: &AttemptState) -> Result<(&'static str, Option<serde_json::Value>)> {
    Ok(match state {
        AttemptState::Open => ("open", None),
        AttemptState::Succeeded => ("succeeded", None),
        AttemptState::Failed(failure) => ("failed", Some(to_json(failure)?)),
        AttemptState::Canceled => ("canceled", None),
        AttemptState::Superseded => ("superseded", None),
    })
}

impl Row {
    fn parse(self) -> Result<Attempt> {
        let table = "payment_attempts";
        let state = match self.state.as_str() {
            "open" => AttemptState::Open,
            "succeeded" => AttemptState::Succeeded,
            "failed" => AttemptState::Failed(
                self.failure.map(|value| from_json(table, "failure", value)).transpose()?.unwrap_or_default(),
            ),
            "canceled" => AttemptState::Canceled,
            "superseded" => AttemptState::Superseded,
            other => return Err(unreadable(table, "state", other)),
        };
        Ok(Attempt {
            payment_id: self.payment_id.into(),
            number: self.number,
            amount: Money { minor_units: self.amount, currency: currency(table, &self.currency)? },
            kind: match (self.kind.as_str(), self.payment_method_id) {
                ("confirm", Some(method)) => AttemptKind::Confirm { method: method.into() },
                ("link", _) => AttemptKind::Link(Link {
                    provider_session_id: self.provider_session_id,
                    url: self.url,
                    expire_time: self.expire_time,
                }),
                (other, _) => return Err(unreadable(table, "kind", other)),
            },
            provider_payment_intent_id: self.provider_payment_intent_id,
            request: StripeRequest {
                purpose: if self.kind == "link" { Purpose::PaymentLink } else { Purpose::Confirmation },
                generation: self.number,
                key: IdempotencyKey::stored(self.idempotency_key),
                body: self.body,
                create_time: self.create_time,
                key_state: key_state(self.dead_key_time, self.taken_key_time),
            },
            prior_charge: self.prior_charge,
            prior_error: self.prior_error.map(|value| from_json(table, "prior_error", value)).transpose()?,
            state,
            provider_charge_id: self.provider_charge_id,
            finish_time: self.finish_time,
        })
    }
}

/// Inserts an attempt before it is sent. A partial unique index refuses a second open attempt of a payment (P1).
pub async fn insert(conn: &mut AsyncPgConnection, org: OrganizationId, attempt: &Attempt) -> Result<()> {
    let (state, failure) = state_columns(&attempt.state)?;
    let link = attempt.link().cloned().unwrap_or_default();
    let (dead_key_time, taken_key_time) = key_times(attempt.request.key_state);
    let row = Row {
        organization_id: org.0,
        payment_id: attempt.payment_id.0,
        number: attempt.number,
        amount: attempt.amount.minor_units,
        currency: attempt.amount.currency.to_string(),
        kind: if attempt.link().is_some() { "link" } else { "confirm" }.to_owned(),
        payment_method_id: attempt.method().map(|method| method.0),
        provider_payment_intent_id: attempt.provider_payment_intent_id.clone(),
        provider_session_id: link.provider_session_id,
        url: link.url,
        expire_time: link.expire_time,
        idempotency_key: attempt.request.key.as_str().to_owned(),
        body: attempt.request.body.clone(),
        prior_charge: attempt.prior_charge.clone(),
        prior_error: attempt.prior_error.as_ref().map(to_json).transpose()?,
        state: state.to_owned(),
        failure,
        provider_charge_id: attempt.provider_charge_id.clone(),
        dead_key_time,
        taken_key_time,
        create_time: attempt.request.create_time,
        finish_time: attempt.finish_time,
    };
    diesel::insert_into(dsl::payment_attempts).values(row).execute(conn).await?;
    Ok(())
}

pub async fn get(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    payment: PaymentId,
    number: i32,
) -> Result<Option<Attempt>> {
    let query = dsl::payment_attempts.find((org.0, payment.0, number)).select(Row::as_select());
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.map(Row::parse).transpose()
}

/// Lists a payment's attempts, oldest first.
pub async fn list(conn: &mut AsyncPgConnection, org: OrganizationId, payment: PaymentId) -> Result<Vec<Attempt>> {
    dsl::payment_attempts
        .filter(dsl::organization_id.eq(org.0).and(dsl::payment_id.eq(payment.0)))
        .order(dsl::number)
        .select(Row::as_select())
        .load(conn)
        .await?
        .into_iter()
        .map(Row::parse)
        .collect()
}

/// Finds the payment whose link is this Checkout session.
pub async fn payment_of_session(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    provider_session_id: &str,
) -> Result<Option<PaymentId>> {
    let id: Option<Uuid> = dsl::payment_attempts
        .filter(dsl::organization_id.eq(org.0).and(dsl::provider_session_id.eq(provider_session_id)))
        .select(dsl::payment_id)
        .first(conn)
        .await
        .optional()?;
    Ok(id.map(Into::into))
}

/// Writes an attempt's outcome, and for a link its session and URL.
pub async fn save_outcome(conn: &mut AsyncPgConnection, org: OrganizationId, attempt: &Attempt) -> Result<()> {
    let (state, failure) = state_columns(&attempt.state)?;
    let link = attempt.link().cloned().unwrap_or_default();
    let (dead_key_time, taken_key_time) = key_times(attempt.request.key_state);
    diesel::update(dsl::payment_attempts.find((org.0, attempt.payment_id.0, attempt.number)))
        .set((
            dsl::state.eq(state),
            dsl::failure.eq(failure),
            dsl::provider_payment_intent_id.eq(&attempt.provider_payment_intent_id),
            dsl::provider_session_id.eq(link.provider_session_id),
            dsl::url.eq(link.url),
            dsl::expire_time.eq(link.expire_time),
            dsl::provider_charge_id.eq(&attempt.provider_charge_id),
            dsl::dead_key_time.eq(dead_key_time),
            dsl::taken_key_time.eq(taken_key_time),
            dsl::finish_time.eq(attempt.finish_time),
        ))
        .execute(conn)
        .await?;
    Ok(())
}
