//! What bots saw, for people and for programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use ecow::EcoString;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::GameResult;
use crate::{Seat, Stats};

/// Different errors whose texts are kept.
const ERROR_TEXTS_MAX: usize = 20;

/// Longest latency that is told apart, in microseconds: an hour, which is longer than any bot waits.
const LATENCY_MAX_US: u64 = 3_600_000_000;

/// Everything that is measured. The names in it are API: they do not change without a line in the changelog.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Bots.
    pub users: u32,
    /// How long it took, from the first bot's start to the last one's end.
    pub seconds: f64,
    /// Operations that came to an end as they should.
    pub operations: u64,
    /// Operations that did not.
    pub errors: u64,
    /// Reliable messages, replies and announcements that never came. Must be 0.
    pub lost: u64,
    /// Those that came twice to the application. Must be 0.
    pub doubled: u64,
    /// Those that came in another order than they were sent. Must be 0.
    pub out_of_order: u64,
    /// Half of all calls were answered within this, in milliseconds, from their planned time.
    pub p50_ms: f64,
    /// 99 of 100 calls were.
    pub p99_ms: f64,
    /// Connections that replaced a lost one.
    pub reconnects: u64,
    /// Views that changed.
    pub states: u64,
    /// Patches that did not fit, each healed by a snapshot. Must be 0.
    pub desyncs: u64,
    /// Messages of the game.
    pub messages: u64,
    /// Reliable messages that came again after a reconnect and were dropped by the client, as they should be.
    pub duplicates_dropped: u64,
    /// Times that a full queue on the way made a client send again.
    pub sent_again: u64,
    /// Seats that began anew, a declared loss.
    pub rewound: u64,
    /// Calls of such seats of which nobody knows what became, as their callers are told. They are no errors.
    pub undecided: u64,
    /// Results that games told bots, such as those of duels; one that two bots were told is one.
    pub results: u64,
    /// By operation.
    pub by_operation: BTreeMap<&'static str, OperationReport>,
    /// How often each error was seen.
    pub error_texts: BTreeMap<EcoString, u64>,
    /// The ids of the results, which have many lines of their own: `--results FILE`.
    #[serde(skip)]
    pub result_ids: Vec<EcoString>,
}

/// One operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OperationReport {
    /// How many came to an end as they should.
    pub count: u64,
    /// How many did not.
    pub errors: u64,
    /// Half of them took at most this, from their planned time.
    pub p50_ms: f64,
    /// 9 of 10.
    pub p90_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// 999 of 1,000.
    pub p999_ms: f64,
    /// All.
    pub max_ms: f64,
}

/// What a bot does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    CheckIn,
    Join,
    /// A message, from its planned time until it is with the client: says how late the bots themselves are.
    Send,
    Call,
    /// A call, until everybody is told of it.
    Announced,
    Leave,
}

impl Operation {
    const fn name(self) -> &'static str {
        match self {
            Self::CheckIn => "check_in",
            Self::Join => "join",
            Self::Send => "send",
            Self::Call => "call",
            Self::Announced => "announced",
            Self::Leave => "leave",
        }
    }
}

/// Where all bots of a run count.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    operations: BTreeMap<Operation, Measured>,
    error_texts: BTreeMap<EcoString, u64>,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) out_of_order: u64,
    pub(crate) rewound: u64,
    pub(crate) undecided: u64,
    results: BTreeMap<EcoString, Option<Seat>>,
    stats: Stats,
}

#[derive(Debug)]
struct Measured {
    /// Microseconds.
    latency: Histogram<u64>,
    errors: u64,
}

impl Default for Measured {
    fn default() -> Self {
        let latency = Histogram::new_with_max(LATENCY_MAX_US, 3)
            .expect("a maximum above 2 and 3 significant digits are what a histogram takes");
        Self { latency, errors: 0 }
    }
}

impl Tally {
    pub(crate) fn done(&mut self, operation: Operation, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.operations.entry(operation).or_default().latency.saturating_record(micros);
    }

    pub(crate) fn failed(&mut self, operation: Operation, error: &dyn fmt::Display) {
        self.operations.entry(operation).or_default().errors += 1;
        let text = ecow::eco_format!("{}: {error}", operation.name());
        if self.error_texts.len() < ERROR_TEXTS_MAX || self.error_texts.contains_key(&text) {
            *self.error_texts.entry(text).or_default() += 1;
        }
    }

    /// A bot was told how its game ended. Whoever played it is told the same.
    pub(crate) fn ended(&mut self, result: GameResult) {
        let GameResult { id, winner } = result;
        let known = *self.results.entry(id.clone()).or_insert(winner);
        if known != winner {
            let text = ecow::eco_format!("{id} was won by {known:?} and by {winner:?}");
            self.failed(Operation::Announced, &text);
        }
    }

