//! The record in a file of SQLite's.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ecow::EcoString;
use greenroom_master_core::replica::{ClaimAnswer, Rec};
use greenroom_protocol::{Limits, decode, encode};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::{Witness, WitnessError};

/// Marks the file as a witness: SQLite's `application_id`.
const APPLICATION: i64 = 0x4752_5754;
/// Layout of the table.
const FORMAT: i64 = 1;
/// How long somebody else may hold the file.
const BUSY: Duration = Duration::from_secs(1);
/// Pages of the write-ahead log after which it is used again from the start; with [`ROOM_BYTES`] it has more than that
/// from the beginning, so that a disk that becomes full later does not stop the witness.
const LOG_PAGES: u32 = 16;
/// Bytes that are written once, to make that room.
const ROOM_BYTES: u32 = 128 * 1024;

/// A witness in a file. Several processes of one machine may open it; put it on no network file system.
pub struct SqliteWitness {
    file: PathBuf,
    connection: Connection,
}

impl fmt::Debug for SqliteWitness {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("SqliteWitness").field(&self.file).finish()
    }
}

impl SqliteWitness {
    /// Opens the witness of `cluster`, which is made if the file is not there.
    ///
    /// # Errors
    /// When the file is something else's or another cluster's, or can't be made.
    pub fn open(file: &Path, cluster: &EcoString) -> Result<Self, WitnessError> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| WitnessError::Folder { file: file.into(), source })?;
        }
        let failed =
            |doing| move |source| WitnessError::Sqlite { doing, file: file.to_path_buf(), source };
        let mut connection = Connection::open(file).map_err(failed("opening"))?;
        connection.busy_timeout(BUSY).map_err(failed("setting up"))?;
        // Looked at before anything is changed: the file may be somebody else's.
        let application: i64 = match pragma(&connection, "application_id") {
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase) => {
                return Err(WitnessError::NoWitness { file: file.into() });
            }
            application => application.map_err(failed("reading"))?,
        };
        let is_new = application == 0 && tables(&connection).map_err(failed("reading"))? == 0;
        if application != APPLICATION && !is_new {
            return Err(WitnessError::NoWitness { file: file.into() });
        }
        set_up(&mut connection, cluster).map_err(failed("setting up"))?;
        let (format, found): (i64, String) = connection
            .query_row("SELECT format, cluster FROM witness WHERE id = 1", (), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .map_err(failed("reading"))?;
        if format != FORMAT {
            return Err(WitnessError::OtherFormat {
                file: file.into(),
                found: format,
                ours: FORMAT,
            });
        }
        if found != *cluster {
            let (found, ours) = (found.into(), cluster.clone());
            return Err(WitnessError::OtherCluster { file: file.into(), found, ours });
        }
        Ok(Self { file: file.into(), connection })
    }

    /// How long somebody else may hold the file.
    #[cfg(test)]
    pub(super) fn set_busy(&self, busy: Duration) {
        self.connection.busy_timeout(busy).unwrap();
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(rusqlite::Error) -> WitnessError {
        let file = self.file.clone();
        move |source| WitnessError::Sqlite { doing, file, source }
    }
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

fn tables(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))
}

/// Makes the table if it is not there, and room for what comes later.
fn set_up(connection: &mut Connection, cluster: &EcoString) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "wal")?;
    // Each commit is durable before it returns.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
    let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    change.pragma_update(None, "application_id", APPLICATION)?;
    change.execute_batch(
        "CREATE TABLE IF NOT EXISTS witness (
             id INTEGER PRIMARY KEY CHECK (id = 1),
             format INTEGER NOT NULL,
             cluster TEXT NOT NULL,
             version INTEGER NOT NULL,
             rec BLOB
         ) STRICT;
         CREATE TABLE IF NOT EXISTS room (id INTEGER PRIMARY KEY, bytes BLOB) STRICT;",
    )?;
    change.execute(
        "INSERT INTO witness (id, format, cluster, version) VALUES (1, ?1, ?2, 0) ON CONFLICT DO NOTHING",
        params![FORMAT, cluster.as_str()],
    )?;
    change.execute("REPLACE INTO room (id, bytes) VALUES (1, zeroblob(?1))", [ROOM_BYTES])?;
    change.commit()
}

impl Witness for SqliteWitness {
    fn read(&mut self) -> Result<Option<Rec>, WitnessError> {
        let bytes: Option<Option<Vec<u8>>> = self
            .connection
            .query_row("SELECT rec FROM witness WHERE id = 1", (), |row| row.get(0))
            .optional()
            .map_err(self.failed("reading the record"))?;
        let bad = || WitnessError::BadRecord { file: self.file.clone() };
        let Some(bytes) = bytes.ok_or_else(bad)? else { return Ok(None) };
        decode(&bytes, Limits::SERVER).map(Some).map_err(|_| bad())
    }

    fn claim(&mut self, expect: u64, rec: &Rec) -> Result<ClaimAnswer, WitnessError> {
        let bad = || WitnessError::BadClaim { expect, version: rec.version };
        let before = i64::try_from(expect).map_err(|_| bad())?;
        let after = before.checked_add(1).ok_or_else(bad)?;
        if u64::try_from(after) != Ok(rec.version) {
            return Err(bad());
        }
        let changed = self
            .connection
            .execute(
                "UPDATE witness SET version = ?1, rec = ?2 WHERE id = 1 AND version = ?3",
                params![after, encode(rec), before],
            )
            .map_err(self.failed("changing the record"))?;
        if changed == 1 {
            return Ok(ClaimAnswer::Won);
        }
        // The same attempt may have come before: its author asks again until it is answered.
        let now = self.read()?;
        let is_mine = now.is_some_and(|now| now.nonce == rec.nonce);
        Ok(if is_mine { ClaimAnswer::Won } else { ClaimAnswer::Lost(now) })
    }
}
