//! Reads of the event log.

use tokio::sync::watch;

use super::App;
use crate::domain::events::Event;
use crate::domain::{OrganizationId, Result};
use crate::store;

/// The range of positions in an organization's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLog {
    /// The newest position, 0 if the log is empty.
    pub last_position: i64,
    /// The oldest position still retained, `last_position + 1` if none is.
    pub first_position: i64,
}

impl App {
    /// The range of positions in the organization's log.
    pub async fn event_log(&self, org: OrganizationId) -> Result<EventLog> {
        let mut tx = self.read(org).await?;
        let head = store::events::head(&mut tx, org).await?;
        Ok(EventLog { last_position: head.last_position, first_position: head.first_position })
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
