//! What single instances cost, measured while an operator looks at them. Nobody is measured else: a server has
//! thousands of instances, and an operator looks at one.

use std::collections::BTreeMap;

use greenroom_protocol::wire::master_game::Measures;

/// Steps that are looked at: the newest.
const STEPS_MAX: usize = 512;
/// Instances that are measured at once; one more takes the place of the one that was asked for longest ago.
const GAUGES_MAX: usize = 64;
/// How long one is measured after it was last asked for, in microseconds.
const KEPT_US: u64 = 10_000_000;
/// Bytes a second are of so long a time at least, in microseconds.
const RATE_US: u64 = 1_000_000;

/// The instances that are looked at, by their places.
#[derive(Debug, Default)]
pub(crate) struct Gauges(BTreeMap<usize, Gauge>);

#[derive(Debug)]
struct Gauge {
    asked_us: u64,
    /// How long the newest steps took, in microseconds; the oldest is overwritten.
    steps: Vec<u32>,
    made: usize,
    /// Bytes of patches, since when, and how many a second they were before that.
    patch_bytes: u64,
    since_us: u64,
    patch_rate: Option<u64>,
}

impl Gauges {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Somebody looks at this instance. Gives what was measured since somebody began to.
    pub(crate) fn ask(&mut self, at: usize, now_us: u64) -> Measures {
        if self.0.len() >= GAUGES_MAX && !self.0.contains_key(&at) {
            let oldest = self.0.iter().min_by_key(|(_, gauge)| gauge.asked_us).map(|(at, _)| *at);
            oldest.and_then(|oldest| self.0.remove(&oldest));
        }
        let gauge = self.0.entry(at).or_insert_with(|| Gauge {
            asked_us: now_us,
            steps: Vec::with_capacity(STEPS_MAX),
            made: 0,
            patch_bytes: 0,
            since_us: now_us,
            patch_rate: None,
        });
        gauge.asked_us = now_us;
        let span_us = now_us.saturating_sub(gauge.since_us);
        if span_us >= RATE_US {
            gauge.patch_rate = Some(gauge.patch_bytes.saturating_mul(1_000_000) / span_us);
            (gauge.patch_bytes, gauge.since_us) = (0, now_us);
        }
        let mut sorted = gauge.steps.clone();
        sorted.sort_unstable();
        let at =
            |share: usize| sorted.get((sorted.len() * share / 100).min(sorted.len().max(1) - 1));
        let last = gauge.made.checked_sub(1).map(|last| gauge.steps[last % STEPS_MAX]);
        Measures {
            steps: u32::try_from(sorted.len()).unwrap_or(u32::MAX),
            step_p50_us: at(50).copied().unwrap_or(0),
            step_p99_us: at(99).copied().unwrap_or(0),
            step_last_us: last.unwrap_or(0),
            patch_bytes_per_s: gauge.patch_rate,
            view_bytes: 0,
            state_bytes: None,
        }
    }

    /// It has made a step.
    pub(crate) fn stepped(&mut self, at: usize, took_us: u64) {
        let Some(gauge) = self.0.get_mut(&at) else { return };
        let took = u32::try_from(took_us).unwrap_or(u32::MAX);
        match gauge.steps.get_mut(gauge.made % STEPS_MAX) {
            Some(oldest) => *oldest = took,
            None => gauge.steps.push(took),
        }
        gauge.made += 1;
    }

    /// It has sent so much to those who follow it.
    pub(crate) fn sent(&mut self, at: usize, bytes: usize) {
        if let Some(gauge) = self.0.get_mut(&at) {
            gauge.patch_bytes += bytes as u64;
        }
    }

    /// It is over, and its place another's.
    pub(crate) fn forget(&mut self, at: usize) {
        self.0.remove(&at);
    }

    /// Measures those no more that nobody looks at.
    pub(crate) fn sweep(&mut self, now_us: u64) {
        self.0.retain(|_, gauge| now_us.saturating_sub(gauge.asked_us) < KEPT_US);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_steps_are_measured_and_only_while_somebody_looks() {
        let mut gauges = Gauges::default();
        gauges.stepped(3, 7);
        assert!(gauges.is_empty(), "nobody looks");
        assert_eq!(gauges.ask(3, 0).steps, 0);
        for took in 1..=1_000 {
            gauges.stepped(3, took);
        }
        let seen = gauges.ask(3, 10);
        assert_eq!((seen.steps, seen.step_last_us), (512, 1_000));
        // Those from 489 to 1,000.
        assert_eq!((seen.step_p50_us, seen.step_p99_us), (745, 995));
        gauges.sweep(KEPT_US + 9);
        assert!(!gauges.is_empty());
        gauges.sweep(KEPT_US + 10);
        assert!(gauges.is_empty());
    }

    #[test]
    fn bytes_a_second_are_of_a_second_at_least() {
        let mut gauges = Gauges::default();
        assert_eq!(gauges.ask(1, 0).patch_bytes_per_s, None);
        gauges.sent(1, 500);
        gauges.sent(2, 9_999);
        assert_eq!(gauges.ask(1, 500_000).patch_bytes_per_s, None);
        gauges.sent(1, 500);
        assert_eq!(gauges.ask(1, 2_000_000).patch_bytes_per_s, Some(500));
        assert_eq!(gauges.ask(1, 2_000_001).patch_bytes_per_s, Some(500), "of the second before");
    }

    #[test]
    fn there_are_so_many_at_most_and_the_one_that_was_asked_for_longest_ago_goes() {
        let mut gauges = Gauges::default();
        for at in 0..=GAUGES_MAX {
            gauges.ask(at, at as u64);
        }
        assert!(gauges.0.len() == GAUGES_MAX && !gauges.0.contains_key(&0));
    }
}
