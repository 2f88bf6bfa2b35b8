//! Spans: what a sampled request did here, and for how long.
//!
//! Nobody who does not trace has a [`Tracer`] that is on, and then there are no spans; a request that is not sampled
//! has none either. Ending a span puts it into a bounded queue, and never waits: what does not fit is dropped and
//! counted.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use greenroom_protocol::TraceContext;

use crate::encoding::{self, Ended};
use crate::export::Exported;
use crate::queue::Queue;
use crate::registry::Who;

/// What a span is to the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// It asks somebody, and waits for the answer.
    Client,
    /// It answers somebody.
    Server,
    /// It sends something on, and does not wait.
    Producer,
    /// It takes something that was sent on.
    Consumer,
    /// A part of its parent's work in the same process.
    Internal,
}

/// Something that is known of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute<'a> {
    /// A number.
    Int(i64),
    /// A text.
    Text(Cow<'a, str>),
}

impl From<u64> for Attribute<'_> {
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<String> for Attribute<'_> {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl<'a> From<&'a str> for Attribute<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text.into())
    }
}

/// Begins spans of one server, or of one client. Off, it begins none; clones are the same.
#[derive(Clone, Default)]
pub struct Tracer(Option<Handle>);

#[cfg(any(feature = "otlp", test))]
type Handle = Arc<On>;

/// A build that can send no spans has none, and its compiler knows that: nothing is left of what would look for them.
#[cfg(not(any(feature = "otlp", test)))]
#[derive(Clone)]
enum Handle {}

#[cfg(not(any(feature = "otlp", test)))]
impl std::ops::Deref for Handle {
    type Target = On;

    fn deref(&self) -> &On {
        match *self {}
    }
}

struct On {
    who: Arc<Who>,
    /// Of what nobody else has sampled.
    share: f64,
    queue: Arc<Queue>,
    exported: Arc<Exported>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => out.write_str("Tracer(off)"),
            Some(on) => write!(out, "Tracer({} {}, {})", on.who.role, on.who.name, on.share),
        }
    }
}

impl Tracer {
    /// Of somebody who puts `share` of what nobody else has sampled into traces, 0.0 to 1.0.
    #[cfg(any(feature = "otlp", test))]
    pub(crate) fn new(who: Who, share: f64, queue: Arc<Queue>, exported: Arc<Exported>) -> Self {
        Self(Some(Arc::new(On { who: Arc::new(who), share, queue, exported })))
    }

    /// Whether it begins spans at all: then contexts of others are of use here.
    #[inline]
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Chooses what is sampled here. One for each thread.
    pub fn sampler(&self) -> Sampler {
        Sampler::new(self.0.as_ref().map_or(0.0, |on| on.share))
    }

    /// Begins a trace; nothing if this tracer is off.
    pub fn root(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Option<Span> {
        let mut trace = [0; 16];
        trace[..8].copy_from_slice(&random());
        trace[8..].copy_from_slice(&random());
        self.begin(trace, None, name.into(), kind)
    }

    /// Begins a span of the trace of `parent`; nothing if there is none, or if this tracer is off.
    pub fn child(
        &self,
        parent: Option<TraceContext>,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
    ) -> Option<Span> {
        let parent = parent?;
        self.begin(parent.trace, Some(parent.span), name.into(), kind)
    }

    fn begin(
        &self,
        trace: [u8; 16],
        parent: Option<[u8; 8]>,
        name: Cow<'static, str>,
        kind: SpanKind,
    ) -> Option<Span> {
        self.0.as_ref().map(|on| Span::begin(on, trace, parent, name, kind))
    }
}

/// What further spans are parts of: a span, which may have ended meanwhile. It can be kept and sent to other threads.
#[derive(Clone)]
pub struct Parent {
    on: Handle,
    context: TraceContext,
}

impl fmt::Debug for Parent {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Parent({:?})", self.context)
    }
}

impl Parent {
    /// What goes on with whatever is sent within it.
    pub const fn context(&self) -> TraceContext {
        self.context
    }

    /// Begins a span within it, of the same server.
    pub fn child(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Span {
        let TraceContext { trace, span } = self.context;
        Span::begin(&self.on, trace, Some(span), name.into(), kind)
    }
}

/// A span under way. It ends when it is dropped.
#[must_use = "a span ends when it is dropped"]
pub struct Span {
    on: Handle,
    open: Box<Open>,
}

struct Open {
    context: TraceContext,
    parent: Option<[u8; 8]>,
    name: Cow<'static, str>,
    kind: SpanKind,
    /// Since 1970.
    start_ns: u64,
    began: Instant,
    /// As they are sent.
    attributes: Vec<u8>,
    /// Why it did not succeed.
    error: Option<String>,
}

impl fmt::Debug for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Span({:?})", self.open.context)
    }
}

impl Span {
    fn begin(
        on: &Handle,
        trace: [u8; 16],
        parent: Option<[u8; 8]>,
        name: Cow<'static, str>,
        kind: SpanKind,
    ) -> Self {
        let open = Box::new(Open {
            context: TraceContext { trace, span: random() },
            parent,
            name,
            kind,
            start_ns: now_ns(),
            began: Instant::now(),
            attributes: Vec::new(),
            error: None,
        });
        Self { open, on: on.clone() }
    }

    /// For spans within it, wherever they begin.
    pub fn parent(&self) -> Parent {
        Parent { context: self.open.context, on: self.on.clone() }
    }

    /// What goes on with whatever this span sends.
    pub fn context(&self) -> TraceContext {
        self.open.context
    }

