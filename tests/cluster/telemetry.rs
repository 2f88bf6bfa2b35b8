//! What a real OpenTelemetry collector gets to see: a join from the client to the game server and back, as one trace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use greenroom::client::{
    Client, Event, Room, Seat,
    telemetry::{Export, Registry, TelemetryConfig, Who},
};
use greenroom_games::duel;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use crate::{
    harness::{Folder, Process, event, greenroom, rows, run, status},
    up::{Many, admin_of, anywhere, process_id, said, start},
};

/// A collector that takes OTLP over HTTP, and prints all that it took.
struct Collector {
    process: Process,
    endpoint: String,
    _folder: Folder,
}

impl Collector {
    fn start() -> Self {
        let program = std::env::var_os("GREENROOM_OTELCOL").map_or_else(
            || {
                let built = "target/tools/otelcol-0.155.0/otelcol";
                PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(built)
            },
            PathBuf::from,
        );
        assert!(
            program.exists(),
            "no collector at {}: `cargo xtask test` builds one",
            program.display()
        );
        let folder = Folder::new();
        let port = crate::harness::free_port();
        let config = folder.path().join("collector.yaml");
        let text = format!(
            "receivers: {{otlp: {{protocols: {{http: {{endpoint: '127.0.0.1:{port}'}}}}}}}}\n\
             exporters: {{debug: {{verbosity: detailed, sampling_initial: 1000000, sampling_thereafter: 1}}}}\n\
             service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines:\n    \
             traces: {{receivers: [otlp], exporters: [debug]}}\n    \
             metrics: {{receivers: [otlp], exporters: [debug]}}\n"
        );
        std::fs::write(&config, text).unwrap();
        let process = Process::spawn(Command::new(program).arg("--config").arg(&config));
        process.err.wait("a collector that is ready", |line| line.contains("Everything is ready"));
        Self { process, endpoint: format!("http://127.0.0.1:{port}"), _folder: folder }
    }

    /// `up --processes` that sends to this collector; with its admin port, and the URL of a session server.
    fn cluster(&self, many: &Many) -> (Process, String, String) {
        self.cluster_with(many, &[])
    }

    /// The same, with more flags.
    fn cluster_with(&self, many: &Many, more: &[&str]) -> (Process, String, String) {
        let flags = ["--telemetry-endpoint", &self.endpoint, "--telemetry-interval", "1s"];
        let (up, admin) = many.start_with(&[&flags, more].concat());
        crate::harness::wait_until("a standby that has everything", || {
            let masters = status(&admin).masters;
            masters.iter().any(|master| master.role == "standby" && master.in_sync)
        });
        let session = said(&up, "session");
        let url = session.split_whitespace().find(|word| word.starts_with("tcp://")).unwrap();
        (up, admin, url.to_owned())
    }

    /// For clients that have everything traced that they ask for.
    fn export(&self) -> Export {
        let endpoint = self.endpoint.clone();
        let config = TelemetryConfig { endpoint, sample: 1.0, ..TelemetryConfig::default() };
        Export::start(&config, &Registry::default()).unwrap()
    }

    /// Waits until the trace whose root is the first of these places has a span of each of them, what led to all that
    /// it has, and whatever else it is to have.
    fn wait_for(
        &self,
        what: &str,
        places: &[(&str, &str)],
        is_whole: impl Fn(&[Span]) -> bool,
    ) -> Vec<Span> {
        let mut trace = Vec::new();
        crate::harness::wait_until(what, || {
            trace = trace_of(&self.spans(), places);
            has_all(&trace, places) && is_whole(&trace)
        });
        trace
    }

    /// What has arrived.
    fn spans(&self) -> Vec<Span> {
        spans(&self.process.err.so_far())
    }
}

/// The kinds of events that the log has of a trace.
fn kinds_of(trace: &str, many: &Many) -> Vec<String> {
    let sql = format!("select kind from events where trace = '{trace}' order by kind");
    rows(many.folder(), &sql)
}

