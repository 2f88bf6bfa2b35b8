//! The log of one master, its checkpoints and its intents, in one folder.
//!
//! *Takes*: what the master's core wants written, in order.
//! *Gives*: what was there when the process started; word of everything that is durable, in the order it was asked for.
//! *Owns*: the folder, which no other process uses meanwhile, and the one thread that waits for the disk.
//! *Never*: says that something is durable which is not; waits for the disk on the caller's thread; gives up on a disk
//! that is full.
//!
//! | File | What it has |
//! |---|---|
//! | `log-GENERATION-NUMBER` | a segment of the log, 64 MiB |
//! | `checkpoint-GENERATION-LSN` | the state after that entry; the log of the same generation continues it |
//! | `intents` | in two places, the older of which is written next |
//! | `incarnation` | as its name says; replaced as a whole |
//! | `whole` | since which life nothing is gone that was written, and of which start of the machine that is said |
//! | `lock` | held by the process that uses the folder |
//!
//! Entries are in the file before [`Disk::write`] returns, so that they survive the death of the process; the rest is
//! done by one thread, strictly in order. When a write fails, the thread takes over writing too: it tries again every
//! 200 ms, and everything that comes meanwhile waits behind it in memory. When a sync fails, nothing is believed that
//! was written since the last one that succeeded: it is written again, to another segment. While anything waits in
//! memory the file `whole` is not there: what waits goes with the process.

mod checkpoint;
mod files;
mod format;
mod log;
mod recover;
#[cfg(test)]
mod tests;
mod worker;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{future, io};

use greenroom_master_core::Record;
use greenroom_master_core::replica::{Entry, Intents, Logged, Position, Recovered, Whose};
use greenroom_protocol::Incarnation;
use tokio::sync::mpsc;

use self::files::{Calls, System};
use self::log::{Frames, Log, Put};
use self::recover::{Recovery, WHOLE, io_error};
use self::worker::{Job, Shared, Worker};

/// Answers that wait to be taken. A full queue makes the disk's thread wait.
const DONE_MAX: usize = 1_024;

/// The disk of one master. It lives on the master's thread.
#[derive(Debug)]
pub(crate) struct Disk {
    shared: Arc<Shared>,
    done: mpsc::Receiver<Done>,
    /// Which log the next entry belongs to, and where that ends.
    generation: u32,
    last: Position,
    /// The checkpoint that was begun and has not ended.
    partial: Option<(Position, Whose)>,
    thread: Option<JoinHandle<()>>,
    /// Held for as long as the folder is in use.
    _lock: File,
}

/// What was there when the process started.
#[derive(Debug)]
pub(crate) struct Found {
    /// The state at [`Recovered::base`]; nothing if there is no checkpoint.
    pub(crate) records: Option<Vec<Record>>,
    /// The log after it, and the intents.
    pub(crate) recovered: Recovered<Logged>,
    /// This life: larger than any before on this disk.
    pub(crate) incarnation: Incarnation,
    /// For people: what was damaged, and what was cut off.
    pub(crate) notes: Vec<String>,
}

/// Something is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// What was written when the sync with this number was asked for is durable.
    Synced(u64),
    /// These intents are durable, and what was written before them.
    Intents(Intents),
    /// The checkpoint is durable and the one before it gone, and so is what was written before it.
    Checkpoint(Position),
    /// Something failed. It is tried again, unless the text says otherwise; nothing that waits is lost.
    Trouble(String),
    /// The trouble is over.
    Well,
}

/// Why a folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The system says no.
    #[error(
        "{doing} {}: a master needs a folder of its own that it may write to, on a disk that works and has room",
        .file.display()
    )]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else is there.
    #[error(
        "the folder {} is in use by another master process: stop that one, or give this one another folder",
        .0.display()
    )]
    InUse(PathBuf),
    /// Another build wrote it.
    #[error(
        "{} has format {found}, this build knows {}: start the build that wrote it, or move the folder away and let \
         this master copy the other one", .file.display(), format::FORMAT
    )]
    OtherFormat {
        /// Which file.
        file: PathBuf,
        /// Its format.
        found: u16,
    },
    /// Its commands would give another state here.
    #[error(
        "{} was written by version {found} of the rules, this build applies version {}: start the build that wrote it, \
         or move the folder away and let this master copy the other one", .file.display(), format::RULES
    )]
    OtherRules {
        /// Which file.
        file: PathBuf,
        /// Its rules.
        found: u16,
    },
}

