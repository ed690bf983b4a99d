//! The rate limiter: one token bucket per account, and one per account and endpoint. They refill by the clock.

use std::collections::HashMap;

use super::api_error::ApiError;

/// Requests per second and account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For each endpoint.
    pub endpoint: u32,
    /// In total, in test mode.
    pub test: u32,
    /// In total, in live mode.
    pub live: u32,
}

impl Default for Limits {
    /// Stripe's documented limits.
    fn default() -> Self {
        Self { endpoint: 25, test: 25, live: 100 }
    }
}

impl Limits {
    /// Practically none.
    pub const UNLIMITED: Self = Self { endpoint: 10_000, test: 10_000, live: 10_000 };
}

/// A client that obeys these limits.
impl From<Limits> for crate::domain::limits::Limits {
    fn from(limits: Limits) -> Self {
        Self { endpoint: limits.endpoint.into(), live: limits.live.into(), test: limits.test.into() }
    }
}

/// The token buckets of all accounts.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    /// By account and endpoint: the tokens left, in millionths of a request, and the time of that count, in
    /// microseconds.
    buckets: HashMap<(String, String), (i64, i64)>,
}

impl Limiter {
    /// Takes one token from both buckets, or from neither.
    pub fn take(
        &mut self,
        limits: Limits,
        slot: &str,
        live: bool,
        endpoint: &str,
        micros: i64,
    ) -> Result<(), ApiError> {
        let total = if live { limits.live } else { limits.test };
        let buckets = [("", total, "global-rate"), (endpoint, limits.endpoint, "endpoint-rate")];
        for (name, rate, reason) in buckets {
            let bucket = self.buckets.entry((slot.to_owned(), name.to_owned())).or_insert((full(rate), micros));
            let refilled = bucket.0.saturating_add((micros - bucket.1).max(0).saturating_mul(i64::from(rate)));
            *bucket = (refilled.min(full(rate)), micros.max(bucket.1));
            if bucket.0 < ONE {
                return Err(ApiError::limited(reason));
            }
        }
        for (name, _, _) in buckets {
            if let Some(bucket) = self.buckets.get_mut(&(slot.to_owned(), name.to_owned())) {
                bucket.0 -= ONE;
            }
        }
        Ok(())
    }
}

/// One request, in millionths.
const ONE: i64 = 1_000_000;

/// A bucket holds the requests of one second.
fn full(rate: u32) -> i64 {
    i64::from(rate) * ONE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_refill_by_the_clock() {
        let (mut limiter, limits) = (Limiter::default(), Limits { endpoint: 2, test: 3, live: 9 });
        let mut take = |endpoint: &str, micros: i64| {
            limiter.take(limits, "acct", false, endpoint, micros).err().and_then(|api_error| api_error.limited)
        };
        assert_eq!(take("a", 0), None);
        assert_eq!(take("a", 0), None);
        assert_eq!(take("a", 0).as_deref(), Some("endpoint-rate"));
        assert_eq!(take("b", 0), None);
        assert_eq!(take("b", 0).as_deref(), Some("global-rate"));
        assert_eq!(take("a", 500_000), None);
    }
}
