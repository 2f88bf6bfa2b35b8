//! A master that follows: it copies the other's log, acknowledges what it has, and keeps silent while it takes over.

use super::chain::{Chain, link};
use super::words::{Alarm, Entry, Master, Message, Output, Position, Rec, Whose};
use super::{Apply, Mutant, Purpose, Replica, Stage};

/// How far a learner is.
#[derive(Clone, Debug)]
pub(super) enum Learning<P> {
    /// It asks to be taken.
    Asking {
        /// When it last asked.
        asked_ms: u64,
        /// Its state is known to be wrong: only a snapshot helps.
        spoiled: bool,
    },
    /// It receives a snapshot.
    Copying { start: Position, pieces: Vec<P> },
    /// It continues a log that is the active's.
    Following,
}

impl<P> Default for Learning<P> {
    fn default() -> Self {
        Self::Asking { asked_ms: 0, spoiled: false }
    }
}

impl<P> Learning<P> {
    pub(super) fn is_asking(&self) -> bool {
        matches!(self, Self::Asking { .. })
    }

    pub(super) fn is_copying(&self) -> bool {
        matches!(self, Self::Copying { .. })
    }
}

impl<S: Apply> Replica<S> {
    /// The record does not name this copy.
    pub(super) fn fall_behind(&mut self) {
        let is_heard = self.now_ms - self.heard_ms < self.settings.takeover_after_ms;
        match self.stage {
            // Only a read after the silence shows that it was not made the standby by an active that then fell silent.
            Stage::Learner if self.learning.is_asking() || is_heard => {}
            Stage::Recovering => self.learn(false, self.me.copy),
            Stage::Learner | Stage::Standby => self.learn(false, self.me.copy + 1),
            Stage::Active => {
                self.refuse_reads();
                self.active.outbox.clear();
                self.active.link = None;
                for (_, command) in self.active.queue.take().unwrap_or_default() {
                    self.out.push(Output::Refused(command, super::Refused::NotActive));
                }
                self.learn(false, self.me.copy + 1);
            }
        }
    }

    fn learn(&mut self, spoiled: bool, copy: u32) {
        self.me.copy = copy;
        self.stage = Stage::Learner;
        self.active.commit = 0;
        self.beat = None;
        self.heard_ms = self.now_ms;
        self.learning = Learning::Asking { asked_ms: 0, spoiled };
        self.learn_again();
    }

