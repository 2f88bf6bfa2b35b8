//! The operator's tools and the master: what the admin port answers and does. JSON over HTTP; the field names of
//! [`Status`] do not change without a line in CHANGELOG.md.

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use crate::{Incarnation, InstanceId, ServerName, UserId};

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
}

/// One master.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MasterStatus {
    /// Its name.
    pub name: ServerName,
    /// `active` or `standby`.
    pub role: EcoString,
    /// This life of its process.
    pub incarnation: Incarnation,
    /// The active's term: `era.epoch`.
    pub epoch: EcoString,
    /// Number of the last command of the log.
    pub lsn: u64,
    /// Commands that the standby is behind.
    pub lag: u64,
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
    /// Connections of a session server, instances of a game server.
    pub load: u32,
    /// How many it takes.
    pub capacity: u32,
    /// Share of its thread's time that it was busy, in thousandths.
    pub busy_permille: u16,
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
}