/// The spans of the trace whose root is the first of these places.
fn trace_of(arrived: &[Span], places: &[(&str, &str)]) -> Vec<Span> {
    let root = arrived.iter().find(|span| span.place() == places[0]);
    let trace = root.map(|span| &*span.trace).unwrap_or_default();
    arrived.iter().filter(|span| span.trace == trace).cloned().collect()
}

/// Whether a trace has a span of each of these places, and those that led to its spans: each process sends its own, the
/// later ones first or last.
fn has_all(trace: &[Span], places: &[(&str, &str)]) -> bool {
    let there: BTreeSet<_> = trace.iter().map(Span::place).collect();
    let ids: BTreeSet<&str> = trace.iter().map(|span| &*span.id).collect();
    places.iter().all(|place| there.contains(place))
        && trace.iter().all(|span| span.parent.is_empty() || ids.contains(&*span.parent))
}

/// Sends what the export of clients still has.
async fn sent(export: Export) {
    tokio::task::spawn_blocking(move || export.stop(Duration::from_secs(10))).await.unwrap();
}

/// How many commands have a span of this name. A command that is sent to the standby again has a further one there.
fn commands(trace: &[Span], name: &str) -> usize {
    let of_it = trace.iter().filter(|span| span.name == name);
    of_it.map(|span| &span.attributes["greenroom.lsn"]).collect::<BTreeSet<_>>().len()
}

/// Asserts that what a game server's span of this name led to is a command of the active, which the standby applied
/// within it.
fn assert_committed_by_both(trace: &[Span], name: &str) {
    let cause = trace.iter().find(|span| span.place() == ("greenroom-game", name)).unwrap();
    let inside = |outer: &Span, name: &str| {
        let found = trace.iter().find(|span| span.parent == outer.id && span.name == name);
        found.unwrap_or_else(|| panic!("no {name} in {outer:?} of {trace:#?}")).clone()
    };
    let commit = inside(cause, "commit");
    let apply = inside(&commit, "apply");
    assert_ne!(commit.server, apply.server, "the standby applies what the active commits");
    assert_eq!(commit.attributes["greenroom.lsn"], apply.attributes["greenroom.lsn"]);
}

/// Keeps a trace for the documents, if it is wanted.
fn keep(name: &str, trace: &[Span]) {
    if let Some(folder) = std::env::var_os("GREENROOM_KEEP_TRACE") {
        let folder = PathBuf::from(folder);
        std::fs::write(folder.join(format!("{name}.svg")), waterfall(trace)).unwrap();
        std::fs::write(folder.join(format!("{name}.txt")), printed(trace)).unwrap();
    }
}

/// Asserts that each span begins after the one that led to it; the root is of this place.
fn assert_nested(trace: &[Span], root: (&str, &str)) {
    for span in trace {
        match trace.iter().find(|outer| outer.id == span.parent) {
            None => assert_eq!((span.place(), &*span.parent), (root, "")),
            Some(outer) => {
                let begins = nanoseconds(&span.start) >= nanoseconds(&outer.start);
                assert!(begins, "{span:?} begins before {outer:?}");
            }
        }
    }
}

/// A span, as the collector printed it.
#[derive(Clone, Debug, PartialEq)]
struct Span {
    service: String,
    server: String,
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: String,
    start: String,
    end: String,
    attributes: BTreeMap<String, String>,
}

impl Span {
    fn place(&self) -> (&str, &str) {
        (&self.service, &self.name)
    }
}

