//! Filters as an application writes them: `field("mode").eq("ranked") & field("rating").between(1400, 1600)`.

use std::ops::{BitAnd, BitOr, Not};

use super::{Filter, TextError};
use crate::wire::client_session::MetaValue;
use crate::{InstanceId, UserId};
use ecow::EcoString;

/// A field that records are looked for by. Of instances: one that the kind declares, or one that every instance has, as
/// `created`, `seats_free` or `key`. Of documents: one that an index has.
///
/// ```
/// use greenroom_protocol::search::{Filter, field};
///
/// let built = field("mode").eq("ranked") & field("rating").between(1400, 1600) & !field("full").is(true);
/// let read = Filter::parse("mode = \"ranked\" and rating between 1400 and 1600 and not full = true");
/// assert_eq!(Ok(Filter::from(built)), read);
/// ```
pub fn field(name: impl Into<EcoString>) -> Field {
    Field(name.into())
}

/// A field, of which a condition is still to be said. See [`field`].
#[derive(Clone, Debug)]
#[must_use = "it is no condition yet"]
pub struct Field(EcoString);

impl Field {
    /// It is this value.
    pub fn eq(self, value: impl Value) -> Condition {
        Condition(Filter::Eq(self.0, value.into_value()))
    }
    /// It is not this value, or not there.
    pub fn ne(self, value: impl Value) -> Condition {
        Condition(Filter::Ne(self.0, value.into_value()))
    }
    /// It is less than this value.
    pub fn lt(self, value: impl Value) -> Condition {
        Condition(Filter::Lt(self.0, value.into_value()))
    }
    /// It is at most this value.
    pub fn le(self, value: impl Value) -> Condition {
        Condition(Filter::Le(self.0, value.into_value()))
    }
    /// It is more than this value.
    pub fn gt(self, value: impl Value) -> Condition {
        Condition(Filter::Gt(self.0, value.into_value()))
    }
    /// It is at least this value.
    pub fn ge(self, value: impl Value) -> Condition {
        Condition(Filter::Ge(self.0, value.into_value()))
    }
    /// It is at least the first value and at most the second.
    pub fn between(self, from: impl Value, to: impl Value) -> Condition {
        Condition(Filter::Between(self.0, from.into_value(), to.into_value()))
    }
    /// It is one of these values; of none, nobody's is.
    pub fn one_of<V: Value>(self, values: impl IntoIterator<Item = V>) -> Condition {
        Condition(Filter::In(self.0, values.into_iter().map(Value::into_value).collect()))
    }
    /// It is a text that begins so.
    pub fn prefix(self, beginning: impl Into<EcoString>) -> Condition {
        Condition(Filter::Prefix(self.0, beginning.into()))
    }
    /// It is true, or false.
    pub fn is(self, value: bool) -> Condition {
        self.eq(value)
    }
}

/// What lets some records through: conditions are joined by `&` and `|`, and turned round by `!`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "it finds nothing by itself"]
pub struct Condition(Filter);

impl Condition {
    /// Reads a condition that is written as text: `mode = "ranked" and rating between 1400 and 1600`.
    ///
    /// # Errors
    /// What was expected, and where.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        Filter::parse(text).map(Self)
    }
}

impl From<Condition> for Filter {
    fn from(condition: Condition) -> Self {
        condition.0
    }
}

impl From<Filter> for Condition {
    fn from(filter: Filter) -> Self {
        Self(filter)
    }
}

impl BitAnd for Condition {
    type Output = Self;
    /// Lets through what both let through.
    fn bitand(self, other: Self) -> Self {
        Self(self.0.and(other.0))
    }
}

impl BitOr for Condition {
    type Output = Self;
    /// Lets through what one of them lets through.
    fn bitor(self, other: Self) -> Self {
        // Flat, since how deep a filter may nest is bounded.
        let of = |filter| if let Filter::Or(any) = filter { any } else { vec![filter] };
        let mut any = of(self.0);
        any.extend(of(other.0));
        Self(Filter::Or(any))
    }
}

