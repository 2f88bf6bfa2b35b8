//! Documents in the memory of this process: for tests, and for games that keep nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use ecow::EcoString;
use greenroom_protocol::search::{FieldType, Order};
use greenroom_protocol::wire::client_session::MetaValue;

use super::{Answer, Backend, Boxed, Decision, Job, Operation, Put, Stored, decide, expires_ms};
use crate::clock::Clock;
use crate::query::{Cursor, Page, Query, value_of};
use crate::{Body, Collection, Document, Key, OpenError, Owner, Schema, StorageError, Version};

/// Documents in memory; they end with the process.
#[derive(Debug)]
pub struct Memory {
    state: Mutex<State>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct State {
    collections: BTreeMap<Collection, BTreeMap<EcoString, Row>>,
    /// By when they go. The two change together, in [`State::put`] and [`State::remove`] only.
    by_expiry: BTreeSet<(u64, Key)>,
    fields: BTreeMap<(Collection, EcoString), FieldType>,
}

#[derive(Clone, Debug)]
struct Row {
    /// None for a tombstone.
    body: Option<Body>,
    version: Version,
    owner: Option<Owner>,
    expires_ms: Option<u64>,
}

impl Memory {
    /// An empty store.
    pub fn new(clock: Clock) -> Self {
        Self { state: Mutex::default(), clock }
    }
}

impl Backend for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn begin(&self, jobs: Vec<Job>) {
        let now = self.clock.now_ms();
        // Nothing in here panics between two changes that belong together.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sweep(now);
        Job::answer_all(jobs.into_iter().map(|job| {
            let result = state.execute(job.operation(), now);
            (job, result)
        }));
    }

