//! Makes webhooks durable, many with one commit: whatever waits while a commit is under way goes with the next one.
//! A webhook is answered only after its commit (P6).

use std::collections::HashSet;

use tokio::sync::{mpsc, oneshot};

use super::Taken;
use crate::app::wake::Wake;
use crate::clock::Clock;
use crate::crash::{self, Point};
use crate::domain::deliveries::Delivery;
use crate::domain::jobs::JobKind;
use crate::domain::{Error, Result};
use crate::store::jobs::{By, NewJob};
use crate::store::{self, Hint, Pool, Scope};

/// How many webhooks may wait for a commit; more make the door wait (P11).
const WAITING_MAX: usize = 1_024;
/// How many go with one commit.
const BATCH_MAX: usize = 128;

type Waiting = (Delivery, oneshot::Sender<Result<Taken, ()>>);

/// Takes deliveries and answers each once it is durable.
pub(in crate::app) struct Inbox(mpsc::Sender<Waiting>);

impl Inbox {
    /// Starts the task that writes; it ends when the inbox is dropped.
    pub(in crate::app) fn start(pool: Pool, clock: Clock, wake: Wake) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Waiting>(WAITING_MAX);
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while receiver.recv_many(&mut batch, BATCH_MAX).await > 0 {
                write(&pool, &clock, &wake, std::mem::take(&mut batch)).await;
            }
        });
        Self(sender)
    }

    /// Stores a delivery; returns after the commit.
    pub(super) async fn put(&self, delivery: Delivery) -> Result<Taken> {
        let (answer, answered) = oneshot::channel();
        let gone = || Error::internal(anyhow::anyhow!("the inbox has stopped"));
        self.0.send((delivery, answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?.map_err(|()| gone())
    }
}

async fn write(pool: &Pool, clock: &Clock, wake: &Wake, batch: Vec<Waiting>) {
    let deliveries: Vec<&Delivery> = batch.iter().map(|(delivery, _)| delivery).collect();
    let written = write_once(pool, clock, &deliveries).await;
    match written {
        Ok(new) => {
            if !new.is_empty() {
                wake.tell(Hint::Jobs);
            }
            // Of two repeats in one batch both are durable; which of them counts as the new one does not matter.
            for (delivery, answer) in batch {
                let key = (delivery.integration_id.0, delivery.provider_event_id);
                let _ = answer.send(Ok(if new.contains(&key) { Taken::New } else { Taken::Known }));
            }
        }
        Err(error) => {
            if !error.is_database_away() {
                tracing::warn!(%error, webhooks = batch.len(), "webhooks could not be stored; Stripe will send them again");
            }
            for (_, answer) in batch {
                let _ = answer.send(Err(()));
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
    store::jobs::ask(&mut tx, &jobs, By::Ourselves, clock.now(), || clock.new_id()).await?;
    crash::point(Point::BeforeInboxCommit);
    tx.commit().await?;
    crash::point(Point::AfterInboxCommit);
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
