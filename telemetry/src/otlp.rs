//! OTLP over HTTP, in protobuf: a thread with a client of its own, which sends batches of spans, and metrics now and
//! then. A collector that is away costs the game nothing: its spans are dropped and counted, with one warning.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use tokio::sync::oneshot;
use tokio::time::{self, MissedTickBehavior};

use crate::config::TelemetryConfig;
use crate::encoding;
use crate::error::TelemetryError;
use crate::export::Exported;
use crate::histogram::Histogram;
use crate::instruments::{Description, Kind, Value};
use crate::queue::{Queue, Waiting};
use crate::registry::{Registry, Who};
use crate::trace::Tracer;

/// How long a span waits for others at most: a request costs as much as some hundred spans.
const GATHER: Duration = Duration::from_secs(2);
/// How long a collector may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Pauses before a request is made again, while the collector was well until now.
const AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];
/// Of an answer, what is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The thread that sends.
#[derive(Debug)]
pub(crate) struct Sender {
    queue: Arc<Queue>,
    share: f64,
    stop: oneshot::Sender<()>,
    /// Ends when the thread has.
    over: std_mpsc::Receiver<()>,
}

impl Sender {
    pub(crate) fn start(
        config: &TelemetryConfig,
        registry: &Registry,
        exported: &Arc<Exported>,
    ) -> Result<Self, TelemetryError> {
        let collector = Collector::new(&config.endpoint)?;
        let queue = Arc::new(Queue::default());
        let (stop, stopping) = oneshot::channel();
        let (running, over) = std_mpsc::sync_channel(0);
        let worker = Worker {
            collector,
            queue: Arc::clone(&queue),
            registry: registry.clone(),
            exported: Arc::clone(exported),
            service: config.service.clone(),
            began_ns: now_ns(),
            is_away: false,
        };
        let interval = config.interval;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(TelemetryError::Start)?;
        let body = move || {
            runtime.block_on(worker.run(interval, stopping));
            drop(running);
        };
        thread::Builder::new()
            .name("telemetry".into())
            .spawn(body)
            .map_err(TelemetryError::Start)?;
        Ok(Self { queue, share: config.sample, stop, over })
    }

    pub(crate) fn tracer(&self, who: Who, exported: &Arc<Exported>) -> Tracer {
        Tracer::new(who, self.share, Arc::clone(&self.queue), Arc::clone(exported))
    }

    pub(crate) fn stop(self, within: Duration) {
        // If the thread has ended already there is nobody to be told.
        let _ended = self.stop.send(());
        if self.over.recv_timeout(within) == Err(std_mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!(
                ?within,
                "the collector did not take the last spans and metrics in time"
            );
        }
    }
}

/// What the thread has.
struct Worker {
    collector: Collector,
    queue: Arc<Queue>,
    registry: Registry,
    exported: Arc<Exported>,
    service: String,
    /// Since when counters count.
    began_ns: u64,
    /// The last request failed. Only changes are logged: a collector that is away fails every one.
    is_away: bool,
}

