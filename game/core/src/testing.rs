//! For tests of games: a stage on which seats play as clients do, and the replay that finds what is not deterministic.
//!
//! ```
//! # use greenroom_game_core as greenroom;
//! # use greenroom::{Cx, Instance, Kind, Never, Reject, Seat};
//! # #[derive(serde::Serialize, serde::Deserialize)] struct Counter { n: u32 }
//! # impl Instance for Counter {
//! #     const KIND: Kind<Self> = Kind::new("counter").tick_rate(10).storable();
//! #     type Params = (); type Meta = (); type In = u32; type Query = Never; type Reply = u32; type Out = u32;
//! #     type Timer = (); type View<'a> = &'a Self; type PrivateView<'a> = ();
//! #     fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> { Ok(Self { n: 0 }) }
//! #     fn message(&mut self, _: Seat, by: u32, cx: &mut Cx<Self>) { self.n += by; cx.reply(self.n); }
//! #     fn view(&self) -> &Self { self }
//! # }
//! use greenroom::testing::{Stage, replay};
//!
//! let mut stage = Stage::<Counter>::new();
//! stage.join(0).unwrap();
//! let call = stage.call(0, &5);
//! stage.ticks(1);
//! assert_eq!(stage.reply::<u32>(0, call), Some(Ok(5)));
//! assert_eq!(stage.view::<Counter>(0).n, 5);
//! replay::<Counter>(stage.recording(), 1).unwrap();
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::time::Duration;

