//! What the actor promises when its store is slow, away, or loses an answer.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use greenroom_storage::backend::memory::Memory;
use greenroom_storage::backend::{Backend, Boxed, Job};
use greenroom_storage::{
    Body, Change, Clock, Collection, Get, Key, Merge, OpenError, Schema, Storage, StorageConfig,
    StorageError, Update, Write,
};

/// Memory behind a gate: jobs wait before it while it is shut.
#[derive(Debug)]
struct Gated {
    store: Memory,
    gate: Mutex<Gate>,
    is_away: AtomicBool,
}

#[derive(Debug, Default)]
struct Gate {
    is_shut: bool,
    held: Vec<Job>,
    /// Keys of mutations in the order in which they came through.
    passed: Vec<Key>,
}

impl Gated {
    fn shut() -> Arc<Self> {
        let gate = Mutex::new(Gate { is_shut: true, ..Gate::default() });
        let store = Memory::new(Clock::system());
        Arc::new(Self { store, gate, is_away: AtomicBool::new(false) })
    }

    fn open(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.is_shut = false;
        let held = std::mem::take(&mut gate.held);
        gate.passed.extend(held.iter().filter_map(|job| job.operation().key().cloned()));
        self.store.begin(held);
    }

    /// Waits until so many jobs stand before the gate.
    async fn held(&self, count: usize) {
        while self.gate.lock().unwrap().held.len() < count {
            tokio::task::yield_now().await;
        }
    }

    fn passed(&self, key: &Key) -> usize {
        self.gate.lock().unwrap().passed.iter().filter(|passed| *passed == key).count()
    }
}

#[derive(Debug)]
struct Shared(Arc<Gated>);

impl Backend for Shared {
    fn name(&self) -> &'static str {
        "gated"
    }
    fn begin(&self, jobs: Vec<Job>) {
        if self.0.is_away.load(Ordering::SeqCst) {
            for job in jobs {
                job.answer(Err(StorageError::Unavailable("away".into())));
            }
            return;
        }
        let mut gate = self.0.gate.lock().unwrap();
        if gate.is_shut {
            // No two of one key: what the actor promises every store.
            let mut keys = BTreeMap::new();
            for job in gate.held.iter().chain(&jobs) {
                if let Some(key) = job.operation().key() {
                    assert!(keys.insert(key.clone(), ()).is_none(), "two jobs of {key} at once");
                }
            }
            gate.held.extend(jobs);
        } else {
            gate.passed.extend(jobs.iter().filter_map(|job| job.operation().key().cloned()));
            self.0.store.begin(jobs);
        }
    }
    fn prepare<'a>(&'a self, schema: &'a Schema) -> Boxed<'a, Result<(), OpenError>> {
        self.0.store.prepare(schema)
    }
    fn health(&self) -> Boxed<'_, Result<(), StorageError>> {
        self.0.store.health()
    }
    fn close(&self) -> Boxed<'_, ()> {
        self.0.store.close()
    }
}

fn start(gated: &Arc<Gated>, config: &StorageConfig) -> Storage {
    let shared = Shared(gated.clone());
    Storage::start(
        config,
        Schema::default(),
        async move || Ok(Arc::new(shared) as Arc<dyn Backend>),
    )
    .unwrap()
}

fn config() -> StorageConfig {
    StorageConfig { deadline: Duration::from_secs(60), ..StorageConfig::default() }
}

fn key(id: &str) -> Key {
    Key::new(Collection::Documents, id).unwrap()
}

fn body(level: i64) -> Body {
    Body::of(&serde_json::json!({ "level": level })).unwrap()
}

async fn level(storage: &Storage, id: &str) -> Option<i64> {
    let document = storage.get(key(id)).await.unwrap()?;
    document.body.decode::<serde_json::Value>().unwrap()["level"].as_i64()
}

#[tokio::test]
async fn what_was_never_begun_is_unavailable_and_what_was_is_undecided_and_the_order_holds() {
    let gated = Gated::shut();
    let storage = start(&gated, &config());
    let hasty = storage.with_deadline(Duration::from_millis(500));
    let first = hasty.try_submit(Write::upsert(key("a"), body(1))).unwrap();
    gated.held(1).await;
    let second = hasty.try_submit(Write::upsert(key("a"), body(2))).unwrap();
    let read = hasty.try_submit(Get(key("b"))).unwrap();
    let third = storage.try_submit(Write::upsert(key("a"), body(3))).unwrap();
    assert!(matches!(first.await, Err(StorageError::Undecided { .. })));
    assert!(matches!(second.await, Err(StorageError::Unavailable(_))));
    assert!(matches!(read.await, Err(StorageError::Unavailable(_))));
    // The first is still with the store: nothing of its key has gone past it.
    assert_eq!(gated.gate.lock().unwrap().held.len(), 2);
    gated.open();
    third.await.unwrap();
    assert_eq!(level(&storage, "a").await, Some(3));
    // The second has never been begun: the first, the third and the read just now.
    assert_eq!(gated.passed(&key("a")), 3);
}