/// Reads the spans out of what the debug exporter prints.
fn spans(lines: &[String]) -> Vec<Span> {
    let (mut spans, mut resource, mut is_resource) = (Vec::<Span>::new(), BTreeMap::new(), false);
    for line in lines {
        let line = line.trim();
        if line.starts_with("Resource attributes:") {
            (resource, is_resource) = (BTreeMap::new(), true);
        } else if line.starts_with("Span #") {
            is_resource = false;
            let known = |key: &str| resource.get(key).cloned().unwrap_or_default();
            spans.push(Span {
                service: known("service.name"),
                server: known("service.instance.id"),
                trace: String::new(),
                id: String::new(),
                parent: String::new(),
                name: String::new(),
                kind: String::new(),
                start: String::new(),
                end: String::new(),
                attributes: BTreeMap::new(),
            });
        } else if let Some(attribute) = line.strip_prefix("-> ") {
            let (key, value) = attribute.split_once(": ").unwrap_or((attribute, ""));
            let value =
                value.split_once('(').map_or(value, |(_, value)| value.trim_end_matches(')'));
            let to = if is_resource {
                Some(&mut resource)
            } else {
                spans.last_mut().map(|span| &mut span.attributes)
            };
            if let Some(to) = to {
                to.insert(key.to_owned(), value.to_owned());
            }
        } else if let (Some((key, value)), Some(span)) = (line.split_once(": "), spans.last_mut()) {
            let field = match key.trim() {
                "Trace ID" => &mut span.trace,
                "Parent ID" => &mut span.parent,
                "ID" => &mut span.id,
                "Name" => &mut span.name,
                "Kind" => &mut span.kind,
                "Start time" => &mut span.start,
                "End time" => &mut span.end,
                _ => continue,
            };
            if field.is_empty() {
                *field = value.trim().to_owned();
            }
        }
    }
    spans
}

/// Nanoseconds of a day, of a time as the collector prints it: `2026-11-28 10:59:03.123456789 +0000 UTC`.
fn nanoseconds(time: &str) -> i128 {
    let clock = time.split(' ').nth(1).unwrap();
    let mut parts = clock.split(':').map(|part| part.parse::<f64>().unwrap());
    let mut next = || parts.next().unwrap();
    let (hours, minutes) = (next(), next());
    let seconds = clock.rsplit(':').next().unwrap();
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let whole: i128 = whole.parse().unwrap();
    let nanos: i128 = format!("{fraction:0<9}").parse().unwrap();
    #[expect(clippy::cast_possible_truncation, reason = "whole hours and minutes of a day")]
    let minutes = (hours * 60.0 + minutes) as i128;
    (minutes * 60 + whole) * 1_000_000_000 + nanos
}

/// The spans that a join leads to, each with the name of its service.
const JOIN: &[(&str, &str)] = &[
    ("greenroom-client", "join_or_create"),
    ("greenroom-session", "join_or_create"),
    ("greenroom-master", "join_or_create"),
    ("greenroom-master", "commit"),
    ("greenroom-master", "apply"),
    ("greenroom-game", "create"),
    ("greenroom-game", "attach"),
];

