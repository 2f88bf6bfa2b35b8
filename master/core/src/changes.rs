//! What changed since the state was hashed, and since each snapshot under way was taken.
//!
//! *Takes*: each record of a large table before it changes for the first time since then: [`State::touch`].
//! *Gives*: leave to change it, [`Touched`], without which [`Records`] or [`Rows`] give no record out to be changed.
//! *Owns*: the sum of the hashes of records, and what snapshots under way have yet to be given of the past.
//! *Never*: a copy or a hash of a table as a whole.
//!
//! So neither a snapshot nor the hash can miss a change. Small tables are copied and hashed as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use greenroom_protocol::{KindName, RequestId, SessionId, encode_compact_into};
use siphasher::sip128::{Hasher128, SipHasher13};
use slab::Slab;

use crate::directory::{At, Instance, slot_of};
use crate::mint::ClusterSecret;
use crate::record::Record;
use crate::state::State;

/// Where a record of a large table is. The order is that in which a snapshot gives them: what others name comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RowKey {
    /// A message to a session server: the server's place and the message's number.
    ToSession(u32, u64),
    /// A message to a game server.
    ToGame(u32, u64),
    Instance(At),
    Session(u32),
    /// A member of a rank board: the board's number and the member's slot.
    Member(u64, u32),
    Departed(u64),
    Group(u64),
    Place(SessionId, RequestId),
    WatchEnded(SessionId, RequestId),
}

/// A record of a large table.
pub(crate) trait Tracked {
    /// What it is found by.
    type At: Copy + Ord;
    fn key(at: Self::At) -> RowKey;
}

/// A row that stands in a slab.
pub(crate) trait TrackedSlot: Tracked {
    fn slot(at: Self::At) -> u32;
}

/// Leave to change one record: what it was is known to the hash and to every snapshot that needs it.
#[derive(Debug)]
pub(crate) struct Touched<T: Tracked> {
    at: T::At,
    record: PhantomData<fn() -> T>,
}

impl<T: Tracked> Touched<T> {
    pub(crate) fn at(&self) -> T::At {
        self.at
    }
}

/// Leave to change every instance of one kind.
#[derive(Debug)]
pub(crate) struct TouchedAll(());

/// Records by slot, which are changed only by who has leave to.
#[derive(Debug)]
pub(crate) struct Records<T>(Slab<T>);

impl<T> Default for Records<T> {
    fn default() -> Self {
        Self(Slab::new())
    }
}

impl<T> Deref for Records<T> {
    type Target = Slab<T>;

    fn deref(&self) -> &Slab<T> {
        &self.0
    }
}

impl<T: TrackedSlot> Records<T> {
    pub(crate) fn get_mut(&mut self, touched: &Touched<T>) -> &mut T {
        &mut self.0[T::slot(touched.at) as usize]
    }
    /// Adds a record, and gives its slot, of which `at` makes what it is found by.
    pub(crate) fn insert(
        &mut self,
        ledger: &mut Ledger,
        record: T,
        at: impl FnOnce(u32) -> T::At,
    ) -> u32 {
        let slot = slot_of(self.0.insert(record));
        ledger.added::<T>(at(slot));
        slot
    }
    pub(crate) fn remove(&mut self, touched: &Touched<T>) -> T {
        self.0.remove(T::slot(touched.at) as usize)
    }
    /// Makes room for one more record, and for an eighth more where there are many: a table that doubles, as it would
    /// by itself, is half empty after it did.
    pub(crate) fn make_room(&mut self) {
        make_room(&mut self.0);
    }
    pub(crate) fn change_all(&mut self, _: &TouchedAll, mut change: impl FnMut(&mut T)) {
        self.0.iter_mut().for_each(|(_, record)| change(record));
    }
    /// The first slot from this one on that has a record.
    pub(crate) fn next(&self, slot: u32) -> Option<u32> {
        (slot..slot_of(self.0.capacity())).find(|&slot| self.0.contains(slot as usize))
    }
}

/// The same for a slab of records that are no rows.
pub(crate) fn make_room<T>(records: &mut Slab<T>) {
    if records.len() == records.capacity() {
        records.reserve_exact((records.len() / 8).max(4));
    }
}

/// Records by a key of their own, which are changed only by who has leave to.
#[derive(Debug)]
pub(crate) struct Rows<T: Tracked>(BTreeMap<T::At, T>);

