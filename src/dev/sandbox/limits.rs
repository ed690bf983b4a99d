//! The rate limiter: buckets that fill by the clock, one for each endpoint of an account and one for the account.

use std::collections::HashMap;

use super::refusal::Refusal;

/// How many requests a second an account may make, in each mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of each endpoint.
    pub endpoint: u32,
    /// In all, with test keys.
    pub test: u32,
    /// In all, with live keys.
    pub live: u32,
}

impl Default for Limits {
    /// Stripe's own.
    fn default() -> Self {
        Self { endpoint: 25, test: 25, live: 100 }
    }
}

/// The buckets.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    /// What is left, in millionths of a request, and when that was so, in microseconds.
    buckets: HashMap<(String, String), (i64, i64)>,
}

impl Limiter {
    /// Takes one request out of both buckets, or out of none.
    pub fn take(&mut self, limits: Limits, slot: &str, live: bool, endpoint: &str, micros: i64) -> Result<(), Refusal> {
        let total = if live { limits.live } else { limits.test };
        let wanted = [("", total, "global-rate"), (endpoint, limits.endpoint, "endpoint-rate")];
        for (name, rate, reason) in wanted {
            let bucket = self.buckets.entry((slot.to_owned(), name.to_owned())).or_insert((full(rate), micros));
            let refilled = bucket.0.saturating_add((micros - bucket.1).max(0).saturating_mul(i64::from(rate)));
            *bucket = (refilled.min(full(rate)), micros.max(bucket.1));
            if bucket.0 < ONE {
                return Err(Refusal::limited(reason));
            }
        }
        for (name, _, _) in wanted {
            if let Some(bucket) = self.buckets.get_mut(&(slot.to_owned(), name.to_owned())) {
                bucket.0 -= ONE;
            }
        }
        Ok(())
    }
}

/// One request.
const ONE: i64 = 1_000_000;

/// A full bucket holds one second's requests.
fn full(rate: u32) -> i64 {
    i64::from(rate) * ONE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills_by_the_clock() {
        let (mut limiter, limits) = (Limiter::default(), Limits { endpoint: 2, test: 3, live: 9 });
        let mut take = |endpoint: &str, micros: i64| {
            limiter.take(limits, "acct", false, endpoint, micros).err().and_then(|refusal| refusal.limited)
        };
        assert_eq!(take("a", 0), None);
        assert_eq!(take("a", 0), None);
        assert_eq!(take("a", 0).as_deref(), Some("endpoint-rate"));
        assert_eq!(take("b", 0), None);
        assert_eq!(take("b", 0).as_deref(), Some("global-rate"));
        assert_eq!(take("a", 500_000), None);
    }
}
