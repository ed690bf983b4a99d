//! Stripe's limits, shared by all replicas: this process takes slots for the calls that wait in it, a few times a second
//! at most, and never a call at a time.

use time::Duration;

use super::App;
use crate::domain::Result;
use crate::domain::limits::{Ask, BucketId, Budget};
use crate::store::{self, Scope};
use crate::stripe;

/// How far apart slots are taken at least, real time. A call waits for about as long at most where no other is in line.
pub const SLOTS_EVERY: std::time::Duration = std::time::Duration::from_millis(200);

/// How long a bucket that nobody uses is kept, in the clock's time: its rate is back at the limit long before.
const BUDGET_RETENTION: Duration = Duration::DAY;

/// How many rows one transaction removes.
const BATCH: i64 = 1_000;

impl App {
    /// Returns once calls to Stripe wait for slots.
    pub async fn slots_wanted(&self) {
        self.0.stripe.slots_wanted().await;
    }

    /// Takes slots for the calls of this process that wait for some. For a timer, [`SLOTS_EVERY`] apart.
    pub async fn take_slots(&self) -> Result<()> {
        let (client, clock) = (&self.0.stripe, self.clock());
        let lacking = client.lacking();
        if lacking.is_empty() {
            return Ok(());
        }
        let full = |id: &BucketId| client.limits().rate(id.livemode, &id.endpoint);
        let ids: Vec<BucketId> = lacking.iter().map(|lacking| lacking.bucket.clone()).collect();
        let mut tx = self.0.pool.begin(Scope::System).await?;
        let mut budgets = store::budgets::lock(&mut tx, &ids).await?;
        if budgets.len() < ids.len() {
            let now = clock.now();
            let fresh: Vec<_> = ids.iter().map(|id| (id.clone(), Budget::new(full(id), now))).collect();
            store::budgets::make(&mut tx, &fresh).await?;
            budgets = store::budgets::lock(&mut tx, &ids).await?;
        }
        // Read under the locks, so that no slot is too old before it is handed out.
        let now = clock.now();
        let mut taken = Vec::new();
        for (id, budget) in &mut budgets {
            let Some(lacks) = lacking.iter().find(|lacks| lacks.bucket == *id) else { continue };
            if lacks.was_refused {
                budget.slow_down(full(id), now);
                tracing::info!(
                    endpoint = id.endpoint,
                    rate = budget.rate,
                    "Stripe limits our calls; slower from now on"
                );
            }
            let ask =
                Ask { wanted: lacks.wanted, spare: clock.shown(SLOTS_EVERY), ahead: clock.shown(stripe::TURN_WITHIN) };
            taken.push((id.clone(), budget.take(ask, full(id), now)));
        }
        store::budgets::save(&mut tx, &budgets).await?;
        // Slots are used only once nobody else can be given the same.
        tx.commit().await?;
        for (id, slots) in taken {
            client.supply(&id, slots);
        }
        Ok(())
    }

    /// Forgets buckets that nobody uses any more.
    pub(super) async fn forget_budgets(&self) -> Result<()> {
        let before = self.clock().now() - BUDGET_RETENTION;
        loop {
            let mut tx = self.0.pool.begin(Scope::System).await?;
            let gone = store::budgets::forget(&mut tx, before, BATCH).await?;
            tx.commit().await?;
            if gone == 0 {
                return Ok(());
            }
        }
    }
}
