//! A client and its session server: the beginning of the conversation, heartbeats, requests to the directory.

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use super::{Opaque, direction};
use crate::search::{Explain, Filter, Order};
use crate::{
    Channel, Incarnation, InstanceId, Key, KindName, Refusal, RequestId, Seat, SessionId,
    SessionKey, UserId,
};

/// Kind byte of a heartbeat, in both directions: 8 bytes that come back as [`PONG`].
pub const PING: u8 = 0x03;
/// Kind byte of the answer to a [`PING`], with its 8 bytes.
pub const PONG: u8 = 0x04;
/// Kind byte of a check-in.
pub const CHECK_IN: u8 = 0x02;
/// Kind byte of the announcement that the next frame on this connection is sampled: a [`crate::TraceContext`] in 25
/// bytes. Only where both hellos name [`crate::TRACE_FEATURE`].
pub const TRACE: u8 = 0x06;
/// Kind byte of the answer to a check-in.
pub const CHECKED_IN: u8 = 0x82;
/// Kind byte of the end of a conversation.
pub const CLOSING: u8 = 0x85;
/// Kind byte of a server's ping, to be answered with [`PONG`].
pub const SERVER_PING: u8 = 0x83;
/// Kind byte of the answer to a client's ping.
pub const SERVER_PONG: u8 = 0x84;
/// Kinds of requests to the directory: they have a [`crate::RequestHeader`].
pub const REQUESTS: std::ops::RangeInclusive<u8> = 0x10..=0x1f;
/// Kinds of answers to them: they have a [`crate::ReplyHeader`].
pub const REPLIES: std::ops::RangeInclusive<u8> = 0x90..=0x9f;

/// What a request is called in a trace; nothing for a kind of a newer version.
pub const fn traced_name(kind: u8) -> Option<&'static str> {
    match kind {
        CHECK_IN => Some("check_in"),
        0x10 => Some("create"),
        0x11 => Some("join"),
        0x12 => Some("join_or_create"),
        0x13 => Some("leave"),
        0x14 => Some("destroy"),
        0x15 => Some("search"),
        0x16 => Some("watch"),
        0x17 => Some("unwatch"),
        0x18 => Some("rank"),
        _ => None,
    }
}

direction! {
    /// What a client says to its session server; requests are [`Request`]s.
    ClientToSession {
        /// Opens the conversation.
        0x01 Hello(ClientHello),
        /// Says who is there.
        0x02 CheckIn(CheckIn),
        /// The changes of a live search up to here have arrived: more may come.
        0x05 Seen(Seen),
    }
}

direction! {
    /// What a session server says to a client; answers are [`Reply`]s.
    SessionToClient {
        /// Answers the hello.
        0x81 Hello(ServerHello),
        /// Answers the check-in.
        0x82 CheckedIn(CheckedIn),
        /// The conversation ends, and why. The connection closes after it.
        0x85 Closing(Refusal),
        /// The session server is stopping: check in on one of these.
        0x86 GoAway(GoAway),
        /// The list of session servers has changed.
        0x87 SessionServers(SessionServers),
        /// The instance of one of the client's seats goes on in another life, on another channel.
        0x88 Rejoined(Joined),
    }
}

direction! {
    /// A client's requests to the directory, each in a frame with a [`crate::RequestHeader`].
    Request {
        /// Makes an instance, without a seat in it.
        0x10 Create(Create),
        /// Takes a seat in an instance.
        0x11 Join(Join),
        /// Takes a seat in an instance of the kind, making one if there is none with a free seat.
        0x12 JoinOrCreate(JoinOrCreate),
        /// Gives a seat up.
        0x13 Leave(Leave),
        /// Closes an instance that the caller made.
        0x14 Destroy(Destroy),
        /// Looks for instances of a kind.
        0x15 Search(Search),
        /// Looks for instances of a kind, and goes on telling what changes.
        0x16 Watch(Watch),
        /// Ends a live search.
        0x17 Unwatch(Unwatch),
        /// Reads a rank board.
        0x18 Rank(Rank),
    }
}

direction! {
    /// Answers to requests, each in a frame with a [`crate::ReplyHeader`].
    Reply {
        /// To [`Request::Create`].
        0x90 Created(Created),
        /// To [`Request::Join`] and [`Request::JoinOrCreate`].
        0x91 Joined(Joined),
        /// To [`Request::Leave`].
        0x93 Left(Left),
        /// To [`Request::Destroy`].
        0x94 Destroyed(Destroyed),
        /// To [`Request::Search`].
        0x95 Found(Found),
        /// To [`Request::Watch`]; what is found follows as [`Reply::Changes`] with the same number.
        0x96 Watching(Watching),
        /// To [`Request::Unwatch`].
        0x97 Unwatched(Unwatched),
        /// To [`Request::Rank`].
        0x98 Ranking(Ranking),
        /// What a live search has to tell, with the number of its [`Request::Watch`]; any number of times.
        0x99 Changes(Changes),
        /// To any of them.
        0x9f Refused(Refusal),
    }
}

