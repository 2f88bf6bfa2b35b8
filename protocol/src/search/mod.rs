//! What can be looked for: declared fields, filters over them, an order, and what a search says of itself.
//!
//! A filter is data. It travels as MessagePack, is written by people as text ([`Filter::parse`]), and means the same
//! in the directory, in a live search and in a store: numbers are i64, texts compare by bytes, and a condition on a
//! field that a record does not have is false.

mod condition;
mod text;

use ecow::{EcoString, eco_format};
use serde::{Deserialize, Serialize};

use crate::wire::client_session::MetaValue;
use crate::{Code, Refusal};

pub use condition::{Condition, Field, Value, field};
pub use text::{Query, TextError};

/// `and`, `or` and `not` inside each other, at most.
pub const FILTER_DEPTH_MAX: usize = 6;
/// Conditions of one filter, at most; each value of an `in` counts as one, and so do an `and` and an `or` of nothing.
pub const FILTER_CONDITIONS_MAX: usize = 64;
/// Bytes of one text in a filter, at most.
pub const FILTER_TEXT_BYTES_MAX: usize = 256;
/// Bytes of a field's name, at most.
pub const FIELD_NAME_BYTES_MAX: usize = 64;
/// Records of one answer, at most.
pub const LIMIT_MAX: u16 = 100;
/// Declared fields of one kind, at most.
pub const FIELDS_MAX: usize = 32;
/// Fields that every instance has, beside the declared ones. A kind can't declare one of these names.
pub const INSTANCE_FIELDS: &[(&str, FieldType)] = &[
    ("id", FieldType::Keyword),
    ("created", FieldType::Number),
    ("seats_free", FieldType::Number),
    ("seats_taken", FieldType::Number),
    ("seats_max", FieldType::Number),
    ("owner", FieldType::Keyword),
    ("key", FieldType::Keyword),
    ("server", FieldType::Keyword),
    ("state", FieldType::Keyword),
    ("open", FieldType::Boolean),
    ("private", FieldType::Boolean),
];
/// Fields of a user.
pub const USER_FIELDS: &[(&str, FieldType)] = &[
    ("id", FieldType::Keyword),
    ("name", FieldType::Text),
    ("session_server", FieldType::Keyword),
    ("generation", FieldType::Number),
    ("seats", FieldType::Number),
    ("instance", FieldType::Keyword),
    ("online", FieldType::Boolean),
];
/// Fields of a server.
pub const SERVER_FIELDS: &[(&str, FieldType)] = &[
    ("name", FieldType::Keyword),
    ("role", FieldType::Keyword),
    ("state", FieldType::Keyword),
    ("build", FieldType::Text),
    ("load", FieldType::Number),
    ("capacity", FieldType::Number),
    ("busy_permille", FieldType::Number),
    ("last_report", FieldType::Number),
    ("labels", FieldType::Text),
];

/// Whether a field may have this name: 1 to [`FIELD_NAME_BYTES_MAX`] bytes, `[a-z_][a-z0-9_]*`.
pub fn is_field_name(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    name.len() <= FIELD_NAME_BYTES_MAX
        && name.bytes().next().is_some_and(is_letter)
        && name.bytes().all(|byte| is_letter(byte) || byte.is_ascii_digit())
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldType {
    /// A text that is compared as a whole: `=`, `!=`, `in`.
    Keyword,
    /// A whole number, i64.
    Number,
    /// True or false.
    Boolean,
    /// A text: compared by bytes, or by its beginning.
    Text,
}

impl FieldType {
    /// The word for it, with its article.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Keyword => "a keyword",
            Self::Number => "a number",
            Self::Boolean => "a boolean",
            Self::Text => "a text",
        }
    }
}

/// How a field is indexed.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum FieldIndex {
    /// Not at all: a condition on it is checked record by record.
    #[default]
    None,
    /// For `=` and `in`. `#[index]`.
    Equal,
    /// For ranges and for sorting, too. `#[index(ord)]`.
    Ordered,
    /// Of a text, for its beginning, for ranges and for sorting. `#[index(prefix)]`.
    Prefix,
}

/// A field that a kind declares of its instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldInfo {
    /// Its name, see [`is_field_name`].
    pub name: EcoString,
    /// What it holds.
    #[serde(rename = "type")]
    pub holds: FieldType,
    /// How it is indexed.
    #[serde(default)]
    pub index: FieldIndex,
}

