//! The spool: owners' writes on this machine's disk while the store is away, and their way into it when it is back.
//!
//! A file begins with [`MAGIC`]. Frames follow: length u32, CRC-32 u32 of what follows, then that many bytes: the
//! length of a head (u32), the head as JSON (key, owner, expiry), and the document. A write is kept when its frame is
//! on the disk. Files are drained oldest first and removed when everything in them is stored, or has been refused by
//! the store because somebody newer wrote: the owner's numbers fence, so that draining one twice, or after newer
//! writes, changes nothing. A torn end was never said to be kept, and is left out; a damaged file is set aside.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ecow::eco_format;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::request::OwnedWrite;
use crate::{Body, Collection, Expiry, Key, Metrics, OpenError, Owner, StorageError, Write};

/// First bytes of a file; the digit is its format.
const MAGIC: [u8; 8] = *b"GRSPOOL1";
/// Bytes after which the next write begins another file.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Writes that wait for the disk together.
const MAILBOX: usize = 256;
/// Writes under way to the store while it is drained.
const UNDER_WAY_MAX: usize = 64;
/// How long the spool rests after it found the store away, at first and at most.
const REST: Duration = Duration::from_millis(200);
const REST_MAX: Duration = Duration::from_secs(5);

/// Gives the spool's writes to the store: the handle, as long as somebody has one.
pub(crate) type Drain = Box<dyn Fn() -> Option<crate::Storage> + Send + Sync>;

/// The way into the spool.
#[derive(Debug)]
pub(crate) struct Spool {
    mailbox: mpsc::Sender<Append>,
    facts: Arc<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    /// Bytes of all files.
    bytes: AtomicU64,
    /// The store was away when it was last asked.
    is_away: AtomicBool,
}

#[derive(Debug)]
struct Append {
    frame: Vec<u8>,
    kept: oneshot::Sender<Result<(), StorageError>>,
}

/// What stands before a document.
#[derive(Serialize, Deserialize)]
struct Head {
    collection: String,
    id: String,
    owner: Owner,
    /// Seconds from when it is stored; none for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expiry_s: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    keep_expiry: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    removal: bool,
}

impl Spool {
    /// Whether writes are to go here without asking the store first.
    pub(crate) fn is_away(&self) -> bool {
        self.facts.is_away.load(Ordering::Relaxed)
    }

    /// Keeps a write. It is on the disk when this says so.
    pub(crate) async fn keep(&self, write: &OwnedWrite) -> Result<(), StorageError> {
        self.facts.is_away.store(true, Ordering::Relaxed);
        let (kept, answer) = oneshot::channel();
        let append = Append { frame: frame(write), kept };
        self.mailbox.send(append).await.map_err(|_| StorageError::Closed)?;
        answer.await.map_err(|_| StorageError::Closed)?
    }
}

fn frame(write: &OwnedWrite) -> Vec<u8> {
    let head = Head {
        collection: write.key.collection().name().into(),
        id: write.key.id().into(),
        owner: write.owner,
        expiry_s: write.expiry.seconds(),
        keep_expiry: write.expiry == Expiry::Keep,
        removal: write.body.is_none(),
    };
    let head = serde_json::to_vec(&head).expect("texts and numbers are JSON");
    let body = write.body.as_ref().map(Body::bytes).map_or(&[][..], |body| body);
    let length =
        |bytes: usize| u32::try_from(bytes).expect("a document has 20 MiB at most").to_le_bytes();
    let mut frame = vec![0; 8];
    frame.extend_from_slice(&length(head.len()));
    frame.extend_from_slice(&head);
    frame.extend_from_slice(body);
    let sum = crc32fast::hash(&frame[8..]).to_le_bytes();
    let bytes = length(frame.len() - 8);
    frame[..4].copy_from_slice(&bytes);
    frame[4..8].copy_from_slice(&sum);
    frame
}

/// What a file holds.
#[derive(Debug, Default)]
struct Contents {
    writes: Vec<OwnedWrite>,
    /// Bytes behind the last whole frame.
    torn: usize,
    /// These are not the beginning of a frame that was never written to its end: something was kept, and is damaged.
    is_damaged: bool,
}

