//! The directory beside a list of plain records: after each of 100,000 random operations, one random search of both;
//! every now and then it goes on in a state that was restored from a snapshot.

#![expect(clippy::unwrap_used, reason = "a model that can't go on is a failed test")]

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use greenroom_master_core::{
    ClusterSecret, Command, Effect, Effects, Event, Header, Origin, Record, Settings, State,
};
use greenroom_protocol::search::{
    FieldIndex, FieldInfo, FieldType, Filter, INSTANCE_FIELDS, Order,
};
use greenroom_protocol::wire::Opaque;
use greenroom_protocol::wire::admin_master::{Action, Find, Table};
use greenroom_protocol::wire::client_session::{
    Create, Join, Leave, Meta, MetaValue, Request, Search,
};
use greenroom_protocol::wire::master_game::{
    Closed, GameReport, HandedOver, KindInfo, MasterToGame, MetaChanged, Running, SeatChanged,
    SeatState,
};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::{Bind, MasterToSession, Outcome, SessionReport};
use greenroom_protocol::{
    Code, Epoch, Incarnation, InstanceId, Key, KindName, Limits, Refusal, RequestId, Seat,
    ServerName, SessionId, SessionKey, UserId, decode, encode,
};

const OPERATIONS: usize = 100_000;
const SECRET: &[u8] = b"a test's key";
const SEED: u64 = 0x6772_6565_6e72_6f6f;
const KINDS: [&str; 2] = ["arena", "duel"];
const SEATS_MAX: u16 = 4;

/// The state that a snapshot gives.
fn restored(state: &State) -> State {
    let bytes: Vec<Vec<u8>> = state.records().map(|record| encode(&record)).collect();
    let records = bytes.iter().map(|bytes| decode::<Record>(bytes, Limits::SERVER).unwrap());
    let secret = ClusterSecret::from_key(SECRET);
    let restored = State::restore(&secret, state.settings(), state.placement(), records).unwrap();
    assert_eq!(restored.state_hash(), state.state_hash());
    restored
}

/// `SplitMix64`: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }
    fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }
    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// An instance, without any index.
#[derive(Clone, Debug)]
struct Plain {
    id: InstanceId,
    incarnation: Incarnation,
    kind: KindName,
    owner: Option<UserId>,
    key: Option<Key>,
    created_ms: u64,
    stage: &'static str,
    open: bool,
    private: bool,
    meta: Meta,
    seats: BTreeMap<SessionId, Held>,
}

/// A seat of somebody.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Which, as soon as its holder knows.
    seat: Option<Seat>,
    /// The game server has its holder in it.
    taken: bool,
}

/// The versions of a kind's fields that are rolled out and back.
fn fields(version: u32) -> Vec<FieldInfo> {
    use FieldIndex::{Equal, None, Ordered, Prefix};
    use FieldType::{Boolean, Keyword, Number, Text};
    let of = |name: &str, holds, index| FieldInfo { name: name.into(), holds, index };
    let mut fields = vec![
        of("mode", Keyword, Equal),
        of("rating", Number, Ordered),
        of("title", Text, Prefix),
        of("ranked", Boolean, Equal),
        of("level", Number, None),
        of("note", Text, None),
    ];
    match version % 3 {
        0 => {}
        1 => fields.reverse(),
        _ => {
            fields[4] = of("level", Text, Prefix);
            fields.remove(1);
            fields.push(of("extra", Number, Equal));
        }
    }
    fields
}

fn is_of(value: &MetaValue, holds: FieldType) -> bool {
    match value {
        MetaValue::Bool(_) => holds == FieldType::Boolean,
        MetaValue::Int(_) => holds == FieldType::Number,
        MetaValue::Text(_) => matches!(holds, FieldType::Keyword | FieldType::Text),
    }
}

