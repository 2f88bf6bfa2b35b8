//! What every store must do, as tests: memory, SQLite and Couchbase run the same ones, the last against a real cluster
//! too. `contract_tests!` makes a test of each.
//!
//! A store under test need not be empty: each test writes under keys of its own and asks for its own documents.

#![expect(clippy::unwrap_used, reason = "these are tests, though they are compiled as a library")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ecow::EcoString;
use greenroom_protocol::Epoch;
use greenroom_protocol::search::{FieldType, Filter, Order};
use greenroom_protocol::wire::client_session::MetaValue;
use serde_json::{Value, json};

use crate::backend::Boxed;
use crate::query::{PAGE_BYTES_MAX, value_of};
use crate::{
    Blob, Body, Change, Collection, Count, Cursor, Expiry, Get, Index, Key, Merge, Owner, Query,
    Remove, Schema, Storage, StorageError, Update, Version, Write,
};

/// A store to test.
pub trait Fixture: Send + Sync {
    /// The storage under test, opened with [`schema`].
    fn storage(&self) -> Storage;
    /// Lets so much time go by for the store: whole seconds.
    fn advance(&self, span: Duration) -> Boxed<'_, ()>;
}

/// The indexes that the tests need.
pub fn schema() -> Schema {
    let index = |fields: &[(&str, FieldType)]| Index::new(Collection::Documents, fields);
    let indexes = [
        index(&[("run", FieldType::Keyword), ("level", FieldType::Number)]),
        index(&[("run", FieldType::Keyword), ("name", FieldType::Text)]),
        index(&[("run", FieldType::Keyword), ("mode", FieldType::Keyword)]),
        index(&[("run", FieldType::Keyword), ("open", FieldType::Boolean)]),
    ];
    let indexes = indexes.into_iter().collect::<Result<Vec<_>, _>>();
    Schema::new(indexes.expect("these fields are well named")).expect("each field holds one thing")
}

/// One test's own part of the store.
struct Ground {
    storage: Storage,
    run: String,
}

static RUNS: AtomicU64 = AtomicU64::new(0);

impl Ground {
    fn new(fixture: &impl Fixture) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let run =
            format!("{now:x}-{:x}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
        Self { storage: fixture.storage(), run }
    }

    fn key(&self, id: &str) -> Key {
        Key::new(Collection::Documents, format!("{}/{id}", self.run)).expect("a short id")
    }
}

fn body(level: i64) -> Body {
    Body::of(&json!({ "level": level })).expect("an object")
}

fn level(document: &crate::Document) -> i64 {
    document.body.decode::<Value>().expect("JSON")["level"].as_i64().expect("a level")
}

fn instance(incarnation: u64, n: u64) -> Owner {
    Owner::Instance { incarnation, n }
}

fn master(era: u32, epoch: u32, lsn: u64) -> Owner {
    Owner::Master { epoch: Epoch { era, epoch }, lsn }
}

macro_rules! is {
    ($value:expr, $pattern:pat) => {
        match $value {
            $pattern => {}
            other => panic!("expected {}, found {other:?}", stringify!($pattern)),
        }
    };
}

/// What was inserted is read as it was written; a second insert is refused and changes nothing.
pub async fn an_insert_is_for_what_is_not_there(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let (storage, key) = (&ground.storage, ground.key("a"));
    assert_eq!(storage.get(key.clone()).await.unwrap(), None);
    let version = storage.insert(key.clone(), body(1)).await.unwrap();
    is!(storage.insert(key.clone(), body(2)).await, Err(StorageError::Exists { .. }));
    let read = storage.get(key.clone()).await.unwrap().unwrap();
    assert_eq!(
        (read.version, read.body, read.owner, read.expires_ms),
        (version, body(1), None, None)
    );
    // Another collection is another place.
    for collection in Collection::ALL.into_iter().filter(|of| *of != Collection::Documents) {
        let other = Key::new(collection, key.id()).unwrap();
        assert_eq!(storage.get(other.clone()).await.unwrap(), None, "{other}");
        storage.insert(other.clone(), body(3)).await.unwrap();
        storage.remove(other, None).await.unwrap();
    }
}

