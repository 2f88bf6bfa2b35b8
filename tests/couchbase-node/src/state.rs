//! Everything that the nodes of a cluster know: nodes, buckets with their maps and documents, users.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::Ports;
use crate::journal::{DocumentRecord, Journal, Record};
use crate::wire::{Durability, Status, datatype};

/// Bytes of the largest document.
pub const DOCUMENT_BYTES_MAX: usize = 20 * 1024 * 1024;

/// Bytes of the longest key, and of one in a collection other than the default one.
pub(crate) const KEY_BYTES_MAX: usize = 250;
pub(crate) const KEY_IN_COLLECTION_BYTES_MAX: usize = 246;

/// The number of the default collection, and the first that a cluster gives away.
const DEFAULT_COLLECTION: u32 = 0;
const FIRST_COLLECTION: u32 = 8;

/// An expiry of up to this many seconds is counted from the write; a longer one is a time.
const RELATIVE_EXPIRY_MAX: u64 = 30 * 24 * 3600;

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Read documents.
    Read,
    /// Write documents.
    Write,
    /// Run queries.
    Query,
    /// Create and drop scopes, collections and indexes.
    Manage,
}

/// Somebody who may log in.
#[derive(Debug, Clone)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
    /// What the user may do.
    pub rights: BTreeSet<Right>,
}

impl User {
    /// A user with every right.
    pub fn administrator(name: impl Into<String>, password: impl Into<String>) -> Self {
        let rights = [Right::Read, Right::Write, Right::Query, Right::Manage].into();
        Self { name: name.into(), password: password.into(), rights }
    }
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) ports: Ports,
    /// Listens and answers.
    pub(crate) is_up: bool,
    /// Counts as part of the cluster; a node that was failed over does not.
    pub(crate) is_member: bool,
}

/// The identity of a document in a bucket: the number of its collection, and its key.
pub(crate) type Key = (u32, Bytes);

#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) cas: u64,
    pub(crate) seqno: u64,
    pub(crate) flags: u32,
    /// Seconds since 1970, or 0.
    pub(crate) expiry: u64,
    /// Bits of [`datatype`].
    pub(crate) datatype: u8,
    /// As sent, so perhaps compressed.
    pub(crate) value: Bytes,
    pub(crate) xattrs: Map<String, Value>,
    /// Only remembered: the document was removed.
    pub(crate) is_deleted: bool,
}

impl Document {
    /// The value without compression.
    pub(crate) fn plain(&self) -> Bytes {
        if self.datatype & datatype::SNAPPY == 0 {
            return self.value.clone();
        }
        let plain = snap::raw::Decoder::new().decompress_vec(&self.value);
        plain.expect("the value was decompressed once when it came").into()
    }

    pub(crate) fn is_there(&self, now: u64) -> bool {
        !self.is_deleted && (self.expiry == 0 || self.expiry > now)
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Lock {
    pub(crate) until: u64,
    pub(crate) cas: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Collection {
    pub(crate) id: u32,
    /// Seconds; 0 for none.
    pub(crate) max_ttl: u64,
    pub(crate) history: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Scope {
    pub(crate) id: u32,
    pub(crate) collections: BTreeMap<String, Collection>,
}

/// An index over a collection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Index {
    pub(crate) name: String,
    pub(crate) scope: String,
    pub(crate) collection: String,
    /// The indexed expressions as text; empty for an index of all keys.
    pub(crate) keys: Vec<String>,
    pub(crate) condition: Option<String>,
    pub(crate) is_built: bool,
}

/// What of a bucket is kept apart from its documents.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BucketRecord {
    pub(crate) name: String,
    /// Copies beside the active one.
    pub(crate) copies: u8,
    pub(crate) vbuckets: u16,
    pub(crate) is_flushable: bool,
    pub(crate) is_ephemeral: bool,
    pub(crate) quota_mb: u64,
    pub(crate) max_ttl: u64,
    pub(crate) manifest: u64,
    pub(crate) next_id: u32,
    pub(crate) scopes: BTreeMap<String, Scope>,
    pub(crate) indexes: Vec<Index>,
}

impl BucketRecord {
    pub(crate) fn new(name: impl Into<String>, vbuckets: u16, copies: u8) -> Self {
        let default = Collection { id: DEFAULT_COLLECTION, max_ttl: 0, history: false };
        let scope = Scope { id: 0, collections: [("_default".to_owned(), default)].into() };
        Self {
            name: name.into(),
            copies,
            vbuckets,
            is_flushable: false,
            is_ephemeral: false,
            quota_mb: 256,
            max_ttl: 0,
            manifest: 1,
            next_id: FIRST_COLLECTION,
            scopes: [("_default".to_owned(), scope)].into(),
            indexes: Vec::new(),
        }
    }

    pub(crate) fn take_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    pub(crate) fn collection(&self, scope: &str, collection: &str) -> Option<&Collection> {
        self.scopes.get(scope)?.collections.get(collection)
    }

    pub(crate) fn collection_by_id(&self, id: u32) -> Option<&Collection> {
        let scopes = self.scopes.values();
        scopes.flat_map(|scope| scope.collections.values()).find(|collection| collection.id == id)
    }
}

#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) record: BucketRecord,
    /// For each part, the nodes that hold it, the active first.
    pub(crate) map: Vec<Vec<Option<usize>>>,
    /// What each node holds.
    copies: Vec<BTreeMap<Key, Document>>,
    locks: HashMap<Key, Lock>,
    /// The number of the newest write of each part.
    seqnos: Vec<u64>,
}

impl Bucket {
    fn new(record: BucketRecord, members: &[usize], nodes: usize) -> Self {
        let mut bucket = Self {
            map: Vec::new(),
            copies: vec![BTreeMap::new(); nodes],
            locks: HashMap::new(),
            seqnos: vec![0; usize::from(record.vbuckets)],
            record,
        };
        bucket.spread(members);
        bucket
    }

