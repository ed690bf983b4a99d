//! When Stripe is asked about something of which nothing has been heard. Reads are rationed, so they get rarer.

use time::{Duration, OffsetDateTime};

/// How old an object is at its first reads.
const FIRST_READS: [Duration; 3] = [Duration::minutes(2), Duration::minutes(10), Duration::hours(1)];

/// How far apart the reads are after those.
const LATER_READS: Duration = Duration::hours(6);

/// How far apart the reads are of what is known to take days.
const SLOW_READS: Duration = Duration::DAY;

/// How long something may take before it is strange that nothing was heard of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Seconds, or as long as a person needs.
    Usual,
    /// Days: a bank has it.
    Slow,
}

impl Pace {
    /// How old an object is at least when it is first read.
    pub const fn first_read(self) -> Duration {
        match self {
            Self::Usual => FIRST_READS[0],
            Self::Slow => SLOW_READS,
        }
    }

    /// How many reads belong to an object of this age.
    fn reads_by(self, age: Duration) -> i64 {
        let every = |period: Duration| (age.max(Duration::ZERO).whole_seconds()) / period.whole_seconds();
        match self {
            Self::Usual => {
                let first = FIRST_READS.iter().filter(|read| **read <= age).count();
                i64::try_from(first).unwrap_or_default() + every(LATER_READS)
            }
            Self::Slow => every(SLOW_READS),
        }
    }

    /// Whether a read falls due between two looks, `before` and `now`, at an object that last changed at `changed`.
    /// However long the looks are apart, that is one read.
    pub fn is_due(self, changed: OffsetDateTime, before: OffsetDateTime, now: OffsetDateTime) -> bool {
        self.reads_by(now - changed) > self.reads_by(before - changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ages, in minutes, at which an object is read that is looked at every minute for so long.
    fn reads(pace: Pace, minutes: i64) -> Vec<i64> {
        let changed = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
        let at = |minute| changed + Duration::minutes(minute);
        (-5..=minutes).filter(|minute| pace.is_due(changed, at(minute - 1), at(*minute))).collect()
    }

    #[test]
    fn an_object_is_read_soon_then_rarely_for_ever() {
        assert_eq!(reads(Pace::Usual, 60 * 13), [2, 10, 60, 360, 720]);
        assert_eq!(reads(Pace::Slow, 60 * 24 * 2), [60 * 24, 60 * 24 * 2]);
    }

    #[test]
    fn a_look_that_comes_late_reads_once_and_one_that_comes_again_does_not() {
        let changed = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
        let later = changed + Duration::hours(30);
        assert!(Pace::Usual.is_due(changed, OffsetDateTime::UNIX_EPOCH, later), "the first look ever");
        assert!(Pace::Usual.is_due(changed, changed, later));
        assert!(!Pace::Usual.is_due(changed, later, later));
        assert!(!Pace::Usual.is_due(changed, later, later - Duration::HOUR), "a clock that goes back reads nothing");
    }

    #[test]
    fn nothing_is_read_before_its_first_read() {
        for pace in [Pace::Usual, Pace::Slow] {
            let changed = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
            let first = changed + pace.first_read();
            assert!(pace.is_due(changed, OffsetDateTime::UNIX_EPOCH, first));
            assert!(!pace.is_due(changed, OffsetDateTime::UNIX_EPOCH, first - Duration::SECOND));
        }
    }
}
