//! The master and a game server: instances are made and closed, seats change.
//!
//! The game server dials. Every payload begins with a [`crate::StampedHeader`]; messages marked *stream* have a
//! number in it, are kept by their sender until acknowledged, and are sent again on a new link.

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use super::client_session::Meta;
use super::session_master::{Fenced, NewEpoch, Received, Resume, Welcome};
use super::{Opaque, direction};
use crate::search::FieldInfo;
use crate::{
    Incarnation, InstanceId, Key, KindName, Refusal, Seat, SessionId, TraceContext, UserId,
};

direction! {
    /// What a game server says to the master.
    GameToMaster {
        /// First on every link: what this server is and what it runs.
        0x01 Report(GameReport),
        /// Load; may be lost.
        0x02 Load(GameLoad),
        /// An instance runs (stream).
        0x03 Running(Running),
        /// An instance was not made (stream).
        0x04 CreateRefused(CreateRefused),
        /// A seat changes (stream).
        0x05 SeatChanged(SeatChanged),
        /// The game changed what it says of an instance (stream).
        0x06 MetaChanged(MetaChanged),
        /// An instance is closed (stream).
        0x07 Closed(Closed),
        /// Everything of the master's stream up to this number has arrived.
        0x08 Received(Received),
        /// A user's score on a rank board (stream).
        0x09 Scored(Scored),
        /// Answers a [`MasterToGame::NewEpoch`] instead of a report: this server goes on where it was.
        0x0A Resume(Resume),
        /// The master's epoch is over: the stamp has the one that is.
        0x0B Fenced(Fenced),
        /// An instance is stored and stopped here, to go on elsewhere (stream).
        0x0C HandedOver(HandedOver),
        /// Answers a [`MasterToGame::Measure`]; may be lost.
        0x0D Measured(Measured),
        /// What follows in the stream is of a step that is sampled.
        0x0F Caused(Caused),
    }
}

direction! {
    /// What the master says to a game server.
    MasterToGame {
        /// Make an instance (stream).
        0x81 Create(CreateInstance),
        /// A seat is free (stream).
        0x82 FreeSeat(FreeSeat),
        /// Close an instance (stream).
        0x83 Destroy(DestroyInstance),
        /// Everything of the game server's stream up to this number is committed.
        0x84 Received(Received),
        /// Answers the report, or the resume: the link is in use.
        0x85 Welcome(Welcome),
        /// First on a link of the active, and on every link of a standby that has become it: this master decides, in
        /// the epoch of the stamp.
        0x86 NewEpoch(NewEpoch),
        /// Answers a [`GameToMaster::Load`], once it is committed.
        0x87 Renewed(Renewed),
        /// An operator looks at an instance: how is it doing? May be lost.
        0x88 Measure(Measure),
        /// The order to make this instance, which follows, is for a request that is sampled.
        0x8F Traced(Traced),
    }
}

/// A kind of instance that a game server can run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindInfo {
    /// Its name.
    pub name: KindName,
    /// Seats of an instance.
    pub seats_max: u16,
    /// Ticks per second; 0 for one that steps when it is spoken to.
    pub tick_rate: u16,
    /// The game's version of the kind.
    pub version: u32,
    /// What instances say of themselves.
    #[serde(default)]
    pub fields: Vec<FieldInfo>,
    /// Labels that a game server must have to be given one.
    #[serde(default)]
    pub needs: Vec<EcoString>,
    /// How much of a game server's capacity an instance takes, from 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// Its instances are stored while they run, and go on elsewhere when their game server is lost.
    #[serde(default, skip_serializing_if = "is_false")]
    pub durable: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

const fn one() -> u32 {
    1
}
const fn yes() -> bool {
    true
}

/// What a game server is, and what it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GameReport {
    /// Where session servers dial it: `host:port`.
    pub address: EcoString,
    /// Name and version of the build.
    pub build: EcoString,
    /// The kinds that it can run.
    pub kinds: Vec<KindInfo>,
    /// How much it takes: the sum of the weights of its instances, from 1.
    pub capacity: u32,
    /// Free words about it, for placement.
    #[serde(default)]
    pub labels: Vec<EcoString>,
    /// What it runs now.
    pub instances: Vec<HeldInstance>,
}