    /// Says something of it.
    pub fn set<'a>(&mut self, key: &'static str, value: impl Into<Attribute<'a>>) {
        encoding::attribute(&mut self.open.attributes, key, &value.into());
    }

    /// It did not succeed, and why.
    pub fn fail(&mut self, why: impl fmt::Display) {
        self.open.error = Some(why.to_string());
    }

    /// Ends it now.
    pub fn end(self) {
        drop(self);
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let open = &*self.open;
        let On { who, queue, exported, .. } = &*self.on;
        // The wall clock may jump: what it lasted is by the other one.
        let lasted = u64::try_from(open.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let ended = Ended {
            context: open.context,
            parent: open.parent,
            name: &open.name,
            kind: open.kind,
            start_ns: open.start_ns,
            end_ns: open.start_ns.saturating_add(lasted),
            attributes: &open.attributes,
            error: open.error.as_deref(),
        };
        Exported::add(&exported.ended, 1);
        if !queue.push(who, &ended) {
            Exported::add(&exported.dropped, 1);
        }
    }
}

/// Chooses what is sampled: a countdown, so that it costs one subtraction for what is not.
#[derive(Debug)]
pub struct Sampler {
    share: f64,
    /// How many more are not sampled.
    skip: Cell<u64>,
    /// Where its random numbers are.
    state: Cell<u64>,
}

impl Sampler {
    fn new(share: f64) -> Self {
        let sampler = Self { share, skip: Cell::new(u64::MAX), state: Cell::new(seed()) };
        sampler.begin_again();
        sampler
    }

    /// Whether the next one is to be sampled. Says so until [`Self::sampled`].
    #[inline]
    pub fn is_due(&self) -> bool {
        match self.skip.get().checked_sub(1) {
            Some(left) => {
                self.skip.set(left);
                false
            }
            None => true,
        }
    }

    /// One was sampled: counts down to the next.
    pub fn sampled(&self) {
        self.begin_again();
    }

    /// How many are left out is random, with the share's mean: a rhythm in what comes is not mistaken for all of it.
    fn begin_again(&self) {
        self.skip.set(gap(self.share, split_mix(&self.state)));
    }
}

/// How many are left out before the next sample, if each is taken with probability `share`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a random share of 1, and the floor of what is not negative; past u64 the cast stays at its end"
)]
fn gap(share: f64, random: u64) -> u64 {
    if share <= 0.0 {
        return u64::MAX;
    }
    if share >= 1.0 {
        return 0;
    }
    // In (0, 1], so that the logarithm is finite.
    let uniform = ((random >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    (uniform.ln() / (1.0 - share).ln()).floor() as u64
}

thread_local! {
    /// Where this thread's random numbers are: seeded by the system, which is not asked for each span.
    static RANDOM: Cell<u64> = Cell::new(seed());
}

fn seed() -> u64 {
    getrandom::u64().expect("randomness: links between servers need it too")
}

/// The next number after `state`: SplitMix64, which needs no more than a number to go on from.
fn split_mix(state: &Cell<u64>) -> u64 {
    let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    state.set(next);
    let mut mixed = next;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Never all zeros.
fn random() -> [u8; 8] {
    RANDOM.with(split_mix).max(1).to_le_bytes()
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::queue::SPANS_MAX;

    fn who() -> Who {
        Who { role: "game", name: "game-1".to_owned() }
    }

    #[test]
    fn a_tracer_that_is_off_begins_nothing() {
        let off = Tracer::default();
        assert!(off.root("x", SpanKind::Server).is_none());
        let parent = TraceContext { trace: [1; 16], span: [2; 8] };
        assert!(off.child(Some(parent), "x", SpanKind::Server).is_none());
        let sampler = off.sampler();
        assert!((0..100_000).all(|_| !sampler.is_due()));
    }

    #[test]
    fn a_full_queue_drops_spans_and_counts_them() {
        let (queue, exported) = (Arc::new(Queue::default()), Arc::new(Exported::default()));
        let tracer = Tracer::new(who(), 1.0, Arc::clone(&queue), Arc::clone(&exported));
        let counted = || (exported.ended.load(Relaxed), exported.dropped.load(Relaxed));
        let all = SPANS_MAX as u64;
        for _ in 0..all + 2 {
            drop(tracer.root("x", SpanKind::Internal));
        }
        assert_eq!((counted(), queue.take().count), ((all + 2, 2), SPANS_MAX));
        queue.close();
        drop(tracer.root("x", SpanKind::Internal));
        assert_eq!((counted(), queue.take().count), ((all + 3, 3), 0));
    }

    #[test]
    fn spans_of_one_trace_have_its_id_and_ids_of_their_own() {
        let tracer = Tracer::new(who(), 1.0, Arc::default(), Arc::default());
        let root = tracer.root("join", SpanKind::Client).unwrap();
        let others = [
            tracer.child(Some(root.context()), "create", SpanKind::Server).unwrap(),
            root.parent().child("store", SpanKind::Internal),
        ];
        assert!(others.iter().all(|span| span.context().trace == root.context().trace));
        assert!(others.iter().all(|span| span.open.parent == Some(root.context().span)));
        assert_ne!(others[0].context().span, others[1].context().span);
        let elsewhere = std::thread::spawn(random).join().unwrap();
        assert_ne!(elsewhere, random());
    }

    #[test]
    fn the_share_that_is_sampled_is_the_one_that_was_asked_for() {
        for share in [0.01, 0.1, 0.5, 1.0] {
            let sampler = Sampler::new(share);
            sampler.state.set(7);
            let all = 200_000;
            let taken = (0..all).filter(|_| {
                let due = sampler.is_due();
                if due {
                    sampler.sampled();
                }
                due
            });
            let taken = f64::from(u32::try_from(taken.count()).unwrap()) / f64::from(all);
            assert!((taken / share - 1.0).abs() < 0.1, "{taken} of {share}");
        }
    }
}