impl Worker {
    async fn run(mut self, interval: Duration, mut stopping: oneshot::Receiver<()>) {
        let queue = Arc::clone(&self.queue);
        let mut gather = time::interval(GATHER);
        let mut metrics = time::interval_at(time::Instant::now() + interval, interval);
        for timer in [&mut gather, &mut metrics] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                // The other end is gone, or says so: either way this process stops.
                _ = &mut stopping => break,
                _ = gather.tick() => self.send_spans().await,
                () = queue.filled() => self.send_spans().await,
                _ = metrics.tick() => self.send_metrics().await,
            }
        }
        queue.close();
        self.send_spans().await;
        self.send_metrics().await;
    }

    async fn send_spans(&mut self) {
        let waiting = self.queue.take();
        if waiting.count == 0 {
            return;
        }
        let count = waiting.count as u64;
        let request = spans(&self.service, waiting);
        match self.send("/v1/traces", request).await {
            true => Exported::add(&self.exported.sent, count),
            false => Exported::add(&self.exported.dropped, count),
        }
    }

    async fn send_metrics(&mut self) {
        let request = metrics(&self.service, &self.registry, self.began_ns, now_ns());
        // What does not arrive is said again with the next: they are sums since the start.
        self.send("/v1/metrics", request.encode_to_vec()).await;
    }

    /// Sends a request, and again if that may help. Whether it was taken.
    async fn send(&mut self, path: &'static str, body: Vec<u8>) -> bool {
        let body = Bytes::from(body);
        let mut pauses = AGAIN.iter().take(if self.is_away { 0 } else { AGAIN.len() });
        loop {
            let error = match self.collector.post(path, body.clone()).await {
                Ok(()) => {
                    if std::mem::take(&mut self.is_away) {
                        tracing::info!(collector = %self.collector.base, "the collector takes telemetry again");
                    }
                    return true;
                }
                Err(error) => error,
            };
            Exported::add(&self.exported.failed, 1);
            if let Some(pause) = pauses.next().filter(|_| error.may_pass()) {
                time::sleep(*pause).await;
                continue;
            }
            if !std::mem::replace(&mut self.is_away, true) {
                tracing::warn!(
                    collector = %self.collector.base,
                    %error,
                    "the collector takes no telemetry: spans are dropped and counted until it does"
                );
            }
            return false;
        }
    }
}

