//! The state of the master and the one way to change it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use ecow::{EcoString, eco_format};
use greenroom_protocol::search::Filter;
use greenroom_protocol::wire::admin_master::{Action, GameStatus, ServerStatus};
use greenroom_protocol::wire::client_session::{self, Destroyed};
use greenroom_protocol::wire::master_game::{DestroyInstance, FreeSeat, MasterToGame, SeatState};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::{Answer, EndSession, MasterToSession, Outcome};
use greenroom_protocol::{
    Code, Epoch, Incarnation, InstanceId, KindName, Outbound, Refusal, RequestId, Seat, ServerName,
    SessionId, UserId,
};

use crate::boards::Boards;
use crate::changes::{Ledger, RowKey, Rows, Touched, Tracked};
use crate::command::{Command, Effect, Effects, Header, Origin};
use crate::deadlines::{Deadlines, Due, NEVER};
use crate::directory::{At, Directory, Instance, SeatRecord, SeatStage, Stage, Wants};
use crate::documents::{self, Document, Documents};
use crate::facts::{self, Asker, Fact, Facts};
use crate::mint::{ClusterSecret, Mint};
use crate::placement::{Placement, Weighted};
use crate::rejoin::Rejoin;
use crate::search::Packed;
use crate::servers::{GameServer, GameSlot, Health, Servers, SessionServer, SessionSlot};
use crate::users::{Asked, Session, Users};
use crate::watch::Watches;

/// How long a game server runs an instance that has a unique key, or that can be restored, without a word of the active
/// master, in milliseconds: past it the instance freezes, so that nobody ever sees two of it.
pub const LEASE_MS: u64 = 10_000;

/// The default of [`Settings::server_grace_ms`].
const SERVER_GRACE_MS: u64 = 15_000;
// What a suspect server had is given away when the grace is over, so its lease has to be over by then, on its clock.
// The grace begins when its link is lost here, which is after the last word that it can have got; the rest is for
// clocks that don't run alike, and for a word that was read late.
const _: () = assert!(SERVER_GRACE_MS >= LEASE_MS + LEASE_MS / 2);

/// What the core measures by. Part of the state: every master has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a session without a connection keeps its seats, in milliseconds.
    pub session_grace_ms: u64,
    /// How long a reserved seat waits to be taken, in milliseconds.
    pub reservation_ms: u64,
    /// How long a server without a link keeps what it has, in milliseconds. More than [`LEASE_MS`].
    pub server_grace_ms: u64,
    /// How long after the first command a request for what is not known waits, in milliseconds: game servers may be
    /// about to say that they have it. 0 where nothing ran before. In less than [`LEASE_MS`] a game server that reaches
    /// this master too late may still run what it gives to another one; then the older of the two stays.
    pub rejoin_grace_ms: u64,
    /// How long a server that is down is remembered, in milliseconds.
    pub server_memory_ms: u64,
    /// Sessions in all; past it a check-in is refused as `Busy`.
    pub sessions_max: usize,
    /// Seats that one session may hold.
    pub seats_max: usize,
    /// Requests of one session whose answers it has not acknowledged.
    pub requests_max: usize,
    /// Live searches that one session may have.
    pub watches_max: usize,
    /// Messages that one server has not acknowledged; past it nothing new is sent there.
    pub stream_max: usize,
    /// Users on one rank board, at least 1; past it the last one leaves for a better one.
    pub board_members_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            session_grace_ms: 120_000,
            reservation_ms: 15_000,
            server_grace_ms: SERVER_GRACE_MS,
            rejoin_grace_ms: 3_000,
            server_memory_ms: 24 * 3_600_000,
            sessions_max: 2_000_000,
            seats_max: 8,
            requests_max: 8,
            watches_max: 8,
            stream_max: 65_536,
            board_members_max: 1_000_000,
        }
    }
}

/// An instance that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(crate) id: InstanceId,
    pub(crate) code: Code,
}

impl Tracked for Gone {
    type At = u64;
    fn key(n: u64) -> RowKey {
        RowKey::Departed(n)
    }
}

/// Why instances are gone, for as long as somebody may still ask for one.
#[derive(Debug, Default)]
pub(crate) struct Departed {
    /// In the order in which they went, by number.
    gone: Rows<Gone>,
    numbers: BTreeMap<InstanceId, u64>,
}

impl Departed {
    /// Enough for the players of a lost game server to hear what became of their instances.
    const LEN_MAX: usize = 8_192;

