//! Commands of sampled requests that are on their way: into the log, to the standby, and to game servers.

use std::collections::BTreeMap;

use greenroom_master_core::Event;
use greenroom_master_core::replica::{Entry, Logged};
use greenroom_protocol::wire::master_game::Traced;
use greenroom_protocol::{InstanceId, TraceContext};
use greenroom_telemetry::{Span, SpanKind, Tracer};

use crate::inbox::LinkNumber;

/// Orders to make instances that are remembered as sampled, at most: each leaves with the next that is committed.
const ORDERS_MAX: usize = 1_024;

/// What is sampled. Most often nothing is, and then each look at it is one comparison.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    pub(crate) tracer: Tracer,
    /// The next command that is written is of this request.
    writes: Option<TraceContext>,
    /// By number: the time until the commit.
    commits: BTreeMap<u64, Span>,
    /// Commands that were committed and of which nothing was told yet, by number.
    committed: Vec<(u64, TraceContext)>,
    /// Instances that are made for sampled requests.
    orders: BTreeMap<InstanceId, TraceContext>,
    /// Of these, those whose game servers have the order.
    under_way: BTreeMap<InstanceId, TraceContext>,
    /// What comes next on this link, with this number in its stream, is of a sampled step.
    caused: Option<(LinkNumber, u64, TraceContext)>,
}

impl Traces {
    /// The next command that is written, if one is, is of a request with this trace.
    pub(crate) fn expect_write(&mut self, trace: Option<TraceContext>) {
        self.writes = trace;
    }

    /// Commands were written, the last with this number.
    #[inline]
    pub(crate) fn written(&mut self, lsn: u64) {
        if let Some(trace) = self.writes.take()
            && let Some(mut span) = self.tracer.child(Some(trace), "commit", SpanKind::Internal)
        {
            span.set("greenroom.lsn", lsn);
            self.commits.insert(lsn, span);
        }
    }

    /// The traces of entries that go to the standby.
    pub(crate) fn of(&self, entries: &[Entry<Logged>]) -> Vec<(u64, TraceContext)> {
        if self.commits.is_empty() {
            return Vec::new();
        }
        let known =
            entries.iter().filter_map(|entry| self.commits.get_key_value(&entry.header.lsn));
        known.map(|(lsn, span)| (*lsn, span.context())).collect()
    }

    /// Everything up to this command is committed.
    #[inline]
    pub(crate) fn committed(&mut self, commit: u64) {
        while let Some(first) = self.commits.first_entry().filter(|first| *first.key() <= commit) {
            self.committed.push((*first.key(), first.get().context()));
            first.remove().end();
        }
    }

    /// The traces of what was just committed, for what is told of it.
    #[inline]
    pub(crate) fn just_committed(&mut self) -> Vec<(u64, TraceContext)> {
        std::mem::take(&mut self.committed)
    }

    /// An instance is made for a request with this trace.
    pub(crate) fn ordered(&mut self, instance: InstanceId, trace: TraceContext) {
        if self.orders.len() < ORDERS_MAX {
            self.orders.insert(instance, trace);
        }
    }

    /// What goes before the order to make an instance, if that is sampled.
    #[inline]
    pub(crate) fn before_order(&mut self, instance: InstanceId) -> Option<Traced> {
        if self.orders.is_empty() {
            return None;
        }
        let trace = self.orders.remove(&instance)?;
        if self.under_way.len() < ORDERS_MAX {
            self.under_way.insert(instance, trace);
        }
        Some(Traced { instance, trace })
    }

    /// A game server says of which trace the message of its stream is that comes next.
    pub(crate) fn causes(&mut self, link: LinkNumber, n: u64, trace: TraceContext) {
        if self.tracer.is_on() {
            self.caused = Some((link, n, trace));
        }
    }

    /// The trace of what a game server says: it is of a sampled step, or of an order for a sampled request.
    #[inline]
    pub(crate) fn of_event(
        &mut self,
        link: LinkNumber,
        n: u64,
        event: &Event,
    ) -> Option<TraceContext> {
        let caused = self.caused.take_if(|(of, number, _)| (*of, *number) == (link, n));
        caused.map(|(.., trace)| trace).or_else(|| self.answers_order(event))
    }

    /// What a game server says of such an order is a part of its trace.
    #[inline]
    fn answers_order(&mut self, event: &Event) -> Option<TraceContext> {
        if self.under_way.is_empty() {
            return None;
        }
        match event {
            Event::Running(running) => self.under_way.remove(&running.instance),
            Event::CreateRefused(refused) => self.under_way.remove(&refused.instance),
            Event::SeatChanged(_)
            | Event::MetaChanged(_)
            | Event::Closed(_)
            | Event::Scored(_)
            | Event::HandedOver(_) => None,
        }
    }

    /// Spans of entries that come from the active, until they are applied and acknowledged.
    pub(crate) fn applying(&self, traces: &[(u64, TraceContext)]) -> Vec<Span> {
        let spans = traces.iter().filter_map(|&(lsn, trace)| {
            let mut span = self.tracer.child(Some(trace), "apply", SpanKind::Consumer)?;
            span.set("greenroom.lsn", lsn);
            Some(span)
        });
        spans.collect()
    }

    /// This master decides no more.
    pub(crate) fn clear(&mut self) {
        self.writes = None;
        self.commits.clear();
        self.committed.clear();
        self.orders.clear();
        self.under_way.clear();
        self.caused = None;
    }
}
