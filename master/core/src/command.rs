//! What goes into the core and what comes out: entries of the log, and what the shell must do after them.

use ecow::EcoString;
use greenroom_protocol::wire::admin_master::Action;
use greenroom_protocol::wire::client_session::Request;
use greenroom_protocol::wire::master_game::{
    Closed, CreateRefused, GameLoad, GameReport, HandedOver, MetaChanged, Running, Scored,
    SeatChanged,
};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::{
    Bind, MasterToSession, Seen, SessionLoad, SessionReport, Unbind,
};
use greenroom_protocol::{Epoch, Incarnation, Refusal, RequestId, ServerName, SessionId};
use serde::{Deserialize, Serialize};

use crate::documents::RankedMember;

/// What the active stamps on a command before it is appended: all that `apply` may know of the world outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Number of the command in the log, from 1.
    pub lsn: u64,
    /// The term in which it was appended.
    pub epoch: Epoch,
    /// The log's time in milliseconds, never less than that of the command before: what deadlines are measured by. It
    /// stands still while nobody decides: see [`Command::ClockAt`].
    pub now_ms: u64,
    /// Random bits of the active's own.
    pub seed: u64,
}

/// Which process says it: a name alone would let an earlier life of the process speak.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// Its name.
    pub server: ServerName,
    /// This life of its process.
    pub incarnation: Incarnation,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// A session server is there and says what it is and whom it has. First on every link.
    SessionUp(Origin, SessionReport),
    /// Load of a session server.
    SessionLoad(Origin, SessionLoad),
    /// A session server has the master's stream up to this number.
    SessionReceived(Origin, u64),
    /// A user has proved who it is.
    Bind(Origin, Bind),
    /// A connection is gone. With its place in the session server's stream.
    Unbind(Origin, u64, Unbind),
    /// A client has what its live search told.
    Seen(Origin, Seen),
    /// A client's request. `Search` and `Rank` change nothing and are no commands: see [`crate::State::search`] and
    /// [`crate::State::rank`].
    Ask {
        /// The session server that carries it.
        origin: Origin,
        /// Whose.
        session: SessionId,
        /// The client's number.
        id: RequestId,
        /// Cached answers up to this one may go.
        answered: RequestId,
        /// What is asked.
        request: Request,
    },
    /// A game server is there and says what it is and what it runs. First on every link.
    GameUp(Origin, GameReport),
    /// Load of a game server.
    GameLoad(Origin, GameLoad),
    /// A game server has the master's stream up to this number.
    GameReceived(Origin, u64),
    /// Something happened to an instance. With its place in the game server's stream.
    Happened(Origin, u64, Event),
    /// The link to a server is gone: it is suspect until it reports again or its time is up.
    LinkLost(Role, Origin),
    /// It is proved that the process of a game server is no more: it is given up without waiting for its time.
    Died(Origin),
    /// What an earlier era has stored of rank boards: who is on none of them by this one's log is again.
    Stored(Vec<RankedMember>),
    /// Time has passed: what is due at the header's time happens, at most [`crate::State::EXPIRED_MAX`] of it.
    Expire,
    /// An operator acts.
    Act {
        /// The shell's number of this question.
        number: u64,
        /// What to do.
        action: Action,
    },
    /// The active's wall clock, in milliseconds since 1970. The log's time stands still while nobody decides, so that
    /// no deadline passes meanwhile; the times that people are shown go on from here, unless they are later already.
    ClockAt(u64),
}

/// What a game server reports of an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// It runs.
    Running(Running),
    /// It was not made.
    CreateRefused(CreateRefused),
    /// A seat of it changes.
    SeatChanged(SeatChanged),
    /// The game changed what it says of it.
    MetaChanged(MetaChanged),
    /// It is closed.
    Closed(Closed),
    /// A user's score on a rank board.
    Scored(Scored),
    /// It is stored and stopped, to go on elsewhere.
    HandedOver(HandedOver),
}

/// What the shell must do once a command is committed. What must not be lost is not here but in the receivers' streams:
/// see [`crate::State::session_stream`] and [`crate::State::game_stream`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Effect {
    /// Tell a server that its link is in use, and the number of its streams. Goes out before anything of its stream.
    Welcome(Role, ServerName, u64),
    /// Tell a game server that its load is committed, and when it had sent it.
    Renewed(ServerName, u64),
    /// Tell a session server. If it is lost, the session server asks again.
    ToSession(ServerName, MasterToSession),
    /// Answer an operator.
    Acted {
        /// As in [`Command::Act`].
        number: u64,
        /// What became of it.
        result: Result<(), Refusal>,
    },
    /// A server said what it may not say, or what can't be. Nothing was changed.
    Illegal {
        /// Its role.
        role: Role,
        /// Which.
        server: ServerName,
        /// What is wrong.
        what: EcoString,
    },
}

/// The effects of one command, in order.
pub type Effects = Vec<Effect>;