    /// The number that is written when this instance goes, and that which is forgotten then, if there is one.
    fn numbers(&self, id: InstanceId) -> (u64, Option<u64>) {
        if let Some(&known) = self.numbers.get(&id) {
            return (known, None);
        }
        let is_full = self.gone.len() >= Self::LEN_MAX;
        let oldest = self.gone.keys().next().filter(|_| is_full);
        (self.gone.last_key_value().map_or(0, |(n, _)| n + 1), oldest.copied())
    }
    /// Writes an instance under this number.
    pub(crate) fn restore(&mut self, touched: &Touched<Gone>, gone: Gone) {
        self.numbers.insert(gone.id, touched.at());
        self.gone.set(touched, gone);
    }
    fn forget(&mut self, touched: &Touched<Gone>) {
        if let Some(gone) = self.gone.remove(touched) {
            self.numbers.remove(&gone.id);
        }
    }
    pub(crate) fn contains(&self, id: InstanceId) -> bool {
        self.numbers.contains_key(&id)
    }
    /// What somebody hears who asks for an instance that is not there.
    pub(crate) fn refusal(&self, id: InstanceId) -> Refusal {
        match self.numbers.get(&id).and_then(|n| self.gone.get(n)) {
            Some(Gone { code, .. }) => {
                Refusal::new(code.clone(), eco_format!("instance {id} is gone: {}", code.meaning()))
            }
            None => Refusal::new(Code::InstanceUnknown, eco_format!("there is no instance {id}")),
        }
    }
    pub(crate) fn get(&self, n: u64) -> Option<&Gone> {
        self.gone.get(&n)
    }
    /// The first number from this one on.
    pub(crate) fn from(&self, n: u64) -> Option<u64> {
        self.gone.range(n..).next().map(|(&n, _)| n)
    }
}

/// What one command may use while it is applied.
pub(crate) struct Step<'a> {
    pub(crate) mint: Mint,
    pub(crate) effects: &'a mut Effects,
}

impl Step<'_> {
    pub(crate) fn illegal(&mut self, role: Role, server: &ServerName, what: impl Into<EcoString>) {
        self.effects.push(Effect::Illegal { role, server: server.clone(), what: what.into() });
    }
}

/// What becomes of a request at once: an outcome, or nothing yet, since an instance has to run or to close first.
pub(crate) type Verdict = Result<Option<Outcome>, Refusal>;

/// Everything that the master knows.
#[derive(Debug)]
pub struct State {
    pub(crate) secret: ClusterSecret,
    pub(crate) settings: Settings,
    pub(crate) epoch: Epoch,
    pub(crate) lsn: u64,
    /// The log's time: what deadlines are measured by.
    pub(crate) now_ms: u64,
    /// How far the time that people are shown is ahead of the log's. It only grows.
    pub(crate) ahead_ms: u64,
    pub(crate) session_servers: Servers<SessionServer>,
    pub(crate) game_servers: Servers<GameServer>,
    pub(crate) users: Users,
    pub(crate) directory: Directory,
    pub(crate) deadlines: Deadlines,
    pub(crate) departed: Departed,
    /// Where a user is expected: index of [`crate::directory::Wishes::expected`].
    pub(crate) expected: BTreeSet<(UserId, KindName, InstanceId)>,
    /// The newest instance that is granted to who wanted any that a filter lets through: index of
    /// [`crate::directory::Wishes::filter`].
    pub(crate) meets: BTreeMap<(KindName, Filter), InstanceId>,
    /// Instances that wait for a game server: index of [`Stage::Stranded`].
    pub(crate) stranded: BTreeSet<(KindName, InstanceId)>,
    pub(crate) rejoin: Rejoin,
    pub(crate) boards: Boards,
    pub(crate) watches: Watches,
    pub(crate) placement: Arc<dyn Placement>,
    /// The list of session servers as it was last told.
    pub(crate) announced: Vec<client_session::SessionServer>,
    /// For operators; it decides nothing and is in no record: what this process has seen.
    pub(crate) twins: u64,
    pub(crate) ledger: Ledger,
    pub(crate) facts: Facts,
    pub(crate) documents: Documents,
    /// A command is being applied; or one was not applied to its end, and then nothing here can be relied on.
    pub(crate) is_torn: bool,
}

impl State {
    /// How much one `Expire` does at most: more is left to the next, so that no command takes long.
    pub const EXPIRED_MAX: usize = 1_000;

    /// A master that knows nobody yet.
    pub fn new(secret: &ClusterSecret, settings: Settings) -> Self {
        Self::with_placement(secret, settings, Arc::new(Weighted))
    }

    /// One that places instances in a way of its own. Every master of a cluster needs the same: see [`Placement`].
    pub fn with_placement(
        secret: &ClusterSecret,
        settings: Settings,
        placement: Arc<dyn Placement>,
    ) -> Self {
        let members_max = NonZeroUsize::new(settings.board_members_max);
        Self {
            secret: secret.clone(),
            settings,
            epoch: Epoch::default(),
            lsn: 0,
            now_ms: 0,
            ahead_ms: 0,
            session_servers: Servers::default(),
            game_servers: Servers::default(),
            users: Users::new(secret),
            directory: Directory::new(secret),
            deadlines: Deadlines::default(),
            departed: Departed::default(),
            expected: BTreeSet::new(),
            meets: BTreeMap::new(),
            stranded: BTreeSet::new(),
            rejoin: Rejoin::default(),
            boards: Boards::new(secret, members_max.unwrap_or(NonZeroUsize::MIN)),
            watches: Watches::default(),
            placement,
            announced: Vec::new(),
            twins: 0,
            ledger: Ledger::new(secret),
            facts: Facts::kept_for(facts::AGE_MS),
            documents: Documents::kept_for(documents::AGE_MS),
            is_torn: false,
        }
    }

