//! What falls due later without a request, and when: banks respond, sessions expire, refunds complete.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::api_request::ApiRequest;

/// An action and its time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Timer {
    /// Unix seconds of the clock.
    pub at: i64,
    pub action: TimerAction,
}

/// What falls due.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(super) enum TimerAction {
    /// The bank responds to a debit.
    Settle { charge: String },
    /// A Checkout Session expires.
    ExpireSession { session: String },
    /// An authorization expires without a capture.
    ExpireHold { intent: String },
    /// A slow refund succeeds or fails.
    Refund { refund: String, fails: bool },
    /// A request whose caller got a 500, or whose connection was cut, is executed.
    RollForward { request: ApiRequest },
}

/// Pending timers by time: finding the first due one is cheap however many there are.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Timer>", into = "Vec<Timer>")]
pub(super) struct Timers(BTreeMap<i64, Vec<TimerAction>>);

impl From<Vec<Timer>> for Timers {
    fn from(all: Vec<Timer>) -> Self {
        let mut timers = Self::default();
        for timer in all {
            timers.put(timer);
        }
        timers
    }
}

impl From<Timers> for Vec<Timer> {
    fn from(timers: Timers) -> Self {
        let same_time =
            |(at, actions): (i64, Vec<TimerAction>)| actions.into_iter().map(move |action| Timer { at, action });
        timers.0.into_iter().flat_map(same_time).collect()
    }
}

impl Timers {
    pub fn put(&mut self, timer: Timer) {
        self.0.entry(timer.at).or_default().push(timer.action);
    }

    /// When the next timer is due, in Unix seconds.
    pub fn next(&self) -> Option<i64> {
        self.0.first_key_value().map(|(at, _)| *at)
    }

    /// Removes and returns the first timer that is due at `now`.
    pub fn take_due(&mut self, now: i64) -> Option<Timer> {
        let mut first = self.0.first_entry().filter(|first| *first.key() <= now)?;
        let at = *first.key();
        let action = first.get_mut().remove(0);
        if first.get().is_empty() {
            first.remove();
        }
        Some(Timer { at, action })
    }
}
