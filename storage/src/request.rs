//! What can be asked of the storage.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::backend::{Answer, Condition, Operation, Put};
use crate::query::{Page, Query, RawPage, RawQuery};
use crate::{Body, Document, Expiry, Key, Owner, StorageError, Version, WriteId};

/// What a lane works on.
pub(crate) enum Work {
    /// One job of the store.
    Operation(Arc<Operation>),
    /// A read, a decision and a write, again until nobody else has written between.
    Update { key: Key, decide: Decide },
}

pub(crate) type Decide =
    Box<dyn FnMut(Option<&Document>) -> Result<Change, StorageError> + Send + 'static>;

impl fmt::Debug for Work {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operation(operation) => fmt::Debug::fmt(operation, out),
            Self::Update { key, .. } => out.debug_tuple("Update").field(key).finish(),
        }
    }
}

impl Work {
    /// From here on it is moved, and shared with the store, as a pointer.
    fn of(operation: Operation) -> Self {
        Self::Operation(Arc::new(operation))
    }

    pub(crate) fn key(&self) -> Option<&Key> {
        match self {
            Self::Operation(operation) => operation.key(),
            Self::Update { key, .. } => Some(key),
        }
    }

    /// The write, if it is one by itself.
    pub(crate) fn put(&self) -> Option<&Put> {
        match self {
            Self::Operation(operation) => match &**operation {
                Operation::Put(put) => Some(put),
                Operation::Get { .. }
                | Operation::Remove { .. }
                | Operation::Touch { .. }
                | Operation::Query(_)
                | Operation::Raw(_) => None,
            },
            Self::Update { .. } => None,
        }
    }

    /// Bytes that it holds in the queue.
    pub(crate) fn bytes(&self) -> usize {
        /// Of everything but the document.
        const OVERHEAD: usize = 256;
        let body = self.put().and_then(|put| put.body.as_ref()).map_or(0, Body::len);
        OVERHEAD + self.key().map_or(0, |key| key.id().len()) + body
    }
}

/// What became of the work.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answer(Answer),
    /// What an update has stored, or found and left as it was.
    Updated(Option<Document>),
}

/// Something that the storage answers.
pub trait Request: sealed::Sealed {
    /// What it answers with.
    type Answer;
}

pub(crate) mod sealed {
    use super::{Merge, Outcome, StorageError, Work, WriteId};

    /// How a request becomes work, and an outcome its answer.
    pub trait Sealed {
        /// What the lane is given.
        #[expect(private_interfaces, reason = "sealed: nobody outside calls it")]
        fn into_work(self, write: WriteId) -> (Work, Merge);
        /// What who asked is given.
        #[expect(private_interfaces, reason = "sealed: nobody outside calls it")]
        fn answer(outcome: Outcome) -> Result<<Self as super::Request>::Answer, StorageError>
        where
            Self: super::Request;
    }
}

/// That a lane answers something else than it was asked is a bug of this crate's.
fn unexpected<T>(outcome: &Outcome) -> T {
    unreachable!("a store answered something else than it was asked: {outcome:?}")
}

macro_rules! request {
    ($name:ident $(($inner:ty))? => $answer:ty,
    |$this:ident, $write:ident| $work:expr, $pattern:pat => $give:expr) => {
        impl Request for $name {
            type Answer = $answer;
        }
        impl sealed::Sealed for $name {
            #[expect(private_interfaces, reason = "sealed: nobody outside calls it")]
            fn into_work(self, $write: WriteId) -> (Work, Merge) {
                let $this = self;
                $work
            }
            #[expect(private_interfaces, reason = "sealed: nobody outside calls it")]
            fn answer(outcome: Outcome) -> Result<$answer, StorageError> {
                match outcome {
                    $pattern => $give,
                    other => unexpected(&other),
                }
            }
        }
    };
}

/// Reads a document.
#[derive(Clone, Debug)]
pub struct Get(pub Key);

/// Whether a write that waits may be left out because a newer one of its key follows at once. Its answer comes when
/// the newer one is durable, and says the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Merge {
    /// Each write is done.
    #[default]
    Never,
    /// Only the newest matters.
    Allowed,
}

/// Writes a document.
#[derive(Clone, Debug)]
pub struct Write {
    key: Key,
    body: Option<Body>,
    condition: Condition,
    owner: Option<Owner>,
    expiry: Expiry,
    merge: Merge,
}

impl Write {
    const fn new(key: Key, body: Option<Body>, condition: Condition) -> Self {
        Self { key, body, condition, owner: None, expiry: Expiry::Never, merge: Merge::Never }
    }

