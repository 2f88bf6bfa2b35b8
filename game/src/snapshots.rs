//! Instances that stay: each is stored whole while it runs, and taken up again from there.
//!
//! A snapshot is a document of its instance, owned by a life of it: the store takes newer ones of the same life and of
//! later lives, so that a server that was given up, and does not know, writes over nothing.

use ecow::{EcoString, eco_format};
use greenroom_protocol::{Incarnation, InstanceId};
use greenroom_storage::{Blob, Body, Collection, Kept, Key, Owner, Storage, StorageError, Write};
use greenroom_telemetry::Span;
use serde::{Deserialize, Serialize};

/// A snapshot that is to be stored.
#[derive(Debug)]
pub(crate) struct Save {
    pub(crate) instance: InstanceId,
    pub(crate) incarnation: Incarnation,
    /// Counts the snapshots of this life, from 1.
    pub(crate) n: u64,
    /// It may wait on this machine's disk while the store is away: nobody goes on from it yet.
    pub(crate) may_wait: bool,
    pub(crate) kind: &'static str,
    pub(crate) tick: u64,
    pub(crate) state: Vec<u8>,
    /// Until it is stored, if it is sampled.
    pub(crate) span: Option<Span>,
}

/// As it stands in the store.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    kind: EcoString,
    tick: u64,
    state: Blob,
}

/// What was read.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Why the document is none, or the whole instance.
    pub(crate) state: Result<Vec<u8>, EcoString>,
    body: Body,
}

fn key(instance: InstanceId) -> Key {
    Key::new(Collection::Snapshots, eco_format!("{instance}"))
        .expect("an id is 26 letters and digits")
}

/// Writes a snapshot, to the store or, while that is away and it may wait, to this machine's disk.
///
/// # Errors
/// As the store; [`StorageError::Deposed`] when the instance goes on in a later life.
pub(crate) async fn save(storage: &Storage, save: Save) -> Result<Kept, StorageError> {
    let Save { instance, incarnation, n, may_wait, kind, tick, state, mut span } = save;
    let stored = Stored { kind: kind.into(), tick, state: Blob(state.into()) };
    let owner = Owner::Instance { incarnation: incarnation.0, n };
    let storage = match &span {
        Some(span) => &storage.within(span.parent()),
        None => storage,
    };
    let write = Write::owned(key(instance), owner, Body::of(&stored)?);
    let saved = match may_wait {
        true => storage.behind(write).await,
        false => storage.ask(write).await.map(Kept::Stored),
    };
    if let (Some(span), Err(error)) = (&mut span, &saved) {
        span.fail(error);
    }
    saved
}

/// Reads what was stored of an instance last, if something was.
///
/// # Errors
/// As the store.
pub(crate) async fn load(
    storage: &Storage,
    instance: InstanceId,
) -> Result<Option<Loaded>, StorageError> {
    let Some(document) = storage.get(key(instance)).await? else { return Ok(None) };
    let stored = document.body.decode::<Stored>();
    let state =
        stored.map(|stored| stored.state.0.to_vec()).map_err(|error| eco_format!("{error}"));
    Ok(Some(Loaded { state, body: document.body }))
}

/// Where a snapshot is kept that can't be read.
pub(crate) fn aside(instance: InstanceId, incarnation: Incarnation) -> Key {
    Key::new(Collection::Snapshots, eco_format!("unreadable/{instance}/{incarnation}"))
        .expect("an id and a number are short and printable")
}

/// Keeps a snapshot that can't be read under another key, where nobody writes over it.
///
/// # Errors
/// As the store.
pub(crate) async fn set_aside(
    storage: &Storage,
    instance: InstanceId,
    incarnation: Incarnation,
    loaded: Loaded,
) -> Result<(), StorageError> {
    storage.upsert(aside(instance, incarnation), loaded.body).await.map(drop)
}

/// Removes what was stored of an instance that is over.
///
/// # Errors
/// As the store; [`StorageError::Deposed`] when the instance goes on in a later life.
pub(crate) async fn remove(
    storage: &Storage,
    (instance, incarnation): (InstanceId, Incarnation),
) -> Result<(), StorageError> {
    let owner = Owner::Instance { incarnation: incarnation.0, n: u64::MAX };
    // Behind, as the snapshots: one that waits there would come back after its removal.
    storage.behind(Write::owned_removal(key(instance), owner)).await.map(drop)
}
