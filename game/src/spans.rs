//! Frames of seats that are sampled: from their arrival to the step that took them, or to their answer; and what they
//! have the store do.

use greenroom_protocol::wire::client_instance::{
    CALL, QUERY, QUERY_REFUSED, QUERY_REPLY, REPLY, REPLY_REFUSED,
};
use greenroom_protocol::{MemberId, Seat, Seq, TraceContext};
use greenroom_telemetry::{Parent, Span, Tracer};

use crate::host::LinkKey;

/// Sampled frames that may wait for their answers; past it the oldest counts as answered.
const WAITING_MAX: usize = 1_024;

/// What is sampled. Most often nothing is, and then each look at it is some comparisons; while tracing is off, one.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    pub(crate) tracer: Tracer,
    /// What comes next of this member is sampled.
    announced: Option<(LinkKey, MemberId, TraceContext)>,
    waiting: Vec<Waiting>,
    /// What the instance does that is told something now is a part of this.
    cause: Option<Parent>,
    /// At a fixed rate, what the next step of an instance does is a part of this, too: it takes an outcome of the store
    /// that a sampled frame led to.
    outcomes: Vec<(usize, Parent)>,
}

#[derive(Debug)]
struct Waiting {
    instance: usize,
    seat: Seat,
    kind: u8,
    number: Seq,
    /// At a fixed rate: a step took it, and it waits for its answer.
    is_taken: bool,
    /// Ends when it is dropped.
    span: Span,
}

impl Spans {
    pub(crate) fn new(tracer: Tracer) -> Self {
        Self { tracer, ..Self::default() }
    }

    pub(crate) fn announce(&mut self, link: LinkKey, member: MemberId, trace: TraceContext) {
        if self.tracer.is_on() {
            self.announced = Some((link, member, trace));
        }
    }

    /// The trace of what has come of a member, if it was announced.
    #[inline]
    pub(crate) fn of(&mut self, link: LinkKey, member: MemberId) -> Option<TraceContext> {
        if !self.tracer.is_on() {
            return None;
        }
        self.announced.take_if(|(of, who, _)| (*of, *who) == (link, member)).map(|(.., of)| of)
    }

    /// A frame of this seat waits for its step.
    pub(crate) fn begin(
        &mut self,
        instance: usize,
        seat: Seat,
        (kind, number): (u8, Seq),
        span: Span,
    ) {
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.remove(0);
        }
        self.waiting.push(Waiting { instance, seat, kind, number, is_taken: false, span });
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        !self.tracer.is_on()
            || self.waiting.is_empty() && self.cause.is_none() && self.outcomes.is_empty()
    }

    /// What an instance does from now on, until [`Self::done`], is a part of this.
    pub(crate) fn causes(&mut self, cause: Parent) {
        self.cause = Some(cause);
    }

    /// An instance has done what it was told.
    pub(crate) fn done(&mut self) {
        self.cause = None;
    }

    /// At a fixed rate: an outcome of the store waits for the next step of an instance.
    pub(crate) fn outcome(&mut self, instance: usize, cause: Parent) {
        if self.outcomes.len() < WAITING_MAX {
            self.outcomes.push((instance, cause));
        }
    }

    /// At a fixed rate, an instance makes a step: what it has the store do is a part of what is sampled and waits for
    /// it, of the first if that is several things.
    pub(crate) fn steps(&mut self, instance: usize) {
        let is_next = |waiting: &&Waiting| waiting.instance == instance && !waiting.is_taken;
        let frame = self.waiting.iter().find(is_next);
        let outcome = self.outcomes.iter().find(|(of, _)| *of == instance);
        self.cause = frame
            .map(|waiting| waiting.span.parent())
            .or_else(|| outcome.map(|(_, cause)| cause.clone()));
    }

    /// What the instance asks of the store now is a part of this.
    #[inline]
    pub(crate) fn cause(&self) -> Option<Parent> {
        if self.tracer.is_on() { self.cause.clone() } else { None }
    }

    /// A seat is told something; it may be the answer to what is sampled.
    pub(crate) fn told(
        &mut self,
        instance: usize,
        seat: Seat,
        (kind, number): (u8, Seq),
        payload: &[u8],
    ) {
        let answers = match kind {
            REPLY | REPLY_REFUSED => {
                payload.first_chunk().map(|of| (CALL, Seq(u32::from_le_bytes(*of))))
            }
            QUERY_REPLY | QUERY_REFUSED => Some((QUERY, number)),
            _ => None,
        };
        if let Some(answers) = answers {
            self.waiting.retain(|waiting| {
                (waiting.instance, waiting.seat, (waiting.kind, waiting.number))
                    != (instance, seat, answers)
            });
        }
    }

    /// An instance has made a step: what was only told is done.
    pub(crate) fn stepped(&mut self, instance: usize) {
        self.waiting.retain_mut(|waiting| {
            waiting.is_taken |= waiting.instance == instance;
            waiting.instance != instance || matches!(waiting.kind, CALL | QUERY)
        });
        self.outcomes.retain(|(of, _)| *of != instance);
        self.cause = None;
    }

    /// An instance is gone.
    pub(crate) fn forget(&mut self, instance: usize) {
        self.waiting.retain(|waiting| waiting.instance != instance);
        self.outcomes.retain(|(of, _)| *of != instance);
    }
}
