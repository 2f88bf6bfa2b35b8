//! What is asked of the file system, behind a door at which tests can stand.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The calls that may fail on a disk that is full or broken.
pub(super) trait Calls: Send + Sync {
    /// Writes all of `bytes` at a place of the file.
    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }

    /// Makes durable what was written to the file.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Makes durable which files are in the folder.
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    /// Names the time since the machine started: what was written in it is there, synced or not. Nothing where the
    /// system does not say.
    fn boot(&self) -> Option<String> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(id.trim().to_owned()).filter(|id| !id.is_empty())
    }
}

/// The system's own.
pub(super) struct System;

impl Calls for System {}

/// A new file in place of whatever is there.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
}

/// Asks for room up to `end`, so that a write in it changes no length. It is a wish: without it, or on a file system
/// that can't, the write itself asks.
pub(super) fn reserve(file: &File, from: u64, end: u64) -> bool {
    let mode = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(file, mode, from, end.saturating_sub(from)).is_ok()
}

/// Forgets what the system remembers of a file without it being on the disk: after a sync that failed, a process may
/// read what a loss of power takes away. To be called after a sync.
pub(super) fn forget_cached(file: &File) {
    let _a_hint_only = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

/// Puts a small file in the place of the one before: whoever reads it finds either, whole.
pub(super) fn replace(
    calls: &dyn Calls,
    folder: &Path,
    name: &str,
    bytes: &[u8],
) -> io::Result<()> {
    let beside = folder.join(format!("{name}{NEW}"));
    let file = create(&beside)?;
    calls.write_at(&file, bytes, 0)?;
    calls.sync(&file)?;
    std::fs::rename(&beside, folder.join(name))?;
    calls.sync_folder(folder)
}

/// How the name of a file ends that is not complete.
pub(super) const NEW: &str = ".new";

/// How the name of a file ends that was damaged, and is kept for whoever wants to look.
pub(super) const DAMAGED: &str = ".damaged";
