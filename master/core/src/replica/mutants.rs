//! Planted bugs, to show that the simulator finds bugs. Without the feature `mutants` there are none.

/// A mistake that somebody could have made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A paired active commits what the standby has not acknowledged.
    CommitWithoutStandby = 1,
    /// A solo active commits what is not on disk.
    CommitWithoutDisk,
    /// A standby takes over without asking the witness.
    PromoteWithoutWitness,
    /// Any copy of the same side counts as the recorded standby.
    SideForCopy,
    /// A learner counts before it has all that is committed.
    AddTooEarly,
    /// Reads are answered without a barrier.
    ReadWithoutBarrier,
    /// The standby is left out before the witness has said so.
    SoloBeforeKnown,
    /// A restarted master reclaims a record without an intent that fits.
    ReclaimWithoutIntent,
    /// A standby goes on to acknowledge while it takes over.
    AckWhileTakingOver,
    /// An attempt whose answer is lost counts as lost.
    ForgetClaim,
    /// While the standby is being added, a commit does not wait for it.
    AddWithoutBarrier,
    /// What is missing between two messages is not noticed.
    IgnoreGap,
    /// A snapshot is taken anew for each slice.
    SnapshotMoves,
    /// Effects leave before the commit.
    EffectsAtOnce,
    /// An active that was deposed keeps its log.
    KeepDeposedLog,
    /// Takes over without its log on disk.
    TakeOverWithoutIntent,
    /// The active hands over before the standby has everything.
    HandOverEarly,
    /// A restarted master reclaims although the record names a standby.
    ReclaimFromPair,
    /// A learner becomes the standby before its snapshot is on disk.
    LearnerNotReady,
    /// An active that was told of a higher epoch goes on.
    FencedGoesOn,
    /// The intent of an attempt overwrites that of the present record.
    OneIntent,
    /// A new attempt forgets the intents of those that may still arrive.
    IntentsForgotten,
    /// A standby acknowledges before it writes.
    AckBeforeWrite,
    /// While the standby is being left out, its acknowledgement is enough for a commit.
    InDoubtStandbyOnly,
    /// An attempt that lost against another is tried again on top of it.
    RetryOnConflict,
    /// A takeover keeps the epoch.
    EpochNotRaised,
    /// A new active stamps commands with its own clock, whatever the log says.
    TimeRunsBack,
    /// A read is answered by the echo of a beacon that was sent before it.
    ReadSharesOldBeat,
    /// The active hands over without the witness.
    HandOverByWord,
    /// A checkpoint is cut from the state as it is by then.
    CheckpointMoves,
    /// A learner takes over.
    LearnerTakesOver,
    /// Commands are taken however many wait.
    NoBackpressure,
    /// The standby applies commands with its own time.
    StandbyOwnTime,
    /// The state machine applies a repeated request again. (It is the simulator's own machine that has this one.)
    NoDedupe,
    /// A game server's lease counts from when it hears that it goes on. (So in the simulator's model.)
    LeaseFromAnswer,
    /// A key is free before its game server's lease is over. (So in the simulator's model.)
    KeyFreedEarly,
    /// Who does not answer counts as dead, though it may only sleep or be cut off. (So in the simulator's model.)
    SilenceIsDeath,
    /// The proof that a process is gone counts for the one that came after it. (So in the simulator's machine.)
    DeathOfAnother,
    /// The store takes a snapshot whoever writes it. (So in the simulator's model.)
    BlindSnapshots,
    /// Of two masters that were started anew the one with the shorter log decides.
    ShorterLogDecides,
    /// One of two masters that counted decides after a restart without having heard the other.
    ColdAlone,
    /// What both machines have lost is not declared.
    LossKeptSilent,
    /// A log counts as whole although its machine has lost power.
    PowerForgotten,
    /// A log counts as whole if its machine has not lost power since the last life: the lives before are forgotten.
    /// (So on the simulator's disk.)
    WholeByLastLife,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 44] = [
        Self::CommitWithoutStandby,
        Self::CommitWithoutDisk,
        Self::PromoteWithoutWitness,
        Self::SideForCopy,
        Self::AddTooEarly,
        Self::ReadWithoutBarrier,
        Self::SoloBeforeKnown,
        Self::ReclaimWithoutIntent,
        Self::AckWhileTakingOver,
        Self::ForgetClaim,
        Self::AddWithoutBarrier,
        Self::IgnoreGap,
        Self::SnapshotMoves,
        Self::EffectsAtOnce,
        Self::KeepDeposedLog,
        Self::TakeOverWithoutIntent,
        Self::HandOverEarly,
        Self::ReclaimFromPair,
        Self::LearnerNotReady,
        Self::FencedGoesOn,
        Self::OneIntent,
        Self::IntentsForgotten,
        Self::AckBeforeWrite,
        Self::InDoubtStandbyOnly,
        Self::RetryOnConflict,
        Self::EpochNotRaised,
        Self::TimeRunsBack,
        Self::ReadSharesOldBeat,
        Self::HandOverByWord,
        Self::CheckpointMoves,
        Self::LearnerTakesOver,
        Self::NoBackpressure,
        Self::StandbyOwnTime,
        Self::NoDedupe,
        Self::LeaseFromAnswer,
        Self::KeyFreedEarly,
        Self::SilenceIsDeath,
        Self::DeathOfAnother,
        Self::BlindSnapshots,
        Self::ShorterLogDecides,
        Self::ColdAlone,
        Self::LossKeptSilent,
        Self::PowerForgotten,
        Self::WholeByLastLife,
    ];
}
