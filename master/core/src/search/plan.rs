//! How a search is answered: which index is walked, how far, and what that costs.
//!
//! Indexes know their ranks, so that the planner counts what it would look at and does not guess. A search looks at no
//! more than [`examined_max`] records, whatever is asked of it.

use std::cmp::Ordering;
use std::ops::Bound;

use ecow::{EcoString, eco_format};
use greenroom_protocol::search::{Considered, Explain};
use greenroom_protocol::{Code, Refusal};

use super::filter::{Compiled, Node, Span};
use super::schema::{FieldId, Record, Schema, Value, ValueRef};
use crate::index::text_number;
use crate::ordered::{Entry, OrderedIndex};

/// Records that one search looks at, at most: about a millisecond of the master's one thread, …
const EXAMINED_MAX: usize = 20_000;
/// … if its filter has no more than so many conditions. With more it looks at fewer records.
const CHEAP_CONDITIONS: usize = 8;
/// Values of one condition that an explanation spells out.
const VALUES_NAMED_MAX: usize = 3;

/// Records that a search with this filter looks at, at most: what is bounded is how many conditions are checked.
pub(crate) fn examined_max(filter: &Compiled) -> usize {
    EXAMINED_MAX * CHEAP_CONDITIONS / filter.cost().max(CHEAP_CONDITIONS)
}

/// Records of one type with their indexes.
pub(crate) trait Table {
    /// A record as a filter sees it.
    type Row<'a>: Record
    where
        Self: 'a;
    fn schema(&self) -> &Schema;
    /// How many records can be found.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    fn row(&self, slot: u32) -> Self::Row<'_>;
    /// The indexes of a field, which together have every record once; none if it is not indexed.
    fn columns(&self, field: FieldId) -> Vec<Column<'_>>;
    /// Every record that can be found, in an order that is the same everywhere.
    fn slots(&self) -> Box<dyn Iterator<Item = u32> + '_>;
}

/// The index of a field, of all records or of a part of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column<'a> {
    /// Those that have the field, by its value, then by id.
    pub(crate) present: &'a OrderedIndex,
    /// Those that don't, by id.
    pub(crate) absent: Option<&'a OrderedIndex>,
    /// The key of the numbers by which texts stand in it, if they don't stand there in their order.
    pub(crate) numbered: Option<(u64, u64)>,
}

/// Where a record stands in an order. Those that don't have the field are last, in whichever direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) value: Option<Value>,
    pub(crate) id: Value,
}

/// What is asked of a table.
#[derive(Debug)]
pub(crate) struct Query<'a> {
    pub(crate) filter: &'a Compiled,
    pub(crate) order: FieldId,
    pub(crate) descending: bool,
    /// From 1.
    pub(crate) limit: usize,
    /// Only what follows this.
    pub(crate) after: Option<Place>,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Answer {
    /// In order, at most the limit.
    pub(crate) slots: Vec<u32>,
    /// The place of the last one, if more may follow.
    pub(crate) more: Option<Place>,
    pub(crate) explain: Explain,
}

/// Where a value stands in an index, as far as entries tell: they are compared in as many of its parts as there are.
type Mark = (i64, Option<u32>);

fn mark(value: ValueRef<'_>, numbered: Option<(u64, u64)>) -> Mark {
    let of_text = |text: &[u8]| {
        let entry = Entry::of_text(text, 0);
        (entry.value, Some(entry.tie))
    };
    match value {
        ValueRef::Bool(value) => (value.into(), None),
        ValueRef::Int(value) => (value, None),
        ValueRef::Text(text) => match numbered {
            Some(seed) => (text_number(seed, text), None),
            None => of_text(text),
        },
        ValueRef::Id(id) => of_text(&id.0.to_be_bytes()),
    }
}

/// How an entry stands to a mark. Of a text, equal ones may differ.
fn to_mark(entry: Entry, mark: Mark) -> Ordering {
    let (value, tie) = mark;
    entry.value.cmp(&value).then_with(|| tie.map_or(Ordering::Equal, |tie| entry.tie.cmp(&tie)))
}

