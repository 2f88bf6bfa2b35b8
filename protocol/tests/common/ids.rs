//! `ids.json`: ids and names as texts.

use greenroom_protocol::{InstanceId, Key, Seat, SessionId, UserId, ViewId};

use super::json::{Json, file as json_file, object};

pub(crate) fn file() -> String {
    json_file(&[
        ("about", ABOUT.iter().map(|&line| line.into()).collect()),
        ("ids", valid()),
        ("read_as", read_as()),
        ("refused", refused()),
        ("names", names()),
        ("views", views()),
    ])
}

const ABOUT: &[&str] = &[
    "`ids`: the id whose value is `value` (big-endian, hexadecimal) has the text `text`, and the other way round.",
    "`read_as`: servers read this text as that value too, but never write it. A client hands ids on as it got them.",
    "`refused`: no id of that many bits has this text.",
    "`names`: users' ids (at most 64 bytes) and unique keys (at most 128) that are taken, and those that are not.",
    "`views`: the number of the view that only this seat sees.",
];

fn valid() -> Vec<Json> {
    let wide = [0, 1, 31, 32, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef, 1 << 127, u128::MAX];
    let wide = wide.into_iter().map(|value| {
        let text = InstanceId(value).to_string();
        object! { "bits": 128u8, "value": format!("{value:032x}"), "text": text }
    });
    let narrow = [0, 1, 31, 32, 0x0123_4567_89ab_cdef, 1 << 53, 1 << 63, u64::MAX];
    wide.chain(narrow.into_iter().map(|value| {
        let text = SessionId(value).to_string();
        object! { "bits": 64u8, "value": format!("{value:016x}"), "text": text }
    }))
    .collect()
}

fn read_as() -> Vec<Json> {
    ["0000000000ABC", "FZZZZZZZZZZZZ", "00000000sEVEN"]
        .into_iter()
        .map(|text| {
            let SessionId(value) = text.parse().expect("capitals are read as small letters");
            object! { "bits": 64u8, "text": text, "value": format!("{value:016x}") }
        })
        .collect()
}

fn refused() -> Vec<Json> {
    let narrow = [
        ("", "empty"),
        ("000000000000", "one character too short"),
        ("00000000000000", "one character too long"),
        ("g000000000000", "more than 64 bits"),
        ("000000000000i", "the letter i"),
        ("000000000000l", "the letter l"),
        ("000000000000o", "the letter o"),
        ("000000000000u", "the letter u"),
        ("000000-000000", "a hyphen"),
        ("00000000000é", "13 bytes, but not of the alphabet"),
    ];
    let wide = [
        ("80000000000000000000000000", "more than 128 bits"),
        ("0000000000000", "a 64-bit id"),
        ("0000000000000000000000000_", "not of the alphabet"),
    ];
    let narrow = narrow.into_iter().map(|(text, why)| {
        assert!(text.parse::<SessionId>().is_err(), "{text}");
        object! { "bits": 64u8, "text": text, "why": why }
    });
    let wide = wide.into_iter().map(|(text, why)| {
        assert!(text.parse::<InstanceId>().is_err(), "{text}");
        object! { "bits": 128u8, "text": text, "why": why }
    });
    narrow.chain(wide).collect()
}

fn names() -> Vec<Json> {
    let texts = ["ann", "Ann Ö. 😀", "", "tab\tin it", "zero\u{0}in it", "delete\u{7f}", "\u{85}"];
    let long = ["x".repeat(64), "x".repeat(65), "é".repeat(32), "é".repeat(33), "x".repeat(129)];
    (texts.into_iter().map(str::to_owned).chain(long))
        .map(|text| {
            let (user, key) = (UserId::new(&*text).is_ok(), Key::new(&*text).is_ok());
            object! { "text": text, "user": user, "key": key }
        })
        .collect()
}

fn views() -> Vec<Json> {
    [0, 1, 15, 1000]
        .into_iter()
        .map(|seat| object! { "seat": seat, "view": ViewId::of_seat(Seat(seat)).0 })
        .collect()
}
