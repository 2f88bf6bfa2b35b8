//! MessagePack from strangers, decoded within bounds.
//!
//! Bytes are walked once before serde sees them: depth, number of nodes, elements of a container, lengths
//! against what is really there, extension types, trailing bytes. So nothing is ever allocated from a length
//! that a peer only claims to send.

use serde::{Serialize, de::DeserializeOwned};

use crate::ids::BadText;

/// What decoding accepts at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Containers inside containers.
    pub depth_max: usize,
    /// Values in all, keys included.
    pub nodes_max: u32,
    /// Elements of one array, or pairs of one map.
    pub elements_max: u32,
}

impl Limits {
    /// For what clients send.
    pub const CLIENT: Self = Self { depth_max: 16, nodes_max: 4_096, elements_max: 1_024 };
    /// For what authenticated servers of the cluster, and servers to their clients, send.
    pub const SERVER: Self = Self { depth_max: 64, nodes_max: 1 << 22, elements_max: 1 << 18 };
}

/// Why bytes are not the message they should be. The text says what is wrong and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a value, or a length claims more than is there.
    #[error("the message ends early: {wanted} more bytes were announced at byte {at}")]
    Truncated {
        /// Where, in bytes from the start of the payload.
        at: usize,
        /// How many bytes are missing at least.
        wanted: usize,
    },
    /// Containers are nested too deep.
    #[error("containers are nested more than {max} deep")]
    TooDeep {
        /// The bound.
        max: usize,
    },
    /// Too many values.
    #[error("the message has more than {max} values")]
    TooManyNodes {
        /// The bound.
        max: u32,
    },
    /// A container has too many elements.
    #[error("a container has {found} elements, more than {max}")]
    TooManyElements {
        /// As announced.
        found: u32,
        /// The bound.
        max: u32,
    },
    /// MessagePack's extension types, or its reserved byte `0xc1`.
    #[error("type byte {byte:#04x} at byte {at} is not used in this protocol")]
    ForbiddenType {
        /// The byte.
        byte: u8,
        /// Where.
        at: usize,
    },
    /// More bytes follow the value.
    #[error("{extra} bytes follow the end of the message")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// The frame is shorter than its kind's header.
    #[error(
        "a frame of kind {kind:#04x} has a header of {header} bytes; this one has {len} bytes in all"
    )]
    ShortHeader {
        /// The kind byte.
        kind: u8,
        /// Length of that kind's header.
        header: usize,
        /// Length of the frame.
        len: usize,
    },
    /// Well-formed MessagePack, but not of the expected shape.
    #[error("{0}")]
    Shape(String),
    /// The expected shape, but a name in it is empty, too long, or has control characters.
    #[error("{0}")]
    Name(String),
}

/// Walks one MessagePack value and refuses what is outside `limits`.
///
/// # Errors
/// The first fault found, as a [`DecodeError`].
pub fn check(bytes: &[u8], limits: Limits) -> Result<(), DecodeError> {
    // How many values are still to come in each open container; the outermost holds one value.
    let mut open = [0u32; 65];
    let depth_max = limits.depth_max.min(64);
    let (mut depth, mut at, mut nodes) = (0usize, 0usize, 0u32);
    open[0] = 1;
    loop {
        while open[depth] == 0 {
            if depth == 0 {
                let extra = bytes.len() - at;
                return if extra == 0 { Ok(()) } else { Err(DecodeError::Trailing { extra }) };
            }
            depth -= 1;
        }
        open[depth] -= 1;
        nodes += 1;
        if nodes > limits.nodes_max {
            return Err(DecodeError::TooManyNodes { max: limits.nodes_max });
        }
        let Some(&byte) = bytes.get(at) else {
            return Err(DecodeError::Truncated { at, wanted: 1 });
        };
        let be = |width: usize| -> Result<u32, DecodeError> {
            let field = bytes
                .get(at + 1..at + 1 + width)
                .ok_or(DecodeError::Truncated { at, wanted: width })?;
            Ok(field.iter().fold(0, |sum, &b| sum << 8 | u32::from(b)))
        };
        // (bytes of header, bytes of body, elements of the container)
        let (header, body, elements) = match byte {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => (1, 0, None),
            0x80..=0x8f => (1, 0, Some((u32::from(byte & 0x0f), 2))),
            0x90..=0x9f => (1, 0, Some((u32::from(byte & 0x0f), 1))),
            0xa0..=0xbf => (1, u32::from(byte & 0x1f), None),
            0xc4 | 0xd9 => (2, be(1)?, None),
            0xc5 | 0xda => (3, be(2)?, None),
            0xc6 | 0xdb => (5, be(4)?, None),
            0xcc | 0xd0 => (2, 0, None),
            0xcd | 0xd1 => (3, 0, None),
            0xca | 0xce | 0xd2 => (5, 0, None),
            0xcb | 0xcf | 0xd3 => (9, 0, None),
            0xdc => (3, 0, Some((be(2)?, 1))),
            0xdd => (5, 0, Some((be(4)?, 1))),
            0xde => (3, 0, Some((be(2)?, 2))),
            0xdf => (5, 0, Some((be(4)?, 2))),
            0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => {
                return Err(DecodeError::ForbiddenType { byte, at });
            }
        };
        let left = bytes.len() - at;
        let size = header + body as usize;
        if size > left {
            return Err(DecodeError::Truncated { at, wanted: size - left });
        }
        at += size;
        if let Some((found, values_each)) = elements {
            if found > limits.elements_max {
                return Err(DecodeError::TooManyElements { found, max: limits.elements_max });
            }
            if depth == depth_max {
                return Err(DecodeError::TooDeep { max: limits.depth_max });
            }
            let values = found * values_each;
            // Every value is a byte at least: a container can't hold more than there are bytes.
            if values as usize > bytes.len() - at {
                return Err(DecodeError::Truncated {
                    at,
                    wanted: values as usize - (bytes.len() - at),
                });
            }
            depth += 1;
            open[depth] = values;
        }
    }
}

