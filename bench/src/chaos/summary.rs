//! What a campaign found: a line for each fault, then the figures and the verdict.

use serde_json::{Map, Value, json};

use super::faults::Only;
use super::ledger::{Ledger, Wrong};
use super::takeover::Takeover;

/// Fewer faults than this say nothing about a 99th of a hundred.
const JUDGED_FROM: usize = 20;

/// What one fault came to.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) number: u32,
    pub(crate) fault: &'static str,
    /// Seconds since the load's start.
    pub(crate) at_s: f64,
    /// The longest time without an acknowledged write around it, in milliseconds.
    pub(crate) gap_ms: f64,
    /// The same in the second before it.
    pub(crate) calm_gap_ms: f64,
    /// The longest that a write took that was under way.
    pub(crate) slowest_ms: f64,
    /// Until the cluster was whole again.
    pub(crate) healed_ms: f64,
    /// Keepers that were told that their instance goes on elsewhere, and when the last of them was.
    pub(crate) rewound: usize,
    pub(crate) restored_ms: f64,
    /// Where the time of a takeover went.
    pub(crate) steps: Option<Steps>,
}

/// Where the time of a takeover went, in milliseconds, in this order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Steps {
    /// From the fault to the decision that the other master is gone.
    pub(crate) detect_ms: f64,
    pub(crate) intent_ms: f64,
    pub(crate) claim_ms: f64,
    pub(crate) announce_ms: f64,
    /// From the announcement to the first write that is acknowledged.
    pub(crate) first_write_ms: f64,
}

impl Steps {
    pub(crate) const NAMES: [&'static str; 5] =
        ["detect", "intent", "claim", "announce", "first_write"];

    /// Of a takeover after a fault that began at `fault_us` of the wall clock; the first write was acknowledged at
    /// `write_us` of it.
    pub(crate) fn of(takeover: &Takeover, fault_us: u64, write_us: u64) -> Self {
        let decided_us = takeover.at_us.saturating_sub(takeover.steps_us());
        Self {
            detect_ms: ms(decided_us.saturating_sub(fault_us)),
            intent_ms: ms(takeover.intent_us),
            claim_ms: ms(takeover.claim_us),
            announce_ms: ms(takeover.announce_us),
            first_write_ms: ms(write_us.saturating_sub(takeover.at_us)),
        }
    }

    pub(crate) const fn values(&self) -> [f64; 5] {
        [self.detect_ms, self.intent_ms, self.claim_ms, self.announce_ms, self.first_write_ms]
    }
}

/// Milliseconds.
#[expect(clippy::cast_precision_loss, reason = "below 2^52")]
pub(crate) const fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

/// The value that a share of all is at or below, of values in order.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of faults"
    )]
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).or(sorted.last()).copied().unwrap_or(0.0)
}

impl Outcome {
    pub(crate) fn json(&self) -> Value {
        let Self { number, fault, at_s, gap_ms, calm_gap_ms, slowest_ms, healed_ms, .. } = self;
        let mut object = json!({
            "fault": fault, "number": number, "at_s": round(*at_s), "gap_ms": round(*gap_ms),
            "calm_gap_ms": round(*calm_gap_ms), "slowest_ms": round(*slowest_ms), "healed_ms": round(*healed_ms),
        });
        if let (Some(object), true) = (object.as_object_mut(), self.rewound > 0) {
            object.insert("rewound".to_owned(), self.rewound.into());
            object.insert("restored_ms".to_owned(), round(self.restored_ms).into());
        }
        if let (Some(steps), Some(object)) = (self.steps, object.as_object_mut()) {
            for (name, value) in Steps::NAMES.iter().zip(steps.values()) {
                object.insert(format!("{name}_ms"), round(value).into());
            }
        }
        object
    }

    /// One line.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{:>3} {}: gap {:.1} ms (before: {:.1}), slowest {:.1} ms, whole after {:.0} ms",
            self.number, self.fault, self.gap_ms, self.calm_gap_ms, self.slowest_ms, self.healed_ms
        );
        if self.rewound > 0 {
            text.push_str(&format!(
                ", {} instances restored in {:.0} ms",
                self.rewound, self.restored_ms
            ));
        }
        for (name, value) in
            Steps::NAMES.iter().zip(self.steps.iter().flat_map(|steps| steps.values()))
        {
            text.push_str(&format!(", {name} {value:.1}"));
        }
        text
    }
}