    /// Adds what one client counted.
    pub(crate) fn add(&mut self, stats: &Stats) {
        self.lost += stats.missed;
        self.doubled += stats.stray_replies;
        self.stats.reconnects += stats.reconnects;
        self.stats.states += stats.states;
        self.stats.desyncs += stats.desyncs;
        self.stats.messages += stats.messages;
        self.stats.duplicates_dropped += stats.duplicates_dropped;
        self.stats.sent_again += stats.sent_again;
    }

    pub(crate) fn report(self, users: u32, took: Duration) -> Report {
        let by_operation: BTreeMap<_, _> = self
            .operations
            .iter()
            .map(|(operation, measured)| (operation.name(), measured.report()))
            .collect();
        let calls = by_operation.get(Operation::Call.name()).cloned().unwrap_or_default();
        Report {
            users,
            seconds: (took.as_secs_f64() * 1_000.0).round() / 1_000.0,
            operations: by_operation.values().map(|operation| operation.count).sum(),
            errors: by_operation.values().map(|operation| operation.errors).sum(),
            lost: self.lost,
            doubled: self.doubled,
            out_of_order: self.out_of_order,
            p50_ms: calls.p50_ms,
            p99_ms: calls.p99_ms,
            reconnects: self.stats.reconnects,
            states: self.stats.states,
            desyncs: self.stats.desyncs,
            messages: self.stats.messages,
            duplicates_dropped: self.stats.duplicates_dropped,
            sent_again: self.stats.sent_again,
            rewound: self.rewound,
            undecided: self.undecided,
            results: self.results.len() as u64,
            by_operation,
            error_texts: self.error_texts,
            result_ids: self.results.into_keys().collect(),
        }
    }
}

impl Measured {
    fn report(&self) -> OperationReport {
        let ms = |micros: u64| Duration::from_micros(micros).as_secs_f64() * 1_000.0;
        let at = |quantile| ms(self.latency.value_at_quantile(quantile));
        OperationReport {
            count: self.latency.len(),
            errors: self.errors,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: ms(self.latency.max()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{} bots, {:.1} s: {} operations, {} errors; {} lost, {} doubled, {} out of order",
            self.users,
            self.seconds,
            self.operations,
            self.errors,
            self.lost,
            self.doubled,
            self.out_of_order
        )?;
        writeln!(
            out,
            "{:<10}{:>10}{:>8}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "operation", "count", "errors", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms"
        )?;
        for (name, operation) in &self.by_operation {
            writeln!(
                out,
                "{name:<10}{:>10}{:>8}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>10.2}",
                operation.count,
                operation.errors,
                operation.p50_ms,
                operation.p90_ms,
                operation.p99_ms,
                operation.p999_ms,
                operation.max_ms
            )?;
        }
        writeln!(
            out,
            "{} states, {} desyncs, {} messages, {} reconnects, {} duplicates dropped, {} sent again, {} rewound, \
             {} undecided, {} results",
            self.states,
            self.desyncs,
            self.messages,
            self.reconnects,
            self.duplicates_dropped,
            self.sent_again,
            self.rewound,
            self.undecided,
            self.results
        )?;
        for (text, count) in &self.error_texts {
            writeln!(out, "{count:>8} x {text}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_keys_that_programs_read() {
        let mut tally = Tally::default();
        tally.done(Operation::Call, Duration::from_millis(4));
        tally.failed(Operation::Join, &"full");
        let report = tally.report(3, Duration::from_secs(1));
        let json = serde_json::to_value(&report).unwrap();
        for key in [
            "users",
            "seconds",
            "operations",
            "errors",
            "lost",
            "doubled",
            "out_of_order",
            "p50_ms",
            "p99_ms",
        ] {
            assert!(json[key].is_number(), "{key}");
        }
        assert_eq!((report.operations, report.errors), (1, 1));
        assert!((3.9..4.1).contains(&report.p99_ms));
        let table = report.to_string();
        assert!(table.contains("1 x join: full"), "{table}");
    }

    #[test]
    fn a_result_counts_once_and_one_that_was_told_in_two_ways_is_an_error() {
        let mut tally = Tally::default();
        let result = |id: &str, winner| GameResult { id: id.into(), winner: Some(Seat(winner)) };
        tally.ended(result("a", 0));
        tally.ended(result("a", 0));
        tally.ended(result("b", 1));
        tally.ended(result("b", 0));
        let report = tally.report(3, Duration::from_secs(1));
        assert_eq!((report.results, report.errors), (2, 1));
        assert_eq!(report.result_ids, ["a", "b"]);
    }
}
