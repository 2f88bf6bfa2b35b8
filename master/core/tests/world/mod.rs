//! A master's core among servers that do as they are told, for tests to speak through.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test's helpers may fail as a test does, and look for one message among all"
)]

use std::collections::BTreeMap;

use greenroom_master_core::{
    ClusterSecret, Command, Effect, Effects, Event, Frozen, Header, Log, Origin, Record, Settings,
    State,
};
use greenroom_protocol::search::{FieldIndex, FieldInfo, FieldType, Filter};
use greenroom_protocol::wire::admin_master::Action;
use greenroom_protocol::wire::client_session::{
    Create, Destroy, Found, Join, JoinOrCreate, Leave, Meta, Request, Search,
};
use greenroom_protocol::wire::master_game::{
    Closed, CreateInstance, CreateRefused, GameCounts, GameLoad, GameReport, HeldInstance,
    KindInfo, MasterToGame, Running, SeatChanged, SeatState,
};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::{
    Answer, Bind, Bound, EndSession, Granted, HeldSession, MasterToSession, Outcome, SessionReport,
    Unbind,
};
use greenroom_protocol::{
    Code, Epoch, Generation, Incarnation, InstanceId, Key, KindName, Limits, Refusal, RequestId,
    ServerName, SessionId, SessionKey, UserId, decode, encode,
};

pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) log: Log,
    pub(crate) now_ms: u64,
    /// Effects of the last command.
    pub(crate) effects: Effects,
    /// Every effect since the beginning.
    pub(crate) all: Effects,
    incarnations: BTreeMap<String, u64>,
    /// Number of the last check-in.
    checked_in: u64,
    /// How far each server's own stream is, and how far it has read the master's.
    streams: BTreeMap<String, (u64, u64)>,
    /// After every so many commands, of every other 64, the state goes on as what a snapshot of it gives.
    pub(crate) restored_every: u64,
    /// Snapshots that are read while commands go on.
    copies: Vec<Copying>,
}

/// A snapshot that is read while commands go on.
struct Copying {
    frozen: Frozen,
    /// The hash of the state when it was begun.
    hash: u128,
    records: Vec<Record>,
    slice_max: usize,
}

impl Copying {
    fn of(state: &mut State, slice_max: usize) -> Self {
        let hash = state.state_hash();
        Self { frozen: state.freeze(), hash, records: Vec::new(), slice_max }
    }

    /// Reads a slice; after the last, restores what was read. False when it is over.
    fn read(&mut self, state: &mut State) -> bool {
        let slice = state.next_records(&self.frozen, self.slice_max);
        if slice.is_empty() {
            let restored = restored_from(state, self.records.iter());
            assert_eq!(restored.state_hash(), self.hash, "it is the state as it was");
            return false;
        }
        self.records.extend(slice);
        true
    }
}

/// The state that a snapshot gives: what another master has that joins.
pub(crate) fn restored(state: &State) -> State {
    let records: Vec<Record> = state.records().collect();
    let restored = restored_from(state, records.iter());
    assert_eq!(restored.state_hash(), state.state_hash());
    restored
}

fn restored_from<'a>(state: &State, records: impl Iterator<Item = &'a Record>) -> State {
    let bytes: Vec<Vec<u8>> = records.map(encode).collect();
    let records = bytes.iter().map(|bytes| decode::<Record>(bytes, Limits::SERVER).unwrap());
    let restored = State::restore(&secret(), state.settings(), state.placement(), records).unwrap();
    assert_eq!(restored.state_hash(), restored.state_hash_in_full());
    if let Err(contradiction) = restored.audit() {
        panic!("restored after command {}: {contradiction}", state.lsn());
    }
    restored
}

pub(crate) fn secret() -> ClusterSecret {
    ClusterSecret::from_key(b"a test's key")
}

pub(crate) fn kind(name: &str) -> KindName {
    KindName::new(name).unwrap()
}

pub(crate) fn server(name: &str) -> ServerName {
    ServerName::new(name).unwrap()
}

