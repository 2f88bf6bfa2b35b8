//! A session server and the master: who is connected, and clients' requests to the directory.
//!
//! The session server dials. Every payload begins with a [`crate::StampedHeader`]; messages marked *stream* have a
//! number in it, are kept by their sender until acknowledged, and are sent again on a new link.

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use super::client_session::{
    Created, Destroyed, Found, Left, Ranking, SessionServer, Unwatched, Watching,
};
use super::{Opaque, direction};
use crate::{
    Generation, Incarnation, InstanceId, KindName, Refusal, RequestId, Seat, Seq, ServerName,
    SessionId, SessionKey, TraceContext, UserId,
};

direction! {
    /// What a session server says to the master.
    SessionToMaster {
        /// Answers a [`MasterToSession::NewEpoch`]: what this server is and whom it has.
        0x01 Report(SessionReport),
        /// Load; may be lost.
        0x02 Load(SessionLoad),
        /// A user has proved who it is.
        0x03 Bind(Bind),
        /// A connection is gone (stream).
        0x04 Unbind(Unbind),
        /// A client's request to the directory; repeated until it is answered.
        0x05 Ask(Ask),
        /// Everything of the master's stream up to this number has arrived.
        0x06 Received(Received),
        /// A client has the changes of a live search; repeated by nobody, since changes are told anew on a new link.
        0x07 Seen(Seen),
        /// Answers a [`MasterToSession::NewEpoch`] instead of a report: this server goes on where it was.
        0x08 Resume(Resume),
        /// The master's epoch is over: the stamp has the one that is.
        0x09 Fenced(Fenced),
    }
}

direction! {
    /// What the master says to a session server.
    MasterToSession {
        /// Answers a [`SessionToMaster::Bind`].
        0x81 Bound(Bound),
        /// Refuses a [`SessionToMaster::Bind`].
        0x82 BindRefused(BindRefused),
        /// Answers a [`SessionToMaster::Ask`].
        0x83 Answer(Answer),
        /// A session ends here, and why (stream).
        0x84 EndSession(EndSession),
        /// The list of session servers has changed; may be lost, it comes again with every change.
        0x85 SessionServers(super::client_session::SessionServers),
        /// Everything of the session server's stream up to this number is committed.
        0x86 Received(Received),
        /// Answers the report, or the resume: the link is in use.
        0x87 Welcome(Welcome),
        /// What live searches have to tell (stream).
        0x88 Changed(Changed),
        /// First on a link of the active, and on every link of a standby that has become it: this master decides, in
        /// the epoch of the stamp.
        0x89 NewEpoch(NewEpoch),
        /// The instance of a seat goes on in another life (stream).
        0x8A Moved(Moved),
        /// A seat is gone with its instance, which no game server could take up (stream).
        0x8B SeatLost(SeatLost),
    }
}

/// What a session server is, and whom it has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionReport {
    /// Where clients reach it, as URLs.
    pub urls: Vec<EcoString>,
    /// Name and version of the build.
    pub build: EcoString,
    /// How many connections it takes.
    pub connections_max: u32,
    /// The sessions that are connected to it now.
    pub sessions: Vec<HeldSession>,
}

/// A session that is connected to a session server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldSession {
    /// Which.
    pub session: SessionId,
    /// By which binding.
    pub generation: Generation,
    /// Whose.
    pub user: UserId,
    /// The client's secret of the session, so that it can go on elsewhere after the master has lost its memory.
    pub session_key: SessionKey,
    /// The name to be shown.
    #[serde(default)]
    pub name: EcoString,
}

/// Load of a session server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionLoad {
    /// Open connections.
    pub connections: u32,
    /// Share of its thread's time that it was busy, in thousandths.
    pub busy_permille: u16,
    /// It stops: no new clients.
    pub draining: bool,
    /// What it has counted since it began.
    #[serde(default, skip_serializing_if = "SessionCounts::is_none")]
    pub counts: SessionCounts,
}

/// What a session server has counted since it began. The last four are 0 while nothing is wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionCounts {
    /// Check-ins that succeeded.
    pub check_ins: u64,
    /// Frames from clients: requests, messages to instances, acknowledgements.
    pub frames: u64,
    /// Numbered messages of instances that never came: the one after them did.
    pub lost: u64,
    /// Numbered messages of instances that came twice on one attachment of a seat.
    pub doubled: u64,
    /// Numbered messages of instances that came after a later one.
    pub out_of_order: u64,
    /// Masters that said that they decide in an epoch in which another one had said so.
    pub rivals: u64,
}

