//! Makes a copy of a database an installation of its own. Runs as `paybridge_owner`, like the migrations.

use anyhow::{Context, Result, bail};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use super::{installation, migrate};

/// A database, as its adoption is confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adoptable {
    /// The installation that it belongs to.
    pub name: String,
    /// The integrations that would be disconnected.
    pub integrations: i64,
}

/// Reads what [`adopt`] would change. Fails if the database belongs to the installation `to` already.
pub async fn adoptable(database_url: &str, to: &str) -> Result<Adoptable> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    let mut connection = connect_as_owner(database_url).await?;
    let name = installation::name(&mut connection).await?;
    let name = name.context("the database belongs to no installation yet: run `paybridge migrate`")?;
    if name == to {
        bail!("the database belongs to the installation `{to}` already; nothing was changed");
    }
    let live: Count = diesel::sql_query("SELECT count(*) AS count FROM integrations WHERE state <> 'disconnected'")
        .get_result(&mut connection)
        .await?;
    Ok(Adoptable { name, integrations: live.count })
}

/// Makes a copy of the installation `from` an installation of its own, `to`. Disconnects every integration here and
/// leaves Stripe alone: the objects there belong to `from`. Returns how many integrations were disconnected.
pub async fn adopt(database_url: &str, from: &str, to: &str) -> Result<usize> {
    let mut connection = connect_as_owner(database_url).await?;
    // Without COMMIT, the transaction ends with the connection.
    connection.batch_execute("BEGIN").await?;
    let renamed = diesel::sql_query(
        "UPDATE installation SET name = $2, incarnation = gen_random_uuid(), \
             (system_identifier, timeline, database_oid, table_oid) = (SELECT * FROM present_identity()) \
         WHERE name = $1",
    )
    .bind::<Text, _>(from)
    .bind::<Text, _>(to)
    .execute(&mut connection)
    .await?;
    if renamed != 1 {
        bail!("the database no longer belongs to the installation `{from}`; nothing was changed");
    }
    let disconnected = diesel::sql_query(
        "UPDATE integrations SET state = 'disconnected', pause_reason = NULL, sealed_secret_key = NULL, \
             sealed_webhook_secret = NULL, sealed_old_webhook_secret = NULL, provider_endpoint_id = NULL, \
             provider_old_endpoint_id = NULL, endpoint_fault = NULL, forbidden_actions = '{}', \
             version = version + 1, update_time = now() \
         WHERE state <> 'disconnected'",
    )
    .execute(&mut connection)
    .await?;
    // Requests without a final answer hold keys of `from`: sent again, they would bring its answers. All jobs are those
    // of integrations that are disconnected by now.
    connection
        .batch_execute(
            "UPDATE stripe_contacts SET catch_up_reason = NULL, catch_up_start = NULL, stage = NULL, after = NULL, \
                 objects_read = 0, seen_number = NULL, seen_writer = NULL, seen_time = NULL, \
                 fault = NULL; \
             DELETE FROM stripe_requests WHERE finish_time IS NULL; \
             DELETE FROM jobs; \
             UPDATE event_heads SET log_id = gen_random_uuid(); \
             COMMIT",
        )
        .await?;
    Ok(disconnected)
}

async fn connect_as_owner(database_url: &str) -> Result<AsyncPgConnection> {
    let mut connection = migrate::connect(database_url).await?;
    connection
        .batch_execute("SET ROLE paybridge_owner")
        .await
        .context("the user in DATABASE_URL must be the one that migrates, a member of the role paybridge_owner")?;
    Ok(connection)
}
