//! Stripe's limits, and when it is better not to call at all. Stripe counts calls by account, mode and endpoint; every
//! replica counts with it, so that nearly nothing is turned away.
//!
//! The flow: a call takes its place in its account's [`Line`]. A line gives turns for *slots*, each a moment from which on
//! one call may go. Slots are cut from a [`Budget`], one a bucket, which all replicas share: whoever needs slots takes the
//! next few, and the next one takes those after them, so that together they never go faster than the limit. A 429 halves
//! the bucket's rate for all of them; it grows back by itself. A [`Breaker`] stops calls while most of them fail.
//!
//! Nothing here reads a clock: the time comes in, and it is always that of Paybridge's clock.

mod breaker;
mod budget;
mod line;

pub use breaker::{Breaker, Outage};
pub use budget::{Ask, Budget, Slots};
pub use line::{Line, Turn, Waiting};

/// How many calls a second Stripe lets through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// To each endpoint of an account.
    pub endpoint: f64,
    /// To an account in all, with live keys.
    pub live: f64,
    /// To an account in all, with test keys.
    pub test: f64,
}

impl Default for Limits {
    /// Stripe's own, unless its support has raised them.
    fn default() -> Self {
        Self { endpoint: 25.0, live: 100.0, test: 25.0 }
    }
}

/// The part of a limit that is used. The rest is for clocks that run apart.
const USED: f64 = 0.99;

/// The slowest that a bucket gets, calls a second: so that it is noticed when Stripe lets more through again.
const RATE_MIN: f64 = 1.0;

/// The name of an account's own bucket, which every call goes through.
pub const WHOLE_ACCOUNT: &str = "";

impl Limits {
    /// The rate of a bucket, calls a second: an endpoint's, or [`WHOLE_ACCOUNT`].
    pub fn rate(&self, livemode: bool, bucket: &str) -> f64 {
        let limit = if bucket == WHOLE_ACCOUNT { self.account(livemode) } else { self.endpoint };
        (limit * USED).max(RATE_MIN)
    }

    /// Whether an endpoint's limit can be met before the account's.
    pub fn counts_endpoints(&self, livemode: bool) -> bool {
        self.endpoint < self.account(livemode)
    }

    fn account(&self, livemode: bool) -> f64 {
        if livemode { self.live } else { self.test }
    }
}

/// Which bucket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BucketId {
    /// `acct_…`
    pub account: String,
    /// Whether it counts calls with live keys.
    pub livemode: bool,
    /// Method and route; or [`WHOLE_ACCOUNT`].
    pub endpoint: String,
}

/// A bucket that lacks slots, in one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// Which.
    pub bucket: BucketId,
    /// Calls that wait for a slot of it and have none.
    pub wanted: u32,
    /// Stripe has turned a call of it away.
    pub was_refused: bool,
}

/// Who goes first, in this order. What is nearly done comes before what is begun: a confirm ends a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A confirmation: the money itself.
    Confirm,
    /// The creation of what a confirmation needs.
    Create,
    /// What people may be waiting for: customers, links, connecting.
    Interactive,
    /// Reads.
    Read,
}
