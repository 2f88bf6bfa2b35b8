//! Which of the masters a server follows. It has a link to each, and obeys the one that said in the largest epoch that
//! it decides.

use std::collections::BTreeMap;

use crate::Epoch;
use crate::wire::master_game::MasterToGame;
use crate::wire::session_master::MasterToSession;

/// Which of the masters' addresses a link is to, from 0. There is one link to each at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MasterLink(pub usize);

/// What a master said, as far as it tells whom to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// A [`crate::wire::session_master::NewEpoch`], and the streams that it names.
    NewEpoch(Option<u64>),
    /// A [`crate::wire::session_master::Welcome`], and the streams that it names.
    Welcome(u64),
    /// Anything else.
    Other,
}

impl From<&MasterToSession> for Word {
    fn from(message: &MasterToSession) -> Self {
        match message {
            MasterToSession::NewEpoch(new) => Self::NewEpoch(new.streams),
            MasterToSession::Welcome(welcome) => Self::Welcome(welcome.streams),
            MasterToSession::Bound(_)
            | MasterToSession::BindRefused(_)
            | MasterToSession::Answer(_)
            | MasterToSession::EndSession(_)
            | MasterToSession::SessionServers(_)
            | MasterToSession::Received(_)
            | MasterToSession::Changed(_)
            | MasterToSession::Moved(_)
            | MasterToSession::SeatLost(_)
            | MasterToSession::Unknown(_) => Self::Other,
        }
    }
}

impl From<&MasterToGame> for Word {
    fn from(message: &MasterToGame) -> Self {
        match message {
            MasterToGame::NewEpoch(new) => Self::NewEpoch(new.streams),
            MasterToGame::Welcome(welcome) => Self::Welcome(welcome.streams),
            MasterToGame::Create(_)
            | MasterToGame::FreeSeat(_)
            | MasterToGame::Destroy(_)
            | MasterToGame::Received(_)
            | MasterToGame::Renewed(_)
            | MasterToGame::Measure(_)
            | MasterToGame::Traced(_)
            | MasterToGame::Unknown(_) => Self::Other,
        }
    }
}

/// What to do with what a master said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It decides from here on, and does not know this server: answer with the report.
    Report,
    /// It decides from here on, and knows the streams of this server: answer that it goes on.
    Resume,
    /// The link is in use: say again what is unanswered and unacknowledged.
    Welcome(Streams),
    /// Handle it.
    Take,
    /// It is from a master that is not followed, or that has not said welcome yet.
    Drop,
    /// Its epoch is over, and that master does not know it yet: tell it.
    Fence,
    /// Its epoch is over, and it was told so.
    Deposed,
}

/// What becomes of the streams to and from the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// They go on where they were.
    GoOn,
    /// There were none before.
    First,
    /// The masters have lost what there was: both begin at 1.
    Anew,
}

/// Which master a server follows, and in which epoch.
///
/// What is said upward goes over [`Follow::link`], and only while [`Follow::is_welcomed`].
#[derive(Debug, Default)]
pub struct Follow {
    /// The largest that was seen: who says less does not decide any more.
    epoch: Epoch,
    link: Option<MasterLink>,
    welcomed: bool,
    /// Era and number of the streams that there are.
    streams: Option<(u32, u64)>,
    /// Who was told that its epoch is over, and which one is instead.
    fenced: BTreeMap<MasterLink, Epoch>,
    /// Who was the last to say that it decides, and in which epoch, also when the link to it is gone.
    decided: Option<(MasterLink, Epoch)>,
    rivals: u64,
}

