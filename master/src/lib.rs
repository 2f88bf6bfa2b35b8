//! The master: links, timers and the log around the master's core.
//!
//! One loop takes everything that is ready, stamps it, appends it to the log, applies it, and only then lets the
//! effects out: one write per link for the whole batch. It runs on one thread, in a `LocalSet`, as links do.
//!
//! *Takes*: links from session servers and game servers; questions and actions of operators.
//! *Gives*: each server its stream and its answers; operators the cluster's status, searches and placements.
//! *Owns*: the sockets, the clock, the log, and the order of commands.
//! *Never*: decides anything; passes game traffic; lets an effect out before its command is in the log.

mod config;
mod disk;
mod error;
mod handle;
mod inbox;
mod links;
mod sequencer;
mod witness;

pub use config::MasterConfig;
pub use error::MasterError;
pub use greenroom_master_core::{Candidate, Order, Placement, Weighted};
pub use handle::MasterHandle;
pub use sequencer::Master;
pub use witness::{SqliteWitness, Witness, WitnessError};
