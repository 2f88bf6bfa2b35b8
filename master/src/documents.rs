//! What the directory has in the store: profiles of users, instances that stay, rank boards.
//!
//! The sequencer hands over what is committed, and waits for nothing; a thread of its own writes it. Each document is
//! owned by the master by the numbers of its command, so that what is written twice is written once, and what a deposed
//! master still writes is refused where a later one has written. What waits here when this process dies is told again
//! by the master that takes over.

mod bodies;
mod queue;
mod read_back;
mod set_aside;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use greenroom_master_core::{Documents, RankedMember};
use greenroom_protocol::TraceContext;
use greenroom_protocol::search::FieldType;
use greenroom_storage::{Collection, Index, Key, Storage, StorageError, Verdict, Write};
use greenroom_telemetry::{SpanKind, Tracer};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use self::bodies::Profile;
use self::queue::{Next, Pending, Queue, What};
use crate::metrics::Metrics;

/// Documents that the store works on at once, for this writer.
const UNDER_WAY_MAX: usize = 64;
/// Pages of boards that wait until they are in the log: the next is read when one is.
const PAGES_MAX: usize = 1;
/// How long a stopping master waits for the store to take what it has for it.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// The sequencer's end of the writer.
#[derive(Debug)]
pub(crate) struct DocumentWriter {
    shared: Arc<Shared>,
    /// Number of the next document that the core tells.
    next: u64,
    /// What an earlier era has stored, page by page.
    pages: mpsc::Receiver<Vec<RankedMember>>,
    over: oneshot::Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Rung when there is something to do.
    bell: Notify,
    metrics: Arc<Metrics>,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing is half done in there when a thread panics: each change is one call.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The indexes over what a master stores: what queries may ask of profiles, records of instances and boards.
pub fn indexes() -> Vec<Index> {
    use FieldType::{Keyword, Number, Text};
    let index = |collection, fields: &[(&str, FieldType)]| {
        Index::new(collection, fields).expect("one or two fields with names of their own")
    };
    vec![
        index(Collection::Users, &[("name", Text)]),
        index(Collection::Users, &[("last_ms", Number)]),
        index(Collection::Instances, &[("kind", Keyword), ("state", Keyword)]),
        index(Collection::Instances, &[("owner", Keyword)]),
        index(Collection::Boards, &[("board", Keyword), ("score", Number)]),
    ]
}

/// What became of one document.
#[derive(Debug)]
enum Done {
    Stored,
    /// The store has it already.
    Known,
    Failed(StorageError),
}

impl DocumentWriter {
    /// Starts the thread that writes.
    pub(crate) fn start(storage: Storage, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), bell: Notify::new(), metrics });
        let (ended, over) = oneshot::channel();
        let (read, pages) = mpsc::channel(PAGES_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let writing = Arc::clone(&shared);
        std::thread::Builder::new().name("documents".into()).spawn(move || {
            runtime.block_on(write_all(&writing, &storage, &read));
            // Who has dropped the other end does not wait.
            let _nobody_waits = ended.send(());
        })?;
        Ok(Self { shared, next: 0, pages, over })
    }

    /// This master decides from here on. What the one before it told last is told again.
    pub(crate) fn begin(&mut self, documents: &Documents) {
        self.next = documents.first();
    }

    /// Has the boards read back that an era before this one has stored.
    pub(crate) fn wish_boards(&self, era: u32) {
        self.shared.queue().wish(era);
        self.shared.bell.notify_one();
    }

    /// Waits for the next page of what is read back. Nothing is lost if it is dropped.
    pub(crate) async fn page(documents: &mut Option<Self>) -> Vec<RankedMember> {
        let page = match documents {
            Some(documents) => documents.pages.recv().await,
            None => None,
        };
        match page {
            Some(page) => page,
            // There is no store, or its thread has ended.
            None => std::future::pending().await,
        }
    }

    /// Hands over what is committed and was not handed over; `traces` are those of its commands that are sampled. It
    /// never waits: what there is no room for is left out.
    pub(crate) fn tell(
        &mut self,
        documents: &Documents,
        commit: u64,
        tracer: &Tracer,
        traces: &[(u64, TraceContext)],
    ) {
        let mut placed =
            documents.from(self.next).take_while(|placed| placed.lsn <= commit).peekable();
        let missed = documents.first().saturating_sub(self.next);
        if missed == 0 && placed.peek().is_none() {
            return;
        }
        // All documents of a command at once: with its number only one of each key is written.
        let (mut told, mut left_out) = (0, missed);
        let mut queue = self.shared.queue();
        let now = Instant::now();
        for placed in placed {
            told += 1;
            let trace = traces.iter().find(|(lsn, _)| *lsn == placed.lsn).map(|(_, trace)| *trace);
            let span = tracer.child(trace, "store", SpanKind::Internal);
            left_out += u64::from(!queue.put(placed, span, now));
        }
        drop(queue);
        self.next += missed + told;
        if left_out > 0 {
            Metrics::add(&self.shared.metrics.documents_left_out, left_out);
            tracing::error!(
                documents = left_out,
                "the store is too far behind: so many profiles, instances and scores were not written"
            );
        }
        self.shared.bell.notify_one();
    }

    /// What is wrong with the store, for people.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.shared.queue().trouble().map(str::to_owned)
    }

    /// What the store keeps for people, for people.
    pub(crate) fn set_aside(&self) -> Option<String> {
        self.shared.queue().set_aside().map(str::to_owned)
    }

    /// Waits until all that was handed over is stored, or it takes too long.
    pub(crate) async fn close(mut self) {
        self.end();
        // The thread gives up by itself; should it have panicked, there is nothing to wait for.
        let _ended = (&mut self.over).await;
    }

    fn end(&self) {
        self.shared.queue().close();
        self.shared.bell.notify_one();
    }
}

