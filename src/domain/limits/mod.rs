//! Client-side rate limiting and circuit breaking for Stripe. Stripe limits calls by account, mode and endpoint. All
//! replicas share the same count, so that almost no call is rejected.
//!
//! A call waits in the [`FairQueue`] of its account until it is granted a *slot*: a time from which one call may be
//! sent. Slots come from a [`Budget`], one for each bucket, shared by all replicas. Each request reserves the next
//! slots, so together the replicas never exceed the limit. A 429 halves the rate of the bucket for all replicas; the
//! rate then recovers by itself. A [`Breaker`] delays calls while most of them fail.
//!
//! Nothing here reads a clock: the time is passed in, and is always that of Paybridge's clock.

mod breaker;
mod budget;
mod fair_queue;

pub use breaker::{Breaker, EndedCall, SharedBreaker};
pub use budget::{Budget, SlotRequest, Slots};
pub use fair_queue::{Admission, FairQueue, QueuedCall};

/// Stripe's rate limits in calls a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// To each endpoint of an account.
    pub endpoint: f64,
    /// To an account as a whole, with live keys.
    pub live: f64,
    /// To an account as a whole, with test keys.
    pub test: f64,
}

impl Default for Limits {
    /// Stripe's documented limits; its support raises them on request.
    fn default() -> Self {
        Self { endpoint: 25.0, live: 100.0, test: 25.0 }
    }
}

/// The share of a limit that is used. The remainder absorbs clock differences between replicas.
const USED_SHARE: f64 = 0.99;

/// The lowest rate of a bucket in calls a second. It stays above zero to detect that Stripe accepts more again.
const RATE_MIN: f64 = 1.0;

/// The bucket of the account as a whole, which every call counts against.
pub const WHOLE_ACCOUNT: &str = "";

impl Limits {
    /// The rate of a bucket in calls a second: that of an endpoint, or of [`WHOLE_ACCOUNT`].
    pub fn rate(&self, livemode: bool, bucket: &str) -> f64 {
        let limit = if bucket == WHOLE_ACCOUNT { self.account(livemode) } else { self.endpoint };
        (limit * USED_SHARE).max(RATE_MIN)
    }

    /// Whether the limit of an endpoint can be reached before that of the account.
    pub fn counts_endpoints(&self, livemode: bool) -> bool {
        self.endpoint < self.account(livemode)
    }

    fn account(&self, livemode: bool) -> f64 {
        if livemode { self.live } else { self.test }
    }
}

/// Identifies a bucket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BucketId {
    /// Stripe's `acct_…`.
    pub account: String,
    /// Whether it counts calls made with live keys.
    pub livemode: bool,
    /// Method and route, or [`WHOLE_ACCOUNT`].
    pub endpoint: String,
}

/// The slots that one process needs from a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The bucket to reserve slots from.
    pub bucket: BucketId,
    /// Calls that wait without a slot.
    pub wanted: u32,
    /// Whether Stripe has rejected a call with a 429 since the last report.
    pub was_rate_limited: bool,
}

/// The priority of a call, highest first. Work that is nearly done comes before new work: a confirmation ends a
/// payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Confirms a payment: moves the money.
    Confirm,
    /// Creates what a confirmation needs.
    Create,
    /// A person may be waiting: customers, links, connecting.
    Interactive,
    /// A read.
    Read,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_just_below_stripes_limits_and_never_zero() {
        let limits = Limits { endpoint: 25.0, live: 100.0, test: 50.0 };
        for (livemode, bucket, limit) in [
            (true, WHOLE_ACCOUNT, 100.0),
            (false, WHOLE_ACCOUNT, 50.0),
            (true, "POST /v1/refunds", 25.0),
            (false, "POST /v1/refunds", 25.0),
        ] {
            let rate = limits.rate(livemode, bucket);
            assert!((limit * 0.95..limit).contains(&rate), "{livemode} {bucket}: {rate}");
        }
        let closed = Limits { endpoint: 0.0, ..limits };
        assert!(closed.rate(true, "POST /v1/refunds") >= RATE_MIN, "Stripe may accept more again");
    }

    #[test]
    fn an_endpoint_is_counted_if_its_limit_is_reached_before_that_of_the_account() {
        let limits = Limits::default();
        assert!(limits.counts_endpoints(true), "25 of 100 calls a second");
        assert!(!limits.counts_endpoints(false), "25 of 25");
    }
}
