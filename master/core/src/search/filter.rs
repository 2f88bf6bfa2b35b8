//! Filters as they are worked with: fields by number, types checked, nothing to allocate while records are asked.

use std::cmp::Ordering;
use std::ops::Bound;

use ecow::{EcoString, eco_format};
use greenroom_protocol::search::{FieldType, Filter};
use greenroom_protocol::wire::client_session::MetaValue;
use greenroom_protocol::{Code, Refusal};

use super::schema::{FieldId, Record, Schema, Value, ValueRef};

/// A filter over the fields of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compiled {
    /// A record is let through by all of these. None is an [`Node::All`].
    pub(crate) all: Vec<Node>,
    cost: usize,
}

/// A part of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
    /// False for a record that does not have the field.
    Test(FieldId, Test),
}

/// What is asked of one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    /// It is one of these, which are sorted.
    OneOf(Vec<Value>),
    Within(Span),
}

/// A part of a field's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: Bound<Value>,
    pub(crate) to: Bound<Value>,
    /// Only texts that begin so.
    pub(crate) prefix: Option<EcoString>,
}

impl Span {
    pub(crate) fn only(value: &Value) -> Self {
        Self {
            from: Bound::Included(value.clone()),
            to: Bound::Included(value.clone()),
            prefix: None,
        }
    }
    /// Whether the value is before the span.
    pub(crate) fn is_after(&self, value: ValueRef<'_>) -> bool {
        let is_before = match &self.from {
            Bound::Unbounded => false,
            Bound::Included(from) => value < from.as_ref(),
            Bound::Excluded(from) => value <= from.as_ref(),
        };
        is_before || self.beginning(value).is_lt()
    }
    /// Whether the value is after the span.
    pub(crate) fn is_before(&self, value: ValueRef<'_>) -> bool {
        let is_after = match &self.to {
            Bound::Unbounded => false,
            Bound::Included(to) => value > to.as_ref(),
            Bound::Excluded(to) => value >= to.as_ref(),
        };
        is_after || self.beginning(value).is_gt()
    }
    /// Where a text is, seen from those that begin as they should.
    fn beginning(&self, value: ValueRef<'_>) -> Ordering {
        match (&self.prefix, value) {
            (Some(prefix), ValueRef::Text(text)) => {
                text[..text.len().min(prefix.len())].cmp(prefix.as_bytes())
            }
            (Some(_), ValueRef::Bool(_) | ValueRef::Int(_) | ValueRef::Id(_)) | (None, _) => {
                Ordering::Equal
            }
        }
    }
    /// What is in both.
    fn and(mut self, other: Self) -> Option<Self> {
        if self.prefix.is_some() && other.prefix.is_some() {
            return None;
        }
        self.prefix = self.prefix.or(other.prefix);
        self.from = tighter(self.from, other.from, Ordering::Greater);
        self.to = tighter(self.to, other.to, Ordering::Less);
        Some(self)
    }
}

/// The bound of two that lets less through: the one that is `wanted` beside the other.
fn tighter(a: Bound<Value>, b: Bound<Value>, wanted: Ordering) -> Bound<Value> {
    let value = |bound: &Bound<Value>| match bound {
        Bound::Included(value) | Bound::Excluded(value) => Some(value.clone()),
        Bound::Unbounded => None,
    };
    let (Some(left), Some(right)) = (value(&a), value(&b)) else {
        return if a == Bound::Unbounded { b } else { a };
    };
    match left.cmp(&right) {
        Ordering::Equal if matches!(a, Bound::Included(_)) => b,
        Ordering::Equal => a,
        order if order == wanted => a,
        Ordering::Less | Ordering::Greater => b,
    }
}

impl Test {
    fn lets_through(&self, value: ValueRef<'_>) -> bool {
        match self {
            Self::OneOf(values) => {
                values.binary_search_by(|there| there.as_ref().cmp(&value)).is_ok()
            }
            Self::Within(span) => !span.is_after(value) && !span.is_before(value),
        }
    }
    /// The parts of the field's order that it lets through.
    pub(crate) fn spans(&self) -> Vec<Span> {
        match self {
            Self::OneOf(values) => values.iter().map(Span::only).collect(),
            Self::Within(span) => vec![span.clone()],
        }
    }
}

impl Node {
    /// Conditions that are checked of one record, at most. Several values of one condition are one, whatever their
    /// number: they are sorted, and looked up.
    fn cost(&self) -> usize {
        match self {
            Self::All(nodes) | Self::Any(nodes) => {
                nodes.iter().map(Self::cost).sum::<usize>().max(1)
            }
            Self::Not(node) => node.cost(),
            Self::Test(..) => 1,
        }
    }
    fn lets_through(&self, record: &impl Record) -> bool {
        match self {
            Self::All(all) => all.iter().all(|node| node.lets_through(record)),
            Self::Any(any) => any.iter().any(|node| node.lets_through(record)),
            Self::Not(node) => !node.lets_through(record),
            Self::Test(field, test) => {
                record.value(*field).is_some_and(|value| test.lets_through(value))
            }
        }
    }
}

