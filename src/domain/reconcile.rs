//! When to read an object from Stripe about which no webhook has arrived. Stripe rations reads, so they become rarer.

use time::{Duration, OffsetDateTime};

/// The ages of an object at its first reads.
const FIRST_READS: [Duration; 3] = [Duration::minutes(2), Duration::minutes(10), Duration::hours(1)];

/// The interval between reads after those.
const LATER_READS: Duration = Duration::hours(6);

/// The interval between reads of objects that are known to take days.
const SLOW_READS: Duration = Duration::DAY;

/// The schedule on which an object that is in progress is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadSchedule {
    /// Settles within seconds, or as soon as a person acts.
    Normal,
    /// Settles within days: a bank is processing it.
    Slow,
}

impl ReadSchedule {
    /// The minimum age of an object at its first read.
    pub const fn first_read(self) -> Duration {
        match self {
            Self::Normal => FIRST_READS[0],
            Self::Slow => SLOW_READS,
        }
    }

    /// How many reads are due by this age.
    fn reads_by(self, age: Duration) -> i64 {
        let every = |period: Duration| (age.max(Duration::ZERO).whole_seconds()) / period.whole_seconds();
        match self {
            Self::Normal => {
                let first = FIRST_READS.iter().filter(|read| **read <= age).count();
                i64::try_from(first).unwrap_or_default() + every(LATER_READS)
            }
            Self::Slow => every(SLOW_READS),
        }
    }

    /// Whether a read falls due between two checks, at `before` and `now`, of an object that last changed at
    /// `change_time`. However far apart the checks are, one read is due.
    pub fn is_due(self, change_time: OffsetDateTime, before: OffsetDateTime, now: OffsetDateTime) -> bool {
        self.reads_by(now - change_time) > self.reads_by(before - change_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ages in minutes at which an object is read, if it is checked every minute for this long.
    fn reads(schedule: ReadSchedule, minutes: i64) -> Vec<i64> {
        let change_time = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
        let at = |minute| change_time + Duration::minutes(minute);
        (-5..=minutes).filter(|minute| schedule.is_due(change_time, at(minute - 1), at(*minute))).collect()
    }

    #[test]
    fn an_object_is_read_soon_then_rarely_forever() {
        assert_eq!(reads(ReadSchedule::Normal, 60 * 13), [2, 10, 60, 360, 720]);
        assert_eq!(reads(ReadSchedule::Slow, 60 * 24 * 2), [60 * 24, 60 * 24 * 2]);
    }

    #[test]
    fn a_late_check_reads_once_and_a_repeated_check_does_not() {
        let change_time = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
        let later = change_time + Duration::hours(30);
        assert!(ReadSchedule::Normal.is_due(change_time, OffsetDateTime::UNIX_EPOCH, later), "the first check ever");
        assert!(ReadSchedule::Normal.is_due(change_time, change_time, later));
        assert!(!ReadSchedule::Normal.is_due(change_time, later, later));
        assert!(
            !ReadSchedule::Normal.is_due(change_time, later, later - Duration::HOUR),
            "no read when the clock goes back"
        );
    }

    #[test]
    fn nothing_is_read_before_its_first_read() {
        for schedule in [ReadSchedule::Normal, ReadSchedule::Slow] {
            let change_time = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
            let first = change_time + schedule.first_read();
            assert!(schedule.is_due(change_time, OffsetDateTime::UNIX_EPOCH, first));
            assert!(!schedule.is_due(change_time, OffsetDateTime::UNIX_EPOCH, first - Duration::SECOND));
        }
    }
}