impl Disk {
    /// Takes the folder, which is made if it is not there, and reads what it has.
    ///
    /// # Errors
    /// When another process uses it, another build wrote it, or the system fails.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Found), DiskError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Self::open_with(folder, Arc::new(System), now_ns)
    }

    fn open_with(
        folder: &Path,
        calls: Arc<dyn Calls>,
        now_ns: u64,
    ) -> Result<(Self, Found), DiskError> {
        std::fs::create_dir_all(folder).map_err(|e| io_error("making", folder.into(), e))?;
        let lock = lock(folder)?;
        let mut found = recover::recover(folder, &*calls)?;
        let last = found.last();
        let segments = std::mem::take(&mut found.segments);
        let (generation, number) = (found.generation, found.number);
        let log = Log::open(folder, Arc::clone(&calls), generation, number, segments, last)
            .map_err(|source| io_error("beginning a segment in", folder.into(), source))?;
        found.repair(folder, &*calls)?;
        recover::prepare_intents(folder, &*calls)?;
        let incarnation = recover::next_incarnation(folder, &*calls, now_ns, &mut found)?;
        let whole_since = found.whole_since.unwrap_or(incarnation);
        // Durable before anything is written: or else a loss of power would be taken for none.
        recover::vouch(&*calls, folder, whole_since, false)
            .map_err(|source| io_error("writing", folder.join(WHOLE), source))?;
        let (answers, done) = mpsc::channel(DONE_MAX);
        let shared = Arc::new(Shared::new(folder, calls, log, whole_since));
        let worker = Worker::new(Arc::clone(&shared), answers);
        let thread = std::thread::Builder::new()
            .name("disk".into())
            .spawn(move || worker.run())
            .map_err(|source| io_error("starting a thread for", folder.into(), source))?;
        let Recovery { base, records, entries, intents, notes, .. } = found;
        let disk = Self {
            shared,
            done,
            generation,
            last,
            partial: None,
            thread: Some(thread),
            _lock: lock,
        };
        let whole_since = Some(whole_since);
        let recovered = Recovered { base, entries, intents, whole_since };
        Ok((disk, Found { records, recovered, incarnation, notes }))
    }

    /// Writes entries that follow those before: they survive the death of this process from here on. On a full disk
    /// they wait in memory.
    pub(crate) fn write(&mut self, entries: &[Entry<Logged>]) {
        let (Some(first), Some(end)) = (entries.first(), entries.last()) else { return };
        if first.header.lsn != self.last.lsn + 1 {
            let text = format!(
                "entry {} was to be written to {} after entry {}, which is a bug: nothing is written any more, restart \
                 this master",
                first.header.lsn,
                self.shared.folder().display(),
                self.last.lsn
            );
            self.shared.give_up(text);
            return;
        }
        let synced = self.shared.synced(self.generation);
        let mut bytes = Vec::with_capacity(entries.iter().map(|e| e.encoded_len() + 16).sum());
        for entry in entries {
            format::put_entry(&mut bytes, entry, synced);
        }
        self.last = end.position();
        self.shared.put(Put::Frames(Arc::new(Frames { bytes, last: self.last })));
    }

    /// Makes durable what was written: [`Done::Synced`] comes with this number.
    pub(crate) fn sync(&mut self, upto: u64) {
        self.shared.push(Job::Sync(upto));
    }

    /// Makes the intents durable, and what was written before: [`Done::Intents`].
    pub(crate) fn write_intents(&mut self, intents: Intents) {
        self.shared.push(Job::Intents(intents));
    }

    /// A checkpoint begins. One that has not ended is given up.
    pub(crate) fn begin_checkpoint(&mut self, at: Position, whose: Whose) {
        if self.partial.is_some() {
            self.shared.drop_unfinished();
        }
        self.partial = Some((at, whose));
        let generation = match whose {
            Whose::Own => {
                // What is covered by the checkpoint stands in segments that can go with it.
                self.shared.put(Put::Segment);
                self.generation
            }
            Whose::Copied => self.generation + 1,
        };
        self.shared.push(Job::Begin { generation, at });
    }

    /// Pieces of it, in order.
    pub(crate) fn checkpoint_pieces(&mut self, pieces: Vec<Record>) {
        if self.partial.is_some() {
            self.shared.push(Job::Pieces(pieces.into_iter().peekable()));
        }
    }

    /// It is complete: [`Done::Checkpoint`]. Entries that are written from here on continue it, if it is a copied one.
    pub(crate) fn end_checkpoint(&mut self) {
        let Some((at, whose)) = self.partial.take() else { return };
        if whose == Whose::Copied {
            self.generation += 1;
            self.last = at;
            self.shared.put(Put::Generation(at));
        }
        self.shared.push(Job::End);
    }

    /// Waits for the next thing that is over. Nothing is lost if it is dropped.
    pub(crate) async fn done(&mut self) -> Done {
        match self.done.recv().await {
            Some(done) => done,
            // The thread ends with the disk only.
            None => future::pending().await,
        }
    }
}

impl Drop for Disk {
    /// Does what waits, if the disk takes it.
    fn drop(&mut self) {
        self.shared.close();
        // The thread may wait for somebody to take its answers.
        self.done.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the disk's thread panicked; see above");
            return;
        }
        self.shared.leave();
    }
}

fn lock(folder: &Path) -> Result<File, DiskError> {
    let path = folder.join("lock");
    let file = files::create(&path).map_err(|e| io_error("making", path.clone(), e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DiskError::InUse(folder.into())),
        Err(TryLockError::Error(source)) => Err(io_error("locking", path, source)),
    }
}
