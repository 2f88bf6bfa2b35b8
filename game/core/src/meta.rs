//! Metadata: what a game says of its instances to those who look for one, as fields that the directory can search.

use ecow::EcoString;
use greenroom_protocol::search::INSTANCE_FIELDS;
use greenroom_protocol::wire::client_session;

pub use greenroom_protocol::search::{FIELDS_MAX, FieldIndex, FieldInfo, FieldType};
pub use greenroom_protocol::wire::client_session::MetaValue;

/// Numbers of metadata and scores are from minus this to this, 2⁵³ − 1: a client in JavaScript has no others.
pub const NUMBER_MAX: i64 = (1 << 53) - 1;

/// Bytes of an instance's metadata, at most: its texts and the fields' names, 8 for a number and 1 for a boolean.
pub const META_BYTES_MAX: usize = 4_096;

/// What instances of a kind say of themselves. Derive it, for a struct with named fields:
///
/// ```
/// # extern crate greenroom_game_core as greenroom;
/// # fn main() {
/// use greenroom::{Meta, MetaKeyword};
///
/// #[derive(Meta)]
/// struct About {
///     #[index] // found by `=` and `in`
///     mode: Mode,
///     #[index(ord)] // by ranges as well, and sorted by
///     rating: u16,
///     #[index(prefix)] // a text: by its beginning as well
///     title: String,
///     password: bool, // not indexed: looked at one by one, among those that the rest of a search left
///     map: Option<String>, // may be missing: then no condition on it holds
/// }
///
/// #[derive(MetaKeyword)]
/// enum Mode {
///     Ranked, // "ranked"
///     Training,
/// }
/// # assert_eq!(About::fields().len(), 5);
/// # assert_eq!(Mode::Training.keyword(), "training");
/// # _ = (Mode::Ranked, |a: About| (a.mode, a.rating, a.title, a.password, a.map));
/// # }
/// ```
///
/// Fields are booleans, whole numbers, texts and keywords; [`MetaField`] has the list. What can't be does not compile:
/// more than [`FIELDS_MAX`] fields, a name that every instance has by itself, an index that the type can't have.
///
/// ```compile_fail
/// # extern crate greenroom_game_core as greenroom;
/// # fn main() {}
/// #[derive(greenroom::Meta)]
/// struct About {
///     #[index(prefix)] // A number has no beginning.
///     rating: u16,
/// }
/// ```
/// ```compile_fail
/// # extern crate greenroom_game_core as greenroom;
/// # fn main() {}
/// #[derive(greenroom::Meta)]
/// struct About {
///     owner: String, // Every instance has an owner.
/// }
/// ```
/// ```compile_fail
/// # extern crate greenroom_game_core as greenroom;
/// # fn main() {}
/// #[derive(greenroom::Meta)]
/// struct About {
///     temperature: f32, // Numbers are whole.
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say what an instance is found by",
    label = "is no metadata",
    note = "write `#[derive(greenroom::Meta)]` above it, or `type Meta = ();` for nothing"
)]
pub trait Meta {
    /// The fields, as they are declared: at most [`FIELDS_MAX`], each name once.
    fn fields() -> Vec<FieldInfo>;
    /// Puts the value of each field that has one. It puts what [`Self::fields`] declares, and nothing else.
    fn values(&self, put: &mut impl FnMut(&'static str, MetaValue));
}

/// Nothing is said.
impl Meta for () {
    fn fields() -> Vec<FieldInfo> {
        Vec::new()
    }
    fn values(&self, _: &mut impl FnMut(&'static str, MetaValue)) {}
}

/// What a field of metadata can be: `bool`; every whole number up to 64 bits, from −[`NUMBER_MAX`] to [`NUMBER_MAX`];
/// `String`, `EcoString` and `&'static str`; an enum that derives [`MetaKeyword`]; and `Option` of these, for a field
/// that may be missing. A text with `#[index]` is declared as a keyword, since it is found as a whole only.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be a field of metadata",
    label = "can't be searched for",
    note = "a field is a `bool`, a whole number, a `String`, an `EcoString`, a `&'static str`, an enum with \
            `#[derive(greenroom::MetaKeyword)]`, or an `Option` of these"
)]
pub trait MetaField {
    /// What it holds.
    const TYPE: FieldType;
    /// Its value; nothing if it is missing.
    fn value(&self) -> Option<MetaValue>;
}

/// An enum whose variants have no fields, as keywords: derive it. A keyword is the variant's name in `snake_case`.
///
/// ```compile_fail
/// # extern crate greenroom_game_core as greenroom;
/// # fn main() {}
/// #[derive(greenroom::MetaKeyword)]
/// enum Mode {
///     Ranked { rating: u16 }, // A keyword is a name and nothing else.
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no keyword",
    note = "write `#[derive(greenroom::MetaKeyword)]` above an enum without fields"
)]
pub trait MetaKeyword {
    /// The keyword that this is, for searching by it too.
    fn keyword(&self) -> &'static str;
}

