//! Small configurations, in every order of everything.

use greenroom_master_core::replica::{Mutant, Replica};
use greenroom_sim::{Limits, Machine, explore};

/// Each finishes in seconds; `cargo xtask sim --exhaustive` has the larger one.
const CONFIGURATIONS: [Limits; 6] = [
    // A pair, a request, and two faults at any moments.
    Limits { requests: 1, sends: 1, ..Limits::SMALL },
    // A request that comes again, and one fault; masters tick, so that what was lost is repeated.
    Limits { requests: 1, faults: 1, ticks: 1, ..Limits::SMALL },
    // Two requests and one fault.
    Limits { faults: 1, ..Limits::SMALL },
    // A request and a read.
    Limits { requests: 1, sends: 1, reads: 1, faults: 1, eager: false, ..Limits::SMALL },
    // A request while the pair changes hands.
    Limits { requests: 1, sends: 1, switches: 1, faults: 1, ..Limits::SMALL },
    // Two masters that were never there before.
    Limits { requests: 1, sends: 1, faults: 1, from_nothing: true, ..Limits::SMALL },
];

#[test]
fn no_order_of_everything_in_a_small_world_breaks_an_invariant() {
    for limits in CONFIGURATIONS {
        let explored = explore(&limits, None, &|_| {});
        println!("{limits:?}: {explored}");
        assert_eq!(explored.violation, None, "{limits:?}");
        assert!(explored.is_complete && explored.states > 1_000, "{limits:?}: {explored}");
    }
}

/// These need game servers, longer logs, several pieces of a snapshot, skewed clocks, full queues, or
/// more deaths than happen here.
const LARGER: [Mutant; 14] = [
    Mutant::LeaseFromAnswer,
    Mutant::KeyFreedEarly,
    Mutant::ReclaimWithoutIntent,
    Mutant::SnapshotMoves,
    Mutant::HandOverEarly,
    Mutant::OneIntent,
    Mutant::IntentsForgotten,
    Mutant::TimeRunsBack,
    Mutant::CheckpointMoves,
    Mutant::NoBackpressure,
    Mutant::SilenceIsDeath,
    Mutant::DeathOfAnother,
    Mutant::BlindSnapshots,
    Mutant::WholeByLastLife,
];

/// The exhaustive check can fail: it finds most of the planted bugs by itself.
#[test]
fn most_planted_bugs_are_found_in_a_small_world_too() {
    // The core asserts what it can.
    std::panic::set_hook(Box::new(|_| {}));
    let mut alive = Vec::new();
    for mutant in Mutant::ALL.into_iter().filter(|mutant| !LARGER.contains(mutant)) {
        let plant = |master: &mut Replica<Machine>| master.set_mutant(Some(mutant));
        let found = CONFIGURATIONS.into_iter().find_map(|limits| {
            let explored = explore(&limits, Some(mutant), &plant);
            Some((explored.states, explored.violation?))
        });
        match found {
            Some((states, (violation, way))) => println!(
                "| {mutant:?} | {states} | {} | {} | {} |",
                way.len(),
                violation.invariant,
                violation.what
            ),
            None => alive.push(mutant),
        }
    }
    drop(std::panic::take_hook());
    assert!(alive.is_empty(), "these bugs live: {alive:?}");
}
