//! The handle that events are emitted on, its queue, and the threads that write and close segments.

use std::{
    cell::RefCell,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use greenroom_telemetry::{Description, Source, Value as Reading};

use crate::{
    Event, Kind, Level, LogsConfig, LogsError, OfGame, Severity, Stamp,
    event::{LINE_BYTES_MAX, Line, Trace},
    id::Stamps,
    kinds::{EventsLost, SegmentsDropped, TornLine},
    segment::{self, Segment},
};

/// How long an event waits for its write, at most: half of what is promised.
const FLUSH: Duration = Duration::from_millis(50);
/// Bytes that are written at once, without waiting for more.
const WRITE_BYTES: usize = 256 << 10;
/// Processes of one name that may share a folder.
const PLACES: u32 = 64;
/// How long an end waits for a disk.
const FAREWELL: Duration = Duration::from_secs(5);
/// The threads.
const WRITER: &str = "logs";
const CLOSER: &str = "logs closer";

/// What a role emits its events on. Copies are cheap and write to the same segments.
#[derive(Clone, Default)]
pub struct Logs {
    shared: Option<Arc<Shared>>,
    /// `,"node":…,"role":…`, and of what is traced its trace, ready to be written.
    node: Arc<str>,
}

impl fmt::Debug for Logs {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shared {
            Some(shared) => write!(out, "Logs({}{})", shared.folder.display(), self.node),
            None => out.write_str("Logs(off)"),
        }
    }
}

/// Two are equal that write the same lines to the same place.
impl PartialEq for Logs {
    fn eq(&self, other: &Self) -> bool {
        let place = |logs: &Self| logs.shared.as_ref().map(Arc::as_ptr);
        (place(self), &self.node) == (place(other), &other.node)
    }
}
impl Eq for Logs {}

greenroom_telemetry::instruments! {
    /// Of the event log of a process.
    pub struct Metrics;
    /// Events that were taken.
    counter emitted = "greenroom.logs.event.emitted", "event";
    /// Events that are in a segment.
    counter written = "greenroom.logs.event.written", "event";
    /// Events that wait to be written.
    gauge waiting = "greenroom.logs.event.waiting", "event";
    /// Events that were not taken, because the queue was full; the log says so, too.
    counter lost = "greenroom.logs.event.lost", "event";
    /// Events that went with the oldest segments, to stay below the bound on disk.
    counter dropped = "greenroom.logs.event.dropped", "event";
    /// Times that the disk took nothing.
    counter failures = "greenroom.logs.write.failed", "write";
}

impl Source for Logs {
    fn read(&self, each: &mut dyn FnMut(&'static Description, Reading)) {
        let Counters { emitted, written, lost, failures, dropped } = self.counters();
        let now = Metrics {
            emitted: emitted.into(),
            written: written.into(),
            waiting: emitted.saturating_sub(written).into(),
            lost: lost.into(),
            dropped: dropped.into(),
            failures: failures.into(),
        };
        now.read(each);
    }
}

/// What the log of a process has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events that were taken.
    pub emitted: u64,
    /// Events that are in a segment.
    pub written: u64,
    /// Events that were not taken, because the queue was full.
    pub lost: u64,
    /// Times that the disk took nothing.
    pub failures: u64,
    /// Events that went with the oldest segments, to stay below the bound on disk.
    pub dropped: u64,
}

struct Shared {
    folder: PathBuf,
    level: Severity,
    events_max: usize,
    bytes_max: usize,
    queue: Mutex<Queue>,
    /// There is much to write, or somebody waits for it.
    filled: Condvar,
    /// Something was written.
    emptied: Condvar,
    failures: AtomicU64,
    dropped: AtomicU64,
    /// For who closes segments: what there is to do.
    works: Mutex<Works>,
    work: Condvar,
}

#[derive(Default)]
struct Works {
    /// The segment that is written to: those before it can be closed.
    active: u64,
    is_wanted: bool,
    is_over: bool,
}

