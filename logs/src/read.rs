//! Reading what is written: each process's lines in order, all processes' in the order of time, and their tail.

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

use ecow::EcoString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    LogsError,
    event::LINE_BYTES_MAX,
    id::{ID_CHARS, time_of_id},
    segment::{self, Segment, open_file, whole_lines},
};

/// What is read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// How every line begins.
const BEGINNING: &[u8] = b"{\"id\":\"";
/// How far a time may be behind the start of its segment: what two masters know is told by either.
const LATE_MS: u64 = 60_000;

/// A place in the log: everything before it is done with.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The folder of the process.
    pub process: EcoString,
    /// Number of the segment.
    pub segment: u64,
    /// Bytes of its lines before this place, uncompressed: closing a segment changes no position.
    pub offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}/{}", self.process, self.segment, self.offset)
    }
}

/// A text that is no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a position is PROCESS/SEGMENT/OFFSET, such as session-1/7/1024")]
pub struct NotAPosition;

impl FromStr for Position {
    type Err = NotAPosition;
    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let mut parts = text.rsplitn(3, '/');
        let offset = parts.next().and_then(|part| part.parse().ok()).ok_or(NotAPosition)?;
        let segment = parts.next().and_then(|part| part.parse().ok()).ok_or(NotAPosition)?;
        let process = parts.next().filter(|part| !part.is_empty()).ok_or(NotAPosition)?;
        Ok(Self { process: process.into(), segment, offset })
    }
}

/// A line of the log, known to be an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The place behind it.
    pub after: Position,
    /// The line, without its end.
    pub text: String,
}

impl Record {
    /// The event in it.
    ///
    /// # Panics
    /// Never: a reader gives no line that is none.
    pub fn event(&self) -> Entry<'_> {
        Entry::parse(&self.text).expect("a record was parsed when it was read")
    }
    /// Its id.
    pub fn id(&self) -> &str {
        self.text.get(BEGINNING.len()..BEGINNING.len() + ID_CHARS).unwrap_or_default()
    }
}

/// An event as it was written.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry<'a> {
    /// Ordered by time, unique.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    /// When, as RFC 3339, in UTC with milliseconds.
    #[serde(borrow)]
    pub ts: Cow<'a, str>,
    /// The server.
    #[serde(borrow)]
    pub node: Cow<'a, str>,
    /// What the server is.
    #[serde(borrow)]
    pub role: Cow<'a, str>,
    /// The kind of event.
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    /// Version of the kind.
    pub v: u16,
    /// How much it matters.
    #[serde(borrow)]
    pub severity: Cow<'a, str>,
    /// The user that it is about.
    #[serde(borrow, default)]
    pub user: Option<Cow<'a, str>>,
    /// The instance that it is about.
    #[serde(borrow, default)]
    pub instance: Option<Cow<'a, str>>,
    /// The session that it is about.
    #[serde(borrow, default)]
    pub session: Option<Cow<'a, str>>,
    /// The trace that it belongs to.
    #[serde(borrow, default)]
    pub trace: Option<Cow<'a, str>>,
    /// The rest, as JSON.
    #[serde(borrow)]
    pub fields: &'a RawValue,
}

impl<'a> Entry<'a> {
    /// Reads a line; nothing if it is no event.
    pub fn parse(line: &'a str) -> Option<Self> {
        let is_one = line.as_bytes().starts_with(BEGINNING) && line.len() <= LINE_BYTES_MAX + 128;
        let entry: Self = serde_json::from_str(line).ok().filter(|_| is_one)?;
        (time_of_id(&entry.id).is_some() && entry.fields.get().starts_with('{')).then_some(entry)
    }
}

/// What a reader met besides events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Lines that are no events.
    pub lines: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Segments whose rest can't be read: their checksum is wrong, or the disk does not give them.
    pub segments: u64,
    /// Segments that were gone before they were read.
    pub gone: u64,
}

impl std::ops::AddAssign for Skipped {
    fn add_assign(&mut self, more: Self) {
        self.lines += more.lines;
        self.bytes += more.bytes;
        self.segments += more.segments;
        self.gone += more.gone;
    }
}

/// Finds lines in pieces of a segment, and says which are events. It believes nothing of what it is given.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// What of the buffer was given out.
    given: usize,
    /// What of it was searched for an end of a line, and has none.
    searched: usize,
    /// Bytes before the buffer's beginning.
    offset: u64,
    /// In the middle of a line that is too long.
    is_too_long: bool,
    skipped: Skipped,
}

