//! How much memory the records take, by table: what a benchmark prints, and what a size is judged by.

use crate::state::State;

/// Bytes of heap, without what the allocator adds to each piece and without texts that don't fit into a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The records of users, and their indexes by id (a point index and an ordered one) and by name.
    pub users: usize,
    /// The sessions, their indexes by id and by key, and the lists of seats and answers that don't fit into a record.
    pub sessions: usize,
    /// The instances, with what their games say of them, their seats, and all their indexes.
    pub instances: usize,
}

impl State {
    /// Counts the memory of the records. Walks over everything: for benchmarks and for people.
    pub fn memory(&self) -> Memory {
        let (users, sessions) = self.users.memory();
        Memory { users, sessions, instances: self.directory.memory() }
    }
}
