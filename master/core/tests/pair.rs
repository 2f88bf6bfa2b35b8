//! The real directory on two masters: what one decides, the other has.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a helper of a test looks for what concerns it among all outputs"
)]

mod world;

use std::collections::VecDeque;

use greenroom_master_core::replica::{
    ClaimAnswer, Input, Logged, Master, Output, Rec, Recovered, Replica, Role, Settings, Side,
};
use greenroom_master_core::{Command, Effect, Record, State};
use greenroom_protocol::Incarnation;
use world::{World, secret};

type In = Input<Logged, Record>;

/// Two masters, disks that are always well, and a witness, with everything delivered in order at once.
struct Pair {
    masters: [Replica<State>; 2],
    inbox: VecDeque<(usize, In)>,
    witness: Option<Rec>,
    now_ms: u64,
    released: u64,
}

impl Pair {
    fn new(commands: u64) -> Self {
        let settings = Settings { check_every: commands, slice_max: 3, ..Settings::default() };
        let master = |side| {
            let me = Master { side, incarnation: Incarnation(1), copy: 0 };
            let state = State::new(&secret(), Default::default());
            Replica::new(settings, me, state, Recovered::default(), 0)
        };
        let masters = [master(Side::A), master(Side::B)];
        Self { masters, inbox: VecDeque::new(), witness: None, now_ms: 0, released: 0 }
    }

    fn give(&mut self, to: usize, input: In) {
        self.inbox.push_back((to, input));
        while let Some((at, input)) = self.inbox.pop_front() {
            let mut outputs = Vec::new();
            self.masters[at].handle(self.now_ms, input, &mut outputs);
            for output in outputs {
                self.perform(at, output);
            }
        }
    }

    fn perform(&mut self, at: usize, output: Output<Logged, Record, Effect>) {
        let answer = match output {
            Output::Send(envelope) => {
                return self.inbox.push_back((1 - at, Input::Message(envelope)));
            }
            Output::Sync(lsn) => Input::Synced(lsn),
            Output::WriteIntents(intents) => Input::IntentsDurable(intents),
            // A copied one begins the log.
            Output::CheckpointEnd => Input::CheckpointDurable(self.masters[at].last()),
            Output::ReadRecord => Input::Record(self.witness),
            Output::Claim { expect, rec }
                if self.witness.map_or(0, |rec| rec.version) == expect =>
            {
                self.witness = Some(rec);
                Input::Claimed(rec.nonce, ClaimAnswer::Won)
            }
            Output::Claim { rec, .. } => Input::Claimed(rec.nonce, ClaimAnswer::Lost(self.witness)),
            Output::Release { .. } => {
                self.released += 1;
                return;
            }
            _ => return,
        };
        self.inbox.push_back((at, answer));
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now_ms += 10;
            self.give(0, Input::Tick { late_ms: 0 });
            self.give(1, Input::Tick { late_ms: 0 });
        }
    }

    fn roles(&self) -> [Role; 2] {
        [self.masters[0].role(), self.masters[1].role()]
    }
}

/// A master alone takes half of a story; the other joins by a snapshot, hears the rest, and has the same directory.
/// Then the first hands over, and the second goes on.
#[test]
fn a_standby_has_the_directory_of_the_active_and_can_be_handed_it() {
    let mut story = World::new();
    story.session_up("s1");
    story.game_up("g1");
    for number in 1..=20 {
        let session = story.user(number);
        story.ask(session, 1, world::join_or_create("arena", None));
    }
    let commands: Vec<Command> = story.log.entries().map(|(_, command)| command.clone()).collect();
    let mut pair = Pair::new(commands.len() as u64);
    // The second is not there yet.
    for _ in 0..20 {
        pair.now_ms += 10;
        pair.give(0, Input::Tick { late_ms: 0 });
        pair.inbox.clear();
    }
    assert_eq!(pair.masters[0].role(), Role::Solo);
    let (first, rest) = commands.split_at(commands.len() / 2);
    let some = |commands: &[Command]| {
        commands.iter().map(|command| (7, Logged::new(command.clone()))).collect()
    };
    pair.give(0, Input::Commands(1_000, some(first)));
    pair.pass(500);
    assert_eq!(pair.roles(), [Role::Paired, Role::Standby]);
    pair.give(0, Input::Commands(2_000, some(rest)));
    pair.pass(100);
    let hash = |master: &Replica<State>| (master.last(), master.state().state_hash());
    assert_eq!(hash(&pair.masters[0]), hash(&pair.masters[1]));
    assert_eq!(pair.masters[0].last().lsn, commands.len() as u64);
    assert_eq!(pair.masters[0].commit(), commands.len() as u64);
    assert!(pair.released > 0, "committed effects leave");

    pair.give(0, Input::Switchover);
    pair.pass(100);
    assert_eq!(pair.roles(), [Role::Standby, Role::Paired]);
    pair.give(1, Input::Commands(3_000, vec![(9, Logged::new(Command::Expire))]));
    pair.pass(100);
    assert_eq!(hash(&pair.masters[0]), hash(&pair.masters[1]));
    assert_eq!(pair.masters[1].commit(), commands.len() as u64 + 1);
}

/// The standby was left out, and then the active's disk was lost for ever. An operator who accepts the loss makes the
/// other one the active: in a new era, so that nobody takes what follows for the old cluster's word.
#[test]
fn a_copy_that_may_lack_something_leads_only_when_the_loss_is_declared() {
    let mut pair = Pair::new(1_000);
    pair.pass(500);
    assert_eq!(pair.roles(), [Role::Paired, Role::Standby]);
    let before = pair.witness.unwrap();
    // The first goes on alone, and is never heard again.
    let alone = Rec { version: before.version + 1, peer: None, ..before };
    pair.witness = Some(alone);
    let mut outputs = Vec::new();
    pair.masters[1].handle(pair.now_ms, Input::Record(Some(alone)), &mut outputs);
    assert_eq!(pair.masters[1].role(), Role::Learner);
    pair.give(1, Input::Promote { accept_loss: false });
    assert_eq!(pair.masters[1].role(), Role::Learner);
    pair.give(1, Input::Promote { accept_loss: true });
    assert_eq!(pair.masters[1].role(), Role::Solo);
    let rec = pair.witness.unwrap();
    assert_eq!((rec.at.era, rec.holder), (before.at.era + 1, pair.masters[1].me()));
}
