//! The game of docs/typescript.md: everybody has a square and moves it about.

use std::collections::BTreeMap;

use greenroom::{App, Cx, Instance, Kind, Never, Reject, Seat, Why};
use serde::{Deserialize, Serialize};

#[derive(Default, Serialize, Deserialize)]
struct Squares {
    squares: BTreeMap<Seat, Square>,
}

#[derive(Default, Serialize, Deserialize)]
struct Square {
    x: f32,
    y: f32,
    dx: f32,
    dy: f32,
}

#[derive(Serialize, Deserialize)]
enum In {
    Move(f32, f32),
}

impl Instance for Squares {
    const KIND: Kind<Self> = Kind::new("squares").tick_rate(20).seats_max(8);
    type Params = ();
    type Meta = ();
    type In = In;
    type Query = Never;
    type Reply = ();
    type Out = Never;
    type Timer = Never;
    type View<'a> = &'a Self;
    type PrivateView<'a> = ();

    fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> {
        Ok(Self::default())
    }

    fn joined(&mut self, seat: Seat, _: &mut Cx<Self>) {
        self.squares.insert(seat, Square { x: 50.0, y: 50.0, ..Square::default() });
    }

    fn left(&mut self, seat: Seat, _: Why, _: &mut Cx<Self>) {
        self.squares.remove(&seat);
    }

    fn message(&mut self, from: Seat, In::Move(dx, dy): In, _: &mut Cx<Self>) {
        if let Some(square) = self.squares.get_mut(&from) {
            (square.dx, square.dy) = (dx.clamp(-1.0, 1.0), dy.clamp(-1.0, 1.0));
        }
    }

    fn tick(&mut self, _: &mut Cx<Self>) {
        for square in self.squares.values_mut() {
            square.x = (square.x + square.dx).clamp(0.0, 100.0);
            square.y = (square.y + square.dy).clamp(0.0, 100.0);
        }
    }

    fn view(&self) -> &Self {
        self
    }
}

fn main() -> std::process::ExitCode {
    App::new().instance::<Squares>().page_folder("/", "web").main()
}
