//! The exhaustive check: every order of everything that can happen to two masters, up to a few faults.
//!
//! It goes through the states breadth first, so that what it finds is as short as can be, and looks at each. Where two
//! orders lead to the same state it goes on from one of them only. Time is a choice like the others: a tick at which
//! the short time-outs have run out, or one at which all of them have.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::rc::Rc;

use greenroom_master_core::replica::{
    Alarm, Apply, ClaimAnswer, Envelope, Input, Master, Message, Mutant, Output, Position, Rec,
    Replica, Role, Settings,
};
use greenroom_protocol::{Epoch, Incarnation};

use crate::Violation;
use crate::disk::{Disk, Write};
use crate::machine::{Command, Effect, Machine, Piece};
use crate::rng::mix;
use crate::world::{index, side};

type In = Input<Command, Piece>;
type Out = Output<Command, Piece, Effect>;
type Said = Envelope<Command, Piece>;

/// Requests, at most.
const REQUESTS_MAX: usize = 3;

/// How much of everything there is. A number more means many times the states.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Different requests, at most 3.
    pub requests: usize,
    /// How often one of them is sent, in all: the second time it is a repetition.
    pub sends: u8,
    /// Reads.
    pub reads: u8,
    /// Faults, of any kind: a death, a loss of power, a silence, a cut, a lost answer of the witness.
    pub faults: u8,
    /// Ticks of each master at which the short time-outs have run out.
    pub ticks: u8,
    /// Wishes for a switchover.
    pub switches: u8,
    /// Begins with two masters that have never run, and not with a pair.
    pub from_nothing: bool,
    /// Once all faults are spent, disks and what the witness shows are not late any more.
    pub eager: bool,
    /// Gives up after so many states.
    pub states_max: usize,
}

impl Limits {
    /// What the tests go through.
    pub const SMALL: Self = Self {
        requests: 2,
        sends: 2,
        reads: 0,
        faults: 2,
        ticks: 0,
        switches: 0,
        from_nothing: false,
        eager: true,
        states_max: 20_000_000,
    };
}

/// What the check has seen.
#[derive(Clone, Debug)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Steps from one to another.
    pub steps: u64,
    /// Steps from the first to the furthest.
    pub depth: u32,
    /// Everything within the limits was seen.
    pub is_complete: bool,
    /// What must not be, and the steps to it.
    pub violation: Option<(Violation, Vec<String>)>,
}

/// Goes through all states; `plant` puts a bug into each master before it starts.
pub fn explore(
    limits: &Limits,
    mutant: Option<Mutant>,
    plant: &dyn Fn(&mut Replica<Machine>),
) -> Explored {
    let world = Explorer { limits: *limits, settings: settings(), plant };
    world.run(mutant)
}

/// Small numbers, so that windows, gaps, slices and checkpoints show in short logs.
fn settings() -> Settings {
    Settings {
        founding_era: 1,
        beacon_ms: SHORT_MS,
        witness_ms: SHORT_MS,
        sync_ms: SHORT_MS,
        solo_after_ms: LONG_MS,
        takeover_after_ms: LONG_MS,
        late_ms: u64::MAX,
        batch_max: 2,
        window_max: 4,
        uncommitted_max: 8,
        reads_max: 2,
        queue_max: 2,
        log_max: 8,
        slice_max: 64,
        slices_max: 2,
        check_every: 1,
        checkpoint_every: u64::MAX,
    }
}

/// A tick after which the short time-outs have run out.
const SHORT_MS: u64 = 10;
/// A tick after which all have; many short ones are less.
const LONG_MS: u64 = 1_000;

/// What can happen next. Numbers are those of a master, of a question, of an answer or of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Deliver(usize),
    Ask(usize),
    Answer(usize),
    DiskDone(usize),
    Tick(usize),
    Send(usize, usize),
    Read(usize),
    Switch(usize),
    Restart(usize),
    // Faults.
    Silence(usize),
    Die(usize),
    LosePower(usize, usize),
    Cut(usize),
    /// The witness did what it was asked, and its answer is lost.
    LoseAnswer(usize),
    /// The question is on its way for so long that its author is told that nobody knows.
    Doubt(usize),
}

