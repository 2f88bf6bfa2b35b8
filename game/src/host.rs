//! The instances of a server, and who is attached to their seats over which link. No task and no socket here: what is
//! to be sent is appended to the links' buffers.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use ecow::{EcoString, eco_format};
use greenroom_game_core::{
    Core, Effect, Effects, Input, LogLevel, Now, Registry, StoreOrder, StoreRefusal, StoreTicket,
    Stored, Told,
};
use greenroom_link::{Full, Outgoing};
use greenroom_logs::kinds::{InstanceFailed, SnapshotUnreadable, TickOverrun, ViewDesync};
use greenroom_logs::{Logs, OfGame};
use greenroom_protocol::wire::client_instance::{QUERY_REFUSED, SEND_AGAIN, traced_name};
use greenroom_protocol::wire::master_game::{
    Closed, CreateInstance, CreateRefused, FreeSeat, GameCounts, GameLoad, GameReport,
    GameToMaster, HandedOver, HeldInstance, KindInfo, MasterToGame, Measure, Measured, Measures,
    SeatChanged, SeatState, Traced,
};
use greenroom_protocol::wire::session_game::{
    self, Attach, AttachRefused, Attached, Ended, GameToSession, SessionToGame,
};
use greenroom_protocol::{
    Channel, Code, DecodeError, DownHeader, Generation, Incarnation, InstanceId, Limits,
    LinkHeader, MasterLink, MemberId, Moment, Refusal, Seat, Seq, StampedHeader, Streams,
    TraceContext, UpHeader, Verdict, ViewId, Word, encode,
};
use greenroom_storage::{Cause, SetAside, StorageError};
use greenroom_telemetry::{Parent, Sampler, Seldom, Span, SpanKind, Tracer};
use slab::Slab;

use crate::Metrics;
use crate::clockwork::{Clockwork, Ticks};
use crate::frozen::{Asked, Frozen, Waiting};
use crate::gauges::Gauges;
use crate::lease::Lease;
use crate::snapshots::{FAILURES_MAX, FAILURES_SPAN_MS, Failed, Loaded, Save, Sentence};
use crate::spans::Spans;
use crate::upward::Upward;

/// How long a master may take to welcome this server once that has answered it, in microseconds.
const WELCOME_US: u64 = 5_000_000;
/// How often the log says that a snapshot was not stored, at most: each instance may find it so each second.
const UNSTORED_LOGGED: Duration = Duration::from_secs(10);

/// Why a server that stops takes nothing more, and ends what it has.
fn stops() -> Refusal {
    Refusal::new(Code::Draining, "the game server is stopping")
}

/// Everything that a game server has.
pub(crate) struct Host {
    registry: Registry,
    /// What the master is told of this server.
    address: EcoString,
    build: EcoString,
    capacity: u32,
    labels: Vec<EcoString>,
    instances: Slab<Hosted>,
    /// Of the capacity, by the weights of the instances.
    used: u64,
    by_id: BTreeMap<InstanceId, usize>,
    links: Slab<SessionLink>,
    pub(crate) upward: Upward,
    lease: Lease,
    /// Without one, nothing is durable.
    has_store: bool,
    /// When the master that decides was answered, in microseconds.
    answered: u64,
    /// Instances that run by the lease.
    keyed: usize,
    /// Those of them that are frozen.
    frozen: usize,
    /// They thaw when the master has acknowledged what it was told of them, up to this number of the stream.
    thaw_at: Option<u64>,
    clockwork: Clockwork,
    effects: Effects,
    /// What instances asked of the store, until the shell has it.
    orders: Vec<Ordered>,
    /// What the store is to do for instances that are durable, until the shell has it.
    chores: Vec<Chore>,
    /// Instances that are being read from the store.
    loading: BTreeMap<InstanceId, Loading>,
    header: Vec<u8>,
    started: Instant,
    draining: bool,
    /// Processor time of this thread, and when it was read.
    busy: (Duration, Instant),
    /// The latest that a step began since the last report, in microseconds.
    tick_late_us: u64,
    /// Of links that are gone.
    counted: [u64; 3],
    logs: Logs,
    pub(crate) metrics: Arc<Metrics>,
    /// Of snapshots and restores that no request led to.
    sampler: Sampler,
    /// Lines of the log about snapshots that were not stored.
    unstored: Seldom,
    spans: Spans,
    /// What is measured of instances that operators look at.
    gauges: Gauges,
    /// The order to make this instance, which comes next, is for a request that is sampled.
    traced_order: Option<(InstanceId, TraceContext)>,
}

/// A key of a session server's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkKey(pub(crate) usize);

/// An instance, and who follows it.
struct Hosted {
    core: Core,
    /// By seat.
    attached: Vec<Option<Attachment>>,
    /// Where patches go, once each.
    routes: Vec<Route>,
    /// At a fixed rate.
    ticks: Option<Ticks>,
    /// Its entry in the clockwork.
    due: Option<u64>,
    /// It stands still, and this is what it has missed.
    frozen: Option<Frozen>,
    durable: Option<Durable>,
}

/// How far an instance that is durable is stored.
#[derive(Debug)]
struct Durable {
    /// Steps between two snapshots.
    every: u32,
    /// The step after which the last one was taken.
    taken: u64,
    /// How many were taken in this life.
    n: u64,
    /// One is on its way to the store: there is never another one.
    is_under_way: bool,
    /// What is to be in the next one, and waits for the one under way, is a part of this: the newest that is sampled.
    waits: Option<Parent>,
    /// When it failed, of late, in this life or an earlier one.
    failures: Vec<u64>,
    stage: Kept,
}

/// What is said of an instance that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// It is said to run once its first snapshot is stored.
    Unsaid,
    Said,
    /// It stands still until its last snapshot is stored, and goes on elsewhere.
    HandingOver,
    /// It failed: it is no more, but for its seats, until it is known whether it goes on from its last snapshot.
    Failed,
}

/// An instance that is read from the store.
#[derive(Debug)]
struct Loading {
    order: CreateInstance,
    /// Until it runs here, or is refused, if it is sampled.
    span: Option<Span>,
}

/// What the store is to do for instances that are durable.
#[derive(Debug)]
pub(crate) enum Chore {
    Save(Save),
    /// Within a trace, if it is sampled.
    Load(InstanceId, Incarnation, Option<Parent>),
    SetAside(Box<SetAside>, Loaded),
    Fail(Failed),
    Remove(InstanceId, Incarnation),
}

impl Hosted {
    /// It stands still, and goes on elsewhere in a moment.
    fn is_handed_over(&self) -> bool {
        let stage = self.durable.as_ref().map(|kept| kept.stage);
        matches!(stage, Some(Kept::HandingOver | Kept::Failed))
    }
    fn has_failed(&self) -> bool {
        self.durable.as_ref().is_some_and(|kept| kept.stage == Kept::Failed)
    }
    /// It can be given away once the store has answered.
    fn waits_for_store(&self) -> bool {
        self.durable.as_ref().is_some_and(|kept| match kept.stage {
            Kept::Unsaid | Kept::HandingOver => kept.is_under_way,
            Kept::Said => false,
            Kept::Failed => true,
        })
    }
    /// It may run elsewhere when no master has renewed the lease.
    fn runs_by_lease(&self) -> bool {
        self.core.key().is_some() || self.durable.is_some()
    }
}

#[derive(Clone, Copy)]
struct Attachment {
    link: LinkKey,
    member: MemberId,
    channel: Channel,
}

struct Route {
    link: LinkKey,
    channel: Channel,
    members: u32,
    follows: Follows,
}

/// Whether what goes over a route is whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follows {
    Every,
    /// A patch was dropped: none is of use until the views came anew.
    Missed,
    /// The views are on their way.
    Refreshing,
}

struct SessionLink {
    outgoing: Outgoing,
    members: Members,
    /// Somebody waits for room, to refresh members.
    waits_for_room: bool,
}

/// Who is attached over a link, at the place that a member's number names.
#[derive(Default)]
struct Members(Vec<Option<(MemberId, Membership)>>);

impl Members {
    /// Whoever is at the place of this member: itself, or one that its session server has forgotten.
    fn at_place(&self, member: MemberId) -> Option<(MemberId, Membership)> {
        *self.0.get(member.place())?
    }
    fn get(&self, member: MemberId) -> Option<Membership> {
        self.at_place(member).filter(|(of, _)| *of == member).map(|(_, membership)| membership)
    }
    fn get_mut(&mut self, member: MemberId) -> Option<&mut Membership> {
        let (of, membership) = self.0.get_mut(member.place())?.as_mut()?;
        (*of == member).then_some(membership)
    }
    fn set(&mut self, member: MemberId, membership: Membership) {
        if self.0.len() <= member.place() {
            self.0.resize(member.place() + 1, None);
        }
        self.0[member.place()] = Some((member, membership));
    }
    fn take(&mut self, member: MemberId) -> Option<Membership> {
        let membership = self.get(member)?;
        self.0[member.place()] = None;
        Some(membership)
    }
    fn all_mut(&mut self) -> impl Iterator<Item = &mut Membership> {
        self.0.iter_mut().flatten().map(|(_, membership)| membership)
    }
}

