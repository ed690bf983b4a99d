//! Circuit breakers. When most calls fail, further calls are delayed for a while instead of being sent. A delayed call
//! is sent later; it has not failed (P2).

use std::collections::VecDeque;

use time::{Duration, OffsetDateTime};

/// The period over which calls and failures are counted.
const WINDOW: Duration = Duration::seconds(10);

/// Fewer calls than this within the window never open the breaker.
const CALLS_MIN: u32 = 20;

/// The first and the longest period for which the breaker stays open.
const OPEN_FIRST: Duration = Duration::seconds(2);
const OPEN_MAX: Duration = Duration::seconds(30);

/// How long a probe may take before another one is admitted.
const PROBE_MAX: Duration = Duration::seconds(10);

/// When to retry while a probe is in flight.
const PROBE_PERIOD: Duration = Duration::SECOND;

/// Opens when at least half of the recent calls have failed; then admits one probe at a time until one succeeds.
#[derive(Debug, Default)]
pub struct Breaker {
    state: State,
    /// Calls and failures by second, oldest first.
    seconds: VecDeque<(i64, u32, u32)>,
    /// How often it has opened in a row.
    openings: u32,
    /// While set, failures are counted and do not open it.
    is_held_closed: bool,
}

/// The end of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedCall {
    /// Whether Stripe did not respond.
    pub failed: bool,
    /// Whether it was admitted as a probe.
    pub is_probe: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open(OffsetDateTime),
    /// One call is in flight since this time, to probe whether calls succeed again.
    Probing(OffsetDateTime),
}

impl Breaker {
    /// When to retry, if calls are delayed now.
    pub fn open_until(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        match self.state {
            State::Open(until) if now < until => Some(until),
            State::Probing(since) if now < since + PROBE_MAX => Some(now + PROBE_PERIOD),
            _ => None,
        }
    }

    /// Admits a call: `Ok(true)` if it is a probe, `Err` with the time to retry if calls are delayed.
    pub fn admit(&mut self, now: OffsetDateTime) -> Result<bool, OffsetDateTime> {
        if let Some(until) = self.open_until(now) {
            return Err(until);
        }
        let is_probe = self.state != State::Closed;
        if is_probe {
            self.state = State::Probing(now);
        }
        Ok(is_probe)
    }

