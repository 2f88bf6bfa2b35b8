//! Stories of a whole cluster: real processes, real sockets, real signals.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "in a test a panic is the report")]
#![expect(clippy::wildcard_enum_match_arm, reason = "what is not expected is the other arm")]
#![expect(unreachable_pub, reason = "the harness is shared by the test programs")]

#[path = "../harness/mod.rs"]
mod harness;

// Somebody else's Kinesis API, and the network before it that fails.
#[cfg(feature = "kinesis")]
#[path = "../../logs/tests/shipping/http.rs"]
mod http;
#[cfg(feature = "kinesis")]
#[path = "../../logs/tests/shipping/moto.rs"]
mod moto;
#[cfg(feature = "kinesis")]
#[path = "../../logs/tests/shipping/proxy.rs"]
#[expect(dead_code, reason = "the tests of the shipper have more faults than the stories")]
mod proxy;

mod aside;
mod bad_input;
#[cfg(feature = "couchbase")]
mod couchbase;
mod directory;
mod documents;
mod events;
mod failover;
mod full_disk;
#[cfg(feature = "kinesis")]
mod kinesis;
mod operators;
mod players;
mod races;
mod restores;
#[cfg(all(feature = "kinesis", feature = "otlp"))]
mod secrets;
#[cfg(feature = "otlp")]
mod telemetry;
mod twins;
mod up;