    /// Applies one command of the log and appends what the shell must do. Total: any command in any state, and the
    /// same one everywhere. A refusal is an effect too.
    ///
    /// # Panics
    /// When a command before this one panicked in here, which is a bug: who caught that can't go on with half of it.
    pub fn apply(&mut self, header: &Header, command: &Command, effects: &mut Effects) {
        self.assert_whole();
        self.is_torn = true;
        self.lsn = header.lsn;
        // In a new era servers may know of more than this log does.
        self.rejoin.has_begun &= header.epoch.era <= self.epoch.era;
        self.epoch = self.epoch.max(header.epoch);
        self.now_ms = self.now_ms.max(header.now_ms);
        let (now_ms, shown_ms) = (self.now_ms, self.shown_ms());
        self.facts.begin(header.epoch, self.lsn, now_ms, shown_ms);
        self.documents.begin(header.epoch, self.lsn, now_ms, shown_ms);
        // Whose clock it is has nothing to say of what runs: servers have their time from the first that comes.
        if !matches!(command, Command::ClockAt(_)) {
            self.begin_rejoin();
        }
        self.tidy_changes();
        let mut step = Step { mint: Mint::new(&self.secret, header), effects };
        let step = &mut step;
        match command {
            Command::SessionUp(origin, report) => self.session_up(step, origin, report),
            Command::SessionLoad(origin, load) => self.session_load(step, origin, load),
            Command::SessionReceived(origin, n) => {
                if let Some(slot) = self.session_servers.speaker(origin) {
                    self.session_servers.acknowledge(&mut self.ledger, slot, *n);
                }
            }
            Command::Bind(origin, bind) => self.bind(step, origin, bind),
            Command::Unbind(origin, n, unbind) => self.unbound(step, origin, *n, unbind),
            Command::Seen(origin, seen) => self.seen(step, origin, seen),
            Command::Ask { origin, session, id, answered, request } => {
                self.ask(step, origin, *session, *id, *answered, request);
            }
            Command::GameUp(origin, report) => self.game_up(step, origin, report),
            Command::GameLoad(origin, load) => {
                if let Some(slot) = self.game_servers.reporter(origin, self.now_ms, self.ahead_ms) {
                    self.game_servers.get_mut(slot).reports(load);
                    step.effects.push(Effect::Renewed(origin.server.clone(), load.sent));
                    self.restore_stranded();
                }
            }
            Command::GameReceived(origin, n) => {
                if let Some(slot) = self.game_servers.speaker(origin) {
                    self.game_servers.acknowledge(&mut self.ledger, slot, *n);
                }
            }
            Command::Happened(origin, n, event) => self.happened(step, origin, *n, event),
            Command::LinkLost(role, origin) => self.link_lost(*role, origin),
            Command::Died(origin) => self.died(origin),
            Command::Stored(members) => self.take_back(members),
            Command::Expire => self.expire(step),
            Command::Act { number, action } => {
                let result = self.act(action, step);
                step.effects.push(Effect::Acted { number: *number, result });
            }
            Command::ClockAt(wall_ms) => {
                self.ahead_ms = self.ahead_ms.max(wall_ms.saturating_sub(self.now_ms));
            }
        }
        self.watch_changes();
        self.is_torn = false;
    }

    /// The newest of what happened, for the event log.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Who has a session that is not over.
    pub(crate) fn asker(&self, slot: u32) -> Option<Asker> {
        let session = self.users.session(slot);
        let user = self.users.user(session.user()?).id.clone();
        Some(Asker { user, session: session.id })
    }

    /// Stops who would use a state that a panic left half changed.
    pub(crate) fn assert_whole(&self) {
        assert!(
            !self.is_torn,
            "command {} was not applied to its end, which is a bug of this build: this master's state is spoiled. Stop \
             the process; it gets a new state from its disk or from the other master",
            self.lsn
        );
    }

    /// The number of a server's streams, if this life of it is there and was not lost sight of: it may go on with them.
    pub fn streams(&self, role: Role, name: &ServerName, incarnation: Incarnation) -> Option<u64> {
        match role {
            Role::Session => self.session_servers.streams(name, incarnation),
            Role::Game => self.game_servers.streams(name, incarnation),
            Role::Master | Role::Witness => None,
        }
    }

    /// The servers that are there. To a new active they are lost until it has links of them.
    pub fn servers_up(&self) -> Vec<(Role, Origin)> {
        let sessions = self.session_servers.up().map(|origin| (Role::Session, origin));
        sessions.chain(self.game_servers.up().map(|origin| (Role::Game, origin))).collect()
    }

    /// The session servers that take clients, as all session servers were told last.
    pub fn announced(&self) -> client_session::SessionServers {
        client_session::SessionServers { session_servers: self.announced.clone() }
    }

