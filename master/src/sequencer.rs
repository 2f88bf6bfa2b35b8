//! The loop: wait, decide, do.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use greenroom_link::Outgoing;
use greenroom_logs::Logs;
use greenroom_logs::kinds::{MasterAlarm, MasterEpoch, MasterRole};
use greenroom_master_core::replica::{self as pair, Alarm, Apply, Logged, Refused, Replica};
use greenroom_master_core::{Command, Effect, Event, Origin, RankedMember, State};
use greenroom_protocol::wire::admin_master::Rows;
use greenroom_protocol::wire::client_session::{Request, SessionServers, traced_name};
use greenroom_protocol::wire::master_game::{Caused, GameToMaster, MasterToGame, Measure, Renewed};
use greenroom_protocol::wire::server_server::{Identity, Role};
use greenroom_protocol::wire::session_master::{
    Answer, Ask, Bind, BindRefused, MasterToSession, Outcome, Received, SessionToMaster, Welcome,
};
use greenroom_protocol::{
    Code, Epoch, InstanceId, LINK_FRAME_BYTES_MAX, Limits, Outbound, Refusal, ServerName,
    StampedHeader, TraceContext,
};
use greenroom_telemetry::{Span, SpanKind};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::connections::Connections;
use crate::disk::{Disk, Done};
use crate::documents::DocumentWriter;
use crate::early::Early;
use crate::handle::Question;
use crate::inbox::{Inbox, Input, LinkNumber};
use crate::metrics::{Appended, Metrics};
use crate::operators::Operators;
use crate::peer::{self, FromPeer};
use crate::requests::Requests;
use crate::takeover::Takeover;
use crate::told::Told;
use crate::traces::Traces;
use crate::witness::{self, Answered, WitnessHandle};

/// How often the core is told that time passes.
const TICK: Duration = Duration::from_millis(10);
/// The most that the log's clock moves between two looks. A master that was paused for longer did not hear anybody
/// meanwhile, so that time counts against nobody's deadline.
const CLOCK_STEP_MAX: Duration = Duration::from_secs(1);
/// By how much the times that people are shown may be behind the wall clock of whoever decides.
const CLOCK_BEHIND_MAX: Duration = Duration::from_secs(2);
/// How long a stopping active may take to hand over, or to make durable what it has.
const LEAVE_MAX: Duration = Duration::from_secs(3);
/// Milliseconds that nobody decides before operators are told: a start or a change of roles takes less.
const UNDECIDED_MAX_MS: u64 = 3_000;
/// Commands that may wait for their commit before no more are taken from the links.
const UNCOMMITTED_MAX: u64 = 50_000;
/// Milliseconds between two looks for servers that are there by the log, and have no link.
const MISS_MS: u64 = 1_000;
/// For how long a master remembers that a game server is gone: who takes over meanwhile says it, too.
const DIED_MS: u64 = 60_000;
/// Steps of what is due, each of a bounded number of records, between two looks at the links.
const EXPIRE_STEPS_MAX: usize = 16;
/// Searches that may wait to be evaluated; more are refused as busy.
const SEARCHES_MAX: usize = 50_000;
/// Bytes of a command, at most: with what stands before it, it fits a frame to the other master.
const COMMAND_BYTES_MAX: usize = LINK_FRAME_BYTES_MAX - 4_096;

type InputOf = pair::Input<Logged, <State as Apply>::Piece>;
type OutputOf = pair::Output<Logged, <State as Apply>::Piece, Effect>;

/// A search that was evaluated and waits until its answer may leave.
#[derive(Debug)]
enum Read {
    Client(ServerName, Answer),
    Operator(oneshot::Sender<Result<Rows, Refusal>>, Result<Rows, Refusal>),
    /// The session servers, for one that goes on where it was.
    List(ServerName, SessionServers),
}

/// A search that was not evaluated yet.
#[derive(Debug)]
enum Asked {
    Client(Origin, Ask, Request),
    Operator(oneshot::Sender<Result<Rows, Refusal>>, greenroom_protocol::wire::admin_master::Find),
}

#[derive(Debug)]
pub(crate) struct Sequencer {
    pub(crate) name: ServerName,
    pub(crate) cluster: ecow::EcoString,
    /// There is to be another master.
    pub(crate) has_peer: bool,
    pub(crate) core: Replica<State>,
    disk: Disk,
    witness: WitnessHandle,
    /// Where the witness is, for people.
    pub(crate) witness_place: ecow::EcoString,
    pub(crate) peer: Option<(Identity, Outgoing)>,
    seed: u64,
    clock: Clock,
    /// This master decides, and has said so.
    pub(crate) serving: bool,
    /// It is to stop, and hands over before, if it can.
    is_leaving: bool,
    /// Game servers that are proved to be gone, and when that was heard, until everybody who may decide knows.
    died: BTreeMap<Origin, u64>,
    /// When it last looked whether servers without a link are known to be lost.
    looked_ms: u64,
    /// Commands of the present batch.
    batch: Vec<(u64, Logged)>,
    outputs: Vec<OutputOf>,
    connections: Connections,
    /// Searches of the present batch: they are evaluated after its commands.
    asked: Vec<Asked>,
    reads: BTreeMap<u64, Read>,
    last_read: u64,
    questions: mpsc::Receiver<Question>,
    pub(crate) operators: Operators,
    takeover: Takeover,
    /// What is wrong, for people, by what it is about.
    pub(crate) troubles: BTreeMap<&'static str, String>,
    /// When it began to wait for somebody who decides, in ticks of the clock.
    undecided_since: Option<u64>,
    pub(crate) metrics: Arc<Metrics>,
    appended: Appended,
    requests: Requests,
    early: Early,
    logs: Logs,
    told: Told,
    /// None without a store.
    pub(crate) documents: Option<DocumentWriter>,
    pub(crate) traces: Traces,
}

