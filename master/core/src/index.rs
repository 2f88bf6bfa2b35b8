//! Point indexes: from a key to a slot of a slab, and nothing else.
//!
//! A hash table's order is random to everybody who does not know its key, so the table is wrapped: it can be asked for
//! one key and can't be iterated. Its hash is keyed by the cluster's secret, so that clients can't choose collisions.

use std::hash::{Hash, Hasher};

use hashbrown::{HashTable, hash_table::Entry};
use siphasher::sip::SipHasher13;

use crate::mint::ClusterSecret;

/// A hash table that can't be iterated. It holds values only; the keys stand in the records that the values lead to.
///
/// A table that doubles reads every key again, and of a million records that took 400 ms. So a large one is split in
/// [`TABLES`], of which each doubles by itself.
pub(crate) struct PointIndex<T> {
    /// One, or [`TABLES`].
    tables: Vec<HashTable<T>>,
    len: usize,
    key: (u64, u64),
}

/// Parts of a large index: of a million entries one has 4,000, which are read in a millisecond.
const TABLES: usize = 256;
/// A table with as many entries is split.
const SPLIT_LEN: usize = 4_096;

impl<T> std::fmt::Debug for PointIndex<T> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "PointIndex of {}", self.len)
    }
}

impl<T: Copy + PartialEq> PointIndex<T> {
    pub(crate) fn new(secret: &ClusterSecret) -> Self {
        Self { tables: vec![HashTable::new()], len: 0, key: secret.hash_key() }
    }

    /// An index with room for so many entries: while they come, nothing is read again.
    pub(crate) fn with_room(secret: &ClusterSecret, len: usize) -> Self {
        let mut index = Self::new(secret);
        if len >= SPLIT_LEN {
            // Keys are spread evenly: few tables get an eighth more than their share.
            let share = len / TABLES + len / TABLES / 8;
            index.tables =
                std::iter::repeat_with(|| HashTable::with_capacity(share)).take(TABLES).collect();
        }
        index
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Heap in use, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.tables.capacity() * size_of::<HashTable<T>>()
            + self.tables.iter().map(HashTable::allocation_size).sum::<usize>()
    }

    pub(crate) fn get<'a, K: Hash + Eq + 'a>(
        &self,
        key: &K,
        key_of: impl Fn(T) -> &'a K,
    ) -> Option<T> {
        let hash = hash(self.key, key);
        self.tables[self.table(hash)].find(hash, |&value| key_of(value) == key).copied()
    }

    /// Adds `value`, whose key is `key` and is not in the index.
    pub(crate) fn insert<'a, K: Hash + Eq + 'a>(
        &mut self,
        key: &K,
        value: T,
        key_of: impl Fn(T) -> &'a K,
    ) {
        assert!(self.try_insert(key, value, key_of), "a point index has one value for a key");
    }

    /// Adds `value`, whose key is `key`. False if there is one with this key: then nothing changed.
    pub(crate) fn try_insert<'a, K: Hash + Eq + 'a>(
        &mut self,
        key: &K,
        value: T,
        key_of: impl Fn(T) -> &'a K,
    ) -> bool {
        let seed = self.key;
        if self.len == SPLIT_LEN && self.tables.len() == 1 {
            self.split(|value| hash(seed, key_of(value)));
        }
        let hashed = hash(seed, key);
        let table = self.table(hashed);
        let entry = self.tables[table].entry(
            hashed,
            |&there| key_of(there) == key,
            |&there| hash(seed, key_of(there)),
        );
        match entry {
            Entry::Vacant(place) => {
                place.insert(value);
                self.len += 1;
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Removes `value`, whose key is `key`.
    pub(crate) fn remove<K: Hash>(&mut self, key: &K, value: T) {
        let hash = hash(self.key, key);
        let table = self.table(hash);
        if let Ok(entry) = self.tables[table].find_entry(hash, |&there| there == value) {
            entry.remove();
            self.len -= 1;
        }
    }

    fn table(&self, hash: u64) -> usize {
        // A table looks at the lowest and the highest bits of a hash: these are others.
        if self.tables.len() == 1 { 0 } else { usize::from(hash.to_le_bytes()[5]) }
    }

    fn split(&mut self, hash_of: impl Fn(T) -> u64) {
        let whole = std::mem::take(&mut self.tables);
        self.tables.resize_with(TABLES, HashTable::new);
        // In whatever order: it shows nowhere, since the tables can't be iterated from outside.
        for value in whole.into_iter().flatten() {
            let hash = hash_of(value);
            let table = self.table(hash);
            self.tables[table].insert_unique(hash, value, |&there| hash_of(there));
        }
    }
}

/// A number for a text that nobody outside can choose: equal for equal texts, and for others as good as never.
pub(crate) fn text_number(seed: (u64, u64), text: &[u8]) -> i64 {
    let mut hasher = SipHasher13::new_with_keys(seed.0, seed.1);
    hasher.write(text);
    hasher.finish().cast_signed()
}

fn hash<K: Hash>(seed: (u64, u64), key: &K) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(seed.0, seed.1);
    key.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_is_split_finds_what_it_found_before() {
        let mut index = PointIndex::new(&ClusterSecret::from_key(b"a test's key"));
        let keys: Vec<u64> = (0..3 * SPLIT_LEN as u64).map(|n| n * 7).collect();
        let key_of = |value: usize| &keys[value];
        for (value, key) in keys.iter().enumerate() {
            index.insert(key, value, key_of);
            if value == SPLIT_LEN / 2 {
                index.remove(&keys[3], 3);
            }
        }
        assert_eq!((index.tables.len(), index.len()), (TABLES, keys.len() - 1));
        for (value, key) in keys.iter().enumerate() {
            assert_eq!(index.get(key, key_of), (value != 3).then_some(value));
        }
        for (value, key) in keys.iter().enumerate().skip(4) {
            index.remove(key, value);
        }
        assert_eq!(index.len(), 3);
    }
}
