//! What the records of a table have: the fields that all of them have, and those that a kind declares.
//!
//! Declared values stand packed in one piece of memory, in the order in which they are declared, so that a record
//! carries no names: a number takes eight bytes, a boolean one, a text two and itself.

use ecow::{EcoString, eco_format};
use greenroom_protocol::InstanceId;
use greenroom_protocol::search::{FIELDS_MAX, FieldIndex, FieldInfo, FieldType, is_field_name};
use greenroom_protocol::wire::client_session::{Meta, MetaValue};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// Bytes of one text in an instance's metadata, at most: as many as all of it may have, so that what a game server let
/// through is not lost here.
const TEXT_BYTES_MAX: usize = 4_096;
/// Bytes before the first declared value: one bit for each that is there.
const MASK_BYTES: usize = size_of::<u32>();
const _: () = assert!(FIELDS_MAX <= 32, "the mask has a bit for each field");

/// A field of a table by its number: first those that every record has, then the declared ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FieldId(pub(crate) u8);

impl FieldId {
    /// What names a record, and orders those that are equal in everything else. The first field of every table.
    pub(crate) const ID: Self = Self(0);
}

/// A value of a field, where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ValueRef<'a> {
    /// False is less than true.
    Bool(bool),
    /// A number.
    Int(i64),
    /// A text or a keyword, by bytes.
    Text(&'a [u8]),
    /// An instance's id. It orders as its text does.
    Id(InstanceId),
}

/// A value of a field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    /// False is less than true.
    Bool(bool),
    /// A number.
    Int(i64),
    /// A text or a keyword, by bytes.
    Text(EcoString),
    /// An instance's id.
    Id(InstanceId),
}

impl Value {
    /// No value is less.
    pub(crate) const LEAST: Self = Self::Bool(false);

    pub(crate) fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Self::Bool(value) => ValueRef::Bool(*value),
            Self::Int(value) => ValueRef::Int(*value),
            Self::Text(value) => ValueRef::Text(value.as_bytes()),
            Self::Id(value) => ValueRef::Id(*value),
        }
    }
}

impl From<&MetaValue> for Value {
    fn from(value: &MetaValue) -> Self {
        match value {
            MetaValue::Bool(value) => Self::Bool(*value),
            MetaValue::Int(value) => Self::Int(*value),
            MetaValue::Text(value) => Self::Text(value.clone()),
        }
    }
}

impl ValueRef<'_> {
    pub(crate) fn to_value(self) -> Value {
        match self {
            Self::Bool(value) => Value::Bool(value),
            Self::Int(value) => Value::Int(value),
            Self::Text(value) => Value::Text(text(value)),
            Self::Id(value) => Value::Id(value),
        }
    }
    /// As it is told to who searches.
    pub(crate) fn to_meta(self) -> MetaValue {
        match self {
            Self::Bool(value) => MetaValue::Bool(value),
            Self::Int(value) => MetaValue::Int(value),
            Self::Text(value) => MetaValue::Text(text(value)),
            Self::Id(value) => MetaValue::Text(eco_format!("{value}")),
        }
    }
}

/// A name that may be anything, as it can be told.
fn shown(name: &str) -> EcoString {
    const CHARS_MAX: usize = 64;
    let short: EcoString = name.chars().take(CHARS_MAX).collect();
    eco_format!("{short:?}")
}

fn text(bytes: &[u8]) -> EcoString {
    str::from_utf8(bytes).expect("what was packed was a text").into()
}

/// What a filter is asked about.
pub(crate) trait Record {
    /// The field's value; none where the record does not have it.
    fn value(&self, field: FieldId) -> Option<ValueRef<'_>>;
}

/// The fields of a table.
#[derive(Clone, Debug)]
pub(crate) struct Schema {
    /// What its records are, in words: `instances of "arena"`, `users`.
    pub(crate) records: EcoString,
    base: &'static [(&'static str, FieldType)],
    /// Those of them that hold ids of instances.
    ids: &'static [FieldId],
    declared: Vec<FieldInfo>,
    layout: Layout,
}

