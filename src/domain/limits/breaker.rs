//! When most calls fail, the next ones would too: they are held back for a while, and Stripe is spared. To be held back
//! means later, never failed (P2).

use std::collections::VecDeque;

use time::{Duration, OffsetDateTime};

/// How far back calls count.
const WINDOW: Duration = Duration::seconds(10);

/// So few calls prove nothing.
const CALLS_MIN: u32 = 20;

/// How long the first opening lasts, and how long the longest.
const OPEN_FIRST: Duration = Duration::seconds(2);
const OPEN_MAX: Duration = Duration::seconds(30);

/// How long a probe keeps others from probing.
const PROBE_MAX: Duration = Duration::seconds(10);

/// When to ask again while a probe is under way.
const PROBE_PERIOD: Duration = Duration::SECOND;

/// A circuit breaker.
#[derive(Debug, Default)]
pub struct Breaker {
    state: State,
    /// Calls and failures by second, oldest first.
    seconds: VecDeque<(i64, u32, u32)>,
    /// Openings in a row.
    openings: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open(OffsetDateTime),
    /// One call is let through, since this time, to see whether it is over.
    Probing(OffsetDateTime),
}

impl Breaker {
    /// When to ask again, if calls are held back now.
    pub fn held_until(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        match self.state {
            State::Open(until) if now < until => Some(until),
            State::Probing(since) if now < since + PROBE_MAX => Some(now + PROBE_PERIOD),
            _ => None,
        }
    }

    /// A call is about to go; whether it is a probe, or when to ask again.
    pub fn admit(&mut self, now: OffsetDateTime) -> Result<bool, OffsetDateTime> {
        if let Some(until) = self.held_until(now) {
            return Err(until);
        }
        let is_probe = self.state != State::Closed;
        if is_probe {
            self.state = State::Probing(now);
        }
        Ok(is_probe)
    }

    /// A call has ended, well or without an answer of Stripe's. `jitter` is random, from 0 to 1. `may_open`: whether it
    /// may be this breaker's business at all.
    pub fn record(&mut self, now: OffsetDateTime, failed: bool, is_probe: bool, jitter: f64, may_open: bool) {
        match self.state {
            State::Probing(_) if is_probe && failed => self.open(now, jitter),
            State::Probing(_) if is_probe => *self = Self::default(),
            // It began before the breaker opened: what it says is old.
            State::Open(_) | State::Probing(_) => {}
            State::Closed => {
                let second = now.unix_timestamp();
                match self.seconds.back_mut() {
                    Some((last, calls, failures)) if *last == second => {
                        *calls += 1;
                        *failures += u32::from(failed);
                    }
                    _ => self.seconds.push_back((second, 1, u32::from(failed))),
                }
                self.seconds.retain(|(at, ..)| (second - WINDOW.whole_seconds() + 1..=second).contains(at));
                let (calls, failures) =
                    self.seconds.iter().fold((0, 0), |sum, (_, calls, failures)| (sum.0 + calls, sum.1 + failures));
                if may_open && failed && calls >= CALLS_MIN && failures * 2 >= calls {
                    self.open(now, jitter);
                }
            }
        }
    }

    /// A probe ended without having shown anything: the next call is one.
    pub fn forget_probe(&mut self, now: OffsetDateTime) {
        if matches!(self.state, State::Probing(_)) {
            self.state = State::Open(now);
        }
    }

    fn open(&mut self, now: OffsetDateTime, jitter: f64) {
        let period =
            (OPEN_FIRST * 2_i32.pow(self.openings.min(8))).min(OPEN_MAX) * (0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        self.state = State::Open(now + period);
        self.openings += 1;
        self.seconds.clear();
    }
}

/// The breaker for Stripe as a whole. One account whose calls all fail is not Stripe's outage: it takes two.
#[derive(Debug, Default)]
pub struct Outage {
    breaker: Breaker,
    /// The last account that failed, and when.
    last: Option<(String, OffsetDateTime)>,
    /// When another account than that one failed last.
    other: Option<OffsetDateTime>,
}

impl Outage {
    /// See [`Breaker::held_until`].
    pub fn held_until(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        self.breaker.held_until(now)
    }

    /// See [`Breaker::admit`].
    pub fn admit(&mut self, now: OffsetDateTime) -> Result<bool, OffsetDateTime> {
        self.breaker.admit(now)
    }