    /// What it measures by.
    pub fn settings(&self) -> Settings {
        self.settings
    }
    /// How it places instances.
    pub fn placement(&self) -> Arc<dyn Placement> {
        Arc::clone(&self.placement)
    }
    /// Number of the last command.
    pub fn lsn(&self) -> u64 {
        self.lsn
    }
    /// The largest epoch of any command.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
    /// The time that people are shown, in milliseconds since 1970: that of the wall clocks of those who decided, and it
    /// never runs backwards. Nothing is due by it.
    pub fn shown_ms(&self) -> u64 {
        self.now_ms.saturating_add(self.ahead_ms)
    }
    /// How far [`State::shown_ms`] is ahead of the headers' time, in milliseconds.
    pub fn ahead_ms(&self) -> u64 {
        self.ahead_ms
    }
    /// When `Expire` has something to do next, in the time of the headers.
    pub fn due_ms(&self) -> Option<u64> {
        self.deadlines.next()
    }
    /// Users that are checked in and connected.
    pub fn users(&self) -> u64 {
        self.users.bound() as u64
    }
    /// Instances that exist, in whatever stage.
    pub fn instances(&self) -> u64 {
        self.directory.len() as u64
    }

    /// What goes to a session server and must not be lost.
    pub fn session_stream(&self, server: &ServerName) -> Option<&Outbound<MasterToSession>> {
        let slot = self.session_servers.named(server)?;
        Some(self.session_servers.get(slot).peer.out())
    }
    /// What goes to a game server and must not be lost.
    pub fn game_stream(&self, server: &ServerName) -> Option<&Outbound<MasterToGame>> {
        let slot = self.game_servers.named(server)?;
        Some(self.game_servers.get(slot).peer.out())
    }
    /// The number up to which a server's own stream has been applied: what to acknowledge.
    pub fn received(&self, role: Role, server: &ServerName) -> u64 {
        let inbound = match role {
            Role::Session => {
                let slot = self.session_servers.named(server);
                slot.map(|slot| self.session_servers.get(slot).peer.inbound)
            }
            Role::Game => {
                let slot = self.game_servers.named(server);
                slot.map(|slot| self.game_servers.get(slot).peer.inbound)
            }
            Role::Master | Role::Witness => None,
        };
        inbound.unwrap_or_default().received()
    }

    /// How often two game servers said that they run one instance, or two instances with one unique key, since this
    /// process began. One of the two was told to stop.
    pub fn twins(&self) -> u64 {
        self.twins
    }
    /// The session servers, for operators.
    pub fn session_status(&self) -> Vec<ServerStatus> {
        let status = |server: &SessionServer| ServerStatus {
            name: server.peer.name.clone(),
            state: server.peer.health.text(server.is_draining()).into(),
            addresses: server.urls.clone(),
            build: server.peer.build.clone(),
            load: server.load.connections,
            capacity: server.connections_max,
            busy_permille: server.load.busy_permille,
            session: Some(server.load.counts),
            game: None,
        };
        self.session_servers.iter().map(|(_, server)| status(server)).collect()
    }
    /// The game servers, for operators.
    pub fn game_status(&self) -> Vec<ServerStatus> {
        let status = |server: &GameServer| ServerStatus {
            name: server.peer.name.clone(),
            state: server.peer.health.text(server.is_draining()).into(),
            addresses: vec![server.address.clone()],
            build: server.peer.build.clone(),
            load: u32::try_from(server.used).unwrap_or(u32::MAX),
            capacity: server.capacity,
            busy_permille: server.load.busy_permille,
            session: None,
            game: Some(GameStatus {
                instances: server.load.instances,
                seats: server.load.seats,
                orphans: server.orphans,
                counts: server.load.counts,
            }),
        };
        self.game_servers.iter().map(|(_, server)| status(server)).collect()
    }

    fn act(&mut self, action: &Action, step: &mut Step<'_>) -> Result<(), Refusal> {
        match action {
            Action::Destroy { instance } => {
                let at = self.directory.find(*instance);
                let at = at.ok_or_else(|| self.departed.refusal(*instance))?;
                let refusal = Refusal::new(Code::Destroyed, "an operator closed the instance");
                self.destroy(step, at, refusal);
                self.facts.push(Fact::DestroyedByOperator(*instance));
                Ok(())
            }
            Action::Drain { server } => self.drain(step, server),
            Action::Kick { user } => {
                let session = self.users.find_user(user).map(|user| user.session);
                let session = session.ok_or_else(|| {
                    Refusal::new(Code::UserUnknown, eco_format!("user {user} is not checked in"))
                })?;
                self.end(
                    step,
                    session,
                    &Refusal::new(Code::Kicked, "an operator ended the session"),
                );
                Ok(())
            }
            Action::Restore(wanted) => self.revive(wanted),
        }
    }

    /// Gives a server nothing new from here on, whatever it says itself, until its process ends.
    fn drain(&mut self, step: &mut Step<'_>, name: &ServerName) -> Result<(), Refusal> {
        if let Some(slot) = self.session_servers.named(name) {
            self.session_servers.get_mut(slot).peer.drained = true;
            self.facts.push(Fact::ServerDraining(Role::Session, name.clone()));
            self.announce(step, None);
        } else if let Some(slot) = self.game_servers.named(name) {
            self.game_servers.get_mut(slot).peer.drained = true;
            self.facts.push(Fact::ServerDraining(Role::Game, name.clone()));
        } else {
            return Err(Refusal::new(
                Code::ServerUnknown,
                eco_format!("there is no server {name}"),
            ));
        }
        Ok(())
    }

