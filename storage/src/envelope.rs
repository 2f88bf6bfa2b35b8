//! A document as stores keep it that have nothing but documents: what is ours stands in reserved fields before the
//! writer's own. SQLite has columns for it.
//!
//! ```json
//! {"_write":"00f1…","_owner":{"instance":{"incarnation":3,"n":7}},"level":4}
//! ```

use bytes::{Bytes, BytesMut};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize, Serializer};

use crate::{Body, Owner, WriteId};

/// What stands in the reserved fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Which write it is of.
    pub write: WriteId,
    /// Whose it is.
    pub owner: Option<Owner>,
    /// Its owner has removed it, whose numbers are to stay: a late write of an older one must not bring it back.
    pub is_gone: bool,
}

#[derive(Serialize)]
struct Fields {
    #[serde(rename = "_write", serialize_with = "as_text")]
    write: WriteId,
    #[serde(rename = "_owner", skip_serializing_if = "Option::is_none")]
    owner: Option<Owner>,
    #[serde(rename = "_gone", skip_serializing_if = "std::ops::Not::not")]
    gone: bool,
}

fn as_text<S: Serializer>(write: &WriteId, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(write)
}

/// What a store has under a key is no document of ours.
#[derive(Debug, thiserror::Error)]
pub enum BadEnvelope {
    /// It is no JSON, or the reserved fields are something else.
    #[error("no document of Greenroom's: {0}")]
    Json(#[from] serde_json::Error),
    /// The write's id is no number.
    #[error("no document of Greenroom's: _write is no hexadecimal number")]
    Write,
}

impl Envelope {
    /// The document with the reserved fields; without a body, only those.
    pub fn wrap(&self, body: Option<&Body>) -> Bytes {
        /// Bytes of our fields, as a rule.
        const OURS: usize = 128;
        let mut all = Vec::with_capacity(OURS + body.map_or(0, Body::len));
        let fields = Fields { write: self.write, owner: self.owner, gone: self.is_gone };
        serde_json::to_writer(&mut all, &fields).expect("texts and numbers are JSON");
        let Some(body) = body else { return all.into() };
        let inside = body.bytes().get(1..).unwrap_or_default();
        let is_empty = inside.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}');
        all.pop();
        all.extend_from_slice(if is_empty { b"" } else { b"," });
        all.extend_from_slice(inside);
        all.into()
    }

    /// Takes the reserved fields off. What had been written by hand without them has the write's id 0, and no owner.
    ///
    /// # Errors
    /// When it is no JSON object, or a reserved field is something else.
    pub fn unwrap(whole: &Bytes) -> Result<(Self, Body), BadEnvelope> {
        Ok((Self::read(whole)?, Body::trusted(stripped(whole)?)))
    }

    /// Reads the reserved fields alone.
    ///
    /// # Errors
    /// As [`Self::unwrap`].
    pub fn read(whole: &[u8]) -> Result<Self, BadEnvelope> {
        #[derive(Deserialize)]
        struct Read {
            #[serde(rename = "_write", default)]
            write: Option<String>,
            #[serde(rename = "_owner", default)]
            owner: Option<Owner>,
            #[serde(rename = "_gone", default)]
            gone: bool,
        }
        let read: Read = serde_json::from_slice(whole)?;
        let write = read.write.map_or(Ok(0), |write| u64::from_str_radix(&write, 16));
        Ok(Self {
            write: WriteId(write.map_err(|_| BadEnvelope::Write)?),
            owner: read.owner,
            is_gone: read.gone,
        })
    }
}