/// A replacement is for the version that was read, also when the key was empty meanwhile.
pub async fn a_replacement_is_for_one_version(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let (storage, key) = (&ground.storage, ground.key("a"));
    is!(storage.replace(key.clone(), body(1), Version(7)).await, Err(StorageError::Missing { .. }));
    let first = storage.insert(key.clone(), body(1)).await.unwrap();
    let second = storage.replace(key.clone(), body(2), first).await.unwrap();
    assert_ne!(first, second);
    let late = storage.replace(key.clone(), body(3), first).await;
    is!(late, Err(StorageError::VersionMismatch { .. }));
    storage.remove(key.clone(), Some(second)).await.unwrap();
    is!(storage.replace(key.clone(), body(3), second).await, Err(StorageError::Missing { .. }));
    storage.insert(key.clone(), body(2)).await.unwrap();
    let late = storage.replace(key.clone(), body(3), second).await;
    is!(late, Err(StorageError::VersionMismatch { .. }));
    assert_eq!(level(&storage.get(key).await.unwrap().unwrap()), 2);
}

/// An upsert writes over anything, and each write is a version of its own.
pub async fn an_upsert_is_for_anything(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let (storage, key) = (&ground.storage, ground.key("a"));
    let mut versions = Vec::new();
    for _ in 0..3 {
        versions.push(storage.upsert(key.clone(), body(5)).await.unwrap());
    }
    let read = storage.get(key).await.unwrap().unwrap();
    assert_eq!(read.version, versions[2]);
    assert!(versions[0] != versions[1] && versions[1] != versions[2] && versions[0] != versions[2]);
}

/// A removal is for what is there, and for the version that was said.
pub async fn a_removal_is_for_what_is_there(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let (storage, key) = (&ground.storage, ground.key("a"));
    is!(storage.remove(key.clone(), None).await, Err(StorageError::Missing { .. }));
    let first = storage.insert(key.clone(), body(1)).await.unwrap();
    let second = storage.replace(key.clone(), body(2), first).await.unwrap();
    let late = storage.remove(key.clone(), Some(first)).await;
    is!(late, Err(StorageError::VersionMismatch { .. }));
    storage.remove(key.clone(), Some(second)).await.unwrap();
    assert_eq!(storage.get(key.clone()).await.unwrap(), None);
    storage.insert(key.clone(), body(3)).await.unwrap();
    storage.remove(key.clone(), None).await.unwrap();
    is!(storage.remove(key, None).await, Err(StorageError::Missing { .. }));
}

/// A document goes when its time is over, for every operation.
pub async fn a_document_goes_when_its_time_is_over(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let storage = &ground.storage;
    let after = |seconds| Expiry::After(Duration::from_secs(seconds));
    let write =
        |id: &str, expiry| storage.ask(Write::upsert(ground.key(id), body(1)).expiry(expiry));
    for id in ["short", "kept", "cleared", "touched", "counted", "updated"] {
        write(id, after(3)).await.unwrap();
    }
    assert!(storage.get(ground.key("short")).await.unwrap().unwrap().expires_ms.is_some());
    write("kept", Expiry::Keep).await.unwrap();
    write("cleared", Expiry::Never).await.unwrap();
    storage.touch(ground.key("touched"), after(600)).await.unwrap();
    let keep = |_: Option<&crate::Document>| Ok(Change::Write(body(9), Expiry::Keep));
    storage.update(ground.key("updated"), keep).await.unwrap();
    is!(storage.touch(ground.key("nothing"), after(5)).await, Err(StorageError::Missing { .. }));
    fixture.advance(Duration::from_secs(5)).await;
    for id in ["short", "kept", "updated"] {
        assert_eq!(storage.get(ground.key(id)).await.unwrap(), None, "{id}");
    }
    for id in ["cleared", "touched"] {
        assert!(storage.get(ground.key(id)).await.unwrap().is_some(), "{id}");
    }
    is!(storage.touch(ground.key("short"), after(5)).await, Err(StorageError::Missing { .. }));
    is!(storage.remove(ground.key("short"), None).await, Err(StorageError::Missing { .. }));
    is!(
        storage.replace(ground.key("short"), body(1), Version(1)).await,
        Err(StorageError::Missing { .. })
    );
    storage.insert(ground.key("short"), body(2)).await.unwrap();
    let seen = storage.update(ground.key("kept"), |before| {
        assert_eq!(before, None);
        Ok(Change::Leave)
    });
    assert_eq!(seen.await.unwrap(), None);
    // A touch that lets it stay for ever.
    storage.touch(ground.key("touched"), Expiry::Never).await.unwrap();
    let read = storage.get(ground.key("touched")).await.unwrap().unwrap();
    assert_eq!(read.expires_ms, None);
}

