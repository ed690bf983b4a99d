//! Rows of timers: when work that runs at fixed intervals is next due. The process that moves the time forward does the
//! work. For the system role.

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

/// Claims a timer that is due at `now`, or new, and sets it to `next`. Returns `true` to one caller only.
pub async fn claim(
    conn: &mut AsyncPgConnection,
    name: &str,
    now: OffsetDateTime,
    next: OffsetDateTime,
) -> Result<bool> {
    let claimed = diesel::sql_query(
        "INSERT INTO timers (name, next_time) VALUES ($1, $3) \
         ON CONFLICT (name) DO UPDATE SET next_time = excluded.next_time WHERE timers.next_time <= $2",
    )
    .bind::<Text, _>(name)
    .bind::<Timestamptz, _>(now)
    .bind::<Timestamptz, _>(next)
    .execute(conn)
    .await?;
    Ok(claimed == 1)
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

/// Makes a claimed timer due again, because its work failed.
pub async fn make_due(conn: &mut AsyncPgConnection, name: &str, now: OffsetDateTime) -> Result<()> {
    diesel::sql_query("UPDATE timers SET next_time = LEAST(next_time, $2) WHERE name = $1")
        .bind::<Text, _>(name)
        .bind::<Timestamptz, _>(now)
        .execute(conn)
        .await?;
    Ok(())
}
