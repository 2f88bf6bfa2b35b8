//! The log's files, and what of it is durable.
//!
//! A log is a row of segments. The entries of one follow those of the one before; if a segment begins earlier than the
//! one before ended, the entries that both have are the same: that is what a sync that failed leaves behind.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use greenroom_master_core::replica::Position;

use super::files::{Calls, create, reserve};
use super::format::{Header, LOG};

/// Length of a segment after which another one is begun.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Room that is asked for at once, so that most syncs need not write down a new length.
const STEP_BYTES: u64 = 16 << 20;
/// Bytes that are kept in memory until they are durable, in case they have to be written again. Far above what a disk
/// that works is behind by.
const UNSYNCED_BYTES_MAX: usize = 256 << 20;

/// What the file is called that is segment `number` of this generation.
pub(super) fn name(generation: u32, number: u32) -> String {
    format!("log-{generation:08x}-{number:08x}")
}

/// What [`name`] says.
pub(super) fn parse_name(name: &str) -> Option<(u32, u32)> {
    let (generation, number) = name.strip_prefix("log-")?.split_once('-')?;
    Some((u32::from_str_radix(generation, 16).ok()?, u32::from_str_radix(number, 16).ok()?))
}

/// Entries as they are in the file.
#[derive(Debug)]
pub(super) struct Frames {
    pub(super) bytes: Vec<u8>,
    /// Where the log ends with them.
    pub(super) last: Position,
}

/// A change of the log's files, in the order of the log.
#[derive(Clone, Debug)]
pub(super) enum Put {
    /// Entries that follow.
    Frames(Arc<Frames>),
    /// A segment begins, so that the ones before can go when a checkpoint has what is in them.
    Segment,
    /// Another log begins here. It counts when the checkpoint is durable that it continues.
    Generation(Position),
}

impl Put {
    /// How much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Frames(frames) => frames.bytes.len(),
            Self::Segment | Self::Generation(_) => 0,
        }
    }
}

/// A segment of the log.
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) start: Position,
    /// Number of its last entry.
    pub(super) last: u64,
    file: Option<Arc<File>>,
    end: u64,
    reserved: u64,
    /// Its newest frames are not durable before these are.
    ordinal: u64,
}

impl Segment {
    /// One that is durable, and that nothing is written to any more.
    pub(super) fn old(path: PathBuf, start: Position, last: u64) -> Self {
        Self { path, start, last, file: None, end: 0, reserved: 0, ordinal: 0 }
    }
}

/// One generation of the log.
struct Tail {
    generation: u32,
    /// Number of the next segment.
    number: u32,
    segments: Vec<Segment>,
    last: Position,
    /// How many frames there have been.
    written: u64,
    /// The last of them that is durable, and where the log was then.
    synced: (u64, Position),
    unsynced: VecDeque<(u64, Arc<Frames>)>,
    unsynced_bytes: usize,
    /// The last frames that are not kept in memory although they may not be durable.
    dropped: u64,
    /// A sync failed: nothing counts before `unsynced` stands in another segment.
    is_doubtful: bool,
    /// Segments below this number are in the folder durably.
    in_folder: u32,
}

/// The log of one folder.
pub(super) struct Log {
    folder: PathBuf,
    calls: Arc<dyn Calls>,
    /// The last is the one that is written to; others are those that count until its checkpoint is durable.
    tails: Vec<Tail>,
}

/// What was written when a sync began.
pub(super) struct Capture {
    pub(super) files: Vec<Arc<File>>,
    pub(super) is_folder_dirty: bool,
    tails: Vec<Reached>,
}

/// How far a generation was.
struct Reached {
    generation: u32,
    written: u64,
    last: Position,
    number: u32,
}

/// What can't be made durable any more, since it is not in memory either.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone;

impl Log {
    /// The log as it was found, with a new segment to write to.
    pub(super) fn open(
        folder: &Path,
        calls: Arc<dyn Calls>,
        generation: u32,
        number: u32,
        segments: Vec<Segment>,
        last: Position,
    ) -> io::Result<Self> {
        let mut tail = Tail::new(generation, number, last);
        tail.segments = segments;
        tail.begin_segment(folder, &*calls, last)?;
        Ok(Self { folder: folder.into(), calls, tails: vec![tail] })
    }

