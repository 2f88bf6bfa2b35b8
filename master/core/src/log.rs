//! Commands in the order in which one master applied them, for stories of the core. What masters run on is the log of
//! the pair, which `Replica` keeps.

use std::collections::VecDeque;

use crate::command::{Command, Effects, Header};
use crate::state::State;

/// The newest commands, in memory.
#[derive(Debug, Clone)]
pub struct Log {
    entries: VecDeque<(Header, Command)>,
    entries_max: usize,
}

impl Log {
    /// A log that keeps the newest `entries_max` commands, at least one.
    pub fn new(entries_max: usize) -> Self {
        Self { entries: VecDeque::new(), entries_max: entries_max.max(1) }
    }

    /// Appends a command, and forgets the oldest if there are too many. Gives back the entry, to be applied.
    ///
    /// # Panics
    /// When the command's number does not follow the last one's: the log has no holes.
    pub fn append(&mut self, header: Header, command: Command) -> (&Header, &Command) {
        if let Some((last, _)) = self.entries.back() {
            assert_eq!(header.lsn, last.lsn + 1, "a log has no holes");
            assert!(header.now_ms >= last.now_ms, "the log's time does not run backwards");
        }
        if self.entries.len() == self.entries_max {
            self.entries.pop_front();
        }
        self.entries.push_back((header, command));
        let (header, command) = self.entries.back().expect("an entry was appended just now");
        (header, command)
    }

    /// The commands that are kept, oldest first.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &(Header, Command)> {
        self.entries.iter()
    }
}

/// Applies the commands of a log to the state before its first, as a standby does, and gives all their effects.
pub fn replay(mut state: State, log: &Log) -> (State, Effects) {
    let mut effects = Effects::new();
    for (header, command) in log.entries() {
        state.apply(header, command, &mut effects);
    }
    (state, effects)
}
