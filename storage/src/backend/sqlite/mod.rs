//! Documents in one SQLite file: several processes of one machine may have it open at once.
//!
//! One thread writes: it takes whatever waits and commits it together, so that a busy store has one `fdatasync` for
//! many writes. Others read, each with a connection of its own, and see every commit that was before them. Each commit
//! is durable before it is answered (write-ahead log, `synchronous = FULL`).

mod file;
mod reader;
mod select;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ecow::EcoString;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use self::reader::Reader;
use self::writer::Writer;
use super::{Backend, Boxed, Job, Operation};
use crate::{Clock, OpenError, Schema, StorageError};

/// Threads that read single documents.
const READERS: usize = 2;

/// A store in a file of SQLite's.
pub struct Sqlite {
    file: PathBuf,
    writes: Arc<Queue>,
    reads: Arc<Queue>,
    /// Queries have a thread of their own: a long one holds up no read of a document.
    queries: Arc<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    watchers: TaskTracker,
    running: Arc<reader::Running>,
    /// As it was last prepared.
    schema: Arc<Mutex<Arc<Schema>>>,
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Sqlite").field(&self.file).finish()
    }
}

impl Sqlite {
    /// Opens the store in `file`, which is made if it is not there.
    ///
    /// # Errors
    /// When the file is something else's, corrupt, of a newer Greenroom, or can't be made.
    pub fn open(file: &Path, clock: Clock) -> Result<Self, OpenError> {
        let connection = file::create(file)?;
        let (writes, reads, queries) =
            (Arc::new(Queue::default()), Arc::new(Queue::default()), Arc::new(Queue::default()));
        let schema = Arc::new(Mutex::new(Arc::new(Schema::default())));
        let mut threads = Vec::new();
        let writer = Writer::new(file, connection, clock.clone(), writes.clone());
        threads.push(spawn("store-writer", move || writer.run())?);
        for _ in 0..READERS {
            let reader =
                Reader::new(file::read(file)?, file, clock.clone(), reads.clone(), schema.clone());
            threads.push(spawn("store-reader", move || reader.run())?);
        }
        let reader = Reader::new(file::read(file)?, file, clock, queries.clone(), schema.clone());
        let running = reader.running();
        threads.push(spawn("store-queries", move || reader.run())?);
        Ok(Self {
            file: file.into(),
            writes,
            reads,
            queries,
            threads: Mutex::new(threads),
            watchers: TaskTracker::new(),
            running,
            schema,
        })
    }

    /// What the file lacks or has that a store of this schema can't have, each in a sentence that says what to do.
    /// Changes nothing; a large file is read as a whole.
    pub fn findings(file: &Path, schema: &Schema) -> Vec<EcoString> {
        file::findings(file, schema)
    }

    /// Has the writer's thread do something.
    async fn on_the_writer<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut rusqlite::Connection) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, done) = oneshot::channel();
        self.writes.push_act(Box::new(move |connection| {
            if answer.send(act(connection)).is_err() {
                tracing::debug!("nobody waits for the store any more");
            }
        }));
        done.await.ok()
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    std::thread::Builder::new().name(name.into()).spawn(body).map_err(OpenError::Thread)
}

impl Backend for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn begin(&self, jobs: Vec<Job>) {
        let (mut writes, mut reads, mut queries) = (Vec::new(), Vec::new(), Vec::new());
        for job in jobs {
            match job.operation() {
                Operation::Get { .. } => reads.push(job),
                Operation::Query(_) | Operation::Raw(_) => queries.push(job),
                Operation::Put(_) | Operation::Remove { .. } | Operation::Touch { .. } => {
                    writes.push(job);
                }
            }
        }
        self.writes.push(writes);
        self.reads.push(reads);
        for query in &queries {
            // A question that runs on past its deadline is cut off, so that the next gets its turn.
            let (running, deadline) = (self.running.clone(), query.deadline());
            self.watchers.spawn(async move {
                tokio::time::sleep_until(deadline).await;
                running.interrupt(deadline);
            });
        }
        self.queries.push(queries);
    }

    fn prepare<'a>(&'a self, schema: &'a Schema) -> Boxed<'a, Result<(), OpenError>> {
        Box::pin(async move {
            *lock(&self.schema) = Arc::new(schema.clone());
            let schema = schema.clone();
            let file = self.file.clone();
            let made = self.on_the_writer(move |connection| {
                file::make_indexes(connection, &schema)
                    .map_err(|error| file::refused(&file, &error))
            });
            made.await.unwrap_or(Err(OpenError::Panicked))
        })
    }

    fn health(&self) -> Boxed<'_, Result<(), StorageError>> {
        Box::pin(async move {
            let file = self.file.clone();
            let checked = self.on_the_writer(move |connection| {
                writer::check(connection).map_err(|error| file::failed(&file, &error))
            });
            checked.await.unwrap_or(Err(StorageError::Closed))
        })
    }

    fn close(&self) -> Boxed<'_, ()> {
        Box::pin(async move {
            for queue in [&self.reads, &self.queries, &self.writes] {
                queue.close();
            }
            let threads = std::mem::take(&mut *lock(&self.threads));
            // Nothing else runs in the storage's runtime any more, so its thread may wait.
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a thread of the store panicked; see above");
                }
            }
        })
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        for queue in [&self.reads, &self.queries, &self.writes] {
            queue.close();
        }
    }
}

