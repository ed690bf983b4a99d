//! Randomness for retries and pauses, so that callers do not act in step.

/// A random number from 0 to 1.
pub(super) fn random_fraction() -> f64 {
    getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX))
}
