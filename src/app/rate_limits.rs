//! Stripe's rate limits, shared by all replicas: this process acquires slots for the calls that wait in it, in batches,
//! at most a few times a second.

use time::Duration;

use super::App;
use crate::domain::Result;
use crate::domain::limits::{BucketId, Budget, SlotRequest};
use crate::store::{self, Scope};
use crate::stripe;

/// The minimum interval between batches, in real time. A call waits about this long at most if no other call is queued.
pub const SLOTS_EVERY: std::time::Duration = std::time::Duration::from_millis(200);

/// How long an unused bucket is kept, in clock time. Its rate is back at the limit long before.
const BUDGET_RETENTION: Duration = Duration::DAY;

/// How many rows one transaction deletes.
const BATCH: i64 = 1_000;

impl App {
    /// Returns once calls to Stripe wait for slots.
    pub async fn slots_wanted(&self) {
        self.0.stripe.rate_limiters().slots_wanted().await;
    }

    /// Acquires slots for the waiting calls of this process. For a timer, [`SLOTS_EVERY`] apart.
    pub async fn take_slots(&self) -> Result<()> {
        let (rate_limiters, clock) = (self.0.stripe.rate_limiters(), self.clock());
        let demands = rate_limiters.demand();
        if demands.is_empty() {
            return Ok(());
        }
        let full = |id: &BucketId| rate_limiters.limits().rate(id.livemode, &id.endpoint);
        let ids: Vec<BucketId> = demands.iter().map(|demand| demand.bucket.clone()).collect();
        let mut tx = self.0.pool.begin(Scope::System).await?;
        let mut budgets = store::rate_limits::lock(&mut tx, &ids).await?;
        if budgets.len() < ids.len() {
            let now = clock.now();
            let fresh: Vec<_> = ids.iter().map(|id| (id.clone(), Budget::new(full(id), now))).collect();
            store::rate_limits::insert_new(&mut tx, &fresh).await?;
            budgets = store::rate_limits::lock(&mut tx, &ids).await?;
        }
        // Read under the locks: otherwise slots could be outdated before they are handed out.
        let now = clock.now();
        let mut taken = Vec::new();
        for (id, budget) in &mut budgets {
            let Some(demand) = demands.iter().find(|demand| demand.bucket == *id) else { continue };
            if demand.was_rate_limited {
                budget.slow_down(full(id), now);
                tracing::info!(endpoint = id.endpoint, rate = budget.rate, "rate lowered after Stripe returned 429");
            }
            let request = SlotRequest {
                wanted: demand.wanted,
                request_interval: clock.shown(SLOTS_EVERY),
                horizon: clock.shown(stripe::ACQUIRE_TIMEOUT),
            };
            taken.push((id.clone(), budget.take(request, full(id), now)));
        }
        store::rate_limits::save(&mut tx, &budgets).await?;
        // Slots may be used only after the commit: until then another process could acquire the same ones.
        tx.commit().await?;
        for (id, slots) in taken {
            rate_limiters.supply(&id, slots);
        }
        Ok(())
    }

    /// Deletes buckets that are no longer used.
    pub(super) async fn delete_unused_budgets(&self) -> Result<()> {
        let before = self.clock().now() - BUDGET_RETENTION;
        loop {
            let mut tx = self.0.pool.begin(Scope::System).await?;
            let deleted = store::rate_limits::delete_unused(&mut tx, before, BATCH).await?;
            tx.commit().await?;
            if deleted == 0 {
                return Ok(());
            }
        }
    }
}
