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
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 18] = [
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
    ];
}
