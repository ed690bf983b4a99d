//! Who waits for what, within this process: the streams of an organization for its events, workers for jobs. Wake-ups
//! are hints, coalesced, and given after the commit; whoever waits looks at the database.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, mpsc, watch};

use crate::domain::OrganizationId;
use crate::store::Hint;

#[derive(Clone)]
pub(super) struct Wake(Arc<Inner>);

struct Inner {
    /// A counter an organization that somebody watches; it rises whenever the log may have grown.
    logs: Mutex<HashMap<OrganizationId, watch::Sender<u64>>>,
    jobs: Notify,
    /// For the other replicas. A full queue drops hints: their polls are the net.
    hints: mpsc::Sender<Hint>,
}

impl Wake {
    pub(super) fn new(hints: mpsc::Sender<Hint>) -> Self {
        Self(Arc::new(Inner { logs: Mutex::default(), jobs: Notify::new(), hints }))
    }

    /// After a commit of ours: wakes whoever waits here, and tells the other replicas.
    pub(super) fn tell(&self, hint: Hint) {
        self.hear(hint);
        let _ = self.0.hints.try_send(hint);
    }

    /// Wakes whoever waits here.
    pub(super) fn hear(&self, hint: Hint) {
        match hint {
            Hint::Jobs => self.0.jobs.notify_one(),
            Hint::Events(organization) => {
                let mut logs = self.0.logs.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(log) = logs.get(&organization) {
                    if log.receiver_count() == 0 {
                        logs.remove(&organization);
                    } else {
                        log.send_modify(|count| *count += 1);
                    }
                }
            }
        }
    }

    /// Changes whenever the organization's log may have grown.
    pub(super) fn watch(&self, organization: OrganizationId) -> watch::Receiver<u64> {
        let mut logs = self.0.logs.lock().unwrap_or_else(PoisonError::into_inner);
        logs.entry(organization).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    /// Whether anybody here watches any log, and which.
    pub(super) fn watched(&self) -> Vec<OrganizationId> {
        let mut logs = self.0.logs.lock().unwrap_or_else(PoisonError::into_inner);
        logs.retain(|_, log| log.receiver_count() > 0);
        logs.keys().copied().collect()
    }

    /// Returns once jobs were asked for since the last time.
    pub(super) async fn jobs(&self) {
        self.0.jobs.notified().await;
    }
}
