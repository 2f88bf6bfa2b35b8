//! A master that decides: it appends, sends, commits what every recorded copy has, and only then lets effects out.

use std::collections::VecDeque;
use std::sync::Arc;

use super::chain::link;
use super::words::{Alarm, Entry, Master, Message, Output, Position, Refused};
use super::{Apply, Mutant, Purpose, Replica, Stage};
use crate::command::Header;

/// What only an active has.
#[derive(Debug)]
pub(super) struct Active<S: Apply> {
    /// The other master, as far as it follows.
    pub(super) link: Option<Link<S::Frozen, S::Piece>>,
    /// Number of the last committed entry. A standby keeps what it heard of it.
    pub(super) commit: u64,
    /// Effects of what is not committed.
    pub(super) outbox: VecDeque<(u64, Vec<S::Effect>)>,
    /// Reads that may not be answered yet.
    pub(super) reads: VecDeque<Read>,
    /// Commands that wait for the standby to become the active; nothing if it is not to.
    pub(super) queue: Option<VecDeque<(u64, S::Command)>>,
    /// The epoch is told once this entry is committed.
    pub(super) announce: Option<u64>,
    /// When entries, slices or a beacon were last repeated.
    pub(super) beaconed_ms: u64,
    /// Number of the last message that asks for an acknowledgement; grows for as long as the process lives.
    pub(super) beat: u64,
    /// The largest beat that came back.
    pub(super) echoed: u64,
    /// The beat that was sent for reads. They share it, and those that come later share the next.
    pub(super) barrier: u64,
}