#[derive(Clone, Debug)]
enum Word {
    Said(Rc<Said>),
    Gone(Incarnation),
}

#[derive(Clone, Debug)]
struct Question {
    node: usize,
    life: u64,
    ask: Option<(u64, Rec)>,
    is_doubted: bool,
}

#[derive(Clone, Debug)]
struct Node {
    life: u64,
    master: Option<Replica<Machine>>,
    disk: Disk,
    now_ms: u64,
    told: Epoch,
    ticks: u8,
}

#[derive(Clone, Debug)]
struct State {
    /// Shared with the states from which nothing happened to them.
    nodes: [Rc<Node>; 2],
    /// To each master, in order.
    links: [VecDeque<Word>; 2],
    questions: Vec<Question>,
    answers: Vec<(usize, u64, In)>,
    witness: Option<Rec>,
    faults: u8,
    sends: u8,
    reads: u8,
    switches: u8,
    /// Requests that were sent at least once.
    sent: usize,
    /// What was read, and what had been answered before.
    reading: Option<(u64, u64)>,
    // What is known to be true.
    golden: Vec<Option<u128>>,
    epochs: Vec<(Epoch, Master)>,
    answered: [Option<u64>; REQUESTS_MAX],
    received: Vec<u64>,
    received_at: Epoch,
}

struct Explorer<'a> {
    limits: Limits,
    settings: Settings,
    plant: &'a dyn Fn(&mut Replica<Machine>),
}

