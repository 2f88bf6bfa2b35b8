//! What goes to the master: a stream that outlives its links.

use std::collections::{BTreeMap, BTreeSet};

use ecow::EcoString;
use greenroom_link::Outgoing;
use greenroom_protocol::wire::master_game::{Caused, GameToMaster, Scored};
use greenroom_protocol::wire::session_master::{Fenced, Received, Resume};
use greenroom_protocol::{
    Follow, Inbound, InstanceId, LINK_FRAME_BYTES_MAX, LINK_HEADER_BYTES, LinkHeader, MasterLink,
    Outbound, StampedHeader, Streams, TraceContext, UserId,
};

/// Scores that may wait while no master is there: the newest of each user on each board. Further ones are dropped.
const SCORES_WAITING_MAX: usize = 1 << 16;

/// Bytes of what is said at once: a frame of the link without its header.
const PAYLOAD_BYTES_MAX: usize = LINK_FRAME_BYTES_MAX - LINK_HEADER_BYTES;

/// The way to whichever master is the active one.
#[derive(Debug, Default)]
pub(crate) struct Upward {
    outbound: Outbound<GameToMaster>,
    inbound: Inbound,
    /// Which of the masters is told what happens here.
    pub(crate) follow: Follow,
    links: BTreeMap<MasterLink, Outgoing>,
    /// The last number of the stream that the last report covers.
    reported: u64,
    last: u64,
    /// Instances whose metadata changed while nobody was told.
    meta: BTreeSet<InstanceId>,
    /// The newest scores that nobody was told, by instance, board and user.
    scores: BTreeMap<(InstanceId, EcoString, UserId), Scored>,
    payload: Vec<u8>,
}

