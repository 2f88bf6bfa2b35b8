use std::io;

use greenroom_master_core::{BadSnapshot, LEASE_MS};

use crate::disk::DiskError;
use crate::witness::WitnessError;

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
    /// Two masters that could each believe that the other is gone.
    #[error(
        "`[master] peer` names another master, and `[master] witness` nothing: two masters need a third to know which \
         of them decides; start `greenroom witness` on a third machine and name its address"
    )]
    NoWitness,
    /// The time-outs are too short, or the wrong way round.
    #[error(
        "`[master] solo_after` is {solo:?} and `takeover_after` {takeover:?}: the first has to be at least \
         {shortest:?}, and shorter than the second"
    )]
    Silence {
        /// As configured.
        solo: std::time::Duration,
        /// As configured.
        takeover: std::time::Duration,
        /// Three beacons.
        shortest: std::time::Duration,
    },
    /// The log or a checkpoint can't be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What is in the folder is no state of this cluster's.
    #[error(
        "the checkpoint in {folder} can't be restored: is it another cluster's, or of another key? Move the folder \
         away to begin with nothing"
    )]
    Checkpoint {
        /// As configured.
        folder: std::path::PathBuf,
        /// What is wrong.
        source: BadSnapshot,
    },
    /// The witness can't be used.
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// The system starts no more threads.
    #[error("starting a thread of the master")]
    Thread(#[source] io::Error),
    /// The system has no randomness to give.
    #[error("drawing random bits for this master")]
    Randomness(#[from] getrandom::Error),
}
