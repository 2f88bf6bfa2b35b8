//! A segment of the event log, as a disk gives it back: lines that are events, lines that are none, and anything else.
//!
//! The first byte says how many bytes come at once.
#![no_main]

use greenroom_logs::read::{Entry, Lines, Skipped};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&[piece], segment)) = input.split_first_chunk() else { return };
    let whole = read(segment, segment.len());
    assert_eq!(read(segment, usize::from(piece)), whole, "the cutting of the segment shows");
    every_byte_is_an_event_or_counted(segment, &whole);
    what_is_written_anew_reads_the_same(&whole.0);
});

/// Events of a segment that comes in pieces, each with the offset behind it, and what was skipped.
fn read(segment: &[u8], piece: usize) -> (Vec<(u64, String)>, Skipped) {
    let (mut lines, mut events) = (Lines::default(), Vec::new());
    for piece in segment.chunks(piece.max(1)) {
        lines.push(piece);
        while let Some((offset, text)) = lines.next_event() {
            events.push((offset, text.to_owned()));
        }
    }
    lines.end();
    (events, lines.skipped())
}

fn every_byte_is_an_event_or_counted(segment: &[u8], (events, skipped): &(Vec<(u64, String)>, Skipped)) {
    let mut bytes = skipped.bytes;
    for (offset, text) in events {
        assert!(Entry::parse(text).is_some(), "what is given is an event");
        let end = usize::try_from(*offset).expect("an offset in the segment");
        assert_eq!(&segment[end - text.len() - 1..end], format!("{text}\n").as_bytes());
        bytes += text.len() as u64 + 1;
    }
    assert_eq!(bytes, segment.len() as u64);
}

/// Whoever ships events, or begins in the middle, finds the same ones.
fn what_is_written_anew_reads_the_same(events: &[(u64, String)]) {
    let text: String = events.iter().map(|(_, text)| format!("{text}\n")).collect();
    let (again, skipped) = read(text.as_bytes(), text.len());
    assert_eq!(skipped, Skipped::default());
    assert!(again.iter().map(|(_, text)| text).eq(events.iter().map(|(_, text)| text)));
}