impl SessionCounts {
    /// Whether nothing was counted.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Counts a reliable message whose number does not follow that of the `last` one.
    pub fn irregular(&mut self, last: &mut Seq, number: Seq) {
        // Half the circle ahead is ahead: a seat never has so many messages under way.
        let ahead = number.0.wrapping_sub(last.0);
        match ahead {
            0 => self.doubled += 1,
            1..=0x7fff_ffff => {
                self.lost += u64::from(ahead - 1);
                *last = number;
            }
            _ => self.out_of_order += 1,
        }
    }
}

/// A user has proved who it is: bind its session to this server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bind {
    /// The session server's number of this question.
    pub number: u64,
    /// Made by the client.
    pub session_key: SessionKey,
    /// As the authenticator decided.
    pub user: UserId,
    /// The name to be shown.
    pub name: EcoString,
    /// The trace of it, if it is sampled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceContext>,
}

/// A connection is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unbind {
    /// Of which session.
    pub session: SessionId,
    /// Only if this is still its binding.
    pub generation: Generation,
}

/// A client's request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// Of which session.
    pub session: SessionId,
    /// The client's number.
    pub id: RequestId,
    /// Cached answers up to this one may go.
    pub answered: RequestId,
    /// Kind byte of the [`super::client_session::Request`].
    pub kind: u8,
    /// The request, encoded as the client did.
    pub request: Opaque,
    /// The trace of it, if it is sampled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceContext>,
}

/// Acknowledges a stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Received {
    /// Up to this number.
    pub n: u64,
}

/// The session is bound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// The question's number.
    pub number: u64,
    /// The session.
    pub session: SessionId,
    /// Of this binding.
    pub generation: Generation,
    /// All session servers that take clients.
    pub session_servers: Vec<SessionServer>,
}

/// The session is not bound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BindRefused {
    /// The question's number.
    pub number: u64,
    /// Why.
    pub refusal: Refusal,
}

/// The answer to a request: the same for every time it is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Of which session.
    pub session: SessionId,
    /// The client's number.
    pub id: RequestId,
    /// What is answered.
    pub outcome: Outcome,
}

/// What the directory decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// An instance runs.
    Created(Created),
    /// A seat is reserved: attach the client to it.
    Granted(Granted),
    /// A seat is free.
    Left(Left),
    /// An instance is closed.
    Destroyed(Destroyed),
    /// Instances.
    Found(Found),
    /// A live search is set up.
    Watching(Watching),
    /// A live search is over.
    Unwatched(Unwatched),
    /// A part of a rank board.
    Ranking(Ranking),
    /// No.
    Refused(Refusal),
}

/// A seat that is reserved for the asking session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Granted {
    /// Where.
    pub instance: InstanceId,
    /// Its kind.
    pub kind: KindName,
    /// In which life.
    pub incarnation: Incarnation,
    /// Which seat.
    pub seat: Seat,
    /// The game server that runs it.
    pub server: ServerName,
    /// Where that server takes links: `host:port`.
    pub address: EcoString,
    /// The instance goes on elsewhere when its game server is lost: the master then says where, or that it is gone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub durable: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

/// The instance of a seat goes on in another life: attach its client there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// Whose seat it is.
    pub session: SessionId,
    /// Where it is now.
    pub granted: Granted,
}

/// A seat is gone with its instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeatLost {
    /// Whose it was.
    pub session: SessionId,
    /// Where.
    pub instance: InstanceId,
    /// Why: the client is told.
    pub refusal: Refusal,
}

/// A session ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndSession {
    /// Which.
    pub session: SessionId,
    /// Only this binding and older ones.
    pub generation: Generation,
    /// Why: the client is told.
    pub refusal: Refusal,
}

/// The link is in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// Names both streams of this server: the number of the command by which the masters of this era came to know this
    /// life of it. With another number, or in another era, both begin anew.
    pub streams: u64,
}

/// This master decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEpoch {
    /// Number of the streams of this server, as in [`Welcome`], if it may go on with them without a report.
    pub streams: Option<u64>,
}

/// A server goes on where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {}

/// The master's epoch is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {}

/// A client has the changes of a live search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Whose.
    pub session: SessionId,
    /// The number of its [`super::client_session::Watch`].
    pub watch: RequestId,
    /// Number of the newest that arrived.
    pub n: u64,
}

/// What live searches have to tell: the same for everybody in `to`, so that it is encoded once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// Who is told.
    pub to: Vec<Watcher>,
    /// A [`super::client_session::Changes`], encoded.
    pub changes: Opaque,
}

/// Whose live search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watcher {
    /// Whose.
    pub session: SessionId,
    /// Only to this binding: another one is told anew.
    pub generation: Generation,
    /// The number of its [`super::client_session::Watch`].
    pub watch: RequestId,
}
