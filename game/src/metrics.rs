//! What a game server counts. Names are those of the metrics: `game.` before the field's name.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters { ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
    /// Counters of a game server, readable from any thread.
    #[derive(Debug, Default)]
    pub struct Metrics { $($(#[$doc])* pub $name: AtomicU64,)* }
    impl Metrics {
        /// Every counter with its name.
        pub fn read(&self) -> Vec<(&'static str, u64)> {
            vec![$((concat!("game.", stringify!($name)), self.$name.load(Relaxed)),)*]
        }
    }
} }

counters! {
    /// Instances that run now.
    instances,
    /// Seats that are not free now.
    seats,
    /// Instances made.
    created,
    /// Instances that were not made, with a reason.
    create_refused,
    /// Instances that ended, failed ones included.
    closed,
    /// Instances that failed: their games have bugs.
    failed,
    /// Frames of seats.
    frames_up,
    /// Frames to single seats.
    frames_down,
    /// Patches, one for each link and channel.
    fanouts,
    /// Bytes of them.
    fanout_bytes,
    /// Patches and pieces of snapshots that a full link did not take.
    patches_dropped,
    /// Seats that got their views anew because of that.
    refreshes,
    /// Steps at fixed rates.
    ticks,
    /// Of these, steps that began later than the next place on the grid.
    ticks_late,
    /// Steps that were given up because their instance was too far behind; each time is logged.
    ticks_given_up,
    /// The latest that a step began, in microseconds.
    tick_lateness_us_max,
    /// Instances with a unique key that stand still now, since no master renews the lease.
    frozen,
    /// How often that began.
    leases_lost,
    /// Scores that were dropped, because too many waited for a master.
    scores_dropped,
    /// Frames for seats that are not there any more.
    late,
    /// Messages of masters whose epoch was over.
    deposed,
    /// Links of session servers that were opened.
    links,
    /// Frames on links, as of the last report.
    link_frames,
    /// Write calls on links, as of the last report.
    link_writes,
    /// Bytes on links, as of the last report.
    link_bytes,
}

impl Metrics {
    pub(crate) fn add(counter: &AtomicU64, more: u64) {
        // One thread writes, so a plain store is enough and costs no locked instruction.
        counter.store(counter.load(Relaxed) + more, Relaxed);
    }
    pub(crate) fn set(counter: &AtomicU64, value: u64) {
        counter.store(value, Relaxed);
    }
    pub(crate) fn raise(counter: &AtomicU64, value: u64) {
        counter.store(counter.load(Relaxed).max(value), Relaxed);
    }
}
