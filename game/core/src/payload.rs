//! What a game's payloads are: serde types as MessagePack, or bytes as they are.

use greenroom_protocol::{DecodeError, Limits, decode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// What a seat can send: every type that deserializes, and [`Raw`].
pub trait PayloadIn: Sized {
    /// Reads a payload, of which nothing is believed.
    ///
    /// # Errors
    /// What is wrong with it; the sender is told.
    fn from_payload(payload: &[u8]) -> Result<Self, DecodeError>;
}

/// What can be sent to a seat: every type that serializes, and [`Raw`].
pub trait PayloadOut: Sized {
    /// Appends the payload.
    ///
    /// # Errors
    /// When the type's own `Serialize` fails; the instance then fails, by that text.
    fn to_payload(&self, out: &mut Vec<u8>) -> Result<(), String>;
}

impl<T: DeserializeOwned> PayloadIn for T {
    fn from_payload(payload: &[u8]) -> Result<Self, DecodeError> {
        decode(payload, Limits::CLIENT)
    }
}

impl<T: Serialize> PayloadOut for T {
    fn to_payload(&self, out: &mut Vec<u8>) -> Result<(), String> {
        encode(self, out)
    }
}

/// Bytes of the game's own, not looked at. Up to 64 of them need no memory of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raw(SmallVec<[u8; 64]>);

impl PayloadIn for Raw {
    fn from_payload(payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self::from(payload))
    }
}

impl PayloadOut for Raw {
    fn to_payload(&self, out: &mut Vec<u8>) -> Result<(), String> {
        out.extend_from_slice(&self.0);
        Ok(())
    }
}

impl From<&[u8]> for Raw {
    fn from(bytes: &[u8]) -> Self {
        Self(SmallVec::from_slice(bytes))
    }
}

impl std::ops::Deref for Raw {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// What nobody can send: the type of inputs or queries that a kind does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Never {}

/// Appends `value` as MessagePack with field names.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), String> {
    value
        .serialize(&mut rmp_serde::Serializer::new(out).with_struct_map())
        .map_err(|error| error.to_string())
}
