//! A client and an instance, end to end: session servers route these frames and read no more of them than the
//! kind and the channel, and of what is numbered the number, so that an operator sees whether one was missing.
//!
//! The *reliable* channel is numbered in both directions by [`crate::Seq`] and kept until acknowledged; the
//! *latest* channel (patches, snapshots) holds nothing per client.

use ecow::EcoString;
use serde::{Deserialize, Serialize};

/// Kinds from a client to an instance: they have an [`crate::UpHeader`].
pub const UP: std::ops::RangeInclusive<u8> = 0x20..=0x2f;
/// A message of the game; reliable.
pub const MESSAGE: u8 = 0x20;
/// A message that is answered with a [`REPLY`]; reliable.
pub const CALL: u8 = 0x21;
/// A question that changes nothing, answered at once with a [`QUERY_REPLY`]; not numbered.
pub const QUERY: u8 = 0x22;
/// Acknowledges what came down, when there is nothing else to say.
pub const ACK: u8 = 0x23;
/// Asks for a whole view again: payload [`NeedSnapshot`].
pub const NEED_SNAPSHOT: u8 = 0x24;

/// What a frame that can be sampled is called in a trace; nothing for one that can't.
pub const fn traced_name(kind: u8) -> Option<&'static str> {
    match kind {
        MESSAGE => Some("message"),
        CALL => Some("call"),
        QUERY => Some("query"),
        _ => None,
    }
}

/// Kinds from an instance to one client: they have a [`crate::DownHeader`].
pub const DOWN: std::ops::RangeInclusive<u8> = 0xa0..=0xaf;
/// A message of the game; reliable.
pub const EVENT: u8 = 0xa0;
/// Answers a [`CALL`]: u32 little-endian number of the call, then the reply; reliable.
pub const REPLY: u8 = 0xa1;
/// Refuses a [`CALL`] or a [`MESSAGE`]: u32 little-endian number of it, then a [`crate::Refusal`]; reliable.
pub const REPLY_REFUSED: u8 = 0xa2;
/// Answers a [`QUERY`], whose number it carries; not numbered.
pub const QUERY_REPLY: u8 = 0xa3;
/// Refuses a [`QUERY`], whose number it carries: payload [`crate::Refusal`]; not numbered.
pub const QUERY_REFUSED: u8 = 0xa4;
/// Acknowledges what came up, when there is nothing else to say.
pub const DOWN_ACK: u8 = 0xa5;
/// The seat is gone, and why: payload [`crate::Refusal`]. The channel is not used again.
pub const SEAT_ENDED: u8 = 0xa6;
/// What was sent last did not reach the instance, because a queue on the way was full: everything from the first
/// message that is not acknowledged is to be sent again, after a pause. Payload: [`crate::Refusal`].
pub const SEND_AGAIN: u8 = 0xa7;

/// Kinds of the latest channel.
pub const LATEST: std::ops::RangeInclusive<u8> = 0xb0..=0xbf;
/// A patch of a view: a Fossil delta after a [`crate::PatchHeader`].
pub const PATCH: u8 = 0xb0;
/// A piece of a snapshot of a view, after a [`crate::PieceHeader`].
pub const SNAPSHOT_PIECE: u8 = 0xb1;

/// Why a client wants a whole view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeedSnapshot {
    /// Which view.
    pub view: u16,
    /// The version that the client has; 0 for none.
    pub version: u32,
    /// What did not fit: the patch's base, and the two checksums if it came so far. For the log.
    #[serde(default)]
    pub reason: EcoString,
}