    fn prepare<'a>(&'a self, schema: &'a Schema) -> Boxed<'a, Result<(), OpenError>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for index in schema.indexes() {
            for (name, holds) in &index.fields {
                state.fields.insert((index.collection, name.clone()), *holds);
            }
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn health(&self) -> Boxed<'_, Result<(), StorageError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn close(&self) -> Boxed<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl State {
    fn row(&self, key: &Key) -> Option<&Row> {
        self.collections.get(&key.collection())?.get(key.id())
    }

    /// What counts as there.
    fn there(&self, key: &Key) -> Option<&Row> {
        self.row(key).filter(|row| row.body.is_some())
    }

    fn put(&mut self, key: &Key, row: Row) {
        let expires_ms = row.expires_ms;
        let rows = self.collections.entry(key.collection()).or_default();
        let before = match rows.get_mut(key.id()) {
            Some(there) => Some(std::mem::replace(there, row)),
            None => rows.insert(key.id().into(), row),
        };
        if let Some(expires_ms) = before.and_then(|before| before.expires_ms) {
            self.by_expiry.remove(&(expires_ms, key.clone()));
        }
        if let Some(expires_ms) = expires_ms {
            self.by_expiry.insert((expires_ms, key.clone()));
        }
    }

    fn remove(&mut self, key: &Key) {
        let rows = self.collections.get_mut(&key.collection());
        let row = rows.and_then(|rows| rows.remove(key.id()));
        if let Some(expires_ms) = row.and_then(|row| row.expires_ms) {
            self.by_expiry.remove(&(expires_ms, key.clone()));
        }
    }

    fn sweep(&mut self, now: u64) {
        while let Some((expires_ms, key)) = self.by_expiry.first().cloned() {
            if expires_ms > now {
                break;
            }
            self.remove(&key);
        }
    }

    fn execute(&mut self, operation: &Operation, now: u64) -> Result<Answer, StorageError> {
        match operation {
            Operation::Get { key } => Ok(Answer::Document(self.there(key).and_then(Row::document))),
            Operation::Put(put) => self.write(put, now).map(Answer::Stored),
            Operation::Remove { key, version, .. } => {
                let there = self.there(key);
                let row = there.ok_or_else(|| StorageError::Missing { key: key.clone() })?;
                if version.is_some_and(|version| version != row.version) {
                    return Err(StorageError::VersionMismatch { key: key.clone() });
                }
                self.remove(key);
                Ok(Answer::Removed)
            }
            Operation::Touch { key, expiry, write } => {
                let there = self.there(key);
                let row = there.ok_or_else(|| StorageError::Missing { key: key.clone() })?;
                let mut row = row.clone();
                row.expires_ms = expires_ms(*expiry, row.expires_ms, now);
                row.version = Version(write.0);
                self.put(key, row);
                Ok(Answer::Touched)
            }
            Operation::Query(query) => Ok(Answer::Page(self.query(query))),
            Operation::Raw(_) => Err(StorageError::BadQuery(
                "a store in memory has no language of its own; use a typed query".into(),
            )),
        }
    }

    fn write(&mut self, put: &Put, now: u64) -> Result<Version, StorageError> {
        let stored = self.row(&put.key).map(Row::stored);
        let (owner, expires_ms) = match decide(put, stored.as_ref(), now)? {
            Decision::Write { owner, expires_ms } => (owner, expires_ms),
            Decision::Done(version) => return Ok(version),
        };
        let version = Version(put.write.0);
        self.put(&put.key, Row { body: put.body.clone(), version, owner, expires_ms });
        Ok(version)
    }

    fn query(&self, query: &Query) -> Page {
        let field = |name: &EcoString| {
            let holds = self.fields.get(&(query.collection, name.clone())).copied();
            holds.unwrap_or(FieldType::Text)
        };
        let rows = self.collections.get(&query.collection).into_iter().flatten();
        let mut found: Vec<(Place<'_>, &Row)> = Vec::new();
        for (id, row) in rows {
            let Some(body) = row.body.as_ref().filter(|_| id.starts_with(&*query.beginning)) else {
                continue;
            };
            let Ok(json) = body.decode::<serde_json::Value>() else { continue };
            let value = |name: &EcoString| value_of(&json, name, field(name));
            if query.filter.lets_through(&value) {
                let place = query.order.as_ref().and_then(|order| value(&order.field));
                found.push((Place { value: place, id }, row));
            }
        }
        found.sort_by(|(left, _), (right, _)| left.compare(right, query.order.as_ref()));
        if let Some(after) = &query.after {
            let after = Place { value: after.value.clone(), id: &after.id };
            found.retain(|(place, _)| place.compare(&after, query.order.as_ref()).is_gt());
        }
        let mut page = Page::default();
        let mut bytes = 0;
        for (place, row) in found {
            if page.documents.len() == usize::from(query.limit) || bytes > query.bytes_max {
                return page;
            }
            let Ok(key) = Key::new(query.collection, place.id.clone()) else { continue };
            let Some(document) = row.document() else { continue };
            bytes += document.body.len();
            page.next = Some(Cursor { value: place.value, id: place.id.clone() });
            page.documents.push((key, document));
        }
        page.next = None;
        page
    }
}

/// Where a document stands in the order of a query.
struct Place<'a> {
    value: Option<MetaValue>,
    id: &'a EcoString,
}

impl Place<'_> {
    fn compare(&self, other: &Self, order: Option<&Order>) -> std::cmp::Ordering {
        let values = match (&self.value, &other.value) {
            (Some(left), Some(right)) if order.is_some_and(|order| order.descending) => {
                right.cmp(left)
            }
            (Some(left), Some(right)) => left.cmp(right),
            // Without the field, last.
            (left, right) => right.is_some().cmp(&left.is_some()),
        };
        values.then_with(|| self.id.cmp(other.id))
    }
}

impl Row {
    const fn stored(&self) -> Stored {
        Stored {
            version: self.version,
            owner: self.owner,
            expires_ms: self.expires_ms,
            is_there: self.body.is_some(),
        }
    }
    fn document(&self) -> Option<Document> {
        Some(Document {
            body: self.body.clone()?,
            version: self.version,
            owner: self.owner,
            expires_ms: self.expires_ms,
        })
    }
}
