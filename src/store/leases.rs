//! Leases on jobs. A job is scheduled (its time is still to come), due, leased or parked, and each of these has an index
//! that holds nothing else. Leases live in the database's own time, everything else in Paybridge's clock.
//!
//! Due jobs stand in *lanes*, one for each organization and kind, and lanes take turns: a worker goes round them, a few
//! jobs at each, as the index has them in order. So the next job is one probe of the index away, however long any lane is,
//! and a job that comes to an empty lane waits for one round at most. All of this is for the system role.

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::collections::HashSet;
use std::time::Duration as RealDuration;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::jobs::{JobKind, Lane, Lease, Room};
use crate::domain::{Error, Result};

/// Of a job that can be leased: the condition of `jobs_due_idx`.
const DUE: &str = "due AND lease_until IS NULL AND park_time IS NULL";

/// Of a job whose time is still to come, or came since the last [`make_due`]: the condition of `jobs_scheduled_idx`.
const SCHEDULED: &str = "NOT due AND lease_until IS NULL AND park_time IS NULL";

/// How many jobs one [`make_due`] or [`free_lapsed`] moves at most.
const MOVED_MAX: i64 = 200;

/// How many lanes one [`lease`] passes at most that have nothing for it: of a full organization, of kinds that only a newer
/// release knows, or held by transactions of others. Each costs a statement, and what is leased before waits for the commit.
const PASSED_MAX: usize = 50;

/// Makes scheduled jobs due whose time has come by `now`, the oldest first, at most 200.
pub async fn make_due(conn: &mut AsyncPgConnection, now: OffsetDateTime) -> Result<()> {
    diesel::sql_query(format!(
        "UPDATE jobs SET due = true WHERE id = ANY (ARRAY( \
             SELECT id FROM jobs WHERE {SCHEDULED} AND run_at <= $1 ORDER BY run_at LIMIT $2 FOR UPDATE SKIP LOCKED))"
    ))
    .bind::<Timestamptz, _>(now)
    .bind::<BigInt, _>(MOVED_MAX)
    .execute(conn)
    .await?;
    Ok(())
}

/// Makes jobs leasable whose lease has run out, because whoever held them is gone: the oldest first, at most 200. Returns
/// how many those were.
///
/// Not for every look: while somebody keeps an old snapshot (a backup, say), the index still has every lease since, and
/// each is passed over here.
pub async fn free_lapsed(conn: &mut AsyncPgConnection) -> Result<usize> {
    let freed = diesel::sql_query(
        "UPDATE jobs SET lease_until = NULL WHERE id = ANY (ARRAY( \
             SELECT id FROM jobs WHERE lease_until < statement_timestamp() \
             ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED))",
    );
    Ok(freed.bind::<BigInt, _>(MOVED_MAX).execute(conn).await?)
}

/// When the next scheduled job becomes due.
pub async fn next_due(conn: &mut AsyncPgConnection) -> Result<Option<OffsetDateTime>> {
    #[derive(QueryableByName)]
    struct Due {
        #[diesel(sql_type = Timestamptz)]
        run_at: OffsetDateTime,
    }
    let row: Option<Due> =
        diesel::sql_query(format!("SELECT run_at FROM jobs WHERE {SCHEDULED} ORDER BY run_at LIMIT 1"))
            .get_result(conn)
            .await
            .optional()?;
    Ok(row.map(|row| row.run_at))
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    lane_organization_id: Uuid,
    #[diesel(sql_type = Text)]
    lane_kind: String,
    /// Absent where nothing was taken; so is all that follows.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    id: Option<Uuid>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    object_id: Option<Uuid>,
    #[diesel(sql_type = Nullable<Text>)]
    object_key: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    object_time: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<BigInt>)]
    lease_epoch: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    asked: Option<i64>,
    #[diesel(sql_type = Nullable<Integer>)]
    failures: Option<i32>,
}

impl Row {
    /// The lease, if one was taken.
    fn lease(self) -> Option<Lease> {
        Some(Lease {
            id: self.id?.into(),
            organization_id: self.lane_organization_id.into(),
            kind: JobKind::parse(&self.lane_kind)?,
            object_id: self.object_id?,
            object_key: self.object_key?,
            object_time: self.object_time,
            epoch: self.lease_epoch?,
            asked: self.asked?,
            failures: self.failures?,
        })
    }
}

/// Leases due jobs for `period` of real time, as many as there is `room` for, in turns: it goes round the lanes from where
/// it was last, and notes in `room` what it took and how far it came. Kinds that only a newer release knows are left to it.
/// After 50 lanes with nothing for it the look ends, and the next one goes on from there.
pub async fn lease(conn: &mut AsyncPgConnection, room: &mut Room, period: RealDuration) -> Result<Vec<Lease>> {
    // At most so many at one lane, so that others find places in the same round.
    let turn = room.free.div_ceil(4);
    let mut leases = Vec::new();
    // The lanes passed since something was taken: whoever comes to one of them again has gone round.
    let mut passed = HashSet::new();
    let mut passes = 0;
    while room.free > 0 {
        let Some((lane, taken)) = next_lane(conn, room, room.share(turn), period).await? else { break };
        let is_alone = room.after == lane;
        room.after = lane.clone();
        if taken.is_empty() {
            if is_alone || !passed.insert(lane) {
                break;
            }
            passes += 1;
            if passes == PASSED_MAX {
                room.is_cut_short = true;
                break;
            }
            continue;
        }
        passed.clear();
        room.free = room.free.saturating_sub(taken.len());
        *room.held.entry(lane.organization_id).or_default() += taken.len();
        leases.extend(taken);
    }
    Ok(leases)
}

