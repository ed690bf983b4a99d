//! Rows of payments.

#[cfg(test)]
mod tests;

use diesel::prelude::*;
use diesel::sql_types::{Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::rows::{currency, from_json, to_json, variant};
use super::schema::payments::dsl;
use crate::domain::payments::{Failure, Payment, PaymentFilter, PaymentState, PendingReason, RequiredAction, State};
use crate::domain::{CustomerId, Error, IntegrationId, Money, OrganizationId, Page, PaymentId, Result};

#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = super::schema::payments, treat_none_as_null = true)]
struct Row {
    organization_id: Uuid,
    id: Uuid,
    integration_id: Uuid,
    customer_id: Uuid,
    external_customer_id: String,
    invoice_id: String,
    invoice_number: String,
    amount: i64,
    currency: String,
    state: String,
    pending_reason: Option<String>,
    failure: Option<serde_json::Value>,
    awaits_method: bool,
    provider_payment_intent_id: Option<String>,
    intent_number: i32,
    attempt_number: i32,
    requested_method_id: Option<Uuid>,
    on_session: bool,
    next_action_url: Option<String>,
    action_time: Option<OffsetDateTime>,
    provider_charge_id: Option<String>,
    amount_received: i64,
    part_received: i64,
    amount_refunded: i64,
    cancel_request_time: Option<OffsetDateTime>,
    pending_operation: Option<serde_json::Value>,
    refused_amount: Option<i64>,
    manual: Option<serde_json::Value>,
    unknown_since: Option<OffsetDateTime>,
    version: i64,
    create_time: OffsetDateTime,
    update_time: OffsetDateTime,
}

impl Row {
    fn new(payment: &Payment) -> Result<Self> {
        Ok(Self {
            organization_id: payment.organization_id.0,
            id: payment.id.0,
            integration_id: payment.integration_id.0,
            customer_id: payment.customer_id.0,
            external_customer_id: payment.external_customer_id.clone(),
            invoice_id: payment.invoice_id.clone(),
            invoice_number: payment.invoice_number.clone(),
            amount: payment.amount.minor_units,
            currency: payment.amount.currency.to_string(),
            state: payment.state().as_str().to_owned(),
            pending_reason: payment.pending_reason().map(|reason| reason.as_str().to_owned()),
            failure: failure(payment).map(to_json).transpose()?,
            awaits_method: payment.awaits_method,
            provider_payment_intent_id: payment.provider_payment_intent_id.clone(),
            intent_number: payment.intent_number,
            attempt_number: payment.attempt_number,
            requested_method_id: payment.requested_method_id.map(|id| id.0),
            on_session: payment.is_on_session(),
            next_action_url: payment.next_action_url().map(str::to_owned),
            action_time: payment.action_time(),
            provider_charge_id: payment.provider_charge_id().map(str::to_owned),
            amount_received: payment.amount_received,
            part_received: payment.part_received,
            amount_refunded: payment.amount_refunded,
            cancel_request_time: payment.cancel_request_time,
            pending_operation: payment.pending_operation.as_ref().map(to_json).transpose()?,
            refused_amount: payment.refused_amount,
            manual: payment.manual().map(to_json).transpose()?,
            unknown_since: payment.unknown_since,
            version: payment.version,
            create_time: payment.create_time,
            update_time: payment.update_time,
        })
    }

    fn parse(mut self) -> Result<Payment> {
        Ok(Payment {
            state: self.take_state()?,
            id: self.id.into(),
            organization_id: self.organization_id.into(),
            integration_id: self.integration_id.into(),
            customer_id: self.customer_id.into(),
            external_customer_id: self.external_customer_id,
            invoice_id: self.invoice_id,
            invoice_number: self.invoice_number,
            amount: Money { minor_units: self.amount, currency: currency("payments", &self.currency)? },
            awaits_method: self.awaits_method,
            provider_payment_intent_id: self.provider_payment_intent_id,
            intent_number: self.intent_number,
            attempt_number: self.attempt_number,
            requested_method_id: self.requested_method_id.map(Into::into),
            amount_received: self.amount_received,
            part_received: self.part_received,
            amount_refunded: self.amount_refunded,
            cancel_request_time: self.cancel_request_time,
            pending_operation: self
                .pending_operation
                .map(|value| from_json("payments", "pending_operation", value))
                .transpose()?,
            refused_amount: self.refused_amount,
            unknown_since: self.unknown_since,
            version: self.version,
            create_time: self.create_time,
            update_time: self.update_time,
        })
    }

    /// The state with its data. Columns of other states must be empty.
    fn take_state(&mut self) -> Result<State> {
        let name = variant("payments", "state", &self.state)?;
        let reason = self.pending_reason.take();
        let reason = reason.map(|name| variant("payments", "pending_reason", &name)).transpose()?;
        let failure = self.failure.take().map(|value| from_json("payments", "failure", value)).transpose()?;
        let manual = self.manual.take().map(|value| from_json("payments", "manual", value)).transpose()?;
        let (url, since, charge) = (self.next_action_url.take(), self.action_time, self.provider_charge_id.take());
        Ok(match (name, reason, failure, self.on_session, url, since, charge, manual) {
            (PaymentState::Pending, reason, None, false, None, None, None, None) => State::Pending { reason },
            (PaymentState::Processing, None, None, on_session, None, None, None, None) => {
                State::Processing { on_session }
            }
            (PaymentState::RequiresAction, None, None, on_session, url, Some(since), None, None) => {
                State::RequiresAction { url, action: RequiredAction::Authenticate { since, on_session } }
            }
            (PaymentState::RequiresAction, None, failure, false, url, None, None, None) => {
                State::RequiresAction { url, action: RequiredAction::PayByLink { failure } }
            }
            (PaymentState::Succeeded, None, None, false, None, None, provider_charge_id, manual) => {
                State::Succeeded { provider_charge_id, manual }
            }
            (PaymentState::Failed, None, Some(failure), false, None, None, None, None) => State::Failed(failure),
            (PaymentState::Canceled, None, None, false, None, None, None, None) => State::Canceled,
            _ => {
                let (id, name) = (self.id, name.as_str());
                return Err(Error::internal(anyhow::anyhow!(
                    "the row of the payment {id} lacks data of its state, {name}, or has data of another state"
                )));
            }
        })
    }
}

/// The failure that the row holds: that of a `FAILED` payment, or the one that stands if its link ends unused.
fn failure(payment: &Payment) -> Option<&Failure> {
    match &payment.state {
        State::RequiresAction { action: RequiredAction::PayByLink { failure }, .. } => failure.as_ref(),
        _ => payment.failure(),
    }
}

/// Inserts a payment. Returns `false` if its invoice has one already, and writes nothing (P1).
pub async fn insert(conn: &mut AsyncPgConnection, payment: &Payment) -> Result<bool> {
    let inserted = diesel::insert_into(dsl::payments)
        .values(Row::new(payment)?)
        .on_conflict((dsl::organization_id, dsl::invoice_id))
        .do_nothing()
        .execute(conn)
        .await?;
    Ok(inserted == 1)
}

pub async fn get(conn: &mut AsyncPgConnection, org: OrganizationId, id: PaymentId) -> Result<Option<Payment>> {
    dsl::payments.find((org.0, id.0)).select(Row::as_select()).first(conn).await.optional()?.map(Row::parse).transpose()
}

/// Reads and locks a payment until the transaction ends. Payments are locked before anything else.
pub async fn lock(conn: &mut AsyncPgConnection, org: OrganizationId, id: PaymentId) -> Result<Payment> {
    let query = dsl::payments.find((org.0, id.0)).select(Row::as_select()).for_update();
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.ok_or_else(|| Error::not_found("payment", id))?.parse()
}

/// Reads and locks the payment of an invoice.
pub async fn lock_by_invoice(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    invoice_id: &str,
) -> Result<Option<Payment>> {
    let query = dsl::payments
        .filter(dsl::organization_id.eq(org.0).and(dsl::invoice_id.eq(invoice_id)))
        .select(Row::as_select())
        .for_update();
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.map(Row::parse).transpose()
}

/// Reads the payment of an invoice.
pub async fn get_by_invoice(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    invoice_id: &str,
) -> Result<Option<Payment>> {
    let query = dsl::payments
        .filter(dsl::organization_id.eq(org.0).and(dsl::invoice_id.eq(invoice_id)))
        .select(Row::as_select());
    let row: Option<Row> = query.first(conn).await.optional()?;
    row.map(Row::parse).transpose()
}

/// Finds the payment that a PaymentIntent belongs to: as its present intent, as an earlier one, or as another intent
/// that took money for its invoice.
pub async fn id_by_intent(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
    intent_id: &str,
) -> Result<Option<PaymentId>> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let found: Option<Found> = diesel::sql_query(
        "SELECT id FROM payments \
             WHERE organization_id = $1 AND integration_id = $2 AND provider_payment_intent_id = $3 \
         UNION ALL SELECT p.id FROM payment_attempts AS a \
             JOIN payments AS p ON p.organization_id = a.organization_id AND p.id = a.payment_id \
             WHERE a.organization_id = $1 AND p.integration_id = $2 AND a.provider_payment_intent_id = $3 \
         UNION ALL SELECT payment_id FROM overpayments \
             WHERE organization_id = $1 AND provider_payment_intent_id = $3 \
         LIMIT 1",
    )
    .bind::<SqlUuid, _>(org.0)
    .bind::<SqlUuid, _>(integration.0)
    .bind::<Text, _>(intent_id)
    .get_result(conn)
    .await
    .optional()?;
    Ok(found.map(|found| found.id.into()))
}

