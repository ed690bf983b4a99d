//! What is checked of a database before a process works with it: that it is Postgres of a version that we know, that
//! prepared statements stay with their connection, that its schema is one this release can work with, and that what is
//! sealed in it opens with our keys.

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

/// The oldest Postgres whose features the statements and the migrations use.
const POSTGRES_MIN: u32 = 15;
/// How often two connections are watched for a pooler between them and the server: a busy one may hide once or twice.
const PROBES: usize = 8;

/// The setting that an address comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Setting {
    /// That of the pool, and of commands.
    DatabaseUrl,
    /// That of LISTEN.
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
    /// What another connection must not see a statement prepared as: under the driver's own names, since processes use the
    /// same ones. LISTEN needs its server connection for itself, so for that under no name at all.
    fn names_not_to_see(self) -> &'static str {
        match self {
            Self::DatabaseUrl => "^s[0-9]+$",
            Self::DirectDatabaseUrl => "",
        }
    }
}

/// What keeps a process from its work.
#[derive(Debug)]
pub enum Obstacle {
    /// It may be removed while the process waits: the database is away, or lacks migrations.
    Temporary(anyhow::Error),
    /// The process needs other settings.
    Permanent(anyhow::Error),
}

impl Obstacle {
    /// What it is, and what to do about it.
    pub fn into_error(self) -> anyhow::Error {
        match self {
            Self::Temporary(error) | Self::Permanent(error) => error,
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Obstacle {
    fn from(error: E) -> Self {
        Self::Temporary(error.into())
    }
}

type Checked<T = ()> = Result<T, Obstacle>;

/// Checks all of it for a process that serves: `url` is the pool's address, `direct_url` that of LISTEN. Changes nothing,
/// but notes each key of `sealer` that the database has not seen.
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
    match migrate::schema(url).await? {
        migrate::Schema::Known => Ok(()),
        migrate::Schema::Behind { missing } => Err(Obstacle::Temporary(anyhow!(
            "the database lacks migrations of this release (the first is {missing}): run `paybridge migrate` with it"
        ))),
        migrate::Schema::TooNew { minimum, newest } => Err(Obstacle::Temporary(anyhow!(
            "the database serves releases from migration {minimum} on, and {newest} is the last that this one knows: run a \
             newer release of Paybridge"
        ))),
    }
}

/// Checks the server behind an address, and the way to it.
pub(super) async fn check_server(url: &str, setting: Setting) -> Checked {
    let address = Address::parse(url).map_err(|sentence| Obstacle::Permanent(anyhow!("{setting} {sentence}")))?;
    let one = connect(&address, setting).await?;
    let other = connect(&address, setting).await?;
    let shared = is_shared(&one, &other, setting.names_not_to_see()).await;
    if shared.with_context(|| format!("{setting} could not be checked for a pooler"))? {
        return Err(Obstacle::Permanent(anyhow!(
            "{setting} leads to a connection pooler that gives one connection's prepared statements to another (PgBouncer's \
             pool_mode=transaction or statement): a wrong statement might run. Use pool_mode=session, or the address of \
             Postgres itself"
        )));
    }
    Ok(())
}

async fn connect(address: &Address, setting: Setting) -> Checked<Client> {
    let connected = address.connect().await;
    let (client, driver) = connected.with_context(|| format!("the database can't be reached; check {setting}"))?;
    let version = driver.parameter("server_version").unwrap_or_default().to_owned();
    tokio::spawn(driver);
    if is_too_old(&version) {
        return Err(Obstacle::Permanent(anyhow!(
            "{setting} leads to Postgres {version}; Paybridge needs {POSTGRES_MIN} or newer"
        )));
    }
    Ok(client)
}

/// A version that can't be read is nobody's that we know to be too old.
fn is_too_old(version: &str) -> bool {
    let digits = version.split(|letter: char| !letter.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().is_ok_and(|major: u32| major < POSTGRES_MIN)
}

/// Whether a server connection that `one` prepared a statement on serves `other`, too, or another one serves `one`, so that
/// the statement is missing. A pooler that names statements anew for each client (PgBouncer from 1.21 on, with
/// max_prepared_statements) passes.
async fn is_shared(one: &Client, other: &Client, names: &str) -> anyhow::Result<bool> {
    for _ in 0..PROBES {
        let mut mark = [0; 16];
        getrandom::fill(&mut mark)?;
        let mark = hex::encode(mark);
        let statement = match one.prepare(&format!("SELECT 1 /* paybridge {mark} */")).await {
            Ok(statement) => statement,
            // Another client's, under the name that we have just chosen.
            Err(error) if error.code() == Some(&SqlState::DUPLICATE_PSTATEMENT) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        // The simple protocol prepares nothing.
        let look =
            format!("SELECT name FROM pg_prepared_statements WHERE statement LIKE '%{mark}%' AND name ~ '{names}'");
        let seen = other.simple_query(&look).await?;
        if seen.iter().any(|message| matches!(message, SimpleQueryMessage::Row(_))) {
            return Ok(true);
        }
        match one.query_one(&statement, &[]).await {
            Ok(_) => {}
            Err(error) if error.code() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// A secret as it is stored.
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

/// Checks that each key that sealed something is in the ring, and is the same as then.
async fn check_keys(url: &str, sealer: &Sealer) -> Checked {
    let mut connection = migrate::connected(url).await?;
    connection.batch_execute("SET ROLE paybridge_system").await?;
    check_samples(&mut connection, sealer).await?;
    // Before anything is noted, so that a ring that is refused leaves nothing behind; and after it, since of two first
    // processes with different keys the second finds the canary of the first.
    check_canaries(&mut connection, sealer).await?;
    note_canaries(&mut connection, sealer).await?;
    check_canaries(&mut connection, sealer).await
}

async fn check_samples(connection: &mut AsyncPgConnection, sealer: &Sealer) -> Checked {
    let samples: Vec<Sample> = diesel::sql_query("SELECT * FROM sealed_samples()").load(connection).await?;
    let ids = sealer.key_ids().collect::<BTreeSet<_>>();
    let missing = samples.iter().map(|sample| &*sample.key_id).filter(|id| !ids.contains(id)).collect::<Vec<_>>();
    if !missing.is_empty() {
        return Err(Obstacle::Permanent(anyhow!(
            "PAYBRIDGE_ENCRYPTION_KEYS lacks the key `{}`, under which secrets of integrations are sealed: put it back, after \
             the first one",
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
            return Err(another_key(&sample.key_id));
        }
    }
    Ok(())
}

/// Notes the keys that this database has not seen.
async fn note_canaries(connection: &mut AsyncPgConnection, sealer: &Sealer) -> Checked {
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
    let is_other = |it: &&Canary| ids.contains(&*it.key_id) && !sealer.opens_canary(&it.canary);
    known.iter().find(is_other).map_or(Ok(()), |it| Err(another_key(&it.key_id)))
}

fn another_key(id: &str) -> Obstacle {
    Obstacle::Permanent(anyhow!(
        "the key `{id}` in PAYBRIDGE_ENCRYPTION_KEYS is not the one that this database knows by that id: put that one back, or \
         give the new one an id of its own"
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
