//! Owners' writes while the store is away: kept on the disk, stored when it is back, fenced by their owners' numbers.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use greenroom_storage::backend::memory::Memory;
use greenroom_storage::backend::{Backend, Boxed, Job, Operation};
use greenroom_storage::{
    Body, Clock, Collection, Kept, Key, OpenError, Owner, Schema, Storage, StorageConfig,
    StorageError, Write,
};
use tokio::task::JoinSet;

#[path = "support/disk.rs"]
mod disk;

const CHILD: &str = "GREENROOM_STORAGE_TEST_CHILD";

/// Memory that can be away, and outlives the storage on it.
#[derive(Debug)]
struct Away {
    store: Memory,
    is_away: AtomicBool,
    /// Owners' writes in the order in which they came while it was there.
    written: Mutex<Vec<(String, Owner)>>,
}

#[derive(Debug)]
struct Shared(Arc<Away>);

impl Backend for Shared {
    fn name(&self) -> &'static str {
        "away"
    }
    fn begin(&self, jobs: Vec<Job>) {
        if self.0.is_away.load(Ordering::SeqCst) {
            for job in jobs {
                job.answer(Err(StorageError::Unavailable("away".into())));
            }
        } else {
            let puts = jobs.iter().filter_map(|job| match job.operation() {
                Operation::Put(put) => Some((put.key.id().to_owned(), put.owner?)),
                Operation::Get { .. }
                | Operation::Remove { .. }
                | Operation::Touch { .. }
                | Operation::Query(_)
                | Operation::Raw(_) => None,
            });
            self.0.written.lock().unwrap().extend(puts);
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

fn away() -> Arc<Away> {
    Arc::new(Away {
        store: Memory::new(Clock::system()),
        is_away: AtomicBool::new(true),
        written: Mutex::default(),
    })
}

fn start(store: &Arc<Away>, folder: &Path, spool_bytes_max: u64) -> Storage {
    let config = StorageConfig {
        spool: folder.join("spool"),
        spool_bytes_max,
        deadline: Duration::from_millis(200),
        ..StorageConfig::default()
    };
    let shared = Shared(store.clone());
    Storage::start(&config, Schema::default(), async move || {
        Ok(Arc::new(shared) as Arc<dyn Backend>)
    })
    .unwrap()
}

fn key(id: &str) -> Key {
    Key::new(Collection::Snapshots, id).unwrap()
}

fn write(id: &str, incarnation: u64, n: u64) -> Write {
    let body = Body::of(&serde_json::json!({ "n": n })).unwrap();
    Write::owned(key(id), Owner::Instance { incarnation, n }, body)
}

/// The owner of what is stored.
async fn owner(storage: &Storage, id: &str) -> Option<(u64, u64)> {
    let storage = storage.with_deadline(Duration::from_secs(60));
    match storage.get(key(id)).await.unwrap()?.owner? {
        Owner::Instance { incarnation, n } => Some((incarnation, n)),
        Owner::Master { .. } => None,
    }
}

/// Waits until the spool's files are gone.
async fn drained(folder: &Path) {
    let files = || {
        let names = std::fs::read_dir(folder.join("spool")).unwrap();
        names
            .filter(|name| name.as_ref().unwrap().path().extension() == Some("log".as_ref()))
            .count()
    };
    let begun = Instant::now();
    while files() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "the spool is not drained");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_is_kept_while_the_store_is_away_is_stored_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = away();
    let storage = start(&store, folder.path(), 1 << 20);
    for n in 1..=20 {
        assert_eq!(storage.behind(write("a", 1, n)).await.unwrap(), Kept::Spooled);
        assert_eq!(storage.behind(write(&format!("b{n}"), 1, n)).await.unwrap(), Kept::Spooled);
    }
    assert_eq!(
        storage
            .behind(Write::owned_removal(key("b3"), Owner::Instance { incarnation: 1, n: 4 }))
            .await
            .unwrap(),
        Kept::Spooled
    );
    // What has no owner, and what is to be durable at once, is refused.
    let blind = Write::upsert(key("blind"), Body::new("{}").unwrap());
    let error = storage.behind(blind).await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable(_)), "{error}");
    assert!(storage.ask(write("c", 1, 1)).await.unwrap_err().is_temporary());
    store.is_away.store(false, Ordering::SeqCst);
    drained(folder.path()).await;
    assert_eq!(owner(&storage, "a").await, Some((1, 20)));
    for n in (1..=20).filter(|n| *n != 3) {
        assert_eq!(owner(&storage, &format!("b{n}")).await, Some((1, n)));
    }
    for none in ["b3", "blind", "c"] {
        assert_eq!(owner(&storage, none).await, None, "{none}");
    }
    // And then the store is asked again.
    while storage.behind(write("a", 1, 21)).await.unwrap() == Kept::Spooled {}
    assert_eq!(owner(&storage, "a").await, Some((1, 21)));
}

