//! What clients send that is sampled: because they say so, or by this server's own choice.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use greenroom_protocol::{
    LinkHeader, MemberId, Moment, TraceContext,
    wire::{client_instance, client_session, session_game},
};
use greenroom_session_core::ConnId;
use greenroom_telemetry::{Sampler, Span, SpanKind, Tracer};

/// Frames a second that clients, all together, may have sampled. What is over it is not: a trace costs every server on
/// its way, and the collector.
const ANNOUNCED_PER_SECOND_MAX: u32 = 1_000;

/// What decides of each frame whether it is sampled.
pub(crate) struct Traces {
    tracer: Tracer,
    sampler: Sampler,
    /// Connections whose next frame is sampled: one for each at most.
    announced: RefCell<BTreeMap<ConnId, TraceContext>>,
    /// The present second, and how many were announced in it.
    rate: Cell<(u64, u32)>,
}

impl Traces {
    pub(crate) fn new(tracer: Tracer) -> Self {
        let sampler = tracer.sampler();
        Self { tracer, sampler, announced: RefCell::default(), rate: Cell::default() }
    }

    pub(crate) const fn is_on(&self) -> bool {
        self.tracer.is_on()
    }

    /// A client says that its next frame is sampled. What is no context is ignored.
    pub(crate) fn announce(&self, now: Moment, conn: ConnId, frame: &[u8]) {
        let second = now.0 / 1_000;
        let (last, count) = self.rate.get();
        let count = if last == second { count + 1 } else { 1 };
        self.rate.set((second, count));
        if count <= ANNOUNCED_PER_SECOND_MAX
            && let Some(trace) = TraceContext::from_bytes(frame.get(1..).unwrap_or_default())
        {
            self.announced.borrow_mut().insert(conn, trace);
        }
    }

    /// The span of a frame, if it is sampled. What is not, which is nearly all, costs three comparisons; while tracing
    /// is off, one.
    #[inline]
    pub(crate) fn of(&self, conn: ConnId, frame: &[u8]) -> Option<Span> {
        if !self.tracer.is_on() {
            return None;
        }
        let is_due = self.sampler.is_due();
        if !is_due && self.announced.borrow().is_empty() {
            return None;
        }
        self.begin(conn, frame[0], is_due)
    }

    #[cold]
    fn begin(&self, conn: ConnId, kind: u8, is_due: bool) -> Option<Span> {
        let announced = self.announced.borrow_mut().remove(&conn);
        let (name, kind) = match client_instance::traced_name(kind) {
            // Its answer passes here as one of many: the game server knows how long it took.
            Some(name) => (name, SpanKind::Producer),
            None => (client_session::traced_name(kind)?, SpanKind::Server),
        };
        match announced {
            Some(_) => self.tracer.child(announced, name, kind),
            None if is_due => {
                self.sampler.sampled();
                self.tracer.root(name, kind)
            }
            None => None,
        }
    }

    /// A connection is gone.
    pub(crate) fn forget(&self, conn: ConnId) {
        self.announced.borrow_mut().remove(&conn);
    }
}

/// The header of the announcement to a game server that what comes next of a member is sampled.
pub(crate) const fn trace_header(member: MemberId) -> LinkHeader {
    LinkHeader { kind: session_game::TRACE, target: member.0 }
}
