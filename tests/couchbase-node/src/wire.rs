//! The binary key-value protocol as bytes: requests in, answers out.
//!
//! A packet is a header of 24 bytes and a body of framing extras, extras, key and value, in this order.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of the header of every packet.
pub(crate) const HEADER_BYTES: usize = 24;

/// Bytes of the largest packet that a connection accepts: the largest document, and room for the rest.
pub(crate) const PACKET_BYTES_MAX: usize = 21 * 1024 * 1024;

/// First byte of a request, and of one with framing extras.
const MAGIC_REQUEST: u8 = 0x80;
const MAGIC_REQUEST_FRAMED: u8 = 0x08;
const MAGIC_ANSWER: u8 = 0x81;
const MAGIC_ANSWER_FRAMED: u8 = 0x18;
const MAGIC_SERVER_REQUEST: u8 = 0x82;

/// What a request asks for.
pub mod opcode {
    #![expect(missing_docs, reason = "the names are the protocol's own")]

    pub const GET: u8 = 0x00;
    pub const SET: u8 = 0x01;
    pub const ADD: u8 = 0x02;
    pub const REPLACE: u8 = 0x03;
    pub const DELETE: u8 = 0x04;
    pub const INCREMENT: u8 = 0x05;
    pub const DECREMENT: u8 = 0x06;
    pub const NOOP: u8 = 0x0a;
    pub const APPEND: u8 = 0x0e;
    pub const PREPEND: u8 = 0x0f;
    pub const TOUCH: u8 = 0x1c;
    pub const GET_AND_TOUCH: u8 = 0x1d;
    pub const HELLO: u8 = 0x1f;
    pub const SASL_LIST_MECHANISMS: u8 = 0x20;
    pub const SASL_AUTH: u8 = 0x21;
    pub const SASL_STEP: u8 = 0x22;
    pub const GET_REPLICA: u8 = 0x83;
    pub const SELECT_BUCKET: u8 = 0x89;
    pub const GET_LOCKED: u8 = 0x94;
    pub const UNLOCK: u8 = 0x95;
    pub const GET_META: u8 = 0xa0;
    pub const GET_CLUSTER_CONFIG: u8 = 0xb5;
    pub const GET_COLLECTION_ID: u8 = 0xbb;
    pub const SUBDOC_GET: u8 = 0xc5;
    pub const SUBDOC_EXISTS: u8 = 0xc6;
    pub const SUBDOC_DICT_ADD: u8 = 0xc7;
    pub const SUBDOC_DICT_SET: u8 = 0xc8;
    pub const SUBDOC_DELETE: u8 = 0xc9;
    pub const SUBDOC_REPLACE: u8 = 0xca;
    pub const SUBDOC_ARRAY_PUSH_LAST: u8 = 0xcb;
    pub const SUBDOC_ARRAY_PUSH_FIRST: u8 = 0xcc;
    pub const SUBDOC_ARRAY_INSERT: u8 = 0xcd;
    pub const SUBDOC_ARRAY_ADD_UNIQUE: u8 = 0xce;
    pub const SUBDOC_COUNTER: u8 = 0xcf;
    pub const SUBDOC_MULTI_LOOKUP: u8 = 0xd0;
    pub const SUBDOC_MULTI_MUTATION: u8 = 0xd1;
    pub const SUBDOC_GET_COUNT: u8 = 0xd2;
    pub const SUBDOC_REPLACE_BODY_WITH_XATTR: u8 = 0xd3;
    pub const GET_ERROR_MAP: u8 = 0xfe;

    /// Sent by a node without being asked: the map changed.
    pub const SERVER_MAP_CHANGED: u8 = 0x01;
}

/// How a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Status(pub u16);