/// Something must not be.
type Bad = (&'static str, String);

impl Explorer<'_> {
    fn run(&self, mutant: Option<Mutant>) -> Explored {
        let mut first = State::new(&self.limits, mutant);
        if !self.limits.from_nothing
            && let Err(bad) = self.pair(&mut first)
        {
            return Explored::broken(bad, 0, Vec::new());
        }
        let mut seen: HashSet<u128, BuildHasherDefault<Known>> = HashSet::default();
        // How each state was reached.
        let mut ways: Vec<(u32, Step)> = vec![(0, Step::Tick(0))];
        seen.insert(first.fingerprint());
        let mut now = vec![(0_u32, first)];
        let mut explored =
            Explored { states: 1, steps: 0, depth: 0, is_complete: true, violation: None };
        let mut steps = Vec::new();
        while !now.is_empty() {
            let mut next = Vec::new();
            for (number, state) in now {
                steps.clear();
                state.steps(&self.limits, &mut steps);
                for step in &steps {
                    let mut state = state.clone();
                    explored.steps += 1;
                    if let Err((invariant, what)) = self.step(&mut state, *step) {
                        let way = self.way(&ways, number, *step);
                        let violation = Violation { invariant, what, at_us: 0 };
                        explored.violation = Some((violation, way));
                        explored.is_complete = false;
                        explored.states = seen.len();
                        return explored;
                    }
                    if seen.insert(state.fingerprint()) {
                        let number_next = u32::try_from(ways.len()).unwrap_or(u32::MAX);
                        ways.push((number, *step));
                        next.push((number_next, state));
                    }
                }
                if seen.len() > self.limits.states_max {
                    explored.states = seen.len();
                    explored.is_complete = false;
                    return explored;
                }
            }
            explored.depth += u32::from(!next.is_empty());
            now = next;
        }
        explored.states = seen.len();
        explored
    }

    /// The steps that lead to a state, and one more.
    fn way(&self, ways: &[(u32, Step)], number: u32, last: Step) -> Vec<String> {
        let mut steps = vec![last];
        let mut at = number;
        while at != 0 {
            let (before, step) = ways[at as usize];
            steps.push(step);
            at = before;
        }
        steps.iter().rev().map(|step| format!("{step:?}")).collect()
    }

    /// Two masters start, and nothing goes wrong.
    fn pair(&self, state: &mut State) -> Result<(), Bad> {
        self.step(state, Step::Restart(0))?;
        self.settle(state)?;
        // An empty log has nothing by which two could be equal.
        self.input(state, 0, Input::Commands(0, vec![(0, Command::Received(0))]))?;
        self.settle(state)?;
        self.step(state, Step::Restart(1))?;
        for _ in 0..4 {
            self.settle(state)?;
            for node in 0..2 {
                self.tick(state, node, SHORT_MS)?;
            }
        }
        self.settle(state)?;
        let roles = [0, 1].map(|n| state.nodes[n].master.as_ref().map(Replica::role));
        if roles == [Some(Role::Paired), Some(Role::Standby)] {
            Ok(())
        } else {
            Err(("start", format!("no pair, but {roles:?}")))
        }
    }

    /// Whatever is under way arrives.
    fn settle(&self, state: &mut State) -> Result<(), Bad> {
        for _ in 0..1_000 {
            let step = if !state.questions.is_empty() {
                Step::Ask(0)
            } else if !state.answers.is_empty() {
                Step::Answer(0)
            } else if let Some(node) = (0..2).find(|n| !state.links[*n].is_empty()) {
                Step::Deliver(node)
            } else if let Some(node) = (0..2).find(|n| state.nodes[*n].disk.is_busy()) {
                Step::DiskDone(node)
            } else {
                return Ok(());
            };
            self.step(state, step)?;
        }
        Err(("L2", "messages beget messages without end".to_owned()))
    }

    fn step(&self, state: &mut State, step: Step) -> Result<(), Bad> {
        match step {
            Step::Deliver(node) => {
                let input = match state.links[node].pop_front() {
                    Some(Word::Said(said)) => {
                        let told = &mut state.node(node).told;
                        *told = said.at.max(*told);
                        Input::Message(Rc::unwrap_or_clone(said))
                    }
                    Some(Word::Gone(incarnation)) => Input::PeerGone(incarnation),
                    None => return Ok(()),
                };
                self.input(state, node, input)
            }
            Step::Ask(number) => {
                let question = state.questions.remove(number);
                self.ask(state, &question)
            }
            Step::Answer(number) => {
                let (node, life, input) = state.answers.remove(number);
                if state.nodes[node].life == life {
                    return self.input(state, node, input);
                }
                Ok(())
            }
            Step::DiskDone(node) => match state.node(node).disk.complete() {
                Some(input) => self.input(state, node, input),
                None => Ok(()),
            },
            Step::Tick(node) => {
                state.node(node).ticks -= 1;
                self.tick(state, node, SHORT_MS)
            }
            Step::Send(node, request) => {
                state.sends -= 1;
                state.sent = state.sent.max(request + 1);
                let command = Command::Add { client: request, id: 1 };
                let input = Input::Commands(0, vec![(request as u64, command)]);
                self.input(state, node, input)
            }
            Step::Read(node) => {
                state.reads -= 1;
                let Some(master) = &state.nodes[node].master else { return Ok(()) };
                let floor = state.answered.iter().flatten().map(|before| before + 1).max();
                state.reading = Some((master.state().value(), floor.unwrap_or(0)));
                self.input(state, node, Input::Read(u64::from(state.reads)))
            }
            Step::Switch(node) => {
                state.switches -= 1;
                self.input(state, node, Input::Switchover)
            }
            Step::Restart(node) => self.restart(state, node),
            Step::Silence(node) => {
                state.faults -= 1;
                self.tick(state, node, LONG_MS)
            }
            Step::Die(node) => {
                state.faults -= 1;
                let waiting = state.nodes[node].disk.waiting();
                let life = state.nodes[node].life;
                state.end(node, waiting, false);
                if state.nodes[1 - node].master.is_some() {
                    state.links[1 - node].push_back(Word::Gone(Incarnation(life)));
                }
                Ok(())
            }
            Step::LosePower(node, kept) => {
                state.faults -= 1;
                state.end(node, kept, true);
                Ok(())
            }
            Step::Cut(node) => {
                state.faults -= 1;
                state.links[node].clear();
                Ok(())
            }
            Step::LoseAnswer(number) => {
                state.faults -= 1;
                if let Input::Claimed(_, answer) = &mut state.answers[number].2 {
                    *answer = ClaimAnswer::Unknown;
                }
                Ok(())
            }
            Step::Doubt(number) => {
                state.faults -= 1;
                let question = &mut state.questions[number];
                question.is_doubted = true;
                let (node, life) = (question.node, question.life);
                if let Some((_, rec)) = question.ask {
                    let input = Input::Claimed(rec.nonce, ClaimAnswer::Unknown);
                    state.answers.push((node, life, input));
                }
                Ok(())
            }
        }
    }

    fn restart(&self, state: &mut State, node: usize) -> Result<(), Bad> {
        let this = state.node(node);
        this.life += 1;
        this.told = Epoch::default();
        this.now_ms = LONG_MS;
        let me = Master { side: side(node), incarnation: Incarnation(this.life), copy: 0 };
        let (machine, recovered) = this.disk.recover(me.incarnation);
        let mut master = Replica::new(self.settings, me, machine, recovered, this.now_ms);
        (self.plant)(&mut master);
        this.master = Some(master);
        self.tick(state, node, SHORT_MS)
    }

    fn tick(&self, state: &mut State, node: usize, later_ms: u64) -> Result<(), Bad> {
        state.node(node).now_ms += later_ms;
        self.input(state, node, Input::Tick { late_ms: 0 })
    }

    fn ask(&self, state: &mut State, question: &Question) -> Result<(), Bad> {
        let answer = match question.ask {
            None => Input::Record(state.witness),
            Some((expect, rec)) => {
                let there = state.witness.map_or(0, |rec| rec.version);
                let answer = if there == expect {
                    if state.witness.is_some_and(|before| before.at.era < rec.at.era) {
                        state.declare_loss(rec)?;
                    }
                    state.witness = Some(rec);
                    state.check_record(rec)?;
                    ClaimAnswer::Won
                } else {
                    ClaimAnswer::Lost(state.witness)
                };
                Input::Claimed(rec.nonce, answer)
            }
        };
        let Question { node, life, is_doubted, .. } = *question;
        if !is_doubted && state.nodes[node].life == life && state.nodes[node].master.is_some() {
            state.answers.push((node, life, answer));
        }
        Ok(())
    }

    fn input(&self, state: &mut State, node: usize, input: In) -> Result<(), Bad> {
        let this = state.node(node);
        let Some(master) = &mut this.master else { return Ok(()) };
        let mut outputs = Vec::new();
        master.handle(this.now_ms, input, &mut outputs);
        state.look_at(node)?;
        for output in outputs {
            state.perform(node, output)?;
        }
        Ok(())
    }
}

