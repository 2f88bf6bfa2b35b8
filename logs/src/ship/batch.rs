//! What is put into which call, and what is through: no socket, no clock and no file here.
//!
//! Events wait in the bucket of their user, else of their instance, else of their server. A bucket has one record on
//! its way at most, and what failed stays before what is newer: that keeps the order of a bucket, since calls promise
//! none.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    id::time_of_id,
    read::{Entry, Position, Record},
};

/// Buckets that events are spread over: the partition keys of a stream.
pub const BUCKETS: u16 = 256;

/// One of the [`BUCKETS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(pub u16);

impl Bucket {
    /// The bucket of an event: all of one user go into one.
    pub fn of(event: &Entry<'_>) -> Self {
        let whose = event.user.as_ref().or(event.instance.as_ref()).unwrap_or(&event.node);
        // The hasher of `std` without a key of its own: alike in every process.
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(whose.as_bytes());
        Self(u16::try_from(hash % u64::from(BUCKETS)).unwrap_or_default())
    }
    /// The partition key.
    pub fn key(self) -> String {
        format!("{:03}", self.0)
    }
}

/// Bytes of a partition key.
pub(super) const KEY_BYTES: usize = 3;

/// What one call and one record may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records of a call.
    pub call_records_max: usize,
    /// Bytes of a call: data and keys.
    pub call_bytes_max: usize,
    /// Bytes of a record: data and key.
    pub record_bytes_max: usize,
    /// Bytes at which a record waits for no more events.
    pub record_bytes: usize,
    /// How long an event waits for others to share a record with.
    pub linger: Duration,
    /// Bytes of events that wait or are on their way; past it no more are read from the segments.
    pub buffer_bytes_max: usize,
}

/// A place in the log up to which everything is shipped, and what of the events behind it is too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Everything before it is done with.
    pub position: Position,
    /// Counted from the position, the events from the first up to before the second of each pair are shipped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shipped: Vec<(u64, u64)>,
}

/// A record that is to be put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    /// Where it belongs.
    pub bucket: Bucket,
    /// Events, each with the end of its line.
    pub data: Bytes,
    /// The numbers of its events.
    events: Vec<u64>,
}

impl Parcel {
    /// How many events are in it.
    pub fn events(&self) -> usize {
        self.events.len()
    }
    fn bytes(&self) -> usize {
        self.data.len() + KEY_BYTES
    }
}

#[derive(Debug, Default)]
struct Waiting {
    /// What failed, and comes first.
    again: Option<Parcel>,
    /// Events that are in no record yet: their numbers, when they came, and their lines.
    events: VecDeque<(u64, Duration, Bytes)>,
    bytes: usize,
    is_on_its_way: bool,
}

/// An event between its being read and its being shipped.
#[derive(Debug)]
struct Pending {
    after: Position,
    /// When it happened, in milliseconds since 1970.
    ms: u64,
    is_done: bool,
}

/// Collects events of one process's log, and gives what the next call is to put.
#[derive(Debug)]
pub struct Batcher {
    limits: Limits,
    buckets: BTreeMap<Bucket, Waiting>,
    /// Everything before it is done with.
    position: Position,
    /// Those behind it, in order; the first has the number `first`.
    pending: VecDeque<Pending>,
    first: u64,
    /// Bytes that wait or are on their way.
    bytes: usize,
}

/// What was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// Bytes of the event.
    pub bytes: usize,
}

impl Batcher {
    /// Begins where a log is shipped up to.
    pub fn new(limits: Limits, position: Position) -> Self {
        let (buckets, pending) = (BTreeMap::new(), VecDeque::new());
        Self { limits, buckets, position, pending, first: 0, bytes: 0 }
    }

    /// Whether more events may be read.
    pub fn has_room(&self) -> bool {
        self.bytes < self.limits.buffer_bytes_max
    }
    /// Whether nothing waits and nothing is on its way.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
    /// Events that were read and are not shipped.
    pub fn waiting(&self) -> usize {
        self.pending.iter().filter(|pending| !pending.is_done).count()
    }
    /// When the first of these happened, in milliseconds since 1970.
    pub fn oldest_ms(&self) -> Option<u64> {
        // What is done at the front has been settled.
        self.pending.front().map(|pending| pending.ms)
    }

