//! A game without its type, so that one core runs every kind.

use std::time::Duration;

use ecow::eco_format;
use greenroom_protocol::{Code, DecodeError, Limits, Refusal, Seat, decode};

use crate::instance::{Instance, Options, Reject, Who, Why};
use crate::payload::encode;
use crate::world::World;
use crate::{Cx, PayloadIn, PayloadOut, StoreRefusal, StoreTicket, Stored};

/// The handlers of a game, with payloads as bytes. A text as an error is that of a type that does not encode.
pub(crate) trait Game {
    fn admit(&mut self, world: &mut World, who: &Who, options: &[u8]) -> Result<(), Reject>;
    fn joined(&mut self, world: &mut World, seat: Seat);
    fn dropped(&mut self, world: &mut World, seat: Seat) -> Duration;
    fn returned(&mut self, world: &mut World, seat: Seat);
    fn left(&mut self, world: &mut World, seat: Seat, why: Why);
    fn message(&mut self, world: &mut World, seat: Seat, payload: &[u8]) -> Result<(), Refusal>;
    fn query(
        &self,
        seat: Seat,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Result<(), Refusal>, String>;
    fn timer(&mut self, world: &mut World, timer: &[u8]) -> Result<(), String>;
    fn stored(
        &mut self,
        world: &mut World,
        what: StoreTicket,
        outcome: Result<Stored, StoreRefusal>,
    );
    fn tick(&mut self, world: &mut World);
    fn view(&self, out: &mut Vec<u8>) -> Result<(), String>;
    /// False for a kind that has no private views.
    fn has_private_views(&self) -> bool;
    /// False when this seat has none now.
    fn private_view(&self, seat: Seat, out: &mut Vec<u8>) -> Result<bool, String>;
    /// Nothing for a kind that is not storable.
    fn snapshot(&self) -> Option<Result<Vec<u8>, String>>;
}

pub(crate) struct Typed<K>(pub(crate) K);

impl<K: Instance> Game for Typed<K> {
    fn admit(&mut self, world: &mut World, who: &Who, options: &[u8]) -> Result<(), Reject> {
        self.0.admit(who, Options(options), &mut Cx::new(world))
    }
    fn joined(&mut self, world: &mut World, seat: Seat) {
        self.0.joined(seat, &mut Cx::new(world));
    }
    fn dropped(&mut self, world: &mut World, seat: Seat) -> Duration {
        self.0.dropped(seat, &mut Cx::new(world)).0
    }
    fn returned(&mut self, world: &mut World, seat: Seat) {
        self.0.returned(seat, &mut Cx::new(world));
    }
    fn left(&mut self, world: &mut World, seat: Seat, why: Why) {
        self.0.left(seat, why, &mut Cx::new(world));
    }
    fn message(&mut self, world: &mut World, seat: Seat, payload: &[u8]) -> Result<(), Refusal> {
        let input =
            K::In::from_payload(payload).map_err(|error| unknown::<K>("message", &error))?;
        self.0.message(seat, input, &mut Cx::new(world));
        Ok(())
    }
    fn query(
        &self,
        seat: Seat,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Result<(), Refusal>, String> {
        let query = match K::Query::from_payload(payload) {
            Ok(query) => query,
            Err(error) => return Ok(Err(unknown::<K>("query", &error))),
        };
        match self.0.query(seat, query) {
            Ok(reply) => reply.to_payload(out).map(Ok),
            Err(reject) => Ok(Err(reject.into())),
        }
    }
    fn timer(&mut self, world: &mut World, timer: &[u8]) -> Result<(), String> {
        let timer = rmp_serde::from_slice(timer).map_err(|error| error.to_string())?;
        self.0.timer(timer, &mut Cx::new(world));
        Ok(())
    }
    fn stored(
        &mut self,
        world: &mut World,
        what: StoreTicket,
        outcome: Result<Stored, StoreRefusal>,
    ) {
        self.0.stored(what, outcome, &mut Cx::new(world));
    }
    fn tick(&mut self, world: &mut World) {
        self.0.tick(&mut Cx::new(world));
    }
    fn view(&self, out: &mut Vec<u8>) -> Result<(), String> {
        encode(&self.0.view(), out)
    }
    fn has_private_views(&self) -> bool {
        // What has no size holds nothing that could change.
        size_of::<K::PrivateView<'static>>() > 0
    }
    fn private_view(&self, seat: Seat, out: &mut Vec<u8>) -> Result<bool, String> {
        let view = self.0.private_view(seat);
        encode(&view, out).map(|()| view.is_some())
    }
    fn snapshot(&self) -> Option<Result<Vec<u8>, String>> {
        K::KIND.storage.map(|storage| (storage.snapshot)(&self.0))
    }
}

/// The state of a storable kind, as `version` of it wrote it.
pub(crate) fn restore<K: Instance>(version: u32, state: &[u8]) -> Result<K, String> {
    if version != K::KIND.spec.version {
        return K::migrate(version, state).map_err(|reject| reject.message.into());
    }
    match K::KIND.storage {
        Some(storage) => (storage.restore)(state),
        None => Err("this kind is not storable".into()),
    }
}

/// The parameters of a kind, or its default.
pub(crate) fn params<K: Instance>(bytes: &[u8]) -> Result<K::Params, Refusal> {
    if bytes.is_empty() {
        return Ok(K::Params::default());
    }
    decode(bytes, Limits::CLIENT).map_err(|error| {
        let name = K::KIND.spec.name;
        Refusal::new(Code::Malformed, eco_format!("the parameters of kind {name:?}: {error}"))
    })
}

/// What the sender of an unreadable payload is told. Serde's text lists the forms that there are.
fn unknown<K: Instance>(what: &str, error: &DecodeError) -> Refusal {
    let code =
        if matches!(error, DecodeError::Shape(_)) { Code::MessageUnknown } else { Code::Malformed };
    let name = K::KIND.spec.name;
    Refusal::new(code, eco_format!("this is no {what} of kind {name:?}: {error}"))
}
