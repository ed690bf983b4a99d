//! The injected clock. Every period of Paybridge (retry tables, the 20 h of an idempotency key, the 24 h of a link,
//! reconcilers) is measured in its time. In `dev` the clock can run fast or be moved, so that days pass in seconds for
//! the service and the sandbox alike.

use std::sync::Arc;
use std::time::Duration as RealDuration;

use time::{Duration, OffsetDateTime};
use tokio::sync::watch;
use uuid::{NoContext, Timestamp, Uuid};

/// Waits in real time, unlike [`Clock::sleep`].
pub async fn pause(period: RealDuration) {
    // A timeout over a future that never completes is a sleep.
    let _ = tokio::time::timeout(period, std::future::pending::<()>()).await;
}

/// A cheap handle; clones show the same time.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    anchor: OffsetDateTime,
    speed: u32,
    /// How far the clock was moved forward. A watch, so that sleepers wake when it moves.
    skipped: watch::Sender<Duration>,
}

impl Clock {
    /// The machine's own time.
    pub fn system() -> Self {
        Self::scaled(OffsetDateTime::UNIX_EPOCH, 1)
    }

    /// A clock that showed `anchor` at `anchor`, and has run at `speed` times real time since. Processes with the same
    /// two values show the same time. A speed of 0 counts as 1.
    pub fn scaled(anchor: OffsetDateTime, speed: u32) -> Self {
        Self(Arc::new(Inner { anchor, speed: speed.max(1), skipped: watch::Sender::new(Duration::ZERO) }))
    }

    /// The present time, cut to microseconds, which is what Postgres keeps.
    pub fn now(&self) -> OffsetDateTime {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the machine's clock")]
        let real = OffsetDateTime::now_utc();
        let skipped = *self.0.skipped.borrow();
        let shown = self.0.anchor + (real - self.0.anchor) * self.0.speed + skipped;
        let nanosecond = shown.nanosecond() / 1_000 * 1_000;
        shown.replace_nanosecond(nanosecond).unwrap_or(shown)
    }

    /// The real time in which `period` of this clock's time passes. Negative periods become zero.
    pub fn real(&self, period: Duration) -> RealDuration {
        RealDuration::try_from(period).unwrap_or_default() / self.0.speed
    }

    /// The time that this clock advances within `period` of real time.
    pub fn shown(&self, period: RealDuration) -> Duration {
        Duration::try_from(period)
            .unwrap_or(Duration::MAX)
            .saturating_mul(i32::try_from(self.0.speed).unwrap_or(i32::MAX))
    }

    /// Moves the clock forward at once; sleepers whose deadline has passed wake.
    pub fn advance(&self, by: Duration) {
        self.0.skipped.send_modify(|skipped| *skipped += by);
    }

    /// Waits until the clock shows `deadline` or later.
    pub async fn sleep_until(&self, deadline: OffsetDateTime) {
        let mut moved = self.0.skipped.subscribe();
        loop {
            let left = deadline - self.now();
            if left <= Duration::ZERO {
                return;
            }
            #[expect(clippy::disallowed_methods, reason = "every other wait goes through this one")]
            let pause = tokio::time::sleep(self.real(left));
            tokio::select! {
                () = pause => {}
                _ = moved.changed() => {}
            }
        }
    }

    /// Waits for `period` of this clock's time.
    pub async fn sleep(&self, period: Duration) {
        self.sleep_until(self.now() + period).await;
    }

    /// A new UUID v7. Rows created together are adjacent in an index.
    pub fn new_id(&self) -> Uuid {
        let now = self.now();
        let seconds = u64::try_from(now.unix_timestamp()).unwrap_or_default();
        Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, now.nanosecond()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_the_clock_moves_every_clone() {
        let clock = Clock::system();
        let other = clock.clone();
        let before = other.now();
        clock.advance(Duration::days(3));
        assert!(other.now() - before >= Duration::days(3));
    }

    #[test]
    fn a_fast_clock_takes_less_real_time() {
        let clock = Clock::scaled(OffsetDateTime::UNIX_EPOCH, 60);
        assert_eq!(clock.real(Duration::MINUTE), RealDuration::from_secs(1));
        assert_eq!(clock.shown(RealDuration::from_secs(1)), Duration::MINUTE);
    }

    #[tokio::test]
    async fn a_sleeper_wakes_when_the_clock_is_moved_past_its_deadline() {
        let clock = Clock::system();
        let tomorrow = clock.now() + Duration::DAY;
        tokio::join!(clock.sleep_until(tomorrow), async { clock.advance(Duration::days(2)) });
    }
}