impl Schema {
    /// A table whose records have these fields, of which `ids` hold ids of instances; the first is their own id.
    pub(crate) fn new(
        records: EcoString,
        base: &'static [(&'static str, FieldType)],
        ids: &'static [FieldId],
    ) -> Self {
        Self { records, base, ids, declared: Vec::new(), layout: Layout::default() }
    }

    /// The same table with other declared fields.
    ///
    /// # Errors
    /// What is wrong with the declaration, in words.
    pub(crate) fn with(&self, declared: &[FieldInfo]) -> Result<Self, EcoString> {
        if declared.len() > FIELDS_MAX {
            return Err(eco_format!(
                "{} declare {} fields; {FIELDS_MAX} are the most",
                self.records,
                declared.len()
            ));
        }
        for (place, field) in declared.iter().enumerate() {
            if let Some(fault) = self.fault(field, &declared[..place]) {
                let name = shown(&field.name);
                return Err(eco_format!("{} declare the field {name}, {fault}", self.records));
            }
        }
        Ok(Self {
            records: self.records.clone(),
            base: self.base,
            ids: self.ids,
            declared: declared.to_vec(),
            layout: Layout::of(declared),
        })
    }

    /// What is wrong with a declared field, after those before it.
    fn fault(&self, field: &FieldInfo, before: &[FieldInfo]) -> Option<&'static str> {
        let FieldInfo { name, holds, index } = field;
        if !is_field_name(name) {
            return Some("which is no name: [a-z_][a-z0-9_]* of 1 to 64 bytes");
        }
        if self.base.iter().any(|(base, _)| base == name) {
            return Some("which every instance has already");
        }
        if before.iter().any(|before| before.name == *name) {
            return Some("which they declare twice");
        }
        match (index, holds) {
            (FieldIndex::None | FieldIndex::Equal, _)
            | (FieldIndex::Ordered, FieldType::Number | FieldType::Text)
            | (FieldIndex::Prefix, FieldType::Text) => None,
            (FieldIndex::Ordered, FieldType::Boolean | FieldType::Keyword) => {
                Some("of which an index can't be in order: it holds no number and no text")
            }
            (FieldIndex::Prefix, FieldType::Boolean | FieldType::Keyword | FieldType::Number) => {
                Some("of which an index can't be by beginnings: it holds no text")
            }
        }
    }

    pub(crate) fn declared(&self) -> &[FieldInfo] {
        &self.declared
    }
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }
    /// Every field, by number.
    pub(crate) fn fields(&self) -> impl Iterator<Item = FieldId> + use<> {
        (0..=u8::MAX).map(FieldId).take(self.base.len() + self.declared.len())
    }
    /// The declared fields.
    pub(crate) fn declared_fields(&self) -> impl Iterator<Item = FieldId> + use<> {
        self.fields().skip(self.base.len())
    }
    /// The place of a declared field among the declared ones.
    pub(crate) fn place(&self, field: FieldId) -> Option<usize> {
        usize::from(field.0).checked_sub(self.base.len())
    }
    pub(crate) fn find(&self, name: &str) -> Option<FieldId> {
        self.fields().find(|&field| self.name(field) == name)
    }
    pub(crate) fn name(&self, field: FieldId) -> &str {
        match self.place(field) {
            Some(place) => &self.declared[place].name,
            None => self.base[usize::from(field.0)].0,
        }
    }
    pub(crate) fn holds(&self, field: FieldId) -> FieldType {
        match self.place(field) {
            Some(place) => self.declared[place].holds,
            None => self.base[usize::from(field.0)].1,
        }
    }
    /// Whether the value is of the field's type.
    pub(crate) fn can_hold(&self, field: FieldId, value: &MetaValue) -> bool {
        match (self.holds(field), value) {
            (FieldType::Number, MetaValue::Int(_))
            | (FieldType::Boolean, MetaValue::Bool(_))
            | (FieldType::Keyword | FieldType::Text, MetaValue::Text(_)) => true,
            (FieldType::Number, MetaValue::Bool(_) | MetaValue::Text(_))
            | (FieldType::Boolean, MetaValue::Int(_) | MetaValue::Text(_))
            | (FieldType::Keyword | FieldType::Text, MetaValue::Bool(_) | MetaValue::Int(_)) => {
                false
            }
        }
    }
    pub(crate) fn holds_instances(&self, field: FieldId) -> bool {
        self.ids.contains(&field)
    }
    /// Whether a declared field is indexed.
    pub(crate) fn is_indexed(&self, field: FieldId) -> bool {
        let declared = self.place(field).map(|place| &self.declared[place]);
        declared.is_some_and(|declared| declared.index != FieldIndex::None)
    }
    /// The names of all fields, for who asked for one that is not there.
    pub(crate) fn names(&self) -> String {
        let names: Vec<&str> = self.fields().map(|field| self.name(field)).collect();
        names.join(", ")
    }
}

