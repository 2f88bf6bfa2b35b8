use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span, Status, span, status,
};

use super::*;
use crate::queue::SPANS_MAX;
use crate::{Export, SpanKind};

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

/// What is written by hand is what generated code writes.
#[test]
fn spans_are_written_as_their_description_says() {
    let (queue, service) = (Arc::new(Queue::default()), "greenroom");
    let long = "ä".repeat(20_000);
    let who = Who::new("game", "game-1");
    let tracer = Tracer::new(who.clone(), 1.0, Arc::clone(&queue), Arc::default());
    let root = tracer.root("join", SpanKind::Client).unwrap();
    let mut child = root.parent().child(String::new(), SpanKind::Internal);
    child.set("greenroom.kind", "arena");
    child.set("greenroom.lsn", 300_u64);
    child.set("greenroom.seat", 0_u64);
    child.set("greenroom.key", long.clone());
    child.fail(&long);
    let mut refused = root.parent().child("refused", SpanKind::Consumer);
    refused.fail("");
    let contexts = [child.context(), refused.context(), root.context()];
    drop(child);
    drop(refused);
    drop(root);
    let written = spans(service, queue.take());
    let read = ExportTraceServiceRequest::decode(&written[..]).unwrap();
    assert_eq!(read.encode_to_vec(), written, "the same bytes, in the same order");
    // Times are its own.
    let mut times = read.resource_spans[0].scope_spans[0].spans.iter();
    let mut span = |context: usize, name: &str, kind: span::SpanKind| {
        let of = times.next().unwrap();
        assert!(of.start_time_unix_nano > 0 && of.end_time_unix_nano >= of.start_time_unix_nano);
        Span {
            trace_id: contexts[context].trace.to_vec(),
            span_id: contexts[context].span.to_vec(),
            parent_span_id: if context == 2 { Vec::new() } else { contexts[2].span.to_vec() },
            flags: 1,
            name: name.to_owned(),
            kind: kind.into(),
            start_time_unix_nano: of.start_time_unix_nano,
            end_time_unix_nano: of.end_time_unix_nano,
            ..Span::default()
        }
    };
    let number = |key: &str, value| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(any_value::Value::IntValue(value)) }),
        ..KeyValue::default()
    };
    let failed = |message: &str| {
        Some(Status { message: message.to_owned(), code: status::StatusCode::Error.into() })
    };
    let spans = vec![
        Span {
            attributes: vec![
                text("greenroom.kind", "arena"),
                number("greenroom.lsn", 300),
                number("greenroom.seat", 0),
                text("greenroom.key", long.as_str()),
            ],
            status: failed(&long),
            ..span(0, "", span::SpanKind::Internal)
        },
        Span { status: failed(""), ..span(1, "refused", span::SpanKind::Consumer) },
        span(2, "join", span::SpanKind::Client),
    ];
    let scope_spans = ScopeSpans { scope: Some(scope()), spans, ..ScopeSpans::default() };
    let resource_spans = ResourceSpans {
        resource: Some(resource(service, &who)),
        scope_spans: vec![scope_spans],
        ..ResourceSpans::default()
    };
    assert_eq!(read, ExportTraceServiceRequest { resource_spans: vec![resource_spans] });
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
    for _ in 0..SPANS_MAX * 3 {
        drop(tracer.root("x", SpanKind::Internal));
    }
    assert!(began.elapsed() < ANSWER_MAX, "{:?}", began.elapsed());
    while export.exported().failed.load(Relaxed) == 0 {
        thread::yield_now();
    }
    export.stop(Duration::from_secs(20));
    let text = registry.prometheus();
    let all = SPANS_MAX * 3;
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
