//! Session servers and game servers: whether they are there, what they can do, and the streams to and from them.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::num::NonZeroU32;

use ecow::EcoString;
use greenroom_protocol::wire::client_session;
use greenroom_protocol::wire::master_game::{GameCounts, GameLoad, KindInfo, MasterToGame};
use greenroom_protocol::wire::session_master::{MasterToSession, SessionCounts, SessionLoad};
use greenroom_protocol::{
    Inbound, Incarnation, InstanceId, KindName, Outbound, ServerName, SessionId,
};
use serde::{Deserialize, Serialize};
use slab::Slab;

use crate::changes::{Ledger, RowKey, Touched, Tracked};
use crate::command::Origin;
use crate::deadlines::NEVER;
use crate::directory::slot_of;
use crate::record::Record;

/// Where a session server's record is.
pub(crate) type SessionSlot = Slot<SessionServer>;
/// Where a game server's record is.
pub(crate) type GameSlot = Slot<GameServer>;

/// Where a record is, by its type, so that the two tables can't be mixed up.
/// One more than its index, so that a binding that may be none takes no more room.
#[derive(Debug)]
pub(crate) struct Slot<S>(NonZeroU32, PhantomData<fn() -> S>);

impl<S> Slot<S> {
    fn new(index: u32) -> Self {
        let number = NonZeroU32::MIN.checked_add(index);
        Self(number.expect("a cluster has fewer servers than a u32 has numbers"), PhantomData)
    }
    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
    fn place(self) -> u32 {
        self.0.get() - 1
    }
}

impl<S> Clone for Slot<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S> Copy for Slot<S> {}
impl<S> PartialEq for Slot<S> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// Whether a server is there. Suspect is not dead: nothing is taken from it until its time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Health {
    /// Its link is in use.
    Up,
    /// Its link is gone, since a short while.
    Suspect,
    /// It is given up: what it had is lost.
    Down,
}

impl Health {
    pub(crate) fn text(self, draining: bool) -> &'static str {
        match self {
            Self::Up if draining => "draining",
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// What both roles have.
#[derive(Debug)]
pub(crate) struct Peer<M> {
    pub(crate) name: ServerName,
    pub(crate) incarnation: Incarnation,
    pub(crate) build: EcoString,
    pub(crate) health: Health,
    /// Suspect: when it is given up. Down: when it is forgotten.
    pub(crate) until_ms: u64,
    /// When it last said how it is, in the log's time.
    pub(crate) reported_ms: u64,
    /// How far the time that people are shown was ahead of the log's then.
    pub(crate) reported_ahead_ms: u64,
    /// Number of the command that began both streams.
    pub(crate) streams: u64,
    /// An operator wants it to be given nothing new, whatever it says itself. Until its process ends.
    pub(crate) drained: bool,
    /// What came from it.
    pub(crate) inbound: Inbound,
    /// What goes to it.
    out: Outbound<M>,
}

impl<M> Peer<M> {
    fn new(origin: &Origin) -> Self {
        Self {
            name: origin.server.clone(),
            incarnation: origin.incarnation,
            build: EcoString::new(),
            health: Health::Down,
            until_ms: NEVER,
            reported_ms: 0,
            reported_ahead_ms: 0,
            streams: 0,
            drained: false,
            inbound: Inbound::default(),
            out: Outbound::default(),
        }
    }
    /// What goes to it. Changes by [`Servers::tell`] and [`Servers::acknowledge`].
    pub(crate) fn out(&self) -> &Outbound<M> {
        &self.out
    }
    /// Begins the stream to it behind message `last`, before anything was told.
    pub(crate) fn restore_out(&mut self, last: u64) {
        self.out = Outbound::acknowledged(last);
    }
    /// It has just said how it is.
    pub(crate) fn reports(&mut self, now_ms: u64, ahead_ms: u64) {
        (self.reported_ms, self.reported_ahead_ms) = (now_ms, ahead_ms);
    }
    /// When it last said how it is, as people are shown it.
    pub(crate) fn reported_shown_ms(&self) -> u64 {
        self.reported_ms.saturating_add(self.reported_ahead_ms)
    }
    /// Milliseconds since it last said how it is.
    pub(crate) fn silent_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.reported_ms)
    }
}

