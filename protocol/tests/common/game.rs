//! A game such as people write: its messages are serde types, its view is what every client sees.

use std::collections::BTreeMap;

use serde::Serialize;

/// What a seat asks for.
#[derive(Serialize)]
pub(crate) enum Input {
    /// A variant without data is a string.
    Shoot,
    /// A variant with data is a map with one entry.
    Move {
        x: f32,
        y: f32,
    },
    Say(&'static str),
}

/// What a seat asks with a call or a query.
#[derive(Serialize)]
pub(crate) enum Question {
    Buy { item: &'static str },
    Score,
}

/// What a seat is told.
#[derive(Serialize)]
pub(crate) enum Event {
    Hit { seat: u16, damage: u16 },
    RoundOver,
    Bought { gold: u32 },
    Score(u32),
}

/// The view that all see.
#[derive(Clone, Default, Serialize)]
pub(crate) struct World {
    pub(crate) round: u32,
    pub(crate) players: BTreeMap<&'static str, Player>,
}

#[derive(Clone, Serialize)]
pub(crate) struct Player {
    pub(crate) x: f32,
    pub(crate) y: f32,
    pub(crate) health: u8,
}

/// The view that one seat sees.
#[derive(Clone, Serialize)]
pub(crate) struct Hand {
    pub(crate) ammunition: u32,
}

impl World {
    /// Four players, each at a place of its own.
    pub(crate) fn at_the_start() -> Self {
        let names = ["ann", "bo", "cem", "dee"];
        let players = names.into_iter().zip([1.5, 20.25, 300.0, -4.0]);
        let player = |x| Player { x, y: x * 2.0, health: 100 };
        Self { round: 1, players: players.map(|(name, x)| (name, player(x))).collect() }
    }
    /// The world with one player elsewhere.
    pub(crate) fn moved(&self, name: &'static str, x: f32, y: f32) -> Self {
        let mut world = self.clone();
        if let Some(player) = world.players.get_mut(name) {
            (player.x, player.y) = (x, y);
        }
        world
    }
    /// The world with one player hit.
    pub(crate) fn hit(&self, name: &'static str, damage: u8) -> Self {
        let mut world = self.clone();
        if let Some(player) = world.players.get_mut(name) {
            player.health = player.health.saturating_sub(damage);
        }
        world
    }
}
