//! Where an instance goes: which game servers can take it, and which of them does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use ecow::{EcoString, eco_format};
use greenroom_protocol::wire::admin_master::{self, PlaceConsidered};
use greenroom_protocol::wire::master_game::KindInfo;
use greenroom_protocol::{Code, KindName, Refusal, ServerName};

use crate::servers::{GameServer, GameSlot, Health, Servers};
use crate::state::State;

/// Kinds that are named to a client that asked for one that nobody knows.
const KINDS_NAMED_MAX: usize = 20;
/// Milliseconds since its last report for which a game server comes before those whose report is older. A process that
/// is stopped or stuck keeps its link, and until the link is given up each instance that it is given makes somebody
/// wait in vain. A server reports every second unless it is configured otherwise: two reports that are late speak
/// against nobody.
const FRESH_MS: u64 = 3_000;

/// What is to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order<'a> {
    /// An instance of this kind.
    pub kind: &'a KindName,
}

/// A game server that can take it: it is up, knows the kind, has the labels that the kind needs, and has room. It has
/// reported in the last 3 s, or none of those that can take it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a ServerName,
    /// Weight of the instances that it has.
    pub used: u64,
    /// Weight of the instances that it takes, from 1.
    pub capacity: u32,
    /// Weight of the one that is to be placed, as this server says, from 1; with it `capacity` is not exceeded.
    pub weight: u32,
    /// Instances that it has.
    pub instances: usize,
    /// Share of its threads' time that they were busy, in thousandths.
    pub busy_permille: u16,
    /// Its labels.
    pub labels: &'a [EcoString],
}

/// Chooses among the game servers that can take an instance.
///
/// It must be a pure function of what it is given: the standby applies the same log and has to choose alike, and a
/// clock, a random number or a memory of its own would make two masters of one.
pub trait Placement: Send + Sync + Debug {
    /// The place in `candidates` of the one to take. They come by name, and there is at least one. With none, or with
    /// a place that there is not, the instance is refused as `NoCapacity`.
    fn choose(&self, order: &Order<'_>, candidates: &[Candidate<'_>]) -> Option<usize>;
}

/// Takes the server with the smallest sum of two shares: of its capacity in use once the instance is there, and of its
/// time that it was busy. Of equal ones the first by name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weighted;

impl Placement for Weighted {
    fn choose(&self, _: &Order<'_>, candidates: &[Candidate<'_>]) -> Option<usize> {
        // `used / capacity + busy / 1000` as a fraction over `1000 * capacity`, compared by cross-multiplication.
        let share = |candidate: &Candidate<'_>| {
            let used = u128::from(candidate.used) + u128::from(candidate.weight);
            let capacity = u128::from(candidate.capacity);
            (1_000 * used + u128::from(candidate.busy_permille) * capacity, capacity)
        };
        let mut best: Option<(usize, (u128, u128))> = None;
        for (place, candidate) in candidates.iter().enumerate() {
            let (sum, capacity) = share(candidate);
            if best.is_none_or(|(_, (best_sum, best_capacity))| {
                sum * best_capacity < best_sum * capacity
            }) {
                best = Some((place, (sum, capacity)));
            }
        }
        best.map(|(place, _)| place)
    }
}

/// What speaks against a game server. The order is that in which it is told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    Full,
    Draining,
    LacksLabel(EcoString),
    Silent,
    Suspect,
    Down,
    Slow,
    KindUnknown,
}

impl Obstacle {
    /// For an operator who asks about one server.
    fn of_one(&self, server: &GameServer, weight: u32, now_ms: u64) -> EcoString {
        let GameServer { used, capacity, .. } = server;
        match self {
            Self::Full if *capacity == 0 => "it says that its capacity is 0".into(),
            Self::Full => {
                eco_format!("full: {used} of {capacity} are in use, and one more takes {weight}")
            }
            Self::Draining => "draining: it is given nothing new".into(),
            Self::LacksLabel(label) => eco_format!("it lacks the label {label}"),
            Self::Silent => {
                let tenths = server.peer.silent_ms(now_ms) / 100;
                eco_format!("it has said nothing for {}.{} s", tenths / 10, tenths % 10)
            }
            Self::Suspect => "suspect: its link is gone".into(),
            Self::Down => "down".into(),
            Self::Slow => {
                eco_format!("it does not keep up: {} messages wait for it", server.peer.out().len())
            }
            Self::KindUnknown => "it does not run this kind".into(),
        }
    }
    /// For a client, about all servers that it holds for.
    fn of_all(&self, count: usize) -> EcoString {
        let servers = if count == 1 { "1 server" } else { &*eco_format!("{count} servers") };
        let (is, does, has) =
            if count == 1 { ("is", "does", "lacks") } else { ("are", "do", "lack") };
        match self {
            Self::Full => eco_format!("{servers} {is} full"),
            Self::Draining => eco_format!("{servers} {is} draining"),
            Self::LacksLabel(label) => eco_format!("{servers} {has} the label {label}"),
            Self::Silent => eco_format!("{servers} {is} silent"),
            Self::Suspect => eco_format!("{servers} {is} out of reach"),
            Self::Down => eco_format!("{servers} {is} down"),
            Self::Slow => eco_format!("{servers} {does} not keep up"),
            Self::KindUnknown => eco_format!("{servers} {does} not run this kind"),
        }
    }
}

