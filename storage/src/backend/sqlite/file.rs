//! The file: what makes it one of ours, its tables and indexes, and what is said when something is wrong with it.

use std::path::Path;
use std::time::{Duration, Instant};

use ecow::{EcoString, eco_format};
use greenroom_protocol::search::FieldType;
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags, TransactionBehavior};

use crate::{Collection, OpenError, Schema, StorageError};

/// Marks the file as a store: SQLite's `application_id`.
const APPLICATION: i64 = 0x4752_5354;
/// Layout of the tables: SQLite's `user_version`.
const FORMAT: i64 = 1;
/// A file of up to so many bytes is checked as a whole when it is opened; of a larger one, what is read is checked.
const CHECKED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How long another process may hold the file before a write is answered as unavailable.
const BUSY: Duration = Duration::from_secs(2);
/// The same while the file is opened: others may be making it, on a slow disk.
const BUSY_AT_FIRST: Duration = Duration::from_secs(30);
/// How long a thread sleeps until it asks again whether another process still holds the file.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// Bytes that the write-ahead log keeps once it has been written into the file.
const LOG_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// Statements of each connection that stay compiled.
const STATEMENTS: usize = 64;

const TO_DO: &str = "nothing was changed; restore it from a backup, or move it away (with its -wal and -shm) \
                     to begin with an empty store";

/// Opens the file for the one who writes, and makes it if it is not there.
pub(super) fn create(file: &Path) -> Result<Connection, OpenError> {
    let is = |why: EcoString| OpenError::File { file: file.into(), why };
    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|error| {
            is(eco_format!(
                "its folder can't be made ({error}): choose another with --data or --store, or mend its rights"
            ))
        })?;
    }
    let connection = Connection::open(file).map_err(|error| refused(file, &error))?;
    prepare(connection, file)
}

/// Looks whether the file can be a store, and makes it one.
fn prepare(mut connection: Connection, file: &Path) -> Result<Connection, OpenError> {
    let is = |why: EcoString| OpenError::File { file: file.into(), why };
    // SQLite opens a file that it must not write for reading, says nothing, and begins transactions in it.
    if connection.is_readonly(MAIN_DB).map_err(|error| refused(file, &error))? {
        return Err(is(
            "it can't be written: mend its rights, or choose another with --data or --store".into(),
        ));
    }
    begin(&mut connection).map_err(|error| refused(file, &error))?;
    // Looked at before anything is changed: the file may be somebody else's.
    let (application, format, tables) =
        look_at(&mut connection).map_err(|error| refused(file, &error))?;
    if application != APPLICATION && (application != 0 || tables != 0) {
        return Err(
            is("it is a database of something else: name another file with --store".into()),
        );
    }
    if format > FORMAT {
        return Err(is(eco_format!(
            "it was written by a newer Greenroom (format {format}; this one knows {FORMAT}): run that one"
        )));
    }
    let bytes = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    if bytes <= CHECKED_BYTES_MAX {
        let checked: Result<String, _> =
            connection.query_row("PRAGMA quick_check(1)", (), |row| row.get(0));
        match checked {
            Ok(word) if word == "ok" => {}
            Ok(what) => return Err(is(eco_format!("it is corrupt ({what}): {TO_DO}"))),
            Err(error) => return Err(refused(file, &error)),
        }
    }
    set_up(&mut connection, format).map_err(|error| refused(file, &error))?;
    connection.busy_handler(Some(wait)).map_err(|error| refused(file, &error))?;
    Ok(connection)
}

/// Opens the file, which is there, for one who reads.
pub(super) fn read(file: &Path) -> Result<Connection, OpenError> {
    let mut connection = Connection::open(file).map_err(|error| refused(file, &error))?;
    begin(&mut connection).map_err(|error| refused(file, &error))?;
    connection.pragma_update(None, "query_only", true).map_err(|error| refused(file, &error))?;
    Ok(connection)
}

fn begin(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_handler(Some(wait_at_first))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(())
}

