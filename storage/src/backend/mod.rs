//! What a store must do for the actor, and the stores that do it.

#[cfg(feature = "couchbase")]
pub mod couchbase;
mod filter;
pub mod memory;
pub mod sqlite;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::Instant;

use crate::inbox::Inbox;
use crate::owner::Verdict;
use crate::query::{Page, Query, RawPage, RawQuery};
use crate::{
    Body, Document, Expiry, Key, OpenError, Owner, Schema, StorageError, Version, WriteId,
};

/// A future on the heap.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A store. The actor gives it jobs of which no two that are under way have the same key; with these it may do what
/// it likes: one transaction for all, or each by itself at the same time.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Its name, for metrics and messages: `sqlite`.
    fn name(&self) -> &'static str;

    /// Begins jobs and returns at once. It is called inside the storage's own runtime (one thread), where it may spawn.
    ///
    /// Each job is [answered](Job::answer) once, from any thread, soon after its deadline at the latest: as long as it
    /// is not, the next operation of its key waits. A mutation is answered as done only when it is durable, as failed
    /// only when it has not happened and can't happen any more, else as [`StorageError::Undecided`].
    fn begin(&self, jobs: Vec<Job>);

    /// Makes what the schema needs, indexes above all. It may be called again and changes nothing then.
    fn prepare<'a>(&'a self, schema: &'a Schema) -> Boxed<'a, Result<(), OpenError>>;

    /// Whether the store answers, in words if it does not.
    fn health(&self) -> Boxed<'_, Result<(), StorageError>>;

    /// Waits until everything that was begun has ended, and lets go of the store.
    fn close(&self) -> Boxed<'_, ()>;
}

/// What a backend is asked to do.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Read a document. Answered with [`Answer::Document`].
    Get {
        /// Which.
        key: Key,
    },
    /// Write a document. Answered with [`Answer::Stored`].
    Put(Put),
    /// Remove a document. Answered with [`Answer::Removed`].
    Remove {
        /// Which.
        key: Key,
        /// Only this version of it.
        version: Option<Version>,
        /// The write's id, for an answer that can't be decided.
        write: WriteId,
    },
    /// Change when a document goes by itself; [`Expiry::Keep`] does not come. Answered with [`Answer::Touched`].
    Touch {
        /// Which.
        key: Key,
        /// When.
        expiry: Expiry,
        /// The write's id, for an answer that can't be decided.
        write: WriteId,
    },
    /// Find documents. Answered with [`Answer::Page`].
    Query(Query),
    /// Ask in the store's own language. Answered with [`Answer::RawPage`].
    Raw(RawQuery),
}

/// One write.
#[derive(Clone, Debug)]
pub struct Put {
    /// Which document.
    pub key: Key,
    /// What it is to be; none where the owner removes it: a tombstone with the owner's numbers is to stay, and the
    /// document counts as not there.
    pub body: Option<Body>,
    /// What must be so.
    pub condition: Condition,
    /// Stored with it. For [`Condition::Owner`], what is compared.
    pub owner: Option<Owner>,
    /// Stored with it.
    pub write: WriteId,
    /// When it is to go by itself.
    pub expiry: Expiry,
}

/// What must be so for a write to happen. A document whose time is over and a tombstone are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    None,
    /// It is not there; else [`StorageError::Exists`].
    Absent,
    /// It has this version; else [`StorageError::VersionMismatch`], or [`StorageError::Missing`]. The owner that is
    /// stored stays if the write brings none.
    Version(Version),
    /// [`Owner::over`] says so; a tombstone's numbers count. Else [`StorageError::Deposed`]; a resend is answered with
    /// the version that is stored.
    Owner,
}

/// What a backend answers.
#[derive(Debug)]
pub enum Answer {
    /// The document, if it is there.
    Document(Option<Document>),
    /// It is durable, and this is its version.
    Stored(Version),
    /// It is gone, durably.
    Removed,
    /// Its time is set, durably.
    Touched,
    /// What was found.
    Page(Page),
    /// What the store found.
    RawPage(RawPage),
}

/// What became of a job.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) slot: usize,
    pub(crate) result: Result<Answer, StorageError>,
}

/// One operation under way. Dropped without an answer, it answers that nobody knows.
#[derive(Debug)]
pub struct Job {
    /// Taken by the answer.
    operation: Option<Arc<Operation>>,
    deadline: Instant,
    slot: usize,
    lane: Arc<Inbox>,
}

impl Job {
    pub(crate) const fn new(
        operation: Arc<Operation>,
        deadline: Instant,
        slot: usize,
        lane: Arc<Inbox>,
    ) -> Self {
        Self { operation: Some(operation), deadline, slot, lane }
    }

    /// What is to be done.
    pub fn operation(&self) -> &Operation {
        self.operation.as_ref().expect("only the answer takes it, and the job with it")
    }

