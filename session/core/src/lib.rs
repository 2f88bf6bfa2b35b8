//! The decisions of a session server: who is connected, which seats they hold, what they may send.
//!
//! A session server is disposable: it holds no message that is not held elsewhere. Everything here can be made anew
//! from what clients and the master say again.
//!
//! *Takes*: what happened, as calls of [`Core`]'s methods, with the moment at which it did.
//! *Gives*: [`Output`]s for the shell to perform, in order.
//! *Owns*: connections, memberships, channels, and requests that are not answered yet.
//! *Never*: a socket, a clock, a task; a decision about the directory, which is the master's.

mod core;
mod door;
mod limits;
mod slots;

pub use self::core::{CONNECTIONS_MAX, Charge, ConnId, Core, CoreConfig, GameId, Output, Told, Up};
pub use limits::{Bucket, ClientLimits};
pub use slots::Slots;
