//! Spans as OTLP has them, in protobuf (`opentelemetry/proto/trace/v1/trace.proto`), written straight to where they
//! wait.
//!
//! By hand, since a span ends on a thread that has other things to do: nothing is built only to be written. What comes
//! out is what generated code writes, byte for byte.

use greenroom_protocol::TraceContext;

use crate::trace::{Attribute, SpanKind};

/// Types on the wire.
const VARINT: u32 = 0;
const FIXED_64: u32 = 1;
const BYTES: u32 = 2;
const FIXED_32: u32 = 5;

/// What a span is.
pub(crate) struct Ended<'a> {
    pub(crate) context: TraceContext,
    pub(crate) parent: Option<[u8; 8]>,
    pub(crate) name: &'a str,
    pub(crate) kind: SpanKind,
    /// Since 1970.
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    /// As [`attribute`] wrote them.
    pub(crate) attributes: &'a [u8],
    /// Why it did not succeed.
    pub(crate) error: Option<&'a str>,
}

/// Appends a span to the spans of a scope: field 2 of `ScopeSpans`.
pub(crate) fn span(out: &mut Vec<u8>, ended: &Ended<'_>) {
    within(out, 2, |out| {
        bytes(out, 1, &ended.context.trace);
        bytes(out, 2, &ended.context.span);
        if let Some(parent) = &ended.parent {
            bytes(out, 4, parent);
        }
        if !ended.name.is_empty() {
            bytes(out, 5, ended.name.as_bytes());
        }
        number(out, 6, kind(ended.kind));
        fixed_64(out, 7, ended.start_ns);
        fixed_64(out, 8, ended.end_ns);
        out.extend_from_slice(ended.attributes);
        if let Some(error) = ended.error {
            within(out, 15, |out| {
                if !error.is_empty() {
                    bytes(out, 2, error.as_bytes());
                }
                number(out, 3, 2); // An error.
            });
        }
        // W3C's flags: sampled.
        tag(out, 16, FIXED_32);
        out.extend_from_slice(&1_u32.to_le_bytes());
    });
}

/// Appends an attribute of a span: field 9 of `Span`.
pub(crate) fn attribute(out: &mut Vec<u8>, key: &str, value: &Attribute<'_>) {
    within(out, 9, |out| {
        bytes(out, 1, key.as_bytes());
        within(out, 2, |out| match value {
            Attribute::Text(text) => bytes(out, 1, text.as_bytes()),
            Attribute::Int(value) => number(out, 3, value.cast_unsigned()),
        });
    });
}

const fn kind(kind: SpanKind) -> u64 {
    match kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
        SpanKind::Producer => 4,
        SpanKind::Consumer => 5,
    }
}

fn tag(out: &mut Vec<u8>, field: u32, wire: u32) {
    varint(out, u64::from(field << 3 | wire));
}

fn number(out: &mut Vec<u8>, field: u32, value: u64) {
    tag(out, field, VARINT);
    varint(out, value);
}

fn fixed_64(out: &mut Vec<u8>, field: u32, value: u64) {
    tag(out, field, FIXED_64);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends bytes, or a text.
pub(crate) fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    tag(out, field, BYTES);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Appends a message: what `write` writes, with its length before it.
pub(crate) fn within(out: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    tag(out, field, BYTES);
    // Most are shorter than 128 bytes, and then this is the length's place.
    let start = out.len();
    out.push(0);
    write(out);
    let length = out.len() - start - 1;
    if let Ok(short @ ..128) = u8::try_from(length) {
        out[start] = short;
        return;
    }
    let mut place = Vec::with_capacity(10);
    varint(&mut place, length as u64);
    out.splice(start..=start, place);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}
