//! Nodes that speak Couchbase's protocols, for tests: the official SDK talks to them unmodified.
//!
//! *Takes*: key-value requests over TCP, management and query requests over HTTP, faults on command.
//! *Gives*: what a cluster of real nodes would answer, as far as Greenroom's client side needs it.
//! *Owns*: its documents, and its misbehaviour.
//! *Never*: is linked into the product.
//!
//! What a test shows on it is our client side and our logic; how a real cluster behaves it cannot show.

mod clock;
mod cluster;
mod config;
pub mod control;
mod documents;
mod faults;
mod http;
mod journal;
mod kv;
mod query;
mod scram;
mod state;
mod subdoc;
mod wire;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

pub use clock::Clock;
pub use cluster::{Background, Cluster, Options, Tls};
pub use config::Ports;
pub use faults::{Fault, Faults, Misbehaviour, Requests};
pub use state::{DOCUMENT_BYTES_MAX, Right, User};
pub use wire::opcode;

/// What every connection of every node works on.
#[derive(Debug)]
struct Shared {
    state: Mutex<state::State>,
    faults: Faults,
    clock: Clock,
    /// Says that there is a new map.
    map_changes: watch::Sender<()>,
    seeds: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, state::State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_seed(&self) -> u64 {
        self.seeds.fetch_add(1, Ordering::Relaxed)
    }

    /// Changes what is known and tells every client that its map may be old.
    fn change<T>(&self, change: impl FnOnce(&mut state::State) -> T) -> T {
        let changed = change(&mut self.lock());
        self.map_changes.send_replace(());
        changed
    }
}
