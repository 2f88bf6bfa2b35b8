//! How a client is doing.

use std::time::Duration;

use ecow::EcoString;
use greenroom_protocol::{Refusal, SessionId, UserId};

/// Where the client stands with its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Checked in for the first time, and the connection holds.
    Live,
    /// The connection is lost; the client looks for another and repeats what was under way.
    Resuming,
    /// Connected again, and every seat that is still there is taken again.
    Resumed,
    /// Over, and why. Nothing follows.
    Closed(Refusal),
}

/// Who the client is, by the word of the session server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// The name that others see.
    pub name: EcoString,
    /// The session.
    pub session: SessionId,
    /// The address of the session server that the client is connected to, or was last.
    pub server: EcoString,
}

/// Counts of one client since its first check-in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections that replaced a lost one.
    pub reconnects: u64,
    /// Messages of games.
    pub messages: u64,
    /// Reliable messages that came again and were dropped, as they should be after a reconnect.
    pub duplicates_dropped: u64,
    /// Reliable messages that never came: the client was away for longer than they are kept.
    pub missed: u64,
    /// Replies to calls that have a reply already.
    pub stray_replies: u64,
    /// Patches that came.
    pub patches: u64,
    /// Snapshots that came whole.
    pub snapshots: u64,
    /// Views that changed.
    pub states: u64,
    /// Patches that did not fit, after each of which a snapshot was asked for.
    pub desyncs: u64,
    /// Times that messages were to be sent again, because a queue on the way was full.
    pub sent_again: u64,
    /// Connections that ended because the server broke the protocol.
    pub misbehaved: u64,
    /// Frames of kinds that this version does not know.
    pub unknown_frames: u64,
    /// How long the last heartbeat took there and back.
    pub round_trip: Option<Duration>,
}
