//! A session server and a game server: seats come and go, and the traffic of their clients passes.
//!
//! The session server dials. Frames that pass through carry their receiver in the link's header:
//! a [`crate::MemberId`] or a [`crate::Channel`].

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use super::{Opaque, direction};
use crate::{
    Channel, Generation, Incarnation, InstanceId, MemberId, Refusal, Seat, SessionId, UserId,
};

/// A client's frame for its instance; target: the member.
pub const UP: u8 = 0x10;
/// The session server dropped patches for a slow member and has room again: a fresh snapshot of every view, please;
/// target: the member; no payload.
pub const REFRESH: u8 = 0x11;
/// What comes next of this member, an [`Attach`] or an [`UP`], is sampled: a [`crate::TraceContext`] in 25 bytes;
/// target: the member. Who does not know the kind ignores it.
pub const TRACE: u8 = 0x12;
/// A frame for one client; target: the member.
pub const UNICAST: u8 = 0x90;
/// A frame for every client that has the channel; target: the channel.
pub const FANOUT: u8 = 0x91;

direction! {
    /// What a session server says to a game server.
    SessionToGame {
        /// A client takes its seat, or comes back to it.
        0x01 Attach(Attach),
        /// A client's connection is gone.
        0x02 Detach(Detach),
    }
}

direction! {
    /// What a game server says to a session server.
    GameToSession {
        /// The seat is taken.
        0x81 Attached(Attached),
        /// The seat is refused.
        0x82 AttachRefused(AttachRefused),
        /// The seat is gone.
        0x83 Ended(Ended),
    }
}

/// A client takes its seat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attach {
    /// What the session server calls this membership.
    pub member: MemberId,
    /// What the session server calls the instance.
    pub channel: Channel,
    /// Which instance.
    pub instance: InstanceId,
    /// In which of its lives.
    pub incarnation: Incarnation,
    /// The seat that the master gave.
    pub seat: Seat,
    /// Whose.
    pub user: UserId,
    /// The name to be shown.
    pub name: EcoString,
    /// Of which session.
    pub session: SessionId,
    /// Of which connection: a seat follows the highest.
    pub generation: Generation,
    /// For the game's `admit`.
    pub options: Opaque,
}

/// A client's connection is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detach {
    /// Which membership.
    pub member: MemberId,
}

/// The seat is taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attached {
    /// Which membership.
    pub member: MemberId,
    /// The instance has every reliable message of this seat up to this number.
    pub up_received: u32,
    /// Number of the next reliable message that comes: the oldest one that is not acknowledged, if there is one.
    pub down_next: u32,
    /// Ticks per second.
    pub tick_rate: u16,
}

/// The seat is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttachRefused {
    /// Which membership.
    pub member: MemberId,
    /// Why, as the game wrote it.
    pub refusal: Refusal,
}

/// The seat is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// Which membership.
    pub member: MemberId,
    /// Why.
    pub refusal: Refusal,
}
