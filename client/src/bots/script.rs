//! What a bot says in a game.

use ecow::EcoString;
use greenroom_protocol::{Code, Refusal};
use serde::{Deserialize, Serialize, de::IgnoredAny};

use crate::{Message, Reply, Seat, View, client::encode};

/// What a call was answered with.
pub type CallAnswer = Result<Reply, Refusal>;

/// One bot's part in a game. Payloads are encoded here, so that a script fits any game's types.
pub trait Script: Send {
    /// The kind of instance that is played.
    fn kind(&self) -> &str;
    /// The next message, if the script sends any; `dice` gives 64 random bits.
    fn message(&mut self, dice: u64) -> Option<Vec<u8>>;
    /// What everybody sees has changed.
    fn sees(&mut self, seat: Seat, view: &View) {
        _ = (seat, view);
    }
    /// Whether there is something to call with; if not, the planned call is left out.
    fn may_call(&self) -> bool {
        true
    }
    /// A call with this number, which no other call of this bot has.
    fn call(&mut self, number: u64, dice: u64) -> Vec<u8>;
    /// Whether this can be the answer to the call with this number.
    fn is_answer(&self, number: u64, answer: &CallAnswer) -> bool;
    /// Whether the game announces what was called to everybody, with one message, if it was answered so.
    fn is_announced(&self, answer: &CallAnswer) -> bool {
        _ = answer;
        false
    }
    /// Whether a message is the announcement of a call from this seat.
    fn announces(&self, seat: Seat, message: &Message) -> bool {
        _ = (seat, message);
        false
    }
    /// What a message says of how it ended, if it does: the bot then leaves, and looks for another instance.
    fn ends(&mut self, message: &Message) -> Option<GameResult> {
        _ = message;
        None
    }
}

/// How an instance ended, as its game told those who played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GameResult {
    /// Of the result, of which there is one.
    pub id: EcoString,
    /// Who won, if anybody.
    pub winner: Option<Seat>,
}

/// The smallest kind: what it is called with comes back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

/// A payload of 32 characters, as the peers' benchmarks have it.
fn echoed(number: u64) -> Vec<u8> {
    encode(&format!("echo {number:027}")).expect("a text encodes: writing to memory does not fail")
}

impl Script for Echo {
    fn kind(&self) -> &str {
        "echo"
    }
    fn message(&mut self, _: u64) -> Option<Vec<u8>> {
        None
    }
    fn call(&mut self, number: u64, _: u64) -> Vec<u8> {
        echoed(number)
    }
    fn is_answer(&self, number: u64, answer: &CallAnswer) -> bool {
        answer.as_ref().is_ok_and(|reply| reply.payload == echoed(number))
    }
}

/// Runs about and shoots. The types are those of the demo game `arena`, as far as a bot needs them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arena;

#[derive(Serialize)]
enum ArenaIn {
    Run(f32, f32),
    Shoot(f32, f32),
}

#[derive(Deserialize)]
enum ArenaReply {
    Shot(IgnoredAny),
}

#[derive(Deserialize)]
enum ArenaOut {
    Shot { by: Seat },
}

/// One of 256 directions.
fn direction(dice: u64) -> (f32, f32) {
    let [turn, ..] = dice.to_le_bytes();
    let (dy, dx) = (f32::from(turn) * std::f32::consts::TAU / 256.0).sin_cos();
    (dx, dy)
}

impl Script for Arena {
    fn kind(&self) -> &str {
        "arena"
    }
    fn message(&mut self, dice: u64) -> Option<Vec<u8>> {
        let (dx, dy) = direction(dice);
        encode(&ArenaIn::Run(dx, dy)).ok()
    }
    fn call(&mut self, _: u64, dice: u64) -> Vec<u8> {
        let (dx, dy) = direction(dice);
        encode(&ArenaIn::Shoot(dx, dy))
            .expect("two numbers encode: writing to memory does not fail")
    }
    fn is_answer(&self, _: u64, answer: &CallAnswer) -> bool {
        match answer {
            Ok(reply) => reply.decode::<ArenaReply>().is_ok(),
            // Who is down, or has no shot left, is refused by the game: an answer like any other.
            Err(refusal) => refusal.code == Code::Rejected,
        }
    }
    fn is_announced(&self, answer: &CallAnswer) -> bool {
        answer.is_ok()
    }
    fn announces(&self, seat: Seat, message: &Message) -> bool {
        message.decode::<ArenaOut>().is_ok_and(|ArenaOut::Shot { by }| by == seat)
    }
}

/// Plays cards of its hand at chance, whenever it is its turn, until the duel has a result. The types are those of the
/// demo game `duel`, as far as a bot needs them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Duel {
    /// Cards of its hand; 0 while it is not its turn.
    hand: u8,
}

#[derive(Serialize)]
enum DuelIn {
    Play(u8),
}

#[derive(Deserialize)]
enum DuelOut {
    Played(Seat, IgnoredAny, IgnoredAny, IgnoredAny),
    Result(EcoString, Option<Seat>),
}

#[derive(Deserialize)]
struct DuelView {
    turn: Option<Seat>,
    fighters: std::collections::BTreeMap<Seat, Fighter>,
}

#[derive(Deserialize)]
struct Fighter {
    hand: u8,
}

impl Script for Duel {
    fn kind(&self) -> &str {
        "duel"
    }
    fn message(&mut self, _: u64) -> Option<Vec<u8>> {
        None
    }
    fn sees(&mut self, seat: Seat, view: &View) {
        let view = view.decode().ok().filter(|view: &DuelView| view.turn == Some(seat));
        self.hand = view.and_then(|view| Some(view.fighters.get(&seat)?.hand)).unwrap_or(0);
    }
    fn may_call(&self) -> bool {
        self.hand > 0
    }
    fn call(&mut self, _: u64, dice: u64) -> Vec<u8> {
        let [dice, ..] = dice.to_le_bytes();
        let card = dice % self.hand.max(1);
        self.hand = 0;
        encode(&DuelIn::Play(card)).expect("a number encodes: writing to memory does not fail")
    }
    fn is_answer(&self, _: u64, answer: &CallAnswer) -> bool {
        match answer {
            Ok(reply) => reply.decode::<u16>().is_ok(),
            // The other gave up meanwhile.
            Err(refusal) => refusal.code == Code::Rejected,
        }
    }
    fn is_announced(&self, answer: &CallAnswer) -> bool {
        answer.is_ok()
    }
    fn announces(&self, seat: Seat, message: &Message) -> bool {
        matches!(message.decode(), Ok(DuelOut::Played(by, ..)) if by == seat)
    }
    fn ends(&mut self, message: &Message) -> Option<GameResult> {
        match message.decode().ok()? {
            DuelOut::Result(id, winner) => Some(GameResult { id, winner }),
            DuelOut::Played(..) => None,
        }
    }
}
