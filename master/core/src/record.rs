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
    Code, Epoch, Generation, Inbound, Incarnation, InstanceId, Key, KindName, Outbound, Refusal,
    RequestId, Seat, ServerName, SessionId, SessionKey, UserId, encode_into,
};
use serde::{Deserialize, Serialize};

use crate::boards::Member;
use crate::command::Origin;
use crate::deadlines::{Due, NEVER};
use crate::directory::{Instance, SeatRecord, SeatStage, Stage, Waiter, Wants, Wishes};
use crate::mint::ClusterSecret;
use crate::placement::Placement;
use crate::rejoin::Waiting;
use crate::servers::{GameServer, Health, Peer, Server, Servers, SessionServer};
use crate::state::{Settings, State};
use crate::users::{Life, Session};
use crate::watch::{GroupRecord, PlaceRecord};

/// A piece of the state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record(Piece);

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
    Member(MemberRecord),
    Departed(InstanceId, Code),
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
    key: Option<Key>,
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
    changes: u64,
    user: UserId,
    name: EcoString,
    score: i64,
    since: u64,
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
    /// A hash of everything that later commands depend on: equal states have equal hashes, whoever has them.
    pub fn state_hash(&self) -> u128 {
        let mut bytes = Vec::new();
        self.records().fold(0, |sum: u128, record| {
            bytes.clear();
            encode_into(&record, &mut bytes);
            let mut hash = [0; 16];
            hash.copy_from_slice(&self.secret.keyed(&bytes)[..16]);
            sum.wrapping_add(u128::from_le_bytes(hash))
        })
    }

    /// Everything that later commands depend on, in an order in which [`State::restore`] takes it.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let head = Head {
            lsn: self.lsn,
            now_ms: self.now_ms,
            epoch: self.epoch,
            announced: self.announced.clone(),
            has_begun: self.rejoin.has_begun,
            rejoin_until_ms: self.rejoin.until_ms,
            last_watch: self.watches.last(),
        };
        let kinds = self.directory.kinds();
        let kinds = kinds.map(|(kind, fields)| Piece::Kind(kind.clone(), fields.to_vec()));
        let instances = self.directory.iter().map(|(at, kind, instance)| {
            let meta = self.directory.listed_of(at).meta;
            Piece::Instance(Box::new(self.instance_record(kind, instance, meta)))
        });
        let meets = self
            .meets
            .iter()
            .map(|((kind, filter), instance)| Piece::Meet(kind.clone(), filter.clone(), *instance));
        let sessions = self.users.iter();
        let sessions =
            sessions.map(|(_, session)| Piece::Session(Box::new(self.session_record(session))));
        let members = self.boards.iter().map(|row| {
            let Member { user, name, score, since } = row.member.clone();
            let (board, changes) = (row.board.clone(), row.changes);
            Piece::Member(MemberRecord { board, changes, user, name, score, since })
        });
        let departed = self.departed.iter().map(|(id, code)| Piece::Departed(id, code.clone()));
        let groups = self.watches.groups().map(|group| Piece::Group(Box::new(group)));
        let ended = self.watches.ended();
        let ended =
            ended.map(|(session, watch, why)| Piece::WatchEnded(session, watch, why.clone()));
        std::iter::once(Piece::Head(head))
            .chain(self.session_servers.iter().flat_map(|(_, server)| session_server(server)))
            .chain(self.game_servers.iter().flat_map(|(_, server)| game_server(server)))
            .chain(kinds)
            .chain(instances)
            .chain(meets)
            .chain(sessions)
            .chain(self.rejoin.waiting.iter().cloned().map(Piece::Waiting))
            .chain(members)
            .chain(departed)
            .chain(groups)
            .chain(self.watches.places().map(Piece::Place))
            .chain(ended)
            .map(Record)
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
        for Record(piece) in records {
            match piece {
                Piece::Head(head) => {
                    has_head = true;
                    state.lsn = head.lsn;
                    state.now_ms = head.now_ms;
                    state.epoch = head.epoch;
                    state.announced = head.announced;
                    state.rejoin.has_begun = head.has_begun;
                    let until_ms = &mut state.rejoin.until_ms;
                    state.deadlines.set(until_ms, head.rejoin_until_ms, Due::Rejoined);
                    state.watches.set_last(head.last_watch);
                }
                Piece::SessionServer(record) => state.restore_session_server(record)?,
                Piece::ToSession(name, message) => {
                    stream(&mut state.session_servers, &name)?.push(message);
                }
                Piece::GameServer(record) => state.restore_game_server(record)?,
                Piece::ToGame(name, message) => {
                    stream(&mut state.game_servers, &name)?.push(message);
                }
                Piece::Kind(kind, fields) => {
                    let declared = state.directory.declare(&kind, &fields);
                    declared.map_err(|what| what.to_string())?;
                }
                Piece::Instance(record) => state.restore_instance(*record)?,
                Piece::Meet(kind, filter, instance) => {
                    state.meets.insert((kind, filter), instance);
                }
                Piece::Session(record) => state.restore_session(*record)?,
                Piece::Waiting(waiting) => state.rejoin.waiting.push_back(waiting),
                Piece::Member(record) => {
                    let MemberRecord { board, changes, user, name, score, since } = record;
                    let member = Member { user, name, score, since };
                    state.boards.restore(&board, changes, member)?;
                }
                Piece::Departed(id, code) => state.departed.push(id, code),
                Piece::Group(record) => state.restore_group(*record)?,
                Piece::Place(record) => state.watches.restore_place(record)?,
                Piece::WatchEnded(session, watch, refusal) => {
                    state.watches.restore_ended(session, watch, refusal);
                }
            }
        }
        if has_head { Ok(state) } else { Err(BadSnapshot("it has no beginning".to_owned())) }
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
        let at = self.directory.insert(&kind, instance);
        let (meta, wrong) = self.directory.pack(at, &record.meta);
        if let Some(wrong) = wrong {
            return Err(BadSnapshot(format!("instance {id}: {wrong}")));
        }
        self.directory.edit_meta(at, Some(meta), |_| ());
        self.game_servers.get_mut(server).add(id, weight);
        Ok(())
    }

    fn restore_session(&mut self, record: SessionRecord) -> Result<(), BadSnapshot> {
        let id = record.id;
        let is_twice = self.users.find(id).is_some()
            || record.key.as_ref().is_some_and(|key| self.users.find_key(key).is_some());
        if is_twice {
            return Err(BadSnapshot(format!("session {id} or its key is there twice")));
        }
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
                if self.users.find_user(&user).is_some() {
                    return Err(BadSnapshot(format!("user {user} has two sessions")));
                }
                self.users.insert(session, &user, name)
            }
            LifeRecord::Ended(refusal) => {
                session.life = Life::Ended(Box::new(refusal));
                self.users.keep(session)
            }
        };
        self.restore_deadline(record.until_ms, Due::Session(id));
        if let Some(name) = record.binding {
            let server = self.session_servers.named(&name);
            let server = server
                .ok_or_else(|| format!("session {id} is bound to {name}, which is not there"))?;
            self.users.bind(slot, Some(server));
            self.session_servers.get_mut(server).sessions.insert(id);
        }
        Ok(())
    }

    pub(crate) fn restore_deadline(&mut self, until_ms: u64, due: Due) {
        let mut none = NEVER;
        self.deadlines.set(&mut none, until_ms, due);
    }
}

