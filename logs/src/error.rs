use std::{io, path::PathBuf};

/// Why the event log can't be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// A folder is needed and can't be made or listed.
    #[error(
        "the folder of the event log, {folder}: choose another with --logs-folder, or mend its rights",
        folder = .folder.display()
    )]
    Folder {
        /// Which.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// All places for a process of this name are taken by processes that run.
    #[error("{count} processes already write the event log in {folder} under this name", folder = .folder.display())]
    Taken {
        /// The folder.
        folder: PathBuf,
        /// How many were tried.
        count: u32,
    },
    /// A segment can't be read or written.
    #[error("the segment {file} of the event log", file = .file.display())]
    Segment {
        /// Which.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The thread that writes could not be started.
    #[error("starting the thread that writes the event log")]
    Thread(#[source] io::Error),
}