/// The lane that comes next, the first one again after the last, and at most so many of its jobs: none where its organization has
/// all the places that it may have, or where its kind is not known here. Nothing at all if no job is due.
async fn next_lane(
    conn: &mut AsyncPgConnection,
    room: &Room,
    most: usize,
    period: RealDuration,
) -> Result<Option<(Lane, Vec<Lease>)>> {
    const LANE: &str = "ORDER BY organization_id, kind, run_at LIMIT 1";
    // The lane's first job was just seen: what the index still has before it has ended, and is not looked at twice.
    let rows: Vec<Row> = diesel::sql_query(format!(
        "WITH lane AS MATERIALIZED ( \
             (SELECT organization_id, kind, run_at FROM jobs WHERE {DUE} AND (organization_id, kind) > ($1, $2) {LANE}) \
             UNION ALL (SELECT organization_id, kind, run_at FROM jobs WHERE {DUE} {LANE}) LIMIT 1 \
         ), taken AS ( \
             UPDATE jobs SET lease_epoch = lease_epoch + 1, lease_until = clock_timestamp() + make_interval(secs => $4) \
             WHERE id = ANY (ARRAY( \
                 SELECT id FROM jobs WHERE {DUE} \
                     AND organization_id = (SELECT organization_id FROM lane WHERE organization_id <> ALL ($5)) \
                     AND kind = (SELECT kind FROM lane WHERE kind = ANY ($6)) \
                     AND run_at >= (SELECT run_at FROM lane) \
                 ORDER BY organization_id, kind, run_at LIMIT $3 FOR UPDATE SKIP LOCKED)) \
             RETURNING id, object_id, object_key, object_time, lease_epoch, asked, failures \
         ) \
         SELECT lane.organization_id AS lane_organization_id, lane.kind AS lane_kind, taken.* \
         FROM lane LEFT JOIN taken ON true"
    ))
    .bind::<SqlUuid, _>(room.after.organization_id.0)
    .bind::<Text, _>(&room.after.kind)
    .bind::<BigInt, _>(i64::try_from(most).map_err(Error::internal)?)
    .bind::<Double, _>(period.as_secs_f64())
    .bind::<Array<SqlUuid>, _>(room.full().map(|org| org.0).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(JobKind::ALL.iter().map(|(_, name)| *name).collect::<Vec<_>>())
    .load(conn)
    .await?;
    let Some(first) = rows.as_slice().first() else { return Ok(None) };
    let lane = Lane { organization_id: first.lane_organization_id.into(), kind: first.lane_kind.clone() };
    Ok(Some((lane, rows.into_iter().filter_map(Row::lease).collect())))
}

/// Prolongs leases that are still ours, and returns the ids of those. A row that somebody has locked is not waited for: its
/// job is being ended, and asks for others that are held here, too, so that each would wait for the other. It counts as
/// ours, and nobody else leases it while it is locked. One that was given back a moment ago is held by nobody, and stays
/// so.
pub async fn renew(conn: &mut AsyncPgConnection, held: &[(Uuid, i64)], period: RealDuration) -> Result<Vec<Uuid>> {
    #[derive(QueryableByName)]
    struct Renewed {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let rows: Vec<Renewed> = diesel::sql_query(
        "WITH held AS (SELECT * FROM unnest($1, $2) AS held (id, epoch)), free AS ( \
             SELECT jobs.id FROM jobs JOIN held ON jobs.id = held.id AND jobs.lease_epoch = held.epoch \
             WHERE jobs.lease_until IS NOT NULL FOR NO KEY UPDATE OF jobs SKIP LOCKED \
         ), renewed AS ( \
             UPDATE jobs SET lease_until = clock_timestamp() + make_interval(secs => $3) \
             FROM free WHERE jobs.id = free.id \
         ) \
         SELECT jobs.id FROM jobs JOIN held ON jobs.id = held.id AND jobs.lease_epoch = held.epoch",
    )
    .bind::<Array<SqlUuid>, _>(held.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(held.iter().map(|(_, epoch)| *epoch).collect::<Vec<_>>())
    .bind::<Double, _>(period.as_secs_f64())
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// Gives leases back at once, so that others can take the jobs. They stay ours until somebody does. One whose row is locked
/// is being ended; should that not come to its end, it runs out. For the system role.
pub async fn give_up(conn: &mut AsyncPgConnection, held: &[(Uuid, i64)]) -> Result<usize> {
    Ok(diesel::sql_query(
        "WITH free AS ( \
             SELECT jobs.id FROM jobs JOIN unnest($1, $2) AS held (id, epoch) \
                 ON jobs.id = held.id AND jobs.lease_epoch = held.epoch \
             FOR NO KEY UPDATE OF jobs SKIP LOCKED \
         ) \
         UPDATE jobs SET lease_until = NULL FROM free WHERE jobs.id = free.id",
    )
    .bind::<Array<SqlUuid>, _>(held.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(held.iter().map(|(_, epoch)| *epoch).collect::<Vec<_>>())
    .execute(conn)
    .await?)
}
