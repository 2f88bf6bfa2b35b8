//! What can be wrong with an operation.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ecow::EcoString;

use crate::{BadBody, BadKey, Key, Owner, WriteId};

/// Why an operation has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// Too much waits already; nothing has happened.
    #[error("the store's queue is full ({waiting} operations wait); try again later")]
    Busy {
        /// How many operations wait.
        waiting: usize,
    },
    /// An insert found a document.
    #[error("{key} exists already")]
    Exists {
        /// Which document.
        key: Key,
    },
    /// What was to be changed is not there.
    #[error("{key} is not there")]
    Missing {
        /// Which document.
        key: Key,
    },
    /// Somebody else has written since the version that was given.
    #[error("{key} has been written by somebody else since it was read")]
    VersionMismatch {
        /// Which document.
        key: Key,
    },
    /// A newer owner has written, or one of another sort: who writes is no owner any more.
    #[error("{key} belongs to a newer owner ({stored}); the write of {refused} is refused")]
    Deposed {
        /// Which document.
        key: Key,
        /// Whose write was refused.
        refused: Owner,
        /// Whose it is.
        stored: Owner,
    },
    /// The document is over the limit.
    #[error("{key} would have {bytes} bytes; {max} are the most (storage.document_bytes_max)")]
    TooLarge {
        /// Which document.
        key: Key,
        /// How many bytes it has.
        bytes: usize,
        /// How many it may have.
        max: usize,
    },
    /// What was given can't be a key.
    #[error(transparent)]
    BadKey(#[from] BadKey),
    /// What was given can't be a document.
    #[error("{0}")]
    NotJson(Arc<BadBody>),
    /// What is stored is not what was asked for.
    #[error("{key} does not decode: {source}")]
    Undecodable {
        /// Which document.
        key: Key,
        /// What is wrong with it.
        source: Arc<serde_json::Error>,
    },
    /// What was to be counted is no counter, or would leave the range of i64.
    #[error("{key} can't be counted: {why}")]
    NotACounter {
        /// Which document.
        key: Key,
        /// Why.
        why: &'static str,
    },
    /// A query that the store can't answer, by name of what is wrong with it.
    #[error("the query can't be answered: {0}")]
    BadQuery(EcoString),
    /// The store can't be reached in time; nothing has happened.
    #[error("the store is unavailable: {0}; nothing was written")]
    Unavailable(EcoString),
    /// The store did not answer in time: the write may have happened. If it did, its id stands in the document.
    #[error("{key}: it is not known whether the write {write} has happened: {why}")]
    Undecided {
        /// Which document.
        key: Key,
        /// The write's id.
        write: WriteId,
        /// Why it is not known.
        why: EcoString,
    },
    /// The store refuses, for a reason that no retry mends.
    #[error("the store refuses: {0}")]
    Backend(EcoString),
    /// The storage actor has ended.
    #[error("the storage is closed")]
    Closed,
}

impl StorageError {
    /// Whether the same operation may succeed later, with nothing changed by it yet.
    pub const fn is_temporary(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Unavailable(_))
    }

    /// That a deadline is over for what was never begun.
    pub(crate) fn late(waited: Duration) -> Self {
        Self::Unavailable(ecow::eco_format!("no answer in {waited:?}"))
    }
}

impl From<BadBody> for StorageError {
    fn from(bad: BadBody) -> Self {
        Self::NotJson(Arc::new(bad))
    }
}

/// Why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL names no store.
    #[error(
        "storage.store = {url:?} names no store: write sqlite:FILE, memory, or couchbase://HOST,HOST"
    )]
    BadUrl {
        /// What was written.
        url: EcoString,
    },
    /// The build has no Couchbase.
    #[error(
        "storage.store = {url:?}: this build has no Couchbase; build with `--features couchbase`"
    )]
    NoCouchbase {
        /// What was written.
        url: EcoString,
    },
    /// A setting is out of its range.
    #[error("storage.{setting} is out of range: {why}")]
    BadSetting {
        /// Which.
        setting: &'static str,
        /// What it may be.
        why: EcoString,
    },
    /// A thread can't be started.
    #[error("starting the storage's thread")]
    Thread(#[source] std::io::Error),
    /// The storage's thread ended before it was ready.
    #[error("the storage's thread ended while it started; see above")]
    Panicked,
    /// The store's file can't be used.
    #[error("the store {}: {why}", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// What is wrong, and what to do.
        why: EcoString,
    },
    /// Somebody else keeps writes there.
    #[error("another process has the spool {}: end that one, or give this server another name", folder.display())]
    SpoolInUse {
        /// Which folder.
        folder: PathBuf,
    },
    /// The store refuses.
    #[error("opening the store: {0}")]
    Backend(EcoString),
}
