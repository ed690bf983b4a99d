//! The embedded Postgres, which is made to crash and starts again in its place, and a way past all proxies to it for
//! those who only look.

use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio_postgres::{Client, NoTls};

use super::proxy::{Proxy, Target};
use super::{lock, pause};
use crate::dev::postgres::{self, Postgres};
use crate::dev::rng::Rng;
use crate::dev::stage::prepare_database;

/// The database's name.
const NAME: &str = "paybridge";

/// See the module's text.
pub(super) struct Database {
    folder: PathBuf,
    options: postgres::Options,
    /// Empty while it is down.
    server: Mutex<Option<Postgres>>,
    /// How its superuser reaches it.
    address: StdMutex<String>,
    /// The superuser's connection, for as long as it lasts.
    client: Mutex<Option<Arc<Client>>>,
    /// What the processes under test come through.
    pub proxy: Proxy,
}

impl Database {
    /// Starts Postgres in `folder` and makes the database. A commit survives a crash: nothing else would be fair.
    pub async fn start(folder: PathBuf, programs: Option<PathBuf>, rng: Rng) -> Result<Self> {
        let options = postgres::Options { programs, ..postgres::Options::default() };
        let server = start(folder.clone(), options.clone()).await?;
        prepare_database(&server, NAME, None).await?;
        let proxy = Proxy::start(Target::Unix(server.socket_file()), rng).await?;
        let address = StdMutex::new(server.connection_string(NAME));
        let (server, client) = (Mutex::new(Some(server)), Mutex::default());
        Ok(Self { folder, options, server, address, client, proxy })
    }

    /// How the processes under test reach it.
    pub fn url(&self) -> String {
        let address = self.proxy.address();
        format!("host={} port={} user=paybridge dbname={NAME}", address.ip(), address.port())
    }

    /// Crashes it, and starts it again after `down`. Returns once it takes connections.
    pub async fn crash(&self, signal: Signal, down: Duration) -> Result<()> {
        let mut server = self.server.lock().await;
        if let Some(running) = server.take() {
            spawn_blocking(move || running.crash(signal)).await??;
        }
        pause(down).await;
        let started = start(self.folder.clone(), self.options.clone()).await?;
        self.proxy.lead_to(Target::Unix(started.socket_file()));
        *lock(&self.address) = started.connection_string(NAME);
        *server = Some(started);
        Ok(())
    }

    /// A connection of its superuser's, past the proxy.
    pub async fn connect(&self) -> Result<Arc<Client>> {
        let mut kept = self.client.lock().await;
        if let Some(client) = kept.as_ref().filter(|client| !client.is_closed()) {
            return Ok(Arc::clone(client));
        }
        let address = lock(&self.address).clone();
        let (client, connection) = tokio_postgres::connect(&address, NoTls).await.context("the database is away")?;
        // It ends with the client.
        tokio::spawn(connection);
        let client = Arc::new(client);
        *kept = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Its log, which is searched for secrets, too.
    pub async fn log_file(&self) -> Option<PathBuf> {
        self.server.lock().await.as_ref().map(Postgres::log_file)
    }

    /// Stops it in order.
    pub async fn stop(&self) -> Result<()> {
        if let Some(running) = self.server.lock().await.take() {
            spawn_blocking(move || running.stop()).await??;
        }
        Ok(())
    }
}

async fn start(folder: PathBuf, options: postgres::Options) -> Result<Postgres> {
    spawn_blocking(move || Postgres::start(&folder, &options)).await?
}
