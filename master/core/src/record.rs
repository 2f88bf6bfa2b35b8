//! The whole state as records: what a snapshot is made of, and what the state's hash is the sum of.
//!
//! Both come from the same words, so that nothing can be in one and missing in the other: a state that was restored has
//! the hash of the one that it was taken from, and goes on like it. A record names other records by their ids and never
//! by slots; indexes are no records, they are made again. The sum does not depend on an order, so that it can be kept
//! up at each write where that is needed.

use std::sync::Arc;

use ecow::EcoString;
use greenroom_protocol::search::{FieldInfo, Filter};
use greenroom_protocol::wire::client_session::{self, Meta};
use greenroom_protocol::wire::master_game::{GameLoad, KindInfo, MasterToGame};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::{MasterToSession, Outcome, SessionLoad};
use greenroom_protocol::{
    Code, Epoch, Generation, Inbound, Incarnation, InstanceId, KindName, Refusal, RequestId, Seat,
    ServerName, SessionId, SessionKey, UserId, encode_compact_into,
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::boards::Member;
use crate::changes::RowKey;
use crate::command::Origin;
use crate::deadlines::{Due, NEVER};
use crate::directory::{At, Instance, SeatRecord, SeatStage, Stage, Waiter, Wants, Wishes};
use crate::mint::ClusterSecret;
use crate::placement::Placement;
use crate::rejoin::Waiting;
use crate::search::Said;
use crate::servers::{GameServer, Health, Peer, Server, Servers, SessionServer, Slot};
use crate::state::{Gone, Settings, State};
use crate::users::{Life, Session};
use crate::watch::{GroupRecord, PlaceRecord};

/// A piece of the state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record(Piece);

impl Record {
    pub(crate) fn member(board: &EcoString, member: &Member) -> Self {
        let Member { user, name, score, since } = member.clone();
        Self(Piece::Member(MemberRecord { board: board.clone(), user, name, score, since }))
    }
    pub(crate) fn to_session(server: &ServerName, message: &MasterToSession) -> Self {
        Self(Piece::ToSession(server.clone(), message.clone()))
    }
    pub(crate) fn to_game(server: &ServerName, message: &MasterToGame) -> Self {
        Self(Piece::ToGame(server.clone(), message.clone()))
    }
    /// How much of a slice it is: most are one part.
    pub(crate) fn weight(&self) -> usize {
        match &self.0 {
            Piece::Group(group) => 1 + group.len() / 32,
            Piece::Instance(instance) => 1 + instance.seats.len() / 64,
            Piece::Head(_)
            | Piece::SessionServer(_)
            | Piece::ToSession(..)
            | Piece::GameServer(_)
            | Piece::ToGame(..)
            | Piece::Kind(..)
            | Piece::Meet(..)
            | Piece::Session(_)
            | Piece::Waiting(_)
            | Piece::Board(..)
            | Piece::Member(_)
            | Piece::Departed(..)
            | Piece::Place(_)
            | Piece::WatchEnded(..) => 1,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Piece {
    Head(Head),
    SessionServer(SessionServerRecord),
    ToSession(ServerName, MasterToSession),
    GameServer(GameServerRecord),
    ToGame(ServerName, MasterToGame),
    Kind(KindName, Vec<FieldInfo>),
    Instance(Box<InstanceRecord>),
    Meet(KindName, Filter, InstanceId),
    Session(Box<SessionRecord>),
    Waiting(Waiting),
    Board(EcoString, u64),
    Member(MemberRecord),
    Departed(u64, InstanceId, Code),
    Group(Box<GroupRecord>),
    Place(PlaceRecord),
    WatchEnded(SessionId, RequestId, Refusal),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Head {
    lsn: u64,
    now_ms: u64,
    epoch: Epoch,
    announced: Vec<client_session::SessionServer>,
    has_begun: bool,
    rejoin_until_ms: u64,
    last_watch: u64,
    /// Left out as long as it is 0: snapshots of older builds don't have it, and neither has their hash.
    #[serde(default, skip_serializing_if = "is_zero")]
    ahead_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct PeerRecord {
    name: ServerName,
    incarnation: Incarnation,
    build: EcoString,
    health: Health,
    until_ms: u64,
    reported_ms: u64,
    streams: u64,
    drained: bool,
    received: u64,
    /// Number of the last message that it has acknowledged; those that it has not follow as records of their own.
    acknowledged: u64,
    /// As [`Head::ahead_ms`].
    #[serde(default, skip_serializing_if = "is_zero")]
    reported_ahead_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SessionServerRecord {
    peer: PeerRecord,
    urls: Vec<EcoString>,
    connections_max: u32,
    load: SessionLoad,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct GameServerRecord {
    peer: PeerRecord,
    address: EcoString,
    kinds: Vec<KindInfo>,
    capacity: u32,
    labels: Vec<EcoString>,
    load: GameLoad,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own of an instance")]
struct InstanceRecord {
    kind: KindName,
    id: InstanceId,
    incarnation: Incarnation,
    created_ms: u64,
    owner: Option<UserId>,
    server: ServerName,
    weight: u32,
    seats_max: u16,
    stage: Stage,
    open: bool,
    suspect: bool,
    private: bool,
    durable: bool,
    key: Option<greenroom_protocol::Key>,
    meta: Meta,
    /// Those that are not free.
    seats: Vec<(Seat, SeatStage, SessionId, u64)>,
    waiters: Vec<(SessionId, RequestId, Wants)>,
    vacating: Vec<(Seat, SessionId)>,
    expected: Vec<(Seat, UserId)>,
    filter: Option<Filter>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SessionRecord {
    id: SessionId,
    key: Option<SessionKey>,
    life: LifeRecord,
    generation: Generation,
    binding: Option<ServerName>,
    bound_by: Option<u64>,
    until_ms: u64,
    seats: Vec<(InstanceId, Seat)>,
    answered: RequestId,
    requests: Vec<(RequestId, Option<Outcome>)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum LifeRecord {
    Live { user: UserId, name: EcoString },
    Ended(Refusal),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct MemberRecord {
    board: EcoString,
    user: UserId,
    name: EcoString,
    score: i64,
    since: u64,
}

/// The two records that change with nearly every command, as [`Piece`] has them and with the same bytes, but borrowed:
/// they are hashed more often than they are copied.
#[derive(Serialize)]
enum Words<'a> {
    Instance(InstanceWords<'a>),
    Session(SessionWords<'a>),
}

/// [`InstanceRecord`], borrowed.
#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own of an instance")]
struct InstanceWords<'a> {
    kind: &'a KindName,
    id: InstanceId,
    incarnation: Incarnation,
    created_ms: u64,
    owner: &'a Option<UserId>,
    server: &'a ServerName,
    weight: u32,
    seats_max: u16,
    stage: Stage,
    open: bool,
    suspect: bool,
    private: bool,
    durable: bool,
    key: Option<&'a greenroom_protocol::Key>,
    meta: Said<'a>,
    seats: &'a [(Seat, SeatStage, SessionId, u64)],
    waiters: &'a [(SessionId, RequestId, Wants)],
    vacating: &'a [(Seat, SessionId)],
    expected: &'a [(Seat, UserId)],
    filter: &'a Option<Filter>,
}

/// [`SessionRecord`], borrowed.
#[derive(Serialize)]
struct SessionWords<'a> {
    id: SessionId,
    key: &'a Option<SessionKey>,
    life: LifeWords<'a>,
    generation: Generation,
    binding: Option<&'a ServerName>,
    bound_by: Option<u64>,
    until_ms: u64,
    seats: &'a [(InstanceId, Seat)],
    answered: RequestId,
    requests: &'a [(RequestId, Option<Outcome>)],
}

/// [`LifeRecord`], borrowed.
#[derive(Serialize)]
enum LifeWords<'a> {
    Live { user: &'a UserId, name: &'a EcoString },
    Ended(&'a Refusal),
}

/// Why records are no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no snapshot of a master: {0}")]
pub struct BadSnapshot(String);

impl From<String> for BadSnapshot {
    fn from(what: String) -> Self {
        Self(what)
    }
}

impl State {
    /// Everything that later commands depend on, in an order in which [`State::restore`] takes it.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let keys = std::iter::successors(self.key_after(None), |&key| self.key_after(Some(key)));
        self.front().chain(keys.filter_map(|key| self.record(key)))
    }

    /// The records of the small tables.
    pub(crate) fn front(&self) -> impl Iterator<Item = Record> {
        let head = Head {
            lsn: self.lsn,
            now_ms: self.now_ms,
            epoch: self.epoch,
            announced: self.announced.clone(),
            has_begun: self.rejoin.has_begun,
            rejoin_until_ms: self.rejoin.until_ms,
            last_watch: self.watches.last(),
            ahead_ms: self.ahead_ms,
        };
        let kinds = self.directory.kinds();
        let kinds = kinds.map(|(kind, fields)| Piece::Kind(kind.clone(), fields.to_vec()));
        let meets = self
            .meets
            .iter()
            .map(|((kind, filter), instance)| Piece::Meet(kind.clone(), filter.clone(), *instance));
        let boards = self.boards.iter();
        let boards = boards.map(|(name, changes)| Piece::Board(name.clone(), changes));
        std::iter::once(Piece::Head(head))
            .chain(self.session_servers.iter().map(|(_, server)| session_server(server)))
            .chain(self.game_servers.iter().map(|(_, server)| game_server(server)))
            .chain(kinds)
            .chain(meets)
            .chain(self.rejoin.waiting.iter().cloned().map(Piece::Waiting))
            .chain(boards)
            .map(Record)
    }

    /// A record of a large table, if it is there.
    pub(crate) fn record(&self, key: RowKey) -> Option<Record> {
        let piece = match key {
            RowKey::ToSession(server, n) => return self.session_servers.record(server, n),
            RowKey::ToGame(server, n) => return self.game_servers.record(server, n),
            RowKey::Instance(at) => {
                let instance = self.directory.try_get(at)?;
                let (kind, meta) = (self.directory.kind(at), self.directory.meta(at));
                Piece::Instance(Box::new(self.instance_record(kind, instance, meta)))
            }
            RowKey::Session(slot) => {
                Piece::Session(Box::new(self.session_record(self.users.try_session(slot)?)))
            }
            RowKey::Member(board, slot) => return self.boards.record(board, slot),
            RowKey::Departed(n) => {
                let gone = self.departed.get(n)?;
                Piece::Departed(n, gone.id, gone.code.clone())
            }
            RowKey::Group(number) => Piece::Group(Box::new(self.watches.group_record(number)?)),
            RowKey::Place(session, watch) => {
                Piece::Place(self.watches.place_record(session, watch)?)
            }
            RowKey::WatchEnded(session, watch) => Piece::WatchEnded(
                session,
                watch,
                self.watches.ended_record(session, watch)?.clone(),
            ),
        };
        Some(Record(piece))
    }

    /// The first record of a large table after `key`, or of all.
    pub(crate) fn key_after(&self, key: Option<RowKey>) -> Option<RowKey> {
        let next = |slot: u32| slot.saturating_add(1);
        let to_session =
            |at| self.session_servers.message_from(at).map(|(s, n)| RowKey::ToSession(s, n));
        let to_game = |at| self.game_servers.message_from(at).map(|(s, n)| RowKey::ToGame(s, n));
        let instance = |at| self.directory.at_from(at).map(RowKey::Instance);
        let session = |slot| self.users.session_from(slot).map(RowKey::Session);
        let member =
            |at| self.boards.member_from(at).map(|(board, slot)| RowKey::Member(board, slot));
        let departed = |n| self.departed.from(n).map(RowKey::Departed);
        let group = |n| self.watches.group_from(n).map(RowKey::Group);
        let place = |after| self.watches.place_after(after).map(|(s, w)| RowKey::Place(s, w));
        let ended = |after| self.watches.ended_after(after).map(|(s, w)| RowKey::WatchEnded(s, w));

        // From the table that `key` is of on, the first that has one.
        let (table, found) = match key {
            None => (0, None),
            Some(RowKey::ToSession(server, n)) => (1, to_session((server, n + 1))),
            Some(RowKey::ToGame(server, n)) => (2, to_game((server, n + 1))),
            Some(RowKey::Instance(at)) => (3, instance(At { slot: next(at.slot), ..at })),
            Some(RowKey::Session(slot)) => (4, session(next(slot))),
            Some(RowKey::Member(board, slot)) => (5, member((board, next(slot)))),
            Some(RowKey::Departed(n)) => (6, departed(n + 1)),
            Some(RowKey::Group(n)) => (7, group(n + 1)),
            Some(RowKey::Place(session, watch)) => (8, place(Some((session, watch)))),
            Some(RowKey::WatchEnded(session, watch)) => (9, ended(Some((session, watch)))),
        };
        let first = |n| match n {
            0 => to_session((0, 0)),
            1 => to_game((0, 0)),
            2 => instance(At::FIRST),
            3 => session(0),
            4 => member((0, 0)),
            5 => departed(0),
            6 => group(0),
            7 => place(None),
            8 => ended(None),
            _ => None,
        };
        found.or_else(|| (table..9).find_map(first))
    }

    /// Appends the bytes by which a record is hashed: those of [`State::record`]. False if there is none.
    pub(crate) fn encode_record(&self, key: RowKey, bytes: &mut Vec<u8>) -> bool {
        match key {
            RowKey::Instance(at) => {
                let Some(instance) = self.directory.try_get(at) else { return false };
                self.encode_instance(at, instance, bytes);
            }
            RowKey::Session(slot) => {
                let Some(session) = self.users.try_session(slot) else { return false };
                self.encode_session(session, bytes);
            }
            RowKey::ToSession(..)
            | RowKey::ToGame(..)
            | RowKey::Member(..)
            | RowKey::Departed(_)
            | RowKey::Group(_)
            | RowKey::Place(..)
            | RowKey::WatchEnded(..) => {
                let Some(record) = self.record(key) else { return false };
                encode_compact_into(&record, bytes);
            }
        }
        true
    }

    fn encode_instance(&self, at: At, instance: &Instance, bytes: &mut Vec<u8>) {
        let Wishes { expected, filter } = instance.wishes();
        let seats = instance.seats();
        let seats: SmallVec<[_; 16]> =
            seats.map(|(number, seat)| (number, seat.stage, seat.session, seat.until_ms)).collect();
        let waiters = instance.waiters().iter();
        let waiters: SmallVec<[_; 4]> =
            waiters.map(|waiter| (waiter.session, waiter.id, waiter.wants)).collect();
        let words = InstanceWords {
            kind: self.directory.kind(at),
            id: instance.id,
            incarnation: instance.incarnation,
            created_ms: instance.created_ms,
            owner: &instance.owner,
            server: &self.game_servers.get(instance.server).peer.name,
            weight: instance.weight,
            seats_max: instance.seats_max,
            stage: instance.stage,
            open: instance.open,
            suspect: instance.suspect,
            private: instance.private,
            durable: instance.durable(),
            key: instance.key(),
            meta: self.directory.said(at),
            seats: &seats,
            waiters: &waiters,
            vacating: instance.vacating(),
            expected,
            filter,
        };
        encode_compact_into(&Words::Instance(words), bytes);
    }

    fn encode_session(&self, session: &Session, bytes: &mut Vec<u8>) {
        let life = match &session.life {
            Life::Live { user } => {
                let user = self.users.user(*user);
                LifeWords::Live { user: &user.id, name: &user.name }
            }
            Life::Ended(refusal) => LifeWords::Ended(refusal),
        };
        let seats = session.seats.iter().map(|(at, seat)| (self.directory.get(*at).id, *seat));
        let seats: SmallVec<[_; 8]> = seats.collect();
        let requests = session.requests.iter();
        let requests: SmallVec<[_; 2]> =
            requests.map(|asked| (asked.id(), self.answered(asked))).collect();
        let words = SessionWords {
            id: session.id,
            key: &session.key,
            life,
            generation: session.generation,
            binding: session.binding.map(|server| self.session_server_name(server)),
            bound_by: session.bound_by,
            until_ms: session.until_ms,
            seats: &seats,
            answered: session.requests.answered,
            requests: &requests,
        };
        encode_compact_into(&Words::Session(words), bytes);
    }

    fn instance_record(&self, kind: &KindName, instance: &Instance, meta: Meta) -> InstanceRecord {
        let Wishes { expected, filter } = instance.wishes().clone();
        let seats = instance.seats();
        let seats = seats.map(|(number, seat)| (number, seat.stage, seat.session, seat.until_ms));
        let waiters = instance.waiters().iter();
        InstanceRecord {
            kind: kind.clone(),
            id: instance.id,
            incarnation: instance.incarnation,
            created_ms: instance.created_ms,
            owner: instance.owner.clone(),
            server: self.game_servers.get(instance.server).peer.name.clone(),
            weight: instance.weight,
            seats_max: instance.seats_max,
            stage: instance.stage,
            open: instance.open,
            suspect: instance.suspect,
            private: instance.private,
            durable: instance.durable(),
            key: instance.key().cloned(),
            meta,
            seats: seats.collect(),
            waiters: waiters.map(|waiter| (waiter.session, waiter.id, waiter.wants)).collect(),
            vacating: instance.vacating().to_vec(),
            expected,
            filter,
        }
    }

    fn session_record(&self, session: &Session) -> SessionRecord {
        let life = match &session.life {
            Life::Live { user } => {
                let user = self.users.user(*user);
                LifeRecord::Live { user: user.id.clone(), name: user.name.clone() }
            }
            Life::Ended(refusal) => LifeRecord::Ended((**refusal).clone()),
        };
        let seats = session.seats.iter().map(|(at, seat)| (self.directory.get(*at).id, *seat));
        let requests = session.requests.iter();
        SessionRecord {
            id: session.id,
            key: session.key,
            life,
            generation: session.generation,
            binding: session.binding.map(|server| self.session_server_name(server).clone()),
            bound_by: session.bound_by,
            until_ms: session.until_ms,
            seats: seats.collect(),
            answered: session.requests.answered,
            requests: requests.map(|asked| (asked.id(), self.answered(asked))).collect(),
        }
    }

    /// The state that gave these records, in a master of the same cluster with the same settings and placement.
    ///
    /// # Errors
    /// When they are not what [`State::records`] gave, or not all of it.
    pub fn restore(
        secret: &ClusterSecret,
        settings: Settings,
        placement: Arc<dyn Placement>,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<Self, BadSnapshot> {
        let mut state = Self::with_placement(secret, settings, placement);
        let mut has_head = false;
        state.users.fill();
        state.directory.fill();
        for Record(piece) in records {
            state.tidy_changes();
            match piece {
                Piece::Head(head) => {
                    has_head = true;
                    state.lsn = head.lsn;
                    state.now_ms = head.now_ms;
                    state.ahead_ms = head.ahead_ms;
                    state.epoch = head.epoch;
                    state.announced = head.announced;
                    state.rejoin.has_begun = head.has_begun;
                    let until_ms = &mut state.rejoin.until_ms;
                    state.deadlines.set(until_ms, head.rejoin_until_ms, Due::Rejoined);
                    state.watches.set_last(head.last_watch);
                }
                Piece::SessionServer(record) => state.restore_session_server(record)?,
                Piece::ToSession(name, message) => {
                    let slot = speaker(&state.session_servers, &name)?;
                    state.tell_session(slot, message);
                }
                Piece::GameServer(record) => state.restore_game_server(record)?,
                Piece::ToGame(name, message) => {
                    let slot = speaker(&state.game_servers, &name)?;
                    state.tell_game(slot, message);
                }
                Piece::Kind(kind, fields) => {
                    let declared = state.declare(&kind, &fields);
                    declared.map_err(|what| what.to_string())?;
                }
                Piece::Instance(record) => state.restore_instance(*record)?,
                Piece::Meet(kind, filter, instance) => {
                    state.meets.insert((kind, filter), instance);
                }
                Piece::Session(record) => state.restore_session(*record)?,
                Piece::Waiting(waiting) => state.rejoin.waiting.push_back(waiting),
                Piece::Board(name, changes) => state.boards.restore_board(&name, changes)?,
                Piece::Member(record) => {
                    let MemberRecord { board, user, name, score, since } = record;
                    let member = Member { user, name, score, since };
                    state.boards.restore(&mut state.ledger, &board, member)?;
                }
                Piece::Departed(n, id, code) => {
                    let touched = state.touch(n);
                    state.departed.restore(&touched, Gone { id, code });
                }
                Piece::Group(record) => state.restore_group(*record)?,
                Piece::Place(record) => state.restore_place(record)?,
                Piece::WatchEnded(session, watch, refusal) => {
                    state.restore_ended(session, watch, refusal);
                }
            }
        }
        if !has_head {
            return Err(BadSnapshot("it has no beginning".to_owned()));
        }
        state.users.order(&state.secret)?;
        state.directory.order();
        let bound =
            state.users.iter().filter_map(|(_, session)| Some((session.binding?, session.id)));
        state.session_servers.bind_all(bound);
        state.check();
        Ok(state)
    }

    fn restore_session_server(&mut self, record: SessionServerRecord) -> Result<(), BadSnapshot> {
        let slot = self.session_servers.named_or_new(&origin(&record.peer));
        let server = self.session_servers.get_mut(slot);
        server.urls = record.urls;
        server.connections_max = record.connections_max;
        server.load = record.load;
        restore_peer(&mut server.peer, record.peer)?;
        let (until_ms, name) = (server.peer.until_ms, server.peer.name.clone());
        self.restore_deadline(until_ms, Due::Server(Role::Session, name));
        Ok(())
    }

    fn restore_game_server(&mut self, record: GameServerRecord) -> Result<(), BadSnapshot> {
        let slot = self.game_servers.named_or_new(&origin(&record.peer));
        let server = self.game_servers.get_mut(slot);
        server.address = record.address;
        server.kinds = record.kinds.into_iter().map(|kind| (kind.name.clone(), kind)).collect();
        server.capacity = record.capacity;
        server.labels = record.labels;
        server.load = record.load;
        restore_peer(&mut server.peer, record.peer)?;
        let (until_ms, name) = (server.peer.until_ms, server.peer.name.clone());
        self.restore_deadline(until_ms, Due::Server(Role::Game, name));
        Ok(())
    }

    fn restore_instance(&mut self, record: InstanceRecord) -> Result<(), BadSnapshot> {
        let InstanceRecord { id, kind, seats_max, weight, .. } = record;
        let server = self.game_servers.named(&record.server);
        let server = server
            .ok_or_else(|| format!("instance {id} is on {}, which is not there", record.server))?;
        if self.directory.find(id).is_some()
            || record.key.as_ref().is_some_and(|key| self.directory.by_key(&kind, key).is_some())
        {
            return Err(BadSnapshot(format!("instance {id} or its key is there twice")));
        }
        let mut instance = Instance::granted(id, record.incarnation, server, seats_max, weight);
        instance.created_ms = record.created_ms;
        instance.owner = record.owner;
        instance.stage = record.stage;
        instance.open = record.open;
        instance.suspect = record.suspect;
        instance.private = record.private;
        instance.durable_set(record.durable);
        instance.key_set(record.key);
        for (seat, stage, session, until_ms) in record.seats {
            if seat.0 >= seats_max {
                return Err(BadSnapshot(format!("instance {id} has a seat too many")));
            }
            instance.seat_set(seat, SeatRecord { stage, session, until_ms });
            self.restore_deadline(until_ms, Due::Seat(id, seat));
        }
        let waiters = record.waiters.into_iter();
        let waiters = waiters.map(|(session, id, wants)| Waiter { session, id, wants });
        instance.waiters_mut().extend(waiters);
        *instance.vacating_mut() = record.vacating;
        for (_, user) in &record.expected {
            self.expected.insert((user.clone(), kind.clone(), id));
        }
        instance.wish(|wishes| {
            *wishes = Wishes { expected: record.expected, filter: record.filter };
        });
        let restored = self.directory.restore(&mut self.ledger, &kind, instance, &record.meta);
        restored.map_err(|wrong| format!("instance {id}: {wrong}"))?;
        self.game_servers.get_mut(server).add(id, weight);
        if record.stage == Stage::Stranded {
            self.stranded.insert((kind, id));
        }
        Ok(())
    }

    fn restore_session(&mut self, record: SessionRecord) -> Result<(), BadSnapshot> {
        let id = record.id;
        let mut session = Session::new(id, record.key, record.generation);
        session.bound_by = record.bound_by;
        session.until_ms = record.until_ms;
        for (instance, seat) in record.seats {
            let at = self.directory.find(instance);
            let at =
                at.ok_or_else(|| format!("session {id} sits in {instance}, which is not there"))?;
            session.seats.push((at, seat));
        }
        session.requests.answered = record.answered;
        for (request, outcome) in record.requests {
            session.requests.begin(request);
            if let Some(outcome) = outcome {
                let decided = self.kept(&session.seats, request, &outcome);
                session.requests.decide(decided);
            }
        }
        let slot = match record.life {
            LifeRecord::Live { user, name } => {
                self.users.insert(&mut self.ledger, session, &user, name)
            }
            LifeRecord::Ended(refusal) => {
                session.life = Life::Ended(Box::new(refusal));
                self.users.keep(&mut self.ledger, session)
            }
        };
        self.restore_deadline(record.until_ms, Due::Session(id));
        if let Some(name) = record.binding {
            let server = self.session_servers.named(&name);
            let server = server
                .ok_or_else(|| format!("session {id} is bound to {name}, which is not there"))?;
            let touched = self.touch(slot);
            self.users.bind(&touched, Some(server));
        }
        Ok(())
    }

    pub(crate) fn restore_deadline(&mut self, until_ms: u64, due: Due) {
        let mut none = NEVER;
        self.deadlines.set(&mut none, until_ms, due);
    }
}

fn session_server(server: &SessionServer) -> Piece {
    Piece::SessionServer(SessionServerRecord {
        peer: peer(&server.peer),
        urls: server.urls.clone(),
        connections_max: server.connections_max,
        load: server.load.clone(),
    })
}

fn game_server(server: &GameServer) -> Piece {
    Piece::GameServer(GameServerRecord {
        peer: peer(&server.peer),
        address: server.address.clone(),
        kinds: server.kinds.values().cloned().collect(),
        capacity: server.capacity,
        labels: server.labels.clone(),
        load: server.load.clone(),
    })
}

fn peer<M>(peer: &Peer<M>) -> PeerRecord {
    PeerRecord {
        name: peer.name.clone(),
        incarnation: peer.incarnation,
        build: peer.build.clone(),
        health: peer.health,
        until_ms: peer.until_ms,
        reported_ms: peer.reported_ms,
        streams: peer.streams,
        drained: peer.drained,
        received: peer.inbound.received(),
        acknowledged: peer.out().last() - peer.out().len() as u64,
        reported_ahead_ms: peer.reported_ahead_ms,
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(ms: &u64) -> bool {
    *ms == 0
}

fn origin(peer: &PeerRecord) -> Origin {
    Origin { server: peer.name.clone(), incarnation: peer.incarnation }
}

/// The server's deadline is not set: that is [`State::restore_deadline`]'s.
fn restore_peer<M>(peer: &mut Peer<M>, record: PeerRecord) -> Result<(), BadSnapshot> {
    if peer.out().last() > 0 || peer.reported_ms > 0 {
        return Err(BadSnapshot(format!("server {} is there twice", record.name)));
    }
    peer.build = record.build;
    peer.health = record.health;
    peer.until_ms = record.until_ms;
    peer.reports(record.reported_ms, record.reported_ahead_ms);
    peer.streams = record.streams;
    peer.drained = record.drained;
    peer.inbound = Inbound::up_to(record.received);
    peer.restore_out(record.acknowledged);
    Ok(())
}

fn speaker<S: Server>(servers: &Servers<S>, name: &ServerName) -> Result<Slot<S>, BadSnapshot> {
    let slot = servers.named(name);
    Ok(slot.ok_or_else(|| format!("a message to {name}, which is not there"))?)
}