struct Queue {
    lines: Vec<u8>,
    events: usize,
    stamps: Stamps,
    emitted: u64,
    written: u64,
    lost: u64,
    /// Of these, those that the log itself has told of.
    lost_told: u64,
    /// Somebody waits, or the end has come.
    is_wanted: bool,
    is_over: bool,
}

impl Queue {
    /// Appends a line, given from its node on.
    fn append(&mut self, stamp: Option<Stamp>, rest: &[u8]) {
        let stamp = stamp.unwrap_or_else(|| self.stamps.next());
        self.lines.extend_from_slice(b"{\"id\":\"");
        self.lines.extend_from_slice(&stamp.id());
        self.lines.extend_from_slice(b"\",\"ts\":\"");
        let time = self.stamps.text(stamp.ms);
        self.lines.extend_from_slice(&time);
        self.lines.push(b'"');
        self.lines.extend_from_slice(rest);
        self.events += 1;
        self.emitted += 1;
    }
}

thread_local! {
    /// Where a line is made, so that nobody waits for it and nothing is allocated.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What a line begins with, of its kind.
#[derive(Clone, Copy)]
struct Head<'a> {
    name: &'a str,
    version: u16,
    severity: Severity,
}

impl From<&'static Kind> for Head<'static> {
    fn from(kind: &'static Kind) -> Self {
        Self { name: kind.name, version: kind.version, severity: kind.severity }
    }
}

impl Logs {
    /// The same log for another node: a server by its name, and the role that it has.
    #[must_use]
    pub fn of(&self, node: &str, role: &'static str) -> Self {
        let mut text = b",\"node\":".to_vec();
        crate::event::text(&mut text, node);
        text.extend_from_slice(b",\"role\":");
        crate::event::text(&mut text, role);
        Self { shared: self.shared.clone(), node: String::from_utf8_lossy(&text).into() }
    }

    /// The same log for what is a part of this trace.
    #[must_use]
    pub fn within(&self, trace: impl Into<Trace>) -> Self {
        if self.shared.is_none() {
            return self.clone();
        }
        let Trace(trace) = trace.into();
        let node = format!("{},\"trace\":\"{trace:032x}\"", self.node);
        Self { shared: self.shared.clone(), node: node.into() }
    }

    /// Whether events of this severity are written.
    pub fn takes(&self, severity: Severity) -> bool {
        self.shared.as_ref().is_some_and(|shared| severity >= shared.level)
    }

    /// Emits an event. Waits for nothing: past its bounds the queue takes no more, and that is counted.
    pub fn emit<E: Event>(&self, event: &E) {
        self.push(None, E::KIND.into(), |line| event.write(line));
    }

    /// Emits an event of a game's own kind.
    pub fn emit_of_game(&self, event: &OfGame<'_>) {
        if self.takes(Severity::Info) {
            let name = event.name();
            let head = Head { name: &name, version: event.version, severity: Severity::Info };
            self.push(None, head, |line| event.write(line));
        }
    }

    /// Emits an event that somebody else may emit too, since both know that it happened: with the same stamp it has
    /// the same id, by which readers take it once.
    pub fn emit_stamped<E: Event>(&self, stamp: Stamp, event: &E) {
        self.push(Some(stamp), E::KIND.into(), |line| event.write(line));
    }

