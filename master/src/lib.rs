//! A master: links, disk, witness and timers around the master's core.
//!
//! One loop takes everything that is ready and gives it to the core, which is one of a pair: the active appends it to
//! the log, and lets effects out once the standby (or, alone, the disk) has what they come from. One write per link for
//! the whole batch. It runs on one thread, in a `LocalSet`, as links do.
//!
//! *Takes*: links from session servers, game servers and the other master; questions and actions of operators.
//! *Gives*: each server its stream and its answers; operators the cluster's status, searches and placements; the store
//! its profiles, instances and scores.
//! *Owns*: the sockets, the clock, the log and checkpoints on the disk, and the way to the witness.
//! *Never*: decides anything; passes game traffic; lets an effect out before its command is committed.

mod config;
mod connections;
mod disk;
mod documents;
mod early;
mod error;
mod handle;
mod inbox;
mod links;
mod master;
mod metrics;
mod operators;
mod peer;
mod requests;
mod sequencer;
mod takeover;
mod told;
mod traces;
mod witness;

pub use config::MasterConfig;
pub use disk::DiskError;
pub use documents::indexes;
pub use error::MasterError;
pub use greenroom_master_core::{Candidate, Order, Placement, Weighted};
pub use handle::MasterHandle;
pub use master::Master;
pub use metrics::Metrics;
pub use witness::{
    RemoteWitness, SqliteWitness, StoreWitness, Witness, WitnessConfig, WitnessError, WitnessServer,
};
