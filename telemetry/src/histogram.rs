//! Spans of time in fixed buckets: recording is two additions and one shift, without a lock or an allocation.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Power of two of the first bucket's bound, in microseconds.
const FIRST_SHIFT: u32 = 4;
/// Octaves between the first bound and the last.
const OCTAVES: u32 = 20;
/// Buckets with a bound: two an octave, `2^n` and `1.5 · 2^n`, so that a percentile is known to a third at worst.
const BOUNDS: usize = OCTAVES as usize * 2 + 1;

/// How spans of time are distributed, from 16 µs to 16.8 s in steps of a third to a half.
///
/// Any thread may record.
#[derive(Debug)]
pub struct Histogram {
    /// By bound; the last is for what is over all of them.
    buckets: [AtomicU64; BOUNDS + 1],
    sum_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BOUNDS + 1], sum_us: AtomicU64::new(0) }
    }
}

/// What a [`Histogram`] held when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// Of each bucket, not summed up: by bound, and at the end those over the last one.
    pub buckets: Vec<u64>,
    /// All spans together, in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Upper bounds of the buckets in microseconds, each included, growing.
    pub fn bounds_us() -> impl ExactSizeIterator<Item = u64> {
        (0..BOUNDS).map(|at| {
            let octave = 1 << (FIRST_SHIFT + u32::try_from(at / 2).expect("20 octaves"));
            if at % 2 == 0 { octave } else { octave + octave / 2 }
        })
    }

    /// Counts one span.
    pub fn record(&self, span: Duration) {
        self.record_us(u64::try_from(span.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts one span of so many microseconds.
    pub fn record_us(&self, us: u64) {
        self.buckets[bucket(us)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// What it holds now.
    pub fn read(&self) -> Distribution {
        let buckets = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        Distribution { buckets, sum_us: self.sum_us.load(Relaxed) }
    }
}

impl Distribution {
    /// How many spans there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// The bucket of a span: the first whose bound is not below it.
fn bucket(us: u64) -> usize {
    // With 1 taken off, a bound itself falls below the power of two at which the next bucket begins.
    let below = us.saturating_sub(1);
    if below < 1 << FIRST_SHIFT {
        return 0;
    }
    let log = below.ilog2();
    let upper_half = below >> (log - 1) & 1;
    let at = 2 * (log - FIRST_SHIFT) as usize + usize::from(upper_half == 1) + 1;
    at.min(BOUNDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_span_is_in_the_first_bucket_whose_bound_holds_it() {
        let bounds: Vec<u64> = Histogram::bounds_us().collect();
        assert_eq!((bounds[0], bounds[1], bounds[2]), (16, 24, 32));
        assert_eq!(bounds.last(), Some(&(16 << 20)));
        let near = bounds.iter().flat_map(|bound| [bound - 1, *bound, bound + 1]);
        for us in near.chain([0, 1, 15, 100, 12_345, u64::MAX]) {
            let first = bounds.iter().position(|bound| us <= *bound).unwrap_or(BOUNDS);
            assert_eq!(bucket(us), first, "{us} µs");
        }
    }

    #[test]
    fn what_is_recorded_is_read() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(20));
        histogram.record(Duration::from_micros(24));
        histogram.record(Duration::from_secs(60));
        let read = histogram.read();
        assert_eq!((read.count(), read.sum_us), (3, 60_000_044));
        assert_eq!((read.buckets[1], read.buckets.last()), (2, Some(&1)));
    }
}
