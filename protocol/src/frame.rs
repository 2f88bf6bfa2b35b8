//! Fixed headers of the frames that are hot: numbers at fixed places, little-endian, and an opaque payload.
//!
//! A frame is `[kind u8][header][payload]`. On TCP a u32 little-endian length goes before it; on WebSocket
//! it is one binary message. Kinds below `0x80` go up (from a client, or to the one that was dialled), the
//! others come down.

use crate::{Channel, DecodeError, Epoch, MemberId, RequestId, Seq, ViewId};

/// Longest frame before check-in, in bytes.
pub const HELLO_BYTES_MAX: usize = 4 * 1024;
/// Longest frame from a client, in bytes.
pub const CLIENT_FRAME_BYTES_MAX: usize = 64 * 1024;
/// Longest encoded view of an instance, in bytes.
pub const VIEW_BYTES_MAX: usize = 1024 * 1024;
/// Longest piece of a snapshot, in bytes of the view.
pub const PIECE_BYTES_MAX: usize = 32 * 1024;
/// Longest frame to a client, in bytes: a patch can be as long as the view, and a delta adds a little.
pub const SERVER_FRAME_BYTES_MAX: usize = VIEW_BYTES_MAX + 4 * 1024;
/// Longest frame on a link between servers, in bytes after its length: what a game server reports of 10,000 instances
/// and their seats has room in one.
pub const LINK_FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of a [`LinkHeader`] with its length: room enough to write a WebSocket header over its end.
pub const LINK_HEADER_BYTES: usize = 10;
/// Bytes of a [`PatchHeader`], kind included.
pub const PATCH_HEADER_BYTES: usize = 19;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Declares a header: its fields in the order of the wire, after the kind byte.
macro_rules! headers { ($(
    $(#[$doc:meta])* $name:ident, $bytes:literal {
        $($(#[$fdoc:meta])* $field:ident: $wrap:ident $inner:ident @ $at:literal),* $(,)?
    }
)*) => { $(
    $(#[$doc])*
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct $name {
        /// The kind byte of the frame.
        pub kind: u8,
        $($(#[$fdoc])* pub $field: $wrap,)*
    }
    impl $name {
        /// Length in bytes, kind included.
        pub const BYTES: usize = $bytes;
        /// Splits a frame into its header and payload.
        ///
        /// # Errors
        /// [`DecodeError::ShortHeader`] when the frame is shorter than this header.
        pub fn split(frame: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
            let kind = frame.first().copied().unwrap_or(0);
            if frame.len() < $bytes {
                return Err(DecodeError::ShortHeader { kind, header: $bytes, len: frame.len() });
            }
            Ok((Self { kind, $($field: headers!(@get $wrap $inner, frame, $at),)* }, &frame[$bytes..]))
        }
        /// The header as bytes.
        pub fn bytes(&self) -> [u8; $bytes] {
            let mut out = [0; $bytes];
            out[0] = self.kind;
            $(
                let field = headers!(@put $wrap self.$field).to_le_bytes();
                out[$at..$at + field.len()].copy_from_slice(&field);
            )*
            out
        }
    }
)* };
    (@get u32 u32, $frame:ident, $at:literal) => { u32_at($frame, $at) };
    (@get $wrap:ident u32, $frame:ident, $at:literal) => { $wrap(u32_at($frame, $at)) };
    (@get $wrap:ident u16, $frame:ident, $at:literal) => { $wrap(u16_at($frame, $at)) };
    (@put u32 $value:expr) => { $value };
    (@put $wrap:ident $value:expr) => { $value.0 };
}

headers! {
    /// A client's request to the directory: kind, request id, the id up to which it has every answer.
    RequestHeader, 9 {
        /// The client's number of this request.
        id: RequestId u32 @ 1,
        /// Every request up to this one has been answered: its cached answer may go.
        answered: RequestId u32 @ 5,
    }
    /// The answer to a request.
    ReplyHeader, 5 {
        /// Of the request.
        id: RequestId u32 @ 1,
    }
    /// From a client to an instance.
    UpHeader, 13 {
        /// The session server's handle of the instance.
        channel: Channel u32 @ 1,
        /// Messages and calls: number on the reliable channel. Queries: a number of the client's own.
        number: Seq u32 @ 5,
        /// The client has every reliable message of the instance up to this one.
        ack: Seq u32 @ 9,
    }
    /// From an instance to one client.
    DownHeader, 17 {
        /// The session server's handle of the instance.
        channel: Channel u32 @ 1,
        /// Number on the reliable channel; for the answer to a query, the query's number.
        number: Seq u32 @ 5,
        /// The instance has every reliable message of this seat up to this one.
        ack: Seq u32 @ 9,
        /// Low 32 bits of the tick whose step sent this.
        tick: u32 u32 @ 13,
    }
    /// A patch: nothing in it is per client, so that the same bytes go to all.
    PatchHeader, 19 {
        /// The session server's handle of the instance.
        channel: Channel u32 @ 1,
        /// Which view changes.
        view: ViewId u16 @ 5,
        /// Low 32 bits of the tick.
        tick: u32 u32 @ 7,
        /// The version that the delta applies to.
        base: u32 u32 @ 11,
        /// The version that it makes.
        version: u32 u32 @ 15,
    }
    /// One piece of a snapshot; pieces come in order, without another snapshot of that view between them.
    PieceHeader, 23 {
        /// The session server's handle of the instance.
        channel: Channel u32 @ 1,
        /// Which view.
        view: ViewId u16 @ 5,
        /// Low 32 bits of the tick.
        tick: u32 u32 @ 7,
        /// Where this piece begins, in bytes.
        offset: u32 u32 @ 11,
        /// The version of the view.
        version: u32 u32 @ 15,
        /// Length of the whole view, in bytes.
        total: u32 u32 @ 19,
    }
}

/// Where an instance's frames have their channel, whatever their kind: the game server writes it, the session
/// server reads it, and neither needs the rest.
#[derive(Debug)]
pub struct InstanceFrame;

impl InstanceFrame {
    /// The channel of any frame to or from an instance.
    ///
    /// # Errors
    /// [`DecodeError::ShortHeader`] when there is none.
    pub fn channel(frame: &[u8]) -> Result<Channel, DecodeError> {
        if frame.len() < 5 {
            let kind = frame.first().copied().unwrap_or(0);
            return Err(DecodeError::ShortHeader { kind, header: 5, len: frame.len() });
        }
        Ok(Channel(u32_at(frame, 1)))
    }
}

/// Before every frame of a link between servers: `[len u32][kind u8][0 u8][target u32]`, where `len` counts what
/// follows it. A session server writes a client's transport header over its end, so that what came in goes out
/// as one slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkHeader {
    /// Which message; each pair of speakers has its own kinds.
    pub kind: u8,
    /// Whom it is for: a member, a channel, or 0.
    pub target: u32,
}

impl LinkHeader {
    /// The header of a frame with `payload` bytes of payload.
    ///
    /// # Panics
    /// When the payload is longer than [`LINK_FRAME_BYTES_MAX`], which the callers bound.
    pub fn bytes(self, payload: usize) -> [u8; LINK_HEADER_BYTES] {
        assert!(payload <= LINK_FRAME_BYTES_MAX - 6, "a link frame of {payload} bytes");
        #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
        let len = (payload as u32 + 6).to_le_bytes();
        let target = self.target.to_le_bytes();
        [len[0], len[1], len[2], len[3], self.kind, 0, target[0], target[1], target[2], target[3]]
    }
    /// Reads the header after its length; `frame` begins after the length.
    ///
    /// # Errors
    /// [`DecodeError::ShortHeader`] when the frame is shorter.
    pub fn split(frame: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let kind = frame.first().copied().unwrap_or(0);
        if frame.len() < 6 {
            return Err(DecodeError::ShortHeader { kind, header: 6, len: frame.len() });
        }
        Ok((Self { kind, target: u32_at(frame, 2) }, &frame[6..]))
    }
    /// The target as a member.
    pub const fn member(self) -> MemberId {
        MemberId(self.target)
    }
    /// The target as a channel.
    pub const fn channel(self) -> Channel {
        Channel(self.target)
    }
}

/// Begins the payload of every message between the master and another server: whose word it is, and its place
/// in the sender's stream to this receiver (0: not in the stream, may be lost with the link).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StampedHeader {
    /// The master's epoch; from another server to the master, the largest that it has seen.
    pub epoch: Epoch,
    /// Place in the stream, from 1; 0 for what is not in it.
    pub n: u64,
}

impl StampedHeader {
    /// Length in bytes.
    pub const BYTES: usize = 16;
    /// The header as bytes.
    pub fn bytes(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..4].copy_from_slice(&self.epoch.era.to_le_bytes());
        out[4..8].copy_from_slice(&self.epoch.epoch.to_le_bytes());
        out[8..].copy_from_slice(&self.n.to_le_bytes());
        out
    }
    /// Splits a payload into this and the message.
    ///
    /// # Errors
    /// [`DecodeError::ShortHeader`] when the payload is shorter.
    pub fn split(payload: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let Some((head, rest)) = payload.split_first_chunk::<{ Self::BYTES }>() else {
            return Err(DecodeError::ShortHeader {
                kind: 0,
                header: Self::BYTES,
                len: payload.len(),
            });
        };
        let n = u64::from(u32_at(head, 8)) | u64::from(u32_at(head, 12)) << 32;
        Ok((Self { epoch: Epoch { era: u32_at(head, 0), epoch: u32_at(head, 4) }, n }, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_survive_their_bytes(kind: u8, a: u32, b: u32, c: u32, d: u32, v: u16, rest: Vec<u8>) {
            let up = UpHeader { kind, channel: Channel(a), number: Seq(b), ack: Seq(c) };
            let frame = [&up.bytes()[..], &rest].concat();
            prop_assert_eq!(UpHeader::split(&frame), Ok((up, &rest[..])));
            prop_assert_eq!(InstanceFrame::channel(&frame), Ok(Channel(a)));
            let down = DownHeader { kind, channel: Channel(a), number: Seq(b), ack: Seq(c), tick: d };
            let frame = [&down.bytes()[..], &rest].concat();
            prop_assert_eq!(DownHeader::split(&frame), Ok((down, &rest[..])));
            let patch = PatchHeader { kind, channel: Channel(a), view: ViewId(v), tick: b, base: c, version: d };
            let frame = [&patch.bytes()[..], &rest].concat();
            prop_assert_eq!(PatchHeader::split(&frame), Ok((patch, &rest[..])));
            let stamped = StampedHeader { epoch: Epoch { era: a, epoch: b }, n: u64::from(c) << 32 | u64::from(d) };
            let payload = [&stamped.bytes()[..], &rest].concat();
            prop_assert_eq!(StampedHeader::split(&payload), Ok((stamped, &rest[..])));
            let link = LinkHeader { kind, target: a };
            let frame = [&link.bytes(rest.len())[..], &rest].concat();
            prop_assert_eq!(u32_at(&frame, 0) as usize, frame.len() - 4);
            prop_assert_eq!(LinkHeader::split(&frame[4..]), Ok((link, &rest[..])));
        }
        #[test]
        fn a_short_frame_is_an_error_that_names_its_kind(frame in proptest::collection::vec(any::<u8>(), 0..13)) {
            let error = UpHeader::split(&frame).expect_err("shorter than the header");
            prop_assert!(error.to_string().contains("header of 13 bytes"));
        }
    }
}
