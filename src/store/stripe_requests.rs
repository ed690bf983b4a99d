//! Requests to Stripe, stored before they are first sent, so that each can be sent again with the same body and key
//! (P2).

use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::schema::stripe_requests::dsl;
use crate::domain::{OrganizationId, Result};

/// What a request creates or changes at Stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Customer,
    WebhookEndpoint,
    ReplacementEndpoint,
    CheckoutSession,
    PaymentIntent,
    Refund,
    DefaultMethod,
}

impl Purpose {
    /// The name in the database, and in the idempotency key.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::WebhookEndpoint => "webhook_endpoint",
            Self::ReplacementEndpoint => "replacement_endpoint",
            Self::CheckoutSession => "checkout_session",
            Self::PaymentIntent => "payment_intent",
            Self::Refund => "refund",
            Self::DefaultMethod => "default_method",
        }
    }

    /// Requests of this purpose about `object`.
    pub fn of(self, object: impl Into<Uuid>) -> RequestTarget {
        RequestTarget { purpose: self, object: object.into() }
    }
}

/// What a series of requests is about. Their numbers are 1, 2, 3, …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestTarget {
    purpose: Purpose,
    object: Uuid,
}

impl RequestTarget {
    /// Builds a request.
    pub fn request(self, number: i32, body: String, now: OffsetDateTime) -> StripeRequest {
        let idempotency_key = format!("paybridge-{}-{}-{number}", self.purpose.as_str(), self.object);
        StripeRequest { number, idempotency_key, body, create_time: now, is_finished: false }
    }
}

/// A POST to Stripe: every send has the same bytes and the same key (P2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StripeRequest {
    /// Increases when a key cannot be used again.
    pub number: i32,
    /// Stripe's `Idempotency-Key`.
    pub idempotency_key: String,
    /// The form-encoded body.
    pub body: String,
    /// When it was prepared. Its key is not used after 20 h.
    pub create_time: OffsetDateTime,
    /// Whether Stripe has given its final answer.
    pub is_finished: bool,
}

type Row = (i32, String, String, OffsetDateTime, Option<OffsetDateTime>);

/// Reads the newest request of this target.
pub async fn newest(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    target: RequestTarget,
) -> Result<Option<StripeRequest>> {
    let row: Option<Row> = dsl::stripe_requests
        .filter(dsl::organization_id.eq(org.0).and(dsl::object_id.eq(target.object)))
        .filter(dsl::purpose.eq(target.purpose.as_str()))
        .order(dsl::number.desc())
        .select((dsl::number, dsl::idempotency_key, dsl::body, dsl::create_time, dsl::finish_time))
        .first(conn)
        .await
        .optional()?;
    Ok(row.map(|(number, idempotency_key, body, create_time, finish_time)| StripeRequest {
        number,
        idempotency_key,
        body,
        create_time,
        is_finished: finish_time.is_some(),
    }))
}

/// Whether a request with this body was prepared after `since` and has no final answer: Stripe may have executed it at
/// any moment since, or not yet.
pub async fn is_outcome_unknown(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    target: RequestTarget,
    body: &str,
    since: OffsetDateTime,
) -> Result<bool> {
    let query = dsl::stripe_requests
        .filter(dsl::organization_id.eq(org.0).and(dsl::object_id.eq(target.object)))
        .filter(dsl::purpose.eq(target.purpose.as_str()).and(dsl::body.eq(body)))
        .filter(dsl::finish_time.is_null().and(dsl::create_time.gt(since)));
    Ok(diesel::select(diesel::dsl::exists(query)).get_result(conn).await?)
}

/// Stores a request before it is first sent. Its number must be new for its target.
pub async fn prepare(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    target: RequestTarget,
    request: &StripeRequest,
) -> Result<()> {
    diesel::insert_into(dsl::stripe_requests)
        .values((
            dsl::organization_id.eq(org.0),
            dsl::purpose.eq(target.purpose.as_str()),
            dsl::object_id.eq(target.object),
            dsl::number.eq(request.number),
            dsl::idempotency_key.eq(&request.idempotency_key),
            dsl::body.eq(&request.body),
            dsl::create_time.eq(request.create_time),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Deletes the requests of this target that are finished, or were prepared before `before`.
pub async fn delete_finished(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    target: RequestTarget,
    before: OffsetDateTime,
) -> Result<()> {
    let requests = dsl::stripe_requests
        .filter(dsl::organization_id.eq(org.0).and(dsl::object_id.eq(target.object)))
        .filter(dsl::purpose.eq(target.purpose.as_str()))
        .filter(dsl::finish_time.is_not_null().or(dsl::create_time.lt(before)));
    diesel::delete(requests).execute(conn).await?;
    Ok(())
}

/// Records that Stripe has given its final answer to a request.
pub async fn finish(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    target: RequestTarget,
    number: i32,
    now: OffsetDateTime,
) -> Result<()> {
    diesel::update(dsl::stripe_requests.find((org.0, target.object, target.purpose.as_str(), number)))
        .set(dsl::finish_time.eq(now))
        .execute(conn)
        .await?;
    Ok(())
}

/// Records that Stripe has executed the request with this idempotency key. A key that is not ours changes nothing.
pub async fn finish_by_key(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    target: RequestTarget,
    idempotency_key: &str,
    now: OffsetDateTime,
) -> Result<()> {
    let request = dsl::stripe_requests
        .filter(dsl::organization_id.eq(org.0).and(dsl::object_id.eq(target.object)))
        .filter(dsl::purpose.eq(target.purpose.as_str()).and(dsl::idempotency_key.eq(idempotency_key)))
        .filter(dsl::finish_time.is_null());
    diesel::update(request).set(dsl::finish_time.eq(now)).execute(conn).await?;
    Ok(())
}