impl Sequencer {
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part that it owns, made by who opens them"
    )]
    pub(crate) fn new(
        me: &Identity,
        has_peer: bool,
        core: Replica<State>,
        (disk, witness, witness_place): (Disk, WitnessHandle, ecow::EcoString),
        clock: Clock,
        seed: u64,
        questions: mpsc::Receiver<Question>,
        logs: Logs,
    ) -> Self {
        Self {
            name: me.name.clone(),
            cluster: me.cluster.clone(),
            has_peer,
            core,
            disk,
            witness,
            witness_place,
            peer: None,
            seed,
            clock,
            serving: false,
            is_leaving: false,
            died: BTreeMap::new(),
            looked_ms: 0,
            batch: Vec::new(),
            outputs: Vec::new(),
            connections: Connections::default(),
            asked: Vec::new(),
            reads: BTreeMap::new(),
            last_read: 0,
            questions,
            // No two masters count alike: what one has forwarded is no answer to an operator of the other.
            operators: Operators::counting_from(seed),
            takeover: Takeover::new(),
            troubles: BTreeMap::new(),
            undecided_since: None,
            metrics: Arc::default(),
            appended: Appended::default(),
            requests: Requests::default(),
            early: Early::default(),
            told: Told::new(logs.clone()),
            documents: None,
            logs,
            traces: Traces::default(),
        }
    }

    pub(crate) async fn run(
        mut self,
        inbox: Inbox<Input>,
        from_peer: Inbox<FromPeer>,
        stop: CancellationToken,
    ) {
        let (mut inputs, mut said) = (VecDeque::new(), VecDeque::new());
        let mut ticks = time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leave_by: Option<Instant> = None;
        loop {
            let mut late = None;
            let has_room = self.uncommitted() < UNCOMMITTED_MAX;
            let mut happened = Happened::Nothing;
            tokio::select! {
                () = stop.cancelled(), if leave_by.is_none() => {
                    leave_by = Some(Instant::now() + LEAVE_MAX);
                    happened = Happened::Stop;
                }
                () = inbox.ready(), if has_room => {}
                () = from_peer.ready() => {}
                Some(question) = self.questions.recv() => happened = Happened::Question(question),
                done = self.disk.done() => happened = Happened::Disk(done),
                answered = self.witness.answer() => happened = Happened::Witness(answered),
                page = DocumentWriter::page(&mut self.documents) => happened = Happened::Stored(page),
                due = ticks.tick() => late = Some(due.elapsed()),
            }
            self.clock.look();
            self.keep_time();
            // What came in is heard before any silence is judged: a pause of this process may be over just now.
            from_peer.take(&mut said);
            for what in said.drain(..) {
                self.peer_says(what);
            }
            if has_room {
                inbox.take(&mut inputs);
                for input in inputs.drain(..) {
                    self.handle(input);
                }
            }
            self.answer_early();
            // Before anybody changes the roles: what came first is first in the log, too.
            self.flush();
            match happened {
                Happened::Nothing => {}
                Happened::Stop => self.is_leaving = true,
                Happened::Question(question) => self.ask(question),
                Happened::Disk(done) => self.disk_says(done),
                Happened::Witness(answered) => self.witness_says(answered),
                Happened::Stored(members) => self.stored(members),
            }
            self.flush();
            if let Some(late) = late {
                let late_ms = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
                self.feed(pair::Input::Tick { late_ms });
                self.expire();
                self.miss_servers();
                self.look_at_changes();
                self.prepare_switchover();
                self.gauge();
            }
            self.release();
            if leave_by.is_some_and(|by| self.may_leave() || Instant::now() > by) {
                break;
            }
        }
        self.connections.close();
        if let Some((_, outgoing)) = &self.peer {
            outgoing.close();
        }
        if let Some(documents) = self.documents.take() {
            documents.close().await;
        }
    }

    /// Shows where this master stands.
    fn gauge(&mut self) {
        let trouble = self.documents.as_ref().and_then(DocumentWriter::trouble);
        match trouble {
            Some(trouble) => drop(self.troubles.insert("store", trouble)),
            None => drop(self.troubles.remove("store")),
        }
        match self.documents.as_ref().and_then(DocumentWriter::set_aside) {
            Some(what) => drop(self.troubles.insert("set aside", what)),
            None => drop(self.troubles.remove("set aside")),
        }
        self.look_for_a_decider();
        let set = |gauge, value| Metrics::set(gauge, value);
        let (last, metrics) = (self.core.last().lsn, &self.metrics);
        set(&metrics.active, u64::from(self.serving));
        set(&metrics.epoch, u64::from(self.core.seen().epoch));
        set(&metrics.lsn, last);
        set(&metrics.commit, self.core.commit());
        let acked = self.core.following().filter(|_| self.serving).map(|(_, acked)| acked);
        set(&metrics.lag, acked.map_or(0, |acked| last.saturating_sub(acked)));
        set(&metrics.users, self.state().users());
        set(&metrics.instances, self.state().instances());
        set(&metrics.troubles, self.troubles.len() as u64);
    }

    /// Says so where nobody decides and this master will not by itself.
    fn look_for_a_decider(&mut self) {
        let why = match self.core.role() {
            pair::Role::Learner if self.core.is_cold() => {
                "by the witness's record the two are a pair, and this one was started anew since: it waits for the \
                 other one, to follow it, or, if that was started anew too, to compare their logs and go on with the \
                 longer"
            }
            pair::Role::Learner if self.peer.is_none() || !self.core.hears_active() => {
                "it may lack what the other master has acknowledged"
            }
            pair::Role::Blocked => "it can't find out whether it still may",
            pair::Role::Recovering
            | pair::Role::Learner
            | pair::Role::Standby
            | pair::Role::Paired
            | pair::Role::Solo => {
                self.undecided_since = None;
                self.troubles.remove("undecided");
                return;
            }
        };
        let now = self.clock.ticks_ms();
        if now.saturating_sub(*self.undecided_since.get_or_insert(now)) >= UNDECIDED_MAX_MS {
            let text = format!(
                "no master decides, and this one does not by itself: {why}. Start the other one and the witness; if \
                 the other will not come back, or neither of them decides, `greenroom promote --force` with this one's \
                 --admin makes it the active as it is (docs/two-masters.md)"
            );
            if self.troubles.insert("undecided", text.clone()).is_none() {
                tracing::error!("{text}");
            }
        }
    }

    /// Gives the core what happened, and does what it wants.
    pub(crate) fn feed(&mut self, input: InputOf) {
        let mut outputs = std::mem::take(&mut self.outputs);
        self.core.handle(self.clock.ticks_ms(), input, &mut outputs);
        for output in outputs.drain(..) {
            self.perform(output);
        }
        self.outputs = outputs;
    }

    /// Puts a command into the batch.
    pub(crate) fn submit(&mut self, command: Command) {
        let command = Logged::new(command);
        if command.bytes().len() > COMMAND_BYTES_MAX {
            tracing::error!(
                bytes = command.bytes().len(),
                "a server said more at once than fits a frame between masters: it is dropped"
            );
            return;
        }
        self.batch.push((self.seed, command));
    }

    /// Appends the batch, and evaluates the searches that came with it.
    fn flush(&mut self) {
        if !self.batch.is_empty() {
            let batch = std::mem::take(&mut self.batch);
            self.feed(pair::Input::Commands(self.clock.now_ms(), batch));
        }
        // While nobody knows who decides, searches wait with the commands.
        let is_doubtful = self.core.is_handing_over() || !self.core.is_certain();
        let asked = if is_doubtful { Vec::new() } else { std::mem::take(&mut self.asked) };
        for asked in asked {
            let read = match asked {
                Asked::Client(origin, ask, request) => {
                    let Ask { session, id, .. } = ask;
                    let outcome = match &request {
                        // While servers are still saying what they have it waits with others, in the log.
                        Request::Search(_) if self.state().is_rejoining() => {
                            let answered = ask.answered;
                            self.submit(Command::Ask { origin, session, id, answered, request });
                            continue;
                        }
                        Request::Search(search) => self.state().search(search),
                        Request::Rank(rank) => self.state().rank(rank, session),
                        Request::Create(_)
                        | Request::Join(_)
                        | Request::JoinOrCreate(_)
                        | Request::Leave(_)
                        | Request::Destroy(_)
                        | Request::Watch(_)
                        | Request::Unwatch(_)
                        | Request::Unknown(_) => continue,
                    };
                    Read::Client(origin.server, Answer { session, id, outcome })
                }
                Asked::Operator(answer, find) => {
                    let rows = self.state().find(&find);
                    Read::Operator(answer, rows)
                }
            };
            self.answer_when_certain(read);
        }
    }

    /// Holds what was read until what it saw is committed, by a master that decides still.
    fn answer_when_certain(&mut self, read: Read) {
        self.last_read += 1;
        self.reads.insert(self.last_read, read);
        self.feed(pair::Input::Read(self.last_read));
    }

    /// Servers that are there by the log, but have no link: a command that said so was not taken, or could not be said.
    fn miss_servers(&mut self) {
        let now_ms = self.clock.ticks_ms();
        if now_ms - self.looked_ms < MISS_MS {
            return;
        }
        self.died.retain(|_, heard_ms| now_ms - *heard_ms < DIED_MS);
        if !self.serving || self.core.is_handing_over() {
            return;
        }
        self.looked_ms = now_ms;
        self.requests.sweep();
        for (role, origin) in self.state().servers_up() {
            if !self.connections.has(role, &origin) {
                self.submit(Command::LinkLost(role, origin));
            }
        }
        self.bury();
        self.flush();
    }

    /// Gives up the game servers that are proved to be gone, if this master decides now.
    fn bury(&mut self) {
        if !self.serving || self.core.is_handing_over() {
            return;
        }
        let missed = self.died.keys().filter(|origin| self.state().misses(origin));
        for origin in missed.cloned().collect::<Vec<_>>() {
            self.submit(Command::Died(origin));
        }
    }

    /// Somebody wants the standby to decide: first the witness has to show that it is there, since commands wait from
    /// the moment at which the roles begin to change.
    pub(crate) fn prepare_switchover(&mut self) {
        if self.wants_switchover() {
            self.witness.ask(witness::Question::Read);
        }
    }

    fn wants_switchover(&self) -> bool {
        let is_wanted = self.is_leaving || self.operators.want_switchover();
        let may = self.core.role() == pair::Role::Paired && !self.core.is_handing_over();
        is_wanted && may && self.peer.is_some()
    }

    pub(crate) fn state(&self) -> &State {
        self.core.state()
    }

    fn uncommitted(&self) -> u64 {
        match self.serving {
            true => self.core.last().lsn.saturating_sub(self.core.commit()),
            false => 0,
        }
    }

    /// Whether a master that is to stop can do so without anybody waiting for it.
    fn may_leave(&self) -> bool {
        match self.core.role() {
            pair::Role::Recovering | pair::Role::Learner => true,
            // Who has handed over stays until the other one is heard.
            pair::Role::Standby => self.core.hears_active(),
            pair::Role::Solo => self.uncommitted() == 0,
            pair::Role::Paired | pair::Role::Blocked => false,
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Opened(link, identity, outgoing) => {
                self.connections.opened(link, identity, outgoing);
                if self.serving {
                    self.connections.introduce(link, self.core.state());
                }
            }
            Input::Session(link, stamp, message) => {
                self.look_at_stamp(stamp);
                if self.serving {
                    self.session_says(link, stamp.n, message);
                }
            }
            Input::Game(link, stamp, message) => {
                self.look_at_stamp(stamp);
                if self.serving {
                    self.game_says(link, stamp.n, message);
                }
            }
            Input::Lost(link, error) => {
                let Some((role, origin)) = self.connections.lost(link) else { return };
                let error = &error as &dyn std::error::Error;
                tracing::info!(error, server = %origin.server, %role, "a server's link is lost");
                // While commands wait for another active, it may be back before this is applied.
                let is_certain = self.serving && !self.core.is_handing_over();
                if is_certain && !self.connections.has(role, &origin) {
                    self.submit(Command::LinkLost(role, origin));
                }
            }
            Input::Died(origin) => {
                self.died.insert(origin, self.clock.ticks_ms());
                self.bury();
            }
        }
    }

    /// Whoever has seen a later term knows of an active that this master does not know of.
    fn look_at_stamp(&mut self, stamp: StampedHeader) {
        if stamp.epoch > self.core.seen() {
            self.feed(pair::Input::Seen(stamp.epoch));
        }
    }

    fn peer_says(&mut self, what: FromPeer) {
        match what {
            FromPeer::Linked(identity, outgoing) => {
                tracing::info!(master = %identity.name, "linked to the other master");
                self.troubles.remove("pair");
                self.peer = Some((identity, outgoing));
            }
            FromPeer::Said(envelope, traces) => {
                if self.core.role() == pair::Role::Standby {
                    self.takeover.heard();
                }
                // They end once the entries are applied and acknowledged.
                let _applying = self.traces.applying(&traces);
                self.feed(pair::Input::Message(*envelope));
            }
            FromPeer::Lost(incarnation) => {
                self.peer.take_if(|(identity, outgoing)| {
                    identity.incarnation == incarnation && outgoing.is_closing()
                });
            }
            FromPeer::Gone(incarnation) => {
                self.peer.take_if(|(identity, _)| identity.incarnation == incarnation);
                self.feed(pair::Input::PeerGone(incarnation));
            }
            FromPeer::Misfit(refusal) => {
                tracing::error!(%refusal, "the two masters can't be a pair");
                self.troubles.insert("pair", refusal.to_string());
            }
        }
    }

    fn disk_says(&mut self, done: Done) {
        match done {
            Done::Synced(lsn) => self.feed(pair::Input::Synced(lsn)),
            Done::Intents(intents) => {
                self.takeover.intends();
                self.feed(pair::Input::IntentsDurable(intents));
            }
            Done::Checkpoint(at) => self.feed(pair::Input::CheckpointDurable(at)),
            Done::Trouble(what) => {
                tracing::error!(%what, "the disk takes nothing");
                self.troubles.insert("disk", what);
            }
            Done::Well => {
                tracing::info!("the disk takes writes again");
                self.troubles.remove("disk");
            }
        }
    }

    fn witness_says(&mut self, answered: Answered) {
        match answered {
            Answered::Record(rec) => {
                self.troubles.remove("witness");
                self.operators.knows_record = true;
                self.feed(pair::Input::Record(rec));
                if self.wants_switchover() {
                    self.feed(pair::Input::Switchover);
                }
            }
            Answered::Claimed(nonce, answer) => {
                self.takeover.claims();
                self.feed(pair::Input::Claimed(nonce, answer));
            }
            Answered::Failed(what) => {
                if self.troubles.insert("witness", what.clone()).is_none() {
                    tracing::error!(%what, "the witness does not answer");
                }
            }
        }
    }

    /// The store has what an earlier era knew of boards.
    fn stored(&mut self, mut members: Vec<RankedMember>) {
        members.retain(|member| !self.state().is_ranked(&member.board, &member.user));
        if self.serving && !members.is_empty() {
            self.submit(Command::Stored(members));
        }
    }

    fn session_says(&mut self, link: LinkNumber, n: u64, message: SessionToMaster) {
        match message {
            SessionToMaster::Report(report) => {
                if let Some(origin) = self.connections.connect(link) {
                    self.submit(Command::SessionUp(origin, report));
                }
                return;
            }
            SessionToMaster::Resume(_) => return self.resume(link),
            SessionToMaster::Fenced(_) => return,
            SessionToMaster::Load(_)
            | SessionToMaster::Bind(_)
            | SessionToMaster::Unbind(_)
            | SessionToMaster::Ask(_)
            | SessionToMaster::Received(_)
            | SessionToMaster::Seen(_)
            | SessionToMaster::Unknown(_) => {}
        }
        let Some(origin) = self.connections.speaker(link) else { return };
        match message {
            SessionToMaster::Load(load) => self.submit(Command::SessionLoad(origin, load)),
            SessionToMaster::Bind(bind) => self.client_checks_in(origin, bind),
            SessionToMaster::Unbind(unbind) => self.submit(Command::Unbind(origin, n, unbind)),
            SessionToMaster::Ask(ask) => self.client_asks(origin, ask),
            SessionToMaster::Received(Received { n }) => {
                self.submit(Command::SessionReceived(origin, n));
            }
            SessionToMaster::Seen(seen) => self.submit(Command::Seen(origin, seen)),
            SessionToMaster::Unknown(kind) => {
                tracing::debug!(kind, server = %origin.server, "a message of a newer version");
            }
            SessionToMaster::Report(_)
            | SessionToMaster::Resume(_)
            | SessionToMaster::Fenced(_) => {}
        }
    }

    fn game_says(&mut self, link: LinkNumber, n: u64, message: GameToMaster) {
        if let GameToMaster::Report(report) = message {
            if let Some(origin) = self.connections.connect(link) {
                self.submit(Command::GameUp(origin, report));
            }
            return;
        }
        if matches!(message, GameToMaster::Resume(_)) {
            return self.resume(link);
        }
        let Some(origin) = self.connections.speaker(link) else { return };
        let event = match message {
            GameToMaster::Load(load) => return self.submit(Command::GameLoad(origin, load)),
            GameToMaster::Received(Received { n }) => {
                return self.submit(Command::GameReceived(origin, n));
            }
            GameToMaster::Running(running) => Event::Running(running),
            GameToMaster::CreateRefused(refused) => Event::CreateRefused(refused),
            GameToMaster::SeatChanged(change) => Event::SeatChanged(change),
            GameToMaster::MetaChanged(change) => Event::MetaChanged(change),
            GameToMaster::Closed(closed) => Event::Closed(closed),
            GameToMaster::Scored(scored) => Event::Scored(scored),
            GameToMaster::HandedOver(handed) => Event::HandedOver(handed),
            GameToMaster::Measured(measured) => return self.operators.measured(measured),
            GameToMaster::Caused(Caused { n, trace }) => return self.traces.causes(link, n, trace),
            GameToMaster::Report(_) | GameToMaster::Resume(_) | GameToMaster::Fenced(_) => return,
            GameToMaster::Unknown(kind) => {
                return tracing::debug!(kind, server = %origin.server, "a message of a newer version");
            }
        };
        match self.traces.of_event(link, n, &event) {
            Some(trace) => self.submit_traced(Command::Happened(origin, n, event), trace),
            None => self.submit(Command::Happened(origin, n, event)),
        }
    }

    /// A server goes on where it was, if it is still known as it was when it was told that it may.
    fn resume(&mut self, link: LinkNumber) {
        let Some(identity) = self.connections.identity(link) else { return };
        let role = identity.role;
        match self.core.state().streams(role, &identity.name, identity.incarnation) {
            Some(streams) => {
                let Some(origin) = self.connections.connect(link) else { return };
                if let Some(mut line) = self.connections.line(role, &origin.server) {
                    line.say(role, Welcome { streams }, Welcome { streams });
                }
                if role == Role::Session {
                    // The active before may have died before it could say it.
                    let servers = self.state().announced();
                    self.answer_when_certain(Read::List(origin.server, servers));
                }
            }
            None => self.connections.introduce(link, self.core.state()),
        }
    }

    fn client_checks_in(&mut self, origin: Origin, mut bind: Bind) {
        // What is in the log does not depend on what is traced.
        let trace = bind.trace.take();
        let Some(span) = self.traces.tracer.child(trace, "check_in", SpanKind::Server) else {
            return self.submit(Command::Bind(origin, bind));
        };
        let trace = span.context();
        self.requests.checks_in(origin.server.clone(), bind.number, span);
        self.submit_traced(Command::Bind(origin, bind), trace);
    }

    /// Decides what waited for game servers that have yet to find this master, once they have.
    fn answer_early(&mut self) {
        if !self.early.is_waiting() {
            return;
        }
        let up = self.state().servers_up().into_iter();
        let there: Vec<_> = up.filter(|(role, _)| *role == Role::Game).map(|(_, it)| it).collect();
        for (origin, ask) in self.early.come(&there, self.clock.ticks_ms()) {
            self.decide(origin, ask);
        }
    }

    fn client_asks(&mut self, origin: Origin, ask: Ask) {
        if let Some((origin, ask)) = self.early.keep(origin, ask) {
            self.decide(origin, ask);
        }
    }

    fn decide(&mut self, origin: Origin, ask: Ask) {
        let name = traced_name(ask.kind).unwrap_or("request");
        let span = self.traces.tracer.child(ask.trace, name, SpanKind::Server);
        let trace = span.as_ref().map(Span::context);
        self.requests.asked(ask.session, ask.id, span);
        // Decoded before the log: what is in the log can be applied.
        match Request::decode(ask.kind, &ask.request, Limits::CLIENT) {
            // A read changes nothing: no command. Its answer is held until what it saw is committed, and this master
            // is known to have decided still when it was read.
            Ok(request @ (Request::Search(_) | Request::Rank(_))) => {
                if self.asked.len() < SEARCHES_MAX {
                    return self.asked.push(Asked::Client(origin, ask, request));
                }
                let outcome = Outcome::Refused(Refusal::new(Code::Busy, TOO_MANY_SEARCHES));
                let answer = Answer { session: ask.session, id: ask.id, outcome };
                self.tell_session(&origin.server, &answer.into());
            }
            Ok(request) => {
                let Ask { session, id, answered, .. } = ask;
                let command = Command::Ask { origin, session, id, answered, request };
                match trace {
                    Some(trace) => self.submit_traced(command, trace),
                    None => self.submit(command),
                }
            }
            Err(error) => {
                let outcome = Outcome::Refused(error.into());
                let answer = Answer { session: ask.session, id: ask.id, outcome };
                self.tell_session(&origin.server, &answer.into());
            }
        }
    }

    /// Puts a command that is sampled into the log, in a batch of its own: so it is known which entry is its own, and
    /// which instance is made for it.
    #[cold]
    fn submit_traced(&mut self, command: Command, trace: TraceContext) {
        self.flush();
        let games = self.state().servers_up().into_iter().filter(|(role, _)| *role == Role::Game);
        let told =
            |state: &State, game: &ServerName| state.game_stream(game).map_or(0, Outbound::last);
        let before: Vec<_> =
            games.map(|(_, Origin { server, .. })| (told(self.state(), &server), server)).collect();
        self.traces.expect_write(Some(trace));
        self.submit(command);
        self.flush();
        self.traces.expect_write(None);
        for (last, game) in before {
            let state = self.core.state();
            let orders = state.game_stream(&game).into_iter().flat_map(|stream| stream.after(last));
            for (_, message) in orders {
                if let MasterToGame::Create(order) = message {
                    self.traces.ordered(order.instance, trace);
                }
            }
        }
    }

    /// An operator searches: as a client does, with the same barrier.
    pub(crate) fn find(
        &mut self,
        find: greenroom_protocol::wire::admin_master::Find,
        answer: oneshot::Sender<Result<Rows, Refusal>>,
    ) {
        if self.asked.len() < SEARCHES_MAX {
            return self.asked.push(Asked::Operator(answer, find));
        }
        // Who asked may have gone: then nobody misses the answer.
        let _gone = answer.send(Err(Refusal::new(Code::Busy, TOO_MANY_SEARCHES)));
    }

    /// Asks a game server how an instance is doing; false if there is no way to it.
    pub(crate) fn measure(&mut self, server: &ServerName, instance: InstanceId) -> bool {
        let Some(mut line) = self.connections.line(Role::Game, server) else { return false };
        line.game(0, &Measure { instance }.into());
        true
    }

    fn tell_session(&mut self, server: &ServerName, message: &MasterToSession) {
        if let MasterToSession::Answer(Answer { session, id, outcome }) = message
            && let Some((took, span)) = self.requests.answered(*session, *id)
        {
            self.metrics.request_duration.record(took);
            if let (Some(mut span), Outcome::Refused(refusal)) = (span, outcome) {
                span.fail(refusal);
            }
        }
        if let MasterToSession::Bound(bound) = message {
            drop(self.requests.checked_in(server, bound.number));
        } else if let MasterToSession::BindRefused(BindRefused { number, refusal }) = message
            && let Some(mut span) = self.requests.checked_in(server, *number)
        {
            span.fail(refusal);
        }
        if let Some(mut line) = self.connections.line(Role::Session, server) {
            line.session(0, message);
        }
    }

    /// Puts the wall clock into the log once the times that people are shown have fallen behind it: this process, or
    /// the whole machine, was asleep, and no deadline has passed meanwhile. First in its batch: what comes after it is
    /// shown with the time at which it came.
    fn keep_time(&mut self) {
        if !self.serving || self.core.is_handing_over() || !self.core.is_certain() {
            return;
        }
        let wall = since_1970();
        if self.clock.is_behind(wall, Duration::from_millis(self.state().ahead_ms())) {
            self.submit(Command::ClockAt(millis(wall)));
        }
    }

    fn expire(&mut self) {
        for _ in 0..EXPIRE_STEPS_MAX {
            let now_ms = self.clock.now_ms();
            // What waits for another active would be due for ever.
            let may_not = !self.serving || self.core.is_handing_over();
            if may_not || self.state().due_ms().is_none_or(|due_ms| due_ms > now_ms) {
                return;
            }
            self.submit(Command::Expire);
            self.flush();
        }
    }

    /// Lets out what is committed of the servers' streams.
    fn release(&mut self) {
        if self.serving {
            let (last, commit) = (self.core.last().lsn, self.core.commit());
            self.appended.committed(commit, &self.metrics);
            self.traces.committed(commit);
            self.connections.release(self.core.state(), last, commit, &mut self.traces);
            let traces = self.traces.just_committed();
            self.told.tell(self.core.state().facts(), commit, &traces);
            if let Some(documents) = &mut self.documents {
                documents.tell(self.core.state().documents(), commit, &self.traces.tracer, &traces);
            }
        }
    }

    fn perform(&mut self, output: OutputOf) {
        match output {
            pair::Output::Send(envelope) => {
                if let Some((_, outgoing)) = &self.peer {
                    let traces = if let pair::Message::Append { entries, .. } = &envelope.body {
                        self.traces.of(entries)
                    } else {
                        Vec::new()
                    };
                    peer::send(outgoing, envelope, &traces);
                }
            }
            pair::Output::Write(entries) => {
                let last = entries.last().map_or(0, |entry| entry.header.lsn);
                if self.serving {
                    Metrics::add(&self.metrics.appended, entries.len() as u64);
                    self.appended.push(last);
                    self.traces.written(last);
                } else {
                    Metrics::add(&self.metrics.copied, entries.len() as u64);
                }
                self.disk.write(&entries);
            }
            pair::Output::Sync(upto) => self.disk.sync(upto),
            pair::Output::WriteIntents(intents) => {
                self.takeover.decides();
                self.disk.write_intents(intents);
            }
            pair::Output::CheckpointBegin { at, whose } => self.disk.begin_checkpoint(at, whose),
            pair::Output::CheckpointPieces(pieces) => self.disk.checkpoint_pieces(pieces),
            pair::Output::CheckpointEnd => self.disk.end_checkpoint(),
            pair::Output::Claim { expect, rec } => {
                self.witness.ask(witness::Question::Claim { expect, rec });
            }
            pair::Output::ReadRecord => self.witness.ask(witness::Question::Read),
            pair::Output::Release { effects, .. } => {
                for effect in effects {
                    self.effect(effect);
                }
            }
            pair::Output::ReadReady(read) => match self.reads.remove(&read) {
                Some(Read::Client(server, answer)) => self.tell_session(&server, &answer.into()),
                Some(Read::List(server, list)) => self.tell_session(&server, &list.into()),
                Some(Read::Operator(answer, rows)) => {
                    // Who asked may have gone: then nobody misses the answer.
                    let _gone = answer.send(rows);
                }
                None => {}
            },
            pair::Output::Refused(command, why) => self.refused(&command, why),
            pair::Output::ReadRefused(read, why) => {
                match (self.reads.remove(&read), why) {
                    (Some(Read::Client(server, Answer { session, id, .. })), Refused::Busy) => {
                        let outcome = Outcome::Refused(Refusal::new(Code::Busy, TOO_MANY_SEARCHES));
                        self.tell_session(&server, &Answer { session, id, outcome }.into());
                    }
                    // It is asked again of whoever decides then.
                    (Some(Read::Client(..)), Refused::NotActive | Refused::Unavailable)
                    | (Some(Read::List(..)), _) => {}
                    (Some(Read::Operator(answer, _)), _) => {
                        let _gone = answer.send(Err(Refusal::new(Code::Unavailable, NOT_NOW)));
                    }
                    (None, _) => {}
                }
            }
            pair::Output::Role(role) => self.is_now(role),
            pair::Output::NewEpoch(at) => self.begins(at),
            pair::Output::Alarm(alarm) => self.alarm(alarm),
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Welcome(role, server, streams) => {
                if let Some(mut line) = self.connections.line(role, &server) {
                    line.say(role, Welcome { streams }, Welcome { streams });
                }
            }
            Effect::Renewed(server, sent) => {
                if let Some(mut line) = self.connections.line(Role::Game, &server) {
                    line.game(0, &Renewed { sent }.into());
                }
            }
            Effect::ToSession(server, message) => self.tell_session(&server, &message),
            Effect::Acted { number, result } => self.operators.acted(number, result),
            Effect::Illegal { role, server, what } => {
                Metrics::add(&self.metrics.illegal, 1);
                tracing::warn!(%role, %server, %what, "a server said what it may not say: ignored");
            }
        }
    }

    /// A command was not appended. Its server says it again: to whoever decides, or over a new link.
    fn refused(&mut self, command: &Logged, why: Refused) {
        Metrics::add(&self.metrics.refused, 1);
        let (role, origin) = match command.command() {
            Command::SessionUp(origin, _)
            | Command::SessionLoad(origin, _)
            | Command::SessionReceived(origin, _)
            | Command::Bind(origin, _)
            | Command::Unbind(origin, ..)
            | Command::Seen(origin, _)
            | Command::Ask { origin, .. } => (Role::Session, origin),
            Command::GameUp(origin, _)
            | Command::GameLoad(origin, _)
            | Command::GameReceived(origin, _)
            | Command::Happened(origin, ..) => (Role::Game, origin),
            Command::LinkLost(role, origin) => (*role, origin),
            // It is said again in a second.
            Command::Expire | Command::Died(_) | Command::Stored(_) | Command::ClockAt(_) => return,
            Command::Act { number, .. } => {
                let refusal = Refusal::new(Code::Unavailable, NOT_NOW);
                return self.operators.acted(*number, Err(refusal));
            }
        };
        tracing::debug!(?why, %role, server = %origin.server, "a command was refused");
        self.connections.reset(role, origin);
    }

    fn is_now(&mut self, role: pair::Role) {
        let epoch = self.core.rec().map(|rec| rec.at).unwrap_or_default();
        tracing::info!(?role, %epoch, lsn = self.core.last().lsn, "the role is another one");
        self.logs.emit(&MasterRole { state: role_name(role), epoch });
        match role {
            pair::Role::Paired | pair::Role::Solo | pair::Role::Blocked => {}
            pair::Role::Recovering | pair::Role::Learner | pair::Role::Standby => {
                if role == pair::Role::Standby {
                    self.takeover.heard();
                } else {
                    self.takeover.is_off();
                }
                self.serving = false;
                self.connections.step_down();
                self.batch.clear();
                self.asked.clear();
                self.early = Early::default();
                self.reads.clear();
                self.operators.step_down();
                self.appended.clear();
                self.requests.clear();
                self.traces.clear();
            }
        }
    }

    /// This master decides in this term, and everything that it has is committed.
    fn begins(&mut self, at: Epoch) {
        if self.serving {
            return self.connections.raise(at);
        }
        self.serving = true;
        self.logs.emit(&MasterEpoch { epoch: at });
        self.told.begin(self.core.state().facts());
        if let Some(documents) = &mut self.documents {
            documents.begin(self.core.state().documents());
            // Nothing of this era is in the log yet: what the one before it knew may be in the store alone.
            if self.core.state().epoch().era < at.era {
                documents.wish_boards(at.era);
            }
        }
        self.troubles.remove("role");
        self.takeover.announces(at);
        // The log's time goes on where it was, whatever this machine's clock says. What people are shown does not: the
        // cluster may have been off for a night.
        self.clock.go_on_from(self.core.log_ms());
        if self.core.log_ms() > 0 {
            self.submit(Command::ClockAt(millis(since_1970())));
        }
        self.connections.announce(at, self.core.state());
        let mut missing = Vec::new();
        for (role, origin) in self.state().servers_up() {
            if !self.connections.has(role, &origin) {
                missing.extend((role == Role::Game).then(|| origin.clone()));
                self.submit(Command::LinkLost(role, origin));
            }
        }
        self.early.begin(missing, self.clock.ticks_ms());
        self.bury();
    }

    fn alarm(&mut self, alarm: Alarm) {
        let text = match alarm {
            Alarm::Diverged(lsn) => format!(
                "after command {lsn} this copy differed from the active's: it was thrown away; please report this"
            ),
            Alarm::WitnessBehind => {
                "the witness knows less than this master: it lost its record, or went back in \
                                     time; put its file back, or see `greenroom promote`"
                    .to_owned()
            }
            Alarm::Forked => {
                "both masters were started anew, and neither log continues the other: one of them is not what the \
                 witness's record names; promote the right one with `greenroom promote --force` (docs/two-masters.md)"
                    .to_owned()
            }
            Alarm::LossDeclared => {
                let Epoch { era, .. } = self.core.seen();
                format!(
                    "both masters' machines were started anew while they were a pair: this one decides with the longer \
                     of their logs, up to command {}, and begins era {era}; what was done in the last moments before \
                     may be lost",
                    self.core.last().lsn
                )
            }
            Alarm::BadSnapshot => "the other master's snapshot could not be restored".to_owned(),
            Alarm::OtherVersion(version) => format!(
                "the other master applies commands by rules {version}, this one by rules {}: run the same \
                 build on both",
                <State as Apply>::VERSION
            ),
        };
        if self.troubles.insert("role", text.clone()).as_ref() != Some(&text) {
            tracing::error!("{text}");
            self.logs.emit(&MasterAlarm { what: text.into() });
        }
    }
}

