//! Misbehaviour on command: which requests, how often, and what happens to them.
//!
//! Rules are tried in the order in which they were added; the first that applies decides. The dice are seeded, so a run
//! with the same requests in the same order goes wrong in the same places.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::wire::{Status, opcode};

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Misbehaviour {
    /// Refused with "temporary failure"; nothing is applied.
    TemporaryFailure,
    /// Refused with "busy"; nothing is applied.
    Busy,
    /// Refused as if somebody else had locked the document; nothing is applied.
    Locked,
    /// Refused with "stale authentication"; nothing is applied.
    StaleAuthentication,
    /// Refused since the level cannot be reached with the nodes that are there; nothing is applied.
    DurabilityImpossible,
    /// Answered "ambiguous" after the write was applied.
    AmbiguousApplied,
    /// Answered "ambiguous" although the write was not applied.
    AmbiguousLost,
    /// Refused since another durable write of the document is under way; nothing is applied.
    SyncWriteInProgress,
    /// Refused since an earlier durable write of the document is committed anew; nothing is applied.
    SyncWriteRecommit,
    /// Refused with "not my vbucket" and the map as it is; nothing is applied.
    NotMyVbucket,
    /// Refused with "internal error"; nothing is applied.
    Internal,
    /// Applied, and never answered.
    AnswerSwallowed,
    /// Neither applied nor answered.
    RequestSwallowed,
    /// Applied; the first half of the answer is sent, then the connection is cut.
    HalfAnswer,
    /// Applied, then the connection is cut without an answer.
    CutAfter,
    /// The connection is cut before the request is applied.
    CutBefore,
    /// Applied, and answered this many milliseconds later; other requests overtake it.
    Late(u64),
    /// Applied this many milliseconds later, and then answered.
    Slow(u64),
}

impl Misbehaviour {
    /// The refusal, for those that apply nothing.
    pub(crate) fn refusal(self) -> Option<Status> {
        Some(match self {
            Self::TemporaryFailure => Status::TEMPORARY_FAILURE,
            Self::Busy => Status::BUSY,
            Self::Locked => Status::LOCKED,
            Self::StaleAuthentication => Status::AUTH_STALE,
            Self::DurabilityImpossible => Status::DURABILITY_IMPOSSIBLE,
            Self::AmbiguousLost => Status::SYNC_WRITE_AMBIGUOUS,
            Self::SyncWriteInProgress => Status::SYNC_WRITE_IN_PROGRESS,
            Self::SyncWriteRecommit => Status::SYNC_WRITE_RECOMMIT,
            Self::NotMyVbucket => Status::NOT_MY_VBUCKET,
            Self::Internal => Status(0x84),
            Self::AmbiguousApplied
            | Self::AnswerSwallowed
            | Self::RequestSwallowed
            | Self::HalfAnswer
            | Self::CutAfter
            | Self::CutBefore
            | Self::Late(_)
            | Self::Slow(_) => return None,
        })
    }

    /// How long before the request is applied.
    pub(crate) fn applied_after(self) -> Option<Duration> {
        match self {
            Self::Slow(millis) => Some(Duration::from_millis(millis)),
            Self::Late(_)
            | Self::TemporaryFailure
            | Self::Busy
            | Self::Locked
            | Self::StaleAuthentication
            | Self::DurabilityImpossible
            | Self::AmbiguousLost
            | Self::SyncWriteInProgress
            | Self::SyncWriteRecommit
            | Self::NotMyVbucket
            | Self::Internal
            | Self::AmbiguousApplied
            | Self::AnswerSwallowed
            | Self::RequestSwallowed
            | Self::HalfAnswer
            | Self::CutAfter
            | Self::CutBefore => None,
        }
    }
}

/// Which kinds of requests a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Requests {
    /// Those that change a document.
    #[default]
    Writes,
    /// Those that read one.
    Reads,
    /// Both.
    All,
    /// One opcode.
    Opcode(u8),
}

impl Requests {
    fn contain(self, code: u8) -> bool {
        match self {
            Self::Writes => is_write(code),
            Self::Reads => is_read(code),
            Self::All => is_write(code) || is_read(code),
            Self::Opcode(wanted) => wanted == code,
        }
    }
}

/// Whether the request changes a document.
pub(crate) fn is_write(code: u8) -> bool {
    matches!(
        code,
        opcode::SET
            ..=opcode::DECREMENT
                | opcode::APPEND
                | opcode::PREPEND
                | opcode::TOUCH
                | opcode::GET_AND_TOUCH
                | opcode::GET_LOCKED
                | opcode::UNLOCK
                | opcode::SUBDOC_MULTI_MUTATION
    )
}

/// Whether the request reads a document and leaves it as it is.
pub(crate) fn is_read(code: u8) -> bool {
    matches!(
        code,
        opcode::GET | opcode::GET_REPLICA | opcode::GET_META | opcode::SUBDOC_MULTI_LOOKUP
    )
}

/// A rule: what happens to which requests.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What happens.
    pub what: Misbehaviour,
    /// To which requests; by default to writes.
    #[serde(default)]
    pub requests: Requests,
    /// Only to documents whose key contains this.
    #[serde(default)]
    pub key: Option<String>,
    /// Only on this node.
    #[serde(default)]
    pub node: Option<usize>,
    /// Passes over this many requests first.
    #[serde(default)]
    pub skip: u32,
    /// Then happens this many times; without an end when left out.
    #[serde(default)]
    pub count: Option<u32>,
    /// And then with this probability, 0 to 1.
    #[serde(default = "always")]
    pub probability: f64,
}

