//! Game servers and the one instance with a unique key, which is durable: a model of what shells do, on the masters of
//! the production core.
//!
//! A game server has links to both masters. Once a second it says how it is, with the moment by its own clock, what it
//! has of its stream of orders, and what it has to say. The active commits that, and only then answers; the lease
//! counts from the moment that comes back. Without a lease the instance stands still.
//!
//! Whoever is told to run the instance reads what was stored of it last, stores that in its own name, and only then
//! runs it; while it runs it is stored every second. The store takes what is of a later life, or of this one and
//! newer. A process that is killed loses all but what is stored, and comes back as another one. A master that lost a
//! game server dials its port, again and again: only a process that is gone refuses.

use greenroom_master_core::LEASE_MS;
use greenroom_master_core::replica::{Apply, Mutant, Replica, Role};
use greenroom_protocol::Epoch;

use crate::machine::{Command, GAMES, Order};
use crate::world::World;

/// Between two words of a game server.
const WORD_US: u64 = 1_000_000;
/// Silence after which a master takes the link for lost.
const SILENCE_US: u64 = 3_000_000;

/// Between two looks of a master whether a lost game server is gone, and how many there are.
const LOOK_US: u64 = 300_000;
const LOOKS: u8 = 50;
/// A proof that was found is said again so often, a second apart: who decides may be another one by then.
const SAID_AGAIN: u8 = 60;
/// The longest that the store may take, there or back: less than what lies between the end of a lease and that of the
/// grace.
const STORE_US: u64 = 2_000_000;
/// An instance that goes on within this time of a death does so by proof, since no grace is so short.
const EARLY_US: u64 = 5_000_000;

/// A state of the instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copy {
    life: u64,
    /// Counts the snapshots of the life.
    n: u64,
    /// What happened in it, of all its lives.
    value: u64,
}

/// The store, and what is known of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Snapshots {
    stored: Copy,
    /// The latest life of which a snapshot was taken.
    life: u64,
    /// The most that somebody was told to be stored.
    acknowledged: u64,
    /// When a process that ran the instance was killed last.
    died_us: Option<u64>,
}

/// A game server.
#[derive(Clone, Debug)]
pub(crate) struct GameServer {
    /// Which life of its process this is.
    process: u64,
    /// It is killed, and does not run yet again.
    is_dead: bool,
    /// What it has of the instance, stored in its own name or not yet.
    copy: Option<Copy>,
    /// Speed of its clock in thousandths.
    rate: u64,
    /// Asleep until then, with what comes waiting in its sockets.
    asleep_until_us: u64,
    /// Nothing goes to or comes from the masters until then.
    cut_until_us: u64,
    epoch: Epoch,
    /// Orders are here up to this number.
    got: u64,
    /// The life of the instance that it has.
    instance: Option<u64>,
    lease_until_us: u64,
    /// It has said this much, and this much was acknowledged, after this entry.
    said: u64,
    kept: u64,
    kept_lsn: u64,
}

/// A word of a game server is committed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Renewed {
    /// Number of the entry.
    pub(crate) lsn: u64,
    /// When it was sent, by the game server's clock.
    pub(crate) sent_us: u64,
    /// Everything that it said is kept up to this number.
    pub(crate) said: u64,
}

/// What happens to a game server, or to what it sent.
#[derive(Clone, Debug)]
pub(crate) enum GameEvent {
    /// A second has passed.
    Second,
    /// Its word reaches a master.
    Word { node: usize, process: u64, sent_us: u64, got: u64, said_from: u64, said: u64 },
    /// What a master says reaches it: its epoch, the orders that are not acknowledged, and perhaps an answer.
    Told { process: u64, at: Epoch, orders: Vec<(u64, Order)>, renewed: Option<Renewed> },
    /// The store is asked what it has of the instance, for this life of it.
    Load { process: u64, life: u64 },
    /// What the store had is here.
    Loaded { process: u64, copy: Copy },
    /// The store is to take a snapshot.
    Save { process: u64, copy: Copy },
    /// The store has taken it, or not.
    Saved { process: u64, copy: Copy, is_taken: bool },
    /// A killed process runs again.
    Start,
    /// A master that lost a game server looks whether this process is there.
    Look { node: usize, process: u64, left: u8 },
    /// It is proved to be gone: that is said.
    Gone { node: usize, process: u64, left: u8 },
    /// Somebody wants the instance.
    Want,
    /// It falls asleep or is cut off.
    Fault,
}