/// Where each declared value is in [`Packed`] ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    fields: Vec<Slot>,
    /// Places of the fields, in the order of their names.
    by_name: Vec<usize>,
    /// Where the texts begin.
    texts: usize,
}

/// Where one declared value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    holds: FieldType,
    /// Of the value, or of the end of a text.
    at: usize,
    /// Of the end of the text before.
    before: Option<usize>,
}

impl Layout {
    fn of(declared: &[FieldInfo]) -> Self {
        let (mut at, mut before) = (MASK_BYTES, None);
        let fields = declared.iter().map(|field| {
            let slot = Slot { holds: field.holds, at, before };
            at += match field.holds {
                FieldType::Number => size_of::<i64>(),
                FieldType::Boolean => 1,
                FieldType::Keyword | FieldType::Text => {
                    before = Some(at);
                    size_of::<u16>()
                }
            };
            slot
        });
        let fields = fields.collect();
        let mut by_name: Vec<usize> = (0..declared.len()).collect();
        by_name.sort_by_key(|&place| &declared[place].name);
        Self { fields, by_name, texts: at }
    }
}

/// The declared values of one instance, as a [`Layout`] says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packed(Box<[u8]>);

impl Packed {
    /// Packs what is declared of it, and says what was wrong with the rest.
    pub(crate) fn of(schema: &Schema, meta: &Meta) -> (Self, Option<EcoString>) {
        let layout = &schema.layout;
        let mut wrong = None;
        let is_declared =
            |name: &&EcoString| schema.declared.iter().any(|field| field.name == **name);
        if let Some(name) = meta.keys().find(|name| !is_declared(name)) {
            wrong = Some(eco_format!(
                "the field {}, which {} do not declare",
                shown(name),
                schema.records
            ));
        }
        let mut bytes = vec![0; layout.texts];
        let mut mask = 0u32;
        for (place, (slot, field)) in layout.fields.iter().zip(&schema.declared).enumerate() {
            let Slot { holds, at, .. } = *slot;
            let is_there = match (meta.get(&field.name), holds) {
                (None, _) => false,
                (Some(MetaValue::Int(value)), FieldType::Number) => {
                    bytes[at..at + size_of::<i64>()].copy_from_slice(&value.to_le_bytes());
                    true
                }
                (Some(MetaValue::Bool(value)), FieldType::Boolean) => {
                    bytes[at] = u8::from(*value);
                    true
                }
                (Some(MetaValue::Text(value)), FieldType::Keyword | FieldType::Text) => {
                    let fits = value.len() <= TEXT_BYTES_MAX;
                    if fits {
                        bytes.extend_from_slice(value.as_bytes());
                    } else {
                        wrong = Some(eco_format!(
                            "a text of {} bytes in the field {}; {TEXT_BYTES_MAX} are the most",
                            value.len(),
                            field.name
                        ));
                    }
                    fits
                }
                (Some(MetaValue::Int(_) | MetaValue::Bool(_) | MetaValue::Text(_)), _) => {
                    let (name, holds) = (&field.name, holds.text());
                    wrong = Some(eco_format!("the field {name} with another value than {holds}"));
                    false
                }
            };
            mask |= u32::from(is_there) << place;
            if let FieldType::Keyword | FieldType::Text = holds {
                let end = u16::try_from(bytes.len() - layout.texts)
                    .expect("32 texts of 1,023 bytes are less than 65,536");
                bytes[at..at + size_of::<u16>()].copy_from_slice(&end.to_le_bytes());
            }
        }
        if mask == 0 {
            return (Self::default(), wrong);
        }
        bytes[..MASK_BYTES].copy_from_slice(&mask.to_le_bytes());
        (Self(bytes.into_boxed_slice()), wrong)
    }

