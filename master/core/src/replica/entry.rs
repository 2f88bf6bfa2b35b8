//! An entry of the directory's log as bytes: the same on the disk and on the way to the other master.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use greenroom_protocol::{DecodeError, Epoch};

use super::apply::{Apply, Logged};
use super::chain::link;
use super::words::{Entry, Position};
use crate::command::Header;
use crate::state::State;

/// Why bytes are no entry of a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    /// They end before the command begins.
    #[error("an entry of the log has {0} bytes, fewer than its header")]
    Short(usize),
    /// Another build wrote it, or it is damaged.
    #[error("the command of entry {lsn} can't be read")]
    Command {
        /// Number of the entry.
        lsn: u64,
        /// What is wrong with it.
        source: DecodeError,
    },
}

impl Entry<Logged> {
    /// Length of what stands before the command: lsn u64, era u32, epoch u32, `now_ms` u64, seed u64, version u16,
    /// chain u128, all little-endian.
    pub const HEADER_BYTES: usize = 50;

    /// Length of the entry as bytes.
    pub fn encoded_len(&self) -> usize {
        Self::HEADER_BYTES + self.command.bytes().len()
    }

    /// Appends the entry to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let Header { lsn, epoch, now_ms, seed } = self.header;
        out.put_u64_le(lsn);
        out.put_u32_le(epoch.era);
        out.put_u32_le(epoch.epoch);
        out.put_u64_le(now_ms);
        out.put_u64_le(seed);
        out.put_u16_le(self.version);
        out.put_u128_le(self.chain);
        out.put_slice(self.command.bytes());
    }

    /// Reads an entry; its command keeps a share of `bytes`.
    ///
    /// # Errors
    /// When the bytes are no entry, or of a command that this build does not know.
    pub fn decode(mut bytes: Bytes) -> Result<Self, BadEntry> {
        if bytes.len() < Self::HEADER_BYTES {
            return Err(BadEntry::Short(bytes.len()));
        }
        let lsn = bytes.get_u64_le();
        let epoch = Epoch { era: bytes.get_u32_le(), epoch: bytes.get_u32_le() };
        let header = Header { lsn, epoch, now_ms: bytes.get_u64_le(), seed: bytes.get_u64_le() };
        let (version, chain) = (bytes.get_u16_le(), bytes.get_u128_le());
        let command = Logged::decode(bytes).map_err(|source| BadEntry::Command { lsn, source })?;
        Ok(Self { header, version, chain, command: Arc::new(command) })
    }

    /// The entry that follows a place of a log.
    pub fn after(before: Position, header: Header, command: Arc<Logged>) -> Self {
        let version = State::VERSION;
        let chain = link(before.chain, &header, version, State::digest(&command));
        Self { header, version, chain, command }
    }

    /// Whether this entry was appended there: the next number, and a chain over all that came before.
    pub fn follows(&self, before: Position) -> bool {
        let digest = State::digest(&self.command);
        self.header.lsn == before.lsn.wrapping_add(1)
            && self.chain == link(before.chain, &self.header, self.version, digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;

    #[test]
    fn an_entry_survives_its_bytes_and_half_of_one_is_refused() {
        let header = Header { lsn: 7, epoch: Epoch { era: 1, epoch: 2 }, now_ms: 3, seed: 4 };
        let command = Arc::new(Logged::new(Command::Expire));
        let entry = Entry { header, version: 5, chain: 6, command };
        let mut bytes = Vec::new();
        entry.encode_into(&mut bytes);
        assert_eq!(bytes.len(), entry.encoded_len());
        assert_eq!(Entry::decode(bytes.clone().into()), Ok(entry));
        for len in 0..bytes.len() {
            assert!(Entry::decode(bytes[..len].to_vec().into()).is_err());
        }
    }
}