impl Status {
    pub(crate) const SUCCESS: Self = Self(0x00);
    pub(crate) const KEY_NOT_FOUND: Self = Self(0x01);
    pub(crate) const KEY_EXISTS: Self = Self(0x02);
    pub(crate) const TOO_BIG: Self = Self(0x03);
    pub(crate) const INVALID: Self = Self(0x04);
    pub(crate) const NOT_STORED: Self = Self(0x05);
    pub(crate) const BAD_DELTA: Self = Self(0x06);
    pub(crate) const NOT_MY_VBUCKET: Self = Self(0x07);
    pub(crate) const NO_BUCKET: Self = Self(0x08);
    pub(crate) const LOCKED: Self = Self(0x09);
    pub(crate) const NOT_LOCKED: Self = Self(0x0e);
    pub(crate) const AUTH_STALE: Self = Self(0x1f);
    pub(crate) const AUTH_ERROR: Self = Self(0x20);
    pub(crate) const AUTH_CONTINUE: Self = Self(0x21);
    pub(crate) const ACCESS: Self = Self(0x24);
    pub(crate) const UNKNOWN_COMMAND: Self = Self(0x81);
    pub(crate) const NOT_SUPPORTED: Self = Self(0x83);
    pub(crate) const BUSY: Self = Self(0x85);
    pub(crate) const TEMPORARY_FAILURE: Self = Self(0x86);
    pub(crate) const UNKNOWN_COLLECTION: Self = Self(0x88);
    pub(crate) const UNKNOWN_SCOPE: Self = Self(0x8c);
    pub(crate) const DURABILITY_INVALID: Self = Self(0xa0);
    pub(crate) const DURABILITY_IMPOSSIBLE: Self = Self(0xa1);
    pub(crate) const SYNC_WRITE_IN_PROGRESS: Self = Self(0xa2);
    pub(crate) const SYNC_WRITE_AMBIGUOUS: Self = Self(0xa3);
    pub(crate) const SYNC_WRITE_RECOMMIT: Self = Self(0xa4);
    pub(crate) const PATH_NOT_FOUND: Self = Self(0xc0);
    pub(crate) const PATH_MISMATCH: Self = Self(0xc1);
    pub(crate) const PATH_INVALID: Self = Self(0xc2);
    pub(crate) const PATH_TOO_BIG: Self = Self(0xc3);
    pub(crate) const CANNOT_INSERT: Self = Self(0xc5);
    pub(crate) const NOT_JSON: Self = Self(0xc6);
    pub(crate) const BAD_RANGE: Self = Self(0xc7);
    pub(crate) const SUBDOC_BAD_DELTA: Self = Self(0xc8);
    pub(crate) const PATH_EXISTS: Self = Self(0xc9);
    pub(crate) const INVALID_COMBINATION: Self = Self(0xcb);
    pub(crate) const MULTI_PATH_FAILURE: Self = Self(0xcc);
    pub(crate) const SUCCESS_DELETED: Self = Self(0xcd);
    pub(crate) const XATTR_UNKNOWN_MACRO: Self = Self(0xd0);
    pub(crate) const XATTR_UNKNOWN_VIRTUAL: Self = Self(0xd1);
    pub(crate) const XATTR_READ_ONLY: Self = Self(0xd2);
    pub(crate) const MULTI_PATH_FAILURE_DELETED: Self = Self(0xd3);
    pub(crate) const XATTR_ORDER: Self = Self(0xd4);
}

/// What the value of a packet is made of.
pub(crate) mod datatype {
    /// The value is JSON.
    pub(crate) const JSON: u8 = 0x01;
    /// The value is compressed with Snappy.
    pub(crate) const SNAPPY: u8 = 0x02;
}

/// What a client and a node may agree on at the start of a connection.
pub(crate) mod feature {
    pub(crate) const MUTATION_TOKENS: u16 = 0x04;
    pub(crate) const EXTENDED_ERRORS: u16 = 0x07;
    pub(crate) const SNAPPY: u16 = 0x0a;
    pub(crate) const JSON: u16 = 0x0b;
    pub(crate) const DURATIONS: u16 = 0x0f;
    pub(crate) const COLLECTIONS: u16 = 0x12;
    pub(crate) const DEDUPLICATED_MAPS: u16 = 0x1e;
    pub(crate) const MAP_CHANGE_BRIEF: u16 = 0x1f;

    /// Everything that this node speaks: data types, no delay, tokens, attributes, errors, bucket selection, Snappy,
    /// JSON, duplex, any order, durations, framing, durable writes, collections, Snappy everywhere, kept expiry,
    /// created as deleted, body from an attribute, known map, deduplicated maps, brief notes of a changed map.
    pub(crate) const SPOKEN: &[u16] = &[
        0x01, 0x03, 0x04, 0x06, 0x07, 0x08, 0x0a, 0x0b, 0x0c, 0x0e, 0x0f, 0x10, 0x11, 0x12, 0x13,
        0x14, 0x17, 0x19, 0x1d, 0x1e, 0x1f,
    ];
}

