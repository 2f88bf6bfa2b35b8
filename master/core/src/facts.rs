//! What happened, for the event log: what a master that decides tells of once it is committed.
//!
//! Readers of the event log take each once, by its number: whoever takes over tells the newest again.

use ecow::EcoString;
use greenroom_protocol::wire::master_game::SeatState;
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::{
    Code, Incarnation, InstanceId, KindName, Seat, ServerName, SessionId, UserId,
};

use crate::newest::Newest;

/// How long they are kept, in milliseconds of the log: longer than a takeover and the write of an event log.
pub(crate) const AGE_MS: u64 = 5_000;

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
    /// A server has reported, with these labels.
    ServerUp(Role, ServerName, Incarnation, Vec<EcoString>),
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

/// The newest facts.
pub type Facts = Newest<Fact>;