use ecow::{EcoString, eco_format};
use greenroom_protocol::wire::client_instance::{
    CALL, EVENT, MESSAGE, QUERY, QUERY_REFUSED, QUERY_REPLY, REPLY, REPLY_REFUSED, SEND_AGAIN,
};
use greenroom_protocol::wire::client_session::MetaValue;
use greenroom_protocol::wire::master_game::{CreateInstance, GameToMaster};
use greenroom_protocol::{
    Generation, Incarnation, InstanceId, KindName, Limits, Moment, Refusal, Seat, Seq, SessionId,
    UserId, VIEW_BYTES_MAX, ViewId, decode, encode,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::effects::{Effect, Effects};
use crate::input::{Input, Now, Recording};
use crate::{
    Core, CoreFault, Document, DocumentVersion, Instance, Registry, SEARCH_BYTES_MAX, Search,
    SearchCursor, StoreAct, StoreOrder, StoreRefusal, StoreTicket, Stored, Told,
};

/// One instance with its seats, each played by a model of a client: it takes every reliable message once, keeps its
/// views by patches, and sends again what did not arrive. Everything is recorded, for [`replay`].
#[derive(Debug)]
pub struct Stage<K> {
    core: Core,
    effects: Effects,
    recording: Recording,
    now: Now,
    clients: BTreeMap<Seat, Client>,
    reports: Vec<GameToMaster>,
    log: Vec<EcoString>,
    told: Vec<Told>,
    documents: Documents,
    kind: PhantomData<fn() -> K>,
}

/// A store in memory that answers at once, unless a test wants it otherwise.
#[derive(Debug, Default)]
struct Documents {
    by_key: BTreeMap<EcoString, (DocumentVersion, Vec<u8>)>,
    last: u64,
    /// Answers that are on their way.
    answers: VecDeque<(StoreTicket, Result<Stored, StoreRefusal>)>,
    /// They wait until the test lets them come.
    holds: bool,
    /// What comes next is refused so.
    refusals: VecDeque<StoreRefusal>,
}

/// What a client has.
#[derive(Debug, Default)]
struct Client {
    session: u64,
    generation: u32,
    sent: Seq,
    queries: u32,
    received: Seq,
    /// Of messages that the instance has not acknowledged: to be sent again by a new connection.
    unacknowledged: Vec<(Seq, u8, Vec<u8>)>,
    events: Vec<Vec<u8>>,
    answers: BTreeMap<u32, Result<Vec<u8>, Refusal>>,
    query_answers: BTreeMap<u32, Result<Vec<u8>, Refusal>>,
    views: BTreeMap<u16, Mirror>,
    send_again: bool,
    ended: Option<Refusal>,
    refused: Option<Refusal>,
}

/// A view, as a client has it.
#[derive(Debug, Default)]
struct Mirror {
    version: u32,
    bytes: Vec<u8>,
    /// Of a snapshot whose pieces are coming.
    pieces: Vec<u8>,
}

/// A counter, as a document.
#[derive(Default, Serialize, Deserialize)]
struct Counter {
    count: i64,
}

impl<K: Instance> Default for Stage<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Instance> Stage<K> {
    /// An instance with default parameters.
    ///
    /// # Panics
    /// If the game does not make one.
    pub fn new() -> Self {
        Self::create(Vec::new(), [7; 32]).expect("the game makes an instance by default")
    }
    /// An instance with these parameters and this seed.
    ///
    /// # Errors
    /// What the game refuses.
    pub fn with(params: &impl Serialize, seed: [u8; 32]) -> Result<Self, Refusal> {
        Self::create(encode(params), seed)
    }
    fn create(params: Vec<u8>, seed: [u8; 32]) -> Result<Self, Refusal> {
        let order = CreateInstance {
            instance: InstanceId(1),
            incarnation: Incarnation(1),
            kind: KindName::new(K::KIND.spec.name).expect("`Kind::new` takes no other name"),
            params: params.into(),
            seed,
            owner: None,
            key: None,
            created_ms: 0,
            private: false,
            restore: None,
        };
        let now = Now { moment: Moment(1_000), wall: Duration::from_secs(1_800_000_000) };
        Ok(Self {
            core: Registry::new().with::<K>().create(&order, now)?,
            effects: Effects::new(),
            recording: Recording::new(order, now),
            now,
            clients: BTreeMap::new(),
            reports: Vec::new(),
            log: Vec::new(),
            told: Vec::new(),
            documents: Documents::default(),
            kind: PhantomData,
        })
    }

    /// A new user takes a seat.
    ///
    /// # Errors
    /// What the game refuses.
    pub fn join(&mut self, seat: u16) -> Result<(), Refusal> {
        self.join_with(seat, &())
    }
    /// A new user takes a seat, with options for `admit`.
    ///
    /// # Errors
    /// What the game refuses.
    pub fn join_with(&mut self, seat: u16, options: &impl Serialize) -> Result<(), Refusal> {
        let session = self.clients.get(&Seat(seat)).map_or(0, |client| client.session) + 1;
        let client = Client { session, generation: 1, ..Client::default() };
        self.clients.insert(Seat(seat), client);
        self.attach(Seat(seat), &encode(options));
        match self.client(seat).refused.clone() {
            None => Ok(()),
            Some(refusal) => Err(refusal),
        }
    }
    fn attach(&mut self, seat: Seat, options: &[u8]) {
        let client = self.client(seat.0);
        let (session, generation) = (client.session, client.generation);
        // Small numbers that tell a session of one seat from that of another.
        let session = SessionId(u64::from(seat.0) << 32 | session);
        self.tell(Input::Attach {
            seat,
            user: UserId::new(eco_format!("user-{seat}")).expect("a short name"),
            name: eco_format!("User {seat}"),
            session,
            generation: Generation(generation),
            options,
        });
    }
    /// A seat's connection is gone.
    pub fn lose(&mut self, seat: u16) {
        let generation = Generation(self.client(seat).generation);
        self.tell(Input::Lost { seat: Seat(seat), generation });
    }
    /// A seat comes back over a new connection, and sends again what was not acknowledged.
    pub fn come_back(&mut self, seat: u16) {
        self.client(seat).generation += 1;
        self.attach(Seat(seat), &[]);
        self.send_again(seat);
    }
    /// A seat sends again what was not acknowledged.
    pub fn send_again(&mut self, seat: u16) {
        self.client(seat).send_again = false;
        for (number, kind, payload) in self.client(seat).unacknowledged.clone() {
            self.frame(seat, kind, number, &payload);
        }
    }
    /// The instance is lost with its game server, and goes on from a snapshot of it as it is now: in another life, in
    /// which every seat that had a connection has one again. What was on its way to the store is undecided.
    ///
    /// # Panics
    /// If the kind is not storable, or its snapshot is not restored.
    pub fn go_on_elsewhere(&mut self) {
        let snapshot = self.core.snapshot().expect("the state encodes").expect("a storable kind");
        self.core = Registry::new()
            .with::<K>()
            .restore(K::KIND.spec.name, &snapshot)
            .expect("a kind reads what it wrote");
        self.documents.answers.clear();
        let attached: Vec<u16> = self
            .core
            .held()
            .seats
            .iter()
            .filter(|held| !held.away)
            .map(|held| held.seat.0)
            .collect();
        let seats = self.core.held().seats.iter().map(|held| (held.seat, held.session)).collect();
        let incarnation = Incarnation(self.core.incarnation().0 + 1);
        self.tell(Input::Revived { incarnation, seats });
        for client in self.clients.values_mut() {
            client.sent = Seq(0);
            client.received = Seq(0);
            client.unacknowledged.clear();
            client.views.clear();
        }
        for seat in attached {
            self.come_back(seat);
        }
    }
    /// A seat is given up by its holder.
    pub fn leave(&mut self, seat: u16) {
        let session = SessionId(u64::from(seat) << 32 | self.client(seat).session);
        let refusal = Refusal::new(crate::Code::Left, "left");
        self.tell(Input::Free { seat: Seat(seat), session, refusal });
    }
    /// A seat sends a message.
    pub fn send(&mut self, seat: u16, input: &impl Serialize) {
        self.send_bytes(seat, MESSAGE, &encode(input));
    }
    /// A seat calls; its answer is [`Self::reply`] of this number.
    pub fn call(&mut self, seat: u16, input: &impl Serialize) -> u32 {
        self.send_bytes(seat, CALL, &encode(input))
    }
    /// A seat sends a message or a call with this payload, as it is.
    pub fn send_bytes(&mut self, seat: u16, kind: u8, payload: &[u8]) -> u32 {
        let client = self.client(seat);
        client.sent = client.sent.next();
        let number = client.sent;
        client.unacknowledged.push((number, kind, payload.to_vec()));
        self.frame(seat, kind, number, payload);
        number.0
    }
    /// A seat asks, and is answered at once.
    ///
    /// # Errors
    /// What the game refuses.
    ///
    /// # Panics
    /// If there is no answer, or it is no `R`.
    pub fn query<R: DeserializeOwned>(
        &mut self,
        seat: u16,
        query: &impl Serialize,
    ) -> Result<R, Refusal> {
        let client = self.client(seat);
        client.queries += 1;
        let number = client.queries;
        self.frame(seat, QUERY, Seq(number), &encode(query));
        let answer = self.client(seat).query_answers.remove(&number);
        Ok(read(&answer.expect("queries are answered at once")?))
    }
    fn frame(&mut self, seat: u16, kind: u8, number: Seq, payload: &[u8]) {
        let ack = self.client(seat).received;
        self.tell(Input::Frame { seat: Seat(seat), kind, number, ack, payload });
    }
    /// Time passes: so many ticks.
    pub fn ticks(&mut self, n: u32) {
        let rate = f64::from(self.core.tick_rate().max(1));
        for _ in 0..n {
            self.pass(Duration::from_secs_f64(1.0 / rate));
            self.tell(Input::Tick);
        }
    }
    /// Time passes, with whatever is due in it: ticks, or at tick rate 0 what the instance waits for.
    pub fn wait(&mut self, span: Duration) {
        let rate = u128::from(self.core.tick_rate());
        if rate > 0 {
            self.ticks(u32::try_from(span.as_millis() * rate / 1000).unwrap_or(u32::MAX));
            return;
        }
        let end = self.now.moment.after(span);
        while let Some(due) = self.core.next_due().filter(|due| *due <= end) {
            self.pass(due.since(self.now.moment));
            self.tell(Input::Wake);
        }
        self.pass(end.since(self.now.moment));
    }
    fn pass(&mut self, span: Duration) {
        self.now.moment = self.now.moment.after(span);
        self.now.wall += span;
    }
    /// Tells the instance something else, and hands what it does to the clients.
    pub fn tell(&mut self, input: Input<'_>) {
        self.recording.push(self.now, &input);
        self.effects.clear();
        self.core.handle(self.now, input, &mut self.effects);
        let effects = std::mem::take(&mut self.effects);
        for effect in &effects.items {
            self.perform(effect, &effects);
        }
        self.effects = effects;
        if !self.documents.holds {
            self.answer();
        }
    }
    fn answer(&mut self) {
        if let Some((ticket, outcome)) = self.documents.answers.pop_front() {
            self.tell(Input::Stored { ticket, outcome });
        }
    }
    fn perform(&mut self, effect: &Effect, effects: &Effects) {
        let bytes = |payload: &Range<usize>| effects.payload(payload).to_vec();
        match effect {
            Effect::Attached { .. } => {}
            Effect::AttachRefused { seat, refusal, .. } => {
                self.client(seat.0).refused = Some(refusal.clone());
            }
            Effect::ToSeat { seat, kind, number, ack, payload, .. } => {
                self.client(seat.0).take(*kind, *number, *ack, &bytes(payload));
            }
            Effect::Patch { to, view, base, version, payload, .. } => {
                let delta = bytes(payload);
                for (_, client) in self.clients.iter_mut().filter(|(seat, client)| {
                    client.ended.is_none() && to.is_none_or(|to| to == **seat)
                }) {
                    let mirror = client.views.entry(view.0).or_default();
                    mirror.patch(*base, *version, &delta);
                }
            }
            Effect::Piece { seat, view, offset, version, total, payload, .. } => {
                let mirror = self.client(seat.0).views.entry(view.0).or_default();
                mirror.piece(*offset, *version, *total, &bytes(payload));
            }
            Effect::SeatEnded { seat, refusal } => {
                self.client(seat.0).ended = Some(refusal.clone());
            }
            Effect::Report(report) => self.reports.push((**report).clone()),
            Effect::Store(order) => {
                let outcome = self.documents.perform(order);
                self.documents.answers.push_back((order.ticket, outcome));
            }
            Effect::Desync { seat, view, reason } => {
                self.log
                    .push(eco_format!("warn: seat {seat} needs view {} again: {reason:?}", view.0));
            }
            Effect::Event(told) => self.told.push((**told).clone()),
            Effect::Log { level, text } => self.log.push(eco_format!("{level}: {text}")),
        }
    }
    fn client(&mut self, seat: u16) -> &mut Client {
        self.clients.entry(Seat(seat)).or_default()
    }

    /// The store keeps its answers from here on, until [`Self::release_store`]. What it does is done all the same.
    pub const fn hold_store(&mut self) {
        self.documents.holds = true;
    }
    /// The answers that the store kept come now, and later ones at once.
    pub fn release_store(&mut self) {
        self.documents.holds = false;
        self.answer();
    }
    /// The store refuses what it is asked next, and does nothing of it.
    pub fn refuse_store(&mut self, refusal: StoreRefusal) {
        self.documents.refusals.push_back(refusal);
    }
    /// A document of the store, by its whole key: `duel/top`.
    ///
    /// # Panics
    /// If it is no `T`.
    pub fn document<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        let (_, json) = self.documents.by_key.get(key)?;
        let document = serde_json::from_slice(json);
        Some(document.expect("the document is of the type that the test expects"))
    }
    /// Writes a document past the game, by its whole key.
    ///
    /// # Panics
    /// If it does not encode.
    pub fn set_document(&mut self, key: &str, document: &impl Serialize) {
        let json = serde_json::to_vec(document).expect("a test's document encodes");
        self.documents.write(key, json);
    }

    /// What the game sent to a seat since this was last asked, once and in order.
    ///
    /// # Panics
    /// If something is no `T`.
    pub fn events<T: DeserializeOwned>(&mut self, seat: u16) -> Vec<T> {
        std::mem::take(&mut self.client(seat).events).iter().map(|event| read(event)).collect()
    }
    /// The answer to a call, when it has come.
    ///
    /// # Panics
    /// If it is no `R`.
    pub fn reply<R: DeserializeOwned>(
        &mut self,
        seat: u16,
        number: u32,
    ) -> Option<Result<R, Refusal>> {
        let answer = self.client(seat).answers.remove(&number)?;
        Some(answer.map(|answer| read(&answer)))
    }
    /// The answer to a call, when it has come, as it is.
    pub fn reply_bytes(&mut self, seat: u16, number: u32) -> Option<Result<Vec<u8>, Refusal>> {
        self.client(seat).answers.remove(&number)
    }
    /// What a seat sees, by the patches that it got.
    ///
    /// # Panics
    /// If it sees nothing, or that is no `T`.
    pub fn view<T: DeserializeOwned>(&self, seat: u16) -> T {
        read(&self.view_bytes(seat, ViewId::SHARED).expect("the seat sees something"))
    }
    /// What only this seat sees.
    ///
    /// # Panics
    /// If that is no `T`.
    pub fn private_view<T: DeserializeOwned>(&self, seat: u16) -> Option<T> {
        self.view_bytes(seat, ViewId::of_seat(Seat(seat))).map(|bytes| read(&bytes))
    }
    /// A view of a seat as it has it.
    pub fn view_bytes(&self, seat: u16, view: ViewId) -> Option<Vec<u8>> {
        Some(self.clients.get(&Seat(seat))?.views.get(&view.0)?.bytes.clone())
    }
    /// Why the seat is gone, if it is.
    pub fn ended(&self, seat: u16) -> Option<&Refusal> {
        self.clients.get(&Seat(seat))?.ended.as_ref()
    }
    /// Whether the seat was told to send again.
    pub fn is_to_send_again(&self, seat: u16) -> bool {
        self.clients.get(&Seat(seat)).is_some_and(|client| client.send_again)
    }
    /// What the master was told since this was last asked.
    pub fn reports(&mut self) -> Vec<GameToMaster> {
        std::mem::take(&mut self.reports)
    }
    /// What was logged since this was last asked.
    pub fn log(&mut self) -> Vec<EcoString> {
        std::mem::take(&mut self.log)
    }
    /// What the event log was told since this was last asked.
    pub fn told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }
    /// What the last input did.
    pub const fn effects(&self) -> &Effects {
        &self.effects
    }
    /// The instance.
    pub const fn core(&self) -> &Core {
        &self.core
    }
    /// Everything that it was told.
    pub const fn recording(&self) -> &Recording {
        &self.recording
    }
}

