//! The writer against a store in memory, one that is away at times.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use greenroom_master_core::{CheckedIn, Document, KeptInstance, Placed, RankedMember};
use greenroom_protocol::{Epoch, Incarnation, InstanceId, KindName, ServerName, UserId};
use greenroom_storage::backend::memory::Memory;
use greenroom_storage::backend::{Backend, Boxed, Job};
use greenroom_storage::{Body, Clock, Collection, OpenError, Owner, Schema, StorageConfig};

use super::queue::WAITING_MAX;
use super::*;

/// A store in memory that can be away: then it takes nothing.
#[derive(Debug)]
struct Moody {
    memory: Memory,
    is_away: Arc<AtomicBool>,
}

impl Backend for Moody {
    fn name(&self) -> &'static str {
        "moody"
    }
    fn begin(&self, jobs: Vec<Job>) {
        if self.is_away.load(Relaxed) {
            for job in jobs {
                job.answer(Err(StorageError::Unavailable("away".into())));
            }
        } else {
            self.memory.begin(jobs);
        }
    }
    fn prepare<'a>(&'a self, schema: &'a Schema) -> Boxed<'a, Result<(), OpenError>> {
        self.memory.prepare(schema)
    }
    fn health(&self) -> Boxed<'_, Result<(), StorageError>> {
        self.memory.health()
    }
    fn close(&self) -> Boxed<'_, ()> {
        self.memory.close()
    }
}

struct Scene {
    storage: Storage,
    metrics: Arc<Metrics>,
    is_away: Arc<AtomicBool>,
}

impl Scene {
    fn new() -> Self {
        let is_away = Arc::new(AtomicBool::new(false));
        let away = Arc::clone(&is_away);
        let make = async move || {
            let moody = Moody { memory: Memory::new(Clock::system()), is_away: away };
            Ok(Arc::new(moody) as Arc<dyn Backend>)
        };
        let config =
            StorageConfig { deadline: Duration::from_secs(60), ..StorageConfig::default() };
        let storage = Storage::start(&config, Schema::default(), make).unwrap();
        Self { storage, metrics: Arc::default(), is_away }
    }

    fn writer(&self) -> DocumentWriter {
        DocumentWriter::start(self.storage.clone(), Arc::clone(&self.metrics)).unwrap()
    }

    /// A master that decides, writes these and ends.
    async fn written(&self, documents: &[Placed<Document>]) {
        let writer = self.writer();
        put(&writer, documents);
        writer.close().await;
    }

    async fn read(&self, collection: Collection, id: &str) -> Option<serde_json::Value> {
        let key = Key::new(collection, id).unwrap();
        let found = self.storage.get(key.clone()).await.unwrap();
        found.map(|found| found.decode(&key).unwrap())
    }
}

fn put(writer: &DocumentWriter, documents: &[Placed<Document>]) {
    let now = Instant::now();
    let mut queue = writer.shared.queue();
    for placed in documents {
        assert!(queue.put(placed, None, now));
    }
    drop(queue);
    writer.shared.bell.notify_one();
}

fn placed((epoch, lsn): (u32, u64), at_ms: u64, what: Document) -> Placed<Document> {
    Placed { at_ms, epoch: Epoch { era: 1, epoch }, lsn, index: 0, what }
}

fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

fn checks_in(numbers: (u32, u64), at_ms: u64, name: &str) -> Placed<Document> {
    let checked_in = CheckedIn { user: user("ann"), name: name.into() };
    placed(numbers, at_ms, Document::CheckedIn(checked_in))
}

fn kept(instance: InstanceId, state: &'static str) -> Document {
    Document::Kept(Box::new(KeptInstance {
        instance,
        incarnation: Incarnation(u64::MAX),
        kind: KindName::new("duel").unwrap(),
        key: None,
        durable: true,
        state,
        server: ServerName::new("game-1").unwrap(),
        owner: Some(user("ann")),
        created_ms: 7,
        seats_max: 2,
        open: true,
        private: false,
        meta: [("phase".into(), greenroom_protocol::wire::client_session::MetaValue::Int(1))]
            .into(),
    }))
}

fn ranked(score: i64) -> Document {
    let (board, user, name) = ("wins/1".into(), user("ann"), "Ann".into());
    Document::Ranked(RankedMember { board, user, name, score, since: 3 })
}

#[tokio::test]
async fn a_profile_keeps_its_first_check_in_and_what_others_wrote_into_it() {
    let scene = Scene::new();
    scene.written(&[checks_in((1, 10), 1_000, "Ann")]).await;
    let profile = serde_json::json!({
        "user": "ann", "name": "Ann", "first_ms": 1_000, "last_ms": 1_000
    });
    assert_eq!(scene.read(Collection::Users, "ann").await, Some(profile));
    let key = Key::new(Collection::Users, "ann").unwrap();
    let add = |found: Option<&greenroom_storage::Document>| {
        let mut profile: serde_json::Value = found.unwrap().body.decode().unwrap();
        profile["banned"] = true.into();
        let body = greenroom_storage::Body::of(&profile)?;
        Ok(greenroom_storage::Change::Write(body, greenroom_storage::Expiry::Keep))
    };
    scene.storage.update(key, add).await.unwrap();
    // A master that was founded anew: it knows nothing of the user.
    let mut later = checks_in((0, 1), 9_000, "Annie");
    later.epoch = Epoch { era: 2, epoch: 0 };
    scene.written(&[later]).await;
    let profile = serde_json::json!({
        "user": "ann", "name": "Annie", "first_ms": 1_000, "last_ms": 9_000, "banned": true
    });
    assert_eq!(scene.read(Collection::Users, "ann").await, Some(profile));
}