/// A client joins through two masters, with a collector that is there: one trace has the whole way of it, each span
/// within the one that led to it, and every role's metrics arrive.
#[tokio::test(flavor = "multi_thread")]
async fn one_join_is_one_trace_at_a_real_collector() {
    let collector = Collector::start();
    let many = Many::new();
    let (up, _, url) = collector.cluster(&many);
    let export = collector.export();
    let tracer = export.tracer(Who::new("client", "Ann"));
    let client =
        Client::builder().servers([url]).guest("Ann").trace(tracer).connect().await.unwrap();
    let room = client.join_or_create("echo").await.unwrap();
    let echoed: String = room.call("hello").await.unwrap();
    assert_eq!(echoed, "hello");
    let instance = room.instance().to_string();
    drop(room);
    client.close().await;
    sent(export).await;

    // The instance is granted, it runs, and the seat is taken: three commands, each with the standby.
    let trace = collector.wait_for("the spans of the join", JOIN, |trace| {
        commands(trace, "commit") == 3 && commands(trace, "apply") == 3
    });
    assert_nested(&trace, JOIN[0]);
    let check_in = collector.wait_for("the spans of the check-in", CHECK_IN, |_| true);
    assert_nested(&check_in, CHECK_IN[0]);
    assert_committed_by_both(&trace, "attach");
    let of_masters = trace.iter().filter(|span| span.service == "greenroom-master");
    let masters: BTreeSet<_> = of_masters.map(|span| (&*span.server, &*span.name)).collect();
    let named = |name| masters.iter().find(|(_, of)| *of == name).map(|(server, _)| *server);
    assert_ne!(named("commit"), named("apply"), "the standby applies what the active commits");
    assert_eq!(named("commit"), named("join_or_create"));
    let create = trace.iter().find(|span| span.place() == ("greenroom-game", "create")).unwrap();
    assert_eq!(create.attributes["greenroom.instance"], instance);

    // A call is a trace of its own, from the client over its session server to the game server.
    crate::harness::wait_until("the spans of the call", || {
        let arrived = collector.spans();
        let calls: Vec<_> = arrived.iter().filter(|span| span.name == "call").collect();
        let services: BTreeSet<_> = calls.iter().map(|span| &*span.service).collect();
        let traces: BTreeSet<_> = calls.iter().map(|span| &*span.trace).collect();
        services.len() == 3 && traces.len() == 1
    });
    for metric in [
        "greenroom.session.check_in.accepted",
        "greenroom.master.commit.duration",
        "greenroom.game.instance.created",
        "greenroom.storage.operation.duration",
        "greenroom.logs.event.written",
        "process.cpu.time",
    ] {
        let line = format!("-> Name: {metric}");
        collector.process.err.wait(metric, |printed| printed.trim() == line);
    }
    keep("join-trace", &trace);
    let (ended, text) = up.stop();
    assert!(ended, "{text}");

    // What the log has of a trace that the collector has.
    for (trace, kinds) in [
        (&trace, &["directory_join", "instance_granted", "instance_running", "seat_changed"][..]),
        (&check_in, &["check_in"]),
    ] {
        assert_eq!(kinds_of(&trace[0].trace, &many), kinds);
    }
}

/// The spans that a check-in leads to.
const CHECK_IN: &[(&str, &str)] = &[
    ("greenroom-client", "check_in"),
    ("greenroom-session", "check_in"),
    ("greenroom-master", "check_in"),
    ("greenroom-master", "commit"),
    ("greenroom-master", "apply"),
    // The user's profile, once it is committed.
    ("greenroom-master", "store"),
    ("greenroom-master", "queued"),
    ("greenroom-master", "get users"),
    ("greenroom-master", "put users"),
];

/// The spans that the last card of a duel leads to: its result and the count of the winner's wins are stored, and a
/// snapshot is; both masters know that nobody is to be matched with this duel any more, and the active has that stored,
/// or that the duel is gone, if it is by then.
const RESULT: &[(&str, &str)] = &[
    ("greenroom-client", "message"),
    ("greenroom-session", "message"),
    ("greenroom-game", "message"),
    ("greenroom-game", "store"),
    ("greenroom-game", "queued"),
    ("greenroom-game", "insert documents"),
    ("greenroom-game", "snapshot"),
    ("greenroom-game", "put snapshots"),
    ("greenroom-master", "commit"),
    ("greenroom-master", "apply"),
    ("greenroom-master", "store"),
];

/// What a player has to know of a duel.
#[derive(Deserialize)]
struct Table {
    turn: Option<Seat>,
    turns: u16,
}

/// Plays the first card of a hand whenever it is this player's turn, until the duel has a result that is stored; gives
/// its key.
async fn plays(mut room: Room) -> String {
    let seat = room.seat();
    let mut played = None;
    event(&mut room, "the result", |room, event| {
        if let Event::Message(message) = event {
            if let duel::Out::Result(key, _) = message.decode().unwrap() {
                return Some(key);
            }
        } else if let Event::State { .. } = event {
            let Table { turn, turns } = room.state().unwrap();
            if turn == Some(seat) && played.replace(turns) != Some(turns) {
                room.send(&duel::In::Play(0)).unwrap();
            }
        }
        None
    })
    .await
}

