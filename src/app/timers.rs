//! Periodic tasks that run once per period over all processes: the process that advances a timer's row runs the task.

use time::{Duration, OffsetDateTime};

use super::App;
use crate::domain::Result;
use crate::store::{self, Scope};

/// A periodic task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Timer {
    /// Deletes rows past their retention, and creates partitions for the coming days.
    Retire,
    /// Enqueues missing reconcilers of live integrations.
    Reconcilers,
}

impl Timer {
    /// The name in the database and in logs.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The period, in clock time.
    fn period(self) -> Duration {
        match self {
            Self::Retire => Duration::HOUR,
            Self::Reconcilers => Duration::minutes(10),
        }
    }
}

impl App {
    /// Runs a timer's task, if it is due and no other process has claimed it. Returns when it is due next.
    pub async fn run_timer(&self, timer: Timer) -> Result<OffsetDateTime> {
        let now = self.clock().now();
        let next = now + timer.period();
        let mut tx = self.0.pool.begin(Scope::System).await?;
        let is_ours = store::timers::claim(&mut tx, timer.as_str(), now, next).await?;
        let next = store::timers::next(&mut tx, timer.as_str()).await?.unwrap_or(next);
        tx.commit().await?;
        if !is_ours {
            return Ok(next);
        }
        let done = match timer {
            Timer::Retire => self.delete_expired().await,
            Timer::Reconcilers => self.enqueue_missing_reconcilers().await,
        };
        if let Err(error) = done {
            let mut tx = self.0.pool.begin(Scope::System).await?;
            store::timers::make_due(&mut tx, timer.as_str(), now).await?;
            tx.commit().await?;
            return Err(error);
        }
        Ok(next)
    }
}