    /// A document that is not there yet; else [`StorageError::Exists`].
    pub const fn insert(key: Key, body: Body) -> Self {
        Self::new(key, Some(body), Condition::Absent)
    }

    /// In place of this version; else [`StorageError::VersionMismatch`] or [`StorageError::Missing`].
    pub const fn replace(key: Key, body: Body, version: Version) -> Self {
        Self::new(key, Some(body), Condition::Version(version))
    }

    /// Whatever is there: for documents that nobody owns.
    pub const fn upsert(key: Key, body: Body) -> Self {
        Self::new(key, Some(body), Condition::None)
    }

    /// Stored only over what an older owner wrote, or nobody; else [`StorageError::Deposed`]. With the numbers that are
    /// stored it is a resend, and answered as done.
    pub fn owned(key: Key, owner: Owner, body: Body) -> Self {
        Self { owner: Some(owner), ..Self::new(key, Some(body), Condition::Owner) }
    }

    /// Removes what an older owner wrote, by the same rule. The numbers stay under the key for the time of
    /// [`Write::expiry`] (an hour, unless it is set), so that a late write of an older owner does not bring it back.
    pub fn owned_removal(key: Key, owner: Owner) -> Self {
        Self {
            owner: Some(owner),
            expiry: Expiry::After(std::time::Duration::from_secs(3_600)),
            ..Self::new(key, None, Condition::Owner)
        }
    }

    /// When it is to go by itself.
    #[must_use]
    pub const fn expiry(mut self, expiry: Expiry) -> Self {
        self.expiry = expiry;
        self
    }

    /// Whether a newer write may stand in for it. For [`Write::upsert`] and [`Write::owned`]; others have conditions
    /// that each is to be answered by.
    #[must_use]
    pub const fn merge(mut self, merge: Merge) -> Self {
        self.merge = merge;
        self
    }
}

/// An owner's write by itself: what the spool keeps.
#[derive(Clone, Debug)]
pub(crate) struct OwnedWrite {
    pub(crate) key: Key,
    pub(crate) owner: Owner,
    /// None for a removal.
    pub(crate) body: Option<Body>,
    pub(crate) expiry: Expiry,
}

impl Write {
    /// What the spool would keep; none for a write that has no owner to fence it.
    pub(crate) fn for_the_spool(&self) -> Option<OwnedWrite> {
        let owner = self.owner.filter(|_| self.condition == Condition::Owner)?;
        let Self { key, body, expiry, .. } = self.clone();
        Some(OwnedWrite { key, owner, body, expiry })
    }
}

impl From<OwnedWrite> for Write {
    fn from(write: OwnedWrite) -> Self {
        let OwnedWrite { key, owner, body, expiry } = write;
        Self { owner: Some(owner), expiry, ..Self::new(key, body, Condition::Owner) }
    }
}

/// Where a write is that need not be in the store at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In the store, as this version.
    Stored(Version),
    /// On this machine's disk: it goes to the store when that is back.
    Spooled,
}

/// Removes a document; else [`StorageError::Missing`] or [`StorageError::VersionMismatch`].
#[derive(Clone, Debug)]
pub struct Remove {
    /// Which.
    pub key: Key,
    /// Only this version of it.
    pub version: Option<Version>,
}

/// Sets when a document goes by itself; else [`StorageError::Missing`].
#[derive(Clone, Debug)]
pub struct Touch {
    /// Which.
    pub key: Key,
    /// When; [`Expiry::Keep`] changes nothing but the version.
    pub expiry: Expiry,
}

/// What an [`Update`] decides.
#[derive(Clone, Debug)]
pub enum Change {
    /// Nothing is written.
    Leave,
    /// This is written.
    Write(Body, Expiry),
    /// The document is removed, if it is there.
    Remove,
}

/// Reads a document, decides, and writes what was decided, again until nobody has written between. The owner that is
/// stored stays. Answered with the document as it then is.
pub struct Update {
    key: Key,
    decide: Decide,
}

impl Update {
    /// An update. `decide` runs in the storage's thread, so it is short; it may run several times; what it says last is
    /// what happens. A panic of it is answered as [`StorageError::Backend`].
    pub fn new<F>(key: Key, decide: F) -> Self
    where
        F: FnMut(Option<&Document>) -> Result<Change, StorageError> + Send + 'static,
    {
        Self { key, decide: Box::new(decide) }
    }
}

impl fmt::Debug for Update {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Update").field(&self.key).finish()
    }
}

