//! What a real OpenTelemetry collector gets to see: a join from the client to the game server and back, as one trace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use greenroom::client::{
    Client, Event, Room, Seat,
    telemetry::{Export, Registry, TelemetryConfig, Who},
};
use greenroom_games::duel;
use serde::Deserialize;

use crate::{
    harness::{Folder, Process, event, greenroom, rows, run, status},
    up::{Many, said},
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
        let flags = ["--telemetry-endpoint", &self.endpoint, "--telemetry-interval", "1s"];
        let (up, admin) = many.start_with(&flags);
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

    let mut trace = Vec::new();
    crate::harness::wait_until("the spans of the join", || {
        trace = trace_of(&collector.spans(), JOIN);
        has_all(&trace, JOIN)
    });
    assert_nested(&trace, JOIN[0]);
    let mut check_in = Vec::new();
    crate::harness::wait_until("the spans of the check-in", || {
        check_in = trace_of(&collector.spans(), CHECK_IN);
        has_all(&check_in, CHECK_IN)
    });
    assert_nested(&check_in, CHECK_IN[0]);
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
        (&trace, &["directory_join", "instance_granted", "instance_running"][..]),
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
];

/// The spans that the last card of a duel leads to: its result and the count of the winner's wins are stored, and a
/// snapshot is.
const RESULT: &[(&str, &str)] = &[
    ("greenroom-client", "message"),
    ("greenroom-session", "message"),
    ("greenroom-game", "message"),
    ("greenroom-game", "store"),
    ("greenroom-game", "queued"),
    ("greenroom-game", "insert documents"),
    ("greenroom-game", "snapshot"),
    ("greenroom-game", "put snapshots"),
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
    keep("duel-trace", &trace);
    let (ended, text) = up.stop();
    assert!(ended, "{text}");
    assert_eq!(kinds_of(&trace[0].trace, &many), ["duel.over"]);
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
