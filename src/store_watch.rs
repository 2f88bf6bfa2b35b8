//! Tells the event log of the store's trouble, as the counters of this process show it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use greenroom_logs::{
    Logs,
    kinds::{StorageAgain, StorageDeposed, StorageTrouble},
};
use greenroom_storage::{Metrics, Storage};

/// Between two looks at the counters.
const LOOK: Duration = Duration::from_secs(1);
/// Trouble that goes on is told so often.
const TOLD: Duration = Duration::from_secs(10);
/// Without trouble for so long, it is over.
const QUIET: Duration = Duration::from_secs(3);

/// A thread that looks, for as long as this is there.
#[derive(Debug)]
pub(crate) struct StoreWatch {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StoreWatch {
    pub(crate) fn start(logs: &Logs, storage: &Storage) -> std::io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, logs, metrics) =
            (Arc::clone(&is_over), logs.clone(), Arc::clone(storage.metrics()));
        let body = move || {
            let (began, mut watched) = (Instant::now(), Watched::default());
            while !over.load(Relaxed) {
                thread::park_timeout(LOOK);
                watched.look(Seen::of(&metrics), began.elapsed()).tell(&logs);
            }
        };
        let thread = thread::Builder::new().name("store watch".into()).spawn(body)?;
        Ok(Self { is_over, thread: Some(thread) })
    }
}

impl Drop for StoreWatch {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        if thread.join().is_err() {
            tracing::error!("what watches the store panicked; see above");
        }
    }
}

/// What the counters say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    retried: u64,
    unavailable: u64,
    undecided: u64,
    spooled: u64,
    spool_refused: u64,
    failed: u64,
    deposed: u64,
    drained: u64,
}

impl Seen {
    fn of(metrics: &Metrics) -> Self {
        Self {
            retried: metrics.retried.load(Relaxed),
            unavailable: metrics.unavailable.load(Relaxed),
            undecided: metrics.undecided.load(Relaxed),
            spooled: metrics.spooled.load(Relaxed),
            spool_refused: metrics.spool_refused.load(Relaxed),
            failed: metrics.failed.load(Relaxed),
            deposed: metrics.deposed.load(Relaxed),
            drained: metrics.drained.load(Relaxed),
        }
    }
    fn trouble(&self) -> u64 {
        self.retried
            + self.unavailable
            + self.undecided
            + self.spooled
            + self.spool_refused
            + self.failed
    }
}

/// What was seen before.
#[derive(Debug, Default)]
struct Watched {
    last: Seen,
    /// What was told, and when.
    told: Seen,
    told_at: Option<Duration>,
    /// While there is trouble: since when, when it last grew, and what was drained before.
    trouble: Option<(Duration, Duration, u64)>,
}

/// What is to be told.
#[derive(Debug, Default)]
struct News {
    trouble: Option<StorageTrouble>,
    again: Option<StorageAgain>,
    deposed: Option<StorageDeposed>,
}

impl News {
    fn tell(&self, logs: &Logs) {
        self.deposed.iter().for_each(|event| logs.emit(event));
        self.trouble.iter().for_each(|event| logs.emit(event));
        self.again.iter().for_each(|event| logs.emit(event));
    }
}

impl Watched {
    fn look(&mut self, now: Seen, at: Duration) -> News {
        let mut news = News::default();
        let before = std::mem::replace(&mut self.last, now);
        if now.deposed > before.deposed {
            news.deposed = Some(StorageDeposed { writes: now.deposed - before.deposed });
        }
        if now.trouble() > before.trouble() {
            let (since, _, drained) = self.trouble.unwrap_or((at, at, before.drained));
            self.trouble = Some((since, at, drained));
        }
        let Some((since, grew, drained)) = self.trouble else { return news };
        let is_over = at.saturating_sub(grew) >= QUIET;
        let is_due = self.told_at.is_none_or(|told| at.saturating_sub(told) >= TOLD);
        let told = self.told;
        if now.trouble() > told.trouble() && (is_due || is_over) {
            (self.told, self.told_at) = (now, Some(at));
            news.trouble = Some(StorageTrouble {
                retried: now.retried - told.retried,
                unavailable: now.unavailable - told.unavailable,
                undecided: now.undecided - told.undecided,
                spooled: now.spooled - told.spooled,
                spool_refused: now.spool_refused - told.spool_refused,
                failed: now.failed - told.failed,
            });
        }
        if is_over {
            (self.trouble, self.told_at) = (None, None);
            let drained = now.drained - drained;
            news.again = Some(StorageAgain { after_ms: grew.saturating_sub(since), drained });
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_at_once_then_now_and_then_and_its_end_once() {
        let mut watched = Watched::default();
        let mut seen = Seen::default();
        let mut told = Vec::new();
        for second in 0..60 {
            // Away from second 5 to second 30, with a write on disk each.
            if (5..30).contains(&second) {
                (seen.retried, seen.spooled) = (seen.retried + 2, seen.spooled + 1);
            }
            if second == 31 {
                seen.drained = 25;
            }
            let news = watched.look(seen, Duration::from_secs(second));
            assert!(news.deposed.is_none());
            if let Some(trouble) = news.trouble {
                told.push((second, trouble.retried, trouble.spooled));
            }
            if let Some(again) = news.again {
                told.push((second, again.after_ms.as_secs(), again.drained));
            }
        }
        let rest = [(25, 20, 10), (32, 8, 4), (32, 24, 25)];
        assert_eq!(told, [&[(5, 2, 1), (15, 20, 10)][..], &rest].concat());
    }

    #[test]
    fn an_owner_that_is_none_is_told_of_and_is_no_trouble_of_the_store() {
        let mut watched = Watched::default();
        let news = watched.look(Seen { deposed: 3, ..Seen::default() }, Duration::ZERO);
        assert_eq!(news.deposed.map(|event| event.writes), Some(3));
        assert!(news.trouble.is_none() && news.again.is_none());
    }
}