/// Method: keys are written all the time, one write after the other; the store comes back in the middle, and what it is
/// given is compared with what was written.
#[tokio::test]
async fn what_comes_while_the_spool_is_drained_reaches_the_store_in_its_order() {
    const WRITES: u64 = 60;
    let folder = tempfile::tempdir().unwrap();
    let store = away();
    let storage = start(&store, folder.path(), 1 << 20);
    let mut writers = JoinSet::new();
    for id in ["a", "b", "c"] {
        let (storage, store) = (storage.clone(), store.clone());
        writers.spawn(async move {
            for n in 1..=WRITES {
                if n == WRITES / 3 {
                    store.is_away.store(false, Ordering::SeqCst);
                }
                storage.behind(write(id, 1, n)).await.unwrap();
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    drained(folder.path()).await;
    let written = store.written.lock().unwrap();
    for id in ["a", "b", "c"] {
        let of_it: Vec<u64> = written
            .iter()
            .filter(|(key, _)| key == id)
            .map(|(_, owner)| match owner {
                Owner::Instance { n, .. } => *n,
                Owner::Master { .. } => panic!("nobody wrote that"),
            })
            .collect();
        assert!(of_it.is_sorted(), "{id}: {of_it:?}");
        assert_eq!(of_it.last(), Some(&WRITES), "{id}: {of_it:?}");
    }
    assert_eq!(storage.metrics().deposed.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn what_is_drained_late_is_fenced_by_what_was_stored_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let store = away();
    let storage = start(&store, folder.path(), 1 << 20);
    assert_eq!(storage.behind(write("moved", 1, 9)).await.unwrap(), Kept::Spooled);
    assert_eq!(storage.behind(write("stayed", 1, 9)).await.unwrap(), Kept::Spooled);
    storage.close().await;
    drop(storage);
    // Another server goes on with the instance while this one is down.
    store.is_away.store(false, Ordering::SeqCst);
    let elsewhere = tempfile::tempdir().unwrap();
    let other = start(&store, elsewhere.path(), 1 << 20);
    assert!(matches!(other.behind(write("moved", 2, 1)).await.unwrap(), Kept::Stored(_)));
    let storage = start(&store, folder.path(), 1 << 20);
    drained(folder.path()).await;
    assert_eq!(owner(&storage, "moved").await, Some((2, 1)));
    assert_eq!(owner(&storage, "stayed").await, Some((1, 9)));
    assert_eq!(storage.metrics().deposed.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_full_spool_says_so_and_has_room_when_it_is_drained() {
    let folder = tempfile::tempdir().unwrap();
    let store = away();
    let storage = start(&store, folder.path(), 4_000);
    let mut kept = 0;
    let error = loop {
        match storage.behind(write("a", 1, kept + 1)).await {
            Ok(_) => kept += 1,
            Err(error) => break error.to_string(),
        }
        assert!(kept < 1_000, "the spool has no bound");
    };
    assert!(kept > 10 && error.contains("storage.spool_bytes_max = 4000"), "{kept}: {error}");
    store.is_away.store(false, Ordering::SeqCst);
    drained(folder.path()).await;
    assert_eq!(owner(&storage, "a").await, Some((1, kept)));
    store.is_away.store(true, Ordering::SeqCst);
    assert_eq!(storage.behind(write("a", 1, kept + 1)).await.unwrap(), Kept::Spooled);
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_what_stands_before_the_damage_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let store = away();
    let storage = start(&store, folder.path(), 1 << 20);
    for id in ["a", "b", "c"] {
        assert_eq!(storage.behind(write(id, 1, 1)).await.unwrap(), Kept::Spooled);
    }
    storage.close().await;
    drop(storage);
    let files = || {
        let names = std::fs::read_dir(folder.path().join("spool")).unwrap();
        let mut files: Vec<_> = names.map(|name| name.unwrap().path()).collect();
        files.retain(|file| file.extension() == Some("log".as_ref()));
        files.sort();
        files
    };
    // All frames in one file, the last of them damaged.
    let (first, others) =
        files().split_first().map(|(first, others)| (first.clone(), others.to_vec())).unwrap();
    let mut bytes = std::fs::read(&first).unwrap();
    for other in others {
        bytes.extend_from_slice(&std::fs::read(&other).unwrap()[8..]);
        std::fs::remove_file(other).unwrap();
    }
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    std::fs::write(&first, &bytes).unwrap();
    store.is_away.store(false, Ordering::SeqCst);
    let storage = start(&store, folder.path(), 1 << 20);
    drained(folder.path()).await;
    assert_eq!(
        (owner(&storage, "a").await, owner(&storage, "b").await),
        (Some((1, 1)), Some((1, 1)))
    );
    assert_eq!(owner(&storage, "c").await, None);
    assert!(std::fs::read(first.with_extension("damaged")).unwrap() == bytes);
    assert_eq!(storage.metrics().spool_damaged.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_spool_belongs_to_one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let storage = start(&away(), folder.path(), 1 << 20);
    let config = StorageConfig {
        spool: folder.path().join("spool"),
        store: "memory".into(),
        ..StorageConfig::default()
    };
    let error = greenroom_storage::open(&config, Schema::default()).unwrap_err().to_string();
    assert!(error.contains("another process has the spool"), "{error}");
    storage.close().await;
}

/// What keeps writes until some are refused, makes room, and goes on; what was said to be kept is stored. Gives the
/// last refusal.
fn keep_and_go_on(folder: &Path, make_room: impl FnOnce()) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = away();
    let storage = start(&store, folder, 1 << 30);
    let large = |id: &str, n: u64| {
        let body = Body::of(&serde_json::json!({ "n": n, "text": "x".repeat(20_000) })).unwrap();
        Write::owned(key(id), Owner::Instance { incarnation: 1, n }, body)
    };
    let huge = || {
        let body = Body::of(&serde_json::json!({ "text": "x".repeat(200_000) })).unwrap();
        Write::owned(key("huge"), Owner::Instance { incarnation: 1, n: 1 }, body)
    };
    runtime.block_on(async {
        let mut kept = Vec::new();
        let mut refused = Vec::new();
        for n in 1..=20 {
            match storage.behind(large(&format!("k{n}"), n)).await {
                Ok(_) => kept.push(n),
                Err(error) => {
                    assert!(error.is_temporary(), "{error}");
                    assert!(error.to_string().contains("can't be written"), "{error}");
                    refused.push(error.to_string());
                }
            }
        }
        assert!(kept.len() > 5, "{refused:?} refused, kept {kept:?}");
        assert!(storage.behind(huge()).await.unwrap_err().is_temporary());
        make_room();
        assert_eq!(storage.behind(huge()).await.unwrap(), Kept::Spooled);
        store.is_away.store(false, Ordering::SeqCst);
        drained(folder).await;
        for n in kept {
            assert_eq!(owner(&storage, &format!("k{n}")).await, Some((1, n)));
        }
        assert_eq!(owner(&storage, "huge").await, Some((1, 1)));
        assert_eq!(storage.metrics().spool_damaged.load(Ordering::SeqCst), 0);
        refused.pop().expect("some were refused")
    })
}

/// A disk without room says so, loses nothing that was kept, and is written to again once there is room.
///
/// Method: a child on a file system of 768 KiB, of which something else holds 512 until it is taken away.
#[test]
fn a_full_disk_says_so_and_loses_nothing_that_was_kept() {
    if let Ok(folder) = std::env::var(CHILD) {
        let folder = Path::new(&folder);
        let ballast = folder.join("ballast");
        std::fs::write(&ballast, vec![7; 512 * 1024]).unwrap();
        let refused = keep_and_go_on(folder, || std::fs::remove_file(&ballast).unwrap());
        println!("a full disk was left behind: {refused}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let variable = (CHILD, folder.path().to_str().unwrap());
    let test = "a_full_disk_says_so_and_loses_nothing_that_was_kept";
    let out = disk::on_a_disk_of(768, folder.path(), test, variable);
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.contains("a full disk was left behind"), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
}

/// The same where a file may not grow any more.
///
/// Method: a child that may make no file larger than 128 KiB keeps writes until one is refused, more than a file has
/// room for; then the limit goes, and what was said to be kept is stored.
#[test]
fn a_file_that_may_not_grow_says_so_and_loses_nothing_that_was_kept() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    if let Ok(folder) = std::env::var(CHILD) {
        let refused = keep_and_go_on(Path::new(&folder), || {
            let limit = getrlimit(Resource::Fsize);
            setrlimit(Resource::Fsize, Rlimit { current: limit.maximum, ..limit }).unwrap();
        });
        println!("a full disk was left behind: {refused}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // Without the trap the first write over the limit would end the child. The limit counts blocks of 512 bytes.
    let script = "trap '' XFSZ; ulimit -S -f 256; exec \"$0\" \"$@\"";
    let test = "a_file_that_may_not_grow_says_so_and_loses_nothing_that_was_kept";
    let out = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.contains("a full disk was left behind"), "{said}");
}

/// What was said to be kept survives `kill -9`, and goes to the store at the next start.
///
/// Method: a child whose store is away keeps writes and says so, a line each; it is killed in the middle; then a
/// storage on its folder, whose store is there, drains.
#[test]
fn what_is_kept_survives_the_death_of_its_process() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if let Ok(folder) = std::env::var(CHILD) {
        let storage = start(&away(), Path::new(&folder), 1 << 30);
        runtime.block_on(async {
            for n in 1.. {
                assert_eq!(storage.behind(write("a", 1, n)).await.unwrap(), Kept::Spooled);
                assert_eq!(
                    storage.behind(write(&format!("b{n}"), 1, n)).await.unwrap(),
                    Kept::Spooled
                );
                let mut out = std::io::stdout().lock();
                writeln!(out, "kept {n}").unwrap();
                out.flush().unwrap();
            }
        });
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_is_kept_survives_the_death_of_its_process", "--nocapture"])
        .env(CHILD, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut kept = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if let Some(n) = line.unwrap().strip_prefix("kept ").and_then(|n| n.parse::<u64>().ok()) {
            kept = n;
        }
        if kept == 40 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(kept >= 40, "{kept}");
    let store = away();
    store.is_away.store(false, Ordering::SeqCst);
    runtime.block_on(async {
        let storage = start(&store, folder.path(), 1 << 30);
        drained(folder.path()).await;
        let (_, n) = owner(&storage, "a").await.unwrap();
        assert!((kept..=kept + 1).contains(&n), "{kept} kept, {n} stored");
        for n in 1..=kept {
            assert_eq!(owner(&storage, &format!("b{n}")).await, Some((1, n)));
        }
    });
}
