//! In-process notifications: streams wait for an organization's events, workers for jobs. Notifications are hints: they
//! are coalesced and sent after the commit, and the receiver reads the database.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use crate::domain::OrganizationId;
use crate::store::Notification;

#[derive(Clone)]
pub(super) struct Notifier(Arc<Inner>);

struct Inner {
    /// One counter per watched organization, incremented whenever its log may have grown.
    logs: Mutex<HashMap<OrganizationId, watch::Sender<u64>>>,
    jobs: Notify,
    /// For the other replicas. If the queue is full, notifications are dropped; the replicas poll as well.
    notifications: mpsc::Sender<Notification>,
}

impl Notifier {
    pub(super) fn new(notifications: mpsc::Sender<Notification>) -> Self {
        Self(Arc::new(Inner { logs: Mutex::default(), jobs: Notify::new(), notifications }))
    }

    /// After a commit: notifies waiters in this process, and the other replicas.
    pub(super) fn notify(&self, notification: Notification) {
        self.notify_local(notification);
        let _ = self.0.notifications.try_send(notification);
    }

    /// Notifies waiters in this process.
    pub(super) fn notify_local(&self, notification: Notification) {
        match notification {
            Notification::Jobs => self.0.jobs.notify_one(),
            Notification::Events(organization) => {
                let mut logs = self.0.logs.lock();
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

    /// A receiver that changes whenever the organization's log may have grown.
    pub(super) fn watch(&self, organization: OrganizationId) -> watch::Receiver<u64> {
        let mut logs = self.0.logs.lock();
        logs.entry(organization).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    /// The organizations whose log is watched in this process.
    pub(super) fn watched(&self) -> Vec<OrganizationId> {
        let mut logs = self.0.logs.lock();
        logs.retain(|_, log| log.receiver_count() > 0);
        logs.keys().copied().collect()
    }

    /// Returns once jobs were enqueued since the last call.
    pub(super) async fn jobs(&self) {
        self.0.jobs.notified().await;
    }
}
