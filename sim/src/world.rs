//! The world of one run: what happens, in which order, and what must always hold.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use greenroom_master_core::replica::{
    Alarm, ClaimAnswer, Envelope, Input, Master, Message, Mutant, Nonce, Output, Rec, Replica,
    Role, Settings, Side,
};
use greenroom_protocol::{Epoch, Incarnation};

use crate::disk::{Disk, Write};
use crate::games::{GameEvent, GameServer, Snapshots};
use crate::machine::{CLIENTS, Command, Effect, GAMES, Machine, Piece};
use crate::profile::Profile;
use crate::rng::Rng;
use crate::{Outcome, Tally, Violation};

/// Time after the last fault in which everybody must be served again. Clocks may run at half speed, and a switch may
/// have to wait for a takeover.
const HEALED_US: u64 = 8_000_000;
/// Time for which a run goes on after everybody was served.
const ENDING_US: u64 = 300_000;
/// Events of a run, at most; the longest have a twentieth of it.
const EVENTS_MAX: u64 = 1_000_000;
/// How often a master ticks, by its own clock.
const TICK_MS: u64 = 10;

type Said = Envelope<Command, Piece>;
type In = Input<Command, Piece>;
type Out = Output<Command, Piece, Effect>;

#[derive(Debug)]
enum Event {
    /// An input for a life of a master.
    Input(usize, u64, In),
    Tick(usize, u64),
    DiskDone(usize, u64),
    Wake(usize, u64),
    Restart(usize),
    /// This life ends, and its machine too if so it says.
    Die(usize, u64, bool),
    /// The witness is asked to change its record, or to show it.
    Ask(usize, u64, Option<(u64, Rec)>),
    /// A client does its next thing, or repeats it.
    Client(usize, u64),
    /// A request reaches a master.
    Request(usize, usize, u64),
    /// An answer reaches a client.
    Answer(usize, u64, Option<u64>),
    /// Of a game server.
    Game(usize, GameEvent),
    /// The receiver's acknowledgement reaches a master.
    Received(usize),
    Fault,
    Mend(Mend),
    Heal,
    End,
}

#[derive(Clone, Copy, Debug)]
enum Mend {
    Cut(usize),
    Witness,
    Disk(usize),
    /// An operator gives the witness the record that it should have.
    Record,
}

pub(crate) struct Node {
    life: u64,
    pub(crate) master: Option<Replica<Machine>>,
    pub(crate) disk: Disk,
    disk_until_us: u64,
    disk_full: bool,
    /// Speed of its clock in thousandths.
    rate: u64,
    paused: Option<u64>,
    waiting: VecDeque<In>,
    requests: Vec<(usize, u64)>,
    tick_due_ms: u64,
    pub(crate) checked: u64,
    /// The largest epoch that it was told of.
    pub(crate) told: Epoch,
    /// It dies after so many further outputs.
    dies_after: Option<u64>,
    /// The log's time when it became the active, and its own clock then.
    pub(crate) log_clock: (u64, u64),
    /// When each game server was last heard, and whether that it is not any more was said.
    pub(crate) heard_us: [u64; GAMES],
    pub(crate) is_lost: [bool; GAMES],
    /// Entries that were on its disk when it started.
    pub(crate) recovered: usize,
    /// The last life whose machine lost power, or its disk.
    pub(crate) lost_in: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Client {
    id: u64,
    /// The attempt that is awaited; 0 if none.
    attempt: u64,
    is_read: bool,
    target: usize,
    floor: u64,
    done_us: u64,
}

#[expect(clippy::struct_excessive_bools, reason = "each is a fault that is there or not")]
pub(crate) struct World<'a> {
    now_us: u64,
    order: u64,
    agenda: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    rng: Rng,
    profile: Profile,
    pub(crate) settings: Settings,
    pub(crate) nodes: [Node; 2],
    pub(crate) games: [GameServer; GAMES],
    pub(crate) snapshots: Snapshots,
    pub(crate) mutant: Option<Mutant>,
    /// Messages from the first to the second, and back, vanish.
    cut: [bool; 2],
    pub(crate) witness: Option<Rec>,
    witness_down: bool,
    /// All that the witness ever took.
    records: Vec<Rec>,
    /// What it should have, while it has less.
    truth: Option<Rec>,
    /// What it took meanwhile, of those who knew no better.
    astray: Vec<Nonce>,
    clients: [Client; CLIENTS],
    attempts: u64,
    /// What was read for whom, until it may be told.
    reads: BTreeMap<u64, (usize, u64, u64)>,
    healed_us: Option<u64>,
    is_ending: bool,
    pub(crate) wiped: bool,
    prepare: &'a dyn Fn(&mut Replica<Machine>),
    trace: bool,
    lines: Vec<String>,
    // What is known to be true.
    /// The chain after each committed entry; nothing where only a snapshot led over it.
    pub(crate) golden: Vec<Option<u128>>,
    pub(crate) states: BTreeMap<u64, u128>,
    pub(crate) epochs: BTreeMap<Epoch, Master>,
    pub(crate) answers: BTreeMap<(usize, u64), Option<u64>>,
    pub(crate) adders: Vec<(usize, u64)>,
    floor: u64,
    pub(crate) received: Vec<u64>,
    pub(crate) received_epoch: Epoch,
    violation: Option<Violation>,
    /// The active that died last: when, which, and whether its machine went too.
    died: Option<(u64, usize, bool)>,
    /// When both died at once.
    both_died: Option<u64>,
    gaps: [Vec<u64>; 3],
    pub(crate) tally: Tally,
    scratch: Vec<Out>,
}

