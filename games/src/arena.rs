//! Arena: up to 16 players run about a square, shoot each other, fall, and get up again.
//!
//! This is a whole multiplayer game on Greenroom. The type [`Arena`] is the state; its `impl Instance` is everything
//! that can happen to it. Greenroom calls those handlers one at a time, so there is nothing to lock, and what a handler
//! does to the outside goes through `cx`. Clients send an [`In`] and see a [`View`], kept up to date by small patches;
//! `pages/src/arena.ts` is one for browsers. For a game of your own: copy this file, change the types at the top until
//! they say what your game is about, then the handlers. `arena_tests.rs` plays it without a server.

use std::collections::BTreeMap;
use std::time::Duration;

use greenroom::{Cx, Grace, Instance, Kind, Reject, Seat, Why};
use serde::{Deserialize, Serialize};

/// Steps per second: how often everybody moves.
const TICK_RATE: u16 = 20;
/// Units that a player runs in one step.
const STRIDE: f32 = 0.5;
/// How far a shot reaches, and how far beside it a player may stand to be hit, in units.
const SHOT_LENGTH: f32 = 30.0;
const SHOT_WIDTH: f32 = 1.0;
/// Health that a hit costs, of 100.
const DAMAGE: u8 = 25;
/// Shots in a weapon, and the steps until one is reloaded.
const SHOTS_MAX: u8 = 5;
const RELOAD_TICKS: u8 = 10;
/// How long a player lies on the ground.
const DOWN_TIME: Duration = Duration::from_secs(3);

/// The state. It derives serde so that all of it can be stored and moved (see `storable` below).
#[derive(Debug, Serialize, Deserialize)]
pub struct Arena {
    params: Params,
    // An ordered map: a HashMap's order differs from run to run, so no replay would be like the first.
    players: BTreeMap<Seat, Player>,
    weapons: BTreeMap<Seat, Weapon>,
}

/// What whoever creates an arena may choose.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Params {
    /// Length of a side, in units, 10 to 1,000.
    pub size: u16,
    /// What is played for.
    pub mode: Mode,
}

impl Default for Params {
    fn default() -> Self {
        Self { size: 100, mode: Mode::Training }
    }
}

/// What is played for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, greenroom::MetaKeyword)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nothing.
    Training,
    /// A place on the rank board `arena`, by the hits of one's last arena.
    Ranked,
}

/// What an arena is found by: `mode = "ranked" and players < 16 order by players desc`.
#[derive(Clone, Copy, Debug, greenroom::Meta)]
pub struct Meta {
    #[index]
    mode: Mode,
    #[index(ord)]
    players: usize,
}

/// What a player sends.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum In {
    /// Run in this direction, right and down, until told otherwise; (0, 0) stands still.
    Run(f32, f32),
    /// Shoot in this direction. As a call, it is answered with [`Reply::Shot`].
    Shoot(f32, f32),
}

/// What calls and queries are answered with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Who was hit, if anybody.
    Shot(Option<Seat>),
    /// Names and hits, the best first.
    Scores(Vec<(String, u32)>),
}

/// What happens, told to everybody: once, in order, and also to who was disconnected meanwhile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Out {
    /// A shot was fired, and somebody was hit or not.
    Shot {
        /// By whom.
        by: Seat,
        /// In which direction.
        toward: (f32, f32),
        /// Who was hit.
        hit: Option<Seat>,
    },
    /// A player is down.
    Down {
        /// Who.
        seat: Seat,
        /// By whom.
        by: Seat,
    },
}

/// What everybody sees. It borrows the state, so that nothing is copied before it is encoded.
#[derive(Debug, Serialize)]
pub struct View<'a> {
    size: f32,
    players: &'a BTreeMap<Seat, Player>,
}

/// A player, as everybody sees it. What changes often has one length whatever its value, so that a patch holds only
/// the bytes that changed and never moves those behind them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Player {
    /// From the left, in units.
    pub x: f32,
    /// From the top, in units.
    pub y: f32,
    /// 100 is well, 0 is down.
    pub hp: u8,
    /// Hits.
    pub score: u32,
    /// The name to be shown.
    pub name: String,
}

/// What only its owner sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weapon {
    /// Shots left.
    pub shots: u8,
    /// Steps until the next is reloaded.
    pub reload: u8,
    /// Where its owner runs, per step.
    pub running: (f32, f32),
}

impl Instance for Arena {
    const KIND: Kind<Self> =
        Kind::new("arena").tick_rate(TICK_RATE).seats_max(16).version(1).durable_every(30);
    type Params = Params;
    type Meta = Meta;
    type In = In;
    type Query = ();
    type Reply = Reply;
    type Out = Out;
    type Timer = Seat; // What comes back from `cx.after`: who gets up.
    type View<'a> = View<'a>;
    type PrivateView<'a> = &'a Weapon;

    fn create(params: Params, cx: &mut Cx<Self>) -> Result<Self, Reject> {
        if !(10..=1_000).contains(&params.size) {
            return Err(Reject::new("an arena is 10 to 1,000 units long"));
        }
        let arena = Self { params, players: BTreeMap::new(), weapons: BTreeMap::new() };
        cx.set_meta(arena.meta());
        Ok(arena)
    }

    fn joined(&mut self, seat: Seat, cx: &mut Cx<Self>) {
        let name = cx.who(seat).map_or_else(String::new, |who| who.name.to_string());
        let (x, y) = self.somewhere(cx);
        self.players.insert(seat, Player { x, y, hp: 100, score: 0, name });
        let (shots, reload, running) = (SHOTS_MAX, RELOAD_TICKS, (0.0, 0.0));
        self.weapons.insert(seat, Weapon { shots, reload, running });
        cx.set_meta(self.meta());
    }