#[tokio::test]
async fn a_full_queue_says_so_at_once_to_who_cannot_wait_and_holds_up_who_can() {
    let gated = Gated::shut();
    let few = StorageConfig { queue_count_max: 4.try_into().unwrap(), ..config() };
    let storage = start(&gated, &few);
    let submit =
        |number: i64| storage.try_submit(Write::upsert(key(&number.to_string()), body(number)));
    let tickets: Vec<_> = (0..4).map(|number| submit(number).unwrap()).collect();
    assert!(matches!(submit(4), Err(StorageError::Busy { waiting: 4 })));
    let hasty = storage.with_deadline(Duration::from_millis(30));
    let late = hasty.submit(Write::upsert(key("late"), body(0))).await;
    assert!(matches!(late, Err(StorageError::Busy { .. })));
    let patient = storage.submit(Write::upsert(key("patient"), body(5)));
    let (ticket, ()) = tokio::join!(patient, async {
        gated.held(4).await;
        gated.open();
    });
    ticket.unwrap().await.unwrap();
    for ticket in tickets {
        ticket.await.unwrap();
    }
    assert_eq!(level(&storage, "late").await, None);
    let metrics = storage.metrics();
    let read = |of: &AtomicU64| of.load(Ordering::SeqCst);
    assert_eq!((read(&metrics.busy), read(&metrics.waiting)), (2, 0));
    // Everything that was taken has its time.
    assert_eq!(metrics.operation_duration.read().count(), read(&metrics.submitted));
    assert_eq!(metrics.job_duration.read().count(), read(&metrics.answered));
}

#[tokio::test]
async fn the_queue_is_bounded_by_bytes_too() {
    let gated = Gated::shut();
    let small = StorageConfig { document_bytes_max: 40_000, queue_bytes_max: 100_000, ..config() };
    let storage = start(&gated, &small);
    let large = || Body::of(&serde_json::json!({ "text": "x".repeat(39_000) })).unwrap();
    let submit = |id: &str| storage.try_submit(Write::upsert(key(id), large()));
    let tickets = [submit("a").unwrap(), submit("b").unwrap()];
    assert!(matches!(submit("c"), Err(StorageError::Busy { .. })));
    // What fits is taken.
    let fits = storage.try_submit(Get(key("c"))).unwrap();
    gated.held(3).await;
    gated.open();
    for ticket in tickets {
        ticket.await.unwrap();
    }
    assert_eq!(fits.await.unwrap(), None);
    submit("c").unwrap().await.unwrap();
}

#[tokio::test]
async fn a_newer_write_stands_in_for_those_that_wait_and_all_are_answered_by_it() {
    let gated = Gated::shut();
    let storage = start(&gated, &config());
    let write = |level| Write::upsert(key("a"), body(level)).merge(Merge::Allowed);
    let first = storage.try_submit(write(0)).unwrap();
    gated.held(1).await;
    let waiting: Vec<_> = (1..100).map(|level| storage.try_submit(write(level)).unwrap()).collect();
    // What does not allow it stands between, and is done.
    let between = storage.try_submit(Write::upsert(key("a"), body(500))).unwrap();
    let behind: Vec<_> =
        (600..650).map(|level| storage.try_submit(write(level)).unwrap()).collect();
    gated.open();
    let first = first.await.unwrap();
    let mut versions = Vec::new();
    for ticket in waiting {
        versions.push(ticket.await.unwrap());
    }
    versions.dedup();
    assert_eq!(versions.len(), 1, "all by one write");
    assert_ne!(versions[0], first);
    let between = between.await.unwrap();
    let mut last = Vec::new();
    for ticket in behind {
        last.push(ticket.await.unwrap());
    }
    last.dedup();
    assert_eq!(last.len(), 1, "all by one write");
    assert!(last[0] != between && between != versions[0]);
    assert_eq!(gated.passed(&key("a")), 4);
    assert_eq!(level(&storage, "a").await, Some(649));
    assert_eq!(storage.metrics().merged.load(Ordering::SeqCst), 98 + 49);
}

