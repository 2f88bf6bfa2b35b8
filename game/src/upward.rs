//! What goes to the master: a stream that outlives its links.

use std::collections::{BTreeMap, BTreeSet};

use ecow::EcoString;
use greenroom_link::Outgoing;
use greenroom_protocol::wire::master_game::{GameToMaster, Scored};
use greenroom_protocol::wire::session_master::Received;
use greenroom_protocol::{
    Epoch, Inbound, Incarnation, InstanceId, LinkHeader, Outbound, StampedHeader, UserId,
};

/// Scores that may wait while no master is there: the newest of each user on each board. Further ones are dropped.
const SCORES_WAITING_MAX: usize = 1 << 16;

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
    /// The newest scores that nobody was told, by instance, board and user.
    scores: BTreeMap<(InstanceId, EcoString, UserId), Scored>,
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
            // What the report says need not be said again; it does not say scores.
            self.master = Some(master);
            self.inbound = Inbound::default();
            let mut since = Outbound::default();
            self.last = 0;
            for (n, message) in self.outbound.unacknowledged() {
                if n > self.reported || matches!(message, GameToMaster::Scored(_)) {
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
        for (_, scored) in std::mem::take(&mut self.scores) {
            self.append(&scored.into());
        }
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
    /// Says something in the stream, or keeps it until there is somebody to be told. False for a score that is dropped,
    /// because too many wait.
    pub(crate) fn push(&mut self, message: &GameToMaster) -> bool {
        if self.welcomed {
            self.append(message);
            return true;
        }
        match message {
            GameToMaster::MetaChanged(changed) => {
                self.meta.insert(changed.instance);
            }
            GameToMaster::Scored(scored) => {
                let key = (scored.instance, scored.board.clone(), scored.user.clone());
                if self.scores.len() == SCORES_WAITING_MAX && !self.scores.contains_key(&key) {
                    return false;
                }
                self.scores.insert(key, scored.clone());
            }
            GameToMaster::Closed(closed) => {
                // A score counts as long as its instance is there.
                let scores = std::mem::take(&mut self.scores).into_iter();
                let (last, others) = scores.partition(|((of, ..), _)| *of == closed.instance);
                self.scores = others;
                let last: BTreeMap<_, Scored> = last;
                for scored in last.into_values() {
                    self.append(&scored.into());
                }
                self.append(message);
            }
            GameToMaster::Report(_)
            | GameToMaster::Load(_)
            | GameToMaster::Running(_)
            | GameToMaster::CreateRefused(_)
            | GameToMaster::SeatChanged(_)
            | GameToMaster::Received(_)
            | GameToMaster::Unknown(_) => self.append(message),
        }
        true
    }
    /// Appends to the stream.
    fn append(&mut self, message: &GameToMaster) {
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

#[cfg(test)]
mod tests {
    use greenroom_protocol::wire::master_game::Closed;
    use greenroom_protocol::{Code, Refusal};

    use super::*;

    fn scored(instance: u128, user: &str, score: i64) -> GameToMaster {
        GameToMaster::Scored(Scored {
            instance: InstanceId(instance),
            incarnation: Incarnation(1),
            board: "wins".into(),
            user: UserId::new(user).unwrap(),
            name: "Ann".into(),
            score: Some(score),
        })
    }

    fn closed(instance: u128) -> GameToMaster {
        GameToMaster::Closed(Closed {
            instance: InstanceId(instance),
            incarnation: Incarnation(1),
            refusal: Refusal::new(Code::InstanceClosed, "over"),
        })
    }

    /// What waits for its acknowledgement.
    fn stream(upward: &Upward) -> Vec<GameToMaster> {
        upward.outbound.unacknowledged().map(|(_, message)| message.clone()).collect()
    }

    #[test]
    fn while_no_master_is_there_the_newest_score_of_each_user_waits() {
        let mut upward = Upward::default();
        for score in 1..=1_000 {
            assert!(upward.push(&scored(1, "ann", score)));
        }
        assert!(upward.push(&scored(2, "bo", 5)));
        assert!(stream(&upward).is_empty());
        upward.welcome(Incarnation(7));
        assert_eq!(stream(&upward), [scored(1, "ann", 1_000), scored(2, "bo", 5)]);
        assert!(upward.push(&scored(2, "bo", 6)), "from here on, each is told");
        assert_eq!(upward.last(), 3);
    }

    #[test]
    fn the_last_scores_of_an_instance_come_before_its_end() {
        let mut upward = Upward::default();
        for (instance, user) in [(1, "ann"), (2, "bo")] {
            upward.push(&scored(instance, user, 1));
        }
        upward.push(&closed(1));
        upward.welcome(Incarnation(7));
        assert_eq!(stream(&upward), [scored(1, "ann", 1), closed(1), scored(2, "bo", 1)]);
    }

    /// The next master learns from the report what runs, but not who has which score.
    #[test]
    fn a_score_that_was_not_acknowledged_is_told_to_the_next_master() {
        let mut upward = Upward::default();
        upward.welcome(Incarnation(7));
        upward.push(&scored(1, "ann", 1));
        upward.push(&closed(2));
        upward.lost();
        upward.reported = upward.last;
        upward.welcome(Incarnation(8));
        assert_eq!(stream(&upward), [scored(1, "ann", 1)]);
    }

    #[test]
    fn a_game_that_scores_without_end_and_without_a_master_is_bounded() {
        let mut upward = Upward::default();
        for n in 0..SCORES_WAITING_MAX {
            assert!(upward.push(&scored(1, &n.to_string(), 1)));
        }
        assert!(!upward.push(&scored(1, "one more", 1)));
        assert!(upward.push(&scored(1, "0", 2)), "who waits gets a newer score");
        assert_eq!(upward.scores.len(), SCORES_WAITING_MAX);
    }
}