    fn current(&mut self) -> &mut Tail {
        self.tails.last_mut().expect("there is always a generation that is written to")
    }

    /// Number of the last entry that is durable in this generation.
    pub(super) fn synced(&self, generation: u32) -> u64 {
        let tail = self.tails.iter().find(|tail| tail.generation == generation);
        tail.map_or(0, |tail| tail.synced.1.lsn)
    }

    /// Performs a change. If it fails nothing has happened, and it can be repeated.
    pub(super) fn put(&mut self, put: &Put) -> io::Result<()> {
        let (folder, calls) = (self.folder.clone(), Arc::clone(&self.calls));
        let tail = self.current();
        if tail.is_doubtful {
            return Err(io::Error::other("a sync failed"));
        }
        match put {
            Put::Frames(frames) => tail.append(&folder, &*calls, frames),
            Put::Segment => {
                let has_entries = tail.segments.last().is_none_or(|s| s.last > s.start.lsn);
                if has_entries { tail.begin_segment(&folder, &*calls, tail.last) } else { Ok(()) }
            }
            Put::Generation(at) => {
                let mut next = Tail::new(tail.generation + 1, 0, *at);
                next.begin_segment(&folder, &*calls, *at)?;
                self.tails.push(next);
                Ok(())
            }
        }
    }

    /// What a sync has to do now.
    pub(super) fn capture(&self) -> Capture {
        let dirty = self.tails.iter().flat_map(|tail| {
            let is_dirty = |segment: &&Segment| segment.ordinal > tail.synced.0;
            tail.segments.iter().filter(is_dirty).filter_map(|segment| segment.file.clone())
        });
        Capture {
            files: dirty.collect(),
            is_folder_dirty: self.tails.iter().any(|tail| tail.number > tail.in_folder),
            tails: self.tails.iter().map(Tail::reached).collect(),
        }
    }

    /// The sync has succeeded.
    pub(super) fn confirm(&mut self, capture: &Capture) {
        for Reached { generation, written, last, number } in &capture.tails {
            let Some(tail) = self.tails.iter_mut().find(|t| t.generation == *generation) else {
                continue;
            };
            tail.synced = (*written, *last);
            tail.in_folder = *number;
            while let Some((_, frames)) = tail.unsynced.pop_front_if(|(at, _)| *at <= *written) {
                tail.unsynced_bytes -= frames.bytes.len();
            }
            if let Some((_, old)) = tail.segments.split_last_mut() {
                for segment in old.iter_mut().filter(|segment| segment.ordinal <= *written) {
                    segment.file = None;
                }
            }
        }
    }

    /// A sync has failed. What it left behind in the system's memory counts for written and is not: a second sync would
    /// succeed and prove nothing. So everything that is not known to be durable is written again, to another segment.
    pub(super) fn distrust(&mut self) {
        for tail in &mut self.tails {
            tail.is_doubtful |= tail.written > tail.synced.0;
        }
    }