    /// The value of the declared field at this place of the declaration.
    pub(crate) fn get(&self, layout: &Layout, place: usize) -> Option<ValueRef<'_>> {
        let bytes = &*self.0;
        let mask = u32::from_le_bytes(*bytes.first_chunk()?);
        if mask >> place & 1 == 0 {
            return None;
        }
        let Slot { holds, at, before } = layout.fields[place];
        let end = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        Some(match holds {
            FieldType::Number => {
                let number = bytes[at..].first_chunk().expect("a number takes its eight bytes");
                ValueRef::Int(i64::from_le_bytes(*number))
            }
            FieldType::Boolean => ValueRef::Bool(bytes[at] != 0),
            FieldType::Keyword | FieldType::Text => {
                let texts = &bytes[layout.texts..];
                ValueRef::Text(&texts[before.map_or(0, end)..end(at)])
            }
        })
    }

    /// Bytes that it takes.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The values by name, to be written.
    pub(crate) fn said<'a>(&'a self, schema: &'a Schema) -> Said<'a> {
        Said { packed: self, schema }
    }

    /// The values by name.
    pub(crate) fn meta(&self, schema: &Schema) -> Meta {
        let named = schema.declared.iter().enumerate().filter_map(|(place, field)| {
            Some((field.name.clone(), self.get(&schema.layout, place)?.to_meta()))
        });
        named.collect()
    }
}

/// What [`Packed::meta`] gives, written as it is: a map in the order of names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said<'a> {
    packed: &'a Packed,
    schema: &'a Schema,
}

