//! The delta decoder, on deltas nobody made, and the encoder, on states nobody has.
//!
//! The first two bytes say where the input is cut in two, so that the fuzzer can move the cut.
#![no_main]

use greenroom_delta::{Encoder, apply, checksum};
use libfuzzer_sys::fuzz_target;

/// Small enough that a delta declaring more is common.
const TARGET_BYTES_MAX: usize = 1 << 16;

fuzz_target!(|input: &[u8]| {
    let Some((cut, input)) = input.split_first_chunk() else { return };
    let cut = usize::from(u16::from_le_bytes(*cut)).min(input.len());
    let (base, rest) = input.split_at(cut);
    apply_anything(base, rest);
    round_trip(base, rest);
});

fn apply_anything(base: &[u8], delta: &[u8]) {
    let mut target = Vec::new();
    match apply(base, delta, TARGET_BYTES_MAX, &mut target) {
        Ok(()) => assert!(target.len() <= TARGET_BYTES_MAX),
        Err(_) => assert!(target.is_empty()),
    }
    assert!(target.capacity() <= TARGET_BYTES_MAX);
}

fn round_trip(base: &[u8], target: &[u8]) {
    let (mut delta, mut again, mut applied) = (Vec::new(), Vec::new(), Vec::new());
    let mut encoder = Encoder::new();
    encoder.encode(base, target, &mut delta);
    apply(base, &delta, target.len(), &mut applied).expect("our own delta applies");
    assert_eq!(applied, target);
    assert_eq!(checksum(&applied), checksum(target));
    encoder.encode(base, target, &mut again);
    assert_eq!(again, delta, "the same states give the same delta");
}
