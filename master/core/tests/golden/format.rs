//! The golden log's two files: `v1.log`, commands in order, each a MessagePack `(Header, Command)` behind its length
//! (u32, little-endian); and `v1.hashes`, what a core has to come to on the way.
#![allow(dead_code, reason = "the writer and the test each use a part of it")]

use std::fmt::Write;

use greenroom_master_core::{Command, Effects, Header, Settings, State};
use greenroom_protocol::{Limits, decode, encode, encode_into};

use crate::world;

pub(crate) const LOG: &str = "v1.log";
pub(crate) const HASHES: &str = "v1.hashes";

/// Commands from one line of hashes to the next.
const LINE_COMMANDS: u64 = 100;

pub(crate) type Entry = (Header, Command);

/// Part of the golden log: other defaults do not change what it comes to. Small enough for every bound to be met.
pub(crate) fn settings() -> Settings {
    Settings {
        session_grace_ms: 60_000,
        reservation_ms: 15_000,
        server_grace_ms: 15_000,
        rejoin_grace_ms: 3_000,
        server_memory_ms: 600_000,
        sessions_max: 48,
        seats_max: 4,
        requests_max: 6,
        watches_max: 3,
        stream_max: 256,
        board_members_max: 12,
    }
}

pub(crate) fn state() -> State {
    State::new(&world::secret(), settings())
}

pub(crate) fn to_bytes<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let entry = encode(entry);
        let len = u32::try_from(entry.len()).expect("a command is short");
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&entry);
    }
    bytes
}

pub(crate) fn from_bytes(mut bytes: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk() {
        let (entry, rest) = rest.split_at(u32::from_le_bytes(*len) as usize);
        entries
            .push(decode(entry, Limits::SERVER).expect("an entry of the golden log is a command"));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "the golden log ends inside a length");
    entries
}

/// Replays the log on a fresh core. Per line: number of the command, hash of the state, hash of all effects so far.
/// After each line the state goes on as what `and_then` makes of it.
pub(crate) fn hashes(entries: &[Entry], and_then: impl Fn(State) -> State) -> String {
    let mut state = state();
    let mut running = blake3::Hasher::new();
    let (mut effects, mut bytes, mut lines) = (Effects::new(), Vec::new(), String::new());
    for (n, (header, command)) in entries.iter().enumerate() {
        effects.clear();
        state.apply(header, command, &mut effects);
        bytes.clear();
        encode_into(&effects, &mut bytes);
        running.update(&bytes);
        if header.lsn.is_multiple_of(LINE_COMMANDS) || n + 1 == entries.len() {
            let (lsn, hash, effects) = (header.lsn, state.state_hash(), running.finalize());
            writeln!(lines, "{lsn} {hash:032x} {effects}").expect("a text takes every line");
            state = and_then(state);
        }
    }
    lines
}
