//! The thread that writes: whatever waits becomes one transaction.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use greenroom_protocol::Epoch;
use rusqlite::{CachedStatement, Connection, ErrorCode, OptionalExtension as _, params};

use super::file::failed;
use super::{Next, Queue};
use crate::backend::{
    Answer, Condition, Decision, Job, Operation, Put, Stored, decide, expires_ms,
};
use crate::{Clock, Collection, Expiry, Key, Owner, StorageError, Version};

/// How often documents are removed whose time is over, and how many of each collection at once.
const SWEEP: Duration = Duration::from_secs(5);
const SWEPT_MAX: u32 = 500;
/// How long a batch waits for as many as the last one had.
const GATHER: Duration = Duration::from_micros(500);

pub(super) struct Writer {
    file: PathBuf,
    connection: Connection,
    clock: Clock,
    queue: Arc<Queue>,
}

impl Writer {
    pub(super) fn new(
        file: &Path,
        connection: Connection,
        clock: Clock,
        queue: Arc<Queue>,
    ) -> Self {
        Self { file: file.into(), connection, clock, queue }
    }

    /// Runs until the queue is closed and empty.
    pub(super) fn run(mut self) {
        let mut swept = Instant::now();
        let mut company = 0;
        loop {
            match self.queue.take(SWEEP, company, GATHER) {
                Next::Work(acts, jobs) => {
                    company = jobs.len();
                    self.commit(jobs);
                    acts.into_iter().for_each(|act| act(&mut self.connection));
                }
                Next::Nothing => company = 0,
                Next::Closed => break,
            }
            if swept.elapsed() >= SWEEP {
                swept = Instant::now();
                if let Err(error) = self.sweep() {
                    tracing::warn!(%error, "documents whose time is over were not removed");
                }
            }
        }
    }

    /// Commits jobs together and answers them; where that fails, each by itself, so that one which can't be written
    /// takes no other with it.
    fn commit(&mut self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        match self.attempt(&jobs) {
            Ok(results) => Job::answer_all(jobs.into_iter().zip(results)),
            Err(error) if jobs.len() == 1 || is_held(&error) => {
                let failed = || Err(failed(&self.file, &error));
                Job::answer_all(jobs.into_iter().map(|job| (job, failed())));
            }
            Err(_) => {
                for job in jobs {
                    let result = match self.attempt(std::slice::from_ref(&job)) {
                        Ok(mut results) => results.pop().expect("one result for one job"),
                        Err(error) => Err(failed(&self.file, &error)),
                    };
                    job.answer(result);
                }
            }
        }
    }

    /// One transaction. After an error nothing of it has happened: SQLite has rolled it back, or does so now.
    fn attempt(&mut self, jobs: &[Job]) -> rusqlite::Result<Vec<Result<Answer, StorageError>>> {
        let now = self.clock.now_ms();
        let results = self.transaction(jobs, now);
        if results.is_err()
            && !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::warn!(%error, "a transaction that failed is not rolled back yet");
        }
        results
    }

    fn transaction(
        &mut self,
        jobs: &[Job],
        now: u64,
    ) -> rusqlite::Result<Vec<Result<Answer, StorageError>>> {
        let connection = &self.connection;
        // A read that becomes a write later would be refused at once when another process has written between.
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
        let mut results = Vec::with_capacity(jobs.len());
        let mut upserts = Upserts { connection, statements: Default::default() };
        for job in jobs {
            results.push(execute(&mut upserts, job.operation(), now)?);
        }
        drop(upserts);
        connection.prepare_cached("COMMIT")?.execute(())?;
        Ok(results)
    }

    fn sweep(&mut self) -> rusqlite::Result<()> {
        let now = signed(self.clock.now_ms());
        for collection in Collection::ALL {
            // Most of the time there is nothing, which a read finds out.
            let any = format!("SELECT 1 FROM {collection} WHERE expires <= ?1 LIMIT 1");
            let any: Option<i64> = self
                .connection
                .prepare_cached(&any)?
                .query_row([now], |row| row.get(0))
                .optional()?;
            if any.is_some() {
                let sweep = format!(
                    "DELETE FROM {collection} WHERE id IN \
                     (SELECT id FROM {collection} WHERE expires <= ?1 LIMIT {SWEPT_MAX})"
                );
                self.connection.prepare_cached(&sweep)?.execute([now])?;
            }
        }
        Ok(())
    }
}

