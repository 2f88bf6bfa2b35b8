//! The words of Greenroom: ids, counters, refusals and every message that crosses a wire.
//!
//! Listing `wire/` lists every arrow of the running system: one file per pair of speakers, one enum
//! per direction. A link that has no file there does not exist. `PROTOCOL.md` is the same thing
//! written for somebody who makes a client in another language.
//!
//! *Takes*: bytes from outside, of which nothing is believed.
//! *Gives*: typed messages, or a [`DecodeError`] that names what is wrong.
//! *Owns*: the layout of every frame, and the bounds on what is decoded.
//! *Never*: a socket, a task, a clock; it carries no tokio into the cores.

mod bounded;
mod follow;
mod frame;
mod ids;
mod refusal;
pub mod search;
mod stream;
mod trace;
pub mod wire;

pub use bounded::{DecodeError, Limits, check, decode, encode, encode_compact_into, encode_into};
pub use follow::{Follow, MasterLink, Streams, Verdict, Word};
pub use frame::{
    CLIENT_FRAME_BYTES_MAX, DownHeader, HELLO_BYTES_MAX, InstanceFrame, LINK_FRAME_BYTES_MAX,
    LINK_HEADER_BYTES, LinkHeader, PATCH_HEADER_BYTES, PIECE_BYTES_MAX, PatchHeader, PieceHeader,
    ReplyHeader, RequestHeader, SERVER_FRAME_BYTES_MAX, StampedHeader, UpHeader, VIEW_BYTES_MAX,
};
pub use ids::{
    Channel, Epoch, Generation, Incarnation, InstanceId, Key, KindName, MemberId, Moment,
    RequestId, Seat, Seq, ServerName, SessionId, SessionKey, Tick, UserId, ViewId,
};
pub use refusal::{Code, Refusal};
pub use stream::{Inbound, Outbound};
pub use trace::{TRACE_FEATURE, TraceContext};

/// The lowest version of the protocol that this build speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// The highest version of the protocol that this build speaks.
pub const PROTOCOL_MAX: u16 = 1;