#[derive(Debug)]
pub(crate) struct SessionServer {
    pub(crate) peer: Peer<MasterToSession>,
    pub(crate) urls: Vec<EcoString>,
    pub(crate) connections_max: u32,
    pub(crate) load: SessionLoad,
    /// The sessions that are bound to it: index of their bindings.
    pub(crate) sessions: BTreeSet<SessionId>,
}

impl SessionServer {
    /// Takes no new clients: it says so, or an operator does.
    pub(crate) fn is_draining(&self) -> bool {
        self.load.draining || self.peer.drained
    }
}

#[derive(Debug)]
pub(crate) struct GameServer {
    pub(crate) peer: Peer<MasterToGame>,
    pub(crate) address: EcoString,
    /// The kinds that it can run, but for those of which it said something impossible.
    pub(crate) kinds: BTreeMap<KindName, KindInfo>,
    pub(crate) capacity: u32,
    pub(crate) labels: Vec<EcoString>,
    pub(crate) load: GameLoad,
    /// The instances that are placed on it: index of their servers.
    pub(crate) instances: BTreeSet<InstanceId>,
    /// The sum of their weights.
    pub(crate) used: u64,
    /// Instances that it said it runs, above those that it may run: see [`GameServer::reports`]. For operators; it
    /// decides nothing and is in no record, since the next report tells it anew.
    pub(crate) orphans: u32,
}

impl GameServer {
    /// Takes no new instances: it says so, or an operator does.
    pub(crate) fn is_draining(&self) -> bool {
        self.load.draining || self.peer.drained
    }
    /// It says how it is. What it runs is either placed on it, or is about to be told to stop: that message is kept
    /// until it is acknowledged, which the server does after it has stopped the instance. Anything above is an orphan.
    pub(crate) fn reports(&mut self, load: &GameLoad) {
        // One that is closing is placed there until the server says that it is closed.
        let stops = self.peer.out().unacknowledged().filter(|(_, told)| match told {
            MasterToGame::Destroy(stop) => !self.instances.contains(&stop.instance),
            MasterToGame::Create(_)
            | MasterToGame::FreeSeat(_)
            | MasterToGame::Received(_)
            | MasterToGame::Welcome(_)
            | MasterToGame::NewEpoch(_)
            | MasterToGame::Renewed(_)
            | MasterToGame::Measure(_)
            | MasterToGame::Traced(_)
            | MasterToGame::Unknown(_) => false,
        });
        let stopping = stops.count();
        let known = u32::try_from(self.instances.len() + stopping).unwrap_or(u32::MAX);
        self.orphans = load.instances.saturating_sub(known);
        self.load = load.clone();
    }
    /// An instance is placed on it.
    pub(crate) fn add(&mut self, id: InstanceId, weight: u32) {
        if self.instances.insert(id) {
            self.used += u64::from(weight);
        }
    }
    /// An instance is gone.
    pub(crate) fn take(&mut self, id: InstanceId, weight: u32) {
        if self.instances.remove(&id) {
            self.used -= u64::from(weight);
        }
    }
}

/// A message to a session server, as a row: by the server's place and by its number.
pub(crate) struct ToSession;
/// A message to a game server, as a row.
pub(crate) struct ToGame;

impl Tracked for ToSession {
    type At = (u32, u64);
    fn key((server, n): (u32, u64)) -> RowKey {
        RowKey::ToSession(server, n)
    }
}

impl Tracked for ToGame {
    type At = (u32, u64);
    fn key((server, n): (u32, u64)) -> RowKey {
        RowKey::ToGame(server, n)
    }
}

