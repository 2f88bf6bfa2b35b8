//! SQLite without the actor.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use rusqlite::{Connection, params};

use super::load::{self, Asked, KEYS_OF_A_WORKER, Taken, Taking, id, json, micros};
use crate::measure::float;
use crate::report::progress;

/// Times that the disk is asked.
const SYNCS: usize = 100;

/// A folder that goes when it is dropped.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> anyhow::Result<Self> {
        let path =
            std::env::temp_dir().join(format!("greenroom-bench-store-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Milliseconds that the disk takes to keep 4 KiB.
    pub(super) fn fdatasync_p50(&self) -> anyhow::Result<f64> {
        let path = self.0.join("sync");
        let mut file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        let mut times = Histogram::<u64>::new(3)?;
        for _ in 0..SYNCS {
            file.write_all(&[7; 4_096])?;
            let began = Instant::now();
            file.sync_data()?;
            times.record(micros(began.elapsed()))?;
        }
        Ok(float(times.value_at_quantile(0.5)) / 1e3)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            progress(&format!("{} stays: {error}", self.0.display()));
        }
    }
}

/// Opens a file with the table that the actor has for documents, as durable as there.
fn open(file: &Path) -> anyhow::Result<Connection> {
    let connection = Connection::open(file)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.execute_batch(
        "CREATE TABLE documents (id TEXT PRIMARY KEY NOT NULL, version INTEGER NOT NULL, owner BLOB, \
         expires INTEGER, body TEXT) STRICT; \
         CREATE INDEX documents_expires ON documents (expires) WHERE expires IS NOT NULL",
    )?;
    Ok(connection)
}

/// Commits what is given together. `version` is of the first of them.
fn commit<'a>(
    connection: &Connection,
    upserts: impl Iterator<Item = (&'a str, &'a str)>,
    mut version: i64,
) -> anyhow::Result<()> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
    for (id, json) in upserts {
        connection
            .prepare_cached(
                "INSERT INTO documents (id, version, owner, expires, body) VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT (id) DO UPDATE SET version = excluded.version, owner = excluded.owner, \
                 expires = excluded.expires, body = excluded.body",
            )?
            .execute(params![id, version, None::<Vec<u8>>, None::<i64>, json])?;
        version += 1;
    }
    connection.prepare_cached("COMMIT")?.execute(())?;
    Ok(())
}

/// The library by itself, in one loop.
pub(super) fn bare(file: &Path, size: usize, window: Duration) -> anyhow::Result<Taken> {
    let connection = open(file)?;
    let mut taking = Taking::begin()?;
    for round in 0.. {
        if round == KEYS_OF_A_WORKER {
            taking.warm(u64::try_from(size * KEYS_OF_A_WORKER)?);
        }
        if round >= KEYS_OF_A_WORKER && taking.began().elapsed() >= window {
            break;
        }
        let started = Instant::now();
        let documents: Vec<_> = (0..size).map(|worker| (id(worker, round), json(round))).collect();
        let documents = documents.iter().map(|(id, json)| (id.as_str(), json.as_str()));
        commit(&connection, documents, i64::try_from(round * size)?)?;
        if round >= KEYS_OF_A_WORKER {
            taking.took(u64::try_from(size)?, started.elapsed())?;
        }
    }
    taking.end()
}

/// A thread that commits whatever waits.
pub(super) fn by_hand(file: &Path, size: usize, window: Duration) -> anyhow::Result<Taken> {
    let connection = open(file)?;
    load::by_hand(size, window, move |mut asked| {
        let mut version = 0;
        let mut batch: Vec<Asked> = Vec::new();
        while asked.blocking_recv_many(&mut batch, size) > 0 {
            let documents = batch.iter().map(|asked| (asked.id.as_str(), asked.json.as_str()));
            commit(&connection, documents, version)?;
            version += i64::try_from(batch.len())?;
            batch.drain(..).for_each(Asked::answer);
        }
        Ok(())
    })
}
