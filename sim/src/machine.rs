//! A small state machine in which every mistake of replication shows: a counter that each request adds one to, the
//! last answer of each client, and a numbered stream to a receiver.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use greenroom_master_core::replica::Apply;
use greenroom_master_core::{BadSnapshot, Header};

use crate::rng::mix;

/// Who asks; each has one request at a time.
pub(crate) const CLIENTS: usize = 6;

/// A command of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Add one, and tell what it was before. Numbers divisible by 16 can't be done: they are refused.
    Add {
        /// Who asks.
        client: usize,
        /// Its request; each is one more than the one before.
        id: u64,
    },
    /// The receiver has the stream up to this number.
    Received(u64),
}

/// What leaves the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// To a client: what the counter was, or nothing if the request was refused.
    Reply {
        /// To whom.
        client: usize,
        /// Of which request.
        id: u64,
        /// What the counter was.
        before: Option<u64>,
    },
    /// To the receiver.
    Push {
        /// From 1, without holes.
        number: u64,
        /// Made of the header's time and random bits, so that another history has another.
        payload: u64,
    },
}

/// A part of a snapshot.
#[derive(Clone, Copy, Debug)]
pub enum Piece {
    /// The counter, the number of the last message to the receiver, and the time.
    Head {
        /// The counter.
        value: u64,
        /// The number.
        pushed: u64,
        /// Time of the last command.
        now_ms: u64,
    },
    /// What a client was answered last.
    Client {
        /// Which client.
        client: usize,
        /// Which request.
        id: u64,
        /// The answer.
        before: Option<u64>,
    },
    /// A message that the receiver has not acknowledged.
    Push {
        /// Its number.
        number: u64,
        /// Its content.
        payload: u64,
    },
}

/// Where a record stands, in the order in which a snapshot gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Client(usize),
    Push(u64),
}

/// A snapshot under way: as in the directory, a record that changes before it is read is kept as it was. A copy of the
/// machine has it too, for the copy of who reads it.
#[derive(Clone, Debug)]
struct Copying {
    of: Weak<()>,
    head: Option<Piece>,
    read: Option<Place>,
    /// What changed records were; nothing for those that were not there.
    saved: BTreeMap<Place, Option<Piece>>,
}

/// The state machine of the simulator.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    value: u64,
    pushed: u64,
    answered: [(u64, Option<u64>); CLIENTS],
    stream: VecDeque<(u64, u64)>,
    /// Time of the last command.
    now_ms: u64,
    /// Whether it was ever less than before.
    is_backwards: bool,
    /// A planted bug: repeated requests count again.
    is_forgetful: bool,
    copies: Vec<Copying>,
}

impl Machine {
    fn piece(&self, place: Place) -> Option<Piece> {
        match place {
            Place::Client(client) => {
                let &(id, before) = self.answered.get(client)?;
                Some(Piece::Client { client, id, before })
            }
            Place::Push(number) => {
                let first = self.stream.front()?.0;
                let place = usize::try_from(number.checked_sub(first)?).ok()?;
                let &(number, payload) = self.stream.get(place)?;
                Some(Piece::Push { number, payload })
            }
        }
    }

    fn next(&self, read: Option<Place>) -> Option<Place> {
        let first = self.stream.front().map_or(1, |(number, _)| *number);
        let next = match read {
            None => Place::Client(0),
            Some(Place::Client(client)) if client + 1 < CLIENTS => Place::Client(client + 1),
            Some(Place::Client(_)) => Place::Push(first),
            Some(Place::Push(number)) => Place::Push(first.max(number + 1)),
        };
        self.piece(next).map(|_| next)
    }

    /// To be called before a record changes.
    fn touch(&mut self, place: Place) {
        self.copies.retain(|copy| copy.of.strong_count() > 0);
        let was = self.piece(place);
        for copy in &mut self.copies {
            if copy.read.is_none_or(|read| read < place) {
                copy.saved.entry(place).or_insert(was);
            }
        }
    }

    /// A hash of everything.
    pub(crate) fn sum(&self) -> u128 {
        let mut hash = mix(self.value) ^ mix(self.pushed).rotate_left(7) ^ mix(!self.now_ms);
        for (id, before) in &self.answered {
            hash = mix(hash ^ mix(*id) ^ before.map_or(1, |before| mix(before) | 2));
        }
        for (number, payload) in &self.stream {
            hash = mix(hash ^ number.rotate_left(32) ^ payload);
        }
        u128::from(hash)
    }

