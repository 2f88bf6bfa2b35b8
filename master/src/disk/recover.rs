//! What a folder has when a process starts: the newest whole checkpoint, and the log that continues it.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use greenroom_master_core::Record;
use greenroom_master_core::replica::{Entry, Intents, Logged, Position};
use greenroom_protocol::{Incarnation, Limits, decode, encode};

use super::DiskError;
use super::checkpoint::{self, BadCheckpoint};
use super::files::{Calls, DAMAGED, NEW, forget_cached, replace};
use super::format::{self, BadHeader, Frame, Header, LOG};
use super::log::{self, Segment};

/// The file that has the intents.
const INTENTS: &str = "intents";
/// The file that has the incarnation of the last life.
const INCARNATION: &str = "incarnation";
/// The file that has the first life since which nothing that was written is gone, and until when that is so.
pub(super) const WHOLE: &str = "whole";
/// Until when, after a life that ended with everything synced.
const FOR_EVER: &str = "synced";

/// What there is.
pub(super) struct Recovery {
    pub(super) base: Position,
    pub(super) records: Option<Vec<Record>>,
    pub(super) entries: Vec<Entry<Logged>>,
    pub(super) intents: Intents,
    pub(super) generation: u32,
    /// Number of the next segment.
    pub(super) number: u32,
    pub(super) segments: Vec<Segment>,
    pub(super) notes: Vec<String>,
    /// Number of the last entry that was certainly durable once.
    durable: u64,
    /// Something was durable and is not here.
    is_lost: bool,
    /// The first life since which nothing is gone, if the last one left word of it.
    pub(super) whole_since: Option<Incarnation>,
    /// What has to be done before anything is written after it.
    repairs: Vec<(PathBuf, Repair)>,
}

/// What has to be done to a file, so that what was not taken from it never comes back.
enum Repair {
    /// Nobody needs it.
    Remove,
    /// Somebody may want to look at it.
    PutAside,
    /// It ends here.
    Cut(u64),
}

/// Reads everything. Nothing is changed but what says that something is lost: see [`Recovery::repair`].
pub(super) fn recover(folder: &Path, calls: &dyn Calls) -> Result<Recovery, DiskError> {
    let names = names(folder)?;
    let mut found = Recovery {
        base: Position::default(),
        records: None,
        entries: Vec::new(),
        intents: Intents::default(),
        generation: 0,
        number: 0,
        segments: Vec::new(),
        notes: Vec::new(),
        durable: 0,
        is_lost: false,
        whole_since: None,
        repairs: Vec::new(),
    };
    for name in names.iter().filter(|name| name.ends_with(NEW)) {
        found.repairs.push((folder.join(name), Repair::Remove));
    }
    found.read_checkpoint(folder, &names)?;
    found.read_log(folder, &names, calls)?;
    found.read_intents(folder)?;
    found.read_whole(folder, calls)?;
    let last = found.last().lsn;
    if found.durable > last {
        let durable = found.durable;
        found.notes.push(format!(
            "entries {} to {durable} at least were durable and can't be read in {}: this disk has lost them",
            last + 1,
            folder.display()
        ));
        found.is_lost = true;
    }
    found.whole_since.take_if(|_| found.is_lost);
    if found.is_lost && found.intents != Intents::default() {
        // They say that this log has all that this master committed while it was alone, which is not so any more.
        found.intents = Intents::default();
        found.notes.push(format!(
            "since something is missing in {}, this master may not decide by what its disk has: it waits for the other \
             one, or for a loss to be declared",
            folder.display()
        ));
        write_intents(calls, folder, &found.intents)
            .map_err(|source| io_error("writing", folder.join(INTENTS), source))?;
    }
    Ok(found)
}

