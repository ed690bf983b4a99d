//! Checks of a database before a process works with it: the version of Postgres is supported, no pooler moves prepared
//! statements between connections, this release can work with the schema, and the process's keys open what is sealed in
//! it.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, anyhow};
use diesel::QueryableByName;
use diesel::sql_types::{Binary, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};
use uuid::Uuid;

use super::connect::Address;
use super::migrate;
use super::seal::{Place, Sealer};

/// The oldest supported version of Postgres.
const POSTGRES_MIN: u32 = 15;
/// How many times two connections are probed for a pooler: a busy pooler may escape one or two probes.
const PROBES: usize = 8;

/// The setting that contains an address.
#[derive(Clone, Copy, Debug)]
pub(super) enum Setting {
    /// For the pool and for commands.
    DatabaseUrl,
    /// For LISTEN.
    DirectDatabaseUrl,
}

impl fmt::Display for Setting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::DatabaseUrl => "DATABASE_URL",
            Self::DirectDatabaseUrl => "PAYBRIDGE_DIRECT_DATABASE_URL",
        })
    }
}

impl Setting {
    /// A regular expression: another connection must not see a prepared statement with such a name. For the pool these
    /// are the driver's own names, since all processes use the same ones. LISTEN needs a server connection of its own:
    /// any name.
    fn exclusive_names(self) -> &'static str {
        match self {
            Self::DatabaseUrl => "^s[0-9]+$",
            Self::DirectDatabaseUrl => "",
        }
    }
}

/// Why a process cannot start to work.
#[derive(Debug)]
pub enum StartupError {
    /// May pass while the process waits: the database is unavailable, or lacks migrations.
    Temporary(anyhow::Error),
    /// Needs a change of settings.
    Permanent(anyhow::Error),
}