impl Follow {
    /// The largest epoch that was seen: what is said to masters is stamped with it.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }
    /// The master that was the last to say that it decides, while there is a link to it.
    pub const fn link(&self) -> Option<MasterLink> {
        self.link
    }
    /// Whether that master has said welcome, so that it may be told things.
    pub const fn is_welcomed(&self) -> bool {
        self.welcomed
    }
    /// How often a master said that it decides in an epoch in which another one had said so. An epoch has one master:
    /// this is 0 unless the masters were deceived, and then something may have been accepted that was not to be.
    pub const fn rivals(&self) -> u64 {
        self.rivals
    }
    /// A link is gone. If it was the one to the master that is followed, nobody is told anything until another one says
    /// that it decides.
    pub fn lost(&mut self, link: MasterLink) {
        self.fenced.remove(&link);
        if self.link == Some(link) {
            (self.link, self.welcomed) = (None, false);
        }
    }
    /// A master said something with this epoch in its stamp.
    pub fn hear(&mut self, link: MasterLink, epoch: Epoch, word: Word) -> Verdict {
        if epoch < self.epoch {
            let told = self.fenced.insert(link, self.epoch);
            return if told == Some(self.epoch) { Verdict::Deposed } else { Verdict::Fence };
        }
        self.epoch = epoch;
        match word {
            Word::NewEpoch(streams) => {
                let before = self.decided.replace((link, epoch));
                if before.is_some_and(|(other, of)| other != link && of == epoch) {
                    self.rivals += 1;
                }
                self.link = Some(link);
                self.welcomed = false;
                let known = self.streams.is_some()
                    && self.streams == streams.map(|streams| (epoch.era, streams));
                if known { Verdict::Resume } else { Verdict::Report }
            }
            Word::Welcome(_) | Word::Other if self.link != Some(link) => Verdict::Drop,
            Word::Welcome(_) if self.welcomed => Verdict::Drop,
            Word::Welcome(streams) => {
                self.welcomed = true;
                let streams = (epoch.era, streams);
                let before = self.streams.replace(streams);
                Verdict::Welcome(match before {
                    None => Streams::First,
                    Some(before) if before == streams => Streams::GoOn,
                    Some(_) => Streams::Anew,
                })
            }
            Word::Other if self.welcomed => Verdict::Take,
            Word::Other => Verdict::Drop,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: MasterLink = MasterLink(0);
    const B: MasterLink = MasterLink(1);

    fn epoch(epoch: u32) -> Epoch {
        Epoch { era: 1, epoch }
    }

    /// Who follows A, in epoch 1 and with streams 7.
    fn of_a() -> Follow {
        let mut follow = Follow::default();
        assert_eq!(follow.hear(A, epoch(1), Word::NewEpoch(Some(7))), Verdict::Report);
        assert_eq!(follow.hear(A, epoch(1), Word::Welcome(7)), Verdict::Welcome(Streams::First));
        follow
    }

    #[test]
    fn nobody_is_obeyed_before_saying_that_it_decides_and_being_answered() {
        let mut follow = Follow::default();
        for word in [Word::Other, Word::Welcome(7)] {
            assert_eq!(follow.hear(A, epoch(1), word), Verdict::Drop);
        }
        assert_eq!(follow.hear(A, epoch(1), Word::NewEpoch(None)), Verdict::Report);
        assert_eq!(follow.hear(A, epoch(1), Word::Other), Verdict::Drop);
        assert!(!follow.is_welcomed());
        follow.hear(A, epoch(1), Word::Welcome(7));
        assert_eq!(follow.hear(A, epoch(1), Word::Other), Verdict::Take);
        assert_eq!(follow.hear(A, epoch(1), Word::Welcome(8)), Verdict::Drop, "nobody was asked");
        assert_eq!(follow.hear(A, epoch(1), Word::NewEpoch(Some(7))), Verdict::Resume);
    }

    #[test]
    fn streams_go_on_by_their_number_in_their_era_and_otherwise_begin_anew() {
        let mut follow = of_a();
        follow.lost(A);
        assert_eq!(follow.hear(B, epoch(2), Word::NewEpoch(Some(7))), Verdict::Resume);
        assert_eq!(follow.hear(B, epoch(2), Word::Welcome(7)), Verdict::Welcome(Streams::GoOn));
        assert_eq!(follow.hear(A, epoch(3), Word::NewEpoch(Some(8))), Verdict::Report);
        assert_eq!(follow.hear(A, epoch(3), Word::Welcome(7)), Verdict::Welcome(Streams::GoOn));
        assert_eq!(follow.hear(A, epoch(3), Word::NewEpoch(None)), Verdict::Report);
        assert_eq!(follow.hear(A, epoch(3), Word::Welcome(9)), Verdict::Welcome(Streams::Anew));
        let later = Epoch { era: 2, epoch: 4 };
        assert_eq!(follow.hear(B, later, Word::NewEpoch(Some(9))), Verdict::Report);
        assert_eq!(follow.hear(B, later, Word::Welcome(9)), Verdict::Welcome(Streams::Anew));
    }

    /// An active changes its own epoch when it loses its standby.
    #[test]
    fn a_master_that_is_followed_may_go_on_in_a_larger_epoch() {
        let mut follow = of_a();
        assert_eq!(follow.hear(A, epoch(2), Word::Other), Verdict::Take);
        assert_eq!(follow.hear(A, epoch(1), Word::Other), Verdict::Fence);
        assert_eq!((follow.link(), follow.epoch()), (Some(A), epoch(2)));
    }

    #[test]
    fn two_masters_in_one_epoch_are_counted_also_when_the_first_is_gone() {
        let mut follow = of_a();
        follow.hear(A, epoch(1), Word::NewEpoch(Some(7)));
        follow.lost(A);
        follow.hear(A, epoch(1), Word::NewEpoch(Some(7)));
        assert_eq!(follow.rivals(), 0, "the same master may say it again");
        follow.lost(A);
        follow.hear(B, epoch(1), Word::NewEpoch(Some(7)));
        assert_eq!(follow.rivals(), 1);
        follow.hear(A, epoch(2), Word::NewEpoch(Some(7)));
        assert_eq!(follow.rivals(), 1, "another epoch may be another master's");
    }

    proptest! {
        /// Whatever is said in whatever order: the epoch never falls, what is taken comes from the master that was the
        /// last to say that it decides, and nothing is remembered of links that are gone.
        #[test]
        fn one_master_is_obeyed_at_a_time(
            said in proptest::collection::vec((0usize..3, 0u32..4, 0u32..5, 0u64..3), 0..200),
        ) {
            let mut follow = Follow::default();
            let (mut decides, mut largest) = (None, Epoch::default());
            for (link, number, kind, streams) in said {
                let (link, epoch) = (MasterLink(link), epoch(number));
                let word = match kind {
                    0 => Word::NewEpoch(Some(streams)),
                    1 => Word::Welcome(streams),
                    2 | 3 => Word::Other,
                    _ => {
                        follow.lost(link);
                        decides = decides.filter(|decides| *decides != link);
                        continue;
                    }
                };
                let verdict = follow.hear(link, epoch, word);
                let is_over = epoch < largest;
                largest = largest.max(epoch);
                prop_assert_eq!(is_over, matches!(verdict, Verdict::Fence | Verdict::Deposed));
                if matches!(word, Word::NewEpoch(_)) && !is_over {
                    decides = Some(link);
                }
                prop_assert_eq!((follow.link(), follow.epoch()), (decides, largest));
                if matches!(verdict, Verdict::Take | Verdict::Welcome(_)) {
                    prop_assert_eq!((decides, follow.is_welcomed()), (Some(link), true));
                }
            }
            for link in 0..3 {
                follow.lost(MasterLink(link));
            }
            prop_assert!(follow.fenced.is_empty() && follow.link().is_none());
        }
    }
}
