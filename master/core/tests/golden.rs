//! The golden log: commands that are kept in the repository, and what a core has to come to with them.
//!
//! Two builds that differ here are no active and standby of one cluster. If it fails, a decision of the core has
//! changed: by mistake, or on purpose, and then `README.md` says when and how the files are written anew.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[path = "golden/format.rs"]
mod format;
mod world;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use format::{Entry, HASHES, LOG, from_bytes, hashes, to_bytes};
use greenroom_master_core::{Command, Event};
use greenroom_protocol::wire::admin_master::Action;
use greenroom_protocol::wire::client_session::Request;
use greenroom_protocol::wire::server_server::Role;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}
fn log() -> Vec<u8> {
    fs::read(file(LOG)).unwrap()
}

/// The first line that differs names the hundred commands in which a decision did.
fn assert_golden(lines: &str) {
    let golden = fs::read_to_string(file(HASHES)).unwrap();
    for (line, golden) in lines.lines().zip(golden.lines()) {
        assert_eq!(line, golden, "number of the command, hash of the state, hash of all effects");
    }
    assert_eq!(lines.lines().count(), golden.lines().count());
}

#[test]
fn the_golden_log_comes_to_what_it_always_came_to() {
    assert_golden(&hashes(&from_bytes(&log()), |state| state));
}

#[test]
fn the_golden_log_comes_to_the_same_by_way_of_snapshots() {
    assert_golden(&hashes(&from_bytes(&log()), |state| world::restored(&state)));
}

#[test]
fn the_golden_log_is_written_as_it_is_read() {
    assert_eq!(to_bytes(&from_bytes(&log())), log());
}

/// What a command is about. Every name here stands in [`EVERYTHING`].
fn subject((_, command): &Entry) -> &'static str {
    match command {
        Command::SessionUp(..) => "session up",
        Command::SessionLoad(..) => "session load",
        Command::SessionReceived(..) => "session received",
        Command::Bind(..) => "bind",
        Command::Unbind(..) => "unbind",
        Command::Seen(..) => "seen",
        Command::Ask { request, .. } => match request {
            Request::Create(_) => "create",
            Request::Join(_) => "join",
            Request::JoinOrCreate(_) => "join or create",
            Request::Leave(_) => "leave",
            Request::Destroy(_) => "destroy",
            Request::Search(_) => "search",
            Request::Watch(_) => "watch",
            Request::Unwatch(_) => "unwatch",
            Request::Rank(_) => "rank",
            Request::Unknown(_) => "unknown request",
        },
        Command::GameUp(..) => "game up",
        Command::GameLoad(..) => "game load",
        Command::GameReceived(..) => "game received",
        Command::Happened(_, _, event) => match event {
            Event::Running(_) => "running",
            Event::CreateRefused(_) => "create refused",
            Event::SeatChanged(_) => "seat changed",
            Event::MetaChanged(_) => "meta changed",
            Event::Closed(_) => "closed",
            Event::Scored(_) => "scored",
            Event::HandedOver(_) => "handed over",
        },
        Command::LinkLost(role, _) => match role {
            Role::Session => "session server lost",
            Role::Game => "game server lost",
            Role::Master | Role::Witness => "master lost",
        },
        Command::Died(_) => "game server died",
        Command::Stored(_) => "stored",
        Command::ClockAt(_) => "clock",
        Command::Expire => "expire",
        Command::Act { action, .. } => match action {
            Action::Destroy { .. } => "operator destroys",
            Action::Kick { .. } => "operator kicks",
            Action::Drain { .. } => "operator drains",
            Action::Restore(_) => "operator restores",
        },
    }
}

const EVERYTHING: [&str; 37] = [
    "handed over",
    "session up",
    "session load",
    "session received",
    "bind",
    "unbind",
    "seen",
    "create",
    "join",
    "join or create",
    "leave",
    "destroy",
    "search",
    "watch",
    "unwatch",
    "rank",
    "unknown request",
    "game up",
    "game load",
    "game received",
    "running",
    "create refused",
    "seat changed",
    "meta changed",
    "closed",
    "scored",
    "session server lost",
    "game server lost",
    "master lost",
    "game server died",
    "stored",
    "clock",
    "expire",
    "operator destroys",
    "operator kicks",
    "operator drains",
    "operator restores",
];

#[test]
fn the_golden_log_has_every_command_event_request_and_action() {
    let said: BTreeSet<&str> = from_bytes(&log()).iter().map(subject).collect();
    assert_eq!(said, BTreeSet::from(EVERYTHING));
}
