//! Backups of a database, for tests and chaos runs: a snapshot, its restoration, and a copy that lives next to the
//! original. All are made by SQL on the maintenance database, because the embedded Postgres has no `pg_dump`. As after
//! `pg_dump` and `pg_restore`, a restored database has another oid.

use anyhow::{Context, Result};
use tokio_postgres::{Client, NoTls};

use super::postgres::Postgres;
use super::test_environment::LOGIN;

/// How often the sessions of a database are ended before an operation fails: one that is being opened is not listed
/// yet.
const ATTEMPTS_MAX: u32 = 5;

/// Ends the sessions of a database, and waits for their processes.
const END_SESSIONS: &str = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = $1";

/// A superuser's connection to the maintenance database. Names of databases are lower-case identifiers.
pub struct Administrator {
    client: Client,
}

impl Administrator {
    /// Connects to a server.
    pub async fn connect(server: &Postgres) -> Result<Self> {
        Self::connect_to(&server.connection_string("postgres")).await
    }

    /// Connects with the superuser's connection string of the maintenance database.
    pub async fn connect_to(address: &str) -> Result<Self> {
        let (client, connection) =
            tokio_postgres::connect(address, NoTls).await.context("the maintenance database is unavailable")?;
        // The task ends with the client.
        tokio::spawn(connection);
        Ok(Self { client })
    }

    /// Keeps the present state of a database as its snapshot, in place of an earlier one. Its connections are terminated.
    pub async fn snapshot(&self, database: &str) -> Result<()> {
        self.copy(database, &format!("{database}_snapshot")).await
    }

    /// Replaces a database with its snapshot, which is kept. Its sessions are cut, and what was committed since the
    /// snapshot is lost.
    pub async fn restore(&self, database: &str) -> Result<()> {
        let (snapshot, replaced) = (format!("{database}_snapshot"), format!("{database}_replaced"));
        self.run(&format!("DROP DATABASE IF EXISTS {replaced}")).await?;
        let renamed =
            self.run_without_sessions(database, &format!("ALTER DATABASE {database} RENAME TO {replaced}")).await;
        if renamed.is_err() {
            self.accept_sessions(database).await?;
        }
        renamed?;
        self.run(&format!("CREATE DATABASE {database} OWNER {LOGIN} TEMPLATE {snapshot}")).await
    }

    /// Makes a second database of the present state of a database, in place of an earlier one. The sessions of the
    /// original are cut.
    pub async fn copy(&self, database: &str, copy: &str) -> Result<()> {
        self.run(&format!("DROP DATABASE IF EXISTS {copy}")).await?;
        let create = format!("CREATE DATABASE {copy} OWNER {LOGIN} TEMPLATE {database}");
        let created = self.run_without_sessions(database, &create).await;
        self.accept_sessions(database).await.and(created)
    }

    /// Ends the sessions of a database, which accepts none from then on.
    pub async fn close(&self, database: &str) -> Result<()> {
        self.run_without_sessions(database, "SELECT").await
    }

    /// Runs a statement that requires a database without sessions. The database accepts none from then on.
    async fn run_without_sessions(&self, database: &str, statement: &str) -> Result<()> {
        self.run(&format!("ALTER DATABASE {database} ALLOW_CONNECTIONS false")).await?;
        let mut attempts = 0;
        loop {
            self.client.query(END_SESSIONS, &[&database]).await.context("the sessions cannot be ended")?;
            attempts += 1;
            match self.run(statement).await {
                Err(error) if attempts < ATTEMPTS_MAX => tracing::info!(attempts, "a database has sessions: {error:#}"),
                last => return last,
            }
        }
    }

    async fn accept_sessions(&self, database: &str) -> Result<()> {
        self.run(&format!("ALTER DATABASE {database} ALLOW_CONNECTIONS true")).await
    }

    async fn run(&self, statement: &str) -> Result<()> {
        self.client.batch_execute(statement).await.with_context(|| format!("`{statement}` failed"))
    }
}
