//! The beginning of every link between two servers, whoever they are: who they are, and proof on both sides that
//! they hold the cluster's key.
//!
//! The dialling side sends [`Opening`]; the other answers [`Accepting`], whose proof covers both nonces; the
//! dialling side sends [`Proof`]. A side that refuses sends [`crate::Refusal`] instead and closes.

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use super::{Opaque, direction};
use crate::{Incarnation, Refusal, ServerName};

/// What a process is in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Holds the directories.
    Master,
    /// Holds the clients' connections.
    Session,
    /// Runs instances.
    Game,
    /// Keeps the record of which master decides.
    Witness,
}

impl std::fmt::Display for Role {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Master => "master",
            Self::Session => "session",
            Self::Game => "game",
            Self::Witness => "witness",
        })
    }
}

/// A server, as it introduces itself on a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster's name: links between clusters are refused.
    pub cluster: EcoString,
    /// What it is.
    pub role: Role,
    /// Its name.
    pub name: ServerName,
    /// This life of its process.
    pub incarnation: Incarnation,
    /// Name and version of the build.
    pub build: EcoString,
    /// Where others link to it, as `address:port` and as it is bound. Only of a game server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listens: Option<EcoString>,
    /// The ends of this link's socket, as the side that dialled sees them. Only of that side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Path>,
}

impl Identity {
    /// A server of this cluster, without what only some links tell.
    pub const fn new(
        cluster: EcoString,
        role: Role,
        name: ServerName,
        incarnation: Incarnation,
        build: EcoString,
    ) -> Self {
        Self { cluster, role, name, incarnation, build, listens: None, path: None }
    }
}

/// The two ends of a socket, each as `address:port`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// Of the side that says it.
    pub from: EcoString,
    /// Of the other side.
    pub to: EcoString,
}

direction! {
    /// From the side that dialled.
    Dialler {
        /// First.
        0x01 Opening(Opening),
        /// Third.
        0x02 Proof(Proof),
        /// Instead of the third.
        0x03 Refused(Refusal),
    }
}

direction! {
    /// From the side that was dialled.
    Listener {
        /// Second.
        0x81 Accepting(Accepting),
        /// Fourth: the link is open.
        0x82 Open(Open),
        /// Instead of either.
        0x83 Refused(Refusal),
    }
}

/// First frame of a link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Opening {
    /// Lowest version of the protocol that this side speaks.
    pub protocol_min: u16,
    /// Highest version of the protocol that this side speaks.
    pub protocol_max: u16,
    /// Who dials: an [`Identity`], encoded. As bytes, so that the proofs cover fields that only one side knows.
    pub identity: Opaque,
    /// Fresh random bytes.
    #[serde(with = "serde_bytes")]
    pub nonce: [u8; 32],
}

/// Second frame of a link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accepting {
    /// The version that is spoken from here on.
    pub protocol: u16,
    /// Who was dialled: an [`Identity`], encoded.
    pub identity: Opaque,
    /// Fresh random bytes.
    #[serde(with = "serde_bytes")]
    pub nonce: [u8; 32],
    /// HMAC-SHA-256 with the cluster's key over `"greenroom listener v1"`, the version, both nonces and both
    /// identities, each with its length before it.
    #[serde(with = "serde_bytes")]
    pub proof: [u8; 32],
}

/// Third frame of a link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// As [`Accepting::proof`], over `"greenroom dialler v1"`.
    #[serde(with = "serde_bytes")]
    pub proof: [u8; 32],
}

/// Fourth frame of a link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Open {}
