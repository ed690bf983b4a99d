//! Migrations, embedded in the binary, run as `paybridge_owner`.

use anyhow::Context;
use diesel_async::{AsyncConnection, AsyncMigrationHarness, AsyncPgConnection, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// The SQL that makes the three roles; a database administrator runs it where the migrating user may not.
pub const ROLES_SQL: &str = include_str!("../../migrations/roles.sql");

/// Makes the roles if they are missing, and runs what migrations are pending; returns their names. Needs the
/// multi-thread runtime.
pub async fn run(database_url: &str) -> anyhow::Result<Vec<String>> {
    let mut connection = AsyncPgConnection::establish(database_url)
        .await
        .context("the database can't be reached; check DATABASE_URL")?;
    connection.batch_execute(ROLES_SQL).await.context(
        "the three roles could not be made; let a database administrator run `paybridge migrate --print-roles` as SQL",
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
    Ok(versions)
}

/// Whether every migration of this binary has been run.
pub async fn is_current(database_url: &str) -> anyhow::Result<bool> {
    let mut connection = AsyncPgConnection::establish(database_url)
        .await
        .context("the database can't be reached; check DATABASE_URL")?;
    if connection.batch_execute("SELECT FROM __diesel_schema_migrations LIMIT 1").await.is_err() {
        return Ok(false);
    }
    let mut harness = AsyncMigrationHarness::new(connection);
    let pending = harness
        .has_pending_migration(MIGRATIONS)
        .map_err(|error| anyhow::anyhow!("the migrations can't be read: {error}"))?;
    Ok(!pending)
}
