use std::{net::SocketAddr, time::Duration};

use ecow::EcoString;
use greenroom_logs::Logs;
use greenroom_protocol::ServerName;
use greenroom_session_core::ClientLimits;
use serde::Deserialize;

use crate::{auth::AuthConfig, tls::TlsConfig};

/// Which limits hold for clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitsProfile {
    /// For strangers.
    #[default]
    Default,
    /// For benchmarks and load tests: the rates of a connection are lifted.
    Load,
}

impl LimitsProfile {
    /// The limits themselves.
    pub fn limits(self) -> ClientLimits {
        match self {
            Self::Default => ClientLimits::default(),
            Self::Load => ClientLimits::LOAD,
        }
    }
}

impl std::str::FromStr for LimitsProfile {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Self::Default),
            "load" => Ok(Self::Load),
            other => Err(format!("there are the limits `default` and `load`, not {other:?}")),
        }
    }
}

/// The `[session]` table of the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionConfig {
    /// Its name in the cluster. Default: `session-` and the number of the first port.
    pub name: Option<ServerName>,
    /// The addresses of all masters, `host:port`: this server keeps a link to each.
    pub masters: Vec<String>,
    /// Where TCP clients connect; port 0 for any.
    pub tcp: Option<SocketAddr>,
    /// Where WebSocket clients connect; port 0 for any.
    pub ws: Option<SocketAddr>,
    /// URLs that clients are given, where they differ from what it listens on (behind a translation of addresses).
    pub public_urls: Vec<EcoString>,
    /// A certificate: public ports then speak TLS and nothing else.
    pub tls: Option<TlsConfig>,
    /// Origins of pages that may open a WebSocket here (`https://game.example`, or `*` for all). Pages from the
    /// machine itself always may; programs that send no origin may.
    pub origins: Vec<String>,
    /// Names by which browsers may call this server, besides addresses, `localhost` and those of `public_urls`; `*` for
    /// all. Without any, a WebSocket port on loopback answers to no other name, and one elsewhere to all.
    pub hosts: Vec<String>,
    /// Whether the pages that the program has for browsers are served where WebSocket clients connect. Default: while
    /// all public ports are on loopback.
    pub pages: Option<bool>,
    /// Connections at most. Default: what the limit on open files leaves, 64 files kept for links.
    pub connections_max: Option<u32>,
    /// How often each side of a connection says that it is there, e.g. "30s". Silence of three times that ends it.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// How often each client is pinged to measure its round trip, e.g. "15s"; the log has the percentiles of each
    /// connection.
    #[serde(with = "humantime_serde")]
    pub round_trip_every: Duration,
    /// Free words about this server, such as its region: its events about connections have them.
    pub labels: Vec<EcoString>,
    /// `default` or `load`.
    pub limits: LimitsProfile,
    /// How long a stopping server waits for its clients to go elsewhere, e.g. "10s".
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// Who may check in.
    pub auth: AuthConfig,
    /// Where its events go. From the process.
    #[serde(skip)]
    pub logs: Logs,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            name: None,
            masters: vec!["127.0.0.1:4100".into()],
            tcp: Some(SocketAddr::from(([127, 0, 0, 1], 4000))),
            ws: Some(SocketAddr::from(([127, 0, 0, 1], 4001))),
            public_urls: Vec::new(),
            tls: None,
            origins: Vec::new(),
            hosts: Vec::new(),
            pages: None,
            connections_max: None,
            heartbeat: Duration::from_secs(30),
            round_trip_every: Duration::from_secs(15),
            labels: Vec::new(),
            limits: LimitsProfile::Default,
            drain_timeout: Duration::from_secs(10),
            auth: AuthConfig::default(),
            logs: Logs::default(),
        }
    }
}
