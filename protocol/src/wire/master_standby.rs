//! The two masters: the active's log on its way to the standby, and what makes a standby of a master.
//!
//! The master of side `a` dials. Both begin with [`Pairing`]; after that either says what its role asks for. Commands
//! and pieces of a snapshot travel as the bytes that they are on the disk.

use serde::{Deserialize, Serialize};

use super::direction;
use super::master_witness::{Master, Rec, Side};
use crate::wire::Opaque;
use crate::{Epoch, Refusal, TraceContext};

direction! {
    /// What one master says to the other.
    MasterToMaster {
        /// First, from both.
        0x01 Pairing(Pairing),
        /// Instead of anything else: these two can't be a pair.
        0x02 Refused(Refusal),
        /// Entries of the active's log; without any it is a beacon.
        0x03 Append(Append),
        /// The log is there up to a place.
        0x04 Ack(Ack),
        /// A master wants to follow.
        0x05 Join(Join),
        /// A part of a snapshot.
        0x06 Slice(Slice),
        /// Parts of a snapshot are there.
        0x07 SliceAck(SliceAck),
        /// The standby is the active from now on.
        0x08 Handover(Handover),
        /// Commands that waited while the active changed.
        0x09 Forward(Forward),
        /// What the receiver said is of an epoch that is over.
        0x0A Fenced(Fenced),
    }
}

/// Who this master is in the pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pairing {
    /// Which of the two.
    pub side: Side,
    /// By which rules it applies commands: both have the same.
    pub version: u16,
}

/// Who speaks to whom, on every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Who sends it.
    pub from: Master,
    /// For which copy it is; nothing if for whoever is there.
    pub to: Option<Master>,
    /// The largest epoch that the sender has seen.
    pub at: Epoch,
}

/// A place in the log, and what leads up to it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// Number of the last entry; 0 before the first.
    pub lsn: u64,
    /// Hash over every entry up to it: equal only if all of them are.
    pub chain: u128,
}

/// Entries of the active's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Append {
    /// Who speaks to whom.
    pub stamp: Stamp,
    /// Where the log stands before the first of them.
    pub before: Position,
    /// In order, one behind the other, each behind its length (u32, little-endian): little-endian lsn u64, era u32,
    /// epoch u32, `now_ms` u64, seed u64, version u16, chain u128, and the command.
    pub entries: Opaque,
    /// Counts these messages, and comes back in the acknowledgement.
    pub beat: u64,
    /// Number of the last committed entry.
    pub commit: u64,
    /// The record as the active knows it, so that a standby can take over without reading it first.
    pub rec: Rec,
    /// Number of an entry and the hash of the state after it, for the standby to compare.
    pub check: Option<(u64, u128)>,
    /// The traces of those that are sampled, by their numbers. Beside the entries and not in them: what is in the log
    /// does not depend on what is traced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traces: Vec<(u64, TraceContext)>,
}

/// The log is there up to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Who speaks to whom.
    pub stamp: Stamp,
    /// The place.
    pub upto: Position,
    /// The largest `beat` seen.
    pub beat: u64,
    /// Something between was missing: send again from here.
    pub gap: bool,
    /// The log's beginning is on disk too.
    pub ready: bool,
}

/// A master wants to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Who speaks to whom.
    pub stamp: Stamp,
    /// What it has, if that may be continued.
    pub have: Option<Position>,
    /// By which rules it applies commands.
    pub version: u16,
    /// What it knows of its log, if it counted until it was started anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold: Option<Cold>,
}

/// What a master knows of its log that counted by the record and was started anew since. Its log stays as it is for as
/// long as that is the record, so what it says is true for as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cold {
    /// The record by which it counted.
    pub rec: Rec,
    /// Its log has everything that the recorded copy ever wrote.
    pub whole: bool,
}

/// A part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// Who speaks to whom.
    pub stamp: Stamp,
    /// Where the snapshot was taken.
    pub start: Position,
    /// Number of the first piece.
    pub index: u64,
    /// The pieces, each encoded; none after the last.
    pub pieces: Vec<Opaque>,
}

/// Parts of a snapshot are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceAck {
    /// Who speaks to whom.
    pub stamp: Stamp,
    /// Which snapshot.
    pub start: Position,
    /// The first piece that is missing.
    pub next: u64,
}

/// The standby is the active from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// Who speaks to whom.
    pub stamp: Stamp,
    /// The record that says so.
    pub rec: Rec,
}

/// Commands that waited while the active changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Who speaks to whom.
    pub stamp: Stamp,
    /// With their random bits, in order.
    pub commands: Vec<(u64, Opaque)>,
}

/// What the receiver said is of an epoch that is over: the stamp has the one that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    /// Who speaks to whom.
    pub stamp: Stamp,
}
