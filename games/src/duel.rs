//! Duel: two players, a hand of cards each that only its owner sees, one card a turn, and one result that is kept.
//!
//! A turn-based game beside the arena's real-time one: its tick rate is 0, so that it steps when a player plays and
//! when a timer is due, and costs nothing between. What nobody else may know is in `private_view` and nowhere else:
//! the other's page has only numbers of cards, whatever somebody reads on its wire.

mod cards;
mod result;

use std::collections::BTreeMap;
use std::time::Duration;

use greenroom::{Cx, GameEvent, Grace, Instance, Kind, MetaKeyword, Never, Reject, Seat, Why};
use greenroom::{StoreRefusal, StoreTicket, Stored};
use serde::{Deserialize, Serialize};

pub use cards::{Card, Fighter};
use cards::{DECK, HEALTH, Held};

/// How long a player may think about a turn; then the first card of the hand is played.
const TURN_TIME: Duration = Duration::from_secs(30);

/// How far a duel is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, MetaKeyword)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// For the second player.
    #[default]
    Waiting,
    /// It is somebody's turn.
    Playing,
    /// It has a result.
    Over,
}

/// What a duel is found by: `phase = "waiting" order by created`.
#[derive(Clone, Debug, greenroom::Meta)]
pub struct Meta {
    #[index]
    phase: Phase,
    /// Who made it, as it is shown.
    host: String,
    guest: String,
}

/// What a player sends: who gives up leaves.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum In {
    /// Play the card at this place of the hand, from 0.
    Play(u8),
}

/// What happens, told to both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Out {
    /// A card was played by this seat; the other lost so much health, and so much of its shield.
    Played(Seat, Card, u8, u8),
    /// The duel is over, and how it ended is stored under this key: this seat has won, or nobody.
    Result(String, Option<Seat>),
}

/// How a duel ended: the document `duel/ID`, which is written once and never again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Who won; nobody if both are left with the same.
    pub winner: Option<Seat>,
    /// Ids of the users who played, by their seats.
    pub players: Vec<String>,
    /// Turns that were played.
    pub turns: u16,
}

/// What analysts ask about: `duel.over` of the event log, about who has won.
#[derive(Debug, Serialize)]
struct Over {
    turns: u16,
    winner: Option<Seat>,
}

impl GameEvent for Over {
    const KIND: &'static str = "over";
}

/// What everybody sees.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Table {
    phase: Phase,
    /// Seconds that a turn may take.
    turn_secs: u64,
    /// Turns that were played.
    turns: u16,
    /// Whose turn it is.
    turn: Option<Seat>,
    winner: Option<Seat>,
    fighters: BTreeMap<Seat, Fighter>,
}

/// The state.
#[derive(Debug, Serialize, Deserialize)]
pub struct Duel {
    table: Table,
    held: BTreeMap<Seat, Held>,
    /// Both know how it ended, since that is stored.
    told: bool,
    /// The win is among those of the winner.
    #[serde(default)]
    counted: bool,
    /// What of the store is waited for.
    #[serde(default)]
    asked: Option<StoreTicket>,
}

impl Instance for Duel {
    const KIND: Kind<Self> = Kind::new("duel").seats_max(2).version(1).durable_every(1);
    type Params = ();
    type Meta = Meta;
    type In = In;
    type Query = Never;
    type Reply = u16;
    type Out = Out;
    type Timer = u16; // Which turn's time is over, by the turns before it.
    type View<'a> = &'a Table;
    type PrivateView<'a> = &'a [Card];

    fn create((): (), cx: &mut Cx<Self>) -> Result<Self, Reject> {
        let table = Table { turn_secs: TURN_TIME.as_secs(), ..Table::default() };
        let held = BTreeMap::new();
        let duel = Self { table, held, told: false, counted: false, asked: None };
        cx.set_meta(duel.meta());
        Ok(duel)
    }

    fn joined(&mut self, seat: Seat, cx: &mut Cx<Self>) {
        let Some(who) = cx.who(seat).cloned() else { return };
        let fighter = Fighter { name: who.name.to_string(), health: HEALTH, ..Fighter::default() };
        self.table.fighters.insert(seat, fighter);
        let mut deck = DECK.to_vec();
        cx.random().shuffle(&mut deck);
        self.held.insert(seat, Held { who, hand: Vec::new(), deck });
        if self.held.len() == 2 {
            self.table.phase = Phase::Playing;
            cx.set_open(false);
            self.draw(seat);
            self.draw(other(seat));
            self.begin_turn(if cx.random().chance(0.5) { seat } else { other(seat) }, cx);
        }
        cx.set_meta(self.meta());
    }

