//! A master's core between one session server and one game server that do as they are told at once: no sockets, no
//! log, and a clock that only says what it is told to. What `apply` takes is counted by the verb.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use greenroom_master_core::{
    ClusterSecret, Command, Effect, Effects, Event, Header, Origin, Settings, State,
};
use greenroom_protocol::search::{FieldIndex, FieldInfo, FieldType, Query};
use greenroom_protocol::wire::Opaque;
use greenroom_protocol::wire::client_session::{
    Changes, Create, Found, Join, JoinOrCreate, Leave, Meta, MetaValue, Request, Search, Watch,
};
use greenroom_protocol::wire::master_game::{
    Closed, CreateInstance, GameReport, KindInfo, MasterToGame, MetaChanged, Running, SeatChanged,
    SeatState,
};
use greenroom_protocol::wire::session_master::{
    Bind, Changed, Granted, MasterToSession, Outcome, Seen, SessionReport, Watcher,
};
use greenroom_protocol::{
    Code, Epoch, Incarnation, InstanceId, KindName, Limits, Refusal, RequestId, ServerName,
    SessionId, SessionKey, UserId,
};

use crate::wire::Random;

/// The kind whose instances say six things of themselves, three of them indexed. The binary's kind `lobby` is the same.
pub(crate) const LOBBY: &str = "lobby";
/// Seats of a lobby.
pub(crate) const SEATS: u16 = 16;
/// What is played in lobbies: the values of an indexed keyword.
const MODES: [&str; 8] = ["duel", "doubles", "squad", "brawl", "race", "siege", "flag", "training"];
const MAPS: [&str; 8] =
    ["dust", "harbour", "old town", "glacier", "the mill", "canyon", "rooftops", "station"];
/// Ratings are below.
const RATING_MAX: u64 = 3_000;
/// Messages of a stream that a server lets come together before it acknowledges them, as shells do.
const ACKNOWLEDGED_TOGETHER: u64 = 64;
/// Commands between two comparisons of a master's hash with that of its standby.
pub(crate) const CHECK_EVERY: u64 = 1_024;
/// When the log begins, in milliseconds since 1970.
const BEGAN_MS: u64 = 1_800_000_000_000;

/// Commands of one verb, and what they took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    pub(crate) count: u64,
    pub(crate) time: Duration,
}

impl Spent {
    pub(crate) fn add(&mut self, time: Duration) {
        self.count += 1;
        self.time += time;
    }
}

/// The session of a user that is checked in, with the number of its last request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Player {
    pub(crate) session: SessionId,
    asked: u32,
}

impl Player {
    /// Keeps a place in a list, so that its pages are there before memory is measured.
    pub(crate) const NOBODY: Self = Self { session: SessionId(0), asked: 0 };
}

/// A core with its servers.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) state: State,
    pub(crate) spent: BTreeMap<&'static str, Spent>,
    /// What the last command took.
    pub(crate) last: Duration,
    pub(crate) now_ms: u64,
    effects: Effects,
    session: Origin,
    game: Origin,
    bound: u64,
    /// Numbers of the game server's stream, of what it has heard, and of what it has acknowledged.
    said: u64,
    heard: u64,
    acknowledged: u64,
}

/// The secret of the cluster that is measured.
pub(crate) fn secret() -> ClusterSecret {
    ClusterSecret::from_key(b"a cluster that is only measured")
}

fn origin(name: &str) -> anyhow::Result<Origin> {
    Ok(Origin { server: ServerName::new(name)?, incarnation: Incarnation(1) })
}

