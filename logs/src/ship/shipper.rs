//! The thread that ships, and what it keeps on disk.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ecow::EcoString;
use tokio::{task::JoinSet, time};
use tokio_util::sync::CancellationToken;

use super::{
    Service, ServiceError, ShipError, Target, Why,
    batch::{Batcher, Limits, Parcel, Progress},
};
use crate::{
    KinesisConfig, Logs,
    kinds::{ShippingFailed, ShippingLost, ShippingResumed},
    read::{Position, Stream},
    segment::{self, Segment},
};

/// How often segments are looked at for more, and folders for those that nobody ships.
const POLL: Duration = Duration::from_millis(50);
const ADOPT: Duration = Duration::from_secs(2);
/// How long an end waits for the service.
const FAREWELL: Duration = Duration::from_secs(5);
/// Pauses after calls that failed: the first, and the longest.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// In a process's folder: what is shipped of it, and who ships it.
const PROGRESS: &str = "shipped.json";
const LOCK: &str = "shipping.lock";
/// Held by the process whose folder it is: see the writer.
const OWNER: &str = "lock";

greenroom_telemetry::instruments! {
    /// What a shipper counts.
    pub struct Metrics;
    /// Events that are in the stream.
    counter events = "greenroom.logs.shipping.event.shipped", "event";
    /// Records that are in the stream.
    counter records = "greenroom.logs.shipping.record.shipped", "record";
    /// Bytes of them.
    counter bytes = "greenroom.logs.shipping.io", bytes;
    /// Calls that were made.
    counter calls = "greenroom.logs.shipping.call.made", "call";
    /// Calls that failed whole.
    counter calls_failed = "greenroom.logs.shipping.call.failed", "call";
    /// Records that were put again.
    counter records_again = "greenroom.logs.shipping.record.retried", "record";
    /// Of these, those that a shard took no more of.
    counter records_throttled = "greenroom.logs.shipping.record.throttled", "record";
    /// Segments that went, for the bound on disk, before they were shipped.
    counter segments_lost = "greenroom.logs.shipping.segment.lost", "segment";
    /// Events that no record may hold.
    counter events_too_large = "greenroom.logs.shipping.event.too_large", "event";
    /// What is on disk and not shipped, as segments have it there, as of the last 2 s.
    gauge backlog = "greenroom.logs.shipping.backlog", bytes;
    /// Of this, events that were read and are not in the stream, as of the last 2 s.
    gauge waiting = "greenroom.logs.shipping.waiting", "event";
    /// How old the first event is that is not in the stream, as of the last 2 s; 0 if all are.
    gauge lag = "greenroom.logs.shipping.lag", micros;
}

fn add(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Relaxed);
}

/// Ships for as long as it is there.
#[derive(Debug)]
pub struct Shipper {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    metrics: Arc<Metrics>,
}

impl Shipper {
    /// Starts to ship. `folder` is where all processes of this machine have their logs, `logs` is this one's. Without a
    /// stream in the settings there is nothing to do, and no shipper.
    ///
    /// # Errors
    /// When a setting can't be. A service that can't be reached is no error: it may come.
    pub fn start(
        config: &KinesisConfig,
        folder: &Path,
        process: &str,
        logs: &Logs,
    ) -> Result<Option<Self>, ShipError> {
        let Some(stream) = config.stream.clone() else { return Ok(None) };
        let limits = config.limits()?;
        let target =
            Target { stream, region: config.region.clone(), endpoint: config.endpoint.clone() };
        // What the settings name is checked as what a command line names is.
        let target: Target = target.to_string().parse()?;
        let (stop, metrics) = (CancellationToken::new(), Arc::new(Metrics::default()));
        let mut ship = Ship {
            folder: folder.into(),
            own: process.into(),
            logs: logs.clone(),
            limits,
            calls_max: config.calls_max,
            call_timeout: config.call_timeout,
            metrics: Arc::clone(&metrics),
            began: Instant::now(),
            shipped: BTreeMap::new(),
            looked: None,
            pauses: Pauses::default(),
            quiet_until: None,
            failing: None,
        };
        let stopping = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ShipError::Thread)?;
        let body = move || runtime.block_on(ship.run(target, stopping));
        let thread = thread::Builder::new().name("shipper".into()).spawn(body);
        Ok(Some(Self { stop, thread: Some(thread.map_err(ShipError::Thread)?), metrics }))
    }

    /// What it has counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Ships what is on disk, for some seconds at most, and ends. What is left is shipped by the next life.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.cancel();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the shipper of events panicked; see above");
        }
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        self.end();
    }
}