/// A touch is a write: who has read before it is too late.
pub async fn a_touch_is_a_write(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let (storage, key) = (&ground.storage, ground.key("a"));
    let version = storage.insert(key.clone(), body(1)).await.unwrap();
    storage.touch(key.clone(), Expiry::After(Duration::from_secs(600))).await.unwrap();
    let late = storage.replace(key, body(2), version).await;
    is!(late, Err(StorageError::VersionMismatch { .. }));
}

/// An update sees what is there and writes what it decides; what it refuses is not written.
pub async fn an_update_reads_decides_and_writes(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let (storage, key) = (&ground.storage, ground.key("a"));
    let add = |before: Option<&crate::Document>| {
        Ok(Change::Write(body(before.map_or(0, level) + 1), Expiry::Never))
    };
    for expected in 1..=3 {
        let after = storage.update(key.clone(), add).await.unwrap().unwrap();
        assert_eq!(level(&after), expected);
        let read = storage.get(key.clone()).await.unwrap().unwrap();
        assert_eq!((read.version, &read.body), (after.version, &after.body));
    }
    let left = storage.update(key.clone(), |_| Ok(Change::Leave)).await.unwrap();
    assert_eq!(left.map(|document| level(&document)), Some(3));
    let refused = storage.update(key.clone(), |_| Err(StorageError::Backend("no".into()))).await;
    is!(refused, Err(StorageError::Backend(_)));
    assert_eq!(level(&storage.get(key.clone()).await.unwrap().unwrap()), 3);
    assert_eq!(storage.update(key.clone(), |_| Ok(Change::Remove)).await.unwrap(), None);
    assert_eq!(storage.get(key.clone()).await.unwrap(), None);
    assert_eq!(storage.update(key, |_| Ok(Change::Remove)).await.unwrap(), None);
}

/// Updates of one key at the same time lose nothing, through one handle or several.
pub async fn updates_at_the_same_time_lose_nothing(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let (storage, key) = (&ground.storage, ground.key("a"));
    let mut tickets = Vec::new();
    for _ in 0..50 {
        let add = |before: Option<&crate::Document>| {
            Ok(Change::Write(body(before.map_or(0, level) + 1), Expiry::Never))
        };
        tickets.push(storage.submit(Update::new(key.clone(), add)).await.unwrap());
    }
    for ticket in tickets {
        ticket.await.unwrap();
    }
    assert_eq!(level(&storage.get(key).await.unwrap().unwrap()), 50);
}

/// A counter begins at 0, goes both ways, and says when it can't.
pub async fn a_counter_counts(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let (storage, key) = (&ground.storage, ground.key("a"));
    assert_eq!(storage.count(key.clone(), 5).await.unwrap(), 5);
    assert_eq!(storage.count(key.clone(), -7).await.unwrap(), -2);
    assert_eq!(storage.count(key.clone(), i64::MIN + 2).await.unwrap(), i64::MIN);
    is!(storage.count(key.clone(), -1).await, Err(StorageError::NotACounter { .. }));
    assert_eq!(storage.count(key, i64::MAX).await.unwrap(), -1);
    storage.insert(ground.key("no counter"), body(1)).await.unwrap();
    is!(storage.count(ground.key("no counter"), 1).await, Err(StorageError::NotACounter { .. }));
    let tickets = (0..100).map(|_| Count { key: ground.key("many"), by: 2, expiry: Expiry::Never });
    let tickets: Vec<_> = tickets.map(|count| storage.try_submit(count).unwrap()).collect();
    let mut last = 0;
    for ticket in tickets {
        let count = ticket.await.unwrap();
        assert_eq!(count, last + 2, "counts come in the order in which they were asked for");
        last = count;
    }
}

