//! What two masters, their disks and the witness say to each other: plain values, that any transport can carry.

use std::sync::Arc;

pub use greenroom_protocol::wire::master_standby::{Cold, Position};
pub use greenroom_protocol::wire::master_witness::{Master, Nonce, Rec, Side};
use greenroom_protocol::{Epoch, Incarnation};
use serde::{Deserialize, Serialize};

use crate::command::Header;

/// An entry of the log.
#[derive(Debug, PartialEq)]
pub struct Entry<C> {
    /// What `apply` is given.
    pub header: Header,
    /// Version of the rules by which the command is applied: [`super::Apply::VERSION`] of who appended it.
    pub version: u16,
    /// The chain up to and with this entry.
    pub chain: u128,
    /// The command. It is in the log, on its way to the disk and to the other master at once.
    pub command: Arc<C>,
}

impl<C> Clone for Entry<C> {
    fn clone(&self) -> Self {
        Self { command: Arc::clone(&self.command), ..*self }
    }
}

impl<C> Entry<C> {
    /// Where the log ends when this entry is its last.
    pub const fn position(&self) -> Position {
        Position { lsn: self.header.lsn, chain: self.chain }
    }
}

/// Written before a master tries to become the only one: its log on disk, up to here at least, is the one to reclaim
/// the record with, if the record says so after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Intent {
    /// The term that it tries for.
    pub at: Epoch,
    /// Who tries.
    pub by: Master,
    /// Its log at that moment.
    pub upto: Position,
}

/// The intents that a disk keeps.
///
/// An attempt of an earlier life may still be on its way when a later one tries: whichever the witness takes, its
/// intent must be found. So none is forgotten before the record shows an epoch that is not below its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Intents {
    /// That of the record as it was last seen.
    pub proven: Option<Intent>,
    /// Those whose fate is not known, the newest last; at most [`Self::PENDING_MAX`].
    pub pending: Vec<Intent>,
}

impl Intents {
    /// Lives that may die between an attempt and its answer, one after the other.
    pub const PENDING_MAX: usize = 16;

    /// Remembers an attempt; the oldest gives way.
    pub(super) fn push(&mut self, intent: Intent) {
        if self.pending.len() >= Self::PENDING_MAX {
            self.pending.remove(0);
        }
        self.pending.push(intent);
    }

    /// The record is this one now: which intent was its own, and which were in vain?
    pub(super) fn settle(&mut self, rec: &Rec) {
        let all = self.proven.iter().chain(&self.pending);
        let proven = all.copied().find(|i| i.by == rec.holder && i.at == rec.at);
        self.proven = proven.or(self.proven);
        self.pending.retain(|intent| intent.at > rec.at);
    }
}

/// What was on disk when a process started, torn entries cut off.
#[derive(Clone, Debug)]
pub struct Recovered<C> {
    /// Where the checkpoint is, that the state was restored from; the very beginning if there is none.
    pub base: Position,
    /// The entries after it, without holes.
    pub entries: Vec<Entry<C>>,
    /// The intents.
    pub intents: Intents,
    /// The first life since which nothing is gone that was ever written here: the machine did not lose what was not
    /// synced, and nothing was damaged. Nothing if that is not known even of the last one.
    pub whole_since: Option<Incarnation>,
}

impl<C> Default for Recovered<C> {
    fn default() -> Self {
        let (base, entries, intents) = Default::default();
        Self { base, entries, intents, whole_since: None }
    }
}

/// A message between the two masters.
#[derive(Clone, Debug)]
pub struct Envelope<C, P> {
    /// Who sends it.
    pub from: Master,
    /// For which copy it is; nothing if for whoever is there.
    pub to: Option<Master>,
    /// The largest epoch that the sender has seen.
    pub at: Epoch,
    /// What it says.
    pub body: Message<C, P>,
}

/// What a master says to the other one.
#[derive(Clone, Debug)]
pub enum Message<C, P> {
    /// Entries of the active's log; without any it is a beacon.
    Append {
        /// Where the log stands before the first of them.
        before: Position,
        /// In order.
        entries: Vec<Entry<C>>,
        /// Counts these messages, and comes back in the acknowledgement.
        beat: u64,
        /// Number of the last committed entry.
        commit: u64,
        /// The record as the active knows it, so that a standby can take over without reading it first.
        rec: Rec,
        /// Number of an entry and the hash of the state after it.
        check: Option<(u64, u128)>,
    },
    /// The log is here up to a place.
    Ack {
        /// The place.
        upto: Position,
        /// The largest [`Message::Append::beat`] seen.
        beat: u64,
        /// Something between was missing: send again from here.
        gap: bool,
        /// The log's beginning is on disk too.
        ready: bool,
    },
    /// A master wants to follow.
    Join {
        /// What it has, if that may be continued.
        have: Option<Position>,
        /// By which rules it applies commands.
        version: u16,
        /// What it knows of its log, if it counted until it was started anew.
        cold: Option<Cold>,
    },
    /// A part of a snapshot.
    Slice {
        /// Where the snapshot was taken.
        start: Position,
        /// Number of the first piece.
        index: usize,
        /// The pieces; none after the last.
        pieces: Vec<P>,
    },
    /// Pieces are here up to a number.
    SliceAck {
        /// Which snapshot.
        start: Position,
        /// The first that is missing.
        next: usize,
    },
    /// The standby is the active from now on.
    Handover {
        /// The record that says so.
        rec: Rec,
    },
    /// Commands that waited while the active changed.
    Forward {
        /// With their random bits, in order.
        commands: Vec<(u64, C)>,
    },
    /// The receiver's epoch is over; the envelope has the one that is.
    Fenced,
}