    /// Writes again what [`Self::distrust`] says; to be repeated if it fails.
    pub(super) fn rewrite(&mut self) -> Result<io::Result<()>, Gone> {
        for tail in &mut self.tails {
            if !tail.is_doubtful {
                continue;
            }
            if tail.dropped > tail.synced.0 {
                return Err(Gone);
            }
            if let Err(error) = tail.rewrite(&self.folder, &*self.calls) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    /// A checkpoint is durable: gives the files that nobody needs any more.
    pub(super) fn forget(&mut self, generation: u32, at: Position) -> Vec<PathBuf> {
        let mut over = Vec::new();
        self.tails.retain(|tail| {
            let is_over = tail.generation < generation;
            if is_over {
                over.extend(tail.segments.iter().map(|segment| segment.path.clone()));
            }
            !is_over
        });
        if let Some(tail) = self.tails.iter_mut().find(|tail| tail.generation == generation) {
            let sealed = tail.segments.len().saturating_sub(1);
            let covered =
                tail.segments.iter().take(sealed).take_while(|s| s.last <= at.lsn).count();
            over.extend(tail.segments.drain(..covered).map(|segment| segment.path));
        }
        over
    }
}

impl Tail {
    fn new(generation: u32, number: u32, last: Position) -> Self {
        Self {
            generation,
            number,
            segments: Vec::new(),
            last,
            written: 0,
            synced: (0, last),
            unsynced: VecDeque::new(),
            unsynced_bytes: 0,
            dropped: 0,
            is_doubtful: false,
            in_folder: 0,
        }
    }

    fn reached(&self) -> Reached {
        let &Self { generation, written, last, number, .. } = self;
        Reached { generation, written, last, number }
    }

    fn begin_segment(
        &mut self,
        folder: &Path,
        calls: &dyn Calls,
        start: Position,
    ) -> io::Result<()> {
        let path = folder.join(name(self.generation, self.number));
        let file = create(&path)?;
        let header = Header { generation: self.generation, at: start, synced: self.synced.1.lsn };
        if let Err(error) = calls.write_at(&file, &header.bytes(LOG), 0) {
            let _it_is_empty = std::fs::remove_file(&path);
            return Err(error);
        }
        let end = Header::BYTES as u64;
        let reserved = if reserve(&file, end, STEP_BYTES) { STEP_BYTES } else { end };
        self.number += 1;
        let (last, file) = (start.lsn, Some(Arc::new(file)));
        self.segments.push(Segment { path, start, last, file, end, reserved, ordinal: 0 });
        Ok(())
    }

    fn append(&mut self, folder: &Path, calls: &dyn Calls, frames: &Arc<Frames>) -> io::Result<()> {
        if self.segments.last().is_none_or(|segment| segment.end >= SEGMENT_BYTES) {
            self.begin_segment(folder, calls, self.last)?;
        }
        let ordinal = self.written + 1;
        self.write(calls, frames, ordinal)?;
        self.written = ordinal;
        self.last = frames.last;
        self.unsynced_bytes += frames.bytes.len();
        self.unsynced.push_back((ordinal, Arc::clone(frames)));
        if self.unsynced_bytes > UNSYNCED_BYTES_MAX {
            // They stand in the file. Only if a sync fails now they are gone.
            self.dropped = ordinal;
            self.unsynced.clear();
            self.unsynced_bytes = 0;
        }
        Ok(())
    }

    /// Writes frames to the last segment.
    fn write(&mut self, calls: &dyn Calls, frames: &Frames, ordinal: u64) -> io::Result<()> {
        let Some((segment, file)) = self.segments.last_mut().and_then(|segment| {
            let file = segment.file.clone()?;
            Some((segment, file))
        }) else {
            return Err(io::Error::other("there is no segment to write to"));
        };
        let end = segment.end + frames.bytes.len() as u64;
        if end > segment.reserved && reserve(&file, segment.reserved, end + STEP_BYTES) {
            segment.reserved = end + STEP_BYTES;
        }
        calls.write_at(&file, &frames.bytes, segment.end)?;
        segment.end = end;
        segment.last = frames.last.lsn;
        segment.ordinal = ordinal;
        Ok(())
    }

    fn rewrite(&mut self, folder: &Path, calls: &dyn Calls) -> io::Result<()> {
        let (synced, start) = self.synced;
        let before = self.segments.len();
        self.begin_segment(folder, calls, start)?;
        for (ordinal, frames) in self.unsynced.clone() {
            if let Err(error) = self.write(calls, &frames, ordinal) {
                if let Some(segment) = self.segments.pop() {
                    let _leftover = std::fs::remove_file(segment.path);
                }
                return Err(error);
            }
        }
        // Those that only have what stands in the new one go away. One that has older entries stays, but no sync asks
        // for what else is in it.
        let mut number = 0;
        self.segments.retain_mut(|segment| {
            number += 1;
            let is_doubtful = number <= before && segment.ordinal > synced;
            let is_repeated = is_doubtful && segment.start.lsn >= start.lsn;
            if is_doubtful {
                segment.ordinal = synced;
                segment.file = None;
            }
            if is_repeated {
                let _leftover = std::fs::remove_file(&segment.path);
            }
            !is_repeated
        });
        self.is_doubtful = false;
        Ok(())
    }
}
