//! The event log: what every role and game has to tell an analyst, on this machine's disk and in Kinesis.
//!
//! *Takes*: typed events, from any thread, without ever blocking it.
//! *Gives*: segments on disk; their tail; answers to SQL; records in a Kinesis stream.
//! *Owns*: the schema of events, the segments, and the shipper's position in them.
//! *Never*: holds up a tick; prints a secret; loses an event without counting it.

pub mod back;
mod config;
mod error;
mod event;
mod game;
mod id;
pub mod kinds;
#[cfg(feature = "sql")]
mod plot;
pub mod read;
mod reference;
#[cfg(feature = "sql")]
pub mod report;
mod segment;
#[cfg(feature = "kinesis")]
pub mod ship;
#[cfg(feature = "sql")]
pub mod sql;
mod writer;

pub use config::{KinesisConfig, Level, LogsConfig};
pub use error::LogsError;
pub use event::{
    Event, Field, Form, Kind, LINE_BYTES_MAX, Line, Severity, TEXT_BYTES_MAX, Trace, Value,
    harmless as shown,
};
pub use game::OfGame;
pub use id::{Stamp, time};
#[cfg(feature = "sql")]
pub use plot::Shape;
pub use reference::reference;
pub use writer::{Counters, LogWriter, Logs, Metrics};
