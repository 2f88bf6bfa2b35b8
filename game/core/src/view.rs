//! One view of an instance, and what is sent when it changes.

use greenroom_protocol::{PIECE_BYTES_MAX, VIEW_BYTES_MAX, ViewId};
use serde::{Deserialize, Serialize};

use crate::effects::{Effect, Effects};
use crate::{Seat, Tick};

/// A view as it was last encoded.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct View {
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    /// Counts the changes, from 1; 0 for a view that nobody has asked for yet.
    version: u32,
    /// Somebody has been sent every change up to this one, so that the next can be a patch.
    followed: bool,
}

/// A view is longer than [`VIEW_BYTES_MAX`].
#[derive(Debug)]
pub(crate) struct TooLong {
    pub(crate) bytes: usize,
}

impl View {
    /// Takes what `effects.view` holds as the newest state, and sends a patch to `to` if it differs from the last.
    pub(crate) fn update(
        &mut self,
        id: ViewId,
        to: Option<Seat>,
        tick: Tick,
        effects: &mut Effects,
    ) -> Result<(), TooLong> {
        let newest = &mut effects.view;
        if newest.len() > VIEW_BYTES_MAX {
            return Err(TooLong { bytes: newest.len() });
        }
        if self.followed && *newest == self.bytes {
            return Ok(());
        }
        let base = self.version;
        self.version = base.wrapping_add(1);
        if self.followed {
            let start = effects.bytes.len();
            effects.delta.encode(&self.bytes, newest, &mut effects.bytes);
            let payload = start..effects.bytes.len();
            let (tick, version) = (tick.wire(), self.version);
            effects.items.push(Effect::Patch { to, view: id, tick, base, version, payload });
        }
        self.followed = true;
        // Both buffers stay in use, so that nothing is allocated once they have grown.
        std::mem::swap(&mut self.bytes, newest);
        Ok(())
    }
    /// Nobody follows any more: the next one who asks makes it encode anew.
    pub(crate) const fn abandon(&mut self) {
        self.followed = false;
    }
    pub(crate) const fn is_followed(&self) -> bool {
        self.followed
    }
    /// Somebody has had it once.
    pub(crate) const fn is_known(&self) -> bool {
        self.version > 0
    }
    /// Sends all of it to one seat, in pieces.
    pub(crate) fn send_whole(&self, id: ViewId, seat: Seat, tick: Tick, effects: &mut Effects) {
        let length = |bytes| u32::try_from(bytes).expect("a view is at most 1 MiB");
        let total = length(self.bytes.len());
        for (n, piece) in self.bytes.chunks(PIECE_BYTES_MAX).enumerate() {
            let start = effects.bytes.len();
            effects.bytes.extend_from_slice(piece);
            effects.items.push(Effect::Piece {
                seat,
                view: id,
                tick: tick.wire(),
                offset: length(n * PIECE_BYTES_MAX),
                version: self.version,
                total,
                payload: start..effects.bytes.len(),
            });
        }
    }
}