impl Lines {
    /// Begins at an offset.
    pub fn starting_at(offset: u64) -> Self {
        Self { offset, ..Self::default() }
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.offset += self.given as u64;
        self.buffer.drain(..self.given);
        self.searched -= self.given;
        self.given = 0;
        self.buffer.extend_from_slice(piece);
    }

    /// The next line that is an event, and the offset behind it.
    pub fn next_event(&mut self) -> Option<(u64, &str)> {
        loop {
            let Some(at) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n')
            else {
                self.searched = self.buffer.len();
                if self.buffer.len() - self.given > LINE_BYTES_MAX + 128 {
                    // Nobody writes such lines: it goes, so that a file without any end needs no memory.
                    self.skipped.bytes += (self.buffer.len() - self.given) as u64;
                    self.given = self.buffer.len();
                    self.is_too_long = true;
                }
                return None;
            };
            let line = self.given..self.searched + at;
            self.given = line.end + 1;
            self.searched = self.given;
            let text = str::from_utf8(&self.buffer[line.clone()]);
            let is_event = text.is_ok_and(|text| Entry::parse(text).is_some()) && !self.is_too_long;
            if is_event {
                let text = str::from_utf8(&self.buffer[line]).unwrap_or_default();
                return Some((self.offset + self.given as u64, text));
            }
            self.is_too_long = false;
            self.skipped.lines += 1;
            self.skipped.bytes += line.len() as u64 + 1;
        }
    }

    /// The segment has ended: what is left is no line.
    pub fn end(&mut self) {
        let rest = self.buffer.len() - self.given;
        if rest > 0 || self.is_too_long {
            self.skipped.lines += 1;
            self.skipped.bytes += rest as u64;
        }
        self.given = self.buffer.len();
        self.searched = self.given;
        self.is_too_long = false;
    }

    /// What was skipped so far.
    pub fn skipped(&self) -> Skipped {
        self.skipped
    }
}

/// The lines of one process, in the order in which they were written. At the end it waits for more: ask again.
pub struct Stream {
    folder: PathBuf,
    process: EcoString,
    /// The segment that is read, and the next bytes of it.
    current: Option<(u64, Box<dyn Read + Send>)>,
    /// Where to begin, while no segment is open.
    next: Position,
    lines: Lines,
    skipped: Skipped,
    chunk: Vec<u8>,
    /// Nothing more came the last time, although a later segment is there: this one is over.
    is_last_look: bool,
    /// What was listed and was not there.
    missing: Option<PathBuf>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Stream({})", self.position())
    }
}

impl Stream {
    /// Reads on from a position.
    pub fn open(logs: &Path, from: Position) -> Self {
        Self {
            folder: logs.join(from.process.as_str()),
            process: from.process.clone(),
            current: None,
            lines: Lines::starting_at(from.offset),
            next: from,
            skipped: Skipped::default(),
            chunk: vec![0; CHUNK_BYTES],
            is_last_look: false,
            missing: None,
        }
    }

    /// Reads on from the end of what a process has written.
    pub(crate) fn at_end(logs: &Path, process: &str) -> Result<Self, LogsError> {
        let start = Position { process: process.into(), segment: 1, offset: 0 };
        let mut stream = Self::open(logs, start);
        stream.skip_to_end()?;
        Ok(stream)
    }

    /// Where it is: behind the last line that it gave, or that it skipped.
    pub fn position(&self) -> Position {
        match &self.current {
            Some((segment, _)) => Position {
                process: self.process.clone(),
                segment: *segment,
                offset: self.lines.offset + self.lines.given as u64,
            },
            None => self.next.clone(),
        }
    }

    /// What was skipped so far.
    pub fn skipped(&self) -> Skipped {
        let mut all = self.skipped;
        all += self.lines.skipped();
        all
    }