/// Whether another process has held the file all the time, so that each by itself would wait as long.
fn is_held(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Whether the file can be written.
pub(super) fn check(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE; ROLLBACK")
}

/// One operation within the transaction. The outer error ends the transaction, the inner one is the operation's own.
fn execute(
    upserts: &mut Upserts<'_>,
    operation: &Operation,
    now: u64,
) -> rusqlite::Result<Result<Answer, StorageError>> {
    let connection = upserts.connection;
    match operation {
        Operation::Put(put) => put_row(upserts, put, now),
        Operation::Remove { key, version, .. } => {
            let stored = match stored(connection, key, now)?.filter(|stored| stored.is_there) {
                None => return Ok(Err(StorageError::Missing { key: key.clone() })),
                Some(stored) => stored,
            };
            if version.is_some_and(|version| version != stored.version) {
                return Ok(Err(StorageError::VersionMismatch { key: key.clone() }));
            }
            let sql = format!("DELETE FROM {} WHERE id = ?1", key.collection());
            connection.prepare_cached(&sql)?.execute([key.id()])?;
            Ok(Ok(Answer::Removed))
        }
        Operation::Touch { key, expiry, write } => {
            let stored = match stored(connection, key, now)?.filter(|stored| stored.is_there) {
                None => return Ok(Err(StorageError::Missing { key: key.clone() })),
                Some(stored) => stored,
            };
            let expires = expires_ms(*expiry, stored.expires_ms, now).map(signed);
            let sql =
                format!("UPDATE {} SET expires = ?2, version = ?3 WHERE id = ?1", key.collection());
            let mut update = connection.prepare_cached(&sql)?;
            update.execute(params![key.id(), expires, write.0.cast_signed()])?;
            Ok(Ok(Answer::Touched))
        }
        Operation::Get { .. } | Operation::Query(_) | Operation::Raw(_) => {
            unreachable!("who writes is given no reads")
        }
    }
}

/// The statement of each collection that a transaction writes most of its documents with: looked up once in it.
struct Upserts<'a> {
    connection: &'a Connection,
    statements: [Option<CachedStatement<'a>>; Collection::ALL.len()],
}

impl<'a> Upserts<'a> {
    fn of(&mut self, collection: Collection) -> rusqlite::Result<&mut CachedStatement<'a>> {
        let statement = &mut self.statements[collection as usize];
        if statement.is_none() {
            let sql = format!(
                "INSERT INTO {collection} (id, version, owner, expires, body) VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT (id) DO UPDATE SET version = excluded.version, owner = excluded.owner, \
                 expires = excluded.expires, body = excluded.body"
            );
            *statement = Some(self.connection.prepare_cached(&sql)?);
        }
        Ok(statement.as_mut().expect("it was put there just now, if it was not there"))
    }
}

fn put_row(
    upserts: &mut Upserts<'_>,
    put: &Put,
    now: u64,
) -> rusqlite::Result<Result<Answer, StorageError>> {
    // A blind write needs no look at what is there.
    let is_blind = put.condition == Condition::None && put.expiry != Expiry::Keep;
    let stored = if is_blind { None } else { stored(upserts.connection, &put.key, now)? };
    let (owner, expires) = match decide(put, stored.as_ref(), now) {
        Ok(Decision::Write { owner, expires_ms }) => (owner, expires_ms),
        Ok(Decision::Done(version)) => return Ok(Ok(Answer::Stored(version))),
        Err(error) => return Ok(Err(error)),
    };
    let owner = owner.map(|owner| owner_bytes(&owner));
    upserts.of(put.key.collection())?.execute(params![
        put.key.id(),
        put.write.0.cast_signed(),
        owner,
        expires.map(signed),
        put.body.as_ref().map(crate::Body::text),
    ])?;
    Ok(Ok(Answer::Stored(Version(put.write.0))))
}

/// What is there, the document itself left out.
fn stored(connection: &Connection, key: &Key, now: u64) -> rusqlite::Result<Option<Stored>> {
    let sql = format!(
        "SELECT version, owner, expires, body IS NOT NULL FROM {} \
         WHERE id = ?1 AND (expires IS NULL OR expires > ?2)",
        key.collection()
    );
    let mut select = connection.prepare_cached(&sql)?;
    let row = select.query_row(params![key.id(), signed(now)], |row| {
        let owner: Option<Vec<u8>> = row.get(1)?;
        let expires: Option<i64> = row.get(2)?;
        Ok(Stored {
            version: Version(row.get::<_, i64>(0)?.cast_unsigned()),
            owner: owner.as_deref().and_then(owner_of),
            expires_ms: expires.map(i64::cast_unsigned),
            is_there: row.get(3)?,
        })
    });
    row.optional()
}

/// Milliseconds as SQLite has them.
pub(super) fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

const MASTER: u8 = 1;
const INSTANCE: u8 = 2;

/// An owner as a row has it: its sort and its numbers, the most significant byte first.
fn owner_bytes(owner: &Owner) -> [u8; 17] {
    let (sort, first, second) = match owner {
        Owner::Master { epoch, lsn } => {
            (MASTER, u64::from(epoch.era) << 32 | u64::from(epoch.epoch), *lsn)
        }
        Owner::Instance { incarnation, n } => (INSTANCE, *incarnation, *n),
    };
    let mut bytes = [sort; 17];
    bytes[1..9].copy_from_slice(&first.to_be_bytes());
    bytes[9..].copy_from_slice(&second.to_be_bytes());
    bytes
}

pub(super) fn owner_of(bytes: &[u8]) -> Option<Owner> {
    let (sort, numbers) = bytes.split_first()?;
    let (first, second) = numbers.split_at_checked(8)?;
    let first = u64::from_be_bytes(first.try_into().ok()?);
    let second = u64::from_be_bytes(second.try_into().ok()?);
    match *sort {
        MASTER => {
            let era = u32::try_from(first >> 32).ok()?;
            let epoch = u32::try_from(first & u64::from(u32::MAX)).ok()?;
            Some(Owner::Master { epoch: Epoch { era, epoch }, lsn: second })
        }
        INSTANCE => Some(Owner::Instance { incarnation: first, n: second }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_owner_survives_its_row(first: u64, second: u64, era: u32, epoch: u32) {
            for owner in [
                Owner::Instance { incarnation: first, n: second },
                Owner::Master { epoch: Epoch { era, epoch }, lsn: second },
            ] {
                prop_assert_eq!(owner_of(&owner_bytes(&owner)), Some(owner));
            }
        }
    }
}
