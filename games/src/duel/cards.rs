//! The cards of a duel: which there are, who holds them, and what they do to the two who play.

use greenroom::Who;
use serde::{Deserialize, Serialize};

/// Health of a player who was not hit yet, and at most.
pub(super) const HEALTH: u8 = 20;
/// Shield at most.
const SHIELD_MAX: u8 = 8;
/// Cards in a hand, as long as there are some to be drawn.
const HAND: usize = 5;
/// What each player draws from, in an order that chance decides.
pub(super) const DECK: [Card; 16] = {
    use Card::{Focus, Guard, Leech, Mend, Pierce, Strike, Venom};
    [
        Strike, Strike, Strike, Strike, Pierce, Pierce, Guard, Guard, Guard, Mend, Mend, Leech,
        Leech, Focus, Focus, Venom,
    ]
};

/// A card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Card {
    /// 4 damage.
    Strike,
    /// 3 damage that no shield stops.
    Pierce,
    /// 4 shield.
    Guard,
    /// 4 health.
    Mend,
    /// 2 damage, and 2 health.
    Leech,
    /// The next card that does damage does twice as much.
    Focus,
    /// 1 damage that no shield stops, before each of the other's next 3 turns.
    Venom,
}

/// A player, as everybody sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fighter {
    /// The name to be shown.
    pub name: String,
    /// 0 to 20.
    pub health: u8,
    /// Damage that it stops before it breaks.
    pub shield: u8,
    /// The next damage counts twice.
    pub focused: bool,
    /// Turns for which it still costs health.
    pub venom: u8,
    /// Cards in the hand.
    pub hand: u8,
}

/// What nobody else sees: the hand, and what comes next, which not even its owner does.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) who: Who,
    pub(super) hand: Vec<Card>,
    pub(super) deck: Vec<Card>,
}

impl Held {
    /// Fills the hand from the deck; gives how many cards it has then.
    pub(super) fn draw(&mut self) -> u8 {
        while self.hand.len() < HAND
            && let Some(card) = self.deck.pop()
        {
            self.hand.push(card);
        }
        u8::try_from(self.hand.len()).unwrap_or(u8::MAX)
    }
}

impl Fighter {
    /// The venom in it does its damage.
    pub(super) fn suffer(&mut self) {
        if self.venom > 0 && self.health > 0 {
            (self.venom, self.health) = (self.venom - 1, self.health - 1);
        }
    }
}

impl Card {
    /// Does what it does; gives the damage that was done, and that which a shield stopped.
    pub(super) fn act(self, me: &mut Fighter, them: &mut Fighter) -> (u8, u8) {
        let mut strength = 0;
        match self {
            Self::Strike => strength = 4,
            Self::Pierce => strength = 3,
            Self::Guard => me.shield = (me.shield + 4).min(SHIELD_MAX),
            Self::Mend => me.health = (me.health + 4).min(HEALTH),
            Self::Leech => (strength, me.health) = (2, (me.health + 2).min(HEALTH)),
            Self::Focus => me.focused = true,
            Self::Venom => them.venom = 3,
        }
        if strength > 0 && std::mem::take(&mut me.focused) {
            strength *= 2;
        }
        let blocked = if self == Self::Pierce { 0 } else { strength.min(them.shield) };
        let damage = (strength - blocked).min(them.health);
        (them.shield, them.health) = (them.shield - blocked, them.health - damage);
        (damage, blocked)
    }
}
