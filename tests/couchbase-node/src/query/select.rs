//! `SELECT`: where the rows come from, which stay, in which order, and what is made of them.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sqlparser::ast::{
    self, Expr, GroupByExpr, LimitClause, ObjectNamePart, OrderByKind, OrderBySort, Query, Select,
    SelectItem, SelectItemQualifiedWildcardKind, SetExpr, TableFactor,
};

use super::evaluate::{Names, arguments, collate, evaluate, holds};
use super::{Keyspace, Question, Refusal, Rows, indexes};
use crate::state::State;

/// A document that the query looks at.
struct Source {
    document: Value,
    meta: Value,
}

/// A row that stays, with what it is sorted by.
struct Row {
    value: Value,
    sort: Vec<Option<Value>>,
}

pub(super) fn run(
    state: &State,
    query: &Query,
    question: &Question,
    now: u64,
) -> Result<Rows, Refusal> {
    let select = plain(query)?;
    let (alias, sources) = sources(state, select, question, now)?;
    let alias = alias.as_deref();
    let order = order(query)?;
    let is_aggregate = select.projection.iter().any(|item| aggregate_of(item).is_some());
    let nothing = Map::new();
    let parameters = &question.parameters;
    let mut kept = Vec::new();
    for source in sources {
        let stays = match &select.selection {
            Some(condition) => holds(condition, &names(&source, parameters, alias, &nothing))?,
            None => true,
        };
        if stays {
            kept.push(source);
        }
    }
    let signature = signature(select);
    if is_aggregate {
        let row = aggregated(select, &kept, question, alias)?;
        return Ok(Rows { rows: vec![row], signature, sorted: 0 });
    }
    let mut rows = Vec::with_capacity(kept.len());
    for source in &kept {
        let columns = project(select, &names(source, parameters, alias, &nothing))?;
        let with_columns = names(source, parameters, alias, &columns);
        let sort: Result<Vec<_>, Refusal> =
            order.iter().map(|(expr, ..)| evaluate(expr, &with_columns)).collect();
        rows.push(Row { sort: sort?, value: Value::Object(columns.clone()) });
    }
    rows.sort_by(|left, right| {
        let pairs = left.sort.iter().zip(&right.sort).zip(&order);
        pairs.fold(Ordering::Equal, |so_far, ((left, right), (_, is_down, nulls_first))| {
            so_far.then_with(|| sorted(left.as_ref(), right.as_ref(), *is_down, *nulls_first))
        })
    });
    let sorted = if order.is_empty() { 0 } else { rows.len() };
    let nowhere = Source { document: Value::Null, meta: Value::Null };
    let (offset, limit) = limits(query, &names(&nowhere, parameters, alias, &nothing))?;
    let rows = rows.into_iter().skip(offset).take(limit).map(|row| row.value).collect();
    Ok(Rows { rows, signature, sorted })
}

fn names<'a>(
    source: &'a Source,
    parameters: &'a BTreeMap<String, Value>,
    alias: Option<&'a str>,
    columns: &'a Map<String, Value>,
) -> Names<'a> {
    Names { parameters, alias, document: &source.document, meta: &source.meta, columns }
}

/// The `SELECT` of a query that has nothing else.
fn plain(query: &Query) -> Result<&Select, Refusal> {
    if query.with.is_some() {
        return Err(Refusal::unknown("WITH"));
    }
    let SetExpr::Select(select) = &*query.body else {
        return Err(Refusal::unknown("a query that is no plain SELECT"));
    };
    let has_groups = !matches!(&select.group_by, GroupByExpr::Expressions(by, _) if by.is_empty());
    for (is_there, what) in [
        (has_groups, "GROUP BY"),
        (select.distinct.is_some(), "DISTINCT"),
        (select.having.is_some(), "HAVING"),
        (select.value_table_mode.is_some(), "SELECT RAW and SELECT VALUE"),
        (select.top.is_some(), "TOP"),
        (select.into.is_some(), "INTO"),
        (select.qualify.is_some(), "QUALIFY"),
        (!select.named_window.is_empty(), "WINDOW"),
        (select.from.len() > 1, "a join"),
    ] {
        if is_there {
            return Err(Refusal::unknown(what));
        }
    }
    Ok(select)
}