impl State {
    fn new(limits: &Limits, mutant: Option<Mutant>) -> Self {
        let is_forgetful = mutant == Some(Mutant::NoDedupe);
        let node = || Node {
            life: 0,
            master: None,
            disk: Disk::of(Machine::forgetful(is_forgetful))
                .forgetful(mutant == Some(Mutant::WholeByLastLife)),
            now_ms: 0,
            told: Epoch::default(),
            ticks: limits.ticks,
        };
        Self {
            nodes: [Rc::new(node()), Rc::new(node())],
            links: [VecDeque::new(), VecDeque::new()],
            questions: Vec::new(),
            answers: Vec::new(),
            witness: None,
            faults: limits.faults,
            sends: limits.sends,
            reads: limits.reads,
            switches: limits.switches,
            sent: 0,
            reading: None,
            golden: Vec::new(),
            epochs: Vec::new(),
            answered: [None; REQUESTS_MAX],
            received: Vec::new(),
            received_at: Epoch::default(),
        }
    }

    /// What happens before anything else once all faults are spent: what nobody can disturb any more is not late.
    /// Nearly all states are of that kind, so this makes the check many times as fast.
    fn urgent(&self, limits: &Limits) -> Option<Step> {
        if self.faults > 0 || !limits.eager {
            return None;
        }
        let answer = |(_, _, answer): &(usize, u64, In)| matches!(answer, Input::Record(_));
        if let Some(node) = (0..2).find(|n| self.master(*n).is_none()) {
            Some(Step::Restart(node))
        } else if let Some(node) = (0..2).find(|n| self.nodes[*n].disk.is_busy()) {
            Some(Step::DiskDone(node))
        } else if let Some(number) = self.questions.iter().position(|q| q.ask.is_none()) {
            Some(Step::Ask(number))
        } else {
            self.answers.iter().position(answer).map(Step::Answer)
        }
    }

