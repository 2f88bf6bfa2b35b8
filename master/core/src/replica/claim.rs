//! Attempts to change the record of the witness: who may try what, and what becomes of an attempt.

use greenroom_protocol::Epoch;

use super::words::{Alarm, ClaimAnswer, Intent, Intents, Master, Message, Nonce, Output, Rec};
use super::{Apply, Mutant, Replica, Stage};

/// What an attempt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The first record of all.
    Found,
    /// A holder that had no standby was restarted.
    Reclaim,
    /// The standby becomes the active.
    Takeover,
    /// The active goes on without its standby.
    Solo,
    /// Both masters were started anew: the one with the longer log decides.
    Restart,
    /// The same, and what neither disk has is lost.
    RestartWithLoss,
    /// The learner becomes the standby.
    Add,
    /// The active makes its standby the active.
    Handover,
    /// An operator makes this copy the active, whatever it lacks.
    Force,
}

/// An attempt whose fate is not known yet.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) purpose: Purpose,
    pub(super) rec: Rec,
    pub(super) expect: u64,
    /// The witness has been asked; before that, the intent is on its way to the disk.
    pub(super) is_sent: bool,
}

impl<S: Apply> Replica<S> {
    /// Begins an attempt, unless there is one. Who will be alone afterwards first makes its log durable.
    pub(super) fn claim(&mut self, purpose: Purpose, holder: Master, peer: Option<Master>) {
        if self.claim.is_some() {
            return;
        }
        let (expect, before) =
            self.rec.map_or((0, Epoch { era: self.settings.founding_era, epoch: 0 }), |rec| {
                (rec.version, rec.at)
            });
        let is_raised = !(self.is(Mutant::EpochNotRaised) && purpose == Purpose::Takeover);
        let (expect, at) = match purpose {
            Purpose::Force => {
                let Epoch { era, epoch } = self.seen.max(before);
                (self.shown, Epoch { era: era + 1, epoch: epoch + 1 })
            }
            Purpose::RestartWithLoss => {
                (expect, Epoch { era: before.era + 1, epoch: before.epoch + 1 })
            }
            Purpose::Found
            | Purpose::Reclaim
            | Purpose::Takeover
            | Purpose::Solo
            | Purpose::Restart
            | Purpose::Add
            | Purpose::Handover => {
                let epoch = before.epoch + u32::from(is_raised);
                (expect, Epoch { epoch, ..before })
            }
        };
        self.claims += 1;
        let nonce = Nonce { by: self.me, number: self.claims };
        let rec = Rec { version: expect + 1, at, holder, peer, nonce };
        let needs_intent = peer.is_none()
            && !(self.is(Mutant::TakeOverWithoutIntent) && purpose == Purpose::Takeover);
        self.claim = Some(Claim { purpose, rec, expect, is_sent: false });
        if self.is(Mutant::OneIntent) {
            self.intents = Intents::default();
        }
        if self.is(Mutant::IntentsForgotten) {
            self.intents.pending.clear();
        }
        if needs_intent {
            self.intents.push(Intent { at, by: holder, upto: self.log.last() });
            self.out.push(Output::WriteIntents(self.intents.clone()));
        } else {
            self.ask_for_claim();
        }
    }

    fn ask_for_claim(&mut self) {
        if let Some(claim) = &mut self.claim {
            claim.is_sent = true;
            self.asked_ms = self.now_ms;
            self.out.push(Output::Claim { expect: claim.expect, rec: claim.rec });
        }
    }

    pub(super) fn ask_witness(&mut self) {
        self.asked_ms = self.now_ms;
        self.out.push(Output::ReadRecord);
    }

    pub(super) fn on_intents_durable(&mut self, intents: &Intents) {
        let Some(intent) = intents.pending.last() else { return };
        let is_due = self.claim.as_ref().is_some_and(|claim| {
            !claim.is_sent
                && claim.rec.at == intent.at
                && self.intents.pending.last() == Some(intent)
        });
        if is_due {
            self.disk.synced = self.disk.synced.max(intent.upto.lsn);
            self.ask_for_claim();
        }
    }

