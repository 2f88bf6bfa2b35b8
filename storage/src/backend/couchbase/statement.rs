//! Queries as SQL++: fields by names that were checked, everything else as named parameters.
//!
//! A field that holds something else than its index says counts as not there, so each comparison asks for the kind
//! first. What is found is looked at once more when it is read, so a statement may find too much and never too little.

use ecow::EcoString;
use greenroom_protocol::search::FieldType;
use greenroom_protocol::wire::client_session::MetaValue;
use serde_json::Value;

use crate::backend::filter::Dialect;
use crate::query::Query;

/// One statement and what it is run with: parameter `p1` and so on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Statement {
    pub(super) text: String,
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

impl Statement {
    /// The statements of a query, to be run one after the other until there is enough.
    pub(super) fn both(query: &Query, fields: &impl Fn(&str) -> FieldType) -> Vec<Self> {
        let parts: &[Part] = match (&query.order, &query.after) {
            (None, _) => &[Part::All],
            (Some(_), Some(after)) if after.value.is_none() => &[Part::Without],
            (Some(_), _) => &[Part::With, Part::Without],
        };
        parts.iter().map(|part| Self::of(query, *part, fields)).collect()
    }

    fn of(query: &Query, part: Part, fields: &impl Fn(&str) -> FieldType) -> Self {
        let mut writer = Writer { fields, parameters: Vec::new() };
        // The first is what the index of all ids is searched by, whatever else is asked.
        let mut conditions = vec!["META(d).id >= ''".to_owned(), "d._gone IS MISSING".to_owned()];
        let order = query.order.as_ref();
        let (value, by) = match (order, part) {
            (Some(order), Part::With) => {
                let field = field(&order.field);
                conditions.push(writer.is_kind(&order.field));
                let down = if order.descending { " DESC" } else { "" };
                (format!(", {field} AS v"), format!("{field}{down}, META(d).id"))
            }
            (Some(order), Part::Without) => {
                conditions.push(negated(&writer.is_kind(&order.field)));
                (String::new(), "META(d).id".to_owned())
            }
            (Some(_), Part::All) | (None, _) => (String::new(), "META(d).id".to_owned()),
        };
        if !query.beginning.is_empty() {
            conditions.push(writer.begins("META(d).id", &query.beginning));
        }
        if !query.filter.is_empty() {
            conditions.push(writer.condition(&query.filter));
        }
        if let Some(after) = &query.after {
            match (&after.value, order, part) {
                (Some(value), Some(order), Part::With) => {
                    let id = writer.parameter(after.id.as_str().into());
                    let value = writer.parameter(json(value));
                    let field = field(&order.field);
                    let behind = if order.descending { "<" } else { ">" };
                    conditions.push(format!(
                        "({field} {behind} {value} OR ({field} = {value} AND META(d).id > {id}))"
                    ));
                }
                // What comes behind all that have the field is as a whole behind one that has it.
                (Some(_), Some(_), Part::Without) => {}
                _ => {
                    let id = writer.parameter(after.id.as_str().into());
                    conditions.push(format!("META(d).id > {id}"));
                }
            }
        }
        // One more than is wanted tells whether there is a next page.
        let limit = writer.parameter((u64::from(query.limit) + 1).into());
        let text = format!(
            "SELECT META(d).id AS id{value} FROM `{}` AS d WHERE {} ORDER BY {by} LIMIT {limit}",
            query.collection,
            conditions.join(" AND "),
        );
        Self { text, parameters: writer.parameters }
    }
}

/// A field of the document. The name has been checked: `[a-z_][a-z0-9_]*`.
pub(super) fn field(name: &str) -> String {
    format!("d.`{name}`")
}

/// Neither missing nor null is true.
fn negated(condition: &str) -> String {
    format!("NOT IFMISSINGORNULL({condition}, FALSE)")
}

struct Writer<'a, F> {
    fields: &'a F,
    parameters: Vec<Value>,
}