/// Updates a locked payment and increments its version.
pub async fn save(conn: &mut AsyncPgConnection, payment: &mut Payment, now: OffsetDateTime) -> Result<()> {
    payment.version += 1;
    payment.update_time = now;
    let target = dsl::payments.find((payment.organization_id.0, payment.id.0));
    let saved = diesel::update(target).set(Row::new(payment)?).execute(conn).await?;
    if saved == 1 { Ok(()) } else { Err(Error::not_found("payment", payment.id)) }
}

/// Lists a page of payments, newest first.
pub async fn list(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    filter: &PaymentFilter,
    page: Page,
) -> Result<Vec<Payment>> {
    // One query per state: the index has the payments of one state in order, but not those of several.
    let mut states: Vec<Option<PaymentState>> = filter.states.iter().copied().map(Some).collect();
    states.sort_by_key(|state| state.map(PaymentState::as_str));
    states.dedup();
    if states.is_empty() {
        states.push(None);
    }
    let mut rows: Vec<Row> = Vec::new();
    for state in states {
        let mut query = dsl::payments
            .filter(dsl::organization_id.eq(org.0))
            .order(dsl::id.desc())
            .limit(page.size)
            .select(Row::as_select())
            .into_boxed();
        if let Some(state) = state {
            query = query.filter(dsl::state.eq(state.as_str()));
        }
        if let Some(customer) = filter.customer_id {
            query = query.filter(dsl::customer_id.eq(customer.0));
        }
        if let Some(from) = filter.created_from {
            query = query.filter(dsl::create_time.ge(from));
        }
        if let Some(before) = filter.created_before {
            query = query.filter(dsl::create_time.lt(before));
        }
        if let Some(after) = page.after {
            query = query.filter(dsl::id.lt(after));
        }
        rows.extend(query.load::<Row>(conn).await?);
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.id));
    rows.truncate(usize::try_from(page.size).unwrap_or(usize::MAX));
    rows.into_iter().map(Row::parse).collect()
}