/// Which records are looked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Those that all of these let through; of none, all.
    And(Vec<Filter>),
    /// Those that one of these lets through; of none, nobody.
    Or(Vec<Filter>),
    /// Those that this does not let through.
    Not(Box<Filter>),
    /// The field is the value.
    Eq(EcoString, MetaValue),
    /// The field is not the value, or is not there.
    Ne(EcoString, MetaValue),
    /// The field is one of the values.
    In(EcoString, Vec<MetaValue>),
    /// The field is less than the value.
    Lt(EcoString, MetaValue),
    /// The field is at most the value.
    Le(EcoString, MetaValue),
    /// The field is more than the value.
    Gt(EcoString, MetaValue),
    /// The field is at least the value.
    Ge(EcoString, MetaValue),
    /// The field is at least the first value and at most the second.
    Between(EcoString, MetaValue, MetaValue),
    /// The text begins so.
    Prefix(EcoString, EcoString),
}

impl Default for Filter {
    /// Lets everything through.
    fn default() -> Self {
        Self::And(Vec::new())
    }
}

impl Filter {
    /// Whether it lets everything through because it says nothing.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::And(all) if all.is_empty())
    }

    /// What both let through, no deeper than they are.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        let of = |filter| if let Self::And(all) = filter { all } else { vec![filter] };
        let mut all = of(self);
        all.extend(of(other));
        Self::And(all)
    }

    /// Whether a record is let through whose fields are these; none is a field that it does not have.
    pub fn lets_through(&self, value: &impl Fn(&EcoString) -> Option<MetaValue>) -> bool {
        let compare = |name: &EcoString, right: &MetaValue, is: fn(std::cmp::Ordering) -> bool| {
            value(name).is_some_and(|left| is(left.cmp(right)))
        };
        match self {
            Self::And(all) => all.iter().all(|filter| filter.lets_through(value)),
            Self::Or(any) => any.iter().any(|filter| filter.lets_through(value)),
            Self::Not(not) => !not.lets_through(value),
            Self::Eq(name, right) => compare(name, right, std::cmp::Ordering::is_eq),
            Self::Ne(name, right) => !compare(name, right, std::cmp::Ordering::is_eq),
            Self::In(name, values) => value(name).is_some_and(|left| values.contains(&left)),
            Self::Lt(name, right) => compare(name, right, std::cmp::Ordering::is_lt),
            Self::Le(name, right) => compare(name, right, std::cmp::Ordering::is_le),
            Self::Gt(name, right) => compare(name, right, std::cmp::Ordering::is_gt),
            Self::Ge(name, right) => compare(name, right, std::cmp::Ordering::is_ge),
            Self::Between(name, from, to) => {
                value(name).is_some_and(|left| *from <= left && left <= *to)
            }
            Self::Prefix(name, beginning) => match value(name) {
                Some(MetaValue::Text(text)) => text.starts_with(beginning.as_str()),
                Some(MetaValue::Bool(_) | MetaValue::Int(_)) | None => false,
            },
        }
    }

    /// Whether a filter is small enough to be worked on, whoever wrote it.
    ///
    /// # Errors
    /// [`Code::FilterTooDeep`] or [`Code::FilterTooLarge`]; [`Code::FieldUnknown`] for a name that no field can have.
    pub fn check(&self) -> Result<(), Refusal> {
        let conditions = self.measure(FILTER_DEPTH_MAX)?;
        if conditions > FILTER_CONDITIONS_MAX {
            return Err(Refusal::new(
                Code::FilterTooLarge,
                eco_format!(
                    "the filter has {conditions} conditions; {FILTER_CONDITIONS_MAX} are the most"
                ),
            ));
        }
        Ok(())
    }

    /// Counts the conditions, with `depth` levels left.
    fn measure(&self, depth: usize) -> Result<usize, Refusal> {
        let deeper = || {
            depth.checked_sub(1).ok_or_else(|| {
                Refusal::new(
                    Code::FilterTooDeep,
                    eco_format!(
                        "and, or and not are nested more than {FILTER_DEPTH_MAX} deep in the filter"
                    ),
                )
            })
        };
        let text = |text: &EcoString| {
            if text.len() > FILTER_TEXT_BYTES_MAX {
                return Err(Refusal::new(
                    Code::FilterTooLarge,
                    eco_format!(
                        "a text of the filter has {} bytes; {FILTER_TEXT_BYTES_MAX} are the most",
                        text.len()
                    ),
                ));
            }
            Ok(())
        };
        let name = |name: &EcoString| {
            if !is_field_name(name) {
                // As a text of the filter: escaped, so that its control characters reach no terminal, and cut.
                let shown: String = name.chars().take(FIELD_NAME_BYTES_MAX).collect();
                return Err(Refusal::new(
                    Code::FieldUnknown,
                    eco_format!(
                        "no kind has a field {shown:?}: names have 1 to {FIELD_NAME_BYTES_MAX} small letters, \
                         digits and _, and no digit first"
                    ),
                ));
            }
            Ok(())
        };
        let value = |value: &MetaValue| match value {
            MetaValue::Text(long) => text(long),
            MetaValue::Bool(_) | MetaValue::Int(_) => Ok(()),
        };
        match self {
            Self::And(all) | Self::Or(all) => {
                let depth = deeper()?;
                let mut sum: usize = 0;
                for filter in all {
                    sum += filter.measure(depth)?;
                }
                // An empty one is looked at as well: it counts as the condition that it stands for.
                Ok(sum.max(1))
            }
            Self::Not(filter) => filter.measure(deeper()?),
            Self::Eq(field, to)
            | Self::Ne(field, to)
            | Self::Lt(field, to)
            | Self::Le(field, to)
            | Self::Gt(field, to)
            | Self::Ge(field, to) => {
                name(field)?;
                value(to)?;
                Ok(1)
            }
            Self::In(field, values) => {
                name(field)?;
                values.iter().try_for_each(value)?;
                Ok(values.len().max(1))
            }
            Self::Between(field, from, to) => {
                name(field)?;
                value(from)?;
                value(to)?;
                Ok(1)
            }
            Self::Prefix(field, beginning) => {
                name(field)?;
                text(beginning)?;
                Ok(1)
            }
        }
    }
}

