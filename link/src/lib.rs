//! One conversation of two processes over a socket: framing, the handshake between servers, batched writes,
//! bounded buffers.
//!
//! Everything here is made for one thread: a link belongs to the thread that opened it, its ends are `Rc`s, and
//! its tasks are spawned locally. That is what makes it cheap: whoever has something to say appends it to one
//! buffer, and the writer task, which runs after all tasks that are ready, sends all of it in one write.
//!
//! *Takes*: frames to send; sockets.
//! *Gives*: frames that arrived, as ranges of the chunk that was read, or a [`LinkError`] that ends the link.
//! *Owns*: the buffers of a socket, and proof that the other side holds the cluster's key.
//! *Never*: knows what a frame means, or waits for a peer that takes nothing.

mod death;
mod error;
pub mod framing;
mod handshake;
mod incoming;
mod key;
mod masters;
mod outgoing;
mod strangers;

pub use death::{Death, Vigil};
pub use error::LinkError;
pub use handshake::{Link, Me, accept, dial};
pub use incoming::{Frame, Incoming};
pub use key::ClusterKey;
pub use masters::{HasMasters, stay_linked};
pub use outgoing::{Counters, Full, Outgoing, Writer};
pub use strangers::Strangers;
