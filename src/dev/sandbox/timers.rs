//! What happens by itself: banks answer, sessions expire, refunds go through.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::act::{Act, Settings};
use super::api::{self, Work};
use super::captures;
use super::checkout_sessions;
use super::confirmation;
use super::refunds;
use super::state::Account;

/// Something that happens at a time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Timer {
    /// Unix seconds of the clock.
    pub at: i64,
    pub due: Due,
}

/// What happens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(super) enum Due {
    /// A bank answers a debit.
    Settle { charge: String },
    /// A Checkout session's 24 hours are over.
    ExpireSession { session: String },
    /// A bank gives back the money that it held and that nobody captured.
    ExpireHold { intent: String },
    /// A slow refund goes through, or fails after all.
    Refund { refund: String, fails: bool },
    /// A request that was answered with a 500, or whose connection was cut, is carried out all the same.
    RollForward { work: Work },
}

/// Everything that is still to happen, by its time, so that looking whether anything is due costs the same however much
/// waits.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Timer>", into = "Vec<Timer>")]
pub(super) struct Timers(BTreeMap<i64, Vec<Due>>);

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
        let at_once = |(at, due): (i64, Vec<Due>)| due.into_iter().map(move |due| Timer { at, due });
        timers.0.into_iter().flat_map(at_once).collect()
    }
}

impl Timers {
    /// Adds one.
    pub fn put(&mut self, timer: Timer) {
        self.0.entry(timer.at).or_default().push(timer.due);
    }

    /// When the next one is due, in unix seconds.
    pub fn next(&self) -> Option<i64> {
        self.0.first_key_value().map(|(at, _)| *at)
    }

    /// Takes out the first one that is due by `now`.
    fn take_due(&mut self, now: i64) -> Option<Timer> {
        let mut first = self.0.first_entry().filter(|first| *first.key() <= now)?;
        let at = *first.key();
        let due = first.get_mut().remove(0);
        if first.get().is_empty() {
            first.remove();
        }
        Some(Timer { at, due })
    }
}

/// Lets everything happen whose time has come, in the order of its time; each sees its own time as now.
/// Tells whether there was anything.
pub(super) fn run(account: &mut Account, settings: &Settings, now: i64, now_micros: i64) -> bool {
    let mut any = false;
    while let Some(timer) = account.timers.take_due(now) {
        any = true;
        let mut act = Act { account, now: timer.at, now_micros, cause: None, settings };
        happen(&mut act, timer.due);
    }
    any
}

fn happen(act: &mut Act, due: Due) {
    match due {
        Due::Settle { charge } => confirmation::settle(act, &charge),
        Due::ExpireSession { session } => checkout_sessions::time_over(act, &session),
        Due::ExpireHold { intent } => captures::expire(act, &intent),
        Due::Refund { refund, fails } => refunds::outcome(act, &refund, fails),
        Due::RollForward { work } => {
            act.cause = Some(work.cause());
            let answer = api::perform(act, &work);
            api::remember_late(act.account, &work, &answer);
        }
    }
}

/// Lets one kind of timers happen now, whatever their time: the ones that `which` picks.
pub(super) fn hurry(
    account: &mut Account,
    settings: &Settings,
    now: i64,
    now_micros: i64,
    which: impl Fn(&Due) -> bool,
) -> usize {
    let all = Vec::from(std::mem::take(&mut account.timers));
    let (due, later): (Vec<Timer>, Vec<Timer>) = all.into_iter().partition(|timer| which(&timer.due));
    account.timers = later.into();
    let count = due.len();
    for timer in due {
        let mut act = Act { account, now, now_micros, cause: None, settings };
        happen(&mut act, timer.due);
    }
    count
}
