//! The spool: owners' writes on this machine's disk while the store is away, and their way into it when it is back.
//!
//! A file begins with [`MAGIC`]. Frames follow: length u32, CRC-32 u32 of these four bytes, CRC-32 u32 of what follows,
//! then that many bytes: the length of a head (u32), the head as JSON (key, owner, expiry), and the document. A write
//! is kept when its frame is on the disk. Files are drained oldest first and removed when everything in them is stored,
//! or has been refused by the store because somebody newer wrote: the owner's numbers fence, so that draining one
//! twice, or after newer writes, changes nothing. A torn end was never said to be kept, and is left out. A file with
//! damage is set aside once the whole frames around the damage are stored.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ecow::eco_format;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::request::OwnedWrite;
use crate::{Body, Collection, Expiry, Key, Metrics, OpenError, Owner, StorageError, Write};

/// First bytes of a file; the digit is its format.
const MAGIC: [u8; 8] = *b"GRSPOOL1";
/// Bytes before what a frame holds: its length and two sums.
const FRAME_HEAD: usize = 12;
/// Bytes after which the next write begins another file.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Writes that wait for the disk together. Their bytes count as those of the spool from the moment that they wait.
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
    folder: PathBuf,
    bytes_max: u64,
    mailbox: mpsc::Sender<Append>,
    facts: Arc<Facts>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Facts {
    /// Writes on their way to the disk.
    on_their_way: AtomicU64,
    /// There is something in the files.
    holds_some: AtomicBool,
}

#[derive(Debug)]
struct Append {
    frame: Vec<u8>,
    kept: oneshot::Sender<Result<(), StorageError>>,
}

/// Counts a write that is on its way, also where who asked has gone.
struct OnItsWay<'a>(&'a Facts);

impl<'a> OnItsWay<'a> {
    fn new(facts: &'a Facts) -> Self {
        facts.on_their_way.fetch_add(1, Ordering::SeqCst);
        Self(facts)
    }
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        self.0.on_their_way.fetch_sub(1, Ordering::SeqCst);
    }
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
    /// Whether writes are to go here without asking the store first: as long as it holds some, so that those of a key
    /// reach the store in their order.
    pub(crate) fn is_in_use(&self) -> bool {
        self.facts.on_their_way.load(Ordering::SeqCst) > 0
            || self.facts.holds_some.load(Ordering::SeqCst)
    }

    /// Keeps a write. It is on the disk when this says so.
    pub(crate) async fn keep(&self, write: &OwnedWrite) -> Result<(), StorageError> {
        let _on_its_way = OnItsWay::new(&self.facts);
        let frame = frame(write);
        let bytes = counted(&frame);
        let reserve = |held: u64| held.checked_add(bytes).filter(|held| *held <= self.bytes_max);
        let reserved =
            self.metrics.spool_bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, reserve);
        if reserved.is_err() {
            Metrics::add(&self.metrics.spool_refused, 1);
            return Err(StorageError::Unavailable(eco_format!(
                "the store is away, and the spool in {} is full (storage.spool_bytes_max = {})",
                self.folder.display(),
                self.bytes_max
            )));
        }
        let (kept, answer) = oneshot::channel();
        let sent = self.mailbox.send(Append { frame, kept }).await;
        if sent.is_err() {
            self.metrics.spool_bytes.fetch_sub(bytes, Ordering::SeqCst);
            return Err(StorageError::Closed);
        }
        answer.await.map_err(|_| StorageError::Closed)?
    }
}

/// Bytes that a frame counts for: as if it had a file of its own.
fn counted(frame: &[u8]) -> u64 {
    (frame.len() + MAGIC.len()) as u64
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
    let mut frame = vec![0; FRAME_HEAD];
    frame.extend_from_slice(&length(head.len()));
    frame.extend_from_slice(&head);
    frame.extend_from_slice(body);
    let sum = crc32fast::hash(&frame[FRAME_HEAD..]).to_le_bytes();
    let bytes = length(frame.len() - FRAME_HEAD);
    frame[..4].copy_from_slice(&bytes);
    frame[4..8].copy_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    frame[8..12].copy_from_slice(&sum);
    frame
}