/// What came of a call.
struct Answer {
    process: EcoString,
    parcels: Vec<Parcel>,
    result: Result<Vec<Result<(), ServiceError>>, ServiceError>,
}

struct Ship {
    folder: PathBuf,
    own: EcoString,
    logs: Logs,
    limits: Limits,
    calls_max: usize,
    call_timeout: Duration,
    metrics: Arc<Metrics>,
    began: Instant,
    /// By process.
    shipped: BTreeMap<EcoString, Shipped>,
    /// When it was last looked for processes.
    looked: Option<Instant>,
    pauses: Pauses,
    /// Until when it is quiet after a failure.
    quiet_until: Option<Instant>,
    /// Since when nothing goes through, and why.
    failing: Option<(Instant, String)>,
}

impl Ship {
    async fn run(&mut self, target: Target, stop: CancellationToken) {
        let service = Service::open(target).await;
        let mut calls: JoinSet<Answer> = JoinSet::new();
        let mut end: Option<Instant> = None;
        loop {
            if stop.is_cancelled() && end.is_none() {
                end = Some(Instant::now() + FAREWELL);
            }
            self.adopt();
            let has_more = self.read();
            self.call(&service, &mut calls, end.is_some());
            let is_done =
                !has_more && self.shipped.values().all(|shipped| shipped.batcher.is_empty());
            if end.is_some_and(|end| is_done || Instant::now() >= end) {
                return;
            }
            tokio::select! {
                Some(answer) = calls.join_next() => {
                    if let Ok(answer) = answer {
                        self.answered(answer);
                    }
                }
                () = stop.cancelled(), if end.is_none() => {}
                () = time::sleep(POLL), if !has_more || calls.len() == self.calls_max => {}
                () = std::future::ready(()), if has_more && calls.len() < self.calls_max => {}
            }
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Looks for this process's folder, and for those of processes that are gone: whoever has a folder's lock ships it.
    fn adopt(&mut self) {
        if self.looked.is_some_and(|looked| looked.elapsed() < ADOPT) {
            return;
        }
        self.looked = Some(Instant::now());
        for shipped in self.shipped.values_mut() {
            if let Err(error) = shipped.keep() {
                tracing::warn!(%error, "after a restart some events will be shipped again");
            }
        }
        self.measure();
        // A process that is back ships its own.
        let own = self.own.clone();
        self.shipped.retain(|process, shipped| {
            *process == own || !shipped.batcher.is_empty() || is_free(&shipped.folder)
        });
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|_| entry.path().is_dir()) else { continue };
            if self.shipped.contains_key(name) || name != self.own && !is_free(&entry.path()) {
                continue;
            }
            match Shipped::open(&self.folder, name, self.limits) {
                Ok(Some(shipped)) => {
                    self.shipped.insert(name.into(), shipped);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, process = name, "its events can't be shipped"),
            }
        }
    }

