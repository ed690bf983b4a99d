//! Retention: deletion of old rows, creation of partitions; and the poll of the event logs for missed notifications.

use std::collections::HashMap;

use time::Duration;

use super::App;
use crate::domain::{OrganizationId, Result};
use crate::store::{self, Notification, Scope};

/// Retention of request ids.
const REQUEST_ID_RETENTION: Duration = Duration::days(30);

/// How many rows one transaction deletes.
const BATCH: i64 = 1_000;

/// How many days ahead partitions are created.
const DAYS_AHEAD: i64 = 3;

impl App {
    /// Deletes rows past their retention, and creates the partitions of the coming days. Safe to run in two processes
    /// at once.
    pub(super) async fn delete_expired(&self) -> Result<()> {
        // A failure of one does not stop the others.
        let mut results = vec![
            self.rotate_delivery_partitions().await,
            self.delete_expired_request_ids().await,
            self.delete_unused_budgets().await,
        ];
        match self.list_organizations().await {
            Ok(organizations) => {
                for organization in organizations {
                    results.push(self.trim_log(organization.id).await);
                }
            }
            Err(error) => results.push(Err(error)),
        }
        for error in
            results.iter().filter_map(|result| result.as_ref().err()).filter(|error| !error.is_database_unavailable())
        {
            tracing::warn!(%error, "deletion of old rows failed; it is retried");
        }
        results.into_iter().collect()
    }

    async fn rotate_delivery_partitions(&self) -> Result<()> {
        let now = self.clock().now();
        let pool = &self.0.pool;
        let mut tx = pool.begin(Scope::System).await?;
        let (first, last) = (now - Duration::DAY, now + Duration::days(DAYS_AHEAD));
        store::deliveries::ensure_partitions(&mut tx, first.date(), last.date()).await?;
        tx.commit().await?;

        let mut tx = pool.begin(Scope::System).await?;
        let first_kept = (now - self.0.settings.delivery_retention).date();
        store::deliveries::drop_partitions(&mut tx, first_kept).await?;
        tx.commit().await
    }

    async fn delete_expired_request_ids(&self) -> Result<()> {
        let before = self.clock().now() - REQUEST_ID_RETENTION;
        loop {
            let mut tx = self.0.pool.begin(Scope::System).await?;
            let deleted = store::request_ids::delete_old(&mut tx, before, BATCH).await?;
            tx.commit().await?;
            if deleted == 0 {
                return Ok(());
            }
        }
    }

    async fn trim_log(&self, organization: OrganizationId) -> Result<()> {
        let before = self.clock().now() - self.0.settings.event_retention;
        loop {
            let mut tx = self.0.pool.begin(Scope::System).await?;
            let deleted = store::events::trim(&mut tx, organization, before, BATCH).await?;
            tx.commit().await?;
            if deleted == 0 {
                return Ok(());
            }
        }
    }

    /// Detects missed notifications: polls whether the logs watched in this process have grown since the last poll.
    /// Does nothing without watchers.
    pub async fn poll_watched_logs(&self, seen: &mut HashMap<OrganizationId, i64>) -> Result<()> {
        let watched = self.0.notifier.watched();
        seen.retain(|org, _| watched.contains(org));
        if watched.is_empty() {
            return Ok(());
        }
        let mut tx = self.0.pool.begin(Scope::System).await?;
        for (org, position) in store::events::last_positions(&mut tx, &watched).await? {
            if seen.insert(org, position) != Some(position) {
                self.on_notification(Notification::Events(org));
            }
        }
        tx.commit().await
    }
}