/// Whether the indexes of a field have records in its order.
fn is_ordered(columns: &[Column<'_>]) -> bool {
    columns.first().is_some_and(|column| column.numbered.is_none())
}

/// Ranks `from..to` of an index.
type Ranks = (usize, usize);

/// A way to answer a search: parts of one field's indexes which have every record that the filter lets through.
#[derive(Debug)]
pub(crate) struct Candidate<'a> {
    field: FieldId,
    spans: Vec<Span>,
    parts: Vec<(&'a OrderedIndex, Vec<Ranks>)>,
    /// How many records are in the parts.
    pub(crate) entries: usize,
}

impl Candidate<'_> {
    /// The records, in no order that means anything.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.parts.iter().flat_map(|(index, ranks)| {
            let part = |&(from, to): &Ranks| index.iter_from(from).take(to - from);
            ranks.iter().flat_map(part).map(|entry| entry.slot)
        })
    }
}

/// The ways that the conditions of a filter open, the narrowest first.
pub(crate) fn candidates<'a, T: Table>(table: &'a T, filter: &Compiled) -> Vec<Candidate<'a>> {
    let mut candidates: Vec<Candidate<'a>> =
        filter.all.iter().filter_map(|node| candidate(table, node)).collect();
    candidates.sort_by_key(|candidate| candidate.entries);
    candidates
}

fn candidate<'a, T: Table>(table: &'a T, node: &Node) -> Option<Candidate<'a>> {
    let (field, spans) = spans(node)?;
    let columns = table.columns(field);
    if columns.is_empty() {
        return None;
    }
    let ranks_in = |index: &OrderedIndex, numbered| {
        let ranks = |span: &Span| {
            let edges = Edges::of(span, numbered);
            let from = index.rank(|entry| edges.is_after(table, field, entry));
            let to = index.rank(|entry| !edges.is_before(table, field, entry));
            (from, to)
        };
        joined(spans.iter().map(ranks).filter(|(from, to)| from < to).collect())
    };
    let parts: Vec<(&OrderedIndex, Vec<Ranks>)> = (columns.iter())
        .map(|column| (column.present, ranks_in(column.present, column.numbered)))
        .collect();
    let entries = parts.iter().flat_map(|(_, ranks)| ranks).map(|(from, to)| to - from).sum();
    Some(Candidate { field, spans, parts, entries })
}

/// How many of `all` records are to be looked at until `wanted` are let through, as far as indexes tell: as if no
/// condition had to do with another.
pub(crate) fn expected<'a, 'c: 'a>(
    wanted: usize,
    all: usize,
    conditions: impl IntoIterator<Item = &'a Candidate<'c>>,
) -> usize {
    (conditions.into_iter())
        .fold(wanted, |sum, candidate| sum.saturating_mul(all) / candidate.entries.max(1))
}

/// The parts of one field's order outside of which a condition lets nothing through.
fn spans(node: &Node) -> Option<(FieldId, Vec<Span>)> {
    match node {
        Node::Test(field, test) => Some((*field, test.spans())),
        Node::Any(any) => {
            let mut all: Option<(FieldId, Vec<Span>)> = None;
            for node in any {
                let (field, spans) = spans(node)?;
                match &mut all {
                    None => all = Some((field, spans)),
                    Some((same, before)) if *same == field => before.extend(spans),
                    Some(_) => return None,
                }
            }
            all
        }
        Node::All(_) | Node::Not(_) => None,
    }
}

/// Ranges that do not overlap, in order: a record that two conditions let through is looked at once.
fn joined(mut ranks: Vec<Ranks>) -> Vec<Ranks> {
    ranks.sort_unstable();
    let mut joined: Vec<Ranks> = Vec::new();
    for (from, to) in ranks {
        match joined.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            Some(_) | None => joined.push((from, to)),
        }
    }
    joined
}

/// A span with its ends as they stand in indexes, so that most entries are judged without their records.
struct Edges<'a> {
    span: &'a Span,
    /// What is less is before the span, what is more is not.
    from: Option<Mark>,
    /// What is more is after the span, what is less is not.
    to: Option<Mark>,
}