/// What a figure may be at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) figure: &'static str,
    pub(crate) most: f64,
}

/// The targets of a campaign with so many users in the directory.
pub(crate) fn targets(only: Only, directory: usize) -> Vec<Target> {
    let p50 = |most| Target { figure: "gap_p50_ms", most };
    let p99 = |most| Target { figure: "gap_p99_ms", most };
    match only {
        Only::Active if directory > 0 => vec![p99(100.0)],
        Only::Active => vec![p50(15.0), p99(50.0)],
        Only::Standby | Only::Switchover => vec![p99(50.0)],
        Only::Stop => vec![p99(700.0)],
        Only::BothMasters => vec![p99(5_000.0)],
        Only::Session
        | Only::Game
        | Only::Any
        | Only::Cut
        | Only::Witness
        | Only::Isolate
        | Only::Tax
        | Only::Join => Vec::new(),
    }
}

/// The whole campaign.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) figures: Vec<(String, f64)>,
    pub(crate) findings: Vec<String>,
    /// Targets that were missed, in words.
    pub(crate) missed: Vec<String>,
    /// How often something was as it must not be.
    pub(crate) wrong: u64,
}

impl Summary {
    /// Counts and judges.
    pub(crate) fn of(outcomes: &[Outcome], ledger: &Ledger, targets: &[Target]) -> Self {
        let mut figures = Vec::new();
        let mut add = |name: &str, value: f64| figures.push((name.to_owned(), value));
        add("faults", count(outcomes.len()));
        let mut spread = |name: &str, mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            if values.is_empty() {
                return;
            }
            for (part, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)] {
                add(&format!("{name}_{part}_ms"), quantile(&values, share));
            }
        };
        spread("gap", outcomes.iter().map(|one| one.gap_ms).collect());
        spread("calm_gap", outcomes.iter().map(|one| one.calm_gap_ms).collect());
        spread("slowest", outcomes.iter().map(|one| one.slowest_ms).collect());
        spread("healed", outcomes.iter().map(|one| one.healed_ms).collect());
        for (at, name) in Steps::NAMES.iter().enumerate() {
            let steps = outcomes.iter().filter_map(|one| one.steps);
            spread(name, steps.map(|steps| steps.values()[at]).collect());
        }
        spread("restored", ledger.rewinds_us.iter().map(|&us| ms(us)).collect());
        add("rewound", count(ledger.rewinds_us.len()));
        add("seats_lost", ledger.seats_lost as f64);
        let seconds = ms(ledger.now_us()) / 1e3;
        add("seconds", seconds);
        add("acknowledged_writes", count(ledger.writes.len()));
        add("writes_per_s", count(ledger.writes.len()) / seconds);
        add("searches", count(ledger.reads_us.len()));
        let mut reads: Vec<f64> = ledger.reads_us.iter().map(|&us| ms(u64::from(us))).collect();
        reads.sort_by(f64::total_cmp);
        let taken = ledger.latencies_us(ledger.calm_from_us, u64::MAX);
        let writes: Vec<f64> = taken.into_iter().map(ms).collect();
        for (name, values) in [("write", writes), ("search", reads)] {
            for (part, share) in [("p50", 0.5), ("p99", 0.99)] {
                add(&format!("{name}_{part}_ms"), quantile(&values, share));
            }
        }
        add("shed", count(usize::try_from(ledger.shed).unwrap_or(usize::MAX)));
        add("steps_of_players", ledger.steps as f64);
        add("gone_with_their_game_server", ledger.gone_with_server as f64);
        let mut wrong = 0;
        for what in Wrong::ALL {
            wrong += ledger.count(what);
            add(what.name(), ledger.count(what) as f64);
        }
        let mut missed = Vec::new();
        for target in targets.iter().filter(|_| outcomes.len() >= JUDGED_FROM) {
            let value = figures.iter().find(|(name, _)| name == target.figure);
            if let Some((name, value)) = value.filter(|(_, value)| *value > target.most) {
                missed.push(format!("{name} is {value:.1}, and should be {} at most", target.most));
            }
        }
        Self { figures, findings: ledger.findings(), missed, wrong }
    }

    /// Whether everything is as it must be.
    pub(crate) fn is_good(&self) -> bool {
        self.wrong == 0 && self.missed.is_empty()
    }

    pub(crate) fn verdict(&self) -> String {
        match (self.wrong, self.missed.len()) {
            (0, 0) => {
                "good: nothing acknowledged was lost, doubled or stale, and no client saw an error"
                    .to_owned()
            }
            (0, _) => format!("correct, but slow: {}", self.missed.join("; ")),
            (wrong, _) => format!("BAD: {wrong} things are as they must not be"),
        }
    }

    pub(crate) fn json(&self) -> Map<String, Value> {
        let mut object = Map::new();
        for (name, value) in &self.figures {
            object.insert(name.clone(), round(*value).into());
        }
        object.insert("findings".to_owned(), self.findings.clone().into());
        object.insert("good".to_owned(), self.is_good().into());
        object.insert("verdict".to_owned(), self.verdict().into());
        object
    }

    /// A figure a line, then the findings, then the verdict.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.figures {
            text.push_str(&format!("  {name:32}{:>16}\n", round(*value)));
        }
        for finding in &self.findings {
            text.push_str(&format!("  ! {finding}\n"));
        }
        text + &format!("{}\n", self.verdict())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count")]