/// In which order records are found. Those that are equal in it follow each other by id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Order {
    /// By which field.
    pub field: EcoString,
    /// From the largest to the smallest.
    #[serde(default)]
    pub descending: bool,
}

/// How a search was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explain {
    /// The index that was walked, and which part of it, in words: `mode = "ranked"`, or `every record, by id`.
    pub index: EcoString,
    /// Records that were looked at.
    pub examined: u32,
    /// Of those, how many the filter let through, until the limit was reached.
    pub matched: u32,
    /// The order came from the index; else what was found was sorted.
    pub ordered_by_index: bool,
    /// What the planner chose from, best first.
    pub considered: Vec<Considered>,
}

/// A way in which a search could have been answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Considered {
    /// The index and the part of it.
    pub index: EcoString,
    /// How many entries that part has.
    pub entries: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, decode, encode};

    fn nested(depth: usize) -> Filter {
        (0..depth).fold(Filter::Eq("mode".into(), MetaValue::Text("duel".into())), |inner, _| {
            Filter::And(vec![inner])
        })
    }

    #[test]
    fn a_filter_nested_100_deep_is_refused_by_name() {
        let code = |filter: &Filter| filter.check().map_err(|refusal| refusal.code);
        assert_eq!(code(&nested(FILTER_DEPTH_MAX)), Ok(()));
        assert_eq!(code(&nested(FILTER_DEPTH_MAX + 1)), Err(Code::FilterTooDeep));
        assert_eq!(code(&nested(100)), Err(Code::FilterTooDeep));
    }

    #[test]
    fn a_filter_of_too_many_conditions_is_refused_by_name() {
        let values = vec![MetaValue::Int(1); FILTER_CONDITIONS_MAX + 1];
        let refusal = Filter::In("level".into(), values).check().map_err(|refusal| refusal.code);
        assert_eq!(refusal, Err(Code::FilterTooLarge));
        let long = Filter::Prefix("name".into(), "x".repeat(FILTER_TEXT_BYTES_MAX + 1).into());
        assert_eq!(long.check().map_err(|refusal| refusal.code), Err(Code::FilterTooLarge));
    }

    #[test]
    fn the_deepest_filter_that_is_taken_fits_what_a_client_may_send() {
        let deep = nested(FILTER_DEPTH_MAX);
        let request = crate::wire::client_session::Search {
            kind: crate::KindName::new("arena").unwrap(),
            filter: deep,
            order: None,
            limit: 1,
            cursor: None,
            explain: false,
        };
        assert_eq!(decode(&encode(&request), Limits::CLIENT), Ok(request));
    }
}
