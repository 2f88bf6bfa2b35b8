//! What is in the files, byte by byte. All numbers are little-endian.
//!
//! A file begins with a [`Header`]. Frames follow: length u32, CRC-32 u32 of the length and what follows it, then that
//! many bytes. In a log each frame is the number of the last entry that was durable when it was written (u64), and an
//! entry; a length of 0 or the end of the file ends it. In a checkpoint each frame is a record as `MessagePack`; one
//! with the length [`END`] holds their count (u64) and ends it.

use bytes::Bytes;
use greenroom_master_core::State;
use greenroom_master_core::replica::{Apply, Entry, Logged, Position};

/// Which layout this is. It grows when this file says something else.
pub(super) const FORMAT: u16 = 1;
/// The rules by which this build applies commands.
pub(super) const RULES: u16 = <State as Apply>::VERSION;
/// First bytes of a segment of a log.
pub(super) const LOG: [u8; 8] = *b"GRLOG\r\n\0";
/// First bytes of a checkpoint.
pub(super) const CHECKPOINT: [u8; 8] = *b"GRCKPT\r\n";
/// Length that says that a checkpoint is over.
pub(super) const END: u32 = u32::MAX;

/// The beginning of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Which log on this disk: each copied checkpoint begins another one.
    pub(super) generation: u32,
    /// The place in the log after which the file begins, or at which the checkpoint was taken.
    pub(super) at: Position,
    /// Number of the last entry that was durable when the file was begun.
    pub(super) synced: u64,
}

/// Why a file can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// It was torn, or something else wrote to it.
    Damaged,
    /// It has another layout.
    Format(u16),
    /// Its commands were applied by other rules.
    Rules(u16),
}

impl Header {
    /// Its length: magic 8 bytes, format u16, rules u16, generation u32, lsn u64, chain u128, synced u64, CRC-32 u32
    /// of all that, and zeros. Where format and rules stand never changes.
    pub(super) const BYTES: usize = 64;
    const SUMMED: usize = 48;

    pub(super) fn bytes(&self, magic: [u8; 8]) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[0..8].copy_from_slice(&magic);
        out[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        out[10..12].copy_from_slice(&RULES.to_le_bytes());
        out[12..16].copy_from_slice(&self.generation.to_le_bytes());
        out[16..24].copy_from_slice(&self.at.lsn.to_le_bytes());
        out[24..40].copy_from_slice(&self.at.chain.to_le_bytes());
        out[40..48].copy_from_slice(&self.synced.to_le_bytes());
        let sum = crc32fast::hash(&out[..Self::SUMMED]);
        out[48..52].copy_from_slice(&sum.to_le_bytes());
        out
    }

    pub(super) fn parse(bytes: &[u8], magic: [u8; 8]) -> Result<Self, BadHeader> {
        if bytes.len() < Self::BYTES || bytes[..8] != magic {
            return Err(BadHeader::Damaged);
        }
        let format = u16::from_le_bytes(array(&bytes[8..]));
        if format != FORMAT {
            return Err(BadHeader::Format(format));
        }
        if crc32fast::hash(&bytes[..Self::SUMMED]).to_le_bytes() != bytes[48..52] {
            return Err(BadHeader::Damaged);
        }
        let rules = u16::from_le_bytes(array(&bytes[10..]));
        if rules != RULES {
            return Err(BadHeader::Rules(rules));
        }
        let at = Position {
            lsn: u64::from_le_bytes(array(&bytes[16..])),
            chain: u128::from_le_bytes(array(&bytes[24..])),
        };
        let generation = u32::from_le_bytes(array(&bytes[12..]));
        Ok(Self { generation, at, synced: u64::from_le_bytes(array(&bytes[40..])) })
    }
}

/// The first bytes of a slice that has at least as many.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("the callers have looked at the length")
}

/// What stands before the bytes of a frame: length u32, CRC-32 u32.
const PREFIX: usize = 8;

fn sum(len: [u8; 4], body: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len);
    hasher.update(body);
    hasher.finalize().to_le_bytes()
}

