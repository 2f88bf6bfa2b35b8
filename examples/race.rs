//! The game of docs/first-game.md, which a test holds equal to this file.

use std::collections::BTreeMap;

use greenroom::{App, Cx, Instance, Kind, Never, Reject, Seat, Why};
use serde::{Deserialize, Serialize};

#[derive(Default, Serialize, Deserialize)]
struct Race {
    clicks: BTreeMap<Seat, u32>,
    winner: Option<Seat>,
}

#[derive(Serialize, Deserialize)]
enum In {
    Click,
}

#[derive(Serialize, Deserialize)]
enum Out {
    Won { seat: Seat },
}

impl Instance for Race {
    const KIND: Kind<Self> = Kind::new("race").tick_rate(20).seats_max(8);
    type Params = ();
    type Meta = ();
    type In = In;
    type Query = Never;
    type Reply = u32;
    type Out = Out;
    type Timer = Never;
    type View<'a> = &'a Self;
    type PrivateView<'a> = ();

    fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> {
        Ok(Self::default())
    }

    fn admit(
        &mut self,
        _: &greenroom::Who,
        _: greenroom::Options<'_>,
        _: &mut Cx<Self>,
    ) -> Result<(), Reject> {
        match self.winner {
            Some(_) => Err(Reject::new("this race is over")),
            None => Ok(()),
        }
    }

    fn joined(&mut self, seat: Seat, _: &mut Cx<Self>) {
        self.clicks.insert(seat, 0);
    }

    fn left(&mut self, seat: Seat, _: Why, _: &mut Cx<Self>) {
        self.clicks.remove(&seat);
    }

    fn message(&mut self, from: Seat, In::Click: In, cx: &mut Cx<Self>) {
        let clicks = self.clicks.entry(from).or_default();
        *clicks += 1;
        cx.reply(*clicks);
        if *clicks == 10 && self.winner.is_none() {
            self.winner = Some(from);
            cx.broadcast(Out::Won { seat: from });
        }
    }

    fn view(&self) -> &Self {
        self
    }
}

fn main() -> std::process::ExitCode {
    App::new().instance::<Race>().main()
}

#[cfg(test)]
mod tests {
    use greenroom::testing::{Stage, replay};

    use super::*;

    #[test]
    fn a_click_counts_and_a_race_replays_alike() {
        let mut stage = Stage::<Race>::new();
        stage.join(0).unwrap();
        let call = stage.call(0, &In::Click);
        stage.ticks(1);
        assert_eq!(stage.reply::<u32>(0, call), Some(Ok(1)));
        // The same inputs once more: a HashMap that is iterated, or a clock, would show here.
        assert!(replay::<Race>(stage.recording(), 0).is_ok());
    }
}
