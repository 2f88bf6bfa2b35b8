//! What is to be done after an input.

use std::fmt;
use std::ops::Range;

use ecow::EcoString;
use greenroom_delta::Encoder;
use greenroom_protocol::wire::client_instance::{PATCH, SNAPSHOT_PIECE};
use greenroom_protocol::wire::master_game::GameToMaster;
use greenroom_protocol::{
    Channel, DownHeader, Generation, PatchHeader, PieceHeader, Refusal, Seat, Seq, ViewId,
};

use crate::{StoreOrder, Told};

/// What is to be done, in this order. It is made once and used for every input: [`Effects::clear`] keeps its memory,
/// so that nothing is allocated once it has grown.
#[derive(Debug, Default)]
pub struct Effects {
    /// What is to be done.
    pub items: Vec<Effect>,
    /// The payloads, one after the other.
    pub bytes: Vec<u8>,
    /// Memory for the view that is being compared, and for its delta. Whose instance wrote it last is of no matter.
    pub(crate) view: Vec<u8>,
    pub(crate) delta: Encoder,
}

/// One thing to be done. `payload` is a range of [`Effects::bytes`].
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// The seat is taken by this binding, or taken back. Comes before everything else for the seat.
    Attached {
        /// Which.
        seat: Seat,
        /// By which binding.
        generation: Generation,
        /// The instance has every reliable message of the seat up to this one.
        up_received: Seq,
        /// Number of the first reliable message that comes: the oldest that the seat has not acknowledged. It may
        /// have that one, and others after it, and drops them.
        down_next: Seq,
        /// Ticks per second.
        tick_rate: u16,
    },
    /// The one who wanted the seat does not get it.
    AttachRefused {
        /// Which.
        seat: Seat,
        /// By which binding it was wanted.
        generation: Generation,
        /// Why.
        refusal: Refusal,
    },
    /// A frame for one seat.
    ToSeat {
        /// Which.
        seat: Seat,
        /// The frame's kind.
        kind: u8,
        /// Number on the reliable channel, or of the query; 0 if it has none.
        number: Seq,
        /// The instance has every reliable message of the seat up to this one.
        ack: Seq,
        /// Low 32 bits of the tick.
        tick: u32,
        /// Its payload.
        payload: Range<usize>,
    },
    /// A change of a view: for every seat that is attached, or for one.
    Patch {
        /// Nobody in particular: all.
        to: Option<Seat>,
        /// Which view.
        view: ViewId,
        /// Low 32 bits of the tick.
        tick: u32,
        /// The version that the delta applies to.
        base: u32,
        /// The version that it makes.
        version: u32,
        /// The delta.
        payload: Range<usize>,
    },
    /// A piece of a whole view, for one seat.
    Piece {
        /// Which.
        seat: Seat,
        /// Which view.
        view: ViewId,
        /// Low 32 bits of the tick.
        tick: u32,
        /// Where it begins, in bytes.
        offset: u32,
        /// The version of the view.
        version: u32,
        /// Length of the whole view, in bytes.
        total: u32,
        /// Its bytes.
        payload: Range<usize>,
    },
    /// The seat is gone: nothing for it comes after this.
    SeatEnded {
        /// Which.
        seat: Seat,
        /// Why.
        refusal: Refusal,
    },
    /// For the master, in the stream.
    Report(Box<GameToMaster>),
    /// For the store; what becomes of it comes back by [`crate::Input::Stored`].
    Store(Box<StoreOrder>),
    /// For the event log.
    Event(Box<Told>),
    /// A client's view did not fit what came: it says so, and gets the whole one.
    Desync {
        /// Whose.
        seat: Seat,
        /// Which.
        view: ViewId,
        /// What the client says was wrong.
        reason: EcoString,
    },
    /// A line of the game's own, or about it.
    Log {
        /// How much it matters.
        level: LogLevel,
        /// What.
        text: EcoString,
    },
}

/// How much a line of the log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Somebody must act.
    Error,
    /// Unusual, but handled.
    Warn,
    /// The course of things.
    Info,
    /// Every detail.
    Debug,
}

impl fmt::Display for LogLevel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        })
    }
}

/// A place in [`Effects`], to which a failed step is taken back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    items: usize,
    bytes: usize,
}

impl Effects {
    /// Nothing to do, and no memory yet.
    pub fn new() -> Self {
        Self::default()
    }
    /// Forgets what was to be done.
    pub fn clear(&mut self) {
        self.items.clear();
        self.bytes.clear();
    }
    /// A payload.
    pub fn payload(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }
    pub(crate) const fn mark(&self) -> Mark {
        Mark { items: self.items.len(), bytes: self.bytes.len() }
    }
    pub(crate) fn take_back(&mut self, to: Mark) {
        self.items.truncate(to.items);
        self.bytes.truncate(to.bytes);
    }
    pub(crate) fn report(&mut self, message: impl Into<GameToMaster>) {
        self.items.push(Effect::Report(Box::new(message.into())));
    }
    pub(crate) fn log(&mut self, level: LogLevel, text: EcoString) {
        self.items.push(Effect::Log { level, text });
    }
}

impl Effect {
    /// Appends the header of the frame that this is, for a connection that knows the instance by `channel`; gives the
    /// range of its payload, which follows. Nothing for what is no frame.
    pub fn frame_header(&self, channel: Channel, out: &mut Vec<u8>) -> Option<Range<usize>> {
        match self {
            Self::ToSeat { kind, number, ack, tick, payload, .. } => {
                let (kind, number, ack, tick) = (*kind, *number, *ack, *tick);
                out.extend_from_slice(&DownHeader { kind, channel, number, ack, tick }.bytes());
                Some(payload.clone())
            }
            Self::Patch { view, tick, base, version, payload, .. } => {
                let (view, tick, base, version) = (*view, *tick, *base, *version);
                let header = PatchHeader { kind: PATCH, channel, view, tick, base, version };
                out.extend_from_slice(&header.bytes());
                Some(payload.clone())
            }
            Self::Piece { view, tick, offset, version, total, payload, .. } => {
                let header = PieceHeader {
                    kind: SNAPSHOT_PIECE,
                    channel,
                    view: *view,
                    tick: *tick,
                    offset: *offset,
                    version: *version,
                    total: *total,
                };
                out.extend_from_slice(&header.bytes());
                Some(payload.clone())
            }
            Self::Attached { .. }
            | Self::AttachRefused { .. }
            | Self::SeatEnded { .. }
            | Self::Report(_)
            | Self::Store(_)
            | Self::Event(_)
            | Self::Desync { .. }
            | Self::Log { .. } => None,
        }
    }
}
