//! What is done by the clock alone: old rows go, new partitions come, and logs that grew unnoticed are noticed.

use std::collections::HashMap;

use time::Duration;

use super::App;
use crate::domain::{OrganizationId, Result};
use crate::store::{self, Hint, Scope};

/// How long a `request_id` is remembered.
const REQUEST_ID_RETENTION: Duration = Duration::days(30);

/// How many rows one transaction removes.
const BATCH: i64 = 1_000;

/// How many days ahead partitions are made.
const DAYS_AHEAD: i64 = 3;

impl App {
    /// Removes what is past its retention, and makes the partitions of the coming days. For a timer; two processes doing it
    /// at once would do no harm.
    pub(super) async fn retire_old(&self) -> Result<()> {
        // One that fails does not keep the others from their work.
        let mut ended =
            vec![self.retire_deliveries().await, self.forget_request_ids().await, self.forget_budgets().await];
        match self.list_organizations().await {
            Ok(organizations) => {
                for organization in organizations {
                    ended.push(self.trim_log(organization.id).await);
                }
            }
            Err(error) => ended.push(Err(error)),
        }
        for error in ended.iter().filter_map(|end| end.as_ref().err()).filter(|error| !error.is_database_away()) {
            tracing::warn!(%error, "old rows are kept for now");
        }
        ended.into_iter().collect()
    }

    async fn retire_deliveries(&self) -> Result<()> {
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

    async fn forget_request_ids(&self) -> Result<()> {
        let before = self.clock().now() - REQUEST_ID_RETENTION;
        loop {
            let mut tx = self.0.pool.begin(Scope::System).await?;
            let gone = store::requests::forget(&mut tx, before, BATCH).await?;
            tx.commit().await?;
            if gone == 0 {
                return Ok(());
            }
        }
    }

    async fn trim_log(&self, organization: OrganizationId) -> Result<()> {
        let before = self.clock().now() - self.0.settings.event_retention;
        loop {
            let mut tx = self.0.pool.begin(Scope::System).await?;
            let gone = store::events::trim(&mut tx, organization, before, BATCH).await?;
            tx.commit().await?;
            if gone == 0 {
                return Ok(());
            }
        }
    }

    /// The net under lost hints: looks whether the logs that somebody here watches have grown since the last look. Does
    /// nothing while nobody watches.
    pub async fn notice_logs(&self, seen: &mut HashMap<OrganizationId, i64>) -> Result<()> {
        let watched = self.0.wake.watched();
        seen.retain(|org, _| watched.contains(org));
        if watched.is_empty() {
            return Ok(());
        }
        let mut tx = self.0.pool.begin(Scope::System).await?;
        for (org, position) in store::events::last_positions(&mut tx, &watched).await? {
            if seen.insert(org, position) != Some(position) {
                self.hear(Hint::Events(org));
            }
        }
        tx.commit().await
    }
}
