//! When each instance steps: a grid, so that steps begin together and their frames leave in one write, and phases, so
//! that not all of them begin at once.

use std::collections::BTreeSet;

/// How many ticks an instance may be behind before it gives up catching up.
const BEHIND_MAX: u64 = 16;

/// What is due when, in microseconds since the server's start.
#[derive(Debug)]
pub(crate) struct Clockwork {
    grid: u64,
    due: BTreeSet<(u64, usize)>,
    /// Of the instance that comes next: spreads instances over the places of the grid.
    phase: u64,
}

/// The ticks of one instance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    rate: u16,
    /// When tick 0 was.
    origin: u64,
    /// Ticks since then.
    made: u64,
}

/// What a tick that is being made was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lateness {
    /// How long after its place on the grid it began.
    pub(crate) late: u64,
    /// Ticks that are given up, since the instance is too far behind to make all.
    pub(crate) given_up: u64,
}

impl Clockwork {
    pub(crate) const fn new(grid: u64) -> Self {
        Self { grid, due: BTreeSet::new(), phase: 0 }
    }
    /// The ticks of a new instance, with a phase of its own.
    pub(crate) fn ticks(&mut self, rate: u16, now: u64) -> Ticks {
        let places = (1_000_000 / u64::from(rate)).div_ceil(self.grid).max(1);
        self.phase = self.phase.wrapping_add(1);
        // The bits of a count in reverse order: neighbours are far apart, and no place is taken twice early.
        let phase = self.phase.reverse_bits() >> 48;
        let place = (phase * places) >> 16;
        Ticks { rate, origin: now + place * self.grid, made: 0 }
    }
    /// The place on the grid at or after a time.
    pub(crate) const fn on_grid(&self, at: u64) -> u64 {
        at.next_multiple_of(self.grid)
    }
    pub(crate) const fn grid(&self) -> u64 {
        self.grid
    }
    pub(crate) fn set(&mut self, instance: usize, due: u64) {
        self.due.insert((due, instance));
    }
    pub(crate) fn unset(&mut self, instance: usize, due: u64) {
        self.due.remove(&(due, instance));
    }
    pub(crate) fn next(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }
    /// Takes the first that is due.
    pub(crate) fn take_due(&mut self, now: u64) -> Option<(u64, usize)> {
        let first = *self.due.first()?;
        (first.0 <= now).then(|| {
            self.due.pop_first();
            first
        })
    }
}

impl Ticks {
    /// Ticks per second.
    pub(crate) const fn rate(&self) -> u16 {
        self.rate
    }
    /// When the next tick is due, before it is put on the grid.
    pub(crate) const fn next(&self) -> u64 {
        // By multiplication from the origin: a rate that does not divide a second does not drift.
        self.origin + (self.made + 1) * 1_000_000 / self.rate as u64
    }
    /// Counts a tick that was due at `due` on the grid and is made now.
    pub(crate) fn make(&mut self, due: u64, now: u64) -> Lateness {
        self.made += 1;
        let behind = now.saturating_sub(self.next()) * u64::from(self.rate) / 1_000_000;
        let given_up = if behind > BEHIND_MAX { behind } else { 0 };
        self.made += given_up;
        Lateness { late: now.saturating_sub(due), given_up }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_keep_their_rate_on_any_grid() {
        for rate in [1, 20, 30, 60, 128] {
            let mut clockwork = Clockwork::new(5_000);
            let mut ticks = clockwork.ticks(rate, 1_234);
            let begin = ticks.origin;
            let mut made = 0u32;
            while clockwork.on_grid(ticks.next()) <= clockwork.on_grid(begin + 10_000_000) {
                let due = clockwork.on_grid(ticks.next());
                assert_eq!(ticks.make(due, due), Lateness { late: 0, given_up: 0 });
                made += 1;
            }
            assert!(made.abs_diff(10 * u32::from(rate)) <= 1, "{made} ticks at {rate} a second");
        }
    }

    #[test]
    fn instances_are_spread_over_the_places_of_their_period() {
        let mut clockwork = Clockwork::new(5_000);
        let mut places = [0; 10];
        for _ in 0..100 {
            let ticks = clockwork.ticks(20, 0);
            places[usize::try_from(ticks.origin / 5_000).unwrap()] += 1;
        }
        assert!(places.iter().all(|n| (8..=12).contains(n)), "{places:?}");
    }

    #[test]
    fn an_instance_that_is_a_little_late_makes_every_tick_and_one_far_behind_says_how_many_it_gave_up()
     {
        let mut ticks = Clockwork::new(5_000).ticks(20, 0);
        let due = ticks.next();
        assert_eq!(ticks.make(due, due + 400_000), Lateness { late: 400_000, given_up: 0 });
        assert_eq!(ticks.next(), due + 50_000);
        let due = ticks.next();
        let lateness = ticks.make(due, due + 10_000_000);
        assert_eq!(lateness, Lateness { late: 10_000_000, given_up: 199 });
        assert!(ticks.next() > due + 10_000_000 - 50_000);
    }

    #[test]
    fn what_is_due_comes_in_its_order_and_not_before() {
        let mut clockwork = Clockwork::new(1_000);
        clockwork.set(7, 3_000);
        clockwork.set(8, 2_000);
        clockwork.set(9, 2_500);
        clockwork.unset(9, 2_500);
        assert_eq!(clockwork.next(), Some(2_000));
        assert_eq!(clockwork.take_due(1_999), None);
        assert_eq!(clockwork.take_due(3_000), Some((2_000, 8)));
        assert_eq!(clockwork.take_due(3_000), Some((3_000, 7)));
        assert_eq!(clockwork.take_due(9_000), None);
    }
}
