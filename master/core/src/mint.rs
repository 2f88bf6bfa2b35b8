//! Ids that nobody can guess and every master makes alike: keyed hashes of the command's place in the log.

use greenroom_protocol::{Incarnation, InstanceId, SessionId};

use crate::command::Header;

/// A secret of the cluster's masters, made from the cluster's key. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecret([u8; 32]);

impl std::fmt::Debug for ClusterSecret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("ClusterSecret(***)")
    }
}

impl ClusterSecret {
    /// Derives the secret from the cluster's key. The derived one says nothing of the key.
    pub fn from_key(key: &[u8]) -> Self {
        Self(blake3::derive_key("greenroom 2026-11 secret of the masters", key))
    }

    /// Key of the hashes of point indexes.
    pub(crate) fn hash_key(&self) -> (u64, u64) {
        let bytes = self.keyed(b"point index");
        (u64_of(&bytes[..8]), u64_of(&bytes[8..16]))
    }

    /// Key of the hashes of records.
    pub(crate) fn state_key(&self) -> (u64, u64) {
        let bytes = self.keyed(b"state hash");
        (u64_of(&bytes[..8]), u64_of(&bytes[8..16]))
    }

    pub(crate) fn keyed(&self, input: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.0, input).as_bytes()
    }
}

/// Makes the ids of one command.
pub(crate) struct Mint {
    secret: ClusterSecret,
    /// `era, lsn, seed, k`: numbers of the log repeat after a declared loss, eras don't. The seed is for an era that
    /// was counted wrong: it makes even that harmless.
    input: [u8; 24],
    k: u32,
}

/// What a new instance is given.
pub(crate) struct Minted {
    pub(crate) instance: InstanceId,
    pub(crate) incarnation: Incarnation,
    /// Where its random numbers begin.
    pub(crate) seed: [u8; 32],
}

impl Mint {
    pub(crate) fn new(secret: &ClusterSecret, header: &Header) -> Self {
        let mut input = [0; 24];
        input[..4].copy_from_slice(&header.epoch.era.to_le_bytes());
        input[4..12].copy_from_slice(&header.lsn.to_le_bytes());
        input[12..20].copy_from_slice(&header.seed.to_le_bytes());
        Self { secret: secret.clone(), input, k: 0 }
    }

    pub(crate) fn instance(&mut self) -> Minted {
        let ids = self.draw();
        let mut id = [0; 16];
        id.copy_from_slice(&ids[..16]);
        Minted {
            instance: InstanceId(u128::from_le_bytes(id)),
            incarnation: Incarnation(u64_of(&ids[16..24])),
            seed: self.draw(),
        }
    }

    pub(crate) fn session(&mut self) -> SessionId {
        SessionId(u64_of(&self.draw()[..8]))
    }

    fn draw(&mut self) -> [u8; 32] {
        self.input[20..].copy_from_slice(&self.k.to_le_bytes());
        self.k += 1;
        self.secret.keyed(&self.input)
    }
}

fn u64_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}