/// The card that ends a duel is followed from the client to the store, and what follows from there.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_card_of_a_duel_is_followed_to_the_store() {
    let collector = Collector::start();
    let many = Many::new();
    let (up, _, url) = collector.cluster(&many);
    let export = collector.export();
    let player = |name: &str| {
        let tracer = export.tracer(Who::new("client", name));
        Client::builder().servers([url.clone()]).guest(name).trace(tracer).connect()
    };
    let (ann, bo) = (player("Ann").await.unwrap(), player("Bo").await.unwrap());
    let hers = ann.join_or_create("duel").await.unwrap();
    let his = bo.join(hers.instance()).await.unwrap();
    let (key, same) = tokio::join!(plays(hers), plays(his));
    assert_eq!(key, same);
    for client in [ann, bo] {
        client.close().await;
    }
    sent(export).await;

    let mut trace = Vec::new();
    crate::harness::wait_until("the spans of the last card", || {
        let arrived = collector.spans();
        let stored = arrived.iter().find(|span| {
            span.name == "store" && span.attributes.get("greenroom.key") == Some(&key)
        });
        let Some(of) = stored.map(|span| span.trace.clone()) else { return false };
        trace = arrived.into_iter().filter(|span| span.trace == of).collect();
        has_all(&trace, RESULT)
    });
    assert_nested(&trace, RESULT[0]);
    // The store has it within the order, and the order is of the call.
    let of = |id: &str| trace.iter().find(|span| span.id == id).unwrap();
    let inserted = trace.iter().find(|span| span.name == "insert documents").unwrap();
    let known = |key: &str| inserted.attributes.get(key).map(String::as_str);
    assert_eq!(
        [known("db.system.name"), known("db.operation.name"), known("db.collection.name")],
        [Some("sqlite"), Some("insert"), Some("documents")]
    );
    let order = of(&inserted.parent);
    assert_eq!((order.place(), &order.attributes["greenroom.key"]), (RESULT[3], &key));
    assert_eq!(of(&order.parent).place(), RESULT[2]);
    assert_committed_by_both(&trace, "message");
    let kept = trace.iter().find(|span| span.place() == ("greenroom-master", "store")).unwrap();
    let is_in_the_store = |span: &&Span| {
        span.parent == kept.id
            && span.attributes.get("db.system.name").is_some_and(|of| of == "sqlite")
    };
    assert!(trace.iter().any(|span| is_in_the_store(&span)), "{trace:#?}");
    keep("duel-trace", &trace);
    let (ended, text) = up.stop();
    assert!(ended, "{text}");
    assert_eq!(kinds_of(&trace[0].trace, &many), ["duel.over"]);
}

/// What goes on elsewhere is read from the store: the game server that has it then says so in a trace of its own, since
/// nobody asked for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_goes_on_elsewhere_is_followed_from_the_store() {
    let collector = Collector::start();
    let many = Many::new();
    let (up, _, url) = collector.cluster_with(&many, &["--telemetry-sample", "1.0"]);
    let client = Client::builder().servers([url]).guest("Ann").connect().await.unwrap();
    let mut room = client.join_or_create("arena").await.unwrap();
    let instance = room.instance().to_string();
    let place = ("greenroom-game", "snapshot");
    let of_it = |span: &Span| span.attributes.get("greenroom.instance") == Some(&instance);
    let mut at = String::new();
    crate::harness::wait_until("a snapshot of it", || {
        let arrived = collector.spans();
        let taken = arrived.iter().find(|span| span.place() == place && of_it(span));
        at = taken.map(|span| span.server.clone()).unwrap_or_default();
        !at.is_empty()
    });
    let line = up.out.wait(&at, |line| line.contains(&at) && line.contains("(process "));
    let process = i32::try_from(process_id(&line)).unwrap();
    kill_process(Pid::from_raw(process).unwrap(), Signal::KILL).unwrap();
    event(&mut room, "the arena in its next life", |_, event| {
        matches!(event, Event::Rewound { .. }).then_some(())
    })
    .await;
    let restored = [
        ("greenroom-game", "restore"),
        ("greenroom-game", "queued"),
        ("greenroom-game", "get snapshots"),
        ("greenroom-game", "snapshot"),
        ("greenroom-game", "put snapshots"),
    ];
    let trace = collector.wait_for("the spans of the restore", &restored, |_| true);
    assert_nested(&trace, restored[0]);
    let restore = trace.iter().find(|span| span.place() == restored[0]).unwrap();
    assert!(of_it(restore) && restore.server != at, "{restore:?}");
    drop(room);
    client.close().await;
    let (ended, text) = up.stop();
    assert!(ended, "{text}");
}

