//! Rows of timers: when something that is done by the clock alone is next done. Whoever moves the time forward does it.
//! For the system role.

use diesel::prelude::*;
use diesel::sql_types::{Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;

use crate::domain::Result;

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Timestamptz)]
    next_time: OffsetDateTime,
}

/// Takes a timer that is due at `now`, or that nobody has taken before, and sets it to `next`: `true` for one taker alone.
pub async fn take(conn: &mut AsyncPgConnection, name: &str, now: OffsetDateTime, next: OffsetDateTime) -> Result<bool> {
    let taken = diesel::sql_query(
        "INSERT INTO timers (name, next_time) VALUES ($1, $3) \
         ON CONFLICT (name) DO UPDATE SET next_time = excluded.next_time WHERE timers.next_time <= $2",
    )
    .bind::<Text, _>(name)
    .bind::<Timestamptz, _>(now)
    .bind::<Timestamptz, _>(next)
    .execute(conn)
    .await?;
    Ok(taken == 1)
}

/// When a timer is next due.
pub async fn next(conn: &mut AsyncPgConnection, name: &str) -> Result<Option<OffsetDateTime>> {
    let row: Option<Row> = diesel::sql_query("SELECT next_time FROM timers WHERE name = $1")
        .bind::<Text, _>(name)
        .get_result(conn)
        .await
        .optional()?;
    Ok(row.map(|row| row.next_time))
}

/// Makes a timer that was taken due again: what it stands for could not be done.
pub async fn put_back(conn: &mut AsyncPgConnection, name: &str, now: OffsetDateTime) -> Result<()> {
    diesel::sql_query("UPDATE timers SET next_time = LEAST(next_time, $2) WHERE name = $1")
        .bind::<Text, _>(name)
        .bind::<Timestamptz, _>(now)
        .execute(conn)
        .await?;
    Ok(())
}