pub(crate) fn side(node: usize) -> Side {
    if node == 0 { Side::A } else { Side::B }
}

pub(crate) fn index(side: Side) -> usize {
    match side {
        Side::A => 0,
        Side::B => 1,
    }
}

impl<'a> World<'a> {
    pub(crate) fn new(
        seed: u64,
        profile: Profile,
        mut rng: Rng,
        trace: bool,
        mutant: Option<Mutant>,
        prepare: &'a dyn Fn(&mut Replica<Machine>),
    ) -> Self {
        let settings = Settings {
            batch_max: 8,
            window_max: 64,
            uncommitted_max: 24 + rng.below(48),
            reads_max: 16,
            queue_max: 16,
            log_max: 96,
            slice_max: 2,
            slices_max: 3,
            check_every: 8,
            checkpoint_every: 40 + rng.below(200),
            ..Settings::default()
        };
        let machine = Machine::forgetful(mutant == Some(Mutant::NoDedupe));
        let machine = match mutant {
            Some(Mutant::KeyFreedEarly) => machine.with_grace(4_000),
            Some(Mutant::DeathOfAnother) => machine.rash(true),
            Some(_) | None => machine,
        };
        let mut node = || Node {
            life: 0,
            master: None,
            disk: Disk::of(machine.clone()).forgetful(mutant == Some(Mutant::WholeByLastLife)),
            disk_until_us: 0,
            disk_full: false,
            rate: if profile.skew {
                rng.between(500, 2_001)
            } else if profile.games {
                rng.between(990, 1_011)
            } else {
                1_000
            },
            paused: None,
            waiting: VecDeque::new(),
            requests: Vec::new(),
            tick_due_ms: 0,
            checked: 0,
            told: Epoch::default(),
            dies_after: None,
            log_clock: (0, 0),
            heard_us: [0; GAMES],
            is_lost: [false; GAMES],
            recovered: 0,
            lost_in: 0,
        };
        let nodes = [node(), node()];
        let games = [(); GAMES].map(|()| GameServer::new(rng.between(990, 1_011)));
        let mut world = Self {
            now_us: 0,
            order: 0,
            agenda: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            rng,
            profile,
            settings,
            nodes,
            games,
            snapshots: Snapshots::default(),
            mutant,
            cut: [false; 2],
            witness: None,
            witness_down: false,
            records: Vec::new(),
            truth: None,
            astray: Vec::new(),
            clients: [Client::default(); CLIENTS],
            attempts: 0,
            reads: BTreeMap::new(),
            healed_us: None,
            is_ending: false,
            wiped: false,
            prepare,
            trace,
            lines: Vec::new(),
            golden: Vec::new(),
            states: BTreeMap::new(),
            epochs: BTreeMap::new(),
            answers: BTreeMap::new(),
            adders: Vec::new(),
            floor: 0,
            received: Vec::new(),
            received_epoch: Epoch::default(),
            violation: None,
            died: None,
            both_died: None,
            gaps: Default::default(),
            tally: Tally::default(),
            scratch: Vec::new(),
        };
        world.note(|_| format!("seed {seed}"));
        for node in 0..2 {
            let later = world.rng.below(50_000);
            world.at(later, Event::Restart(node));
        }
        for client in 0..CLIENTS {
            let later = world.rng.below(100_000);
            world.at(later, Event::Client(client, 0));
        }
        if profile.games {
            world.begin_games();
        }
        let first = 300_000 + world.rng.below(profile.fault_us);
        world.at(first, Event::Fault);
        world.at(profile.length_us, Event::Heal);
        world
    }