    fn dropped(&mut self, _: Seat, _: &mut Cx<Self>) -> Grace {
        // Nobody is to be matched with somebody who has closed the page.
        if self.table.phase == Phase::Waiting { Grace::secs(3) } else { Grace::secs(30) }
    }

    fn left(&mut self, seat: Seat, _: Why, cx: &mut Cx<Self>) {
        match self.table.phase {
            Phase::Waiting => {
                self.table.fighters.remove(&seat);
                self.held.remove(&seat);
                cx.set_meta(self.meta());
            }
            Phase::Playing => self.end(Some(other(seat)), cx),
            Phase::Over => {}
        }
    }

    fn message(&mut self, from: Seat, In::Play(at): In, cx: &mut Cx<Self>) {
        if self.table.turn != Some(from) {
            return cx.refuse("it is not your turn");
        }
        if !self.play(from, at.into(), cx) {
            return cx.refuse("there is no card at this place of your hand");
        }
        cx.reply(self.table.turns);
    }

    fn timer(&mut self, turns: u16, cx: &mut Cx<Self>) {
        match self.table.turn {
            Some(seat) if self.table.turns == turns => drop(self.play(seat, 0, cx)),
            None if self.table.phase == Phase::Over => self.store(cx),
            _ => {}
        }
    }

    fn stored(&mut self, of: StoreTicket, is: Result<Stored, StoreRefusal>, cx: &mut Cx<Self>) {
        // Another was asked meanwhile, if it is not this one.
        if self.asked == Some(of) {
            self.hear(is, cx);
        }
    }

    fn view(&self) -> &Table {
        &self.table
    }

    fn private_view(&self, seat: Seat) -> Option<&[Card]> {
        self.held.get(&seat).map(|held| &*held.hand)
    }
}

impl Duel {
    /// Plays a card of a hand, and gives the turn to the other; false if there is no such card.
    fn play(&mut self, by: Seat, at: usize, cx: &mut Cx<Self>) -> bool {
        let held = self.held.get_mut(&by).filter(|held| at < held.hand.len());
        let Some(held) = held else { return false };
        let card = held.hand.remove(at);
        let (mut me, mut them) = (self.fighter(by), self.fighter(other(by)));
        let (damage, blocked) = card.act(&mut me, &mut them);
        self.table.fighters.insert(by, me);
        self.table.fighters.insert(other(by), them);
        self.table.turns += 1;
        cx.broadcast(Out::Played(by, card, damage, blocked));
        self.draw(by);
        self.begin_turn(other(by), cx);
        true
    }

    /// Gives the turn to a seat, unless the duel is over: somebody has no health, or both have no card.
    fn begin_turn(&mut self, seat: Seat, cx: &mut Cx<Self>) {
        let mut me = self.fighter(seat);
        me.suffer();
        let (mine, theirs, hand) = (me.health, self.fighter(other(seat)).health, me.hand);
        self.table.fighters.insert(seat, me);
        if mine > 0 && theirs > 0 && hand > 0 {
            self.table.turn = Some(seat);
            cx.after(TURN_TIME, self.table.turns);
            return;
        }
        let winner = if mine > theirs { seat } else { other(seat) };
        self.end((mine != theirs).then_some(winner), cx);
    }

    /// Fills a hand from its deck.
    fn draw(&mut self, seat: Seat) {
        let pair = self.held.get_mut(&seat).zip(self.table.fighters.get_mut(&seat));
        if let Some((held, fighter)) = pair {
            fighter.hand = held.draw();
        }
    }

    fn end(&mut self, winner: Option<Seat>, cx: &mut Cx<Self>) {
        (self.table.phase, self.table.turn, self.table.winner) = (Phase::Over, None, winner);
        cx.set_meta(self.meta());
        self.store(cx);
    }

    fn tell(&mut self, cx: &mut Cx<Self>) {
        self.told = true;
        let over = Over { turns: self.table.turns, winner: self.table.winner };
        match self.winner() {
            Some(held) => cx.event_of(&held.who, &over),
            None => cx.event(&over),
        }
        cx.broadcast(Out::Result(format!("duel/{}", cx.instance()), self.table.winner));
        self.read_wins(cx);
    }

    fn winner(&self) -> Option<&Held> {
        self.table.winner.and_then(|seat| self.held.get(&seat))
    }

    fn fighter(&self, seat: Seat) -> Fighter {
        self.table.fighters.get(&seat).cloned().unwrap_or_default()
    }

    fn meta(&self) -> Meta {
        let name = |seat| self.fighter(seat).name;
        Meta { phase: self.table.phase, host: name(Seat(0)), guest: name(Seat(1)) }
    }
}

/// Whoever sits opposite.
const fn other(seat: Seat) -> Seat {
    Seat(1 - seat.0)
}

#[cfg(test)]
#[path = "duel_tests.rs"]
mod tests;
