//! The newest of what the state has to say to the world outside, each with its place in the log.
//!
//! Every master has them, by the same numbers, and only the one that decides says them, once they are committed. So one
//! that takes over says again what the one before it may not have said any more.

use std::collections::VecDeque;

use greenroom_protocol::Epoch;

/// How many are kept, at most: half a second of the most that one thread decides.
const LEN_MAX: usize = 65_536;

/// Something with its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed<T> {
    /// Time of its command, as people are shown it.
    pub at_ms: u64,
    /// The term in which its command was appended.
    pub epoch: Epoch,
    /// Number of its command.
    pub lsn: u64,
    /// Which of its command's it is.
    pub index: u16,
    /// What it is.
    pub what: T,
}

/// The newest, oldest first.
#[derive(Debug)]
pub struct Newest<T> {
    /// Each with the log's time until which it is kept.
    newest: VecDeque<(u64, Placed<T>)>,
    /// How long they are kept, in milliseconds of the log.
    age_ms: u64,
    /// How many there were in all.
    count: u64,
    until_ms: u64,
    at_ms: u64,
    epoch: Epoch,
    lsn: u64,
    index: u16,
}

impl<T> Newest<T> {
    /// None yet. Each is kept for so long.
    pub(crate) const fn kept_for(age_ms: u64) -> Self {
        let epoch = Epoch { era: 0, epoch: 0 };
        Self {
            newest: VecDeque::new(),
            age_ms,
            count: 0,
            until_ms: 0,
            at_ms: 0,
            epoch,
            lsn: 0,
            index: 0,
        }
    }

    /// What follows is of this command. Its age is by the log's time `now_ms`: what people are shown leaps over the
    /// time in which nobody decided, and who decides again has not said the newest from before it.
    pub(crate) fn begin(&mut self, epoch: Epoch, lsn: u64, now_ms: u64, shown_ms: u64) {
        (self.epoch, self.lsn, self.at_ms, self.index) = (epoch, lsn, shown_ms, 0);
        self.until_ms = now_ms.saturating_add(self.age_ms);
        let is_old = |(until_ms, _): &(u64, Placed<T>)| *until_ms < now_ms;
        while self.newest.front().is_some_and(is_old) {
            self.newest.pop_front();
        }
    }

    pub(crate) fn push(&mut self, what: T) {
        if self.newest.len() == LEN_MAX {
            self.newest.pop_front();
        }
        let Self { until_ms, at_ms, epoch, lsn, index, .. } = *self;
        self.newest.push_back((until_ms, Placed { at_ms, epoch, lsn, index, what }));
        self.index = self.index.saturating_add(1);
        self.count += 1;
    }

    /// Number of the oldest that is kept, counted from 0 since this process began.
    pub fn first(&self) -> u64 {
        self.count - self.newest.len() as u64
    }

    /// Those from a number on; what is not kept any more is left out.
    pub fn from(&self, number: u64) -> impl Iterator<Item = &Placed<T>> {
        let skipped = usize::try_from(number.saturating_sub(self.first())).unwrap_or(usize::MAX);
        self.newest.range(skipped.min(self.newest.len())..).map(|(_, placed)| placed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_for_a_while_and_have_their_numbers() {
        const AGE_MS: u64 = 5_000;
        let mut newest = Newest::kept_for(AGE_MS);
        let epoch = Epoch { era: 1, epoch: 1 };
        newest.begin(epoch, 1, 1_000, 1_000);
        newest.push(0);
        newest.push(1);
        newest.begin(epoch, 2, 1_000 + AGE_MS, 900_000);
        newest.push(2);
        let kept: Vec<_> = newest.from(1).map(|placed| (placed.lsn, placed.at_ms)).collect();
        assert_eq!(
            (newest.first(), kept),
            (0, vec![(1, 1_000), (2, 900_000)]),
            "not by what is shown"
        );
        newest.begin(epoch, 3, 1_001 + AGE_MS, 900_001);
        assert_eq!((newest.first(), newest.from(0).count(), newest.from(3).count()), (2, 1, 0));
        for n in 0..LEN_MAX as u64 + 5 {
            newest.push(n);
        }
        assert_eq!((newest.first(), newest.from(0).count()), (8, LEN_MAX));
    }
}
