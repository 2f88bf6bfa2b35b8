use serde::Deserialize;

/// The `[telemetry]` table of the config file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Where this process shows its metrics to Prometheus: `host:port`; empty if it does not. Who reaches it
    /// needs no token.
    pub listen: String,
}