    /// What is due happens, oldest deadline first.
    fn expire(&mut self, step: &mut Step<'_>) {
        let mut left = Self::EXPIRED_MAX;
        while left > 0
            && let Some(due) = self.deadlines.due(self.now_ms)
        {
            left -= 1;
            match due {
                Due::Seat(id, seat) => self.reservation_over(id, seat),
                Due::Session(id) => self.session_over(step, id),
                Due::Server(Role::Session, name) => {
                    self.session_server_over(step, &name, &mut left)
                }
                Due::Server(Role::Game | Role::Master | Role::Witness, name) => {
                    self.game_server_over(step, &name, &mut left);
                }
                Due::Rejoined => self.rejoined(step, &mut left),
                // What this command has changed comes first: it may be due by that, or over.
                Due::Watch(_) if self.directory.has_touched() => self.watch_changes(),
                Due::Watch(group) => self.tell(group),
            }
        }
    }

    fn reservation_over(&mut self, id: InstanceId, seat: Seat) {
        let at = self.directory.find(id).expect("a removed instance took its deadlines with it");
        match self.directory.get(at).seat(seat).holder() {
            // Nobody was told of it but who asked for it.
            None => self.set_seat(at, seat, SeatRecord::FREE),
            Some(session) => {
                let text = "the seat was not taken within the time it was reserved";
                self.free_seat(at, seat, session, &Refusal::new(Code::GraceOver, text));
            }
        }
    }

    fn session_over(&mut self, step: &mut Step<'_>, id: SessionId) {
        let slot = self.users.find(id).expect("a removed session took its deadline with it");
        let refusal =
            Refusal::new(Code::SessionExpired, "the session was without a connection for too long");
        self.leave_all(step, slot, &refusal);
        self.ended(slot, &refusal);
        let touched = self.touch(slot);
        let session = self.users.session_mut(&touched);
        self.deadlines.set(&mut session.until_ms, NEVER, Due::Session(id));
        self.users.remove(&touched);
    }

    /// Ends a session for `refusal`, tells its session server, and remembers it for a while.
    pub(crate) fn end(&mut self, step: &mut Step<'_>, slot: u32, refusal: &Refusal) {
        self.leave_all(step, slot, refusal);
        self.ended(slot, refusal);
        let session = self.users.session(slot);
        if let Some(server) = session.binding {
            let told = EndSession {
                session: session.id,
                generation: session.generation,
                refusal: refusal.clone(),
            };
            self.tell_session(server, told.into());
        }
        self.unbind(slot);
        let touched = self.touch(slot);
        self.users.end(&touched, refusal.clone());
    }

    /// Tells of the end of a session, unless that was told before.
    fn ended(&mut self, slot: u32, refusal: &Refusal) {
        if let Some(Asker { user, session }) = self.asker(slot) {
            self.facts.push(Fact::SessionEnded(user, session, refusal.code.clone()));
        }
    }

    /// Takes the connection from a session. It keeps its seats until its time is up.
    pub(crate) fn unbind(&mut self, slot: u32) {
        let touched = self.touch(slot);
        let session = self.users.session_mut(&touched);
        let (id, binding) = (session.id, session.binding);
        let until_ms = self.now_ms.saturating_add(self.settings.session_grace_ms);
        self.deadlines.set(&mut session.until_ms, until_ms, Due::Session(id));
        if let Some(server) = binding {
            self.session_servers.get_mut(server).sessions.remove(&id);
            self.users.bind(&touched, None);
        }
    }

    /// Gives a session its connection.
    pub(crate) fn rebind(&mut self, slot: u32, server: SessionSlot) {
        let touched = self.touch(slot);
        let session = self.users.session_mut(&touched);
        let (id, binding) = (session.id, session.binding);
        self.deadlines.set(&mut session.until_ms, NEVER, Due::Session(id));
        if let Some(before) = binding {
            self.session_servers.get_mut(before).sessions.remove(&id);
        }
        self.session_servers.get_mut(server).sessions.insert(id);
        self.users.bind(&touched, Some(server));
        self.watches_anew(id);
    }

    /// Frees every seat of a session, and ends its live searches.
    fn leave_all(&mut self, _step: &mut Step<'_>, slot: u32, refusal: &Refusal) {
        let session = self.users.session(slot);
        let (id, seats) = (session.id, session.seats.clone());
        for (at, seat) in seats {
            self.free_seat(at, seat, id, refusal);
        }
        self.watches_over(id);
    }

    /// Frees a seat that `session` holds and tells the game server.
    pub(crate) fn free_seat(&mut self, at: At, seat: Seat, session: SessionId, refusal: &Refusal) {
        let instance = self.directory.get(at);
        let (id, incarnation, server) = (instance.id, instance.incarnation, instance.server);
        let (is_running, is_there) = match instance.stage {
            // Nobody was sent to an instance that does not run yet, and what is stranded is not told anything.
            Stage::Granted | Stage::Stranded => (false, false),
            Stage::Running | Stage::Closing | Stage::Restoring => (true, true),
        };
        let is_there =
            is_there && matches!(instance.seat(seat).stage, SeatStage::Taken | SeatStage::Away);
        self.set_seat(at, seat, SeatRecord::FREE);
        if is_there {
            self.edit(at, |instance| instance.vacating_mut().push((seat, session)));
        }
        // A reserved seat may be taken just now.
        if is_running {
            let told =
                FreeSeat { instance: id, incarnation, seat, session, refusal: refusal.clone() };
            self.tell_game(server, told.into());
        }
    }