    /// What can happen next.
    fn steps(&self, limits: &Limits, steps: &mut Vec<Step>) {
        if let Some(step) = self.urgent(limits) {
            steps.push(step);
            return;
        }
        for node in 0..2 {
            let this = &self.nodes[node];
            let Some(master) = &this.master else {
                steps.push(Step::Restart(node));
                continue;
            };
            if !self.links[node].is_empty() {
                steps.push(Step::Deliver(node));
            }
            if this.disk.is_busy() {
                steps.push(Step::DiskDone(node));
            }
            if this.ticks > 0 {
                steps.push(Step::Tick(node));
            }
            let decides = matches!(master.role(), Role::Paired | Role::Solo | Role::Blocked);
            // Others would refuse it.
            if self.sends > 0 && decides {
                // They are all alike: the next one is new, or one of the others comes again.
                for request in (0..=self.sent).take(limits.requests.min(REQUESTS_MAX)) {
                    steps.push(Step::Send(node, request));
                }
            }
            if self.reads > 0 && self.reading.is_none() && decides {
                steps.push(Step::Read(node));
            }
            if self.switches > 0 && decides {
                steps.push(Step::Switch(node));
            }
            if self.faults > 0 {
                steps.push(Step::Silence(node));
                steps.push(Step::Die(node));
                steps.push(Step::LosePower(node, 0));
                let waiting = this.disk.waiting();
                if waiting > 0 {
                    steps.push(Step::LosePower(node, waiting / 2));
                    steps.push(Step::LosePower(node, waiting));
                }
                if !self.links[node].is_empty() {
                    steps.push(Step::Cut(node));
                }
            }
        }
        for (number, question) in self.questions.iter().enumerate() {
            steps.push(Step::Ask(number));
            if self.faults > 0 && question.ask.is_some() && !question.is_doubted {
                steps.push(Step::Doubt(number));
            }
        }
        for (number, (_, _, answer)) in self.answers.iter().enumerate() {
            steps.push(Step::Answer(number));
            let is_known = matches!(answer, Input::Claimed(_, a) if *a != ClaimAnswer::Unknown);
            if self.faults > 0 && is_known {
                steps.push(Step::LoseAnswer(number));
            }
        }
    }

    /// A process ends: what was on its way to it is lost.
    fn end(&mut self, node: usize, kept: usize, power: bool) {
        let this = self.node(node);
        this.master = None;
        this.disk.end(kept, power);
        self.links[node].clear();
        self.answers.retain(|(to, ..)| *to != node);
        // Nobody waits for what it only wanted to know.
        self.questions.retain(|question| question.node != node || question.ask.is_some());
        for question in self.questions.iter_mut().filter(|question| question.node == node) {
            question.is_doubted = true;
        }
    }

    fn perform(&mut self, node: usize, output: Out) -> Result<(), Bad> {
        match output {
            Output::Send(said) => {
                if let Message::Ack { upto, .. } = said.body
                    && upto.lsn > self.nodes[node].disk.written().lsn
                {
                    return Err(("R5", format!("{} is acknowledged, not written", upto.lsn)));
                }
                let other = 1 - node;
                if self.nodes[other].master.is_some() {
                    self.links[other].push_back(Word::Said(Rc::new(said)));
                }
            }
            Output::Write(entries) => self.write(node, Write::Entries(entries)),
            Output::Sync(lsn) => self.write(node, Write::Sync(lsn)),
            Output::WriteIntents(intents) => self.write(node, Write::Intents(intents)),
            Output::CheckpointBegin { at, whose } => self.write(node, Write::Begin(at, whose)),
            Output::CheckpointPieces(pieces) => self.write(node, Write::Pieces(pieces)),
            Output::CheckpointEnd => self.write(node, Write::End),
            Output::Claim { expect, rec } => self.question(node, Some((expect, rec))),
            Output::ReadRecord => self.question(node, None),
            Output::Release { lsn, effects } => self.release(node, lsn, &effects)?,
            Output::ReadReady(_) => {
                if let Some((value, floor)) = self.reading.take()
                    && value < floor
                {
                    return Err(("I7", format!("{value} is read after {floor} was answered")));
                }
            }
            Output::ReadRefused(..) => self.reading = None,
            Output::Refused(..) | Output::Role(_) => {}
            Output::NewEpoch(at) => self.new_epoch(node, at)?,
            Output::Alarm(alarm) => match alarm {
                Alarm::Diverged(lsn) => {
                    return Err(("I8", format!("the states differ after entry {lsn}")));
                }
                Alarm::BadSnapshot => {
                    return Err(("I8", "a snapshot does not restore".to_owned()));
                }
                Alarm::Forked => return Err(("R12", "two logs of one record differ".to_owned())),
                Alarm::OtherVersion(_) | Alarm::WitnessBehind | Alarm::LossDeclared => {}
            },
        }
        Ok(())
    }

