use std::{io, path::PathBuf};

/// Why events can't be shipped, or a stream can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// A setting that can't be.
    #[error("logs.kinesis.{setting} = {value}: it is {least} to {most}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What it was set to.
        value: usize,
        /// The smallest that it may be.
        least: usize,
        /// The largest that it may be.
        most: usize,
    },
    /// A text that names no stream.
    #[error(
        "{text:?} names no stream: write kinesis://STREAM?region=REGION, and &endpoint=URL for one that is not AWS's"
    )]
    NoTarget {
        /// The text.
        text: String,
    },
    /// The thread that ships could not be started.
    #[error("starting the thread that ships events to Kinesis")]
    Thread(#[source] io::Error),
    /// The place up to which a log is shipped can't be kept.
    #[error("keeping the place up to which events are shipped, {file}", file = .file.display())]
    Progress {
        /// Its file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The service did not do it.
    #[error(transparent)]
    Service(#[from] super::ServiceError),
}