impl Upward {
    /// A link is open: nothing is said before that master says that it decides.
    pub(crate) fn linked(&mut self, master: MasterLink, link: Outgoing) {
        self.links.insert(master, link);
    }
    pub(crate) fn lost(&mut self, master: MasterLink) {
        self.links.remove(&master);
        self.follow.lost(master);
    }
    /// Answers the master that decides with everything, outside the stream.
    pub(crate) fn report(&mut self, report: impl Into<GameToMaster>) {
        self.reported = self.last;
        self.say(&report.into(), 0);
    }
    /// Answers the master that decides that this server goes on where it was.
    pub(crate) fn resume(&mut self) {
        self.reported = 0;
        self.say(&Resume {}.into(), 0);
    }
    /// Tells a master that its epoch is over.
    pub(crate) fn fence(&mut self, master: MasterLink) {
        self.say_to(master, &Fenced {}.into(), 0);
    }
    pub(crate) const fn is_welcomed(&self) -> bool {
        self.follow.is_welcomed()
    }
    /// The master answers the report, or that this server goes on. Other streams begin with what happened since the
    /// report. Gives the instances whose metadata it is to be told.
    pub(crate) fn welcome(&mut self, streams: Streams) -> BTreeSet<InstanceId> {
        match streams {
            Streams::GoOn => {}
            Streams::First | Streams::Anew => {
                // What the report says need not be said again; it does not say scores.
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
    /// Whether a message with this number in the master's stream, or 0 for beside it, is to be handled.
    pub(crate) fn take(&mut self, n: u64) -> bool {
        n == 0 || self.inbound.accept(n)
    }
    /// Says what of the master's stream has arrived.
    pub(crate) fn acknowledge(&mut self) {
        self.say_outside(&Received { n: self.inbound.received() }.into());
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
        if self.is_welcomed() {
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
            | GameToMaster::Resume(_)
            | GameToMaster::Fenced(_)
            | GameToMaster::HandedOver(_)
            | GameToMaster::Measured(_)
            | GameToMaster::Caused(_)
            | GameToMaster::Unknown(_) => self.append(message),
        }
        true
    }
    /// As [`Self::push`], as a part of a trace: while a master is there, it is told so. What waits for one is not.
    pub(crate) fn push_within(&mut self, message: &GameToMaster, trace: TraceContext) -> bool {
        self.say_outside(&Caused { n: self.last + 1, trace }.into());
        self.push(message)
    }
    /// Appends to the stream.
    fn append(&mut self, message: &GameToMaster) {
        self.last = self.outbound.push(message.clone());
        if self.is_welcomed() {
            self.say(message, self.last);
        }
    }
    /// Says something that may be lost.
    pub(crate) fn say_outside(&mut self, message: &GameToMaster) {
        if self.is_welcomed() {
            self.say(message, 0);
        }
    }
    /// Whether a master is there that has not acknowledged everything.
    pub(crate) fn is_waiting_for_word(&self) -> bool {
        self.is_welcomed() && !self.outbound.is_empty()
    }
    /// Has the master that is followed dialled anew.
    pub(crate) fn close(&self) {
        if let Some(link) = self.follow.link().and_then(|master| self.links.get(&master)) {
            link.close();
        }
    }
    /// Whether the link is to be given up, or gone.
    pub(crate) fn is_closing(&self, master: MasterLink) -> bool {
        self.links.get(&master).is_none_or(Outgoing::is_closing)
    }
    /// Ends every link after what waits has been written.
    pub(crate) fn close_all(&self) {
        self.links.values().for_each(Outgoing::close);
    }
    fn say(&mut self, message: &GameToMaster, n: u64) {
        if let Some(master) = self.follow.link() {
            self.say_to(master, message, n);
        }
    }
    fn say_to(&mut self, master: MasterLink, message: &GameToMaster, n: u64) {
        let Some(link) = self.links.get(&master) else { return };
        self.payload.clear();
        self.payload.extend_from_slice(&StampedHeader { epoch: self.follow.epoch(), n }.bytes());
        message.encode_into(&mut self.payload);
        if self.payload.len() > PAYLOAD_BYTES_MAX {
            tracing::error!(
                bytes = self.payload.len(),
                "this server runs more than it can report at once: the master can't use it; lower [game] capacity"
            );
            return;
        }
        link.push(LinkHeader { kind: message.kind(), target: 0 }, &[&self.payload]);
    }
}

#[cfg(test)]
mod tests {
    use greenroom_protocol::wire::master_game::Closed;
    use greenroom_protocol::{Code, Epoch, Incarnation, Refusal, Verdict, Word};

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

    /// A master that knows nothing decides, is answered with a report, and says welcome to these streams.
    fn welcome(upward: &mut Upward, streams: u64) {
        let (master, epoch) = (MasterLink(0), Epoch::default());
        assert_eq!(upward.follow.hear(master, epoch, Word::NewEpoch(None)), Verdict::Report);
        upward.report(GameToMaster::Unknown(0));
        let verdict = upward.follow.hear(master, epoch, Word::Welcome(streams));
        let Verdict::Welcome(streams) = verdict else { panic!("{verdict:?}") };
        upward.welcome(streams);
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
        welcome(&mut upward, 7);
        assert_eq!(stream(&upward), [scored(1, "ann", 1_000), scored(2, "bo", 5)]);
        assert!(upward.push(&scored(2, "bo", 6)), "from here on, each is told");
        assert_eq!(upward.last(), 3);
    }

    #[test]
    fn the_last_scores_of_an_instance_come_before_its_end() {
        let mut upward = Upward::default();
        welcome(&mut upward, 7);
        upward.lost(MasterLink(0));
        for (instance, user) in [(1, "ann"), (2, "bo")] {
            upward.push(&scored(instance, user, 1));
        }
        upward.push(&closed(1));
        welcome(&mut upward, 7);
        assert_eq!(stream(&upward), [scored(1, "ann", 1), closed(1), scored(2, "bo", 1)]);
    }

    /// The next master learns from the report what runs, but not who has which score.
    #[test]
    fn a_score_that_was_not_acknowledged_is_told_to_the_next_master() {
        let mut upward = Upward::default();
        welcome(&mut upward, 7);
        upward.push(&scored(1, "ann", 1));
        upward.push(&closed(2));
        upward.lost(MasterLink(0));
        welcome(&mut upward, 8);
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
