//! One of two masters: what it appends, acknowledges, commits, and when it may decide.
//!
//! *Takes*: an [`Input`] and the moment at which it happened, in milliseconds of a clock of this machine's own.
//! *Gives*: [`Output`]s, to be performed in order: messages, disk writes, questions to the witness, released effects.
//! *Owns*: the log, the state that it leads to, the role, and which copies of the log a commit needs.
//! *Never*: an effect of what is not committed; a role that the witness has not granted; a clock to be safe by.
//!
//! The rules are in `sim/README.md`, with what the simulator found about them.

mod active;
mod apply;
mod chain;
mod claim;
mod cold;
mod entry;
#[cfg(feature = "explore")]
mod explore;
mod following;
mod mutants;
mod words;

use std::collections::VecDeque;
use std::fmt;

use greenroom_protocol::{Epoch, Incarnation};

use self::active::Active;
pub use self::apply::{Apply, Logged};
use self::chain::Chain;
use self::claim::{Claim, Purpose};
pub use self::entry::BadEntry;
use self::following::Learning;
pub use self::mutants::Mutant;
pub use self::words::{
    Alarm, ClaimAnswer, Cold, Entry, Envelope, Input, Intent, Intents, Master, Message, Nonce,
    Output, Position, Rec, Recovered, Refused, Role, Side, Whose,
};
use crate::command::Header;

/// What a state machine's commands, pieces and effects are called in the words of replication.
type InputOf<S> = Input<<S as Apply>::Command, <S as Apply>::Piece>;
type OutputOf<S> = Output<<S as Apply>::Command, <S as Apply>::Piece, <S as Apply>::Effect>;
type EnvelopeOf<S> = Envelope<<S as Apply>::Command, <S as Apply>::Piece>;
type MessageOf<S> = Message<<S as Apply>::Command, <S as Apply>::Piece>;

/// Time-outs in milliseconds, and how long queues may grow.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The era that the first record of all begins. Whoever has seen a larger one listens to nobody below it, so a
    /// cluster that was founded anew beside servers that live on needs a larger one than before.
    pub founding_era: u32,
    /// Between two beacons, and after which what was not acknowledged is sent again.
    pub beacon_ms: u64,
    /// Silence after which an active goes on without its standby. Less than `takeover_after_ms`: who decides stays.
    pub solo_after_ms: u64,
    /// Silence after which a standby takes over.
    pub takeover_after_ms: u64,
    /// After which the witness is asked again.
    pub witness_ms: u64,
    /// A tick later than this means that the process slept: silence is counted anew.
    pub late_ms: u64,
    /// Between two syncs of the log while a standby has everything too.
    pub sync_ms: u64,
    /// Entries in a message, at most.
    pub batch_max: usize,
    /// Entries on their way to the other master, at most.
    pub window_max: u64,
    /// Entries that are not committed; more commands are refused as [`Refused::Busy`].
    pub uncommitted_max: u64,
    /// Reads that wait; more are refused as [`Refused::Busy`].
    pub reads_max: usize,
    /// Commands that wait while the active changes; more are refused as [`Refused::Busy`].
    pub queue_max: usize,
    /// Committed entries kept in memory, for a standby that comes back: a longer absence needs a snapshot.
    pub log_max: usize,
    /// Pieces of a snapshot in a message, and of a checkpoint between two commands.
    pub slice_max: usize,
    /// Slices on their way, at most.
    pub slices_max: usize,
    /// Commands between two comparisons of the states' hashes.
    pub check_every: u64,
    /// Commands between two checkpoints.
    pub checkpoint_every: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            founding_era: 1,
            beacon_ms: 50,
            solo_after_ms: 250,
            takeover_after_ms: 500,
            witness_ms: 100,
            late_ms: 100,
            sync_ms: 10,
            batch_max: 256,
            window_max: 4_096,
            uncommitted_max: 50_000,
            reads_max: 50_000,
            queue_max: 50_000,
            log_max: 65_536,
            slice_max: 256,
            slices_max: 8,
            check_every: 1_024,
            checkpoint_every: 1 << 18,
        }
    }
}