/// The owner with the larger numbers writes; the same numbers are a resend; the smaller are refused by name.
pub async fn a_newer_owner_writes_and_an_older_is_deposed(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let (storage, key) = (&ground.storage, ground.key("a"));
    let put = |owner, level| storage.put_owned(key.clone(), owner, body(level));
    let first = put(master(1, 1, 5), 1).await.unwrap();
    assert_eq!(put(master(1, 1, 5), 2).await.unwrap(), first, "a resend");
    put(master(1, 1, 6), 3).await.unwrap();
    for older in [master(1, 1, 5), master(1, 0, 99), master(0, 9, 99), instance(u64::MAX, 1)] {
        match put(older, 4).await {
            Err(StorageError::Deposed { stored, refused, .. }) => {
                assert_eq!((stored, refused), (master(1, 1, 6), older));
            }
            other => panic!("{older} has written: {other:?}"),
        }
    }
    let read = storage.get(key.clone()).await.unwrap().unwrap();
    assert_eq!((level(&read), read.owner), (3, Some(master(1, 1, 6))));
    put(master(1, 2, 1), 5).await.unwrap();
    put(master(2, 0, 0), 6).await.unwrap();
    let read = storage.get(key).await.unwrap().unwrap();
    assert_eq!((level(&read), read.owner), (6, Some(master(2, 0, 0))));
    // What nobody owns is anybody's, and large numbers survive.
    let key = ground.key("b");
    storage.insert(key.clone(), body(1)).await.unwrap();
    let large = instance(u64::MAX - 1, u64::MAX);
    storage.put_owned(key.clone(), large, body(2)).await.unwrap();
    assert_eq!(storage.get(key.clone()).await.unwrap().unwrap().owner, Some(large));
    is!(
        storage.put_owned(key.clone(), instance(u64::MAX - 1, u64::MAX - 1), body(3)).await,
        Err(StorageError::Deposed { .. })
    );
    // A change by version leaves the owner; a blind write takes it away.
    let version = storage.get(key.clone()).await.unwrap().unwrap().version;
    storage.replace(key.clone(), body(3), version).await.unwrap();
    assert_eq!(storage.get(key.clone()).await.unwrap().unwrap().owner, Some(large));
    storage.update(key.clone(), |_| Ok(Change::Write(body(4), Expiry::Never))).await.unwrap();
    assert_eq!(storage.get(key.clone()).await.unwrap().unwrap().owner, Some(large));
    storage.upsert(key.clone(), body(5)).await.unwrap();
    assert_eq!(storage.get(key).await.unwrap().unwrap().owner, None);
}

/// What an owner removed is not brought back by a late write of an older one; it is not there for anybody else.
pub async fn an_owners_removal_outlives_late_writes(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let (storage, key) = (&ground.storage, ground.key("a"));
    storage.put_owned(key.clone(), instance(1, 1), body(1)).await.unwrap();
    is!(storage.remove_owned(key.clone(), instance(0, 9)).await, Err(StorageError::Deposed { .. }));
    storage.remove_owned(key.clone(), instance(1, 2)).await.unwrap();
    storage.remove_owned(key.clone(), instance(1, 2)).await.unwrap();
    assert_eq!(storage.get(key.clone()).await.unwrap(), None);
    is!(storage.remove(key.clone(), None).await, Err(StorageError::Missing { .. }));
    is!(storage.touch(key.clone(), Expiry::Never).await, Err(StorageError::Missing { .. }));
    is!(storage.replace(key.clone(), body(1), Version(1)).await, Err(StorageError::Missing { .. }));
    let late = storage.put_owned(key.clone(), instance(1, 1), body(2)).await;
    is!(late, Err(StorageError::Deposed { .. }));
    storage.put_owned(key.clone(), instance(2, 1), body(3)).await.unwrap();
    assert_eq!(level(&storage.get(key.clone()).await.unwrap().unwrap()), 3);
    storage.remove_owned(key.clone(), instance(2, 2)).await.unwrap();
    storage.insert(key.clone(), body(4)).await.unwrap();
    assert_eq!(level(&storage.get(key).await.unwrap().unwrap()), 4);
    // The numbers go with their time.
    let key = ground.key("b");
    let removal = Write::owned_removal(key.clone(), instance(5, 5));
    storage.ask(removal.expiry(Expiry::After(Duration::from_secs(2)))).await.unwrap();
    fixture.advance(Duration::from_secs(4)).await;
    storage.put_owned(key, instance(1, 1), body(1)).await.unwrap();
}

/// Operations of one key take effect in the order in which they were taken, though nobody waits for the answers.
pub async fn operations_of_one_key_keep_their_order(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let storage = &ground.storage;
    let keys: Vec<Key> = (0..8).map(|number| ground.key(&number.to_string())).collect();
    let (mut writes, mut reads) = (Vec::new(), Vec::new());
    for round in 0..40 {
        for key in &keys {
            let write = if round % 10 == 9 {
                // A removal among them, and an insert that needs it.
                writes.push(None);
                let removal =
                    storage.submit(Remove { key: key.clone(), version: None }).await.unwrap();
                reads.push((round, None, Some(removal), None));
                Write::insert(key.clone(), body(round))
            } else {
                Write::upsert(key.clone(), body(round))
            };
            writes.push(Some(storage.submit(write).await.unwrap()));
            let read = storage.submit(Get(key.clone())).await.unwrap();
            reads.push((round, Some(round), None, Some(read)));
        }
    }
    for write in writes.into_iter().flatten() {
        write.await.unwrap();
    }
    for (round, expected, removal, read) in reads {
        if let Some(removal) = removal {
            removal.await.unwrap();
        }
        if let Some(read) = read {
            let found = read.await.unwrap().map(|document| level(&document));
            assert_eq!(found, expected, "the read behind the write of round {round}");
        }
    }
}

