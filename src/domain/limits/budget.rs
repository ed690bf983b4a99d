//! One bucket of Stripe's, as all replicas share it: which slots are given out already, and how fast it may be emptied.

use std::collections::VecDeque;

use time::{Duration, OffsetDateTime};

use super::RATE_MIN;

/// How long after its moment a slot may still be used. Stripe's buckets hold a second's worth: this much of it may go at
/// once, and as much again is left for calls that overtake each other on their way.
const LATE_MAX: Duration = Duration::milliseconds(400);

/// The part of the full rate that comes back each second.
const RECOVERY: f64 = 0.05;

/// Several calls that were under way together are turned away together: within this time that counts once.
const SLOW_ONCE: Duration = Duration::SECOND;

/// A bucket. It is kept where all replicas see it, and changed by one at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// The first slot that nobody has taken.
    pub next_time: OffsetDateTime,
    /// Calls a second, as of `rate_time`; it has grown since.
    pub rate: f64,
    /// When the rate was last cut.
    pub rate_time: OffsetDateTime,
}

/// What a replica asks a bucket for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Calls that wait.
    pub wanted: u32,
    /// How long it will be until the replica asks again: of a bucket that nobody uses it may as well take all slots until
    /// then.
    pub spare: Duration,
    /// How far ahead slots are of any use: nobody waits longer.
    pub ahead: Duration,
}

/// Slots, evenly spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// The moment of the first.
    pub first: OffsetDateTime,
    /// From one to the next.
    pub interval: Duration,
    /// How many.
    pub count: u32,
}

impl Budget {
    /// A bucket that nobody has used for a while. `full` is its limit, calls a second.
    pub fn new(full: f64, now: OffsetDateTime) -> Self {
        Self { next_time: now - LATE_MAX, rate: full, rate_time: now }
    }

    /// The present rate, calls a second.
    pub fn rate_at(&self, full: f64, now: OffsetDateTime) -> f64 {
        let passed = (now - self.rate_time).as_seconds_f64().max(0.0);
        (self.rate + full * RECOVERY * passed).clamp(RATE_MIN.min(full), full)
    }

    /// Stripe has turned a call away: half as fast from now on.
    pub fn slow_down(&mut self, full: f64, now: OffsetDateTime) {
        let is_new = !(self.rate_time..self.rate_time + SLOW_ONCE).contains(&now);
        if is_new || self.rate >= full {
            self.rate = (self.rate_at(full, now) / 2.0).max(RATE_MIN.min(full));
            self.rate_time = now;
        }
    }

    /// Takes slots: the next ones, as many as are wanted and of use. Nobody else is ever given the same.
    pub fn take(&mut self, ask: Ask, full: f64, now: OffsetDateTime) -> Slots {
        let interval = Duration::seconds_f64(1.0 / self.rate_at(full, now));
        // A bucket that is used up for longer than anybody asks was kept by a clock that ran ahead of this one.
        let kept = if self.next_time > now + ask.ahead * 2 { now } else { self.next_time };
        let first = kept.max(now - LATE_MAX);
        let until = |end: OffsetDateTime| slots_within(end - first, interval);
        // Slots have lapsed that nobody wanted; else others are about to want those that are left.
        let is_idle = kept <= now - LATE_MAX;
        let wanted = if is_idle { ask.wanted.max(until(now + ask.spare)) } else { ask.wanted };
        let count = wanted.min(until(now + ask.ahead));
        self.next_time = first + interval.saturating_mul(i32::try_from(count).unwrap_or(i32::MAX));
        Slots { first, interval, count }
    }
}