/// Decodes one value of type `T`, within `limits`, and nothing after it. Unknown fields of maps are ignored,
/// so that an older reader understands a newer writer.
///
/// # Errors
/// What [`check`] refuses, and [`DecodeError::Shape`] or [`DecodeError::Name`] where the value is not a `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limits: Limits) -> Result<T, DecodeError> {
    check(bytes, limits)?;
    rmp_serde::from_slice(bytes).map_err(|error| {
        let text = error.to_string();
        // serde hands on an error of a field's own type as its text and nothing else, so a bad name is known again
        // by the text that only a bad name has.
        if BadText::has_text(&text) { DecodeError::Name(text) } else { DecodeError::Shape(text) }
    })
}

/// Appends `value` to `out` as MessagePack with field names.
///
/// # Panics
/// When `T`'s own `Serialize` fails, which no type of this crate does. What a game made is encoded with its
/// errors reported, by the game core.
pub fn encode_into<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    value
        .serialize(&mut rmp_serde::Serializer::new(out).with_struct_map())
        .expect("a message of the protocol encodes: writing to memory does not fail, and its maps have known lengths");
}

/// Appends `value` as MessagePack without field names: for what never meets another version, such as a hash. Panics as
/// [`encode_into`] does.
pub fn encode_compact_into<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    value
        .serialize(&mut rmp_serde::Serializer::new(out))
        .expect("writing to memory does not fail, and what is hashed has known lengths");
}

/// `value` as MessagePack with field names. Panics as [`encode_into`] does.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    encode_into(value, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Old {
        a: u32,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct New {
        a: u32,
        b: Option<String>,
    }

    #[test]
    fn fields_can_be_added_in_both_directions() {
        assert_eq!(
            decode::<Old>(&encode(&New { a: 1, b: Some("x".into()) }), Limits::CLIENT),
            Ok(Old { a: 1 })
        );
        assert_eq!(
            decode::<New>(&encode(&Old { a: 1 }), Limits::CLIENT),
            Ok(New { a: 1, b: None })
        );
    }

    #[test]
    fn nesting_is_bounded() {
        let mut deep = vec![0x91; 16];
        deep.push(0xc0);
        assert_eq!(check(&deep, Limits::CLIENT), Ok(()));
        deep.insert(0, 0x91);
        assert_eq!(check(&deep, Limits::CLIENT), Err(DecodeError::TooDeep { max: 16 }));
        assert!(matches!(
            check(&[0x91; 100_000], Limits::CLIENT),
            Err(DecodeError::TooDeep { .. })
        ));
    }

    #[test]
    fn a_length_that_lies_is_refused_before_anything_is_allocated() {
        for lie in [
            &[0xdd, 0xff, 0xff, 0xff, 0xff][..],
            &[0xc6, 0xff, 0xff, 0xff, 0xff],
            &[0xdf, 0, 0, 4, 0, 1],
        ] {
            assert!(check(lie, Limits::CLIENT).is_err(), "{lie:02x?}");
        }
        assert_eq!(
            check(&[0xa5, b'a'], Limits::CLIENT),
            Err(DecodeError::Truncated { at: 0, wanted: 4 })
        );
    }

    #[test]
    fn what_follows_the_value_is_refused() {
        assert_eq!(check(&[0xc0, 0xc0], Limits::CLIENT), Err(DecodeError::Trailing { extra: 1 }));
        assert_eq!(
            check(&[0xd4, 0, 0], Limits::CLIENT),
            Err(DecodeError::ForbiddenType { byte: 0xd4, at: 0 })
        );
        assert_eq!(check(&[], Limits::CLIENT), Err(DecodeError::Truncated { at: 0, wanted: 1 }));
    }

    #[test]
    fn the_number_of_values_is_bounded() {
        let mut wide = vec![0xdc, 0x04, 0x00];
        wide.extend(std::iter::repeat_n([0x94, 1, 2, 3, 4], 1_024).flatten());
        assert_eq!(check(&wide, Limits::CLIENT), Err(DecodeError::TooManyNodes { max: 4_096 }));
        assert_eq!(
            check(&[0xdc, 0x04, 0x01], Limits::CLIENT),
            Err(DecodeError::TooManyElements { found: 1_025, max: 1_024 })
        );
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            if check(&bytes, Limits::CLIENT).is_ok() {
                // What passes the walk is one whole value for the real decoder too.
                prop_assert!(rmp_serde::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok());
            }
        }
        #[test]
        fn what_we_encode_passes(a: u32, b: Option<String>) {
            let value = New { a, b };
            prop_assert_eq!(decode::<New>(&encode(&value), Limits::SERVER), Ok(value));
        }
    }
}