/// How safe a write must be before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// In the memory of a majority of the copies.
    Majority,
    /// The same, and on the disk of the active copy.
    MajorityAndPersistActive,
    /// On the disks of a majority of the copies.
    PersistToMajority,
}

/// What a client asks for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// One of [`opcode`].
    pub(crate) opcode: u8,
    /// Of the value, bits of [`datatype`].
    pub(crate) datatype: u8,
    /// The part of the bucket that the client believes to be here.
    pub(crate) vbucket: u16,
    /// Comes back with the answer.
    pub(crate) opaque: u32,
    /// The version that the document must have, or 0.
    pub(crate) cas: u64,
    /// The level asked for; `Err` for a number that is none.
    pub(crate) durability: Option<Result<Durability, u8>>,
    /// The document keeps the expiry that it has.
    pub(crate) preserve_expiry: bool,
    /// A frame that must be understood and is not.
    pub(crate) unknown_frame: Option<u8>,
    /// What the opcode says they are.
    pub(crate) extras: Bytes,
    /// The key, with its collection in front when the connection speaks of collections.
    pub(crate) key: Bytes,
    /// The value as sent.
    pub(crate) value: Bytes,
}

/// A packet that cannot be read; the connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PacketError {
    /// The first byte starts no request.
    #[error("a packet starts with {0:#04x}, which is no request")]
    Magic(u8),
    /// Longer than [`PACKET_BYTES_MAX`].
    #[error("a packet of {0} bytes, {PACKET_BYTES_MAX} is the most")]
    TooLong(usize),
    /// The parts are longer than the whole.
    #[error("the parts of a packet are longer than its body")]
    Parts,
}

impl Request {
    /// Takes the next whole request out of `source`, if it is there.
    ///
    /// # Errors
    /// When the bytes are no request of this protocol.
    pub(crate) fn decode(source: &mut BytesMut) -> Result<Option<Self>, PacketError> {
        if source.len() < HEADER_BYTES {
            return Ok(None);
        }
        let magic = source[0];
        let framed = match magic {
            MAGIC_REQUEST => false,
            MAGIC_REQUEST_FRAMED => true,
            other => return Err(PacketError::Magic(other)),
        };
        let body_bytes = (&source[8..12]).get_u32() as usize;
        if body_bytes > PACKET_BYTES_MAX {
            return Err(PacketError::TooLong(body_bytes));
        }
        if source.len() < HEADER_BYTES + body_bytes {
            source.reserve(HEADER_BYTES + body_bytes - source.len());
            return Ok(None);
        }
        let mut header = source.split_to(HEADER_BYTES);
        let mut body = source.split_to(body_bytes).freeze();
        header.advance(1);
        let opcode = header.get_u8();
        let (frames_bytes, key_bytes) = if framed {
            (usize::from(header.get_u8()), usize::from(header.get_u8()))
        } else {
            (0, usize::from(header.get_u16()))
        };
        let extras_bytes = usize::from(header.get_u8());
        let datatype = header.get_u8();
        let vbucket = header.get_u16();
        header.advance(4);
        let opaque = header.get_u32();
        let cas = header.get_u64();
        if frames_bytes + key_bytes + extras_bytes > body.len() {
            return Err(PacketError::Parts);
        }
        let frames = body.split_to(frames_bytes);
        let extras = body.split_to(extras_bytes);
        let key = body.split_to(key_bytes);
        let mut request = Self {
            opcode,
            datatype,
            vbucket,
            opaque,
            cas,
            durability: None,
            preserve_expiry: false,
            unknown_frame: None,
            extras,
            key,
            value: body,
        };
        request.read_frames(frames)?;
        Ok(Some(request))
    }