/// Hashes of earlier states that are kept to be compared.
const CHECKS_MAX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Recovering,
    Learner,
    Standby,
    Active,
}

/// What is known of the disk. It does everything in the order in which it was told.
#[derive(Clone, Debug)]
struct Disk<F> {
    /// Number of the last entry that is durable.
    synced: u64,
    /// The sync under way.
    syncing: Option<u64>,
    synced_ms: u64,
    /// The copied checkpoint that is not durable yet: until then the log on disk is another one.
    installing: Option<Position>,
    /// Number of the entry at which the newest checkpoint was taken.
    checkpoint: u64,
    /// The checkpoint that is being written, and how many of its pieces are read; nothing frozen once it only has to
    /// become durable.
    ongoing: Option<(Position, Option<F>, usize)>,
}

/// One of the two masters.
pub struct Replica<S: Apply> {
    settings: Settings,
    me: Master,
    state: S,
    log: Chain<S::Command>,
    now_ms: u64,
    /// The largest time of a header so far.
    wall_ms: u64,
    /// The record as this master last knew it.
    rec: Option<Rec>,
    /// The version of the record that the witness showed last, whether it was believed or not.
    shown: u64,
    /// The largest epoch of any message or record.
    seen: Epoch,
    stage: Stage,
    active: Active<S>,
    learning: Learning<S::Piece>,
    /// The attempt to change the record whose fate is not known. It is never forgotten.
    claim: Option<Claim>,
    claims: u64,
    intents: Intents,
    /// [`Recovered::whole_since`].
    whole_since: Option<Incarnation>,
    disk: Disk<S::Frozen>,
    /// When the other master last said something that counts.
    heard_ms: u64,
    /// When the witness was last asked.
    asked_ms: u64,
    /// Which active was heard, and its largest beat.
    beat: Option<(Master, u64)>,
    checks: VecDeque<(u64, u128)>,
    role: Role,
    out: Vec<OutputOf<S>>,
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

impl<S: Apply> Replica<S> {
    /// A master that starts with `recovered` on its disk; `state` is that of the checkpoint. `me` is a life that never
    /// was before, with copy 0.
    pub fn new(
        settings: Settings,
        me: Master,
        state: S,
        recovered: Recovered<S::Command>,
        now_ms: u64,
    ) -> Self {
        let wall_ms = state.now_ms();
        // A checkpoint does not say in which epoch it was taken; an intent that the record once confirmed does.
        let seen = recovered.intents.proven.map(|intent| intent.at).unwrap_or_default();
        let mut master = Self {
            settings,
            me,
            state,
            log: Chain::starting_at(recovered.base),
            now_ms,
            wall_ms,
            rec: None,
            shown: 0,
            seen,
            stage: Stage::Recovering,
            active: Active::default(),
            learning: Learning::default(),
            claim: None,
            claims: 0,
            intents: recovered.intents,
            whole_since: recovered.whole_since,
            disk: Disk {
                synced: 0,
                syncing: None,
                synced_ms: now_ms,
                installing: None,
                checkpoint: recovered.base.lsn,
                ongoing: None,
            },
            heard_ms: now_ms,
            // The first tick asks who decides.
            asked_ms: now_ms.saturating_sub(settings.witness_ms),
            beat: None,
            checks: VecDeque::new(),
            role: Role::Recovering,
            out: Vec::new(),
            #[cfg(feature = "mutants")]
            mutant: None,
        };
        let mut ignored = Vec::new();
        for entry in recovered.entries {
            ignored.clear();
            master.take(entry, &mut ignored);
        }
        master
    }