/// The incarnation of this life: larger than that of any before on this disk, and durable.
pub(super) fn next_incarnation(
    folder: &Path,
    calls: &dyn Calls,
    now_ns: u64,
    found: &mut Recovery,
) -> Result<Incarnation, DiskError> {
    let path = folder.join(INCARNATION);
    let text = read_file(&path)?;
    let stored = text
        .as_deref()
        .map(|text| str::from_utf8(text).ok().and_then(|text| text.trim().parse::<u64>().ok()));
    if stored == Some(None) {
        found.notes.push(format!("{} has no number and was made anew", path.display()));
    }
    let intents = found.intents.proven.iter().chain(&found.intents.pending);
    let seen = intents.map(|intent| intent.by.incarnation.0).max().unwrap_or(0);
    let next = stored.flatten().unwrap_or(0).max(seen).saturating_add(1).max(now_ns);
    replace(calls, folder, INCARNATION, format!("{next}\n").as_bytes())
        .map_err(|source| io_error("writing", path, source))?;
    Ok(Incarnation(next))
}

/// Bytes of each of the two places in the file of the intents.
const PLACE: usize = 16 * 1024;

/// Makes the intents durable: in the older of two places of their file, by one write and one sync, since a takeover
/// waits for it.
pub(super) fn write_intents(calls: &dyn Calls, folder: &Path, intents: &Intents) -> io::Result<()> {
    let path = folder.join(INTENTS);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let newest = newest_intents(&bytes).map(|(number, place, _)| (number, place));
    let (number, place) = newest.map_or((1, 0), |(number, place)| (number + 1, 1 - place));
    let mut frame = intents_bytes(number, intents);
    if bytes.len() != 2 * PLACE {
        frame.resize(2 * PLACE, 0);
        return replace(calls, folder, INTENTS, &frame);
    }
    let file = std::fs::OpenOptions::new().write(true).open(&path)?;
    calls.write_at(&file, &frame, (place * PLACE) as u64)?;
    calls.sync(&file)
}

/// Makes the file of the intents, if there is none, so that the first takeover does not have to. The log has a segment
/// by then: intents without one would be those of a log that was lost.
pub(super) fn prepare_intents(folder: &Path, calls: &dyn Calls) -> Result<(), DiskError> {
    let path = folder.join(INTENTS);
    if read_file(&path)?.is_none() {
        write_intents(calls, folder, &Intents::default())
            .map_err(|source| io_error("writing", path, source))?;
    }
    Ok(())
}

fn intents_bytes(number: u64, intents: &Intents) -> Vec<u8> {
    let mut out = Vec::new();
    format::put_frame(&mut out, |out| {
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&encode(intents));
    });
    assert!(out.len() <= PLACE, "few intents wait for their fate at a time, and each is short");
    out
}

/// The newest intents that are whole, their number, and in which place they are. Half of what was written last
/// counts as not written: nothing was done by it.
fn newest_intents(bytes: &[u8]) -> Option<(u64, usize, Intents)> {
    let places = bytes.chunks(PLACE).take(2).enumerate();
    let whole = places.filter_map(|(place, bytes)| {
        let Frame::Whole { body, .. } = format::frame(bytes, 0) else { return None };
        let (number, intents) = body.split_first_chunk()?;
        let intents = decode(intents, Limits::SERVER).ok()?;
        Some((u64::from_le_bytes(*number), place, intents))
    });
    whole.max_by_key(|(number, ..)| *number)
}

impl Recovery {
    /// Cuts off what is not whole. It comes after the note of a loss, which would not be found again, and after the
    /// segment that goes on, so that a log never seems not to be there.
    pub(super) fn repair(&mut self, folder: &Path, calls: &dyn Calls) -> Result<(), DiskError> {
        for (path, repair) in self.repairs.drain(..) {
            match repair {
                Repair::Remove => std::fs::remove_file(&path),
                Repair::PutAside => {
                    let mut aside = path.as_os_str().to_owned();
                    aside.push(DAMAGED);
                    std::fs::rename(&path, aside)
                }
                Repair::Cut(end) => OpenOptions::new().write(true).open(&path).and_then(|file| {
                    file.set_len(end)?;
                    calls.sync(&file)
                }),
            }
            .map_err(|source| io_error("repairing", path, source))?;
        }
        calls.sync_folder(folder).map_err(|source| io_error("syncing", folder.into(), source))
    }

    /// Where the log ends.
    pub(super) fn last(&self) -> Position {
        self.entries.last().map_or(self.base, Entry::position)
    }

