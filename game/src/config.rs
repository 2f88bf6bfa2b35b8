use std::net::SocketAddr;
use std::time::Duration;

use ecow::EcoString;
use greenroom_logs::Logs;
use greenroom_protocol::ServerName;
use serde::Deserialize;

/// The `[game]` table of the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GameConfig {
    /// Its name in the cluster. Default: `game-` and the number of its port.
    pub name: Option<ServerName>,
    /// The addresses of all masters, `host:port`: this server keeps a link to each.
    pub masters: Vec<String>,
    /// Where session servers connect; port 0 for any. Not a public port: links prove the cluster's key.
    pub listen: SocketAddr,
    /// What session servers are told to dial, where it differs from `listen`: `host:port`.
    pub public_address: Option<EcoString>,
    /// How much this server takes: the sum of the weights of its instances, each 1 unless its kind says otherwise.
    /// At least 1.
    pub capacity: u32,
    /// Free words about this server, for placement.
    pub labels: Vec<EcoString>,
    /// Steps of instances begin at multiples of this, e.g. "5ms", so that their frames leave together. Longer saves
    /// processor time and delays a step by up to as much; at most 20 ms.
    #[serde(with = "humantime_serde")]
    pub tick_grid: Duration,
    /// How often the master is told the load, e.g. "1s"; at least once a second and four times in the lease, since the
    /// load renews it.
    #[serde(with = "humantime_serde")]
    pub report_interval: Duration,
    /// How long instances with a unique key run on after this server sent the last load that the active master
    /// confirmed, e.g. "10s"; then they stand still until it is back, since it may have them run elsewhere. 2 to 10
    /// seconds: a master gives a key away 15 seconds after it last confirmed a load.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long a stopping server waits for its instances to end, e.g. "30s".
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// Where its events go. From the process.
    #[serde(skip)]
    pub logs: Logs,
}

impl Default for GameConfig {
    fn default() -> Self {
        Self {
            name: None,
            masters: vec!["127.0.0.1:4100".into()],
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            public_address: None,
            capacity: 10_000,
            labels: Vec::new(),
            tick_grid: Duration::from_millis(5),
            report_interval: Duration::from_secs(1),
            lease: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
            logs: Logs::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_setting_is_refused_by_its_name() {
        let error = toml::from_str::<GameConfig>("tick_gird = \"5ms\"").unwrap_err().to_string();
        assert!(error.contains("tick_gird") && error.contains("tick_grid"), "{error}");
        let config: GameConfig =
            toml::from_str("tick_grid = \"2ms\"\nlabels = [\"eu\"]\nname = \"g1\"").unwrap();
        assert_eq!(config.tick_grid, Duration::from_millis(2));
    }
}