/// A search for every instance of a kind.
pub(crate) fn everything(of: &str) -> Search {
    Search {
        kind: kind(of),
        filter: Default::default(),
        order: None,
        limit: 100,
        cursor: None,
        explain: false,
    }
}

/// A client's request, by what a client would write.
pub(crate) fn create(of: &str, key: Option<&str>) -> Request {
    let key = key.map(|key| Key::new(key).unwrap());
    Create { kind: kind(of), key, params: Default::default(), private: false, expected: Vec::new() }
        .into()
}
pub(crate) fn join(instance: InstanceId) -> Request {
    Join { instance, options: Default::default() }.into()
}
pub(crate) fn join_or_create(of: &str, key: Option<&str>) -> Request {
    let key = key.map(|key| Key::new(key).unwrap());
    JoinOrCreate {
        kind: kind(of),
        key,
        filter: Default::default(),
        params: Default::default(),
        private: false,
        expected: Vec::new(),
        options: Default::default(),
    }
    .into()
}
pub(crate) fn users(numbers: impl IntoIterator<Item = u8>) -> Vec<UserId> {
    numbers.into_iter().map(|number| UserId::new(format!("user {number}")).unwrap()).collect()
}
/// A create of somebody who brings friends.
pub(crate) fn create_for(of: &str, key: Option<&str>, friends: Vec<UserId>) -> Request {
    match create(of, key) {
        Request::Create(create) => Create { expected: friends, ..create }.into(),
        other => other,
    }
}
/// The same, with a seat.
pub(crate) fn join_or_create_for(of: &str, key: Option<&str>, friends: Vec<UserId>) -> Request {
    match join_or_create(of, key) {
        Request::JoinOrCreate(join) => JoinOrCreate { expected: friends, ..join }.into(),
        other => other,
    }
}
/// A seat in an instance that a filter lets through.
pub(crate) fn join_or_create_where(of: &str, key: Option<&str>, filter: &str) -> Request {
    match join_or_create(of, key) {
        Request::JoinOrCreate(join) => {
            JoinOrCreate { filter: Filter::parse(filter).unwrap(), ..join }.into()
        }
        other => other,
    }
}
pub(crate) fn leave(instance: InstanceId) -> Request {
    Leave { instance }.into()
}
pub(crate) fn destroy(instance: InstanceId) -> Request {
    Destroy { instance }.into()
}

pub(crate) fn code(outcome: &Outcome) -> Code {
    match outcome {
        Outcome::Refused(refusal) => refusal.code.clone(),
        other => panic!("not refused: {other:?}"),
    }
}
pub(crate) fn seat(outcome: &Outcome) -> Granted {
    match outcome {
        Outcome::Granted(granted) => granted.clone(),
        other => panic!("no seat: {other:?}"),
    }
}

impl World {
    /// A cluster that never ran before: nobody has to be waited for.
    pub(crate) fn new() -> Self {
        Self::with(Settings { rejoin_grace_ms: 0, ..Settings::default() })
    }
    pub(crate) fn with(settings: Settings) -> Self {
        Self::of(State::new(&secret(), settings))
    }
    pub(crate) fn of(state: State) -> Self {
        Self {
            state,
            log: Log::new(1 << 20),
            now_ms: 1_000,
            effects: Vec::new(),
            all: Vec::new(),
            incarnations: BTreeMap::new(),
            checked_in: 0,
            streams: BTreeMap::new(),
            restored_every: 5,
            copies: Vec::new(),
        }
    }
    /// One session server `s1`, one game server `g1` with room for the kinds `arena` (16 seats), `duel` (2), and `saga`
    /// (4), which is durable.
    pub(crate) fn small() -> Self {
        let mut world = Self::new();
        world.session_up("s1");
        world.game_up("g1");
        world
    }