/// An instance that a game server runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldInstance {
    /// Which.
    pub instance: InstanceId,
    /// In which life.
    pub incarnation: Incarnation,
    /// Its kind.
    pub kind: KindName,
    /// Its unique key.
    #[serde(default)]
    pub key: Option<Key>,
    /// Who made it.
    #[serde(default)]
    pub owner: Option<UserId>,
    /// When it was granted, by the master's clock.
    #[serde(default)]
    pub created_ms: u64,
    /// The seats that are not free.
    pub seats: Vec<HeldSeat>,
    /// What the game says of it.
    pub meta: Meta,
    /// Takes new seats.
    #[serde(default = "yes")]
    pub open: bool,
    /// It is found by nobody.
    #[serde(default)]
    pub private: bool,
}

/// A seat that is not free.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldSeat {
    /// Which.
    pub seat: Seat,
    /// Whose.
    pub user: UserId,
    /// Of which session.
    pub session: SessionId,
    /// Its holder's connection is gone.
    pub away: bool,
}

/// Load of a game server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GameLoad {
    /// Instances that it runs.
    pub instances: u32,
    /// Seats that are taken.
    pub seats: u32,
    /// Share of its thread's time that it was busy, in thousandths.
    pub busy_permille: u16,
    /// It stops: no new instances.
    pub draining: bool,
    /// When this was sent, in microseconds of the game server's own clock: it comes back in [`Renewed`].
    #[serde(default)]
    pub sent: u64,
    /// What it has counted since it began.
    #[serde(default, skip_serializing_if = "GameCounts::is_none")]
    pub counts: GameCounts,
}

/// What a game server has counted since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GameCounts {
    /// Steps of instances at fixed rates.
    pub ticks: u64,
    /// Of these, steps that began later than the next place on the grid.
    pub ticks_late: u64,
    /// Steps that were given up because their instance was too far behind.
    pub ticks_given_up: u64,
    /// The latest that a step began since the last time that this was said, in microseconds.
    pub tick_late_us: u64,
    /// Frames of seats.
    pub frames: u64,
    /// Instances that failed: their games have bugs.
    pub failed: u64,
    /// Masters that said that they decide in an epoch in which another one had said so. 0 while nothing is wrong.
    pub rivals: u64,
}

impl GameCounts {
    /// Whether nothing was counted.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// A load is committed by a master that still decides: the game server's lease counts from when it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// As in [`GameLoad`].
    pub sent: u64,
}

/// An operator looks at an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// Which.
    pub instance: InstanceId,
}

/// How an instance is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Which.
    pub instance: InstanceId,
    /// In which life.
    pub incarnation: Incarnation,
    /// What was measured of it since somebody began to look.
    pub measures: Measures,
}

/// What an instance costs, as its game server measures it while somebody looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measures {
    /// Steps that were measured: the newest.
    pub steps: u32,
    /// Half of them took at most this, with what they sent, in microseconds.
    pub step_p50_us: u32,
    /// 99 of 100.
    pub step_p99_us: u32,
    /// The last one.
    pub step_last_us: u32,
    /// Bytes of patches a second, to all session servers together; nothing before they were counted for a second.
    pub patch_bytes_per_s: Option<u64>,
    /// Bytes of what every seat sees.
    pub view_bytes: u64,
    /// Bytes of all of it, as it is stored; nothing for a kind that is not storable.
    pub state_bytes: Option<u64>,
}

/// Whose request an instance is made for. Outside the stream, before the order: what is kept and repeated does not
/// depend on what is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    /// Which.
    pub instance: InstanceId,
    /// The trace.
    pub trace: TraceContext,
}

/// What the message of a game server's stream with this number is a part of. Outside the stream, before that message:
/// what is kept and repeated does not depend on what is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caused {
    /// Its number in the stream.
    pub n: u64,
    /// The trace.
    pub trace: TraceContext,
}

