//! A type for each id, counter and index, so that swapping two of them does not compile.

use std::{fmt, str::FromStr};

use ecow::EcoString;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Crockford's base 32 in lower case: no `i`, `l`, `o`, `u`, so that it can be read out loud.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

fn to_text(mut value: u128, chars: usize, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut text = [0u8; 26];
    for place in text[..chars].iter_mut().rev() {
        *place = ALPHABET[usize::from((value & 31) as u8)];
        value >>= 5;
    }
    out.write_str(str::from_utf8(&text[..chars]).expect("the alphabet is ASCII"))
}

fn from_text(text: &str, bits: u32) -> Option<u128> {
    if text.len() != bits.div_ceil(5) as usize {
        return None;
    }
    let mut value: u128 = 0;
    for (place, byte) in text.bytes().enumerate() {
        let digit =
            ALPHABET.iter().position(|&letter| letter == byte.to_ascii_lowercase())? as u128;
        // The first character holds the bits that are left over: it may not carry more.
        if place == 0 && digit >= 1 << (bits - 5 * (bits.div_ceil(5) - 1)) {
            return None;
        }
        value = value << 5 | digit;
    }
    Some(value)
}

/// A text that is no id of the named kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAnId(&'static str);

impl fmt::Display for NotAnId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "not {} (digits and lower-case letters without i, l, o, u)", self.0)
    }
}
impl std::error::Error for NotAnId {}

macro_rules! text_ids { ($($(#[$doc:meta])* $name:ident($inner:ty), $bits:literal, $what:literal;)*) => { $(
    $(#[$doc])*
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct $name(pub $inner);
    impl fmt::Display for $name {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            to_text(u128::from(self.0), usize::div_ceil($bits, 5), out)
        }
    }
    impl fmt::Debug for $name {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(self, out) }
    }
    impl FromStr for $name {
        type Err = NotAnId;
        fn from_str(text: &str) -> Result<Self, NotAnId> {
            from_text(text, $bits).and_then(|value| value.try_into().ok()).map($name).ok_or(NotAnId($what))
        }
    }
    impl Serialize for $name {
        fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> { to.collect_str(self) }
    }
    impl<'de> Deserialize<'de> for $name {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl de::Visitor<'_> for Visitor {
                type Value = $name;
                fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result { out.write_str($what) }
                fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> { text.parse().map_err(E::custom) }
            }
            from.deserialize_str(Visitor)
        }
    }
)* } }

text_ids! {
    /// One instance, for as long as it exists, over all its incarnations. 128 bits that nobody can guess,
    /// made by the master from the cluster's secret; 26 characters as text.
    InstanceId(u128), 128, "an instance's id: 26 characters";
    /// One session of a user; 13 characters as text.
    SessionId(u64), 64, "a session's id: 13 characters";
    /// One life of a process, or of an instance. A process draws it at its start; 13 characters as text.
    Incarnation(u64), 64, "an incarnation: 13 characters";
}

/// 128 random bits that a client makes for a session, so that a check-in sent twice is one session. A secret:
/// who knows it can take the session, so it is never printed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionKey(#[serde(with = "serde_bytes")] pub [u8; 16]);

impl fmt::Debug for SessionKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("SessionKey(***)")
    }
}