fn always() -> f64 {
    1.0
}

impl Fault {
    /// The misbehaviour for every write, until it is taken back.
    pub fn new(what: Misbehaviour) -> Self {
        Self {
            what,
            requests: Requests::Writes,
            key: None,
            node: None,
            skip: 0,
            count: None,
            probability: 1.0,
        }
    }

    /// For these requests instead.
    #[must_use]
    pub fn on(mut self, requests: Requests) -> Self {
        self.requests = requests;
        self
    }

    /// Only for documents whose key contains this.
    #[must_use]
    pub fn key(mut self, part: impl Into<String>) -> Self {
        self.key = Some(part.into());
        self
    }

    /// Only on this node.
    #[must_use]
    pub fn node(mut self, node: usize) -> Self {
        self.node = Some(node);
        self
    }

    /// Passes over this many requests first.
    #[must_use]
    pub fn skip(mut self, requests: u32) -> Self {
        self.skip = requests;
        self
    }

    /// This many times, then no more.
    #[must_use]
    pub fn times(mut self, count: u32) -> Self {
        self.count = Some(count);
        self
    }

    /// With this probability.
    #[must_use]
    pub fn probability(mut self, probability: f64) -> Self {
        self.probability = probability;
        self
    }
}

/// The rules of a cluster. Clones are handles on the same rules.
#[derive(Debug, Clone)]
pub struct Faults {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    rules: Vec<(Fault, u64)>,
    dice: u64,
    happened: u64,
    put_off: usize,
}

/// A request or an answer that is put off, until it is dropped.
#[derive(Debug)]
pub(crate) struct PutOff(Faults);

impl Drop for PutOff {
    fn drop(&mut self) {
        self.0.lock().put_off -= 1;
    }
}

impl Faults {
    pub(crate) fn seeded(seed: u64) -> Self {
        let inner = Inner { rules: Vec::new(), dice: seed, happened: 0, put_off: 0 };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule behind those that are there.
    pub fn add(&self, fault: Fault) {
        self.lock().rules.push((fault, 0));
    }

    /// Takes every rule back.
    pub fn clear(&self) {
        self.lock().rules.clear();
    }

    /// How often anything went wrong on command since the start.
    pub fn happened(&self) -> u64 {
        self.lock().happened
    }

    /// How many requests and answers are put off and have not been applied or sent yet.
    pub fn put_off(&self) -> usize {
        self.lock().put_off
    }

    /// Counts one that is put off.
    pub(crate) fn put_one_off(&self) -> PutOff {
        self.lock().put_off += 1;
        PutOff(self.clone())
    }

    /// What happens to this request.
    pub(crate) fn decide(&self, code: u8, key: &[u8], node: usize) -> Option<Misbehaviour> {
        let mut inner = self.lock();
        let Inner { rules, dice, happened, .. } = &mut *inner;
        for (fault, happened_here) in rules {
            let is_for_it = fault.requests.contain(code)
                && fault.node.is_none_or(|wanted| wanted == node)
                && fault.key.as_ref().is_none_or(|part| contains(key, part.as_bytes()))
                && fault.count.is_none_or(|count| *happened_here < u64::from(count));
            if !is_for_it {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            if fault.probability < 1.0 && roll(dice) >= fault.probability {
                continue;
            }
            *happened_here += 1;
            *happened += 1;
            return Some(fault.what);
        }
        None
    }
}

fn contains(key: &[u8], part: &[u8]) -> bool {
    part.is_empty() || key.windows(part.len()).any(|window| window == part)
}

/// 0 to 1, without 1 (SplitMix64).
#[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
fn roll(dice: &mut u64) -> f64 {
    *dice = dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *dice;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_passes_over_some_then_happens_its_times_and_then_never() {
        let faults = Faults::seeded(1);
        faults.add(Fault::new(Misbehaviour::Busy).key("ann").skip(1).times(2));
        let decide = |key: &[u8]| faults.decide(opcode::SET, key, 0);
        assert_eq!(decide(b"bo"), None);
        assert_eq!(decide(b"user/ann"), None);
        assert_eq!(decide(b"user/ann"), Some(Misbehaviour::Busy));
        assert_eq!(faults.decide(opcode::GET, b"user/ann", 0), None);
        assert_eq!(decide(b"user/ann"), Some(Misbehaviour::Busy));
        assert_eq!(decide(b"user/ann"), None);
        assert_eq!(faults.happened(), 2);
    }

    #[test]
    fn the_same_seed_goes_wrong_in_the_same_places() {
        let run = |seed| {
            let faults = Faults::seeded(seed);
            faults.add(Fault::new(Misbehaviour::Busy).probability(0.5));
            (0..64).map(|_| faults.decide(opcode::SET, b"k", 0).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let wrong = run(7).iter().filter(|is_wrong| **is_wrong).count();
        assert!((16..48).contains(&wrong), "{wrong} of 64");
    }

    #[test]
    fn a_rule_reads_from_json_with_what_is_left_out() {
        let fault: Fault =
            serde_json::from_str(r#"{"what": {"slow": 50}, "requests": {"opcode": 1}}"#).unwrap();
        assert_eq!(fault.what.applied_after(), Some(Duration::from_millis(50)));
        assert!(fault.requests.contain(opcode::SET) && !fault.requests.contain(opcode::ADD));
        assert!(serde_json::from_str::<Fault>(r#"{"what": "busy", "wen": 1}"#).is_err());
    }
}
