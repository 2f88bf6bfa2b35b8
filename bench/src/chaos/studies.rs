//! Two studies in which nothing goes wrong: what a standby costs, and what it takes for a new one to join.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::campaign::Plan;
use super::cluster::{Cluster, Part};
use super::load::Load;
use super::status::View;
use super::summary::{ms, quantile};
use crate::machine;
use crate::report::progress;

/// Before and while something is measured.
const WARM_UP: Duration = Duration::from_secs(4);
const WINDOW: Duration = Duration::from_secs(12);
/// The longest that a standby may take to join.
const JOIN_MAX: Duration = Duration::from_secs(90);
/// Instances that are there when a standby joins.
pub(crate) const JOIN_INSTANCES: usize = 100_000;

/// Names and values.
pub(crate) type Figures = Vec<(String, f64)>;

/// One window of steady load.
#[derive(Clone, Copy, Debug)]
struct Window {
    /// Processor time of the active, in microseconds a command.
    active_us: f64,
    /// Of all masters.
    masters_us: f64,
    commands_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// What a standby costs: a master alone and a pair in turn, each under the same load.
///
/// # Errors
/// When a cluster can't be started or the load can't go on.
pub(crate) fn tax(plan: &Plan) -> anyhow::Result<Figures> {
    let (mut alone, mut paired) = (Vec::new(), Vec::new());
    for round in 1..=plan.faults {
        for pair in [false, true] {
            let window = steady(plan, pair, round)?;
            progress(&format!(
                "{}: active {:.1} us, masters {:.1} us a command at {:.0} commands/s, p50 {:.2} ms, p99 {:.2} ms",
                if pair { "pair" } else { "alone" },
                window.active_us,
                window.masters_us,
                window.commands_per_s,
                window.p50_ms,
                window.p99_ms
            ));
            if pair { paired.push(window) } else { alone.push(window) }
        }
    }
    let median = |of: &[Window], get: fn(&Window) -> f64| {
        let mut values: Vec<f64> = of.iter().map(get).collect();
        values.sort_by(f64::total_cmp);
        quantile(&values, 0.5)
    };
    let mut figures = Vec::new();
    for (name, windows) in [("alone", &alone), ("pair", &paired)] {
        for (figure, get) in [
            ("active_us_per_command", (|it| it.active_us) as fn(&Window) -> f64),
            ("masters_us_per_command", |it| it.masters_us),
            ("commands_per_s", |it| it.commands_per_s),
            ("write_p50_ms", |it| it.p50_ms),
            ("write_p99_ms", |it| it.p99_ms),
        ] {
            figures.push((format!("{name}_{figure}"), median(windows, get)));
        }
    }
    let both = |get: fn(&Window) -> f64| (median(&alone, get), median(&paired, get));
    let (before, after) = both(|it| it.active_us);
    figures.push(("active_tax_percent".to_owned(), (after / before - 1.0) * 100.0));
    let (before, after) = both(|it| it.p50_ms);
    figures.push(("p50_added_ms".to_owned(), after - before));
    Ok(figures)
}

fn steady(plan: &Plan, pair: bool, round: u32) -> anyhow::Result<Window> {
    let mut shape = plan.shape.clone();
    shape.pair = pair;
    let kind = if pair { "pair" } else { "alone" };
    shape.folder = shape.folder.join(format!("{kind}-{round}"));
    let mut cluster = Cluster::start(shape)?;
    let mut order = plan.order.clone();
    order.doors.clone_from(&cluster.doors);
    let load = Load::start(order)?;
    cluster.wait(WARM_UP)?;
    let active = match pair {
        true => cluster.roles()?[0],
        false => "master-a",
    };
    let cpu = |cluster: &Cluster, names: &[&'static str]| -> anyhow::Result<Duration> {
        let pids = names.iter().filter_map(|name| cluster.pid(name));
        pids.map(machine::cpu).sum()
    };
    let lsn = |cluster: &Cluster| -> anyhow::Result<u64> {
        let view = cluster.view().context("no master answers")?;
        Ok(view.active().context("no active")?.lsn)
    };
    let masters = cluster.names(Part::Master);
    let (began, from_us) = (Instant::now(), load.ledger.lock().now_us());
    let before = (lsn(&cluster)?, cpu(&cluster, &[active])?, cpu(&cluster, &masters)?);
    cluster.wait(WINDOW)?;
    let after = (lsn(&cluster)?, cpu(&cluster, &[active])?, cpu(&cluster, &masters)?);
    let (seconds, to_us) = (began.elapsed().as_secs_f64(), load.ledger.lock().now_us());
    let taken: Vec<f64> =
        load.ledger.lock().latencies_us(from_us, to_us).into_iter().map(ms).collect();
    load.finish()?;
    #[expect(clippy::cast_precision_loss, reason = "a count of commands")]
    let commands = (after.0 - before.0) as f64;
    ensure!(commands > 0.0, "no command was applied");
    Ok(Window {
        active_us: (after.1 - before.1).as_secs_f64() * 1e6 / commands,
        masters_us: (after.2 - before.2).as_secs_f64() * 1e6 / commands,
        commands_per_s: commands / seconds,
        p50_ms: quantile(&taken, 0.5),
        p99_ms: quantile(&taken, 0.99),
    })
}

/// What it takes until a standby with an empty disk follows, and what the active's clients feel meanwhile.
///
/// # Errors
/// When it does not join.
pub(crate) fn join(plan: &Plan) -> anyhow::Result<Figures> {
    let mut cluster = Cluster::start(plan.shape.clone())?;
    super::fill::users(&cluster, &plan.shape.folder, plan.directory)?;
    let mut order = plan.order.clone();
    order.doors.clone_from(&cluster.doors);
    let load = match Load::start(order) {
        Ok(load) => load,
        Err(error) => return Err(error.context(cluster.logs())),
    };
    progress(&format!("{} instances are there", plan.order.fill));
    let (mut joined_s, mut calm_ms, mut while_ms, mut gaps_ms) = (vec![], vec![], vec![], vec![]);
    for number in 1..=plan.faults {
        cluster.wait_until(JOIN_MAX, "whole", View::is_whole)?;
        cluster.wait(WARM_UP)?;
        let calm_from = load.ledger.lock().now_us();
        cluster.wait(WARM_UP)?;
        let calm_to = load.ledger.lock().now_us();
        let [_, standby] = cluster.roles()?;
        cluster.kill_and_hold(standby)?;
        cluster.forget(standby)?;
        cluster.wait(Duration::from_secs(1))?;
        cluster.release(standby)?;
        cluster.wait(Duration::from_millis(1))?;
        let (began, from_us) = (Instant::now(), load.ledger.lock().now_us());
        cluster.wait_until(JOIN_MAX, "paired again", View::is_paired)?;
        let (seconds, to_us) = (began.elapsed().as_secs_f64(), load.ledger.lock().now_us());
        let ledger = load.ledger.lock();
        let p99 = |from_us, to_us| {
            let taken: Vec<f64> = ledger.latencies_us(from_us, to_us).into_iter().map(ms).collect();
            quantile(&taken, 0.99)
        };
        let (calm, meanwhile) = (p99(calm_from, calm_to), p99(from_us, to_us));
        let gap = ms(ledger.gap(from_us, to_us).length_us);
        progress(&format!(
            "{number}: {standby} joined in {seconds:.2} s; p99 {calm:.2} ms before, {meanwhile:.2} ms while it did, \
             longest gap {gap:.1} ms"
        ));
        drop(ledger);
        joined_s.push(seconds);
        calm_ms.push(calm);
        while_ms.push(meanwhile);
        gaps_ms.push(gap);
    }
    let view = cluster.view().context("no master answers")?;
    load.finish()?;
    let mut figures = Vec::new();
    #[expect(clippy::cast_precision_loss, reason = "counts")]
    figures.extend([
        ("users".to_owned(), view.users as f64),
        ("instances".to_owned(), view.instances as f64),
    ]);
    for (name, mut values) in [
        ("join_s", joined_s),
        ("write_p99_before_ms", calm_ms),
        ("write_p99_while_joining_ms", while_ms),
        ("gap_while_joining_ms", gaps_ms),
    ] {
        values.sort_by(f64::total_cmp);
        figures.push((format!("{name}_median"), quantile(&values, 0.5)));
        figures.push((format!("{name}_max"), quantile(&values, 1.0)));
    }
    Ok(figures)
}
