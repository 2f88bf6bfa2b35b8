//! The query route: SQL++ as our product and the SDK's index manager write it.
//!
//! What is understood is answered as a real cluster would; the rest is refused by its name, so that a test never
//! passes on something that was passed over.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the parser knows far more than this node, which refuses by its name what it does not know"
)]

mod evaluate;
mod indexes;
mod parse;
mod select;

use std::collections::BTreeMap;
use std::time::Instant;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use crate::Shared;
use crate::state::{Right, State, User};

/// Why a statement is not run: the number and the words that real clusters use for it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    code: u32,
    words: String,
}

impl Refusal {
    fn new(code: u32, words: impl Into<String>) -> Self {
        Self { code, words: words.into() }
    }

    fn syntax(words: impl std::fmt::Display) -> Self {
        Self::new(3000, format!("syntax error - {words}"))
    }

    /// Something that real clusters understand and this node does not.
    fn unknown(what: impl std::fmt::Display) -> Self {
        Self::new(5000, format!("this node does not know {what}"))
    }

    fn evaluation(words: impl std::fmt::Display) -> Self {
        Self::new(5010, format!("Error evaluating expression: {words}"))
    }

    fn no_keyspace(path: &str) -> Self {
        Self::new(12003, format!("Keyspace not found in CB datastore: default:{path}"))
    }
}

/// Rows, and what they are made of.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    rows: Vec<Value>,
    signature: Map<String, Value>,
    sorted: usize,
}

/// A statement with what came with it.
#[derive(Debug)]
struct Question {
    statement: String,
    /// By name without the dollar sign; those by place are named "1", "2" and so on.
    parameters: BTreeMap<String, Value>,
    /// The bucket and the scope of a keyspace that is named by its collection alone.
    context: Option<(String, String)>,
    context_id: Value,
    is_read_only: bool,
}

impl Question {
    fn read(body: &[u8]) -> Result<Self, Refusal> {
        let body: Map<String, Value> =
            serde_json::from_slice(body).map_err(|_| Refusal::new(1065, "the body is no JSON"))?;
        let statement = body.get("statement").and_then(Value::as_str);
        let statement =
            statement.ok_or_else(|| Refusal::new(1050, "No statement or prepared value"))?;
        let mut parameters: BTreeMap<String, Value> = (body.iter())
            .filter_map(|(name, value)| Some((name.strip_prefix('$')?.to_owned(), value.clone())))
            .collect();
        let by_place = body.get("args").and_then(Value::as_array).into_iter().flatten();
        parameters
            .extend(by_place.enumerate().map(|(at, value)| ((at + 1).to_string(), value.clone())));
        let context = match body.get("query_context").and_then(Value::as_str) {
            None => None,
            Some(text) => {
                let path = parse::path(text.strip_prefix("default:").unwrap_or(text))?;
                match path.as_slice() {
                    [bucket, scope] => Some((bucket.clone(), scope.clone())),
                    _ => return Err(Refusal::unknown(format!("the query context {text}"))),
                }
            }
        };
        Ok(Self {
            statement: statement.trim().trim_end_matches(';').to_owned(),
            parameters,
            context,
            context_id: body.get("client_context_id").cloned().unwrap_or_default(),
            is_read_only: body.get("readonly").and_then(Value::as_bool).unwrap_or(false),
        })
    }
}

/// A collection of a bucket.
#[derive(Debug, Clone, PartialEq)]
struct Keyspace {
    bucket: String,
    scope: String,
    collection: String,
    id: u32,
}