/// What a file holds.
#[derive(Debug, Default)]
struct Contents {
    writes: Vec<OwnedWrite>,
    /// Bytes of an end that was never written whole: nobody was told that it is kept.
    torn: usize,
    /// Something that was kept can't be read.
    is_damaged: bool,
}

/// What stands at a place in a file.
enum Frame {
    Whole(Box<OwnedWrite>, usize),
    /// It would be longer than the file is.
    Torn,
    Damaged,
}

/// Reads every whole frame of a file.
fn read(path: &Path) -> io::Result<Contents> {
    let bytes = Bytes::from(std::fs::read(path)?);
    let mut contents = Contents::default();
    let mut at = MAGIC.len();
    if bytes.get(..at) != Some(&MAGIC[..]) {
        if MAGIC.starts_with(&bytes) {
            contents.torn = bytes.len();
            return Ok(contents);
        }
        contents.is_damaged = true;
    }
    while at < bytes.len() {
        match frame_at(&bytes, at) {
            Frame::Whole(write, end) => {
                contents.writes.push(*write);
                at = end;
            }
            Frame::Torn => {
                contents.torn = bytes.len() - at;
                break;
            }
            Frame::Damaged => {
                contents.is_damaged = true;
                // The next place with a whole frame. The sum of its length makes one by chance rare.
                let next = (at + 1..bytes.len())
                    .find(|at| matches!(frame_at(&bytes, *at), Frame::Whole(..)));
                at = next.unwrap_or(bytes.len());
            }
        }
    }
    Ok(contents)
}

fn frame_at(bytes: &Bytes, at: usize) -> Frame {
    let Some(head) = bytes.get(at..at + FRAME_HEAD) else { return Frame::Torn };
    let number =
        |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if crc32fast::hash(&head[..4]) != number(4) {
        return Frame::Damaged;
    }
    let begin = at + FRAME_HEAD;
    let end = usize::try_from(number(0)).ok().and_then(|length| begin.checked_add(length));
    let Some(held) = end.and_then(|end| bytes.get(begin..end)) else { return Frame::Torn };
    if crc32fast::hash(held) != number(8) {
        return Frame::Damaged;
    }
    let end = begin + held.len();
    match write_in(&bytes.slice(begin..end)) {
        Some(write) => Frame::Whole(Box::new(write), end),
        None => Frame::Damaged,
    }
}

/// The write that a frame holds.
fn write_in(held: &Bytes) -> Option<OwnedWrite> {
    let (length, rest) = held.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let head: Head = serde_json::from_slice(rest.get(..length)?).ok()?;
    let key = Key::new(Collection::named(&head.collection)?, head.id).ok()?;
    let body = match head.removal {
        true => None,
        false => Some(Body::new(held.slice(4 + length..)).ok()?),
    };
    let expiry = match head.expiry_s {
        Some(seconds) => Expiry::After(Duration::from_secs(seconds)),
        None if head.keep_expiry => Expiry::Keep,
        None => Expiry::Never,
    };
    Some(OwnedWrite { key, owner: head.owner, body, expiry })
}

/// The loop that owns the files.
#[derive(Debug)]
pub(crate) struct Keeper {
    files: Files,
    mailbox: mpsc::Receiver<Append>,
}

