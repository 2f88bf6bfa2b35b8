//! What happens in the golden log: a cluster starts again with games that still run, and has an evening on which
//! everything happens that can. Which of it is next is drawn by a generator with a fixed seed.

use greenroom_master_core::{Command, Effect, Event, RankedMember};
use greenroom_protocol::search::{FieldIndex, FieldInfo, FieldType, Filter};
use greenroom_protocol::wire::admin_master::{Action, RestoreInstance};
use greenroom_protocol::wire::client_session::{
    Changes, Create, JoinOrCreate, Meta, MetaValue, Rank, RankPart, Request, Unwatch, Watch,
};
use greenroom_protocol::wire::master_game::{
    Closed, CreateRefused, GameCounts, GameLoad, GameReport, HandedOver, HeldSeat, MasterToGame,
    MetaChanged, Running, Scored, SeatChanged, SeatState,
};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::{
    Bind, Bound, Granted, MasterToSession, Outcome, Seen, SessionCounts, SessionLoad, SessionReport,
};
use greenroom_protocol::{
    Code, Incarnation, InstanceId, Key, Limits, Refusal, RequestId, Seat, SessionId, SessionKey,
    UserId, decode,
};

use crate::format::{self, Entry};
use crate::world::{World, destroy, everything, join, kind, leave, server};

/// Commands of the evening.
const COMMANDS: u64 = 1_070;

const SESSION_SERVERS: [&str; 2] = ["s1", "s2"];
const GAMES: [&str; 3] = ["g1", "g2", "g3"];
const MODES: [&str; 3] = ["ranked", "casual", "coop"];
const USERS: u64 = 40;

/// A client.
struct Client {
    at: &'static str,
    bound: Bound,
    /// The number of its last request, and the last one that it had an answer to.
    asked: u32,
    answered: u32,
}

/// An instance that a game server runs.
#[derive(Clone, Copy)]
struct Runs {
    on: &'static str,
    instance: InstanceId,
    incarnation: Incarnation,
}

struct Script {
    world: World,
    random: u64,
    /// By the user's number.
    clients: Vec<Option<Client>>,
    runs: Vec<Runs>,
    /// Seats that clients were granted.
    granted: Vec<(SessionId, Granted)>,
    /// Live searches of clients.
    watching: Vec<(SessionId, RequestId)>,
    /// Later declarations have other fields.
    declared: u64,
}

/// The golden log.
pub(crate) fn evening() -> Vec<Entry> {
    let mut script = Script {
        world: World::of(format::state()),
        random: 2_026,
        clients: (0..USERS).map(|_| None).collect(),
        runs: Vec::new(),
        granted: Vec::new(),
        watching: Vec::new(),
        declared: 0,
    };
    script.start_again();
    while script.world.state.lsn() < COMMANDS {
        script.step();
    }
    script.end();
    script.world.log.entries().cloned().collect()
}

fn user(number: u64) -> UserId {
    UserId::new(format!("user {number}")).expect("it is short")
}

