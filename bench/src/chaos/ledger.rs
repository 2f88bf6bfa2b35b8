//! What clients were told, and what of it turned out to be wrong. Everything that is judged is written down here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use greenroom_client::{ClientError, InstanceId};

/// Findings of one kind that are kept as text; the others are counted.
const TEXTS_MAX: usize = 8;

/// What must never be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wrong {
    /// An acknowledged write is not there.
    Lost,
    /// Something that was asked for once happened twice.
    Doubled,
    /// A client saw something older than what was acknowledged before it asked.
    Stale,
    /// Two instances with one key ran at the same time, as their own clocks tell.
    Twin,
    /// A client was told of a failure that the load did not ask for.
    Error,
    /// A process said or did what it must not.
    Process,
}

impl Wrong {
    pub(crate) const ALL: [Self; 6] =
        [Self::Lost, Self::Doubled, Self::Stale, Self::Twin, Self::Error, Self::Process];

    /// Its name among the figures.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Lost => "acknowledged_lost",
            Self::Doubled => "doubled",
            Self::Stale => "stale_reads",
            Self::Twin => "twins",
            Self::Error => "client_errors",
            Self::Process => "process_findings",
        }
    }
}

/// An instance that was acknowledged and has not been asked to close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Alive {
    pub(crate) instance: InstanceId,
    /// Seats that are taken, as acknowledged; nothing while that is being changed.
    pub(crate) seats: Option<u16>,
    /// When it was acknowledged.
    pub(crate) since_us: u64,
}

/// One write: when it was asked for and when acknowledged, in microseconds since the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    pub(crate) asked_us: u64,
    pub(crate) acked_us: u64,
}

