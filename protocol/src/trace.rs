//! Which trace a message belongs to: the context of W3C's Trace Context, in 25 bytes.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name by which client and session server agree, in their hellos, that the client may send contexts.
pub const TRACE_FEATURE: &str = "trace";

/// The trace of a message and the span that sent it. Only what is sampled has one: everything else travels without, in
/// exactly the bytes that it would have if nobody ever traced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceContext {
    /// The trace: random, never all zeros.
    pub trace: [u8; 16],
    /// The span that sent it: random, never all zeros.
    pub span: [u8; 8],
}

impl TraceContext {
    /// Length in bytes.
    pub const BYTES: usize = 25;
    /// W3C's flags: sampled, and no other.
    const SAMPLED: u8 = 1;

    /// Trace id, span id, flags.
    pub fn bytes(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..16].copy_from_slice(&self.trace);
        out[16..24].copy_from_slice(&self.span);
        out[24] = Self::SAMPLED;
        out
    }

    /// Reads a context; nothing if it is none, or is not sampled. Flags that this version does not know are ignored.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (trace, rest) = bytes.split_first_chunk::<16>()?;
        let (span, flags) = rest.split_first_chunk::<8>()?;
        let [flags] = flags else { return None };
        let is_one = *trace != [0; 16] && *span != [0; 8] && flags & Self::SAMPLED != 0;
        is_one.then_some(Self { trace: *trace, span: *span })
    }

    /// The trace's id as logs show it: 32 hexadecimal digits.
    pub fn trace_id(self) -> String {
        self.trace.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl std::fmt::Debug for TraceContext {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "TraceContext({:032x}", u128::from_be_bytes(self.trace))?;
        write!(out, ", {:016x})", u64::from_be_bytes(self.span))
    }
}

/// In a message: 25 bytes.
impl Serialize for TraceContext {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        serde_bytes::serialize(&self.bytes()[..], to)
    }
}

impl<'de> Deserialize<'de> for TraceContext {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let bytes: serde_bytes::ByteBuf = Deserialize::deserialize(from)?;
        Self::from_bytes(&bytes).ok_or_else(|| D::Error::custom("this is no sampled trace context"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_context_survives_its_bytes(trace in 1u128.., span in 1u64..) {
            let context = TraceContext { trace: trace.to_be_bytes(), span: span.to_be_bytes() };
            prop_assert_eq!(TraceContext::from_bytes(&context.bytes()), Some(context));
            let encoded = crate::encode(&context);
            prop_assert_eq!(encoded.len(), 2 + TraceContext::BYTES);
            prop_assert_eq!(crate::decode::<TraceContext>(&encoded, crate::Limits::CLIENT), Ok(context));
        }
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(context) = TraceContext::from_bytes(&bytes) {
                prop_assert_eq!(&context.bytes()[..24], &bytes[..24]);
            }
        }
    }

    #[test]
    fn what_is_empty_or_not_sampled_is_no_context() {
        let context = TraceContext { trace: [1; 16], span: [2; 8] };
        let with = |change: fn(&mut [u8; 25])| {
            let mut bytes = context.bytes();
            change(&mut bytes);
            TraceContext::from_bytes(&bytes)
        };
        assert_eq!(with(|bytes| bytes[24] = 0), None);
        assert_eq!(with(|bytes| bytes[24] = 0x83), Some(context));
        assert_eq!(with(|bytes| bytes[..16].fill(0)), None);
        assert_eq!(with(|bytes| bytes[16..24].fill(0)), None);
        assert_eq!(context.trace_id(), "01".repeat(16));
    }
}
