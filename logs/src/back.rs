//! The log read backwards: the newest events first, a page at a time.

use std::{
    collections::VecDeque,
    fs,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ecow::EcoString;

use crate::{
    LogsError,
    read::{Entry, Lines, Position, Record, Skipped, Stream},
    segment::{self, Segment},
};

/// What is read at once. Of a segment that is still written to, this much before its end is a step; a line is far
/// smaller.
const STEP_BYTES: u64 = 1 << 20;
/// A step of a closed segment. Larger, since each decompresses it from its beginning.
const CLOSED_STEP_BYTES: usize = 16 << 20;

/// How much of the log a page may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Events on it.
    pub events_max: usize,
    /// Bytes of lines after which no process is looked further back at. Each is looked at once, so that the next page
    /// begins before this one.
    pub bytes_max: u64,
    /// The same of time.
    pub time_max: Duration,
}

/// Some events of the past.
#[derive(Debug, Default)]
pub struct Page {
    /// The newest first.
    pub records: Vec<Record>,
    /// Where the page begins: the one before it ends here.
    pub begin: Vec<Position>,
    /// Where the page ends: what is written later is behind.
    pub end: Vec<Position>,
    /// There is more before it.
    pub has_more: bool,
    /// It has less than it might, since the time was over.
    pub is_late: bool,
    /// Bytes of lines that were looked at.
    pub bytes: u64,
    /// What was met besides events.
    pub skipped: Skipped,
}

/// The newest events of all processes in a folder that are wanted and stand before `end`; without one, before the end
/// of what is written. A folder that is not there is empty. Once it `is_stopped`, the page is what was found before.
///
/// # Errors
/// When a folder can't be listed.
pub fn page(
    folder: &Path,
    end: Option<&[Position]>,
    limits: Limits,
    is_stopped: impl Fn() -> bool,
    mut wanted: impl FnMut(&Entry<'_>) -> bool,
) -> Result<Page, LogsError> {
    let began = Instant::now();
    let mut page = Page::default();
    let mut pasts = pasts(folder, end)?;
    page.end = pasts.iter().map(|past| past.begin.clone()).collect();
    'full: while page.records.len() < limits.events_max {
        // Which is the newest is known once each process has shown its own.
        for past in &mut pasts {
            while past.found.is_empty() && !past.is_over {
                let is_late = began.elapsed() >= limits.time_max;
                if (page.bytes >= limits.bytes_max || is_late) && past.was_looked_at {
                    page.is_late = is_late;
                    break 'full;
                }
                if is_stopped() {
                    break 'full;
                }
                past.step(limits.events_max, &is_stopped, &mut wanted, &mut page)?;
            }
        }
        let newest = pasts.iter_mut().max_by(|one, two| one.newest().cmp(&two.newest()));
        let Some(record) = newest.and_then(|past| past.found.pop_back()) else { break };
        page.records.push(record);
    }
    page.has_more = pasts.iter().any(|past| !past.is_over || !past.found.is_empty());
    page.begin = pasts.iter().map(Past::position).collect();
    Ok(page)
}

