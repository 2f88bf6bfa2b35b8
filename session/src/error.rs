use std::{io, net::SocketAddr};

use crate::{auth::AuthError, tls::TlsError};

/// Why a session server does not start.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A port is in use, or not ours to use.
    #[error("listening on {address} ({setting}): is the port in use? choose another, or 0 for any")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Which setting says so.
        setting: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Clients would be pinged without end, or never.
    #[error("session.heartbeat is {0:?}; it is 100 ms to 1 h")]
    Heartbeat(std::time::Duration),
    /// Clients would be measured without end, or never.
    #[error("session.round_trip_every is {0:?}; it is 100 ms to 1 h")]
    RoundTrips(std::time::Duration),
    /// Nobody could connect.
    #[error("a session server needs `tcp`, `ws` or an acceptor of its own to listen on")]
    NoListener,
    /// Credentials can't be checked as configured.
    #[error("setting up authentication")]
    Auth(#[from] AuthError),
    /// The certificate can't be used.
    #[error("setting up TLS")]
    Tls(#[from] TlsError),
}