    fn push(&self, stamp: Option<Stamp>, head: Head<'_>, write: impl FnOnce(&mut Line<'_>)) {
        let Some(shared) = &self.shared else { return };
        if head.severity < shared.level {
            return;
        }
        let make = |out: &mut Vec<u8>| {
            out.clear();
            let Head { name, version, severity } = head;
            let mut line = Line::begin(out, &self.node, name, version, severity);
            write(&mut line);
            line.end();
            shared.push(stamp, out);
        };
        let made =
            SCRATCH.try_with(|scratch| scratch.try_borrow_mut().map(|mut out| make(&mut out)));
        debug_assert!(matches!(made, Ok(Ok(()))), "a thread that ends, or a value, emits an event");
    }

    /// Waits until everything that was emitted is in a segment; says whether it is.
    pub fn flush(&self, timeout: Duration) -> bool {
        let Some(shared) = &self.shared else { return true };
        let by = Instant::now() + timeout;
        let mut queue = shared.lock();
        let upto = queue.emitted;
        while queue.written < upto {
            queue.is_wanted = true;
            shared.filled.notify_one();
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = shared.emptied.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// What was counted so far, for all nodes of this process.
    pub fn counters(&self) -> Counters {
        let Some(shared) = &self.shared else { return Counters::default() };
        let queue = shared.lock();
        Counters {
            emitted: queue.emitted,
            written: queue.written,
            lost: queue.lost,
            failures: shared.failures.load(Relaxed),
            dropped: shared.dropped.load(Relaxed),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A line is appended as a whole or not at all: whoever panicked left none half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, stamp: Option<Stamp>, rest: &[u8]) {
        let mut queue = self.lock();
        let is_full =
            queue.events >= self.events_max || queue.lines.len() + rest.len() > self.bytes_max;
        if is_full || queue.is_over || rest.len() > LINE_BYTES_MAX {
            queue.lost += 1;
            return;
        }
        queue.append(stamp, rest);
        if queue.lines.len() >= WRITE_BYTES && !queue.is_wanted {
            queue.is_wanted = true;
            self.filled.notify_one();
        }
    }

    /// There are segments to be closed, or the end has come.
    fn wants_closing(&self, active: Option<u64>) {
        let mut works = self.works.lock().unwrap_or_else(PoisonError::into_inner);
        works.active = active.unwrap_or(works.active);
        works.is_over |= active.is_none();
        works.is_wanted = true;
        self.work.notify_one();
    }

    /// Waits until there are segments to be closed: those before this number. Nothing more after the end.
    fn take_work(&self) -> Option<u64> {
        let works = self.works.lock().unwrap_or_else(PoisonError::into_inner);
        let works = self.work.wait_while(works, |works| !works.is_wanted && !works.is_over);
        let mut works = works.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut works.is_wanted).then_some(works.active)
    }

    /// Waits until the next write is due, and takes what there is; says how many events, and whether it was the last.
    fn take(&self, node: &str, into: &mut Vec<u8>) -> (usize, bool) {
        let mut queue = self.wait();
        let lost = queue.lost - queue.lost_told;
        if lost > 0 {
            queue.lost_told = queue.lost;
            let (kind, mut rest) = (EventsLost::KIND, Vec::new());
            let mut line = Line::begin(&mut rest, node, kind.name, kind.version, kind.severity);
            EventsLost { events: lost }.write(&mut line);
            line.end();
            queue.append(None, &rest);
        }
        std::mem::swap(&mut queue.lines, into);
        (std::mem::take(&mut queue.events), queue.is_over)
    }

    fn wait(&self) -> MutexGuard<'_, Queue> {
        let waited = self.filled.wait_timeout_while(self.lock(), FLUSH, |queue| !queue.is_wanted);
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        queue.is_wanted = queue.is_over;
        queue
    }
}

/// The log of a process, open for as long as this is there.
#[derive(Debug)]
pub struct LogWriter {
    logs: Logs,
    threads: Vec<JoinHandle<()>>,
}

