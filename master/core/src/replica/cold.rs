//! Both masters of a pair were started anew: neither is a copy that the record names, and what was committed is in what
//! their disks have kept.
//!
//! Whoever counted wrote everything down before it acknowledged it or let anything out. So a disk that has kept what
//! was written has all that was committed, and of the two logs, each of which is the beginning of the other or goes on
//! after it, the longer one has it too if either disk has. A killed process loses nothing that was written; a machine
//! that loses power loses what was not synced. If both have, what neither has is lost, and a new era declares it.
//!
//! One of the two alone can't know how much the other has. It waits.

use super::words::{Alarm, Cold, Output, Position};
use super::{Apply, Learning, Mutant, Purpose, Replica, Stage};

impl<S: Apply> Replica<S> {
    /// What this master knows of its log, if it counted by the present record until it was started anew or stepped
    /// back. Since then it has followed nobody: who decides takes no learner before the record is another one.
    pub(super) fn cold(&self) -> Option<Cold> {
        let rec = self.rec.filter(|_| !self.is_fenced())?;
        let peer = rec.peer?;
        let mine = if peer.side == self.me.side { peer } else { rec.holder };
        let is_kept = matches!(self.learning, Learning::Asking { spoiled: false, .. });
        if self.stage != Stage::Learner || !is_kept || mine.side != self.me.side || mine >= self.me
        {
            return None;
        }
        let since = self.whole_since;
        let whole = since.is_some_and(|since| since <= mine.incarnation);
        Some(Cold { rec, whole: whole || self.is(Mutant::PowerForgotten) })
    }

    /// Whether this master waits for the other one, which was started anew as it was, to compare their logs.
    pub fn is_cold(&self) -> bool {
        self.claim.is_none() && self.cold().is_some()
    }

    /// The other one counted too, and has its log up to `there`.
    pub(super) fn on_cold(&mut self, there: Position, theirs: &Cold) {
        let Some(mine) = self.cold().filter(|mine| mine.rec == theirs.rec) else { return };
        let here = self.log.last();
        let held = mine.rec.holder.side == self.me.side;
        let is_longer = (here.lsn, held) > (there.lsn, !held);
        if is_longer == self.is(Mutant::ShorterLogDecides) {
            return;
        }
        let common = self.log.at(there.lsn);
        if common.is_some_and(|common| common != there) {
            self.out.push(Output::Alarm(Alarm::Forked));
            return;
        }
        // That theirs is whole says something of this one only if theirs is known to be its beginning.
        let is_whole = mine.whole || (theirs.whole && common.is_some());
        // Two empty disks have nothing to decide by: somebody has to say that this is all there is.
        if is_whole || here.lsn > 0 {
            self.begin_again(is_whole);
        }
    }

    pub(super) fn begin_again(&mut self, is_whole: bool) {
        let is_silent = is_whole || self.is(Mutant::LossKeptSilent);
        let purpose = if is_silent { Purpose::Restart } else { Purpose::RestartWithLoss };
        self.claim(purpose, self.me, None);
    }
}