    /// Something happened at `now_ms`: what is to be done is appended to `out`.
    pub fn handle(&mut self, now_ms: u64, input: InputOf<S>, out: &mut Vec<OutputOf<S>>) {
        self.now_ms = self.now_ms.max(now_ms);
        std::mem::swap(&mut self.out, out);
        match input {
            Input::Message(envelope) => self.on_message(envelope),
            Input::Commands(wall_ms, commands) => self.on_commands(wall_ms, commands),
            Input::Read(read) => self.on_read(read),
            Input::Tick { late_ms } => self.on_tick(late_ms),
            Input::Synced(lsn) => self.on_synced(lsn),
            Input::IntentsDurable(intents) => self.on_intents_durable(&intents),
            Input::CheckpointDurable(at) => self.on_checkpoint_durable(at),
            Input::Claimed(nonce, answer) => self.on_claimed(nonce, answer),
            Input::Record(rec) => self.on_record(rec),
            Input::PeerGone(incarnation) => {
                let link = self.active.link.as_ref();
                let is_peer = match self.stage {
                    Stage::Active => link.is_some_and(|l| l.member.incarnation == incarnation),
                    Stage::Standby => {
                        self.rec.is_some_and(|rec| rec.holder.incarnation == incarnation)
                    }
                    Stage::Recovering | Stage::Learner => true,
                };
                if is_peer {
                    self.on_silence();
                }
            }
            Input::Seen(at) => self.on_seen(at),
            Input::Switchover => self.on_switchover(),
            Input::Promote { accept_loss } => self.on_promote(accept_loss),
        }
        if self.stage == Stage::Active {
            self.advance();
        }
        let role = self.role_now();
        if role != self.role {
            self.role = role;
            self.out.push(Output::Role(role));
        }
        std::mem::swap(&mut self.out, out);
    }

    /// Plants a bug, for those who test the tests.
    #[cfg(feature = "mutants")]
    pub fn set_mutant(&mut self, mutant: Option<Mutant>) {
        self.mutant = mutant;
    }

