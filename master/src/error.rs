use std::io;

use greenroom_master_core::LEASE_MS;

/// Why a master could not begin.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// The port is in use, or the address is not this machine's.
    #[error(
        "listening for servers on {address}; if the port is in use, stop what uses it or set `[master] listen`"
    )]
    Listen {
        /// As configured.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// What a lost game server had would be given away while it may still run it.
    #[error(
        "`[master] server_grace` is {configured:?}; a game server runs what has a unique key for {LEASE_MS} ms without \
         a word of the master, and it has to be longer than that"
    )]
    ServerGrace {
        /// As configured.
        configured: std::time::Duration,
    },
    /// The system has no randomness to give.
    #[error("drawing this master's incarnation")]
    Randomness(#[from] getrandom::Error),
}
