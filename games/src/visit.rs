//! What the benchmark of the directory opens and leaves: an instance that closes when its last player goes.

use greenroom::{Cx, Instance, Kind, Never, Reject, Seat, Why};

/// Knows nothing but how many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Visit {
    seated: u16,
}

impl Instance for Visit {
    // Not `closes_when_empty` after no time at all: it is empty when it is made, until the first seat is taken.
    const KIND: Kind<Self> = Kind::new("visit").needs(&["bench"]).seats_max(2);
    type Params = ();
    type Meta = ();
    type In = Never;
    type Query = Never;
    type Reply = Never;
    type Out = Never;
    type Timer = Never;
    type View<'a> = ();
    type PrivateView<'a> = ();

    fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> {
        Ok(Self::default())
    }
    fn joined(&mut self, _: Seat, _: &mut Cx<Self>) {
        self.seated += 1;
    }
    fn left(&mut self, _: Seat, _: Why, cx: &mut Cx<Self>) {
        self.seated -= 1;
        if self.seated == 0 {
            cx.close("everybody has left");
        }
    }
    fn message(&mut self, _: Seat, input: Never, _: &mut Cx<Self>) {
        match input {}
    }
    fn view(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use greenroom::testing::Stage;

    #[test]
    fn it_closes_when_the_last_player_leaves_and_not_before() {
        let mut stage = Stage::<Visit>::new();
        stage.join(0).unwrap();
        stage.join(1).unwrap();
        stage.leave(0);
        assert!(!stage.core().is_closed());
        stage.leave(1);
        assert!(stage.core().is_closed());
    }
}