fn sources(
    state: &State,
    select: &Select,
    question: &Question,
    now: u64,
) -> Result<(Option<String>, Vec<Source>), Refusal> {
    let Some(from) = select.from.first() else {
        return Ok((None, vec![Source { document: Value::Null, meta: Value::Null }]));
    };
    if !from.joins.is_empty() {
        return Err(Refusal::unknown("a join"));
    }
    let TableFactor::Table { name, alias, args: None, .. } = &from.relation else {
        return Err(Refusal::unknown(format!("a query from {}", from.relation)));
    };
    let path: Result<Vec<String>, Refusal> = (name.0.iter())
        .map(|part| match part {
            ObjectNamePart::Identifier(ident) => Ok(ident.value.clone()),
            ObjectNamePart::Function(_) => Err(Refusal::unknown(format!("a query from {name}"))),
        })
        .collect();
    let path = path?;
    let alias = match alias {
        Some(alias) => alias.name.value.clone(),
        None => path.last().expect("a name has a part").clone(),
    };
    if let [system] = path.as_slice()
        && let Some(table) = system.strip_prefix("system:")
    {
        if table != "indexes" {
            return Err(Refusal::unknown(system));
        }
        let rows = indexes::system(state).into_iter();
        let rows = rows.map(|document| Source { document, meta: Value::Null }).collect();
        return Ok((Some(alias), rows));
    }
    let keyspace = Keyspace::find(state, &path, question)?;
    indexes::check(state, &keyspace, &alias, select.selection.as_ref())?;
    let documents = state.buckets[&keyspace.bucket].documents(keyspace.id, now).into_iter();
    let sources = documents
        // What is no JSON is in no index.
        .filter_map(|(key, document)| {
            let value = serde_json::from_slice(&document.plain()).ok()?;
            let meta = json!({
                "id": String::from_utf8_lossy(key),
                "cas": document.cas,
                "expiration": document.expiry,
                "flags": document.flags,
                "type": "json",
            });
            Some(Source { document: value, meta })
        })
        .collect();
    Ok((Some(alias), sources))
}

/// An expression to sort by, whether downward, and where nulls go if it says so.
type Order<'a> = (&'a Expr, bool, Option<bool>);

fn order(query: &Query) -> Result<Vec<Order<'_>>, Refusal> {
    let Some(order_by) = &query.order_by else { return Ok(Vec::new()) };
    let OrderByKind::Expressions(exprs) = &order_by.kind else {
        return Err(Refusal::unknown("ORDER BY ALL"));
    };
    exprs
        .iter()
        .map(|by| {
            let is_down = match &by.options.sort {
                None | Some(OrderBySort::Asc) => false,
                Some(OrderBySort::Desc) => true,
                Some(OrderBySort::Using(_)) => return Err(Refusal::unknown("ORDER BY USING")),
            };
            Ok((&by.expr, is_down, by.options.nulls_first))
        })
        .collect()
}

fn sorted(
    left: Option<&Value>,
    right: Option<&Value>,
    is_down: bool,
    nulls_first: Option<bool>,
) -> Ordering {
    let is_nothing = |value: Option<&Value>| value.is_none_or(Value::is_null);
    if let Some(first) = nulls_first
        && is_nothing(left) != is_nothing(right)
    {
        return if is_nothing(left) == first { Ordering::Less } else { Ordering::Greater };
    }
    let order = collate(left, right);
    if is_down { order.reverse() } else { order }
}

fn limits(query: &Query, names: &Names<'_>) -> Result<(usize, usize), Refusal> {
    let count = |expr: Option<&Expr>, other: usize| -> Result<usize, Refusal> {
        let Some(expr) = expr else { return Ok(other) };
        let value = evaluate(expr, names)?;
        let count = value.and_then(|value| value.as_u64()).and_then(|count| count.try_into().ok());
        count.ok_or_else(|| Refusal::evaluation(format!("{expr} is no number of rows")))
    };
    match &query.limit_clause {
        None => Ok((0, usize::MAX)),
        Some(LimitClause::LimitOffset { limit, offset, .. }) => {
            let offset = offset.as_ref().map(|offset| &offset.value);
            Ok((count(offset, 0)?, count(limit.as_ref(), usize::MAX)?))
        }
        Some(LimitClause::OffsetCommaLimit { .. }) => Err(Refusal::unknown("LIMIT with a comma")),
    }
}

