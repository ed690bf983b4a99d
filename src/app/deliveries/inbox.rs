//! Stores webhooks in batches: those that arrive during a commit share the next one. A webhook is acknowledged only
//! after its commit (P6).

use std::collections::HashSet;

use tokio::sync::{mpsc, oneshot};

use crate::app::notifications::Notifier;
use crate::clock::Clock;
use crate::domain::deliveries::Delivery;
use crate::domain::jobs::JobKind;
use crate::domain::{Error, Result};
use crate::failpoints::{self, Failpoint};
use crate::store::jobs::{NewJob, RequestedBy};
use crate::store::{self, Notification, Pool, Scope};

/// How many webhooks may wait for a commit. When the queue is full, requests wait for a place in it (P11).
const WAITING_MAX: usize = 1_024;
/// The maximum number of webhooks per commit.
const BATCH_MAX: usize = 128;

/// A webhook was stored durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingested {
    /// It is new.
    New,
    /// Its event was stored before.
    Duplicate,
}

type Waiting = (Delivery, oneshot::Sender<Result<Ingested, ()>>);

/// Stores deliveries, and answers each once it is durable.
pub(in crate::app) struct Inbox(mpsc::Sender<Waiting>);

impl Inbox {
    /// Starts the task that writes. It ends when the inbox is dropped.
    pub(in crate::app) fn start(pool: Pool, clock: Clock, notifier: Notifier) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Waiting>(WAITING_MAX);
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while receiver.recv_many(&mut batch, BATCH_MAX).await > 0 {
                write(&pool, &clock, &notifier, std::mem::take(&mut batch)).await;
            }
        });
        Self(sender)
    }

    /// Stores a delivery. Returns after the commit.
    pub(super) async fn put(&self, delivery: Delivery) -> Result<Ingested> {
        let (reply, replied) = oneshot::channel();
        let stopped = || Error::internal(anyhow::anyhow!("the inbox has stopped"));
        self.0.send((delivery, reply)).await.map_err(|_| stopped())?;
        replied.await.map_err(|_| stopped())?.map_err(|()| stopped())
    }
}

async fn write(pool: &Pool, clock: &Clock, notifier: &Notifier, batch: Vec<Waiting>) {
    let deliveries: Vec<&Delivery> = batch.iter().map(|(delivery, _)| delivery).collect();
    let written = write_once(pool, clock, &deliveries).await;
    match written {
        Ok(new) => {
            if !new.is_empty() {
                notifier.notify(Notification::Jobs);
            }
            // If one batch contains an event twice, both copies are durable; it does not matter which counts as new.
            for (delivery, reply) in batch {
                let key = (delivery.integration_id.0, delivery.provider_event_id);
                let _ = reply.send(Ok(if new.contains(&key) { Ingested::New } else { Ingested::Duplicate }));
            }
        }
        Err(error) => {
            if !error.is_database_unavailable() {
                tracing::warn!(%error, webhooks = batch.len(), "webhooks not stored; Stripe retries them");
            }
            for (_, reply) in batch {
                let _ = reply.send(Err(()));
            }
        }
    }
}

async fn write_once(pool: &Pool, clock: &Clock, batch: &[&Delivery]) -> Result<HashSet<(uuid::Uuid, String)>> {
    let mut tx = pool.begin(Scope::System).await?;
    let new: HashSet<_> = store::deliveries::insert_new(&mut tx, batch).await?.into_iter().collect();
    let jobs: Vec<NewJob> = batch
        .iter()
        .filter(|delivery| new.contains(&(delivery.integration_id.0, delivery.provider_event_id.clone())))
        .map(|delivery| job_for(delivery, clock))
        .collect();
    store::jobs::enqueue(&mut tx, &jobs, RequestedBy::Paybridge, clock.now(), || clock.new_id()).await?;
    failpoints::hit(Failpoint::BeforeInboxCommit);
    tx.commit().await?;
    failpoints::hit(Failpoint::AfterInboxCommit);
    Ok(new)
}

/// The job that applies a delivery.
pub(super) fn job_for(delivery: &Delivery, clock: &Clock) -> NewJob {
    NewJob {
        organization_id: delivery.organization_id,
        kind: JobKind::ApplyDelivery,
        object_id: delivery.integration_id.0,
        object_key: delivery.provider_event_id.clone(),
        object_time: Some(delivery.created),
        run_at: clock.now(),
    }
}