impl Serialize for Said<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { packed, schema } = *self;
        let layout = &schema.layout;
        let there = layout.by_name.iter().filter(|&&place| packed.get(layout, place).is_some());
        let mut map = to.serialize_map(Some(there.count()))?;
        for &place in &layout.by_name {
            let Some(value) = packed.get(layout, place) else { continue };
            let name = &schema.declared[place].name;
            match value {
                ValueRef::Bool(value) => map.serialize_entry(name, &value)?,
                ValueRef::Int(value) => map.serialize_entry(name, &value)?,
                ValueRef::Text(_) | ValueRef::Id(_) => {
                    map.serialize_entry(name, &value.to_meta())?;
                }
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use greenroom_protocol::search::INSTANCE_FIELDS;
    use proptest::prelude::*;

    fn field(name: &str, holds: FieldType, index: FieldIndex) -> FieldInfo {
        FieldInfo { name: name.into(), holds, index }
    }

    fn schema(declared: &[FieldInfo]) -> Result<Schema, EcoString> {
        Schema::new("things".into(), INSTANCE_FIELDS, &[FieldId::ID]).with(declared)
    }

    #[test]
    fn a_bad_declaration_is_refused_by_name() {
        use FieldIndex::{Equal, None, Ordered, Prefix};
        use FieldType::{Boolean, Keyword, Number, Text};
        let long = "x".repeat(65);
        for name in ["", "Mode", "1st", "a-b", "é", &long] {
            let refused = schema(&[field(name, Number, None)]).unwrap_err();
            assert!(refused.contains("no name"), "{name}: {refused}");
        }
        assert!(schema(&[field(&long[1..], Number, None)]).is_ok());
        let base = schema(&[field("seats_free", Number, None)]).unwrap_err();
        assert!(base.contains("seats_free") && base.contains("every instance has"), "{base}");
        let twice = [field("mode", Number, None), field("mode", Text, Prefix)];
        assert_eq!(
            schema(&twice).unwrap_err(),
            "things declare the field \"mode\", which they declare twice"
        );
        for (holds, index) in [
            (Boolean, Ordered),
            (Keyword, Ordered),
            (Boolean, Prefix),
            (Keyword, Prefix),
            (Number, Prefix),
        ] {
            assert!(schema(&[field("x", holds, index)]).unwrap_err().contains("an index can't"));
        }
        for (holds, index) in
            [(Boolean, Equal), (Keyword, Equal), (Number, Ordered), (Text, Ordered)]
        {
            assert!(schema(&[field("x", holds, index)]).is_ok());
        }
        let many: Vec<FieldInfo> =
            (0..=FIELDS_MAX).map(|n| field(&format!("f{n}"), Number, None)).collect();
        assert!(schema(&many).unwrap_err().contains("33 fields"));
        assert!(schema(&many[1..]).is_ok());
    }

    fn value() -> impl Strategy<Value = MetaValue> {
        prop_oneof![
            any::<bool>().prop_map(MetaValue::Bool),
            any::<i64>().prop_map(MetaValue::Int),
            "[a-zé]{0,12}".prop_map(|text| MetaValue::Text(text.into())),
        ]
    }

    proptest! {
        /// Method: random declarations of five fields, random values under their names and others. What comes out is
        /// what is declared and of its type.
        #[test]
        fn what_was_packed_comes_out_and_the_rest_is_told(
            holds in prop::collection::vec(0usize..4, 5),
            values in prop::collection::btree_map("[a-f]", value(), 0..6),
        ) {
            let types = [FieldType::Keyword, FieldType::Number, FieldType::Boolean, FieldType::Text];
            let declared: Vec<FieldInfo> = (["a", "b", "c", "d", "e"].iter().zip(&holds))
                .map(|(name, &holds)| field(name, types[holds], FieldIndex::None))
                .collect();
            let schema = schema(&declared).unwrap();
            let meta: Meta = values.into_iter().map(|(name, value)| (name.into(), value)).collect();
            let mut expected = meta.clone();
            expected.retain(|name, value| {
                let holds = declared.iter().find(|field| field.name == *name).map(|field| field.holds);
                match value {
                    MetaValue::Bool(_) => holds == Some(FieldType::Boolean),
                    MetaValue::Int(_) => holds == Some(FieldType::Number),
                    MetaValue::Text(_) => matches!(holds, Some(FieldType::Keyword | FieldType::Text)),
                }
            });
            let (packed, wrong) = Packed::of(&schema, &meta);
            prop_assert_eq!(wrong.is_some(), meta != expected);
            prop_assert_eq!(packed.meta(&schema), expected);
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_dropped_and_told() {
        let schema = schema(&[field("name", FieldType::Text, FieldIndex::Prefix)]).unwrap();
        let meta =
            |len: usize| Meta::from([("name".into(), MetaValue::Text("x".repeat(len).into()))]);
        assert_eq!(Packed::of(&schema, &meta(TEXT_BYTES_MAX)).1, None);
        let (packed, wrong) = Packed::of(&schema, &meta(TEXT_BYTES_MAX + 1));
        assert_eq!((packed, wrong.is_some()), (Packed::default(), true));
    }
}