    pub(crate) fn apply(&mut self, command: Command) -> Effects {
        let header = Header {
            lsn: self.state.lsn() + 1,
            epoch: Epoch { era: 1, epoch: 1 },
            now_ms: self.now_ms,
            seed: 7,
        };
        let (header, command) = self.log.append(header, command);
        let command = command.clone();
        self.effects.clear();
        self.state.apply(header, &command, &mut self.effects);
        self.all.extend(self.effects.iter().cloned());
        let lsn = self.state.lsn();
        assert_eq!(self.state.state_hash(), self.state.state_hash_in_full(), "after {command:?}");
        if lsn.is_multiple_of(5) {
            assert_eq!(self.state.check(), self.state.state_hash_in_full());
        }
        self.copies.retain_mut(|copy| copy.read(&mut self.state));
        if self.copies.len() < 2 && lsn.is_multiple_of(3) {
            let slice_max = 1 + usize::try_from(lsn % 4).unwrap();
            self.copies.push(Copying::of(&mut self.state, slice_max));
        }
        // In turns: a state that lives on while it is copied, and one that is what a copy gave.
        if lsn.is_multiple_of(self.restored_every) && lsn / 64 % 2 == 1 {
            self.go_on_restored();
        }
        if let Err(contradiction) = self.state.audit() {
            panic!("after {command:?}: {contradiction}");
        }
        self.effects.clone()
    }

    /// The state goes on as what a snapshot of it gives.
    pub(crate) fn go_on_restored(&mut self) {
        self.copies.clear();
        self.state = restored(&self.state);
    }

