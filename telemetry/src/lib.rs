//! Traces and metrics of every role: what a server counts, with its names and units; spans, and the context that joins
//! them across frames; and the way of both out of the process.
//!
//! A server owns its instruments and moves them with plain stores; they are read only when somebody asks. Nothing here
//! is in the way of a frame: a span exists only for a request that was sampled.
//!
//! *Takes*: counters and histograms of the servers; spans that have ended.
//! *Gives*: Prometheus text to whoever asks; OTLP to a collector, in batches, if it is built with `otlp`.
//! *Owns*: names and units of metrics; the sampling; the export and its queue.
//! *Never*: costs anything while it is off; waits for a collector; puts an id on a metric.

mod config;
mod encoding;
mod error;
mod export;
mod histogram;
mod instruments;
#[cfg(feature = "otlp")]
mod otlp;
mod process;
mod prometheus;
mod queue;
mod registry;
mod seldom;
mod trace;

pub use config::TelemetryConfig;
pub use error::TelemetryError;
pub use export::{Export, Exported};
pub use histogram::{Distribution, Histogram};
pub use instruments::{Description, Kind, Source, Unit, Value};
pub use process::Process;
pub use prometheus::name as prometheus_name;
pub use registry::{Registry, Who};
pub use seldom::Seldom;
pub use trace::{Attribute, Parent, Sampler, Span, SpanKind, Tracer};
