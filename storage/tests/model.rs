//! The actor against a model: any operations on a few keys, all submitted before one is answered, are answered as if
//! they had been done one after the other, on each store.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test waits for some answers among all others"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use greenroom_storage::backend::Backend;
use greenroom_storage::backend::memory::Memory;
use greenroom_storage::backend::sqlite::Sqlite;
use greenroom_storage::{
    Body, Change, Clock, Collection, Count, Expiry, Get, Key, Merge, Owner, Remove, Schema,
    Storage, StorageConfig, StorageError, Ticket, Update, Version, Write,
};
use proptest::prelude::*;

/// An operation, as the model sees it. Numbers are levels of documents.
#[derive(Clone, Debug)]
enum Act {
    Get,
    Insert(i64),
    Upsert(i64, bool),
    /// Whether a newer one may stand in for it comes last.
    Owned(u64, u64, i64, bool),
    OwnedRemoval(u64, u64),
    Remove,
    RemoveOther,
    ReplaceOther(i64),
    Add(i64),
    /// An update that removes what is even and leaves what is odd.
    Sift,
    Count(i64),
}

fn acts() -> impl Strategy<Value = Vec<(usize, Act)>> {
    let owner = || (0..3u64, 0..4u64);
    let act = prop_oneof![
        3 => Just(Act::Get),
        2 => (0..9i64).prop_map(Act::Insert),
        4 => (0..9i64, any::<bool>()).prop_map(|(level, merge)| Act::Upsert(level, merge)),
        3 => (owner(), 0..9i64, any::<bool>())
            .prop_map(|((incarnation, n), level, merge)| Act::Owned(incarnation, n, level, merge)),
        1 => owner().prop_map(|(incarnation, n)| Act::OwnedRemoval(incarnation, n)),
        2 => Just(Act::Remove),
        1 => Just(Act::RemoveOther),
        1 => (0..9i64).prop_map(Act::ReplaceOther),
        3 => (-3..9i64).prop_map(Act::Add),
        1 => Just(Act::Sift),
        2 => (-3..9i64).prop_map(Act::Count),
    ];
    prop::collection::vec((0..3usize, act), 1..80)
}

/// What is stored under one key.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Model {
    content: Option<Content>,
    /// Of a document or a tombstone.
    owner: Option<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Content {
    Level(i64),
    Count(i64),
}

/// An answer, without what differs from store to store.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Found(Option<Content>, Option<(u64, u64)>),
    Done,
    Counted(i64),
    Exists,
    Missing,
    Mismatch,
    Deposed,
    NoCounter,
}

impl Model {
    fn apply(&mut self, act: &Act) -> Said {
        let owner = self.owner.filter(|_| self.content.is_some());
        match act {
            Act::Get => Said::Found(self.content, owner),
            Act::Insert(_) if self.content.is_some() => Said::Exists,
            Act::Insert(level) | Act::Upsert(level, _) => {
                *self = Self { content: Some(Content::Level(*level)), owner: None };
                Said::Done
            }
            Act::Owned(incarnation, n, level, _) => {
                self.owned((*incarnation, *n), Some(Content::Level(*level)))
            }
            Act::OwnedRemoval(incarnation, n) => self.owned((*incarnation, *n), None),
            Act::Remove | Act::RemoveOther | Act::ReplaceOther(_) if self.content.is_none() => {
                Said::Missing
            }
            Act::Remove => {
                *self = Self::default();
                Said::Done
            }
            Act::RemoveOther | Act::ReplaceOther(_) => Said::Mismatch,
            Act::Add(by) => {
                let level = match self.content {
                    Some(Content::Level(level)) => level,
                    Some(Content::Count(_)) | None => 0,
                };
                *self = Self { content: Some(Content::Level(level + by)), owner };
                Said::Found(self.content, owner)
            }
            Act::Sift => match self.content {
                Some(Content::Level(level)) if level % 2 == 0 => {
                    *self = Self::default();
                    Said::Found(None, None)
                }
                content => Said::Found(content, owner),
            },
            Act::Count(by) => match self.content {
                Some(Content::Level(_)) => Said::NoCounter,
                Some(Content::Count(count)) => {
                    *self = Self { content: Some(Content::Count(count + by)), owner };
                    Said::Counted(count + by)
                }
                None => {
                    *self = Self { content: Some(Content::Count(*by)), owner: None };
                    Said::Counted(*by)
                }
            },
        }
    }

    fn owned(&mut self, owner: (u64, u64), content: Option<Content>) -> Said {
        match self.owner {
            Some(stored) if stored > owner => Said::Deposed,
            Some(stored) if stored == owner => Said::Done,
            _ => {
                *self = Self { content, owner: Some(owner) };
                Said::Done
            }
        }
    }
}

/// An operation that was submitted.
enum Asked {
    Get(Ticket<Get>),
    Write(Ticket<Write>),
    Remove(Ticket<Remove>),
    Update(Ticket<Update>),
    Count(Ticket<Count>),
}

fn body(level: i64) -> Body {
    Body::of(&serde_json::json!({ "level": level })).unwrap()
}

fn content(body: &Body) -> Content {
    let json: serde_json::Value = body.decode().unwrap();
    match json["count"].as_i64() {
        Some(count) => Content::Count(count),
        None => Content::Level(json["level"].as_i64().unwrap()),
    }
}