impl GameServer {
    pub(crate) fn new(rate: u64) -> Self {
        Self {
            process: 1,
            is_dead: false,
            copy: None,
            rate,
            asleep_until_us: 0,
            cut_until_us: 0,
            epoch: Epoch::default(),
            got: 0,
            instance: None,
            lease_until_us: 0,
            said: 0,
            kept: 0,
            kept_lsn: 0,
        }
    }

    /// Its process is gone, with everything that it had.
    fn die(&mut self) {
        let (process, rate, cut_until_us) = (self.process, self.rate, self.cut_until_us);
        *self = Self { process, is_dead: true, cut_until_us, ..Self::new(rate) };
    }

    /// Nothing is wrong any more.
    pub(crate) fn heal(&mut self) {
        self.asleep_until_us = 0;
        self.cut_until_us = 0;
    }

    fn clock_us(&self, now_us: u64) -> u64 {
        now_us * self.rate / 1_000
    }

    /// Whether clients see the instance move here.
    fn is_live(&self, now_us: u64) -> bool {
        self.instance.is_some()
            && !self.is_dead
            && now_us >= self.asleep_until_us
            && self.clock_us(now_us) < self.lease_until_us
    }
}

impl World<'_> {
    pub(crate) fn begin_games(&mut self) {
        for game in 0..GAMES {
            let after = self.rng_below(WORD_US);
            self.at_game(after, game, GameEvent::Second);
            let after = 1_000_000 + self.rng_below(20_000_000);
            self.at_game(after, game, GameEvent::Fault);
        }
        self.at_game(500_000, 0, GameEvent::Want);
    }

    pub(crate) fn game_event(&mut self, game: usize, event: GameEvent) {
        let now_us = self.now_us();
        match event {
            GameEvent::Second => {
                self.say(game);
                self.at_game(WORD_US, game, GameEvent::Second);
            }
            GameEvent::Word { node, process, sent_us, got, said_from, said } => {
                self.nodes[node].heard_us[game] = now_us;
                self.nodes[node].is_lost[game] = false;
                let load = Command::Load { game, process, sent_us, got, said_from, said };
                self.command(node, load);
            }
            // What comes to a process that is over comes to nobody; what comes to one that sleeps waits.
            GameEvent::Told { process, .. }
            | GameEvent::Loaded { process, .. }
            | GameEvent::Saved { process, .. }
                if process != self.games[game].process || self.games[game].is_dead => {}
            GameEvent::Told { .. } | GameEvent::Loaded { .. } | GameEvent::Saved { .. }
                if now_us < self.games[game].asleep_until_us =>
            {
                let after = self.games[game].asleep_until_us - now_us;
                self.at_game(after, game, event);
            }
            GameEvent::Told { at, orders, renewed, .. } => self.hear(game, at, &orders, renewed),
            GameEvent::Load { process, life } => self.load(game, process, life),
            GameEvent::Loaded { copy, .. } => self.loaded(game, copy),
            GameEvent::Save { process, copy } => self.take(game, process, copy),
            GameEvent::Saved { copy, is_taken, .. } => self.saved(game, copy, is_taken),
            GameEvent::Start => {
                let this = &mut self.games[game];
                (this.process, this.is_dead) = (this.process + 1, false);
            }
            GameEvent::Look { node, process, left } => self.look(node, game, process, left),
            GameEvent::Gone { node, process, left } => {
                self.command(node, Command::Died(game, process));
                if left > 0 {
                    let again = GameEvent::Gone { node, process, left: left - 1 };
                    self.at_game(1_000_000, game, again);
                }
            }
            GameEvent::Want => {
                let game = usize::from(self.rng_below(2) == 1);
                for node in 0..2 {
                    self.command(node, Command::Want { game });
                }
                let after = 200_000 + self.rng_below(2_000_000);
                self.at_game(after, 0, GameEvent::Want);
            }
            GameEvent::Fault => {
                if self.healed_at() == u64::MAX {
                    let length = match self.rng_below(3) {
                        0 => 2_000_000,
                        1 => 15_000_000,
                        _ => 60_000_000,
                    };
                    let until_us = now_us + self.rng_below(length) + length / 20;
                    match self.rng_below(4) {
                        0 => self.games[game].asleep_until_us = until_us,
                        1 => self.kill(game),
                        _ => self.games[game].cut_until_us = until_us,
                    }
                }
                let after = 5_000_000 + self.rng_below(60_000_000);
                self.at_game(after, game, GameEvent::Fault);
            }
        }
        self.check_games();
    }

    /// A game server says how it is, to both masters.
    fn say(&mut self, game: usize) {
        let now_us = self.now_us();
        let this = &mut self.games[game];
        if now_us < this.asleep_until_us || this.is_dead {
            return;
        }
        if this.is_live(now_us) {
            self.step(game);
        }
        let this = &mut self.games[game];
        this.said += 1;
        let process = this.process;
        let (sent_us, got) = (this.clock_us(now_us), this.got);
        let (said_from, said, cut_until_us) = (this.kept + 1, this.said, this.cut_until_us);
        for node in 0..2 {
            if now_us < cut_until_us || self.is_lost() {
                continue;
            }
            // Now and then it takes a way on which it is late.
            let late = if self.rng_below(20) == 0 { self.rng_below(12_000_000) } else { 0 };
            let after = self.delay() + late;
            let word = GameEvent::Word { node, process, sent_us, got, said_from, said };
            self.at_game(after, game, word);
        }
    }

    /// The active watches its links, and gives up whose time is over.
    pub(crate) fn watch_games(&mut self, node: usize) {
        let role = self.nodes[node].master.as_ref().map(Replica::role);
        if !matches!(role, Some(Role::Paired | Role::Solo | Role::Blocked)) {
            return;
        }
        let now_us = self.now_us();
        for game in 0..GAMES {
            let this = &mut self.nodes[node];
            if !this.is_lost[game] && now_us - this.heard_us[game] > SILENCE_US {
                self.lose(node, game);
            }
        }
        if self.rng_below(50) == 0 {
            self.command(node, Command::Expire);
        }
    }

    /// A new active says so on every link, with all that was not acknowledged.
    pub(crate) fn tell_games(&mut self, node: usize, at: Epoch) {
        let now_ms = self.clock_ms(node);
        let Some(master) = &self.nodes[node].master else { return };
        // The log's time goes on by the clock of who decides.
        let log_ms = master.state().now_ms();
        if !matches!(master.rec(), Some(rec) if rec.at == at) {
            return;
        }
        if self.nodes[node].log_clock.0 == 0 || !self.epochs_continue(node, at) {
            self.nodes[node].log_clock = (log_ms, now_ms);
        }
        self.nodes[node].is_lost = [false; GAMES];
        for game in 0..GAMES {
            self.tell(node, game, at, None);
        }
    }

    /// Whether this master decided in the epoch before, too.
    fn epochs_continue(&self, node: usize, at: Epoch) -> bool {
        let me = self.nodes[node].master.as_ref().map(Replica::me);
        self.epochs.range(..at).next_back().map(|(_, who)| *who) == me
    }

    /// A word of a game server is committed.
    pub(crate) fn renewed(&mut self, node: usize, game: usize, process: u64, renewed: Renewed) {
        let at = self.nodes[node].master.as_ref().and_then(Replica::rec).map(|rec| rec.at);
        // On the link of the process that said it, which may be gone.
        let master = self.nodes[node].master.as_ref();
        if master.is_some_and(|master| master.state().process(game) == process) {
            self.tell(node, game, at.unwrap_or_default(), Some(renewed));
        }
    }

    /// A master has no link to a game server any more: it says so, and looks whether the process is there.
    fn lose(&mut self, node: usize, game: usize) {
        self.nodes[node].is_lost[game] = true;
        self.command(node, Command::LinkLost(game));
        let process = self.nodes[node].master.as_ref().map(|master| master.state().process(game));
        if let Some(process) = process.filter(|process| *process > 0) {
            let after = self.delay();
            self.at_game(after, game, GameEvent::Look { node, process, left: LOOKS });
        }
    }

    /// The port of a game server is dialled. It is refused if nobody has it; another process may answer by now.
    fn look(&mut self, node: usize, game: usize, process: u64, left: u8) {
        let this = &self.games[game];
        let is_reached = self.now_us() >= this.cut_until_us;
        let is_asleep = self.now_us() < this.asleep_until_us;
        let is_proved = is_reached && !is_asleep && (this.is_dead || this.process != process);
        let is_taken_for =
            self.mutant == Some(Mutant::SilenceIsDeath) && (!is_reached || is_asleep);
        if is_proved || is_taken_for {
            self.at_game(0, game, GameEvent::Gone { node, process, left: SAID_AGAIN });
        } else if left > 0 {
            self.at_game(LOOK_US, game, GameEvent::Look { node, process, left: left - 1 });
        }
    }

    /// SIGKILL: its sockets are closed by the system, which the masters hear if they hear anything.
    fn kill(&mut self, game: usize) {
        let now_us = self.now_us();
        let this = &mut self.games[game];
        if this.is_dead {
            return;
        }
        if this.is_live(now_us) {
            self.snapshots.died_us = Some(now_us);
        }
        this.die();
        self.tally.killed += 1;
        let after = 200_000 + self.rng_below(20_000_000);
        self.at_game(after, game, GameEvent::Start);
        for node in 0..2 {
            let master = self.nodes[node].master.as_ref();
            if master.is_some() && now_us >= self.games[game].cut_until_us && !self.is_lost() {
                self.lose(node, game);
            }
        }
    }

    // The store.

    fn store_delay(&mut self) -> u64 {
        let longest = if self.rng_below(10) == 0 { STORE_US } else { 20_000 };
        1_000 + self.rng_below(longest)
    }

    /// A second of the instance, which is stored.
    fn step(&mut self, game: usize) {
        let this = &mut self.games[game];
        let process = this.process;
        let Some(copy) = &mut this.copy else { return };
        (copy.n, copy.value) = (copy.n + 1, copy.value + 1);
        let copy = *copy;
        let after = self.store_delay();
        self.at_game(after, game, GameEvent::Save { process, copy });
    }

    /// The store is asked by who is to run the instance in this life of it.
    fn load(&mut self, game: usize, process: u64, life: u64) {
        let Snapshots { stored, acknowledged, .. } = self.snapshots;
        if stored.value < acknowledged {
            self.fail(
                "I13",
                format!("life {life} goes on from {stored:?}, and {acknowledged} was acknowledged"),
            );
        }
        let copy = Copy { life, n: 1, value: stored.value };
        let after = self.store_delay();
        self.at_game(after, game, GameEvent::Loaded { process, copy });
    }

    /// It is stored in the name of its life before it runs, so that no life before it is stored any more.
    fn loaded(&mut self, game: usize, copy: Copy) {
        let this = &mut self.games[game];
        if this.copy.is_none_or(|there| there.life != copy.life) {
            return; // It was stopped meanwhile.
        }
        this.copy = Some(copy);
        let process = this.process;
        let after = self.store_delay();
        self.at_game(after, game, GameEvent::Save { process, copy });
    }

    /// The store takes a snapshot by the life and the number in it.
    fn take(&mut self, game: usize, process: u64, copy: Copy) {
        let Snapshots { stored, life, .. } = self.snapshots;
        let is_newer = (copy.life, copy.n) > (stored.life, stored.n);
        let is_taken = is_newer || self.mutant == Some(Mutant::BlindSnapshots);
        if is_taken {
            if copy.life < life {
                self.fail("I14", format!("the store takes {copy:?} after one of life {life}"));
            }
            self.snapshots.stored = copy;
            self.snapshots.life = life.max(copy.life);
        }
        let after = self.store_delay();
        self.at_game(after, game, GameEvent::Saved { process, copy, is_taken });
    }

    fn saved(&mut self, game: usize, copy: Copy, is_taken: bool) {
        let this = &mut self.games[game];
        if is_taken {
            self.snapshots.acknowledged = self.snapshots.acknowledged.max(copy.value);
            if copy.n == 1 && this.copy.is_some_and(|there| there.life == copy.life) {
                self.runs(game, copy);
            }
        } else if this.copy.is_some_and(|there| there.life == copy.life && there.n >= copy.n) {
            // Either it is deposed, or a newer one of its own came first.
            let is_deposed = self.snapshots.stored.life > copy.life;
            if is_deposed {
                (this.copy, this.instance) = (None, None);
            }
        }
    }

    /// An instance runs from here on.
    fn runs(&mut self, game: usize, copy: Copy) {
        self.games[game].instance = Some(copy.life);
        self.tally.restored += u64::from(copy.value > 0);
        let died_us = self.snapshots.died_us.take();
        let now_us = self.now_us();
        self.tally.early += u64::from(died_us.is_some_and(|at_us| now_us - at_us < EARLY_US));
    }

    /// What goes out on a link goes in order: first the orders, then the answer.
    fn tell(&mut self, node: usize, game: usize, at: Epoch, renewed: Option<Renewed>) {
        if self.now_us() < self.games[game].cut_until_us || self.is_lost() {
            return;
        }
        let Some(master) = &self.nodes[node].master else { return };
        // What is not committed leaves later, with the next word.
        if master.commit() < master.last().lsn {
            return;
        }
        let orders = master.state().orders(game).collect();
        // A link is that of one process.
        let process = master.state().process(game);
        let after = self.delay();
        self.at_game(after, game, GameEvent::Told { process, at, orders, renewed });
    }

    fn hear(&mut self, game: usize, at: Epoch, orders: &[(u64, Order)], renewed: Option<Renewed>) {
        let now_us = self.now_us();
        let this = &mut self.games[game];
        if at < this.epoch {
            return;
        }
        this.epoch = at;
        let first = this.got + 1;
        let (mut gap, mut to_load) = (None, None);
        for (number, order) in orders.iter().filter(|(number, _)| *number >= first) {
            if *number != this.got + 1 {
                gap = Some(*number);
                break;
            }
            this.got = *number;
            match *order {
                // A lease begins with a word of its own.
                Order::Run(life) => {
                    this.copy = Some(Copy { life, ..Copy::default() });
                    to_load = Some(life);
                }
                Order::Stop(life) => {
                    this.instance.take_if(|there| *there == life);
                    this.copy.take_if(|there| there.life == life);
                }
            }
        }
        let process = this.process;
        let mut forgotten = None;
        if let Some(Renewed { lsn, sent_us, said: kept }) = renewed {
            if kept > this.said || (lsn > this.kept_lsn && kept < this.kept) {
                forgotten = Some((kept, this.kept, this.said));
            }
            this.kept = this.kept.max(kept);
            this.kept_lsn = this.kept_lsn.max(lsn);
            let clock_us = this.clock_us(now_us);
            let from_us =
                if self.mutant == Some(Mutant::LeaseFromAnswer) { clock_us } else { sent_us };
            let this = &mut self.games[game];
            this.lease_until_us = this.lease_until_us.max(from_us + LEASE_MS * 1_000);
        }
        if let Some(life) = to_load {
            let after = self.store_delay();
            self.at_game(after, game, GameEvent::Load { process, life });
        }
        if let Some(number) = gap {
            self.fail("I12", format!("order {number} of game server {game} comes after {first}"));
        }
        if let Some(what) = forgotten {
            self.fail(
                "I12",
                format!("of game server {game} is kept, was kept, was said: {what:?}"),
            );
        }
    }

    /// Nobody ever sees the instance twice.
    fn check_games(&mut self) {
        let now_us = self.now_us();
        let live = self.games.iter().filter(|game| game.is_live(now_us)).count();
        if live > 1 {
            let lives: Vec<_> = self.games.iter().filter_map(|game| game.instance).collect();
            self.fail("I11", format!("the instance with the key is live twice: {lives:?}"));
        }
        self.tally.live += u64::from(live == 1);
    }
}