/// A record of one of the two roles.
pub(crate) trait Server {
    type Message;
    /// What the messages to it are called as rows.
    type Told: Tracked<At = (u32, u64)>;
    /// A message to it as a record.
    fn record(name: &ServerName, message: &Self::Message) -> Record;
    fn new(origin: &Origin) -> Self;
    fn peer(&self) -> &Peer<Self::Message>;
    fn peer_mut(&mut self) -> &mut Peer<Self::Message>;
}

impl Server for SessionServer {
    type Message = MasterToSession;
    type Told = ToSession;
    fn record(name: &ServerName, message: &MasterToSession) -> Record {
        Record::to_session(name, message)
    }
    fn new(origin: &Origin) -> Self {
        Self {
            peer: Peer::new(origin),
            urls: Vec::new(),
            connections_max: 0,
            load: SessionLoad {
                connections: 0,
                busy_permille: 0,
                draining: false,
                counts: SessionCounts::default(),
            },
            sessions: BTreeSet::new(),
        }
    }
    fn peer(&self) -> &Peer<MasterToSession> {
        &self.peer
    }
    fn peer_mut(&mut self) -> &mut Peer<MasterToSession> {
        &mut self.peer
    }
}

impl Server for GameServer {
    type Message = MasterToGame;
    type Told = ToGame;
    fn record(name: &ServerName, message: &MasterToGame) -> Record {
        Record::to_game(name, message)
    }
    fn new(origin: &Origin) -> Self {
        Self {
            peer: Peer::new(origin),
            address: EcoString::new(),
            kinds: BTreeMap::new(),
            capacity: 0,
            labels: Vec::new(),
            load: GameLoad {
                instances: 0,
                seats: 0,
                busy_permille: 0,
                draining: false,
                sent: 0,
                counts: GameCounts::default(),
            },
            instances: BTreeSet::new(),
            used: 0,
            orphans: 0,
        }
    }
    fn peer(&self) -> &Peer<MasterToGame> {
        &self.peer
    }
    fn peer_mut(&mut self) -> &mut Peer<MasterToGame> {
        &mut self.peer
    }
}

/// All servers of one role, by name.
#[derive(Debug)]
pub(crate) struct Servers<S> {
    servers: Slab<S>,
    by_name: BTreeMap<ServerName, u32>,
}

impl<S> Default for Servers<S> {
    fn default() -> Self {
        Self { servers: Slab::new(), by_name: BTreeMap::new() }
    }
}