    /// The next event; nothing if no more is written yet.
    ///
    /// # Errors
    /// When the folder can't be listed.
    pub fn next_record(&mut self) -> Result<Option<Record>, LogsError> {
        loop {
            let Some(number) = self.current.as_ref().map(|(number, _)| *number) else {
                match self.open_next()? {
                    true => continue,
                    false => return Ok(None),
                }
            };
            if let Some((offset, text)) = self.lines.next_event() {
                let after = Position { process: self.process.clone(), segment: number, offset };
                return Ok(Some(Record { after, text: text.to_owned() }));
            }
            let Some((_, reader)) = &mut self.current else { continue };
            match reader.read(&mut self.chunk) {
                Ok(0) if self.is_last_look => self.close(number, true),
                Ok(0) => {
                    // Whatever comes into this segment comes before the next one is made.
                    if !self.list()?.iter().any(|segment| segment.number > number) {
                        return Ok(None);
                    }
                    self.is_last_look = true;
                }
                Ok(size) => self.lines.push(&self.chunk[..size]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.skipped.segments += 1;
                    self.close(number, true);
                }
            }
        }
    }

    fn close(&mut self, number: u64, is_read: bool) {
        if is_read {
            self.lines.end();
        }
        self.skipped += self.lines.skipped();
        self.lines = Lines::default();
        self.current = None;
        self.is_last_look = false;
        self.next = Position { process: self.process.clone(), segment: number + 1, offset: 0 };
    }

    fn list(&self) -> Result<Vec<Segment>, LogsError> {
        match segment::list(&self.folder) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(LogsError::Folder { folder: self.folder.clone(), source })
            }
            listed => Ok(listed.unwrap_or_default()),
        }
    }

    /// Opens the next segment that is there; says whether there is one.
    fn open_next(&mut self) -> Result<bool, LogsError> {
        let all = self.list()?;
        let Some(found) = all.iter().find(|segment| segment.number >= self.next.segment) else {
            return Ok(false);
        };
        if found.number > self.next.segment {
            // Who begins at the start takes what there is; for who was there before, something is missing.
            let begun = self.next.offset > 0 || self.next.segment > 1;
            self.skipped.gone += if begun { found.number - self.next.segment } else { 0 };
            self.next = Position { segment: found.number, offset: 0, ..self.next.clone() };
            self.lines = Lines::default();
        }
        let reader = match segment::open(found) {
            Ok(reader) => reader,
            // It was closed, or went, since the folder was listed. A name that leads nowhere is listed again.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && self.missing.as_ref() != Some(&found.file) =>
            {
                self.missing = Some(found.file.clone());
                return Ok(true);
            }
            Err(error) => {
                segment::left_out(found, &error);
                self.skipped.segments += 1;
                self.close(found.number, false);
                return Ok(true);
            }
        };
        let mut before = reader.take(self.next.offset);
        let passed = io::copy(&mut before, &mut io::sink());
        let reader = before.into_inner();
        if passed.is_err() {
            self.skipped.segments += 1;
            self.close(found.number, false);
            return Ok(true);
        }
        self.lines.offset = self.next.offset;
        self.current = Some((found.number, reader));
        Ok(true)
    }

    /// Goes to the end of what is written.
    fn skip_to_end(&mut self) -> Result<(), LogsError> {
        if let Some(last) = self.list()?.last() {
            let (segment, offset) = match last.is_closed {
                true => (last.number + 1, 0),
                false => (
                    last.number,
                    open_file(&last.file).and_then(|file| whole_lines(&file)).unwrap_or(0),
                ),
            };
            self.next = Position { process: self.process.clone(), segment, offset };
            self.lines = Lines::starting_at(offset);
        }
        Ok(())
    }

    /// Leaves out segments that ended before a time.
    fn skip_before(&mut self, ms: u64) -> Result<(), LogsError> {
        let all = self.list()?;
        let keep = all.windows(2).find(|two| two[1].start_ms.saturating_add(LATE_MS) >= ms);
        if let Some(first) = keep.map(|two| &two[0]).or(all.last())
            && first.number > self.next.segment
        {
            let process = self.process.clone();
            self.next = Position { process, segment: first.number, offset: 0 };
            self.lines = Lines::default();
        }
        Ok(())
    }
}

/// Where to begin.
#[derive(Clone, Debug, Default)]
pub enum From {
    /// At the oldest that is there.
    #[default]
    Start,
    /// At what is written from now on.
    End,
    /// At a time, in milliseconds since 1970.
    Time(u64),
    /// Where somebody stopped: processes without a position begin at their start.
    Positions(Vec<Position>),
}

/// The events of all processes in a folder, merged by their time. At the end it waits for more: ask again.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    from: From,
    streams: BTreeMap<EcoString, Stream>,
    /// The next of each process that has one, the earliest first.
    heads: BinaryHeap<Reverse<Head>>,
    /// Processes without a head.
    waiting: Vec<EcoString>,
}

