//! How long the way to a client and back takes: this server's own measure, by its pings and their pongs.

use std::time::Duration;

use greenroom_protocol::Moment;

/// Microseconds that are told apart: less counts as the first, more as the last.
const LEAST_BITS: u32 = 6;
const MOST_BITS: u32 = 26;
/// Buckets of each doubling, as a power of two. A bucket's middle is within an eighth of what is in it.
const STEP_BITS: u32 = 2;
const BUCKETS: usize = ((MOST_BITS - LEAST_BITS) << STEP_BITS) as usize;
/// After so many times its span a ping has no answer any more: it was lost, as what is over a client's limits is.
const GIVE_UP: u64 = 4;

/// The round trips of one connection. It needs little: there is one for each client.
#[derive(Debug, Default)]
pub(crate) struct RoundTrips {
    /// When the next ping is due; none before its client has checked in.
    due: Option<Moment>,
    /// What the ping was sent with that waits for its answer: microseconds since this server began.
    asked: Option<u64>,
    measured: Option<Box<Measured>>,
}

#[derive(Debug)]
struct Measured {
    last: u32,
    /// How many there were in each bucket; the first are left out where there are more than fit.
    counts: [u16; BUCKETS],
}

/// What is said of them in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) count: u64,
    /// Half of them took no longer.
    pub(crate) p50: Option<Duration>,
    /// 99 of 100 took no longer.
    pub(crate) p99: Option<Duration>,
    /// The newest.
    pub(crate) last: Option<Duration>,
}

impl RoundTrips {
    /// Its client has checked in: from here on it is asked.
    pub(crate) fn begin(&mut self, now: Moment, every: Duration) {
        self.due.get_or_insert_with(|| after(now, every, 1));
    }

    /// What a ping is to be sent with, if one is due. Only one is on its way.
    pub(crate) fn ask(
        &mut self,
        now: Moment,
        micros: impl FnOnce() -> u64,
        every: Duration,
    ) -> Option<u64> {
        let due = self.due?;
        let given_up = after(due, every, GIVE_UP);
        if now < if self.asked.is_some() { given_up } else { due } {
            return None;
        }
        self.due = Some(after(now, every, 1));
        self.asked = Some(micros());
        self.asked
    }

    /// A pong has come. Gives how long that took, if it is the one that is waited for.
    pub(crate) fn answered(&mut self, payload: &[u8], micros: u64) -> Option<Duration> {
        let asked = self.asked.filter(|asked| payload == asked.to_le_bytes())?;
        self.asked = None;
        let took = u32::try_from(micros.saturating_sub(asked)).unwrap_or(u32::MAX);
        let empty = || Box::new(Measured { last: 0, counts: [0; BUCKETS] });
        let measured = self.measured.get_or_insert_with(empty);
        measured.last = took.min((1 << MOST_BITS) - 1);
        let count = &mut measured.counts[bucket(took)];
        *count = count.saturating_add(1);
        Some(Duration::from_micros(took.into()))
    }

    pub(crate) fn summary(&self) -> Summary {
        let Some(measured) = &self.measured else { return Summary::default() };
        let count: u64 = measured.counts.iter().copied().map(u64::from).sum();
        let quantile = |percent: u64| {
            let rank = (count * percent).div_ceil(100);
            let mut upto = 0;
            let found = measured.counts.iter().position(|&more| {
                upto += u64::from(more);
                upto >= rank
            });
            found.map(middle)
        };
        let last = Some(Duration::from_micros(measured.last.into()));
        Summary { count, p50: quantile(50), p99: quantile(99), last }
    }
}

fn after(moment: Moment, every: Duration, times: u64) -> Moment {
    let ms = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
    Moment(moment.0.saturating_add(ms.saturating_mul(times)))
}

fn bucket(micros: u32) -> usize {
    let micros = micros.clamp(1 << LEAST_BITS, (1 << MOST_BITS) - 1);
    let bits = micros.ilog2();
    let step = (micros >> (bits - STEP_BITS)) & ((1 << STEP_BITS) - 1);
    ((bits - LEAST_BITS) << STEP_BITS | step) as usize
}

fn middle(bucket: usize) -> Duration {
    let (bits, step) = (bucket >> STEP_BITS, bucket & ((1 << STEP_BITS) - 1));
    let width = 1_u64 << (bits as u64 + u64::from(LEAST_BITS - STEP_BITS));
    Duration::from_micros(((1 << STEP_BITS) + step as u64) * width + width / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(15);

    /// Has a ping answered after so many microseconds, `n` spans after the check-in.
    fn measure(trips: &mut RoundTrips, n: u64, took: u64) -> Option<Duration> {
        let now = Moment(n * 15_000);
        let asked = trips.ask(now, || now.0 * 1_000, EVERY).expect("a ping is due");
        trips.answered(&asked.to_le_bytes(), asked + took)
    }

    #[test]
    fn nobody_is_asked_before_the_check_in_and_nobody_twice_at_once() {
        let mut trips = RoundTrips::default();
        assert_eq!(trips.ask(Moment(1 << 40), || 1, EVERY), None);
        trips.begin(Moment(0), EVERY);
        assert_eq!(trips.ask(Moment(14_999), || 1, EVERY), None);
        assert_eq!(trips.ask(Moment(15_000), || 7, EVERY), Some(7));
        assert_eq!(trips.ask(Moment(60_000), || 8, EVERY), None);
        assert_eq!(trips.summary(), Summary::default());
        // It was lost: another is sent, and only that one's answer counts.
        assert_eq!(trips.ask(Moment(90_000), || 9, EVERY), Some(9));
        assert_eq!(trips.answered(&7_u64.to_le_bytes(), 10), None);
        assert_eq!(trips.answered(&9_u64.to_le_bytes()[..4], 10), None);
        assert_eq!(trips.answered(&9_u64.to_le_bytes(), 19), Some(Duration::from_micros(10)));
        assert_eq!(trips.answered(&9_u64.to_le_bytes(), 20), None, "an answer counts once");
    }

    #[test]
    fn the_percentiles_are_those_of_what_was_measured_within_an_eighth() {
        let mut trips = RoundTrips::default();
        trips.begin(Moment(0), EVERY);
        // 1 to 200 ms, in an order that is none.
        for n in 0..200 {
            measure(&mut trips, n + 1, (n * 77 % 200 + 1) * 1_000).unwrap();
        }
        let Summary { count, p50, p99, last } = trips.summary();
        assert_eq!((count, last), (200, Some(Duration::from_millis(199 * 77 % 200 + 1))));
        for (found, exact) in [(p50.unwrap(), 100.0), (p99.unwrap(), 198.0)] {
            let ratio = found.as_secs_f64() * 1_000.0 / exact;
            assert!((0.875..1.125).contains(&ratio), "{found:?} for {exact} ms");
        }
    }

    #[test]
    fn whatever_a_client_does_what_is_kept_is_bounded() {
        let mut trips = RoundTrips::default();
        trips.begin(Moment(0), EVERY);
        measure(&mut trips, 1, 0).unwrap();
        measure(&mut trips, 2, u64::MAX >> 1).unwrap();
        let Summary { count, p50, p99, last } = trips.summary();
        let most = Duration::from_micros(1 << MOST_BITS);
        assert_eq!((count, p50), (2, Some(Duration::from_micros(72))));
        assert!(p99.unwrap() < most && last.unwrap() < most, "{p99:?} {last:?}");
        assert!(size_of::<RoundTrips>() + size_of::<Measured>() <= 256);
        assert_eq!((bucket(0), bucket(u32::MAX)), (0, BUCKETS - 1));
    }
}