    fn dropped(&mut self, seat: Seat, _: &mut Cx<Self>) -> Grace {
        self.weapons.entry(seat).and_modify(|weapon| weapon.running = (0.0, 0.0));
        Grace::secs(20) // Whoever is back by then finds everything as it was.
    }

    fn left(&mut self, seat: Seat, _: Why, cx: &mut Cx<Self>) {
        self.weapons.remove(&seat);
        if let (Some(player), Mode::Ranked) = (self.players.remove(&seat), self.params.mode) {
            cx.score("arena", seat, player.score.into());
        }
        cx.set_meta(self.meta());
    }

    fn message(&mut self, from: Seat, input: In, cx: &mut Cx<Self>) {
        match input {
            In::Run(dx, dy) => {
                let ((dx, dy), weapon) = (unit(dx, dy), self.weapons.entry(from));
                weapon.and_modify(|weapon| weapon.running = (dx * STRIDE, dy * STRIDE));
            }
            In::Shoot(dx, dy) => self.shoot(from, unit(dx, dy), cx),
        }
    }

    fn query(&self, _: Seat, (): ()) -> Result<Reply, Reject> {
        let score = |player: &Player| (player.name.clone(), player.score);
        let mut scores: Vec<_> = self.players.values().map(score).collect();
        scores.sort_by_key(|(_, score)| std::cmp::Reverse(*score));
        Ok(Reply::Scores(scores))
    }

    fn timer(&mut self, seat: Seat, cx: &mut Cx<Self>) {
        let place = self.somewhere(cx);
        if let Some(player) = self.players.get_mut(&seat) {
            ((player.x, player.y), player.hp) = (place, 100);
        }
    }

    fn tick(&mut self, _: &mut Cx<Self>) {
        let size = f32::from(self.params.size);
        for (player, weapon) in self.players.values_mut().zip(self.weapons.values_mut()) {
            if player.hp > 0 {
                player.x = rounded((player.x + weapon.running.0).clamp(0.0, size));
                player.y = rounded((player.y + weapon.running.1).clamp(0.0, size));
            }
            weapon.reload -= u8::from(weapon.shots < SHOTS_MAX);
            if weapon.reload == 0 {
                (weapon.shots, weapon.reload) = (weapon.shots + 1, RELOAD_TICKS);
            }
        }
    }

    fn view(&self) -> View<'_> {
        View { size: f32::from(self.params.size), players: &self.players }
    }

    fn private_view(&self, seat: Seat) -> Option<&Weapon> {
        self.weapons.get(&seat)
    }
}

impl Arena {
    fn shoot(&mut self, by: Seat, direction: (f32, f32), cx: &mut Cx<Self>) {
        let pair = self.weapons.get_mut(&by).zip(self.players.get(&by));
        let Some((weapon, shooter)) = pair else { return };
        if weapon.shots == 0 || shooter.hp == 0 {
            return cx.refuse("nothing to shoot with"); // The answer, if it was a call.
        }
        weapon.shots -= 1;
        let hit = self.first_in_line(by, (shooter.x, shooter.y), direction);
        cx.broadcast(Out::Shot { by, toward: direction, hit });
        cx.reply(Reply::Shot(hit));
        if let Some(hit) = hit {
            self.hit(hit, by, cx);
        }
    }

    /// Who stands first in the line of a shot.
    fn first_in_line(&self, by: Seat, from: (f32, f32), direction: (f32, f32)) -> Option<Seat> {
        let standing = self.players.iter().filter(|(seat, player)| **seat != by && player.hp > 0);
        let in_line = standing.filter_map(|(seat, player)| {
            let (x, y) = (player.x - from.0, player.y - from.1);
            let along = x * direction.0 + y * direction.1;
            let beside = (x * direction.1 - y * direction.0).abs();
            ((0.0..=SHOT_LENGTH).contains(&along) && beside <= SHOT_WIDTH).then_some((along, *seat))
        });
        in_line.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, seat)| seat)
    }

    fn hit(&mut self, seat: Seat, by: Seat, cx: &mut Cx<Self>) {
        let Some(player) = self.players.get_mut(&seat) else { return };
        player.hp = player.hp.saturating_sub(DAMAGE);
        if player.hp == 0 {
            cx.broadcast(Out::Down { seat, by });
            cx.after(DOWN_TIME, seat);
        }
        self.players.entry(by).and_modify(|shooter| shooter.score += 1);
    }

    fn somewhere(&self, cx: &mut Cx<Self>) -> (f32, f32) {
        let size = f32::from(self.params.size);
        (rounded(cx.random().between(0.0..size)), rounded(cx.random().between(0.0..size)))
    }

    fn meta(&self) -> Meta {
        Meta { mode: self.params.mode, players: self.players.len() }
    }
}

/// A direction of length 1; what is no direction is (0, 0).
fn unit(dx: f32, dy: f32) -> (f32, f32) {
    let length = dx.hypot(dy);
    if length.is_normal() { (dx / length, dy / length) } else { (0.0, 0.0) }
}

/// To a 32nd of a unit: nobody sees less, and a number with few bits makes a patch with few bytes.
fn rounded(place: f32) -> f32 {
    (place * 32.0).round() / 32.0
}

#[cfg(test)]
#[path = "arena_tests.rs"]
mod tests;