impl<S: Apply> Default for Active<S> {
    fn default() -> Self {
        Self {
            link: None,
            commit: 0,
            outbox: VecDeque::new(),
            reads: VecDeque::new(),
            queue: None,
            announce: None,
            beaconed_ms: 0,
            beat: 0,
            echoed: 0,
            barrier: 0,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    read: u64,
    /// The last entry that it has seen.
    lsn: u64,
    /// The first beat that was sent after it.
    beat: u64,
}

#[cfg(feature = "explore")]
impl Read {
    /// For [`Replica::fingerprint`].
    pub(super) fn fingerprint(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        let Self { read, lsn, beat } = self;
        (read, lsn, beat).hash(hasher);
    }
}

/// The other master.
#[derive(Clone, Debug)]
pub(super) struct Link<F, P> {
    pub(super) member: Master,
    /// Number of the last entry that it has acknowledged; nothing before it said anything.
    acked: Option<u64>,
    /// Number of the last entry that was sent to it.
    sent: u64,
    /// The beat at which sending began again: what is missing among earlier ones is on its way already.
    rewound: u64,
    /// Its log's beginning is on its disk.
    is_ready: bool,
    /// The snapshot that it is given first.
    copy: Option<Copying<F, P>>,
}

#[cfg(feature = "explore")]
impl<F, P> Link<F, P> {
    /// For [`Replica::fingerprint`].
    pub(super) fn fingerprint(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        let Self { member, acked, sent, rewound, is_ready, copy } = self;
        (member, acked, sent, rewound, is_ready, copy.is_some()).hash(hasher);
        if let Some(Copying { start, frozen, slices, acked, sent, read, is_ended }) = copy {
            (start, frozen.is_some(), slices.len(), acked, sent, read, is_ended).hash(hasher);
        }
    }
}

/// A snapshot on its way. Pieces are counted from 0.
#[derive(Clone, Debug)]
struct Copying<F, P> {
    start: Position,
    /// Nothing once all of it is read.
    frozen: Option<F>,
    /// Slices that are not acknowledged, each with the number of its first piece: what is sent again is the same.
    slices: VecDeque<(usize, Vec<P>)>,
    /// How many pieces were acknowledged, sent since the last repetition, and read.
    acked: usize,
    sent: usize,
    read: usize,
    /// The end was sent.
    is_ended: bool,
}

impl<F, P> Link<F, P> {
    pub(super) fn acked(&self) -> u64 {
        self.acked.unwrap_or_default()
    }
}

impl<F, P: Clone> Copying<F, P> {
    /// Reads no further than the window, which slices of about `max` pieces fill; gives the next slice to send, which
    /// is empty at the end, with the number of its first piece.
    fn next<S: Apply<Frozen = F, Piece = P>>(
        &mut self,
        state: &mut S,
        max: usize,
        slices_max: usize,
    ) -> Option<(usize, Vec<P>)> {
        if self.is_ended || self.sent >= self.acked + max * slices_max {
            return None;
        }
        let index = self.sent;
        if let Some((_, pieces)) = self.slices.iter().find(|(first, _)| *first == index) {
            self.sent += pieces.len();
            return Some((index, pieces.clone()));
        }
        let pieces = match &mut self.frozen {
            Some(frozen) => state.next_pieces(frozen, max),
            None => Vec::new(),
        };
        if pieces.is_empty() {
            self.frozen = None;
            self.is_ended = true;
        } else {
            self.slices.push_back((index, pieces.clone()));
            self.read += pieces.len();
            self.sent = self.read;
        }
        Some((index, pieces))
    }

    /// The other master has so many pieces.
    fn acknowledged(&mut self, next: usize) {
        self.acked = self.acked.max(next.min(self.read));
        let acked = self.acked;
        while self.slices.pop_front_if(|(first, pieces)| *first + pieces.len() <= acked).is_some() {
        }
        self.sent = self.sent.max(acked);
    }

    /// What was not acknowledged is sent again.
    fn repeat(&mut self) {
        self.sent = self.slices.front().map_or(self.read, |(first, _)| *first);
        self.is_ended = false;
    }
}

impl<S: Apply> Replica<S> {
    pub(super) fn become_active(&mut self) {
        self.stage = Stage::Active;
        self.heard_ms = self.now_ms;
        let last = self.log.last().lsn;
        let link = self.rec.and_then(|rec| rec.peer).map(|member| Link {
            member,
            acked: None,
            sent: last,
            rewound: 0,
            is_ready: true,
            copy: None,
        });
        // What a standby heard of the commit stays true: without it, what was forwarded to it would seem too much.
        let Active { commit, beat, echoed, barrier, .. } = self.active;
        let announce = Some(last);
        self.active = Active { link, commit, announce, beat, echoed, barrier, ..Active::default() };
    }

    pub(super) fn on_commands(&mut self, wall_ms: u64, commands: Vec<(u64, S::Command)>) {
        let mut fresh = Vec::new();
        for (seed, command) in commands {
            let refused = if self.stage != Stage::Active {
                Some(Refused::NotActive)
            } else if self.is_fenced() {
                Some(Refused::Unavailable)
            } else if let Some(queue) = &mut self.active.queue {
                if queue.len() < self.settings.queue_max {
                    queue.push_back((seed, command));
                    continue;
                }
                Some(Refused::Busy)
            } else {
                let uncommitted = self.log.last().lsn - self.active.commit;
                let is_full = uncommitted >= self.settings.uncommitted_max;
                (is_full && !self.is(Mutant::NoBackpressure)).then_some(Refused::Busy)
            };
            if let Some(refused) = refused {
                self.out.push(Output::Refused(command, refused));
            } else {
                fresh.push(self.append(wall_ms, seed, command));
            }
        }
        if !fresh.is_empty() {
            self.out.push(Output::Write(fresh));
        }
    }

    fn append(&mut self, wall_ms: u64, seed: u64, command: S::Command) -> Entry<S::Command> {
        let last = self.log.last();
        let epoch = self.rec.map(|rec| rec.at).unwrap_or_default();
        let now_ms =
            if self.is(Mutant::TimeRunsBack) { wall_ms } else { self.wall_ms.max(wall_ms) };
        let header = Header { lsn: last.lsn + 1, epoch, now_ms, seed };
        let chain = link(last.chain, &header, S::VERSION, S::digest(&command));
        let entry = Entry { header, version: S::VERSION, chain, command: Arc::new(command) };
        let mut effects = Vec::new();
        self.take(entry.clone(), &mut effects);
        if self.is(Mutant::EffectsAtOnce) {
            self.out.push(Output::Release { lsn: header.lsn, effects });
        } else if !effects.is_empty() {
            self.active.outbox.push_back((header.lsn, effects));
        }
        entry
    }

    pub(super) fn on_read(&mut self, read: u64) {
        let refused = if self.stage != Stage::Active {
            Some(Refused::NotActive)
        } else if self.is_fenced() || self.active.queue.is_some() {
            Some(Refused::Unavailable)
        } else {
            (self.active.reads.len() >= self.settings.reads_max).then_some(Refused::Busy)
        };
        match refused {
            Some(refused) => self.out.push(Output::ReadRefused(read, refused)),
            None => {
                let next = u64::from(!self.is(Mutant::ReadSharesOldBeat));
                let (lsn, beat) = (self.log.last().lsn, self.active.beat + next);
                self.active.reads.push_back(Read { read, lsn, beat });
            }
        }
    }

    pub(super) fn refuse_reads(&mut self) {
        for Read { read, .. } in self.active.reads.drain(..) {
            self.out.push(Output::ReadRefused(read, Refused::NotActive));
        }
    }

    pub(super) fn on_switchover(&mut self) {
        let is_paired = self.rec.is_some_and(|rec| rec.peer.is_some());
        if self.stage == Stage::Active && is_paired && self.claim.is_none() && !self.is_fenced() {
            self.active.queue.get_or_insert_default();
        }
    }

    /// The switchover is off: what waited is appended here.
    pub(super) fn stop_draining(&mut self) {
        if let Some(queue) = self.active.queue.take() {
            self.on_commands(self.wall_ms, queue.into());
        }
    }

    /// Whatever has become possible: what must be durable is synced, what is committed goes out, and the other master
    /// gets what it lacks.
    pub(super) fn advance(&mut self) {
        let Some(rec) = self.rec else { return };
        let is_alone = rec.peer.is_none() && self.claim.is_none();
        if rec.peer.is_none() || self.claim.is_some() {
            self.sync();
        }
        if self.is_fenced() {
            return;
        }
        self.active.commit = self.active.commit.max(self.committed());
        let commit = self.active.commit;
        while let Some((lsn, effects)) = self.active.outbox.pop_front_if(|(lsn, _)| *lsn <= commit)
        {
            self.out.push(Output::Release { lsn, effects });
        }
        if self.active.announce.is_some_and(|lsn| commit >= lsn) {
            self.active.announce = None;
            self.out.push(Output::NewEpoch(rec.at));
        }
        let needs_no_barrier = is_alone || self.is(Mutant::ReadWithoutBarrier);
        let echoed = self.active.echoed;
        while let Some(read) = self
            .active
            .reads
            .pop_front_if(|read| read.lsn <= commit && (needs_no_barrier || read.beat <= echoed))
        {
            self.out.push(Output::ReadReady(read.read));
        }
        self.send_more();
        let Active { beat, barrier, .. } = self.active;
        let wants_barrier = self.active.reads.back().is_some_and(|read| read.beat > beat);
        if wants_barrier && !needs_no_barrier && echoed >= barrier {
            self.beacon();
            self.active.barrier = self.active.beat;
        }
        self.change_pair();
    }

    /// Number of the last entry that every copy has which a commit needs. While an attempt is under way, those of the
    /// record before and after it.
    fn committed(&self) -> u64 {
        let Some(rec) = self.rec else { return 0 };
        let (mut peer, mut needs_disk) = (rec.peer, rec.peer.is_none());
        if let Some(claim) = &self.claim {
            match claim.purpose {
                Purpose::Solo => {
                    needs_disk = !self.is(Mutant::InDoubtStandbyOnly);
                    if self.is(Mutant::SoloBeforeKnown) {
                        peer = None;
                    }
                }
                Purpose::Add if self.is(Mutant::AddWithoutBarrier) => {}
                Purpose::Add => peer = claim.rec.peer,
                Purpose::Found
                | Purpose::Reclaim
                | Purpose::Takeover
                | Purpose::Restart
                | Purpose::RestartWithLoss
                | Purpose::Handover
                | Purpose::Force => {}
            }
        }
        if self.is(Mutant::CommitWithoutStandby) {
            peer = None;
        }
        needs_disk &= !self.is(Mutant::CommitWithoutDisk);
        let mut lsn = self.log.last().lsn;
        if needs_disk {
            lsn = lsn.min(self.disk.synced);
        }
        if let Some(peer) = peer {
            let link = self.active.link.as_ref().filter(|link| self.is_it(link.member, peer));
            lsn = lsn.min(link.map_or(0, Link::acked));
        }
        lsn
    }

    /// The learner becomes the standby, or the standby the active, when nothing can be lost by it.
    fn change_pair(&mut self) {
        let (Some(rec), Some(link)) = (self.rec, &self.active.link) else { return };
        if self.claim.is_some() {
            return;
        }
        let (commit, last) = (self.active.commit, self.log.last().lsn);
        match rec.peer {
            // From here on its acknowledgements are needed, so that it has all that was or will be committed.
            None => {
                let is_ready = link.is_ready || self.is(Mutant::LearnerNotReady);
                let has_all = link.copy.is_none() && is_ready && link.acked >= Some(commit);
                if has_all || self.is(Mutant::AddTooEarly) {
                    self.claim(Purpose::Add, self.me, Some(link.member));
                }
            }
            Some(peer) => {
                let has_all = commit == last && link.acked() == last;
                let may = has_all || self.is(Mutant::HandOverEarly);
                if self.active.queue.is_some() && link.member == peer && may {
                    if self.is(Mutant::HandOverByWord) {
                        self.hand_over_by_word(peer);
                    } else {
                        self.claim(Purpose::Handover, peer, Some(self.me));
                    }
                }
            }
        }
    }

    pub(super) fn on_ack(
        &mut self,
        from: Master,
        upto: Position,
        beat: u64,
        gap: bool,
        ready: bool,
    ) {
        let is_it = self.active.link.as_ref().is_some_and(|link| self.is_it(from, link.member));
        let here = self.log.at(upto.lsn);
        let is_same = here.is_some_and(|here| self.same(here, upto));
        let is_believed = is_same || self.is(Mutant::IgnoreGap);
        let Some(link) = self.active.link.as_mut().filter(|_| is_it) else { return };
        if self.stage != Stage::Active {
            return;
        }
        if !is_believed {
            // It acknowledged what is forgotten here by now, which is news of the past, or has another log.
            if here.is_some() || upto.lsn > self.log.last().lsn {
                self.go_alone();
            }
            return;
        }
        self.heard_ms = self.now_ms;
        if let Some(copy) = &link.copy {
            if upto.lsn < copy.start.lsn {
                return;
            }
            link.copy = None;
            link.sent = upto.lsn;
        }
        let acked = link.acked().max(upto.lsn);
        link.acked = Some(acked);
        link.sent = link.sent.max(acked);
        if gap && beat > link.rewound {
            link.sent = acked;
            link.rewound = self.active.beat;
        }
        link.is_ready |= ready;
        self.active.echoed = self.active.echoed.max(beat);
    }

    pub(super) fn on_join(&mut self, from: Master, have: Option<Position>, version: u16) {
        let Some(rec) = self.rec.filter(|_| self.stage == Stage::Active && !self.is_fenced())
        else {
            return;
        };
        if version != S::VERSION {
            self.out.push(Output::Alarm(Alarm::OtherVersion(version)));
            return;
        }
        if let Some(peer) = rec.peer {
            // A later copy asks: the recorded one is no more.
            if from > peer {
                self.go_alone();
            }
            return;
        }
        // Asked again before it acknowledged anything, it has not seen the beginning of the tail.
        let is_news = self.active.link.as_ref().is_none_or(|link| {
            link.member < from
                || (link.member == from && link.acked.is_none() && link.copy.is_none())
        });
        if self.claim.is_some() || !is_news {
            return;
        }
        let tail =
            have.filter(|have| self.log.at(have.lsn).is_some_and(|here| self.same(here, *have)));
        self.heard_ms = self.now_ms;
        let last = self.log.last();
        let copy = tail.is_none().then(|| Copying {
            start: last,
            frozen: Some(self.state.freeze()),
            slices: VecDeque::new(),
            acked: 0,
            sent: 0,
            read: 0,
            is_ended: false,
        });
        // Only what it acknowledges once it follows counts; what it says it has is where to begin.
        let sent = tail.map_or(last.lsn, |have| have.lsn);
        self.active.link =
            Some(Link { member: from, acked: None, sent, rewound: 0, is_ready: false, copy });
        self.repeat();
    }

    pub(super) fn on_slice_ack(&mut self, from: Master, start: Position, next: usize) {
        let link = self.active.link.as_mut().filter(|link| link.member == from);
        let Some(copy) = link.and_then(|link| link.copy.as_mut()) else { return };
        if copy.start == start {
            copy.acknowledged(next);
            self.heard_ms = self.now_ms;
        }
    }

    /// Sends what the other master lacks, as far as the windows allow.
    fn send_more(&mut self) {
        let Settings { batch, window, slice, slices } = self.windows();
        loop {
            let last = self.log.last().lsn;
            let Some(link) = &mut self.active.link else { return };
            let to = Some(link.member);
            if let Some(copy) = &mut link.copy {
                let start = copy.start;
                #[cfg(feature = "mutants")]
                if self.mutant == Some(Mutant::SnapshotMoves)
                    && let Some(frozen) = &mut copy.frozen
                {
                    *frozen = self.state.freeze();
                    if copy.read > 0 {
                        self.state.next_pieces(frozen, copy.read);
                    }
                }
                let Some((index, pieces)) = copy.next(&mut self.state, slice, slices) else {
                    return;
                };
                self.send(to, Message::Slice { start, index, pieces });
                continue;
            }
            if link.sent >= last || link.sent - link.acked().min(link.sent) >= window {
                return;
            }
            if self.log.at(link.sent).is_none() {
                self.go_alone();
                return;
            }
            let sent = link.sent;
            self.append_to(sent, batch);
        }
    }

    fn append_to(&mut self, sent: u64, batch: usize) {
        let (Some(rec), Some(before)) = (self.rec, self.log.at(sent)) else { return };
        let entries = self.log.after(sent, batch);
        self.active.beat += 1;
        let (beat, commit) = (self.active.beat, self.active.commit);
        let Some(link) = &mut self.active.link else { return };
        link.sent = entries.last().map_or(sent, |entry| entry.header.lsn);
        let to = Some(link.member);
        let check = self.checks.back().copied();
        self.send(to, Message::Append { before, entries, beat, commit, rec, check });
    }

    /// A message without entries, which is acknowledged all the same.
    fn beacon(&mut self) {
        if let Some(sent) =
            self.active.link.as_ref().filter(|link| link.copy.is_none()).map(|link| link.sent)
        {
            self.append_to(sent, 0);
        }
    }

    /// Sends again what was not acknowledged, and a beacon if there is nothing.
    pub(super) fn repeat(&mut self) {
        if self.is_fenced() {
            return;
        }
        self.active.beaconed_ms = self.now_ms;
        let base = self.log.base().lsn;
        if let Some(link) = &mut self.active.link {
            match &mut link.copy {
                Some(copy) => copy.repeat(),
                None => {
                    if let Some(acked) = link.acked.filter(|acked| *acked >= base) {
                        link.sent = acked;
                    }
                }
            }
        }
        self.beacon();
    }

    fn windows(&self) -> Settings {
        let super::Settings { batch_max, window_max, slice_max, slices_max, .. } = self.settings;
        Settings { batch: batch_max, window: window_max, slice: slice_max, slices: slices_max }
    }
}

/// How much is on its way at once.
struct Settings {
    batch: usize,
    window: u64,
    slice: usize,
    slices: usize,
}
