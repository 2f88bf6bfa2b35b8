//! Game servers and the one instance with a unique key: a model of what shells do, on the masters of the production
//! core.
//!
//! A game server has links to both masters. Once a second it says how it is, with the moment by its own clock, what it
//! has of its stream of orders, and what it has to say. The active commits that, and only then answers; the lease
//! counts from the moment that comes back. Without a lease the instance stands still.

use greenroom_master_core::LEASE_MS;
use greenroom_master_core::replica::{Apply, Mutant, Replica, Role};
use greenroom_protocol::Epoch;

use crate::machine::{Command, GAMES, Order};
use crate::world::World;

/// Between two words of a game server.
const WORD_US: u64 = 1_000_000;
/// Silence after which a master takes the link for lost.
const SILENCE_US: u64 = 3_000_000;

/// A game server.
#[derive(Clone, Debug)]
pub(crate) struct GameServer {
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
    Word { node: usize, sent_us: u64, got: u64, said_from: u64, said: u64 },
    /// What a master says reaches it: its epoch, the orders that are not acknowledged, and perhaps an answer.
    Told { at: Epoch, orders: Vec<(u64, Order)>, renewed: Option<Renewed> },
    /// Somebody wants the instance.
    Want,
    /// It falls asleep or is cut off.
    Fault,
}

impl GameServer {
    pub(crate) fn new(rate: u64) -> Self {
        Self {
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
            GameEvent::Word { node, sent_us, got, said_from, said } => {
                self.nodes[node].heard_us[game] = now_us;
                self.nodes[node].is_lost[game] = false;
                self.command(node, Command::Load { game, sent_us, got, said_from, said });
            }
            GameEvent::Told { at, orders, renewed } => {
                let until = self.games[game].asleep_until_us;
                if now_us < until {
                    let event = GameEvent::Told { at, orders, renewed };
                    self.at_game(until - now_us, game, event);
                } else {
                    self.hear(game, at, &orders, renewed);
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
                    if self.rng_below(3) == 0 {
                        self.games[game].asleep_until_us = until_us;
                    } else {
                        self.games[game].cut_until_us = until_us;
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
        if now_us < this.asleep_until_us {
            return;
        }
        this.said += 1;
        let (sent_us, got) = (this.clock_us(now_us), this.got);
        let (said_from, said, cut_until_us) = (this.kept + 1, this.said, this.cut_until_us);
        for node in 0..2 {
            if now_us < cut_until_us || self.is_lost() {
                continue;
            }
            // Now and then it takes a way on which it is late.
            let late = if self.rng_below(20) == 0 { self.rng_below(12_000_000) } else { 0 };
            let after = self.delay() + late;
            let word = GameEvent::Word { node, sent_us, got, said_from, said };
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
                this.is_lost[game] = true;
                self.command(node, Command::LinkLost(game));
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
    pub(crate) fn renewed(&mut self, node: usize, game: usize, renewed: Renewed) {
        let at = self.nodes[node].master.as_ref().and_then(Replica::rec).map(|rec| rec.at);
        self.tell(node, game, at.unwrap_or_default(), Some(renewed));
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
        let after = self.delay();
        self.at_game(after, game, GameEvent::Told { at, orders, renewed });
    }

    fn hear(&mut self, game: usize, at: Epoch, orders: &[(u64, Order)], renewed: Option<Renewed>) {
        let now_us = self.now_us();
        let this = &mut self.games[game];
        if at < this.epoch {
            return;
        }
        this.epoch = at;
        let first = this.got + 1;
        let mut gap = None;
        for (number, order) in orders.iter().filter(|(number, _)| *number >= first) {
            if *number != this.got + 1 {
                gap = Some(*number);
                break;
            }
            this.got = *number;
            match *order {
                // A lease begins with a word of its own.
                Order::Run(life) => this.instance = Some(life),
                Order::Stop(life) if this.instance == Some(life) => this.instance = None,
                Order::Stop(_) => {}
            }
        }
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
