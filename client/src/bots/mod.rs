//! Many clients that play by a script, and a report of what they saw.
//!
//! Bots are the shipped [`crate::Client`] and nothing else. Their schedule is open: each operation has a planned time
//! that does not wait for the ones before, and its latency counts from there, so that a server that stalls is not
//! spared the operations that it kept from being sent (coordinated omission). Every call carries a number that its
//! reply must match, and every reliable message is counted, also across reconnects.

mod play;
mod report;
mod script;

use std::{path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use ecow::EcoString;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{ClientError, address::Address};

pub use report::{OperationReport, Report};
pub use script::{Arena, CallAnswer, Duel, Echo, GameResult, Script};

/// Files that the process needs beside its bots' sockets.
const FILES_RESERVED: u64 = 64;

/// What bots play.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Game {
    /// The real-time demo game: moves, shots, and numbered calls.
    #[default]
    Arena,
    /// The turn-based demo game: duels to their end, one after the other.
    Duel,
    /// The smallest kind: numbered calls.
    Echo,
}

impl Game {
    /// A new script of this game.
    pub fn script(self) -> Box<dyn Script> {
        match self {
            Self::Arena => Box::new(Arena),
            Self::Duel => Box::new(Duel::default()),
            Self::Echo => Box::new(Echo),
        }
    }
    /// Calls of one bot in a second that suit it; of a duel, its cards, as far as it is its turn.
    pub const fn calls_per_s(self) -> f64 {
        match self {
            Self::Duel => 10.0,
            Self::Arena | Self::Echo => 1.0,
        }
    }
}

/// Over which of the given addresses bots connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// All.
    #[default]
    Any,
    /// `tcp://` and `tls://`.
    Tcp,
    /// `ws://` and `wss://`.
    WebSocket,
}

/// A text that names no game or transport.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is none of {names}")]
pub struct NotAName {
    text: EcoString,
    names: &'static str,
}

impl FromStr for Game {
    type Err = NotAName;
    fn from_str(text: &str) -> Result<Self, NotAName> {
        match text {
            "arena" => Ok(Self::Arena),
            "duel" => Ok(Self::Duel),
            "echo" => Ok(Self::Echo),
            _ => Err(NotAName { text: text.into(), names: "arena, duel, echo" }),
        }
    }
}

impl FromStr for Transport {
    type Err = NotAName;
    fn from_str(text: &str) -> Result<Self, NotAName> {
        match text {
            "any" => Ok(Self::Any),
            "tcp" => Ok(Self::Tcp),
            "ws" => Ok(Self::WebSocket),
            _ => Err(NotAName { text: text.into(), names: "any, tcp, ws" }),
        }
    }
}

/// What bots are to do.
#[derive(Clone, Debug)]
pub struct BotsConfig {
    /// How many.
    pub users: u32,
    /// For how long they play, after the last one has started.
    pub duration: Duration,
    /// Over which span they start, evenly.
    pub ramp: Duration,
    /// What they play.
    pub game: Game,
    /// The well-known session servers.
    pub servers: Vec<String>,
    /// Over which of them.
    pub transport: Transport,
    /// A PEM file with the only certificates to trust on `tls://` and `wss://`.
    pub trust_file: Option<PathBuf>,
    /// The same seed plans the same moves at the same times.
    pub seed: u64,
    /// Messages of one bot in a second, if its script sends any.
    pub messages_per_s: f64,
    /// Calls of one bot in a second.
    pub calls_per_s: f64,
}

impl Default for BotsConfig {
    fn default() -> Self {
        Self {
            users: 100,
            duration: Duration::from_secs(60),
            ramp: Duration::from_secs(2),
            game: Game::Arena,
            servers: vec!["tcp://127.0.0.1:4000".into()],
            transport: Transport::Any,
            trust_file: None,
            seed: 1,
            messages_per_s: 10.0,
            calls_per_s: 1.0,
        }
    }
}

