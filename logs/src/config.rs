use std::{path::PathBuf, time::Duration};

use ecow::EcoString;
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
    /// The stream that events are shipped to.
    pub kinesis: KinesisConfig,
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
            kinesis: KinesisConfig::default(),
        }
    }
}

/// The `[logs.kinesis]` table of the configuration. Its limits are those that every stream has had since there are
/// streams; a service that takes more may be told so.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KinesisConfig {
    /// Name of the stream that events are shipped to. Default: none, and events stay on this machine.
    pub stream: Option<EcoString>,
    /// Its region, e.g. `eu-central-1`. Default: what the environment or the machine's profile says.
    pub region: Option<EcoString>,
    /// Another endpoint than the region's, as a URL.
    pub endpoint: Option<EcoString>,
    /// Records of a call at most.
    pub call_records_max: usize,
    /// Bytes of a call at most, keys included.
    pub call_bytes_max: usize,
    /// Bytes of a record at most, its key included.
    pub record_bytes_max: usize,
    /// Bytes at which a record leaves without waiting for more events.
    pub record_bytes: usize,
    /// How long an event waits for others to share a record with, e.g. "200ms".
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
    /// Calls under way at most.
    pub calls_max: usize,
    /// How long a call may take, e.g. "10s": past it nobody knows, and it is made again.
    #[serde(with = "humantime_serde")]
    pub call_timeout: Duration,
    /// Bytes of events in memory that are not shipped yet, at most: the rest waits on disk.
    pub buffer_bytes_max: usize,
}

impl Default for KinesisConfig {
    fn default() -> Self {
        Self {
            stream: None,
            region: None,
            endpoint: None,
            call_records_max: 500,
            call_bytes_max: 5 << 20,
            record_bytes_max: 1 << 20,
            record_bytes: 100 << 10,
            linger: Duration::from_millis(200),
            calls_max: 4,
            call_timeout: Duration::from_secs(10),
            buffer_bytes_max: 16 << 20,
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
