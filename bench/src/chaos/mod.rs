//! Chaos: a cluster of real processes under load, of which some are killed, stopped, cut off or handed over, again and
//! again. It judges by itself what the clients were told: nothing acknowledged is lost, nothing happens twice, nobody
//! reads what is old, and no client sees an error. `README.md` says how.

mod campaign;
mod cluster;
mod cores;
mod faults;
mod fill;
mod ground;
mod isolate;
mod keep;
mod lane;
mod ledger;
mod load;
mod play;
mod plot;
mod proxy;
mod status;
mod studies;
mod summary;
mod takeover;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value};

use self::campaign::{Plan, Report};
use self::cluster::Shape;
use self::faults::Only;
use self::load::Order;
use self::summary::Outcome;
use crate::report::progress;
use crate::{machine, print};

/// How long a client waits for an answer: as long as the SDK does by default; longer where nobody can answer.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_LONG: Duration = Duration::from_secs(30);

/// What `greenroom-bench chaos` can be asked.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What is done to the cluster.
    #[arg(long, value_enum, default_value = "active")]
    only: Only,
    /// How often; of `tax` and `join`, rounds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    kills: u32,
    /// Prints one JSON object a line: each fault, then the summary.
    #[arg(long)]
    json: bool,
    /// Users that play.
    #[arg(long, default_value_t = 1_000)]
    users: usize,
    /// Directory operations a second.
    #[arg(long, default_value_t = 5_000)]
    ops: u32,
    /// Instances that stay, each with somebody in it who checks what was stored [default: 64 with `game`, else none].
    #[arg(long)]
    keepers: Option<usize>,
    /// Users that are in the directory besides [`join`: 1,000,000].
    #[arg(long)]
    directory: Option<usize>,
    /// Seconds of load between the cluster's being whole and the next fault.
    #[arg(long, default_value_t = 1.0)]
    settle: f64,
    /// Plans the same faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for the results: JSON and a plot [default: `chaos/results` beside the program's folder].
    #[arg(long)]
    out: Option<PathBuf>,
    /// The program to hurt [default: the one beside this program].
    #[arg(long)]
    greenroom: Option<PathBuf>,
    /// Which masters there are.
    #[arg(long, value_enum, default_value = "pair")]
    masters: Masters,
    /// Leaves the cluster's files where they are.
    #[arg(long)]
    keep: bool,
}

/// The masters of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Masters {
    /// Two, and a witness that is a process.
    Pair,
    /// Two, and a witness that is a file which both open.
    PairWithFile,
    /// One, to compare with: for `session` and `game`.
    Alone,
}

/// Runs one campaign, prints what came of it, and fails if anything was as it must not be.
///
/// # Errors
/// When the campaign can't run.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("finding our own program")?;
    let beside = program.parent().and_then(|folder| folder.parent()).context("a folder")?;
    let folder = beside.join(format!("chaos/run-{}", std::process::id()));
    let out = arguments.out.clone().unwrap_or_else(|| beside.join("chaos/results"));
    let greenroom =
        arguments.greenroom.clone().unwrap_or_else(|| program.with_file_name("greenroom"));
    let plan = plan(arguments, greenroom, folder.clone())?;
    machine::allow_files(plan.order.files())?;
    let machine = machine::describe();
    progress(&format!(
        "{}, {} times, on {machine}: {} users play, {} directory operations a second",
        plan.only.name(),
        plan.faults,
        plan.order.users,
        plan.order.ops
    ));
    let result = perform(arguments, &plan, &machine, &out);
    match &result {
        Ok(code) if *code == ExitCode::SUCCESS && !arguments.keep => {
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("removing {}", folder.display()))?;
        }
        _ => progress(&format!("the cluster's files and logs are in {}", folder.display())),
    }
    result
}

fn plan(arguments: &Arguments, greenroom: PathBuf, folder: PathBuf) -> anyhow::Result<Plan> {
    let Arguments { only, kills, users, ops, seed, .. } = *arguments;
    let (users_at_least, fill) =
        if only == Only::Join { (1_000_000, studies::JOIN_INSTANCES) } else { (0, 0) };
    let directory = arguments.directory.unwrap_or(users_at_least);
    let is_isolated = only == Only::Isolate;
    Ok(Plan {
        only,
        faults: kills,
        settle: Duration::try_from_secs_f64(arguments.settle).context("--settle")?,
        directory,
        shape: Shape {
            greenroom,
            folder,
            pair: arguments.masters != Masters::Alone,
            witness_file: arguments.masters == Masters::PairWithFile,
            proxied: only.needs_proxies(),
            master_flags: if directory > 0 { fill::flags() } else { Vec::new() },
            capacity: fill + 20_000,
        },
        order: Order {
            users,
            ops: if is_isolated { 0 } else { ops },
            fill,
            keepers: arguments.keepers.unwrap_or(if only == Only::Game { 64 } else { 0 }),
            may_fail: is_isolated,
            patience: if only == Only::Witness { PATIENCE_LONG } else { PATIENCE },
            doors: Vec::new(),
            seed,
        },
    })
}

fn perform(
    arguments: &Arguments,
    plan: &Plan,
    machine: &str,
    out: &std::path::Path,
) -> anyhow::Result<ExitCode> {
    let name = match plan.directory {
        0 => format!("{}-{}", plan.only.name(), plan.faults),
        users => format!("{}-{}-of-{users}", plan.only.name(), plan.faults),
    };
    let tell = |outcome: &Outcome| {
        // Nobody may be listening, which is no reason to stop hurting.
        drop(arguments.json.then(|| print(&outcome.json().to_string())));
    };
    let report = if let Only::Tax | Only::Join = plan.only {
        let figures =
            if plan.only == Only::Tax { studies::tax(plan)? } else { studies::join(plan)? };
        Report::of_figures(figures)
    } else if plan.only == Only::Isolate {
        isolate::run(plan)?
    } else {
        campaign::run(plan, tell)?
    };
    let mut last = Map::new();
    last.insert("chaos".to_owned(), plan.only.name().into());
    last.insert("summary".to_owned(), true.into());
    last.insert("machine".to_owned(), machine.into());
    last.insert("users".to_owned(), plan.order.users.into());
    last.insert("ops".to_owned(), plan.order.ops.into());
    last.insert("keepers".to_owned(), plan.order.keepers.into());
    last.extend(report.summary.json());
    let last = Value::Object(last).to_string();
    let mut lines: Vec<String> = report.outcomes.iter().map(|one| one.json().to_string()).collect();
    lines.push(last.clone());
    ground::write(&out.join(format!("{name}.json")), &(lines.join("\n") + "\n"))?;
    if !report.outcomes.is_empty() {
        let title = format!("{}, {} times", plan.only.what(), report.outcomes.len());
        let subtitle = format!(
            "{} users play, {} directory operations a second; {machine}",
            plan.order.users, plan.order.ops
        );
        let picture = plot::svg(&title, &subtitle, &report.outcomes, &report.targets);
        ground::write(&out.join(format!("{name}.svg")), &picture)?;
    }
    match arguments.json {
        true => print(&last)?,
        false => print(report.summary.text().trim_end())?,
    }
    progress(&format!("written: {}", out.join(name).display()));
    Ok(if report.summary.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