impl Compiled {
    /// Works out what a filter means for records of this schema.
    ///
    /// # Errors
    /// `FilterTooDeep`, `FilterTooLarge`; `FieldUnknown` and `FieldMismatch`, which name the field.
    pub(crate) fn compile(schema: &Schema, filter: &Filter) -> Result<Self, Refusal> {
        filter.check()?;
        let all = match (Compiler { schema }).node(filter)? {
            Node::All(all) => all,
            node @ (Node::Any(_) | Node::Not(_) | Node::Test(..)) => vec![node],
        };
        let all = merged(all);
        let cost = all.iter().map(Node::cost).sum::<usize>().max(1);
        Ok(Self { all, cost })
    }

    /// Whether the record is one of those that are looked for.
    pub(crate) fn lets_through(&self, record: &impl Record) -> bool {
        self.all.iter().all(|node| node.lets_through(record))
    }

    /// Conditions that are checked of one record, at most; from 1. It is the same whatever type the fields have.
    pub(crate) fn cost(&self) -> usize {
        self.cost
    }

    /// A field and the value that every record has in it which is let through, if there is one. True and false are
    /// none: half of the records or all of them have such a value.
    pub(crate) fn equality(&self) -> Option<(FieldId, &Value)> {
        self.all.iter().find_map(|node| match node {
            Node::Test(field, Test::OneOf(values)) => match values.as_slice() {
                [Value::Bool(_)] => None,
                [value] => Some((*field, value)),
                [] | [_, _, ..] => None,
            },
            Node::Test(_, Test::Within(_)) | Node::All(_) | Node::Any(_) | Node::Not(_) => None,
        })
    }

    /// Every field that is asked for, in the order in which they are.
    pub(crate) fn fields(&self) -> Vec<FieldId> {
        fn collect(node: &Node, fields: &mut Vec<FieldId>) {
            match node {
                Node::All(nodes) | Node::Any(nodes) => {
                    nodes.iter().for_each(|node| collect(node, fields));
                }
                Node::Not(node) => collect(node, fields),
                Node::Test(field, _) if fields.contains(field) => {}
                Node::Test(field, _) => fields.push(*field),
            }
        }
        let mut fields = Vec::new();
        self.all.iter().for_each(|node| collect(node, &mut fields));
        fields
    }
}

/// Makes one of the spans of one field: two bounds are one range of an index.
fn merged(all: Vec<Node>) -> Vec<Node> {
    let mut merged: Vec<Node> = Vec::new();
    for node in all {
        let Node::Test(field, Test::Within(span)) = &node else {
            merged.push(node);
            continue;
        };
        let both = merged.iter_mut().find_map(|there| match there {
            Node::Test(same, Test::Within(before)) if same == field => {
                let both = before.clone().and(span.clone())?;
                *before = both;
                Some(())
            }
            Node::Test(..) | Node::All(_) | Node::Any(_) | Node::Not(_) => None,
        });
        if both.is_none() {
            merged.push(node);
        }
    }
    merged
}

/// Knows the fields while a filter is compiled.
struct Compiler<'a> {
    schema: &'a Schema,
}