/// The files, which one thread at a time writes.
#[derive(Debug)]
struct Files {
    folder: PathBuf,
    facts: Arc<Facts>,
    metrics: Arc<Metrics>,
    /// That no other process has the folder.
    _lock: File,
    /// Files that are not written any more, the oldest first, with the bytes that they count for.
    closed: VecDeque<(PathBuf, u64)>,
    open: Option<Open>,
    /// Number of the next file.
    next: u64,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: File,
    /// Bytes in it.
    length: u64,
    /// Bytes that it counts for.
    counts: u64,
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
    metrics.spool_bytes.store(closed.values().map(|(_, bytes)| bytes).sum(), Ordering::SeqCst);
    facts.holds_some.store(!closed.is_empty(), Ordering::SeqCst);
    let (to_mailbox, mailbox) = mpsc::channel(MAILBOX);
    let files = Files {
        folder: folder.into(),
        facts: facts.clone(),
        metrics: metrics.clone(),
        _lock: lock,
        closed: closed.into_values().collect(),
        open: None,
        next,
    };
    let spool = Spool { folder: folder.into(), bytes_max, mailbox: to_mailbox, facts, metrics };
    Ok((spool, Keeper { files, mailbox }))
}

/// What became of a file that was drained.
enum Drained {
    /// Everything in it is stored, or somebody newer has written.
    Whole,
    /// The same, but for what can't be read or will never be taken: the file is set aside.
    InPart,
    /// The store is away: the file stays.
    Away,
    /// The storage is closed: the next start goes on.
    Closed,
}

/// A file on its way into the store.
type Draining = Pin<Box<dyn Future<Output = Drained> + Send>>;

impl Keeper {
    /// Keeps writes and drains them, until the stop. What comes while a file is drained is kept meanwhile.
    pub(crate) async fn run(self, storage: Drain, stop: CancellationToken) {
        let Self { mut files, mut mailbox } = self;
        let (mut rest, mut next) = (REST, Instant::now());
        let mut draining: Option<Draining> = None;
        let mut appends = Vec::new();
        loop {
            tokio::select! {
                () = stop.cancelled(), if !mailbox.is_closed() => mailbox.close(),
                count = mailbox.recv_many(&mut appends, MAILBOX) => {
                    if count == 0 {
                        // What is not drained yet goes on at the next start.
                        break;
                    }
                    files = files.append(std::mem::take(&mut appends)).await;
                }
                () = tokio::time::sleep_until(next), if draining.is_none() && files.hold_some() => {
                    draining = files.oldest().zip(storage()).map(|(file, storage)| -> Draining {
                        Box::pin(drain(file, storage, files.metrics.clone()))
                    });
                    next = Instant::now() + rest;
                }
                drained = finished(&mut draining), if draining.is_some() => {
                    draining = None;
                    let is_away = match drained {
                        Drained::Whole => !files.put_away(false),
                        Drained::InPart => !files.put_away(true),
                        Drained::Away | Drained::Closed => true,
                    };
                    rest = if is_away { (rest * 2).min(REST_MAX) } else { REST };
                    next = Instant::now() + if is_away { rest } else { Duration::ZERO };
                }
            }
        }
    }
}

/// Waits for a file that is drained.
async fn finished(draining: &mut Option<Draining>) -> Drained {
    match draining {
        Some(draining) => draining.await,
        None => std::future::pending().await,
    }
}

impl Files {
    fn hold_some(&self) -> bool {
        !self.closed.is_empty() || self.open.is_some()
    }

    /// The file that is drained next; what comes from here on goes into another.
    fn oldest(&mut self) -> Option<PathBuf> {
        if self.closed.is_empty() {
            self.close_file();
        }
        self.closed.front().map(|(path, _)| path.clone())
    }

    /// Writes frames and has them on the disk, off the storage's thread.
    async fn append(mut self, appends: Vec<Append>) -> Self {
        let written = tokio::task::spawn_blocking(move || {
            let frames: Vec<&[u8]> = appends.iter().map(|append| &append.frame[..]).collect();
            let result = self.write_synced(&frames);
            (self, appends, result)
        });
        let (files, appends, result) = written.await.expect("writing a file does not panic");
        let result = result.map_err(|error| {
            StorageError::Unavailable(eco_format!(
                "the store is away, and the spool in {} can't be written: {error}",
                files.folder.display()
            ))
        });
        let counter =
            if result.is_ok() { &files.metrics.spooled } else { &files.metrics.spool_refused };
        Metrics::add(counter, appends.len() as u64);
        for append in appends {
            if append.kept.send(result.clone()).is_err() {
                tracing::trace!("nobody waits for the spool any more");
            }
        }
        files
    }