impl LogWriter {
    /// Opens the log of a process. `folder` is where all processes of this machine have theirs, `process` is the name
    /// of this one there; if a process of that name runs, it gets a number behind it.
    ///
    /// # Errors
    /// When the folder can't be made or written.
    pub fn start(config: &LogsConfig, folder: &Path, process: &str) -> Result<Self, LogsError> {
        let Level::From(level) = config.level else {
            return Ok(Self { logs: Logs::default(), threads: Vec::new() });
        };
        let (folder, lock) = place(folder, process)?;
        let failed = |source| LogsError::Folder { folder: folder.clone(), source };
        let (next, torn) = segment::recover(&folder).map_err(failed)?;
        let queue = Queue {
            lines: Vec::new(),
            events: 0,
            stamps: Stamps::new(),
            emitted: 0,
            written: 0,
            lost: 0,
            lost_told: 0,
            is_wanted: false,
            is_over: false,
        };
        let shared = Arc::new(Shared {
            folder: folder.clone(),
            level,
            events_max: config.queue_events_max.max(1),
            bytes_max: config.queue_bytes_max.max(LINE_BYTES_MAX),
            queue: Mutex::new(queue),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            failures: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            works: Mutex::default(),
            work: Condvar::new(),
        });
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let logs = Logs { shared: Some(Arc::clone(&shared)), node: "".into() }.of(&name, "process");
        if torn > 0 {
            logs.emit(&TornLine { bytes: torn });
        }
        let active = Active::open(&folder, next).map_err(failed)?;
        let closer = Closer {
            logs: logs.clone(),
            shared: Arc::clone(&shared),
            total_bytes_max: config.total_bytes_max,
        };
        shared.wants_closing(Some(active.number));
        let writer = Writer {
            shared,
            node: logs.node.to_string(),
            active,
            bytes_max: config.segment_bytes_max.max(1),
            time_max: config.segment_time_max,
            is_failing: false,
            _lock: lock,
        };
        let start = |name: &str, body: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.into()).spawn(body).map_err(LogsError::Thread)
        };
        let threads = vec![
            start(CLOSER, Box::new(|| closer.run()))?,
            start(WRITER, Box::new(|| writer.run()))?,
        ];
        Ok(Self { logs, threads })
    }

    /// The handle to emit on.
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// Name of this process's folder.
    pub fn process(&self) -> Option<String> {
        let name = self.logs.shared.as_ref()?.folder.file_name()?;
        Some(name.to_string_lossy().into_owned())
    }

    /// Writes everything that waits, and ends. What is emitted later is lost.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(shared) = &self.logs.shared else { return };
        // Who closes segments ends first: it may have events of its own.
        for thread in self.threads.drain(..) {
            match thread.thread().name() {
                Some(CLOSER) => shared.wants_closing(None),
                _ => {
                    let mut queue = shared.lock();
                    (queue.is_over, queue.is_wanted) = (true, true);
                    shared.filled.notify_one();
                }
            }
            if thread.join().is_err() {
                tracing::error!("a thread of the event log panicked; see above");
            }
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.end();
    }
}

/// The folder of a process, and the lock that it is nobody else's.
fn place(folder: &Path, process: &str) -> Result<(PathBuf, File), LogsError> {
    let plain: String = process
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .collect();
    for number in 1..=PLACES {
        let name = if number == 1 { plain.clone() } else { format!("{plain}.{number}") };
        let own = folder.join(name);
        let failed = |source| LogsError::Folder { folder: own.clone(), source };
        fs::create_dir_all(&own).map_err(failed)?;
        let mut options = OpenOptions::new();
        let lock = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(own.join("lock"))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => return Ok((own, lock)),
            Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
    Err(LogsError::Taken { folder: folder.into(), count: PLACES })
}

/// The segment that is written to.
struct Active {
    file: File,
    number: u64,
    /// Bytes of whole lines in it.
    bytes: u64,
    since: Instant,
}

impl Active {
    fn open(folder: &Path, number: u64) -> io::Result<Self> {
        let now_ms = Stamps::new().next().ms;
        let path = folder.join(segment::name(number, now_ms));
        let file = OpenOptions::new().append(true).create_new(true).open(path)?;
        Ok(Self { file, number, bytes: 0, since: Instant::now() })
    }

    /// Appends lines, whole or not at all.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(lines);
        match written {
            Ok(()) => self.bytes += lines.len() as u64,
            // A part of it may be there: it goes, so that what is tried again stands there once.
            Err(_) => self.file.set_len(self.bytes)?,
        }
        written
    }
}

struct Writer {
    shared: Arc<Shared>,
    node: String,
    active: Active,
    bytes_max: u64,
    time_max: Duration,
    /// The disk took nothing the last time.
    is_failing: bool,
    /// Held for the life of the process, so that its folder is nobody else's.
    _lock: File,
}