/// The object without its reserved fields.
fn stripped(whole: &Bytes) -> Result<Bytes, serde_json::Error> {
    let mut kept: Vec<(usize, usize)> = Vec::new();
    let mut at = after_blanks(whole, 0) + 1;
    loop {
        at = after_blanks(whole, at);
        if whole.get(at) != Some(&b'"') {
            break;
        }
        let begin = at;
        at = after_value(whole, at)?;
        let name: String = serde_json::from_slice(&whole[begin..at])?;
        // Behind the colon.
        at = after_value(whole, after_blanks(whole, at) + 1)?;
        if !name.starts_with(crate::RESERVED) {
            kept.push((begin, at));
        }
        at = after_blanks(whole, at);
        if whole.get(at) == Some(&b',') {
            at += 1;
        }
    }
    let end = whole.len();
    // As a rule ours stand first: then the rest needs no copy but the brace.
    let mut all = BytesMut::with_capacity(end);
    all.extend_from_slice(b"{");
    for (place, (begin, end)) in kept.into_iter().enumerate() {
        all.extend_from_slice(if place == 0 { b"" } else { b"," });
        all.extend_from_slice(&whole[begin..end]);
    }
    all.extend_from_slice(b"}");
    Ok(all.freeze())
}

fn after_blanks(json: &[u8], at: usize) -> usize {
    let blanks = json.get(at..).unwrap_or_default().iter();
    at + blanks.take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// Where the value that begins here ends.
fn after_value(json: &[u8], at: usize) -> Result<usize, serde_json::Error> {
    let mut values = serde_json::Deserializer::from_slice(json.get(at..).unwrap_or_default())
        .into_iter::<IgnoredAny>();
    match values.next() {
        Some(Err(error)) => Err(error),
        Some(Ok(_)) | None => Ok(at + values.byte_offset()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn envelope(owner: Option<Owner>) -> Envelope {
        Envelope { write: WriteId(0xf1), owner, is_gone: false }
    }

    #[test]
    fn what_is_ours_stands_before_the_writers_fields() {
        let owner = Owner::Instance { incarnation: 3, n: 7 };
        let whole = envelope(Some(owner)).wrap(Some(&Body::new("{ \"level\": 4 }").unwrap()));
        let text = r#"{"_write":"00000000000000f1","_owner":{"instance":{"incarnation":3,"n":7}}, "level": 4 }"#;
        assert_eq!(whole, text);
        assert_eq!(envelope(None).wrap(None), r#"{"_write":"00000000000000f1"}"#);
        assert_eq!(
            envelope(None).wrap(Some(&Body::new("{ }").unwrap())),
            r#"{"_write":"00000000000000f1" }"#
        );
    }

    #[test]
    fn what_somebody_wrote_by_hand_is_read_as_nobodys() {
        let (read, body) =
            Envelope::unwrap(&Bytes::from_static(b" { \"a\" : [1, \"}\"] } ")).unwrap();
        assert_eq!(read, Envelope { write: WriteId(0), owner: None, is_gone: false });
        assert_eq!(body.text(), "{\"a\" : [1, \"}\"]}");
        for bad in ["", "1", "{", "{\"_write\":\"x\"}", "{\"_owner\":1}", "{\"a\":1"] {
            assert!(Envelope::unwrap(&Bytes::from(bad)).is_err(), "{bad}");
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            ".{0,12}".prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::btree_map("[^_].{0,6}", inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_wrapped_is_unwrapped_the_same(
            fields in prop::collection::btree_map("[^_].{0,6}", json(), 0..6),
            pretty: bool, write: u64, owned in prop::option::of((any::<u64>(), any::<u64>())), is_gone: bool,
        ) {
            let fields = serde_json::Value::Object(fields.into_iter().collect());
            let text = if pretty { serde_json::to_string_pretty(&fields) } else { serde_json::to_string(&fields) };
            let body = Body::new(text.unwrap()).unwrap();
            let owner = owned.map(|(incarnation, n)| Owner::Instance { incarnation, n });
            let envelope = Envelope { write: WriteId(write), owner, is_gone };
            let whole = envelope.wrap(Some(&body));
            let (read, inside) = Envelope::unwrap(&whole).unwrap();
            prop_assert_eq!(read, envelope);
            prop_assert_eq!(inside.decode::<serde_json::Value>().unwrap(), fields);
            prop_assert!(Body::new(inside.bytes().clone()).is_ok());
        }
    }
}
