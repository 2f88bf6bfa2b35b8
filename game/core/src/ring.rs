//! What was sent to a seat and is not acknowledged.

use std::collections::VecDeque;
use std::time::Duration;

use greenroom_protocol::Seq;
use serde::{Deserialize, Serialize};

/// Messages that are kept for one seat.
pub const RING_MESSAGES_MAX: usize = 256;
/// Bytes of messages that are kept for one seat.
pub const RING_BYTES_MAX: usize = 64 * 1024;
/// How long messages are kept for a seat that is away.
pub const RING_TIME_MAX: Duration = Duration::from_secs(30);

/// The reliable channel to one seat: numbered from 1, kept until acknowledged.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ring {
    /// Number of the oldest message kept, or of the next one.
    first: Seq,
    kept: VecDeque<Kept>,
    bytes: VecDeque<u8>,
    /// How many of those kept have left in a step.
    sent: usize,
    sent_bytes: usize,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Kept {
    kind: u8,
    len: u32,
    /// Low bits of the tick whose step sent it.
    tick: u32,
    /// When, in milliseconds of the instance.
    at: u64,
}

/// A message on its way out.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u8,
    pub(crate) number: Seq,
    pub(crate) tick: u32,
    /// The payload is one after the other.
    pub(crate) payload: (&'a [u8], &'a [u8]),
}

/// There is no room for another message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Default for Ring {
    fn default() -> Self {
        let (kept, bytes) = (VecDeque::new(), VecDeque::new());
        Self { first: Seq(1), kept, bytes, sent: 0, sent_bytes: 0 }
    }
}