#[derive(Debug)]
struct Head(Record);

impl Head {
    fn key(&self) -> (&str, &str) {
        (self.0.id(), &self.0.after.process)
    }
}
impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Head {}
impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Reader {
    /// Reads the folder in which processes have theirs. One that is not there is empty.
    ///
    /// # Errors
    /// When it can't be listed.
    pub fn open(folder: &Path, from: From) -> Result<Self, LogsError> {
        let mut reader = Self {
            folder: folder.into(),
            from,
            streams: BTreeMap::new(),
            heads: BinaryHeap::new(),
            waiting: Vec::new(),
        };
        reader.find()?;
        // Processes that come later are new: all of theirs is.
        if matches!(reader.from, From::End) {
            reader.from = From::Start;
        }
        Ok(reader)
    }

    /// Looks for processes that were not there before.
    fn find(&mut self) -> Result<(), LogsError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(LogsError::Folder { folder: self.folder.clone(), source }),
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|_| entry.path().is_dir()) else { continue };
            if self.streams.contains_key(name) {
                continue;
            }
            let process: EcoString = name.into();
            let start = Position { process: process.clone(), segment: 1, offset: 0 };
            let from = match &self.from {
                From::Positions(all) => {
                    all.iter().find(|position| position.process == process).cloned()
                }
                From::Start | From::End | From::Time(_) => None,
            };
            let mut stream = Stream::open(&self.folder, from.unwrap_or(start));
            match self.from {
                From::End => stream.skip_to_end()?,
                From::Time(ms) => stream.skip_before(ms)?,
                From::Start | From::Positions(_) => {}
            }
            self.streams.insert(process.clone(), stream);
            self.waiting.push(process);
        }
        Ok(())
    }

    /// The next event; nothing if no more is written yet.
    ///
    /// # Errors
    /// When a folder can't be listed.
    pub fn next_record(&mut self) -> Result<Option<Record>, LogsError> {
        if self.heads.is_empty() {
            self.find()?;
        }
        for process in std::mem::take(&mut self.waiting) {
            self.advance(process)?;
        }
        let Some(Reverse(Head(record))) = self.heads.pop() else { return Ok(None) };
        // One that has nothing more is asked again when all others are read.
        self.advance(record.after.process.clone())?;
        Ok(Some(record))
    }

    fn advance(&mut self, process: EcoString) -> Result<(), LogsError> {
        let Some(stream) = self.streams.get_mut(&process) else { return Ok(()) };
        loop {
            match stream.next_record()? {
                Some(record) if self.from.leaves_out(&record) => {}
                Some(record) => {
                    self.heads.push(Reverse(Head(record)));
                    return Ok(());
                }
                None => {
                    self.waiting.push(process);
                    return Ok(());
                }
            }
        }
    }

    /// Where each process is read up to. An event that was given is before, one that was not is behind.
    pub fn positions(&self) -> Vec<Position> {
        let heads: BTreeMap<&str, &Record> = self
            .heads
            .iter()
            .map(|Reverse(Head(record))| (&*record.after.process, record))
            .collect();
        let at = |(process, stream): (&EcoString, &Stream)| match heads.get(&**process) {
            Some(head) => {
                let offset = head.after.offset - head.text.len() as u64 - 1;
                Position { offset, ..head.after.clone() }
            }
            None => stream.position(),
        };
        self.streams.iter().map(at).collect()
    }

    /// What was skipped so far.
    pub fn skipped(&self) -> Skipped {
        let mut all = Skipped::default();
        for stream in self.streams.values() {
            all += stream.skipped();
        }
        all
    }
}

impl From {
    fn leaves_out(&self, record: &Record) -> bool {
        matches!(self, Self::Time(ms) if time_of_id(record.id()).is_some_and(|of| of < *ms))
    }
}

/// Bytes on disk of all segments in a folder, for who wants to show how far it is.
///
/// # Errors
/// When a folder can't be listed.
pub fn bytes(folder: &Path) -> Result<u64, LogsError> {
    let failed = |source| LogsError::Folder { folder: folder.into(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(failed)?,
    };
    let mut total = 0;
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        total += segment::list(&entry.path())
            .map_err(failed)?
            .iter()
            .map(|segment| segment.bytes)
            .sum::<u64>();
    }
    Ok(total)
}
