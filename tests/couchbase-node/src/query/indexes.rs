//! Indexes: making and dropping them, what `system:indexes` says, and which of them a query may use.

use serde_json::{Map, Value, json};
use sqlparser::ast::{AccessExpr, BinaryOperator, Expr, UnaryOperator};

use super::evaluate::arguments;
use super::parse::{IS_MISSING, IndexChange};
use super::{Keyspace, Question, Refusal, Rows};
use crate::state::{Index, State};

/// What stands behind an indexed expression that counts documents without it too.
const WITH_MISSING: &str = " INCLUDE MISSING";

pub(super) fn run(
    state: &mut State,
    change: &IndexChange,
    question: &Question,
) -> Result<Rows, Refusal> {
    let (IndexChange::Create { on, .. }
    | IndexChange::Build { on, .. }
    | IndexChange::Drop { on, .. }) = change;
    let keyspace = Keyspace::find(state, on, question)?;
    let mut record = state.buckets[&keyspace.bucket].record.clone();
    let is_here =
        |index: &Index| index.scope == keyspace.scope && index.collection == keyspace.collection;
    let missing = |name: &str| {
        Refusal::new(12016, format!("Index Not Found - cause: GSI index {name} not found."))
    };
    match change {
        IndexChange::Create {
            name, keys, with_missing, condition, is_deferred, may_exist, ..
        } => {
            if record.indexes.iter().any(|index| is_here(index) && index.name == *name) {
                if *may_exist {
                    return Ok(Rows::default());
                }
                return Err(Refusal::new(4300, format!("The index {name} already exists.")));
            }
            let keys: Result<Vec<String>, Refusal> = (keys.iter())
                .enumerate()
                .map(|(at, key)| {
                    let words = || Refusal::unknown(format!("an index on {key}"));
                    let text = key_text(key, None).ok_or_else(words)?;
                    let suffix = if at == 0 && *with_missing { WITH_MISSING } else { "" };
                    Ok(text + suffix)
                })
                .collect();
            record.indexes.push(Index {
                name: name.clone(),
                scope: keyspace.scope.clone(),
                collection: keyspace.collection.clone(),
                keys: keys?,
                condition: condition.as_ref().map(ToString::to_string),
                is_built: !is_deferred,
            });
        }
        IndexChange::Build { names, .. } => {
            for name in names {
                let mut indexes = record.indexes.iter_mut();
                let index = indexes.find(|index| is_here(index) && index.name == *name);
                index.ok_or_else(|| missing(name))?.is_built = true;
            }
        }
        IndexChange::Drop { name, may_be_missing, .. } => {
            let before = record.indexes.len();
            record.indexes.retain(|index| !is_here(index) || index.name != *name);
            if record.indexes.len() == before && !may_be_missing {
                return Err(missing(name));
            }
        }
    }
    let saved = state.save_bucket(record);
    saved.map_err(|error| Refusal::new(5000, format!("the journal: {error}")))?;
    Ok(Rows::default())
}

/// The rows of `system:indexes`.
pub(super) fn system(state: &State) -> Vec<Value> {
    let records = state.buckets.values().map(|bucket| &bucket.record);
    let rows = records.flat_map(|record| {
        record.indexes.iter().map(|index| {
            let mut row = Map::new();
            row.insert("id".to_owned(), index.name.clone().into());
            row.insert("name".to_owned(), index.name.clone().into());
            row.insert("using".to_owned(), "gsi".into());
            row.insert(
                "state".to_owned(),
                if index.is_built { "online" } else { "deferred" }.into(),
            );
            row.insert("namespace_id".to_owned(), "default".into());
            if index.scope == "_default" && index.collection == "_default" {
                row.insert("keyspace_id".to_owned(), record.name.clone().into());
            } else {
                row.insert("bucket_id".to_owned(), record.name.clone().into());
                row.insert("scope_id".to_owned(), index.scope.clone().into());
                row.insert("keyspace_id".to_owned(), index.collection.clone().into());
            }
            row.insert("index_key".to_owned(), json!(index.keys));
            if index.keys.is_empty() {
                row.insert("is_primary".to_owned(), true.into());
            }
            if let Some(condition) = &index.condition {
                row.insert("condition".to_owned(), condition.clone().into());
            }
            Value::Object(row)
        })
    });
    rows.collect()
}

