//! What makes requests repeatable: the callers' `request_id`s, and the frozen requests that we send to Stripe.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::schema::{frozen_requests::dsl as frozen, request_ids::dsl};
use crate::domain::{Error, OrganizationId, Result};

/// Lets a `request_id` stand for `resource` from now on. Whoever took it a moment before us, with the same body, took it
/// for the same resource; another body is an error.
pub async fn take(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    request_id: &str,
    body_hash: &[u8],
    resource: Uuid,
    now: OffsetDateTime,
) -> Result<()> {
    let inserted = diesel::insert_into(dsl::request_ids)
        .values((
            dsl::organization_id.eq(org.0),
            dsl::request_id.eq(request_id),
            dsl::body_hash.eq(body_hash),
            dsl::resource_id.eq(resource),
            dsl::create_time.eq(now),
        ))
        .on_conflict_do_nothing()
        .execute(conn)
        .await?;
    if inserted == 1 {
        return Ok(());
    }
    match known(conn, org, request_id, body_hash).await? {
        Some(known) if known == resource => Ok(()),
        _ => Err(Error::RequestIdReused(request_id.to_owned())),
    }
}

/// Makes whoever else uses this `request_id` wait until the transaction ends, so that of two that come at once the second
/// finds what the first has made. For requests that are refused when their resource exists already.
pub async fn claim(conn: &mut AsyncPgConnection, org: OrganizationId, request_id: &str) -> Result<()> {
    diesel::sql_query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind::<Text, _>(format!("{org} {request_id}"))
        .execute(conn)
        .await?;
    Ok(())
}

/// The resource that a `request_id` stands for, if it was used before. Another body under the same id is an error.
pub async fn known(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    request_id: &str,
    body_hash: &[u8],
) -> Result<Option<Uuid>> {
    let row: Option<(Vec<u8>, Uuid)> = dsl::request_ids
        .find((org.0, request_id))
        .select((dsl::body_hash, dsl::resource_id))
        .first(conn)
        .await
        .optional()?;
    match row {
        Some((known_hash, _)) if known_hash != body_hash => Err(Error::RequestIdReused(request_id.to_owned())),
        other => Ok(other.map(|(_, resource)| resource)),
    }
}

/// Notes which of a payment's attempts a `request_id` that was just taken for the payment stands for.
pub async fn note_attempt(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    request_id: &str,
    number: i32,
) -> Result<()> {
    let target = dsl::request_ids.find((org.0, request_id));
    diesel::update(target).set(dsl::attempt_number.eq(number)).execute(conn).await?;
    Ok(())
}

/// The attempt that a `request_id` stands for; none where an earlier release took it.
pub async fn attempt_of(conn: &mut AsyncPgConnection, org: OrganizationId, request_id: &str) -> Result<Option<i32>> {
    let number = dsl::request_ids.find((org.0, request_id)).select(dsl::attempt_number).first(conn).await;
    Ok(number.optional()?.flatten())
}

/// Forgets at most `limit` request ids that were taken before `before`. For the system role.
pub async fn forget(conn: &mut AsyncPgConnection, before: OffsetDateTime, limit: i64) -> Result<usize> {
    Ok(diesel::sql_query(
        "DELETE FROM request_ids WHERE (organization_id, request_id) IN ( \
             SELECT organization_id, request_id FROM request_ids WHERE create_time < $1 LIMIT $2)",
    )
    .bind::<Timestamptz, _>(before)
    .bind::<BigInt, _>(limit)
    .execute(conn)
    .await?)
}

/// What a frozen request makes at Stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
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

    /// A request for `object` that is to be frozen now.
    pub fn request(self, object: Uuid, number: i32, body: String, now: OffsetDateTime) -> FrozenRequest {
        let idempotency_key = format!("paybridge-{}-{object}-{number}", self.as_str());
        FrozenRequest { number, idempotency_key, body, create_time: now, is_finished: false }
    }
}

/// A POST to Stripe as it was, or is about to be, sent: the same bytes under the same key, every time (P2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenRequest {
    /// Rises when a key is given up.
    pub number: i32,
    /// Stripe's `Idempotency-Key`.
    pub idempotency_key: String,
    /// The form-encoded body.
    pub body: String,
    /// When it was frozen: its key is not used when older than 20 h.
    pub create_time: OffsetDateTime,
    /// Whether Stripe has given its word on it.
    pub is_finished: bool,
}

