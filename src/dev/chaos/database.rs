//! The embedded Postgres, which is crashed, restarted and restored, and a connection past the proxy for the checks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio_postgres::{Client, NoTls};

use super::proxy::{Proxy, Target};
use crate::clock::pause;
use crate::dev::backups::Administrator;
use crate::dev::postgres::{self, Postgres};
use crate::dev::rng::Rng;
use crate::dev::test_environment::prepare_database;

const NAME: &str = "paybridge";

pub(super) struct Database {
    folder: PathBuf,
    options: postgres::Options,
    /// `None` while it is down.
    server: Mutex<Option<Postgres>>,
    /// The superuser's connection string.
    address: parking_lot::Mutex<String>,
    /// The superuser's connection, for as long as it lasts.
    client: Mutex<Option<Arc<Client>>>,
    /// The proxy that the processes under test connect to.
    pub proxy: Proxy,
}

impl Database {
    /// Starts a durable Postgres in `folder` and creates the database.
    pub async fn start(folder: PathBuf, programs: Option<PathBuf>, rng: Rng) -> Result<Self> {
        let options = postgres::Options { programs, ..postgres::Options::default() };
        let server = start(folder.clone(), options.clone()).await?;
        prepare_database(&server, NAME, None).await?;
        let proxy = Proxy::start(Target::Unix(server.socket_file()), rng).await?;
        let address = parking_lot::Mutex::new(server.connection_string(NAME));
        let (server, client) = (Mutex::new(Some(server)), Mutex::default());
        Ok(Self { folder, options, server, address, client, proxy })
    }

    /// The connection string for the processes under test.
    pub fn url(&self) -> String {
        let address = self.proxy.address();
        format!("host={} port={} user=paybridge dbname={NAME}", address.ip(), address.port())
    }

    /// Crashes Postgres and restarts it after `downtime`. Returns once it accepts connections.
    pub async fn crash(&self, signal: Signal, downtime: Duration) -> Result<()> {
        let mut server = self.server.lock().await;
        if let Some(running) = server.take() {
            spawn_blocking(move || running.crash(signal)).await??;
        }
        pause(downtime).await;
        let started = start(self.folder.clone(), self.options.clone()).await?;
        self.proxy.set_target(Target::Unix(started.socket_file()));
        *self.address.lock() = started.connection_string(NAME);
        *server = Some(started);
        Ok(())
    }

    /// Takes a snapshot. All connections are cut.
    pub async fn snapshot(&self) -> Result<()> {
        let server = self.server.lock().await;
        let server = server.as_ref().context("Postgres is down")?;
        Administrator::connect(server).await?.snapshot(NAME).await
    }

    /// Replaces the database with its snapshot. All connections are cut, and Postgres is not crashed meanwhile.
    pub async fn restore(&self) -> Result<()> {
        let server = self.server.lock().await;
        let server = server.as_ref().context("Postgres is down")?;
        Administrator::connect(server).await?.restore(NAME).await
    }

    /// The superuser's connection, past the proxy.
    pub async fn connect(&self) -> Result<Arc<Client>> {
        let mut kept = self.client.lock().await;
        if let Some(client) = kept.as_ref().filter(|client| !client.is_closed()) {
            return Ok(Arc::clone(client));
        }
        let address = self.address.lock().clone();
        let (client, connection) =
            tokio_postgres::connect(&address, NoTls).await.context("the database is unavailable")?;
        // The task ends with the client.
        tokio::spawn(connection);
        let client = Arc::new(client);
        *kept = Some(Arc::clone(&client));
        Ok(client)
    }

    /// The server's log, which is also searched for secrets.
    pub async fn log_file(&self) -> Option<PathBuf> {
        self.server.lock().await.as_ref().map(Postgres::log_file)
    }

    /// Stops Postgres gracefully.
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
