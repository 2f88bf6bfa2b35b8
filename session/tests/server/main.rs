//! A real session server on a thread of its own, between a master and a game server that the tests play, and clients
//! that say exactly what a story wants, over every transport.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "in a test a panic is the report, and one message of many is looked for"
)]

mod client;
mod cluster;
mod hostile;
mod stories;