fn session_server(server: &SessionServer) -> impl Iterator<Item = Piece> {
    let record = SessionServerRecord {
        peer: peer(&server.peer),
        urls: server.urls.clone(),
        connections_max: server.connections_max,
        load: server.load.clone(),
    };
    let name = &server.peer.name;
    let waiting = server.peer.out.unacknowledged();
    std::iter::once(Piece::SessionServer(record))
        .chain(waiting.map(|(_, message)| Piece::ToSession(name.clone(), message.clone())))
}

fn game_server(server: &GameServer) -> impl Iterator<Item = Piece> {
    let record = GameServerRecord {
        peer: peer(&server.peer),
        address: server.address.clone(),
        kinds: server.kinds.values().cloned().collect(),
        capacity: server.capacity,
        labels: server.labels.clone(),
        load: server.load.clone(),
    };
    let name = &server.peer.name;
    let waiting = server.peer.out.unacknowledged();
    std::iter::once(Piece::GameServer(record))
        .chain(waiting.map(|(_, message)| Piece::ToGame(name.clone(), message.clone())))
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
        acknowledged: peer.out.last() - peer.out.len() as u64,
    }
}

fn origin(peer: &PeerRecord) -> Origin {
    Origin { server: peer.name.clone(), incarnation: peer.incarnation }
}

/// The server's deadline is not set: that is [`State::restore_deadline`]'s.
fn restore_peer<M>(peer: &mut Peer<M>, record: PeerRecord) -> Result<(), BadSnapshot> {
    if peer.out.last() > 0 || peer.reported_ms > 0 {
        return Err(BadSnapshot(format!("server {} is there twice", record.name)));
    }
    peer.build = record.build;
    peer.health = record.health;
    peer.until_ms = record.until_ms;
    peer.reported_ms = record.reported_ms;
    peer.streams = record.streams;
    peer.drained = record.drained;
    peer.inbound = Inbound::up_to(record.received);
    peer.out = Outbound::acknowledged(record.acknowledged);
    Ok(())
}

fn stream<'a, S: Server>(
    servers: &'a mut Servers<S>,
    name: &ServerName,
) -> Result<&'a mut Outbound<S::Message>, BadSnapshot> {
    let slot = servers.named(name);
    let slot = slot.ok_or_else(|| format!("a message to {name}, which is not there"))?;
    Ok(&mut servers.get_mut(slot).peer_mut().out)
}
