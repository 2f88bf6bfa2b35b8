//! A small state machine in which every mistake of replication shows: a counter that each request adds one to, the
//! last answer of each client, and a numbered stream to a receiver.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use greenroom_master_core::replica::Apply;
use greenroom_master_core::{BadSnapshot, Header, Settings};

use crate::rng::mix;

/// Who asks; each has one request at a time.
pub(crate) const CLIENTS: usize = 6;

/// Game servers.
pub(crate) const GAMES: usize = 2;

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
    /// A game server says how it is, at a moment of its own clock, that it has its stream up to a number, and what it
    /// said, which is numbered too.
    Load {
        /// Which game server.
        game: usize,
        /// Which life of its process.
        process: u64,
        /// Microseconds of its own clock.
        sent_us: u64,
        /// The stream is there up to this number.
        got: u64,
        /// The number of the first thing it says that was not acknowledged.
        said_from: u64,
        /// The number of the last one.
        said: u64,
    },
    /// Nothing is heard of a game server.
    LinkLost(usize),
    /// It is proved that this life of a game server's process is over.
    Died(usize, u64),
    /// Time may be up for somebody.
    Expire,
    /// Somebody wants the instance with the key to be there.
    Want {
        /// Where it would be put.
        game: usize,
    },
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
    /// To a game server: what it said is kept, and its lease counts from when it said it.
    Renewed {
        /// Which.
        game: usize,
        /// Which life of its process.
        process: u64,
        /// The moment that it sent.
        sent_us: u64,
        /// Everything that it said up to here is kept.
        said: u64,
    },
}

/// What a game server is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Run the instance with the key, in this life of the instance.
    Run(u64),
    /// This life of it is over.
    Stop(u64),
}

/// What is known of a game server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Game {
    /// The life of its process that spoke last.
    process: u64,
    pushed: u64,
    /// Orders that it has not acknowledged.
    orders: VecDeque<(u64, Order)>,
    /// What it said is here up to this number.
    said: u64,
    /// It is given up then; 0 if it is not suspect.
    until_ms: u64,
}

impl Game {
    fn order(&mut self, order: Order) {
        self.pushed += 1;
        self.orders.push_back((self.pushed, order));
    }
}