impl<T: Tracked> Default for Rows<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Tracked> Deref for Rows<T> {
    type Target = BTreeMap<T::At, T>;

    fn deref(&self) -> &BTreeMap<T::At, T> {
        &self.0
    }
}

impl<T: Tracked> Rows<T> {
    pub(crate) fn get_mut(&mut self, touched: &Touched<T>) -> Option<&mut T> {
        self.0.get_mut(&touched.at)
    }
    /// Writes a record, new or not, and gives the one that was there.
    pub(crate) fn set(&mut self, touched: &Touched<T>, record: T) -> Option<T> {
        self.0.insert(touched.at, record)
    }
    pub(crate) fn remove(&mut self, touched: &Touched<T>) -> Option<T> {
        self.0.remove(&touched.at)
    }
}

/// A set of slots.
#[derive(Debug, Default)]
struct Slots(Vec<u64>);

impl Slots {
    fn contains(&self, slot: u32) -> bool {
        self.0.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }
    /// False if it is there already.
    fn insert(&mut self, slot: u32) -> bool {
        let place = slot as usize / 64;
        if self.0.len() <= place {
            self.0.resize(place + 1, 0);
        }
        let is_new = !self.contains(slot);
        self.0[place] |= 1 << (slot % 64);
        is_new
    }
    fn remove(&mut self, slot: u32) {
        if let Some(word) = self.0.get_mut(slot as usize / 64) {
            *word &= !(1 << (slot % 64));
        }
    }
}

/// Records that may be dirty before they are hashed without being asked for. More than commands between two comparisons
/// of hashes usually change.
const DIRTY_MAX: usize = 8_192;

/// Records whose hashes are not in the sum: they changed since the state was hashed.
#[derive(Debug, Default)]
struct Dirty {
    sessions: Slots,
    /// By shard.
    instances: Vec<Slots>,
    /// Those in the two sets above, each once.
    slots: Vec<RowKey>,
    others: BTreeSet<RowKey>,
}

impl Dirty {
    fn contains(&self, key: RowKey) -> bool {
        match key {
            RowKey::Session(slot) => self.sessions.contains(slot),
            RowKey::Instance(at) => {
                self.instances.get(at.shard as usize).is_some_and(|of| of.contains(at.slot))
            }
            RowKey::ToSession(..)
            | RowKey::ToGame(..)
            | RowKey::Member(..)
            | RowKey::Departed(_)
            | RowKey::Group(_)
            | RowKey::Place(..)
            | RowKey::WatchEnded(..) => self.others.contains(&key),
        }
    }
    /// False if it is there already.
    fn insert(&mut self, key: RowKey) -> bool {
        let is_new = match key {
            RowKey::Session(slot) => self.sessions.insert(slot),
            RowKey::Instance(at) => {
                let shard = at.shard as usize;
                if self.instances.len() <= shard {
                    self.instances.resize_with(shard + 1, Slots::default);
                }
                self.instances[shard].insert(at.slot)
            }
            RowKey::ToSession(..)
            | RowKey::ToGame(..)
            | RowKey::Member(..)
            | RowKey::Departed(_)
            | RowKey::Group(_)
            | RowKey::Place(..)
            | RowKey::WatchEnded(..) => return self.others.insert(key),
        };
        if is_new {
            self.slots.push(key);
        }
        is_new
    }
    fn len(&self) -> usize {
        self.slots.len() + self.others.len()
    }
    fn iter(&self) -> impl Iterator<Item = RowKey> + '_ {
        self.slots.iter().chain(&self.others).copied()
    }
    /// Empties it, and gives what was in it.
    fn take(&mut self) -> (Vec<RowKey>, BTreeSet<RowKey>) {
        let (slots, others) = (std::mem::take(&mut self.slots), std::mem::take(&mut self.others));
        for key in &slots {
            match *key {
                RowKey::Session(slot) => self.sessions.remove(slot),
                RowKey::Instance(at) => self.instances[at.shard as usize].remove(at.slot),
                RowKey::ToSession(..)
                | RowKey::ToGame(..)
                | RowKey::Member(..)
                | RowKey::Departed(_)
                | RowKey::Group(_)
                | RowKey::Place(..)
                | RowKey::WatchEnded(..) => {}
            }
        }
        (slots, others)
    }
}