type FrozenRow = (i32, String, String, OffsetDateTime, Option<OffsetDateTime>);

/// The newest request frozen for this purpose and object.
pub async fn newest_frozen(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    purpose: Purpose,
    object: Uuid,
) -> Result<Option<FrozenRequest>> {
    let row: Option<FrozenRow> = frozen::frozen_requests
        .filter(frozen::organization_id.eq(org.0).and(frozen::object_id.eq(object)))
        .filter(frozen::purpose.eq(purpose.as_str()))
        .order(frozen::number.desc())
        .select((frozen::number, frozen::idempotency_key, frozen::body, frozen::create_time, frozen::finish_time))
        .first(conn)
        .await
        .optional()?;
    Ok(row.map(|(number, idempotency_key, body, create_time, finish_time)| FrozenRequest {
        number,
        idempotency_key,
        body,
        create_time,
        is_finished: finish_time.is_some(),
    }))
}

/// Whether a request with this body was frozen after `since`, and Stripe has not given its word on it: it may have been
/// carried out at any moment since, or not yet.
pub async fn is_in_doubt(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    purpose: Purpose,
    object: Uuid,
    body: &str,
    since: OffsetDateTime,
) -> Result<bool> {
    let query = frozen::frozen_requests
        .filter(frozen::organization_id.eq(org.0).and(frozen::object_id.eq(object)))
        .filter(frozen::purpose.eq(purpose.as_str()).and(frozen::body.eq(body)))
        .filter(frozen::finish_time.is_null().and(frozen::create_time.gt(since)));
    Ok(diesel::select(diesel::dsl::exists(query)).get_result(conn).await?)
}

/// Freezes a request, before it is first sent. Its number must be new for its purpose and object.
pub async fn freeze(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    purpose: Purpose,
    object: Uuid,
    request: &FrozenRequest,
) -> Result<()> {
    diesel::insert_into(frozen::frozen_requests)
        .values((
            frozen::organization_id.eq(org.0),
            frozen::purpose.eq(purpose.as_str()),
            frozen::object_id.eq(object),
            frozen::number.eq(request.number),
            frozen::idempotency_key.eq(&request.idempotency_key),
            frozen::body.eq(&request.body),
            frozen::create_time.eq(request.create_time),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Forgets the requests of this purpose and object that Stripe has given its word on, or that were frozen before `before`.
pub async fn forget_frozen(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    purpose: Purpose,
    object: Uuid,
    before: OffsetDateTime,
) -> Result<()> {
    let requests = frozen::frozen_requests
        .filter(frozen::organization_id.eq(org.0).and(frozen::object_id.eq(object)))
        .filter(frozen::purpose.eq(purpose.as_str()))
        .filter(frozen::finish_time.is_not_null().or(frozen::create_time.lt(before)));
    diesel::delete(requests).execute(conn).await?;
    Ok(())
}

/// Notes that Stripe has given its word on a request.
pub async fn finish(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    purpose: Purpose,
    object: Uuid,
    number: i32,
    now: OffsetDateTime,
) -> Result<()> {
    diesel::update(frozen::frozen_requests.find((org.0, object, purpose.as_str(), number)))
        .set(frozen::finish_time.eq(now))
        .execute(conn)
        .await?;
    Ok(())
}

/// Notes that Stripe has carried a request out, of which only the idempotency key is known; another key than ours changes
/// nothing.
pub async fn finish_by_key(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    purpose: Purpose,
    object: Uuid,
    idempotency_key: &str,
    now: OffsetDateTime,
) -> Result<()> {
    let request = frozen::frozen_requests
        .filter(frozen::organization_id.eq(org.0).and(frozen::object_id.eq(object)))
        .filter(frozen::purpose.eq(purpose.as_str()).and(frozen::idempotency_key.eq(idempotency_key)))
        .filter(frozen::finish_time.is_null());
    diesel::update(request).set(frozen::finish_time.eq(now)).execute(conn).await?;
    Ok(())
}
