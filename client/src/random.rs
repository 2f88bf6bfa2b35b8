//! Secrets from the system, and cheap dice for everything that is no secret.

use std::time::Duration;

use crate::ClientError;

/// `N` random bytes from the operating system.
pub(crate) fn secret<const N: usize>() -> Result<[u8; N], ClientError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(ClientError::Random)?;
    Ok(bytes)
}

/// Dice for picks and jitter: SplitMix64, seeded once.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if the bound is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = bound.max(1) as u64;
        usize::try_from(self.roll() % bound).unwrap_or(0)
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// Between half of `span` and all of it, so that many clients do not come back in step.
    pub(crate) fn jitter(&mut self, span: Duration) -> Duration {
        let half = span / 2;
        let part = u32::try_from(self.roll() >> 48).unwrap_or(0);
        half + half * part / 0xffff
    }
}
