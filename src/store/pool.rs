//! Connections and transactions. Every transaction starts in [`Pool::begin`], which sets, in the same round trip, the
//! role of its statements and the tenant for row level security (P10).

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use diesel::ConnectionError;
use diesel_async::pooled_connection::deadpool::{Object, Pool as Connections};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};
use diesel_async::{AnsiTransactionManager, AsyncPgConnection, TransactionManager};
use tokio::sync::SetOnce;

use super::connect::Address;
use super::error::{unavailable, unavailable_because};
use super::installation;
use crate::domain::{Error, OrganizationId, Result};

/// How long a caller waits for a free connection, and then again for BEGIN.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections to the database; clones share them.
#[derive(Clone)]
pub struct Pool {
    connections: Connections<AsyncPgConnection>,
    address: Address,
    checked: Arc<SetOnce<()>>,
}

/// The role and tenant that statements run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One organization: role `paybridge_app`, limited by row level security.
    Tenant(OrganizationId),
    /// All organizations: role `paybridge_system`, limited by grants.
    System,
}

/// Fixes plans whatever the statistics say: every statement has an index, and uses it. Until autovacuum has run, the
/// planner takes a table that has just grown for a small one, and would read it completely. JIT is off because a plan
/// without an index is costed so high that it would be compiled.
const PLANS: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off";

impl Pool {
    /// A pool of at most `size` connections to `url`, which [`Address::parse`] understands. Connects when first used.
    /// Every new connection first checks whether the database was restored, failed over or copied since its last use.
    pub fn new(url: &str, size: usize) -> Result<Self> {
        let address =
            Address::parse(url).map_err(|sentence| Error::internal(anyhow::anyhow!("the address {sentence}")))?;
        let mut config = ManagerConfig::default();
        config.recycling_method = RecyclingMethod::Fast;
        let setup_address = address.clone();
        config.custom_setup = Box::new(move |_| {
            let address = setup_address.clone();
            Box::pin(async move { connect(&address).await.map_err(ConnectionError::BadConnection) })
        });
        // `custom_setup` ignores the manager's address.
        let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new_with_config("", config);
        let connections = Connections::builder(manager).max_size(size).build().map_err(Error::internal)?;
        Ok(Self { connections, address, checked: Arc::new(SetOnce::new_with(Some(()))) })
    }

    /// The same pool, which opens no transaction before `checked` is set: until then the database counts as
    /// unavailable.
    #[must_use]
    pub fn after(self, checked: Arc<SetOnce<()>>) -> Self {
        Self { checked, ..self }
    }

    /// Opens a transaction. It must not be open during a call to Stripe (P3).
    pub async fn begin(&self, scope: Scope) -> Result<Transaction> {
        if !self.checked.initialized() {
            return Err(unavailable_because("this process has just started and has not checked its database yet"));
        }
        self.try_begin(scope).await.map_err(|why| unavailable(&why))
    }

    /// Opens and closes a transaction. Notices a restore into the same database, which does not end its connections.
    /// The error is text for the log.
    pub async fn ping(&self) -> Result<(), String> {
        let mut transaction = self.try_begin(Scope::System).await?;
        let has_moved = installation::has_moved(&mut transaction).await.map_err(|error| error.to_string())?;
        transaction.close().await.map_err(|error| error.to_string())?;
        if has_moved {
            drop(connect(&self.address).await?);
        }
        Ok(())
    }

    async fn try_begin(&self, scope: Scope) -> Result<Transaction, String> {
        let sql = match scope {
            Scope::Tenant(organization_id) => format!(
                "BEGIN; SET LOCAL ROLE paybridge_app; SET LOCAL paybridge.organization_id = '{organization_id}'; \
                 {PLANS}; SET LOCAL statement_timeout = '10s'; SET LOCAL idle_in_transaction_session_timeout = '5s'"
            ),
            Scope::System => format!(
                "BEGIN; SET LOCAL ROLE paybridge_system; {PLANS}; SET LOCAL statement_timeout = '30s'; \
                 SET LOCAL idle_in_transaction_session_timeout = '5s'"
            ),
        };
        // After a restart of the database every pooled connection is dead, which only its next use shows. Dead
        // connections are dropped in turn until one is alive, or a new one cannot be opened.
        let mut last = None;
        for _ in 0..=self.connections.status().max_size {
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
                    return Err(format!("BEGIN took longer than {WAIT_TIMEOUT:?}"));
                }
            }
        }
        let last = last.map(|error| error.to_string()).unwrap_or_default();
        Err(format!("no transaction could be started: {last}"))
    }

    async fn connection(&self) -> Result<Object<AsyncPgConnection>, String> {
        match tokio::time::timeout(WAIT_TIMEOUT, self.connections.get()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no connection became free within {WAIT_TIMEOUT:?}")),
        }
    }
}

/// Opens a connection, and checks whether the database is where it was. The error is text for the log.
async fn connect(address: &Address) -> Result<AsyncPgConnection, String> {
    let connected = async {
        let mut connection = address.establish().await?;
        installation::check_identity(&mut connection).await?;
        anyhow::Ok(connection)
    };
    connected.await.map_err(|error| format!("{error:#}"))
}

/// An open transaction. Dropped without [`Transaction::commit`], it is rolled back.
pub struct Transaction(Option<Object<AsyncPgConnection>>);

impl Transaction {
    /// Commits. After an error the outcome is unknown: the commit may have happened.
    pub async fn commit(mut self) -> Result<()> {
        if let Some(mut connection) = self.0.take() {
            AnsiTransactionManager::commit_transaction(&mut *connection).await?;
        }
        Ok(())
    }

    /// Rolls back a transaction that has only read, and waits for it, so that none is open when Stripe is called next
    /// (P3).
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
    /// Rolls back in a task of its own, so that the connection returns to the pool clean even if the future that held
    /// it was dropped in the middle of a statement.
    fn drop(&mut self) {
        if let Some(mut connection) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                if let Err(error) = AnsiTransactionManager::rollback_transaction(&mut *connection).await {
                    tracing::debug!(%error, "a transaction could not be rolled back; its connection is dropped");
                }
            });
        }
    }
}
