//! The wall clock by which documents go: a value, so that tests move it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl fmt::Debug for Clock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Clock").field(&self.now_ms()).finish()
    }
}

impl Clock {
    /// The machine's.
    pub fn system() -> Self {
        Self(Arc::new(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        }))
    }

    /// One that stands still until it is moved.
    pub fn by_hand() -> (Self, Hand) {
        let now = Arc::new(AtomicU64::new(1_700_000_000_000));
        let hand = Hand(now.clone());
        (Self(Arc::new(move || now.load(Ordering::SeqCst))), hand)
    }

    /// Now.
    pub fn now_ms(&self) -> u64 {
        (self.0)()
    }
}

/// Moves a clock.
#[derive(Clone, Debug)]
pub struct Hand(Arc<AtomicU64>);

impl Hand {
    /// Lets time go by.
    pub fn advance(&self, span: Duration) {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_add(span, Ordering::SeqCst);
    }
}