#[derive(Clone, Copy)]
struct Membership {
    instance: usize,
    seat: Seat,
    generation: Generation,
    /// Pieces of a snapshot for it were dropped.
    missed: bool,
}

/// Who asked for a seat that is being attached.
#[derive(Clone, Copy)]
struct Asking {
    to: Attachment,
    generation: Generation,
}

/// What an instance asked of the store.
#[derive(Debug)]
pub(crate) struct Ordered {
    pub(crate) instance: InstanceId,
    pub(crate) incarnation: Incarnation,
    pub(crate) order: StoreOrder,
    /// What it is a part of, if that is sampled.
    pub(crate) trace: Option<Parent>,
}

/// What a game server is, beside what it runs.
pub(crate) struct Settings {
    pub(crate) address: EcoString,
    pub(crate) build: EcoString,
    pub(crate) capacity: u32,
    pub(crate) labels: Vec<EcoString>,
    pub(crate) tick_grid: Duration,
    pub(crate) has_store: bool,
    pub(crate) lease: Duration,
    pub(crate) logs: Logs,
    pub(crate) tracer: Tracer,
}

impl Host {
    pub(crate) fn new(registry: Registry, settings: Settings, metrics: Arc<Metrics>) -> Self {
        let started = Instant::now();
        Self {
            registry,
            address: settings.address,
            build: settings.build,
            capacity: settings.capacity,
            labels: settings.labels,
            instances: Slab::new(),
            used: 0,
            by_id: BTreeMap::new(),
            links: Slab::new(),
            upward: Upward::default(),
            lease: Lease::new(settings.lease),
            has_store: settings.has_store,
            answered: 0,
            keyed: 0,
            frozen: 0,
            thaw_at: None,
            clockwork: Clockwork::new(micros(settings.tick_grid).max(1)),
            effects: Effects::new(),
            orders: Vec::new(),
            chores: Vec::new(),
            loading: BTreeMap::new(),
            header: Vec::new(),
            started,
            draining: false,
            busy: (Duration::ZERO, started),
            tick_late_us: 0,
            counted: [0; 3],
            logs: settings.logs,
            metrics,
            sampler: settings.tracer.sampler(),
            unstored: Seldom::new(UNSTORED_LOGGED),
            spans: Spans::new(settings.tracer),
            gauges: Gauges::default(),
            traced_order: None,
        }
    }
    fn micros(&self) -> u64 {
        micros(self.started.elapsed())
    }
    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { moment: Moment(self.micros() / 1_000), wall }
    }
    /// While this server stops: whether nobody is there any more, and what is durable has been given away. Who is away
    /// from what is not could only come back to a server that is gone by then.
    pub(crate) fn is_deserted(&self) -> bool {
        let is_done = |hosted: &Hosted| {
            hosted.attached.iter().all(Option::is_none) && !hosted.waits_for_store()
        };
        self.draining && self.instances.iter().all(|(_, hosted)| is_done(hosted))
    }

    // Session servers.

    pub(crate) fn link_opened(&mut self, outgoing: Outgoing) -> LinkKey {
        Metrics::add(&self.metrics.links, 1);
        let link = SessionLink { outgoing, members: Members::default(), waits_for_room: false };
        LinkKey(self.links.insert(link))
    }
    /// A link is gone: its members are away.
    pub(crate) fn link_lost(&mut self, key: LinkKey) {
        let Some(link) = self.links.get_mut(key.0) else { return };
        let mut members = std::mem::take(&mut link.members);
        self.frozen_mut().for_each(|frozen| frozen.forget(key, None));
        let Some(link) = self.links.get(key.0) else { return };
        let counters = link.outgoing.counters();
        self.counted[0] += counters.frames;
        self.counted[1] += counters.writes;
        self.counted[2] += counters.bytes;
        for membership in members.all_mut() {
            self.detached(*membership);
        }
        self.links.remove(key.0);
    }
    /// Handles a frame of a session server.
    ///
    /// # Errors
    /// When it can't be read: the link can't go on.
    pub(crate) fn hear_session(
        &mut self,
        key: LinkKey,
        header: LinkHeader,
        payload: &[u8],
    ) -> Result<(), DecodeError> {
        match header.kind {
            session_game::UP => self.frame(key, header.member(), payload),
            session_game::REFRESH => self.refresh(key, header.member()),
            session_game::TRACE => {
                if let Some(trace) = TraceContext::from_bytes(payload) {
                    self.spans.announce(key, header.member(), trace);
                }
            }
            kind => match SessionToGame::decode(kind, payload, Limits::SERVER)? {
                SessionToGame::Attach(attach) => self.attach(key, &attach),
                SessionToGame::Detach(detach) => {
                    self.frozen_mut().for_each(|frozen| frozen.forget(key, Some(detach.member)));
                    if let Some(membership) = self.forget(key, detach.member) {
                        self.detached(membership);
                    }
                }
                SessionToGame::Unknown(kind) => {
                    tracing::warn!(kind, "a session server said what this build does not know");
                }
            },
        }
        Ok(())
    }
    fn frame(&mut self, key: LinkKey, member: MemberId, payload: &[u8]) {
        Metrics::add(&self.metrics.frames_up, 1);
        let Some(Membership { instance, seat, .. }) = self.membership(key, member) else {
            return Metrics::add(&self.metrics.late, 1);
        };
        match UpHeader::split(payload) {
            Ok((header, payload)) => {
                let UpHeader { kind, number, ack, .. } = header;
                if let Some(trace) = self.spans.of(key, member) {
                    self.begin_span(instance, seat, (kind, number), trace);
                }
                self.tell(instance, Input::Frame { seat, kind, number, ack, payload });
                if !self.spans.is_empty() && !self.is_ticking(instance) {
                    self.spans.stepped(instance);
                }
            }
            Err(error) => self.refuse_frame(key, member, &error),
        }
    }
    /// A frame is sampled.
    #[cold]
    fn begin_span(
        &mut self,
        instance: usize,
        seat: Seat,
        (kind, number): (u8, Seq),
        trace: TraceContext,
    ) {
        let Some(name) = traced_name(kind) else { return };
        let Some(mut span) = self.spans.tracer.child(Some(trace), name, SpanKind::Consumer) else {
            return;
        };
        if let Some(hosted) = self.instances.get(instance) {
            span.set("greenroom.instance", hosted.core.instance().to_string());
            span.set("greenroom.kind", hosted.core.kind_name());
        }
        span.set("greenroom.seat", u64::from(seat.0));
        if !self.is_ticking(instance) {
            self.spans.causes(span.parent());
        }
        self.spans.begin(instance, seat, (kind, number), span);
    }
    fn is_ticking(&self, instance: usize) -> bool {
        self.instances.get(instance).is_some_and(|hosted| hosted.ticks.is_some())
    }
    /// Tells a client that its frame is none, as the core does with what has no number.
    fn refuse_frame(&self, key: LinkKey, member: MemberId, error: &DecodeError) {
        let Some(Membership { instance, seat, .. }) = self.membership(key, member) else { return };
        let refusal = Refusal::new(Code::Malformed, eco_format!("{error}"));
        self.unnumbered(instance, seat, QUERY_REFUSED, &refusal);
    }
    /// Sends a refusal that has no place on the reliable channel.
    fn unnumbered(&self, at: usize, seat: Seat, kind: u8, refusal: &Refusal) {
        let Some(to) = self.attachment(at, seat) else { return };
        let Some(link) = self.links.get(to.link.0) else { return };
        let (channel, number, ack) = (to.channel, Seq(0), Seq(0));
        let down = DownHeader { kind, channel, number, ack, tick: 0 };
        let header = LinkHeader { kind: session_game::UNICAST, target: to.member.0 };
        link.outgoing.push(header, &[&down.bytes(), &encode(refusal)]);
    }
    fn refresh(&mut self, key: LinkKey, member: MemberId) {
        if let Some(Membership { instance, seat, .. }) = self.membership(key, member) {
            Metrics::add(&self.metrics.refreshes, 1);
            self.tell(instance, Input::Refresh { seat });
        }
    }
    fn attach(&mut self, key: LinkKey, attach: &Attach) {
        let Attach { member, channel, instance, incarnation, seat, generation, .. } = *attach;
        let at = self.running(instance, incarnation);
        let trace = self.spans.of(key, member);
        // Ends with this function: the seat is taken in it, or refused.
        let mut span = self.spans.tracer.child(trace, "attach", SpanKind::Server);
        if let Some(span) = &mut span {
            span.set("greenroom.instance", instance.to_string());
            span.set("greenroom.seat", u64::from(seat.0));
        }
        // A session server that uses the place for somebody else has forgotten the one before.
        let before = self.links.get(key.0).and_then(|link| link.members.at_place(member));
        if let Some((before, membership)) = before
            && (before, Some(membership.instance), membership.seat) != (member, at, seat)
        {
            self.forget(key, before);
            self.detached(membership);
        }
        let Some(at) = at else {
            return self.refuse_unknown(key, member);
        };
        if let Some(frozen) = &mut self.instances[at].frozen {
            let asked = Asked { link: key, attach: Box::new(attach.clone()) };
            if let Some((asked, refusal)) = frozen.ask(asked) {
                let member = asked.attach.member;
                self.control(asked.link, &AttachRefused { member, refusal }.into());
            }
            return;
        }
        let to = Attachment { link: key, member, channel };
        let input = Input::Attach {
            seat,
            user: attach.user.clone(),
            name: attach.name.clone(),
            session: attach.session,
            generation,
            options: &attach.options,
        };
        if let Some(span) = &span {
            self.spans.causes(span.parent());
        }
        self.tell_asked(at, input, Some(Asking { to, generation }));
        if span.is_some() {
            self.spans.done();
        }
    }
    fn refuse_unknown(&self, key: LinkKey, member: MemberId) {
        let text = "this server does not run the instance: join or create another";
        let refusal = Refusal::new(Code::InstanceUnknown, text);
        self.control(key, &AttachRefused { member, refusal }.into());
    }
    fn detached(&mut self, membership: Membership) {
        let Membership { instance, seat, generation, .. } = membership;
        self.unroute(instance, seat);
        self.tell(instance, Input::Lost { seat, generation });
    }
    fn membership(&self, key: LinkKey, member: MemberId) -> Option<Membership> {
        self.links.get(key.0)?.members.get(member)
    }
    fn forget(&mut self, key: LinkKey, member: MemberId) -> Option<Membership> {
        self.links.get_mut(key.0)?.members.take(member)
    }
    fn attachment(&self, instance: usize, seat: Seat) -> Option<Attachment> {
        *self.instances.get(instance)?.attached.get(usize::from(seat.0))?
    }
    /// Says something to a session server that is not lost while its link lives.
    fn control(&self, key: LinkKey, message: &GameToSession) {
        let Some(link) = self.links.get(key.0) else { return };
        let mut payload = Vec::with_capacity(128);
        message.encode_into(&mut payload);
        link.outgoing.push(LinkHeader { kind: message.kind(), target: 0 }, &[&payload]);
    }

    // Links with too much in them.

    /// Links on which something was dropped, and for which nobody waits yet until there is room.
    pub(crate) fn take_full(&mut self) -> Vec<(LinkKey, Outgoing)> {
        let full = self.links.iter_mut().filter(|(_, link)| link.waits_for_room);
        let full = full.map(|(key, link)| {
            link.waits_for_room = false;
            (LinkKey(key), link.outgoing.clone())
        });
        full.collect()
    }
    /// There is room again: who missed something gets its views anew.
    pub(crate) fn has_room(&mut self, key: LinkKey) {
        let Some(link) = self.links.get_mut(key.0) else { return };
        let mut members: Vec<Membership> = Vec::new();
        for membership in link.members.all_mut() {
            let hosted = &self.instances[membership.instance];
            let missed = hosted.attached[usize::from(membership.seat.0)].is_some_and(|to| {
                hosted.routes.iter().any(|route| {
                    (route.link, route.channel) == (key, to.channel)
                        && route.follows == Follows::Missed
                })
            });
            if missed || std::mem::take(&mut membership.missed) {
                members.push(*membership);
            }
        }
        let instances: BTreeSet<usize> = members.iter().map(|member| member.instance).collect();
        for at in instances {
            for route in &mut self.instances[at].routes {
                if route.link == key && route.follows == Follows::Missed {
                    route.follows = Follows::Refreshing;
                }
            }
        }
        for Membership { instance, seat, .. } in members {
            Metrics::add(&self.metrics.refreshes, 1);
            self.tell(instance, Input::Refresh { seat });
        }
    }

    // The master.

    /// Has something from a master come over this link, if only a sign of life: before it is read, the lease may have
    /// run out while this process was stopped.
    pub(crate) fn master_speaks(&mut self) {
        self.check_lease();
    }
    /// Handles a message of a master; true if it was taken from its stream, so that it is to be acknowledged.
    ///
    /// # Errors
    /// When it can't be read: the link can't go on.
    pub(crate) fn hear_master(
        &mut self,
        master: MasterLink,
        kind: u8,
        payload: &[u8],
    ) -> Result<bool, DecodeError> {
        let (header, body) = StampedHeader::split(payload)?;
        let message = MasterToGame::decode(kind, body, Limits::SERVER)?;
        match self.upward.follow.hear(master, header.epoch, Word::from(&message)) {
            // It is acknowledged again if it came before: the sender does not know that it came.
            Verdict::Take => {
                if self.upward.take(header.n) {
                    self.take(message);
                }
                return Ok(header.n > 0);
            }
            Verdict::Report => {
                self.follows(master);
                let report = self.report();
                self.upward.report(report);
            }
            Verdict::Resume => {
                self.follows(master);
                self.upward.resume();
            }
            Verdict::Welcome(streams) => self.welcomed(streams),
            Verdict::Drop => {}
            Verdict::Fence => {
                let MasterLink(link) = master;
                tracing::warn!(link, epoch = %header.epoch, "a master whose epoch is over is told so");
                Metrics::add(&self.metrics.deposed, 1);
                self.upward.fence(master);
            }
            Verdict::Deposed => Metrics::add(&self.metrics.deposed, 1),
        }
        Ok(false)
    }
    /// A master says that it decides, and is answered.
    fn follows(&mut self, master: MasterLink) {
        let MasterLink(link) = master;
        tracing::info!(link, epoch = %self.upward.follow.epoch(), "a master decides from here on");
        self.thaw_at = None;
        self.answered = self.micros();
    }
    /// What it runs. Without a store nothing is durable.
    fn kinds(&self) -> Vec<KindInfo> {
        let mut kinds = self.registry.kinds();
        kinds.iter_mut().for_each(|kind| kind.durable &= self.has_store);
        kinds
    }
    fn report(&self) -> GameReport {
        GameReport {
            address: self.address.clone(),
            build: self.build.clone(),
            kinds: self.kinds(),
            capacity: self.capacity,
            labels: self.labels.clone(),
            instances: self.instances.iter().map(|(_, hosted)| hosted.core.held()).collect(),
        }
    }
    fn take(&mut self, message: MasterToGame) {
        match message {
            MasterToGame::Create(order) if order.restore.is_some() => self.restore(order),
            MasterToGame::Create(order) => self.create(&order),
            MasterToGame::FreeSeat(free) => {
                self.free_unseated(&free);
                if let Some(at) = self.running(free.instance, free.incarnation) {
                    let (seat, session, refusal) = (free.seat, free.session, free.refusal);
                    self.tell(at, Input::Free { seat, session, refusal });
                }
            }
            MasterToGame::Destroy(destroy) => {
                let (instance, incarnation) = (destroy.instance, destroy.incarnation);
                if self.is_loading(instance, incarnation) {
                    self.loading.remove(&instance);
                    self.chores.push(Chore::Remove(instance, incarnation));
                    let refusal = destroy.refusal.clone();
                    self.upward.push(&Closed { instance, incarnation, refusal }.into());
                }
                if let Some(at) = self.running(destroy.instance, destroy.incarnation) {
                    self.tell(at, Input::Destroy { refusal: destroy.refusal });
                }
            }
            MasterToGame::Received(received) => {
                self.upward.acknowledged(received.n);
                if self.thaw_at.is_some_and(|thaw_at| thaw_at <= received.n) {
                    self.thaw_in_time();
                }
            }
            MasterToGame::Measure(Measure { instance }) => self.measure(instance),
            MasterToGame::Renewed(renewed) => self.lease.renew(renewed.sent, self.micros()),
            MasterToGame::Traced(Traced { instance, trace }) => {
                self.traced_order = Some((instance, trace));
            }
            MasterToGame::NewEpoch(_) | MasterToGame::Welcome(_) => {
                unreachable!("they tell whom to follow, and were handled with that")
            }
            MasterToGame::Unknown(kind) => {
                tracing::warn!(kind, "the master said what this build does not know");
            }
        }
    }
    /// Says how an instance is doing. Its state is encoded for that, which who looks asks for once a second.
    fn measure(&mut self, instance: InstanceId) {
        let Some(&at) = self.by_id.get(&instance) else { return };
        let measured = self.gauges.ask(at, self.micros());
        let core = &self.instances[at].core;
        let bytes = |encoded: &Vec<u8>| encoded.len() as u64;
        let measures = Measures {
            // What does not encode fails the instance at its next step, and is told then.
            view_bytes: core.encode_view().as_ref().map_or(0, bytes),
            state_bytes: core.snapshot().ok().flatten().as_ref().map(bytes),
            ..measured
        };
        let incarnation = core.incarnation();
        self.upward.say_outside(&Measured { instance, incarnation, measures }.into());
    }
    fn running(&self, instance: InstanceId, incarnation: Incarnation) -> Option<usize> {
        let at = *self.by_id.get(&instance)?;
        (self.instances[at].core.incarnation() == incarnation).then_some(at)
    }
    fn welcomed(&mut self, streams: Streams) {
        let mut changed = self.upward.welcome(streams);
        self.lease.begin(self.answered);
        // The master's word on those that are frozen: if they are to stop, it says so before it acknowledges this.
        let frozen = self.instances.iter().filter(|(_, hosted)| hosted.frozen.is_some());
        changed.extend(frozen.map(|(_, hosted)| hosted.core.instance()));
        for instance in changed {
            if let Some(&at) = self.by_id.get(&instance) {
                self.upward.push(&self.instances[at].core.meta_changed().into());
            }
        }
        self.thaw_at = (self.frozen > 0).then_some(self.upward.last());
        self.report_load();
    }
    fn create(&mut self, order: &CreateInstance) {
        let (instance, incarnation) = (order.instance, order.incarnation);
        let trace = self.traced_order.take_if(|(of, _)| *of == instance).map(|(_, trace)| trace);
        let mut span = self.spans.tracer.child(trace, "create", SpanKind::Consumer);
        if let Some(span) = &mut span {
            span.set("greenroom.instance", instance.to_string());
            span.set("greenroom.kind", order.kind.as_str());
        }
        if self.running(instance, incarnation).is_some() {
            return; // The stream brings each order once; this would be a master that repeats itself.
        }
        if let Some(span) = &span {
            self.spans.causes(span.parent());
        }
        let made = self.try_create(order);
        if span.is_some() {
            self.spans.done();
        }
        if let Err(refusal) = made {
            Metrics::add(&self.metrics.create_refused, 1);
            if let Some(span) = &mut span {
                span.fail(&refusal);
            }
            tracing::debug!(%instance, kind = %order.kind, %refusal, "refused to make an instance");
            self.upward.push(&CreateRefused { instance, incarnation, refusal }.into());
        }
    }
    fn try_create(&mut self, order: &CreateInstance) -> Result<(), Refusal> {
        if self.draining {
            return Err(stops());
        }
        let weight = self.registry.weight(&order.kind).unwrap_or(0);
        let free = u64::from(self.capacity).saturating_sub(self.used);
        if u64::from(weight) > free {
            let (kind, capacity) = (&order.kind, self.capacity);
            let text = eco_format!(
                "an instance of kind {kind} takes {weight} of a server's capacity, and this one has {free} of \
                 {capacity} free"
            );
            return Err(Refusal::new(Code::NoCapacity, text));
        }
        if self.by_id.contains_key(&order.instance) {
            return Err(Refusal::new(Code::Busy, "another life of the instance runs here"));
        }
        let core = self.registry.create(order, self.now())?;
        self.host(core, Vec::new());
        Metrics::add(&self.metrics.created, 1);
        Ok(())
    }
    /// Has an instance run here. One that is durable is said to once it is stored.
    fn host(&mut self, core: Core, failures: Vec<u64>) {
        let (running, instance) = (core.running(), core.instance());
        self.used += u64::from(core.weight());
        let now = self.micros();
        let ticks = match core.tick_rate() {
            0 => None,
            rate => Some(self.clockwork.ticks(rate, now)),
        };
        let durable = core.durable_steps().filter(|_| self.has_store).map(|every| Durable {
            every,
            taken: core.tick_number().0,
            n: 0,
            is_under_way: false,
            waits: None,
            failures,
            stage: Kept::Unsaid,
        });
        let is_durable = durable.is_some();
        let (attached, routes) = (Vec::new(), Vec::new());
        let hosted = Hosted { core, attached, routes, ticks, due: None, frozen: None, durable };
        self.keyed += usize::from(hosted.runs_by_lease());
        let at = self.instances.insert(hosted);
        self.by_id.insert(instance, at);
        self.schedule(at);
        if is_durable {
            self.save(at);
        } else {
            self.upward.push(&running.into());
        }
    }

    // What is durable.

    /// What the store is to do since this was last called.
    pub(crate) fn take_chores(&mut self) -> Vec<Chore> {
        std::mem::take(&mut self.chores)
    }
    /// Whether it has made as many steps since its last snapshot as its kind allows.
    fn is_to_save(&self, at: usize) -> bool {
        let Some(Hosted { core, durable: Some(kept), .. }) = self.instances.get(at) else {
            return false;
        };
        core.tick_number().0.saturating_sub(kept.taken) >= u64::from(kept.every)
    }
    /// Takes a snapshot, if none is under way.
    fn save(&mut self, at: usize) {
        let Some(hosted) = self.instances.get_mut(at) else { return };
        let Some(durable) = &mut hosted.durable else { return };
        let waited = durable.waits.take();
        let cause = self.spans.cause().or(waited);
        if durable.is_under_way {
            durable.waits = cause;
            return;
        }
        let failures = durable.failures.clone();
        let core = &hosted.core;
        let (instance, incarnation) = (core.instance(), core.incarnation());
        durable.taken = core.tick_number().0;
        match core.snapshot() {
            Ok(Some(state)) => {
                durable.n += 1;
                durable.is_under_way = true;
                let (n, tick, kind) = (durable.n, durable.taken, core.kind_name());
                // What others go on from, or are told of, is in the store first.
                let may_wait = durable.stage == Kept::Said;
                let span = self.snapshot_span(cause, instance, tick);
                let save =
                    Save { instance, incarnation, n, may_wait, kind, tick, state, failures, span };
                self.chores.push(Chore::Save(save));
            }
            Ok(None) => {}
            Err(fault) => {
                Metrics::add(&self.metrics.snapshots_failed, 1);
                tracing::error!(%instance, %fault, "an instance can't be stored");
            }
        }
    }
    /// The span of a snapshot: of what led to it, if that is sampled, or sampled for itself.
    #[inline]
    fn snapshot_span(
        &self,
        cause: Option<Parent>,
        instance: InstanceId,
        tick: u64,
    ) -> Option<Span> {
        let mut span = match cause {
            Some(cause) => cause.child("snapshot", SpanKind::Internal),
            None => self.by_choice("snapshot")?,
        };
        span.set("greenroom.instance", instance.to_string());
        span.set("greenroom.tick", tick);
        Some(span)
    }
    /// Begins a trace of something that no request led to, if it is sampled for itself.
    #[inline]
    fn by_choice(&self, name: &'static str) -> Option<Span> {
        if !self.sampler.is_due() {
            return None;
        }
        self.sampler.sampled();
        self.spans.tracer.root(name, SpanKind::Internal)
    }
    /// A snapshot is stored, or not.
    pub(crate) fn saved(
        &mut self,
        (instance, incarnation): (InstanceId, Incarnation),
        result: Result<greenroom_storage::Kept, StorageError>,
    ) {
        let Some(at) = self.running(instance, incarnation) else { return };
        let is_in_store = matches!(result, Ok(greenroom_storage::Kept::Stored(_)));
        let Some(durable) = &mut self.instances[at].durable else { return };
        durable.is_under_way = false;
        let stage = durable.stage;
        match result {
            Ok(_) => Metrics::add(&self.metrics.snapshots, 1),
            Err(error @ StorageError::Deposed { .. }) => {
                Metrics::add(&self.metrics.snapshots_deposed, 1);
                tracing::warn!(%instance, %error, "an instance goes on elsewhere and is stopped here");
                let text = "the instance goes on elsewhere";
                return self
                    .tell(at, Input::Destroy { refusal: Refusal::new(Code::InstanceLost, text) });
            }
            Err(error) => {
                Metrics::add(&self.metrics.snapshots_failed, 1);
                if let Some(left_out) = self.unstored.is_due(Instant::now()) {
                    tracing::warn!(%instance, %error, left_out, "a snapshot was not stored");
                }
                if stage == Kept::Unsaid {
                    let refusal = Refusal::new(Code::Unavailable, eco_format!("{error}"));
                    self.upward.push(&CreateRefused { instance, incarnation, refusal }.into());
                    return self.let_go(at);
                }
                // One that failed goes on from the snapshot before.
                if stage == Kept::HandingOver {
                    let refusal = stops();
                    return self.tell(at, Input::Destroy { refusal });
                }
                return;
            }
        }
        match stage {
            Kept::Unsaid => {
                if let Some(durable) = &mut self.instances[at].durable {
                    durable.stage = Kept::Said;
                }
                let running = self.instances[at].core.running();
                self.upward.push(&running.into());
                if self.draining {
                    self.give_away(at);
                }
            }
            // Steps made meanwhile: of a kind that steps when it is spoken to, no other may come for long.
            Kept::Said if self.is_to_save(at) => self.save(at),
            Kept::Said | Kept::Failed => {}
            Kept::HandingOver => {
                let Some(durable) = &self.instances[at].durable else { return };
                if is_in_store && durable.taken == self.instances[at].core.tick_number().0 {
                    self.upward.push(&HandedOver { instance, incarnation }.into());
                    self.let_go(at);
                } else {
                    self.save(at); // The one that was under way when it was stopped.
                }
            }
        }
    }
    /// Has an instance read from the store, to go on from there.
    fn restore(&mut self, order: CreateInstance) {
        let (instance, incarnation) = (order.instance, order.incarnation);
        let known = self.registry.weight(&order.kind);
        let free = u64::from(self.capacity).saturating_sub(self.used);
        let refusal = if self.draining {
            Some(stops())
        } else if known.is_none_or(|weight| u64::from(weight) > free) {
            Some(Refusal::new(Code::NoCapacity, "the game server has no room for it"))
        } else if self.by_id.contains_key(&instance) {
            Some(Refusal::new(Code::Busy, "another life of the instance runs here"))
        } else {
            None
        };
        match refusal {
            Some(refusal) => {
                self.upward.push(&CreateRefused { instance, incarnation, refusal }.into());
            }
            None => {
                let trace = self.traced_order.take_if(|(of, _)| *of == instance);
                let mut span = match trace {
                    Some((_, trace)) => {
                        self.spans.tracer.child(Some(trace), "restore", SpanKind::Consumer)
                    }
                    None => self.by_choice("restore"),
                };
                if let Some(span) = &mut span {
                    span.set("greenroom.instance", instance.to_string());
                    span.set("greenroom.kind", order.kind.as_str());
                }
                let parent = span.as_ref().map(Span::parent);
                self.loading.insert(instance, Loading { order, span });
                self.chores.push(Chore::Load(instance, incarnation, parent));
            }
        }
    }
    fn is_loading(&self, instance: InstanceId, incarnation: Incarnation) -> bool {
        let loading = self.loading.get(&instance);
        loading.is_some_and(|loading| loading.order.incarnation == incarnation)
    }
    /// What was stored of an instance is here, or not.
    pub(crate) fn loaded(
        &mut self,
        (instance, incarnation): (InstanceId, Incarnation),
        result: Result<Option<Loaded>, StorageError>,
    ) {
        if !self.is_loading(instance, incarnation) {
            return; // It was closed meanwhile.
        }
        let Some(Loading { order, mut span }) = self.loading.remove(&instance) else { return };
        let cause = span.as_ref().map(Span::parent);
        let kind = &order.kind;
        let refusal = match result {
            Err(error) => Refusal::new(Code::Unavailable, eco_format!("{error}")),
            Ok(None) => {
                let text = eco_format!("nothing is stored of the instance of kind {kind:?}");
                Refusal::new(Code::InstanceLost, text)
            }
            Ok(Some(loaded)) => match self.revive(&order, &loaded, cause.as_ref()) {
                Ok(core) => {
                    Metrics::add(&self.metrics.restored, 1);
                    tracing::info!(%instance, tick = core.tick_number().0, "an instance goes on here");
                    if let Some(cause) = cause {
                        self.spans.causes(cause);
                    }
                    self.host(core, loaded.failures);
                    return self.spans.done();
                }
                Err(why) => {
                    let note = self.note(&order, why.clone());
                    let kept = note.snapshot();
                    tracing::error!(%instance, %kind, %why, %kept, "a snapshot can't be read; it is set aside");
                    self.logs.emit(&SnapshotUnreadable {
                        instance,
                        instance_kind: kind.clone(),
                        what: why,
                        kept: eco_format!("{kept}"),
                    });
                    self.chores.push(Chore::SetAside(note, loaded));
                    let text = eco_format!(
                        "what was stored of the instance of kind {kind:?} can't be read"
                    );
                    Refusal::new(Code::InstanceFailed, text)
                }
            },
        };
        Metrics::add(&self.metrics.restore_refused, 1);
        if let Some(span) = &mut span {
            span.fail(&refusal);
        }
        self.upward.push(&CreateRefused { instance, incarnation, refusal }.into());
    }
    /// What is to be known of a snapshot that can't be read.
    fn note(&self, order: &CreateInstance, why: EcoString) -> Box<SetAside> {
        let now_ms = self.now().wall.as_millis();
        Box::new(SetAside {
            instance: order.instance,
            incarnation: order.incarnation,
            kind: order.kind.clone(),
            version: None,
            cause: Cause::Unreadable,
            why,
            since_ms: u64::try_from(now_ms).unwrap_or(u64::MAX),
            owner: order.owner.clone(),
            key: order.key.clone(),
            created_ms: order.created_ms,
            private: order.private,
        })
    }
    fn revive(
        &mut self,
        order: &CreateInstance,
        loaded: &Loaded,
        cause: Option<&Parent>,
    ) -> Result<Core, EcoString> {
        let state = loaded.state.as_ref().map_err(Clone::clone)?;
        let core = self.registry.restore(order.kind.as_str(), state);
        let mut core = core.map_err(|fault| eco_format!("{fault}"))?;
        if core.instance() != order.instance {
            return Err(eco_format!("it is of the instance {}", core.instance()));
        }
        let seats = order.restore.iter().flat_map(|restore| &restore.seats);
        let seats = seats.map(|held| (held.seat, held.session)).collect();
        let revived = Input::Revived { incarnation: order.incarnation, seats };
        self.effects.clear();
        core.handle(self.now(), revived, &mut self.effects);
        let mut effects = std::mem::take(&mut self.effects);
        let mut failed = None;
        for effect in effects.items.drain(..) {
            match effect {
                Effect::Report(report) => {
                    if let GameToMaster::Closed(closed) = *report {
                        failed = Some(closed.refusal.message);
                    } else {
                        self.upward.push(&report);
                    }
                }
                Effect::Store(order) => {
                    let (instance, incarnation) = (core.instance(), core.incarnation());
                    let order = *order;
                    let trace = cause.cloned();
                    self.orders.push(Ordered { instance, incarnation, order, trace });
                }
                Effect::Log { text, .. } => tracing::info!(instance = %core.instance(), "{text}"),
                Effect::Event(told) => emit(&self.logs, &core, &told),
                // Nobody is connected.
                Effect::Attached { .. }
                | Effect::AttachRefused { .. }
                | Effect::ToSeat { .. }
                | Effect::Patch { .. }
                | Effect::Piece { .. }
                | Effect::Desync { .. }
                | Effect::SeatEnded { .. } => {}
            }
        }
        self.effects = effects;
        failed.map_or(Ok(core), Err)
    }
    /// The directory frees a seat that nobody has here: it waits for the word that it is free all the same.
    fn free_unseated(&mut self, free: &FreeSeat) {
        let FreeSeat { instance, incarnation, seat, session, .. } = *free;
        let is_unseated = if let Some(Loading { order, .. }) = self.loading.get_mut(&instance) {
            if let Some(restore) = &mut order.restore {
                restore.seats.retain(|held| (held.seat, held.session) != (seat, session));
            }
            order.incarnation == incarnation
        } else {
            self.running(instance, incarnation).is_some_and(|at| {
                let Hosted { core, durable, .. } = &self.instances[at];
                let holder = core.holder(seat).map(|(_, session, _)| session);
                durable.is_some() && holder != Some(session)
            })
        };
        if is_unseated {
            let state = SeatState::Free;
            self.upward.push(&SeatChanged { instance, incarnation, seat, session, state }.into());
        }
    }
    /// Stores what is durable as it is now, and gives it away. What is not said to run yet follows once it is.
    fn hand_over(&mut self) {
        for at in self.all() {
            let hosted = &self.instances[at];
            let is_said = hosted.durable.as_ref().is_some_and(|kept| kept.stage == Kept::Said);
            if is_said && hosted.frozen.is_none() {
                self.give_away(at);
            }
        }
        for (instance, Loading { order, mut span }) in std::mem::take(&mut self.loading) {
            let incarnation = order.incarnation;
            if let Some(span) = &mut span {
                span.fail(stops());
            }
            self.upward.push(&CreateRefused { instance, incarnation, refusal: stops() }.into());
        }
    }
    fn give_away(&mut self, at: usize) {
        if self.instances[at].ticks.is_some() {
            // What was taken in since the last step is not lost.
            self.tell(at, Input::Tick);
        }
        let durable = self.instances.get_mut(at).and_then(|it| it.durable.as_mut());
        // The step may have ended it.
        let Some(durable) = durable else { return };
        durable.stage = Kept::HandingOver;
        self.schedule(at);
        self.save(at);
    }
    /// Has an instance run here no more, without a word to those in it: their sessions are told where it goes on.
    fn let_go(&mut self, at: usize) {
        for seat in 0..self.instances[at].attached.len() {
            let seat = Seat(u16::try_from(seat).expect("a kind has at most 32,768 seats"));
            if let Some(to) = self.unroute(at, seat) {
                self.forget(to.link, to.member);
            }
        }
        self.remove(at);
    }
    /// Tells the master the load, which renews the lease, and the metrics what the links have done.
    pub(crate) fn report_load(&mut self) {
        self.gauges.sweep(self.micros());
        let seats: u32 = self.instances.iter().map(|(_, hosted)| hosted.core.seats_held()).sum();
        Metrics::set(&self.metrics.seats, u64::from(seats));
        Metrics::set(&self.metrics.instances, self.instances.len() as u64);
        let [mut frames, mut writes, mut bytes] = self.counted;
        for (_, link) in &self.links {
            let counters = link.outgoing.counters();
            frames += counters.frames;
            writes += counters.writes;
            bytes += counters.bytes;
        }
        Metrics::set(&self.metrics.link_frames, frames);
        Metrics::set(&self.metrics.link_writes, writes);
        Metrics::set(&self.metrics.link_bytes, bytes);
        let load = GameLoad {
            instances: u32::try_from(self.instances.len()).unwrap_or(u32::MAX),
            seats,
            busy_permille: self.busy_permille(),
            draining: self.draining,
            sent: self.micros(),
            counts: GameCounts {
                ticks: self.metrics.ticks.load(Relaxed),
                ticks_late: self.metrics.ticks_late.load(Relaxed),
                ticks_given_up: self.metrics.ticks_given_up.load(Relaxed),
                tick_late_us: std::mem::take(&mut self.tick_late_us),
                frames: self.metrics.frames_up.load(Relaxed),
                failed: self.metrics.failed.load(Relaxed),
                rivals: self.upward.follow.rivals(),
            },
        };
        self.upward.say_outside(&GameToMaster::Load(load));
    }
    fn busy_permille(&mut self) -> u16 {
        let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let nanos = u32::try_from(spent.tv_nsec).unwrap_or(0);
        let spent = Duration::new(spent.tv_sec.unsigned_abs(), nanos);
        let (before, at) = std::mem::replace(&mut self.busy, (spent, Instant::now()));
        let wall = at.elapsed().as_micros().max(1);
        let permille = spent.saturating_sub(before).as_micros() * 1_000 / wall;
        u16::try_from(permille).unwrap_or(1_000).min(1_000)
    }
    /// Gives a master up that says that it decides, was answered, and does not say welcome: its link is dialled anew.
    pub(crate) fn check_welcome(&self) {
        if self.upward.follow.link().is_some()
            && !self.upward.is_welcomed()
            && self.micros().saturating_sub(self.answered) > WELCOME_US
        {
            tracing::warn!("the master did not welcome this server; it is dialled again");
            self.upward.close();
        }
    }
    /// Takes nothing new from here on.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
        self.report_load();
        self.hand_over();
    }
    /// Ends every instance that is left. What is stored and stands still without a master is none's to end: the next
    /// one has it go on elsewhere.
    pub(crate) fn close_all(&mut self) {
        for at in self.all() {
            let Hosted { durable, .. } = &self.instances[at];
            match durable.as_ref().map(|kept| kept.stage) {
                Some(Kept::Said) => self.let_go(at),
                Some(Kept::Unsaid | Kept::HandingOver | Kept::Failed) | None => {
                    self.tell(at, Input::Destroy { refusal: stops() });
                }
            }
        }
    }
    /// Ends every link after what waits has been written.
    pub(crate) fn close_links(&self) {
        for (_, link) in &self.links {
            link.outgoing.close();
        }
        self.upward.close_all();
    }

    // Time.

    /// When something is due next.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let lease = (self.frozen < self.keyed).then_some(self.lease.until());
        let next = self.clockwork.next().into_iter().chain(lease).min()?;
        Some(self.started + Duration::from_micros(next))
    }
    /// Makes every step that is due. Those that fall due meanwhile come after what else waits.
    pub(crate) fn make_due(&mut self) {
        self.check_lease();
        let now = self.micros();
        while let Some((due, at)) = self.clockwork.take_due(now) {
            let hosted = &mut self.instances[at];
            hosted.due = None;
            let Some(ticks) = &mut hosted.ticks else {
                self.tell(at, Input::Wake);
                continue;
            };
            let began = micros(self.started.elapsed());
            let lateness = ticks.make(due, began);
            Metrics::add(&self.metrics.ticks, 1);
            self.metrics.tick_lateness.record_us(lateness.late);
            self.tick_late_us = self.tick_late_us.max(lateness.late);
            if lateness.late > self.clockwork.grid() {
                Metrics::add(&self.metrics.ticks_late, 1);
                tracing::debug!(late_us = lateness.late, "a tick began late");
            }
            if lateness.given_up > 0 {
                Metrics::add(&self.metrics.ticks_given_up, lateness.given_up);
                let instance = hosted.core.instance();
                let ticks = lateness.given_up;
                tracing::warn!(%instance, ticks, "an instance is too far behind to catch up");
                self.logs.emit(&TickOverrun {
                    instance,
                    instance_kind: hosted.core.kind_name().into(),
                    late_ms: Duration::from_micros(lateness.late),
                    given_up: ticks,
                });
            }
            if !self.spans.is_empty() {
                self.spans.steps(at);
            }
            self.tell(at, Input::Tick);
            if !self.spans.is_empty() {
                self.spans.stepped(at);
            }
            self.metrics.tick_duration.record_us(self.micros() - began);
        }
    }
    /// Puts an instance where it belongs in the clockwork.
    fn schedule(&mut self, at: usize) {
        let hosted = &mut self.instances[at];
        let due = match &hosted.ticks {
            _ if hosted.frozen.is_some() || hosted.is_handed_over() => None,
            Some(ticks) => Some(self.clockwork.on_grid(ticks.next())),
            None => hosted.core.next_due().map(|due| due.0.saturating_mul(1_000)),
        };
        if due != hosted.due {
            if let Some(before) = std::mem::replace(&mut hosted.due, due) {
                self.clockwork.unset(at, before);
            }
            if let Some(due) = due {
                self.clockwork.set(at, due);
            }
        }
    }

    // The lease.

    /// Freezes what may not go on without the lease, once no master has renewed it for as long as it lasts.
    fn check_lease(&mut self) {
        if self.frozen == self.keyed || !self.lease.is_over(self.micros()) {
            return;
        }
        for at in self.all() {
            let hosted = &mut self.instances[at];
            if hosted.runs_by_lease() && hosted.frozen.is_none() {
                hosted.frozen = Some(Frozen::default());
                self.frozen += 1;
                self.schedule(at);
            }
        }
        Metrics::add(&self.metrics.leases_lost, 1);
        Metrics::set(&self.metrics.frozen, self.frozen as u64);
        let instances = self.frozen;
        tracing::warn!(
            instances,
            "no master renewed the lease for as long as it lasts: instances that may run elsewhere stand still"
        );
        // It begins anew when a master welcomes this server: the one that is followed says again that it decides, or
        // another one does.
        self.thaw_at = None;
        self.upward.close();
    }
    /// The master knows what is frozen here, and had its say; unless that was so long ago that the lease is over again.
    fn thaw_in_time(&mut self) {
        if self.lease.is_over(self.micros()) {
            self.thaw_at = None;
            self.upward.close();
        } else {
            self.thaw();
        }
    }
    fn thaw(&mut self) {
        self.thaw_at = None;
        tracing::info!(instances = self.frozen, "a master is there again: instances go on");
        for at in self.all() {
            let Some(frozen) = self.instances[at].frozen.take() else { continue };
            self.frozen -= 1;
            let instance = self.instances[at].core.instance();
            if let Some(ticks) = self.instances[at].ticks {
                // Its time stood still: there is nothing to catch up with.
                let now = self.micros();
                self.instances[at].ticks = Some(self.clockwork.ticks(ticks.rate(), now));
            }
            self.schedule(at);
            let (waiting, full) = frozen.thaw();
            for waiting in waiting {
                self.tell_late(at, instance, waiting);
            }
            for seat in full {
                self.send_again(at, instance, seat);
            }
        }
        Metrics::set(&self.metrics.frozen, self.frozen as u64);
        if self.draining {
            self.hand_over();
        }
    }
    /// Tells an instance that has thawed what it missed; what it heard before may have been its end.
    fn tell_late(&mut self, at: usize, instance: InstanceId, waiting: Waiting) {
        if let Waiting::Attach(asked) = waiting {
            return self.attach(asked.link, &asked.attach);
        }
        if self.by_id.get(&instance) != Some(&at) {
            return;
        }
        match waiting {
            Waiting::Attach(_) => unreachable!("it was handled above"),
            Waiting::Lost(seat, generation) => self.tell(at, Input::Lost { seat, generation }),
            Waiting::Frame { seat, kind, number, ack, payload } => {
                self.tell(at, Input::Frame { seat, kind, number, ack, payload: &payload });
            }
            Waiting::Refresh(seat) => self.tell(at, Input::Refresh { seat }),
            Waiting::Free(seat, session, refusal) => {
                self.tell(at, Input::Free { seat, session, refusal });
            }
            Waiting::Stored(ticket, outcome) => self.tell(at, Input::Stored { ticket, outcome }),
        }
    }
    /// Tells a seat that some of its frames were not taken.
    fn send_again(&self, at: usize, instance: InstanceId, seat: Seat) {
        if self.by_id.get(&instance) != Some(&at) {
            return;
        }
        let text = "the instance stood still, and takes so many messages only; send them again";
        self.unnumbered(at, seat, SEND_AGAIN, &Refusal::new(Code::Busy, text));
    }
    // The store.

    /// What instances have asked since this was last called.
    pub(crate) fn take_orders(&mut self) -> Vec<Ordered> {
        std::mem::take(&mut self.orders)
    }
    /// Tells an instance what became of what it asked; if it is gone, nobody.
    pub(crate) fn stored(
        &mut self,
        (instance, incarnation): (InstanceId, Incarnation),
        ticket: StoreTicket,
        outcome: Result<Stored, StoreRefusal>,
        trace: Option<Parent>,
    ) {
        let Some(at) = self.running(instance, incarnation) else { return };
        match trace {
            Some(trace) if self.is_ticking(at) => self.spans.outcome(at, trace),
            Some(trace) => self.spans.causes(trace),
            None => {}
        }
        self.tell(at, Input::Stored { ticket, outcome });
        self.spans.done();
    }

    fn all(&self) -> Vec<usize> {
        self.instances.iter().map(|(at, _)| at).collect()
    }
    fn frozen_mut(&mut self) -> impl Iterator<Item = &mut Frozen> {
        // Most often there are none, and then nobody looks.
        let all = (self.frozen > 0).then_some(&mut self.instances);
        all.into_iter().flatten().filter_map(|(_, hosted)| hosted.frozen.as_mut())
    }

    // Instances.

    fn tell(&mut self, at: usize, input: Input<'_>) {
        self.tell_asked(at, input, None);
    }
    fn tell_asked(&mut self, at: usize, input: Input<'_>, asking: Option<Asking>) {
        if self.gauges.is_empty() {
            return self.let_step(at, input, asking);
        }
        // At a fixed rate a step is a tick; else all that it is told is one.
        let is_step = matches!(input, Input::Tick)
            || self.instances.get(at).is_some_and(|hosted| hosted.ticks.is_none());
        let began = self.micros();
        self.let_step(at, input, asking);
        if is_step {
            self.gauges.stepped(at, self.micros() - began);
        }
    }
    fn let_step(&mut self, at: usize, input: Input<'_>, asking: Option<Asking>) {
        let now = self.now();
        let Some(hosted) = self.instances.get_mut(at) else { return };
        if let Some(frozen) = &mut hosted.frozen
            && !matches!(input, Input::Destroy { .. })
        {
            return frozen.keep(input);
        }
        if hosted.is_handed_over() {
            match input {
                Input::Destroy { refusal } if hosted.has_failed() => {
                    let of = (hosted.core.instance(), hosted.core.incarnation());
                    self.chores.push(Chore::Remove(of.0, of.1));
                    return self.end_failed(at, &refusal);
                }
                Input::Destroy { .. } => {}
                // What comes now is undecided to its sender, who is told so.
                Input::Attach { .. }
                | Input::Lost { .. }
                | Input::Frame { .. }
                | Input::Refresh { .. }
                | Input::Free { .. }
                | Input::Revived { .. }
                | Input::Tick
                | Input::Wake
                | Input::Stored { .. } => return,
            }
        }
        hosted.core.handle(now, input, &mut self.effects);
        let is_closed = hosted.core.is_closed();
        if is_closed && self.may_go_on(at) {
            return self.fail(at, asking);
        }
        // Taken out while they are performed; both keep their memory.
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.items.drain(..) {
            self.perform(at, effect, &effects.bytes, asking);
        }
        effects.clear();
        self.effects = effects;
        if is_closed {
            let Hosted { core, durable, .. } = &self.instances[at];
            if durable.is_some() {
                self.chores.push(Chore::Remove(core.instance(), core.incarnation()));
            }
            self.remove(at);
            return;
        }
        self.schedule(at);
        if self.is_to_save(at) {
            self.save(at);
        }
    }
    /// Whether an instance that has just ended failed, and has a snapshot that it may go on from.
    fn may_go_on(&self, at: usize) -> bool {
        let is_said = |kept: &Durable| kept.stage == Kept::Said;
        self.instances[at].durable.as_ref().is_some_and(is_said) && self.failure().is_some()
    }
    /// Why an instance failed, if these are the effects of that.
    fn failure(&self) -> Option<&Refusal> {
        self.effects.items.iter().find_map(|effect| {
            let Effect::Report(report) = effect else { return None };
            let GameToMaster::Closed(closed) = &**report else { return None };
            (closed.refusal.code == Code::InstanceFailed).then_some(&closed.refusal)
        })
    }
    /// An instance that is durable failed by a bug of its game. Nobody is told before it is known whether it goes on.
    #[cold]
    fn fail(&mut self, at: usize, asking: Option<Asking>) {
        let what = self.failure().map(|refusal| refusal.message.clone()).unwrap_or_default();
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.items.drain(..) {
            if matches!(effect, Effect::Log { .. } | Effect::AttachRefused { .. }) {
                self.perform(at, effect, &effects.bytes, asking);
            }
        }
        effects.clear();
        self.effects = effects;
        let now_ms = self.now().wall.as_millis();
        let Hosted { core, durable: Some(durable), .. } = &mut self.instances[at] else { return };
        durable.stage = Kept::Failed;
        let (instance, incarnation, n) = (core.instance(), core.incarnation(), durable.n + 1);
        let now_ms = u64::try_from(now_ms).unwrap_or(u64::MAX);
        let HeldInstance { kind, key, owner, created_ms, private, .. } = core.held();
        let note = Box::new(SetAside {
            instance,
            incarnation,
            kind,
            version: None,
            cause: Cause::Failed,
            why: what.clone(),
            since_ms: now_ms,
            owner,
            key,
            created_ms,
            private,
        });
        self.chores.push(Chore::Fail(Failed { instance, incarnation, n, note }));
        Metrics::add(&self.metrics.failed, 1);
        let instance_kind = core.kind_name().into();
        self.logs.emit(&InstanceFailed { instance, instance_kind, what });
        self.schedule(at);
    }
    /// It is noted that an instance failed.
    pub(crate) fn sentenced(
        &mut self,
        (instance, incarnation): (InstanceId, Incarnation),
        sentence: &Result<Sentence, StorageError>,
    ) {
        let Some(at) = self.running(instance, incarnation) else { return };
        match sentence {
            Ok(Sentence::Over) => {
                let minutes = FAILURES_SPAN_MS / 60_000;
                let text = eco_format!(
                    "the instance failed by a bug of its game, more than {FAILURES_MAX} times in {minutes} minutes: it \
                     is given up"
                );
                tracing::error!(
                    %instance, kind = self.instances[at].core.kind_name(),
                    "given up, since it fails again and again; its snapshot is kept as failed/{instance}/{incarnation}"
                );
                self.end_failed(at, &Refusal::new(Code::InstanceFailed, text));
            }
            // A store that can't be reached now can't be read either: whoever is to take it up waits until it can.
            Ok(Sentence::GoesOn) | Err(_) => {
                self.upward.push(&HandedOver { instance, incarnation }.into());
                self.let_go(at);
            }
        }
    }
    /// An instance that failed does not go on: those in it are told, and the master.
    fn end_failed(&mut self, at: usize, refusal: &Refusal) {
        for seat in 0..self.instances[at].attached.len() {
            let seat = Seat(u16::try_from(seat).expect("a kind has at most 32,768 seats"));
            self.end(at, seat, refusal.clone());
        }
        let core = &self.instances[at].core;
        let (instance, incarnation) = (core.instance(), core.incarnation());
        Metrics::add(&self.metrics.closed, 1);
        let refusal = refusal.clone();
        self.upward.push(&Closed { instance, incarnation, refusal }.into());
        self.remove(at);
    }
    fn perform(&mut self, at: usize, effect: Effect, bytes: &[u8], asking: Option<Asking>) {
        match effect {
            Effect::ToSeat { seat, .. } => {
                let Some(to) = self.attachment(at, seat) else { return };
                Metrics::add(&self.metrics.frames_down, 1);
                if let Effect::ToSeat { kind, number, ref payload, .. } = effect
                    && !self.spans.is_empty()
                {
                    self.spans.told(at, seat, (kind, number), &bytes[payload.clone()]);
                }
                let Some(link) = self.links.get(to.link.0) else { return };
                let header = LinkHeader { kind: session_game::UNICAST, target: to.member.0 };
                self.header.clear();
                if let Some(payload) = effect.frame_header(to.channel, &mut self.header) {
                    link.outgoing.push(header, &[&self.header, &bytes[payload]]);
                }
            }
            Effect::Patch { to: None, .. } => self.fan_out(at, &effect, bytes),
            Effect::Patch { to: Some(seat), .. } | Effect::Piece { seat, .. } => {
                self.latest(at, seat, &effect, bytes);
            }
            Effect::Attached { seat, generation, up_received, down_next, tick_rate } => {
                let Some(asking) = asking else { return };
                let member = asking.to.member;
                self.route(at, seat, generation, asking.to);
                let (up_received, down_next) = (up_received.0, down_next.0);
                let attached = Attached { member, up_received, down_next, tick_rate };
                self.control(asking.to.link, &attached.into());
            }
            Effect::AttachRefused { generation, refusal, .. } => {
                if let Some(asking) = asking.filter(|asking| asking.generation == generation) {
                    let member = asking.to.member;
                    self.control(asking.to.link, &AttachRefused { member, refusal }.into());
                }
            }
            Effect::SeatEnded { seat, refusal } => self.end(at, seat, refusal),
            Effect::Report(report) => {
                if let GameToMaster::Closed(closed) = &*report {
                    Metrics::add(&self.metrics.closed, 1);
                    let is_failure = closed.refusal.code == Code::InstanceFailed;
                    Metrics::add(&self.metrics.failed, u64::from(is_failure));
                    if is_failure {
                        self.logs_of_cause().emit(&InstanceFailed {
                            instance: closed.instance,
                            instance_kind: self.instances[at].core.kind_name().into(),
                            what: closed.refusal.message.clone(),
                        });
                    }
                }
                let is_kept = match self.spans.cause() {
                    Some(cause) => self.upward.push_within(&report, cause.context()),
                    None => self.upward.push(&report),
                };
                if !is_kept {
                    Metrics::add(&self.metrics.scores_dropped, 1);
                }
            }
            Effect::Store(order) => {
                let core = &self.instances[at].core;
                let (instance, incarnation) = (core.instance(), core.incarnation());
                let trace = self.spans.cause();
                self.orders.push(Ordered { instance, incarnation, order: *order, trace });
            }
            Effect::Event(told) => emit(&self.logs_of_cause(), &self.instances[at].core, &told),
            Effect::Desync { seat, view, reason } => self.desync(at, seat, view, reason),
            Effect::Log { level, text } => self.log(at, level, &text),
        }
    }
    /// The event log for what an instance does now: of its trace, if that is sampled.
    fn logs_of_cause(&self) -> Cow<'_, Logs> {
        match self.spans.cause() {
            Some(cause) => Cow::Owned(self.logs.within(cause.context())),
            None => Cow::Borrowed(&self.logs),
        }
    }
    fn fan_out(&mut self, at: usize, effect: &Effect, bytes: &[u8]) {
        for route in &mut self.instances[at].routes {
            let Some(link) = self.links.get_mut(route.link.0) else { continue };
            if route.follows != Follows::Every {
                Metrics::add(&self.metrics.patches_dropped, 1);
                continue;
            }
            self.header.clear();
            let Some(payload) = effect.frame_header(route.channel, &mut self.header) else {
                continue;
            };
            let header = LinkHeader { kind: session_game::FANOUT, target: route.channel.0 };
            let length = self.header.len() + payload.len();
            match link.outgoing.append(header, &[&self.header, &bytes[payload]]) {
                Ok(()) => {
                    Metrics::add(&self.metrics.fanouts, 1);
                    Metrics::add(&self.metrics.fanout_bytes, length as u64);
                    self.gauges.sent(at, length);
                }
                Err(Full) => {
                    Metrics::add(&self.metrics.patches_dropped, 1);
                    route.follows = Follows::Missed;
                    link.waits_for_room = true;
                }
            }
        }
    }
    /// Sends a patch of a private view, or a piece of a snapshot.
    fn latest(&mut self, at: usize, seat: Seat, effect: &Effect, bytes: &[u8]) {
        let Some(to) = self.attachment(at, seat) else { return };
        let Some(link) = self.links.get_mut(to.link.0) else { return };
        let header = LinkHeader { kind: session_game::UNICAST, target: to.member.0 };
        self.header.clear();
        let Some(payload) = effect.frame_header(to.channel, &mut self.header) else { return };
        let length = self.header.len() + payload.len();
        if link.outgoing.append(header, &[&self.header, &bytes[payload]]).is_err() {
            Metrics::add(&self.metrics.patches_dropped, 1);
            link.waits_for_room = true;
            if let Some(membership) = link.members.get_mut(to.member) {
                membership.missed = true;
            }
            return;
        }
        Metrics::add(&self.metrics.frames_down, 1);
        self.gauges.sent(at, length);
        if matches!(effect, Effect::Piece { view: ViewId::SHARED, .. }) {
            for route in &mut self.instances[at].routes {
                if (route.link, route.channel) == (to.link, to.channel)
                    && route.follows == Follows::Refreshing
                {
                    route.follows = Follows::Every;
                }
            }
        }
    }
    /// A seat follows this member from here on.
    fn route(&mut self, at: usize, seat: Seat, generation: Generation, to: Attachment) {
        if let Some(before) = self.attachment(at, seat) {
            if (before.link, before.member) != (to.link, to.member) {
                self.forget(before.link, before.member);
                let text = "the seat follows a newer connection";
                let ended =
                    Ended { member: before.member, refusal: Refusal::new(Code::Superseded, text) };
                self.control(before.link, &ended.into());
            }
            self.unroute(at, seat);
        }
        let Some(link) = self.links.get_mut(to.link.0) else { return };
        link.members.set(to.member, Membership { instance: at, seat, generation, missed: false });
        let hosted = &mut self.instances[at];
        let place = usize::from(seat.0);
        if hosted.attached.len() <= place {
            hosted.attached.resize(place + 1, None);
        }
        hosted.attached[place] = Some(to);
        let same = |route: &&mut Route| (route.link, route.channel) == (to.link, to.channel);
        match hosted.routes.iter_mut().find(same) {
            Some(route) => route.members += 1,
            None => hosted.routes.push(Route {
                link: to.link,
                channel: to.channel,
                members: 1,
                follows: Follows::Every,
            }),
        }
    }
    /// A seat follows nobody.
    fn unroute(&mut self, at: usize, seat: Seat) -> Option<Attachment> {
        let hosted = self.instances.get_mut(at)?;
        let to = hosted.attached.get_mut(usize::from(seat.0))?.take()?;
        let place = hosted
            .routes
            .iter()
            .position(|route| (route.link, route.channel) == (to.link, to.channel))?;
        hosted.routes[place].members -= 1;
        if hosted.routes[place].members == 0 {
            hosted.routes.swap_remove(place);
        }
        Some(to)
    }
    fn end(&mut self, at: usize, seat: Seat, refusal: Refusal) {
        let Some(to) = self.unroute(at, seat) else { return };
        self.forget(to.link, to.member);
        self.control(to.link, &Ended { member: to.member, refusal }.into());
    }
    fn remove(&mut self, at: usize) {
        let hosted = self.instances.remove(at);
        self.by_id.remove(&hosted.core.instance());
        self.spans.forget(at);
        self.gauges.forget(at);
        self.used -= u64::from(hosted.core.weight());
        self.keyed -= usize::from(hosted.runs_by_lease());
        if let Some(frozen) = hosted.frozen {
            self.frozen -= 1;
            Metrics::set(&self.metrics.frozen, self.frozen as u64);
            for waiting in frozen.thaw().0 {
                if let Waiting::Attach(asked) = waiting {
                    self.refuse_unknown(asked.link, asked.attach.member);
                }
            }
        }
        if let Some(due) = hosted.due {
            self.clockwork.unset(at, due);
        }
        debug_assert!(hosted.attached.iter().all(Option::is_none), "every seat was ended");
    }
    fn desync(&self, at: usize, seat: Seat, view: ViewId, what: EcoString) {
        let core = &self.instances[at].core;
        let (instance, instance_kind) = (core.instance(), core.kind_name());
        tracing::warn!(%instance, kind = instance_kind, %seat, view = view.0, ?what, "a view did not fit");
        let (user, instance_kind, view) = (core.user(seat).cloned(), instance_kind.into(), view.0);
        self.logs.emit(&ViewDesync { user, instance, instance_kind, seat, view, what });
    }
    fn log(&self, at: usize, level: LogLevel, text: &str) {
        let core = &self.instances[at].core;
        let (instance, kind) = (core.instance(), core.kind_name());
        match level {
            LogLevel::Error => tracing::error!(%instance, kind, "{text}"),
            LogLevel::Warn => tracing::warn!(%instance, kind, "{text}"),
            LogLevel::Info => tracing::info!(%instance, kind, "{text}"),
            LogLevel::Debug => tracing::debug!(%instance, kind, "{text}"),
        }
    }
}

/// Tells the event log of something that happened in a game.
fn emit(logs: &Logs, core: &Core, told: &Told) {
    logs.emit_of_game(&OfGame {
        instance: core.instance(),
        instance_kind: core.kind_name(),
        kind: told.kind,
        version: told.version,
        user: told.user.as_ref(),
        fields: &told.fields,
    });
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