impl<'a> Edges<'a> {
    fn of(span: &'a Span, numbered: Option<(u64, u64)>) -> Self {
        let of = |bound: &Bound<Value>| match bound {
            Bound::Included(value) | Bound::Excluded(value) => Some(mark(value.as_ref(), numbered)),
            Bound::Unbounded => None,
        };
        let (mut from, mut to) = (of(&span.from), of(&span.to));
        if let Some(prefix) = &span.prefix {
            // No text has more in its first bytes that begins so.
            let highest: Vec<u8> = prefix.bytes().chain([0xff; 12]).collect();
            from = from.max(Some(mark(ValueRef::Text(prefix.as_bytes()), None)));
            let highest = mark(ValueRef::Text(&highest), None);
            to = Some(to.map_or(highest, |to| to.min(highest)));
        }
        Self { span, from, to }
    }
    fn is_after(&self, table: &impl Table, field: FieldId, entry: Entry) -> bool {
        self.from.is_some_and(|from| match to_mark(entry, from) {
            Ordering::Less => true,
            Ordering::Equal if from.1.is_none() => matches!(self.span.from, Bound::Excluded(_)),
            Ordering::Equal => {
                table.row(entry.slot).value(field).is_some_and(|value| self.span.is_after(value))
            }
            Ordering::Greater => false,
        })
    }
    fn is_before(&self, table: &impl Table, field: FieldId, entry: Entry) -> bool {
        self.to.is_some_and(|to| match to_mark(entry, to) {
            Ordering::Less => false,
            Ordering::Equal if to.1.is_none() => matches!(self.span.to, Bound::Excluded(_)),
            Ordering::Equal => {
                table.row(entry.slot).value(field).is_some_and(|value| self.span.is_before(value))
            }
            Ordering::Greater => true,
        })
    }
}

/// Answers a search.
///
/// # Errors
/// `TooBroad`, which names the field that would help.
pub(crate) fn run<T: Table>(table: &T, query: &Query<'_>) -> Result<Answer, Refusal> {
    let candidates = candidates(table, query.filter);
    Search { table, query, candidates }.run()
}

/// A search with what it can choose from.
struct Search<'a, 'q, T> {
    table: &'a T,
    query: &'q Query<'q>,
    /// The narrowest first.
    candidates: Vec<Candidate<'a>>,
}

