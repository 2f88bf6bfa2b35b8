//! Frames of seats that are sampled: from their arrival to the step that took them, or to their answer.

use greenroom_protocol::wire::client_instance::{
    CALL, QUERY, QUERY_REFUSED, QUERY_REPLY, REPLY, REPLY_REFUSED,
};
use greenroom_protocol::{MemberId, Seat, Seq, TraceContext};
use greenroom_telemetry::Span;

use crate::host::LinkKey;

/// Sampled frames that may wait for their answers; past it the oldest counts as answered.
const WAITING_MAX: usize = 1_024;

/// What is sampled. Most often nothing is, and then each look at it is one comparison.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    /// What comes next of this member is sampled.
    announced: Option<(LinkKey, MemberId, TraceContext)>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    instance: usize,
    seat: Seat,
    kind: u8,
    number: Seq,
    /// Ends when it is dropped.
    _span: Span,
}

impl Spans {
    pub(crate) fn announce(&mut self, link: LinkKey, member: MemberId, trace: TraceContext) {
        self.announced = Some((link, member, trace));
    }

    /// The trace of what has come of a member, if it was announced.
    #[inline]
    pub(crate) fn of(&mut self, link: LinkKey, member: MemberId) -> Option<TraceContext> {
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
        self.waiting.push(Waiting { instance, seat, kind, number, _span: span });
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
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
        self.waiting
            .retain(|waiting| waiting.instance != instance || matches!(waiting.kind, CALL | QUERY));
    }

    /// An instance is gone.
    pub(crate) fn forget(&mut self, instance: usize) {
        self.waiting.retain(|waiting| waiting.instance != instance);
    }
}