impl Script {
    /// A number below `end`, by Steele, Lea and Flood's SplitMix64.
    fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.random;
        bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (bits ^ bits >> 31) % end
    }
    /// Once in `times`.
    fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
    fn index(&mut self, len: usize) -> Option<usize> {
        let end = u64::try_from(len).ok().filter(|&end| end > 0)?;
        usize::try_from(self.below(end)).ok()
    }
    fn one_of<T: Copy>(&mut self, these: &[T]) -> Option<T> {
        let index = self.index(these.len())?;
        Some(these[index])
    }
    fn session_server(&mut self) -> &'static str {
        self.one_of(&SESSION_SERVERS).expect("there are some")
    }
    fn game(&mut self) -> &'static str {
        self.one_of(&GAMES).expect("there are some")
    }

    fn apply(&mut self, command: Command) {
        self.world.apply(command);
        self.hear();
    }
    fn happened(&mut self, on: &str, event: Event) {
        if self.world.state.game_stream(&server(on)).is_some() {
            self.world.happened(on, event);
            self.hear();
        }
    }

    /// Clients hear what the last command answered them.
    fn hear(&mut self) {
        for effect in &self.world.effects {
            if let Effect::ToSession(_, MasterToSession::Answer(answer)) = effect {
                let client =
                    self.clients.iter_mut().flatten().find(|at| at.bound.session == answer.session);
                if let Some(client) = client {
                    client.answered = client.answered.max(answer.id.0);
                }
                if let Outcome::Granted(granted) = &answer.outcome {
                    self.granted.push((answer.session, granted.clone()));
                }
                if matches!(answer.outcome, Outcome::Watching(_)) {
                    self.watching.push((answer.session, answer.id));
                }
            }
        }
    }

    /// The cluster's memory is gone, and servers say one by one what they have.
    fn start_again(&mut self) {
        let held = World::held_session(SessionId(71), 201, "user 1");
        self.world.session_report(
            "s1",
            SessionReport {
                urls: vec!["tcp://s1:4000".into()],
                build: "golden".into(),
                connections_max: 100,
                sessions: vec![held, World::held_session(SessionId(72), 202, "user 2")],
            },
        );
        self.check_in(3, "s1");
        // For a key that nobody has said yet, one that will be said, and an instance that will be.
        let castle = self.join_or_create("arena", Some("castle"));
        self.ask(3, castle);
        let tower = self.join_or_create("duel", Some("tower"));
        self.ask(3, tower);
        self.ask(3, join(InstanceId(81)));
        self.world.pass(500);
        let mut castle = World::held(InstanceId(80), "arena", Some("castle"));
        castle.owner = Some(user(1));
        castle.seats = [(0, 71), (1, 99)].map(|(seat, session)| seated(seat, session)).into();
        let mut duel = World::held(InstanceId(81), "duel", None);
        duel.seats = vec![seated(0, 72)];
        let mut report = self.report("g1");
        report.instances = vec![castle, duel];
        self.world.game_reports("g1", report);
        self.hear();
        for instance in [80, 81].map(InstanceId) {
            self.runs.push(Runs { on: "g1", instance, incarnation: Incarnation(9) });
        }
        // The younger of two instances with one key goes, and one that two servers claim stays where it was.
        let mut twin = World::held(InstanceId(82), "arena", Some("castle"));
        twin.created_ms = 900;
        let mut report = self.report("g2");
        report.instances = vec![twin, World::held(InstanceId(81), "duel", None)];
        self.world.game_reports("g2", report);
        self.world.pass(5_000);
        self.hear();
        self.obey("g1");
        self.up("s2");
        // Only its game server told of the session of user 99's seat.
        self.check_in(1, "s2");
    }

    /// Something happens.
    fn step(&mut self) {
        let wait = self.below(400);
        self.world.now_ms += wait;
        match self.below(100) {
            0..14 => {
                let (number, at) = (self.below(USERS), self.session_server());
                self.check_in(number, at);
            }
            14..17 => self.disconnect(),
            17..46 => {
                let number = self.below(USERS);
                let request = self.request(number);
                self.ask(number, request);
            }
            46..49 => self.ask_again(),
            49..66 => {
                let game = self.game();
                self.obey(game);
            }
            66..78 => self.sit_down(),
            78..83 => self.say(),
            83..88 => self.score(),
            88..92 => self.live_searches(),
            92..94 => self.loads(),
            94..96 => {
                let ms = self.below(9_000);
                self.world.pass(ms);
                self.hear();
            }
            96..98 => self.close(),
            98 => self.lose(),
            _ => self.operator(),
        }
    }

    /// What has to be in the log once, however the evening went: a game server moves, one starts anew with what it
    /// ran, one is lost for good, and a session server, too.
    fn end(&mut self) {
        for name in SESSION_SERVERS {
            self.up(name);
        }
        for name in GAMES {
            self.up(name);
            self.obey(name);
        }
        for number in 0..8 {
            self.check_in(number, "s1");
            let request = self.join_or_create("arena", None);
            self.ask(number, request);
        }
        for name in GAMES {
            self.obey(name);
        }
        for _ in 0..6 {
            self.sit_down();
        }
        self.ask(6, Watch { kind: kind("arena"), filter: Filter::default() }.into());
        let watch = self.watching.last().map_or(RequestId(1), |(_, watch)| *watch);
        self.ask(6, Unwatch { watch }.into());
        self.ask(6, everything("arena").into());
        self.ask(6, Rank { board: "week".into(), part: RankPart::From(1), limit: 5 }.into());
        let own = self.granted.last().map_or(InstanceId(7), |(_, granted)| granted.instance);
        self.ask(6, destroy(own));
        self.ask(6, Request::Unknown(0x7b));
        let mut report = self.report("g1");
        report.address = "elsewhere:4200".into();
        self.world.game_reports("g1", report);
        self.ask_again();
        self.world.link_lost(Role::Game, "g2");
        self.world.link_lost(Role::Session, "s2");
        self.world.link_lost(Role::Master, "m2");
        self.world.pass(16_000);
        self.ask_again();
        self.world.game_up("g2");
        self.apply(Command::Act { number: 9, action: Action::Drain { server: server("s1") } });
        self.apply(Command::Act { number: 10, action: Action::Kick { user: user(5) } });
        self.apply(Command::Act { number: 11, action: Action::Kick { user: user(777) } });
        let member = |board: &str, number: u64, score, since| RankedMember {
            board: board.into(),
            user: user(number),
            name: format!("name {number}").into(),
            score,
            since,
        };
        self.apply(Command::Stored(vec![
            member("week", 1, 900, 3),
            member("week", 500, 900, 3),
            member("yesteryear", 501, -7, 40),
            member("", 502, 1, 1),
        ]));
        self.world.pass(70_000);
        // Everything was off for a night; a wall clock that is slower changes nothing then.
        self.world.now_ms += 1_000;
        let morning = self.world.now_ms + 8 * 3_600_000;
        self.apply(Command::ClockAt(morning));
        self.apply(Command::ClockAt(morning - 5_000));
        for name in GAMES {
            self.up(name);
        }
        self.check_in(17, "s1");
        let request = self.join_or_create("arena", None);
        self.ask(17, request);
        for name in GAMES {
            self.obey(name);
        }
        for (number, id) in [(12, 77), (13, 77), (14, 78)] {
            let restore = RestoreInstance {
                instance: InstanceId(id),
                incarnation: Incarnation(5),
                kind: kind("saga"),
                owner: Some(user(5)),
                key: Some(Key::new("restored").expect("a name")),
                created_ms: 1_000,
                private: true,
            };
            self.apply(Command::Act { number, action: Action::Restore(Box::new(restore)) });
        }
        for name in GAMES {
            self.obey(name);
        }
        self.world.pass(16_000);
    }

    fn check_in(&mut self, number: u64, at: &'static str) {
        if self.world.state.session_stream(&server(at)).is_none() {
            return;
        }
        // Most come back with the key of their session; some have lost it.
        let key = u8::try_from(number).expect("there are few users");
        let key = if self.once_in(6) { key + 100 } else { key };
        // One of a server that nobody listens to is not answered.
        let bind = Bind {
            number: self.world.state.lsn(),
            session_key: SessionKey([key; 16]),
            user: user(number),
            name: format!("name {}", self.below(60)).into(),
            trace: None,
        };
        let effects = self.world.apply(Command::Bind(self.world.origin(at), bind));
        let bound = effects.into_iter().find_map(|effect| match effect {
            Effect::ToSession(_, MasterToSession::Bound(bound)) => Some(bound),
            Effect::ToSession(..)
            | Effect::Welcome(..)
            | Effect::Renewed(..)
            | Effect::Acted { .. }
            | Effect::Illegal { .. } => None,
        });
        let index = usize::from(key % 100);
        if let (Some(bound), Some(place)) = (bound, self.clients.get_mut(index)) {
            let known = place.take().filter(|known| known.bound.session == bound.session);
            let (asked, answered) = known.map_or((0, 0), |known| (known.asked, known.answered));
            *place = Some(Client { at, bound, asked, answered });
        }
    }

    fn disconnect(&mut self) {
        let number = self.index(self.clients.len());
        if let Some(Some(client)) = number.map(|number| &self.clients[number]) {
            let (at, bound) = (client.at, client.bound.clone());
            self.world.unbind(at, &bound);
        }
    }

    fn ask(&mut self, number: u64, request: Request) {
        let number = usize::try_from(number).expect("there are few users");
        let is_lazy = self.once_in(8);
        let Some(Some(client)) = self.clients.get_mut(number) else { return };
        client.asked += 1;
        // Some say late what they have.
        let answered = if is_lazy { client.answered.saturating_sub(2) } else { client.answered };
        let (at, session, id) = (client.at, client.bound.session, client.asked);
        self.ask_as(at, session, id, answered, request);
    }
    fn ask_as(&mut self, at: &str, session: SessionId, id: u32, answered: u32, request: Request) {
        self.apply(Command::Ask {
            origin: self.world.origin(at),
            session,
            id: RequestId(id),
            answered: RequestId(answered),
            request,
        });
    }
    /// Clients ask their last question again, or one from long ago.
    fn ask_again(&mut self) {
        for number in 0..self.clients.len() {
            let is_old = self.once_in(5);
            if self.once_in(10)
                && let Some(client) = &self.clients[number]
            {
                let (at, session, asked) = (client.at, client.bound.session, client.asked);
                let id = if is_old { asked / 2 } else { asked };
                self.ask_as(at, session, id, 0, Request::Unknown(1));
            }
        }
    }

    fn filter(&mut self) -> Filter {
        let mode = self.one_of(&MODES).expect("there are some");
        let text = match self.below(8) {
            0 => format!("mode = \"{mode}\""),
            1 => format!("mode != \"{mode}\""),
            2 => "mode in (\"ranked\", \"coop\") and seats_free >= 1".to_owned(),
            3 => "level between 2 and 6".to_owned(),
            4 => "level > 3 or not mode = \"coop\"".to_owned(),
            5 if self.once_in(4) => "moon = 1".to_owned(),
            _ => return Filter::default(),
        };
        Filter::parse(&text).expect("it is a filter")
    }
    fn key(&mut self) -> Option<&'static str> {
        if self.once_in(3) { self.one_of(&["x", "y", "castle"]) } else { None }
    }
    fn kind(&mut self) -> &'static str {
        self.one_of(&["arena", "arena", "duel", "duel", "saga", "saga", "chess"])
            .expect("there are some")
    }
    fn friends(&mut self) -> Vec<UserId> {
        if !self.once_in(5) {
            return Vec::new();
        }
        (0..=self.below(3)).map(|_| user(self.below(USERS))).collect()
    }
    fn join_or_create(&mut self, of: &str, key: Option<&str>) -> Request {
        JoinOrCreate {
            kind: kind(of),
            key: key.map(|key| Key::new(key).expect("it is short")),
            filter: self.filter(),
            params: Default::default(),
            private: self.once_in(9),
            expected: self.friends(),
            options: Default::default(),
        }
        .into()
    }
    /// Where a client has, or had, a seat.
    fn own_instance(&mut self, session: SessionId) -> Option<InstanceId> {
        let own = self.granted.iter().filter(|(granted_to, _)| *granted_to == session);
        let own: Vec<InstanceId> = own.map(|(_, granted)| granted.instance).collect();
        self.one_of(&own)
    }
    fn request(&mut self, number: u64) -> Request {
        let number = usize::try_from(number).expect("there are few users");
        let client = self.clients[number].as_ref();
        let session = client.map_or(SessionId(0), |client| client.bound.session);
        let kind_name = self.kind();
        let there = self.one_of(&self.runs.clone()).map_or(InstanceId(5), |runs| runs.instance);
        match self.below(41) {
            0..14 => {
                let key = self.key();
                self.join_or_create(kind_name, key)
            }
            14..19 => {
                let (key, private, expected) = (self.key(), self.once_in(6), self.friends());
                let key = key.map(|key| Key::new(key).expect("it is short"));
                let (kind, params) = (kind(kind_name), Default::default());
                Create { kind, key, params, private, expected }.into()
            }
            19..25 => join(there),
            25..32 => leave(self.own_instance(session).unwrap_or(there)),
            32..34 => destroy(self.own_instance(session).unwrap_or(there)),
            34..37 => Watch { kind: kind("arena"), filter: self.filter() }.into(),
            37 => {
                let own = self.watching.iter().rfind(|(of, _)| *of == session);
                Unwatch { watch: own.map_or(RequestId(3), |(_, watch)| *watch) }.into()
            }
            38 => {
                let mut search = everything("arena");
                (search.filter, search.limit) = (self.filter(), 3);
                search.into()
            }
            39 => {
                let part = RankPart::Around(None);
                Rank { board: "week".into(), part, limit: 3 }.into()
            }
            _ => Request::Unknown(0x7a),
        }
    }

    /// A game server does what it is told, mostly.
    fn obey(&mut self, on: &'static str) {
        if self.world.state.game_stream(&server(on)).is_none() {
            return;
        }
        for message in self.world.told(on) {
            match message {
                MasterToGame::Create(create) => {
                    let (instance, incarnation) = (create.instance, create.incarnation);
                    let event = if self.once_in(10) {
                        let codes = [Code::Rejected, Code::NoCapacity];
                        let code = self.one_of_codes(&codes);
                        let refusal = Refusal::new(code, "not tonight");
                        Event::CreateRefused(CreateRefused { instance, incarnation, refusal })
                    } else {
                        self.runs.push(Runs { on, instance, incarnation });
                        let (meta, open) = (self.meta(), !self.once_in(12));
                        let private = create.private;
                        Event::Running(Running { instance, incarnation, meta, open, private })
                    };
                    self.happened(on, event);
                }
                MasterToGame::FreeSeat(free) => {
                    let change = SeatChanged {
                        instance: free.instance,
                        incarnation: free.incarnation,
                        seat: free.seat,
                        session: free.session,
                        state: SeatState::Free,
                    };
                    self.happened(on, Event::SeatChanged(change));
                }
                MasterToGame::Destroy(destroy) => {
                    self.runs.retain(|runs| runs.instance != destroy.instance);
                    let (instance, incarnation) = (destroy.instance, destroy.incarnation);
                    let refusal = destroy.refusal;
                    self.happened(on, Event::Closed(Closed { instance, incarnation, refusal }));
                }
                MasterToGame::Received(_)
                | MasterToGame::Welcome(_)
                | MasterToGame::NewEpoch(_)
                | MasterToGame::Renewed(_)
                | MasterToGame::Measure(_)
                | MasterToGame::Traced(_)
                | MasterToGame::Unknown(_) => {}
            }
        }
        if self.once_in(3) {
            let last = self.world.state.game_stream(&server(on)).map_or(0, |out| out.last());
            self.apply(Command::GameReceived(self.world.origin(on), last));
        }
    }
    fn one_of_codes(&mut self, codes: &[Code]) -> Code {
        let index = self.index(codes.len()).expect("there are some");
        codes[index].clone()
    }
    fn meta(&mut self) -> Meta {
        let mode = self.one_of(&MODES).expect("there are some");
        let level = i64::try_from(self.below(8)).unwrap_or(0);
        let mode = ("mode".into(), MetaValue::Text(mode.into()));
        let level = ("level".into(), MetaValue::Int(level));
        let rest = ("quick".into(), MetaValue::Bool(self.once_in(2)));
        if self.once_in(4) { [rest].into() } else { [mode, level, rest].into() }
    }

    /// Holders of seats come, are away for a moment, or go.
    fn sit_down(&mut self) {
        let Some(index) = self.index(self.granted.len()) else { return };
        let (session, granted) = self.granted[index].clone();
        let states = [SeatState::Taken, SeatState::Taken, SeatState::Away, SeatState::Free];
        let state = self.one_of(&states).expect("there are some");
        if state == SeatState::Free {
            self.granted.remove(index);
        }
        let Granted { instance, incarnation, seat, server, .. } = granted;
        let change = SeatChanged { instance, incarnation, seat, session, state };
        self.happened(server.as_str(), Event::SeatChanged(change));
    }
    fn say(&mut self) {
        let Some(Runs { on, instance, incarnation }) = self.one_of(&self.runs.clone()) else {
            return;
        };
        let (meta, open, private) = (self.meta(), !self.once_in(6), self.once_in(12));
        let changed = MetaChanged { instance, incarnation, meta, open, private };
        self.happened(on, Event::MetaChanged(changed));
    }
    fn score(&mut self) {
        let Some(Runs { on, instance, incarnation }) = self.one_of(&self.runs.clone()) else {
            return;
        };
        let board = self.one_of(&["week", "week", "all time", ""]).expect("there are some");
        let number = self.below(USERS);
        let score = i64::try_from(self.below(1_000)).ok().filter(|score| score % 9 > 0);
        let (board, user, name) = (board.into(), user(number), format!("name {number}").into());
        let scored = Scored { instance, incarnation, board, user, name, score };
        self.happened(on, Event::Scored(scored));
    }
    fn close(&mut self) {
        let Some(index) = self.index(self.runs.len()) else { return };
        let Runs { on, instance, incarnation } = self.runs.remove(index);
        if self.once_in(3) {
            return self.happened(on, Event::HandedOver(HandedOver { instance, incarnation }));
        }
        let refusal = Refusal::new(Code::InstanceClosed, "the match is over");
        self.happened(on, Event::Closed(Closed { instance, incarnation, refusal }));
    }

    /// Session servers hand on what live searches told, and clients acknowledge some of it.
    fn live_searches(&mut self) {
        let name = self.session_server();
        let Some(out) = self.world.state.session_stream(&server(name)) else { return };
        let mut told = Vec::new();
        for (_, message) in out.unacknowledged() {
            if let MasterToSession::Changed(changed) = message {
                let changes: Changes =
                    decode(&changed.changes, Limits::SERVER).expect("the core encoded it");
                let n = changes.n;
                let to = changed.to.iter();
                told.extend(to.map(|to| Seen { session: to.session, watch: to.watch, n }));
            }
        }
        let last = out.last();
        self.apply(Command::SessionReceived(self.world.origin(name), last));
        for seen in told {
            let mut clients = self.clients.iter().flatten();
            let client = clients.find(|client| client.bound.session == seen.session);
            if let Some(at) = client.map(|client| client.at) {
                self.apply(Command::Seen(self.world.origin(at), seen));
            }
        }
    }

    fn loads(&mut self) {
        let busy_permille = u16::try_from(self.below(1_000)).unwrap_or(0);
        let draining = self.once_in(8);
        if self.once_in(3) {
            let name = self.session_server();
            let load = SessionLoad {
                connections: 7,
                busy_permille,
                draining,
                counts: SessionCounts::default(),
            };
            self.apply(Command::SessionLoad(self.world.origin(name), load));
        } else {
            let name = self.game();
            let load = GameLoad {
                instances: 3,
                seats: 9,
                busy_permille,
                draining,
                sent: 7,
                counts: GameCounts::default(),
            };
            self.apply(Command::GameLoad(self.world.origin(name), load));
        }
    }

    /// A server's link is gone: for a moment, with its process, or for longer than is waited for.
    fn lose(&mut self) {
        let is_game = !self.once_in(3);
        let (role, name) = if is_game {
            (Role::Game, self.game())
        } else {
            (Role::Session, self.session_server())
        };
        self.world.link_lost(role, name);
        let is_proved = is_game && self.once_in(4);
        if is_proved {
            self.world.apply(Command::Died(self.world.origin(name)));
            self.world.pass(10);
            self.world.restart(name);
            self.runs.retain(|runs| runs.on != name);
            return self.up(name);
        }
        match self.below(4) {
            0 => self.world.pass(16_000),
            1 => self.world.pass(2_000),
            _ => {
                self.world.restart(name);
                self.runs.retain(|runs| runs.on != name);
            }
        }
        self.up(name);
    }

    fn operator(&mut self) {
        let number = self.below(100);
        let action = match self.below(5) {
            0 => Action::Kick { user: user(self.below(USERS)) },
            1 => Action::Drain { server: server(self.game()) },
            _ => match self.one_of(&self.runs.clone()) {
                Some(Runs { instance, .. }) => Action::Destroy { instance },
                None => Action::Destroy { instance: InstanceId(6) },
            },
        };
        self.apply(Command::Act { number, action });
    }

    /// A server says what it is.
    fn up(&mut self, name: &'static str) {
        if SESSION_SERVERS.contains(&name) {
            self.world.session_up(name);
        } else {
            let report = self.report(name);
            self.world.game_reports(name, report);
        }
        self.hear();
    }
    /// With other fields and weights each time.
    fn report(&mut self, name: &str) -> GameReport {
        self.declared += 1;
        let mut report = World::game_report(name, 24);
        let level = match self.declared % 3 {
            0 => FieldIndex::Ordered,
            1 => FieldIndex::Equal,
            _ => FieldIndex::None,
        };
        let level = FieldInfo { name: "level".into(), holds: FieldType::Number, index: level };
        report.kinds[0].fields.push(level);
        report.kinds[1].weight = 1 + u32::try_from(self.declared % 2).unwrap_or(0);
        if self.declared.is_multiple_of(4) {
            report.kinds[0].fields[0].holds = FieldType::Text;
            report.kinds[0].fields[0].index = FieldIndex::Prefix;
        }
        report
    }
}

fn seated(seat: u16, session: u64) -> HeldSeat {
    let (seat, user) = (Seat(seat), user(session % 70));
    HeldSeat { seat, user, session: SessionId(session), away: session == 99 }
}