/// The indexes of the order, or the parts of them that the filter leaves.
struct Walk<'a> {
    /// Place among the candidates, if the filter has a condition on the field.
    candidate: Option<usize>,
    present: Vec<(&'a OrderedIndex, Vec<Ranks>)>,
    absent: Vec<(&'a OrderedIndex, Vec<Ranks>)>,
    entries: usize,
}

/// What one way has found so far.
#[derive(Default)]
struct Found {
    slots: Vec<u32>,
    more: Option<Place>,
    examined: usize,
    matched: usize,
}

impl<'a, T: Table> Search<'a, '_, T> {
    fn run(&self) -> Result<Answer, Refusal> {
        let examined_max = examined_max(self.query.filter);
        let all = self.table.len();
        let narrowest = self.candidates.first();
        let collected = narrowest.map_or(all, |candidate| candidate.entries);
        let walk = self.walk();
        let mut wasted = 0;
        if let Some(walk) = &walk {
            let others = self.candidates.iter().filter(|other| other.field != self.query.order);
            let expected = walk.entries.min(expected(self.query.limit, all, others));
            // Where collecting is possible, walking may cost as much again before it is given up.
            let (budget, is_better) = match examined_max.checked_sub(collected) {
                Some(left) => (left.min(collected), expected <= left.min(collected)),
                None => (examined_max, true),
            };
            // All of it is within bounds, and none of the other ways has less.
            let is_best = walk.entries <= examined_max && walk.entries <= collected;
            if is_best || is_better {
                let budget = if is_best { examined_max } else { budget };
                match self.in_order(walk, budget) {
                    Ok(found) => return Ok(self.answer(found, Some(walk))),
                    Err(examined) => wasted = examined,
                }
            }
        }
        if wasted + collected > examined_max {
            return Err(too_broad(self.table, self.query.filter, self.query.order));
        }
        let mut found = match narrowest {
            Some(candidate) => self.collect(candidate.slots()),
            None => self.collect(self.table.slots()),
        };
        found.examined += wasted;
        Ok(self.answer(found, None))
    }

    /// The indexes of the order, from the cursor on.
    fn walk(&self) -> Option<Walk<'a>> {
        let field = self.query.order;
        let columns = self.table.columns(field);
        if !is_ordered(&columns) {
            return None;
        }
        let candidate = self.candidates.iter().position(|candidate| candidate.field == field);
        let from_cursor = |index: &'a OrderedIndex, ranks: Vec<Ranks>, is_absent: bool| {
            let (first, last) = self.left(index, is_absent);
            let left = ranks.into_iter().map(|(from, to)| (from.max(first), to.min(last)));
            (index, left.filter(|(from, to)| from < to).collect())
        };
        let (mut present, mut absent): (Vec<_>, Vec<(&OrderedIndex, Vec<Ranks>)>) =
            (Vec::new(), Vec::new());
        if let Some(candidate) = candidate {
            for (index, ranks) in &self.candidates[candidate].parts {
                present.push(from_cursor(index, ranks.clone(), false));
            }
        } else {
            for Column { present: index, absent: others, .. } in columns {
                present.push(from_cursor(index, vec![(0, index.len())], false));
                if let Some(others) = others {
                    absent.push(from_cursor(others, vec![(0, others.len())], true));
                }
            }
        }
        let entries = (present.iter().chain(&absent))
            .flat_map(|(_, ranks): &(&OrderedIndex, Vec<Ranks>)| ranks)
            .map(|(from, to)| to - from)
            .sum();
        Some(Walk { candidate, present, absent, entries })
    }

    /// The ranks of an index of the order's field that follow the cursor.
    fn left(&self, index: &OrderedIndex, is_absent: bool) -> Ranks {
        let all = (0, index.len());
        let (field, descending) = (self.query.order, self.query.descending);
        let Some(after) = &self.query.after else { return all };
        let order = |entry: Entry| {
            let row = || self.table.row(entry.slot);
            let by_value = after.value.as_ref().map_or(Ordering::Equal, |value| {
                to_mark(entry, mark(value.as_ref(), None)).then_with(|| match value {
                    Value::Bool(_) | Value::Int(_) => Ordering::Equal,
                    Value::Text(_) | Value::Id(_) => row().value(field).cmp(&Some(value.as_ref())),
                })
            });
            by_value.then_with(|| row().value(FieldId::ID).cmp(&Some(after.id.as_ref())))
        };
        match (is_absent, &after.value) {
            (true, Some(_)) => all,
            (false, None) => (0, 0),
            (true, None) | (false, Some(_)) if descending => {
                (0, index.rank(|entry| order(entry).is_lt()))
            }
            (true, None) | (false, Some(_)) => {
                (index.rank(|entry| order(entry).is_le()), index.len())
            }
        }
    }

    /// Walks until there are enough. Else gives up after `budget` records and says how many it was.
    fn in_order(&self, walk: &Walk<'a>, budget: usize) -> Result<Found, usize> {
        let mut found = Found::default();
        let present = self.merged(&walk.present);
        let mut slots = present.chain(self.merged(&walk.absent));
        while found.slots.len() < self.query.limit {
            let Some(slot) = slots.next() else { return Ok(found) };
            if found.examined == budget {
                return Err(found.examined);
            }
            found.examined += 1;
            if self.query.filter.lets_through(&self.table.row(slot)) {
                found.matched += 1;
                found.slots.push(slot);
            }
        }
        if slots.next().is_some() {
            found.more = found.slots.last().map(|&slot| self.place(slot));
        }
        Ok(found)
    }

    /// The records of several indexes of the order's field, in order.
    fn merged<'s>(
        &'s self,
        parts: &'s [(&'a OrderedIndex, Vec<Ranks>)],
    ) -> Box<dyn Iterator<Item = u32> + 's> {
        let mut parts = parts.iter().map(|(index, ranks)| self.directed(index, ranks));
        let Some(first) = parts.next() else { return Box::new(std::iter::empty()) };
        let Some(second) = parts.next() else { return Box::new(first) };
        let (mut first, mut second) = (first.peekable(), second.peekable());
        Box::new(std::iter::from_fn(move || match (first.peek(), second.peek()) {
            (Some(&a), Some(&b)) if self.compare(&self.place(b), a).is_lt() => first.next(),
            (Some(_), None) => first.next(),
            (Some(_) | None, _) => second.next(),
        }))
    }

    fn directed<'s>(
        &self,
        index: &'s OrderedIndex,
        ranks: &'s [Ranks],
    ) -> Box<dyn Iterator<Item = u32> + 's> {
        if self.query.descending {
            let part = |&(from, to): &Ranks| index.iter_back_from(to).take(to - from);
            Box::new(ranks.iter().rev().flat_map(part).map(|entry| entry.slot))
        } else {
            let part = |&(from, to): &Ranks| index.iter_from(from).take(to - from);
            Box::new(ranks.iter().flat_map(part).map(|entry| entry.slot))
        }
    }

    /// Looks at every record of these, and keeps the first ones in order.
    fn collect(&self, slots: impl Iterator<Item = u32>) -> Found {
        let mut found = Found::default();
        let mut best: Vec<(Place, u32)> = Vec::new();
        for slot in slots {
            found.examined += 1;
            let is_left =
                self.query.after.as_ref().is_none_or(|after| self.compare(after, slot).is_gt());
            if !is_left || !self.query.filter.lets_through(&self.table.row(slot)) {
                continue;
            }
            found.matched += 1;
            let is_full = best.len() == self.query.limit;
            let is_last = |(last, _): &(Place, u32)| self.compare(last, slot).is_gt();
            if is_full && best.last().is_some_and(is_last) {
                continue;
            }
            best.truncate(self.query.limit - 1);
            let at = best.partition_point(|(place, _)| self.compare(place, slot).is_gt());
            best.insert(at, (self.place(slot), slot));
        }
        if found.matched > self.query.limit {
            found.more = best.last().map(|(place, _)| place.clone());
        }
        found.slots = best.into_iter().map(|(_, slot)| slot).collect();
        found
    }

    fn place(&self, slot: u32) -> Place {
        let row = self.table.row(slot);
        let id = row.value(FieldId::ID).expect("every record has an id").to_value();
        Place { value: row.value(self.query.order).map(ValueRef::to_value), id }
    }

    /// How the record stands to a place of the order: less if it comes before.
    fn compare(&self, place: &Place, slot: u32) -> Ordering {
        let row = self.table.row(slot);
        let (value, id) = (row.value(self.query.order), row.value(FieldId::ID));
        let directed =
            |order: Ordering| if self.query.descending { order.reverse() } else { order };
        let by_value = match (value, &place.value) {
            (Some(value), Some(there)) => directed(value.cmp(&there.as_ref())),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        };
        by_value.then_with(|| directed(id.cmp(&Some(place.id.as_ref()))))
    }

    fn answer(&self, found: Found, walk: Option<&Walk<'a>>) -> Answer {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let considered = self.considered(walk);
        let explain = Explain {
            index: considered.first().map(|first| first.index.clone()).unwrap_or_default(),
            examined: count(found.examined),
            matched: count(found.matched),
            ordered_by_index: walk.is_some(),
            considered,
        };
        Answer { slots: found.slots, more: found.more, explain }
    }

    /// What there was to choose from; what was chosen is the first.
    fn considered(&self, chosen: Option<&Walk<'a>>) -> Vec<Considered> {
        let schema = self.table.schema();
        let mut all: Vec<Considered> = (self.candidates.iter())
            .map(|Candidate { field, spans, entries, .. }| Considered {
                index: words(schema.name(*field), spans),
                entries: *entries as u64,
            })
            .collect();
        match chosen {
            Some(Walk { candidate: Some(place), .. }) => all[..=*place].rotate_right(1),
            Some(Walk { entries, candidate: None, .. }) => {
                let index = eco_format!("every record, by {}", schema.name(self.query.order));
                all.insert(0, Considered { index, entries: *entries as u64 });
            }
            None => {
                let every =
                    Considered { index: "every record".into(), entries: self.table.len() as u64 };
                all.push(every);
            }
        }
        all
    }
}

