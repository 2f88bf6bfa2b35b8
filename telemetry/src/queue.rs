//! Spans that have ended, until they are sent: a buffer for each server that has some, bounded together.
//!
//! Nobody is woken for a span. Who sends looks after a while; only a batch that is full calls for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::encoding::{self, Ended};
use crate::registry::Who;

/// Spans that may wait; more are dropped and counted.
pub(crate) const SPANS_MAX: usize = 4_096;
/// Bytes of them: as many as they have, and some texts that are long.
const BYTES_MAX: usize = 4 << 20;
/// With so many, they are sent at once.
const BATCH: usize = 512;

/// The queue of one export.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

/// What waits.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// By whose they are; each as fields of OTLP's `ScopeSpans`.
    pub(crate) spans: Vec<(Arc<Who>, Vec<u8>)>,
    pub(crate) count: usize,
    bytes: usize,
    is_closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing in here panics half way: bytes are appended, then counted.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a span; false if it is dropped, since there is no room.
    pub(crate) fn push(&self, who: &Arc<Who>, ended: &Ended<'_>) -> bool {
        let mut waiting = self.lock();
        if waiting.count >= SPANS_MAX || waiting.bytes >= BYTES_MAX || waiting.is_closed {
            return false;
        }
        let at = waiting.spans.iter().position(|(of, _)| Arc::ptr_eq(of, who));
        let at = at.unwrap_or_else(|| {
            waiting.spans.push((Arc::clone(who), Vec::new()));
            waiting.spans.len() - 1
        });
        let spans = &mut waiting.spans[at].1;
        let before = spans.len();
        encoding::span(spans, ended);
        let more = spans.len() - before;
        waiting.bytes += more;
        waiting.count += 1;
        if waiting.count == BATCH {
            self.filled.notify_one();
        }
        true
    }

    /// What waits, taken out.
    #[cfg(any(feature = "otlp", test))]
    pub(crate) fn take(&self) -> Waiting {
        let mut waiting = self.lock();
        let is_closed = waiting.is_closed;
        std::mem::replace(&mut waiting, Waiting { is_closed, ..Waiting::default() })
    }

    /// Waits until there is a whole batch.
    #[cfg(feature = "otlp")]
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Takes no more.
    #[cfg(any(feature = "otlp", test))]
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
    }
}
