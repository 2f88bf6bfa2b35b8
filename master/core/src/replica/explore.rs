//! What an exhaustive check needs of a master: a copy of it, and a number that is the same for what behaves the same.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use super::active::Active;
use super::following::Learning;
use super::{Apply, Disk, Replica};

impl<S: Apply + Clone> Clone for Replica<S>
where
    S::Frozen: Clone,
{
    fn clone(&self) -> Self {
        Self {
            settings: self.settings,
            me: self.me,
            state: self.state.clone(),
            log: self.log.clone(),
            now_ms: self.now_ms,
            wall_ms: self.wall_ms,
            rec: self.rec,
            shown: self.shown,
            seen: self.seen,
            stage: self.stage,
            active: self.active.clone(),
            learning: self.learning.clone(),
            claim: self.claim.clone(),
            claims: self.claims,
            intents: self.intents.clone(),
            whole_since: self.whole_since,
            disk: self.disk.clone(),
            heard_ms: self.heard_ms,
            asked_ms: self.asked_ms,
            beat: self.beat,
            checks: self.checks.clone(),
            role: self.role,
            out: Vec::new(),
            #[cfg(feature = "mutants")]
            mutant: self.mutant,
        }
    }
}

impl<S: Apply> Clone for Active<S>
where
    S::Frozen: Clone,
{
    fn clone(&self) -> Self {
        let Self { commit, announce, beaconed_ms, beat, echoed, barrier, .. } = *self;
        Self {
            link: self.link.clone(),
            commit,
            outbox: self.outbox.clone(),
            reads: self.reads.clone(),
            queue: self.queue.clone(),
            announce,
            beaconed_ms,
            beat,
            echoed,
            barrier,
        }
    }
}

impl<S: Apply> Replica<S> {
    /// Feeds `hasher` with all that later outputs depend on, besides the settings. What the chain of the log decides
    /// (state, entries, effects, pieces of a snapshot) is told by the chain.
    ///
    /// Of a moment only counts how many of the time-outs have passed since. So two masters with one fingerprint behave
    /// the same only if time passes in steps that make each time-out run out at once or not at all.
    pub fn fingerprint(&self, hasher: &mut impl Hasher) {
        let Self { me, seen, stage, rec, shown, claims, intents, beat, wall_ms, .. } = self;
        (me, seen, *stage as u8, rec, shown, claims, intents, beat, wall_ms).hash(hasher);
        self.whole_since.hash(hasher);
        (self.log.base(), self.log.last()).hash(hasher);
        self.past(hasher, self.heard_ms);
        self.past(hasher, self.asked_ms);
        self.active.fingerprint(self, hasher);
        self.disk.fingerprint(self, hasher);
        match &self.learning {
            Learning::Asking { asked_ms, spoiled } => {
                (0_u8, spoiled).hash(hasher);
                self.past(hasher, *asked_ms);
            }
            Learning::Copying { start, pieces } => (1_u8, start, pieces.len()).hash(hasher),
            Learning::Following => 2_u8.hash(hasher),
        }
        self.claim.is_some().hash(hasher);
        if let Some(claim) = &self.claim {
            (claim.purpose as u8, claim.rec, claim.expect, claim.is_sent).hash(hasher);
        }
        self.checks.len().hash(hasher);
        self.checks.iter().for_each(|check| check.hash(hasher));
    }

    /// Which time-outs have passed since a moment.
    fn past(&self, hasher: &mut impl Hasher, moment_ms: u64) {
        let passed = self.now_ms - moment_ms;
        let settings = &self.settings;
        [
            settings.beacon_ms,
            settings.sync_ms,
            settings.witness_ms,
            settings.solo_after_ms,
            settings.takeover_after_ms,
        ]
        .map(|limit| passed >= limit)
        .hash(hasher);
    }
}

impl<S: Apply> Active<S> {
    fn fingerprint(&self, of: &Replica<S>, hasher: &mut impl Hasher) {
        let Self { link, commit, outbox, reads, queue, announce, beat, echoed, barrier, .. } = self;
        (commit, announce, beat, echoed, barrier, link.is_some()).hash(hasher);
        if let Some(link) = link {
            link.fingerprint(hasher);
        }
        (outbox.len(), reads.len()).hash(hasher);
        outbox.iter().for_each(|(lsn, _)| lsn.hash(hasher));
        reads.iter().for_each(|read| read.fingerprint(hasher));
        queue.as_ref().map(VecDeque::len).hash(hasher);
        for (seed, command) in queue.iter().flatten() {
            (seed, S::digest(command)).hash(hasher);
        }
        of.past(hasher, self.beaconed_ms);
    }
}

impl<F> Disk<F> {
    fn fingerprint<S: Apply>(&self, of: &Replica<S>, hasher: &mut impl Hasher) {
        let Self { synced, syncing, synced_ms, installing, checkpoint, ongoing } = self;
        (synced, syncing, installing, checkpoint).hash(hasher);
        of.past(hasher, *synced_ms);
        ongoing.is_some().hash(hasher);
        if let Some((at, frozen, read)) = ongoing {
            (at, frozen.is_some(), read).hash(hasher);
        }
    }
}