impl Keyspace {
    fn find(state: &State, path: &[String], question: &Question) -> Result<Self, Refusal> {
        let default = || "_default".to_owned();
        let (bucket, scope, collection) = match (path, &question.context) {
            ([bucket, scope, collection], _) => (bucket.clone(), scope.clone(), collection.clone()),
            ([collection], Some((bucket, scope))) => {
                (bucket.clone(), scope.clone(), collection.clone())
            }
            ([bucket], None) => (bucket.clone(), default(), default()),
            _ => return Err(Refusal::no_keyspace(&path.join("."))),
        };
        let whole = format!("{bucket}.{scope}.{collection}");
        let record =
            &state.buckets.get(&bucket).ok_or_else(|| Refusal::no_keyspace(&whole))?.record;
        if !record.scopes.contains_key(&scope) {
            let words = format!("Scope not found in CB datastore default:{bucket}.{scope}");
            return Err(Refusal::new(12021, words));
        }
        let found = record.collection(&scope, &collection);
        let id = found.ok_or_else(|| Refusal::no_keyspace(&whole))?.id;
        Ok(Self { bucket, scope, collection, id })
    }
}

/// What a caller gets whose password is another.
pub(crate) fn not_authenticated(_: &Value) -> (StatusCode, Value) {
    let refusal = Refusal::new(10000, "Authentication failure: wrong user or password");
    (StatusCode::UNAUTHORIZED, failed(&Value::Null, &refusal))
}

/// Runs the statement of a request's body.
pub(crate) fn serve(shared: &Shared, user: &User, body: &[u8]) -> (StatusCode, Value) {
    let begun = Instant::now();
    let question = match Question::read(body) {
        Ok(question) => question,
        Err(refusal) => return (StatusCode::BAD_REQUEST, failed(&Value::Null, &refusal)),
    };
    match run(shared, user, &question) {
        Ok(rows) => {
            let micros = begun.elapsed().as_micros().max(1);
            let size: usize = rows.rows.iter().map(|row| row.to_string().len()).sum();
            let mut metrics = json!({
                "elapsedTime": format!("{micros}us"),
                "executionTime": format!("{micros}us"),
                "resultCount": rows.rows.len(),
                "resultSize": size,
            });
            if rows.sorted > 0 {
                metrics["sortCount"] = rows.sorted.into();
            }
            let answer = json!({
                "requestID": format!("{:032x}", shared.next_seed()),
                "clientContextID": question.context_id,
                "signature": rows.signature,
                "results": rows.rows,
                "status": "success",
                "metrics": metrics,
            });
            (StatusCode::OK, answer)
        }
        Err(refusal) => {
            tracing::debug!(?refusal, statement = question.statement, "a statement is refused");
            let status = if refusal.code == 13014 {
                StatusCode::UNAUTHORIZED
            } else {
                StatusCode::BAD_REQUEST
            };
            (status, failed(&question.context_id, &refusal))
        }
    }
}

fn failed(context_id: &Value, refusal: &Refusal) -> Value {
    json!({
        "requestID": "00000000000000000000000000000000",
        "clientContextID": context_id,
        "errors": [{"code": refusal.code, "msg": refusal.words}],
        "status": "fatal",
        "metrics": {"elapsedTime": "1us", "executionTime": "1us", "resultCount": 0, "resultSize": 0, "errorCount": 1},
    })
}

fn run(shared: &Shared, user: &User, question: &Question) -> Result<Rows, Refusal> {
    let statement = parse::statement(&question.statement)?;
    let wanted = match statement {
        parse::Statement::Select(_) => Right::Query,
        parse::Statement::Index(_) => Right::Manage,
    };
    if !user.rights.contains(&wanted) {
        let words =
            "User does not have credentials to run this statement. Add the role that it needs.";
        return Err(Refusal::new(13014, words));
    }
    match statement {
        parse::Statement::Select(query) => {
            let now = shared.clock.seconds();
            select::run(&shared.lock(), &query, question, now)
        }
        parse::Statement::Index(_) if question.is_read_only => Err(Refusal::new(
            1000,
            "a statement that changes something in a request that only reads",
        )),
        parse::Statement::Index(change) => indexes::run(&mut shared.lock(), &change, question),
    }
}
