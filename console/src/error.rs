use std::io;

/// Why the admin port is not there.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The port is in use, or the address is not this machine's.
    #[error(
        "listening for operators on {address}; if the port is in use, stop what uses it or set `[console] listen`"
    )]
    Listen {
        /// As configured.
        address: String,
        /// What the system said.
        source: io::Error,
    },
}