    fn read_frames(&mut self, mut frames: Bytes) -> Result<(), PacketError> {
        let escaped = |frames: &mut Bytes, nibble: u8| match nibble {
            15 if frames.has_remaining() => Ok(usize::from(frames.get_u8()) + 15),
            15 => Err(PacketError::Parts),
            small => Ok(usize::from(small)),
        };
        while frames.has_remaining() {
            let first = frames.get_u8();
            let code = escaped(&mut frames, first >> 4)?;
            let length = escaped(&mut frames, first & 0x0f)?;
            if length > frames.len() {
                return Err(PacketError::Parts);
            }
            let body = frames.split_to(length);
            match (code, body.as_ref()) {
                // The time-out that may follow the level is the node's to honour; ours answer at once.
                (1, [level] | [level, _, _]) => {
                    self.durability = Some(match level {
                        1 => Ok(Durability::Majority),
                        2 => Ok(Durability::MajorityAndPersistActive),
                        3 => Ok(Durability::PersistToMajority),
                        other => Err(*other),
                    });
                }
                (5, []) => self.preserve_expiry = true,
                (other, _) => self.unknown_frame = Some(u8::try_from(other).unwrap_or(u8::MAX)),
            }
        }
        Ok(())
    }
}

/// What a node says to a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    /// How it went; [`Status::SUCCESS`] by default.
    pub(crate) status: u16,
    /// Of the value, bits of [`datatype`].
    pub(crate) datatype: u8,
    /// The version of the document.
    pub(crate) cas: u64,
    /// What the opcode says they are.
    pub(crate) extras: Bytes,
    /// Rarely used in answers.
    pub(crate) key: Bytes,
    /// The value.
    pub(crate) value: Bytes,
}

impl Answer {
    /// An answer that says no more than how it went.
    pub(crate) fn status(status: Status) -> Self {
        Self { status: status.0, ..Self::default() }
    }

    /// An answer with a value.
    pub(crate) fn value(value: impl Into<Bytes>) -> Self {
        Self { value: value.into(), ..Self::default() }
    }

    /// An answer with a value that is JSON.
    pub(crate) fn json(value: impl Into<Bytes>) -> Self {
        Self { value: value.into(), datatype: datatype::JSON, ..Self::default() }
    }

    /// Appends the packet to `out`. `micros` is how long the node took, when the client wants to know.
    pub(crate) fn encode(&self, opcode: u8, opaque: u32, micros: Option<u64>, out: &mut BytesMut) {
        let frames_bytes = if micros.is_some() { 3 } else { 0 };
        let body = frames_bytes + self.extras.len() + self.key.len() + self.value.len();
        out.reserve(HEADER_BYTES + body);
        out.put_u8(if micros.is_some() { MAGIC_ANSWER_FRAMED } else { MAGIC_ANSWER });
        out.put_u8(opcode);
        if micros.is_some() {
            out.put_u8(3);
            out.put_u8(u8::try_from(self.key.len()).expect("keys of answers are short"));
        } else {
            out.put_u16(u16::try_from(self.key.len()).expect("keys of answers are short"));
        }
        out.put_u8(u8::try_from(self.extras.len()).expect("extras of answers are short"));
        out.put_u8(self.datatype);
        out.put_u16(self.status);
        out.put_u32(u32::try_from(body).expect("an answer is no longer than a packet may be"));
        out.put_u32(opaque);
        out.put_u64(self.cas);
        if let Some(micros) = micros {
            // Frame 0, two bytes: the duration on the protocol's curve, micros = code^1.74 / 2.
            out.put_u8(0x02);
            out.put_u16(duration_code(micros));
        }
        out.put_slice(&self.extras);
        out.put_slice(&self.key);
        out.put_slice(&self.value);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the code is rounded by its nature, and clamped before it is cut"
)]
fn duration_code(micros: u64) -> u16 {
    (micros as f64 * 2.0).powf(1.0 / 1.74).round().clamp(0.0, f64::from(u16::MAX)) as u16
}

/// A packet that a node sends without being asked: the map of a bucket has a new revision.
pub(crate) fn map_changed(bucket: &str, epoch: u64, revision: u64) -> Bytes {
    let mut out = BytesMut::new();
    let key = bucket.as_bytes();
    out.put_u8(MAGIC_SERVER_REQUEST);
    out.put_u8(opcode::SERVER_MAP_CHANGED);
    out.put_u16(u16::try_from(key.len()).expect("names of buckets are short"));
    out.put_u8(16);
    out.put_u8(0);
    out.put_u16(0);
    out.put_u32(16 + u32::try_from(key.len()).expect("names of buckets are short"));
    out.put_u32(0);
    out.put_u64(0);
    out.put_u64(epoch);
    out.put_u64(revision);
    out.put_slice(key);
    out.freeze()
}