impl Documents {
    fn write(&mut self, key: &str, json: Vec<u8>) -> DocumentVersion {
        self.last += 1;
        let version = DocumentVersion(self.last);
        self.by_key.insert(key.into(), (version, json));
        version
    }
    fn perform(&mut self, order: &StoreOrder) -> Result<Stored, StoreRefusal> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Err(refusal);
        }
        let key = &order.key;
        let there = self.by_key.get(key).map(|(version, json)| (*version, json.clone()));
        Ok(match (&order.act, there) {
            (StoreAct::Get | StoreAct::Remove, None) => Stored::Absent,
            (StoreAct::Get, Some((version, json))) => {
                Stored::Found(Document { key: key.clone(), version, json })
            }
            (StoreAct::Remove, Some(_)) => {
                self.by_key.remove(key);
                Stored::Removed
            }
            (StoreAct::Insert(_), Some(_)) => return Err(StoreRefusal::Exists),
            (StoreAct::Replace(version, _), there)
                if there.as_ref().is_none_or(|(of, _)| of != version) =>
            {
                return Err(StoreRefusal::Changed);
            }
            (StoreAct::Insert(json) | StoreAct::Upsert(json) | StoreAct::Replace(_, json), _) => {
                Stored::Written(self.write(key, json.clone()))
            }
            (StoreAct::Count(by), there) => {
                let no_counter = |why: &dyn fmt::Display| {
                    StoreRefusal::Unreadable(eco_format!("{key:?} can't be counted: {why}"))
                };
                let counter = there.map(|(_, json)| serde_json::from_slice(&json)).transpose();
                let Counter { count } =
                    counter.map_err(|error| no_counter(&error))?.unwrap_or_default();
                let count = count.checked_add(*by).ok_or_else(|| no_counter(&"it is full"))?;
                let json = serde_json::to_vec(&Counter { count }).expect("a number encodes");
                self.write(key, json);
                Stored::Counted(count)
            }
            (StoreAct::Find(search), _) => self.find(key, search),
        })
    }
    /// As the store finds them, as if there were an index over every field.
    fn find(&self, beginning: &str, search: &Search) -> Stored {
        let mut found: Vec<(SearchCursor, Document)> = Vec::new();
        for (key, (version, json)) in &self.by_key {
            let Ok(fields) = serde_json::from_slice::<Json>(json) else { continue };
            let value = |name: &EcoString| match fields.get(name.as_str())? {
                Json::Bool(value) => Some(MetaValue::Bool(*value)),
                Json::Number(number) => number.as_i64().map(MetaValue::Int),
                Json::String(text) => Some(MetaValue::Text(text.into())),
                Json::Null | Json::Array(_) | Json::Object(_) => None,
            };
            if key.starts_with(beginning) && search.filter.lets_through(&value) {
                let by = search.order.as_ref().and_then(|order| value(&order.field));
                let (key, version) = (key.clone(), *version);
                let document = Document { key: key.clone(), version, json: json.clone() };
                found.push((SearchCursor { value: by, key }, document));
            }
        }
        let descending = search.order.as_ref().is_some_and(|order| order.descending);
        let compare = |left: &SearchCursor, right: &SearchCursor| {
            let values = match (&left.value, &right.value) {
                (Some(left), Some(right)) if descending => right.cmp(left),
                (Some(left), Some(right)) => left.cmp(right),
                // Without the field, last.
                (left, right) => right.is_some().cmp(&left.is_some()),
            };
            values.then_with(|| left.key.cmp(&right.key))
        };
        found.sort_by(|(left, _), (right, _)| compare(left, right));
        found.retain(|(at, _)| search.after.as_ref().is_none_or(|end| compare(at, end).is_gt()));
        let mut bytes = 0;
        let count = found.iter().take(search.limit.into()).take_while(|(_, document)| {
            let has_room = bytes <= SEARCH_BYTES_MAX;
            bytes += document.json.len();
            has_room
        });
        let count = count.count();
        let next = (count < found.len()).then(|| found[count - 1].0.clone());
        found.truncate(count);
        Stored::Page { documents: found.into_iter().map(|(_, document)| document).collect(), next }
    }
}

