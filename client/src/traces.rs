//! What this client samples: requests, messages and calls that begin a trace here.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use greenroom_protocol::{
    Refusal, Seq, TraceContext,
    wire::client_session::{self, TRACE},
};
use greenroom_telemetry::{Sampler, Span, SpanKind, Tracer};

/// Spans that wait for their answers, of one seat; past it the oldest counts as answered.
const WAITING_MAX: usize = 1_024;

/// How the whole client traces.
#[derive(Debug, Default)]
pub(crate) struct Traced {
    pub(crate) tracer: Tracer,
    /// The session server of this connection takes contexts.
    is_taken: AtomicBool,
}

impl Traced {
    pub(crate) fn new(tracer: Tracer) -> Self {
        Self { tracer, is_taken: AtomicBool::new(false) }
    }

    /// Whether the session server of the present connection takes contexts.
    pub(crate) fn connected(&self, is_taken: bool) {
        self.is_taken.store(is_taken, Relaxed);
    }

    /// The frame that goes before what `span` sends, if it may be sent.
    pub(crate) fn announcement(&self, span: &Span) -> Option<Vec<u8>> {
        let announcement = |context: TraceContext| [&[TRACE][..], &context.bytes()].concat();
        self.is_taken.load(Relaxed).then(|| announcement(span.context()))
    }
}

/// Begins spans where the sampler says so.
#[derive(Debug)]
pub(crate) struct Sampling {
    tracer: Tracer,
    sampler: Sampler,
}

impl Sampling {
    pub(crate) fn new(tracer: &Tracer) -> Self {
        Self { tracer: tracer.clone(), sampler: tracer.sampler() }
    }

    /// Whether there are traces at all.
    pub(crate) const fn is_on(&self) -> bool {
        self.tracer.is_on()
    }

    fn begin(&self, name: &'static str, kind: SpanKind) -> Option<Span> {
        if !self.sampler.is_due() {
            return None;
        }
        self.sampler.sampled();
        self.tracer.root(name, kind)
    }

    /// The span of a request or a check-in, if it is sampled.
    pub(crate) fn request(&self, kind: u8) -> Option<Span> {
        self.begin(client_session::traced_name(kind)?, SpanKind::Client)
    }
}

/// What is sampled of one seat.
#[derive(Debug)]
pub(crate) struct SeatTraces {
    sampling: Sampling,
    /// Of messages until they are sent, of calls until they are answered.
    spans: BTreeMap<Seq, Span>,
}

impl SeatTraces {
    pub(crate) fn new(tracer: &Tracer) -> Self {
        Self { sampling: Sampling::new(tracer), spans: BTreeMap::new() }
    }

    /// A call is queued.
    pub(crate) fn calls(&mut self, number: Seq) {
        let span = self.sampling.begin("call", SpanKind::Client);
        self.keep(number, span);
    }

    /// A message is queued.
    pub(crate) fn sends(&mut self, number: Seq) {
        let span = self.sampling.begin("message", SpanKind::Producer);
        self.keep(number, span);
    }

    fn keep(&mut self, number: Seq, span: Option<Span>) {
        let Some(span) = span else { return };
        if self.spans.len() >= WAITING_MAX {
            self.spans.pop_first();
        }
        self.spans.insert(number, span);
    }

    /// What goes before a message or a call that is written now. A message's span ends with it.
    pub(crate) fn before(
        &mut self,
        number: Seq,
        is_call: bool,
        traced: &Traced,
    ) -> Option<Vec<u8>> {
        if self.spans.is_empty() {
            return None;
        }
        let announcement = traced.announcement(self.spans.get(&number)?);
        if !is_call {
            self.spans.remove(&number);
        }
        announcement
    }

    /// A call is answered.
    pub(crate) fn answered(&mut self, number: Seq, refusal: Option<&Refusal>) {
        if let (Some(mut span), Some(refusal)) = (self.spans.remove(&number), refusal) {
            span.fail(refusal);
        }
    }

    /// Nothing of it is answered any more.
    pub(crate) fn clear(&mut self) {
        self.spans.clear();
    }
}
