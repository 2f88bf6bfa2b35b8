//! The game server: many instances at fixed ticks on one thread, behind their links.
//!
//! One thread is one server: a runtime of its own, a listener for session servers, one link to the master. A process
//! may run several; nothing is shared between them. The instances themselves are [`greenroom_game_core::Core`]s.
//!
//! # When a session server takes too little
//! A link's buffer is bounded. What happens to a frame when it is full:
//! - *Patches and snapshots* are dropped, for all members of that channel behind that link. When half of the buffer is
//!   free again, they get their views anew. Other links notice nothing.
//! - *Everything else* (messages, answers, seats that come and go) is taken up to twice the bound; past that the link
//!   is closed. Its members are away from then on, and when the session server dials again, they attach again and
//!   every message that they did not acknowledge is sent again from its instance.
//!
//! # When the master is away
//! Instances without a unique key play on. One with a key is frozen when the master was not heard for as long as the
//! lease lasts (10 s): another server may run it by then, and nobody is to see two. It makes no step and says nothing;
//! what it is told waits, within the bounds of its seats. When a master has welcomed this server again and has
//! acknowledged that the instance is here, it goes on; or the master had it stopped before.
//!
//! What the master has to be told waits in a stream that grows with the seats and instances of this server, of which
//! there is a known number. Metadata and scores, which a game may change as often as it likes, wait as their newest
//! values; past 65,536 scores, further ones are dropped and counted.
//!
//! *Takes*: instances to run, from the master; seats and their frames, from session servers.
//! *Gives*: patches once for each link and channel, frames for single seats, reports to the master.
//! *Owns*: who is attached to which seat over which link; when each instance steps.
//! *Never*: stops an instance without a key because a master or a session server is gone, or waits for one of them in
//! a tick.

mod clockwork;
mod config;
mod documents;
mod error;
mod frozen;
mod gauges;
mod host;
mod lease;
mod metrics;
mod shell;
mod snapshots;
mod spans;
mod upward;

pub use config::GameConfig;
pub use error::GameError;
pub use greenroom_game_core::Registry;
pub use metrics::Metrics;
pub use shell::{Game, bind};
