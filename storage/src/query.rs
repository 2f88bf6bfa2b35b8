//! What can be looked for in a collection: the directory's filters over top-level fields of documents.

use std::collections::BTreeMap;

use ecow::{EcoString, eco_format};
use greenroom_protocol::search::{FieldType, Filter, Order, is_field_name};
use greenroom_protocol::wire::client_session::MetaValue;

use crate::{Collection, Document, Key, StorageError};

/// Documents of one answer, at most.
pub const LIMIT_MAX: u16 = 1_000;

/// Bytes of documents after which a page ends before its limit, at most.
pub const PAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Fields of one index, at most.
const INDEX_FIELDS_MAX: usize = 4;

/// An index: what queries of a collection may ask for, in the order in which the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Of which collection.
    pub collection: Collection,
    /// By which top-level fields, the most selective first; the key follows by itself.
    pub fields: Vec<(EcoString, FieldType)>,
}

impl Index {
    /// An index over these fields.
    ///
    /// # Errors
    /// [`StorageError::BadQuery`] for no field, more than four, one twice, or a name that no field can have.
    pub fn new(collection: Collection, fields: &[(&str, FieldType)]) -> Result<Self, StorageError> {
        let bad = |why: EcoString| Err(StorageError::BadQuery(why));
        if fields.is_empty() || fields.len() > INDEX_FIELDS_MAX {
            return bad(eco_format!("an index has 1 to {INDEX_FIELDS_MAX} fields"));
        }
        for (place, (name, _)) in fields.iter().enumerate() {
            if !is_field_name(name) || name.starts_with(crate::RESERVED) {
                return bad(eco_format!("no field can be named {name:?}"));
            }
            if fields[..place].iter().any(|(other, _)| other == name) {
                return bad(eco_format!("the field {name} is twice in one index"));
            }
        }
        let fields = fields.iter().map(|(name, holds)| ((*name).into(), *holds)).collect();
        Ok(Self { collection, fields })
    }

    /// Its name in the store: the same fields have the same name.
    pub fn name(&self) -> String {
        let mut name = format!("{}_by", self.collection);
        for (field, holds) in &self.fields {
            let sort = match holds {
                FieldType::Number => "n",
                FieldType::Boolean => "b",
                FieldType::Keyword | FieldType::Text => "t",
            };
            name.push_str(&format!("_{field}_{sort}"));
        }
        name
    }
}

/// Every index of a store, and by that every field that a query may name.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    indexes: Vec<Index>,
    fields: BTreeMap<(Collection, EcoString), FieldType>,
}

impl Schema {
    /// Takes the indexes.
    ///
    /// # Errors
    /// [`StorageError::BadQuery`] when one field of a collection is said to hold two things.
    pub fn new(indexes: Vec<Index>) -> Result<Self, StorageError> {
        let mut fields = BTreeMap::new();
        for index in &indexes {
            for (name, holds) in &index.fields {
                let collection = index.collection;
                let before = fields.insert((collection, name.clone()), *holds);
                if let Some(before) = before.filter(|before| before != holds) {
                    return Err(StorageError::BadQuery(eco_format!(
                        "the field {name} of {collection} is {} in one index and {} in another",
                        before.text(),
                        holds.text()
                    )));
                }
            }
        }
        Ok(Self { indexes, fields })
    }

    /// Every index.
    pub fn indexes(&self) -> &[Index] {
        &self.indexes
    }

    /// What a field holds, if queries may name it.
    pub fn field(&self, collection: Collection, name: &str) -> Option<FieldType> {
        self.fields.get(&(collection, name.into())).copied()
    }

    /// Whether a query is one that each store can answer.
    ///
    /// # Errors
    /// [`StorageError::BadQuery`], which names what is wrong.
    pub fn check(&self, query: &Query) -> Result<(), StorageError> {
        let bad = |why: EcoString| Err(StorageError::BadQuery(why));
        let bytes = query.bytes_max;
        if bytes == 0 || bytes > PAGE_BYTES_MAX {
            return bad(eco_format!("a page of {bytes} bytes; 1 to {PAGE_BYTES_MAX} are possible"));
        }
        if query.limit == 0 || query.limit > LIMIT_MAX {
            return bad(eco_format!("the limit is {}; 1 to {LIMIT_MAX} are possible", query.limit));
        }
        if let Err(refusal) = query.filter.check() {
            return bad(refusal.message);
        }
        self.check_filter(query.collection, &query.filter)?;
        if let Some(order) = &query.order {
            self.known(query.collection, &order.field)?;
        }
        Ok(())
    }