/// While the store is away, a snapshot is kept on this machine's disk: its trace says that the store had no answer, and
/// that the disk has it.
#[cfg(feature = "couchbase")]
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_followed_to_the_disk_while_the_store_is_away() {
    let mut nodes = crate::couchbase::Nodes::start();
    let collector = Collector::start();
    let many = Many::new();
    let flags = [&["--telemetry-sample", "1.0"], &nodes.store_flags()[..]].concat();
    let (up, _, url) = collector.cluster_with(&many, &flags);
    let client = Client::builder().servers([url]).guest("Ann").connect().await.unwrap();
    let room = client.join_or_create("arena").await.unwrap();
    let stored = [("greenroom-game", "snapshot"), ("greenroom-game", "put snapshots")];
    crate::harness::wait_until("a snapshot in the store", || {
        let arrived = collector.spans();
        let put = arrived.iter().find(|span| span.place() == stored[1]);
        put.is_some_and(|put| put.attributes["db.system.name"] == "couchbase")
    });
    nodes.kill();
    let spooled = ("greenroom-game", "spool");
    let mut trace = Vec::new();
    crate::harness::wait_until("a snapshot on the disk", || {
        let arrived = collector.spans();
        let Some(of) = arrived.iter().find(|span| span.place() == spooled) else { return false };
        trace = arrived.iter().filter(|span| span.trace == of.trace).cloned().collect();
        has_all(&trace, &[stored[0], spooled])
    });
    let of = |place| trace.iter().find(|span| span.place() == place).unwrap();
    assert_eq!(of(spooled).parent, of(stored[0]).id);
    nodes.restart();
    drop(room);
    client.close().await;
    let (ended, text) = up.stop();
    assert!(ended, "{text}");
}

