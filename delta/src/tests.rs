//! What the encoder and the decoder promise together.

use proptest::prelude::*;
use proptest::sample::Index;

use crate::{DeltaError, Encoder, apply, checksum};

fn encode(base: &[u8], target: &[u8]) -> Vec<u8> {
    let mut delta = Vec::new();
    Encoder::new().encode(base, target, &mut delta);
    delta
}

fn applied(base: &[u8], delta: &[u8], target_max: usize) -> Result<Vec<u8>, DeltaError> {
    let mut target = Vec::new();
    apply(base, delta, target_max, &mut target).map(|()| target)
}

/// A state of records that look alike, each of 24 bytes.
fn records(numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
    numbers.into_iter().flat_map(record).collect()
}

fn record(number: u32) -> Vec<u8> {
    let mixed = number.wrapping_add(1).wrapping_mul(2_654_435_761);
    format!("\u{3}x{mixed:08x}y{:08x}p{number:04}", mixed.rotate_left(9)).into_bytes()
}

#[test]
fn equal_states_are_one_copy() {
    let state = records(0..100);
    assert!(encode(&state, &state).starts_with(
        b"aW
aW@0,"
    ));
    assert_eq!(encode(b"", b""), b"0\n0;");
}

#[test]
fn a_changed_byte_costs_two_copies_and_an_insert() {
    let base = records(0..100);
    let mut target = base.clone();
    target[1000] ^= 1;
    assert!(encode(&base, &target).len() <= 32);
}

#[test]
fn a_record_that_comes_or_goes_costs_no_more_than_itself() {
    let all = records(0..100);
    for gone in [0, 1, 37, 98, 99] {
        let fewer = records((0..100).filter(|&number| number != gone));
        assert!(encode(&all, &fewer).len() <= 32, "{gone} goes");
        assert!(encode(&fewer, &all).len() <= 32 + 24, "{gone} comes");
    }
}

#[test]
fn several_records_that_come_and_go_at_once_are_found_beside_changed_ones() {
    let base = records(0..400);
    let mut numbers: Vec<u32> = (0..400).filter(|number| number % 90 != 7).collect();
    numbers[200] = 999;
    let delta = encode(&base, &records(numbers));
    assert!(delta.len() <= 130, "{} bytes", delta.len());
}

#[test]
fn a_state_of_the_same_length_whose_parts_moved_is_found_by_its_parts() {
    let base = records(0..400);
    let target = records((50..100).chain(0..50).chain(101..400).chain([100]));
    let delta = encode(&base, &target);
    assert!(delta.len() <= 60, "{} bytes", delta.len());
}

#[test]
fn a_delta_does_not_depend_on_what_was_encoded_before() {
    let states = [records(0..200), records(3..190), records(190..0x1ff), vec![7; 5000], Vec::new()];
    let mut encoder = Encoder::new();
    for base in &states {
        for target in &states {
            let mut delta = Vec::new();
            encoder.encode(base, target, &mut delta);
            assert_eq!(delta, encode(base, target));
        }
    }
}

#[test]
fn a_delta_is_appended_to_what_is_there() {
    let mut out = b"before".to_vec();
    Encoder::new().encode(b"", b"x", &mut out);
    assert_eq!(out, [b"before".as_slice(), &encode(b"", b"x")].concat());
}

#[test]
fn what_was_in_the_output_is_gone_even_when_nothing_is_applied() {
    let mut target = b"before".to_vec();
    assert_eq!(
        apply(b"", b"1\n1:xz;", 1, &mut target).unwrap_err(),
        DeltaError::ChecksumMismatch { expected: 62, actual: checksum(b"x") }
    );
    assert!(target.is_empty());
}

#[test]
fn no_memory_is_reserved_for_a_target_that_is_too_large() {
    let mut target = Vec::new();
    let error = apply(b"", b"3~~~~~\n0;", 1 << 20, &mut target).unwrap_err();
    assert_eq!(error, DeltaError::TargetTooLarge { declared: u32::MAX as usize, max: 1 << 20 });
    assert_eq!(target.capacity(), 0);
}

