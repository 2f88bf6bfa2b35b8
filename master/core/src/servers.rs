//! Session servers and game servers: whether they are there, what they can do, and the streams to and from them.

use std::collections::{BTreeMap, BTreeSet};

use ecow::{EcoString, eco_format};
use greenroom_protocol::wire::client_session;
use greenroom_protocol::wire::master_game::{GameLoad, KindInfo, MasterToGame};
use greenroom_protocol::wire::session_master::{MasterToSession, SessionLoad};
use greenroom_protocol::{
    Code, Inbound, Incarnation, InstanceId, KindName, Outbound, Refusal, ServerName, SessionId,
};
use slab::Slab;

use crate::command::Origin;
use crate::deadlines::NEVER;
use crate::directory::slot_of;

/// Kinds that are named to a client that asked for one that nobody knows.
const KINDS_NAMED_MAX: usize = 20;

/// Where a session server's record is.
pub(crate) type SessionSlot = Slot<SessionServer>;
/// Where a game server's record is.
pub(crate) type GameSlot = Slot<GameServer>;

/// Where a record is, by its type, so that the two tables can't be mixed up.
#[derive(Debug)]
pub(crate) struct Slot<S>(u32, std::marker::PhantomData<fn() -> S>);

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// What came from it.
    pub(crate) inbound: Inbound,
    /// What goes to it.
    pub(crate) out: Outbound<M>,
}

impl<M> Peer<M> {
    fn new(origin: &Origin) -> Self {
        Self {
            name: origin.server.clone(),
            incarnation: origin.incarnation,
            build: EcoString::new(),
            health: Health::Down,
            until_ms: NEVER,
            inbound: Inbound::default(),
            out: Outbound::default(),
        }
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

#[derive(Debug)]
pub(crate) struct GameServer {
    pub(crate) peer: Peer<MasterToGame>,
    pub(crate) address: EcoString,
    pub(crate) kinds: BTreeMap<KindName, KindInfo>,
    pub(crate) capacity: u32,
    pub(crate) labels: Vec<EcoString>,
    pub(crate) load: GameLoad,
    /// The instances that are placed on it: index of their servers.
    pub(crate) instances: BTreeSet<InstanceId>,
}

/// A record of one of the two roles.
pub(crate) trait Server {
    type Message;
    fn new(origin: &Origin) -> Self;
    fn peer(&self) -> &Peer<Self::Message>;
}

impl Server for SessionServer {
    type Message = MasterToSession;
    fn new(origin: &Origin) -> Self {
        Self {
            peer: Peer::new(origin),
            urls: Vec::new(),
            connections_max: 0,
            load: SessionLoad { connections: 0, busy_permille: 0, draining: false },
            sessions: BTreeSet::new(),
        }
    }
    fn peer(&self) -> &Peer<MasterToSession> {
        &self.peer
    }
}

impl Server for GameServer {
    type Message = MasterToGame;
    fn new(origin: &Origin) -> Self {
        Self {
            peer: Peer::new(origin),
            address: EcoString::new(),
            kinds: BTreeMap::new(),
            capacity: 0,
            labels: Vec::new(),
            load: GameLoad { instances: 0, seats: 0, busy_permille: 0, draining: false },
            instances: BTreeSet::new(),
        }
    }
    fn peer(&self) -> &Peer<MasterToGame> {
        &self.peer
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
        &self.servers[slot.0 as usize]
    }
    pub(crate) fn get_mut(&mut self, slot: Slot<S>) -> &mut S {
        &mut self.servers[slot.0 as usize]
    }
    pub(crate) fn named(&self, name: &ServerName) -> Option<Slot<S>> {
        self.by_name.get(name).map(|&slot| Slot(slot, std::marker::PhantomData))
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
        let slot = slot_of(self.servers.insert(S::new(origin)));
        self.by_name.insert(origin.server.clone(), slot);
        Slot(slot, std::marker::PhantomData)
    }
    /// Begins the life `origin` of the server: its record and both streams are new. Its deadline is [`NEVER`] before.
    pub(crate) fn renew(&mut self, slot: Slot<S>, origin: &Origin) {
        *self.get_mut(slot) = S::new(origin);
    }
    pub(crate) fn remove(&mut self, slot: Slot<S>) {
        let server = self.servers.remove(slot.0 as usize);
        self.by_name.remove(&server.peer().name);
    }
    /// By name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot<S>, &S)> {
        self.by_name
            .values()
            .map(|&slot| (Slot(slot, std::marker::PhantomData), &self.servers[slot as usize]))
    }
}

impl Servers<SessionServer> {
    /// Those that take clients. A suspect one may be back before its clients have noticed.
    pub(crate) fn open(&self) -> Vec<client_session::SessionServer> {
        let open = self.iter().filter(|(_, server)| {
            server.peer.health != Health::Down && !server.load.draining && !server.urls.is_empty()
        });
        open.map(|(_, server)| client_session::SessionServer {
            name: server.peer.name.as_str().into(),
            urls: server.urls.clone(),
        })
        .collect()
    }
}

impl Servers<GameServer> {
    /// Says that nobody knows the kind, and what kinds are known.
    fn unknown_kind(&self, kind: &KindName) -> EcoString {
        let up = self.iter().filter(|(_, server)| server.peer.health != Health::Down);
        let known: BTreeSet<&str> =
            up.flat_map(|(_, server)| server.kinds.keys().map(KindName::as_str)).collect();
        let named: Vec<&str> = known.iter().copied().take(KINDS_NAMED_MAX).collect();
        let others = if known.len() > named.len() { ", and others" } else { "" };
        eco_format!(
            "no game server of this cluster knows the kind {kind:?}; the kinds are: {}{others}",
            named.join(", ")
        )
    }

    /// The server for one more instance of the kind: of those that know the kind and have room, the one with the
    /// smallest share of its room in use, then the least busy, then the first by name.
    ///
    /// # Errors
    /// `KindUnknown` when no server knows the kind, `NoCapacity` when none of those that do can take it now.
    pub(crate) fn place(
        &self,
        kind: &KindName,
        stream_max: usize,
    ) -> Result<(GameSlot, &KindInfo), Refusal> {
        let (mut known, mut best): (bool, Option<(GameSlot, &GameServer, &KindInfo)>) =
            (false, None);
        for (slot, server) in self.iter() {
            let Some(info) = server.kinds.get(kind) else { continue };
            known |= server.peer.health != Health::Down;
            let used = server.instances.len() as u64;
            let can_take = server.peer.health == Health::Up
                && !server.load.draining
                && used < u64::from(server.capacity)
                && server.peer.out.len() < stream_max;
            // Shares are compared as fractions, cross-multiplied: `used / max < best_used / best_max`.
            let is_better = best.is_none_or(|(_, best, _)| {
                let share = used * u64::from(best.capacity);
                let best_share = best.instances.len() as u64 * u64::from(server.capacity);
                (share, server.load.busy_permille) < (best_share, best.load.busy_permille)
            });
            if can_take && is_better {
                best = Some((slot, server, info));
            }
        }
        match best {
            Some((slot, _, info)) => Ok((slot, info)),
            None if known => Err(Refusal::new(
                Code::NoCapacity,
                eco_format!(
                    "no game server has room for another {kind:?} now; try again, or add a game server"
                ),
            )),
            None => Err(Refusal::new(Code::KindUnknown, self.unknown_kind(kind))),
        }
    }
}