/// Make an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateInstance {
    /// Which.
    pub instance: InstanceId,
    /// In which life.
    pub incarnation: Incarnation,
    /// Of which kind.
    pub kind: KindName,
    /// The kind's parameters; empty for its default.
    pub params: Opaque,
    /// Where its random numbers begin.
    #[serde(with = "serde_bytes")]
    pub seed: [u8; 32],
    /// Who asked for it.
    pub owner: Option<UserId>,
    /// Its unique key: kept, and said again in reports.
    #[serde(default)]
    pub key: Option<Key>,
    /// When it was granted, by the master's clock: kept, and said again in reports.
    #[serde(default)]
    pub created_ms: u64,
    /// It begins private.
    #[serde(default)]
    pub private: bool,
    /// It is not made but taken up from what was stored of it last, in another life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<Restore>,
}

/// An instance is taken up from what was stored of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Restore {
    /// Who holds which seat: whoever else has one in what was stored, has it no more.
    pub seats: Vec<RestoredSeat>,
}

/// A seat that is kept while its instance is taken up elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredSeat {
    /// Which.
    pub seat: Seat,
    /// Whose.
    pub session: SessionId,
}

/// A seat is free: its holder left, was kicked, or its session is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FreeSeat {
    /// Where.
    pub instance: InstanceId,
    /// In which life.
    pub incarnation: Incarnation,
    /// Which.
    pub seat: Seat,
    /// Whose: another session in that seat keeps it.
    pub session: SessionId,
    /// Why: the client is told.
    pub refusal: Refusal,
}

/// Close an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DestroyInstance {
    /// Which.
    pub instance: InstanceId,
    /// In which life.
    pub incarnation: Incarnation,
    /// Why: its clients are told.
    pub refusal: Refusal,
}

/// An instance runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Running {
    /// Which.
    pub instance: InstanceId,
    /// In which life.
    pub incarnation: Incarnation,
    /// What the game says of it.
    pub meta: Meta,
    /// Takes new seats.
    #[serde(default = "yes")]
    pub open: bool,
    /// It is found by nobody.
    #[serde(default)]
    pub private: bool,
}

/// An instance was not made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateRefused {
    /// Which.
    pub instance: InstanceId,
    /// In which life.
    pub incarnation: Incarnation,
    /// Why, as the game wrote it.
    pub refusal: Refusal,
}

/// What happened to a seat. A seat goes *reserved → taken → away → free*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeatState {
    /// Its holder is there.
    Taken,
    /// Its holder's connection is gone; the seat is held for a while.
    Away,
    /// Anybody may have it.
    Free,
}

/// A seat changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeatChanged {
    /// Where.
    pub instance: InstanceId,
    /// In which life.
    pub incarnation: Incarnation,
    /// Which.
    pub seat: Seat,
    /// Whose.
    pub session: SessionId,
    /// To what.
    pub state: SeatState,
}

/// The game changed what it says of an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetaChanged {
    /// Which.
    pub instance: InstanceId,
    /// In which life.
    pub incarnation: Incarnation,
    /// All of it.
    pub meta: Meta,
    /// Takes new seats.
    pub open: bool,
    /// It is found by nobody.
    #[serde(default)]
    pub private: bool,
}

/// An instance is closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Closed {
    /// Which.
    pub instance: InstanceId,
    /// In which life.
    pub incarnation: Incarnation,
    /// Why.
    pub refusal: Refusal,
}

/// An instance is stored as it is now and stopped, since its game server stops: its seats are kept for where it goes
/// on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HandedOver {
    /// Which.
    pub instance: InstanceId,
    /// In which life.
    pub incarnation: Incarnation,
}

/// A user's score on a rank board, by the word of a game.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Which instance says so.
    pub instance: InstanceId,
    /// In which life.
    pub incarnation: Incarnation,
    /// The board's name, 1 to 64 bytes.
    pub board: EcoString,
    /// Whose.
    pub user: UserId,
    /// The name to be shown.
    pub name: EcoString,
    /// The score; without one the user leaves the board.
    pub score: Option<i64>,
}