#[test]
fn copies_cannot_make_more_than_was_declared() {
    let base = [0; 1000];
    let error = applied(&base, b"Fd\nFd@0,Fd@0,0;", 1 << 20).unwrap_err();
    assert_eq!(error, DeltaError::LengthMismatch { declared: 1000, actual: 2000 });
}

#[test]
fn every_delta_that_ends_early_is_refused() {
    let (base, target) = (records(0..9), records((0..9).filter(|&number| number != 4)));
    let delta = encode(&base, &target);
    for length in 0..delta.len() {
        let error = applied(&base, &delta[..length], target.len()).unwrap_err();
        assert_eq!(error, DeltaError::Truncated { at: length });
    }
}

/// One change of a state, its places given relative to the length.
#[derive(Clone, Debug)]
enum Edit {
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Replace(Index, Vec<u8>),
    Move(Index, usize, Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        (any::<Index>(), bytes()).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (any::<Index>(), 0_usize..200).prop_map(|(at, length)| Edit::Remove(at, length)),
        (any::<Index>(), bytes()).prop_map(|(at, bytes)| Edit::Replace(at, bytes)),
        (any::<Index>(), 0_usize..200, any::<Index>())
            .prop_map(|(at, length, to)| Edit::Move(at, length, to)),
    ]
}

fn edited(base: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut state = base.to_vec();
    for edit in edits {
        let place = |at: &Index, state: &[u8]| at.index(state.len() + 1);
        match edit {
            Edit::Insert(at, bytes) => {
                let at = place(at, &state);
                state.splice(at..at, bytes.iter().copied());
            }
            Edit::Remove(at, length) => {
                let at = place(at, &state);
                state.drain(at..(at + length).min(state.len()));
            }
            Edit::Replace(at, bytes) => {
                let at = place(at, &state);
                let end = (at + bytes.len()).min(state.len());
                state[at..end].copy_from_slice(&bytes[..end - at]);
            }
            Edit::Move(at, length, to) => {
                let at = place(at, &state);
                let end = (at + length).min(state.len());
                let moved: Vec<u8> = state.drain(at..end).collect();
                let to = place(to, &state);
                state.splice(to..to, moved);
            }
        }
    }
    state
}

/// Bytes with nothing in common, records, or few different bytes, so that everything matches.
fn base() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..600),
        (0_u32..100).prop_map(|count| records(0..count)),
        proptest::collection::vec(0_u8..2, 0..600),
    ]
}

fn pair() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let edits = (base(), proptest::collection::vec(edit(), 0..8)).prop_map(|(base, edits)| {
        let target = edited(&base, &edits);
        (base, target)
    });
    prop_oneof![4 => edits, 1 => (base(), base())]
}

/// Far more often than arbitrary bytes this has a size, and commands after it.
const LOOKS_LIKE_A_DELTA: &str = "[0-9A-Z_a-z~]{0,3}\n([0-9A-Z]{0,2}[@:,;]?[ -~]{0,3}){0,9}";

proptest! {
    #[test]
    fn a_delta_makes_its_target((base, target) in pair()) {
        let delta = encode(&base, &target);
        prop_assert!(delta.len() <= target.len() + 21);
        prop_assert_eq!(applied(&base, &delta, target.len()), Ok(target));
    }

    #[test]
    fn a_damaged_delta_makes_no_more_than_allowed_and_no_wrong_checksum(
        (base, target) in pair(),
        damage in proptest::collection::vec(edit(), 1..4),
        target_max in 0_usize..3000,
    ) {
        let damaged = edited(&encode(&base, &target), &damage);
        let mut made = Vec::new();
        let result = apply(&base, &damaged, target_max, &mut made);
        prop_assert!(made.len() <= target_max);
        prop_assert!(result.is_ok() || made.is_empty());
        prop_assert!(made.capacity() <= target_max.max(8));
    }

    #[test]
    fn arbitrary_bytes_are_no_delta(base in base(), delta in LOOKS_LIKE_A_DELTA) {
        let mut made = Vec::new();
        if apply(&base, delta.as_bytes(), 4096, &mut made).is_err() {
            prop_assert!(made.is_empty());
        }
    }
}
