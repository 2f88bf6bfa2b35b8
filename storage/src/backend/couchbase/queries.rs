//! Finding documents: by the typed filter, or in the store's own language.

use couchbase::error::{Error, ErrorKind};
use couchbase::options::query_options::{QueryOptions, ScanConsistency};
use ecow::{EcoString, eco_format};
use futures_util::StreamExt as _;
use futures_util::stream;
use greenroom_protocol::search::FieldType;
use greenroom_protocol::wire::client_session::MetaValue;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::Inner;
use super::crew::Alarm;
use super::documents::{Found, Pause};
use super::statement::{Statement, json};
use crate::backend::Answer;
use crate::query::{Page, Query, RawPage, RawQuery, value_of};
use crate::{Cursor, Document, Key, StorageError};

/// Documents of a page that are read at once.
const READS: usize = 32;

/// Why a query has no rows.
enum Unanswered {
    /// Later it may have.
    Passing(EcoString),
    /// It never will.
    Final(StorageError),
}

impl Unanswered {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the kind of an error may be any, also of a later SDK: what is not named is not certain"
    )]
    fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::ParsingFailure
            | ErrorKind::InvalidArgument(_)
            | ErrorKind::InternalServerFailure
            | ErrorKind::DMLFailure => Self::Final(StorageError::BadQuery(eco_format!("{error}"))),
            ErrorKind::PlanningFailure
            | ErrorKind::IndexNotFound
            | ErrorKind::ScopeNotFound
            | ErrorKind::CollectionNotFound
            | ErrorKind::BucketNotFound => Self::Final(StorageError::Backend(eco_format!(
                "{}: {error}; a server that may make scopes, collections and indexes makes what is missing when it \
                 starts",
                error.kind()
            ))),
            ErrorKind::AuthenticationFailure => Self::Final(StorageError::Backend(eco_format!(
                "the user of storage.couchbase_user has no right to query ({error})"
            ))),
            _ => Self::Passing(eco_format!("{error}")),
        }
    }
}

impl Inner {
    /// Runs a statement until it is answered, refused, or the deadline is over; gives `max` rows at most.
    async fn rows(
        &self,
        statement: &str,
        options: QueryOptions,
        max: usize,
        deadline: Instant,
    ) -> Result<Vec<Value>, StorageError> {
        let mut pause = Pause::default();
        loop {
            let connection = self.keeper.current();
            // What was answered as written before is found: the index catches up first.
            let options = options
                .clone()
                .read_only(true)
                .scan_consistency(ScanConsistency::RequestPlus)
                .server_timeout(deadline.saturating_duration_since(Instant::now()));
            let run = async {
                let mut result = connection.scope.query(statement, options).await?;
                let mut rows = Vec::new();
                let mut stream = result.rows::<Value>();
                while rows.len() < max
                    && let Some(row) = stream.next().await
                {
                    rows.push(row?);
                }
                Ok::<_, Error>(rows)
            };
            let why = match timeout_at(deadline, run).await {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(error)) => match Unanswered::of(&error) {
                    Unanswered::Final(error) => return Err(error),
                    Unanswered::Passing(why) => why,
                },
                Err(_) => "the query took longer than its deadline".into(),
            };
            if !pause.wait(deadline).await {
                return Err(StorageError::Unavailable(why));
            }
        }
    }

    pub(super) async fn query(
        &self,
        query: &Query,
        deadline: Instant,
    ) -> Result<Answer, StorageError> {
        let schema = self.schema();
        // The handle has checked that each is known.
        let holds = |name: &str| schema.field(query.collection, name).unwrap_or(FieldType::Text);
        let order = query.order.as_ref().map(|order| (order.field.as_str(), holds(&order.field)));
        let mut page = Page::default();
        let mut bytes = 0;
        for statement in Statement::both(query, &holds) {
            let mut options = QueryOptions::new();
            for (place, value) in statement.parameters.iter().enumerate() {
                let named = options.add_named_parameter(format!("p{}", place + 1), value);
                options = named.map_err(|error| StorageError::BadQuery(eco_format!("{error}")))?;
            }
            let max = usize::from(query.limit) + 1;
            let rows = self.rows(&statement.text, options, max, deadline).await?;
            let count = rows.len();
            let mut found = Vec::with_capacity(count);
            for row in rows {
                let id = row.get("id").and_then(Value::as_str).unwrap_or_default();
                let Ok(key) = Key::new(query.collection, id) else { continue };
                found.push((order.and_then(|(_, holds)| value_of(&row, "v", holds)), key));
            }
            // The rows say which; the documents themselves say what, as they are now, with their versions.
            let mut reads = Vec::with_capacity(found.len());
            for (value, key) in found {
                reads.push(self.read_for(value, key, deadline));
            }
            let mut read = stream::iter(reads).buffered(READS);
            while let Some((value, key, found)) = read.next().await {
                if page.documents.len() == usize::from(query.limit) || bytes > query.bytes_max {
                    return Ok(Answer::Page(page));
                }
                page.next = Some(Cursor { value, id: key.id().into() });
                // Gone since, or changed so that it is none of these any more.
                let document = found?.and_then(Found::document);
                if let Some(document) = document.filter(|document| matches(query, document, &holds))
                {
                    bytes += document.body.len();
                    page.documents.push((key, document));
                }
            }
            if count == max {
                return Ok(Answer::Page(page));
            }
        }
        page.next = None;
        Ok(Answer::Page(page))
    }

    /// Reads a document that a query has found, with its value in the field of the order.
    async fn read_for(
        &self,
        value: Option<MetaValue>,
        key: Key,
        deadline: Instant,
    ) -> (Option<MetaValue>, Key, Result<Option<Found>, StorageError>) {
        let found = self.find(&key, deadline, &mut Alarm::new()).await;
        (value, key, found)
    }

    pub(super) async fn raw(
        &self,
        query: &RawQuery,
        deadline: Instant,
    ) -> Result<Answer, StorageError> {
        let mut options = QueryOptions::new();
        for value in &query.parameters {
            let added = options.add_positional_parameter(vec![json(value)]);
            options = added.map_err(|error| StorageError::BadQuery(eco_format!("{error}")))?;
        }
        let limit = usize::from(query.limit);
        let mut rows = self.rows(query.statement, options, limit + 1, deadline).await?;
        let is_cut = rows.len() > limit;
        rows.truncate(limit);
        Ok(Answer::RawPage(RawPage { rows, is_cut }))
    }
}

fn matches(query: &Query, document: &Document, holds: &impl Fn(&str) -> FieldType) -> bool {
    let Ok(body) = document.body.decode::<Value>() else { return false };
    query.filter.lets_through(&|name: &EcoString| value_of(&body, name, holds(name)))
}