/// A snapshot under way. When it is dropped, what was kept for it is given back.
#[derive(Debug)]
pub struct Frozen(Arc<()>);

/// What a snapshot has yet to be given.
#[derive(Debug)]
struct Copying {
    of: Weak<()>,
    /// The small tables, as they were.
    front: std::vec::IntoIter<Record>,
    /// The last record that was read. Changes of those up to it do not matter any more.
    read: Option<RowKey>,
    is_over: bool,
    /// Records that have changed and were not read: what they were, or nothing for those that were not there.
    saved: BTreeMap<RowKey, Option<Record>>,
}

impl Copying {
    fn lacks(&self, key: RowKey) -> bool {
        !self.is_over && self.read.is_none_or(|read| read < key) && !self.saved.contains_key(&key)
    }
}

/// Who knows what records were.
#[derive(Debug)]
pub(crate) struct Ledger {
    hashing: Hashing,
    /// The sum of the hashes of the records of large tables, but for those that are dirty.
    sum: u128,
    dirty: Dirty,
    copies: Vec<Copying>,
    bytes: Vec<u8>,
}

/// The hash of a record. Nobody without the cluster's secret can make two records with the same.
#[derive(Clone, Copy)]
struct Hashing {
    key: (u64, u64),
}

impl std::fmt::Debug for Hashing {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Hashing(***)")
    }
}

impl Hashing {
    fn hash(self, record: &Record, bytes: &mut Vec<u8>) -> u128 {
        bytes.clear();
        encode_compact_into(record, bytes);
        self.hash_bytes(bytes)
    }

    fn hash_bytes(self, bytes: &[u8]) -> u128 {
        let mut hasher = SipHasher13::new_with_keys(self.key.0, self.key.1);
        hasher.write(bytes);
        hasher.finish128().as_u128()
    }
}

impl Ledger {
    pub(crate) fn new(secret: &ClusterSecret) -> Self {
        Self {
            hashing: Hashing { key: secret.state_key() },
            sum: 0,
            dirty: Dirty::default(),
            copies: Vec::new(),
            bytes: Vec::new(),
        }
    }

    /// Gives leave to change a record, which is `was` now.
    pub(crate) fn touch<T: Tracked>(
        &mut self,
        at: T::At,
        was: impl FnOnce() -> Option<Record>,
    ) -> Touched<T> {
        let key = T::key(at);
        if self.lacks(key) {
            self.save(key, was().as_ref());
        }
        Touched { at, record: PhantomData }
    }

    /// A record is new.
    pub(crate) fn added<T: Tracked>(&mut self, at: T::At) {
        let _: Touched<T> = self.touch(at, || None);
    }

    /// Whether somebody has to know what the record is before it changes.
    fn lacks(&self, key: RowKey) -> bool {
        !self.dirty.contains(key) || self.copies.iter().any(|copy| copy.lacks(key))
    }

    fn save(&mut self, key: RowKey, was: Option<&Record>) {
        if self.dirty.insert(key)
            && let Some(was) = was
        {
            self.sum = self.sum.wrapping_sub(self.hashing.hash(was, &mut self.bytes));
        }
        for copy in &mut self.copies {
            if copy.lacks(key) {
                copy.saved.insert(key, was.cloned());
            }
        }
    }

    /// Gives back what was kept for snapshots that nobody reads any more.
    fn tidy(&mut self) {
        if !self.copies.is_empty() {
            self.copies.retain(|copy| copy.of.strong_count() > 0);
        }
    }
}

impl State {
    /// Gives leave to change a record.
    pub(crate) fn touch<T: Tracked>(&mut self, at: T::At) -> Touched<T> {
        let key = T::key(at);
        if !self.ledger.dirty.contains(key) {
            self.ledger.dirty.insert(key);
            let hash = self.hash_of(key);
            self.ledger.sum = self.ledger.sum.wrapping_sub(hash);
        }
        if self.ledger.copies.iter().any(|copy| copy.lacks(key)) {
            let was = self.record(key);
            self.ledger.save(key, was.as_ref());
        }
        Touched { at, record: PhantomData }
    }

    /// Gives leave to change every instance of a kind.
    pub(crate) fn touch_all(&mut self, kind: &KindName) -> TouchedAll {
        let all: Vec<At> = self.directory.of_kind(kind).collect();
        for at in all {
            let _: Touched<Instance> = self.touch(at);
        }
        TouchedAll(())
    }