/// What the servers are for one more instance of a kind.
struct Considered<'a> {
    /// Every game server by name, and what speaks against it.
    servers: Vec<(GameSlot, &'a GameServer, Option<Obstacle>)>,
    /// The one that was chosen.
    chosen: Option<(GameSlot, &'a KindInfo)>,
}

impl State {
    /// How an instance of the kind would be placed now: every game server with its verdict in words.
    ///
    /// # Errors
    /// `KindUnknown` when no game server that is there knows the kind.
    pub fn explain_placement(&self, kind: &KindName) -> Result<admin_master::Placement, Refusal> {
        let Considered { servers, chosen } = self.consider(kind)?;
        let chosen = chosen.map(|(slot, _)| slot);
        let considered = servers.iter().map(|(slot, server, obstacle)| PlaceConsidered {
            server: server.peer.name.clone(),
            load: u32::try_from(server.used).unwrap_or(u32::MAX),
            capacity: server.capacity,
            verdict: match obstacle {
                Some(obstacle) => {
                    let weight = server.kinds.get(kind).map_or(0, |kind| kind.weight);
                    obstacle.of_one(server, weight, self.now_ms)
                }
                None if chosen == Some(*slot) => "chosen".into(),
                None => "it has room; another one was chosen".into(),
            },
        });
        let considered = considered.collect();
        let server = chosen.map(|slot| self.game_servers.get(slot).peer.name.clone());
        Ok(admin_master::Placement { server, considered })
    }

    /// The server for one more instance of the kind.
    ///
    /// # Errors
    /// `KindUnknown` when no server that is there knows the kind, `NoCapacity` when none can take it now.
    pub(crate) fn place(&self, kind: &KindName) -> Result<(GameSlot, &KindInfo), Refusal> {
        let Considered { servers, chosen } = self.consider(kind)?;
        chosen.ok_or_else(|| {
            let mut counts: BTreeMap<&Obstacle, usize> = BTreeMap::new();
            for obstacle in servers.iter().filter_map(|(_, _, obstacle)| obstacle.as_ref()) {
                *counts.entry(obstacle).or_default() += 1;
            }
            let reasons: Vec<EcoString> =
                counts.iter().map(|(obstacle, count)| obstacle.of_all(*count)).collect();
            let reasons = if reasons.is_empty() {
                "none was chosen".into()
            } else {
                reasons.join(", ")
            };
            Refusal::new(
                Code::NoCapacity,
                eco_format!(
                    "no game server takes another {kind:?} now: {reasons}; try again, or add a game server"
                ),
            )
        })
    }

    fn consider(&self, kind: &KindName) -> Result<Considered<'_>, Refusal> {
        let servers = self
            .game_servers
            .iter()
            .map(|(slot, server)| (slot, server, obstacle(server, kind, self.settings.stream_max)));
        let mut servers: Vec<_> = servers.collect();
        let is_there = |server: &GameServer| server.peer.health != Health::Down;
        if !servers.iter().any(|(_, server, _)| is_there(server) && server.kinds.contains_key(kind))
        {
            return Err(Refusal::new(Code::KindUnknown, unknown_kind(&self.game_servers, kind)));
        }
        // An operator may have them report more seldom than this: where nobody is fresh, nobody is worse for it.
        let is_fresh = |server: &GameServer| server.peer.silent_ms(self.now_ms) <= FRESH_MS;
        if servers.iter().any(|(_, server, obstacle)| obstacle.is_none() && is_fresh(server)) {
            for (_, server, obstacle) in &mut servers {
                if obstacle.is_none() && !is_fresh(server) {
                    *obstacle = Some(Obstacle::Silent);
                }
            }
        }
        let able: Vec<(GameSlot, &GameServer, &KindInfo)> = servers
            .iter()
            .filter(|(_, _, obstacle)| obstacle.is_none())
            .filter_map(|&(slot, server, _)| Some((slot, server, server.kinds.get(kind)?)))
            .collect();
        let candidates: Vec<Candidate<'_>> = able
            .iter()
            .map(|(_, server, info)| Candidate {
                name: &server.peer.name,
                used: server.used,
                capacity: server.capacity,
                weight: info.weight,
                instances: server.instances.len(),
                busy_permille: server.load.busy_permille,
                labels: &server.labels,
            })
            .collect();
        let choice = match &candidates[..] {
            [] => None,
            some => self.placement.choose(&Order { kind }, some),
        };
        let chosen = choice.and_then(|place| able.get(place)).map(|(slot, _, info)| (*slot, *info));
        Ok(Considered { servers, chosen })
    }
}

/// What speaks against a server for one more instance of a kind: what is wrong for longest comes first.
fn obstacle(server: &GameServer, kind: &KindName, stream_max: usize) -> Option<Obstacle> {
    match server.peer.health {
        Health::Up => {}
        Health::Suspect => return Some(Obstacle::Suspect),
        Health::Down => return Some(Obstacle::Down),
    }
    let Some(info) = server.kinds.get(kind) else { return Some(Obstacle::KindUnknown) };
    if let Some(label) = info.needs.iter().find(|label| !server.labels.contains(label)) {
        return Some(Obstacle::LacksLabel(label.clone()));
    }
    if server.is_draining() {
        return Some(Obstacle::Draining);
    }
    if server.used + u64::from(info.weight) > u64::from(server.capacity) {
        return Some(Obstacle::Full);
    }
    (server.peer.out().len() >= stream_max).then_some(Obstacle::Slow)
}

/// Says that nobody knows the kind, and what kinds are known.
pub(crate) fn unknown_kind(servers: &Servers<GameServer>, kind: &KindName) -> EcoString {
    let up = servers.iter().filter(|(_, server)| server.peer.health != Health::Down);
    let known: BTreeSet<&str> =
        up.flat_map(|(_, server)| server.kinds.keys().map(KindName::as_str)).collect();
    let named: Vec<&str> = known.iter().copied().take(KINDS_NAMED_MAX).collect();
    let others = if known.len() > named.len() { ", and others" } else { "" };
    eco_format!(
        "no game server of this cluster knows the kind {kind:?}; the kinds are: {}{others}",
        named.join(", ")
    )
}
