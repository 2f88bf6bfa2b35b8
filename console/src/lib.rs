//! The operator's view and actions: the admin port with its pages, and the client of it that the command line uses.
//!
//! The port answers `GET /status`, `GET /metrics` and `GET /healthz` to whoever reaches it, which by default is this
//! machine, and `POST /actions` to who has the token. Everything but the metrics is JSON; an error is
//! `{"code": …, "message": …}`. `GET /` is for people: pages that show the same and act by the same routes, kept up to
//! date over one stream of events.
//!
//! *Takes*: HTTP requests; a [`Cluster`] to ask; this machine's event log to read.
//! *Gives*: the cluster's status, as data and as pages; to the command line, answers or a [`ClientError`] that says
//! what to do.
//! *Owns*: the admin port's socket, the check of its token, and how the cluster was in the past hour.
//! *Never*: decides anything about the cluster; imports a server; prints the token.

mod assets;
pub mod client;
mod config;
mod diagram;
mod error;
mod instance;
mod logs;
mod metrics;
mod monitor;
mod overview;
mod page;
mod patient;
mod scrape;
mod serve;
mod server;
mod tables;
mod text;
mod token;
mod watch;

pub use client::ClientError;
pub use config::ConsoleConfig;
pub use error::ConsoleError;
pub use metrics::Metrics;
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