/// Where a newer write may stand in for one that waits, each is answered, and the newest is what is stored.
pub async fn merged_writes_are_answered_by_the_newest(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let (storage, key) = (&ground.storage, ground.key("a"));
    let tickets: Vec<_> = (0..200)
        .map(|n| {
            let write = Write::owned(
                key.clone(),
                instance(1, n),
                body(i64::try_from(n).unwrap_or_default()),
            );
            storage.try_submit(write.merge(Merge::Allowed)).unwrap()
        })
        .collect();
    let mut versions = Vec::new();
    for ticket in tickets {
        versions.push(ticket.await.unwrap());
    }
    let read = storage.get(key).await.unwrap().unwrap();
    assert_eq!((level(&read), read.owner), (199, Some(instance(1, 199))));
    assert_eq!(versions.last(), Some(&read.version));
}

/// Keys and documents of every form that is allowed survive, and those over the limit are refused by name.
pub async fn documents_of_every_form_survive(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let storage = &ground.storage;
    let long = Key::BYTES_MAX - ground.run.len() - 1;
    let ids =
        ["ä/ö ü", "'; drop table documents; --", "%_*?\"`\\", "{\"a\":1}", "\u{10ffff}\u{e000}😀"];
    let mut documents = BTreeMap::new();
    for id in ids.into_iter().map(str::to_owned).chain(["x".repeat(long)]) {
        let json = json!({
            "id": id, "empty": {}, "list": [1, 2.5, null, true, {"_inner": "is the writer's own"}],
            "text": "\u{0}\u{1f}\"\\/\u{7f}\u{2028}😀", "min": i64::MIN, "max": i64::MAX, "": 0,
        });
        storage.upsert(ground.key(&id), Body::of(&json).unwrap()).await.unwrap();
        documents.insert(id, json);
    }
    for (id, json) in documents {
        let read = storage.get(ground.key(&id)).await.unwrap().unwrap();
        assert_eq!(read.body.decode::<Value>().unwrap(), json);
    }
    let blob = Blob(Bytes::from_iter((0..1_500_000u32).map(|number| number.to_le_bytes()[0])));
    let large = Body::of(&json!({ "bytes": blob })).unwrap();
    storage.upsert(ground.key("large"), large.clone()).await.unwrap();
    assert_eq!(storage.get(ground.key("large")).await.unwrap().unwrap().body, large);
    storage.remove(ground.key("large"), None).await.unwrap();
    let over = Body::of(&json!({ "text": "x".repeat(20 * 1024 * 1024) })).unwrap();
    match storage.upsert(ground.key("over"), over.clone()).await {
        Err(error @ StorageError::TooLarge { bytes, max, .. }) => {
            assert!(bytes == over.len() && max < bytes);
            let (key, text) = (ground.key("over"), error.to_string());
            assert!(text.starts_with(&format!("{key} would have {bytes} bytes; ")), "{text}");
            assert!(text.ends_with("are the most (storage.document_bytes_max)"), "{text}");
        }
        other => panic!("a document over the limit was taken: {other:?}"),
    }
    assert_eq!(storage.get(ground.key("over")).await.unwrap(), None);
    let empty = Body::new("{ }").unwrap();
    storage.put_owned(ground.key("empty"), instance(1, 1), empty).await.unwrap();
    let read = storage.get(ground.key("empty")).await.unwrap().unwrap();
    assert_eq!(read.body.decode::<Value>().unwrap(), json!({}));
    let wrong = read.decode::<Blob>(&ground.key("empty")).map(|_| ());
    let text = wrong.as_ref().map_err(ToString::to_string).unwrap_err();
    assert!(
        text.contains("/") && text.contains("empty") && text.contains("does not decode: "),
        "{text}"
    );
    is!(wrong, Err(StorageError::Undecodable { .. }));
}

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let place = usize::try_from(self.below(all.len() as u64)).expect("less than the length");
        &all[place]
    }
}