    /// Writes a seat: its record, its deadline, and its holder's list of seats. The one place where they change.
    pub(crate) fn set_seat(&mut self, at: At, seat: Seat, mut record: SeatRecord) {
        let before = self.directory.get(at).seat(seat);
        let id = self.directory.get(at).id;
        let until_ms = std::mem::replace(&mut record.until_ms, before.until_ms);
        self.deadlines.set(&mut record.until_ms, until_ms, Due::Seat(id, seat));
        let (held, holds) = (before.holder(), record.holder());
        if held != holds {
            self.write_out(at, seat);
            if let Some(slot) = held.and_then(|session| self.users.find(session)) {
                self.session_mut(slot).seats.retain(|held| *held != (at, seat));
            }
            if let Some(slot) = holds.and_then(|session| self.users.find(session)) {
                self.session_mut(slot).seats.push((at, seat));
            }
        }
        if before.stage == SeatStage::Expected && record.stage != SeatStage::Expected {
            let kind = self.directory.kind(at).clone();
            let expected = self.edit(at, |instance| {
                let mut expected = None;
                instance.wish(|wishes| {
                    expected = wishes.expected.extract_if(.., |(there, _)| *there == seat).next();
                });
                expected
            });
            if let Some((_, user)) = expected {
                self.expected.remove(&(user, kind, id));
            }
        }
        if let Some((session, state)) = told_of_seat(before, record) {
            let slot = self.users.find(session);
            let user = slot.and_then(|slot| self.asker(slot)).map(|asker| asker.user);
            self.facts.push(Fact::SeatChanged(id, seat, user, session, state));
        }
        self.edit(at, |instance| instance.seat_set(seat, record));
    }

    /// Keeps a free seat for a user, checked in or not, who is not expected there yet.
    pub(crate) fn expect_user(&mut self, at: At, seat: Seat, user: UserId) {
        let Instance { id, stage, .. } = *self.directory.get(at);
        let until_ms = match stage {
            Stage::Granted | Stage::Stranded | Stage::Restoring => NEVER,
            Stage::Running | Stage::Closing => {
                self.now_ms.saturating_add(self.settings.reservation_ms)
            }
        };
        self.expected.insert((user.clone(), self.directory.kind(at).clone(), id));
        self.edit(at, |instance| {
            instance.wish(|wishes| wishes.expected.push((seat, user)));
        });
        let record = SeatRecord { stage: SeatStage::Expected, until_ms, ..SeatRecord::FREE };
        self.set_seat(at, seat, record);
    }

    /// Nobody meets any more in an instance that was granted to who wanted any: it runs now, or it is gone.
    pub(crate) fn met(&mut self, kind: &KindName, id: InstanceId, filter: Filter) {
        let meet = (kind.clone(), filter);
        if self.meets.get(&meet) == Some(&id) {
            self.meets.remove(&meet);
        }
    }

    /// Tells the game server to close an instance. It is gone when the game server says so.
    pub(crate) fn destroy(&mut self, step: &mut Step<'_>, at: At, refusal: Refusal) {
        match self.directory.get(at).stage {
            Stage::Closing => return,
            Stage::Stranded => {
                self.forget_snapshot(at);
                return self.close(step, at, &refusal);
            }
            Stage::Granted | Stage::Running | Stage::Restoring => {}
        }
        self.edit(at, |instance| instance.stage = Stage::Closing);
        let instance = self.directory.get(at);
        let told =
            DestroyInstance { instance: instance.id, incarnation: instance.incarnation, refusal };
        self.tell_game(instance.server, told.into());
    }

    /// Removes an instance that does not run any more, with its seats, and answers who waits for it.
    pub(crate) fn close(&mut self, step: &mut Step<'_>, at: At, refusal: &Refusal) {
        let Instance { id, server, weight, created_ms, .. } = *self.directory.get(at);
        let kind = self.directory.kind(at).clone();
        match self.directory.get(at).stage {
            Stage::Stranded | Stage::Restoring => self.tell_seats_lost(at, refusal),
            Stage::Granted | Stage::Running | Stage::Closing => {}
        }
        self.stranded.remove(&(kind.clone(), id));
        let lived_ms = self.shown_ms().saturating_sub(created_ms);
        self.facts.push(Fact::Closed(id, kind.clone(), refusal.code.clone(), lived_ms));
        let held: Vec<Seat> = (self.directory.get(at).seats())
            .filter(|(_, seat)| !seat.is_free())
            .map(|(n, _)| n)
            .collect();
        for seat in held {
            self.set_seat(at, seat, SeatRecord::FREE);
        }
        if self.directory.get(at).is_kept() {
            self.documents.push(Document::Over(id));
        }
        let touched = self.touch(at);
        let instance = self.directory.remove(&touched);
        self.game_servers.get_mut(server).take(id, weight);
        if let Some(filter) = instance.wishes().filter.clone() {
            self.met(&kind, id, filter);
        }
        self.depart(Gone { id, code: refusal.code.clone() });
        for waiter in instance.waiters() {
            let outcome = match waiter.wants {
                Wants::Destroyed => Outcome::Destroyed(Destroyed { instance: id }),
                Wants::Created | Wants::Seat(_) => Outcome::Refused(refusal.clone()),
            };
            self.resolve(step, waiter.session, waiter.id, outcome);
        }
    }

