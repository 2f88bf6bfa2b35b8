use std::time::Duration;

use serde::Deserialize;

/// The `[telemetry]` table of the config file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Where this process shows its metrics to Prometheus: `host:port`; empty if it does not. Who reaches it
    /// needs no token.
    pub listen: String,
    /// The collector that spans and metrics are sent to by OTLP over HTTP, such as `http://127.0.0.1:4318`; empty for
    /// none. Then nothing is traced.
    pub endpoint: String,
    /// The share of what clients send that is traced, 0.0 to 1.0, where the client has not sampled it already.
    pub sample: f64,
    /// What the system is called there: the namespace of its services, and the beginning of their names.
    pub service: String,
    /// How often metrics are sent.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            listen: String::new(),
            endpoint: String::new(),
            sample: 0.0,
            service: "greenroom".to_owned(),
            interval: Duration::from_secs(10),
        }
    }
}
