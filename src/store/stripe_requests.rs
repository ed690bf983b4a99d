//! Rows of requests to Stripe, stored before they are first sent (P2).

use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::schema::stripe_requests::dsl;
use crate::domain::stripe_requests::{IdempotencyKey, KeyState, RequestTarget, StripeRequest};
use crate::domain::{OrganizationId, Result};

/// The requests of a target.
pub struct Requests {
    /// Those to which Stripe has not given its final answer, newest first.
    open: Vec<StripeRequest>,
    /// Whether the newest one is among them.
    is_newest_open: bool,
    /// The generation of the next one to prepare.
    pub next_generation: i32,
}

impl Requests {
    /// The newest one, unless Stripe has given its final answer to it.
    pub fn into_open(self) -> Option<StripeRequest> {
        self.open.into_iter().next().filter(|_| self.is_newest_open)
    }

    /// The newest open one whose body names this object.
    pub fn into_open_for(self, id: Uuid) -> Option<StripeRequest> {
        self.open.into_iter().find(|request| request.body.contains(&id.to_string()))
    }
}

/// What the columns of a row say about its key.
pub(super) fn key_state(dead: Option<OffsetDateTime>, taken: Option<OffsetDateTime>) -> KeyState {
    match (taken, dead) {
        (Some(time), _) => KeyState::Taken(time),
        (None, Some(time)) => KeyState::ReplaysError(time),
        (None, None) => KeyState::Usable,
    }
}

/// The columns `dead_key_time` and `taken_key_time`.
pub(super) fn key_times(key_state: KeyState) -> (Option<OffsetDateTime>, Option<OffsetDateTime>) {
    match key_state {
        KeyState::Usable => (None, None),
        KeyState::ReplaysError(time) => (Some(time), None),
        KeyState::Taken(time) => (None, Some(time)),
    }
}

#[derive(Queryable)]
struct Row {
    generation: i32,
    idempotency_key: String,
    body: String,
    dead_key_time: Option<OffsetDateTime>,
    taken_key_time: Option<OffsetDateTime>,
    create_time: OffsetDateTime,
    finish_time: Option<OffsetDateTime>,
}

/// Reads the requests of this target.
pub async fn get(conn: &mut AsyncPgConnection, org: OrganizationId, target: &RequestTarget) -> Result<Requests> {
    let rows: Vec<Row> = dsl::stripe_requests
        .filter(dsl::organization_id.eq(org.0).and(dsl::purpose.eq(target.purpose.as_str())))
        .filter(dsl::name.eq(&target.name))
        .order(dsl::generation.desc())
        .select((
            dsl::generation,
            dsl::idempotency_key,
            dsl::body,
            dsl::dead_key_time,
            dsl::taken_key_time,
            dsl::create_time,
            dsl::finish_time,
        ))
        .load(conn)
        .await?;
    let (is_newest_open, next_generation) = match rows.as_slice() {
        [newest, ..] => (newest.finish_time.is_none(), newest.generation + 1),
        [] => (false, 1),
    };
    let open = rows.into_iter().filter(|row| row.finish_time.is_none()).map(|row| StripeRequest {
        purpose: target.purpose,
        generation: row.generation,
        key: IdempotencyKey::stored(row.idempotency_key),
        body: row.body,
        create_time: row.create_time,
        key_state: key_state(row.dead_key_time, row.taken_key_time),
    });
    Ok(Requests { open: open.collect(), is_newest_open, next_generation })
}

/// Whether a request with this body was prepared after `since` and has no final answer: Stripe may have executed it at
/// any moment since, or not yet.
pub async fn is_outcome_unknown(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    target: &RequestTarget,
    body: &str,
    since: OffsetDateTime,
) -> Result<bool> {
    let query = dsl::stripe_requests
        .filter(dsl::organization_id.eq(org.0).and(dsl::purpose.eq(target.purpose.as_str())))
        .filter(dsl::name.eq(&target.name).and(dsl::body.eq(body)))
        .filter(dsl::finish_time.is_null().and(dsl::create_time.gt(since)));
    Ok(diesel::select(diesel::dsl::exists(query)).get_result(conn).await?)
}

/// Stores a request before it is first sent. Its generation must be new for its target.
pub async fn insert(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    target: &RequestTarget,
    request: &StripeRequest,
) -> Result<()> {
    diesel::insert_into(dsl::stripe_requests)
        .values((
            dsl::organization_id.eq(org.0),
            dsl::purpose.eq(target.purpose.as_str()),
            dsl::name.eq(&target.name),
            dsl::generation.eq(request.generation),
            dsl::idempotency_key.eq(request.key.as_str()),
            dsl::body.eq(&request.body),
            dsl::create_time.eq(request.create_time),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Stores what Stripe has shown of a request's key.
pub async fn save_key_state(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    target: &RequestTarget,
    request: &StripeRequest,
) -> Result<()> {
    let (dead_key_time, taken_key_time) = key_times(request.key_state);
    diesel::update(dsl::stripe_requests.find((org.0, target.purpose.as_str(), &target.name, request.generation)))
        .set((dsl::dead_key_time.eq(dead_key_time), dsl::taken_key_time.eq(taken_key_time)))
        .execute(conn)
        .await?;
    Ok(())
}

/// Deletes the requests of this target that are finished, or were prepared before `before`.
pub async fn delete_finished(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    target: &RequestTarget,
    before: OffsetDateTime,
) -> Result<()> {
    let requests = dsl::stripe_requests
        .filter(dsl::organization_id.eq(org.0).and(dsl::purpose.eq(target.purpose.as_str())))
        .filter(dsl::name.eq(&target.name))
        .filter(dsl::finish_time.is_not_null().or(dsl::create_time.lt(before)));
    diesel::delete(requests).execute(conn).await?;
    Ok(())
}

/// Records that Stripe has given its final answer to a request.
pub async fn finish(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    target: &RequestTarget,
    generation: i32,
    now: OffsetDateTime,
) -> Result<()> {
    diesel::update(dsl::stripe_requests.find((org.0, target.purpose.as_str(), &target.name, generation)))
        .set(dsl::finish_time.eq(now))
        .execute(conn)
        .await?;
    Ok(())
}

/// Records that Stripe has executed the request with this idempotency key. A key that is not ours changes nothing.
pub async fn finish_by_key(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    target: &RequestTarget,
    idempotency_key: &str,
    now: OffsetDateTime,
) -> Result<()> {
    let request = dsl::stripe_requests
        .filter(dsl::organization_id.eq(org.0).and(dsl::purpose.eq(target.purpose.as_str())))
        .filter(dsl::name.eq(&target.name).and(dsl::idempotency_key.eq(idempotency_key)))
        .filter(dsl::finish_time.is_null());
    diesel::update(request).set(dsl::finish_time.eq(now)).execute(conn).await?;
    Ok(())
}
