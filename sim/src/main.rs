//! `cargo xtask sim`: plays seeds, prints those that break an invariant, and how fast it was.

#![expect(clippy::print_stdout, reason = "it is a program for a terminal")]

use std::fmt;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use greenroom_sim::{Limits, PROFILES, Tally, explore, play};

/// Plays days that never were, from seeds.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim")]
struct Arguments {
    /// How many seeds, shared out among the profiles.
    #[arg(long, default_value_t = 5_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Only this profile.
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(PROFILES))]
    profile: Option<String>,
    /// Only this seed, of the profile or of each.
    #[arg(long)]
    seed: Option<u64>,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// End with a line of JSON.
    #[arg(long)]
    json: bool,
    /// Instead of seeds: every order of everything, of two requests and two faults.
    #[arg(long)]
    exhaustive: bool,
    /// With `--exhaustive`, another size; each number more means many times the states.
    #[command(flatten)]
    size: Size,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Size {
    /// With `--exhaustive`: different requests, at most 3.
    #[arg(long, default_value_t = Limits::SMALL.requests)]
    requests: usize,
    /// With `--exhaustive`: how often one is sent, in all.
    #[arg(long, default_value_t = Limits::SMALL.sends)]
    sends: u8,
    /// With `--exhaustive`: reads.
    #[arg(long, default_value_t = Limits::SMALL.reads)]
    reads: u8,
    /// With `--exhaustive`: faults.
    #[arg(long, default_value_t = Limits::SMALL.faults)]
    faults: u8,
    /// With `--exhaustive`: ticks of each master.
    #[arg(long, default_value_t = Limits::SMALL.ticks)]
    ticks: u8,
    /// With `--exhaustive`: wishes for a switchover.
    #[arg(long, default_value_t = Limits::SMALL.switches)]
    switches: u8,
    /// With `--exhaustive`: begins with two masters that never ran, and not with a pair.
    #[arg(long)]
    from_nothing: bool,
    /// With `--exhaustive`: disks and the witness may be late even when all faults are spent.
    #[arg(long)]
    always_late: bool,
    /// With `--exhaustive`: gives up after so many states. A million of them takes about half a gigabyte.
    #[arg(long, default_value_t = Limits::SMALL.states_max)]
    states_max: usize,
}

/// How long nobody was served, in milliseconds of the simulated time.
struct Gaps {
    count: usize,
    p50: f64,
    p99: f64,
    max: f64,
}

impl Gaps {
    fn of(mut all: Vec<u64>) -> Self {
        all.sort_unstable();
        let at = |percent: usize| {
            let place = (all.len() * percent / 100).min(all.len().saturating_sub(1));
            all.get(place).map_or(0.0, |us| *us as f64 / 1_000.0)
        };
        Self { count: all.len(), p50: at(50), p99: at(99), max: at(100) }
    }

    fn json(&self) -> serde_json::Value {
        let Self { count, p50, p99, max } = self;
        serde_json::json!({ "count": count, "p50_ms": p50, "p99_ms": p99, "max_ms": max })
    }
}

impl fmt::Display for Gaps {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, p50, p99, max } = self;
        write!(out, "{count} times, first write after p50 {p50} p99 {p99} max {max} ms")
    }
}

/// Looks at all states within the limits.
fn look_at_all(arguments: &Arguments) -> ExitCode {
    let Size { requests, sends, reads, faults, ticks, switches, from_nothing, .. } = arguments.size;
    let Size { always_late, states_max, .. } = arguments.size;
    let limits = Limits {
        requests,
        sends,
        reads,
        faults,
        ticks,
        switches,
        from_nothing,
        eager: !always_late,
        states_max,
    };
    let begun = Instant::now();
    let explored = explore(&limits, None, &|_| {});
    if let Some((violation, way)) = &explored.violation {
        way.iter().for_each(|step| println!("{step}"));
        println!("{}: {}", violation.invariant, violation.what);
    }
    println!("{explored}; {:.1} s", begun.elapsed().as_secs_f64());
    if arguments.json {
        let line = serde_json::json!({
            "states": explored.states,
            "steps": explored.steps,
            "depth": explored.depth,
            "complete": explored.is_complete,
            "violations": u8::from(explored.violation.is_some()),
        });
        println!("{line}");
    }
    if explored.is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.exhaustive {
        return Ok(look_at_all(&arguments));
    }
    let profiles: Vec<&str> = match &arguments.profile {
        Some(profile) => vec![profile],
        None => PROFILES.to_vec(),
    };
    let mut days: Vec<(&str, u64)> = Vec::new();
    match arguments.seed {
        Some(seed) => days.extend(profiles.iter().map(|profile| (*profile, seed))),
        None => {
            let seeds = arguments.first..arguments.first.saturating_add(arguments.seeds);
            days.extend(profiles.iter().cycle().copied().zip(seeds));
        }
    }
    let begun = Instant::now();
    let (mut tally, mut violations) = (Tally::default(), 0_u64);
    let mut gaps = [Vec::new(), Vec::new(), Vec::new()];
    for (profile, seed) in &days {
        let Some(outcome) = play(profile, *seed, arguments.trace) else { continue };
        for line in &outcome.trace {
            println!("{line}");
        }
        if let Some(violation) = &outcome.violation {
            violations += 1;
            println!(
                "{profile} {seed}: {} at {} us: {}",
                violation.invariant, violation.at_us, violation.what
            );
        }
        tally.add(&outcome.tally);
        gaps.iter_mut().zip(outcome.gaps).for_each(|(all, of_one)| all.extend(of_one));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let per_second = (tally.events as f64 / seconds.max(1e-9)).round();
    println!(
        "{} seeds, {} events in {seconds:.1} s; {} requests answered, {} crashes, {} records, {} epochs; \
         {} game servers killed, {} lives restored, {} of them early; {} times a pair began anew, {} of them with a \
         declared loss; {} runs healed, {} lost their last copy; \
         {violations} violations",
        days.len(),
        tally.events,
        tally.answered,
        tally.crashes,
        tally.records,
        tally.terms,
        tally.killed,
        tally.restored,
        tally.early,
        tally.cold,
        tally.declared,
        tally.healed,
        tally.lost,
    );
    let gaps = gaps.map(Gaps::of);
    let died = ["an active's process died", "its machine died too", "both masters died at once"];
    for (what, gaps) in died.iter().zip(&gaps) {
        println!("{what}: {gaps}");
    }
    if arguments.json {
        let line = serde_json::json!({
            "seeds": days.len(),
            "events": tally.events,
            "events_per_s": per_second,
            "violations": violations,
            "process_died": gaps[0].json(),
            "machine_died": gaps[1].json(),
            "both_died": gaps[2].json(),
            "began_anew": tally.cold,
            "declared": tally.declared,
        });
        println!("{line}");
    }
    Ok(if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
