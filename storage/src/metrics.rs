//! What the storage counts. Names are those of the metrics: `storage.` before the field's name.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters { ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
    /// Counters of a storage actor, readable from any thread.
    #[derive(Debug, Default)]
    pub struct Metrics { $($(#[$doc])* pub $name: AtomicU64,)* }
    impl Metrics {
        /// Every counter with its name.
        pub fn read(&self) -> Vec<(&'static str, u64)> {
            vec![$((concat!("storage.", stringify!($name)), self.$name.load(Relaxed)),)*]
        }
    }
} }

counters! {
    /// Operations that were taken.
    submitted,
    /// Operations that were refused because the queue was full.
    busy,
    /// Operations that wait or are under way now.
    waiting,
    /// Of these, operations that the store works on now.
    under_way,
    /// Jobs that the store has answered.
    answered,
    /// Batches that lanes have handed to the store.
    batches,
    /// Writes that a newer one of the same key stood in for.
    merged,
    /// Operations that were tried again because the store was away.
    retried,
    /// Reads of an update that were done again because somebody else had written.
    conflicts,
    /// Operations whose deadline was over before the store began them.
    unavailable,
    /// Mutations of which nobody knows whether they have happened.
    undecided,
    /// Writes of owners that a newer one has deposed: each is logged.
    deposed,
    /// Writes that were kept on this machine's disk while the store was away.
    spooled,
    /// Writes that the spool did not take: it was full, or its disk.
    spool_refused,
    /// Files of the spool that were damaged: what could be read is stored, the file is set aside.
    spool_damaged,
    /// Writes that went from the spool to the store.
    drained,
    /// Operations that failed for another reason.
    failed,
}

impl Metrics {
    pub(crate) fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Relaxed);
    }
    pub(crate) fn sub(counter: &AtomicU64, less: u64) {
        counter.fetch_sub(less, Relaxed);
    }
}