impl Client {
    fn take(&mut self, kind: u8, number: Seq, ack: Seq, payload: &[u8]) {
        self.unacknowledged.retain(|(number, ..)| number.0 > ack.0);
        match kind {
            EVENT | REPLY | REPLY_REFUSED => {
                if number != self.received.next() {
                    assert!(number.0 <= self.received.0, "message {} did not come", number.0 - 1);
                    return; // It has come before.
                }
                self.received = number;
                match kind {
                    EVENT => self.events.push(payload.to_vec()),
                    _ => self.answer(kind == REPLY, payload),
                }
            }
            QUERY_REPLY => {
                self.query_answers.insert(number.0, Ok(payload.to_vec()));
            }
            QUERY_REFUSED => {
                self.query_answers.insert(number.0, Err(read(payload)));
            }
            SEND_AGAIN => self.send_again = true,
            _ => {}
        }
    }
    fn answer(&mut self, accepted: bool, payload: &[u8]) {
        let (call, payload) = payload.split_first_chunk().expect("an answer names its call");
        let answer = if accepted { Ok(payload.to_vec()) } else { Err(read(payload)) };
        let twice = self.answers.insert(u32::from_le_bytes(*call), answer).is_some();
        assert!(!twice, "a call was answered twice");
    }
}

impl Mirror {
    fn patch(&mut self, base: u32, version: u32, delta: &[u8]) {
        if self.version != base {
            return; // It is away, or has not had its first snapshot.
        }
        let mut target = Vec::new();
        greenroom_delta::apply(&self.bytes, delta, VIEW_BYTES_MAX, &mut target)
            .expect("a patch fits the version that it names");
        (self.version, self.bytes) = (version, target);
    }
    fn piece(&mut self, offset: u32, version: u32, total: u32, piece: &[u8]) {
        assert_eq!(offset as usize, if offset == 0 { 0 } else { self.pieces.len() });
        if offset == 0 {
            self.pieces.clear();
        }
        self.pieces.extend_from_slice(piece);
        if self.pieces.len() == total as usize {
            (self.version, self.bytes) = (version, std::mem::take(&mut self.pieces));
        }
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> T {
    decode(bytes, Limits::SERVER).expect("what the game sent is of the type that the test expects")
}

/// What [`replay`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// How many inputs there were.
    pub inputs: usize,
    /// Before which of them one run went through a snapshot; nothing for a kind that is not storable.
    pub restored_before: Option<usize>,
}

/// Two runs of the same inputs were not the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// After which input, from 0.
    pub input: usize,
    /// Which of the runs differed from the first: the second, or the one that went through a snapshot.
    pub run: &'static str,
    /// What differed.
    pub what: &'static str,
    /// In the first run.
    pub first: String,
    /// In the other.
    pub other: String,
}

