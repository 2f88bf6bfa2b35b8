//! What a session server counts. Names are those of the metrics: `session.` before the field's name.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters { ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
    /// Counters of a session server, readable from any thread.
    #[derive(Debug, Default)]
    pub struct Metrics { $($(#[$doc])* pub $name: AtomicU64,)* }
    impl Metrics {
        /// Every counter with its name.
        pub fn read(&self) -> Vec<(&'static str, u64)> {
            vec![$((concat!("session.", stringify!($name)), self.$name.load(Relaxed)),)*]
        }
    }
} }

counters! {
    /// Connections accepted.
    connections,
    /// Connections turned away or ended with a reason.
    turned_away,
    /// Check-ins that succeeded.
    check_ins,
    /// Frames from clients.
    frames_up,
    /// Frames to clients.
    frames_down,
    /// Write calls to clients' sockets.
    writes,
    /// Times that a client's socket took less than there was.
    slow_writes,
    /// Patches that were not sent to a slow client; one snapshot replaces them.
    patches_dropped,
    /// Clients that were disconnected because they read too slowly for what must not be lost.
    slow_consumers,
    /// Frames that were refused because their client was over its limits.
    over_limits,
    /// Frames that were refused because the way to their game server was full or gone.
    sent_back,
    /// Frames from servers for somebody who is gone.
    late,
}

impl Metrics {
    pub(crate) fn add(counter: &AtomicU64, more: u64) {
        // One thread writes, so a plain store is enough and costs no locked instruction.
        counter.store(counter.load(Relaxed) + more, Relaxed);
    }
}