    /// Counts what is on disk and not shipped.
    fn measure(&self) {
        let backlog = self.shipped.values().map(|shipped| {
            let (segment, offset) = (shipped.kept.position.segment, shipped.kept.position.offset);
            let all = segment::list(&shipped.folder).unwrap_or_default();
            let left = all.iter().filter(|of| of.number >= segment).map(|of| match of {
                // Where it is in a segment is known by its lines; one that is compressed counts whole.
                Segment { number, is_closed: false, bytes, .. } if *number == segment => {
                    bytes.saturating_sub(offset)
                }
                Segment { bytes, .. } => *bytes,
            });
            left.sum::<u64>()
        });
        self.metrics.backlog.store(backlog.sum(), Relaxed);
        let batchers = || self.shipped.values().map(|shipped| &shipped.batcher);
        let waiting: usize = batchers().map(Batcher::waiting).sum();
        self.metrics.waiting.store(waiting as u64, Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let oldest = batchers().filter_map(Batcher::oldest_ms).min().map(Duration::from_millis);
        let lag = oldest.map_or(Duration::ZERO, |oldest| now.saturating_sub(oldest));
        self.metrics.lag.store(u64::try_from(lag.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Takes what is written, as far as there is room; says whether there is more.
    fn read(&mut self) -> bool {
        let now = self.now();
        let mut has_more = false;
        for (process, shipped) in &mut self.shipped {
            let mut budget = 4_096;
            while shipped.batcher.has_room() && budget > 0 {
                budget -= 1;
                let record = match shipped.stream.next_record() {
                    Ok(Some(record)) => record,
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, %process, "its events can't be read");
                        break;
                    }
                };
                let number = shipped.read;
                shipped.read += 1;
                if shipped.before.iter().any(|(first, end)| (*first..*end).contains(&number)) {
                    shipped.batcher.skip(&record);
                } else if let Err(large) = shipped.batcher.push(&record, now) {
                    add(&self.metrics.events_too_large, 1);
                    tracing::error!(
                        bytes = large.bytes,
                        id = record.id(),
                        "an event is too large for a record"
                    );
                    self.logs.emit(&ShippingLost {
                        process: process.clone(),
                        segments: 0,
                        events: 1,
                    });
                }
            }
            has_more |= budget == 0;
            let gone = shipped.stream.skipped().gone;
            let lost = gone - std::mem::replace(&mut shipped.gone, gone);
            if lost > 0 {
                self.metrics.segments_lost.fetch_add(lost, Relaxed);
                tracing::error!(segments = lost, %process, "segments went before they were shipped");
                self.logs.emit(&ShippingLost {
                    process: process.clone(),
                    segments: lost,
                    events: 0,
                });
            }
        }
        has_more
    }

    /// Makes the calls that are due.
    fn call(&mut self, service: &Service, calls: &mut JoinSet<Answer>, is_ending: bool) {
        if self.quiet_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let now = self.now();
        for (process, shipped) in &mut self.shipped {
            while calls.len() < self.calls_max {
                let parcels = shipped.batcher.next_call(now, is_ending);
                if parcels.is_empty() {
                    break;
                }
                add(&self.metrics.calls, 1);
                let (service, within, process) =
                    (service.clone(), self.call_timeout, process.clone());
                calls.spawn(async move {
                    let result = service.put(&parcels, within).await;
                    Answer { process, parcels, result }
                });
            }
        }
    }

    fn answered(&mut self, answer: Answer) {
        let Answer { process, parcels, result } = answer;
        let Some(shipped) = self.shipped.get_mut(&process) else { return };
        let mut failure: Option<ServiceError> = None;
        let results = match result {
            Ok(results) => results,
            Err(error) => {
                add(&self.metrics.calls_failed, 1);
                parcels.iter().map(|_| Err(error.clone())).collect()
            }
        };
        let mut went = 0;
        for (parcel, result) in parcels.into_iter().zip(results) {
            match result {
                Ok(()) => {
                    went += 1;
                    add(&self.metrics.records, 1);
                    add(&self.metrics.events, parcel.events());
                    add(&self.metrics.bytes, parcel.data.len());
                    shipped.batcher.shipped(&parcel);
                }
                Err(error) => {
                    add(&self.metrics.records_again, 1);
                    if error.why == Why::Throttled {
                        add(&self.metrics.records_throttled, 1);
                    }
                    shipped.batcher.failed(parcel);
                    failure = Some(error);
                }
            }
        }
        if went > 0
            && let Err(error) = shipped.keep()
        {
            tracing::warn!(%error, "after a restart some events will be shipped again");
        }
        match failure {
            None => {
                self.pauses = Pauses::default();
                self.quiet_until = None;
                if let Some((since, _)) = self.failing.take() {
                    tracing::info!("events are shipped again");
                    self.logs.emit(&ShippingResumed { after_ms: since.elapsed() });
                }
            }
            Some(error) => {
                let luck = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let pause = self.pauses.next(luck.subsec_nanos());
                self.quiet_until = Some(Instant::now() + pause);
                // What a shard takes later is no trouble; what is, is told once.
                let text = error.to_string();
                if error.why != Why::Throttled
                    && self.failing.as_ref().is_none_or(|(_, told)| *told != text)
                {
                    tracing::warn!(%error, "events are not shipped: they wait on disk");
                    let since = self.failing.take().map_or_else(Instant::now, |(since, _)| since);
                    self.logs.emit(&ShippingFailed { text: text.as_str().into() });
                    self.failing = Some((since, text));
                }
            }
        }
    }
}

/// How long it is quiet after each failure in a row: twice as long as after the one before, up to a bound.
#[derive(Debug)]
struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(PAUSE)
    }
}

