//! One campaign: the cluster, the load, fault after fault, and what is to be said about it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use super::cluster::{Cluster, LOOK_INTERVAL, Part, Shape};
use super::cores::{Used, Window};
use super::faults::{Begun, Fault, Only};
use super::ground::{Tail, pause};
use super::keep;
use super::ledger::Wrong;
use super::load::{Load, Order};
use super::status::View;
use super::summary::{Outcome, Steps, Summary, Target, ms, targets};
use super::takeover::Takeover;
use crate::report::progress;
use crate::wire::Random;

/// The longest that the cluster may take to be whole again.
const HEAL_MAX: Duration = Duration::from_secs(40);
/// The load goes on for this long after the cluster is whole, before a fault is judged.
const AFTER: Duration = Duration::from_millis(300);
/// The longest that a keeper may wait for an answer after a fault.
const KEEPERS_MAX: Duration = Duration::from_secs(60);
/// The longest that keepers may take to have their instances.
const JOIN_MAX: Duration = Duration::from_secs(90);
/// The longest that an audit may take.
const AUDIT_MAX: Duration = Duration::from_secs(20);
/// Time in which the load runs before the first fault.
const WARM_UP: Duration = Duration::from_secs(4);
/// What a fault may take at most on average; a run that takes longer is ended.
const EACH_MAX: Duration = Duration::from_secs(30);
/// What is looked at before a fault, for comparison.
const CALM_US: u64 = 1_000_000;

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) only: Only,
    pub(crate) faults: u32,
    pub(crate) settle: Duration,
    pub(crate) directory: usize,
    pub(crate) shape: Shape,
    pub(crate) order: Order,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) summary: Summary,
    pub(crate) targets: Vec<Target>,
}

impl Report {
    /// A study, in which nothing is judged.
    pub(crate) fn of_figures(figures: Vec<(String, f64)>) -> Self {
        let summary = Summary { figures, findings: Vec::new(), missed: Vec::new(), wrong: 0 };
        Self { outcomes: Vec::new(), summary, targets: Vec::new() }
    }
}

/// Runs a campaign. `tell` gets each fault as it ends.
///
/// # Errors
/// When the cluster can't be started, does not heal, or the load can't go on.
pub(crate) fn run(plan: &Plan, tell: impl FnMut(&Outcome)) -> anyhow::Result<Report> {
    plan.order.check()?;
    let mut cluster = Cluster::start(plan.shape.clone())?;
    if plan.directory > 0 {
        super::fill::users(&cluster, &plan.shape.folder, plan.directory)?;
    }
    let mut order = plan.order.clone();
    order.doors.clone_from(&cluster.doors);
    let load = match Load::start(order) {
        Ok(load) => load,
        Err(error) => return Err(error.context(cluster.logs())),
    };
    let mut campaign = Campaign {
        plan,
        load,
        tails: [Tail::default(), Tail::default()],
        outcomes: Vec::new(),
        used: Used::default(),
        until: Instant::now() + Duration::from_secs(120) + EACH_MAX * plan.faults,
    };
    let result = campaign.faults(&mut cluster, tell);
    let Campaign { load, outcomes, used, .. } = campaign;
    let mut report = concluded(plan, &mut cluster, load, outcomes, &result)?;
    report.summary.figures.extend(used.figures());
    Ok(report)
}

