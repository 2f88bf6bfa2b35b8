//! The simulator: two masters of the production core, their disks, a witness, clients and a bad network.
//!
//! *Takes*: a profile's name and a seed, from which everything in the run follows.
//! *Gives*: whether an invariant broke, what happened until then, and counts.
//! *Owns*: the clock, the network, the disks and the witness of the run, and the list of what must always hold.
//! *Never*: a thread, a real clock, a file; never the same seed with two outcomes.

mod disk;
mod explore;
mod games;
mod judge;
mod machine;
mod profile;
mod rng;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use greenroom_master_core::replica::{Mutant, Replica};

pub use crate::explore::{Explored, Limits, explore};
pub use crate::machine::{Command, Effect, Machine, Order, Piece};
pub use crate::profile::PROFILES;
use crate::profile::Profile;
use crate::rng::Rng;
use crate::world::World;

/// Something that must never happen has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its number in the list of `README.md`; `assert` if the core itself noticed.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
    /// Microseconds since the run began.
    pub at_us: u64,
}

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events.
    pub events: u64,
    /// Requests that a client had answered.
    pub answered: u64,
    /// Requests that a master refused to take.
    pub refused: u64,
    /// Masters that died.
    pub crashes: u64,
    /// Records that the witness took.
    pub records: u64,
    /// Epochs that a master announced.
    pub terms: u64,
    /// Moments at which the instance with the key was live, among those at which that was looked at.
    pub live: u64,
    /// Processes of game servers that were killed.
    pub killed: u64,
    /// Lives of the instance that went on from what an earlier one had stored.
    pub restored: u64,
    /// Lives of the instance that ran within 5 s of the death of the process of the one before.
    pub early: u64,
    /// Times that a master decided after both of a pair were started anew.
    pub cold: u64,
    /// Times that a loss was declared by it.
    pub declared: u64,
    /// Runs in which everybody was served in the end.
    pub healed: u64,
    /// Runs in which the last copy of what was committed died, so that nobody may decide.
    pub lost: u64,
}

impl Tally {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.answered += other.answered;
        self.refused += other.refused;
        self.crashes += other.crashes;
        self.records += other.records;
        self.terms += other.terms;
        self.live += other.live;
        self.killed += other.killed;
        self.restored += other.restored;
        self.early += other.early;
        self.cold += other.cold;
        self.declared += other.declared;
        self.healed += other.healed;
        self.lost += other.lost;
    }
}

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Counts.
    pub tally: Tally,
    /// What went wrong, if anything did.
    pub violation: Option<Violation>,
    /// Microseconds from a death to the first write that was acknowledged afterwards: of each active that died and was
    /// followed by the other master, those whose reset was heard, and those whose machine went too; and of both at
    /// once.
    pub gaps: [Vec<u64>; 3],
    /// A line for each thing that happened, if that was asked for.
    pub trace: Vec<String>,
}

/// Plays one seed of a profile; gives nothing if there is no such profile.
pub fn play(profile: &str, seed: u64, trace: bool) -> Option<Outcome> {
    play_in(profile, seed, trace, None, &|_| {})
}

/// Plays one seed with a planted bug, which `plant` puts into each master before it starts.
pub fn play_planted(
    profile: &str,
    seed: u64,
    trace: bool,
    mutant: Mutant,
    plant: &dyn Fn(&mut Replica<Machine>),
) -> Option<Outcome> {
    play_in(profile, seed, trace, Some(mutant), plant)
}

fn play_in(
    profile: &str,
    seed: u64,
    trace: bool,
    mutant: Option<Mutant>,
    prepare: &dyn Fn(&mut Replica<Machine>),
) -> Option<Outcome> {
    let mut rng = Rng::new(seed);
    let profile = Profile::named(profile, &mut rng)?;
    let run = || World::new(seed, profile, rng, trace, mutant, prepare).run();
    Some(catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let what = panic.downcast_ref::<String>().cloned();
        let what = what.unwrap_or_else(|| "an assertion failed".to_owned());
        let violation = Violation { invariant: "assert", what, at_us: 0 };
        let (tally, gaps, trace) = Default::default();
        Outcome { tally, violation: Some(violation), gaps, trace }
    }))
}