    /// When who asked stops waiting.
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Answers.
    pub fn answer(mut self, result: Result<Answer, StorageError>) {
        self.operation = None;
        self.lane.complete([Completion { slot: self.slot, result }]);
    }

    /// Answers many together: a lane is woken once for those of its jobs that follow each other.
    pub fn answer_all(answers: impl IntoIterator<Item = (Self, Result<Answer, StorageError>)>) {
        let mut answers = answers.into_iter().peekable();
        while let Some((mut job, result)) = answers.next() {
            job.operation = None;
            let lane = Arc::clone(&job.lane);
            let mut completed = vec![Completion { slot: job.slot, result }];
            while let Some((mut job, result)) =
                answers.next_if(|(job, _)| Arc::ptr_eq(&job.lane, &lane))
            {
                job.operation = None;
                completed.push(Completion { slot: job.slot, result });
            }
            lane.complete(completed);
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(operation) = self.operation.take() {
            let result = Err(operation.unknown("the store dropped it".into()));
            self.lane.complete([Completion { slot: self.slot, result }]);
        }
    }
}

impl Operation {
    /// The document that it is about; none for a query.
    pub const fn key(&self) -> Option<&Key> {
        match self {
            Self::Get { key } | Self::Remove { key, .. } | Self::Touch { key, .. } => Some(key),
            Self::Put(put) => Some(&put.key),
            Self::Query(_) | Self::Raw(_) => None,
        }
    }

    /// That nobody knows what became of it: a mutation may have happened, a read has not.
    pub fn unknown(&self, why: ecow::EcoString) -> StorageError {
        match self {
            Self::Remove { key, write, .. }
            | Self::Touch { key, write, .. }
            | Self::Put(Put { key, write, .. }) => {
                StorageError::Undecided { key: key.clone(), write: *write, why }
            }
            Self::Get { .. } | Self::Query(_) | Self::Raw(_) => StorageError::Unavailable(why),
        }
    }
}

/// What is stored under a key, the document itself left out; what is past its time is not there at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Which write it is of, or the store's own count of them.
    pub version: Version,
    /// Whose it is.
    pub owner: Option<Owner>,
    /// When it goes by itself.
    pub expires_ms: Option<u64>,
    /// A tombstone is not.
    pub is_there: bool,
}

/// What a write comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is to be written, with these.
    Write {
        /// Whose it is then.
        owner: Option<Owner>,
        /// When it goes by itself.
        expires_ms: Option<u64>,
    },
    /// It has been written before, as this version.
    Done(Version),
}

/// What a write comes to beside what is stored: the one rule of all stores.
///
/// # Errors
/// [`StorageError::Exists`], [`StorageError::Missing`], [`StorageError::VersionMismatch`], [`StorageError::Deposed`].
pub fn decide(put: &Put, stored: Option<&Stored>, now_ms: u64) -> Result<Decision, StorageError> {
    let key = || put.key.clone();
    let there = stored.filter(|stored| stored.is_there);
    match put.condition {
        Condition::None => {}
        Condition::Absent if there.is_some() => return Err(StorageError::Exists { key: key() }),
        Condition::Absent => {}
        Condition::Version(version) => match there {
            None => return Err(StorageError::Missing { key: key() }),
            Some(stored) if stored.version != version => {
                return Err(StorageError::VersionMismatch { key: key() });
            }
            Some(_) => {}
        },
        Condition::Owner => {
            let owner = put.owner.expect("an owner's write brings its numbers");
            let owner_stored = stored.and_then(|stored| stored.owner);
            match (owner.over(owner_stored.as_ref()), owner_stored, stored) {
                (Verdict::Done, _, Some(stored)) => return Ok(Decision::Done(stored.version)),
                (Verdict::Deposed, Some(stored), _) => {
                    return Err(StorageError::Deposed { key: key(), refused: owner, stored });
                }
                (Verdict::Write | Verdict::Done | Verdict::Deposed, _, _) => {}
            }
        }
    }
    let keeps_owner = matches!(put.condition, Condition::Version(_));
    let owner = put.owner.or(there.and_then(|stored| stored.owner).filter(|_| keeps_owner));
    let before = there.and_then(|stored| stored.expires_ms);
    Ok(Decision::Write { owner, expires_ms: expires_ms(put.expiry, before, now_ms) })
}

/// When a document goes that is written now.
pub fn expires_ms(expiry: Expiry, before: Option<u64>, now_ms: u64) -> Option<u64> {
    match expiry {
        Expiry::Never => None,
        Expiry::Keep => before,
        Expiry::After(_) => {
            let span = expiry.seconds().unwrap_or_default().saturating_mul(1_000);
            // SQLite has i64.
            Some(now_ms.saturating_add(span).min(i64::MAX.unsigned_abs()))
        }
    }
}