/// The columns of one row.
fn project(select: &Select, names: &Names<'_>) -> Result<Map<String, Value>, Refusal> {
    let mut columns = Map::new();
    for (at, item) in select.projection.iter().enumerate() {
        match item {
            SelectItem::UnnamedExpr(expr) => {
                if let Some(value) = evaluate(expr, names)? {
                    columns.insert(column_name(expr, at), value);
                }
            }
            SelectItem::ExprWithAlias { expr, alias } => {
                if let Some(value) = evaluate(expr, names)? {
                    columns.insert(alias.value.clone(), value);
                }
            }
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                let own =
                    names.alias.is_some_and(|alias| name.to_string().trim_matches('`') == alias);
                if !own {
                    return Err(Refusal::unknown(format!("{name}.*")));
                }
                if let Value::Object(fields) = names.document {
                    columns.extend(fields.clone());
                }
            }
            SelectItem::Wildcard(_) => {
                if let Some(alias) = names.alias {
                    columns.insert(alias.to_owned(), names.document.clone());
                }
            }
            other @ (SelectItem::ExprWithAliases { .. } | SelectItem::QualifiedWildcard(..)) => {
                return Err(Refusal::unknown(format!("the column {other}")));
            }
        }
    }
    Ok(columns)
}

/// The name of a column without one: the last step of a path, else its place.
fn column_name(expr: &Expr, at: usize) -> String {
    match expr {
        Expr::Identifier(ident) => ident.value.clone(),
        Expr::CompoundIdentifier(path) => {
            path.last().map(|last| last.value.clone()).unwrap_or_default()
        }
        Expr::CompoundFieldAccess { access_chain, .. } => match access_chain.last() {
            Some(ast::AccessExpr::Dot(Expr::Identifier(ident))) => ident.value.clone(),
            _ => format!("${}", at + 1),
        },
        _ => format!("${}", at + 1),
    }
}

fn signature(select: &Select) -> Map<String, Value> {
    let kind = |expr: &Expr| if matches!(expr, Expr::BinaryOp { .. }) { "boolean" } else { "json" };
    (select.projection.iter().enumerate())
        .map(|(at, item)| match item {
            SelectItem::UnnamedExpr(expr) => (column_name(expr, at), kind(expr).into()),
            SelectItem::ExprWithAlias { expr, alias } => (alias.value.clone(), kind(expr).into()),
            SelectItem::ExprWithAliases { .. }
            | SelectItem::QualifiedWildcard(..)
            | SelectItem::Wildcard(_) => ("*".to_owned(), "*".into()),
        })
        .collect()
}

/// The name and the argument of a column that counts or sums up.
fn aggregate_of(item: &SelectItem) -> Option<(String, Option<&Expr>, &Expr)> {
    let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else {
        return None;
    };
    let Expr::Function(function) = expr else { return None };
    let (name, args) = arguments(function).ok()?;
    let is_one = ["COUNT", "SUM", "MIN", "MAX"].contains(&name.as_str()) && args.len() < 2;
    is_one.then(|| (name, args.first().copied(), expr))
}

fn aggregated(
    select: &Select,
    sources: &[Source],
    question: &Question,
    alias: Option<&str>,
) -> Result<Value, Refusal> {
    let nothing = Map::new();
    let mut row = Map::new();
    for (at, item) in select.projection.iter().enumerate() {
        let Some((name, arg, expr)) = aggregate_of(item) else {
            return Err(Refusal::unknown("a column beside one that counts"));
        };
        let mut values = Vec::new();
        for source in sources {
            let value = match arg {
                Some(arg) => evaluate(arg, &names(source, &question.parameters, alias, &nothing))?,
                None => Some(Value::Bool(true)),
            };
            values.extend(value.filter(|value| !value.is_null()));
        }
        let value = match name.as_str() {
            "COUNT" => values.len().into(),
            "SUM" => match values.iter().map(Value::as_i64).sum::<Option<i64>>() {
                Some(_) if values.is_empty() => Value::Null,
                Some(sum) => sum.into(),
                None => json!(values.iter().filter_map(Value::as_f64).sum::<f64>()),
            },
            "MIN" => {
                values.into_iter().min_by(|a, b| collate(Some(a), Some(b))).unwrap_or_default()
            }
            _ => values.into_iter().max_by(|a, b| collate(Some(a), Some(b))).unwrap_or_default(),
        };
        let name = match item {
            SelectItem::ExprWithAlias { alias, .. } => alias.value.clone(),
            _ => column_name(expr, at),
        };
        row.insert(name, value);
    }
    Ok(Value::Object(row))
}
