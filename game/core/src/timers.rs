//! What an instance asked to be reminded of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Timers that one instance may have at once.
/// Each costs memory and a place in order; a game that needs one per entity keeps them in its own state.
pub const TIMERS_MAX: usize = 4_096;

/// One timer, for [`crate::Cx::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TimerId {
    /// In ticks; at tick rate 0 in milliseconds.
    due: u64,
    n: u64,
}

/// All timers of an instance, in the order in which they fall due; of those due together, in the order they were set.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Timers {
    next: u64,
    set: BTreeMap<TimerId, Vec<u8>>,
}

impl Timers {
    pub(crate) fn set(&mut self, due: u64, timer: Vec<u8>) -> TimerId {
        assert!(self.set.len() < TIMERS_MAX, "an instance has at most {TIMERS_MAX} timers");
        let id = TimerId { due, n: self.next };
        self.next += 1;
        self.set.insert(id, timer);
        id
    }
    pub(crate) fn cancel(&mut self, id: TimerId) -> bool {
        self.set.remove(&id).is_some()
    }
    /// Takes the first timer that is due. One that is set meanwhile is due later, so this comes to an end.
    pub(crate) fn take_due(&mut self, now: u64) -> Option<Vec<u8>> {
        let first = self.set.first_entry()?;
        (first.key().due <= now).then(|| first.remove())
    }
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.set.first_key_value().map(|(id, _)| id.due)
    }
}
