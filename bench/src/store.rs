//! The store: durable writes through the storage actor on SQLite and on Couchbase, beside the bare library that does
//! the same in turn, writes to memory, and what a full queue takes.

#[cfg(feature = "couchbase")]
pub(crate) mod couchbase;

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use greenroom_storage::backend::{Backend, Boxed, Job};
use greenroom_storage::{
    Body, Collection, Key, OpenError, Schema, Storage, StorageConfig, StorageError, Write,
};
use hdrhistogram::Histogram;
use rusqlite::params;
use tokio::task::LocalSet;

use crate::machine;
use crate::measure::float;
use crate::report::{Figures, median, progress};

/// Keys under way.
pub(crate) const SIZES: [usize; 3] = [1, 64, 1_024];
/// Bytes of a document.
const DOCUMENT_BYTES: usize = 220;
/// Keys of each worker, which it writes in turn.
const KEYS_OF_A_WORKER: usize = 16;
/// Operations of the full queue.
const QUEUED: usize = 100_000;
/// Times that the disk is asked.
const SYNCS: usize = 100;

/// A folder that goes when it is dropped.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let path =
            std::env::temp_dir().join(format!("greenroom-bench-store-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            progress(&format!("{} stays: {error}", self.0.display()));
        }
    }
}

/// Measures one number of keys under way, bare and through the actor in turn. The figures are medians.
pub(crate) fn upserts(size: usize, runs: u16, seconds: f64) -> anyhow::Result<Figures> {
    let folder = Folder::new()?;
    let window = Duration::from_secs_f64(seconds);
    let mut all = Vec::new();
    for run in 1..=runs {
        progress(&format!("store, {size} keys under way, run {run} of {runs}"));
        let sync = fdatasync_p50(&folder.0)?;
        let bare = bare(&folder.0.join(format!("bare-{run}.sqlite")), size, window)?;
        let actor = actor(&folder.0.join(format!("actor-{run}.sqlite")), size, window)?;
        all.push(vec![
            ("upserts_per_s", actor.per_s),
            ("p50_ms", actor.p50_ms),
            ("p99_ms", actor.p99_ms),
            ("cpu_us_per_upsert", actor.cpu_us),
            ("bare_upserts_per_s", bare.per_s),
            ("bare_p99_ms", bare.p99_ms),
            ("bare_cpu_us_per_upsert", bare.cpu_us),
            ("cpu_percent_more", (actor.cpu_us / bare.cpu_us - 1.0) * 100.0),
            ("fdatasync_p50_ms", sync),
        ]);
    }
    Ok(figures(&all))
}

/// The medians of all runs, which have the same figures.
fn figures(all: &[Figures]) -> Figures {
    let names: Vec<&'static str> = all.iter().take(1).flatten().map(|(name, _)| *name).collect();
    names.into_iter().filter_map(|name| Some((name, median(all, name)?))).collect()
}

/// The actor by itself, on a store that takes no time: what every store costs at least.
pub(crate) fn memory(size: usize, runs: u16, seconds: f64) -> anyhow::Result<Figures> {
    let window = Duration::from_secs_f64(seconds);
    let mut all = Vec::new();
    for run in 1..=runs {
        progress(&format!("store in memory, {size} keys under way, run {run} of {runs}"));
        let config = StorageConfig { store: "memory".into(), ..StorageConfig::default() };
        let actor = through(config, size, window)?;
        all.push(vec![
            ("upserts_per_s", actor.per_s),
            ("p50_ms", actor.p50_ms),
            ("p99_ms", actor.p99_ms),
            ("cpu_us_per_upsert", actor.cpu_us),
        ]);
    }
    Ok(figures(&all))
}

/// What one run took.
struct Taken {
    per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
}

