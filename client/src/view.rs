//! An instance's views as this client has them: snapshots put together, patches applied, and what to do when
//! one does not fit.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use ecow::{EcoString, eco_format};
use greenroom_protocol::{PatchHeader, PieceHeader, VIEW_BYTES_MAX, ViewId};
use tokio::time::Instant;

use crate::error::Misbehaved;

/// Views of one instance that a client keeps: the shared one, its own, and groups.
const VIEWS_MAX: usize = 16;
/// Patches that are held while a snapshot is on its way, and their bytes: they may belong on top of it.
const HELD_MAX: usize = 256;
const HELD_BYTES_MAX: usize = VIEW_BYTES_MAX;
/// How long a snapshot may take to come before it is asked for (again); doubles each time up to the second figure.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(2);
const SNAPSHOT_WAIT_MAX: Duration = Duration::from_secs(30);

/// What a frame did to a view.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The view is newer now.
    Changed,
    /// Nothing to see yet, or nothing new.
    Kept,
    /// It does not fit: a snapshot is to be asked for, with this reason.
    Lost(EcoString),
}

/// All views of one seat.
#[derive(Debug, Default)]
pub(crate) struct Views {
    views: BTreeMap<ViewId, View>,
}

/// One view.
#[derive(Debug, Default)]
struct View {
    latest: Option<Latest>,
    waiting: Option<Waiting>,
}

/// A whole view.
#[derive(Clone, Debug)]
pub(crate) struct Latest {
    pub(crate) version: u32,
    pub(crate) tick: u32,
    pub(crate) bytes: Bytes,
}

/// A snapshot is on its way.
#[derive(Debug)]
struct Waiting {
    pieces: Option<Pieces>,
    held: VecDeque<Held>,
    held_bytes: usize,
    /// When to ask for it, unless something of it comes.
    ask_at: Instant,
    wait: Duration,
}

#[derive(Debug)]
struct Pieces {
    version: u32,
    tick: u32,
    total: usize,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Held {
    header: PatchHeader,
    delta: Bytes,
}

impl Waiting {
    fn since(now: Instant) -> Self {
        Self {
            pieces: None,
            held: VecDeque::new(),
            held_bytes: 0,
            ask_at: now + SNAPSHOT_WAIT,
            wait: SNAPSHOT_WAIT,
        }
    }

    /// Keeps a patch for later. The oldest go when there are too many: they are the likeliest to be in the snapshot.
    fn hold(&mut self, header: PatchHeader, delta: Bytes) {
        self.held_bytes += delta.len();
        self.held.push_back(Held { header, delta });
        while self.held.len() > HELD_MAX || self.held_bytes > HELD_BYTES_MAX {
            let Some(oldest) = self.held.pop_front() else { break };
            self.held_bytes -= oldest.delta.len();
        }
    }
}

impl Views {
    pub(crate) fn latest(&self, view: ViewId) -> Option<&Latest> {
        self.views.get(&view)?.latest.as_ref()
    }

    /// The seat is taken, or taken again: whole views come now, without being asked for.
    pub(crate) fn expect(&mut self, now: Instant) {
        self.views.entry(ViewId::SHARED).or_default();
        for view in self.views.values_mut() {
            view.waiting = Some(Waiting::since(now));
        }
    }

    /// Forgets all views: they are of an incarnation that is gone.
    pub(crate) fn forget(&mut self) {
        self.views.clear();
    }

    /// When [`Self::overdue`] has something to say.
    pub(crate) fn ask_at(&self) -> Option<Instant> {
        self.views.values().filter_map(|view| view.waiting.as_ref()).map(|w| w.ask_at).min()
    }

    /// Views whose snapshot did not come in time, with the version that there is.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<(ViewId, u32)> {
        let mut overdue = Vec::new();
        for (&id, view) in &mut self.views {
            let version = view.latest.as_ref().map_or(0, |latest| latest.version);
            if let Some(waiting) = view.waiting.as_mut().filter(|waiting| waiting.ask_at <= now) {
                waiting.pieces = None;
                waiting.wait = (waiting.wait * 2).min(SNAPSHOT_WAIT_MAX);
                waiting.ask_at = now + waiting.wait;
                overdue.push((id, version));
            }
        }
        overdue
    }

