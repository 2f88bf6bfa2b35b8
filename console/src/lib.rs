//! The operator's view and actions: the admin port, and the client of it that the command line uses.
//!
//! The port answers `GET /status`, `GET /metrics` and `GET /healthz` to whoever reaches it, which by default is this
//! machine, and `POST /actions` to who has the token. Everything but the metrics is JSON; an error is
//! `{"code": …, "message": …}`.
//!
//! *Takes*: HTTP requests; a [`Cluster`] to ask.
//! *Gives*: the cluster's status; to the command line, answers or a [`ClientError`] that says what to do.
//! *Owns*: the admin port's socket, and the check of its token.
//! *Never*: decides anything about the cluster; imports a server; prints the token.

pub mod client;
mod config;
mod error;
mod scrape;
mod server;
mod token;

pub use client::ClientError;
pub use config::ConsoleConfig;
pub use error::ConsoleError;
pub use scrape::Scrape;
pub use server::{Cluster, Console, Reply};
pub use token::AdminToken;

use serde::{Deserialize, Serialize};

/// An error of the admin port, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable name.
    pub code: String,
    /// For people: what is wrong and what to do.
    pub message: String,
}