/// Milliseconds that the disk takes to keep 4 KiB.
fn fdatasync_p50(folder: &Path) -> anyhow::Result<f64> {
    let path = folder.join("sync");
    let mut file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
    let mut times = Histogram::<u64>::new(3)?;
    for _ in 0..SYNCS {
        file.write_all(&[7; 4_096])?;
        let began = Instant::now();
        file.sync_data()?;
        times.record(micros(began.elapsed()))?;
    }
    Ok(float(times.value_at_quantile(0.5)) / 1e3)
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn id(worker: usize, round: usize) -> String {
    format!("{worker:05}/{:02}", round % KEYS_OF_A_WORKER)
}

fn json(round: usize) -> String {
    let head = format!("{{\"level\":{round},\"text\":\"");
    let rest = DOCUMENT_BYTES.saturating_sub(head.len() + 2);
    format!("{head}{}\"}}", "x".repeat(rest))
}

/// The library by itself: transactions of as many upserts as keys would be under way.
fn bare(file: &Path, size: usize, window: Duration) -> anyhow::Result<Taken> {
    let connection = rusqlite::Connection::open(file)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.execute_batch(
        "CREATE TABLE documents (id TEXT PRIMARY KEY NOT NULL, version INTEGER NOT NULL, owner BLOB, \
         expires INTEGER, body TEXT) STRICT",
    )?;
    let (began, cpu) = (Instant::now(), machine::cpu(std::process::id())?);
    let (mut count, mut times) = (0_u64, Histogram::<u64>::new(3)?);
    for round in 0.. {
        if began.elapsed() >= window {
            break;
        }
        let started = Instant::now();
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
        for worker in 0..size {
            connection
                .prepare_cached(
                    "INSERT INTO documents (id, version, owner, expires, body) VALUES (?1, ?2, ?3, ?4, ?5) \
                     ON CONFLICT (id) DO UPDATE SET version = excluded.version, owner = excluded.owner, \
                     expires = excluded.expires, body = excluded.body",
                )?
                .execute(params![
                    id(worker, round),
                    i64::try_from(count)?,
                    None::<Vec<u8>>,
                    None::<i64>,
                    json(round)
                ])?;
            count += 1;
        }
        connection.prepare_cached("COMMIT")?.execute(())?;
        times.record(micros(started.elapsed()))?;
    }
    taken(count, began, cpu, &times)
}

fn taken(
    count: u64,
    began: Instant,
    cpu: Duration,
    times: &Histogram<u64>,
) -> anyhow::Result<Taken> {
    ensure!(count > 0, "nothing was written in the time given");
    let spent = machine::cpu(std::process::id())?.saturating_sub(cpu);
    Ok(Taken {
        per_s: float(count) / began.elapsed().as_secs_f64(),
        p50_ms: float(times.value_at_quantile(0.5)) / 1e3,
        p99_ms: float(times.value_at_quantile(0.99)) / 1e3,
        cpu_us: spent.as_secs_f64() * 1e6 / float(count),
    })
}

/// Through the actor on SQLite.
fn actor(file: &Path, size: usize, window: Duration) -> anyhow::Result<Taken> {
    let store = format!("sqlite:{}", file.display()).into();
    through(StorageConfig { store, ..StorageConfig::default() }, size, window)
}

/// Through the actor: a task for each key under way.
fn through(config: StorageConfig, size: usize, window: Duration) -> anyhow::Result<Taken> {
    let config = StorageConfig { deadline: Duration::from_secs(60), ..config };
    let storage = greenroom_storage::open(&config, Schema::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (began, cpu) = (Instant::now(), machine::cpu(std::process::id())?);
    let (count, times) = runtime.block_on(LocalSet::new().run_until(async {
        let workers: Vec<_> = (0..size)
            .map(|worker| {
                let storage = storage.clone();
                tokio::task::spawn_local(async move {
                    let mut times = Vec::new();
                    for round in 0.. {
                        if began.elapsed() >= window {
                            break;
                        }
                        let started = Instant::now();
                        let key = Key::new(Collection::Documents, id(worker, round))?;
                        storage.upsert(key, Body::new(json(round))?).await?;
                        times.push(micros(started.elapsed()));
                    }
                    anyhow::Ok(times)
                })
            })
            .collect();
        let (mut count, mut times) = (0, Histogram::<u64>::new(3)?);
        for worker in workers {
            for time in worker.await?? {
                times.record(time)?;
                count += 1;
            }
        }
        anyhow::Ok((count, times))
    }))?;
    let taken = taken(count, began, cpu, &times);
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
