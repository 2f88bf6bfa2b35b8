//! A thread that reads, with a connection of its own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ecow::eco_format;
use greenroom_protocol::search::FieldType;
use rusqlite::types::ValueRef;
use rusqlite::{
    Connection, InterruptHandle, OptionalExtension as _, Row, params, params_from_iter,
};
use tokio::time::Instant;

use super::file::failed;
use super::select::{Select, bound};
use super::writer::{owner_of, signed};
use super::{Queue, lock};
use crate::backend::{Answer, Operation};
use crate::query::{Page, Query, RawPage, RawQuery};
use crate::{Body, Clock, Document, Key, Schema, StorageError, Version};

pub(super) struct Reader {
    file: PathBuf,
    connection: Connection,
    clock: Clock,
    queue: Arc<Queue>,
    schema: Arc<Mutex<Arc<Schema>>>,
    running: Arc<Running>,
}

/// What a reader works on, so that it can be cut off.
pub(super) struct Running {
    deadline: Mutex<Option<Instant>>,
    handle: InterruptHandle,
}

impl Running {
    /// Cuts off what runs, if it is past its deadline. Called at each deadline: a later job's is later, or it is cut
    /// off rightly too.
    pub(super) fn interrupt(&self, deadline: Instant) {
        let running = lock(&self.deadline);
        if running.is_some_and(|running| running <= deadline) {
            self.handle.interrupt();
        }
    }
}

impl Reader {
    pub(super) fn new(
        connection: Connection,
        file: &Path,
        clock: Clock,
        queue: Arc<Queue>,
        schema: Arc<Mutex<Arc<Schema>>>,
    ) -> Self {
        let handle = connection.get_interrupt_handle();
        let running = Arc::new(Running { deadline: Mutex::new(None), handle });
        Self { file: file.into(), connection, clock, queue, schema, running }
    }

    pub(super) fn running(&self) -> Arc<Running> {
        self.running.clone()
    }

    /// Runs until the queue is closed and empty.
    pub(super) fn run(self) {
        while let Some(job) = self.queue.take_one() {
            if job.deadline() <= Instant::now() {
                job.answer(Err(StorageError::Unavailable(
                    "its deadline was over before its turn".into(),
                )));
                continue;
            }
            *lock(&self.running.deadline) = Some(job.deadline());
            let result = self.execute(job.operation());
            *lock(&self.running.deadline) = None;
            job.answer(result);
        }
    }

    fn execute(&self, operation: &Operation) -> Result<Answer, StorageError> {
        let now = signed(self.clock.now_ms());
        match operation {
            Operation::Get { key } => self.get(key, now).map(Answer::Document),
            Operation::Query(query) => self.query(query, now).map(Answer::Page),
            Operation::Raw(query) => self.raw(query).map(Answer::RawPage),
            Operation::Put(_) | Operation::Remove { .. } | Operation::Touch { .. } => {
                unreachable!("who reads is given no writes")
            }
        }
    }

    fn get(&self, key: &Key, now: i64) -> Result<Option<Document>, StorageError> {
        let sql = format!(
            "SELECT version, owner, expires, body FROM {} \
             WHERE id = ?1 AND body IS NOT NULL AND (expires IS NULL OR expires > ?2)",
            key.collection()
        );
        let read = || {
            let mut select = self.connection.prepare_cached(&sql)?;
            select.query_row(params![key.id(), now], |row| document(row, 0)).optional()
        };
        read().map_err(|error| failed(&self.file, &error))
    }

    fn query(&self, query: &Query, now: i64) -> Result<Page, StorageError> {
        let schema = lock(&self.schema).clone();
        // The handle has checked that each is known.
        let holds = |name: &str| schema.field(query.collection, name).unwrap_or(FieldType::Text);
        let by = query.order.as_ref().map(|order| holds(&order.field));
        let mut page = Page::default();
        let mut bytes = 0;
        for select in Select::both(query, &holds, now) {
            let mut read = || -> rusqlite::Result<bool> {
                let mut statement = self.connection.prepare_cached(&select.sql)?;
                let mut rows = statement.query(params_from_iter(&select.parameters))?;
                while let Some(row) = rows.next()? {
                    let is_full =
                        page.documents.len() == usize::from(query.limit) || bytes > query.bytes_max;
                    if is_full {
                        return Ok(true);
                    }
                    let id: String = row.get(0)?;
                    let Ok(key) = Key::new(query.collection, id) else { continue };
                    let document = document(row, 1)?;
                    bytes += document.body.len();
                    let value = bound(row.get_ref(5)?, by);
                    page.next = Some(crate::Cursor { value, id: key.id().into() });
                    page.documents.push((key, document));
                }
                Ok(false)
            };
            if read().map_err(|error| failed(&self.file, &error))? {
                return Ok(page);
            }
        }
        page.next = None;
        Ok(page)
    }

    fn raw(&self, query: &RawQuery) -> Result<RawPage, StorageError> {
        let bad = |error: &rusqlite::Error| match error.sqlite_error_code() {
            None | Some(rusqlite::ErrorCode::Unknown | rusqlite::ErrorCode::ReadOnly) => {
                StorageError::BadQuery(eco_format!("{error}"))
            }
            Some(_) => failed(&self.file, error),
        };
        let mut statement =
            self.connection.prepare_cached(query.statement).map_err(|error| bad(&error))?;
        if !statement.readonly() || statement.column_count() == 0 {
            return Err(StorageError::BadQuery("a raw query can only read".into()));
        }
        let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let parameters = query.parameters.iter().map(super::select::parameter);
        let mut rows =
            statement.query(params_from_iter(parameters)).map_err(|error| bad(&error))?;
        let mut page = RawPage::default();
        while let Some(row) = rows.next().map_err(|error| bad(&error))? {
            if page.rows.len() == usize::from(query.limit) {
                page.is_cut = true;
                break;
            }
            let mut object = serde_json::Map::new();
            for (place, name) in names.iter().enumerate() {
                let value = row.get_ref(place).map_err(|error| bad(&error))?;
                object.insert(name.clone(), json(value));
            }
            page.rows.push(object.into());
        }
        Ok(page)
    }
}

/// The document of a row whose columns from `first` are version, owner, expires, body.
fn document(row: &Row<'_>, first: usize) -> rusqlite::Result<Document> {
    let owner: Option<Vec<u8>> = row.get(first + 1)?;
    let expires: Option<i64> = row.get(first + 2)?;
    let body = row.get_ref(first + 3)?.as_str()?;
    Ok(Document {
        body: Body::trusted(Bytes::copy_from_slice(body.as_bytes())),
        version: Version(row.get::<_, i64>(first)?.cast_unsigned()),
        owner: owner.as_deref().and_then(owner_of),
        expires_ms: expires.map(i64::cast_unsigned),
    })
}

fn json(value: ValueRef<'_>) -> serde_json::Value {
    match value {
        ValueRef::Null => serde_json::Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
        ValueRef::Blob(bytes) => {
            serde_json::to_value(crate::Blob(Bytes::copy_from_slice(bytes))).unwrap_or_default()
        }
    }
}