    /// Spreads the parts over the members, evenly.
    fn spread(&mut self, members: &[usize]) {
        let copies = usize::from(self.record.copies) + 1;
        self.map = (0..usize::from(self.record.vbuckets))
            .map(|part| {
                let node = |copy: usize| {
                    (copy < members.len()).then(|| members[(part + copy) % members.len()])
                };
                (0..copies).map(node).collect()
            })
            .collect();
    }

    /// The part that a key belongs to.
    pub(crate) fn part_of(&self, key: &[u8]) -> u16 {
        let hash = (crc32fast::hash(key) >> 16) & 0x7fff;
        u16::try_from(hash % u32::from(self.record.vbuckets)).expect("it is less than 16 bits")
    }

    pub(crate) fn active(&self, part: u16) -> Option<usize> {
        *self.map.get(usize::from(part))?.first()?
    }

    /// The document as this node has it, gone or not.
    pub(crate) fn any(&self, node: usize, key: &Key) -> Option<&Document> {
        self.copies[node].get(key)
    }

    /// The document as this node has it, if it is there.
    pub(crate) fn get(&self, node: usize, key: &Key, now: u64) -> Option<&Document> {
        self.any(node, key).filter(|document| document.is_there(now))
    }

    /// The lock that holds now, if any.
    pub(crate) fn lock(&self, key: &Key, now: u64) -> Option<Lock> {
        self.locks.get(key).copied().filter(|lock| lock.until > now)
    }

    pub(crate) fn set_lock(&mut self, key: Key, lock: Option<Lock>) {
        match lock {
            Some(lock) => self.locks.insert(key, lock),
            None => self.locks.remove(&key),
        };
    }

    /// Every document of a collection that is there, from the active copies, by key.
    pub(crate) fn documents(&self, collection: u32, now: u64) -> Vec<(&Bytes, &Document)> {
        let mut found: Vec<_> = (self.copies.iter().enumerate())
            .flat_map(|(node, copy)| {
                let range = (collection, Bytes::new())..(collection + 1, Bytes::new());
                copy.range(range)
                    .filter(move |(key, _)| self.active(self.part_of(&key.1)) == Some(node))
            })
            .filter(|(_, document)| document.is_there(now))
            .map(|(key, document)| (&key.1, document))
            .collect();
        found.sort_by_key(|(key, _)| *key);
        found
    }

    fn forget(&mut self, keep: impl Fn(u32) -> bool) {
        for copy in &mut self.copies {
            copy.retain(|key, _| keep(key.0));
        }
        self.locks.retain(|key, _| keep(key.0));
    }
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) nodes: Vec<Node>,
    pub(crate) buckets: BTreeMap<String, Bucket>,
    pub(crate) users: BTreeMap<String, User>,
    /// Of every map; grows with each change.
    pub(crate) revision: u64,
    /// Whether writes reach the standby copies.
    pub(crate) is_copying: bool,
    last_cas: u64,
    journal: Option<Journal>,
}