/// Refuses a search, and says which field would help.
pub(crate) fn too_broad<T: Table>(table: &T, filter: &Compiled, order: FieldId) -> Refusal {
    let schema = table.schema();
    let is_open = |field: &FieldId| schema.place(*field).is_some() && !schema.is_indexed(*field);
    let fields = filter.fields();
    let help = if let Some(&field) = fields.iter().chain([&order]).find(|field| is_open(field)) {
        eco_format!("declare {} with an index", schema.name(field))
    } else if let Some(widest) = candidates(table, filter).last() {
        let (name, entries) = (schema.name(widest.field), widest.entries);
        eco_format!("narrow it, since {name} alone lets {entries} through")
    } else if !is_ordered(&table.columns(order)) {
        eco_format!(
            "no index has {} in order, so order by another field or narrow it",
            schema.name(order)
        )
    } else {
        EcoString::from("narrow it by a field that is indexed")
    };
    let (examined_max, conditions) = (examined_max(filter), filter.cost());
    let (bound, help) = if conditions > CHEAP_CONDITIONS {
        let bound = eco_format!(
            ", the most with {conditions} conditions ({EXAMINED_MAX} with up to {CHEAP_CONDITIONS})"
        );
        (bound, eco_format!("use fewer conditions, or {help}"))
    } else {
        (EcoString::new(), help)
    };
    let indexed: Vec<&str> = (schema.fields())
        .filter(|&field| !table.columns(field).is_empty())
        .map(|field| schema.name(field))
        .collect();
    Refusal::new(
        Code::TooBroad,
        eco_format!(
            "the search would look at more than {examined_max} of {} {}{bound}: {help}; indexed are: {}",
            table.len(),
            schema.records,
            indexed.join(", ")
        ),
    )
}

