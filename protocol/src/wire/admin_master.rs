//! The operator's tools and the master: what the admin port answers and does. JSON over HTTP; the field names of
//! [`Status`] do not change without a line in CHANGELOG.md.

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use super::Opaque;
use super::client_session::Meta;
use super::master_game::{GameCounts, Measures};
use super::session_master::SessionCounts;
use crate::search::{Explain, Filter, Order};
use crate::{Incarnation, InstanceId, Key, KindName, Seat, ServerName, UserId};

/// The cluster at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The cluster's name.
    pub cluster: EcoString,
    /// The masters.
    pub masters: Vec<MasterStatus>,
    /// The session servers.
    pub sessions: Vec<ServerStatus>,
    /// The game servers.
    pub games: Vec<ServerStatus>,
    /// Users that are checked in.
    pub users: u64,
    /// Instances that exist.
    pub instances: u64,
    /// How often two game servers said that they run one instance, or two instances with one unique key, since the
    /// master that answers began. 0 while nothing is wrong.
    #[serde(default)]
    pub twins: u64,
    /// What tells which master decides.
    #[serde(default)]
    pub witness: Option<WitnessStatus>,
    /// The kinds of instances that game servers can run, by name.
    #[serde(default)]
    pub kinds: Vec<KindStatus>,
}

/// A kind of instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindStatus {
    /// Its name.
    pub name: KindName,
    /// Instances of it that exist.
    pub instances: u64,
    /// The fields that the game declares, by which they can be searched besides those that every instance has.
    pub fields: Vec<EcoString>,
}

/// One instance, as the directory has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Its kind.
    pub kind: KindName,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Its record, as a search finds it.
    pub fields: Meta,
    /// The seats that are not free.
    pub seats: Vec<SeatStatus>,
    /// How it is doing, if its game server has said so in time.
    #[serde(default)]
    pub measures: Option<Measures>,
}

/// One seat of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatStatus {
    /// Which.
    pub seat: Seat,
    /// `expected`, `reserved`, `taken` or `away`.
    pub state: EcoString,
    /// Who has it, if that is known.
    pub user: Option<UserId>,
    /// The name that others see.
    pub name: EcoString,
    /// The session server that the user is connected to, if it is.
    pub session_server: Option<ServerName>,
}

/// The witness, as the master that answers sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessStatus {
    /// Where it is: `host:port`, or the file.
    pub place: EcoString,
    /// It answered the last time that it was asked.
    pub answers: bool,
}

/// One master.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MasterStatus {
    /// Its name.
    pub name: ServerName,
    /// Which of the two it is: `a` or `b`.
    pub side: EcoString,
    /// `active`, `standby` (has everything that is committed), `learner` (does not yet), `recovering` (does not know
    /// yet), `blocked` (decided, and must find out whether it still does) or `away`.
    pub role: EcoString,
    /// This life of its process.
    pub incarnation: Incarnation,
    /// The largest term that it has seen: `era.epoch`.
    pub epoch: EcoString,
    /// Number of the last command of its log.
    pub lsn: u64,
    /// Number of the last command that is committed, as far as it knows.
    pub commit: u64,
    /// Commands that it is behind the active.
    pub lag: u64,
    /// A commit waits for it: by the record of the witness.
    pub in_sync: bool,
    /// What is wrong with it, for people; nothing if it is well. Of the other master only it itself knows.
    pub troubles: Vec<EcoString>,
}

/// Makes a master the active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promote {
    /// The operator accepts that what the other master had acknowledged is lost.
    #[serde(default)]
    pub accept_loss: bool,
}

/// One session server or game server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its name.
    pub name: ServerName,
    /// `up`, `suspect`, `draining` or `down`.
    pub state: EcoString,
    /// Where it is reached: URLs of a session server, `host:port` of a game server.
    pub addresses: Vec<EcoString>,
    /// Name and version of its build.
    pub build: EcoString,
    /// Connections of a session server, weight of a game server's instances.
    pub load: u32,
    /// How many it takes.
    pub capacity: u32,
    /// Share of its thread's time that it was busy, in thousandths.
    pub busy_permille: u16,
    /// What a session server says of itself besides.
    #[serde(default)]
    pub session: Option<SessionCounts>,
    /// What a game server says of itself besides.
    #[serde(default)]
    pub game: Option<GameStatus>,
}

/// What a game server said of itself the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GameStatus {
    /// Instances that it runs.
    pub instances: u32,
    /// Seats that are taken.
    pub seats: u32,
    /// Of the instances, those that the directory does not know. 0 while nothing is wrong.
    pub orphans: u32,
    /// What it has counted since it began.
    pub counts: GameCounts,
}

/// What an operator can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Close an instance.
    Destroy {
        /// Which.
        instance: InstanceId,
    },
    /// End a user's session.
    Kick {
        /// Whose.
        user: UserId,
    },
    /// Give a server nothing new, until its process ends.
    Drain {
        /// Which.
        server: ServerName,
    },
    /// Have an instance that is over go on from its snapshot, which stands in the store under its id again.
    Restore(Box<RestoreInstance>),
}

/// An instance that is over, and is to go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestoreInstance {
    /// Which.
    pub instance: InstanceId,
    /// In which life: one above the last.
    pub incarnation: Incarnation,
    /// Of which kind.
    pub kind: KindName,
    /// Who had asked for it.
    #[serde(default)]
    pub owner: Option<UserId>,
    /// Its unique key.
    #[serde(default)]
    pub key: Option<Key>,
    /// When it was granted, in milliseconds since 1970.
    pub created_ms: u64,
    /// It is found by nobody.
    #[serde(default)]
    pub private: bool,
}

/// A search of an operator: everything is found, private and closing instances too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Find {
    /// Of what.
    pub table: Table,
    /// Which.
    #[serde(default)]
    pub filter: Filter,
    /// In which order; by id without one.
    #[serde(default)]
    pub order: Option<Order>,
    /// How many at most, 1 to [`crate::search::LIMIT_MAX`].
    pub limit: u16,
    /// From [`Rows::cursor`] of the same search.
    #[serde(default)]
    pub cursor: Option<Opaque>,
}

/// What an operator can search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// The instances of a kind.
    Instances(KindName),
    /// The users that have a session.
    Users,
    /// The servers.
    Servers,
}

/// What an operator found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    /// In the order that was asked for.
    pub rows: Vec<Row>,
    /// More may follow: ask again with this.
    #[serde(default)]
    pub cursor: Option<Opaque>,
    /// How it was answered.
    pub explain: Explain,
}

/// One record: every field that it has, by name, `id` or `name` among them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The fields.
    pub fields: Meta,
}

/// How an instance would be placed now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// The server that it would go to.
    pub server: Option<ServerName>,
    /// Every game server, and why it is not that one.
    pub considered: Vec<PlaceConsidered>,
}

/// A game server that was considered for an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlaceConsidered {
    /// Which.
    pub server: ServerName,
    /// Weight of the instances it has.
    pub load: u32,
    /// How much it takes.
    pub capacity: u32,
    /// In words: `chosen`, or what speaks against it.
    pub verdict: EcoString,
}