/// Reads a file up to its end, or to the first frame that is not whole.
fn read(path: &Path) -> io::Result<Contents> {
    let bytes = Bytes::from(std::fs::read(path)?);
    let mut contents = Contents { torn: bytes.len(), ..Contents::default() };
    if bytes.get(..8) != Some(&MAGIC[..]) {
        // A beginning of it is a file that was never begun.
        contents.is_damaged = !MAGIC.starts_with(&bytes);
        return Ok(contents);
    }
    let mut at = 8;
    contents.torn -= 8;
    while let Some((write, next)) = read_frame(&bytes, at) {
        contents.writes.push(write);
        at = next;
        contents.torn = bytes.len() - at;
    }
    let length = bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|length| u32::from_le_bytes(*length));
    contents.is_damaged = length.is_some_and(|length| {
        usize::try_from(length).is_ok_and(|length| (8..=contents.torn).contains(&(length + 8)))
    });
    Ok(contents)
}

fn read_frame(bytes: &Bytes, at: usize) -> Option<(OwnedWrite, usize)> {
    let number = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
    };
    let (length, sum) = (usize::try_from(number(at)?).ok()?, number(at + 4)?);
    let (begin, end) = (at + 8, (at + 8).checked_add(length)?);
    if length < 4 || crc32fast::hash(bytes.get(begin..end)?) != sum {
        return None;
    }
    let head_end = (begin + 4).checked_add(usize::try_from(number(begin)?).ok()?)?;
    let head: Head = serde_json::from_slice(bytes.get(begin + 4..head_end.min(end))?).ok()?;
    let key = Key::new(Collection::named(&head.collection)?, head.id).ok()?;
    let body = match head.removal {
        true => None,
        false => Some(Body::new(bytes.slice(head_end..end)).ok()?),
    };
    let expiry = match head.expiry_s {
        Some(seconds) => Expiry::After(Duration::from_secs(seconds)),
        None if head.keep_expiry => Expiry::Keep,
        None => Expiry::Never,
    };
    Some((OwnedWrite { key, owner: head.owner, body, expiry }, end))
}

/// The loop that owns the files.
#[derive(Debug)]
pub(crate) struct Keeper {
    folder: PathBuf,
    bytes_max: u64,
    mailbox: mpsc::Receiver<Append>,
    facts: Arc<Facts>,
    metrics: Arc<Metrics>,
    /// That no other process has the folder.
    _lock: File,
    /// Files that are not written any more, the oldest first, with their bytes.
    closed: VecDeque<(PathBuf, u64)>,
    open: Option<Open>,
    /// Number of the next file.
    next: u64,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: File,
    bytes: u64,
}

/// Opens the spool in a folder, which is made if it is not there.
pub(crate) fn open(
    folder: &Path,
    bytes_max: u64,
    metrics: Arc<Metrics>,
) -> Result<(Spool, Keeper), OpenError> {
    let refused = |why: ecow::EcoString| OpenError::File { file: folder.into(), why };
    let failed = |error: io::Error| {
        refused(eco_format!(
            "the spool can't be opened ({error}): choose another data folder with --data, or mend its rights"
        ))
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let lock =
        OpenOptions::new().write(true).create(true).truncate(false).open(folder.join("lock"));
    let lock = lock.map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(OpenError::SpoolInUse { folder: folder.into() });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let mut closed = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("spool-")?.strip_suffix(".log")?.parse().ok());
        if let Some(number) = number {
            let number: u64 = number;
            closed.insert(number, (entry.path(), entry.metadata().map_err(failed)?.len()));
        }
    }
    let next = closed.last_key_value().map_or(1, |(number, _)| number + 1);
    let facts = Arc::new(Facts::default());
    facts.bytes.store(closed.values().map(|(_, bytes)| bytes).sum(), Ordering::Relaxed);
    let (mailbox, appends) = mpsc::channel(MAILBOX);
    let keeper = Keeper {
        folder: folder.into(),
        bytes_max,
        mailbox: appends,
        facts: facts.clone(),
        metrics,
        _lock: lock,
        closed: closed.into_values().collect(),
        open: None,
        next,
    };
    Ok((Spool { mailbox, facts }, keeper))
}

/// What became of a drained file.
enum Drained {
    Whole,
    /// The store is away: the file stays.
    Away,
    /// The storage is closed: the next start goes on.
    Closed,
}

impl Keeper {
    /// Keeps writes and drains them, until the stop.
    pub(crate) async fn run(mut self, storage: Drain, stop: CancellationToken) {
        let mut rest = REST;
        let mut appends = Vec::new();
        loop {
            let has_some = !self.closed.is_empty() || self.open.is_some();
            tokio::select! {
                () = stop.cancelled(), if !self.mailbox.is_closed() => self.mailbox.close(),
                count = self.mailbox.recv_many(&mut appends, MAILBOX) => {
                    if count == 0 {
                        break;
                    }
                    self = self.append(std::mem::take(&mut appends)).await;
                }
                () = tokio::time::sleep(rest), if has_some => {
                    rest = match self.drain(&storage).await {
                        Drained::Whole => REST,
                        Drained::Away => (rest * 2).min(REST_MAX),
                        // Nothing more can be stored; what comes is kept until the mailbox is closed.
                        Drained::Closed => REST_MAX,
                    };
                }
            }
        }
    }

