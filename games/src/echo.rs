//! The smallest kind: what a seat calls comes back, byte for byte.

use greenroom::{Cx, Instance, Kind, Never, Raw, Reject, Seat};

/// No state at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Echo;

impl Instance for Echo {
    const KIND: Kind<Self> = Kind::new("echo").seats_max(1_000);
    type Params = ();
    type Meta = ();
    type In = Raw;
    type Query = Never;
    type Reply = Raw;
    type Out = Never;
    type Timer = Never;
    type View<'a> = ();
    type PrivateView<'a> = ();

    fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> {
        Ok(Self)
    }
    fn message(&mut self, _: Seat, input: Raw, cx: &mut Cx<Self>) {
        cx.reply(input);
    }
    fn view(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use greenroom::testing::{Stage, replay};

    #[test]
    fn what_is_called_comes_back_at_once() {
        let mut stage = Stage::<Echo>::new();
        stage.join(0).unwrap();
        let call = stage.call(0, &"hello");
        assert_eq!(stage.reply::<String>(0, call), Some(Ok("hello".to_owned())));
        assert!(replay::<Echo>(stage.recording(), 0).is_ok());
    }
}
