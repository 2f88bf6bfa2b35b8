//! `refused.json`: bytes that are no message, each with the reason.

use greenroom_protocol::{
    DecodeError, DownHeader, Limits, PatchHeader, PieceHeader, ReplyHeader, RequestHeader,
    UpHeader, check,
    wire::client_session::{ClientToSession, Request},
};

use super::json::{Json, file as json_file, hex, object};

pub(crate) fn file() -> String {
    json_file(&[
        ("about", ABOUT.iter().map(|&line| line.into()).collect()),
        ("accepted", accepted()),
        ("refused", refused()),
        ("headers", headers()),
        ("shapes", shapes()),
    ])
}

const ABOUT: &[&str] = &[
    "`accepted`: one MessagePack value within the limits.",
    "`refused`: not one MessagePack value within the limits, for the reason named, in the words that servers answer \
     with. Faults are found in the order in which the bytes are read, an announced length before what it announces.",
    "`headers`: frames that are shorter than the header of their kind.",
    "`shapes`: well-formed MessagePack, but no message of that kind. Servers answer these with `malformed`, and where \
     `error` is `name` with `name_invalid`.",
    "The limits for what clients send are: depth_max 16, nodes_max 4096, elements_max 1024. Where a vector has others, \
     it is to stay short.",
];

const TIGHT: Limits = Limits { depth_max: 3, nodes_max: 8, elements_max: 4 };

fn limits(limits: Limits) -> Json {
    let depth = u8::try_from(limits.depth_max).expect("depths are small");
    object! { "depth_max": depth, "nodes_max": limits.nodes_max, "elements_max": limits.elements_max }
}

fn accepted() -> Vec<Json> {
    let nested = [vec![0x91; 16], vec![0xc0]].concat();
    let vectors: &[(&str, Limits, &[u8])] = &[
        ("nil", Limits::CLIENT, &[0xc0]),
        ("every integer's width", TIGHT, &[0x94, 0x7f, 0xcc, 0xff, 0xcd, 0xff, 0xff, 0xe0]),
        ("a value that could be shorter", TIGHT, &[0xdb, 0, 0, 0, 1, b'a']),
        ("bytes", TIGHT, &[0xc4, 2, 0xff, 0xfe]),
        ("as many elements as allowed", TIGHT, &[0x94, 1, 2, 3, 4]),
        ("as many values as allowed", TIGHT, &[0x92, 0x93, 1, 2, 3, 0x91, 0xc2, 0xc3][..7]),
        ("as deep as allowed", TIGHT, &[0x91, 0x91, 0x91, 0xc0]),
        ("as deep as a client may nest", Limits::CLIENT, &nested),
        ("empty containers", TIGHT, &[0x92, 0x90, 0x80]),
    ];
    vectors
        .iter()
        .map(|(name, within, bytes)| {
            assert_eq!(check(bytes, *within), Ok(()), "{name}");
            object! { "name": *name, "limits": limits(*within), "hex": hex(bytes) }
        })
        .collect()
}

fn refused() -> Vec<Json> {
    let nested = [vec![0x91; 17], vec![0xc0]].concat();
    let vectors: &[(&str, Limits, &[u8])] = &[
        ("nothing", TIGHT, &[]),
        ("a string shorter than it says", TIGHT, &[0xa5, b'a']),
        ("bytes shorter than they say", TIGHT, &[0xc6, 0xff, 0xff, 0xff, 0xff, 0]),
        ("an integer cut off", TIGHT, &[0xce, 0, 0]),
        ("a length cut off", TIGHT, &[0xda, 0]),
        ("an array with fewer bytes than elements", TIGHT, &[0x93, 1, 2]),
        ("a map without its last value", TIGHT, &[0x81, 0xa1, b'a']),
        ("an array of four thousand million", Limits::CLIENT, &[0xdd, 0xff, 0xff, 0xff, 0xff]),
        ("a map of more pairs than allowed", TIGHT, &[0xde, 0, 5, 0, 0]),
        ("too deep", TIGHT, &[0x91, 0x91, 0x91, 0x91, 0xc0]),
        ("deeper than a client may nest", Limits::CLIENT, &nested),
        ("too many values", TIGHT, &[0x94, 0x92, 1, 2, 0x92, 3, 4, 5, 6]),
        ("the reserved byte", TIGHT, &[0xc1]),
        ("an extension of one byte", TIGHT, &[0xd4, 0, 0]),
        ("a timestamp", TIGHT, &[0xd6, 0xff, 0, 0, 0, 0]),
        ("an extension with a length", TIGHT, &[0xc7, 0, 1]),
        ("a second value", TIGHT, &[0xc0, 0xc0]),
    ];
    vectors
        .iter()
        .map(|(name, within, bytes)| {
            let error = check(bytes, *within).expect_err(name);
            object! {
                "name": *name, "limits": limits(*within), "hex": hex(bytes), "error": reason(&error),
                "text": error.to_string(),
            }
        })
        .collect()
}