impl Pauses {
    /// Half of the span to all of it, so that processes that were refused together do not come back together.
    fn next(&mut self, luck: u32) -> Duration {
        let span = self.0;
        self.0 = (span * 2).min(PAUSE_MAX);
        span / 2 + span.mul_f64(f64::from(luck % 1_000) / 2_000.0)
    }
}

/// Whether no process has this folder for its own.
fn is_free(folder: &Path) -> bool {
    let Ok(lock) = File::open(folder.join(OWNER)) else { return true };
    lock.try_lock_shared().is_ok()
}

/// The log of one process, as far as it is shipped.
struct Shipped {
    folder: PathBuf,
    stream: Stream,
    batcher: Batcher,
    /// Events that were read.
    read: u64,
    /// Of these, those that an earlier life has shipped.
    before: Vec<(u64, u64)>,
    /// Segments that went before they were read.
    gone: u64,
    /// What is on disk of it.
    kept: Progress,
    /// Held, so that nobody else ships it.
    _lock: File,
}

impl Shipped {
    /// Goes on where somebody stopped; nothing if somebody else ships it.
    fn open(logs: &Path, process: &str, limits: Limits) -> Result<Option<Self>, ShipError> {
        let folder = logs.join(process);
        let failed = |source| ShipError::Progress { file: folder.join(PROGRESS), source };
        let mut options = OpenOptions::new();
        let lock = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(LOCK))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
        let start = Position { process: process.into(), segment: 1, offset: 0 };
        let kept = match fs::read(folder.join(PROGRESS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(failed(source)),
            Ok(bytes) => {
                let read = serde_json::from_slice::<Progress>(&bytes);
                if let Err(error) = &read {
                    tracing::warn!(%error, process, "what is shipped of it can't be read: all is shipped again");
                }
                read.ok()
            }
        };
        let kept = kept.unwrap_or(Progress { position: start, shipped: Vec::new() });
        let position = Position { process: process.into(), ..kept.position.clone() };
        Ok(Some(Self {
            stream: Stream::open(logs, position.clone()),
            batcher: Batcher::new(limits, position),
            read: 0,
            before: kept.shipped.clone(),
            gone: 0,
            kept,
            folder,
            _lock: lock,
        }))
    }

    /// Keeps what is shipped, if that is more than before: beside, then moved, so that there is always a whole one.
    fn keep(&mut self) -> Result<(), ShipError> {
        let mut progress = self.batcher.progress();
        if self.batcher.is_empty() {
            // Behind the end of a segment that is done with: its going is then no loss.
            progress.position = self.stream.position();
        }
        if progress == self.kept {
            return Ok(());
        }
        let file = self.folder.join(PROGRESS);
        let beside = self.folder.join("shipped.json.new");
        let write = || {
            let mut new = File::create(&beside)?;
            new.write_all(&serde_json::to_vec(&progress)?)?;
            new.sync_data()?;
            fs::rename(&beside, &file)
        };
        write().map_err(|source| ShipError::Progress { file, source })?;
        self.kept = progress;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_no_two_processes_come_back_together() {
        let (mut least, mut most) = (Pauses::default(), Pauses::default());
        let mut span = PAUSE;
        for _ in 0..12 {
            let (least, most) = (least.next(0), most.next(999));
            assert_eq!(least, span / 2);
            assert!(most > span.mul_f64(0.99) && most <= span, "{most:?} of {span:?}");
            span = (span * 2).min(PAUSE_MAX);
        }
        assert_eq!(span, PAUSE_MAX);
    }
}
