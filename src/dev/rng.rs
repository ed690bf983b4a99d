//! Seeded pseudo-random numbers: the same seed gives the same numbers on every machine and in every release. SplitMix64
//! is short and good enough for faults and plans. Never use it for secrets.

/// A stream of pseudo-random numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts the stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Starts the stream of a seed for one purpose. Drawing more numbers for one purpose does not affect another. The
    /// purpose is part of the seed: a new name means new numbers.
    pub fn named(seed: u64, purpose: &str) -> Self {
        // FNV-1a over the name.
        let hash = purpose
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let mut rng = Self(seed ^ hash);
        Self(rng.next())
    }

    /// Draws a random seed.
    pub fn fresh_seed() -> u64 {
        // At most nine digits, so that it is easy to pass on.
        getrandom::u64().expect("the operating system provides random numbers") % 1_000_000_000
    }

    /// Draws any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Draws a number from 0 to `below` - 1, or 0 if `below` is 0.
    pub fn below(&mut self, below: u64) -> u64 {
        self.next() % below.max(1)
    }

    /// Draws a number from `first` to `last`, both included.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last.saturating_sub(first) + 1)
    }

    /// Returns `true` with a probability of `percent` in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Draws one of several items. Panics if there are none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let index = usize::try_from(self.below(from.len() as u64)).unwrap_or_default();
        &from[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_reference_numbers() {
        let mut rng = Rng::new(1_234_567);
        // The published reference values of SplitMix64 for this seed.
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([rng.next(), rng.next(), rng.next()], expected);
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
