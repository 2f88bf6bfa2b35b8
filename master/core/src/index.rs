//! Point indexes: from a key to a slot of a slab, and nothing else.
//!
//! A hash table's order is random to everybody who does not know its key, so the table is wrapped: it can be asked for
//! one key and can't be iterated. Its hash is keyed by the cluster's secret, so that clients can't choose collisions.

use std::hash::{Hash, Hasher};

use hashbrown::{HashTable, hash_table::Entry};
use siphasher::sip::SipHasher13;

use crate::mint::ClusterSecret;

/// A hash table that can't be iterated. It holds values only; the keys stand in the records that the values lead to.
pub(crate) struct PointIndex<T> {
    table: HashTable<T>,
    key: (u64, u64),
}

impl<T> std::fmt::Debug for PointIndex<T> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "PointIndex of {}", self.table.len())
    }
}

impl<T: Copy + PartialEq> PointIndex<T> {
    pub(crate) fn new(secret: &ClusterSecret) -> Self {
        Self { table: HashTable::new(), key: secret.hash_key() }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn get<'a, K: Hash + Eq + 'a>(
        &self,
        key: &K,
        key_of: impl Fn(T) -> &'a K,
    ) -> Option<T> {
        self.table.find(hash(self.key, key), |&value| key_of(value) == key).copied()
    }

    /// Adds `value`, whose key is `key` and is not in the index.
    pub(crate) fn insert<'a, K: Hash + Eq + 'a>(
        &mut self,
        key: &K,
        value: T,
        key_of: impl Fn(T) -> &'a K,
    ) {
        let seed = self.key;
        let entry = self.table.entry(
            hash(seed, key),
            |&there| key_of(there) == key,
            |&there| hash(seed, key_of(there)),
        );
        match entry {
            Entry::Vacant(place) => {
                place.insert(value);
            }
            Entry::Occupied(_) => panic!("a point index has one value for a key"),
        }
    }

    /// Removes `value`, whose key is `key`.
    pub(crate) fn remove<K: Hash>(&mut self, key: &K, value: T) {
        if let Ok(entry) = self.table.find_entry(hash(self.key, key), |&there| there == value) {
            entry.remove();
        }
    }
}

fn hash<K: Hash>(seed: (u64, u64), key: &K) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(seed.0, seed.1);
    key.hash(&mut hasher);
    hasher.finish()
}
