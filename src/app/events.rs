//! Reads of the event log.

use tokio::sync::watch;

use super::App;
use crate::domain::events::{Event, EventLog};
use crate::domain::{OrganizationId, Result};
use crate::store;

impl App {
    /// The organization's log, and the range of its positions.
    pub async fn event_log(&self, org: OrganizationId) -> Result<EventLog> {
        let mut tx = self.read(org).await?;
        store::events::head(&mut tx, org).await
    }

    /// Up to `limit` events after `position`, in order and without gaps (P5).
    pub async fn events_after(&self, org: OrganizationId, position: i64, limit: i64) -> Result<Vec<Event>> {
        let mut tx = self.read(org).await?;
        store::events::after(&mut tx, org, position, limit).await
    }

    /// A receiver that changes whenever the log may have grown. It may also change without a new event.
    pub fn watch_events(&self, org: OrganizationId) -> watch::Receiver<u64> {
        self.0.notifier.watch(org)
    }
}
