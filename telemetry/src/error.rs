/// Why nothing can be sent to a collector.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The address of the collector is none.
    #[error(
        "telemetry.endpoint = {endpoint:?}: {problem}; it has to be http://HOST:PORT or https://HOST:PORT, without \
         /v1/traces"
    )]
    Endpoint {
        /// As configured.
        endpoint: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The share of what is sampled is none.
    #[error("telemetry.sample = {0}: it has to be from 0.0, for nothing, to 1.0, for everything")]
    Sample(f64),
    /// Metrics are to be sent too often.
    #[error("telemetry.interval = {0:?}: it has to be 1s or more")]
    Interval(std::time::Duration),
    /// This build can't.
    #[error(
        "telemetry.endpoint is set, and this program was built without OTLP: build it with `--features otlp`, or leave \
         the endpoint out"
    )]
    NotBuilt,
    /// The thread that sends could not be started.
    #[error("starting the thread that sends to the collector")]
    Start(#[source] std::io::Error),
}
