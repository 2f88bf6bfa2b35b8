//! The walk over MessagePack from strangers, beside a decoder that was written by others.
//!
//! What the walk lets pass is one whole value for the other decoder too; what that one takes and the walk does not is
//! over a limit, or of a type that this protocol does not use.
#![no_main]

use std::io::Cursor;

use greenroom_protocol::{
    DecodeError, Limits, Refusal, check, decode, encode,
    wire::client_session::{Changes, Found, Meta},
};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned, IgnoredAny};

/// Limits so tight that inputs are often just within them or just outside.
const TIGHT: Limits = Limits { depth_max: 3, nodes_max: 24, elements_max: 5 };

fuzz_target!(|input: &[u8]| {
    let [tight, client, server] = [TIGHT, Limits::CLIENT, Limits::SERVER].map(|limits| {
        let checked = check(input, limits);
        agree(input, limits, &checked);
        checked.is_ok()
    });
    assert!(client || !tight, "wider limits take what narrower ones took");
    assert!(server || !client, "wider limits take what narrower ones took");
    survives::<Refusal>(input);
    survives::<Found>(input);
    survives::<Changes>(input);
    survives::<Meta>(input);
    survives::<Vec<Vec<Option<u64>>>>(input);
});

fn agree(input: &[u8], limits: Limits, checked: &Result<(), DecodeError>) {
    let mut other = rmp_serde::Deserializer::new(Cursor::new(input));
    let value = IgnoredAny::deserialize(&mut other);
    let end = other.get_ref().position();
    let whole = value.is_ok() && end == input.len() as u64;
    match checked {
        Ok(()) => assert!(whole, "the other decoder says {value:?} and ends at {end}"),
        Err(DecodeError::TooDeep { max }) => assert_eq!(*max, limits.depth_max),
        Err(DecodeError::TooManyNodes { max }) => assert_eq!(*max, limits.nodes_max),
        Err(DecodeError::TooManyElements { found, max }) => assert!(found > max),
        Err(DecodeError::ForbiddenType { byte, at }) => assert_eq!(input[*at], *byte),
        Err(DecodeError::Truncated { at, wanted }) => {
            assert!(!whole && *wanted > 0 && *at <= input.len());
        }
        Err(DecodeError::Trailing { extra }) => assert!(!whole && *extra < input.len()),
        Err(
            error
            @ (DecodeError::ShortHeader { .. } | DecodeError::Shape(_) | DecodeError::Name(_)),
        ) => {
            panic!("the walk knows no headers and no shapes: {error}")
        }
    }
}

/// What can be read as a `T` is the same after being written and read again.
fn survives<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(input: &[u8]) {
    if let Ok(value) = decode::<T>(input, Limits::CLIENT) {
        assert_eq!(decode(&encode(&value), Limits::SERVER), Ok(value));
    }
}
