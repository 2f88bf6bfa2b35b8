//! What a game server counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

greenroom_telemetry::instruments! {
    /// Counters of a game server, readable from any thread.
    pub struct Metrics;
    /// Instances that run now.
    gauge instances = "greenroom.game.instance.count", "instance";
    /// Seats that are not free now.
    gauge seats = "greenroom.game.seat.count", "seat";
    /// Instances made.
    counter created = "greenroom.game.instance.created", "instance";
    /// Instances that were not made, with a reason.
    counter create_refused = "greenroom.game.instance.refused", "instance";
    /// Instances that ended, failed ones included.
    counter closed = "greenroom.game.instance.closed", "instance";
    /// Instances that failed: their games have bugs.
    counter failed = "greenroom.game.instance.failed", "instance";
    /// Frames of seats.
    counter frames_up = "greenroom.game.frame.received", "frame";
    /// Frames to single seats.
    counter frames_down = "greenroom.game.frame.sent", "frame";
    /// Patches, one for each link and channel.
    counter fanouts = "greenroom.game.patch.sent", "patch";
    /// Bytes of them.
    counter fanout_bytes = "greenroom.game.patch.io", bytes;
    /// Patches and pieces of snapshots that a full link did not take.
    counter patches_dropped = "greenroom.game.patch.dropped", "patch";
    /// Seats that got their views anew because of that.
    counter refreshes = "greenroom.game.view.refreshed", "seat";
    /// Steps at fixed rates.
    counter ticks = "greenroom.game.tick.made", "tick";
    /// Of these, steps that began later than the next place on the grid.
    counter ticks_late = "greenroom.game.tick.late", "tick";
    /// Steps that were given up because their instance was too far behind; each time is logged.
    counter ticks_given_up = "greenroom.game.tick.given_up", "tick";
    /// How late steps at fixed rates began.
    histogram tick_lateness = "greenroom.game.tick.lateness";
    /// How long steps at fixed rates took, with what they sent.
    histogram tick_duration = "greenroom.game.tick.duration";
    /// Instances with a unique key, or durable ones, that stand still now, since no master renews the lease.
    gauge frozen = "greenroom.game.instance.frozen", "instance";
    /// How often that began.
    counter leases_lost = "greenroom.game.lease.lost", "lease";
    /// Snapshots that were stored.
    counter snapshots = "greenroom.game.snapshot.stored", "snapshot";
    /// Snapshots that were not stored; the log has one of ten seconds.
    counter snapshots_failed = "greenroom.game.snapshot.failed", "snapshot";
    /// Snapshots of lives that were over: the store refused them.
    counter snapshots_deposed = "greenroom.game.snapshot.deposed", "snapshot";
    /// Instances that were taken up from what was stored of them.
    counter restored = "greenroom.game.instance.restored", "instance";
    /// Instances that could not be.
    counter restore_refused = "greenroom.game.instance.restore_refused", "instance";
    /// Scores that were dropped, because too many waited for a master.
    counter scores_dropped = "greenroom.game.score.dropped", "score";
    /// Frames for seats that are not there any more.
    counter late = "greenroom.game.frame.unseated", "frame";
    /// Messages of masters whose epoch was over.
    counter deposed = "greenroom.game.master.deposed", "message";
    /// Links of session servers that were opened.
    counter links = "greenroom.game.link.opened", "link";
    /// Frames on links, as of the last report.
    counter link_frames = "greenroom.game.link.frame.sent", "frame";
    /// Write calls on links, as of the last report.
    counter link_writes = "greenroom.game.link.write", "call";
    /// Bytes on links, as of the last report.
    counter link_bytes = "greenroom.game.link.io", bytes;
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