    fn known(&self, collection: Collection, name: &str) -> Result<FieldType, StorageError> {
        self.field(collection, name).ok_or_else(|| {
            let known = self.fields.keys().filter(|(of, _)| *of == collection);
            let known: Vec<&str> = known.map(|(_, name)| name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            StorageError::BadQuery(eco_format!(
                "{collection} has no field {name:?} in an index; there are: {known}"
            ))
        })
    }

    fn check_filter(&self, collection: Collection, filter: &Filter) -> Result<(), StorageError> {
        let fits = |name: &EcoString, value: &MetaValue| {
            let holds = self.known(collection, name)?;
            match (holds, value) {
                (FieldType::Number, MetaValue::Int(_))
                | (FieldType::Boolean, MetaValue::Bool(_))
                | (FieldType::Keyword | FieldType::Text, MetaValue::Text(_)) => Ok(holds),
                (
                    FieldType::Number | FieldType::Boolean | FieldType::Keyword | FieldType::Text,
                    MetaValue::Int(_) | MetaValue::Bool(_) | MetaValue::Text(_),
                ) => {
                    Err(StorageError::BadQuery(eco_format!("the field {name} is {}", holds.text())))
                }
            }
        };
        let ordered = |name: &EcoString, value: &MetaValue| match fits(name, value)? {
            FieldType::Number | FieldType::Text => Ok(()),
            holds @ (FieldType::Keyword | FieldType::Boolean) => {
                let what = holds.text();
                Err(StorageError::BadQuery(eco_format!(
                    "the field {name} is {what}: it has no order"
                )))
            }
        };
        match filter {
            Filter::And(all) | Filter::Or(all) => {
                all.iter().try_for_each(|filter| self.check_filter(collection, filter))
            }
            Filter::Not(not) => self.check_filter(collection, not),
            Filter::Eq(name, value) | Filter::Ne(name, value) => fits(name, value).map(|_| ()),
            Filter::In(name, values) => {
                self.known(collection, name)?;
                values.iter().try_for_each(|value| fits(name, value).map(|_| ()))
            }
            Filter::Lt(name, value)
            | Filter::Le(name, value)
            | Filter::Gt(name, value)
            | Filter::Ge(name, value) => ordered(name, value),
            Filter::Between(name, from, to) => {
                ordered(name, from)?;
                ordered(name, to)
            }
            Filter::Prefix(name, _) => match self.known(collection, name)? {
                FieldType::Text => Ok(()),
                holds @ (FieldType::Keyword | FieldType::Boolean | FieldType::Number) => {
                    let what = holds.text();
                    Err(StorageError::BadQuery(eco_format!(
                        "the field {name} is {what}: it has no beginning"
                    )))
                }
            },
        }
    }
}

/// A search in one collection. A field that holds something else than its index says counts as not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Where.
    pub collection: Collection,
    /// Which documents.
    pub filter: Filter,
    /// In which order; without one, by id. Documents without the field come last, by id, as in the directory.
    pub order: Option<Order>,
    /// Only those whose id begins so; empty for all.
    pub beginning: EcoString,
    /// How many, 1 to [`LIMIT_MAX`].
    pub limit: u16,
    /// Bytes of documents after which a page ends before its limit, up to [`PAGE_BYTES_MAX`].
    pub bytes_max: usize,
    /// Where the last page ended.
    pub after: Option<Cursor>,
}

impl Query {
    /// The first 100 documents of a collection that a filter lets through, by id.
    pub const fn new(collection: Collection, filter: Filter) -> Self {
        Self {
            collection,
            filter,
            order: None,
            beginning: EcoString::new(),
            limit: 100,
            bytes_max: PAGE_BYTES_MAX,
            after: None,
        }
    }
}

/// Where a page ended: the next begins behind it, whatever is written between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The last document's value in the field of the order; none if it does not have it, or there is no order.
    pub value: Option<MetaValue>,
    /// The last document's id.
    pub id: EcoString,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Each with its key.
    pub documents: Vec<(Key, Document)>,
    /// Where to go on; none if this was all.
    pub next: Option<Cursor>,
}

/// A question in the store's own language: SQL for SQLite, SQL++ for Couchbase. It can read only, and what comes from
/// outside goes into parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawQuery {
    /// The statement, written by a programmer: `select id from documents where json_extract(body, '$.a') = ?1`. Its
    /// type is `&'static str` so that nobody pastes a text into it.
    pub statement: &'static str,
    /// For `?1` and so on in SQLite, `$1` and so on in Couchbase.
    pub parameters: Vec<MetaValue>,
    /// Rows, at most.
    pub limit: u16,
}

/// What the store found, each row as a JSON object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawPage {
    /// The rows.
    pub rows: Vec<serde_json::Value>,
    /// There were more.
    pub is_cut: bool,
}

/// The value of a document's field if it holds what the index says.
pub(crate) fn value_of(
    body: &serde_json::Value,
    name: &str,
    holds: FieldType,
) -> Option<MetaValue> {
    let value = body.get(name)?;
    match holds {
        FieldType::Number => value.as_i64().map(MetaValue::Int),
        FieldType::Boolean => value.as_bool().map(MetaValue::Bool),
        FieldType::Keyword | FieldType::Text => {
            value.as_str().map(|text| MetaValue::Text(text.into()))
        }
    }
}

/// The least text that is larger than all that begin so; none where there is none.
pub(crate) fn text_end(beginning: &str) -> Option<String> {
    let mut end: Vec<char> = beginning.chars().collect();
    while let Some(last) = end.pop() {
        // What comes after a letter in the order of UTF-8, which leaves out the surrogates.
        let next = match last {
            '\u{d7ff}' => Some('\u{e000}'),
            last => char::from_u32(u32::from(last) + 1),
        };
        if let Some(next) = next {
            end.push(next);
            return Some(end.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_begins_so_is_what_lies_before_its_end(
            beginning in "[\u{d7ff}\u{e000}\u{10ffff}a-c]{0,3}",
            text in "[\u{d7fe}\u{d7ff}\u{e000}\u{10ffff}a-d]{0,5}",
        ) {
            let end = text_end(&beginning);
            let is_within = text >= beginning && end.is_none_or(|end| text < end);
            prop_assert_eq!(is_within, text.starts_with(&beginning));
        }
    }
}