impl State {
    pub(crate) fn new(nodes: Vec<Node>, revision: u64) -> Self {
        Self {
            nodes,
            buckets: BTreeMap::new(),
            users: BTreeMap::new(),
            revision,
            is_copying: true,
            last_cas: 0,
            journal: None,
        }
    }

    /// Takes what a journal holds, and writes to it from here on.
    pub(crate) fn restore(&mut self, mut journal: Journal) -> std::io::Result<()> {
        for record in journal.read_all()? {
            match record {
                Record::Bucket(record) => self.put_bucket(record),
                Record::BucketDropped(name) => {
                    self.buckets.remove(&name);
                }
                Record::Flushed(name) => {
                    if let Some(bucket) = self.buckets.get_mut(&name) {
                        bucket.forget(|_| false);
                    }
                }
                Record::Document(record) => self.put_restored(&record),
            }
        }
        self.journal = Some(journal);
        Ok(())
    }

    fn put_restored(&mut self, record: &DocumentRecord) {
        self.last_cas = self.last_cas.max(record.document.cas);
        let Some(bucket) = self.buckets.get_mut(&record.bucket) else { return };
        if bucket.record.collection_by_id(record.key.0).is_none() {
            return;
        }
        let part = usize::from(bucket.part_of(&record.key.1));
        bucket.seqnos[part] = bucket.seqnos[part].max(record.document.seqno);
        for node in bucket.map[part].clone().into_iter().flatten() {
            bucket.copies[node].insert(record.key.clone(), record.document.clone());
        }
    }

    fn put_bucket(&mut self, record: BucketRecord) {
        if let Some(bucket) = self.buckets.get_mut(&record.name) {
            let ids: BTreeSet<u32> = (record.scopes.values())
                .flat_map(|scope| scope.collections.values().map(|collection| collection.id))
                .collect();
            bucket.record = record;
            bucket.forget(|id| ids.contains(&id));
            return;
        }
        let bucket = Bucket::new(record, &self.members(), self.nodes.len());
        self.buckets.insert(bucket.record.name.clone(), bucket);
    }

