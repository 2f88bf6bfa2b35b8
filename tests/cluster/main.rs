//! Stories of a whole cluster: real processes, real sockets, real signals.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "in a test a panic is the report")]
#![expect(clippy::wildcard_enum_match_arm, reason = "what is not expected is the other arm")]
#![expect(unreachable_pub, reason = "the harness is shared by the test programs")]

#[path = "../harness/mod.rs"]
mod harness;

mod bad_input;
mod directory;
mod failover;
mod operators;
mod players;
mod races;
#[cfg(feature = "otlp")]
mod telemetry;
mod up;