    /// Writes all of them, or none. Their bytes are counted already.
    fn write_synced(&mut self, frames: &[&[u8]]) -> io::Result<()> {
        let counts = frames.iter().map(|frame| counted(frame)).sum::<u64>();
        let written = self.write_at_end(&frames.concat(), counts);
        if written.is_err() {
            self.metrics.spool_bytes.fetch_sub(counts, Ordering::SeqCst);
        }
        written
    }

    fn write_at_end(&mut self, bytes: &[u8], counts: u64) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|open| open.length >= FILE_BYTES_MAX) {
            self.close_file();
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin_file()?,
        };
        let written = open.file.write_all(bytes).and_then(|()| open.file.sync_data());
        if let Err(error) = written {
            // Whatever of it is on the disk was not said to be kept, and what comes next must not stand behind it.
            if let Err(error) = open.file.set_len(open.length) {
                tracing::warn!(%error, "the end of {} is not whole", open.path.display());
            }
            if open.counts == 0 {
                remove(&open.path);
            } else {
                self.closed.push_back((open.path, open.counts));
            }
            return Err(error);
        }
        open.length += bytes.len() as u64;
        open.counts += counts;
        self.open = Some(open);
        self.facts.holds_some.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn begin_file(&mut self) -> io::Result<Open> {
        let path = self.folder.join(format!("spool-{:010}.log", self.next));
        let mut file = OpenOptions::new().append(true).create_new(true).open(&path)?;
        self.next += 1;
        // Its name, too, is to be on the disk.
        let begun = file.write_all(&MAGIC).and_then(|()| File::open(&self.folder)?.sync_all());
        if let Err(error) = begun {
            remove(&path);
            return Err(error);
        }
        Ok(Open { path, file, length: MAGIC.len() as u64, counts: 0 })
    }

    fn close_file(&mut self) {
        if let Some(open) = self.open.take() {
            self.closed.push_back((open.path, open.counts));
        }
    }

    /// Removes the oldest file, or sets it aside. Whether that was possible.
    fn put_away(&mut self, is_kept: bool) -> bool {
        let Some((path, counts)) = self.closed.front() else { return true };
        let put_away = if is_kept {
            let aside = path.with_extension("damaged");
            tracing::error!(
                "{} has what can't be stored: the rest of it is stored, the whole is kept as {}",
                path.display(),
                aside.display()
            );
            Metrics::add(&self.metrics.spool_damaged, 1);
            std::fs::rename(path, aside)
        } else {
            std::fs::remove_file(path)
        };
        if let Err(error) = put_away {
            // Harmless, since draining it again changes nothing.
            tracing::warn!(%error, "{} is drained and can't be put away", path.display());
            return false;
        }
        self.metrics.spool_bytes.fetch_sub(*counts, Ordering::SeqCst);
        self.closed.pop_front();
        self.facts.holds_some.store(self.hold_some(), Ordering::SeqCst);
        true
    }
}

/// Removes a file that nothing was kept in.
fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(%error, "{} holds nothing and stays", path.display());
    }
}

