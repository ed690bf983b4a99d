//! Seeded pseudo-random numbers: the same seed gives the same numbers on every platform. Never use them for secrets.

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

/// A stream of pseudo-random numbers.
#[derive(Clone, Debug)]
pub struct Rng(Xoshiro256PlusPlus);

impl Rng {
    /// Starts the stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// Starts the stream of a seed for one purpose. Drawing more numbers for one purpose does not affect another. The
    /// purpose is part of the seed: a new name means new numbers.
    pub fn named(seed: u64, purpose: &str) -> Self {
        let hash = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(purpose).finalize();
        Self(Xoshiro256PlusPlus::from_seed(hash.into()))
    }

    /// Draws a random seed.
    pub fn fresh_seed() -> u64 {
        // At most nine digits, so that it is easy to pass on.
        getrandom::u64().expect("the operating system provides random numbers") % 1_000_000_000
    }

    /// Draws any number.
    pub fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Draws a number from 0 to `below` - 1, or 0 if `below` is 0.
    pub fn below(&mut self, below: u64) -> u64 {
        self.0.random_range(0..below.max(1))
    }

    /// Draws a number from `first` to `last`, both included.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        self.0.random_range(first..=last)
    }

    /// Returns `true` with a probability of `percent` in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Draws one of several items. Panics if there are none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        from.choose(&mut self.0).expect("there is an item to pick")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A release that drew others would give a new meaning to the seeds of earlier runs.
    #[test]
    fn a_seed_gives_the_same_draws_in_every_release() {
        let (mut plain, mut named) = (Rng::new(1_234_567), Rng::named(1_234_567, "plan"));
        assert_eq!([plain.next(), named.next()], [437_095_814_655_224_680, 1_202_125_566_199_084_106]);
        let mut draws =
            || (named.below(1_000), named.between(5, 90_000), named.chance(50), *named.pick(&['a', 'b', 'c']));
        assert_eq!([draws(), draws()], [(567, 42_601, true, 'a'), (785, 67_272, false, 'c')]);
    }

    #[test]
    fn purposes_are_independent_and_bounds_are_respected() {
        assert_ne!(Rng::named(7, "kills").next(), Rng::named(7, "plan").next());
        assert_eq!(Rng::named(7, "kills").next(), Rng::named(7, "kills").next());
        let mut rng = Rng::new(3);
        assert!((0..1000).all(|_| (5..=9).contains(&rng.between(5, 9))));
        assert!((0..100).all(|_| rng.chance(100)) && !(0..100).any(|_| rng.chance(0)));
    }
}
