//! The vectors in `protocol/vectors/v1/delta.json`: every implementation of the protocol runs them.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail it by panicking")]

use greenroom_delta::{DeltaError, Encoder, apply};
use serde_json::Value;

#[test]
fn every_delta_that_can_be_applied_makes_its_target() {
    for vector in vectors("applied") {
        let (base, target) = (bytes(&vector, "base"), bytes(&vector, "target"));
        let mut applied = Vec::new();
        let result = apply(&base, &bytes(&vector, "delta"), target.len(), &mut applied);
        assert_eq!(result, Ok(()), "{vector}");
        assert_eq!(applied, target, "{vector}");
    }
}

#[test]
fn every_other_delta_is_refused_for_the_reason_named() {
    for vector in vectors("refused") {
        let target_max = usize::try_from(vector["target_max"].as_u64().unwrap()).unwrap();
        let mut applied = Vec::new();
        let (base, delta) = (bytes(&vector, "base"), bytes(&vector, "delta"));
        let error = apply(&base, &delta, target_max, &mut applied).unwrap_err();
        assert_eq!(reason(&error), text(&vector, "refusal"), "{vector}: {error}");
    }
}

/// The format leaves the choice of commands to the encoder; this one must know when ours changes.
#[test]
fn our_encoder_makes_the_deltas_it_made_for_the_vectors() {
    let ours = vectors("applied").into_iter().filter(|vector| vector["made_by"] == "greenroom");
    for vector in ours {
        let mut delta = Vec::new();
        Encoder::new().encode(&bytes(&vector, "base"), &bytes(&vector, "target"), &mut delta);
        assert_eq!(delta, bytes(&vector, "delta"), "{vector}");
    }
}

fn reason(error: &DeltaError) -> &'static str {
    match error {
        DeltaError::Truncated { .. } => "truncated",
        DeltaError::BadNumber { .. } => "bad_number",
        DeltaError::BadCommand { .. } => "bad_command",
        DeltaError::TargetTooLarge { .. } => "target_too_large",
        DeltaError::CopyOutsideBase { .. } => "copy_outside_base",
        DeltaError::LengthMismatch { .. } => "length_mismatch",
        DeltaError::ChecksumMismatch { .. } => "checksum_mismatch",
        DeltaError::TrailingBytes { .. } => "trailing_bytes",
    }
}

fn vectors(kind: &str) -> Vec<Value> {
    let file = include_str!("../../protocol/vectors/v1/delta.json");
    let mut file: Value = serde_json::from_str(file).unwrap();
    let Value::Array(vectors) = file[kind].take() else { panic!("no vectors are {kind}") };
    assert!(!vectors.is_empty());
    vectors
}

fn text<'a>(vector: &'a Value, field: &str) -> &'a str {
    vector[field].as_str().unwrap()
}

fn bytes(vector: &Value, field: &str) -> Vec<u8> {
    let digits = text(vector, field);
    assert!(digits.len().is_multiple_of(2), "{vector}: {field} ends in half a byte");
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}