/// Appends a frame whose bytes `fill` appends.
pub(super) fn put_frame(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX]);
    fill(out);
    let len = u32::try_from(out.len() - start - PREFIX)
        .ok()
        .filter(|len| *len != END)
        .expect("what crossed a link of at most 4 MiB fits a frame");
    let (prefix, body) = out[start..].split_at_mut(PREFIX);
    prefix[..4].copy_from_slice(&len.to_le_bytes());
    prefix[4..].copy_from_slice(&sum(len.to_le_bytes(), body));
}

/// Appends the frame that ends a checkpoint of `count` records.
pub(super) fn put_end(out: &mut Vec<u8>, count: u64) {
    out.extend_from_slice(&END.to_le_bytes());
    out.extend_from_slice(&sum(END.to_le_bytes(), &count.to_le_bytes()));
    out.extend_from_slice(&count.to_le_bytes());
}

/// Appends an entry of a log.
pub(super) fn put_entry(out: &mut Vec<u8>, entry: &Entry<Logged>, synced: u64) {
    put_frame(out, |out| {
        out.extend_from_slice(&synced.to_le_bytes());
        entry.encode_into(out);
    });
}

/// What stands at a place of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// Something whole; `next` is the place after it.
    Whole { body: &'a [u8], next: usize },
    /// A checkpoint is over after so many.
    Last(u64),
    /// Nothing: the file ends here, or zeros begin.
    Nothing,
    /// Something that is no frame.
    Torn,
}

/// Looks at a place of a file.
pub(super) fn frame(bytes: &[u8], at: usize) -> Frame<'_> {
    let rest = bytes.get(at..).unwrap_or_default();
    if rest.is_empty() {
        return Frame::Nothing;
    }
    let Some((prefix, body)) = rest.split_first_chunk::<PREFIX>() else {
        return if rest.iter().all(|byte| *byte == 0) { Frame::Nothing } else { Frame::Torn };
    };
    let (len, expected) = (array(&prefix[..4]), &prefix[4..]);
    match u32::from_le_bytes(len) {
        0 => Frame::Nothing,
        END => match body.first_chunk() {
            Some(count) if sum(len, count) == expected => Frame::Last(u64::from_le_bytes(*count)),
            Some(_) | None => Frame::Torn,
        },
        wanted => {
            let Some(body) = usize::try_from(wanted).ok().and_then(|wanted| body.get(..wanted))
            else {
                return Frame::Torn;
            };
            let is_whole = sum(len, body) == expected;
            let next = at + PREFIX + body.len();
            if is_whole { Frame::Whole { body, next } } else { Frame::Torn }
        }
    }
}

/// The entry in a frame, and what was durable when it was written.
pub(super) fn entry(body: &[u8]) -> Option<(Entry<Logged>, u64)> {
    let (synced, entry) = body.split_first_chunk()?;
    // Copied: a share of the file would keep all of it in memory for as long as one entry.
    let entry = Entry::decode(Bytes::copy_from_slice(entry)).ok()?;
    Some((entry, u64::from_le_bytes(*synced)))
}

/// Behind a place that can't be read: the largest number of an entry that was durable when something there was
/// written. It shows whether only a torn end was lost, or what somebody relied on.
pub(super) fn durable_behind(bytes: &[u8], from: usize) -> u64 {
    let mut durable = 0;
    let mut at = from;
    while at + PREFIX + 8 + Entry::<Logged>::HEADER_BYTES <= bytes.len() {
        let synced = u64::from_le_bytes(array(&bytes[at + PREFIX..]));
        let lsn = u64::from_le_bytes(array(&bytes[at + PREFIX + 8..]));
        // Few places look like the beginning of an entry; only for those the sum is worth its time.
        let seems_whole = synced < lsn && lsn < 1 << 48 && bytes[at..at + 4] != [0; 4];
        match if seems_whole { frame(bytes, at) } else { Frame::Torn } {
            Frame::Whole { next, .. } => {
                durable = durable.max(synced);
                at = next;
            }
            Frame::Last(_) | Frame::Nothing | Frame::Torn => at += 1,
        }
    }
    durable
}