    /// Writes down that an instance is gone.
    fn depart(&mut self, gone: Gone) {
        let (n, oldest) = self.departed.numbers(gone.id);
        let touched = self.touch(n);
        self.departed.restore(&touched, gone);
        if let Some(oldest) = oldest {
            let touched = self.touch(oldest);
            self.departed.forget(&touched);
        }
    }

    /// A session to change; its id, key, life and binding have their own functions.
    pub(crate) fn session_mut(&mut self, slot: u32) -> &mut Session {
        let touched = self.touch(slot);
        self.users.session_mut(&touched)
    }

    /// Changes an instance and, where the change shows there, the indexes. Its id, key and time of creation stay.
    pub(crate) fn edit<R>(&mut self, at: At, change: impl FnOnce(&mut Instance) -> R) -> R {
        self.edit_meta(at, None, change)
    }

    /// Changes an instance and, if there is something new, what the game says of it.
    pub(crate) fn edit_meta<R>(
        &mut self,
        at: At,
        meta: Option<Packed>,
        change: impl FnOnce(&mut Instance) -> R,
    ) -> R {
        let (noted, says_more) = (self.noted(at), meta.is_some());
        let touched = self.touch(at);
        let result = self.directory.edit(&touched, meta, change);
        if noted.is_some() && (says_more || noted != self.noted(at)) {
            self.keep(at);
        }
        result
    }

    /// Tells a session server what must not be lost.
    pub(crate) fn tell_session(&mut self, server: SessionSlot, message: MasterToSession) {
        self.session_servers.tell(&mut self.ledger, server, message);
    }

    /// Tells a game server what must not be lost.
    pub(crate) fn tell_game(&mut self, server: GameSlot, message: MasterToGame) {
        self.game_servers.tell(&mut self.ledger, server, message);
    }

    /// Answers a request that waited, at the session server that has the session now. If none has, the answer waits
    /// to be asked for again.
    pub(crate) fn resolve(
        &mut self,
        step: &mut Step<'_>,
        session: SessionId,
        id: RequestId,
        outcome: Outcome,
    ) {
        let Some(slot) = self.users.find(session) else { return };
        if !self.decided(slot, id, &outcome) {
            return;
        }
        if let Some(server) = self.users.session(slot).binding {
            let server = self.session_servers.get(server).peer.name.clone();
            let answer = Answer { session, id, outcome };
            step.effects.push(Effect::ToSession(server, answer.into()));
        }
    }

    /// Tells every session server the list of session servers, if it has changed; in any case `also`.
    pub(crate) fn announce(&mut self, step: &mut Step<'_>, also: Option<&ServerName>) {
        let session_servers = self.session_servers.open();
        let has_changed = session_servers != self.announced;
        if has_changed {
            self.announced = session_servers;
        }
        for (_, server) in self.session_servers.iter() {
            let name = &server.peer.name;
            if server.peer.health == Health::Up && (has_changed || also == Some(name)) {
                let list =
                    client_session::SessionServers { session_servers: self.announced.clone() };
                step.effects
                    .push(Effect::ToSession(name.clone(), MasterToSession::SessionServers(list)));
            }
        }
    }

