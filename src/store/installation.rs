//! The installation that a database belongs to, and where the database is. A database that was restored, failed over or
//! copied is somewhere else than when it was last used: its function `check_identity` notices that.

use anyhow::anyhow;
use diesel::sql_types::{Bool, Nullable, Text};
use diesel::{OptionalExtension as _, QueryResult, QueryableByName};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Nullable<Text>)]
    value: Option<String>,
}

/// The name of the installation; `None` until the first `paybridge migrate` has written it. For the owner and the
/// system role.
pub(super) async fn name(connection: &mut AsyncPgConnection) -> QueryResult<Option<String>> {
    let table: Row =
        diesel::sql_query("SELECT to_regclass('installation')::text AS value").get_result(connection).await?;
    if table.value.is_none() {
        return Ok(None);
    }
    let row: Option<Row> =
        diesel::sql_query("SELECT name AS value FROM installation").get_result(connection).await.optional()?;
    Ok(row.and_then(|row| row.value))
}

/// Writes the name, unless there is one. For the owner.
pub(super) async fn insert(connection: &mut AsyncPgConnection, name: &str) -> QueryResult<()> {
    diesel::sql_query(
        "INSERT INTO installation (name, system_identifier, timeline, database_oid, table_oid, incarnation) \
         SELECT $1, present.*, gen_random_uuid() FROM present_identity() AS present ON CONFLICT DO NOTHING",
    )
    .bind::<Text, _>(name)
    .execute(connection)
    .await?;
    Ok(())
}

/// The error for a process of another installation than the database's.
pub(super) fn other_name(database: &str, process: &str) -> anyhow::Error {
    anyhow!(
        "the database belongs to the installation `{database}`, but this process was started for `{process}`: set \
         --installation (PAYBRIDGE_INSTALLATION) to `{database}`; or, if this database is a copy that shall become an \
         installation of its own, stop its processes and run `paybridge adopt --installation {process}`"
    )
}

/// Whether [`check_identity`] would find a change. For the system role.
pub(super) async fn has_moved(connection: &mut AsyncPgConnection) -> QueryResult<bool> {
    #[derive(QueryableByName)]
    struct Place {
        #[diesel(sql_type = Bool)]
        has_moved: bool,
    }
    let place: Place = diesel::sql_query(
        "SELECT NOT EXISTS (SELECT FROM installation JOIN present_identity() AS present \
             USING (system_identifier, timeline, database_oid, table_oid)) AS has_moved",
    )
    .get_result(connection)
    .await?;
    Ok(place.has_moved)
}

/// Compares the place of the database with that of its last use. If it is another one, every integration catches up
/// with Stripe, every event log gets another id, and all leases are lost. The process that finds a change logs it.
pub(super) async fn check_identity(connection: &mut AsyncPgConnection) -> QueryResult<()> {
    connection.batch_execute("SET ROLE paybridge_system").await?;
    let change: Row = diesel::sql_query("SELECT check_identity() AS value").get_result(connection).await?;
    connection.batch_execute("RESET ROLE").await?;
    if let Some(change) = change.value {
        tracing::warn!(change, "the database was restored, failed over or copied: integrations catch up with Stripe");
    }
    Ok(())
}