/// A role as the event log has it.
const fn role_name(role: pair::Role) -> &'static str {
    match role {
        pair::Role::Recovering => "recovering",
        pair::Role::Learner => "learner",
        pair::Role::Standby => "standby",
        pair::Role::Paired => "paired",
        pair::Role::Solo => "solo",
        pair::Role::Blocked => "blocked",
    }
}

const TOO_MANY_SEARCHES: &str = "too many searches wait for their turn; try again";
pub(crate) const NOT_NOW: &str = "who decides is changing just now; try again";

/// What woke the loop, besides the links.
#[derive(Debug)]
enum Happened {
    Nothing,
    Stop,
    Question(Question),
    Disk(Done),
    Witness(Answered),
    Stored(Vec<RankedMember>),
}

/// The wall clock, as the time since 1970.
pub(crate) fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The log's time in milliseconds since 1970, as the wall clock was when the cluster was founded. From there on it is
/// the monotonic clock of whoever decides, so that it never runs backwards, and a pause of the process counts as
/// [`CLOCK_STEP_MAX`] at most. The time that people are shown is ahead of it by all that it did not count: see
/// [`Command::ClockAt`].
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    looked: Instant,
    now: Duration,
}

impl Clock {
    pub(crate) fn starting_at(now: Duration) -> Self {
        let started = Instant::now();
        Self { started, looked: started, now }
    }
    fn look(&mut self) {
        let looked = Instant::now();
        self.now += looked.duration_since(self.looked).min(CLOCK_STEP_MAX);
        self.looked = looked;
    }
    /// Goes on from a time of the log; 0 if it has none yet.
    fn go_on_from(&mut self, log_ms: u64) {
        if log_ms > 0 {
            self.now = Duration::from_millis(log_ms);
        }
    }
    fn now_ms(&self) -> u64 {
        millis(self.now)
    }
    /// What people are shown, that far ahead of this clock, is so late that the wall clock has to be put into the log.
    fn is_behind(&self, wall: Duration, ahead: Duration) -> bool {
        wall > self.now.saturating_add(ahead).saturating_add(CLOCK_BEHIND_MAX)
    }
    /// Milliseconds of this process's own, as it looked last.
    pub(crate) fn ticks_ms(&self) -> u64 {
        let ticks = self.looked.duration_since(self.started) + CLOCK_STEP_MAX;
        millis(ticks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_log_s_time_goes_on_where_it_was_and_the_wall_clock_is_asked_for_what_it_has_lost() {
        let founded = 1_800_000_000 * SECOND;
        let off = 360 * SECOND;
        let mut clock = Clock::starting_at(founded + off);
        clock.go_on_from(0);
        assert!(clock.now >= founded + off, "founded now: by the wall clock");
        clock.go_on_from(millis(founded));
        assert_eq!(clock.now_ms(), millis(founded), "no deadline passes while it is off");
        let wall = founded + off;
        assert!(clock.is_behind(wall, Duration::ZERO));
        assert!(!clock.is_behind(wall, off), "the log has it");
        assert!(!clock.is_behind(wall - 2 * off, off), "a wall clock that was set back");
        // The machine sleeps, and neither this clock nor the log hears of it.
        assert!(!clock.is_behind(wall + CLOCK_BEHIND_MAX, off));
        assert!(clock.is_behind(wall + CLOCK_BEHIND_MAX + SECOND, off));
    }

    #[test]
    fn a_pause_of_the_process_counts_as_one_step_at_most_and_is_made_up_for_by_the_wall_clock() {
        let founded = 1_800_000_000 * SECOND;
        let mut clock = Clock::starting_at(founded);
        let pause = 10 * SECOND;
        clock.looked = clock.looked.checked_sub(pause).expect("the machine is up for that long");
        clock.look();
        assert_eq!(clock.now, founded + CLOCK_STEP_MAX);
        assert!(clock.is_behind(founded + pause, Duration::ZERO));
        assert!(!clock.is_behind(founded + pause, pause - CLOCK_STEP_MAX));
    }
}