    /// The place of number `lsn`, if it is known.
    fn at(&self, lsn: u64) -> Option<Position> {
        let index = lsn.checked_sub(self.base.lsn)?;
        match usize::try_from(index).ok()?.checked_sub(1) {
            None => Some(self.base),
            Some(index) => self.entries.get(index).map(Entry::position),
        }
    }

    fn read_checkpoint(&mut self, folder: &Path, names: &[String]) -> Result<(), DiskError> {
        let all: BTreeMap<_, _> =
            names.iter().filter_map(|name| Some((checkpoint::parse_name(name)?, name))).collect();
        let mut damaged = Vec::new();
        for ((generation, lsn), name) in all.into_iter().rev() {
            let path = folder.join(name);
            if self.records.is_some() {
                // The newer one has what it has.
                self.repairs.push((path, Repair::Remove));
                continue;
            }
            let bytes = read_file(&path)?.unwrap_or_default();
            let text = match checkpoint::read(&bytes) {
                Ok((header, records))
                    if header.generation == generation && header.at.lsn == lsn =>
                {
                    self.base = header.at;
                    self.generation = generation;
                    self.records = Some(records);
                    continue;
                }
                Ok(_) => "its name and its beginning differ".to_owned(),
                Err(BadCheckpoint::Header(bad)) => not_other(bad, &path)?.to_owned(),
                Err(BadCheckpoint::Damaged(text)) => text,
            };
            self.notes.push(format!(
                "the checkpoint {} is damaged and was put aside: {text}",
                path.display()
            ));
            self.repairs.push((path, Repair::PutAside));
            damaged.push((generation, lsn));
        }
        for (generation, lsn) in damaged {
            if generation == self.generation {
                self.durable = self.durable.max(lsn);
            } else {
                self.is_lost = true;
            }
        }
        Ok(())
    }

    fn read_log(
        &mut self,
        folder: &Path,
        names: &[String],
        calls: &dyn Calls,
    ) -> Result<(), DiskError> {
        let all: BTreeMap<_, _> =
            names.iter().filter_map(|name| Some((log::parse_name(name)?, name))).collect();
        for ((generation, number), name) in all {
            let path = folder.join(name);
            if generation == self.generation {
                self.number = number + 1;
                self.read_segment(calls, path)?;
            } else if generation > self.generation && self.is_lost {
                self.repairs.push((path, Repair::PutAside));
            } else {
                // Of a log that a checkpoint has replaced, or of one whose checkpoint was never complete.
                self.repairs.push((path, Repair::Remove));
            }
        }
        Ok(())
    }

    fn read_segment(&mut self, calls: &dyn Calls, path: PathBuf) -> Result<(), DiskError> {
        let failed = |source| io_error("reading", path.clone(), source);
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        calls.sync(&file).map_err(failed)?;
        forget_cached(&file);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let header = match Header::parse(&bytes, LOG) {
            Ok(header) => header,
            Err(bad) => {
                let text = not_other(bad, &path)?;
                if bytes.iter().all(|byte| *byte == 0) {
                    // It was just begun.
                    self.repairs.push((path, Repair::Remove));
                } else {
                    self.cut(&path, &bytes, 0, text);
                    self.repairs.push((path, Repair::PutAside));
                }
                return Ok(());
            }
        };
        self.durable = self.durable.max(header.synced);
        let is_known = header.at.lsn < self.base.lsn || self.at(header.at.lsn) == Some(header.at);
        if !is_known {
            self.cut(&path, &bytes, Header::BYTES, "it does not continue the log before it");
            self.repairs.push((path, Repair::PutAside));
            return Ok(());
        }
        let mut at = Header::BYTES;
        let mut before = header.at;
        let broken = loop {
            let (body, next) = match format::frame(&bytes, at) {
                Frame::Whole { body, next } => (body, next),
                Frame::Nothing => break None,
                Frame::Torn | Frame::Last(_) => break Some("it is torn"),
            };
            let Some((entry, synced)) = format::entry(body) else {
                break Some("the entry can't be read");
            };
            if !entry.follows(before) {
                break Some("the entry does not follow the one before it");
            }
            let here = entry.position();
            if here.lsn <= self.last().lsn {
                if here.lsn >= self.base.lsn && self.at(here.lsn) != Some(here) {
                    break Some("the entry is another one than before");
                }
            } else if before == self.last() {
                self.entries.push(entry);
            } else {
                break Some("the entry does not continue the checkpoint");
            }
            self.durable = self.durable.max(synced);
            before = here;
            at = next;
        };
        let has_more = bytes[at..].iter().any(|byte| *byte != 0);
        if let Some(text) = broken.or_else(|| has_more.then_some("zeros begin, and more follows")) {
            self.cut(&path, &bytes, at, text);
        }
        if before == header.at || before.lsn <= self.base.lsn {
            // Nothing is in it, or nothing that the checkpoint has not.
            self.repairs.push((path, Repair::Remove));
            return Ok(());
        }
        if bytes.len() > at {
            self.repairs.push((path.clone(), Repair::Cut(at as u64)));
        }
        self.segments.push(Segment::old(path, header.at, before.lsn));
        Ok(())
    }