impl Writer {
    fn run(mut self) {
        let (mut lines, mut events) = (Vec::new(), 0);
        let mut give_up: Option<Instant> = None;
        loop {
            let is_over = if lines.is_empty() {
                let (taken, is_over) = self.shared.take(&self.node, &mut lines);
                events = taken;
                is_over
            } else {
                self.shared.wait().is_over
            };
            self.rotate(lines.len());
            match self.active.write(&lines) {
                Ok(()) => {
                    if std::mem::take(&mut self.is_failing) {
                        tracing::info!("the disk takes events again");
                    }
                    lines.clear();
                    self.shared.lock().written += std::mem::take(&mut events) as u64;
                    self.shared.emptied.notify_all();
                }
                Err(error) => {
                    self.shared.failures.fetch_add(1, Relaxed);
                    if !std::mem::replace(&mut self.is_failing, true) {
                        tracing::error!(%error, "the disk takes no events: they wait, and are lost when too many do");
                    }
                }
            }
            if is_over {
                let queue = self.shared.lock();
                if lines.is_empty() && queue.events == 0 && queue.lost == queue.lost_told {
                    return;
                }
                let waiting = events + queue.events;
                drop(queue);
                let by = *give_up.get_or_insert_with(|| Instant::now() + FAREWELL);
                if Instant::now() > by {
                    return tracing::error!(
                        events = waiting,
                        "the disk took the last events no more"
                    );
                }
                if self.is_failing {
                    thread::park_timeout(FLUSH);
                }
            }
        }
    }

    /// Begins another segment if this one is full or old.
    fn rotate(&mut self, more: usize) {
        let is_full = self.active.bytes + more as u64 > self.bytes_max;
        let is_old = self.active.since.elapsed() >= self.time_max;
        if self.active.bytes == 0 || !(is_full || is_old) {
            return;
        }
        match Active::open(&self.shared.folder, self.active.number + 1) {
            Ok(next) => {
                self.active = next;
                self.shared.wants_closing(Some(self.active.number));
            }
            // The old one does for longer.
            Err(error) => tracing::warn!(%error, "no new segment of the event log can be made"),
        }
    }
}

/// Compresses segments that are written to no more, and removes the oldest past the bound.
struct Closer {
    logs: Logs,
    shared: Arc<Shared>,
    total_bytes_max: u64,
}

impl Closer {
    fn run(self) {
        while let Some(active) = self.shared.take_work() {
            if let Err(error) = self.close_before(active) {
                tracing::warn!(%error, "a segment of the event log could not be closed: it stays as it is");
            }
            if let Err(error) = self.drop_oldest(active) {
                tracing::warn!(%error, "the oldest segments of the event log could not be removed");
            }
        }
    }

    fn close_before(&self, active: u64) -> io::Result<()> {
        let mut result = Ok(());
        for segment in segment::list(&self.shared.folder)? {
            if segment.number < active && !segment.is_closed && segment.is_regular() {
                result = result.and(segment::close(&segment));
            }
        }
        result
    }

    fn drop_oldest(&self, active: u64) -> io::Result<()> {
        let mut all = segment::list(&self.shared.folder)?;
        // What somebody else has put there is not ours to remove.
        all.retain(Segment::is_regular);
        let mut total: u64 = all.iter().map(|segment| segment.bytes).sum();
        let mut dropped = SegmentsDropped { segments: 0, events: 0, bytes: 0 };
        for segment in all.iter().filter(|segment| segment.number < active) {
            if total <= self.total_bytes_max {
                break;
            }
            dropped.events += segment::count(segment);
            fs::remove_file(&segment.file)?;
            dropped.segments += 1;
            dropped.bytes += segment.bytes;
            total -= segment.bytes;
        }
        if dropped.segments > 0 {
            self.shared.dropped.fetch_add(dropped.events, Relaxed);
            self.logs.emit(&dropped);
        }
        Ok(())
    }
}
