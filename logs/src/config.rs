use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::Severity;

/// The `[logs]` table of the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogsConfig {
    /// Where segments are kept: each process has a folder of its own in it. Default: `logs` in the data folder.
    pub folder: Option<PathBuf>,
    /// What is written: this severity and those above it, or `off`.
    pub level: Level,
    /// Bytes of a segment, at most, before it is closed and compressed.
    pub segment_bytes_max: u64,
    /// How long a segment is written to before it is closed, e.g. "1h".
    #[serde(with = "humantime_serde")]
    pub segment_time_max: Duration,
    /// Bytes of all segments of a process on disk; past it the oldest go.
    pub total_bytes_max: u64,
    /// Events that may wait for the disk; more are lost, and counted.
    pub queue_events_max: usize,
    /// Bytes of them.
    pub queue_bytes_max: usize,
}

impl Default for LogsConfig {
    fn default() -> Self {
        Self {
            folder: None,
            level: Level::From(Severity::Info),
            segment_bytes_max: 64 << 20,
            segment_time_max: Duration::from_secs(3_600),
            total_bytes_max: 2 << 30,
            queue_events_max: 131_072,
            queue_bytes_max: 32 << 20,
        }
    }
}

/// What is written of all that is emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Level {
    /// Nothing; no folder is made.
    Off,
    /// This severity and those above it.
    From(Severity),
}

impl TryFrom<String> for Level {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let severity = Severity::ALL.into_iter().find(|severity| severity.name() == text);
        match (text.as_str(), severity) {
            ("off", _) => Ok(Self::Off),
            (_, Some(severity)) => Ok(Self::From(severity)),
            _ => {
                Err(format!("there are the levels off, error, warn, info and debug, not {text:?}"))
            }
        }
    }
}