/// Everything that clients were told.
#[derive(Debug)]
pub(crate) struct Ledger {
    began: Instant,
    /// Acknowledged writes, in the order in which they were acknowledged.
    pub(crate) writes: Vec<Write>,
    /// What searches took, in microseconds.
    pub(crate) reads_us: Vec<u32>,
    /// From when on latencies are of interest.
    pub(crate) calm_from_us: u64,
    /// Operations that were due and not begun, since too many waited already.
    pub(crate) shed: u64,
    /// By name, which is also its key where it has one.
    pub(crate) alive: BTreeMap<String, Alive>,
    /// Names of which nobody knows whether they are there: their last request has no answer.
    pub(crate) unknown: BTreeSet<String>,
    /// Instances that went with their game server, which was killed: nothing brings these back.
    pub(crate) gone_with_server: u64,
    /// Instances that were acknowledged before this moment may be gone with their game server.
    pub(crate) may_be_gone_before_us: Option<u64>,
    /// Messages of players, and steps that their views show.
    pub(crate) steps: u64,
    /// Keepers that have their instance.
    pub(crate) keepers: u64,
    /// Those that sent something since the last fault began and were told that it is stored.
    pub(crate) answered: u64,
    /// When the last fault began.
    pub(crate) struck_us: u64,
    /// Of instances that stay, the step of the snapshot that was stored when the last fault began.
    pub(crate) stored_before: BTreeMap<String, u64>,
    /// From a fault until a keeper was told that its instance goes on elsewhere, in microseconds: one each time.
    pub(crate) rewinds_us: Vec<u64>,
    /// How many of them were told before the last fault.
    pub(crate) rewinds_before: usize,
    /// Seats that keepers lost.
    pub(crate) seats_lost: u64,
    wrong: BTreeMap<Wrong, (u64, Vec<String>)>,
    /// Errors that clients saw: code or name of the error, where, how often, and one of their texts.
    errors: BTreeMap<(String, &'static str), (u64, String)>,
}

/// A ledger that several tasks write to.
#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<Mutex<Ledger>>);

impl Shared {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Ledger::new())))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Ledger> {
        // Every change is one statement, so that it is in order also when somebody panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            writes: Vec::new(),
            reads_us: Vec::new(),
            calm_from_us: 0,
            shed: 0,
            alive: BTreeMap::new(),
            unknown: BTreeSet::new(),
            gone_with_server: 0,
            may_be_gone_before_us: None,
            steps: 0,
            keepers: 0,
            answered: 0,
            struck_us: 0,
            stored_before: BTreeMap::new(),
            rewinds_us: Vec::new(),
            rewinds_before: 0,
            seats_lost: 0,
            wrong: BTreeMap::new(),
            errors: BTreeMap::new(),
        }
    }

    /// Microseconds since the start.
    pub(crate) fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// A write is acknowledged.
    pub(crate) fn acknowledged(&mut self, asked_us: u64) {
        let acked_us = self.now_us();
        self.writes.push(Write { asked_us, acked_us });
    }

    /// Something is done to the cluster now.
    pub(crate) fn strikes(&mut self) -> u64 {
        self.answered = 0;
        self.rewinds_before = self.rewinds_us.len();
        self.struck_us = self.now_us();
        self.struck_us
    }

    /// What keepers were told of the last fault.
    pub(crate) fn rewinds(&self) -> &[u64] {
        &self.rewinds_us[self.rewinds_before..]
    }

    /// A keeper is told that its instance goes on from what was stored.
    pub(crate) fn is_rewound(&mut self) {
        self.rewinds_us.push(self.now_us().saturating_sub(self.struck_us));
    }

    /// A search is answered.
    pub(crate) fn read(&mut self, asked_us: u64) {
        let took = self.now_us().saturating_sub(asked_us);
        self.reads_us.push(u32::try_from(took).unwrap_or(u32::MAX));
    }

    /// Something is as it must not be.
    pub(crate) fn wrong(&mut self, what: Wrong, text: impl Into<String>) {
        let (count, texts) = self.wrong.entry(what).or_default();
        *count += 1;
        if texts.len() < TEXTS_MAX {
            texts.push(text.into());
        }
    }

    /// How often something was wrong.
    pub(crate) fn count(&self, what: Wrong) -> u64 {
        self.wrong.get(&what).map_or(0, |(count, _)| *count)
    }

    /// The findings, and the errors that clients saw, a line each.
    pub(crate) fn findings(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for ((code, at), (count, text)) in &self.errors {
            lines.push(format!("{count} x {code} at {at}: {text}"));
        }
        for (what, (count, texts)) in &self.wrong {
            if *what != Wrong::Error {
                lines.extend(texts.iter().map(|text| format!("{}: {text}", what.name())));
                let more = count - texts.len() as u64;
                lines.extend((more > 0).then(|| format!("{}: {more} more", what.name())));
            }
        }
        lines
    }

    /// A client was told of a failure.
    pub(crate) fn error(&mut self, at: &'static str, error: &ClientError) {
        let text = format!("{error} ({:.3} s)", self.now_us() as f64 / 1e6);
        let entry = self.errors.entry((code(error), at)).or_insert((0, text));
        entry.0 += 1;
        self.wrong(Wrong::Error, String::new());
    }

    /// An instance is not where it should be. `seen` says what was seen instead.
    pub(crate) fn missing(&mut self, what: Wrong, name: &str, seen: &str) {
        let Some(alive) = self.alive.remove(name) else { return };
        // It is wrong once, whatever is seen of it later.
        self.unknown.insert(name.to_owned());
        if self.may_be_gone_before_us.is_some_and(|moment| alive.since_us < moment) {
            self.gone_with_server += 1;
            return;
        }
        let at = self.now_us();
        self.wrong(
            what,
            format!(
                "{name}: instance {}, acknowledged at {} us, and at {at} us {seen}",
                alive.instance, alive.since_us
            ),
        );
    }

    /// The longest time without an acknowledged write between two moments: its length and its end. A time that goes on
    /// at `to_us` counts as long as it was then.
    pub(crate) fn gap(&self, from_us: u64, to_us: u64) -> Gap {
        let begin = self.writes.partition_point(|write| write.acked_us < from_us);
        let mut last = begin.checked_sub(1).map_or(from_us, |at| self.writes[at].acked_us);
        let mut gap = Gap::default();
        let acks = self.writes[begin..].iter().map(|write| write.acked_us);
        for acked_us in acks.take_while(|&acked_us| acked_us < to_us).chain([to_us]) {
            if acked_us - last > gap.length_us {
                gap = Gap { length_us: acked_us - last, end_us: acked_us };
            }
            last = acked_us;
        }
        gap
    }

    /// The longest that a write took that was under way between two moments.
    pub(crate) fn slowest_us(&self, from_us: u64, to_us: u64) -> u64 {
        let begin = self.writes.partition_point(|write| write.acked_us < from_us);
        let of = self.writes[begin..].iter().filter(|write| write.asked_us < to_us);
        of.map(|write| write.acked_us - write.asked_us).max().unwrap_or(0)
    }

    /// What writes took that were acknowledged between two moments, sorted, in microseconds.
    pub(crate) fn latencies_us(&self, from_us: u64, to_us: u64) -> Vec<u64> {
        let acked = |write: &&Write| (from_us..to_us).contains(&write.acked_us);
        let mut taken: Vec<u64> =
            self.writes.iter().filter(acked).map(|write| write.acked_us - write.asked_us).collect();
        taken.sort_unstable();
        taken
    }
}