/// Lists a customer's payments that may proceed when its link or its methods change: those that wait for the customer,
/// those that will be confirmed on session, and those that failed for lack of a payment method, even if they were
/// retried since.
pub async fn ids_waiting_for(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    customer: CustomerId,
) -> Result<Vec<Uuid>> {
    let waits = dsl::state
        .eq(PaymentState::Pending.as_str())
        .and(dsl::pending_reason.eq(PendingReason::WaitingForCustomer.as_str()));
    let is_on_session = dsl::state.eq(PaymentState::Processing.as_str()).and(dsl::on_session);
    let lacks_method = dsl::state.eq(PaymentState::Failed.as_str()).and(dsl::awaits_method);
    Ok(dsl::payments
        .filter(dsl::organization_id.eq(org.0).and(dsl::customer_id.eq(customer.0)))
        .filter(waits.or(is_on_session).or(lacks_method))
        .order(dsl::id)
        .select(dsl::id)
        .load(conn)
        .await?)
}

/// Lists an integration's payments with a pending operation.
pub async fn with_pending_operations(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
) -> Result<Vec<Uuid>> {
    Ok(dsl::payments
        .filter(dsl::organization_id.eq(org.0).and(dsl::integration_id.eq(integration.0)))
        .filter(dsl::pending_operation.is_not_null())
        .order(dsl::id)
        .select(dsl::id)
        .load(conn)
        .await?)
}

/// Lists an integration's payments that are not final, by id, after `after`.
pub async fn unfinished(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
    after: Option<PaymentId>,
    limit: i64,
) -> Result<Vec<PaymentId>> {
    let states = [PaymentState::Succeeded, PaymentState::Canceled].map(PaymentState::as_str);
    let ids: Vec<Uuid> = dsl::payments
        .filter(dsl::organization_id.eq(org.0).and(dsl::integration_id.eq(integration.0)))
        .filter(dsl::state.ne_all(states).and(dsl::id.gt(after.map_or(Uuid::nil(), |after| after.0))))
        .order(dsl::id)
        .select(dsl::id)
        .limit(limit)
        .load(conn)
        .await?;
    Ok(ids.into_iter().map(Into::into).collect())
}

/// Lists an integration's payments that are not settled: `PENDING`, `PROCESSING`, `REQUIRES_ACTION`, or `FAILED` while
/// a payment link is being created. Each half has a small index of its own, because this runs under locks.
pub async fn unsettled(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
) -> Result<Vec<(Uuid, PaymentState)>> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
        #[diesel(sql_type = Text)]
        state: String,
    }
    let rows: Vec<Found> = diesel::sql_query(
        "SELECT id, state FROM payments \
             WHERE organization_id = $1 AND integration_id = $2 \
                 AND state IN ('pending', 'processing', 'requires_action') \
         UNION ALL SELECT p.id, p.state FROM payment_attempts AS a \
             JOIN payments AS p ON p.organization_id = a.organization_id AND p.id = a.payment_id \
             WHERE a.organization_id = $1 AND a.state = 'open' AND p.integration_id = $2 AND p.state = 'failed' \
         ORDER BY id",
    )
    .bind::<SqlUuid, _>(org.0)
    .bind::<SqlUuid, _>(integration.0)
    .load(conn)
    .await?;
    rows.into_iter().map(|row| Ok((row.id, variant("payments", "state", &row.state)?))).collect()
}
