//! Instances that stay: each is stored whole while it runs, and taken up again from there.
//!
//! A snapshot is a document of its instance, owned by a life of it: the store takes newer ones of the same life and of
//! later lives, so that a server that was given up, and does not know, writes over nothing.

use ecow::{EcoString, eco_format};
use greenroom_game_core::snapshot_version;
use greenroom_protocol::{Incarnation, InstanceId};
use greenroom_storage::{
    Blob, Body, Collection, Kept, Key, Owner, SetAside, Storage, StorageError, Write,
};
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
    pub(crate) failures: Vec<u64>,
    /// Until it is stored, if it is sampled.
    pub(crate) span: Option<Span>,
}

/// As it stands in the store.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    kind: EcoString,
    tick: u64,
    state: Blob,
    /// When it failed by a bug of its game, of late, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    failures: Vec<u64>,
}

/// An instance that failed by a bug of its game: it goes on from its snapshot, unless it does so too often.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) instance: InstanceId,
    pub(crate) incarnation: Incarnation,
    /// One more than the snapshots of this life.
    pub(crate) n: u64,
    /// What is noted where it may not go on, and when it failed.
    pub(crate) note: Box<SetAside>,
}

/// What becomes of an instance that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sentence {
    /// It goes on from its last snapshot.
    GoesOn,
    /// It has failed so often that it would fail again; its snapshot is kept for people.
    Over,
}

/// How often an instance may fail within [`FAILURES_SPAN_MS`] and go on.
pub(crate) const FAILURES_MAX: usize = 3;
/// Ten minutes.
pub(crate) const FAILURES_SPAN_MS: u64 = 600_000;

/// What was read.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Why the document is none, or the whole instance.
    pub(crate) state: Result<Vec<u8>, EcoString>,
    /// When it failed, of late.
    pub(crate) failures: Vec<u64>,
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
    let Save { instance, incarnation, n, may_wait, kind, tick, state, failures, mut span } = save;
    let stored = Stored { kind: kind.into(), tick, state: Blob(state.into()), failures };
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
    let (state, failures) = match document.body.decode::<Stored>() {
        Ok(Stored { state, failures, .. }) => (Ok(state.0.to_vec()), failures),
        Err(error) => (Err(eco_format!("{error}")), Vec::new()),
    };
    Ok(Some(Loaded { state, failures, body: document.body }))
}

/// Notes at the snapshot of an instance that it failed. One that may not go on is kept under another key, and its own
/// is free: of that the store knows only that it is over.
///
/// # Errors
/// As the store; [`StorageError::Deposed`] when the instance goes on in a later life.
pub(crate) async fn failed(storage: &Storage, failed: Failed) -> Result<Sentence, StorageError> {
    let Failed { instance, incarnation, n, mut note } = failed;
    let now_ms = note.since_ms;
    let Some(document) = storage.get(key(instance)).await? else { return Ok(Sentence::Over) };
    let owner = Owner::Instance { incarnation: incarnation.0, n };
    let counted = document.body.decode::<Stored>().map(|mut stored| {
        stored.failures.retain(|at_ms| now_ms.saturating_sub(*at_ms) < FAILURES_SPAN_MS);
        stored.failures.push(now_ms);
        stored
    });
    match counted {
        Ok(stored) if stored.failures.len() <= FAILURES_MAX => {
            storage.ask(Write::owned(key(instance), owner, Body::of(&stored)?)).await?;
            Ok(Sentence::GoesOn)
        }
        counted => {
            note.version = counted.ok().and_then(|stored| snapshot_version(&stored.state.0));
            note.keep(storage, document.body).await?;
            remove(storage, (instance, incarnation)).await?;
            Ok(Sentence::Over)
        }
    }
}

/// Keeps a snapshot that can't be read under another key, where nobody writes over it, and notes it. Its own is free
/// once that is done: its instance is over.
///
/// # Errors
/// As the store.
pub(crate) async fn set_aside(
    storage: &Storage,
    mut note: SetAside,
    loaded: Loaded,
) -> Result<(), StorageError> {
    note.version = loaded.state.ok().and_then(|state| snapshot_version(&state));
    note.keep(storage, loaded.body).await
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
