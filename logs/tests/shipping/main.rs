//! Events are shipped to a Kinesis API that we did not write, by real processes, through a network that fails.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

mod credentials;
mod http;
mod moto;
mod proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use greenroom_logs::read::{Entry, From, Reader};
use moto::{CREDENTIALS, Moto};
use proxy::{Fault, Proxy};

/// How long what takes moments may take.
const PATIENCE: Duration = Duration::from_secs(120);

fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().and_then(Path::parent).unwrap().join("examples/stream")
}

fn target(stream: &str, port: u16) -> String {
    format!("kinesis://{stream}?region=us-east-1&endpoint=http://127.0.0.1:{port}")
}

/// A process that emits events and ships them.
struct Ships {
    process: Child,
    stdin: Option<ChildStdin>,
}

impl Ships {
    fn start(folder: &Path, target: &str, events: usize) -> Self {
        Self::start_with(folder, target, events, &[])
    }

    /// The same, with no more than these bytes on its disk.
    fn start_with(folder: &Path, target: &str, events: usize, total: &[&str]) -> Self {
        let mut process = Command::new(program())
            .arg("ship")
            .arg(folder)
            .args(["game-1", target, &events.to_string()])
            .args(total)
            .envs(CREDENTIALS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = process.stdin.take();
        let mut line = String::new();
        let stdout = process.stdout.as_mut().unwrap();
        BufReader::with_capacity(1, stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "emitted\n");
        Self { process, stdin }
    }
    /// Lets it end, and gives what it counted and what it complained of.
    fn stop(mut self) -> (BTreeMap<String, u64>, String) {
        drop(self.stdin.take());
        let (mut out, mut errors) = (String::new(), String::new());
        self.process.stdout.as_mut().unwrap().read_to_string(&mut out).unwrap();
        self.process.stderr.as_mut().unwrap().read_to_string(&mut errors).unwrap();
        assert!(self.process.wait().unwrap().success(), "{errors}");
        let pairs = out.lines().filter_map(|line| line.split_once(' '));
        (pairs.map(|(name, value)| (name.into(), value.parse().unwrap())).collect(), errors)
    }
    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Every event in the stream, with its user, in the order of each shard.
fn in_stream(target: &str) -> Vec<(String, String)> {
    let read = Command::new(program()).args(["read", target]).envs(CREDENTIALS).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let text = String::from_utf8(read.stdout).unwrap();
    text.lines()
        .map(|line| {
            let event = Entry::parse(line).expect("only events are in a stream");
            (event.id.to_string(), event.user.unwrap_or_default().to_string())
        })
        .collect()
}

fn on_disk(folder: &Path) -> BTreeSet<String> {
    let mut reader = Reader::open(folder, From::Start).unwrap();
    std::iter::from_fn(|| reader.next_record().unwrap())
        .map(|record| record.id().to_owned())
        .collect()
}

fn once(events: &[(String, String)]) -> BTreeSet<String> {
    events.iter().map(|(id, _)| id.clone()).collect()
}

/// Ids grow with time: within a user, what comes first in the stream was first.
fn assert_ordered(events: &[(String, String)]) {
    let mut seen = BTreeSet::new();
    let mut last: BTreeMap<&str, &str> = BTreeMap::new();
    for (id, user) in events.iter().filter(|(_, user)| !user.is_empty()) {
        if !seen.insert(id) {
            continue;
        }
        if let Some(before) = last.insert(user, id) {
            assert!(before < id.as_str(), "{user}: {id} came after {before}");
        }
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn everything_that_is_written_is_in_the_stream_once_and_in_order() {
    let (moto, folder) = (Moto::start(), tempfile::tempdir().unwrap());
    moto.create("events", 2);
    let target = target("events", Proxy::start(moto.port).port);
    let (counted, errors) = Ships::start(folder.path(), &target, 5_000).stop();
    let events = in_stream(&target);
    assert_eq!(once(&events), on_disk(folder.path()), "{errors}");
    assert!(
        events.len() >= 5_000
            && counted["greenroom.logs.shipping.event.shipped"] == events.len() as u64
    );
    assert_eq!(once(&events).len(), events.len(), "nothing failed, so nothing comes twice");
    assert_ordered(&events);
    assert_eq!(errors, "");
}

#[test]
fn what_fails_is_put_again_alone_and_nothing_is_lost_or_out_of_order() {
    let (moto, folder) = (Moto::start(), tempfile::tempdir().unwrap());
    moto.create("events", 3);
    let proxy = Proxy::start(moto.port);
    let faults = [Fault::Throttle, Fault::Cut, Fault::Refuse, Fault::Throttle, Fault::Throttle];
    proxy.next(faults);
    let ships = Ships::start(folder.path(), &target("events", proxy.port), 3_000);
    wait_until("all faults happen", || proxy.seen().faults == faults.len());
    let (counted, _) = ships.stop();
    let events = in_stream(&target("events", moto.port));
    assert_eq!(once(&events), on_disk(folder.path()));
    assert_eq!(
        once(&events).len(),
        events.len(),
        "what was refused was not done: nothing comes twice"
    );
    assert_ordered(&events);
    let refused = proxy.seen().records_refused as u64;
    assert!(refused > 0 && counted["greenroom.logs.shipping.record.throttled"] >= refused);
}

#[test]
fn an_answer_that_is_lost_doubles_its_records_and_no_others() {
    let (moto, folder) = (Moto::start(), tempfile::tempdir().unwrap());
    moto.create("events", 1);
    let proxy = Proxy::start(moto.port);
    proxy.next([Fault::Swallow]);
    let ships = Ships::start(folder.path(), &target("events", proxy.port), 1_000);
    wait_until("the answer is lost", || proxy.seen().records_swallowed > 0);
    ships.stop();
    let events = in_stream(&target("events", moto.port));
    assert_eq!(once(&events), on_disk(folder.path()));
    assert!(events.len() > once(&events).len(), "its records are there twice, with the same ids");
    assert_ordered(&events);
}

#[test]
fn a_stream_that_is_away_is_waited_for_and_said_once() {
    let (moto, folder) = (Moto::start(), tempfile::tempdir().unwrap());
    moto.create("events", 1);
    let proxy = Proxy::start(moto.port);
    proxy.always(Fault::Cut);
    let ships = Ships::start(folder.path(), &target("events", proxy.port), 2_000);
    wait_until("it is tried again and again", || proxy.seen().calls >= 5);
    proxy.always(Fault::None);
    wait_until("it tells that it goes on", || {
        kinds_on_disk(folder.path()).contains("shipping_resumed")
    });
    let (_, errors) = ships.stop();
    let events = in_stream(&target("events", moto.port));
    assert!(once(&events).len() >= 2_000);
    let warnings = errors.lines().filter(|line| line.contains("they wait on disk")).count();
    assert_eq!(warnings, 1, "{errors}");
    // The log tells of it itself, and that is shipped too.
    assert_eq!(once(&events), on_disk(folder.path()));
    assert!(kinds_on_disk(folder.path()).contains("shipping_failed"));
}

fn kinds_on_disk(folder: &Path) -> BTreeSet<String> {
    let mut reader = Reader::open(folder, From::Start).unwrap();
    std::iter::from_fn(|| reader.next_record().unwrap())
        .map(|record| record.event().kind.to_string())
        .collect()
}

#[test]
fn after_a_kill_nothing_is_missing_and_what_was_acknowledged_is_not_shipped_again() {
    let (moto, folder) = (Moto::start(), tempfile::tempdir().unwrap());
    moto.create("events", 2);
    let proxy = Proxy::start(moto.port);
    // The first call goes through; then the network is gone, and the process too.
    proxy.next([Fault::None]);
    proxy.always(Fault::Cut);
    let ships = Ships::start(folder.path(), &target("events", proxy.port), 20_000);
    wait_until("something is shipped and something waits", || proxy.seen().faults >= 2);
    let kept = folder.path().join("game-1/shipped.json");
    wait_until("what is shipped is kept", || kept.exists());
    ships.kill();
    let before = in_stream(&target("events", moto.port));
    assert!(!before.is_empty() && once(&before).len() < 20_000);

    proxy.always(Fault::None);
    Ships::start(folder.path(), &target("events", proxy.port), 10).stop();
    let events = in_stream(&target("events", moto.port));
    assert_eq!(once(&events), on_disk(folder.path()));
    assert_eq!(once(&events).len(), events.len(), "nothing was shipped twice");
    assert_ordered(&events);
}

/// What the log of the process says in a field of a kind, added up.
fn told(folder: &Path, kind: &str, field: &str) -> u64 {
    let mut reader = Reader::open(folder, From::Start).unwrap();
    let records = std::iter::from_fn(|| reader.next_record().unwrap());
    let of_kind = records.filter(|record| record.event().kind == kind);
    let fields = of_kind.map(|record| {
        let fields: serde_json::Value = serde_json::from_str(record.event().fields.get()).unwrap();
        fields[field].as_u64().unwrap()
    });
    fields.sum()
}

/// The oldest go, and how many events went, and that they are not in the stream, is in the log, and so in the stream.
#[test]
fn away_for_longer_than_the_disk_has_room_what_is_lost_is_counted_and_told() {
    const EVENTS: usize = 20_000;
    let (moto, folder) = (Moto::start(), tempfile::tempdir().unwrap());
    moto.create("events", 1);
    let proxy = Proxy::start(moto.port);
    proxy.always(Fault::Cut);
    let target_through = target("events", proxy.port);
    let ships = Ships::start_with(folder.path(), &target_through, EVENTS, &["100000"]);
    // More than what is in memory, so that some went before they were read.
    let oldest = || {
        let names = std::fs::read_dir(folder.path().join("game-1")).unwrap();
        let names = names.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        names.filter_map(|name| name.split_once('-')?.0.parse::<u32>().ok()).min()
    };
    let is_gone = || oldest().is_some_and(|oldest| oldest > 10) && proxy.seen().faults > 0;
    wait_until("the oldest go while the stream is away", is_gone);
    proxy.always(Fault::None);
    wait_until("what is left is shipped", || {
        told(folder.path(), "shipping_lost", "segments") > 0
            && on_disk(folder.path()).is_subset(&once(&in_stream(&target("events", moto.port))))
    });
    let (counted, errors) = ships.stop();
    let events = in_stream(&target("events", moto.port));
    let there = events.iter().filter(|(_, user)| !user.is_empty());
    let there = there.map(|(id, _)| id).collect::<BTreeSet<_>>().len();
    // What was read before it went is there all the same.
    let dropped = counted["dropped"];
    let all = EVENTS as u64;
    assert!(there < EVENTS && there as u64 + dropped >= all, "{there} there, {dropped} dropped");
    // Of what the log has told of it, the oldest may have gone too.
    let told = |kind, field| told(folder.path(), kind, field);
    assert!((1..=dropped).contains(&told("segments_dropped", "events")));
    let lost = counted["greenroom.logs.shipping.segment.lost"];
    assert!((1..=lost).contains(&told("shipping_lost", "segments")));
    assert!(errors.contains("segments went before they were shipped"), "{errors}");
    assert_ordered(&events);
}

/// What somebody is told who set it up wrongly.
fn complaint(target: &str, credentials: bool) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program());
    command.arg("ship").arg(folder.path()).args(["game-1", target, "1"]);
    for (name, value) in CREDENTIALS {
        command.env_remove(name);
        if credentials || name == "AWS_EC2_METADATA_DISABLED" {
            command.env(name, value);
        }
    }
    command.env("HOME", folder.path()).env_remove("AWS_PROFILE");
    let ended = command.stdin(Stdio::null()).output().unwrap();
    String::from_utf8(ended.stderr).unwrap()
}

#[test]
fn who_set_it_up_wrongly_is_told_what_to_do() {
    let moto = Moto::start();
    let missing = complaint(&target("no-such-stream", moto.port), true);
    assert!(
        missing.contains("there is no such stream") && missing.contains("create-stream"),
        "{missing}"
    );
    let nobody = complaint(&target("events", moto.port), false);
    assert!(nobody.contains("no AWS credentials were found"), "{nobody}");
    assert!(complaint("kinesis://a b", true).contains("kinesis://STREAM?region="));
}
