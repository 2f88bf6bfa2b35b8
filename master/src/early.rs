//! Requests that come before the game servers have found a master that has just begun.
//!
//! A master that begins with what is on its disk knows its game servers and has no link to any of them. Until they have
//! dialled it nobody could take an instance, and clients would be told that there is no capacity. Requests wait for
//! them meanwhile, in their order, and for no longer than a game server takes to dial.

use std::collections::VecDeque;

use greenroom_master_core::Origin;
use greenroom_protocol::wire::session_master::Ask;

/// Milliseconds that requests wait at most: some of the game servers may be gone.
const WAIT_MAX_MS: u64 = 1_000;
/// Requests that wait. What comes past it is decided by what is known.
const WAITING_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Early {
    /// Game servers that are about to come.
    missing: Vec<Origin>,
    until_ms: u64,
    waiting: VecDeque<(Origin, Ask)>,
}

impl Early {
    /// This master decides from here on; these game servers ran when it was last known, and have no link.
    pub(crate) fn begin(&mut self, missing: Vec<Origin>, now_ms: u64) {
        *self = Self { missing, until_ms: now_ms + WAIT_MAX_MS, waiting: VecDeque::new() };
    }

    /// Has a request wait; gives it back if it need not.
    pub(crate) fn keep(&mut self, origin: Origin, ask: Ask) -> Option<(Origin, Ask)> {
        if self.missing.is_empty() || self.waiting.len() == WAITING_MAX {
            return Some((origin, ask));
        }
        self.waiting.push_back((origin, ask));
        None
    }

    /// Whether game servers are waited for.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.missing.is_empty()
    }

    /// These game servers are there by now. Gives what waited, once none is missing or the time is over.
    pub(crate) fn come(&mut self, there: &[Origin], now_ms: u64) -> VecDeque<(Origin, Ask)> {
        self.missing.retain(|missing| !there.contains(missing));
        if now_ms >= self.until_ms {
            self.missing.clear();
        }
        match self.is_waiting() {
            true => VecDeque::new(),
            false => std::mem::take(&mut self.waiting),
        }
    }
}

#[cfg(test)]
mod tests {
    use greenroom_protocol::{Incarnation, RequestId, ServerName, SessionId};

    use super::*;

    fn origin(name: &str) -> Origin {
        Origin { server: ServerName::new(name).unwrap(), incarnation: Incarnation(1) }
    }

    fn ask(id: u32) -> Ask {
        Ask {
            session: SessionId(1),
            id: RequestId(id),
            answered: RequestId(0),
            kind: 0,
            request: Default::default(),
            trace: None,
        }
    }

    fn ids(asks: VecDeque<(Origin, Ask)>) -> Vec<u32> {
        asks.into_iter().map(|(_, Ask { id: RequestId(id), .. })| id).collect()
    }

    #[test]
    fn requests_wait_in_their_order_until_every_game_server_is_there() {
        let mut early = Early::default();
        assert!(early.keep(origin("s"), ask(1)).is_some(), "nobody is missing");
        early.begin(vec![origin("a"), origin("b")], 50);
        assert!(early.keep(origin("s"), ask(2)).is_none());
        assert!(early.keep(origin("s"), ask(3)).is_none());
        assert!(early.come(&[origin("a"), origin("c")], 60).is_empty());
        assert!(early.keep(origin("s"), ask(4)).is_none());
        assert_eq!(ids(early.come(&[origin("b")], 61)), [2, 3, 4]);
        assert!(early.keep(origin("s"), ask(5)).is_some());
    }

    #[test]
    fn a_game_server_that_does_not_come_is_not_waited_for_long_nor_by_many() {
        let mut early = Early::default();
        early.begin(vec![origin("a")], 50);
        for id in 0..WAITING_MAX {
            assert!(early.keep(origin("s"), ask(u32::try_from(id).unwrap())).is_none());
        }
        assert!(early.keep(origin("s"), ask(0)).is_some(), "decided by what is known");
        assert!(early.come(&[], 49 + WAIT_MAX_MS).is_empty());
        assert_eq!(early.come(&[], 50 + WAIT_MAX_MS).len(), WAITING_MAX);
        assert!(!early.is_waiting());
    }
}