impl Core {
    /// A core with a session server, and a game server with room for everything.
    ///
    /// # Errors
    /// When the core does not take their reports.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let secret = secret();
        let settings = Settings { rejoin_grace_ms: 0, ..Settings::default() };
        let mut core = Self {
            state: State::new(&secret, settings),
            spent: BTreeMap::new(),
            last: Duration::ZERO,
            now_ms: BEGAN_MS,
            effects: Vec::new(),
            session: origin("session-1")?,
            game: origin("game-1")?,
            bound: 0,
            said: 0,
            heard: 0,
            acknowledged: 0,
        };
        let report = SessionReport {
            urls: vec!["tcp://127.0.0.1:4000".into()],
            build: "bench".into(),
            connections_max: u32::MAX,
            sessions: Vec::new(),
        };
        core.apply("report", &Command::SessionUp(core.session.clone(), report))?;
        let report = GameReport {
            address: "127.0.0.1:4200".into(),
            build: "bench".into(),
            kinds: vec![KindInfo {
                name: KindName::new(LOBBY)?,
                seats_max: SEATS,
                tick_rate: 0,
                version: 1,
                fields: fields(),
                needs: Vec::new(),
                weight: 1,
                durable: false,
            }],
            capacity: u32::MAX,
            labels: Vec::new(),
            instances: Vec::new(),
        };
        core.apply("report", &Command::GameUp(core.game.clone(), report))?;
        Ok(core)
    }

    /// Applies a command.
    ///
    /// # Errors
    /// When it was illegal: then the benchmark is wrong, and its figures are of refusals.
    pub(crate) fn apply(&mut self, verb: &'static str, command: &Command) -> anyhow::Result<()> {
        let header = Header {
            lsn: self.state.lsn() + 1,
            epoch: Epoch { era: 1, epoch: 1 },
            now_ms: self.now_ms,
            seed: self.state.lsn().wrapping_mul(0x9e37_79b9_7f4a_7c15),
        };
        self.effects.clear();
        let began = Instant::now();
        self.state.apply(&header, command, &mut self.effects);
        if header.lsn.is_multiple_of(CHECK_EVERY) {
            self.state.check();
        }
        self.last = began.elapsed();
        self.spent.entry(verb).or_default().add(self.last);
        for effect in &self.effects {
            if let Effect::Illegal { what, .. } = effect {
                bail!("the core calls `{verb}` illegal: {what}");
            }
        }
        Ok(())
    }

    /// Forgets what was spent so far.
    pub(crate) fn reset(&mut self) {
        self.spent.clear();
    }

    /// Checks user `n` in.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) fn bind(&mut self, n: usize) -> anyhow::Result<Player> {
        self.bound += 1;
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.bound.to_le_bytes());
        let bind = Bind {
            number: self.bound,
            session_key: SessionKey(key),
            user: UserId::new(format!("guest-{n:08}"))?,
            name: format!("player {n:06}").into(),
            trace: None,
        };
        self.apply("bind", &Command::Bind(self.session.clone(), bind))?;
        for effect in &self.effects {
            if let Effect::ToSession(_, MasterToSession::Bound(bound)) = effect {
                return Ok(Player { session: bound.session, asked: 0 });
            }
        }
        bail!("user {n} was not checked in: {:?}", self.effects)
    }

    /// A request of a session that has the answers to all before it. Nothing if it is not decided yet.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) fn ask(
        &mut self,
        verb: &'static str,
        player: &mut Player,
        request: Request,
    ) -> anyhow::Result<Option<Outcome>> {
        player.asked += 1;
        let command = Command::Ask {
            origin: self.session.clone(),
            session: player.session,
            id: RequestId(player.asked),
            answered: RequestId(player.asked - 1),
            request,
        };
        self.apply(verb, &command)?;
        self.answer(verb)
    }

    /// What the last command answered.
    fn answer(&mut self, verb: &'static str) -> anyhow::Result<Option<Outcome>> {
        for effect in self.effects.drain(..) {
            if let Effect::ToSession(_, MasterToSession::Answer(answer)) = effect {
                if let Outcome::Refused(refusal) = answer.outcome {
                    bail!("`{verb}` is refused: {refusal}");
                }
                return Ok(Some(answer.outcome));
            }
        }
        Ok(None)
    }

    /// The game server says that something happened.
    pub(crate) fn happened(&mut self, verb: &'static str, event: Event) -> anyhow::Result<()> {
        self.said += 1;
        self.apply(verb, &Command::Happened(self.game.clone(), self.said, event))
    }

    /// What the game server is told and has not heard yet; it acknowledges it now and then.
    fn hear(&mut self) -> anyhow::Result<Vec<MasterToGame>> {
        let stream = self.state.game_stream(&self.game.server).context("the game server is up")?;
        let told = stream.after(self.heard).map(|(_, message)| message.clone()).collect();
        self.heard = stream.last();
        if self.heard - self.acknowledged >= ACKNOWLEDGED_TOGETHER {
            self.acknowledge()?;
        }
        Ok(told)
    }

    /// The game server acknowledges all that it was told.
    ///
    /// # Errors
    /// When the core finds it illegal.
    pub(crate) fn acknowledge(&mut self) -> anyhow::Result<()> {
        self.acknowledged = self.heard;
        self.apply("received", &Command::GameReceived(self.game.clone(), self.heard))
    }

    /// Sets a live search up. Gives its number.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) fn watch(&mut self, player: &mut Player, watch: Watch) -> anyhow::Result<RequestId> {
        let outcome = self.ask("watch", player, watch.into())?;
        anyhow::ensure!(matches!(outcome, Some(Outcome::Watching(_))), "not set up: {outcome:?}");
        Ok(RequestId(player.asked))
    }

    /// The session server hands on what live searches told, and every client has it at once. Gives how many that was,
    /// and of how many instances they heard, all together.
    ///
    /// # Errors
    /// When the core finds it illegal.
    pub(crate) fn see(&mut self) -> anyhow::Result<(u64, u64)> {
        let stream = self.state.session_stream(&self.session.server);
        let stream = stream.context("the session server is up")?;
        let last = stream.last();
        let told: Vec<Changed> = stream
            .unacknowledged()
            .filter_map(|(_, message)| match message {
                MasterToSession::Changed(changed) => Some(changed.clone()),
                MasterToSession::Bound(_)
                | MasterToSession::BindRefused(_)
                | MasterToSession::Answer(_)
                | MasterToSession::EndSession(_)
                | MasterToSession::SessionServers(_)
                | MasterToSession::Received(_)
                | MasterToSession::Welcome(_)
                | MasterToSession::NewEpoch(_)
                | MasterToSession::Moved(_)
                | MasterToSession::SeatLost(_)
                | MasterToSession::Unknown(_) => None,
            })
            .collect();
        self.apply("received", &Command::SessionReceived(self.session.clone(), last))?;
        let (mut clients, mut instances) = (0, 0);
        for Changed { to, changes } in told {
            let changes: Changes = greenroom_protocol::decode(&changes, Limits::SERVER)?;
            anyhow::ensure!(changes.ended.is_none(), "a live search is over: {:?}", changes.ended);
            for Watcher { session, watch, .. } in to {
                clients += 1;
                instances += changes.instances.len() as u64;
                let seen = Seen { session, watch, n: changes.n };
                self.apply("seen", &Command::Seen(self.session.clone(), seen))?;
            }
        }
        Ok((clients, instances))
    }

    /// Makes a lobby: asked for, granted, running.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) fn create(
        &mut self,
        player: &mut Player,
        meta: impl FnOnce() -> Meta,
    ) -> anyhow::Result<Lobby> {
        let request = Create {
            kind: KindName::new(LOBBY)?,
            key: None,
            params: Opaque::default(),
            private: false,
            expected: Vec::new(),
        };
        let undecided = self.ask("create", player, request.into())?;
        anyhow::ensure!(undecided.is_none(), "made before the game server was asked");
        let meta = meta();
        let (lobby, outcome) = self.run(meta)?;
        anyhow::ensure!(matches!(outcome, Some(Outcome::Created(_))), "not created: {outcome:?}");
        Ok(lobby)
    }

    /// The game server runs the instance that it was told to make.
    fn run(&mut self, meta: Meta) -> anyhow::Result<(Lobby, Option<Outcome>)> {
        let told = self.hear()?;
        let Some(MasterToGame::Create(CreateInstance { instance, incarnation, .. })) = told.last()
        else {
            bail!("the game server was told to make nothing: {told:?}")
        };
        let lobby = Lobby { instance: *instance, incarnation: *incarnation };
        let running = Running {
            instance: lobby.instance,
            incarnation: lobby.incarnation,
            meta,
            open: true,
            private: false,
        };
        self.happened("running", Event::Running(running))?;
        let outcome = self.answer("running")?;
        Ok((lobby, outcome))
    }

    /// Takes a seat in a lobby, in any, which is made if there is none with a free one: reserved, taken.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) fn sit_anywhere(&mut self, player: &mut Player) -> anyhow::Result<Granted> {
        let request = JoinOrCreate {
            kind: KindName::new(LOBBY)?,
            key: None,
            filter: greenroom_protocol::search::Filter::default(),
            params: Opaque::default(),
            private: false,
            expected: Vec::new(),
            options: Opaque::default(),
        };
        let outcome = match self.ask("join_or_create", player, request.into())? {
            Some(outcome) => Some(outcome),
            None => self.run(Meta::new())?.1,
        };
        self.take(player, outcome)
    }

    /// Takes a seat in this lobby.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) fn sit(&mut self, player: &mut Player, lobby: Lobby) -> anyhow::Result<Granted> {
        let request = Join { instance: lobby.instance, options: Opaque::default() };
        let outcome = self.ask("join", player, request.into())?;
        self.take(player, outcome)
    }

    fn take(&mut self, player: &Player, outcome: Option<Outcome>) -> anyhow::Result<Granted> {
        let Some(Outcome::Granted(granted)) = outcome else { bail!("no seat: {outcome:?}") };
        self.seat("taken", player, &granted, SeatState::Taken)?;
        Ok(granted)
    }

    /// Gives a seat up, and the game server says that it is free.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) fn leave(&mut self, player: &mut Player, seat: &Granted) -> anyhow::Result<()> {
        self.ask("leave", player, Leave { instance: seat.instance }.into())?;
        self.hear()?;
        self.seat("free", player, seat, SeatState::Free)
    }

    fn seat(
        &mut self,
        verb: &'static str,
        player: &Player,
        seat: &Granted,
        state: SeatState,
    ) -> anyhow::Result<()> {
        let change = SeatChanged {
            instance: seat.instance,
            incarnation: seat.incarnation,
            seat: seat.seat,
            session: player.session,
            state,
        };
        self.happened(verb, Event::SeatChanged(change))
    }

    /// A lobby says something else of itself.
    ///
    /// # Errors
    /// When the core finds it illegal.
    pub(crate) fn say(&mut self, lobby: Lobby, meta: Meta) -> anyhow::Result<()> {
        let Lobby { instance, incarnation } = lobby;
        let said = MetaChanged { instance, incarnation, meta, open: true, private: false };
        self.happened("meta", Event::MetaChanged(said))
    }

    /// A lobby is closed.
    ///
    /// # Errors
    /// When the core finds it illegal.
    pub(crate) fn close(&mut self, lobby: Lobby) -> anyhow::Result<()> {
        let Lobby { instance, incarnation } = lobby;
        let refusal = Refusal::new(Code::InstanceClosed, "it is over");
        self.happened("closed", Event::Closed(Closed { instance, incarnation, refusal }))
    }

    /// Looks for lobbies, and says how long that took.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) fn search(&self, search: &Search) -> anyhow::Result<(Found, Duration)> {
        let began = Instant::now();
        let outcome = self.state.search(search);
        let took = began.elapsed();
        match outcome {
            Outcome::Found(found) => Ok((found, took)),
            Outcome::Refused(refusal) => bail!("{search:?} is refused: {refusal}"),
            other @ (Outcome::Created(_)
            | Outcome::Granted(_)
            | Outcome::Left(_)
            | Outcome::Destroyed(_)
            | Outcome::Watching(_)
            | Outcome::Unwatched(_)
            | Outcome::Ranking(_)) => bail!("{search:?} is answered by {other:?}"),
        }
    }

    /// Time passes, and what is due happens.
    ///
    /// # Errors
    /// When the core finds it illegal.
    pub(crate) fn pass(&mut self, now_ms: u64) -> anyhow::Result<()> {
        self.now_ms = self.now_ms.max(now_ms);
        while self.state.due_ms().is_some_and(|due| due <= self.now_ms) {
            self.apply("expire", &Command::Expire)?;
        }
        Ok(())
    }
}

