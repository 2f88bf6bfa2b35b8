//! The loop: wait, decide, do.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use greenroom_link::{ClusterKey, Me, Outgoing};
use greenroom_master_core::{
    ClusterSecret, Command, Effect, Effects, Event, Header, Log, Origin, Placement, State,
};
use greenroom_protocol::wire::admin_master::{MasterStatus, Status};
use greenroom_protocol::wire::client_session::Request;
use greenroom_protocol::wire::master_game::{GameToMaster, MasterToGame};
use greenroom_protocol::wire::server_server::{Identity, Role};
use greenroom_protocol::wire::session_master::{
    Answer, Ask, MasterToSession, Outcome, Received, SessionToMaster, Welcome,
};
use greenroom_protocol::{
    Epoch, Incarnation, Limits, LinkHeader, Refusal, ServerName, StampedHeader,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::MasterConfig;
use crate::error::MasterError;
use crate::handle::{MasterHandle, QUESTIONS_MAX, Question};
use crate::inbox::{Inbox, Input, LinkNumber};
use crate::links::Door;

/// How long the sequencer waits at most before it looks at its clock.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The most that the log's clock moves between two looks. A master that was paused for longer did not hear anybody
/// meanwhile, so that time counts against nobody's deadline.
const CLOCK_STEP_MAX: Duration = Duration::from_secs(1);
/// Bytes of a link's buffer that a stream fills at most: what a new link gets again may be much, and answers should
/// not wait behind all of it.
const STREAM_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A master that listens and does not answer yet.
#[derive(Debug)]
pub struct Master {
    listener: TcpListener,
    address: SocketAddr,
    me: Rc<Me>,
    handle: MasterHandle,
    sequencer: Sequencer,
}

impl Master {
    /// Listens. Links are taken once it runs. `placement` chooses among the game servers that can take an instance.
    ///
    /// # Errors
    /// When the configuration can't be kept, the address can't be listened on, or the system has no randomness.
    pub async fn bind(
        config: &MasterConfig,
        key: ClusterKey,
        placement: Arc<dyn Placement>,
    ) -> Result<Self, MasterError> {
        config.check()?;
        let failed = |source| MasterError::Listen { address: config.listen.clone(), source };
        let listener = TcpListener::bind(&config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let incarnation = Incarnation(getrandom::u64()?);
        let secret = ClusterSecret::from_key(&key.derive("master core"));
        let state = State::with_placement(&secret, config.settings(), placement);
        let sequencer = Sequencer::new(config, state, incarnation, getrandom::u64()?, asked);
        let identity = Identity {
            cluster: config.cluster.clone(),
            role: Role::Master,
            name: config.name.clone(),
            incarnation,
            build: concat!("greenroom ", env!("CARGO_PKG_VERSION")).into(),
        };
        let me = Rc::new(Me { identity, key });
        Ok(Self { listener, address, me, handle: MasterHandle { questions }, sequencer })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A way to ask it. Its questions are answered once it runs.
    pub fn handle(&self) -> MasterHandle {
        self.handle.clone()
    }

    /// Runs until `stop`. Must run inside a `LocalSet`.
    pub async fn run(self, stop: CancellationToken) {
        let Self { listener, address, me, handle, sequencer } = self;
        // While this one lives the channel is open, however many handles others have dropped.
        let _handle = handle;
        tracing::info!(name = %me.identity.name, %address, epoch = %sequencer.epoch, "the master is active");
        let tasks = TaskTracker::new();
        let inbox = Inbox::default();
        let door = Door { me, inbox: inbox.clone(), tasks: tasks.clone(), stop: stop.clone() };
        tasks.spawn_local(door.run(listener));
        tasks.close();
        sequencer.run(inbox, stop).await;
        tasks.wait().await;
    }
}

/// A server's link that is in use.
#[derive(Debug)]
struct Connection {
    link: LinkNumber,
    incarnation: Incarnation,
    outgoing: Outgoing,
    /// What went out of the server's stream on this link.
    sent: u64,
    /// What was acknowledged of the stream that comes from it.
    acknowledged: u64,
}

#[derive(Debug)]
struct Sequencer {
    name: ServerName,
    cluster: ecow::EcoString,
    incarnation: Incarnation,
    epoch: Epoch,
    seed: u64,
    clock: Clock,
    log: Log,
    state: State,
    /// Effects of the batch, held until its last command is committed.
    effects: Effects,
    /// Links that have not reported yet.
    opened: BTreeMap<LinkNumber, (Identity, Outgoing)>,
    /// Who is on a link that has reported.
    links: BTreeMap<LinkNumber, (Role, ServerName)>,
    connections: BTreeMap<(Role, ServerName), Connection>,
    questions: mpsc::Receiver<Question>,
    /// Operators that wait, by the number of their question.
    operators: BTreeMap<u64, oneshot::Sender<Result<(), Refusal>>>,
    asked: u64,
    scratch: Vec<u8>,
}

impl Sequencer {
    fn new(
        config: &MasterConfig,
        state: State,
        incarnation: Incarnation,
        seed: u64,
        questions: mpsc::Receiver<Question>,
    ) -> Self {
        // Whatever an earlier master knew is lost with its memory, which is what an era declares. Servers refuse a
        // smaller one than they have seen, so it has to grow from start to start: seconds do.
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let era = u32::try_from(since_1970.as_secs()).unwrap_or(u32::MAX);
        Self {
            name: config.name.clone(),
            cluster: config.cluster.clone(),
            incarnation,
            epoch: Epoch { era, epoch: 1 },
            seed,
            clock: Clock { looked: Instant::now(), now: since_1970 },
            log: Log::new(config.log_entries_max),
            state,
            effects: Effects::new(),
            opened: BTreeMap::new(),
            links: BTreeMap::new(),
            connections: BTreeMap::new(),
            questions,
            operators: BTreeMap::new(),
            asked: 0,
            scratch: Vec::new(),
        }
    }

    async fn run(mut self, inbox: Inbox, stop: CancellationToken) {
        let mut inputs = VecDeque::new();
        loop {
            let mut question = None;
            let until_due = self.until_due();
            tokio::select! {
                () = stop.cancelled() => break,
                () = inbox.ready() => {}
                asked = self.questions.recv() => question = asked,
                () = tokio::time::sleep(until_due) => {}
            }
            self.clock.look();
            // What came in is heard before any deadline is judged: a pause of this process may be over just now.
            inbox.take(&mut inputs);
            for input in inputs.drain(..) {
                self.handle(input);
            }
            if let Some(question) = question {
                self.ask(question);
            }
            self.expire();
            self.release();
        }
        for connection in self.connections.values() {
            connection.outgoing.close();
        }
    }

    /// Appends a command to the log and applies it. Its effects wait for the end of the batch.
    fn submit(&mut self, command: Command) {
        let header = Header {
            lsn: self.state.lsn() + 1,
            epoch: self.epoch,
            now_ms: self.clock.now_ms(),
            seed: self.seed,
        };
        let (header, command) = self.log.append(header, command);
        self.state.apply(header, command, &mut self.effects);
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Opened(link, peer, outgoing) => {
                self.opened.insert(link, (peer, outgoing));
            }
            Input::Session(link, stamp, SessionToMaster::Report(report)) => {
                if let Some(origin) = self.connect(link, stamp) {
                    self.submit(Command::SessionUp(origin, report));
                }
            }
            Input::Game(link, stamp, GameToMaster::Report(report)) => {
                if let Some(origin) = self.connect(link, stamp) {
                    self.submit(Command::GameUp(origin, report));
                }
            }
            Input::Session(link, stamp, message) => {
                if let Some(origin) = self.speaker(link) {
                    self.session_says(origin, stamp.n, message);
                }
            }
            Input::Game(link, stamp, message) => {
                if let Some(origin) = self.speaker(link) {
                    self.game_says(origin, stamp.n, message);
                }
            }
            Input::Lost(link, error) => {
                self.opened.remove(&link);
                if let Some(origin) = self.speaker(link) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, server = %origin.server, "the link to a server is lost: it is suspect");
                    if let Some((role, name)) = self.links.remove(&link) {
                        self.connections.remove(&(role, name));
                        self.submit(Command::LinkLost(role, origin));
                    }
                }
                self.links.remove(&link);
            }
        }
    }

    fn session_says(&mut self, origin: Origin, n: u64, message: SessionToMaster) {
        match message {
            SessionToMaster::Load(load) => self.submit(Command::SessionLoad(origin, load)),
            SessionToMaster::Bind(bind) => self.submit(Command::Bind(origin, bind)),
            SessionToMaster::Unbind(unbind) => self.submit(Command::Unbind(origin, n, unbind)),
            SessionToMaster::Ask(ask) => self.client_asks(origin, &ask),
            SessionToMaster::Received(Received { n }) => {
                self.submit(Command::SessionReceived(origin, n));
            }
            SessionToMaster::Seen(seen) => self.submit(Command::Seen(origin, seen)),
            SessionToMaster::Report(_) => {}
            SessionToMaster::Unknown(kind) => {
                tracing::debug!(kind, server = %origin.server, "a message of a newer version");
            }
        }
    }

    fn game_says(&mut self, origin: Origin, n: u64, message: GameToMaster) {
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
            GameToMaster::Report(_) => return,
            GameToMaster::Unknown(kind) => {
                return tracing::debug!(kind, server = %origin.server, "a message of a newer version");
            }
        };
        self.submit(Command::Happened(origin, n, event));
    }

    fn client_asks(&mut self, origin: Origin, ask: &Ask) {
        let Ask { session, id, answered, kind, ref request } = *ask;
        // Decoded before the log: what is in the log can be applied.
        let outcome = match Request::decode(kind, request, Limits::CLIENT) {
            // A read changes nothing: no command. It is held with the batch's effects all the same, so that nobody
            // reads what is not committed.
            // While servers are still saying what they have it waits with others, in the log.
            Ok(Request::Search(search)) if !self.state.is_rejoining() => self.state.search(&search),
            Ok(Request::Rank(rank)) => self.state.rank(&rank, session),
            Ok(request) => {
                return self.submit(Command::Ask { origin, session, id, answered, request });
            }
            Err(error) => Outcome::Refused(error.into()),
        };
        let answer = Answer { session, id, outcome };
        self.effects.push(Effect::ToSession(origin.server, answer.into()));
    }

    /// A server has reported: its link is in use from here on, and any other link of it is not.
    fn connect(&mut self, link: LinkNumber, stamp: StampedHeader) -> Option<Origin> {
        if let Some(origin) = self.speaker(link) {
            return Some(origin);
        }
        let (peer, outgoing) = self.opened.remove(&link)?;
        let Identity { role, name, incarnation, .. } = peer;
        if stamp.epoch > self.epoch {
            tracing::error!(
                server = %name, seen = %stamp.epoch, epoch = %self.epoch,
                "a server has seen a later master than this one: refused; is the clock of this machine behind?"
            );
            outgoing.close();
            return None;
        }
        let place = (role, name.clone());
        if let Some(older) = self.connections.get(&place) {
            if older.incarnation != incarnation && !older.outgoing.is_closing() {
                tracing::error!(
                    server = %name, %role,
                    "two processes call themselves so: the second is refused; give each server a name of its own"
                );
                outgoing.close();
                return None;
            }
            older.outgoing.close();
            self.links.remove(&older.link);
        }
        tracing::info!(server = %name, %role, %incarnation, build = %peer.build, "a server has reported");
        // Its stream goes on after what it has; what it has not is sent again.
        let connection = Connection { link, incarnation, outgoing, sent: 0, acknowledged: 0 };
        self.connections.insert(place.clone(), connection);
        self.links.insert(link, place);
        Some(Origin { server: name, incarnation })
    }

    /// Who speaks on this link, if it has reported and no newer link has taken its place.
    fn speaker(&self, link: LinkNumber) -> Option<Origin> {
        let place = self.links.get(&link)?;
        let connection = self.connections.get(place)?;
        Some(Origin { server: place.1.clone(), incarnation: connection.incarnation })
    }

    fn ask(&mut self, question: Question) {
        match question {
            Question::Status(answer) => {
                // Who asked may have gone: then nobody misses the answer.
                let _gone = answer.send(self.status());
            }
            Question::Find(find, answer) => {
                let _gone = answer.send(self.state.find(&find));
            }
            Question::Placement(kind, answer) => {
                let _gone = answer.send(self.state.explain_placement(&kind));
            }
            Question::Act(action, answer) => {
                self.asked += 1;
                self.operators.insert(self.asked, answer);
                tracing::info!(?action, "an operator acts");
                self.submit(Command::Act { number: self.asked, action });
            }
        }
    }

    fn status(&self) -> Status {
        let master = MasterStatus {
            name: self.name.clone(),
            role: "active".into(),
            incarnation: self.incarnation,
            epoch: ecow::eco_format!("{}", self.epoch),
            lsn: self.state.lsn(),
            lag: 0,
        };
        Status {
            cluster: self.cluster.clone(),
            masters: vec![master],
            sessions: self.state.session_status(),
            games: self.state.game_status(),
            users: self.state.users(),
            instances: self.state.instances(),
        }
    }

    /// How long to wait for what is due next.
    fn until_due(&self) -> Duration {
        let due_ms = self.state.due_ms().unwrap_or(u64::MAX);
        let left = Duration::from_millis(due_ms.saturating_sub(self.clock.now_ms()));
        // Timers count whole milliseconds: not once more for a part of one.
        left.clamp(Duration::from_millis(1), LOOK_INTERVAL)
    }

    fn expire(&mut self) {
        while self.state.due_ms().is_some_and(|due_ms| due_ms <= self.clock.now_ms()) {
            self.submit(Command::Expire);
        }
    }

    /// Lets the batch's effects out: its commands are in the log, which is all that a master alone can ask for.
    fn release(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            self.perform(effect);
        }
        self.effects = effects;
        let Self { connections, state, epoch, scratch, .. } = self;
        for ((role, name), connection) in connections {
            let mut line = Line { outgoing: &connection.outgoing, epoch: *epoch, scratch };
            let received = state.received(*role, name);
            let has_news = received > connection.acknowledged;
            let sent = connection.sent;
            connection.acknowledged = received;
            match role {
                Role::Session => {
                    let stream = state.session_stream(name);
                    let waiting = stream.into_iter().flat_map(|stream| stream.after(sent));
                    for (n, message) in waiting {
                        if line.is_full() {
                            break;
                        }
                        line.session(n, message);
                        connection.sent = n;
                    }
                    if has_news {
                        line.session(0, &MasterToSession::Received(Received { n: received }));
                    }
                }
                Role::Game | Role::Master => {
                    let stream = state.game_stream(name);
                    let waiting = stream.into_iter().flat_map(|stream| stream.after(sent));
                    for (n, message) in waiting {
                        if line.is_full() {
                            break;
                        }
                        line.game(n, message);
                        connection.sent = n;
                    }
                    if has_news {
                        line.game(0, &MasterToGame::Received(Received { n: received }));
                    }
                }
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Welcome(role, server) => {
                let welcome = Welcome { master: self.incarnation };
                let Some(mut line) = self.line(role, server) else { return };
                match role {
                    Role::Session => line.session(0, &MasterToSession::Welcome(welcome)),
                    Role::Game | Role::Master => line.game(0, &MasterToGame::Welcome(welcome)),
                }
            }
            Effect::ToSession(server, message) => {
                if let Some(mut line) = self.line(Role::Session, server) {
                    line.session(0, &message);
                }
            }
            Effect::Acted { number, result } => {
                if let Some(operator) = self.operators.remove(&number) {
                    // Who asked may have gone: then nobody misses the answer.
                    let _gone = operator.send(result);
                }
            }
            Effect::Illegal { role, server, what } => {
                tracing::warn!(%role, %server, %what, "a server said what it may not say: ignored");
            }
        }
    }

    /// The link to a server. Without one, what is no part of a stream is lost, and asked for again by the server.
    fn line(&mut self, role: Role, server: ServerName) -> Option<Line<'_>> {
        let connection = self.connections.get(&(role, server))?;
        Some(Line { outgoing: &connection.outgoing, epoch: self.epoch, scratch: &mut self.scratch })
    }
}

