//! The load: a task for each key under way, which writes its keys in turn; and what it took.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::measure::float;
use crate::report::progress;

/// Bytes of a document.
const DOCUMENT_BYTES: usize = 220;
/// Keys of each worker, which it writes in turn.
pub(super) const KEYS_OF_A_WORKER: usize = 16;

/// What one run took.
pub(super) struct Taken {
    pub(super) per_s: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// Of each upsert over one that is there.
    pub(super) cpu_us: f64,
    /// Of the first upsert of each key.
    pub(super) first_cpu_us: f64,
}

/// Takes the figures of one run: the first upsert of each key, and then those of the window.
pub(super) struct Taking {
    cpu: Duration,
    first: Option<(u64, Duration)>,
    began: Instant,
    count: u64,
    times: Histogram<u64>,
}

impl Taking {
    pub(super) fn begin() -> anyhow::Result<Self> {
        let (cpu, began) = (cpu(), Instant::now());
        Ok(Self { cpu, first: None, began, count: 0, times: Histogram::new(3)? })
    }

    /// Every key has been written once: the window begins.
    pub(super) fn warm(&mut self, count: u64) {
        self.first = Some((count, cpu().saturating_sub(self.cpu)));
        (self.cpu, self.began) = (cpu(), Instant::now());
    }

    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// So many upserts took so long together, or one by itself.
    pub(super) fn took(&mut self, count: u64, time: Duration) -> anyhow::Result<()> {
        self.count += count;
        Ok(self.times.record(micros(time))?)
    }

    pub(super) fn end(self) -> anyhow::Result<Taken> {
        ensure!(self.count > 0, "nothing was written in the time given");
        let each = |span: Duration, count: u64| span.as_secs_f64() * 1e6 / float(count.max(1));
        let spent = cpu().saturating_sub(self.cpu);
        Ok(Taken {
            per_s: float(self.count) / self.began.elapsed().as_secs_f64(),
            p50_ms: float(self.times.value_at_quantile(0.5)) / 1e3,
            p99_ms: float(self.times.value_at_quantile(0.99)) / 1e3,
            cpu_us: each(spent, self.count),
            first_cpu_us: self.first.map_or(0.0, |(count, spent)| each(spent, count)),
        })
    }
}

/// User and system time of this process with all its threads so far.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

pub(super) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn id(worker: usize, round: usize) -> String {
    format!("{worker:05}/{:02}", round % KEYS_OF_A_WORKER)
}

pub(super) fn json(round: usize) -> String {
    let head = format!("{{\"level\":{round},\"text\":\"");
    let rest = DOCUMENT_BYTES.saturating_sub(head.len() + 2);
    format!("{head}{}\"}}", "x".repeat(rest))
}

/// Writes with a task for each key under way: `write` is given an id and a document, and is over when that is stored.
pub(super) async fn drive<W>(size: usize, window: Duration, write: W) -> anyhow::Result<Taken>
where
    W: AsyncFn(String, String) -> anyhow::Result<()> + 'static,
{
    let write = Rc::new(write);
    let mut taking = Taking::begin()?;
    let first = (0..size).map(|worker| {
        let write = Rc::clone(&write);
        tokio::task::spawn_local(async move {
            for round in 0..KEYS_OF_A_WORKER {
                write(id(worker, round), json(round)).await?;
            }
            anyhow::Ok(())
        })
    });
    for worker in first.collect::<Vec<_>>() {
        worker.await??;
    }
    taking.warm(u64::try_from(size * KEYS_OF_A_WORKER)?);
    let began = taking.began();
    let workers = (0..size).map(|worker| {
        let write = Rc::clone(&write);
        tokio::task::spawn_local(async move {
            let mut times = Vec::new();
            for round in KEYS_OF_A_WORKER.. {
                if began.elapsed() >= window {
                    break;
                }
                let started = Instant::now();
                write(id(worker, round), json(round)).await?;
                times.push(started.elapsed());
            }
            anyhow::Ok(times)
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        for time in worker.await?? {
            taking.took(1, time)?;
        }
    }
    taking.end()
}

/// One upsert on its way to the thread that does it.
pub(super) struct Asked {
    pub(super) id: String,
    pub(super) json: String,
    pub(super) done: oneshot::Sender<()>,
}

impl Asked {
    pub(super) fn answer(self) {
        if self.done.send(()).is_err() {
            progress("nobody waits for an upsert that is done");
        }
    }
}

/// What somebody would write by hand who wants one thread to do it for many tasks: a channel there, and one back for
/// each upsert. `serve` is that thread.
pub(super) fn by_hand<S>(size: usize, window: Duration, serve: S) -> anyhow::Result<Taken>
where
    S: FnOnce(mpsc::Receiver<Asked>) -> anyhow::Result<()> + Send + 'static,
{
    let (asks, asked) = mpsc::channel::<Asked>(size);
    let server = std::thread::spawn(move || serve(asked));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let taken =
        runtime.block_on(LocalSet::new().run_until(drive(size, window, async move |id, json| {
            let (done, answer) = oneshot::channel();
            asks.send(Asked { id, json, done }).await?;
            Ok(answer.await?)
        })));
    // The channel is closed: what failed there is why an answer did not come.
    server.join().map_err(|_| anyhow::anyhow!("the thread that writes panicked"))??;
    taken
}
