//! What is stored: a JSON object, and what a store says beside it.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, Bytes};
use serde::de::{self, DeserializeOwned, Deserializer, IgnoredAny, MapAccess};
use serde::{Deserialize, Serialize, Serializer};

use crate::{Key, Owner, StorageError};

/// Top-level fields that begin so are ours: stores keep the owner and the write's id there.
pub const RESERVED: char = '_';

/// A JSON object as bytes, checked: it parses, no field stands in it twice, none is [reserved](RESERVED).
#[derive(Clone, PartialEq, Eq)]
pub struct Body(Bytes);

impl Body {
    /// Takes JSON as it is.
    ///
    /// # Errors
    /// When it is no JSON object, or has a reserved field or one twice.
    pub fn new(json: impl Into<Bytes>) -> Result<Self, BadBody> {
        let mut json = json.into();
        // Leading blanks would come before the fields that a store puts first.
        let end = json.iter().rev().take_while(|byte| byte.is_ascii_whitespace()).count();
        json.truncate(json.len() - end);
        let begin = json.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        json.advance(begin);
        serde_json::from_slice::<Members>(&json)?;
        Ok(Self(json))
    }

    /// Writes a value as JSON.
    ///
    /// # Errors
    /// As [`Body::new`]; when the value can't be written as JSON.
    pub fn of(value: &(impl Serialize + ?Sized)) -> Result<Self, BadBody> {
        Self::new(serde_json::to_vec(value)?)
    }

    /// What a backend reads back, which was a body when it was written.
    pub(crate) const fn trusted(json: Bytes) -> Self {
        Self(json)
    }

    /// The JSON.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The JSON as text.
    pub fn text(&self) -> &str {
        str::from_utf8(&self.0).expect("a body was read as JSON, which is UTF-8")
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: the shortest is `{}`.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads it into a type of the game's or the server's.
    ///
    /// # Errors
    /// When it is something else.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.0)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What users wrote does not belong into a log.
        write!(out, "Body({} bytes)", self.0.len())
    }
}

/// Bytes that can't be a document.
#[derive(Debug, thiserror::Error)]
#[error("a document is one JSON object, each field once, none beginning with {RESERVED:?}: {0}")]
pub struct BadBody(#[from] serde_json::Error);

/// An object whose fields have been looked at.
struct Members;

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Members;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut seen: Vec<Cow<'de, str>> = Vec::new();
                while let Some(Name(name)) = map.next_key()? {
                    if name.starts_with(RESERVED) {
                        return Err(de::Error::custom(format_args!(
                            "the field {name:?} is reserved"
                        )));
                    }
                    map.next_value::<IgnoredAny>()?;
                    seen.push(name);
                }
                seen.sort_unstable();
                match seen.windows(2).find(|pair| pair[0] == pair[1]) {
                    Some(pair) => Err(de::Error::custom(format_args!(
                        "the field {:?} is there twice",
                        pair[0]
                    ))),
                    None => Ok(Members),
                }
            }
        }
        from.deserialize_map(Visitor)
    }
}

/// A field's name: as it stands in the JSON, where it is written without escapes.
struct Name<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Name<'de>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a name")
            }
            fn visit_borrowed_str<E: de::Error>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        from.deserialize_str(Visitor)
    }
}

/// Which write a document is of, as the store counts: equal versions are equal documents. Opaque.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// The id of one write, drawn for it and stored with it, so that its outcome can be looked up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

impl fmt::Display for WriteId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

impl fmt::Debug for WriteId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// When a document is to go by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expiry {
    /// Not at all.
    #[default]
    Never,
    /// So long after this write: at least a second, rounded up to whole seconds.
    After(Duration),
    /// As it was; never, for one that was not there.
    Keep,
}

impl Expiry {
    /// Whole seconds from now; none for never.
    ///
    /// Couchbase has no finer ones, so nobody has.
    pub fn seconds(self) -> Option<u64> {
        match self {
            Self::After(span) => Some((span.as_secs() + u64::from(span.subsec_nanos() > 0)).max(1)),
            Self::Never | Self::Keep => None,
        }
    }
}

/// A document as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The JSON object.
    pub body: Body,
    /// Which write it is of.
    pub version: Version,
    /// Whose it is; none for one that nobody owns.
    pub owner: Option<Owner>,
    /// When it goes by itself, in milliseconds since 1970 by the store's clock.
    pub expires_ms: Option<u64>,
}

impl Document {
    /// Reads it into a type of the game's or the server's.
    ///
    /// # Errors
    /// [`StorageError::Undecodable`], which names the key.
    pub fn decode<T: DeserializeOwned>(&self, key: &Key) -> Result<T, StorageError> {
        self.body.decode().map_err(|source| StorageError::Undecodable {
            key: key.clone(),
            source: std::sync::Arc::new(source),
        })
    }
}

/// Bytes inside a document, such as a snapshot: base64 in the JSON, since each store takes that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blob(pub Bytes);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Blob;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("bytes as base64")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Blob, E> {
                STANDARD.decode(text).map(|bytes| Blob(bytes.into())).map_err(E::custom)
            }
        }
        from.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_or_has_a_reserved_or_doubled_field_is_no_body() {
        let error = |json: &'static str| Body::new(json).map_err(|error| error.to_string());
        assert_eq!(
            error(" {\"a\": [1, {\"_b\": 2}]}\n").unwrap().text(),
            "{\"a\": [1, {\"_b\": 2}]}"
        );
        for bad in ["", "  ", "1", "[]", "{", "{}{}", "{\"a\":}", "null"] {
            assert!(error(bad).is_err(), "{bad:?}");
        }
        assert!(error("{\"_owner\":1}").unwrap_err().contains("\"_owner\" is reserved"));
        // However it is written.
        assert!(error("{\"\\u005fowner\":1}").unwrap_err().contains("\"_owner\" is reserved"));
        assert!(error("{\"a\":1,\"\\u0061\":2}").unwrap_err().contains("\"a\" is there twice"));
        assert!(Body::new(vec![b'{', b'"', 0xff, b'"', b':', b'1', b'}']).is_err());
        assert!(Body::new("[".repeat(10_000).into_bytes()).is_err());
    }

    #[test]
    fn bytes_survive_a_document() {
        let blob = Blob(Bytes::from((0..=255).collect::<Vec<u8>>()));
        let body = Body::of(&serde_json::json!({ "bytes": blob })).unwrap();
        #[derive(Deserialize)]
        struct Holder {
            bytes: Blob,
        }
        assert_eq!(body.decode::<Holder>().unwrap().bytes, blob);
    }

    #[test]
    fn a_life_is_counted_in_whole_seconds_from_one() {
        assert_eq!(Expiry::After(Duration::ZERO).seconds(), Some(1));
        assert_eq!(Expiry::After(Duration::from_millis(1_001)).seconds(), Some(2));
        assert_eq!(Expiry::After(Duration::from_secs(7)).seconds(), Some(7));
        assert_eq!(Expiry::Never.seconds(), None);
    }
}
