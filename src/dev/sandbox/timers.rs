//! What happens by itself: banks answer, sessions expire, refunds go through.

use serde::{Deserialize, Serialize};

use super::act::{Act, Settings};
use super::api::{self, Work};
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
    /// A slow refund goes through, or fails after all.
    Refund { refund: String, fails: bool },
    /// A request that was answered with a 500, or whose connection was cut, is carried out all the same.
    RollForward { work: Work },
}

/// Lets everything happen whose time has come, in the order of its time; each sees its own time as now.
/// Tells whether there was anything.
pub(super) fn run(account: &mut Account, settings: &Settings, now: i64, now_micros: i64) -> bool {
    let mut any = false;
    loop {
        let next =
            account.timers.iter().enumerate().filter(|(_, timer)| timer.at <= now).min_by_key(|(_, timer)| timer.at);
        let Some((index, _)) = next else { return any };
        any = true;
        let timer = account.timers.remove(index);
        let mut act = Act { account, now: timer.at, now_micros, cause: None, settings };
        happen(&mut act, timer.due);
    }
}

fn happen(act: &mut Act, due: Due) {
    match due {
        Due::Settle { charge } => confirmation::settle(act, &charge),
        Due::ExpireSession { session } => checkout_sessions::time_over(act, &session),
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
    let (due, later): (Vec<Timer>, Vec<Timer>) =
        std::mem::take(&mut account.timers).into_iter().partition(|timer| which(&timer.due));
    account.timers = later;
    let count = due.len();
    for timer in due {
        let mut act = Act { account, now, now_micros, cause: None, settings };
        happen(&mut act, timer.due);
    }
    count
}
