//! Connections and transactions. [`Pool::begin`] is the one way to a transaction: it sets, with the same round trip,
//! the role that the statements run as and the tenant that row level security holds them to (P10).

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use diesel_async::pooled_connection::deadpool::{Object, Pool as Connections};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};
use diesel_async::{AnsiTransactionManager, AsyncPgConnection, TransactionManager};

use super::error::unavailable;
use crate::domain::{Error, OrganizationId, Result};

/// How long a caller waits for a free connection, and then for the beginning of its transaction.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);

/// After how many seconds a server that has vanished without a word is given up, unless `DATABASE_URL` says otherwise: the
/// system's own limits are hours.
const VANISHED: [(&str, u32); 4] =
    [("connect_timeout", 5), ("tcp_user_timeout", 10), ("keepalives_idle", 5), ("keepalives_interval", 2)];

/// Connections to the database; clones share them.
#[derive(Clone)]
pub struct Pool(Connections<AsyncPgConnection>);

/// On whose behalf statements run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One organization's: role `paybridge_app`.
    Tenant(OrganizationId),
    /// All organizations', held in by grants: role `paybridge_system`.
    System,
}

/// What keeps a statement's plan whatever the statistics say: each has an index, and is to use it. Until autovacuum has been
/// there, the planner takes a table that has just grown for a small one, and would read it from end to end. (A plan that
/// has no index to use is costed so high that it would be compiled.)
const PLANS: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off";

impl Pool {
    /// A pool of at most `size` connections to `url`, which may be a URL or libpq's key=value form. Connects when first
    /// used.
    pub fn new(url: &str, size: usize) -> Result<Self> {
        let mut config = ManagerConfig::default();
        config.recycling_method = RecyclingMethod::Fast;
        let url = with_limits(url);
        let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new_with_config(url, config);
        let pool = Connections::builder(manager).max_size(size).build().map_err(Error::internal)?;
        Ok(Self(pool))
    }

    /// Opens a transaction in `scope`. It must not stay open while a call to Stripe is in flight (P3).
    pub async fn begin(&self, scope: Scope) -> Result<Transaction> {
        let sql = match scope {
            Scope::Tenant(organization_id) => format!(
                "BEGIN; SET LOCAL ROLE paybridge_app; SET LOCAL paybridge.organization_id = '{organization_id}'; {PLANS}; \
                 SET LOCAL statement_timeout = '10s'; SET LOCAL idle_in_transaction_session_timeout = '5s'"
            ),
            Scope::System => format!(
                "BEGIN; SET LOCAL ROLE paybridge_system; {PLANS}; SET LOCAL statement_timeout = '30s'; \
                 SET LOCAL idle_in_transaction_session_timeout = '5s'"
            ),
        };
        // After a restart of the database every pooled connection is dead, and only its next use shows it: each is
        // given up in turn, until one is alive or a new one can't be made.
        let mut last = None;
        for _ in 0..=self.0.status().max_size {
            let mut connection = self.connection().await?;
            let begun = AnsiTransactionManager::begin_transaction_sql(&mut *connection, &sql);
            match tokio::time::timeout(WAIT_TIMEOUT, begun).await {
                Ok(Ok(())) => return Ok(Transaction(Some(connection))),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a pooled connection is dead");
                    drop(Object::take(connection));
                    last = Some(error);
                }
                Err(_) => {
                    drop(Object::take(connection));
                    return Err(unavailable(&"no transaction could be begun in time"));
                }
            }
        }
        let last = last.map(|error| error.to_string()).unwrap_or_default();
        Err(unavailable(&format_args!("no transaction can be begun: {last}")))
    }

    async fn connection(&self) -> Result<Object<AsyncPgConnection>> {
        match tokio::time::timeout(WAIT_TIMEOUT, self.0.get()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(unavailable(&error)),
            Err(_) => Err(unavailable(&"no connection became free in time")),
        }
    }
}

/// The address with time limits before what it says itself, which counts where it names the same ones.
pub(super) fn with_limits(url: &str) -> String {
    let limits = |separator| VANISHED.map(|(name, seconds)| format!("{name}={seconds}")).join(separator);
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return format!("{} {url}", limits(" "));
    }
    // A password may hold what else begins the options.
    let place = url.find('@').unwrap_or_default();
    match url[place..].find('?') {
        Some(options) => format!("{}{}&{}", &url[..=place + options], limits("&"), &url[place + options + 1..]),
        None => format!("{url}?{}", limits("&")),
    }
}

/// An open transaction. Dropped without [`Transaction::commit`], it is rolled back.
pub struct Transaction(Option<Object<AsyncPgConnection>>);

impl Transaction {
    /// Commits. An error here means that the outcome is unknown: the commit may have happened.
    pub async fn commit(mut self) -> Result<()> {
        if let Some(mut connection) = self.0.take() {
            AnsiTransactionManager::commit_transaction(&mut *connection).await?;
        }
        Ok(())
    }
}

impl Transaction {
    /// Ends a transaction that has only read, and waits for it: so that none is open when Stripe is called next (P3).
    pub async fn close(mut self) -> Result<()> {
        if let Some(mut connection) = self.0.take() {
            AnsiTransactionManager::rollback_transaction(&mut *connection).await?;
        }
        Ok(())
    }
}

impl Deref for Transaction {
    type Target = AsyncPgConnection;

    fn deref(&self) -> &Self::Target {
        match &self.0 {
            Some(connection) => connection,
            None => unreachable!("only commit and drop take the connection"),
        }
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match &mut self.0 {
            Some(connection) => connection,
            None => unreachable!("only commit and drop take the connection"),
        }
    }
}

impl Drop for Transaction {
    /// Rolls back in a task of its own, so that the connection goes back to the pool clean, even where the future that
    /// held it was dropped in the middle of a statement.
    fn drop(&mut self) {
        if let Some(mut connection) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                if let Err(error) = AnsiTransactionManager::rollback_transaction(&mut *connection).await {
                    tracing::debug!(%error, "a transaction could not be rolled back; its connection is given up");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_postgres::Config;

    use super::with_limits;

    #[test]
    fn a_server_that_vanishes_is_given_up_within_seconds_unless_the_address_says_otherwise() {
        for (url, user_timeout) in [
            ("postgresql://me@host/db", 10),
            ("postgresql://host/db?user=me", 10),
            ("postgresql://me:pa?ss@[::1]:5432/db?tcp_user_timeout=60", 60),
            ("postgresql://me:pa?ss@host/db", 10),
            ("postgres://me@host/db?application_name=x&tcp_user_timeout=60", 60),
            ("host=/run/postgresql user=me dbname=db", 10),
            ("host=host tcp_user_timeout=60", 60),
        ] {
            let config: Config = with_limits(url).parse().expect("an address");
            assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_secs(user_timeout)), "{url}");
            assert_eq!(config.get_keepalives_idle(), Duration::from_secs(5), "{url}");
            assert_eq!(config.get_keepalives_interval(), Some(Duration::from_secs(2)), "{url}");
            assert!(!config.get_hosts().is_empty());
            assert!(config.get_password().is_none_or(|password| password == b"pa?ss"), "{url}");
            assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(5)), "{url}");
        }
    }
}