    fn write(&mut self, node: usize, write: Write) {
        self.node(node).disk.write(write);
    }

    fn node(&mut self, node: usize) -> &mut Node {
        Rc::make_mut(&mut self.nodes[node])
    }

    fn question(&mut self, node: usize, ask: Option<(u64, Rec)>) {
        let life = self.nodes[node].life;
        let is_there =
            |q: &&Question| q.node == node && q.life == life && q.ask == ask && !q.is_doubted;
        // Two that are the same say nothing that one does not.
        if self.questions.iter().find(is_there).is_none() {
            self.questions.push(Question { node, life, ask, is_doubted: false });
        }
    }

    fn master(&self, node: usize) -> Option<&Replica<Machine>> {
        self.nodes[node].master.as_ref()
    }

    /// What must hold after each thing that a master did.
    fn look_at(&mut self, node: usize) -> Result<(), Bad> {
        let Some(master) = &self.nodes[node].master else { return Ok(()) };
        match master.role() {
            Role::Paired | Role::Solo | Role::Blocked => {}
            Role::Recovering | Role::Learner | Role::Standby => return Ok(()),
        }
        let commit = master.commit();
        for lsn in 1..=commit {
            let Some(at) = master.position(lsn) else { continue };
            let place = usize::try_from(lsn - 1).unwrap_or(usize::MAX);
            if self.golden.len() <= place {
                self.golden.resize(place + 1, None);
            }
            if *self.golden[place].get_or_insert(at.chain) != at.chain {
                return Err(("I3", format!("entry {lsn} is committed as two different ones")));
            }
        }
        let Some(rec) = self.witness.filter(|_| commit > 0) else { return Ok(()) };
        self.lacks(rec, commit, master.position(commit).map(|at| at.chain), "I3")
    }

    /// Everybody whom the record counts must have this entry.
    fn lacks(
        &self,
        rec: Rec,
        lsn: u64,
        chain: Option<u128>,
        invariant: &'static str,
    ) -> Result<(), Bad> {
        let Some(chain) = chain else { return Ok(()) };
        let bad = |who: String| Err((invariant, format!("{who} counts, and lacks entry {lsn}")));
        for member in [Some(rec.holder), rec.peer].into_iter().flatten() {
            let master = self.master(index(member.side)).filter(|master| master.me() == member);
            let is_other = |master: &Replica<Machine>| {
                master.position(lsn).is_some_and(|there| there.chain != chain)
            };
            if rec.peer.is_some() && master.is_some_and(|m| m.last().lsn < lsn || is_other(m)) {
                return bad(format!("{member:?}"));
            }
        }
        let at = Position { lsn, chain };
        if rec.peer.is_none() && !self.nodes[index(rec.holder.side)].disk.has(at) {
            return bad("the holder's disk".to_owned());
        }
        Ok(())
    }

    /// A new era: what the disk of who decides does not have is forgotten by all.
    fn declare_loss(&mut self, rec: Rec) -> Result<(), Bad> {
        let [mine, theirs] = [index(rec.holder.side), 1 - index(rec.holder.side)];
        let (last, state) = (self.nodes[mine].disk.end_of_log(), self.nodes[mine].disk.state());
        if self.nodes[theirs].disk.written().lsn > last.lsn {
            return Err(("R12", "a loss is declared of what the other disk has".to_owned()));
        }
        self.golden.truncate(usize::try_from(last.lsn).unwrap_or(usize::MAX));
        self.received.truncate(usize::try_from(state.pushed()).unwrap_or(usize::MAX));
        for (client, answer) in self.answered.iter_mut().enumerate() {
            answer.take_if(|_| state.decided(client) == 0);
        }
        self.reading = None;
        Ok(())
    }

