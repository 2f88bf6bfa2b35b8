//! Traces and metrics of every role.
//!
//! *Takes*: spans and counters, and the context that came with a frame.
//! *Gives*: the context that goes on with the next frame; OTLP; Prometheus text.
//! *Owns*: the export and its sampling.
//! *Never*: costs anything while it is off.