impl<K: MetaKeyword> MetaField for K {
    const TYPE: FieldType = FieldType::Keyword;
    fn value(&self) -> Option<MetaValue> {
        Some(MetaValue::Text(self.keyword().into()))
    }
}

impl<T: MetaField> MetaField for Option<T> {
    const TYPE: FieldType = T::TYPE;
    fn value(&self) -> Option<MetaValue> {
        self.as_ref()?.value()
    }
}

impl MetaField for bool {
    const TYPE: FieldType = FieldType::Boolean;
    fn value(&self) -> Option<MetaValue> {
        Some(MetaValue::Bool(*self))
    }
}

macro_rules! numbers { ($($number:ty),*) => { $(
    impl MetaField for $number {
        const TYPE: FieldType = FieldType::Number;
        fn value(&self) -> Option<MetaValue> {
            Some(MetaValue::Int((*self).into()))
        }
    }
)* } }
numbers!(i8, i16, i32, i64, u8, u16, u32);

macro_rules! wide_numbers { ($($number:ty),*) => { $(
    impl MetaField for $number {
        const TYPE: FieldType = FieldType::Number;
        fn value(&self) -> Option<MetaValue> {
            // What i64 does not have is past `NUMBER_MAX` as well, and refused there.
            Some(MetaValue::Int(i64::try_from(*self).unwrap_or(i64::MAX)))
        }
    }
)* } }
wide_numbers!(u64, usize, isize);

macro_rules! texts { ($($text:ty),*) => { $(
    impl MetaField for $text {
        const TYPE: FieldType = FieldType::Text;
        fn value(&self) -> Option<MetaValue> {
            Some(MetaValue::Text(self.clone().into()))
        }
    }
)* } }
texts!(String, EcoString, &'static str);

/// A field's declaration: what the derive writes.
pub fn field(name: &str, holds: FieldType, index: FieldIndex) -> FieldInfo {
    let holds = match (holds, index) {
        (FieldType::Text, FieldIndex::Equal) => FieldType::Keyword,
        (holds, _) => holds,
    };
    FieldInfo { name: name.into(), holds, index }
}

/// Why there can't be such a field, if there can't: what the derive has the compiler find out.
pub const fn fault(name: &str, holds: FieldType, index: FieldIndex) -> Option<&'static str> {
    let mut at = 0;
    while at < INSTANCE_FIELDS.len() {
        if is_same(name, INSTANCE_FIELDS[at].0) {
            return Some(
                "every instance has a field of this name by itself: give this one another name",
            );
        }
        at += 1;
    }
    match (holds, index) {
        (_, FieldIndex::None | FieldIndex::Equal)
        | (FieldType::Text, FieldIndex::Ordered | FieldIndex::Prefix)
        | (FieldType::Number, FieldIndex::Ordered) => None,
        (FieldType::Number, FieldIndex::Prefix) => Some(
            "a number has no beginning: write `#[index(ord)]` to find it by ranges, or `#[index]`",
        ),
        (FieldType::Boolean, FieldIndex::Ordered | FieldIndex::Prefix) => {
            Some("a boolean has no order and no beginning: write `#[index]`")
        }
        (FieldType::Keyword, FieldIndex::Ordered | FieldIndex::Prefix) => {
            Some("a keyword is compared as a whole: write `#[index]`, or make the field a `String`")
        }
    }
}

const fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// What the game says, as the directory keeps it; or the text of what can't be said.
pub(crate) fn said<M: Meta>(meta: &M) -> Result<client_session::Meta, String> {
    let mut said = client_session::Meta::new();
    let mut wrong = None;
    meta.values(&mut |name, value| {
        if let MetaValue::Int(number) = value
            && let Err(reason) = check_number(number)
        {
            wrong.get_or_insert_with(|| format!("field {name:?} {reason}"));
        }
        said.insert(name.into(), value);
    });
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    let bytes: usize = said.iter().map(|(name, value)| name.len() + bytes(value)).sum();
    if bytes > META_BYTES_MAX {
        return Err(format!(
            "it has {bytes} bytes; {META_BYTES_MAX} are the most, so cut its texts"
        ));
    }
    Ok(said)
}

fn bytes(value: &MetaValue) -> usize {
    match value {
        MetaValue::Bool(_) => 1,
        MetaValue::Int(_) => 8,
        MetaValue::Text(text) => text.len(),
    }
}