macro_rules! texts { ($($(#[$doc:meta])* $name:ident, $max:literal, $what:literal;)*) => {
    /// What each of these names, as errors call it, and its bytes at most.
    const NAMES: &[(&str, usize)] = &[$(($what, $max)),*];
    $(
    $(#[$doc])*
    #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
    #[serde(transparent)]
    pub struct $name(EcoString);
    impl $name {
        /// The longest that it may be, in bytes.
        pub const BYTES_MAX: usize = $max;
        /// Takes the text as it is.
        ///
        /// # Errors
        /// When it is empty, longer than [`Self::BYTES_MAX`], or holds control characters.
        pub fn new(text: impl Into<EcoString>) -> Result<Self, BadText> {
            let text = text.into();
            if text.is_empty() || text.len() > $max || text.chars().any(char::is_control) {
                return Err(BadText { what: $what, max: $max, len: text.len() });
            }
            Ok(Self(text))
        }
        /// The text itself.
        pub fn as_str(&self) -> &str { &self.0 }
    }
    impl fmt::Display for $name {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result { out.write_str(&self.0) }
    }
    impl fmt::Debug for $name {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Debug::fmt(&self.0, out) }
    }
    impl FromStr for $name {
        type Err = BadText;
        fn from_str(text: &str) -> Result<Self, BadText> { Self::new(text) }
    }
    impl<'de> Deserialize<'de> for $name {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            Self::new(EcoString::deserialize(from)?).map_err(de::Error::custom)
        }
    }
    )*
} }

/// A text that may not name what it should name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} has 1 to {max} bytes and no control characters; this one has {len} bytes")]
pub struct BadText {
    what: &'static str,
    max: usize,
    len: usize,
}

impl BadText {
    /// Whether a text is what one of these says. Its beginning decides, in which nothing of the bad text stands: no
    /// peer can make another error look like this one.
    pub(crate) fn has_text(text: &str) -> bool {
        NAMES.iter().any(|(what, max)| {
            let rest = text.strip_prefix(what).and_then(|rest| rest.strip_prefix(" has 1 to "));
            rest.is_some_and(|rest| rest.starts_with(&format!("{max} bytes ")))
        })
    }
}

texts! {
    /// A user, by the id that the authenticator gave.
    UserId, 64, "a user's id";
    /// A kind of instance, as the game named it.
    KindName, 64, "a kind's name";
    /// A server of the cluster, by the name that its operator or its own start gave it.
    ServerName, 64, "a server's name";
    /// A unique key: at most one instance of a kind holds it.
    Key, 128, "a unique key";
}

macro_rules! counters { ($($(#[$doc:meta])* $name:ident($inner:ty);)*) => { $(
    $(#[$doc])*
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    #[serde(transparent)]
    pub struct $name(pub $inner);
    impl fmt::Display for $name {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(&self.0, out) }
    }
)* } }

counters! {
    /// Count of steps since the instance began; the first step is tick 1. Frames carry its low 32 bits.
    Tick(u64);
    /// Number of a seat within its instance, from 0.
    Seat(u16);
    /// One binding of a session to a connection; the larger is the newer.
    Generation(u32);
    /// A session server's handle of an instance, the same for all clients of that session server.
    Channel(u32);
    /// A session server's handle of one client's membership of one instance.
    MemberId(u32);
    /// A client's number of one of its requests to the directory, from 1.
    RequestId(u32);
    /// Number of a reliable message, per seat, direction and incarnation of the instance; the first is 1.
    Seq(u32);
    /// Which view of an instance: 0 is the shared one, `0x8000 | seat` is a seat's own.
    ViewId(u16);
    /// Milliseconds since the shell that says it started; means nothing in another process.
    Moment(u64);
}

impl Seq {
    /// The number after this one.
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl MemberId {
    /// Members that a session server has at once, at most.
    pub const PLACES: usize = 1 << 20;

    /// Its place, below [`Self::PLACES`]: the low 20 bits. No two members that are there at once have the same; the
    /// other bits change each time a place is used again, so that a late frame reaches nobody else.
    pub const fn place(self) -> usize {
        self.0 as usize & (Self::PLACES - 1)
    }
}

impl Tick {
    /// The low 32 bits, as frames carry it.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "that is what it is for; a client compares for equality only"
    )]
    pub const fn wire(self) -> u32 {
        self.0 as u32
    }
}

impl ViewId {
    /// What every client of the instance sees.
    pub const SHARED: Self = Self(0);
    /// What only this seat sees.
    pub const fn of_seat(seat: Seat) -> Self {
        Self(0x8000 | seat.0)
    }
}

impl Moment {
    /// The span from `earlier` to this moment; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
    /// This moment and `span` more.
    #[expect(clippy::cast_possible_truncation, reason = "584 million years of milliseconds fit")]
    pub const fn after(self, span: std::time::Duration) -> Self {
        Self(self.0.saturating_add(span.as_millis() as u64))
    }
}

/// A term of the active master: the larger wins, era first. Every message from a master carries it, and who
/// has seen a larger one refuses the smaller. The era grows only when a loss is declared.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch {
    /// Grows when a loss is declared.
    pub era: u32,
    /// Grows at every change of who decides.
    pub epoch: u32,
}

impl fmt::Display for Epoch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.era, self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_survives_its_text(instance: u128, session: u64) {
            prop_assert_eq!(InstanceId(instance).to_string().parse(), Ok(InstanceId(instance)));
            prop_assert_eq!(SessionId(session).to_string().parse(), Ok(SessionId(session)));
        }
        #[test]
        fn no_text_makes_an_id_that_prints_otherwise(text in "[0-9a-z]{13}|[0-9a-z]{26}") {
            if let Ok(id) = text.parse::<InstanceId>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<SessionId>() { prop_assert_eq!(id.to_string(), text.clone()); }
        }
    }

    #[test]
    fn a_text_with_control_characters_names_nobody() {
        assert!(UserId::new("ann\u{7}").is_err());
        assert!(UserId::new("").is_err());
        assert!(UserId::new("x".repeat(65)).is_err());
        assert!(UserId::new("ann").is_ok());
    }

    #[test]
    fn a_session_key_is_never_printed() {
        assert_eq!(format!("{:?}", SessionKey([7; 16])), "SessionKey(***)");
    }
}
