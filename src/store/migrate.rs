//! The migrations, embedded in the binary. They run as `paybridge_owner`.

use anyhow::Context;
use diesel::QueryableByName;
use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_types::{Nullable, Text};
use diesel_async::{AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::connect::Address;
use super::installation;
use super::server_check::{Setting, StartupError, check_server};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// Creates the three roles and grants them to the current user.
const ROLES_SQL: &str = include_str!("../../migrations/roles.sql");

/// The SQL that creates the three roles and grants them to `user`, for a database administrator to run.
pub fn roles_sql(user: &str) -> String {
    let literal = format!("'{}'", user.replace('\'', "''"));
    ROLES_SQL.replacen("current_user", &literal, 1)
}

/// Creates missing roles and runs pending migrations; returns the names of those that ran. The first run also records
/// that the database belongs to the installation `name`. A server that is not supported, and a database of another
/// installation, are refused before anything changes. Needs the multi-thread runtime.
pub async fn run(database_url: &str, name: &str) -> anyhow::Result<Vec<String>> {
    check_server(database_url, Setting::DatabaseUrl).await.map_err(StartupError::into_error)?;
    let mut connection = connect(database_url).await?;
    connection.batch_execute(ROLES_SQL).await.context(
        "the three roles could not be created or granted; have a database administrator run, in this database, the \
         SQL that `paybridge migrate --print-roles --for USER` prints for the user in DATABASE_URL",
    )?;
    // One migrator at a time: the others wait, and then find nothing to do.
    connection.batch_execute("SELECT pg_advisory_lock(7031966120773001); SET ROLE paybridge_owner").await?;
    if let Some(known) = installation::name(&mut connection).await?.filter(|known| known != name) {
        return Err(installation::other_name(&known, name));
    }
    let mut harness = AsyncMigrationHarness::new(connection);
    let versions = harness
        .run_pending_migrations(MIGRATIONS)
        .map_err(|error| anyhow::anyhow!("a migration failed: {error}"))?
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut connection = harness.into_inner();
    connection.batch_execute("GRANT SELECT ON __diesel_schema_migrations TO paybridge_app").await?;
    installation::insert(&mut connection, name).await?;
    Ok(versions)
}

/// Whether this release can work with a database's schema.
pub(super) enum Schema {
    /// Every migration of this release has run, and possibly some of newer releases.
    Supported,
    /// Some migrations of this release have not run.
    Behind {
        /// The first of them.
        missing: String,
    },
    /// A newer release has removed what this one needs.
    TooNew {
        /// The newest migration of the oldest release that can work with the schema.
        minimum: String,
        /// The newest migration of this release.
        newest: String,
    },
}

/// Checks the schema with the rights of a serving process, which can only read it.
pub(super) async fn check_schema(database_url: &str) -> anyhow::Result<Schema> {
    let mut ours = MigrationSource::<Pg>::migrations(&MIGRATIONS)
        .map_err(|error| anyhow::anyhow!("the embedded migrations cannot be read: {error}"))?
        .iter()
        .map(|migration| migration.name().version().to_string())
        .collect::<Vec<_>>();
    ours.sort();
    let newest = ours.last().cloned().context("a release has migrations")?;
    let mut connection = connect(database_url).await?;
    let table: Row = diesel::sql_query("SELECT to_regclass('__diesel_schema_migrations')::text AS value")
        .get_result(&mut connection)
        .await?;
    if table.value.is_none() {
        return Ok(Schema::Behind { missing: ours.swap_remove(0) });
    }
    connection.batch_execute("SET ROLE paybridge_system; SET ROLE paybridge_app").await.context(
        "the user in DATABASE_URL must be a member of the roles paybridge_app and paybridge_system: \
         GRANT paybridge_app, paybridge_system TO …",
    )?;
    let applied: Vec<Row> =
        diesel::sql_query("SELECT version AS value FROM __diesel_schema_migrations").load(&mut connection).await?;
    let is_applied = |version: &String| applied.iter().any(|row| row.value.as_ref() == Some(version));
    if let Some(missing) = ours.into_iter().find(|version| !is_applied(version)) {
        return Ok(Schema::Behind { missing });
    }
    connection.batch_execute("SET ROLE paybridge_system").await?;
    let minimum: Row =
        diesel::sql_query("SELECT version AS value FROM schema_minimum").get_result(&mut connection).await?;
    let minimum = minimum.value.unwrap_or_default();
    Ok(if minimum > newest { Schema::TooNew { minimum, newest } } else { Schema::Supported })
}

pub(super) async fn connect(database_url: &str) -> anyhow::Result<AsyncPgConnection> {
    let address = Address::parse(database_url).map_err(|sentence| anyhow::anyhow!("DATABASE_URL {sentence}"))?;
    address.establish().await.context("the database cannot be reached; check DATABASE_URL")
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Nullable<Text>)]
    value: Option<String>,
}
