use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Why a game server does not start.
#[derive(Debug, thiserror::Error)]
pub enum GameError {
    /// The port is in use, or not ours to use.
    #[error(
        "listening on {address} (game.listen): is the port in use? choose another, or 0 for any"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing to run.
    #[error(
        "a game server needs a kind of instance to run: give the app one with `.instance::<YourGame>()`"
    )]
    NoKinds,
    /// The grid of ticks is no grid.
    #[error("game.tick_grid is {0:?}; it is 1 ms to 20 ms")]
    TickGrid(Duration),
}
