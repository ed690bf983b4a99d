//! Migrations, embedded in the binary, run as `paybridge_owner`.

use anyhow::Context;
use diesel::QueryableByName;
use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_types::{Nullable, Text};
use diesel_async::{AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::connect::Address;
use super::startup::{Obstacle, Setting, check_server};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// The SQL that makes the three roles and grants them to the user that runs it.
const ROLES_SQL: &str = include_str!("../../migrations/roles.sql");

/// The SQL by which a database administrator makes the three roles and grants them to `user`, where that user may not.
pub fn roles_sql(user: &str) -> String {
    let literal = format!("'{}'", user.replace('\'', "''"));
    ROLES_SQL.replacen("current_user", &literal, 1)
}

/// Makes the roles if they are missing, and runs what migrations are pending; returns their names. A server that can't be
/// worked with is refused before anything is changed. Needs the multi-thread runtime.
pub async fn run(database_url: &str) -> anyhow::Result<Vec<String>> {
    check_server(database_url, Setting::DatabaseUrl).await.map_err(Obstacle::into_error)?;
    let mut connection = connected(database_url).await?;
    connection.batch_execute(ROLES_SQL).await.context(
        "the three roles could not be made or granted; let a database administrator run, in this database, the SQL that \
         `paybridge migrate --print-roles --for USER` prints, with the user of DATABASE_URL",
    )?;
    // One migrator at a time; the others wait, and find nothing left to do.
    connection.batch_execute("SELECT pg_advisory_lock(7031966120773001); SET ROLE paybridge_owner").await?;
    let mut harness = AsyncMigrationHarness::new(connection);
    let versions = harness
        .run_pending_migrations(MIGRATIONS)
        .map_err(|error| anyhow::anyhow!("a migration failed: {error}"))?
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut connection = harness.into_inner();
    connection.batch_execute("GRANT SELECT ON __diesel_schema_migrations TO paybridge_app").await?;
    Ok(versions)
}

/// How the schema of a database suits this release.
pub(super) enum Schema {
    /// Every migration of this release has been run. Those of newer releases may have been, too.
    Known,
    /// Some have not.
    Behind {
        /// The first of them.
        missing: String,
    },
    /// Newer releases have taken away what this one needs.
    TooNew {
        /// The newest migration that the oldest release which still fits knows.
        minimum: String,
        /// The newest one that this release knows.
        newest: String,
    },
}

/// Looks at the schema as whoever serves, who may read it and change nothing.
pub(super) async fn schema(database_url: &str) -> anyhow::Result<Schema> {
    let mut ours = MigrationSource::<Pg>::migrations(&MIGRATIONS)
        .map_err(|error| anyhow::anyhow!("the migrations can't be read: {error}"))?
        .iter()
        .map(|migration| migration.name().version().to_string())
        .collect::<Vec<_>>();
    ours.sort();
    let newest = ours.last().cloned().context("a release has migrations")?;
    let mut connection = connected(database_url).await?;
    let is_there: Row = diesel::sql_query("SELECT to_regclass('__diesel_schema_migrations')::text AS value")
        .get_result(&mut connection)
        .await?;
    if is_there.value.is_none() {
        return Ok(Schema::Behind { missing: ours.swap_remove(0) });
    }
    connection.batch_execute("SET ROLE paybridge_system; SET ROLE paybridge_app").await.context(
        "the user in DATABASE_URL must be a member of the roles paybridge_app and paybridge_system: \
         GRANT paybridge_app, paybridge_system TO …",
    )?;
    let run: Vec<Row> =
        diesel::sql_query("SELECT version AS value FROM __diesel_schema_migrations").load(&mut connection).await?;
    let is_run = |version: &String| run.iter().any(|row| row.value.as_ref() == Some(version));
    if let Some(missing) = ours.into_iter().find(|version| !is_run(version)) {
        return Ok(Schema::Behind { missing });
    }
    connection.batch_execute("SET ROLE paybridge_system").await?;
    let minimum: Row =
        diesel::sql_query("SELECT version AS value FROM schema_minimum").get_result(&mut connection).await?;
    let minimum = minimum.value.unwrap_or_default();
    Ok(if minimum > newest { Schema::TooNew { minimum, newest } } else { Schema::Known })
}

pub(super) async fn connected(database_url: &str) -> anyhow::Result<AsyncPgConnection> {
    let address = Address::parse(database_url).map_err(|sentence| anyhow::anyhow!("DATABASE_URL {sentence}"))?;
    address.establish().await.context("the database can't be reached; check DATABASE_URL")
}

/// A text.
#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Nullable<Text>)]
    value: Option<String>,
}