    /// Writes frames and has them on the disk, off the storage's thread.
    async fn append(mut self, appends: Vec<Append>) -> Self {
        let written = tokio::task::spawn_blocking(move || {
            let (frames, kept): (Vec<_>, Vec<_>) =
                appends.into_iter().map(|append| (append.frame, append.kept)).unzip();
            let results = self.write(&frames);
            (self, kept.into_iter().zip(results).collect::<Vec<_>>())
        });
        let (keeper, answers) = written.await.expect("writing a file does not panic");
        for (kept, result) in answers {
            Metrics::add(
                if result.is_ok() {
                    &keeper.metrics.spooled
                } else {
                    &keeper.metrics.spool_refused
                },
                1,
            );
            if kept.send(result).is_err() {
                tracing::trace!("nobody waits for the spool any more");
            }
        }
        keeper
    }

    /// Each frame's outcome. What fits is written and synced together.
    fn write(&mut self, frames: &[Vec<u8>]) -> Vec<Result<(), StorageError>> {
        let mut fits = Vec::new();
        let mut left = self.bytes_max.saturating_sub(self.facts.bytes.load(Ordering::Relaxed));
        for frame in frames {
            let bytes = frame.len() as u64 + MAGIC.len() as u64;
            fits.push(bytes <= left);
            left = left.saturating_sub(if bytes <= left { bytes } else { 0 });
        }
        let together: Vec<u8> = frames
            .iter()
            .zip(&fits)
            .filter(|(_, fits)| **fits)
            .flat_map(|(frame, _)| frame)
            .copied()
            .collect();
        let outcome = if together.is_empty() { Ok(()) } else { self.write_synced(&together) };
        let failed = |error: &io::Error| {
            StorageError::Unavailable(eco_format!(
                "the store is away, and the spool in {} can't be written: {error}",
                self.folder.display()
            ))
        };
        let full = || {
            StorageError::Unavailable(eco_format!(
                "the store is away, and the spool is full (storage.spool_bytes_max = {})",
                self.bytes_max
            ))
        };
        let outcomes = fits.iter().map(|fits| match (fits, &outcome) {
            (false, _) => Err(full()),
            (true, Ok(())) => Ok(()),
            (true, Err(error)) => Err(failed(error)),
        });
        outcomes.collect()
    }

    fn write_synced(&mut self, frames: &[u8]) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|open| open.bytes >= FILE_BYTES_MAX) {
            self.close_file();
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin_file()?,
        };
        let before = open.bytes;
        let written = open.file.write_all(frames).and_then(|()| open.file.sync_data());
        if let Err(error) = written {
            // Whatever of it is on the disk was not said to be kept, and what comes next must not stand behind it.
            if let Err(error) = open.file.set_len(before) {
                tracing::warn!(%error, "the end of {} is not whole", open.path.display());
            }
            self.closed.push_back((open.path, before));
            return Err(error);
        }
        open.bytes += frames.len() as u64;
        self.facts.bytes.fetch_add(frames.len() as u64, Ordering::Relaxed);
        self.open = Some(open);
        Ok(())
    }

    fn begin_file(&mut self) -> io::Result<Open> {
        let path = self.folder.join(format!("spool-{:010}.log", self.next));
        let mut file = OpenOptions::new().append(true).create_new(true).open(&path)?;
        self.next += 1;
        file.write_all(&MAGIC)?;
        // Its name, too, is to be on the disk.
        File::open(&self.folder)?.sync_all()?;
        self.facts.bytes.fetch_add(MAGIC.len() as u64, Ordering::Relaxed);
        Ok(Open { path, file, bytes: MAGIC.len() as u64 })
    }

    fn close_file(&mut self) {
        if let Some(open) = self.open.take() {
            self.closed.push_back((open.path, open.bytes));
        }
    }

    /// Stores what is kept, the oldest file first.
    async fn drain(&mut self, storage: &Drain) -> Drained {
        // What comes from here on goes into another file.
        self.close_file();
        while let Some((path, bytes)) = self.closed.front().cloned() {
            let Some(storage) = storage() else { return Drained::Closed };
            let reading = path.clone();
            let contents = tokio::task::spawn_blocking(move || read(&reading)).await;
            let contents = match contents.expect("reading a file does not panic") {
                Ok(contents) => contents,
                Err(error) => {
                    tracing::error!(%error, "{} can't be read; it is tried again", path.display());
                    return Drained::Away;
                }
            };
            if contents.torn > 0 && !contents.is_damaged {
                tracing::warn!(
                    bytes = contents.torn,
                    "{} has an end that is not whole; it was never said to be kept",
                    path.display()
                );
            }
            let is_damaged = contents.is_damaged;
            match store(&storage, contents.writes, &self.metrics).await {
                Drained::Whole => {}
                other => return other,
            }
            let left = if is_damaged {
                let aside = path.with_extension("damaged");
                tracing::error!(
                    "{} is damaged: what stands before that is stored, the whole is kept as {}",
                    path.display(),
                    aside.display()
                );
                Metrics::add(&self.metrics.spool_damaged, 1);
                std::fs::rename(&path, aside)
            } else {
                std::fs::remove_file(&path)
            };
            if let Err(error) = left {
                // Harmless, since draining it again changes nothing.
                tracing::warn!(%error, "{} is drained and can't be put away", path.display());
                return Drained::Away;
            }
            self.closed.pop_front();
            self.facts.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.facts.is_away.store(false, Ordering::Relaxed);
        Drained::Whole
    }
}