    /// Walks everything and says what contradicts itself, if anything does. For tests and simulations.
    ///
    /// # Errors
    /// The first contradiction, in words.
    pub fn audit(&self) -> Result<(), String> {
        self.users.audit()?;
        self.directory.audit()?;
        let mut deadlines = 0;
        let (mut seats, mut placed, mut expected, mut meets) = (0, 0, 0, 0);
        let mut stranded = 0;
        let mut used = BTreeMap::<&ServerName, u64>::new();
        for (at, kind, instance) in self.directory.iter() {
            let id = instance.id;
            placed += 1;
            let name = &self.game_servers.get(instance.server).peer.name;
            *used.entry(name).or_default() += u64::from(instance.weight);
            if instance.stage == Stage::Stranded {
                stranded += 1;
                if !self.stranded.contains(&(kind.clone(), id)) {
                    return Err(format!(
                        "instance {id} is stranded, and nobody looks for a server"
                    ));
                }
            }
            if matches!(instance.stage, Stage::Stranded | Stage::Restoring) && !instance.durable() {
                return Err(format!("instance {id} is to be restored from nothing"));
            }
            let is_kept = |user: &UserId| self.expected.contains(&(user.clone(), kind.clone(), id));
            if !instance.expected().iter().all(|(seat, user)| {
                instance.seat(*seat).stage == SeatStage::Expected && is_kept(user)
            }) {
                return Err(format!("instance {id} expects somebody whom nothing is kept for"));
            }
            let filter = instance.wishes().filter.clone();
            if let Some(filter) = filter {
                meets += usize::from(self.meets.get(&(kind.clone(), filter)) == Some(&id));
                if instance.stage == Stage::Running {
                    return Err(format!("instance {id} runs and is still wished for"));
                }
            }
            if !self.game_servers.get(instance.server).instances.contains(&id) {
                return Err(format!("instance {id} is not on its server's list"));
            }
            for (number, seat) in instance.seats() {
                let is_due = seat.until_ms != NEVER;
                deadlines += usize::from(is_due);
                let may_be_due = matches!(seat.stage, SeatStage::Reserved | SeatStage::Expected)
                    && matches!(instance.stage, Stage::Running | Stage::Closing);
                if is_due && !self.deadlines.contains(seat.until_ms, Due::Seat(id, number)) {
                    return Err(format!("seat {number} of {id} has a deadline that is not kept"));
                }
                if is_due && !may_be_due {
                    return Err(format!("seat {number} of {id} has a deadline in vain"));
                }
                expected += usize::from(seat.stage == SeatStage::Expected);
                let Some(session) = seat.holder() else { continue };
                seats += 1;
                let holder = self.users.find(session).map(|slot| self.users.session(slot));
                if holder.is_none_or(|holder| !holder.seats.contains(&(at, number))) {
                    return Err(format!("seat {number} of {id} is not on its holder's list"));
                }
            }
            if self.directory.find(id) != Some(at) {
                return Err(format!("instance {id} is not found"));
            }
        }
        let mut bound = 0;
        for (_, session) in self.users.iter() {
            let is_due = session.until_ms != NEVER;
            deadlines += usize::from(is_due);
            seats -= session.seats.len().min(seats);
            if is_due && !self.deadlines.contains(session.until_ms, Due::Session(session.id)) {
                return Err(format!("session {} has a deadline that is not kept", session.id));
            }
            if session.seats.len() > self.settings.seats_max {
                return Err(format!("session {} has too many seats", session.id));
            }
            for asked in session.requests.iter() {
                if let Asked::Granted(_, at, seat) = asked
                    && !session.seats.contains(&(*at, *seat))
                {
                    return Err(format!("session {} was told of a seat it lost", session.id));
                }
            }
            if let Some(server) = session.binding {
                bound += 1;
                if !self.session_servers.get(server).sessions.contains(&session.id) {
                    return Err(format!("session {} is not on its server's list", session.id));
                }
            }
        }
        let mut server = |role, name: &ServerName, health, until_ms| {
            deadlines += usize::from(until_ms != NEVER);
            let is_kept = (health == Health::Up) == (until_ms == NEVER)
                && (until_ms == NEVER
                    || self.deadlines.contains(until_ms, Due::Server(role, name.clone())));
            if is_kept { Ok(()) } else { Err(format!("server {name} has a wrong deadline")) }
        };
        for (_, SessionServer { peer, sessions, .. }) in self.session_servers.iter() {
            server(Role::Session, &peer.name, peer.health, peer.until_ms)?;
            bound -= sessions.len().min(bound);
        }
        for (_, GameServer { peer, instances, used: in_use, .. }) in self.game_servers.iter() {
            server(Role::Game, &peer.name, peer.health, peer.until_ms)?;
            if used.get(&peer.name).copied().unwrap_or_default() != *in_use {
                return Err(format!(
                    "server {} counts the weight of its instances wrong",
                    peer.name
                ));
            }
            placed -= instances.len().min(placed);
        }
        if stranded != self.stranded.len() {
            return Err("instances wait for a server that are not stranded".into());
        }
        if expected != self.expected.len() || meets != self.meets.len() {
            return Err("users are expected, or meet, where nothing says so".into());
        }
        deadlines += self.audit_rejoin()?;
        deadlines += self.audit_watches()?;
        self.boards.audit()?;
        let left = [seats, bound, placed, deadlines - self.deadlines.len().min(deadlines)];
        if left == [0; 4] && deadlines == self.deadlines.len() {
            Ok(())
        } else {
            Err(format!("lists disagree about seats, bindings, instances or deadlines: {left:?}"))
        }
    }

    pub(crate) fn session_server_name(&self, slot: SessionSlot) -> &ServerName {
        &self.session_servers.get(slot).peer.name
    }
}

/// A refusal that servers wrote, cut to a length that can be kept for every request.
/// What is told of a change of a seat: that somebody is in it, is away from it, or is out of it.
fn told_of_seat(before: SeatRecord, after: SeatRecord) -> Option<(SessionId, SeatState)> {
    let is_in = |record: SeatRecord| match record.stage {
        SeatStage::Taken => Some((record.session, SeatState::Taken)),
        SeatStage::Away => Some((record.session, SeatState::Away)),
        SeatStage::Free | SeatStage::Expected | SeatStage::Reserved => None,
    };
    match (is_in(before), is_in(after)) {
        (before, Some(after)) if before != Some(after) => Some(after),
        (Some((session, _)), None) => Some((session, SeatState::Free)),
        _ => None,
    }
}

pub(crate) fn bounded(refusal: &Refusal) -> Refusal {
    const BYTES_MAX: usize = 512;
    let mut refusal = refusal.clone();
    if refusal.message.len() > BYTES_MAX {
        let end = (0..=BYTES_MAX).rev().find(|&end| refusal.message.is_char_boundary(end));
        refusal.message = EcoString::from(&refusal.message[..end.unwrap_or(0)]);
    }
    refusal
}