/// A collector, and the way to it.
struct Collector {
    base: Uri,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
enum PostError {
    #[error("no answer within 5 s")]
    Timeout,
    #[error("it can't be reached: {}", sources(.0))]
    Unreachable(#[source] hyper_util::client::legacy::Error),
    #[error("it answered with status {0}: {1}")]
    Status(StatusCode, String),
}

impl PostError {
    /// Whether the same request may be taken a moment later (OTLP's specification, "Failures").
    const fn may_pass(&self) -> bool {
        match self {
            Self::Timeout | Self::Unreachable(_) => true,
            Self::Status(status, _) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
        }
    }
}

/// An error with all that it came from.
fn sources(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Collector {
    fn new(endpoint: &str) -> Result<Self, TelemetryError> {
        let wrong = |problem: &str| TelemetryError::Endpoint {
            endpoint: endpoint.to_owned(),
            problem: problem.to_owned(),
        };
        let base: Uri = endpoint
            .trim_end_matches('/')
            .parse()
            .map_err(|error| wrong(&format!("it is no URL ({error})")))?;
        if !matches!(base.scheme_str(), Some("http" | "https")) || base.host().is_none() {
            return Err(wrong("it has no scheme or no host"));
        }
        if base.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(wrong("it holds a user or a password"));
        }
        if base.path().ends_with("/v1/traces") || base.path().ends_with("/v1/metrics") {
            return Err(wrong("it is the address of one signal"));
        }
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_root_certificates(roots())
        .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(1)
            .build(connector);
        Ok(Self { base, client })
    }

    async fn post(&self, path: &'static str, body: Bytes) -> Result<(), PostError> {
        let place = format!("{}{path}", self.base.to_string().trim_end_matches('/'));
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = place.parse().expect("a URL with a path behind it");
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let agent = concat!("greenroom/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        let answered = async {
            let response = self.client.request(request).await.map_err(PostError::Unreachable)?;
            let status = response.status();
            let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            if status.is_success() {
                return Ok(());
            }
            let text = answer.map(|answer| answer.to_bytes()).unwrap_or_default();
            let text: String = String::from_utf8_lossy(&text)
                .chars()
                .filter(|c| !c.is_control())
                .take(200)
                .collect();
            Err(PostError::Status(status, text))
        };
        time::timeout(ANSWER_MAX, answered).await.unwrap_or(Err(PostError::Timeout))
    }
}

/// Certificates that the system trusts; one that can't be read is left out, and a collector that needs it is refused.
fn roots() -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.into())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn resource(service: &str, who: &Who) -> Resource {
    let mut attributes = vec![
        text("service.name", format!("{service}-{}", who.role)),
        text("service.namespace", service),
        text("service.version", env!("CARGO_PKG_VERSION")),
    ];
    if !who.name.is_empty() {
        attributes.push(text("service.instance.id", who.name.as_str()));
    }
    Resource { attributes, ..Resource::default() }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "greenroom".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// An `ExportTraceServiceRequest`. Spans wait as they are sent: here they only get the name of who had them.
fn spans(service: &str, waiting: Waiting) -> Vec<u8> {
    let scope = scope().encode_to_vec();
    let mut request = Vec::new();
    for (who, spans) in waiting.spans {
        encoding::within(&mut request, 1, |resource_spans| {
            encoding::bytes(resource_spans, 1, &resource(service, &who).encode_to_vec());
            encoding::within(resource_spans, 2, |scope_spans| {
                encoding::bytes(scope_spans, 1, &scope);
                scope_spans.extend_from_slice(&spans);
            });
        });
    }
    request
}

fn metrics(
    service: &str,
    registry: &Registry,
    began_ns: u64,
    now_ns: u64,
) -> ExportMetricsServiceRequest {
    let mut by_who: BTreeMap<Who, Vec<Metric>> = BTreeMap::new();
    for read in registry.read() {
        for (who, value) in read.values {
            let metric = metric_of(read.description, value, began_ns, now_ns);
            by_who.entry(who).or_default().push(metric);
        }
    }
    let resource_metrics = by_who.into_iter().map(|(who, metrics)| ResourceMetrics {
        resource: Some(resource(service, &who)),
        scope_metrics: vec![ScopeMetrics {
            scope: Some(scope()),
            metrics,
            schema_url: String::new(),
        }],
        schema_url: String::new(),
    });
    ExportMetricsServiceRequest { resource_metrics: resource_metrics.collect() }
}

fn metric_of(description: &Description, value: Value, began_ns: u64, now_ns: u64) -> Metric {
    let temporality = AggregationTemporality::Cumulative.into();
    let point = |value| NumberDataPoint {
        start_time_unix_nano: began_ns,
        time_unix_nano: now_ns,
        value: Some(value),
        ..NumberDataPoint::default()
    };
    let number = match &value {
        Value::Whole(count) => {
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            Some(number_data_point::Value::AsInt(count))
        }
        Value::Micros(us) => Some(number_data_point::Value::AsDouble(seconds(*us))),
        Value::Distribution(_) => None,
    };
    let data = match (description.kind, number, value) {
        (Kind::Counter, Some(number), _) => metric::Data::Sum(Sum {
            data_points: vec![point(number)],
            aggregation_temporality: temporality,
            is_monotonic: true,
        }),
        (_, Some(number), _) => metric::Data::Gauge(Gauge { data_points: vec![point(number)] }),
        (_, None, Value::Distribution(spans)) => {
            let point = HistogramDataPoint {
                start_time_unix_nano: began_ns,
                time_unix_nano: now_ns,
                count: spans.count(),
                sum: Some(seconds(spans.sum_us)),
                explicit_bounds: Histogram::bounds_us().map(seconds).collect(),
                bucket_counts: spans.buckets,
                ..HistogramDataPoint::default()
            };
            metric::Data::Histogram(opentelemetry_proto::tonic::metrics::v1::Histogram {
                data_points: vec![point],
                aggregation_temporality: temporality,
            })
        }
        (_, None, Value::Whole(_) | Value::Micros(_)) => unreachable!("these are numbers"),
    };
    Metric {
        name: description.name.to_owned(),
        description: description.help.to_owned(),
        unit: description.unit.ucum(),
        data: Some(data),
        ..Metric::default()
    }
}

fn seconds(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64()
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