/// Writes messages to one link's buffer. A server that takes nothing until its buffer is full twice loses the link.
struct Line<'a> {
    outgoing: &'a Outgoing,
    epoch: Epoch,
    scratch: &'a mut Vec<u8>,
}

impl Line<'_> {
    fn is_full(&self) -> bool {
        self.outgoing.waiting() >= STREAM_BYTES_MAX
    }
    fn session(&mut self, n: u64, message: &MasterToSession) {
        self.scratch.clear();
        message.encode_into(self.scratch);
        self.push(n, message.kind());
    }
    fn game(&mut self, n: u64, message: &MasterToGame) {
        self.scratch.clear();
        message.encode_into(self.scratch);
        self.push(n, message.kind());
    }
    fn push(&mut self, n: u64, kind: u8) {
        let stamp = StampedHeader { epoch: self.epoch, n }.bytes();
        self.outgoing.push(LinkHeader { kind, target: 0 }, &[&stamp, self.scratch]);
    }
}

/// The log's time in milliseconds since 1970, as the wall clock was at the start: people are shown when an instance was
/// made. From there on it is the monotonic clock, so that it never runs backwards, and a pause of the process counts as
/// [`CLOCK_STEP_MAX`] at most.
#[derive(Debug)]
struct Clock {
    looked: Instant,
    now: Duration,
}

impl Clock {
    fn look(&mut self) {
        let looked = Instant::now();
        self.now += looked.duration_since(self.looked).min(CLOCK_STEP_MAX);
        self.looked = looked;
    }
    fn now_ms(&self) -> u64 {
        u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX)
    }
}