impl fmt::Display for Divergence {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { input, run, what, first, other } = self;
        write!(
            out,
            "after input {input}, {what} of {run} is not that of the first run. A game reads time and randomness \
             from `cx` only, and iterates nothing whose order is random, such as a HashMap.\n\
             first: {first}\nother: {other}"
        )
    }
}

impl std::error::Error for Divergence {}

/// Runs recorded inputs twice, and once more with a snapshot and restore at a random place (`seed` says which), and
/// compares what they send and how their views look, after every input. The third run is for storable kinds.
///
/// # Errors
/// The first [`Divergence`].
///
/// # Panics
/// If the recording is not of this kind, or the kind's snapshot can't be taken.
pub fn replay<K: Instance>(recording: &Recording, seed: u64) -> Result<Replayed, Divergence> {
    let registry = Registry::new().with::<K>();
    let run = || Run {
        core: registry.create(&recording.order, recording.start).expect("a recording of this kind"),
        effects: Effects::new(),
    };
    let (mut first, mut second) = (run(), run());
    let count = recording.inputs().count();
    let is_storable = K::KIND.storage.is_some();
    let mut stored = is_storable.then(run);
    let place = SplitMix(seed).next() % u64::try_from(count.max(1)).expect("fits");
    let place = usize::try_from(place).expect("below the number of inputs");
    for (n, (now, input)) in recording.inputs().enumerate() {
        first.handle(now, input.clone());
        second.handle(now, input.clone());
        compare(n, "the second run", &first, &second)?;
        if let Some(stored) = &mut stored {
            if n == place && !stored.core.is_closed() {
                stored.store::<K>(&registry).expect("a storable kind is stored and restored");
            }
            stored.handle(now, input);
            compare(n, "the run through a snapshot", &first, stored)?;
        }
    }
    Ok(Replayed { inputs: count, restored_before: is_storable.then_some(place) })
}