    pub(crate) fn value(&self) -> u64 {
        self.value
    }

    /// A machine that applies a repeated request again.
    pub(crate) fn forgetful(is_forgetful: bool) -> Self {
        Self { is_forgetful, ..Self::default() }
    }

    pub(crate) fn is_forgetful(&self) -> bool {
        self.is_forgetful
    }

    /// Whether the time of some command was before that of the one before it.
    pub(crate) fn is_backwards(&self) -> bool {
        self.is_backwards
    }

    /// What the receiver has not acknowledged.
    pub(crate) fn stream(&self) -> impl Iterator<Item = (u64, u64)> {
        self.stream.iter().copied()
    }
}

impl Apply for Machine {
    type Command = Command;
    type Effect = Effect;
    type Piece = Piece;
    type Frozen = Arc<()>;

    const VERSION: u16 = 1;

    fn apply(&mut self, header: &Header, command: &Command, effects: &mut Vec<Effect>) {
        self.is_backwards |= header.now_ms < self.now_ms;
        self.now_ms = header.now_ms;
        match *command {
            Command::Add { client, id } => {
                let (last, _) = self.answered[client];
                if id == last + 1 || (self.is_forgetful && id == last) {
                    self.touch(Place::Client(client));
                    let is_poison = id.is_multiple_of(16);
                    self.answered[client] = (id, (!is_poison).then_some(self.value));
                    if !is_poison {
                        self.value += 1;
                        self.pushed += 1;
                        self.touch(Place::Push(self.pushed));
                        let payload = mix(header.seed ^ header.now_ms);
                        self.stream.push_back((self.pushed, payload));
                        effects.push(Effect::Push { number: self.pushed, payload });
                    }
                }
                let (last, before) = self.answered[client];
                if id == last {
                    effects.push(Effect::Reply { client, id, before });
                }
            }
            Command::Received(number) => {
                while let Some(&(first, _)) = self.stream.front()
                    && first <= number
                {
                    self.touch(Place::Push(first));
                    self.stream.pop_front();
                }
            }
        }
    }

    fn digest(command: &Command) -> u128 {
        match *command {
            Command::Add { client, id } => {
                u128::from(mix(id)) << 64 | u128::from(mix(client as u64 + 1))
            }
            Command::Received(number) => u128::from(mix(number)) << 64,
        }
    }

    fn hash(&mut self) -> u128 {
        self.sum()
    }

    fn freeze(&mut self) -> Arc<()> {
        let frozen = Arc::new(());
        let of = Arc::downgrade(&frozen);
        let Self { value, pushed, now_ms, .. } = *self;
        let head = Some(Piece::Head { value, pushed, now_ms });
        self.copies.push(Copying { of, head, read: None, saved: BTreeMap::new() });
        frozen
    }

    fn next_pieces(&mut self, frozen: &mut Arc<()>, max: usize) -> Vec<Piece> {
        let is_it = |copy: &Copying| std::ptr::eq(copy.of.as_ptr(), Arc::as_ptr(frozen));
        let place = self.copies.iter().position(is_it);
        let place = place.expect("a snapshot is read from the machine that it was taken of");
        let mut copy = self.copies.swap_remove(place);
        let mut pieces: Vec<Piece> = copy.head.take().into_iter().collect();
        while pieces.len() < max {
            let was = copy.saved.first_key_value().map(|(&place, _)| place);
            let Some(next) = self.next(copy.read).into_iter().chain(was).min() else { break };
            copy.read = Some(next);
            pieces.extend(match copy.saved.remove(&next) {
                Some(was) => was,
                None => self.piece(next),
            });
        }
        self.copies.push(copy);
        pieces
    }

    fn restore(&self, pieces: Vec<Piece>) -> Result<Self, BadSnapshot> {
        let mut machine = Self::forgetful(self.is_forgetful);
        let mut heads = 0;
        for piece in pieces {
            match piece {
                Piece::Head { value, pushed, now_ms } => {
                    heads += 1;
                    (machine.value, machine.pushed, machine.now_ms) = (value, pushed, now_ms);
                }
                Piece::Client { client, id, before } => machine.answered[client] = (id, before),
                Piece::Push { number, payload } => machine.stream.push_back((number, payload)),
            }
        }
        if heads == 1 { Ok(machine) } else { Err(BadSnapshot::from(format!("{heads} heads"))) }
    }
}
