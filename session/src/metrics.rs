//! What a session server counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

greenroom_telemetry::instruments! {
    /// Counters of a session server, readable from any thread.
    pub struct Metrics;
    /// Connections accepted.
    counter connections = "greenroom.session.connection.accepted", "connection";
    /// Connections that are open now, as of the last second.
    gauge open = "greenroom.session.connection.count", "connection";
    /// Connections turned away or ended with a reason.
    counter turned_away = "greenroom.session.connection.turned_away", "connection";
    /// Check-ins that succeeded.
    counter check_ins = "greenroom.session.check_in.accepted", "check_in";
    /// Frames from clients.
    counter frames_up = "greenroom.session.frame.received", "frame";
    /// Frames to clients.
    counter frames_down = "greenroom.session.frame.sent", "frame";
    /// Write calls to clients' sockets.
    counter writes = "greenroom.session.socket.write", "call";
    /// Times that a client's socket took less than there was.
    counter slow_writes = "greenroom.session.socket.write.partial", "call";
    /// Patches that were not sent to a slow client; one snapshot replaces them.
    counter patches_dropped = "greenroom.session.patch.dropped", "patch";
    /// Clients that were disconnected because they read too slowly for what must not be lost.
    counter slow_consumers = "greenroom.session.connection.slow", "connection";
    /// Frames that were refused because their client was over its limits.
    counter over_limits = "greenroom.session.frame.over_limits", "frame";
    /// Frames that were refused because the way to their game server was full or gone.
    counter sent_back = "greenroom.session.frame.sent_back", "frame";
    /// Frames from servers for somebody who is gone.
    counter late = "greenroom.session.frame.late", "frame";
    /// How long requests to the directory took, from their arrival here to their answer.
    histogram request_duration = "greenroom.session.request.duration";
    /// How long the way to clients and back takes, by this server's pings.
    histogram round_trip = "greenroom.session.round_trip.duration";
}

impl Metrics {
    pub(crate) fn add(counter: &AtomicU64, more: u64) {
        // One thread writes, so a plain store is enough and costs no locked instruction.
        counter.store(counter.load(Relaxed) + more, Relaxed);
    }
    pub(crate) fn set(counter: &AtomicU64, value: u64) {
        counter.store(value, Relaxed);
    }
}