/// A time without an acknowledged write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) length_us: u64,
    /// When the next write was acknowledged.
    pub(crate) end_us: u64,
}

/// Code of a refusal, or the name of the failure.
fn code(error: &ClientError) -> String {
    if let ClientError::Refused(refusal) = error {
        format!("refused:{}", refusal.code)
    } else if let ClientError::Left(refusal) = error {
        format!("left:{}", refusal.code)
    } else if let ClientError::Closed(refusal) = error {
        format!("closed:{}", refusal.code)
    } else {
        let name = format!("{error:?}");
        name.split([' ', '(', '{']).next().unwrap_or_default().to_lowercase()
    }
}

#[cfg(test)]
mod tests {
    use greenroom_client::{Code, Refusal};

    use super::*;

    fn with(writes: &[(u64, u64)]) -> Ledger {
        let mut ledger = Ledger::new();
        ledger.writes =
            writes.iter().map(|&(asked_us, acked_us)| Write { asked_us, acked_us }).collect();
        ledger
    }

    #[test]
    fn the_gap_is_the_longest_silence_and_begins_with_the_last_write_before() {
        let ledger = with(&[(0, 10), (5, 20), (15, 70), (60, 75)]);
        assert_eq!(ledger.gap(30, 80), Gap { length_us: 50, end_us: 70 });
        assert_eq!(ledger.slowest_us(30, 80), 55);
    }

    #[test]
    fn a_silence_that_has_not_ended_counts() {
        let ledger = with(&[(0, 10)]);
        assert_eq!(ledger.gap(20, 1_000), Gap { length_us: 990, end_us: 1_000 });
        assert_eq!(with(&[]).gap(20, 1_000).length_us, 980);
    }

    #[test]
    fn what_was_acknowledged_before_its_game_server_died_is_not_lost_by_the_masters() {
        let mut ledger = with(&[]);
        for (name, since_us) in [("old", 1), ("new", 9)] {
            let alive = Alive { instance: InstanceId(1), seats: Some(0), since_us };
            ledger.alive.insert(name.to_owned(), alive);
        }
        ledger.may_be_gone_before_us = Some(5);
        ledger.missing(Wrong::Lost, "old", "it is not there");
        ledger.missing(Wrong::Lost, "new", "it is not there");
        ledger.missing(Wrong::Lost, "never", "it is not there");
        assert_eq!((ledger.gone_with_server, ledger.count(Wrong::Lost)), (1, 1));
    }

    #[test]
    fn errors_are_listed_by_code_and_place_with_one_text() {
        let mut ledger = with(&[]);
        let busy = ClientError::Refused(Refusal::new(Code::Busy, "later"));
        ledger.error("join", &busy);
        ledger.error("join", &busy);
        ledger.error("create", &ClientError::Unavailable);
        let findings = ledger.findings();
        assert!(findings[0].starts_with("2 x refused:busy at join: "), "{findings:?}");
        assert!(findings[1].starts_with("1 x unavailable at create: "), "{findings:?}");
        assert_eq!(ledger.count(Wrong::Error), 3);
    }
}