/// Ends the load, compares everything with everything, and sums up.
///
/// # Errors
/// When what is under way never ends.
pub(crate) fn concluded(
    plan: &Plan,
    cluster: &mut Cluster,
    load: Load,
    outcomes: Vec<Outcome>,
    result: &anyhow::Result<()>,
) -> anyhow::Result<Report> {
    if let Err(error) = result {
        // What was found before still counts, and says why.
        load.ledger.lock().wrong(Wrong::Process, format!("{error:#}"));
    }
    let (ledger, control) = match load.finish() {
        Ok(finished) => finished,
        Err(error) => return Err(error.context(cluster.logs())),
    };
    if let Some(text) = counts_differ(cluster)? {
        ledger.lock().wrong(Wrong::Twin, text);
    }
    for text in cluster.bad_words().into_iter().chain(cluster.unexpected.drain(..)) {
        ledger.lock().wrong(Wrong::Process, text);
    }
    let targets = targets(plan.only, plan.directory);
    let mut summary = Summary::of(&with_gaps(&outcomes), &ledger.lock(), &targets);
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    summary.figures.push(("lives_of_rooms".to_owned(), control.lives().count() as f64));
    if result.is_err() {
        summary.findings.push(cluster.logs());
    }
    Ok(Report { outcomes, summary, targets })
}

/// A network that is only slow makes no gap: its faults are no part of the figures of cuts.
fn with_gaps(outcomes: &[Outcome]) -> Vec<Outcome> {
    outcomes.iter().filter(|one| !one.fault.starts_with("slow")).cloned().collect()
}

/// What the game servers say that they run is what the directory has, once everything is quiet.
fn counts_differ(cluster: &mut Cluster) -> anyhow::Result<Option<String>> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let agreed = cluster.wait_until(PATIENCE, "agreed on how many instances there are", |view| {
        view.load == view.instances
    });
    Ok(agreed.err().map(|error| format!("{error:#}")))
}

struct Campaign<'a> {
    plan: &'a Plan,
    load: Load,
    tails: [Tail; 2],
    outcomes: Vec<Outcome>,
    used: Used,
    until: Instant,
}

