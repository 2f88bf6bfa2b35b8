//! Lives of a master that end in all ways, and what the next one finds.

use std::path::Path;
use std::sync::Arc;

use greenroom_master_core::replica::{Entry, Logged, Position};
use greenroom_master_core::{Command, Header};
use greenroom_protocol::Epoch;
use tempfile::TempDir;

use super::*;

/// `count` entries that continue a log.
fn entries(after: Position, count: u64) -> Vec<Entry<Logged>> {
    let mut before = after;
    let mut all = Vec::new();
    for number in 1..=count {
        let lsn = after.lsn + number;
        let header = Header { lsn, epoch: Epoch { era: 1, epoch: 1 }, now_ms: lsn, seed: lsn };
        let command = Arc::new(Logged::new(Command::Expire));
        let entry = Entry::after(before, header, command);
        before = entry.position();
        all.push(entry);
    }
    all
}

fn next(disk: &mut Disk) -> Done {
    disk.done.blocking_recv().unwrap()
}

/// What the process leaves behind when it is killed now.
fn killed(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

#[test]
fn what_was_written_survives_a_process_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, found) = Disk::open(folder.path()).unwrap();
    assert!(found.records.is_none() && found.recovered.entries.is_empty());
    let written = entries(Position::default(), 5);
    disk.write(&written[..2]);
    disk.write(&written[2..]);
    let left = killed(folder.path());
    disk.sync(5);
    assert_eq!(next(&mut disk), Done::Synced(5));
    let (_, again) = Disk::open(left.path()).unwrap();
    assert_eq!(again.recovered.entries, written);
    assert_eq!(again.notes, Vec::<String>::new());
    assert!(again.incarnation > found.incarnation);
}
