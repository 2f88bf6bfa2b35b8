//! How frames stand in a client's byte stream: after a length on TCP, as binary messages on WebSocket (RFC 6455).
//!
//! Decoding works in place, on whatever chunk the bytes came in; writing a header is a few bytes before a payload
//! that is there already. No buffer belongs to a connection that waits.

use std::ops::Range;

/// Bytes that [`Framing::put_header`] may need before a payload.
pub const HEADROOM: usize = 10;

/// How frames stand in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// u32 little-endian length, then the frame.
    LengthPrefixed,
    /// One binary message a frame, as a server reads and writes it: what comes is masked, what goes is not.
    WebSocket,
}

/// What is no frame; the connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// Longer than allowed; checked before anything is allocated.
    #[error("a frame of {len} bytes, where at most {max} are allowed")]
    TooLong {
        /// As announced.
        len: u64,
        /// The bound.
        max: usize,
    },
    /// An empty frame has no kind.
    #[error("an empty frame")]
    Empty,
    /// A text message where this protocol is binary.
    #[error("a text message: frames of this protocol are binary messages")]
    Text,
    /// RFC 6455 says otherwise.
    #[error("not as RFC 6455 has it: {0}")]
    WebSocket(&'static str),
}

/// What stood in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A whole frame.
    Frame(Range<usize>),
    /// A frame that came in fragments.
    Assembled(Vec<u8>),
    /// A WebSocket ping, to be answered with [`pong`].
    Ping(Range<usize>),
    /// The peer closes the WebSocket.
    Close,
    /// Nothing that concerns anybody: a pong, or a fragment of a message that goes on.
    Nothing,
}

/// A message that comes in fragments, until it is whole.
#[derive(Debug, Default)]
pub struct Fragments(Option<Vec<u8>>);

impl Fragments {
    /// Whether a message has begun and is not whole.
    pub const fn is_open(&self) -> bool {
        self.0.is_some()
    }
}

impl Framing {
    /// The next item of `bytes` from `*at` on, if it is whole; moves `*at` behind it. Unmasks in place.
    ///
    /// # Errors
    /// When the stream can't go on.
    pub fn next(
        self,
        bytes: &mut [u8],
        at: &mut usize,
        frame_max: usize,
        fragments: &mut Fragments,
    ) -> Result<Option<Item>, FramingError> {
        match self {
            Self::LengthPrefixed => {
                let Some(len) = bytes[*at..].first_chunk::<4>() else { return Ok(None) };
                let len = u32::from_le_bytes(*len) as usize;
                if len > frame_max {
                    return Err(FramingError::TooLong { len: len as u64, max: frame_max });
                }
                if len == 0 {
                    return Err(FramingError::Empty);
                }
                if bytes.len() - *at - 4 < len {
                    return Ok(None);
                }
                let frame = *at + 4..*at + 4 + len;
                *at = frame.end;
                Ok(Some(Item::Frame(frame)))
            }
            Self::WebSocket => websocket(bytes, at, frame_max, fragments),
        }
    }

    /// Writes the header of a frame of `len` bytes so that it ends where `room` ends; returns its length.
    /// `room` has at least [`HEADROOM`] bytes.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "each arm's range fits; frames are bounded far below 4 GiB"
    )]
    pub fn put_header(self, len: usize, room: &mut [u8]) -> usize {
        let end = room.len();
        match (self, len) {
            (Self::LengthPrefixed, _) => {
                room[end - 4..].copy_from_slice(&(len as u32).to_le_bytes());
                4
            }
            (Self::WebSocket, ..126) => {
                room[end - 2..].copy_from_slice(&[BINARY_WHOLE, len as u8]);
                2
            }
            (Self::WebSocket, 126..=0xffff) => {
                room[end - 4..end - 2].copy_from_slice(&[BINARY_WHOLE, 126]);
                room[end - 2..].copy_from_slice(&(len as u16).to_be_bytes());
                4
            }
            (Self::WebSocket, _) => {
                room[end - 10..end - 8].copy_from_slice(&[BINARY_WHOLE, 127]);
                room[end - 8..].copy_from_slice(&(len as u64).to_be_bytes());
                10
            }
        }
    }
}

const BINARY_WHOLE: u8 = 0x82;

