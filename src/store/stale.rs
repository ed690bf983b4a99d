//! Objects that have not settled for a long time and must be reconciled with Stripe. One query over several tables.

use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Double, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::time::Duration as RealDuration;
use time::OffsetDateTime;
use uuid::Uuid;

use super::rows::variant;
use crate::domain::jobs::JobKind;
use crate::domain::payment_methods::MethodKind;
use crate::domain::reconcile::ReadSchedule;
use crate::domain::{IntegrationId, OrganizationId, Result};

/// An object that has not changed for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// The job that reconciles it.
    pub kind: JobKind,
    pub object_id: Uuid,
    /// When it last changed.
    pub changed: OffsetDateTime,
    /// How long it may take.
    pub schedule: ReadSchedule,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = SqlUuid)]
    object_id: Uuid,
    #[diesel(sql_type = Timestamptz)]
    changed: OffsetDateTime,
    #[diesel(sql_type = Bool)]
    is_slow: bool,
}

/// Lists an integration's payments and refunds that have not changed after `before`, and its Checkout sessions that had
/// expired by then. A session that is still being created expires with its idempotency key, after `key_age_max`. A
/// charge that the bank is processing is slow if its kind of payment method settles slowly.
pub async fn list(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    integration: IntegrationId,
    before: OffsetDateTime,
    key_age_max: RealDuration,
) -> Result<Vec<Stale>> {
    let slow_kinds = MethodKind::ALL.iter().filter(|kind| kind.settles_slowly());
    let rows: Vec<Row> = diesel::sql_query(
        "SELECT 'reconcile_payment' AS kind, p.id AS object_id, p.update_time AS changed, \
             COALESCE(p.state = 'processing' AND p.unknown_since IS NULL AND a.provider_charge_id IS NOT NULL \
                 AND m.kind = ANY ($5), false) AS is_slow \
         FROM payments AS p \
         LEFT JOIN payment_attempts AS a ON a.organization_id = p.organization_id AND a.payment_id = p.id \
             AND a.number = p.attempt_number \
         LEFT JOIN payment_methods AS m ON m.organization_id = p.organization_id AND m.id = a.payment_method_id \
         WHERE p.organization_id = $1 AND p.integration_id = $2 AND p.state IN ('processing', 'requires_action') \
             AND p.update_time <= $3 \
         UNION ALL \
         SELECT CASE state WHEN 'open' THEN 'reconcile_session' ELSE 'create_checkout_session' END, id, end_time, \
             false \
         FROM (SELECT id, state, COALESCE(expire_time, create_time + make_interval(secs => $4)) AS end_time \
             FROM checkout_sessions \
             WHERE organization_id = $1 AND integration_id = $2 AND state IN ('creating', 'open')) AS session \
         WHERE end_time <= $3 \
         UNION ALL \
         SELECT 'refund_payment', r.id, r.update_time, false \
         FROM refunds AS r WHERE r.organization_id = $1 AND r.integration_id = $2 \
             AND r.status IN ('pending', 'requires_action') AND r.update_time <= $3",
    )
    .bind::<SqlUuid, _>(org.0)
    .bind::<SqlUuid, _>(integration.0)
    .bind::<Timestamptz, _>(before)
    .bind::<Double, _>(key_age_max.as_secs_f64())
    .bind::<Array<Text>, _>(slow_kinds.map(|kind| kind.as_str()).collect::<Vec<_>>())
    .load(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Stale {
                kind: variant("jobs", "kind", &row.kind)?,
                object_id: row.object_id,
                changed: row.changed,
                schedule: if row.is_slow { ReadSchedule::Slow } else { ReadSchedule::Normal },
            })
        })
        .collect()
}