/// All processes, each at the end of what is asked for. One that came later than `end` has nothing before it.
fn pasts(folder: &Path, end: Option<&[Position]>) -> Result<Vec<Past>, LogsError> {
    let failed = |source| LogsError::Folder { folder: folder.into(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut pasts = Vec::new();
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name();
        let Some(process) = name.to_str() else { continue };
        let begin = match end {
            Some(all) => all.iter().find(|position| position.process == process).cloned(),
            None => Some(Stream::at_end(folder, process)?.position()),
        };
        pasts.extend(begin.map(|begin| Past {
            folder: entry.path(),
            begin,
            found: VecDeque::new(),
            was_looked_at: false,
            is_over: false,
            missing: None,
        }));
    }
    Ok(pasts)
}

/// What one process wrote, from its end on.
struct Past {
    folder: PathBuf,
    /// Everything before it was not looked at.
    begin: Position,
    /// What is wanted of what was looked at, and was not given: in the order of writing.
    found: VecDeque<Record>,
    was_looked_at: bool,
    /// There is nothing before it.
    is_over: bool,
    /// What was listed and was not there.
    missing: Option<PathBuf>,
}

impl Past {
    fn newest(&self) -> Option<&str> {
        self.found.back().map(Record::id)
    }

    /// What is before here was not given.
    fn position(&self) -> Position {
        self.found.back().map_or(&self.begin, |record| &record.after).clone()
    }

    /// Looks at a step more of the past.
    fn step(
        &mut self,
        events_max: usize,
        is_stopped: &impl Fn() -> bool,
        wanted: &mut impl FnMut(&Entry<'_>) -> bool,
        page: &mut Page,
    ) -> Result<(), LogsError> {
        self.was_looked_at = true;
        let folder = &self.folder;
        let all = segment::list(folder)
            .map_err(|source| LogsError::Folder { folder: folder.clone(), source })?;
        let has_more =
            |segment: &&Segment| (segment.number, 0) < (self.begin.segment, self.begin.offset);
        let Some(segment) = all.iter().rfind(has_more) else {
            self.is_over = true;
            return Ok(());
        };
        let end = if segment.number == self.begin.segment { self.begin.offset } else { u64::MAX };
        let mut step = Step {
            process: &self.begin.process,
            segment: segment.number,
            events_max,
            begin: 0,
            found: VecDeque::new(),
        };
        let looked = match segment.is_closed {
            true => step.closed(segment, end, is_stopped, wanted, page),
            false => step.open(segment, end, wanted, page),
        };
        match looked {
            Ok(()) => {}
            // A part of a segment is no step: whoever goes on begins it anew.
            Err(_) if is_stopped() => return Ok(()),
            // It was closed, or went, since the folder was listed. A name that leads nowhere is listed again.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && self.missing.as_ref() != Some(&segment.file) =>
            {
                self.missing = Some(segment.file.clone());
                return Ok(());
            }
            Err(error) => {
                segment::left_out(segment, &error);
                page.skipped.segments += 1;
            }
        }
        let Step { begin, found, .. } = step;
        self.found = found;
        self.begin.segment = segment.number;
        self.begin.offset = begin;
        self.is_over =
            begin == 0 && all.first().is_some_and(|first| first.number == segment.number);
        Ok(())
    }
}

/// A part of a segment that is looked at.
struct Step<'a> {
    process: &'a EcoString,
    segment: u64,
    events_max: usize,
    /// Where the part begins, of which `found` is all that is wanted.
    begin: u64,
    found: VecDeque<Record>,
}

impl Step<'_> {
    fn closed(
        &mut self,
        segment: &Segment,
        end: u64,
        is_stopped: &impl Fn() -> bool,
        wanted: &mut impl FnMut(&Entry<'_>) -> bool,
        page: &mut Page,
    ) -> io::Result<()> {
        let mut reader = segment::open(segment)?.take(end);
        // Decompressing is fast, looking at lines is not: only those at the end are looked at.
        let (mut tail, mut upto) = (Vec::new(), 0);
        let read = loop {
            if is_stopped() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            match (&mut reader).take(STEP_BYTES).read_to_end(&mut tail) {
                Ok(0) => break Ok(()),
                Ok(size) => upto += size as u64,
                Err(error) => break Err(error),
            }
            // Twice as much, so that each byte moves once at most.
            if tail.len() >= 2 * CLOSED_STEP_BYTES {
                tail.drain(..tail.len() - CLOSED_STEP_BYTES);
            }
        };
        tail.drain(..tail.len().saturating_sub(CLOSED_STEP_BYTES));
        self.look_at(upto - tail.len() as u64, &tail, wanted, page);
        read
    }

    fn open(
        &mut self,
        segment: &Segment,
        end: u64,
        wanted: &mut impl FnMut(&Entry<'_>) -> bool,
        page: &mut Page,
    ) -> io::Result<()> {
        let mut file = segment::open_file(&segment.file)?;
        let end = end.min(file.metadata()?.len());
        let from = end.saturating_sub(STEP_BYTES);
        let mut piece = Vec::new();
        file.seek(SeekFrom::Start(from))?;
        file.take(end - from).read_to_end(&mut piece)?;
        self.look_at(from, &piece, wanted, page);
        Ok(())
    }

    /// Looks at a piece of a segment that ends with a line.
    fn look_at(
        &mut self,
        from: u64,
        piece: &[u8],
        wanted: &mut impl FnMut(&Entry<'_>) -> bool,
        page: &mut Page,
    ) {
        self.begin = from;
        page.bytes += piece.len() as u64;
        // It begins in the middle of a line, which is left to the step before. More than a step without any end of a
        // line is no event.
        let whole = match from {
            0 => Some(0),
            _ => piece.iter().position(|&byte| byte == b'\n').map(|at| at + 1),
        };
        if let Some(whole) = whole.filter(|&whole| whole < piece.len()) {
            self.begin = from + whole as u64;
            let mut lines = Lines::starting_at(self.begin);
            lines.push(&piece[whole..]);
            self.take(&mut lines, wanted);
            page.skipped += lines.skipped();
        }
    }

    /// Takes what is wanted: of too much, the newest.
    fn take(&mut self, lines: &mut Lines, wanted: &mut impl FnMut(&Entry<'_>) -> bool) {
        while let Some((offset, text)) = lines.next_event() {
            if !Entry::parse(text).is_some_and(|event| wanted(&event)) {
                continue;
            }
            if self.found.len() == self.events_max
                && let Some(left) = self.found.pop_front()
            {
                self.begin = left.after.offset;
            }
            let after = Position { process: self.process.clone(), segment: self.segment, offset };
            self.found.push_back(Record { after, text: text.to_owned() });
        }
    }
}
