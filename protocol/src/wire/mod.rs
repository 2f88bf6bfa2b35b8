//! Every arrow of the running system: a file per pair of speakers, an enum per direction.
//!
//! An enum's messages are MessagePack maps with field names; the frame's kind byte picks the struct, so that an
//! unknown kind is an `Unknown(kind)` and not an error.

pub mod admin_master;
pub mod client_instance;
pub mod client_session;
pub mod master_game;
pub mod master_standby;
pub mod master_witness;
pub mod server_server;
pub mod session_game;
pub mod session_master;

/// Declares one direction: which kind byte is which struct.
macro_rules! direction { ($(#[$doc:meta])* $name:ident {
    $($(#[$vdoc:meta])* $kind:literal $variant:ident($body:ty)),* $(,)?
}) => {
    $(#[$doc])*
    #[derive(Clone, Debug, PartialEq)]
    pub enum $name {
        $($(#[$vdoc])* $variant($body),)*
        /// A kind of a newer version.
        Unknown(u8),
    }
    impl $name {
        /// The frame's kind byte.
        pub const fn kind(&self) -> u8 {
            match self { $(Self::$variant(_) => $kind,)* Self::Unknown(kind) => *kind }
        }
        /// Reads the message of a frame of this kind.
        ///
        /// # Errors
        /// As [`crate::decode`].
        pub fn decode(kind: u8, payload: &[u8], limits: $crate::Limits) -> Result<Self, $crate::DecodeError> {
            Ok(match kind { $($kind => Self::$variant($crate::decode(payload, limits)?),)* _ => Self::Unknown(kind) })
        }
        /// Appends the message's payload to `out`; nothing for an unknown one.
        pub fn encode_into(&self, out: &mut Vec<u8>) {
            match self { $(Self::$variant(body) => $crate::encode_into(body, out),)* Self::Unknown(_) => {} }
        }
    }
    $(impl From<$body> for $name { fn from(body: $body) -> Self { Self::$variant(body) } })*
    /// Inside another message, and in a log: the kind byte and the payload.
    impl ::serde::Serialize for $name {
        fn serialize<S: ::serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            let mut payload = Vec::new();
            self.encode_into(&mut payload);
            ::serde::Serialize::serialize(&(self.kind(), $crate::wire::Opaque::from(payload)), to)
        }
    }
    impl<'de> ::serde::Deserialize<'de> for $name {
        fn deserialize<D: ::serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            let (kind, payload): (u8, $crate::wire::Opaque) = ::serde::Deserialize::deserialize(from)?;
            Self::decode(kind, &payload, $crate::Limits::SERVER).map_err(::serde::de::Error::custom)
        }
    }
} }
use direction;

/// The byte of a field that a payload of the game's own travels in.
pub type Opaque = serde_bytes::ByteBuf;