    /// Time passes, and what is due happens.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        while self.state.due_ms().is_some_and(|due| due <= self.now_ms) {
            self.apply(Command::Expire);
        }
    }

    pub(crate) fn origin(&self, name: &str) -> Origin {
        let life = self.incarnations.get(name).copied().unwrap_or(1);
        Origin { server: server(name), incarnation: Incarnation(life) }
    }
    /// The process was started anew: its next words come from another life.
    pub(crate) fn restart(&mut self, name: &str) {
        *self.incarnations.entry(name.to_owned()).or_insert(1) += 1;
        self.streams.remove(name);
    }
    fn next(&mut self, name: &str) -> u64 {
        let stream = self.streams.entry(name.to_owned()).or_default();
        stream.0 += 1;
        stream.0
    }

    pub(crate) fn session_up(&mut self, name: &str) -> Effects {
        let report = SessionReport {
            urls: vec![format!("tcp://{name}:4000").into()],
            build: "test".into(),
            connections_max: 1_000,
            sessions: Vec::new(),
        };
        self.session_report(name, report)
    }
    pub(crate) fn session_report(&mut self, name: &str, report: SessionReport) -> Effects {
        self.apply(Command::SessionUp(self.origin(name), report))
    }
    pub(crate) fn game_report(name: &str, instances_max: u32) -> GameReport {
        let info = |name, seats_max| KindInfo {
            name: kind(name),
            seats_max,
            tick_rate: 20,
            version: 1,
            fields: vec![FieldInfo {
                name: "mode".into(),
                holds: FieldType::Keyword,
                index: FieldIndex::Equal,
            }],
            needs: Vec::new(),
            weight: 1,
            durable: false,
        };
        GameReport {
            address: format!("{name}:4200").into(),
            build: "test".into(),
            kinds: vec![
                info("arena", 16),
                info("duel", 2),
                KindInfo { durable: true, ..info("saga", 4) },
            ],
            capacity: instances_max,
            labels: Vec::new(),
            instances: Vec::new(),
        }
    }
    pub(crate) fn game_up(&mut self, name: &str) -> Effects {
        self.game_reports(name, Self::game_report(name, 1_000))
    }
    pub(crate) fn game_reports(&mut self, name: &str, report: GameReport) -> Effects {
        self.apply(Command::GameUp(self.origin(name), report))
    }
    /// What a game server says of an instance that it runs, with nobody in it.
    pub(crate) fn held(instance: InstanceId, of: &str, key: Option<&str>) -> HeldInstance {
        HeldInstance {
            instance,
            incarnation: Incarnation(9),
            kind: kind(of),
            key: key.map(|key| Key::new(key).unwrap()),
            owner: None,
            created_ms: 500,
            seats: Vec::new(),
            meta: Default::default(),
            open: true,
            private: false,
        }
    }
    /// What a session server says of a session that it has.
    pub(crate) fn held_session(session: SessionId, key: u8, user: &str) -> HeldSession {
        HeldSession {
            session,
            generation: Generation(4),
            user: UserId::new(user).unwrap(),
            session_key: SessionKey([key; 16]),
            name: user.into(),
        }
    }
    pub(crate) fn link_lost(&mut self, role: Role, name: &str) {
        self.apply(Command::LinkLost(role, self.origin(name)));
    }
    pub(crate) fn game_load(&mut self, name: &str, busy_permille: u16) {
        let load = GameLoad {
            instances: 0,
            seats: 0,
            busy_permille,
            draining: false,
            sent: 0,
            counts: GameCounts::default(),
        };
        self.apply(Command::GameLoad(self.origin(name), load));
    }

    pub(crate) fn bind(&mut self, at: &str, key: u8, user: &str) -> Result<Bound, Refusal> {
        self.bind_with(at, [key; 16], user)
    }
    pub(crate) fn bind_with(
        &mut self,
        at: &str,
        key: [u8; 16],
        user: &str,
    ) -> Result<Bound, Refusal> {
        self.checked_in += 1;
        let bind = Bind {
            number: self.checked_in,
            session_key: SessionKey(key),
            user: UserId::new(user).unwrap(),
            name: user.into(),
            trace: None,
        };
        let effects = self.apply(Command::Bind(self.origin(at), bind));
        let answer = effects.into_iter().find_map(|effect| match effect {
            Effect::ToSession(_, MasterToSession::Bound(bound)) => Some(Ok(bound)),
            Effect::ToSession(_, MasterToSession::BindRefused(no)) => Some(Err(no.refusal)),
            _ => None,
        });
        answer.expect("every check-in is answered")
    }
    /// A user checks in at `s1`.
    pub(crate) fn user(&mut self, number: u8) -> SessionId {
        self.bind("s1", number, &format!("user {number}")).unwrap().session
    }
    pub(crate) fn unbind(&mut self, at: &str, bound: &Bound) {
        let n = self.next(at);
        let unbind = Unbind { session: bound.session, generation: bound.generation };
        self.apply(Command::Unbind(self.origin(at), n, unbind));
    }

    /// A request over `s1`; nothing if it is not decided yet.
    pub(crate) fn ask(&mut self, session: SessionId, id: u32, request: Request) -> Option<Outcome> {
        self.ask_at("s1", session, id, 0, request)
    }
    pub(crate) fn ask_at(
        &mut self,
        at: &str,
        session: SessionId,
        id: u32,
        answered: u32,
        request: Request,
    ) -> Option<Outcome> {
        self.apply(Command::Ask {
            origin: self.origin(at),
            session,
            id: RequestId(id),
            answered: RequestId(answered),
            request,
        });
        self.answers().into_iter().find(|answer| answer.id.0 == id).map(|answer| answer.outcome)
    }
    /// What the last command answered to clients.
    pub(crate) fn answers(&self) -> Vec<Answer> {
        let answers = self.effects.iter().filter_map(|effect| match effect {
            Effect::ToSession(_, MasterToSession::Answer(answer)) => Some(answer.clone()),
            _ => None,
        });
        answers.collect()
    }

    /// What a game server is told and has not read yet.
    pub(crate) fn told(&mut self, game: &str) -> Vec<MasterToGame> {
        let stream = self.streams.entry(game.to_owned()).or_default();
        let out = self.state.game_stream(&server(game)).expect("the server has reported");
        let told = out.after(stream.1).map(|(_, message)| message.clone()).collect();
        stream.1 = out.last();
        told
    }
    /// What a session server is told in its stream and has not read yet.
    pub(crate) fn told_to_sessions(&mut self, session_server: &str) -> Vec<MasterToSession> {
        let stream = self.streams.entry(session_server.to_owned()).or_default();
        let out =
            self.state.session_stream(&server(session_server)).expect("the server has reported");
        let told = out.after(stream.1).map(|(_, message)| message.clone()).collect();
        stream.1 = out.last();
        told
    }
    /// What a session server must not miss and has not read yet.
    pub(crate) fn ended(&mut self, session_server: &str) -> Vec<EndSession> {
        let stream = self.streams.entry(session_server.to_owned()).or_default();
        let out =
            self.state.session_stream(&server(session_server)).expect("the server has reported");
        let told = out.after(stream.1).map(|(_, message)| match message {
            MasterToSession::EndSession(end) => end.clone(),
            other => panic!("not of the stream: {other:?}"),
        });
        let told = told.collect();
        stream.1 = out.last();
        told
    }
    /// The instances that a game server is told to make.
    pub(crate) fn makes(&mut self, game: &str) -> Vec<CreateInstance> {
        let told = self.told(game).into_iter().filter_map(|message| match message {
            MasterToGame::Create(create) => Some(create),
            _ => None,
        });
        told.collect()
    }
    pub(crate) fn happened(&mut self, game: &str, event: Event) -> Effects {
        let n = self.next(game);
        self.apply(Command::Happened(self.origin(game), n, event))
    }
    /// The game server makes everything that it is told to; what was answered.
    pub(crate) fn make_all(&mut self, game: &str) -> Vec<Answer> {
        self.make_all_with(game, &Meta::new())
    }
    /// The same, and each says this of itself.
    pub(crate) fn make_all_with(&mut self, game: &str, meta: &Meta) -> Vec<Answer> {
        let mut answers = Vec::new();
        for CreateInstance { instance, incarnation, private, .. } in self.makes(game) {
            let meta = meta.clone();
            let running = Running { instance, incarnation, meta, open: true, private };
            self.happened(game, Event::Running(running));
            answers.extend(self.answers());
        }
        answers
    }
    pub(crate) fn refuse_all(&mut self, game: &str, message: &str) -> Vec<Answer> {
        let mut answers = Vec::new();
        for CreateInstance { instance, incarnation, .. } in self.makes(game) {
            let refusal = Refusal::new(Code::Rejected, message);
            let refused = CreateRefused { instance, incarnation, refusal };
            self.happened(game, Event::CreateRefused(refused));
            answers.extend(self.answers());
        }
        answers
    }
    pub(crate) fn seat_changed(
        &mut self,
        game: &str,
        granted: &Granted,
        session: SessionId,
        to: SeatState,
    ) {
        let change = SeatChanged {
            instance: granted.instance,
            incarnation: granted.incarnation,
            seat: granted.seat,
            session,
            state: to,
        };
        self.happened(game, Event::SeatChanged(change));
    }
    pub(crate) fn closed(
        &mut self,
        game: &str,
        instance: InstanceId,
        incarnation: Incarnation,
        why: Code,
    ) {
        let refusal = Refusal::new(why, "closed by a test");
        self.happened(game, Event::Closed(Closed { instance, incarnation, refusal }));
    }
    /// A user in a new instance of the kind, seated and there.
    pub(crate) fn play(&mut self, user: u8, of: &str, key: Option<&str>) -> (SessionId, Granted) {
        let session = self.user(user);
        let outcome = self.ask(session, 1, join_or_create(of, key));
        let outcome = outcome.or_else(|| self.make_all("g1").pop().map(|answer| answer.outcome));
        let granted = seat(&outcome.expect("the game server has answered"));
        self.seat_changed("g1", &granted, session, SeatState::Taken);
        (session, granted)
    }
    pub(crate) fn list(&self, of: &str) -> Found {
        match self.state.search(&everything(of)) {
            Outcome::Found(found) => found,
            other => panic!("no listing: {other:?}"),
        }
    }
    pub(crate) fn act(&mut self, action: Action) -> Result<(), Refusal> {
        let effects = self.apply(Command::Act { number: 1, action });
        let result = effects.into_iter().find_map(|effect| match effect {
            Effect::Acted { result, .. } => Some(result),
            _ => None,
        });
        result.expect("every action is answered")
    }
}
