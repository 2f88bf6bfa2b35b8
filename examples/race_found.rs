//! The race of docs/first-game.md once more, as one that is found by what it says of itself. A test holds the document
//! equal to this file.

use std::collections::BTreeSet;

use greenroom::{App, Cx, Instance, Kind, Never, Reject, Seat, Why};
use greenroom::{Meta, MetaKeyword};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Default, Serialize, Deserialize, MetaKeyword)]
#[serde(rename_all = "snake_case")]
enum Mode {
    #[default]
    Training,
    Ranked,
}

#[derive(Meta)]
struct About {
    #[index]
    mode: Mode,
    #[index(ord)]
    rating: u16,
    started: bool,
}

#[derive(Default, Deserialize)]
struct Params {
    mode: Mode,
    rating: u16,
}

struct Race {
    params: Params,
    runners: BTreeSet<Seat>,
}

impl Instance for Race {
    const KIND: Kind<Self> = Kind::new("race").tick_rate(20).seats_max(8);
    type Params = Params;
    type Meta = About;
    type In = Never;
    type Query = Never;
    type Reply = Never;
    type Out = Never;
    type Timer = Never;
    type View<'a> = &'a BTreeSet<Seat>;
    type PrivateView<'a> = ();

    fn create(params: Params, cx: &mut Cx<Self>) -> Result<Self, Reject> {
        let Params { mode, rating } = params;
        cx.set_meta(About { mode, rating, started: false });
        Ok(Self { params, runners: BTreeSet::new() })
    }

    fn joined(&mut self, seat: Seat, cx: &mut Cx<Self>) {
        self.runners.insert(seat);
        let Params { mode, rating } = self.params;
        cx.set_meta(About { mode, rating, started: self.runners.len() > 1 });
    }

    fn left(&mut self, seat: Seat, _: Why, _: &mut Cx<Self>) {
        self.runners.remove(&seat);
    }

    fn message(&mut self, _: Seat, input: Never, _: &mut Cx<Self>) {
        match input {}
    }

    fn view(&self) -> &BTreeSet<Seat> {
        &self.runners
    }
}

fn main() -> std::process::ExitCode {
    App::new().instance::<Race>().main()
}

#[cfg(test)]
mod tests {
    use greenroom::meta::MetaValue;
    use greenroom::testing::{Stage, replay};

    use super::*;

    #[test]
    fn a_race_is_found_by_its_mode_and_as_started_when_two_are_there() {
        let mut stage = Stage::<Race>::new();
        for (seat, started) in [(0, false), (1, true)] {
            stage.join(seat).unwrap();
            let meta = stage.core().running().meta;
            assert_eq!(meta["mode"], MetaValue::Text("training".into()));
            assert_eq!(meta["started"], MetaValue::Bool(started));
        }
        assert!(replay::<Race>(stage.recording(), 0).is_ok());
    }
}
