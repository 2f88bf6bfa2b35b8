//! Filters, as people write them and as clients send them.
//!
//! The same input is taken for a text and for MessagePack. What is read from either is written as text and read as the
//! same again.
#![no_main]

use greenroom_protocol::{
    Limits, decode, encode,
    search::{FILTER_CONDITIONS_MAX, FILTER_DEPTH_MAX, FILTER_TEXT_BYTES_MAX, Filter, Query},
};
use libfuzzer_sys::fuzz_target;

/// A text longer than this has more in it than a filter may have: white space and parentheses apart.
const WRITTEN_BYTES_MAX: usize = FILTER_CONDITIONS_MAX * (12 * FILTER_TEXT_BYTES_MAX + 128);

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = str::from_utf8(input) {
        from_text(text);
    }
    from_message_pack(input);
});

fn from_text(text: &str) {
    let query = match Query::parse(text) {
        Ok(query) => query,
        Err(error) => {
            assert!((1..=text.chars().count() + 1).contains(&error.at), "{error}");
            assert!(error.message.len() < 256, "a message that is to be read: {error}");
            return;
        }
    };
    query.filter.check().expect("what was read is within the bounds");
    let written = query.to_string();
    assert_eq!(Query::parse(&written).as_ref(), Ok(&query), "{written}");
    survives(&query.filter);
}

fn from_message_pack(input: &[u8]) {
    let Ok(filter) = decode::<Filter>(input, Limits::CLIENT) else { return };
    if filter.check().is_ok() {
        survives(&filter);
    } else {
        // Written too, for a log; who reads it is told what is wrong with it, or reads another filter.
        if let Ok(other) = Filter::parse(&filter.to_string()) {
            other.check().expect("what was read is within the bounds");
        }
    }
}

/// A filter within the bounds is the same after each of its two forms, and none of them is out of proportion.
fn survives(filter: &Filter) {
    let written = filter.to_string();
    assert!(written.len() <= WRITTEN_BYTES_MAX);
    assert_eq!(Filter::parse(&written).as_ref(), Ok(filter), "{written}");
    // A map and an array for each level, a map and two arrays for an `in`, within what a request may nest.
    let nested = Limits { depth_max: 2 * FILTER_DEPTH_MAX + 3, ..Limits::CLIENT };
    assert_eq!(decode(&encode(filter), nested).as_ref(), Ok(filter), "{written}");
}
