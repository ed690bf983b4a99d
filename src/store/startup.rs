//! Checks of a database before a process works with it: the version of Postgres is supported, no pooler moves prepared
//! statements between connections, this release can work with the schema, the database belongs to the process's
//! installation, and the process's keys open what is sealed in it.

use std::collections::BTreeSet;

use anyhow::anyhow;
use diesel::QueryableByName;
use diesel::sql_types::{Binary, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use uuid::Uuid;

use super::seal::{Place, Sealer};
pub use super::server_check::StartupError;
use super::server_check::{Checked, Setting, check_server};
use super::{installation, migrate};

/// Runs all checks, for a process of the installation `name` that serves: `url` is the pool's address, `direct_url` the
/// address for LISTEN. The only changes are those that a database undergoes after it was restored, failed over or
/// copied, and that each new key of `sealer` is recorded.
pub async fn check(url: &str, direct_url: &str, name: &str, sealer: &Sealer) -> Checked {
    check_schema(url).await?;
    check_installation(url, name).await?;
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

async fn check_installation(url: &str, name: &str) -> Checked {
    let mut connection = migrate::connect(url).await?;
    connection.batch_execute("SET ROLE paybridge_system").await?;
    match installation::name(&mut connection).await? {
        None => Err(StartupError::Temporary(anyhow!(
            "the database does not say which installation it belongs to: run `paybridge migrate`"
        ))),
        Some(known) if known != name => Err(StartupError::Permanent(installation::other_name(&known, name))),
        // The pool does the same, but gives up after 5 s: this may take longer where there are many jobs.
        Some(_) => Ok(installation::check_identity(&mut connection).await?),
    }
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
