use std::path::PathBuf;
use std::time::Duration;

use ecow::EcoString;
use greenroom_link::Death;
use greenroom_logs::Logs;
use greenroom_master_core::replica as pair;
use greenroom_master_core::{LEASE_MS, Settings};
use greenroom_protocol::ServerName;
use greenroom_protocol::wire::master_witness::Side;
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
    /// The folder for its log and checkpoints, one of its own for each master. From `[cluster] data` and its name.
    #[serde(skip)]
    pub folder: PathBuf,
    /// Where its events go. From the process.
    #[serde(skip)]
    pub logs: Logs,
    /// Where session servers, game servers and the other master dial it: `host:port`. Not for clients.
    pub listen: String,
    /// Which of the two masters it is: one is `a` and one is `b`, for ever.
    pub side: Side,
    /// Where the other master listens: `host:port`. Empty for a master that is alone.
    pub peer: String,
    /// What keeps the record of which master decides: `host:port` of a `greenroom witness`, `couchbase://HOST,HOST`
    /// (which whoever reads the settings opens, for [`Master::bind_with`](crate::Master)), or `sqlite:FILE` where
    /// both masters are on one machine. Empty for a master that is alone: it has one in its folder.
    pub witness: String,
    /// Silence of the active after which the standby takes over.
    #[serde(with = "humantime_serde")]
    pub takeover_after: Duration,
    /// Silence of the standby after which the active goes on without it. Shorter than `takeover_after`, so that who
    /// decides stays.
    #[serde(with = "humantime_serde")]
    pub solo_after: Duration,
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
    /// What proves that a game server is gone, so that what it ran goes on elsewhere at once and not after
    /// `server_grace`: `machine`, that its port is refused on this machine; `network`, that it is refused on any,
    /// where nothing in between rejects with a reset; `never`, nothing.
    pub proof_of_death: Death,
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
    /// Newest commands that the log keeps in memory: a standby that was away for no longer needs no snapshot.
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
        let pair::Settings { takeover_after_ms, solo_after_ms, log_max, .. } =
            pair::Settings::default();
        Self {
            name: ServerName::new("master-1").expect("it is short and printable"),
            cluster: "greenroom".into(),
            folder: PathBuf::new(),
            logs: Logs::default(),
            listen: "127.0.0.1:4100".into(),
            side: Side::A,
            peer: String::new(),
            witness: String::new(),
            takeover_after: Duration::from_millis(takeover_after_ms),
            solo_after: Duration::from_millis(solo_after_ms),
            session_grace: Duration::from_millis(session_grace_ms),
            reservation: Duration::from_millis(reservation_ms),
            server_grace: Duration::from_millis(server_grace_ms),
            proof_of_death: Death::default(),
            rejoin_grace: Duration::from_millis(rejoin_grace_ms),
            sessions_max,
            seats_max,
            board_members_max,
            log_entries_max: log_max,
        }
    }
}

impl MasterConfig {
    /// Whether what is configured can be kept.
    ///
    /// # Errors
    /// [`MasterError::ServerGrace`], [`MasterError::NoWitness`], [`MasterError::Silence`].
    pub(crate) fn check(&self) -> Result<(), MasterError> {
        if self.settings().server_grace_ms <= LEASE_MS {
            return Err(MasterError::ServerGrace { configured: self.server_grace });
        }
        if !self.peer.is_empty() && self.witness.is_empty() {
            return Err(MasterError::NoWitness);
        }
        // A beacon that comes late is no silence.
        let shortest = Duration::from_millis(3 * pair::Settings::default().beacon_ms);
        if self.solo_after < shortest || self.takeover_after <= self.solo_after {
            let (solo, takeover) = (self.solo_after, self.takeover_after);
            return Err(MasterError::Silence { solo, takeover, shortest });
        }
        Ok(())
    }

    /// How the pair of masters works. `founding_era` is for the first record of all.
    pub(crate) fn pair(&self, founding_era: u32) -> pair::Settings {
        pair::Settings {
            founding_era,
            takeover_after_ms: ms(self.takeover_after),
            solo_after_ms: ms(self.solo_after),
            log_max: self.log_entries_max,
            ..pair::Settings::default()
        }
    }

    /// Where the witness is.
    pub(crate) fn witness(&self) -> WitnessAt {
        match self.witness.strip_prefix("sqlite:") {
            Some(file) => WitnessAt::File(file.into()),
            None if self.witness.is_empty() => WitnessAt::File(self.folder.join("witness.sqlite")),
            None => WitnessAt::Remote(self.witness.clone()),
        }
    }

    pub(crate) fn settings(&self) -> Settings {
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

/// What keeps the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WitnessAt {
    /// A file of this machine.
    File(PathBuf),
    /// A process that is linked to.
    Remote(String),
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
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
        let config = toml::from_str::<MasterConfig>("proof_of_death = 'network'").unwrap();
        assert_eq!(config.proof_of_death, Death::Network);
        assert_eq!(MasterConfig::default().proof_of_death, Death::Machine);
    }

    #[test]
    fn a_key_is_never_given_away_while_a_lost_game_server_may_still_run_it() {
        assert!(MasterConfig::default().check().is_ok());
        let config = toml::from_str::<MasterConfig>("server_grace = '10s'").unwrap();
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("server_grace") && error.contains("10s"), "{error}");
    }
    #[test]
    fn two_masters_without_a_witness_are_refused() {
        let config = toml::from_str::<MasterConfig>("peer = '127.0.0.1:4101'").unwrap();
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("witness") && error.contains("greenroom witness"), "{error}");
        let paired = MasterConfig { witness: "127.0.0.1:4200".into(), ..config };
        assert!(paired.check().is_ok());
        assert_eq!(paired.witness(), WitnessAt::Remote("127.0.0.1:4200".into()));
        let alone = MasterConfig { folder: "data/master-1".into(), ..MasterConfig::default() };
        assert_eq!(alone.witness(), WitnessAt::File("data/master-1/witness.sqlite".into()));
    }

    #[test]
    fn the_active_is_more_patient_with_nobody_than_the_standby_with_it() {
        let config = toml::from_str::<MasterConfig>("solo_after = '600ms'").unwrap();
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("solo_after") && error.contains("takeover_after"), "{error}");
    }
}
