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
    /// There is no room for an instance.
    #[error(
        "game.capacity is 0, so that this server could run nothing: give it the sum of the weights of the instances \
         that it is to run at most, such as 10000"
    )]
    NoCapacity,
    /// The lease is too short to be kept, or too long to be safe.
    #[error(
        "game.lease is {0:?}; it is 2 s to 10 s: a shorter one is lost in a short pause, and after 15 s the master \
         gives away the unique keys of a server that it does not hear"
    )]
    Lease(Duration),
}
