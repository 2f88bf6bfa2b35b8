//! Every planted bug is found. Without this, a simulator that finds nothing would look like a core without bugs.

use greenroom_master_core::replica::Mutant;
use greenroom_sim::{PROFILES, play_planted};

/// Seeds of each profile, at most, that a planted bug may live through.
const SEEDS_MAX: u64 = 400;

/// Plants each bug in turn and plays seeds of all profiles until an invariant breaks.
#[test]
fn every_planted_bug_is_found() {
    // The core asserts what it can; the report below says which did.
    std::panic::set_hook(Box::new(|_| {}));
    let mut alive = Vec::new();
    for mutant in Mutant::ALL {
        let days = (1..=SEEDS_MAX).flat_map(|seed| PROFILES.map(|profile| (seed, profile)));
        let found = days.into_iter().enumerate().find_map(|(count, (seed, profile))| {
            let plant = |master: &mut _| plant(master, mutant);
            let outcome = play_planted(profile, seed, false, mutant, &plant)?;
            Some((count + 1, profile, seed, outcome.violation?))
        });
        match found {
            Some((count, profile, seed, violation)) => println!(
                "| {mutant:?} | {profile} {seed} | {count} | {} | {} |",
                violation.invariant, violation.what
            ),
            None => alive.push(mutant),
        }
    }
    drop(std::panic::take_hook());
    assert!(alive.is_empty(), "these bugs live: {alive:?}");
}

fn plant(
    master: &mut greenroom_master_core::replica::Replica<greenroom_sim::Machine>,
    mutant: Mutant,
) {
    master.set_mutant(Some(mutant));
}
