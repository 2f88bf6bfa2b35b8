//! The store: durable writes through the storage actor on SQLite and on Couchbase, beside the bare library and beside a
//! thread that was written by hand; writes to memory; and what a full queue takes.
//!
//! **Bare** is the library that is called directly: for SQLite, transactions of as many upserts as keys are under way,
//! in one loop; for Couchbase, a task for each key that calls the SDK. **By hand** is the same library on a thread of
//! its own that many tasks ask over a channel, which answers each over one of its own: what an application has to write
//! before several of its tasks can use SQLite, or before its storage has a thread of its own. Neither has an order by
//! key, a bound, a deadline, or a word on what became of a write that was cut off.

#[cfg(feature = "couchbase")]
pub(crate) mod couchbase;
mod load;
mod sqlite;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::ensure;
use greenroom_storage::backend::{Backend, Boxed, Job};
use greenroom_storage::{
    Body, Collection, Key, OpenError, Schema, Storage, StorageConfig, StorageError, Write,
};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use self::load::{Asked, Taken, by_hand, drive, json};
use crate::machine;
use crate::measure::float;
use crate::report::{Figures, median, progress};

/// Operations of the full queue.
const QUEUED: usize = 100_000;

/// The same load in each way, one after the other.
struct Run {
    bare: Option<Taken>,
    by_hand: Taken,
    actor: Taken,
}

impl Run {
    fn figures(&self) -> Figures {
        let Self { bare, by_hand, actor } = self;
        let more = |than: &Taken| (actor.cpu_us / than.cpu_us - 1.0) * 100.0;
        let mut figures = vec![
            ("upserts_per_s", actor.per_s),
            ("p50_ms", actor.p50_ms),
            ("p99_ms", actor.p99_ms),
            ("cpu_us", actor.cpu_us),
            ("first_cpu_us", actor.first_cpu_us),
            ("by_hand_upserts_per_s", by_hand.per_s),
            ("by_hand_p99_ms", by_hand.p99_ms),
            ("by_hand_cpu_us", by_hand.cpu_us),
            ("percent_over_by_hand", more(by_hand)),
        ];
        if let Some(bare) = bare {
            figures.extend([
                ("bare_upserts_per_s", bare.per_s),
                ("bare_p99_ms", bare.p99_ms),
                ("bare_cpu_us", bare.cpu_us),
                ("bare_first_cpu_us", bare.first_cpu_us),
                ("percent_over_bare", more(bare)),
            ]);
        }
        figures
    }
}

/// Measures one number of keys under way, each way in turn. The figures are medians.
fn in_turn(
    what: &str,
    size: usize,
    runs: u16,
    mut run: impl FnMut(u16) -> anyhow::Result<Figures>,
) -> anyhow::Result<Figures> {
    let mut all = Vec::new();
    for number in 1..=runs {
        progress(&format!("store, {what}, {size} keys under way, run {number} of {runs}"));
        all.push(run(number)?);
    }
    let names: Vec<&'static str> = all.iter().take(1).flatten().map(|(name, _)| *name).collect();
    Ok(names.into_iter().filter_map(|name| Some((name, median(&all, name)?))).collect())
}

/// In an SQLite file.
pub(crate) fn sqlite(size: usize, runs: u16, window: Duration) -> anyhow::Result<Figures> {
    let folder = sqlite::Folder::new()?;
    in_turn("SQLite", size, runs, |number| {
        let file = |way: &str| folder.path().join(format!("{way}-{number}.sqlite"));
        let sync = folder.fdatasync_p50()?;
        let run = Run {
            bare: Some(sqlite::bare(&file("bare"), size, window)?),
            by_hand: sqlite::by_hand(&file("by-hand"), size, window)?,
            actor: actor(on(format!("sqlite:{}", file("actor").display())), size, window)?,
        };
        let mut figures = run.figures();
        figures.push(("fdatasync_p50_ms", sync));
        Ok(figures)
    })
}

/// The actor by itself, on a store that takes no time: what every store costs at least. By hand, nothing is stored.
pub(crate) fn memory(size: usize, runs: u16, window: Duration) -> anyhow::Result<Figures> {
    in_turn("memory", size, runs, |_| {
        let run = Run {
            bare: None,
            by_hand: by_hand(size, window, nothing)?,
            actor: actor(on("memory"), size, window)?,
        };
        Ok(run.figures())
    })
}

fn nothing(mut asked: mpsc::Receiver<Asked>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        while let Some(asked) = asked.recv().await {
            asked.answer();
        }
    });
    Ok(())
}

fn on(store: impl Into<String>) -> StorageConfig {
    StorageConfig { store: store.into().into(), ..StorageConfig::default() }
}

/// Through the actor.
fn actor(config: StorageConfig, size: usize, window: Duration) -> anyhow::Result<Taken> {
    let config = StorageConfig { deadline: Duration::from_secs(60), ..config };
    let storage = greenroom_storage::open(&config, Schema::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let writing = storage.clone();
    let taken =
        runtime.block_on(LocalSet::new().run_until(drive(size, window, async move |id, json| {
            let key = Key::new(Collection::Documents, id)?;
            writing.upsert(key, Body::new(json)?).await?;
            Ok(())
        })));
    runtime.block_on(storage.close());
    taken
}

/// A store that never answers.
#[derive(Debug, Default)]
struct Stuck(Mutex<Vec<Job>>);

impl Backend for Stuck {
    fn name(&self) -> &'static str {
        "stuck"
    }
    fn begin(&self, jobs: Vec<Job>) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(jobs);
    }
    fn prepare<'a>(&'a self, _: &'a Schema) -> Boxed<'a, Result<(), OpenError>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn health(&self) -> Boxed<'_, Result<(), StorageError>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn close(&self) -> Boxed<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// What a queue takes that is full of writes to as many keys.
pub(crate) fn queue() -> anyhow::Result<Figures> {
    progress(&format!("store, {QUEUED} keys queued"));
    let config = StorageConfig { deadline: Duration::from_secs(600), ..StorageConfig::default() };
    let make = async || Ok(Arc::new(Stuck::default()) as Arc<dyn Backend>);
    let storage = Storage::start(&config, Schema::default(), make)?;
    let before = machine::rss(std::process::id())?;
    let mut tickets = Vec::with_capacity(QUEUED);
    for number in 0..QUEUED {
        let key = Key::new(Collection::Documents, format!("{number:08}"))?;
        tickets.push(storage.try_submit(Write::upsert(key, Body::new(json(number))?))?);
    }
    let key = Key::new(Collection::Documents, "one too many")?;
    let refused = storage.try_submit(Write::upsert(key, Body::new(json(0))?));
    ensure!(matches!(refused, Err(StorageError::Busy { .. })), "the queue has no bound");
    // Each lane has begun what it may, so it has seen what came before; the rest is in its mailbox or its lines.
    let most = config.lanes.get() * config.lane_under_way_max.get();
    while storage.metrics().under_way.load(Ordering::Relaxed) < u64::try_from(most)? {
        std::thread::yield_now();
    }
    let bytes = machine::rss(std::process::id())?.saturating_sub(before);
    let size = u64::try_from(QUEUED)?;
    Ok(vec![
        ("queued", float(size)),
        ("rss_bytes", float(bytes)),
        ("rss_bytes_per_key", float(bytes) / float(size)),
    ])
}
