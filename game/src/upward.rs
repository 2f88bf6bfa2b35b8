//! What goes to the master: a stream that outlives its links.

use std::collections::BTreeSet;

use greenroom_link::Outgoing;
use greenroom_protocol::wire::master_game::GameToMaster;
use greenroom_protocol::wire::session_master::Received;
use greenroom_protocol::{
    Epoch, Inbound, Incarnation, InstanceId, LinkHeader, Outbound, StampedHeader,
};

/// The way to whichever master is the active one.
#[derive(Debug, Default)]
pub(crate) struct Upward {
    outbound: Outbound<GameToMaster>,
    inbound: Inbound,
    /// The largest that was seen: who says less is not the active master any more.
    epoch: Epoch,
    /// The life of a master that the streams are with.
    master: Option<Incarnation>,
    link: Option<Outgoing>,
    /// The master has answered the report of this link: the stream may flow.
    welcomed: bool,
    /// The last number of the stream that the report of this link covers.
    reported: u64,
    last: u64,
    /// Instances whose metadata changed while nobody was told.
    meta: BTreeSet<InstanceId>,
    payload: Vec<u8>,
}

/// What to do with a message of a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Handle it.
    Take,
    /// It came before, or too early.
    Drop,
    /// It is from a master that is not the active one any more.
    Deposed,
}

impl Upward {
    /// A link is open: first the report, outside the stream.
    pub(crate) fn linked(&mut self, link: Outgoing, report: impl Into<GameToMaster>) {
        self.link = Some(link);
        self.welcomed = false;
        self.reported = self.last;
        self.say(&report.into(), 0);
    }
    pub(crate) fn lost(&mut self) {
        (self.link, self.welcomed) = (None, false);
    }
    pub(crate) const fn is_welcomed(&self) -> bool {
        self.welcomed
    }
    /// The master answers the report. Another life of it begins the streams anew, with what happened since the report.
    /// Gives the instances whose metadata it is to be told.
    pub(crate) fn welcome(&mut self, master: Incarnation) -> BTreeSet<InstanceId> {
        self.welcomed = true;
        if self.master != Some(master) {
            self.master = Some(master);
            self.inbound = Inbound::default();
            let mut since = Outbound::default();
            self.last = 0;
            for (n, message) in self.outbound.unacknowledged() {
                if n > self.reported {
                    self.last = since.push(message.clone());
                }
            }
            self.outbound = since;
        }
        let waiting = std::mem::take(&mut self.outbound);
        for (n, message) in waiting.unacknowledged() {
            self.say(message, n);
        }
        self.outbound = waiting;
        std::mem::take(&mut self.meta)
    }
    /// Whether a message with this header is to be handled.
    pub(crate) fn take(&mut self, header: StampedHeader) -> Verdict {
        if header.epoch < self.epoch {
            return Verdict::Deposed;
        }
        self.epoch = header.epoch;
        if header.n > 0 && !self.inbound.accept(header.n) {
            return Verdict::Drop;
        }
        Verdict::Take
    }
    /// Says what of the master's stream has arrived.
    pub(crate) fn acknowledge(&mut self) {
        self.say(&Received { n: self.inbound.received() }.into(), 0);
    }
    /// The master has what of our stream is up to this number.
    pub(crate) fn acknowledged(&mut self, n: u64) {
        self.outbound.acknowledge(n);
    }
    /// The number of what was appended to the stream last.
    pub(crate) const fn last(&self) -> u64 {
        self.last
    }
    /// Appends to the stream.
    pub(crate) fn push(&mut self, message: &GameToMaster) {
        if let (false, GameToMaster::MetaChanged(changed)) = (self.welcomed, message) {
            self.meta.insert(changed.instance);
            return;
        }
        self.last = self.outbound.push(message.clone());
        if self.welcomed {
            self.say(message, self.last);
        }
    }
    /// Says something that may be lost.
    pub(crate) fn say_outside(&mut self, message: &GameToMaster) {
        if self.welcomed {
            self.say(message, 0);
        }
    }
    /// Whether a master is there that has not acknowledged everything.
    pub(crate) fn is_waiting_for_word(&self) -> bool {
        self.welcomed && !self.outbound.is_empty()
    }
    pub(crate) fn close(&self) {
        if let Some(link) = &self.link {
            link.close();
        }
    }
    fn say(&mut self, message: &GameToMaster, n: u64) {
        let Some(link) = &self.link else { return };
        self.payload.clear();
        self.payload.extend_from_slice(&StampedHeader { epoch: self.epoch, n }.bytes());
        message.encode_into(&mut self.payload);
        link.push(LinkHeader { kind: message.kind(), target: 0 }, &[&self.payload]);
    }
}