fn wait(times: i32) -> bool {
    wait_up_to(BUSY, times)
}

fn wait_at_first(times: i32) -> bool {
    wait_up_to(BUSY_AT_FIRST, times)
}

/// SQLite's own waits grow up to 100 ms each: then whoever comes often starves who waits.
#[expect(clippy::disallowed_methods, reason = "called by SQLite, in a thread of the store's own")]
fn wait_up_to(longest: Duration, times: i32) -> bool {
    let waited = BUSY_PAUSE.saturating_mul(u32::try_from(times).unwrap_or_default());
    std::thread::sleep(BUSY_PAUSE);
    waited < longest
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

/// Whose file it is, its format and how many tables it has; all as of one moment, since somebody else may be making it
/// just now.
fn look_at(connection: &mut Connection) -> rusqlite::Result<(i64, i64, i64)> {
    let look = connection.transaction()?;
    let tables = look.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))?;
    Ok((pragma(&look, "application_id")?, pragma(&look, "user_version")?, tables))
}

/// Sets the connection up, and makes the tables that are not there.
fn set_up(connection: &mut Connection, format: i64) -> rusqlite::Result<()> {
    let began = Instant::now();
    // Where two make the file at once, SQLite refuses one of them without asking the busy handler.
    while let Err(error) = connection.pragma_update(None, "journal_mode", "wal") {
        let is_held = error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
        if !is_held || began.elapsed() > BUSY_AT_FIRST {
            return Err(error);
        }
        std::thread::yield_now();
    }
    // Each commit is durable before it returns.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES_MAX)?;
    if format == FORMAT {
        return Ok(());
    }
    let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    change.pragma_update(None, "application_id", APPLICATION)?;
    change.pragma_update(None, "user_version", FORMAT)?;
    for collection in Collection::ALL {
        // A tombstone has no body. Large rows live badly in an index, which a table WITHOUT ROWID is.
        change.execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS {collection} (
                 id TEXT PRIMARY KEY NOT NULL,
                 version INTEGER NOT NULL,
                 owner BLOB,
                 expires INTEGER,
                 body TEXT
             ) STRICT;
             CREATE INDEX IF NOT EXISTS {collection}_expires ON {collection} (expires) WHERE expires IS NOT NULL;"
        ))?;
    }
    change.commit()
}

/// Makes the indexes that are not there.
pub(super) fn make_indexes(connection: &mut Connection, schema: &Schema) -> rusqlite::Result<()> {
    let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for index in schema.indexes() {
        let fields = index.fields.iter().map(|(name, holds)| typed(name, *holds));
        let fields = fields.collect::<Vec<_>>().join(", ");
        let (name, collection) = (index.name(), index.collection);
        change.execute_batch(&format!(
            "CREATE INDEX IF NOT EXISTS {name} ON {collection} ({fields}, id)"
        ))?;
    }
    change.commit()
}

/// What is missing or wrong, each in a sentence that says what to do.
pub(super) fn findings(file: &Path, schema: &Schema) -> Vec<EcoString> {
    let init = "`greenroom store init` makes it, and so does a server that starts";
    if !file.exists() {
        return vec![eco_format!("the file {} is not there: {init}", file.display())];
    }
    let looked = look(file, schema, init);
    looked.unwrap_or_else(|error| vec![eco_format!("{}", refused(file, &error))])
}