/// Stores a file's writes: of each key the newest, keys at the same time.
async fn store(storage: &crate::Storage, writes: Vec<OwnedWrite>, metrics: &Metrics) -> Drained {
    let mut newest: BTreeMap<Key, OwnedWrite> = BTreeMap::new();
    for write in writes {
        match newest.get(&write.key) {
            // Never the older over the newer, in whatever order they came.
            Some(other) if other.owner > write.owner => {}
            _ => {
                newest.insert(write.key.clone(), write);
            }
        }
    }
    let mut under_way = VecDeque::new();
    let mut left = newest.into_values();
    loop {
        while under_way.len() < UNDER_WAY_MAX
            && let Some(write) = left.next()
        {
            match storage.submit(Write::from(write)).await {
                Ok(ticket) => under_way.push_back(ticket),
                Err(StorageError::Closed) => return Drained::Closed,
                Err(_) => return Drained::Away,
            }
        }
        let Some(ticket) = under_way.pop_front() else { return Drained::Whole };
        match ticket.await {
            Ok(_) => Metrics::add(&metrics.drained, 1),
            // Somebody newer has written meanwhile: the lane has counted and logged it.
            Err(StorageError::Deposed { .. }) => {}
            Err(StorageError::Closed) => return Drained::Closed,
            Err(error) => {
                tracing::warn!(%error, "the spool is not drained yet");
                return Drained::Away;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(id: &str, n: u64, body: Option<&str>) -> OwnedWrite {
        OwnedWrite {
            key: Key::new(Collection::Snapshots, id).unwrap(),
            owner: Owner::Instance { incarnation: 1, n },
            body: body.map(|body| Body::new(body.to_owned()).unwrap()),
            expiry: Expiry::After(Duration::from_secs(n + 1)),
        }
    }

    proptest! {
        #[test]
        fn whatever_is_torn_or_broken_what_stands_before_it_is_read(
            cut in 0..4_000usize, flipped in prop::option::of(0..4_000usize),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("spool");
            let mut bytes = MAGIC.to_vec();
            let mut ends = Vec::new();
            for n in 0..12 {
                bytes.extend(frame(&write("a", n, Some("{\"text\":\"äöü, some text that makes it longer\"}"))));
                ends.push(bytes.len());
            }
            bytes.extend(frame(&write("a", 12, None)));
            ends.push(bytes.len());
            bytes.truncate(cut.max(8));
            let mut whole = ends.iter().filter(|end| **end <= bytes.len()).count();
            if let Some(at) = flipped.filter(|at| *at < bytes.len()) {
                bytes[at] ^= 0x10;
                whole = whole.min(ends.iter().filter(|end| **end <= at).count());
                if at < 8 { whole = 0; }
            }
            std::fs::write(&path, &bytes).unwrap();
            let contents = read(&path).unwrap();
            prop_assert_eq!(contents.writes.len(), whole);
            if flipped.is_none_or(|at| at >= bytes.len()) {
                prop_assert!(!contents.is_damaged, "a torn end is no damage");
            }
            for (n, write) in contents.writes.iter().enumerate() {
                prop_assert_eq!(write.owner, Owner::Instance { incarnation: 1, n: n as u64 });
                prop_assert_eq!(write.expiry, Expiry::After(Duration::from_secs(n as u64 + 1)));
            }
        }
    }
}