/// Something for the writer's own thread.
type Act = Box<dyn FnOnce(&mut rusqlite::Connection) + Send>;

/// Jobs for a thread. The lanes bound how many there are: what is under way.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: Vec<Job>,
    acts: Vec<Act>,
    is_closed: bool,
    /// A thread sleeps until there are so many jobs, and is not woken for fewer.
    wanted: usize,
}

/// What a thread is to do next.
enum Next {
    Work(Vec<Act>, Vec<Job>),
    /// Nothing came in this time.
    Nothing,
    Closed,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is done under these locks that could panic half way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    fn push(&self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let mut waiting = lock(&self.waiting);
        if waiting.is_closed {
            return; // Dropped jobs answer by themselves.
        }
        waiting.jobs.extend(jobs);
        let is_enough = waiting.jobs.len() >= waiting.wanted;
        drop(waiting);
        if is_enough {
            self.more.notify_one();
        }
    }

    fn push_act(&self, act: Act) {
        let mut waiting = lock(&self.waiting);
        if !waiting.is_closed {
            waiting.acts.push(act);
        }
        drop(waiting);
        self.more.notify_one();
    }

    fn close(&self) {
        lock(&self.waiting).is_closed = true;
        self.more.notify_all();
    }

    /// Waits until there is something, `patience` at most; then, where `company` is more than there is, a little longer
    /// for as much: who was answered together comes back together.
    fn take(&self, patience: Duration, company: usize, gather: Duration) -> Next {
        let waiting = lock(&self.waiting);
        let is_idle = |waiting: &mut Waiting| {
            waiting.jobs.is_empty() && waiting.acts.is_empty() && !waiting.is_closed
        };
        let waited = self.more.wait_timeout_while(waiting, patience, is_idle);
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if !waiting.jobs.is_empty() {
            waiting.wanted = company;
            let is_less = |waiting: &mut Waiting| {
                waiting.jobs.len() < company && waiting.acts.is_empty() && !waiting.is_closed
            };
            let waited = self.more.wait_timeout_while(waiting, gather, is_less);
            (waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
            waiting.wanted = 0;
        }
        if waiting.jobs.is_empty() && waiting.acts.is_empty() {
            return if waiting.is_closed { Next::Closed } else { Next::Nothing };
        }
        Next::Work(std::mem::take(&mut waiting.acts), std::mem::take(&mut waiting.jobs))
    }

    /// Waits for one job.
    fn take_one(&self) -> Option<Job> {
        let waiting = lock(&self.waiting);
        let is_idle = |waiting: &mut Waiting| waiting.jobs.is_empty() && !waiting.is_closed;
        let mut waiting =
            self.more.wait_while(waiting, is_idle).unwrap_or_else(PoisonError::into_inner);
        // The oldest first; a few thousand pointers are moved in no time.
        if waiting.jobs.is_empty() { None } else { Some(waiting.jobs.remove(0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Body, Collection, Get, Key, Storage, StorageConfig, Write};

    /// Method: SQLite's own switch in the thread that writes, since no file system can be mounted anew for reading
    /// while a file in it is open for writing; to a statement it is the same answer, `SQLITE_READONLY`.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_file_that_becomes_read_only_keeps_what_it_has_says_so_and_is_written_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("store.sqlite");
        let store = Arc::new(Sqlite::open(&file, Clock::system()).expect("a new file"));
        let backend = Arc::clone(&store) as Arc<dyn Backend>;
        let config = StorageConfig::default();
        let start = move || Storage::start(&config, Schema::default(), async || Ok(backend));
        let storage =
            tokio::task::spawn_blocking(start).await.expect("no panic").expect("it opens");
        let storage = storage.with_deadline(Duration::from_secs(1));
        let key = |id: &str| Key::new(Collection::Documents, id).expect("a short id");
        let body = |n: u8| Body::of(&serde_json::json!({ "n": n })).expect("an object");
        let read_only = async |is: bool| {
            let switched = store
                .on_the_writer(move |connection| connection.pragma_update(None, "query_only", is));
            switched.await.expect("the thread is there").expect("a pragma");
        };
        storage.upsert(key("a"), body(1)).await.expect("it can be written");
        read_only(true).await;
        let refused = storage.ask(Write::upsert(key("a"), body(2))).await.expect_err("it can't be");
        assert!(matches!(refused, StorageError::Unavailable(_)), "{refused}");
        for part in ["store.sqlite", "can't be written any more", "mend its disk or its rights"] {
            assert!(refused.to_string().contains(part), "{part}: {refused}");
        }
        let ill = storage.health().await.expect_err("it can't be written");
        assert!(ill.to_string().contains("can't be written any more"), "{ill}");
        let kept = storage.ask(Get(key("a"))).await.expect("reads go on").expect("it is there");
        assert_eq!(kept.body, body(1));
        // Who waits is served when it comes back.
        let patient = storage.with_deadline(Duration::from_secs(60));
        let waits = patient.submit(Write::upsert(key("b"), body(3))).await.expect("there is room");
        read_only(false).await;
        waits.await.expect("it is written in the end");
        storage.health().await.expect("it is well");
        storage.close().await;
    }
}