/// Adds to a counter, a document of the form `{"count":7}`, which begins at 0. Answered with the new number.
#[derive(Clone, Debug)]
pub struct Count {
    /// Which document.
    pub key: Key,
    /// How much is added.
    pub by: i64,
    /// When it is to go by itself, if this makes it; else it stays as it was.
    pub expiry: Expiry,
}

/// What a counter's document holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counter {
    count: i64,
}

request!(Get => Option<Document>,
    |this, _write| (Work::of(Operation::Get { key: this.0 }), Merge::Never),
    Outcome::Answer(Answer::Document(document)) => Ok(document));
request!(Write => Version,
    |this, write| {
        let Write { key, body, condition, owner, expiry, merge } = this;
        let merge = match condition {
            Condition::None | Condition::Owner => merge,
            Condition::Absent | Condition::Version(_) => Merge::Never,
        };
        (Work::of(Operation::Put(Put { key, body, condition, owner, write, expiry })), merge)
    },
    Outcome::Answer(Answer::Stored(version)) => Ok(version));
request!(Remove => (),
    |this, write| {
        let Remove { key, version } = this;
        (Work::of(Operation::Remove { key, version, write }), Merge::Never)
    },
    Outcome::Answer(Answer::Removed) => Ok(()));
request!(Touch => (),
    |this, write| {
        let Touch { key, expiry } = this;
        (Work::of(Operation::Touch { key, expiry, write }), Merge::Never)
    },
    Outcome::Answer(Answer::Touched) => Ok(()));
request!(Query => Page,
    |this, _write| (Work::of(Operation::Query(this)), Merge::Never),
    Outcome::Answer(Answer::Page(page)) => Ok(page));
request!(RawQuery => RawPage,
    |this, _write| (Work::of(Operation::Raw(this)), Merge::Never),
    Outcome::Answer(Answer::RawPage(page)) => Ok(page));
request!(Update => Option<Document>,
    |this, _write| {
        let Update { key, decide } = this;
        (Work::Update { key, decide }, Merge::Never)
    },
    Outcome::Updated(document) => Ok(document));
request!(Count => i64,
|this, _write| {
    let Count { key, by, expiry } = this;
    let counted = key.clone();
    let decide = move |document: Option<&Document>| {
        let bad = |why| StorageError::NotACounter { key: counted.clone(), why };
        let before = match document {
            None => Counter { count: 0 },
            Some(document) => {
                document.body.decode().map_err(|_| bad("it is not of the form {\"count\":0}"))?
            }
        };
        let count = before.count.checked_add(by).ok_or_else(|| bad("it would leave the range of i64"))?;
        let expiry = if document.is_some() { Expiry::Keep } else { expiry };
        Ok(Change::Write(Body::of(&Counter { count })?, expiry))
    };
    (Work::Update { key, decide: Box::new(decide) }, Merge::Never)
},
Outcome::Updated(Some(document)) => {
    Ok(document.body.decode::<Counter>().expect("the counter was written just before").count)
});

/// An operation that was taken: a future of its answer. Dropped, the operation happens all the same.
#[must_use = "the answer says whether it is durable"]
pub struct Ticket<R: Request> {
    answer: oneshot::Receiver<Result<Outcome, StorageError>>,
    request: std::marker::PhantomData<fn(R)>,
}

impl<R: Request> Ticket<R> {
    pub(crate) const fn new(answer: oneshot::Receiver<Result<Outcome, StorageError>>) -> Self {
        Self { answer, request: std::marker::PhantomData }
    }

    /// The answer, if it is there; it is given once.
    pub fn try_take(&mut self) -> Option<Result<R::Answer, StorageError>> {
        match self.answer.try_recv() {
            Ok(outcome) => Some(outcome.and_then(R::answer)),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(StorageError::Closed)),
        }
    }

    /// Waits for the answer where there is no runtime.
    ///
    /// # Errors
    /// As the operation.
    pub fn wait(self) -> Result<R::Answer, StorageError> {
        self.answer.blocking_recv().map_err(|_| StorageError::Closed)?.and_then(R::answer)
    }
}

impl<R: Request> Future for Ticket<R> {
    type Output = Result<R::Answer, StorageError>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|outcome| match outcome {
            Ok(outcome) => outcome.and_then(R::answer),
            Err(_) => Err(StorageError::Closed),
        })
    }
}

impl<R: Request> fmt::Debug for Ticket<R> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Ticket").finish_non_exhaustive()
    }
}
