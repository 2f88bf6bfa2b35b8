//! A master and the witness: who decides, and whose copy of the log a commit needs. One record, changed only by
//! compare-and-set, and never on the way of a client's request.
//!
//! The master dials. Each question has a number, and its answer the same one.

use serde::{Deserialize, Serialize};

use super::direction;
use crate::{Epoch, Incarnation};

direction! {
    /// What a master asks.
    MasterToWitness {
        /// Asks for the record.
        0x01 Read(Read),
        /// Wants the record to be another one.
        0x02 Claim(Claim),
    }
}

direction! {
    /// What the witness answers.
    WitnessToMaster {
        /// Answers a [`MasterToWitness::Read`].
        0x81 Record(Record),
        /// Answers a [`MasterToWitness::Claim`].
        0x82 Claimed(Claimed),
        /// The witness can't answer: its disk is full, or gone.
        0x83 Failed(Failed),
    }
}

/// Asks for the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Number of the question.
    pub number: u64,
}

/// Wants the record to be another one, if nobody has changed it meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Number of the question.
    pub number: u64,
    /// The version that must be there; 0 if there must be none.
    pub expect: u64,
    /// What it is to be, with a version one larger.
    pub rec: Rec,
}

/// The record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Number of the question.
    pub number: u64,
    /// What the witness has; nothing before the first claim.
    pub rec: Option<Rec>,
}

/// What became of a claim, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// Number of the question.
    pub number: u64,
    /// Whether the record is now what was asked for.
    pub won: bool,
    /// The record as it is now.
    pub rec: Option<Rec>,
}

/// The witness can't answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Number of the question.
    pub number: u64,
    /// For people: why.
    pub message: String,
}

/// Which of the two masters, as the settings name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

impl Side {
    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::A => "a",
            Self::B => "b",
        })
    }
}

/// One copy of the log, in one life of one master. What the witness records and what acknowledges are such copies and
/// never names of machines: a copy only ever grows, so what it has acknowledged stays true for as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Master {
    /// Which of the two.
    pub side: Side,
    /// Which life of its process; a later one is larger.
    pub incarnation: Incarnation,
    /// How often this life has stepped back to learn: each time it may throw away its log for another.
    pub copy: u32,
}

/// Names one attempt to change the record, so that its author knows it again. It needs no randomness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Nonce {
    /// Who tries.
    pub by: Master,
    /// Its how manieth attempt.
    pub number: u64,
}

/// What the witness keeps: who decides, and whose acknowledgement a commit needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rec {
    /// Grows by one at each change.
    pub version: u64,
    /// The term, which grows at each change too.
    pub at: Epoch,
    /// The active.
    pub holder: Master,
    /// The standby that has everything that is committed; without one the holder's disk has it.
    pub peer: Option<Master>,
    /// Which attempt wrote this.
    pub nonce: Nonce,
}
