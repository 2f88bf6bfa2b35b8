//! What the benchmark of searches looks for: instances that stay, say six things of themselves, and change one of them
//! as often as a player asks for it.

use greenroom::{Cx, Instance, Kind, Meta, MetaKeyword, Never, Reject, Seat};
use serde::{Deserialize, Serialize};

/// An instance is what it says of itself.
#[derive(Clone, Debug)]
pub struct Lobby(About);

/// What is said of it.
#[derive(Clone, Debug, Meta)]
pub struct About {
    #[index]
    mode: Mode,
    #[index(ord)]
    rating: u16,
    #[index(prefix)]
    name: String,
    map: String,
    level: u16,
    ranked: bool,
}

/// What is played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, MetaKeyword, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One against one.
    #[default]
    Duel,
    /// Two against two.
    Doubles,
    /// Five against five.
    Squad,
    /// Everybody for themselves.
    Brawl,
    /// Against the clock.
    Race,
    /// Hold the place.
    Siege,
    /// Bring the flag home.
    Flag,
    /// Nobody counts.
    Training,
}

/// What whoever makes one says of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Params {
    /// What is played.
    pub mode: Mode,
    /// How good its players are.
    pub rating: u16,
    /// What it is called.
    pub name: String,
    /// Where it is played.
    pub map: String,
    /// How far its players are.
    pub level: u16,
}

/// It is rated anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// How good its players are.
    pub rating: u16,
}

impl Instance for Lobby {
    const KIND: Kind<Self> = Kind::new("lobby").needs(&["bench"]).stays_when_empty();
    type Params = Params;
    type Meta = About;
    type In = Rate;
    type Query = Never;
    type Reply = Never;
    type Out = Never;
    type Timer = Never;
    type View<'a> = ();
    type PrivateView<'a> = ();

    fn create(params: Params, cx: &mut Cx<Self>) -> Result<Self, Reject> {
        let Params { mode, rating, name, map, level } = params;
        let about = About { mode, rating, name, map, level, ranked: mode != Mode::Training };
        cx.set_meta(about.clone());
        Ok(Self(about))
    }
    fn message(&mut self, _: Seat, Rate { rating }: Rate, cx: &mut Cx<Self>) {
        self.0.rating = rating;
        cx.set_meta(self.0.clone());
    }
    fn view(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use greenroom::meta::MetaValue;
    use greenroom::testing::Stage;

    #[test]
    fn a_rating_that_a_player_sends_is_what_the_lobby_says_of_itself() {
        let params = Params { mode: Mode::Race, rating: 1_200, ..Params::default() };
        let mut stage = Stage::<Lobby>::with(&params, [7; 32]).unwrap();
        stage.join(0).unwrap();
        stage.send(0, &Rate { rating: 1_250 });
        let meta = stage.core().meta_changed().meta;
        assert_eq!(meta["mode"], MetaValue::Text("race".into()));
        assert_eq!(meta["rating"], MetaValue::Int(1_250));
        assert_eq!(meta["ranked"], MetaValue::Bool(true));
    }
}