    pub(super) fn on_claimed(&mut self, nonce: Nonce, answer: ClaimAnswer) {
        let Some(claim) = self.claim.as_ref().filter(|claim| claim.rec.nonce == nonce) else {
            // It was settled by a read. A later record is news all the same.
            if let ClaimAnswer::Lost(Some(rec)) = answer {
                self.settle(Some(rec));
            }
            return;
        };
        match answer {
            ClaimAnswer::Won => {
                let rec = claim.rec;
                self.settle(Some(rec));
            }
            ClaimAnswer::Lost(rec) => {
                // The version that it was to replace had been there: it was seen.
                if rec.map_or(0, |rec| rec.version) < claim.expect {
                    self.out.push(Output::Alarm(Alarm::WitnessBehind));
                }
                self.settle(rec);
            }
            ClaimAnswer::Unknown if self.is(Mutant::ForgetClaim) => self.claim = None,
            ClaimAnswer::Unknown => self.ask_witness(),
        }
    }

    pub(super) fn on_record(&mut self, rec: Option<Rec>) {
        self.settle(rec);
        // Still the one that was there before: the attempt never arrived, or is on its way. The version keeps it from
        // counting twice.
        let version = rec.map_or(0, |rec| rec.version);
        if self.claim.as_ref().is_some_and(|claim| claim.is_sent && claim.expect == version) {
            self.ask_for_claim();
        }
    }

    /// The witness has shown this record.
    fn settle(&mut self, rec: Option<Rec>) {
        self.shown = rec.map_or(0, |rec| rec.version);
        let Some(now) = rec else {
            if self.stage == Stage::Recovering && self.claim.is_none() {
                // An attempt that is not known to have succeeded proves no record.
                if self.log.last().lsn == 0 && self.intents.proven.is_none() {
                    self.claim(Purpose::Found, self.me, None);
                } else {
                    self.out.push(Output::Alarm(Alarm::WitnessBehind));
                }
            }
            return;
        };
        match &self.claim {
            Some(claim) if claim.rec.nonce == now.nonce => self.won(),
            Some(claim) if now.version > claim.expect => {
                if self.is(Mutant::RetryOnConflict) {
                    self.try_on_top(now);
                    return;
                }
                self.claim = None;
                self.adopt(now);
            }
            // The record before the attempt, or an old answer.
            Some(_) => {}
            None => self.adopt(now),
        }
    }

    /// A planted bug.
    fn try_on_top(&mut self, now: Rec) {
        if let Some(claim) = &mut self.claim {
            claim.expect = now.version;
            claim.rec.version = now.version + 1;
            claim.rec.at.epoch = now.at.epoch + 1;
        }
        self.ask_for_claim();
    }

    /// A planted bug.
    pub(super) fn hand_over_by_word(&mut self, to: Master) {
        let Some(rec) = self.rec else { return };
        let at = Epoch { epoch: rec.at.epoch + 1, ..rec.at };
        let (version, peer) = (rec.version + 1, Some(self.me));
        let rec = Rec { version, at, holder: to, peer, ..rec };
        self.claim =
            Some(Claim { purpose: Purpose::Handover, rec, expect: version, is_sent: true });
        self.won();
    }