/// A WebSocket pong with the payload of a ping.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a control frame's payload is 125 bytes at most, checked when read"
)]
pub fn pong(ping: &[u8]) -> Vec<u8> {
    [&[0x8a, ping.len() as u8], ping].concat()
}

/// A WebSocket close frame: status code and reason.
#[expect(clippy::cast_possible_truncation, reason = "cut to 123 bytes above")]
pub fn close(status: u16, reason: &str) -> Vec<u8> {
    let mut cut = reason.len().min(123);
    while !reason.is_char_boundary(cut) {
        cut -= 1;
    }
    [&[0x88, cut as u8 + 2], &status.to_be_bytes()[..], &reason.as_bytes()[..cut]].concat()
}

fn websocket(
    bytes: &mut [u8],
    at: &mut usize,
    frame_max: usize,
    fragments: &mut Fragments,
) -> Result<Option<Item>, FramingError> {
    let rest = &mut bytes[*at..];
    let &mut [first, second, ..] = rest else { return Ok(None) };
    let (last, reserved, opcode) = (first & 0x80 != 0, first & 0x70, first & 0x0f);
    if reserved != 0 {
        return Err(FramingError::WebSocket(
            "a reserved bit is set, and no extension was agreed on",
        ));
    }
    if second & 0x80 == 0 {
        return Err(FramingError::WebSocket("a client's frame is not masked"));
    }
    let (len, header) = match second & 0x7f {
        126 => match rest.get(2..4) {
            Some(&[a, b]) => (u64::from(u16::from_be_bytes([a, b])), 4),
            _ => return Ok(None),
        },
        127 => match rest.get(2..10) {
            Some(field) => (field.iter().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte)), 10),
            None => return Ok(None),
        },
        short => (u64::from(short), 2),
    };
    let assembled = fragments.0.as_ref().map_or(0, |parts| parts.len()) as u64;
    if opcode < 8 && len.saturating_add(assembled) > frame_max as u64 {
        return Err(FramingError::TooLong { len: len.saturating_add(assembled), max: frame_max });
    }
    if opcode >= 8 && (len > 125 || !last) {
        return Err(FramingError::WebSocket(
            "a control frame is fragmented or longer than 125 bytes",
        ));
    }
    let body = header + 4;
    #[expect(clippy::cast_possible_truncation, reason = "bounded by frame_max or 125 above")]
    let len = len as usize;
    if rest.len() < body + len {
        return Ok(None);
    }
    let mask = [rest[header], rest[header + 1], rest[header + 2], rest[header + 3]];
    unmask(&mut rest[body..body + len], mask);
    let range = *at + body..*at + body + len;
    *at = range.end;
    let item = match (opcode, last, &mut fragments.0) {
        (0x2, true, None) if len == 0 => return Err(FramingError::Empty),
        (0x2, true, None) => Item::Frame(range),
        (0x2, false, none @ None) => {
            *none = Some(bytes[range].to_vec());
            Item::Nothing
        }
        (0x0, last, Some(parts)) => {
            parts.extend_from_slice(&bytes[range]);
            match last {
                true if parts.is_empty() => return Err(FramingError::Empty),
                true => Item::Assembled(std::mem::take(parts)),
                false => Item::Nothing,
            }
        }
        (0x0, _, None) => return Err(FramingError::WebSocket("a continuation of nothing")),
        (0x1 | 0x2, _, Some(_)) => {
            return Err(FramingError::WebSocket("a new message inside a fragmented one"));
        }
        (0x1, _, None) => return Err(FramingError::Text),
        (0x8, _, _) => Item::Close,
        (0x9, _, _) => Item::Ping(range),
        (0xa, _, _) => Item::Nothing,
        _ => return Err(FramingError::WebSocket("an unknown opcode")),
    };
    if matches!(item, Item::Assembled(_)) {
        fragments.0 = None;
    }
    Ok(Some(item))
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from(u32::from_ne_bytes(mask)) * 0x1_0000_0001;
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[expect(clippy::cast_possible_truncation, reason = "each arm's range fits")]
    fn masked(opcode: u8, last: bool, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut out = vec![opcode | u8::from(last) << 7];
        match payload.len() {
            len @ ..126 => out.push(0x80 | len as u8),
            len @ 126..=0xffff => {
                out.push(0x80 | 126);
                out.extend((len as u16).to_be_bytes());
            }
            len => {
                out.push(0x80 | 127);
                out.extend((len as u64).to_be_bytes());
            }
        }
        out.extend(mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        out
    }

    /// Reads a stream that arrives in pieces of any size, as a connection does.
    fn read(
        framing: Framing,
        stream: &[u8],
        piece: usize,
        max: usize,
    ) -> Result<Vec<Vec<u8>>, FramingError> {
        let (mut frames, mut rest, mut fragments) = (Vec::new(), Vec::new(), Fragments::default());
        for piece in stream.chunks(piece.max(1)) {
            rest.extend_from_slice(piece);
            let mut at = 0;
            while let Some(item) = framing.next(&mut rest, &mut at, max, &mut fragments)? {
                match item {
                    Item::Frame(range) => frames.push(rest[range].to_vec()),
                    Item::Assembled(frame) => frames.push(frame),
                    Item::Ping(_) | Item::Close | Item::Nothing => {}
                }
            }
            rest.drain(..at);
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting_of_the_stream(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..8),
            mask: [u8; 4], piece in 1usize..400, fragment in 1usize..200,
        ) {
            let mut prefixed = Vec::new();
            let mut websocket = Vec::new();
            for frame in &frames {
                let mut room = [0; HEADROOM];
                let header = Framing::LengthPrefixed.put_header(frame.len(), &mut room);
                prefixed.extend_from_slice(&room[HEADROOM - header..]);
                prefixed.extend_from_slice(frame);
                let parts: Vec<_> = frame.chunks(fragment).collect();
                for (n, part) in parts.iter().enumerate() {
                    websocket.extend(masked(if n == 0 { 2 } else { 0 }, n + 1 == parts.len(), part, mask));
                    websocket.extend(masked(9, true, b"between", mask));
                }
            }
            prop_assert_eq!(read(Framing::LengthPrefixed, &prefixed, piece, 300), Ok(frames.clone()));
            prop_assert_eq!(read(Framing::WebSocket, &websocket, piece, 300), Ok(frames));
        }
        #[test]
        fn random_bytes_never_panic(stream in proptest::collection::vec(any::<u8>(), 0..600), piece in 1usize..100) {
            for framing in [Framing::LengthPrefixed, Framing::WebSocket] {
                // An error is as good as frames; a frame over the bound is neither.
                if let Ok(frames) = read(framing, &stream, piece, 64) {
                    prop_assert!(frames.iter().all(|frame| frame.len() <= 64));
                }
            }
        }
    }

    #[test]
    fn a_frame_longer_than_allowed_is_refused_by_its_announcement() {
        let mut fragments = Fragments::default();
        let mut lie = [0xff, 0xff, 0xff, 0x7f];
        let refused = Framing::LengthPrefixed.next(&mut lie, &mut 0, 4096, &mut fragments);
        assert_eq!(refused, Err(FramingError::TooLong { len: 0x7fff_ffff, max: 4096 }));
        let mut lie = [0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let refused = Framing::WebSocket.next(&mut lie, &mut 0, 4096, &mut fragments);
        assert_eq!(refused, Err(FramingError::TooLong { len: u64::MAX, max: 4096 }));
    }

    #[test]
    fn fragments_may_not_add_up_to_more_than_a_frame() {
        let mut stream = masked(2, false, &[1; 60], [0; 4]);
        stream.extend(masked(0, true, &[1; 60], [0; 4]));
        assert_eq!(
            read(Framing::WebSocket, &stream, 1000, 100),
            Err(FramingError::TooLong { len: 120, max: 100 })
        );
    }

    #[test]
    fn text_and_unmasked_messages_are_refused_by_name() {
        assert_eq!(
            read(Framing::WebSocket, &masked(1, true, b"hi", [1; 4]), 99, 100),
            Err(FramingError::Text)
        );
        assert!(matches!(
            read(Framing::WebSocket, &[0x82, 1, 0], 99, 100),
            Err(FramingError::WebSocket(_))
        ));
    }

    #[test]
    fn a_large_frame_gets_the_longest_header() {
        let mut room = [0; HEADROOM];
        assert_eq!(Framing::WebSocket.put_header(70_000, &mut room), 10);
        assert_eq!(room, [0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]);
        assert_eq!(Framing::WebSocket.put_header(300, &mut room), 4);
        assert_eq!(room[6..], [0x82, 126, 1, 44]);
    }
}