struct Run {
    core: Core,
    effects: Effects,
}

impl Run {
    fn handle(&mut self, now: Now, input: Input<'_>) {
        self.effects.clear();
        self.core.handle(now, input, &mut self.effects);
    }
    fn store<K: Instance>(&mut self, registry: &Registry) -> Result<(), CoreFault> {
        if let Some(snapshot) = self.core.snapshot()? {
            self.core = registry.restore(K::KIND.spec.name, &snapshot)?;
        }
        Ok(())
    }
}

fn compare(input: usize, run: &'static str, first: &Run, other: &Run) -> Result<(), Divergence> {
    let differ = |what, first, other| Err(Divergence { input, run, what, first, other });
    let effects = &first.effects.items;
    for (n, effect) in effects.iter().enumerate() {
        let other_effect = other.effects.items.get(n);
        if other_effect != Some(effect) {
            return differ("an effect", format!("{effect:?}"), format!("{other_effect:?}"));
        }
    }
    if effects.len() != other.effects.items.len() {
        let extra = &other.effects.items[effects.len()..];
        return differ("the number of effects", String::new(), format!("{extra:?}"));
    }
    let views = (first.core.encode_view(), other.core.encode_view());
    if views.0 != views.1 {
        return differ("the view", format!("{:02x?}", views.0), format!("{:02x?}", views.1));
    }
    if first.effects.bytes != other.effects.bytes {
        let bytes = |run: &Run| format!("{:02x?}", run.effects.bytes);
        return differ("what is sent", bytes(first), bytes(other));
    }
    Ok(())
}

/// Steele and others, "Fast splittable pseudorandom number generators" (2014): one number from a seed.
struct SplitMix(u64);

impl SplitMix {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