fn look(file: &Path, schema: &Schema, init: &str) -> rusqlite::Result<Vec<EcoString>> {
    let mut findings = Vec::new();
    if let Err(error) = std::fs::OpenOptions::new().append(true).open(file) {
        findings.push(eco_format!(
            "the file {} can't be written ({error}): mend its rights",
            file.display()
        ));
    }
    let mut connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_handler(Some(wait))?;
    let (application, format) =
        (pragma(&connection, "application_id")?, pragma(&connection, "user_version")?);
    if application != APPLICATION {
        let file = file.display();
        findings.push(eco_format!("{file} is no store of ours: name another file with --store"));
        return Ok(findings);
    }
    if format > FORMAT {
        findings.push(eco_format!(
            "{} was written by a newer Greenroom (format {format}; this one knows {FORMAT}): run that one",
            file.display()
        ));
        return Ok(findings);
    }
    let checked: String = connection.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
    if checked != "ok" {
        findings.push(eco_format!("{} is corrupt ({checked}): {TO_DO}", file.display()));
    }
    let is_there = |name: &str| {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
        connection.query_row(sql, [name], |row| row.get::<_, i64>(0)).map(|count| count > 0)
    };
    for collection in Collection::ALL {
        if !is_there(collection.name())? {
            findings.push(eco_format!("the table {collection} is missing: {init}"));
        }
    }
    for index in schema.indexes() {
        if !is_there(&index.name())? {
            let (name, of) = (index.name(), index.collection);
            findings.push(eco_format!("the index {name} of {of} is missing: {init}"));
        }
    }
    Ok(findings)
}

/// The value of a field if it holds what the index says, else NULL. The name has been checked: `[a-z_][a-z0-9_]*`.
pub(super) fn typed(name: &str, holds: FieldType) -> String {
    let (of, value) =
        (format!("json_type(body, '$.{name}')"), format!("json_extract(body, '$.{name}')"));
    match holds {
        // A whole number outside i64 is read as a real.
        FieldType::Number => {
            format!("CASE WHEN {of} = 'integer' AND typeof({value}) = 'integer' THEN {value} END")
        }
        FieldType::Boolean => format!("CASE {of} WHEN 'true' THEN 1 WHEN 'false' THEN 0 END"),
        FieldType::Keyword | FieldType::Text => format!("CASE {of} WHEN 'text' THEN {value} END"),
    }
}

/// Why the file can't be opened, and what to do.
pub(super) fn refused(file: &Path, error: &rusqlite::Error) -> OpenError {
    let why = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            eco_format!("it is no SQLite database, or its head is corrupt: {TO_DO}")
        }
        Some(ErrorCode::DatabaseCorrupt) => eco_format!("it is corrupt ({error}): {TO_DO}"),
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            eco_format!(
                "it can't be opened for writing ({error}): choose another with --data or --store, or mend its rights"
            )
        }
        Some(ErrorCode::DiskFull) => eco_format!("the disk is full ({error}): make room on it"),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            eco_format!("another process holds it ({error}): end that one, or try again")
        }
        _ => eco_format!("SQLite says: {error}"),
    };
    OpenError::File { file: file.into(), why }
}

/// Why an operation failed that has not happened.
pub(super) fn failed(file: &Path, error: &rusqlite::Error) -> StorageError {
    let file = file.display();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => {
            StorageError::Unavailable(eco_format!("the disk of {file} is full"))
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StorageError::Unavailable(eco_format!("another process holds {file}"))
        }
        // As after a fault of the disk, when the system mounts it anew for reading.
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => StorageError::Unavailable(
            eco_format!("{file} can't be written any more ({error}): mend its disk or its rights"),
        ),
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => {
            StorageError::Unavailable(eco_format!("{file}: {error}"))
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StorageError::Backend(eco_format!("{file} is corrupt ({error}): {TO_DO}"))
        }
        Some(ErrorCode::OperationInterrupted) => {
            StorageError::Unavailable("the query took longer than its deadline".into())
        }
        Some(ErrorCode::TooBig) => StorageError::Backend(eco_format!("{file}: {error}")),
        _ => StorageError::Backend(eco_format!("{file}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the rights of who runs this: the superuser may write any file, so the connection itself may not.
    #[test]
    fn a_file_that_can_only_be_read_is_no_store_to_begin_with() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store.sqlite");
        drop(create(&file).unwrap());
        let reading = Connection::open_with_flags(&file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let error = prepare(reading, &file).unwrap_err().to_string();
        assert!(error.contains("can't be written") && error.contains("store.sqlite"), "{error}");
        prepare(Connection::open(&file).unwrap(), &file).unwrap();
    }
}
