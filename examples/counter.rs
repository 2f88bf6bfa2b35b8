//! The game of README.md, which a test holds equal to this file.

use greenroom::{App, Cx, Instance, Kind, Never, Reject, Seat};
use serde::{Deserialize, Serialize};

#[derive(Default, Serialize, Deserialize)]
struct Counter {
    clicks: u64,
}

#[derive(Serialize, Deserialize)]
enum In {
    Click,
}

impl Instance for Counter {
    const KIND: Kind<Self> = Kind::new("counter").tick_rate(20).seats_max(100);
    type Params = (); // what who creates one may choose
    type Meta = (); // what is said of it to who looks for one
    type In = In; // what players send
    type Query = Never; // questions that change nothing
    type Reply = u64; // what calls are answered with
    type Out = Never; // events to players
    type Timer = Never; // what comes back from cx.after(..)
    type View<'a> = &'a Self; // what everybody sees: patches keep clients up to date
    type PrivateView<'a> = (); // what only one seat sees

    fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> {
        Ok(Self::default())
    }
    fn message(&mut self, _from: Seat, In::Click: In, cx: &mut Cx<Self>) {
        self.clicks += 1;
        cx.reply(self.clicks);
    }
    fn view(&self) -> &Self {
        self
    }
}

fn main() -> std::process::ExitCode {
    App::new().instance::<Counter>().main()
}