impl Compiler<'_> {
    fn node(&self, filter: &Filter) -> Result<Node, Refusal> {
        let test = |field: FieldId, from, to| {
            Node::Test(field, Test::Within(Span { from, to, prefix: None }))
        };
        Ok(match filter {
            Filter::And(filters) => {
                let mut all = Vec::new();
                for filter in filters {
                    match self.node(filter)? {
                        Node::All(more) => all.extend(more),
                        node @ (Node::Any(_) | Node::Not(_) | Node::Test(..)) => all.push(node),
                    }
                }
                Node::All(all)
            }
            Filter::Or(filters) => {
                let mut any = Vec::new();
                for filter in filters {
                    match self.node(filter)? {
                        Node::Any(more) => any.extend(more),
                        Node::All(mut all) if all.len() == 1 => any.extend(all.pop()),
                        node @ (Node::All(_) | Node::Not(_) | Node::Test(..)) => any.push(node),
                    }
                }
                match any.len() {
                    1 => any.remove(0),
                    _ => Node::Any(any),
                }
            }
            Filter::Not(filter) => match self.node(filter)? {
                Node::Not(node) => *node,
                node @ (Node::All(_) | Node::Any(_) | Node::Test(..)) => Node::Not(Box::new(node)),
            },
            Filter::Eq(field, value) => self.one_of(field, std::slice::from_ref(value))?,
            Filter::Ne(field, value) => {
                Node::Not(Box::new(self.one_of(field, std::slice::from_ref(value))?))
            }
            Filter::In(field, values) => self.one_of(field, values)?,
            Filter::Lt(field, to) => {
                let (field, to) = self.ordered(field, to)?;
                test(field, Bound::Unbounded, Bound::Excluded(to))
            }
            Filter::Le(field, to) => {
                let (field, to) = self.ordered(field, to)?;
                test(field, Bound::Unbounded, Bound::Included(to))
            }
            Filter::Gt(field, from) => {
                let (field, from) = self.ordered(field, from)?;
                test(field, Bound::Excluded(from), Bound::Unbounded)
            }
            Filter::Ge(field, from) => {
                let (field, from) = self.ordered(field, from)?;
                test(field, Bound::Included(from), Bound::Unbounded)
            }
            Filter::Between(field, from, to) => {
                let (_, from) = self.ordered(field, from)?;
                let (field, to) = self.ordered(field, to)?;
                test(field, Bound::Included(from), Bound::Included(to))
            }
            Filter::Prefix(field, beginning) => {
                let id = self.field(field)?;
                let holds = self.schema.holds(id);
                if holds != FieldType::Text {
                    return Err(Refusal::new(
                        Code::FieldMismatch,
                        eco_format!(
                            "the field {field} of {} holds {}; only a text is looked for by its beginning",
                            self.schema.records,
                            holds.text()
                        ),
                    ));
                }
                let prefix = Some(beginning.clone());
                let span = Span { from: Bound::Unbounded, to: Bound::Unbounded, prefix };
                Node::Test(id, Test::Within(span))
            }
        })
    }

    fn field(&self, name: &EcoString) -> Result<FieldId, Refusal> {
        field(self.schema, name)
    }

    fn one_of(&self, name: &EcoString, values: &[MetaValue]) -> Result<Node, Refusal> {
        let field = self.field(name)?;
        let mut of: Vec<Value> =
            values.iter().map(|value| self.value(field, value)).collect::<Result<_, _>>()?;
        of.sort_unstable();
        of.dedup();
        Ok(Node::Test(field, Test::OneOf(of)))
    }

    /// A field that can be compared by more and less, and what it is compared with.
    fn ordered(&self, name: &EcoString, value: &MetaValue) -> Result<(FieldId, Value), Refusal> {
        let field = self.field(name)?;
        let holds = self.schema.holds(field);
        match holds {
            FieldType::Number | FieldType::Text => Ok((field, self.value(field, value)?)),
            FieldType::Keyword | FieldType::Boolean => Err(Refusal::new(
                Code::FieldMismatch,
                eco_format!(
                    "the field {name} of {} holds {}, which is compared by =, != and in, not by more and less",
                    self.schema.records,
                    holds.text()
                ),
            )),
        }
    }

    /// A value that the field can hold.
    fn value(&self, field: FieldId, value: &MetaValue) -> Result<Value, Refusal> {
        let holds = self.schema.holds(field);
        if !self.schema.can_hold(field, value) {
            let with = match value {
                MetaValue::Bool(value) => eco_format!("the boolean {value}"),
                MetaValue::Int(value) => eco_format!("the number {value}"),
                MetaValue::Text(value) => eco_format!("the text {value:?}"),
            };
            return Err(Refusal::new(
                Code::FieldMismatch,
                eco_format!(
                    "the field {} of {} holds {}; it was compared with {with}",
                    self.schema.name(field),
                    self.schema.records,
                    holds.text()
                ),
            ));
        }
        match value {
            MetaValue::Text(text) if self.schema.holds_instances(field) => {
                text.parse().map(Value::Id).map_err(|not_an_id| {
                    Refusal::new(
                        Code::FieldMismatch,
                        eco_format!(
                            "the field {} of {} holds ids of instances; {text:?} is {not_an_id}",
                            self.schema.name(field),
                            self.schema.records
                        ),
                    )
                })
            }
            MetaValue::Text(_) | MetaValue::Bool(_) | MetaValue::Int(_) => Ok(Value::from(value)),
        }
    }
}

/// The number of a field.
///
/// # Errors
/// `FieldUnknown`, which lists the fields that there are.
pub(crate) fn field(schema: &Schema, name: &EcoString) -> Result<FieldId, Refusal> {
    schema.find(name).ok_or_else(|| {
        Refusal::new(
            Code::FieldUnknown,
            eco_format!(
                "{} have no field {name}; the fields are: {}",
                schema.records,
                schema.names()
            ),
        )
    })
}
