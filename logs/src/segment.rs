//! Segments as files: their names, how one is closed, and what a start finds.
//!
//! A process has a folder of its own. In it is the segment that is written to, `00000007-1795858210123.jsonl`: its
//! number, and the milliseconds since 1970 at which it was begun. Once closed it is `….jsonl.zst`, a frame of zstd with
//! the checksum of its content. A name that is there is a whole file: it is made beside, and moved.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

/// zstd's own default: 7 times smaller, at 200 MB/s.
const COMPRESSION: i32 = 3;
/// What is read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// How often a folder is listed in which segments are closed meanwhile.
const LISTINGS_MAX: u32 = 16;

/// A segment on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    /// When it was begun, in milliseconds since 1970.
    pub(crate) start_ms: u64,
    pub(crate) is_closed: bool,
    pub(crate) file: PathBuf,
    /// Bytes on disk.
    pub(crate) bytes: u64,
}

impl Segment {
    /// Whether its name leads to a regular file.
    pub(crate) fn is_regular(&self) -> bool {
        self.file.is_file()
    }
}

pub(crate) fn name(number: u64, start_ms: u64) -> String {
    format!("{number:08}-{start_ms}.jsonl")
}

fn parse(name: &str) -> Option<(u64, u64, bool)> {
    let (stem, is_closed) = match name.strip_suffix(".jsonl.zst") {
        Some(stem) => (stem, true),
        None => (name.strip_suffix(".jsonl")?, false),
    };
    let (number, start_ms) = stem.split_once('-')?;
    Some((number.parse().ok()?, start_ms.parse().ok()?, is_closed))
}

/// The segments of a process, oldest first, each once.
pub(crate) fn list(folder: &Path) -> io::Result<Vec<Segment>> {
    let mut all = Vec::new();
    for _ in 0..LISTINGS_MAX {
        all.clear();
        let mut has_changed = false;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some((number, start_ms, is_closed)) = name.to_str().and_then(parse) else {
                continue;
            };
            // It is gone, or was closed, and then its new name may not be in what was read: nobody may miss it.
            let Ok(meta) = entry.metadata() else {
                has_changed = true;
                continue;
            };
            let (file, bytes) = (entry.path(), meta.len());
            all.push(Segment { number, start_ms, is_closed, file, bytes });
        }
        if !has_changed {
            break;
        }
    }
    // The closed one first: for a moment both are there, and it is whole.
    all.sort_by_key(|segment| (segment.number, !segment.is_closed));
    all.dedup_by_key(|segment| segment.number);
    Ok(all)
}

/// Makes order after whatever end the last life had: gives the number of the next segment, and the bytes of torn lines
/// that were cut off. Numbers have no holes, so that a reader knows when something went before it was read.
pub(crate) fn recover(folder: &Path) -> io::Result<(u64, u64)> {
    for entry in fs::read_dir(folder)? {
        let file = entry?.path();
        let is_closed_too = || {
            let mut closed = file.clone().into_os_string();
            closed.push(".zst");
            Path::new(&closed).is_file()
        };
        let ends_in = |end| file.extension().is_some_and(|found| found == end);
        let is_left = ends_in("new") || ends_in("jsonl") && is_closed_too();
        if is_left && file.is_file() {
            fs::remove_file(&file)?;
        }
    }
    let (mut next, mut torn) = (1, 0);
    for segment in list(folder)? {
        next = segment.number + 1;
        if !segment.is_closed && segment.is_regular() {
            let cut = cut_torn_line(&segment.file)?;
            torn += cut;
            if cut == segment.bytes {
                fs::remove_file(&segment.file)?;
                next = segment.number;
            }
        }
    }
    Ok((next, torn))
}

/// Cuts off what stands after the last end of a line; gives how many bytes that were.
fn cut_torn_line(path: &Path) -> io::Result<u64> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let (whole, len) = (whole_lines(&file)?, file.metadata()?.len());
    if whole < len {
        file.set_len(whole)?;
    }
    Ok(len - whole)
}

/// Bytes of a plain segment up to the end of its last whole line.
pub(crate) fn whole_lines(mut file: &File) -> io::Result<u64> {
    let mut whole = file.metadata()?.len();
    let mut chunk = vec![0; CHUNK_BYTES];
    while whole > 0 {
        let from = whole.saturating_sub(CHUNK_BYTES as u64);
        let size = usize::try_from(whole - from).unwrap_or(CHUNK_BYTES);
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(&mut chunk[..size])?;
        match chunk[..size].iter().rposition(|&byte| byte == b'\n') {
            Some(at) => return Ok(from + at as u64 + 1),
            None => whole = from,
        }
    }
    Ok(0)
}

/// Compresses a segment that is written to no more.
pub(crate) fn close(segment: &Segment) -> io::Result<()> {
    let closed = {
        let mut path = segment.file.clone().into_os_string();
        path.push(".zst");
        PathBuf::from(path)
    };
    let beside = closed.with_extension("zst.new");
    let write = || -> io::Result<()> {
        let mut plain = open_file(&segment.file)?;
        let mut encoder = zstd::Encoder::new(BufWriter::new(File::create(&beside)?), COMPRESSION)?;
        encoder.include_checksum(true)?;
        io::copy(&mut plain, &mut encoder)?;
        encoder.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&beside, &closed)?;
        fs::remove_file(&segment.file)
    };
    let written = write();
    if written.is_err() {
        // On a full disk a part of it may be left; the plain one is there still.
        let _was_never_made = fs::remove_file(&beside);
    }
    written
}

/// How many events a segment has, for the count of what is lost with it.
pub(crate) fn count(segment: &Segment) -> u64 {
    let Ok(mut reader) = open(segment) else { return 0 };
    let (mut events, mut chunk) = (0, vec![0; CHUNK_BYTES]);
    while let Ok(1..) = reader.read(&mut chunk).inspect(|&size| {
        events += chunk[..size].iter().filter(|&&byte| byte == b'\n').count() as u64;
    }) {}
    events
}

/// Opens what is a regular file, for reading. To open something else of that name could take for ever: a FIFO waits for
/// somebody who writes.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other(
            "it is no regular file: move it out of the folder of the log",
        ));
    }
    File::open(path)
}

/// Says which segment is passed over, and why.
pub(crate) fn left_out(segment: &Segment, error: &io::Error) {
    tracing::warn!(file = %segment.file.display(), %error, "a segment of the event log is left out");
}

/// What reads a segment's plain bytes.
pub(crate) fn open(segment: &Segment) -> io::Result<Box<dyn io::Read + Send>> {
    let file = open_file(&segment.file)?;
    match segment.is_closed {
        true => Ok(Box::new(zstd::Decoder::new(file)?)),
        false => Ok(Box::new(file)),
    }
}
