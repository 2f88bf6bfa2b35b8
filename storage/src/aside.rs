//! Snapshots from which nobody could go on: kept for people, and noted so that people find them.
//!
//! The snapshot itself stands under `unreadable/INSTANCE/INCARNATION` or `failed/INSTANCE/INCARNATION`, as it was. A
//! note beside it says what is needed to have the instance go on from there, should it become possible.

use ecow::{EcoString, eco_format};
use greenroom_protocol::search::Filter;
use greenroom_protocol::{Incarnation, InstanceId, KindName, UserId};
use serde::{Deserialize, Serialize};

use crate::{Body, Collection, Key, Query, Storage, StorageError};

/// What the ids of notes begin with.
const NOTES: &str = "aside/";
/// Notes that are looked at.
const NOTES_MAX: u16 = 100;

/// Why a snapshot is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// No build that tried could read it.
    Unreadable,
    /// The instance failed again and again, going on from it.
    Failed,
}

impl Cause {
    /// What the ids of such snapshots begin with.
    const fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Failed => "failed",
        }
    }
}

/// The note of one snapshot that was set aside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetAside {
    /// Of which instance.
    pub instance: InstanceId,
    /// The life that did not go on from it, or came to an end with it.
    pub incarnation: Incarnation,
    /// Of which kind.
    pub kind: KindName,
    /// The game's version of the kind that wrote it, as far as that can be read.
    #[serde(default)]
    pub version: Option<u32>,
    /// Which of both.
    pub cause: Cause,
    /// What is wrong with it, in words.
    pub why: EcoString,
    /// When it was set aside, in milliseconds since 1970.
    pub since_ms: u64,
    /// Who had asked for the instance.
    #[serde(default)]
    pub owner: Option<UserId>,
    /// Its unique key.
    #[serde(default)]
    pub key: Option<greenroom_protocol::Key>,
    /// When it was granted, in milliseconds since 1970.
    pub created_ms: u64,
    /// It was found by nobody.
    pub private: bool,
}

impl SetAside {
    /// Where the snapshot is.
    pub fn snapshot(&self) -> Key {
        let (of, instance, incarnation) = (self.cause.name(), self.instance, self.incarnation);
        Key::new(Collection::Snapshots, eco_format!("{of}/{instance}/{incarnation}"))
            .expect("two ids are short and printable")
    }

    /// Where the note is.
    fn note(&self) -> Key {
        let (instance, incarnation) = (self.instance, self.incarnation);
        Key::new(Collection::Snapshots, eco_format!("{NOTES}{instance}/{incarnation}"))
            .expect("two ids are short and printable")
    }

    /// Keeps a snapshot under its key, and notes it.
    ///
    /// # Errors
    /// As every write; it may be done again.
    pub async fn keep(&self, storage: &Storage, snapshot: Body) -> Result<(), StorageError> {
        storage.upsert(self.snapshot(), snapshot).await?;
        storage.upsert(self.note(), Body::of(self)?).await.map(drop)
    }

    /// Removes both, once the snapshot is of use again.
    ///
    /// # Errors
    /// As every write; it may be done again.
    pub async fn forget(&self, storage: &Storage) -> Result<(), StorageError> {
        for key in [self.note(), self.snapshot()] {
            match storage.remove(key, None).await {
                Ok(()) | Err(StorageError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The notes of a store, by instance and life: 100 at most, and whether there are more. A note that can't be read
    /// is its key and what is wrong with it.
    ///
    /// # Errors
    /// As a query.
    pub async fn all(
        storage: &Storage,
    ) -> Result<(Vec<Result<Self, StorageError>>, bool), StorageError> {
        Self::that_begin(storage, NOTES).await
    }

    /// The notes of one instance, the oldest life first.
    ///
    /// # Errors
    /// As a query, and for a note that can't be read.
    pub async fn of(storage: &Storage, instance: InstanceId) -> Result<Vec<Self>, StorageError> {
        let (notes, _) = Self::that_begin(storage, &format!("{NOTES}{instance}/")).await?;
        notes.into_iter().collect()
    }

    async fn that_begin(
        storage: &Storage,
        beginning: &str,
    ) -> Result<(Vec<Result<Self, StorageError>>, bool), StorageError> {
        let mut query = Query::new(Collection::Snapshots, Filter::And(Vec::new()));
        query.limit = NOTES_MAX;
        query.beginning = beginning.into();
        let page = storage.query(query).await?;
        let notes = page.documents.iter().map(|(key, document)| document.decode::<Self>(key));
        Ok((notes.collect(), page.next.is_some()))
    }
}