/// A lobby that runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lobby {
    pub(crate) instance: InstanceId,
    pub(crate) incarnation: Incarnation,
}

impl Lobby {
    /// As [`Player::NOBODY`].
    pub(crate) const NONE: Self = Self { instance: InstanceId(0), incarnation: Incarnation(0) };
}

/// What lobbies say of themselves.
fn fields() -> Vec<FieldInfo> {
    let field = |name: &str, holds, index| FieldInfo { name: name.into(), holds, index };
    vec![
        field("mode", FieldType::Keyword, FieldIndex::Equal),
        field("rating", FieldType::Number, FieldIndex::Ordered),
        field("name", FieldType::Text, FieldIndex::Prefix),
        field("map", FieldType::Text, FieldIndex::None),
        field("level", FieldType::Number, FieldIndex::None),
        field("ranked", FieldType::Boolean, FieldIndex::None),
    ]
}

/// What one lobby says of itself.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) mode: &'static str,
    pub(crate) rating: u16,
    pub(crate) name: String,
    pub(crate) map: &'static str,
    pub(crate) level: u16,
}

impl About {
    pub(crate) fn draw(random: &mut Random) -> Self {
        Self {
            mode: MODES[below(random, MODES.len())],
            rating: rating(random),
            name: format!("{} {:05}", beginning(random), below(random, 100_000)),
            map: MAPS[below(random, MAPS.len())],
            level: u16::try_from(below(random, 100)).unwrap_or(0),
        }
    }