    fn won(&mut self) {
        let Some(claim) = self.claim.take() else { return };
        self.intents.settle(&claim.rec);
        self.rec = Some(claim.rec);
        self.seen = self.seen.max(claim.rec.at);
        match claim.purpose {
            Purpose::Found | Purpose::Reclaim | Purpose::Takeover => self.become_active(),
            Purpose::Force | Purpose::Restart => {
                self.learning = super::Learning::default();
                self.become_active();
            }
            Purpose::RestartWithLoss => {
                self.out.push(Output::Alarm(Alarm::LossDeclared));
                self.learning = super::Learning::default();
                self.become_active();
            }
            Purpose::Solo => {
                self.active.link = None;
                self.active.announce = Some(0);
                self.stop_draining();
            }
            Purpose::Add => self.active.announce = Some(0),
            Purpose::Handover => {
                self.stage = Stage::Standby;
                self.heard_ms = self.now_ms;
                self.beat = None;
                let to = claim.rec.holder;
                self.send(Some(to), Message::Handover { rec: claim.rec });
                let queue = self.active.queue.take().unwrap_or_default();
                self.refuse_reads();
                self.active.outbox.clear();
                self.active.link = None;
                self.send(Some(to), Message::Forward { commands: queue.into() });
            }
        }
    }

    /// Believes a record that is newer than the one known here, and takes the role that it gives.
    ///
    /// That nobody is promoted by reading holds because a record that names this very copy as its holder was written
    /// by it, or by an active that made sure before that this copy has everything.
    pub(super) fn adopt(&mut self, rec: Rec) {
        if self.claim.is_some() {
            // Whatever it says, the witness says it too, and what becomes of the attempt has to be known first.
            return;
        }
        if self.rec.is_some_and(|known| rec.version == known.version && rec.nonce != known.nonce) {
            // Two records of one version: the witness went back in time, and somebody built on what it had.
            self.out.push(Output::Alarm(Alarm::WitnessBehind));
            return;
        }
        if rec.at < self.seen || self.rec.is_some_and(|known| rec.version < known.version) {
            // An old answer. A record below what this disk has seen is a witness that went back in time.
            if self.stage == Stage::Recovering && self.rec.is_none() {
                self.out.push(Output::Alarm(Alarm::WitnessBehind));
            }
            return;
        }
        self.rec = Some(rec);
        self.intents.settle(&rec);
        self.seen = self.seen.max(rec.at);
        let is_peer = rec.peer.is_some_and(|peer| self.is_it(self.me, peer));
        if rec.holder == self.me {
            if self.stage != Stage::Active {
                self.become_active();
            }
        } else if is_peer && self.stage != Stage::Active {
            if self.stage != Stage::Standby {
                self.stage = Stage::Standby;
                self.heard_ms = self.now_ms;
            }
        } else if self.can_reclaim(rec) {
            self.claim(Purpose::Reclaim, self.me, None);
        } else {
            self.fall_behind();
        }
    }

    /// Whether the log here is that of the holder, who had no standby: the disk has what it committed.
    fn can_reclaim(&self, rec: Rec) -> bool {
        let is_learning = self.stage == Stage::Recovering
            || (self.stage == Stage::Learner && self.learning.is_asking());
        if rec.holder.side != self.me.side || !is_learning {
            return false;
        }
        if self.is(Mutant::ReclaimFromPair) {
            return true;
        }
        let has_intent = self.intents.proven.is_some_and(|intent| {
            let Intent { at, by, upto } = intent;
            let is_here = self.log.base().lsn >= upto.lsn || self.log.at(upto.lsn) == Some(upto);
            by == rec.holder && at == rec.at && is_here
        });
        rec.peer.is_none() && (has_intent || self.is(Mutant::ReclaimWithoutIntent))
    }

    pub(super) fn on_promote(&mut self, accept_loss: bool) {
        match self.stage {
            Stage::Active => {}
            Stage::Standby => self.take_over(),
            Stage::Recovering | Stage::Learner if accept_loss => {
                self.claim(Purpose::Force, self.me, None);
            }
            Stage::Recovering | Stage::Learner => {}
        }
    }

    pub(super) fn take_over(&mut self) {
        if self.is(Mutant::PromoteWithoutWitness)
            && let Some(rec) = &mut self.rec
        {
            rec.version += 1;
            rec.at.epoch += 1;
            rec.holder = self.me;
            rec.peer = None;
            self.seen = rec.at;
            self.become_active();
            return;
        }
        self.claim(Purpose::Takeover, self.me, None);
    }
}