/// Opens a conversation, before anything else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientHello {
    /// Lowest version of the protocol that the client speaks.
    pub protocol_min: u16,
    /// Highest version of the protocol that the client speaks.
    pub protocol_max: u16,
    /// Optional abilities, by name; unknown ones are ignored.
    #[serde(default)]
    pub features: Vec<EcoString>,
    /// Name and version of the client, for logs.
    #[serde(default)]
    pub agent: EcoString,
}

/// Answers a [`ClientHello`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerHello {
    /// The version that is spoken from here on.
    pub protocol: u16,
    /// The abilities that both sides have.
    #[serde(default)]
    pub features: Vec<EcoString>,
    /// Name and version of the server.
    #[serde(default)]
    pub agent: EcoString,
    /// How often each side sends a ping when it has nothing else to say, in milliseconds.
    pub heartbeat_ms: u32,
}

/// Who a client says it is.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Credentials {
    /// How they are checked: `guest`, `jwt`, `http`, or a name of the studio's own.
    pub scheme: EcoString,
    /// The secret. For `guest` a random text that the client keeps: it stands for the user.
    #[serde(default)]
    pub token: String,
    /// The name to be shown. Authenticators that know better override it.
    #[serde(default)]
    pub name: EcoString,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "Credentials {{ scheme: {:?}, token: ***, name: {:?} }}",
            self.scheme, self.name
        )
    }
}

/// Begins a session, or goes on with it on another connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckIn {
    /// Made by the client, once for each session.
    pub session_key: SessionKey,
    /// Who is there.
    pub credentials: Credentials,
}

/// A session server and the ways to reach it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionServer {
    /// Its name.
    pub name: EcoString,
    /// Its addresses as URLs: `tcp://`, `tls://`, `ws://`, `wss://`.
    pub urls: Vec<EcoString>,
}

/// The session begins, or goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckedIn {
    /// The user, as the authenticator decided.
    pub user: UserId,
    /// The name to be shown.
    pub name: EcoString,
    /// The session.
    pub session: SessionId,
    /// All session servers that take clients now: the client keeps them for its next start.
    pub session_servers: Vec<SessionServer>,
    /// Wall clock of the server, in milliseconds since 1970.
    pub server_time_ms: u64,
}

/// Check in elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoAway {
    /// For people.
    pub message: EcoString,
    /// Where to go.
    pub session_servers: Vec<SessionServer>,
}

/// The list of session servers that take clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionServers {
    /// All of them.
    pub session_servers: Vec<SessionServer>,
}

/// Makes an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Create {
    /// Of which kind.
    pub kind: KindName,
    /// At most one instance of the kind holds a key: while one does, it is the answer.
    #[serde(default)]
    pub key: Option<Key>,
    /// The kind's parameters, encoded; empty for the kind's default.
    #[serde(default)]
    pub params: Opaque,
    /// It is found by nobody: who wants in has its id or its key. The game may change that.
    #[serde(default)]
    pub private: bool,
    /// Seats are kept for these users, for as long as reservations last.
    #[serde(default)]
    pub expected: Vec<UserId>,
}

/// Takes a seat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Join {
    /// Where.
    pub instance: InstanceId,
    /// For the game's `admit`, encoded as the kind wants it; empty for none.
    #[serde(default)]
    pub options: Opaque,
}

/// Takes a seat in an instance that has a free one, else makes an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinOrCreate {
    /// Of which kind.
    pub kind: KindName,
    /// Only in the instance with this key, which is made if it is not there.
    #[serde(default)]
    pub key: Option<Key>,
    /// Only in one that this lets through. Callers with the same filter meet in the instance that one of them has
    /// made, even before the game has said what it is. Beside a `key` it decides nothing.
    #[serde(default)]
    pub filter: Filter,
    /// The kind's parameters, encoded, if one is made.
    #[serde(default)]
    pub params: Opaque,
    /// One that is made is found by nobody.
    #[serde(default)]
    pub private: bool,
    /// Seats are kept for these users, beside the caller's.
    #[serde(default)]
    pub expected: Vec<UserId>,
    /// For the game's `admit`, encoded; empty for none.
    #[serde(default)]
    pub options: Opaque,
}

/// Gives a seat up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leave {
    /// Where.
    pub instance: InstanceId,
}

/// Closes an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Destroy {
    /// Which.
    pub instance: InstanceId,
}