/// A metric, as Prometheus's own client for Python reads it.
#[derive(Deserialize)]
struct Family {
    name: String,
    kind: String,
    help: String,
    /// Name, labels and value of each.
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// Reads Prometheus's text with Prometheus's own parser, which takes nothing that is not by its format.
fn families(text: &str) -> Vec<Family> {
    const SCRIPT: &str = "import sys, json
from prometheus_client.parser import text_string_to_metric_families
print(json.dumps([{'name': f.name, 'kind': f.type, 'help': f.documentation,
    'samples': [[s.name, s.labels, s.value if s.value != float('inf') else 1e308] for s in f.samples]}
    for f in text_string_to_metric_families(sys.stdin.read())]))";
    let python = std::env::var_os("GREENROOM_PROMETHEUS_PYTHON").map_or_else(
        || {
            let built = "target/tools/python-prometheus-client--0.26.0/bin/python";
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(built)
        },
        PathBuf::from,
    );
    let mut parser = Command::new(&python)
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{}: {error}: `cargo xtask test` makes it", python.display())
        });
    // All of it is read before anything is printed.
    parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = parser.wait_with_output().unwrap();
    assert!(output.status.success(), "it is not Prometheus's text:\n{text}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Everything that `greenroom metrics` says there is, is on the admin port: under its name, of its kind, with its
/// meaning, each series once, and histograms that add up.
#[tokio::test]
async fn what_the_admin_port_shows_is_read_by_prometheus_own_client() {
    let folder = Folder::new();
    let collector = Collector::start();
    let flags = [&anywhere(&folder)[..], &["--telemetry-endpoint", &collector.endpoint]].concat();
    let up = start(&flags);
    let admin = admin_of(&up);
    let bots = ["bots", "--json", "--admin", &admin, "--users", "4", "--for", "2s"];
    let played = greenroom().args(bots).output().unwrap();
    assert!(played.status.success(), "{}", String::from_utf8_lossy(&played.stderr));
    let mut socket = TcpStream::connect(&admin).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let families = families(text);

    let mut series = BTreeSet::new();
    for Family { name, kind, samples, .. } in &families {
        for (sample, labels, value) in samples {
            assert!(series.insert((sample, labels)), "{sample} {labels:?} is there twice");
            assert!(*value >= 0.0, "{sample} {labels:?} is {value}");
        }
        if kind == "histogram" {
            let (mut before, mut servers) = (BTreeMap::new(), BTreeMap::new());
            for (sample, labels, value) in samples {
                let server = labels.get("server").map_or("", String::as_str);
                if sample.ends_with("_bucket") {
                    let last = before.insert(server, *value).unwrap_or(0.0);
                    assert!(*value >= last, "{name} of {server:?} sinks at {labels:?}");
                    if labels["le"] == "+Inf" {
                        servers.insert(server, *value);
                    }
                } else if sample.ends_with("_count") {
                    assert_eq!(servers.remove(server), Some(*value), "{name} of {server:?}");
                }
            }
            assert!(servers.is_empty() && !before.is_empty(), "{name} does not add up");
        }
    }
    let listed = run(&["metrics"]);
    assert!(listed.status.success());
    let listed = String::from_utf8(listed.stdout).unwrap();
    let rows = listed.lines().filter(|line| line.starts_with("| `"));
    let mut checked = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, name, kind, _, help] = cells[..] else { panic!("{row}") };
        let name = name.trim_matches('`');
        if name.starts_with("greenroom_logs_shipping_") {
            continue; // Nothing is shipped here.
        }
        let name = name.strip_suffix("_total").unwrap_or(name);
        let found = families.iter().find(|family| family.name == name);
        let family = found.unwrap_or_else(|| panic!("{name} is not on the port"));
        assert_eq!((&*family.kind, &*family.help), (kind, help), "{name}");
        assert!(!family.samples.is_empty(), "{name} has no value");
        checked += 1;
    }
    assert_eq!(checked, families.len(), "the port shows more than is listed");
    let frames = families.iter().find(|family| family.name == "greenroom_session_frame_received");
    assert!(frames.unwrap().samples.iter().map(|(.., value)| value).sum::<f64>() > 0.0);
    let (ended, text) = up.stop();
    assert!(ended, "{text}");
}

/// With a collector that is away everything is as without one, and is told once.
#[test]
fn without_its_collector_a_cluster_plays_on_and_says_so_once() {
    let many = Many::new();
    let port = crate::harness::free_port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let flags = [
        "--telemetry-endpoint",
        &*endpoint,
        "--telemetry-sample",
        "1.0",
        "--telemetry-interval",
        "1s",
    ];
    let (up, admin) = many.start_with(&flags);
    let bots = ["bots", "--json", "--admin", &admin, "--users", "10", "--for", "3s"];
    let report = greenroom().args(bots).output().unwrap();
    assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
    let (ended, text) = up.stop_with_errors();
    assert!(ended, "{text}");
    let warnings = text.lines().filter(|line| line.contains("the collector takes no telemetry"));
    // Each process for itself: two masters, two session servers, two game servers.
    let warnings = warnings.count();
    assert!((1..=6).contains(&warnings), "{warnings} warnings in\n{text}");
}