    /// A hash of everything that later commands depend on: equal states have equal hashes, whoever has them. It takes
    /// as long as more has changed since it was last asked for.
    ///
    /// # Panics
    /// When a command was not applied to its end.
    pub fn check(&mut self) -> u128 {
        self.assert_whole();
        self.settle();
        self.state_hash()
    }

    /// Gives back what was kept for snapshots that nobody reads any more, and lets no more records be dirty than can be
    /// hashed in some milliseconds: for who seldom asks for the hash.
    pub(crate) fn tidy_changes(&mut self) {
        self.ledger.tidy();
        if self.ledger.dirty.len() > DIRTY_MAX {
            self.settle();
        }
    }

    /// The hash of a record, 0 if there is none.
    fn hash_of(&mut self, key: RowKey) -> u128 {
        let mut bytes = std::mem::take(&mut self.ledger.bytes);
        bytes.clear();
        let is_there = self.encode_record(key, &mut bytes);
        let hash = if is_there { self.ledger.hashing.hash_bytes(&bytes) } else { 0 };
        self.ledger.bytes = bytes;
        hash
    }

    /// Brings the sum of hashes up to date.
    fn settle(&mut self) {
        let (slots, others) = self.ledger.dirty.take();
        for key in slots.into_iter().chain(others) {
            let hash = self.hash_of(key);
            self.ledger.sum = self.ledger.sum.wrapping_add(hash);
        }
    }

    /// The hash that [`State::check`] gives, for who may only look.
    pub fn state_hash(&self) -> u128 {
        let dirty = self.ledger.dirty.iter().filter_map(|key| self.record(key));
        self.ledger.sum.wrapping_add(self.sum_of(self.front().chain(dirty)))
    }

    /// The same, from all records: what [`State::state_hash`] has to be equal to. For tests and simulations.
    pub fn state_hash_in_full(&self) -> u128 {
        self.sum_of(self.records())
    }

    fn sum_of(&self, records: impl Iterator<Item = Record>) -> u128 {
        let (hashing, mut bytes) = (self.ledger.hashing, Vec::new());
        records.fold(0, |sum: u128, record| sum.wrapping_add(hashing.hash(&record, &mut bytes)))
    }

    /// Begins a snapshot of the state as it is now, whatever is applied later. Small tables are copied at once, of the
    /// large ones what is changed before it is read.
    ///
    /// # Panics
    /// When a command was not applied to its end.
    pub fn freeze(&mut self) -> Frozen {
        self.assert_whole();
        let frozen = Frozen(Arc::new(()));
        self.ledger.tidy();
        let front: Vec<Record> = self.front().collect();
        self.ledger.copies.push(Copying {
            of: Arc::downgrade(&frozen.0),
            front: front.into_iter(),
            read: None,
            is_over: false,
            saved: BTreeMap::new(),
        });
        frozen
    }

    /// The next records of a snapshot, about `max` at most, and none after the last. All of them are what
    /// [`State::records`] gave when it was begun.
    ///
    /// # Panics
    /// When the snapshot is of another state, or a command was not applied to its end.
    pub fn next_records(&mut self, frozen: &Frozen, max: usize) -> Vec<Record> {
        self.assert_whole();
        let is_it = |copy: &Copying| std::ptr::eq(copy.of.as_ptr(), Arc::as_ptr(&frozen.0));
        let place = self.ledger.copies.iter().position(is_it);
        let place = place.expect("a snapshot is read from the state that it was taken of");
        let copy = &mut self.ledger.copies[place];
        let mut records: Vec<Record> = copy.front.by_ref().take(max).collect();
        let mut weight = records.len();
        let (mut read, mut is_over) = (copy.read, copy.is_over);
        let mut saved = std::mem::take(&mut copy.saved);
        while !is_over && (weight < max || records.is_empty()) {
            let there = self.key_after(read);
            let was = saved.first_key_value().map(|(&key, _)| key);
            let Some(key) = there.into_iter().chain(was).min() else {
                is_over = true;
                break;
            };
            let record =
                if was == Some(key) { saved.remove(&key).flatten() } else { self.record(key) };
            read = Some(key);
            weight += record.as_ref().map_or(1, Record::weight);
            records.extend(record);
        }
        let copy = &mut self.ledger.copies[place];
        (copy.read, copy.is_over, copy.saved) = (read, is_over, saved);
        records
    }
}
