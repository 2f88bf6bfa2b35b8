//! The decisions of the master: the directories of users, servers and instances as a deterministic state machine.
//!
//! [`State::apply`] takes one command of the log at a time. Whoever applies the same headers and commands to the same
//! state gets the same state and the same effects; nothing in here knows how many masters there are.
//!
//! *Takes*: a [`Header`] (number, epoch, time, seed) and a [`Command`].
//! *Gives*: [`Effects`], and per receiver a numbered stream of what must not be lost; facts for the event log, and
//! documents for the store.
//! *Owns*: who is connected where, which instances run where, who sits in them, which requests were answered how.
//! *Never*: a clock, randomness, a socket, a task; never an iteration whose order is random.

mod boards;
mod changes;
mod command;
mod deadlines;
mod directory;
mod documents;
mod facts;
mod index;
mod log;
mod memory;
mod mint;
mod newest;
mod operators;
mod ordered;
mod placement;
mod record;
mod rejoin;
pub mod replica;
mod report;
mod restore;
mod search;
mod servers;
mod state;
mod users;
mod verbs;
mod watch;

pub use changes::Frozen;
pub use command::{Command, Effect, Effects, Event, Header, Origin};
pub use documents::{CheckedIn, Document, Documents, KeptInstance, RankedMember};
pub use facts::{Asker, Fact, Facts};
pub use log::{Log, replay};
pub use memory::Memory;
pub use mint::ClusterSecret;
pub use newest::{Newest, Placed};
pub use placement::{Candidate, Order, Placement, Weighted};
pub use record::{BadSnapshot, Record};
pub use state::{LEASE_MS, Settings, State};
