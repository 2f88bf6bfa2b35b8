//! The event log: what one process writes, what questions over many events take, what is shipped to a stream, and what
//! all of it costs players.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use greenroom_logs::{LogWriter, Logs, LogsConfig, kinds::CheckIn, sql::Database};
use greenroom_protocol::{ServerName, SessionId, UserId};

use crate::machine;
use crate::measure::float;
use crate::report::{Figures, progress};

/// Events that are emitted before it is looked whether the disk keeps up.
const BATCH: u64 = 10_000;
/// How long a disk may take for a batch.
const PATIENCE: Duration = Duration::from_secs(60);
/// Users that events are about.
const USERS: u64 = 10_000;
/// What is asked of them.
const QUESTIONS: [(&str, &str); 2] = [
    ("count_s", "select kind, count(*) from events group by kind"),
    ("join_s", "select server, count(distinct user) from check_in group by server"),
];

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> anyhow::Result<Self> {
        let name = format!("greenroom-bench-logs-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            progress(&format!("{} stays: {error}", self.0.display()));
        }
    }
}

/// Emits check-ins for as long as `wants` so many; each batch is on disk before the next begins.
fn emit(logs: &Logs, mut wants: impl FnMut(u64) -> bool) -> anyhow::Result<u64> {
    let users: Vec<_> =
        (0..USERS).map(|n| UserId::new(format!("user-{n:05}"))).collect::<Result<_, _>>()?;
    let server = ServerName::new("session-1")?;
    let mut emitted = 0;
    while wants(emitted) {
        for number in emitted..emitted + BATCH {
            let user = users[usize::try_from(number % USERS)?].clone();
            let (name, session) = (user.as_str().into(), SessionId(number));
            logs.emit(&CheckIn { user, session, name, server: server.clone() });
        }
        emitted += BATCH;
        ensure!(logs.flush(PATIENCE), "the disk took no events for {PATIENCE:?}");
    }
    ensure!(logs.counters().lost == 0, "events were lost: {:?}", logs.counters());
    Ok(emitted)
}

/// Keeps everything: no bound is to be met.
fn config() -> LogsConfig {
    LogsConfig { total_bytes_max: u64::MAX, ..LogsConfig::default() }
}

fn seconds_of_cpu() -> anyhow::Result<f64> {
    Ok(machine::cpu(std::process::id())?.as_secs_f64())
}

/// What one process writes in this time.
pub(crate) fn written(window: Duration) -> anyhow::Result<Figures> {
    progress("logs, events that are written");
    let folder = Folder::new("written")?;
    let writer = LogWriter::start(&config(), &folder.0, "bench")?;
    let (began, cpu) = (Instant::now(), seconds_of_cpu()?);
    let events = float(emit(writer.logs(), |_| began.elapsed() < window)?);
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), seconds_of_cpu()? - cpu);
    writer.stop();
    Ok(vec![("written_per_s", events / seconds), ("cpu_s_per_million", cpu * 1e6 / events)])
}

/// What questions take over so many events, from their segments.
pub(crate) fn asked(events: usize) -> anyhow::Result<Figures> {
    progress(&format!("logs, questions over {events} events"));
    let folder = Folder::new("asked")?;
    let wanted = u64::try_from(events)?;
    let writer = LogWriter::start(&config(), &folder.0, "bench")?;
    let events = emit(writer.logs(), |emitted| emitted < wanted)?;
    writer.stop();
    let on_disk = greenroom_logs::read::bytes(&folder.0)?;
    let (began, before) = (Instant::now(), machine::rss(std::process::id())?);
    let database = Database::load(&folder.0, None, |_| {})?;
    let loading = began.elapsed().as_secs_f64();
    ensure!(database.loaded().events >= events, "some events are missing");
    let mut figures = vec![
        ("events", float(events)),
        ("bytes_on_disk_per_event", float(on_disk) / float(events)),
        ("load_s", loading),
    ];
    for (name, question) in QUESTIONS {
        let began = Instant::now();
        let answer = database.ask(question)?;
        ensure!(!answer.rows.is_empty(), "{question}: no answer");
        figures.push((name, began.elapsed().as_secs_f64()));
    }
    let rss = machine::rss(std::process::id())?;
    figures.push(("rss_bytes", float(rss)));
    figures.push(("rss_bytes_more_than_before", float(rss.saturating_sub(before))));
    Ok(figures)
}

/// What one process ships in this time to a stream that is all its own.
#[cfg(feature = "kinesis")]
pub(crate) fn shipped(
    window: Duration,
    service: &crate::stream::Service,
) -> anyhow::Result<Figures> {
    use std::sync::atomic::Ordering::Relaxed;
    progress("logs, events that are shipped");
    service.create("bench-shipped", 4)?;
    let folder = Folder::new("shipped")?;
    let writer = LogWriter::start(&config(), &folder.0, "bench")?;
    // First everything is on disk, so that what is measured is the shipper alone.
    let mut left = 100;
    let events = emit(writer.logs(), |_| {
        left -= 1;
        left >= 0
    })?;
    let kinesis = service.config("bench-shipped");
    let (began, cpu) = (Instant::now(), seconds_of_cpu()?);
    let shipper =
        greenroom_logs::ship::Shipper::start(&kinesis, &folder.0, "bench", writer.logs())?;
    let shipper = shipper.context("a stream is named")?;
    let metrics = std::sync::Arc::clone(shipper.metrics());
    while began.elapsed() < window && metrics.events.load(Relaxed) < events {
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), seconds_of_cpu()? - cpu);
    let [shipped, records, calls] = [&metrics.events, &metrics.records, &metrics.calls]
        .map(|counter| float(counter.load(Relaxed)));
    shipper.stop();
    writer.stop();
    ensure!(shipped > 0.0, "nothing was shipped");
    Ok(vec![
        ("shipped_per_s", shipped / seconds),
        ("records_per_s", records / seconds),
        ("records_per_call", records / calls.max(1.0)),
        ("cpu_s_per_million", cpu * 1e6 / shipped),
    ])
}
