//! Who may write a document: the numbers of its owner, of which a store takes newer ones only.

use std::cmp::Ordering;
use std::fmt;

use greenroom_protocol::Epoch;
use serde::{Deserialize, Serialize};

/// The numbers of a document's owner at the moment of a write.
///
/// Two owners of one sort are compared number by number; a master and an instance never own the same document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// The active master, and the command whose effect the write is.
    Master {
        /// Its era and epoch.
        epoch: Epoch,
        /// The command's place in the log.
        lsn: u64,
    },
    /// One life of an instance, and its how-manieth write this is.
    Instance {
        /// A number that grows with each life of the instance: of two lives the later has the larger.
        incarnation: u64,
        /// Counts the writes of this life.
        n: u64,
    },
}

impl PartialOrd for Owner {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Master { epoch, lsn }, Self::Master { epoch: other_epoch, lsn: other_lsn }) => {
                let this = (epoch.era, epoch.epoch, lsn);
                Some(this.cmp(&(other_epoch.era, other_epoch.epoch, other_lsn)))
            }
            (
                Self::Instance { incarnation, n },
                Self::Instance { incarnation: other_incarnation, n: other_n },
            ) => Some((incarnation, n).cmp(&(other_incarnation, other_n))),
            (Self::Master { .. }, Self::Instance { .. })
            | (Self::Instance { .. }, Self::Master { .. }) => None,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master { epoch, lsn } => write!(out, "master {epoch} at {lsn}"),
            Self::Instance { incarnation, n } => write!(out, "incarnation {incarnation} at {n}"),
        }
    }
}

/// What becomes of an owner's write, seen beside the owner that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What is stored is older, or nobody's: the write is to happen.
    Write,
    /// It has happened: this is a resend.
    Done,
    /// What is stored is newer, or of another sort: who writes has been deposed.
    Deposed,
}

impl Owner {
    /// What becomes of a write of this owner over what `stored` wrote; the rule of every backend.
    pub fn over(&self, stored: Option<&Self>) -> Verdict {
        match stored.map(|stored| self.partial_cmp(stored)) {
            None | Some(Some(Ordering::Greater)) => Verdict::Write,
            Some(Some(Ordering::Equal)) => Verdict::Done,
            Some(Some(Ordering::Less) | None) => Verdict::Deposed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(era: u32, epoch: u32, lsn: u64) -> Owner {
        Owner::Master { epoch: Epoch { era, epoch }, lsn }
    }

    #[test]
    fn the_larger_number_wins_era_first_and_equal_is_a_resend() {
        let stored = master(2, 3, 100);
        assert_eq!(master(2, 3, 101).over(Some(&stored)), Verdict::Write);
        assert_eq!(master(2, 4, 1).over(Some(&stored)), Verdict::Write);
        assert_eq!(master(3, 0, 0).over(Some(&stored)), Verdict::Write);
        assert_eq!(master(2, 3, 100).over(Some(&stored)), Verdict::Done);
        assert_eq!(master(2, 3, 99).over(Some(&stored)), Verdict::Deposed);
        assert_eq!(master(2, 2, 900).over(Some(&stored)), Verdict::Deposed);
        assert_eq!(master(1, 9, 900).over(Some(&stored)), Verdict::Deposed);
        assert_eq!(master(1, 1, 1).over(None), Verdict::Write);
        let instance = Owner::Instance { incarnation: u64::MAX, n: u64::MAX };
        assert_eq!(instance.over(Some(&stored)), Verdict::Deposed);
        assert_eq!(stored.over(Some(&instance)), Verdict::Deposed);
    }
}
