//! The time of a run: one fast clock for the sandbox and the processes under test. The sandbox's is moved; processes are
//! told by their environment where it stands, so that moving it means that they begin again, as after a long absence.

use std::sync::Mutex;

use time::{Duration, OffsetDateTime};

use super::lock;
use crate::clock::Clock;

/// See the module's text.
pub(super) struct Time {
    pub clock: Clock,
    anchor: OffsetDateTime,
    speed: u32,
    ahead: Mutex<Duration>,
}

impl Time {
    /// Begins now.
    pub fn new(speed: u32) -> Self {
        let anchor = Clock::system().now().replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        Self { clock: Clock::scaled(anchor, speed), anchor, speed, ahead: Mutex::new(Duration::ZERO) }
    }

    /// Moves it by whole seconds, and all that go by its clock.
    pub fn advance(&self, by: Duration) {
        *lock(&self.ahead) += by;
        self.clock.advance(by);
    }

    /// What `PAYBRIDGE_CLOCK` says of it.
    pub fn setting(&self) -> String {
        let ahead = lock(&self.ahead).whole_seconds();
        format!("{},{},{ahead}", self.anchor.unix_timestamp(), self.speed)
    }

    /// How much has passed since the run began.
    pub fn passed(&self) -> Duration {
        self.clock.now() - self.anchor
    }

    /// The present, in unix seconds.
    pub fn seconds(&self) -> i64 {
        self.clock.now().unix_timestamp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_told_the_setting_has_the_same_time() {
        let time = Time::new(60);
        time.advance(Duration::hours(6));
        let setting = time.setting();
        let parts: Vec<i64> = setting.split(',').map(|part| part.parse().unwrap()).collect();
        let anchor = OffsetDateTime::from_unix_timestamp(parts[0]).unwrap();
        let theirs = Clock::scaled(anchor, u32::try_from(parts[1]).unwrap());
        theirs.advance(Duration::seconds(parts[2]));
        assert!((theirs.now() - time.clock.now()).abs() < Duration::minutes(5), "{setting}");
        assert!(time.passed() >= Duration::hours(6));
    }
}