fn slots_within(period: Duration, interval: Duration) -> u32 {
    if period.is_negative() {
        return 0;
    }
    let count = period.whole_nanoseconds() / interval.whole_nanoseconds().max(1) + 1;
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Slots that a replica holds of one bucket, earliest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(VecDeque<Slots>);

impl Held {
    pub fn add(&mut self, slots: Slots) {
        if slots.count > 0 {
            self.0.push_back(slots);
        }
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Lets go of slots whose time is over.
    pub fn lapse(&mut self, now: OffsetDateTime) {
        let oldest = now - LATE_MAX;
        while let Some(slots) = self.0.front_mut() {
            if slots.first >= oldest {
                return;
            }
            let gone = slots_within(oldest - slots.first - Duration::NANOSECOND, slots.interval).min(slots.count);
            slots.first += slots.interval * i32::try_from(gone).unwrap_or(i32::MAX);
            slots.count -= gone;
            if slots.count > 0 {
                return;
            }
            self.0.pop_front();
        }
    }

    /// The moment of the first slot.
    pub fn first(&self) -> Option<OffsetDateTime> {
        self.0.front().map(|slots| slots.first)
    }

    /// Uses the first slot.
    pub fn pop(&mut self) {
        if let Some(slots) = self.0.front_mut() {
            slots.first += slots.interval;
            slots.count -= 1;
            if slots.count == 0 {
                self.0.pop_front();
            }
        }
    }

    /// How many are held.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|slots| slots.count).fold(0, u32::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FULL: f64 = 25.0;

    fn at(milliseconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::milliseconds(milliseconds)
    }

    fn ask(wanted: u32) -> Ask {
        Ask { wanted, spare: Duration::milliseconds(200), ahead: Duration::seconds(2) }
    }

    #[test]
    fn a_bucket_in_use_gives_what_is_asked_and_an_idle_one_gives_all_until_the_next_ask() {
        let mut budget = Budget::new(FULL, at(0));
        let first = budget.take(ask(1), FULL, at(0));
        assert_eq!((first.first, first.count), (at(-400), 16), "0.4 s late and 0.2 s ahead");
        let second = budget.take(ask(3), FULL, at(0));
        assert_eq!((second.first, second.count), (at(240), 3), "those after it, and no more");
        assert_eq!(budget.take(ask(1_000), FULL, at(0)).count, 42, "as far ahead as anybody waits");
        assert_eq!(budget.take(ask(5), FULL, at(0)).count, 0);
    }

    #[test]
    fn a_429_halves_the_rate_once_and_a_twentieth_of_the_full_rate_comes_back_each_second() {
        let mut budget = Budget::new(FULL, at(0));
        for milliseconds in [5_000, 5_001, 5_500] {
            budget.slow_down(FULL, at(milliseconds));
        }
        let rate = |budget: &Budget, milliseconds| (budget.rate_at(FULL, at(milliseconds)) * 100.0).round() / 100.0;
        assert!((rate(&budget, 5_000) - 12.5).abs() < 0.01, "{budget:?}");
        assert!((rate(&budget, 7_000) - 15.0).abs() < 0.01, "{budget:?}");
        assert!((rate(&budget, 60_000) - FULL).abs() < 0.01, "never more than the limit");
        for milliseconds in 6..60 {
            budget.slow_down(FULL, at(milliseconds * 1_000));
        }
        assert!(rate(&budget, 59_000) >= RATE_MIN, "and never nothing");
    }

    #[test]
    fn a_bucket_kept_by_a_clock_that_ran_ahead_is_not_closed_for_days() {
        let mut budget = Budget { next_time: at(86_400_000), ..Budget::new(FULL, at(86_400_000)) };
        assert!(budget.take(ask(1), FULL, at(0)).count > 0);
    }

    #[test]
    fn slots_lapse_and_are_used_in_order() {
        let mut held = Held::default();
        held.add(Slots { first: at(0), interval: Duration::milliseconds(40), count: 25 });
        held.lapse(at(440));
        assert_eq!((held.first(), held.count()), (Some(at(40)), 24));
        held.pop();
        assert_eq!((held.first(), held.count()), (Some(at(80)), 23));
        held.lapse(at(10_000));
        assert_eq!((held.first(), held.count()), (None, 0));
    }

    proptest! {
        /// Whatever replicas ask for and whenever they use it, a bucket of Stripe's that holds a second's worth never
        /// runs empty, even where calls take up to half a second longer than others to arrive.
        #[test]
        fn together_replicas_never_go_faster_than_the_limit(
            asks in prop::collection::vec((0_i64..300, 0_usize..3, 0_u32..12, 0_i64..500), 1..200)
        ) {
            let mut budget = Budget::new(FULL, at(0));
            let mut replicas = vec![Held::default(); 3];
            let (mut now, mut arrivals) = (0, Vec::new());
            for (passed, replica, wanted, delay) in asks {
                now += passed;
                let held = &mut replicas[replica];
                held.add(budget.take(ask(wanted), FULL, at(now)));
                held.lapse(at(now));
                while held.first().is_some_and(|first| first <= at(now)) {
                    held.pop();
                    arrivals.push(now + delay);
                }
            }
            arrivals.sort_unstable();
            let (mut tokens, mut last) = (FULL, 0);
            for arrival in arrivals {
                #[expect(clippy::cast_precision_loss, reason = "milliseconds of a minute")]
                let refilled = (arrival - last) as f64 * FULL / 1_000.0;
                (tokens, last) = ((tokens + refilled).min(FULL) - 1.0, arrival);
                prop_assert!(tokens >= 0.0, "turned away at {arrival} ms");
            }
        }
    }
}
