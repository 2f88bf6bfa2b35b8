//! Days of every kind, and those that once went wrong.

use greenroom_sim::{PROFILES, Tally, play};

/// Seeds of each profile.
const SEEDS: u64 = 385;

#[test]
fn no_seed_of_any_profile_breaks_an_invariant() {
    let mut broken = Vec::new();
    let mut all = Tally::default();
    for profile in PROFILES {
        let mut tally = Tally::default();
        for seed in 1..=SEEDS {
            let outcome = play(profile, seed, false).unwrap();
            tally.add(&outcome.tally);
            broken.extend(outcome.violation.map(|violation| (profile, seed, violation)));
        }
        assert!(tally.answered > SEEDS * 100, "nobody was served in {profile}: {tally:?}");
        all.add(&tally);
    }
    assert!(all.crashes > 1_000 && all.terms > 1_000, "nothing happened: {all:?}");
    assert!(all.healed > 3 * all.lost, "the masters died too often to be tested: {all:?}");
    assert!(all.live > 10_000, "nobody ever saw the instance with the key: {all:?}");
    assert!(all.killed > 400 && all.restored > 300, "nothing was restored: {all:?}");
    assert!(all.early > 80, "no death was proved: {all:?}");
    assert!(all.cold > 1_000 && all.declared > 300, "no pair began anew: {all:?}");
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn seeds_that_found_a_bug_once_find_none_now() {
    for line in include_str!("../seeds.txt").lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some((profile, seed)) = line.split_once(' ') else { continue };
        let outcome = play(profile, seed.trim().parse().unwrap(), false).unwrap();
        assert_eq!(outcome.violation, None, "{line}");
    }
}

#[test]
fn a_seed_is_the_same_day_each_time() {
    let days = || play("swarm", 7, true).unwrap();
    let (once, again) = (days(), days());
    assert_eq!(once.tally, again.tally);
    assert_eq!(once.trace, again.trace);
    assert!(once.trace.len() > 1_000);
}