impl Not for Condition {
    type Output = Self;
    /// Lets through what this does not let through.
    fn not(self) -> Self {
        Self(Filter::Not(Box::new(self.0)))
    }
}

mod sealed {
    pub trait Sealed {}
}

/// What a field can be compared with: a text, a whole number of at most 64 bits with its sign, true or false, an id.
pub trait Value: sealed::Sealed {
    #[doc(hidden)]
    fn into_value(self) -> MetaValue;
}

macro_rules! values { ($($type:ty: $value:ident => $made:expr;)*) => { $(
    impl sealed::Sealed for $type {}
    impl Value for $type {
        fn into_value(self) -> MetaValue {
            let $value = self;
            $made
        }
    }
)* } }

values! {
    MetaValue: value => value;
    bool: value => MetaValue::Bool(value);
    i8: value => MetaValue::Int(value.into());
    i16: value => MetaValue::Int(value.into());
    i32: value => MetaValue::Int(value.into());
    i64: value => MetaValue::Int(value);
    u8: value => MetaValue::Int(value.into());
    u16: value => MetaValue::Int(value.into());
    u32: value => MetaValue::Int(value.into());
    &str: value => MetaValue::Text(value.into());
    String: value => MetaValue::Text(value.into());
    EcoString: value => MetaValue::Text(value);
    InstanceId: value => MetaValue::Text(ecow::eco_format!("{value}"));
    UserId: value => MetaValue::Text(value.as_str().into());
}

#[cfg(test)]
mod tests {
    use super::super::FILTER_DEPTH_MAX;
    use super::*;

    fn of(condition: Condition) -> Filter {
        condition.into()
    }

    #[test]
    fn what_is_built_is_the_filter_that_is_meant() {
        let ranked = Filter::Eq("mode".into(), MetaValue::Text("ranked".into()));
        let near = Filter::Between("rating".into(), MetaValue::Int(1400), MetaValue::Int(1600));
        let free = Filter::Gt("seats_free".into(), MetaValue::Int(0));
        let built = field("mode").eq("ranked")
            & field("rating").between(1400, 1600)
            & field("seats_free").gt(0);
        assert_eq!(of(built), Filter::And(vec![ranked.clone(), near, free.clone()]));
        let built = !(field("mode").eq(String::from("ranked")) | field("seats_free").gt(0u8));
        assert_eq!(of(built), Filter::Not(Box::new(Filter::Or(vec![ranked, free]))));
        let values = vec![MetaValue::Text("a".into()), MetaValue::Text("b".into())];
        assert_eq!(of(field("map").one_of(["a", "b"])), Filter::In("map".into(), values));
        assert_eq!(of(field("name").prefix("an")), Filter::Prefix("name".into(), "an".into()));
        assert_eq!(of(field("x").is(true)), Filter::Eq("x".into(), MetaValue::Bool(true)));
        for (built, made) in [
            (field("x").ne(1), Filter::Ne("x".into(), MetaValue::Int(1))),
            (field("x").lt(1), Filter::Lt("x".into(), MetaValue::Int(1))),
            (field("x").le(1), Filter::Le("x".into(), MetaValue::Int(1))),
            (field("x").ge(1), Filter::Ge("x".into(), MetaValue::Int(1))),
        ] {
            assert_eq!(of(built), made);
        }
    }

    #[test]
    fn conditions_in_a_row_do_not_nest_however_they_are_joined() {
        let many = || (0..=FILTER_DEPTH_MAX).map(|n| field("x").ne(u32::try_from(n).unwrap()));
        let all = many().reduce(|left, right| left & right).unwrap();
        let any = many().reduce(|left, right| right | left).unwrap();
        let both = of(all & any);
        assert_eq!(both.check(), Ok(()));
        assert_eq!(Filter::default().and(both.clone()), both);
        assert_eq!(both.clone().and(Filter::default()), both);
    }
}