impl StartupError {
    /// The cause, with what to do about it.
    pub fn into_error(self) -> anyhow::Error {
        match self {
            Self::Temporary(error) | Self::Permanent(error) => error,
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for StartupError {
    fn from(error: E) -> Self {
        Self::Temporary(error.into())
    }
}

type Checked<T = ()> = Result<T, StartupError>;

/// Runs all checks, for a process that serves: `url` is the pool's address, `direct_url` the address for LISTEN. The
/// only change is that each new key of `sealer` is recorded in the database.
pub async fn check(url: &str, direct_url: &str, sealer: &Sealer) -> Checked {
    check_schema(url).await?;
    if direct_url != url {
        check_server(direct_url, Setting::DirectDatabaseUrl).await?;
    }
    check_keys(url, sealer).await
}

/// Checks the server and the schema, for commands that need no key.
pub async fn check_schema(url: &str) -> Checked {
    check_server(url, Setting::DatabaseUrl).await?;
    match migrate::check_schema(url).await? {
        migrate::Schema::Supported => Ok(()),
        migrate::Schema::Behind { missing } => Err(StartupError::Temporary(anyhow!(
            "the database lacks migrations of this release (the first is {missing}): run `paybridge migrate` with it"
        ))),
        migrate::Schema::TooNew { minimum, newest } => Err(StartupError::Temporary(anyhow!(
            "the database needs a release that knows migration {minimum}, and the newest that this one knows is \
             {newest}: run a newer release of Paybridge"
        ))),
    }
}

/// Checks the server's version, and that no unsuitable pooler is in front of it.
pub(super) async fn check_server(url: &str, setting: Setting) -> Checked {
    let address = Address::parse(url).map_err(|sentence| StartupError::Permanent(anyhow!("{setting} {sentence}")))?;
    let first = connect(&address, setting).await?;
    let second = connect(&address, setting).await?;
    let shared = is_shared(&first, &second, setting.exclusive_names()).await;
    if shared.with_context(|| format!("{setting} could not be checked for a pooler"))? {
        return Err(StartupError::Permanent(anyhow!(
            "{setting} leads to a connection pooler that gives one connection's prepared statements to another \
             (PgBouncer's pool_mode=transaction or statement): a wrong statement might run. Use pool_mode=session, or \
             the address of Postgres itself"
        )));
    }
    Ok(())
}

async fn connect(address: &Address, setting: Setting) -> Checked<Client> {
    let connected = address.connect().await;
    let (client, driver) = connected.with_context(|| format!("the database cannot be reached; check {setting}"))?;
    let version = driver.parameter("server_version").unwrap_or_default().to_owned();
    tokio::spawn(driver);
    if is_too_old(&version) {
        return Err(StartupError::Permanent(anyhow!(
            "{setting} leads to Postgres {version}; Paybridge needs {POSTGRES_MIN} or newer"
        )));
    }
    Ok(client)
}

/// A version that cannot be parsed is accepted.
fn is_too_old(version: &str) -> bool {
    let digits = version.split(|letter: char| !letter.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().is_ok_and(|major: u32| major < POSTGRES_MIN)
}

/// Whether clients share server connections: `second` sees a statement that `first` has prepared, or `first` no longer
/// finds it. A pooler that renames statements for each client passes (PgBouncer from 1.21 on, with
/// max_prepared_statements).
async fn is_shared(first: &Client, second: &Client, names: &str) -> anyhow::Result<bool> {
    for _ in 0..PROBES {
        let mut marker = [0; 16];
        getrandom::fill(&mut marker)?;
        let marker = hex::encode(marker);
        let statement = match first.prepare(&format!("SELECT 1 /* paybridge {marker} */")).await {
            Ok(statement) => statement,
            // Another client has prepared a statement under the same name.
            Err(error) if error.code() == Some(&SqlState::DUPLICATE_PSTATEMENT) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        // The simple protocol prepares nothing.
        let query =
            format!("SELECT name FROM pg_prepared_statements WHERE statement LIKE '%{marker}%' AND name ~ '{names}'");
        let seen = second.simple_query(&query).await?;
        if seen.iter().any(|message| matches!(message, SimpleQueryMessage::Row(_))) {
            return Ok(true);
        }
        match first.query_one(&statement, &[]).await {
            Ok(_) => {}
            Err(error) if error.code() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// A sealed secret.
#[derive(QueryableByName)]
struct Sample {
    #[diesel(sql_type = Text)]
    key_id: String,
    #[diesel(sql_type = SqlUuid)]
    organization_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    integration_id: Uuid,
    #[diesel(sql_type = Text)]
    column_name: String,
    #[diesel(sql_type = Binary)]
    sealed: Vec<u8>,
}

#[derive(QueryableByName)]
struct Canary {
    #[diesel(sql_type = Text)]
    key_id: String,
    #[diesel(sql_type = Binary)]
    canary: Vec<u8>,
}

/// Checks that every key that sealed a secret is in the ring and has not changed.
async fn check_keys(url: &str, sealer: &Sealer) -> Checked {
    let mut connection = migrate::connect(url).await?;
    connection.batch_execute("SET ROLE paybridge_system").await?;
    check_samples(&mut connection, sealer).await?;
    // Before new keys are recorded, so that a rejected ring leaves nothing behind. And after it: if two first processes
    // start with different keys under one id, the second finds the canary of the first.
    check_canaries(&mut connection, sealer).await?;
    insert_canaries(&mut connection, sealer).await?;
    check_canaries(&mut connection, sealer).await
}

async fn check_samples(connection: &mut AsyncPgConnection, sealer: &Sealer) -> Checked {
    let samples: Vec<Sample> = diesel::sql_query("SELECT * FROM sealed_samples()").load(connection).await?;
    let ids = sealer.key_ids().collect::<BTreeSet<_>>();
    let missing = samples.iter().map(|sample| &*sample.key_id).filter(|id| !ids.contains(id)).collect::<Vec<_>>();
    if !missing.is_empty() {
        return Err(StartupError::Permanent(anyhow!(
            "PAYBRIDGE_ENCRYPTION_KEYS lacks the key `{}`, which seals secrets of integrations: put it back, after the \
             first key",
            missing.join("`, `")
        )));
    }
    for sample in samples {
        let place = Place {
            organization_id: sample.organization_id.into(),
            integration_id: sample.integration_id.into(),
            column: &sample.column_name,
        };
        if sealer.open(&sample.sealed, place).is_err() {
            return Err(different_key(&sample.key_id));
        }
    }
    Ok(())
}

/// Records the keys that are new to this database.
async fn insert_canaries(connection: &mut AsyncPgConnection, sealer: &Sealer) -> Checked {
    for id in sealer.key_ids() {
        let canary = sealer.canary(id).map_err(anyhow::Error::new)?;
        diesel::sql_query(
            "INSERT INTO encryption_keys (key_id, canary) VALUES ($1, $2) ON CONFLICT (key_id) DO NOTHING",
        )
        .bind::<Text, _>(id)
        .bind::<Binary, _>(canary)
        .execute(connection)
        .await?;
    }
    Ok(())
}

async fn check_canaries(connection: &mut AsyncPgConnection, sealer: &Sealer) -> Checked {
    let known: Vec<Canary> = diesel::sql_query("SELECT key_id, canary FROM encryption_keys").load(connection).await?;
    let ids = sealer.key_ids().collect::<BTreeSet<_>>();
    let is_different = |it: &&Canary| ids.contains(&*it.key_id) && !sealer.opens_canary(&it.canary);
    known.iter().find(is_different).map_or(Ok(()), |it| Err(different_key(&it.key_id)))
}

fn different_key(id: &str) -> StartupError {
    StartupError::Permanent(anyhow!(
        "the key `{id}` in PAYBRIDGE_ENCRYPTION_KEYS differs from the one that this database knows by that id: put \
         the old key back, or give the new one an id of its own"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_is_too_old_by_its_major_version() {
        for (version, expected) in [
            ("14.9 (Debian 14.9-1)", true),
            ("9.6.24", true),
            ("15.18 (Debian 15.18-0+deb12u1)", false),
            ("18beta2", false),
            ("18.4", false),
            ("", false),
        ] {
            assert_eq!(is_too_old(version), expected, "{version}");
        }
    }
}
