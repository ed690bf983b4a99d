//! The clock of a run, shared by the sandbox and the processes under test, and faster than real time. Advancing it
//! moves the sandbox's clock at once; processes get the new offset from their environment and have to be restarted, as
//! after a long outage.

use parking_lot::Mutex;
use time::{Duration, OffsetDateTime};

use crate::clock::Clock;

pub(super) struct Time {
    pub clock: Clock,
    anchor: OffsetDateTime,
    speed: u32,
    ahead: Mutex<Duration>,
}

impl Time {
    /// Starts the clock at the present time.
    pub fn new(speed: u32) -> Self {
        let anchor = Clock::system().now().replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        Self { clock: Clock::scaled(anchor, speed), anchor, speed, ahead: Mutex::new(Duration::ZERO) }
    }

    /// Advances the clock by whole seconds.
    pub fn advance(&self, by: Duration) {
        *self.ahead.lock() += by;
        self.clock.advance(by);
    }

    /// The value of `PAYBRIDGE_CLOCK`.
    pub fn setting(&self) -> String {
        let ahead = self.ahead.lock().whole_seconds();
        format!("{},{},{ahead}", self.anchor.unix_timestamp(), self.speed)
    }

    /// The time since the run started.
    pub fn elapsed(&self) -> Duration {
        self.clock.now() - self.anchor
    }

    /// The current time, in Unix seconds.
    pub fn seconds(&self) -> i64 {
        self.clock.now().unix_timestamp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_the_setting_has_the_same_time() {
        let time = Time::new(60);
        time.advance(Duration::hours(6));
        let setting = time.setting();
        let parts: Vec<i64> = setting.split(',').map(|part| part.parse().unwrap()).collect();
        let anchor = OffsetDateTime::from_unix_timestamp(parts[0]).unwrap();
        let clock = Clock::scaled(anchor, u32::try_from(parts[1]).unwrap());
        clock.advance(Duration::seconds(parts[2]));
        assert!((clock.now() - time.clock.now()).abs() < Duration::minutes(5), "{setting}");
        assert!(time.elapsed() >= Duration::hours(6));
    }
}