/// What of the metadata is declared so.
fn declared(meta: &Meta, fields: &[FieldInfo]) -> Meta {
    let is_declared = |name: &str, value: &MetaValue| {
        fields.iter().any(|field| field.name == name && is_of(value, field.holds))
    };
    let kept = meta.iter().filter(|(name, value)| is_declared(name, value));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

impl Plain {
    fn is_listed(&self) -> bool {
        self.stage == "running" && self.open && !self.private
    }
    fn value(&self, field: &str, suspect: bool) -> Option<MetaValue> {
        let text = |text: &str| MetaValue::Text(text.into());
        let taken = i64::try_from(self.seats.len()).unwrap();
        Some(match field {
            "id" => text(&self.id.to_string()),
            "created" => MetaValue::Int(i64::try_from(self.created_ms).unwrap()),
            "seats_free" => MetaValue::Int(i64::from(SEATS_MAX) - taken),
            "seats_taken" => MetaValue::Int(taken),
            "seats_max" => MetaValue::Int(SEATS_MAX.into()),
            "owner" => text(self.owner.as_ref()?.as_str()),
            "key" => text(self.key.as_ref()?.as_str()),
            "server" => text("g1"),
            "state" if suspect && self.stage == "running" => text("suspect"),
            "state" => text(self.stage),
            "open" => MetaValue::Bool(self.open),
            "private" => MetaValue::Bool(self.private),
            declared => self.meta.get(declared)?.clone(),
        })
    }
}

/// What a filter means, read straight from what was written.
fn lets_through(filter: &Filter, value: &impl Fn(&str) -> Option<MetaValue>) -> bool {
    let ordered = |field: &str, to: &MetaValue, wanted: fn(Ordering) -> bool| {
        value(field).is_some_and(|value| wanted(value.cmp(to)))
    };
    match filter {
        Filter::And(all) => all.iter().all(|filter| lets_through(filter, value)),
        Filter::Or(any) => any.iter().any(|filter| lets_through(filter, value)),
        Filter::Not(filter) => !lets_through(filter, value),
        Filter::Eq(field, to) => value(field).as_ref() == Some(to),
        Filter::Ne(field, to) => value(field).as_ref() != Some(to),
        Filter::In(field, of) => value(field).is_some_and(|value| of.contains(&value)),
        Filter::Lt(field, to) => ordered(field, to, Ordering::is_lt),
        Filter::Le(field, to) => ordered(field, to, Ordering::is_le),
        Filter::Gt(field, to) => ordered(field, to, Ordering::is_gt),
        Filter::Ge(field, to) => ordered(field, to, Ordering::is_ge),
        Filter::Between(field, from, to) => {
            ordered(field, from, Ordering::is_ge) && ordered(field, to, Ordering::is_le)
        }
        Filter::Prefix(field, beginning) => value(field).is_some_and(|value| match value {
            MetaValue::Text(text) => text.starts_with(beginning.as_str()),
            MetaValue::Bool(_) | MetaValue::Int(_) => false,
        }),
    }
}

/// A page of a listing that goes on: the same search, and the place of the last record it gave.
#[derive(Clone)]
struct Page {
    kind: usize,
    is_operators: bool,
    version: u32,
    filter: Filter,
    order: Option<Order>,
    cursor: Opaque,
    last: (Option<MetaValue>, InstanceId),
}

struct World {
    random: Random,
    state: State,
    plain: BTreeMap<InstanceId, Plain>,
    now_ms: u64,
    effects: Effects,
    sessions: Vec<(SessionId, UserId)>,
    /// Number of the last request of each session.
    asked: BTreeMap<SessionId, u32>,
    /// Joins that wait, and for which instance.
    waiting: BTreeMap<(SessionId, u32), InstanceId>,
    /// Who left a seat and is still in it at the game server.
    vacating: Vec<(InstanceId, Seat, SessionId)>,
    /// The last number of the game server's stream, and the last that it has read.
    stream: (u64, u64),
    version: u32,
    suspect: bool,
    page: Option<Page>,
    /// What the searches were: found something, by an index, in the order of an index, another page.
    seen: [usize; 4],
}

fn kind(name: &str) -> KindName {
    KindName::new(name).unwrap()
}
fn origin(name: &str) -> Origin {
    Origin { server: ServerName::new(name).unwrap(), incarnation: Incarnation(1) }
}

impl World {
    fn new(seed: u64) -> Self {
        let secret = ClusterSecret::from_key(SECRET);
        let mut world = Self {
            random: Random(seed),
            state: State::new(&secret, Settings { rejoin_grace_ms: 0, ..Settings::default() }),
            plain: BTreeMap::new(),
            now_ms: 100_000,
            effects: Vec::new(),
            sessions: Vec::new(),
            asked: BTreeMap::new(),
            waiting: BTreeMap::new(),
            vacating: Vec::new(),
            stream: (0, 0),
            version: 0,
            suspect: false,
            page: None,
            seen: [0; 4],
        };
        let report = SessionReport {
            urls: vec!["tcp://s1:4000".into()],
            build: "test".into(),
            connections_max: 1_000,
            sessions: Vec::new(),
        };
        world.apply(&Command::SessionUp(origin("s1"), report));
        world.game_up();
        for number in 0..12u8 {
            let user = UserId::new(format!("user {number}")).unwrap();
            let bind = Bind {
                number: number.into(),
                session_key: SessionKey([number; 16]),
                user: user.clone(),
                name: "a name".into(),
                trace: None,
            };
            world.apply(&Command::Bind(origin("s1"), bind));
            let bound = world.effects.iter().find_map(|effect| {
                if let Effect::ToSession(_, MasterToSession::Bound(bound)) = effect {
                    return Some(bound.session);
                }
                None
            });
            world.sessions.push((bound.unwrap(), user));
        }
        world
    }

    fn apply(&mut self, command: &Command) {
        let header = Header {
            lsn: self.state.lsn() + 1,
            epoch: Epoch { era: 1, epoch: 1 },
            now_ms: self.now_ms,
            seed: 7,
        };
        self.effects.clear();
        self.state.apply(&header, command, &mut self.effects);
        let answers: Vec<_> = (self.effects.iter())
            .filter_map(|effect| match effect {
                Effect::ToSession(_, MasterToSession::Answer(answer)) => Some(answer.clone()),
                Effect::ToSession(..)
                | Effect::Welcome(..)
                | Effect::Renewed(..)
                | Effect::Acted { .. }
                | Effect::Illegal { .. } => None,
            })
            .collect();
        for answer in answers {
            if let Some(instance) = self.waiting.remove(&(answer.session, answer.id.0))
                && let Outcome::Granted(granted) = &answer.outcome
                && let Some(plain) = self.plain.get_mut(&instance)
            {
                let held = plain.seats.entry(answer.session).or_default();
                held.seat = Some(granted.seat);
            }
        }
        self.read();
    }

    /// Reads what the game server is told.
    fn read(&mut self) {
        let Some(out) = self.state.game_stream(&origin("g1").server) else { return };
        let told: Vec<_> = out.after(self.stream.1).map(|(_, told)| told.clone()).collect();
        self.stream.1 = out.last();
        for told in told {
            if let MasterToGame::Create(create) = told
                && create.restore.is_none()
            {
                let plain = Plain {
                    id: create.instance,
                    incarnation: create.incarnation,
                    kind: create.kind,
                    owner: create.owner,
                    key: create.key,
                    created_ms: create.created_ms,
                    stage: "granted",
                    open: true,
                    private: create.private,
                    meta: Meta::new(),
                    seats: BTreeMap::new(),
                };
                self.plain.insert(plain.id, plain);
            }
        }
    }

    fn game_up(&mut self) {
        let info = |name: &str| KindInfo {
            name: kind(name),
            seats_max: SEATS_MAX,
            tick_rate: 20,
            version: 1,
            fields: if name == "arena" { fields(self.version) } else { Vec::new() },
            needs: Vec::new(),
            weight: 1,
            durable: name == "duel",
        };
        let report = GameReport {
            address: "g1:4200".into(),
            build: "test".into(),
            kinds: KINDS.iter().map(|name| info(name)).collect(),
            capacity: 1_000_000,
            labels: Vec::new(),
            instances: Vec::new(),
        };
        self.apply(&Command::GameUp(origin("g1"), report));
        self.suspect = false;
        for plain in self.plain.values_mut().filter(|plain| plain.kind.as_str() == "arena") {
            plain.meta = declared(&plain.meta, &fields(self.version));
        }
    }

    fn happened(&mut self, event: Event) {
        self.stream.0 += 1;
        self.apply(&Command::Happened(origin("g1"), self.stream.0, event));
    }

    fn ask(&mut self, session: SessionId, request: Request) -> (u32, Option<Outcome>) {
        let asked = self.asked.entry(session).or_default();
        *asked += 1;
        let id = *asked;
        self.apply(&Command::Ask {
            origin: origin("s1"),
            session,
            id: RequestId(id),
            answered: RequestId(id - 1),
            request,
        });
        let outcome = self.effects.iter().find_map(|effect| match effect {
            Effect::ToSession(_, MasterToSession::Answer(answer))
                if answer.id.0 == id && answer.session == session =>
            {
                Some(answer.outcome.clone())
            }
            Effect::ToSession(..)
            | Effect::Welcome(..)
            | Effect::Renewed(..)
            | Effect::Acted { .. }
            | Effect::Illegal { .. } => None,
        });
        (id, outcome)
    }

    fn meta_value(&mut self, field: &str) -> MetaValue {
        let texts = [
            "together for ever",
            "together for once",
            "together",
            "together for",
            "tog",
            "",
            "zoo",
            "zoë",
            "together for\0",
        ];
        match field {
            "mode" => MetaValue::Text((*self.random.pick(&["a", "b", "c", "ranked"])).into()),
            "rating" | "extra" => MetaValue::Int(i64::try_from(self.random.below(20)).unwrap() - 5),
            "title" | "note" => MetaValue::Text((*self.random.pick(&texts)).into()),
            "ranked" => MetaValue::Bool(self.random.one_in(2)),
            "level" if self.version % 3 == 2 => MetaValue::Text((*self.random.pick(&texts)).into()),
            _ => MetaValue::Int(i64::try_from(self.random.below(3)).unwrap()),
        }
    }

    fn meta(&mut self) -> Meta {
        let mut meta = Meta::new();
        for field in ["mode", "rating", "title", "ranked", "level", "note", "extra"] {
            if !self.random.one_in(4) {
                // Now and then a value that the kind does not declare so: it is as if it were not there.
                let of = if self.random.one_in(40) { "rating" } else { field };
                let value = self.meta_value(of);
                meta.insert(field.into(), value);
            }
        }
        meta
    }

    fn some_instance(&mut self) -> Option<Plain> {
        let place = self.random.below(self.plain.len().max(1));
        self.plain.values().nth(place).cloned()
    }

    /// One random operation; there are about `wanted` instances.
    fn operate(&mut self, wanted: usize) {
        self.now_ms += u64::from(self.random.one_in(3));
        if self.suspect {
            self.game_up();
            return;
        }
        let (session, _) = self.random.pick(&self.sessions).clone();
        match self.random.below(100) {
            0..20 if self.plain.len() < wanted => {
                let key = self
                    .random
                    .one_in(5)
                    .then(|| Key::new(format!("key {}", self.random.below(30))).unwrap());
                let of = if self.random.one_in(5) { "duel" } else { "arena" };
                let private = self.random.one_in(8);
                let (params, expected) = (Opaque::default(), Vec::new());
                let create = Create { kind: kind(of), key, params, private, expected };
                self.ask(session, create.into());
            }
            0..45 => self.change(),
            45..65 => self.join(session),
            65..80 => self.leave(session),
            80..88 => self.seat(),
            88..91 => self.hand_over(),
            91..93 => {
                let Some(Plain { id, .. }) = self.some_instance() else { return };
                self.apply(&Command::Act { number: 1, action: Action::Destroy { instance: id } });
                self.plain.get_mut(&id).unwrap().stage = "closing";
            }
            93..99 => {
                let closing = self.plain.values().find(|plain| plain.stage == "closing").cloned();
                let is_over = self.plain.len() > wanted || self.random.one_in(2);
                let Some(plain) = closing.or_else(|| self.some_instance()) else { return };
                if is_over {
                    let refusal = Refusal::new(Code::Destroyed, "closed by a test");
                    let (instance, incarnation) = (plain.id, plain.incarnation);
                    self.happened(Event::Closed(Closed { instance, incarnation, refusal }));
                    self.plain.remove(&instance);
                    self.vacating.retain(|(of, ..)| *of != instance);
                }
            }
            _ if self.random.one_in(2) => {
                self.apply(&Command::LinkLost(Role::Game, origin("g1")));
                self.suspect = true;
            }
            _ => {
                self.version = u32::try_from(self.random.below(3)).unwrap();
                self.game_up();
            }
        }
        let received = self.stream.1;
        self.apply(&Command::GameReceived(origin("g1"), received));
    }

    /// A granted instance runs, or a game says something new of one.
    fn change(&mut self) {
        let Some(Plain { id, incarnation, kind, stage, .. }) = self.some_instance() else { return };
        let (meta, open, private) = (self.meta(), !self.random.one_in(6), self.random.one_in(8));
        let is_to_run = matches!(stage, "granted" | "restoring");
        let is_run = is_to_run && !self.random.one_in(4);
        if is_run {
            let meta = meta.clone();
            let running = Running { instance: id, incarnation, meta, open, private };
            self.happened(Event::Running(running));
        } else {
            let meta = meta.clone();
            let changed = MetaChanged { instance: id, incarnation, meta, open, private };
            self.happened(Event::MetaChanged(changed));
        }
        let known = if kind.as_str() == "arena" { fields(self.version) } else { Vec::new() };
        let plain = self.plain.get_mut(&id).unwrap();
        plain.meta = declared(&meta, &known);
        (plain.open, plain.private) = (open, private);
        if is_run {
            plain.stage = "running";
        }
    }

    /// The game server gives an instance away: one that is durable is restored in another life, the other is gone.
    fn hand_over(&mut self) {
        let Some(Plain { id, incarnation, kind, stage, .. }) = self.some_instance() else { return };
        if stage != "running" {
            return;
        }
        self.vacating.retain(|(of, ..)| *of != id);
        let is_durable = kind.as_str() == "duel";
        if is_durable {
            let plain = self.plain.get_mut(&id).unwrap();
            plain.stage = "restoring";
            plain.incarnation = Incarnation(incarnation.0.wrapping_add(1));
        }
        self.happened(Event::HandedOver(HandedOver { instance: id, incarnation }));
        if !is_durable {
            self.plain.remove(&id);
        }
    }

    fn join(&mut self, session: SessionId) {
        let Some(Plain { id, .. }) = self.some_instance() else { return };
        let (request, outcome) =
            self.ask(session, Join { instance: id, options: Opaque::default() }.into());
        let plain = self.plain.get_mut(&id).unwrap();
        match outcome {
            None => {
                self.waiting.insert((session, request), id);
                plain.seats.entry(session).or_default();
            }
            Some(Outcome::Granted(granted)) => {
                assert_eq!(granted.instance, id);
                plain.seats.entry(session).or_default().seat = Some(granted.seat);
            }
            Some(_) => {}
        }
    }

    fn leave(&mut self, session: SessionId) {
        let held = self.plain.values().find(|plain| plain.seats.contains_key(&session));
        let Some(instance) = held.map(|plain| plain.id) else { return };
        let (_, outcome) = self.ask(session, Leave { instance }.into());
        if let Some(Outcome::Left(_)) = outcome {
            let held = self.plain.get_mut(&instance).unwrap().seats.remove(&session).unwrap();
            if let Held { seat: Some(seat), taken: true } = held {
                self.vacating.push((instance, seat, session));
            }
        }
    }

    /// A game server's word about a seat: its holder is there, or who left it is out.
    fn seat(&mut self) {
        if self.random.one_in(2) && !self.vacating.is_empty() {
            let (instance, seat, session) = *self.random.pick(&self.vacating);
            self.vacating.retain(|left| *left != (instance, seat, session));
            let incarnation = self.plain[&instance].incarnation;
            let state = SeatState::Free;
            let change = SeatChanged { instance, incarnation, seat, session, state };
            return self.happened(Event::SeatChanged(change));
        }
        let Some(Plain { id, incarnation, seats, .. }) = self.some_instance() else { return };
        let left = |session, seat| self.vacating.contains(&(id, seat, session));
        let holder = seats.iter().find_map(|(&session, held)| {
            held.seat
                .filter(|&seat| !held.taken && !left(session, seat))
                .map(|seat| (session, seat))
        });
        if let Some((session, seat)) = holder {
            let change =
                SeatChanged { instance: id, incarnation, seat, session, state: SeatState::Taken };
            self.happened(Event::SeatChanged(change));
            self.plain.get_mut(&id).unwrap().seats.get_mut(&session).unwrap().taken = true;
        }
    }

    /// A condition that fits the fields, or several.
    fn filter(&mut self, names: &[(String, FieldType)], depth: usize) -> Filter {
        if depth > 0 && self.random.one_in(2) {
            let few = 1 + self.random.below(3);
            let filters = (0..few).map(|_| self.filter(names, depth - 1)).collect();
            return match self.random.below(5) {
                0..3 => Filter::And(filters),
                3 => Filter::Or(filters),
                _ => Filter::Not(Box::new(Filter::And(filters))),
            };
        }
        let (name, holds) = self.random.pick(names).clone();
        let value = self.value_for(&name);
        let other = self.value_for(&name);
        let field = name.as_str().into();
        let is_ordered = matches!(holds, FieldType::Number | FieldType::Text);
        match self.random.below(if is_ordered { 9 } else { 4 }) {
            0 | 1 => Filter::Eq(field, value),
            2 => Filter::Ne(field, value),
            3 => Filter::In(field, vec![value, other]),
            4 => Filter::Lt(field, value),
            5 => Filter::Le(field, value),
            6 => Filter::Gt(field, value),
            7 => match (&value, self.random.one_in(2)) {
                (MetaValue::Text(text), true) => {
                    let few = self.random.below(14);
                    Filter::Prefix(field, text.chars().take(few).collect())
                }
                (MetaValue::Text(_) | MetaValue::Int(_) | MetaValue::Bool(_), _) => {
                    Filter::Ge(field, value)
                }
            },
            _ => Filter::Between(field, value, other),
        }
    }

    fn value_for(&mut self, name: &str) -> MetaValue {
        if let Some(plain) = self.some_instance()
            && self.random.one_in(3)
            && let Some(value) = plain.value(name, self.suspect)
        {
            return value;
        }
        let text = |text: String| MetaValue::Text(text.into());
        match name {
            "id" => text(InstanceId(self.random.next().into()).to_string()),
            "created" => {
                let ago = i64::try_from(self.random.below(2_000)).unwrap();
                MetaValue::Int(i64::try_from(self.now_ms).unwrap() - ago)
            }
            "seats_free" | "seats_taken" | "seats_max" => {
                MetaValue::Int(i64::try_from(self.random.below(6)).unwrap())
            }
            "owner" => text(format!("user {}", self.random.below(14))),
            "key" => text(format!("key {}", self.random.below(30))),
            "server" => text(format!("g{}", self.random.below(3))),
            "state" => text(
                (*self.random.pick(&["running", "granted", "closing", "suspect", "restoring"]))
                    .to_owned(),
            ),
            "open" | "private" => MetaValue::Bool(self.random.one_in(2)),
            declared => self.meta_value(declared),
        }
    }

    /// One search of both, and whether they agree.
    fn compare(&mut self) {
        let page = self.page.take().filter(|page| page.version == self.version);
        let page = page.filter(|_| !self.random.one_in(4));
        let of = page.as_ref().map_or(usize::from(self.random.one_in(8)), |page| page.kind);
        let mut names: Vec<(String, FieldType)> =
            INSTANCE_FIELDS.iter().map(|(name, holds)| ((*name).to_owned(), *holds)).collect();
        if of == 0 {
            let declared = fields(self.version);
            // More often those that the game declares.
            for _ in 0..2 {
                names.extend(declared.iter().map(|field| (field.name.to_string(), field.holds)));
            }
        }
        let (filter, order, is_operators) = match &page {
            Some(page) => (page.filter.clone(), page.order.clone(), page.is_operators),
            None => {
                let order = (!self.random.one_in(3)).then(|| Order {
                    field: self.random.pick(&names).0.as_str().into(),
                    descending: self.random.one_in(2),
                });
                (self.filter(&names, 3), order, self.random.one_in(2))
            }
        };
        let limit = u16::try_from(*self.random.pick(&[1, 2, 3, 5, 20, 100])).unwrap();
        let cursor = page.as_ref().map(|page| page.cursor.clone());
        let (found, cursor, explain) = if is_operators {
            let find = Find {
                table: Table::Instances(kind(KINDS[of])),
                filter: filter.clone(),
                order: order.clone(),
                limit,
                cursor,
            };
            let rows = self.state.find(&find).unwrap();
            let id = |fields: &Meta| match &fields["id"] {
                MetaValue::Text(id) => id.parse().unwrap(),
                MetaValue::Bool(_) | MetaValue::Int(_) => panic!("an id is a text"),
            };
            for row in &rows.rows {
                let plain = &self.plain[&id(&row.fields)];
                let expected: Meta = (names.iter())
                    .filter_map(|(name, _)| {
                        Some((name.as_str().into(), plain.value(name, self.suspect)?))
                    })
                    .collect();
                assert_eq!(row.fields, expected);
            }
            let ids: Vec<InstanceId> = rows.rows.iter().map(|row| id(&row.fields)).collect();
            (ids, rows.cursor, rows.explain)
        } else {
            let (filter, order) = (filter.clone(), order.clone());
            let search =
                Search { kind: kind(KINDS[of]), filter, order, limit, cursor, explain: true };
            let outcome = self.state.search(&search);
            let Outcome::Found(found) = outcome else { panic!("refused {search:?}: {outcome:?}") };
            for listed in &found.instances {
                let plain = &self.plain[&listed.instance];
                assert_eq!(listed.meta, plain.meta);
                assert_eq!(usize::from(listed.seats_taken), plain.seats.len());
                assert_eq!(listed.created_ms, plain.created_ms);
            }
            let ids = found.instances.iter().map(|listed| listed.instance).collect();
            (ids, found.cursor, found.explain.unwrap())
        };

        let suspect = self.suspect;
        let (by, descending) = match &order {
            Some(order) => (order.field.as_str(), order.descending),
            None => ("id", false),
        };
        let compare = |a: &(Option<MetaValue>, InstanceId), b: &(Option<MetaValue>, InstanceId)| {
            let directed = |order: Ordering| if descending { order.reverse() } else { order };
            let by_value = match (&a.0, &b.0) {
                (Some(a), Some(b)) => directed(a.cmp(b)),
                (a, b) => b.is_some().cmp(&a.is_some()),
            };
            by_value.then(directed(a.1.cmp(&b.1)))
        };
        let mut expected: Vec<(Option<MetaValue>, InstanceId)> = (self.plain.values())
            .filter(|plain| plain.kind.as_str() == KINDS[of])
            .filter(|plain| is_operators || plain.is_listed())
            .filter(|plain| lets_through(&filter, &|field| plain.value(field, suspect)))
            .map(|plain| (plain.value(by, suspect), plain.id))
            .filter(|place| page.as_ref().is_none_or(|page| compare(place, &page.last).is_gt()))
            .collect();
        expected.sort_by(compare);
        let all = expected.len();
        expected.truncate(limit.into());
        let ids: Vec<InstanceId> = expected.iter().map(|(_, id)| *id).collect();
        assert_eq!(found, ids, "{filter:?} by {order:?}, {limit} of {all}: {explain:?}");
        assert!(cursor.is_some() || all <= usize::from(limit), "there are more than {limit}");
        assert!(cursor.is_none() || !ids.is_empty());
        assert!(explain.matched >= u32::try_from(ids.len()).unwrap());
        assert!(explain.examined >= explain.matched);
        let seen = [
            !ids.is_empty(),
            !explain.index.starts_with("every record"),
            explain.ordered_by_index,
            page.is_some(),
        ];
        for (count, is_so) in self.seen.iter_mut().zip(seen) {
            *count += usize::from(is_so);
        }
        if let (Some(cursor), Some(last)) = (cursor, expected.pop()) {
            let version = self.version;
            self.page = Some(Page { kind: of, is_operators, version, filter, order, cursor, last });
        }
    }
}

/// Method: instances are made, run, change, fill and empty, close and are closed; their game server falls silent and
/// comes back, and its game is rolled out and back with other fields. After each of these one search, half of them
/// pages of one before, is made of the directory and of a list of plain records, whose filter is read as it was written
/// and whose order is a sort. Every index is counted anew now and then. There are few instances for most of the time,
/// so that everything meets everything, and many for some of it, so that indexes have many blocks.
#[test]
fn every_search_after_every_operation_finds_what_a_plain_list_has() {
    let mut world = World::new(SEED);
    for operation in 0..OPERATIONS {
        let wanted = if operation % 20_000 > 14_000 { 700 } else { 50 };
        world.operate(wanted);
        world.compare();
        if operation % 500 == 0 {
            if let Err(contradiction) = world.state.audit() {
                panic!("after operation {operation}: {contradiction}");
            }
            // It goes on as what a snapshot gives: cursors of pages that were read before stay good.
            world.state = restored(&world.state);
            let ids: BTreeSet<InstanceId> = world.plain.keys().copied().collect();
            assert_eq!(world.state.instances(), ids.len() as u64);
        }
    }
    // A test that never finds anything compares nothing.
    let [found, by_index, in_order, paged] = world.seen;
    assert!(found > OPERATIONS / 4, "{found} found something");
    assert!(by_index > OPERATIONS / 8, "{by_index} were answered by an index of a field");
    assert!(in_order > OPERATIONS / 4, "{in_order} came in the order of an index");
    assert!(paged > OPERATIONS / 10, "{paged} were another page");
}