/// Whether every client has this number.
pub(crate) fn check_number(number: i64) -> Result<(), String> {
    if number.unsigned_abs() > NUMBER_MAX.unsigned_abs() {
        return Err(format!(
            "is beyond -{NUMBER_MAX} to {NUMBER_MAX}, which are the whole numbers that every client has; \
             say it as a text"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(crate::MetaKeyword)]
    enum Mode {
        BattleRoyale,
    }

    #[derive(crate::Meta)]
    struct About {
        #[index]
        mode: Mode,
        #[index(ord)]
        rating: i32,
        #[index]
        map: &'static str,
        #[index(prefix)]
        title: String,
        note: EcoString,
        ranked: bool,
        #[index]
        host: Option<String>,
        seed: u64,
    }

    fn about() -> About {
        About {
            mode: Mode::BattleRoyale,
            rating: -3,
            map: "dust",
            title: "Late night".into(),
            note: "no bots".into(),
            ranked: true,
            host: None,
            seed: 7,
        }
    }

    #[test]
    fn a_field_is_declared_by_its_type_and_its_index() {
        let fields = About::fields();
        let declared: Vec<_> =
            fields.iter().map(|field| (field.name.as_str(), field.holds, field.index)).collect();
        let expected = [
            ("mode", FieldType::Keyword, FieldIndex::Equal),
            ("rating", FieldType::Number, FieldIndex::Ordered),
            ("map", FieldType::Keyword, FieldIndex::Equal),
            ("title", FieldType::Text, FieldIndex::Prefix),
            ("note", FieldType::Text, FieldIndex::None),
            ("ranked", FieldType::Boolean, FieldIndex::None),
            ("host", FieldType::Keyword, FieldIndex::Equal),
            ("seed", FieldType::Number, FieldIndex::None),
        ];
        assert_eq!(declared, expected);
    }

    #[test]
    fn every_value_is_said_and_a_missing_one_is_left_out() {
        let said = said(&about()).unwrap();
        let text = |text: &str| MetaValue::Text(text.into());
        let expected = [
            ("map", text("dust")),
            ("mode", text("battle_royale")),
            ("note", text("no bots")),
            ("ranked", MetaValue::Bool(true)),
            ("rating", MetaValue::Int(-3)),
            ("seed", MetaValue::Int(7)),
            ("title", text("Late night")),
        ];
        assert!(said.iter().map(|(name, value)| (name.as_str(), value.clone())).eq(expected));
        let hosted = About { host: Some("Ann".into()), ..about() };
        assert_eq!(super::said(&hosted).unwrap().get("host"), Some(&text("Ann")));
    }

    #[test]
    fn a_number_that_no_javascript_client_has_is_refused_by_its_field() {
        let largest = NUMBER_MAX.unsigned_abs();
        assert!(said(&About { seed: largest, ..about() }).is_ok());
        for seed in [largest + 1, u64::MAX] {
            let reason = said(&About { seed, ..about() }).unwrap_err();
            assert!(reason.contains("\"seed\"") && reason.contains("9007199254740991"), "{reason}");
        }
        assert!(check_number(-NUMBER_MAX).is_ok());
        assert!(check_number(-NUMBER_MAX - 1).is_err() && check_number(i64::MIN).is_err());
    }

    #[test]
    fn metadata_over_its_size_is_refused_with_its_size() {
        let title = |length| About { title: "x".repeat(length), ..about() };
        assert!(said(&title(4_000)).is_ok());
        let reason = said(&title(4_096)).unwrap_err();
        assert!(reason.contains("4096 are the most"), "{reason}");
    }

    #[test]
    fn nothing_and_a_struct_without_fields_say_nothing() {
        #[derive(crate::Meta)]
        struct Nothing;
        #[derive(crate::Meta)]
        struct Empty {}
        assert!(<()>::fields().is_empty() && said(&()).unwrap().is_empty());
        assert!(Nothing::fields().is_empty() && said(&Nothing).unwrap().is_empty());
        assert!(Empty::fields().is_empty() && said(&Empty {}).unwrap().is_empty());
    }

    #[test]
    fn a_fault_says_what_to_write_instead() {
        use FieldIndex::{Equal, None as Unindexed, Ordered, Prefix};
        use FieldType::{Boolean, Keyword, Number, Text};
        let text = |name, holds, index| fault(name, holds, index).unwrap_or_default();
        for (name, holds) in INSTANCE_FIELDS {
            assert!(text(name, *holds, Unindexed).contains("another name"), "{name}");
        }
        assert!(text("rating", Number, Prefix).contains("`#[index(ord)]`"));
        for index in [Ordered, Prefix] {
            assert!(text("ranked", Boolean, index).contains("`#[index]`"));
            assert!(text("mode", Keyword, index).contains("`String`"));
            assert_eq!(fault("title", Text, index), None);
        }
        for holds in [Boolean, Keyword, Number, Text] {
            assert_eq!((fault("x", holds, Unindexed), fault("x", holds, Equal)), (None, None));
        }
    }

    /// The derive has the number in its own source, since a crate of derives shares nothing else.
    #[test]
    fn a_kind_declares_as_many_fields_as_the_protocol_takes() {
        macro_rules! wide { ($($field:ident)*) => {
            #[derive(crate::Meta)]
            struct Wide { $($field: bool),* }
            assert_eq!(Wide::fields().len(), FIELDS_MAX);
            assert_eq!(said(&Wide { $($field: true),* }).unwrap().len(), FIELDS_MAX);
        } }
        wide!(a b c d e f g h i j k l m n o p q r s t u v w x y z aa ab ac ad ae af);
    }
}
