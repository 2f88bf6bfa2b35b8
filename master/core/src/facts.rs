//! What happened, for the event log: what a master that decides tells of once it is committed.
//!
//! Every master has the newest facts, by the same numbers. So one that takes over says again what the one before it may
//! not have written any more, and readers of the event log take each once, by its number.

use std::collections::VecDeque;

use ecow::EcoString;
use greenroom_protocol::wire::master_game::SeatState;
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::{
    Code, Incarnation, InstanceId, KindName, Seat, ServerName, SessionId, UserId,
};

/// Facts that are kept, at most: half a second of the most that one thread decides.
const LEN_MAX: usize = 65_536;
/// How long they are kept, in milliseconds of the log: longer than a takeover and the write of an event log.
const AGE_MS: u64 = 5_000;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A user has checked in: its session begins.
    SessionBegan {
        /// Whose.
        user: UserId,
        /// Which.
        session: SessionId,
        /// The name that others see.
        name: EcoString,
        /// Over which session server.
        server: ServerName,
    },
    /// A session goes on over a new connection.
    SessionResumed(UserId, SessionId),
    /// A session has lost its connection.
    SessionAway(UserId, SessionId),
    /// A session is over.
    SessionEnded(UserId, SessionId, Code),
    /// A request was answered: an instance is there.
    Created(Asker, InstanceId, Option<KindName>),
    /// A request was answered: a seat.
    Joined(Asker, InstanceId, KindName, Seat),
    /// A request was answered: the seat is free.
    Left(Asker, InstanceId, Option<KindName>),
    /// A request was answered: the instance is closed.
    Destroyed(Asker, InstanceId),
    /// An operator has an instance closed.
    DestroyedByOperator(InstanceId),
    /// A request was refused.
    Refused(Asker, Code),
    /// An instance has its place on a game server.
    Granted(InstanceId, KindName, ServerName, Incarnation),
    /// An instance runs, so many milliseconds after it was granted.
    Running(InstanceId, KindName, u64),
    /// An instance is to go on from its last snapshot, on this game server.
    Restoring(InstanceId, KindName, ServerName, Incarnation),
    /// An instance goes on from its last snapshot.
    Restored(InstanceId, KindName),
    /// An instance is over, so many milliseconds after it was granted.
    Closed(InstanceId, KindName, Code, u64),
    /// A seat has changed.
    SeatChanged(InstanceId, Seat, Option<UserId>, SessionId, SeatState),
    /// A server has reported.
    ServerUp(Role, ServerName, Incarnation),
    /// A server's link is gone.
    ServerSuspect(Role, ServerName),
    /// A server's time is up.
    ServerDown(Role, ServerName),
    /// A server gets nothing new.
    ServerDraining(Role, ServerName),
}

/// Who asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The user.
    pub user: UserId,
    /// Its session.
    pub session: SessionId,
}

/// A fact with its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Time of its command.
    pub at_ms: u64,
    /// Number of its command.
    pub lsn: u64,
    /// Which of its command's facts it is.
    pub index: u16,
    /// What happened.
    pub fact: Fact,
}

/// The newest facts, oldest first.
#[derive(Debug, Default)]
pub struct Facts {
    newest: VecDeque<Placed>,
    /// How many there were in all.
    count: u64,
    at_ms: u64,
    lsn: u64,
    index: u16,
}

impl Facts {
    /// What follows is of this command.
    pub(crate) fn begin(&mut self, lsn: u64, now_ms: u64) {
        (self.lsn, self.at_ms, self.index) = (lsn, now_ms, 0);
        let is_old = |fact: &Placed| fact.at_ms.saturating_add(AGE_MS) < now_ms;
        while self.newest.front().is_some_and(is_old) {
            self.newest.pop_front();
        }
    }

    pub(crate) fn push(&mut self, fact: Fact) {
        if self.newest.len() == LEN_MAX {
            self.newest.pop_front();
        }
        self.newest.push_back(Placed { at_ms: self.at_ms, lsn: self.lsn, index: self.index, fact });
        self.index = self.index.saturating_add(1);
        self.count += 1;
    }

    /// Number of the oldest that is kept, counted from 0 since this process began.
    pub fn first(&self) -> u64 {
        self.count - self.newest.len() as u64
    }

    /// Those from a number on; what is not kept any more is left out.
    pub fn from(&self, number: u64) -> impl Iterator<Item = &Placed> {
        let skipped = usize::try_from(number.saturating_sub(self.first())).unwrap_or(usize::MAX);
        self.newest.range(skipped.min(self.newest.len())..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_for_a_while_and_have_their_numbers() {
        let mut facts = Facts::default();
        let down =
            |n: u64| Fact::ServerDown(Role::Game, ServerName::new(format!("game-{n}")).unwrap());
        facts.begin(1, 1_000);
        facts.push(down(0));
        facts.push(down(1));
        facts.begin(2, 1_000 + AGE_MS);
        facts.push(down(2));
        let kept: Vec<_> = facts.from(1).map(|fact| (fact.lsn, fact.index)).collect();
        assert_eq!((facts.first(), kept), (0, vec![(1, 1), (2, 0)]));
        facts.begin(3, 1_001 + AGE_MS);
        assert_eq!((facts.first(), facts.from(0).count(), facts.from(3).count()), (2, 1, 0));
        for n in 0..LEN_MAX as u64 + 5 {
            facts.push(down(n));
        }
        assert_eq!((facts.first(), facts.from(0).count()), (8, LEN_MAX));
    }
}
