//! A checkpoint on its way to the disk, and back.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use greenroom_master_core::Record;
use greenroom_master_core::replica::Position;
use greenroom_protocol::{Limits, decode, encode_into};

use super::files::{Calls, NEW, create};
use super::format::{self, BadHeader, CHECKPOINT, Frame, Header, put_end, put_frame};

/// Bytes that are collected before they are written.
const BUFFER_BYTES: usize = 1 << 20;

/// What the file is called that has a checkpoint of this generation, taken at this entry.
pub(super) fn name(generation: u32, lsn: u64) -> String {
    format!("checkpoint-{generation:08x}-{lsn:016x}")
}

/// What [`name`] says.
pub(super) fn parse_name(name: &str) -> Option<(u32, u64)> {
    let (generation, lsn) = name.strip_prefix("checkpoint-")?.split_once('-')?;
    Some((u32::from_str_radix(generation, 16).ok()?, u64::from_str_radix(lsn, 16).ok()?))
}

/// A checkpoint that is being written beside its place.
pub(super) struct Partial {
    pub(super) generation: u32,
    pub(super) at: Position,
    beside: PathBuf,
    file: File,
    /// Bytes in the file that are not to be written again.
    end: u64,
    buffer: Vec<u8>,
    count: u64,
    is_whole: bool,
    /// A sync failed: what the file has can only be read, and written again somewhere else.
    is_doubtful: bool,
    is_in_place: bool,
}

impl Partial {
    pub(super) fn begin(folder: &Path, generation: u32, at: Position) -> io::Result<Self> {
        let beside = folder.join(format!("checkpoint{NEW}"));
        let file = create(&beside)?;
        let header = Header { generation, at, synced: at.lsn };
        Ok(Self {
            generation,
            at,
            beside,
            file,
            end: 0,
            buffer: header.bytes(CHECKPOINT).into(),
            count: 0,
            is_whole: false,
            is_doubtful: false,
            is_in_place: false,
        })
    }

    /// Takes what `pieces` gives, for as long as what waits can be written; to be repeated if it fails.
    pub(super) fn extend(
        &mut self,
        calls: &dyn Calls,
        pieces: &mut impl Iterator<Item = Record>,
    ) -> io::Result<()> {
        loop {
            if self.buffer.len() >= BUFFER_BYTES {
                self.flush(calls)?;
            }
            let Some(piece) = pieces.next() else { return Ok(()) };
            put_frame(&mut self.buffer, |out| encode_into(&piece, out));
            self.count += 1;
        }
    }

    fn flush(&mut self, calls: &dyn Calls) -> io::Result<()> {
        calls.write_at(&self.file, &self.buffer, self.end)?;
        self.end += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes it durable and puts it into its place; to be repeated if it fails.
    pub(super) fn finish(&mut self, calls: &dyn Calls, folder: &Path) -> io::Result<()> {
        if !self.is_whole {
            put_end(&mut self.buffer, self.count);
            self.is_whole = true;
        }
        if !self.is_in_place {
            self.flush(calls)?;
            if self.is_doubtful {
                self.copy(calls, folder)?;
            }
            self.is_doubtful = true;
            calls.sync(&self.file)?;
            self.is_doubtful = false;
            std::fs::rename(&self.beside, folder.join(name(self.generation, self.at.lsn)))?;
            self.is_in_place = true;
        }
        calls.sync_folder(folder)
    }

    /// Writes all of it to another file. After a failed sync the system holds pages for written that are not, so a
    /// second sync of the same file would prove nothing.
    fn copy(&mut self, calls: &dyn Calls, folder: &Path) -> io::Result<()> {
        let bytes = std::fs::read(&self.beside)?;
        let is_same = matches!(read(&bytes), Ok((header, _)) if header.at == self.at);
        if !is_same {
            let text = "what was written of a checkpoint can't be read again";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let beside = folder.join(format!("checkpoint-again{NEW}"));
        let file = create(&beside)?;
        calls.write_at(&file, &bytes, 0)?;
        std::fs::rename(beside, &self.beside)?;
        self.file = file;
        Ok(())
    }
}

/// Why a checkpoint can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BadCheckpoint {
    /// Its beginning says so.
    Header(BadHeader),
    /// This is wrong.
    Damaged(String),
}

/// Reads a whole checkpoint.
pub(super) fn read(bytes: &[u8]) -> Result<(Header, Vec<Record>), BadCheckpoint> {
    let header = Header::parse(bytes, CHECKPOINT).map_err(BadCheckpoint::Header)?;
    let mut records = Vec::new();
    let mut at = Header::BYTES;
    loop {
        match format::frame(bytes, at) {
            Frame::Whole { body, next } => {
                let record = decode(body, Limits::SERVER).map_err(|error| {
                    let number = records.len() + 1;
                    BadCheckpoint::Damaged(format!("record {number} is none: {error}"))
                })?;
                records.push(record);
                at = next;
            }
            Frame::Last(count) if count == records.len() as u64 => return Ok((header, records)),
            Frame::Last(_) | Frame::Nothing | Frame::Torn => {
                let text = format!("it breaks off after {} records, at byte {at}", records.len());
                return Err(BadCheckpoint::Damaged(text));
            }
        }
    }
}
