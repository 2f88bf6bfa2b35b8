//! JSON that keeps the order it was made in, so that the same vectors are the same bytes in every build.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A value of JSON, or one of MessagePack as JSON: bytes become `{"$bin": "hexadecimal"}`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Json>),
    Map(Vec<(String, Json)>),
}

/// An object with its keys in the order written.
macro_rules! object { ($($key:literal: $value:expr),* $(,)?) => {
    $crate::common::json::Json::Map(
        vec![$(($key.to_owned(), $crate::common::json::Json::from($value))),*],
    )
} }
pub(crate) use object;

impl Json {
    /// What the bytes of one MessagePack value say.
    pub(crate) fn of_message_pack(bytes: &[u8]) -> Self {
        rmp_serde::from_slice(bytes).expect("the vectors hold MessagePack that we made")
    }
    /// Bytes as the vectors write them wherever a MessagePack `bin` stands.
    pub(crate) fn bin(bytes: &[u8]) -> Self {
        object! { "$bin": hex(bytes) }
    }
    /// The object with one more key at its end.
    pub(crate) fn with(mut self, key: &str, value: impl Into<Self>) -> Self {
        if let Self::Map(pairs) = &mut self {
            pairs.push((key.to_owned(), value.into()));
        }
        self
    }
}

/// Two digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}
impl From<&str> for Json {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}
impl From<String> for Json {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}
impl<T: Into<Json>> From<Vec<T>> for Json {
    fn from(values: Vec<T>) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}
macro_rules! from_integers { ($($integer:ty)*) => { $(
    impl From<$integer> for Json {
        fn from(value: $integer) -> Self {
            Self::Int(i128::from(value))
        }
    }
)* } }
from_integers! { u8 u16 u32 u64 i64 }

impl fmt::Display for Json {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => out.write_str("null"),
            Self::Bool(value) => write!(out, "{value}"),
            Self::Int(value) => write!(out, "{value}"),
            // With its fraction, so that it is not taken for an integer.
            Self::Float(value) => write!(out, "{value:?}"),
            Self::Text(text) => write_text(text, out),
            Self::List(values) => {
                out.write_str("[")?;
                for (place, value) in values.iter().enumerate() {
                    write!(out, "{}{value}", if place == 0 { "" } else { ", " })?;
                }
                out.write_str("]")
            }
            Self::Map(pairs) => {
                out.write_str("{")?;
                for (place, (key, value)) in pairs.iter().enumerate() {
                    out.write_str(if place == 0 { "" } else { ", " })?;
                    write_text(key, out)?;
                    write!(out, ": {value}")?;
                }
                out.write_str("}")
            }
        }
    }
}

fn write_text(text: &str, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    out.write_str("\"")?;
    for letter in text.chars() {
        match letter {
            '"' | '\\' => write!(out, "\\{letter}")?,
            letter if letter.is_control() => write!(out, "\\u{:04x}", u32::from(letter))?,
            letter => write!(out, "{letter}")?,
        }
    }
    out.write_str("\"")
}

/// A file: an object whose lists have a line for each entry, so that a change shows as the lines it changes.
pub(crate) fn file(sections: &[(&str, Vec<Json>)]) -> String {
    let mut text = String::from("{\n");
    for (place, (name, entries)) in sections.iter().enumerate() {
        let lines: Vec<String> = entries.iter().map(|entry| format!("    {entry}")).collect();
        let comma = if place + 1 == sections.len() { "" } else { "," };
        text.push_str(&format!("  \"{name}\": [\n{}\n  ]{comma}\n", lines.join(",\n")));
    }
    text.push_str("}\n");
    text
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Json;
    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("any MessagePack but extension types")
    }
    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Float(value))
    }
    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(value.into())
    }
    fn visit_bytes<E>(self, value: &[u8]) -> Result<Json, E> {
        Ok(Json::bin(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = from.next_element()? {
            values.push(value);
        }
        Ok(Json::List(values))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let mut pairs = Vec::new();
        while let Some((key, value)) = from.next_entry()? {
            let Json::Text(key) = key else {
                return Err(A::Error::custom("a key that is no text"));
            };
            pairs.push((key, value));
        }
        Ok(Json::Map(pairs))
    }
}