#[test]
fn a_collector_that_is_no_address_is_named_at_the_start() {
    for (flags, problem) in [
        (["--telemetry-endpoint", "collector"], "no scheme or no host"),
        (["--telemetry-endpoint", "http://127.0.0.1:1/v1/traces"], "the address of one signal"),
        (["--telemetry-sample", "2.0"], "telemetry.sample = 2"),
        (["--telemetry-interval", "10ms"], "telemetry.interval"),
    ] {
        let folder = Folder::new();
        let words = [&["up", "--data", folder.text()], &flags[..]].concat();
        let output = run(&words);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(problem), "{error}");
    }
}

/// Outer spans before inner ones, in the order in which they began.
fn in_order(trace: &[Span]) -> Vec<(usize, &Span)> {
    fn inner<'a>(trace: &'a [Span], of: &str, depth: usize, out: &mut Vec<(usize, &'a Span)>) {
        let mut inside: Vec<_> = trace.iter().filter(|span| span.parent == of).collect();
        inside.sort_by_key(|span| nanoseconds(&span.start));
        for span in inside {
            out.push((depth, span));
            inner(trace, &span.id, depth + 1, out);
        }
    }
    let mut out = Vec::new();
    inner(trace, "", 0, &mut out);
    out
}

fn microseconds(trace: &[Span], span: &Span) -> (i128, i128) {
    let began = trace.iter().map(|span| nanoseconds(&span.start)).min().unwrap();
    let start = nanoseconds(&span.start) - began;
    (start / 1_000, (nanoseconds(&span.end) - began - start) / 1_000)
}

/// The trace as lines.
fn printed(trace: &[Span]) -> String {
    let mut text = format!("trace {}\n", trace[0].trace);
    for (depth, span) in in_order(trace) {
        let (start, lasted) = microseconds(trace, span);
        let name = format!("{}{}", "  ".repeat(depth), span.name);
        let attributes: Vec<_> =
            span.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        writeln!(
            text,
            "{start:>7} µs  {lasted:>7} µs  {name:24}  {:17}  {:10}  {:8}  {}",
            span.service,
            span.server,
            span.kind,
            attributes.join(" ")
        )
        .unwrap();
    }
    text
}

/// The trace as a picture: a row for each span, at the time that it took.
fn waterfall(trace: &[Span]) -> String {
    let rows = in_order(trace);
    let whole = rows.iter().map(|(_, span)| {
        let (start, lasted) = microseconds(trace, span);
        start + lasted
    });
    #[expect(clippy::cast_precision_loss, reason = "some thousand microseconds")]
    let scale = 560.0 / whole.max().unwrap().max(1) as f64;
    let height = rows.len() * 26 + 30;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 920 {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"920\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (row, (depth, span)) in rows.iter().enumerate() {
        let (start, lasted) = microseconds(trace, span);
        let color = match &*span.service {
            "greenroom-client" => "#5b8def",
            "greenroom-session" => "#3aa675",
            "greenroom-master" => "#b26bd6",
            _ => "#e08a3c",
        };
        #[expect(clippy::cast_precision_loss, reason = "some thousand microseconds")]
        let (x, width) = (330.0 + start as f64 * scale, (lasted as f64 * scale).max(1.5));
        let y = row * 26 + 12;
        let (indent, text_y) = (10 + depth * 14, y + 14);
        let after =
            if x + width > 820.0 { (x + width - 6.0, "end") } else { (x + width + 6.0, "start") };
        writeln!(
            svg,
            "<text x=\"{indent}\" y=\"{text_y}\" fill=\"#222\">{} · {}</text>\n\
             <rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"18\" rx=\"2\" fill=\"{color}\"/>\n\
             <text x=\"{:.1}\" y=\"{text_y}\" text-anchor=\"{}\" fill=\"#222\">{lasted} µs</text>",
            span.server, span.name, after.0, after.1
        )
        .unwrap();
    }
    svg.push_str("</svg>\n");
    svg
}