fn submit(storage: &Storage, key: Key, act: &Act) -> Asked {
    let write = |write| Asked::Write(storage.try_submit(write).unwrap());
    let merge = |merge: &bool| if *merge { Merge::Allowed } else { Merge::Never };
    let owner = |incarnation: &u64, n: &u64| Owner::Instance { incarnation: *incarnation, n: *n };
    match act {
        Act::Get => Asked::Get(storage.try_submit(Get(key)).unwrap()),
        Act::Insert(level) => write(Write::insert(key, body(*level))),
        Act::Upsert(level, may) => write(Write::upsert(key, body(*level)).merge(merge(may))),
        Act::Owned(incarnation, n, level, may) => {
            write(Write::owned(key, owner(incarnation, n), body(*level)).merge(merge(may)))
        }
        Act::OwnedRemoval(incarnation, n) => {
            write(Write::owned_removal(key, owner(incarnation, n)))
        }
        Act::Remove => Asked::Remove(storage.try_submit(Remove { key, version: None }).unwrap()),
        Act::RemoveOther => {
            Asked::Remove(storage.try_submit(Remove { key, version: Some(Version(1)) }).unwrap())
        }
        Act::ReplaceOther(level) => write(Write::replace(key, body(*level), Version(1))),
        Act::Add(by) => {
            let by = *by;
            let add = move |before: Option<&greenroom_storage::Document>| {
                let level = match before.map(|before| content(&before.body)) {
                    Some(Content::Level(level)) => level,
                    Some(Content::Count(_)) | None => 0,
                };
                Ok(Change::Write(body(level + by), Expiry::Never))
            };
            Asked::Update(storage.try_submit(Update::new(key, add)).unwrap())
        }
        Act::Sift => {
            let sift = |before: Option<&greenroom_storage::Document>| match before {
                Some(before) => match content(&before.body) {
                    Content::Level(level) if level % 2 == 0 => Ok(Change::Remove),
                    Content::Level(_) | Content::Count(_) => Ok(Change::Leave),
                },
                None => Ok(Change::Leave),
            };
            Asked::Update(storage.try_submit(Update::new(key, sift)).unwrap())
        }
        Act::Count(by) => {
            let count = Count { key, by: *by, expiry: Expiry::Never };
            Asked::Count(storage.try_submit(count).unwrap())
        }
    }
}

fn found(document: Option<greenroom_storage::Document>) -> Said {
    let owner = document.as_ref().and_then(|document| match document.owner? {
        Owner::Instance { incarnation, n } => Some((incarnation, n)),
        Owner::Master { .. } => None,
    });
    Said::Found(document.map(|document| content(&document.body)), owner)
}

fn refused(error: StorageError) -> Said {
    match error {
        StorageError::Exists { .. } => Said::Exists,
        StorageError::Missing { .. } => Said::Missing,
        StorageError::VersionMismatch { .. } => Said::Mismatch,
        StorageError::Deposed { .. } => Said::Deposed,
        StorageError::NotACounter { .. } => Said::NoCounter,
        other => panic!("{other}"),
    }
}

impl Asked {
    fn said(self) -> Said {
        match self {
            Self::Get(ticket) => ticket.wait().map(found),
            Self::Write(ticket) => ticket.wait().map(|_| Said::Done),
            Self::Remove(ticket) => ticket.wait().map(|()| Said::Done),
            Self::Update(ticket) => ticket.wait().map(found),
            Self::Count(ticket) => ticket.wait().map(Said::Counted),
        }
        .unwrap_or_else(refused)
    }
}

/// The next operation of the key, if it may stand in for this one.
fn stands_in(acts: &[(usize, Act)], place: usize) -> Option<usize> {
    let (number, Act::Owned(incarnation, n, _, true)) = &acts[place] else { return None };
    let next = (place + 1..acts.len()).find(|next| acts[*next].0 == *number)?;
    match &acts[next].1 {
        Act::Owned(newer, newer_n, _, true) if (newer, newer_n) > (incarnation, n) => Some(next),
        _ => None,
    }
}

fn check(storage: &Storage, run: u64, acts: &[(usize, Act)]) -> Result<(), TestCaseError> {
    let key = |number: usize| Key::new(Collection::Documents, format!("{run}/{number}")).unwrap();
    let asked: Vec<Asked> =
        acts.iter().map(|(number, act)| submit(storage, key(*number), act)).collect();
    let mut models: BTreeMap<usize, Model> = BTreeMap::new();
    let expected: Vec<Said> =
        acts.iter().map(|(number, act)| models.entry(*number).or_default().apply(act)).collect();
    for (place, asked) in asked.into_iter().enumerate() {
        let said = asked.said();
        // One that a newer write may stand in for may have that one's answer. What is stored is the same.
        let mut at = place;
        while said != expected[at] {
            let Some(newer) = stands_in(acts, at) else {
                prop_assert_eq!(&said, &expected[place], "{:?} of {:?}", acts[place], acts);
                break;
            };
            at = newer;
        }
    }
    for (number, model) in models {
        let read = submit(storage, key(number), &Act::Get).said();
        let owner = model.owner.filter(|_| model.content.is_some());
        prop_assert_eq!(
            read,
            Said::Found(model.content, owner),
            "key {} at the end of {:?}",
            number,
            acts
        );
    }
    Ok(())
}

fn hold(make: impl FnOnce() -> Arc<dyn Backend> + Send + 'static, cases: u32) {
    let config = StorageConfig { deadline: Duration::from_secs(60), ..StorageConfig::default() };
    let storage = Storage::start(&config, Schema::default(), async || Ok(make())).unwrap();
    let run = std::cell::Cell::new(0);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(acts in acts())| {
        run.set(run.get() + 1);
        check(&storage, run.get(), &acts)?;
    });
}

#[test]
fn memory_answers_as_the_model_does() {
    hold(|| Arc::new(Memory::new(Clock::system())), 400);
}

#[test]
fn sqlite_answers_as_the_model_does() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    hold(move || Arc::new(Sqlite::open(&file, Clock::system()).unwrap()), 60);
}
