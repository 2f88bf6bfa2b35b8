//! What chaos looks at when game servers are killed: an instance that stays, counts what it was told, and has each of
//! it counted in the store, too.

use greenroom::{Cx, Instance, Kind, Never, Reject, Seat, StoreRefusal, StoreTicket, Stored};
use serde::{Deserialize, Serialize};

/// What it was told, and what of it the store has acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vault {
    /// Messages that were taken in, of the life that goes on.
    pub added: u64,
    /// The counter in the store, as it was acknowledged last.
    pub kept: i64,
}

/// One more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Add;

/// The store has counted one more, and stays with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept(pub i64);

impl Instance for Vault {
    const KIND: Kind<Self> =
        Kind::new("vault").needs(&["bench"]).seats_max(2).durable_every(1).stays_when_empty();
    type Params = ();
    type Meta = ();
    type In = Add;
    type Query = Never;
    type Reply = Never;
    type Out = Kept;
    type Timer = Never;
    type View<'a> = &'a Self;
    type PrivateView<'a> = ();

    fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> {
        Ok(Self::default())
    }
    fn message(&mut self, _: Seat, Add: Add, cx: &mut Cx<Self>) {
        self.added += 1;
        let key = cx.instance().to_string();
        if cx.store().counter(&key, 1).is_err() {
            cx.refuse("too much is on its way to the store");
        }
    }
    fn stored(&mut self, _: StoreTicket, of: Result<Stored, StoreRefusal>, cx: &mut Cx<Self>) {
        if let Ok(Stored::Counted(count)) = of {
            self.kept = count;
            cx.broadcast(Kept(count));
        }
    }
    fn view(&self) -> &Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use greenroom::testing::Stage;

    #[test]
    fn what_it_was_told_is_counted_and_said_to_be_kept_once_the_store_has_it() {
        let mut stage = Stage::<Vault>::new();
        stage.join(0).unwrap();
        for count in 1..=2 {
            stage.send(0, &Add);
            assert_eq!(stage.events::<Kept>(0), [Kept(count)]);
        }
        assert_eq!(stage.view::<Vault>(0), Vault { added: 2, kept: 2 });
    }
}
