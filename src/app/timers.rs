//! What is done by the clock alone, once and not once a process: whoever moves a timer's row forward does it.

use time::{Duration, OffsetDateTime};

use super::App;
use crate::domain::Result;
use crate::store::{self, Scope};

/// Something that is done by the clock alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// Old rows go, and room is made for new ones.
    Retire,
    /// Every live integration is given the reconcilers that it lacks.
    Reconcilers,
}

impl Timer {
    /// The name in the database and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retire => "retire",
            Self::Reconcilers => "reconcilers",
        }
    }

    /// How far apart the times are, in the clock's time.
    fn period(self) -> Duration {
        match self {
            Self::Retire => Duration::HOUR,
            Self::Reconcilers => Duration::minutes(10),
        }
    }
}

impl App {
    /// Does what a timer stands for, if it is due and nobody else has taken it. Returns when it is next due.
    pub async fn run_timer(&self, timer: Timer) -> Result<OffsetDateTime> {
        let now = self.clock().now();
        let next = now + timer.period();
        let mut tx = self.0.pool.begin(Scope::System).await?;
        let is_ours = store::timers::take(&mut tx, timer.as_str(), now, next).await?;
        let next = store::timers::next(&mut tx, timer.as_str()).await?.unwrap_or(next);
        tx.commit().await?;
        if !is_ours {
            return Ok(next);
        }
        let done = match timer {
            Timer::Retire => self.retire_old().await,
            Timer::Reconcilers => self.make_reconcilers().await,
        };
        if let Err(error) = done {
            let mut tx = self.0.pool.begin(Scope::System).await?;
            store::timers::put_back(&mut tx, timer.as_str(), now).await?;
            tx.commit().await?;
            return Err(error);
        }
        Ok(next)
    }
}
