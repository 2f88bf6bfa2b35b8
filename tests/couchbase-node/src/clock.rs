//! The wall clock of the cluster, which a test may set ahead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The system's clock and what a test added to it. Clones share what was added.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    ahead_millis: Arc<AtomicU64>,
}

impl Clock {
    /// Since 1970, in UTC.
    pub fn now(&self) -> Duration {
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        system + Duration::from_millis(self.ahead_millis.load(Ordering::Relaxed))
    }

    /// Sets the clock ahead; it never goes back.
    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.ahead_millis.fetch_add(millis, Ordering::Relaxed);
    }

    /// [`Clock::now`] in whole seconds, which is what an expiry is compared with.
    pub fn seconds(&self) -> u64 {
        self.now().as_secs()
    }
}