    fn view(&mut self, id: ViewId) -> Result<&mut View, Misbehaved> {
        if self.views.len() >= VIEWS_MAX && !self.views.contains_key(&id) {
            return Err(Misbehaved(eco_format!("an instance has more than {VIEWS_MAX} views")));
        }
        Ok(self.views.entry(id).or_default())
    }

    /// Applies a patch, or keeps it for when the snapshot is there.
    pub(crate) fn patch(
        &mut self,
        now: Instant,
        header: PatchHeader,
        delta: Bytes,
    ) -> Result<Outcome, Misbehaved> {
        let view = self.view(header.view)?;
        if let Some(waiting) = &mut view.waiting {
            waiting.hold(header, delta);
            return Ok(Outcome::Kept);
        }
        let outcome = view.apply(&header, &delta);
        if let Outcome::Lost(_) = outcome {
            let mut waiting = Waiting::since(now);
            // It may be right on top of the snapshot that is asked for.
            waiting.hold(header, delta);
            view.waiting = Some(waiting);
        }
        Ok(outcome)
    }

    /// Takes a piece of a snapshot.
    pub(crate) fn piece(
        &mut self,
        now: Instant,
        header: PieceHeader,
        piece: &[u8],
    ) -> Result<Outcome, Misbehaved> {
        let total = header.total as usize;
        if total > VIEW_BYTES_MAX {
            return Err(Misbehaved(eco_format!(
                "a view of {total} bytes; at most {VIEW_BYTES_MAX} are allowed"
            )));
        }
        let view = self.view(header.view)?;
        // A snapshot can come unasked, after the server dropped patches for a slow client.
        let waiting = view.waiting.get_or_insert_with(|| Waiting::since(now));
        waiting.ask_at = now + waiting.wait;
        if header.offset == 0 {
            waiting.pieces = Some(Pieces {
                version: header.version,
                tick: header.tick,
                total,
                bytes: Vec::new(),
            });
        }
        let Some(pieces) = waiting.pieces.as_mut().filter(|pieces| {
            pieces.version == header.version
                && pieces.total == total
                && pieces.bytes.len() == header.offset as usize
        }) else {
            // Its beginning was lost: a new one comes when it is overdue, or sooner if the server sends one.
            waiting.pieces = None;
            return Ok(Outcome::Kept);
        };
        if pieces.bytes.len() + piece.len() > total {
            return Err(Misbehaved(eco_format!(
                "pieces of a snapshot are longer than the {total} bytes of the whole"
            )));
        }
        pieces.bytes.extend_from_slice(piece);
        if pieces.bytes.len() < total {
            return Ok(Outcome::Kept);
        }
        let (version, tick) = (pieces.version, pieces.tick);
        let bytes = std::mem::take(&mut pieces.bytes).into();
        let held = std::mem::take(&mut waiting.held);
        view.latest = Some(Latest { version, tick, bytes });
        view.waiting = None;
        Ok(view.catch_up(now, held))
    }
}

impl View {
    /// Applies what came while the snapshot was on its way.
    fn catch_up(&mut self, now: Instant, mut held: VecDeque<Held>) -> Outcome {
        while let Some(Held { header, delta }) = held.pop_front() {
            if let Outcome::Lost(reason) = self.apply(&header, &delta) {
                let mut waiting = Waiting::since(now);
                waiting.hold(header, delta);
                for Held { header, delta } in held {
                    waiting.hold(header, delta);
                }
                self.waiting = Some(waiting);
                return Outcome::Lost(reason);
            }
        }
        Outcome::Changed
    }

    fn apply(&mut self, header: &PatchHeader, delta: &[u8]) -> Outcome {
        let Some(latest) = &mut self.latest else {
            return Outcome::Lost(eco_format!(
                "patch {} to {}, and there is no view",
                header.base,
                header.version
            ));
        };
        if header.version <= latest.version {
            return Outcome::Kept; // The snapshot was newer.
        }
        if header.base != latest.version {
            return Outcome::Lost(eco_format!(
                "patch {} to {} does not fit version {}",
                header.base,
                header.version,
                latest.version
            ));
        }
        let mut target = Vec::new();
        match greenroom_delta::apply(&latest.bytes, delta, VIEW_BYTES_MAX, &mut target) {
            Ok(()) => {
                *latest =
                    Latest { version: header.version, tick: header.tick, bytes: target.into() };
                Outcome::Changed
            }
            Err(error) => {
                Outcome::Lost(eco_format!("patch {} to {}: {error}", header.base, header.version))
            }
        }
    }
}
