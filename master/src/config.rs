use std::time::Duration;

use ecow::EcoString;
use greenroom_master_core::Settings;
use greenroom_protocol::ServerName;
use serde::{Deserialize, Serialize};

/// The `[master]` table of the config file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MasterConfig {
    /// Its name, one of its own for each server of the cluster.
    pub name: ServerName,
    /// The cluster's name: servers of another cluster are refused. From the `[cluster]` table.
    #[serde(skip)]
    pub cluster: EcoString,
    /// Where session servers and game servers dial it: `host:port`. Not for clients.
    pub listen: String,
    /// How long a session without a connection keeps its seats.
    #[serde(with = "humantime_serde")]
    pub session_grace: Duration,
    /// How long a reserved seat waits to be taken.
    #[serde(with = "humantime_serde")]
    pub reservation: Duration,
    /// How long a server without a link keeps what it has.
    #[serde(with = "humantime_serde")]
    pub server_grace: Duration,
    /// Sessions in all; past it a check-in is refused as busy.
    pub sessions_max: usize,
    /// Seats that one session may hold.
    pub seats_max: usize,
    /// Newest commands that the log keeps in memory.
    pub log_entries_max: usize,
}

impl Default for MasterConfig {
    fn default() -> Self {
        let Settings {
            session_grace_ms,
            reservation_ms,
            server_grace_ms,
            sessions_max,
            seats_max,
            ..
        } = Settings::default();
        Self {
            name: ServerName::new("master-1").expect("it is short and printable"),
            cluster: "greenroom".into(),
            listen: "127.0.0.1:4100".into(),
            session_grace: Duration::from_millis(session_grace_ms),
            reservation: Duration::from_millis(reservation_ms),
            server_grace: Duration::from_millis(server_grace_ms),
            sessions_max,
            seats_max,
            log_entries_max: 10_000,
        }
    }
}

impl MasterConfig {
    pub(crate) fn settings(&self) -> Settings {
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Settings {
            session_grace_ms: ms(self.session_grace),
            reservation_ms: ms(self.reservation),
            server_grace_ms: ms(self.server_grace),
            sessions_max: self.sessions_max,
            seats_max: self.seats_max,
            ..Settings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_the_default_and_a_misspelt_key_is_named() {
        assert_eq!(toml::from_str::<MasterConfig>("").unwrap(), MasterConfig::default());
        let misspelt = toml::from_str::<MasterConfig>("session_grase = '1s'").unwrap_err();
        assert!(misspelt.to_string().contains("session_grase"), "{misspelt}");
        let config = toml::from_str::<MasterConfig>("session_grace = '90s'").unwrap();
        assert_eq!(config.settings().session_grace_ms, 90_000);
    }
}