impl<S: Server> Servers<S> {
    pub(crate) fn get(&self, slot: Slot<S>) -> &S {
        &self.servers[slot.index()]
    }
    pub(crate) fn get_mut(&mut self, slot: Slot<S>) -> &mut S {
        &mut self.servers[slot.index()]
    }
    pub(crate) fn named(&self, name: &ServerName) -> Option<Slot<S>> {
        self.by_name.get(name).map(|&index| Slot::new(index))
    }
    /// The server that speaks, if it has reported and this is its life: nobody else is listened to.
    pub(crate) fn speaker(&self, origin: &Origin) -> Option<Slot<S>> {
        self.named(&origin.server).filter(|&slot| {
            let peer = self.get(slot).peer();
            peer.incarnation == origin.incarnation && peer.health == Health::Up
        })
    }
    /// The record of a server that reports, made anew if it was not known.
    pub(crate) fn named_or_new(&mut self, origin: &Origin) -> Slot<S> {
        if let Some(slot) = self.named(&origin.server) {
            return slot;
        }
        let index = slot_of(self.servers.insert(S::new(origin)));
        self.by_name.insert(origin.server.clone(), index);
        Slot::new(index)
    }
    /// The same, and writes down that it has just said how it is.
    pub(crate) fn reporter(
        &mut self,
        origin: &Origin,
        now_ms: u64,
        ahead_ms: u64,
    ) -> Option<Slot<S>> {
        let slot = self.speaker(origin)?;
        self.get_mut(slot).peer_mut().reports(now_ms, ahead_ms);
        Some(slot)
    }
    /// Appends a message to the stream to a server.
    pub(crate) fn tell(&mut self, ledger: &mut Ledger, slot: Slot<S>, message: S::Message) {
        let n = self.get_mut(slot).peer_mut().out.push(message);
        ledger.added::<S::Told>((slot.place(), n));
    }
    /// A server has what it was told up to number `n`.
    pub(crate) fn acknowledge(&mut self, ledger: &mut Ledger, slot: Slot<S>, n: u64) {
        let peer = self.get_mut(slot).peer_mut();
        for (told, message) in peer.out.unacknowledged().take_while(|(told, _)| *told <= n) {
            let record = || Some(S::record(&peer.name, message));
            let _: Touched<S::Told> = ledger.touch((slot.place(), told), record);
        }
        peer.out.acknowledge(n);
    }
    /// Begins the life `origin` of the server by command `lsn`: its record and both streams are new. Its deadline is
    /// [`NEVER`] before.
    pub(crate) fn renew(&mut self, ledger: &mut Ledger, slot: Slot<S>, origin: &Origin, lsn: u64) {
        self.acknowledge(ledger, slot, u64::MAX);
        let server = self.get_mut(slot);
        *server = S::new(origin);
        server.peer_mut().streams = lsn;
    }
    /// The number of its streams, if it is there in this life of it.
    pub(crate) fn streams(&self, name: &ServerName, incarnation: Incarnation) -> Option<u64> {
        let origin = Origin { server: name.clone(), incarnation };
        self.speaker(&origin).map(|slot| self.get(slot).peer().streams)
    }
    /// Those that are there, by name.
    pub(crate) fn up(&self) -> impl Iterator<Item = Origin> {
        let up = self.iter().map(|(_, server)| server.peer());
        let up = up.filter(|peer| peer.health == Health::Up);
        up.map(|peer| Origin { server: peer.name.clone(), incarnation: peer.incarnation })
    }
    /// A message that a server has not acknowledged, as a record.
    pub(crate) fn record(&self, place: u32, n: u64) -> Option<Record> {
        let peer = self.servers.get(place as usize)?.peer();
        Some(S::record(&peer.name, peer.out.get(n)?))
    }
    /// The first message from this place and number on that is not acknowledged.
    pub(crate) fn message_from(&self, (place, n): (u32, u64)) -> Option<(u32, u64)> {
        let after = n.saturating_sub(1);
        let at = |place: u32| self.servers.get(place as usize).map(Server::peer);
        let here = at(place).and_then(|peer| peer.out.after(after).next());
        if let Some((n, _)) = here {
            return Some((place, n));
        }
        let mut others = place.saturating_add(1)..slot_of(self.servers.capacity());
        others.find_map(|place| Some((place, at(place)?.out.unacknowledged().next()?.0)))
    }
    pub(crate) fn remove(&mut self, ledger: &mut Ledger, slot: Slot<S>) {
        self.acknowledge(ledger, slot, u64::MAX);
        let server = self.servers.remove(slot.index());
        self.by_name.remove(&server.peer().name);
    }
    /// By name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot<S>, &S)> {
        self.by_name.values().map(|&index| (Slot::new(index), &self.servers[index as usize]))
    }
}

impl Servers<SessionServer> {
    /// Writes down which sessions are bound to which server, where none are yet: sorted first, a list is made at once.
    pub(crate) fn bind_all(&mut self, bound: impl Iterator<Item = (SessionSlot, SessionId)>) {
        let mut lists: BTreeMap<u32, Vec<SessionId>> = BTreeMap::new();
        for (slot, session) in bound {
            lists.entry(slot.place()).or_default().push(session);
        }
        for (place, sessions) in lists {
            self.servers[place as usize].sessions = sessions.into_iter().collect();
        }
    }
    /// Those that take clients. A suspect one may be back before its clients have noticed.
    pub(crate) fn open(&self) -> Vec<client_session::SessionServer> {
        let open = self.iter().filter(|(_, server)| {
            server.peer.health != Health::Down && !server.is_draining() && !server.urls.is_empty()
        });
        open.map(|(_, server)| client_session::SessionServer {
            name: server.peer.name.as_str().into(),
            urls: server.urls.clone(),
        })
        .collect()
    }
}
