//! What a master counts.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

greenroom_telemetry::instruments! {
    /// Counters of a master, readable from any thread.
    pub struct Metrics;
    /// 1 while this master decides, else 0: over all masters the sum is 1.
    gauge active = "greenroom.master.active", "master";
    /// Epoch within its era, as it saw it last.
    gauge epoch = "greenroom.master.epoch", "epoch";
    /// Number of the last command of its log.
    gauge lsn = "greenroom.master.log.last", "command";
    /// Number of the last command that is committed, as far as it knows.
    gauge commit = "greenroom.master.log.committed", "command";
    /// Commands that the standby of this active does not have yet.
    gauge lag = "greenroom.master.replication.lag", "command";
    /// How long commands of this active took until the standby (alone: the disk) had them.
    histogram commit_duration = "greenroom.master.commit.duration";
    /// Commands that it appended as the active.
    counter appended = "greenroom.master.command.appended", "command";
    /// Commands that it copied as the standby.
    counter copied = "greenroom.master.command.copied", "command";
    /// Commands that were not appended; who said them says them again.
    counter refused = "greenroom.master.command.refused", "command";
    /// How long requests of clients took, from their arrival here to their answer.
    histogram request_duration = "greenroom.master.request.duration";
    /// Users that are checked in.
    gauge users = "greenroom.master.user.count", "user";
    /// Instances that exist.
    gauge instances = "greenroom.master.instance.count", "instance";
    /// Things that are wrong with this master now; its status names them.
    gauge troubles = "greenroom.master.trouble.count", "trouble";
    /// Profiles, instances and scores that wait for the store or are being written.
    gauge documents_waiting = "greenroom.master.document.waiting", "document";
    /// Profiles, instances and scores that were stored.
    counter documents_stored = "greenroom.master.document.stored", "document";
    /// How often the store did not take one, and it was put off.
    counter documents_retried = "greenroom.master.document.retried", "document";
    /// Those that the store refused, since a later master has written there.
    counter documents_refused = "greenroom.master.document.refused", "document";
    /// Those that the store can't take; each is logged.
    counter documents_failed = "greenroom.master.document.failed", "document";
    /// Those that were left out, because too many waited; logged.
    counter documents_left_out = "greenroom.master.document.left_out", "document";
    /// What servers said that they may not say: 0 unless one is broken.
    counter illegal = "greenroom.master.message.illegal", "message";
}

impl Metrics {
    pub(crate) fn add(counter: &AtomicU64, more: u64) {
        // One thread writes each, so a plain store is enough and costs no locked instruction.
        counter.store(counter.load(Relaxed) + more, Relaxed);
    }
    pub(crate) fn set(counter: &AtomicU64, value: u64) {
        counter.store(value, Relaxed);
    }
}

/// When what is not committed was appended: one entry for each batch, so there are never more than batches on their
/// way, and those are bounded with the commands.
#[derive(Debug, Default)]
pub(crate) struct Appended(VecDeque<(u64, Instant)>);

impl Appended {
    /// A batch was appended that ends with this command.
    pub(crate) fn push(&mut self, last: u64) {
        self.0.push_back((last, Instant::now()));
    }

    /// Everything up to this command is committed.
    pub(crate) fn committed(&mut self, commit: u64, metrics: &Metrics) {
        while let Some((_, since)) = self.0.pop_front_if(|(last, _)| *last <= commit) {
            metrics.commit_duration.record(since.elapsed());
        }
    }

    /// This master decides no more.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}
