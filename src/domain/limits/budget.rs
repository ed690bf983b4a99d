//! A token bucket that mirrors one of Stripe's and is shared by all replicas: which slots are reserved already, and the
//! current rate.

use std::collections::VecDeque;

use time::{Duration, OffsetDateTime};

use super::RATE_MIN;

/// How long after its time a slot may still be used. Stripe's buckets hold one second's worth. This much may be sent as
/// a burst; the remainder absorbs differences in network delay.
const SLOT_LIFETIME: Duration = Duration::milliseconds(400);

/// The share of the full rate that is regained each second.
const RECOVERY_PER_SECOND: f64 = 0.05;

/// Calls that were in flight together are rejected together: within this period, several 429s count once.
const SLOW_DOWN_WINDOW: Duration = Duration::SECOND;

/// The state of a bucket. It is stored in the database, and updated under a row lock.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// The time of the first slot that is not reserved.
    pub next_time: OffsetDateTime,
    /// Calls a second at `rate_time`; it has recovered since.
    pub rate: f64,
    /// When the rate was last reduced.
    pub rate_time: OffsetDateTime,
}

/// A replica's request for slots of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRequest {
    /// Calls that wait for a slot.
    pub wanted: u32,
    /// How long until the replica's next request. From an idle bucket, it may reserve all slots until then.
    pub request_interval: Duration,
    /// How far ahead slots can be reserved: the longest that a call waits.
    pub horizon: Duration,
}

/// Reserved slots, evenly spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// The time of the first slot.
    pub first: OffsetDateTime,
    /// From one slot to the next.
    pub interval: Duration,
    /// The number of slots.
    pub count: u32,
}

impl Budget {
    /// A bucket that has not been used for a while. `full` is its limit in calls a second.
    pub fn new(full: f64, now: OffsetDateTime) -> Self {
        Self { next_time: now - SLOT_LIFETIME, rate: full, rate_time: now }
    }

    /// The current rate in calls a second.
    pub fn rate_at(&self, full: f64, now: OffsetDateTime) -> f64 {
        let passed = (now - self.rate_time).as_seconds_f64().max(0.0);
        (self.rate + full * RECOVERY_PER_SECOND * passed).clamp(RATE_MIN.min(full), full)
    }

    /// Halves the rate after Stripe has rejected a call with a 429.
    pub fn slow_down(&mut self, full: f64, now: OffsetDateTime) {
        let is_new = !(self.rate_time..self.rate_time + SLOW_DOWN_WINDOW).contains(&now);
        if is_new || self.rate >= full {
            self.rate = (self.rate_at(full, now) / 2.0).max(RATE_MIN.min(full));
            self.rate_time = now;
        }
    }

    /// Reserves the next slots: as many as are wanted, up to the horizon. No two requests are given the same slot.
    pub fn take(&mut self, request: SlotRequest, full: f64, now: OffsetDateTime) -> Slots {
        let interval = Duration::seconds_f64(1.0 / self.rate_at(full, now));
        // A bucket that is reserved beyond any horizon was written by a process whose clock ran ahead of this one.
        let next_time = if self.next_time > now + request.horizon * 2 { now } else { self.next_time };
        let first = next_time.max(now - SLOT_LIFETIME);
        let until = |end: OffsetDateTime| slots_within(end - first, interval);
        // Unreserved slots have expired, so the bucket is idle; otherwise other replicas are about to need the
        // remaining ones.
        let is_idle = next_time <= now - SLOT_LIFETIME;
        let wanted = if is_idle { request.wanted.max(until(now + request.request_interval)) } else { request.wanted };
        let count = wanted.min(until(now + request.horizon));
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

/// The slots of one bucket that a replica holds, earliest first.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldSlots(VecDeque<Slots>);

impl HeldSlots {
    pub fn add(&mut self, slots: Slots) {
        if slots.count > 0 {
            self.0.push_back(slots);
        }
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Drops slots that are too old to be used.
    pub fn expire(&mut self, now: OffsetDateTime) {
        let oldest = now - SLOT_LIFETIME;
        while let Some(slots) = self.0.front_mut() {
            if slots.first >= oldest {
                return;
            }
            let expired = slots_within(oldest - slots.first - Duration::NANOSECOND, slots.interval).min(slots.count);
            slots.first += slots.interval * i32::try_from(expired).unwrap_or(i32::MAX);
            slots.count -= expired;
            if slots.count > 0 {
                return;
            }
            self.0.pop_front();
        }
    }

    /// The time of the first slot.
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

    fn request(wanted: u32) -> SlotRequest {
        SlotRequest { wanted, request_interval: Duration::milliseconds(200), horizon: Duration::seconds(2) }
    }

    #[test]
    fn a_bucket_in_use_grants_what_is_requested_and_an_idle_one_all_until_the_next_request() {
        let mut budget = Budget::new(FULL, at(0));
        let first = budget.take(request(1), FULL, at(0));
        assert_eq!((first.first, first.count), (at(-400), 16), "0.4 s of past slots and 0.2 s of future ones");
        let second = budget.take(request(3), FULL, at(0));
        assert_eq!((second.first, second.count), (at(240), 3), "the next slots, and no more");
        assert_eq!(budget.take(request(1_000), FULL, at(0)).count, 42, "up to the horizon");
        assert_eq!(budget.take(request(5), FULL, at(0)).count, 0);
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
        assert!(rate(&budget, 59_000) >= RATE_MIN, "and never zero");
    }

    #[test]
    fn a_bucket_written_by_a_clock_that_ran_ahead_is_not_blocked_for_days() {
        let mut budget = Budget { next_time: at(86_400_000), ..Budget::new(FULL, at(86_400_000)) };
        assert!(budget.take(request(1), FULL, at(0)).count > 0);
    }

    #[test]
    fn slots_expire_and_are_used_in_order() {
        let mut held = HeldSlots::default();
        held.add(Slots { first: at(0), interval: Duration::milliseconds(40), count: 25 });
        held.expire(at(440));
        assert_eq!((held.first(), held.count()), (Some(at(40)), 24));
        held.pop();
        assert_eq!((held.first(), held.count()), (Some(at(80)), 23));
        held.expire(at(10_000));
        assert_eq!((held.first(), held.count()), (None, 0));
    }

    proptest! {
        /// Whatever replicas request and whenever they use it, a bucket at Stripe that holds one second's worth never
        /// runs empty, even if some calls take half a second longer than others to arrive.
        #[test]
        fn together_replicas_never_go_faster_than_the_limit(
            requests in prop::collection::vec((0_i64..300, 0_usize..3, 0_u32..12, 0_i64..500), 1..200)
        ) {
            let mut budget = Budget::new(FULL, at(0));
            let mut replicas = vec![HeldSlots::default(); 3];
            let (mut now, mut arrivals) = (0, Vec::new());
            for (passed, replica, wanted, delay) in requests {
                now += passed;
                let held = &mut replicas[replica];
                held.add(budget.take(request(wanted), FULL, at(now)));
                held.expire(at(now));
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
                prop_assert!(tokens >= 0.0, "rejected at {arrival} ms");
            }
        }
    }
}