impl Campaign<'_> {
    fn faults(
        &mut self,
        cluster: &mut Cluster,
        mut tell: impl FnMut(&Outcome),
    ) -> anyhow::Result<()> {
        let bar = ProgressBar::new(u64::from(self.plan.faults));
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {pos}/{len} {eta} left  {wide_msg}")
        {
            bar.set_style(style);
        }
        let began = Instant::now();
        cluster.wait(WARM_UP)?;
        while self.load.ledger.lock().keepers < self.plan.order.keepers as u64 {
            ensure!(began.elapsed() < JOIN_MAX, "keepers have no instance after {JOIN_MAX:?}");
            cluster.wait(LOOK_INTERVAL)?;
        }
        {
            let mut ledger = self.load.ledger.lock();
            ledger.calm_from_us = ledger.now_us();
            ledger.reads_us.clear();
        }
        let mut dice = Random::new(self.plan.order.seed);
        for number in 1..=self.plan.faults {
            let fault = self.plan.only.fault(number - 1, &mut dice);
            let outcome = self
                .one(cluster, number, fault)
                .with_context(|| format!("fault {number}, {}", fault.name()))?;
            if bar.is_hidden() {
                progress(&outcome.text());
            }
            let wrong: u64 = {
                let ledger = self.load.ledger.lock();
                Wrong::ALL.iter().map(|&what| ledger.count(what)).sum()
            };
            bar.set_message(format!("gap {:.1} ms, {wrong} wrong", outcome.gap_ms));
            bar.inc(1);
            tell(&outcome);
            self.outcomes.push(outcome);
            ensure!(Instant::now() < self.until, "the run takes longer than it may");
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn one(&mut self, cluster: &mut Cluster, number: u32, fault: Fault) -> anyhow::Result<Outcome> {
        cluster.wait_until(HEAL_MAX, "whole", View::is_whole)?;
        let window = Window::open(cluster)?;
        cluster.wait(self.plan.settle)?;
        window.close(cluster, &mut self.used)?;
        if self.load.is_dead() {
            bail!("the load has ended");
        }
        self.takeovers(cluster); // Those of before are of no interest.
        if fault.takes_instances() {
            let mut ledger = self.load.ledger.lock();
            // Also what is made until the masters notice.
            ledger.may_be_gone_before_us = Some(u64::MAX);
        }
        self.look_at_snapshots(cluster)?;
        let begun = fault.perform(cluster, &self.load.ledger)?;
        // What the cluster says of itself means something once nobody is missing.
        cluster.wait_until_all_run()?;
        cluster.wait_until(HEAL_MAX, "whole", View::is_whole)?;
        let healed_us = self.load.ledger.lock().now_us();
        self.wait_for_keepers(cluster)?;
        cluster.wait(AFTER)?;
        let audit = self.load.ask_for_audit();
        let asked = Instant::now();
        while self.plan.order.ops > 0 && self.load.audits() < audit {
            cluster.tend()?;
            pause(LOOK_INTERVAL);
            ensure!(!self.load.is_dead(), "the load has ended");
            ensure!(asked.elapsed() < AUDIT_MAX, "an audit is not answered in {AUDIT_MAX:?}");
        }
        if fault.takes_instances() {
            let mut ledger = self.load.ledger.lock();
            ledger.may_be_gone_before_us = Some(ledger.now_us());
        }
        Ok(self.judged(cluster, number, fault, begun, healed_us))
    }

    /// What is stored now is stored: whoever goes on after the fault has it, or what is newer.
    fn look_at_snapshots(&self, cluster: &Cluster) -> anyhow::Result<()> {
        if self.plan.order.keepers > 0 {
            let stored = keep::snapshots(&cluster.store())?;
            self.load.ledger.lock().stored_before = stored;
        }
        Ok(())
    }

    /// Waits until each keeper has sent something since the fault and was told that it is stored.
    fn wait_for_keepers(&self, cluster: &mut Cluster) -> anyhow::Result<()> {
        let began = Instant::now();
        while self.load.ledger.lock().answered < self.plan.order.keepers as u64 {
            ensure!(began.elapsed() < KEEPERS_MAX, "a keeper is not answered in {KEEPERS_MAX:?}");
            cluster.wait(LOOK_INTERVAL)?;
        }
        Ok(())
    }

    fn judged(
        &mut self,
        cluster: &Cluster,
        number: u32,
        fault: Fault,
        begun: Begun,
        healed_us: u64,
    ) -> Outcome {
        let takeover = self.takeovers(cluster).pop();
        let ledger = self.load.ledger.lock();
        let end_us = ledger.now_us();
        let gap = ledger.gap(begun.at_us, end_us);
        let calm = ledger.gap(begun.at_us.saturating_sub(CALM_US), begun.at_us);
        let slowest_us = ledger.slowest_us(begun.at_us, end_us);
        let steps = takeover.map(|takeover| {
            // The first write after the announcement, by the wall clock.
            let announced_us = begun.at_us + takeover.at_us.saturating_sub(begun.wall_us);
            let first = ledger.writes.partition_point(|write| write.acked_us < announced_us);
            let write_us = ledger.writes.get(first).map_or(end_us, |write| write.acked_us);
            Steps::of(&takeover, begun.wall_us, begun.wall_us + (write_us - begun.at_us))
        });
        Outcome {
            number,
            fault: fault.name(),
            at_s: ms(begun.at_us) / 1e3,
            gap_ms: ms(gap.length_us),
            calm_gap_ms: ms(calm.length_us),
            slowest_ms: ms(slowest_us),
            healed_ms: ms(healed_us.saturating_sub(begun.at_us)),
            rewound: ledger.rewinds().len(),
            restored_ms: ms(ledger.rewinds().iter().copied().max().unwrap_or(0)),
            steps,
        }
    }

    /// What the masters' logs tell of takeovers since the last look.
    fn takeovers(&mut self, cluster: &Cluster) -> Vec<Takeover> {
        let logs: Vec<PathBuf> =
            cluster.names(Part::Master).iter().map(|name| cluster.log(name)).collect();
        let mut found = Vec::new();
        for (tail, log) in self.tails.iter_mut().zip(logs) {
            found.extend(tail.lines(&log).iter().filter_map(|line| Takeover::read(line)));
        }
        found.sort_by_key(|takeover| takeover.at_us);
        found
    }
}