    fn check_record(&self, rec: Rec) -> Result<(), Bad> {
        if let Some(peer) = rec.peer
            && self.master(index(peer.side)).is_some_and(|master| master.me() == peer)
            && self.nodes[index(peer.side)].disk.is_copying()
        {
            return Err(("R7", format!("{peer:?} counts before its snapshot is on disk")));
        }
        let last = self.golden.last().copied().flatten();
        self.lacks(rec, self.golden.len() as u64, last, "I9")
    }

    fn new_epoch(&mut self, node: usize, at: Epoch) -> Result<(), Bad> {
        let Some(master) = &self.nodes[node].master else { return Ok(()) };
        let (me, lsn) = (master.me(), self.golden.len() as u64);
        let last = self.golden.last().copied().flatten();
        let has_all = master.last().lsn >= lsn
            && master.position(lsn).is_none_or(|there| last.is_none_or(|last| there.chain == last));
        let is_late = self.witness.is_some_and(|rec| rec.at > at);
        if !has_all && !is_late {
            return Err(("I2", format!("{me:?} decides, and lacks what is committed")));
        }
        if let Some((_, other)) = self.epochs.iter().find(|(epoch, who)| *epoch == at && *who != me)
        {
            return Err(("I1", format!("{other:?} and {me:?} both decide in {at}")));
        }
        if master.commit() == master.last().lsn {
            for (number, payload) in master.state().stream().collect::<Vec<_>>() {
                self.receive(at, number, payload)?;
            }
        }
        if !self.epochs.contains(&(at, me)) {
            self.epochs.push((at, me));
        }
        Ok(())
    }

