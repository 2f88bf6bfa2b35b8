use std::time::Duration;

use ecow::EcoString;
use greenroom_master_core::{LEASE_MS, Settings};
use greenroom_protocol::ServerName;
use serde::{Deserialize, Serialize};

use crate::error::MasterError;

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
    /// How long a server without a link keeps what it has. Longer than the 10 s for which a game server runs what has a
    /// unique key without a word of the master.
    #[serde(with = "humantime_serde")]
    pub server_grace: Duration,
    /// How long after its start the master waits for game servers to say what they run, before it makes an instance
    /// for a unique key that nobody has said, or says that an instance is not there.
    #[serde(with = "humantime_serde")]
    pub rejoin_grace: Duration,
    /// Sessions in all; past it a check-in is refused as busy.
    pub sessions_max: usize,
    /// Seats that one session may hold.
    pub seats_max: usize,
    /// Users on one rank board, at least 1; past it the last one leaves for a better one.
    pub board_members_max: usize,
    /// Newest commands that the log keeps in memory.
    pub log_entries_max: usize,
}

impl Default for MasterConfig {
    fn default() -> Self {
        let Settings {
            session_grace_ms,
            reservation_ms,
            server_grace_ms,
            rejoin_grace_ms,
            board_members_max,
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
            rejoin_grace: Duration::from_millis(rejoin_grace_ms),
            sessions_max,
            seats_max,
            board_members_max,
            log_entries_max: 10_000,
        }
    }
}

impl MasterConfig {
    /// Whether what is configured can be kept.
    ///
    /// # Errors
    /// [`MasterError::ServerGrace`].
    pub(crate) fn check(&self) -> Result<(), MasterError> {
        if self.settings().server_grace_ms <= LEASE_MS {
            return Err(MasterError::ServerGrace { configured: self.server_grace });
        }
        Ok(())
    }

    pub(crate) fn settings(&self) -> Settings {
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Settings {
            session_grace_ms: ms(self.session_grace),
            reservation_ms: ms(self.reservation),
            server_grace_ms: ms(self.server_grace),
            rejoin_grace_ms: ms(self.rejoin_grace),
            sessions_max: self.sessions_max,
            seats_max: self.seats_max,
            board_members_max: self.board_members_max,
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

    #[test]
    fn a_key_is_never_given_away_while_a_lost_game_server_may_still_run_it() {
        assert!(MasterConfig::default().check().is_ok());
        let config = toml::from_str::<MasterConfig>("server_grace = '10s'").unwrap();
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("server_grace") && error.contains("10s"), "{error}");
    }
}
