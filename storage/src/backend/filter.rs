//! A filter as the condition of a statement: what SQL and SQL++ have in common. What they say differently, each says
//! itself, as a [`Dialect`].

use ecow::EcoString;
use greenroom_protocol::search::Filter;
use greenroom_protocol::wire::client_session::MetaValue;

use crate::query::text_end;

/// How a store's language says the parts of a condition.
pub(super) trait Dialect {
    /// Adds a parameter, and gives what stands for it in the statement.
    fn value(&mut self, value: &MetaValue) -> String;

    /// What stands for a field in the statement.
    fn field(&self, name: &EcoString) -> String;

    /// A comparison of a field by order, which holds only where the field holds what its index says.
    fn ordered(&self, name: &EcoString, comparison: &str) -> String;

    /// That a field has this value.
    fn equal(&mut self, name: &EcoString, value: &MetaValue) -> String;

    /// That a field has one of these values.
    fn one_of(&mut self, name: &EcoString, values: &[MetaValue]) -> String;

    /// That a condition is false, or nothing can be said, as of a field that is not there.
    fn not(&self, condition: &str) -> String;

    /// The condition of a filter: true, false, or neither, which stands for false.
    fn condition(&mut self, filter: &Filter) -> String {
        match filter {
            Filter::And(all) => self.chain(all, " AND ", "TRUE"),
            Filter::Or(any) => self.chain(any, " OR ", "FALSE"),
            Filter::Not(not) => {
                let condition = self.condition(not);
                self.not(&condition)
            }
            Filter::Eq(name, value) => self.equal(name, value),
            Filter::Ne(name, value) => {
                let equal = self.equal(name, value);
                self.not(&equal)
            }
            Filter::Lt(name, value) => self.compare(name, "<", value),
            Filter::Le(name, value) => self.compare(name, "<=", value),
            Filter::Gt(name, value) => self.compare(name, ">", value),
            Filter::Ge(name, value) => self.compare(name, ">=", value),
            Filter::Between(name, from, to) => {
                let (from, to) = (self.value(from), self.value(to));
                self.ordered(name, &format!("{} BETWEEN {from} AND {to}", self.field(name)))
            }
            Filter::In(name, values) => self.one_of(name, values),
            Filter::Prefix(name, beginning) => {
                let field = self.field(name);
                let comparison = self.begins(&field, beginning);
                self.ordered(name, &comparison)
            }
        }
    }

    /// That a text begins so: what does stands together in the order of bytes, so that an index leads there.
    fn begins(&mut self, text: &str, beginning: &EcoString) -> String {
        let from = self.value(&MetaValue::Text(beginning.clone()));
        match text_end(beginning) {
            Some(end) => {
                let end = self.value(&MetaValue::Text(end.into()));
                format!("{text} >= {from} AND {text} < {end}")
            }
            None => format!("{text} >= {from}"),
        }
    }

    /// A field beside one value.
    fn compare(&mut self, name: &EcoString, sign: &str, value: &MetaValue) -> String {
        let value = self.value(value);
        self.ordered(name, &format!("{} {sign} {value}", self.field(name)))
    }

    /// Several conditions, and what holds where there is none.
    fn chain(&mut self, all: &[Filter], between: &str, none: &str) -> String {
        if all.is_empty() {
            return none.to_owned();
        }
        let all: Vec<String> = all.iter().map(|filter| self.condition(filter)).collect();
        format!("({})", all.join(between))
    }
}