    /// Takes the next event of the log.
    ///
    /// # Errors
    /// When no record may hold it: it is then done with.
    pub fn push(&mut self, record: &Record, now: Duration) -> Result<(), TooLarge> {
        let number = self.first + self.pending.len() as u64;
        self.pend(record, false);
        let bytes = record.text.len() + 1;
        if bytes + KEY_BYTES > self.limits.record_bytes_max.min(self.limits.call_bytes_max) {
            self.done(number);
            self.settle();
            return Err(TooLarge { bytes });
        }
        let mut line = Vec::with_capacity(bytes);
        line.extend_from_slice(record.text.as_bytes());
        line.push(b'\n');
        let waiting = self.buckets.entry(Bucket::of(&record.event())).or_default();
        waiting.events.push_back((number, now, line.into()));
        waiting.bytes += bytes;
        self.bytes += bytes;
        Ok(())
    }
    /// Takes an event that an earlier life has shipped already.
    pub fn skip(&mut self, record: &Record) {
        self.pend(record, true);
        self.settle();
    }

    /// The records of the next call: none if nothing is due. At the end of a life everything is.
    pub fn next_call(&mut self, now: Duration, is_ending: bool) -> Vec<Parcel> {
        let (mut call, mut bytes) = (Vec::new(), 0);
        for (bucket, waiting) in &mut self.buckets {
            if waiting.is_on_its_way || call.len() == self.limits.call_records_max {
                continue;
            }
            if waiting.again.is_none() {
                let is_old = waiting
                    .events
                    .front()
                    .is_some_and(|(_, since, _)| now.saturating_sub(*since) >= self.limits.linger);
                if !(is_old || is_ending || waiting.bytes >= self.limits.record_bytes) {
                    continue;
                }
                waiting.again = waiting.pack(*bucket, &self.limits);
            }
            // What does not fit into this call is in the next one.
            let fits = waiting
                .again
                .take_if(|parcel| bytes + parcel.bytes() <= self.limits.call_bytes_max);
            if let Some(parcel) = fits {
                bytes += parcel.bytes();
                waiting.is_on_its_way = true;
                call.push(parcel);
            }
        }
        call
    }
    /// When the next call is due, if nothing else comes: nothing if nothing waits.
    pub fn next_due(&self) -> Option<Duration> {
        let idle = self.buckets.values().filter(|waiting| !waiting.is_on_its_way);
        let due = |waiting: &Waiting| match &waiting.again {
            Some(_) => Some(Duration::ZERO),
            None => waiting.events.front().map(|(_, since, _)| *since + self.limits.linger),
        };
        idle.filter_map(due).min()
    }

    /// A record is in the stream.
    pub fn shipped(&mut self, parcel: &Parcel) {
        for number in &parcel.events {
            self.done(*number);
        }
        self.bytes -= parcel.data.len();
        if let Some(waiting) = self.buckets.get_mut(&parcel.bucket) {
            waiting.is_on_its_way = false;
        }
        self.settle();
    }
    /// A record is not in the stream, or nobody knows: it is put again before anything else of its bucket.
    pub fn failed(&mut self, parcel: Parcel) {
        if let Some(waiting) = self.buckets.get_mut(&parcel.bucket) {
            waiting.is_on_its_way = false;
            waiting.again = Some(parcel);
        }
    }

    /// What is to be kept on disk, so that a next life ships nothing again and leaves nothing out.
    pub fn progress(&self) -> Progress {
        let mut shipped: Vec<(u64, u64)> = Vec::new();
        for (at, _) in self.pending.iter().enumerate().filter(|(_, pending)| pending.is_done) {
            let at = at as u64;
            match shipped.last_mut() {
                Some((_, end)) if *end == at => *end += 1,
                _ => shipped.push((at, at + 1)),
            }
        }
        Progress { position: self.position.clone(), shipped }
    }

    fn pend(&mut self, record: &Record, is_done: bool) {
        let ms = time_of_id(record.id()).unwrap_or(0);
        self.pending.push_back(Pending { after: record.after.clone(), ms, is_done });
    }
    fn done(&mut self, number: u64) {
        let at = usize::try_from(number - self.first).unwrap_or(usize::MAX);
        if let Some(pending) = self.pending.get_mut(at) {
            pending.is_done = true;
        }
    }
    /// Moves the position over what is done.
    fn settle(&mut self) {
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.is_done) {
            self.position = pending.after;
            self.first += 1;
        }
    }
}

