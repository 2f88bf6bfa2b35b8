//! What the storage counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

greenroom_telemetry::instruments! {
    /// Of a storage actor, readable from any thread.
    pub struct Metrics;
    /// Operations that were taken.
    counter submitted = "greenroom.storage.operation.submitted", "operation";
    /// Operations that were refused because the queue was full.
    counter busy = "greenroom.storage.operation.refused", "operation";
    /// Operations that wait or are under way now.
    gauge waiting = "greenroom.storage.operation.waiting", "operation";
    /// Of these, operations that the store works on now.
    gauge under_way = "greenroom.storage.operation.under_way", "operation";
    /// How long operations took that have an answer, from when they were taken.
    histogram operation_duration = "greenroom.storage.operation.duration";
    /// How long the store had each job.
    histogram job_duration = "greenroom.storage.job.duration";
    /// Jobs that the store has answered.
    counter answered = "greenroom.storage.job.answered", "job";
    /// Batches that lanes have handed to the store.
    counter batches = "greenroom.storage.batch.begun", "batch";
    /// Writes that a newer one of the same key stood in for.
    counter merged = "greenroom.storage.write.merged", "write";
    /// Operations that were tried again because the store was away.
    counter retried = "greenroom.storage.operation.retried", "operation";
    /// Reads of an update that were done again because somebody else had written.
    counter conflicts = "greenroom.storage.update.conflicted", "update";
    /// Operations whose deadline was over before the store began them.
    counter unavailable = "greenroom.storage.operation.unavailable", "operation";
    /// Mutations of which nobody knows whether they have happened.
    counter undecided = "greenroom.storage.write.undecided", "write";
    /// Writes of owners that a newer one has deposed: each is logged.
    counter deposed = "greenroom.storage.write.deposed", "write";
    /// Operations that failed for another reason.
    counter failed = "greenroom.storage.operation.failed", "operation";
    /// Writes that were kept on this machine's disk while the store was away.
    counter spooled = "greenroom.storage.spool.kept", "write";
    /// Writes that the spool did not take: it was full, or its disk.
    counter spool_refused = "greenroom.storage.spool.refused", "write";
    /// Files of the spool that were damaged: what could be read is stored, the file is set aside.
    counter spool_damaged = "greenroom.storage.spool.damaged", "file";
    /// Writes that went from the spool to the store.
    counter drained = "greenroom.storage.spool.drained", "write";
    /// Bytes that the spool has on disk.
    gauge spool_bytes = "greenroom.storage.spool.usage", bytes;
}

impl Metrics {
    pub(crate) fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Relaxed);
    }
    pub(crate) fn sub(counter: &AtomicU64, less: u64) {
        counter.fetch_sub(less, Relaxed);
    }
}
