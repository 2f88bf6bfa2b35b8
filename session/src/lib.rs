//! The session server: sockets, authentication, rate limits and routing around the session core.
//!
//! One thread is one server: a runtime of its own, listeners of its own, links of its own to the master and to every
//! game server that its clients play on. A process may run several; nothing is shared between them.
//!
//! *Takes*: connections of clients; a configuration.
//! *Gives*: clients their way into the cluster, and a refusal that says why where there is none; browsers the pages
//! that the program brings, while it is developed.
//! *Owns*: sockets of clients, what waits to be written to them, and authentication.
//! *Never*: holds a message that is not held elsewhere, reads what an instance and its client say to each other, or
//! waits for a slow client.

mod acceptor;
pub mod auth;
mod config;
mod connection;
mod error;
mod metrics;
mod pages;
mod refusals;
mod round_trips;
mod shell;
pub mod tls;
mod traces;

pub use acceptor::{Accepted, Acceptor, Duplex, Stream};
pub use config::{LimitsProfile, SessionConfig};
pub use error::SessionError;
pub use greenroom_session_core::ClientLimits;
pub use metrics::Metrics;
pub use pages::Pages;
pub use shell::{Additions, MakeAcceptor, Session, bind};