fn count(of: usize) -> f64 {
    of as f64
}

/// To a thousandth.
fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::ledger::Shared;

    fn outcome(gap_ms: f64) -> Outcome {
        Outcome {
            number: 1,
            fault: "kill active",
            at_s: 1.0,
            gap_ms,
            calm_gap_ms: 1.0,
            slowest_ms: gap_ms,
            healed_ms: 700.0,
            rewound: 0,
            restored_ms: 0.0,
            steps: None,
        }
    }

    #[test]
    fn of_two_hundred_gaps_two_may_be_longer_than_the_99th_of_a_hundred() {
        let sorted: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!((quantile(&sorted, 0.5), quantile(&sorted, 0.99)), (100.0, 198.0));
        assert_eq!((quantile(&[7.0], 0.5), quantile(&[], 0.5)), (7.0, 0.0));
    }

    #[test]
    fn one_lost_write_makes_a_campaign_bad_however_fast_it_was() {
        let ledger = Shared::new();
        let outcomes = vec![outcome(3.0); 30];
        let targets = targets(Only::Active, 0);
        assert!(Summary::of(&outcomes, &ledger.lock(), &targets).is_good());
        ledger.lock().wrong(Wrong::Lost, "x is not there");
        let summary = Summary::of(&outcomes, &ledger.lock(), &targets);
        assert!(!summary.is_good());
        assert!(
            summary.text().contains("! acknowledged_lost: x is not there"),
            "{}",
            summary.text()
        );
    }

    #[test]
    fn a_campaign_that_is_correct_and_slow_says_by_how_much() {
        let ledger = Shared::new();
        let summary =
            Summary::of(&vec![outcome(80.0); 30], &ledger.lock(), &targets(Only::Standby, 0));
        assert!(!summary.is_good());
        assert_eq!(
            summary.verdict(),
            "correct, but slow: gap_p99_ms is 80.0, and should be 50 at most"
        );
    }

    #[test]
    fn the_steps_of_a_takeover_begin_with_the_fault_and_end_with_a_write() {
        let takeover = Takeover {
            at_us: 20_000,
            epoch: "0.2".to_owned(),
            detect_us: 0,
            intent_us: 1_000,
            claim_us: 2_000,
            announce_us: 500,
        };
        let steps = Steps::of(&takeover, 10_000, 21_000);
        assert_eq!(steps.values(), [6.5, 1.0, 2.0, 0.5, 1.0]);
    }
}