    /// See [`Breaker::record`].
    pub fn record(&mut self, now: OffsetDateTime, account: &str, failed: bool, is_probe: bool, jitter: f64) {
        if failed {
            match &self.last {
                Some((last, at)) if last != account => self.other = Some(*at),
                _ => {}
            }
            self.last = Some((account.to_owned(), now));
        }
        let is_shared = self.other.is_some_and(|at| now - at <= WINDOW);
        self.breaker.record(now, failed, is_probe, jitter, is_shared);
    }

    /// See [`Breaker::forget_probe`].
    pub fn forget_probe(&mut self, now: OffsetDateTime) {
        self.breaker.forget_probe(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(milliseconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::milliseconds(milliseconds)
    }

    fn tell(breaker: &mut Breaker, milliseconds: i64, failed: bool) {
        if let Ok(is_probe) = breaker.admit(at(milliseconds)) {
            breaker.record(at(milliseconds), failed, is_probe, 1.0, true);
        }
    }

    #[test]
    fn it_opens_when_half_of_at_least_twenty_calls_within_ten_seconds_fail() {
        let mut few = Breaker::default();
        (0..19).for_each(|n| tell(&mut few, n * 100, true));
        assert_eq!(few.held_until(at(2_000)), None, "nineteen prove nothing");
        let mut slow = Breaker::default();
        (0..60).for_each(|n| tell(&mut slow, n * 1_000, true));
        assert_eq!(slow.held_until(at(60_000)), None, "nor do sixty within a minute");
        let mut mixed = Breaker::default();
        (0..60).for_each(|n| tell(&mut mixed, n * 100, n % 3 == 0));
        assert_eq!(mixed.held_until(at(6_000)), None, "a third is not a half");
        let mut bad = Breaker::default();
        (0..20).for_each(|n| tell(&mut bad, n * 100, n % 2 == 1));
        assert_eq!(bad.held_until(at(1_900)), Some(at(3_900)));
    }

    fn open_at_zero() -> Breaker {
        let mut breaker = Breaker::default();
        (0..20).for_each(|_| tell(&mut breaker, 0, true));
        breaker
    }

    #[test]
    fn one_probe_goes_when_the_time_is_over_and_the_time_grows() {
        let mut breaker = open_at_zero();
        assert_eq!(breaker.admit(at(1_999)), Err(at(2_000)));
        assert_eq!(breaker.admit(at(2_000)), Ok(true));
        assert_eq!(breaker.admit(at(2_000)), Err(at(3_000)), "only one");
        breaker.record(at(2_100), true, false, 1.0, true);
        breaker.record(at(2_100), false, false, 1.0, true);
        assert_eq!(breaker.held_until(at(2_100)), Some(at(3_100)), "an answer to an older call settles nothing");
        breaker.record(at(2_100), true, true, 1.0, true);
        assert_eq!(breaker.admit(at(2_100)), Err(at(6_100)), "twice as long");
        assert_eq!(breaker.admit(at(6_100)), Ok(true));
        breaker.record(at(6_100), false, true, 1.0, true);
        assert_eq!(breaker.admit(at(6_100)), Ok(false), "closed");
    }

    #[test]
    fn a_probe_that_never_ends_holds_nobody_up_for_ever() {
        let mut breaker = open_at_zero();
        assert_eq!(breaker.admit(at(2_000)), Ok(true));
        assert!(breaker.admit(at(11_999)).is_err());
        assert_eq!(breaker.admit(at(12_000)), Ok(true));
        breaker.forget_probe(at(12_500));
        assert_eq!(breaker.admit(at(12_500)), Ok(true));
    }

    #[test]
    fn one_account_is_not_all_of_stripe() {
        let mut outage = Outage::default();
        for _ in 0..100 {
            outage.record(at(0), "acct_1", true, false, 1.0);
        }
        assert_eq!(outage.admit(at(0)), Ok(false));
        outage.record(at(0), "acct_2", true, false, 1.0);
        assert_eq!(outage.admit(at(0)), Err(at(2_000)));
    }

    proptest! {
        /// However it goes, calls are never held back for longer than the longest opening, and while Stripe answers they
        /// are not held back at all.
        #[test]
        fn it_never_stays_open(outcomes in prop::collection::vec((0_i64..3_000, any::<bool>(), 0.0..1.0), 1..300)) {
            let (mut breaker, mut now) = (Breaker::default(), 0);
            for (passed, failed, jitter) in outcomes {
                now += passed;
                if let Ok(is_probe) = breaker.admit(at(now)) {
                    breaker.record(at(now), failed, is_probe, jitter, true);
                }
                if let Some(until) = breaker.held_until(at(now)) {
                    prop_assert!(until <= at(now) + OPEN_MAX);
                }
            }
            now += 60_000;
            prop_assert!(breaker.admit(at(now)).is_ok());
        }
    }
}