/// Refuses a query that no index can answer.
pub(super) fn check(
    state: &State,
    keyspace: &Keyspace,
    alias: &str,
    condition: Option<&Expr>,
) -> Result<(), Refusal> {
    let mut conjuncts = Vec::new();
    if let Some(condition) = condition {
        split(condition, &mut conjuncts);
    }
    let said: Vec<String> = conjuncts.iter().map(|expr| expr.to_string()).collect();
    let indexes = state.buckets[&keyspace.bucket].record.indexes.iter().filter(|index| {
        index.is_built && index.scope == keyspace.scope && index.collection == keyspace.collection
    });
    let can_answer = |index: &Index| {
        if index.condition.as_ref().is_some_and(|condition| !said.contains(condition)) {
            return false;
        }
        match index.keys.first() {
            None => true,
            Some(first) if first.ends_with(WITH_MISSING) => true,
            Some(first) => conjuncts.iter().any(|expr| is_bound(expr, alias, first)),
        }
    };
    if indexes.into_iter().any(can_answer) {
        return Ok(());
    }
    let Keyspace { bucket, scope, collection, .. } = keyspace;
    Err(Refusal::new(
        4000,
        format!(
            "No index available on keyspace `default`:`{bucket}`.`{scope}`.`{collection}` that matches your query. Use \
             CREATE PRIMARY INDEX ON `default`:`{bucket}`.`{scope}`.`{collection}` to create a primary index, or check \
             that your expected index is online."
        ),
    ))
}

fn split<'a>(expr: &'a Expr, into: &mut Vec<&'a Expr>) {
    match expr {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            split(left, into);
            split(right, into);
        }
        Expr::Nested(inner) => split(inner, into),
        other => into.push(other),
    }
}

/// Whether a condition bounds an indexed expression in such a way that an index can be searched by it.
fn is_bound(expr: &Expr, alias: &str, key: &str) -> bool {
    let is_key = |expr: &Expr| key_text(expr, Some(alias)).is_some_and(|text| text == key);
    match expr {
        Expr::BinaryOp { left, op, right } => {
            let is_comparison = matches!(
                op,
                BinaryOperator::Eq
                    | BinaryOperator::Lt
                    | BinaryOperator::LtEq
                    | BinaryOperator::Gt
                    | BinaryOperator::GtEq
            );
            is_comparison && (is_key(left) || is_key(right))
        }
        Expr::Between { expr, negated: false, .. }
        | Expr::In { expr, negated: false, .. }
        | Expr::AnyOp { left: expr, .. }
        | Expr::Like { expr, negated: false, .. }
        | Expr::IsNotNull(expr) => is_key(expr),
        Expr::UnaryOp { op: UnaryOperator::Not, expr } => {
            matches!(&**expr, Expr::Named { expr, name } if name.value == IS_MISSING && is_key(expr))
        }
        Expr::Nested(inner) => is_bound(inner, alias, key),
        _ => false,
    }
}

/// How an indexed expression is written: fields in back-ticks, without the name of the document before them.
fn key_text(expr: &Expr, alias: Option<&str>) -> Option<String> {
    let quoted = |name: &str| format!("`{name}`");
    match expr {
        Expr::Identifier(ident) => Some(quoted(&ident.value)),
        Expr::CompoundIdentifier(path) => {
            let own = path.first().filter(|first| Some(first.value.as_str()) == alias);
            let steps = path.iter().skip(usize::from(own.is_some()));
            Some(steps.map(|step| quoted(&step.value)).collect::<Vec<_>>().join("."))
        }
        Expr::CompoundFieldAccess { root, access_chain } => {
            match (&**root, access_chain.as_slice()) {
                (Expr::Function(function), [AccessExpr::Dot(Expr::Identifier(step))]) => {
                    let (name, args) = arguments(function).ok()?;
                    let of_this = match args.as_slice() {
                        [] => true,
                        [Expr::Identifier(of)] => Some(of.value.as_str()) == alias,
                        _ => false,
                    };
                    (name == "META" && of_this).then(|| format!("(meta().{})", quoted(&step.value)))
                }
                _ => None,
            }
        }
        Expr::Nested(inner) => key_text(inner, alias),
        _ => None,
    }
}