/// A part of an index, as a filter says it.
fn words(name: &str, spans: &[Span]) -> EcoString {
    let value = |value: &Value| match value {
        Value::Bool(value) => eco_format!("{value}"),
        Value::Int(value) => eco_format!("{value}"),
        Value::Text(value) => eco_format!("{value:?}"),
        Value::Id(value) => eco_format!("\"{value}\""),
    };
    let span = |Span { from, to, prefix }: &Span| {
        let mut all: Vec<EcoString> = Vec::new();
        match (from, to) {
            (Bound::Included(from), Bound::Included(to)) if from == to => {
                return eco_format!("{name} = {}", value(from));
            }
            (Bound::Included(from), Bound::Included(to)) => {
                all.push(eco_format!("{name} between {} and {}", value(from), value(to)));
            }
            (from, to) => {
                match from {
                    Bound::Included(from) => all.push(eco_format!("{name} >= {}", value(from))),
                    Bound::Excluded(from) => all.push(eco_format!("{name} > {}", value(from))),
                    Bound::Unbounded => {}
                }
                match to {
                    Bound::Included(to) => all.push(eco_format!("{name} <= {}", value(to))),
                    Bound::Excluded(to) => all.push(eco_format!("{name} < {}", value(to))),
                    Bound::Unbounded => {}
                }
            }
        }
        all.extend(prefix.as_ref().map(|prefix| eco_format!("{name} begins with {prefix:?}")));
        EcoString::from(all.join(" and "))
    };
    let mut all: Vec<EcoString> = spans.iter().take(VALUES_NAMED_MAX).map(span).collect();
    if spans.len() > all.len() {
        all.push(eco_format!("{} more", spans.len() - all.len()));
    }
    if spans.is_empty() { eco_format!("{name} in ()") } else { all.join(" or ").into() }
}