impl Waiting {
    /// Makes a record of the oldest events that wait; nothing if none do.
    fn pack(&mut self, bucket: Bucket, limits: &Limits) -> Option<Parcel> {
        let most = limits.record_bytes.min(limits.record_bytes_max - KEY_BYTES);
        let (mut events, mut data) = (Vec::new(), Vec::new());
        while let Some((number, _, line)) = self
            .events
            .pop_front_if(|(_, _, line)| data.is_empty() || data.len() + line.len() <= most)
        {
            events.push(number);
            data.extend_from_slice(&line);
        }
        self.bytes -= data.len();
        (!events.is_empty()).then(|| Parcel { bucket, data: data.into(), events })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::id::Stamp;

    fn limits() -> Limits {
        Limits {
            call_records_max: 3,
            call_bytes_max: 2_000,
            record_bytes_max: 900,
            record_bytes: 600,
            linger: Duration::from_millis(200),
            buffer_bytes_max: 8_000,
        }
    }

    fn start() -> Position {
        Position { process: "game-1".into(), segment: 1, offset: 0 }
    }

    fn record(number: u64, user: u8, padding: usize) -> Record {
        let id = format!("{number:026}");
        let text = format!(
            r#"{{"id":"{id}","ts":"2026-11-28T00:00:00.000Z","node":"g","role":"game",{}"fields":{{"p":"{}"}}}}"#,
            format_args!(r#""kind":"k","v":1,"severity":"info","user":"u{user}","#),
            "x".repeat(padding)
        );
        let after = Position { offset: (number + 1) * 10, ..start() };
        Record { after, text }
    }

    fn ids(data: &[u8]) -> Vec<u64> {
        let text = std::str::from_utf8(data).unwrap();
        text.lines().map(|line| line[7..33].parse().unwrap()).collect()
    }

    #[test]
    fn an_event_waits_for_others_but_not_for_long() {
        let mut batcher = Batcher::new(limits(), start());
        batcher.push(&record(0, 1, 0), Duration::ZERO).unwrap();
        assert_eq!(batcher.next_call(Duration::from_millis(199), false), []);
        assert_eq!(batcher.next_due(), Some(Duration::from_millis(200)));
        let call = batcher.next_call(Duration::from_millis(200), false);
        assert_eq!((call.len(), ids(&call[0].data)), (1, vec![0]));
    }

    #[test]
    fn how_far_the_stream_is_behind_is_the_age_of_the_first_event_that_is_not_in_it() {
        let mut batcher = Batcher::new(limits(), start());
        assert_eq!((batcher.waiting(), batcher.oldest_ms()), (0, None));
        let [first, second] = [3, 5].map(|ms| {
            let id = Stamp { ms, distinct: 0 }.id();
            let text = record(0, u8::try_from(ms).unwrap(), 0).text;
            let text = text.replace(&format!("{:026}", 0), std::str::from_utf8(&id).unwrap());
            Record { text, ..record(ms, 0, 0) }
        });
        batcher.push(&first, Duration::ZERO).unwrap();
        batcher.push(&second, Duration::ZERO).unwrap();
        assert_eq!((batcher.waiting(), batcher.oldest_ms()), (2, Some(3)));
        let mut call = batcher.next_call(Duration::ZERO, true);
        call.sort_by_key(|parcel| parcel.events.clone());
        batcher.shipped(&call[1]);
        assert_eq!(
            (batcher.waiting(), batcher.oldest_ms()),
            (1, Some(3)),
            "the first is not there"
        );
        batcher.shipped(&call[0]);
        assert_eq!((batcher.waiting(), batcher.oldest_ms()), (0, None));
    }

    #[test]
    fn nothing_newer_of_a_bucket_leaves_while_a_record_of_it_is_on_its_way_or_failed() {
        let mut batcher = Batcher::new(limits(), start());
        batcher.push(&record(0, 1, 0), Duration::ZERO).unwrap();
        let first = batcher.next_call(Duration::ZERO, true).remove(0);
        batcher.push(&record(1, 1, 0), Duration::ZERO).unwrap();
        assert_eq!(batcher.next_call(Duration::from_secs(9), true), []);
        batcher.failed(first.clone());
        assert_eq!(batcher.next_call(Duration::from_secs(9), true), std::slice::from_ref(&first));
        batcher.shipped(&first);
        assert_eq!(ids(&batcher.next_call(Duration::from_secs(9), true)[0].data), [1]);
    }

    #[test]
    fn what_fits_no_record_is_done_with_and_holds_nothing_up() {
        let mut batcher = Batcher::new(limits(), start());
        let large = record(0, 1, 2_000);
        assert_eq!(
            batcher.push(&large, Duration::ZERO),
            Err(TooLarge { bytes: large.text.len() + 1 })
        );
        assert_eq!(batcher.progress(), Progress { position: large.after, shipped: vec![] });
    }

    proptest! {
        /// Method: events of a few users, calls that fail in parts, in any order of answers; now and then a new life
        /// begins from the progress that was kept.
        #[test]
        fn everything_is_shipped_once_in_order_and_within_the_limits(
            events in prop::collection::vec((0u8..5, 0usize..300), 1..80),
            seed in 1u64..,
        ) {
            let all: Vec<Record> =
                (0..).zip(&events).map(|(number, (user, padding))| record(number, *user, *padding)).collect();
            // xorshift64: what happens next.
            let mut luck = seed;
            let mut next = || {
                luck ^= luck << 13;
                luck ^= luck >> 7;
                luck ^= luck << 17;
                luck.to_le_bytes()[3]
            };
            let mut batcher = Batcher::new(limits(), start());
            let (mut stream, mut under_way): (Vec<(Bucket, Vec<u64>)>, Vec<Parcel>) = (vec![], vec![]);
            let (mut read, mut now) = (0, Duration::ZERO);
            for _ in 0..20_000 {
                now += Duration::from_millis(50);
                match next() % 4 {
                    0 if read < all.len() && batcher.has_room() => {
                        batcher.push(&all[read], now).unwrap();
                        read += 1;
                    }
                    1 => {
                        let call = batcher.next_call(now, read == all.len());
                        prop_assert!(call.len() <= limits().call_records_max);
                        let bytes: usize = call.iter().map(Parcel::bytes).sum();
                        prop_assert!(bytes <= limits().call_bytes_max);
                        prop_assert!(call.iter().all(|parcel| parcel.bytes() <= limits().record_bytes_max));
                        under_way.extend(call);
                    }
                    2 if !under_way.is_empty() => {
                        let parcel = under_way.swap_remove(usize::from(next()) % under_way.len());
                        if next() % 3 == 0 {
                            batcher.failed(parcel);
                        } else {
                            stream.push((parcel.bucket, ids(&parcel.data)));
                            batcher.shipped(&parcel);
                        }
                    }
                    _ if next() == 0 => {
                        // A new life: what was on its way is not known to be shipped.
                        let progress = batcher.progress();
                        let text = serde_json::to_string(&progress).unwrap();
                        let kept: Progress = serde_json::from_str(&text).unwrap();
                        under_way.clear();
                        batcher = Batcher::new(limits(), kept.position.clone());
                        let from = all.iter().take_while(|record| record.after.offset <= kept.position.offset).count();
                        for (at, record) in (0u64..).zip(&all[from..read]) {
                            match kept.shipped.iter().any(|(first, end)| (*first..*end).contains(&at)) {
                                true => batcher.skip(record),
                                false => batcher.push(record, now).unwrap(),
                            }
                        }
                    }
                    _ => {}
                }
                if read == all.len() && batcher.is_empty() {
                    break;
                }
            }
            prop_assert!(batcher.is_empty() && read == all.len(), "it never ended");
            prop_assert_eq!(batcher.bytes, 0);
            let shipped: Vec<u64> = stream.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
            let once: BTreeSet<u64> = shipped.iter().copied().collect();
            prop_assert_eq!(once.len(), shipped.len(), "something was shipped twice");
            prop_assert_eq!(once.len(), all.len(), "something was left out");
            for bucket in (0..BUCKETS).map(Bucket) {
                let of: Vec<u64> =
                    stream.iter().filter(|(of, _)| *of == bucket).flat_map(|(_, ids)| ids.clone()).collect();
                prop_assert!(of.is_sorted(), "{:?} is out of order: {:?}", bucket, of);
            }
            let end = all[all.len() - 1].after.clone();
            prop_assert_eq!(batcher.progress(), Progress { position: end, shipped: vec![] });
        }
    }
}