    #[cfg(feature = "mutants")]
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unused_self, reason = "with the feature it looks which one is planted")]
    fn is(&self, _: Mutant) -> bool {
        false
    }

    /// What it is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Which copy of which life of which master it is.
    pub fn me(&self) -> Master {
        self.me
    }

    /// The record as far as it is known here.
    pub fn rec(&self) -> Option<Rec> {
        self.rec
    }

    /// The state, with what is not committed.
    pub fn state(&self) -> &S {
        &self.state
    }

    /// The end of the log.
    pub fn last(&self) -> Position {
        self.log.last()
    }

    /// Where the log stood after number `lsn`, if that is still in memory.
    pub fn position(&self, lsn: u64) -> Option<Position> {
        self.log.at(lsn)
    }

    /// Number of the last committed entry, as far as this active or standby knows.
    pub fn commit(&self) -> u64 {
        self.active.commit
    }

    /// The largest epoch of any message or record.
    pub fn seen(&self) -> Epoch {
        self.seen
    }

    /// The largest time of the log so far, in milliseconds since 1970; 0 before the first command.
    pub fn log_ms(&self) -> u64 {
        self.wall_ms
    }

    /// The copy that follows this active, and the number of the last entry that it has acknowledged.
    pub fn following(&self) -> Option<(Master, u64)> {
        self.active
            .link
            .as_ref()
            .filter(|_| self.stage == Stage::Active)
            .map(|l| (l.member, l.acked()))
    }

    /// Whether this standby or learner has heard the active of the present record.
    pub fn hears_active(&self) -> bool {
        self.beat.is_some()
    }

    /// Whether this active knows of nobody who may have taken its place.
    pub fn is_certain(&self) -> bool {
        !self.is_fenced()
    }

    /// Whether commands wait for the standby to become the active.
    pub fn is_handing_over(&self) -> bool {
        self.active.queue.is_some()
    }

    /// How many entries, uncommitted effects, reads and forwarded commands are in memory.
    pub fn queues(&self) -> [usize; 4] {
        let queued = self.active.queue.as_ref().map_or(0, VecDeque::len);
        [self.log.len(), self.active.outbox.len(), self.active.reads.len(), queued]
    }

    fn role_now(&self) -> Role {
        match self.stage {
            Stage::Recovering => Role::Recovering,
            Stage::Learner => Role::Learner,
            Stage::Standby => Role::Standby,
            Stage::Active => {
                let is_leaving =
                    self.claim.as_ref().is_some_and(|claim| claim.purpose == Purpose::Solo);
                let is_paired = self.rec.is_some_and(|rec| rec.peer.is_some());
                if self.is_fenced() || is_leaving {
                    Role::Blocked
                } else if is_paired {
                    Role::Paired
                } else {
                    Role::Solo
                }
            }
        }
    }

    /// Somebody has seen a larger epoch than that of the record known here.
    fn is_fenced(&self) -> bool {
        self.rec.is_none_or(|rec| rec.at < self.seen && !self.is(Mutant::FencedGoesOn))
    }

    /// Whether one who speaks is the copy that is meant.
    fn is_it(&self, who: Master, meant: Master) -> bool {
        who == meant || (self.is(Mutant::SideForCopy) && who.side == meant.side)
    }

    /// Whether two places are the same.
    fn same(&self, left: Position, right: Position) -> bool {
        left == right || (self.is(Mutant::KeepDeposedLog) && left.lsn == right.lsn)
    }

    fn send(&mut self, to: Option<Master>, body: MessageOf<S>) {
        self.out.push(Output::Send(Envelope { from: self.me, to, at: self.seen, body }));
    }

    /// Appends an entry that follows the last one, and applies it.
    fn take(&mut self, entry: Entry<S::Command>, effects: &mut Vec<S::Effect>) {
        let mut header = entry.header;
        if self.is(Mutant::StandbyOwnTime) && self.stage == Stage::Standby {
            header.now_ms = self.now_ms;
        }
        self.state.apply(&header, &entry.command, effects);
        let Header { lsn, epoch, now_ms, seed: _ } = entry.header;
        self.wall_ms = self.wall_ms.max(now_ms);
        self.seen = self.seen.max(epoch);
        if lsn.is_multiple_of(self.settings.check_every.max(1)) {
            if self.checks.len() == CHECKS_MAX {
                self.checks.pop_front();
            }
            self.checks.push_back((lsn, self.state.hash()));
        }
        self.log.push(entry);
        let needed = self.active.commit;
        while self.log.len() > self.settings.log_max && self.log.base().lsn < needed {
            self.log.forget_first();
        }
    }

    fn on_message(&mut self, envelope: EnvelopeOf<S>) {
        let Envelope { from, to, at, body } = envelope;
        if from.side == self.me.side {
            return;
        }
        let is_for_me = match to {
            None => true,
            Some(to) => self.is_it(self.me, to),
        };
        let is_over = at < self.seen;
        self.on_seen(at);
        if !is_for_me {
            return;
        }
        match body {
            Message::Append { .. } | Message::Slice { .. } | Message::Handover { .. }
                if is_over =>
            {
                self.send(Some(from), Message::Fenced);
            }
            Message::Append { before, entries, beat, commit, rec, check } => {
                self.on_append(from, before, entries, beat, commit, rec, check);
            }
            Message::Ack { upto, beat, gap, ready } => self.on_ack(from, upto, beat, gap, ready),
            Message::Join { have, version, cold } => match (self.stage, have, cold) {
                (Stage::Learner, Some(have), Some(cold)) => self.on_cold(have, &cold),
                _ => self.on_join(from, have, version),
            },
            Message::Slice { start, index, pieces } => self.on_slice(from, start, index, pieces),
            Message::SliceAck { start, next } => self.on_slice_ack(from, start, next),
            Message::Handover { rec } => self.adopt(rec),
            Message::Forward { commands } => self.on_commands(self.wall_ms, commands),
            // The envelope has said it.
            Message::Fenced => {}
        }
    }

    /// Whoever says it: somebody decides in an epoch that this master may know nothing of. Only the witness can tell.
    fn on_seen(&mut self, at: Epoch) {
        if at > self.seen {
            self.seen = at;
            self.ask_witness();
        }
    }

    /// The other master is not heard any more, or certainly gone.
    fn on_silence(&mut self) {
        match self.stage {
            Stage::Learner if self.is(Mutant::LearnerTakesOver) => self.take_over(),
            Stage::Recovering | Stage::Learner => self.ask_witness(),
            Stage::Standby => self.take_over(),
            Stage::Active => self.go_alone(),
        }
    }

    fn on_tick(&mut self, late_ms: u64) {
        let Settings { beacon_ms, solo_after_ms, takeover_after_ms, witness_ms, sync_ms, .. } =
            self.settings;
        if late_ms > self.settings.late_ms {
            // What the other master said meanwhile may still wait in a socket.
            self.heard_ms = self.now_ms;
        }
        let silence_ms = self.now_ms - self.heard_ms;
        let must_ask = match self.stage {
            Stage::Recovering => true,
            Stage::Learner => {
                self.learn_again();
                self.learning.is_asking() || silence_ms >= takeover_after_ms
            }
            Stage::Standby => {
                self.repeat_handover();
                if silence_ms >= takeover_after_ms {
                    self.take_over();
                }
                self.is_fenced()
            }
            Stage::Active => {
                if self.active.link.is_some() && silence_ms >= solo_after_ms {
                    self.go_alone();
                }
                if self.now_ms - self.active.beaconed_ms >= beacon_ms {
                    self.repeat();
                }
                self.is_fenced()
            }
        };
        let must_ask = must_ask || self.claim.as_ref().is_some_and(|claim| claim.is_sent);
        if must_ask && self.now_ms - self.asked_ms >= witness_ms {
            if self.is(Mutant::ForgetClaim) {
                self.claim = None;
            }
            self.ask_witness();
        }
        if self.now_ms - self.disk.synced_ms >= sync_ms {
            self.sync();
        }
        self.write_checkpoint();
    }

    /// Makes durable what is not, one sync at a time.
    fn sync(&mut self) {
        let last = self.log.last().lsn;
        let disk = &mut self.disk;
        if disk.syncing.is_none() && disk.installing.is_none() && last > disk.synced {
            disk.syncing = Some(last);
            disk.synced_ms = self.now_ms;
            self.out.push(Output::Sync(last));
        }
    }

    fn on_synced(&mut self, lsn: u64) {
        if self.disk.syncing == Some(lsn) {
            self.disk.syncing = None;
            if self.disk.installing.is_none() {
                self.disk.synced = self.disk.synced.max(lsn);
            }
        }
    }

    fn write_checkpoint(&mut self) {
        let last = self.log.last();
        let may_begin = self.disk.ongoing.is_none()
            && self.disk.installing.is_none()
            && !self.learning.is_copying()
            && self.claim.is_none()
            && last.lsn - self.disk.checkpoint >= self.settings.checkpoint_every;
        if may_begin {
            self.disk.ongoing = Some((last, Some(self.state.freeze()), 0));
            self.out.push(Output::CheckpointBegin { at: last, whose: Whose::Own });
        }
        let Some((_, ongoing, read)) = &mut self.disk.ongoing else { return };
        let Some(frozen) = ongoing else { return };
        #[cfg(feature = "mutants")]
        if self.mutant == Some(Mutant::CheckpointMoves) {
            *frozen = self.state.freeze();
            if *read > 0 {
                self.state.next_pieces(frozen, *read);
            }
        }
        let pieces = self.state.next_pieces(frozen, self.settings.slice_max);
        *read += pieces.len();
        if pieces.is_empty() {
            *ongoing = None;
            self.out.push(Output::CheckpointEnd);
        } else {
            self.out.push(Output::CheckpointPieces(pieces));
        }
    }

    fn on_checkpoint_durable(&mut self, at: Position) {
        let disk = &mut self.disk;
        if disk.installing == Some(at) {
            disk.installing = None;
            disk.synced = at.lsn;
            disk.checkpoint = at.lsn;
            self.acknowledge(false);
        } else if disk.ongoing.as_ref().is_some_and(|(ongoing, ..)| *ongoing == at) {
            disk.ongoing = None;
            disk.checkpoint = at.lsn;
        }
    }
}

impl<S: Apply> fmt::Debug for Replica<S> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Replica")
            .field("me", &self.me)
            .field("role", &self.role)
            .field("rec", &self.rec)
            .field("last", &self.log.last().lsn)
            .field("commit", &self.active.commit)
            .field("disk", &self.disk.synced)
            .field("claim", &self.claim)
            .finish_non_exhaustive()
    }
}
