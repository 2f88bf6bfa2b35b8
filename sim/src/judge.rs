//! What must always hold, looked at from outside with everything in view.

use std::collections::btree_map::Entry;

use greenroom_master_core::replica::{Master, Position, Rec, Role};
use greenroom_protocol::Epoch;

use crate::games::Renewed;
use crate::machine::{Effect, Machine};
use crate::world::{Node, World, index};

impl World<'_> {
    /// After each thing that a master did.
    pub(crate) fn look_at(&mut self, node: usize) {
        let Some(master) = &self.nodes[node].master else { return };
        let is_backwards = master.state().is_backwards();
        let (role, commit, last) = (master.role(), master.commit(), master.last());
        let queues = master.queues();
        let settings = &self.settings;
        let uncommitted_max = usize::try_from(settings.uncommitted_max).unwrap_or(usize::MAX);
        let bounds = [
            settings.log_max + 2 * uncommitted_max + self.nodes[node].recovered,
            uncommitted_max + settings.queue_max,
            settings.reads_max,
            settings.queue_max,
        ];
        if queues.iter().zip(bounds).any(|(length, bound)| *length > bound) {
            self.fail("L2", format!("queues of {queues:?} are longer than {bounds:?}"));
            return;
        }
        if is_backwards {
            self.fail("I8", format!("time went back before entry {}", last.lsn));
            return;
        }
        match role {
            Role::Paired | Role::Solo | Role::Blocked => {}
            Role::Recovering | Role::Learner | Role::Standby => {
                self.nodes[node].checked = 0;
                return;
            }
        }
        let checked = self.nodes[node].checked;
        if commit <= checked {
            return;
        }
        self.nodes[node].checked = commit;
        let known = self.golden.len() as u64;
        for lsn in (checked + 1).max(known.saturating_sub(128))..=commit {
            let Some(at) = self.nodes[node].master.as_ref().and_then(|r| r.position(lsn)) else {
                continue;
            };
            let place = usize::try_from(lsn - 1).unwrap_or(usize::MAX);
            if self.golden.len() <= place {
                self.golden.resize(place + 1, None);
            }
            if *self.golden[place].get_or_insert(at.chain) != at.chain {
                self.fail("I3", format!("entry {lsn} is committed as two different ones"));
                return;
            }
        }
        self.check_commit(node, commit);
        if commit == last.lsn {
            let Some(hash) = self.nodes[node].master.as_ref().map(|r| r.state().sum()) else {
                return;
            };
            match self.states.entry(commit) {
                Entry::Vacant(entry) => {
                    entry.insert(hash);
                    if self.states.len() > 4_096 {
                        self.states.pop_first();
                    }
                }
                Entry::Occupied(entry) if *entry.get() != hash => {
                    self.fail("I8", format!("two states after entry {commit}"));
                }
                Entry::Occupied(_) => {}
            }
        }
    }

    /// What a master calls committed must be everywhere where the record says that it is.
    fn check_commit(&mut self, node: usize, lsn: u64) {
        let Some(rec) = self.record() else {
            self.fail("I3", "a commit without any record".to_owned());
            return;
        };
        let Some(at) = self.nodes[node].master.as_ref().and_then(|r| r.position(lsn)) else {
            return;
        };
        if let Some(lacking) = self.lacking(rec, at) {
            self.fail("I3", format!("entry {lsn} is committed, and {lacking} lacks it"));
        }
    }

    /// Which of those who must have this place of the log do not.
    fn lacking(&self, rec: Rec, at: Position) -> Option<String> {
        let lacks = |member: Master| {
            let master = self.nodes[index(member.side)].master.as_ref();
            master.filter(|master| master.me() == member).is_some_and(|master| {
                master.last().lsn < at.lsn
                    || master.position(at.lsn).is_some_and(|there| there != at)
            })
        };
        match rec.peer {
            Some(peer) => {
                [rec.holder, peer].into_iter().find(|m| lacks(*m)).map(|m| format!("{m:?}"))
            }
            None => {
                let disk = &self.nodes[index(rec.holder.side)].disk;
                (!self.wiped && !disk.has(at)).then(|| "the holder's disk".to_owned())
            }
        }
    }

    /// A master acknowledges this much.
    pub(crate) fn check_acknowledged(&mut self, node: usize, lsn: u64) {
        if lsn > self.nodes[node].disk.written().lsn {
            self.fail("R5", format!("entry {lsn} is acknowledged before it is written"));
        }
    }

    /// The last entry that was ever committed.
    fn committed(&self) -> Option<Position> {
        let chain = (*self.golden.last()?)?;
        Some(Position { lsn: self.golden.len() as u64, chain })
    }

    /// The witness has taken a new record.
    pub(crate) fn check_record(&mut self, rec: Rec) {
        let is_copying = |peer: Master| {
            let node = &self.nodes[index(peer.side)];
            node.master.as_ref().is_some_and(|r| r.me() == peer) && node.disk.is_copying()
        };
        if rec.peer.is_some_and(is_copying) {
            self.fail("R7", format!("{:?} counts before its snapshot is on disk", rec.peer));
        }
        let Some(at) = self.committed() else { return };
        if let Some(lacking) = self.lacking(rec, at) {
            self.fail("I9", format!("{lacking} counts, and lacks entry {}", at.lsn));
        }
    }

    pub(crate) fn new_epoch(&mut self, node: usize, at: Epoch) {
        let Some(master) = &self.nodes[node].master else { return };
        let me = master.me();
        let stream: Vec<(u64, u64)> = master.state().stream().collect();
        let has_all = self.committed().is_none_or(|at| {
            master.last().lsn >= at.lsn && master.position(at.lsn).is_none_or(|there| there == at)
        });
        self.tally.terms += 1;
        // Who slept since the witness answered says late what was true then; whoever hears it refuses the epoch.
        let is_late = self.record().is_some_and(|rec| rec.at > at);
        if !has_all && !is_late {
            self.fail("I2", format!("{me:?} decides, and lacks what is committed"));
        }
        if let Some(other) = self.epochs.insert(at, me)
            && other != me
        {
            self.fail("I1", format!("{other:?} and {me:?} both decide in {at}"));
        }
        if self.nodes[node].master.as_ref().is_some_and(|r| r.commit() == r.last().lsn) {
            for (number, payload) in stream {
                self.receive(at, number, payload);
            }
        }
    }

    pub(crate) fn release(&mut self, node: usize, lsn: u64, effects: &[Effect]) {
        if lsn > self.golden.len() as u64 {
            self.fail("I4", format!("effects of entry {lsn} leave before its commit"));
            return;
        }
        let at = self.nodes[node].master.as_ref().and_then(|r| r.rec()).map(|rec| rec.at);
        let Node { told, disk, .. } = &self.nodes[node];
        if at.is_some_and(|at| at < *told) {
            self.fail("R8", format!("effects leave in {at:?} of who was told of {told}"));
            return;
        }
        if lsn > disk.written().lsn {
            self.fail("R5", format!("effects of entry {lsn} leave before it is written"));
            return;
        }
        for effect in effects {
            match *effect {
                Effect::Push { number, payload } => {
                    self.receive(at.unwrap_or_default(), number, payload);
                    if number.is_multiple_of(8) {
                        let after = 500 + self.rng_below(5_000);
                        self.acknowledge_later(after, node);
                    }
                }
                Effect::Renewed { game, process, sent_us, said } => {
                    self.renewed(node, game, process, Renewed { lsn, sent_us, said });
                }
                Effect::Reply { client, id, before } => {
                    self.is_served_by(node);
                    self.replied(client, id, before);
                }
            }
        }
    }

    fn replied(&mut self, client: usize, id: u64, before: Option<u64>) {
        match self.answers.entry((client, id)) {
            Entry::Vacant(entry) => {
                entry.insert(before);
                if let Some(value) = before {
                    let place = usize::try_from(value).unwrap_or(usize::MAX);
                    if self.adders.len() <= place {
                        self.adders.resize(place + 1, (usize::MAX, 0));
                    }
                    let (other, _) = std::mem::replace(&mut self.adders[place], (client, id));
                    if other != usize::MAX {
                        self.fail("I5", format!("{value} is the answer to two requests"));
                    }
                }
            }
            Entry::Occupied(entry) if *entry.get() != before => {
                let what = format!("request {id} of client {client} is answered in two ways");
                self.fail("I5", what);
            }
            Entry::Occupied(_) => {}
        }
        self.reply_to(client, id, before);
    }

    /// The receiver takes the next number only, drops what it has, and refuses an epoch that is over.
    fn receive(&mut self, at: Epoch, number: u64, payload: u64) {
        if at < self.received_epoch {
            return;
        }
        self.received_epoch = at;
        let place = usize::try_from(number - 1).unwrap_or(usize::MAX);
        match self.received.get(place) {
            Some(there) if *there != payload => {
                self.fail("I6", format!("message {number} comes with two contents"));
            }
            Some(_) => {}
            None if place == self.received.len() => self.received.push(payload),
            None => self.fail("I6", format!("message {number} comes before the one before it")),
        }
    }

    /// Whether the disk of a copy that counted has kept all that was written.
    fn is_whole(&self, member: Master) -> bool {
        self.nodes[index(member.side)].lost_in < member.incarnation.0 && !self.wiped
    }

    /// A new era begins after the record `before`, with the log of who decides now: what that lacks is forgotten by
    /// all. Gives the state to which it leads.
    pub(crate) fn declare_loss(&mut self, before: Rec, rec: Rec) -> Machine {
        let mine = index(rec.holder.side);
        let (disk, other) = (&self.nodes[mine].disk, &self.nodes[1 - mine].disk);
        let (last, state) = (disk.end_of_log(), disk.state());
        let theirs = other.written();
        // That the other one's is whole says nothing where it can't be compared any more.
        let whole = [Some(before.holder), before.peer].into_iter().flatten().find(|member| {
            let is_comparable = index(member.side) == mine || disk.has_entry(theirs.lsn);
            self.is_whole(*member) && is_comparable
        });
        if theirs.lsn > last.lsn {
            self.fail("R12", format!("a loss is declared, and {theirs:?} is on the other disk"));
        }
        if let Some(member) = whole {
            self.fail("R12", format!("a loss is declared, and the disk of {member:?} has all"));
        }
        self.golden.truncate(usize::try_from(last.lsn).unwrap_or(usize::MAX));
        self.states.retain(|lsn, _| *lsn <= last.lsn);
        self.answers.retain(|(client, id), _| *id <= state.decided(*client));
        self.adders.truncate(usize::try_from(state.value()).unwrap_or(usize::MAX));
        self.received.truncate(usize::try_from(state.pushed()).unwrap_or(usize::MAX));
        self.received_epoch = rec.at;
        state
    }

    /// Everything has been well for a while.
    pub(crate) fn end(&mut self) {
        let healed_us = self.healed_at();
        if self.clients().iter().all(|done_us| *done_us > healed_us) {
            self.tally.healed += 1;
            return;
        }
        if self.is_recoverable() {
            self.fail("L1", "somebody is not served although nothing is broken".to_owned());
        } else {
            self.tally.lost += 1;
        }
    }

    fn is_recoverable(&self) -> bool {
        let Some(rec) = self.record() else { return true };
        let is_there = |member: Master| {
            let master = self.nodes[index(member.side)].master.as_ref();
            master.is_some_and(|master| master.me() == member)
        };
        if is_there(rec.holder) || rec.peer.is_some_and(is_there) {
            return true;
        }
        // Alone: its disk was synced before it asked, so that its next life has all of it. Both of a pair come back and
        // compare what they have, if there is anything, or is known to have been nothing.
        let has_some = self.nodes.iter().any(|node| node.disk.written().lsn > 0);
        let is_known = [Some(rec.holder), rec.peer].into_iter().flatten().any(|m| self.is_whole(m));
        !self.wiped && (rec.peer.is_none() || has_some || is_known)
    }
}
