//! How a duel's result is kept: stored, told, and then counted among the winner's wins, once, whatever is killed.
//!
//! A counter alone can't do that: a server that dies after it has asked does not know whether it counted, and the life
//! that goes on can ask again, or not, and is wrong either way. So the count keeps the duels that it counted last, in
//! one document, which is written over the state in which it was read: asking again finds this one in it.

use std::time::Duration;

use greenroom::{Cx, StoreRefusal, StoreTicket, Stored};
use serde::{Deserialize, Serialize};

use super::{Duel, Held, Outcome};

/// How long a store that could not be reached is left alone.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// Duels that a count remembers. One is counted within its life, so that another is only asked about beside it if the
/// same user wins at the same time.
const LATEST_MAX: usize = 32;

/// The document `duel/wins/USER`.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wins {
    /// How many duels the user has won.
    pub(super) count: i64,
    /// Ids of the latest of them, the newest last.
    #[serde(default)]
    pub(super) latest: Vec<String>,
}

impl Wins {
    pub(super) fn add(&mut self, duel: String) {
        self.count += 1;
        self.latest.push(duel);
        if self.latest.len() > LATEST_MAX {
            self.latest.remove(0);
        }
    }
}

fn key(winner: &Held) -> String {
    format!("wins/{}", winner.who.user)
}

impl Duel {
    /// Has the outcome stored, and then counted; nobody is told it before it is stored.
    pub(super) fn store(&mut self, cx: &mut Cx<Self>) {
        if self.told {
            return self.read_wins(cx);
        }
        let players = self.held.values().map(|held| held.who.user.to_string()).collect();
        let outcome = Outcome { winner: self.table.winner, players, turns: self.table.turns };
        let key = cx.instance().to_string();
        let asked = cx.store().insert(&key, &outcome);
        self.ask(asked, cx);
    }

    /// Waits for this answer of the store and no other.
    fn ask(&mut self, asked: Result<StoreTicket, StoreRefusal>, cx: &mut Cx<Self>) {
        self.asked = asked.ok();
        if self.asked.is_none() {
            self.again(cx);
        }
    }

    fn again(&self, cx: &mut Cx<Self>) {
        cx.after(AGAIN, self.table.turns);
    }

    /// Goes on with what the store has answered.
    pub(super) fn hear(&mut self, is: Result<Stored, StoreRefusal>, cx: &mut Cx<Self>) {
        match is {
            is if self.told => self.count(is, cx),
            Ok(Stored::Written(_)) => self.tell(cx),
            // Asked twice, or played once more from an older state: what was stored first holds.
            Err(StoreRefusal::Exists) => {
                let key = cx.instance().to_string();
                let asked = cx.store().get(&key);
                self.ask(asked, cx);
            }
            Ok(Stored::Found(document)) => {
                if let Ok(Outcome { winner, .. }) = document.decode() {
                    self.table.winner = winner;
                    self.tell(cx);
                }
            }
            Ok(_) => {}
            Err(_) => self.again(cx),
        }
    }

    /// Reads the winner's wins, unless this one is among them.
    pub(super) fn read_wins(&mut self, cx: &mut Cx<Self>) {
        if let Some(winner) = self.winner().filter(|_| !self.counted) {
            let asked = cx.store().get(&key(winner));
            self.ask(asked, cx);
        }
    }

    /// Counts the win among those that were read, or puts the winner on the board if it is there.
    fn count(&mut self, of: Result<Stored, StoreRefusal>, cx: &mut Cx<Self>) {
        let Some(winner) = self.winner() else { return };
        let (mut wins, version) = match of {
            Ok(Stored::Absent) => (Wins::default(), None),
            Ok(Stored::Found(document)) => match document.decode::<Wins>() {
                Ok(wins) => (wins, Some(document.version)),
                Err(_) => return, // Somebody else's, which reading again does not mend.
            },
            // It is there, or another duel of this user was faster.
            Ok(Stored::Written(_)) | Err(StoreRefusal::Exists | StoreRefusal::Changed) => {
                return self.read_wins(cx);
            }
            Ok(Stored::Removed | Stored::Counted(_) | Stored::Page { .. }) => return,
            Err(_) => return self.again(cx),
        };
        let duel = cx.instance().to_string();
        if wins.latest.contains(&duel) {
            cx.score("duel_wins", &winner.who, wins.count);
            self.counted = true;
            return;
        }
        wins.add(duel);
        let asked = match version {
            Some(version) => cx.store().replace(&key(winner), version, &wins),
            None => cx.store().insert(&key(winner), &wins),
        };
        self.ask(asked, cx);
    }
}