    fn release(&mut self, node: usize, lsn: u64, effects: &[Effect]) -> Result<(), Bad> {
        if lsn > self.golden.len() as u64 {
            return Err(("I4", format!("effects of entry {lsn} leave before its commit")));
        }
        let Node { told, disk, .. } = &*self.nodes[node];
        let at = self.master(node).and_then(Replica::rec).map(|rec| rec.at).unwrap_or_default();
        if at < *told {
            return Err(("R8", format!("effects leave in {at} of who was told of {told}")));
        }
        if lsn > disk.written().lsn {
            return Err(("R5", format!("effects of entry {lsn} leave before it is written")));
        }
        for effect in effects {
            match *effect {
                Effect::Push { number, payload } => self.receive(at, number, payload)?,
                Effect::Renewed { .. } => {}
                Effect::Reply { client, id: _, before: None } => {
                    return Err(("I5", format!("request {client} is refused")));
                }
                Effect::Reply { client, id: _, before: Some(before) } => {
                    // One request has one answer, and each another one.
                    let is_other = |(other, answer): (usize, &Option<u64>)| {
                        answer.is_some_and(|answer| (other == client) != (answer == before))
                    };
                    if self.answered.iter().enumerate().any(is_other) {
                        return Err(("I5", format!("{before} answers request {client} too")));
                    }
                    self.answered[client] = Some(before);
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self, at: Epoch, number: u64, payload: u64) -> Result<(), Bad> {
        if at < self.received_at {
            return Ok(());
        }
        self.received_at = at;
        let place = usize::try_from(number - 1).unwrap_or(usize::MAX);
        match self.received.get(place) {
            Some(there) if *there != payload => {
                Err(("I6", format!("message {number} comes with two contents")))
            }
            Some(_) => Ok(()),
            None if place == self.received.len() => {
                self.received.push(payload);
                Ok(())
            }
            None => Err(("I6", format!("message {number} comes before the one before it"))),
        }
    }

    fn fingerprint(&self) -> u128 {
        let mut all = Lanes::default();
        for node in &self.nodes {
            (node.life, node.told, node.ticks, node.master.is_some()).hash(&mut all);
            if let Some(master) = &node.master {
                master.fingerprint(&mut all);
            }
            node.disk.fingerprint(&mut all);
        }
        for link in &self.links {
            link.len().hash(&mut all);
            link.iter().for_each(|word| hash_word(word, &mut all));
        }
        // What the witness is asked and what it answers comes in any order.
        let questions = self.questions.iter().map(|question| {
            let mut one = Lanes::default();
            let Question { node, life, ask, is_doubted } = question;
            (node, life, ask, is_doubted).hash(&mut one);
            one.value()
        });
        let questions = questions.fold(0_u128, u128::wrapping_add);
        let answers = self.answers.iter().map(|(node, life, input)| {
            let mut one = Lanes::default();
            (node, life).hash(&mut one);
            hash_answer(input, &mut one);
            one.value()
        });
        let answers = answers.fold(0_u128, u128::wrapping_add);
        (questions, answers, self.witness).hash(&mut all);
        let Self { faults, sends, reads, switches, sent, reading, golden, answered, .. } = self;
        (faults, sends, reads, switches, sent, reading, golden, answered).hash(&mut all);
        let Self { epochs, received, received_at, .. } = self;
        (epochs, received, received_at).hash(&mut all);
        all.value()
    }
}

fn hash_word(word: &Word, hasher: &mut Lanes) {
    let said = match word {
        Word::Said(said) => &**said,
        Word::Gone(incarnation) => return (8_u8, incarnation).hash(hasher),
    };
    let Envelope { from, to, at, body } = said;
    (from, to, at).hash(hasher);
    match body {
        Message::Append { before, entries, beat, commit, rec, check } => {
            (0_u8, before, entries.len(), beat, commit, rec, check).hash(hasher);
            entries.iter().for_each(|entry| entry.position().hash(hasher));
        }
        Message::Ack { upto, beat, gap, ready } => (1_u8, upto, beat, gap, ready).hash(hasher),
        Message::Join { have, version, cold } => (2_u8, have, version, cold).hash(hasher),
        Message::Slice { start, index, pieces } => {
            (3_u8, start, index, pieces.len()).hash(hasher);
        }
        Message::SliceAck { start, next } => (4_u8, start, next).hash(hasher),
        Message::Handover { rec } => (5_u8, rec).hash(hasher),
        Message::Forward { commands } => {
            (6_u8, commands.len()).hash(hasher);
            for (seed, command) in commands {
                (seed, Machine::digest(command)).hash(hasher);
            }
        }
        Message::Fenced => 7_u8.hash(hasher),
    }
}

fn hash_answer(input: &In, hasher: &mut Lanes) {
    match input {
        Input::Claimed(nonce, ClaimAnswer::Won) => (0_u8, nonce).hash(hasher),
        Input::Claimed(nonce, ClaimAnswer::Lost(rec)) => (1_u8, nonce, rec).hash(hasher),
        Input::Claimed(nonce, ClaimAnswer::Unknown) => (2_u8, nonce).hash(hasher),
        Input::Record(rec) => (3_u8, rec).hash(hasher),
        Input::Message(_)
        | Input::Commands(..)
        | Input::Read(_)
        | Input::Tick { .. }
        | Input::Synced(_)
        | Input::IntentsDurable(_)
        | Input::CheckpointDurable(_)
        | Input::PeerGone(_)
        | Input::Seen(_)
        | Input::Switchover
        | Input::Promote { .. } => unreachable!("the witness says nothing else"),
    }
}

impl Explored {
    fn broken((invariant, what): Bad, states: usize, way: Vec<String>) -> Self {
        let violation = Violation { invariant, what, at_us: 0 };
        let violation = Some((violation, way));
        Self { states, steps: 0, depth: 0, is_complete: false, violation }
    }
}

impl fmt::Display for Explored {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, steps, depth, is_complete, violation } = self;
        let end = if *is_complete { "complete" } else { "not complete" };
        let violations = u8::from(violation.is_some());
        write!(out, "{states} states, {steps} steps, depth {depth}, {end}, {violations} violations")
    }
}

/// A hash of 128 bits: by far more states than there are here are told apart.
#[derive(Default)]
struct Lanes(u64, u64);

impl Lanes {
    fn value(&self) -> u128 {
        u128::from(mix(self.0)) << 64 | u128::from(mix(self.1))
    }
}

impl Hasher for Lanes {
    fn finish(&self) -> u64 {
        mix(self.0 ^ self.1)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = mix(self.0 ^ word);
        self.1 = (self.1 ^ word).wrapping_mul(0x9FB2_1C65_1E98_DF25).rotate_left(29) ^ self.0;
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(u64::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

/// A hash is its own hash.
#[derive(Default)]
struct Known(u64);

impl Hasher for Known {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks_exact(8) {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }
}
