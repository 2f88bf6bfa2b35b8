//! Both ends of a numbered stream between two servers: the sender keeps what is not acknowledged and sends it
//! again on a new link, the receiver drops what it has.

use std::collections::VecDeque;

/// The sending end: numbers what it sends from 1, keeps it until it is acknowledged.
#[derive(Debug, Clone)]
pub struct Outbound<T> {
    next: u64,
    waiting: VecDeque<T>,
}

impl<T> Default for Outbound<T> {
    fn default() -> Self {
        Self { next: 1, waiting: VecDeque::new() }
    }
}

impl<T> Outbound<T> {
    /// A stream of which everything up to number `last` was pushed and acknowledged.
    pub const fn acknowledged(last: u64) -> Self {
        Self { next: last + 1, waiting: VecDeque::new() }
    }
    /// Appends `item` and gives its number.
    pub fn push(&mut self, item: T) -> u64 {
        self.waiting.push_back(item);
        self.next += 1;
        self.next - 1
    }
    /// Forgets every item up to number `n`.
    pub fn acknowledge(&mut self, n: u64) {
        while !self.waiting.is_empty() && self.first() <= n {
            self.waiting.pop_front();
        }
    }
    /// What is not acknowledged, with its numbers, oldest first.
    pub fn unacknowledged(&self) -> impl Iterator<Item = (u64, &T)> {
        (self.first()..).zip(&self.waiting)
    }
    /// What follows number `n` and is not acknowledged, with its numbers, oldest first.
    pub fn after(&self, n: u64) -> impl Iterator<Item = (u64, &T)> {
        let first = self.first().max(n.saturating_add(1)).min(self.next);
        let skipped = usize::try_from(first - self.first()).unwrap_or(usize::MAX);
        (first..).zip(self.waiting.range(skipped.min(self.waiting.len())..))
    }
    /// Item `n`, if it was pushed and is not acknowledged.
    pub fn get(&self, n: u64) -> Option<&T> {
        self.waiting.get(usize::try_from(n.checked_sub(self.first())?).ok()?)
    }
    /// The number of the last item that was pushed; 0 before the first.
    pub const fn last(&self) -> u64 {
        self.next - 1
    }
    /// How many items are not acknowledged.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }
    /// Whether everything is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
    fn first(&self) -> u64 {
        self.next - self.waiting.len() as u64
    }
}

/// The receiving end: takes each number once, in order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inbound {
    received: u64,
}

impl Inbound {
    /// A stream that has arrived up to number `received`.
    pub const fn up_to(received: u64) -> Self {
        Self { received }
    }
    /// Whether the item with number `n` is the next one. What comes again is dropped; what comes too early is
    /// not taken either: its sender repeats all from the first that is missing.
    pub fn accept(&mut self, n: u64) -> bool {
        let next = n == self.received + 1;
        if next {
            self.received = n;
        }
        next
    }
    /// The number up to which everything was taken: what to acknowledge.
    pub const fn received(self) -> u64 {
        self.received
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Over any number of links that each lose their tail, every item arrives once and in order.
        #[test]
        fn a_stream_over_broken_links_arrives_once_and_in_order(
            links in proptest::collection::vec((0usize..8, 0usize..16, any::<bool>()), 1..40),
        ) {
            let (mut out, mut inbound) = (Outbound::default(), Inbound::default());
            let (mut made, mut got) = (0u32, Vec::new());
            for (new, delivered, acknowledged) in links {
                for _ in 0..new { made += 1; out.push(made); }
                for (n, item) in out.unacknowledged().take(delivered) {
                    if inbound.accept(n) { got.push(*item); }
                }
                for n in 0..=out.last() + 1 {
                    prop_assert!(out.after(n).eq(out.unacknowledged().filter(|(number, _)| *number > n)));
                }
                if acknowledged { out.acknowledge(inbound.received()); }
            }
            for (n, item) in out.unacknowledged() { if inbound.accept(n) { got.push(*item); } }
            out.acknowledge(inbound.received());
            prop_assert!(out.is_empty());
            prop_assert_eq!(got, (1..=made).collect::<Vec<_>>());
        }
    }
}