/// Takes the collection's number off the front of a key (LEB128, unsigned, 32 bits).
pub(crate) fn split_collection(key: &Bytes) -> Option<(u32, Bytes)> {
    let mut number = 0_u32;
    for (at, byte) in key.iter().enumerate().take(5) {
        number |= u32::from(byte & 0x7f).checked_shl(7 * u32::try_from(at).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((number, key.slice(at + 1..)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(magic: u8, frames: &[u8], key: &[u8], extras: &[u8], value: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        out.put_slice(&[magic, opcode::SET]);
        if magic == MAGIC_REQUEST_FRAMED {
            out.put_u8(u8::try_from(frames.len()).unwrap());
            out.put_u8(u8::try_from(key.len()).unwrap());
        } else {
            out.put_u16(u16::try_from(key.len()).unwrap());
        }
        out.put_u8(u8::try_from(extras.len()).unwrap());
        out.put_u8(0);
        out.put_u16(7);
        out.put_u32(u32::try_from(frames.len() + key.len() + extras.len() + value.len()).unwrap());
        out.put_u32(99);
        out.put_u64(5);
        for part in [frames, extras, key, value] {
            out.put_slice(part);
        }
        out
    }

    #[test]
    fn a_request_is_read_when_its_last_byte_is_there_and_not_before() {
        let whole = packet(MAGIC_REQUEST, b"", b"\x08key", b"12345678", b"value");
        let mut source = BytesMut::new();
        for byte in &whole[..whole.len() - 1] {
            source.put_u8(*byte);
            assert!(Request::decode(&mut source).unwrap().is_none());
        }
        source.put_u8(whole[whole.len() - 1]);
        let request = Request::decode(&mut source).unwrap().unwrap();
        assert_eq!((request.vbucket, request.opaque, request.cas), (7, 99, 5));
        assert_eq!(split_collection(&request.key), Some((8, Bytes::from_static(b"key"))));
        assert_eq!((&*request.extras, &*request.value), (&b"12345678"[..], &b"value"[..]));
        assert!(source.is_empty());
    }

    #[test]
    fn frames_say_the_level_and_the_kept_expiry_and_an_unknown_one_is_named() {
        let mut source = packet(MAGIC_REQUEST_FRAMED, &[0x11, 2, 0x50], b"k", b"", b"");
        let request = Request::decode(&mut source).unwrap().unwrap();
        assert_eq!(request.durability, Some(Ok(Durability::MajorityAndPersistActive)));
        assert!(request.preserve_expiry && request.unknown_frame.is_none());
        let mut source = packet(MAGIC_REQUEST_FRAMED, &[0x13, 9, 0, 1, 0x42, 1, 2], b"k", b"", b"");
        let request = Request::decode(&mut source).unwrap().unwrap();
        assert_eq!(request.durability, Some(Err(9)));
        assert_eq!(request.unknown_frame, Some(4));
    }

    #[test]
    fn bytes_that_are_no_request_end_the_connection() {
        let mut source = packet(0x81, b"", b"", b"", b"");
        assert!(matches!(Request::decode(&mut source), Err(PacketError::Magic(0x81))));
        let mut source = packet(MAGIC_REQUEST, b"", b"", b"", b"");
        source[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(Request::decode(&mut source), Err(PacketError::TooLong(_))));
        let mut source = packet(MAGIC_REQUEST_FRAMED, &[0x1f], b"", b"", b"");
        assert!(matches!(Request::decode(&mut source), Err(PacketError::Parts)));
    }

    #[test]
    fn a_collection_of_several_bytes_is_split_and_an_endless_one_is_none() {
        let key = Bytes::from_static(&[0x80, 0x01, b'k']);
        assert_eq!(split_collection(&key), Some((128, Bytes::from_static(b"k"))));
        assert_eq!(split_collection(&Bytes::from_static(&[0x80; 8])), None);
        assert_eq!(split_collection(&Bytes::new()), None);
    }
}