/// Stores what a file holds.
async fn drain(path: PathBuf, storage: crate::Storage, metrics: Arc<Metrics>) -> Drained {
    let reading = path.clone();
    let contents = tokio::task::spawn_blocking(move || read(&reading)).await;
    let contents = match contents.expect("reading a file does not panic") {
        Ok(contents) => contents,
        Err(error) => {
            tracing::error!(%error, "{} can't be read; it is tried again", path.display());
            return Drained::Away;
        }
    };
    if contents.torn > 0 {
        tracing::warn!(
            bytes = contents.torn,
            "{} has an end that is not whole; it was never said to be kept",
            path.display()
        );
    }
    match store(&storage, contents.writes, &metrics).await {
        Drained::Whole if contents.is_damaged => Drained::InPart,
        drained @ (Drained::Whole | Drained::InPart | Drained::Away | Drained::Closed) => drained,
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
    let mut drained = Drained::Whole;
    let mut under_way = VecDeque::new();
    let mut left = newest.into_values();
    loop {
        let answer = match left.next() {
            Some(write) => match storage.submit(Write::from(write)).await {
                Ok(ticket) => {
                    under_way.push_back(ticket);
                    match under_way.len() < UNDER_WAY_MAX {
                        true => continue,
                        false => under_way.pop_front().expect("it is not empty").await.map(drop),
                    }
                }
                Err(error) => Err(error),
            },
            None => match under_way.pop_front() {
                Some(ticket) => ticket.await.map(drop),
                None => return drained,
            },
        };
        match answer {
            Ok(()) => Metrics::add(&metrics.drained, 1),
            // Somebody newer has written meanwhile: the lane has counted and logged it.
            Err(StorageError::Deposed { .. }) => {}
            Err(StorageError::Closed) => return Drained::Closed,
            // No later attempt would be taken either.
            Err(error @ (StorageError::TooLarge { .. } | StorageError::NotJson(_))) => {
                tracing::error!(%error, "a write of the spool can't be stored");
                drained = Drained::InPart;
            }
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
        /// Method: frames in a file that is cut somewhere and has one bit turned over somewhere; what is read is what
        /// the whole frames hold, and nothing that was kept is missing without a word.
        #[test]
        fn whatever_is_torn_or_broken_every_other_frame_is_read(
            cut in 8..4_000usize, flipped in prop::option::of(0..4_000usize),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("spool");
            let mut bytes = MAGIC.to_vec();
            let mut ends = vec![bytes.len()];
            for n in 0..13 {
                let body = (n < 12).then_some("{\"text\":\"äöü, some text that makes it longer\"}");
                bytes.extend(frame(&write("a", n, body)));
                ends.push(bytes.len());
            }
            bytes.truncate(cut);
            let whole = ends.iter().filter(|end| **end <= bytes.len()).count() - 1;
            let flipped = flipped.filter(|at| *at < bytes.len());
            // Which frame it is in; none for the first bytes of the file.
            let broken = flipped.and_then(|at| ends.iter().filter(|end| **end <= at).count().checked_sub(1));
            if let Some(at) = flipped {
                bytes[at] ^= 0x10;
            }
            std::fs::write(&path, &bytes).unwrap();
            let contents = read(&path).unwrap();
            let read: Vec<u64> = contents
                .writes
                .iter()
                .map(|write| match write.owner {
                    Owner::Instance { n, .. } => n,
                    Owner::Master { .. } => panic!("nobody wrote that"),
                })
                .collect();
            let kept: Vec<u64> =
                (0..whole).filter(|n| Some(*n) != broken).map(|n| n as u64).collect();
            prop_assert_eq!(read, kept);
            for write in &contents.writes {
                let Owner::Instance { n, .. } = write.owner else { panic!("seen above") };
                prop_assert_eq!(write.expiry, Expiry::After(Duration::from_secs(n + 1)));
                prop_assert_eq!(write.body.is_none(), n == 12);
            }
            if flipped.is_none() {
                prop_assert!(!contents.is_damaged, "a torn end is no damage");
                prop_assert_eq!(contents.torn, bytes.len() - ends[whole]);
            } else if broken.is_none_or(|broken| broken < whole) {
                prop_assert!(contents.is_damaged, "what was kept is missing, and nobody is told");
            }
        }
    }
}