    /// Says what is cut off, and looks whether any of it was durable.
    fn cut(&mut self, path: &Path, bytes: &[u8], at: usize, why: &str) {
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(at, |last| last + 1);
        self.durable = self.durable.max(format::durable_behind(bytes, at));
        self.notes.push(format!(
            "{} was cut after entry {}, at byte {at}, by {} bytes: {why}",
            path.display(),
            self.last().lsn,
            end.saturating_sub(at)
        ));
    }

    /// What a machine that was started anew has kept is not known, unless everything was synced before.
    fn read_whole(&mut self, folder: &Path, calls: &dyn Calls) -> Result<(), DiskError> {
        let bytes = read_file(&folder.join(WHOLE))?.unwrap_or_default();
        let text = str::from_utf8(&bytes).unwrap_or_default();
        let Some((since, until)) = text.trim_end().split_once(' ') else { return Ok(()) };
        let is_so = until == FOR_EVER || calls.boot().as_deref() == Some(until);
        self.whole_since = since.parse().ok().filter(|_| is_so);
        Ok(())
    }

    fn read_intents(&mut self, folder: &Path) -> Result<(), DiskError> {
        let path = folder.join(INTENTS);
        let Some(bytes) = read_file(&path)? else { return Ok(()) };
        match newest_intents(&bytes) {
            Some((.., intents)) => self.intents = intents,
            None => self.notes.push(format!("{} is damaged and does not count", path.display())),
        }
        // A segment is there before the first intent is.
        if self.records.is_none() && self.number == 0 {
            self.notes.push(format!("{} has intents and no log", folder.display()));
            self.is_lost = true;
        }
        Ok(())
    }
}

/// Says that nothing is gone since this life, for as long as the machine does not start anew; or for ever, if
/// everything is synced. Where the system does not tell when it was started nothing is said.
pub(super) fn vouch(
    calls: &dyn Calls,
    folder: &Path,
    since: Incarnation,
    is_synced: bool,
) -> io::Result<()> {
    let boot = if is_synced { Some(FOR_EVER.to_owned()) } else { calls.boot() };
    match boot {
        Some(boot) => replace(calls, folder, WHOLE, format!("{since} {boot}\n").as_bytes()),
        None => doubt(folder),
    }
}

/// From here on something may be gone when this process is: what is in memory only.
pub(super) fn doubt(folder: &Path) -> io::Result<()> {
    match std::fs::remove_file(folder.join(WHOLE)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A file of another build is not touched: only what is damaged may be passed over.
fn not_other(bad: BadHeader, path: &Path) -> Result<&'static str, DiskError> {
    let file = path.to_path_buf();
    match bad {
        BadHeader::Damaged => Ok("its beginning is damaged"),
        BadHeader::Format(found) => Err(DiskError::OtherFormat { file, found }),
        BadHeader::Rules(found) => Err(DiskError::OtherRules { file, found }),
    }
}

fn names(folder: &Path) -> Result<Vec<String>, DiskError> {
    let failed = |source| io_error("reading", folder.into(), source);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error("reading", path.into(), source)),
    }
}

pub(super) fn io_error(doing: &'static str, file: PathBuf, source: io::Error) -> DiskError {
    DiskError::Io { doing, file, source }
}