#[tokio::test]
async fn two_check_ins_of_one_write_keep_the_first_time() {
    let scene = Scene::new();
    scene.written(&[checks_in((1, 10), 1_000, "Ann"), checks_in((1, 20), 2_000, "Ann")]).await;
    let profile = scene.read(Collection::Users, "ann").await.unwrap();
    assert_eq!((&profile["first_ms"], &profile["last_ms"]), (&1_000.into(), &2_000.into()));
    assert_eq!(scene.metrics.documents_stored.load(Relaxed), 1);
}

#[tokio::test]
async fn what_is_told_again_by_the_next_master_is_written_once() {
    let scene = Scene::new();
    let instance = InstanceId(7);
    let all = [
        checks_in((1, 10), 1_000, "Ann"),
        placed((1, 11), 1_001, kept(instance, "running")),
        placed((1, 12), 1_002, ranked(5)),
    ];
    scene.written(&all).await;
    let ids = [
        (Collection::Users, "ann".to_owned()),
        (Collection::Instances, instance.to_string()),
        (Collection::Boards, "6/wins/1/ann".to_owned()),
    ];
    let mut versions = Vec::new();
    for round in 0..2 {
        for (collection, id) in &ids {
            let key = Key::new(*collection, id.as_str()).unwrap();
            let found = scene.storage.get(key).await.unwrap().unwrap();
            if round == 0 {
                versions.push(found.version);
            } else {
                assert_eq!(versions.remove(0), found.version, "{id}");
            }
        }
        scene.written(&all).await;
    }
    assert_eq!(scene.metrics.documents_refused.load(Relaxed), 0);
}

#[tokio::test]
async fn a_late_write_of_a_deposed_master_is_refused_and_counted() {
    let scene = Scene::new();
    let instance = InstanceId(7);
    scene
        .written(&[checks_in((2, 20), 2_000, "New"), placed((2, 21), 1, kept(instance, "running"))])
        .await;
    scene
        .written(&[checks_in((1, 19), 1_000, "Old"), placed((1, 18), 1, Document::Over(instance))])
        .await;
    let profile = scene.read(Collection::Users, "ann").await.unwrap();
    assert_eq!(profile["name"], "New");
    assert!(scene.read(Collection::Instances, &instance.to_string()).await.is_some());
    assert_eq!(scene.metrics.documents_refused.load(Relaxed), 2);
    let key = Key::new(Collection::Users, "ann").unwrap();
    let owner = scene.storage.get(key).await.unwrap().unwrap().owner;
    assert_eq!(owner, Some(Owner::Master { epoch: Epoch { era: 1, epoch: 2 }, lsn: 20 }));
}

/// What was stored of an instance that is over, and whose game server is not there to remove it, goes: in the name of
/// its last life, so that a former one writes nothing after it, and a later one keeps what it has.
#[tokio::test]
async fn a_snapshot_that_nobody_needs_is_removed_in_the_name_of_its_life() {
    let scene = Scene::new();
    let instance = InstanceId(7);
    let id = instance.to_string();
    let key = || Key::new(Collection::Snapshots, id.as_str()).unwrap();
    let body = Body::of(&serde_json::json!({ "tick": 1 })).unwrap();
    let owner = |incarnation, n| Owner::Instance { incarnation, n };
    let stored =
        |incarnation, n| scene.storage.put_owned(key(), owner(incarnation, n), body.clone());
    stored(3, 9).await.unwrap();
    let over = |lsn, life| placed((1, lsn), 1, Document::Unstored(instance, Incarnation(life)));
    scene.written(&[over(5, 4)]).await;
    assert_eq!(scene.read(Collection::Snapshots, &id).await, None);
    assert!(matches!(stored(3, 10).await, Err(StorageError::Deposed { .. })));
    // Told once more, it is the same removal.
    scene.written(&[over(5, 4)]).await;
    assert_eq!(scene.metrics.documents_refused.load(Relaxed), 0);
    stored(5, 1).await.unwrap();
    scene.written(&[over(5, 4)]).await;
    assert!(scene.read(Collection::Snapshots, &id).await.is_some());
    assert_eq!(scene.metrics.documents_refused.load(Relaxed), 1);
}