fn headers() -> Vec<Json> {
    let short = |name: &str, kind: u8, length: usize, split: fn(&[u8]) -> DecodeError| {
        let frame: Vec<u8> = std::iter::once(kind).chain(std::iter::repeat_n(0, length)).collect();
        let frame = &frame[..length];
        let error = split(frame);
        object! { "name": name, "hex": hex(frame), "error": reason(&error), "text": error.to_string() }
    };
    macro_rules! error_of {
        ($header:ty) => {
            |frame| <$header>::split(frame).expect_err("shorter than the header")
        };
    }
    vec![
        short("a request", 0x11, 8, error_of!(RequestHeader)),
        short("an answer", 0x91, 4, error_of!(ReplyHeader)),
        short("to an instance", 0x20, 12, error_of!(UpHeader)),
        short("from an instance", 0xa0, 16, error_of!(DownHeader)),
        short("a patch", 0xb0, 18, error_of!(PatchHeader)),
        short("a piece", 0xb1, 22, error_of!(PieceHeader)),
        short("a kind alone", 0x23, 1, error_of!(UpHeader)),
    ]
}

fn shapes() -> Vec<Json> {
    let hello = |payload: &[u8]| ClientToSession::decode(0x01, payload, Limits::CLIENT).err();
    let check_in = |payload: &[u8]| ClientToSession::decode(0x02, payload, Limits::CLIENT).err();
    let join = |payload: &[u8]| Request::decode(0x11, payload, Limits::CLIENT).err();
    let search = |payload: &[u8]| Request::decode(0x15, payload, Limits::CLIENT).err();
    let create = |payload: &[u8]| Request::decode(0x10, payload, Limits::CLIENT).err();
    type Decode = fn(&[u8]) -> Option<DecodeError>;
    let vectors: &[(&str, u8, Decode, &[u8])] = &[
        ("a number where a map belongs", 0x01, hello, &[0x07]),
        ("no version at all", 0x01, hello, &[0x80]),
        ("a version that is a text", 0x01, hello, b"\x82\xacprotocol_min\xa11\xacprotocol_max\x01"),
        (
            "a version over 16 bits",
            0x01,
            hello,
            b"\x82\xacprotocol_min\x01\xacprotocol_max\xce\0\x01\0\0",
        ),
        ("a field twice", 0x01, hello, b"\x82\xacprotocol_min\x01\xacprotocol_min\x01"),
        ("a session key of 15 bytes", 0x02, check_in, &short_key()),
        ("an instance's id that is none", 0x11, join, b"\x81\xa8instance\xa3abc"),
        ("a text that is not UTF-8", 0x15, search, b"\x82\xa4kind\xa1\xff\xa5limit\x01"),
        ("a kind without a name", 0x15, search, b"\x82\xa4kind\xa0\xa5limit\x01"),
        (
            "a kind with a line break in its name",
            0x15,
            search,
            b"\x82\xa4kind\xa3a\nb\xa5limit\x01",
        ),
        ("a unique key of 129 bytes", 0x10, create, &long_key()),
        ("a limit below zero", 0x15, search, b"\x82\xa4kind\xa1x\xa5limit\xff"),
        (
            "a filter of two conditions in one map",
            0x15,
            search,
            &search_for(b"\x82\xa2eq\x92\xa1a\x01\xa2ne\x92\xa1a\x02"),
        ),
        (
            "a filter with an operator that is not known",
            0x15,
            search,
            &search_for(b"\x81\xa4like\x92\xa1a\xa1b"),
        ),
        (
            "a filter with an operator in capitals",
            0x15,
            search,
            &search_for(b"\x81\xa2EQ\x92\xa1a\x01"),
        ),
        (
            "a filter with a fraction",
            0x15,
            search,
            &search_for(b"\x81\xa2eq\x92\xa1a\xca\x3f\xc0\0\0"),
        ),
        (
            "a filter with a number over 64 bits with sign",
            0x15,
            search,
            &search_for(b"\x81\xa2eq\x92\xa1a\xcf\x80\0\0\0\0\0\0\0"),
        ),
        (
            "a filter with a value too few",
            0x15,
            search,
            &search_for(b"\x81\xa7between\x92\xa1a\x01"),
        ),
    ];
    vectors
        .iter()
        .map(|(name, kind, decode, payload)| {
            let error = decode(payload).expect(name);
            object! { "name": *name, "kind": *kind, "payload": hex(payload), "error": reason(&error) }
        })
        .collect()
}

/// A search that would be good with another filter.
fn search_for(filter: &[u8]) -> Vec<u8> {
    [b"\x83\xa4kind\xa1x\xa5limit\x01\xa6filter", filter].concat()
}

/// A unique key of one byte too many.
fn long_key() -> Vec<u8> {
    [&b"\x82\xa4kind\xa1x\xa3key\xd9\x81"[..], &[b'k'; 129]].concat()
}

/// A check-in that would be good with one byte more of its key.
fn short_key() -> Vec<u8> {
    [
        &b"\x82\xabsession_key\xc4\x0f"[..],
        &[7; 15],
        b"\xabcredentials\x82\xa6scheme\xa5guest\xa5token\xa1t",
    ]
    .concat()
}

fn reason(error: &DecodeError) -> &'static str {
    match error {
        DecodeError::Truncated { .. } => "truncated",
        DecodeError::TooDeep { .. } => "too_deep",
        DecodeError::TooManyNodes { .. } => "too_many_nodes",
        DecodeError::TooManyElements { .. } => "too_many_elements",
        DecodeError::ForbiddenType { .. } => "forbidden_type",
        DecodeError::Trailing { .. } => "trailing",
        DecodeError::ShortHeader { .. } => "short_header",
        DecodeError::Shape(_) => "shape",
        DecodeError::Name(_) => "name",
    }
}