const NAMES: &[&str] =
    &["", "a", "ab", "abc", "b", "ä", "B", "\u{d7ff}", "\u{e000}x", "😀", "a'b", "%", "10"];
const MODES: &[&str] = &["duel", "team", "solo"];

/// A document with some of the fields, some of the wrong sort.
fn any_document(dice: &mut Dice, run: &str) -> Value {
    let mut fields = serde_json::Map::new();
    fields.insert("run".into(), run.into());
    let wrong = [
        json!(null),
        json!("5"),
        json!(2.5),
        json!([1]),
        json!(true),
        json!(18446744073709551615u64),
    ];
    let mut put = |dice: &mut Dice, name: &str, value: Value| match dice.below(8) {
        0 => {}
        1 => {
            // Nothing of the right sort: a text is none for a number, and none of these is for a keyword.
            let value = if name == "open" { json!(1) } else { dice.pick(&wrong).clone() };
            let is_text = value.is_string();
            if !(is_text && matches!(name, "name" | "mode")) {
                fields.insert(name.into(), value);
            }
        }
        _ => {
            fields.insert(name.into(), value);
        }
    };
    let levels = [-5, 0, 1, 2, 3, i64::MIN, i64::MAX];
    let level = *dice.pick(&levels);
    put(dice, "level", level.into());
    let name = *dice.pick(NAMES);
    put(dice, "name", name.into());
    let mode = *dice.pick(MODES);
    put(dice, "mode", mode.into());
    let open = dice.below(2) == 0;
    put(dice, "open", open.into());
    Value::Object(fields)
}

fn any_filter(dice: &mut Dice, depth: u32) -> Filter {
    let number =
        |dice: &mut Dice| MetaValue::Int(*dice.pick(&[-6, -5, 0, 1, 2, 3, 4, i64::MIN, i64::MAX]));
    let text = |dice: &mut Dice| MetaValue::Text((*dice.pick(NAMES)).into());
    let mode = |dice: &mut Dice| MetaValue::Text((*dice.pick(&["duel", "team", "none"])).into());
    let some = |dice: &mut Dice, depth| {
        let count = dice.below(3);
        (0..count).map(|_| any_filter(dice, depth)).collect::<Vec<_>>()
    };
    match dice.below(if depth == 0 { 12 } else { 15 }) {
        0 => Filter::Eq("level".into(), number(dice)),
        1 => Filter::Ne("level".into(), number(dice)),
        2 => Filter::In("level".into(), vec![number(dice), number(dice)]),
        3 => Filter::Lt("level".into(), number(dice)),
        4 => Filter::Ge("level".into(), number(dice)),
        5 => Filter::Between("level".into(), number(dice), number(dice)),
        6 => Filter::Eq("open".into(), MetaValue::Bool(dice.below(2) == 0)),
        7 => Filter::Ne("mode".into(), mode(dice)),
        8 => Filter::In("mode".into(), (0..dice.below(3)).map(|_| mode(dice)).collect()),
        9 => Filter::Prefix("name".into(), (*dice.pick(NAMES)).into()),
        10 => Filter::Gt("name".into(), text(dice)),
        11 => Filter::Le("name".into(), text(dice)),
        12 => Filter::Not(Box::new(any_filter(dice, depth - 1))),
        13 => Filter::And(some(dice, depth - 1)),
        _ => Filter::Or(some(dice, depth - 1)),
    }
}

/// What a query must find, worked out here: ids in their order.
fn expected(
    documents: &BTreeMap<EcoString, Value>,
    filter: &Filter,
    order: Option<&Order>,
    beginning: &str,
) -> Vec<EcoString> {
    let schema = schema();
    let value = |json: &Value, name: &EcoString| {
        value_of(json, name, schema.field(Collection::Documents, name).expect("a known field"))
    };
    let found = documents.iter().filter(|(id, json)| {
        id.starts_with(beginning) && filter.lets_through(&|name| value(json, name))
    });
    let mut found: Vec<(Option<MetaValue>, &EcoString)> =
        found.map(|(id, json)| (order.and_then(|order| value(json, &order.field)), id)).collect();
    found.sort_by(|(left, left_id), (right, right_id)| {
        let values = match (left, right) {
            (Some(left), Some(right)) if order.is_some_and(|order| order.descending) => {
                right.cmp(left)
            }
            (Some(left), Some(right)) => left.cmp(right),
            (left, right) => right.is_some().cmp(&left.is_some()),
        };
        values.then_with(|| left_id.cmp(right_id))
    });
    found.into_iter().map(|(_, id)| id.clone()).collect()
}