    /// Records the end of a call. `jitter` is random, from 0 to 1.
    pub fn record(&mut self, now: OffsetDateTime, call: EndedCall, jitter: f64) {
        let EndedCall { failed, is_probe } = call;
        match self.state {
            State::Probing(_) if is_probe && failed => self.open(now, jitter),
            State::Probing(_) if is_probe => *self = Self::default(),
            // The call began before the breaker opened, so its result is outdated.
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
                if !self.is_held_closed && failed && calls >= CALLS_MIN && failures * 2 >= calls {
                    self.open(now, jitter);
                }
            }
        }
    }

    /// A probe ended without a result; the next call becomes the probe.
    pub fn abort_probe(&mut self, now: OffsetDateTime) {
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

/// The breaker for all of Stripe. A single failing account is not an outage of Stripe's: failures of two accounts are
/// needed.
#[derive(Debug, Default)]
pub struct SharedBreaker {
    breaker: Breaker,
    /// The account that failed last, and when.
    last: Option<(String, OffsetDateTime)>,
    /// When an account other than that one last failed.
    other: Option<OffsetDateTime>,
}

impl SharedBreaker {
    /// See [`Breaker::open_until`].
    pub fn open_until(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        self.breaker.open_until(now)
    }

    /// See [`Breaker::admit`].
    pub fn admit(&mut self, now: OffsetDateTime) -> Result<bool, OffsetDateTime> {
        self.breaker.admit(now)
    }

    /// See [`Breaker::record`].
    pub fn record(&mut self, now: OffsetDateTime, account: &str, call: EndedCall, jitter: f64) {
        if call.failed {
            match &self.last {
                Some((last, at)) if last != account => self.other = Some(*at),
                _ => {}
            }
            self.last = Some((account.to_owned(), now));
        }
        self.breaker.is_held_closed = self.other.is_none_or(|at| now - at > WINDOW);
        self.breaker.record(now, call, jitter);
    }

    /// See [`Breaker::abort_probe`].
    pub fn abort_probe(&mut self, now: OffsetDateTime) {
        self.breaker.abort_probe(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(milliseconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::milliseconds(milliseconds)
    }

    /// Records `count` calls, one every `interval` milliseconds, of which those that `fails` selects fail.
    fn record_calls(breaker: &mut Breaker, count: i64, interval: i64, fails: impl Fn(i64) -> bool) {
        for number in 0..count {
            let now = at(number * interval);
            if let Ok(is_probe) = breaker.admit(now) {
                breaker.record(now, EndedCall { failed: fails(number), is_probe }, 1.0);
            }
        }
    }

    #[test]
    fn it_opens_when_half_of_at_least_twenty_calls_within_ten_seconds_fail() {
        let mut few = Breaker::default();
        record_calls(&mut few, 19, 100, |_| true);
        assert_eq!(few.open_until(at(2_000)), None, "nineteen calls are too few");
        let mut slow = Breaker::default();
        record_calls(&mut slow, 60, 1_000, |_| true);
        assert_eq!(slow.open_until(at(60_000)), None, "and so are sixty within a minute");
        let mut mixed = Breaker::default();
        record_calls(&mut mixed, 60, 100, |number| number % 3 == 0);
        assert_eq!(mixed.open_until(at(6_000)), None, "a third is less than half");
        let mut bad = Breaker::default();
        record_calls(&mut bad, 20, 100, |number| number % 2 == 1);
        assert_eq!(bad.open_until(at(1_900)), Some(at(3_900)));
    }

    fn open_at_zero() -> Breaker {
        let mut breaker = Breaker::default();
        record_calls(&mut breaker, 20, 0, |_| true);
        breaker
    }

    #[test]
    fn one_probe_is_admitted_after_the_open_period_which_grows() {
        let mut breaker = open_at_zero();
        assert_eq!(breaker.admit(at(1_999)), Err(at(2_000)));
        assert_eq!(breaker.admit(at(2_000)), Ok(true));
        assert_eq!(breaker.admit(at(2_000)), Err(at(3_000)), "one probe at a time");
        breaker.record(at(2_100), EndedCall { failed: true, is_probe: false }, 1.0);
        breaker.record(at(2_100), EndedCall { failed: false, is_probe: false }, 1.0);
        assert_eq!(breaker.open_until(at(2_100)), Some(at(3_100)), "the result of an older call changes nothing");
        breaker.record(at(2_100), EndedCall { failed: true, is_probe: true }, 1.0);
        assert_eq!(breaker.admit(at(2_100)), Err(at(6_100)), "twice as long");
        assert_eq!(breaker.admit(at(6_100)), Ok(true));
        breaker.record(at(6_100), EndedCall { failed: false, is_probe: true }, 1.0);
        assert_eq!(breaker.admit(at(6_100)), Ok(false), "closed");
    }

    #[test]
    fn a_probe_that_never_ends_does_not_block_forever() {
        let mut breaker = open_at_zero();
        assert_eq!(breaker.admit(at(2_000)), Ok(true));
        assert!(breaker.admit(at(11_999)).is_err());
        assert_eq!(breaker.admit(at(12_000)), Ok(true));
        breaker.abort_probe(at(12_500));
        assert_eq!(breaker.admit(at(12_500)), Ok(true));
    }

    #[test]
    fn one_failing_account_does_not_open_the_shared_breaker() {
        let mut breaker = SharedBreaker::default();
        let failure = EndedCall { failed: true, is_probe: false };
        for _ in 0..100 {
            breaker.record(at(0), "acct_1", failure, 1.0);
        }
        assert_eq!(breaker.admit(at(0)), Ok(false));
        breaker.record(at(0), "acct_2", failure, 1.0);
        assert_eq!(breaker.admit(at(0)), Err(at(2_000)));
    }

    proptest! {
        /// Calls are never delayed for longer than the longest open period, and the breaker always admits calls again.
        #[test]
        fn it_never_stays_open(outcomes in prop::collection::vec((0_i64..3_000, any::<bool>(), 0.0..1.0), 1..300)) {
            let (mut breaker, mut now) = (Breaker::default(), 0);
            for (passed, failed, jitter) in outcomes {
                now += passed;
                if let Ok(is_probe) = breaker.admit(at(now)) {
                    breaker.record(at(now), EndedCall { failed, is_probe }, jitter);
                }
                if let Some(until) = breaker.open_until(at(now)) {
                    prop_assert!(until <= at(now) + OPEN_MAX);
                }
            }
            now += 60_000;
            prop_assert!(breaker.admit(at(now)).is_ok());
        }
    }
}