    pub(crate) fn members(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].is_member).collect()
    }

    /// Creates a bucket, or changes what is kept of one; documents of dropped collections go.
    pub(crate) fn save_bucket(&mut self, record: BucketRecord) -> std::io::Result<()> {
        if let Some(journal) = &mut self.journal {
            journal.bucket(&record)?;
        }
        self.put_bucket(record);
        self.revision += 1;
        Ok(())
    }

    pub(crate) fn drop_bucket(&mut self, name: &str) -> std::io::Result<bool> {
        let was_there = self.buckets.remove(name).is_some();
        if let Some(journal) = self.journal.as_mut().filter(|_| was_there) {
            journal.bucket_dropped(name)?;
        }
        self.revision += 1;
        Ok(was_there)
    }

    pub(crate) fn flush_bucket(&mut self, name: &str) -> std::io::Result<()> {
        if let Some(bucket) = self.buckets.get_mut(name) {
            bucket.forget(|_| false);
        }
        match &mut self.journal {
            Some(journal) => journal.flushed(name),
            None => Ok(()),
        }
    }

    /// A version larger than every one before: the clock's nanoseconds, as real clusters do it.
    pub(crate) fn next_cas(&mut self, now: std::time::Duration) -> u64 {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.last_cas = (self.last_cas + 1).max(now & !0xffff);
        self.last_cas
    }

    /// Whether a write at this level can be acknowledged with the nodes that are there.
    pub(crate) fn can_be_durable(
        &self,
        bucket: &Bucket,
        part: u16,
        level: Durability,
    ) -> Result<(), Status> {
        if bucket.record.is_ephemeral && level != Durability::Majority {
            return Err(Status::DURABILITY_INVALID);
        }
        // With three copies beside the active one, clusters take no durable writes.
        if bucket.record.copies > 2 {
            return Err(Status::DURABILITY_INVALID);
        }
        let wanted = usize::from(bucket.record.copies).div_ceil(2) + 1;
        let holders = bucket.map[usize::from(part)].iter().flatten();
        let there = holders.filter(|node| self.nodes[**node].is_up).count();
        if there < wanted {
            Err(Status::DURABILITY_IMPOSSIBLE)
        } else if !self.is_copying && wanted > 1 {
            // The copies never say that they have it: such a write runs into the level's time-out.
            Err(Status::SYNC_WRITE_AMBIGUOUS)
        } else {
            Ok(())
        }
    }

    /// Stores a document on the active copy and those of the standbys that are there. Gives its version and number.
    pub(crate) fn store(
        &mut self,
        bucket: &str,
        part: u16,
        key: &Key,
        mut document: Document,
        now: std::time::Duration,
    ) -> (u64, u64) {
        document.cas = self.next_cas(now);
        let is_copying = self.is_copying;
        let bucket_name = bucket;
        let bucket = self.buckets.get_mut(bucket).expect("the caller found the bucket");
        let at = usize::from(part);
        bucket.seqnos[at] += 1;
        document.seqno = bucket.seqnos[at];
        let (cas, seqno) = (document.cas, document.seqno);
        let holders: Vec<Option<usize>> = bucket.map[at].clone();
        for (place, node) in holders.into_iter().enumerate() {
            let Some(node) = node else { continue };
            if place == 0 || (is_copying && self.nodes[node].is_up) {
                bucket.copies[node].insert(key.clone(), document.clone());
            }
        }
        if let Some(journal) = &mut self.journal {
            let written = journal.document(bucket_name, key, &document);
            written.expect("the journal of the cluster can be written");
        }
        (cas, seqno)
    }

    /// Takes a node out: its parts go to their standbys. What only it had is lost.
    pub(crate) fn fail_over(&mut self, node: usize) {
        self.nodes[node].is_member = false;
        for bucket in self.buckets.values_mut() {
            for holders in &mut bucket.map {
                let mut kept: Vec<Option<usize>> =
                    holders.iter().copied().filter(|holder| *holder != Some(node)).collect();
                kept.sort_by_key(Option::is_none);
                kept.resize(holders.len(), None);
                *holders = kept;
            }
            bucket.copies[node].clear();
        }
        self.revision += 1;
    }

    /// Takes a node in again and spreads every part anew.
    pub(crate) fn rebalance(&mut self) {
        for node in &mut self.nodes {
            node.is_member = node.is_up;
        }
        let members = self.members();
        let names: Vec<String> = self.buckets.keys().cloned().collect();
        for name in names {
            let bucket = self.buckets.get_mut(&name).expect("its name was just read");
            let before = bucket.map.clone();
            bucket.spread(&members);
            for part in 0..bucket.record.vbuckets {
                bucket.copy_part(part, before[usize::from(part)].first().copied().flatten());
            }
        }
        self.revision += 1;
    }

    /// A node that was down is there again; it fetches what it missed.
    pub(crate) fn return_of(&mut self, node: usize) {
        self.nodes[node].is_up = true;
        self.catch_up();
        self.revision += 1;
    }

    pub(crate) fn set_copying(&mut self, is_copying: bool) {
        self.is_copying = is_copying;
        if is_copying {
            self.catch_up();
        }
    }

    /// Brings every standby copy to what the active one has.
    fn catch_up(&mut self) {
        for bucket in self.buckets.values_mut() {
            for part in 0..bucket.record.vbuckets {
                bucket.copy_part(part, bucket.active(part));
            }
        }
    }

    /// Makes another node the active one of a part.
    pub(crate) fn move_part(&mut self, bucket: &str, part: u16, to: usize) {
        let Some(bucket) = self.buckets.get_mut(bucket) else { return };
        let from = bucket.active(part);
        let holders = &mut bucket.map[usize::from(part)];
        match holders.iter().position(|holder| *holder == Some(to)) {
            Some(at) => holders.swap(0, at),
            None => holders[0] = Some(to),
        }
        bucket.copy_part(part, from);
        self.revision += 1;
    }
}

impl Bucket {
    /// Brings every holder of the part to what `from` has.
    fn copy_part(&mut self, part: u16, from: Option<usize>) {
        let Some(from) = from else { return };
        let of_part: Vec<(Key, Document)> = (self.copies[from].iter())
            .filter(|(key, _)| self.part_of(&key.1) == part)
            .map(|(key, document)| (key.clone(), document.clone()))
            .collect();
        for holder in self.map[usize::from(part)].clone().into_iter().flatten() {
            self.copies[holder].extend(of_part.iter().cloned());
        }
    }
}

/// The time at which a document goes, from what the client asked for and what its collection allows.
pub(crate) fn expiry_at(asked: u32, max_ttl: u64, now: u64) -> u64 {
    let asked = u64::from(asked);
    let at = match asked {
        0 => 0,
        relative if relative <= RELATIVE_EXPIRY_MAX => now + relative,
        absolute => absolute,
    };
    if max_ttl > 0 && (at == 0 || at > now + max_ttl) { now + max_ttl } else { at }
}