/// A query finds exactly what its filter lets through, in its order, however it is cut into pages.
pub async fn queries_find_what_their_filters_say(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let storage = &ground.storage;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() | 1;
    let mut dice = Dice(seed);
    let mut documents = BTreeMap::new();
    for number in 0..60 {
        let key = ground.key(&number.to_string());
        let json = any_document(&mut dice, &ground.run);
        storage.upsert(key.clone(), Body::of(&json).unwrap()).await.unwrap();
        documents.insert(EcoString::from(key.id()), json);
    }
    // Neither of these is found.
    storage
        .put_owned(
            ground.key("gone"),
            instance(1, 1),
            Body::of(&json!({"run": ground.run})).unwrap(),
        )
        .await
        .unwrap();
    storage.remove_owned(ground.key("gone"), instance(1, 2)).await.unwrap();
    for round in 0..60 {
        let asked = any_filter(&mut dice, 2);
        let filter = Filter::And(vec![
            Filter::Eq("run".into(), MetaValue::Text(ground.run.as_str().into())),
            asked,
        ]);
        let order = match dice.below(5) {
            0 => None,
            field => Some(Order {
                field: ["level", "name", "mode", "open"]
                    [usize::try_from(field - 1).unwrap_or_default()]
                .into(),
                descending: dice.below(2) == 0,
            }),
        };
        let limit = *dice.pick(&[1, 2, 7, 100]);
        let bytes_max = *dice.pick(&[1, 200, PAGE_BYTES_MAX, PAGE_BYTES_MAX]);
        let beginning = match *dice.pick(&["", "", "1", "5", "none"]) {
            "" => EcoString::new(),
            beginning => ground.key(beginning).id().into(),
        };
        let mut query = Query {
            order: order.clone(),
            beginning: beginning.clone(),
            limit,
            bytes_max,
            ..Query::new(Collection::Documents, filter.clone())
        };
        let mut found = Vec::new();
        loop {
            let page = storage.query(query.clone()).await.unwrap();
            assert!(page.documents.len() <= usize::from(limit));
            let bytes: usize = page.documents.iter().map(|(_, found)| found.body.len()).sum();
            for (key, document) in &page.documents {
                assert_eq!(
                    Some(&document.body.decode::<Value>().unwrap()),
                    documents.get(key.id())
                );
                found.push(EcoString::from(key.id()));
            }
            let is_full = page.documents.len() == usize::from(limit) || bytes > bytes_max;
            assert!(page.next.is_none() || is_full);
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        let expected = expected(&documents, &filter, order.as_ref(), &beginning);
        assert_eq!(
            found, expected,
            "seed {seed}, round {round}: {filter} order {order:?} beginning {beginning:?}"
        );
    }
}

/// A query that no store can answer alike is refused by name.
pub async fn a_query_that_cannot_be_answered_is_refused_by_name(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let error = async |query: Query| match ground.storage.query(query).await {
        Err(StorageError::BadQuery(why)) => why.to_string(),
        other => panic!("the query was answered: {other:?}"),
    };
    let of = |filter: &str| Query::new(Collection::Documents, Filter::parse(filter).unwrap());
    assert!(error(of("colour = 'red'")).await.contains("\"colour\""));
    assert!(error(of("level = 'red'")).await.contains("level is a number"));
    assert!(error(of("mode < 'red'")).await.contains("mode is a keyword"));
    assert!(error(of("level prefix 'r'")).await.contains("level is a number"));
    let order = Some(Order { field: "colour".into(), descending: false });
    assert!(error(Query { order, ..of("") }).await.contains("\"colour\""));
    assert!(error(Query { limit: 0, ..of("") }).await.contains("the limit is 0"));
    assert!(error(Query { bytes_max: 0, ..of("") }).await.contains("a page of 0 bytes"));
    assert!(
        error(Query::new(Collection::Users, Filter::parse("level = 1").unwrap()))
            .await
            .contains("users")
    );
}

/// A page goes on where the last one ended, whatever is written between.
pub async fn pages_go_on_while_documents_come_and_go(fixture: &impl Fixture) {
    let ground = Ground::new(fixture);
    let storage = &ground.storage;
    let put = |number: i64| {
        let json = json!({ "run": ground.run, "level": number });
        storage.upsert(ground.key(&format!("{number:03}")), Body::of(&json).unwrap())
    };
    for number in (0..40).step_by(2) {
        put(number).await.unwrap();
    }
    let filter = Filter::Eq("run".into(), MetaValue::Text(ground.run.as_str().into()));
    let order = Some(Order { field: "level".into(), descending: false });
    let mut query = Query { order, limit: 5, ..Query::new(Collection::Documents, filter) };
    let mut found = Vec::new();
    let mut next: Option<Cursor> = None;
    for round in 0.. {
        query.after = next;
        let page = storage.query(query.clone()).await.unwrap();
        found.extend(page.documents.iter().map(|(_, document)| level(document)));
        next = page.next;
        if next.is_none() {
            break;
        }
        // Behind the cursor and before it.
        put(1 + 2 * round).await.unwrap();
        put(39 - 2 * round).await.unwrap();
        if let Some(last) = found.last() {
            storage.remove(ground.key(&format!("{last:03}")), None).await.unwrap();
        }
    }
    assert!(found.is_sorted() && found.windows(2).all(|pair| pair[0] < pair[1]), "{found:?}");
    for even in (0..40).step_by(2) {
        assert!(found.contains(&even), "{even} was there all the time: {found:?}");
    }
}

/// Many tasks on many keys: each sees its own writes in their order, and nothing is lost.
pub async fn many_tasks_on_many_keys_lose_nothing(fixture: &impl Fixture) {
    const TASKS: i64 = 16;
    const KEYS: i64 = 24;
    const ROUNDS: i64 = 30;
    let ground = Ground::new(fixture);
    let tasks = (0..TASKS).map(async |task| {
        let storage = ground.storage.clone();
        for round in 0..ROUNDS {
            // A key of its own, on which reads must see the last write.
            let own = ground.key(&format!("own {task}"));
            storage.upsert(own.clone(), body(round)).await.unwrap();
            let read = storage.get(own).await.unwrap().unwrap();
            assert_eq!(level(&read), round);
            // One that all share, which must count every one.
            let shared = ground.key(&format!("shared {}", (task * 7 + round * 5) % KEYS));
            storage.count(shared, 1).await.unwrap();
        }
    });
    futures(tasks.collect()).await;
    let mut sum = 0;
    for key in 0..KEYS {
        let document = ground.storage.get(ground.key(&format!("shared {key}"))).await.unwrap();
        sum += document.map_or(0, |document| {
            document.body.decode::<Value>().unwrap()["count"].as_i64().unwrap()
        });
    }
    assert_eq!(sum, TASKS * ROUNDS);
}

/// Runs futures at the same time, until all have ended.
async fn futures<F: Future<Output = ()>>(futures: Vec<F>) {
    let mut futures: Vec<_> = futures.into_iter().map(|future| Some(Box::pin(future))).collect();
    std::future::poll_fn(|context| {
        let mut left = false;
        for slot in &mut futures {
            if let Some(future) = slot {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(()) => *slot = None,
                    std::task::Poll::Pending => left = true,
                }
            }
        }
        if left { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
}

/// Makes a test of each promise: `contract_tests!(fixture());`, where the expression gives a [`Fixture`].
#[macro_export]
macro_rules! contract_tests {
    ($fixture:expr) => {
        $crate::contract_tests! { $fixture;
            an_insert_is_for_what_is_not_there,
            a_replacement_is_for_one_version,
            an_upsert_is_for_anything,
            a_removal_is_for_what_is_there,
            a_document_goes_when_its_time_is_over,
            a_touch_is_a_write,
            an_update_reads_decides_and_writes,
            updates_at_the_same_time_lose_nothing,
            a_counter_counts,
            a_newer_owner_writes_and_an_older_is_deposed,
            an_owners_removal_outlives_late_writes,
            operations_of_one_key_keep_their_order,
            merged_writes_are_answered_by_the_newest,
            documents_of_every_form_survive,
            queries_find_what_their_filters_say,
            a_query_that_cannot_be_answered_is_refused_by_name,
            pages_go_on_while_documents_come_and_go,
            many_tasks_on_many_keys_lose_nothing,
        }
    };
    ($fixture:expr; $($name:ident),* $(,)?) => { $(
        #[tokio::test]
        async fn $name() {
            let fixture = $fixture;
            $crate::contract::$name(&fixture).await;
        }
    )* };
}