/// Looks for instances of a kind. An answer shows every write that was acknowledged before the question.
///
/// What is private, locked or not running is not found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// Of which kind.
    pub kind: KindName,
    /// Which.
    #[serde(default)]
    pub filter: Filter,
    /// In which order; by id without one.
    #[serde(default)]
    pub order: Option<Order>,
    /// How many at most, 1 to [`crate::search::LIMIT_MAX`].
    pub limit: u16,
    /// From [`Found::cursor`] of the same search: what follows there.
    #[serde(default)]
    pub cursor: Option<Opaque>,
    /// Say how it was answered.
    #[serde(default)]
    pub explain: bool,
}

/// Looks for instances of a kind, and goes on: first everything that the filter lets through, then what changes.
/// It ends with the session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// Of which kind.
    pub kind: KindName,
    /// Which.
    #[serde(default)]
    pub filter: Filter,
}

/// Ends a live search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unwatch {
    /// The number of its [`Watch`].
    pub watch: RequestId,
}

/// The changes of a live search have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The number of its [`Watch`].
    pub watch: RequestId,
    /// [`Changes::n`] of the newest that arrived.
    pub n: u64,
}

/// Reads a rank board: the best score has rank 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rank {
    /// The board's name.
    pub board: EcoString,
    /// Which part of it.
    pub part: RankPart,
    /// How many at most, 1 to [`crate::search::LIMIT_MAX`].
    pub limit: u16,
}

/// A part of a rank board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RankPart {
    /// From this rank on; 1 is the best.
    From(u64),
    /// This user in the middle; the caller without one.
    Around(Option<UserId>),
}

/// An instance is made and runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Created {
    /// Which.
    pub instance: InstanceId,
}

/// A seat is taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    /// Where.
    pub instance: InstanceId,
    /// Its kind.
    pub kind: KindName,
    /// Its life: numbers of reliable messages begin again with each.
    pub incarnation: Incarnation,
    /// What frames to and from it carry on this connection.
    pub channel: Channel,
    /// The seat.
    pub seat: Seat,
    /// The instance has every reliable message of this seat up to this number.
    pub up_received: u32,
    /// Number of the next reliable message that comes: the oldest one that is not acknowledged, if there is one.
    pub down_next: u32,
    /// Ticks per second; 0 for an instance that steps when it is spoken to.
    pub tick_rate: u16,
}

/// A seat is free.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Left {
    /// Where.
    pub instance: InstanceId,
}

/// An instance is closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Destroyed {
    /// Which.
    pub instance: InstanceId,
}

/// A value of an instance's metadata.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MetaValue {
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A text.
    Text(EcoString),
}

/// An instance's metadata: what the game says of it to those who look for one.
pub type Meta = std::collections::BTreeMap<EcoString, MetaValue>;

/// One instance that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    /// Which.
    pub instance: InstanceId,
    /// Seats that are taken or reserved.
    pub seats_taken: u16,
    /// Seats in all.
    pub seats_max: u16,
    /// When it was granted, in milliseconds since 1970 by the master's clock.
    pub created_ms: u64,
    /// What the game says of it.
    #[serde(default)]
    pub meta: Meta,
}

/// Instances of a kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// In the order that was asked for.
    pub instances: Vec<Listed>,
    /// More may follow: ask again with this. It stays right while instances come and go.
    #[serde(default)]
    pub cursor: Option<Opaque>,
    /// How it was answered, if that was asked.
    #[serde(default)]
    pub explain: Option<Explain>,
}

/// The live search is set up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watching {}

/// The live search is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unwatched {}

/// What a live search has to tell. Each instance is in it once, as it is now: changes between two of these messages
/// are merged, so that a slow reader gets fewer messages and not more of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    /// Grows from message to message, and may begin lower with [`Self::anew`]; to be acknowledged by [`Seen`].
    pub n: u64,
    /// Everything that was told before is void: this begins the whole set anew. The first message, the first on a new
    /// connection, and any other to who is too far behind.
    #[serde(default)]
    pub anew: bool,
    /// More of the same set follows, once this is acknowledged: it is whole with the first message that does not say
    /// so.
    #[serde(default)]
    pub more: bool,
    /// New in the set, or changed.
    #[serde(default)]
    pub instances: Vec<Listed>,
    /// No longer in the set; it may have come and gone since the last message.
    #[serde(default)]
    pub gone: Vec<InstanceId>,
    /// The live search is over, and why. Nothing follows. It does not wait for an acknowledgement.
    #[serde(default)]
    pub ended: Option<Refusal>,
}

/// One place on a rank board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranked {
    /// From 1.
    pub rank: u64,
    /// Who.
    pub user: UserId,
    /// The name to be shown.
    pub name: EcoString,
    /// The score.
    pub score: i64,
}

/// A part of a rank board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranking {
    /// How many are on the board.
    pub members: u64,
    /// By rank.
    pub ranks: Vec<Ranked>,
}