    pub(crate) fn meta(&self) -> Meta {
        Meta::from([
            ("mode".into(), MetaValue::Text(self.mode.into())),
            ("rating".into(), MetaValue::Int(self.rating.into())),
            ("name".into(), MetaValue::Text(self.name.as_str().into())),
            ("map".into(), MetaValue::Text(self.map.into())),
            ("level".into(), MetaValue::Int(self.level.into())),
            ("ranked".into(), MetaValue::Bool(self.mode != "training")),
        ])
    }
}

pub(crate) fn rating(random: &mut Random) -> u16 {
    u16::try_from(random.next() % RATING_MAX).unwrap_or(0)
}

pub(crate) fn below(random: &mut Random, bound: usize) -> usize {
    usize::try_from(random.next()).unwrap_or(0) % bound
}

/// Three letters, with which the names of one lobby of 17,576 begin.
fn beginning(random: &mut Random) -> String {
    let letter =
        |random: &mut Random| char::from(b'a' + u8::try_from(below(random, 26)).unwrap_or(0));
    (0..3).map(|_| letter(random)).collect()
}

/// Searches that an index answers, by name.
pub(crate) const SEARCHES: [&str; 4] = ["mode_rating", "rating", "name", "newest"];

/// One of [`SEARCHES`], of something else each time.
///
/// # Errors
/// When the protocol can't read it.
pub(crate) fn search(which: usize, random: &mut Random) -> anyhow::Result<Search> {
    let mode = MODES[below(random, MODES.len())];
    let from = random.next() % (RATING_MAX - 50);
    let between = format!("rating between {from} and {}", from + 50);
    let text = match which % SEARCHES.len() {
        0 => format!("mode = \"{mode}\" and {between} order by rating limit 20"),
        1 => format!("{between} limit 20"),
        2 => format!("name prefix \"{}\" limit 20", beginning(random)),
        _ => format!("mode = \"{mode}\" and seats_free > 0 order by created desc limit 20"),
    };
    let Query { filter, order, limit } =
        Query::parse(&text).with_context(|| format!("reading {text}"))?;
    Ok(Search {
        kind: KindName::new(LOBBY)?,
        filter,
        order,
        limit: limit.unwrap_or(20),
        cursor: None,
        explain: false,
    })
}