#[tokio::test]
async fn of_many_changes_the_last_one_stands_and_what_is_over_is_gone() {
    let scene = Scene::new();
    let (there, over) = (InstanceId(1), InstanceId(2));
    let mut changes: Vec<_> =
        (1..100).map(|lsn| placed((1, lsn), lsn, kept(there, "granted"))).collect();
    changes.push(placed((1, 100), 100, kept(there, "running")));
    changes.push(placed((1, 101), 101, kept(over, "running")));
    scene.written(&changes).await;
    let found = scene.read(Collection::Instances, &there.to_string()).await.unwrap();
    assert_eq!((&found["state"], &found["meta"]["phase"]), (&"running".into(), &1.into()));
    // No number that JavaScript would round.
    assert_eq!(found["incarnation"], Incarnation(u64::MAX).to_string());
    assert_eq!(scene.metrics.documents_stored.load(Relaxed), 2);
    let (board, user) = ("wins/1".into(), user("ann"));
    let gone = [
        placed((1, 102), 102, Document::Over(over)),
        placed((1, 103), 103, ranked(5)),
        placed((1, 104), 104, Document::Unranked { board, user }),
    ];
    scene.written(&gone).await;
    assert_eq!(scene.read(Collection::Instances, &over.to_string()).await, None);
    assert_eq!(scene.read(Collection::Boards, "6/wins/1/ann").await, None);
}

#[tokio::test]
async fn what_a_store_that_is_away_does_not_take_is_written_when_it_is_back() {
    let scene = Scene::new();
    scene.is_away.store(true, Relaxed);
    // The storage tries by itself for so long.
    let storage = scene.storage.with_deadline(Duration::from_millis(100));
    let writer = DocumentWriter::start(storage, Arc::clone(&scene.metrics)).unwrap();
    put(&writer, &[checks_in((1, 10), 1_000, "Ann")]);
    while scene.metrics.documents_retried.load(Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    // In what words depends on whether the storage had its answer in time.
    assert!(writer.trouble().unwrap().contains("does not take what the master has for it"));
    // A newer one takes its place, and nothing of the older one is lost.
    put(&writer, &[checks_in((1, 20), 2_000, "Ann")]);
    scene.is_away.store(false, Relaxed);
    while scene.metrics.documents_stored.load(Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let profile = scene.read(Collection::Users, "ann").await.unwrap();
    assert_eq!((&profile["first_ms"], &profile["last_ms"]), (&1_000.into(), &2_000.into()));
    while writer.trouble().is_some() {
        tokio::task::yield_now().await;
    }
    writer.close().await;
    assert_eq!(scene.metrics.documents_waiting.load(Relaxed), 0);
}

#[test]
fn a_full_queue_leaves_out_what_is_new_and_takes_what_is_newer() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let n_th = |n: usize, lsn| placed((1, lsn), 1, kept(InstanceId(n as u128), "running"));
    for n in 0..WAITING_MAX {
        assert!(queue.put(&n_th(n, 1), None, now));
    }
    assert!(!queue.put(&n_th(WAITING_MAX, 1), None, now));
    assert!(queue.put(&n_th(0, 2), None, now));
    assert_eq!(queue.len(), WAITING_MAX);
}

#[test]
fn one_key_is_never_written_by_two_at_once() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let later = now + Duration::from_secs(1);
    assert!(queue.put(&checks_in((1, 1), 1, "A"), None, now));
    assert!(matches!(queue.next(now), Next::At(_)));
    let Next::Do(key, _) = queue.next(later) else { panic!("it is due") };
    assert!(queue.put(&checks_in((1, 2), 2, "B"), None, now));
    assert!(matches!(queue.next(later), Next::Nothing));
    queue.done(&key);
    let Next::Do(_, Pending { what: What::Profile { name, .. }, .. }) = queue.next(later) else {
        panic!("the newer one is due")
    };
    assert_eq!(name, "B");
}

#[tokio::test]
async fn boards_of_earlier_eras_are_read_back_and_those_of_this_one_are_not() {
    let scene = Scene::new();
    let member = |n: u64, era| {
        let user = user(&format!("user {n}"));
        let (board, name) = ("wins".into(), "Ann".into());
        let what = Document::Ranked(RankedMember { board, user, name, score: 1, since: n });
        Placed { epoch: Epoch { era, epoch: 1 }, ..placed((1, n), 1, what) }
    };
    let earlier: Vec<_> = (1..=1_200).map(|n| member(n, 1)).collect();
    scene.written(&earlier).await;
    scene.written(&[member(2_000, 2)]).await;
    let mut documents = Some(scene.writer());
    documents.as_ref().unwrap().wish_boards(2);
    let mut read = std::collections::BTreeSet::new();
    while read.len() < 1_200 {
        for RankedMember { since, .. } in DocumentWriter::page(&mut documents).await {
            assert!(read.insert(since), "{since} twice");
        }
    }
    assert!(!read.contains(&2_000));
    documents.take().unwrap().close().await;
}

#[test]
fn the_indexes_make_a_schema() {
    let schema = Schema::new(indexes()).unwrap();
    assert_eq!(schema.field(Collection::Boards, "score"), Some(FieldType::Number));
}
