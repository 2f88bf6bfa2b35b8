//! Randomness that is the same in a replay.

use std::ops::{Deref, DerefMut, Range};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An instance's random numbers, from its seed. Nobody outside can guess them, and a replay draws the same.
///
/// It is a `rand_core::Rng` by dereference, for games that bring their own `rand`.
#[derive(Clone, Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self(ChaCha8Rng::from_seed(seed))
    }
    /// A number below `n`, each as likely as the others.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: u32) -> u32 {
        assert!(n > 0, "there is no number below 0");
        // Lemire, "Fast random integer generation in an interval" (2019): the high half of a product, and what
        // would favour some numbers is drawn again.
        let unfair = n.wrapping_neg() % n;
        loop {
            let product = u64::from(self.0.next_u32()) * u64::from(n);
            let (low, high) = (product & u64::from(u32::MAX), product >> 32);
            if low >= u64::from(unfair) {
                return u32::try_from(high).expect("half of 64 bits");
            }
        }
    }
    /// A number from 0 up to, but not including, 1.
    pub fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }
    /// A number of the range.
    pub fn between(&mut self, range: Range<f32>) -> f32 {
        range.start + (range.end - range.start) * self.unit()
    }
    /// True with this probability.
    pub fn chance(&mut self, probability: f32) -> bool {
        self.unit() < probability
    }
    /// One of them, if there is one.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        let n = u32::try_from(of.len()).ok().filter(|&n| n > 0)?;
        of.get(self.below(n) as usize)
    }
    /// Puts them in another order, each as likely as the others.
    ///
    /// # Panics
    /// If there are more than 4,294,967,295.
    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            let n = u32::try_from(last + 1).expect("that many are not shuffled");
            all.swap(last, self.below(n) as usize);
        }
    }
}

impl Deref for Random {
    type Target = ChaCha8Rng;
    fn deref(&self) -> &ChaCha8Rng {
        &self.0
    }
}

impl DerefMut for Random {
    fn deref_mut(&mut self) -> &mut ChaCha8Rng {
        &mut self.0
    }
}

/// Where a generator stands.
#[derive(Serialize, Deserialize)]
struct Place {
    #[serde(with = "serde_bytes")]
    seed: [u8; 32],
    /// In words of 32 bits, little-endian: a position has 68 bits.
    #[serde(with = "serde_bytes")]
    at: [u8; 16],
}

impl Serialize for Random {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let at = self.0.get_word_pos().to_le_bytes();
        Place { seed: self.0.get_seed(), at }.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Random {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let place = Place::deserialize(from)?;
        let mut random = Self::new(place.seed);
        random.0.set_word_pos(u128::from_le_bytes(place.at));
        Ok(random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_generator_goes_on_where_it_was_stored(seed: [u8; 32], before in 0usize..200, n in 1u32..) {
            let mut random = Random::new(seed);
            for _ in 0..before { random.below(n); }
            let stored = rmp_serde::to_vec_named(&random).unwrap();
            let mut restored: Random = rmp_serde::from_slice(&stored).unwrap();
            for _ in 0..100 { prop_assert_eq!(random.below(n), restored.below(n)); }
        }
        #[test]
        fn numbers_stay_in_their_range(seed: [u8; 32], n in 1u32..) {
            let mut random = Random::new(seed);
            prop_assert!(random.below(n) < n);
            prop_assert!((0.0..1.0).contains(&random.unit()));
            prop_assert!((-3.0..5.0).contains(&random.between(-3.0..5.0)));
        }
    }

    #[test]
    fn every_number_comes_about_as_often_as_the_others() {
        let mut random = Random::new([7; 32]);
        let mut seen = [0; 6];
        for _ in 0..60_000 {
            seen[random.below(6) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| (9_500..10_500).contains(&n)), "{seen:?}");
        assert_eq!(random.pick::<u8>(&[]), None);
        let mut all = [1, 2, 3, 4, 5, 6];
        random.shuffle(&mut all);
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3, 4, 5, 6]);
    }
}