    pub(crate) fn run(mut self) -> Outcome {
        while self.violation.is_none() {
            let Some(Reverse((at, _, slot))) = self.agenda.pop() else { break };
            let Some(event) = self.events[slot].take() else { break };
            self.free.push(slot);
            self.now_us = at;
            self.tally.events += 1;
            if self.trace {
                self.note(|_| format!("{event:?}"));
            }
            if matches!(event, Event::End) {
                self.end();
                break;
            }
            self.happen(event);
            if self.tally.events > EVENTS_MAX {
                self.fail("L2", "messages beget messages without end".to_owned());
            }
        }
        let Self { tally, violation, gaps, lines, .. } = self;
        Outcome { tally, violation, gaps, trace: lines }
    }

    fn note(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace {
            let line = line(self);
            self.lines.push(format!("{:>9} {line}", self.now_us));
        }
    }

    pub(crate) fn at_game(&mut self, after_us: u64, game: usize, event: GameEvent) {
        self.at(after_us, Event::Game(game, event));
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.now_us
    }

    fn at(&mut self, after_us: u64, event: Event) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[slot] = Some(event);
        self.order += 1;
        self.agenda.push(Reverse((self.now_us + after_us, self.order, slot)));
    }

    pub(crate) fn fail(&mut self, invariant: &'static str, what: String) {
        self.note(|_| format!("{invariant}: {what}"));
        self.violation.get_or_insert(Violation { invariant, what, at_us: self.now_us });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Input(node, life, input) => {
                if self.nodes[node].life == life {
                    self.input(node, input);
                }
            }
            Event::Tick(node, life) => self.tick(node, life),
            Event::DiskDone(node, life) => {
                if self.nodes[node].life != life || self.nodes[node].master.is_none() {
                    return;
                }
                if self.nodes[node].disk_full {
                    self.at(5_000, Event::DiskDone(node, life));
                } else if let Some(input) = self.nodes[node].disk.complete() {
                    self.input(node, input);
                }
            }
            Event::Wake(node, until) => {
                if self.nodes[node].paused == Some(until) {
                    self.wake(node);
                }
            }
            Event::Restart(node) => self.restart(node),
            Event::Die(node, life, power) => {
                if self.nodes[node].life == life {
                    self.crash(node, power);
                }
            }
            Event::Ask(node, life, ask) => self.ask(node, life, ask),
            Event::Client(client, attempt) => self.client(client, attempt),
            Event::Request(node, client, attempt) => self.request(node, client, attempt),
            Event::Answer(client, attempt, value) => self.answer(client, attempt, value),
            Event::Received(node) => {
                let number = self.received.len() as u64;
                if self.nodes[node].master.is_some() {
                    self.command(node, Command::Received(number));
                }
            }
            Event::Game(game, event) => self.game_event(game, event),
            Event::Fault => self.fault(),
            Event::Mend(mend) => match mend {
                Mend::Cut(direction) => self.cut[direction] = false,
                Mend::Witness => self.witness_down = false,
                Mend::Disk(node) => self.nodes[node].disk_full = false,
                Mend::Record => self.mend_record(),
            },
            Event::Heal => self.heal(),
            Event::End => {}
        }
    }

    pub(crate) fn clock_ms(&self, node: usize) -> u64 {
        self.now_us * self.nodes[node].rate / 1_000_000
    }

    fn tick(&mut self, node: usize, life: u64) {
        if self.nodes[node].life != life || self.nodes[node].master.is_none() {
            return;
        }
        if self.nodes[node].paused.is_some() {
            return;
        }
        let now_ms = self.clock_ms(node);
        let late_ms = now_ms.saturating_sub(self.nodes[node].tick_due_ms);
        self.nodes[node].tick_due_ms = now_ms + TICK_MS;
        self.at(TICK_MS * 1_000_000 / self.nodes[node].rate, Event::Tick(node, life));
        self.input(node, Input::Tick { late_ms });
        if self.profile.games {
            self.watch_games(node);
        }
    }

    fn wake(&mut self, node: usize) {
        self.nodes[node].paused = None;
        let life = self.nodes[node].life;
        // Its sockets are read in any order, so that a client may come before the other master.
        for (client, attempt) in std::mem::take(&mut self.nodes[node].requests) {
            self.request(node, client, attempt);
        }
        // The shell drains its sockets before it looks at the clock.
        while let Some(input) = self.nodes[node].waiting.pop_front() {
            self.input(node, input);
        }
        self.tick(node, life);
    }

    fn restart(&mut self, node: usize) {
        if self.nodes[node].master.is_some() {
            return;
        }
        let is_its = |nonce: &Nonce| nonce.by.side == side(node);
        if self.truth.is_some() && self.astray.iter().any(is_its) {
            // It won by the old record, and has to stay down until the witness is repaired.
            self.at(100_000, Event::Restart(node));
            return;
        }
        let now_ms = self.clock_ms(node);
        let this = &mut self.nodes[node];
        this.life += 1;
        this.paused = None;
        this.waiting.clear();
        this.requests.clear();
        this.disk_until_us = self.now_us;
        this.checked = 0;
        this.told = Epoch::default();
        this.dies_after = None;
        this.heard_us = [self.now_us; GAMES];
        this.is_lost = [false; GAMES];
        this.tick_due_ms = now_ms;
        let me = Master { side: side(node), incarnation: Incarnation(this.life), copy: 0 };
        let (state, recovered) = this.disk.recover(me.incarnation);
        this.recovered = recovered.entries.len();
        let mut master = Replica::new(self.settings, me, state, recovered, now_ms);
        (self.prepare)(&mut master);
        let life = this.life;
        this.master = Some(master);
        self.at(0, Event::Tick(node, life));
    }

    fn crash(&mut self, node: usize, power: bool) {
        let Some(master) = self.nodes[node].master.take() else { return };
        if matches!(master.role(), Role::Paired | Role::Solo)
            && self.record().is_some_and(|rec| rec.holder == master.me())
        {
            self.died = Some((self.now_us, node, power));
        }
        self.tally.crashes += 1;
        self.note(|_| {
            format!("master {node} dies{}", if power { ", its machine too" } else { "" })
        });
        let this = &mut self.nodes[node];
        this.disk.crash(&mut self.rng, power);
        if power {
            this.lost_in = this.life;
        }
        this.paused = None;
        let life = this.life;
        let other = 1 - node;
        // Whoever is linked to it hears the reset, unless the machine went with it or the link is cut.
        if !power && !self.cut[node] && !self.cut[other] {
            let after = 50 + self.rng.below(2_000);
            let gone = Input::PeerGone(Incarnation(life));
            let at = self.nodes[other].life;
            self.at(after, Event::Input(other, at, gone));
        }
        let after = self.profile.restart_us / 2 + self.rng.below(self.profile.restart_us);
        self.at(after, Event::Restart(node));
    }

    fn input(&mut self, node: usize, input: In) {
        if self.nodes[node].master.is_none() {
            return;
        }
        if self.nodes[node].paused.is_some() {
            if self.nodes[node].waiting.len() < 10_000 {
                self.nodes[node].waiting.push_back(input);
            }
            return;
        }
        if let Input::Message(said) = &input {
            self.nodes[node].told = self.nodes[node].told.max(said.at);
        }
        let now_ms = self.clock_ms(node);
        let mut outputs = std::mem::take(&mut self.scratch);
        if let Some(master) = &mut self.nodes[node].master {
            master.handle(now_ms, input, &mut outputs);
        }
        if self.is_led_astray(node) {
            outputs.clear();
        }
        self.look_at(node);
        for output in outputs.drain(..) {
            if let Some(left) = self.nodes[node].dies_after {
                self.nodes[node].dies_after = left.checked_sub(1);
                if left == 0 {
                    self.crash(node, false);
                    break;
                }
            }
            self.perform(node, output);
        }
        self.scratch = outputs;
    }

    fn perform(&mut self, node: usize, output: Out) {
        if self.trace && !matches!(output, Output::Send(_)) {
            self.note(|_| format!("  master {node}: {output:?}"));
        }
        match output {
            Output::Send(envelope) => self.send(node, envelope),
            Output::Write(entries) => self.write(node, Write::Entries(entries)),
            Output::Sync(lsn) => self.write(node, Write::Sync(lsn)),
            Output::WriteIntents(intents) => self.write(node, Write::Intents(intents)),
            Output::CheckpointBegin { at, whose } => self.write(node, Write::Begin(at, whose)),
            Output::CheckpointPieces(pieces) => self.write(node, Write::Pieces(pieces)),
            Output::CheckpointEnd => self.write(node, Write::End),
            Output::Claim { expect, rec } => self.question(node, Some((expect, rec))),
            Output::ReadRecord => self.question(node, None),
            Output::Release { lsn, effects } => self.release(node, lsn, &effects),
            Output::ReadReady(read) => {
                if let Some((client, attempt, value)) = self.reads.remove(&read) {
                    self.reply(client, attempt, Some(value));
                }
            }
            Output::Refused(..) | Output::ReadRefused(..) => self.tally.refused += 1,
            Output::Role(_) => {}
            Output::NewEpoch(at) => {
                self.new_epoch(node, at);
                if self.profile.games {
                    self.tell_games(node, at);
                }
            }
            Output::Alarm(alarm) => match alarm {
                Alarm::Diverged(lsn) => {
                    self.fail("I8", format!("the states differ after entry {lsn}"));
                }
                Alarm::BadSnapshot => self.fail("I8", "a snapshot does not restore".to_owned()),
                Alarm::Forked => self.fail("R12", "two logs of one record differ".to_owned()),
                Alarm::OtherVersion(_) | Alarm::WitnessBehind | Alarm::LossDeclared => {}
            },
        }
    }

    fn write(&mut self, node: usize, write: Write) {
        if self.nodes[node].disk.write(write) {
            let is_slow = self.rng.permille(self.profile.slow_disk);
            let spent = 100 + self.rng.below(if is_slow { 300_000 } else { 2_000 });
            let this = &mut self.nodes[node];
            this.disk_until_us = this.disk_until_us.max(self.now_us) + spent;
            let (after, life) = (this.disk_until_us - self.now_us, this.life);
            self.at(after, Event::DiskDone(node, life));
        }
    }

    pub(crate) fn delay(&mut self) -> u64 {
        let late = if self.rng.permille(self.profile.late) { 60_000 } else { 0 };
        60 + self.rng.below(self.profile.delay_us) + self.rng.below(late + 1)
    }

    pub(crate) fn is_lost(&mut self) -> bool {
        self.healed_us.is_none() && self.rng.permille(self.profile.loss)
    }

    fn send(&mut self, node: usize, envelope: Said) {
        if let Message::Ack { upto, .. } = envelope.body {
            self.check_acknowledged(node, upto.lsn);
        }
        let other = 1 - node;
        let copies = 1 + u64::from(self.rng.permille(self.profile.doubled));
        for copy in 0..copies {
            if self.cut[node] || self.is_lost() {
                continue;
            }
            let after = self.delay();
            let life = self.nodes[other].life;
            if copy + 1 == copies {
                self.at(after, Event::Input(other, life, Input::Message(envelope)));
                return;
            }
            self.at(after, Event::Input(other, life, Input::Message(envelope.clone())));
        }
    }

    fn question(&mut self, node: usize, ask: Option<(u64, Rec)>) {
        let life = self.nodes[node].life;
        let is_lossy = self.healed_us.is_none() && self.rng.permille(self.profile.witness_loss);
        // What is lost on the way may still come, much later.
        let after =
            if is_lossy { 20_000 + self.rng.below(800_000) } else { 100 + self.rng.below(1_500) };
        self.at(after, Event::Ask(node, life, ask));
        if is_lossy
            && let Some((_, rec)) = ask
            && self.rng.permille(500)
        {
            self.witness_says(node, life, Input::Claimed(rec.nonce, ClaimAnswer::Unknown));
        }
    }

    fn witness_says(&mut self, node: usize, life: u64, input: In) {
        let after = 100 + self.rng.below(1_500);
        self.at(after, Event::Input(node, life, input));
    }

    /// A record that names a copy which the one before it does not: both masters were started anew.
    fn look_at_restart(&mut self, rec: Rec) {
        let Some(before) = self.witness else { return };
        let was_there = [Some(before.holder), before.peer].contains(&Some(rec.holder));
        if before.peer.is_none() || was_there {
            return;
        }
        self.tally.cold += u64::from(rec.peer.is_none());
        if before.at.era < rec.at.era {
            self.tally.declared += 1;
            let rewound = self.declare_loss(before, rec);
            self.rewind_clients(&rewound);
        }
    }

    /// What clients were told in the era before may not be so any more: they ask again from what is known of them, as
    /// session servers report it.
    fn rewind_clients(&mut self, state: &Machine) {
        self.floor = self.floor.min(state.value());
        self.reads.clear();
        for client in 0..CLIENTS {
            let this = &mut self.clients[client];
            let next = state.decided(client) + u64::from(this.attempt != 0 && !this.is_read);
            this.id = this.id.min(next);
            this.floor = this.floor.min(state.value());
            if this.attempt != 0 {
                self.attempts += 1;
                this.attempt = self.attempts;
                let attempt = this.attempt;
                let after = 1_000 + self.rng.below(60_000);
                self.at(after, Event::Client(client, attempt));
            }
        }
    }

    fn ask(&mut self, node: usize, life: u64, ask: Option<(u64, Rec)>) {
        if self.witness_down {
            return;
        }
        let answer = match ask {
            None => Input::Record(self.witness),
            Some((expect, rec)) => {
                let there = self.witness.map_or(0, |rec| rec.version);
                let is_astray = self.truth.is_some_and(|truth| expect < truth.version);
                let answer = if there == expect && is_astray {
                    self.witness = Some(rec);
                    self.astray.push(rec.nonce);
                    ClaimAnswer::Won
                } else if there == expect {
                    self.look_at_restart(rec);
                    self.witness = Some(rec);
                    self.truth = None;
                    self.records.push(rec);
                    self.tally.records += 1;
                    self.check_record(rec);
                    ClaimAnswer::Won
                } else {
                    ClaimAnswer::Lost(self.witness)
                };
                Input::Claimed(rec.nonce, answer)
            }
        };
        let is_lossy = self.healed_us.is_none() && self.rng.permille(self.profile.witness_loss);
        if !is_lossy {
            self.witness_says(node, life, answer);
        } else if self.rng.permille(500) {
            // Late, when it says what was and is no more.
            let after = 20_000 + self.rng.below(800_000);
            self.at(after, Event::Input(node, life, answer));
        }
    }

    fn client(&mut self, client: usize, attempt: u64) {
        let this = self.clients[client];
        if this.attempt != attempt {
            return;
        }
        if attempt == 0 {
            let is_read = self.rng.permille(350);
            self.clients[client].is_read = is_read;
            self.clients[client].id += u64::from(!is_read);
            self.clients[client].floor = self.floor;
        } else if self.rng.permille(700) {
            self.clients[client].target = 1 - this.target;
        }
        if self.clients[client].is_read {
            self.clients[client].floor = self.floor;
        }
        self.attempts += 1;
        self.clients[client].attempt = self.attempts;
        let (target, attempt) = (self.clients[client].target, self.attempts);
        if !self.is_lost() {
            let after = self.delay();
            self.at(after, Event::Request(target, client, attempt));
        }
        let patience = 30_000 + self.rng.below(60_000) + 4 * self.profile.delay_us;
        self.at(patience, Event::Client(client, attempt));
    }

    fn request(&mut self, node: usize, client: usize, attempt: u64) {
        let this = self.clients[client];
        if self.nodes[node].master.is_none() {
            return;
        }
        if this.attempt != attempt {
            return;
        }
        if self.nodes[node].paused.is_some() {
            self.nodes[node].requests.push((client, attempt));
            return;
        }
        let Some(master) = &self.nodes[node].master else { return };
        if this.is_read {
            let value = master.state().value();
            self.reads.insert(attempt, (client, attempt, value));
            self.input(node, Input::Read(attempt));
            while self.reads.len() > 256 {
                self.reads.pop_first();
            }
        } else {
            self.command(node, Command::Add { client, id: this.id });
        }
    }

    pub(crate) fn command(&mut self, node: usize, command: Command) {
        let seed = self.rng.next();
        // The log's time goes on where it was, by the clock of who decides.
        let (log_ms, then_ms) = self.nodes[node].log_clock;
        let wall_ms = log_ms + (self.clock_ms(node) - then_ms);
        self.input(node, Input::Commands(wall_ms, vec![(seed, command)]));
    }

    fn reply(&mut self, client: usize, attempt: u64, value: Option<u64>) {
        if !self.is_lost() {
            let after = self.delay();
            self.at(after, Event::Answer(client, attempt, value));
        }
    }

    fn answer(&mut self, client: usize, attempt: u64, value: Option<u64>) {
        let this = self.clients[client];
        if this.attempt != attempt {
            return;
        }
        if let Some(value) = value {
            // The counter grows by one with each request, so that it tells which requests came before.
            if value < this.floor {
                self.fail("I7", format!("{value} is answered after {} was seen", this.floor));
            }
            if value > self.clients.iter().map(|client| client.id).sum() {
                self.fail("I7", format!("{value} is answered, and fewer were asked for"));
            }
            self.floor = self.floor.max(value + u64::from(!this.is_read));
        }
        self.tally.answered += 1;
        self.clients[client].attempt = 0;
        self.clients[client].done_us = self.now_us;
        // Nobody waits any more: what is late may still come, and then it is enough.
        let healed_us = self.healed_at();
        if !self.is_ending && self.clients().iter().all(|done_us| *done_us > healed_us) {
            self.is_ending = true;
            self.at(ENDING_US, Event::End);
        }
        let after = 200 + self.rng.below(2 * self.profile.think_us);
        self.at(after, Event::Client(client, 0));
    }

    fn fault(&mut self) {
        if self.healed_us.is_some() {
            return;
        }
        let profile = self.profile;
        let kinds = [
            profile.crash,
            profile.pause,
            profile.cut,
            profile.witness,
            profile.full,
            profile.wipe,
            profile.switch,
            profile.back,
            profile.both,
        ];
        let mut draw = self.rng.below(kinds.iter().sum());
        let kind = kinds.iter().position(|share| {
            let is_it = draw < *share;
            draw = draw.saturating_sub(*share);
            is_it
        });
        let node = usize::from(self.rng.permille(500));
        let length = if self.rng.permille(300) { 1_500_000 } else { 300_000 };
        let length = 1_000 + self.rng.below(length);
        let is_cruel = self.rng.permille(profile.cruel);
        match kind {
            Some(0) if is_cruel || self.survives(node) => {
                // The model of game servers knows no second era.
                let may_lose = !profile.games || self.survives(node);
                let power = self.rng.permille(profile.power) && may_lose;
                if !power && self.nodes[node].master.is_some() && self.rng.permille(500) {
                    // Between two things that it was about to do.
                    self.nodes[node].dies_after = Some(self.rng.below(12));
                } else {
                    self.crash(node, power);
                }
                if is_cruel && self.rng.permille(300) {
                    self.crash(1 - node, power && !profile.games);
                }
            }
            Some(1) if self.nodes[node].master.is_some() => {
                self.nodes[node].paused = Some(self.now_us + length);
                self.at(length, Event::Wake(node, self.now_us + length));
            }
            Some(2) => {
                self.cut[node] = true;
                self.at(length, Event::Mend(Mend::Cut(node)));
                if self.rng.permille(400) {
                    self.cut[1 - node] = true;
                    self.at(length, Event::Mend(Mend::Cut(1 - node)));
                }
            }
            Some(3) => {
                self.witness_down = true;
                self.at(length, Event::Mend(Mend::Witness));
            }
            Some(4) => {
                self.nodes[node].disk_full = true;
                self.at(length, Event::Mend(Mend::Disk(node)));
                // The witness may have its file on the same disk.
                if self.rng.permille(300) {
                    self.witness_down = true;
                    self.at(length, Event::Mend(Mend::Witness));
                }
            }
            Some(5) if is_cruel || self.survives(node) => {
                self.crash(node, true);
                if self.nodes[node].master.is_none() {
                    self.nodes[node].disk.lose();
                    self.nodes[node].lost_in = self.nodes[node].life;
                    self.wiped = true;
                }
            }
            Some(6) => self.input(node, Input::Switchover),
            Some(7) => self.go_back(length),
            Some(8) => self.kill_both(node),
            Some(_) | None => {}
        }
        let next = profile.fault_us / 4 + self.rng.below(profile.fault_us * 3 / 2);
        self.at(next, Event::Fault);
    }

    /// Both masters die at once, or nearly: their processes, or the machines of either.
    fn kill_both(&mut self, first: usize) {
        let share = self.profile.power;
        let all = self.rng.permille(share);
        for node in [first, 1 - first] {
            let power = if self.rng.permille(700) { all } else { self.rng.permille(share) };
            let life = self.nodes[node].life;
            if !power && self.nodes[node].master.is_some() && self.rng.permille(500) {
                self.nodes[node].dies_after = Some(self.rng.below(4));
            } else if self.rng.permille(500) {
                let after = self.rng.below(4_000);
                self.at(after, Event::Die(node, life, power));
            } else {
                self.crash(node, power);
            }
        }
        self.both_died = Some(self.now_us);
    }

    /// The witness goes back in time, or loses what it had.
    fn go_back(&mut self, length_us: u64) {
        if self.truth.is_some() || self.witness.is_none() {
            return;
        }
        self.truth = self.witness;
        let place = usize::try_from(self.rng.below(self.records.len() as u64)).unwrap_or(0);
        // Before the first there was none.
        self.witness = place.checked_sub(1).map(|place| self.records[place]);
        self.note(|world| format!("the witness goes back to {:?}", world.witness));
        self.at(length_us, Event::Mend(Mend::Record));
    }

    /// An operator gives the witness its record back, and ends whoever believed another one.
    fn mend_record(&mut self) {
        let Some(truth) = self.truth.take() else { return };
        self.witness = Some(truth);
        for node in 0..2 {
            let rec = self.nodes[node].master.as_ref().and_then(Replica::rec);
            if rec.is_some_and(|rec| self.astray.contains(&rec.nonce)) {
                self.crash(node, false);
            }
        }
    }

    /// What the witness has, or should have.
    pub(crate) fn record(&self) -> Option<Rec> {
        self.truth.or(self.witness)
    }

    /// Whether a master decides by a record that the witness would not have taken, had it not gone back. Servers
    /// refuse it, since none of its epochs is above one that they have seen; so it ends.
    fn is_led_astray(&mut self, node: usize) -> bool {
        if self.astray.is_empty() {
            return false;
        }
        let Some(master) = &self.nodes[node].master else { return false };
        let Some(rec) = master.rec().filter(|rec| self.astray.contains(&rec.nonce)) else {
            return false;
        };
        let role = master.role();
        if rec.holder != master.me() {
            return false;
        }
        let at = self.record().map(|rec| rec.at).unwrap_or_default();
        if rec.at > at {
            self.fail("R11", format!("{} leads astray, past {at}", rec.at));
        }
        // An epoch that is as large may be its own, which the other master has read.
        let told = self.nodes[node].told;
        if rec.at < told && role != Role::Blocked {
            self.fail("R11", format!("who was told of {told} decides in {}", rec.at));
        }
        self.crash(node, false);
        true
    }

    /// Whether what is committed is still somewhere if this master dies.
    fn survives(&self, node: usize) -> bool {
        let Some(rec) = self.record() else { return true };
        let is_there = |member: Master| {
            let at = index(member.side);
            at != node && self.nodes[at].master.as_ref().is_some_and(|r| r.me() == member)
        };
        match rec.peer {
            Some(peer) => is_there(rec.holder) || is_there(peer),
            None => true,
        }
    }

    fn heal(&mut self) {
        self.healed_us = Some(self.now_us);
        self.cut = [false; 2];
        self.witness_down = false;
        self.mend_record();
        for node in 0..2 {
            self.nodes[node].disk_full = false;
            self.nodes[node].rate = 1_000.max(self.nodes[node].rate);
            if self.nodes[node].paused.is_some() {
                self.wake(node);
            }
            self.restart(node);
        }
        for game in 0..GAMES {
            self.games[game].heal();
        }
        self.at(HEALED_US, Event::End);
    }

    pub(crate) fn rng_below(&mut self, end: u64) -> u64 {
        self.rng.below(end)
    }

    pub(crate) fn acknowledge_later(&mut self, after_us: u64, node: usize) {
        self.at(after_us, Event::Received(node));
    }

    /// A master acknowledges a write.
    pub(crate) fn is_served_by(&mut self, node: usize) {
        if let Some((at_us, dead, power)) = self.died.take()
            && dead != node
        {
            self.gaps[usize::from(power)].push(self.now_us - at_us);
        }
        if let Some(at_us) = self.both_died.take() {
            self.gaps[2].push(self.now_us - at_us);
        }
    }

    /// Answers whichever attempt of the client's waits for this request.
    pub(crate) fn reply_to(&mut self, client: usize, id: u64, before: Option<u64>) {
        let this = self.clients[client];
        if this.attempt != 0 && !this.is_read && this.id == id {
            self.reply(client, this.attempt, before);
        }
    }

    pub(crate) fn healed_at(&self) -> u64 {
        self.healed_us.unwrap_or(u64::MAX)
    }

    /// When each client was last answered.
    pub(crate) fn clients(&self) -> [u64; CLIENTS] {
        self.clients.map(|client| client.done_us)
    }
}
