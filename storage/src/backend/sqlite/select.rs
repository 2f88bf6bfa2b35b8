//! Queries as SQL: fields by names that were checked, everything else as parameters.

use ecow::EcoString;
use greenroom_protocol::search::FieldType;
use greenroom_protocol::wire::client_session::MetaValue;
use rusqlite::types::{Value, ValueRef};

use super::file::typed;
use crate::backend::filter::Dialect;
use crate::query::Query;

/// One statement and what it is run with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Select {
    pub(super) sql: String,
    pub(super) parameters: Vec<Value>,
}

/// Which documents a statement is about.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    /// All, by id.
    All,
    /// Those that have the field of the order.
    With,
    /// Those that do not, which come last.
    Without,
}

impl Select {
    /// The statements of a query, to be run one after the other until there is enough. In two, since an index gives the
    /// order within each, and not across both.
    pub(super) fn both(query: &Query, fields: &impl Fn(&str) -> FieldType, now: i64) -> Vec<Self> {
        let parts: &[Part] = match (&query.order, &query.after) {
            (None, _) => &[Part::All],
            (Some(_), Some(after)) if after.value.is_none() => &[Part::Without],
            (Some(_), _) => &[Part::With, Part::Without],
        };
        parts.iter().map(|part| Self::of(query, *part, fields, now)).collect()
    }

    fn of(query: &Query, part: Part, fields: &impl Fn(&str) -> FieldType, now: i64) -> Self {
        let mut writer = Writer { fields, parameters: Vec::new() };
        let mut conditions = vec!["body IS NOT NULL".to_owned()];
        let order =
            query.order.as_ref().map(|order| (writer.field(&order.field), order.descending));
        let (field, by) = match (&order, part) {
            (Some((field, descending)), Part::With) => {
                conditions.push(format!("{field} IS NOT NULL"));
                (field.as_str(), format!("{field}{}, id", if *descending { " DESC" } else { "" }))
            }
            (Some((field, _)), Part::Without) => {
                conditions.push(format!("{field} IS NULL"));
                ("NULL", "id".to_owned())
            }
            (Some(_), Part::All) | (None, _) => ("NULL", "id".to_owned()),
        };
        if !query.beginning.is_empty() {
            conditions.push(writer.begins("id", &query.beginning));
        }
        if !query.filter.is_empty() {
            conditions.push(writer.condition(&query.filter));
        }
        let expires = writer.parameter(Value::Integer(now));
        conditions.push(format!("(expires IS NULL OR expires > {expires})"));
        if let Some(after) = &query.after {
            let id = writer.parameter(Value::Text(after.id.to_string()));
            match (&after.value, &order, part) {
                (Some(value), Some((field, descending)), Part::With) => {
                    let value = writer.parameter(parameter(value));
                    let (to, behind) = if *descending { ("<=", "<") } else { (">=", ">") };
                    // The first bounds the walk of the index, the second says where exactly it begins.
                    conditions.push(format!("{field} {to} {value}"));
                    conditions.push(format!("({field} {behind} {value} OR id > {id})"));
                }
                // What comes behind all that have the field is as a whole behind one that has it.
                (Some(_), Some(_), Part::Without) => {
                    writer.parameters.pop();
                }
                _ => conditions.push(format!("id > {id}")),
            }
        }
        // One more than is wanted tells whether there is a next page.
        let limit = writer.parameter(Value::Integer(i64::from(query.limit) + 1));
        let sql = format!(
            "SELECT id, version, owner, expires, body, {field} FROM {} WHERE {} ORDER BY {by} LIMIT {limit}",
            query.collection,
            conditions.join(" AND "),
        );
        Self { sql, parameters: writer.parameters }
    }
}

struct Writer<'a, F> {
    fields: &'a F,
    parameters: Vec<Value>,
}

impl<F: Fn(&str) -> FieldType> Writer<'_, F> {
    fn parameter(&mut self, value: Value) -> String {
        self.parameters.push(value);
        format!("?{}", self.parameters.len())
    }
}

impl<F: Fn(&str) -> FieldType> Dialect for Writer<'_, F> {
    fn value(&mut self, value: &MetaValue) -> String {
        self.parameter(parameter(value))
    }

    /// NULL where it holds something else than its index says, so that no comparison with it is true.
    fn field(&self, name: &EcoString) -> String {
        format!("({})", typed(name, (self.fields)(name)))
    }

    fn ordered(&self, _: &EcoString, comparison: &str) -> String {
        format!("({comparison})")
    }

    fn equal(&mut self, name: &EcoString, value: &MetaValue) -> String {
        self.compare(name, "=", value)
    }

    fn one_of(&mut self, name: &EcoString, values: &[MetaValue]) -> String {
        if values.is_empty() {
            // Named all the same, so that the statement says what was asked.
            return format!("({} IS NULL AND FALSE)", self.field(name));
        }
        let values: Vec<String> = values.iter().map(|value| self.value(value)).collect();
        format!("{} IN ({})", self.field(name), values.join(", "))
    }

    fn not(&self, condition: &str) -> String {
        format!("(({condition}) IS NOT TRUE)")
    }
}

/// A value of the filter as SQLite has it.
pub(super) fn parameter(value: &MetaValue) -> Value {
    match value {
        MetaValue::Bool(value) => Value::Integer(i64::from(*value)),
        MetaValue::Int(number) => Value::Integer(*number),
        MetaValue::Text(text) => Value::Text(text.to_string()),
    }
}

/// The value of the order's field, as a cursor has it.
pub(super) fn bound(value: ValueRef<'_>, holds: Option<FieldType>) -> Option<MetaValue> {
    match (value, holds?) {
        (ValueRef::Integer(number), FieldType::Boolean) => Some(MetaValue::Bool(number != 0)),
        (ValueRef::Integer(number), _) => Some(MetaValue::Int(number)),
        (ValueRef::Text(text), _) => Some(MetaValue::Text(String::from_utf8_lossy(text).into())),
        (ValueRef::Null | ValueRef::Real(_) | ValueRef::Blob(_), _) => None,
    }
}