impl<F: Fn(&str) -> FieldType> Writer<'_, F> {
    fn parameter(&mut self, value: Value) -> String {
        self.parameters.push(value);
        format!("$p{}", self.parameters.len())
    }

    /// That the field holds what its index says.
    fn is_kind(&self, name: &EcoString) -> String {
        let field = field(name);
        match (self.fields)(name) {
            // A whole number outside i64 is none of ours.
            FieldType::Number => format!(
                "(ISNUMBER({field}) AND FLOOR({field}) = {field} AND {field} BETWEEN {} AND {})",
                i64::MIN,
                i64::MAX
            ),
            FieldType::Boolean => format!("ISBOOLEAN({field})"),
            FieldType::Keyword | FieldType::Text => format!("ISSTRING({field})"),
        }
    }
}

impl<F: Fn(&str) -> FieldType> Dialect for Writer<'_, F> {
    fn value(&mut self, value: &MetaValue) -> String {
        self.parameter(json(value))
    }

    fn field(&self, name: &EcoString) -> String {
        field(name)
    }

    fn ordered(&self, name: &EcoString, comparison: &str) -> String {
        format!("({} AND {comparison})", self.is_kind(name))
    }

    fn equal(&mut self, name: &EcoString, value: &MetaValue) -> String {
        // Values of different kinds are never equal, so the kind need not be asked for.
        let value = self.value(value);
        format!("{} = {value}", field(name))
    }

    fn one_of(&mut self, name: &EcoString, values: &[MetaValue]) -> String {
        let values = self.parameter(values.iter().map(json).collect());
        format!("{} IN {values}", field(name))
    }

    fn not(&self, condition: &str) -> String {
        negated(&format!("({condition})"))
    }
}

/// A value of the filter as JSON.
pub(super) fn json(value: &MetaValue) -> Value {
    match value {
        MetaValue::Bool(value) => (*value).into(),
        MetaValue::Int(number) => (*number).into(),
        MetaValue::Text(text) => text.as_str().into(),
    }
}

#[cfg(test)]
mod tests {
    use greenroom_protocol::search::{Filter, Order};

    use super::*;
    use crate::{Collection, Cursor};

    #[test]
    fn nothing_of_the_asker_stands_in_the_text() {
        let evil = "x' OR 1=1 --";
        let filter = Filter::And(vec![
            Filter::Eq("name".into(), MetaValue::Text(evil.into())),
            Filter::Not(Box::new(Filter::Gt("level".into(), MetaValue::Int(3)))),
        ]);
        let query = Query {
            order: Some(Order { field: "level".into(), descending: true }),
            after: Some(Cursor { value: Some(MetaValue::Int(9)), id: evil.into() }),
            ..Query::new(Collection::Documents, filter)
        };
        let kind = |name: &str| if name == "level" { FieldType::Number } else { FieldType::Text };
        let [with, without] = &Statement::both(&query, &kind)[..] else { panic!("two statements") };
        for statement in [with, without] {
            assert!(!statement.text.contains("1=1"), "{}", statement.text);
        }
        let kind = "(ISNUMBER(d.`level`) AND FLOOR(d.`level`) = d.`level` AND d.`level` BETWEEN \
                    -9223372036854775808 AND 9223372036854775807)";
        let expected = format!(
            "SELECT META(d).id AS id, d.`level` AS v FROM `documents` AS d WHERE META(d).id >= '' AND \
             d._gone IS MISSING AND {kind} AND (d.`name` = $p1 AND NOT IFMISSINGORNULL((({kind} AND \
             d.`level` > $p2)), FALSE)) AND (d.`level` < $p4 OR (d.`level` = $p4 AND META(d).id > $p3)) \
             ORDER BY d.`level` DESC, META(d).id LIMIT $p5"
        );
        assert_eq!(with.text, expected);
        assert!(
            without.text.contains("NOT IFMISSINGORNULL((ISNUMBER(d.`level`)"),
            "{}",
            without.text
        );
        assert_eq!(with.parameters.len(), 5);
    }
}
