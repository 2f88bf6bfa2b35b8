//! The newest entries of the log, with a hash over all that came before each.

use std::collections::VecDeque;
use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

use super::words::{Entry, Position};
use crate::command::Header;

/// The chain after an entry. It finds mistakes and forks, not attackers: who can write to the log needs no forgery.
pub(super) fn link(before: u128, header: &Header, version: u16, digest: u128) -> u128 {
    let mut hasher = SipHasher13::new();
    hasher.write_u128(before);
    hasher.write_u64(header.lsn);
    hasher.write_u32(header.epoch.era);
    hasher.write_u32(header.epoch.epoch);
    hasher.write_u64(header.now_ms);
    hasher.write_u64(header.seed);
    hasher.write_u16(version);
    hasher.write_u128(digest);
    hasher.finish128().as_u128()
}

/// The part of the log that is in memory.
#[derive(Clone, Debug)]
pub(super) struct Chain<C> {
    base: Position,
    entries: VecDeque<Entry<C>>,
}

impl<C> Chain<C> {
    pub(super) fn starting_at(base: Position) -> Self {
        Self { base, entries: VecDeque::new() }
    }

    pub(super) fn last(&self) -> Position {
        self.entries.back().map_or(self.base, Entry::position)
    }

    /// Where the part in memory begins: entries up to here are gone.
    pub(super) fn base(&self) -> Position {
        self.base
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn push(&mut self, entry: Entry<C>) {
        assert_eq!(entry.header.lsn, self.last().lsn + 1, "a log has no holes");
        self.entries.push_back(entry);
    }

    /// The place of number `lsn`, if it is still known.
    pub(super) fn at(&self, lsn: u64) -> Option<Position> {
        if lsn == self.base.lsn {
            return Some(self.base);
        }
        self.entries.get(self.index(lsn)?).map(Entry::position)
    }

    /// At most `max` entries after number `lsn`, oldest first.
    pub(super) fn after(&self, lsn: u64, max: usize) -> Vec<Entry<C>> {
        let first = self.index(lsn + 1).unwrap_or(usize::MAX).min(self.entries.len());
        let end = first.saturating_add(max).min(self.entries.len());
        self.entries.range(first..end).cloned().collect()
    }

    /// Forgets the oldest entry.
    pub(super) fn forget_first(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.base = entry.position();
        }
    }

    fn index(&self, lsn: u64) -> Option<usize> {
        usize::try_from(lsn.checked_sub(self.base.lsn + 1)?).ok()
    }
}
