use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::*;
use crate::Export;

/// One request to a collector that the test plays: its path and body. Answers with `status`.
fn take(listener: &TcpListener, status: &str) -> (String, Vec<u8>) {
    let (mut socket, _) = listener.accept().unwrap();
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let taken = socket.read(&mut chunk).unwrap();
        assert_ne!(taken, 0, "the request ended early");
        bytes.extend_from_slice(&chunk[..taken]);
        let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let lines = String::from_utf8(bytes[..head].to_vec()).unwrap().to_lowercase();
        let length = lines.split("content-length: ").nth(1).unwrap();
        let length: usize = length.lines().next().unwrap().trim().parse().unwrap();
        if bytes.len() < head + 4 + length {
            continue;
        }
        assert!(lines.contains("content-type: application/x-protobuf"), "{lines}");
        let path = lines.split(' ').nth(1).unwrap().to_owned();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        socket.write_all(answer.as_bytes()).unwrap();
        return (path, bytes[head + 4..].to_vec());
    }
}

fn listen() -> (TcpListener, TelemetryConfig) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = at(listener.local_addr().unwrap());
    (listener, config)
}

fn at(address: SocketAddr) -> TelemetryConfig {
    let endpoint = format!("http://{address}/");
    TelemetryConfig { endpoint, sample: 1.0, ..TelemetryConfig::default() }
}

fn name_of(resource: Option<Resource>) -> String {
    let attributes = resource.unwrap().attributes.into_iter();
    let mut named = attributes.filter(|attribute| attribute.key == "service.name");
    let value = named.next().unwrap().value.unwrap().value;
    let Some(any_value::Value::StringValue(name)) = value else { panic!("{value:?}") };
    name
}

#[test]
fn spans_and_metrics_arrive_under_the_names_of_who_had_them() {
    let (listener, config) = listen();
    let registry = Registry::default();
    registry.add(Who::process(), Arc::new(crate::Process::starting_now()));
    let export = Export::start(&config, &registry).unwrap();
    let session = export.tracer(Who::new("session", "session-1"));
    let mut span = session.root("join", SpanKind::Server).unwrap();
    span.set("greenroom.lsn", 7_u64);
    let game = export.tracer(Who::new("game", "game-1"));
    drop(game.child(Some(span.context()), "create", SpanKind::Consumer));
    let trace = span.context().trace;
    drop(span);
    let collector = thread::spawn(move || {
        // In one batch or in two, as the clock will have it; metrics are the last.
        let mut spans = Vec::new();
        loop {
            let (path, body) = take(&listener, "200 OK");
            if path == "/v1/metrics" {
                return (spans, ExportMetricsServiceRequest::decode(&body[..]).unwrap());
            }
            assert_eq!(path, "/v1/traces");
            spans.extend(ExportTraceServiceRequest::decode(&body[..]).unwrap().resource_spans);
        }
    });
    export.stop(Duration::from_secs(20));
    let (spans, metrics) = collector.join().unwrap();
    let mut services = BTreeSet::new();
    for of in spans {
        let service = name_of(of.resource);
        for span in of.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            assert_eq!(span.trace_id, trace);
            assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
            services.insert((service.clone(), span.name, span.parent_span_id.is_empty()));
        }
    }
    let expected = [("greenroom-game", "create", false), ("greenroom-session", "join", true)];
    let expected = expected.map(|(of, name, is_root)| (of.to_owned(), name.to_owned(), is_root));
    assert_eq!(services, BTreeSet::from(expected));
    let [of] = &metrics.resource_metrics[..] else { panic!("{metrics:?}") };
    let names: Vec<_> =
        of.scope_metrics[0].metrics.iter().map(|of| (&*of.name, &*of.unit)).collect();
    assert!(names.contains(&("process.memory.usage", "By")), "{names:?}");
    assert!(names.contains(&("greenroom.telemetry.span.sent", "{span}")), "{names:?}");
}

#[test]
fn a_request_that_may_be_taken_later_is_made_again() {
    let (listener, config) = listen();
    let export = Export::start(&config, &Registry::default()).unwrap();
    drop(export.tracer(Who::new("game", "g")).root("x", SpanKind::Internal));
    let first = take(&listener, "503 Service Unavailable");
    let second = take(&listener, "200 OK");
    assert_eq!(first, second);
    let collector = thread::spawn(move || take(&listener, "400 Bad Request").0);
    export.stop(Duration::from_secs(20));
    assert_eq!(collector.join().unwrap(), "/v1/metrics");
}

#[test]
fn without_a_collector_spans_are_dropped_and_counted_and_nobody_waits() {
    let (listener, config) = listen();
    drop(listener);
    let registry = Registry::default();
    let export = Export::start(&config, &registry).unwrap();
    let tracer = export.tracer(Who::new("game", "g"));
    let began = Instant::now();
    for _ in 0..QUEUE_MAX * 3 {
        drop(tracer.root("x", SpanKind::Internal));
    }
    assert!(began.elapsed() < ANSWER_MAX, "{:?}", began.elapsed());
    while export.exported().failed.load(Relaxed) == 0 {
        thread::yield_now();
    }
    export.stop(Duration::from_secs(20));
    let text = registry.prometheus();
    let all = QUEUE_MAX * 3;
    for line in [
        format!("greenroom_telemetry_span_ended_total {all}"),
        format!("greenroom_telemetry_span_dropped_total {all}"),
        "greenroom_telemetry_span_sent_total 0".to_owned(),
    ] {
        assert!(text.lines().any(|there| there == line), "{line} is not in\n{text}");
    }
}

#[test]
fn a_collector_that_never_answers_holds_up_a_stop_for_no_longer_than_it_may() {
    let (listener, config) = listen();
    let export = Export::start(&config, &Registry::default()).unwrap();
    drop(export.tracer(Who::new("game", "g")).root("x", SpanKind::Internal));
    let (_silent, _): (TcpStream, _) = listener.accept().unwrap();
    let began = Instant::now();
    export.stop(Duration::from_millis(50));
    assert!(began.elapsed() < ANSWER_MAX, "{:?}", began.elapsed());
}

#[test]
fn an_address_that_is_none_is_refused_by_name() {
    for (endpoint, problem) in [
        ("collector", "no scheme"),
        ("ftp://collector:4318", "no scheme"),
        ("http://me:secret@collector", "a user or a password"),
        ("http://127.0.0.1:4318/v1/traces", "of one signal"),
    ] {
        let config = TelemetryConfig { endpoint: endpoint.into(), ..TelemetryConfig::default() };
        let error = Export::start(&config, &Registry::default()).unwrap_err().to_string();
        assert!(error.contains(problem) && error.contains("telemetry.endpoint"), "{error}");
    }
}