    pub(super) fn learn_again(&mut self) {
        let Learning::Asking { asked_ms, spoiled } = &mut self.learning else { return };
        if self.claim.is_some() || self.now_ms - *asked_ms < self.settings.beacon_ms {
            return;
        }
        *asked_ms = self.now_ms;
        let have = (!*spoiled).then(|| self.log.last());
        let cold = self.cold();
        self.send(None, Message::Join { have, version: S::VERSION, cold });
        if cold.is_some() && self.is(Mutant::ColdAlone) {
            self.begin_again(cold.is_some_and(|cold| cold.whole));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of the message")]
    pub(super) fn on_append(
        &mut self,
        from: Master,
        before: Position,
        entries: Vec<Entry<S::Command>>,
        beat: u64,
        commit: u64,
        rec: Rec,
        check: Option<(u64, u128)>,
    ) {
        if self.rec.is_none_or(|known| known.version < rec.version) {
            self.adopt(rec);
        }
        let is_following = match self.stage {
            Stage::Recovering | Stage::Active => false,
            Stage::Standby => true,
            Stage::Learner => match &self.learning {
                Learning::Asking { spoiled: true, .. } | Learning::Copying { .. } => false,
                Learning::Asking { .. } => {
                    self.log.at(before.lsn).is_some_and(|here| self.same(here, before))
                }
                Learning::Following => true,
            },
        };
        // Who tries to take over keeps silent: nothing may be committed by its word any more.
        let is_silent = self.claim.is_some() && !self.is(Mutant::AckWhileTakingOver);
        if !is_following || is_silent || self.rec.is_none_or(|known| known.holder != from) {
            return;
        }
        if self.stage == Stage::Learner {
            self.learning = Learning::Following;
        }
        self.heard_ms = self.now_ms;
        self.beat = match self.beat {
            Some((active, heard)) if active == from => Some((from, heard.max(beat))),
            Some(_) | None => Some((from, beat)),
        };
        let gap = before.lsn > self.log.last().lsn;
        let claimed = entries.last().map(Entry::position);
        if !gap && !self.copy_entries(before, entries) {
            return;
        }
        self.active.commit = self.active.commit.max(commit.min(self.log.last().lsn));
        if let Some((lsn, hash)) = check
            && self.checks.iter().any(|(at, mine)| *at == lsn && *mine != hash)
        {
            self.out.push(Output::Alarm(Alarm::Diverged(lsn)));
            self.learn(true, self.me.copy + 1);
            return;
        }
        if gap
            && self.is(Mutant::IgnoreGap)
            && let Some(upto) = claimed
        {
            self.send(Some(from), Message::Ack { upto, beat, gap: false, ready: true });
            return;
        }
        self.acknowledge(gap);
    }

    /// Appends those that are new. Gives false if the active's log is another one than that here.
    fn copy_entries(&mut self, before: Position, entries: Vec<Entry<S::Command>>) -> bool {
        let mut is_same = self.log.at(before.lsn).is_none_or(|here| self.same(here, before));
        let mut fresh = Vec::new();
        for entry in entries {
            let last = self.log.last();
            if entry.header.lsn <= last.lsn {
                let here = self.log.at(entry.header.lsn);
                is_same &= here.is_none_or(|here| self.same(here, entry.position()));
                continue;
            }
            let digest = S::digest(&entry.command);
            let chain = link(last.chain, &entry.header, entry.version, digest);
            is_same &= chain == entry.chain || self.is(Mutant::KeepDeposedLog);
            if !is_same || entry.header.lsn != last.lsn + 1 {
                break;
            }
            fresh.push(entry.clone());
            self.take(entry, &mut Vec::new());
        }
        if self.is(Mutant::AckBeforeWrite) {
            self.acknowledge(false);
        }
        if !fresh.is_empty() {
            self.out.push(Output::Write(fresh));
        }
        if !is_same {
            self.learn(false, self.me.copy + 1);
        }
        is_same
    }

    /// Tells the active what is here, if there is one that was heard.
    pub(super) fn acknowledge(&mut self, gap: bool) {
        let follows = match self.stage {
            Stage::Recovering | Stage::Active => false,
            Stage::Standby => true,
            Stage::Learner => matches!(self.learning, Learning::Following),
        };
        let is_silent = self.claim.is_some() && !self.is(Mutant::AckWhileTakingOver);
        let Some((active, beat)) = self.beat.filter(|_| follows && !is_silent) else { return };
        let (upto, ready) = (self.log.last(), self.disk.installing.is_none());
        self.send(Some(active), Message::Ack { upto, beat, gap, ready });
    }

    pub(super) fn on_slice(
        &mut self,
        from: Master,
        start: Position,
        index: usize,
        slice: Vec<S::Piece>,
    ) {
        if self.stage != Stage::Learner || self.claim.is_some() {
            return;
        }
        if self.learning.is_asking() && index == 0 {
            self.learning = Learning::Copying { start, pieces: Vec::new() };
            self.disk.ongoing = None;
            self.out.push(Output::CheckpointBegin { at: start, whose: Whose::Copied });
        }
        let Learning::Copying { start: mine, pieces } = &mut self.learning else { return };
        if *mine != start {
            return;
        }
        self.heard_ms = self.now_ms;
        if index == pieces.len() {
            if slice.is_empty() {
                self.install(from);
                return;
            }
            pieces.extend(slice.iter().cloned());
            self.out.push(Output::CheckpointPieces(slice));
        }
        let Learning::Copying { pieces, .. } = &self.learning else { return };
        let next = pieces.len();
        self.send(Some(from), Message::SliceAck { start, next });
    }

    /// The snapshot is complete: it takes the place of log and state.
    fn install(&mut self, from: Master) {
        let learning = std::mem::replace(&mut self.learning, Learning::Following);
        let Learning::Copying { start, pieces } = learning else { return };
        let Ok(state) = self.state.restore(pieces) else {
            self.out.push(Output::Alarm(Alarm::BadSnapshot));
            self.learn(true, self.me.copy + 1);
            return;
        };
        self.wall_ms = self.wall_ms.max(state.now_ms());
        self.state = state;
        self.log = Chain::starting_at(start);
        self.checks.clear();
        self.disk.synced = 0;
        self.disk.syncing = None;
        self.disk.installing = Some(start);
        self.out.push(Output::CheckpointEnd);
        self.beat = Some((from, 0));
        self.acknowledge(false);
    }

    /// The one that handed over says so until the new active is heard.
    pub(super) fn repeat_handover(&mut self) {
        let Some(rec) = self.rec else { return };
        if rec.nonce.by == self.me && self.beat.is_none() && !self.is_fenced() {
            self.send(Some(rec.holder), Message::Handover { rec });
        }
    }

    pub(super) fn go_alone(&mut self) {
        let Some(rec) = self.rec else { return };
        if rec.peer.is_some() {
            self.claim(Purpose::Solo, self.me, None);
        } else if self.claim.is_none() {
            self.active.link = None;
        }
    }
}