/// The instance with the key: where it runs, and in which of its lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Keyed {
    at: Option<usize>,
    life: u64,
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
    /// What is known of a game server, besides its orders.
    Game {
        /// Which.
        game: usize,
        /// The life of its process.
        process: u64,
        /// Number of its last order.
        pushed: u64,
        /// Number of the last thing that it said.
        said: u64,
        /// When it is given up.
        until_ms: u64,
    },
    /// An order that a game server has not acknowledged.
    Order {
        /// For whom.
        game: usize,
        /// Its number.
        number: u64,
        /// What to do.
        order: Order,
    },
    /// Where the instance with the key runs.
    Keyed {
        /// The game server.
        at: Option<usize>,
        /// Its life.
        life: u64,
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
    /// What is read first, as it was: it is little.
    head: Vec<Piece>,
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
    games: [Game; GAMES],
    keyed: Keyed,
    /// How long a game server of which nothing is heard keeps what it has.
    grace_ms: u64,
    /// Time of the last command.
    now_ms: u64,
    /// Whether it was ever less than before.
    is_backwards: bool,
    /// A planted bug: repeated requests count again.
    is_forgetful: bool,
    /// Another one: whoever has the place of a dead process is dead.
    is_rash: bool,
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

    /// What is known of game servers, if there are any.
    fn games_into(&self, pieces: &mut Vec<Piece>) {
        let Keyed { at, life } = self.keyed;
        if life > 0 {
            pieces.push(Piece::Keyed { at, life });
        }
        for (game, this) in self.games.iter().enumerate().filter(|(_, g)| **g != Game::default()) {
            let Game { process, pushed, ref orders, said, until_ms } = *this;
            pieces.push(Piece::Game { game, process, pushed, said, until_ms });
            let orders = orders.iter();
            pieces.extend(orders.map(|&(number, order)| Piece::Order { game, number, order }));
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
        for game in &self.games {
            hash = mix(hash ^ game.pushed ^ mix(game.said) ^ mix(!game.until_ms));
            hash = mix(hash ^ game.process);
            for (number, order) in &game.orders {
                let (Order::Run(life) | Order::Stop(life)) = order;
                hash = mix(hash ^ number.rotate_left(32) ^ life);
            }
        }
        hash = mix(hash ^ self.keyed.life ^ self.keyed.at.map_or(0, |game| mix(game as u64 + 1)));
        u128::from(hash)
    }

    pub(crate) fn value(&self) -> u64 {
        self.value
    }

    /// A machine that applies a repeated request again.
    pub(crate) fn forgetful(is_forgetful: bool) -> Self {
        Self { is_forgetful, grace_ms: Settings::default().server_grace_ms, ..Self::default() }
    }

    /// The same, and a proof that a process is gone counts for the next one.
    pub(crate) fn rash(self, is_rash: bool) -> Self {
        Self { is_rash, ..self }
    }

    /// The life of a game server's process that spoke last.
    pub(crate) fn process(&self, game: usize) -> u64 {
        self.games[game].process
    }

    /// The same, with another grace for game servers.
    pub(crate) fn with_grace(self, grace_ms: u64) -> Self {
        Self { grace_ms, ..self }
    }

    /// What a game server has not acknowledged.
    pub(crate) fn orders(&self, game: usize) -> impl Iterator<Item = (u64, Order)> {
        self.games[game].orders.iter().copied()
    }

    /// One that knows nothing yet, and is otherwise like this one.
    pub(crate) fn empty(&self) -> Self {
        Self::forgetful(self.is_forgetful).with_grace(self.grace_ms).rash(self.is_rash)
    }

    /// The number of the last request of a client that was decided.
    pub(crate) fn decided(&self, client: usize) -> u64 {
        self.answered[client].0
    }

    /// The number of the last message to the receiver.
    pub(crate) fn pushed(&self) -> u64 {
        self.pushed
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
            // A word of a life that is over, which was on its way.
            Command::Load { game, process, .. } if process < self.games[game].process => {}
            Command::Load { game, process, sent_us, got, said_from, said } => {
                if process > self.games[game].process {
                    // What the one before it had is lost with it, and the key is free.
                    self.games[game] = Game { process, ..Game::default() };
                    self.keyed.at.take_if(|at| *at == game);
                }
                let this = &mut self.games[game];
                while this.orders.front().is_some_and(|(n, _)| *n <= got) {
                    this.orders.pop_front();
                }
                if said_from <= this.said + 1 {
                    this.said = this.said.max(said);
                }
                this.until_ms = 0;
                effects.push(Effect::Renewed { game, process, sent_us, said: this.said });
            }
            Command::LinkLost(game) => {
                let this = &mut self.games[game];
                if this.until_ms == 0 {
                    this.until_ms = header.now_ms + self.grace_ms;
                }
            }
            Command::Died(game, process) => {
                let is_rash = self.is_rash;
                let this = &mut self.games[game];
                if this.process == process || is_rash {
                    this.until_ms = header.now_ms;
                }
            }
            Command::Expire => {
                if let Some(game) = self.keyed.at
                    && (1..=header.now_ms).contains(&self.games[game].until_ms)
                {
                    self.keyed.at = None;
                    self.games[game].order(Order::Stop(self.keyed.life));
                }
            }
            Command::Want { game } => {
                if self.keyed.at.is_none() && self.games[game].until_ms == 0 {
                    self.keyed = Keyed { at: Some(game), life: self.keyed.life + 1 };
                    self.games[game].order(Order::Run(self.keyed.life));
                }
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.now_ms
    }

    fn digest(command: &Command) -> u128 {
        match *command {
            Command::Add { client, id } => {
                u128::from(mix(id)) << 64 | u128::from(mix(client as u64 + 1))
            }
            Command::Received(number) => u128::from(mix(number)) << 64,
            Command::Load { game, process, sent_us, got, said_from, said } => {
                let words = [game as u64, process, sent_us, got, said_from, said];
                u128::from(words.iter().fold(3, |hash, word| mix(hash ^ word)))
            }
            Command::LinkLost(game) => u128::from(mix(game as u64)) << 32,
            Command::Died(game, process) => u128::from(mix(game as u64 ^ mix(process))) << 32 | 1,
            Command::Expire => 1,
            Command::Want { game } => u128::from(mix(!(game as u64))) << 32,
        }
    }

    fn hash(&mut self) -> u128 {
        self.sum()
    }

    fn freeze(&mut self) -> Arc<()> {
        let frozen = Arc::new(());
        let of = Arc::downgrade(&frozen);
        let Self { value, pushed, now_ms, .. } = *self;
        let mut head = vec![Piece::Head { value, pushed, now_ms }];
        self.games_into(&mut head);
        self.copies.push(Copying { of, head, read: None, saved: BTreeMap::new() });
        frozen
    }

    fn next_pieces(&mut self, frozen: &mut Arc<()>, max: usize) -> Vec<Piece> {
        let is_it = |copy: &Copying| std::ptr::eq(copy.of.as_ptr(), Arc::as_ptr(frozen));
        let place = self.copies.iter().position(is_it);
        let place = place.expect("a snapshot is read from the machine that it was taken of");
        let mut copy = self.copies.swap_remove(place);
        let mut pieces = std::mem::take(&mut copy.head);
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
        let mut machine = self.empty();
        let mut heads = 0;
        for piece in pieces {
            match piece {
                Piece::Head { value, pushed, now_ms } => {
                    heads += 1;
                    (machine.value, machine.pushed, machine.now_ms) = (value, pushed, now_ms);
                }
                Piece::Client { client, id, before } => machine.answered[client] = (id, before),
                Piece::Push { number, payload } => machine.stream.push_back((number, payload)),
                Piece::Game { game, process, pushed, said, until_ms } => {
                    let orders = VecDeque::new();
                    machine.games[game] = Game { process, pushed, orders, said, until_ms };
                }
                Piece::Order { game, number, order } => {
                    machine.games[game].orders.push_back((number, order));
                }
                Piece::Keyed { at, life } => machine.keyed = Keyed { at, life },
            }
        }
        if heads == 1 { Ok(machine) } else { Err(BadSnapshot::from(format!("{heads} heads"))) }
    }
}