/// Why bots did not even start.
#[derive(Debug, thiserror::Error)]
pub enum BotsError {
    /// The process may not open as many sockets.
    #[error(
        "{users} bots need {needed} open files, and this process may have {limit}: \
         run `ulimit -n {needed}` first, or start fewer"
    )]
    FileLimit {
        /// Bots.
        users: u32,
        /// Files that they and the process need.
        needed: u64,
        /// The soft limit of the process.
        limit: u64,
    },
    /// No address is left for the transport.
    #[error("none of the addresses {servers:?} is for the transport that was asked for")]
    NoServer {
        /// As given.
        servers: Vec<String>,
    },
    /// A rate is no number of times in a second.
    #[error("{rate} is no number of operations a second: it is from 0 to 1,000")]
    Rate {
        /// As given.
        rate: f64,
    },
    /// An address is none.
    #[error(transparent)]
    Address(ClientError),
}

/// Plays until the time is over or `stop` is cancelled, and reports.
///
/// # Errors
/// [`BotsError`] before the first bot starts. What goes wrong later is in the report.
pub async fn run(config: BotsConfig, stop: CancellationToken) -> Result<Report, BotsError> {
    let game = config.game;
    run_scripts(config, |_| game.script(), stop).await
}

/// As [`run`], with scripts of the caller's own: one for each bot, by its number from 0.
///
/// # Errors
/// As [`run`].
pub async fn run_scripts(
    config: BotsConfig,
    script: impl Fn(u32) -> Box<dyn Script>,
    stop: CancellationToken,
) -> Result<Report, BotsError> {
    let servers = servers(&config)?;
    let message_every = period(config.messages_per_s)?;
    let call_every = period(config.calls_per_s)?;
    check_file_limit(
        config.users,
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
    )?;
    let began = Instant::now();
    let plan = Arc::new(play::Plan {
        servers,
        trust_file: config.trust_file,
        message_every,
        call_every,
        ends: began + config.ramp + config.duration,
        stop,
        tally: std::sync::Mutex::default(),
    });
    let tasks = TaskTracker::new();
    for index in 0..config.users {
        let starts = began + config.ramp * index / config.users;
        tasks.spawn(play::play(Arc::clone(&plan), script(index), starts, config.seed, index));
    }
    tasks.close();
    tasks.wait().await;
    let tally = std::mem::take(&mut *crate::seat::locked(&plan.tally));
    Ok(tally.report(config.users, began.elapsed()))
}

fn servers(config: &BotsConfig) -> Result<Vec<String>, BotsError> {
    let mut servers = Vec::new();
    for url in &config.servers {
        let scheme = Address::parse(url).map_err(BotsError::Address)?.scheme;
        let asked_for = match config.transport {
            Transport::Any => true,
            Transport::Tcp => !scheme.is_web(),
            Transport::WebSocket => scheme.is_web(),
        };
        if asked_for {
            servers.push(url.clone());
        }
    }
    if servers.is_empty() {
        return Err(BotsError::NoServer { servers: config.servers.clone() });
    }
    Ok(servers)
}

/// The span between two operations; `None` for none at all.
fn period(rate: f64) -> Result<Option<Duration>, BotsError> {
    if !(0.0..=1_000.0).contains(&rate) {
        return Err(BotsError::Rate { rate });
    }
    Ok((rate > 0.0).then(|| Duration::from_secs_f64((1.0 / rate).min(86_400.0))))
}

fn check_file_limit(users: u32, limit: Option<u64>) -> Result<(), BotsError> {
    let needed = u64::from(users) + FILES_RESERVED;
    match limit {
        Some(limit) if limit < needed => Err(BotsError::FileLimit { users, needed, limit }),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_bots_than_files_is_an_error_that_says_what_to_do() {
        assert!(check_file_limit(900, Some(1_024)).is_ok());
        assert!(check_file_limit(1_000_000, None).is_ok());
        let error = check_file_limit(2_000, Some(1_024)).unwrap_err().to_string();
        assert!(error.contains("this process may have 1024"), "{error}");
        assert!(error.contains("`ulimit -n 2064`"), "{error}");
    }

    #[test]
    fn a_transport_without_an_address_is_refused() {
        let config = BotsConfig { transport: Transport::WebSocket, ..BotsConfig::default() };
        assert!(matches!(servers(&config), Err(BotsError::NoServer { .. })));
        assert!("quic".parse::<Transport>().unwrap_err().to_string().contains("any, tcp, ws"));
    }

    #[test]
    fn a_rate_is_a_number_of_times_a_second() {
        assert_eq!(period(10.0).unwrap(), Some(Duration::from_millis(100)));
        assert_eq!(period(0.0).unwrap(), None);
        assert!(period(f64::NAN).is_err() && period(-1.0).is_err());
    }
}
