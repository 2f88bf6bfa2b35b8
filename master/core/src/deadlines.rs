//! What happens by itself when time passes, in the order in which it is due.

use std::collections::BTreeSet;

use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::{InstanceId, Seat, ServerName, SessionId};

/// Never due.
pub(crate) const NEVER: u64 = u64::MAX;

/// What is due. The derived order only breaks ties, and is the same everywhere since these are ids, not slots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// A reserved seat was not taken, or the user whom it was kept for did not come.
    Seat(InstanceId, Seat),
    /// A session was without a connection for too long, or was over for long enough to forget it.
    Session(SessionId),
    /// A suspect server did not come back, or one that is down was down for long enough to forget it.
    Server(Role, ServerName),
    /// A live search has something to tell.
    Watch(u64),
    /// Servers had time to say what they have: what waits for it waits no longer.
    Rejoined,
}

/// The index of the `until_ms` of every record. Who changes one calls [`Deadlines::set`] in the same breath.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    set: BTreeSet<(u64, Due)>,
}

impl Deadlines {
    /// Moves a deadline from `*until_ms` to `to_ms`; [`NEVER`] is none.
    pub(crate) fn set(&mut self, until_ms: &mut u64, to_ms: u64, due: Due) {
        if *until_ms == to_ms {
            return;
        }
        let mut entry = (*until_ms, due);
        if *until_ms != NEVER {
            self.set.remove(&entry);
        }
        *until_ms = to_ms;
        if to_ms != NEVER {
            entry.0 = to_ms;
            self.set.insert(entry);
        }
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<u64> {
        self.set.first().map(|(until_ms, _)| *until_ms)
    }

    /// The next one that is due at `now_ms`. It stays until its record's deadline is moved.
    pub(crate) fn due(&self, now_ms: u64) -> Option<Due> {
        self.set.first().filter(|(until_ms, _)| *until_ms <= now_ms).map(|(_, due)| due.clone())
    }

    pub(crate) fn len(&self) -> usize {
        self.set.len()
    }
    pub(crate) fn contains(&self, until_ms: u64, due: Due) -> bool {
        self.set.contains(&(until_ms, due))
    }
}