impl Ring {
    /// Appends a message, `head` before `payload`.
    pub(crate) fn push(
        &mut self,
        kind: u8,
        head: &[u8],
        payload: &[u8],
        at: u64,
    ) -> Result<(), Full> {
        let len = head.len() + payload.len();
        if self.kept.len() == RING_MESSAGES_MAX || self.bytes.len() + len > RING_BYTES_MAX {
            return Err(Full);
        }
        self.bytes.extend(head);
        self.bytes.extend(payload);
        let len = u32::try_from(len).expect("compared with the bound above");
        self.kept.push_back(Kept { kind, len, tick: 0, at });
        Ok(())
    }
    /// Forgets every message up to number `up_to`. One that acknowledges what was never sent says nothing.
    pub(crate) fn acknowledge(&mut self, up_to: Seq) {
        let count = up_to.next().0.wrapping_sub(self.first.0) as usize;
        if count > self.sent {
            return;
        }
        let bytes: usize = self.kept.drain(..count).map(|kept| kept.len as usize).sum();
        self.bytes.drain(..bytes);
        self.first = Seq(self.first.0.wrapping_add(up_to.next().0.wrapping_sub(self.first.0)));
        self.sent -= count;
        self.sent_bytes -= bytes;
    }
    /// Whether something has not left yet.
    pub(crate) fn has_new(&self) -> bool {
        self.sent < self.kept.len()
    }
    /// Hands out what has not left yet, as sent in the step of `tick`.
    pub(crate) fn send_new(&mut self, tick: u32, mut message: impl FnMut(Message<'_>)) {
        for kept in self.kept.range_mut(self.sent..) {
            kept.tick = tick;
        }
        let (from, bytes) = (self.sent, self.sent_bytes);
        self.sent = self.kept.len();
        self.sent_bytes = self.bytes.len();
        self.each(from, bytes, &mut message);
    }
    /// Hands out again what has left and was not acknowledged.
    pub(crate) fn send_again(&self, mut message: impl FnMut(Message<'_>)) {
        self.each(0, 0, &mut message);
    }
    fn each(&self, from: usize, mut at: usize, message: &mut impl FnMut(Message<'_>)) {
        let (front, back) = self.bytes.as_slices();
        let mut number = Seq(self.first.0.wrapping_add(count(from)));
        for kept in self.kept.range(from..self.sent) {
            let end = at + kept.len as usize;
            let split = front.len();
            let payload = (
                &front[at.min(split)..end.min(split)],
                &back[at.saturating_sub(split)..end.saturating_sub(split)],
            );
            message(Message { kind: kept.kind, number, tick: kept.tick, payload });
            number = number.next();
            at = end;
        }
    }
    /// Number of the oldest message that is not acknowledged, else of the next one.
    pub(crate) const fn first(&self) -> Seq {
        self.first
    }
    /// When the oldest one was sent, in milliseconds of the instance.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.kept.front().map(|kept| kept.at)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a ring keeps at most 256 messages")]
const fn count(messages: usize) -> u32 {
    messages as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(message: &Message<'_>) -> Vec<u8> {
        [message.payload.0, message.payload.1].concat()
    }

    proptest! {
        /// Method: messages are pushed, sent, lost with their connection, sent again; the other end takes each once.
        #[test]
        fn every_message_arrives_once_and_in_order(
            steps in proptest::collection::vec((0usize..6, 0usize..9, any::<bool>(), any::<bool>()), 1..200),
        ) {
            let mut ring = Ring::default();
            let (mut made, mut got, mut received) = (0u32, Vec::new(), Seq(0));
            for (new, delivered, reconnect, acknowledged) in steps {
                for _ in 0..new {
                    if ring.push(1, &made.to_le_bytes(), &vec![7; made as usize % 300], 0).is_ok() { made += 1; }
                }
                let mut on_the_way = Vec::new();
                if reconnect { ring.send_again(|message| on_the_way.push((message.number, text(&message)))); }
                ring.send_new(9, |message| on_the_way.push((message.number, text(&message))));
                // The connection breaks after some of it, so what follows must come by a reconnect.
                for (number, text) in on_the_way.into_iter().take(delivered) {
                    if number == received.next() { received = number; got.push(text); }
                }
                if acknowledged { ring.acknowledge(received); }
            }
            ring.send_again(|message| if message.number == received.next() {
                received = message.number;
                got.push(text(&message));
            });
            ring.send_new(9, |_| ());
            ring.acknowledge(received);
            prop_assert_eq!(ring.first(), received.next());
            prop_assert!(ring.oldest().is_none() && ring.bytes.is_empty());
            let numbers: Vec<u32> = got.iter().map(|text| u32::from_le_bytes(*text.first_chunk().unwrap())).collect();
            prop_assert_eq!(numbers, (0..made).collect::<Vec<_>>());
        }
        #[test]
        fn an_acknowledgement_of_what_was_never_sent_changes_nothing(pushed in 0u32..5, ack: u32) {
            let mut ring = Ring::default();
            for _ in 0..pushed { ring.push(1, &[], b"x", 0).unwrap(); }
            ring.acknowledge(Seq(ack));
            prop_assert_eq!(ring.kept.len(), pushed as usize);
        }
    }

    #[test]
    fn a_ring_is_full_by_messages_or_by_bytes() {
        let mut ring = Ring::default();
        for _ in 0..RING_MESSAGES_MAX {
            assert_eq!(ring.push(1, &[], b"x", 0), Ok(()));
        }
        assert_eq!(ring.push(1, &[], b"x", 0), Err(Full));
        let mut ring = Ring::default();
        assert_eq!(ring.push(1, &[0; 4], &[0; RING_BYTES_MAX - 4], 0), Ok(()));
        assert_eq!(ring.push(1, &[], &[0], 0), Err(Full));
        assert_eq!(ring.push(1, &[], &[], 0), Ok(()));
    }

    #[test]
    fn numbers_go_on_past_their_largest() {
        let mut ring = Ring { first: Seq(u32::MAX), ..Ring::default() };
        for _ in 0..3 {
            ring.push(1, &[], b"x", 0).unwrap();
        }
        let mut numbers = Vec::new();
        ring.send_new(0, |message| numbers.push(message.number));
        assert_eq!(numbers, [Seq(u32::MAX), Seq(0), Seq(1)]);
        ring.acknowledge(Seq(0));
        assert_eq!((ring.first, ring.kept.len()), (Seq(1), 1));
    }
}
