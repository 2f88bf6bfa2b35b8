use std::io;

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
    /// The system has no randomness to give.
    #[error("drawing this master's incarnation")]
    Randomness(#[from] getrandom::Error),
}