/// Something that happened, for [`super::Replica::handle`].
#[derive(Clone, Debug)]
pub enum Input<C, P> {
    /// The other master says something.
    Message(Envelope<C, P>),
    /// Commands to be appended, with random bits each, at this time in milliseconds since 1970.
    Commands(u64, Vec<(u64, C)>),
    /// Something was read in the state just now: tell when it may be answered.
    Read(u64),
    /// Time passes. At least every 10 ms; `late_ms` says how much later than it should have been.
    Tick {
        /// Lateness in milliseconds.
        late_ms: u64,
    },
    /// What was written to the log when the sync with this number was asked for is durable.
    Synced(u64),
    /// The intents are durable, and what was written to the log before them.
    IntentsDurable(Intents),
    /// A checkpoint is durable and took the place of the one before, and so did what was written before it.
    CheckpointDurable(Position),
    /// The witness answers an attempt.
    Claimed(Nonce, ClaimAnswer),
    /// The witness answers a read; nothing if it has no record.
    Record(Option<Rec>),
    /// The link was reset and nobody listens there any more: this life of the other master is over.
    PeerGone(Incarnation),
    /// Somebody who is no master has seen this epoch.
    Seen(Epoch),
    /// An operator wants the standby to be the active. Without a standby that has everything nothing happens.
    Switchover,
    /// An operator wants this master to be the active: a standby that has everything, or, if the operator accepts that
    /// what others had acknowledged is lost, whatever this one is.
    Promote {
        /// The loss is declared, by a new era.
        accept_loss: bool,
    },
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimAnswer {
    /// The record is the one that was asked for.
    Won,
    /// It is another one.
    Lost(Option<Rec>),
    /// Nobody knows: it may have come to pass, or may still.
    Unknown,
}

/// Something to be done. The order matters: what is written comes before what is sent.
#[derive(Clone, Debug)]
pub enum Output<C, P, E> {
    /// Send to the other master.
    Send(Envelope<C, P>),
    /// Write these to the log, before anything that follows is sent.
    Write(Vec<Entry<C>>),
    /// Make durable what was written; the number comes back in [`Input::Synced`].
    Sync(u64),
    /// Write the two intents, and make them durable with all that was written before.
    WriteIntents(Intents),
    /// A checkpoint begins. A copied one takes the place of the whole log, one's own only of the entries up to it.
    CheckpointBegin {
        /// Where it was taken.
        at: Position,
        /// Whose state it is.
        whose: Whose,
    },
    /// Pieces of it.
    CheckpointPieces(Vec<P>),
    /// It is complete: make it durable, then the present one.
    CheckpointEnd,
    /// Ask the witness to replace the record of version `expect` (0 if there is none).
    Claim {
        /// The version that must be there.
        expect: u64,
        /// The new record.
        rec: Rec,
    },
    /// Ask the witness for the record.
    ReadRecord,
    /// A command is committed: perform its effects.
    Release {
        /// Its number.
        lsn: u64,
        /// What to do.
        effects: Vec<E>,
    },
    /// What was read under this number may be answered.
    ReadReady(u64),
    /// A command was not appended, and never will be by this.
    Refused(C, Refused),
    /// A read may not be answered, and never will be.
    ReadRefused(u64, Refused),
    /// The role is another one.
    Role(Role),
    /// This master decides in this epoch: say so on every link, and repeat what was not acknowledged.
    NewEpoch(Epoch),
    /// An operator should know.
    Alarm(Alarm),
}

/// Whose state a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The one that the log on this disk leads to.
    Own,
    /// Another master's.
    Copied,
}

/// Why something was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// This master does not decide.
    NotActive,
    /// This master does not know whether it still decides.
    Unavailable,
    /// Too much waits already.
    Busy,
}

/// What a master is, seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It has just started and does not know yet.
    Recovering,
    /// It copies the other's log and does not count.
    Learner,
    /// It has everything that is committed.
    Standby,
    /// It decides; the standby has everything.
    Paired,
    /// It decides; its disk has everything.
    Solo,
    /// It decided, and must find out whether it still does.
    Blocked,
}

/// What an operator should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// The state here differs from the active's after this entry. The copy is thrown away.
    Diverged(u64),
    /// The witness has lost what it had: its epoch is below one that was seen. Nothing is done until it is repaired.
    WitnessBehind,
    /// A snapshot could not be restored.
    BadSnapshot,
    /// The other master applies commands by other rules and can't follow.
    OtherVersion(u16),
    /// Both masters were started anew, and neither log is the beginning of the other: neither decides by itself.
    Forked,
    /// Both masters lost power: this one decides with the longer of the two logs, and what neither disk had is lost.
    LossDeclared,
}