/// A sequencer that is dropped without a word ends its writer all the same.
impl Drop for DocumentWriter {
    fn drop(&mut self) {
        self.end();
    }
}

/// The writer's thread.
async fn write_all(
    shared: &Arc<Shared>,
    storage: &Storage,
    read: &mpsc::Sender<Vec<RankedMember>>,
) {
    let mut jobs: JoinSet<(Key, Pending, Done)> = JoinSet::new();
    let mut readers = JoinSet::new();
    let watching = Arc::clone(shared);
    let found = move |what| watching.queue().saw_set_aside(what);
    readers.spawn(set_aside::watch(storage.clone(), found));
    let mut farewell: Option<Instant> = None;
    loop {
        let now = Instant::now();
        let mut wake = None;
        let (waiting, is_closing) = {
            let mut queue = shared.queue();
            while jobs.len() < UNDER_WAY_MAX {
                match queue.next(now) {
                    Next::Do(key, pending) => {
                        let storage = match &pending.span {
                            Some(span) => storage.within(span.parent()),
                            None => storage.clone(),
                        };
                        jobs.spawn(async move {
                            let done = write(&storage, &key, &pending).await;
                            (key, pending, done.unwrap_or_else(Done::Failed))
                        });
                    }
                    Next::At(due) => {
                        wake = Some(due);
                        break;
                    }
                    Next::Nothing => break,
                }
            }
            if let Some(era) = queue.take_wish() {
                readers.spawn(read_back::boards(storage.clone(), era, read.clone()));
            }
            (queue.len(), queue.is_closing())
        };
        Metrics::set(&shared.metrics.documents_waiting, waiting as u64);
        if is_closing {
            let by = *farewell.get_or_insert(now + FAREWELL_MAX);
            if waiting == 0 || now >= by {
                if waiting > 0 {
                    tracing::error!(
                        documents = waiting,
                        "stopped before the store had taken so many profiles, instances and scores"
                    );
                }
                return;
            }
            wake = Some(wake.map_or(by, |due| due.min(by)));
        }
        tokio::select! {
            Some(done) = jobs.join_next(), if !jobs.is_empty() => match done {
                Ok((key, pending, done)) => finish(shared, key, pending, done),
                // The runtime cancels nothing while it runs, and no job panics but by a bug.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            Some(over) = readers.join_next(), if !readers.is_empty() => {
                if let Err(error) = over {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
            () = shared.bell.notified() => {}
            () = time::sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
        }
    }
}

/// Writes one document.
async fn write(storage: &Storage, key: &Key, pending: &Pending) -> Result<Done, StorageError> {
    let Pending { what, owner, .. } = pending;
    let write = match what {
        What::Profile { user, name, first_ms, last_ms } => {
            let found = storage.get(key.clone()).await?;
            let stored = found.as_ref().and_then(|found| found.owner);
            match owner.over(stored.as_ref()) {
                Verdict::Write => {}
                Verdict::Done => return Ok(Done::Known),
                Verdict::Deposed => {
                    let (key, refused) = (key.clone(), *owner);
                    let stored = stored.unwrap_or(refused);
                    return Err(StorageError::Deposed { key, refused, stored });
                }
            }
            let before = found.map(|found| found.decode::<Profile>(key)).transpose()?;
            let profile = Profile::checked_in(before, user, name, *first_ms, *last_ms);
            Write::owned(key.clone(), *owner, profile.body()?)
        }
        What::Instance(kept) => Write::owned(key.clone(), *owner, bodies::instance(kept)?),
        What::Member(member) => Write::owned(key.clone(), *owner, bodies::member(member)?),
        What::Gone => Write::owned_removal(key.clone(), *owner),
    };
    storage.ask(write).await.map(|_| Done::Stored)
}

fn finish(shared: &Shared, key: Key, mut pending: Pending, done: Done) {
    let metrics = &shared.metrics;
    let error = match done {
        Done::Stored => {
            Metrics::add(&metrics.documents_stored, 1);
            return shared.queue().done(&key);
        }
        Done::Known => return shared.queue().done(&key),
        Done::Failed(error) => error,
    };
    match error {
        // What is owned may be written twice.
        StorageError::Busy { .. }
        | StorageError::Unavailable(_)
        | StorageError::Undecided { .. } => {
            Metrics::add(&metrics.documents_retried, 1);
            if shared.queue().again(key, pending, &error, Instant::now()) {
                tracing::warn!(%error, "the store does not take what the master has for it; it is tried again");
            }
        }
        StorageError::Deposed { .. } => {
            Metrics::add(&metrics.documents_refused, 1);
            pending.failed(&error);
            tracing::warn!(%error, "another master has written since");
            shared.queue().done(&key);
        }
        StorageError::Exists { .. }
        | StorageError::Missing { .. }
        | StorageError::VersionMismatch { .. }
        | StorageError::TooLarge { .. }
        | StorageError::BadKey(_)
        | StorageError::NotJson(_)
        | StorageError::Undecodable { .. }
        | StorageError::NotACounter { .. }
        | StorageError::BadQuery(_)
        | StorageError::Backend(_)
        | StorageError::Closed => {
            Metrics::add(&metrics.documents_failed, 1);
            pending.failed(&error);
            tracing::error!(%error, "a document of the master's is not stored");
            shared.queue().done(&key);
        }
    }
}
