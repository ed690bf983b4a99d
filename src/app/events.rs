//! Reads of the event log.

use tokio::sync::watch;

use super::App;
use crate::domain::events::{Event, EventLog};
use crate::domain::{LogId, OrganizationId, Result};
use crate::store;

impl App {
    /// The organization's log, and the range of its positions.
    pub async fn event_log(&self, org: OrganizationId) -> Result<EventLog> {
        let mut tx = self.read(org).await?;
        store::events::head(&mut tx, org).await
    }

    /// Up to `limit` events of the log `log_id` after `position`, in order and without gaps (P5). Fails if the log was
    /// replaced, or has lost the position: what follows is no longer what the reader has not seen.
    pub async fn events_after(
        &self,
        org: OrganizationId,
        log_id: LogId,
        position: i64,
        limit: i64,
    ) -> Result<Vec<Event>> {
        let mut tx = self.read(org).await?;
        let events = store::events::after(&mut tx, org, position, limit).await?;
        // Read last: a log that is still there was there when its events were read.
        store::events::head(&mut tx, org).await?.check_reader(Some(log_id), position)?;
        Ok(events)
    }

    /// A receiver that changes whenever the log may have grown. It may also change without a new event.
    pub fn watch_events(&self, org: OrganizationId) -> watch::Receiver<u64> {
        self.0.notifier.watch(org)
    }
}