#[tokio::test]
async fn a_store_that_is_away_is_asked_again_until_the_deadline() {
    let gated = Gated::shut();
    gated.open();
    gated.is_away.store(true, Ordering::SeqCst);
    let storage = start(&gated, &config());
    let hasty = storage.with_deadline(Duration::from_millis(80));
    let refused = hasty.upsert(key("a"), body(1)).await;
    assert!(matches!(&refused, Err(error) if error.is_temporary()), "{refused:?}");
    let patient = storage.try_submit(Write::upsert(key("b"), body(2))).unwrap();
    let behind = storage.try_submit(Write::upsert(key("b"), body(3))).unwrap();
    while storage.metrics().retried.load(Ordering::SeqCst) < 8 {
        tokio::task::yield_now().await;
    }
    gated.is_away.store(false, Ordering::SeqCst);
    patient.await.unwrap();
    behind.await.unwrap();
    assert_eq!((level(&storage, "a").await, level(&storage, "b").await), (None, Some(3)));
}

#[tokio::test]
async fn a_dropped_job_is_answered_as_what_nobody_knows() {
    let gated = Gated::shut();
    let storage = start(&gated, &config());
    let write = storage.try_submit(Write::upsert(key("a"), body(1))).unwrap();
    let hasty = storage.with_deadline(Duration::from_secs(2));
    let read = hasty.try_submit(Get(key("b"))).unwrap();
    gated.held(2).await;
    gated.gate.lock().unwrap().held.clear();
    assert!(matches!(write.await, Err(StorageError::Undecided { .. })));
    // A read is asked again, and its deadline ends it.
    assert!(matches!(read.await, Err(StorageError::Unavailable(_))));
}

#[tokio::test]
async fn an_update_whose_write_comes_too_late_reads_again() {
    let gated = Gated::shut();
    let storage = start(&gated, &config());
    let other = start(&gated, &config());
    gated.open();
    storage.upsert(key("a"), body(1)).await.unwrap();
    let mut rounds = 0;
    let disturbed = other.clone();
    let after = storage
        .ask(Update::new(key("a"), move |before| {
            rounds += 1;
            if rounds <= 3 {
                // Somebody else, with a storage of its own, writes between.
                let write =
                    disturbed.try_submit(Write::upsert(key("a"), body(10 * rounds))).unwrap();
                std::thread::spawn(|| write.wait().unwrap()).join().unwrap();
            }
            let before = before.unwrap().body.decode::<serde_json::Value>().unwrap();
            Ok(Change::Write(body(before["level"].as_i64().unwrap() + 1), Default::default()))
        }))
        .await
        .unwrap();
    assert_eq!(after.unwrap().body, body(31));
    assert_eq!(storage.metrics().conflicts.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn closing_answers_everything_that_was_taken() {
    let gated = Gated::shut();
    let storage = start(&gated, &config());
    let tickets: Vec<_> = (0..500)
        .map(|number| {
            let write = Write::upsert(key(&(number % 50).to_string()), body(number));
            storage.try_submit(write).unwrap()
        })
        .collect();
    let closing = storage.close();
    let (mut opened, mut closing) = (false, std::pin::pin!(closing));
    loop {
        tokio::select! {
            () = &mut closing => break,
            () = gated.held(50), if !opened => {
                opened = true;
                gated.open();
            }
        }
    }
    for ticket in tickets {
        ticket.await.unwrap();
    }
    assert!(matches!(storage.try_submit(Get(key("1"))), Err(StorageError::Closed)));
    assert!(matches!(storage.submit(Get(key("1"))).await, Err(StorageError::Closed)));
}

#[tokio::test]
async fn one_key_that_hangs_holds_up_no_other() {
    let gated = Gated::shut();
    let storage = start(&gated, &config());
    let hanging = storage.try_submit(Write::upsert(key("slow"), body(1))).unwrap();
    gated.held(1).await;
    // The gate holds this one job only.
    gated.gate.lock().unwrap().is_shut = false;
    for number in 0..300 {
        storage.upsert(key(&number.to_string()), body(number)).await.unwrap();
    }
    let behind = storage.try_submit(Get(key("slow"))).unwrap();
    gated.open();
    hanging.await.unwrap();
    assert!(behind.await.unwrap().is_some());
}
