//! Reading of the event log.

use tokio::sync::watch;

use super::App;
use crate::domain::events::Event;
use crate::domain::{OrganizationId, Result};
use crate::store;

/// Where an organization's log begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLog {
    /// The newest position; 0 while there is none.
    pub last_position: i64,
    /// The oldest position that is still kept; `last_position + 1` while none is.
    pub first_position: i64,
}

impl App {
    /// Where the log begins and ends.
    pub async fn event_log(&self, org: OrganizationId) -> Result<EventLog> {
        let mut tx = self.read(org).await?;
        let head = store::events::head(&mut tx, org).await?;
        Ok(EventLog { last_position: head.last_position, first_position: head.first_position })
    }

    /// At most `limit` events after `position`, in order, without a gap (P5).
    pub async fn events_after(&self, org: OrganizationId, position: i64, limit: i64) -> Result<Vec<Event>> {
        let mut tx = self.read(org).await?;
        store::events::after(&mut tx, org, position, limit).await
    }

    /// Changes whenever the log may have grown; also without a reason.
    pub fn watch_events(&self, org: OrganizationId) -> watch::Receiver<u64> {
        self.0.wake.watch(org)
    }
}
